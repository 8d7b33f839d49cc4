//! The content of context files: read once, remembered by an index, never taken from a file that is being written.
//!
//! A file's state is identified by its [`Stamp`]. Kernel times advance in ticks, so a file that is written twice within
//! one tick can change without changing its stamp; a stamp is therefore trusted only when it is older than a tick at the
//! moment of reading (as git does with its index). All others are read again by the next build, and a copy compares
//! their bytes with the digest that went into the key.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cache::StatKey;
use rustix::fs::{Stat, fstat};

use super::source::Claim;
use super::{ContextDir, ContextError, Entry, LocalContext, Result};
use crate::view::{Node, NodeKind, ViewError};

/// A file that keeps changing is given up after so many attempts.
const MAX_ATTEMPTS: usize = 4;
/// Longest tick of a kernel clock that has nanosecond time stamps (100 Hz), doubled.
const FINE_TICK: Duration = Duration::from_millis(20);
/// Longest tick of a file system that keeps whole seconds (or even ones, FAT), plus some clock skew of a server.
const COARSE_TICK: Duration = Duration::from_secs(3);
const BUFFER_BYTES: usize = 256 << 10;

/// What identifies the state of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Number of bytes.
    pub size_bytes: u64,
    /// Modification time, whole seconds since the epoch.
    pub mtime_s: i64,
    /// Time of the last change of content or metadata, whole seconds since the epoch.
    pub ctime_s: i64,
    /// Nanoseconds of the modification time.
    pub mtime_ns: u32,
    /// Nanoseconds of the change time.
    pub ctime_ns: u32,
    /// Inode number.
    pub inode: u64,
    /// Device.
    pub device: u64,
}

/// What was read of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileContent {
    /// BLAKE3 of its bytes.
    pub digest: [u8; 32],
    /// Whether a change after the reading might leave the stamp as it is.
    pub is_racy: bool,
    /// When the reading began: nanoseconds since the epoch.
    pub read_at_ns: i64,
    /// The stamp of what was read, when the file had changed since its directory was read.
    pub newer_stamp: Option<Box<Stamp>>,
}

impl Stamp {
    /// The stamp that a `stat` shows.
    pub fn of_stat(stat: &Stat) -> Self {
        Self {
            size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
            mtime_s: stat.st_mtime,
            ctime_s: stat.st_ctime,
            mtime_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            ctime_ns: u32::try_from(stat.st_ctime_nsec).unwrap_or(0),
            inode: stat.st_ino,
            device: stat.st_dev,
        }
    }

    /// The same facts as the index wants them.
    pub(super) fn key(&self, entry: &Entry) -> StatKey {
        let join = |seconds: i64, nanoseconds: u32| seconds.saturating_mul(1_000_000_000) + i64::from(nanoseconds);
        StatKey {
            dev: self.device,
            inode: self.inode,
            size_bytes: self.size_bytes,
            mtime_ns: join(self.mtime_s, self.mtime_ns),
            ctime_ns: join(self.ctime_s, self.ctime_ns),
            mode: entry.node().meta.mode,
        }
    }

    /// Whether a change at `now` might not show in the stamp.
    ///
    /// Only the change time counts, because nobody can set it. One in the future means that the clocks disagree.
    pub fn is_racy(&self, now: SystemTime) -> bool {
        let tick = if self.ctime_ns == 0 { COARSE_TICK } else { FINE_TICK };
        let Ok(seconds) = u64::try_from(self.ctime_s) else { return false };
        let changed = UNIX_EPOCH + Duration::new(seconds, self.ctime_ns.min(999_999_999));
        now.duration_since(changed).is_ok_and(|age| age < tick) || changed > now
    }
}

/// The content of a file: known by now, from the index where the stamp is the same, else by reading it.
///
/// # Errors
/// [`ContextError::Changed`] for a file that does not hold still, and I/O errors.
pub(super) fn of_file<'a>(context: &LocalContext, dir: &ContextDir, entry: &'a Entry) -> Result<&'a FileContent> {
    if let Some(known) = entry.content() {
        return Ok(known);
    }
    let name = dir.name_of(entry);
    let path = dir.path().join(name);
    let scanned = entry.stamp();
    if let Some(digest) = context.index().and_then(|index| index.lookup(&path, &scanned.key(entry))) {
        let read_at_ns = context.opened_at_ns();
        entry.set_content(FileContent { digest, is_racy: false, read_at_ns, newer_stamp: None });
    } else if let Some(content) = context.linked().get(entry) {
        entry.set_content(content);
        context.note_news();
    } else {
        let (stamp, mut content) = read_settled(context, dir, name, &path)?;
        content.newer_stamp = (stamp != scanned).then(|| Box::new(stamp));
        context.linked().note(entry, &content);
        entry.set_content(content);
        context.note_news();
    }
    entry.content().ok_or(ContextError::Changed { path })
}

/// Keeps what a copy has learned of a file that it read before its key was made. `digest` is that of all bytes that went
/// into the layer, which were read while the file's stamp was that of the scan.
pub(super) fn learn(context: &LocalContext, dir: &ContextDir, name: &OsStr, digest: [u8; 32], began: SystemTime) {
    let Some(entry) = dir.entry(name) else { return };
    let is_racy = entry.stamp().is_racy(began);
    let content = FileContent { digest, is_racy, read_at_ns: nanoseconds(began), newer_stamp: None };
    context.linked().note(entry, &content);
    entry.set_content(content);
    context.note_news();
}

/// Contents of files that have several names, by inode: all of them have what was read of the first.
#[derive(Debug, Default)]
pub(super) struct Linked(Mutex<HashMap<(u64, u64), (Stamp, FileContent)>>);

impl Linked {
    /// What is known of a file by another of its names.
    fn get(&self, entry: &Entry) -> Option<FileContent> {
        let Node { meta, .. } = entry.node();
        if meta.n_links < 2 {
            return None;
        }
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&meta.inode).filter(|(stamp, _)| *stamp == entry.stamp()).map(|(_, content)| content.clone())
    }

    /// Keeps what was read by one of its names, if the file has been as it was when its directory was read.
    fn note(&self, entry: &Entry, content: &FileContent) {
        let Node { meta, .. } = entry.node();
        if meta.n_links < 2 || content.newer_stamp.is_some() {
            return;
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(meta.inode).or_insert_with(|| (entry.stamp(), content.clone()));
    }
}

/// What a file that is open must contain, judged by its state now.
///
/// When the stamp is still that of the scan (or of the reading) and was not racy, the bytes are proven; else they must be
/// compared with the digest that went into the key. Where there is none yet, the bytes that are read will make the key.
///
/// # Errors
/// [`ContextError::Changed`] when it is no longer what went into the key; I/O errors.
pub(super) fn check(context: &LocalContext, dir: &ContextDir, name: &OsStr, file: &File) -> Result<Claim> {
    let path = || dir.path().join(name);
    let changed = || ContextError::Changed { path: path() };
    let entry = dir.entry(name).ok_or_else(changed)?;
    let stat = fstat(file).map_err(|e| ViewError::io("stat", context.host_path(&path()), e))?;
    let stamp = Stamp::of_stat(&stat);
    let is_same = stamp == entry.stamp();
    let digest = entry.content().map(|content| content.digest);
    let is_proven = is_same && entry.content().is_none_or(|content| !content.is_racy);
    let is_other_size = stamp.size_bytes != entry.stamp().size_bytes;
    if (digest.is_none() && !is_same) || is_other_size || NodeKind::of_mode(stat.st_mode) != NodeKind::File {
        return Err(changed());
    }
    Ok(Claim { stamp: Some(stamp), digest, is_proven })
}

/// Reads a file until its stamp is the same before and after.
fn read_settled(context: &LocalContext, dir: &ContextDir, name: &OsStr, path: &Path) -> Result<(Stamp, FileContent)> {
    let host_path = || context.host_path(path);
    settle(path, &host_path, || context.open_file(dir, name), hash_reader)
}

/// Opens and hashes until nothing changes meanwhile. Opened anew each time: editors replace files by renaming.
fn settle(
    path: &Path,
    host_path: &dyn Fn() -> PathBuf,
    mut open: impl FnMut() -> crate::view::Result<File>,
    mut hash: impl FnMut(&mut File) -> io::Result<([u8; 32], u64)>,
) -> Result<(Stamp, FileContent)> {
    let io = |operation, source: io::Error| ViewError::io(operation, host_path(), source);
    for _ in 0..MAX_ATTEMPTS {
        let mut file = open()?;
        let before_reading = SystemTime::now();
        let before = fstat(&file).map_err(|e| io("stat", e.into()))?;
        if NodeKind::of_mode(before.st_mode) != NodeKind::File {
            break;
        }
        let before = Stamp::of_stat(&before);
        let (digest, _) = hash(&mut file).map_err(|e| io("read", e))?;
        let after = fstat(&file).map_err(|e| io("stat", e.into()))?;
        if Stamp::of_stat(&after) == before {
            let is_racy = before.is_racy(before_reading);
            let read_at_ns = nanoseconds(before_reading);
            return Ok((before, FileContent { digest, is_racy, read_at_ns, newer_stamp: None }));
        }
    }
    Err(ContextError::Changed { path: path.to_owned() })
}

/// Nanoseconds since the epoch.
pub(super) fn nanoseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// BLAKE3 of everything that is left in `file`, and how much that was.
pub(super) fn hash_reader(file: &mut File) -> io::Result<([u8; 32], u64)> {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    let mut hasher = blake3::Hasher::new();
    // Not a mapping: reading beyond the end of a file that was truncated meanwhile would kill the process.
    BUFFER.with_borrow_mut(|buffer| {
        buffer.resize(BUFFER_BYTES, 0);
        loop {
            match file.read(buffer)? {
                0 => return io::Result::Ok(()),
                n => hasher.update(&buffer[..n]),
            };
        }
    })?;
    Ok((*hasher.finalize().as_bytes(), hasher.count()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_until_it_holds_still() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("busy");
        for (n_writes, settles) in [(0, true), (1, true), (MAX_ATTEMPTS - 1, true), (MAX_ATTEMPTS, false)] {
            std::fs::write(&path, "first").unwrap();
            let mut n_reads = 0;
            let open = || Ok(File::open(&path).unwrap());
            let outcome = settle(Path::new("busy"), &|| path.clone(), open, |file| {
                n_reads += 1;
                if n_reads <= n_writes {
                    std::fs::write(&path, "longer ".repeat(n_reads)).unwrap();
                }
                hash_reader(file)
            });
            match outcome {
                Ok((stamp, content)) => {
                    assert!(settles, "{n_writes}");
                    let bytes = std::fs::read(&path).unwrap();
                    assert_eq!(content.digest, *blake3::hash(&bytes).as_bytes());
                    assert_eq!(stamp.size_bytes, bytes.len() as u64);
                }
                Err(ContextError::Changed { path }) => {
                    assert!(!settles && path == Path::new("busy"), "{n_writes}");
                }
                Err(other) => panic!("{other}"),
            }
        }
    }

    #[test]
    fn young_stamps_are_racy() {
        let now = UNIX_EPOCH + Duration::new(1_000_000, 500_000_000);
        let stamp = |ctime_s, ctime_ns| Stamp {
            size_bytes: 0,
            mtime_s: 0,
            ctime_s,
            mtime_ns: 0,
            ctime_ns,
            inode: 1,
            device: 1,
        };
        let cases = [
            ((1_000_000, 400_000_000), false),
            ((1_000_000, 490_000_000), true),
            ((1_000_000, 500_000_000), true),
            ((1_000_001, 0), true),
            ((999_999, 0), true),
            ((999_990, 0), false),
            ((0, 1), false),
            ((-5, 1), false),
        ];
        for ((s, ns), want) in cases {
            assert_eq!(stamp(s, ns).is_racy(now), want, "{s}.{ns}");
        }
    }
}
