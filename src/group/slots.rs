//! One slot: what waits for it, what is on its way, what it acknowledged (spec 4.1 to 4.4).
//!
//! A slot's queue is the log beyond its cursor, minus its own entries, minus what it acknowledged out of order. While the
//! device is connected the *flights* list every log entry beyond the cursor that this connection has walked past: sent,
//! acknowledged, or its own. When the front of that list is done, the cursor moves.

use std::collections::VecDeque;
use std::time::Duration;

use super::input::ConnectionId;
use super::limits::{ACKED_RANGES_KEPT, Limits, OUTBOX_COST, QUEUE_SPAN_MAX};
use super::record::{Held, LogEntry, Seq, SlotRecord};
use crate::wire::d2m::{ReflectedId, ToDevice};

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) record: SlotRecord,
    pub(super) seat: Option<Seat>,
    /// The record changed since it was last written.
    pub(super) dirty: bool,
}

/// A slot's live connection.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) conn: ConnectionId,
    pub(super) since_ms: u64,
    /// This connection made the slot.
    pub(super) made_slot: bool,
    /// Where the log stood when it was seated. Ephemeral messages from before that are not for this connection.
    pub(super) seated_at: Seq,
    /// The log up to here has been walked for this connection.
    pub(super) walked: Seq,
    /// A page is on its way from the store.
    pub(super) reading: bool,
    /// What its outbox still takes, in cost; overdrawn by one payload at most.
    pub(super) room: i64,
    /// Since when there is no room and the socket takes nothing.
    pub(super) full_since: Option<Duration>,
    /// Payloads besides reflected messages, each behind the log up to its seq.
    pub(super) line: VecDeque<(Seq, ToDevice)>,
    pub(super) line_bytes: usize,
    /// How many connections of the group became dry before this one did.
    pub(super) dry: Option<u64>,
    pub(super) flights: VecDeque<Flight>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flight {
    pub(super) seq: Seq,
    /// When the message was accepted, on the wall clock.
    pub(super) accepted_ms: u64,
    pub(super) bytes: u32,
    pub(super) state: FlightState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FlightState {
    /// Sent on this connection, or about to be.
    Sent,
    /// Acknowledged, while an earlier one is not.
    Acked,
    /// The slot's own; never sent to it.
    Own,
}

/// What an acknowledgement turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AckOutcome {
    Counted {
        /// When the message was accepted, on the wall clock.
        accepted_ms: u64,
    },
    /// Acknowledged before, ephemeral, or not known to be anything.
    Ignored,
    /// Never issued to this slot.
    Unknown,
}

/// Why a seat is not being fed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pause {
    /// Everything was handed over.
    CaughtUp,
    /// The outbox holds all it may; the socket has to take some.
    SocketFull,
    /// A page is on its way from the store.
    Reading,
}

fn signed(cost: usize) -> i64 {
    i64::try_from(cost).unwrap_or(i64::MAX)
}

impl Seat {
    pub(super) fn new(conn: ConnectionId, since_ms: u64, made_slot: bool, walked: Seq, seated_at: Seq) -> Self {
        Self {
            conn,
            since_ms,
            made_slot,
            seated_at,
            walked,
            reading: false,
            room: signed(OUTBOX_COST),
            full_since: None,
            line: VecDeque::new(),
            line_bytes: 0,
            dry: None,
            flights: VecDeque::new(),
        }
    }

    pub(super) fn spend(&mut self, now: Duration, cost: usize) {
        self.room = self.room.saturating_sub(signed(cost));
        if self.room <= 0 {
            self.full_since.get_or_insert(now);
        }
    }

    pub(super) fn give_back(&mut self, now: Duration, cost: usize) {
        self.room = self.room.saturating_add(signed(cost)).min(signed(OUTBOX_COST));
        self.full_since = (self.room <= 0).then_some(now);
    }

    /// What is to happen for this connection next, as far as it can be said without looking at the log.
    pub(super) fn pause(&self, last: Seq) -> Option<Pause> {
        if self.room <= 0 {
            Some(Pause::SocketFull)
        } else if self.reading {
            Some(Pause::Reading)
        } else if self.walked >= last && self.line.is_empty() && self.dry.is_some() {
            Some(Pause::CaughtUp)
        } else {
            None
        }
    }
}

impl Slot {
    pub(super) fn conn(&self) -> Option<ConnectionId> {
        self.seat.as_ref().map(|seat| seat.conn)
    }

    /// Counts an entry of another device. The limits were checked before.
    pub(super) fn count_foreign(&mut self, seq: Seq, bytes: u64) {
        if self.record.held.pending == 0 {
            // Nothing waited: whatever lies before this entry is none of ours.
            self.record.cursor = Seq(seq.0.saturating_sub(1));
        }
        self.record.issued = seq;
        let held = &mut self.record.held;
        held.pending += 1;
        held.entries += 1;
        held.bytes += bytes;
    }

    /// Counts an entry of its own: held only while something of the others is, since the cursor stands before that.
    pub(super) const fn count_own(&mut self, bytes: u64) {
        let held = &mut self.record.held;
        if held.pending > 0 {
            held.entries += 1;
            held.bytes += bytes;
        }
    }

    /// Whether one more entry at `seq` would be too much for this slot.
    pub(super) fn would_overflow(&self, seq: Seq, bytes: u64, limits: &Limits) -> bool {
        let held = &self.record.held;
        held.entries >= limits.max_queue_messages
            || held.bytes.saturating_add(bytes) > limits.max_queue_bytes
            || (held.pending > 0 && seq.0.saturating_sub(self.record.cursor.0) >= QUEUE_SPAN_MAX)
    }

    /// Whether more is held for this slot than may be, of which the last is its own.
    pub(super) const fn is_overfull(&self, limits: &Limits) -> bool {
        self.record.held.entries > limits.max_queue_messages || self.record.held.bytes > limits.max_queue_bytes
    }

    /// Walks past a log entry; says whether it is to be sent to the seat. `entry.seq` is beyond `walked`.
    pub(super) fn walk(&mut self, entry: &LogEntry) -> bool {
        let Some(seat) = &mut self.seat else { return false };
        seat.walked = entry.seq;
        let own = entry.origin == self.record.device;
        if entry.message.flags().ephemeral {
            return !own && entry.seq > seat.seated_at;
        }
        let record = &mut self.record;
        if entry.seq <= record.cursor {
            return false;
        }
        if record.held.pending == 0 {
            // Nothing waits, so this can only be its own, and is not held.
            record.cursor = entry.seq;
            return false;
        }
        let state = if own {
            FlightState::Own
        } else if record.acked.contains(entry.seq.0) {
            FlightState::Acked
        } else if record.acked_unseen.contains(entry.seq.0) {
            record.acked.insert(entry.seq.0);
            record.held.pending = record.held.pending.saturating_sub(1);
            self.dirty = true;
            FlightState::Acked
        } else {
            FlightState::Sent
        };
        record.acked_unseen.remove_through(entry.seq.0);
        let bytes = u32::try_from(entry.message.envelope().len()).unwrap_or(u32::MAX);
        let accepted_ms = entry.message.timestamp_ms();
        seat.flights.push_back(Flight { seq: entry.seq, accepted_ms, bytes, state });
        // What is done already, or its own, may stand first: cursors are written lazily, so after a restart the walk
        // begins further back than the cursor once was.
        if state != FlightState::Sent {
            self.settle(entry.seq);
        }
        state == FlightState::Sent
    }

    /// Moves the cursor over everything at the front that is done. `last` is where the log stands at least.
    fn settle(&mut self, last: Seq) {
        let Some(seat) = &mut self.seat else { return };
        let record = &mut self.record;
        if record.held.pending == 0 {
            record.cursor = record.cursor.max(last);
            record.held = Held::default();
            record.acked.remove_through(record.cursor.0);
            seat.flights.clear();
            if seat.flights.capacity() > 64 {
                seat.flights.shrink_to(16);
            }
            return;
        }
        while let Some(front) = seat.flights.pop_front_if(|flight| flight.state != FlightState::Sent) {
            record.cursor = front.seq;
            record.held.entries = record.held.entries.saturating_sub(1);
            record.held.bytes = record.held.bytes.saturating_sub(front.bytes.into());
        }
        record.acked.remove_through(record.cursor.0);
    }

    /// An acknowledgement (spec 4.3). `last` is where the log stands.
    pub(super) fn ack(&mut self, id: ReflectedId, last: Seq) -> AckOutcome {
        let Some(seat) = &mut self.seat else { return AckOutcome::Ignored };
        let record = &mut self.record;
        let Some(seq) = seq_of(id, record.issued).filter(|&seq| seq > record.since) else { return AckOutcome::Unknown };
        if seq <= record.cursor || record.acked.contains(seq.0) {
            return AckOutcome::Ignored;
        }
        if let Ok(at) = seat.flights.binary_search_by_key(&seq, |flight| flight.seq) {
            let Some(flight) = seat.flights.get_mut(at) else { return AckOutcome::Ignored };
            return match flight.state {
                FlightState::Own => AckOutcome::Unknown,
                FlightState::Acked => AckOutcome::Ignored,
                FlightState::Sent => {
                    flight.state = FlightState::Acked;
                    let accepted_ms = flight.accepted_ms;
                    record.acked.insert(seq.0);
                    record.held.pending = record.held.pending.saturating_sub(1);
                    self.dirty = true;
                    self.settle(last);
                    AckOutcome::Counted { accepted_ms }
                }
            };
        }
        // Not sent on this connection yet: a device may acknowledge late what it got on an earlier one. What it was will
        // be known when the walk comes to it. Beyond the bound it is forgotten, and the message sent once more.
        if seq > seat.walked && record.acked_unseen.ranges() < ACKED_RANGES_KEPT {
            self.dirty |= record.acked_unseen.insert(seq.0);
        }
        AckOutcome::Ignored
    }

    /// Up to here the log need not be kept for this slot.
    pub(super) const fn low(&self, last: Seq) -> Seq {
        if self.record.held.pending == 0 { last } else { self.record.cursor }
    }

    /// The record as it is to be written, with the log counted up to `last`.
    pub(super) fn to_record(&self, last: Seq) -> SlotRecord {
        let mut record = self.record.clone();
        record.counted_through = last;
        if record.held.pending == 0 {
            record.cursor = last;
            record.acked.remove_through(last.0);
            record.acked_unseen.remove_through(last.0);
            record.held = Held::default();
        }
        // What does not fit counts as not acknowledged again.
        record.held.pending += record.acked.truncate(ACKED_RANGES_KEPT);
        record
    }
}

/// The latest seq up to `issued` with these low 32 bits; `None` when there was none yet.
fn seq_of(id: ReflectedId, issued: Seq) -> Option<Seq> {
    let low = issued.0 & u64::from(u32::MAX);
    let back = low.wrapping_sub(u64::from(id.0)) & u64::from(u32::MAX);
    issued.0.checked_sub(back).map(Seq)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_below_what_was_issued_also_across_the_wrap() {
        assert_eq!(seq_of(ReflectedId(3), Seq(5)), Some(Seq(3)));
        assert_eq!(seq_of(ReflectedId(6), Seq(5)), None);
        assert_eq!(seq_of(ReflectedId(6), Seq((1 << 32) + 5)), Some(Seq(6)));
        assert_eq!(seq_of(ReflectedId(4), Seq((1 << 32) + 5)), Some(Seq((1 << 32) + 4)));
    }
}
