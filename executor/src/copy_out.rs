//! Copies what layers show into a directory, with owners, modes, times and xattrs.
//!
//! Names of one file become files of their own: overlayfs takes them apart, too, as soon as one of them is changed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use solver::OpError;

use crate::owners;
use crate::view::{DirView, Metadata, Node, NodeKind, RootView, ViewError};

/// Why something was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The layers could not be read.
    #[error(transparent)]
    View(#[from] ViewError),
    /// There is no such path, in BuildKit's words.
    #[error("failed to compute cache key: \"{path}\": not found")]
    Missing {
        /// As asked for.
        path: String,
    },
    /// The copy could not be made.
    #[error("cannot {operation} `{}`: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// `stop` said so.
    #[error("the copy was stopped")]
    Stopped,
}

impl From<CopyError> for OpError {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::View(error) => error.into(),
            CopyError::Missing { .. } => Self::input(error.to_string()),
            CopyError::Io { .. } => Self::environment(error.to_string()),
            CopyError::Stopped => Self::cancelled(),
        }
    }
}

impl CopyError {
    fn at<E: Into<io::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |error| Self::Io { operation, path, source: error.into() }
    }
}

/// Copies what is at `path` in the chain `lower` (base first), links followed inside of it, to `dest`: into the existing
/// directory `dest`, which takes on the metadata, if it is a directory, and under that new name if it is anything else.
/// Devices, pipes and sockets only with `specials`. `stop` is asked between files. Blocks.
///
/// # Errors
/// [`CopyError`]; what was copied so far stays.
pub(crate) fn copy_out(
    lower: &[PathBuf],
    path: &Path,
    dest: &Path,
    specials: bool,
    stop: &dyn Fn() -> bool,
) -> Result<(), CopyError> {
    let view = RootView::open(lower)?;
    let found = view.resolve(path)?;
    let copier = Copier { specials, stop };
    if let Some(directory) = view.dir(&found.path)? {
        let to = open_directory(dest).map_err(CopyError::at("open", dest))?;
        copier.contents(&directory, &to, dest)?;
        return describe_directory(&directory, &to, dest);
    }
    let missing = || CopyError::Missing { path: path.display().to_string() };
    let parts = found.path.parent().zip(found.path.file_name()).zip(dest.parent()).zip(dest.file_name());
    let (((parent, name), directory), new_name) = parts.ok_or_else(missing)?;
    let from = view.dir(parent)?.ok_or_else(missing)?;
    let node = from.lookup(name)?.ok_or_else(missing)?;
    let to = open_directory(directory).map_err(CopyError::at("open", directory))?;
    copier.leaf((&from, name), &node, (&to, new_name), dest)
}

/// Copies the entry `name` of the directory `from`, which is no directory, to `dest`; it is not followed if it is a link.
///
/// # Errors
/// [`CopyError`].
pub(crate) fn copy_entry(from: &Path, name: &OsStr, dest: &Path) -> Result<(), CopyError> {
    // A directory is a root of one layer.
    let view = RootView::open(&[from.to_owned()])?;
    let missing = || CopyError::Missing { path: from.join(name).display().to_string() };
    let node = view.root().lookup(name)?.ok_or_else(missing)?;
    let (directory, new_name) = dest.parent().zip(dest.file_name()).ok_or_else(missing)?;
    let to = open_directory(directory).map_err(CopyError::at("open", directory))?;
    let copier = Copier { specials: true, stop: &|| false };
    copier.leaf((view.root(), name), &node, (&to, new_name), dest)
}

struct Copier<'a> {
    specials: bool,
    stop: &'a dyn Fn() -> bool,
}

impl Copier<'_> {
    fn contents(&self, from: &DirView, to: &OwnedFd, path: &Path) -> Result<(), CopyError> {
        for (name, node) in from.entries()? {
            if (self.stop)() {
                return Err(CopyError::Stopped);
            }
            let path = path.join(&name);
            match node.kind {
                NodeKind::Dir => {
                    let Some(child) = from.child_dir(&name)? else { continue };
                    let made = make_directory(to, &name).map_err(CopyError::at("create", &path))?;
                    self.contents(&child, &made, &path)?;
                    describe_directory(&child, &made, &path)?;
                }
                _ => self.leaf((from, &name), &node, (to, &name), &path)?,
            }
        }
        Ok(())
    }

    /// Copies what is no directory; `path` is where it goes, once more.
    fn leaf(
        &self,
        (from, name): (&DirView, &OsStr),
        node: &Node,
        (to, new_name): (&OwnedFd, &OsStr),
        path: &Path,
    ) -> Result<(), CopyError> {
        match node.kind {
            NodeKind::File => {
                let Some(source) = from.open_file(name)? else { return Ok(()) };
                let xattrs = from.xattrs(name)?.unwrap_or_default();
                copy_file(source, to, new_name, &node.meta, &xattrs).map_err(CopyError::at("copy", path))
            }
            NodeKind::Symlink => {
                let target = from.read_link(name)?.unwrap_or_default();
                let made = rustix::fs::symlinkat(&target, to, new_name);
                made.and_then(|()| describe_special(to, new_name, node)).map_err(CopyError::at("create", path))
            }
            kind if self.specials => make_special(to, new_name, node, kind).map_err(CopyError::at("create", path)),
            _ => Ok(()),
        }
    }
}

fn describe_directory(from: &DirView, to: &OwnedFd, path: &Path) -> Result<(), CopyError> {
    let Some(node) = from.metadata()? else { return Ok(()) };
    let xattrs = from.own_xattrs()?;
    describe(to, &node.meta, &xattrs).map_err(CopyError::at("describe", path))
}

/// Copies a regular file with its metadata; shares the blocks where the file system can.
fn copy_file(
    mut source: File,
    to: &OwnedFd,
    name: &OsStr,
    meta: &Metadata,
    xattrs: &[(OsString, Vec<u8>)],
) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut made = File::from(rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?);
    if rustix::fs::ioctl_ficlone(&made, &source).is_err() {
        io::copy(&mut source, &mut made)?;
    }
    Ok(describe(&made.into(), meta, xattrs)?)
}

/// A device that may not be made here is not missed.
fn make_special(to: &OwnedFd, name: &OsStr, node: &Node, kind: NodeKind) -> rustix::io::Result<()> {
    let kind = match kind {
        NodeKind::CharDevice => FileType::CharacterDevice,
        NodeKind::BlockDevice => FileType::BlockDevice,
        NodeKind::Socket => FileType::Socket,
        _ => FileType::Fifo,
    };
    match rustix::fs::mknodat(to, name, kind, Mode::from_raw_mode(node.meta.mode), node.meta.rdev) {
        Err(Errno::PERM) => Ok(()),
        made => made.and_then(|()| describe_special(to, name, node)),
    }
}

/// Owner first, whose change clears set-user-ID bits and capabilities; times last.
fn describe(fd: &OwnedFd, meta: &Metadata, xattrs: &[(OsString, Vec<u8>)]) -> rustix::io::Result<()> {
    owners::fchown(fd, meta.uid, meta.gid)?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(meta.mode))?;
    for (name, value) in xattrs {
        match rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    rustix::fs::futimens(fd, &times(meta))
}

fn describe_special(to: &OwnedFd, name: &OsStr, node: &Node) -> rustix::io::Result<()> {
    owners::chownat(to, name, node.meta.uid, node.meta.gid)?;
    if node.kind != NodeKind::Symlink {
        rustix::fs::chmodat(to, name, Mode::from_raw_mode(node.meta.mode), AtFlags::empty())?;
    }
    rustix::fs::utimensat(to, name, &times(&node.meta), AtFlags::SYMLINK_NOFOLLOW)
}

fn times(meta: &Metadata) -> Timestamps {
    let time = Timespec { tv_sec: meta.mtime_s, tv_nsec: meta.mtime_ns.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn make_directory(to: &OwnedFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    rustix::fs::mkdirat(to, name, Mode::RWXU)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(to, name, flags, Mode::empty())
}

fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}
