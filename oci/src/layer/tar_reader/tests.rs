use std::io::Write;
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::layer::TarWriter;

/// What a reader says about an archive: one line an entry.
fn listing(tar: &[u8]) -> Result<Vec<String>, LayerError> {
    listing_within(tar, ReadLimits::default())
}

fn listing_within(tar: &[u8], limits: ReadLimits) -> Result<Vec<String>, LayerError> {
    let mut reader = LayerReader::new(tar, limits);
    let mut lines = Vec::new();
    while let Some(mut member) = reader.next_member()? {
        let mut content = Vec::new();
        let is_small = member.content.size_bytes() < 100;
        if is_small {
            member.content.read_to_end(&mut content).map_err(|error| LayerError::io("read", b"", error))?;
        }
        let entry = member.entry;
        lines.push(format!("{} {:?} {}", lossy(entry.path), entry.kind, String::from_utf8_lossy(&content)));
    }
    Ok(lines)
}

/// A ustar header with a valid checksum, made by hand.
struct Raw(Vec<u8>);

impl Raw {
    fn new(name: &[u8], type_flag: u8, size: &str) -> Self {
        let mut block = vec![0; 512];
        block[..name.len()].copy_from_slice(name);
        block[100..107].copy_from_slice(b"0000644");
        block[124..124 + size.len()].copy_from_slice(size.as_bytes());
        block[156] = type_flag;
        block[257..265].copy_from_slice(b"ustar\x0000");
        Self(block)
    }

    fn put(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn seal(mut self) -> Vec<u8> {
        self.0[148..156].fill(b' ');
        let sum: u32 = self.0.iter().map(|&byte| u32::from(byte)).sum();
        self.0[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0
    }
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut blocks = bytes.to_vec();
    blocks.resize(bytes.len().next_multiple_of(512), 0);
    blocks
}

fn extended(records: &[u8]) -> Vec<u8> {
    [Raw::new(b"x", b'x', &format!("{:o}", records.len())).seal(), padded(records)].concat()
}

fn record(key: &str, value: &str) -> Vec<u8> {
    let rest = format!(" {key}={value}\n");
    let mut length = rest.len() + 1;
    while length != rest.len() + length.to_string().len() {
        length += 1;
    }
    format!("{length}{rest}").into_bytes()
}

#[test]
fn archives_end_where_go_says() {
    let file = [Raw::new(b"f", b'0', "1").seal(), padded(b"!")].concat();
    let end = vec![0; 1024];
    for (name, tar) in [
        ("marker", [&file[..], &end].concat()),
        ("no marker", file.clone()),
        ("half a marker", [&file[..], &end[..512]].concat()),
        ("rubbish behind", [&file[..], &end, b"rubbish"].concat()),
    ] {
        assert_eq!(listing(&tar).expect(name), ["f Regular { size_bytes: 1 } !"], "{name}");
    }
    assert_eq!(listing(b"").expect("nothing"), Vec::<String>::new());
    for cut in [100, 512, 513, 600, 1000] {
        assert!(matches!(listing(&file[..cut]), Err(LayerError::CutOff { .. } | LayerError::Io { .. })), "{cut}");
    }
}

#[test]
fn old_and_odd_entries_are_understood() {
    let zero = |raw: Raw| raw.put(156, &[0]);
    let tar = [
        zero(Raw::new(b"old-dir/", b'0', "0")).seal(),
        zero(Raw::new(b"old-file", b'0', "1")).seal(),
        padded(b"a"),
        Raw::new(b"contiguous", b'7', "1").seal(),
        padded(b"b"),
        // Go reads no content for links and directories, whatever their size says.
        Raw::new(b"link", b'1', "777").put(157, b"old-file").seal(),
        Raw::new(b"dir/", b'5', "777").seal(),
        Raw::new(b"volume", b'V', "0").seal(),
        [Raw::new(b"global", b'g', "22").seal(), padded(b"18 comment=nothing\n")].concat(),
        Raw::new(b"name", b'0', "0").put(345, b"prefix").seal(),
        Raw::new(b"././@LongLink", b'L', "5").put(257, b"ustar  \0").seal(),
        padded(b"long\0"),
        Raw::new(b"short", b'0', "0").put(257, b"ustar  \0").seal(),
    ]
    .concat();
    assert_eq!(
        listing(&tar).expect("reads"),
        [
            "old-dir/ Directory ",
            "old-file Regular { size_bytes: 1 } a",
            "contiguous Regular { size_bytes: 1 } b",
            "link Hardlink { target: [111, 108, 100, 45, 102, 105, 108, 101] } ",
            "dir/ Directory ",
            "prefix/name Regular { size_bytes: 0 } ",
            "long Regular { size_bytes: 0 } ",
        ]
    );
}

#[test]
fn extended_headers_count() {
    let records = [
        record("mtime", "-1.5"),
        record("uid", "3000000"),
        record("SCHILY.xattr.user.x", "a\nb=c"),
        record("path", "p"),
    ];
    let tar = [extended(&records.concat()), Raw::new(b"f", b'0', "0").seal()].concat();
    let mut reader = LayerReader::new(tar.as_slice(), ReadLimits::default());
    let member = reader.next_member().expect("reads").expect("an entry");
    let entry = member.entry;
    assert_eq!((entry.path, entry.uid, entry.mtime_secs, entry.mtime_nanos), (&b"p"[..], 3_000_000, -2, 500_000_000));
    assert_eq!(entry.xattrs, [Xattr { name: b"user.x".to_vec(), value: b"a\nb=c".to_vec() }]);
}

#[test]
fn hostile_archives_are_refused() {
    let file = Raw::new(b"f", b'0', "0").seal();
    let with = |records: &[u8]| [extended(records), file.clone()].concat();
    let sparse = |map: &[u8], real: &str, size: &str| {
        let records =
            [record("GNU.sparse.major", "1"), record("GNU.sparse.minor", "0"), record("GNU.sparse.realsize", real)]
                .concat();
        [extended(&records), Raw::new(b"s", b'0', size).seal(), padded(map)].concat()
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("checksum", Raw::new(b"f", b'0', "0").0),
        ("type", Raw::new(b"f", b'Z', "0").seal()),
        ("link without target", Raw::new(b"f", b'1', "0").seal()),
        ("huge size", Raw::new(b"f", b'0', "777777777777").seal()),
        ("negative size", Raw::new(b"f", b'0', "").put(124, &[0xff; 12]).seal()),
        ("malformed record", with(b"99 a=b\n")),
        ("garbage records", with(b"garbage")),
        ("bad size", with(&record("size", "1x"))),
        ("negative uid", with(&record("uid", "-1"))),
        ("uid out of range", with(&record("uid", "4294967296"))),
        ("NUL in path", with(&record("path", "a\0b"))),
        ("long path", with(&record("path", &"p".repeat(5000)))),
        ("long metadata", [Raw::new(b"x", b'x', "77777777").seal(), vec![b'1'; 4096]].concat()),
        ("endless sparse map", sparse(&vec![b'1'; 4 << 20], "9", "77777777777")),
        ("sparse overlap", sparse(b"2\n0\n5\n3\n5\n", "9", "2000")),
        ("sparse overflow", sparse(b"1\n18446744073709551615\n5\n", "9", "2000")),
        ("sparse beyond the end", sparse(b"1\n8\n5\n", "9", "1005")),
        ("sparse of another size", sparse(b"1\n0\n5\n", "9", "1006")),
        ("two extended headers", [extended(&record("uid", "1")), with(&record("uid", "1"))].concat()),
    ];
    for (name, tar) in cases {
        assert!(listing(&tar).is_err(), "{name}: {:?}", listing(&tar));
    }
}

#[test]
fn limits_hold() {
    let file = [Raw::new(b"f", b'0', "1").seal(), padded(b"!")].concat();
    let tar = file.repeat(5);
    let limits = ReadLimits::default();
    let within = |limits| listing_within(&tar, limits).map(|lines| lines.len());
    assert_eq!(within(ReadLimits { max_entries: 5, max_content_bytes: 5, ..limits }).expect("fits"), 5);
    let entries = within(ReadLimits { max_entries: 4, ..limits });
    assert!(matches!(entries, Err(LayerError::LimitExceeded { what: "entries", limit: 4 })));
    let bytes = within(ReadLimits { max_content_bytes: 4, ..limits });
    assert!(matches!(bytes, Err(LayerError::LimitExceeded { what: "bytes", limit: 4 })));
}

#[test]
fn a_failed_reader_stays_at_its_end() {
    let mut reader = LayerReader::new(&b"rubbish"[..], ReadLimits::default());
    assert!(reader.next_member().is_err());
    assert!(reader.next_member().expect("ended").is_none());
}

#[test]
fn content_that_is_not_read_is_skipped() {
    let mut writer = TarWriter::new(Vec::new());
    for (name, size) in [(b"a", 3_000_000_u64), (b"b", 1), (b"c", 700_000)] {
        let entry = Entry::new(name, EntryKind::Regular { size_bytes: size });
        writer.append(&entry, &mut io::repeat(b'c').take(size)).expect("in memory");
    }
    let tar = writer.finish().expect("in memory");
    let mut reader = LayerReader::new(tar.as_slice(), ReadLimits::default());
    let mut first = reader.next_member().expect("reads").expect("a");
    let (offset, bytes) = first.content.next_data().expect("reads").expect("data");
    assert!(offset == 0 && !bytes.is_empty() && bytes.iter().all(|&byte| byte == b'c'));
    assert_eq!(reader.next_member().expect("reads").expect("b").entry.path, b"b");
    let mut last = reader.next_member().expect("reads").expect("c");
    let mut content = Vec::new();
    last.content.read_to_end(&mut content).expect("reads");
    assert_eq!(content, vec![b'c'; 700_000]);
    assert!(reader.next_member().expect("reads").is_none());
}

/// GNU tar's own archives of a sparse file, in every format that it has.
#[test]
fn sparse_files_of_gnu_tar_come_out_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("sparse");
    let mut file = std::fs::File::create(&path).expect("creates");
    file.write_all(b"start").expect("writes");
    for (offset, text) in [(1 << 20, "middle"), (3 << 20, "more")] {
        std::os::unix::fs::FileExt::write_all_at(&file, text.as_bytes(), offset).expect("writes");
    }
    file.set_len(5_000_000).expect("grows");
    let expected = std::fs::read(&path).expect("reads");
    for format in ["gnu", "posix --sparse-version=0.0", "posix --sparse-version=0.1", "posix --sparse-version=1.0"] {
        let mut command = Command::new("tar");
        command
            .args(["--sparse", "-C"])
            .arg(dir.path())
            .args(format!("--format={format}").split(' '))
            .args(["-cf", "-", "sparse"]);
        let Ok(output) = command.output() else {
            // No GNU tar on this machine.
            return;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut reader = LayerReader::new(output.stdout.as_slice(), ReadLimits::default());
        let mut member = reader.next_member().expect("reads").expect("an entry");
        assert_eq!(member.entry.path, b"sparse", "{format}");
        let mut content = Vec::new();
        member.content.read_to_end(&mut content).expect("reads");
        assert!(content == expected, "{format}");
        assert!(reader.next_member().expect("reads").is_none());

        let mut reader = LayerReader::new(output.stdout.as_slice(), ReadLimits::default());
        let mut member = reader.next_member().expect("reads").expect("an entry");
        let mut rebuilt = vec![0; usize::try_from(member.content.size_bytes()).expect("small")];
        while let Some((offset, bytes)) = member.content.next_data().expect("reads") {
            assert!(!bytes.is_empty());
            let offset = usize::try_from(offset).expect("small");
            rebuilt[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        assert!(rebuilt == expected, "{format}");
    }
}

proptest! {
    #[test]
    fn nothing_makes_the_reader_panic_or_loop(
        mut tar in prop::collection::vec(any::<u8>(), 0..4096),
        flag in prop::sample::select(b"01257LKSxgV".to_vec()),
        size in 0..5000_u32,
    ) {
        if tar.len() >= 512 {
            let header = Raw(tar[..512].to_vec())
                .put(100, b"0000644\x000000000\x000000000\0")
                .put(124, format!("{size:011o}\x0000000000000\0").as_bytes())
                .put(156, &[flag])
                .put(257, b"ustar\x0000")
                .put(329, &[0; 16])
                .seal();
            tar[..512].copy_from_slice(&header);
        }
        let _ = listing(&tar);
    }
}
