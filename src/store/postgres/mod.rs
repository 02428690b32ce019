//! The store on PostgreSQL, which several nodes share.
//!
//! # The promise
//!
//! It is that of [`super`], and the disk's part of it is the server's: what was answered is in its write-ahead log, on its disk
//! (`fsync`, `synchronous_commit`), and where the operator wants it on a standby's. Rows are sealed as in SQLite. Slots of a node that
//! crashed stay marked as connected: whoever takes the group next finds them so and writes down that they are gone.
//!
//! # Whose a group is
//!
//! | table | says |
//! |---|---|
//! | `nodes` | which nodes there are, and until when each may be counted on: its *lease* |
//! | `owners` | which node has a group, and since which *epoch* |
//! | `groups`, `slots`, `log` | what is kept |
//!
//! A group that is not in `owners`, or whose node is not in `nodes`, is free for whoever writes its name there first. A node that
//! finds a group under the name of one whose lease has expired deletes that one's row in `nodes` and tries again. Every commit proves,
//! in its own transaction, that its node has a row and its group the node's name and epoch (`engine`), so whoever was deleted
//! can keep nothing from that moment on; and as long as a commit is under way, its node's row cannot be deleted, so whoever
//! takes over finds either all of it or none, and will for ever.
//!
//! No clock but the database's has a say in this, and that only in when a node may be deleted: to be wrong about it costs
//! devices a reconnect, never a message.
//!
//! # What is asked of the server
//!
//! PostgreSQL 15, or what speaks its protocol: tables, sequences, `INSERT ... ON CONFLICT`, arrays, row locks. Not used:
//! notifications, advisory locks, stored procedures, so that an engine of several machines can stand in.

mod effect;
mod engine;
mod keeper;
mod link;
mod owners;
mod read;
mod schema;
mod tenures;
mod tls;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::engine::PostgresEngine;
use self::keeper::Keeper;
use self::link::{Link, Server, told};
use self::owners::Owners;
use self::tenures::Tenures;
use super::tenure::{NodeId, Owner, Standing, Taken, Tenure};
use super::writer::{Job, Writer};
use super::{Census, Condition, Store, StoreError, check};
use crate::group::record::{Page, Seq, Snapshot, Write};
use crate::metrics;
use crate::time::Clock;
use crate::wire::d2m::DeviceGroupId;

/// The oldest server this was made for.
const VERSION_MIN: i32 = 15;
/// Shorter leases are lost by a busy machine.
const LEASE_MIN: Duration = Duration::from_millis(300);

/// Which database, and as whom.
#[derive(Clone)]
pub struct Settings {
    /// `postgres://user:password@host:port/database`, with `libpq`'s parameters for TLS: `sslmode` and `sslrootcert`.
    pub url: String,
    /// What the operator calls this node.
    pub name: String,
    /// Where other nodes reach it: host and port.
    pub address: String,
    /// For how long other nodes wait for this one when it is not heard of. The same on all of them.
    pub lease: Duration,
    /// What renewals are timed by.
    pub clock: Clock,
}

/// The URL may hold a password.
impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { url: _, name, address, lease, clock: _ } = self;
        f.debug_struct("Settings")
            .field("name", name)
            .field("address", address)
            .field("lease", lease)
            .finish_non_exhaustive()
    }
}

/// Why the store could not be opened, and what to do about it. Never says what the URL held.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// The URL is none.
    #[error(
        "the database's URL is not understood. It looks like this: postgres://user:password@host:5432/database?sslmode=require"
    )]
    Url,
    /// The lease is too short to be kept.
    #[error("a lease of less than {} ms is lost by every busy machine. Choose a longer one", LEASE_MIN.as_millis())]
    Lease,
    /// The authorities cannot be used.
    #[error("the database's certificate could not be checked: {reason}")]
    Tls {
        /// What is wrong.
        reason: String,
    },
    /// Nobody answers, or not us.
    #[error(
        "the database cannot be used: {reason}. Check that it runs, that this machine reaches it and that user and password are right; for a certificate of an authority of yours add sslrootcert=FILE to the URL"
    )]
    Unreachable {
        /// The server's or the system's words.
        reason: String,
    },
    /// The server is too old.
    #[error("the database server is of version {found}; {VERSION_MIN} or later is needed")]
    TooOld {
        /// Its version.
        found: i32,
    },
    /// It is a standby.
    #[error(
        "the database server is a standby, which keeps nothing. Give the primary's address, or add target_session_attrs=read-write to the URL"
    )]
    Standby,
    /// There are tables that are not ours.
    #[error(
        "the database has tables of the names that are needed, but not of this program's. Give it a database of its own, or a schema by the user's search_path"
    )]
    NotOurs,
    /// A later program wrote it.
    #[error(
        "the database was written by a newer version of this program (schema {found}; this one knows {known}). Run that version, or restore a backup"
    )]
    Newer {
        /// Its schema.
        found: i64,
        /// The latest schema this program knows.
        known: i64,
    },
    /// The server will not do what is needed.
    #[error("the database refuses: {reason}")]
    Engine {
        /// Its words.
        reason: String,
    },
    /// The system has no room for another thread.
    #[error("no thread for the store: {0}")]
    Thread(#[from] std::io::Error),
}

/// Keeps groups in a PostgreSQL database, as one node of those that share it.
#[derive(Debug)]
pub struct PostgresStore {
    writer: Writer,
    reader: Link,
    owners: Arc<Owners>,
    tenures: Arc<Tenures>,
    database_bytes: Arc<AtomicU64>,
    keeper: tokio::sync::Mutex<Option<JoinHandle<()>>>,
    stop: CancellationToken,
    _stops: DropGuard,
}

impl PostgresStore {
    /// Connects, brings the tables up to date and takes a lease. Dropping the store ends it as
    /// [`Self::close`] does, but nobody can wait for that.
    ///
    /// # Errors
    /// [`PostgresError`]; its message says what to do.
    pub async fn open(settings: Settings) -> Result<Arc<Self>, PostgresError> {
        let Settings { url, name, address, lease, clock } = settings;
        if lease < LEASE_MIN {
            return Err(PostgresError::Lease);
        }
        let server = Arc::new(Server::new(&url, lease)?);
        prepare(&server).await?;
        let tenures = Arc::new(Tenures::new());
        let owners = Arc::new(Owners::new(Arc::clone(&server), Arc::clone(&tenures)));
        let database_bytes = Arc::<AtomicU64>::default();
        let keeper = Keeper {
            server: Arc::clone(&server),
            owners: Arc::clone(&owners),
            name,
            address,
            lease,
            clock,
            database_bytes: Arc::clone(&database_bytes),
        };
        let session = keeper.connect().await.map_err(|error| unreachable(&error))?;
        let engine = PostgresEngine::new(Arc::clone(&server), Arc::clone(&tenures));
        let writer = Writer::spawn(engine)?;
        let (node, good_until) = keeper.register(&session).await.map_err(|error| unreachable(&error))?;
        tenures.begin(node);
        let stop = CancellationToken::new();
        let kept = tokio::spawn(keeper.keep(session, node, good_until, stop.clone()));
        Ok(Arc::new(Self {
            writer,
            reader: Link::new(server, &read::STATEMENTS),
            owners,
            tenures,
            database_bytes,
            keeper: tokio::sync::Mutex::new(Some(kept)),
            _stops: stop.clone().drop_guard(),
            stop,
        }))
    }

    /// Keeps what was asked before, and frees this node's groups for the others. Everything asked later is refused.
    ///
    /// # Errors
    /// [`StoreError::Closed`] when it was closed before. What was kept stays kept.
    pub async fn close(&self) -> Result<(), StoreError> {
        let closed = self.writer.close().await;
        self.stop.cancel();
        if let Some(keeper) = self.keeper.lock().await.take() {
            keeper.await.map_err(|error| StoreError::Failed(error.to_string()))?;
        }
        if let Ok(node) = self.tenures.node() {
            self.tenures.end(node);
        }
        self.reader.close().await;
        closed
    }

    /// This node, as long as it has a lease.
    ///
    /// # Errors
    /// [`StoreError::Lost`] while it has none.
    pub fn node(&self) -> Result<NodeId, StoreError> {
        self.tenures.node()
    }

    /// How this node's own lease stands: held or lost.
    #[must_use]
    pub fn lease(&self) -> watch::Receiver<Standing> {
        self.tenures.lease()
    }

    /// The living node that has a group.
    ///
    /// # Errors
    /// [`StoreError::Failed`] when the database cannot be asked.
    pub async fn owner(&self, group: DeviceGroupId) -> Result<Option<Owner>, StoreError> {
        self.owners.owner(group).await
    }

    async fn ask(&self, group: DeviceGroupId, writes: Vec<Write>) -> Result<(), StoreError> {
        let under = self.tenures.asks(group)?;
        let kept = self.writer.commit(Job { group, writes, under: Some(under) }).await;
        // Not so when it failed: it may have been kept, or will be.
        if matches!(kept, Ok(()) | Err(StoreError::Refused(_) | StoreError::Exhausted(_) | StoreError::Lost)) {
            self.tenures.decided(group, under);
        }
        kept
    }
}

impl Store for PostgresStore {
    fn take(&self, group: DeviceGroupId) -> BoxFuture<'_, Result<Taken, StoreError>> {
        Box::pin(self.owners.take(group))
    }

    fn give_up(&self, group: DeviceGroupId, tenure: Tenure) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.owners.give_up(group, tenure.epoch()).await })
    }

    fn want(&self, group: DeviceGroupId, of: NodeId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.owners.want(group, of))
    }

    fn prove(&self, group: DeviceGroupId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.ask(group, Vec::new()))
    }

    fn load(&self, group: DeviceGroupId) -> BoxFuture<'_, Result<Option<Snapshot>, StoreError>> {
        Box::pin(read::load(&self.reader, group))
    }

    fn commit(&self, group: DeviceGroupId, writes: Vec<Write>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            check(&writes)?;
            self.ask(group, writes).await
        })
    }

    fn page(
        &self,
        group: DeviceGroupId,
        after: Seq,
        through: Seq,
        cost_max: usize,
    ) -> BoxFuture<'_, Result<Page, StoreError>> {
        Box::pin(read::page(&self.reader, group, after, through, cost_max))
    }

    fn due(
        &self,
        volatile_before_ms: u64,
        persistent_before_ms: Option<u64>,
        most: usize,
    ) -> BoxFuture<'_, Result<Vec<DeviceGroupId>, StoreError>> {
        Box::pin(read::due(&self.reader, self.tenures.node().ok(), volatile_before_ms, persistent_before_ms, most))
    }

    fn census(&self, after: Option<DeviceGroupId>, most: usize) -> BoxFuture<'_, Result<Census, StoreError>> {
        Box::pin(read::census(&self.reader, after, most))
    }

    fn knows(&self, group: DeviceGroupId) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(read::knows(&self.reader, group))
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.writer.probe())
    }

    fn condition(&self) -> Condition {
        self.writer.condition()
    }

    fn nodes(&self) -> BoxFuture<'_, Result<Vec<Owner>, StoreError>> {
        Box::pin(self.owners.nodes())
    }

    fn is_leased(&self) -> bool {
        self.tenures.node().is_ok()
    }

    fn back_up(&self, _dir: &Path) -> Result<(), StoreError> {
        Err(StoreError::Refused("the database is another program's to copy: use pg_dump, or the server's own backups"))
    }

    fn measure(&self) {
        #[expect(clippy::cast_precision_loss, reason = "exact up to 8 PiB")]
        metrics::get().database_bytes.set(self.database_bytes.load(Ordering::Relaxed) as f64);
    }
}

/// Whether the server is one that can be used; and the tables.
async fn prepare(server: &Server) -> Result<(), PostgresError> {
    let mut session = server.connect(&[]).await.map_err(|error| unreachable(&error))?;
    let about =
        "SELECT current_setting('server_version_num')::INTEGER / 10000, pg_is_in_recovery(), current_setting('fsync')";
    let row = session.client.query_one(about, &[]).await.map_err(|error| unreachable(&error))?;
    let get = |error: tokio_postgres::Error| unreachable(&error);
    let (version, is_standby, fsync): (i32, bool, String) =
        (row.try_get(0).map_err(get)?, row.try_get(1).map_err(get)?, row.try_get(2).map_err(get)?);
    if version < VERSION_MIN {
        return Err(PostgresError::TooOld { found: version });
    }
    if is_standby {
        return Err(PostgresError::Standby);
    }
    if fsync != "on" {
        tracing::warn!("the database server runs with fsync = {fsync}: a loss of power may lose what was acknowledged");
    }
    schema::prepare(&mut session.client).await
}

fn unreachable(error: &tokio_postgres::Error) -> PostgresError {
    PostgresError::Unreachable { reason: told(error) }
}
