//! Both forms of every case: the tar form must be, byte for byte, the tar of the tree form.

mod archives;
mod copies;
mod forms;
mod owners;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use oci::layer::{EntryKind, LayerReader, ReadLimits, TarWriter};
use solver::{CopyAction, CopySelection, ModeChange, Owner, Principal, Unpack};
use tempfile::TempDir;

use super::*;
use crate::context::{IgnoreRules, LocalContext};
use crate::layer::content_digest;
use crate::view::Below;

/// What files get whose time is not their own.
const NOW: (i64, u32) = (1_700_000_000, 5);

/// A root of one layer, a context, and what was made of them.
struct Bench {
    dir: TempDir,
    root_layers: Vec<PathBuf>,
    inputs: Vec<Source>,
}

/// The finished layer.
struct Made {
    /// `path kind mode uid:gid [detail]`, one an entry, in order.
    entries: Vec<String>,
    tree: TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { dir: TempDir::new().unwrap(), root_layers: Vec::new(), inputs: Vec::new() };
        for name in ["ctx", "root", "scratch"] {
            fs::create_dir(bench.path(name)).unwrap();
            fs::set_permissions(bench.path(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { root_layers: vec![bench.path("root")], ..bench }
    }

    /// As the recorded cases: `a.txt`, `b.txt` and `sub/{d.txt,deep/e.txt}` in the context.
    fn usual() -> Self {
        let bench = Self::new();
        bench.file("ctx/a.txt", "a\n");
        bench.file("ctx/b.txt", "b\n");
        bench.file("ctx/sub/d.txt", "d\n");
        bench.file("ctx/sub/deep/e.txt", "e\n");
        bench
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Parents are made 0755, the file is 0644, whatever the umask.
    fn file(&self, path: &str, text: impl AsRef<[u8]>) {
        let parent = PathBuf::from(path).parent().unwrap().to_str().unwrap().to_owned();
        self.mkdir(&parent);
        fs::write(self.path(path), text).unwrap();
        self.chmod(path, 0o644);
    }

    fn mkdir(&self, path: &str) {
        let mut made = String::new();
        for name in path.split('/') {
            made = if made.is_empty() { name.to_owned() } else { format!("{made}/{name}") };
            if fs::create_dir(self.path(&made)).is_ok() {
                self.chmod(&made, 0o755);
            }
        }
    }

    fn link(&self, path: &str, target: &str) {
        let parent = PathBuf::from(path).parent().unwrap().to_str().unwrap().to_owned();
        self.mkdir(&parent);
        symlink(target, self.path(path)).unwrap();
    }

    fn chmod(&self, path: &str, mode: u32) {
        fs::set_permissions(self.path(path), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn chown(&self, path: &str, uid: u32, gid: u32) {
        std::os::unix::fs::lchown(self.path(path), Some(uid), Some(gid)).unwrap();
    }

    /// Only once the context is complete.
    fn context(&self) -> Source {
        LocalContext::open("context", &self.path("ctx"), IgnoreRules::default(), None).unwrap().into()
    }

    fn root(&self) -> RootView {
        RootView::open(&self.root_layers).unwrap()
    }

    fn inputs(&self) -> Vec<Source> {
        let given = self.inputs.iter().cloned();
        [Source::View(self.root()), self.context()].into_iter().chain(given).collect()
    }

    fn perform(&self, actions: &[FileAction], form: Form<'_>) -> Result<FileOutcome, OpError> {
        let scratch = TempDir::new_in(self.path("scratch")).unwrap();
        let setting = Setting {
            root: &self.root(),
            inputs: &self.inputs(),
            scratch: scratch.path(),
            now: NOW,
            cancel: &CancellationToken::new(),
        };
        perform_file_op(&FileOp { actions: actions.to_vec() }, &setting, form)
    }

    /// Performs the actions in both forms, compares them, and lists the layer.
    #[track_caller]
    fn make(&self, actions: &[FileAction]) -> Made {
        let tree = TempDir::new_in(self.dir.path()).unwrap();
        let as_tree = self.perform(actions, Form::Tree(tree.path())).expect("the tree form");
        let mut packed = TarWriter::new(Vec::new());
        crate::layer::write_tree(tree.path(), &Below::new(self.root_layers.clone()), &mut packed).unwrap();
        let packed = packed.finish().unwrap();

        let mut direct = TarWriter::new(Vec::new());
        let as_tar = self.perform(actions, Form::Tar(&mut direct)).expect("the tar form");
        let direct = direct.finish().unwrap();

        assert_eq!(list(&direct), list(&packed), "entries of the two forms");
        assert!(direct == packed, "the bytes of the two forms differ");
        assert_eq!(as_tree.content, as_tar.content, "content digests of the two forms");
        assert_eq!(as_tree.content, content_digest(tree.path(), None).unwrap(), "content digest of the tree");
        Made { entries: list(&direct), tree }
    }

    /// As [`Bench::make`], then the layer becomes part of the root.
    #[track_caller]
    fn add(&mut self, actions: &[FileAction]) -> Vec<String> {
        let made = self.make(actions);
        self.root_layers.push(made.tree.keep());
        made.entries
    }

    /// The message with which both forms fail.
    #[track_caller]
    fn error(&self, actions: &[FileAction]) -> String {
        let tree = TempDir::new_in(self.dir.path()).unwrap();
        let of_tree = self.perform(actions, Form::Tree(tree.path())).expect_err("the tree form");
        assert!(fs::read_dir(tree.path()).unwrap().next().is_none(), "something was written");
        let of_tar = self.perform(actions, Form::Tar(&mut TarWriter::new(Vec::new()))).expect_err("the tar form");
        assert_eq!(of_tree, of_tar);
        of_tree.message
    }
}

/// A COPY from the context.
fn copy(source: &str, dest: &str) -> CopyAction {
    let selection = CopySelection {
        source: source.into(),
        wildcard: source.contains(['*', '?', '[']),
        excludes: Vec::new(),
        parents_base: None,
    };
    CopyAction {
        input: Some(1),
        selection,
        dest: dest.into(),
        owner: None,
        mode: None,
        unpack: Unpack::Never,
        keep_source_metadata: false,
    }
}

fn add(source: &str, dest: &str) -> CopyAction {
    CopyAction { unpack: Unpack::IfArchive, ..copy(source, dest) }
}

fn parents(source: &str, base: &str, dest: &str) -> CopyAction {
    let mut action = copy(source, dest);
    action.selection.parents_base = Some(base.into());
    action
}

fn excluding(action: CopyAction, patterns: &[&str]) -> CopyAction {
    let excludes = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
    CopyAction { selection: CopySelection { excludes, ..action.selection }, ..action }
}

fn chmod(action: CopyAction, mode: &str) -> CopyAction {
    let change = match u32::from_str_radix(mode, 8) {
        Ok(bits) => ModeChange::Octal(bits),
        Err(_) => ModeChange::Symbolic(mode.into()),
    };
    CopyAction { mode: Some(change), ..action }
}

fn chown(action: CopyAction, owner: &str) -> CopyAction {
    CopyAction { owner: Some(parse_owner(owner)), ..action }
}

fn parse_owner(text: &str) -> Owner {
    let principal = |text: &str| match text.parse() {
        Ok(id) => Principal::Id(id),
        Err(_) => Principal::Name(text.into()),
    };
    match text.split_once(':') {
        Some(("", group)) => Owner { user: Principal::Id(0), group: Some(principal(group)) },
        Some((user, group)) => Owner { user: principal(user), group: Some(principal(group)) },
        None => Owner { user: principal(text), group: None },
    }
}

fn actions<const N: usize>(copies: [CopyAction; N]) -> Vec<FileAction> {
    copies.into_iter().map(FileAction::Copy).collect()
}

/// Whether ids and devices can be set; says so when not.
fn is_root() -> bool {
    let is_root = rustix::process::getuid().is_root();
    if !is_root {
        skip("owners and devices need root");
    }
    is_root
}

#[expect(clippy::print_stderr, reason = "a skipped test says why")]
fn skip(reason: &str) {
    eprintln!("skipped: {reason}");
}

/// The entries of a tar as text.
fn list(tar: &[u8]) -> Vec<String> {
    let mut reader = LayerReader::new(tar, ReadLimits::default());
    let mut entries = Vec::new();
    while let Some(member) = reader.next_member().unwrap() {
        let entry = member.entry;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let kind = match entry.kind {
            EntryKind::Regular { size_bytes } => format!("file {size_bytes}"),
            EntryKind::Hardlink { target } => format!("hardlink {}", text(target)),
            EntryKind::Symlink { target } => format!("symlink {}", text(target)),
            EntryKind::Char { major, minor } => format!("char {major},{minor}"),
            EntryKind::Block { major, minor } => format!("block {major},{minor}"),
            EntryKind::Directory => "dir".to_owned(),
            EntryKind::Fifo => "fifo".to_owned(),
        };
        let path = text(entry.path);
        let path = path.trim_end_matches('/');
        entries.push(format!("{path} {:04o} {}:{} {kind}", entry.mode, entry.uid, entry.gid));
    }
    entries
}
