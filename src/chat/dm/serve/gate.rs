//! Who may do what how often (spec 6.5). Whoever is too fast is refused.

use std::hash::Hash;
use std::net::IpAddr;
use std::time::Duration;

use crate::chat::dm::state::{ConnId, UserId};
use crate::net::places::network;
use crate::net::rate::{Bucket, Buckets, Measure, Per, Rate};
use crate::time::Clock;

/// What may come at once on one connection, in periods of its rate.
const EVENTS_AT_ONCE: u32 = 4;
/// What one user may write at once, in periods of the rate.
const WRITES_AT_ONCE: u32 = 3;
/// So many bytes of an event count as one more.
const EVENT_BYTES: usize = 16 * 1024;
/// How often somebody may try to make DMs at once, in periods of the rate of those that are made.
const ATTEMPTS_AT_ONCE: u32 = 3;
/// Changes of a profile that may come at once, in periods of their rate.
const PROFILES_AT_ONCE: u32 = 5;
/// A connection that is so many times too fast is a flood,
const FLOOD_TIMES: u64 = 3;
/// when it has been for so many periods of its rate.
const FLOOD_PERIODS: u32 = 10;

/// How often something may happen; `None` for as often as one likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// Events of a connection. Four periods' may come at once; who is three times as fast for ten periods is disconnected.
    pub events: Option<Rate>,
    /// Messages, changes of messages and reactions of a user. Three periods' may come at once.
    pub writes: Option<Rate>,
    /// Notifications that a user types in a DM. What is too much is left out without a word.
    pub typing: Option<Rate>,
    /// Changes of a user that everybody is told of. Five periods' may come at once.
    pub profiles: Option<Rate>,
    /// DMs that a user makes.
    pub dms: Option<Rate>,
    /// Requests for friendship of a user.
    pub requests: Option<Rate>,
    /// Accounts made from an address.
    pub registrations: Option<Rate>,
    /// Accounts made from addresses behind which many stand, all together.
    pub shared_registrations: Option<Rate>,
    /// Looking from an address whether there is a name.
    pub lookups: Option<Rate>,
    /// Lists of all users to a connection.
    pub lists: Option<Rate>,
    /// New connections from an address.
    pub connections: Option<Rate>,
}

impl Default for Rates {
    fn default() -> Self {
        let rate = |amount, per| Some(Rate { amount, per });
        Self {
            events: rate(50, Per::Second),
            writes: rate(10, Per::Second),
            typing: rate(2, Per::Second),
            profiles: rate(1, Per::Second),
            dms: rate(10, Per::Minute),
            requests: rate(20, Per::Minute),
            registrations: rate(10, Per::Hour),
            shared_registrations: rate(600, Per::Hour),
            lookups: rate(10, Per::Second),
            lists: rate(1, Per::Second),
            connections: rate(10, Per::Second),
        }
    }
}

impl Rates {
    /// As often as everybody likes: for tests and measurements.
    pub const NONE: Self = Self {
        events: None,
        writes: None,
        typing: None,
        profiles: None,
        dms: None,
        requests: None,
        registrations: None,
        shared_registrations: None,
        lookups: None,
        lists: None,
        connections: None,
    };
}

/// Who is held responsible: an address, or a connection where many come from one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Who {
    Connection(ConnId),
    Network(u128),
}

/// See the top of this file.
#[derive(Debug)]
pub(super) struct Gate {
    rates: Rates,
    exempt: Vec<IpAddr>,
    clock: Clock,
    writes: Option<Buckets>,
    typing: Option<Buckets>,
    profiles: Option<Buckets>,
    attempts: Option<Buckets>,
    dms: Option<Buckets>,
    requests: Option<Buckets>,
    registrations: Option<Buckets>,
    shared_registrations: Option<Buckets>,
    lookups: Option<Buckets>,
    lists: Option<Buckets>,
    connections: Option<Buckets>,
}

fn may(buckets: Option<&Buckets>, key: &impl Hash) -> bool {
    buckets.is_none_or(|buckets| buckets.take(key).is_ok())
}

impl Gate {
    pub(super) fn new(rates: Rates, exempt: Vec<IpAddr>, clock: Clock) -> Self {
        let buckets = |rate: Option<Rate>| rate.map(|rate| Buckets::new(rate, clock));
        Self {
            writes: rates.writes.map(|rate| Buckets::holding(WRITES_AT_ONCE, rate, clock)),
            typing: buckets(rates.typing),
            profiles: rates.profiles.map(|rate| Buckets::holding(PROFILES_AT_ONCE, rate, clock)),
            attempts: rates.dms.map(|rate| Buckets::holding(ATTEMPTS_AT_ONCE, rate, clock)),
            dms: buckets(rates.dms),
            requests: buckets(rates.requests),
            registrations: buckets(rates.registrations),
            shared_registrations: buckets(rates.shared_registrations),
            lookups: buckets(rates.lookups),
            lists: buckets(rates.lists),
            connections: buckets(rates.connections),
            rates,
            exempt,
            clock,
        }
    }

    /// Who answers for what comes through this connection.
    pub(super) fn who(&self, conn: ConnId, from: IpAddr) -> Who {
        let from = from.to_canonical();
        if self.exempt.contains(&from) { Who::Connection(conn) } else { Who::Network(network(from)) }
    }

    pub(super) fn may_write(&self, user: UserId) -> bool {
        may(self.writes.as_ref(), &user)
    }

    pub(super) fn may_tell_typing(&self, user: UserId, dm: i64) -> bool {
        may(self.typing.as_ref(), &(user, dm))
    }

    pub(super) fn may_change(&self, user: UserId) -> bool {
        may(self.profiles.as_ref(), &user)
    }

    /// To be asked before the work that may end in a refusal.
    pub(super) fn may_try_dm(&self, user: UserId) -> bool {
        may(self.attempts.as_ref(), &user)
    }

    pub(super) fn may_make_dm(&self, user: UserId) -> bool {
        may(self.dms.as_ref(), &user)
    }

    pub(super) fn may_ask(&self, user: UserId) -> bool {
        may(self.requests.as_ref(), &user)
    }

    /// A connection that is a new one each time bounds nothing: those who are nobody else share something, too.
    pub(super) fn may_register(&self, who: Who) -> bool {
        let is_shared = matches!(who, Who::Connection(_));
        may(self.registrations.as_ref(), &who) && (!is_shared || may(self.shared_registrations.as_ref(), &()))
    }

    pub(super) fn may_look_up(&self, who: Who) -> bool {
        may(self.lookups.as_ref(), &who)
    }

    pub(super) fn may_list(&self, conn: ConnId) -> bool {
        may(self.lists.as_ref(), &conn)
    }

    /// Those behind the mediator are counted by nobody: each would be the first of its connection.
    pub(super) fn may_connect(&self, from: IpAddr) -> bool {
        let from = from.to_canonical();
        self.exempt.contains(&from) || may(self.connections.as_ref(), &network(from))
    }

    /// What bounds one connection.
    pub(super) fn tap(&self) -> Tap {
        let flood = |rate: Rate| Rate { amount: rate.amount.saturating_mul(FLOOD_TIMES), ..rate };
        let bucket = |periods, rate| Bucket::holding(periods, rate, Measure::Times, self.clock);
        Tap {
            events: self.rates.events.map(|rate| bucket(EVENTS_AT_ONCE, rate)),
            flood: self.rates.events.map(|rate| bucket(FLOOD_PERIODS, flood(rate))),
        }
    }

    /// Forgets those who were quiet. To be called now and then.
    pub(super) fn tidy(&self) {
        let Self {
            writes,
            typing,
            profiles,
            attempts,
            dms,
            requests,
            registrations,
            shared_registrations,
            lookups,
            lists,
            connections,
            ..
        } = self;
        let of_users = [writes, typing, profiles, attempts, dms, requests];
        for buckets in
            of_users.into_iter().chain([registrations, shared_registrations, lookups, lists, connections]).flatten()
        {
            buckets.tidy();
        }
    }
}

/// What bounds one connection.
#[derive(Debug)]
pub(super) struct Tap {
    events: Option<Bucket>,
    flood: Option<Bucket>,
}

/// What becomes of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Heard,
    TooFast,
    /// For so long that nobody listens any more.
    Flood,
}

impl Tap {
    /// An event of so many bytes: a long one costs more, as reading it does.
    pub(super) fn event(&self, bytes: usize) -> Flow {
        let holds = |bucket: &Option<Bucket>, cost| bucket.as_ref().is_none_or(|bucket| bucket.take(cost).is_ok());
        let cost = u64::try_from(bytes / EVENT_BYTES).unwrap_or(u64::MAX).saturating_add(1);
        match (holds(&self.flood, 1), holds(&self.events, cost)) {
            (false, _) => Flow::Flood,
            (true, false) => Flow::TooFast,
            (true, true) => Flow::Heard,
        }
    }
}

/// How long a connection may stay on which nobody has logged in.
pub const STRANGER_MAX: Duration = Duration::from_secs(30 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_three_times_too_fast_for_ten_seconds_is_a_flood() {
        let gate = Gate::new(Rates::default(), Vec::new(), Clock::following(0));
        let tap = gate.tap();
        let heard = (0..1_000).filter(|_| tap.event(100) == Flow::Heard).count();
        assert_eq!((heard, tap.event(100)), (200, Flow::TooFast));
        let tap = gate.tap();
        let heard = (0..1_000).filter(|_| tap.event(50_000) == Flow::Heard).count();
        assert_eq!(heard, 50, "long ones are worth four");
        let tap = gate.tap();
        for second in 0..60 {
            for n in 0..290 {
                let flow = tap.event(100);
                // 1500 at once, and 150 each second: gone after some ten seconds of 290.
                if flow == Flow::Flood {
                    assert!((9..=12).contains(&second), "after {second} s and {n}");
                    return;
                }
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        panic!("never");
    }

    #[tokio::test(start_paused = true)]
    async fn everybody_answers_for_himself_also_behind_a_mediator() {
        let mediator = "127.0.0.1".parse().unwrap();
        let gate = Gate::new(Rates::default(), vec![mediator], Clock::following(0));
        let stranger = gate.who(ConnId(1), "192.0.2.1".parse().unwrap());
        assert_eq!(stranger, gate.who(ConnId(2), "::ffff:192.0.2.1".parse().unwrap()));
        assert_ne!(gate.who(ConnId(1), mediator), gate.who(ConnId(2), mediator));
        assert_eq!((0..20).filter(|_| gate.may_register(stranger)).count(), 10);
        let newcomers = (0..1_000).filter(|n| gate.may_register(gate.who(ConnId(*n), mediator)));
        assert_eq!(newcomers.count(), 600, "each on a connection of its own");
        assert_eq!((0..99).filter(|_| gate.may_write(UserId(1))).count(), 30);
        assert!(gate.may_write(UserId(2)));
        let typed = (0..9).filter(|_| gate.may_tell_typing(UserId(1), 1)).count();
        assert_eq!((typed, gate.may_tell_typing(UserId(1), 2)), (2, true));
        tokio::time::advance(Duration::from_secs(7_200)).await;
        gate.tidy();
        assert_eq!(gate.writes.as_ref().unwrap().in_use(), 0);
        assert!((0..2_000).all(|_| Gate::new(Rates::NONE, vec![], gate.clock).tap().event(1) == Flow::Heard));
    }
}
