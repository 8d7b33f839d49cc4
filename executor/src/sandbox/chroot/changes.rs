//! What a command has changed in its root: found by comparing the root with a snapshot of it, written as a layer's tree.
//!
//! The kernel sets a file's change time whenever anything about it changes, and nobody can set it back. So a file with the
//! inode and the change time that it had is what it was; provided that the clock has moved on between the snapshot and the
//! command, which [`Snapshot::wait_for_the_clock`] makes sure of. Directories, whose change time moves whenever something
//! is put into them and taken away again, are compared by their metadata.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, XattrFlags};

use super::super::error::SandboxError;
use crate::copy_out::copy_entry;
use crate::layer::is_same;
use crate::view::{Below, read_xattrs};
use crate::whiteout::make_whiteout;

/// Steps of the kernel's coarse clock are 1 to 10 ms; one that stands still is not waited for.
const TICK: Duration = Duration::from_millis(1);
const MOST_TICKS: usize = 1000;

/// All entries of a directory by path, relative to it; the empty path is the directory.
pub(super) struct Snapshot {
    entries: BTreeMap<PathBuf, Stat>,
}

impl Snapshot {
    /// Looks at everything.
    pub(super) fn of(root: &Path) -> Result<Self, SandboxError> {
        let fd = open_directory(CWD, root.as_os_str()).map_err(SandboxError::call("open", root))?;
        let mut snapshot = Self { entries: BTreeMap::new() };
        let stat = rustix::fs::fstat(&fd).map_err(SandboxError::call("read", root))?;
        snapshot.entries.insert(PathBuf::new(), stat);
        drop(fd);
        // Directories may be nested deeper than a stack.
        let mut todo = vec![PathBuf::new()];
        while let Some(path) = todo.pop() {
            let whole = root.join(&path);
            snapshot.add(&path, &whole, &mut todo).map_err(SandboxError::call("read", &whole))?;
        }
        Ok(snapshot)
    }

    fn add(&mut self, path: &Path, whole: &Path, todo: &mut Vec<PathBuf>) -> rustix::io::Result<()> {
        let fd = open_directory(CWD, whole.as_os_str())?;
        for entry in Dir::read_from(&fd)? {
            let entry = entry?;
            let name = <OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let stat = rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let path = path.join(name);
            if is_directory(&stat) {
                todo.push(path.clone());
            }
            self.entries.insert(path, stat);
        }
        Ok(())
    }

    /// Waits until the clock of the file system that has `scratch` is past every change time.
    pub(super) fn wait_for_the_clock(&self, scratch: &Path) -> Result<(), SandboxError> {
        let latest = self.entries.values().map(change_time).max().unwrap_or_default();
        let probe = scratch.join("clock");
        for _ in 0..MOST_TICKS {
            std::fs::write(&probe, "").map_err(SandboxError::io("write", &probe))?;
            let stat = rustix::fs::stat(&probe).map_err(SandboxError::call("read", &probe))?;
            std::fs::remove_file(&probe).map_err(SandboxError::io("remove", &probe))?;
            if change_time(&stat) > latest {
                break;
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    }
}

fn change_time(stat: &Stat) -> (i64, u64) {
    (stat.st_ctime, stat.st_ctime_nsec as _)
}

fn modification_time(stat: &Stat) -> (i64, u64) {
    (stat.st_mtime, stat.st_mtime_nsec as _)
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Mode, owner and time.
fn has_same_metadata(a: &Stat, b: &Stat) -> bool {
    (a.st_mode, a.st_uid, a.st_gid, modification_time(a)) == (b.st_mode, b.st_uid, b.st_gid, modification_time(b))
}

/// Writes the changes between two snapshots of `root` into the empty directory `upper`, in overlayfs' own format. `lower`
/// are the layers that the root was made of: what is the same there is left out.
pub(super) fn write(
    before: &Snapshot,
    after: &Snapshot,
    root: &Path,
    lower: &[PathBuf],
    upper: &Path,
) -> Result<(), SandboxError> {
    let (here, below) = (Below::new(vec![root.to_owned()]), Below::new(lower.to_vec()));
    let is_same = |path: &Path| is_same(&here, &below, path).map_err(SandboxError::io("compare", root.join(path)));
    let mut writer = Writer { after, root, upper, directories: BTreeSet::new(), links: HashMap::new() };
    writer.directories.insert(PathBuf::new());
    for (path, stat) in &after.entries {
        let old = before.entries.get(path);
        if is_directory(stat) {
            match old {
                Some(old) if old.st_ino == stat.st_ino && has_same_metadata(old, stat) => {}
                Some(old) if old.st_ino == stat.st_ino && is_directory(old) => writer.directory(path)?,
                replaced => writer.new_directory(path, replaced.is_some())?,
            }
            continue;
        }
        let is_untouched = old.is_some_and(|old| old.st_ino == stat.st_ino && change_time(old) == change_time(stat));
        if !(is_untouched || stat.st_nlink == 1 && is_same(path)?) {
            writer.leaf(path, stat)?;
        }
    }
    for path in before.entries.keys().filter(|path| !after.entries.contains_key(*path)) {
        let parent = path.parent().unwrap_or(Path::new(""));
        let (old, new) = (before.entries.get(parent), after.entries.get(parent));
        // What a directory that is gone or another one had in it is gone with it.
        if old.zip(new).is_some_and(|(old, new)| old.st_ino == new.st_ino && is_directory(new)) {
            writer.whiteout(path)?;
        }
    }
    writer.finish()
}

/// Makes names of one file files of their own, as they are for the next step where layers are merged.
pub(super) fn separate_links(after: &Snapshot, root: &Path) -> Result<(), SandboxError> {
    let mut seen = BTreeSet::new();
    for (path, stat) in &after.entries {
        if stat.st_nlink < 2 || is_directory(stat) || seen.insert(stat.st_ino) {
            continue;
        }
        let (whole, parent) = (root.join(path), root.join(path.parent().unwrap_or(Path::new(""))));
        let fd = open_directory(CWD, parent.as_os_str()).map_err(SandboxError::call("open", &parent))?;
        let before = rustix::fs::fstat(&fd).map_err(SandboxError::call("read", &parent))?;
        let copy = root.with_extension("link");
        copy_entry(&parent, path.file_name().unwrap_or_default(), &copy)?;
        std::fs::rename(&copy, &whole).map_err(SandboxError::io("replace", &whole))?;
        rustix::fs::futimens(&fd, &times(&before)).map_err(SandboxError::call("set the time of", &parent))?;
    }
    Ok(())
}

struct Writer<'a> {
    after: &'a Snapshot,
    root: &'a Path,
    upper: &'a Path,
    /// Those that are in the tree; described in the end, when nothing is put into them any more.
    directories: BTreeSet<PathBuf>,
    /// Where a file with several names was written first.
    links: HashMap<u64, PathBuf>,
}

impl Writer<'_> {
    /// Makes a directory that the layers have, too, with its parents.
    fn directory(&mut self, path: &Path) -> Result<(), SandboxError> {
        if self.directories.contains(path) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        let made = self.upper.join(path);
        std::fs::create_dir(&made).map_err(SandboxError::io("create", &made))?;
        self.directories.insert(path.to_owned());
        Ok(())
    }

    /// Makes a directory that is not the one that was there.
    fn new_directory(&mut self, path: &Path, hides_below: bool) -> Result<(), SandboxError> {
        self.directory(path)?;
        if hides_below {
            let made = self.upper.join(path);
            let marked = rustix::fs::setxattr(&made, "user.overlay.opaque", b"y", XattrFlags::empty());
            marked.map_err(SandboxError::call("mark", made))?;
        }
        Ok(())
    }

    fn leaf(&mut self, path: &Path, stat: &Stat) -> Result<(), SandboxError> {
        self.directory(path.parent().unwrap_or(Path::new("")))?;
        let made = self.upper.join(path);
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&stat.st_ino) {
                return std::fs::hard_link(first, &made).map_err(SandboxError::io("link", &made));
            }
            self.links.insert(stat.st_ino, made.clone());
        }
        let parent = self.root.join(path.parent().unwrap_or(Path::new("")));
        Ok(copy_entry(&parent, path.file_name().unwrap_or_default(), &made)?)
    }

    fn whiteout(&mut self, path: &Path) -> Result<(), SandboxError> {
        self.directory(path.parent().unwrap_or(Path::new("")))?;
        let made = self.upper.join(path);
        make_whiteout(CWD, &made).map_err(SandboxError::call("mark as deleted", made))
    }

    /// Gives directories what they have in the root; children first.
    fn finish(self) -> Result<(), SandboxError> {
        for path in self.directories.iter().rev() {
            let (made, source) = (self.upper.join(path), self.root.join(path));
            let Some(stat) = self.after.entries.get(path) else { continue };
            let fd = open_directory(CWD, made.as_os_str()).map_err(SandboxError::call("open", &made))?;
            let from = open_directory(CWD, source.as_os_str()).map_err(SandboxError::call("open", &source))?;
            let xattrs = read_xattrs(&from, OsStr::new("."));
            let xattrs = xattrs.map_err(SandboxError::call("read the xattrs of", &source))?;
            describe(fd.as_fd(), stat, &xattrs).map_err(SandboxError::call("describe", &made))?;
        }
        Ok(())
    }
}

fn describe(fd: BorrowedFd<'_>, stat: &Stat, xattrs: &[(OsString, Vec<u8>)]) -> rustix::io::Result<()> {
    crate::owners::fchown(fd, stat.st_uid, stat.st_gid)?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    for (name, value) in xattrs {
        rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty())?;
    }
    rustix::fs::futimens(fd, &times(stat))
}

/// The times of a status.
pub(super) fn times(stat: &Stat) -> rustix::fs::Timestamps {
    let time = |secs, nanos| rustix::fs::Timespec { tv_sec: secs, tv_nsec: nanos };
    rustix::fs::Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec as _),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec as _),
    }
}

fn open_directory(parent: impl std::os::fd::AsFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}
