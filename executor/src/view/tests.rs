use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;

use super::*;

/// A stack of trees in a temporary directory.
struct Stack {
    dir: TempDir,
    n_layers: usize,
}

impl Stack {
    fn new(n_layers: usize) -> Self {
        let dir = TempDir::new().unwrap();
        for layer in 0..n_layers {
            fs::create_dir(dir.path().join(layer.to_string())).unwrap();
        }
        Self { dir, n_layers }
    }

    fn path(&self, layer: usize, path: &str) -> PathBuf {
        let path = self.dir.path().join(layer.to_string()).join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn file(&self, layer: usize, path: &str, text: &str) {
        fs::write(self.path(layer, path), text).unwrap();
    }

    fn dir(&self, layer: usize, path: &str) {
        fs::create_dir_all(self.path(layer, path)).unwrap();
    }

    fn link(&self, layer: usize, path: &str, target: &str) {
        symlink(target, self.path(layer, path)).unwrap();
    }

    /// Only root can make whiteouts.
    fn whiteout(&self, layer: usize, path: &str) -> bool {
        let made = mknodat(CWD, self.path(layer, path), FileType::CharacterDevice, Mode::empty(), 0);
        if made.is_err() {
            eprintln_skip("making a whiteout device needs root");
        }
        made.is_ok()
    }

    fn opaque(&self, layer: usize, path: &str) -> bool {
        let path = self.path(layer, path);
        let flags = rustix::fs::XattrFlags::empty();
        let set = ["trusted.overlay.opaque", "user.overlay.opaque"]
            .iter()
            .any(|name| rustix::fs::setxattr(&path, *name, b"y", flags).is_ok());
        if !set {
            eprintln_skip("the file system has no xattrs");
        }
        set
    }

    fn view(&self) -> RootView {
        let trees: Vec<PathBuf> = (0..self.n_layers).map(|layer| self.dir.path().join(layer.to_string())).collect();
        RootView::open(&trees).unwrap()
    }
}

#[expect(clippy::print_stderr, reason = "a skipped test says why")]
fn eprintln_skip(reason: &str) {
    eprintln!("skipped: {reason}");
}

fn text(view: &RootView, path: &str) -> Option<String> {
    let mut text = String::new();
    view.open_file(Path::new(path)).unwrap()?.read_to_string(&mut text).unwrap();
    Some(text)
}

fn names(view: &RootView, path: &str) -> Vec<String> {
    let names = view.list(Path::new(path)).unwrap().expect("a directory");
    names.into_iter().map(|name| name.into_string().unwrap()).collect()
}

#[test]
fn upper_layers_cover_lower_ones() {
    let stack = Stack::new(3);
    stack.file(0, "etc/a", "a0");
    stack.file(0, "etc/b", "b0");
    stack.file(1, "etc/b", "b1");
    stack.file(2, "etc/c", "c2");
    stack.file(0, "replaced/x", "x");
    stack.file(1, "replaced", "now a file");
    stack.file(0, "was-file", "f");
    stack.file(2, "was-file/y", "y");
    let view = stack.view();
    assert_eq!(names(&view, "/"), ["etc", "replaced", "was-file"]);
    assert_eq!(names(&view, "/etc"), ["a", "b", "c"]);
    assert_eq!(text(&view, "/etc/b").as_deref(), Some("b1"));
    assert_eq!(view.lookup(Path::new("/etc/b")).unwrap().unwrap().layer_idx, 1);
    assert_eq!(view.lookup(Path::new("/etc")).unwrap().unwrap().layer_idx, 2);
    assert_eq!(view.lookup(Path::new("/replaced/x")).unwrap(), None);
    assert_eq!(names(&view, "/was-file"), ["y"]);
    assert_eq!(view.list(Path::new("/replaced")).unwrap(), None);
}

#[test]
fn whiteouts_and_opaque_directories_hide() {
    let stack = Stack::new(3);
    stack.file(0, "d/gone", "");
    stack.file(0, "d/stays", "");
    stack.file(0, "gone/deep/f", "");
    stack.file(0, "o/old", "");
    stack.file(2, "o/new", "");
    stack.file(2, "gone/again", "");
    if !stack.whiteout(1, "d/gone") || !stack.whiteout(1, "gone") || !stack.opaque(2, "o") {
        return;
    }
    let view = stack.view();
    assert_eq!(names(&view, "/d"), ["stays"]);
    assert_eq!(view.lookup(Path::new("d/gone")).unwrap(), None);
    assert_eq!(names(&view, "/o"), ["new"]);
    assert_eq!(view.lookup(Path::new("/o/old")).unwrap(), None);
    assert_eq!(names(&view, "/gone"), ["again"]);
    assert_eq!(view.xattrs(Path::new("/o")).unwrap(), Some(vec![]));
}

#[test]
fn links_stay_inside_the_root() {
    let stack = Stack::new(2);
    stack.file(0, "real/f", "f");
    stack.link(0, "abs", "/real");
    stack.link(0, "tmp/up", "../../../real/./f");
    stack.link(1, "real/back", "../abs/f");
    stack.link(1, "dangling", "/not/yet");
    stack.link(1, "loop", "loop");
    stack.link(1, "etc", "/");
    let view = stack.view();
    let cases = [
        ("/abs/f", "/real/f", true),
        ("tmp/up", "/real/f", true),
        ("/real/back", "/real/f", true),
        ("/dangling/x", "/not/yet/x", false),
        ("/dangling", "/not/yet", false),
        ("/etc/etc/../abs", "/real", true),
        ("/../../abs/../tmp/up", "/real/f", true),
        ("/real/f/below/../x", "/real/f/x", false),
        ("/", "/", true),
        ("/missing/../real", "/real", true),
    ];
    for (path, want, exists) in cases {
        let resolved = view.resolve(Path::new(path)).unwrap();
        assert_eq!((resolved.path.to_str().unwrap(), resolved.node.is_some()), (want, exists), "{path}");
    }
    let kept = view.resolve_parent(Path::new("/etc/tmp/up")).unwrap();
    assert_eq!(kept.path, Path::new("/tmp/up"));
    assert_eq!(kept.node.unwrap().kind, NodeKind::Symlink);
    assert!(matches!(view.resolve(Path::new("/loop")), Err(ViewError::TooManyLinks { .. })));
    // Without following, links are opaque to every question.
    assert_eq!(view.lookup(Path::new("/abs/f")).unwrap(), None);
    assert!(view.dir(Path::new("/abs")).unwrap().is_none());
    assert!(view.open_file(Path::new("/tmp/up")).unwrap().is_none());
    assert_eq!(view.read_link(Path::new("/abs")).unwrap(), Some("/real".into()));
    assert_eq!(view.read_link(Path::new("/real")).unwrap(), None);
}

#[test]
fn metadata_is_of_the_topmost_part() {
    let stack = Stack::new(2);
    stack.dir(0, "d");
    stack.dir(1, "d");
    fs::set_permissions(stack.path(0, "d"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(stack.path(1, "d"), fs::Permissions::from_mode(0o1750)).unwrap();
    let node = stack.view().lookup(Path::new("/d")).unwrap().unwrap();
    assert_eq!((node.layer_idx, node.kind, node.meta.mode), (1, NodeKind::Dir, 0o1750));
}

#[test]
fn an_empty_stack_is_an_empty_root() {
    let view = RootView::open(&[]).unwrap();
    assert!(view.is_scratch());
    assert_eq!(names(&view, "/"), Vec::<String>::new());
    assert_eq!(view.lookup(Path::new("/")).unwrap(), None);
    assert_eq!(view.resolve(Path::new("/a/../b")).unwrap().path, Path::new("/b"));
}

#[test]
fn accounts_are_read_through_links() {
    let stack = Stack::new(1);
    stack.file(0, "usr/etc/passwd", "app:x:5:6::/:/bin/sh\n");
    stack.link(0, "etc", "usr/etc");
    let accounts = passwd::Accounts::load(&stack.view()).unwrap();
    assert_eq!(accounts.users().next().unwrap().uid, 5);
    let stack = Stack::new(1);
    stack.dir(0, "etc/passwd");
    assert!(matches!(passwd::Accounts::load(&stack.view()), Err(passwd::AccountsError::NotAFile { .. })));
}

#[test]
fn a_large_tree_needs_few_handles() {
    let stack = Stack::new(2);
    for i in 0..400 {
        stack.file(i % 2, &format!("d{}/e{i}/f", i % 40), "");
    }
    let view = stack.view();
    let mut kept = Vec::new();
    for (name, _) in view.root().entries().unwrap() {
        let dir = view.root().child_dir(&name).unwrap().unwrap();
        for (name, _) in dir.entries().unwrap() {
            kept.push(dir.child_dir(&name).unwrap().unwrap());
        }
    }
    assert_eq!(kept.len(), 400);
    let n_open = |prefix: &Path| {
        let fds = fs::read_dir("/proc/self/fd").unwrap();
        fds.filter(|fd| fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|path| path.starts_with(prefix))).count()
    };
    assert!(n_open(stack.dir.path()) <= 260, "{}", n_open(stack.dir.path()));
    // Those that were closed meanwhile are opened again.
    assert!(kept.iter().all(|dir| dir.lookup(OsStr::new("f")).unwrap().is_some()));
}
