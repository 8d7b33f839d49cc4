//! For which machine the program of a command was made: what its file says, whatever the image claims to be.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::machine::Machine;
use crate::view::RootView;

/// Interpreters of interpreters, as in the kernel.
const MOST_INTERPRETERS: usize = 5;

/// What the kernel reads of a script.
const SCRIPT_BYTES: u64 = 256;

/// The machine of the program that `args` start in the root made of `trees` (base first), found with `path` as `PATH`;
/// scripts lead to their interpreters. `None` when there is no such program, or it is for a machine that we do not know.
pub(crate) fn machine_of_command(trees: &[PathBuf], args: &[String], path: &str) -> Option<&'static Machine> {
    let root = RootView::open(trees).ok()?;
    let name = args.first()?;
    let mut file = match name.contains('/') {
        true => PathBuf::from(name),
        false => path.split(':').map(|directory| Path::new(directory).join(name)).find(|file| is_file(&root, file))?,
    };
    for _ in 0..MOST_INTERPRETERS {
        let start = start_of(&root, &file)?;
        match interpreter(&start) {
            Some(next) => file = next,
            None => return Machine::of_header(&start),
        }
    }
    None
}

fn is_file(root: &RootView, file: &Path) -> bool {
    start_of(root, file).is_some()
}

fn start_of(root: &RootView, file: &Path) -> Option<Vec<u8>> {
    let resolved = root.resolve(file).ok()?;
    let mut start = Vec::new();
    root.open_file(&resolved.path).ok()??.take(SCRIPT_BYTES).read_to_end(&mut start).ok()?;
    Some(start)
}

/// The path behind `#!`.
fn interpreter(start: &[u8]) -> Option<PathBuf> {
    let line = start.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let words = std::str::from_utf8(line).ok()?;
    words.split_whitespace().next().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_program_itself_says_what_it_is_for() {
        let [base, top] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let arm = Machine::of_architecture("arm").unwrap();
        for tree in [&base, &top] {
            std::fs::create_dir(tree.path().join("bin")).unwrap();
        }
        std::fs::write(base.path().join("bin/busybox"), arm.smallest_program()).unwrap();
        symlink("/bin/busybox", base.path().join("bin/sh")).unwrap();
        std::fs::write(top.path().join("bin/script"), "#! /bin/sh -e\necho\n").unwrap();
        std::fs::write(top.path().join("bin/text"), "echo\n").unwrap();
        symlink("loop", top.path().join("bin/loop")).unwrap();
        let trees = [base.path().to_owned(), top.path().to_owned()];
        let found = |name: &str| machine_of_command(&trees, &[name.to_owned()], "/sbin:/bin");
        for (name, expected) in [
            ("/bin/sh", Some(arm)),
            ("sh", Some(arm)),
            ("script", Some(arm)),
            ("text", None),
            ("loop", None),
            ("/no/such", None),
        ] {
            assert_eq!(found(name), expected, "{name}");
        }
        assert_eq!(machine_of_command(&trees, &[], "/bin"), None);
    }
}
