//! What waits: for its time, or for whom it is for.

use sqlx::any::AnyRow;
use tracing::error;

use super::{Work, exactly};
use crate::chat::dm::state::UserId;
use crate::chat::dm::wire::{Key, Signature};
use crate::chat::sql::{SqlError, get, narrow, values};

/// A message that is not sent yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// Which.
    pub id: i64,
    /// Where.
    pub dm: i64,
    /// Whose.
    pub sender: UserId,
    /// Ciphertext.
    pub body: Vec<u8>,
    /// Its signature.
    pub signature: Signature,
    /// When.
    pub due_at: i64,
    /// In how many seconds after that it goes again; 0 for never.
    pub delete_after_s: i64,
}

/// A schedule and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending {
    /// Which.
    pub id: i64,
    /// Where.
    pub dm: i64,
    /// Whose.
    pub sender: UserId,
}

/// What somebody needs for the key of a DM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredInvitation {
    /// Which.
    pub id: i64,
    /// Of which DM.
    pub dm: i64,
    /// Who made it.
    pub sender: String,
    /// The sender's identity key.
    pub sender_ik: Key,
    /// The prekey that was used.
    pub spk: Key,
    /// The key that was made for this.
    pub ek: Key,
    /// Which leaf is the receiver's.
    pub position: u16,
    /// The sender's signature, if there is one.
    pub setup_sig: Option<Signature>,
    /// The tree, its keys one behind the other.
    pub key_tree: Vec<u8>,
}

impl Work {
    /// Keeps a message for later. `due_at` is in it, its id is not known yet.
    pub(in crate::chat::dm) async fn add_schedule(
        &mut self,
        schedule: &Schedule,
        soon_at: Option<i64>,
    ) -> Result<(), SqlError> {
        let sql = "INSERT INTO schedules (dm_id, sender_id, body, signature, due_at, delete_after_s, soon_at, soon_missed) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, 0)";
        let Schedule { dm, sender, body, signature, due_at, delete_after_s, .. } = schedule;
        let values = values![*dm, sender.0, body.as_slice(), signature.as_slice(), *due_at, *delete_after_s, soon_at];
        self.tx.run(sql, values).await.map(drop)
    }

    /// What somebody has not sent yet in a DM.
    pub(in crate::chat::dm) async fn schedules(&mut self, dm: i64, user: UserId) -> Result<Vec<Schedule>, SqlError> {
        let sql = "SELECT id, dm_id, sender_id, body, signature, due_at, delete_after_s FROM schedules \
                   WHERE dm_id = $1 AND sender_id = $2 ORDER BY id";
        self.tx.rows(sql, values![dm, user.0]).await?.iter().map(schedule).collect()
    }

    pub(in crate::chat::dm) async fn count_schedules(&mut self, dm: i64, user: UserId) -> Result<i64, SqlError> {
        let sql = "SELECT COUNT(*) FROM schedules WHERE dm_id = $1 AND sender_id = $2";
        self.count(sql, values![dm, user.0]).await
    }

    /// A message is not sent after all. `false` when there is no such schedule any more.
    pub(in crate::chat::dm) async fn cancel(&mut self, dm: i64, user: UserId, id: i64) -> Result<bool, SqlError> {
        let sql = "DELETE FROM schedules WHERE id = $1 AND dm_id = $2 AND sender_id = $3";
        Ok(self.tx.run(sql, values![id, dm, user.0]).await? > 0)
    }

    /// Takes out the first messages whose time has come, in the order of their times. One that cannot be read is gone.
    pub(in crate::chat::dm) async fn take_due(&mut self, now: i64, max: i64) -> Result<Vec<Schedule>, SqlError> {
        let sql = "SELECT id, dm_id, sender_id, body, signature, due_at, delete_after_s FROM schedules \
                   WHERE due_at <= $1 ORDER BY due_at, id LIMIT $2";
        let due = self.tx.rows(sql, values![now, max]).await?;
        let mut taken = Vec::with_capacity(due.len());
        for row in &due {
            let id: i64 = get(row, 0)?;
            self.tx.run("DELETE FROM schedules WHERE id = $1", values![id]).await?;
            match schedule(row) {
                Ok(schedule) => taken.push(schedule),
                Err(error) => error!(%error, "a schedule is dropped"),
            }
        }
        Ok(taken)
    }

    /// The first schedules whose authors are to be warned.
    pub(in crate::chat::dm) async fn due_soon(&mut self, now: i64, max: i64) -> Result<Vec<Pending>, SqlError> {
        let sql = "SELECT id, dm_id, sender_id FROM schedules WHERE soon_at <= $1 ORDER BY soon_at, id LIMIT $2";
        self.tx.rows(sql, values![now, max]).await?.iter().map(pending).collect()
    }

    /// That was said, or nobody was there to hear it.
    pub(in crate::chat::dm) async fn warned(&mut self, id: i64, missed: bool) -> Result<(), SqlError> {
        let sql = "UPDATE schedules SET soon_at = NULL, soon_missed = $1 WHERE id = $2";
        self.tx.run(sql, values![missed, id]).await.map(drop)
    }

    /// Of which schedules somebody was not there to be warned.
    pub(in crate::chat::dm) async fn missed(&mut self, user: UserId) -> Result<Vec<Pending>, SqlError> {
        let sql =
            "SELECT id, dm_id, sender_id FROM schedules WHERE sender_id = $1 AND soon_missed = 1 ORDER BY due_at, id";
        self.tx.rows(sql, values![user.0]).await?.iter().map(pending).collect()
    }

    /// The first messages whose end has come: their ids and DMs.
    pub(in crate::chat::dm) async fn overdue(&mut self, now: i64, max: i64) -> Result<Vec<(i64, i64)>, SqlError> {
        let sql = "SELECT id, dm_id FROM messages WHERE delete_at <= $1 ORDER BY delete_at, id LIMIT $2";
        self.tx.rows(sql, values![now, max]).await?.iter().map(|row| Ok((get(row, 0)?, get(row, 1)?))).collect()
    }

    /// When something is due next.
    pub(in crate::chat::dm) async fn next_due(&mut self) -> Result<Option<i64>, SqlError> {
        let sql = "SELECT MIN(due) FROM (SELECT MIN(due_at) AS due FROM schedules \
                   UNION ALL SELECT MIN(soon_at) FROM schedules WHERE soon_at IS NOT NULL \
                   UNION ALL SELECT MIN(delete_at) FROM messages WHERE delete_at IS NOT NULL) AS all_due";
        self.tx.row(sql, values![]).await?.map_or(Ok(None), |row| get(&row, 0))
    }

    /// Somebody can compute the key of a DM with this. Its id is not known yet.
    pub(in crate::chat::dm) async fn add_invitation(
        &mut self,
        (user, sender): (UserId, UserId),
        invitation: &StoredInvitation,
        now: i64,
    ) -> Result<i64, SqlError> {
        let sql = "INSERT INTO x3dh_inbox (user_id, dm_id, sender_id, sender_ik, spk, ek, position, setup_sig, created_at) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING id";
        let StoredInvitation { dm, sender_ik, spk, ek, position, setup_sig, .. } = invitation;
        let signature = setup_sig.as_ref().map_or(&[][..], |it| &it[..]);
        let (ik, spk, ek) = (sender_ik.as_slice(), spk.as_slice(), ek.as_slice());
        let values = values![user.0, *dm, sender.0, ik, spk, ek, i64::from(*position), signature, now];
        let row = self.tx.row(sql, values).await?;
        get(&row.ok_or(SqlError::Damaged("an invitation without a number"))?, 0)
    }

    /// What somebody was not seen to receive, the oldest first. One that cannot be read keeps nobody from the others.
    pub(in crate::chat::dm) async fn invitations(&mut self, user: UserId) -> Result<Vec<StoredInvitation>, SqlError> {
        let sql = "SELECT i.id, i.dm_id, u.username, i.sender_ik, i.spk, i.ek, i.position, i.setup_sig, d.key_tree \
                   FROM x3dh_inbox i JOIN users u ON u.id = i.sender_id JOIN dms d ON d.id = i.dm_id \
                   WHERE i.user_id = $1 ORDER BY i.id";
        let rows = self.tx.rows(sql, values![user.0]).await?;
        let readable = |row| invitation(row).inspect_err(|error| error!(%error, "an invitation is left out")).ok();
        Ok(rows.iter().filter_map(readable).collect())
    }

    /// Somebody has these.
    pub(in crate::chat::dm) async fn received(&mut self, invitations: &[i64]) -> Result<(), SqlError> {
        for id in invitations {
            self.tx.run("DELETE FROM x3dh_inbox WHERE id = $1", values![*id]).await?;
        }
        Ok(())
    }
}

fn schedule(row: &AnyRow) -> Result<Schedule, SqlError> {
    Ok(Schedule {
        id: get(row, 0)?,
        dm: get(row, 1)?,
        sender: UserId(get(row, 2)?),
        body: get(row, 3)?,
        signature: exactly(&get::<Vec<u8>>(row, 4)?)?,
        due_at: get(row, 5)?,
        delete_after_s: get(row, 6)?,
    })
}

fn pending(row: &AnyRow) -> Result<Pending, SqlError> {
    Ok(Pending { id: get(row, 0)?, dm: get(row, 1)?, sender: UserId(get(row, 2)?) })
}

fn invitation(row: &AnyRow) -> Result<StoredInvitation, SqlError> {
    let bytes = |at| get::<Vec<u8>>(row, at);
    let signature = bytes(7)?;
    Ok(StoredInvitation {
        id: get(row, 0)?,
        dm: get(row, 1)?,
        sender: get(row, 2)?,
        sender_ik: exactly(&bytes(3)?)?,
        spk: exactly(&bytes(4)?)?,
        ek: exactly(&bytes(5)?)?,
        position: narrow(row, 6)?,
        setup_sig: if signature.is_empty() { None } else { Some(exactly(&signature)?) },
        key_tree: bytes(8)?,
    })
}
