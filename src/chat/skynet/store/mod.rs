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
//! A password update carries what opens the account, and the owner's devices need it, so it is kept, but sealed with a key that
//! lies beside the database and not in it (spec 7.16).

mod accounts;
mod channels;
pub mod disk;
mod messages;
mod uploads;

use std::path::Path;

use sqlx::any::{Any, AnyPoolOptions, AnyRow};
use sqlx::{AnyPool, AssertSqlSafe, Decode, Executor as _, Row as _, SqlSafeStr as _, Transaction, Type};

use crate::crypto::{Secret, kdf};
use crate::files;

pub use accounts::{Named, Role, StoredSession};
pub use channels::{Channel, Member};
pub use messages::{Audience, Draft, Fact, Stored};
pub use uploads::{FileState, StoredFile, Used};

/// The file in the data directory, for SQLite.
pub const FILE: &str = "skynet.sqlite";
/// The file in the data directory that holds the key for what is sealed at rest: 64 hexadecimal digits.
pub const KEY_FILE: &str = "skynet-rest.key";
/// Parameters of one statement, at most: well below what either engine takes.
const PARAMETERS_MAX: usize = 400;
/// Connections to the database. One decides; the others read for those who catch up.
const CONNECTIONS_MAX: u32 = 6;

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
    pool: AnyPool,
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
        let key = rest_key(&data_dir.join(KEY_FILE)).map_err(StoreError::Key)?;
        let options = AnyPoolOptions::new().max_connections(CONNECTIONS_MAX);
        let (pool, begin, read, migrator) = match place {
            Place::Sqlite => {
                let file = data_dir.join(FILE);
                files::make_private(&file).map_err(sqlx::Error::from)?;
                let pool = options.after_connect(|connection, _| {
                    let pragmas = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 10000";
                    Box::pin(async move { connection.execute(pragmas).await.map(drop) })
                });
                let pool = pool.connect(&format!("sqlite://{}", file.display())).await?;
                // Readers do not wait for it, and whoever writes does so from the start: no deadlock half way.
                (pool, "BEGIN IMMEDIATE", "BEGIN", sqlx::migrate!("src/chat/skynet/store/migrations/sqlite"))
            }
            Place::Postgres(url) => {
                let pool = options.connect(url).await?;
                // What is read by several queries is of one moment, as it is with the other engine: no message without
                // the dependencies that it had.
                let read = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
                (pool, "BEGIN", read, sqlx::migrate!("src/chat/skynet/store/migrations/postgres"))
            }
        };
        migrator.run(&pool).await?;
        Ok(Self { pool, begin, read, key })
    }

    /// Begins a piece of work: reads and writes that count all together or not at all.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn begin(&self) -> Result<Work, StoreError> {
        Ok(Work { tx: self.pool.begin_with(self.begin).await?, key: self.key.clone(), let_go: false })
    }

    /// Begins to read, without keeping those who write waiting: everything as it was when the first thing was read.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn read(&self) -> Result<Work, StoreError> {
        Ok(Work { tx: self.pool.begin_with(self.read).await?, key: self.key.clone(), let_go: false })
    }

    /// Vouches for something, so that it can be given away and recognised when it comes back, also after a restart.
    #[must_use]
    pub fn vouch(&self, for_what: &[u8]) -> Secret<32> {
        kdf::blake2b(self.key.expose(), b"vouch", b"heliostat-skynet", for_what)
    }

    /// Closes it. Whatever else uses it fails from now on.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// See [`Store::begin`]. Dropped without [`Self::commit`], nothing has happened.
#[derive(Debug)]
pub struct Work {
    tx: Transaction<'static, Any>,
    key: Secret<32>,
    /// Whether there are files whose bytes can be removed.
    let_go: bool,
}

impl Work {
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

/// Reads the key, or makes one that nobody but the owner of the process may read.
fn rest_key(path: &Path) -> std::io::Result<Secret<32>> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let mut key = [0; 32];
            hex::decode_to_slice(text.trim(), &mut key)
                .map_err(|_| std::io::Error::other("it does not hold 64 hexadecimal digits"))?;
            Ok(Secret::new(key))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = Secret::random();
            files::write_whole(path, &(hex::encode(key.expose()) + "\n"), true)?;
            Ok(key)
        }
        Err(error) => Err(error),
    }
}
