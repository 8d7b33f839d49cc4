//! Root views: what a stack of layer trees looks like when merged, without mounting it.
//!
//! A layer tree is a directory in overlayfs' own format: a character device 0/0 hides the name below it, and a directory
//! whose `trusted.overlay.opaque` (or `user.overlay.opaque`) xattr is `y` hides the whole directory below it. A plain
//! directory is a stack of one. Trees may come from strangers, so every access is relative to a directory handle, opens
//! one name at a time and never follows a link by accident: nothing outside of the trees can be reached.
//!
//! Read [`RootView`] first, then [`DirView`] (one merged directory), then [`resolve`] (links, as a chroot sees them).
//! Knows nothing of Dockerfiles or of how layers are made.

mod dir;
mod error;
mod handles;
mod lower;
mod node;
pub mod passwd;
pub mod resolve;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

pub use dir::DirView;
pub(crate) use dir::{fd_path, handle_path, read_xattrs};
pub use error::ViewError;
pub(crate) use handles::open_beneath;
pub use lower::Below;
pub use node::{Metadata, Node, NodeKind};
pub use resolve::Resolved;

use handles::Handles;

/// The result type of views.
pub type Result<T, E = ViewError> = std::result::Result<T, E>;

/// Extended attributes, names with values, sorted by name.
pub type Xattrs = Vec<(OsString, Vec<u8>)>;

/// A stack of layer trees, merged. Cheap to clone.
///
/// Paths given to its methods are inside the root; a leading `/` is optional, `.` is dropped and `..` stops at the root.
/// The trees must not change while they are looked at; a view of a tree that is being written sees some state of it.
#[derive(Clone, Debug)]
pub struct RootView {
    handles: Arc<Handles>,
    root: DirView,
}

impl RootView {
    /// Opens a stack of layer trees, base first. No trees: an empty root.
    ///
    /// # Errors
    /// [`ViewError::Io`] when a tree cannot be opened.
    pub fn open(trees: &[PathBuf]) -> Result<Self> {
        let handles = Arc::new(Handles::open(trees)?);
        let mut layers = Vec::with_capacity(trees.len());
        for (layer_idx, tree) in trees.iter().enumerate().rev() {
            layers.push(layer_idx);
            if layer_idx > 0 && dir::is_opaque(handles.root(layer_idx), tree)? {
                break;
            }
        }
        Ok(Self { root: DirView::new(handles.clone(), PathBuf::from("/"), layers), handles })
    }

    /// An empty root: a stack of no trees.
    pub fn empty() -> Self {
        let handles = Arc::new(Handles::none());
        Self { root: DirView::new(handles.clone(), PathBuf::from("/"), Vec::new()), handles }
    }

    /// The trees, base first.
    pub fn layers(&self) -> &[PathBuf] {
        self.handles.trees()
    }

    /// Whether there are no layers at all (`FROM scratch` before any step), which is not the same as an empty `/`.
    pub fn is_scratch(&self) -> bool {
        self.layers().is_empty()
    }

    /// This stack with one more tree on top.
    ///
    /// # Errors
    /// As [`RootView::open`].
    pub fn with(&self, tree: &Path) -> Result<Self> {
        let trees: Vec<PathBuf> = self.layers().iter().cloned().chain([tree.to_owned()]).collect();
        Self::open(&trees)
    }

    /// The merged `/`.
    pub fn root(&self) -> &DirView {
        &self.root
    }

    /// What is at `path`; no link is followed, neither on the way nor at the end.
    ///
    /// `None` when there is nothing, or something on the way is no directory. `/` of an empty stack is `None`, too.
    ///
    /// # Errors
    /// [`ViewError::Io`].
    pub fn lookup(&self, path: &Path) -> Result<Option<Node>> {
        let Some((parent, name)) = split(path) else {
            return self.root.metadata();
        };
        match self.dir(&parent)? {
            Some(dir) => dir.lookup(&name),
            None => Ok(None),
        }
    }

    /// The merged directory at `path`; no link is followed. `None` when there is none.
    ///
    /// # Errors
    /// [`ViewError::Io`].
    pub fn dir(&self, path: &Path) -> Result<Option<DirView>> {
        let mut dir = self.root.clone();
        for name in normal_components(path) {
            match dir.child_dir(&name)? {
                Some(child) => dir = child,
                None => return Ok(None),
            }
        }
        Ok(Some(dir))
    }

    /// Where `path` leads when every link is followed inside the root, the last component included.
    ///
    /// # Errors
    /// [`ViewError::TooManyLinks`] after 255 links, [`ViewError::Io`].
    pub fn resolve(&self, path: &Path) -> Result<Resolved<Node>> {
        resolve::resolve(self, path, resolve::Last::Followed)
    }

    /// As [`RootView::resolve`], but a link at the end is left alone.
    ///
    /// # Errors
    /// As [`RootView::resolve`].
    pub fn resolve_parent(&self, path: &Path) -> Result<Resolved<Node>> {
        resolve::resolve(self, path, resolve::Last::Kept)
    }

    /// Names in the directory at `path`, merged, in byte order; `None` when it is no directory.
    ///
    /// # Errors
    /// [`ViewError::Io`].
    pub fn list(&self, path: &Path) -> Result<Option<Vec<OsString>>> {
        self.dir(path)?.map(|dir| dir.names()).transpose()
    }

    /// Opens the regular file at `path` for reading; no link is followed. `None` when there is no regular file.
    ///
    /// # Errors
    /// [`ViewError::Io`].
    pub fn open_file(&self, path: &Path) -> Result<Option<File>> {
        self.in_parent(path, DirView::open_file)
    }

    /// The target of the link at `path`, as it is stored. `None` when there is no link.
    ///
    /// # Errors
    /// [`ViewError::Io`].
    pub fn read_link(&self, path: &Path) -> Result<Option<OsString>> {
        self.in_parent(path, DirView::read_link)
    }

    /// The extended attributes of what is at `path`, sorted by name, overlayfs' own left out. `None` when nothing is
    /// there.
    ///
    /// # Errors
    /// [`ViewError::Io`].
    pub fn xattrs(&self, path: &Path) -> Result<Option<Xattrs>> {
        match split(path) {
            None => self.root.own_xattrs().map(Some),
            Some(_) => self.in_parent(path, DirView::xattrs),
        }
    }

    fn in_parent<T>(&self, path: &Path, ask: impl Fn(&DirView, &OsStr) -> Result<Option<T>>) -> Result<Option<T>> {
        let Some((parent, name)) = split(path) else { return Ok(None) };
        match self.dir(&parent)? {
            Some(dir) => ask(&dir, &name),
            None => Ok(None),
        }
    }
}

/// The components of an in-root path: `.` dropped, `..` taken lexically and stopped at the root.
pub fn normal_components(path: &Path) -> Vec<OsString> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.to_owned()),
            Component::ParentDir => {
                names.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    names
}

/// Parent and last name of an in-root path; `None` for the root itself.
fn split(path: &Path) -> Option<(PathBuf, OsString)> {
    let mut names = normal_components(path);
    let last = names.pop()?;
    Some((names.iter().collect(), last))
}

#[cfg(test)]
mod tests;
