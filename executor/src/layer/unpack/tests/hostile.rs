//! Archives that want more than there is: depth, length, number, size.

use super::*;

/// Unpacks within limits, as whoever runs the test.
fn unpack_within(blob: &[u8], limits: ReadLimits) -> (Result<Unpacked>, TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let options = UnpackOptions { limits, ..for_anybody() };
    (unpack(blob, dir.path(), &options), dir)
}

/// Bytes that a tree takes on the disk.
fn disk_bytes(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).expect("lists").map(|entry| entry.expect("an entry"));
    entries
        .map(|entry| {
            let meta = entry.metadata().expect("stats");
            meta.blocks() * 512 + if meta.is_dir() { disk_bytes(&entry.path()) } else { 0 }
        })
        .sum()
}

#[test]
fn names_that_no_file_system_holds_are_errors() {
    let limits = ReadLimits::default();
    let longest = "n".repeat(255);
    assert!(unpack_within(&Tar::new().file(&longest, "x").bytes(), limits).0.is_ok());
    for path in ["n".repeat(256), format!("{}/x", "n".repeat(256)), "n/".repeat(2047) + "x"] {
        let (outcome, dir) = unpack_within(&Tar::new().file(&path, "x").bytes(), limits);
        let error = outcome.expect_err("a name that is too long").to_string();
        assert!(error.ends_with("File name too long (os error 36)"), "{error}");
        assert!(disk_bytes(dir.path()) < 4 << 20);
    }
    let too_long = format!("{}x", "n/".repeat(2048));
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    tar.append_data(&mut header, &too_long, std::io::empty()).expect("in memory");
    let (outcome, _dir) = unpack_within(&tar.into_inner().expect("in memory"), limits);
    assert!(outcome.is_err());
}

#[test]
fn deep_trees_hold_only_so_many_descriptors() {
    let limits = ReadLimits::default();
    let (shallow, deep) = ("d/".repeat(250), "d/".repeat(300));
    assert!(unpack_within(&Tar::new().file(&format!("{shallow}x"), "x").bytes(), limits).0.is_ok());
    assert!(unpack_within(&Tar::new().file(&format!("{deep}x"), "x").bytes(), limits).0.is_err());
    // Links that make a path deeper than it looks.
    let tar = Tar::new().dir(&shallow).link("l", &shallow).file(&format!("l/{shallow}x"), "x");
    assert!(unpack_within(&tar.bytes(), limits).0.is_err());
    // As many links as a path may have, each of which leads to two others, end as well.
    let mut tar = Tar::new().dir("a0");
    for n in 1..60 {
        tar = tar.link(&format!("a{n}"), &format!("a{}/../a{}", n - 1, n - 1));
    }
    assert!(unpack_within(&tar.file("a59/x", "x").bytes(), limits).0.is_err());
}

#[test]
fn paths_that_have_to_be_remembered_are_limited() {
    let limits = ReadLimits { max_remembered_bytes: 10_000, ..ReadLimits::default() };
    let many = |entry: &dyn Fn(Tar, &str) -> Tar| {
        let names = (0..200).map(|n| format!("{n}{}", "x".repeat(100)));
        names.fold(Tar::new(), |tar, name| entry(tar, &name)).bytes()
    };
    for tar in [
        many(&|tar, name| tar.dir(name)),
        many(&|tar, name| tar.file(&format!("{name}/f"), "")),
        many(&|tar, name| tar.hard(name, "not-here")),
        many(&|tar, _| tar.dir(&"y".repeat(99))),
    ] {
        let (outcome, _dir) = unpack_within(&tar, limits);
        let Err(TreeError::Tar(error)) = outcome else { panic!("{outcome:?}") };
        assert_eq!(error.to_string(), "layer tar has more than 10000 bytes of paths to remember");
    }
    // Files are forgotten at once.
    assert!(unpack_within(&many(&|tar, name| tar.file(name, "")), limits).0.is_ok());
}

/// A gigabyte of zeros in a few kilobytes: nothing of what is beyond the limit reaches the disk.
#[test]
fn bombs_stop_at_the_limit() {
    let limits = ReadLimits { max_content_bytes: 8 << 20, ..ReadLimits::default() };
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros").expect("short");
    header.set_size(1 << 30);
    header.set_cksum();
    let zeros = vec![0_u8; 1 << 20];
    let gzip = |bytes: &[u8]| flate2_like(bytes);
    let mut bomb = gzip(header.as_bytes());
    let piece = gzip(&zeros);
    (0..1024).for_each(|_| bomb.extend_from_slice(&piece));
    assert!(bomb.len() < 8 << 20);
    let (outcome, dir) = unpack_within(&bomb, limits);
    let Err(TreeError::Tar(error)) = outcome else { panic!("{outcome:?}") };
    assert_eq!(error.to_string(), "layer tar has more than 8388608 bytes");
    assert!(disk_bytes(dir.path()) <= 9 << 20);
}

/// Sizes that lie: a sparse file of exbibytes takes no room, or is refused; one that is not sparse has to be there.
#[test]
fn sizes_that_lie() {
    let sparse = |size: u64| {
        let mut tar = tar::Builder::new(Vec::new());
        let real = size.to_string();
        let records: [(&str, &[u8]); 4] = [
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.realsize", real.as_bytes()),
        ];
        tar.append_pax_extensions(records).expect("in memory");
        let mut map = b"0\n".to_vec();
        map.resize(512, 0);
        let mut header = tar::Header::new_ustar();
        header.set_size(512);
        tar.append_data(&mut header, "GNUSparseFile.0/sparse", map.as_slice()).expect("in memory");
        tar.into_inner().expect("in memory")
    };
    let limits = ReadLimits::default();
    let (outcome, dir) = unpack_within(&sparse(1 << 40), limits);
    outcome.expect("a tebibyte of nothing");
    assert_eq!(fs::metadata(dir.path().join("sparse")).expect("stats").len(), 1 << 40);
    assert!(disk_bytes(dir.path()) < 1 << 20);
    let (outcome, dir) = unpack_within(&sparse(i64::MAX as u64), limits);
    assert!(outcome.is_err() || disk_bytes(dir.path()) < 1 << 20);

    let mut header = tar::Header::new_gnu();
    header.set_path("short").expect("short");
    header.set_size(1 << 40);
    header.set_cksum();
    let (outcome, dir) = unpack_within(&[header.as_bytes().as_slice(), &[1; 4096]].concat(), limits);
    assert!(outcome.is_err());
    assert!(disk_bytes(dir.path()) < 1 << 20, "room was made for what never came");
}

#[test]
fn markers_in_the_middle_of_a_path_delete_nothing() {
    check(Tar::new().file("d/x", "x").file("e/.wh..wh..opq/y", "y"), &["d d", "d/x f \"x\""]);
    check_fails(Tar::new().file("d", "x").file("d/.wh..wh..opq", ""));
    check_fails(Tar::new().file("d", "x").file("d/.wh.x", ""));
    // A deletion of the parent, after something was put into it through a link.
    check(
        Tar::new().dir("d").link("l", "d").file("l/x", "x").file(".wh.d", "").file(".wh.l", ""),
        &["d d opaque", "d/x f \"x\"", "l l -> d"],
    );
}
