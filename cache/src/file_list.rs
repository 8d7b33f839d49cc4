//! Lists of files that a copy or a mount selected, so that a step that runs again can name what changed.
//!
//! A list is a file of its own, named by the digest that stands for the selection in the step's key: records need not
//! hold it, and equal selections share it. Losing one costs the name of a file in a message and nothing else.
//! Format: `docs/formats/file-list-v1.md`.

use std::io::Write as _;
use std::path::PathBuf;

use oci::digest::hex;

use crate::error::{IoContext, Result};
use crate::id::ContentDigest;
use crate::layout::Bucket;
use crate::store::Store;

const MAGIC: &[u8; 8] = b"rbfls\0\0\x01";
/// Magic, number of entries, checksum of what follows.
const HEADER_BYTES: usize = 8 + 4 + 8;
/// Where the entries begin: behind the header and the shape.
const ENTRIES_AT: usize = HEADER_BYTES + 1;
/// What is kept of the digest of a file's content: enough to tell whether it is another one.
const CONTENT_BYTES: usize = 8;
/// A list that would be longer is not kept: about a million files.
const MAX_LIST_BYTES: usize = 32 << 20;
/// All lists together; the oldest go first.
const MAX_LISTS: usize = 4096;
const MAX_TOTAL_BYTES: u64 = 128 << 20;
/// The directory is looked over after one write in so many.
const TRIM_ONE_IN: u8 = 32;

/// A list of files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileList {
    /// What the paths are relative to.
    pub shape: ListShape,
    /// In the order of a walk.
    pub files: Vec<ListedFile>,
}

/// What the paths of a list are relative to. Equal selections of different places share a list, so that it cannot say where
/// its files were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListShape {
    /// The directory that was selected, whose contents these are.
    Contents = 1,
    /// The directory in which what was selected lies.
    Items = 2,
    /// The root of the source.
    Root = 3,
}

/// One file of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedFile {
    /// Without a leading slash; empty for the directory that was selected itself.
    pub path: Vec<u8>,
    /// The tar type flag: `0` file, `2` link, `5` directory, `3`, `4`, `6` and `s`.
    pub kind: u8,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The beginning of a digest of what is in it: bytes, link target, device number. Zero where there is nothing.
    pub content: [u8; CONTENT_BYTES],
}

/// Writes a list. Entries may come in any order; lists are shortest when they come as a walk does.
#[derive(Debug)]
pub struct FileListWriter {
    bytes: Vec<u8>,
    last: Vec<u8>,
    n_entries: u32,
}

impl FileListWriter {
    /// An empty list.
    pub fn new(shape: ListShape) -> Self {
        let mut bytes = vec![0; ENTRIES_AT];
        bytes[HEADER_BYTES] = shape as u8;
        Self { bytes, last: Vec::new(), n_entries: 0 }
    }

    /// Adds a file.
    pub fn push(&mut self, file: &ListedFile) {
        let ListedFile { path, kind, mode, uid, gid, content } = file;
        let n_shared = self.last.iter().zip(path).take_while(|(a, b)| a == b).count();
        for number in [n_shared, path.len() - n_shared] {
            put_number(&mut self.bytes, number as u64);
        }
        self.bytes.extend_from_slice(&path[n_shared..]);
        self.bytes.push(*kind);
        for number in [mode, uid, gid] {
            put_number(&mut self.bytes, u64::from(*number));
        }
        self.bytes.extend_from_slice(content);
        self.last.truncate(n_shared);
        self.last.extend_from_slice(&path[n_shared..]);
        self.n_entries += 1;
    }

    /// The bytes of the file.
    pub fn finish(self) -> Vec<u8> {
        let Self { mut bytes, n_entries, .. } = self;
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&n_entries.to_le_bytes());
        let checksum = checksum(&bytes[HEADER_BYTES..]);
        bytes[12..HEADER_BYTES].copy_from_slice(&checksum);
        bytes
    }
}

impl Store {
    /// Whether the list of a selection is kept; notes that it is still of use.
    pub fn has_file_list(&self, selection: &ContentDigest) -> bool {
        let times = rustix::fs::Timestamps {
            last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
            last_modification: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        };
        let path = self.file_list_path(selection);
        rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::empty()).is_ok()
    }

    /// Keeps the list of a selection, which a [`FileListWriter`] has made; not one of more than 32 MiB. Atomic; now and
    /// then the oldest lists go.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn put_file_list(&self, selection: &ContentDigest, list: &[u8]) -> Result<()> {
        if list.len() > MAX_LIST_BYTES {
            return Ok(());
        }
        let temporary = self.session()?.fresh_path("files");
        let path = self.file_list_path(selection);
        let mut file = std::fs::File::create(&temporary).during("create", &temporary)?;
        file.write_all(list).during("write", &temporary)?;
        std::fs::rename(&temporary, &path).during("rename", &temporary)?;
        // Digests are evenly spread.
        if selection.0[0].is_multiple_of(TRIM_ONE_IN) {
            self.trim_file_lists(MAX_LISTS, MAX_TOTAL_BYTES);
        }
        Ok(())
    }

    /// The list of a selection; `None` when it is not kept, or damaged.
    pub fn file_list(&self, selection: &ContentDigest) -> Option<FileList> {
        decode(&std::fs::read(self.file_list_path(selection)).ok()?)
    }

    fn file_list_path(&self, selection: &ContentDigest) -> PathBuf {
        self.inner.layout.bucket(Bucket::FileLists).join(hex(&selection.0))
    }

    /// Removes the lists that were not of use for longest until no more than so many are left. Failures are of no
    /// consequence: the next one who writes tries again.
    fn trim_file_lists(&self, max_lists: usize, max_bytes: u64) {
        let entries = std::fs::read_dir(self.inner.layout.bucket(Bucket::FileLists)).into_iter().flatten().flatten();
        let mut lists: Vec<_> = entries
            .filter_map(|entry| {
                let metadata = entry.metadata().ok()?;
                Some((metadata.modified().ok()?, metadata.len(), entry.path()))
            })
            .collect();
        lists.sort();
        let mut total_bytes: u64 = lists.iter().map(|(_, bytes, _)| bytes).sum();
        let mut n_lists = lists.len();
        for (_, bytes, path) in lists {
            if n_lists <= max_lists && total_bytes <= max_bytes {
                break;
            }
            drop(std::fs::remove_file(path));
            n_lists -= 1;
            total_bytes -= bytes;
        }
    }
}

fn checksum(body: &[u8]) -> [u8; 8] {
    let mut short = [0; 8];
    short.copy_from_slice(&blake3::hash(body).as_bytes()[..8]);
    short
}

/// Seven bits a byte, the lowest first; the highest bit says that more follow.
fn put_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// `None` when the bytes are not exactly what a [`FileListWriter`] made.
fn decode(bytes: &[u8]) -> Option<FileList> {
    let (header, body) = bytes.split_at_checked(HEADER_BYTES)?;
    if !header.starts_with(MAGIC) || header[12..] != checksum(body) {
        return None;
    }
    let n_entries = u32::from_le_bytes(header[8..12].try_into().ok()?);
    let (shape, mut rest) = body.split_first()?;
    let shape = [ListShape::Contents, ListShape::Items, ListShape::Root].into_iter().find(|it| *it as u8 == *shape)?;
    let mut files: Vec<ListedFile> = Vec::new();
    for _ in 0..n_entries {
        let last = files.last().map_or(&[][..], |file| &file.path);
        let (n_shared, n_own) = (take_number(&mut rest)?, take_number(&mut rest)?);
        let shared = last.get(..usize::try_from(n_shared).ok()?)?;
        let own = take(&mut rest, usize::try_from(n_own).ok()?)?;
        let path = [shared, own].concat();
        let kind = take(&mut rest, 1)?[0];
        let mut number = || u32::try_from(take_number(&mut rest)?).ok();
        let (mode, uid, gid) = (number()?, number()?, number()?);
        let content = take(&mut rest, CONTENT_BYTES)?.try_into().ok()?;
        files.push(ListedFile { path, kind, mode, uid, gid, content });
    }
    rest.is_empty().then_some(FileList { shape, files })
}

fn take<'a>(rest: &mut &'a [u8], n_bytes: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(n_bytes)?;
    *rest = left;
    Some(taken)
}

fn take_number(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check, content, store};

    fn file(path: &str, mode: u32) -> ListedFile {
        ListedFile { path: path.into(), kind: b'0', mode, uid: 0, gid: 70_000, content: [mode as u8; 8] }
    }

    fn list(files: &[ListedFile]) -> Vec<u8> {
        let mut writer = FileListWriter::new(ListShape::Items);
        files.iter().for_each(|file| writer.push(file));
        writer.finish()
    }

    #[test]
    fn lists_come_back_as_they_were_written() {
        let (_dir, store) = store();
        let files =
            [file("src/a.rs", 0o644), file("src/b.rs", 0o755), file("", 0), file("src/b", 1), file("x\u{e9}", 7)];
        assert!(!store.has_file_list(&content(1)));
        assert_eq!(store.file_list(&content(1)), None);
        store.put_file_list(&content(1), &list(&files)).unwrap();
        assert!(store.has_file_list(&content(1)));
        let found = store.file_list(&content(1)).unwrap();
        assert_eq!((found.shape, &found.files[..]), (ListShape::Items, &files[..]));
        store.put_file_list(&content(2), &list(&[])).unwrap();
        assert_eq!(store.file_list(&content(2)).unwrap().files, []);
        check(&store);
    }

    #[test]
    fn a_damaged_list_is_none() {
        let (_dir, store) = store();
        let whole = list(&[file("src/a.rs", 0o644), file("src/b.rs", 0o644)]);
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x41;
            store.put_file_list(&content(1), &bytes).unwrap();
            assert_eq!(store.file_list(&content(1)), None, "byte {at}");
            store.put_file_list(&content(1), &whole[..at]).unwrap();
            assert_eq!(store.file_list(&content(1)), None, "cut at {at}");
        }
    }

    #[test]
    fn the_lists_that_are_not_of_use_go_first() {
        let (_dir, store) = store();
        for seed in 1..=4 {
            store.put_file_list(&content(seed), &list(&[file("a", 1)])).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert!(store.has_file_list(&content(1)));
        store.trim_file_lists(2, u64::MAX);
        let left = [1, 2, 3, 4].map(|seed| store.file_list(&content(seed)).is_some());
        assert_eq!(left, [true, false, false, true]);
        store.trim_file_lists(2, 0);
        assert_eq!(store.file_list(&content(1)), None);
    }
}
