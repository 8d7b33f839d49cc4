use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;

use oci::layer::{Entry, EntryKind, Xattr};
use rustix::fs::{XattrFlags, getxattr, setxattr};
use tempfile::TempDir;

use super::*;
use crate::layer::TreeError;
use crate::layer::testing::for_anybody;
use crate::layer::testing::{TIME, Tar, listing, plain, privileged_dir};

mod hostile;

/// A tree beside something that no layer may touch.
struct Jail {
    dir: TempDir,
}

impl Jail {
    fn new() -> Option<Self> {
        let dir = privileged_dir()?;
        fs::create_dir(dir.path().join("tree")).expect("creates");
        fs::create_dir(dir.path().join("outside")).expect("creates");
        fs::write(dir.path().join("outside/secret"), "untouched").expect("writes");
        Some(Self { dir })
    }

    fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    fn unpack(&self, tar: Tar) -> Result<Unpacked> {
        unpack(tar.bytes().as_slice(), &self.tree(), &UnpackOptions::default())
    }

    #[track_caller]
    fn assert_outside_is_untouched(&self) {
        let names: Vec<_> = fs::read_dir(self.dir.path().join("outside"))
            .expect("lists")
            .map(|e| e.expect("an entry").file_name())
            .collect();
        assert_eq!(names, ["secret"]);
        let secret = self.dir.path().join("outside/secret");
        assert_eq!(fs::read_to_string(&secret).expect("reads"), "untouched");
        assert_eq!(fs::metadata(&secret).expect("stats").nlink(), 1);
        assert_eq!(fs::read_dir(self.dir.path()).expect("lists").count(), 2);
    }
}

/// Unpacks and lists; the listing leaves out what is equal for all entries of [`Tar`].
#[track_caller]
fn check(tar: Tar, expected: &[&str]) {
    let Some(jail) = Jail::new() else { return };
    jail.unpack(tar).expect("unpacks");
    let brief: Vec<String> = listing(&jail.tree()).iter().map(|line| brief(line)).collect();
    assert_eq!(brief, expected);
    jail.assert_outside_is_untouched();
}

/// `PATH KIND …` without mode, owner and time.
fn brief(line: &str) -> String {
    let parts: Vec<&str> = line.split(' ').collect();
    let more = parts.get(5..).unwrap_or_default();
    let kept = parts.iter().take(2).chain(more).copied();
    kept.collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn check_fails(tar: Tar) {
    let Some(jail) = Jail::new() else { return };
    let outcome = jail.unpack(tar);
    assert!(outcome.is_err(), "{outcome:?}");
    jail.assert_outside_is_untouched();
}

#[test]
fn metadata_arrives() {
    let Some(jail) = Jail::new() else { return };
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let xattr = |name: &str, value: &[u8]| Xattr { name: name.as_bytes().to_vec(), value: value.to_vec() };
    let xattrs = [
        xattr("security.capability", &capability),
        xattr("trusted.overlay.opaque", b"y"),
        xattr("user.overlay.redirect", b"/etc"),
        xattr("user.note", b"kept"),
    ];
    let file = |path, mode, uid, gid| Entry { mode, uid, gid, ..plain(path, EntryKind::Regular { size_bytes: 4 }) };
    let tar = Tar::new()
        .entry(&Entry { mode: 0o711, ..plain(".", EntryKind::Directory) }, b"")
        .entry(&Entry { mode: 0o1777, ..plain("tmp", EntryKind::Directory) }, b"")
        .entry(&Entry { mode: 0o2555, uid: 7, gid: 8, xattrs: &xattrs[3..], ..plain("set", EntryKind::Directory) }, b"")
        .entry(&file("set/gid", 0o644, 0, 0), b"text")
        .entry(&file("sudo", 0o4711, 0, 0), b"text")
        .entry(&file("su", 0o6755, 1, 2), b"text")
        .entry(&file("none", 0, 3, 4), b"text")
        .entry(&Entry { xattrs: &xattrs, ..file("ping", 0o755, 0, 5) }, b"text")
        .entry(
            &Entry { uid: 9, gid: 9, mtime_secs: -TIME, ..plain("link", EntryKind::Symlink { target: b"/no where" }) },
            b"",
        )
        .entry(&Entry { mode: 0o666, ..plain("null", EntryKind::Char { major: 1, minor: 3 }) }, b"")
        .entry(&Entry { mode: 0o660, gid: 6, ..plain("disk", EntryKind::Block { major: 8, minor: 1 }) }, b"")
        .entry(&Entry { mode: 0o600, uid: 1, ..plain("pipe", EntryKind::Fifo) }, b"")
        .hard("zz", "none");
    let unpacked = jail.unpack(tar).expect("unpacks");
    let expected = [
        "disk b 660 0:6 0 801",
        "link l 777 9:9 -3400000000 -> /no where",
        "none f 0 3:4 0 \"text\"",
        "null c 666 0:0 0 103",
        "ping f 755 0:5 0 \"text\"",
        "pipe p 600 1:0 0",
        "set d 2555 7:8 0",
        "set/gid f 644 0:0 0 \"text\"",
        "su f 6755 1:2 0 \"text\"",
        "sudo f 4711 0:0 0 \"text\"",
        "tmp d 1777 0:0 0",
        "zz f 0 3:4 0 \"text\"",
    ];
    assert_eq!(listing(&jail.tree()), expected);
    assert_eq!(fs::metadata(jail.tree()).expect("stats").mode() & 0o7777, 0o711);
    assert_eq!(fs::metadata(jail.tree().join("zz")).expect("stats").nlink(), 2);
    assert!(unpacked.implied_dirs.is_empty() && unpacked.deferred_links.is_empty() && unpacked.is_self_contained());
    let value = |path: &str, name: &str| {
        let mut value = [0; 64];
        getxattr(jail.tree().join(path), name, &mut value[..]).ok().map(|len| value[..len].to_vec())
    };
    assert_eq!(value("ping", "security.capability").as_deref(), Some(&capability[..]));
    assert_eq!(value("ping", "user.note").as_deref(), Some(&b"kept"[..]));
    assert_eq!(value("set", "user.note").as_deref(), Some(&b"kept"[..]));
    assert_eq!((value("ping", "trusted.overlay.opaque"), value("ping", "user.overlay.redirect")), (None, None));
}

#[test]
fn missing_parents_are_made_and_reported() {
    let Some(jail) = Jail::new() else { return };
    let unpacked = jail.unpack(Tar::new().file("a/b/f", "x").file("a/c/g", "y").dir("a/c").dir("z")).expect("unpacks");
    let expected = [
        format!("a d 755 0:0 {}", -TIME),
        format!("a/b d 755 0:0 {}", -TIME),
        "a/b/f f 644 0:0 0 \"x\"".to_owned(),
        "a/c d 755 0:0 0".to_owned(),
        "a/c/g f 644 0:0 0 \"y\"".to_owned(),
        "z d 755 0:0 0".to_owned(),
    ];
    assert_eq!(listing(&jail.tree()), expected);
    assert_eq!(unpacked.implied_dirs, ["", "a", "a/b"].map(PathBuf::from));
}

#[test]
fn entry_paths_stay_in_the_tree() {
    check(Tar::new().file("../../outside/x", "x"), &["outside d", "outside/x f \"x\""]);
    check(Tar::new().file("/outside/x", "x"), &["outside d", "outside/x f \"x\""]);
    check(Tar::new().dir("a").file("a/../../outside/secret", "x"), &["a d", "outside d", "outside/secret f \"x\""]);
    check(Tar::new().file("./a//b/./c", "x"), &["a d", "a/b d", "a/b/c f \"x\""]);
}

#[test]
fn symlinks_on_the_way_lead_inside_the_tree() {
    check(
        Tar::new().link("out", "../outside").file("out/x", "x"),
        &["out l -> ../outside", "outside d", "outside/x f \"x\""],
    );
    check(
        Tar::new().link("out", "/outside").file("out/x", "x"),
        &["out l -> /outside", "outside d", "outside/x f \"x\""],
    );
    check(
        Tar::new()
            .dir("usr/lib")
            .link("lib", "usr/lib")
            .file("lib/x", "x")
            .file("lib/sub/y", "y")
            .file("usr/lib/z", "z"),
        &[
            "lib l -> usr/lib",
            "usr d",
            "usr/lib d",
            "usr/lib/sub d",
            "usr/lib/sub/y f \"y\"",
            "usr/lib/x f \"x\"",
            "usr/lib/z f \"z\"",
        ],
    );
    // A link at the end is replaced, never written through.
    check(Tar::new().link("secret", "../outside/secret").file("secret", "x"), &["secret f \"x\""]);
    check(Tar::new().link("d", "../outside").dir("d").file("d/x", "x"), &["d d opaque", "d/x f \"x\""]);
    // Two links that only together lead out.
    check(
        Tar::new().dir("a/b").link("a/b/up", "../..").link("out", "a/b/up/../outside").file("out/x", "x"),
        &["a d", "a/b d", "a/b/up l -> ../..", "out l -> a/b/up/../outside", "outside d", "outside/x f \"x\""],
    );
    check_fails(Tar::new().link("l", "l").file("l/x", "x"));
    check_fails(Tar::new().link("a", "b").link("b", "a").file("a/x", "x"));
    check_fails(Tar::new().file("f", "x").file("f/x", "x"));
}

#[test]
fn hard_links_stay_in_the_tree() {
    check(Tar::new().file("f", "x").hard("d/h", "/f"), &["d d", "d/h f \"x\"", "f f \"x\""]);
    check(
        Tar::new().dir("d").file("d/f", "x").link("l", "d").hard("h", "l/f"),
        &["d d", "d/f f \"x\"", "h f \"x\"", "l l -> d"],
    );
    check(
        Tar::new().link("l", "../outside/secret").hard("h", "l"),
        &["h l -> ../outside/secret", "l l -> ../outside/secret"],
    );
    check(Tar::new().file("f", "x").hard("f", "f"), &["f f \"x\""]);
    check(Tar::new().file("f", "x").file("g", "y").hard("g", "f"), &["f f \"x\"", "g f \"x\""]);
    check_fails(Tar::new().dir("d").hard("h", "d"));
    check_fails(Tar::new().hard("h", "/"));
    let Some(jail) = Jail::new() else { return };
    let tar = Tar::new()
        .hard("one", "../../outside/secret")
        .link("out", "../outside")
        .hard("two", "out/secret")
        .hard("gone", "x")
        .file("gone", "y");
    let unpacked = jail.unpack(tar).expect("unpacks");
    let link = |path: &str, target: &str| DeferredLink { path: path.into(), target: target.into() };
    assert_eq!(unpacked.deferred_links, [link("one", "outside/secret"), link("two", "out/secret")]);
    jail.assert_outside_is_untouched();
}

#[test]
fn later_entries_replace_earlier_ones() {
    check(Tar::new().file("x", "1").file("x", "2"), &["x f \"2\""]);
    check(Tar::new().dir("x").file("x/y", "1").file("x/z/w", "2").file("x", "3"), &["x f \"3\""]);
    check(Tar::new().dir("x").file("x/y", "1").dir("x"), &["x d", "x/y f \"1\""]);
    check(Tar::new().file("x", "1").dir("x").file("x/y", "2"), &["x d opaque", "x/y f \"2\""]);
    check(Tar::new().file("x/y/z", "1").link("x", "w").file("x/y", "2"), &["w d", "w/y f \"2\"", "x l -> w"]);
    check(Tar::new().file("a", "1").hard("b", "a").file("a", "2"), &["a f \"2\"", "b f \"1\""]);
}

#[test]
fn deletions_become_overlay_markers() {
    check(Tar::new().file(".wh.gone", "").file("d/.wh.gone", ""), &["d d", "d/gone deleted", "gone deleted"]);
    check(Tar::new().dir("d").file("d/.wh..wh..opq", "").file("d/x", "x"), &["d d opaque", "d/x f \"x\""]);
    check(Tar::new().file("d/x", "x").file("d/.wh..wh..opq", ""), &["d d opaque", "d/x f \"x\""]);
    // A deletion never concerns this layer's own entries, whichever comes first.
    check(Tar::new().file("f", "x").file(".wh.f", ""), &["f f \"x\""]);
    check(Tar::new().file(".wh.f", "").file("f", "x"), &["f f \"x\""]);
    check(Tar::new().dir("d").file("d/x", "x").file(".wh.d", ""), &["d d opaque", "d/x f \"x\""]);
    check(Tar::new().file(".wh.d", "").dir("d").file("d/x", "x"), &["d d opaque", "d/x f \"x\""]);
    check(Tar::new().file(".wh.d", "").file("d/x", "x"), &["d d opaque", "d/x f \"x\""]);
    check(Tar::new().file(".wh.f", "").file(".wh.f", ""), &["f deleted"]);
    // Other markers mean nothing to us.
    check(Tar::new().file(".wh..wh.aufs", "x").file(".wh..wh.plnk/1.2", "x").dir(".wh..wh.orph"), &[]);
    for name in [".wh.", ".wh..", ".wh...", "d/.wh..."] {
        check_fails(Tar::new().dir("d").file(name, ""));
    }
}

#[test]
fn user_xattrs_mark_trees_of_user_namespaces() {
    let dir = tempfile::tempdir().expect("a directory");
    if setxattr(dir.path(), "user.probe", b"", XattrFlags::empty()).is_err() {
        return crate::layer::testing::skip("the file system has no user xattrs");
    }
    let tar = Tar::new().dir("d").file("d/.wh..wh..opq", "").bytes();
    let options = UnpackOptions { flavour: OverlayFlavour::User, ..for_anybody() };
    unpack(tar.as_slice(), dir.path(), &options).expect("unpacks");
    let mut value = [0; 4];
    assert_eq!(getxattr(dir.path().join("d"), "user.overlay.opaque", &mut value[..]), Ok(1));
    assert_eq!(fs::metadata(dir.path().join("d")).expect("stats").uid(), rustix::process::geteuid().as_raw());
}

#[test]
fn times_keep_their_fractions() {
    let Some(jail) = Jail::new() else { return };
    let record = b"28 mtime=1700000001.5000000\n";
    let mut tar = vec![0; 512];
    tar[..1].copy_from_slice(b"x");
    tar[124..135].copy_from_slice(format!("{:011o}", record.len()).as_bytes());
    tar[156] = b'x';
    tar[257..265].copy_from_slice(b"ustar\x0000");
    tar[148..156].fill(b' ');
    let sum: u32 = tar.iter().map(|&byte| u32::from(byte)).sum();
    tar[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    tar.extend_from_slice(record);
    tar.resize(1024, 0);
    tar.extend_from_slice(&Tar::new().file("f", "x").bytes());
    unpack(tar.as_slice(), &jail.tree(), &UnpackOptions::default()).expect("unpacks");
    assert_eq!(listing(&jail.tree()), ["f f 644 0:0 1.500000000 \"x\""]);
}

#[test]
fn blobs_of_any_compression_have_the_digest_of_their_tar() {
    let tar = Tar::new().file("a", &"text ".repeat(200_000)).file("b", "x").bytes();
    let mut trailing = tar.clone();
    trailing.extend_from_slice(&[0; 700_000]);
    for (name, raw) in [("plain", tar), ("trailing zeros", trailing)] {
        let members = |part: &[u8]| {
            let mut encoder = flate2_like(part);
            encoder.flush().expect("in memory");
            encoder
        };
        let half = raw.len() / 2;
        let gzip = [members(&raw[..half]), members(&raw[half..])].concat();
        for blob in [raw.clone(), gzip] {
            let dir = tempfile::tempdir().expect("a directory");
            let options = for_anybody();
            let unpacked = unpack(blob.as_slice(), dir.path(), &options).expect("unpacks");
            assert_eq!(unpacked.diff_id.digest(), &oci::Digest::of(&raw), "{name}");
            assert_eq!((unpacked.tar_bytes, unpacked.n_entries), (raw.len() as u64, 2));
        }
    }
}

/// A gzip member, through the layer stream.
fn flate2_like(raw: &[u8]) -> Vec<u8> {
    use std::sync::{Arc, Mutex};

    use oci::layer::{BlobSink, DigestSink, LayerStream, NoPieces, PieceCodec, StreamOptions};

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);
    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("not poisoned").write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let buffer = Buffer::default();
    let sink: Box<dyn BlobSink> = Box::new(DigestSink::new(buffer.clone()));
    let options = StreamOptions {
        plain: Box::new(DigestSink::discarding()),
        blobs: vec![(PieceCodec::Gzip { level: 1 }, sink)],
        pieces: Arc::new(NoPieces),
    };
    let mut stream = LayerStream::new(options).expect("a valid level");
    stream.push(raw).expect("in memory");
    stream.finish().expect("in memory");
    buffer.0.lock().expect("not poisoned").clone()
}

#[test]
fn damaged_blobs_and_limits_are_errors() {
    let gzip = flate2_like(&Tar::new().file("a", &"text ".repeat(300_000)).bytes());
    let unpack_with = |blob: &[u8], limits| {
        let dir = tempfile::tempdir().expect("a directory");
        unpack(blob, dir.path(), &UnpackOptions { limits, ..for_anybody() })
    };
    let limits = ReadLimits::default();
    assert!(unpack_with(&gzip, limits).is_ok());
    assert!(matches!(unpack_with(&gzip[..gzip.len() - 9], limits), Err(TreeError::Tar(_))));
    let mut flipped = gzip.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x55;
    assert!(unpack_with(&flipped, limits).is_err());
    assert!(unpack_with(b"no tar at all, and long enough for a header".repeat(50).as_slice(), limits).is_err());
    let small = ReadLimits { max_content_bytes: 1000, ..limits };
    assert!(matches!(unpack_with(&gzip, small), Err(TreeError::Tar(oci::layer::LayerError::LimitExceeded { .. }))));
}

#[test]
fn sparse_files_stay_sparse() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = fs::File::create(dir.path().join("sparse")).expect("creates");
    std::os::unix::fs::FileExt::write_all_at(&file, b"data", 5 << 20).expect("writes");
    file.set_len(64 << 20).expect("grows");
    let tar = std::process::Command::new("tar").args(["--sparse", "-cC"]).arg(dir.path()).arg("sparse").output();
    let Ok(tar) = tar else { return crate::layer::testing::skip("no tar program") };
    let tree = tempfile::tempdir().expect("a directory");
    let options = for_anybody();
    unpack(tar.stdout.as_slice(), tree.path(), &options).expect("unpacks");
    let meta = fs::metadata(tree.path().join("sparse")).expect("stats");
    assert_eq!(meta.len(), 64 << 20);
    assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
    let content = fs::read(tree.path().join("sparse")).expect("reads");
    assert!(&content[5 << 20..(5 << 20) + 4] == b"data" && content.iter().filter(|byte| **byte != 0).count() == 4);
}
