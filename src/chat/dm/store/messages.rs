//! Messages and what members said to them.

use std::collections::HashMap;

use sqlx::any::AnyRow;

use super::Work;
use crate::chat::dm::state::UserId;
use crate::chat::dm::wire::{Message, Reaction, Signature, stamp};
use crate::chat::sql::{SqlError, get, values};

/// A message to be kept.
#[derive(Debug, Clone, Copy)]
pub struct Draft<'a> {
    /// Where.
    pub dm: i64,
    /// Whose.
    pub sender: UserId,
    /// The sender's name.
    pub username: &'a str,
    /// Ciphertext.
    pub body: &'a [u8],
    /// Its signature.
    pub signature: &'a Signature,
    /// In how many seconds it goes again; 0 for never.
    pub delete_after_s: i64,
}

/// A message that is kept, as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredMessage {
    /// Whose.
    pub sender: UserId,
    /// The message.
    pub message: Message,
}

macro_rules! messages {
    ($($rest:literal),*) => {
        concat!(
            "SELECT m.id, m.dm_id, m.sender_id, u.username, m.body, m.signature, m.sent_at, m.delete_at, m.pinned ",
            "FROM messages m JOIN users u ON u.id = m.sender_id ",
            $($rest),*
        )
    };
}

impl Work {
    /// Keeps a message: the newest of its DM, at a time of its own. Returns it, and when it goes.
    pub(in crate::chat::dm) async fn add_message(
        &mut self,
        draft: Draft<'_>,
        now: i64,
    ) -> Result<(Message, Option<i64>), SqlError> {
        let sql = "SELECT COALESCE(MAX(sent_at), 0) FROM messages WHERE dm_id = $1";
        let newest = self.count(sql, values![draft.dm]).await?;
        // A clock that was set back does not change the order.
        let sent_at = now.max(newest.saturating_add(1));
        let after = draft.delete_after_s.saturating_mul(1_000_000);
        let delete_at = (after > 0).then(|| sent_at.saturating_add(after));
        let sql = "INSERT INTO messages (dm_id, sender_id, body, signature, sent_at, delete_at, pinned) \
                   VALUES ($1, $2, $3, $4, $5, $6, 0) RETURNING id";
        let Draft { dm, sender, username, body, signature, .. } = draft;
        let values = values![dm, sender.0, body, signature.as_slice(), sent_at, delete_at];
        let row = self.tx.row(sql, values).await?.ok_or(SqlError::Damaged("a message without a number"))?;
        let message = Message {
            id: get(&row, 0)?,
            dm_id: dm,
            sender: username.to_owned(),
            message: hex::encode(body),
            signature: hex::encode(signature),
            timestamp: stamp::write(sent_at),
            delete_timestamp: delete_at.map(stamp::write),
            pinned: false,
            reactions: Vec::new(),
        };
        Ok((message, delete_at))
    }

    pub(in crate::chat::dm) async fn message(&mut self, id: i64) -> Result<Option<StoredMessage>, SqlError> {
        let rows = self.tx.rows(messages!("WHERE m.id = $1"), values![id]).await?;
        Ok(self.with_reactions(rows).await?.pop())
    }

    pub(in crate::chat::dm) async fn latest(&mut self, dm: i64) -> Result<Option<StoredMessage>, SqlError> {
        let sql = messages!("WHERE m.dm_id = $1 ORDER BY m.sent_at DESC LIMIT 1");
        let rows = self.tx.rows(sql, values![dm]).await?;
        Ok(self.with_reactions(rows).await?.pop())
    }

    /// Messages from before a time, the newest first.
    pub(in crate::chat::dm) async fn history(
        &mut self,
        dm: i64,
        before: i64,
        max: i64,
    ) -> Result<Vec<StoredMessage>, SqlError> {
        let sql = messages!("WHERE m.dm_id = $1 AND m.sent_at < $2 ORDER BY m.sent_at DESC LIMIT $3");
        let rows = self.tx.rows(sql, values![dm, before, max]).await?;
        self.with_reactions(rows).await
    }

    /// The pinned messages, the newest first.
    pub(in crate::chat::dm) async fn pinned(&mut self, dm: i64) -> Result<Vec<StoredMessage>, SqlError> {
        let sql = messages!("WHERE m.dm_id = $1 AND m.pinned = 1 ORDER BY m.sent_at DESC");
        let rows = self.tx.rows(sql, values![dm]).await?;
        self.with_reactions(rows).await
    }

    pub(in crate::chat::dm) async fn count_pinned(&mut self, dm: i64) -> Result<i64, SqlError> {
        self.count("SELECT COUNT(*) FROM messages WHERE dm_id = $1 AND pinned = 1", values![dm]).await
    }

    pub(in crate::chat::dm) async fn set_body(
        &mut self,
        id: i64,
        body: &[u8],
        signature: &Signature,
    ) -> Result<(), SqlError> {
        let sql = "UPDATE messages SET body = $1, signature = $2 WHERE id = $3";
        self.tx.run(sql, values![body, signature.as_slice(), id]).await.map(drop)
    }

    pub(in crate::chat::dm) async fn set_pinned(&mut self, id: i64, pinned: bool) -> Result<(), SqlError> {
        self.tx.run("UPDATE messages SET pinned = $1 WHERE id = $2", values![pinned, id]).await.map(drop)
    }

    pub(in crate::chat::dm) async fn remove_message(&mut self, id: i64) -> Result<(), SqlError> {
        self.tx.run("DELETE FROM messages WHERE id = $1", values![id]).await.map(drop)
    }

    pub(in crate::chat::dm) async fn add_reaction(
        &mut self,
        (message, sender): (i64, UserId),
        body: &[u8],
        signature: &Signature,
        now: i64,
    ) -> Result<i64, SqlError> {
        let sql = "INSERT INTO reactions (message_id, sender_id, body, signature, created_at) \
                   VALUES ($1, $2, $3, $4, $5) RETURNING id";
        let row = self.tx.row(sql, values![message, sender.0, body, signature.as_slice(), now]).await?;
        get(&row.ok_or(SqlError::Damaged("a reaction without a number"))?, 0)
    }

    pub(in crate::chat::dm) async fn count_reactions(&mut self, message: i64, sender: UserId) -> Result<i64, SqlError> {
        let sql = "SELECT COUNT(*) FROM reactions WHERE message_id = $1 AND sender_id = $2";
        self.count(sql, values![message, sender.0]).await
    }

    /// Which message a reaction of somebody's is to.
    pub(in crate::chat::dm) async fn reaction_of(&mut self, user: UserId, id: i64) -> Result<Option<i64>, SqlError> {
        let sql = "SELECT message_id FROM reactions WHERE id = $1 AND sender_id = $2";
        self.tx.row(sql, values![id, user.0]).await?.map(|row| get(&row, 0)).transpose()
    }

    pub(in crate::chat::dm) async fn remove_reaction(&mut self, id: i64) -> Result<(), SqlError> {
        self.tx.run("DELETE FROM reactions WHERE id = $1", values![id]).await.map(drop)
    }

    async fn with_reactions(&mut self, rows: Vec<AnyRow>) -> Result<Vec<StoredMessage>, SqlError> {
        let mut messages = rows.iter().map(message).collect::<Result<Vec<_>, _>>()?;
        let ids: Vec<_> = messages.iter().map(|stored| stored.message.id).collect();
        let sql = "SELECT r.message_id, r.id, u.username, r.body, r.signature FROM reactions r \
                   JOIN users u ON u.id = r.sender_id WHERE r.message_id IN ({}) ORDER BY r.id";
        let mut of: HashMap<i64, Vec<Reaction>> = HashMap::new();
        for row in self.tx.rows_of(sql, &[], &ids).await? {
            let reaction = Reaction {
                id: get(&row, 1)?,
                sender: get(&row, 2)?,
                reaction: hex::encode(get::<Vec<u8>>(&row, 3)?),
                signature: hex::encode(get::<Vec<u8>>(&row, 4)?),
            };
            of.entry(get(&row, 0)?).or_default().push(reaction);
        }
        for stored in &mut messages {
            stored.message.reactions = of.remove(&stored.message.id).unwrap_or_default();
        }
        Ok(messages)
    }
}

fn message(row: &AnyRow) -> Result<StoredMessage, SqlError> {
    let message = Message {
        id: get(row, 0)?,
        dm_id: get(row, 1)?,
        sender: get(row, 3)?,
        message: hex::encode(get::<Vec<u8>>(row, 4)?),
        signature: hex::encode(get::<Vec<u8>>(row, 5)?),
        timestamp: stamp::write(get(row, 6)?),
        delete_timestamp: get::<Option<i64>>(row, 7)?.map(stamp::write),
        pinned: get::<i64>(row, 8)? != 0,
        reactions: Vec::new(),
    };
    Ok(StoredMessage { sender: UserId(get(row, 2)?), message })
}
