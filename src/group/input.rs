//! What can happen to a group.

use super::record::Page;
use crate::wire::d2m::{BeginTransaction, DeviceId, Reflect, ReflectedId, SlotExpiration, SlotState, SlotsExhausted};

/// One connection of one device. Never used twice while the server runs, so that whatever arrives late from a connection
/// that is gone cannot be mistaken for its successor's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// A device that proved the group key wants its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    /// Who it is.
    pub device: DeviceId,
    /// Its wish for the case that every slot is taken.
    pub slots_exhausted: SlotsExhausted,
    /// Its wish for the time after it disconnected.
    pub slot_expiration: SlotExpiration,
    /// Whether it believes to have a slot.
    pub expected_slot_state: SlotState,
    /// Opaque.
    pub encrypted_device_info: Vec<u8>,
}

/// What an established device may ask of its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Who is in the group?
    GetDevicesInfo,
    /// Remove a device, maybe itself.
    DropDevice(DeviceId),
    /// Replace the data shown to every device at login.
    SetSharedDeviceData(Vec<u8>),
    /// Take the lock.
    BeginTransaction(BeginTransaction),
    /// Deliver what was staged, and free the lock.
    CommitTransaction,
    /// Deliver to the others.
    Reflect(Reflect),
    /// A reflected message was processed.
    ReflectedAck(ReflectedId),
}

/// One thing that happens to a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A connection wants to be seated. Answered by a ServerInfo or a close.
    Join(ConnectionId, Introduction),
    /// A seated connection says something.
    Says(ConnectionId, Request),
    /// A connection wrote payloads of this cost to its socket.
    Written(ConnectionId, usize),
    /// The stretch of log that was asked for.
    Page(ConnectionId, Page),
    /// A connection is over, its chat server connection too.
    Leave {
        /// Which one.
        conn: ConnectionId,
        /// Whether its ServerInfo reached the socket. A slot made by a connection whose did not is taken back.
        introduced: bool,
    },
    /// An operator removes a device, as a device of the group would (spec 7).
    Remove(DeviceId),
    /// An operator ends a device's connection. It may come back.
    Kick(DeviceId),
    /// All writes of earlier steps are kept.
    Durable,
    /// Time went by.
    Tick,
}
