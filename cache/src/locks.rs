//! Locks between processes and threads: flocked empty files.
//!
//! The kernel frees a lock with the last descriptor, so a killed process leaves nothing stale. Every acquisition opens
//! its own descriptor, so threads of one process exclude each other exactly like processes do. The files stay when a
//! lock is released, because making and removing one for every step costs more than locking it; pruning removes those
//! that nobody holds.

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
}

impl Drop for StoreLock {
    fn drop(&mut self) {
        // Closing the file would do, were it not for a program that is just being started by another thread: until it
        // is executed it has the file open as well.
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
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
        try_lock_file(&lock_path(&self.inner.layout, name), FlockOperation::NonBlockingLockExclusive)
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
        if let Some(lock) = try_lock_file(&path, FlockOperation::LockExclusive)? {
            return Ok(lock);
        }
    }
}

fn lock_path(layout: &Layout, name: &str) -> PathBuf {
    layout.bucket(Bucket::Locks).join(name_digest(name))
}

/// Removes the files of locks that nobody holds.
pub(crate) fn sweep(layout: &Layout) {
    for entry in std::fs::read_dir(layout.bucket(Bucket::Locks)).into_iter().flatten().flatten() {
        let path = entry.path();
        if let Ok(Some(_lock)) = try_lock_file(&path, FlockOperation::NonBlockingLockExclusive) {
            // While locked: a waiter that gets this file next sees that the path has gone and starts over.
            let _ = std::fs::remove_file(&path);
        }
    }
}

/// Locks the file at `path`, which is made when missing. `None` when somebody else has the lock and `operation` does
/// not wait.
pub(crate) fn try_lock_file(path: &Path, operation: FlockOperation) -> Result<Option<StoreLock>> {
    loop {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.during("create", path)?;
        match rustix::fs::flock(&file, operation) {
            Ok(()) => {}
            Err(Errno::INTR) => continue,
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error).during("lock", path),
        }
        // The file may have been removed between our open and our lock: then it protects nothing.
        if is_at(&file, path) {
            return Ok(Some(StoreLock { file }));
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
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
    fn a_lock_excludes_until_it_is_dropped() {
        let (_dir, store) = store();
        let lock = store.lock("key").unwrap();
        assert!(store.try_lock("key").unwrap().is_none());
        assert!(store.try_lock("other").unwrap().is_some());
        assert!(store.lock_unless("key", &|| true).unwrap().is_none());
        drop(lock);
        assert!(store.try_lock("key").unwrap().is_some());
    }

    #[test]
    fn only_files_that_nobody_holds_are_swept() {
        let (_dir, store) = store();
        let _held = store.lock("held").unwrap();
        drop(store.lock("free").unwrap());
        sweep(&store.inner.layout);
        let left = std::fs::read_dir(store.inner.layout.bucket(Bucket::Locks)).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [lock_path(&store.inner.layout, "held")]);
        assert!(store.try_lock("held").unwrap().is_none());
    }

    #[test]
    fn a_sweep_at_the_same_time_breaks_no_lock() {
        let (_dir, store) = store();
        let inside = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let _lock = store.lock("key").unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                    }
                });
            }
            for _ in 0..200 {
                sweep(&store.inner.layout);
            }
        });
    }
}
