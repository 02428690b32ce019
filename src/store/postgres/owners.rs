//! Taking groups, and giving them up.

use std::sync::Arc;

use futures_util::future::join;
use tokio_postgres::Row;

use super::link::{Link, Param, Server};
use super::tenures::{Leaving, Tenures};
use crate::store::StoreError;
use crate::store::tenure::{Epoch, NodeId, Owner, Taken, Tenure};
use crate::store::writer::Under;
use crate::wire::d2m::DeviceGroupId;

/// How often a group may change hands while this node reaches for it.
const ATTEMPTS: usize = 8;

const TAKE: &str = "WITH me AS (SELECT node FROM nodes WHERE node = $2 FOR KEY SHARE)
    INSERT INTO owners SELECT $1, me.node, nextval('epochs'), FALSE FROM me
    ON CONFLICT (device_group_id) DO NOTHING RETURNING epoch";
const WHOSE: &str = "SELECT owners.node, owners.epoch, nodes.name, nodes.address, nodes.expires <= now()
    FROM owners LEFT JOIN nodes ON nodes.node = owners.node WHERE owners.device_group_id = $1";
const IS_LIVING: &str = "SELECT 1 FROM nodes WHERE node = $1";
/// From a tenure that is this node's already, or whose node is gone.
const TAKE_OVER: &str = "WITH me AS (SELECT node FROM nodes WHERE node = $2 FOR KEY SHARE)
    UPDATE owners SET node = me.node, epoch = nextval('epochs'), wanted = FALSE FROM me
    WHERE owners.device_group_id = $1 AND owners.node = $3 AND owners.epoch = $4 RETURNING owners.epoch";
/// Waits for what the node has under way, and ends it: nothing of it is kept from then on.
const BURY: &str = "DELETE FROM nodes WHERE node = $1 AND expires <= now()";
/// Waits for what this node has under way.
const WAIT: &str = "SELECT 1 FROM nodes WHERE node = $1 FOR UPDATE";
/// Whoever is written down as connected has to be written down as gone, by whoever wakes the group next: until then it is
/// nobody's, and found by that.
const LEAVE_ALONE: &str = "UPDATE owners SET node = 0 WHERE device_group_id = $1 AND node = $2 AND epoch = $3
    AND EXISTS (SELECT 1 FROM slots WHERE slots.device_group_id = $1 AND slots.connected)";
const GIVE_UP: &str = "DELETE FROM owners WHERE device_group_id = $1 AND node = $2 AND epoch = $3";
const WANT: &str = "UPDATE owners SET wanted = TRUE WHERE device_group_id = $1 AND node = $2 AND NOT wanted";
const LIVING: &str = "SELECT node, name, address FROM nodes WHERE expires > now() ORDER BY node";

const STATEMENTS: [&str; 10] = [TAKE, WHOSE, IS_LIVING, TAKE_OVER, BURY, WAIT, LEAVE_ALONE, GIVE_UP, WANT, LIVING];

/// Where groups change hands.
#[derive(Debug)]
pub(super) struct Owners {
    link: Link,
    pub(super) tenures: Arc<Tenures>,
}

/// What a row says of a group's owner.
struct Found {
    node: NodeId,
    epoch: Epoch,
    /// `None` when the node is gone.
    living: Option<(Owner, bool)>,
}

impl Owners {
    pub(super) fn new(server: Arc<Server>, tenures: Arc<Tenures>) -> Self {
        Self { link: Link::new(server, &STATEMENTS), tenures }
    }

    /// See [`Store::take`](crate::store::Store::take).
    pub(super) async fn take(&self, group: DeviceGroupId) -> Result<Taken, StoreError> {
        for _ in 0..ATTEMPTS {
            let node = self.tenures.node()?;
            let made = self.ask(TAKE, group, &[node.0]).await?;
            if let Some(row) = made.first() {
                if let Some(tenure) = self.grant(group, node, row)? {
                    return Ok(Taken::Here(tenure));
                }
                continue;
            }
            let found = match self.found(group).await? {
                Some(found) => found,
                // It was given up just now, or it is this node that is gone.
                None if self.is_living(node).await? => continue,
                None => {
                    self.tenures.lose(node);
                    return Err(StoreError::Lost);
                }
            };
            match found.living {
                Some(_) if found.node == node => {
                    if let Some(under) = self.renew(group, Under { node, epoch: found.epoch }).await?
                        && let Some(tenure) = self.tenures.grant(group, under)
                    {
                        return Ok(Taken::Here(tenure));
                    }
                }
                Some((owner, false)) => return Ok(Taken::Elsewhere(owner)),
                Some((_, true)) => {
                    self.link.ask(|session| async move { session.execute(BURY, &[&found.node.0]).await }).await?;
                }
                None => {
                    let over = self.ask(TAKE_OVER, group, &[node.0, found.node.0, found.epoch.0]).await?;
                    if let Some(row) = over.first()
                        && let Some(tenure) = self.grant(group, node, row)?
                    {
                        return Ok(Taken::Here(tenure));
                    }
                }
            }
        }
        Err(StoreError::Failed("a group changes hands too fast to be taken".to_owned()))
    }

    /// Puts a new epoch in the place of an older one of this node, and waits until nothing that was asked under the older one
    /// can be kept any more. The order matters: see [`super::engine`].
    async fn renew(&self, group: DeviceGroupId, Under { node, epoch }: Under) -> Result<Option<Under>, StoreError> {
        let renewed = self.ask(TAKE_OVER, group, &[node.0, node.0, epoch.0]).await?;
        let Some(row) = renewed.first() else { return Ok(None) };
        let epoch = Epoch(number(row, 0)?);
        self.link.ask(|session| async move { session.query(WAIT, &[&node.0]).await }).await?;
        Ok(Some(Under { node, epoch }))
    }

    /// See [`Store::give_up`](crate::store::Store::give_up). What cannot be given up now is a stray: the keeper tries again.
    pub(super) async fn give_up(&self, group: DeviceGroupId, epoch: Epoch) -> Result<(), StoreError> {
        let Some(leaving) = self.tenures.leave(group, epoch) else { return Ok(()) };
        let left = self.leave(group, &leaving).await;
        if left.is_err() {
            self.tenures.stay(group, leaving);
        }
        left
    }

    async fn leave(&self, group: DeviceGroupId, leaving: &Leaving) -> Result<(), StoreError> {
        if leaving.is_undecided {
            self.release(group, leaving.under).await
        } else {
            self.let_go(group, leaving.under).await
        }
    }

    /// Gives up a group of which something may still be on its way.
    async fn release(&self, group: DeviceGroupId, under: Under) -> Result<(), StoreError> {
        match self.renew(group, under).await? {
            Some(under) => self.let_go(group, under).await,
            None => Ok(()),
        }
    }

    async fn let_go(&self, group: DeviceGroupId, Under { node, epoch }: Under) -> Result<(), StoreError> {
        let bytes = &group.as_bytes()[..];
        self.link
            .ask(|session| async move {
                let place: [Param<'_>; 3] = [&bytes, &node.0, &epoch.0];
                let (left, gone) = join(session.execute(LEAVE_ALONE, &place), session.execute(GIVE_UP, &place)).await;
                left.and(gone).map(drop)
            })
            .await
    }

    /// Gives up what this node has and nobody here holds, so that others need not go through it.
    pub(super) async fn tidy(&self, wanted: Vec<DeviceGroupId>) -> Result<(), StoreError> {
        for group in wanted {
            let node = self.tenures.node()?;
            if let Some(found) = self.found(group).await?.filter(|found| found.node == node) {
                // Nobody holds it, unless somebody has just taken it, under an epoch of its own then.
                self.release(group, Under { node, epoch: found.epoch }).await?;
            }
        }
        for (group, epoch) in self.tenures.strays(STRAYS_AT_ONCE) {
            self.give_up(group, epoch).await?;
        }
        Ok(())
    }

    pub(super) async fn want(&self, group: DeviceGroupId, of: NodeId) -> Result<(), StoreError> {
        let node = of.0;
        let bytes = &group.as_bytes()[..];
        self.link.ask(|session| async move { session.execute(WANT, &[&bytes, &node]).await }).await.map(drop)
    }

    /// The living node that has a group.
    pub(super) async fn owner(&self, group: DeviceGroupId) -> Result<Option<Owner>, StoreError> {
        let found = self.found(group).await?;
        Ok(found.and_then(|found| found.living).filter(|(_, is_expired)| !is_expired).map(|(owner, _)| owner))
    }

    /// All living nodes.
    pub(super) async fn nodes(&self) -> Result<Vec<Owner>, StoreError> {
        let rows = self.link.ask(|session| async move { session.query(LIVING, &[]).await }).await?;
        rows.iter().map(|row| owner_of(row, NodeId(number(row, 0)?), 1)).collect()
    }

    pub(super) async fn close(&self) {
        self.link.close().await;
    }

    fn grant(&self, group: DeviceGroupId, node: NodeId, row: &Row) -> Result<Option<Tenure>, StoreError> {
        let epoch = Epoch(number(row, 0)?);
        Ok(self.tenures.grant(group, Under { node, epoch }))
    }

    async fn found(&self, group: DeviceGroupId) -> Result<Option<Found>, StoreError> {
        let rows = self.ask(WHOSE, group, &[]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let (node, epoch) = (NodeId(number(row, 0)?), Epoch(number(row, 1)?));
        let is_expired: Option<bool> = row.try_get(4).map_err(damaged)?;
        let living =
            is_expired.map(|is_expired| Ok::<_, StoreError>((owner_of(row, node, 2)?, is_expired))).transpose()?;
        Ok(Some(Found { node, epoch, living }))
    }

    async fn is_living(&self, node: NodeId) -> Result<bool, StoreError> {
        Ok(!self.link.ask(|session| async move { session.query(IS_LIVING, &[&node.0]).await }).await?.is_empty())
    }

    /// Something about one group, and what it returns.
    async fn ask(&self, sql: &'static str, group: DeviceGroupId, numbers: &[i64]) -> Result<Vec<Row>, StoreError> {
        let bytes = &group.as_bytes()[..];
        self.link
            .ask(|session| async move {
                let mut params: Vec<Param<'_>> = vec![&bytes];
                params.extend(numbers.iter().map(|number| number as Param<'_>));
                session.query(sql, &params).await
            })
            .await
    }
}

/// Strays that are given up in one go.
const STRAYS_AT_ONCE: usize = 256;

fn owner_of(row: &Row, node: NodeId, from: usize) -> Result<Owner, StoreError> {
    let text = |column| row.try_get(column).map_err(damaged);
    Ok(Owner { node, name: text(from)?, address: text(from + 1)? })
}

fn number(row: &Row, column: usize) -> Result<i64, StoreError> {
    row.try_get(column).map_err(damaged)
}

fn damaged(error: tokio_postgres::Error) -> StoreError {
    StoreError::Damaged(error.to_string())
}
