//! Who is to be woken when nobody acknowledges a message in time (spec 4.14). In memory alone: a restart forgets who was to
//! be woken, and the next message wakes them.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::chat::skynet::wire::{AccountId, MessageId};

/// Messages that wait to be acknowledged, at most: of more, the oldest wake at once.
pub const WAITING_MAX: usize = 100_000;

/// See the top of this file.
#[derive(Debug, Default)]
pub struct Wakes {
    due: BTreeSet<(Duration, MessageId, AccountId)>,
    at: HashMap<(MessageId, AccountId), Duration>,
}

impl Wakes {
    /// Unless the message is acknowledged, the account is to be woken at `due`.
    pub fn expect(&mut self, due: Duration, message: MessageId, account: AccountId) {
        if self.at.insert((message, account), due).is_none() {
            self.due.insert((due, message, account));
        }
    }

    /// Somebody of the account has it.
    pub fn acknowledged(&mut self, message: MessageId, account: AccountId) {
        if let Some(due) = self.at.remove(&(message, account)) {
            self.due.remove(&(due, message, account));
        }
    }

    /// When the next is to be woken.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.due.first().map(|(due, ..)| *due)
    }

    /// Who is to be woken now, each once.
    #[must_use]
    pub fn due(&mut self, now: Duration) -> BTreeSet<AccountId> {
        let mut accounts = BTreeSet::new();
        while let Some((due, message, account)) = self.due.first().copied()
            && (due <= now || self.due.len() > WAITING_MAX)
        {
            self.acknowledged(message, account);
            accounts.insert(account);
        }
        accounts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: AccountId = AccountId(1);
    const B: AccountId = AccountId(2);

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn who_acknowledges_is_not_woken_and_who_does_not_is_woken_once() {
        let mut wakes = Wakes::default();
        for (due, message, account) in [(10, 1, A), (10, 1, B), (11, 2, A), (90, 3, A)] {
            wakes.expect(s(due), MessageId(message), account);
        }
        wakes.acknowledged(MessageId(1), B);
        wakes.acknowledged(MessageId(7), B);
        assert_eq!(wakes.next_deadline(), Some(s(10)));
        assert_eq!(wakes.due(s(9)), [].into());
        assert_eq!(wakes.due(s(11)), [A].into(), "once for two");
        assert_eq!(wakes.due(s(11)), [].into());
        wakes.acknowledged(MessageId(3), A);
        assert_eq!(wakes.next_deadline(), None);
        assert!(wakes.at.is_empty() && wakes.due.is_empty());
    }

    #[test]
    fn too_many_wake_early_and_none_is_forgotten() {
        let mut wakes = Wakes::default();
        for n in 0..=i64::try_from(WAITING_MAX).unwrap() {
            wakes.expect(s(60), MessageId(n), if n == 0 { B } else { A });
        }
        assert_eq!(wakes.due(s(0)), [B].into());
        assert_eq!(wakes.due.len(), WAITING_MAX);
    }
}
