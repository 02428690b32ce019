//! What the jobs of a batch come to, in rows.
//!
//! A batch is a few statements of many rows, not one for each write, and its statements are sent before any is answered. So the writes of a
//! group are added up here first: what is overwritten or removed again by a later one never reaches the database. What has to be
//! true for a write to be possible, and only the database knows, becomes a check that fails there.

use std::collections::BTreeMap;

use crate::group::record::{GroupRecord, LogEntry, Seq, SlotRecord, Write};
use crate::store::seal;
use crate::store::writer::Job;
use crate::store::{NO_GROUP, StoreError, TAKEN};
use crate::wire::d2m::{DeviceGroupId, DeviceId, SlotExpiration};

/// The writes of one group, added up.
#[derive(Debug, Default)]
struct Effect<'a> {
    /// Whether the group is there after the writes so far; `None` while only the database knows.
    there: Option<bool>,
    /// It has to be there before all of them.
    must_exist: bool,
    forgotten: bool,
    group: Option<&'a GroupRecord>,
    /// What becomes of slots: written, or removed.
    slots: BTreeMap<DeviceId, Option<&'a SlotRecord>>,
    trimmed: Option<Seq>,
    log: BTreeMap<Seq, Appended<'a>>,
    /// Entries that come and go in this batch, so that nothing would clash with one of the same seq that is kept.
    must_be_free: Vec<Seq>,
}

#[derive(Debug)]
struct Appended<'a> {
    entry: &'a LogEntry,
    /// What was kept there, if anything, is removed before.
    is_surely_free: bool,
}

impl<'a> Effect<'a> {
    fn add(&mut self, write: &'a Write) -> Result<(), StoreError> {
        match write {
            Write::Group(record) => {
                self.group = Some(record);
                self.there = Some(true);
            }
            Write::Slot(record) => {
                self.needs_group()?;
                self.slots.insert(record.device, Some(record));
            }
            Write::RemoveSlot(device) => drop(self.slots.insert(*device, None)),
            Write::Append(entry) => {
                self.needs_group()?;
                if self.log.contains_key(&entry.seq) {
                    return Err(TAKEN);
                }
                let is_surely_free = self.forgotten || self.trimmed >= Some(entry.seq);
                self.log.insert(entry.seq, Appended { entry, is_surely_free });
            }
            Write::Trim { through } => {
                self.trimmed = self.trimmed.max(Some(*through));
                let kept = self.log.split_off(&through.next());
                self.pass(kept);
            }
            Write::Forget => {
                self.there = Some(false);
                self.forgotten = true;
                self.group = None;
                self.slots.clear();
                self.pass(BTreeMap::new());
            }
        }
        Ok(())
    }

    fn needs_group(&mut self) -> Result<(), StoreError> {
        match self.there {
            Some(true) => Ok(()),
            Some(false) => Err(NO_GROUP),
            None => {
                self.must_exist = true;
                self.there = Some(true);
                Ok(())
            }
        }
    }

    /// Goes on with this log; what was in it before is gone again.
    fn pass(&mut self, kept: BTreeMap<Seq, Appended<'a>>) {
        let gone = std::mem::replace(&mut self.log, kept);
        self.must_be_free.extend(gone.iter().filter(|(_, it)| !it.is_surely_free).map(|(seq, _)| *seq));
    }
}

/// A batch as columns, in the order in which its statements use them.
#[derive(Debug, Default)]
pub(super) struct Rows<'a> {
    /// What every job was asked under.
    pub(super) jobs: Groups<'a>,
    pub(super) epochs: Vec<i64>,
    /// Groups that have to be there.
    pub(super) must_exist: Groups<'a>,
    /// Entries that must not be there.
    pub(super) must_be_free: Places<'a>,
    /// The log goes as far as this.
    pub(super) trimmed: Places<'a>,
    /// All slots go.
    pub(super) forgotten: Groups<'a>,
    /// The group goes.
    pub(super) gone: Groups<'a>,
    pub(super) removed: Places<'a>,
    pub(super) groups: GroupRows<'a>,
    pub(super) slots: SlotRows<'a>,
    pub(super) log: LogRows<'a>,
    /// The first write that cannot be, whatever the database says to those before it.
    pub(super) refused: Option<StoreError>,
}

type Groups<'a> = Vec<&'a [u8]>;

/// Groups, each with a number in it.
#[derive(Debug, Default)]
pub(super) struct Places<'a> {
    pub(super) group: Groups<'a>,
    pub(super) number: Vec<i64>,
}

impl<'a> Places<'a> {
    fn push(&mut self, group: &'a DeviceGroupId, number: i64) {
        self.group.push(group.as_bytes());
        self.number.push(number);
    }
}

#[derive(Debug, Default)]
pub(super) struct GroupRows<'a> {
    pub(super) group: Groups<'a>,
    pub(super) seq_reserved: Vec<i64>,
    pub(super) last_timestamp_ms: Vec<i64>,
    pub(super) shared_device_data: Vec<&'a [u8]>,
    pub(super) seal: Vec<Vec<u8>>,
}

#[derive(Debug, Default)]
pub(super) struct SlotRows<'a> {
    pub(super) group: Groups<'a>,
    pub(super) device: Vec<i64>,
    pub(super) persistent: Vec<bool>,
    pub(super) connected: Vec<bool>,
    pub(super) last_disconnect_ms: Vec<i64>,
    pub(super) device_info: Vec<&'a [u8]>,
    pub(super) since: Vec<i64>,
    pub(super) cursor: Vec<i64>,
    pub(super) acked: Vec<Vec<u8>>,
    pub(super) acked_unseen: Vec<Vec<u8>>,
    pub(super) issued: Vec<i64>,
    pub(super) counted_through: Vec<i64>,
    pub(super) held_pending: Vec<i64>,
    pub(super) held_entries: Vec<i64>,
    pub(super) held_bytes: Vec<i64>,
    pub(super) seal: Vec<Vec<u8>>,
}

#[derive(Debug, Default)]
pub(super) struct LogRows<'a> {
    pub(super) group: Groups<'a>,
    pub(super) seq: Vec<i64>,
    pub(super) origin: Vec<i64>,
    pub(super) timestamp_ms: Vec<i64>,
    pub(super) envelope: Vec<&'a [u8]>,
    pub(super) seal: Vec<Vec<u8>>,
}

impl<'a> Rows<'a> {
    /// Adds up a batch.
    pub(super) fn of(jobs: &'a [Job]) -> Self {
        let mut rows = Self::default();
        // By their ids, so that all nodes and batches touch rows in the same order.
        let mut effects: BTreeMap<DeviceGroupId, (&'a DeviceGroupId, Effect<'a>)> = BTreeMap::new();
        for Job { group, writes, under } in jobs {
            rows.jobs.push(group.as_bytes());
            rows.epochs.push(under.map_or(0, |under| under.epoch.0));
            let (_, effect) = effects.entry(*group).or_insert_with(|| (group, Effect::default()));
            for write in writes {
                if rows.refused.is_none() {
                    rows.refused = effect.add(write).err();
                }
            }
        }
        for (group, effect) in effects.into_values() {
            rows.take(group, effect);
        }
        rows
    }

    fn take(&mut self, group: &'a DeviceGroupId, effect: Effect<'a>) {
        let bytes = &group.as_bytes()[..];
        if effect.must_exist {
            self.must_exist.push(bytes);
        }
        for seq in effect.must_be_free {
            self.must_be_free.push(group, position(seq));
        }
        if effect.forgotten {
            self.forgotten.push(bytes);
            self.trimmed.push(group, i64::MAX);
        } else if let Some(through) = effect.trimmed {
            self.trimmed.push(group, position(through));
        }
        if effect.there == Some(false) {
            self.gone.push(bytes);
        }
        if let Some(record) = effect.group {
            self.groups.push(group, record);
        }
        for (device, record) in effect.slots {
            match record {
                Some(record) => self.slots.push(group, record),
                None => self.removed.push(group, device.0.cast_signed()),
            }
        }
        for appended in effect.log.values() {
            self.log.push(group, appended.entry);
        }
    }
}

/// A seq as it is kept and compared. Beyond the highest there is nothing.
pub(super) fn position(seq: Seq) -> i64 {
    i64::try_from(seq.0).unwrap_or(i64::MAX)
}

impl<'a> GroupRows<'a> {
    fn push(&mut self, group: &'a DeviceGroupId, record: &'a GroupRecord) {
        self.group.push(group.as_bytes());
        self.seq_reserved.push(record.seq_reserved.0.cast_signed());
        self.last_timestamp_ms.push(record.last_timestamp_ms.cast_signed());
        self.shared_device_data.push(&record.encrypted_shared_device_data);
        self.seal.push(seal::group(0, *group, record).to_vec());
    }
}

impl<'a> SlotRows<'a> {
    fn push(&mut self, group: &'a DeviceGroupId, record: &'a SlotRecord) {
        self.group.push(group.as_bytes());
        self.device.push(record.device.0.cast_signed());
        self.persistent.push(record.expiration == SlotExpiration::Persistent);
        self.connected.push(record.connected);
        self.last_disconnect_ms.push(record.last_disconnect_ms.cast_signed());
        self.device_info.push(&record.encrypted_device_info);
        self.since.push(record.since.0.cast_signed());
        self.cursor.push(record.cursor.0.cast_signed());
        self.acked.push(record.acked.to_bytes());
        self.acked_unseen.push(record.acked_unseen.to_bytes());
        self.issued.push(record.issued.0.cast_signed());
        self.counted_through.push(record.counted_through.0.cast_signed());
        self.held_pending.push(record.held.pending.cast_signed());
        self.held_entries.push(record.held.entries.cast_signed());
        self.held_bytes.push(record.held.bytes.cast_signed());
        self.seal.push(seal::slot(0, Some(*group), record).to_vec());
    }
}

impl<'a> LogRows<'a> {
    fn push(&mut self, group: &'a DeviceGroupId, entry: &'a LogEntry) {
        let (seq, timestamp_ms, envelope) =
            (position(entry.seq), entry.message.timestamp_ms(), entry.message.envelope());
        self.group.push(group.as_bytes());
        self.seq.push(seq);
        self.origin.push(entry.origin.0.cast_signed());
        self.timestamp_ms.push(timestamp_ms.cast_signed());
        self.envelope.push(envelope);
        self.seal.push(seal::entry(seq, Some(*group), entry.origin, timestamp_ms, envelope).to_vec());
    }
}
