//! Who leads (spec 5): of the connected devices whose backlog was sent, the one that was dry first. There is no
//! demotion: leadership ends with the connection.

use super::Group;
use super::step::{Notice, Step};
use crate::time::Now;
use crate::wire::d2m::{DeviceId, ToDevice};

impl Group {
    /// Promotes somebody if nobody leads.
    pub(super) fn elect(&mut self, now: Now, step: &mut Step) {
        if self.leader.is_some() {
            return;
        }
        let candidates = self.slots.values().filter_map(|slot| {
            let seat = slot.seat.as_ref()?;
            Some((seat.dry?, seat.conn, slot.record.device))
        });
        if let Some((_, conn, device)) = candidates.min() {
            self.leader = Some(conn);
            step.notices.push(Notice::Promoted(device));
            self.say(now, device, ToDevice::RolePromotedToLeader, step);
        }
    }

    /// The device that leads, if any.
    #[must_use]
    pub fn leader(&self) -> Option<DeviceId> {
        self.leader.and_then(|conn| self.seats.get(&conn).copied())
    }
}
