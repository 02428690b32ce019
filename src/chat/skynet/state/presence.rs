//! Who is connected, and what they are doing (spec 3.4). In memory alone: when a connection ends, it was never there.

use std::collections::{BTreeSet, HashMap};

use super::ConnId;
use crate::chat::skynet::wire::{AccountId, ChannelAction, ChannelId, Doing, SessionId};

/// A connection that a session is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat {
    /// Who.
    pub account: AccountId,
    /// Which device.
    pub session: SessionId,
    /// Whether somebody is looking.
    pub active: bool,
    /// What is being done, and where.
    pub doing: Doing,
}

/// See the top of this file.
#[derive(Debug, Default)]
pub struct Presence {
    seats: HashMap<ConnId, Seat>,
    of: HashMap<AccountId, BTreeSet<ConnId>>,
}

/// What others are to be told of a change: first this, then that.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changed {
    /// What is done now in which channel.
    pub actions: Vec<(ChannelId, ChannelAction)>,
    /// Whether somebody of the account is there, if that changed.
    pub active: Option<bool>,
}

impl Presence {
    /// A session is bound to a connection.
    pub fn join(&mut self, conn: ConnId, account: AccountId, session: SessionId) {
        self.seats.insert(conn, Seat { account, session, active: false, doing: Doing::default() });
        self.of.entry(account).or_default().insert(conn);
    }

    /// A connection is over. `None` when no session was bound to it.
    pub fn leave(&mut self, conn: ConnId) -> Option<(Seat, Changed)> {
        let seat = *self.seats.get(&conn)?;
        let changed = self.change(conn, false, Doing::default());
        self.seats.remove(&conn);
        if let Some(conns) = self.of.get_mut(&seat.account) {
            conns.remove(&conn);
            if conns.is_empty() {
                self.of.remove(&seat.account);
            }
        }
        Some((seat, changed))
    }

    /// Who is at a connection.
    #[must_use]
    pub fn seat(&self, conn: ConnId) -> Option<Seat> {
        self.seats.get(&conn).copied()
    }

    /// The connections of an account.
    pub fn of(&self, account: AccountId) -> impl Iterator<Item = ConnId> + '_ {
        self.of.get(&account).into_iter().flatten().copied()
    }

    /// The connection that a session is bound to.
    #[must_use]
    pub fn at(&self, account: AccountId, session: SessionId) -> Option<ConnId> {
        self.of(account).find(|conn| self.seats.get(conn).is_some_and(|seat| seat.session == session))
    }

    /// Whether somebody of an account is looking.
    #[must_use]
    pub fn is_active(&self, account: AccountId) -> bool {
        self.of(account).any(|conn| self.seats.get(&conn).is_some_and(|seat| seat.active))
    }

    /// A connection says what it is doing now (spec 4.13).
    pub fn change(&mut self, conn: ConnId, active: bool, doing: Doing) -> Changed {
        let Some(seat) = self.seats.get(&conn).copied() else { return Changed::default() };
        let before = self.is_active(seat.account);
        if let Some(seat) = self.seats.get_mut(&conn) {
            (seat.active, seat.doing) = (active, doing);
        }
        let after = self.is_active(seat.account);
        let mut actions = Vec::new();
        if !seat.doing.channel.is_none() && seat.doing.channel != doing.channel {
            actions.push((seat.doing.channel, ChannelAction::NONE));
        }
        if !doing.channel.is_none() && seat.doing != doing {
            actions.push((doing.channel, doing.action));
        }
        Changed { actions, active: (before != after).then_some(after) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: AccountId = AccountId(1);

    fn typing(channel: i64) -> Doing {
        Doing { action: ChannelAction::TYPING, channel: ChannelId(channel) }
    }

    #[test]
    fn an_account_is_active_while_one_of_its_sessions_is() {
        let mut presence = Presence::default();
        presence.join(ConnId(1), A, SessionId(1));
        presence.join(ConnId(2), A, SessionId(2));
        let idle = Doing::default();
        assert_eq!(presence.change(ConnId(1), true, idle).active, Some(true));
        assert_eq!(presence.change(ConnId(2), true, idle).active, None, "it is already");
        assert_eq!(presence.change(ConnId(1), false, idle).active, None, "the other one still is");
        assert_eq!(presence.leave(ConnId(2)).unwrap().1.active, Some(false));
        assert_eq!(presence.leave(ConnId(1)).unwrap().1, Changed::default());
        assert_eq!(presence.leave(ConnId(1)), None);
        assert!(presence.of.is_empty() && presence.seats.is_empty());
    }

    #[test]
    fn actions_are_told_when_they_change_and_taken_back_where_they_were() {
        let mut presence = Presence::default();
        presence.join(ConnId(1), A, SessionId(1));
        let (none, typed) = (ChannelAction::NONE, ChannelAction::TYPING);
        assert_eq!(presence.change(ConnId(1), false, typing(7)).actions, [(ChannelId(7), typed)]);
        assert_eq!(presence.change(ConnId(1), false, typing(7)).actions, []);
        assert_eq!(presence.change(ConnId(1), false, typing(8)).actions, [(ChannelId(7), none), (ChannelId(8), typed)]);
        assert_eq!(presence.leave(ConnId(1)).unwrap().1.actions, [(ChannelId(8), none)]);
    }

    #[test]
    fn a_session_is_found_where_it_is_bound() {
        let mut presence = Presence::default();
        presence.join(ConnId(1), A, SessionId(1));
        presence.join(ConnId(2), A, SessionId(2));
        assert_eq!(presence.at(A, SessionId(2)), Some(ConnId(2)));
        assert_eq!(presence.at(A, SessionId(3)), None);
        assert_eq!(presence.at(AccountId(2), SessionId(2)), None);
    }
}
