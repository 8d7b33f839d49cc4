//! ADD of archives. The expectations are recorded results of the reference builder.

use oci::layer::Entry;

use super::*;

/// Path, kind, mode, owner and content.
type Member<'a> = (&'a str, EntryKind<'a>, u32, (u32, u32), &'a [u8]);

fn tar(entries: &[Member<'_>]) -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    for (path, kind, mode, (uid, gid), content) in entries {
        let entry = Entry {
            mode: *mode,
            uid: *uid,
            gid: *gid,
            mtime_secs: 1_000_000_000,
            ..Entry::new(path.as_bytes(), *kind)
        };
        writer.append_bytes(&entry, content).unwrap();
    }
    writer.finish().unwrap()
}

fn file(path: &'static str, text: &'static str) -> Member<'static> {
    (path, EntryKind::Regular { size_bytes: text.len() as u64 }, 0o644, (0, 0), text.as_bytes())
}

#[test]
fn archives_are_unpacked_into_a_directory() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let mut entry = file("deep/er/f", "f");
    (entry.2, entry.3) = (0o600, (5, 6));
    bench.file("ctx/a.tar", tar(&[entry]));
    bench.file("ctx/plain", "no archive");
    bench.mkdir("root/have");
    bench.chmod("root/have", 0o700);
    bench.mkdir("root/real");
    bench.link("root/lnk", "/real");
    let below = |top: &str| {
        [
            format!("{top}/deep 0755 0:0 dir"),
            format!("{top}/deep/er 0755 0:0 dir"),
            format!("{top}/deep/er/f 0600 5:6 file 1"),
        ]
    };
    for (dest, top) in [("/new", "new 0755 0:0 dir"), ("/have", "have 0700 0:0 dir"), ("/lnk", "real 0755 0:0 dir")] {
        let name = top.split(' ').next().unwrap();
        let want: Vec<_> = [top.to_owned()].into_iter().chain(below(name)).collect();
        assert_eq!(bench.make(&actions([add("/a.tar", dest)])).entries, want);
    }
    bench.mkdir("root/team");
    bench.chown("root/team", 0, 50);
    bench.chmod("root/team", 0o2775);
    let entries = bench.make(&actions([add("/a.tar", "/team/new")])).entries;
    assert_eq!(
        entries[1..4],
        ["team/new 2755 0:50 dir", "team/new/deep 2755 0:0 dir", "team/new/deep/er 2755 0:0 dir"]
    );
    // Each match of a wildcard is judged on its own; COPY never unpacks.
    let entries = bench.make(&actions([add("/*", "/d/")])).entries;
    let want = ["d 0755 0:0 dir".to_owned()].into_iter().chain(below("d")).chain(["d/plain 0644 0:0 file 10".into()]);
    assert_eq!(entries, want.collect::<Vec<_>>());
    assert!(bench.make(&actions([copy("/a.tar", "/x")])).entries[0].starts_with("x 0644 0:0 file"));
}

#[test]
fn operations_of_one_build_share_their_scratch_space() {
    let bench = Bench::new();
    bench.file("ctx/a.tar", tar(&[file("f", "one")]));
    bench.mkdir("scratch");
    let setting = Setting {
        root: &bench.root(),
        inputs: &bench.inputs(),
        scratch: &bench.path("scratch"),
        now: NOW,
        cancel: &CancellationToken::new(),
    };
    for dest in ["/a", "/b"] {
        let op = FileOp { actions: actions([add("/a.tar", dest)]) };
        perform_file_op(&op, &setting, Form::Tar(&mut TarWriter::new(Vec::new()))).unwrap();
    }
    assert_eq!(fs::read_dir(bench.path("scratch")).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn chown_overrides_owners_and_chmod_leaves_modes() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let dir = ("dir", EntryKind::Directory, 0o755, (1, 2), &b""[..]);
    let mut f = file("dir/f", "f");
    (f.2, f.3) = (0o640, (3, 4));
    bench.file("ctx/a.tar", tar(&[dir, f]));
    let entries = bench.make(&actions([chown(chmod(add("/a.tar", "/new/d"), "700"), "8:9")])).entries;
    let want = ["new 0755 8:9 dir", "new/d 0755 8:9 dir", "new/d/dir 0755 8:9 dir", "new/d/dir/f 0640 8:9 file 1"];
    assert_eq!(entries, want);
}

#[test]
fn all_kinds_of_entries() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    let entries = [
        ("dir", EntryKind::Directory, 0o1775, (1, 2), &b""[..]),
        ("dir/f", EntryKind::Regular { size_bytes: 1 }, 0o4711, (3, 4), b"f"),
        ("dir/hard", EntryKind::Hardlink { target: b"dir/f" }, 0o4711, (3, 4), b""),
        ("dir/sym", EntryKind::Symlink { target: b"../nowhere" }, 0o777, (7, 8), b""),
        ("fifo", EntryKind::Fifo, 0o620, (0, 0), b""),
        file("./dot/./g", "g"),
        file("/abs/f", "1"),
        file("../../../up", "2"),
    ];
    bench.file("ctx/a.tar", tar(&entries));
    let want = [
        "d 0755 0:0 dir",
        "d/abs 0755 0:0 dir",
        "d/abs/f 0644 0:0 file 1",
        "d/dir 1775 1:2 dir",
        "d/dir/f 4711 3:4 file 1",
        "d/dir/hard 4711 3:4 hardlink d/dir/f",
        "d/dir/sym 0777 7:8 symlink ../nowhere",
        "d/dot 0755 0:0 dir",
        "d/dot/g 0644 0:0 file 1",
        "d/fifo 0620 0:0 fifo",
        "d/up 0644 0:0 file 1",
    ];
    assert_eq!(bench.make(&actions([add("/a.tar", "/d")])).entries, want);
}

#[test]
fn files_are_replaced_and_directories_merged() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    bench.file("root/d/dir/f", "old");
    bench.file("root/d/dir/stay", "stays");
    bench.chmod("root/d/dir", 0o700);
    bench.link("root/d/link", "/tmp");
    let dir = ("dir", EntryKind::Directory, 0o755, (1, 2), &b""[..]);
    bench.file("ctx/a.tar", tar(&[dir, file("dir/f", "new"), file("link", "now a file")]));
    let want = ["d 0755 0:0 dir", "d/dir 0755 1:2 dir", "d/dir/f 0644 0:0 file 3", "d/link 0644 0:0 file 10"];
    assert_eq!(bench.make(&actions([add("/a.tar", "/d")])).entries, want);
}

#[test]
fn a_directory_that_was_replaced_twice_hides_what_was_there() {
    if !is_root() {
        return;
    }
    let bench = Bench::new();
    bench.file("root/d/x/old", "");
    bench.file("root/d/x/sub/older", "");
    let dir = |path| (path, EntryKind::Directory, 0o755, (0, 0), &b""[..]);
    bench.file("ctx/a.tar", tar(&[file("x", "a file"), dir("x"), dir("x/sub"), file("x/sub/new", "n")]));
    let want = [
        "d 0755 0:0 dir",
        "d/x 0755 0:0 dir",
        "d/x/.wh.old 0000 0:0 file 0",
        "d/x/sub 0755 0:0 dir",
        "d/x/sub/new 0644 0:0 file 1",
        "d/x/sub/.wh.older 0000 0:0 file 0",
    ];
    assert_eq!(bench.make(&actions([add("/a.tar", "/d")])).entries, want);
}

#[test]
fn links_below_the_destination_see_it_as_the_root() {
    let bench = Bench::new();
    bench.mkdir("root/d/in");
    bench.link("root/d/rel", "in");
    bench.link("root/d/abs", "/in");
    bench.link("root/d/out", "/other");
    bench.mkdir("root/other");
    bench.file("ctx/a.tar", tar(&[file("rel/f", "1"), file("abs/g", "2")]));
    bench.file("ctx/b.tar", tar(&[file("out/f", "1")]));
    let want = ["d 0755 0:0 dir", "d/in 0755 0:0 dir", "d/in/f 0644 0:0 file 1", "d/in/g 0644 0:0 file 1"];
    assert_eq!(bench.make(&actions([add("/a.tar", "/d")])).entries, want);
    assert_eq!(bench.error(&actions([add("/b.tar", "/d")])), "open /out/f: no such file or directory");
    let want = ["other 0755 0:0 dir", "other/f 0644 0:0 file 1"];
    bench.link("root/out", "/other");
    assert_eq!(bench.make(&actions([add("/b.tar", "/")])).entries, want);
}

#[test]
fn hard_links_reach_into_the_root() {
    let bench = Bench::new();
    bench.file("root/d/there", "text");
    bench.file("ctx/a.tar", tar(&[("link", EntryKind::Hardlink { target: b"there" }, 0o644, (0, 0), b"")]));
    let want = ["d 0755 0:0 dir", "d/link 0644 0:0 file 4", "d/there 0644 0:0 hardlink d/link"];
    assert_eq!(bench.make(&actions([add("/a.tar", "/d")])).entries, want);
    bench.file("ctx/b.tar", tar(&[("link", EntryKind::Hardlink { target: b"gone" }, 0o644, (0, 0), b"")]));
    assert_eq!(bench.error(&actions([add("/b.tar", "/d")])), "link /gone /link: no such file or directory");
}

#[test]
fn a_broken_archive_is_an_error() {
    let bench = Bench::new();
    let whole = tar(&[file("a", "1"), ("b", EntryKind::Regular { size_bytes: 4000 }, 0o644, (0, 0), &[7; 4000])]);
    bench.file("ctx/a.tar", &whole[..2500]);
    assert_eq!(bench.error(&actions([add("/a.tar", "/d")])), "unexpected EOF");
}
