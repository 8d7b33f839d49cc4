//! Reads directories of a context: names by `getdents`, metadata by `fstatat`, subdirectories on all cores.

use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use rustix::fs::{AtFlags, FileType, OFlags, RawDir, fstat, readlinkat, statat};
use rustix::io::Errno;
use solver::plan::patterns::Verdict;

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
pub(super) fn read_dir(context: &LocalContext, path: &Path, verdict: Verdict, fd: &OwnedFd) -> Result<ContextDir> {
    let error = |operation, e: Errno| ViewError::io(operation, context.host_path(path), e);
    let own = fstat(fd).map_err(|e| error("stat", e))?;
    let names = read_names(fd).map_err(|e| error("list", e))?;
    let place = Reading { context, path, verdict, fd };
    let read = |(name, file_type): &(Box<OsStr>, FileType)| place.entry(name, *file_type).transpose();
    let entries = if names.len() > PARALLEL_NAMES {
        names.par_iter().with_min_len(PARALLEL_NAMES / 2).filter_map(read).collect::<Result<Vec<_>>>()?
    } else {
        names.iter().filter_map(read).collect::<Result<Vec<_>>>()?
    };
    let mut meta = Metadata::of_stat(&own);
    (meta.uid, meta.gid) = (0, 0);
    let own = Node { layer_idx: 0, kind: NodeKind::Dir, meta };
    Ok(ContextDir::new(path, verdict, own, entries))
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

/// The stored target of the link `name` in `dir`, as it was when it was first read.
pub(super) fn read_link(context: &LocalContext, dir: &ContextDir, name: &OsStr) -> Result<OsString> {
    let known = || dir.entry(name).and_then(super::Entry::target);
    if let Some(target) = known() {
        return Ok(target.to_owned());
    }
    let path = dir.path().join(name);
    let target = context
        .open_beneath(&path, OFlags::PATH)
        // An empty path means the link that the handle itself stands for.
        .and_then(|link| readlinkat(&link, "", Vec::new()))
        .map_err(|e| ViewError::io("read the link", context.host_path(&path), e))?;
    let target = OsString::from_vec(target.into_bytes());
    if let Some(entry) = dir.entry(name) {
        entry.set_target(target.clone());
    }
    // Another thread may have read it earlier.
    Ok(known().map_or(target, OsStr::to_owned))
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

/// A directory that is being read.
struct Reading<'a> {
    context: &'a LocalContext,
    path: &'a Path,
    verdict: Verdict,
    fd: &'a OwnedFd,
}

impl Reading<'_> {
    /// Looks at one name; `None` when it is hidden.
    fn entry(&self, name: &OsStr, file_type: FileType) -> Result<Option<NewEntry>> {
        let rules = self.context.rules();
        let error = |operation, e| ViewError::io(operation, self.context.host_path(self.path).join(name), e);
        // Without rules, which is frequent, no path is ever put together.
        let hidden = if rules.patterns.is_empty() {
            None
        } else {
            let path = self.path.join(name);
            let verdict = rules.descend(self.verdict, &path);
            let may_be_dir = matches!(file_type, FileType::Directory | FileType::Unknown);
            if verdict.is_excluded() && !(may_be_dir && rules.may_show_below(verdict, &path)) {
                return Ok(None);
            }
            verdict.is_excluded().then_some((path, verdict))
        };
        let stat = match statat(self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Removed since the directory was listed: as if it had been removed before.
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(error("stat", e)),
        };
        let kind = NodeKind::of_mode(stat.st_mode);
        if let Some((path, verdict)) = hidden
            && !(kind.is_dir() && self.shows_something(&path, verdict)?)
        {
            return Ok(None);
        }
        Ok(Some(NewEntry {
            name: name.into(),
            kind,
            mode: stat.st_mode & 0o7777,
            rdev: if matches!(kind, NodeKind::CharDevice | NodeKind::BlockDevice) { stat.st_rdev } else { 0 },
            // Its width depends on the architecture.
            n_links: stat.st_nlink as _,
            stamp: Stamp::of_stat(&stat),
        }))
    }

    /// Whether the hidden directory `path` has anything visible below it.
    fn shows_something(&self, path: &Path, verdict: Verdict) -> Result<bool> {
        let fd = self
            .context
            .open_beneath(path, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|e| ViewError::io("open directory", self.context.host_path(path), e))?;
        Ok(!read_dir(self.context, path, verdict, &fd)?.entries().is_empty())
    }
}
