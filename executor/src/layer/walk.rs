//! Walks a tree in the order of its tar, and loads what it finds ahead of the one who wants it.
//!
//! Order: names of a directory in byte order, a directory before what is in it. The walk itself reads directories and asks
//! the layers below; opening, reading and hashing files happens on the pool, a batch at a time, a few batches ahead.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use oci::layer::Ordered;
use rustix::fs::{FileType, Stat};

use super::dir::{self, OwnXattrs};
use super::error::{Result, TreeError, as_path};
use super::lower::LowerView;

/// Entries that are loaded as one job: enough to make the job's own cost vanish.
const BATCH_STEPS: usize = 64;

/// What the walk comes across.
pub(super) enum Step {
    Dir(DirStep),
    Leaf(LeafStep),
    /// A name of the layers below that an opaque directory hides; not in the tree.
    Hidden(Vec<u8>),
}

/// A directory of the tree, never its root.
pub(super) struct DirStep {
    pub(super) path: Vec<u8>,
    pub(super) stat: Stat,
    pub(super) capability: Option<Vec<u8>>,
    pub(super) is_opaque: bool,
    /// Whether it differs from what lies below, its contents aside. Always when nothing was asked about below.
    pub(super) is_changed: bool,
}

/// Everything that is no directory, not looked at yet.
pub(super) struct LeafStep {
    pub(super) path: Vec<u8>,
    /// The directory that it is in.
    pub(super) parent: Arc<OwnedFd>,
    /// What the directory says that it is.
    pub(super) kind: FileType,
    /// Whether there may be something of its name below: its directory exists there.
    pub(super) may_be_below: bool,
    /// Whether a directory above it hides what lies below.
    pub(super) hides_below: bool,
}

/// A walk over one tree.
pub(super) struct Walk<'a> {
    lower: Option<&'a dyn LowerView>,
    frames: Vec<Frame>,
}

/// A directory that the walk is in.
struct Frame {
    path: Vec<u8>,
    fd: Arc<OwnedFd>,
    /// In reverse order.
    names: Vec<(Vec<u8>, Name)>,
    is_below: bool,
    hides_below: bool,
}

enum Name {
    Here(FileType),
    Hidden,
}

impl LeafStep {
    /// The last component of its path.
    pub(super) fn name(&self) -> &[u8] {
        last_component(&self.path)
    }

    /// The path of the directory that it is in.
    pub(super) fn directory(&self) -> &[u8] {
        let end = self.path.len() - self.name().len();
        self.path[..end].strip_suffix(b"/").unwrap_or_default()
    }
}

impl<'a> Walk<'a> {
    /// Starts a walk. With `lower`, changes of directories and hidden names are found out.
    pub(super) fn new(tree: &Path, lower: Option<&'a dyn LowerView>) -> Result<Self> {
        let fd = dir::open_tree(tree).map_err(|error| TreeError::io("open", tree, error))?;
        let is_below = lower.is_some_and(LowerView::has_root);
        let mut walk = Self { lower, frames: Vec::new() };
        let opaque = dir::own_xattrs(&fd).map_err(|error| TreeError::io("read xattrs of", tree, error))?.is_opaque;
        walk.push(Vec::new(), fd, is_below, opaque)?;
        Ok(walk)
    }

    /// The next step; `None` at the end.
    pub(super) fn next_step(&mut self) -> Result<Option<Step>> {
        loop {
            let Some(frame) = self.frames.last_mut() else { return Ok(None) };
            let Some((name, kind)) = frame.names.pop() else {
                self.frames.pop();
                continue;
            };
            let path = join(&frame.path, &name);
            return Ok(Some(match kind {
                Name::Hidden => Step::Hidden(path),
                Name::Here(FileType::Directory) => Step::Dir(self.enter(path, &name)?),
                Name::Here(kind) => {
                    let (parent, hides_below) = (Arc::clone(&frame.fd), frame.hides_below);
                    Step::Leaf(LeafStep { path, parent, kind, may_be_below: frame.is_below, hides_below })
                }
            }));
        }
    }

    fn enter(&mut self, path: Vec<u8>, name: &[u8]) -> Result<DirStep> {
        let at = |operation| TreeError::io_at(operation, &path);
        let Some(parent) = self.frames.last() else {
            return Err(TreeError::io("enter", as_path(&path), rustix::io::Errno::NOENT));
        };
        let fd = dir::open_dir(&parent.fd, name).map_err(at("open"))?;
        let stat = dir::fstat(&fd).map_err(at("stat"))?;
        let OwnXattrs { capability, is_opaque, is_redirected } = dir::own_xattrs(&fd).map_err(at("read xattrs of"))?;
        if is_redirected {
            return Err(TreeError::Redirected { path: as_path(&path).to_owned() });
        }
        let below = match self.lower {
            Some(lower) if parent.is_below => compare(lower, &path, &stat, capability.as_deref())?,
            _ => Below::Nothing,
        };
        let hides_below = parent.hides_below || is_opaque;
        self.push(path.clone(), fd, below != Below::Nothing, hides_below)?;
        Ok(DirStep { path, stat, capability, is_opaque, is_changed: below != Below::SameDir })
    }

    fn push(&mut self, path: Vec<u8>, fd: OwnedFd, is_below: bool, hides_below: bool) -> Result<()> {
        let listed = dir::list(&fd).map_err(|error| TreeError::io("list", as_path(&path), error))?;
        let mut names: Vec<_> = listed.into_iter().map(|(name, kind)| (name, Name::Here(kind))).collect();
        names.sort_unstable_by(|(a, _), (b, _)| b.cmp(a));
        if let Some(lower) = self.lower
            && is_below
            && hides_below
        {
            let below = lower.list(as_path(&path)).map_err(|error| TreeError::io("list", as_path(&path), error))?;
            let below = below.into_iter().map(std::os::unix::ffi::OsStringExt::into_vec);
            let hidden: Vec<_> = below
                .filter(|name: &Vec<u8>| names.binary_search_by(|(here, _)| name.cmp(here)).is_err())
                .map(|name| (name, Name::Hidden))
                .collect();
            names.extend(hidden);
            names.sort_unstable_by(|(a, _), (b, _)| b.cmp(a));
        }
        self.frames.push(Frame { path, fd: Arc::new(fd), names, is_below, hides_below });
        Ok(())
    }
}

/// What lies below a directory of the tree.
#[derive(PartialEq, Eq)]
enum Below {
    /// No directory.
    Nothing,
    /// A directory with other metadata.
    OtherDir,
    /// A directory with the same metadata.
    SameDir,
}

/// The "unchanged" test for directories. Spec: `spec/engine.md` §1.10.
fn compare(lower: &dyn LowerView, path: &[u8], stat: &Stat, capability: Option<&[u8]>) -> Result<Below> {
    let path = as_path(path);
    let failed = |error| TreeError::io("look below", path, error);
    let Some(meta) = lower.metadata(path).map_err(failed)? else { return Ok(Below::Nothing) };
    if meta.kind != FileType::Directory {
        return Ok(Below::Nothing);
    }
    if (meta.mode, meta.uid, meta.gid) != (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid) {
        return Ok(Below::OtherDir);
    }
    let xattrs = lower.xattrs(path).map_err(failed)?;
    let capability_below = xattrs.iter().find(|(name, _)| name == dir::CAPABILITY).map(|(_, value)| value.as_slice());
    Ok(if capability_below == capability { Below::SameDir } else { Below::OtherDir })
}

/// Walks, loads batches of steps with `load` on the pool, and hands the results to `consume` in order.
///
/// A tree of one batch is loaded on the caller's thread: starting the pool would cost more than it.
pub(super) fn load_ahead<T: Send + 'static>(
    mut walk: Walk<'_>,
    load: fn(Vec<Step>) -> Result<T>,
    mut consume: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    let max_in_flight = 2 * rayon::current_num_threads() + 2;
    let mut in_flight: Ordered<Result<T>> = Ordered::new();
    let mut is_first = true;
    loop {
        let mut batch = Vec::with_capacity(BATCH_STEPS);
        while batch.len() < BATCH_STEPS
            && let Some(step) = walk.next_step()?
        {
            batch.push(step);
        }
        let is_last = batch.len() < BATCH_STEPS;
        if is_first && is_last {
            return consume(load(batch)?);
        }
        is_first = false;
        in_flight.push(move || load(batch));
        while in_flight.len() >= max_in_flight || is_last {
            match in_flight.pop() {
                Some(loaded) => consume(loaded?)?,
                None => return Ok(()),
            }
        }
    }
}

/// Joins a directory's path and a name.
pub(super) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(dir.len() + 1 + name.len());
    path.extend_from_slice(dir);
    if !dir.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// The last component of a path.
pub(super) fn last_component(path: &[u8]) -> &[u8] {
    path.rsplit(|&byte| byte == b'/').next().unwrap_or(path)
}
