//! Stores that are full before the server starts: written by the store itself, without a server in between.

use std::path::Path;

use futures_util::{StreamExt as _, TryStreamExt as _};
use miette::{IntoDiagnostic as _, Result};

use super::load::device_id;
use crate::client::GroupKey;
use crate::crypto::random;
use crate::files;
use crate::group::record::{GroupRecord, Held, LogEntry, Seq, SlotRecord, Write};
use crate::store::{Durability, SqliteStore, Store as _};
use crate::time::Clock;
use crate::wire::d2m::{DeviceGroupId, DeviceId, Envelope, ReflectFlags, Reflected, ReflectedId, SlotExpiration};

/// Bytes of the envelope of each message.
pub(super) const BYTES: usize = 200;
/// Groups that are written at once: the store takes them into one transaction.
const AT_ONCE: usize = 512;

/// Keys of new groups.
pub(super) fn keys(count: usize) -> Vec<GroupKey> {
    std::iter::repeat_with(GroupKey::generate).take(count).collect()
}

/// What is to be in a store.
#[derive(Debug, Default)]
pub(super) struct Stock {
    groups: Vec<Stored>,
}

/// One group: so many devices, none of which is connected, and one more for which messages wait.
#[derive(Debug)]
struct Stored {
    id: DeviceGroupId,
    devices: usize,
    messages: u32,
}

impl Stock {
    /// Groups that nobody comes back to: two devices each, one of which has messages waiting.
    pub(super) fn strangers(groups: u32, messages: u32) -> Self {
        let share = |number: u32| messages / groups + u32::from(number < messages % groups);
        let stored = |number| Stored { id: DeviceGroupId::new(random::bytes()), devices: 1, messages: share(number) };
        Self { groups: (0..groups).map(stored).collect() }
    }

    /// And these, whose devices come back.
    pub(super) fn beside(mut self, keys: &[GroupKey], devices: usize, messages: u32) -> Self {
        let count = u32::try_from(keys.len()).unwrap_or(u32::MAX).max(1);
        let share = |number: u32| messages / count + u32::from(number < messages % count);
        let stored =
            |(number, key): (u32, &GroupKey)| Stored { id: key.device_group_id(), devices, messages: share(number) };
        self.groups.extend((0..).zip(keys).map(stored));
        self
    }

    /// Makes the store where a server with `dir` looks for it.
    pub(super) async fn make(&self, dir: &Path, clock: Clock) -> Result<()> {
        let data = dir.join("data");
        files::make_private_dir(&data).into_diagnostic()?;
        let now_ms = clock.now().wall_ms;
        // What is made here needs to last no longer than this machine runs.
        let store = SqliteStore::open(&data, Durability::Memory, now_ms).into_diagnostic()?;
        let kept = futures_util::stream::iter(&self.groups)
            .map(|group| store.commit(group.id, group.writes(now_ms)))
            .buffer_unordered(AT_ONCE)
            .try_collect::<Vec<()>>()
            .await;
        store.close().await.into_diagnostic()?;
        kept.map(drop).into_diagnostic()
    }
}

impl Stored {
    fn writes(&self, now_ms: u64) -> Vec<Write> {
        let last = Seq(self.messages.into());
        let group =
            GroupRecord { seq_reserved: last, last_timestamp_ms: now_ms, encrypted_shared_device_data: Vec::new() };
        let slot = |device: DeviceId, waits: bool| {
            let entries = if waits { u64::from(self.messages) } else { 0 };
            Write::Slot(SlotRecord {
                device,
                expiration: SlotExpiration::Persistent,
                encrypted_device_info: Vec::new(),
                connected: false,
                last_disconnect_ms: now_ms,
                since: Seq(0),
                cursor: if waits { Seq(0) } else { last },
                acked: Default::default(),
                acked_unseen: Default::default(),
                issued: last,
                counted_through: last,
                held: Held { pending: entries, entries, bytes: entries * BYTES as u64 },
            })
        };
        let slots = (0..=self.devices).map(|device| slot(device_id(device), device == self.devices));
        let message = |number: u32| {
            let seq = Seq(number.into());
            let envelope = Envelope::copy_from(&[0x5a; BYTES]);
            let message = Reflected::new(envelope, ReflectFlags::default(), ReflectedId(seq.wire_id()), now_ms);
            Write::Append(LogEntry { seq, origin: device_id(0), message })
        };
        std::iter::once(Write::Group(group)).chain(slots).chain((1..=self.messages).map(message)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stock_is_what_a_store_would_have_kept() {
        let dir = tempfile::tempdir().unwrap();
        let keys = keys(2);
        let stock = Stock::strangers(3, 7).beside(&keys, 3, 5);
        stock.make(dir.path(), Clock::system()).await.unwrap();
        let store = SqliteStore::open(&dir.path().join("data"), Durability::Memory, 1).unwrap();
        assert_eq!(store.census(None, 10).await.unwrap().groups, 5);
        let queue = |id| {
            let store = &store;
            async move {
                let snapshot = store.load(id).await.unwrap().unwrap();
                let waiting: Vec<u64> =
                    snapshot.slots.iter().map(|slot| slot.record.held.pending + slot.uncounted.pending).collect();
                let page = store.page(id, Seq(0), Seq(u32::MAX.into()), 1_000_000).await.unwrap();
                (waiting, page.entries.len())
            }
        };
        assert_eq!(queue(keys[0].device_group_id()).await, (vec![0, 0, 0, 3], 3));
        assert_eq!(queue(keys[1].device_group_id()).await, (vec![0, 0, 0, 2], 2));
        let stored: Vec<_> = stock.groups.iter().map(|group| group.messages).collect();
        assert_eq!(stored, [3, 2, 2, 3, 2]);
        store.close().await.unwrap();
    }
}
