//! Users.

use sqlx::AssertSqlSafe;
use sqlx::any::AnyRow;

use super::{Work, exactly};
use crate::chat::dm::state::UserId;
use crate::chat::dm::wire::{Key, ProfileChange, Signature, Status};
use crate::chat::sql::{SqlError, Value, get, values};

/// A user, without own storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredUser {
    /// Which.
    pub id: UserId,
    /// The name.
    pub username: String,
    /// The identity key.
    pub public_key: Key,
    /// The prekey and its signature, unless there is none.
    pub prekey: Option<(Key, Signature)>,
    /// What was set.
    pub status: Status,
    /// About the user.
    pub biography: String,
    /// Whatever clients make of it.
    pub profile_picture: String,
}

/// Somebody new.
#[derive(Debug)]
pub struct NewUser<'a> {
    /// The name.
    pub username: &'a str,
    /// What it shares with those that look the same.
    pub username_key: &'a str,
    /// The identity key.
    pub public_key: &'a Key,
    /// The prekey.
    pub spk: &'a Key,
    /// Its signature.
    pub spk_sig: &'a Signature,
    /// Whatever the client keeps here.
    pub own_storage: &'a str,
    /// Since when.
    pub created_at: i64,
}

macro_rules! users {
    ($($rest:literal),*) => {
        concat!("SELECT id, username, public_key, spk, spk_sig, status, biography, profile_picture FROM users ", $($rest),*)
    };
}

impl Work {
    pub(in crate::chat::dm) async fn add_user(&mut self, new: NewUser<'_>) -> Result<(), SqlError> {
        let sql = "INSERT INTO users (username, username_key, public_key, spk, spk_sig, status, biography, \
                   profile_picture, own_storage, created_at) VALUES ($1, $2, $3, $4, $5, 'online', '', '', $6, $7)";
        let NewUser { username, username_key, public_key, spk, spk_sig, own_storage, created_at } = new;
        let values = values![
            username,
            username_key,
            public_key.as_slice(),
            spk.as_slice(),
            spk_sig.as_slice(),
            own_storage,
            created_at
        ];
        self.tx.run(sql, values).await.map(drop)
    }

    /// Whether somebody has a name that looks like this.
    pub(in crate::chat::dm) async fn is_taken(&mut self, username_key: &str) -> Result<bool, SqlError> {
        let row = self.tx.row("SELECT 1 FROM users WHERE username_key = $1", values![username_key]).await?;
        Ok(row.is_some())
    }

    pub(in crate::chat::dm) async fn user_named(&mut self, username: &str) -> Result<Option<StoredUser>, SqlError> {
        self.tx.row(users!("WHERE username = $1"), values![username]).await?.as_ref().map(user).transpose()
    }

    /// Those of them that there are, in no order.
    pub(in crate::chat::dm) async fn users_named(&mut self, usernames: &[String]) -> Result<Vec<StoredUser>, SqlError> {
        let numbers = (1..=usernames.len()).map(|n| format!("${n}")).collect::<Vec<_>>().join(", ");
        // Placeholders only: no value gets into the text.
        let sql = AssertSqlSafe(users!("WHERE username IN ({})").replacen("{}", &numbers, 1));
        let names = usernames.iter().map(|name| Value::from(name.as_str())).collect();
        self.tx.rows(sql, names).await?.iter().map(user).collect()
    }

    pub(in crate::chat::dm) async fn user(&mut self, id: UserId) -> Result<StoredUser, SqlError> {
        let row = self.tx.row(users!("WHERE id = $1"), values![id.0]).await?;
        row.as_ref().map(user).transpose()?.ok_or(SqlError::Damaged("a user is gone"))
    }

    pub(in crate::chat::dm) async fn users(&mut self) -> Result<Vec<StoredUser>, SqlError> {
        self.tx.rows(users!("ORDER BY id"), values![]).await?.iter().map(user).collect()
    }

    pub(in crate::chat::dm) async fn own_storage(&mut self, id: UserId) -> Result<String, SqlError> {
        let row = self.tx.row("SELECT own_storage FROM users WHERE id = $1", values![id.0]).await?;
        get(&row.ok_or(SqlError::Damaged("a user is gone"))?, 0)
    }

    pub(in crate::chat::dm) async fn set_user(&mut self, id: UserId, change: &ProfileChange) -> Result<(), SqlError> {
        if let Some(prekey) = &change.prekey {
            let (spk, sig) = prekey.as_ref().map_or((&[][..], &[][..]), |it| (&it.spk.as_bytes()[..], &it.sig[..]));
            let sql = "UPDATE users SET spk = $1, spk_sig = $2 WHERE id = $3";
            self.tx.run(sql, values![spk, sig, id.0]).await?;
        }
        let columns = [
            ("UPDATE users SET status = $1 WHERE id = $2", change.status.map(Status::name)),
            ("UPDATE users SET biography = $1 WHERE id = $2", change.biography.as_deref()),
            ("UPDATE users SET profile_picture = $1 WHERE id = $2", change.profile_picture.as_deref()),
            ("UPDATE users SET own_storage = $1 WHERE id = $2", change.own_storage.as_deref()),
        ];
        for (sql, value) in columns {
            if let Some(value) = value {
                self.tx.run(sql, values![value, id.0]).await?;
            }
        }
        Ok(())
    }
}

fn user(row: &AnyRow) -> Result<StoredUser, SqlError> {
    let (spk, sig): (Vec<u8>, Vec<u8>) = (get(row, 3)?, get(row, 4)?);
    let status: String = get(row, 5)?;
    Ok(StoredUser {
        id: UserId(get(row, 0)?),
        username: get(row, 1)?,
        public_key: exactly(&get::<Vec<u8>>(row, 2)?)?,
        prekey: if spk.is_empty() { None } else { Some((exactly(&spk)?, exactly(&sig)?)) },
        status: Status::of(&status).ok_or(SqlError::Damaged("status of a user"))?,
        biography: get(row, 6)?,
        profile_picture: get(row, 7)?,
    })
}
