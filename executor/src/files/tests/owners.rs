//! Owners, modes, times and kinds.

use std::time::{Duration, SystemTime};

use solver::MakeDirAction;

use super::*;

#[test]
fn chown_reaches_what_is_copied_and_created() {
    if !is_root() {
        return;
    }
    let bench = Bench::usual();
    bench.mkdir("root/tmp");
    bench.chmod("root/tmp", 0o1777);
    bench.file("root/etc/passwd", "app:x:500:501::/:/bin/sh\n");
    bench.file("root/etc/group", "ops:x:700:\n");
    let cases: [(CopyAction, &[&str]); 7] = [
        (
            chown(copy("/a.txt", "/new/deep/f"), "1:2"),
            &["new 0755 1:2 dir", "new/deep 0755 1:2 dir", "new/deep/f 0644 1:2 file 2"],
        ),
        (
            chown(copy("/sub", "/tmp/x"), "3:4"),
            &[
                "tmp 1777 0:0 dir",
                "tmp/x 0755 3:4 dir",
                "tmp/x/d.txt 0644 3:4 file 2",
                "tmp/x/deep 0755 3:4 dir",
                "tmp/x/deep/e.txt 0644 3:4 file 2",
            ],
        ),
        (chown(copy("/a.txt", "/a"), "app"), &["a 0644 500:501 file 2"]),
        (chown(copy("/a.txt", "/a"), "app:ops"), &["a 0644 500:700 file 2"]),
        (chown(copy("/a.txt", "/a"), ":ops"), &["a 0644 0:700 file 2"]),
        (chown(copy("/a.txt", "/a"), "1000"), &["a 0644 1000:1000 file 2"]),
        (chown(copy("/a.txt", "/a"), "ghost:ghosts"), &["a 0644 0:0 file 2"]),
    ];
    for (action, want) in cases {
        assert_eq!(bench.make(&actions([action.clone()])).entries, want, "{:?}", action.owner);
    }
}

#[test]
fn names_need_a_root() {
    let bench = Bench { root_layers: Vec::new(), ..Bench::usual() };
    let error = bench.error(&actions([chown(copy("/a.txt", "/a"), "ghost")]));
    assert_eq!(error, "invalid user index: -1");
    assert_eq!(bench.make(&actions([chown(copy("/a.txt", "/a"), "root:root")])).entries, ["a 0644 0:0 file 2"]);
}

#[test]
fn the_top_directory_keeps_or_gets_its_own_metadata() {
    if !is_root() {
        return;
    }
    let bench = Bench::usual();
    bench.chmod("ctx/sub", 0o700);
    bench.chmod("ctx/sub/deep", 0o711);
    bench.mkdir("root/have/deep");
    bench.chmod("root/have", 0o1770);
    bench.chown("root/have", 5, 6);
    bench.chmod("root/have/deep", 0o700);
    bench.chown("root/have/deep", 7, 8);
    let rest = ["d.txt 0644 0:0 file 2", "deep 0711 0:0 dir", "deep/e.txt 0644 0:0 file 2"];
    for (dest, top) in [("/have", "have 1770 5:6 dir"), ("/new", "new 0755 0:0 dir")] {
        let entries = bench.make(&actions([copy("/sub", dest)])).entries;
        let below = rest.iter().map(|entry| format!("{}/{entry}", &dest[1..]));
        assert_eq!(entries, [top.to_owned()].into_iter().chain(below).collect::<Vec<_>>());
    }
}

#[test]
fn chmod_reaches_files_directories_and_parents() {
    let bench = Bench::usual();
    bench.mkdir("root/tmp");
    bench.chmod("root/tmp", 0o1777);
    bench.link("ctx/sub/l", "d.txt");
    let cases: [(CopyAction, &[&str]); 5] = [
        (chmod(copy("/a.txt", "/p/q/a"), "640"), &["p 0640 0:0 dir", "p/q 0640 0:0 dir", "p/q/a 0640 0:0 file 2"]),
        (chmod(copy("/b.txt", "/b"), "04755"), &["b 4755 0:0 file 2"]),
        (
            chmod(copy("/sub", "/tmp"), "600"),
            &[
                "tmp 1777 0:0 dir",
                "tmp/d.txt 0600 0:0 file 2",
                "tmp/deep 0600 0:0 dir",
                "tmp/deep/e.txt 0600 0:0 file 2",
                "tmp/l 0777 0:0 symlink d.txt",
            ],
        ),
        (chmod(copy("/a.txt", "/p/a"), "+x"), &["p 0755 0:0 dir", "p/a 0755 0:0 file 2"]),
        (
            chmod(parents("/sub/deep/e.txt", "/", "/d/"), "750"),
            &["d 0750 0:0 dir", "d/sub 0750 0:0 dir", "d/sub/deep 0750 0:0 dir", "d/sub/deep/e.txt 0750 0:0 file 2"],
        ),
    ];
    for (action, want) in cases {
        assert_eq!(bench.make(&actions([action])).entries, want);
    }
}

#[test]
fn a_directory_hands_its_group_down_to_those_made_in_it() {
    if !is_root() {
        return;
    }
    let bench = Bench::usual();
    bench.mkdir("root/team");
    bench.chown("root/team", 0, 50);
    bench.chmod("root/team", 0o2775);
    let work = MakeDirAction { path: "/team/w/x".into(), mode: 0o755, owner: None, mtime: None };
    let cases: [(FileAction, &[&str]); 4] = [
        (
            FileAction::Copy(copy("/a.txt", "/team/new/deep/")),
            &["team/new 2755 0:50 dir", "team/new/deep 2755 0:50 dir", "team/new/deep/a.txt 0644 0:0 file 2"],
        ),
        (
            FileAction::Copy(copy("/sub", "/team/sub")),
            &[
                "team/sub 2755 0:50 dir",
                "team/sub/d.txt 0644 0:0 file 2",
                "team/sub/deep 0755 0:0 dir",
                "team/sub/deep/e.txt 0644 0:0 file 2",
            ],
        ),
        (
            FileAction::Copy(chown(copy("/a.txt", "/team/new/a"), "3:4")),
            &["team/new 2755 3:4 dir", "team/new/a 0644 3:4 file 2"],
        ),
        (FileAction::MakeDir(work), &["team/w 2755 0:50 dir", "team/w/x 2755 0:50 dir"]),
    ];
    for (action, want) in cases {
        let entries = bench.make(&[action]).entries;
        assert_eq!(entries[0], "team 2775 0:50 dir");
        assert_eq!(entries[1..], *want);
    }
}

#[test]
fn owners_of_a_context_are_root_and_those_of_a_stage_stay() {
    if !is_root() {
        return;
    }
    let mut bench = Bench::usual();
    bench.chown("ctx/a.txt", 11, 12);
    bench.mkdir("stage/s/d");
    bench.file("stage/s/f", "1\n");
    bench.chown("stage/s/f", 11, 12);
    bench.chmod("stage/s/f", 0o4755);
    bench.chmod("stage/s/d", 0o2755);
    bench.chown("stage/s/d", 13, 14);
    bench.chown("stage/s", 13, 14);
    bench.link("stage/s/l", "f");
    bench.inputs.push(Source::View(RootView::open(&[bench.path("stage")]).unwrap()));
    assert_eq!(bench.make(&actions([copy("/a.txt", "/a")])).entries, ["a 0644 0:0 file 2"]);
    let from_stage = |source: &str, dest: &str| CopyAction { input: Some(2), ..copy(source, dest) };
    let entries = bench.make(&actions([from_stage("/s", "/s"), from_stage("/s/l", "/l")])).entries;
    let want = [
        "l 4755 11:12 file 2",
        "s 0755 0:0 dir",
        "s/d 2755 13:14 dir",
        "s/f 4755 11:12 file 2",
        "s/l 0777 0:0 symlink f",
    ];
    assert_eq!(entries, want);
}

#[test]
fn hard_links_of_one_source_stay() {
    let bench = Bench::new();
    bench.file("ctx/tree/one", "same\n");
    bench.mkdir("ctx/tree/d");
    fs::hard_link(bench.path("ctx/tree/one"), bench.path("ctx/tree/two")).unwrap();
    fs::hard_link(bench.path("ctx/tree/one"), bench.path("ctx/tree/d/three")).unwrap();
    let entries = bench.make(&actions([copy("/tree", "/t")])).entries;
    let want = [
        "t 0755 0:0 dir",
        "t/d 0755 0:0 dir",
        "t/d/three 0644 0:0 file 5",
        "t/one 0644 0:0 hardlink t/d/three",
        "t/two 0644 0:0 hardlink t/d/three",
    ];
    assert_eq!(entries, want);
    let apart = bench.make(&actions([copy("/tree/one", "/u/"), copy("/tree/two", "/u/")])).entries;
    assert_eq!(apart, ["u 0755 0:0 dir", "u/one 0644 0:0 file 5", "u/two 0644 0:0 file 5"]);
    // The name that would hold the data is replaced by a later source.
    bench.file("ctx/new", "other\n");
    let entries = bench.make(&actions([copy("/tree", "/t"), copy("/new", "/t/d/three")])).entries;
    let want = [
        "t 0755 0:0 dir",
        "t/d 0755 0:0 dir",
        "t/d/three 0644 0:0 file 6",
        "t/one 0644 0:0 file 5",
        "t/two 0644 0:0 hardlink t/one",
    ];
    assert_eq!(entries, want);
}

#[test]
fn special_files() {
    let bench = Bench::new();
    bench.mkdir("ctx/tree");
    let socket = std::os::unix::net::UnixListener::bind(bench.path("ctx/tree/sock")).unwrap();
    bench.chmod("ctx/tree/sock", 0o600);
    let make = |path: &str, kind, rdev| {
        rustix::fs::mknodat(rustix::fs::CWD, bench.path(path), kind, rustix::fs::Mode::RUSR, rdev).is_ok()
    };
    assert!(make("ctx/tree/fifo", rustix::fs::FileType::Fifo, 0));
    bench.chmod("ctx/tree/fifo", 0o640);
    let mut want = vec!["t 0755 0:0 dir", "t/fifo 0640 0:0 fifo", "t/sock 0600 0:0 file 0"];
    if make("ctx/tree/null", rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 3)) {
        bench.chmod("ctx/tree/null", 0o620);
        want.insert(2, "t/null 0620 0:0 char 1,3");
    } else {
        skip("making a device node needs root");
    }
    assert_eq!(bench.make(&actions([copy("/tree", "/t")])).entries, want);
    drop(socket);
}

#[test]
fn times_stay_to_the_nanosecond() {
    let bench = Bench::usual();
    let time = SystemTime::UNIX_EPOCH + Duration::new(981_173_106, 123_456_789);
    for path in ["ctx/sub/d.txt", "ctx/sub/deep", "ctx/sub"] {
        fs::File::open(bench.path(path)).unwrap().set_modified(time).unwrap();
    }
    bench.mkdir("root/have");
    let made = bench.make(&actions([copy("/sub", "/new/top"), copy("/sub", "/have")]));
    let modified = |path: &str| fs::symlink_metadata(made.tree.path().join(path)).unwrap().modified().unwrap();
    for path in ["new/top", "new/top/d.txt", "new/top/deep", "have", "have/d.txt"] {
        assert_eq!(modified(path), time, "{path}");
    }
    let now = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 5);
    assert_eq!(modified("new"), now, "a parent that had to be made");
}

#[test]
fn xattrs_of_a_context_are_dropped_and_those_of_a_stage_kept() {
    if !is_root() {
        return;
    }
    let mut bench = Bench::usual();
    bench.file("stage/f", "1\n");
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let set = |path: &str, name: &str, value: &[u8]| {
        rustix::fs::setxattr(bench.path(path), name, value, rustix::fs::XattrFlags::empty()).is_ok()
    };
    let supported = ["ctx/a.txt", "stage/f"]
        .iter()
        .all(|path| set(path, "user.note", b"hello") && set(path, "security.capability", &capability));
    if !supported {
        return skip("the file system has no such xattrs");
    }
    bench.inputs.push(Source::View(RootView::open(&[bench.path("stage")]).unwrap()));
    let from_stage = CopyAction { input: Some(2), ..copy("/f", "/s") };
    let made = bench.make(&actions([copy("/a.txt", "/c"), from_stage]));
    let view = RootView::open(&[made.tree.path().to_owned()]).unwrap();
    let names = |path: &str| {
        let xattrs = view.xattrs(Path::new(path)).unwrap().unwrap();
        xattrs.into_iter().map(|(name, _)| name.into_string().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(names("/c"), Vec::<String>::new());
    assert_eq!(names("/s"), ["security.capability", "user.note"]);
}
