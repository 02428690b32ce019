//! The task that owns all groups of the room: takes what waits in its mailbox, lets the groups decide, keeps, and speaks.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::thin::{Told, What};
use super::users::Seat;
use super::{Config, thin};
use crate::chat::toxgroup::state::{
    Command, Dropped, Endpoint, Event, Group, Input, Mode, Own, Refused, Save, Step, dice,
};
use crate::chat::toxgroup::store::{Founded, Store, StoreError, Stored, Write};
use crate::chat::toxgroup::wire::{ClientId, GroupId, Sealed};
use crate::crypto::{boxes, sign};
use crate::metrics::{self, Room, ToxDropped};
use crate::time::{Clock, Now};

/// How often groups are told that time went on (spec 10.5).
const TICK: Duration = Duration::from_millis(200);
/// What is taken at once, at most.
const BATCH_MAX: usize = 128;
/// Keys that one connection may carry (spec 10.2).
const KEYS_MAX: usize = 16;
/// How long a text may wait to be kept.
const LINES_WITHIN: Duration = Duration::from_secs(1);

/// How a connection is reached.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) outbox: mpsc::Sender<Bytes>,
    /// Cancelled when somebody on it proved who they are.
    pub(super) proved: CancellationToken,
    /// Cancelled when it has to end.
    pub(super) close: CancellationToken,
}

/// What the carriers tell the actor.
#[derive(Debug)]
pub(super) enum Mail {
    Packet(Endpoint, Bytes),
    Opened(u64, IpAddr, Connection),
    Closed(u64),
    ThinOpened(u64, Connection),
    Thin(u64, Box<thin::Request>),
    ThinClosed(u64),
}

#[derive(Debug)]
struct Carried {
    from: IpAddr,
    connection: Connection,
    keys: BTreeSet<ClientId>,
}

/// A thin user's line.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) connection: Connection,
    /// Once they said who they are.
    pub(super) user: Option<String>,
    /// How often they said it wrong.
    pub(super) refused: u32,
}

/// A group, and who is in it without a socket.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) group: Group,
    pub(super) name: String,
    pub(super) seats: HashMap<String, Seat>,
}

#[derive(Debug)]
pub(super) struct Actor {
    pub(super) config: Config,
    store: Store,
    pub(super) clock: Clock,
    pub(super) groups: HashMap<GroupId, Slot>,
    /// Thin users, and the hashes of their secrets: whoever says hello must not make everybody wait for the disk.
    pub(super) users: HashMap<String, [u8; 32]>,
    /// Which group a packet is for.
    by_key: HashMap<ClientId, GroupId>,
    streams: HashMap<u64, Carried>,
    pub(super) lines: HashMap<u64, Line>,
    udp: Arc<UdpSocket>,
    /// To be kept before anything else is said.
    pub(super) writes: Vec<Write>,
    /// To be kept soon.
    late: Vec<Write>,
    late_since: Option<Duration>,
    sends: Vec<(Endpoint, Vec<u8>)>,
    pub(super) told: Vec<(u64, Bytes)>,
    closes: Vec<Endpoint>,
}

impl Actor {
    pub(super) fn new(
        config: Config,
        store: Store,
        (users, stored): (HashMap<String, [u8; 32]>, Vec<Stored>),
        udp: Arc<UdpSocket>,
        clock: Clock,
    ) -> Self {
        let mut actor = Self {
            config,
            store,
            clock,
            groups: HashMap::new(),
            users,
            by_key: HashMap::new(),
            streams: HashMap::new(),
            lines: HashMap::new(),
            udp,
            writes: Vec::new(),
            late: Vec::new(),
            late_since: None,
            sends: Vec::new(),
            told: Vec::new(),
            closes: Vec::new(),
        };
        for Stored { founded, bound, kept, virtuals } in stored {
            let id = actor.open(&founded, bound);
            let now = actor.clock.now();
            if let Some(slot) = actor.groups.get_mut(&id) {
                slot.group.restore(kept);
            }
            for it in virtuals {
                let Some(slot) = actor.groups.get_mut(&id) else { continue };
                let own = Own::new(it.secret.clone(), it.seed.as_ref().map(sign::Pair::new), it.bound, &it.name);
                slot.seats.insert(it.user.clone(), Seat { member: own.id(), operator: it.operator });
                if let Ok(step) = slot.group.command(now, Command::RestoreVirtual(Box::new(own))) {
                    actor.take(id, step);
                }
            }
        }
        actor
    }

    /// Makes the engine of a group.
    pub(super) fn open(&mut self, founded: &Founded, bound: u32) -> GroupId {
        let Founded { id, signed, name, secret, seed, topic_lock } = founded;
        let me = ClientId(boxes::public(secret));
        let mode = if *signed { Mode::Signed } else { Mode::Classic { owner: Some(me), topic_lock: *topic_lock } };
        let own = Own::new(secret.clone(), seed.as_ref().map(sign::Pair::new), bound, name);
        let mut rules = self.config.rules.clone();
        if self.config.toxcore2014 && !signed {
            rules = rules.toxcore2014();
        }
        let group = Group::new(*id, mode, rules, own, self.clock.now(), dice());
        self.by_key.insert(me, *id);
        self.groups.insert(*id, Slot { group, name: name.clone(), seats: HashMap::new() });
        self.count_groups();
        *id
    }

    /// Ends a group: whoever is in it without a socket is told so, and nothing of it is kept.
    pub(super) fn close(&mut self, id: GroupId) {
        let Some(slot) = self.groups.remove(&id) else { return };
        self.by_key.retain(|_, group| *group != id);
        self.late.retain(|write| !matches!(write, Write::Save(group, _) if *group == id));
        self.writes.push(Write::GroupGone(id));
        let lines =
            self.lines.iter().filter(|(_, line)| line.user.as_ref().is_some_and(|it| slot.seats.contains_key(it)));
        for conn in lines.map(|(conn, _)| *conn).collect::<Vec<_>>() {
            self.answer(conn, None, What::Ended { group: id.to_string() });
        }
        self.count_groups();
    }

    fn count_groups(&self) {
        metrics::get().toxgroup_groups.set(f64::from(u32::try_from(self.groups.len()).unwrap_or(u32::MAX)));
    }

    /// Runs until it is told to stop, or nothing can be kept any more.
    pub(super) async fn run(mut self, mut mailbox: mpsc::Receiver<Mail>, stop: CancellationToken) {
        let mut batch = Vec::new();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                taken = mailbox.recv_many(&mut batch, BATCH_MAX) => if taken == 0 { break },
                _ = tick.tick() => self.tick(),
                () = stop.cancelled() => break,
            }
            for mail in batch.drain(..) {
                self.mail(mail);
            }
            if let Err(error) = self.keep_and_speak(false).await {
                error!(%error, "the Tox group hub stops: nothing more can be kept");
                break;
            }
        }
        if let Err(error) = self.keep_and_speak(true).await {
            error!(%error, "the last texts were not kept");
        }
        self.store.close().await;
    }

    fn mail(&mut self, mail: Mail) {
        match mail {
            Mail::Packet(from, packet) => self.packet(from, &packet),
            Mail::Opened(conn, from, connection) => {
                self.streams.insert(conn, Carried { from, connection, keys: BTreeSet::new() });
            }
            Mail::Closed(conn) => {
                // Where nobody proved a key, nobody has to be told.
                if let Some(Carried { from, .. }) = self.streams.remove(&conn).filter(|it| !it.keys.is_empty()) {
                    self.everywhere(|| Input::Gone(Endpoint::Stream(conn, from)));
                }
            }
            Mail::ThinOpened(conn, connection) => {
                self.lines.insert(conn, Line { connection, user: None, refused: 0 });
            }
            Mail::Thin(conn, request) => self.request(conn, *request),
            Mail::ThinClosed(conn) => drop(self.lines.remove(&conn)),
        }
    }

    fn packet(&mut self, from: Endpoint, packet: &[u8]) {
        metrics::get().toxgroup_packets.increment(1);
        let Ok(sealed) = Sealed::read(packet) else { return };
        let dropped = metrics::get().toxgroup_dropped.of(ToxDropped::Stranger);
        let Some(&id) = self.by_key.get(&sealed.receiver) else { return dropped.increment(1) };
        let Some(slot) = self.groups.get_mut(&id) else { return };
        let step = slot.group.handle(self.clock.now(), Input::Packet(from, packet));
        if let Endpoint::Stream(conn, _) = from
            && let Some(carried) = self.streams.get_mut(&conn)
            && !carried.keys.contains(&sealed.sender)
            && slot.group.is_verified(from)
        {
            carried.keys.insert(sealed.sender);
            carried.connection.proved.cancel();
            if carried.keys.len() > KEYS_MAX {
                self.closes.push(from);
            }
        }
        self.take(id, step);
    }

    fn everywhere<'a>(&mut self, input: impl Fn() -> Input<'a>) {
        let now = self.clock.now();
        let ids: Vec<_> = self.groups.keys().copied().collect();
        for id in ids {
            if let Some(slot) = self.groups.get_mut(&id) {
                let step = slot.group.handle(now, input());
                self.take(id, step);
            }
        }
    }

    fn tick(&mut self) {
        self.everywhere(|| Input::Tick);
        let (mut members, mut neighbours) = (0, 0);
        for slot in self.groups.values() {
            members += slot.group.size();
            neighbours += slot.group.neighbours();
        }
        let count = |number: usize| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
        metrics::get().toxgroup_members.set(count(members));
        metrics::get().toxgroup_neighbours.set(count(neighbours));
    }

    /// Asks a group for something.
    pub(super) fn command(&mut self, id: GroupId, command: Command) -> Result<Vec<Event>, Refused> {
        let now = self.clock.now();
        let slot = self.groups.get_mut(&id).ok_or(Refused::NoMember)?;
        let step = slot.group.command(now, command)?;
        Ok(self.take(id, step))
    }

    /// Notes what follows from a step; it happens when it is kept.
    fn take(&mut self, id: GroupId, step: Step) -> Vec<Event> {
        let Step { saves, sends, closes, events } = step;
        for save in saves {
            if matches!(save, Save::Line(_)) {
                self.late_since.get_or_insert_with(|| self.clock.now().monotonic);
                self.late.push(Write::Save(id, save));
            } else {
                self.writes.push(Write::Save(id, save));
            }
        }
        self.sends.extend(sends);
        self.closes.extend(closes);
        for event in &events {
            self.tell(id, event);
        }
        events
    }

    /// Whatever has to be on disk, then everything else.
    async fn keep_and_speak(&mut self, last: bool) -> Result<(), StoreError> {
        let Now { monotonic, wall_ms } = self.clock.now();
        let due = last || self.late_since.is_some_and(|since| since + LINES_WITHIN <= monotonic);
        if !self.writes.is_empty() || (due && !self.late.is_empty()) {
            self.writes.append(&mut self.late);
            self.late_since = None;
            self.store.commit(&self.writes, wall_ms).await?;
            self.writes.clear();
        }
        let dropped = metrics::get().toxgroup_dropped.of(ToxDropped::SlowReader);
        let unsent = metrics::get().toxgroup_dropped.of(ToxDropped::Full);
        for (to, packet) in self.sends.drain(..) {
            match to {
                // A datagram that the kernel does not take is lost, like any other.
                Endpoint::Udp(address) => {
                    if self.udp.try_send_to(&packet, address).is_err() {
                        unsent.increment(1);
                    }
                }
                Endpoint::Stream(conn, _) => {
                    let outbox = self.streams.get(&conn).map(|carried| &carried.connection.outbox);
                    let sent = outbox.map(|outbox| outbox.try_send(packet.into()));
                    // Who is just going did not read slowly.
                    if matches!(sent, Some(Err(TrySendError::Full(_)))) {
                        dropped.increment(1);
                    }
                }
            }
        }
        for (conn, told) in self.told.drain(..) {
            let Some(line) = self.lines.get(&conn) else { continue };
            if let Err(TrySendError::Full(_)) = line.connection.outbox.try_send(told) {
                // Answers must not get lost without a word; who does not read is told so by the end.
                line.connection.close.cancel();
                dropped.increment(1);
            }
        }
        for endpoint in self.closes.drain(..) {
            if let Endpoint::Stream(conn, _) = endpoint
                && let Some(carried) = self.streams.get(&conn)
            {
                carried.connection.close.cancel();
            }
        }
        Ok(())
    }

    /// The only place of the room that turns events into numbers and log lines; and into what thin users see.
    fn tell(&mut self, id: GroupId, event: &Event) {
        let metrics = metrics::get();
        match event {
            Event::Said { .. } => metrics.chat_accepted.of(Room::ToxGroup).increment(1),
            Event::Dropped(why) => return metrics.toxgroup_dropped.of(counted_as(*why)).increment(1),
            Event::Neighbours(count) => debug!(count, "neighbours of a group"),
            _ => {}
        }
        let Some(what) = self.shown(id, event) else { return };
        let Some(slot) = self.groups.get(&id) else { return };
        let Ok(json) = serde_json::to_vec(&Told { id: None, what }) else { return };
        let json = Bytes::from(json);
        for (conn, line) in &self.lines {
            if line.user.as_ref().is_some_and(|user| slot.seats.contains_key(user)) {
                self.told.push((*conn, json.clone()));
                if matches!(event, Event::Said { .. }) {
                    metrics.chat_delivered.of(Room::ToxGroup).increment(1);
                }
            }
        }
    }

    /// An answer for one line.
    pub(super) fn answer(&mut self, conn: u64, id: Option<u64>, what: What) {
        if let Ok(json) = serde_json::to_vec(&Told { id, what }) {
            self.told.push((conn, json.into()));
        }
    }
}

/// How something that was thrown away counts.
const fn counted_as(why: Dropped) -> ToxDropped {
    match why {
        Dropped::Malformed => ToxDropped::Malformed,
        Dropped::Stranger => ToxDropped::Stranger,
        Dropped::Forged => ToxDropped::Forged,
        Dropped::Stale => ToxDropped::Stale,
        Dropped::NotAllowed => ToxDropped::NotAllowed,
        Dropped::TooMuch => ToxDropped::TooMuch,
        Dropped::Echo => ToxDropped::Echo,
    }
}
