//! Jobs that run in parallel and whose results come out in the order in which they went in.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a rayon worker without other work sleeps before it looks for some again.
const IDLE_WAIT: Duration = Duration::from_micros(200);

/// A queue of jobs on rayon's pool, drained in order by the thread that fills it.
///
/// The owner bounds what is in flight: it looks at [`Ordered::len`] (or its own measure) before it pushes. It may itself be
/// a worker of the pool: while it waits it does the pool's work, so that a pool full of owners cannot starve.
/// Dropping the queue leaves unfinished jobs to run to their end; their results are thrown away.
pub struct Ordered<T> {
    slots: VecDeque<Arc<Slot<T>>>,
}

struct Slot<T> {
    outcome: Mutex<Outcome<T>>,
    done: Condvar,
}

enum Outcome<T> {
    Running,
    Done(T),
    Panicked,
}

impl<T: Send + 'static> Ordered<T> {
    /// An empty queue.
    pub fn new() -> Self {
        Self { slots: VecDeque::new() }
    }

    /// Jobs whose results have not been taken.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is nothing to take.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Starts a job.
    pub fn push(&mut self, job: impl FnOnce() -> T + Send + 'static) {
        let slot = Arc::new(Slot { outcome: Mutex::new(Outcome::Running), done: Condvar::new() });
        self.slots.push_back(Arc::clone(&slot));
        rayon::spawn_fifo(move || {
            let guard = Completion(slot);
            let result = job();
            guard.0.finish(Outcome::Done(result));
        });
    }

    /// Takes the oldest result if it is there already.
    pub fn try_pop(&mut self) -> Option<T> {
        let is_running = matches!(*self.slots.front()?.lock(), Outcome::Running);
        if is_running { None } else { self.pop() }
    }

    /// Waits for the oldest result; `None` when there is nothing to take.
    ///
    /// # Panics
    /// When the job panicked.
    pub fn pop(&mut self) -> Option<T> {
        let slot = self.slots.pop_front()?;
        loop {
            match std::mem::replace(&mut *slot.wait(), Outcome::Running) {
                Outcome::Done(result) => return Some(result),
                Outcome::Panicked => panic!("a job on the pool panicked"),
                Outcome::Running => {}
            }
        }
    }
}

impl<T: Send + 'static> Default for Ordered<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Slot<T> {
    fn lock(&self) -> MutexGuard<'_, Outcome<T>> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, outcome: Outcome<T>) {
        *self.lock() = outcome;
        self.done.notify_all();
    }

    /// Waits until the job has probably ended; the caller looks for itself.
    fn wait(&self) -> MutexGuard<'_, Outcome<T>> {
        let outcome = self.lock();
        if !matches!(*outcome, Outcome::Running) {
            return outcome;
        }
        if rayon::current_thread_index().is_none() {
            return self.done.wait(outcome).unwrap_or_else(PoisonError::into_inner);
        }
        drop(outcome);
        if rayon::yield_now() == Some(rayon::Yield::Executed) {
            return self.lock();
        }
        let outcome = self.lock();
        if !matches!(*outcome, Outcome::Running) {
            return outcome;
        }
        self.done.wait_timeout(outcome, IDLE_WAIT).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Tells the owner when a job dies, so that it does not wait for ever.
struct Completion<T>(Arc<Slot<T>>);

impl<T> Drop for Completion<T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.finish(Outcome::Panicked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_their_jobs() {
        let mut queue = Ordered::new();
        for number in 0..100_u64 {
            queue.push(move || {
                std::thread::sleep(Duration::from_micros(100 * (number % 3)));
                number
            });
        }
        let results: Vec<u64> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(results, (0..100).collect::<Vec<_>>());
        assert!(queue.is_empty());
    }

    #[test]
    fn owners_on_every_worker_of_the_pool_do_not_starve() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
        let sum = pool.install(|| {
            let mut queue = Ordered::new();
            (0..10_u64).for_each(|number| queue.push(move || number));
            std::iter::from_fn(|| queue.pop()).sum::<u64>()
        });
        assert_eq!(sum, 45);
    }
}
