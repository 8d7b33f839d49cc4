//! Sessions: how a running process is told from a dead one.
//!
//! A process that writes has a directory of its own in the temporary bucket and a lock file beside it that it keeps
//! flocked. Whoever can take that lock knows that the process is gone, and that its directory and leases are garbage.

use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustix::fs::FlockOperation;

use crate::error::{IoContext, Result};
use crate::layout::{Bucket, Layout};
use crate::locks::is_at;
use crate::scratch::remove_tree;

const LOCK_SUFFIX: &str = ".lock";

/// This process (or rather: this [`crate::Store`]) as others see it.
#[derive(Debug)]
pub(crate) struct Session {
    name: String,
    dir: PathBuf,
    lock_path: PathBuf,
    /// Flocked; freed by the kernel when the process dies.
    _lock: File,
    counter: AtomicU64,
}

impl Session {
    /// Starts a session with a name that no live process has.
    pub(crate) fn start(layout: &Layout) -> Result<Self> {
        let bucket = layout.bucket(Bucket::Temporary);
        loop {
            let name = random_name();
            let lock_path = bucket.join(format!("{name}{LOCK_SUFFIX}"));
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(&lock_path);
            let lock = file.during("create", &lock_path)?;
            // Between creation and lock, another process may have taken the file for a dead session's.
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() && is_at(&lock, &lock_path) {
                let dir = bucket.join(&name);
                std::fs::create_dir(&dir).during("create", &dir)?;
                return Ok(Self { name, dir, lock_path, _lock: lock, counter: AtomicU64::new(0) });
            }
        }
    }

    /// The session's name, which is also what leases are filed under.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The session's directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A name that nobody else uses, now or later, in any process.
    pub(crate) fn unique(&self) -> String {
        format!("{}-{:x}", self.name, self.counter.fetch_add(1, Ordering::Relaxed))
    }

    /// A path in the session's directory that nobody uses.
    pub(crate) fn fresh_path(&self, prefix: &str) -> PathBuf {
        self.dir.join(format!("{prefix}-{:x}", self.counter.fetch_add(1, Ordering::Relaxed)))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        remove_tree(&self.dir);
        let _ = std::fs::remove_file(&self.lock_path);
    }
}

/// Names of the sessions that have left anything, live or dead, in any order.
pub(crate) fn all_sessions(layout: &Layout) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(layout.bucket(Bucket::Temporary)) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.strip_suffix(LOCK_SUFFIX).map(str::to_owned)).collect()
}

/// Whether the process behind a session still lives. When in doubt, it does.
pub(crate) fn is_live(layout: &Layout, name: &str) -> bool {
    let path = layout.bucket(Bucket::Temporary).join(format!("{name}{LOCK_SUFFIX}"));
    match File::open(&path) {
        // A shared lock, so that two processes that look at the same time do not take each other for the owner.
        Ok(file) => rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_err(),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

/// When a session started, in nanoseconds since the epoch; `None` when it is gone.
pub(crate) fn started_at_ns(layout: &Layout, name: &str) -> Option<i64> {
    let path = layout.bucket(Bucket::Temporary).join(format!("{name}{LOCK_SUFFIX}"));
    let metadata = std::fs::metadata(path).ok()?;
    Some(metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec())
}

/// Removes what a dead session left; `forget` drops its leases before the last trace of it goes.
///
/// `false` when the session lives after all, or somebody else is cleaning up. `stop` is asked between files.
pub(crate) fn bury(layout: &Layout, name: &str, stop: &dyn Fn() -> bool, forget: &dyn Fn(&str) -> Result<()>) -> bool {
    let bucket = layout.bucket(Bucket::Temporary);
    let lock_path = bucket.join(format!("{name}{LOCK_SUFFIX}"));
    let Ok(lock) = OpenOptions::new().read(true).write(true).open(&lock_path) else { return false };
    if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() || !is_at(&lock, &lock_path) {
        return false;
    }
    let dir = bucket.join(name);
    for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
        if stop() {
            return false;
        }
        remove_tree(&entry.path());
    }
    remove_tree(&dir);
    if dir.exists() || forget(name).is_err() {
        return false;
    }
    std::fs::remove_file(&lock_path).is_ok()
}

/// 64 random bits in hex: the standard library's hasher seeds come from the kernel.
fn random_name() -> String {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    hasher.write_u128(since_epoch.as_nanos());
    format!("{:016x}", hasher.finish())
}
