//! A hard cap: the store stays within limits *while* something fills it.
//!
//! Nobody can afford to walk the store all the time. So one thread asks the file system, some fifty times a second, how
//! much is free: what it has lost since the store was last measured is taken for growth of the store. When that comes near
//! the limit the store is measured, and the least useful goes (see [`crate::PruneFilter::hard_cap`]) until there is some
//! room again. Where nothing is left that may go, whoever fills the store is told, and has to stop.
//!
//! Somebody else who frees space on the same file system hides what the store takes. So the store is measured now and then
//! whatever the file system says, as often as a tenth of one processor's time allows.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::gc::{DiskSpace, PruneFilter};
use crate::store::{Store, lock};
use crate::survey;

/// How often the file system is asked. A disk that takes 1 GB a second takes 20 MB meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Nothing is asked before something has run for so long: most builds find everything in the cache.
const FIRST_LOOK: Duration = Duration::from_millis(60);
/// When the store is measured at the latest.
const FIRST_MEASUREMENT: Duration = Duration::from_secs(1);
/// What a fast disk takes while the store is measured and something removed.
const LEAST_MARGIN_BYTES: u64 = 64 << 20;
/// What the file system has to have lost, for measuring the store to be worth its while.
const WORTH_A_LOOK_BYTES: u64 = 1 << 20;

/// A measurement is repeated, whatever the file system says, after this many times the time it took.
const REST: u32 = 10;

/// What a store may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceLimits {
    /// The most that it may occupy, as `du -s` counts.
    pub max_size_bytes: Option<u64>,
    /// What has to stay free on its file system, whoever fills that.
    pub min_free_bytes: Option<u64>,
}

/// A limit that cannot be kept, because running builds and images need what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// The limits.
    pub limits: SpaceLimits,
    /// What the store occupies.
    pub size_bytes: u64,
    /// What images take of it.
    pub image_bytes: u64,
    /// What is free.
    pub free_bytes: u64,
}

impl SpaceLimits {
    /// Whether there is no limit at all.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }

    /// How far below the cap the store is kept: measuring and removing take time, in which it grows.
    fn margin_bytes(max: u64) -> u64 {
        (max / 20).max(LEAST_MARGIN_BYTES).min(max / 4)
    }

    /// From which size on something goes.
    fn high_bytes(&self) -> u64 {
        self.max_size_bytes.map_or(u64::MAX, |max| max - Self::margin_bytes(max))
    }

    /// How far it is emptied then.
    fn low_bytes(&self) -> Option<u64> {
        self.max_size_bytes.map(|max| max - Self::margin_bytes(max) / 2 * 3)
    }

    fn allows(&self, size_bytes: u64, free_bytes: u64) -> bool {
        self.max_size_bytes.is_none_or(|max| size_bytes <= max)
            && self.min_free_bytes.is_none_or(|min| free_bytes >= min - min / 20)
    }
}

/// What is known of the store's size.
struct Meter {
    limits: SpaceLimits,
    /// Free bytes when the watch began.
    free_at_start: u64,
    /// What the store occupied then, once it has been measured.
    size_at_start: Option<u64>,
    /// The last measurement: what was occupied, and what was free.
    measured: Option<(u64, u64)>,
    /// Nothing happens before the estimate passes this,
    next_look_bytes: u64,
    /// or before this moment.
    next_look_at: Option<Instant>,
    /// Whether there was a first look.
    has_looked: bool,
}

/// A store that is watched. Ends when dropped.
pub struct SpaceWatch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    is_over: Mutex<bool>,
    wake: Condvar,
}

impl Store {
    /// Keeps the store within `limits` until the watch is dropped. `on_exceeded` is called, at most once and on another
    /// thread, when that cannot be done, and the store has grown since the watch began: who adds nothing is not to blame.
    pub fn watch_space(&self, limits: SpaceLimits, on_exceeded: impl FnOnce(Exceeded) + Send + 'static) -> SpaceWatch {
        let shared = Arc::new(Shared::default());
        let (store, theirs) = (self.clone(), shared.clone());
        let watch = move || store.watch(limits, &theirs, on_exceeded);
        // Without a thread there is no cap; the next build makes up for it.
        let thread = std::thread::Builder::new().name("space".to_owned()).spawn(watch).ok();
        SpaceWatch { shared, thread }
    }

    fn watch(&self, limits: SpaceLimits, shared: &Shared, on_exceeded: impl FnOnce(Exceeded)) {
        let Ok(DiskSpace { free_bytes, .. }) = self.disk_space() else { return };
        let mut meter = Meter {
            limits,
            free_at_start: free_bytes,
            size_at_start: None,
            measured: None,
            next_look_bytes: 0,
            next_look_at: Instant::now().checked_add(FIRST_MEASUREMENT),
            has_looked: false,
        };
        let mut on_exceeded = Some(on_exceeded);
        let mut pause = FIRST_LOOK;
        loop {
            let is_over = shared.is_over_after(pause);
            pause = LOOK_EVERY;
            match self.look(&mut meter, is_over) {
                Ok(Some(exceeded)) => {
                    if let Some(tell) = on_exceeded.take() {
                        tell(exceeded);
                    }
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "cannot keep the store within its limits"),
            }
            if is_over {
                return;
            }
        }
    }

    /// One look: measures and removes when it is time to.
    fn look(&self, meter: &mut Meter, is_last: bool) -> Result<Option<Exceeded>> {
        let disk = self.disk_space()?;
        // One that was too large from the beginning need not grow to be noticed.
        let is_large = !std::mem::replace(&mut meter.has_looked, true)
            && !is_last
            && survey::known_total_bytes(&self.inner)? > meter.limits.high_bytes();
        if !is_large && !meter.is_time(disk.free_bytes) {
            return Ok(None);
        }
        // Whoever collects now may do enough; in a moment there is another look.
        let Some(_lock) = self.try_lock("collect")? else { return Ok(None) };
        let began = Instant::now();
        let (mut size_bytes, mut image_bytes) = self.measure()?;
        let limits = meter.limits;
        meter.note(size_bytes, disk.free_bytes);
        meter.rest(began.elapsed());
        let is_short = limits.min_free_bytes.is_some_and(|min| disk.free_bytes < min);
        if size_bytes > limits.high_bytes() || is_short {
            let removed = self.prune(&PruneFilter::hard_cap(limits.low_bytes(), limits.min_free_bytes), false)?;
            tracing::debug!(size_bytes, n_removed = removed.len(), "the store is near its limit");
            (size_bytes, image_bytes) = self.measure()?;
        }
        let DiskSpace { free_bytes, .. } = self.disk_space()?;
        meter.note(size_bytes, free_bytes);
        let is_exceeded = !limits.allows(size_bytes, free_bytes) && meter.has_grown(size_bytes);
        Ok(is_exceeded.then_some(Exceeded { limits, size_bytes, image_bytes, free_bytes }))
    }

    /// What the store occupies, and what images take of it.
    fn measure(&self) -> Result<(u64, u64)> {
        let survey = survey::survey(&self.inner)?;
        let shared = survey.units.iter().filter(|unit| unit.record.shared);
        Ok((survey.total_bytes(), shared.map(|unit| unit.record.size_bytes).sum()))
    }
}

impl Meter {
    /// Whether the store may have come too near to a limit.
    fn is_time(&self, free_bytes: u64) -> bool {
        let is_short = self.limits.min_free_bytes.is_some_and(|min| free_bytes < min);
        if self.limits.max_size_bytes.is_some() && self.next_look_at.is_some_and(|at| Instant::now() >= at) {
            return true;
        }
        let Some((size_bytes, free_then)) = self.measured else {
            // A build that has written nothing so far has nothing to answer for.
            let lost = self.free_at_start.saturating_sub(free_bytes);
            return lost > WORTH_A_LOOK_BYTES && (self.limits.max_size_bytes.is_some() || is_short);
        };
        let lost = free_then.saturating_sub(free_bytes);
        size_bytes.saturating_add(lost) > self.next_look_bytes || (is_short && lost > WORTH_A_LOOK_BYTES)
    }

    fn note(&mut self, size_bytes: u64, free_bytes: u64) {
        let lost = self.free_at_start.saturating_sub(free_bytes);
        self.size_at_start.get_or_insert(size_bytes.saturating_sub(lost));
        self.measured = Some((size_bytes, free_bytes));
        // Where nothing can go, looking again at every step would be all that is done.
        let step = self.limits.max_size_bytes.map_or(0, |max| max / 100);
        self.next_look_bytes = self.limits.high_bytes().max(size_bytes.saturating_add(step));
    }

    /// Leaves the store alone for a while after a measurement that took so long.
    fn rest(&mut self, took: Duration) {
        self.next_look_at = Instant::now().checked_add(took * REST);
    }

    fn has_grown(&self, size_bytes: u64) -> bool {
        self.size_at_start.is_some_and(|at_start| size_bytes > at_start + WORTH_A_LOOK_BYTES)
    }
}

impl Shared {
    /// Waits for the end, but not longer than `pause`; whether it is the end.
    fn is_over_after(&self, pause: Duration) -> bool {
        let is_over = lock(&self.is_over);
        let waited = self.wake.wait_timeout_while(is_over, pause, |is_over| !*is_over);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Drop for SpaceWatch {
    fn drop(&mut self) {
        *lock(&self.shared.is_over) = true;
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            // It has nothing to tell.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::testing::{check, content, du, record, store};

    /// A layer with a record whose tree has one file of that many KiB.
    fn layer(store: &Store, seed: u8, kib: usize) {
        let draft = store.new_tree().unwrap();
        std::fs::write(draft.tree().join("file"), vec![seed; kib << 10]).unwrap();
        let layer = store.commit_tree(draft, content(seed)).unwrap().layer;
        store.put_record(&record(seed, &layer.id, "slot")).unwrap();
    }

    #[test]
    fn the_store_stays_within_its_limit_while_it_is_filled() {
        const MAX: u64 = 80 << 20;
        let (_dir, store) = store();
        let limits = SpaceLimits { max_size_bytes: Some(MAX), min_free_bytes: None };
        let (sender, exceeded) = channel();
        let watch = store.watch_space(limits, move |exceeded| _ = sender.send(exceeded));
        let mut most = 0;
        // Goes away meanwhile: what the file system gains by that says nothing about the store.
        let others = tempfile::tempdir().unwrap();
        std::fs::write(others.path().join("file"), vec![1; 32 << 20]).unwrap();
        let mut others = Some(others);
        for seed in 0..60 {
            layer(&store, seed, 2 << 10);
            if seed == 20 {
                others.take();
            }
            // So that a busy machine, too, looks several times before the limit would be passed.
            std::thread::sleep(Duration::from_millis(100));
            most = most.max(du(store.root()));
        }
        drop(watch);
        assert!(most <= MAX + MAX / 20, "{most}");
        assert!(most > MAX / 2, "{most}");
        assert!(exceeded.try_recv().is_err());
        check(&store);
    }

    #[test]
    fn what_cannot_go_is_told_of() {
        let (_dir, store) = store();
        let _lease = store.lease().unwrap();
        let limits = SpaceLimits { max_size_bytes: Some(8 << 20), min_free_bytes: None };
        let (sender, exceeded) = channel();
        let _watch = store.watch_space(limits, move |exceeded| _ = sender.send(exceeded));
        for seed in 0..12 {
            layer(&store, seed, 1 << 10);
            std::thread::sleep(Duration::from_millis(25));
        }
        let exceeded = exceeded.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(exceeded.size_bytes > 8 << 20 && exceeded.image_bytes == 0, "{exceeded:?}");
        check(&store);
    }

    #[test]
    fn who_adds_nothing_is_not_to_blame() {
        let (_dir, store) = store();
        let _lease = store.lease().unwrap();
        layer(&store, 1, 8 << 10);
        let limits = SpaceLimits { max_size_bytes: Some(4 << 20), min_free_bytes: Some(u64::MAX / 2) };
        let watch = store.watch_space(limits, |exceeded| panic!("{exceeded:?}"));
        std::thread::sleep(Duration::from_millis(200));
        drop(watch);
    }
}
