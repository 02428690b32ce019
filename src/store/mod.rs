//! What is promised to disk.

use futures_util::future::BoxFuture;

use crate::group::record::{Page, Seq, Snapshot, Write};
use crate::wire::d2m::DeviceGroupId;

/// Why the store could not do as asked. Nothing of what was asked has been kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The engine reported a failure; its words are kept for the log.
    #[error("the store failed: {0}")]
    Failed(String),
    /// What was read back is not what can have been written.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// The store is closed or its writer is gone.
    #[error("the store is closed")]
    Closed,
}

/// Keeps groups. Every engine makes the promise at the top of this file.
pub trait Store: Send + Sync + std::fmt::Debug {
    /// Everything a group needs to wake; `None` when nothing is kept of it.
    fn load(&self, group: DeviceGroupId) -> BoxFuture<'_, Result<Option<Snapshot>, StoreError>>;

    /// Keeps all of `writes` or nothing. When this returns `Ok`, they survive whatever the durability mode survives.
    fn commit(&self, group: DeviceGroupId, writes: Vec<Write>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Reads the log beyond `after` up to and including `through`: as many entries as fit `cost_max`, where each
    /// costs its envelope's bytes and [`PAYLOAD_COST`](crate::group::limits::PAYLOAD_COST), and at least one when there
    /// is one.
    fn page(
        &self,
        group: DeviceGroupId,
        after: Seq,
        through: Seq,
        cost_max: usize,
    ) -> BoxFuture<'_, Result<Page, StoreError>>;

    /// Groups with a disconnected slot that was last seen at or before the given time: volatile slots by the first,
    /// persistent ones by the second. At most `most` of them.
    fn due(
        &self,
        volatile_before_ms: u64,
        persistent_before_ms: Option<u64>,
        most: usize,
    ) -> BoxFuture<'_, Result<Vec<DeviceGroupId>, StoreError>>;
}
