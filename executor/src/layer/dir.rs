//! Reading a tree: one name at a time, relative to a directory handle, never through a link.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Dir, FileType, Mode, OFlags, Stat, fgetxattr, flistxattr, lgetxattr, openat};
use rustix::io::Errno;

use super::error::as_path;
use crate::owners;
use crate::view::fd_path;
pub(super) use crate::whiteout::is_whiteout;

/// Name of the only xattr that layers carry.
pub(super) const CAPABILITY: &str = "security.capability";
/// Names of the xattr by which overlayfs marks a directory that hides what lies below it.
const OPAQUE: [&[u8]; 2] = [b"trusted.overlay.opaque", b"user.overlay.opaque"];
/// Xattrs of entries whose name or content lies elsewhere.
const REDIRECTS: [&[u8]; 4] =
    [b"trusted.overlay.redirect", b"user.overlay.redirect", b"trusted.overlay.metacopy", b"user.overlay.metacopy"];
/// Names of the xattr by which overlayfs marks a copy of a file below.
const ORIGIN: [&str; 2] = ["trusted.overlay.origin", "user.overlay.origin"];
/// The names of all xattrs of a file hardly ever need more.
const NAMES_BYTES: usize = 1024;
/// The kernel's bound on names and on a value.
const MAX_XATTR_BYTES: usize = 64 * 1024;

/// The xattrs that count.
#[derive(Default)]
pub(super) struct OwnXattrs {
    pub(super) capability: Option<Vec<u8>>,
    pub(super) is_opaque: bool,
    pub(super) is_redirected: bool,
}

/// Opens a tree.
pub(super) fn open_tree(tree: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(tree, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Opens the directory `name` of `parent`; a symlink is an error.
pub(super) fn open_dir(parent: impl AsFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// Opens the regular file `name` of `parent` for reading; a symlink is an error, a FIFO does not block.
pub(super) fn open_file(parent: impl AsFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// The status of `name` itself, with the owner that is meant.
pub(super) fn stat(parent: impl AsFd, name: &[u8]) -> rustix::io::Result<Stat> {
    owners::statat(parent, as_path(name))
}

/// The status of an open file, with the owner that is meant.
pub(super) fn fstat(fd: impl AsFd) -> rustix::io::Result<Stat> {
    owners::fstat(fd)
}

/// The names in a directory with their types, unsorted.
pub(super) fn list(dir: &OwnedFd) -> rustix::io::Result<Vec<(Vec<u8>, FileType)>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => FileType::from_raw_mode(stat(dir, name)?.st_mode),
            kind => kind,
        };
        names.push((name.to_vec(), kind));
    }
    Ok(names)
}

/// The xattrs of an open file or directory that count. File systems without xattrs have none.
pub(super) fn own_xattrs(fd: &OwnedFd) -> rustix::io::Result<OwnXattrs> {
    let mut buffer = [0_u8; NAMES_BYTES];
    let mut long_buffer;
    let names = match flistxattr(fd, &mut buffer[..]) {
        Ok(len) => &buffer[..len],
        Err(Errno::RANGE) => {
            long_buffer = vec![0; MAX_XATTR_BYTES];
            let len = flistxattr(fd, &mut long_buffer[..])?;
            &long_buffer[..len]
        }
        Err(Errno::OPNOTSUPP) => &[],
        Err(error) => return Err(error),
    };
    let mut found = OwnXattrs::default();
    for name in names.split(|&byte| byte == 0) {
        if name == CAPABILITY.as_bytes() {
            found.capability = Some(xattr(fd, name)?);
        } else if OPAQUE.contains(&name) {
            found.is_opaque |= xattr(fd, name)? == b"y";
        } else {
            found.is_redirected |= REDIRECTS.contains(&name);
        }
    }
    Ok(found)
}

fn xattr(fd: &OwnedFd, name: &[u8]) -> rustix::io::Result<Vec<u8>> {
    let mut value = vec![0; MAX_XATTR_BYTES];
    let len = fgetxattr(fd, name, &mut value[..])?;
    value.truncate(len);
    value.shrink_to_fit();
    Ok(value)
}

/// Whether overlayfs made `name` of `parent` as a copy of a file or symlink below, when it was about to be changed.
pub(super) fn is_copied_up(parent: impl AsFd, name: &[u8]) -> rustix::io::Result<bool> {
    let path = fd_path(parent).join(as_path(name));
    for origin in ORIGIN {
        match lgetxattr(&path, origin, &mut [0_u8; 0][..]) {
            // Its length.
            Ok(_) => return Ok(true),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}
