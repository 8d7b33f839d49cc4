//! How long a result of a step may take to come: no cache is worth waiting for much longer than the step itself takes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Nothing is said about a transfer before it has run for so long.
const GRACE: Duration = Duration::from_secs(10);
/// What every transfer may take; and for each second of its step so many more.
const BASE: Duration = Duration::from_secs(30);
const SECONDS_PER_SECOND: u32 = 4;
/// A place that gives less in a second is not worth asking again.
const LEAST_RATE: f64 = 65_536.0;

/// The bytes of one transfer as they come.
#[derive(Default)]
pub(super) struct Pace {
    received_bytes: AtomicU64,
}

/// A transfer that will not end in time.
#[derive(Debug, PartialEq)]
pub(super) struct TooSlow {
    /// In words.
    pub(super) reason: String,
    /// Whether another transfer from there would be as hopeless.
    pub(super) is_hopeless: bool,
}

impl Pace {
    pub(super) fn add(&self, n_bytes: usize) {
        self.received_bytes.fetch_add(n_bytes as u64, Ordering::Relaxed);
    }

    /// Returns when it is clear that `total_bytes` will not have come in the time that is right for a step that took `cost`.
    pub(super) async fn too_slow(&self, total_bytes: u64, cost: Duration) -> TooSlow {
        let began = Instant::now();
        tokio::time::sleep(GRACE).await;
        loop {
            let received_bytes = self.received_bytes.load(Ordering::Relaxed);
            if let Some(too_slow) = judge(received_bytes, total_bytes, began.elapsed(), cost) {
                return too_slow;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

fn judge(received_bytes: u64, total_bytes: u64, elapsed: Duration, cost: Duration) -> Option<TooSlow> {
    // The last byte may be waiting for the disk.
    if received_bytes >= total_bytes {
        return None;
    }
    let rate = received_bytes as f64 / elapsed.as_secs_f64();
    let needed = if received_bytes == 0 { f64::INFINITY } else { total_bytes as f64 / rate };
    let allowed = BASE.saturating_add(cost.saturating_mul(SECONDS_PER_SECOND)).as_secs_f64();
    (needed > allowed).then(|| TooSlow {
        reason: format!(
            "only {received_bytes} of {total_bytes} bytes have come in {} s, and the step took {:.1} s",
            elapsed.as_secs(),
            cost.as_secs_f64()
        ),
        is_hopeless: rate < LEAST_RATE,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_may_take_what_its_step_is_worth() {
        const MIB: u64 = 1 << 20;
        let at_ten = |received_bytes, total_bytes, cost_s| {
            let judged = judge(received_bytes, total_bytes, Duration::from_secs(10), Duration::from_secs(cost_s));
            judged.map(|too_slow| too_slow.is_hopeless)
        };
        // 1 MiB a second: half a minute is always right.
        assert_eq!(at_ten(10 * MIB, 30 * MIB, 0), None);
        assert_eq!(at_ten(10 * MIB, 40 * MIB, 0), Some(false));
        assert_eq!(at_ten(10 * MIB, 40 * MIB, 3), None);
        assert_eq!(at_ten(10 * MIB, 2000 * MIB, 600), None);
        assert_eq!(at_ten(100, 1000, 1), Some(true));
        assert_eq!(at_ten(0, 1000, 1000), Some(true));
        assert_eq!(at_ten(1000, 1000, 0), None);
    }
}
