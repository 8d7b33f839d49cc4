//! Keeping the store within its limits while a command fills it, and saying what is in the way when that fails.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use cache::{Exceeded, PruneFilter, SpaceLimits, SpaceWatch, Store};
use tokio_util::sync::CancellationToken;

use crate::args::SpaceArgs;
use crate::env;
use crate::failure::Failure;
use crate::report;
use crate::request::parse_bytes;
use crate::ui::format::size_short;

/// How often builds without limits of their own collect, at most (`spec/engine.md` §3.9).
const COLLECT_EVERY: Duration = Duration::from_secs(60);

/// For how long they do so at least, whatever else they have to do.
const COLLECT_FOR: Duration = Duration::from_millis(200);

/// Limits as given, checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SpaceRequest {
    max_size: Option<Amount>,
    min_free: Option<Amount>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Amount {
    Bytes(u64),
    /// Of the file system.
    Percent(u64),
}

impl SpaceRequest {
    /// Checks the flags.
    pub(crate) fn check(args: &SpaceArgs) -> Result<Self, Failure> {
        // A variable that is set to nothing says nothing.
        let said = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
        let amount = |text: &Option<String>| said(text).as_deref().map(Amount::parse).transpose();
        Ok(Self { max_size: amount(&args.max_size)?, min_free: amount(&args.min_free)? })
    }

    /// The limits for a file system of that size; `None` when nobody has said anything. 0 is no limit.
    fn limits(&self, total_bytes: u64) -> Option<SpaceLimits> {
        let bytes = |amount: Option<Amount>| amount.map(|amount| amount.of(total_bytes)).filter(|bytes| *bytes > 0);
        (self.max_size.is_some() || self.min_free.is_some())
            .then(|| SpaceLimits { max_size_bytes: bytes(self.max_size), min_free_bytes: bytes(self.min_free) })
    }
}

impl Amount {
    fn parse(text: &str) -> Result<Self, Failure> {
        match text.trim().strip_suffix('%') {
            None => parse_bytes(text).map(Self::Bytes),
            Some(number) => match number.trim().parse() {
                Ok(percent @ 0..=100) => Ok(Self::Percent(percent)),
                _ => Err(Failure::usage(format!("invalid size: '{text}'"))),
            },
        }
    }

    fn of(self, total_bytes: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => total_bytes / 100 * percent,
        }
    }
}

/// Keeps the store within its limits, or collects garbage when there are none, beside the work of a command.
pub(crate) struct Keeper {
    work: Work,
    exceeded: Arc<Mutex<Option<Exceeded>>>,
}

/// What is done beside the command.
enum Work {
    Watch(SpaceWatch),
    Collect { is_over: Arc<AtomicBool>, thread: Option<JoinHandle<()>> },
    Nothing,
}

impl Keeper {
    /// Starts. The command is cancelled when the limits cannot be kept.
    pub(crate) fn start(store: &Store, request: &SpaceRequest, cancel: &CancellationToken) -> Self {
        let exceeded = Arc::new(Mutex::default());
        let disk = store.disk_space();
        let work = match disk.map(|disk| (disk, request.limits(disk.total_bytes))) {
            Ok((_, Some(limits))) if limits.is_unlimited() => Work::Nothing,
            Ok((_, Some(limits))) => {
                let (theirs, cancel) = (exceeded.clone(), cancel.clone());
                Work::Watch(store.watch_space(limits, move |what| {
                    *theirs.lock().unwrap_or_else(PoisonError::into_inner) = Some(what);
                    cancel.cancel();
                }))
            }
            Ok((disk, None)) if env::collects() => collect(store, PruneFilter::default_policies(disk)),
            Ok((_, None)) | Err(_) => Work::Nothing,
        };
        Self { work, exceeded }
    }

    /// Ends; says what could not be kept.
    pub(crate) fn end(self) -> Option<Exceeded> {
        match self.work {
            Work::Watch(watch) => drop(watch),
            Work::Collect { is_over, thread } => {
                is_over.store(true, Ordering::Relaxed);
                // It has nothing to tell.
                drop(thread.map(JoinHandle::join));
            }
            Work::Nothing => {}
        }
        *self.exceeded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Collects what the policies do not spare, unless somebody has a moment ago. Nobody waits long for it: what is left goes
/// beside another build.
fn collect(store: &Store, policies: Vec<PruneFilter>) -> Work {
    let is_over = Arc::new(AtomicBool::new(false));
    let (store, theirs) = (store.clone(), is_over.clone());
    let (since, _) = super::clock();
    let work = move || {
        let stop = || theirs.load(Ordering::Relaxed) && since.elapsed() > COLLECT_FOR;
        match store.collect(&policies, COLLECT_EVERY, &stop) {
            Ok(removed) if removed.is_empty() => {}
            Ok(removed) => tracing::info!(n_records = removed.len(), "collected garbage"),
            Err(error) => tracing::debug!(%error, "cannot collect garbage"),
        }
    };
    // Without a thread, the next build does it.
    let thread = std::thread::Builder::new().name("collect".to_owned()).spawn(work).ok();
    Work::Collect { is_over, thread }
}

/// What is wrong, as one sentence.
fn sentence(exceeded: &Exceeded, store: &Path) -> String {
    let store = store.display();
    let SpaceLimits { max_size_bytes, min_free_bytes } = exceeded.limits;
    match (max_size_bytes, min_free_bytes) {
        (Some(max), _) if exceeded.size_bytes > max => format!(
            "the store `{store}` may take {} (--max-size), and running builds and images need {} of it",
            size_short(max),
            size_short(exceeded.size_bytes)
        ),
        (_, min) => format!(
            "the disk of the store `{store}` has {} free, and {} must stay so (--min-free)",
            size_short(exceeded.free_bytes),
            size_short(min.unwrap_or(0))
        ),
    }
}

/// What a command comes to, given what could not be kept: what was found out after its end does not make it fail.
pub(crate) fn judge<T>(outcome: Result<T, Failure>, exceeded: Option<&Exceeded>, store: &Path) -> Result<T, Failure> {
    match (outcome, exceeded) {
        (outcome, None) => outcome,
        (Ok(result), Some(exceeded)) => {
            report::warning(&sentence(exceeded, store));
            Ok(result)
        }
        (Err(_), Some(exceeded)) => Err(failure(exceeded, store)),
    }
}

/// The failure of a command that was stopped because it would have gone over a limit.
fn failure(exceeded: &Exceeded, store: &Path) -> Failure {
    let mut failure = Failure::environment(sentence(exceeded, store))
        .help("allow more with --max-size and --min-free, or RBUILD_MAX_SIZE and RBUILD_MIN_FREE");
    if exceeded.image_bytes > 0 {
        failure = failure.help(format!(
            "images take {}: those that are not needed go with `rbuild rmi` and `rbuild image prune`",
            size_short(exceeded.image_bytes)
        ));
    }
    failure
}

/// Adds to a failure for lack of room where the store is, and what is free there.
pub(crate) fn locate(mut failure: Failure, store: Option<&Path>) -> Failure {
    let Some(store) = store.filter(|_| failure.is_about_room()) else { return failure };
    let Ok(stat) = rustix::fs::statvfs(store) else { return failure };
    let free = size_short(stat.f_bavail * stat.f_frsize);
    failure.help(format!("the disk of the store `{}` has {free} free", store.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_bytes_or_shares_of_the_disk_and_nothing_is_no_limit() {
        let limits = |max_size: Option<&str>, min_free: Option<&str>| {
            let args = SpaceArgs { max_size: max_size.map(str::to_owned), min_free: min_free.map(str::to_owned) };
            SpaceRequest::check(&args).map(|request| request.limits(1000))
        };
        let some = |max_size_bytes, min_free_bytes| Some(SpaceLimits { max_size_bytes, min_free_bytes });
        assert_eq!(limits(None, None).unwrap(), None);
        assert_eq!(limits(Some(""), None).unwrap(), None);
        assert_eq!(limits(Some("2k"), None).unwrap(), some(Some(2048), None));
        assert_eq!(limits(Some("0"), Some("10%")).unwrap(), some(None, Some(100)));
        assert_eq!(limits(Some("0"), None).unwrap(), some(None, None));
        for wrong in ["x", "101%", "-1", "%"] {
            assert!(limits(Some(wrong), None).is_err(), "{wrong}");
        }
    }
}
