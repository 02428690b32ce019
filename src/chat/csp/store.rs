//! What the chat server remembers: the directory, queues, device cookies, push tokens.
//!
//! The promise: when [`Store::commit`] returns `Ok`, all of its writes are on the disk and survive a crash of the
//! process, of the machine and a power cut, as far as the disk does what it is told (WAL, `synchronous = FULL`). When it returns
//! an error, nobody has been told that anything was kept. One commit takes the writes of many connections: one sync
//! answers them all.
//!
//! A row that cannot be what was written there (the disk changed it, or somebody's hand) is the trouble of the one it
//! belongs to. It is skipped, named in the log, never by its contents, and left where it is for the operator to look
//! at; everything else is served as if it were not there. Only a failure of the engine is everybody's.
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
use sqlx::{Decode, QueryBuilder, Row as _, Sqlite, Transaction, Type};
use tracing::error;

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
    /// The one row that was asked for is not what can have been written.
    #[error(transparent)]
    Damaged(#[from] Damaged),
}

/// A row is not what can have been written: this column says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("damaged row in the CSP store: {0}")]
pub struct Damaged(&'static str);

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
        Ok(row.as_ref().map(Self::entry).transpose()?)
    }

    /// Everybody, by name, but for those whose row is damaged.
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
        // Whose row it is may be the very thing that is damaged: whatever is there instead is no name, so the place is told.
        let entries =
            rows.iter().zip(1..).map(|(row, nth)| sound(Self::entry(row), format_args!("directory, entry {nth}")));
        Ok(entries.flatten().collect())
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
                // It is one of those that were asked for.
                active.extend(identity(&row, "identity"));
            }
        }
        Ok(active)
    }

    /// Closes the file. Whatever else uses it fails from now on.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    fn entry(row: &SqliteRow) -> Result<DirectoryEntry, Damaged> {
        let public_key: &[u8] = column(row, "public_key")?;
        let state = match column(row, "state")? {
            "active" => DirectoryState::Active,
            "revoked" => DirectoryState::Revoked,
            _ => return Err(Damaged("state")),
        };
        Ok(DirectoryEntry {
            identity: identity(row, "identity")?,
            public_key: public_key.try_into().map_err(|_| Damaged("public_key"))?,
            server_group: column(row, "server_group")?,
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

    /// What wakes a mailbox, but for damaged rows. A damaged cookie is none: the next login leaves a new one.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn kept(&self, who: Identity) -> Result<Kept, StoreError> {
        let queue = sqlx::query(
            "SELECT seq, sender, message_id, flags, len, expires_ms FROM queue WHERE receiver = $1 ORDER BY seq",
        )
        .bind(who.as_str())
        .fetch_all(self.pool())
        .await?;
        let cookie = sqlx::query("SELECT cookie, changed FROM device_cookie WHERE identity = $1")
            .bind(who.as_str())
            .fetch_optional(self.pool())
            .await?;
        let tokens = sqlx::query(
            "SELECT device, voip, kind, token \
             FROM push_token \
             WHERE identity = $1 ORDER BY device, voip",
        )
        .bind(who.as_str())
        .fetch_all(self.pool())
        .await?;
        let id = who.log_id();
        let (a_message, a_cookie, a_token) =
            (format_args!("queue of {id}"), format_args!("device cookie of {id}"), format_args!("push token of {id}"));
        Ok(Kept {
            entries: queue.iter().filter_map(|row| sound(Self::queued(row), a_message)).collect(),
            cookie: cookie.and_then(|row| sound(Self::cookie(&row), a_cookie)),
            tokens: tokens.iter().filter_map(|row| sound(Self::token(row), a_token)).collect(),
        })
    }

    fn queued(row: &SqliteRow) -> Result<KeptEntry, Damaged> {
        Ok(KeptEntry {
            seq: Seq(unsigned(row, "seq")?),
            sender: identity(row, "sender")?,
            id: MessageId(unsigned(row, "message_id")?),
            len: number(row, "len")?,
            flags: MessageFlags(number(row, "flags")?),
            expires_ms: unsigned(row, "expires_ms")?,
        })
    }

    fn cookie(row: &SqliteRow) -> Result<(DeviceCookie, bool), Damaged> {
        let cookie = <[u8; 16]>::try_from(column::<&[u8]>(row, "cookie")?).map_err(|_| Damaged("cookie"))?;
        Ok((DeviceCookie(cookie), column::<i64>(row, "changed")? != 0))
    }

    fn token(row: &SqliteRow) -> Result<KeptToken, Damaged> {
        let token = PushToken { kind: number(row, "kind")?, token: Bytes::from(column::<Vec<u8>>(row, "token")?) };
        Ok(KeptToken { device: device_of(column(row, "device")?)?, voip: column::<i64>(row, "voip")? != 0, token })
    }

    /// Queued messages, in order; those that are not there any more are left out, and nothing stands in for those that
    /// are there and damaged.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn messages(&self, seqs: &[Seq]) -> Result<Vec<(Seq, Option<Message>)>, StoreError> {
        let mut messages = Vec::with_capacity(seqs.len());
        for some in seqs.chunks(ROWS_MAX) {
            let mut query = QueryBuilder::<Sqlite>::new("SELECT seq, message FROM queue WHERE seq IN (");
            let mut list = query.separated(", ");
            for seq in some {
                list.push_bind(seq.0.cast_signed());
            }
            query.push(") ORDER BY seq");
            for row in query.build().fetch_all(self.pool()).await? {
                // It is one of those that were asked for.
                let Ok(seq) = unsigned(&row, "seq") else { continue };
                messages.push((Seq(seq), sound(Self::message(&row), format_args!("queued message {seq}"))));
            }
        }
        Ok(messages)
    }

    fn message(row: &SqliteRow) -> Result<Message, Damaged> {
        Message::decode(&column::<Vec<u8>>(row, "message")?.into()).map_err(|_| Damaged("message"))
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

fn device_of(text: &str) -> Result<Option<CspDeviceId>, Damaged> {
    if text.is_empty() {
        return Ok(None);
    }
    u64::from_str_radix(text, 16).map(|id| Some(CspDeviceId(id))).map_err(|_| Damaged("device"))
}

fn identity(row: &SqliteRow, name: &'static str) -> Result<Identity, Damaged> {
    column::<&str>(row, name)?.parse().map_err(|_| Damaged(name))
}

fn unsigned(row: &SqliteRow, name: &'static str) -> Result<u64, Damaged> {
    Ok(column::<i64>(row, name)?.cast_unsigned())
}

fn number<T: TryFrom<i64>>(row: &SqliteRow, name: &'static str) -> Result<T, Damaged> {
    T::try_from(column::<i64>(row, name)?).map_err(|_| Damaged(name))
}

/// The row is here, so what fails now is not the engine: the column holds something of another type.
fn column<'r, T: Decode<'r, Sqlite> + Type<Sqlite>>(row: &'r SqliteRow, name: &'static str) -> Result<T, Damaged> {
    row.try_get(name).map_err(|_| Damaged(name))
}

/// What was read, or nothing: then the operator is told `what` it would have been.
fn sound<T>(read: Result<T, Damaged>, what: std::fmt::Arguments<'_>) -> Option<T> {
    read.inspect_err(|damaged| error!(%what, %damaged, "skipped")).ok()
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
        assert_eq!(found, [6, 8].map(|n| (Seq(n), Some(message(who, u64::MAX - n)))));

        store.commit(&[Write::Sweep { now_ms: 1_199 }]).await.unwrap();
        assert_eq!(store.kept(who).await.unwrap().entries, [last]);
        store.close().await;
        assert!(store.commit(&[Write::Remove(Seq(200))]).await.is_err(), "a closed store promises nothing");
    }

    /// Every way a row of a receiver's can be spoilt costs this row, and no other.
    #[tokio::test]
    async fn a_damaged_row_is_skipped_and_left_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let who: Identity = "BBBBBBBB".parse().unwrap();
        let enqueue = |seq| Write::Enqueue { seq: Seq(seq), message: message(who, seq), expires_ms: 1_000 };
        let token = PushToken { kind: 0x11, token: Bytes::from_static(b"t") };
        let set = |n| Write::PushToken {
            identity: who,
            device: Some(CspDeviceId(n)),
            voip: false,
            token: Some(token.clone()),
        };
        let cookie = Write::Cookie { identity: who, cookie: DeviceCookie([9; 16]), changed: true };
        store.commit(&[enqueue(1), enqueue(2), enqueue(3), set(1), set(2), cookie]).await.unwrap();
        let spoil = async |sql: &'static str| {
            assert_eq!(sqlx::query(sql).execute(store.pool()).await.unwrap().rows_affected(), 1, "{sql}");
        };

        spoil("UPDATE push_token SET device = 'kitchen' WHERE device = '0000000000000001'").await;
        spoil("UPDATE device_cookie SET cookie = x'00'").await;
        for sender in
            ["UPDATE queue SET sender = 'nobody' WHERE seq = 1", "UPDATE queue SET sender = x'ff' WHERE seq = 1"]
        {
            spoil(sender).await;
            let kept = store.kept(who).await.unwrap();
            assert_eq!(kept.entries.iter().map(|entry| entry.seq.0).collect::<Vec<_>>(), [2, 3]);
            assert_eq!(kept.tokens.iter().map(|token| token.device).collect::<Vec<_>>(), [Some(CspDeviceId(2))]);
            assert_eq!(kept.cookie, None);
        }
        spoil("UPDATE queue SET flags = 256 WHERE seq = 2").await;
        assert_eq!(store.kept(who).await.unwrap().entries.len(), 1);

        for sql in ["UPDATE queue SET message = x'00' WHERE seq = 2", "UPDATE queue SET message = 'text' WHERE seq = 2"]
        {
            spoil(sql).await;
            let found = store.messages(&[Seq(2), Seq(3), Seq(4)]).await.unwrap();
            assert_eq!(found, [(Seq(2), None), (Seq(3), Some(message(who, 3)))]);
        }
        let rows = sqlx::query("SELECT 1 FROM queue").fetch_all(store.pool()).await.unwrap();
        assert_eq!(rows.len(), 3, "nothing is thrown away");
        store.close().await;
    }

    #[tokio::test]
    async fn a_damaged_identity_hides_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(dir.path()).await.unwrap();
        let public = boxes::public(&crate::crypto::Secret::random());
        let [a, b, c] = ["AAAAAAAA", "BBBBBBBB", "CCCCCCCC"].map(|name| name.parse::<Identity>().unwrap());
        for identity in [a, b, c] {
            directory.add(identity, &public, "a0").await.unwrap();
        }
        for sql in [
            "UPDATE directory SET public_key = x'00' WHERE identity = 'BBBBBBBB'",
            "UPDATE directory SET public_key = 7, server_group = x'ff' WHERE identity = 'BBBBBBBB'",
        ] {
            sqlx::query(sql).execute(&directory.pool).await.unwrap();
            let names: Vec<Identity> = directory.list().await.unwrap().iter().map(|entry| entry.identity).collect();
            assert_eq!(names, [a, c]);
            assert!(matches!(directory.lookup(b).await, Err(StoreError::Damaged(_))), "damaged is not unknown");
            assert!(directory.lookup(a).await.unwrap().is_some());
        }
        sqlx::query("UPDATE directory SET identity = 'nobody' WHERE identity = 'BBBBBBBB'")
            .execute(&directory.pool)
            .await
            .unwrap();
        assert_eq!(directory.list().await.unwrap().len(), 2);
        directory.close().await;
    }
}
