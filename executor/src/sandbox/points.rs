//! Mount points that the root does not have.
//!
//! The usual way is a directory of stubs as the *bottom-most* layer: it shows wherever no real layer has something in
//! the way, and nothing is ever written for it. Where a real layer hides a stub (a deleted file, a replaced directory,
//! a symlink on the path), the mount point is made in the root and taken away again afterwards. Either way the upper
//! directory holds nothing of ours in the end. Spec: `spec/dockerfile.md` §8.8.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

use super::error::SandboxError;

/// What is mounted decides what its mount point is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PointKind {
    /// A directory.
    Directory,
    /// An empty file.
    File,
}

/// Makes stubs for `targets` (absolute, cleaned) below `root`, with directories 0755.
///
/// Targets that contradict each other (a file, and something below it) are left to the mounts to complain about.
pub(super) fn make_stubs<'a>(
    root: &Path,
    targets: impl Iterator<Item = (&'a str, PointKind)>,
) -> Result<(), SandboxError> {
    for (target, kind) in targets {
        let path = root.join(target.trim_start_matches('/'));
        let directory = match kind {
            PointKind::Directory => Some(path.as_path()),
            PointKind::File => path.parent(),
        };
        let made =
            directory.map_or(Ok(()), |directory| DirBuilder::new().recursive(true).mode(0o755).create(directory));
        let made = made.and_then(|()| match kind {
            PointKind::Directory => Ok(()),
            PointKind::File => fs::OpenOptions::new().append(true).create(true).mode(0o644).open(&path).map(drop),
        });
        match made {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists) => {}
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {}
            result => result.map_err(SandboxError::io("create mount point", path))?,
        }
    }
    Ok(())
}

/// Something made in the root because no stub showed.
#[derive(Debug)]
pub(super) struct MadePoint {
    /// Absolute path in the root, free of symlinks.
    path: PathBuf,
    kind: PointKind,
    /// The directory it was made in, as it was before; `None` when that was made by us, too.
    parent_before: Option<Metadata>,
    /// Modification time of the parent just afterwards.
    parent_mtime_after: (i64, i64),
}

/// Makes the mount point `target` in the root of the calling thread, following symlinks.
pub(super) fn make_point(target: &str, kind: PointKind) -> io::Result<Vec<MadePoint>> {
    let (mut path, missing) = locate(Path::new(target))?;
    let mut made = Vec::new();
    for (index, name) in missing.iter().enumerate() {
        let parent = path.clone();
        let parent_before = if index == 0 { Some(fs::symlink_metadata(&parent)?) } else { None };
        path.push(name);
        let kind = if index + 1 == missing.len() { kind } else { PointKind::Directory };
        match kind {
            PointKind::Directory => DirBuilder::new().mode(0o755).create(&path)?,
            PointKind::File => drop(fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path)?),
        }
        let parent_mtime_after = mtime(&fs::symlink_metadata(&parent)?);
        made.push(MadePoint { path: path.clone(), kind, parent_before, parent_mtime_after });
    }
    Ok(made)
}

/// Most symlinks on one path, as in the kernel.
const MOST_LINKS: usize = 40;

/// The part of an absolute path that exists, free of symlinks, and the names that are missing below it.
fn locate(target: &Path) -> io::Result<(PathBuf, Vec<OsString>)> {
    let mut todo: Vec<OsString> = names(target).rev().collect();
    let mut found = PathBuf::from("/");
    let mut links = 0;
    while let Some(name) = todo.pop() {
        if name == ".." {
            found.pop();
            continue;
        }
        let next = found.join(&name);
        match fs::symlink_metadata(&next) {
            Ok(metadata) if metadata.is_symlink() => {
                links += 1;
                if links > MOST_LINKS {
                    return Err(rustix::io::Errno::LOOP.into());
                }
                let link = fs::read_link(&next)?;
                if link.is_absolute() {
                    found = PathBuf::from("/");
                }
                todo.extend(names(&link).rev());
            }
            Ok(_) => found = next,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let missing = [name].into_iter().chain(todo.into_iter().rev());
                return Ok((found, missing.filter(|name| name != "..").collect()));
            }
            Err(error) => return Err(error),
        }
    }
    Ok((found, Vec::new()))
}

fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    })
}

/// Takes everything of ours out of `upper` again, after the mounts are gone.
///
/// `stubs` are the targets that had stubs, `made` what [`make_point`] made, `lower` the real layers. What the command
/// has filled, or what a real layer has as well, stays.
pub(super) fn remove_traces<'a>(
    upper: &Path,
    lower: &[PathBuf],
    stubs: impl Iterator<Item = &'a str>,
    made: &[MadePoint],
) -> Result<(), SandboxError> {
    for point in made.iter().rev() {
        remove_made(upper, lower, point)
            .map_err(SandboxError::io("remove mount point", upper.join(relative(&point.path))))?;
    }
    // Children sort after their parents.
    let candidates: BTreeSet<&Path> = stubs
        .flat_map(|target| Path::new(target).ancestors())
        .map(relative)
        .filter(|path| !path.as_os_str().is_empty())
        .collect();
    for path in candidates.iter().rev() {
        let ours = upper.join(path);
        remove_stub(&ours, path, lower).map_err(SandboxError::io("remove mount point", ours))?;
    }
    Ok(())
}

/// A stub got into `upper` if it was touched (a directory whose mode was changed) or, by a command with every
/// privilege, unmounted and deleted (a whiteout).
fn remove_stub(ours: &Path, path: &Path, lower: &[PathBuf]) -> io::Result<()> {
    let Some(metadata) = existing(ours)? else { return Ok(()) };
    if lower.iter().any(|layer| fs::symlink_metadata(layer.join(path)).is_ok()) {
        return Ok(());
    }
    let kind = metadata.file_type();
    if kind.is_dir() {
        return remove_if_empty(ours);
    }
    let whiteout = kind.is_char_device() && metadata.rdev() == 0;
    if whiteout || (kind.is_file() && metadata.size() == 0) {
        return fs::remove_file(ours);
    }
    Ok(())
}

fn remove_made(upper: &Path, lower: &[PathBuf], point: &MadePoint) -> io::Result<()> {
    let ours = upper.join(relative(&point.path));
    let Some(parent) = ours.parent().map(Path::to_path_buf) else { return Ok(()) };
    let Some(parent_now) = existing(&parent)? else { return Ok(()) };
    match (existing(&ours)?, point.kind) {
        (Some(metadata), PointKind::Directory) if metadata.is_dir() => remove_if_empty(&ours)?,
        (Some(metadata), PointKind::File) if metadata.is_file() && metadata.size() == 0 => fs::remove_file(&ours)?,
        _ => return Ok(()),
    }
    let Some(before) = &point.parent_before else { return Ok(()) };
    // Only our own changes are undone: a directory that the command has changed keeps the time of that.
    let touched = mtime(&parent_now) != point.parent_mtime_after;
    set_mtime(&parent, if touched { mtime(&parent_now) } else { mtime(before) })?;
    if !touched {
        remove_copied(upper, lower, &parent)?;
    }
    Ok(())
}

/// Removes directories that overlayfs has copied up only because something was made below them, from `directory` upwards.
fn remove_copied(upper: &Path, lower: &[PathBuf], directory: &Path) -> io::Result<()> {
    for path in directory.ancestors().take_while(|path| *path != upper) {
        let Some(now) = existing(path)? else { break };
        let inside = path.strip_prefix(upper).unwrap_or(path);
        let below = lower.iter().rev().find_map(|layer| fs::symlink_metadata(layer.join(inside)).ok());
        let facts = |found: &Metadata| (found.mode(), found.uid(), found.gid(), mtime(found));
        let unchanged = below.is_some_and(|below| facts(&below) == facts(&now));
        if !unchanged || fs::read_dir(path)?.next().is_some() {
            break;
        }
        fs::remove_dir(path)?;
    }
    Ok(())
}

fn remove_if_empty(directory: &Path) -> io::Result<()> {
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        result => result,
    }
}

fn existing(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

fn mtime(metadata: &Metadata) -> (i64, i64) {
    (metadata.mtime(), metadata.mtime_nsec())
}

fn set_mtime(path: &Path, (seconds, nanoseconds): (i64, i64)) -> io::Result<()> {
    let mtime = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: mtime, last_modification: mtime };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stubs_are_made_with_their_parents() {
        let root = tempfile::tempdir().unwrap();
        let targets =
            [("/a/b/c", PointKind::Directory), ("/etc/hosts", PointKind::File), ("/a/b", PointKind::Directory)];
        make_stubs(root.path(), targets.into_iter()).unwrap();
        assert!(root.path().join("a/b/c").is_dir());
        assert!(root.path().join("etc/hosts").is_file());
        // Contradictions are not our business.
        make_stubs(root.path(), [("/etc/hosts/x", PointKind::Directory)].into_iter()).unwrap();
    }

    #[test]
    fn touched_stubs_go_and_filled_ones_stay() {
        let upper = tempfile::tempdir().unwrap();
        let layer = tempfile::tempdir().unwrap();
        for path in ["p/q/r", "x/y", "real/z", "only"] {
            fs::create_dir_all(upper.path().join(path)).unwrap();
        }
        fs::write(upper.path().join("p/q/file"), "x").unwrap();
        fs::create_dir_all(layer.path().join("real")).unwrap();
        let stubs = ["/p/q/r", "/x/y", "/real/z"];
        remove_traces(upper.path(), &[layer.path().to_owned()], stubs.into_iter(), &[]).unwrap();
        let exists = |path: &str| upper.path().join(path).exists();
        assert!(exists("p/q/file") && !exists("p/q/r"));
        assert!(!exists("x"));
        assert!(exists("real") && !exists("real/z"), "a real layer has the parent");
        assert!(exists("only"));
    }
}
