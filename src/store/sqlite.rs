//! The store on SQLite: one file, one connection that writes, a few that read.
//!
//! Integers in SQLite are signed and have 64 bits. Ids and counters go in and out as the same 64 bits; only those of `key`,
//! `no` and `last_disconnect_ms` are compared by SQLite, and these stay below 2^63.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use rusqlite::config::DbConfig;
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension as _, Row, Transaction, TransactionBehavior, params,
};
use tokio::sync::Semaphore;

use super::copy;
use super::seal::{self, unbroken};
use super::writer::{Engine, Job, Writer};
use super::{
    Census, Condition, Durability, Exhausted, Filling, NO_GROUP, SEQ_BITS, SEQ_MAX, Store, StoreError, TAKEN, check,
    count_entry,
};
use crate::files;
use crate::group::ranges::RangeSet;
use crate::group::record::{GroupRecord, Held, LogEntry, Page, Seq, SlotRecord, SlotSnapshot, Snapshot, Write};
use crate::metrics;
use crate::wire::d2m::{DeviceGroupId, DeviceId, Envelope, ReflectFlags, Reflected, ReflectedId, SlotExpiration};

/// The mediator's database in its data directory.
pub const DATABASE_FILE: &str = "mediator.sqlite";
const LOCK_FILE: &str = "mediator.lock";
/// What the lock's file says once there is a store beside it. Whatever it says, it is not empty.
const MARK: &[u8] = b"A store was made here. Without this line an empty database is taken for a new one.\n";

/// "Heli", so that `file` and we know whose database it is.
const APPLICATION_ID: i64 = 0x4865_6c69;
/// What makes each version of the schema out of the one before. `user_version` counts those that were done.
const MIGRATIONS: [&str; 1] = [VERSION_1];

/// * `groups.no` is the lowest part of every key, so it is small, and given again when its group is forgotten.
/// * `slots` has no rowid: a group's slots lie side by side and are loaded from one page. The two partial indexes hold what is
///   asked for across groups: who was connected (at start), and who may expire (in the sweep).
/// * `log.key` is the group's number above the seq ([`key`]): an entry costs one B-tree, not two.
const VERSION_1: &str = "
CREATE TABLE groups (
    no INTEGER PRIMARY KEY,
    device_group_id BLOB NOT NULL UNIQUE,
    seq_reserved INTEGER NOT NULL,
    last_timestamp_ms INTEGER NOT NULL,
    shared_device_data BLOB NOT NULL,
    seal BLOB NOT NULL
) STRICT;
CREATE TABLE slots (
    group_no INTEGER NOT NULL,
    device INTEGER NOT NULL,
    persistent INTEGER NOT NULL,
    connected INTEGER NOT NULL,
    last_disconnect_ms INTEGER NOT NULL,
    device_info BLOB NOT NULL,
    since INTEGER NOT NULL,
    cursor INTEGER NOT NULL,
    acked BLOB NOT NULL,
    acked_unseen BLOB NOT NULL,
    issued INTEGER NOT NULL,
    counted_through INTEGER NOT NULL,
    held_pending INTEGER NOT NULL,
    held_entries INTEGER NOT NULL,
    held_bytes INTEGER NOT NULL,
    seal BLOB NOT NULL,
    PRIMARY KEY (group_no, device)
) STRICT, WITHOUT ROWID;
CREATE INDEX slots_connected ON slots (group_no, device) WHERE connected = 1;
CREATE INDEX slots_due ON slots (persistent, last_disconnect_ms) WHERE connected = 0;
CREATE TABLE log (
    key INTEGER PRIMARY KEY,
    origin INTEGER NOT NULL,
    timestamp_ms INTEGER NOT NULL,
    envelope BLOB NOT NULL,
    seal BLOB NOT NULL
) STRICT;
";

/// The highest group number: what is left of 63 bits beside a seq. 33 million groups at a time.
const GROUP_NO_MAX: i64 = (1 << (63 - SEQ_BITS)) - 1;
/// How often a number is guessed once the highest one has been given, before there are held to be none.
const GROUP_NO_GUESSES: usize = 64;

const _: () = assert!(SEQ_BITS > 32, "a reflected-id, the low 32 bits of a seq, wraps before the log ends");
const _: () =
    assert!(key(GroupNo(GROUP_NO_MAX), SEQ_MAX) == i64::MAX, "group number and seq fill the positive integers");

/// Readers at a time. Reading is short, and more would wait for the same cores.
const READERS: usize = 2;
/// Pages (of 4 KiB) in the write-ahead log before they are copied into the database.
const WAL_PAGES_MAX: i64 = 2_048;
/// Pages in the write-ahead log before the writer waits for readers, so that it can start over.
const WAL_PAGES_PATIENCE: i64 = 4 * WAL_PAGES_MAX;
/// Free pages that are kept for later: giving back and taking again costs more than keeping.
const FREE_PAGES_KEPT: i64 = 1_024;
/// Free pages given back in one step: one transaction that a commit may have to wait for.
const FREE_PAGES_STEP: i64 = 256;
/// Slots marked at a time when opening.
const MARK_STEP: i64 = 1_000;
/// Statements kept prepared on each connection: all there are.
const STATEMENTS: usize = 32;
/// How long one of our connections waits for another. Only the end of the write-ahead log is ever waited for.
const BUSY_MS: i64 = 5_000;

/// Why the store could not be opened, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory or a file in it cannot be used.
    #[error("cannot use {}: {source}. Check that the data directory exists or can be made, and belongs to this user", path.display())]
    Unusable {
        /// What was tried.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Another process has the lock.
    #[error("another mediator is running on {}. Stop it first, or give this one a data directory of its own", path.display())]
    InUse {
        /// The data directory.
        path: PathBuf,
    },
    /// What was made here is not here any more.
    #[error("{} is gone or empty, but a store was made there. Restore a backup. To begin anew, with nothing of what was kept, remove {LOCK_FILE} and all of {DATABASE_FILE}* in that directory", path.display())]
    Gone {
        /// The file.
        path: PathBuf,
    },
    /// There is a file of that name which is not ours.
    #[error("{} is not a mediator's database. Move it away, or choose another data directory", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// A later program wrote it.
    #[error("{} was written by a newer version of this program (schema {found}; this one knows {known}). Run that version, or restore a backup", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The latest schema this program knows.
        known: i64,
    },
    /// SQLite cannot open it, or cannot do what is needed then.
    #[error("cannot open {}: {reason}. Check it with `sqlite3 FILE 'PRAGMA integrity_check'` on a copy, or restore a backup", path.display())]
    Engine {
        /// The file.
        path: PathBuf,
        /// SQLite's words.
        reason: String,
    },
}

/// A group's number in this database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct GroupNo(i64);

/// Where an entry lies in the log of all groups. A seq beyond the highest is taken for the highest.
const fn key(no: GroupNo, seq: Seq) -> i64 {
    let seq = if seq.0 > SEQ_MAX.0 { SEQ_MAX.0 } else { seq.0 };
    (no.0 << SEQ_BITS) | seq.cast_signed()
}

const fn seq_of(key: i64) -> Seq {
    Seq(key.cast_unsigned() & SEQ_MAX.0)
}

/// What was done since the store was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Commits that were kept.
    pub commits: u64,
    /// Transactions they took: as many syncs.
    pub transactions: u64,
    /// Times the write-ahead log was copied into the database.
    pub checkpoints: u64,
    /// Pages given back to the file system.
    pub pages_freed: u64,
}

#[derive(Debug, Default)]
struct Counters {
    commits: AtomicU64,
    transactions: AtomicU64,
    checkpoints: AtomicU64,
    pages_freed: AtomicU64,
}

fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

/// Keeps groups in a SQLite database.
#[derive(Debug)]
pub struct SqliteStore {
    writer: Writer,
    readers: Arc<Readers>,
    counters: Arc<Counters>,
    copies: Arc<AtomicUsize>,
    durability: Durability,
}

impl SqliteStore {
    /// Opens the database in `dir`, or makes both. Slots that are found connected are marked as disconnected at `now_wall_ms`.
    ///
    /// Blocks. Dropping the store ends it as [`Self::close`] does, but nobody can wait for that.
    ///
    /// # Errors
    /// [`OpenError`]; its message says what to do.
    pub fn open(dir: &Path, durability: Durability, now_wall_ms: u64) -> Result<Arc<Self>, OpenError> {
        let lock = DirLock::take(dir)?;
        let path = dir.join(DATABASE_FILE);
        let was_made = lock.is_marked().map_err(unusable(&lock.path))?;
        // SQLite would make an empty file a database, and delete the write-ahead log beside it.
        let len = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
        if len(&path) == 0 && (was_made || len(&wal_of(&path)) > 0) {
            return Err(OpenError::Gone { path });
        }
        files::make_private(&path).and_then(|()| files::sync_dir(dir)).map_err(unusable(&path))?;
        let mut connection = prepare(&path, durability, was_made)?;
        lock.mark().map_err(unusable(&lock.path))?;
        mark_disconnected(&mut connection, now_wall_ms).map_err(engine(&path))?;
        let counters = Arc::<Counters>::default();
        let tally = Tally { through: Some(i64::MIN), messages: 0 };
        let copies = Arc::<AtomicUsize>::default();
        let writer = SqliteEngine {
            connection,
            counters: Arc::clone(&counters),
            copies: Arc::clone(&copies),
            trimmed: true,
            tally,
            _lock: lock,
        };
        let writer = Writer::spawn(writer).map_err(unusable(&path))?;
        let readers = Arc::new(Readers { path, permits: Arc::new(Semaphore::new(READERS)), resting: Mutex::default() });
        Ok(Arc::new(Self { writer, readers, counters, copies, durability }))
    }

    /// How far the promise reaches.
    #[must_use]
    pub const fn durability(&self) -> Durability {
        self.durability
    }

    /// What was done since the store was opened.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            commits: read(&self.counters.commits),
            transactions: read(&self.counters.transactions),
            checkpoints: read(&self.counters.checkpoints),
            pages_freed: read(&self.counters.pages_freed),
        }
    }

    /// Keeps what was asked before, folds the write-ahead log into the database, and gives the directory free. Everything
    /// asked later is answered with [`StoreError::Closed`].
    ///
    /// # Errors
    /// What the engine said to it. What was kept stays kept.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.readers.close().await;
        self.writer.close().await
    }
}

impl Store for SqliteStore {
    fn load(&self, group: DeviceGroupId) -> BoxFuture<'_, Result<Option<Snapshot>, StoreError>> {
        Box::pin(self.readers.read(move |connection| load(connection, group)))
    }

    fn commit(&self, group: DeviceGroupId, writes: Vec<Write>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            check(&writes)?;
            self.writer.commit(Job { group, writes, under: None }).await
        })
    }

    fn page(
        &self,
        group: DeviceGroupId,
        after: Seq,
        through: Seq,
        cost_max: usize,
    ) -> BoxFuture<'_, Result<Page, StoreError>> {
        Box::pin(self.readers.read(move |connection| page(connection, group, after, through, cost_max)))
    }

    fn due(
        &self,
        volatile_before_ms: u64,
        persistent_before_ms: Option<u64>,
        most: usize,
    ) -> BoxFuture<'_, Result<Vec<DeviceGroupId>, StoreError>> {
        Box::pin(self.readers.read(move |connection| due(connection, volatile_before_ms, persistent_before_ms, most)))
    }

    fn census(&self, after: Option<DeviceGroupId>, most: usize) -> BoxFuture<'_, Result<Census, StoreError>> {
        Box::pin(self.readers.read(move |connection| census(connection, after, most)))
    }

    fn knows(&self, group: DeviceGroupId) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(self.readers.read(move |connection| {
            let mut statement = connection.prepare_cached("SELECT 1 FROM groups WHERE device_group_id = ?1")?;
            Ok(statement.exists([group.as_bytes()])?)
        }))
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.writer.probe())
    }

    fn condition(&self) -> Condition {
        self.writer.condition()
    }

    fn back_up(&self, dir: &Path) -> Result<(), StoreError> {
        self.copies.fetch_add(1, Ordering::Relaxed);
        let copied = copy::copy(&self.readers.path, &dir.join(DATABASE_FILE));
        self.copies.fetch_sub(1, Ordering::Relaxed);
        copied
    }

    fn measure(&self) {
        #[expect(clippy::cast_precision_loss, reason = "exact up to 8 PiB")]
        let bytes = |path: &Path| std::fs::metadata(path).map_or(0.0, |file| file.len() as f64);
        metrics::get().database_bytes.set(bytes(&self.readers.path));
        metrics::get().wal_bytes.set(bytes(&wal_of(&self.readers.path)));
    }
}

// ---- opening

fn unusable(path: &Path) -> impl FnOnce(std::io::Error) -> OpenError {
    move |source| OpenError::Unusable { path: path.to_owned(), source }
}

fn engine<E: std::fmt::Display>(path: &Path) -> impl FnOnce(E) -> OpenError {
    move |reason| OpenError::Engine { path: path.to_owned(), reason: reason.to_string() }
}

/// A data directory that is ours until this is dropped. Its file also says whether a store was made there, so that one that is
/// gone is not taken for one that never was.
#[derive(Debug)]
pub struct DirLock {
    path: PathBuf,
    held: files::Held,
}

impl DirLock {
    /// Makes the directory and takes it.
    ///
    /// # Errors
    /// [`OpenError::InUse`] when another process has it, [`OpenError::Unusable`] when it cannot be made.
    pub fn take(dir: &Path) -> Result<Self, OpenError> {
        files::make_private_dir(dir).map_err(unusable(dir))?;
        let path = dir.join(LOCK_FILE);
        match files::hold(&path).map_err(unusable(&path))? {
            Some(held) => Ok(Self { path, held }),
            None => Err(OpenError::InUse { path: dir.to_owned() }),
        }
    }

    fn is_marked(&self) -> std::io::Result<bool> {
        Ok(self.held.file().metadata()?.len() > 0)
    }

    /// Comes after the database is on the disk: a crash in between leaves it without the mark, which the next start makes up for.
    fn mark(&self) -> std::io::Result<()> {
        if !self.is_marked()? {
            let mut file = self.held.file();
            file.write_all(MARK)?;
            file.sync_all()?;
        }
        Ok(())
    }
}

/// The connection that writes, on a database that is ours and of our schema.
fn prepare(path: &Path, durability: Durability, was_made: bool) -> Result<Connection, OpenError> {
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    let not_a_database = |error: rusqlite::Error| match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => OpenError::NotOurs { path: path.to_owned() },
        _ => engine(path)(error),
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(engine(path))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // What is refused is left as it is: a write-ahead log that somebody else left is not folded in.
    let crashed = std::fs::metadata(wal_of(path)).is_ok_and(|wal| wal.len() > 0);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, crashed).map_err(engine(path))?;
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(not_a_database);
    let found = number("PRAGMA user_version")?;
    let is_new = found == 0 && number("SELECT count(*) FROM sqlite_schema")? == 0;
    if is_new && was_made {
        return Err(OpenError::Gone { path: path.to_owned() });
    }
    if !is_new && number("PRAGMA application_id")? != APPLICATION_ID {
        return Err(OpenError::NotOurs { path: path.to_owned() });
    }
    if found > known {
        return Err(OpenError::Newer { path: path.to_owned(), found, known });
    }
    if !is_new && found < 1 {
        return Err(engine(path)(format!("no version of this program writes schema {found}")));
    }
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map_err(engine(path))?;
    let synchronous = match durability {
        Durability::Fsync => "FULL",
        Durability::Memory => "OFF",
    };
    // `auto_vacuum` has to come before the first table. `fullfsync` is for macOS, whose fsync stops at the disk's cache.
    let settings = format!(
        "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous};
         PRAGMA fullfsync = ON; PRAGMA checkpoint_fullfsync = ON; PRAGMA wal_autocheckpoint = 0;
         PRAGMA journal_size_limit = {wal_bytes}; PRAGMA cache_size = -8192; PRAGMA temp_store = MEMORY;
         PRAGMA busy_timeout = {BUSY_MS}; PRAGMA cell_size_check = ON; PRAGMA trusted_schema = OFF;
         PRAGMA foreign_keys = OFF;",
        wal_bytes = WAL_PAGES_MAX * 4_096,
    );
    connection.execute_batch(&settings).map_err(engine(path))?;
    let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).map_err(engine(path))?;
    if mode != "wal" {
        return Err(engine(path)(format!("no write-ahead log on this file system (journal mode {mode})")));
    }
    migrate(&mut connection, found).map_err(engine(path))?;
    Ok(connection)
}

fn wal_of(path: &Path) -> PathBuf {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    wal.into()
}

fn migrate(connection: &mut Connection, found: i64) -> rusqlite::Result<()> {
    let done = usize::try_from(found).unwrap_or(0);
    for (version, migration) in (1_usize..).zip(MIGRATIONS).skip(done) {
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute_batch(migration)?;
        tx.execute_batch(&format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {version};"))?;
        tx.commit()?;
    }
    Ok(())
}

/// Whoever was connected when the last process ended is not any more. Costs what was connected, not what is kept. A damaged slot
/// is left as it is: it is reported when its group is loaded, and must not keep all the others from their messages.
fn mark_disconnected(connection: &mut Connection, now_wall_ms: u64) -> Result<(), StoreError> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut from = (i64::MIN, i64::MIN);
    loop {
        let mut step = Vec::new();
        {
            let mut statement = tx.prepare_cached(SLOTS_CONNECTED)?;
            let mut rows = statement.query(params![from.0, from.1, MARK_STEP])?;
            while let Some(row) = rows.next()? {
                let no = GroupNo(row.get("group_no")?);
                from = (no.0, row.get("device")?);
                step.push((no, slot_of(no, row)));
            }
        }
        if step.is_empty() {
            break;
        }
        for (no, slot) in step {
            let Ok(slot) = slot else { continue };
            write_slot(&tx, no, &SlotRecord { connected: false, last_disconnect_ms: now_wall_ms, ..slot })?;
        }
    }
    Ok(tx.commit()?)
}

const SLOTS_CONNECTED: &str = "SELECT * FROM slots INDEXED BY slots_connected
     WHERE connected = 1 AND (group_no, device) > (?1, ?2) ORDER BY group_no, device LIMIT ?3";

// ---- writing

/// Lives on the writer's thread, and keeps the directory locked as long as that runs.
struct SqliteEngine {
    connection: Connection,
    counters: Arc<Counters>,
    /// Copies being made. Each reads for as long as it takes.
    copies: Arc<AtomicUsize>,
    /// Whether something was removed since free pages were last looked for.
    trimmed: bool,
    tally: Tally,
    _lock: DirLock,
}

/// How many messages are kept. What a database holds when it is opened is not known without reading its whole log, which
/// nobody waits for: it is counted from its beginning in small steps while nothing else is to be done. Since the one who
/// counts is the one who writes, the number is exact: an entry that comes or goes below where the count stands is added or taken
/// off, and one beyond it will be met, or not, when the count gets there.
#[derive(Debug, Clone, Copy)]
struct Tally {
    /// Every entry up to this key is counted; `None` when all are.
    through: Option<i64>,
    messages: i64,
}

/// What one transaction did to the log.
#[derive(Debug, Default)]
struct Change {
    appended: u64,
    deleted: u64,
    /// Among what was counted already.
    counted: i64,
}

/// Entries counted in one step.
const TALLY_STEP: i64 = 512;

impl Tally {
    const fn is_counted(&self, key: i64) -> bool {
        match self.through {
            None => true,
            Some(through) => key <= through,
        }
    }

    /// Counts on; says whether there is more.
    fn count_on(&mut self, connection: &Connection) -> Result<bool, StoreError> {
        let Some(through) = self.through else { return Ok(false) };
        let (found, last): (i64, Option<i64>) = connection
            .prepare_cached(
                "SELECT count(*), max(key) FROM (SELECT key FROM log WHERE key > ?1 ORDER BY key LIMIT ?2)",
            )?
            .query_row([through, TALLY_STEP], |row| Ok((row.get(0)?, row.get(1)?)))?;
        self.messages += found;
        self.through = last.filter(|_| found == TALLY_STEP);
        self.tell();
        Ok(self.through.is_some())
    }

    fn tell(&self) {
        metrics::get().store_messages.set(i32::try_from(self.messages).unwrap_or(i32::MAX));
    }
}

impl Engine for SqliteEngine {
    fn commit(&mut self, jobs: &[Job]) -> Result<(), StoreError> {
        // Dropped without a commit, also when the commit itself fails, it rolls back.
        let tx = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut change = Change::default();
        for job in jobs {
            apply(&tx, job, self.tally, &mut change)?;
        }
        tx.commit()?;
        let metrics = metrics::get();
        metrics.store_appended.increment(change.appended);
        metrics.store_deleted.increment(change.deleted);
        self.tally.messages += change.counted;
        self.tally.tell();
        add(&self.counters.transactions, 1);
        add(&self.counters.commits, jobs.len());
        self.trimmed |= jobs
            .iter()
            .flat_map(|job| &job.writes)
            .any(|write| matches!(write, Write::Trim { .. } | Write::Forget | Write::RemoveSlot(_)));
        Ok(())
    }

    fn between_batches(&mut self) {
        self.checkpoint().unwrap_or_else(|error| tracing::warn!(%error, "the write-ahead log cannot be checkpointed"));
    }

    fn idle(&mut self) -> bool {
        if self.tally.through.is_some() {
            return self.tally.count_on(&self.connection).unwrap_or_else(|error| {
                tracing::warn!(%error, "messages cannot be counted");
                // The number stays too low; it is for operators only.
                self.tally.through = None;
                true
            });
        }
        if !self.trimmed {
            return false;
        }
        self.trimmed = self.give_back().unwrap_or_else(|error| {
            tracing::warn!(%error, "free pages cannot be given back");
            false
        });
        self.trimmed
    }

    fn close(self) -> Result<(), StoreError> {
        self.connection.execute_batch("PRAGMA analysis_limit = 400; PRAGMA optimize;")?;
        // A copy that is not finished keeps its part of the log, and nobody waits for it.
        self.wal(if self.is_copied() { "PRAGMA wal_checkpoint(PASSIVE)" } else { "PRAGMA wal_checkpoint(TRUNCATE)" })?;
        self.connection.flush_prepared_statement_cache();
        self.connection.close().map_err(|(_, error)| error.into())
    }
}

/// The write-ahead log's pages, and how many of them are in the database already.
struct Wal {
    pages: i64,
    copied: i64,
}

impl SqliteEngine {
    /// Copies without waiting for anyone. When all is copied and nobody reads from it, the next write starts the log over by
    /// itself; only when readers have kept it from that for long are they waited for. Not so a copy, which takes much longer
    /// than anybody should wait.
    fn checkpoint(&self) -> Result<(), StoreError> {
        let wal = self.wal("PRAGMA wal_checkpoint(NOOP)")?;
        if wal.pages > WAL_PAGES_PATIENCE && !self.is_copied() {
            self.wal("PRAGMA wal_checkpoint(RESTART)")?;
        } else if wal.pages - wal.copied > WAL_PAGES_MAX {
            self.wal("PRAGMA wal_checkpoint(PASSIVE)")?;
        } else {
            return Ok(());
        }
        add(&self.counters.checkpoints, 1);
        metrics::get().store_checkpoints.increment(1);
        Ok(())
    }

    fn is_copied(&self) -> bool {
        self.copies.load(Ordering::Relaxed) > 0
    }

    fn wal(&self, pragma: &str) -> Result<Wal, StoreError> {
        let mut statement = self.connection.prepare_cached(pragma)?;
        Ok(statement.query_row([], |row| Ok(Wal { pages: row.get(1)?, copied: row.get(2)? }))?)
    }

    /// One step; says whether another is worth it.
    fn give_back(&self) -> Result<bool, StoreError> {
        let number = |pragma: &str| self.connection.prepare_cached(pragma)?.query_row([], |row| row.get::<_, i64>(0));
        let surplus = |free: i64| -> rusqlite::Result<bool> {
            Ok(free > FREE_PAGES_KEPT && free > number("PRAGMA page_count")? / 4)
        };
        let before = number("PRAGMA freelist_count")?;
        if !surplus(before)? {
            return Ok(false);
        }
        {
            // One page per row: it has to be asked to the end.
            let mut statement =
                self.connection.prepare_cached(&format!("PRAGMA incremental_vacuum({FREE_PAGES_STEP})"))?;
            let mut rows = statement.query([])?;
            while rows.next()?.is_some() {}
        }
        let after = number("PRAGMA freelist_count")?;
        add(&self.counters.pages_freed, usize::try_from(before - after).unwrap_or(0));
        let more = after < before && surplus(after)?;
        if more {
            self.checkpoint()?;
        } else {
            // The file becomes shorter when this is copied into it, and nothing else may come for long.
            self.wal("PRAGMA wal_checkpoint(PASSIVE)")?;
        }
        Ok(more)
    }
}

fn apply(tx: &Transaction<'_>, job: &Job, tally: Tally, change: &mut Change) -> Result<(), StoreError> {
    let mut no = tx
        .prepare_cached("SELECT no FROM groups WHERE device_group_id = ?1")?
        .query_row([job.group.as_bytes()], |row| row.get(0).map(GroupNo))
        .optional()?;
    for write in &job.writes {
        match (write, no) {
            (Write::Group(record), Some(no)) => write_group(tx, no, job.group, record)?,
            (Write::Group(record), None) => {
                let new = unused_number(tx)?;
                write_group(tx, new, job.group, record)?;
                no = Some(new);
            }
            (Write::Slot(_) | Write::Append(_), None) => return Err(NO_GROUP),
            (Write::RemoveSlot(_) | Write::Trim { .. } | Write::Forget, None) => {}
            (Write::Slot(record), Some(no)) => write_slot(tx, no, record)?,
            (Write::RemoveSlot(device), Some(no)) => {
                tx.prepare_cached("DELETE FROM slots WHERE group_no = ?1 AND device = ?2")?
                    .execute(params![no.0, device.0.cast_signed()])?;
            }
            (Write::Append(entry), Some(no)) => {
                append(tx, no, entry)?;
                change.appended += 1;
                change.counted += i64::from(tally.is_counted(key(no, entry.seq)));
            }
            (Write::Trim { through }, Some(no)) => trim(tx, no, *through, tally, change)?,
            (Write::Forget, Some(gone)) => {
                trim(tx, gone, SEQ_MAX, tally, change)?;
                tx.prepare_cached("DELETE FROM slots WHERE group_no = ?1")?.execute([gone.0])?;
                tx.prepare_cached("DELETE FROM groups WHERE no = ?1")?.execute([gone.0])?;
                no = None;
            }
        }
    }
    Ok(())
}

/// The next number; once the highest has been given, some number that is free again.
fn unused_number(tx: &Transaction<'_>) -> Result<GroupNo, StoreError> {
    let highest: Option<i64> = tx.prepare_cached("SELECT max(no) FROM groups")?.query_row([], |row| row.get(0))?;
    let next = highest.map_or(1, |no| no.saturating_add(1));
    if next <= GROUP_NO_MAX {
        return Ok(GroupNo(next));
    }
    let mut taken = tx.prepare_cached("SELECT 1 FROM groups WHERE no = ?1")?;
    for _ in 0..GROUP_NO_GUESSES {
        let guess = fastrand::i64(1..=GROUP_NO_MAX);
        if !taken.exists([guess])? {
            return Ok(GroupNo(guess));
        }
    }
    Err(StoreError::Exhausted(Exhausted::GroupNumber))
}

fn write_group(tx: &Transaction<'_>, no: GroupNo, id: DeviceGroupId, record: &GroupRecord) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO groups VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (no) DO UPDATE SET
         seq_reserved = excluded.seq_reserved, last_timestamp_ms = excluded.last_timestamp_ms,
         shared_device_data = excluded.shared_device_data, seal = excluded.seal",
    )?
    .execute(params![
        no.0,
        id.as_bytes(),
        record.seq_reserved.0.cast_signed(),
        record.last_timestamp_ms.cast_signed(),
        record.encrypted_shared_device_data,
        seal::group(no.0, id, record),
    ])?;
    Ok(())
}

/// An upsert that changes what differs: an index is touched when the slot comes or goes, not when it acknowledges.
fn write_slot(tx: &Transaction<'_>, no: GroupNo, record: &SlotRecord) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO slots VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)
         ON CONFLICT (group_no, device) DO UPDATE SET
         persistent = excluded.persistent, connected = excluded.connected,
         last_disconnect_ms = excluded.last_disconnect_ms, device_info = excluded.device_info,
         since = excluded.since, cursor = excluded.cursor, acked = excluded.acked,
         acked_unseen = excluded.acked_unseen, issued = excluded.issued,
         counted_through = excluded.counted_through, held_pending = excluded.held_pending,
         held_entries = excluded.held_entries, held_bytes = excluded.held_bytes, seal = excluded.seal",
    )?
    .execute(params![
        no.0,
        record.device.0.cast_signed(),
        record.expiration == SlotExpiration::Persistent,
        record.connected,
        record.last_disconnect_ms.cast_signed(),
        record.encrypted_device_info,
        record.since.0.cast_signed(),
        record.cursor.0.cast_signed(),
        record.acked.to_bytes(),
        record.acked_unseen.to_bytes(),
        record.issued.0.cast_signed(),
        record.counted_through.0.cast_signed(),
        record.held.pending.cast_signed(),
        record.held.entries.cast_signed(),
        record.held.bytes.cast_signed(),
        seal::slot(no.0, None, record),
    ])?;
    Ok(())
}

fn append(tx: &Transaction<'_>, no: GroupNo, entry: &LogEntry) -> Result<(), StoreError> {
    let (timestamp_ms, envelope) = (entry.message.timestamp_ms(), entry.message.envelope());
    let appended = tx.prepare_cached("INSERT INTO log VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
        key(no, entry.seq),
        entry.origin.0.cast_signed(),
        timestamp_ms.cast_signed(),
        envelope,
        seal::entry(key(no, entry.seq), None, entry.origin, timestamp_ms, envelope),
    ]);
    match appended {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => Err(TAKEN),
        appended => Ok(appended.map(drop)?),
    }
}

fn trim(tx: &Transaction<'_>, no: GroupNo, through: Seq, tally: Tally, change: &mut Change) -> Result<(), StoreError> {
    let (first, last) = (key(no, Seq(0)), key(no, through));
    let delete =
        |from: i64, to: i64| tx.prepare_cached("DELETE FROM log WHERE key BETWEEN ?1 AND ?2")?.execute([from, to]);
    // At most one stretch lies on both sides of where the count stands.
    let counted_to = tally.through.unwrap_or(i64::MAX).min(last);
    let counted = delete(first, counted_to)?;
    let uncounted = if counted_to < last { delete(first.max(counted_to.saturating_add(1)), last)? } else { 0 };
    change.deleted += (counted + uncounted) as u64;
    change.counted -= i64::try_from(counted).unwrap_or(0);
    Ok(())
}

// ---- reading

/// Connections that read. They are opened when they are first needed, and again when one was lost to a panic.
#[derive(Debug)]
struct Readers {
    path: PathBuf,
    permits: Arc<Semaphore>,
    resting: Mutex<Vec<Connection>>,
}

impl Readers {
    /// Reads on a thread that may block.
    async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        job: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let readers = Arc::clone(self);
        let reading = tokio::task::spawn_blocking(move || {
            let resting = readers.take();
            let mut connection = resting.map_or_else(|| readers.open(), Ok)?;
            let answer = job(&mut connection);
            readers.resting.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            drop(permit);
            answer
        });
        reading.await.unwrap_or_else(|error| Err(StoreError::Failed(error.to_string())))
    }

    fn take(&self) -> Option<Connection> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// A reader needs the right to write all the same: it takes part in the index of the write-ahead log.
    fn open(&self) -> Result<Connection, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        connection.execute_batch(&format!(
            "PRAGMA query_only = ON; PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = -2048;
             PRAGMA busy_timeout = {BUSY_MS}; PRAGMA cell_size_check = ON; PRAGMA trusted_schema = OFF;"
        ))?;
        Ok(connection)
    }

    /// Waits for those that read, and lets nobody else.
    async fn close(&self) {
        let all = u32::try_from(READERS).unwrap_or(u32::MAX);
        if let Ok(_all) = self.permits.acquire_many(all).await {
            self.permits.close();
        }
        self.resting.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn load(connection: &mut Connection, id: DeviceGroupId) -> Result<Option<Snapshot>, StoreError> {
    // One snapshot for all that is read.
    let tx = connection.transaction()?;
    let Some((no, mut group)) = read_group(&tx, id)? else { return Ok(None) };
    let mut slots = Vec::new();
    {
        let mut statement = tx.prepare_cached("SELECT * FROM slots WHERE group_no = ?1 ORDER BY device")?;
        let mut rows = statement.query([no.0])?;
        while let Some(row) = rows.next()? {
            slots.push(SlotSnapshot { record: slot_of(no, row)?, uncounted: Held::default() });
        }
    }
    slots.sort_unstable_by_key(|slot| slot.record.device);
    if let Some(counted) = slots.iter().map(|slot| slot.record.counted_through).min() {
        // The length of a blob is known without reading it.
        let mut statement = tx.prepare_cached(
            "SELECT key, origin, length(envelope) FROM log WHERE key > ?1 AND key <= ?2 ORDER BY key",
        )?;
        let mut rows = statement.query([key(no, counted), key(no, SEQ_MAX)])?;
        let mut newest = None;
        while let Some(row) = rows.next()? {
            let seq = seq_of(row.get(0)?);
            count_entry(&mut slots, seq, DeviceId(unsigned(row, 1)?), unsigned(row, 2)?);
            newest = Some(seq);
        }
        // Times do not go back, so the newest entry has the highest; it is read whole, since nothing is believed without
        // its seal. A damaged one is for whoever needs it to find.
        if let Some(Ok(page)) = newest.map(|seq| stretch(&tx, no, Seq(seq.0.saturating_sub(1)), seq, 0)) {
            let times = page.entries.iter().map(|entry| entry.message.timestamp_ms());
            group.last_timestamp_ms = times.fold(group.last_timestamp_ms, u64::max);
        }
    }
    Ok(Some(Snapshot { group, slots }))
}

fn read_group(tx: &Transaction<'_>, id: DeviceGroupId) -> Result<Option<(GroupNo, GroupRecord)>, StoreError> {
    let mut statement = tx.prepare_cached(
        "SELECT no, seq_reserved, last_timestamp_ms, shared_device_data, seal FROM groups WHERE device_group_id = ?1",
    )?;
    let mut rows = statement.query([id.as_bytes()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let no = GroupNo(row.get(0)?);
    let record = GroupRecord {
        seq_reserved: Seq(unsigned(row, 1)?),
        last_timestamp_ms: unsigned(row, 2)?,
        encrypted_shared_device_data: row.get(3)?,
    };
    unbroken(row.get(4)?, seal::group(no.0, id, &record), "a group")?;
    Ok(Some((no, record)))
}

fn slot_of(no: GroupNo, row: &Row<'_>) -> Result<SlotRecord, StoreError> {
    let ranges = |column: &str| {
        let bytes = row.get_ref(column)?.as_blob().map_err(rusqlite::Error::from)?;
        RangeSet::from_bytes(bytes).ok_or_else(|| StoreError::Damaged(format!("{column} of a slot is no set")))
    };
    let record = SlotRecord {
        device: DeviceId(unsigned(row, "device")?),
        expiration: if row.get("persistent")? { SlotExpiration::Persistent } else { SlotExpiration::Volatile },
        encrypted_device_info: row.get("device_info")?,
        connected: row.get("connected")?,
        last_disconnect_ms: unsigned(row, "last_disconnect_ms")?,
        since: Seq(unsigned(row, "since")?),
        cursor: Seq(unsigned(row, "cursor")?),
        acked: ranges("acked")?,
        acked_unseen: ranges("acked_unseen")?,
        issued: Seq(unsigned(row, "issued")?),
        counted_through: Seq(unsigned(row, "counted_through")?),
        held: Held {
            pending: unsigned(row, "held_pending")?,
            entries: unsigned(row, "held_entries")?,
            bytes: unsigned(row, "held_bytes")?,
        },
    };
    unbroken(row.get("seal")?, seal::slot(no.0, None, &record), "a slot")?;
    Ok(record)
}

fn page(
    connection: &mut Connection,
    id: DeviceGroupId,
    after: Seq,
    through: Seq,
    cost_max: usize,
) -> Result<Page, StoreError> {
    // One snapshot; and no log is read by a number that is not sealed: it may be another group's.
    let tx = connection.transaction()?;
    match read_group(&tx, id)? {
        Some((no, _)) => stretch(&tx, no, after, through, cost_max),
        None => Ok(Filling::new(cost_max).ended(through)),
    }
}

/// A part of one group's log, as far as `cost_max` reaches.
fn stretch(tx: &Transaction<'_>, no: GroupNo, after: Seq, through: Seq, cost_max: usize) -> Result<Page, StoreError> {
    let mut page = Filling::new(cost_max);
    let mut statement = tx.prepare_cached(
        "SELECT key, origin, timestamp_ms, envelope, seal FROM log WHERE key > ?1 AND key <= ?2 ORDER BY key",
    )?;
    let mut rows = statement.query([key(no, after), key(no, through)])?;
    while let Some(row) = rows.next()? {
        let key: i64 = row.get(0)?;
        let (origin, timestamp_ms) = (DeviceId(unsigned(row, 1)?), unsigned(row, 2)?);
        let envelope = row.get_ref(3)?.as_blob().map_err(rusqlite::Error::from)?;
        if !page.fits(envelope.len()) {
            return Ok(page.cut_short());
        }
        unbroken(row.get(4)?, seal::entry(key, None, origin, timestamp_ms, envelope), "an entry of the log")?;
        let seq = seq_of(key);
        let id = ReflectedId(seq.wire_id());
        let message = Reflected::new(Envelope::copy_from(envelope), ReflectFlags::default(), id, timestamp_ms);
        page.entries.push(LogEntry { seq, origin, message });
    }
    Ok(page.ended(through))
}

fn due(
    connection: &mut Connection,
    volatile_before_ms: u64,
    persistent_before_ms: Option<u64>,
    most: usize,
) -> Result<Vec<DeviceGroupId>, StoreError> {
    let tx = connection.transaction()?;
    let mut due = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for (persistent, before_ms) in [(false, Some(volatile_before_ms)), (true, persistent_before_ms)] {
        let Some(before_ms) = before_ms else { continue };
        let mut statement = tx.prepare_cached(SLOTS_DUE)?;
        let mut rows = statement.query(params![persistent, i64::try_from(before_ms).unwrap_or(i64::MAX)])?;
        while due.len() < most
            && let Some(row) = rows.next()?
        {
            let id = DeviceGroupId::new(row.get(0)?);
            if seen.insert(id) {
                due.push(id);
            }
        }
    }
    Ok(due)
}

fn census(connection: &mut Connection, after: Option<DeviceGroupId>, most: usize) -> Result<Census, StoreError> {
    let tx = connection.transaction()?;
    let groups: i64 = tx.prepare_cached("SELECT count(*) FROM groups")?.query_row([], |row| row.get(0))?;
    let mut statement = tx.prepare_cached(GROUPS_BEYOND)?;
    let after = after.as_ref().map_or(&[][..], |id| id.as_bytes());
    let rows = statement.query_map(params![after, i64::try_from(most).unwrap_or(i64::MAX)], |row| {
        Ok((DeviceGroupId::new(row.get(0)?), row.get::<_, i64>(1)?.unsigned_abs()))
    })?;
    Ok(Census { groups: groups.unsigned_abs(), some: rows.collect::<Result<_, _>>()? })
}

/// By the index that keeps ids unique; the empty blob is before all of them.
const GROUPS_BEYOND: &str = "SELECT device_group_id, (SELECT count(*) FROM slots WHERE group_no = no) FROM groups
     WHERE device_group_id > ?1 ORDER BY device_group_id LIMIT ?2";

/// Walks the index from the slot that waits longest; fails to prepare should it ever not be able to.
const SLOTS_DUE: &str = "SELECT groups.device_group_id FROM slots INDEXED BY slots_due
     CROSS JOIN groups ON groups.no = slots.group_no
     WHERE slots.connected = 0 AND slots.persistent = ?1 AND slots.last_disconnect_ms <= ?2
     ORDER BY slots.last_disconnect_ms";

fn unsigned(row: &Row<'_>, column: impl rusqlite::RowIndex) -> rusqlite::Result<u64> {
    row.get(column).map(i64::cast_unsigned)
}

/// What SQLite found broken, and what does not have the type it was written with, is damage; everything else a failure.
impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType};
        let is_damage = match &error {
            FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..) => true,
            error => {
                matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
            }
        };
        if is_damage { Self::Damaged(error.to_string()) } else { Self::Failed(error.to_string()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Clock;

    #[tokio::test]
    async fn a_copy_that_takes_long_keeps_no_commit_waiting() {
        const GROUP: DeviceGroupId = DeviceGroupId::new([1; DeviceGroupId::LEN]);
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path(), Durability::Memory, 1).unwrap();
        store.commit(GROUP, vec![Write::Group(GroupRecord::default())]).await.unwrap();
        // What a copy does for as long as it takes.
        let reader = Connection::open(dir.path().join(DATABASE_FILE)).unwrap();
        reader.execute_batch("BEGIN; SELECT count(*) FROM groups;").unwrap();
        store.copies.fetch_add(1, Ordering::Relaxed);
        let wal = || std::fs::metadata(wal_of(&dir.path().join(DATABASE_FILE))).unwrap().len();
        let (clock, mut seq) = (Clock::system(), 0);
        let began = clock.now().monotonic;
        while wal() <= (WAL_PAGES_PATIENCE * 4_096 * 5 / 4).cast_unsigned() {
            seq += 1;
            let id = ReflectedId(Seq(seq).wire_id());
            let message = Reflected::new(Envelope::copy_from(&[7; 50_000]), ReflectFlags::default(), id, seq);
            let entry = LogEntry { seq: Seq(seq), origin: DeviceId(1), message };
            store.commit(GROUP, vec![Write::Append(entry)]).await.unwrap();
        }
        let took = clock.now().monotonic.saturating_sub(began);
        assert!(took.as_millis() < u128::from(BUSY_MS.cast_unsigned()), "{took:?}: a commit waited for the copy");
        store.close().await.unwrap();
    }
}
