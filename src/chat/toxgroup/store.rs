//! What a hub remembers, in SQLite: groups with their keys, numbers, members, records, invitations, and the last texts.
//!
//! The promise: when [`Store::commit`] returns `Ok`, everything in it is on the disk (WAL, `synchronous = FULL`), and only then
//! are packets sent that follow from it. A counter that was promised is never promised again, so that no number is used twice
//! with one key. Secrets are in the file as they are: nobody but the owner of the process may read it.
//!
//! A row that is not what can have been written is skipped and named in the log; the others are served.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Decode, Row as _, Sqlite, Transaction, Type};
use tracing::error;

use super::state::{Grave, HISTORY_MAX, KEPT_MAX, Kept, Line, Save, Ticket};
use super::wire::{ClientId, GroupId, Kind, Record};
use crate::crypto::Secret;
use crate::files;

/// The file in the data directory.
pub const FILE: &str = "toxgroup.sqlite";
const BUSY: Duration = Duration::from_secs(10);

/// Why the store could not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The engine failed.
    #[error("the Tox group store failed: {0}")]
    Engine(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("the Tox group store cannot be opened: {0}")]
    Schema(#[from] sqlx::migrate::MigrateError),
}

/// A group, as it is made.
#[derive(Debug, Clone)]
pub struct Founded {
    /// Which.
    pub id: GroupId,
    /// With signatures, or as it was in 2013.
    pub signed: bool,
    /// How it was called first.
    pub name: String,
    /// The hub's key.
    pub secret: Secret<32>,
    /// What the hub signs with.
    pub seed: Option<Secret<32>>,
    /// Of a classic group: whether only the hub's topic counts.
    pub topic_lock: bool,
}

/// A member that speaks for a thin user.
#[derive(Debug, Clone)]
pub struct Virtual {
    /// Whose.
    pub user: String,
    /// Its key.
    pub secret: Secret<32>,
    /// What it signs with.
    pub seed: Option<Secret<32>>,
    /// How it is called.
    pub name: String,
    /// Whether it acts with the hub's right.
    pub operator: bool,
    /// Up to which number it may have counted.
    pub bound: u32,
}

/// A group, as it was kept.
#[derive(Debug)]
pub struct Stored {
    /// How it was made.
    pub founded: Founded,
    /// Up to which number the hub may have counted.
    pub bound: u32,
    /// What its engine knew.
    pub kept: Kept,
    /// Who is in it without a socket.
    pub virtuals: Vec<Virtual>,
}

/// What is to be kept.
#[derive(Debug, Clone)]
pub enum Write {
    /// A group is made.
    Group(Founded),
    /// It is over: nothing of it is kept.
    GroupGone(GroupId),
    /// A thin user is known from now on, by the hash of their secret.
    User(String, [u8; 32]),
    /// They are in a group, or called differently there.
    Virtual(GroupId, Virtual),
    /// They are not; the member that spoke for them is never used again.
    VirtualGone(GroupId, String, ClientId),
    /// What an engine wants.
    Save(GroupId, Save),
}

/// Everything that is kept.
#[derive(Debug, Clone)]
pub struct Store {
    pool: SqlitePool,
}

impl Store {
    /// Opens what is there, making it if there is nothing.
    ///
    /// # Errors
    /// [`StoreError`] says why not.
    pub async fn open(data_dir: &Path) -> Result<Self, StoreError> {
        files::make_private_dir(data_dir).map_err(sqlx::Error::from)?;
        let file = data_dir.join(FILE);
        files::make_private(&file).map_err(sqlx::Error::from)?;
        let options = SqliteConnectOptions::new()
            .filename(file)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY);
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
        sqlx::migrate!("src/chat/toxgroup/migrations").run(&pool).await?;
        Ok(Self { pool })
    }

    /// Keeps all of it or nothing.
    ///
    /// # Errors
    /// [`StoreError`] when nothing is kept.
    pub async fn commit(&self, writes: &[Write], now_ms: u64) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        for it in writes {
            write(&mut tx, it, now_ms).await?;
        }
        Ok(tx.commit().await?)
    }

    /// All groups.
    ///
    /// # Errors
    /// [`StoreError`] when the engine fails.
    pub async fn groups(&self, now_ms: u64) -> Result<Vec<Stored>, StoreError> {
        let rows =
            sqlx::query("SELECT id, mode, name, secret, seed, topic, topic_lock FROM groups ORDER BY created_ms, id");
        let mut out = Vec::new();
        for row in rows.fetch_all(&self.pool).await? {
            let Some((founded, topic)) = sound("groups", group_of(&row)) else { continue };
            out.push(self.stored(founded, topic, now_ms).await?);
        }
        Ok(out)
    }

    /// All thin users, with the hashes of their secrets.
    ///
    /// # Errors
    /// [`StoreError`] when the engine fails.
    pub async fn users(&self) -> Result<HashMap<String, [u8; 32]>, StoreError> {
        let rows = sqlx::query("SELECT name, hash FROM users").fetch_all(&self.pool).await?;
        let user = |row: &SqliteRow| sound("users", (|| Some((get(row, 0)?, array(row, 1)?)))());
        Ok(rows.iter().filter_map(user).collect())
    }

    /// Closes it.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    async fn rows(&self, sql: &'static str, group: &GroupId) -> Result<Vec<SqliteRow>, StoreError> {
        Ok(sqlx::query(sql).bind(group.0.to_vec()).fetch_all(&self.pool).await?)
    }

    async fn bound(&self, secret: &Secret<32>) -> Result<u32, StoreError> {
        let client = crate::crypto::boxes::public(secret).to_vec();
        let row = sqlx::query("SELECT bound FROM counters WHERE client = ?").bind(client);
        Ok(row.fetch_optional(&self.pool).await?.and_then(|row| sound("counters", narrow(&row, 0))).unwrap_or(0))
    }

    async fn stored(&self, founded: Founded, topic: Vec<u8>, now_ms: u64) -> Result<Stored, StoreError> {
        let id = &founded.id;
        let sql = "SELECT client, name, address FROM members WHERE grp = ? ORDER BY seen_ms DESC";
        let members = self.rows(sql, id).await?;
        let members = members.iter().take(KEPT_MAX).filter_map(|row| {
            sound(
                "members",
                (|| {
                    let address = get::<Option<String>>(row, 2)?.and_then(|address| address.parse().ok());
                    Some((ClientId(array(row, 0)?), get(row, 1)?, address))
                })(),
            )
        });
        let records = self.rows("SELECT kind, bytes FROM records WHERE grp = ?", id).await?;
        let records = records.iter().filter_map(|row| {
            sound("records", (|| Record::decode(Kind::from_byte(narrow(row, 0)?)?, &get::<Vec<u8>>(row, 1)?).ok())())
        });
        let bans = self.rows("SELECT client FROM bans WHERE grp = ? ORDER BY at_ms", id).await?;
        let bans = bans.iter().filter_map(|row| sound("bans", array(row, 0).map(ClientId)));
        let tombstones = self.rows("SELECT client, until_ms, dead_until_ms FROM tombstones WHERE grp = ?", id).await?;
        let tombstones = tombstones
            .iter()
            .filter_map(|row| {
                let read = || {
                    Some(Grave {
                        id: ClientId(array(row, 0)?),
                        until_ms: number(row, 1)?,
                        dead_until_ms: number(row, 2)?,
                    })
                };
                sound("tombstones", read())
            })
            .filter(|grave| grave.until_ms > now_ms);
        let tokens = self.rows("SELECT id, hash, expires_s, uses FROM tokens WHERE grp = ?", id).await?;
        let tokens = tokens.iter().filter_map(|row| {
            sound(
                "tokens",
                (|| {
                    Some(Ticket {
                        id: array(row, 0)?,
                        hash: array(row, 1)?,
                        expires_s: number(row, 2)?,
                        uses: narrow(row, 3)?,
                    })
                })(),
            )
        });
        let lines =
            self.rows("SELECT at_ms, client, name, text, action FROM lines WHERE grp = ? ORDER BY seq", id).await?;
        let history = lines.iter().filter_map(|row| {
            sound(
                "lines",
                (|| {
                    Some(Line {
                        at_ms: number(row, 0)?,
                        by: ClientId(array(row, 1)?),
                        name: get(row, 2)?,
                        text: get(row, 3)?,
                        action: number(row, 4)? != 0,
                    })
                })(),
            )
        });
        let kept = Kept {
            members: members.collect(),
            records: records.collect(),
            bans: bans.collect(),
            tombstones: tombstones.collect(),
            tokens: tokens.collect(),
            topic,
            history: history.collect(),
        };
        let sql = "SELECT user, secret, seed, name, operator FROM virtuals WHERE grp = ? ORDER BY user";
        let mut virtuals = Vec::new();
        for row in self.rows(sql, id).await? {
            let read = || {
                let (user, secret, seed) = (get(&row, 0)?, Secret::new(array(&row, 1)?), seed_of(&row, 2)?);
                Some(Virtual { user, secret, seed, name: get(&row, 3)?, operator: number(&row, 4)? != 0, bound: 0 })
            };
            if let Some(mut it) = sound("virtuals", read()) {
                it.bound = self.bound(&it.secret).await?;
                virtuals.push(it);
            }
        }
        Ok(Stored { bound: self.bound(&founded.secret).await?, founded, kept, virtuals })
    }
}

/// What belongs to a group, beside itself. The counters of keys that are never used again are of no use to anybody.
const OF_GROUP: [&str; 7] = [
    "DELETE FROM members WHERE grp = ?",
    "DELETE FROM records WHERE grp = ?",
    "DELETE FROM bans WHERE grp = ?",
    "DELETE FROM tombstones WHERE grp = ?",
    "DELETE FROM tokens WHERE grp = ?",
    "DELETE FROM lines WHERE grp = ?",
    "DELETE FROM virtuals WHERE grp = ?",
];

type Tx = Transaction<'static, Sqlite>;

async fn write(tx: &mut Tx, write: &Write, now_ms: u64) -> Result<(), sqlx::Error> {
    let now_ms = now_ms.cast_signed();
    let query = match write {
        Write::Group(it) => sqlx::query(
            "INSERT INTO groups (id, mode, name, secret, seed, topic, topic_lock, created_ms) VALUES (?, ?, ?, ?, ?, X'', ?, ?)",
        )
        .bind(it.id.0.to_vec())
        .bind(i64::from(it.signed))
        .bind(it.name.clone())
        .bind(it.secret.expose().to_vec())
        .bind(it.seed.as_ref().map(|seed| seed.expose().to_vec()))
        .bind(i64::from(it.topic_lock))
        .bind(now_ms),
        Write::GroupGone(group) => {
            let group = group.0.to_vec();
            for sql in OF_GROUP {
                sqlx::query(sql).bind(group.clone()).execute(&mut **tx).await?;
            }
            sqlx::query("DELETE FROM groups WHERE id = ?").bind(group)
        }
        Write::User(name, hash) => {
            sqlx::query("INSERT INTO users (name, hash) VALUES (?, ?)").bind(name.clone()).bind(hash.to_vec())
        }
        Write::Virtual(group, it) => sqlx::query(
            "INSERT INTO virtuals (user, grp, secret, seed, name, operator) VALUES (?, ?, ?, ?, ?, ?) \
             ON CONFLICT DO UPDATE SET secret = excluded.secret, seed = excluded.seed, name = excluded.name",
        )
        .bind(it.user.clone())
        .bind(group.0.to_vec())
        .bind(it.secret.expose().to_vec())
        .bind(it.seed.as_ref().map(|seed| seed.expose().to_vec()))
        .bind(it.name.clone())
        .bind(i64::from(it.operator)),
        Write::VirtualGone(group, user, member) => {
            let sql = "DELETE FROM counters WHERE client = ?";
            sqlx::query(sql).bind(member.0.to_vec()).execute(&mut **tx).await?;
            sqlx::query("DELETE FROM virtuals WHERE grp = ? AND user = ?").bind(group.0.to_vec()).bind(user.clone())
        }
        Write::Save(group, save) => return write_save(tx, group.0.to_vec(), save, now_ms).await,
    };
    query.execute(&mut **tx).await.map(drop)
}

async fn write_save(tx: &mut Tx, group: Vec<u8>, save: &Save, now_ms: i64) -> Result<(), sqlx::Error> {
    let query = match save {
        Save::Counter(client, bound) => sqlx::query(
            "INSERT INTO counters (client, bound) VALUES (?, ?) ON CONFLICT DO UPDATE SET bound = excluded.bound",
        )
        .bind(client.0.to_vec())
        .bind(i64::from(*bound)),
        Save::Member(client, name, address) => {
            let sql = "INSERT INTO members (grp, client, name, address, seen_ms) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE \
                       SET name = excluded.name, address = COALESCE(excluded.address, address), seen_ms = excluded.seen_ms";
            sqlx::query(sql)
                .bind(group.clone())
                .bind(client.0.to_vec())
                .bind(name.clone())
                .bind(address.map(|address| address.to_string()))
                .bind(now_ms)
                .execute(&mut **tx)
                .await?;
            // Who was here last; the others would not be looked for any more.
            let sql = "DELETE FROM members WHERE grp = ?1 AND seen_ms < \
                       (SELECT seen_ms FROM members WHERE grp = ?1 ORDER BY seen_ms DESC LIMIT 1 OFFSET ?2)";
            sqlx::query(sql).bind(group).bind(i64::try_from(KEPT_MAX).unwrap_or(i64::MAX))
        }
        Save::Forget(client) => {
            sqlx::query("DELETE FROM members WHERE grp = ? AND client = ?").bind(group).bind(client.0.to_vec())
        }
        Save::Record(record) => sqlx::query(
            "INSERT INTO records (grp, kind, key, bytes) VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET bytes = excluded.bytes",
        )
        .bind(group)
        .bind(i64::from(record.kind() as u8))
        .bind(key_of(record))
        .bind(record.encode()),
        Save::RecordGone(record) => sqlx::query("DELETE FROM records WHERE grp = ? AND kind = ? AND key = ? AND bytes = ?")
            .bind(group)
            .bind(i64::from(record.kind() as u8))
            .bind(key_of(record))
            // A newer one about the same stays.
            .bind(record.encode()),
        Save::Ban(client) => {
            // The list is bounded, and so are the rows.
            let sql = "INSERT OR REPLACE INTO bans (grp, client, at_ms) VALUES (?, ?, ?)";
            sqlx::query(sql).bind(group.clone()).bind(client.0.to_vec()).bind(now_ms).execute(&mut **tx).await?;
            let sql = "DELETE FROM bans WHERE grp = ?1 AND client NOT IN \
                       (SELECT client FROM bans WHERE grp = ?1 ORDER BY at_ms DESC LIMIT ?2)";
            sqlx::query(sql).bind(group).bind(i64::try_from(KEPT_MAX).unwrap_or(i64::MAX))
        }
        Save::Tombstone(Grave { id, until_ms, dead_until_ms }) => {
            sqlx::query("DELETE FROM tombstones WHERE until_ms <= ?").bind(now_ms).execute(&mut **tx).await?;
            sqlx::query("INSERT OR REPLACE INTO tombstones (grp, client, until_ms, dead_until_ms) VALUES (?, ?, ?, ?)")
                .bind(group)
                .bind(id.0.to_vec())
                .bind(until_ms.cast_signed())
                .bind(dead_until_ms.cast_signed())
        }
        Save::Token(it) => sqlx::query("INSERT OR REPLACE INTO tokens (grp, id, hash, expires_s, uses) VALUES (?, ?, ?, ?, ?)")
            .bind(group)
            .bind(it.id.to_vec())
            .bind(it.hash.to_vec())
            .bind(it.expires_s.cast_signed())
            .bind(i64::from(it.uses)),
        Save::TokenGone(id) => sqlx::query("DELETE FROM tokens WHERE grp = ? AND id = ?").bind(group).bind(id.to_vec()),
        Save::Topic(topic) => sqlx::query("UPDATE groups SET topic = ? WHERE id = ?").bind(topic.clone()).bind(group),
        Save::Line(it) => {
            let sql = "INSERT INTO lines (grp, at_ms, client, name, text, action) VALUES (?, ?, ?, ?, ?, ?)";
            sqlx::query(sql)
                .bind(group.clone())
                .bind(it.at_ms.cast_signed())
                .bind(it.by.0.to_vec())
                .bind(it.name.clone())
                .bind(it.text.clone())
                .bind(i64::from(it.action))
                .execute(&mut **tx)
                .await?;
            let sql = "DELETE FROM lines WHERE grp = ?1 AND seq <= \
                       (SELECT seq FROM lines WHERE grp = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2)";
            sqlx::query(sql).bind(group).bind(i64::try_from(HISTORY_MAX).unwrap_or(i64::MAX))
        }
    };
    query.execute(&mut **tx).await.map(drop)
}

/// What a record is about: of each, one is kept.
fn key_of(record: &Record) -> Vec<u8> {
    match record {
        Record::Cert(cert) => cert.client.0.to_vec(),
        Record::Sanction(it) => [it.target.0, it.issuer.0].concat(),
        Record::State(_) | Record::Topic(_) => Vec::new(),
    }
}

fn group_of(row: &SqliteRow) -> Option<(Founded, Vec<u8>)> {
    let (id, signed) = (GroupId(array(row, 0)?), number(row, 1)? == 1);
    let (name, secret, seed) = (get(row, 2)?, Secret::new(array(row, 3)?), seed_of(row, 4)?);
    let topic_lock = number(row, 6)? != 0;
    Some((Founded { id, signed, name, secret, seed, topic_lock }, get(row, 5)?))
}

fn seed_of(row: &SqliteRow, at: usize) -> Option<Option<Secret<32>>> {
    match get::<Option<Vec<u8>>>(row, at)? {
        None => Some(None),
        Some(bytes) => Some(Some(Secret::new(bytes.try_into().ok()?))),
    }
}

/// Names a row that cannot be read; never what is in it.
fn sound<T>(table: &'static str, read: Option<T>) -> Option<T> {
    if read.is_none() {
        error!(table, "a damaged row in the Tox group store is left out");
    }
    read
}

fn get<'r, T: Decode<'r, Sqlite> + Type<Sqlite>>(row: &'r SqliteRow, at: usize) -> Option<T> {
    row.try_get(at).ok()
}

fn array<const N: usize>(row: &SqliteRow, at: usize) -> Option<[u8; N]> {
    get::<Vec<u8>>(row, at)?.try_into().ok()
}

fn number(row: &SqliteRow, at: usize) -> Option<u64> {
    get::<i64>(row, at).map(i64::cast_unsigned)
}

fn narrow<T: TryFrom<i64>>(row: &SqliteRow, at: usize) -> Option<T> {
    T::try_from(get::<i64>(row, at)?).ok()
}
