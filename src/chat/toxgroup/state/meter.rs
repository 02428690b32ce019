//! How often something may happen, on the time that is handed in (spec 9.8).

use std::collections::BTreeMap;
use std::time::Duration;

use super::KEPT_MAX;
use crate::net::rate::{Per, Rate};

/// Once per `every`, and `burst` times at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// The time one takes.
    pub every: Duration,
    /// How many may come at once, after a silence.
    pub burst: u32,
}

impl Pace {
    pub(super) const fn new(every: Duration, burst: u32) -> Self {
        Self { every, burst }
    }

    /// As often as this rate says; what may come at once stays.
    #[must_use]
    pub fn at(self, rate: Rate) -> Self {
        let per = match rate.per {
            Per::Second => Duration::from_secs(1),
            Per::Minute => Duration::from_secs(60),
            Per::Hour => Duration::from_secs(3_600),
        };
        Self { every: per / u32::try_from(rate.amount).unwrap_or(u32::MAX).max(1), burst: self.burst }
    }

    /// A little slower: what keeps this pace keeps the other one also where the net made two arrive closer together.
    pub(super) fn careful(self) -> Self {
        Self { every: self.every + self.every / 10, burst: self.burst.saturating_sub(1).max(1) }
    }
}

/// How far somebody is ahead of a [`Pace`]: one moment is all there is to know.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Meter(Duration);

impl Meter {
    /// Takes `amount`, or nothing when that is too much.
    pub(super) fn take(&mut self, now: Duration, pace: Pace, amount: u32) -> bool {
        let after = self.0.max(now).saturating_add(pace.every.saturating_mul(amount));
        let fits = after <= now.saturating_add(pace.every.saturating_mul(pace.burst));
        if fits {
            self.0 = after;
        }
        fits
    }

    /// Whether it is as if nothing had ever happened.
    pub(super) fn is_rested(self, now: Duration) -> bool {
        self.0 <= now
    }
}

/// A meter for each of as many as come. Where they are too many to tell apart, some are forgotten: what bounds them all
/// together has to stand behind this.
#[derive(Debug)]
pub(super) struct Crowd<K>(BTreeMap<K, Meter>);

impl<K> Default for Crowd<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Crowd<K> {
    pub(super) fn take(&mut self, key: K, now: Duration, pace: Pace) -> bool {
        if self.0.len() >= KEPT_MAX && !self.0.contains_key(&key) {
            self.0.pop_first();
        }
        self.0.entry(key).or_default().take(now, pace, 1)
    }

    /// Forgets those who were silent.
    pub(super) fn sweep(&mut self, now: Duration) {
        self.0.retain(|_, meter| !meter.is_rested(now));
    }
}

/// The limits of spec 9.8, per group. Those "per origin" need signed mode to be more than a hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Texts of an origin.
    pub texts: Pace,
    /// Names, states of presence and topics of an origin.
    pub settings: Pace,
    /// Pings of an origin.
    pub pings: Pace,
    /// Newcomers an origin tells of, and bans it asks for; also those a neighbour in a classic group makes known.
    pub newcomers: Pace,
    /// Records from a neighbour.
    pub records: Pace,
    /// Packets from a neighbour.
    pub packets: Pace,
    /// Bytes from a neighbour.
    pub bytes: Pace,
    /// Packets in members' names, all together, from where these did not prove to be; of one address as many as of a neighbour.
    pub strays: Pace,
    /// Answers to a neighbour that asks who is near; elsewhere, to one endpoint.
    pub answers: Pace,
    /// Answers to a neighbour that wants records, each of up to eight packets.
    pub syncs: Pace,
    /// Strangers of one address that want in.
    pub joins_per_address: Pace,
    /// Strangers that want in.
    pub joins: Pace,
    /// Strangers that are let in, and as many of whom those who may let in are believed to tell.
    pub welcomes: Pace,
    /// How bad a neighbour may be: so many points, of which one is forgotten each second.
    pub offences: Pace,
    /// Members of the group.
    pub members_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        const SECOND: Duration = Duration::from_secs(1);
        Self {
            texts: Pace::new(SECOND, 5),
            settings: Pace::new(Duration::from_secs(10), 3),
            pings: Pace::new(Duration::from_secs(15), 3),
            newcomers: Pace::new(Duration::from_secs(2), 20),
            records: Pace::new(Duration::from_millis(100), 100),
            packets: Pace::new(Duration::from_micros(16_667), 200),
            // 64 KiB/s.
            bytes: Pace::new(Duration::from_nanos(15_259), 64 * 1_024),
            strays: Pace::new(Duration::from_micros(3_333), 1_000),
            answers: Pace::new(Duration::from_millis(500), 5),
            syncs: Pace::new(Duration::from_millis(500), 10),
            joins_per_address: Pace::new(Duration::from_millis(200), 5),
            joins: Pace::new(Duration::from_millis(20), 50),
            welcomes: Pace::new(SECOND, 32),
            offences: Pace::new(SECOND, 100),
            members_max: 512,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_at_once_and_then_one_at_a_time() {
        let (mut meter, pace) = (Meter::default(), Pace::new(Duration::from_secs(1), 5));
        let at = |ms| Duration::from_millis(ms);
        assert_eq!((0..9).filter(|_| meter.take(at(50_000), pace, 1)).count(), 5);
        assert!(!meter.take(at(50_999), pace, 1) && meter.take(at(51_000), pace, 1));
        assert!(!meter.take(at(60_000), pace, 6), "more than a burst never fits");
        assert!(meter.is_rested(at(60_000)) && meter.take(at(60_000), pace, 5));
    }
}
