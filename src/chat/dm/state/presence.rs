//! Who is here, and through which connections.

use std::collections::HashMap;

use super::{ConnId, UserId};

/// The connections of those who are logged in.
#[derive(Debug, Default)]
pub struct Presence {
    users: HashMap<UserId, Vec<ConnId>>,
    of: HashMap<ConnId, UserId>,
}

impl Presence {
    /// Somebody is here through one more connection. Returns whether it is the first.
    pub fn came(&mut self, conn: ConnId, user: UserId) -> bool {
        self.of.insert(conn, user);
        let conns = self.users.entry(user).or_default();
        conns.push(conn);
        conns.len() == 1
    }

    /// A connection is gone. Returns whose it was, and whether it was the last.
    pub fn left(&mut self, conn: ConnId) -> Option<(UserId, bool)> {
        let user = self.of.remove(&conn)?;
        let conns = self.users.get_mut(&user)?;
        conns.retain(|other| *other != conn);
        let was_last = conns.is_empty();
        if was_last {
            self.users.remove(&user);
        }
        Some((user, was_last))
    }

    /// Whether somebody is here.
    #[must_use]
    pub fn is_here(&self, user: UserId) -> bool {
        self.users.contains_key(&user)
    }

    /// The connections of somebody, in the order in which they came.
    #[must_use]
    pub fn conns(&self, user: UserId) -> &[ConnId] {
        self.users.get(&user).map_or(&[], Vec::as_slice)
    }

    /// The connections of all who are logged in.
    pub fn all(&self) -> impl Iterator<Item = ConnId> {
        self.of.keys().copied()
    }
}
