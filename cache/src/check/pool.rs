//! Work on a list by all processors, in no order, with the results in the order of the list.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::store::lock;

/// Applies `work` to each item. `weight` says how much an item counts for `progress`, which gets the sum so far.
pub(super) fn map<T: Sync, R: Send>(
    items: &[T],
    weight: impl Fn(&T) -> u64 + Sync,
    progress: &(dyn Fn(u64) + Sync),
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
    let results: Mutex<Vec<Option<R>>> = Mutex::new(items.iter().map(|_| None).collect());
    let worker = || {
        while let Some((number, item)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|n| Some((n, items.get(n)?)))
        {
            let result = work(item);
            lock(&results)[number] = Some(result);
            let weight = weight(item);
            progress(done.fetch_add(weight, Ordering::Relaxed) + weight);
        }
    };
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from).min(items.len());
    std::thread::scope(|scope| {
        for _ in 1..n_threads {
            scope.spawn(worker);
        }
        worker();
    });
    lock(&results).drain(..).map(|result| result.expect("every item was worked on")).collect()
}
