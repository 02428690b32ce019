//! One group of devices: each says what its plan holds, acknowledges what it gets, and comes back when its connection
//! breaks, until everything that is due has arrived everywhere.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::sync::Notify;

use super::chat::Chat;
use super::ledger::{Fault, Kind, Ledger, Member, Seen, Tally};
use crate::client::{ConnectError, Device, DeviceConfig, Ended, GroupKey, Mediator, Receiver, Sender};
use crate::time::Clock;
use crate::wire::d2m::{
    CloseCode, DeviceId, Reconnect, ReflectAck, ReflectFlags, ReflectId, Reflected, ReflectedId, ServerGroup,
    SlotState, ToDevice, TransactionHolder,
};

/// Messages a device has under way before it waits for an acknowledgement.
const WINDOW: usize = 4;
/// Messages of a transaction, at most.
const TRANSACTION_MESSAGES_MAX: usize = 5;
/// How long connecting may take before it is tried again.
pub(super) const CONNECT_PATIENCE: Duration = Duration::from_secs(20);
/// The longest pause between attempts.
const BACK_OFF_MAX: Duration = Duration::from_secs(5);
/// How long the last words of a broken connection are waited for.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What a simulated transaction is about.
const SCOPE: &[u8] = b"simulated";
/// First bytes of what is sealed into an envelope: tells our messages from others.
const MARK: &[u8; 4] = b"hsim";
/// Mark, sender, entry.
pub(super) const BODY_MIN: usize = 4 + 2 + 4;

/// What all groups share.
#[derive(Debug)]
pub(super) struct World {
    pub(super) clock: Clock,
    pub(super) mediator: Mediator,
    pub(super) devices: usize,
    pub(super) messages: usize,
    /// Bytes of a message before it is sealed.
    pub(super) size: usize,
    /// Share of the messages that belong to transactions.
    pub(super) transactions: f64,
    /// Share of the other messages that are ephemeral.
    pub(super) ephemeral: f64,
    /// Between two messages of a device.
    pub(super) pause: Duration,
    /// What the groups' identities say to each other, where there is a chat server for it.
    pub(super) chat: Option<Chat>,
    pub(super) totals: Totals,
}

/// What is counted while it runs. The judgement is the ledgers'.
#[derive(Debug)]
pub(super) struct Totals {
    pub(super) sent: AtomicU64,
    pub(super) acked: AtomicU64,
    pub(super) delivered: AtomicU64,
    pub(super) reconnects: AtomicU64,
    /// Why a device was last without a connection: what a person wants to know when nothing moves.
    pub(super) trouble: Mutex<String>,
    pub(super) latencies: Mutex<Latencies>,
}

/// In microseconds.
#[derive(Debug)]
pub(super) struct Latencies {
    pub(super) to_ack: Histogram<u64>,
    pub(super) to_last_delivery: Histogram<u64>,
}

/// Something a device has to say.
#[derive(Debug, Clone, Copy)]
enum Unit {
    Single,
    Ephemeral,
    Transaction(usize),
}

/// One group of devices.
#[derive(Debug)]
pub(super) struct Group {
    world: Arc<World>,
    /// Its number among the groups.
    number: usize,
    key: GroupKey,
    server_group: ServerGroup,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    ledger: Ledger,
    lanes: Vec<Lane>,
}

/// One device.
#[derive(Debug, Default)]
struct Lane {
    admitted: bool,
    finished: bool,
    leader: bool,
    /// By unit: how many of its messages went into a socket, and whether it is settled.
    said: Vec<usize>,
    done: Vec<bool>,
    /// Entries without acknowledgement on this connection, and the units that are settled by it: those of a transaction are
    /// settled by its commit.
    awaiting: VecDeque<(usize, Option<usize>)>,
    /// As long as what arrives; emptied as fast as the socket takes it.
    to_ack: VecDeque<ReflectedId>,
    lock: Lock,
}

/// What a device knows of the transaction lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Lock {
    #[default]
    Idle,
    Asked,
    Held,
    /// Somebody else holds it.
    Rejected,
    /// Somebody else gave it back.
    Free,
    /// The commit went into the socket.
    Committing {
        transaction: usize,
        unit: usize,
    },
}

impl Group {
    pub(super) fn new(world: &Arc<World>, number: usize, server_group: ServerGroup) -> Arc<Self> {
        let lanes = std::iter::repeat_with(Lane::default).take(world.devices).collect();
        Arc::new(Self {
            world: Arc::clone(world),
            number,
            // Not from the seed: a second run with the same seed meets a server that remembers the first.
            key: GroupKey::generate(),
            server_group,
            state: Mutex::new(State { ledger: Ledger::new(world.devices), lanes }),
            changed: Notify::new(),
        })
    }

    /// Closes the books.
    pub(super) fn tally(&self) -> Tally {
        std::mem::replace(&mut self.lock().ledger, Ledger::new(0)).close()
    }

    /// One device, from its first connection until its group is through.
    ///
    /// # Errors
    /// Why it must not come back.
    pub(super) async fn live(self: Arc<Self>, member: Member, mut rng: fastrand::Rng) -> Result<(), String> {
        let units = self.plan(&mut rng);
        self.with_lane(member, |lane| {
            lane.said = vec![0; units.len()];
            lane.done = vec![false; units.len()];
        });
        let mut config = DeviceConfig::new(self.key.clone(), self.server_group.clone(), device_id(member));
        config.device_info = format!("simulated device {member}").into_bytes();
        let (mut connection, mut attempt) = (0_u32, 0_u32);
        while !(self.lock().is_over() && self.world.chat.as_ref().is_none_or(Chat::is_over)) {
            let connect = Device::connect(&self.world.mediator, &config);
            match tokio::time::timeout(CONNECT_PATIENCE, connect).await {
                Ok(Ok(device)) => {
                    attempt = 0;
                    connection += 1;
                    config.expected_slot_state = SlotState::Existing;
                    let Err(ended) = self.converse(member, connection, device, &units, &mut rng).await else {
                        return Ok(());
                    };
                    self.lock().ended(member, &ended);
                    if ended.reconnect() == Reconnect::UserInteraction {
                        return Err(format!("device {member}: {ended}"));
                    }
                    self.world.totals.reconnects.fetch_add(1, Ordering::Relaxed);
                    self.world.totals.note(ended.to_string());
                }
                // Admitted without hearing of it: the server died between keeping the slot and saying so.
                Ok(Err(ConnectError::NotAdmitted(ended)))
                    if ended.close_code() == Some(CloseCode::DeviceSlotStateMismatch)
                        && config.expected_slot_state == SlotState::New =>
                {
                    config.expected_slot_state = SlotState::Existing;
                }
                Ok(Err(error)) if error.reconnect() == Reconnect::UserInteraction => {
                    return Err(format!("device {member}: {error}"));
                }
                // A certificate that is not trusted will not be trusted the next time.
                Ok(Err(ConnectError::Tls(error))) if error.kind() == std::io::ErrorKind::InvalidData => {
                    return Err(format!("device {member}: {error}"));
                }
                Ok(Err(error)) => self.world.totals.note(error.to_string()),
                Err(_elapsed) => self.world.totals.note("connecting took too long".to_owned()),
            }
            attempt += 1;
            let pause = Duration::from_millis(50).saturating_mul(1 << attempt.min(8)).min(BACK_OFF_MAX);
            tokio::time::sleep(pause.mul_f64(0.5 + rng.f64() / 2.0)).await;
        }
        Ok(())
    }

    fn plan(&self, rng: &mut fastrand::Rng) -> Vec<Unit> {
        let mut units = Vec::new();
        let mut left = self.world.messages;
        // A transaction takes several messages, so it is begun more rarely than its share says.
        let mean = (1 + TRANSACTION_MESSAGES_MAX) as f64 / 2.0;
        let share = self.world.transactions;
        let begin = share / (share + mean * (1.0 - share)).max(f64::MIN_POSITIVE);
        while left > 0 {
            let unit = if rng.f64() < begin {
                Unit::Transaction(rng.usize(1..=TRANSACTION_MESSAGES_MAX.min(left)))
            } else if rng.f64() < self.world.ephemeral {
                Unit::Ephemeral
            } else {
                Unit::Single
            };
            left -= match unit {
                Unit::Transaction(messages) => messages,
                Unit::Single | Unit::Ephemeral => 1,
            };
            units.push(unit);
        }
        units
    }

    /// One connection: says, hears and acknowledges side by side, so that none of them waits for another.
    async fn converse(
        &self,
        member: Member,
        connection: u32,
        mut device: Device,
        units: &[Unit],
        rng: &mut fastrand::Rng,
    ) -> Result<(), Ended> {
        let proxy = device.proxy_stream();
        let (sender, receiver) = device.split();
        self.with_lane(member, |lane| {
            lane.admitted = true;
            lane.awaiting.clear();
            lane.to_ack.clear();
            lane.lock = Lock::Idle;
            lane.leader = false;
        });
        let hear = self.hear(member, connection, receiver);
        tokio::pin!(hear);
        let speak = async {
            self.speak(member, &sender, units, rng).await?;
            self.with_lane(member, |lane| lane.finished = true);
            // The acknowledgements go out before the close frame: both wait in the same queue.
            self.until(|state| (state.is_over() && state.lanes.get(member)?.to_ack.is_empty()).then_some(())).await;
            if let Some(chat) = &self.world.chat {
                chat.over().await;
            }
            sender.close(CloseCode::Normal.code(), "").await
        };
        let chat = async {
            let (Some(chat), Some(proxy)) = (&self.world.chat, proxy) else { return std::future::pending().await };
            // Only the leader's connection is given messages.
            self.until(|state| state.lane(member)?.leader.then_some(())).await;
            chat.converse(self.number, device_id(member), proxy).await
        };
        tokio::select! {
            ended = &mut hear => Err(ended),
            // The mediator ends a connection whose chat server is gone.
            chatted = chat => {
                if let Err(error) = chatted {
                    self.world.totals.note(format!("chat server: {error}"));
                }
                Err(last_words(hear).await)
            }
            // Why nothing can be sent any more is behind what has not been heard yet.
            Err(_) = self.acknowledge(member, &sender) => Err(last_words(hear).await),
            spoken = speak => {
                let ended = last_words(hear).await;
                if spoken.is_ok() { Ok(()) } else { Err(ended) }
            }
        }
    }

    async fn hear(&self, member: Member, connection: u32, mut receiver: Receiver) -> Ended {
        loop {
            match receiver.next().await {
                Ok(payload) => self.heard(member, connection, &payload),
                Err(ended) => return ended,
            }
        }
    }

    /// Books what the mediator says, at once and here: whatever becomes of the connection afterwards, what it promised it owes.
    fn heard(&self, member: Member, connection: u32, payload: &ToDevice) {
        let now = self.world.clock.now().monotonic;
        let mut state = self.lock();
        match payload {
            ToDevice::Reflected(reflected) => self.reflected(&mut state, member, connection, reflected, now),
            ToDevice::ReflectAck(ack) => self.reflect_acked(&mut state, member, *ack, now),
            ToDevice::BeginTransactionAck => state.answered(member, |lock| (lock == Lock::Asked).then_some(Lock::Held)),
            ToDevice::TransactionRejected(holder) => {
                self.held_by_another(&mut state, member, holder);
                state.answered(member, |lock| (lock == Lock::Asked).then_some(Lock::Rejected));
            }
            // Also told to those who did not ask.
            ToDevice::TransactionEnded(holder) => {
                self.held_by_another(&mut state, member, holder);
                state.answered(member, |lock| Some(if lock == Lock::Rejected { Lock::Free } else { lock }));
            }
            ToDevice::CommitTransactionAck => state.commit_acked(member),
            ToDevice::RolePromotedToLeader => {
                if let Some(lane) = state.lane(member) {
                    lane.leader = true;
                }
            }
            ToDevice::ReflectionQueueDry
            | ToDevice::Proxy(_)
            | ToDevice::ServerHello(_)
            | ToDevice::ServerInfo(_)
            | ToDevice::DevicesInfo(_)
            | ToDevice::DropDeviceAck(_)
            | ToDevice::Unknown(_) => {}
        }
        drop(state);
        self.changed.notify_waiters();
    }

    fn reflect_acked(&self, state: &mut State, member: Member, ack: ReflectAck, now: Duration) {
        let Some((entry, unit)) = state.lane(member).and_then(|lane| lane.awaiting.pop_front()) else {
            state.ledger.tally.fault(Fault::Unasked);
            return;
        };
        if u32::try_from(entry) != Ok(ack.reflect_id.0) {
            state.ledger.tally.fault(Fault::LateAck);
        }
        if let Some(took) = state.ledger.acked(member, ack.reflect_id.0 as usize, ack.timestamp_ms, now) {
            self.world.totals.acked.fetch_add(1, Ordering::Relaxed);
            self.world.totals.record(|latencies| &mut latencies.to_ack, took);
        }
        if let (Some(lane), Some(unit)) = (state.lane(member), unit) {
            lane.settle(unit);
        }
    }

    /// Whoever holds the lock is another device of this group, and its scope is what our devices say.
    fn held_by_another(&self, state: &mut State, member: Member, holder: &TransactionHolder) {
        let ours = self.key.open_scope(&holder.encrypted_scope).is_ok_and(|scope| scope == SCOPE);
        let another = (0..self.world.devices).any(|other| other != member && device_id(other) == holder.device_id);
        if !(ours && another) {
            state.ledger.tally.fault(Fault::Foreign);
        }
    }

    fn reflected(&self, state: &mut State, receiver: Member, connection: u32, reflected: &Reflected, now: Duration) {
        let plain = self.key.open_envelope(reflected.envelope()).ok();
        let Some((sender, entry)) = plain.as_deref().and_then(|plain| read_body(plain, self.world.size)) else {
            state.ledger.tally.fault(Fault::Foreign);
            return;
        };
        let seen = Seen {
            receiver,
            connection,
            sender,
            entry,
            reflected_id: reflected.id().0,
            ephemeral: reflected.flags().ephemeral,
            timestamp_ms: reflected.timestamp_ms(),
        };
        let before = state.ledger.tally.arrivals();
        if let Some(took) = state.ledger.arrived(seen, now) {
            self.world.totals.record(|latencies| &mut latencies.to_last_delivery, took);
        }
        // What arrives again is no progress.
        self.world.totals.delivered.fetch_add(state.ledger.tally.arrivals() - before, Ordering::Relaxed);
        if let Some(lane) = state.lane(receiver) {
            lane.to_ack.push_back(reflected.id());
        }
    }

    /// Acknowledges everything, ephemeral messages too, as real clients do.
    async fn acknowledge(&self, member: Member, sender: &Sender) -> Result<(), Ended> {
        loop {
            let id = self.until(|state| state.lane(member)?.to_ack.pop_front()).await;
            sender.ack(id).await?;
            self.changed.notify_waiters();
        }
    }

    async fn speak(
        &self,
        member: Member,
        sender: &Sender,
        units: &[Unit],
        rng: &mut fastrand::Rng,
    ) -> Result<(), Ended> {
        // What is said before a device has a slot is not for that device.
        self.until(|state| state.lanes.iter().all(|lane| lane.admitted).then_some(())).await;
        for (at, unit) in units.iter().enumerate() {
            if self.with_lane(member, |lane| lane.is_done(at)) == Some(true) {
                continue;
            }
            match unit {
                Unit::Single | Unit::Ephemeral => {
                    self.until(|state| (state.lane(member)?.awaiting.len() < WINDOW).then_some(())).await;
                    let kind = if matches!(unit, Unit::Single) { Kind::Single } else { Kind::Ephemeral };
                    self.say(member, sender, kind, at, 0).await?;
                }
                Unit::Transaction(messages) => self.transact(member, sender, *messages, at, rng).await?,
            }
            if !self.world.pause.is_zero() {
                tokio::time::sleep(self.world.pause).await;
            }
        }
        self.until(|state| state.lane(member)?.awaiting.is_empty().then_some(())).await;
        Ok(())
    }

    async fn transact(
        &self,
        member: Member,
        sender: &Sender,
        messages: usize,
        unit: usize,
        rng: &mut fastrand::Rng,
    ) -> Result<(), Ended> {
        let acknowledged = |state: &mut State| state.lane(member)?.awaiting.is_empty().then_some(());
        self.until(acknowledged).await;
        loop {
            self.with_lane(member, |lane| lane.lock = Lock::Asked);
            sender.begin(&self.key.seal_scope(SCOPE), 0).await?;
            let answer = self.until(|state| Some(state.lane(member)?.lock).filter(|lock| *lock != Lock::Asked)).await;
            if answer == Lock::Held {
                break;
            }
            // The lock's end comes behind the rejection, never before it.
            self.until(|state| (state.lane(member)?.lock == Lock::Free).then_some(())).await;
        }
        let transaction = self.lock().ledger.begin(member);
        for part in 0..messages {
            self.say(member, sender, Kind::Staged(transaction), unit, part).await?;
        }
        // Some clients wait for the acknowledgements before they commit, some do not.
        if rng.bool() {
            self.until(acknowledged).await;
        }
        self.lock().committing(member, transaction, unit);
        sender.commit().await?;
        self.until(|state| state.lane(member)?.is_done(unit).then_some(())).await;
        Ok(())
    }

    /// Books a message and puts it into the socket.
    async fn say(&self, member: Member, sender: &Sender, kind: Kind, unit: usize, part: usize) -> Result<(), Ended> {
        let entry = self.lock().say(member, kind, unit, part, self.world.clock.now().monotonic);
        self.world.totals.sent.fetch_add(1, Ordering::Relaxed);
        let reflect_id = ReflectId(u32::try_from(entry).unwrap_or(u32::MAX));
        let envelope = self.key.seal_envelope(&body(member, reflect_id.0, self.world.size));
        sender.reflect_as(reflect_id, &envelope, ReflectFlags { ephemeral: kind == Kind::Ephemeral }).await
    }

    async fn until<T>(&self, mut ready: impl FnMut(&mut State) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            if let Some(value) = ready(&mut self.lock()) {
                return value;
            }
            changed.await;
        }
    }

    fn with_lane<T>(&self, member: Member, change: impl FnOnce(&mut Lane) -> T) -> Option<T> {
        let value = self.lock().lane(member).map(change);
        self.changed.notify_waiters();
        value
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn last_words(hear: impl Future<Output = Ended>) -> Ended {
    let silence = |_| Ended::Lost("no close frame".to_owned());
    tokio::time::timeout(LAST_WORDS, hear).await.unwrap_or_else(silence)
}

impl State {
    fn lane(&mut self, member: Member) -> Option<&mut Lane> {
        self.lanes.get_mut(member)
    }

    /// Books one message of a unit that goes into the socket; says under which number.
    fn say(&mut self, member: Member, kind: Kind, unit: usize, part: usize, now: Duration) -> usize {
        let said = self.lanes.get_mut(member).and_then(|lane| lane.said.get_mut(unit));
        let again = said.is_some_and(|said| {
            let again = part < *said;
            *said = (*said).max(part + 1);
            again
        });
        let entry = self.ledger.say(member, kind, again, now);
        if let Some(lane) = self.lane(member) {
            match kind {
                Kind::Single => lane.awaiting.push_back((entry, Some(unit))),
                Kind::Staged(_) => lane.awaiting.push_back((entry, None)),
                // Nobody acknowledges it.
                Kind::Ephemeral => lane.settle(unit),
            }
        }
        entry
    }

    /// What the mediator says about the lock changes it, or nobody asked for it.
    fn answered(&mut self, member: Member, change: impl FnOnce(Lock) -> Option<Lock>) {
        let Some(lane) = self.lanes.get_mut(member) else { return };
        match change(lane.lock) {
            Some(lock) => lane.lock = lock,
            None => self.ledger.tally.fault(Fault::Unasked),
        }
    }

    /// The commit is about to go into the socket.
    fn committing(&mut self, member: Member, transaction: usize, unit: usize) {
        self.ledger.commit_sent(member, transaction);
        if let Some(lane) = self.lane(member) {
            lane.lock = Lock::Committing { transaction, unit };
        }
    }

    /// A lock that was held too long was taken back before the commit arrived.
    fn ended(&mut self, member: Member, ended: &Ended) {
        if let Some(Lock::Committing { transaction, .. }) = self.lane(member).map(|lane| lane.lock)
            && ended.close_code() == Some(CloseCode::TransactionTtlReached)
        {
            self.ledger.expired(member, transaction);
        }
    }

    /// From here on everybody is owed what was staged.
    fn commit_acked(&mut self, member: Member) {
        let Some(lane) = self.lanes.get_mut(member) else { return };
        let Lock::Committing { transaction, unit } = lane.lock else {
            self.ledger.tally.fault(Fault::Unasked);
            return;
        };
        lane.lock = Lock::Idle;
        lane.settle(unit);
        self.ledger.committed(member, transaction);
    }

    /// Whether everybody has said everything, and everything due has arrived.
    fn is_over(&self) -> bool {
        self.lanes.iter().all(|lane| lane.finished) && self.ledger.is_settled()
    }
}

impl Lane {
    fn settle(&mut self, unit: usize) {
        self.done.get_mut(unit).into_iter().for_each(|done| *done = true);
    }

    fn is_done(&self, unit: usize) -> bool {
        self.done.get(unit).is_some_and(|done| *done)
    }
}

impl Totals {
    pub(super) fn new() -> Result<Self, hdrhistogram::CreationError> {
        let histogram = || Histogram::new_with_bounds(1, 600_000_000, 3);
        Ok(Self {
            sent: AtomicU64::new(0),
            acked: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            trouble: Mutex::default(),
            latencies: Mutex::new(Latencies { to_ack: histogram()?, to_last_delivery: histogram()? }),
        })
    }

    fn note(&self, trouble: String) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    fn record(&self, which: impl FnOnce(&mut Latencies) -> &mut Histogram<u64>, took: Duration) {
        let mut latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        which(&mut latencies).saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1));
    }
}

const fn device_id(member: Member) -> DeviceId {
    DeviceId(member as u64 + 1)
}

fn body(sender: Member, entry: u32, size: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(size.max(BODY_MIN));
    body.extend_from_slice(MARK);
    body.extend_from_slice(&u16::try_from(sender).unwrap_or(u16::MAX).to_le_bytes());
    body.extend_from_slice(&entry.to_le_bytes());
    body.resize(size.max(BODY_MIN), 0xa5);
    body
}

/// Sender and entry; nothing when the message is not one of ours, or not whole.
fn read_body(body: &[u8], size: usize) -> Option<(Member, usize)> {
    let mut r = crate::wire::bytes::Reader::new(body);
    let mark: [u8; 4] = r.array().ok()?;
    let (sender, entry) = (r.u16().ok()?, r.u32().ok()?);
    (mark == *MARK && body.len() == size.max(BODY_MIN)).then_some((sender.into(), entry as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Trust;
    use crate::wire::d2m::Envelope;

    /// Two devices, the first of which has one transaction of two messages to say.
    fn group() -> Arc<Group> {
        let world = World {
            clock: Clock::system(),
            mediator: Mediator::new("ws://mediator.invalid", &Trust::System).unwrap(),
            devices: 2,
            messages: 2,
            size: BODY_MIN,
            transactions: 1.0,
            ephemeral: 0.0,
            pause: Duration::ZERO,
            chat: None,
            totals: Totals::new().unwrap(),
        };
        let group = Group::new(&Arc::new(world), 0, ServerGroup::new("a0").unwrap());
        group.with_lane(0, |lane| (lane.said, lane.done) = (vec![0], vec![false]));
        group
    }

    fn hears(group: &Group, member: Member, payload: &ToDevice) {
        group.heard(member, 1, payload);
    }

    /// The first device stages both of its messages and is acknowledged; says under which number.
    fn stages(group: &Group) -> usize {
        group.lock().lane(0).unwrap().lock = Lock::Asked;
        hears(group, 0, &ToDevice::BeginTransactionAck);
        let transaction = group.lock().ledger.begin(0);
        for part in 0..2 {
            let entry = group.lock().say(0, Kind::Staged(transaction), 0, part, Duration::ZERO);
            let reflect_id = ReflectId(u32::try_from(entry).unwrap());
            hears(group, 0, &ToDevice::ReflectAck(ReflectAck { reflect_id, timestamp_ms: 9 }));
        }
        transaction
    }

    fn arrives(group: &Group, entry: u32) {
        let envelope = Envelope::copy_from(&group.key.seal_envelope(&body(0, entry, BODY_MIN)));
        hears(
            group,
            1,
            &ToDevice::Reflected(Reflected::new(envelope, ReflectFlags::default(), ReflectedId(entry + 1), 9)),
        );
    }

    #[test]
    fn a_commit_is_booked_when_its_acknowledgement_is_heard() {
        let group = group();
        let transaction = stages(&group);
        group.lock().committing(0, transaction, 0);
        assert!(group.lock().ledger.is_settled());
        hears(&group, 0, &ToDevice::CommitTransactionAck);
        // Nobody who waits for it was woken yet, and the connection may be gone already.
        assert!(!group.lock().ledger.is_settled());
        assert_eq!(group.with_lane(0, |lane| lane.is_done(0)), Some(true), "it is not said again");
        arrives(&group, 0);
        let tally = group.tally();
        assert_eq!((tally.committed, tally.lost), (2, 1));
    }

    #[test]
    fn an_answer_that_nobody_asked_for_is_a_fault() {
        let group = group();
        stages(&group);
        let nobody = TransactionHolder { device_id: DeviceId(7), encrypted_scope: group.key.seal_scope(SCOPE) };
        for stray in [ToDevice::CommitTransactionAck, ToDevice::BeginTransactionAck] {
            hears(&group, 0, &stray);
        }
        let stranger = TransactionHolder { device_id: device_id(1), encrypted_scope: vec![0; 40] };
        for holder in [nobody, stranger] {
            hears(&group, 0, &ToDevice::TransactionEnded(holder));
        }
        let faults = group.tally().faults;
        assert_eq!(faults.into_iter().collect::<Vec<_>>(), [(Fault::Foreign, 2), (Fault::Unasked, 2)]);
    }

    #[test]
    fn what_a_broken_connection_left_of_a_transaction_is_said_again_and_counted_so() {
        let group = group();
        let transaction = group.lock().ledger.begin(0);
        group.lock().say(0, Kind::Staged(transaction), 0, 0, Duration::ZERO);
        // Begun again on the next connection: one message was said before, one is new.
        let again = group.lock().ledger.begin(0);
        for part in 0..2 {
            group.lock().say(0, Kind::Staged(again), 0, part, Duration::ZERO);
        }
        let tally = group.tally();
        assert_eq!((tally.sent, tally.resent, tally.lost), (3, 1, 0));
    }
}
