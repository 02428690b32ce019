//! What rooms that keep their data in a database share: SQLite or PostgreSQL, one text of each query for both.
//!
//! Queries go through sqlx's run-time driver, so both engines may be used only in what they share: numbers are BIGINT,
//! placeholders `$1`, and what is not there is a number or empty. *Rejected*: code generic over the engine, whose bounds would
//! stand before every function and which would keep two texts of each query all the same.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::any::{Any, AnyPoolOptions, AnyRow};
use sqlx::migrate::Migrator;
use sqlx::{
    AnyConnection, AnyPool, AssertSqlSafe, Connection as _, Decode, Executor as _, Row as _, SqlSafeStr, Transaction,
    Type,
};

use crate::files::{self, Held};

/// Parameters of one statement, at most: well below what either engine takes.
const PARAMETERS_MAX: usize = 400;
/// How long another process may take to be gone: it was killed, and PostgreSQL has not noticed yet.
const GONE_WITHIN: Duration = Duration::from_secs(5);
/// How often it is looked for meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Why the database could not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    /// The engine failed.
    #[error("the database failed: {0}")]
    Engine(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("the database cannot be opened: {0}")]
    Schema(#[from] sqlx::migrate::MigrateError),
    /// The file, or the directory it is in, cannot be made.
    #[error("the database's file cannot be made: {0}")]
    File(#[from] std::io::Error),
    /// Another process serves the same.
    #[error("another process serves this database")]
    Taken,
    /// A row is not what can have been written: this says what.
    #[error("damaged row in the database: {0}")]
    Damaged(&'static str),
}

/// Where the database is.
#[derive(Clone, PartialEq, Eq)]
pub enum Place {
    /// A file in the data directory.
    Sqlite,
    /// A PostgreSQL server, by its URL.
    Postgres(String),
}

impl fmt::Debug for Place {
    /// Without the URL: there may be a password in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sqlite => "Sqlite",
            Self::Postgres(_) => "Postgres(..)",
        })
    }
}

/// What a room keeps in its database.
#[derive(Debug)]
pub struct Schema {
    /// Whose it is, for PostgreSQL: a number that nothing else locks in a database of this room.
    pub lock: i64,
    /// For SQLite.
    pub sqlite: Migrator,
    /// For PostgreSQL.
    pub postgres: Migrator,
}

/// An open database, for the one task that decides.
///
/// The promise: when [`Tx::commit`] returns `Ok`, everything written through it is on the disk (SQLite: WAL, `synchronous =
/// FULL`; PostgreSQL: as it is configured there); when it does not, nothing is.
///
/// One process at a time serves it: another one would know nothing of what this one has in memory. A lock on the file beside
/// SQLite's sees to it, and with PostgreSQL an advisory lock that the connection has from its beginning to its end.
#[derive(Debug, Clone)]
pub struct Database {
    /// Of one connection.
    pool: AnyPool,
    begin: &'static str,
    /// Locked until it is closed.
    lock: Arc<Held>,
    /// A transaction failed: the connection is not used for another one. An engine may end a transaction by itself (SQLite, when the
    /// disk is full), which the driver does not see: it fails to roll back what is not there, and never begins another.
    failed: Arc<AtomicBool>,
}

impl Database {
    /// Opens what is there, making it if there is nothing. With SQLite it is `file`.
    ///
    /// # Errors
    /// [`SqlError`] says why not.
    pub async fn open(place: &Place, file: &Path, schema: Schema) -> Result<Self, SqlError> {
        sqlx::any::install_default_drivers();
        if let Some(dir) = file.parent() {
            files::make_private_dir(dir)?;
        }
        let lock = Arc::new(files::hold(&file.with_extension("lock"))?.ok_or(SqlError::Taken)?);
        // It never ends by itself, so nobody else can take its place.
        let options = AnyPoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
        let (pool, begin, migrator) = match place {
            Place::Sqlite => {
                files::make_private(file)?;
                let options = options.after_connect(|connection, _| Box::pin(prepare(connection)));
                let pool = options.connect(&format!("sqlite://{}", file.display())).await?;
                (pool, "BEGIN IMMEDIATE", schema.sqlite)
            }
            Place::Postgres(url) => {
                // A pool would say that it timed out.
                let mut first = AnyConnection::connect(url).await?;
                if !is_alone(&mut first, schema.lock).await? {
                    return Err(SqlError::Taken);
                }
                first.close().await?;
                let options = options.after_connect(move |connection, _| Box::pin(alone(connection, schema.lock)));
                (options.connect(url).await?, "BEGIN", schema.postgres)
            }
        };
        migrator.run(&pool).await?;
        Ok(Self { pool, begin, lock, failed: Arc::default() })
    }

    /// Begins reads and writes that count all together or not at all.
    ///
    /// # Errors
    /// [`SqlError`] when the engine fails.
    pub async fn begin(&self) -> Result<Tx, SqlError> {
        if self.failed.swap(false, Ordering::Relaxed) {
            tracing::warn!("the connection to the database is made anew");
            // In vain when it is broken already: it is not used again.
            let _in_vain = self.pool.acquire().await?.close().await;
        }
        let tx = self.pool.begin_with(self.begin).await?;
        Ok(Tx { tx, watch: Watch { is_sound: true, failed: Arc::clone(&self.failed) } })
    }

    /// Closes it. Whatever else uses it fails from now on.
    pub async fn close(&self) {
        self.pool.close().await;
        // Somebody may still have a handle. What cannot be unlocked is when the process ends.
        if let Err(error) = self.lock.give_up() {
            tracing::warn!(%error, "a database stays locked");
        }
    }
}

/// See [`Database::begin`]. Dropped without [`Self::commit`], nothing has happened.
#[derive(Debug)]
pub struct Tx {
    tx: Transaction<'static, Any>,
    watch: Watch,
}

/// Says when it is dropped whether what failed in a transaction was made good by its commit.
#[derive(Debug)]
struct Watch {
    is_sound: bool,
    failed: Arc<AtomicBool>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.failed.fetch_or(!self.is_sound, Ordering::Relaxed);
    }
}

impl Tx {
    /// What came of it; of what failed is not known in which state it left the connection.
    fn of<T>(&mut self, done: Result<T, sqlx::Error>) -> Result<T, SqlError> {
        self.watch.is_sound &= done.is_ok();
        Ok(done?)
    }

    /// Makes everything count.
    ///
    /// # Errors
    /// [`SqlError`] when the engine fails; then nothing does.
    pub async fn commit(self) -> Result<(), SqlError> {
        let Self { tx, mut watch } = self;
        let committed = tx.commit().await;
        // Whatever failed before was undone: the engine says that the rest counts.
        watch.is_sound = committed.is_ok();
        Ok(committed?)
    }

    /// All rows of a query.
    ///
    /// # Errors
    /// [`SqlError`] when the engine fails.
    pub async fn rows(&mut self, sql: impl SqlSafeStr, values: Vec<Value>) -> Result<Vec<AnyRow>, SqlError> {
        let rows = bind(sql, values).fetch_all(&mut *self.tx).await;
        self.of(rows)
    }

    /// The first row of a query, if there is one.
    ///
    /// # Errors
    /// [`SqlError`] when the engine fails.
    pub async fn row(&mut self, sql: &'static str, values: Vec<Value>) -> Result<Option<AnyRow>, SqlError> {
        let row = bind(sql, values).fetch_optional(&mut *self.tx).await;
        self.of(row)
    }

    /// Says how many rows were changed.
    ///
    /// # Errors
    /// [`SqlError`] when the engine fails.
    pub async fn run(&mut self, sql: impl SqlSafeStr, values: Vec<Value>) -> Result<u64, SqlError> {
        let done = bind(sql, values).execute(&mut *self.tx).await;
        self.of(done).map(|done| done.rows_affected())
    }

    /// Rows for a list of ids, which goes where `{}` stands in `sql`, a piece at a time.
    ///
    /// # Errors
    /// [`SqlError`] when the engine fails.
    pub async fn rows_of(&mut self, sql: &'static str, first: &[i64], ids: &[i64]) -> Result<Vec<AnyRow>, SqlError> {
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
    ///
    /// # Errors
    /// [`SqlError`] when the engine fails.
    pub async fn insert_many(&mut self, into: &str, width: usize, rows: &[Vec<i64>]) -> Result<(), SqlError> {
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
pub enum Value {
    /// A number.
    Number(i64),
    /// A number that is not there.
    Null,
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<Option<i64>> for Value {
    fn from(number: Option<i64>) -> Self {
        number.map_or(Self::Null, Self::Number)
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

impl From<bool> for Value {
    fn from(yes: bool) -> Self {
        Self::Number(yes.into())
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
    ($($value:expr),* $(,)?) => { vec![$($crate::chat::sql::Value::from($value)),*] };
}
pub(in crate::chat) use values;

fn bind(sql: impl SqlSafeStr, values: Vec<Value>) -> sqlx::query::Query<'static, Any, sqlx::any::AnyArguments> {
    values.into_iter().fold(sqlx::query(sql), |query, value| match value {
        Value::Number(number) => query.bind(number),
        Value::Null => query.bind(None::<i64>),
        Value::Text(text) => query.bind(text),
        Value::Bytes(bytes) => query.bind(bytes),
    })
}

/// A column of a row. The row is here, so what fails now is not the engine: the column holds something of another type.
///
/// # Errors
/// [`SqlError::Damaged`].
pub fn get<'r, T: Decode<'r, Any> + Type<Any>>(row: &'r AnyRow, at: usize) -> Result<T, SqlError> {
    row.try_get(at).map_err(|_| SqlError::Damaged("type of a column"))
}

/// A number that is narrower than what the database keeps.
///
/// # Errors
/// [`SqlError::Damaged`].
pub fn narrow<T: TryFrom<i64>>(row: &AnyRow, at: usize) -> Result<T, SqlError> {
    T::try_from(get::<i64>(row, at)?).map_err(|_| SqlError::Damaged("number out of range"))
}

/// A connection to SQLite keeps what it was told to, and to references.
async fn prepare(connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
    let pragmas = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; \
                   PRAGMA busy_timeout = 10000";
    connection.execute(pragmas).await.map(drop)
}

/// A connection to PostgreSQL is the only one that writes, for as long as it lives.
async fn alone(connection: &mut AnyConnection, lock: i64) -> Result<(), sqlx::Error> {
    let taken = || sqlx::Error::Protocol(SqlError::Taken.to_string());
    if is_alone(connection, lock).await? { Ok(()) } else { Err(taken()) }
}

async fn is_alone(connection: &mut AnyConnection, lock: i64) -> Result<bool, sqlx::Error> {
    let gets = async {
        let sql = "SELECT pg_try_advisory_lock($1)";
        while !sqlx::query_scalar::<_, bool>(sql).bind(lock).fetch_one(&mut *connection).await? {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    };
    tokio::time::timeout(GONE_WITHIN, gets).await.map_or(Ok(false), |got: Result<(), sqlx::Error>| got.map(|()| true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_transaction_that_the_engine_ended_was_the_last_one() {
        let dir = tempfile::tempdir().unwrap();
        let migrator = || Migrator::with_migrations(Vec::new());
        let schema = Schema { lock: 0, sqlite: migrator(), postgres: migrator() };
        let database = Database::open(&Place::Sqlite, &dir.path().join("it.sqlite"), schema).await.unwrap();
        let mut tx = database.begin().await.unwrap();
        let full = "CREATE TRIGGER full BEFORE INSERT ON it WHEN NEW.n = 13 BEGIN SELECT RAISE(ROLLBACK, 'full'); END";
        for sql in ["CREATE TABLE it (n BIGINT PRIMARY KEY)", full, "INSERT INTO it VALUES (1)"] {
            tx.run(sql, values![]).await.unwrap();
        }
        tx.commit().await.unwrap();
        let add = async |tx: &mut Tx, n: i64| tx.run("INSERT INTO it VALUES ($1)", values![n]).await;
        let kept = async || -> Vec<i64> {
            let mut tx = database.begin().await.unwrap();
            let rows = tx.rows("SELECT n FROM it ORDER BY n", values![]).await.unwrap();
            rows.iter().map(|row| get(row, 0).unwrap()).collect()
        };
        // It is gone: what comes next is in none, and there is nothing to be committed.
        let mut tx = database.begin().await.unwrap();
        add(&mut tx, 2).await.unwrap();
        assert!(add(&mut tx, 13).await.is_err() && tx.commit().await.is_err());
        assert_eq!(kept().await, [1]);
        // Nor to be rolled back.
        let mut tx = database.begin().await.unwrap();
        assert!(add(&mut tx, 13).await.is_err());
        drop(tx);
        assert_eq!(kept().await, [1]);
        // What fails alone is no reason to begin anew.
        let mut tx = database.begin().await.unwrap();
        assert!(add(&mut tx, 1).await.is_err() && add(&mut tx, 3).await.is_ok());
        tx.commit().await.unwrap();
        assert!(!database.failed.load(Ordering::Relaxed));
        assert_eq!(kept().await, [1, 3]);
        database.close().await;
    }
}
