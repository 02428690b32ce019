//! One group of devices: each says what its script holds, acknowledges what it gets, and comes back when its connection
//! breaks, until everything that is due has arrived everywhere.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::OptionFuture;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::chat::Chat;
use super::ledger::{EntryId, Fault, Kind, Ledger, Member, Seen, Tally, Tick};
use super::line::{Line, Tap};
use super::scenario::Scenario;
use super::script::{Agenda, Event, Script, Unit, What};
use super::totals::{Totals, Which};
use crate::client::{ConnectError, Device, DeviceConfig, Ended, GroupKey, Mediator, Receiver, Sender};
use crate::time::Clock;
use crate::wire::d2m::{
    CloseCode, DeviceId, FromDevice, Reconnect, ReflectAck, ReflectFlags, ReflectId, Reflected, ReflectedId,
    ServerGroup, SlotState, ToDevice, TransactionHolder,
};

/// Messages a device has under way before it waits for an acknowledgement: without a schedule, and with one.
const WINDOW: usize = 4;
const WINDOW_BY_SCHEDULE: usize = 64;
/// How long connecting may take before it is tried again.
pub(super) const CONNECT_PATIENCE: Duration = Duration::from_secs(20);
/// Devices that connect at once: more would only wait for this process.
pub(super) const HANDSHAKES: usize = 256;
/// The longest pause between attempts.
const BACK_OFF_MAX: Duration = Duration::from_secs(5);
/// How long the last words of a broken connection are waited for.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How often that is waited for the end of a connection that a second login replaces, as long as it still says something: this
/// process may be late in reading.
const DUPLICATE_PATIENCE: u32 = 12;
/// How long a device that is to die waits for something it can leave unacknowledged.
const DEATH_PATIENCE: Duration = Duration::from_secs(5);
/// How much longer than asked for a lock may be held until that is noticed: timers are not exact.
const TTL_SLACK: Duration = Duration::from_secs(1);

/// What a simulated transaction is about.
const SCOPE: &[u8] = b"simulated";
/// First bytes of what is sealed into an envelope: tells our messages from others.
const MARK: &[u8; 4] = b"hsim";
/// Mark, sender, entry, length of all.
pub(super) const BODY_MIN: usize = 4 + 2 + 4 + 4;

/// What all groups share.
#[derive(Debug)]
pub(super) struct World {
    pub(super) clock: Clock,
    pub(super) mediator: Mediator,
    pub(super) scenario: Scenario,
    /// What the groups' identities say to each other, where there is a chat server for it.
    pub(super) chat: Option<Chat>,
    pub(super) totals: Totals,
    /// From then on nobody begins anything, and everybody comes back to fetch what is due.
    pub(super) ending: CancellationToken,
    pub(super) handshakes: Semaphore,
    /// Devices that are to be brought to life; one of each group at most.
    pub(super) births: Mutex<Vec<Birth>>,
    pub(super) born: Notify,
}

/// A device that takes the place of a dropped one.
#[derive(Debug)]
pub(super) struct Birth {
    pub(super) group: Arc<Group>,
    pub(super) member: Member,
    /// The messages that its predecessor left unsaid.
    pub(super) left: Option<usize>,
    pub(super) rng: fastrand::Rng,
}

/// One group of devices.
#[derive(Debug)]
pub(super) struct Group {
    me: Weak<Self>,
    world: Arc<World>,
    /// Its number among the groups.
    number: usize,
    key: GroupKey,
    server_group: ServerGroup,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    ledger: Ledger,
    lanes: Vec<Lane>,
    churn: Churn,
}

/// Whether a device takes another one's place; one at a time.
#[derive(Debug, Default)]
enum Churn {
    #[default]
    None,
    Dropping {
        dropper: Member,
        victim: Member,
        rng: fastrand::Rng,
    },
    /// The victim is gone; this is the newcomer.
    Coming(Member),
}

/// One device.
#[derive(Debug, Default)]
struct Lane {
    admitted: bool,
    finished: bool,
    /// It has no slot any more and will not come back.
    gone: bool,
    leader: bool,
    /// Counts what the mediator said.
    heard: u64,
    /// Messages that were not drawn yet.
    left: Option<usize>,
    /// Since when it wants to be connected and up to date.
    wants: Option<Duration>,
    /// Units that are begun and not settled, and how many of their messages went into a socket.
    open: BTreeMap<usize, usize>,
    /// Entries without acknowledgement on this connection, and the units that are settled by it: those of a transaction are
    /// settled by its commit.
    awaiting: VecDeque<(usize, Option<usize>)>,
    /// As long as what arrives; emptied as fast as the socket takes it.
    to_ack: VecDeque<(ReflectedId, Option<EntryId>)>,
    /// It acknowledges nothing any more: it is about to die.
    mute: bool,
    lock: Lock,
    /// Since when it holds the lock, as far as it knows; then for how long it did.
    granted_at: Duration,
    /// The unit it asked for the lock for.
    transacting: Option<usize>,
    /// For how long it holds the lock by plan.
    hold: Duration,
    /// Who has it instead.
    behind: Option<Member>,
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
        held: Duration,
        since: Duration,
    },
}

/// How one connection ended, and what the device makes of it.
enum After {
    /// Everything is said and has arrived.
    Over,
    Ended(Ended),
    /// The device let it go without a word.
    Lost,
    /// The device closed it, to come back after so long.
    Away(Duration),
}

/// A connection that has been admitted.
struct Admission {
    device: Device,
    tap: Arc<Tap>,
    asked: Tick,
}

/// A second login.
type Rival = JoinHandle<Result<Admission, ConnectError>>;

impl Group {
    pub(super) fn new(world: &Arc<World>, number: usize, server_group: ServerGroup) -> Arc<Self> {
        let mut state = State::default();
        for _ in 0..world.scenario.devices.get() {
            state.joins(world.scenario.messages.and_then(|messages| usize::try_from(messages).ok()));
        }
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            world: Arc::clone(world),
            number,
            // Not from the seed: a second run with the same seed meets a server that remembers the first.
            key: GroupKey::generate(),
            server_group,
            state: Mutex::new(state),
            changed: Notify::new(),
        })
    }

    /// Closes the books.
    pub(super) fn tally(&self) -> Tally {
        std::mem::take(&mut self.lock().ledger).close()
    }

    /// What went wrong so far.
    pub(super) fn faults(&self) -> u64 {
        self.lock().ledger.tally.faults.values().sum()
    }

    /// One device, from its first connection until its group is through, or it is dropped.
    ///
    /// # Errors
    /// Why it must not come back.
    pub(super) async fn live(
        self: Arc<Self>,
        member: Member,
        arrives_at: Duration,
        left: Option<usize>,
        mut rng: fastrand::Rng,
    ) -> Result<(), String> {
        let world = &self.world;
        if !world.rest_until(arrives_at).await {
            // Nobody of this group comes any more: nobody waits for it either.
            self.with_lane(member, |lane| lane.gone = true);
            return Ok(());
        }
        let mut script = Script::new(&world.scenario, left, BODY_MIN, rng.fork());
        let mut agenda = Agenda::new(&world.scenario, rng.fork());
        let mut config = DeviceConfig::new(self.key.clone(), self.server_group.clone(), device_id(member));
        config.device_info = format!("simulated device {member}").into_bytes();
        let (mut connection, mut attempt) = (0_u32, 0_u32);
        let mut rival: Option<Rival> = None;
        while !self.is_over() {
            let admitted = match rival.take() {
                Some(rival) => rival.await.unwrap_or_else(|_| Err(ConnectError::NotAdmitted(given_up()))),
                None => {
                    let now = self.now();
                    self.with_lane(member, |lane| lane.wants.get_or_insert(now).to_owned());
                    self.connect(member, &config).await
                }
            };
            match admitted {
                Ok(admission) => {
                    attempt = 0;
                    connection += 1;
                    config.expected_slot_state = SlotState::Existing;
                    let online = world.totals.online();
                    let talk = Talk { member, connection, config: &config };
                    let after = self.converse(talk, admission, &mut script, &mut agenda, &mut rival).await;
                    drop(online);
                    self.disconnected(member);
                    match after {
                        After::Over => return Ok(()),
                        After::Lost => {}
                        After::Away(lasts) => {
                            let since = self.now();
                            // It does not want to be there any more.
                            self.with_lane(member, |lane| lane.wants = None);
                            self.stays_away(lasts).await;
                            script.was_away(self.now().saturating_sub(since));
                            continue;
                        }
                        After::Ended(ended) => {
                            world.totals.reconnects.fetch_add(1, Ordering::Relaxed);
                            let by_rival =
                                rival.is_some() && ended.close_code() == Some(CloseCode::DuplicateConnection);
                            if by_rival {
                                continue;
                            }
                            self.lock().ended(member, &ended);
                            if !self.lock().ledger.is_dropped(member) {
                                world.totals.note(ended.to_string());
                            }
                            match ended.close_code() {
                                Some(CloseCode::Dropped | CloseCode::ReflectionQueueLimit) => {
                                    return self.evicted(member, &ended);
                                }
                                _ if ended.reconnect() == Reconnect::UserInteraction => {
                                    return Err(format!("device {member}: {ended}"));
                                }
                                _ => {}
                            }
                        }
                    }
                }
                Err(ConnectError::NotAdmitted(ended)) if ended.close_code() == Some(CloseCode::Dropped) => {
                    return self.evicted(member, &ended);
                }
                // Admitted without hearing of it: the server died between keeping the slot and saying so.
                Err(ConnectError::NotAdmitted(ended))
                    if ended.close_code() == Some(CloseCode::DeviceSlotStateMismatch) =>
                {
                    if config.expected_slot_state == SlotState::Existing {
                        return self.evicted(member, &ended);
                    }
                    config.expected_slot_state = SlotState::Existing;
                }
                Err(error) if error.reconnect() == Reconnect::UserInteraction => {
                    return Err(format!("device {member}: {error}"));
                }
                // A certificate that is not trusted will not be trusted the next time.
                Err(ConnectError::Tls(error)) if error.kind() == std::io::ErrorKind::InvalidData => {
                    return Err(format!("device {member}: {error}"));
                }
                Err(error) => world.totals.note(error.to_string()),
            }
            attempt += 1;
            let pause = Duration::from_millis(50).saturating_mul(1 << attempt.min(8)).min(BACK_OFF_MAX);
            tokio::time::sleep(pause.mul_f64(0.5 + rng.f64() / 2.0)).await;
        }
        Ok(())
    }

    async fn connect(&self, member: Member, config: &DeviceConfig) -> Result<Admission, ConnectError> {
        let _one_of_few = self.world.handshakes.acquire().await;
        let asked = self.lock().ledger.asks(member);
        let (tap, group) = (Arc::new(Tap::default()), config.url_info());
        let handshake = async {
            let line = |stream| Line::new(stream, Arc::clone(&tap));
            Device::handshake(self.world.mediator.open_through(&group, line).await?, config).await
        };
        let took_too_long = |_| Err(ConnectError::Tcp(std::io::ErrorKind::TimedOut.into()));
        let device = tokio::time::timeout(CONNECT_PATIENCE, handshake).await.unwrap_or_else(took_too_long)?;
        Ok(Admission { device, tap, asked })
    }

    /// Its slot is gone. Somebody of the group dropped it, or else the mediator did, which owes it something.
    #[expect(clippy::unnecessary_wraps, reason = "one of the ways a life ends")]
    fn evicted(&self, member: Member, ended: &Ended) -> Result<(), String> {
        let now = self.now();
        let mut state = self.lock();
        if !state.ledger.is_dropped(member) {
            state.ledger.tally.fault(Fault::Evicted);
            self.world.totals.note(format!("device {member}: {ended}"));
            state.ledger.gone(member, now);
        }
        if let Some(lane) = state.lane(member) {
            lane.gone = true;
        }
        drop(state);
        self.changed.notify_waiters();
        Ok(())
    }

    /// What was for certain not acknowledged comes again.
    fn disconnected(&self, member: Member) {
        let now = self.now();
        let mut state = self.lock();
        let unacked: Vec<_> =
            state.lane(member).map(|lane| std::mem::take(&mut lane.to_ack)).into_iter().flatten().collect();
        state.ledger.disconnected(member, unacked.into_iter().filter_map(|(_, entry)| entry), now);
        drop(state);
        self.changed.notify_waiters();
    }

    async fn stays_away(&self, lasts: Duration) {
        let until = self.now() + lasts;
        tokio::select! {
            _ended = self.world.rest_until(until) => {}
            // Everybody waits for this one.
            () = self.until(|state| state.all_finished().then_some(())) => {}
        }
    }

    /// One connection: says, hears and acknowledges side by side, so that none of them waits for another.
    async fn converse(
        self: &Arc<Self>,
        talk: Talk<'_>,
        admission: Admission,
        script: &mut Script,
        agenda: &mut Agenda,
        rival: &mut Option<Rival>,
    ) -> After {
        let Admission { mut device, tap, asked } = admission;
        let Talk { member, connection, .. } = talk;
        let proxy = device.proxy_stream();
        let waiting = device.server_info().reflection_queue_length;
        let (sender, receiver) = device.split();
        let unfinished_drop = {
            let mut state = self.lock();
            state.ledger.admitted(member, asked, waiting);
            if matches!(state.churn, Churn::Coming(newcomer) if newcomer == member) {
                state.churn = Churn::None;
            }
            if let Some(lane) = state.lane(member) {
                lane.admitted = true;
                lane.awaiting.clear();
                lane.to_ack.clear();
                lane.lock = Lock::Idle;
                lane.leader = false;
                lane.mute = false;
            }
            match state.churn {
                Churn::Dropping { dropper, victim, .. } if dropper == member => Some(victim),
                _ => None,
            }
        };
        self.changed.notify_waiters();
        let hear = self.hear(member, connection, receiver);
        tokio::pin!(hear);
        let speak = async {
            if let Some(victim) = unfinished_drop {
                sender.send(&FromDevice::DropDevice(device_id(victim))).await?;
            }
            self.speak(member, &sender, script).await?;
            // What nobody is known to be owed may wait there, too.
            self.until(|state| state.ledger.is_dry(member).then_some(())).await;
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
            ended = &mut hear => After::Ended(ended),
            // The mediator ends a connection whose chat server is gone.
            chatted = chat => {
                if let Err(error) = chatted {
                    self.world.totals.note(format!("chat server: {error}"));
                }
                tap.open();
                After::Ended(last_words(hear).await)
            }
            // Why nothing can be sent any more is behind what has not been heard yet.
            Err(_) = self.acknowledge(member, &sender) => {
                tap.open();
                After::Ended(last_words(hear).await)
            }
            spoken = speak => {
                tap.open();
                let ended = last_words(hear).await;
                if spoken.is_ok() { After::Over } else { After::Ended(ended) }
            }
            after = self.disturb(talk, &sender, &tap, agenda, rival) => {
                match &after {
                    After::Lost => sender.abort(),
                    _ => {
                        tap.open();
                        // Whatever is still said on the way out is booked.
                        if sender.close(CloseCode::Normal.code(), "").await.is_ok() {
                            last_words(hear).await;
                        }
                    }
                }
                after
            }
        }
    }

    /// What becomes of the device while it is connected. Returns when that ends the connection.
    async fn disturb(
        self: &Arc<Self>,
        talk: Talk<'_>,
        sender: &Sender,
        tap: &Tap,
        agenda: &mut Agenda,
        rival: &mut Option<Rival>,
    ) -> After {
        let Talk { member, config, .. } = talk;
        let world = &self.world;
        loop {
            let Some((at, event)) = agenda.next(self.now(), world.scenario.devices.get()) else {
                return std::future::pending().await;
            };
            world.clock.sleep_until(Some(at)).await;
            let lasts = agenda.begin(event);
            if world.ending.is_cancelled() || self.lock().all_finished() {
                return std::future::pending().await;
            }
            match event {
                Event::Offline => {
                    world.totals.happened(event);
                    return After::Away(lasts);
                }
                Event::LeaderLeaves => {
                    if self.with_lane(member, |lane| lane.leader) == Some(true) {
                        world.totals.happened(event);
                        return After::Away(lasts);
                    }
                }
                Event::Drop => {
                    world.totals.happened(event);
                    return After::Lost;
                }
                Event::Kill => {
                    self.with_lane(member, |lane| lane.mute = true);
                    let unacknowledged = self.until(|state| (!state.lane(member)?.to_ack.is_empty()).then_some(()));
                    if tokio::time::timeout(DEATH_PATIENCE, unacknowledged).await.is_ok() {
                        world.totals.happened(event);
                        return After::Lost;
                    }
                    self.with_lane(member, |lane| lane.mute = false);
                }
                Event::Delay | Event::Stall => {
                    world.totals.happened(event);
                    if event == Event::Delay {
                        tap.slow()
                    } else {
                        tap.shut()
                    }
                    tokio::select! {
                        () = tokio::time::sleep(lasts) => {}
                        () = world.ending.cancelled() => {}
                    }
                    tap.open();
                }
                Event::Replace => {
                    let victim = self.lock().drops(member, agenda, self.now());
                    if let Some(victim) = victim {
                        world.totals.happened(event);
                        if sender.send(&FromDevice::DropDevice(device_id(victim))).await.is_err() {
                            return std::future::pending().await;
                        }
                    }
                }
                Event::Duplicate => {
                    world.totals.happened(event);
                    let (group, config) = (Arc::clone(self), config.clone());
                    let (told, admitted) = oneshot::channel();
                    *rival = Some(tokio::spawn(async move {
                        let admission = group.connect(member, &config).await;
                        if admission.is_ok() {
                            told.send(()).unwrap_or_default();
                        }
                        admission
                    }));
                    if admitted.await.is_err() {
                        // It was not let in, so this connection goes on.
                        if let Some(Ok(Err(error))) = OptionFuture::from(rival.take()).await {
                            world.totals.note(format!("second login: {error}"));
                        }
                        continue;
                    }
                    // That should be the end of this connection, behind what it had to say before.
                    let said = || self.lock().lane(member).map(|lane| lane.heard);
                    for _ in 0..DUPLICATE_PATIENCE {
                        let before = said();
                        tokio::time::sleep(LAST_WORDS).await;
                        if said() == before {
                            break;
                        }
                    }
                    self.lock().ledger.tally.fault(Fault::NotReplaced);
                    return After::Lost;
                }
                Event::Server => {}
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
        let now = self.now();
        let mut state = self.lock();
        if let Some(lane) = state.lane(member) {
            lane.heard += 1;
        }
        match payload {
            ToDevice::Reflected(reflected) => self.reflected(&mut state, member, connection, reflected, now),
            ToDevice::ReflectAck(ack) => self.reflect_acked(&mut state, member, *ack, now),
            ToDevice::BeginTransactionAck => {
                if let Some(lane) = state.lane(member) {
                    lane.granted_at = now;
                }
                state.answered(member, |lock| (lock == Lock::Asked).then_some(Lock::Held));
            }
            ToDevice::TransactionRejected(holder) => {
                self.held_by_another(&mut state, member, holder);
                state.answered(member, |lock| (lock == Lock::Asked).then_some(Lock::Rejected));
            }
            // Also told to those who did not ask.
            ToDevice::TransactionEnded(holder) => {
                self.held_by_another(&mut state, member, holder);
                state.answered(member, |lock| Some(if lock == Lock::Rejected { Lock::Free } else { lock }));
            }
            ToDevice::CommitTransactionAck => {
                let since = state.commit_acked(member, self.world.scenario.transactions.ttl_s(), now);
                if let Some(since) = since {
                    self.world.totals.record(Which::Commit, now.saturating_sub(since));
                }
            }
            ToDevice::RolePromotedToLeader => {
                state.ledger.leads(member);
                if let Some(lane) = state.lane(member) {
                    lane.leader = true;
                }
            }
            ToDevice::ReflectionQueueDry => {
                state.ledger.dry(member);
                if let Some(wants) = state.lane(member).and_then(|lane| lane.wants.take()) {
                    self.world.totals.record(Which::Dry, now.saturating_sub(wants));
                }
            }
            ToDevice::DropDeviceAck(dropped) => self.dropped(&mut state, member, *dropped, now),
            ToDevice::Proxy(_)
            | ToDevice::ServerHello(_)
            | ToDevice::ServerInfo(_)
            | ToDevice::DevicesInfo(_)
            | ToDevice::Unknown(_) => {}
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// A device is gone for good, and another one comes in its place.
    fn dropped(&self, state: &mut State, dropper: Member, dropped: DeviceId, now: Duration) {
        let (victim, rng) = match std::mem::take(&mut state.churn) {
            Churn::Dropping { dropper: asked, victim, rng } if asked == dropper && device_id(victim) == dropped => {
                (victim, rng)
            }
            other => {
                state.churn = other;
                state.ledger.tally.fault(Fault::Unasked);
                return;
            }
        };
        state.ledger.gone(victim, now);
        let left = state.lane(victim).and_then(|lane| {
            lane.gone = true;
            lane.left
        });
        let member = state.joins(left);
        state.churn = Churn::Coming(member);
        let Some(group) = self.me.upgrade() else { return };
        let birth = Birth { group, member, left, rng };
        self.world.births.lock().unwrap_or_else(PoisonError::into_inner).push(birth);
        self.world.born.notify_one();
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
            self.world.totals.record(Which::Ack, took);
        }
        if let (Some(lane), Some(unit)) = (state.lane(member), unit) {
            lane.open.remove(&unit);
        }
    }

    /// Whoever holds the lock is another device of this group, and its scope is what our devices say.
    fn held_by_another(&self, state: &mut State, member: Member, holder: &TransactionHolder) {
        let ours = self.key.open_scope(&holder.encrypted_scope).is_ok_and(|scope| scope == SCOPE);
        let another = (0..state.lanes.len()).find(|other| *other != member && device_id(*other) == holder.device_id);
        if !ours || another.is_none() {
            state.ledger.tally.fault(Fault::Foreign);
        }
        if let Some(lane) = state.lane(member) {
            lane.behind = another;
        }
    }

    fn reflected(&self, state: &mut State, receiver: Member, connection: u32, reflected: &Reflected, now: Duration) {
        let plain = self.key.open_envelope(reflected.envelope()).ok();
        let Some((sender, entry)) = plain.as_deref().and_then(read_body) else {
            state.ledger.tally.fault(Fault::Foreign);
            return;
        };
        let ephemeral = reflected.flags().ephemeral;
        let seen = Seen {
            receiver,
            connection,
            sender,
            entry,
            reflected_id: reflected.id().0,
            ephemeral,
            timestamp_ms: reflected.timestamp_ms(),
        };
        let before = state.ledger.tally.arrivals();
        if let Some(took) = state.ledger.arrived(seen, now) {
            self.world.totals.record(Which::LastDelivery, took);
        }
        // What arrives again is no progress.
        self.world.totals.delivered.fetch_add(state.ledger.tally.arrivals() - before, Ordering::Relaxed);
        if let Some(lane) = state.lane(receiver) {
            lane.to_ack.push_back((reflected.id(), (!ephemeral).then_some((sender, entry))));
        }
    }

    /// Acknowledges everything, ephemeral messages too, as real clients do.
    async fn acknowledge(&self, member: Member, sender: &Sender) -> Result<(), Ended> {
        loop {
            let id = self.until(|state| state.lane(member).filter(|lane| !lane.mute)?.to_ack.pop_front()).await;
            sender.ack(id.0).await?;
            self.changed.notify_waiters();
        }
    }

    async fn speak(&self, member: Member, sender: &Sender, script: &mut Script) -> Result<(), Ended> {
        // So that it is known to whom everything is owed.
        let devices = self.world.scenario.devices.get();
        let is_there = |lane: &Lane| lane.admitted || lane.gone;
        self.until(|state| state.lanes.iter().take(devices).all(is_there).then_some(())).await;
        // What a broken connection left.
        // Nobody waits for any of this, so nobody is woken.
        let is_open = |unit: &Unit| self.lock().lane(member).is_some_and(|lane| lane.open.contains_key(&unit.number));
        script.begun.retain(is_open);
        for unit in script.begun.clone() {
            script.put_off(self.say_unit(member, sender, &unit).await?);
        }
        let ending = &self.world.ending;
        while !ending.is_cancelled() {
            let Some(due_at) = script.next(self.now()) else { break };
            if let Some(due_at) = due_at
                && !self.world.rest_until(due_at).await
            {
                break;
            }
            let Some(unit) = script.begin(self.now()) else { break };
            if let Some(lane) = self.lock().lane(member) {
                lane.left = script.left();
                lane.open.insert(unit.number, 0);
            }
            script.put_off(self.say_unit(member, sender, &unit).await?);
            script.begun.retain(is_open);
        }
        self.until(|state| state.lane(member)?.open.is_empty().then_some(())).await;
        if self.world.scenario.duration.is_some() {
            ending.cancelled().await;
        }
        Ok(())
    }

    /// Returns how long it waited for what is not the mediator's to hasten.
    async fn say_unit(&self, member: Member, sender: &Sender, unit: &Unit) -> Result<Duration, Ended> {
        let window = if self.world.scenario.is_open() { WINDOW_BY_SCHEDULE } else { WINDOW };
        let due_at = unit.due_at.unwrap_or_default();
        let (kind, size) = match &unit.what {
            What::Single(size) => (Kind::Single, *size),
            What::Ephemeral(size) => (Kind::Ephemeral, *size),
            What::Transaction { sizes, hold, waits } => {
                return self.transact(member, sender, unit, sizes, *hold, *waits).await;
            }
        };
        self.until(|state| (state.lane(member)?.awaiting.len() < window).then_some(())).await;
        self.say(member, sender, Said { kind, unit: unit.number, part: 0, size, due_at }).await?;
        Ok(Duration::ZERO)
    }

    async fn transact(
        &self,
        member: Member,
        sender: &Sender,
        unit: &Unit,
        sizes: &[usize],
        hold: Duration,
        waits: bool,
    ) -> Result<Duration, Ended> {
        let by_schedule = unit.due_at.filter(|_| self.world.scenario.is_open());
        let unit = unit.number;
        let acknowledged = |state: &mut State| state.lane(member)?.awaiting.is_empty().then_some(());
        self.until(acknowledged).await;
        // Only what others hold the lock for by plan. What the mediator takes for their transactions is its own latency.
        let mut waited = Duration::ZERO;
        loop {
            self.with_lane(member, |lane| {
                (lane.lock, lane.transacting, lane.hold) = (Lock::Asked, Some(unit), hold);
            });
            sender.begin(&self.key.seal_scope(SCOPE), self.world.scenario.transactions.ttl_s()).await?;
            let answer = self.until(|state| Some(state.lane(member)?.lock).filter(|lock| *lock != Lock::Asked)).await;
            if answer == Lock::Held {
                break;
            }
            let since = self.now();
            let by_plan = self.lock().hold_before(member);
            // The lock's end comes behind the rejection, never before it.
            self.until(|state| (state.lane(member)?.lock == Lock::Free).then_some(())).await;
            waited += self.now().saturating_sub(since).min(by_plan);
        }
        let transaction = self.lock().ledger.begin(member);
        for (part, size) in sizes.iter().enumerate() {
            let due_at = by_schedule.map_or_else(|| self.now(), |due_at| due_at + waited);
            let said = Said { kind: Kind::Staged(transaction), unit, part, size: *size, due_at };
            self.say(member, sender, said).await?;
        }
        if waits {
            self.until(acknowledged).await;
        }
        if !hold.is_zero() {
            self.world.rest_until(self.now() + hold).await;
        }
        let now = self.now();
        self.lock().committing(member, transaction, unit, now);
        sender.commit().await?;
        self.until(|state| (!state.lane(member)?.open.contains_key(&unit)).then_some(())).await;
        Ok(waited + hold)
    }

    /// Books a message and puts it into the socket.
    async fn say(&self, member: Member, sender: &Sender, said: Said) -> Result<(), Ended> {
        let entry = self.lock().say(member, &said, self.now());
        self.world.totals.sent.fetch_add(1, Ordering::Relaxed);
        let reflect_id = ReflectId(u32::try_from(entry).unwrap_or(u32::MAX));
        let envelope = self.key.seal_envelope(&body(member, reflect_id.0, said.size));
        sender.reflect_as(reflect_id, &envelope, ReflectFlags { ephemeral: said.kind == Kind::Ephemeral }).await
    }

    /// Whether this group is through.
    fn is_over(&self) -> bool {
        self.lock().is_over() && self.world.chat.as_ref().is_none_or(Chat::is_over)
    }

    fn now(&self) -> Duration {
        self.world.clock.now().monotonic
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

/// Which connection of which device.
#[derive(Debug, Clone, Copy)]
struct Talk<'a> {
    member: Member,
    connection: u32,
    config: &'a DeviceConfig,
}

/// One message that goes into a socket.
#[derive(Debug, Clone, Copy)]
struct Said {
    kind: Kind,
    unit: usize,
    /// Which message of the unit.
    part: usize,
    size: usize,
    due_at: Duration,
}

async fn last_words(hear: impl Future<Output = Ended>) -> Ended {
    let silence = |_| Ended::Lost("no close frame".to_owned());
    tokio::time::timeout(LAST_WORDS, hear).await.unwrap_or_else(silence)
}

fn given_up() -> Ended {
    Ended::Lost("given up".to_owned())
}

impl World {
    /// Sleeps because that is the plan: whoever looks for devices that are stuck must not count it. Says whether it could: when
    /// everything ends, so does that.
    async fn rest_until(&self, at: Duration) -> bool {
        let _resting = self.totals.rest();
        tokio::select! {
            biased;
            // First this: a device that is born late does not wait, and comes.
            () = self.clock.sleep_until(Some(at)) => true,
            () = self.ending.cancelled() => false,
        }
    }
}

impl State {
    fn joins(&mut self, left: Option<usize>) -> Member {
        self.lanes.push(Lane { left, ..Lane::default() });
        self.ledger.joins()
    }

    fn lane(&mut self, member: Member) -> Option<&mut Lane> {
        self.lanes.get_mut(member)
    }

    /// Chooses a device for another one to drop, if that may be now.
    fn drops(&mut self, dropper: Member, agenda: &mut Agenda, now: Duration) -> Option<Member> {
        if !matches!(self.churn, Churn::None) || self.ledger.is_dropped(dropper) {
            return None;
        }
        let with_slot = |(member, lane): &(Member, &Lane)| *member != dropper && lane.admitted && !lane.gone;
        let others: Vec<Member> = self.lanes.iter().enumerate().filter(with_slot).map(|(member, _)| member).collect();
        let (victim, rng) = agenda.choose(&others)?;
        self.ledger.leaving(victim, now);
        self.churn = Churn::Dropping { dropper, victim, rng };
        Some(victim)
    }

    /// Books one message that goes into the socket; says under which number.
    fn say(&mut self, member: Member, message: &Said, now: Duration) -> usize {
        let said = self.lanes.get_mut(member).and_then(|lane| lane.open.get_mut(&message.unit));
        let again = said.is_some_and(|said| {
            let again = message.part < *said;
            *said = (*said).max(message.part + 1);
            again
        });
        let entry = self.ledger.say(member, message.kind, again, message.due_at, now);
        if let Some(lane) = self.lane(member) {
            match message.kind {
                Kind::Single => lane.awaiting.push_back((entry, Some(message.unit))),
                Kind::Staged(_) => lane.awaiting.push_back((entry, None)),
                // Nobody acknowledges it.
                Kind::Ephemeral => drop(lane.open.remove(&message.unit)),
            }
        }
        entry
    }

    /// For how long the device that holds the lock keeps it by plan.
    fn hold_before(&self, member: Member) -> Duration {
        let holder = self.lanes.get(member).and_then(|lane| lane.behind).and_then(|holder| self.lanes.get(holder));
        holder.map_or(Duration::ZERO, |lane| lane.hold)
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
    fn committing(&mut self, member: Member, transaction: usize, unit: usize, now: Duration) {
        self.ledger.commit_sent(member, transaction);
        if let Some(lane) = self.lane(member) {
            let held = now.saturating_sub(lane.granted_at);
            lane.lock = Lock::Committing { transaction, unit, held, since: now };
        }
    }

    /// A lock that was held too long was taken back before the commit arrived. The device does without that transaction.
    fn ended(&mut self, member: Member, ended: &Ended) {
        if ended.close_code() != Some(CloseCode::TransactionTtlReached) {
            return;
        }
        let Some(lane) = self.lanes.get_mut(member) else { return };
        if let Some(unit) = lane.transacting.take() {
            lane.open.remove(&unit);
        }
        if let Lock::Committing { transaction, .. } = lane.lock {
            self.ledger.expired(member, transaction);
        }
    }

    /// From here on everybody is owed what was staged. Says when the commit was sent.
    fn commit_acked(&mut self, member: Member, ttl_s: u32, now: Duration) -> Option<Duration> {
        let lane = self.lanes.get_mut(member)?;
        let Lock::Committing { transaction, unit, held, since } = lane.lock else {
            self.ledger.tally.fault(Fault::Unasked);
            return None;
        };
        lane.lock = Lock::Idle;
        lane.transacting = None;
        lane.open.remove(&unit);
        if ttl_s > 0 && held > Duration::from_secs(ttl_s.into()) + TTL_SLACK {
            self.ledger.tally.fault(Fault::Overheld);
        }
        self.ledger.committed(member, transaction, now);
        Some(since)
    }

    /// Whether everybody has said everything.
    fn all_finished(&self) -> bool {
        self.lanes.iter().all(|lane| lane.finished || lane.gone)
    }

    /// Whether everybody has said everything, and everything due has arrived.
    fn is_over(&self) -> bool {
        self.all_finished() && matches!(self.churn, Churn::None) && self.ledger.is_settled()
    }
}

const fn device_id(member: Member) -> DeviceId {
    DeviceId(member as u64 + 1)
}

fn body(sender: Member, entry: u32, size: usize) -> Vec<u8> {
    let size = size.max(BODY_MIN);
    let mut body = Vec::with_capacity(size);
    body.extend_from_slice(MARK);
    body.extend_from_slice(&u16::try_from(sender).unwrap_or(u16::MAX).to_le_bytes());
    body.extend_from_slice(&entry.to_le_bytes());
    body.extend_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes());
    body.resize(size, 0xa5);
    body
}

/// Sender and entry; nothing when the message is not one of ours, or not whole.
fn read_body(body: &[u8]) -> Option<(Member, usize)> {
    let mut r = crate::wire::bytes::Reader::new(body);
    let mark: [u8; 4] = r.array().ok()?;
    let (sender, entry, size) = (r.u16().ok()?, r.u32().ok()?, r.u32().ok()?);
    (mark == *MARK && u32::try_from(body.len()) == Ok(size)).then_some((sender.into(), entry as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Trust;
    use crate::wire::d2m::Envelope;

    const T: Duration = Duration::ZERO;

    /// Two devices, the first of which has one transaction of two messages to say.
    fn group() -> Arc<Group> {
        let text = "devices = 2\nmessages = 2\nephemeral = 0.0\n[transactions]\nshare = 1.0";
        let world = World {
            clock: Clock::system(),
            mediator: Mediator::new("ws://mediator.invalid", &Trust::System).unwrap(),
            scenario: Scenario::parse("test", text).unwrap(),
            chat: None,
            totals: Totals::new().unwrap(),
            ending: CancellationToken::new(),
            handshakes: Semaphore::new(1),
            births: Mutex::default(),
            born: Notify::new(),
        };
        let group = Group::new(&Arc::new(world), 0, ServerGroup::new("a0").unwrap());
        for member in 0..2 {
            let mut state = group.lock();
            let asked = state.ledger.asks(member);
            state.ledger.admitted(member, asked, 0);
        }
        group.with_lane(0, |lane| lane.open.insert(0, 0));
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
            let entry = say(group, transaction, part);
            let reflect_id = ReflectId(u32::try_from(entry).unwrap());
            hears(group, 0, &ToDevice::ReflectAck(ReflectAck { reflect_id, timestamp_ms: 9 }));
        }
        transaction
    }

    fn say(group: &Group, transaction: usize, part: usize) -> usize {
        let kind = Kind::Staged(transaction);
        group.lock().say(0, &Said { kind, unit: 0, part, size: BODY_MIN, due_at: T }, T)
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
        group.lock().committing(0, transaction, 0, T);
        assert!(group.lock().ledger.is_settled());
        hears(&group, 0, &ToDevice::CommitTransactionAck);
        // Nobody who waits for it was woken yet, and the connection may be gone already.
        assert!(!group.lock().ledger.is_settled());
        assert_eq!(group.with_lane(0, |lane| lane.open.len()), Some(0), "it is not said again");
        arrives(&group, 0);
        let tally = group.tally();
        assert_eq!((tally.committed, tally.lost), (2, 1));
    }

    #[test]
    fn only_what_the_holder_of_the_lock_keeps_it_for_by_plan_is_put_off() {
        let group = group();
        let hold = Duration::from_millis(30);
        group.with_lane(1, |lane| lane.hold = hold);
        group.with_lane(0, |lane| lane.lock = Lock::Asked);
        assert_eq!(group.lock().hold_before(0), T, "nobody is known to hold it");
        let holder = TransactionHolder { device_id: device_id(1), encrypted_scope: group.key.seal_scope(SCOPE) };
        hears(&group, 0, &ToDevice::TransactionRejected(holder));
        assert_eq!(group.lock().hold_before(0), hold);
    }

    #[tokio::test(start_paused = true)]
    async fn who_rests_is_woken_by_the_end_and_who_need_not_rest_goes_on() {
        let world = Arc::clone(&group().world);
        let now = world.clock.now().monotonic;
        let hour = Duration::from_secs(3_600);
        assert!(world.rest_until(now + hour).await);
        world.ending.cancel();
        assert!(!world.rest_until(now + 9 * hour).await);
        assert!(world.rest_until(Duration::ZERO).await, "a device that is born late");
        assert_eq!(world.totals.devices_resting(), 0);
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
        say(&group, transaction, 0);
        // Begun again on the next connection: one message was said before, one is new.
        let again = group.lock().ledger.begin(0);
        for part in 0..2 {
            say(&group, again, part);
        }
        let tally = group.tally();
        assert_eq!((tally.sent, tally.resent, tally.lost), (3, 1, 0));
    }
}
