//! Groups on virtual time over a net of their own: seeded, so that what failed once fails again.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::SocketAddr;
use std::time::Duration;

use heliostat::chat::toxgroup::state::{
    Command, Credential, Endpoint, Event, Failure, Grave, Group, Input, Kept, Mode, NodeFormat, Own, Refused, Rules,
    Save, Step,
};
use heliostat::chat::toxgroup::wire::message::Signed;
use heliostat::chat::toxgroup::wire::record::Grade;
use heliostat::chat::toxgroup::wire::{
    Broadcast, Cert, ClientId, Dialect, GroupId, Message, MessageId, Record, Request, SigPk, seal,
};
use heliostat::crypto::{Secret, boxes, sign};
use heliostat::time::Now;

/// How often each group is told that time went on.
const TICK: Duration = Duration::from_millis(500);

/// A peer, and what it told.
pub struct Peer {
    pub group: Group,
    pub at: Endpoint,
    pub events: Vec<Event>,
    pub saved: Vec<Save>,
    pub secret: [u8; 32],
    pub seed: Option<[u8; 32]>,
    pub rules: Rules,
    pub sent: usize,
    /// Off the net: neither heard nor asked what time it is.
    pub off: bool,
}

impl Peer {
    pub fn id(&self) -> ClientId {
        self.group.me().id()
    }

    /// What was said since, oldest first: by whom, and what.
    pub fn heard(&mut self) -> Vec<(ClientId, String)> {
        let said = |event: Event| match event {
            Event::Said { by, text, .. } => Some((by, text)),
            _ => None,
        };
        std::mem::take(&mut self.events).into_iter().filter_map(said).collect()
    }

    pub fn knows(&self, id: ClientId) -> bool {
        self.group.members().iter().any(|it| it.id == id)
    }
}

type Flight = Reverse<(Duration, u64, usize, usize, Vec<u8>)>;

/// The world: peers, the packets between them, the time, and one die for everything.
pub struct World {
    pub peers: Vec<Peer>,
    pub now: Now,
    pub id: GroupId,
    pub mode: Mode,
    /// Percent of packets that get lost.
    pub loss: u64,
    /// Peers below and from this number do not hear each other.
    pub cut: Option<usize>,
    dice: fastrand::Rng,
    flights: BinaryHeap<Flight>,
    by_address: BTreeMap<Endpoint, usize>,
    order: u64,
    founder: [u8; 32],
}

pub fn rules() -> Rules {
    Rules { node_format: NodeFormat::Fixed(Dialect::N40), ..Rules::default() }
}

impl World {
    /// A classic group with a hub, whose word counts: its key is part of how the group is kept, so it is known before.
    pub fn with_owner(seed: u64) -> Self {
        let mut world = Self::new(seed, Mode::Classic { owner: None, topic_lock: false });
        let hub = world.hub();
        let owner = Some(world.peers[hub].id());
        let mut world = Self::new(seed, Mode::Classic { owner, topic_lock: false });
        world.hub();
        world
    }

    pub fn new(seed: u64, mode: Mode) -> Self {
        let mut dice = fastrand::Rng::with_seed(seed);
        let mut founder = [0; 32];
        dice.fill(&mut founder);
        let id = match mode {
            Mode::Classic { .. } => GroupId(founder),
            Mode::Signed => GroupId(sign::Pair::new(&Secret::new(founder)).public()),
        };
        Self {
            peers: Vec::new(),
            now: Now { monotonic: Duration::from_secs(1_000), wall_ms: 1_700_000_000_000 },
            id,
            mode,
            loss: 0,
            cut: None,
            dice,
            flights: BinaryHeap::new(),
            by_address: BTreeMap::new(),
            order: 0,
            founder,
        }
    }

    /// A pair whose public key begins with this byte, if one is asked for.
    fn secret(&mut self, first: Option<u8>) -> [u8; 32] {
        loop {
            let mut secret = [0; 32];
            self.dice.fill(&mut secret);
            let public = heliostat::crypto::boxes::public(&Secret::new(secret));
            if first.is_none_or(|first| public[0] == first) {
                return secret;
            }
        }
    }

    /// Somebody more, whom nobody knows yet.
    pub fn peer(&mut self, rules: Rules, first: Option<u8>) -> usize {
        self.called(|n| format!("peer {n}"), rules, first)
    }

    /// The same, who says nothing about itself.
    pub fn nameless(&mut self, rules: Rules) -> usize {
        self.called(|_| String::new(), rules, None)
    }

    fn called(&mut self, name: impl Fn(usize) -> String, rules: Rules, first: Option<u8>) -> usize {
        let secret = self.secret(first);
        let seed = (self.mode == Mode::Signed).then(|| {
            let mut seed = [0; 32];
            self.dice.fill(&mut seed);
            if rules.hub { self.founder } else { seed }
        });
        let n = self.peers.len();
        let at = Endpoint::Udp(SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 33_445)));
        let group = self.group(&name(n), secret, seed, 0, &rules);
        self.by_address.insert(at, n);
        let (events, saved) = (Vec::new(), Vec::new());
        self.peers.push(Peer { group, at, events, saved, secret, seed, rules, sent: 0, off: false });
        n
    }

    fn group(&mut self, name: &str, secret: [u8; 32], seed: Option<[u8; 32]>, bound: u32, rules: &Rules) -> Group {
        let pair = seed.map(|seed| sign::Pair::new(&Secret::new(seed)));
        let own = Own::new(Secret::new(secret), pair, bound, name);
        let mut dice = self.dice.fork();
        Group::new(self.id, self.mode, rules.clone(), own, self.now, Box::new(move || dice.u64(..)))
    }

    /// A hub: of a signed group its founder.
    pub fn hub(&mut self) -> usize {
        let hub = self.peer(Rules { hub: true, ..rules() }, None);
        if self.mode == Mode::Signed {
            self.say(hub, Command::Found(Default::default())).unwrap();
        }
        hub
    }

    /// Ends a peer without a word, and starts it with what it had saved.
    pub fn restart(&mut self, n: usize) {
        let mut kept = Kept::default();
        let mut graves: Vec<Grave> = Vec::new();
        let (mut bound, mut members, mut records) = (0, BTreeMap::new(), BTreeMap::new());
        let me = self.peers[n].id();
        for save in self.peers[n].saved.clone() {
            match save {
                Save::Counter(id, to) if id == me => bound = to,
                Save::Counter(..) => {}
                Save::Member(id, name, address) => drop(members.insert(id, (name, address))),
                Save::Forget(id) => drop(members.remove(&id)),
                Save::Record(record) => drop(records.insert(about(&record), record)),
                // The same as the store: by what it is about.
                Save::RecordGone(record) => drop(records.remove(&about(&record))),
                Save::Ban(id) => kept.bans.push(id),
                Save::Tombstone(grave) => graves.push(grave),
                Save::Token(ticket) => {
                    kept.tokens.retain(|it| it.id != ticket.id);
                    kept.tokens.push(ticket);
                }
                Save::Topic(topic) => kept.topic = topic,
                Save::Line(line) => kept.history.push(line),
                Save::TokenGone(id) => kept.tokens.retain(|ticket| ticket.id != id),
            }
        }
        kept.members = members.into_iter().map(|(id, (name, address))| (id, name, address)).collect();
        kept.records = records.into_values().collect();
        kept.tombstones = graves;
        let Peer { secret, seed, rules, .. } = &self.peers[n];
        let (secret, seed, rules) = (*secret, *seed, rules.clone());
        let mut group = self.group(&format!("peer {n}"), secret, seed, bound, &rules);
        group.restore(kept);
        self.peers[n].group = group;
    }

    /// A peer has another address from now on.
    pub fn moves(&mut self, n: usize) {
        let from = Endpoint::Udp(SocketAddr::from(([10, 1, 0, n as u8], 33_445)));
        self.by_address.remove(&self.peers[n].at);
        self.by_address.insert(from, n);
        self.peers[n].at = from;
    }

    /// The two exchanged keys and addresses: a classic group's way in.
    pub fn introduce(&mut self, a: usize, b: usize) {
        for (one, other) in [(a, b), (b, a)] {
            let (id, at) = (self.peers[other].id(), self.peers[other].at);
            self.say(one, Command::AddPeer(id, Some(at))).unwrap();
        }
    }

    pub fn say(&mut self, n: usize, command: Command) -> Result<(), Refused> {
        let step = self.peers[n].group.command(self.now, command)?;
        self.carry(n, step);
        Ok(())
    }

    pub fn text(&mut self, n: usize, text: &str) {
        let by = self.peers[n].id();
        self.say(n, Command::Say { by, text: text.to_owned(), action: false }).unwrap();
    }

    /// A packet as if it came from somewhere.
    pub fn inject(&mut self, to: usize, from: Endpoint, packet: &[u8]) {
        let step = self.peers[to].group.handle(self.now, Input::Packet(from, packet));
        self.carry(to, step);
    }

    fn carry(&mut self, from: usize, step: Step) {
        let peer = &mut self.peers[from];
        peer.events.extend(step.events);
        peer.saved.extend(step.saves);
        peer.sent += step.sends.len();
        for (to, packet) in step.sends {
            let Some(&to) = self.by_address.get(&to) else { continue };
            let lost = self.dice.u64(0..100) < self.loss;
            let apart = self.cut.is_some_and(|cut| (from < cut) != (to < cut));
            if lost || apart {
                continue;
            }
            self.order += 1;
            let arrives = self.now.monotonic + Duration::from_millis(self.dice.u64(5..60));
            self.flights.push(Reverse((arrives, self.order, from, to, packet)));
        }
    }

    /// Lets time pass.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now.monotonic + time;
        while self.now.monotonic < end {
            let until = self.now.monotonic + TICK;
            while self.flights.peek().is_some_and(|Reverse((at, ..))| *at <= until) {
                let Some(Reverse((at, _, from, to, packet))) = self.flights.pop() else { break };
                self.now = self.now.plus(at.saturating_sub(self.now.monotonic));
                if !self.peers[to].off {
                    let from = self.peers[from].at;
                    self.inject(to, from, &packet);
                }
            }
            self.now = self.now.plus(until.saturating_sub(self.now.monotonic));
            for n in 0..self.peers.len() {
                if !self.peers[n].off {
                    let step = self.peers[n].group.handle(self.now, Input::Tick);
                    self.carry(n, step);
                }
            }
        }
    }

    /// Lets these say something, which everybody hears.
    pub fn some_speak(&mut self, speakers: &[usize]) {
        for &n in speakers {
            self.peers.iter_mut().for_each(|peer| peer.events.clear());
            self.text(n, "can you hear me?");
            self.pass(Duration::from_secs(1));
            let by = self.peers[n].id();
            for peer in &mut self.peers {
                assert_eq!(peer.heard(), [(by, "can you hear me?".to_owned())]);
            }
        }
    }

    /// What a peer would box, boxed by its key for another one.
    pub fn boxed(&mut self, from: usize, to: usize, request: &Request) -> Vec<u8> {
        let (sender, receiver) = (self.peers[from].id(), self.peers[to].id());
        let key = boxes::beforenm(&Secret::new(self.peers[from].secret), &receiver.0).unwrap();
        let mut nonce = [0; 24];
        self.dice.fill(&mut nonce);
        seal(&key, &receiver, &sender, &nonce, &request.encode())
    }

    /// A broadcast that `hop` sends to `to`, whatever it may.
    pub fn broadcast(&mut self, hop: usize, to: usize, broadcast: &Broadcast) {
        let packet = self.boxed(hop, to, &Request::Broadcast(broadcast.clone()));
        let at = self.peers[hop].at;
        self.inject(to, at, &packet);
    }

    /// An envelope that `by` signs.
    pub fn signed(&self, by: usize, number: u32, time_ms: u64, message: &Message) -> Broadcast {
        let pair = sign::Pair::new(&Secret::new(self.peers[by].seed.unwrap()));
        let origin = self.peers[by].id();
        let said = message.encode(MessageId::ACTION);
        let payload = Signed::issue(&pair, &self.id, &origin, number, time_ms, said).encode();
        Broadcast { origin, number, id: MessageId::SIGNED, payload }
    }

    /// An invitation from the hub.
    pub fn invitation(&mut self, hub: usize, uses: u32) -> Credential {
        self.say(hub, Command::Invite { uses, for_s: 3_600 }).unwrap();
        let invited = |event: &Event| match event {
            Event::Invited(invitation) => Some(invitation.credential.clone()),
            _ => None,
        };
        self.peers[hub].events.iter().rev().find_map(invited).unwrap()
    }

    /// Somebody comes in by a hub; whether they are in, or why not.
    pub fn enter(&mut self, n: usize, hub: usize, credential: Option<Credential>) -> Result<(), Failure> {
        let (id, at) = (self.peers[hub].id(), self.peers[hub].at);
        self.peers[n].events.clear();
        self.say(n, Command::Enter { hub: id, at, credential }).unwrap();
        for _ in 0..60 {
            self.pass(TICK);
            for event in &self.peers[n].events {
                match event {
                    Event::Entered => return Ok(()),
                    Event::NotEntered(why) => return Err(*why),
                    _ => {}
                }
            }
        }
        panic!("neither in nor out: {:?}", self.peers[n].events)
    }

    /// So many certificates of people who are not here, given one after the other until now.
    pub fn certificates(&mut self, count: u64) -> Vec<Record> {
        let now_s = self.now.wall_ms / 1_000;
        let founder = sign::Pair::new(&Secret::new(self.founder));
        let cert = |n: u64| {
            let mut bytes = [0; 32];
            self.dice.fill(&mut bytes);
            // Any number below 2^255 can be somebody's key.
            bytes[31] &= 0x7f;
            Cert {
                group: self.id,
                client: ClientId(bytes),
                sig_pk: SigPk(sign::Pair::new(&Secret::new(bytes)).public()),
                grade: Grade::User,
                not_before_s: now_s - count + n,
                not_after_s: now_s + 9_000_000,
                issuer: SigPk([0; 32]),
                signature: [0; 64],
            }
        };
        (0..count).map(cert).map(|cert| Record::Cert(cert.signed(&founder))).collect()
    }

    /// A new member of a signed group, by an invitation of its own.
    pub fn member(&mut self, hub: usize) -> usize {
        let n = self.peer(rules(), None);
        let credential = self.invitation(hub, 1);
        assert_eq!(self.enter(n, hub, Some(credential)), Ok(()));
        n
    }

    /// Lets everybody (who is not off) say something, and counts of all pairs those that heard it.
    pub fn everybody_speaks(&mut self) -> (usize, usize) {
        let on: Vec<usize> = (0..self.peers.len()).filter(|&n| !self.peers[n].off).collect();
        self.all_hear(&on)
    }

    /// The same, with these speaking.
    pub fn all_hear(&mut self, speakers: &[usize]) -> (usize, usize) {
        let on: Vec<usize> = (0..self.peers.len()).filter(|&n| !self.peers[n].off).collect();
        for &n in &on {
            self.peers[n].events.clear();
        }
        for &n in speakers {
            self.text(n, &format!("this is {n}"));
            self.pass(TICK);
        }
        self.pass(Duration::from_secs(5));
        let mut heard = 0;
        for &n in &on {
            let own = self.peers[n].id();
            let mut said: Vec<_> = self.peers[n].heard().into_iter().filter(|(by, _)| *by != own).collect();
            said.sort_unstable();
            let all = said.len();
            said.dedup();
            assert_eq!(all, said.len(), "nobody hears anything twice");
            heard += said.len();
        }
        (heard, speakers.len() * (on.len() - 1))
    }
}

/// What a record is about: of each, a hub keeps one.
fn about(record: &Record) -> (u8, Vec<u8>) {
    let key = match record {
        Record::Cert(cert) => cert.client.0.to_vec(),
        Record::Sanction(it) => [it.target.0, it.issuer.0].concat(),
        Record::State(_) | Record::Topic(_) => Vec::new(),
    };
    (record.kind() as u8, key)
}
