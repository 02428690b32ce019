//! What keeps a batch: one transaction in one round trip.
//!
//! # The fence
//!
//! Every batch begins by locking the node's own row in `nodes` against being deleted (`FOR KEY SHARE`: a renewal, which changes
//! no key, does not mind), and then compares the node and epoch of every job with `owners`. Both raise an error instead of
//! finding nothing, since the statements behind them are on their way already: what fails takes the whole transaction with it.
//!
//! `owners` is read without a lock. That is enough, since nobody can make what was read there untrue before this batch is decided:
//!
//! * Another node changes a row of `owners` only when the node it names has no row in `nodes`; to remove an expired one it has to
//!   delete it, which waits for the lock.
//! * This node itself gives a group up when nothing of it is on its way, or else does what it does when it takes a group that it
//!   has already: it gives the group a new epoch first and then waits for the lock once ([`super::owners`]). A batch that read the
//!   old epoch had the lock before, since it takes it first; one that comes later finds the new epoch and fails.
//!
//! # What is not known
//!
//! When the connection breaks, or nothing is heard for as long as anybody can wait, the batch may have been kept or not, or be
//! decided later. Its jobs are answered with an error, and the connection is given up. The groups are not taken again before the
//! batch is decided: they are in this node's name still, so it goes the way above.
//!
//! The thread that writes drives its connection itself, so a commit does not wait for any other task of the process.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

use super::effect::Rows;
use super::link::{Param, Server, Session, told};
use super::tenures::Tenures;
use crate::metrics;
use crate::store::tenure::NodeId;
use crate::store::writer::{Engine, Job};
use crate::store::{NO_GROUP, StoreError, TAKEN};

/// Lives on the writer's thread.
pub(super) struct PostgresEngine {
    server: Arc<Server>,
    tenures: Arc<Tenures>,
    /// Made on the thread it is used on.
    runtime: Option<Runtime>,
    session: Option<Session>,
    is_cut_off: bool,
}

impl PostgresEngine {
    pub(super) const fn new(server: Arc<Server>, tenures: Arc<Tenures>) -> Self {
        Self { server, tenures, runtime: None, session: None, is_cut_off: false }
    }

    /// Runs `work` on a connection, a new one if there is none.
    fn on_session<T>(&mut self, work: impl AsyncFnOnce(&Session) -> Result<T, Failure>) -> Result<T, Failure> {
        let runtime = match self.runtime.take() {
            Some(runtime) => runtime,
            None => {
                Builder::new_current_thread().enable_all().build().map_err(|error| Failure::Kept(failed(&error)))?
            }
        };
        let (server, kept, tenures) = (&self.server, &mut self.session, &self.tenures);
        let done = runtime.block_on(async {
            // Nobody looked at the connection since the last batch: whether it has ended meanwhile is seen now, before anything is
            // sent whose fate would be unknown.
            for _ in 0..2 {
                tokio::task::yield_now().await;
            }
            let work = async {
                let session = match kept.take().filter(|session| !session.client.is_closed()) {
                    Some(session) => session,
                    None => connected(server, tenures).await?,
                };
                let done = work(&session).await;
                // One whose fate is unknown goes with its connection.
                if !session.client.is_closed() && !matches!(done, Err(Failure::Unknown(_))) {
                    *kept = Some(session);
                }
                done
            };
            let silent = || Failure::Unknown("the database does not answer".to_owned());
            let done = tokio::time::timeout(server.patience, work).await.unwrap_or_else(|_| Err(silent()));
            // A connection that was given up is closed when its task is next looked at, which nobody else does.
            tokio::task::yield_now().await;
            done
        });
        self.runtime = Some(runtime);
        self.is_cut_off = matches!(done, Err(Failure::Nobody(_) | Failure::Unknown(_)));
        done
    }
}

/// A connection on which nothing can be changed but in a transaction that was begun: what stands behind a `BEGIN` that failed is
/// refused, too. A server that takes no connections is starting, most of the time: nothing was sent, so whoever waits goes on
/// waiting, for as long as this node has a lease.
async fn connected(server: &Server, tenures: &Tenures) -> Result<Session, Failure> {
    loop {
        let made = async {
            let session = server.connect(&STATEMENTS).await?;
            session.client.batch_execute("SET default_transaction_read_only = on").await.map(|()| session)
        };
        match made.await {
            Ok(session) => return Ok(session),
            Err(error) if tenures.node().is_err() => return Err(Failure::Nobody(told(&error))),
            Err(_) => tokio::time::sleep(CONNECT_AGAIN).await,
        }
    }
}

/// How soon a server is asked for a connection again that refused one.
const CONNECT_AGAIN: Duration = Duration::from_millis(100);

impl Engine for PostgresEngine {
    fn commit(&mut self, jobs: &[Job]) -> Result<(), StoreError> {
        self.is_cut_off = false;
        let Some(node) = jobs.first().and_then(|job| job.under).map(|under| under.node) else {
            return Err(StoreError::Lost);
        };
        let rows = Rows::of(jobs);
        if jobs.len() > 1 {
            // Whoever asked for what cannot be, or under a lease that is over, fails alone.
            if jobs.iter().any(|job| job.under.is_none_or(|under| under.node != node)) {
                return Err(StoreError::Lost);
            }
            if let Some(refused) = rows.refused {
                return Err(refused);
            }
        }
        match self.on_session(async |session| keep(session, node, &rows).await) {
            Ok(deleted) => {
                metrics::get().store_appended.increment(rows.log.seq.len() as u64);
                metrics::get().store_deleted.increment(deleted);
                Ok(())
            }
            Err(Failure::LeaseLost) => {
                self.tenures.lose(node);
                // All of them were asked under it.
                self.is_cut_off = true;
                Err(StoreError::Lost)
            }
            Err(Failure::Kept(error)) => Err(error),
            Err(Failure::Nobody(reason) | Failure::Unknown(reason)) => Err(StoreError::Failed(reason)),
        }
    }

    fn may_ask_again(&self) -> bool {
        !self.is_cut_off
    }

    fn probe(&mut self) -> Result<(), StoreError> {
        let probed = self.on_session(async |session| {
            session.query(PROBE, &[]).await.map_err(|error| Failure::Unknown(told(&error)))?;
            Ok(())
        });
        probed.map_err(StoreError::from)
    }

    /// The connection's runtime is left where it was made, which waits for nothing.
    fn close(mut self) -> Result<(), StoreError> {
        drop(self.session.take());
        Ok(())
    }
}

/// Why a batch was not kept, as far as that is known.
enum Failure {
    /// The server said so, and goes on.
    Kept(StoreError),
    /// The node's row is gone.
    LeaseLost,
    /// There is no connection, so nothing was sent.
    Nobody(String),
    /// It may have been kept, or will be.
    Unknown(String),
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Kept(error) => error,
            Failure::LeaseLost => Self::Lost,
            Failure::Nobody(reason) | Failure::Unknown(reason) => Self::Failed(reason),
        }
    }
}

fn failed(error: &std::io::Error) -> StoreError {
    StoreError::Failed(error.to_string())
}

/// Which statement of a batch failed says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Frame,
    Lease,
    Tenures,
    MustExist,
    MustBeFree,
    Trim,
    Change,
    Append,
    End,
}

/// Sends everything, then waits for all of it; how many entries were deleted.
async fn keep(session: &Session, node: NodeId, rows: &Rows<'_>) -> Result<u64, Failure> {
    let node = node.0;
    let jobs = i64::try_from(rows.jobs.len()).unwrap_or(i64::MAX);
    let must_exist = i64::try_from(rows.must_exist.len()).unwrap_or(i64::MAX);
    let mut said: Vec<(Step, &'static str, Vec<Param<'_>>)> =
        vec![(Step::Lease, LEASE, vec![&node]), (Step::Tenures, TENURES, vec![&rows.jobs, &rows.epochs, &node, &jobs])];
    if !rows.must_exist.is_empty() {
        said.push((Step::MustExist, MUST_EXIST, vec![&rows.must_exist, &must_exist]));
    }
    if !rows.must_be_free.group.is_empty() {
        said.push((Step::MustBeFree, MUST_BE_FREE, vec![&rows.must_be_free.group, &rows.must_be_free.number]));
    }
    if !rows.trimmed.group.is_empty() {
        said.push((Step::Trim, TRIM, vec![&rows.trimmed.group, &rows.trimmed.number]));
    }
    if !rows.forgotten.is_empty() {
        said.push((Step::Change, FORGET_SLOTS, vec![&rows.forgotten]));
    }
    if !rows.gone.is_empty() {
        said.push((Step::Change, FORGET_GROUPS, vec![&rows.gone]));
    }
    if !rows.removed.group.is_empty() {
        said.push((Step::Change, REMOVE_SLOTS, vec![&rows.removed.group, &rows.removed.number]));
    }
    let it = &rows.groups;
    if !it.group.is_empty() {
        let columns =
            vec![&it.group as Param<'_>, &it.seq_reserved, &it.last_timestamp_ms, &it.shared_device_data, &it.seal];
        said.push((Step::Change, WRITE_GROUPS, columns));
    }
    let it = &rows.slots;
    if !it.group.is_empty() {
        let columns: [Param<'_>; 16] = [
            &it.group,
            &it.device,
            &it.persistent,
            &it.connected,
            &it.last_disconnect_ms,
            &it.device_info,
            &it.since,
            &it.cursor,
            &it.acked,
            &it.acked_unseen,
            &it.issued,
            &it.counted_through,
            &it.held_pending,
            &it.held_entries,
            &it.held_bytes,
            &it.seal,
        ];
        said.push((Step::Change, WRITE_SLOTS, columns.to_vec()));
    }
    let it = &rows.log;
    if !it.group.is_empty() {
        said.push((
            Step::Append,
            APPEND,
            vec![&it.group, &it.seq, &it.origin, &it.timestamp_ms, &it.envelope, &it.seal],
        ));
    }
    let frame = |sql: &'static str| async move { session.client.batch_execute(sql).await.map(|()| 0) };
    let mut steps = vec![Step::Frame];
    let mut asks: Vec<BoxFuture<'_, Result<u64, Error>>> = vec![Box::pin(frame("BEGIN READ WRITE"))];
    for (step, sql, with) in &said {
        steps.push(*step);
        asks.push(Box::pin(session.execute(sql, with)));
    }
    // Even what cannot be kept is compared with what is: an earlier write may be impossible for a reason only the database knows.
    steps.push(Step::End);
    asks.push(Box::pin(frame(if rows.refused.is_some() { "ROLLBACK" } else { "COMMIT" })));
    // Each is sent when it is first polled: in this order, and all of them before any is waited for. So few are polled in turn.
    let answers = join_all(asks).await;
    let mut deleted = 0;
    for (step, answer) in steps.into_iter().zip(answers) {
        let count = answer.map_err(|error| because(step, &error))?;
        deleted += if step == Step::Trim { count } else { 0 };
    }
    rows.refused.clone().map_or(Ok(deleted), |refused| Err(Failure::Kept(refused)))
}

/// What the first statement that failed means for the batch.
fn because(step: Step, error: &Error) -> Failure {
    let Some(code) = error.code() else { return Failure::Unknown(told(error)) };
    match step {
        Step::Lease if *code == SqlState::DIVISION_BY_ZERO => Failure::LeaseLost,
        Step::Tenures if *code == SqlState::DIVISION_BY_ZERO => Failure::Kept(StoreError::Lost),
        Step::MustExist if *code == SqlState::DIVISION_BY_ZERO => Failure::Kept(NO_GROUP),
        Step::MustBeFree if *code == SqlState::DIVISION_BY_ZERO => Failure::Kept(TAKEN),
        Step::Append if *code == SqlState::UNIQUE_VIOLATION => Failure::Kept(TAKEN),
        // Nothing behind it was kept, nor is it worth asking in this session again.
        Step::Frame => Failure::Unknown(told(error)),
        // A commit that fails may have been kept for all that is known, unless the server says that it rolled back.
        Step::End => match code.code() {
            "40001" | "40P01" | "40002" | "40000" => Failure::Kept(StoreError::Failed(told(error))),
            _ => Failure::Unknown(told(error)),
        },
        _ => Failure::Kept(StoreError::Failed(told(error))),
    }
}

const PROBE: &str = "SELECT 1";

const LEASE: &str = "SELECT 1 / count(*) FROM (SELECT 1 FROM nodes WHERE node = $1 FOR KEY SHARE) AS held";

const TENURES: &str = "SELECT 1 / (CASE WHEN count(*) = $4 THEN 1 ELSE 0 END)
    FROM unnest($1::BYTEA[], $2::BIGINT[]) AS job (id, epoch)
    JOIN owners ON owners.device_group_id = job.id AND owners.epoch = job.epoch AND owners.node = $3";

const MUST_EXIST: &str = "SELECT 1 / (CASE WHEN count(*) = $2 THEN 1 ELSE 0 END)
    FROM groups WHERE device_group_id = ANY ($1::BYTEA[])";

const MUST_BE_FREE: &str = "SELECT 1 / (CASE WHEN count(*) = 0 THEN 1 ELSE 0 END)
    FROM unnest($1::BYTEA[], $2::BIGINT[]) AS place (id, seq)
    JOIN log ON log.device_group_id = place.id AND log.seq = place.seq";

const TRIM: &str = "DELETE FROM log USING unnest($1::BYTEA[], $2::BIGINT[]) AS trimmed (id, through)
    WHERE log.device_group_id = trimmed.id AND log.seq <= trimmed.through";

const FORGET_SLOTS: &str = "DELETE FROM slots WHERE device_group_id = ANY ($1::BYTEA[])";

const FORGET_GROUPS: &str = "DELETE FROM groups WHERE device_group_id = ANY ($1::BYTEA[])";

const REMOVE_SLOTS: &str = "DELETE FROM slots USING unnest($1::BYTEA[], $2::BIGINT[]) AS removed (id, device)
    WHERE slots.device_group_id = removed.id AND slots.device = removed.device";

const WRITE_GROUPS: &str = "INSERT INTO groups
    SELECT * FROM unnest($1::BYTEA[], $2::BIGINT[], $3::BIGINT[], $4::BYTEA[], $5::BYTEA[])
    ON CONFLICT (device_group_id) DO UPDATE SET
    seq_reserved = excluded.seq_reserved, last_timestamp_ms = excluded.last_timestamp_ms,
    shared_device_data = excluded.shared_device_data, seal = excluded.seal";

const WRITE_SLOTS: &str = "INSERT INTO slots
    SELECT * FROM unnest($1::BYTEA[], $2::BIGINT[], $3::BOOLEAN[], $4::BOOLEAN[], $5::BIGINT[], $6::BYTEA[], $7::BIGINT[],
        $8::BIGINT[], $9::BYTEA[], $10::BYTEA[], $11::BIGINT[], $12::BIGINT[], $13::BIGINT[], $14::BIGINT[], $15::BIGINT[],
        $16::BYTEA[])
    ON CONFLICT (device_group_id, device) DO UPDATE SET
    persistent = excluded.persistent, connected = excluded.connected,
    last_disconnect_ms = excluded.last_disconnect_ms, device_info = excluded.device_info,
    since = excluded.since, cursor = excluded.cursor, acked = excluded.acked,
    acked_unseen = excluded.acked_unseen, issued = excluded.issued,
    counted_through = excluded.counted_through, held_pending = excluded.held_pending,
    held_entries = excluded.held_entries, held_bytes = excluded.held_bytes, seal = excluded.seal";

const APPEND: &str = "INSERT INTO log
    SELECT * FROM unnest($1::BYTEA[], $2::BIGINT[], $3::BIGINT[], $4::BIGINT[], $5::BYTEA[], $6::BYTEA[])";

/// What is prepared on the connection: all there are.
const STATEMENTS: [&str; 12] = [
    PROBE,
    LEASE,
    TENURES,
    MUST_EXIST,
    MUST_BE_FREE,
    TRIM,
    FORGET_SLOTS,
    FORGET_GROUPS,
    REMOVE_SLOTS,
    WRITE_GROUPS,
    WRITE_SLOTS,
    APPEND,
];
