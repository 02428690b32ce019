//! A group against a model of it: random stories, told by a seed.
//!
//! The model knows no log, no cursor and no window. It holds for each slot the messages that slot still has to get, and for
//! each connection the payloads it still has to be sent, in order. Around both: a store that can lose the last commit,
//! sockets that take their time, backlog pages that arrive late, and devices that acknowledge in any order, twice, or on
//! their next connection.
//!
//! Asked after every input: each payload is the next one its connection was to get; a message keeps its id and its
//! timestamp, and a new one has a higher id than any before it; Dry comes once and only when nothing else waits; the leader
//! is dry, and somebody leads as soon as somebody is dry; whatever ends, ends with the farewell the spec names. Asked at
//! the end, when every socket has flowed: nobody still waits for anything.
//!
//! A failure names its seed; `HELIOSTAT_MODEL_SEED=n cargo test --test group_model` tells that story alone.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use fastrand::Rng;
use futures_util::FutureExt as _;
use heliostat::group::limits::{FLUSH_AFTER, cost};
use heliostat::group::record::{Page, Seq, SlotRecord};
use heliostat::group::{
    Act, ConnectionId, Farewell, Group, Input, Introduction, Limits, Notice, Request, SlotRemoval, Step,
};
use heliostat::store::{MemoryStore, Store as _};
use heliostat::time::Now;
use heliostat::wire::d2m::{
    AugmentedDeviceInfo, BeginTransaction, ConnectionState, DeviceGroupId, DeviceId, DevicesInfo, Envelope, Reflect,
    ReflectAck, ReflectFlags, ReflectId, ReflectedId, ServerInfo, SlotExpiration, SlotState, SlotsExhausted, ToDevice,
    TransactionHolder,
};

const SEEDS: u64 = 200;
const STEPS: usize = 1_000;
const GROUP: DeviceGroupId = DeviceGroupId::new([7; 32]);
/// Fewer slots than devices, so that the group is often full.
const DEVICES: u64 = 5;
/// How long a volatile slot outlives its connection.
const VOLATILE_MS: u64 = 30_000;

fn limits() -> Limits {
    Limits {
        max_device_slots: 4,
        max_queue_messages: 60,
        max_queue_bytes: 2_000_000,
        transaction_ttl_max: Duration::from_secs(20),
        volatile_slot_ttl: Duration::from_millis(VOLATILE_MS),
        staged_messages_max: 12,
        ..Limits::default()
    }
}

/// A message by its number, which is all that its envelope says.
type Message = u64;

fn envelope(message: Message, len: usize) -> Envelope {
    let mut bytes = vec![0; len.max(8)];
    bytes.splice(..8, message.to_le_bytes());
    Envelope::copy_from(&bytes)
}

fn message_of(envelope: &[u8]) -> Message {
    u64::from_le_bytes(*envelope.first_chunk().expect("eight bytes of number"))
}

// ---- the model

#[derive(Debug, Clone)]
enum Owed {
    Payload(ToDevice),
    Message {
        message: Message,
        timestamp_ms: u64,
    },
    /// May be left out when the connection lags.
    Ephemeral {
        message: Message,
        timestamp_ms: u64,
    },
}

#[derive(Debug, Clone)]
struct Waiting {
    message: Message,
    timestamp_ms: u64,
    bytes: u64,
    /// Given when it was first sent.
    id: Option<u32>,
    /// Acknowledged, on the monotonic clock; a crash may undo that for a while.
    acked: Option<Duration>,
}

#[derive(Debug, Clone)]
struct Slot {
    /// The connection that made it.
    made_by: ConnectionId,
    conn: Option<Conn>,
    expiration: SlotExpiration,
    info: Vec<u8>,
    last_disconnect_ms: u64,
    queue: VecDeque<Waiting>,
    /// A crash may have undone their acknowledgement: they may be sent once more.
    maybe: BTreeSet<Message>,
    /// The highest id the device was ever shown.
    shown: u32,
}

#[derive(Debug, Clone)]
struct Conn {
    id: ConnectionId,
    since_ms: u64,
    new: bool,
    dry: Option<u64>,
    owed: VecDeque<Owed>,
}

#[derive(Debug, Clone)]
struct Held {
    conn: ConnectionId,
    holder: TransactionHolder,
    ttl: Duration,
    until: Option<Duration>,
    staged: Vec<(Message, u64, bool, u64)>,
}

#[derive(Debug, Clone, Default)]
struct Model {
    slots: BTreeMap<DeviceId, Slot>,
    lock: Option<Held>,
    leader: Option<ConnectionId>,
    dried: u64,
    shared: Vec<u8>,
    last_timestamp_ms: u64,
    /// Connections that have to be closed in this step, and how.
    farewells: BTreeMap<ConnectionId, Farewell>,
    /// What a connection that ended in this step may still be sent.
    last_words: BTreeMap<ConnectionId, VecDeque<Owed>>,
}

impl Model {
    fn device_of(&self, conn: ConnectionId) -> Option<DeviceId> {
        self.slots.iter().find(|(_, slot)| slot.conn.as_ref().is_some_and(|c| c.id == conn)).map(|(&device, _)| device)
    }

    fn conn_mut(&mut self, conn: ConnectionId) -> Option<&mut Conn> {
        self.slots.values_mut().filter_map(|slot| slot.conn.as_mut()).find(|c| c.id == conn)
    }

    fn owe(&mut self, conn: ConnectionId, payload: ToDevice) {
        if let Some(conn) = self.conn_mut(conn) {
            conn.owed.push_back(Owed::Payload(payload));
        }
    }

    fn owe_others(&mut self, but: DeviceId, payload: &ToDevice) {
        for (_, slot) in self.slots.iter_mut().filter(|(device, _)| **device != but) {
            if let Some(conn) = &mut slot.conn {
                conn.owed.push_back(Owed::Payload(payload.clone()));
            }
        }
    }

    fn unseat(&mut self, now: Now, device: DeviceId, farewell: Option<Farewell>) {
        let Some(conn) = self.slots.get_mut(&device).and_then(|slot| slot.conn.take()) else { return };
        self.slots.get_mut(&device).unwrap().last_disconnect_ms = now.wall_ms;
        if let Some(farewell) = farewell {
            self.farewells.insert(conn.id, farewell);
            self.last_words.insert(conn.id, conn.owed);
        }
        if self.lock.as_ref().is_some_and(|held| held.conn == conn.id) {
            let held = self.lock.take().unwrap();
            self.owe_others(device, &ToDevice::TransactionEnded(held.holder));
        }
        if self.leader == Some(conn.id) {
            self.leader = None;
        }
    }

    fn remove(&mut self, now: Now, device: DeviceId, farewell: Option<Farewell>) {
        self.unseat(now, device, farewell);
        self.slots.remove(&device);
        if self.slots.is_empty() {
            self.shared.clear();
        }
    }

    fn accept(&mut self, origin: DeviceId, message: Message, timestamp_ms: u64, ephemeral: bool, bytes: u64) {
        for (_, slot) in self.slots.iter_mut().filter(|(device, _)| **device != origin) {
            if !ephemeral {
                slot.queue.push_back(Waiting { message, timestamp_ms, bytes, id: None, acked: None });
            }
            if let Some(conn) = &mut slot.conn {
                conn.owed.push_back(if ephemeral {
                    Owed::Ephemeral { message, timestamp_ms }
                } else {
                    Owed::Message { message, timestamp_ms }
                });
            }
        }
    }

    /// Everything in memory is gone; who was connected is not any more.
    fn die(&mut self, now: Now) {
        self.lock = None;
        self.leader = None;
        for slot in self.slots.values_mut() {
            if slot.conn.take().is_some() {
                slot.last_disconnect_ms = now.wall_ms;
            }
            let undone =
                |waiting: &Waiting| waiting.acked.is_some_and(|at| now.monotonic.saturating_sub(at) <= FLUSH_AFTER);
            slot.maybe.extend(slot.queue.iter().filter(|waiting| undone(waiting)).map(|waiting| waiting.message));
        }
    }

    /// One payload a connection was sent.
    fn sent(&mut self, now: Now, conn: ConnectionId, payload: &ToDevice) {
        if let Some(words) = self.last_words.get_mut(&conn) {
            // What stood in line may still go out before the close; a drop's acknowledgement may jump the queue.
            while let Some(owed) = words.pop_front() {
                if matches!(&owed, Owed::Payload(owed) if owed == payload) {
                    return;
                }
            }
            panic!("{conn:?} is about to be closed and was not owed {payload:?}");
        }
        let device = self.device_of(conn).unwrap_or_else(|| panic!("{conn:?} is over and gets {payload:?}"));
        let leader = self.leader;
        let first_dry = self.slots.values().filter_map(|slot| slot.conn.as_ref()?.dry).min();
        let slot = self.slots.get_mut(&device).unwrap();
        let seat = slot.conn.as_mut().unwrap();
        match payload {
            ToDevice::ReflectionQueueDry => {
                assert_eq!(seat.dry, None, "dry twice");
                let waits = |owed: &&Owed| match owed {
                    Owed::Message { message, .. } => !slot.maybe.contains(message),
                    Owed::Payload(_) => true,
                    Owed::Ephemeral { .. } => false,
                };
                assert!(!seat.owed.iter().any(|owed| waits(&owed)), "dry before {:?}", seat.owed);
                seat.dry = Some(self.dried);
                self.dried += 1;
            }
            ToDevice::RolePromotedToLeader => {
                assert_eq!(leader, None, "two leaders");
                assert!(seat.dry.is_some() && seat.dry == first_dry, "the first dry leads");
                self.leader = Some(conn);
            }
            ToDevice::Reflected(reflected) => {
                let (message, id) = (message_of(reflected.envelope()), reflected.id().0);
                loop {
                    match seat.owed.pop_front() {
                        Some(Owed::Message { message: owed, timestamp_ms }) if owed == message => {
                            assert_eq!(timestamp_ms, reflected.timestamp_ms(), "the timestamp that was acknowledged");
                            assert!(!reflected.flags().ephemeral);
                            break;
                        }
                        Some(Owed::Ephemeral { message: owed, timestamp_ms }) if owed == message => {
                            assert_eq!(timestamp_ms, reflected.timestamp_ms());
                            assert!(reflected.flags().ephemeral);
                            break;
                        }
                        Some(Owed::Ephemeral { .. }) => {}
                        Some(Owed::Message { message, .. }) if slot.maybe.contains(&message) => {}
                        other => panic!("{device} gets message {message}, was owed {other:?}"),
                    }
                }
                let first = slot.queue.iter_mut().find(|waiting| waiting.message == message).map(|w| &mut w.id);
                match first {
                    Some(Some(given)) => assert_eq!(*given, id, "an id is given once"),
                    Some(none) => {
                        assert!(id > slot.shown, "ids grow");
                        *none = Some(id);
                    }
                    None => assert!(id > slot.shown, "ids grow"),
                }
                slot.shown = slot.shown.max(id);
            }
            payload => loop {
                match seat.owed.pop_front() {
                    Some(Owed::Payload(owed)) => {
                        assert_eq!(&owed, payload, "{device}");
                        if *payload == ToDevice::BeginTransactionAck {
                            // The clock starts, unless the device has not waited for this and committed already.
                            if let Some(held) = self.lock.as_mut().filter(|held| held.conn == conn) {
                                held.until = Some(now.monotonic + held.ttl);
                            }
                        }
                        break;
                    }
                    Some(Owed::Ephemeral { .. }) => {}
                    Some(Owed::Message { message, .. }) if slot.maybe.contains(&message) => {}
                    other => panic!("{device} gets {payload:?}, was owed {other:?}"),
                }
            },
        }
    }

    /// What is true between two inputs.
    fn check(&self, group: &Group) {
        assert!(self.farewells.is_empty(), "not closed: {:?}", self.farewells);
        let any_dry = self.slots.values().any(|slot| slot.conn.as_ref().is_some_and(|conn| conn.dry.is_some()));
        assert_eq!(any_dry, group.leader().is_some(), "somebody leads as soon as somebody is dry");
        if let Some(leader) = self.leader {
            assert_eq!(group.leader(), self.device_of(leader), "leadership lasts as long as the connection");
        }
        assert_eq!(group.devices().collect::<Vec<_>>(), self.slots.keys().copied().collect::<Vec<_>>());
    }
}

// ---- the world around it

/// A device's own memory, which outlives its connections.
#[derive(Debug, Clone, Default)]
struct Device {
    /// The slot all this was for; of a new one it knows nothing.
    slot: Option<ConnectionId>,
    /// What it was shown and has not acknowledged.
    unacked: Vec<(u32, Option<Message>)>,
    acked: Vec<u32>,
}

struct Socket {
    device: DeviceId,
    slot: Option<ConnectionId>,
    /// Put into the outbox and not taken by the socket.
    outbox: VecDeque<ToDevice>,
    owed: usize,
    introduced: bool,
}

struct World {
    rng: Rng,
    now: Now,
    group: Group,
    model: Model,
    store: MemoryStore,
    devices: BTreeMap<DeviceId, Device>,
    sockets: BTreeMap<ConnectionId, Socket>,
    reads: VecDeque<(ConnectionId, Seq, Seq)>,
    connections: u64,
    messages: u64,
    reflect_ids: u32,
    deliveries: usize,
}

/// What becomes of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    /// The process dies before it is kept.
    Lost,
    /// The process dies after it was kept, before anything was said.
    KeptUnsaid,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            now: Now { monotonic: Duration::ZERO, wall_ms: 1_700_000_000_000 },
            group: Group::empty(limits()),
            model: Model::default(),
            store: MemoryStore::new(),
            devices: BTreeMap::new(),
            sockets: BTreeMap::new(),
            reads: VecDeque::new(),
            connections: 0,
            messages: 0,
            reflect_ids: 0,
            deliveries: 0,
        }
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.u32(..100) < percent
    }

    /// Time goes by, and whatever falls due in it happens when it does.
    fn pass(&mut self, time: Duration) {
        let until = self.now.plus(time);
        while let Some(at) = self.group.next_deadline(self.now).filter(|&at| at <= until.monotonic) {
            self.now = self.now.plus(at.saturating_sub(self.now.monotonic));
            let before = self.model.clone();
            let step = self.handle(Input::Tick);
            self.carry_out(step, Fate::Kept, before);
        }
        self.now = self.now.plus(until.monotonic - self.now.monotonic);
    }

    /// A few inputs, decided together, kept together, then said.
    fn step(&mut self) {
        let pause = if self.chance(5) { self.rng.u64(..12_000) } else { self.rng.u64(..40) };
        self.pass(Duration::from_millis(pause));
        let before = self.model.clone();
        let mut step = Step::default();
        for _ in 0..self.rng.usize(1..6) {
            if let Some(input) = self.something() {
                step.append(self.handle(input));
            }
        }
        let fate = match self.rng.u32(..400) {
            0 => Fate::Lost,
            1 => Fate::KeptUnsaid,
            _ => Fate::Kept,
        };
        self.carry_out(step, fate, before);
        let asleep = self.group.is_deserted() && self.chance(50);
        if asleep {
            let step = self.group.lay_down();
            self.carry_out(step, Fate::Kept, Model::default());
            self.wake();
        }
    }

    fn wake(&mut self) {
        self.group = match self.store.load(GROUP).now_or_never().unwrap().unwrap() {
            Some(snapshot) => {
                for slot in &snapshot.slots {
                    let SlotRecord { device, last_disconnect_ms, .. } = slot.record;
                    let modelled =
                        &mut self.model.slots.get_mut(&device).expect("a slot that is kept").last_disconnect_ms;
                    // A disconnect is kept as lazily as an acknowledgement: a crash may undo it.
                    let undone = last_disconnect_ms == self.now.wall_ms
                        && Duration::from_millis(last_disconnect_ms - *modelled) <= FLUSH_AFTER;
                    assert!(last_disconnect_ms == *modelled || undone, "{device} left at {last_disconnect_ms}");
                    *modelled = last_disconnect_ms;
                }
                Group::restore(self.now, snapshot, limits())
            }
            None => {
                assert!(self.model.slots.is_empty(), "a group with slots is kept");
                Group::empty(limits())
            }
        };
    }

    fn carry_out(&mut self, step: Step, fate: Fate, before: Model) {
        if fate != Fate::Lost && !step.writes.is_empty() {
            self.store.commit(GROUP, step.writes).now_or_never().unwrap().expect("a possible commit");
        }
        if fate != Fate::Kept {
            if fate == Fate::Lost {
                self.model = before;
            }
            self.store = self.store.survivors(self.now.wall_ms);
            self.model.die(self.now);
            self.sockets.clear();
            self.reads.clear();
            return self.wake();
        }
        for act in step.acts {
            match act {
                Act::Send(conn, payload) => {
                    if let Some(socket) = self.sockets.get_mut(&conn) {
                        socket.outbox.push_back(payload);
                    }
                }
                Act::Close(conn, _) => {
                    // Everything before the close still arrives.
                    if let Some(mut socket) = self.sockets.remove(&conn) {
                        while let Some(payload) = socket.outbox.pop_front() {
                            self.arrive(socket.device, socket.slot, &payload);
                        }
                    }
                }
                Act::Read { conn, after, through } => self.reads.push_back((conn, after, through)),
            }
        }
        let Step { writes, acts, notices: _ } = self.group.handle(self.now, Input::Durable);
        assert!(writes.is_empty() && acts.is_empty());
    }

    fn known(&mut self, device: DeviceId, slot: Option<ConnectionId>) -> &mut Device {
        let known = self.devices.entry(device).or_default();
        if known.slot < slot {
            *known = Device { slot, ..Device::default() };
        }
        known
    }

    fn arrive(&mut self, device: DeviceId, slot: Option<ConnectionId>, payload: &ToDevice) {
        if let ToDevice::Reflected(reflected) = payload {
            self.deliveries += 1;
            let known = self.known(device, slot);
            if known.slot != slot {
                return;
            }
            let message = (!reflected.flags().ephemeral).then(|| message_of(reflected.envelope()));
            known.unacked.retain(|&(id, _)| id != reflected.id().0);
            known.unacked.push((reflected.id().0, message));
        }
    }

    /// Tells group and model, and compares what comes out.
    fn handle(&mut self, input: Input) -> Step {
        let told = input.clone();
        let joining = if let Input::Join(conn, _) = &input { Some(*conn) } else { None };
        let step = self.group.handle(self.now, input);
        self.model.farewells.clear();
        self.model.last_words.clear();
        self.tell_model(told, &step);
        for act in &step.acts {
            match act {
                Act::Send(conn, payload) => self.model.sent(self.now, *conn, payload),
                Act::Close(conn, farewell) => {
                    assert_eq!(self.model.farewells.remove(conn), Some(*farewell), "{conn:?} ends");
                    self.model.last_words.insert(*conn, VecDeque::new());
                }
                Act::Read { .. } => {}
            }
        }
        self.model.check(&self.group);
        if let Some(conn) = joining
            && let Some(device) = self.model.device_of(conn)
        {
            self.sockets.get_mut(&conn).unwrap().slot = Some(self.model.slots.get(&device).unwrap().made_by);
        }
        step
    }

    fn tell_model(&mut self, input: Input, step: &Step) {
        let (now, model) = (self.now, &mut self.model);
        match input {
            Input::Join(conn, introduction) => Self::model_join(model, now, conn, introduction, step),
            Input::Leave { conn, introduced } => {
                let Some(device) = model.device_of(conn) else { return };
                if model.slots.get(&device).unwrap().conn.as_ref().unwrap().new && !introduced {
                    model.remove(now, device, None);
                } else {
                    model.unseat(now, device, None);
                }
            }
            Input::Tick => {
                if let Some(held) = model.lock.as_ref().filter(|h| h.until.is_some_and(|at| at <= now.monotonic)) {
                    let device = model.device_of(held.conn).unwrap();
                    model.unseat(now, device, Some(Farewell::TransactionTtl));
                }
                let expired = |slot: &Slot| {
                    slot.conn.is_none()
                        && slot.expiration == SlotExpiration::Volatile
                        && slot.last_disconnect_ms + VOLATILE_MS <= now.wall_ms
                };
                let expired: Vec<_> = model.slots.iter().filter(|(_, s)| expired(s)).map(|(&d, _)| d).collect();
                for device in expired {
                    model.remove(now, device, None);
                }
            }
            Input::Says(conn, request) => {
                if let Some(device) = model.device_of(conn) {
                    Self::model_says(model, now, conn, device, request, step);
                }
            }
            Input::Remove(device) => model.remove(now, device, Some(Farewell::Dropped)),
            Input::Kick(device) => model.unseat(now, device, Some(Farewell::Kicked)),
            Input::Written(..) | Input::Page(..) | Input::Durable => {}
        }
    }

    fn model_join(model: &mut Model, now: Now, conn: ConnectionId, introduction: Introduction, step: &Step) {
        let device = introduction.device;
        let actual = if model.slots.contains_key(&device) { SlotState::Existing } else { SlotState::New };
        if actual != introduction.expected_slot_state {
            model.farewells.insert(conn, Farewell::SlotStateMismatch);
            return;
        }
        if actual == SlotState::New && model.slots.len() == limits().max_device_slots {
            if introduction.slots_exhausted == SlotsExhausted::Reject {
                model.farewells.insert(conn, Farewell::DeviceLimitReached);
                return;
            }
            let age = |slot: &Slot| match &slot.conn {
                None => (false, slot.last_disconnect_ms),
                Some(conn) => (true, conn.since_ms),
            };
            let victim = *model.slots.iter().min_by_key(|(_, slot)| age(slot)).unwrap().0;
            model.remove(now, victim, Some(Farewell::LeastRecent));
        }
        model.unseat(now, device, Some(Farewell::Replaced));
        let slot = model.slots.entry(device).or_insert_with(|| Slot {
            made_by: conn,
            conn: None,
            expiration: introduction.slot_expiration,
            info: Vec::new(),
            last_disconnect_ms: 0,
            queue: VecDeque::new(),
            maybe: BTreeSet::new(),
            shown: 0,
        });
        slot.expiration = introduction.slot_expiration;
        slot.info = introduction.encrypted_device_info;
        let maybe = &slot.maybe;
        slot.queue.retain(|waiting| waiting.acked.is_none() || maybe.contains(&waiting.message));
        let owed: VecDeque<_> = slot
            .queue
            .iter()
            .map(|waiting| Owed::Message { message: waiting.message, timestamp_ms: waiting.timestamp_ms })
            .collect();
        // Told length: all that will be sent. What was acknowledged before it was sent again may be counted.
        let told = step.acts.iter().find_map(|act| match act {
            Act::Send(to, ToDevice::ServerInfo(info)) if *to == conn => Some(info.reflection_queue_length),
            _ => None,
        });
        let told = told.expect("a ServerInfo");
        let sure = slot.queue.iter().filter(|waiting| waiting.acked.is_none()).count();
        assert!(told as usize >= sure, "queue length {told}, but {sure} wait");
        let info = ServerInfo {
            max_device_slots: 4,
            slot_state: actual,
            encrypted_shared_device_data: model.shared.clone(),
            current_time_ms: now.wall_ms,
            reflection_queue_length: told,
        };
        let mut seat =
            Conn { id: conn, since_ms: now.wall_ms, new: actual == SlotState::New, dry: None, owed: VecDeque::new() };
        seat.owed.push_back(Owed::Payload(ToDevice::ServerInfo(info)));
        seat.owed.extend(owed);
        slot.conn = Some(seat);
    }

    fn model_says(model: &mut Model, now: Now, conn: ConnectionId, device: DeviceId, request: Request, step: &Step) {
        match request {
            Request::GetDevicesInfo => {
                let augment = |slot: &Slot| AugmentedDeviceInfo {
                    encrypted_device_info: slot.info.clone(),
                    slot_expiration: slot.expiration,
                    connection: match &slot.conn {
                        Some(conn) => ConnectionState::ConnectedSince(conn.since_ms),
                        None => ConnectionState::LastDisconnectAt(slot.last_disconnect_ms),
                    },
                };
                let all = model.slots.iter().map(|(&device, slot)| (device, augment(slot))).collect();
                model.owe(conn, ToDevice::DevicesInfo(DevicesInfo(all)));
            }
            Request::DropDevice(target) => {
                if target == device {
                    model.owe(conn, ToDevice::DropDeviceAck(target));
                }
                model.remove(now, target, Some(Farewell::Dropped));
                if target != device {
                    model.owe(conn, ToDevice::DropDeviceAck(target));
                }
            }
            Request::SetSharedDeviceData(data) => model.shared = data,
            Request::BeginTransaction(begin) => match &model.lock {
                Some(held) if held.conn == conn => model.unseat(now, device, Some(Farewell::NestedBegin)),
                Some(held) => {
                    let holder = held.holder.clone();
                    model.owe(conn, ToDevice::TransactionRejected(holder));
                }
                None => {
                    let max = limits().transaction_ttl_max;
                    let asked = Duration::from_secs(begin.ttl_s.into());
                    let ttl = if asked.is_zero() { max } else { asked.min(max) };
                    let holder = TransactionHolder { device_id: device, encrypted_scope: begin.encrypted_scope };
                    model.lock = Some(Held { conn, holder, ttl, until: None, staged: Vec::new() });
                    model.owe(conn, ToDevice::BeginTransactionAck);
                }
            },
            Request::CommitTransaction => match model.lock.take() {
                Some(held) if held.conn == conn => {
                    let holder = held.holder.clone();
                    Self::model_accept(model, now, device, held.staged, step);
                    model.owe(conn, ToDevice::CommitTransactionAck);
                    model.owe_others(device, &ToDevice::TransactionEnded(holder));
                    Self::model_overfull(model, now, device, step);
                }
                other => {
                    model.lock = other;
                    model.unseat(now, device, Some(Farewell::CommitWithoutBegin));
                }
            },
            Request::Reflect(Reflect { flags, reflect_id, envelope }) => {
                model.last_timestamp_ms = model.last_timestamp_ms.max(now.wall_ms);
                let timestamp_ms = model.last_timestamp_ms;
                let bytes = envelope.len() as u64;
                let staged = (message_of(envelope.as_bytes()), timestamp_ms, flags.ephemeral, bytes);
                match model.lock.as_mut().filter(|held| held.conn == conn) {
                    Some(held) if held.staged.len() >= limits().staged_messages_max => {
                        return model.unseat(now, device, Some(Farewell::StagingLimit));
                    }
                    Some(held) => held.staged.push(staged),
                    None => Self::model_accept(model, now, device, vec![staged], step),
                }
                if !flags.ephemeral {
                    model.owe(conn, ToDevice::ReflectAck(ReflectAck { reflect_id, timestamp_ms }));
                }
                Self::model_overfull(model, now, device, step);
            }
            Request::ReflectedAck(id) => {
                if id.0 == u32::MAX {
                    return model.unseat(now, device, Some(Farewell::UnknownAck));
                }
                let slot = model.slots.get_mut(&device).unwrap();
                let Some(waiting) = slot.queue.iter_mut().find(|waiting| waiting.id == Some(id.0)) else { return };
                waiting.acked = Some(now.monotonic);
                let message = waiting.message;
                slot.maybe.remove(&message);
                // Not to be sent any more, if it was not yet.
                let seat = slot.conn.as_mut().unwrap();
                seat.owed.retain(|owed| !matches!(owed, Owed::Message { message: owed, .. } if *owed == message));
            }
        }
    }

    /// A sender whose own messages filled what is held for it, because it acknowledges nothing, is ended last.
    fn model_overfull(model: &mut Model, now: Now, origin: DeviceId, step: &Step) {
        let ended = |notice: &Notice| matches!(*notice, Notice::SlotRemoved { device, why: SlotRemoval::QueueLimit, .. } if device == origin);
        if step.notices.iter().any(ended) {
            let waits = model.slots.get(&origin).unwrap().queue.iter().any(|waiting| waiting.acked.is_none());
            assert!(waits, "nothing is held for a slot without anything that waits");
            model.remove(now, origin, Some(Farewell::QueueLimit));
        }
    }

    /// Accepts messages in order. Which slots had to go before which message, the notices tell; whether they had to, the
    /// model asks.
    fn model_accept(
        model: &mut Model,
        now: Now,
        origin: DeviceId,
        messages: Vec<(Message, u64, bool, u64)>,
        step: &Step,
    ) {
        let mut messages = messages.into_iter();
        let limits = limits();
        for notice in &step.notices {
            match *notice {
                // What the sender itself is ended for comes after what it was promised.
                Notice::SlotRemoved { device, why: SlotRemoval::QueueLimit, .. } if device != origin => {
                    let first = model.slots.get(&device).unwrap().queue.iter().find(|waiting| waiting.acked.is_none());
                    assert!(first.is_some(), "a queue that is full is not empty");
                    model.remove(now, device, Some(Farewell::QueueLimit));
                }
                Notice::Reflected { .. } => {
                    let (message, timestamp_ms, ephemeral, bytes) = messages.next().expect("as many as were staged");
                    for (_, slot) in model.slots.iter().filter(|(device, _)| !ephemeral && **device != origin) {
                        let waiting =
                            slot.queue.iter().filter(|w| w.acked.is_none() && !slot.maybe.contains(&w.message));
                        let (count, sum) = waiting.fold((0, 0), |(count, sum), w| (count + 1, sum + w.bytes));
                        assert!(count < limits.max_queue_messages && sum + bytes <= limits.max_queue_bytes, "4114");
                    }
                    model.accept(origin, message, timestamp_ms, ephemeral, bytes);
                }
                _ => {}
            }
        }
        assert_eq!(messages.next(), None, "all or nothing");
    }

    // ---- what happens

    fn something(&mut self) -> Option<Input> {
        match self.rng.u32(..100) {
            0..8 => Some(self.join()),
            8..11 => {
                let conn = self.some_conn()?;
                let socket = self.sockets.remove(&conn)?;
                self.reads.retain(|read| read.0 != conn);
                Some(Input::Leave { conn, introduced: socket.introduced })
            }
            11..45 => self.flow(),
            45..52 => self.page(),
            52..72 => self.acknowledge(),
            72..97 => {
                let conn = self.some_conn()?;
                let request = self.request(conn)?;
                Some(Input::Says(conn, request))
            }
            97 if self.chance(20) => Some(Input::Remove(self.some_device())),
            97 => Some(Input::Kick(self.some_device())),
            _ => Some(Input::Tick),
        }
    }

    fn some_conn(&mut self) -> Option<ConnectionId> {
        self.rng.choice(self.sockets.keys()).copied()
    }

    fn some_device(&mut self) -> DeviceId {
        DeviceId(self.rng.u64(..DEVICES))
    }

    fn join(&mut self) -> Input {
        let device = self.some_device();
        let known = self.model.slots.contains_key(&device);
        let expected_slot_state = if known != self.chance(5) { SlotState::Existing } else { SlotState::New };
        let conn = ConnectionId(self.connections);
        self.connections += 1;
        let socket = Socket { device, slot: None, outbox: VecDeque::new(), owed: 0, introduced: false };
        self.sockets.insert(conn, socket);
        let introduction = Introduction {
            device,
            slots_exhausted: if self.chance(50) { SlotsExhausted::Reject } else { SlotsExhausted::DropLeastRecent },
            slot_expiration: if self.chance(30) { SlotExpiration::Volatile } else { SlotExpiration::Persistent },
            expected_slot_state,
            encrypted_device_info: vec![1; self.rng.usize(..50)],
        };
        Input::Join(conn, introduction)
    }

    /// A socket takes some of what is in its outbox.
    fn flow(&mut self) -> Option<Input> {
        let conn = self.some_conn()?;
        let most = if self.chance(70) { 100 } else { self.rng.usize(..4) };
        self.flow_of(conn, most)
    }

    fn flow_of(&mut self, conn: ConnectionId, most: usize) -> Option<Input> {
        let collect = if self.chance(50) { 64 * 1024 } else { 1 };
        let socket = self.sockets.get_mut(&conn)?;
        let (device, slot) = (socket.device, socket.slot);
        let taken: Vec<_> = socket.outbox.drain(..most.min(socket.outbox.len())).collect();
        socket.introduced |= !taken.is_empty();
        socket.owed += taken.iter().map(cost).sum::<usize>();
        let paid = (socket.owed >= collect).then(|| std::mem::take(&mut socket.owed));
        for payload in &taken {
            self.arrive(device, slot, payload);
        }
        paid.map(|paid| Input::Written(conn, paid))
    }

    fn page(&mut self) -> Option<Input> {
        let (conn, after, through) = self.reads.pop_front()?;
        let cost_max = self.rng.usize(1..20_000);
        let page: Page = self.store.page(GROUP, after, through, cost_max).now_or_never().unwrap().unwrap();
        Some(Input::Page(conn, page))
    }

    fn acknowledge(&mut self) -> Option<Input> {
        let conn = self.some_conn()?;
        // A connection that is not seated says nothing.
        let device = self.model.device_of(conn)?;
        let wild = self.rng.u32(..100);
        let slot = self.model.slots.get(&device)?.made_by;
        self.known(device, Some(slot));
        let known = self.devices.get_mut(&device)?;
        let id = match wild {
            0 => u32::MAX,
            1..8 => *self.rng.choice(&known.acked)?,
            8..60 => {
                // In order.
                let (id, _) = (!known.unacked.is_empty()).then(|| known.unacked.remove(0))?;
                known.acked.push(id);
                id
            }
            _ => {
                let at = (!known.unacked.is_empty()).then(|| self.rng.usize(..known.unacked.len()))?;
                let (id, _) = known.unacked.swap_remove(at);
                known.acked.push(id);
                id
            }
        };
        Some(Input::Says(conn, Request::ReflectedAck(ReflectedId(id))))
    }

    fn request(&mut self, conn: ConnectionId) -> Option<Request> {
        let holds = self.model.lock.as_ref().is_some_and(|held| held.conn == conn);
        Some(match self.rng.u32(..100) {
            0..4 => Request::GetDevicesInfo,
            4 => Request::DropDevice(self.some_device()),
            5 => Request::DropDevice(self.model.device_of(conn)?),
            6..8 => Request::SetSharedDeviceData(vec![2; self.rng.usize(..30)]),
            8..18 => {
                if holds && !self.chance(3) {
                    return None;
                }
                let (scope, ttl_s) = (vec![3; self.rng.usize(..20)], self.rng.u32(..15));
                Request::BeginTransaction(BeginTransaction { encrypted_scope: scope, ttl_s })
            }
            18..30 => {
                if !holds && !self.chance(2) {
                    return None;
                }
                Request::CommitTransaction
            }
            _ => {
                self.messages += 1;
                self.reflect_ids = self.reflect_ids.wrapping_add(1);
                let len = if self.chance(10) { self.rng.usize(20_000..65_516) } else { self.rng.usize(8..300) };
                Request::Reflect(Reflect {
                    flags: ReflectFlags { ephemeral: self.chance(25) },
                    reflect_id: ReflectId(self.reflect_ids),
                    envelope: envelope(self.messages, len),
                })
            }
        })
    }

    /// Every socket flows until nothing moves any more. Then nobody may be owed anything.
    fn settle(&mut self) {
        loop {
            let mut inputs = Vec::new();
            while let Some(page) = self.page() {
                inputs.push(page);
            }
            let conns: Vec<_> = self.sockets.keys().copied().collect();
            for conn in conns {
                inputs.extend(self.flow_of(conn, usize::MAX));
                let socket = self.sockets.get_mut(&conn).unwrap();
                // What a session collects does not matter for whether more comes.
                if socket.owed >= 64 * 1024 {
                    inputs.push(Input::Written(conn, std::mem::take(&mut socket.owed)));
                }
            }
            if inputs.is_empty() {
                break;
            }
            for input in inputs {
                let before = self.model.clone();
                let step = self.handle(input);
                self.carry_out(step, Fate::Kept, before);
            }
        }
        for (device, slot) in &self.model.slots {
            let Some(conn) = &slot.conn else { continue };
            assert!(conn.dry.is_some(), "{device} waits for Dry for ever");
            let waits = |owed: &&Owed| match owed {
                Owed::Message { message, .. } => !slot.maybe.contains(message),
                Owed::Payload(_) => true,
                Owed::Ephemeral { .. } => false,
            };
            assert!(!conn.owed.iter().any(|owed| waits(&owed)), "{device} waits for ever for {:?}", conn.owed);
        }
    }
}

/// Tells one story; says how many messages arrived.
fn story(seed: u64) -> usize {
    let mut world = World::new(seed);
    for step in 0..STEPS {
        world.step();
        if step % 200 == 199 {
            world.settle();
        }
    }
    world.settle();
    world.deliveries
}

#[test]
fn a_group_does_what_its_model_says() {
    if let Some(seed) = std::env::var("HELIOSTAT_MODEL_SEED").ok().and_then(|seed| seed.parse().ok()) {
        story(seed);
        return;
    }
    let mut broken = BTreeMap::new();
    let mut deliveries = 0;
    for seed in 0..SEEDS {
        match std::panic::catch_unwind(|| story(seed)) {
            Ok(delivered) => deliveries += delivered,
            Err(why) => {
                let why = why.downcast_ref::<String>().map_or("?", |why| why.lines().next().unwrap_or("?"));
                broken.entry(why.chars().take(60).collect::<String>()).or_insert_with(Vec::new).push(seed);
            }
        }
    }
    assert!(broken.is_empty(), "seeds that broke: {broken:#?}");
    assert!(deliveries > 100_000, "only {deliveries} messages arrived: the stories are about nothing");
}
