//! What is true of a group after every input. Asserted in debug builds, so in every test and simulation.

use super::Group;
use super::record::Seq;
use super::slots::FlightState;
use super::transaction::Lock;

impl Group {
    #[expect(clippy::panic, reason = "an assertion that fails is a bug of this program; debug builds only")]
    pub(super) fn assert_invariants(&self) {
        let holds = |name: &str, holds: bool| {
            if !holds {
                panic!("invariant broken: {name}\n{self:#?}");
            }
        };
        holds("no more slots than allowed", self.slots.len() <= self.limits.max_device_slots);
        let seated = self.slots.values().filter(|slot| slot.seat.is_some()).count();
        holds("each seat is listed once", seated == self.seats.len());
        holds(
            "each listed connection sits at its device",
            self.seats.iter().all(|(conn, device)| self.slots.get(device).and_then(|slot| slot.conn()) == Some(*conn)),
        );
        let dry = |conn| {
            let device = self.seats.get(conn)?;
            self.slots.get(device)?.seat.as_ref()?.dry
        };
        holds("the leader is connected and dry", self.leader.as_ref().is_none_or(|conn| dry(conn).is_some()));
        let any_dry = self.seats.keys().any(|conn| dry(conn).is_some());
        holds("somebody leads as soon as somebody is dry", any_dry == self.leader.is_some());
        if let Lock::Held(held) = &self.lock {
            holds(
                "the holder is connected, as the device it is",
                self.seats.get(&held.conn) == Some(&held.holder.device_id),
            );
        }
        let log = &self.log;
        holds("no seq beyond the reservation", log.last <= log.reserved);
        holds("the log is trimmed no further than it stands", log.trimmed <= log.last && log.floor <= log.last);
        holds("the window is in order and beyond its floor", {
            let mut before = log.floor;
            log.window().all(|entry| std::mem::replace(&mut before, entry.seq) < entry.seq)
        });
        for slot in self.slots.values() {
            let record = &slot.record;
            holds("cursor and issued ids stand within the log", record.cursor <= log.last && record.issued <= log.last);
            holds("nothing held is trimmed", log.trimmed <= slot.low(log.last));
            holds("no more pending than held", record.held.pending <= record.held.entries);
            let within = record.held.entries <= self.limits.max_queue_messages;
            holds("no queue passes its limit", within && record.held.bytes <= self.limits.max_queue_bytes);
            let Some(seat) = &slot.seat else { continue };
            let mut before = Seq(record.cursor.0);
            let ordered = seat.flights.iter().all(|flight| std::mem::replace(&mut before, flight.seq) < flight.seq);
            holds("flights are in order and beyond the cursor", ordered);
            holds("the first flight waits", seat.flights.front().is_none_or(|f| f.state == FlightState::Sent));
            let sent = seat.flights.iter().filter(|flight| flight.state == FlightState::Sent).count() as u64;
            holds("what was sent is pending", sent <= record.held.pending);
            holds("flights are held", seat.flights.len() as u64 <= record.held.entries);
            holds("walked no further than the log stands", seat.walked <= log.last);
        }
    }
}
