//! The tree form: the layer as an overlay upper directory.
//!
//! Directories first (open to us only), then files in parallel, hard links, and at last the metadata of directories,
//! children before parents, so that nothing that is written later touches a finished directory.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rayon::prelude::*;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags, copy_file_range, fchmod, fchown, fsetxattr,
    futimens, ioctl_ficlone, linkat, lsetxattr, mkdirat, mknodat, openat, renameat, symlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
use solver::OpError;

use super::Setting;
use super::content::{FileFacts, Written};
use super::draft::{Attributes, Body, DirId, Draft, Inode, InodeId, InodeKind, InodeXattrs};
use super::order::{Listed, Listing};
use crate::context::ContextError;
use crate::context::source::{CAPABILITY_XATTR, SourceDir};
use crate::owners;
use crate::view::{ViewError, Xattrs, handle_path};

/// Larger files are cloned or copied inside the kernel; smaller ones are cheaper to read and write.
const KERNEL_COPY_BYTES: u64 = 256 << 10;
/// Entries that one parallel task makes in a row, usually in the same directory.
const LEAVES_PER_TASK: usize = 64;

/// Writes `draft` into the empty directory `upper`; gives what became known of the files.
pub(super) fn write(draft: &Draft, listing: &Listing, setting: &Setting<'_>, upper: &Path) -> Result<Written, OpError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = openat(CWD, upper, flags, Mode::empty()).map_err(|e| failed("open directory", upper, e))?;
    // Neither a set-group-id bit nor a `grpid` mount may give our files another group: see `finish`.
    fchown(&fd, Some(geteuid()), Some(getegid()))
        .and_then(|()| fchmod(&fd, Mode::RWXU))
        .map_err(|e| failed("set the owner of", upper, e))?;
    let tree = Tree { draft, setting, upper, fd };
    let entries: Vec<(&Path, Listed)> = listing.iter().map(|(path, entry)| (as_path(path), entry)).collect();
    for (path, _) in entries.iter().filter(|(_, entry)| matches!(entry, Listed::Dir(_))) {
        mkdirat(&tree.fd, *path, Mode::RWXU).map_err(|e| failed("create directory", &upper.join(path), e))?;
    }
    let leaves: Vec<(&Path, InodeId)> = entries
        .iter()
        .filter_map(|(path, entry)| match entry {
            Listed::First(inode) => Some((*path, *inode)),
            _ => None,
        })
        .collect();
    let known = leaves.par_chunks(LEAVES_PER_TASK).map(|leaves| tree.make_leaves(leaves));
    let mut written = Written::new(draft);
    for (inode, facts) in known.collect::<Result<Vec<_>, _>>()?.into_iter().flatten() {
        written.set(inode, facts);
    }
    for (path, entry) in &entries {
        if let Listed::Again(_, first) = entry {
            let first = as_path(listing.path(*first));
            linkat(&tree.fd, first, &tree.fd, *path, AtFlags::empty())
                .map_err(|e| failed("link", &upper.join(path), e))?;
        }
    }
    for (path, entry) in entries.iter().rev() {
        if let Listed::Dir(id) = entry {
            tree.finish_dir(path, *id)?;
        }
    }
    tree.finish_dir(Path::new(""), Draft::ROOT)?;
    Ok(written)
}

struct Tree<'a> {
    draft: &'a Draft,
    setting: &'a Setting<'a>,
    upper: &'a Path,
    fd: OwnedFd,
}

impl Tree<'_> {
    /// Opens a directory of the tree. All of them are ours, so that no path of them can lead elsewhere.
    fn open_dir(&self, path: &Path) -> Result<OwnedFd, OpError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let at = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        openat(&self.fd, at, flags, Mode::empty()).map_err(|e| failed("open directory", &self.upper.join(path), e))
    }

    /// Makes files, links and devices; neighbours are usually in one directory, which is opened once.
    fn make_leaves(&self, leaves: &[(&Path, InodeId)]) -> Result<Vec<(InodeId, FileFacts)>, OpError> {
        let mut known = Vec::with_capacity(leaves.len());
        let mut open: Option<(&Path, OwnedFd)> = None;
        for (path, inode) in leaves {
            self.setting.check_cancelled()?;
            let parent = path.parent().unwrap_or(Path::new(""));
            let fd = match open.take() {
                Some((dir, fd)) if dir == parent => fd,
                _ => self.open_dir(parent)?,
            };
            let name = path.file_name().unwrap_or_default();
            let leaf = Leaf { dir: fd.as_fd(), name, path: &self.upper.join(path) };
            if let Some(facts) = leaf.make(self.draft.inode(*inode))? {
                known.push((*inode, facts));
            }
            open = Some((parent, fd));
        }
        Ok(known)
    }

    fn finish_dir(&self, path: &Path, id: DirId) -> Result<(), OpError> {
        let dir = self.draft.dir(id);
        let fd = self.open_dir(path)?;
        let host_path = self.upper.join(path);
        let fail = |operation, e| failed(operation, &host_path, e);
        if dir.hides_lower {
            set_opaque(&fd).map_err(|e| fail("mark as opaque", e))?;
        }
        finish(&fd, &dir.attributes, &dir.xattrs).map_err(|e| fail("set the metadata of", e))
    }
}

/// A place for something that is no directory.
struct Leaf<'a> {
    dir: BorrowedFd<'a>,
    name: &'a OsStr,
    /// For messages.
    path: &'a Path,
}

impl Leaf<'_> {
    /// Makes it; gives what became known of a file.
    fn make(&self, inode: &Inode) -> Result<Option<FileFacts>, OpError> {
        match &inode.kind {
            InodeKind::File(body) => return self.make_file(inode, body).map(Some),
            InodeKind::Symlink(target) => {
                symlinkat(target, self.dir, self.name).map_err(|e| self.failed("create the link", e))?;
                self.finish_special(inode, None)?;
            }
            InodeKind::Fifo => self.make_node(FileType::Fifo, 0, inode)?,
            InodeKind::CharDevice(rdev) => self.make_node(FileType::CharacterDevice, *rdev, inode)?,
            InodeKind::BlockDevice(rdev) => self.make_node(FileType::BlockDevice, *rdev, inode)?,
        }
        Ok(None)
    }

    fn make_file(&self, inode: &Inode, body: &Body) -> Result<FileFacts, OpError> {
        let (file, digest) = match body {
            Body::Source { dir, name, size_bytes } => {
                let file = self.create()?;
                let digest = copy_source(dir, name, *size_bytes, &file, self.path)?;
                (file, digest)
            }
            Body::Bytes(bytes) => {
                let mut file = self.create()?;
                file.write_all(bytes).map_err(|e| failed("write", self.path, e))?;
                (file, *blake3::hash(bytes).as_bytes())
            }
            Body::Staged { path, digest, .. } => {
                let file = self.move_or_copy(path)?;
                // It was made elsewhere, where groups may be handed down.
                fchown(&file, Some(geteuid()), Some(getegid())).map_err(|e| self.failed("set the owner of", e))?;
                (file, *digest)
            }
        };
        let xattrs = xattrs_of(inode)?;
        finish(&file, &inode.attributes, &xattrs).map_err(|e| self.failed("set the metadata of", e))?;
        let capability = xattrs.into_iter().find(|(name, _)| name == CAPABILITY_XATTR).map(|(_, value)| value);
        Ok(FileFacts { digest, capability })
    }

    fn create(&self) -> Result<File, OpError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(self.dir, self.name, flags, Mode::RUSR | Mode::WUSR).map_err(|e| self.failed("create", e))?;
        Ok(fd.into())
    }

    /// Moves a scratch file into place; another file system costs a copy.
    fn move_or_copy(&self, staged: &Path) -> Result<File, OpError> {
        match renameat(CWD, staged, self.dir, self.name) {
            Ok(()) => {
                let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = openat(self.dir, self.name, flags, Mode::empty()).map_err(|e| self.failed("open", e))?;
                Ok(fd.into())
            }
            Err(Errno::XDEV) => {
                let mut from = File::open(staged).map_err(|e| failed("open", staged, e))?;
                let mut file = self.create()?;
                io::copy(&mut from, &mut file).map_err(|e| failed("write", self.path, e))?;
                Ok(file)
            }
            Err(e) => Err(self.failed("move into place", e)),
        }
    }

    fn make_node(&self, file_type: FileType, rdev: u64, inode: &Inode) -> Result<(), OpError> {
        let mode = Mode::from_raw_mode(inode.attributes.mode);
        mknodat(self.dir, self.name, file_type, mode, rdev).map_err(|e| self.failed("create the device", e))?;
        self.finish_special(inode, Some(inode.attributes.mode))
    }

    /// Metadata of what cannot be opened: owner, mode (links have none), xattrs, times.
    fn finish_special(&self, inode: &Inode, mode: Option<u32>) -> Result<(), OpError> {
        let attributes = &inode.attributes;
        let fail = |e| self.failed("set the metadata of", e);
        owners::chownat(self.dir, self.name, attributes.uid, attributes.gid).map_err(fail)?;
        if let Some(mode) = mode {
            rustix::fs::chmodat(self.dir, self.name, Mode::from_raw_mode(mode), AtFlags::empty()).map_err(fail)?;
        }
        let path = handle_path(self.dir, self.name);
        for (name, value) in xattrs_of(inode)? {
            tolerate(&name, lsetxattr(&path, &name, &value, XattrFlags::empty())).map_err(fail)?;
        }
        utimensat(self.dir, self.name, &times(attributes), AtFlags::SYMLINK_NOFOLLOW).map_err(fail)
    }

    fn failed(&self, operation: &'static str, error: Errno) -> OpError {
        failed(operation, self.path, error)
    }
}

/// Copies the file `name` of `dir` into the new file `to`, proves that it is what went into the key, and gives its digest.
fn copy_source(dir: &SourceDir, name: &OsStr, size_bytes: u64, to: &File, path: &Path) -> Result<[u8; 32], OpError> {
    let opened = dir.open_file(name)?;
    let changed = || OpError::from(ContextError::Changed { path: dir.display_path(name) });
    let proven = opened.claim.proven_digest();
    let (copied_bytes, digest) = match proven {
        Some(digest) if size_bytes >= KERNEL_COPY_BYTES => (copy_in_kernel(&opened.file, to, size_bytes), digest),
        _ => {
            let mut hasher = blake3::Hasher::new();
            let copied_bytes = copy_by_hand(&opened.file, to, size_bytes, &mut hasher);
            (copied_bytes, *hasher.finalize().as_bytes())
        }
    };
    let copied_bytes = copied_bytes.map_err(|e| failed("write", path, e))?;
    let has_changed = opened.has_changed().map_err(|e| ViewError::io("stat", dir.display_path(name), e))?;
    if has_changed || copied_bytes != size_bytes || opened.claim.digest.is_some_and(|expected| expected != digest) {
        return Err(changed());
    }
    Ok(digest)
}

/// A reflink where the file system has them, else a copy without a detour through our memory.
fn copy_in_kernel(from: &File, to: &File, size_bytes: u64) -> io::Result<u64> {
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(to.metadata()?.len());
    }
    let mut copied_bytes = 0;
    while copied_bytes < size_bytes {
        let rest = usize::try_from(size_bytes - copied_bytes).unwrap_or(usize::MAX).min(1 << 30);
        match copy_file_range(from, None, to, None, rest) {
            Ok(0) => break,
            Ok(n) => copied_bytes += n as u64,
            Err(Errno::INTR) => {}
            // File systems that cannot say so at the first byte.
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) if copied_bytes == 0 => {
                return copy_by_hand(from, to, size_bytes, &mut blake3::Hasher::new());
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(copied_bytes)
}

/// Reads and writes, no further than the file was long: one that has grown shows it by its stamp.
fn copy_by_hand(mut from: &File, mut to: &File, size_bytes: u64, hasher: &mut blake3::Hasher) -> io::Result<u64> {
    thread_local! {
        static BUFFER: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    BUFFER.with_borrow_mut(|buffer| {
        buffer.resize(256 << 10, 0);
        let mut copied_bytes = 0;
        while copied_bytes < size_bytes {
            let n = match from.read(buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            to.write_all(&buffer[..n])?;
            hasher.update(&buffer[..n]);
            copied_bytes += n as u64;
        }
        Ok(copied_bytes)
    })
}

fn xattrs_of(inode: &Inode) -> Result<Xattrs, OpError> {
    Ok(match &inode.xattrs {
        InodeXattrs::Given(xattrs) => xattrs.clone(),
        InodeXattrs::OfSource(dir, name) => dir.xattrs(name)?,
    })
}

/// Owner first, because it clears special bits and capabilities; times last.
///
/// What we make is ours, and no directory of the tree hands down its group before all is made; so files of root made by
/// root, which is nearly all of them, need no change of owner.
fn finish(fd: impl AsFd, attributes: &Attributes, xattrs: &[(OsString, Vec<u8>)]) -> rustix::io::Result<()> {
    let fd = fd.as_fd();
    let (uid, gid) = (attributes.uid, attributes.gid);
    if (uid, gid) != owners::of_new_files() {
        owners::fchown(fd, uid, gid)?;
    }
    fchmod(fd, Mode::from_raw_mode(attributes.mode))?;
    for (name, value) in xattrs {
        tolerate(name, fsetxattr(fd, name, value, XattrFlags::empty()))?;
    }
    futimens(fd, &times(attributes))
}

/// What a file system or an unprivileged user cannot store is lost, as in BuildKit, except what layers hold.
fn tolerate(name: &OsStr, outcome: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match outcome {
        Err(Errno::OPNOTSUPP) => Ok(()),
        Err(Errno::PERM) if name != CAPABILITY_XATTR => Ok(()),
        outcome => outcome,
    }
}

fn set_opaque(fd: &OwnedFd) -> rustix::io::Result<()> {
    match fsetxattr(fd, "trusted.overlay.opaque", b"y", XattrFlags::empty()) {
        // Without CAP_SYS_ADMIN in the first user namespace the overlay is mounted with `userxattr`.
        Err(Errno::PERM) => fsetxattr(fd, "user.overlay.opaque", b"y", XattrFlags::empty()),
        outcome => outcome,
    }
}

fn times(attributes: &Attributes) -> Timestamps {
    let time = Timespec { tv_sec: attributes.mtime.0, tv_nsec: attributes.mtime.1.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn failed(operation: &'static str, path: &Path, error: impl Into<io::Error>) -> OpError {
    OpError::environment(format!("cannot {operation} `{}`: {}", path.display(), error.into()))
}

fn as_path(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}
