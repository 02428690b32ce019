//! What a group looks like from outside, for operators who ask why something does not happen. Describing changes nothing
//! and holds nothing of a message but its size.

use serde::{Deserialize, Serialize};

use super::Group;
use super::deadlines::slot_expires_ms;
use super::slots::{FlightState, Pause, Slot};
use super::transaction::Lock;
use crate::time::Now;
use crate::wire::d2m::{DeviceId, SlotExpiration};

/// A group at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupView {
    /// Its slots, by their devices.
    pub devices: Vec<DeviceView>,
    /// Who leads.
    pub leader: Option<DeviceId>,
    /// The transaction that runs.
    pub lock: Option<LockView>,
    /// Slots there may be.
    pub max_device_slots: usize,
}

/// One slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceView {
    /// Whose it is.
    pub device: DeviceId,
    /// Whether it goes some time after its device.
    pub volatile: bool,
    /// Messages of the others that it has not acknowledged.
    pub waiting: u64,
    /// Envelope bytes of these and of what stands between them.
    pub waiting_bytes: u64,
    /// Where its device is.
    pub presence: Presence,
}

/// Where a device is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Presence {
    /// Not connected.
    Away {
        /// How long it has been, in milliseconds.
        for_ms: u64,
        /// When its slot goes, in milliseconds from now; `None` for never.
        expires_in_ms: Option<u64>,
    },
    /// Connected.
    Connected(Connection),
}

/// A connection of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// Its number, which is never given again while the server runs.
    pub connection: u64,
    /// How long it has been, in milliseconds.
    pub for_ms: u64,
    /// How many connections of the group were dry before this one was; `None` while it gets its backlog.
    pub dry: Option<u64>,
    /// Messages that wait and were not handed to this connection.
    pub unsent: u64,
    /// Messages that were handed to it and are not acknowledged.
    pub unacknowledged: u64,
    /// Answers and notes that stand in line behind messages.
    pub in_line: usize,
    /// What it waits for.
    pub delivery: Delivery,
}

/// Why a connection is not being fed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "why")]
pub enum Delivery {
    /// Everything was handed over.
    CaughtUp,
    /// Its socket has to take some first.
    SocketFull {
        /// How long it has taken nothing, in milliseconds.
        for_ms: u64,
    },
    /// Its backlog is being read.
    Reading,
}

/// The transaction that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockView {
    /// Who holds the lock.
    pub holder: DeviceId,
    /// For how long, in milliseconds.
    pub held_ms: u64,
    /// How long it may go on, in milliseconds; `None` when its BeginTransactionAck still stands in line, so that its time
    /// has not begun.
    pub remaining_ms: Option<u64>,
    /// Messages staged.
    pub staged: usize,
    /// Their envelope bytes.
    pub staged_bytes: usize,
}

/// What an operator wants to know of every group at once: a few numbers, cheap to take after every decision.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pulse {
    /// Slots.
    pub devices: usize,
    /// Slots whose device is connected.
    pub connected: usize,
    /// Who leads.
    pub leader: Option<DeviceId>,
    /// Messages that wait for the slot with the longest queue.
    pub deepest: u64,
    /// Messages that wait for connected devices, together.
    pub lagging: u64,
    /// Connections whose socket has to take some before they get more.
    pub stalled: usize,
    /// Whether a transaction runs.
    pub locked: bool,
}

fn ms(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Group {
    /// What is to be seen now.
    #[must_use]
    pub fn describe(&self, now: Now) -> GroupView {
        let lock = match &self.lock {
            Lock::Idle => None,
            Lock::Held(held) => Some(LockView {
                holder: held.holder.device_id,
                held_ms: held.held_ms(now.monotonic),
                remaining_ms: held.until.map(|until| ms(until.saturating_sub(now.monotonic))),
                staged: held.staged.len(),
                staged_bytes: held.staged_bytes(),
            }),
        };
        GroupView {
            devices: self.slots.values().map(|slot| self.describe_slot(now, slot)).collect(),
            leader: self.leader(),
            lock,
            max_device_slots: self.limits.max_device_slots,
        }
    }

    fn describe_slot(&self, now: Now, slot: &Slot) -> DeviceView {
        let record = &slot.record;
        let presence = match &slot.seat {
            None => Presence::Away {
                for_ms: now.wall_ms.saturating_sub(record.last_disconnect_ms),
                expires_in_ms: slot_expires_ms(slot, &self.limits).map(|at| at.saturating_sub(now.wall_ms)),
            },
            Some(seat) => {
                let sent = seat.flights.iter().filter(|flight| flight.state == FlightState::Sent).count() as u64;
                Presence::Connected(Connection {
                    connection: seat.conn.0,
                    for_ms: now.wall_ms.saturating_sub(seat.since_ms),
                    dry: seat.dry,
                    unsent: record.held.pending.saturating_sub(sent),
                    unacknowledged: sent,
                    in_line: seat.line.len(),
                    delivery: match seat.pause(self.log.last) {
                        Some(Pause::SocketFull) => {
                            let since = seat.full_since.unwrap_or(now.monotonic);
                            Delivery::SocketFull { for_ms: ms(now.monotonic.saturating_sub(since)) }
                        }
                        Some(Pause::Reading) => Delivery::Reading,
                        // A seat is fed until it says why it is not, so there is always a reason.
                        Some(Pause::CaughtUp) | None => Delivery::CaughtUp,
                    },
                })
            }
        };
        DeviceView {
            device: record.device,
            volatile: record.expiration == SlotExpiration::Volatile,
            waiting: record.held.pending,
            waiting_bytes: record.held.bytes,
            presence,
        }
    }

    /// The few numbers that are kept of every group that is awake.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        let mut pulse = Pulse {
            devices: self.slots.len(),
            connected: self.seats.len(),
            leader: self.leader(),
            locked: matches!(self.lock, Lock::Held(_)),
            ..Pulse::default()
        };
        for slot in self.slots.values() {
            let waiting = slot.record.held.pending;
            pulse.deepest = pulse.deepest.max(waiting);
            if let Some(seat) = &slot.seat {
                pulse.lagging = pulse.lagging.saturating_add(waiting);
                pulse.stalled += usize::from(seat.room <= 0);
            }
        }
        pulse
    }
}
