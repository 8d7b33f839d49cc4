//! Locks between processes and threads: flocked files that exist only while somebody holds or wants them.
//!
//! The kernel frees a lock with the last descriptor, so a killed process leaves nothing stale. Every acquisition opens
//! its own descriptor, so threads of one process exclude each other exactly like processes do.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::{IoContext, Result};
use crate::layout::{Bucket, Layout, name_digest};
use crate::store::Store;

/// How often a wait that can be cancelled looks again, at most.
const POLL: Duration = Duration::from_millis(100);

/// Held by the one process that works on a key (or another named thing); others wait.
///
/// Freed when dropped, and by the kernel when the process dies.
#[derive(Debug)]
pub struct StoreLock {
    file: File,
    /// What to unlink on release; `None` for a lock file that stays.
    unlink: Option<PathBuf>,
}

impl Store {
    /// Takes the lock `name`, waiting for other processes and threads. Blocks: call it off the runtime.
    ///
    /// Not reentrant: a thread that holds the lock and asks again waits for itself.
    pub fn lock(&self, name: &str) -> Result<StoreLock> {
        lock(&self.inner.layout, name)
    }

    /// Takes the lock `name` if it is free.
    pub fn try_lock(&self, name: &str) -> Result<Option<StoreLock>> {
        let path = lock_path(&self.inner.layout, name);
        acquire(&path, FlockOperation::NonBlockingLockExclusive, Some(&path))
    }

    /// Takes the lock `name`, waiting until it is free or `cancelled` says true (asked at least ten times a second);
    /// `None` when cancelled.
    pub fn lock_unless(&self, name: &str, cancelled: &dyn Fn() -> bool) -> Result<Option<StoreLock>> {
        poll_until(cancelled, || self.try_lock(name))
    }
}

/// Asks `attempt` again and again, at growing intervals, until it has something or `cancelled` says true.
pub(crate) fn poll_until<T>(
    cancelled: &dyn Fn() -> bool,
    mut attempt: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(got) = attempt()? {
            return Ok(Some(got));
        }
        if cancelled() {
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(POLL);
    }
}

/// Takes the lock `name` of the store at `layout`, waiting for it.
pub(crate) fn lock(layout: &Layout, name: &str) -> Result<StoreLock> {
    let path = lock_path(layout, name);
    loop {
        if let Some(lock) = acquire(&path, FlockOperation::LockExclusive, Some(&path))? {
            return Ok(lock);
        }
    }
}

/// Takes a lock on the file at `path`, which is made when missing and stays: shared or exclusive, never waiting.
pub(crate) fn try_lock_file(path: &Path, operation: FlockOperation) -> Result<Option<StoreLock>> {
    acquire(path, operation, None)
}

fn lock_path(layout: &Layout, name: &str) -> PathBuf {
    layout.bucket(Bucket::Locks).join(name_digest(name))
}

/// One acquisition; `None` when somebody else has the lock and `operation` does not wait.
fn acquire(path: &Path, operation: FlockOperation, unlink: Option<&Path>) -> Result<Option<StoreLock>> {
    loop {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.during("create", path)?;
        match rustix::fs::flock(&file, operation) {
            Ok(()) => {}
            Err(Errno::INTR) => continue,
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error).during("lock", path),
        }
        // The last holder may have unlinked the file between our open and our lock: then it protects nothing.
        if is_at(&file, path) {
            return Ok(Some(StoreLock { file, unlink: unlink.map(Path::to_owned) }));
        }
    }
}

/// Whether `path` still leads to the open `file`.
pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

impl Drop for StoreLock {
    fn drop(&mut self) {
        if let Some(path) = &self.unlink {
            // While still locked: a waiter that gets this file next sees that the path has gone and starts over.
            let _ = std::fs::remove_file(path);
        }
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use crate::testing::store;

    #[test]
    fn threads_exclude_each_other() {
        let (_dir, store) = store();
        let inside = AtomicUsize::new(0);
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let _lock = store.lock("key").unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        total.fetch_add(1, Ordering::SeqCst);
                        assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                    }
                });
            }
        });
        assert_eq!(total.load(Ordering::SeqCst), 400);
    }

    #[test]
    fn a_released_lock_leaves_no_file() {
        let (_dir, store) = store();
        let lock = store.lock("key").unwrap();
        assert!(store.try_lock("key").unwrap().is_none());
        assert!(store.try_lock("other").unwrap().is_some());
        assert!(store.lock_unless("key", &|| true).unwrap().is_none());
        drop(lock);
        assert!(store.try_lock("key").unwrap().is_some());
        assert_eq!(std::fs::read_dir(store.root().join("locks-v1")).unwrap().count(), 0);
    }
}
