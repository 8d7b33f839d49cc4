//! Sources, destinations and what is refused. The expectations are recorded results of the reference builder.

use solver::{MakeDirAction, WriteFileAction};

use super::*;

const A: &str = "0644 0:0 file 2";
const DIR: &str = "0755 0:0 dir";

#[track_caller]
fn check(bench: &Bench, copies: Vec<FileAction>, want: &[String]) {
    assert_eq!(bench.make(&copies).entries, want);
}

fn lines<const N: usize>(entries: [(&str, &str); N]) -> Vec<String> {
    entries.iter().map(|(path, rest)| format!("{path} {rest}")).collect()
}

#[test]
fn where_one_file_goes() {
    let bench = Bench::usual();
    bench.mkdir("root/have");
    bench.mkdir("root/w");
    bench.file("root/file", "old");
    let cases = [
        ("/have", lines([("have", DIR), ("have/a.txt", A)])),
        ("/new", lines([("new", A)])),
        ("/newdir/", lines([("newdir", DIR), ("newdir/a.txt", A)])),
        ("/file", lines([("file", A)])),
        ("/w/rel/path", lines([("w", DIR), ("w/rel", DIR), ("w/rel/path", A)])),
        ("/w/dot/.", lines([("w", DIR), ("w/dot", DIR), ("w/dot/a.txt", A)])),
        ("/", lines([("a.txt", A)])),
    ];
    for (dest, want) in cases {
        check(&bench, actions([copy("/a.txt", dest)]), &want);
    }
}

#[test]
fn where_a_directory_goes() {
    let bench = Bench::usual();
    bench.mkdir("root/have/deep");
    bench.file("root/have/d.txt", "old");
    bench.file("root/have/stay", "stays");
    let contents = |top: &str| {
        let below = [("d.txt", A), ("deep", DIR), ("deep/e.txt", A)];
        let below = below.iter().map(|(path, rest)| format!("{top}/{path} {rest}"));
        [format!("{top} {DIR}")].into_iter().chain(below).collect::<Vec<_>>()
    };
    for (dest, top) in [("/have", "have"), ("/have/", "have"), ("/new", "new"), ("/new/", "new")] {
        check(&bench, actions([copy("/sub", dest)]), &contents(top));
    }
    check(&bench, actions([copy("/sub", "/")]), &lines([("d.txt", A), ("deep", DIR), ("deep/e.txt", A)]));
}

#[test]
fn several_sources() {
    let bench = Bench::usual();
    check(&bench, actions([copy("/a.txt", "/x"), copy("/b.txt", "/x")]), &lines([("x", A)]));
    let want = lines([("x", DIR), ("x/a.txt", A), ("x/d.txt", A), ("x/deep", DIR), ("x/deep/e.txt", A)]);
    check(&bench, actions([copy("/a.txt", "/x/"), copy("/sub", "/x/")]), &want);
    // By the time of the second source the destination is a directory.
    let want = lines([("x", DIR), ("x/b.txt", A), ("x/d.txt", A), ("x/deep", DIR), ("x/deep/e.txt", A)]);
    check(&bench, actions([copy("/sub", "/x"), copy("/b.txt", "/x")]), &want);
}

#[test]
fn destination_links_are_followed_inside_the_root() {
    let bench = Bench::usual();
    bench.mkdir("root/real");
    bench.file("root/real/target", "old");
    bench.mkdir("root/tmp");
    bench.link("root/lnk", "/real");
    bench.link("root/tmp/up", "../../../real");
    bench.link("root/flink", "/real/target");
    bench.link("root/dangling", "/not/yet");
    let cases = [
        ("/lnk/", lines([("real", DIR), ("real/a.txt", A)])),
        ("/tmp/up/b", lines([("real", DIR), ("real/b", A)])),
        ("/flink", lines([("real", DIR), ("real/target", A)])),
        ("/dangling", lines([("not", DIR), ("not/yet", A)])),
        ("/dangling/", lines([("not", DIR), ("not/yet", DIR), ("not/yet/a.txt", A)])),
    ];
    for (dest, want) in cases {
        check(&bench, actions([copy("/a.txt", dest)]), &want);
    }
    // A link that an earlier action of the same operation wrote counts as well.
    bench.link("ctx/links/l", "/made");
    let want = lines([("d", DIR), ("d/l", "0777 0:0 symlink /made"), ("made", A)]);
    check(&bench, actions([copy("/links", "/d"), copy("/a.txt", "/d/l")]), &want);
}

#[test]
fn leaves_are_replaced_not_written_through() {
    let bench = Bench::usual();
    bench.file("root/keep", "keep");
    bench.link("root/d/d.txt", "/keep");
    let made = bench.make(&actions([copy("/sub", "/d/")]));
    assert_eq!(made.entries, lines([("d", DIR), ("d/d.txt", A), ("d/deep", DIR), ("d/deep/e.txt", A)]));
    bench.link("root/d/a.txt", "/keep");
    check(&bench, actions([copy("/a.txt", "/d/")]), &lines([("d", DIR), ("d/a.txt", A)]));
}

#[test]
fn what_is_refused() {
    let bench = Bench::usual();
    bench.mkdir("root/d/a.txt");
    bench.file("root/f", "");
    bench.file("root/n/deep", "");
    bench.mkdir("root/elsewhere");
    bench.link("root/l/deep", "/elsewhere");
    bench.mkdir("root/m/deep/e.txt");
    let cases = [
        (copy("/a.txt", "/d/"), "cannot replace to directory /d/a.txt with file"),
        (copy("/sub", "/f"), "cannot copy to non-directory: /f"),
        (copy("/sub", "/n"), "cannot copy to non-directory: /n/deep"),
        (copy("/sub", "/l/"), "cannot copy to non-directory: /l/deep"),
        (copy("/sub", "/m"), "cannot replace to directory /m/deep/e.txt with file"),
        (copy("/a.txt", "/f/x"), "mkdir /f: not a directory"),
        (
            copy("/sub/nope", "/x"),
            "failed to compute cache key: failed to calculate checksum of ref context: \"/sub/nope\": not found",
        ),
    ];
    for (action, want) in cases {
        assert_eq!(bench.error(&actions([action])), want);
    }
}

#[test]
fn source_links() {
    let bench = Bench::usual();
    bench.link("ctx/link", "a.txt");
    bench.link("ctx/chain", "link");
    bench.link("ctx/dirlink", "sub");
    bench.link("ctx/tree/rel", "f");
    bench.link("ctx/tree/abs", "/etc/passwd");
    bench.link("ctx/esc", "../../../a.txt");
    let sub = lines([("x", DIR), ("x/d.txt", A), ("x/deep", DIR), ("x/deep/e.txt", A)]);
    let cases = [
        (copy("/link", "/x/"), lines([("x", DIR), ("x/link", A)])),
        (copy("/chain", "/x"), lines([("x", A)])),
        (copy("/esc", "/x"), lines([("x", A)])),
        (copy("/dirlink", "/x"), sub.clone()),
        (copy("/dirlink/d.txt", "/x"), lines([("x", A)])),
        (copy("/l*", "/x/"), lines([("x", DIR), ("x/link", A)])),
        (copy("/dirl*", "/x/"), sub),
        (
            copy("/tree", "/x"),
            lines([("x", DIR), ("x/abs", "0777 0:0 symlink /etc/passwd"), ("x/rel", "0777 0:0 symlink f")]),
        ),
    ];
    for (action, want) in cases {
        check(&bench, actions([action]), &want);
    }
    bench.link("ctx/gone", "nowhere");
    let error = bench.error(&actions([copy("/gone", "/x")]));
    assert_eq!(bench.error(&actions([copy("/g?ne", "/x")])), error);
}

#[test]
fn wildcards() {
    let bench = Bench::usual();
    bench.file("ctx/.hidden", "h\n");
    let cases = [
        (copy("/*.txt", "/x/"), lines([("x", DIR), ("x/a.txt", A), ("x/b.txt", A)])),
        (copy("/[^a].txt", "/x/"), lines([("x", DIR), ("x/b.txt", A)])),
        (copy("/?hidden", "/x/"), lines([("x", DIR), ("x/.hidden", A)])),
        (copy("/s*/d*", "/x/"), lines([("x", DIR), ("x/d.txt", A), ("x/e.txt", A)])),
        (
            copy("/*", "/x/"),
            lines([
                ("x", DIR),
                ("x/.hidden", A),
                ("x/a.txt", A),
                ("x/b.txt", A),
                ("x/d.txt", A),
                ("x/deep", DIR),
                ("x/deep/e.txt", A),
            ]),
        ),
        (copy("/none*", "/x/"), Vec::new()),
    ];
    for (action, want) in cases {
        check(&bench, actions([action]), &want);
    }
}

#[test]
fn excluded_names_leave_the_directories() {
    let bench = Bench::new();
    for path in ["x/y/z/f.go", "x/y/g.go", "x/h.txt", "top.go"] {
        bench.file(&format!("ctx/{path}"), "1\n");
    }
    let all = [("d", DIR), ("d/h.txt", A), ("d/y", DIR), ("d/y/g.go", A), ("d/y/z", DIR), ("d/y/z/f.go", A)];
    let without = |gone: &[&str]| {
        let kept = all.iter().filter(|(path, _)| !gone.contains(path));
        kept.map(|(path, rest)| format!("{path} {rest}")).collect::<Vec<_>>()
    };
    let cases: [(&[&str], &[&str]); 5] = [
        (&["*.go", "h.*"], &["d/h.txt"]),
        (&["**/*.go"], &["d/y/g.go", "d/y/z/f.go"]),
        (&["y"], &["d/y", "d/y/g.go", "d/y/z", "d/y/z/f.go"]),
        (&["y/z", "!y/z/f.go"], &[]),
        (&["y", "!y/z/f.go"], &["d/y/g.go"]),
    ];
    for (patterns, gone) in cases {
        check(&bench, actions([excluding(copy("/x", "/d/"), patterns)]), &without(gone));
    }
    check(&bench, actions([excluding(copy("/top.go", "/d/"), &["*.go"])]), &lines([("d", DIR), ("d/top.go", A)]));
}

#[test]
fn parents_keep_paths() {
    let bench = Bench::new();
    for path in ["x/y/z/f.go", "x/y/g.go", "x/h.txt", "top.go"] {
        bench.file(&format!("ctx/{path}"), "1\n");
    }
    bench.chmod("ctx/x", 0o700);
    bench.chmod("ctx/x/y", 0o711);
    let (x, y) = ("0700 0:0 dir", "0711 0:0 dir");
    let cases = [
        (parents("/x/y/g.go", "/", "/d"), lines([("d", DIR), ("d/x", x), ("d/x/y", y), ("d/x/y/g.go", A)])),
        (parents("/x/y/g.go", "/x", "/d/"), lines([("d", DIR), ("d/y", y), ("d/y/g.go", A)])),
        (parents("/x/y/z", "/x/y", "/d/"), lines([("d", DIR), ("d/z", DIR), ("d/z/f.go", A)])),
        (parents("/x/*/*.go", "/x/*", "/d/"), lines([("d", DIR), ("d/g.go", A)])),
        (
            parents("/**/*.go", "/", "/d/"),
            lines([
                ("d", DIR),
                ("d/top.go", A),
                ("d/x", x),
                ("d/x/y", y),
                ("d/x/y/g.go", A),
                ("d/x/y/z", DIR),
                ("d/x/y/z/f.go", A),
            ]),
        ),
        (
            parents("/x/**/f.go", "/", "/d/"),
            lines([("d", DIR), ("d/x", x), ("d/x/y", y), ("d/x/y/z", DIR), ("d/x/y/z/f.go", A)]),
        ),
        (parents("/**/*.rs", "/", "/d"), lines([("d", DIR)])),
        (parents("/none*", "/", "/d"), lines([("d", DIR)])),
        (
            excluding(parents("/x", "/", "/d"), &["x/y/z"]),
            lines([("d", DIR), ("d/x", x), ("d/x/h.txt", A), ("d/x/y", y), ("d/x/y/g.go", A)]),
        ),
        (
            excluding(parents("/x/y", "/x", "/d"), &["**/g.go"]),
            lines([("d", DIR), ("d/y", y), ("d/y/z", DIR), ("d/y/z/f.go", A)]),
        ),
    ];
    for (action, want) in cases {
        check(&bench, actions([action]), &want);
    }
    let missing = bench.error(&actions([parents("/x/nope", "/", "/d")]));
    assert!(missing.ends_with("\"/x/nope\": not found"), "{missing}");
}

#[test]
fn working_directories() {
    let bench = Bench::new();
    bench.mkdir("root/have");
    bench.chmod("root/have", 0o700);
    bench.mkdir("root/real");
    bench.link("root/lnk", "/real");
    bench.file("root/f", "");
    let make = |path: &str| {
        let path = path.to_owned();
        vec![FileAction::MakeDir(MakeDirAction { path, mode: 0o755, owner: None, mtime: Some(7) })]
    };
    let cases = [
        ("/a/b", lines([("a", DIR), ("a/b", DIR)])),
        ("/have", Vec::new()),
        ("/have/in", lines([("have", "0700 0:0 dir"), ("have/in", DIR)])),
        ("/lnk/sub", lines([("real", DIR), ("real/sub", DIR)])),
        ("/", Vec::new()),
    ];
    for (path, want) in cases {
        check(&bench, make(path), &want);
    }
    assert_eq!(bench.error(&make("/f")), "mkdir /f: not a directory");
    assert_eq!(bench.error(&make("/f/x")), "mkdir /f: not a directory");
}

#[test]
fn inline_files() {
    let bench = Bench::new();
    bench.mkdir("root/have");
    let write = |dest: &str, mode: Option<ModeChange>| {
        let action = WriteFileAction {
            dest: dest.into(),
            name: "EOF".into(),
            content: b"hi".to_vec(),
            owner: None,
            mode,
            mtime: None,
        };
        vec![FileAction::WriteFile(action)]
    };
    let cases = [
        (write("/f", None), lines([("f", A)])),
        (write("/have", None), lines([("have", DIR), ("have/EOF", A)])),
        (write("/new/", None), lines([("new", DIR), ("new/EOF", A)])),
        (write("/f", Some(ModeChange::Octal(0o4755))), lines([("f", "4755 0:0 file 2")])),
        (write("/f", Some(ModeChange::Symbolic("+x".into()))), lines([("f", "0755 0:0 file 2")])),
    ];
    for (action, want) in cases {
        check(&bench, action, &want);
    }
}

#[test]
fn an_empty_source() {
    let bench = Bench::new();
    let nothing = CopyAction { input: None, ..copy("/", "/d/") };
    check(&bench, actions([nothing]), &lines([("d", DIR)]));
    let missing = CopyAction { input: None, ..copy("/x", "/d/") };
    assert!(bench.error(&actions([missing])).ends_with("\"/x\": not found"));
}
