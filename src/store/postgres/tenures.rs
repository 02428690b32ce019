//! What this node holds: its lease, and the tenures under it.
//!
//! The database decides; this is what is known of it here, so that actors hear of a loss without asking. Behind one lock that is never held
//! across a wait.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use crate::metrics;
use crate::store::StoreError;
use crate::store::tenure::{Epoch, NodeId, Standing, Tenure};
use crate::store::writer::Under;
use crate::wire::d2m::DeviceGroupId;

/// See the top of this file.
#[derive(Debug)]
pub(super) struct Tenures {
    inner: Mutex<Inner>,
    lease: watch::Sender<Standing>,
    /// Told when the lease was lost otherwise than by its keeper.
    pub(super) lost: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    node: Option<NodeId>,
    held: HashMap<DeviceGroupId, Held>,
}

#[derive(Debug)]
struct Held {
    epoch: Epoch,
    standing: watch::Sender<Standing>,
    /// Commits of which it is not known whether they were kept: on their way, not waited for, or broken off.
    undecided: u32,
}

/// A tenure on its way out.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) under: Under,
    /// Whether something of it may still be on its way to the database.
    pub(super) is_undecided: bool,
    standing: watch::Sender<Standing>,
}

impl Tenures {
    pub(super) fn new() -> Self {
        Self { inner: Mutex::default(), lease: watch::Sender::new(Standing::Lost), lost: Notify::new() }
    }

    /// The node as it is registered now.
    pub(super) fn node(&self) -> Result<NodeId, StoreError> {
        self.inner().node.ok_or(StoreError::Lost)
    }

    /// How the node's lease stands: held or lost.
    pub(super) fn lease(&self) -> watch::Receiver<Standing> {
        self.lease.subscribe()
    }

    /// Goes on as this node.
    pub(super) fn begin(&self, node: NodeId) {
        self.inner().node = Some(node);
        self.lease.send_replace(Standing::Held);
    }

    /// The lease of this node is over before it was meant to be, and with it everything the node holds. Nothing when another
    /// lease has begun since.
    pub(super) fn lose(&self, node: NodeId) {
        if self.end(node) {
            metrics::get().lease_losses.increment(1);
            self.lost.notify_one();
        }
    }

    /// The lease of this node is over; whether it was not before.
    pub(super) fn end(&self, node: NodeId) -> bool {
        let mut inner = self.inner();
        if inner.node != Some(node) {
            return false;
        }
        inner.node = None;
        for (_, held) in inner.held.drain() {
            held.standing.send_replace(Standing::Lost);
        }
        inner.count();
        self.lease.send_replace(Standing::Lost);
        true
    }

    /// Hands out a tenure that the database has granted; `None` when the lease is over in the meantime. Whoever still has an older
    /// one of this group finds it lost.
    pub(super) fn grant(&self, group: DeviceGroupId, under: Under) -> Option<Tenure> {
        let mut inner = self.inner();
        if inner.node != Some(under.node) {
            return None;
        }
        let (standing, seen) = watch::channel(Standing::Held);
        inner.held.insert(group, Held { epoch: under.epoch, standing, undecided: 0 });
        inner.count();
        Some(Tenure::new(under.epoch, seen))
    }

    /// What a commit of this group is asked under. It counts as undecided until [`Self::decided`].
    pub(super) fn asks(&self, group: DeviceGroupId) -> Result<Under, StoreError> {
        let mut inner = self.inner();
        let node = inner.node.ok_or(StoreError::Lost)?;
        let held = inner.held.get_mut(&group).ok_or(StoreError::Lost)?;
        held.undecided = held.undecided.saturating_add(1);
        Ok(Under { node, epoch: held.epoch })
    }

    /// What became of a commit is known.
    pub(super) fn decided(&self, group: DeviceGroupId, under: Under) {
        if let Some(held) = self.inner().held.get_mut(&group).filter(|held| held.epoch == under.epoch) {
            held.undecided = held.undecided.saturating_sub(1);
        }
    }

    /// Another node wants these. Those that nobody here holds are returned.
    pub(super) fn want(&self, groups: Vec<DeviceGroupId>) -> Vec<DeviceGroupId> {
        let inner = self.inner();
        let mut unheld = groups;
        unheld.retain(|group| match inner.held.get(group) {
            Some(held) => {
                held.standing
                    .send_if_modified(|standing| std::mem::replace(standing, Standing::Wanted) != Standing::Wanted);
                false
            }
            None => true,
        });
        unheld
    }

    /// Takes a tenure out, to be given up. `None` when it is over already.
    pub(super) fn leave(&self, group: DeviceGroupId, epoch: Epoch) -> Option<Leaving> {
        let mut inner = self.inner();
        let node = inner.node?;
        if inner.held.get(&group)?.epoch != epoch {
            return None;
        }
        let Held { epoch, standing, undecided } = inner.held.remove(&group)?;
        inner.count();
        Some(Leaving { under: Under { node, epoch }, is_undecided: undecided > 0, standing })
    }

    /// Takes it back in: it could not be given up. Nobody has it now, so it is a stray.
    pub(super) fn stay(&self, group: DeviceGroupId, leaving: Leaving) {
        let mut inner = self.inner();
        if inner.node == Some(leaving.under.node) {
            let Leaving { under, standing, .. } = leaving;
            // Whoever came before has taken it anew.
            inner.held.entry(group).or_insert(Held { epoch: under.epoch, standing, undecided: 1 });
            inner.count();
        }
    }

    /// Groups whose tenure nobody has any more, though it was not given up.
    pub(super) fn strays(&self, most: usize) -> Vec<(DeviceGroupId, Epoch)> {
        let inner = self.inner();
        let strays = inner.held.iter().filter(|(_, held)| held.standing.receiver_count() == 0);
        strays.map(|(group, held)| (*group, held.epoch)).take(most).collect()
    }

    /// Somebody who panicked while holding the lock has left nothing half done.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn count(&self) {
        metrics::get().groups_owned.set(f64::from(u32::try_from(self.held.len()).unwrap_or(u32::MAX)));
    }
}
