//! Who may decide for a group, where several nodes share a store.
//!
//! A group belongs to one node at a time. Before a node wakes a group it takes it ([`Store::take`](super::Store::take)); what it
//! gets is a [`Tenure`], or the name of the node that has it. The store refuses every commit that a tenure does not cover any
//! more, with [`StoreError::Lost`](super::StoreError::Lost) and in the transaction of the commit itself, so that no clock has to be
//! right for it: a node that slept through the end of its lease can keep nothing, and so acknowledge nothing.
//!
//! A store that no other node can reach knows nothing of this: there every group is taken for good.

use tokio::sync::watch;

/// What distinguishes one time of having a group from every other, on whichever node. Never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub i64);

/// One run of a node, from one lease to its loss. A node that lost its lease goes on under another number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub i64);

impl std::fmt::Display for NodeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The node that has a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Which.
    pub node: NodeId,
    /// What its operator calls it.
    pub name: String,
    /// Where other nodes reach it: host and port.
    pub address: String,
}

/// How a tenure stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The group is this node's.
    Held,
    /// It is, and another node that cannot reach this one has devices of it: it should be given up soon.
    Wanted,
    /// It may be another node's already.
    Lost,
}

/// A group is this node's for now.
#[derive(Debug, Clone)]
pub struct Tenure {
    epoch: Epoch,
    standing: watch::Receiver<Standing>,
}

impl Tenure {
    /// For engines: what they gave out, and where they will say how it stands.
    #[must_use]
    pub const fn new(epoch: Epoch, standing: watch::Receiver<Standing>) -> Self {
        Self { epoch, standing }
    }

    /// Which tenure this is.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// How it stands now. A tenure whose store is gone is lost.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match self.standing.has_changed() {
            Ok(_) => *self.standing.borrow(),
            Err(_) => Standing::Lost,
        }
    }

    /// Waits until it stands otherwise than it did when this was last asked; says how. Safe to drop while waiting.
    pub async fn changed(&mut self) -> Standing {
        match self.standing.changed().await {
            Ok(()) => *self.standing.borrow_and_update(),
            Err(_) => Standing::Lost,
        }
    }
}

/// What became of the wish to have a group.
#[derive(Debug)]
pub enum Taken {
    /// It is this node's, and there is no other node.
    Alone,
    /// It is this node's.
    Here(Tenure),
    /// Another node has it.
    Elsewhere(Owner),
}
