//! Emulators on this machine, and what to do where there is none.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::machine::Machine;

/// Why programs of a machine do not run here. What can be done about it is [`Lacking::advice`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lacking {
    /// There is no emulator on this machine.
    #[error("no `qemu-{qemu}-static` or `qemu-{qemu}` in {}", list(.searched))]
    Program {
        /// As QEMU calls the machine.
        qemu: &'static str,
        /// Where it was looked for.
        searched: Vec<PathBuf>,
    },
    /// There is one, but it needs libraries, which are not there inside of an image.
    #[error("`{}` is linked dynamically, so that it does not run inside of an image", .emulator.display())]
    Dynamic {
        /// Where it lies.
        emulator: PathBuf,
    },
    /// There is one, but the kernel lets us have no handlers of our own.
    #[error("the kernel allows no program handlers for one build alone ({reason}); that needs Linux 6.7")]
    NotAllowed {
        /// Where it lies.
        emulator: PathBuf,
        /// What binfmt_misc has to be told.
        registration: String,
        /// What failed, and why.
        reason: String,
    },
}

impl Lacking {
    /// What the user can do, one possibility each; `architecture` as in platforms.
    pub fn advice(&self, architecture: &str) -> Vec<String> {
        let for_the_machine = format!(
            "or register an emulator for the whole machine, once: docker run --privileged --rm tonistiigi/binfmt --install {architecture}"
        );
        match self {
            Self::Program { qemu, .. } => vec![
                "install an emulator: apt-get install qemu-user-static (Debian, Ubuntu), dnf install qemu-user-static (Fedora)"
                    .to_owned(),
                format!("or put `qemu-{qemu}-static` into a directory, and name that in RBUILD_QEMU_DIR"),
                for_the_machine,
            ],
            Self::Dynamic { .. } => {
                vec!["install a static one: apt-get install qemu-user-static".to_owned(), for_the_machine]
            }
            Self::NotAllowed { registration, .. } => vec![
                format!(
                    "register the emulator for the whole machine, as root: \
                     mountpoint -q /proc/sys/fs/binfmt_misc || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc; \
                     printf %s '{registration}' > /proc/sys/fs/binfmt_misc/register"
                ),
                for_the_machine,
            ],
        }
    }
}

fn list(directories: &[PathBuf]) -> String {
    let names: Vec<_> = directories.iter().map(|directory| directory.display().to_string()).collect();
    if names.is_empty() { "PATH, which is empty".to_owned() } else { names.join(":") }
}

/// The first emulator for `machine` in `directories` that can run inside of an image.
pub(super) fn emulator(machine: &Machine, directories: &[PathBuf]) -> Result<PathBuf, Lacking> {
    let qemu = machine.qemu;
    // The last one is what BuildKit's images bring.
    let names = [format!("qemu-{qemu}-static"), format!("qemu-{qemu}"), format!("buildkit-qemu-{qemu}")];
    let mut dynamic = None;
    for directory in directories.iter().filter(|directory| directory.is_absolute()) {
        for path in names.iter().map(|name| directory.join(name)) {
            match needs_a_loader(&path) {
                Ok(false) => return Ok(path),
                Ok(true) => dynamic = dynamic.or(Some(path)),
                // Not there, or nothing that could be executed.
                Err(_) => {}
            }
        }
    }
    Err(match dynamic {
        Some(emulator) => Lacking::Dynamic { emulator },
        None => Lacking::Program { qemu, searched: directories.to_vec() },
    })
}

/// Whether the program at `path` has a segment that names its loader.
fn needs_a_loader(path: &Path) -> std::io::Result<bool> {
    const PROGRAM_HEADERS: u64 = 64 * 1024;
    const LOADER: u32 = 3;
    let invalid = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    let mut start = Vec::new();
    File::open(path)?.take(PROGRAM_HEADERS).read_to_end(&mut start)?;
    let own = Machine::of_this_process();
    if own.is_none() || Machine::of_header(&start) != own {
        return Err(invalid());
    }
    // We run on machines of 64 bit whose programs are in our own byte order.
    let half = |at: usize| start.get(at..at + 2).and_then(|bytes| Some(u16::from_ne_bytes(bytes.try_into().ok()?)));
    let first = start.get(32..40).and_then(|bytes| Some(u64::from_ne_bytes(bytes.try_into().ok()?)));
    let (first, size, count) =
        (first.ok_or_else(invalid)?, half(54).ok_or_else(invalid)?, half(56).ok_or_else(invalid)?);
    let headers = (0..usize::from(count)).map_while(|index| {
        let at = usize::try_from(first).ok()?.checked_add(index * usize::from(size))?;
        start.get(at..at.checked_add(4)?).and_then(|bytes| Some(u32::from_ne_bytes(bytes.try_into().ok()?)))
    });
    Ok(headers.into_iter().any(|kind| kind == LOADER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_static_programs_of_this_machine_are_emulators() {
        let directory = tempfile::tempdir().unwrap();
        let machine = Machine::of_architecture("s390x").unwrap();
        let search = [directory.path().to_owned()];
        let found = || emulator(machine, &search);
        assert!(matches!(found(), Err(Lacking::Program { qemu: "s390x", .. })));
        // A script, and a program that does not run here.
        std::fs::write(directory.path().join("qemu-s390x-static"), "#!/bin/sh\n").unwrap();
        std::fs::write(directory.path().join("qemu-s390x"), machine.smallest_program()).unwrap();
        assert!(matches!(found(), Err(Lacking::Program { .. })));
        let own = Machine::of_this_process().unwrap().smallest_program();
        let path = directory.path().join("buildkit-qemu-s390x");
        std::fs::write(&path, &own).unwrap();
        assert_eq!(found(), Ok(path));
        // The only segment of the smallest program, turned into one that names a loader.
        let mut dynamic = own;
        dynamic[64] = 3;
        let path = directory.path().join("qemu-s390x-static");
        std::fs::write(&path, &dynamic).unwrap();
        std::fs::remove_file(directory.path().join("buildkit-qemu-s390x")).unwrap();
        assert_eq!(found(), Err(Lacking::Dynamic { emulator: path }));
    }

    #[test]
    fn advice_is_commands() {
        let machine = Machine::of_architecture("arm64").unwrap();
        let lacking = Lacking::NotAllowed {
            emulator: "/usr/bin/qemu-aarch64-static".into(),
            registration: machine.registration("/usr/bin/qemu-aarch64-static"),
            reason: "making an instance of binfmt_misc: EPERM".to_owned(),
        };
        let advice = lacking.advice("arm64");
        assert!(advice[0].contains(":/usr/bin/qemu-aarch64-static:POCF' > /proc/sys/fs/binfmt_misc/register"));
        assert!(advice[1].ends_with("--install arm64"));
    }
}
