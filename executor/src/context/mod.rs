//! Contexts: directories of the client, read in place.
//!
//! A context is never copied. Its directories are read when something asks for them (a copy of `src/` never looks at
//! `node_modules/`), in parallel, through the ignore rules, and what was read once stays: within one build a context has
//! one state. Content is read only where a key or a layer needs it; an index that outlives the build spares unchanged
//! files. Links never lead out of the context.
//!
//! Read [`LocalContext`] first. [`source`] puts contexts and root views behind one type, [`select`] says what a copy takes
//! from either, and [`digest`] what of that counts for keys. Knows nothing of layers or of destinations.

mod content;
pub mod digest;
mod dir;
mod error;
mod file_list;
mod ignore;
pub mod listing;
mod mount;
mod scan;
pub mod select;
pub mod source;
pub mod walk;

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use cache::{ContextEntry, ContextIndex, StatKey};
use rustix::fs::{CWD, Mode, OFlags, openat};
use solver::plan::patterns::Verdict;

use content::Linked;
pub use content::{FileContent, Stamp};
pub use dir::{ContextDir, Entry};
pub use error::ContextError;
pub use ignore::{IgnoreRules, RuleAt};
pub use mount::{MountSource, materialize_for_mount};

use crate::view::resolve::{self, Child, Last, Resolved, Tree};
use crate::view::{self, Node, NodeKind, ViewError};

/// The result type of contexts.
pub type Result<T, E = ContextError> = std::result::Result<T, E>;

/// A directory of the client, as the builder sees it: without what the ignore rules hide, everything owned by root.
///
/// Cheap to clone; clones share what was read.
#[derive(Clone)]
pub struct LocalContext {
    inner: Arc<Inner>,
}

/// The directory that a file was last opened in, with a handle from the second file on.
#[derive(Debug, Default)]
pub struct LastDir(Option<(Arc<ContextDir>, Option<OwnedFd>)>);

struct Inner {
    name: String,
    root: PathBuf,
    fd: OwnedFd,
    rules: IgnoreRules,
    index: Option<ContextIndex>,
    /// Nanoseconds since the epoch.
    opened_at_ns: i64,
    top: OnceLock<Arc<ContextDir>>,
    /// Whether something was learned that the stored index does not have.
    has_news: AtomicBool,
    linked: Linked,
}

impl LocalContext {
    /// Opens the directory `root` as the context `name`. Nothing is read yet.
    ///
    /// # Errors
    /// [`ContextError::View`] when `root` cannot be opened.
    pub fn open(name: &str, root: &Path, rules: IgnoreRules, index: Option<ContextIndex>) -> Result<Self> {
        let opened_at_ns = content::nanoseconds(SystemTime::now());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(CWD, root, flags, Mode::empty())
            .map_err(|e| ContextError::View(ViewError::io("open directory", root, e)))?;
        Ok(Self {
            inner: Arc::new(Inner {
                name: name.to_owned(),
                root: root.to_owned(),
                fd,
                rules,
                index,
                opened_at_ns,
                top: OnceLock::new(),
                has_news: AtomicBool::new(false),
                linked: Linked::default(),
            }),
        })
    }

    /// The name of the context; `context` is the main one.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The directory on the host.
    pub fn root_path(&self) -> &Path {
        &self.inner.root
    }

    /// The ignore rules.
    pub fn rules(&self) -> &IgnoreRules {
        &self.inner.rules
    }

    /// The top directory; read on the first call.
    ///
    /// # Errors
    /// [`ViewError::Io`].
    pub fn top(&self) -> view::Result<Arc<ContextDir>> {
        self.ensure(&self.inner.top, Path::new(""), Verdict::default())
    }

    /// The directory called `name` in `parent`; read on the first call. `None` when it is no directory.
    ///
    /// # Errors
    /// [`ViewError::Io`].
    pub fn child_dir(&self, parent: &ContextDir, name: &OsStr) -> view::Result<Option<Arc<ContextDir>>> {
        let Some(entry) = parent.entry(name) else { return Ok(None) };
        let Some(slot) = parent.child_slot(entry) else { return Ok(None) };
        let path = parent.path().join(name);
        let verdict = self.rules().descend(parent.verdict(), &path);
        self.ensure(slot, &path, verdict).map(Some)
    }

    /// Reads everything below `dir`, in parallel, so that a later walk finds it in memory.
    ///
    /// # Errors
    /// [`ViewError::Io`].
    pub fn read_below(&self, dir: &Arc<ContextDir>) -> view::Result<()> {
        scan::read_below(self, dir)
    }

    /// Where `path` leads when every link is followed inside the context.
    ///
    /// # Errors
    /// [`ViewError::TooManyLinks`], [`ViewError::Io`].
    pub fn resolve(&self, path: &Path) -> view::Result<Resolved<Node>> {
        resolve::resolve(self, path, Last::Followed)
    }

    /// Opens something by its path relative to the context; no component may be a link.
    pub(crate) fn open_beneath(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        view::open_beneath(&self.inner.fd, path, flags)
    }

    /// Opens the regular file `name` of `dir` for reading.
    pub(crate) fn open_file(&self, dir: &ContextDir, name: &OsStr) -> view::Result<File> {
        let path = dir.path().join(name);
        // Without NONBLOCK, a file that has become a fifo would block us forever.
        self.open_beneath(&path, OFlags::RDONLY | OFlags::NONBLOCK)
            .map(File::from)
            .map_err(|e| ViewError::io("open", self.host_path(&path), e))
    }

    /// As [`Self::open_file`], by the handle of its directory when the file before it was in there, too.
    pub(crate) fn open_file_next(&self, dir: &Arc<ContextDir>, name: &OsStr, last: &mut LastDir) -> view::Result<File> {
        let error = |e| ViewError::io("open", self.host_path(&dir.path().join(name)), e);
        let handle = match last.0.take() {
            Some((known, handle)) if Arc::ptr_eq(&known, dir) => match handle {
                Some(handle) => Some(handle),
                None => Some(self.open_beneath(dir.path(), OFlags::PATH | OFlags::DIRECTORY).map_err(error)?),
            },
            _ => None,
        };
        let opened = match &handle {
            Some(handle) => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                openat(handle, name, flags, Mode::empty()).map(File::from).map_err(error)
            }
            None => self.open_file(dir, name),
        };
        last.0 = Some((dir.clone(), handle));
        opened
    }

    pub(crate) fn host_path(&self, relative: &Path) -> PathBuf {
        self.inner.root.join(relative)
    }

    fn index(&self) -> Option<&ContextIndex> {
        self.inner.index.as_ref()
    }

    fn opened_at_ns(&self) -> i64 {
        self.inner.opened_at_ns
    }

    fn linked(&self) -> &Linked {
        &self.inner.linked
    }

    fn note_news(&self) {
        self.inner.has_news.store(true, Ordering::Relaxed);
    }

    /// Stores what is known of the contents of files for the next build, if something was learned.
    ///
    /// A failure costs the next build time and nothing else, so that it is no error.
    fn save_news(&self) {
        let (Some(index), Some(top)) = (self.index(), self.inner.top.get()) else { return };
        if !self.inner.has_news.swap(false, Ordering::Relaxed) {
            return;
        }
        let mut known = Vec::new();
        collect_known(top, &mut known);
        let entries = known.iter().map(|(path, stat, content)| ContextEntry {
            path,
            stat: *stat,
            content: content.digest,
            read_at_ns: content.read_at_ns,
        });
        if let Err(error) = index.save(entries) {
            tracing::warn!(context = self.name(), %error, "the index of the context was not saved");
        }
    }

    fn ensure(&self, slot: &OnceLock<Arc<ContextDir>>, path: &Path, verdict: Verdict) -> view::Result<Arc<ContextDir>> {
        if let Some(dir) = slot.get() {
            return Ok(dir.clone());
        }
        let fd = self
            .open_beneath(path, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|e| ViewError::io("open directory", self.host_path(path), e))?;
        let dir = Arc::new(scan::read_dir(self, path, verdict, &fd)?);
        // Two threads may read the same directory at once; the first one's state is the context's.
        Ok(slot.get_or_init(|| dir).clone())
    }
}

impl std::fmt::Debug for LocalContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalContext").field("name", &self.inner.name).field("root", &self.inner.root).finish()
    }
}

impl Tree for LocalContext {
    type Dir = Arc<ContextDir>;
    type Node = Node;

    fn root_dir(&self) -> view::Result<(Self::Dir, Option<Node>)> {
        let top = self.top()?;
        let node = top.own_node();
        Ok((top, Some(node)))
    }

    fn child(&self, dir: &Self::Dir, name: &OsStr) -> view::Result<Child<Self::Dir, Node>> {
        let Some(entry) = dir.entry(name) else { return Ok(Child::Missing) };
        let node = entry.node();
        Ok(match node.kind {
            NodeKind::Dir => match self.child_dir(dir, name)? {
                Some(child) => Child::Dir(child, node),
                None => Child::Missing,
            },
            NodeKind::Symlink => Child::Link(scan::read_link(self, dir, name)?, node),
            _ => Child::Leaf(node),
        })
    }
}

/// Gathers what is known of the files below `dir`.
fn collect_known<'a>(dir: &'a ContextDir, known: &mut Vec<(PathBuf, StatKey, &'a FileContent)>) {
    for entry in dir.entries() {
        if let Some(content) = entry.content() {
            known.push((dir.path().join(dir.name_of(entry)), entry.stamp().key(entry), content));
        }
        if let Some(child) = dir.child_slot(entry).and_then(OnceLock::get) {
            collect_known(child, known);
        }
    }
}

#[cfg(test)]
mod tests;
