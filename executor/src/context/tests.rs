use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::time::{Duration, SystemTime};

use cache::{ContentDigest, Store};
use solver::CopySelection;
use solver::plan::patterns::Patterns;
use solver::traits::Selection;
use tempfile::TempDir;

use super::digest::digest;
use super::source::Source;
use super::*;
use crate::view::RootView;

/// A directory with helpers that say what they do.
struct Space {
    dir: TempDir,
}

impl Space {
    fn new() -> Self {
        let space = Self { dir: TempDir::new().unwrap() };
        fs::create_dir(space.path("ctx")).unwrap();
        space
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path("ctx").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        symlink(target, self.path("ctx").join(path)).unwrap();
    }

    fn chmod(&self, path: &str, mode: u32) {
        fs::set_permissions(self.path("ctx").join(path), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn open(&self, ignore: &str) -> LocalContext {
        self.open_with(ignore, None)
    }

    fn open_with(&self, ignore: &str, index: Option<ContextIndex>) -> LocalContext {
        let patterns = Patterns::parse_ignore_file(ignore.as_bytes()).unwrap();
        let rules = IgnoreRules { patterns, file: ".dockerignore".into() };
        LocalContext::open("context", &self.path("ctx"), rules, index).unwrap()
    }

    fn digest(&self, ignore: &str, selection: &CopySelection) -> ContentDigest {
        digest(&self.open(ignore).into(), &Selection::Copy(selection)).unwrap()
    }
}

fn copy(source: &str) -> CopySelection {
    let wildcard = source.contains(['*', '?', '[']);
    CopySelection { source: source.into(), wildcard, excludes: Vec::new(), parents_base: None }
}

/// Every visible path, in order.
fn visible(context: &LocalContext) -> Vec<String> {
    let mut paths = Vec::new();
    let root = Source::from(context.clone()).root().unwrap().unwrap();
    walk::walk::<ContextError>(&root, &walk::WalkRules::default(), &mut |entry| {
        paths.push(entry.path.to_str().unwrap().to_owned());
        Ok(())
    })
    .unwrap();
    paths
}

#[test]
fn ignored_paths_do_not_exist() {
    let space = Space::new();
    for path in ["a", "b.log", "docs/x", "docs/deep/keep.md", "docs/deep/no", "src/m.rs", "src/m.log", "empty/no"] {
        space.write(path, "");
    }
    space.link("link", "b.log");
    let cases: [(&str, &[&str]); 5] = [
        (
            "",
            &[
                "a",
                "b.log",
                "docs",
                "docs/deep",
                "docs/deep/keep.md",
                "docs/deep/no",
                "docs/x",
                "empty",
                "empty/no",
                "link",
                "src",
                "src/m.log",
                "src/m.rs",
            ],
        ),
        ("docs\nempty\nsrc\n", &["a", "b.log", "link"]),
        // A parent of something re-included appears, its other children do not.
        ("*\n!docs/deep/keep.md\n!a\n", &["a", "docs", "docs/deep", "docs/deep/keep.md"]),
        (
            "**/*.log\n!src/m.log\nempty/*\n",
            &[
                "a",
                "docs",
                "docs/deep",
                "docs/deep/keep.md",
                "docs/deep/no",
                "docs/x",
                "empty",
                "link",
                "src",
                "src/m.log",
                "src/m.rs",
            ],
        ),
        // Nothing below matches the exception: the directory is gone.
        ("*\n!nothing/here\n!docs/none\n", &[]),
    ];
    for (ignore, want) in cases {
        assert_eq!(visible(&space.open(ignore)), want, "{ignore:?}");
    }
}

#[test]
fn only_what_is_asked_for_is_read() {
    let space = Space::new();
    space.write("src/a", "");
    space.write("other/b", "");
    let context = space.open("");
    digest(&context.clone().into(), &Selection::Copy(&copy("/src"))).unwrap();
    let top = context.top().unwrap();
    let slot = |name: &str| top.child_slot(top.entry(OsStr::new(name)).unwrap()).unwrap().get().is_some();
    assert!(slot("src") && !slot("other"));
}

#[test]
fn what_counts_for_a_digest() {
    let make = || {
        let space = Space::new();
        space.write("d/one", "1");
        space.write("d/two.txt", "2");
        space.write("d/sub/three", "3");
        space.write("out", "o");
        space.link("d/l", "one");
        space
    };
    let base = make().digest("", &copy("/d"));
    type Change = fn(&Space);
    let cases: [(&str, Change, bool); 13] = [
        ("nothing", |_| (), false),
        (
            "a time",
            |s| {
                let file = fs::File::options().write(true).open(s.path("ctx/d/one")).unwrap();
                file.set_modified(SystemTime::now() - Duration::from_secs(5000)).unwrap();
            },
            false,
        ),
        ("a file outside", |s| s.write("out", "changed"), false),
        ("mode of the top directory", |s| s.chmod("d", 0o700), false),
        ("bytes", |s| s.write("d/one", "9"), true),
        ("size", |s| s.write("d/one", "11"), true),
        ("mode", |s| s.chmod("d/one", 0o755), true),
        ("mode of a directory", |s| s.chmod("d/sub", 0o700), true),
        ("name", |s| fs::rename(s.path("ctx/d/one"), s.path("ctx/d/eno")).unwrap(), true),
        (
            "link target",
            |s| {
                fs::remove_file(s.path("ctx/d/l")).unwrap();
                s.link("d/l", "two.txt");
            },
            true,
        ),
        ("a new file", |s| s.write("d/sub/four", ""), true),
        ("a lost file", |s| fs::remove_file(s.path("ctx/d/sub/three")).unwrap(), true),
        (
            "a file that becomes a directory",
            |s| {
                fs::remove_file(s.path("ctx/d/one")).unwrap();
                s.write("d/one/x", "1");
            },
            true,
        ),
    ];
    for (what, change, changes) in cases {
        let space = make();
        change(&space);
        assert_eq!(space.digest("", &copy("/d")) != base, changes, "{what}");
    }
}

#[test]
fn excluded_and_ignored_files_do_not_count() {
    let space = Space::new();
    space.write("d/a.go", "1");
    space.write("d/b.txt", "2");
    let excluding = CopySelection { excludes: vec!["*.txt".into()], ..copy("/d") };
    let (excluded, ignored) = (space.digest("", &excluding), space.digest("**/*.txt", &copy("/d")));
    assert_eq!(excluded, ignored);
    fs::rename(space.path("ctx/d/b.txt"), space.path("ctx/d/c.txt")).unwrap();
    assert_eq!(space.digest("", &excluding), excluded);
    assert_eq!(space.digest("**/*.txt", &copy("/d")), excluded);
    assert_ne!(space.digest("", &copy("/d")), excluded);
}

#[test]
fn wildcards_see_names_and_follow_matched_links() {
    let space = Space::new();
    space.write("a.txt", "1");
    space.write("sub/x", "x");
    let pattern = copy("/*.txt");
    let before = space.digest("", &pattern);
    fs::rename(space.path("ctx/a.txt"), space.path("ctx/b.txt")).unwrap();
    assert_ne!(space.digest("", &pattern), before);
    fs::rename(space.path("ctx/b.txt"), space.path("ctx/a")).unwrap();
    space.link("a.txt", "a");
    assert_eq!(space.digest("", &pattern), before, "a link that matches is what it leads to");
    assert_eq!(space.digest("", &copy("/none*")), space.digest("", &copy("/nothing?")));
}

#[test]
fn a_view_of_the_same_tree_has_the_same_digest() {
    let space = Space::new();
    space.write("d/one", "1");
    space.write("d/sub/two", "2");
    space.link("d/l", "../d/one");
    space.chmod("d/one", 0o4711);
    if rustix::process::getuid().as_raw() != 0 {
        return; // Files of a view keep their owner.
    }
    let view = Source::View(RootView::open(&[space.path("ctx")]).unwrap());
    for selection in [copy("/d"), copy("/"), copy("/d/*"), copy("/d/one")] {
        let of_view = digest(&view, &Selection::Copy(&selection)).unwrap();
        assert_eq!(of_view, space.digest("", &selection), "{}", selection.source);
    }
    let path = Selection::Path("/d");
    assert_eq!(digest(&view, &path).unwrap(), digest(&space.open("").into(), &path).unwrap());
}

#[test]
fn parents_select_paths() {
    let space = Space::new();
    for path in ["x/y/z/f.go", "x/y/g.go", "x/h.txt", "top.go", "other/n.txt"] {
        space.write(path, "");
    }
    let parents = |source: &str, base: &str| CopySelection { parents_base: Some(base.into()), ..copy(source) };
    let before = space.digest("", &parents("/**/*.go", "/"));
    space.write("other/new.txt", "");
    space.write("x/y/z/new.txt", "");
    assert_eq!(space.digest("", &parents("/**/*.go", "/")), before);
    space.chmod("x/y", 0o711);
    assert_ne!(space.digest("", &parents("/**/*.go", "/")), before, "parents are copied with their metadata");
}

#[track_caller]
fn check_missing(space: &Space, ignore: &str, source: &str, want: &str, help: &[String]) {
    let selection = CopySelection { wildcard: false, ..copy(source) };
    let error = digest(&space.open(ignore).into(), &Selection::Copy(&selection)).unwrap_err();
    let error = solver::OpError::from(error);
    assert_eq!(error.message, want);
    assert_eq!(error.help, help);
}

#[test]
fn missing_sources_are_explained() {
    let space = Space::new();
    space.write("package.json", "");
    space.write("src/main.rs", "");
    space.write("secret/key", "");
    space.link("gone", "nowhere");
    let message = |path: &str| {
        let quoted = path.replace('\\', r"\\");
        format!("failed to compute cache key: failed to calculate checksum of ref context: \"{quoted}\": not found")
    };
    let looked = |path: &str| format!("looked for `{}`", space.path("ctx").join(path).display());
    let near = |path: &str| format!("did you mean `{path}`?");
    let cases = [
        ("/packge.json", vec![looked("packge.json"), near("package.json")]),
        ("/srcs/main.rs", vec![looked("srcs/main.rs"), near("src/main.rs")]),
        ("/nothing-like-it", vec![looked("nothing-like-it")]),
        ("/gone", vec![looked("gone")]),
        ("/x\\*y", vec![looked("x\\*y")]),
    ];
    for (path, help) in cases {
        check_missing(&space, "", path, &message(path), &help);
    }
    let hidden = "`secret/key` exists, but `secret` in .dockerignore:3 hides it".to_owned();
    check_missing(&space, "# private\n\nsecret\n", "/secret/key", &message("/secret/key"), &[hidden]);
}

#[test]
fn bad_patterns_are_named() {
    let space = Space::new();
    let error = digest(&space.open("").into(), &Selection::Copy(&copy("/a["))).unwrap_err();
    let want = "rpc error: code = Unknown desc = invalid includepatterns: [a[]: syntax error in pattern";
    assert_eq!(error.to_string(), want);
}

#[test]
fn the_index_spares_unchanged_files_and_nothing_else() {
    let space = Space::new();
    let store = Store::open(&space.path("store")).unwrap();
    let index = || Some(ContextIndex::load(&store, "ctx"));
    space.write("old", "1");
    space.write("young", "1");
    std::thread::sleep(Duration::from_millis(40));
    space.write("young", "2");
    let selection = copy("/");
    let first = digest(&space.open_with("", index()).into(), &Selection::Copy(&selection)).unwrap();

    let again = space.open_with("", index());
    assert_eq!(digest(&again.clone().into(), &Selection::Copy(&selection)).unwrap(), first);
    let top = again.top().unwrap();
    let was_read = |name: &str| {
        let content = top.entry(OsStr::new(name)).unwrap().content().unwrap();
        content.read_at_ns != again.opened_at_ns()
    };
    assert!(!was_read("old"), "its stamp is the same");
    assert!(was_read("young"), "it was read too soon after it was written to be trusted");

    // The same size and, set by hand, the same time: only the change time tells.
    let modified = fs::metadata(space.path("ctx/old")).unwrap().modified().unwrap();
    space.write("old", "9");
    fs::File::options().write(true).open(space.path("ctx/old")).unwrap().set_modified(modified).unwrap();
    assert_ne!(digest(&space.open_with("", index()).into(), &Selection::Copy(&selection)).unwrap(), first);
}

#[test]
fn links_stay_in_the_context() {
    let space = Space::new();
    fs::write(space.path("secret"), "outside").unwrap();
    space.write("top", "inside");
    space.link("esc", "../../../top");
    space.link("abs", "/top");
    space.link("out", "../secret");
    let context = space.open("");
    for name in ["esc", "abs"] {
        assert_eq!(context.resolve(Path::new(name)).unwrap().path, Path::new("/top"));
    }
    assert_eq!(context.resolve(Path::new("out")).unwrap().node, None);
    assert!(context.open_beneath(Path::new("esc"), OFlags::RDONLY).is_err());
}

#[test]
fn mounts_show_the_context_through_its_rules() {
    let space = Space::new();
    space.write("d/f", "text");
    space.write("d/sub/g", "text");
    space.write("d/sub/no.log", "");
    space.write("d/plain/h", "text");
    space.write("d/no.log", "");
    space.link("d/l", "f");
    space.chmod("d/sub", 0o711);
    let scratch = space.path("scratch");
    fs::create_dir(&scratch).unwrap();

    let before = fs::metadata(space.path("ctx/d/f")).unwrap();
    for rules in ["", "other"] {
        let itself = materialize_for_mount(&space.open(rules), "/d", &scratch).unwrap();
        assert_eq!(itself.layers(), [space.path("ctx/d")]);
    }
    let file = materialize_for_mount(&space.open("**/*.log"), "/d/l", &scratch).unwrap();
    assert_eq!(file.layers(), [space.path("ctx/d/f")]);
    assert!(fs::read_dir(&scratch).unwrap().next().is_none());

    let filtered = materialize_for_mount(&space.open("**/*.log"), "/d", &scratch).unwrap();
    let [base, marks] = filtered.layers() else { panic!("{filtered:?}") };
    let merged = RootView::open(&[base.clone(), marks.clone()]).unwrap();
    let names = |path: &str| {
        let mut names = merged.list(Path::new(path)).unwrap().unwrap();
        names.sort();
        names
    };
    assert_eq!(names("/"), ["f", "l", "plain", "sub"]);
    assert_eq!(names("/sub"), ["g"]);
    // What stands above a directory looks like it.
    let modified = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    assert_eq!(modified(&marks.join("sub")), modified(&space.path("ctx/d/sub")));
    assert_eq!(fs::metadata(marks.join("sub")).unwrap().permissions().mode() & 0o777, 0o711);
    assert!(!marks.join("plain").exists());
    // The files themselves know nothing of it.
    let after = fs::metadata(space.path("ctx/d/f")).unwrap();
    assert_eq!((after.nlink(), after.ctime_nsec()), (before.nlink(), before.ctime_nsec()));
    let root = marks.clone();
    drop(filtered);
    assert!(!root.exists());
}
