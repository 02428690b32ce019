//! Stories on virtual time, in the words of the spec.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::input::{Input, Introduction, Request};
use super::record::{Held, LogEntry, Page, Seq, SlotSnapshot, Snapshot, Write};
use super::step::{Act, Farewell, Notice, Step};
use super::view::{Delivery, LockView, Presence, Pulse};
use super::{ConnectionId, Group, Limits};
use crate::time::Now;
use crate::wire::d2m::{
    BeginTransaction, ConnectionState, DeviceId, Envelope, Reflect, ReflectFlags, ReflectId, ReflectedId,
    SlotExpiration, SlotState, SlotsExhausted, ToDevice,
};

const A: DeviceId = DeviceId(0xa);
const B: DeviceId = DeviceId(0xb);
const C: DeviceId = DeviceId(0xc);

/// A group with its clock, a store that keeps what it is told, and what every connection was sent.
struct World {
    now: Now,
    group: Group,
    limits: Limits,
    kept: Kept,
    heard: BTreeMap<ConnectionId, Vec<ToDevice>>,
    farewells: BTreeMap<ConnectionId, Farewell>,
    notices: Vec<Notice>,
    connections: u64,
    /// Whether connections write to their sockets at once.
    sockets_flow: bool,
}

/// A store in its simplest form.
#[derive(Debug, Default, Clone)]
struct Kept {
    snapshot: Option<Snapshot>,
    log: BTreeMap<Seq, LogEntry>,
}

impl Kept {
    fn keep(&mut self, write: Write) {
        let slots = self.snapshot.as_mut().map(|snapshot| &mut snapshot.slots);
        match write {
            Write::Group(group) => self.snapshot.get_or_insert_default().group = group,
            Write::Slot(record) => {
                let slots = slots.expect("a slot needs its group");
                slots.retain(|slot| slot.record.device != record.device);
                slots.push(SlotSnapshot { record, uncounted: Held::default() });
            }
            Write::RemoveSlot(device) => slots.expect("a group").retain(|slot| slot.record.device != device),
            Write::Append(entry) => assert!(self.log.insert(entry.seq, entry).is_none(), "a seq is given once"),
            Write::Trim { through } => self.log.retain(|seq, _| *seq > through),
            Write::Forget => *self = Self::default(),
        }
    }

    /// What a restart finds.
    fn load(&self) -> Option<Snapshot> {
        let mut snapshot = self.snapshot.clone()?;
        for slot in &mut snapshot.slots {
            for entry in self.log.values().filter(|entry| entry.seq > slot.record.counted_through) {
                slot.uncounted.pending += u64::from(entry.origin != slot.record.device);
                slot.uncounted.entries += 1;
                slot.uncounted.bytes += entry.message.envelope().len() as u64;
            }
        }
        Some(snapshot)
    }
}

fn world() -> World {
    limited(Limits::default())
}

fn limited(limits: Limits) -> World {
    World {
        now: Now { monotonic: Duration::ZERO, wall_ms: 1_700_000_000_000 },
        group: Group::empty(limits.clone()),
        limits,
        kept: Kept::default(),
        heard: BTreeMap::new(),
        farewells: BTreeMap::new(),
        notices: Vec::new(),
        connections: 0,
        sockets_flow: true,
    }
}

impl World {
    fn does(&mut self, input: Input) {
        let step = self.group.handle(self.now, input);
        self.carry_out(step);
    }

    fn carry_out(&mut self, step: Step) {
        for write in step.writes {
            self.kept.keep(write);
        }
        self.notices.extend(step.notices);
        let mut reads = Vec::new();
        let mut written = Vec::new();
        for act in step.acts {
            match act {
                Act::Send(conn, payload) => {
                    assert!(!self.farewells.contains_key(&conn), "{payload:?} after a close");
                    written.push((conn, super::limits::cost(&payload)));
                    self.heard.entry(conn).or_default().push(payload);
                }
                Act::Close(conn, farewell) => assert_eq!(self.farewells.insert(conn, farewell), None),
                Act::Read { conn, after, through } => reads.push((conn, after, through)),
            }
        }
        let durable = self.group.handle(self.now, Input::Durable);
        self.notices.extend(durable.notices);
        for (conn, after, through) in reads {
            // Two at a time, so that pages have seams.
            let beyond = self.kept.log.range((std::ops::Bound::Excluded(after), std::ops::Bound::Included(through)));
            let entries: Vec<_> = beyond.map(|(_, entry)| entry.clone()).take(2).collect();
            let through = if entries.len() == 2 { entries[1].seq } else { through };
            self.does(Input::Page(conn, Page { entries, through }));
        }
        if self.sockets_flow {
            for (conn, cost) in written {
                self.does(Input::Written(conn, cost));
            }
        }
    }

    fn passes(&mut self, time: Duration) {
        let end = self.now.plus(time);
        while let Some(at) = self.group.next_deadline(self.now).filter(|&at| at <= end.monotonic) {
            self.now = self.now.plus(at.saturating_sub(self.now.monotonic));
            self.does(Input::Tick);
        }
        self.now = end;
    }

    fn introduces(&mut self, device: DeviceId, expected: SlotState) -> ConnectionId {
        self.introduces_as(Introduction {
            device,
            slots_exhausted: SlotsExhausted::Reject,
            slot_expiration: SlotExpiration::Persistent,
            expected_slot_state: expected,
            encrypted_device_info: b"info".to_vec(),
        })
    }

    fn introduces_as(&mut self, introduction: Introduction) -> ConnectionId {
        self.connections += 1;
        let conn = ConnectionId(self.connections);
        self.does(Input::Join(conn, introduction));
        conn
    }

    fn new_device(&mut self, device: DeviceId) -> ConnectionId {
        self.introduces(device, SlotState::New)
    }

    fn returns(&mut self, device: DeviceId) -> ConnectionId {
        self.introduces(device, SlotState::Existing)
    }

    fn does_return(&mut self, device: DeviceId) {
        let _conn = self.returns(device);
    }

    fn leaves(&mut self, conn: ConnectionId) {
        self.does(Input::Leave { conn, introduced: true });
    }

    fn says(&mut self, conn: ConnectionId, request: Request) {
        self.does(Input::Says(conn, request));
    }

    fn reflects(&mut self, conn: ConnectionId, text: &str) {
        self.says(conn, Request::Reflect(reflect(text, false)));
    }

    fn reflects_ephemeral(&mut self, conn: ConnectionId, text: &str) {
        self.says(conn, Request::Reflect(reflect(text, true)));
    }

    fn begins(&mut self, conn: ConnectionId, ttl_s: u32) {
        let encrypted_scope = format!("scope of {}", conn.0).into_bytes();
        self.says(conn, Request::BeginTransaction(BeginTransaction { encrypted_scope, ttl_s }));
    }

    fn commits(&mut self, conn: ConnectionId) {
        self.says(conn, Request::CommitTransaction);
    }

    fn acks(&mut self, conn: ConnectionId, id: u32) {
        self.says(conn, Request::ReflectedAck(ReflectedId(id)));
    }

    /// The server dies without a word and starts again.
    fn crashes(&mut self) {
        self.heard.clear();
        self.group = match self.kept.load() {
            Some(snapshot) => Group::restore(self.now, snapshot, self.limits.clone()),
            None => Group::empty(self.limits.clone()),
        };
    }

    /// Everything a connection heard since it was asked last, in a line each.
    fn hears(&mut self, conn: ConnectionId) -> Vec<String> {
        self.heard.remove(&conn).unwrap_or_default().iter().map(brief).collect()
    }

    fn reflected_ids(&mut self, conn: ConnectionId) -> Vec<u32> {
        let heard = self.heard.remove(&conn).unwrap_or_default();
        heard.iter().filter_map(|p| if let ToDevice::Reflected(r) = p { Some(r.id().0) } else { None }).collect()
    }

    fn farewell(&self, conn: ConnectionId) -> Option<Farewell> {
        self.farewells.get(&conn).copied()
    }
}

fn reflect(text: &str, ephemeral: bool) -> Reflect {
    let reflect_id = ReflectId(text.bytes().map(u32::from).sum());
    Reflect { flags: ReflectFlags { ephemeral }, reflect_id, envelope: Envelope::copy_from(text.as_bytes()) }
}

fn brief(payload: &ToDevice) -> String {
    match payload {
        ToDevice::ServerInfo(info) => format!("info {:?} queue {}", info.slot_state, info.reflection_queue_length),
        ToDevice::ReflectionQueueDry => "dry".into(),
        ToDevice::RolePromotedToLeader => "leader".into(),
        ToDevice::Reflected(message) => {
            let mark = if message.flags().ephemeral { "~" } else { "" };
            format!("{mark}{}", String::from_utf8_lossy(message.envelope()))
        }
        ToDevice::ReflectAck(_) => "ack".into(),
        ToDevice::BeginTransactionAck => "begun".into(),
        ToDevice::CommitTransactionAck => "committed".into(),
        ToDevice::TransactionRejected(holder) => {
            format!("rejected by {:x} {}", holder.device_id.0, String::from_utf8_lossy(&holder.encrypted_scope))
        }
        ToDevice::TransactionEnded(holder) => format!("ended {:x}", holder.device_id.0),
        ToDevice::DropDeviceAck(device) => format!("dropped {:x}", device.0),
        other => format!("{other:?}"),
    }
}

const GREETING: [&str; 2] = ["info New queue 0", "dry"];

#[test]
fn d2m_12_6_dry_comes_even_for_an_empty_queue_and_leader_after_it() {
    let mut w = world();
    let a = w.new_device(A);
    assert_eq!(w.hears(a), ["info New queue 0", "dry", "leader"]);
    let b = w.new_device(B);
    assert_eq!(w.hears(b), GREETING);
    w.leaves(a);
    assert_eq!(w.hears(b), ["leader"]);
    let a = w.returns(A);
    assert_eq!(w.hears(a), ["info Existing queue 0", "dry"], "a returning device does not take it back");
}

#[test]
fn d2m_5_the_one_that_was_dry_first_leads_next() {
    let mut w = world();
    let (a, b, c) = (w.new_device(A), w.new_device(B), w.new_device(C));
    let _ = (w.hears(b), w.hears(c));
    // B reconnects: C has been dry for longer now.
    w.leaves(b);
    let b = w.returns(B);
    let _ = w.hears(b);
    w.leaves(a);
    assert_eq!((w.hears(b).len(), w.hears(c)), (0, vec!["leader".to_owned()]));
    assert_eq!(w.group.leader(), Some(C));
}

#[test]
fn d2m_12_3_a_wrong_belief_has_no_side_effects() {
    let mut w = limited(Limits { max_device_slots: 1, ..Limits::default() });
    let a = w.new_device(A);
    let again = w.new_device(A);
    assert_eq!(w.farewell(again), Some(Farewell::SlotStateMismatch));
    assert_eq!(w.farewell(a), None, "the live connection survives");
    let stranger = w.introduces_as(Introduction {
        device: B,
        slots_exhausted: SlotsExhausted::DropLeastRecent,
        slot_expiration: SlotExpiration::Volatile,
        expected_slot_state: SlotState::Existing,
        encrypted_device_info: vec![],
    });
    assert_eq!(w.farewell(stranger), Some(Farewell::SlotStateMismatch));
    assert_eq!(w.group.devices().collect::<Vec<_>>(), [A], "nobody was dropped for it");
}

#[test]
fn d2m_12_4_when_slots_are_full_a_device_is_rejected_or_the_least_recent_goes() {
    let mut w = limited(Limits { max_device_slots: 2, ..Limits::default() });
    let (a, b) = (w.new_device(A), w.new_device(B));
    let c = w.new_device(C);
    assert_eq!(w.farewell(c), Some(Farewell::DeviceLimitReached));
    let wants_room = |device| Introduction {
        device,
        slots_exhausted: SlotsExhausted::DropLeastRecent,
        slot_expiration: SlotExpiration::Persistent,
        expected_slot_state: SlotState::New,
        encrypted_device_info: vec![],
    };
    // All connected: the one connected longest goes.
    w.passes(Duration::from_millis(5));
    let c = w.introduces_as(wants_room(C));
    assert_eq!((w.farewell(a), w.farewell(b), w.farewell(c)), (Some(Farewell::LeastRecent), None, None));
    // An absent one goes before any that is connected, however long that has been.
    w.passes(Duration::from_secs(1));
    w.leaves(c);
    let a = w.introduces_as(wants_room(A));
    assert_eq!((w.farewell(b), w.farewell(a)), (None, None));
    assert_eq!(w.group.devices().collect::<Vec<_>>(), [A, B]);
}

#[test]
fn d2m_12_5_the_same_device_twice_replaces_the_older_connection() {
    let mut w = world();
    let a = w.new_device(A);
    let _ = w.hears(a);
    let again = w.returns(A);
    assert_eq!(w.farewell(a), Some(Farewell::Replaced));
    assert_eq!(w.hears(again), ["info Existing queue 0", "dry", "leader"]);
    w.leaves(a);
    assert_eq!(w.group.leader(), Some(A), "the late farewell of the old connection is not the new one's");
}

#[test]
fn d2m_a33_a_slot_whose_device_never_heard_of_it_is_taken_back() {
    let mut w = world();
    let a = w.new_device(A);
    w.does(Input::Leave { conn: a, introduced: false });
    assert!(w.kept.snapshot.is_none(), "nothing is kept of it");
    let a = w.new_device(A);
    w.leaves(a);
    let a = w.returns(A);
    w.does(Input::Leave { conn: a, introduced: false });
    assert_eq!(w.group.devices().collect::<Vec<_>>(), [A], "an existing slot stays");
}

#[test]
fn d2m_12_7_a_reflect_reaches_the_others_with_the_timestamp_of_its_ack() {
    let mut w = world();
    let (a, b) = (w.new_device(A), w.new_device(B));
    let c = w.new_device(C);
    w.leaves(c);
    let _ = (w.hears(a), w.hears(b));
    w.reflects(a, "hello");
    let acked = w.heard.remove(&a).unwrap();
    let [ToDevice::ReflectAck(ack)] = &acked[..] else { panic!("{acked:?}") };
    let heard = w.heard.remove(&b).unwrap();
    let [ToDevice::Reflected(first)] = &heard[..] else { panic!("{heard:?}") };
    assert_eq!(first.timestamp_ms(), ack.timestamp_ms);

    let c = w.returns(C);
    let heard = w.heard.remove(&c).unwrap();
    assert_eq!(brief(&heard[0]), "info Existing queue 1");
    let ToDevice::Reflected(late) = &heard[1] else { panic!("{heard:?}") };
    assert_eq!((late, brief(&heard[2]).as_str()), (first, "dry"), "the same message, later, and then dry");

    // Not acknowledged: again, under the same id. Acknowledged: not again.
    w.leaves(c);
    let c = w.returns(C);
    assert_eq!(w.reflected_ids(c), [first.id().0]);
    w.acks(c, first.id().0);
    w.leaves(c);
    let c = w.returns(C);
    assert_eq!(w.hears(c), ["info Existing queue 0", "dry"]);
}

#[test]
fn d2m_4_1_a_lone_device_is_acknowledged_and_nothing_is_stored() {
    let mut w = world();
    let a = w.new_device(A);
    let _ = w.hears(a);
    w.reflects(a, "x");
    assert_eq!(w.hears(a), ["ack"]);
    assert!(w.kept.log.is_empty());
}

#[test]
fn d2m_12_8_ephemeral_messages_reach_who_is_here_and_are_never_acked_nor_stored() {
    let mut w = world();
    let (a, b, c) = (w.new_device(A), w.new_device(B), w.new_device(C));
    w.leaves(c);
    let _ = (w.hears(a), w.hears(b));
    w.reflects(a, "1");
    w.reflects_ephemeral(a, "2");
    w.reflects(a, "3");
    assert_eq!(w.hears(a), ["ack", "ack"]);
    let heard = w.heard.remove(&b).unwrap();
    assert_eq!(heard.iter().map(brief).collect::<Vec<_>>(), ["1", "~2", "3"]);
    let ToDevice::Reflected(ephemeral) = &heard[1] else { panic!("{heard:?}") };
    w.acks(b, ephemeral.id().0);
    assert_eq!(w.farewell(b), None, "all real clients acknowledge ephemeral messages too");
    let c = w.returns(C);
    assert_eq!(w.hears(c), ["info Existing queue 2", "1", "3", "dry"]);
}

#[test]
fn d2m_12_9_only_an_ack_for_an_id_that_was_never_issued_ends_the_connection() {
    let mut w = world();
    let (a, b) = (w.new_device(A), w.new_device(B));
    for text in ["1", "2", "3"] {
        w.reflects(a, text);
    }
    let ids = w.reflected_ids(b);
    // Out of order, twice, and again on the next connection.
    for id in [ids[2], ids[0], ids[0], ids[1], ids[2]] {
        w.acks(b, id);
    }
    w.leaves(b);
    let b = w.returns(B);
    w.acks(b, ids[1]);
    assert_eq!(w.hears(b), ["info Existing queue 0", "dry"]);
    w.acks(b, ids[2] + 1);
    assert_eq!(w.farewell(b), Some(Farewell::UnknownAck));
    // The ids of what it reflected itself were never issued to A.
    w.acks(a, ids[0]);
    assert_eq!(w.farewell(a), Some(Farewell::UnknownAck));
}

#[test]
fn d2m_a6_an_ack_may_come_before_the_message_is_sent_again() {
    let mut w = world();
    let (a, b) = (w.new_device(A), w.new_device(B));
    for text in ["1", "2", "3", "4", "5"] {
        w.reflects(a, text);
    }
    let ids = w.reflected_ids(b);
    w.leaves(b);
    w.sockets_flow = false;
    // Its outbox is full of a large DevicesInfo; the backlog has to wait, the acknowledgement does not.
    w.connections += 1;
    let b = ConnectionId(w.connections);
    let join = Introduction {
        device: B,
        slots_exhausted: SlotsExhausted::Reject,
        slot_expiration: SlotExpiration::Persistent,
        expected_slot_state: SlotState::Existing,
        encrypted_device_info: vec![],
    };
    let step = w.group.handle(w.now, Input::Join(b, join));
    assert!(matches!(step.acts[..], [Act::Send(..), Act::Read { .. }]), "{step:?}");
    let ack = w.group.handle(w.now, Input::Says(b, Request::ReflectedAck(ReflectedId(ids[1]))));
    assert_eq!(ack.acts, []);
    w.carry_out(step);
    let heard = w.hears(b);
    assert_eq!(heard, ["info Existing queue 5", "1", "3", "4", "5", "dry"]);
    w.sockets_flow = true;
    w.leaves(b);
    let b = w.returns(B);
    assert_eq!(w.hears(b), ["info Existing queue 4", "1", "3", "4", "5", "dry"]);
}

#[test]
fn acknowledged_messages_are_trimmed_once_everybody_has_them() {
    let mut w = world();
    let (a, b, c) = (w.new_device(A), w.new_device(B), w.new_device(C));
    for n in 0..100 {
        w.reflects(a, &n.to_string());
    }
    let ids = w.reflected_ids(b);
    for &id in &ids {
        w.acks(b, id);
    }
    w.passes(Duration::from_secs(2));
    assert_eq!(w.kept.log.len(), 100, "C has them still to acknowledge");
    for &id in &ids[..50] {
        w.acks(c, id);
    }
    w.passes(Duration::from_secs(2));
    assert_eq!(w.kept.log.len(), 50);
    for &id in &ids[50..] {
        w.acks(c, id);
    }
    w.passes(Duration::from_secs(2));
    assert!(w.kept.log.is_empty());
}

#[test]
fn a_crash_forgets_no_message_and_reuses_no_id() {
    let mut w = world();
    let (a, b) = (w.new_device(A), w.new_device(B));
    w.reflects(a, "1");
    w.reflects_ephemeral(a, "2");
    w.reflects(a, "3");
    let before = w.reflected_ids(b);
    w.acks(b, before[0]);
    w.passes(Duration::from_secs(2));
    w.acks(b, before[2]); // not written yet when the server dies: sent again, which the protocol allows
    w.crashes();
    let (a, b) = (w.returns(A), w.returns(B));
    assert_eq!(w.reflected_ids(b), [before[2]], "what was acknowledged and written stays so");
    w.acks(b, before[1]);
    assert_eq!(w.farewell(b), None, "a late ack for an ephemeral message of an earlier life");
    w.reflects(a, "4");
    let after = w.reflected_ids(b);
    assert!(after[0] > before[2], "{after:?} {before:?}");
}

#[test]
fn a_message_is_not_walked_past_when_a_full_slot_is_dropped_on_its_account() {
    let mut w = limited(Limits { max_queue_messages: 2, ..Limits::default() });
    // B leads, and its end promotes C: C is fed in the middle of the step that accepts the third message.
    let (b, c) = (w.new_device(B), w.new_device(C));
    let a = w.new_device(A);
    let _ = w.hears(c);
    for text in ["1", "2", "3"] {
        w.reflects(a, text);
        let ids = w.heard[&c].iter().filter_map(|p| if let ToDevice::Reflected(r) = p { Some(r.id().0) } else { None });
        let last = ids.last().unwrap();
        w.acks(c, last);
    }
    assert_eq!(w.farewell(b), Some(Farewell::QueueLimit));
    assert_eq!(w.hears(c), ["1", "2", "leader", "3"]);
}

#[test]
fn an_ephemeral_message_from_before_a_device_was_seated_is_not_for_it() {
    let mut w = world();
    let (a, b, c) = (w.new_device(A), w.new_device(B), w.new_device(C));
    w.leaves(b);
    w.reflects(a, "waits");
    // C lags, so that the ephemeral message stays in memory while B takes its seat.
    w.sockets_flow = false;
    for _ in 0..8 {
        w.says(a, Request::Reflect(reflect(&"x".repeat(60_000), false)));
    }
    w.reflects_ephemeral(a, "typing");
    w.sockets_flow = true;
    let b = w.returns(B);
    assert!(!w.hears(b).contains(&"~typing".to_owned()));
    let _ = c;
}

#[test]
fn the_second_of_two_pipelined_transactions_has_its_own_clock() {
    let mut w = world();
    let (a, b) = (w.new_device(A), w.new_device(B));
    w.leaves(b);
    for _ in 0..8 {
        w.says(a, Request::Reflect(reflect(&"x".repeat(60_000), false)));
    }
    w.sockets_flow = false;
    let b = w.returns(B);
    w.begins(b, 1);
    w.commits(b);
    w.begins(b, 600);
    for _ in 0..4 {
        w.does(Input::Written(b, 300_000));
    }
    w.passes(Duration::from_secs(2));
    assert_eq!(w.farewell(b), None, "the first one asked for a second, the second for ten minutes");
}

#[test]
fn a_group_that_wakes_after_a_failure_counts_absence_from_then() {
    let mut w = world();
    let volatile = |device| Introduction {
        device,
        slots_exhausted: SlotsExhausted::Reject,
        slot_expiration: SlotExpiration::Volatile,
        expected_slot_state: SlotState::New,
        encrypted_device_info: vec![],
    };
    let _ = (w.introduces_as(volatile(A)), w.introduces_as(volatile(B)));
    w.passes(Duration::from_secs(3_600));
    w.crashes();
    w.passes(Duration::from_secs(599));
    assert_eq!(w.group.devices().count(), 2);
    w.passes(Duration::from_secs(1));
    assert_eq!(w.group.devices().count(), 0);
}

#[test]
fn lowered_limits_take_nothing_away_but_add_nothing_either() {
    let mut w = world();
    let (a, b) = (w.new_device(A), w.new_device(B));
    w.reflects(a, "1");
    w.reflects(a, "2");
    w.limits = Limits { max_device_slots: 1, max_queue_messages: 1, ..Limits::default() };
    w.crashes();
    let (a, c) = (w.returns(A), w.new_device(C));
    assert_eq!(w.farewell(c), Some(Farewell::DeviceLimitReached));
    let b2 = w.returns(B);
    assert_eq!(w.hears(b2), ["info Existing queue 2", "1", "2", "dry"]);
    w.reflects(a, "3");
    assert_eq!(w.farewell(b2), Some(Farewell::QueueLimit));
    let _ = b;
}

#[test]
fn limits_that_are_lowered_while_a_group_is_awake_take_nothing_away_and_hold_from_the_next_input() {
    let mut w = world();
    let (a, b) = (w.new_device(A), w.new_device(B));
    w.reflects(a, "1");
    w.reflects(a, "2");
    w.group.set_limits(Limits { max_device_slots: 1, max_queue_messages: 1, ..Limits::default() });
    let c = w.new_device(C);
    assert_eq!(w.farewell(c), Some(Farewell::DeviceLimitReached));
    assert_eq!((w.farewell(a), w.farewell(b)), (None, None));
    w.reflects(a, "3");
    assert_eq!(w.farewell(b), Some(Farewell::QueueLimit));
    w.group.set_limits(Limits::default());
    let c = w.new_device(C);
    assert_eq!(w.farewell(c), None, "and they can be raised again");
}

#[test]
fn acknowledgements_ride_along_with_a_commit_that_is_made_anyway() {
    let mut w = world();
    let (a, b) = (w.new_device(A), w.new_device(B));
    w.reflects(a, "1");
    let ids = w.reflected_ids(b);
    w.acks(b, ids[0]);
    w.passes(Duration::from_millis(100));
    w.reflects(a, "2");
    w.crashes();
    let b = w.returns(B);
    assert_eq!(w.hears(b)[1..], ["2", "dry", "leader"]);
}

#[test]
fn after_a_crash_its_own_messages_may_stand_first_behind_a_cursor_that_was_written_late() {
    let mut w = world();
    let (a, b) = (w.new_device(A), w.new_device(B));
    w.reflects(a, "1");
    let ids = w.reflected_ids(b);
    w.passes(Duration::from_secs(2)); // the cursor of B is written before the first message
    w.acks(b, ids[0]);
    w.reflects(b, "its own");
    w.reflects(a, "2");
    w.crashes();
    let b = w.returns(B);
    assert_eq!(w.hears(b), ["info Existing queue 2", "1", "2", "dry", "leader"]);
    w.leaves(b);

    // The same with its own message in front of everything.
    let mut w = world();
    let (a, b) = (w.new_device(A), w.new_device(B));
    w.reflects(b, "its own");
    w.reflects(a, "1");
    w.crashes();
    let b = w.returns(B);
    assert_eq!(w.hears(b), ["info Existing queue 1", "1", "dry", "leader"]);
    let a = w.returns(A);
    assert_eq!(w.hears(a), ["info Existing queue 1", "its own", "dry"]);
}

#[test]
fn ids_wrap_and_stay_distinct() {
    let mut w = world();
    let (a, b) = (w.new_device(A), w.new_device(B));
    w.leaves(a);
    w.leaves(b);
    let step = w.group.lay_down();
    w.carry_out(step);
    let near = (1_u64 << 32) - 3;
    let kept = w.kept.snapshot.as_mut().unwrap();
    kept.group.seq_reserved = Seq(near);
    for slot in &mut kept.slots {
        slot.record.counted_through = Seq(near);
        (slot.record.cursor, slot.record.issued) = (Seq(near), Seq(near));
    }
    w.crashes();
    let (a, b) = (w.returns(A), w.returns(B));
    for text in ["1", "2", "3", "4", "5"] {
        w.reflects(a, text);
    }
    assert_eq!(w.reflected_ids(b), [u32::MAX - 1, u32::MAX, 0, 1, 2]);
    for id in [0, u32::MAX, 2, u32::MAX - 1, 1] {
        w.acks(b, id);
    }
    w.leaves(b);
    let b = w.returns(B);
    assert_eq!(w.hears(b), ["info Existing queue 0", "dry"]);
}

#[test]
fn d2m_12_10_a_transaction_delivers_all_or_nothing() {
    let mut w = world();
    let (a, b) = (w.new_device(A), w.new_device(B));
    let _ = (w.hears(a), w.hears(b));
    w.begins(a, 0);
    w.reflects(a, "1");
    w.reflects_ephemeral(a, "2");
    w.reflects(a, "3");
    assert_eq!(w.hears(a), ["begun", "ack", "ack"], "acknowledged when staged");
    assert!(w.hears(b).is_empty() && w.kept.log.is_empty(), "nothing is delivered before the commit");
    w.reflects(b, "while another holds the lock");
    let c = w.new_device(C);
    let _ = (w.hears(b), w.hears(c));
    w.commits(a);
    assert_eq!(w.hears(a), ["while another holds the lock", "committed"]);
    assert_eq!(w.hears(b), ["1", "~2", "3", "ended a"]);
    assert_eq!(w.hears(c), ["1", "~2", "3", "ended a"], "who joined meanwhile gets it too (A3)");

    w.begins(a, 0);
    w.reflects(a, "never");
    w.leaves(a);
    assert_eq!(w.hears(b), ["ended a", "leader"]);
}

#[test]
fn d2m_12_11_rejected_names_the_holder_and_comes_before_ended() {
    let mut w = world();
    let (a, b, c) = (w.new_device(A), w.new_device(B), w.new_device(C));
    let _ = (w.hears(a), w.hears(b), w.hears(c));
    w.begins(a, 0);
    w.begins(b, 0);
    w.commits(a);
    assert_eq!(w.hears(a), ["begun", "committed"], "the committer is not told that it ended");
    assert_eq!(w.hears(b), ["rejected by a scope of 1", "ended a"]);
    assert_eq!(w.hears(c), ["ended a"]);
    w.begins(b, 0);
    assert_eq!(w.hears(b), ["begun"]);
}

#[test]
fn d2m_12_12_whoever_holds_the_lock_too_long_is_ended() {
    let mut w = world();
    let (a, b) = (w.new_device(A), w.new_device(B));
    let _ = (w.hears(a), w.hears(b));
    w.begins(a, 1);
    w.passes(Duration::from_millis(999));
    assert_eq!(w.farewell(a), None);
    w.passes(Duration::from_millis(1));
    assert_eq!(w.farewell(a), Some(Farewell::TransactionTtl));
    assert_eq!(w.hears(b), ["ended a", "leader"]);
}

#[test]
fn d2m_a22_the_clock_of_a_transaction_starts_when_its_ack_is_sent() {
    let mut w = world();
    let (a, b) = (w.new_device(A), w.new_device(B));
    w.leaves(b);
    for _ in 0..8 {
        w.says(a, Request::Reflect(reflect(&"x".repeat(60_000), false)));
    }
    w.sockets_flow = false;
    let b = w.returns(B);
    w.begins(b, 1);
    w.passes(Duration::from_secs(30));
    assert!(!w.hears(b).contains(&"begun".to_owned()) && w.farewell(b).is_none(), "its backlog is in front");
    w.does(Input::Written(b, 300_000));
    w.does(Input::Written(b, 300_000));
    w.does(Input::Written(b, 300_000));
    assert_eq!(w.hears(b).iter().filter(|said| *said == "begun").count(), 1);
    w.passes(Duration::from_secs(1));
    assert_eq!(w.farewell(b), Some(Farewell::TransactionTtl));
}

#[test]
fn d2m_a9_stray_commits_and_nested_begins_break_the_protocol() {
    let mut w = world();
    let (a, b) = (w.new_device(A), w.new_device(B));
    w.begins(a, 0);
    w.commits(b);
    assert_eq!(w.farewell(b), Some(Farewell::CommitWithoutBegin));
    w.begins(a, 0);
    assert_eq!(w.farewell(a), Some(Farewell::NestedBegin));
}

#[test]
fn d2m_4_5_staging_is_bounded() {
    let mut w = limited(Limits { staged_messages_max: 2, ..Limits::default() });
    let (a, b) = (w.new_device(A), w.new_device(B));
    w.begins(a, 0);
    for text in ["1", "2", "3"] {
        w.reflects(a, text);
    }
    assert_eq!(w.farewell(a), Some(Farewell::StagingLimit));
    assert_eq!(w.hears(b), ["info New queue 0", "dry", "ended a", "leader"]);
}

#[test]
fn d2m_12_13_a_self_drop_is_acknowledged_before_the_close() {
    let mut w = world();
    let (a, b) = (w.new_device(A), w.new_device(B));
    let _ = (w.hears(a), w.hears(b));
    w.begins(a, 0);
    w.says(a, Request::DropDevice(A));
    assert_eq!(
        (w.hears(a), w.farewell(a)),
        (vec!["begun".to_owned(), "dropped a".to_owned()], Some(Farewell::Dropped))
    );
    assert_eq!(w.hears(b), ["ended a", "leader"]);
    let a = w.returns(A);
    assert_eq!(w.farewell(a), Some(Farewell::SlotStateMismatch));
    let a = w.new_device(A);
    assert_eq!(w.farewell(a), None);
}

#[test]
fn d2m_12_14_dropping_another_device_or_nobody_is_acknowledged() {
    let mut w = world();
    let (a, b) = (w.new_device(A), w.new_device(B));
    let _ = w.hears(a);
    w.says(a, Request::DropDevice(B));
    w.says(a, Request::DropDevice(C));
    assert_eq!(w.hears(a), ["dropped b", "dropped c"]);
    assert_eq!(w.farewell(b), Some(Farewell::Dropped));
    w.reflects(a, "nobody is left to get this");
    assert!(w.kept.log.is_empty());
}

#[test]
fn d2m_7_nothing_is_kept_of_a_group_without_devices() {
    let mut w = world();
    let (a, b) = (w.new_device(A), w.new_device(B));
    w.says(a, Request::SetSharedDeviceData(b"shared".to_vec()));
    w.reflects(a, "1");
    w.says(a, Request::DropDevice(B));
    w.says(a, Request::DropDevice(A));
    assert_eq!((w.farewell(a), w.farewell(b)), (Some(Farewell::Dropped), Some(Farewell::Dropped)));
    assert!(w.kept.snapshot.is_none() && w.kept.log.is_empty());
}

#[test]
fn d2m_12_15_shared_device_data_is_shown_at_the_next_login() {
    let mut w = world();
    let a = w.new_device(A);
    w.says(a, Request::SetSharedDeviceData(b"shared".to_vec()));
    let b = w.new_device(B);
    let ToDevice::ServerInfo(info) = &w.heard[&b][0] else { panic!() };
    assert_eq!(info.encrypted_shared_device_data, b"shared");
}

#[test]
fn d2m_12_16_devices_info_lists_everybody() {
    let mut w = world();
    let (a, b) = (w.new_device(A), w.new_device(B));
    w.passes(Duration::from_secs(3));
    w.leaves(b);
    w.says(a, Request::GetDevicesInfo);
    let heard = w.heard.remove(&a).unwrap();
    let Some(ToDevice::DevicesInfo(devices)) = heard.last() else { panic!("{heard:?}") };
    let start = 1_700_000_000_000;
    let states: Vec<_> = devices.0.iter().map(|(id, info)| (*id, info.connection)).collect();
    assert_eq!(
        states,
        [(A, ConnectionState::ConnectedSince(start)), (B, ConnectionState::LastDisconnectAt(start + 3_000))]
    );
}

#[test]
fn d2m_4_4_a_slot_for_which_too_much_waits_is_gone() {
    let mut w = limited(Limits { max_queue_messages: 3, ..Limits::default() });
    let (a, b, c) = (w.new_device(A), w.new_device(B), w.new_device(C));
    w.leaves(b);
    w.begins(c, 0);
    let _ = w.hears(a);
    for text in ["1", "2", "3"] {
        w.reflects(a, text);
    }
    assert_eq!(w.farewell(c), None);
    w.reflects(a, "4");
    assert_eq!(w.farewell(c), Some(Farewell::QueueLimit));
    assert_eq!(w.hears(a), ["ack", "ack", "ack", "ended c", "ack"], "the sender is acknowledged all the same");
    let b = w.returns(B);
    assert_eq!(w.farewell(b), Some(Farewell::SlotStateMismatch));

    let mut w = limited(Limits { max_queue_bytes: 10, ..Limits::default() });
    let (a, b) = (w.new_device(A), w.new_device(B));
    w.reflects(a, "0123456789");
    assert_eq!(w.farewell(b), None);
    w.reflects(a, "0");
    assert_eq!(w.farewell(b), Some(Farewell::QueueLimit));
}

/// Found by fuzzing: telling others of the holder's end fed them past the message that was about to be appended.
#[test]
fn the_message_for_which_the_holder_had_to_go_still_arrives_everywhere_else() {
    let mut w = limited(Limits { max_queue_messages: 1, ..Limits::default() });
    let (a, b, c) = (w.new_device(A), w.new_device(B), w.new_device(C));
    w.begins(c, 0);
    w.reflects(a, "1");
    let ids = w.reflected_ids(b);
    w.acks(b, ids[0]);
    let _ = w.hears(b);
    w.reflects(a, "2");
    assert_eq!(w.farewell(c), Some(Farewell::QueueLimit));
    assert_eq!(w.hears(b), ["ended c", "2"]);
}

#[test]
fn d2m_12_8_an_ephemeral_message_is_not_for_who_comes_later() {
    // Found by the simulation: while one connection lagged, the message was still in memory when another device returned
    // and walked its backlog.
    let mut w = world();
    let (a, b, _lags) = (w.new_device(A), w.new_device(B), w.new_device(C));
    w.leaves(b);
    w.sockets_flow = false;
    for _ in 0..6 {
        w.reflects(a, &"x".repeat(60_000));
    }
    w.reflects_ephemeral(a, "typing");
    let b = w.returns(B);
    w.does(Input::Written(b, 1 << 20));
    let heard = w.hears(b);
    assert_eq!(heard.last().map(String::as_str), Some("dry"));
    assert!(!heard.contains(&"~typing".to_owned()), "it was not there");
}

#[test]
fn a_message_that_makes_the_leader_go_still_reaches_the_next_leader() {
    // Found by the simulation: the next leader was told so behind the new message, before that was in the log; the walk
    // went past it, and nobody ever sent it.
    let mut w = limited(Limits { max_queue_messages: 1, ..Limits::default() });
    let (b, c, a) = (w.new_device(B), w.new_device(C), w.new_device(A));
    w.reflects(a, "1");
    let ids = w.reflected_ids(c);
    w.acks(c, ids[0]);
    w.reflects(a, "2");
    assert_eq!(w.farewell(b), Some(Farewell::QueueLimit), "which led");
    assert_eq!(w.hears(c), ["leader", "2"]);
}

#[test]
fn a_slot_that_never_acks_cannot_hold_back_more_than_its_limit_by_its_own_messages() {
    let mut w = limited(Limits { max_queue_messages: 10, ..Limits::default() });
    let (a, b) = (w.new_device(A), w.new_device(B));
    w.reflects(a, "never acknowledged");
    for _ in 0..12 {
        w.reflects(b, "its own");
        let ids = w.reflected_ids(a);
        for id in ids {
            w.acks(a, id);
        }
    }
    assert_eq!(w.farewell(b), Some(Farewell::QueueLimit));
    assert_eq!(w.hears(b).iter().filter(|said| *said == "ack").count(), 10, "each of its messages was acknowledged");
    w.passes(Duration::from_secs(2));
    assert!(w.kept.log.is_empty(), "and then nothing is held back any more");
}

#[test]
fn volatile_slots_expire_and_persistent_ones_stay() {
    let mut w = world();
    let a = w.new_device(A);
    let volatile = |expected_slot_state| Introduction {
        device: B,
        slots_exhausted: SlotsExhausted::Reject,
        slot_expiration: SlotExpiration::Volatile,
        expected_slot_state,
        encrypted_device_info: vec![],
    };
    let b = w.introduces_as(volatile(SlotState::New));
    w.leaves(b);
    w.passes(Duration::from_secs(599));
    let b = w.introduces_as(volatile(SlotState::Existing));
    assert_eq!(w.farewell(b), None, "a reconnect stops the timer");
    w.passes(Duration::from_secs(3_600));
    w.leaves(b);
    w.crashes();
    w.passes(Duration::from_secs(599));
    assert_eq!(w.group.devices().count(), 2);
    w.passes(Duration::from_secs(1));
    assert_eq!(w.group.devices().collect::<Vec<_>>(), [A], "also when the server was restarted meanwhile");
    let _ = a;
}

#[test]
fn an_answer_never_overtakes_a_message_that_was_accepted_before_it() {
    let mut w = world();
    let (a, b) = (w.new_device(A), w.new_device(B));
    w.leaves(b);
    for n in 0..5 {
        w.reflects(a, &n.to_string());
    }
    w.sockets_flow = false;
    w.connections += 1;
    let b = ConnectionId(w.connections);
    let join = Introduction {
        device: B,
        slots_exhausted: SlotsExhausted::Reject,
        slot_expiration: SlotExpiration::Persistent,
        expected_slot_state: SlotState::Existing,
        encrypted_device_info: vec![],
    };
    let joined = w.group.handle(w.now, Input::Join(b, join));
    let begin = BeginTransaction { encrypted_scope: vec![], ttl_s: 0 };
    let begun = w.group.handle(w.now, Input::Says(b, Request::BeginTransaction(begin)));
    assert_eq!(begun.acts, [], "it stands in line behind the backlog");
    w.carry_out(joined);
    assert_eq!(w.hears(b), ["info Existing queue 5", "0", "1", "2", "3", "4", "begun", "dry"]);
}

#[test]
fn a_device_that_reads_nothing_costs_a_bounded_amount_and_is_ended() {
    let mut w = world();
    let (a, b) = (w.new_device(A), w.new_device(B));
    w.sockets_flow = false;
    for n in 0..10_000 {
        w.reflects_ephemeral(b, &n.to_string());
        w.begins(b, 0);
        w.commits(b);
        if w.farewell(b).is_some() {
            break;
        }
    }
    assert_eq!(w.farewell(b), Some(Farewell::SlowReader));
    let sent = w.heard[&a].len();
    assert!(sent <= super::limits::OUTBOX_PAYLOADS_MAX, "{sent} payloads in the outbox of a stalled connection");
}

#[test]
fn timestamps_never_go_back() {
    let mut w = world();
    let (a, b) = (w.new_device(A), w.new_device(B));
    let _ = (w.hears(a), w.hears(b));
    w.reflects(a, "1");
    w.now.wall_ms -= 5_000;
    w.reflects(a, "2");
    let times: Vec<_> = w.heard[&b]
        .iter()
        .map(|payload| if let ToDevice::Reflected(message) = payload { message.timestamp_ms() } else { panic!() })
        .collect();
    assert_eq!(times[0], times[1]);
}

/// The lock as a page: every state against everything that can happen to it. Reviewing a change to the lock is reading
/// the difference this page makes.
#[test]
fn the_transaction_table() {
    type Happening = (&'static str, fn(&mut World, ConnectionId, ConnectionId));
    let happenings: [Happening; 10] = [
        ("begin by A", |w, a, _| w.begins(a, 0)),
        ("begin by B", |w, _, b| w.begins(b, 0)),
        ("commit by A", |w, a, _| w.commits(a)),
        ("commit by B", |w, _, b| w.commits(b)),
        ("reflect by A", |w, a, _| w.reflects(a, "x")),
        ("reflect by B", |w, _, b| w.reflects(b, "y")),
        ("A leaves", |w, a, _| w.leaves(a)),
        ("A logs in again", |w, _, _| w.does_return(A)),
        ("B drops A", |w, _, b| w.says(b, Request::DropDevice(A))),
        ("deadline", |w, _, _| w.passes(Duration::from_secs(600))),
    ];
    let mut page = String::new();
    for held in [false, true] {
        let _ = writeln!(page, "{}", if held { "held by A, one message staged" } else { "idle" });
        for (name, happening) in happenings {
            let mut w = world();
            let (a, b) = (w.new_device(A), w.new_device(B));
            if held {
                w.begins(a, 0);
                w.reflects(a, "staged");
            }
            let _ = (w.hears(a), w.hears(b));
            happening(&mut w, a, b);
            let lock = match &w.group.lock {
                super::transaction::Lock::Idle => "idle".to_owned(),
                super::transaction::Lock::Held(held) => {
                    format!("held by {:X}, {} staged", held.holder.device_id.0, held.staged.len())
                }
            };
            let told = |w: &mut World, conn| {
                let mut told = w.hears(conn);
                told.extend(w.farewell(conn).map(|farewell| format!("close {farewell:?}")));
                if told.is_empty() { "-".to_owned() } else { told.join(", ") }
            };
            let _ = writeln!(page, "  {name:<16} -> {lock:<20} A: {:<28} B: {}", told(&mut w, a), told(&mut w, b));
        }
    }
    insta::assert_snapshot!(page);
}

#[test]
fn an_operator_sees_who_leads_who_is_dry_and_what_waits_for_whom() {
    let mut w = world();
    let (a, b, c) = (w.new_device(A), w.new_device(B), w.new_device(C));
    w.leaves(c);
    w.passes(Duration::from_secs(5));
    w.reflects(a, "12345");
    let ids = w.reflected_ids(b);
    let view = w.group.describe(w.now);
    assert_eq!((view.leader, view.lock.clone(), view.devices.len()), (Some(A), None, 3));
    let [first, second, third] = &view.devices[..] else { panic!("{view:?}") };
    assert_eq!((first.waiting, second.waiting, third.waiting, third.waiting_bytes), (0, 1, 1, 5));
    let Presence::Connected(connection) = &second.presence else { panic!("{second:?}") };
    assert_eq!((connection.dry, connection.unsent, connection.unacknowledged), (Some(1), 0, 1));
    assert_eq!((connection.for_ms, connection.delivery), (5_000, Delivery::CaughtUp));
    assert_eq!(third.presence, Presence::Away { for_ms: 5_000, expires_in_ms: None });
    let pulse = Pulse { devices: 3, connected: 2, leader: Some(A), deepest: 1, lagging: 1, stalled: 0, locked: false };
    assert_eq!(w.group.pulse(), pulse);
    w.acks(b, ids[0]);
    assert_eq!(w.group.describe(w.now).devices[1].waiting, 0);
}

#[test]
fn an_operator_sees_since_when_a_socket_takes_nothing() {
    let mut w = world();
    let (a, b) = (w.new_device(A), w.new_device(B));
    w.sockets_flow = false;
    for _ in 0..6 {
        w.reflects(a, &"x".repeat(60_000));
    }
    w.passes(Duration::from_secs(7));
    let connection_of = |w: &World| match w.group.describe(w.now).devices.remove(1).presence {
        Presence::Connected(connection) => connection,
        away @ Presence::Away { .. } => panic!("{away:?}"),
    };
    let stalled = connection_of(&w);
    assert_eq!(stalled.delivery, Delivery::SocketFull { for_ms: 7_000 });
    assert!(stalled.unsent > 0 && stalled.unsent + stalled.unacknowledged == 6, "{stalled:?}");
    assert_eq!(w.group.pulse().stalled, 1);
    // It takes something, if not enough.
    w.does(Input::Written(b, 1));
    w.passes(Duration::from_secs(2));
    assert_eq!(connection_of(&w).delivery, Delivery::SocketFull { for_ms: 2_000 });
    w.does(Input::Written(b, 1 << 20));
    assert_eq!((connection_of(&w).delivery, w.group.pulse().stalled), (Delivery::CaughtUp, 0));
}

#[test]
fn an_operator_sees_who_holds_the_lock_and_for_how_long() {
    let mut w = world();
    let (a, _b) = (w.new_device(A), w.new_device(B));
    w.begins(a, 30);
    w.reflects(a, "12345");
    w.passes(Duration::from_secs(10));
    let expected = LockView { holder: A, held_ms: 10_000, remaining_ms: Some(20_000), staged: 1, staged_bytes: 5 };
    assert_eq!(w.group.describe(w.now).lock, Some(expected));
    assert!(w.group.pulse().locked);
}

#[test]
fn an_operator_drops_a_device_as_the_group_would_and_kicks_without_taking_anything() {
    let mut w = world();
    let (a, b) = (w.new_device(A), w.new_device(B));
    w.begins(a, 0);
    w.does(Input::Kick(A));
    assert_eq!((w.farewell(a), w.group.leader()), (Some(Farewell::Kicked), Some(B)));
    assert_eq!(w.hears(b).last().map(String::as_str), Some("leader"), "{:?}", w.heard[&b]);
    assert_eq!(w.group.describe(w.now).lock, None, "its transaction went with it");
    w.returns(A);
    w.does(Input::Kick(C));
    w.does(Input::Remove(B));
    w.does(Input::Remove(C));
    assert_eq!(w.farewell(b), Some(Farewell::Dropped));
    assert_eq!(w.group.devices().collect::<Vec<_>>(), [A]);
}
