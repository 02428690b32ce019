//! What the chat server remembers, in SQLite or PostgreSQL: one text of each query for both.
//!
//! The promise: when [`Work::commit`] returns `Ok`, everything written through that [`Work`] is on the disk (SQLite: WAL,
//! `synchronous = FULL`; PostgreSQL: as it is configured there); when it does not, nothing is. Nobody is told of anything
//! before.
//!
//! Queries go through sqlx's run-time driver. *Rejected*: code generic over the engine, whose bounds would stand before every
//! function and which would keep two texts of each query all the same. The price is that both engines may be used only in
//! what they share: numbers are BIGINT, placeholders `$1`.
//!
//! Who decides has a connection of its own, so it never stands in line with those who catch up, however many they are; these share
//! a few. One process at a time serves a database: two would give numbers to messages that the other does not know of. A lock on the
//! data directory sees to it, and with PostgreSQL an advisory lock that the connection which writes has from its beginning to its end.
//!
//! A password update carries what opens the account, and the owner's devices need it, so it is kept, but sealed with a key that
//! lies beside the database and not in it (spec 7.16). The database knows what that key says of itself, so that another one is found out
//! when the server starts, and not by whoever asks for something that is sealed.

mod accounts;
mod channels;
pub mod disk;
mod messages;
mod uploads;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::any::{Any, AnyPoolOptions, AnyRow};
use sqlx::{
    AnyConnection, AnyPool, AssertSqlSafe, Connection as _, Decode, Executor as _, Row as _, SqlSafeStr as _,
    Transaction, Type,
};

use crate::crypto::{Secret, kdf};
use crate::files;

pub use accounts::{Named, Role, StoredSession};
pub use channels::{Channel, Member};
pub use messages::{Audience, Draft, Fact, Listed, Stored};
pub use uploads::{FileState, StoredFile, Used};

/// The file in the data directory, for SQLite.
pub const FILE: &str = "skynet.sqlite";
/// The file in the data directory that holds the key for what is sealed at rest: 64 hexadecimal digits.
pub const KEY_FILE: &str = "skynet-rest.key";
/// Parameters of one statement, at most: well below what either engine takes.
const PARAMETERS_MAX: usize = 400;
/// The file in the data directory that is locked while a process serves what is there.
const LOCK_FILE: &str = "skynet.lock";
/// Connections to the database for those who catch up.
const READERS_MAX: u32 = 5;
/// How long one of these may wait for its turn, when thousands come back at once.
const TURN_WITHIN: Duration = Duration::from_secs(600);
/// How long another process may take to be gone: it was killed, and PostgreSQL has not noticed yet.
const GONE_WITHIN: Duration = Duration::from_secs(5);
/// How often it is looked for meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The number is only ours in a database of ours.
const ADVISORY_LOCK: &str = "SELECT pg_try_advisory_lock(5327610327617)";

/// Why the store could not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The engine failed.
    #[error("the Skynet store failed: {0}")]
    Engine(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("the Skynet store cannot be opened: {0}")]
    Schema(#[from] sqlx::migrate::MigrateError),
    /// The key beside the database cannot be read or made.
    #[error("cannot use {KEY_FILE}: {0}")]
    Key(std::io::Error),
    /// The key beside the database is another one.
    #[error("{KEY_FILE} is not the key that the database was sealed with")]
    OtherKey,
    /// Another process serves the same.
    #[error("another process serves this Skynet database, or this data directory")]
    Taken,
    /// The directory of the files beside the messages cannot be read or changed.
    #[error("the files beside the messages: {0}")]
    Files(std::io::Error),
    /// A row is not what can have been written: this says what.
    #[error("damaged row in the Skynet store: {0}")]
    Damaged(&'static str),
}

/// Where the database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A file in the data directory.
    Sqlite,
    /// A PostgreSQL server, by its URL.
    Postgres(String),
}

/// Everything that is kept.
#[derive(Debug, Clone)]
pub struct Store {
    /// Of one connection.
    writer: AnyPool,
    readers: AnyPool,
    /// Locked until it is closed.
    lock: Arc<files::Held>,
    begin: &'static str,
    read: &'static str,
    key: Secret<32>,
}

impl Store {
    /// Opens what is there, making it if there is nothing. `data_dir` holds the key, and the database if it is a file.
    ///
    /// # Errors
    /// [`StoreError`] says why not.
    pub async fn open(place: &Place, data_dir: &Path) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        files::make_private_dir(data_dir).map_err(StoreError::Key)?;
        let held = files::hold(&data_dir.join(LOCK_FILE)).map_err(StoreError::Key)?;
        let lock = Arc::new(held.ok_or(StoreError::Taken)?);
        // Readers do not wait for who writes, and whoever writes does so from the start: no deadlock half way.
        let (mut begin, mut read) = ("BEGIN IMMEDIATE", "BEGIN");
        let options = || AnyPoolOptions::new().after_connect(|connection, _| Box::pin(prepare(connection)));
        let (url, writer, readers, migrator) = match place {
            Place::Sqlite => {
                let file = data_dir.join(FILE);
                files::make_private(&file).map_err(sqlx::Error::from)?;
                let url = format!("sqlite://{}", file.display());
                (url, options(), options(), sqlx::migrate!("src/chat/skynet/store/migrations/sqlite"))
            }
            Place::Postgres(url) => {
                // What is read by several queries is of one moment, as it is with the other engine: no message without
                // the dependencies that it had.
                (begin, read) = ("BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
                // A pool would say that it timed out.
                let mut first = AnyConnection::connect(url).await?;
                if !is_alone(&mut first).await? {
                    return Err(StoreError::Taken);
                }
                first.close().await?;
                let writer = AnyPoolOptions::new().after_connect(|connection, _| Box::pin(alone(connection)));
                let migrator = sqlx::migrate!("src/chat/skynet/store/migrations/postgres");
                (url.clone(), writer, AnyPoolOptions::new(), migrator)
            }
        };
        let writer = writer.max_connections(1).idle_timeout(None).max_lifetime(None).connect(&url).await?;
        migrator.run(&writer).await?;
        let readers = readers.max_connections(READERS_MAX).acquire_timeout(TURN_WITHIN).connect(&url).await?;
        let known = "SELECT value FROM counter WHERE name = 'key'";
        let known: Option<i64> = sqlx::query_scalar(known).fetch_optional(&writer).await?;
        let key = rest_key(&data_dir.join(KEY_FILE), known.is_none()).map_err(StoreError::Key)?;
        let store = Self { writer, readers, lock, begin, read, key };
        let [a, b, c, d, e, f, g, h, ..] = *store.vouch(b"key").expose();
        let said = i64::from_le_bytes([a, b, c, d, e, f, g, h]);
        match known {
            Some(known) if known == said => {}
            Some(_) => return Err(StoreError::OtherKey),
            None => {
                let mut work = store.begin().await?;
                work.run("INSERT INTO counter (name, value) VALUES ('key', $1)", values![said]).await?;
                work.commit().await?;
            }
        }
        Ok(store)
    }

    /// Begins a piece of work: reads and writes that count all together or not at all.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn begin(&self) -> Result<Work, StoreError> {
        Ok(self.work(self.writer.begin_with(self.begin).await?))
    }

    /// Begins to read, without keeping those who write waiting: everything as it was when the first thing was read.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn read(&self) -> Result<Work, StoreError> {
        Ok(self.work(self.readers.begin_with(self.read).await?))
    }

    fn work(&self, tx: Transaction<'static, Any>) -> Work {
        Work { tx, key: self.key.clone(), let_go: false, marked: false }
    }

    /// Vouches for something, so that it can be given away and recognised when it comes back, also after a restart.
    #[must_use]
    pub fn vouch(&self, for_what: &[u8]) -> Secret<32> {
        kdf::blake2b(self.key.expose(), b"vouch", b"heliostat-skynet", for_what)
    }

    /// Closes it. Whatever else uses it fails from now on.
    pub async fn close(&self) {
        tokio::join!(self.writer.close(), self.readers.close());
        // Somebody may still have a handle. What cannot be given up is when the process ends.
        if let Err(error) = self.lock.give_up() {
            tracing::warn!(%error, "{LOCK_FILE} stays locked");
        }
    }
}

/// See [`Store::begin`]. Dropped without [`Self::commit`], nothing has happened.
#[derive(Debug)]
pub struct Work {
    tx: Transaction<'static, Any>,
    key: Secret<32>,
    /// Whether there are files whose bytes can be removed.
    let_go: bool,
    /// Whether there is a point to go back to.
    marked: bool,
}

impl Work {
    /// From here on everything can be taken back ([`Self::take_back`]), until it is said again.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn mark(&mut self) -> Result<(), StoreError> {
        let sql = if self.marked { "RELEASE SAVEPOINT mark; SAVEPOINT mark" } else { "SAVEPOINT mark" };
        self.tx.execute(sql).await?;
        self.marked = true;
        Ok(())
    }

    /// What was written since [`Self::mark`] was not.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn take_back(&mut self) -> Result<(), StoreError> {
        self.tx.execute("ROLLBACK TO SAVEPOINT mark").await.map(drop).map_err(StoreError::from)
    }

    /// Makes everything count. Says whether that let go of files, whose bytes can be removed now.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails; then nothing does.
    pub async fn commit(self) -> Result<bool, StoreError> {
        self.tx.commit().await?;
        Ok(self.let_go)
    }

    async fn rows(&mut self, sql: impl sqlx::SqlSafeStr, values: Vec<Value>) -> Result<Vec<AnyRow>, StoreError> {
        Ok(bind(sql, values).fetch_all(&mut *self.tx).await?)
    }

    async fn row(&mut self, sql: &'static str, values: Vec<Value>) -> Result<Option<AnyRow>, StoreError> {
        Ok(bind(sql, values).fetch_optional(&mut *self.tx).await?)
    }

    /// How many rows were changed.
    async fn run(&mut self, sql: impl sqlx::SqlSafeStr, values: Vec<Value>) -> Result<u64, StoreError> {
        Ok(bind(sql, values).execute(&mut *self.tx).await?.rows_affected())
    }

    /// Rows for a list of ids, which goes where `{}` stands in `sql`, a piece at a time.
    async fn rows_of(&mut self, sql: &'static str, first: &[i64], ids: &[i64]) -> Result<Vec<AnyRow>, StoreError> {
        let mut rows = Vec::with_capacity(ids.len());
        for some in ids.chunks(PARAMETERS_MAX) {
            let numbers = (first.len() + 1..).take(some.len()).map(|n| format!("${n}")).collect::<Vec<_>>().join(", ");
            // Placeholders only: no value gets into the text.
            let sql = AssertSqlSafe(sql.replacen("{}", &numbers, 1)).into_sql_str();
            rows.extend(self.rows(sql, first.iter().chain(some).copied().map(Value::from).collect()).await?);
        }
        Ok(rows)
    }

    /// Inserts rows of numbers, many with each statement.
    async fn insert_many(&mut self, into: &str, width: usize, rows: &[Vec<i64>]) -> Result<(), StoreError> {
        for some in rows.chunks(PARAMETERS_MAX / width) {
            let tuple = |row: usize| {
                let numbers: Vec<_> = (1..=width).map(|column| format!("${}", row * width + column)).collect();
                format!("({})", numbers.join(", "))
            };
            let tuples = (0..some.len()).map(tuple).collect::<Vec<_>>().join(", ");
            let sql = AssertSqlSafe(format!("INSERT INTO {into} VALUES {tuples}")).into_sql_str();
            self.run(sql, some.iter().flatten().copied().map(Value::from).collect()).await?;
        }
        Ok(())
    }
}

/// What a placeholder stands for.
#[derive(Debug)]
enum Value {
    Number(i64),
    /// A number that is not there.
    Null,
    Text(String),
    Bytes(Vec<u8>),
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number.cast_signed())
    }
}

impl From<u8> for Value {
    fn from(number: u8) -> Self {
        Self::Number(number.into())
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(bytes.to_vec())
    }
}

/// The values of the placeholders, in order.
macro_rules! values {
    ($($value:expr),* $(,)?) => { vec![$(crate::chat::skynet::store::Value::from($value)),*] };
}
use values;

fn bind(sql: impl sqlx::SqlSafeStr, values: Vec<Value>) -> sqlx::query::Query<'static, Any, sqlx::any::AnyArguments> {
    values.into_iter().fold(sqlx::query(sql), |query, value| match value {
        Value::Number(number) => query.bind(number),
        Value::Null => query.bind(None::<i64>),
        Value::Text(text) => query.bind(text),
        Value::Bytes(bytes) => query.bind(bytes),
    })
}

/// The row is here, so what fails now is not the engine: the column holds something of another type.
fn get<'r, T: Decode<'r, Any> + Type<Any>>(row: &'r AnyRow, at: usize) -> Result<T, StoreError> {
    row.try_get(at).map_err(|_| StoreError::Damaged("type of a column"))
}

fn narrow<T: TryFrom<i64>>(row: &AnyRow, at: usize) -> Result<T, StoreError> {
    T::try_from(get::<i64>(row, at)?).map_err(|_| StoreError::Damaged("number out of range"))
}

/// A connection to SQLite keeps what it was told to.
async fn prepare(connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
    let pragmas = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 10000";
    connection.execute(pragmas).await.map(drop)
}

/// A connection to PostgreSQL is the only one that writes, for as long as it lives.
async fn alone(connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
    let taken = || sqlx::Error::Protocol(StoreError::Taken.to_string());
    if is_alone(connection).await? { Ok(()) } else { Err(taken()) }
}

async fn is_alone(connection: &mut AnyConnection) -> Result<bool, sqlx::Error> {
    let gets = async {
        while !sqlx::query_scalar::<_, bool>(ADVISORY_LOCK).fetch_one(&mut *connection).await? {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    };
    tokio::time::timeout(GONE_WITHIN, gets).await.map_or(Ok(false), |got: Result<(), sqlx::Error>| got.map(|()| true))
}

/// Reads the key, or makes one, if it may, that nobody but the owner of the process may read.
fn rest_key(path: &Path, may_make: bool) -> std::io::Result<Secret<32>> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let mut key = [0; 32];
            hex::decode_to_slice(text.trim(), &mut key)
                .map_err(|_| std::io::Error::other("it does not hold 64 hexadecimal digits"))?;
            Ok(Secret::new(key))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && may_make => {
            let key = Secret::random();
            files::write_whole(path, &(hex::encode(key.expose()) + "\n"), true)?;
            Ok(key)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn another_key_was_found_out_by_whoever_confirmed_an_address() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join(KEY_FILE);
        let open = async || Store::open(&Place::Sqlite, dir.path()).await;
        let store = open().await.unwrap();
        assert!(matches!(open().await, Err(StoreError::Taken)), "one process at a time");
        store.close().await;
        let first = std::fs::read(&key).unwrap();
        std::fs::write(&key, "00".repeat(32)).unwrap();
        assert!(matches!(open().await, Err(StoreError::OtherKey)));
        std::fs::remove_file(&key).unwrap();
        assert!(matches!(open().await, Err(StoreError::Key(_))));
        assert!(!key.exists(), "no key is made for what another one sealed");
        std::fs::write(&key, first).unwrap();
        open().await.unwrap().close().await;
    }

    #[tokio::test]
    async fn who_decides_does_not_stand_in_line_with_those_who_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&Place::Sqlite, dir.path()).await.unwrap();
        let mut readers = Vec::new();
        for _ in 0..READERS_MAX {
            readers.push(store.read().await.unwrap());
        }
        let another = store.read();
        tokio::pin!(another);
        assert!(futures_util::poll!(&mut another).is_pending());
        store.begin().await.unwrap().commit().await.unwrap();
        readers.pop();
        another.await.unwrap();
        drop(readers);
        store.close().await;
    }

    #[tokio::test]
    async fn what_is_taken_back_was_never_written() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&Place::Sqlite, dir.path()).await.unwrap();
        let mut work = store.begin().await.unwrap();
        for owner in 1..=3 {
            work.mark().await.unwrap();
            work.set_blocked(crate::chat::skynet::wire::AccountId(owner), &[7], &[]).await.unwrap();
            if owner == 2 {
                work.take_back().await.unwrap();
            }
        }
        work.commit().await.unwrap();
        let mut work = store.read().await.unwrap();
        let mut kept = Vec::new();
        for row in work.rows("SELECT owner_id FROM blocked_account ORDER BY owner_id", values![]).await.unwrap() {
            kept.push(get::<i64>(&row, 0).unwrap());
        }
        assert_eq!(kept, [1, 3]);
        drop(work);
        store.close().await;
    }
}
