//! What comes out of a decision.

use super::input::ConnectionId;
use super::record::{Seq, Write};
use crate::wire::d2m::{DeviceId, ToDevice};

/// Everything that follows from one input. The only way out of a group: first the writes are kept, all of them or
/// none, then the acts are done in their order.
#[derive(Debug, Default, PartialEq, Eq)]
#[must_use = "a decision that is not carried out is lost"]
pub struct Step {
    /// To be kept before anything is said.
    pub writes: Vec<Write>,
    /// To be done afterwards.
    pub acts: Vec<Act>,
    /// Worth telling an operator.
    pub notices: Vec<Notice>,
}

impl Step {
    /// Puts a later step behind this one.
    pub fn append(&mut self, mut later: Self) {
        self.writes.append(&mut later.writes);
        self.acts.append(&mut later.acts);
        self.notices.append(&mut later.notices);
    }
}

/// Something to be done for a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Put a payload into its outbox.
    Send(ConnectionId, ToDevice),
    /// End it, behind everything in its outbox. Its chat server connection must be closed before the next act.
    Close(ConnectionId, Farewell),
    /// Read its backlog, and come back with a page.
    Read {
        /// For whom.
        conn: ConnectionId,
        /// Beyond this seq.
        after: Seq,
        /// Up to and including this one.
        through: Seq,
    },
}

/// Why a group ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Farewell {
    /// The device believes to be new and is not, or the other way round (spec 3.3).
    SlotStateMismatch,
    /// Every slot is taken, and the device asked to be turned away then.
    DeviceLimitReached,
    /// The same device connected again.
    Replaced,
    /// A device of the group dropped it, or itself.
    Dropped,
    /// Its slot had to make room for a new device.
    LeastRecent,
    /// More waited for its slot than may (spec 4.4).
    QueueLimit,
    /// It held a transaction for too long.
    TransactionTtl,
    /// It acknowledged what it never got (spec 4.3).
    UnknownAck,
    /// It committed without holding the lock.
    CommitWithoutBegin,
    /// It asked for the lock that it holds.
    NestedBegin,
    /// It staged more in a transaction than may be.
    StagingLimit,
    /// It does not read what it is sent, and too much has gathered.
    SlowReader,
    /// An operator ended it.
    Kicked,
}

/// Why a transaction ended without a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Abort {
    /// The holder's connection ended, whoever ended it.
    HolderGone,
    /// The holder kept the lock for too long.
    Ttl,
}

/// A fact for logs and metrics. Holds nothing secret and nothing of a message but its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// A device took its seat.
    Joined {
        /// Which device.
        device: DeviceId,
        /// Whether its slot was made.
        new: bool,
        /// Messages that waited for it.
        queued: u64,
    },
    /// A device left its seat by itself.
    Left(DeviceId),
    /// The group ended a seated connection, or turned one away.
    Ended(DeviceId, Farewell),
    /// A slot is gone, with what waited for it.
    SlotRemoved {
        /// Whose it was.
        device: DeviceId,
        /// Why.
        why: SlotRemoval,
        /// Messages that waited.
        entries: u64,
    },
    /// A message was accepted for delivery.
    Reflected {
        /// Envelope bytes.
        bytes: usize,
        /// Not stored.
        ephemeral: bool,
        /// Slots it is for.
        receivers: usize,
    },
    /// A device acknowledged a durable message.
    Acked {
        /// Since the message was accepted, in milliseconds of the wall clock.
        waited_ms: u64,
    },
    /// Ephemeral messages were not handed to every connection, because one lagged too far behind.
    EphemeralSkipped(usize),
    /// The backlog is sent.
    Dry(DeviceId),
    /// A device leads.
    Promoted(DeviceId),
    /// The lock was taken.
    TransactionBegan(DeviceId),
    /// The lock was refused.
    TransactionRejected(DeviceId),
    /// The lock was freed, its messages delivered.
    TransactionCommitted {
        /// By whom.
        device: DeviceId,
        /// How long it was held, in milliseconds.
        held_ms: u64,
        /// How many messages were staged.
        messages: usize,
    },
    /// The lock was freed, its messages discarded.
    TransactionAborted {
        /// Who held it.
        device: DeviceId,
        /// How long, in milliseconds.
        held_ms: u64,
        /// How many durable messages were staged.
        messages: usize,
        /// Why.
        why: Abort,
    },
}

/// Why a slot is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SlotRemoval {
    /// A device of the group dropped it.
    Dropped,
    /// It was the least recently used when a new device needed room.
    LeastRecent,
    /// Too much waited for it.
    QueueLimit,
    /// Its time after the disconnect is over.
    Expired,
    /// Its device never heard of it: the ServerInfo could not be written.
    RolledBack,
}
