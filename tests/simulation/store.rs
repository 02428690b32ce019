//! The store of a run: the twin in memory, made slow when the run wants it; and lies, to show that the model notices.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use heliostat::group::record::{Held, Page, Seq, Snapshot, Write};
use heliostat::store::{Census, MemoryStore, Store, StoreError};
use heliostat::wire::d2m::DeviceGroupId;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Messages are said to be kept, and are only when somebody asks for them.
    OkBeforeKeeping,
    /// A group that wakes believes that everything was acknowledged.
    LostCursor,
    /// Of the messages of one commit, the last is not kept.
    TornCommit,
    /// A removed slot is still there when the group wakes.
    KeptSlot,
    /// New seqs begin where they began before.
    ForgottenReservation,
}

#[derive(Debug)]
pub struct Kept {
    inner: Arc<MemoryStore>,
    lie: Option<Lie>,
    /// Commits wait while this is set. They look for themselves: the twin would let them go in an order of its own.
    held: Arc<AtomicBool>,
    late: Mutex<Vec<(DeviceGroupId, Vec<Write>)>>,
}

impl Kept {
    pub fn new(inner: Arc<MemoryStore>, held: Arc<AtomicBool>, lie: Option<Lie>) -> Self {
        Self { inner, lie, held, late: Mutex::default() }
    }

    async fn catch_up(&self) -> Result<(), StoreError> {
        let late = std::mem::take(&mut *self.late.lock().unwrap());
        for (group, writes) in late {
            self.inner.commit(group, writes).await?;
        }
        Ok(())
    }
}

impl Store for Kept {
    fn load(&self, group: DeviceGroupId) -> BoxFuture<'_, Result<Option<Snapshot>, StoreError>> {
        Box::pin(async move {
            self.catch_up().await?;
            let mut snapshot = self.inner.load(group).await?;
            match (&mut snapshot, self.lie) {
                (Some(snapshot), Some(Lie::LostCursor)) => {
                    for slot in &mut snapshot.slots {
                        slot.record.cursor = snapshot.group.seq_reserved;
                        slot.record.held = Held::default();
                        slot.uncounted = Held::default();
                    }
                }
                (Some(snapshot), Some(Lie::ForgottenReservation)) => {
                    // As if nothing had been reserved beyond what the slots know of.
                    let known = snapshot.slots.iter().map(|slot| slot.record.since.max(slot.record.cursor));
                    let known = known.min().unwrap_or(Seq(0));
                    for slot in &mut snapshot.slots {
                        slot.record.cursor = known;
                        slot.record.issued = known;
                        slot.record.counted_through = known;
                        slot.record.held = Held::default();
                        slot.uncounted = Held::default();
                    }
                    snapshot.group.seq_reserved = known;
                    let page = self.inner.page(group, Seq(0), Seq(u64::MAX), usize::MAX).await?;
                    if let Some(last) = page.entries.last() {
                        self.inner.commit(group, vec![Write::Trim { through: last.seq }]).await?;
                    }
                }
                _ => {}
            }
            Ok(snapshot)
        })
    }

    fn commit(&self, group: DeviceGroupId, mut writes: Vec<Write>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            while self.held.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let appends = writes.iter().filter(|write| matches!(write, Write::Append(_))).count();
            match self.lie {
                Some(Lie::OkBeforeKeeping) if appends > 0 => {
                    self.late.lock().unwrap().push((group, writes));
                    return Ok(());
                }
                Some(Lie::TornCommit) if appends > 1 => {
                    let last = writes.iter().rposition(|write| matches!(write, Write::Append(_)));
                    writes.remove(last.unwrap());
                }
                Some(Lie::KeptSlot) => writes.retain(|write| !matches!(write, Write::RemoveSlot(_))),
                _ => {}
            }
            self.catch_up().await?;
            self.inner.commit(group, writes).await
        })
    }

    fn page(
        &self,
        group: DeviceGroupId,
        after: Seq,
        through: Seq,
        cost_max: usize,
    ) -> BoxFuture<'_, Result<Page, StoreError>> {
        Box::pin(async move {
            self.catch_up().await?;
            self.inner.page(group, after, through, cost_max).await
        })
    }

    fn due(
        &self,
        volatile_before_ms: u64,
        persistent_before_ms: Option<u64>,
        most: usize,
    ) -> BoxFuture<'_, Result<Vec<DeviceGroupId>, StoreError>> {
        self.inner.due(volatile_before_ms, persistent_before_ms, most)
    }

    fn census(&self, after: Option<DeviceGroupId>, most: usize) -> BoxFuture<'_, Result<Census, StoreError>> {
        self.inner.census(after, most)
    }
}
