//! Every bound of a group, with its unit and its reason, and what they demand of each other.

use std::collections::BTreeMap;
use std::time::Duration;

use super::record::LogEntry;
use super::slots::Slot;
use crate::wire::d2m::{
    CONTAINER_MAX, DEVICES_INFO_OVERHEAD, DeviceId, ENCRYPTED_DEVICE_INFO_MAX, ENCRYPTED_SCOPE_MAX, PAYLOAD_MAX,
    ToDevice,
};

/// Most slots a group may be configured to have: what fits one `DevicesInfo`.
pub const DEVICE_SLOTS_MAX: usize = 15;
const _: () = assert!(
    DEVICE_SLOTS_MAX * (ENCRYPTED_DEVICE_INFO_MAX + DEVICES_INFO_OVERHEAD) <= PAYLOAD_MAX,
    "the largest DevicesInfo fits a container"
);

/// What an outbox may hold before the group stops feeding its connection, in cost ([`cost`]). Enough to keep a socket
/// busy for a few round trips, little enough to be held for every stalled one.
pub const OUTBOX_COST: usize = 256 * 1024;
/// What every payload costs beyond its weight: its place in the queue and in the socket library's buffer.
pub const PAYLOAD_COST: usize = 256;
const _: () = assert!(OUTBOX_COST >= 2 * CONTAINER_MAX, "two of the largest containers fit an outbox");

/// Most payloads that wait in line for an outbox, besides reflected messages, which wait in the log.
pub const LINE_PAYLOADS_MAX: usize = 4_096;
/// Most bytes of these.
pub const LINE_BYTES_MAX: usize = 4 * 1024 * 1024;
const _: () = assert!(LINE_BYTES_MAX >= 64 * ENCRYPTED_SCOPE_MAX, "a line holds more than one round of transactions");

/// Most bytes of messages kept in memory for connections that lag behind, [`ENTRY_COST`] for each included. Beyond it they read
/// their backlog from the store. What waits for a device that is away takes no memory at all.
pub const WINDOW_BYTES_MAX: usize = 1024 * 1024;
/// What a message takes in memory beside its bytes: its place, and what the allocator adds to it and to its reference count.
pub const ENTRY_COST: usize = 128;
const _: () = assert!(size_of::<LogEntry>() <= 48, "the place of a message, with as much again for the allocator");
/// How much of the backlog is read from the store at once, in cost. A page is sent whole, so an outbox may be overdrawn
/// by one.
pub const PAGE_COST: usize = 128 * 1024;
const _: () = assert!(PAGE_COST <= OUTBOX_COST, "a page fits an empty outbox");
const _: () = assert!(PAGE_COST >= CONTAINER_MAX + PAYLOAD_COST, "a page holds the largest message");

/// How many payloads an outbox can come to hold: what its cost allows, a page or a payload that overdraws it, a whole
/// line that is flushed before a close, and the close.
pub const OUTBOX_PAYLOADS_MAX: usize = OUTBOX_COST / PAYLOAD_COST + PAGE_COST / PAYLOAD_COST + LINE_PAYLOADS_MAX + 2;

/// Seqs are reserved in the store by blocks, so that none is given twice after a crash and few writes pay for it.
pub const SEQ_BLOCK: u64 = 1_024;
/// A queue may not span half of the u32 that devices see of a seq, or two outstanding messages could share an id.
pub const QUEUE_SPAN_MAX: u64 = 1 << 31;
/// Acknowledgements are written at most this late. Losing one means a redelivery, which the protocol allows.
pub const FLUSH_AFTER: Duration = Duration::from_secs(1);
/// From this age on they ride along with a commit that is made anyway. With every commit they would cost a row per slot
/// each time; never, a busy group would redeliver a second's worth after each crash.
pub const FLUSH_RIDES_AFTER: Duration = Duration::from_millis(100);
/// Most ranges of out-of-order acknowledgements that are kept for one slot. Others are forgotten by a restart.
pub const ACKED_RANGES_KEPT: usize = 512;

/// The bounds an operator may choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Devices per group.
    pub max_device_slots: usize,
    /// Messages that may wait for one slot.
    pub max_queue_messages: u64,
    /// Envelope bytes that may wait for one slot.
    pub max_queue_bytes: u64,
    /// Longest time a transaction may be held. Generous, since devices are linked by hand inside one.
    pub transaction_ttl_max: Duration,
    /// How long a volatile slot outlives its connection.
    pub volatile_slot_ttl: Duration,
    /// How long a persistent slot outlives its connection; `None` for ever.
    pub persistent_slot_ttl: Option<Duration>,
    /// Messages one transaction may stage.
    pub staged_messages_max: usize,
    /// Envelope bytes one transaction may stage.
    pub staged_bytes_max: usize,
}

impl Limits {
    /// Raises what these slots exceed: what is there is allowed to be there, and nothing is added to it.
    pub(super) fn allow(&mut self, slots: &BTreeMap<DeviceId, Slot>) {
        self.max_device_slots = self.max_device_slots.max(slots.len());
        for Slot { record, .. } in slots.values() {
            self.max_queue_messages = self.max_queue_messages.max(record.held.entries);
            self.max_queue_bytes = self.max_queue_bytes.max(record.held.bytes);
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_device_slots: 10,
            max_queue_messages: 100_000,
            max_queue_bytes: 256 * 1024 * 1024,
            transaction_ttl_max: Duration::from_secs(600),
            volatile_slot_ttl: Duration::from_secs(600),
            persistent_slot_ttl: None,
            staged_messages_max: 4_096,
            staged_bytes_max: 32 * 1024 * 1024,
        }
    }
}

/// What a payload costs an outbox. Whoever writes it to the socket gives exactly this back.
#[must_use]
pub fn cost(payload: &ToDevice) -> usize {
    PAYLOAD_COST + payload.weight()
}
