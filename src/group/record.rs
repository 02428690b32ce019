//! What a group asks the store to keep, and gets back when it wakes.

use super::ranges::RangeSet;
use crate::wire::d2m::{DeviceId, Reflected, SlotExpiration};

/// A position in a group's log. Grows by one per accepted reflect, stored or ephemeral, and with gaps after a crash;
/// never given twice. Its low 32 bits are the reflected-id on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seq(pub u64);

impl Seq {
    /// What devices see of it.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the low half is the point")]
    pub const fn wire_id(self) -> u32 {
        self.0 as u32
    }

    /// The next position.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// One change that has to be kept. A list of them is kept whole and in order, or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Replaces what is known of the group itself; makes the group if there is none.
    Group(GroupRecord),
    /// Makes or replaces a slot.
    Slot(SlotRecord),
    /// Removes a slot, if it is there.
    RemoveSlot(DeviceId),
    /// Appends to the log.
    Append(LogEntry),
    /// Removes every entry of the log up to and including this one.
    Trim {
        /// The last one to go.
        through: Seq,
    },
    /// Removes the group with everything it has.
    Forget,
}

/// What is kept of a group itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupRecord {
    /// No seq beyond this one was ever given. A group that wakes continues behind it.
    pub seq_reserved: Seq,
    /// The highest timestamp given, in milliseconds since the Unix epoch: as last written, or of an entry that no slot
    /// has counted yet.
    pub last_timestamp_ms: u64,
    /// Opaque; empty until set.
    pub encrypted_shared_device_data: Vec<u8>,
}

/// What is kept of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotRecord {
    /// Whose slot it is.
    pub device: DeviceId,
    /// What becomes of it after a disconnect.
    pub expiration: SlotExpiration,
    /// Opaque; as given at the last login.
    pub encrypted_device_info: Vec<u8>,
    /// Whether the device was connected when this was written. After a crash the store answers with `false`.
    pub connected: bool,
    /// When it was last seen leaving, in milliseconds since the Unix epoch.
    pub last_disconnect_ms: u64,
    /// The slot's queue begins behind this seq: where the log stood when the slot was made.
    pub since: Seq,
    /// Everything up to here has been acknowledged, or was never for this slot.
    pub cursor: Seq,
    /// Acknowledged beyond the cursor, and counted as such.
    pub acked: RangeSet,
    /// Acknowledged beyond the cursor before it was sent again, so that it is not known yet what it was.
    pub acked_unseen: RangeSet,
    /// The highest seq that was meant for this slot, as far as `counted_through`.
    pub issued: Seq,
    /// The counts below cover the log up to here.
    pub counted_through: Seq,
    /// What waits for the slot.
    pub held: Held,
}

/// What the log holds for one slot beyond its cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// Entries of other devices that are not acknowledged: the reflection queue length.
    pub pending: u64,
    /// All entries beyond the cursor, the slot's own and acknowledged ones included.
    pub entries: u64,
    /// Envelope bytes of `entries`.
    pub bytes: u64,
}

/// One reflected message that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Its place in the order.
    pub seq: Seq,
    /// Who reflected it, and will not get it back.
    pub origin: DeviceId,
    /// The message as it goes out: its id is the low half of `seq`.
    pub message: Reflected,
}

/// Everything a group needs to wake.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// The group itself.
    pub group: GroupRecord,
    /// Its slots.
    pub slots: Vec<SlotSnapshot>,
}

/// A slot as it was kept, and what the log got since it was counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotSnapshot {
    /// As last written.
    pub record: SlotRecord,
    /// What the log holds for it beyond `record.counted_through`; `pending` without the slot's own entries. To be added
    /// to `record.held`.
    pub uncounted: Held,
}

/// A stretch of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// In the order of their seq, own entries of the asking slot included.
    pub entries: Vec<LogEntry>,
    /// The log holds nothing more up to here: the last entry's seq when the page was cut short, else the end asked for.
    pub through: Seq,
}
