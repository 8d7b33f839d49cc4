//! Root views as the layer codec sees what lies below a layer.
//!
//! The codec asks path by path, mostly along one directory after another; the directories that were asked for last are
//! kept open, so that a question costs one system call and not a walk from the root through every layer.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::fs::FileType;

use super::{DirView, Node, NodeKind, RootView, ViewError};
use crate::layer::{LowerMeta, LowerView};

/// Directories that are kept open. Each holds one handle for every layer that has a part in it.
const MAX_OPEN_DIRS: usize = 16;

/// A stack of layer trees that answers the layer codec. It is opened at the first question: most small layers ask none.
pub struct Below {
    trees: Vec<PathBuf>,
    view: OnceLock<RootView>,
    /// Latest use first. `None`: there is no such directory.
    recent: Mutex<VecDeque<(PathBuf, Option<DirView>)>>,
}

impl Below {
    /// What the merged `trees` (base first) show lies below.
    pub fn new(trees: Vec<PathBuf>) -> Self {
        Self { trees, view: OnceLock::new(), recent: Mutex::default() }
    }

    fn view(&self) -> super::Result<&RootView> {
        if let Some(view) = self.view.get() {
            return Ok(view);
        }
        let opened = RootView::open(&self.trees)?;
        Ok(self.view.get_or_init(|| opened))
    }

    /// The merged directory at `path`; no link is followed.
    fn dir(&self, path: &Path) -> super::Result<Option<DirView>> {
        if path.as_os_str().is_empty() {
            return Ok(Some(self.view()?.root().clone()));
        }
        if let Some(known) = self.recall(path) {
            return Ok(known);
        }
        let parent = match path.parent() {
            Some(parent) => self.dir(parent)?,
            None => None,
        };
        let dir = match (parent, path.file_name()) {
            (Some(parent), Some(name)) => parent.child_dir(name)?,
            _ => None,
        };
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.push_front((path.to_owned(), dir.clone()));
        recent.truncate(MAX_OPEN_DIRS);
        Ok(dir)
    }

    fn recall(&self, path: &Path) -> Option<Option<DirView>> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let idx = recent.iter().position(|(known, _)| known == path)?;
        let found = recent.remove(idx)?;
        recent.push_front(found.clone());
        Some(found.1)
    }

    /// Asks the directory that holds `path`; `None` when there is none.
    fn ask<T>(
        &self,
        path: &Path,
        question: impl Fn(&DirView, &std::ffi::OsStr) -> super::Result<Option<T>>,
    ) -> io::Result<Option<T>> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
        match self.dir(parent).map_err(io_error)? {
            Some(dir) => question(&dir, name).map_err(io_error),
            None => Ok(None),
        }
    }
}

impl LowerView for Below {
    fn has_root(&self) -> bool {
        !self.trees.is_empty()
    }

    fn metadata(&self, path: &Path) -> io::Result<Option<LowerMeta>> {
        let node = match path.as_os_str().is_empty() {
            true => self.view().and_then(|view| view.root().metadata()).map_err(io_error)?,
            false => self.ask(path, DirView::lookup)?,
        };
        Ok(node.map(|node| meta_of(&node)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        match self.dir(dir).map_err(io_error)? {
            Some(dir) => dir.names().map_err(io_error),
            None => Ok(Vec::new()),
        }
    }

    fn xattrs(&self, path: &Path) -> io::Result<Vec<(OsString, Vec<u8>)>> {
        match path.as_os_str().is_empty() {
            true => self.view().and_then(|view| view.root().own_xattrs()).map_err(io_error),
            false => Ok(self.ask(path, DirView::xattrs)?.unwrap_or_default()),
        }
    }

    fn open_file(&self, path: &Path) -> io::Result<Option<File>> {
        self.ask(path, DirView::open_file)
    }

    fn read_link(&self, path: &Path) -> io::Result<Option<OsString>> {
        self.ask(path, DirView::read_link)
    }
}

fn meta_of(node: &Node) -> LowerMeta {
    let kind = match node.kind {
        NodeKind::File => FileType::RegularFile,
        NodeKind::Dir => FileType::Directory,
        NodeKind::Symlink => FileType::Symlink,
        NodeKind::Fifo => FileType::Fifo,
        NodeKind::Socket => FileType::Socket,
        NodeKind::CharDevice => FileType::CharacterDevice,
        NodeKind::BlockDevice => FileType::BlockDevice,
    };
    let is_device = matches!(node.kind, NodeKind::CharDevice | NodeKind::BlockDevice);
    LowerMeta {
        kind,
        mode: node.meta.mode,
        uid: node.meta.uid,
        gid: node.meta.gid,
        rdev: if is_device { node.meta.rdev } else { 0 },
        mtime_secs: node.meta.mtime_s,
        mtime_nanos: node.meta.mtime_ns,
    }
}

/// The codec's errors name the operation and the path again; the kind of ours is kept for those who look at it.
fn io_error(error: ViewError) -> io::Error {
    let kind = match &error {
        ViewError::Io { source, .. } => source.kind(),
        ViewError::TooManyLinks { .. } => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
