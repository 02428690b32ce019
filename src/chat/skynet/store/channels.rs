//! Channels and who is in them.

use sqlx::any::AnyRow;

use super::uploads::doomed;
use super::{StoreError, Value, Work, get, narrow, values};
use crate::chat::skynet::wire::content::{ArchiveMode, MemberFlags};
use crate::chat::skynet::wire::{AccountId, Announced, ChannelId, ChannelType, DateTime};

/// A channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Channel {
    /// Which.
    pub id: ChannelId,
    /// What it is for.
    pub channel_type: ChannelType,
    /// Who created it; none when that account was deleted.
    pub owner: AccountId,
    /// Of a direct channel: the other one.
    pub counterpart: AccountId,
    /// Milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// What it still takes.
    pub archive: ArchiveMode,
    /// Of a group: how often it was changed.
    pub revision: i64,
}

impl Channel {
    /// How `to` is told of it.
    #[must_use]
    pub fn announced(&self, to: AccountId) -> Announced {
        Announced {
            channel_type: self.channel_type,
            owner: self.owner,
            created: DateTime::from_unix_ms(self.created_ms),
            counterpart: self.other(to),
        }
    }

    /// Of a direct channel: who is not `account`.
    #[must_use]
    pub fn other(&self, account: AccountId) -> AccountId {
        if self.counterpart == account { self.owner } else { self.counterpart }
    }
}

/// Somebody in a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub account: AccountId,
    /// What it may do.
    pub flags: MemberFlags,
}

macro_rules! channel_from {
    ($rest:literal) => {
        concat!(
            "SELECT c.id, c.type, c.owner_id, c.counterpart_id, c.created_ms, c.archive, c.revision FROM channel c ",
            $rest
        )
    };
}

impl Work {
    /// A new channel without members. `false`: the two of a direct channel have one.
    pub(in crate::chat::skynet) async fn add_channel(&mut self, channel: &Channel) -> Result<bool, StoreError> {
        let (low, high) = match channel.channel_type {
            ChannelType::Direct => {
                let (owner, counterpart) = (channel.owner.0, channel.counterpart.0);
                (Value::Number(owner.min(counterpart)), Value::Number(owner.max(counterpart)))
            }
            _ => (Value::Null, Value::Null),
        };
        let mut values = values![channel.id.0, channel.channel_type as u8, channel.owner.0, channel.counterpart.0];
        values.extend([low, high]);
        values.extend(values![channel.created_ms, channel.archive.0, channel.revision]);
        let sql = "INSERT INTO channel (id, type, owner_id, counterpart_id, low, high, created_ms, archive, revision) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (low, high) DO NOTHING";
        Ok(self.run(sql, values).await? == 1)
    }

    pub(in crate::chat::skynet) async fn channel(&mut self, id: ChannelId) -> Result<Option<Channel>, StoreError> {
        let row = self.row(channel_from!("WHERE c.id = $1"), values![id.0]).await?;
        row.as_ref().map(channel).transpose()
    }

    /// The channel between two accounts.
    pub(in crate::chat::skynet) async fn direct(
        &mut self,
        a: AccountId,
        b: AccountId,
    ) -> Result<Option<Channel>, StoreError> {
        let values = values![a.0.min(b.0), a.0.max(b.0)];
        let row = self.row(channel_from!("WHERE c.low = $1 AND c.high = $2"), values).await?;
        row.as_ref().map(channel).transpose()
    }

    /// The account's own channel of a type of which it has one.
    pub(in crate::chat::skynet) async fn own(
        &mut self,
        owner: AccountId,
        channel_type: ChannelType,
    ) -> Result<Option<Channel>, StoreError> {
        let values = values![owner.0, channel_type as u8];
        let row = self.row(channel_from!("WHERE c.owner_id = $1 AND c.type = $2"), values).await?;
        row.as_ref().map(channel).transpose()
    }

    /// Every channel that the account is in; its own come first.
    pub(in crate::chat::skynet) async fn channels_of(
        &mut self,
        account: AccountId,
    ) -> Result<Vec<Channel>, StoreError> {
        let sql = channel_from!(
            "JOIN channel_member cm ON cm.channel_id = c.id WHERE cm.account_id = $1 ORDER BY c.type, c.created_ms, c.id"
        );
        self.rows(sql, values![account.0]).await?.iter().map(channel).collect()
    }

    pub(in crate::chat::skynet) async fn join_channel(
        &mut self,
        channel: ChannelId,
        account: AccountId,
        flags: MemberFlags,
        joined_at: i64,
    ) -> Result<(), StoreError> {
        let sql = "INSERT INTO channel_member (channel_id, account_id, flags, joined_at) VALUES ($1, $2, $3, $4) \
                   ON CONFLICT (channel_id, account_id) DO UPDATE SET flags = excluded.flags";
        self.run(sql, values![channel.0, account.0, flags.0, joined_at]).await.map(drop)
    }

    pub(in crate::chat::skynet) async fn leave_channel(
        &mut self,
        channel: ChannelId,
        account: AccountId,
    ) -> Result<(), StoreError> {
        let sql = "DELETE FROM channel_member WHERE channel_id = $1 AND account_id = $2";
        self.run(sql, values![channel.0, account.0]).await.map(drop)
    }

    pub(in crate::chat::skynet) async fn members(&mut self, channel: ChannelId) -> Result<Vec<Member>, StoreError> {
        let sql = "SELECT account_id, flags FROM channel_member WHERE channel_id = $1 ORDER BY account_id";
        let rows = self.rows(sql, values![channel.0]).await?;
        rows.iter()
            .map(|row| Ok(Member { account: AccountId(get(row, 0)?), flags: MemberFlags(narrow(row, 1)?) }))
            .collect()
    }

    pub(in crate::chat::skynet) async fn member(
        &mut self,
        channel: ChannelId,
        account: AccountId,
    ) -> Result<Option<Member>, StoreError> {
        let sql = "SELECT flags FROM channel_member WHERE channel_id = $1 AND account_id = $2";
        let row = self.row(sql, values![channel.0, account.0]).await?;
        row.map(|row| Ok(Member { account, flags: MemberFlags(narrow(&row, 0)?) })).transpose()
    }

    pub(in crate::chat::skynet) async fn set_archive(
        &mut self,
        channel: ChannelId,
        mode: ArchiveMode,
    ) -> Result<(), StoreError> {
        self.run("UPDATE channel SET archive = $2 WHERE id = $1", values![channel.0, mode.0]).await.map(drop)
    }

    pub(in crate::chat::skynet) async fn set_revision(
        &mut self,
        channel: ChannelId,
        revision: i64,
    ) -> Result<(), StoreError> {
        self.run("UPDATE channel SET revision = $2 WHERE id = $1", values![channel.0, revision]).await.map(drop)
    }

    /// Whether somebody in particular wants no part in a channel.
    pub(in crate::chat::skynet) async fn has_blocked_channel(
        &mut self,
        owner: AccountId,
        channel: ChannelId,
    ) -> Result<bool, StoreError> {
        let sql = "SELECT owner_id FROM blocked_channel WHERE owner_id = $1 AND blocked = $2";
        Ok(self.row(sql, values![owner.0, channel.0]).await?.is_some())
    }

    /// Whether one of the two of a direct channel blocks the other, or the channel.
    pub(in crate::chat::skynet) async fn is_blocked_channel(&mut self, channel: &Channel) -> Result<bool, StoreError> {
        Ok(self.is_blocked(channel.owner, channel.counterpart).await?
            || self.has_blocked_channel(channel.owner, channel.id).await?
            || self.has_blocked_channel(channel.counterpart, channel.id).await?)
    }

    /// Removes a channel with everything in it.
    pub(in crate::chat::skynet) async fn purge_channel(&mut self, channel: ChannelId) -> Result<(), StoreError> {
        self.remove_messages(doomed!("channel_id = $1"), || values![channel.0]).await?;
        for sql in ["DELETE FROM channel_member WHERE channel_id = $1", "DELETE FROM channel WHERE id = $1"] {
            self.run(sql, values![channel.0]).await?;
        }
        Ok(())
    }

    /// Account data and profile channels that were this account's or that nobody is in any more.
    pub(in crate::chat::skynet) async fn deserted(&mut self, channels: &[i64]) -> Result<Vec<ChannelId>, StoreError> {
        let sql = "SELECT c.id FROM channel c WHERE c.id IN ({}) \
                   AND NOT EXISTS (SELECT 1 FROM channel_member cm WHERE cm.channel_id = c.id)";
        self.rows_of(sql, &[], channels).await?.iter().map(|row| Ok(ChannelId(get(row, 0)?))).collect()
    }
}

fn channel(row: &AnyRow) -> Result<Channel, StoreError> {
    Ok(Channel {
        id: ChannelId(get(row, 0)?),
        channel_type: ChannelType::from_number(narrow(row, 1)?).ok_or(StoreError::Damaged("type of a channel"))?,
        owner: AccountId(get(row, 2)?),
        counterpart: AccountId(get(row, 3)?),
        created_ms: narrow(row, 4)?,
        archive: ArchiveMode(narrow(row, 5)?),
        revision: get(row, 6)?,
    })
}
