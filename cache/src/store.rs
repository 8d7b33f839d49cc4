//! The store itself: opening one, and what all its operations share.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::durability::BootId;
use crate::error::{IoContext, Result};
use crate::index::Index;
use crate::layout::Layout;
use crate::lease::Leases;
use crate::reserve;
use crate::session::{self, Session};

/// One store. Cheap to clone; all clones and all processes on the same directory work together.
///
/// No method blocks on another process except [`Store::lock`] and the waiting forms of cache mounts; all do file I/O
/// and belong off an asynchronous runtime.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

/// What the clones share.
pub(crate) struct Inner {
    pub(crate) layout: Layout,
    pub(crate) index: Index,
    pub(crate) leases: Mutex<Leases>,
    session: Mutex<Option<Arc<Session>>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("root", &self.root()).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store at `root`, creating it when missing.
    ///
    /// A corrupt index is replaced by one made from the files of the store; what a power cut left unfinished is dropped.
    ///
    /// # Errors
    /// The directory cannot be made or used, or the disk is full. Never because of what the index holds.
    pub fn open(root: &Path) -> Result<Self> {
        Self::open_in(root, &BootId::current())
    }

    /// [`Store::open`], as if in the boot `boot`.
    pub(crate) fn open_in(root: &Path, boot: &BootId) -> Result<Self> {
        let root = std::path::absolute(root).during("resolve", root)?;
        let layout = Layout::new(&root);
        layout.create()?;
        let index = Index::open(&layout, boot)?;
        reserve::lay_in(&layout);
        let inner = Inner { layout, index, leases: Mutex::default(), session: Mutex::new(None) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The directory of the store, absolute.
    pub fn root(&self) -> &Path {
        self.inner.layout.root()
    }

    /// The session of this store, started when first needed.
    pub(crate) fn session(&self) -> Result<Arc<Session>> {
        self.inner.session()
    }

    /// Removes what dead processes left behind: drafts, scratch directories, leases. `stop` is asked between files.
    ///
    /// Cheap when there is nothing to do (one directory listing). Returns how many dead sessions are gone. Pruning does
    /// this too; a long build may call it from a background thread.
    pub fn remove_leftovers(&self, stop: &dyn Fn() -> bool) -> Result<usize> {
        let own = lock(&self.inner.session).as_ref().map(|session| session.name().to_owned());
        let mut n_buried = 0;
        let layout = &self.inner.layout;
        for (name, files) in session::all_sessions(layout) {
            if Some(&name) != own.as_ref() && !session::is_live(layout, &name) && !stop() {
                let forget = |name: &str| self.inner.forget_leases(name);
                n_buried += usize::from(session::bury(layout, &name, &files, stop, &forget));
            }
        }
        Ok(n_buried)
    }
}

impl Inner {
    /// See [`Store::session`].
    pub(crate) fn session(&self) -> Result<Arc<Session>> {
        let mut slot = lock(&self.session);
        if let Some(session) = &*slot {
            return Ok(session.clone());
        }
        let session = Arc::new(Session::start(&self.layout)?);
        *slot = Some(session.clone());
        Ok(session)
    }

    /// The session's name, if it was started.
    pub(crate) fn session_name(&self) -> Option<String> {
        lock(&self.session).as_ref().map(|session| session.name().to_owned())
    }

    /// A path for something that is to be removed once it has been renamed there.
    pub(crate) fn trash_path(&self) -> Result<PathBuf> {
        Ok(self.session()?.fresh_path("trash"))
    }
}

/// Locks a mutex of plain data; a thread that panicked while holding it left the data usable.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Seconds since the epoch.
pub(crate) fn now() -> i64 {
    seconds(SystemTime::now())
}

/// Seconds since the epoch at `time`.
pub(crate) fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
