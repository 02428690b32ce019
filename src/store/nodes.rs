//! The twin of a store that several nodes share: one [`MemoryStore`], and who has which group.
//!
//! Tests of the floors above put several hubs over it, and choose the moment at which a node loses its lease, and at which it
//! learns of that.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::memory::MemoryStore;
use super::tenure::{Epoch, NodeId, Owner, Standing, Taken, Tenure};
use super::{Census, Store, StoreError};
use crate::group::record::{Page, Seq, Snapshot, Write};
use crate::wire::d2m::DeviceGroupId;

/// What all nodes see.
#[derive(Debug, Clone)]
pub struct Nodes {
    kept: Arc<MemoryStore>,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    given: i64,
    living: HashMap<NodeId, Owner>,
    owners: HashMap<DeviceGroupId, (NodeId, Epoch)>,
    wanted: HashSet<DeviceGroupId>,
}

impl Inner {
    fn next(&mut self) -> i64 {
        self.given += 1;
        self.given
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Nodes {
    /// Nobody has anything yet.
    #[must_use]
    pub fn over(kept: Arc<MemoryStore>) -> Self {
        Self { kept, inner: Arc::default() }
    }

    /// One more node.
    #[must_use]
    pub fn node(&self, name: &str, address: &str) -> Arc<Node> {
        let (name, address) = (name.to_owned(), address.to_owned());
        let mut inner = locked(&self.inner);
        let id = NodeId(inner.next());
        inner.living.insert(id, Owner { node: id, name: name.clone(), address: address.clone() });
        Arc::new(Node { nodes: self.clone(), name, address, id: Mutex::new(id), held: Mutex::default() })
    }

    /// Who has a group, alive or not.
    #[must_use]
    pub fn owner(&self, group: DeviceGroupId) -> Option<NodeId> {
        locked(&self.inner).owners.get(&group).map(|(node, _)| *node)
    }
}

/// A store as one node sees it.
#[derive(Debug)]
pub struct Node {
    nodes: Nodes,
    name: String,
    address: String,
    id: Mutex<NodeId>,
    held: Mutex<HashMap<DeviceGroupId, (Epoch, watch::Sender<Standing>)>>,
}

impl Node {
    /// Under which number it runs.
    #[must_use]
    pub fn id(&self) -> NodeId {
        *locked(&self.id)
    }

    /// Its lease is over and others may have its groups. It does not know yet: it was asleep, or cut off.
    pub fn fence(&self) {
        locked(&self.nodes.inner).living.remove(&self.id());
    }

    /// It learns that its lease is over, and goes on under another number.
    pub fn awake(&self) {
        for (_, (_, standing)) in locked(&self.held).drain() {
            standing.send_replace(Standing::Lost);
        }
        let mut inner = locked(&self.nodes.inner);
        let id = NodeId(inner.next());
        inner.living.insert(id, Owner { node: id, name: self.name.clone(), address: self.address.clone() });
        *locked(&self.id) = id;
    }

    /// What it looks at now and then: which of its groups others ask for.
    pub fn look(&self) {
        let inner = locked(&self.nodes.inner);
        for (group, (_, standing)) in &*locked(&self.held) {
            if inner.wanted.contains(group) {
                standing.send_replace(Standing::Wanted);
            }
        }
    }

    fn covered(&self, group: DeviceGroupId) -> Result<(), StoreError> {
        let epoch = locked(&self.held).get(&group).map(|(epoch, _)| *epoch).ok_or(StoreError::Lost)?;
        let (id, inner) = (self.id(), locked(&self.nodes.inner));
        let is_ours = inner.living.contains_key(&id) && inner.owners.get(&group) == Some(&(id, epoch));
        if is_ours { Ok(()) } else { Err(StoreError::Lost) }
    }

    fn taken(&self, group: DeviceGroupId) -> Result<Taken, StoreError> {
        let (id, mut inner) = (self.id(), locked(&self.nodes.inner));
        if !inner.living.contains_key(&id) {
            return Err(StoreError::Lost);
        }
        if let Some((node, _)) = inner.owners.get(&group)
            && *node != id
            && let Some(owner) = inner.living.get(node)
        {
            return Ok(Taken::Elsewhere(owner.clone()));
        }
        let epoch = Epoch(inner.next());
        inner.owners.insert(group, (id, epoch));
        inner.wanted.remove(&group);
        drop(inner);
        let (standing, stands) = watch::channel(Standing::Held);
        locked(&self.held).insert(group, (epoch, standing));
        Ok(Taken::Here(Tenure::new(epoch, stands)))
    }
}

impl Store for Node {
    fn take(&self, group: DeviceGroupId) -> BoxFuture<'_, Result<Taken, StoreError>> {
        Box::pin(std::future::ready(self.taken(group)))
    }

    fn give_up(&self, group: DeviceGroupId, tenure: Tenure) -> BoxFuture<'_, Result<(), StoreError>> {
        locked(&self.held).retain(|held, (epoch, _)| *held != group || *epoch != tenure.epoch());
        let (id, mut inner) = (self.id(), locked(&self.nodes.inner));
        if inner.owners.get(&group) == Some(&(id, tenure.epoch())) {
            inner.owners.remove(&group);
            inner.wanted.remove(&group);
        }
        Box::pin(std::future::ready(Ok(())))
    }

    fn want(&self, group: DeviceGroupId, of: NodeId) -> BoxFuture<'_, Result<(), StoreError>> {
        let mut inner = locked(&self.nodes.inner);
        if inner.owners.get(&group).is_some_and(|(node, _)| *node == of) {
            inner.wanted.insert(group);
        }
        Box::pin(std::future::ready(Ok(())))
    }

    fn prove(&self, group: DeviceGroupId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(std::future::ready(self.covered(group)))
    }

    fn load(&self, group: DeviceGroupId) -> BoxFuture<'_, Result<Option<Snapshot>, StoreError>> {
        self.nodes.kept.load(group)
    }

    fn commit(&self, group: DeviceGroupId, writes: Vec<Write>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.nodes.kept.gate().await;
            // Behind the gate, as a database looks when it commits and not when it is asked.
            self.covered(group)?;
            self.nodes.kept.commit_now(group, writes)
        })
    }

    fn page(
        &self,
        group: DeviceGroupId,
        after: Seq,
        through: Seq,
        cost_max: usize,
    ) -> BoxFuture<'_, Result<Page, StoreError>> {
        self.nodes.kept.page(group, after, through, cost_max)
    }

    fn due(
        &self,
        volatile_before_ms: u64,
        persistent_before_ms: Option<u64>,
        most: usize,
    ) -> BoxFuture<'_, Result<Vec<DeviceGroupId>, StoreError>> {
        self.nodes.kept.due(volatile_before_ms, persistent_before_ms, most)
    }

    fn census(&self, after: Option<DeviceGroupId>, most: usize) -> BoxFuture<'_, Result<Census, StoreError>> {
        self.nodes.kept.census(after, most)
    }
}
