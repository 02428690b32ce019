//! What the server decides: who is called what, who hears what, and who may be joined with whom.
//!
//! One door: [`State::handle`] takes the time and an input, and answers with a [`Step`]: what to say, in this order. Nothing
//! here waits, reads a clock or throws dice of its own. One task asks it, so public messages have one order for everybody
//! (spec 5), and of two who want a nickname at the same instant one comes first.
//!
//! A pair of clients has at most one relation: somebody asked, or there is a private connection, granted or open. That is all
//! that is remembered about two people, and all that a departure has to be told about (D-37).
//!
//! Timers are lazy. Each connection and each private connection stands in the list once, no later than it can be due; when its time
//! comes and it did something meanwhile, it goes back to where it belongs. So a message costs no timer, and calling
//! early or twice does nothing.

pub mod ending;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;

use super::wire::{FromClient, Malformed, PrivateId, ToClient, check_nickname};
use crate::time::Now;
use crate::wire::chatos::{NoPacket, op};
pub use ending::{Ending, Refusal};

/// One connection, never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// What is allowed (spec 10).
#[derive(Debug, Clone)]
pub struct Limits {
    /// How long somebody may be silent; a pipe, too.
    pub inactivity: Duration,
    /// From the connection to the first whole packet.
    pub first_packet: Duration,
    /// From the first octet of a packet to its last.
    pub partial_packet: Duration,
    /// From the id to both legs.
    pub unjoined: Duration,
    /// Requests of one client that are not answered, and as many to one client.
    pub pending_max: usize,
    /// Private connections of one client, granted or open.
    pub private_max: usize,
    /// Connections altogether, both legs of a private one included.
    pub connections_max: usize,
    /// Whether an error is said, or only the connection closed.
    pub error_packets: bool,
    /// Whether a leg has to come from the address of one of the two clients.
    pub join_same_ip: bool,
    /// Nicknames that are not wanted.
    pub unwanted: Unwanted,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            inactivity: Duration::from_secs(300),
            first_packet: Duration::from_secs(30),
            partial_packet: Duration::from_secs(30),
            unjoined: Duration::from_secs(60),
            pending_max: 32,
            private_max: 16,
            connections_max: 1_024,
            error_packets: true,
            join_same_ip: false,
            unwanted: Unwanted::default(),
        }
    }
}

/// Strictly more than allowed is too long (spec 10.1).
const STRICTLY: Duration = Duration::from_millis(1);

/// Nicknames that are not wanted (D-11).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unwanted {
    exact: BTreeSet<String>,
    parts: Vec<String>,
}

impl Unwanted {
    /// Each entry is not wanted anywhere in a nickname, upper or lower case; one that begins with `=` not as the whole of it.
    #[must_use]
    pub fn new<'a>(entries: impl IntoIterator<Item = &'a str>) -> Self {
        let mut this = Self::default();
        for entry in entries.into_iter().map(str::to_lowercase) {
            match entry.strip_prefix('=') {
                Some(exact) => drop(this.exact.insert(exact.to_owned())),
                None if entry.is_empty() => {}
                None => this.parts.push(entry),
            }
        }
        this
    }

    fn has(&self, name: &str) -> bool {
        let name = name.to_lowercase();
        self.exact.contains(&name) || self.parts.iter().any(|part| name.contains(part.as_str()))
    }
}

/// What can happen.
#[derive(Debug)]
pub enum Input {
    /// Somebody connected.
    Opened {
        /// On this connection.
        conn: ConnId,
        /// From there.
        ip: IpAddr,
    },
    /// Something was read.
    Heard {
        /// From whom.
        conn: ConnId,
        /// The packets that are whole now.
        packets: Vec<FromClient>,
        /// Whether there is a beginning of another one.
        partial: bool,
    },
    /// What was read cannot be a packet.
    Malformed {
        /// From whom.
        conn: ConnId,
        /// Why not.
        why: Malformed,
    },
    /// A connection is over: nothing more comes from it, or nothing can be written to it.
    Over {
        /// Which.
        conn: ConnId,
        /// Why.
        why: Ending,
    },
    /// Octets went through a pipe.
    Moved {
        /// Which.
        id: PrivateId,
        /// When the last ones did, on the monotonic clock.
        at: Duration,
    },
    /// A pipe is closed at both ends.
    PipeOver(PrivateId),
    /// A deadline may have passed.
    Tick,
    /// The server stops.
    Stop,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Say {
    /// A packet goes to somebody.
    Send(ConnId, Bytes),
    /// A connection ends, behind this packet if there is one.
    End(ConnId, Ending, Option<Bytes>),
    /// Two connections are one pipe from now on; each is told so first.
    Couple {
        /// The leg that was here first.
        first: ConnId,
        /// The other.
        second: ConnId,
        /// Which private connection it is.
        id: PrivateId,
        /// What each is told.
        established: Bytes,
    },
    /// A pipe is to be closed: what is in it goes out, nothing more comes in.
    ClosePipe(PrivateId),
    /// For the operator.
    Notice(Notice),
}

/// What is worth telling the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Somebody is called something.
    LoggedIn {
        /// What.
        name: String,
    },
    /// A connection is a leg of a private one.
    Joined,
    /// Somebody who had a nickname is gone.
    Left {
        /// What they were called.
        name: String,
        /// Why they are gone.
        why: Ending,
    },
    /// A connection without a nickname is gone before it became anything.
    Refused {
        /// Why.
        why: Ending,
    },
    /// A message was taken and goes to so many.
    Message {
        /// How many.
        receivers: usize,
    },
    /// A packet means nothing now, and is not answered (D-21 and others).
    Ignored {
        /// Whose.
        name: String,
        /// Its opcode.
        opcode: u8,
    },
    /// Two clients have a private connection.
    Established,
}

/// The only way out.
#[derive(Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Step {
    /// To be done, in this order.
    pub says: Vec<Say>,
}

impl Step {
    fn send(&mut self, to: ConnId, packet: &ToClient) {
        self.says.push(Say::Send(to, packet.encode()));
    }

    fn notice(&mut self, notice: Notice) {
        self.says.push(Say::Notice(notice));
    }
}

/// Where unguessable ids come from (D-26).
pub type Dice = Box<dyn FnMut() -> u64 + Send>;

/// See the top of this file.
pub struct State {
    limits: Limits,
    dice: Dice,
    conns: HashMap<ConnId, Conn>,
    /// In order, so that a broadcast is the same for the same story.
    names: BTreeMap<String, ConnId>,
    relations: HashMap<Pair, Relation>,
    privates: HashMap<PrivateId, Private>,
    pipes: usize,
    timers: BTreeSet<(Duration, Timer)>,
    stopping: bool,
}

#[derive(Debug)]
struct Conn {
    ip: IpAddr,
    phase: Phase,
    /// Of the last whole packet, or of the connection.
    heard: Duration,
    /// Since when there is a beginning of a packet.
    partial: Option<Duration>,
    /// Where it stands in the list of timers.
    armed: Option<Duration>,
}

#[derive(Debug)]
enum Phase {
    New,
    Online {
        name: String,
        /// With whom there is a relation.
        partners: BTreeSet<ConnId>,
    },
    Joined(PrivateId),
}

/// Two clients, in the order of their ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Pair(ConnId, ConnId);

impl Pair {
    fn of(a: ConnId, b: ConnId) -> Self {
        Self(a.min(b), a.max(b))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    /// One asked the other.
    Pending {
        by: ConnId,
    },
    Private(PrivateId),
}

#[derive(Debug)]
struct Private {
    pair: Pair,
    legs: Legs,
    /// Of the id, or of the last octet.
    since: Duration,
    /// Where it stands in the list of timers.
    armed: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Legs {
    None,
    Waiting(ConnId),
    Piped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Conn(ConnId),
    Private(PrivateId),
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("connections", &self.conns.len())
            .field("online", &self.names.len())
            .field("relations", &self.relations.len())
            .field("pipes", &self.pipes)
            .finish_non_exhaustive()
    }
}

impl State {
    /// Nobody is there.
    #[must_use]
    pub fn new(limits: Limits, dice: Dice) -> Self {
        Self {
            limits,
            dice,
            conns: HashMap::new(),
            names: BTreeMap::new(),
            relations: HashMap::new(),
            privates: HashMap::new(),
            pipes: 0,
            timers: BTreeSet::new(),
            stopping: false,
        }
    }

    /// When [`Input::Tick`] is due, on the monotonic clock.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Nobody is there, and nothing is remembered of anybody.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.conns.is_empty()
            && self.names.is_empty()
            && self.relations.is_empty()
            && self.privates.is_empty()
            && self.timers.is_empty()
    }

    /// Decides.
    pub fn handle(&mut self, now: Now, input: Input) -> Step {
        let (now, mut step) = (now.monotonic, Step::default());
        match input {
            Input::Opened { conn, ip } => self.opened(now, conn, ip, &mut step),
            Input::Heard { conn, packets, partial } => self.heard(now, conn, packets, partial, &mut step),
            Input::Malformed { conn, why } => self.end(conn, why.into(), &mut step),
            Input::Over { conn, why } => self.end(conn, why, &mut step),
            Input::Moved { id, at } => self.moved(id, at),
            Input::PipeOver(id) => self.pipe_over(id),
            Input::Tick => self.tick(now, &mut step),
            Input::Stop => self.stop(&mut step),
        }
        step
    }

    fn opened(&mut self, now: Duration, conn: ConnId, ip: IpAddr, step: &mut Step) {
        let open = self.conns.len() + 2 * self.pipes;
        self.conns.insert(conn, Conn { ip, phase: Phase::New, heard: now, partial: None, armed: None });
        if self.stopping {
            self.end(conn, Ending::ShuttingDown, step);
        } else if open >= self.limits.connections_max {
            self.end(conn, Ending::Full, step);
        } else {
            self.arm(conn);
        }
    }

    fn heard(&mut self, now: Duration, conn: ConnId, packets: Vec<FromClient>, partial: bool, step: &mut Step) {
        let Some(it) = self.conns.get_mut(&conn) else { return };
        it.partial = match (partial, it.partial) {
            (false, _) => None,
            // Octets that complete nothing are no excuse (spec 10.1).
            (true, Some(since)) if packets.is_empty() => Some(since),
            (true, _) => Some(now),
        };
        if !packets.is_empty() {
            it.heard = now;
        }
        for packet in packets {
            // Whoever was ended by the packet before is not heard any more.
            let Some(it) = self.conns.get(&conn) else { return };
            match &it.phase {
                Phase::New => match packet {
                    FromClient::Login(name) => self.login(conn, name, step),
                    FromClient::Join(id) => self.join(now, conn, id, step),
                    other => self.end(conn, out_of_turn(&other), step),
                },
                Phase::Online { name, .. } => {
                    let name = name.clone();
                    self.said(now, conn, &name, packet, step);
                }
                // What comes behind the id is the pipe's.
                Phase::Joined(_) => self.end(conn, out_of_turn(&packet), step),
            }
        }
        self.arm(conn);
    }

    fn login(&mut self, conn: ConnId, name: String, step: &mut Step) {
        let refusal = match check_nickname(&name) {
            Err(bad) => Some(bad.into()),
            Ok(()) if self.limits.unwanted.has(&name) => Some(Refusal::Unwanted),
            Ok(()) if self.names.contains_key(&name) => Some(Refusal::Taken),
            Ok(()) => None,
        };
        if let Some(why) = refusal {
            return self.end(conn, Ending::Refused { name, why }, step);
        }
        let Some(it) = self.conns.get_mut(&conn) else { return };
        it.phase = Phase::Online { name: name.clone(), partners: BTreeSet::new() };
        self.names.insert(name.clone(), conn);
        step.send(conn, &ToClient::Welcome(name.clone()));
        step.notice(Notice::LoggedIn { name });
    }

    /// A packet of somebody who is online, and called `me`.
    fn said(&mut self, now: Duration, conn: ConnId, me: &str, packet: FromClient, step: &mut Step) {
        match packet {
            FromClient::Request { from, .. } | FromClient::Public { from, .. } | FromClient::Private { from, .. }
                if from != me =>
            {
                self.end(conn, Ending::ForeignSender, step);
            }
            FromClient::Public { from, text } => {
                let packet = ToClient::Public { from, text }.encode();
                step.says.extend(self.names.values().map(|to| Say::Send(*to, packet.clone())));
                step.notice(Notice::Message { receivers: self.names.len() });
            }
            FromClient::Private { from, to, text } => match self.names.get(&to) {
                Some(receiver) => {
                    step.send(*receiver, &ToClient::Private { from, to, text });
                    step.notice(Notice::Message { receivers: 1 });
                }
                None => {
                    step.send(conn, &ToClient::Unknown(from));
                    step.notice(Notice::Message { receivers: 0 });
                }
            },
            FromClient::Request { from, to } => self.request(conn, from, to, step),
            FromClient::Accept(a, b) => self.answer(now, conn, me, ToClient::Accept(a, b), step),
            FromClient::Refuse(a, b) => self.answer(now, conn, me, ToClient::Refuse(a, b), step),
            FromClient::Login(_) | FromClient::Join(_) => self.end(conn, out_of_turn(&packet), step),
        }
    }

    /// Spec 7.1.
    fn request(&mut self, conn: ConnId, from: String, to: String, step: &mut Step) {
        let Some(target) = self.names.get(&to).copied().filter(|target| *target != conn) else {
            return step.send(conn, &ToClient::Unknown(from));
        };
        let pair = Pair::of(conn, target);
        if self.relations.contains_key(&pair) {
            // Asked before, asked by the other, or more than asked: never forwarded twice.
            return step.notice(Notice::Ignored { name: from, opcode: op::PRIV_REQUEST });
        }
        let asks = |who: ConnId, sent: bool| {
            let count = |relation: &&Relation| matches!(relation, Relation::Pending { by } if (*by == who) == sent);
            self.relations_of(who).filter(count).count()
        };
        if asks(conn, true) >= self.limits.pending_max
            || asks(target, false) >= self.limits.pending_max
            || self.has_enough_privates(conn)
            || self.has_enough_privates(target)
        {
            // On behalf of the target, who is not bothered (D-22).
            return step.send(conn, &ToClient::Refuse(to, from));
        }
        self.relate(pair, Relation::Pending { by: conn });
        step.send(target, &ToClient::Request { from, to });
    }

    /// Spec 7.2 and 7.3: forwarded as it came, whichever way round the names are (D-25).
    fn answer(&mut self, now: Duration, conn: ConnId, me: &str, answer: ToClient, step: &mut Step) {
        let (ToClient::Accept(a, b) | ToClient::Refuse(a, b)) = &answer else { return };
        let accepted = matches!(answer, ToClient::Accept(..));
        let ignored = || Notice::Ignored {
            name: me.to_owned(),
            opcode: if accepted { op::PRIV_ACCEPT } else { op::PRIV_REFUSE },
        };
        let other = match (a == me, b == me) {
            (false, false) => return self.end(conn, Ending::ForeignSender, step),
            (true, true) => return step.notice(ignored()),
            (true, false) => b.clone(),
            (false, true) => a.clone(),
        };
        let Some(requester) = self.names.get(&other).copied() else {
            return step.send(conn, &ToClient::Unknown(me.to_owned()));
        };
        let pair = Pair::of(conn, requester);
        if self.relations.get(&pair) != Some(&(Relation::Pending { by: requester })) {
            return step.notice(ignored());
        }
        if !accepted {
            self.unrelate(pair);
            return step.send(requester, &answer);
        }
        if self.has_enough_privates(conn) || self.has_enough_privates(requester) {
            // It was within the limits when it was asked for, and is not any more.
            self.unrelate(pair);
            // Who said yes waits for an id, and has to learn that none comes.
            step.send(conn, &ToClient::Refuse(other.clone(), me.to_owned()));
            return step.send(requester, &ToClient::Refuse(me.to_owned(), other));
        }
        let id = self.new_id();
        step.send(requester, &answer);
        step.send(requester, &ToClient::Id(me.to_owned(), other.clone(), id));
        step.send(conn, &ToClient::Id(other, me.to_owned(), id));
        self.relations.insert(pair, Relation::Private(id));
        self.privates.insert(id, Private { pair, legs: Legs::None, since: now, armed: None });
        self.arm_private(id);
    }

    /// Unguessable, positive and not in use (D-26).
    fn new_id(&mut self) -> PrivateId {
        loop {
            let id = PrivateId(i64::try_from((self.dice)() >> 1).unwrap_or(i64::MAX));
            if id.0 != 0 && !self.privates.contains_key(&id) {
                return id;
            }
        }
    }

    fn join(&mut self, now: Duration, conn: ConnId, id: PrivateId, step: &mut Step) {
        let Some(ip) = self.conns.get(&conn).map(|it| it.ip) else { return };
        let ip_of = |who: ConnId| self.conns.get(&who).map(|it| it.ip);
        let private = self.privates.get(&id).filter(|private| {
            let Pair(a, b) = private.pair;
            !self.limits.join_same_ip || [ip_of(a), ip_of(b)].contains(&Some(ip))
        });
        match private.map(|private| private.legs) {
            None | Some(Legs::Piped) => self.end(conn, Ending::BadId, step),
            Some(Legs::None) => {
                self.set_legs(id, Legs::Waiting(conn), now, false);
                if let Some(it) = self.conns.get_mut(&conn) {
                    it.phase = Phase::Joined(id);
                }
                step.notice(Notice::Joined);
            }
            Some(Legs::Waiting(first)) => {
                self.set_legs(id, Legs::Piped, now, true);
                for leg in [first, conn] {
                    self.forget(leg);
                }
                self.pipes += 1;
                self.arm_private(id);
                let established = ToClient::Established.encode();
                step.notice(Notice::Joined);
                step.says.push(Say::Couple { first, second: conn, id, established });
                step.notice(Notice::Established);
            }
        }
    }

    fn set_legs(&mut self, id: PrivateId, legs: Legs, now: Duration, touch: bool) {
        if let Some(private) = self.privates.get_mut(&id) {
            private.legs = legs;
            if touch {
                private.since = now;
            }
        }
    }

    /// What goes through a pipe counts for both of its clients (D-34).
    fn moved(&mut self, id: PrivateId, at: Duration) {
        let Some(private) = self.privates.get_mut(&id) else { return };
        private.since = private.since.max(at);
        let Pair(a, b) = private.pair;
        for owner in [a, b] {
            if let Some(it) = self.conns.get_mut(&owner) {
                it.heard = it.heard.max(at);
            }
        }
    }

    /// Nobody is told: the end of the pipe is the notice (spec 8).
    fn pipe_over(&mut self, id: PrivateId) {
        if let Some(private) = self.privates.get(&id).filter(|private| private.legs == Legs::Piped) {
            self.unrelate(private.pair);
        }
    }

    /// The one way out of the room.
    fn end(&mut self, conn: ConnId, why: Ending, step: &mut Step) {
        let Some(it) = self.forget(conn) else { return };
        let name = match it.phase {
            Phase::New => {
                step.notice(Notice::Refused { why: why.clone() });
                None
            }
            Phase::Joined(id) => {
                // The slot is free again until the id's time is over.
                if let Some(private) = self.privates.get_mut(&id) {
                    private.legs = Legs::None;
                }
                None
            }
            Phase::Online { name, partners } => {
                self.names.remove(&name);
                for partner in partners {
                    let relation = self.unrelate(Pair::of(conn, partner));
                    step.send(partner, &ToClient::Unknown(name.clone()));
                    self.close_private(relation, Ending::PartnerGone, step);
                }
                step.notice(Notice::Left { name: name.clone(), why: why.clone() });
                Some(name)
            }
        };
        let farewell = why.farewell(name.as_deref(), self.limits.error_packets).map(|packet| packet.encode());
        step.says.push(Say::End(conn, why, farewell));
    }

    /// Ends what there is of a private connection whose relation is forgotten already.
    fn close_private(&mut self, gone: Option<(PrivateId, Legs)>, why: Ending, step: &mut Step) {
        match gone {
            Some((id, Legs::Piped)) => step.says.push(Say::ClosePipe(id)),
            Some((_, Legs::Waiting(leg))) => self.end(leg, why, step),
            Some((_, Legs::None)) | None => {}
        }
    }

    fn stop(&mut self, step: &mut Step) {
        self.stopping = true;
        let pipes: Vec<_> = self.privates.iter().filter(|(_, it)| it.legs == Legs::Piped).map(|(id, _)| *id).collect();
        for id in pipes {
            self.pipe_over(id);
            step.says.push(Say::ClosePipe(id));
        }
        let pairs: Vec<Pair> = self.relations.keys().copied().collect();
        for pair in pairs {
            let gone = self.unrelate(pair);
            self.close_private(gone, Ending::ShuttingDown, step);
        }
        let mut conns: Vec<ConnId> = self.conns.keys().copied().collect();
        conns.sort_unstable();
        for conn in conns {
            self.end(conn, Ending::ShuttingDown, step);
        }
    }

    fn tick(&mut self, now: Duration, step: &mut Step) {
        while let Some((at, timer)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, timer));
            match timer {
                Timer::Conn(conn) => {
                    let Some(it) = self.conns.get_mut(&conn) else { continue };
                    it.armed = None;
                    match it.due(&self.limits).filter(|(due, _)| *due <= now) {
                        Some((_, why)) => self.end(conn, why, step),
                        None => self.arm(conn),
                    }
                }
                Timer::Private(id) => {
                    let Some(private) = self.privates.get_mut(&id) else { continue };
                    private.armed = None;
                    let pair = private.pair;
                    if private.due(&self.limits) > now {
                        self.arm_private(id);
                    } else {
                        let gone = self.unrelate(pair);
                        self.close_private(gone, Ending::Unjoined, step);
                    }
                }
            }
        }
    }

    /// Puts a connection into the list of timers where it can be due next, unless it stands before that already.
    fn arm(&mut self, conn: ConnId) {
        let Some(it) = self.conns.get_mut(&conn) else { return };
        let Some((due, _)) = it.due(&self.limits) else { return };
        if it.armed.is_none_or(|armed| due < armed) {
            if let Some(armed) = it.armed.replace(due) {
                self.timers.remove(&(armed, Timer::Conn(conn)));
            }
            self.timers.insert((due, Timer::Conn(conn)));
        }
    }

    /// The same for a private connection.
    fn arm_private(&mut self, id: PrivateId) {
        let Some(it) = self.privates.get_mut(&id) else { return };
        let due = it.due(&self.limits);
        if it.armed.is_none_or(|armed| due < armed) {
            if let Some(armed) = it.armed.replace(due) {
                self.timers.remove(&(armed, Timer::Private(id)));
            }
            self.timers.insert((due, Timer::Private(id)));
        }
    }

    fn forget(&mut self, conn: ConnId) -> Option<Conn> {
        let it = self.conns.remove(&conn)?;
        if let Some(armed) = it.armed {
            self.timers.remove(&(armed, Timer::Conn(conn)));
        }
        Some(it)
    }

    fn partners(&mut self, conn: ConnId) -> Option<&mut BTreeSet<ConnId>> {
        match self.conns.get_mut(&conn).map(|it| &mut it.phase) {
            Some(Phase::Online { partners, .. }) => Some(partners),
            _ => None,
        }
    }

    fn relate(&mut self, pair: Pair, relation: Relation) {
        for (one, other) in [(pair.0, pair.1), (pair.1, pair.0)] {
            if let Some(partners) = self.partners(one) {
                partners.insert(other);
            }
        }
        self.relations.insert(pair, relation);
    }

    /// Forgets a relation; what there was of a private connection.
    fn unrelate(&mut self, pair: Pair) -> Option<(PrivateId, Legs)> {
        for (one, other) in [(pair.0, pair.1), (pair.1, pair.0)] {
            if let Some(partners) = self.partners(one) {
                partners.remove(&other);
            }
        }
        let Some(Relation::Private(id)) = self.relations.remove(&pair) else { return None };
        let private = self.privates.remove(&id)?;
        if private.legs == Legs::Piped {
            self.pipes -= 1;
        }
        if let Some(armed) = private.armed {
            self.timers.remove(&(armed, Timer::Private(id)));
        }
        Some((id, private.legs))
    }

    fn relations_of(&self, conn: ConnId) -> impl Iterator<Item = &Relation> {
        let partners = match self.conns.get(&conn).map(|it| &it.phase) {
            Some(Phase::Online { partners, .. }) => Some(partners),
            _ => None,
        };
        let pairs = partners.into_iter().flatten().map(move |partner| Pair::of(conn, *partner));
        pairs.filter_map(|pair| self.relations.get(&pair))
    }

    fn has_enough_privates(&self, conn: ConnId) -> bool {
        let privates = self.relations_of(conn).filter(|relation| matches!(relation, Relation::Private(_)));
        privates.count() >= self.limits.private_max
    }
}

impl Conn {
    /// When its patience is over, and what that is called.
    fn due(&self, limits: &Limits) -> Option<(Duration, Ending)> {
        let silent = match self.phase {
            Phase::New => (self.heard.saturating_add(limits.first_packet), Ending::NoLogin),
            Phase::Online { .. } => (self.heard.saturating_add(limits.inactivity + STRICTLY), Ending::Inactive),
            // The id has a time of its own.
            Phase::Joined(_) => return None,
        };
        let stalled = self.partial.map(|since| (since.saturating_add(limits.partial_packet), Ending::PacketStalled));
        Some(stalled.filter(|(due, _)| *due < silent.0).unwrap_or(silent))
    }
}

impl Private {
    fn due(&self, limits: &Limits) -> Duration {
        self.since.saturating_add(match self.legs {
            Legs::None | Legs::Waiting(_) => limits.unjoined,
            Legs::Piped => limits.inactivity + STRICTLY,
        })
    }
}

/// A packet that may not come in this state.
fn out_of_turn(packet: &FromClient) -> Ending {
    let opcode = match packet {
        FromClient::Login(_) => op::LOGIN,
        FromClient::Request { .. } => op::PRIV_REQUEST,
        FromClient::Public { .. } => op::PUBLIC,
        FromClient::Private { .. } => op::PRIVATE,
        FromClient::Accept(..) => op::PRIV_ACCEPT,
        FromClient::Refuse(..) => op::PRIV_REFUSE,
        FromClient::Join(_) => op::PRIV_JOIN,
    };
    Ending::Malformed(Malformed::NoPacket(NoPacket::Opcode(opcode)))
}

#[cfg(test)]
mod tests;
