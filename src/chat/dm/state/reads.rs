//! How much everybody was answered lately: what is asked for in a line can be megabytes.
//!
//! Counted when it is known, which is afterwards: somebody who had too much waits until it has been forgotten. So the last
//! answer may be as long as answers get, and nobody who wants a long one is refused for ever.
//!
//! No configuration has these two numbers: the first follows from how long one answer can be (a page of the longest messages is
//! 13 MB; less would make people wait who look at one page), and more of either only lets one user take more of the one task that
//! answers everybody. Who needs to be answered more asks from more accounts.

use std::collections::HashMap;
use std::time::Duration;

use super::UserId;

/// Bytes that somebody may have been answered before the next long answer.
const AT_ONCE: u64 = 16 * 1024 * 1024;
/// Bytes that are forgotten in a second.
const PER_S: u64 = 2 * 1024 * 1024;

/// See the top of this file.
#[derive(Debug, Default)]
pub struct Reads(HashMap<UserId, (u64, Duration)>);

impl Reads {
    /// Whether somebody may ask for something long.
    #[must_use]
    pub fn may(&self, user: UserId, now: Duration) -> bool {
        self.level(user, now) < AT_ONCE
    }

    /// Somebody was answered so many bytes.
    pub fn had(&mut self, user: UserId, bytes: usize, now: Duration) {
        let level = self.level(user, now).saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        self.0.insert(user, (level, now));
    }

    /// Forgets those who had nothing lately. To be called now and then.
    pub fn tidy(&mut self, now: Duration) {
        self.0.retain(|_, (level, at)| left(*level, *at, now) > 0);
    }

    fn level(&self, user: UserId, now: Duration) -> u64 {
        self.0.get(&user).map_or(0, |(level, at)| left(*level, *at, now))
    }
}

fn left(level: u64, at: Duration, now: Duration) -> u64 {
    let ms = u64::try_from(now.saturating_sub(at).as_millis()).unwrap_or(u64::MAX);
    level.saturating_sub(ms.saturating_mul(PER_S) / 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_the_longest_messages_without_end_took_all_memory() {
        let (alice, bob, page) = (UserId(1), UserId(2), 13 * 1024 * 1024);
        let s = Duration::from_secs;
        let mut reads = Reads::default();
        for _ in 0..2 {
            assert!(reads.may(alice, s(0)));
            reads.had(alice, page, s(0));
        }
        assert!(!reads.may(alice, s(0)) && reads.may(bob, s(0)), "26 MiB");
        assert!(!reads.may(alice, s(5)) && reads.may(alice, s(6)));
        reads.tidy(s(12));
        assert_eq!(reads.0.len(), 1);
        reads.tidy(s(13));
        assert!(reads.0.is_empty());
        for second in 0..1_000 {
            reads.had(bob, 100_000, s(second));
            assert!(reads.may(bob, s(second)), "who asks for little never waits");
        }
    }
}
