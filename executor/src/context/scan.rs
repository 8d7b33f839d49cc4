//! Reads directories of a context: names by `getdents`, metadata by `fstatat`, subdirectories on all cores.

use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use rustix::fs::{AtFlags, FileType, OFlags, RawDir, fstat, readlinkat, statat};
use rustix::io::Errno;

use super::LocalContext;
use super::content::Stamp;
use super::dir::{ContextDir, NewEntry};
use crate::view::{Metadata, Node, NodeKind, Result, ViewError};

/// One `getdents` call returns as much as fits in here.
const DIRENT_BUFFER_BYTES: usize = 32 << 10;
/// Directories with more names are looked at on several cores.
const PARALLEL_NAMES: usize = 512;

/// Reads one directory, whose path relative to the context is `path` and which `fd` has open.
///
/// A hidden directory is read as well when something below it may be visible, and is kept only if something is.
pub(super) fn read_dir(context: &LocalContext, path: &Path, fd: &OwnedFd) -> Result<ContextDir> {
    let error = |operation, e: Errno| ViewError::io(operation, context.host_path(path), e);
    let own = fstat(fd).map_err(|e| error("stat", e))?;
    let names = read_names(fd).map_err(|e| error("list", e))?;
    let read = |(name, file_type): &(Box<OsStr>, FileType)| read_entry(context, path, fd, name, *file_type).transpose();
    let entries = if names.len() > PARALLEL_NAMES {
        names.par_iter().with_min_len(PARALLEL_NAMES / 2).filter_map(read).collect::<Result<Vec<_>>>()?
    } else {
        names.iter().filter_map(read).collect::<Result<Vec<_>>>()?
    };
    let mut meta = Metadata::of_stat(&own);
    (meta.uid, meta.gid) = (0, 0);
    Ok(ContextDir::new(path, Node { layer_idx: 0, kind: NodeKind::Dir, meta }, entries))
}

/// Reads everything below `dir`.
pub(super) fn read_below(context: &LocalContext, dir: &Arc<ContextDir>) -> Result<()> {
    let subdirs: Vec<_> = dir.entries().iter().filter(|entry| entry.kind().is_dir()).collect();
    let read = |entry: &&super::Entry| match context.child_dir(dir, dir.name_of(entry))? {
        Some(child) => read_below(context, &child),
        None => Ok(()),
    };
    match subdirs.as_slice() {
        [] => Ok(()),
        [only] => read(only),
        several => several.par_iter().try_for_each(read),
    }
}

/// The stored target of the link `name` in `dir`.
pub(super) fn read_link(context: &LocalContext, dir: &ContextDir, name: &OsStr) -> Result<OsString> {
    let path = dir.path().join(name);
    let target = context
        .open_beneath(&path, OFlags::PATH)
        // An empty path means the link that the handle itself stands for.
        .and_then(|link| readlinkat(&link, "", Vec::new()))
        .map_err(|e| ViewError::io("read the link", context.host_path(&path), e))?;
    Ok(OsString::from_vec(target.into_bytes()))
}

fn read_names(fd: &OwnedFd) -> Result<Vec<(Box<OsStr>, FileType)>, Errno> {
    let mut buffer = vec![MaybeUninit::<u8>::uninit(); DIRENT_BUFFER_BYTES];
    let mut dir = RawDir::new(fd, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = dir.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push((Box::from(OsStr::from_bytes(name)), entry.file_type()));
        }
    }
    Ok(names)
}

fn read_entry(
    context: &LocalContext,
    dir: &Path,
    fd: &OwnedFd,
    name: &OsStr,
    file_type: FileType,
) -> Result<Option<NewEntry>> {
    let filter = context.filter();
    let path: PathBuf = dir.join(name);
    let is_hidden = !filter.keeps_all() && filter.hides(&path);
    let may_be_dir = matches!(file_type, FileType::Directory | FileType::Unknown);
    if is_hidden && !(may_be_dir && filter.may_show_below(&path)) {
        return Ok(None);
    }
    let stat = match statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        // Removed since the directory was listed: as if it had been removed before.
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(ViewError::io("stat", context.host_path(&path), e)),
    };
    let kind = NodeKind::of_mode(stat.st_mode);
    if is_hidden && !(kind.is_dir() && shows_something(context, &path)?) {
        return Ok(None);
    }
    Ok(Some(NewEntry {
        name: name.into(),
        kind,
        mode: stat.st_mode & 0o7777,
        rdev: if matches!(kind, NodeKind::CharDevice | NodeKind::BlockDevice) { stat.st_rdev } else { 0 },
        n_links: stat.st_nlink.into(),
        stamp: Stamp::of_stat(&stat),
    }))
}

/// Whether the hidden directory `path` has anything visible below it.
fn shows_something(context: &LocalContext, path: &Path) -> Result<bool> {
    let fd = context
        .open_beneath(path, OFlags::RDONLY | OFlags::DIRECTORY)
        .map_err(|e| ViewError::io("open directory", context.host_path(path), e))?;
    Ok(!read_dir(context, path, &fd)?.entries().is_empty())
}
