//! Accounts, their names and their sessions.

use std::time::Duration;

use sha2::{Digest as _, Sha256};
use sqlx::any::AnyRow;

use super::{Store, StoreError, Work, get, narrow, values};
use crate::chat::skynet::wire::{AccountId, ChannelId, SessionId};
use crate::crypto::{Secret, boxes, equal};

/// What confirming a name does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Makes the account usable.
    Initial,
    /// Gives the account this name instead of its present one.
    Change,
    /// Nothing: the name before, good for logging in until the password follows the name.
    Alias,
}

impl Role {
    const fn text(self) -> &'static str {
        match self {
            Self::Initial => "initial",
            Self::Change => "change",
            Self::Alias => "alias",
        }
    }

    fn of(text: &str) -> Result<Self, StoreError> {
        let all = [Self::Initial, Self::Change, Self::Alias];
        all.into_iter().find(|role| role.text() == text).ok_or(StoreError::Damaged("role of a mail address"))
    }
}

/// A name and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// In lower case.
    pub address: String,
    /// Whose.
    pub account: AccountId,
    /// What confirms it.
    pub token: String,
    /// What confirming does.
    pub role: Role,
    /// Milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// The same; 0 while it is not confirmed.
    pub confirmed_ms: u64,
    /// SHA-256 of what the account's password became.
    pub password_hash: Vec<u8>,
}

/// A session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSession {
    /// Which.
    pub id: SessionId,
    /// Whose.
    pub account: AccountId,
    /// SHA-256 of what the client comes back with.
    pub token_hash: Vec<u8>,
    /// SHA-256 of what it shows to the file API.
    pub web_token_hash: Vec<u8>,
    /// The platform.
    pub application: String,
    /// Milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// When it last logged in or came back.
    pub last_connected_ms: u64,
    /// The version that it said then.
    pub last_version: i32,
    /// Where to wake it; empty for nowhere.
    pub push_token: String,
    /// When it was last woken; 0 for never.
    pub last_push_ms: u64,
}

impl StoredSession {
    /// Whether it was not away for too long.
    pub(in crate::chat::skynet) fn is_fresh(&self, age_max: Duration, now_ms: u64) -> bool {
        let age_ms_max = u64::try_from(age_max.as_millis()).unwrap_or(u64::MAX);
        self.last_connected_ms.saturating_add(age_ms_max) > now_ms
    }
}

macro_rules! named_where {
    ($condition:literal) => {
        concat!(
            "SELECT m.address, m.account_id, m.token, m.role, m.created_ms, m.confirmed_ms, a.password_hash ",
            "FROM mail_address m JOIN account a ON a.id = m.account_id WHERE ",
            $condition
        )
    };
}

macro_rules! session_where {
    ($condition:literal) => {
        concat!(
            "SELECT id, account_id, token_hash, web_token_hash, application, created_ms, ",
            "last_connected_ms, last_version, push_token, last_push_ms FROM session WHERE ",
            $condition
        )
    };
}

/// Accounts that are looked at before others get their turn to read. Of a nickname as much is read: it cannot be longer.
const SEARCH_PAGE: usize = 256;

impl Store {
    /// Confirmed accounts whose name or newest public nickname contains `query`, which is in lower case, but not `except`: the
    /// first `max`.
    ///
    /// Looks at all of them, a page at a time: nicknames are compared here and not by the engines, which disagree about what a
    /// lower case letter is.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub(in crate::chat::skynet) async fn search(
        &self,
        query: &str,
        except: AccountId,
        max: usize,
    ) -> Result<Vec<(AccountId, String)>, StoreError> {
        let sql = "SELECT m.account_id, m.address, COALESCE((SELECT SUBSTR(n.content, 1, 256) FROM channel c \
                   JOIN message n ON n.channel_id = c.id WHERE c.owner_id = m.account_id AND c.type = 1 \
                   AND n.kind = 37 AND (n.flags & 2) <> 0 ORDER BY n.id DESC LIMIT 1), $2) \
                   FROM mail_address m WHERE m.confirmed_ms <> 0 AND m.role <> 'alias' AND m.account_id <> $1 \
                   AND m.address > $3 ORDER BY m.address LIMIT 256";
        let (mut found, mut after) = (Vec::new(), String::new());
        loop {
            let page = self.read().await?.rows(sql, values![except.0, &[][..], after.as_str()]).await?;
            let is_last = page.len() < SEARCH_PAGE;
            for row in &page {
                let (address, nickname): (String, Vec<u8>) = (get(row, 1)?, get(row, 2)?);
                // A ShortString: its length, then the text.
                let text = nickname.split_first().and_then(|(len, text)| text.get(..usize::from(*len)));
                let nickname = String::from_utf8_lossy(text.unwrap_or_default()).to_lowercase();
                if address.contains(query) || nickname.contains(query) {
                    found.push((AccountId(get(row, 0)?), address.clone()));
                    if found.len() == max {
                        return Ok(found);
                    }
                }
                after = address;
            }
            if is_last {
                return Ok(found);
            }
        }
    }
}

impl Work {
    /// A new account under an unconfirmed name. What the password became is needed once more, when the name is confirmed.
    pub(in crate::chat::skynet) async fn add_account(
        &mut self,
        named: &Named,
        key_hash: &Secret<32>,
    ) -> Result<(), StoreError> {
        let sealed = boxes::seal_with_random_nonce(&self.key, key_hash.expose());
        let created = values![named.account.0, named.password_hash.as_slice(), sealed.as_slice(), named.created_ms];
        let sql =
            "INSERT INTO account (id, password_hash, first_key, created_ms, deleted_ms) VALUES ($1, $2, $3, $4, 0)";
        self.run(sql, created).await?;
        self.add_name(named).await
    }

    /// What the password became when the account was made, for the last time.
    pub(in crate::chat::skynet) async fn take_first_key(
        &mut self,
        account: AccountId,
    ) -> Result<Secret<32>, StoreError> {
        let row = self.row("SELECT first_key FROM account WHERE id = $1", values![account.0]).await?;
        let sealed: Vec<u8> = row.map_or(Err(StoreError::Damaged("a name without an account")), |row| get(&row, 0))?;
        self.run("UPDATE account SET first_key = $2 WHERE id = $1", values![account.0, &[][..]]).await?;
        let key = boxes::open_with_leading_nonce(&self.key, &sealed).ok().and_then(|key| key.try_into().ok());
        key.map(Secret::new).ok_or(StoreError::Damaged("a first key that was sealed with another one"))
    }

    /// A name that nobody confirmed in time is free again, and so is what was made for it.
    pub(in crate::chat::skynet) async fn forget_unconfirmed(&mut self, named: &Named) -> Result<(), StoreError> {
        self.remove_name(&named.address).await?;
        if named.role == Role::Initial {
            self.run("DELETE FROM account WHERE id = $1", values![named.account.0]).await?;
        }
        Ok(())
    }

    /// Another name of an account.
    pub(in crate::chat::skynet) async fn add_name(&mut self, named: &Named) -> Result<(), StoreError> {
        let sql = "INSERT INTO mail_address (address, account_id, token, role, created_ms, confirmed_ms) \
                   VALUES ($1, $2, $3, $4, $5, $6)";
        let Named { address, account, token, role, created_ms, confirmed_ms, .. } = named;
        let values = values![address.as_str(), account.0, token.as_str(), role.text(), *created_ms, *confirmed_ms];
        self.run(sql, values).await.map(drop)
    }

    /// Whose name this is, confirmed or not.
    pub(in crate::chat::skynet) async fn name(&mut self, address: &str) -> Result<Option<Named>, StoreError> {
        let row = self.row(named_where!("m.address = $1"), values![address]).await?;
        row.as_ref().map(named).transpose()
    }

    /// The name that this token confirms.
    pub(in crate::chat::skynet) async fn name_by_token(&mut self, token: &str) -> Result<Option<Named>, StoreError> {
        let row = self.row(named_where!("m.token = $1"), values![token]).await?;
        row.as_ref().map(named).transpose()
    }

    /// All names of an account.
    pub(in crate::chat::skynet) async fn names_of(&mut self, account: AccountId) -> Result<Vec<Named>, StoreError> {
        let rows = self.rows(named_where!("m.account_id = $1"), values![account.0]).await?;
        rows.iter().map(named).collect()
    }

    /// Changes what confirming does, and whether it was.
    pub(in crate::chat::skynet) async fn set_name(
        &mut self,
        address: &str,
        role: Role,
        confirmed_ms: u64,
    ) -> Result<(), StoreError> {
        let sql = "UPDATE mail_address SET role = $2, confirmed_ms = $3 WHERE address = $1";
        self.run(sql, values![address, role.text(), confirmed_ms]).await.map(drop)
    }

    /// A name is free again.
    pub(in crate::chat::skynet) async fn remove_name(&mut self, address: &str) -> Result<(), StoreError> {
        self.run("DELETE FROM mail_address WHERE address = $1", values![address]).await.map(drop)
    }

    /// Names that waited too long to be confirmed, and the accounts that have no other. Says how many names.
    pub(in crate::chat::skynet) async fn remove_unconfirmed(&mut self, before_ms: u64) -> Result<u64, StoreError> {
        let sql = "DELETE FROM mail_address WHERE confirmed_ms = 0 AND created_ms <= $1";
        let removed = self.run(sql, values![before_ms]).await?;
        if removed > 0 {
            let nameless = "DELETE FROM account WHERE deleted_ms = 0 AND created_ms <= $1 \
                            AND NOT EXISTS (SELECT 1 FROM mail_address m WHERE m.account_id = account.id)";
            self.run(nameless, values![before_ms]).await?;
        }
        Ok(removed)
    }

    /// SHA-256 of what the account's password became; `None` when there is no such account any more.
    pub(in crate::chat::skynet) async fn password_hash(
        &mut self,
        account: AccountId,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let sql = "SELECT password_hash FROM account WHERE id = $1 AND deleted_ms = 0";
        self.row(sql, values![account.0]).await?.map(|row| get(&row, 0)).transpose()
    }

    pub(in crate::chat::skynet) async fn set_password_hash(
        &mut self,
        account: AccountId,
        hash: &[u8],
    ) -> Result<(), StoreError> {
        self.run("UPDATE account SET password_hash = $2 WHERE id = $1", values![account.0, hash]).await?;
        let aliases = "DELETE FROM mail_address WHERE account_id = $1 AND role = 'alias'";
        self.run(aliases, values![account.0]).await.map(drop)
    }

    /// Whether somebody can be talked to: there, confirmed, and not deleted.
    pub(in crate::chat::skynet) async fn is_confirmed(&mut self, account: AccountId) -> Result<bool, StoreError> {
        let sql = "SELECT a.id FROM account a JOIN mail_address m ON m.account_id = a.id \
                   WHERE a.id = $1 AND a.deleted_ms = 0 AND m.confirmed_ms <> 0 LIMIT 1";
        Ok(self.row(sql, values![account.0]).await?.is_some())
    }

    pub(in crate::chat::skynet) async fn add_session(&mut self, session: &StoredSession) -> Result<(), StoreError> {
        let sql = "INSERT INTO session (id, account_id, token_hash, web_token_hash, application, created_ms, \
                   last_connected_ms, last_version, push_token, last_push_ms) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
        let values = values![
            session.id.0,
            session.account.0,
            session.token_hash.as_slice(),
            session.web_token_hash.as_slice(),
            session.application.as_str(),
            session.created_ms,
            session.last_connected_ms,
            i64::from(session.last_version),
            session.push_token.as_str(),
            session.last_push_ms,
        ];
        self.run(sql, values).await.map(drop)
    }

    pub(in crate::chat::skynet) async fn session(
        &mut self,
        session: SessionId,
    ) -> Result<Option<StoredSession>, StoreError> {
        let row = self.row(session_where!("id = $1"), values![session.0]).await?;
        row.as_ref().map(stored_session).transpose()
    }

    /// Whose session this is, if the token is the one it shows to the file API, and it was not away for too long.
    pub(in crate::chat::skynet) async fn web_session(
        &mut self,
        session: SessionId,
        web_token: &str,
        (age_max, now_ms): (Duration, u64),
    ) -> Result<Option<AccountId>, StoreError> {
        let stored = self.session(session).await?;
        let shown: [u8; 32] = Sha256::digest(web_token.as_bytes()).into();
        let stored = stored.filter(|it| equal(&it.web_token_hash, &shown) && it.is_fresh(age_max, now_ms));
        Ok(stored.map(|it| it.account))
    }

    /// The sessions of an account, the oldest first.
    pub(in crate::chat::skynet) async fn sessions(
        &mut self,
        account: AccountId,
    ) -> Result<Vec<StoredSession>, StoreError> {
        let sql = session_where!("account_id = $1 ORDER BY created_ms, id");
        self.rows(sql, values![account.0]).await?.iter().map(stored_session).collect()
    }

    /// Those that did not connect since then, with whose they are.
    pub(in crate::chat::skynet) async fn sessions_before(
        &mut self,
        before_ms: u64,
    ) -> Result<Vec<(AccountId, SessionId)>, StoreError> {
        let sql = "SELECT account_id, id FROM session WHERE last_connected_ms <= $1 ORDER BY id";
        let rows = self.rows(sql, values![before_ms]).await?;
        rows.iter().map(|row| Ok((AccountId(get(row, 0)?), SessionId(get(row, 1)?)))).collect()
    }

    pub(in crate::chat::skynet) async fn touch_session(
        &mut self,
        session: SessionId,
        last_connected_ms: u64,
        last_version: i32,
    ) -> Result<(), StoreError> {
        let sql = "UPDATE session SET last_connected_ms = $2, last_version = $3 WHERE id = $1";
        self.run(sql, values![session.0, last_connected_ms, i64::from(last_version)]).await.map(drop)
    }

    pub(in crate::chat::skynet) async fn set_pushed(
        &mut self,
        session: SessionId,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        self.run("UPDATE session SET last_push_ms = $2 WHERE id = $1", values![session.0, now_ms]).await.map(drop)
    }

    /// Who of a channel can be woken at all.
    pub(in crate::chat::skynet) async fn can_be_woken(
        &mut self,
        channel: ChannelId,
    ) -> Result<Vec<AccountId>, StoreError> {
        let sql = "SELECT DISTINCT s.account_id FROM channel_member cm JOIN session s ON s.account_id = cm.account_id \
                   WHERE cm.channel_id = $1 AND s.push_token <> ''";
        self.rows(sql, values![channel.0]).await?.iter().map(|row| Ok(AccountId(get(row, 0)?))).collect()
    }

    pub(in crate::chat::skynet) async fn remove_session(&mut self, session: SessionId) -> Result<(), StoreError> {
        self.run("DELETE FROM session WHERE id = $1", values![session.0]).await.map(drop)
    }

    /// Marks an account as deleted, and forgets its names, sessions, block lists and memberships.
    pub(in crate::chat::skynet) async fn remove_account(
        &mut self,
        account: AccountId,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        self.run("UPDATE account SET deleted_ms = $2 WHERE id = $1", values![account.0, now_ms]).await?;
        for sql in [
            "DELETE FROM mail_address WHERE account_id = $1",
            "DELETE FROM session WHERE account_id = $1",
            "DELETE FROM blocked_account WHERE owner_id = $1",
            "DELETE FROM blocked_channel WHERE owner_id = $1",
            "DELETE FROM channel_member WHERE account_id = $1",
            "UPDATE channel SET owner_id = 0 WHERE owner_id = $1 AND type IN (3, 4)",
        ] {
            self.run(sql, values![account.0]).await?;
        }
        self.forget_unnamed_of(account).await
    }

    /// What an account does not want to hear of. Each at most once.
    pub(in crate::chat::skynet) async fn set_blocked(
        &mut self,
        owner: AccountId,
        accounts: &[i64],
        channels: &[i64],
    ) -> Result<(), StoreError> {
        for (delete, into, blocked) in [
            ("DELETE FROM blocked_account WHERE owner_id = $1", "blocked_account (owner_id, blocked)", accounts),
            ("DELETE FROM blocked_channel WHERE owner_id = $1", "blocked_channel (owner_id, blocked)", channels),
        ] {
            self.run(delete, values![owner.0]).await?;
            let rows: Vec<_> = blocked.iter().map(|id| vec![owner.0, *id]).collect();
            self.insert_many(into, 2, &rows).await?;
        }
        Ok(())
    }

    /// Whether somebody in particular blocks somebody.
    pub(in crate::chat::skynet) async fn has_blocked(
        &mut self,
        owner: AccountId,
        blocked: AccountId,
    ) -> Result<bool, StoreError> {
        let sql = "SELECT owner_id FROM blocked_account WHERE owner_id = $1 AND blocked = $2";
        Ok(self.row(sql, values![owner.0, blocked.0]).await?.is_some())
    }

    /// Whether one of two accounts blocks the other.
    pub(in crate::chat::skynet) async fn is_blocked(&mut self, a: AccountId, b: AccountId) -> Result<bool, StoreError> {
        let sql = "SELECT owner_id FROM blocked_account \
                   WHERE (owner_id = $1 AND blocked = $2) OR (owner_id = $2 AND blocked = $1) LIMIT 1";
        Ok(self.row(sql, values![a.0, b.0]).await?.is_some())
    }
}

fn named(row: &AnyRow) -> Result<Named, StoreError> {
    Ok(Named {
        address: get(row, 0)?,
        account: AccountId(get(row, 1)?),
        token: get(row, 2)?,
        role: Role::of(&get::<String>(row, 3)?)?,
        created_ms: narrow(row, 4)?,
        confirmed_ms: narrow(row, 5)?,
        password_hash: get(row, 6)?,
    })
}

fn stored_session(row: &AnyRow) -> Result<StoredSession, StoreError> {
    Ok(StoredSession {
        id: SessionId(get(row, 0)?),
        account: AccountId(get(row, 1)?),
        token_hash: get(row, 2)?,
        web_token_hash: get(row, 3)?,
        application: get(row, 4)?,
        created_ms: narrow(row, 5)?,
        last_connected_ms: narrow(row, 6)?,
        last_version: narrow(row, 7)?,
        push_token: get(row, 8)?,
        last_push_ms: narrow(row, 9)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::Place;
    use super::*;

    #[tokio::test]
    async fn a_search_looked_at_everybody_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&Place::Sqlite, dir.path()).await.unwrap();
        let mut work = store.begin().await.unwrap();
        let many = i64::try_from(SEARCH_PAGE).unwrap() + 10;
        for n in 0..many {
            let named = Named {
                address: format!("{n:04}@example.com"),
                account: AccountId(n + 1),
                token: n.to_string(),
                role: Role::Initial,
                created_ms: 1,
                confirmed_ms: u64::from(n != 3),
                password_hash: Vec::new(),
            };
            work.add_account(&named, &Secret::new([0; 32])).await.unwrap();
        }
        work.commit().await.unwrap();
        let search = async |query: &str, max| {
            let found = store.search(query, AccountId(1), max).await.unwrap();
            found.into_iter().map(|(account, _)| account.0).collect::<Vec<_>>()
        };
        assert_eq!(search("@example", 3).await, [2, 3, 5], "neither who asks nor who is not confirmed");
        let all: Vec<_> = (2..=many).filter(|id| *id != 4).collect();
        assert_eq!(search("@example", 10_000).await, all, "on every page");
        assert_eq!(search(&format!("{:04}@", many - 1), 1).await, [many]);
        assert!(search("nobody", 1).await.is_empty());
        store.close().await;
    }
}
