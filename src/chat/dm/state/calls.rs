//! Who is in which call (spec 2.5). What they say there goes from one to the other.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{ConnId, UserId};

/// Calls that one connection can be in: all of them are told of when it ends.
const CALLS_MAX: usize = 16;

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
pub struct Calls {
    dms: HashMap<i64, Vec<Caller>>,
    of: HashMap<ConnId, BTreeSet<i64>>,
}

impl Calls {
    /// Somebody is to be found under `uuid`, and as long as `conn` is open. `false` when there are too many calls of that.
    pub fn join(&mut self, dm: i64, (user, username): (UserId, &str), uuid: &str, conn: ConnId) -> bool {
        let is_new = |calls: &BTreeSet<i64>| calls.len() >= CALLS_MAX && !calls.contains(&dm);
        if self.of.get(&conn).is_some_and(is_new) {
            return false;
        }
        self.leaves_from(dm, user);
        let callers = self.dms.entry(dm).or_default();
        let caller = Caller { user, username: username.to_owned(), uuid: uuid.to_owned(), conn };
        match callers.iter_mut().find(|there| there.user == user) {
            Some(there) => *there = caller,
            None => callers.push(caller),
        }
        self.of.entry(conn).or_default().insert(dm);
        true
    }

    /// Somebody is not in the call any more. `false` when he was not.
    pub fn leave(&mut self, dm: i64, user: UserId) -> bool {
        let was_in = self.leaves_from(dm, user);
        if let Some(callers) = self.dms.get_mut(&dm) {
            callers.retain(|caller| caller.user != user);
            if callers.is_empty() {
                self.dms.remove(&dm);
            }
        }
        was_in
    }

    /// The connection is not that of somebody in the call any more. Whether there was one.
    fn leaves_from(&mut self, dm: i64, user: UserId) -> bool {
        let there = self.dms.get(&dm).into_iter().flatten().find(|caller| caller.user == user);
        let Some(Caller { conn, .. }) = there else { return false };
        if let Some(calls) = self.of.get_mut(conn) {
            calls.remove(&dm);
            if calls.is_empty() {
                self.of.remove(conn);
            }
        }
        true
    }

    /// In which calls somebody is through this connection.
    #[must_use]
    pub fn of(&self, conn: ConnId) -> Vec<i64> {
        self.of.get(&conn).into_iter().flatten().copied().collect()
    }

    /// Who is in the call, in the order in which they came.
    #[must_use]
    pub fn names(&self, dm: i64) -> Vec<String> {
        self.dms.get(&dm).into_iter().flatten().map(|caller| caller.username.clone()).collect()
    }

    /// Who is in the call, and where.
    #[must_use]
    pub fn peers(&self, dm: i64) -> BTreeMap<String, String> {
        let peer = |caller: &Caller| (caller.username.clone(), caller.uuid.clone());
        self.dms.get(&dm).into_iter().flatten().map(peer).collect()
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
        assert!(calls.dms.is_empty() && calls.of.is_empty(), "nothing is left of a call that is over");
    }

    #[test]
    fn one_connection_was_in_thousands_of_calls() {
        let mut calls = Calls::default();
        let alice = (UserId(1), "alice");
        let joined = (0..100).filter(|dm| calls.join(*dm, alice, "a", ConnId(1)));
        assert_eq!(joined.count(), CALLS_MAX);
        assert!(calls.join(3, alice, "b", ConnId(1)), "it is in that one");
        assert!(calls.leave(5, alice.0) && calls.join(99, alice, "a", ConnId(1)));
        assert!(!calls.join(5, alice, "a", ConnId(1)) && calls.join(5, alice, "a", ConnId(2)));
    }
}
