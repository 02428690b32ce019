//! Who is whose friend, wants to be, or does not want to hear of whom.

use super::Work;
use crate::chat::dm::state::{Between, UserId};
use crate::chat::sql::{SqlError, get, values};

impl Work {
    /// How two stand to each other, seen from the first.
    pub(in crate::chat::dm) async fn between(&mut self, one: UserId, other: UserId) -> Result<Between, SqlError> {
        let sql = "SELECT (SELECT COUNT(*) FROM friendships WHERE (a_id = $1 AND b_id = $2) OR (a_id = $2 AND b_id = $1)), \
                   (SELECT COUNT(*) FROM friend_requests WHERE from_id = $1 AND to_id = $2), \
                   (SELECT COUNT(*) FROM friend_requests WHERE from_id = $2 AND to_id = $1), \
                   (SELECT COUNT(*) FROM blocks WHERE from_id = $1 AND to_id = $2), \
                   (SELECT COUNT(*) FROM blocks WHERE from_id = $2 AND to_id = $1)";
        let row = self.tx.row(sql, values![one.0, other.0]).await?.ok_or(SqlError::Damaged("nothing was counted"))?;
        let holds = |at| Ok::<_, SqlError>(get::<i64>(&row, at)? > 0);
        Ok(Between {
            friends: holds(0)?,
            asked: holds(1)?,
            was_asked: holds(2)?,
            blocks: holds(3)?,
            is_blocked: holds(4)?,
        })
    }

    /// Whether somebody blocks one of the others, or is blocked by one.
    pub(in crate::chat::dm) async fn blocks_any(&mut self, one: UserId, others: &[UserId]) -> Result<bool, SqlError> {
        let others: Vec<_> = others.iter().map(|other| other.0).collect();
        for sql in [
            "SELECT 1 FROM blocks WHERE from_id = $1 AND to_id IN ({})",
            "SELECT 1 FROM blocks WHERE to_id = $1 AND from_id IN ({})",
        ] {
            if !self.tx.rows_of(sql, &[one.0], &others).await?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Keeps what became of that. What the other one blocks is never changed.
    pub(in crate::chat::dm) async fn set_between(
        &mut self,
        (one, other): (UserId, UserId),
        before: Between,
        after: Between,
        now: i64,
    ) -> Result<(), SqlError> {
        let (low, high) = (one.0.min(other.0), one.0.max(other.0));
        let friends = (
            "INSERT INTO friendships (a_id, b_id, since) VALUES ($1, $2, $3)",
            "DELETE FROM friendships WHERE a_id = $1 AND b_id = $2",
        );
        let request = (
            "INSERT INTO friend_requests (from_id, to_id, created_at) VALUES ($1, $2, $3)",
            "DELETE FROM friend_requests WHERE from_id = $1 AND to_id = $2",
        );
        let block = (
            "INSERT INTO blocks (from_id, to_id, created_at) VALUES ($1, $2, $3)",
            "DELETE FROM blocks WHERE from_id = $1 AND to_id = $2",
        );
        let facts = [
            (before.friends, after.friends, friends, (low, high)),
            (before.asked, after.asked, request, (one.0, other.0)),
            (before.was_asked, after.was_asked, request, (other.0, one.0)),
            (before.blocks, after.blocks, block, (one.0, other.0)),
        ];
        for (was, is, (add, remove), (from, to)) in facts {
            match (was, is) {
                (false, true) => self.tx.run(add, values![from, to, now]).await.map(drop)?,
                (true, false) => self.tx.run(remove, values![from, to]).await.map(drop)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// In the order in which they became friends.
    pub(in crate::chat::dm) async fn friends(&mut self, of: UserId) -> Result<Vec<String>, SqlError> {
        let sql = "SELECT u.username FROM friendships f JOIN users u \
                   ON u.id = CASE WHEN f.a_id = $1 THEN f.b_id ELSE f.a_id END \
                   WHERE f.a_id = $1 OR f.b_id = $1 ORDER BY f.since, u.id";
        self.names(sql, of).await
    }

    /// Who wants to be somebody's friend, the oldest request first.
    pub(in crate::chat::dm) async fn requests_to(&mut self, user: UserId) -> Result<Vec<String>, SqlError> {
        let sql = "SELECT u.username FROM friend_requests r JOIN users u ON u.id = r.from_id \
                   WHERE r.to_id = $1 ORDER BY r.id";
        self.names(sql, user).await
    }

    /// Whom somebody has asked, the oldest request first.
    pub(in crate::chat::dm) async fn requests_from(&mut self, user: UserId) -> Result<Vec<String>, SqlError> {
        let sql = "SELECT u.username FROM friend_requests r JOIN users u ON u.id = r.to_id \
                   WHERE r.from_id = $1 ORDER BY r.id";
        self.names(sql, user).await
    }

    /// Whom somebody blocks, the oldest block first.
    pub(in crate::chat::dm) async fn blocked_by(&mut self, user: UserId) -> Result<Vec<String>, SqlError> {
        let sql = "SELECT u.username FROM blocks b JOIN users u ON u.id = b.to_id \
                   WHERE b.from_id = $1 ORDER BY b.created_at, u.id";
        self.names(sql, user).await
    }

    async fn names(&mut self, sql: &'static str, user: UserId) -> Result<Vec<String>, SqlError> {
        self.tx.rows(sql, values![user.0]).await?.iter().map(|row| get(row, 0)).collect()
    }
}
