use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use super::*;
use crate::layer::testing::{TIME, opaque, privileged_dir, whiteout};

/// A small tree with a bit of everything that needs no privilege.
fn sample(dir: &Path) {
    fs::create_dir_all(dir.join("etc/empty")).expect("creates");
    fs::write(dir.join("etc/hosts"), "127.0.0.1 localhost\n").expect("writes");
    fs::write(dir.join("big"), vec![7; 300_000]).expect("writes");
    fs::hard_link(dir.join("etc/hosts"), dir.join("etc/hosts.bak")).expect("links");
    symlink("hosts", dir.join("etc/link")).expect("links");
    for (path, mode) in [("etc", 0o755), ("etc/empty", 0o700), ("etc/hosts", 0o644), ("big", 0o600)] {
        fs::set_permissions(dir.join(path), fs::Permissions::from_mode(mode)).expect("sets");
    }
}

fn digest(dir: &Path) -> ContentDigest {
    content_digest(dir, None).expect("digests")
}

fn set_time(path: PathBuf, secs: i64) {
    let time = Timespec { tv_sec: secs, tv_nsec: 5 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("sets");
}

#[test]
fn the_format_has_not_changed() {
    // Golden: a change here is a new version of the format. Entries by hand, so that it holds for any owner of the tests.
    let mut hasher = ContentHasher::new();
    let capability = [Xattr { name: b"security.capability".to_vec(), value: vec![1, 2, 3] }];
    let base = |path, kind| Entry { mode: 0o755, uid: 1, gid: 2, mtime_secs: 3, ..Entry::new(path, kind) };
    hasher.entry(&base(b"d", EntryKind::Directory), &ContentFacts { is_opaque: true, ..ContentFacts::default() });
    let file = Entry { xattrs: &capability, ..base(b"d/f", EntryKind::Regular { size_bytes: 9 }) };
    hasher.entry(&file, &ContentFacts { file: [9; 32], is_opaque: false, has_own_time: true });
    hasher.entry(&base(b"d/h", EntryKind::Hardlink { target: b"d/f" }), &ContentFacts::default());
    hasher.entry(&base(b"d/l", EntryKind::Symlink { target: b"f" }), &ContentFacts::default());
    hasher.entry(&base(b"d/n", EntryKind::Char { major: 1, minor: 3 }), &ContentFacts::default());
    hasher.entry(&base(b"d/p", EntryKind::Fifo), &ContentFacts::default());
    hasher.whiteout(b"d/w");
    assert_eq!(format!("{:?}", hasher.finish()), "5cfaca360166c5c24e667b950d1497d0ced460d36619d79e873a580b8e17137e");
    assert_eq!(
        format!("{:?}", ContentHasher::new().finish()),
        "d8b8cffb0ef94056bcb79d005805bc15a025cd7f9608495e96fbdfc22b39be8e"
    );
}

#[test]
fn equal_trees_are_equal_whatever_the_clock_says() {
    let (first, second) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    sample(first.path());
    sample(second.path());
    ["etc", "etc/hosts", "etc/link", "big"].iter().for_each(|path| set_time(second.path().join(path), TIME));
    assert_eq!(digest(first.path()), digest(second.path()));
}

#[test]
fn everything_else_counts() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 9] = [
        ("content", |dir| fs::write(dir.join("etc/hosts"), "127.0.0.2 localhost\n").expect("writes")),
        ("big content", |dir| fs::write(dir.join("big"), vec![8; 300_000]).expect("writes")),
        ("mode", |dir| fs::set_permissions(dir.join("big"), fs::Permissions::from_mode(0o601)).expect("sets")),
        ("directory mode", |dir| {
            fs::set_permissions(dir.join("etc"), fs::Permissions::from_mode(0o750)).expect("sets")
        }),
        ("name", |dir| fs::rename(dir.join("big"), dir.join("bigger")).expect("renames")),
        ("empty directory", |dir| fs::remove_dir(dir.join("etc/empty")).expect("removes")),
        ("link target", |dir| {
            fs::remove_file(dir.join("etc/link")).expect("removes");
            symlink("hosts.bak", dir.join("etc/link")).expect("links");
        }),
        ("hard link", |dir| {
            fs::remove_file(dir.join("etc/hosts.bak")).expect("removes");
            fs::copy(dir.join("etc/hosts"), dir.join("etc/hosts.bak")).map(drop).expect("copies");
        }),
        ("type", |dir| {
            fs::remove_dir(dir.join("etc/empty")).expect("removes");
            fs::write(dir.join("etc/empty"), "").expect("writes");
        }),
    ];
    let mut seen = vec![];
    for (name, change) in changes {
        let dir = tempfile::tempdir().expect("a directory");
        sample(dir.path());
        let before = digest(dir.path());
        change(dir.path());
        let after = digest(dir.path());
        assert_ne!(before, after, "{name}");
        assert!(!seen.contains(&after), "{name}");
        seen.push(after);
    }
}

#[test]
fn deletions_and_opaque_directories_count() {
    let Some(dir) = privileged_dir() else { return };
    fs::create_dir(dir.path().join("d")).expect("creates");
    let plain = digest(dir.path());
    opaque(&dir.path().join("d"));
    let opaque = digest(dir.path());
    whiteout(&dir.path().join("d/w"));
    let deleted = digest(dir.path());
    assert!(plain != opaque && opaque != deleted);
}

#[test]
fn times_count_outside_of_the_window_only() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    let start = SystemTime::now();
    fs::create_dir(path("d")).expect("creates");
    fs::write(path("d/now"), "").expect("writes");
    fs::write(path("d/old"), "").expect("writes");
    symlink("x", path("d/link")).expect("links");
    let window = || Some((start, SystemTime::now()));
    let digest = || content_digest(dir.path(), window()).expect("digests");
    let fresh = digest();
    // A second before is outside even on a slow clock; the slack is for ticks.
    for name in ["d/old", "d/link"] {
        set_time(path(name), TIME);
        let old = digest();
        assert_ne!(fresh, old, "{name}");
        set_time(path(name), TIME + 1);
        assert_ne!(old, digest(), "{name}");
        set_time(path(name), whole_seconds(SystemTime::now()));
        assert_eq!(fresh, digest(), "{name}");
    }
    set_time(path("d"), TIME);
    assert_eq!(fresh, digest(), "directory times never count");
}

#[test]
fn seconds_are_rounded_down() {
    let at = |millis: i64| match u64::try_from(millis) {
        Ok(after) => UNIX_EPOCH + Duration::from_millis(after),
        Err(_) => UNIX_EPOCH - Duration::from_millis(millis.unsigned_abs()),
    };
    for (millis, secs) in [(0, 0), (999, 0), (1000, 1), (-1, -1), (-1500, -2)] {
        assert_eq!(whole_seconds(at(millis)), secs, "{millis}");
    }
}
