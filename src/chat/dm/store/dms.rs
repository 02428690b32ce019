//! DMs and who is in them.

use super::Work;
use crate::chat::dm::state::UserId;
use crate::chat::sql::{SqlError, get, values};

/// What sort of DM it is, since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One other was invited.
    Pair,
    /// Several were.
    Group,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Pair => "pair",
            Self::Group => "group",
        }
    }
}

/// Somebody in a DM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub id: UserId,
    /// The name.
    pub username: String,
}

/// A DM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDm {
    /// Which.
    pub id: i64,
    /// What sort.
    pub kind: Kind,
    /// What it is called, if it is.
    pub name: Option<String>,
    /// Since when.
    pub created_at: i64,
    /// Who is in it now, the creator first.
    pub members: Vec<Member>,
}

impl StoredDm {
    /// The other one of a pair, as long as both are in it.
    pub(in crate::chat::dm) fn partner(&self, of: UserId) -> Option<UserId> {
        match (self.kind, self.members.as_slice()) {
            (Kind::Pair, [one, other]) => Some(if one.id == of { other.id } else { one.id }),
            _ => None,
        }
    }
}

impl Work {
    /// A new DM with its creator and those who are invited, in this order.
    pub(in crate::chat::dm) async fn add_dm(
        &mut self,
        members: &[UserId],
        kind: Kind,
        key_tree: &[u8],
        now: i64,
    ) -> Result<i64, SqlError> {
        let creator = members.first().ok_or(SqlError::Damaged("a DM of nobody"))?;
        let pair = match (kind, members) {
            (Kind::Pair, [one, other]) => (Some(one.0.min(other.0)), Some(one.0.max(other.0))),
            _ => (None, None),
        };
        let sql = "INSERT INTO dms (kind, pair_low, pair_high, name, created_by, created_at, key_tree) \
                   VALUES ($1, $2, $3, '', $4, $5, $6) RETURNING id";
        let values = values![kind.name(), pair.0, pair.1, creator.0, now, key_tree];
        let id = get(&self.tx.row(sql, values).await?.ok_or(SqlError::Damaged("a DM without a number"))?, 0)?;
        let rows: Vec<_> = members.iter().zip(0..).map(|(user, position)| vec![id, user.0, position]).collect();
        self.tx.insert_many("dm_members (dm_id, user_id, position)", 3, &rows).await?;
        Ok(id)
    }

    /// A DM, if it is there and `user` is in it.
    pub(in crate::chat::dm) async fn dm_of(&mut self, user: UserId, id: i64) -> Result<Option<StoredDm>, SqlError> {
        let Some(dm) = self.dm(id).await? else { return Ok(None) };
        Ok(Some(dm).filter(|dm| dm.members.iter().any(|member| member.id == user)))
    }

    /// A DM, if it is there.
    pub(in crate::chat::dm) async fn dm(&mut self, id: i64) -> Result<Option<StoredDm>, SqlError> {
        let sql = "SELECT d.kind, d.name, d.created_at, u.id, u.username FROM dms d \
                   JOIN dm_members m ON m.dm_id = d.id AND m.left_at IS NULL JOIN users u ON u.id = m.user_id \
                   WHERE d.id = $1 ORDER BY m.position";
        let rows = self.tx.rows(sql, values![id]).await?;
        let Some(first) = rows.first() else { return Ok(None) };
        let kind = match get::<String>(first, 0)?.as_str() {
            "pair" => Kind::Pair,
            "group" => Kind::Group,
            _ => return Err(SqlError::Damaged("kind of a DM")),
        };
        let member = |row| Ok(Member { id: UserId(get(row, 3)?), username: get(row, 4)? });
        Ok(Some(StoredDm {
            id,
            kind,
            name: Some(get::<String>(first, 1)?).filter(|name| !name.is_empty()),
            created_at: get(first, 2)?,
            members: rows.iter().map(member).collect::<Result<_, SqlError>>()?,
        }))
    }

    /// The DMs somebody is in, the oldest first.
    pub(in crate::chat::dm) async fn dms(&mut self, user: UserId) -> Result<Vec<i64>, SqlError> {
        let sql = "SELECT dm_id FROM dm_members WHERE user_id = $1 AND left_at IS NULL ORDER BY dm_id";
        self.tx.rows(sql, values![user.0]).await?.iter().map(|row| get(row, 0)).collect()
    }

    /// Whether one of the members can be in no more DMs, or one who is invited have no more invitations.
    pub(in crate::chat::dm) async fn has_any_full(
        &mut self,
        (members, dms_max): (&[UserId], i64),
        (invited, invitations_max): (&[UserId], i64),
    ) -> Result<bool, SqlError> {
        for (sql, users, max) in [
            (
                "SELECT user_id FROM dm_members WHERE left_at IS NULL AND user_id IN ({}) \
                 GROUP BY user_id HAVING COUNT(*) >= $1",
                members,
                dms_max,
            ),
            (
                "SELECT user_id FROM x3dh_inbox WHERE user_id IN ({}) GROUP BY user_id HAVING COUNT(*) >= $1",
                invited,
                invitations_max,
            ),
        ] {
            let users: Vec<_> = users.iter().map(|user| user.0).collect();
            if !self.tx.rows_of(sql, &[max], &users).await?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether two have a DM of their own that neither has left.
    pub(in crate::chat::dm) async fn is_paired(&mut self, one: UserId, other: UserId) -> Result<bool, SqlError> {
        let sql = "SELECT 1 FROM dms WHERE pair_low = $1 AND pair_high = $2";
        Ok(self.tx.row(sql, values![one.0.min(other.0), one.0.max(other.0)]).await?.is_some())
    }

    pub(in crate::chat::dm) async fn rename_dm(&mut self, id: i64, name: Option<&str>) -> Result<(), SqlError> {
        self.tx.run("UPDATE dms SET name = $1 WHERE id = $2", values![name.unwrap_or_default(), id]).await.map(drop)
    }

    /// Somebody is in it no longer, and with that goes what only concerned him there.
    pub(in crate::chat::dm) async fn leave_dm(&mut self, id: i64, user: UserId, now: i64) -> Result<(), SqlError> {
        let sql = "UPDATE dm_members SET left_at = $1 WHERE dm_id = $2 AND user_id = $3";
        self.tx.run(sql, values![now, id, user.0]).await?;
        self.tx.run("UPDATE dms SET pair_low = NULL, pair_high = NULL WHERE id = $1", values![id]).await?;
        let own = || values![id, user.0];
        self.tx.run("DELETE FROM schedules WHERE dm_id = $1 AND sender_id = $2", own()).await?;
        self.tx.run("DELETE FROM x3dh_inbox WHERE dm_id = $1 AND user_id = $2", own()).await.map(drop)
    }

    /// Everything of a DM is gone.
    pub(in crate::chat::dm) async fn remove_dm(&mut self, id: i64) -> Result<(), SqlError> {
        self.tx.run("DELETE FROM dms WHERE id = $1", values![id]).await.map(drop)
    }

    pub(super) async fn count(
        &mut self,
        sql: &'static str,
        values: Vec<crate::chat::sql::Value>,
    ) -> Result<i64, SqlError> {
        get(&self.tx.row(sql, values).await?.ok_or(SqlError::Damaged("nothing was counted"))?, 0)
    }
}
