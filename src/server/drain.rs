//! Emptying the house before it is closed.
//!
//! Nobody new is let in; those inside are asked to leave in batches, the ones that came first leaving first. A device that is
//! told 1001 reconnects at once, to whoever stands behind the load balancer now or to this server's successor. Told all at
//! once, all of them would come at once, each with a TLS handshake and a group to be woken: the batches are for those who
//! have to receive them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// How many connections are ended together at least: so few are no burden to anybody, and a small server is empty at once.
pub const BATCH_MIN: usize = 8;

/// How fast a house is emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// In which time everybody is told to leave.
    pub grace: Duration,
    /// How often a batch is.
    pub interval: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { grace: Duration::from_secs(10), interval: Duration::from_millis(100) }
    }
}

impl Pace {
    /// How many of so many connections are to be ended together, so that the last batch is within the grace.
    #[must_use]
    pub fn batch(&self, connections: usize) -> usize {
        // The first batch is at the beginning, so there is one more than there are intervals.
        let batches = 1 + self.grace.as_nanos() / self.interval.as_nanos().max(1);
        connections.div_ceil(usize::try_from(batches).unwrap_or(usize::MAX)).max(BATCH_MIN)
    }

    /// When the last batch of so many connections is told, from the beginning.
    #[must_use]
    pub fn lasts(&self, connections: usize) -> Duration {
        let batches = connections.div_ceil(self.batch(connections));
        self.interval.saturating_mul(u32::try_from(batches.saturating_sub(1)).unwrap_or(u32::MAX)).min(self.grace)
    }
}

/// Those inside, each with the way to ask it to leave.
#[derive(Debug, Default)]
pub(super) struct Inside(Mutex<BTreeMap<u64, CancellationToken>>);

impl Inside {
    /// Somebody came in. Numbers grow.
    pub(super) fn entered(&self, number: u64, leave: CancellationToken) {
        self.lock().insert(number, leave);
    }

    /// Somebody left.
    pub(super) fn left(&self, number: u64) {
        self.lock().remove(&number);
    }

    /// Asks so many to leave, the first to come first. Says whether everybody has been asked.
    pub(super) fn ask(&self, batch: usize) -> bool {
        let mut inside = self.lock();
        for _ in 0..batch {
            match inside.pop_first() {
                Some((_, leave)) => leave.cancel(),
                None => return true,
            }
        }
        inside.is_empty()
    }

    /// Asks everybody, batch by batch.
    pub(super) async fn ask_all(&self, pace: Pace) {
        let batch = pace.batch(self.lock().len());
        while !self.ask(batch) {
            tokio::time::sleep(pace.interval).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, CancellationToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Clock;

    const fn pace(grace_ms: u64, interval_ms: u64) -> Pace {
        Pace { grace: Duration::from_millis(grace_ms), interval: Duration::from_millis(interval_ms) }
    }

    #[test]
    fn batches_are_as_large_as_the_grace_demands_and_no_smaller_than_is_useful() {
        assert_eq!(pace(10_000, 100).batch(0), BATCH_MIN);
        assert_eq!(pace(10_000, 100).batch(100), BATCH_MIN);
        assert_eq!(pace(10_000, 100).batch(101 * 50), 50);
        assert_eq!(pace(10_000, 100).batch(101 * 50 + 1), 51);
        assert_eq!(pace(1_000, 1_000).batch(1_000), 500, "at the beginning, and after a second");
        assert_eq!(pace(0, 100).batch(1_000), 1_000, "no grace: all at once");
        assert_eq!(pace(0, 0).batch(1_000), 1_000);
    }

    #[test]
    fn whatever_the_numbers_the_last_batch_is_within_the_grace() {
        for connections in [0, 1, 7, 8, 9, 100, 12_345, 1_000_000] {
            for pace in [pace(10_000, 100), pace(1, 1_000), pace(700, 300), pace(0, 10), pace(60_000, 7)] {
                let batches = u128::try_from(connections.max(1_usize).div_ceil(pace.batch(connections))).unwrap();
                let last = (batches - 1) * pace.interval.as_nanos();
                assert!(last <= pace.grace.as_nanos(), "{connections} {pace:?}");
                assert_eq!(pace.lasts(connections).as_nanos(), last, "{connections} {pace:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn everybody_is_asked_once_in_the_order_of_arrival_and_at_the_pace() {
        let (clock, inside) = (Clock::following(0), Inside::default());
        let leave: Vec<_> = (0..100).map(|_| CancellationToken::new()).collect();
        for (number, leave) in (0..).zip(&leave) {
            inside.entered(number, leave.clone());
        }
        inside.left(3);
        let pace = pace(900, 100);
        let asked = leave.iter().enumerate().map(async |(number, leave)| {
            if number == 3 {
                return None;
            }
            leave.cancelled().await;
            Some(clock.now().monotonic.as_millis())
        });
        let (asked, ()) = tokio::join!(futures_util::future::join_all(asked), inside.ask_all(pace));
        assert!(!leave[3].is_cancelled(), "who left is not asked");
        let asked: Vec<_> = asked.into_iter().flatten().collect();
        assert!(asked.is_sorted() && asked.last() == Some(&900), "{asked:?}");
        assert!(asked.chunk_by(|a, b| a == b).all(|batch| batch.len() <= 10), "{asked:?}");
    }
}
