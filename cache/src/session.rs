//! Sessions: how a running process is told from a dead one.
//!
//! A process that writes has a name, which all its files in the temporary bucket begin with, and a lock file there that
//! it keeps flocked. Whoever can take that lock knows that the process is gone, and that its files and leases are
//! garbage. There is no directory per process, because making and removing one costs more than all the rest.

use std::collections::BTreeMap;
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
    bucket: PathBuf,
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
                return Ok(Self { name, bucket, lock_path, _lock: lock, counter: AtomicU64::new(0) });
            }
        }
    }

    /// The session's name, which is also what leases are filed under.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The directory of the session's files, which it shares with other sessions.
    pub(crate) fn bucket(&self) -> &Path {
        &self.bucket
    }

    /// What the names of the session's files begin with.
    pub(crate) fn prefix(&self) -> String {
        format!("{}-", self.name)
    }

    /// A name that nobody else uses, now or later, in any process.
    pub(crate) fn unique(&self) -> String {
        format!("{}-{:x}", self.name, self.counter.fetch_add(1, Ordering::Relaxed))
    }

    /// A path in the temporary bucket that nobody uses; `kind` is for people who look.
    pub(crate) fn fresh_path(&self, kind: &str) -> PathBuf {
        self.bucket.join(format!("{}-{kind}", self.unique()))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.lock_path);
    }
}

/// Everything in the temporary bucket, by session, live or dead.
pub(crate) fn all_sessions(layout: &Layout) -> BTreeMap<String, Vec<PathBuf>> {
    let mut sessions: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    let entries = std::fs::read_dir(layout.bucket(Bucket::Temporary)).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(session) = name.strip_suffix(LOCK_SUFFIX) {
            sessions.entry(session.to_owned()).or_default();
        } else {
            let session = name.split_once('-').map_or(&*name, |(session, _)| session);
            sessions.entry(session.to_owned()).or_default().push(entry.path());
        }
    }
    sessions
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
pub(crate) fn bury(
    layout: &Layout,
    name: &str,
    files: &[PathBuf],
    stop: &dyn Fn() -> bool,
    forget: &dyn Fn(&str) -> Result<()>,
) -> bool {
    let lock_path = layout.bucket(Bucket::Temporary).join(format!("{name}{LOCK_SUFFIX}"));
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&lock_path);
    let Ok(lock) = file else { return false };
    if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() || !is_at(&lock, &lock_path) {
        return false;
    }
    for file in files {
        if stop() {
            return false;
        }
        remove_tree(file);
    }
    if files.iter().any(|file| file.exists()) || forget(name).is_err() {
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
