//! Messages, what they depend on, and who sees which.

use std::collections::HashMap;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use sqlx::any::AnyRow;

use super::uploads::doomed;
use super::{StoreError, Work, bind, get, narrow, values};
use crate::chat::skynet::wire::{
    AccountId, Body, ChannelId, DateTime, Delivery, Dependency, FileId, Kind, MessageFlags, MessageId,
};
use crate::crypto::boxes;

/// Who of a channel's members sees a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Whoever the flags do not exclude.
    Members = 0,
    /// Of those, the administrators and the sender: an invisible member said it.
    Administrators = 1,
}

/// A message that is to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// Where.
    pub channel: ChannelId,
    /// Who says it; none for the server.
    pub sender: AccountId,
    /// Who sees it.
    pub audience: Audience,
    /// When, in milliseconds since the Unix epoch.
    pub dispatched_ms: u64,
    /// What.
    pub body: Body,
}

/// A message that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its number.
    pub id: MessageId,
    /// Everything else.
    pub draft: Draft,
}

impl Stored {
    /// As it goes to `to`: what only concerns others is left out.
    #[must_use]
    pub fn delivery(&self, to: AccountId, skip_count: i64) -> Delivery {
        let Draft { channel, sender, dispatched_ms, body, .. } = self.draft.clone();
        let mut body = body;
        body.dependencies.retain(|dependency| dependency.account.is_none() || dependency.account == to);
        let dispatched = DateTime::from_unix_ms(dispatched_ms);
        Delivery { channel, sender, id: self.id, skip_count, dispatched, body }
    }
}

/// Messages, by their numbers, that somebody is to be told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listed {
    /// The numbers.
    pub ids: Vec<i64>,
    /// How many of them will still be there when their turn comes, because nothing takes their place and they do not go by
    /// themselves.
    pub lasting: usize,
}

impl Listed {
    /// These as well. Their order is lost.
    pub(in crate::chat::skynet) fn extend(&mut self, others: Self) {
        self.ids.extend(others.ids);
        self.lasting += others.lasting;
    }
}

/// What has to be known of a message that another one depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fact {
    /// Which.
    pub id: MessageId,
    /// Where it is.
    pub channel: ChannelId,
    /// Who said it.
    pub sender: AccountId,
    /// What it is.
    pub kind: Kind,
}

/// The content of an online state that says *somebody is there*: since when nobody is, is missing.
const ONLINE: u8 = 1;

/// What a dependency takes in memory while it is read, in bytes, roughly: a row that owns its names and types.
const DEPENDENCY_WEIGHT: u64 = 512;

/// What an account sees, `cm` being its membership and `$1` itself (spec 2.3, delivery rule).
macro_rules! visible {
    ($($rest:literal),+) => {
        concat!(
            // A daystream goes with what was said about it, and of KeepLast only the newest is there.
            "SELECT m.id, CASE WHEN m.kind IN (36, 37, 38, 39, 40, 41, 43) OR (c.type = 4 AND m.kind IN (33, 34, 35)) ",
            "THEN 0 ELSE 1 END FROM channel_member cm JOIN channel c ON c.id = cm.channel_id ",
            "JOIN message m ON m.channel_id = c.id WHERE cm.account_id = $1 ",
            "AND ((m.flags & 1) = 0 OR m.sender_id = $1) AND ((m.flags & 4) = 0 OR m.sender_id <> $1) ",
            "AND (m.audience = 0 OR m.sender_id = $1 OR (cm.flags & 1) <> 0) ",
            $($rest),+
        )
    };
}

/// What of it is sent without being asked for: of groups, what was said since the account joined, who was in them, and
/// what they look like.
macro_rules! pushed {
    ($rest:literal) => {
        visible!("AND (c.type < 3 OR m.id > cm.joined_at OR m.kind IN (30, 37, 38, 39)) ", $rest)
    };
}

impl Work {
    /// The newest number that was given to a message.
    pub(in crate::chat::skynet) async fn last_message(&mut self) -> Result<i64, StoreError> {
        let row = self.row("SELECT value FROM counter WHERE name = 'message'", values![]).await?;
        row.map_or(Err(StoreError::Damaged("no counter of messages")), |row| get(&row, 0))
    }

    /// Keeps a message under the next number. Of some kinds it takes the place of the one before (spec 2.5, KeepLast).
    pub(in crate::chat::skynet) async fn add_message(&mut self, draft: Draft) -> Result<Stored, StoreError> {
        let next = "UPDATE counter SET value = value + 1 WHERE name = 'message' RETURNING value";
        let row = self.row(next, values![]).await?.ok_or(StoreError::Damaged("no counter of messages"))?;
        let id = MessageId(get(&row, 0)?);
        let Body { version, kind, flags, file, content, dependencies } = &draft.body;
        let sealed = match kind {
            Kind::PasswordUpdate => boxes::seal_with_random_nonce(&self.key, content),
            _ => content.to_vec(),
        };
        let sql = "INSERT INTO message (id, channel_id, sender_id, kind, version, flags, audience, file_id, \
                   dispatched_ms, content) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
        let values = values![
            id.0,
            draft.channel.0,
            draft.sender.0,
            kind.id(),
            *version,
            flags.0,
            draft.audience as u8,
            file.0,
            draft.dispatched_ms,
            sealed.as_slice(),
        ];
        self.run(sql, values).await?;
        let rows: Vec<_> =
            dependencies.iter().zip(0..).map(|(on, at)| vec![id.0, at, on.account.0, on.message.0]).collect();
        self.insert_many("dependency (message_id, position, account_id, target_id)", 4, &rows).await?;
        if kind.keep_last() {
            let older = doomed!("channel_id = $1 AND kind = $2 AND id < $3 AND (flags & 2) = $4");
            let values = || values![draft.channel.0, kind.id(), id.0, flags.0 & MessageFlags::UNENCRYPTED.0];
            self.remove_messages(older, values).await?;
        }
        Ok(Stored { id, draft })
    }

    /// As many of the first of these messages as take no more than `bytes_max` when they are read, but at least one.
    pub(in crate::chat::skynet) async fn light<'a>(
        &mut self,
        ids: &'a [i64],
        bytes_max: u64,
    ) -> Result<&'a [i64], StoreError> {
        let sql = "SELECT id, CAST(LENGTH(content) AS BIGINT), \
                   (SELECT COUNT(*) FROM dependency d WHERE d.message_id = message.id) FROM message WHERE id IN ({})";
        let mut weights = HashMap::with_capacity(ids.len());
        for row in self.rows_of(sql, &[], ids).await? {
            let (content, dependencies): (u64, u64) = (narrow(&row, 1)?, narrow(&row, 2)?);
            weights
                .insert(get::<i64>(&row, 0)?, content.saturating_add(dependencies.saturating_mul(DEPENDENCY_WEIGHT)));
        }
        let mut bytes: u64 = 0;
        let fits = |id: &&i64| {
            bytes = bytes.saturating_add(weights.get(id).copied().unwrap_or_default());
            bytes <= bytes_max
        };
        let fit = ids.iter().take_while(fits).count();
        Ok(ids.get(..fit.max(1)).unwrap_or(ids))
    }

    /// Messages, in order; those that are not there any more are left out.
    pub(in crate::chat::skynet) async fn messages(&mut self, ids: &[i64]) -> Result<Vec<Stored>, StoreError> {
        let sql = "SELECT id, channel_id, sender_id, kind, version, flags, audience, file_id, dispatched_ms, content \
                   FROM message WHERE id IN ({})";
        let mut stored = Vec::with_capacity(ids.len());
        for row in self.rows_of(sql, &[], ids).await? {
            stored.push(self.stored(&row)?);
        }
        stored.sort_by_key(|message| message.id);
        let sql = "SELECT message_id, account_id, target_id FROM dependency WHERE message_id IN ({}) \
                   ORDER BY message_id, position";
        let mut rows = Vec::new();
        for row in self.rows_of(sql, &[], ids).await? {
            let dependency = Dependency { account: AccountId(get(&row, 1)?), message: MessageId(get(&row, 2)?) };
            rows.push((MessageId(get(&row, 0)?), dependency));
        }
        for (of, dependency) in rows {
            if let Ok(at) = stored.binary_search_by_key(&of, |message| message.id)
                && let Some(message) = stored.get_mut(at)
            {
                message.draft.body.dependencies.push(dependency);
            }
        }
        Ok(stored)
    }

    fn stored(&self, row: &AnyRow) -> Result<Stored, StoreError> {
        let kind = Kind::from_id(narrow(row, 3)?).ok_or(StoreError::Damaged("kind of a message"))?;
        let mut content: Vec<u8> = get(row, 9)?;
        if kind == Kind::PasswordUpdate {
            let damaged = |_| StoreError::Damaged("a password update that was sealed with another key");
            content = boxes::open_with_leading_nonce(&self.key, &content).map_err(damaged)?;
        }
        let audience = match get::<i64>(row, 6)? {
            0 => Audience::Members,
            1 => Audience::Administrators,
            _ => return Err(StoreError::Damaged("audience of a message")),
        };
        let body = Body {
            version: narrow(row, 4)?,
            kind,
            flags: MessageFlags(narrow(row, 5)?),
            file: FileId(get(row, 7)?),
            content: Bytes::from(content),
            dependencies: Vec::new(),
        };
        let (channel, sender) = (ChannelId(get(row, 1)?), AccountId(get(row, 2)?));
        let draft = Draft { channel, sender, audience, dispatched_ms: narrow(row, 8)?, body };
        Ok(Stored { id: MessageId(get(row, 0)?), draft })
    }

    /// What is known of messages that others depend on. Those that are not there are left out.
    pub(in crate::chat::skynet) async fn facts(&mut self, ids: &[i64]) -> Result<Vec<Fact>, StoreError> {
        let sql = "SELECT id, channel_id, sender_id, kind FROM message WHERE id IN ({})";
        let rows = self.rows_of(sql, &[], ids).await?;
        let fact = |row: &AnyRow| {
            Ok(Fact {
                id: MessageId(get(row, 0)?),
                channel: ChannelId(get(row, 1)?),
                sender: AccountId(get(row, 2)?),
                kind: Kind::from_id(narrow(row, 3)?).ok_or(StoreError::Damaged("kind of a message"))?,
            })
        };
        rows.iter().map(fact).collect()
    }

    /// The newest keys of an account: its public ones, and the private ones they belong to.
    pub(in crate::chat::skynet) async fn keys(
        &mut self,
        account: AccountId,
    ) -> Result<Option<(MessageId, MessageId)>, StoreError> {
        let sql = "SELECT m.id, d.target_id FROM channel c JOIN message m ON m.channel_id = c.id \
                   JOIN dependency d ON d.message_id = m.id \
                   WHERE c.owner_id = $1 AND c.type = 1 AND m.kind = 24 ORDER BY m.id DESC LIMIT 1";
        let row = self.row(sql, values![account.0]).await?;
        row.map(|row| Ok((MessageId(get(&row, 0)?), MessageId(get(&row, 1)?)))).transpose()
    }

    /// Everything after `after` that a session is sent without asking, in order.
    pub(in crate::chat::skynet) async fn pushed(
        &mut self,
        account: AccountId,
        after: MessageId,
    ) -> Result<Listed, StoreError> {
        self.listed(pushed!("AND m.id > $2 ORDER BY m.id"), values![account.0, after.0]).await
    }

    /// The same of one channel, up to `upto`.
    pub(in crate::chat::skynet) async fn pushed_of(
        &mut self,
        account: AccountId,
        channel: ChannelId,
        upto: MessageId,
    ) -> Result<Listed, StoreError> {
        let sql = pushed!("AND cm.channel_id = $2 AND m.id <= $3 ORDER BY m.id");
        self.listed(sql, values![account.0, channel.0, upto.0]).await
    }

    /// What an account sees of one channel, or of all, between two numbers: at most `max`, the newest or the oldest.
    pub(in crate::chat::skynet) async fn between(
        &mut self,
        account: AccountId,
        channel: ChannelId,
        (after, before): (MessageId, MessageId),
        max: i64,
        newest: bool,
    ) -> Result<Listed, StoreError> {
        let values = values![account.0, channel.0, after.0, before.0, max];
        let sql = if newest {
            visible!("AND ($2 = 0 OR cm.channel_id = $2) AND m.id > $3 AND m.id < $4 ORDER BY m.id DESC LIMIT $5")
        } else {
            visible!("AND ($2 = 0 OR cm.channel_id = $2) AND m.id > $3 AND m.id < $4 ORDER BY m.id LIMIT $5")
        };
        let mut listed = self.listed(sql, values).await?;
        listed.ids.sort_unstable();
        Ok(listed)
    }

    /// Who is in a group, and what it looks like: what those hear first who are new there.
    pub(in crate::chat::skynet) async fn introduction(
        &mut self,
        account: AccountId,
        channel: ChannelId,
        upto: MessageId,
    ) -> Result<Listed, StoreError> {
        let sql = visible!("AND cm.channel_id = $2 AND m.id <= $3 AND m.kind IN (30, 37, 38, 39) ORDER BY m.id");
        self.listed(sql, values![account.0, channel.0, upto.0]).await
    }

    /// What everybody may know of an account: nickname, bio, image, each in clear and the newest.
    pub(in crate::chat::skynet) async fn public_profile(&mut self, account: AccountId) -> Result<Vec<i64>, StoreError> {
        let sql = "SELECT m.id FROM channel c JOIN message m ON m.channel_id = c.id WHERE c.owner_id = $1 \
                   AND c.type = 1 AND m.kind IN (37, 38, 39) AND (m.flags & 2) <> 0 ORDER BY m.id";
        self.ids(sql, values![account.0]).await
    }

    /// The accounts of which the last word is that somebody is there.
    pub(in crate::chat::skynet) async fn said_to_be_active(&mut self) -> Result<Vec<AccountId>, StoreError> {
        let sql = "SELECT c.owner_id FROM message m JOIN channel c ON c.id = m.channel_id \
                   WHERE m.kind = 43 AND m.content = $1 AND c.type = 1 ORDER BY c.owner_id";
        let active = values![[ONLINE].as_slice()];
        Ok(self.ids(sql, active).await?.into_iter().map(AccountId).collect())
    }

    /// Whether an account sees a message that names a file.
    pub(super) async fn sees_file(&mut self, account: AccountId, file: FileId) -> Result<bool, StoreError> {
        let sql = visible!("AND m.file_id = $2 AND m.file_id <> 0 LIMIT 1");
        Ok(!self.ids(sql, values![account.0, file.0]).await?.is_empty())
    }

    /// Daystream messages are there for a while, and with them what was said about them alone. Says how many of them went.
    pub(in crate::chat::skynet) async fn remove_daystream(&mut self, before_ms: u64) -> Result<u64, StoreError> {
        let about = "SELECT DISTINCT d.message_id FROM message t JOIN dependency d ON d.target_id = t.id \
                     JOIN message m ON m.id = d.message_id WHERE t.kind = 36 AND t.dispatched_ms <= $1 \
                     AND m.kind IN (33, 34, 35) AND NOT EXISTS (SELECT 1 FROM dependency o JOIN message n \
                     ON n.id = o.target_id WHERE o.message_id = m.id AND n.dispatched_ms > $1)";
        let about = self.ids(about, values![before_ms]).await?;
        for sql in ["DELETE FROM dependency WHERE message_id IN ({})", "DELETE FROM message WHERE id IN ({})"] {
            self.rows_of(sql, &[], &about).await?;
        }
        self.remove_messages(doomed!("kind = 36 AND dispatched_ms <= $1"), || values![before_ms]).await
    }

    async fn listed(&mut self, sql: &'static str, values: Vec<super::Value>) -> Result<Listed, StoreError> {
        let mut listed = Listed::default();
        // Somebody may have seen a million: rows take hundreds of bytes each.
        let mut rows = bind(sql, values).fetch(&mut *self.tx);
        while let Some(row) = rows.try_next().await? {
            listed.ids.push(get(&row, 0)?);
            listed.lasting += usize::from(get::<i64>(&row, 1)? != 0);
        }
        Ok(listed)
    }

    async fn ids(&mut self, sql: &'static str, values: Vec<super::Value>) -> Result<Vec<i64>, StoreError> {
        self.rows(sql, values).await?.iter().map(|row| get(row, 0)).collect()
    }
}

const _: () = {
    // The numbers in the queries above.
    assert!(Kind::MessageOverride.id() == 33 && Kind::MessageReceived.id() == 34 && Kind::MessageRead.id() == 35);
    assert!(Kind::BlockList.id() == 40 && Kind::DeviceList.id() == 41);
    assert!(Kind::GroupChannelUpdate.id() == 30 && Kind::Nickname.id() == 37 && Kind::Bio.id() == 38);
    assert!(Kind::OnlineState.id() == 43);
    assert!(Kind::ProfileImage.id() == 39 && Kind::PublicKeys.id() == 24 && Kind::DaystreamMessage.id() == 36);
    assert!(MessageFlags::LOOPBACK.0 == 1 && MessageFlags::UNENCRYPTED.0 == 2 && MessageFlags::NO_SENDER_SYNC.0 == 4);
};

#[cfg(test)]
mod tests {
    use super::super::{Place, Store};
    use super::*;

    #[test]
    fn somebody_there_is_one_byte() {
        let active = crate::chat::skynet::wire::Content::OnlineState(None).encode(None).unwrap();
        assert_eq!(active[..], [ONLINE]);
    }

    #[tokio::test]
    async fn a_page_of_the_longest_messages_took_all_memory() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&Place::Sqlite, dir.path()).await.unwrap();
        let mut work = store.begin().await.unwrap();
        let mut ids = Vec::new();
        for (len, dependencies) in [(0, 0), (1_000, 0), (0, 2_000), (1_000, 0), (1_001, 0), (0, 0)] {
            let on = Dependency { account: AccountId::NONE, message: MessageId(1) };
            let body = Body::new(Kind::ChatMessage, MessageFlags::NONE, vec![1; len]).on(vec![on; dependencies]);
            let (channel, sender, audience) = (ChannelId(1), AccountId(1), Audience::Members);
            let draft = Draft { channel, sender, audience, dispatched_ms: 1, body };
            ids.push(work.add_message(draft).await.unwrap().id.0);
        }
        let mut pages = Vec::new();
        let mut rest = &ids[..];
        while !rest.is_empty() {
            let page = work.light(rest, 2_000).await.unwrap().len();
            pages.push(page);
            rest = &rest[page..];
        }
        assert_eq!(pages, [2, 1, 1, 2], "as many as fit, and what fits nowhere alone");
        assert_eq!(work.light(&[99, 98], 0).await.unwrap(), [99, 98], "what is not there takes nothing");
        drop(work);
        store.close().await;
    }
}
