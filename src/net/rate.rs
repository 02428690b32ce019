//! How often something may happen: token buckets, governor's, on the clock of [`crate::time`], so that virtual time is obeyed.
//!
//! A bucket holds as much as its [`Rate`] allows per period and is full at first: so much may come at once, and from then on
//! no more than the rate. Buckets for many ([`Buckets`]) are found by a keyed hash of [`SLOTS`] values, so that whoever
//! invents addresses or groups cannot make them take more than a bounded amount of memory. Two who share a slot share its
//! bucket: among ten thousand that are active at once, one in a hundred does. *Rejected: a bucket per key*, which either
//! grows with whatever strangers send, or has to decide about strangers when it is full.

use std::fmt;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::Clock as _;
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::state::{InMemoryState, NotKeyed};
use governor::{NotUntil, Quota, RateLimiter};

use crate::time::Clock;

/// How many buckets there are at most in one [`Buckets`]: 64 MiB of them, under a flood that never ends.
pub const SLOTS: u32 = 1 << 20;

/// So much per period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How much; also what may come at once.
    pub amount: u64,
    /// In which time.
    pub per: Per,
}

/// A period of a [`Rate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Per {
    /// One second.
    Second,
    /// 60 of them.
    Minute,
    /// 3600 of them.
    Hour,
}

impl Per {
    /// All of them, with their units.
    pub const ALL: [(&'static str, Self); 3] = [("s", Self::Second), ("min", Self::Minute), ("h", Self::Hour)];
}

impl fmt::Display for Per {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = Self::ALL.iter().find(|(_, per)| per == self);
        f.write_str(unit.map_or("", |(unit, _)| unit))
    }
}

/// What a bucket counts. Coarser than single bytes, since time is counted in whole nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// One by one.
    Times,
    /// Bytes, by every begun 64.
    Bytes,
}

impl Measure {
    fn cells(self, amount: u64) -> NonZeroU32 {
        let cells = match self {
            Self::Times => amount,
            Self::Bytes => amount.div_ceil(64),
        };
        u32::try_from(cells).ok().and_then(NonZeroU32::new).unwrap_or(if cells == 0 {
            NonZeroU32::MIN
        } else {
            NonZeroU32::MAX
        })
    }

    fn quota(self, rate: Rate) -> Quota {
        let cells = self.cells(rate.amount);
        match rate.per {
            Per::Second => Quota::per_second(cells),
            Per::Minute => Quota::per_minute(cells),
            Per::Hour => Quota::per_hour(cells),
        }
    }
}

/// Our clock, as governor reads one.
#[derive(Debug, Clone, Copy)]
struct Ticks(Clock);

impl governor::clock::Clock for Ticks {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.now().monotonic
    }
}

/// There is not enough in the bucket yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too much; again in {} ms", wait.as_millis())]
pub struct TooMuch {
    /// When there will be, unless somebody else takes it.
    pub wait: Duration,
}

fn too_much(clock: Ticks) -> impl FnOnce(NotUntil<Duration>) -> TooMuch {
    move |until| TooMuch { wait: until.wait_time_from(clock.now()) }
}

/// One bucket.
#[derive(Debug)]
pub struct Bucket {
    limiter: RateLimiter<NotKeyed, InMemoryState, Ticks, NoOpMiddleware<Duration>>,
    clock: Ticks,
    measure: Measure,
    holds: NonZeroU32,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub fn new(rate: Rate, measure: Measure, clock: Clock) -> Self {
        let (clock, holds) = (Ticks(clock), measure.cells(rate.amount));
        Self { limiter: RateLimiter::direct_with_clock(measure.quota(rate), clock), clock, measure, holds }
    }

    /// Takes so much. What is more than the bucket holds takes all there is in a full one.
    ///
    /// # Errors
    /// [`TooMuch`]; nothing was taken then.
    pub fn take(&self, amount: u64) -> Result<(), TooMuch> {
        let cells = self.measure.cells(amount).min(self.holds);
        match self.limiter.check_n(cells) {
            Ok(taken) => taken.map_err(too_much(self.clock)),
            // Never: it was bounded by what the bucket holds.
            Err(governor::InsufficientCapacity(_)) => Ok(()),
        }
    }
}

/// A bucket for each of many.
pub struct Buckets {
    limiter: RateLimiter<u32, DashMapStateStore<u32>, Ticks, NoOpMiddleware<Duration>>,
    clock: Ticks,
    measure: Measure,
    holds: NonZeroU32,
    hash: RandomState,
    slots: u32,
}

impl fmt::Debug for Buckets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buckets({} in use)", self.limiter.len())
    }
}

impl Buckets {
    /// Full ones.
    #[must_use]
    pub fn new(rate: Rate, clock: Clock) -> Self {
        Self::with_slots(SLOTS, (rate, Measure::Times), clock)
    }

    /// Full ones of bytes.
    #[must_use]
    pub fn of_bytes(rate: Rate, clock: Clock) -> Self {
        Self::with_slots(SLOTS, (rate, Measure::Bytes), clock)
    }

    fn with_slots(slots: u32, (rate, measure): (Rate, Measure), clock: Clock) -> Self {
        let (clock, holds) = (Ticks(clock), measure.cells(rate.amount));
        let limiter = RateLimiter::dashmap_with_clock(measure.quota(rate), clock);
        Self { limiter, clock, measure, holds, hash: RandomState::new(), slots }
    }

    /// Takes one from the bucket of `key`.
    ///
    /// # Errors
    /// [`TooMuch`]; nothing was taken then.
    pub fn take(&self, key: &impl Hash) -> Result<(), TooMuch> {
        self.take_many(key, 1)
    }

    /// Takes so much from the bucket of `key`. What is more than it holds takes all there is in a full one.
    ///
    /// # Errors
    /// [`TooMuch`]; nothing was taken then.
    pub fn take_many(&self, key: &impl Hash, amount: u64) -> Result<(), TooMuch> {
        let [a, b, c, d, ..] = self.hash.hash_one(key).to_le_bytes();
        let slot = u32::from_le_bytes([a, b, c, d]) % self.slots;
        match self.limiter.check_key_n(&slot, self.measure.cells(amount).min(self.holds)) {
            Ok(taken) => taken.map_err(too_much(self.clock)),
            // Never: it was bounded by what the bucket holds.
            Err(governor::InsufficientCapacity(_)) => Ok(()),
        }
    }

    /// Forgets buckets that are full again. To be called now and then.
    pub fn tidy(&self) {
        self.limiter.retain_recent();
        self.limiter.shrink_to_fit();
    }

    /// How many buckets are not known to be full.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.limiter.len()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const fn rate(amount: u64, per: Per) -> Rate {
        Rate { amount, per }
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_gives_its_content_at_once_and_then_its_rate() {
        let bucket = Bucket::new(rate(5, Per::Second), Measure::Times, Clock::following(0));
        for _ in 0..5 {
            assert_eq!(bucket.take(1), Ok(()));
        }
        assert_eq!(bucket.take(1), Err(TooMuch { wait: ms(200) }));
        advance(ms(150)).await;
        assert_eq!(bucket.take(1), Err(TooMuch { wait: ms(50) }), "asking costs nothing");
        advance(ms(50)).await;
        assert_eq!(bucket.take(1), Ok(()));
        advance(Duration::from_secs(3_600)).await;
        assert_eq!((0..9).filter(|_| bucket.take(1).is_ok()).count(), 5, "a bucket holds no more than a period's");
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_are_taken_at_their_rate_and_what_exceeds_the_bucket_takes_all_of_it() {
        let mib = 1 << 20;
        let bucket = Bucket::new(rate(mib, Per::Second), Measure::Bytes, Clock::following(0));
        assert_eq!(bucket.take(mib), Ok(()));
        let TooMuch { wait } = bucket.take(mib / 2).unwrap_err();
        assert!(wait.abs_diff(ms(500)) < ms(5), "{wait:?}");
        advance(wait).await;
        assert_eq!(bucket.take(mib / 2), Ok(()));
        advance(Duration::from_secs(2)).await;
        assert_eq!(bucket.take(10 * mib), Ok(()), "else it would wait for ever");
        assert!(bucket.take(1).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn everybody_has_a_bucket_and_full_ones_are_forgotten() {
        let buckets = Buckets::new(rate(2, Per::Minute), Clock::following(0));
        for key in ["a", "b"] {
            assert_eq!((buckets.take(&key), buckets.take(&key)), (Ok(()), Ok(())), "{key}");
            assert_eq!(buckets.take(&key), Err(TooMuch { wait: Duration::from_secs(30) }), "{key}");
        }
        buckets.tidy();
        assert_eq!(buckets.in_use(), 2, "these are remembered");
        // Half a minute longer than it takes to fill them.
        advance(Duration::from_secs(91)).await;
        buckets.tidy();
        assert_eq!(buckets.in_use(), 0);
        assert_eq!(buckets.take(&"a"), Ok(()));
        let buckets = Buckets::of_bytes(rate(6_400, Per::Minute), Clock::following(0));
        assert_eq!((buckets.take_many(&"a", 6_400), buckets.take_many(&"b", 1 << 40)), (Ok(()), Ok(())));
        assert_eq!(buckets.take_many(&"a", 3_200), Err(TooMuch { wait: Duration::from_secs(30) }));
        assert!(buckets.take(&"b").is_err(), "what is more than it holds takes all of it");
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_without_number_take_a_bounded_number_of_buckets() {
        let buckets = Buckets::with_slots(1_000, (rate(1, Per::Hour), Measure::Times), Clock::following(0));
        let passed = (0..20_000_u32).filter(|stranger| buckets.take(stranger).is_ok()).count();
        assert_eq!((passed, buckets.in_use()), (1_000, 1_000), "one each");
    }
}
