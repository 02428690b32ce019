//! Keeps the node's lease.
//!
//! The lease is one row of `nodes`, so one update renews all groups of the node, three times in each lease. The database's clock is
//! the only one that says when it is over. Here the time counts from the moment at which the last renewal that succeeded was
//! *sent*, and a fifth of the lease earlier: so this node lets its devices go before another can take them. That is courtesy, not
//! safety: the fence ([`super::engine`]) refuses a node that is late, however wrong its clock goes or however long it slept.
//!
//! A lease that is over is not taken up again. The node goes on under another number, with nothing in its hands.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::Error;
use tokio_util::sync::CancellationToken;

use super::link::{Server, Session, told};
use super::owners::Owners;
use super::read::id_of;
use crate::metrics::{self, Outcome};
use crate::store::StoreError;
use crate::store::tenure::NodeId;
use crate::time::Clock;
use crate::wire::d2m::DeviceGroupId;

const REGISTER: &str =
    "INSERT INTO nodes SELECT nextval('node_ids'), $1, $2, now() + $3 * INTERVAL '1 millisecond' RETURNING node";
/// Waits for what was under way.
const UNREGISTER: &str = "DELETE FROM nodes WHERE node = $1";
/// Those that nobody took over from: their groups need no burial.
const BURY_OLD: &str = "DELETE FROM nodes WHERE expires <= now() - $1 * INTERVAL '10 milliseconds'";
const RENEW: &str = "UPDATE nodes SET expires = now() + $2 * INTERVAL '1 millisecond' WHERE node = $1";
const WANTED: &str = "SELECT device_group_id FROM owners WHERE node = $1 AND wanted LIMIT 1024";
const GIVE_ALL_UP: &str = "DELETE FROM owners WHERE node = $1
    AND NOT EXISTS (SELECT 1 FROM slots WHERE slots.device_group_id = owners.device_group_id AND slots.connected)";
const SIZE: &str = "SELECT pg_database_size(current_database())";
const STATEMENTS: [&str; 6] = [REGISTER, UNREGISTER, BURY_OLD, RENEW, WANTED, GIVE_ALL_UP];

/// The size is asked for with every so many renewals.
const SIZE_EVERY: u32 = 16;

/// How this node calls itself, and for how long.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) server: Arc<Server>,
    pub(super) owners: Arc<Owners>,
    pub(super) name: String,
    pub(super) address: String,
    pub(super) lease: Duration,
    pub(super) clock: Clock,
    pub(super) database_bytes: Arc<AtomicU64>,
}

impl Keeper {
    /// Makes the node known. Until when it may count on its lease.
    pub(super) async fn register(&self, session: &Session) -> Result<(NodeId, Duration), Error> {
        let lease_ms = self.lease_ms();
        session.execute(BURY_OLD, &[&lease_ms]).await?;
        let sent = self.clock.now().monotonic;
        let rows = session.query(REGISTER, &[&self.name, &self.address, &lease_ms]).await?;
        let node = rows.first().map_or(Ok(0), |row| row.try_get(0))?;
        Ok((NodeId(node), self.good_until(sent)))
    }

    pub(super) async fn connect(&self) -> Result<Session, Error> {
        self.server.connect(&STATEMENTS).await
    }

    /// Renews until `stop`, then takes the node off the list.
    pub(super) async fn keep(
        self,
        session: Session,
        mut node: NodeId,
        mut good_until: Duration,
        stop: CancellationToken,
    ) {
        let mut session = Some(session);
        let mut tidying: Option<JoinHandle<()>> = None;
        let mut round = 0_u32;
        let mut next = self.clock.now().monotonic.saturating_add(self.lease / 3);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = self.owners.tenures.lost.notified() => {}
                () = self.clock.sleep_until(Some(next.min(good_until))) => {}
            }
            let sent = self.clock.now().monotonic;
            if self.owners.tenures.node() == Ok(node) && sent < good_until {
                // Whatever it is worth to wait for.
                let patience = good_until.saturating_sub(sent).min(self.lease / 3);
                let renewed = tokio::time::timeout(patience, self.renew(&mut session, node)).await;
                round = round.wrapping_add(1);
                match renewed {
                    Ok(Ok(Some(wanted))) => {
                        count(Outcome::Done);
                        let took = self.clock.now().monotonic.saturating_sub(sent);
                        metrics::get().lease_renewal_seconds.record(took.as_secs_f64());
                        good_until = self.good_until(sent);
                        next = sent.saturating_add(self.lease / 3);
                        if round.is_multiple_of(SIZE_EVERY)
                            && let Some(session) = &session
                        {
                            // The lease is renewed already, and need not wait for what nobody waits for.
                            let _late = tokio::time::timeout(self.lease / 6, self.measure(session)).await;
                        }
                        if tidying.as_ref().is_none_or(JoinHandle::is_finished) {
                            tidying = Some(self.tidy(wanted));
                        }
                        continue;
                    }
                    Ok(Ok(None)) => {
                        count(Outcome::Failed);
                        tracing::warn!(%node, "this node's lease was ended by another");
                    }
                    Ok(Err(error)) => {
                        count(Outcome::Failed);
                        tracing::warn!(%node, reason = told(&error), "the lease cannot be renewed");
                        session = None;
                        next = sent.saturating_add(self.lease / 20);
                        continue;
                    }
                    Err(_) => {
                        count(Outcome::Failed);
                        tracing::warn!(%node, "the database does not answer, so the lease cannot be renewed");
                        session = None;
                        next = self.clock.now().monotonic;
                        if next < good_until {
                            continue;
                        }
                    }
                }
            }
            self.owners.tenures.lose(node);
            tracing::warn!(%node, "this node has lost its lease, and its groups with it");
            let Some(begun) = stop.run_until_cancelled(self.begin_again(&mut session, node)).await else { break };
            (node, good_until) = begun;
            next = self.clock.now().monotonic;
        }
        if let Some(tidying) = tidying {
            tidying.abort();
        }
        self.leave(session, node).await;
    }

    /// What other nodes want of this one's groups; `None` when the lease is over.
    async fn renew(&self, session: &mut Option<Session>, node: NodeId) -> Result<Option<Vec<DeviceGroupId>>, Error> {
        let session = self.connected(session).await?;
        let (renewed, wanted) = futures_util::future::join(
            session.execute(RENEW, &[&node.0, &self.lease_ms()]),
            session.query(WANTED, &[&node.0]),
        )
        .await;
        if renewed? == 0 {
            return Ok(None);
        }
        Ok(Some(wanted?.iter().filter_map(|row| id_of(row).ok()).collect()))
    }

    /// Looks how large the database is, which may take the server a while.
    async fn measure(&self, session: &Session) {
        if let Ok(rows) = session.query(SIZE, &[]).await
            && let Some(bytes) = rows.first().and_then(|row| row.try_get::<_, i64>(0).ok())
        {
            self.database_bytes.store(bytes.unsigned_abs(), Ordering::Relaxed);
        }
    }

    /// Registers anew, as soon as the database lets it.
    async fn begin_again(&self, session: &mut Option<Session>, old: NodeId) -> (NodeId, Duration) {
        loop {
            let registered = tokio::time::timeout(self.server.patience, async {
                let session = self.connected(session).await?;
                // What was under way under the old number is decided then, and its groups are anybody's.
                session.execute(UNREGISTER, &[&old.0]).await?;
                self.register(session).await
            });
            match registered.await {
                Ok(Ok((node, good_until))) => {
                    tracing::info!(%node, "this node has a lease again");
                    self.owners.tenures.begin(node);
                    return (node, good_until);
                }
                Ok(Err(error)) => tracing::debug!(reason = told(&error), "this node cannot register"),
                Err(_) => tracing::debug!("this node cannot register: the database does not answer"),
            }
            *session = None;
            tokio::time::sleep(self.lease / 20).await;
        }
    }

    /// Its groups are free at once.
    async fn leave(&self, mut session: Option<Session>, node: NodeId) {
        let left = tokio::time::timeout(self.server.patience, async {
            let session = self.connected(&mut session).await?;
            session.execute(UNREGISTER, &[&node.0]).await?;
            session.execute(GIVE_ALL_UP, &[&node.0]).await
        });
        match left.await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%node, reason = told(&error), "this node's lease was left to expire"),
            Err(_) => tracing::warn!(%node, "this node's lease was left to expire: the database does not answer"),
        }
        self.owners.close().await;
    }

    fn tidy(&self, wanted: Vec<DeviceGroupId>) -> JoinHandle<()> {
        let unheld = self.owners.tenures.want(wanted);
        let owners = Arc::clone(&self.owners);
        tokio::spawn(async move {
            match owners.tidy(unheld).await {
                Ok(()) | Err(StoreError::Lost) => {}
                Err(error) => tracing::debug!(%error, "groups that nobody holds cannot be given up"),
            }
        })
    }

    async fn connected<'a>(&self, session: &'a mut Option<Session>) -> Result<&'a Session, Error> {
        let kept = session.take().filter(|session| !session.client.is_closed());
        let kept = match kept {
            Some(kept) => kept,
            None => self.connect().await?,
        };
        Ok(session.insert(kept))
    }

    fn good_until(&self, sent: Duration) -> Duration {
        sent.saturating_add(self.lease - self.lease / 5)
    }

    fn lease_ms(&self) -> f64 {
        self.lease.as_secs_f64() * 1_000.0
    }
}

fn count(outcome: Outcome) {
    metrics::get().lease_renewals.of(outcome).increment(1);
}
