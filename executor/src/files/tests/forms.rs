//! What both forms promise: the bytes of the key, large files, and each other.

use std::path::Path;

use proptest::prelude::*;
use solver::traits::Selection;

use super::*;
use crate::context::digest::digest;

#[test]
fn a_layer_on_a_layer() {
    let mut bench = Bench::usual();
    assert_eq!(bench.add(&actions([copy("/sub", "/x/y")])).len(), 5);
    // Unchanged directories come along only with something in them.
    assert_eq!(bench.add(&actions([copy("/a.txt", "/x/")])), ["x 0755 0:0 dir", "x/a.txt 0644 0:0 file 2"]);
}

#[test]
fn large_files_and_many_small_ones() {
    let bench = Bench::new();
    let noise = |n: usize| (0..n).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect::<Vec<_>>();
    for size in [0, 1, 511, 512, 513, 65_536, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (5 << 20) + 17] {
        bench.file(&format!("ctx/sizes/{size}"), noise(size));
    }
    for i in 0..700 {
        bench.file(&format!("ctx/many/{}/{i}", i % 7), noise(i * 13));
    }
    let made = bench.make(&actions([copy("/", "/all")]));
    assert_eq!(made.entries.len(), 1 + 1 + 10 + 1 + 7 + 700);
    for size in [1 << 20, (5 << 20) + 17] {
        assert!(fs::read(made.tree.path().join(format!("all/sizes/{size}"))).unwrap() == noise(size));
    }
}

/// Makes the key of a copy, changes the context, and copies with the same context.
fn copy_after(bench: &Bench, change: impl Fn()) -> [Result<FileOutcome, OpError>; 2] {
    [false, true].map(|as_tree| {
        // Never write through what an earlier change left there.
        let _ = fs::remove_file(bench.path("ctx/f"));
        bench.file("ctx/f", "before");
        bench.file("ctx/g", "steady");
        let context = bench.context();
        let action = copy("/", "/d");
        digest(&context, &Selection::Copy(&action.selection)).unwrap();
        change();
        let tree = TempDir::new_in(bench.dir.path()).unwrap();
        let mut tar = TarWriter::new(Vec::new());
        let setting = Setting {
            root: &bench.root(),
            inputs: &[Source::Empty, context],
            scratch: tree.path(),
            now: NOW,
            cancel: &CancellationToken::new(),
        };
        let form = if as_tree { Form::Tree(tree.path()) } else { Form::Tar(&mut tar) };
        perform_file_op(&FileOp { actions: actions([action]) }, &setting, form)
    })
}

#[test]
fn bytes_that_are_not_those_of_the_key_are_noticed() {
    let bench = Bench::new();
    for outcome in copy_after(&bench, || fs::write(bench.path("ctx/f"), "after!").unwrap()) {
        assert_eq!(outcome.unwrap_err().message, "`f` changed while it was read");
    }
    for outcome in copy_after(&bench, || fs::write(bench.path("ctx/f"), "longer than before").unwrap()) {
        assert_eq!(outcome.unwrap_err().message, "`f` changed while it was read");
    }
    // Replaced by the same bytes: nothing that counts has changed.
    for outcome in copy_after(&bench, || {
        fs::remove_file(bench.path("ctx/f")).unwrap();
        fs::write(bench.path("ctx/f"), "before").unwrap();
    }) {
        outcome.unwrap();
    }
    // A link to a place outside, where a file was.
    for outcome in copy_after(&bench, || {
        fs::remove_file(bench.path("ctx/f")).unwrap();
        bench.file("outside", "before");
        symlink(bench.path("outside"), bench.path("ctx/f")).unwrap();
    }) {
        assert!(outcome.is_err());
    }
}

/// Changes what is at a path in the context.
type Change<'a> = (&'a str, &'a dyn Fn(&Path));

/// Copies before the key is made, changes what was copied, and makes the key: it has to be that of what was copied.
#[track_caller]
fn check_ahead(bench: &Bench, action: &CopyAction, changes: &[Change<'_>]) {
    let selection = Selection::Copy(&action.selection);
    let before = digest(&bench.context(), &selection).unwrap();
    let context = bench.context();
    let setting = Setting {
        root: &bench.root(),
        inputs: &[Source::Empty, context.clone()],
        scratch: &bench.path("scratch"),
        now: NOW,
        cancel: &CancellationToken::new(),
    };
    let op = FileOp { actions: actions([action.clone()]) };
    perform_file_op(&op, &setting, Form::Tar(&mut TarWriter::new(Vec::new()))).unwrap();
    for (path, change) in changes {
        change(&bench.path(&format!("ctx/{path}")));
        assert_ne!(digest(&bench.context(), &selection).unwrap(), before, "the change of `{path}` counts");
    }
    assert_eq!(digest(&context, &selection).unwrap(), before);
}

#[test]
fn what_is_copied_before_its_key_is_made_is_what_the_key_counts() {
    let bench = Bench::usual();
    bench.file("ctx/large", vec![7; (2 << 20) + 5]);
    bench.link("ctx/link", "a.txt");
    bench.file("ctx/one-name", "linked");
    fs::hard_link(bench.path("ctx/one-name"), bench.path("ctx/other-name")).unwrap();
    let rewrite = |path: &Path| fs::write(path, "x\n").unwrap();
    let replace = |path: &Path| {
        fs::remove_file(path).unwrap();
        fs::write(path, "second").unwrap();
    };
    let relink = |path: &Path| {
        fs::remove_file(path).unwrap();
        symlink("b.txt", path).unwrap();
    };
    check_ahead(
        &bench,
        &copy("/", "/d"),
        &[
            ("a.txt", &rewrite),
            ("sub/deep/e.txt", &replace),
            ("large", &rewrite),
            ("link", &relink),
            // The name that was not read for itself.
            ("other-name", &replace),
        ],
    );
}

#[test]
fn archives_that_are_unpacked_before_their_key_is_made_count_as_they_were() {
    let bench = Bench::new();
    let mut archive = ::tar::Builder::new(Vec::new());
    let mut header = ::tar::Header::new_gnu();
    header.set_size(2);
    header.set_mode(0o644);
    archive.append_data(&mut header, "inside", &b"hi"[..]).unwrap();
    let mut archive = archive.into_inner().unwrap();
    // What follows the end counts as well.
    archive.extend_from_slice(b"behind the end");
    bench.file("ctx/a.tar", &archive);
    archive[0] = b'o';
    check_ahead(&bench, &add("/a.tar", "/d/"), &[("a.tar", &|path| fs::write(path, &archive).unwrap())]);
}

#[test]
fn a_cancelled_operation_stops() {
    let bench = Bench::usual();
    let cancel = CancellationToken::new();
    cancel.cancel();
    let setting = Setting {
        root: &bench.root(),
        inputs: &bench.inputs(),
        scratch: &bench.path("scratch"),
        now: NOW,
        cancel: &cancel,
    };
    let op = FileOp { actions: actions([copy("/", "/d")]) };
    let error = perform_file_op(&op, &setting, Form::Tar(&mut TarWriter::new(Vec::new()))).unwrap_err();
    assert_eq!(error, OpError::cancelled());
}

/// One thing in a random tree.
#[derive(Clone, Debug)]
enum Thing {
    File(Vec<u8>, u32),
    Dir(u32),
    Link(&'static str),
    HardLinkTo(usize),
}

fn names() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["a", "b", "a.b", "é", "z z"]);
    prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"))
}

fn things() -> impl Strategy<Value = Vec<(String, Thing)>> {
    let mode = prop::sample::select(vec![0o644_u32, 0o755, 0o4711, 0o600, 0o2750]);
    let thing = prop_oneof![
        4 => (prop::collection::vec(any::<u8>(), 0..700), mode.clone()).prop_map(|(bytes, mode)| Thing::File(bytes, mode)),
        2 => mode.prop_map(Thing::Dir),
        1 => prop::sample::select(vec!["a", "../b", "/a/b", "b/a", "nowhere", "/"]).prop_map(Thing::Link),
        1 => (0..8_usize).prop_map(Thing::HardLinkTo),
    ];
    prop::collection::vec((names(), thing), 0..14)
}

/// Makes what can be made; what is in the way of something else stays.
fn fill(bench: &Bench, top: &str, things: &[(String, Thing)]) {
    let mut files = Vec::new();
    for (path, thing) in things {
        let path = format!("{top}/{path}");
        let parent = Path::new(&path).parent().unwrap();
        if fs::create_dir_all(bench.dir.path().join(parent)).is_err() || bench.path(&path).symlink_metadata().is_ok() {
            continue;
        }
        // A parent may be a link to a place outside of the tree.
        let real = fs::canonicalize(bench.dir.path().join(parent)).unwrap();
        if !real.starts_with(bench.path(top)) {
            continue;
        }
        match thing {
            Thing::File(bytes, mode) => {
                fs::write(bench.path(&path), bytes).unwrap();
                bench.chmod(&path, *mode);
                files.push(path);
            }
            Thing::Dir(mode) => {
                fs::create_dir(bench.path(&path)).unwrap();
                bench.chmod(&path, mode | 0o700);
            }
            Thing::Link(target) => symlink(target, bench.path(&path)).unwrap(),
            Thing::HardLinkTo(idx) => {
                if let Some(file) = files.get(*idx) {
                    fs::hard_link(bench.path(file), bench.path(&path)).unwrap();
                }
            }
        }
    }
}

fn random_copy() -> impl Strategy<Value = CopyAction> {
    let source = prop::sample::select(vec!["/", "/a", "/a/b", "/*", "/a/*", "/[ab]*", "/b/a*"]);
    let dest = prop::sample::select(vec!["/", "/a", "/a/", "/b/a", "/a.b/b/", "/z", "/new/deep/er"]);
    let mode = prop::sample::select(vec![None, Some("640"), Some("u+rwX,go=rX")]);
    let excludes = prop::sample::select(vec![vec![], vec!["**/a"], vec!["b", "!b/a"]]);
    let keeps_paths = prop::bool::weighted(0.2);
    (source, dest, mode, excludes, keeps_paths).prop_map(|(source, dest, mode, excludes, keeps_paths)| {
        let action = if keeps_paths { parents(source, "/", dest) } else { copy(source, dest) };
        let action = excluding(action, &excludes);
        match mode {
            Some(mode) => chmod(action, mode),
            None => action,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Whatever is copied onto whatever: both forms fail alike, or give the same bytes.
    #[test]
    fn both_forms_are_the_same_layer(
        context in things(),
        root in things(),
        copies in prop::collection::vec(random_copy(), 1..4),
    ) {
        let bench = Bench::new();
        fill(&bench, "ctx", &context);
        fill(&bench, "root", &root);
        let actions: Vec<_> = copies.into_iter().map(FileAction::Copy).collect();
        let tree = TempDir::new_in(bench.dir.path()).unwrap();
        let probe = bench.perform(&actions, Form::Tree(tree.path()));
        match probe {
            Ok(_) => {
                bench.make(&actions);
            }
            Err(_) => {
                bench.error(&actions);
            }
        }
    }
}
