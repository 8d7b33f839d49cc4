//! What the tests of this module share: trees, tars and their listings as text.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use oci::layer::{Entry, EntryKind, LayerReader, ReadLimits, TarWriter};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lgetxattr, mknodat, setxattr};
use tempfile::TempDir;

use super::UnpackOptions;

/// Time of everything that the tests make.
pub(super) const TIME: i64 = 1_700_000_000;

/// A temporary directory in which deletion markers and privileged xattrs can be made; `None` (with the reason printed) when
/// this process may not.
pub(super) fn privileged_dir() -> Option<TempDir> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let probe = dir.path().join("probe");
    let made = mknodat(CWD, &probe, FileType::CharacterDevice, Mode::empty(), 0)
        .and_then(|()| setxattr(dir.path(), "trusted.overlay.opaque", b"n", XattrFlags::empty()));
    match made {
        Ok(()) => {
            fs::remove_file(probe).expect("removes the probe");
            rustix::fs::removexattr(dir.path(), "trusted.overlay.opaque").expect("removes the probe");
            Some(dir)
        }
        Err(error) => {
            skip(&format!("whiteouts and trusted xattrs need root on a file system that has them: {error}"));
            None
        }
    }
}

#[expect(clippy::print_stderr, reason = "a skipped test says why")]
pub(super) fn skip(reason: &str) {
    eprintln!("skipped: {reason}");
}

/// A whiteout at `path`.
pub(super) fn whiteout(path: &Path) {
    mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).expect("makes a whiteout");
}

/// Marks `path` as opaque.
pub(super) fn opaque(path: &Path) {
    setxattr(path, "trusted.overlay.opaque", b"y", XattrFlags::empty()).expect("marks");
}

/// Everything in a tree but its root: one line a name, in the order of a tar.
///
/// `PATH KIND MODE UID:GID TIME`, then content, link target, device or `opaque`.
pub(super) fn listing(tree: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    list_into(tree, "", &mut lines);
    lines
}

fn list_into(dir: &Path, prefix: &str, lines: &mut Vec<String>) {
    let mut names: Vec<_> =
        fs::read_dir(dir).expect("lists").map(|entry| entry.expect("an entry").file_name()).collect();
    names.sort();
    for name in names {
        let path = dir.join(&name);
        let name = format!("{prefix}{}", name.to_string_lossy());
        let meta = fs::symlink_metadata(&path).expect("stats");
        let kind = meta.file_type();
        let (letter, more) = match kind {
            _ if kind.is_dir() => ('d', if is_opaque(&path) { " opaque".to_owned() } else { String::new() }),
            _ if kind.is_symlink() => ('l', format!(" -> {}", fs::read_link(&path).expect("reads").display())),
            _ if kind.is_char_device() && meta.rdev() == 0 => {
                lines.push(format!("{name} deleted"));
                continue;
            }
            _ if kind.is_char_device() => ('c', format!(" {:x}", meta.rdev())),
            _ if kind.is_block_device() => ('b', format!(" {:x}", meta.rdev())),
            _ if kind.is_fifo() => ('p', String::new()),
            _ => ('f', format!(" {:?}", text_of(&path))),
        };
        let time = format!("{}.{:09}", meta.mtime() - TIME, meta.mtime_nsec());
        let time = time.strip_suffix(".000000000").unwrap_or(&time).to_owned();
        lines.push(format!("{name} {letter} {:o} {}:{} {time}{more}", meta.mode() & 0o7777, meta.uid(), meta.gid()));
        if kind.is_dir() {
            list_into(&path, &format!("{name}/"), lines);
        }
    }
}

fn text_of(path: &Path) -> String {
    let bytes = fs::read(path).expect("reads");
    if bytes.len() > 40 { format!("{} bytes", bytes.len()) } else { String::from_utf8_lossy(&bytes).into_owned() }
}

fn is_opaque(path: &Path) -> bool {
    let mut value = [0; 8];
    ["trusted.overlay.opaque", "user.overlay.opaque"]
        .iter()
        .any(|name| lgetxattr(path, *name, &mut value[..]).is_ok_and(|len| value[..len] == *b"y"))
}

/// The entries of a tar: `PATH KIND MODE UID:GID TIME`, then content or target.
pub(super) fn tar_listing(tar: &[u8]) -> Vec<String> {
    let mut reader = LayerReader::new(tar, ReadLimits::default());
    let mut lines = Vec::new();
    while let Some(mut member) = reader.next_member().expect("well formed") {
        let mut content = String::new();
        let is_small = member.content.size_bytes() <= 40;
        if is_small {
            std::io::Read::read_to_string(&mut member.content, &mut content).expect("text");
        }
        let entry = member.entry;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let (letter, more) = match entry.kind {
            EntryKind::Regular { .. } if is_small => ('f', format!(" {content:?}")),
            EntryKind::Regular { size_bytes } => ('f', format!(" \"{size_bytes} bytes\"")),
            EntryKind::Hardlink { target } => ('h', format!(" -> {}", text(target))),
            EntryKind::Symlink { target } => ('l', format!(" -> {}", text(target))),
            EntryKind::Char { major, minor } => ('c', format!(" {major}:{minor}")),
            EntryKind::Block { major, minor } => ('b', format!(" {major}:{minor}")),
            EntryKind::Directory => ('d', String::new()),
            EntryKind::Fifo => ('p', String::new()),
        };
        let xattrs: String = entry.xattrs.iter().map(|xattr| format!(" {}", text(&xattr.name))).collect();
        let time = if entry.mtime_secs == 0 { "epoch".to_owned() } else { (entry.mtime_secs - TIME).to_string() };
        let (mode, uid, gid) = (entry.mode, entry.uid, entry.gid);
        lines.push(format!("{} {letter} {mode:o} {uid}:{gid} {time}{more}{xattrs}", text(entry.path)));
    }
    lines
}

/// A tar in the making.
pub(super) struct Tar(TarWriter<Vec<u8>>);

impl Tar {
    pub(super) fn new() -> Self {
        Self(TarWriter::new(Vec::new()))
    }

    pub(super) fn entry(mut self, entry: &Entry<'_>, content: &[u8]) -> Self {
        self.0.append_bytes(entry, content).expect("in memory");
        self
    }

    pub(super) fn file(self, path: &str, text: &str) -> Self {
        let kind = EntryKind::Regular { size_bytes: text.len() as u64 };
        self.entry(&Entry { mode: 0o644, ..plain(path, kind) }, text.as_bytes())
    }

    pub(super) fn dir(self, path: &str) -> Self {
        self.entry(&Entry { mode: 0o755, ..plain(path, EntryKind::Directory) }, b"")
    }

    pub(super) fn link(self, path: &str, target: &str) -> Self {
        self.entry(&Entry { mode: 0o777, ..plain(path, EntryKind::Symlink { target: target.as_bytes() }) }, b"")
    }

    pub(super) fn hard(self, path: &str, target: &str) -> Self {
        self.entry(&Entry { mode: 0o644, ..plain(path, EntryKind::Hardlink { target: target.as_bytes() }) }, b"")
    }

    pub(super) fn bytes(self) -> Vec<u8> {
        self.0.finish().expect("in memory")
    }
}

/// An entry of root's, at [`TIME`].
pub(super) fn plain<'a>(path: &'a str, kind: EntryKind<'a>) -> Entry<'a> {
    Entry { mtime_secs: TIME, ..Entry::new(path.as_bytes(), kind) }
}

/// Options with which everybody can unpack: who may not give files away notes their owners.
pub(crate) fn for_anybody() -> UnpackOptions {
    if !rustix::process::geteuid().is_root() {
        crate::owners::note_from_now_on();
    }
    UnpackOptions::default()
}
