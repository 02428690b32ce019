//! What is decided about a device group. Pure: it is handed the time and everything that happens, and returns what
//! follows; it reads no clock, keeps nothing and sends nothing.
//!
//! ```text
//! Group::handle(now, Input) -> Step { writes, acts, notices }
//! ```
//!
//! The driver (`hub`) keeps all writes first and then carries out the acts in their order; that is why nothing here can
//! be acknowledged before it is kept. [`Group::next_deadline`] says when to come with [`Input::Tick`].
//!
//! | file | decides |
//! |---|---|
//! | `slots` | one slot's queue: what waits, what is on its way, what an acknowledgement means |
//! | `log` | the group's one log, and which part of it is in memory |
//! | `delivery` | who is fed next, and behind what a payload stands in line |
//! | `transaction` | the lock and what is staged under it |
//! | `leader` | who leads |
//! | `deadlines` | what happens by itself |
//! | [`view`] | what an operator sees |
//! | `invariants` | what is true after every input; asserted in debug builds |

mod deadlines;
mod delivery;
pub mod input;
mod invariants;
mod leader;
pub mod limits;
mod log;
pub mod ranges;
pub mod record;
mod slots;
pub mod step;
#[cfg(test)]
mod tests;
mod transaction;
pub mod view;

use std::collections::BTreeMap;
use std::time::Duration;

use self::deadlines::Deadline;
pub use self::input::{ConnectionId, Input, Introduction, Request};
pub use self::limits::Limits;
use self::log::Log;
use self::record::{GroupRecord, Held, Seq, SlotRecord, Snapshot, Write};
use self::slots::{AckOutcome, Seat, Slot};
pub use self::step::{Abort, Act, Farewell, Notice, SlotRemoval, Step};
use self::transaction::{Begun, Lock, Staged, StagingFull};
pub use self::view::{GroupView, Pulse};
use crate::time::Now;
use crate::wire::d2m::{
    AugmentedDeviceInfo, BeginTransaction, ConnectionState, DeviceId, DevicesInfo, Envelope, Reflect, ReflectAck,
    ReflectFlags, ServerInfo, SlotState, SlotsExhausted, ToDevice,
};

/// One device group.
#[derive(Debug)]
pub struct Group {
    limits: Limits,
    slots: BTreeMap<DeviceId, Slot>,
    seats: BTreeMap<ConnectionId, DeviceId>,
    log: Log,
    lock: Lock,
    leader: Option<ConnectionId>,
    /// How many connections became dry so far.
    dried: u64,
    encrypted_shared_device_data: Vec<u8>,
    /// The store knows this group.
    kept: bool,
    /// Since when acknowledgements wait to be written, if any do.
    unwritten_since: Option<Duration>,
}

impl Group {
    /// A group of which nothing is kept.
    #[must_use]
    pub fn empty(limits: Limits) -> Self {
        Self {
            limits,
            slots: BTreeMap::new(),
            seats: BTreeMap::new(),
            log: Log::resume(Seq(0), 0),
            lock: Lock::Idle,
            leader: None,
            dried: 0,
            encrypted_shared_device_data: Vec::new(),
            kept: false,
            unwritten_since: None,
        }
    }

    /// A group as it was kept. Every device is away. What is there is allowed to be there, even if the limits were
    /// lowered meanwhile; nothing is added to it. A device that was connected when this was kept is taken to have left
    /// now.
    #[must_use]
    pub fn restore(now: Now, snapshot: Snapshot, mut limits: Limits) -> Self {
        let GroupRecord { seq_reserved, last_timestamp_ms, encrypted_shared_device_data } = snapshot.group;
        let mut unwritten_since = None;
        let slots = snapshot.slots.into_iter().map(|kept| {
            let mut record = kept.record;
            let dirty = std::mem::take(&mut record.connected);
            if dirty {
                record.last_disconnect_ms = now.wall_ms;
                unwritten_since = Some(now.monotonic);
            }
            if record.counted_through != seq_reserved {
                // Not put to sleep in order: what was issued since it was counted is not known, but nothing beyond the
                // reservation was.
                record.issued = seq_reserved;
            }
            let held = &mut record.held;
            held.pending += kept.uncounted.pending;
            held.entries += kept.uncounted.entries;
            held.bytes += kept.uncounted.bytes;
            if held.pending == 0 {
                record.held = Held::default();
                record.cursor = seq_reserved;
            }
            (record.device, Slot { record, seat: None, dirty })
        });
        let slots: BTreeMap<_, _> = slots.collect();
        limits.allow(&slots);
        Self {
            slots,
            log: Log::resume(seq_reserved, last_timestamp_ms),
            encrypted_shared_device_data,
            kept: true,
            unwritten_since,
            ..Self::empty(limits)
        }
    }

    /// Other limits from now on. What is there stays, as with [`Self::restore`]; a lock that is held keeps its time.
    pub fn set_limits(&mut self, mut limits: Limits) {
        limits.allow(&self.slots);
        self.limits = limits;
    }

    /// The only door: something happened, this follows.
    pub fn handle(&mut self, now: Now, input: Input) -> Step {
        let mut step = Step::default();
        match input {
            Input::Join(conn, introduction) => self.join(now, conn, introduction, &mut step),
            Input::Says(conn, request) => {
                // Whoever was ended may still have said something before it heard of it.
                if let Some(&device) = self.seats.get(&conn) {
                    self.serve(now, conn, device, request, &mut step);
                }
            }
            Input::Written(conn, cost) => self.written(now, conn, cost, &mut step),
            Input::Page(conn, page) => self.page(now, conn, page, &mut step),
            Input::Leave { conn, introduced } => self.leave(now, conn, introduced, &mut step),
            Input::Remove(device) => self.remove_slot(now, device, SlotRemoval::Dropped, &mut step),
            Input::Kick(device) => self.unseat(now, device, Some(Farewell::Kicked), &mut step),
            Input::Durable => self.durable(&mut step),
            Input::Tick => self.tick(now, &mut step),
        }
        if !step.writes.is_empty() && self.waited(now) >= limits::FLUSH_RIDES_AFTER {
            self.flush(&mut step);
        }
        if cfg!(debug_assertions) {
            self.assert_invariants();
        }
        step
    }

    /// When to come with [`Input::Tick`], on the monotonic clock.
    #[must_use]
    pub fn next_deadline(&self, now: Now) -> Option<Duration> {
        self.deadlines(now).map(|(_, at)| at).min()
    }

    /// Whether nobody is connected. Then it may be put to sleep, after what [`Group::lay_down`] says is kept.
    #[must_use]
    pub fn is_deserted(&self) -> bool {
        self.seats.is_empty()
    }

    /// Everything that is only in memory and worth keeping, exactly. After this is kept the group may be forgotten here.
    pub fn lay_down(&mut self) -> Step {
        let mut step = Step::default();
        if self.kept {
            self.log.reserved = self.log.last;
            for slot in self.slots.values_mut() {
                slot.dirty = true;
            }
            self.flush(&mut step);
        }
        step
    }

    /// The devices that have a slot.
    pub fn devices(&self) -> impl Iterator<Item = DeviceId> {
        self.slots.keys().copied()
    }

    /// The connection of a device.
    #[must_use]
    pub fn connection(&self, device: DeviceId) -> Option<ConnectionId> {
        self.slots.get(&device).and_then(Slot::conn)
    }

    fn join(&mut self, now: Now, conn: ConnectionId, introduction: Introduction, step: &mut Step) {
        let Introduction { device, slots_exhausted, slot_expiration, expected_slot_state, encrypted_device_info } =
            introduction;
        let slot_state = if self.slots.contains_key(&device) { SlotState::Existing } else { SlotState::New };
        // A login under a wrong belief has no side effects at all (A11).
        if slot_state != expected_slot_state {
            return Self::turn_away(conn, device, Farewell::SlotStateMismatch, step);
        }
        if slot_state == SlotState::New && self.slots.len() >= self.limits.max_device_slots {
            match (slots_exhausted, self.least_recent()) {
                (SlotsExhausted::DropLeastRecent, Some(victim)) => {
                    self.remove_slot(now, victim, SlotRemoval::LeastRecent, step);
                }
                _ => return Self::turn_away(conn, device, Farewell::DeviceLimitReached, step),
            }
        }
        if self.slots.get(&device).is_some_and(|slot| slot.seat.is_some()) {
            self.unseat(now, device, Some(Farewell::Replaced), step);
        }

        if !self.kept {
            self.kept = true;
            step.writes.push(self.group_record());
        }
        let last = self.log.last;
        let slot = self.slots.entry(device).or_insert_with(|| Slot {
            record: SlotRecord {
                device,
                expiration: slot_expiration,
                encrypted_device_info: Vec::new(),
                connected: true,
                last_disconnect_ms: now.wall_ms,
                since: last,
                cursor: last,
                acked: ranges::RangeSet::new(),
                acked_unseen: ranges::RangeSet::new(),
                issued: last,
                counted_through: last,
                held: Held::default(),
            },
            seat: None,
            dirty: false,
        });
        slot.record.expiration = slot_expiration;
        slot.record.encrypted_device_info = encrypted_device_info;
        slot.record.connected = true;
        step.writes.push(Write::Slot(slot.to_record(last)));

        let queued = slot.record.held.pending;
        // With nothing waiting there is nothing to walk.
        let walked = if queued == 0 { last } else { slot.record.cursor };
        let new = slot_state == SlotState::New;
        slot.seat = Some(Seat::new(conn, now.wall_ms, new, walked, last));
        self.seats.insert(conn, device);
        step.notices.push(Notice::Joined { device, new, queued });
        let info = ServerInfo {
            max_device_slots: u32::try_from(self.limits.max_device_slots).unwrap_or(u32::MAX),
            slot_state,
            encrypted_shared_device_data: self.encrypted_shared_device_data.clone(),
            current_time_ms: now.wall_ms,
            reflection_queue_length: u32::try_from(queued).unwrap_or(u32::MAX),
        };
        self.introduce(now, device, ToDevice::ServerInfo(info), step);
        self.feed(now, device, step);
    }

    fn turn_away(conn: ConnectionId, device: DeviceId, why: Farewell, step: &mut Step) {
        step.acts.push(Act::Close(conn, why));
        step.notices.push(Notice::Ended(device, why));
    }

    /// Whose slot goes when another is needed: of the absent the one that left first, else the one connected longest.
    fn least_recent(&self) -> Option<DeviceId> {
        let key = |slot: &Slot| match &slot.seat {
            None => (false, slot.record.last_disconnect_ms),
            Some(seat) => (true, seat.since_ms),
        };
        self.slots.values().min_by_key(|slot| key(slot)).map(|slot| slot.record.device)
    }

    fn serve(&mut self, now: Now, conn: ConnectionId, device: DeviceId, request: Request, step: &mut Step) {
        match request {
            Request::GetDevicesInfo => {
                let info = self.devices_info();
                self.say(now, device, ToDevice::DevicesInfo(info), step);
            }
            Request::DropDevice(target) => self.drop_device(now, device, target, step),
            Request::SetSharedDeviceData(data) => {
                self.encrypted_shared_device_data = data;
                step.writes.push(self.group_record());
            }
            Request::BeginTransaction(begin) => self.begin(now, conn, device, begin, step),
            Request::CommitTransaction => self.commit(now, conn, device, step),
            Request::Reflect(reflect) => self.reflect(now, conn, device, reflect, step),
            Request::ReflectedAck(id) => {
                let last = self.log.last;
                let outcome = self.slots.get_mut(&device).map_or(AckOutcome::Ignored, |slot| slot.ack(id, last));
                match outcome {
                    AckOutcome::Unknown => self.unseat(now, device, Some(Farewell::UnknownAck), step),
                    AckOutcome::Counted { accepted_ms } => {
                        step.notices.push(Notice::Acked { waited_ms: now.wall_ms.saturating_sub(accepted_ms) });
                        self.flush_soon(now);
                    }
                    AckOutcome::Ignored => {
                        if self.slots.get(&device).is_some_and(|slot| slot.dirty) {
                            self.flush_soon(now);
                        }
                    }
                }
            }
        }
    }

    fn devices_info(&self) -> DevicesInfo {
        let augment = |slot: &Slot| AugmentedDeviceInfo {
            encrypted_device_info: slot.record.encrypted_device_info.clone(),
            slot_expiration: slot.record.expiration,
            connection: match &slot.seat {
                Some(seat) => ConnectionState::ConnectedSince(seat.since_ms),
                None => ConnectionState::LastDisconnectAt(slot.record.last_disconnect_ms),
            },
        };
        DevicesInfo(self.slots.iter().map(|(&device, slot)| (device, augment(slot))).collect())
    }

    /// Always acknowledged, also for a device nobody knows (A19). Dropping oneself is how a device leaves the group: the
    /// acknowledgement goes out before the close (A20).
    fn drop_device(&mut self, now: Now, by: DeviceId, target: DeviceId, step: &mut Step) {
        if by == target {
            self.say(now, by, ToDevice::DropDeviceAck(target), step);
            self.remove_slot(now, target, SlotRemoval::Dropped, step);
        } else {
            self.remove_slot(now, target, SlotRemoval::Dropped, step);
            self.say(now, by, ToDevice::DropDeviceAck(target), step);
        }
    }

    fn reflect(&mut self, now: Now, conn: ConnectionId, device: DeviceId, reflect: Reflect, step: &mut Step) {
        let Reflect { flags, reflect_id, envelope } = reflect;
        let timestamp_ms = self.log.timestamp(now);
        if let Some(held) = self.lock.held_by_mut(conn) {
            if let Err(StagingFull) = held.stage(Staged { flags, envelope, timestamp_ms }, &self.limits) {
                return self.unseat(now, device, Some(Farewell::StagingLimit), step);
            }
        } else {
            self.accept(now, device, flags, envelope, timestamp_ms, step);
        }
        if !flags.ephemeral {
            self.say(now, device, ToDevice::ReflectAck(ReflectAck { reflect_id, timestamp_ms }), step);
        }
        self.drop_if_overfull(now, device, step);
        self.feed_all(now, step);
    }

    /// A slot's own messages are held while something waits for it in front of them. A device that acknowledges nothing
    /// and reflects on and on passes its limit by itself; what it was promised before that is kept.
    fn drop_if_overfull(&mut self, now: Now, device: DeviceId, step: &mut Step) {
        if self.slots.get(&device).is_some_and(|slot| slot.is_overfull(&self.limits)) {
            self.remove_slot(now, device, SlotRemoval::QueueLimit, step);
        }
    }

    /// Puts a message at the end of the queue of every other slot.
    fn accept(
        &mut self,
        now: Now,
        origin: DeviceId,
        flags: ReflectFlags,
        envelope: Envelope,
        timestamp_ms: u64,
        step: &mut Step,
    ) {
        let bytes = envelope.len();
        if !flags.ephemeral {
            // Before the log advances: whoever is fed on account of a slot that goes must not walk past a message that is
            // not in the log yet.
            self.make_room(now, origin, bytes as u64, step);
        }
        let (seq, reserved) = self.log.advance();
        let for_slot = |slot: &Slot| slot.record.device != origin && (!flags.ephemeral || slot.seat.is_some());
        let receivers = self.slots.values().filter(|slot| for_slot(slot)).count();
        step.notices.push(Notice::Reflected { bytes, ephemeral: flags.ephemeral, receivers });
        if reserved && self.kept {
            step.writes.push(self.group_record());
        }
        if receivers == 0 {
            return;
        }
        let id = crate::wire::d2m::ReflectedId(seq.wire_id());
        let entry = record::LogEntry {
            seq,
            origin,
            message: crate::wire::d2m::Reflected::new(envelope, flags, id, timestamp_ms),
        };
        if flags.ephemeral {
            for slot in self.slots.values_mut().filter(|slot| for_slot(slot)) {
                slot.record.issued = seq;
            }
        } else {
            for slot in self.slots.values_mut() {
                if slot.record.device == origin {
                    slot.count_own(bytes as u64);
                } else {
                    slot.count_foreign(seq, bytes as u64);
                }
            }
            step.writes.push(Write::Append(entry.clone()));
        }
        self.log.push(entry);
    }

    /// Drops every other slot for which one more message would be too much (A23).
    fn make_room(&mut self, now: Now, origin: DeviceId, bytes: u64, step: &mut Step) {
        let seq = self.log.last.next();
        let full = |slot: &&Slot| slot.record.device != origin && slot.would_overflow(seq, bytes, &self.limits);
        let victims: Vec<DeviceId> = self.slots.values().filter(full).map(|slot| slot.record.device).collect();
        for victim in victims {
            self.remove_slot(now, victim, SlotRemoval::QueueLimit, step);
        }
    }

    fn begin(&mut self, now: Now, conn: ConnectionId, device: DeviceId, begin: BeginTransaction, step: &mut Step) {
        let line = self.slots.get(&device).and_then(|slot| slot.seat.as_ref()).map(|seat| &seat.line);
        let acks_ahead =
            line.map_or(0, |line| line.iter().filter(|(_, p)| *p == ToDevice::BeginTransactionAck).count());
        match self.lock.begin(now.monotonic, conn, device, begin, acks_ahead, &self.limits) {
            Begun::Granted => {
                step.notices.push(Notice::TransactionBegan(device));
                self.say(now, device, ToDevice::BeginTransactionAck, step);
            }
            Begun::Rejected(holder) => {
                step.notices.push(Notice::TransactionRejected(device));
                self.say(now, device, ToDevice::TransactionRejected(holder), step);
            }
            Begun::Nested => self.unseat(now, device, Some(Farewell::NestedBegin), step),
        }
    }

    /// One atomic step: everything staged is appended for the slots that exist now, the lock is free, everybody hears of
    /// it behind what was delivered (spec 4.5).
    fn commit(&mut self, now: Now, conn: ConnectionId, device: DeviceId, step: &mut Step) {
        let Some(held) = self.lock.take_if_held_by(conn) else {
            return self.unseat(now, device, Some(Farewell::CommitWithoutBegin), step);
        };
        let held_ms = held.held_ms(now.monotonic);
        step.notices.push(Notice::TransactionCommitted { device, held_ms, messages: held.staged.len() });
        for staged in held.staged {
            self.accept(now, device, staged.flags, staged.envelope, staged.timestamp_ms, step);
        }
        self.say(now, device, ToDevice::CommitTransactionAck, step);
        self.say_to_others(now, device, &ToDevice::TransactionEnded(held.holder), step);
        self.drop_if_overfull(now, device, step);
        self.feed_all(now, step);
    }

    fn leave(&mut self, now: Now, conn: ConnectionId, introduced: bool, step: &mut Step) {
        let Some(&device) = self.seats.get(&conn) else { return };
        let made_slot = self.slots.get(&device).and_then(|slot| slot.seat.as_ref()).is_some_and(|seat| seat.made_slot);
        step.notices.push(Notice::Left(device));
        if made_slot && !introduced {
            // The device never heard that it is registered, and would be turned away as NEW for ever (A33).
            self.remove_slot(now, device, SlotRemoval::RolledBack, step);
        } else {
            self.unseat(now, device, None, step);
        }
    }

    /// Ends a slot's connection, if it has one, and all that hangs on it: its transaction, its leadership. Without a
    /// farewell the connection ended by itself.
    fn unseat(&mut self, now: Now, device: DeviceId, farewell: Option<Farewell>, step: &mut Step) {
        let Some(slot) = self.slots.get_mut(&device) else { return };
        let Some(seat) = slot.seat.take() else { return };
        slot.record.connected = false;
        slot.record.last_disconnect_ms = now.wall_ms;
        slot.dirty = true;
        self.seats.remove(&seat.conn);
        self.flush_soon(now);
        if let Some(farewell) = farewell {
            delivery::flush_before_close(&seat, step);
            step.acts.push(Act::Close(seat.conn, farewell));
            step.notices.push(Notice::Ended(device, farewell));
        }
        if let Some(held) = self.lock.take_if_held_by(seat.conn) {
            let why = if farewell == Some(Farewell::TransactionTtl) { Abort::Ttl } else { Abort::HolderGone };
            let held_ms = held.held_ms(now.monotonic);
            let messages = held.staged.iter().filter(|staged| !staged.flags.ephemeral).count();
            step.notices.push(Notice::TransactionAborted { device, held_ms, messages, why });
            self.say_to_others(now, device, &ToDevice::TransactionEnded(held.holder), step);
        }
        if self.leader == Some(seat.conn) {
            self.leader = None;
            self.elect(now, step);
        }
    }

    /// Removes a slot with its queue, and ends its connection.
    fn remove_slot(&mut self, now: Now, device: DeviceId, why: SlotRemoval, step: &mut Step) {
        let farewell = match why {
            SlotRemoval::Dropped => Some(Farewell::Dropped),
            SlotRemoval::LeastRecent => Some(Farewell::LeastRecent),
            SlotRemoval::QueueLimit => Some(Farewell::QueueLimit),
            SlotRemoval::Expired | SlotRemoval::RolledBack => None,
        };
        self.unseat(now, device, farewell, step);
        let Some(slot) = self.slots.remove(&device) else { return };
        step.notices.push(Notice::SlotRemoved { device, why, entries: slot.record.held.pending });
        step.writes.push(Write::RemoveSlot(device));
        self.flush_soon(now);
        if self.slots.is_empty() {
            // The last one turns off the light: nothing of the group is kept.
            step.writes.push(Write::Forget);
            self.kept = false;
            self.encrypted_shared_device_data.clear();
            self.log.trimmed = self.log.last;
            self.unwritten_since = None;
        }
    }

    fn tick(&mut self, now: Now, step: &mut Step) {
        let due: Vec<Deadline> =
            self.deadlines(now).filter(|&(_, at)| at <= now.monotonic).map(|(deadline, _)| deadline).collect();
        for deadline in due {
            match deadline {
                Deadline::TransactionTtl => {
                    let holder = self.lock.deadline().and_then(|(conn, _)| self.seats.get(&conn).copied());
                    if let Some(device) = holder {
                        self.unseat(now, device, Some(Farewell::TransactionTtl), step);
                    }
                }
                Deadline::SlotExpiry(device) => {
                    // The wake-up may have been for a second look at the wall clock only.
                    let expired = self
                        .slots
                        .get(&device)
                        .and_then(|slot| deadlines::slot_expires_ms(slot, &self.limits))
                        .is_some_and(|at_ms| at_ms <= now.wall_ms);
                    if expired {
                        self.remove_slot(now, device, SlotRemoval::Expired, step);
                    }
                }
                Deadline::Flush => self.flush(step),
            }
        }
    }

    fn deadlines(&self, now: Now) -> impl Iterator<Item = (Deadline, Duration)> {
        let ttl = self.lock.deadline().map(|(_, until)| (Deadline::TransactionTtl, until));
        let flush = self.unwritten_since.map(|since| (Deadline::Flush, since.saturating_add(limits::FLUSH_AFTER)));
        let expiries = self.slots.values().filter_map(move |slot| {
            let at_ms = deadlines::slot_expires_ms(slot, &self.limits)?;
            Some((Deadline::SlotExpiry(slot.record.device), deadlines::wake_for(now, at_ms)))
        });
        ttl.into_iter().chain(flush).chain(expiries)
    }

    fn flush_soon(&mut self, now: Now) {
        self.unwritten_since.get_or_insert(now.monotonic);
    }

    /// How long acknowledgements have been waiting to be written; no time, when none do.
    fn waited(&self, now: Now) -> Duration {
        self.unwritten_since.map_or(Duration::ZERO, |since| now.monotonic.saturating_sub(since))
    }

    /// Writes what the slots acknowledged and the latest timestamp, and trims the log in the same step: were it trimmed alone, a crash would leave
    /// records that count entries which are gone.
    fn flush(&mut self, step: &mut Step) {
        self.unwritten_since = None;
        let last = self.log.last;
        step.writes.push(self.group_record());
        for slot in self.slots.values_mut().filter(|slot| slot.dirty) {
            slot.dirty = false;
            step.writes.push(Write::Slot(slot.to_record(last)));
        }
        let low = self.slots.values().map(|slot| slot.low(last)).min().unwrap_or(last);
        if low > self.log.trimmed {
            self.log.trimmed = low;
            step.writes.push(Write::Trim { through: low });
        }
    }

    fn group_record(&self) -> Write {
        Write::Group(GroupRecord {
            seq_reserved: self.log.reserved,
            last_timestamp_ms: self.log.last_timestamp_ms,
            encrypted_shared_device_data: self.encrypted_shared_device_data.clone(),
        })
    }

    fn durable(&mut self, step: &mut Step) {
        self.log.durable();
        let handed = self.slots.values().filter_map(|slot| slot.seat.as_ref()).map(|seat| seat.walked).min();
        let skipped = self.log.shrink(handed);
        if skipped > 0 {
            step.notices.push(Notice::EphemeralSkipped(skipped));
        }
    }
}
