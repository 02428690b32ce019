//! How fast a device is listened to.
//!
//! A device that sends more than it may is read more slowly, and nothing else happens to it: the socket is the only brake, as
//! everywhere in this protocol. Its messages wait in its own socket; what others send it goes on. *Rejected: a close code*,
//! since no device can know its rate, and one that reconnects after a close brings the same messages again.

use crate::metrics::Slowed;
use crate::net::rate::{Bucket, Measure, Rate, TooMuch};
use crate::time::Clock;

/// What one connection may send.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// WebSocket messages; `None` as many as it likes.
    pub frames: Option<Rate>,
    /// Bytes in them; `None` as many as it likes.
    pub bytes: Option<Rate>,
}

/// One connection's.
#[derive(Debug)]
pub(super) struct Brake {
    frames: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Brake {
    pub(super) fn new(rates: Rates, clock: Clock) -> Self {
        let bucket = |rate: Option<Rate>, measure| rate.map(|rate| Bucket::new(rate, measure, clock));
        Self { frames: bucket(rates.frames, Measure::Times), bytes: bucket(rates.bytes, Measure::Bytes) }
    }

    /// A message of this length came: waits until it may be heard, and says what it waited for.
    pub(super) async fn pass(&self, bytes: usize) -> Option<Slowed> {
        let frames = hold(self.frames.as_ref(), 1).await.then_some(Slowed::Frames);
        let bytes = hold(self.bytes.as_ref(), u64::try_from(bytes).unwrap_or(u64::MAX)).await.then_some(Slowed::Bytes);
        frames.or(bytes)
    }
}

/// Returns whether it waited.
async fn hold(bucket: Option<&Bucket>, amount: u64) -> bool {
    let Some(bucket) = bucket else { return false };
    let mut waited = false;
    while let Err(TooMuch { wait }) = bucket.take(amount) {
        waited = true;
        tokio::time::sleep(wait).await;
    }
    waited
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::net::rate::Per;

    const fn per_second(amount: u64) -> Option<Rate> {
        Some(Rate { amount, per: Per::Second })
    }

    /// How long it takes to hear `count` messages of this length.
    async fn takes(rates: Rates, count: u32, bytes: usize) -> Duration {
        let clock = Clock::following(0);
        let brake = Brake::new(rates, clock);
        for _ in 0..count {
            let before = clock.now();
            let slowed = brake.pass(bytes).await;
            assert_eq!(slowed.is_some(), clock.now() != before, "{slowed:?}");
        }
        clock.now().monotonic
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_sends_too_much_is_heard_later_and_never_less() {
        assert_eq!(takes(Rates::default(), 10_000, 65_536).await, Duration::ZERO);
        let frames = Rates { frames: per_second(100), bytes: None };
        assert_eq!(takes(frames, 100, 65_536).await, Duration::ZERO, "a second's worth at once");
        let slow = takes(frames, 1_100, 0).await;
        assert!(slow.abs_diff(Duration::from_secs(10)) < Duration::from_secs(1), "{slow:?}");
        let bytes = Rates { frames: None, bytes: per_second(1 << 20) };
        let slow = takes(bytes, 11 * 16, 65_536).await;
        assert!(slow.abs_diff(Duration::from_secs(10)) < Duration::from_millis(200), "{slow:?}");
        let both = Rates { frames: per_second(100), bytes: per_second(1 << 20) };
        assert!(takes(both, 11 * 16, 65_536).await >= slow, "the slower of both");
    }
}
