//! Who is in which call (spec 2.5). What they say there goes from one to the other.

use std::collections::{BTreeMap, HashMap};

use super::{ConnId, UserId};

/// Somebody in a call.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Caller {
    user: UserId,
    username: String,
    uuid: String,
    conn: ConnId,
}

/// The calls, by DM; in each, whoever came first stands first.
#[derive(Debug, Default)]
pub struct Calls(HashMap<i64, Vec<Caller>>);

impl Calls {
    /// Somebody is to be found under `uuid`, and as long as `conn` is open.
    pub fn join(&mut self, dm: i64, (user, username): (UserId, &str), uuid: &str, conn: ConnId) {
        let callers = self.0.entry(dm).or_default();
        let caller = Caller { user, username: username.to_owned(), uuid: uuid.to_owned(), conn };
        match callers.iter_mut().find(|there| there.user == user) {
            Some(there) => *there = caller,
            None => callers.push(caller),
        }
    }

    /// Whether somebody is in the call.
    #[must_use]
    pub fn is_in(&self, dm: i64, user: UserId) -> bool {
        self.0.get(&dm).is_some_and(|callers| callers.iter().any(|caller| caller.user == user))
    }

    /// Somebody is not in the call any more. `false` when he was not.
    pub fn leave(&mut self, dm: i64, user: UserId) -> bool {
        let was_in = self.is_in(dm, user);
        self.keep(dm, |caller| caller.user != user);
        was_in
    }

    /// In which calls somebody is through this connection.
    #[must_use]
    pub fn of(&self, conn: ConnId) -> Vec<i64> {
        let mut dms: Vec<_> = self
            .0
            .iter()
            .filter(|(_, callers)| callers.iter().any(|caller| caller.conn == conn))
            .map(|(dm, _)| *dm)
            .collect();
        dms.sort_unstable();
        dms
    }

    /// Who is in the call, in the order in which they came.
    #[must_use]
    pub fn names(&self, dm: i64) -> Vec<String> {
        self.0.get(&dm).into_iter().flatten().map(|caller| caller.username.clone()).collect()
    }

    /// Who is in the call, and where.
    #[must_use]
    pub fn peers(&self, dm: i64) -> BTreeMap<String, String> {
        let peer = |caller: &Caller| (caller.username.clone(), caller.uuid.clone());
        self.0.get(&dm).into_iter().flatten().map(peer).collect()
    }

    fn keep(&mut self, dm: i64, stays: impl Fn(&Caller) -> bool) {
        if let Some(callers) = self.0.get_mut(&dm) {
            callers.retain(stays);
            if callers.is_empty() {
                self.0.remove(&dm);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_connection_of_somebody_does_not_take_him_out_of_the_call() {
        let (alice, bob) = ((UserId(1), "alice"), (UserId(2), "bob"));
        let mut calls = Calls::default();
        calls.join(7, bob, "b", ConnId(3));
        calls.join(7, alice, "a", ConnId(1));
        assert_eq!(calls.names(7), ["bob", "alice"]);
        assert_eq!(calls.of(ConnId(2)), [0_i64; 0], "she is not in it from there");
        calls.join(7, alice, "other", ConnId(2));
        assert_eq!(calls.peers(7)["alice"], "other", "where she joined last");
        assert_eq!((calls.of(ConnId(1)), calls.of(ConnId(2))), (vec![], vec![7]));
        assert!(calls.leave(7, alice.0) && !calls.leave(7, alice.0) && calls.leave(7, bob.0));
        assert!(calls.0.is_empty(), "nothing is left of a call that is over");
    }
}
