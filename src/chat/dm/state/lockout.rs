//! Who failed to log in too often (spec 6.6): a connection, or an address. Never a name: anybody could lock anybody out.

use std::collections::HashMap;
use std::time::Duration;

/// Addresses of which failures are known, at most. Who fails from one more is not counted until others are forgotten.
const ADDRESSES_MAX: usize = 65_536;
/// How often is looked for some that can be forgotten, when there are so many.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How many failures there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockoutLimits {
    /// The failure of a connection that locks it.
    pub of_connection: u32,
    /// For how long.
    pub locks_for: Duration,
    /// The failure from an address within `of_address_within` that locks it.
    pub of_address: u32,
    /// See above; and for how long.
    pub of_address_within: Duration,
}

impl Default for LockoutLimits {
    fn default() -> Self {
        Self {
            of_connection: 10,
            locks_for: Duration::from_secs(60),
            of_address: 30,
            of_address_within: Duration::from_secs(600),
        }
    }
}

/// The failures of one connection.
#[derive(Debug, Default, Clone, Copy)]
pub struct Lockout {
    failures: u32,
    until: Option<Duration>,
}

impl Lockout {
    /// Whether it is locked. A lock that is over leaves nothing behind.
    pub fn is_locked(&mut self, now: Duration) -> bool {
        match self.until {
            Some(until) if now < until => true,
            Some(_) => {
                *self = Self::default();
                false
            }
            None => false,
        }
    }

    /// One more failure. Returns how many are left.
    pub fn failed(&mut self, limits: &LockoutLimits, now: Duration) -> u32 {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= limits.of_connection {
            self.until = Some(now.saturating_add(limits.locks_for));
        }
        limits.of_connection.saturating_sub(self.failures)
    }

    /// It was no failure in the end.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }
}

/// The failures from addresses.
#[derive(Debug, Default)]
pub struct Failures {
    windows: HashMap<u128, Window>,
    /// When there is room to be looked for again: whoever fails often must not make us look often.
    look_at: Duration,
}

#[derive(Debug)]
struct Window {
    began: Duration,
    failures: u32,
    locked: bool,
}

impl Failures {
    /// Whether nobody is heard who comes from there.
    #[must_use]
    pub fn is_locked(&self, network: u128, limits: &LockoutLimits, now: Duration) -> bool {
        self.windows.get(&network).is_some_and(|window| window.locked && !window.is_over(limits, now))
    }

    /// One more failure.
    pub fn failed(&mut self, network: u128, limits: &LockoutLimits, now: Duration) {
        if self.windows.len() >= ADDRESSES_MAX && !self.windows.contains_key(&network) {
            if now >= self.look_at {
                self.look_at = now.saturating_add(LOOK_EVERY);
                self.tidy(limits, now);
            }
            if self.windows.len() >= ADDRESSES_MAX {
                return;
            }
        }
        let new = || Window { began: now, failures: 0, locked: false };
        let window = self.windows.entry(network).or_insert_with(new);
        if window.is_over(limits, now) {
            *window = new();
        }
        window.failures = window.failures.saturating_add(1);
        if window.failures >= limits.of_address && !window.locked {
            (window.locked, window.began) = (true, now);
        }
    }

    /// Forgets what was too long ago.
    pub fn tidy(&mut self, limits: &LockoutLimits, now: Duration) {
        self.windows.retain(|_, window| !window.is_over(limits, now));
    }
}

impl Window {
    fn is_over(&self, limits: &LockoutLimits, now: Duration) -> bool {
        now >= self.began.saturating_add(limits.of_address_within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn ten_failures_lock_a_connection_for_a_minute_and_after_that_there_are_ten_again() {
        let limits = LockoutLimits::default();
        let mut lockout = Lockout::default();
        for round in [0, 60] {
            for left in (0..10).rev() {
                assert!(!lockout.is_locked(s(round)));
                assert_eq!(lockout.failed(&limits, s(round)), left);
            }
            assert!(lockout.is_locked(s(round + 59)));
        }
        assert!(!lockout.is_locked(s(120)));
        lockout.failed(&limits, s(120));
        lockout.succeeded();
        assert_eq!(lockout.failed(&limits, s(120)), 9);
    }

    #[test]
    fn another_connection_does_not_help_from_the_same_address() {
        let limits = LockoutLimits::default();
        let mut failures = Failures::default();
        for n in 0..29 {
            failures.failed(1, &limits, s(n * 20));
        }
        assert!(!failures.is_locked(1, &limits, s(599)));
        failures.failed(1, &limits, s(599));
        assert!(failures.is_locked(1, &limits, s(1_198)) && !failures.is_locked(2, &limits, s(600)));
        assert!(!failures.is_locked(1, &limits, s(1_199)), "for ten minutes");
        failures.tidy(&limits, s(1_199));
        assert!(failures.windows.is_empty());
    }

    #[test]
    fn addresses_without_number_take_a_bounded_amount_of_memory() {
        let limits = LockoutLimits::default();
        let mut failures = Failures::default();
        for network in 0..100_000 {
            failures.failed(network, &limits, s(0));
        }
        assert_eq!(failures.windows.len(), ADDRESSES_MAX);
        failures.failed(200_000, &limits, s(600));
        assert_eq!(failures.windows.len(), 1, "those were forgotten");
    }
}
