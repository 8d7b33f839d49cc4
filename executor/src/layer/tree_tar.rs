//! Tree → tar: writes an overlay upper directory as a layer.
//!
//! Spec: `spec/engine.md` §1.10.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;

use oci::layer::{Entry, EntryKind, TarWriter, Xattr};
use rustix::fs::{FileType, Stat, major, minor, readlinkat};

use super::dir;
use super::error::{Result, TreeError, as_path};
use super::lower::LowerView;
use super::walk::{DirStep, LeafStep, Step, Walk, join, last_component, load_ahead};

/// Files up to this size are read ahead, with one read into the batch's buffer.
const SMALL_FILE_BYTES: u64 = 64 * 1024;
/// What one batch reads ahead at most; the files behind are read when their turn comes.
const BATCH_CONTENT_BYTES: usize = 1024 * 1024;

/// Prefix of the name of a deletion marker.
const WHITEOUT_PREFIX: &[u8] = b".wh.";

/// Writes `tree`, an overlay upper directory over `lower`, as the entries of a layer.
///
/// Entries come in lexical order. Directories that are as below appear only when something in them does; a directory that
/// hides what is below is expanded to deletions; sockets are left out; of all xattrs only `security.capability` is written;
/// times are whole seconds. The root itself is never an entry. The bytes depend on the tree and on `lower` alone.
///
/// # Errors
/// [`TreeError::Io`]; [`TreeError::Tar`] when a file changes its size while it is read; [`TreeError::Redirected`] for a tree
/// that was mounted with `redirect_dir` or `metacopy`.
pub fn write_tree<W: Write>(tree: &Path, lower: &dyn LowerView, sink: &mut TarWriter<W>) -> Result<()> {
    let walk = Walk::new(tree, Some(lower))?;
    let mut output = Output { sink, lower, parents: Vec::new(), links: HashMap::new(), whiteout: Vec::new() };
    load_ahead(walk, load, |batch: Batch| batch.entries.iter().try_for_each(|entry| output.take(entry, &batch.content)))
}

/// Entries with what was read of them.
struct Batch {
    entries: Vec<Loaded>,
    /// Contents and link targets.
    content: Vec<u8>,
}

enum Loaded {
    Dir(DirStep),
    Leaf(Leaf),
    Hidden(Vec<u8>),
}

struct Leaf {
    step: LeafStep,
    stat: Stat,
    capability: Option<Vec<u8>>,
    content: Content,
}

enum Content {
    /// In the batch: the whole file, or the target of a symlink.
    Here(Range<usize>),
    /// To be read when its turn comes, or not at all.
    Later,
}

/// Loads a batch. Runs on the pool.
fn load(steps: Vec<Step>) -> Result<Batch> {
    let mut batch = Batch { entries: Vec::with_capacity(steps.len()), content: Vec::new() };
    for step in steps {
        let loaded = match step {
            Step::Dir(dir) => Loaded::Dir(dir),
            Step::Hidden(path) => Loaded::Hidden(path),
            Step::Leaf(leaf) => Loaded::Leaf(load_leaf(leaf, &mut batch.content)?),
        };
        batch.entries.push(loaded);
    }
    Ok(batch)
}

fn load_leaf(step: LeafStep, buffer: &mut Vec<u8>) -> Result<Leaf> {
    let at = |operation| TreeError::io_at(operation, &step.path);
    match step.kind {
        FileType::RegularFile => {
            let fd = dir::open_file(&step.parent, step.name()).map_err(at("open"))?;
            let stat = dir::fstat(&fd).map_err(at("stat"))?;
            let xattrs = dir::own_xattrs(&fd).map_err(at("read xattrs of"))?;
            if xattrs.is_redirected {
                return Err(TreeError::Redirected { path: as_path(&step.path).to_owned() });
            }
            let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
            let is_small = size_bytes <= SMALL_FILE_BYTES && buffer.len() < BATCH_CONTENT_BYTES;
            // Another name of the file may have been written before: then its content is not wanted.
            let content = match is_small && stat.st_nlink == 1 {
                true => Content::Here(read_whole(&fd, size_bytes as usize, buffer).map_err(at("read"))?),
                false => Content::Later,
            };
            Ok(Leaf { stat, capability: xattrs.capability, content, step })
        }
        FileType::Symlink => {
            let stat = dir::stat(&step.parent, step.name()).map_err(at("stat"))?;
            let target = readlinkat(&step.parent, step.name(), Vec::new()).map_err(at("read the link"))?;
            let start = buffer.len();
            buffer.extend_from_slice(target.as_bytes());
            Ok(Leaf { stat, capability: None, content: Content::Here(start..buffer.len()), step })
        }
        _ => {
            let stat = dir::stat(&step.parent, step.name()).map_err(at("stat"))?;
            Ok(Leaf { stat, capability: None, content: Content::Later, step })
        }
    }
}

/// Appends a file of `size` bytes to `buffer`; what it has grown by meanwhile is left out, what is missing is noticed by
/// the writer.
fn read_whole(fd: &OwnedFd, size: usize, buffer: &mut Vec<u8>) -> rustix::io::Result<Range<usize>> {
    let start = buffer.len();
    buffer.resize(start + size, 0);
    let mut end = start;
    while end < start + size {
        match rustix::io::read(fd, &mut buffer[end..start + size]) {
            Ok(0) => break,
            Ok(n) => end += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(end);
    Ok(start..end)
}

/// Turns what was loaded into entries, in order.
struct Output<'a, W: Write> {
    sink: &'a mut TarWriter<W>,
    lower: &'a dyn LowerView,
    /// Directories that contain the entry at hand, outermost first.
    parents: Vec<Parent>,
    /// The first path of every inode with several names.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// Scratch: path of a deletion marker.
    whiteout: Vec<u8>,
}

struct Parent {
    path: Vec<u8>,
    meta: Meta,
    is_written: bool,
}

/// What an entry takes over from a file.
struct Meta {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime_secs: i64,
    xattrs: Vec<Xattr>,
}

impl<W: Write> Output<'_, W> {
    fn take(&mut self, loaded: &Loaded, content: &[u8]) -> Result<()> {
        match loaded {
            Loaded::Dir(dir) => {
                self.leave_for(&dir.path);
                let meta = Meta::new(&dir.stat, dir.capability.as_deref());
                self.parents.push(Parent { path: dir.path.clone(), meta, is_written: false });
                if dir.is_changed { self.write_parents() } else { Ok(()) }
            }
            Loaded::Hidden(path) => {
                self.leave_for(path);
                self.write_whiteout(path)
            }
            Loaded::Leaf(leaf) => {
                self.leave_for(&leaf.step.path);
                self.take_leaf(leaf, content)
            }
        }
    }

    /// Leaves the directories that do not contain `path`.
    fn leave_for(&mut self, path: &[u8]) {
        let contains = |dir: &[u8]| path.strip_prefix(dir).is_some_and(|rest| rest.starts_with(b"/"));
        while self.parents.last().is_some_and(|parent| !contains(&parent.path)) {
            self.parents.pop();
        }
    }

    fn take_leaf(&mut self, leaf: &Leaf, content: &[u8]) -> Result<()> {
        let path = &leaf.step.path;
        if dir::is_whiteout(&leaf.stat) {
            let is_below = leaf.step.may_be_below
                && self
                    .lower
                    .metadata(as_path(path))
                    .map_err(|error| TreeError::io("look below", as_path(path), error))?
                    .is_some();
            return if is_below { self.write_whiteout(path) } else { Ok(()) };
        }
        let Some(kind) = kind_of(leaf, content) else { return Ok(()) };
        self.write_parents()?;
        let meta = Meta::new(&leaf.stat, leaf.capability.as_deref());
        if leaf.stat.st_nlink > 1 {
            let inode = (leaf.stat.st_dev, leaf.stat.st_ino);
            if let Some(first) = self.links.get(&inode) {
                let entry = meta.entry(path, EntryKind::Hardlink { target: first });
                return Ok(self.sink.append_bytes(&entry, b"")?);
            }
            self.links.insert(inode, path.clone());
        }
        let entry = meta.entry(path, kind);
        match &leaf.content {
            Content::Here(range) if entry.content_bytes() > 0 => {
                Ok(self.sink.append_bytes(&entry, &content[range.clone()])?)
            }
            Content::Later if entry.content_bytes() > 0 => {
                let fd = dir::open_file(&leaf.step.parent, leaf.step.name()).map_err(TreeError::io_at("open", path))?;
                Ok(self.sink.append(&entry, &mut File::from(fd))?)
            }
            Content::Here(_) | Content::Later => Ok(self.sink.append_bytes(&entry, b"")?),
        }
    }

    /// Writes the directories around the entry at hand that have not been written.
    fn write_parents(&mut self) -> Result<()> {
        for parent in self.parents.iter_mut().filter(|parent| !parent.is_written) {
            self.sink.append_bytes(&parent.meta.entry(&parent.path, EntryKind::Directory), b"")?;
            parent.is_written = true;
        }
        Ok(())
    }

    fn write_whiteout(&mut self, path: &[u8]) -> Result<()> {
        self.write_parents()?;
        let name = last_component(path);
        let parent = path[..path.len() - name.len()].strip_suffix(b"/").unwrap_or_default();
        self.whiteout = join(parent, &[WHITEOUT_PREFIX, name].concat());
        Ok(self.sink.append_bytes(&Entry::whiteout(&self.whiteout), b"")?)
    }
}

impl Meta {
    fn new(stat: &Stat, capability: Option<&[u8]>) -> Self {
        let xattr = |value: &[u8]| Xattr { name: dir::CAPABILITY.as_bytes().to_vec(), value: value.to_vec() };
        Self {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime_secs: stat.st_mtime,
            xattrs: capability.into_iter().map(xattr).collect(),
        }
    }

    fn entry<'a>(&'a self, path: &'a [u8], kind: EntryKind<'a>) -> Entry<'a> {
        let Self { mode, uid, gid, mtime_secs, ref xattrs } = *self;
        Entry { path, kind, mode, uid, gid, mtime_secs, mtime_nanos: 0, xattrs }
    }
}

/// What a leaf is in a tar; `None` for a socket.
fn kind_of<'a>(leaf: &'a Leaf, content: &'a [u8]) -> Option<EntryKind<'a>> {
    let (major, minor) = (major(leaf.stat.st_rdev), minor(leaf.stat.st_rdev));
    Some(match FileType::from_raw_mode(leaf.stat.st_mode) {
        FileType::RegularFile => EntryKind::Regular { size_bytes: u64::try_from(leaf.stat.st_size).unwrap_or(0) },
        FileType::Symlink => match &leaf.content {
            Content::Here(range) => EntryKind::Symlink { target: &content[range.clone()] },
            Content::Later => return None,
        },
        FileType::CharacterDevice => EntryKind::Char { major, minor },
        FileType::BlockDevice => EntryKind::Block { major, minor },
        FileType::Fifo => EntryKind::Fifo,
        FileType::Directory | FileType::Socket | FileType::Unknown => return None,
    })
}

#[cfg(test)]
mod tests;
