//! Makes files in a tree: one name in one directory, with all its metadata.

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use oci::layer::{Content, Entry, EntryKind, Xattr};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags, fchmod, fsetxattr, ftruncate, futimens,
    lsetxattr, makedev, mkdirat, mknodat, openat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::{OverlayFlavour, UnpackOptions};
use crate::layer::dir;
use crate::layer::error::{Result, TreeError, as_path};
use crate::owners;
use crate::whiteout::make_whiteout;

/// Mode of a directory until its own is set, at the end.
const WORKING_DIR_MODE: u32 = 0o755;

/// Makes entries in directories that it is given.
pub(in crate::layer) struct Creator {
    options: UnpackOptions,
    /// Bits that the kernel takes from the mode of new files.
    umask: u32,
    /// Who owns new files; `None` when that depends on the directory.
    owner_of_new: Option<(u32, u32)>,
}

/// Metadata that is set after the fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::layer) struct Attributes {
    pub(in crate::layer) mode: u32,
    pub(in crate::layer) uid: u32,
    pub(in crate::layer) gid: u32,
    pub(in crate::layer) mtime: (i64, u32),
}

impl Attributes {
    /// Those of a directory that nobody described. The time is fixed, so that copies of it are the same everywhere.
    pub(in crate::layer) const IMPLIED: Self = Self { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0) };

    pub(in crate::layer) fn of(entry: &Entry<'_>) -> Self {
        let Entry { mode, uid, gid, mtime_secs, mtime_nanos, .. } = *entry;
        Self { mode, uid, gid, mtime: (mtime_secs, mtime_nanos) }
    }
}

impl Creator {
    /// Looks at this process and at the tree's root.
    pub(in crate::layer) fn new(options: UnpackOptions, root: BorrowedFd<'_>) -> Result<Self> {
        let root = dir::stat(root, b".").map_err(TreeError::io_at("stat", b""))?;
        let inherits_group = root.st_mode & 0o2000 != 0;
        let owner_of_new = (!inherits_group).then(owners::of_new_files);
        Ok(Self { options, umask: current_umask(), owner_of_new })
    }

    /// Makes everything but directories and hard links; `name` must not exist. `false` when the entry is left out: a device
    /// that this user namespace may not make.
    pub(in crate::layer) fn create<R: Read>(
        &self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry<'_>,
        content: &mut Content<'_, R>,
    ) -> Result<Created> {
        let made = match entry.kind {
            EntryKind::Regular { .. } => return self.create_file(parent, name, entry, content),
            EntryKind::Symlink { target } => symlinkat(target, parent, name),
            EntryKind::Char { major, minor } => {
                self.make_node(parent, name, entry, FileType::CharacterDevice, makedev(major, minor))
            }
            EntryKind::Block { major, minor } => {
                self.make_node(parent, name, entry, FileType::BlockDevice, makedev(major, minor))
            }
            EntryKind::Fifo => self.make_node(parent, name, entry, FileType::Fifo, 0),
            EntryKind::Hardlink { .. } | EntryKind::Directory => Err(Errno::INVAL),
        };
        match made {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(Created::Exists),
            Err(Errno::PERM) if self.may_leave_out(entry) => return Ok(Created::LeftOut),
            Err(error) => return Err(TreeError::io("create", as_path(entry.path), error)),
        }
        self.describe_special(parent, name, entry).map(|()| Created::Done)
    }

    fn may_leave_out(&self, entry: &Entry<'_>) -> bool {
        self.options.flavour == OverlayFlavour::User
            && matches!(entry.kind, EntryKind::Char { .. } | EntryKind::Block { .. })
    }

    fn create_file<R: Read>(
        &self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry<'_>,
        content: &mut Content<'_, R>,
    ) -> Result<Created> {
        let at = |operation| TreeError::io_at(operation, entry.path);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let first_mode = entry.mode & 0o777;
        let fd = match openat(parent, name, flags, Mode::from_raw_mode(first_mode)) {
            Ok(fd) => fd,
            Err(Errno::EXIST) => return Ok(Created::Exists),
            Err(error) => return Err(at("create")(error)),
        };
        let mut end = 0;
        while let Some((offset, bytes)) = content.next_data()? {
            write_all_at(&fd, bytes, offset).map_err(at("write"))?;
            end = offset + bytes.len() as u64;
        }
        if end < content.size_bytes() {
            ftruncate(&fd, content.size_bytes()).map_err(at("write"))?;
        }
        let was_chowned =
            self.chown(entry, |uid, gid| owners::fchown(&fd, uid, gid)).map_err(at("change the owner of"))?;
        // Changing the owner clears setuid and setgid.
        if entry.mode != first_mode & !self.umask || (was_chowned && entry.mode & 0o6000 != 0) {
            fchmod(&fd, Mode::from_raw_mode(entry.mode)).map_err(at("change the mode of"))?;
        }
        self.set_xattrs(entry, true, |name, value| fsetxattr(&fd, name, value, XattrFlags::empty()))?;
        futimens(&fd, &times(entry.mtime_secs, entry.mtime_nanos)).map_err(at("set the time of"))?;
        Ok(Created::Done)
    }

    fn make_node(
        &self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry<'_>,
        kind: FileType,
        dev: u64,
    ) -> rustix::io::Result<()> {
        mknodat(parent, name, kind, Mode::from_raw_mode(entry.mode & 0o777), dev)
    }

    /// Metadata of what cannot be opened: links, devices, pipes.
    fn describe_special(&self, parent: BorrowedFd<'_>, name: &[u8], entry: &Entry<'_>) -> Result<()> {
        let at = |operation| TreeError::io_at(operation, entry.path);
        let chown = |uid, gid| owners::chownat(parent, as_path(name), uid, gid);
        self.chown(entry, chown).map_err(at("change the owner of"))?;
        if !matches!(entry.kind, EntryKind::Symlink { .. }) {
            // It was made a moment ago and is no link; the kernel has no call that would say so.
            let mode = Mode::from_raw_mode(entry.mode);
            rustix::fs::chmodat(parent, name, mode, AtFlags::empty()).map_err(at("change the mode of"))?;
        }
        self.set_xattrs(entry, false, |xattr, value| {
            lsetxattr(proc_path(parent, name), xattr, value, XattrFlags::empty())
        })?;
        let times = times(entry.mtime_secs, entry.mtime_nanos);
        utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(at("set the time of"))
    }

    /// Makes the directory `name`, to be described later.
    pub(in crate::layer) fn make_dir(&self, parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
        mkdirat(parent, name, Mode::from_raw_mode(WORKING_DIR_MODE))?;
        if WORKING_DIR_MODE & self.umask != 0 {
            rustix::fs::chmodat(parent, name, Mode::from_raw_mode(WORKING_DIR_MODE), AtFlags::empty())?;
        }
        Ok(())
    }

    /// Sets the metadata of a directory.
    pub(in crate::layer) fn describe_dir(&self, dir: &OwnedFd, path: &[u8], attributes: &Attributes) -> Result<()> {
        let at = |operation| TreeError::io_at(operation, path);
        owners::fchown(dir, attributes.uid, attributes.gid).map_err(at("change the owner of"))?;
        fchmod(dir, Mode::from_raw_mode(attributes.mode)).map_err(at("change the mode of"))?;
        futimens(dir, &times(attributes.mtime.0, attributes.mtime.1)).map_err(at("set the time of"))
    }

    /// Sets the xattrs of a directory.
    pub(in crate::layer) fn set_dir_xattrs(
        &self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry<'_>,
    ) -> Result<()> {
        self.set_xattrs(entry, true, |xattr, value| {
            lsetxattr(proc_path(parent, name), xattr, value, XattrFlags::empty())
        })
    }

    /// Makes a deletion marker.
    pub(in crate::layer) fn make_whiteout(&self, parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
        make_whiteout(parent, name)
    }

    /// Marks a directory as hiding what is below.
    pub(in crate::layer) fn mark_opaque(&self, dir: BorrowedFd<'_>) -> rustix::io::Result<()> {
        let name = match self.options.flavour {
            OverlayFlavour::Trusted => "trusted.overlay.opaque",
            OverlayFlavour::User => "user.overlay.opaque",
        };
        // The handle may be good for paths only.
        rustix::fs::setxattr(format!("/proc/self/fd/{}", dir.as_raw_fd()), name, b"y", XattrFlags::empty())
    }

    /// Changes the owner if it is not right already; whether it did.
    fn chown(
        &self,
        entry: &Entry<'_>,
        chown: impl FnOnce(u32, u32) -> rustix::io::Result<()>,
    ) -> rustix::io::Result<bool> {
        if self.owner_of_new == Some((entry.uid, entry.gid)) {
            return Ok(false);
        }
        chown(entry.uid, entry.gid).map(|()| true)
    }

    /// Applies the xattrs of an entry, except those that would speak to the kernel in our name.
    fn set_xattrs(
        &self,
        entry: &Entry<'_>,
        takes_user_xattrs: bool,
        set: impl Fn(&[u8], &[u8]) -> rustix::io::Result<()>,
    ) -> Result<()> {
        for Xattr { name, value } in entry.xattrs {
            let is_ours = [b"trusted.".as_slice(), b"user.overlay.", owners::OWN_PREFIX.as_bytes()];
            if is_ours.iter().any(|prefix| name.starts_with(prefix)) {
                tracing::debug!(path = %as_path(entry.path).display(), "refused a privileged xattr of a layer");
                continue;
            }
            match set(name, value) {
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(Errno::PERM) if !takes_user_xattrs && name.starts_with(b"user.") => {}
                Err(error) => return Err(TreeError::io("set an xattr of", as_path(entry.path), error)),
            }
        }
        Ok(())
    }
}

/// What became of an entry that was to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::layer) enum Created {
    Done,
    /// Something has its name; nothing was done.
    Exists,
    /// It may not be made here and is not missed.
    LeftOut,
}

/// Removes `name` and, if it is a directory, everything in it. Never follows a link.
pub(super) fn remove(parent: impl AsFd, name: &[u8]) -> rustix::io::Result<()> {
    match unlinkat(&parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        done => return done,
    }
    let fd = dir::open_dir(&parent, name)?;
    for entry in Dir::read_from(&fd)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            remove(&fd, entry.file_name().to_bytes())?;
        }
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn write_all_at(fd: &OwnedFd, mut bytes: &[u8], mut offset: u64) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(fd, bytes, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => (bytes, offset) = (&bytes[n..], offset + n as u64),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn times(secs: i64, nanos: u32) -> Timestamps {
    let time = Timespec { tv_sec: secs, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// A path to `name` in a directory of which only the handle is known, for calls that take paths alone.
fn proc_path(parent: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    [format!("/proc/self/fd/{}/", parent.as_raw_fd()).as_bytes(), name].concat()
}

/// The umask, read without changing it; all bits when it cannot be known, so that every mode is set explicitly.
fn current_umask() -> u32 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    umask.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok()).unwrap_or(0o777)
}
