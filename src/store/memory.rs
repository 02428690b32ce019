//! The twin: keeps the same promise in memory, and breaks it when told to.
//!
//! Tests of the floors above use it to choose the moment at which a write fails, at which the process dies, or until which
//! an answer is held back, and to see afterwards what the disk would have shown. Commits are counted from 1.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::{Census, Filling, NO_GROUP, Store, StoreError, TAKEN, check, count_entry};
use crate::group::record::{GroupRecord, LogEntry, Page, Seq, SlotRecord, SlotSnapshot, Snapshot, Write};
use crate::wire::d2m::{DeviceGroupId, DeviceId, SlotExpiration};

/// Where a crash catches a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// Nothing of it is kept.
    BeforeKeeping,
    /// All of it is kept, and nobody is told.
    AfterKeeping,
}

/// Keeps groups in memory.
#[derive(Debug)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
    held: watch::Sender<bool>,
    waiting: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Inner {
    groups: HashMap<DeviceGroupId, Group>,
    commits: u64,
    reads: u64,
    fail_at: BTreeSet<u64>,
    fail_read_at: BTreeSet<u64>,
    crash_at: Option<(u64, Crash)>,
    closed: bool,
}

#[derive(Debug, Clone, Default)]
struct Group {
    record: GroupRecord,
    slots: BTreeMap<DeviceId, SlotRecord>,
    log: BTreeMap<Seq, LogEntry>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty one, without faults.
    #[must_use]
    pub fn new() -> Self {
        Self { inner: Mutex::default(), held: watch::Sender::new(false), waiting: watch::Sender::new(0) }
    }

    /// The `n`-th commit fails and keeps nothing. May be said several times.
    pub fn fail_at(&self, n: u64) {
        self.inner().fail_at.insert(n);
    }

    /// The `n`-th read (load, page or due) fails. May be said several times.
    pub fn fail_read_at(&self, n: u64) {
        self.inner().fail_read_at.insert(n);
    }

    /// The process dies at the `n`-th commit: it and everything after it is answered with [`StoreError::Closed`].
    pub fn crash_at(&self, n: u64, crash: Crash) {
        self.inner().crash_at = Some((n, crash));
    }

    /// What would be found when the store is opened again: everything kept, nobody connected, no faults.
    #[must_use]
    pub fn survivors(&self, now_wall_ms: u64) -> Self {
        let mut groups = self.inner().groups.clone();
        for slot in groups.values_mut().flat_map(|group| group.slots.values_mut()).filter(|slot| slot.connected) {
            slot.connected = false;
            slot.last_disconnect_ms = now_wall_ms;
        }
        let survivors = Self::new();
        survivors.inner().groups = groups;
        survivors
    }

    /// Commits are not kept, and so not answered, until [`Self::release`].
    pub fn hold(&self) {
        self.held.send_replace(true);
    }

    /// Lets the commits go that were held back, in no promised order.
    pub fn release(&self) {
        self.held.send_replace(false);
    }

    /// Returns when at least `n` commits are held back.
    pub async fn until_waiting(&self, n: usize) {
        // An error would mean that the sender is gone, and that is `self`.
        let _alive = self.waiting.subscribe().wait_for(|&waiting| waiting >= n).await.is_ok();
    }

    /// How many commits came through, those that failed included.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.inner().commits
    }

    /// How many reads were asked, those that failed included.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.inner().reads
    }

    /// A test that panicked elsewhere does not make this one fail.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What [`Store::commit`] does once nothing is held back.
    pub(super) fn commit_now(&self, group: DeviceGroupId, writes: Vec<Write>) -> Result<(), StoreError> {
        self.inner().commit(group, writes)
    }

    /// Waits while commits are held back.
    pub(super) async fn gate(&self) {
        let mut held = self.held.subscribe();
        if !*held.borrow_and_update() {
            return;
        }
        let _waiting = Waiting::count(&self.waiting);
        let _alive = held.wait_for(|held| !held).await.is_ok();
    }
}

/// One commit that is held back; counted until it goes on or is given up.
struct Waiting<'a>(&'a watch::Sender<usize>);

impl<'a> Waiting<'a> {
    fn count(waiting: &'a watch::Sender<usize>) -> Self {
        waiting.send_modify(|waiting| *waiting += 1);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}

impl Inner {
    fn commit(&mut self, id: DeviceGroupId, writes: Vec<Write>) -> Result<(), StoreError> {
        if self.closed {
            return Err(StoreError::Closed);
        }
        self.commits += 1;
        let crash = self.crash_at.filter(|&(at, _)| at == self.commits).map(|(_, crash)| crash);
        self.closed = crash.is_some();
        if crash == Some(Crash::BeforeKeeping) {
            return Err(StoreError::Closed);
        }
        if self.fail_at.contains(&self.commits) {
            return Err(StoreError::Failed(format!("commit {} was told to fail", self.commits)));
        }
        check(&writes)?;
        possible(self.groups.get(&id), &writes)?;
        for write in writes {
            self.apply(id, write);
        }
        if crash.is_some() { Err(StoreError::Closed) } else { Ok(()) }
    }

    fn apply(&mut self, id: DeviceGroupId, write: Write) {
        match write {
            Write::Group(record) => self.groups.entry(id).or_default().record = record,
            Write::Forget => {
                self.groups.remove(&id);
            }
            Write::Slot(_) | Write::RemoveSlot(_) | Write::Append(_) | Write::Trim { .. } => {
                if let Some(group) = self.groups.get_mut(&id) {
                    group.apply(write);
                }
            }
        }
    }

    fn read(&mut self) -> Result<(), StoreError> {
        self.reads += 1;
        if self.closed {
            return Err(StoreError::Closed);
        }
        if self.fail_read_at.contains(&self.reads) {
            return Err(StoreError::Failed(format!("read {} was told to fail", self.reads)));
        }
        Ok(())
    }

    fn due(&self, volatile_before_ms: u64, persistent_before_ms: Option<u64>, most: usize) -> Vec<DeviceGroupId> {
        let mut due: Vec<_> = self
            .groups
            .iter()
            .flat_map(|(id, group)| group.slots.values().map(move |slot| (slot, *id)))
            .filter(|(slot, _)| !slot.connected)
            .filter_map(|(slot, id)| {
                let (kind, before) = match slot.expiration {
                    SlotExpiration::Volatile => (0, volatile_before_ms),
                    SlotExpiration::Persistent => (1, persistent_before_ms?),
                };
                (slot.last_disconnect_ms <= before).then_some((kind, slot.last_disconnect_ms, id))
            })
            .collect();
        due.sort_unstable();
        let mut seen = BTreeSet::new();
        due.into_iter().map(|(_, _, id)| id).filter(|id| seen.insert(*id)).take(most).collect()
    }
}

impl Group {
    fn apply(&mut self, write: Write) {
        match write {
            Write::Slot(slot) => {
                self.slots.insert(slot.device, slot);
            }
            Write::RemoveSlot(device) => {
                self.slots.remove(&device);
            }
            Write::Append(entry) => {
                self.log.insert(entry.seq, entry);
            }
            Write::Trim { through } => self.log = self.log.split_off(&through.next()),
            Write::Group(_) | Write::Forget => {}
        }
    }

    fn snapshot(&self) -> Snapshot {
        let slots = self.slots.values().cloned();
        let mut slots: Vec<_> =
            slots.map(|record| SlotSnapshot { record, uncounted: crate::group::record::Held::default() }).collect();
        let mut group = self.record.clone();
        if let Some(counted) = slots.iter().map(|slot| slot.record.counted_through).min() {
            for (seq, entry) in self.log.range(counted.next()..) {
                count_entry(&mut slots, *seq, entry.origin, entry.message.envelope().len() as u64);
                group.last_timestamp_ms = group.last_timestamp_ms.max(entry.message.timestamp_ms());
            }
        }
        Snapshot { group, slots }
    }

    fn page(&self, after: Seq, through: Seq, cost_max: usize) -> Page {
        let mut page = Filling::new(cost_max);
        for (seq, entry) in self.log.range(after.next()..) {
            if *seq > through {
                break;
            }
            if !page.fits(entry.message.envelope().len()) {
                return page.cut_short();
            }
            page.entries.push(entry.clone());
        }
        page.ended(through)
    }
}

/// Whether all of `writes` can be applied, one after the other. Asked before the first is, so that there is nothing to undo.
fn possible(kept: Option<&Group>, writes: &[Write]) -> Result<(), StoreError> {
    let mut kept_log = kept.map(|group| &group.log);
    let mut there = kept.is_some();
    let mut trimmed = None;
    let mut appended = BTreeSet::new();
    for write in writes {
        match write {
            Write::Group(_) => there = true,
            Write::Slot(_) | Write::Append(_) if !there => return Err(NO_GROUP),
            Write::Append(entry) => {
                let kept = trimmed < Some(entry.seq) && kept_log.is_some_and(|log| log.contains_key(&entry.seq));
                if kept || !appended.insert(entry.seq) {
                    return Err(TAKEN);
                }
            }
            Write::Trim { through } => {
                trimmed = trimmed.max(Some(*through));
                appended = appended.split_off(&through.next());
            }
            Write::Forget => {
                there = false;
                kept_log = None;
                appended.clear();
            }
            Write::Slot(_) | Write::RemoveSlot(_) => {}
        }
    }
    Ok(())
}

impl Store for MemoryStore {
    fn load(&self, group: DeviceGroupId) -> BoxFuture<'_, Result<Option<Snapshot>, StoreError>> {
        Box::pin(async move {
            let mut inner = self.inner();
            inner.read()?;
            Ok(inner.groups.get(&group).map(Group::snapshot))
        })
    }

    fn commit(&self, group: DeviceGroupId, writes: Vec<Write>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.gate().await;
            self.commit_now(group, writes)
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
            let mut inner = self.inner();
            inner.read()?;
            let page = inner.groups.get(&group).map(|group| group.page(after, through, cost_max));
            Ok(page.unwrap_or(Page { entries: Vec::new(), through }))
        })
    }

    fn due(
        &self,
        volatile_before_ms: u64,
        persistent_before_ms: Option<u64>,
        most: usize,
    ) -> BoxFuture<'_, Result<Vec<DeviceGroupId>, StoreError>> {
        Box::pin(async move {
            let mut inner = self.inner();
            inner.read()?;
            Ok(inner.due(volatile_before_ms, persistent_before_ms, most))
        })
    }

    fn census(&self, after: Option<DeviceGroupId>, most: usize) -> BoxFuture<'_, Result<Census, StoreError>> {
        Box::pin(async move {
            let mut inner = self.inner();
            inner.read()?;
            let mut some: Vec<_> = inner
                .groups
                .iter()
                .filter(|(id, _)| after.is_none_or(|after| **id > after))
                .map(|(id, group)| (*id, group.slots.len() as u64))
                .collect();
            some.sort_unstable();
            some.truncate(most);
            Ok(Census { groups: inner.groups.len() as u64, some })
        })
    }
}
