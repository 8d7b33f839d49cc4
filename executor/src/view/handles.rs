//! Open directories of a root view, in bounded number.
//!
//! A root of many layers has many directories for each path, and a copy holds on to every directory that it takes from. So
//! a merged directory keeps no handles; it asks here, where those used last stay open and others are opened again, by
//! their path from the root of their layer.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use super::{Result, ViewError};

/// Directories that stay open: far below the usual limit of 1024 handles, and enough for deep trees of many layers.
const MAX_OPEN: usize = 256;

/// A directory of one layer: the merged directory it belongs to, and the layer.
type Key = (u64, usize);

/// The open directories of one root view.
#[derive(Debug)]
pub(super) struct Handles {
    trees: Box<[PathBuf]>,
    roots: Box<[Arc<OwnedFd>]>,
    next_dir: AtomicU64,
    recent: Mutex<Recent>,
}

/// Those used first leave first.
#[derive(Debug, Default)]
struct Recent {
    open: HashMap<Key, Arc<OwnedFd>>,
    order: VecDeque<Key>,
}

impl Handles {
    /// Opens the roots of the trees, base first.
    pub(super) fn open(trees: &[PathBuf]) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |tree: &PathBuf| match openat(CWD, tree, flags, Mode::empty()) {
            Ok(fd) => Ok(Arc::new(fd)),
            Err(e) => Err(ViewError::io("open directory", tree.clone(), e)),
        };
        Ok(Self {
            roots: trees.iter().map(open).collect::<Result<_>>()?,
            trees: trees.into(),
            next_dir: AtomicU64::new(0),
            recent: Mutex::default(),
        })
    }

    /// No trees at all.
    pub(super) fn none() -> Self {
        Self { trees: Box::new([]), roots: Box::new([]), next_dir: AtomicU64::new(0), recent: Mutex::default() }
    }

    /// The trees, base first.
    pub(super) fn trees(&self) -> &[PathBuf] {
        &self.trees
    }

    /// The root directory of a layer.
    pub(super) fn root(&self, layer_idx: usize) -> &Arc<OwnedFd> {
        &self.roots[layer_idx]
    }

    /// A number for a merged directory, different from all others of this view.
    pub(super) fn new_dir(&self) -> u64 {
        self.next_dir.fetch_add(1, Ordering::Relaxed)
    }

    /// The part that layer `layer_idx` has in the merged directory `dir` at `path` (in the root, absolute).
    pub(super) fn get(&self, dir: u64, layer_idx: usize, path: &Path) -> Result<Arc<OwnedFd>> {
        let inside = path.strip_prefix("/").unwrap_or(path);
        if inside.as_os_str().is_empty() {
            return Ok(self.roots[layer_idx].clone());
        }
        let known = self.recent.lock().unwrap_or_else(PoisonError::into_inner).open.get(&(dir, layer_idx)).cloned();
        if let Some(fd) = known {
            return Ok(fd);
        }
        let fd = open_beneath(&self.roots[layer_idx], inside, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|e| ViewError::io("open directory", self.trees[layer_idx].join(inside), e))?;
        let fd = Arc::new(fd);
        self.keep(dir, layer_idx, fd.clone());
        Ok(fd)
    }

    /// Keeps a handle for a while.
    pub(super) fn keep(&self, dir: u64, layer_idx: usize, fd: Arc<OwnedFd>) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.open.insert((dir, layer_idx), fd).is_none() {
            recent.order.push_back((dir, layer_idx));
        }
        if recent.order.len() > MAX_OPEN
            && let Some(oldest) = recent.order.pop_front()
        {
            recent.open.remove(&oldest);
        }
    }
}

/// Opens `path` relative to the directory `root`, in which it must stay; no component of it may be a link. An empty path is
/// the directory itself. `path` has no `..`.
pub(crate) fn open_beneath(root: impl AsFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    /// Whether the kernel refuses `openat2` (before Linux 5.6, and some seccomp profiles).
    static IS_REFUSED: AtomicBool = AtomicBool::new(false);
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    if !IS_REFUSED.load(Ordering::Relaxed) {
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match openat2(&root, path, flags, Mode::empty(), how) {
            // A file may be refused for other reasons with EPERM; the slow way then says the same.
            Err(Errno::NOSYS) => IS_REFUSED.store(true, Ordering::Relaxed),
            // EAGAIN: a rename elsewhere raced with the lookup.
            Err(Errno::PERM | Errno::AGAIN) => {}
            done => return done,
        }
    }
    open_stepwise(root, path, flags)
}

/// As [`open_beneath`], one component after the other.
fn open_stepwise(root: impl AsFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return openat(root, ".", flags, Mode::empty());
    };
    let mut dir: Option<OwnedFd> = None;
    for component in parent {
        let next = match &dir {
            Some(dir) => openat(dir, component, step, Mode::empty())?,
            None => openat(&root, component, step, Mode::empty())?,
        };
        dir = Some(next);
    }
    match &dir {
        Some(dir) => openat(dir, name, flags, Mode::empty()),
        None => openat(root, name, flags, Mode::empty()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn both_ways_of_opening_are_strict() {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/f"), "text").unwrap();
        symlink("d", dir.path().join("dirlink")).unwrap();
        symlink("f", dir.path().join("d/filelink")).unwrap();
        let root = openat(CWD, dir.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for (path, opens) in
            [("", true), ("d", true), ("d/f", true), ("dirlink/f", false), ("d/filelink", false), ("none", false)]
        {
            let path = Path::new(path);
            assert_eq!(open_beneath(&root, path, OFlags::RDONLY).is_ok(), opens, "{}", path.display());
            let at = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            assert_eq!(open_stepwise(&root, at, flags).is_ok(), opens, "{}", path.display());
        }
    }
}
