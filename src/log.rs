//! What may stand in a log, and how often.
//!
//! # Who
//!
//! A log is read by more people than the database, kept in more places and for longer. So nobody is named in it: device
//! groups, devices and identities appear as [`LogId`]s, a keyed hash under a random key that is made at the start and anew
//! with each UTC day, and that never leaves the memory of this process. Within a day one device group can be followed from line to
//! line; a log of yesterday cannot be joined with one of today, and neither with the database, by anybody who does not hold
//! both the log and the running process. Who has an id and the running server can ask it which hash that is today (`admin`); nobody can
//! ask for the other direction.
//!
//! Messages appear as their size, keys not at all.
//!
//! # How often
//!
//! What a stranger can cause must not fill a disk: such lines go through [`Occasionally`], which lets one of each kind pass
//! per second and says with the next how many it held back.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, PoisonError, RwLock};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::crypto::{Secret, kdf};
use crate::metrics::{self, Bounded};
use crate::time::Clock;

/// The target of spans, which are there for traces and never in the log. Below `debug` and to nobody who listens they cost
/// nothing.
pub const SPANS: &str = "heliostat::spans";

/// How somebody appears in today's log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId([u8; Self::LEN]);

/// The text is no hash out of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a hash out of a log has 12 hexadecimal digits")]
pub struct BadLogId;

/// Who a [`LogId`] stands for; the same bytes as something else give another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who<'a> {
    /// A device group, by its id.
    Group(&'a [u8; 32]),
    /// A device of that group.
    Device(&'a [u8; 32], u64),
    /// An account of a chat server.
    Account(&'a [u8]),
}

impl LogId {
    /// Long enough that two groups of a million do not look alike by chance more often than once in a few hundred days.
    const LEN: usize = 6;

    /// Today's hash.
    #[must_use]
    pub fn of(who: Who<'_>) -> Self {
        KEYS.read().unwrap_or_else(PoisonError::into_inner).hash(who)
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogId({self})")
    }
}

impl FromStr for LogId {
    type Err = BadLogId;

    fn from_str(text: &str) -> Result<Self, BadLogId> {
        let mut bytes = [0; Self::LEN];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| BadLogId)?;
        Ok(Self(bytes))
    }
}

/// The key of the day.
#[derive(Debug)]
struct Keys {
    /// Days since the epoch; `None` until the clock was first asked.
    day: Option<u64>,
    key: Secret<32>,
}

static KEYS: LazyLock<RwLock<Keys>> = LazyLock::new(|| RwLock::new(Keys { day: None, key: Secret::random() }));

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
/// How often the wall clock is looked at, which may jump, and stands still with a machine that sleeps.
const LOOK_EVERY: Duration = Duration::from_secs(60);

impl Keys {
    /// Another day, before or after, is another key. Says whether it is.
    fn at(&mut self, wall_ms: u64) -> bool {
        let day = wall_ms / DAY_MS;
        let is_another = self.day.is_some_and(|known| known != day);
        if is_another {
            self.key = Secret::random();
        }
        self.day = Some(day);
        is_another
    }

    fn hash(&self, who: Who<'_>) -> LogId {
        let key = self.key.expose();
        let hash = match who {
            Who::Group(id) => kdf::blake2b(key, b"group", b"heliostat-log", id),
            Who::Device(id, device) => {
                let mut input = [0; 40];
                let (group, rest) = input.split_at_mut(32);
                group.copy_from_slice(id);
                rest.copy_from_slice(&device.to_le_bytes());
                kdf::blake2b(key, b"device", b"heliostat-log", &input)
            }
            Who::Account(name) => kdf::blake2b(key, b"account", b"heliostat-log", name),
        };
        let [a, b, c, d, e, f, ..] = *hash.expose();
        LogId([a, b, c, d, e, f])
    }
}

/// Makes a new key with each UTC day, until `stop`.
pub async fn rotate(clock: Clock, stop: CancellationToken) {
    loop {
        let now = clock.now();
        if KEYS.write().unwrap_or_else(PoisonError::into_inner).at(now.wall_ms) {
            tracing::info!("a new day: groups appear under new hashes from here on");
        }
        let midnight = Duration::from_millis(DAY_MS - now.wall_ms % DAY_MS);
        if stop.run_until_cancelled(tokio::time::sleep(midnight.min(LOOK_EVERY))).await.is_none() {
            return;
        }
    }
}

/// Lets one log line per second and kind pass, and counts the others.
///
/// ```
/// # use heliostat::{log::Occasionally, metrics::Refused, time::Clock};
/// let refusals = Occasionally::<Refused>::new(Clock::system());
/// if let Some(others) = refusals.may_say(Refused::Full) {
///     tracing::info!(others, "too many connections");
/// }
/// assert_eq!(refusals.may_say(Refused::Full), None, "within the same second");
/// assert_eq!(refusals.may_say(Refused::Url), Some(0), "another kind");
/// ```
#[derive(Debug)]
pub struct Occasionally<K> {
    clock: Clock,
    kinds: Vec<Quiet>,
    kind: std::marker::PhantomData<fn(K)>,
}

/// One kind's.
#[derive(Debug)]
struct Quiet {
    /// Until when nothing is said, in milliseconds of the monotonic clock.
    until_ms: AtomicU64,
    held_back: AtomicU64,
}

/// How long nothing more of a kind is said.
const QUIET_MS: u64 = 1_000;

impl<K: Bounded> Occasionally<K> {
    /// Nothing was said yet.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let quiet = |_| Quiet { until_ms: AtomicU64::new(0), held_back: AtomicU64::new(0) };
        Self { clock, kinds: K::all().into_iter().map(quiet).collect(), kind: std::marker::PhantomData }
    }

    /// Whether a line of this kind may be written now, and how many were held back since the last one.
    pub fn may_say(&self, kind: K) -> Option<u64> {
        let now_ms = u64::try_from(self.clock.now().monotonic.as_millis()).unwrap_or(u64::MAX);
        let Quiet { until_ms, held_back } = self.kinds.get(kind.index())?;
        let until = until_ms.load(Ordering::Relaxed);
        // Of several who find the second over at once, one may speak.
        let mine = now_ms >= until
            && until_ms.compare_exchange(until, now_ms + QUIET_MS, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if mine {
            return Some(held_back.swap(0, Ordering::Relaxed));
        }
        held_back.fetch_add(1, Ordering::Relaxed);
        metrics::get().log_suppressed.increment(1);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Refused;

    #[test]
    fn a_group_keeps_its_hash_for_a_day_and_gets_another_with_the_next() {
        let mut keys = Keys { day: None, key: Secret::random() };
        let group = Who::Group(&[7; 32]);
        let before = keys.hash(group);
        assert!(!keys.at(3 * DAY_MS), "the first look at the clock is no new day");
        assert!(!keys.at(4 * DAY_MS - 1));
        assert_eq!(keys.hash(group), before);
        assert!(keys.at(4 * DAY_MS));
        let after = keys.hash(group);
        assert_ne!(after, before);
        assert!(keys.at(4 * DAY_MS - 1), "a clock that goes back makes another day, too");
        assert_ne!(keys.hash(group), before, "yesterday's key is gone");
        let other_process = Keys { day: keys.day, key: Secret::random() };
        assert_ne!(other_process.hash(group), keys.hash(group));
    }

    #[test]
    fn the_same_bytes_look_different_in_different_places() {
        let keys = Keys { day: None, key: Secret::random() };
        let group = [7; 32];
        let all = [Who::Group(&group), Who::Account(&group), Who::Device(&group, 0), Who::Device(&group, 1)];
        let hashes: std::collections::HashSet<_> = all.map(|who| keys.hash(who)).into();
        assert_eq!(hashes.len(), all.len());
    }

    #[test]
    fn a_hash_is_found_again_by_its_text() {
        let id = LogId::of(Who::Group(&[7; 32]));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("0123".parse::<LogId>(), Err(BadLogId));
    }

    #[tokio::test(start_paused = true)]
    async fn the_key_changes_at_midnight() {
        let clock = Clock::following(10 * DAY_MS - 5_000);
        let stop = CancellationToken::new();
        let rotating = tokio::spawn(rotate(clock, stop.clone()));
        tokio::time::sleep(Duration::from_secs(4)).await;
        let before = LogId::of(Who::Group(&[7; 32]));
        tokio::time::sleep(Duration::from_millis(990)).await;
        assert_eq!(LogId::of(Who::Group(&[7; 32])), before);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_ne!(LogId::of(Who::Group(&[7; 32])), before);
        stop.cancel();
        rotating.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn one_line_of_a_kind_passes_per_second_and_tells_of_the_others() {
        let lines = Occasionally::<Refused>::new(Clock::following(0));
        assert_eq!(lines.may_say(Refused::Url), Some(0));
        for _ in 0..41 {
            assert_eq!(lines.may_say(Refused::Url), None);
        }
        assert_eq!(lines.may_say(Refused::Full), Some(0), "another kind is not held back");
        tokio::time::advance(Duration::from_millis(QUIET_MS)).await;
        assert_eq!(lines.may_say(Refused::Url), Some(41));
        tokio::time::advance(Duration::from_millis(QUIET_MS)).await;
        assert_eq!(lines.may_say(Refused::Url), Some(0));
    }
}
