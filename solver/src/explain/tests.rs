use cache::{FileList, ListShape, ListedFile};

use super::*;
use crate::key::Ingredient;

/// Surroundings of which these things are known.
#[derive(Default)]
struct Known {
    lists: Vec<(&'static str, FileList)>,
    makers: Vec<(&'static str, Option<&'static str>)>,
}

impl Around for Known {
    fn file_list(&self, selection: &str) -> Option<FileList> {
        self.lists.iter().find(|(digest, _)| *digest == selection).map(|(_, list)| list.clone())
    }

    fn is_of_client(&self, label: &str) -> bool {
        label != "/out"
    }

    fn maker(&self, position: usize, before: Option<&str>, after: Option<&str>) -> Option<Change> {
        let (name, because) = self.makers.get(position)?;
        let values = [before, after].map(|value| value.map(str::to_owned));
        let [before, after] = values;
        Some(Change { because: because.map(str::to_owned), ..Change::new(What::Step, *name, before, after) })
    }

    fn source_reason(&self, label: &str) -> Option<String> {
        (label == "/out").then(|| "src/a.rs changed".to_owned())
    }
}

fn list(pairs: &[(&str, &str)]) -> Vec<Ingredient> {
    pairs.iter().map(|(name, value)| Ingredient { name: (*name).to_owned(), value: (*value).to_owned() }).collect()
}

#[track_caller]
fn check(before: &[(&str, &str)], after: &[(&str, &str)], want_brief: &str, want_full: &[&str]) {
    check_in(&Known::default(), before, after, want_brief, want_full);
}

#[track_caller]
fn check_in(known: &Known, before: &[(&str, &str)], after: &[(&str, &str)], want_brief: &str, want_full: &[&str]) {
    let changes = changes(&list(before), &list(after), known);
    assert_eq!(brief(&changes), want_brief);
    assert_eq!(full(&changes), want_full);
}

fn file(path: &str, content: u8, mode: u32) -> ListedFile {
    ListedFile { path: path.into(), kind: b'0', mode, uid: 0, gid: 0, content: [content; 8] }
}

fn contents(files: &[ListedFile]) -> FileList {
    FileList { shape: ListShape::Contents, files: files.to_vec() }
}

#[test]
fn paths_are_those_of_the_source() {
    let of = |shape, path: &str, source, is_of_client| {
        let [before, after] = [1, 2].map(|content| FileList { shape, files: vec![file(path, content, 0o644)] });
        full(&file_changes(&before, &after, &Place { source, is_of_client })).swap_remove(0)
    };
    assert_eq!(of(ListShape::Contents, "a", "/src/", true), "src/a changed");
    assert_eq!(of(ListShape::Contents, "a", "/", true), "a changed");
    assert_eq!(of(ListShape::Contents, "a", "/", false), "/a changed");
    assert_eq!(of(ListShape::Items, "a.rs", "/src/*.rs", true), "src/a.rs changed");
    assert_eq!(of(ListShape::Items, "a", "/w/a", false), "/w/a changed");
    assert_eq!(of(ListShape::Root, "src/x/a", "/src/./x", true), "src/x/a changed");
    assert_eq!(Place { source: "/", is_of_client: true }.selected(), "the context");
}

#[test]
fn a_step_that_changed_for_the_same_reason_tells_nothing_more() {
    let known = Known { makers: vec![("line 1", Some("ARG V 1 → 2"))], ..Known::default() };
    check_in(
        &known,
        &[("ARG V", "1"), ("parent layer 1", "1")],
        &[("ARG V", "2"), ("parent layer 1", "2")],
        "ARG V 1 → 2",
        &["ARG V 1 → 2"],
    );
}

#[test]
fn commands_are_shown_as_the_shell_gets_them() {
    check(
        &[("argv", "/bin/sh -c true")],
        &[("argv", r"/bin/sh -c 'echo '\''hi'\'''")],
        "command true → echo 'hi'",
        &["command true → echo 'hi'"],
    );
}

#[test]
fn equal_lists_have_nothing_to_tell() {
    check(&[("argv", "a")], &[("argv", "a")], "", &[]);
}

#[test]
fn variables_are_called_by_the_instruction_that_made_them() {
    check(
        &[("ARG VERSION", "1"), ("argv", "make")],
        &[("ARG VERSION", "2"), ("argv", "make")],
        "ARG VERSION 1 → 2",
        &["ARG VERSION 1 → 2"],
    );
    check(&[("ENV A", "1")], &[("ENV B", "")], "ENV B `` is new, and 1 more", &["ENV B  is new", "ENV A 1 has gone"]);
}

#[test]
fn new_and_gone_ones_are_named() {
    check(
        &[("user", "a")],
        &[("hostname", "b")],
        "hostname b is new, and 1 more",
        &["hostname b is new", "user a has gone"],
    );
}

#[test]
fn files_without_a_list_are_named_by_their_source() {
    let (old, new) = ("ab".repeat(32), "cd".repeat(32));
    check(&[("files /src/", &old)], &[("files /src/", &new)], "files of src changed", &["files of src changed"]);
}

#[test]
fn files_are_named_one_by_one() {
    let known = Known {
        lists: vec![
            ("d1", contents(&[file("a", 1, 0o644), file("b", 2, 0o644), file("c", 3, 0o644), file("d", 4, 1)])),
            ("d2", contents(&[file("a", 9, 0o644), file("b", 2, 0o755), file("e", 3, 0o644), file("f", 5, 1)])),
        ],
        ..Known::default()
    };
    check_in(
        &known,
        &[("files src", "d1")],
        &[("files src", "d2")],
        "src/a changed, and 4 more",
        &["src/a changed", "src/b mode changed 0644 → 0755", "src/c renamed to src/e", "src/f added", "src/d removed"],
    );
    let stage = [("files /out", "d1")];
    check_in(
        &known,
        &stage,
        &[("files /out", "d2")],
        "/out/a changed, and 4 more: src/a.rs changed",
        &[
            "/out/a changed: src/a.rs changed",
            "/out/b mode changed 0644 → 0755: src/a.rs changed",
            "/out/c renamed to /out/e: src/a.rs changed",
            "/out/f added: src/a.rs changed",
            "/out/d removed: src/a.rs changed",
        ],
    );
}

#[test]
fn directories_and_kinds_and_very_many_files() {
    let dir = |path: &str, mode| ListedFile { kind: b'5', mode, ..file(path, 0, 0) };
    let here = Place { source: "/", is_of_client: true };
    let changes =
        |before: &[ListedFile], after: &[ListedFile]| file_changes(&contents(before), &contents(after), &here);
    let told = |before: &[ListedFile], after: &[ListedFile]| full(&changes(before, after));
    assert_eq!(told(&[dir("a", 0o755)], &[dir("a", 0o700)]), ["a/ mode changed 0755 → 0700"]);
    assert_eq!(told(&[], &[dir("a", 0o755), file("a/b", 1, 0)]), ["a/b added"]);
    assert_eq!(told(&[], &[dir("a", 0o755)]), ["a/ added"]);
    assert_eq!(told(&[dir("a", 0o755)], &[file("a", 1, 0o644)]), ["a changed its kind: directory → file"]);
    let owned = ListedFile { uid: 5, ..file("a", 1, 0) };
    assert_eq!(told(&[file("a", 1, 0)], &[owned]), ["a owner changed 0:0 → 5:0"]);
    let many: Vec<_> = (0..MOST_FILES + 7).map(|n| file(&format!("f{n}"), n as u8, 0o644)).collect();
    let changes = changes(&[], &many);
    assert_eq!(changes.len(), MOST_FILES + 1);
    assert_eq!(brief(&changes), format!("f0 added, and {} more", MOST_FILES + 6));
}

#[test]
fn a_base_has_moved_or_is_another_one() {
    let base = |tag: &str, digest: &str| format!("debian:{tag}@sha256:{}", digest.repeat(32));
    let (old, moved, other) = (base("12", "ab"), base("12", "cd"), base("13", "cd"));
    for (new, told) in
        [(&moved, "base debian:12 moved sha256:abababab… → cdcdcdcd…"), (&other, "base debian:12 → debian:13")]
    {
        check(
            &[("base", &old), ("number of parent layers", "2"), ("base image", "1"), ("parent layer 1", "3")],
            &[("base", new), ("number of parent layers", "2"), ("base image", "2"), ("parent layer 1", "4")],
            told,
            &[told],
        );
    }
    check(&[("base image", "1")], &[("base image", "2")], "base image 1 → 2", &["base image 1 → 2"]);
    // The name alone is not in the key.
    assert!(!is_differing(&list(&[("base", &old), ("argv", "a")]), &list(&[("base", new_name()), ("argv", "a")])));
}

fn new_name() -> &'static str {
    "debian:13@sha256:00"
}

#[test]
fn the_lowest_step_that_gave_something_else_is_named_with_its_reason() {
    let known = Known {
        makers: vec![("line 1", None), ("line 2 (COPY a /)", Some("a changed")), ("line 3 (RUN b)", None)],
        ..Known::default()
    };
    check_in(
        &known,
        &[("number of parent layers", "3"), ("parent layer 1", "1"), ("parent layer 2", "2"), ("parent layer 3", "3")],
        &[("number of parent layers", "3"), ("parent layer 1", "1"), ("parent layer 2", "7"), ("parent layer 3", "8")],
        "line 2 (COPY a /) gave another result: a changed",
        &["line 2 (COPY a /) gave another result: a changed"],
    );
    check_in(
        &known,
        &[("number of parent layers", "2"), ("parent layer 1", "1"), ("parent layer 2", "2")],
        &[("number of parent layers", "3"), ("parent layer 1", "1"), ("parent layer 2", "2"), ("parent layer 3", "8")],
        "line 3 (RUN b) is new",
        &["line 3 (RUN b) is new"],
    );
    // What the step itself does counts first.
    check_in(
        &known,
        &[("number of parent layers", "1"), ("parent layer 1", "1"), ("argv", "a")],
        &[("number of parent layers", "1"), ("parent layer 1", "2"), ("argv", "b")],
        "command a → b, and 1 more",
        &["command a → b", "line 1 gave another result"],
    );
}

#[test]
fn long_values_are_shown_from_where_they_differ() {
    let (old, new) = (format!("{}--prefix=/usr", "x".repeat(50)), format!("{}--prefix=/opt", "x".repeat(50)));
    check(
        &[("argv", &old)],
        &[("argv", &new)],
        "command …--prefix=/usr → …--prefix=/opt",
        &[&format!("command {old} → {new}")],
    );
    let (old, new) = (format!("{}1", "x".repeat(50)), format!("y{}", "x".repeat(50)));
    check(
        &[("argv", &old)],
        &[("argv", &new)],
        &format!("command {}… → y{}…", "x".repeat(31), "x".repeat(30)),
        &[&format!("command {old} → {new}")],
    );
}

#[test]
fn hidden_values_stay_hidden() {
    check(
        &[("ARG TOKEN", "(hidden, 12)")],
        &[("ARG TOKEN", "(hidden, 34)")],
        "ARG TOKEN changed",
        &["ARG TOKEN changed"],
    );
}

#[test]
fn a_definition_key_and_a_content_key_are_compared_by_what_both_have() {
    let known = Known { makers: vec![("line 1", None)], ..Known::default() };
    check_in(
        &known,
        &[("parent layer 1", "1"), ("source /a", "/a"), ("number of layers behind /a", "1"), ("layer behind /a", "5")],
        &[("parent layer 1", "1"), ("files /a", "6")],
        "source a is new",
        &["source a is new"],
    );
}

#[test]
fn a_source_more_is_told_by_its_name() {
    check(
        &[("destination", "/d/"), ("name of source", "a"), ("wildcard in /a", "no"), ("files /a", "1")],
        &[
            ("destination", "/d/"),
            ("name of source", "a"),
            ("wildcard in /a", "no"),
            ("files /a", "1"),
            ("name of source", "b"),
            ("wildcard in /b", "no"),
            ("files /b", "2"),
        ],
        "source b is new",
        &["source b is new"],
    );
}

#[test]
fn another_order_is_a_change_too() {
    check(
        &[("mount /a", "bind"), ("mount /b", "bind")],
        &[("mount /b", "bind"), ("mount /a", "bind")],
        "the order changed at mount /b",
        &["the order changed at mount /b"],
    );
}

#[test]
fn ingredients_of_one_name_are_compared_in_order() {
    check(
        &[("--chown", "a"), ("--chown", "b")],
        &[("--chown", "a"), ("--chown", "c")],
        "--chown b → c",
        &["--chown b → c"],
    );
}

#[test]
fn causes_say_what_is_behind_them() {
    let step = Change {
        because: Some("src/a.rs changed".to_owned()),
        ..Change::new(What::Step, "line 2 (COPY src /)", Some("1".to_owned()), Some("2".to_owned()))
    };
    let cause = Cause::Changed { changes: vec![step] };
    assert_eq!(cause.brief(), "line 2 (COPY src /) gave another result: src/a.rs changed");
    assert_eq!(cause.root(), "src/a.rs changed");
    assert!(cause.is_named() && !Cause::OtherVersion.is_named());
    for (seconds, text) in [(5, "5 s ago"), (119, "1 min ago"), (7300, "2 h ago"), (200_000, "2 days ago")] {
        assert_eq!(Cause::Evicted { seconds_ago: seconds }.brief(), format!("evicted {text}"));
    }
    let json = serde_json::to_string(&cause).unwrap();
    assert_eq!(serde_json::from_str::<Cause>(&json).unwrap(), cause);
}
