//! Who is fed next, and in which order.
//!
//! Each connection has one stream of D2M payloads. Reflected messages wait in the log; everything else waits in the
//! connection's *line*, each payload behind the log as it stood when the payload was made. So an answer never overtakes a
//! message that was accepted before it: a device that gets a BeginTransactionAck has got everything it has to know first.
//!
//! The only brake is the socket: nothing here waits for acknowledgements (A32). A connection that is not fed says why
//! ([`Pause`]).

use super::Group;
use super::input::ConnectionId;
use super::limits::{LINE_BYTES_MAX, LINE_PAYLOADS_MAX, cost};
use super::record::{Page, Seq};
use super::slots::{Pause, Seat};
use super::step::{Act, Farewell, Notice, Step};
use crate::time::Now;
use crate::wire::d2m::{DeviceId, ToDevice};

impl Group {
    /// Puts the very first payload of a connection out, before anything else can.
    pub(super) fn introduce(&mut self, now: Now, device: DeviceId, payload: ToDevice, step: &mut Step) {
        if let Some(seat) = self.slots.get_mut(&device).and_then(|slot| slot.seat.as_mut()) {
            seat.spend(now.monotonic, cost(&payload));
            step.acts.push(Act::Send(seat.conn, payload));
        }
    }

    /// Puts a payload in line, behind everything accepted so far, and feeds the device.
    pub(super) fn say(&mut self, now: Now, device: DeviceId, payload: ToDevice, step: &mut Step) {
        let last = self.log.last;
        let Some(seat) = self.slots.get_mut(&device).and_then(|slot| slot.seat.as_mut()) else { return };
        seat.line_bytes = seat.line_bytes.saturating_add(payload.weight());
        seat.line.push_back((last, payload));
        self.feed(now, device, step);
        let stuck = self
            .slots
            .get(&device)
            .and_then(|slot| slot.seat.as_ref())
            .is_some_and(|seat| seat.line.len() > LINE_PAYLOADS_MAX || seat.line_bytes > LINE_BYTES_MAX);
        if stuck {
            self.unseat(now, device, Some(Farewell::SlowReader), step);
        }
    }

    pub(super) fn say_to_others(&mut self, now: Now, device: DeviceId, payload: &ToDevice, step: &mut Step) {
        let others: Vec<DeviceId> = self.seats.values().copied().filter(|&other| other != device).collect();
        for other in others {
            self.say(now, other, payload.clone(), step);
        }
    }

    pub(super) fn feed_all(&mut self, now: Now, step: &mut Step) {
        let seated: Vec<DeviceId> = self.seats.values().copied().collect();
        for device in seated {
            self.feed(now, device, step);
        }
    }

    /// Hands a connection everything that it has room for.
    pub(super) fn feed(&mut self, now: Now, device: DeviceId, step: &mut Step) {
        while self.feed_one(now, device, step).is_none() {}
    }

    /// Does one thing for a connection, or says why there is nothing to do.
    fn feed_one(&mut self, now: Now, device: DeviceId, step: &mut Step) -> Option<Pause> {
        let last = self.log.last;
        let slot = self.slots.get_mut(&device)?;
        let Some(seat) = slot.seat.as_mut() else { return Some(Pause::CaughtUp) };
        if let Some(pause) = seat.pause(last) {
            return Some(pause);
        }
        let conn = seat.conn;
        // Everything in the log that the front of the line stands behind goes first.
        let until = seat.line.front().map_or(last, |&(behind, _)| behind);
        if seat.walked < until {
            if seat.walked < self.log.floor {
                seat.reading = true;
                let through = self.log.floor.min(until);
                step.acts.push(Act::Read { conn, after: seat.walked, through });
                return Some(Pause::Reading);
            }
            match self.log.first_beyond(seat.walked).filter(|entry| entry.seq <= until) {
                None => seat.walked = until,
                Some(entry) => {
                    if slot.walk(entry) {
                        let payload = ToDevice::Reflected(entry.message.clone());
                        if let Some(seat) = slot.seat.as_mut() {
                            seat.spend(now.monotonic, cost(&payload));
                        }
                        step.acts.push(Act::Send(conn, payload));
                    }
                }
            }
        } else if let Some((_, payload)) = seat.line.pop_front() {
            seat.line_bytes = seat.line_bytes.saturating_sub(payload.weight());
            if seat.line.is_empty() && seat.line.capacity() > 64 {
                seat.line.shrink_to(16);
            }
            seat.spend(now.monotonic, cost(&payload));
            if payload == ToDevice::BeginTransactionAck {
                self.lock.granted(now.monotonic, conn);
            }
            step.acts.push(Act::Send(conn, payload));
        } else {
            // Caught up for the first time.
            seat.dry = Some(self.dried);
            self.dried = self.dried.saturating_add(1);
            seat.spend(now.monotonic, cost(&ToDevice::ReflectionQueueDry));
            step.acts.push(Act::Send(conn, ToDevice::ReflectionQueueDry));
            step.notices.push(Notice::Dry(device));
            self.elect(now, step);
        }
        None
    }

    pub(super) fn written(&mut self, now: Now, conn: ConnectionId, cost: usize, step: &mut Step) {
        let Some(&device) = self.seats.get(&conn) else { return };
        if let Some(seat) = self.slots.get_mut(&device).and_then(|slot| slot.seat.as_mut()) {
            seat.give_back(now.monotonic, cost);
        }
        self.feed(now, device, step);
    }

    /// A stretch of backlog. A page is sent whole, overdrawing the outbox by no more than a page.
    pub(super) fn page(&mut self, now: Now, conn: ConnectionId, page: Page, step: &mut Step) {
        let Some(&device) = self.seats.get(&conn) else { return };
        let Some(slot) = self.slots.get_mut(&device) else { return };
        for entry in &page.entries {
            let beyond = slot.seat.as_ref().is_some_and(|seat| entry.seq > seat.walked);
            if beyond && slot.walk(entry) {
                let payload = ToDevice::Reflected(entry.message.clone());
                if let Some(seat) = slot.seat.as_mut() {
                    seat.spend(now.monotonic, cost(&payload));
                }
                step.acts.push(Act::Send(conn, payload));
            }
        }
        let dirty = slot.dirty;
        if let Some(seat) = slot.seat.as_mut() {
            seat.reading = false;
            seat.walked = seat.walked.max(page.through);
        }
        if dirty {
            self.flush_soon(now);
        }
        self.feed(now, device, step);
    }
}

/// What may still go out before a close: payloads that stand behind nothing undelivered, and the acknowledgement of a
/// drop, which a device that drops itself waits for (A20).
pub(super) fn flush_before_close(seat: &Seat, step: &mut Step) {
    let due = |behind: Seq, payload: &ToDevice| behind <= seat.walked || matches!(payload, ToDevice::DropDeviceAck(_));
    for (behind, payload) in &seat.line {
        if due(*behind, payload) {
            step.acts.push(Act::Send(seat.conn, payload.clone()));
        }
    }
}
