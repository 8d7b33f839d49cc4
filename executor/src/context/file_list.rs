//! The list of files behind a selection digest, made from the records that were hashed: what explanations name.
//!
//! Made only when it is wanted, so that a copy whose files are known costs no more for it.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cache::{FileListWriter, ListShape, ListedFile};

use super::digest::Mark;

/// A group of records, and where its files are.
#[derive(Debug)]
pub(super) struct Group {
    /// Of its first byte among the records.
    pub(super) start: usize,
    pub(super) mark: Mark,
    /// The directory of a base of `--parents`; else the name of what was selected.
    place: PathBuf,
}

impl Group {
    pub(super) fn new(start: usize, mark: Mark, place: &Path) -> Self {
        Self { start, mark, place: place.strip_prefix("/").unwrap_or(place).to_owned() }
    }
}

/// The list of all files in `records`, as a file of the store.
pub(super) fn list(records: &[u8], groups: &[Group]) -> Vec<u8> {
    let shape = match groups {
        [Group { mark: Mark::Contents | Mark::Root, .. }] => ListShape::Contents,
        [Group { mark: Mark::Base, .. }, ..] => ListShape::Root,
        _ => ListShape::Items,
    };
    let mut writer = FileListWriter::new(shape);
    let ends = groups.iter().skip(1).map(|group| group.start).chain([records.len()]);
    for (group, end) in groups.iter().zip(ends) {
        // A leaf has its name in its record.
        let prefix = match (shape, group.mark) {
            (ListShape::Contents, _) | (_, Mark::Leaf) => &[][..],
            _ => group.place.as_os_str().as_bytes(),
        };
        let Some(bytes) = records.get(group.start..end) else { break };
        // The encoding is ours, from a moment ago: what does not fit ends the list, and is a bug.
        let is_whole = group_files(&mut Reader(bytes), group.mark, prefix, &mut writer);
        debug_assert!(is_whole.is_some(), "records are read as they were written");
    }
    writer.finish()
}

fn group_files(reader: &mut Reader<'_>, mark: Mark, prefix: &[u8], writer: &mut FileListWriter) -> Option<()> {
    reader.take(1)?;
    if let Mark::Root = mark {
        let (kind, mode, uid, gid) = reader.metadata()?;
        writer.push(&ListedFile { path: prefix.to_vec(), kind, mode, uid, gid, content: [0; 8] });
    }
    while !reader.0.is_empty() {
        let (kind, mode, uid, gid) = reader.metadata()?;
        let name = reader.field()?;
        let path = if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() };
        let content = reader.content(kind)?;
        writer.push(&ListedFile { path, kind, mode, uid, gid, content });
    }
    Some(())
}

/// Reads records as `docs/formats/selection-digest-v1.md` has them.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n_bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n_bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn field(&mut self) -> Option<&'a [u8]> {
        let len = u64::from_le_bytes(self.take(8)?.try_into().ok()?);
        self.take(usize::try_from(len).ok()?)
    }

    /// Kind, mode, uid and gid; the size says nothing that the content does not.
    fn metadata(&mut self) -> Option<(u8, u32, u32, u32)> {
        let kind = self.take(1)?[0];
        let numbers = (self.number()?, self.number()?, self.number()?);
        self.take(8)?;
        Some((kind, numbers.0, numbers.1, numbers.2))
    }

    /// A digest of what the kind has.
    fn content(&mut self, kind: u8) -> Option<[u8; 8]> {
        let mut short = [0; 8];
        match kind {
            b'0' => {
                let capability = self.field()?;
                let digest = self.take(32)?;
                let whole = if capability.is_empty() { digest } else { &hashed(&[capability, digest]) };
                short.copy_from_slice(&whole[..8]);
            }
            b'5' => {
                let capability = self.field()?;
                if !capability.is_empty() {
                    short.copy_from_slice(&hashed(&[capability])[..8]);
                }
            }
            b'2' => short.copy_from_slice(&hashed(&[self.field()?])[..8]),
            b'3' | b'4' => short.copy_from_slice(self.take(8)?),
            _ => {}
        }
        Some(short)
    }
}

fn hashed(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}
