//! The group's lock (spec 6) and what is staged under it (spec 4.5).
//!
//! A reflect under the lock is acknowledged when it is staged: every real client waits for that acknowledgement before
//! it commits. Staged messages live in memory only, since whatever ends the process ends the transaction. Nothing here
//! sends: [`Lock`] says what became of the lock, `Group` says so to the devices, in one serial context, which is what
//! puts each Rejected before its Ended.

use std::time::Duration;

use super::input::ConnectionId;
use super::limits::Limits;
use crate::wire::d2m::{BeginTransaction, DeviceId, Envelope, ReflectFlags, TransactionHolder};

/// Who has the lock.
#[derive(Debug, Default)]
pub(super) enum Lock {
    #[default]
    Idle,
    Held(Box<Held>),
}

#[derive(Debug)]
pub(super) struct Held {
    pub(super) conn: ConnectionId,
    pub(super) holder: TransactionHolder,
    pub(super) ttl: Duration,
    /// Set when the BeginTransactionAck leaves the line: a device is not charged for the time its backlog takes.
    pub(super) until: Option<Duration>,
    pub(super) since: Duration,
    /// BeginTransactionAcks of earlier transactions of this connection that are still in its line.
    acks_ahead: usize,
    pub(super) staged: Vec<Staged>,
    staged_bytes: usize,
}

/// A message that waits for the commit. Its timestamp is the one that was acknowledged.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) flags: ReflectFlags,
    pub(super) envelope: Envelope,
    pub(super) timestamp_ms: u64,
}

/// The answer to a BeginTransaction.
#[derive(Debug)]
pub(super) enum Begun {
    Granted,
    Rejected(TransactionHolder),
    Nested,
}

/// Too much was staged.
#[derive(Debug)]
pub(super) struct StagingFull;

impl Lock {
    pub(super) fn begin(
        &mut self,
        now: Duration,
        conn: ConnectionId,
        device: DeviceId,
        begin: BeginTransaction,
        acks_ahead: usize,
        limits: &Limits,
    ) -> Begun {
        match self {
            Self::Held(held) if held.conn == conn => Begun::Nested,
            Self::Held(held) => Begun::Rejected(held.holder.clone()),
            Self::Idle => {
                let asked = Duration::from_secs(begin.ttl_s.into());
                let ttl =
                    if asked.is_zero() { limits.transaction_ttl_max } else { asked.min(limits.transaction_ttl_max) };
                *self = Self::Held(Box::new(Held {
                    conn,
                    holder: TransactionHolder { device_id: device, encrypted_scope: begin.encrypted_scope },
                    ttl,
                    until: None,
                    since: now,
                    acks_ahead,
                    staged: Vec::new(),
                    staged_bytes: 0,
                }));
                Begun::Granted
            }
        }
    }

    /// A BeginTransactionAck goes to the socket: the clock starts, if it is this transaction's.
    pub(super) fn granted(&mut self, now: Duration, conn: ConnectionId) {
        let Some(held) = self.held_by_mut(conn) else { return };
        match held.acks_ahead.checked_sub(1) {
            Some(left) => held.acks_ahead = left,
            None => held.until = Some(now.saturating_add(held.ttl)),
        }
    }

    /// Frees the lock if this connection holds it.
    pub(super) fn take_if_held_by(&mut self, conn: ConnectionId) -> Option<Held> {
        match std::mem::take(self) {
            Self::Held(held) if held.conn == conn => Some(*held),
            other => {
                *self = other;
                None
            }
        }
    }

    pub(super) fn held_by_mut(&mut self, conn: ConnectionId) -> Option<&mut Held> {
        match self {
            Self::Held(held) if held.conn == conn => Some(held),
            Self::Held(_) | Self::Idle => None,
        }
    }

    /// The holder, and when it has to be done.
    pub(super) fn deadline(&self) -> Option<(ConnectionId, Duration)> {
        match self {
            Self::Held(held) => Some((held.conn, held.until?)),
            Self::Idle => None,
        }
    }
}

impl Held {
    pub(super) fn stage(&mut self, staged: Staged, limits: &Limits) -> Result<(), StagingFull> {
        self.staged_bytes = self.staged_bytes.saturating_add(staged.envelope.len());
        if self.staged.len() >= limits.staged_messages_max || self.staged_bytes > limits.staged_bytes_max {
            return Err(StagingFull);
        }
        self.staged.push(staged);
        Ok(())
    }

    pub(super) const fn staged_bytes(&self) -> usize {
        self.staged_bytes
    }

    pub(super) fn held_ms(&self, now: Duration) -> u64 {
        u64::try_from(now.saturating_sub(self.since).as_millis()).unwrap_or(u64::MAX)
    }
}
