//! What the chat server remembers: the directory, queues, device cookies, push tokens.
//!
//! The promise: when [`Store::commit`] returns `Ok`, all of its writes are on the disk and survive a crash of the
//! process, of the machine and a power cut, as far as the disk does what it is told (WAL, `synchronous = FULL`). When it returns
//! an error, nobody has been told that anything was kept. One commit takes the writes of many connections: one sync
//! answers them all.
//!
//! The [`Directory`] lives in the same file and may be changed by another process while the server runs; whoever needs
//! it reads it.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{QueryBuilder, Row as _, Sqlite, Transaction};

use super::state::{Kept, KeptEntry, KeptToken, Seq, Write};
use super::wire::{CspDeviceId, DeviceCookie, Identity, Message, MessageFlags, MessageId, PushToken};
use crate::crypto::boxes::{self, Public};
use crate::files;

/// The file in the data directory.
pub const FILE: &str = "csp.sqlite";
/// Rows per statement: with nine columns well below what any engine takes as parameters.
const ROWS_MAX: usize = 64;
/// How long to wait for another process that is writing.
const BUSY: Duration = Duration::from_secs(10);

/// Why the store could not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The engine failed.
    #[error("the CSP store failed: {0}")]
    Engine(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("the CSP store cannot be opened: {0}")]
    Schema(#[from] sqlx::migrate::MigrateError),
    /// What was read back is not what can have been written.
    #[error("the CSP store is damaged: {0}")]
    Damaged(&'static str),
}

/// Whether an identity may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectoryState {
    /// It may.
    Active,
    /// It may not log in, and gets no messages any more.
    Revoked,
}

/// What the directory knows of an identity (spec 10).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Who.
    pub identity: Identity,
    /// The public half of the permanent key.
    pub public_key: Public,
    /// What the client puts into its URL, so that the mediator finds this server.
    pub server_group: String,
    /// Whether it may be used.
    pub state: DirectoryState,
}

/// Why an identity cannot be added.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// There is one of that name, active or revoked.
    #[error("the identity is taken")]
    Taken,
    /// The public key agrees with nothing: no login could ever succeed, and every message box would be open to all.
    #[error("the public key is of low order")]
    LowOrder,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for AddError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Who there is. May be opened by several processes at a time; a running server sees every change at once.
#[derive(Debug, Clone)]
pub struct Directory {
    pool: SqlitePool,
}

impl Directory {
    /// Opens the directory in `data_dir`, making it if there is none.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be opened or is of a newer version.
    pub async fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let file = data_dir.join(FILE);
        files::make_private(&file).map_err(sqlx::Error::from)?;
        let options = SqliteConnectOptions::new()
            .filename(file)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY)
            .statement_cache_capacity(256);
        let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await?;
        sqlx::migrate!("src/chat/csp/migrations").run(&pool).await?;
        Ok(Self { pool })
    }

    /// Adds an active identity.
    ///
    /// # Errors
    /// [`AddError`] says why not.
    pub async fn add(&self, identity: Identity, public_key: &Public, server_group: &str) -> Result<(), AddError> {
        if !boxes::is_contributory(public_key) {
            return Err(AddError::LowOrder);
        }
        let added = sqlx::query(
            "INSERT INTO directory (identity, public_key, server_group, state) \
             VALUES ($1, $2, $3, 'active') \
             ON CONFLICT (identity) DO NOTHING",
        )
        .bind(identity.as_str())
        .bind(&public_key[..])
        .bind(server_group)
        .execute(&self.pool)
        .await?;
        if added.rows_affected() == 1 { Ok(()) } else { Err(AddError::Taken) }
    }

    /// Revokes an identity for good. Whether there was an active one.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn revoke(&self, identity: Identity) -> Result<bool, StoreError> {
        let revoked = sqlx::query(
            "UPDATE directory SET state = 'revoked' \
             WHERE identity = $1 AND state = 'active'",
        )
        .bind(identity.as_str())
        .execute(&self.pool)
        .await?;
        Ok(revoked.rows_affected() == 1)
    }

    /// What is known of an identity.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn lookup(&self, identity: Identity) -> Result<Option<DirectoryEntry>, StoreError> {
        let row = sqlx::query(
            "SELECT identity, public_key, server_group, state \
             FROM directory \
             WHERE identity = $1",
        )
        .bind(identity.as_str())
        .fetch_optional(&self.pool)
        .await?;
        row.as_ref().map(Self::entry).transpose()
    }

    /// Everybody, by name.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn list(&self) -> Result<Vec<DirectoryEntry>, StoreError> {
        let rows = sqlx::query(
            "SELECT identity, public_key, server_group, state \
             FROM directory ORDER BY identity",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(Self::entry).collect()
    }

    /// Which of these are active.
    pub(super) async fn active(&self, identities: &HashSet<Identity>) -> Result<HashSet<Identity>, StoreError> {
        let mut active = HashSet::with_capacity(identities.len());
        let all: Vec<Identity> = identities.iter().copied().collect();
        for some in all.chunks(ROWS_MAX) {
            let mut query =
                QueryBuilder::<Sqlite>::new("SELECT identity FROM directory WHERE state = 'active' AND identity IN (");
            let mut list = query.separated(", ");
            for identity in some {
                list.push_bind(identity.as_str());
            }
            query.push(")");
            for row in query.build().fetch_all(&self.pool).await? {
                active.insert(identity(&row, "identity")?);
            }
        }
        Ok(active)
    }

    /// Closes the file. Whatever else uses it fails from now on.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    fn entry(row: &SqliteRow) -> Result<DirectoryEntry, StoreError> {
        let public_key: &[u8] = row.try_get("public_key")?;
        let state = match row.try_get("state")? {
            "active" => DirectoryState::Active,
            "revoked" => DirectoryState::Revoked,
            _ => return Err(StoreError::Damaged("state of an identity")),
        };
        Ok(DirectoryEntry {
            identity: identity(row, "identity")?,
            public_key: public_key.try_into().map_err(|_| StoreError::Damaged("length of a public key"))?,
            server_group: row.try_get("server_group")?,
            state,
        })
    }
}

/// Everything that is kept.
#[derive(Debug, Clone)]
pub struct Store {
    directory: Directory,
}

impl Store {
    /// Opens what is in `data_dir`, making it if there is nothing.
    ///
    /// # Errors
    /// [`StoreError`] as for [`Directory::open`].
    pub async fn open(data_dir: &Path) -> Result<Self, StoreError> {
        Ok(Self { directory: Directory::open(data_dir).await? })
    }

    /// Who there is.
    #[must_use]
    pub const fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The first number beyond every queued message.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn next_seq(&self) -> Result<Seq, StoreError> {
        let row = sqlx::query("SELECT COALESCE(MAX(seq), 0) AS last FROM queue").fetch_one(self.pool()).await?;
        Ok(Seq(row.try_get::<i64, _>("last")?.cast_unsigned() + 1))
    }

    /// What wakes a mailbox.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails or is damaged.
    pub async fn kept(&self, who: Identity) -> Result<Kept, StoreError> {
        let queue = sqlx::query(
            "SELECT seq, sender, message_id, flags, len, expires_ms FROM queue WHERE receiver = $1 ORDER BY seq",
        )
        .bind(who.as_str())
        .fetch_all(self.pool())
        .await?;
        let entries = queue.iter().map(|row| {
            Ok(KeptEntry {
                seq: Seq(unsigned(row, "seq")?),
                sender: identity(row, "sender")?,
                id: MessageId(unsigned(row, "message_id")?),
                len: number(row, "len")?,
                flags: MessageFlags(number(row, "flags")?),
                expires_ms: unsigned(row, "expires_ms")?,
            })
        });
        let entries = entries.collect::<Result<_, StoreError>>()?;

        let cookie = sqlx::query("SELECT cookie, changed FROM device_cookie WHERE identity = $1")
            .bind(who.as_str())
            .fetch_optional(self.pool())
            .await?;
        let cookie = cookie.map(|row| {
            let cookie = <[u8; 16]>::try_from(row.try_get::<&[u8], _>("cookie")?);
            let cookie = cookie.map_err(|_| StoreError::Damaged("length of a device cookie"))?;
            Ok::<_, StoreError>((DeviceCookie(cookie), row.try_get::<i64, _>("changed")? != 0))
        });

        let tokens = sqlx::query(
            "SELECT device, voip, kind, token \
             FROM push_token \
             WHERE identity = $1 ORDER BY device, voip",
        )
        .bind(who.as_str())
        .fetch_all(self.pool())
        .await?;
        let tokens = tokens.iter().map(|row| {
            let token =
                PushToken { kind: number(row, "kind")?, token: Bytes::from(row.try_get::<Vec<u8>, _>("token")?) };
            Ok(KeptToken {
                device: device_of(row.try_get("device")?)?,
                voip: row.try_get::<i64, _>("voip")? != 0,
                token,
            })
        });
        Ok(Kept { entries, cookie: cookie.transpose()?, tokens: tokens.collect::<Result<_, StoreError>>()? })
    }

    /// Queued messages, in order; those that are not there any more are left out.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails or is damaged.
    pub async fn messages(&self, seqs: &[Seq]) -> Result<Vec<(Seq, Message)>, StoreError> {
        let mut messages = Vec::with_capacity(seqs.len());
        for some in seqs.chunks(ROWS_MAX) {
            let mut query = QueryBuilder::<Sqlite>::new("SELECT seq, message FROM queue WHERE seq IN (");
            let mut list = query.separated(", ");
            for seq in some {
                list.push_bind(seq.0.cast_signed());
            }
            query.push(") ORDER BY seq");
            for row in query.build().fetch_all(self.pool()).await? {
                let message = Bytes::from(row.try_get::<Vec<u8>, _>("message")?);
                let message = Message::decode(&message).map_err(|_| StoreError::Damaged("a queued message"))?;
                messages.push((Seq(unsigned(&row, "seq")?), message));
            }
        }
        Ok(messages)
    }

    /// Keeps all of `writes`, or nothing.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn commit(&self, writes: &[Write]) -> Result<(), StoreError> {
        let mut tx = self.pool().begin().await?;
        // Messages go in first and out last. A number is never used twice, so no other order could end differently,
        // and rows of a kind share a statement.
        enqueue(&mut tx, writes).await?;
        for write in writes {
            match write {
                Write::Enqueue { .. } | Write::Remove(_) => {}
                Write::Cookie { identity, cookie, changed } => {
                    sqlx::query(
                        "INSERT INTO device_cookie (identity, cookie, changed) \
                         VALUES ($1, $2, $3) \
                         ON CONFLICT (identity) DO UPDATE SET cookie = excluded.cookie, changed = excluded.changed",
                    )
                    .bind(identity.as_str())
                    .bind(&cookie.0[..])
                    .bind(i64::from(*changed))
                    .execute(&mut *tx)
                    .await?;
                }
                Write::PushToken { identity, device, voip, token: Some(token) } => {
                    sqlx::query(
                        "INSERT INTO push_token (identity, device, voip, kind, token) \
                         VALUES ($1, $2, $3, $4, $5) \
                         ON CONFLICT (identity, device, voip) \
                         DO UPDATE SET kind = excluded.kind, token = excluded.token",
                    )
                    .bind(identity.as_str())
                    .bind(device_text(*device))
                    .bind(i64::from(*voip))
                    .bind(i64::from(token.kind))
                    .bind(&token.token[..])
                    .execute(&mut *tx)
                    .await?;
                }
                Write::PushToken { identity, device, voip, token: None } => {
                    sqlx::query("DELETE FROM push_token WHERE identity = $1 AND device = $2 AND voip = $3")
                        .bind(identity.as_str())
                        .bind(device_text(*device))
                        .bind(i64::from(*voip))
                        .execute(&mut *tx)
                        .await?;
                }
                Write::Sweep { now_ms } => {
                    sqlx::query("DELETE FROM queue WHERE expires_ms <= $1")
                        .bind(now_ms.cast_signed())
                        .execute(&mut *tx)
                        .await?;
                }
            }
        }
        remove(&mut tx, writes).await?;
        Ok(tx.commit().await?)
    }

    /// Closes the file.
    pub async fn close(&self) {
        self.directory.close().await;
    }

    const fn pool(&self) -> &SqlitePool {
        &self.directory.pool
    }
}

async fn enqueue(tx: &mut Transaction<'_, Sqlite>, writes: &[Write]) -> Result<(), StoreError> {
    let rows: Vec<(&Seq, &Message, &u64)> = writes
        .iter()
        .filter_map(|write| match write {
            Write::Enqueue { seq, message, expires_ms } => Some((seq, message, expires_ms)),
            _ => None,
        })
        .collect();
    for rows in rows.chunks(ROWS_MAX) {
        let mut query = QueryBuilder::<Sqlite>::new(
            "INSERT INTO queue (seq, receiver, sender, message_id, flags, len, expires_ms, message) ",
        );
        query.push_values(rows, |mut row, (seq, message, expires_ms)| {
            let len = i64::try_from(message.len()).unwrap_or(i64::MAX);
            row.push_bind(seq.0.cast_signed())
                .push_bind(name(message.receiver.valid()))
                .push_bind(name(message.sender.valid()))
                .push_bind(message.id.0.cast_signed())
                .push_bind(i64::from(message.flags.0))
                .push_bind(len)
                .push_bind(expires_ms.cast_signed())
                .push_bind(message.encode().to_vec());
        });
        query.build().execute(&mut **tx).await?;
    }
    Ok(())
}

async fn remove(tx: &mut Transaction<'_, Sqlite>, writes: &[Write]) -> Result<(), StoreError> {
    let seqs: Vec<i64> = writes
        .iter()
        .filter_map(|write| match write {
            Write::Remove(seq) => Some(seq.0.cast_signed()),
            _ => None,
        })
        .collect();
    for seqs in seqs.chunks(ROWS_MAX) {
        let mut query = QueryBuilder::<Sqlite>::new("DELETE FROM queue WHERE seq IN (");
        let mut list = query.separated(", ");
        for seq in seqs {
            list.push_bind(*seq);
        }
        query.push(")");
        query.build().execute(&mut **tx).await?;
    }
    Ok(())
}

/// State hands over messages between valid identities only.
fn name(identity: Option<Identity>) -> String {
    identity.map(|identity| identity.to_string()).unwrap_or_default()
}

fn device_text(device: Option<CspDeviceId>) -> String {
    device.map(|CspDeviceId(id)| format!("{id:016x}")).unwrap_or_default()
}

fn device_of(text: &str) -> Result<Option<CspDeviceId>, StoreError> {
    if text.is_empty() {
        return Ok(None);
    }
    u64::from_str_radix(text, 16).map(|id| Some(CspDeviceId(id))).map_err(|_| StoreError::Damaged("a device id"))
}

fn identity(row: &SqliteRow, column: &str) -> Result<Identity, StoreError> {
    row.try_get::<&str, _>(column)?.parse().map_err(|_| StoreError::Damaged("an identity"))
}

fn unsigned(row: &SqliteRow, column: &str) -> Result<u64, StoreError> {
    Ok(row.try_get::<i64, _>(column)?.cast_unsigned())
}

fn number<T: TryFrom<i64>>(row: &SqliteRow, column: &str) -> Result<T, StoreError> {
    T::try_from(row.try_get::<i64, _>(column)?).map_err(|_| StoreError::Damaged("a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(to: Identity, id: u64) -> Message {
        Message {
            sender: "AAAAAAAA".parse::<Identity>().unwrap().into(),
            receiver: to.into(),
            id: MessageId(id),
            created_at_s: u32::MAX,
            flags: MessageFlags(0x85),
            nickname: [b'n'; 32],
            metadata_box: Bytes::from_static(&[1; 40]),
            nonce: [2; 24],
            message_box: Bytes::from_static(&[3; 50]),
        }
    }

    #[tokio::test]
    async fn what_was_committed_is_there_when_the_file_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let who: Identity = "*BBBBBBB".parse().unwrap();
        let identity = who;
        let enqueue = |seq, id, expires_ms| Write::Enqueue { seq: Seq(seq), message: message(who, id), expires_ms };
        let token = PushToken { kind: 0x13, token: Bytes::from_static(b"app|\x00\xfftoken") };
        let set = |device, voip, token| Write::PushToken { identity, device, voip, token };
        let (one, two) = (Some(CspDeviceId(u64::MAX)), None);
        let cookie = DeviceCookie([9; 16]);

        let store = Store::open(dir.path()).await.unwrap();
        assert_eq!(store.next_seq().await.unwrap(), Seq(1));
        // More than fit one statement, and one that goes again in the same breath.
        let mut writes: Vec<Write> = (1..=200).map(|n| enqueue(n, u64::MAX - n, 1_000 + n)).collect();
        writes.extend([
            Write::Remove(Seq(7)),
            set(one, false, Some(token.clone())),
            set(one, true, Some(token.clone())),
        ]);
        writes.extend([set(two, false, Some(token.clone())), set(one, true, None)]);
        writes.extend([true, false, true].map(|changed| Write::Cookie { identity, cookie, changed }));
        store.commit(&writes).await.unwrap();
        store.close().await;

        let store = Store::open(dir.path()).await.unwrap();
        assert_eq!(store.next_seq().await.unwrap(), Seq(201));
        let kept = store.kept(who).await.unwrap();
        assert_eq!(kept.cookie, Some((cookie, true)));
        let of = |device| KeptToken { device, voip: false, token: token.clone() };
        assert_eq!(kept.tokens, [of(two), of(one)]);
        assert_eq!(kept.entries.len(), 199);
        let last = KeptEntry {
            seq: Seq(200),
            sender: "AAAAAAAA".parse().unwrap(),
            id: MessageId(u64::MAX - 200),
            len: message(who, 0).len(),
            flags: MessageFlags(0x85),
            expires_ms: 1_200,
        };
        assert_eq!(kept.entries.last(), Some(&last));
        let wanted = [Seq(6), Seq(7), Seq(8)];
        let found = store.messages(&wanted).await.unwrap();
        assert_eq!(found, [(Seq(6), message(who, u64::MAX - 6)), (Seq(8), message(who, u64::MAX - 8))]);

        store.commit(&[Write::Sweep { now_ms: 1_199 }]).await.unwrap();
        assert_eq!(store.kept(who).await.unwrap().entries, [last]);
        store.close().await;
        assert!(store.commit(&[Write::Remove(Seq(200))]).await.is_err(), "a closed store promises nothing");
    }
}
