//! Copies a directory of a merged root, as it is, into a new cache directory.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use solver::OpError;
use tokio_util::sync::CancellationToken;

use crate::view::{DirView, Metadata, Node, NodeKind, RootView};

/// Copies what `path` in the chain `layers` (base first) holds into the existing directory `dest`, with modes, owners,
/// times and extended attributes. Hard links become copies. Blocks.
///
/// # Errors
/// A missing source, in BuildKit's words, and I/O errors.
pub(super) fn copy(layers: &[PathBuf], path: &str, dest: &Path, cancel: &CancellationToken) -> Result<(), OpError> {
    let view = RootView::open(layers)?;
    let resolved = view.resolve(Path::new(path))?;
    let missing = || OpError::input(format!("failed to compute cache key: \"{path}\": not found"));
    let directory = view.dir(&resolved.path)?.ok_or_else(missing)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let to = rustix::fs::openat(CWD, dest, flags, Mode::empty()).map_err(|errno| failed(dest)(errno.into()))?;
    contents(&directory, &to, dest, cancel)?;
    if let Some(node) = directory.metadata()? {
        let xattrs = directory.own_xattrs()?;
        directory_attributes(&to, &node.meta, &xattrs).map_err(failed(dest))?;
    }
    Ok(())
}

fn contents(from: &DirView, to: &OwnedFd, path: &Path, cancel: &CancellationToken) -> Result<(), OpError> {
    for (name, node) in from.entries()? {
        if cancel.is_cancelled() {
            return Err(OpError::cancelled());
        }
        let path = path.join(&name);
        entry(from, to, &name, &node, &path, cancel)?;
    }
    Ok(())
}

fn entry(
    from: &DirView,
    to: &OwnedFd,
    name: &OsStr,
    node: &Node,
    path: &Path,
    cancel: &CancellationToken,
) -> Result<(), OpError> {
    match node.kind {
        NodeKind::Dir => {
            let Some(child) = from.child_dir(name)? else { return Ok(()) };
            let made = make_directory(to, name).map_err(failed(path))?;
            contents(&child, &made, path, cancel)?;
            let xattrs = child.own_xattrs()?;
            directory_attributes(&made, &node.meta, &xattrs).map_err(failed(path))
        }
        NodeKind::File => {
            let Some(source) = from.open_file(name)? else { return Ok(()) };
            let xattrs = from.xattrs(name)?.unwrap_or_default();
            copy_file(source, to, name, &node.meta, &xattrs).map_err(failed(path))
        }
        NodeKind::Symlink => {
            let Some(target) = from.read_link(name)? else { return Ok(()) };
            rustix::fs::symlinkat(&target, to, name).map_err(io::Error::from).map_err(failed(path))?;
            finish(to, name, &node.meta).map_err(failed(path))
        }
        // A cache begins with files; devices, pipes and sockets have no business in it.
        _ => Ok(()),
    }
}

fn make_directory(to: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    rustix::fs::mkdirat(to, name, Mode::RWXU)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(to, name, flags, Mode::empty())?)
}

fn directory_attributes(directory: &OwnedFd, meta: &Metadata, xattrs: &[(OsString, Vec<u8>)]) -> io::Result<()> {
    rustix::fs::fchown(directory, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))?;
    rustix::fs::fchmod(directory, Mode::from_raw_mode(meta.mode))?;
    set_xattrs(directory, xattrs)?;
    Ok(rustix::fs::futimens(directory, &times(meta))?)
}

fn copy_file(
    mut source: File,
    to: &OwnedFd,
    name: &OsStr,
    meta: &Metadata,
    xattrs: &[(OsString, Vec<u8>)],
) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?);
    io::copy(&mut source, &mut file)?;
    rustix::fs::fchown(&file, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))?;
    // After the owner, whose change clears set-user-ID bits and capabilities.
    rustix::fs::fchmod(&file, Mode::from_raw_mode(meta.mode))?;
    set_xattrs(&file, xattrs)?;
    Ok(rustix::fs::futimens(&file, &times(meta))?)
}

fn set_xattrs(file: impl std::os::fd::AsFd, xattrs: &[(OsString, Vec<u8>)]) -> io::Result<()> {
    for (name, value) in xattrs {
        rustix::fs::fsetxattr(&file, name, value, XattrFlags::empty())?;
    }
    Ok(())
}

fn finish(to: &OwnedFd, name: &OsStr, meta: &Metadata) -> io::Result<()> {
    let owner = (Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)));
    rustix::fs::chownat(to, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(rustix::fs::utimensat(to, name, &times(meta), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn times(meta: &Metadata) -> Timestamps {
    let time = Timespec { tv_sec: meta.mtime_s, tv_nsec: meta.mtime_ns.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> OpError {
    let path = path.to_owned();
    move |error| OpError::environment(format!("cannot copy to the cache mount `{}`: {error}", path.display()))
}
