use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::layer::testing::{Tar, listing, privileged_dir};
use crate::layer::{NothingBelow, UnpackOptions, unpack};
use crate::view::{Below, NodeKind, RootView};

/// Lower tree and the tree of an unpacked layer.
struct Stack {
    dir: TempDir,
}

impl Stack {
    fn new() -> Option<Self> {
        let dir = privileged_dir()?;
        ["lower", "tree"].iter().for_each(|name| fs::create_dir(dir.path().join(name)).expect("creates"));
        Some(Self { dir })
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn lower_file(&self, path: &str, text: &str) {
        let path = self.path("lower").join(path);
        fs::create_dir_all(path.parent().expect("inside")).expect("creates");
        fs::write(path, text).expect("writes");
    }

    fn apply(&self, tar: Tar) -> Result<()> {
        let unpacked = unpack(tar.bytes().as_slice(), &self.path("tree"), &UnpackOptions::default())?;
        let below = Below::new(vec![self.path("lower")]);
        fix_up(&self.path("tree"), &below, &unpacked)?;
        // A second time changes nothing.
        let before = listing(&self.path("tree"));
        fix_up(&self.path("tree"), &below, &unpacked)?;
        assert_eq!(listing(&self.path("tree")), before);
        Ok(())
    }

    /// What the merged root shows: `PATH/` or `PATH=TEXT`.
    fn merged(&self) -> Vec<String> {
        let view = RootView::open(&[self.path("lower"), self.path("tree")]).expect("opens");
        let mut lines = Vec::new();
        merge_into(&view, Path::new(""), &mut lines);
        lines
    }
}

fn merge_into(view: &RootView, dir: &Path, lines: &mut Vec<String>) {
    for name in view.list(dir).expect("lists").expect("a directory") {
        let path = dir.join(name);
        match view.lookup(&path).expect("looks").expect("exists").kind {
            NodeKind::Dir => {
                lines.push(format!("{}/", path.display()));
                merge_into(view, &path, lines);
            }
            _ => {
                let mut text = String::new();
                view.open_file(&path).expect("opens").expect("a file").read_to_string(&mut text).expect("text");
                lines.push(format!("{}={text}", path.display()));
            }
        }
    }
}

#[test]
fn implied_directories_are_as_below() {
    let Some(stack) = Stack::new() else { return };
    stack.lower_file("tmp/x/old", "");
    stack.lower_file("hidden/x/old", "");
    for (path, mode) in [("tmp", 0o1777), ("tmp/x", 0o711), ("hidden", 0o700), ("hidden/x", 0o700), ("", 0o711)] {
        fs::set_permissions(stack.path("lower").join(path), fs::Permissions::from_mode(mode)).expect("sets");
    }
    std::os::unix::fs::chown(stack.path("lower/tmp/x"), Some(5), Some(6)).expect("chowns");
    stack
        .apply(
            Tar::new()
                .file("tmp/x/new", "")
                .file("hidden/.wh..wh..opq", "")
                .file("hidden/x/new", "")
                .file("fresh/new", ""),
        )
        .expect("applies");
    let meta = |path: &str| fs::metadata(stack.path("tree").join(path)).expect("stats");
    for (path, mode, uid, gid) in [
        ("", 0o711, 0, 0),
        ("tmp", 0o1777, 0, 0),
        ("tmp/x", 0o711, 5, 6),
        ("hidden", 0o700, 0, 0),
        ("hidden/x", 0o755, 0, 0),
        ("fresh", 0o755, 0, 0),
    ] {
        let meta = meta(path);
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (mode, uid, gid), "{path}");
    }
    assert_eq!(meta("tmp/x").mtime(), fs::metadata(stack.path("lower/tmp/x")).expect("stats").mtime());
}

#[test]
fn hard_links_to_files_below_copy_them_up() {
    let Some(stack) = Stack::new() else { return };
    stack.lower_file("usr/bin/tool", "binary");
    fs::set_permissions(stack.path("lower/usr/bin/tool"), fs::Permissions::from_mode(0o4755)).expect("sets");
    fs::set_permissions(stack.path("lower/usr/bin"), fs::Permissions::from_mode(0o711)).expect("sets");
    stack.apply(Tar::new().hard("alias", "usr/bin/tool").hard("second", "alias")).expect("applies");
    let meta = |path: &str| fs::metadata(stack.path("tree").join(path)).expect("stats");
    assert_eq!(meta("alias").ino(), meta("usr/bin/tool").ino());
    assert_eq!(meta("alias").ino(), meta("second").ino());
    assert_eq!(meta("alias").mode() & 0o7777, 0o4755);
    assert_eq!(meta("usr/bin").mode() & 0o7777, 0o711);
    assert_eq!(fs::read_to_string(stack.path("tree/alias")).expect("reads"), "binary");
}

#[test]
fn links_that_lead_nowhere_are_errors() {
    for tar in [
        Tar::new().hard("h", "missing"),
        Tar::new().hard("h", "dir"),
        Tar::new().file(".wh.file", "").hard("h", "file"),
        Tar::new().file("dir/.wh..wh..opq", "").hard("h", "dir/inner"),
        Tar::new().hard("h", "../../outside"),
    ] {
        let Some(stack) = Stack::new() else { return };
        stack.lower_file("file", "");
        stack.lower_file("dir/inner", "");
        fs::write(stack.path("outside"), "").expect("writes");
        assert!(matches!(stack.apply(tar), Err(TreeError::MissingLinkTarget { .. })));
    }
}

#[test]
fn an_opaque_root_hides_everything() {
    let Some(stack) = Stack::new() else { return };
    stack.lower_file("a/old", "");
    stack.lower_file("b/old", "");
    stack.lower_file("c", "");
    stack.apply(Tar::new().file("a/new", "1").file(".wh..wh..opq", "")).expect("applies");
    assert_eq!(stack.merged(), ["a/", "a/new=1"]);
}

#[test]
fn nothing_below_needs_nothing() {
    let Some(stack) = Stack::new() else { return };
    let unpacked =
        unpack(Tar::new().file("a/b", "x").bytes().as_slice(), &stack.path("tree"), &UnpackOptions::default());
    fix_up(&stack.path("tree"), &NothingBelow, &unpacked.expect("unpacks")).expect("fixes");
}

/// A root in memory to which a layer is applied as the specification says, naively.
#[derive(Default)]
struct Model {
    /// Text of a file, `None` for a directory; and whether it is of the layer.
    nodes: BTreeMap<String, (Option<String>, bool)>,
}

#[derive(Clone, Debug)]
enum Action {
    File(String),
    Dir(String),
    Delete(String),
    Hide(String),
}

impl Model {
    fn remove(&mut self, path: &str, only_lower: bool) {
        let inside = if path.is_empty() { String::new() } else { format!("{path}/") };
        self.nodes.retain(|other, (_, is_ours)| {
            let is_target = other == path || other.starts_with(&inside);
            !is_target || (only_lower && *is_ours)
        });
    }

    /// Makes the directories above `path`; `false` when a file of the layer is in the way.
    fn make_parents(&mut self, path: &str) -> bool {
        let ends: Vec<usize> = path.match_indices('/').map(|(end, _)| end).collect();
        if ends.iter().any(|end| matches!(self.nodes.get(&path[..*end]), Some((Some(_), true)))) {
            return false;
        }
        for end in ends {
            // A file below gives way; a directory below is ours from now on, because we have a directory there.
            self.nodes.insert(path[..end].to_owned(), (None, true));
        }
        true
    }

    /// Applies one entry; `false` for an entry that makes the layer invalid.
    fn apply(&mut self, action: &Action, number: usize) -> bool {
        match action {
            Action::File(path) => {
                if !self.make_parents(path) {
                    return false;
                }
                self.remove(path, false);
                self.nodes.insert(path.clone(), (Some(number.to_string()), true));
            }
            Action::Dir(path) => {
                if !self.make_parents(path) {
                    return false;
                }
                self.nodes.insert(path.clone(), (None, true));
            }
            Action::Delete(path) => {
                if !self.make_parents(path) {
                    return false;
                }
                self.remove(path, true);
            }
            Action::Hide(dir) => {
                let probe = if dir.is_empty() { "x".to_owned() } else { format!("{dir}/x") };
                if !self.make_parents(&probe) {
                    return false;
                }
                let inside = if dir.is_empty() { String::new() } else { format!("{dir}/") };
                self.nodes.retain(|path, (_, is_ours)| !path.starts_with(&inside) || *is_ours);
            }
        }
        true
    }

    fn lines(&self) -> Vec<String> {
        let line = |(path, (text, _)): (&String, &(Option<String>, bool))| match text {
            Some(text) => format!("{path}={text}"),
            None => format!("{path}/"),
        };
        let mut lines: Vec<_> = self.nodes.iter().map(|node| (node.0.replace('/', "\0"), line(node))).collect();
        lines.sort();
        lines.into_iter().map(|(_, line)| line).collect()
    }
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|names| names.join("/"))
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => path().prop_map(Action::File),
        2 => path().prop_map(Action::Dir),
        2 => path().prop_map(Action::Delete),
        1 => prop_oneof![4 => path(), 1 => Just(String::new())].prop_map(Action::Hide),
    ]
}

fn marker(path: &str) -> String {
    match path.rsplit_once('/') {
        Some((dir, name)) => format!("{dir}/.wh.{name}"),
        None => format!(".wh.{path}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Unpacked, completed and merged, a layer shows what the specification says, in whatever order its entries come.
    #[test]
    fn layers_merge_as_specified(
        lower in prop::collection::vec(path(), 0..6),
        actions in prop::collection::vec(action(), 0..12),
    ) {
        let Some(stack) = Stack::new() else { return Ok(()) };
        let mut model = Model::default();
        for path in &lower {
            let parents_are_dirs = path.match_indices('/').all(|(end, _)| !matches!(model.nodes.get(&path[..end]), Some((Some(_), _))));
            if parents_are_dirs && !model.nodes.contains_key(path) {
                stack.lower_file(path, "lower");
                path.match_indices('/').for_each(|(end, _)| { model.nodes.insert(path[..end].to_owned(), (None, false)); });
                model.nodes.insert(path.clone(), (Some("lower".to_owned()), false));
            }
        }
        let mut tar = Tar::new();
        for (number, action) in actions.iter().enumerate() {
            if !model.apply(action, number) {
                continue;
            }
            tar = match action {
                Action::File(path) => tar.file(path, &number.to_string()),
                Action::Dir(path) => tar.dir(path),
                Action::Delete(path) => tar.file(&marker(path), ""),
                Action::Hide(dir) if dir.is_empty() => tar.file(".wh..wh..opq", ""),
                Action::Hide(dir) => tar.file(&format!("{dir}/.wh..wh..opq"), ""),
            };
        }
        stack.apply(tar).expect("applies");
        prop_assert_eq!(stack.merged(), model.lines());
    }
}
