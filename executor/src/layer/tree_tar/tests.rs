use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, Mode, Timespec, Timestamps, XattrFlags, mknodat, setxattr, utimensat};
use tempfile::TempDir;

use super::*;
use crate::layer::NothingBelow;
use crate::layer::testing::{TIME, listing, opaque, privileged_dir, skip, tar_listing, whiteout};
use crate::layer::{UnpackOptions, fix_up, unpack};
use crate::view::Below;

/// A lower tree and an upper tree over it.
struct Trees {
    dir: TempDir,
}

impl Trees {
    fn new() -> Option<Self> {
        let dir = privileged_dir()?;
        ["lower", "upper"].iter().for_each(|tree| fs::create_dir(dir.path().join(tree)).expect("creates"));
        Some(Self { dir })
    }

    fn path(&self, tree: &str, path: &str) -> PathBuf {
        self.dir.path().join(tree).join(path)
    }

    fn dir(&self, tree: &str, path: &str) {
        fs::create_dir_all(self.path(tree, path)).expect("creates");
        fs::set_permissions(self.path(tree, path), fs::Permissions::from_mode(0o755)).expect("sets");
    }

    fn file(&self, tree: &str, path: &str, text: &str) {
        fs::write(self.path(tree, path), text).expect("writes");
        fs::set_permissions(self.path(tree, path), fs::Permissions::from_mode(0o644)).expect("sets");
    }

    /// The tar of the upper tree, after setting all times.
    fn tar(&self) -> Vec<u8> {
        set_times(&self.path("upper", ""));
        let below = Below::new(vec![self.path("lower", "")]);
        tar_over(&self.path("upper", ""), &below)
    }
}

fn tar_over(tree: &Path, lower: &dyn LowerView) -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    write_tree(tree, lower, &mut writer).expect("writes");
    writer.finish().expect("in memory")
}

fn set_times(path: &Path) {
    let time = Timespec { tv_sec: TIME, tv_nsec: 987_654_321 };
    let times = Timestamps { last_access: time, last_modification: time };
    if path.is_dir() && !path.is_symlink() {
        fs::read_dir(path).expect("lists").for_each(|entry| set_times(&entry.expect("an entry").path()));
    }
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("sets");
}

#[test]
fn every_kind_is_written_in_lexical_order() {
    let Some(trees) = Trees::new() else { return };
    trees.dir("upper", "b");
    trees.dir("upper", "b-c");
    trees.file("upper", "b/file", "text");
    trees.file("upper", "b-c/x", "x");
    trees.file("upper", "b.txt", "y");
    trees.file("upper", "a-big", &"z".repeat(200_000));
    fs::hard_link(trees.path("upper", "b/file"), trees.path("upper", "b/again")).expect("links");
    symlink("/b/file", trees.path("upper", "soft")).expect("links");
    fs::hard_link(trees.path("upper", "soft"), trees.path("upper", "soft-too")).expect("links");
    fs::set_permissions(trees.path("upper", "b/file"), fs::Permissions::from_mode(0o4755)).expect("sets");
    std::os::unix::fs::lchown(trees.path("upper", "b-c/x"), Some(1000), Some(50)).expect("chowns");
    let node = |name: &str, kind, dev| {
        mknodat(CWD, trees.path("upper", name), kind, Mode::from_raw_mode(0o640), dev).expect("makes")
    };
    node("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    node("disk", FileType::BlockDevice, rustix::fs::makedev(8, 1));
    node("pipe", FileType::Fifo, 0);
    let _socket = UnixListener::bind(trees.path("upper", "socket")).expect("binds");
    setxattr(trees.path("upper", "b.txt"), "user.other", b"1", XattrFlags::empty()).expect("sets");
    // CAP_NET_RAW, permitted and effective.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    setxattr(trees.path("upper", "b.txt"), "security.capability", &capability, XattrFlags::empty()).expect("sets");
    let expected = [
        "a-big f 644 0:0 0 \"200000 bytes\"",
        "b/ d 755 0:0 0",
        "b/again f 4755 0:0 0 \"text\"",
        "b/file h 4755 0:0 0 -> b/again",
        "b-c/ d 755 0:0 0",
        "b-c/x f 644 1000:50 0 \"x\"",
        "b.txt f 644 0:0 0 \"y\" security.capability",
        "disk b 640 0:0 0 8:1",
        "null c 640 0:0 0 1:3",
        "pipe p 640 0:0 0",
        "soft l 777 0:0 0 -> /b/file",
        "soft-too h 777 0:0 0 -> soft",
    ];
    assert_eq!(tar_listing(&trees.tar()), expected);
}

#[test]
fn unchanged_directories_come_only_with_something_in_them() {
    let Some(trees) = Trees::new() else { return };
    for dir in ["etc/deep", "usr/empty", "var"] {
        trees.dir("lower", dir);
        trees.dir("upper", dir);
    }
    trees.dir("upper", "new/empty");
    trees.file("upper", "etc/deep/hosts", "127.0.0.1");
    trees.file("upper", "etc/deep/zone", "");
    fs::set_permissions(trees.path("upper", "var"), fs::Permissions::from_mode(0o700)).expect("sets");
    let expected = [
        "etc/ d 755 0:0 0",
        "etc/deep/ d 755 0:0 0",
        "etc/deep/hosts f 644 0:0 0 \"127.0.0.1\"",
        "etc/deep/zone f 644 0:0 0 \"\"",
        "new/ d 755 0:0 0",
        "new/empty/ d 755 0:0 0",
        "var/ d 700 0:0 0",
    ];
    assert_eq!(tar_listing(&trees.tar()), expected);
}

#[test]
fn deletions_are_written_if_there_is_something_to_delete() {
    let Some(trees) = Trees::new() else { return };
    trees.dir("lower", "d");
    trees.file("lower", "d/gone", "");
    trees.file("lower", "top", "");
    trees.dir("upper", "d");
    trees.dir("upper", "new");
    whiteout(&trees.path("upper", "d/gone"));
    whiteout(&trees.path("upper", "d/never"));
    whiteout(&trees.path("upper", "new/never"));
    whiteout(&trees.path("upper", "top"));
    let expected =
        ["d/ d 755 0:0 0", "d/.wh.gone f 0 0:0 epoch \"\"", "new/ d 755 0:0 0", ".wh.top f 0 0:0 epoch \"\""];
    assert_eq!(tar_listing(&trees.tar()), expected);
}

#[test]
fn opaque_directories_are_expanded_all_the_way_down() {
    let Some(trees) = Trees::new() else { return };
    trees.dir("lower", "d/both/inner");
    trees.dir("lower", "d/lower-dir");
    trees.file("lower", "d/both/old", "");
    trees.file("lower", "d/file", "old");
    trees.file("lower", "d/zzz", "");
    trees.dir("upper", "d/both");
    trees.file("upper", "d/both/new", "n");
    trees.file("upper", "d/file", "new");
    opaque(&trees.path("upper", "d"));
    let expected = [
        "d/ d 755 0:0 0",
        "d/both/ d 755 0:0 0",
        "d/both/.wh.inner f 0 0:0 epoch \"\"",
        "d/both/new f 644 0:0 0 \"n\"",
        "d/both/.wh.old f 0 0:0 epoch \"\"",
        "d/file f 644 0:0 0 \"new\"",
        "d/.wh.lower-dir f 0 0:0 epoch \"\"",
        "d/.wh.zzz f 0 0:0 epoch \"\"",
    ];
    assert_eq!(tar_listing(&trees.tar()), expected);
}

#[test]
fn a_redirected_tree_is_refused() {
    let Some(trees) = Trees::new() else { return };
    trees.dir("upper", "moved");
    setxattr(trees.path("upper", "moved"), "trusted.overlay.redirect", b"/old", XattrFlags::empty()).expect("sets");
    let mut writer = TarWriter::new(Vec::new());
    let outcome = write_tree(&trees.path("upper", ""), &NothingBelow, &mut writer);
    assert!(matches!(outcome, Err(TreeError::Redirected { path }) if path == Path::new("moved")));
}

#[test]
fn many_files_come_in_order_on_any_number_of_threads() {
    let dir = tempfile::tempdir().expect("a directory");
    for number in 0..1000 {
        let sub = dir.path().join(format!("d{}", number % 7));
        fs::create_dir_all(&sub).expect("creates");
        fs::write(sub.join(format!("f{number}")), vec![b'x'; number * 97 % 70_000]).expect("writes");
    }
    let on_threads = |n| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("a pool");
        pool.install(|| tar_over(dir.path(), &NothingBelow))
    };
    let tar = on_threads(1);
    assert_eq!(tar_listing(&tar).len(), 1007);
    assert!(tar == on_threads(4) && tar == tar_over(dir.path(), &NothingBelow));
}

/// What a step might do to a root: every way in which overlayfs records a change.
const STEP: &str = r#"
set -eu
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged
cd merged
rm keep/gone; rm -r dir; mkdir dir; echo new > dir/new
rm -r tree; echo file > tree
rm file; mkdir -p file/is/dir; echo x > file/is/dir/x
mv moved renamed; mv keep/a keep/b
ln keep/linked keep/hard; ln -s ../x keep/soft
chmod 4711 keep/mode; chown 5:6 keep/owner; chmod 700 perms
touch -d 2001-02-03 keep/touched; mkfifo pipe; mkdir empty
mkdir -p deep/er; rm -r deep; mkdir deep
cp -a . ../result
"#;

#[test]
fn what_the_kernel_records_survives_the_tar() {
    let Some(trees) = Trees::new() else { return };
    for file in
        ["keep/gone", "keep/a", "keep/linked", "keep/mode", "keep/owner", "keep/touched", "dir/old", "dir/sub/x"]
    {
        fs::create_dir_all(trees.path("lower", file).parent().expect("inside")).expect("creates");
        trees.file("lower", file, file);
    }
    for file in ["tree/a/b/c", "file", "moved/inner/x", "perms/x", "deep/x"] {
        fs::create_dir_all(trees.path("lower", file).parent().expect("inside")).expect("creates");
        trees.file("lower", file, file);
    }
    ["work", "merged", "result", "again"]
        .iter()
        .for_each(|dir| fs::create_dir(trees.dir.path().join(dir)).expect("creates"));
    let mut shell = std::process::Command::new("unshare");
    shell.args(["--mount", "sh", "-c", STEP]).current_dir(trees.dir.path());
    match shell.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => return skip(&format!("no overlay mounts here: {}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => return skip(&format!("no unshare program: {error}")),
    }
    let lower = Below::new(vec![trees.path("lower", "")]);
    let tar = tar_over(&trees.path("upper", ""), &lower);
    let unpacked = unpack(tar.as_slice(), &trees.path("again", ""), &UnpackOptions::default()).expect("unpacks");
    fix_up(&trees.path("again", ""), &lower, &unpacked).expect("fixes");

    let mut shell = std::process::Command::new("unshare");
    let mount = "mount -t overlay overlay -o lowerdir=again:lower merged && cp -a merged/. seen";
    let output = shell.args(["--mount", "sh", "-c", mount]).current_dir(trees.dir.path()).output().expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let whole_seconds = |path: &str| -> Vec<String> {
        let lines = listing(&trees.dir.path().join(path)).into_iter();
        lines
            .map(|line| {
                line.split(' ')
                    .map(|part| {
                        part.split_once('.').map_or(part, |(secs, nanos)| if nanos.len() == 9 { secs } else { part })
                    })
                    .collect::<Vec<_>>()
                    .join(" ")
            })
            .collect()
    };
    assert_eq!(whole_seconds("seen"), whole_seconds("result"));
    let text = tar_listing(&tar).join("\n");
    for expected in
        ["keep/.wh.gone f 0", "dir/.wh.old", "dir/.wh.sub", "tree f 644", ".wh.moved", "deep/.wh.x", "keep/linked h"]
    {
        assert!(text.contains(expected), "{expected} in:\n{text}");
    }
}
