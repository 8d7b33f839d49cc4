//! The digest of a layer's content: what keys see of it. Format `content-digest-v1`
//! (`docs/formats/content-digest-v1.md`).
//!
//! Two layers that differ only in times taken from the clock have the same digest, so that a step that runs again and
//! writes the same files invalidates nothing behind it.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cache::ContentDigest;
use oci::layer::{Entry, EntryKind, Xattr};
use rustix::fs::{FileType, Stat, major, minor, readlinkat};

use super::dir;
use super::error::{Result, TreeError, as_path};
use super::walk::{DirStep, LeafStep, Step, Walk, load_ahead};

/// Context string of the BLAKE3 key: names the format and its version.
pub const CONTEXT: &str = "rbuild content of a built layer, v1";
/// Files up to this size are read with one read; longer ones are mapped and hashed by several threads.
const SMALL_FILE_BYTES: u64 = 256 * 1024;
/// File systems stamp files with the time of the last timer tick, up to 10 ms before the clock's.
const CLOCK_SLACK: Duration = Duration::from_millis(20);

/// Digests the content of a tree: an overlay upper directory, or any directory.
///
/// Whiteouts and opaque directories count; sockets, owner names, directory times and all xattrs but `security.capability` do
/// not. `clock_window` is when the step that made the tree ran: the time of a file or symlink counts, in whole seconds, when
/// it lies outside of it, because it was set on purpose then. With `None` no times count.
///
/// # Errors
/// [`TreeError::Io`]; [`TreeError::Redirected`] as for [`super::write_tree`].
pub fn content_digest(tree: &Path, clock_window: Option<(SystemTime, SystemTime)>) -> Result<ContentDigest> {
    let walk = Walk::new(tree, None)?;
    let window = clock_window.map(Window::new);
    let mut output = Output { hasher: ContentHasher::new(), links: HashMap::new(), window };
    load_ahead(walk, load, |batch: Vec<Loaded>| {
        batch.iter().for_each(|loaded| output.take(loaded));
        Ok(())
    })?;
    Ok(output.hasher.finish())
}

/// Digests the content of a layer entry by entry, for layers that are written straight as a tar.
///
/// Entries must come in the order of [`super::write_tree`]; then the digest equals that of the same layer as a tree.
pub struct ContentHasher(blake3::Hasher);

/// What counts of an entry beside its metadata.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContentFacts {
    /// BLAKE3 digest of a regular file's bytes; without meaning for everything else.
    pub file: [u8; 32],
    /// Whether a directory hides what is below.
    pub is_opaque: bool,
    /// Whether the modification time of a file or symlink was set on purpose.
    pub has_own_time: bool,
}

impl ContentHasher {
    /// The digest of no entries.
    pub fn new() -> Self {
        Self(blake3::Hasher::new_derive_key(CONTEXT))
    }

    /// Adds an entry. Of its xattrs only `security.capability` counts.
    pub fn entry(&mut self, entry: &Entry<'_>, facts: &ContentFacts) {
        let tag = match entry.kind {
            EntryKind::Regular { .. } => b'0',
            EntryKind::Hardlink { .. } => b'1',
            EntryKind::Symlink { .. } => b'2',
            EntryKind::Char { .. } => b'3',
            EntryKind::Block { .. } => b'4',
            EntryKind::Directory => b'5',
            EntryKind::Fifo => b'6',
        };
        self.start(tag, entry.path);
        if let EntryKind::Hardlink { target } = entry.kind {
            return self.bytes(target);
        }
        self.number(entry.mode);
        self.number(entry.uid);
        self.number(entry.gid);
        match entry.kind {
            EntryKind::Regular { size_bytes } => {
                self.0.update(&size_bytes.to_le_bytes());
                self.0.update(&facts.file);
                self.capability(entry.xattrs);
                self.time(entry, facts);
            }
            EntryKind::Symlink { target } => {
                self.bytes(target);
                self.time(entry, facts);
            }
            EntryKind::Char { major, minor } | EntryKind::Block { major, minor } => {
                self.number(major);
                self.number(minor);
            }
            EntryKind::Directory => {
                self.0.update(&[u8::from(facts.is_opaque)]);
                self.capability(entry.xattrs);
            }
            EntryKind::Fifo | EntryKind::Hardlink { .. } => {}
        }
    }

    /// Adds a deletion of the name `path`.
    pub fn whiteout(&mut self, path: &[u8]) {
        self.start(b'w', path);
    }

    /// The digest of all entries.
    pub fn finish(&self) -> ContentDigest {
        ContentDigest(*self.0.finalize().as_bytes())
    }

    fn start(&mut self, tag: u8, path: &[u8]) {
        self.0.update(&[tag]);
        self.bytes(path);
    }

    fn number(&mut self, number: u32) {
        self.0.update(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn capability(&mut self, xattrs: &[Xattr]) {
        let capability = xattrs.iter().find(|xattr| xattr.name == dir::CAPABILITY.as_bytes());
        self.bytes(capability.map_or(&[], |xattr| &xattr.value));
    }

    fn time(&mut self, entry: &Entry<'_>, facts: &ContentFacts) {
        self.0.update(&[u8::from(facts.has_own_time)]);
        if facts.has_own_time {
            self.0.update(&entry.mtime_secs.to_le_bytes());
        }
    }
}

impl Default for ContentHasher {
    fn default() -> Self {
        Self::new()
    }
}

/// The seconds in which a step ran, both ends included.
#[derive(Clone, Copy)]
struct Window {
    first_sec: i64,
    last_sec: i64,
}

impl Window {
    fn new((start, end): (SystemTime, SystemTime)) -> Self {
        let start = start.checked_sub(CLOCK_SLACK).unwrap_or(start);
        let end = end.checked_add(CLOCK_SLACK).unwrap_or(end);
        Self { first_sec: whole_seconds(start), last_sec: whole_seconds(end) }
    }

    fn contains(self, mtime_secs: i64) -> bool {
        (self.first_sec..=self.last_sec).contains(&mtime_secs)
    }
}

/// Seconds since the epoch, rounded down.
fn whole_seconds(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |secs| -secs - 1),
    }
}

enum Loaded {
    Dir(DirStep),
    Leaf { path: Vec<u8>, stat: Stat, capability: Option<Vec<u8>>, content: Content },
}

enum Content {
    File([u8; 32]),
    Link(Vec<u8>),
    None,
}

/// Loads and hashes a batch. Runs on the pool.
fn load(steps: Vec<Step>) -> Result<Vec<Loaded>> {
    let mut buffer = Vec::new();
    let mut batch = Vec::with_capacity(steps.len());
    for step in steps {
        match step {
            Step::Dir(dir) => batch.push(Loaded::Dir(dir)),
            Step::Leaf(leaf) => batch.push(load_leaf(leaf, &mut buffer)?),
            // Only walks that ask about below come across these.
            Step::Hidden(_) => {}
        }
    }
    Ok(batch)
}

fn load_leaf(step: LeafStep, buffer: &mut Vec<u8>) -> Result<Loaded> {
    let at = |operation| TreeError::io_at(operation, &step.path);
    let mut capability = None;
    let (stat, content) = match step.kind {
        FileType::RegularFile => {
            let fd = dir::open_file(&step.parent, step.name()).map_err(at("open"))?;
            let stat = dir::fstat(&fd).map_err(at("stat"))?;
            let xattrs = dir::own_xattrs(&fd).map_err(at("read xattrs of"))?;
            if xattrs.is_redirected {
                return Err(TreeError::Redirected { path: as_path(&step.path).to_owned() });
            }
            capability = xattrs.capability;
            let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
            let digest = file_digest(fd, size_bytes, buffer);
            (stat, Content::File(digest.map_err(|error| TreeError::io("read", as_path(&step.path), error))?))
        }
        FileType::Symlink => {
            let stat = dir::stat(&step.parent, step.name()).map_err(at("stat"))?;
            let target = readlinkat(&step.parent, step.name(), Vec::new()).map_err(at("read the link"))?;
            (stat, Content::Link(target.into_bytes()))
        }
        _ => (dir::stat(&step.parent, step.name()).map_err(at("stat"))?, Content::None),
    };
    Ok(Loaded::Leaf { path: step.path, stat, capability, content })
}

fn file_digest(fd: OwnedFd, size_bytes: u64, buffer: &mut Vec<u8>) -> std::io::Result<[u8; 32]> {
    if size_bytes > SMALL_FILE_BYTES {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let mut hasher = blake3::Hasher::new();
        hasher.update_mmap_rayon(path)?;
        return Ok(*hasher.finalize().as_bytes());
    }
    buffer.clear();
    buffer.reserve(size_bytes as usize);
    File::from(fd).take(size_bytes).read_to_end(buffer)?;
    Ok(*blake3::hash(buffer).as_bytes())
}

struct Output {
    hasher: ContentHasher,
    /// The first path of every inode with several names.
    links: HashMap<(u64, u64), Vec<u8>>,
    window: Option<Window>,
}

impl Output {
    fn take(&mut self, loaded: &Loaded) {
        match loaded {
            Loaded::Dir(dir) => {
                let xattrs = xattrs(dir.capability.as_deref());
                let facts = ContentFacts { is_opaque: dir.is_opaque, ..ContentFacts::default() };
                self.hasher.entry(&entry(&dir.path, EntryKind::Directory, &dir.stat, &xattrs), &facts);
            }
            Loaded::Leaf { path, stat, .. } if dir::is_whiteout(stat) => self.hasher.whiteout(path),
            Loaded::Leaf { path, stat, capability, content } => {
                let Some(kind) = kind_of(stat, content) else { return };
                if stat.st_nlink > 1 {
                    if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                        let link = Entry::new(path, EntryKind::Hardlink { target: first });
                        return self.hasher.entry(&link, &ContentFacts::default());
                    }
                    self.links.insert((stat.st_dev, stat.st_ino), path.clone());
                }
                let file = if let Content::File(digest) = content { *digest } else { [0; 32] };
                let has_own_time = self.window.is_some_and(|window| !window.contains(stat.st_mtime));
                let xattrs = xattrs(capability.as_deref());
                self.hasher
                    .entry(&entry(path, kind, stat, &xattrs), &ContentFacts { file, is_opaque: false, has_own_time });
            }
        }
    }
}

fn entry<'a>(path: &'a [u8], kind: EntryKind<'a>, stat: &Stat, xattrs: &'a [Xattr]) -> Entry<'a> {
    Entry {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime_secs: stat.st_mtime,
        xattrs,
        ..Entry::new(path, kind)
    }
}

fn xattrs(capability: Option<&[u8]>) -> Vec<Xattr> {
    let xattr = |value: &[u8]| Xattr { name: dir::CAPABILITY.as_bytes().to_vec(), value: value.to_vec() };
    capability.into_iter().map(xattr).collect()
}

/// What counts of a leaf's type; `None` for a socket.
fn kind_of<'a>(stat: &Stat, content: &'a Content) -> Option<EntryKind<'a>> {
    let (major, minor) = (major(stat.st_rdev), minor(stat.st_rdev));
    Some(match (FileType::from_raw_mode(stat.st_mode), content) {
        (FileType::Symlink, Content::Link(target)) => EntryKind::Symlink { target },
        (FileType::RegularFile, _) => EntryKind::Regular { size_bytes: u64::try_from(stat.st_size).unwrap_or(0) },
        (FileType::CharacterDevice, _) => EntryKind::Char { major, minor },
        (FileType::BlockDevice, _) => EntryKind::Block { major, minor },
        (FileType::Fifo, _) => EntryKind::Fifo,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
