use std::collections::BTreeMap;
use std::io::Read;
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::Digest;
use crate::layer::{LayerReader, ReadLimits, Xattr};

/// One entry of every kind, ordinary and awkward.
fn write_samples<W: Write>(writer: &mut TarWriter<W>) {
    let long_dir = "d".repeat(60) + "/" + &"e".repeat(60);
    let long_file = long_dir.clone() + "/file";
    let capability = [Xattr { name: b"security.capability".to_vec(), value: b"\x01\0\0\x02\n=\0".to_vec() }];
    let base = |path, kind| Entry { mode: 0o644, mtime_secs: 1_700_000_000, ..Entry::new(path, kind) };
    let content = |size_bytes| EntryKind::Regular { size_bytes };
    let entries: [(Entry<'_>, &[u8]); 12] = [
        (Entry { mode: 0o755, ..base(b"dir", EntryKind::Directory) }, b""),
        (Entry { uid: 1000, gid: 50, ..base(b"dir/file", content(5)) }, b"hello"),
        (base(b"dir/hard", EntryKind::Hardlink { target: b"dir/file" }), b""),
        (Entry { mode: 0o777, ..base(b"dir/soft", EntryKind::Symlink { target: b"../else where" }) }, b""),
        (base(b"dir/null", EntryKind::Char { major: 1, minor: 3 }), b""),
        (base(b"dir/disk", EntryKind::Block { major: 8, minor: 1_048_575 }), b""),
        (base(b"dir/pipe", EntryKind::Fifo), b""),
        (base("dir/größe".as_bytes(), content(512)), &[b'x'; 512]),
        (Entry { mode: 0o4755, xattrs: &capability, ..base(b"dir/ping", content(1)) }, b"p"),
        (Entry { mode: 0o755, ..base(long_dir.as_bytes(), EntryKind::Directory) }, b""),
        (
            Entry { uid: 3_000_000, gid: 4_294_967_294, mtime_secs: -5, ..base(long_file.as_bytes(), content(3)) },
            b"abc",
        ),
        (Entry::whiteout(b"dir/.wh.gone"), b""),
    ];
    for (entry, content) in entries {
        writer.append_bytes(&entry, content).expect("in memory");
    }
}

fn samples() -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    write_samples(&mut writer);
    writer.finish().expect("in memory")
}

#[test]
fn the_bytes_have_not_changed() {
    // Golden: every layer digest depends on these bytes.
    let golden = "74e52d978b2059927a0ec44321bd2113fabd2f4158b76551c6d0246c75d75d03";
    assert_eq!(Digest::of(&samples()).hex(), golden);
}

#[test]
fn a_plain_block_is_what_go_writes() {
    let mut writer = TarWriter::new(Vec::new());
    let entry =
        Entry { mode: 0o644, uid: 1000, mtime_secs: 1, ..Entry::new(b"a", EntryKind::Regular { size_bytes: 1 }) };
    writer.append_bytes(&entry, b"!").expect("in memory");
    let tar = writer.finish().expect("in memory");
    let mut block = vec![0; 512];
    let fields: [(usize, &[u8]); 11] = [
        (0, b"a"),
        (100, b"0000644\0"),
        (108, b"0001750\0"),
        (116, b"0000000\0"),
        (124, b"00000000001\0"),
        (136, b"00000000001\0"),
        (148, b"007355\0 "),
        (156, b"0"),
        (257, b"ustar\x0000"),
        (329, b"0000000\0"),
        (337, b"0000000\0"),
    ];
    for (offset, bytes) in fields {
        block[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    assert_eq!(&tar[..512], block);
    assert_eq!(tar.len(), 512 + 512 + 1024);
    assert_eq!(&tar[512..514], b"!\0");
}

#[test]
fn an_extended_header_precedes_only_what_needs_it() {
    let needs = |entry: Entry<'_>| {
        let mut writer = TarWriter::new(Vec::new());
        writer.write_header(&entry).expect("in memory");
        (writer.inner[156] == b'x').then(|| String::from_utf8_lossy(&writer.records).into_owned())
    };
    let file = |path| Entry::new(path, EntryKind::Regular { size_bytes: 0 });
    assert_eq!(needs(file(&[b'n'; 100])), None);
    let name = "n".repeat(101);
    assert_eq!(needs(file(name.as_bytes())), Some(format!("111 path={name}\n")));
    // 99 characters and the slash of a directory fit, 100 do not.
    assert_eq!(needs(Entry::new(&[b'n'; 99], EntryKind::Directory)), None);
    let dir = "n".repeat(100);
    assert_eq!(needs(Entry::new(dir.as_bytes(), EntryKind::Directory)), Some(format!("111 path={dir}/\n")));
    assert_eq!(needs(Entry { uid: 0o7_777_777, ..file(b"f") }), None);
    assert_eq!(needs(Entry { uid: 0o10_000_000, ..file(b"f") }).as_deref(), Some("15 uid=2097152\n"));
    assert_eq!(needs(Entry { mtime_secs: -1, ..file(b"f") }).as_deref(), Some("12 mtime=-1\n"));
    assert_eq!(needs(Entry { mtime_nanos: 5, ..file(b"f") }), None);
    let huge = Entry::new(b"f", EntryKind::Regular { size_bytes: 8 << 30 });
    assert_eq!(needs(huge).as_deref(), Some("19 size=8589934592\n"));
    assert_eq!(needs(Entry::new(b"f", EntryKind::Regular { size_bytes: (8 << 30) - 1 })), None);
}

#[test]
fn later_times_become_the_latest() {
    let write = |latest: Option<i64>, times: [i64; 3]| {
        let writer = TarWriter::new(Vec::new());
        let mut writer = if let Some(latest) = latest { writer.clamp_times(latest) } else { writer };
        for mtime_secs in times {
            let entry = Entry { mtime_secs, ..Entry::new(b"d", EntryKind::Directory) };
            writer.append_bytes(&entry, &[]).expect("in memory");
        }
        writer.finish().expect("in memory")
    };
    // Beyond what a block holds, too.
    assert!(write(Some(100), [99, 101, 1 << 40]) == write(None, [99, 100, 100]));
    assert!(write(Some(-5), [-6, 0, 7]) == write(None, [-6, -5, -5]));
}

#[test]
fn record_lengths_count_themselves() {
    for value_len in 0..1200 {
        let mut record = Vec::new();
        push_record(&mut record, b"k", &vec![b'v'; value_len]);
        let text = String::from_utf8(record).expect("ASCII");
        let (length, _) = text.split_once(' ').expect("a space");
        assert_eq!(length.parse::<usize>().expect("a number"), text.len());
    }
}

#[test]
fn what_no_tar_can_hold_is_refused() {
    let mut writer = TarWriter::new(Vec::new());
    for entry in [
        Entry::new(b"a\0b", EntryKind::Fifo),
        Entry::new(b"", EntryKind::Fifo),
        Entry::new(b"l", EntryKind::Symlink { target: b"\0" }),
        Entry::new(b"d", EntryKind::Char { major: 1 << 21, minor: 0 }),
    ] {
        assert!(matches!(writer.append_bytes(&entry, b""), Err(LayerError::Unwritable { .. })), "{entry:?}");
    }
    assert_eq!(writer.written_bytes(), 0);
    let file = Entry::new(b"f", EntryKind::Regular { size_bytes: 9 });
    assert!(matches!(writer.append_bytes(&file, b"short"), Err(LayerError::ShortContent { .. })));
    let short = writer.append(&file, &mut &b"short"[..]);
    assert!(matches!(short, Err(LayerError::ShortContent { got_bytes: 5, .. })));
}

#[test]
fn gnu_tar_lists_the_samples() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), samples()).expect("writes");
    let mut command = Command::new("tar");
    command.args(["--numeric-owner", "--full-time", "-tvf"]).arg(file.path()).env("TZ", "UTC").env("LC_ALL", "C.UTF-8");
    let Ok(output) = command.output() else {
        // No GNU tar on this machine: the `tar` crate is the other oracle.
        return;
    };
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let listing: Vec<String> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let long = "d".repeat(60) + "/" + &"e".repeat(60);
    let expected = [
        "drwxr-xr-x 0/0 0 2023-11-14 22:13:20 dir/".to_owned(),
        "-rw-r--r-- 1000/50 5 2023-11-14 22:13:20 dir/file".to_owned(),
        "hrw-r--r-- 0/0 0 2023-11-14 22:13:20 dir/hard link to dir/file".to_owned(),
        "lrwxrwxrwx 0/0 0 2023-11-14 22:13:20 dir/soft -> ../else where".to_owned(),
        "crw-r--r-- 0/0 1,3 2023-11-14 22:13:20 dir/null".to_owned(),
        "brw-r--r-- 0/0 8,1048575 2023-11-14 22:13:20 dir/disk".to_owned(),
        "prw-r--r-- 0/0 0 2023-11-14 22:13:20 dir/pipe".to_owned(),
        "-rw-r--r-- 0/0 512 2023-11-14 22:13:20 dir/größe".to_owned(),
        "-rwsr-xr-x 0/0 1 2023-11-14 22:13:20 dir/ping".to_owned(),
        format!("drwxr-xr-x 0/0 0 2023-11-14 22:13:20 {long}/"),
        format!("-rw-r--r-- 3000000/4294967294 3 1969-12-31 23:59:55 {long}/file"),
        "---------- 0/0 0 1970-01-01 00:00:00 dir/.wh.gone".to_owned(),
    ];
    assert_eq!(listing, expected);
}

#[test]
fn the_tar_crate_reads_the_samples() {
    // Without the one whose xattr holds a newline: that crate splits records at newlines.
    let tar = samples();
    let mut archive = tar::Archive::new(tar.as_slice());
    let mut paths = Vec::new();
    for entry in archive.entries().expect("entries").flatten() {
        paths.push(String::from_utf8_lossy(&entry.path_bytes()).into_owned());
    }
    assert_eq!(paths.len(), 12);
    assert_eq!(paths[7], "dir/größe");
    assert_eq!(paths[10].len(), 60 + 1 + 60 + 5);
}

/// An entry that owns its parts.
#[derive(Clone, Debug, PartialEq)]
struct Owned {
    path: Vec<u8>,
    kind: u8,
    target: Vec<u8>,
    content: Vec<u8>,
    meta: (u32, u32, u32, i64),
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

fn owned() -> impl Strategy<Value = Owned> {
    let name = || prop_oneof!["[a-z]{1,12}", "[a-zé./]{1,150}", "[ -~]{1,40}"];
    let clean = |text: String| match super::super::clean_path(text.as_bytes()) {
        Some(path) if !path.is_root() => path.as_bytes().to_vec(),
        _ => b"x".to_vec(),
    };
    (
        name().prop_map(clean),
        0..7_u8,
        name(),
        prop::collection::vec(any::<u8>(), 0..1500),
        (
            0..0o10000_u32,
            any::<u32>(),
            any::<u32>(),
            prop_oneof![any::<i32>().prop_map(i64::from), -9_000_000_000..90_000_000_000_i64],
        ),
        prop::collection::btree_map(
            "[a-z.]{1,20}".prop_map(String::into_bytes),
            prop::collection::vec(any::<u8>(), 0..40),
            0..3,
        ),
    )
        .prop_map(|(path, kind, target, content, meta, xattrs)| Owned {
            path,
            target: if matches!(kind, 1 | 2) { target.into_bytes() } else { Vec::new() },
            content: if kind == 0 { content } else { Vec::new() },
            kind,
            meta,
            xattrs,
        })
}

impl Owned {
    fn write(&self, writer: &mut TarWriter<Vec<u8>>) {
        let kind = match self.kind {
            0 => EntryKind::Regular { size_bytes: self.content.len() as u64 },
            1 => EntryKind::Hardlink { target: &self.target },
            2 => EntryKind::Symlink { target: &self.target },
            3 => EntryKind::Char { major: 5, minor: 77 },
            4 => EntryKind::Block { major: 8, minor: 300 },
            5 => EntryKind::Directory,
            _ => EntryKind::Fifo,
        };
        let xattrs: Vec<Xattr> =
            self.xattrs.iter().map(|(name, value)| Xattr { name: name.clone(), value: value.clone() }).collect();
        let (mode, uid, gid, mtime_secs) = self.meta;
        let entry = Entry { path: &self.path, kind, mode, uid, gid, mtime_secs, mtime_nanos: 0, xattrs: &xattrs };
        writer.append(&entry, &mut self.content.as_slice()).expect("in memory");
    }

    fn read<R: Read>(mut member: crate::layer::Member<'_, R>) -> Self {
        let entry = member.entry;
        let (kind, target) = match entry.kind {
            EntryKind::Regular { .. } => (0, &b""[..]),
            EntryKind::Hardlink { target } => (1, target),
            EntryKind::Symlink { target } => (2, target),
            EntryKind::Char { major: 5, minor: 77 } => (3, &b""[..]),
            EntryKind::Block { major: 8, minor: 300 } => (4, &b""[..]),
            EntryKind::Directory => (5, &b""[..]),
            EntryKind::Fifo => (6, &b""[..]),
            EntryKind::Char { .. } | EntryKind::Block { .. } => (255, &b""[..]),
        };
        let mut content = Vec::new();
        member.content.read_to_end(&mut content).expect("in memory");
        Self {
            path: entry.path.strip_suffix(b"/").unwrap_or(entry.path).to_vec(),
            kind,
            target: target.to_vec(),
            content,
            meta: (entry.mode, entry.uid, entry.gid, entry.mtime_secs),
            xattrs: entry.xattrs.iter().map(|xattr| (xattr.name.clone(), xattr.value.clone())).collect(),
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(entries in prop::collection::vec(owned(), 0..8)) {
        let mut writer = TarWriter::new(Vec::new());
        entries.iter().for_each(|entry| entry.write(&mut writer));
        let tar = writer.finish().expect("in memory");
        prop_assert_eq!(tar.len() % BLOCK_BYTES, 0);
        let mut reader = LayerReader::new(tar.as_slice(), ReadLimits::default());
        let mut back = Vec::new();
        while let Some(member) = reader.next_member().expect("well formed") {
            back.push(Owned::read(member));
        }
        prop_assert_eq!(back, entries);
    }
}
