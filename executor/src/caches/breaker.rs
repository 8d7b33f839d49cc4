//! Whether a place is still worth being asked; and the one warning that it is not.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use cache::remote::RemoteError;
use solver::Progress;

use super::lock;

/// Opens at the first failure of the place as a whole, and stays open.
pub(super) struct Breaker {
    /// What the place is used for, as in "cannot be …": `read`, `written`.
    verb: &'static str,
    name: String,
    progress: Progress,
    is_open: AtomicBool,
    has_warned: AtomicBool,
    reason: Mutex<Option<String>>,
}

impl Breaker {
    pub(super) fn new(verb: &'static str, name: &str, progress: Progress) -> Self {
        let (is_open, has_warned) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { verb, name: name.to_owned(), progress, is_open, has_warned, reason: Mutex::default() }
    }

    /// Whether the place is to be left alone.
    pub(super) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// Takes note of a failure. One of the whole place is the last that is seen of it.
    pub(super) fn note(&self, error: &RemoteError) {
        if matches!(error, RemoteError::Down(_)) {
            self.is_open.store(true, Ordering::Relaxed);
        }
        self.warn(&error.to_string());
    }

    /// Says that something is wrong, once.
    fn warn(&self, reason: &str) {
        if self.has_warned.swap(true, Ordering::Relaxed) {
            tracing::debug!(place = self.name, reason, "a cache has failed again");
            return;
        }
        *lock(&self.reason) = Some(reason.to_owned());
        let Self { verb, name, .. } = self;
        self.progress.warn(format!("the cache in {name} cannot be {verb}: {reason}"));
    }

    /// The first failure.
    pub(super) fn reason(&self) -> Option<String> {
        lock(&self.reason).clone()
    }
}
