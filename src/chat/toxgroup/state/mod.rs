//! One group, as one of its members sees it: what is decided. Bytes, time and dice are handed in; a [`Step`] comes out, and nothing
//! else does (spec 10.5).
//!
//! An ordinary peer and a hub are the same [`Group`]; a hub keeps everybody as a neighbour, lets people in, and speaks for *virtual
//! members*, who have keys and numbers of their own and no socket. Whatever a step wants to have saved has to be on disk before its
//! packets leave: a number that was used must never be used again.
//!
//! | file | decides |
//! |---|---|
//! | this one | what there is, and what time brings |
//! | `meet` | who is a neighbour, and where |
//! | `flood` | what is said, taken and passed on |
//! | `join` | who is let in |
//! | `sync` | how records are fetched |
//! | `command` | what is asked for from here |
//! | [`records`] | what counts in a signed group |
//! | `near`, `window`, `meter` | distance, numbers, limits |

mod command;
mod flood;
mod join;
mod meet;
mod meter;
mod near;
pub mod records;
mod sync;
mod window;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

pub use self::command::{Command, Invitation, KICK_S, Refused, Shape};
pub use self::flood::dice;
pub use self::join::{Credential, Failure};
use self::join::{Joining, Welcome};
use self::meet::{Asked, Link};
use self::meter::{Crowd, Meter};
pub use self::meter::{Limits, Pace};
pub use self::near::Distance;
pub use self::records::{Records, Role, Taken, digest};
use self::sync::{Entering, Round};
pub use self::window::{RESYNC, WINDOW, Window};
use super::wire::message::Presence;
use super::wire::{Broadcast, ClientId, Dialect, GroupId, Message, MessageId, Record, Request, Sealed, SigPk, seal};
use crate::crypto::{Secret, boxes, sign};
use crate::time::Now;

/// A member of whom nothing was heard for so long is gone.
pub const EXPIRY: Duration = Duration::from_secs(150);
/// How long who left is not believed to be there, in a classic group.
pub const TOMBSTONE: Duration = Duration::from_secs(180);
/// How long numbers are remembered in a signed group, so that nothing is played back (spec 9.4).
pub const REMEMBERED: Duration = Duration::from_secs(1_200);
/// How long somebody is looked for who was here.
const KNOWN_FOR: Duration = Duration::from_secs(8 * 3_600);
/// Banned keys of a classic group, tombstones, and those who were here once: of each at most so many, the oldest go.
pub const KEPT_MAX: usize = 1_024;
/// Numbers that are promised to the disk at once (spec 4.1).
pub const COUNTER_BLOCK: u32 = 32;
/// Texts a hub keeps for its own users.
pub const HISTORY_MAX: usize = 200;
/// What may wait to be said, for the pace at which others listen.
pub const OUTGOING_MAX: usize = 64;
/// The same, of each of a hub's members.
pub const OUTGOING_EACH: usize = 16;
/// Members that can expire in one tick: those who are told of it take so much at a time.
const EXPIRED_MAX: usize = 16;
/// How much older than a restart something may be that is said by somebody whose numbers were forgotten with it, in milliseconds.
const RESTART_SLACK_MS: u64 = 60_000;
/// Messages of somebody unknown that wait for a certificate, and how long.
const PENDING_MAX: usize = 32;
const PENDING_FOR: Duration = Duration::from_secs(5);
/// Between two names of one member.
const NAME_EVERY: Duration = Duration::from_secs(180);
/// Between two topics of a hub in a classic group.
const TOPIC_EVERY: Duration = Duration::from_secs(900);
/// Between two looks at what is over.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// Where packets come from and go to: a way, not a person. It becomes somebody's address when an answer came that way which only
/// they could give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {
    /// Datagrams.
    Udp(SocketAddr),
    /// A connection, by the number its carrier gave it, and where it comes from.
    Stream(u64, IpAddr),
}

impl Endpoint {
    /// Where datagrams go.
    #[must_use]
    pub const fn udp(self) -> Option<SocketAddr> {
        match self {
            Self::Udp(address) => Some(address),
            Self::Stream(..) => None,
        }
    }

    /// By what those are counted who proved nothing: an IPv4 address, or the first 56 bits of another (spec 9.8).
    #[must_use]
    pub fn source(self) -> IpAddr {
        source(match self {
            Self::Udp(address) => address.ip(),
            Self::Stream(_, ip) => ip,
        })
    }
}

/// An IPv4 address, or the first 56 bits of another: one client has all that follow.
#[must_use]
pub fn source(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip) & !(u128::MAX >> 56))),
        ip => ip,
    }
}

/// How a group is kept in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As it was in 2013: nobody proves to have said anything. The owner alone can ban.
    Classic {
        /// Whose bans count.
        owner: Option<ClientId>,
        /// Whether only the owner's topic counts.
        topic_lock: bool,
    },
    /// With signatures (spec 9).
    Signed,
}

/// Which dialect nodes are told in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeFormat {
    /// Always this one.
    Fixed(Dialect),
    /// The neighbour's own.
    Auto,
}

/// How this member behaves. The default is that of the specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Which dialect nodes are told in.
    pub node_format: NodeFormat,
    /// The number that actions get: 65, or 63 for the programs of 2014.
    pub action: MessageId,
    /// Between two pings: something between these.
    pub ping: (Duration, Duration),
    /// Whether what somebody said goes back to them, too: the programs of 2014 show their own messages by that.
    pub echo_to_origin: bool,
    /// Whether private addresses are believed from public ones.
    pub private_nodes: bool,
    /// Whether this one can send datagrams. A client on a stream cannot, and ignores where others are.
    pub datagrams: bool,
    /// Whether this is a hub.
    pub hub: bool,
    /// Neighbours of a hub by datagrams, and by streams.
    pub hub_neighbours: (usize, usize),
    /// How much of everything.
    pub limits: Limits,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            node_format: NodeFormat::Fixed(Dialect::N40),
            action: MessageId::ACTION,
            ping: (Duration::from_secs(45), Duration::from_secs(60)),
            echo_to_origin: false,
            private_nodes: false,
            datagrams: true,
            hub: false,
            hub_neighbours: (256, 1_024),
            limits: Limits::default(),
        }
    }
}

impl Rules {
    /// These, for a classic group in which programs of 2014 are members.
    #[must_use]
    pub fn toxcore2014(self) -> Self {
        let ping = (Duration::from_secs(30), Duration::from_secs(30));
        Self { node_format: NodeFormat::Auto, action: MessageId::ACTION_2014, ping, echo_to_origin: true, ..self }
    }
}

/// A member that is ours: its keys, and what it says of itself.
#[derive(Debug, Clone)]
pub struct Own {
    id: ClientId,
    secret: Secret<32>,
    pair: Option<sign::Pair>,
    counter: u32,
    bound: u32,
    name: Vec<u8>,
    presence: Presence,
    next_ping: Duration,
    next_name: Duration,
    tells_presence: bool,
    texts: Meter,
    settings: Meter,
    topics: Meter,
    newcomers: Meter,
}

impl Own {
    /// A member with these keys; `pair` in a signed group. `bound` is what its counter was promised up to; 0 for a new one.
    #[must_use]
    pub fn new(secret: Secret<32>, pair: Option<sign::Pair>, bound: u32, name: &str) -> Self {
        Self {
            id: ClientId(boxes::public(&secret)),
            secret,
            pair,
            counter: bound,
            bound,
            name: name.as_bytes().to_vec(),
            presence: Presence::Online,
            next_ping: Duration::ZERO,
            next_name: Duration::ZERO,
            tells_presence: false,
            texts: Meter::default(),
            settings: Meter::default(),
            topics: Meter::default(),
            newcomers: Meter::default(),
        }
    }

    /// Who it is.
    #[must_use]
    pub const fn id(&self) -> ClientId {
        self.id
    }

    /// What it signs with.
    #[must_use]
    pub fn sig_pk(&self) -> Option<SigPk> {
        self.pair.as_ref().map(|pair| SigPk(pair.public()))
    }

    /// Its secrets, to be kept: of its pair, and the seed it signs with.
    #[must_use]
    pub fn secrets(&self) -> (Secret<32>, Option<Secret<32>>) {
        (self.secret.clone(), self.pair.as_ref().map(sign::Pair::seed))
    }
}

/// A member, as others see it.
#[derive(Debug)]
struct Member {
    window: Window,
    /// When anything was accepted of it, or it was added.
    heard: Duration,
    /// Whether it showed itself; else it is here because others say so, and gives way to those who do.
    seen: bool,
    /// One of ours, which never expires.
    is_virtual: bool,
    name: Vec<u8>,
    presence: Presence,
    link: Link,
    texts: Meter,
    settings: Meter,
    topics: Meter,
    pings: Meter,
    newcomers: Meter,
}

impl Member {
    fn new(now: Duration) -> Self {
        Self {
            window: Window::default(),
            heard: now,
            seen: false,
            is_virtual: false,
            name: Vec::new(),
            presence: Presence::Online,
            link: Link::default(),
            texts: Meter::default(),
            settings: Meter::default(),
            topics: Meter::default(),
            pings: Meter::default(),
            newcomers: Meter::default(),
        }
    }
}

/// A member, for those who ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Who.
    pub id: ClientId,
    /// What it calls itself, with the first bytes of its key where two have the same name (decision 28).
    pub name: String,
    /// How it is.
    pub presence: Presence,
    /// What it may, in a signed group.
    pub role: Option<Role>,
    /// Whether it is a neighbour.
    pub direct: bool,
}

/// Why somebody is not a member any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// They said so.
    Quit,
    /// Nothing was heard of them.
    Expired,
    /// They are banned.
    Banned,
}

/// Why something was thrown away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// No packet, or none that means something.
    Malformed,
    /// From somebody who is not a member.
    Stranger,
    /// The box does not open, or the signature does not hold.
    Forged,
    /// Heard already, or too far from what is expected.
    Stale,
    /// They may not.
    NotAllowed,
    /// More than a limit allows.
    TooMuch,
    /// Our own, come back.
    Echo,
}

/// What is worth telling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Somebody is a member.
    Joined(ClientId),
    /// Somebody is none any more.
    Left(ClientId, Why),
    /// Somebody has a name, or another one.
    Renamed(ClientId, String),
    /// Somebody is in another way.
    Presence(ClientId, Presence),
    /// Somebody said something; it may be one of ours.
    Said {
        /// Who.
        by: ClientId,
        /// What.
        text: String,
        /// `/me`.
        action: bool,
    },
    /// It is about something else.
    Topic(String),
    /// Somebody may more, or less.
    Role(ClientId, Role),
    /// Somebody who cannot ban asks for it.
    BanAsked {
        /// Who.
        by: ClientId,
        /// Whom.
        target: ClientId,
    },
    /// The group has another state.
    State,
    /// So many neighbours are there now; 0: cut off.
    Neighbours(usize),
    /// We are in.
    Entered,
    /// We are not.
    NotEntered(Failure),
    /// An invitation was made.
    Invited(Invitation),
    /// Something was thrown away.
    Dropped(Dropped),
}

/// What has to be on disk before anything else of the same step happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Save {
    /// One of ours may use numbers up to this one.
    Counter(ClientId, u32),
    /// What is known of a member, and where it was last.
    Member(ClientId, String, Option<SocketAddr>),
    /// Nothing any more.
    Forget(ClientId),
    /// A record.
    Record(Record),
    /// It is over.
    RecordGone(Record),
    /// They are out for ever (classic).
    Ban(ClientId),
    /// They left.
    Tombstone(Grave),
    /// An invitation, with the hash of its secret.
    Token(Ticket),
    /// It is used up.
    TokenGone([u8; 16]),
    /// The topic of a classic group.
    Topic(Vec<u8>),
    /// A text. The only one that may be late.
    Line(Line),
}

/// Somebody who left, as the hub keeps it. Times are Unix milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grave {
    /// Who.
    pub id: ClientId,
    /// Until when that is remembered.
    pub until_ms: u64,
    /// Until when they are not believed to be here.
    pub dead_until_ms: u64,
}

/// An invitation, as the hub keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// Which.
    pub id: [u8; 16],
    /// SHA-256 of its secret.
    pub hash: [u8; 32],
    /// Unix seconds.
    pub expires_s: u64,
    /// How many may still come by it.
    pub uses: u32,
}

/// A text that was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Unix milliseconds, when it came here.
    pub at_ms: u64,
    /// Who.
    pub by: ClientId,
    /// How they were called then.
    pub name: String,
    /// What.
    pub text: String,
    /// `/me`.
    pub action: bool,
}

/// What follows from an input.
#[derive(Debug, Default)]
#[must_use]
pub struct Step {
    /// To be on disk first.
    pub saves: Vec<Save>,
    /// To be sent then.
    pub sends: Vec<(Endpoint, Vec<u8>)>,
    /// Connections to be closed: those on them do not behave.
    pub closes: Vec<Endpoint>,
    /// To be told.
    pub events: Vec<Event>,
}

/// What a group is handed.
#[derive(Debug)]
pub enum Input<'a> {
    /// A packet came this way.
    Packet(Endpoint, &'a [u8]),
    /// A connection is over.
    Gone(Endpoint),
    /// Time went on. Every 200 ms is enough.
    Tick,
}

/// What a hub knows after a restart; see [`Save`].
#[derive(Debug, Default)]
pub struct Kept {
    /// Members, how they were called and where they were.
    pub members: Vec<(ClientId, String, Option<SocketAddr>)>,
    /// Records.
    pub records: Vec<Record>,
    /// Banned keys.
    pub bans: Vec<ClientId>,
    /// Who left.
    pub tombstones: Vec<Grave>,
    /// Invitations.
    pub tokens: Vec<Ticket>,
    /// The topic of a classic group.
    pub topic: Vec<u8>,
    /// Texts, the oldest first.
    pub history: Vec<Line>,
}

/// Gives random numbers.
pub type Dice = Box<dyn FnMut() -> u64 + Send>;

#[derive(Debug, Clone, Copy)]
struct Tombstone {
    until: Duration,
    /// Until when it is not believed to be there; after that only its numbers are remembered.
    dead_until: Duration,
    window: Window,
}

/// Somebody who was here, and is again when they answer.
#[derive(Debug, Clone, Default)]
struct Known {
    name: Vec<u8>,
    endpoint: Option<Endpoint>,
    since: Duration,
    asked: Vec<Asked>,
    last_asked: Option<Duration>,
}

/// See the top of this file.
pub struct Group {
    id: GroupId,
    mode: Mode,
    rules: Rules,
    dice: Dice,
    now: Now,
    me: Own,
    virtuals: BTreeMap<ClientId, Own>,
    members: BTreeMap<ClientId, Member>,
    anchors: BTreeSet<ClientId>,
    known: BTreeMap<ClientId, Known>,
    tombstones: BTreeMap<ClientId, Tombstone>,
    bans: VecDeque<ClientId>,
    records: Records,
    topic: Vec<u8>,
    topic_due: Duration,
    tickets: BTreeMap<[u8; 16], Ticket>,
    history: VecDeque<Line>,
    joining: Option<Joining>,
    welcomed: BTreeMap<ClientId, Welcome>,
    arrivals: Crowd<IpAddr>,
    joins: Meter,
    stray_sources: Crowd<IpAddr>,
    strays: Meter,
    /// Answers to where nobody proved to be.
    answers: Crowd<Endpoint>,
    /// Records of our own making.
    published: Meter,
    outgoing: VecDeque<(ClientId, Message)>,
    pending: VecDeque<(Duration, ClientId, Broadcast)>,
    next_sync: Duration,
    last_sync: Duration,
    round: Option<Round>,
    pages: Meter,
    /// We were let in and do not know yet what we may.
    entering: Option<Entering>,
    /// When we came back from a restart, in Unix milliseconds.
    started_ms: u64,
    next_redraw: Duration,
    last_redraw: Duration,
    next_sweep: Duration,
    neighbours: usize,
    /// Neighbours may have come or gone in this step.
    recount: bool,
    step: Step,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("id", &self.id)
            .field("me", &self.me.id)
            .field("members", &self.members.len())
            .field("neighbours", &self.neighbours)
            .finish_non_exhaustive()
    }
}

impl Group {
    /// The group as `me` sees it at first: alone.
    #[must_use]
    pub fn new(id: GroupId, mode: Mode, rules: Rules, me: Own, now: Now, dice: Dice) -> Self {
        let mut group = Self {
            id,
            mode,
            rules,
            dice,
            now,
            me,
            virtuals: BTreeMap::new(),
            members: BTreeMap::new(),
            anchors: BTreeSet::new(),
            known: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            bans: VecDeque::new(),
            records: Records::new(id),
            topic: Vec::new(),
            topic_due: now.monotonic + TOPIC_EVERY,
            tickets: BTreeMap::new(),
            history: VecDeque::new(),
            joining: None,
            welcomed: BTreeMap::new(),
            arrivals: Crowd::default(),
            joins: Meter::default(),
            stray_sources: Crowd::default(),
            strays: Meter::default(),
            answers: Crowd::default(),
            published: Meter::default(),
            outgoing: VecDeque::new(),
            pending: VecDeque::new(),
            next_sync: now.monotonic,
            last_sync: Duration::ZERO,
            round: None,
            pages: Meter::default(),
            entering: None,
            started_ms: 0,
            next_redraw: now.monotonic + meet::REDRAW_EVERY,
            last_redraw: now.monotonic,
            next_sweep: now.monotonic + SWEEP_EVERY,
            neighbours: 0,
            recount: false,
            step: Step::default(),
        };
        let first = group.ping_pause();
        (group.me.next_ping, group.me.next_name) = (now.monotonic + first, now.monotonic + NAME_EVERY);
        group
    }

    /// Takes back what was kept. Whoever was a member is asked whether they are there, and is none until they answer.
    pub fn restore(&mut self, kept: Kept) {
        let now = self.now.monotonic;
        self.started_ms = self.now.wall_ms;
        for record in kept.records {
            self.records.restore(record);
        }
        self.bans = kept.bans.into();
        for Grave { id, until_ms, dead_until_ms } in kept.tombstones {
            let [until, dead_until] = [until_ms, dead_until_ms]
                .map(|at_ms| now + Duration::from_millis(at_ms.saturating_sub(self.now.wall_ms)));
            self.tombstones.insert(id, Tombstone { until, dead_until, window: Window::default() });
        }
        for (id, name, address) in kept.members {
            let (name, endpoint) = (name.into_bytes(), address.map(Endpoint::Udp));
            self.known.insert(id, Known { name, endpoint, since: now, ..Known::default() });
        }
        bound(&mut self.known, |known| known.since);
        self.tickets = kept.tokens.into_iter().map(|ticket| (ticket.id, ticket)).collect();
        self.topic = kept.topic;
        self.history = kept.history.into();
    }

    /// Which group this is.
    #[must_use]
    pub const fn id(&self) -> GroupId {
        self.id
    }

    /// How it is kept in order.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Who we are in it.
    #[must_use]
    pub const fn me(&self) -> &Own {
        &self.me
    }

    /// The secrets of one of ours, to be kept; see [`Own::secrets`].
    #[must_use]
    pub fn secrets_of(&self, id: &ClientId) -> Option<(Secret<32>, Option<Secret<32>>)> {
        std::iter::once(&self.me).chain(self.virtuals.values()).find(|own| own.id == *id).map(Own::secrets)
    }

    /// What counts, in a signed group.
    #[must_use]
    pub const fn records(&self) -> &Records {
        &self.records
    }

    /// What it is about.
    #[must_use]
    pub fn topic(&self) -> String {
        match self.mode {
            Mode::Classic { .. } => super::wire::message::shown(&self.topic),
            Mode::Signed => self.records.topic().map(|topic| topic.text.clone()).unwrap_or_default(),
        }
    }

    /// Texts that were said lately, the oldest first; a hub has them.
    pub fn history(&self) -> impl DoubleEndedIterator<Item = &Line> {
        self.history.iter()
    }

    /// How many texts wait to be said, for the pace at which others listen.
    #[must_use]
    pub fn waits(&self) -> usize {
        self.outgoing.len()
    }

    /// Neighbours that are there.
    #[must_use]
    pub const fn neighbours(&self) -> usize {
        self.neighbours
    }

    /// How somebody calls themselves; nothing for who is no member.
    #[must_use]
    pub fn name_of(&self, id: &ClientId) -> String {
        let own = std::iter::once(&self.me).chain(self.virtuals.values()).find(|own| own.id == *id);
        let name = own.map(|own| &own.name).or_else(|| self.members.get(id).map(|member| &member.name));
        name.map(|name| flood::name_of(name)).unwrap_or_default()
    }

    /// How many members there are, ourselves and our virtual ones included.
    #[must_use]
    pub fn size(&self) -> usize {
        1 + self.virtuals.len() + self.members.values().filter(|member| !member.is_virtual).count()
    }

    /// Members, ourselves and our virtual ones included.
    #[must_use]
    pub fn members(&self) -> Vec<Profile> {
        let own = std::iter::once(&self.me).chain(self.virtuals.values()).map(|own| (own.id, &own.name, own.presence));
        let others = self.members.iter().filter(|(_, member)| !member.is_virtual);
        let others = others.map(|(id, member)| (*id, &member.name, member.presence));
        let all: Vec<_> = own.chain(others).map(|(id, name, presence)| (id, flood::name_of(name), presence)).collect();
        let mut names: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, name, _) in &all {
            *names.entry(name).or_default() += 1;
        }
        let profile = |(id, name, presence): &(ClientId, String, Presence)| Profile {
            id: *id,
            name: match names.get(name.as_str()) {
                Some(1) if !name.is_empty() => name.clone(),
                _ => format!("{name}#{}", id.short()),
            },
            presence: *presence,
            role: self.role(id),
            direct: self.members.get(id).is_some_and(|member| member.link.is_live(self.now.monotonic)),
        };
        all.iter().map(profile).collect()
    }

    /// Decides.
    pub fn handle(&mut self, now: Now, input: Input<'_>) -> Step {
        self.now = now;
        match input {
            Input::Packet(from, packet) => {
                if let Err(why) = self.packet(from, packet) {
                    self.tell(Event::Dropped(why));
                }
            }
            Input::Gone(endpoint) => {
                self.recount = true;
                self.gone(endpoint);
            }
            Input::Tick => {
                self.recount = true;
                self.tick();
            }
        }
        self.finish()
    }

    fn finish(&mut self) -> Step {
        if std::mem::take(&mut self.recount) {
            let live = self.live().count();
            if live != self.neighbours {
                self.neighbours = live;
                self.tell(Event::Neighbours(live));
            }
        }
        std::mem::take(&mut self.step)
    }

    fn tell(&mut self, event: Event) {
        self.step.events.push(event);
    }

    fn save(&mut self, save: Save) {
        if self.rules.hub || matches!(save, Save::Counter(..)) {
            self.step.saves.push(save);
        }
    }

    const fn now_s(&self) -> u64 {
        self.now.wall_ms / 1_000
    }

    const fn is_signed(&self) -> bool {
        matches!(self.mode, Mode::Signed)
    }

    fn is_own(&self, id: &ClientId) -> bool {
        *id == self.me.id || self.virtuals.contains_key(id)
    }

    fn own(&mut self, id: &ClientId) -> Option<&mut Own> {
        if *id == self.me.id { Some(&mut self.me) } else { self.virtuals.get_mut(id) }
    }

    /// What somebody may. In a classic group there are no roles.
    fn role(&self, id: &ClientId) -> Option<Role> {
        if self.is_signed() { self.records.role(id, self.now_s()) } else { None }
    }

    fn is_banned(&self, id: &ClientId) -> bool {
        match self.mode {
            Mode::Classic { .. } => self.bans.contains(id),
            Mode::Signed => self.records.is_banned(id, self.now_s()),
        }
    }

    fn is_dead(&self, id: &ClientId) -> bool {
        self.tombstones.get(id).is_some_and(|tomb| tomb.dead_until > self.now.monotonic)
    }

    fn members_max(&self) -> usize {
        let said = self.records.state().map_or(0, |state| usize::from(state.peers_max));
        let most = self.rules.limits.members_max;
        // Nobody is a member of a signed group whose certificate there is no place for.
        let most = if self.is_signed() { most.min(records::CERTS_MAX) } else { most };
        if said == 0 { most } else { said.min(most) }
    }

    /// A number below `below`.
    fn roll(&mut self, below: u64) -> u64 {
        (self.dice)() % below.max(1)
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        for chunk in out.chunks_mut(8) {
            let random = (self.dice)().to_be_bytes();
            chunk.copy_from_slice(random.get(..chunk.len()).unwrap_or_default());
        }
        out
    }

    fn ping_pause(&mut self) -> Duration {
        let (least, most) = self.rules.ping;
        let span = u64::try_from(most.saturating_sub(least).as_millis()).unwrap_or(0);
        least + Duration::from_millis(self.roll(span + 1))
    }

    fn has_room(&self) -> bool {
        self.members.len() + 1 < self.members_max()
    }

    /// Adds somebody who is here, as long as there is room for them: those of whom others only say so give way. Whether they
    /// are a member now.
    fn add(&mut self, id: ClientId) -> bool {
        if self.members.contains_key(&id) {
            return true;
        }
        if self.is_own(&id) || self.is_banned(&id) || !id.is_usable() {
            return false;
        }
        if !self.has_room() {
            let unseen = |(id, it): &(&ClientId, &Member)| !it.seen && !it.is_virtual && !self.anchors.contains(id);
            let oldest = self.members.iter().filter(unseen).min_by_key(|(_, it)| it.heard).map(|(id, _)| *id);
            let Some(oldest) = oldest else { return false };
            self.remove(oldest, Why::Expired);
        }
        self.insert(id);
        true
    }

    /// Makes somebody a member, whether there is room or not.
    fn insert(&mut self, id: ClientId) {
        let mut member = Member::new(self.now.monotonic);
        if let Some(tomb) = self.tombstones.remove(&id) {
            member.window = tomb.window;
        }
        if let Some(known) = self.known.remove(&id) {
            member.name = known.name;
            member.link = Link::of(known.endpoint, known.asked);
        }
        self.members.insert(id, member);
        self.tell(Event::Joined(id));
    }

    /// Removes somebody, and remembers what has to be.
    fn remove(&mut self, id: ClientId, why: Why) {
        let Some(member) = self.members.remove(&id) else { return };
        self.recount = true;
        let now = self.now.monotonic;
        self.anchors.remove(&id);
        let dead = match why {
            Why::Quit => TOMBSTONE,
            Why::Banned | Why::Expired => Duration::ZERO,
        };
        let remembered = if self.is_signed() { REMEMBERED } else { dead };
        if !remembered.is_zero() {
            let tomb = Tombstone { until: now + remembered, dead_until: now + dead, window: member.window };
            self.tombstones.insert(id, tomb);
            bound(&mut self.tombstones, |tomb| tomb.until);
        }
        match why {
            Why::Expired => {
                // Who was a neighbour may come back, and is let in: nobody else can tell that they were a member.
                if self.rules.hub || member.link.at.is_some() {
                    let endpoint = member.link.at.map(|(endpoint, _)| endpoint);
                    let known = Known { name: member.name, endpoint, since: now, ..Known::default() };
                    self.known.insert(id, known);
                    bound(&mut self.known, |known| known.since);
                }
            }
            Why::Quit => {
                let [until_ms, dead_until_ms] = [remembered, dead].map(|it| self.now.plus(it).wall_ms);
                self.save(Save::Tombstone(Grave { id, until_ms, dead_until_ms }));
                self.save(Save::Forget(id));
            }
            Why::Banned => self.save(Save::Forget(id)),
        }
        self.tell(Event::Left(id, why));
    }

    /// A key is out for ever (spec 6.5).
    fn ban(&mut self, id: ClientId) {
        if self.bans.contains(&id) {
            return;
        }
        if self.bans.len() == KEPT_MAX {
            self.bans.pop_front();
        }
        self.bans.push_back(id);
        self.known.remove(&id);
        self.save(Save::Ban(id));
        self.remove(id, Why::Banned);
    }

    fn packet(&mut self, from: Endpoint, packet: &[u8]) -> Result<(), Dropped> {
        let sealed = Sealed::read(packet).map_err(|_| Dropped::Malformed)?;
        if sealed.receiver != self.me.id || self.is_own(&sealed.sender) {
            return Err(Dropped::Stranger);
        }
        let sender = sealed.sender;
        if self.is_banned(&sender) {
            return self.refuse_banned(from, &sealed);
        }
        if !self.members.contains_key(&sender) {
            return self.stranger(from, &sealed);
        }
        self.admit(from, sender, packet.len())?;
        let plain = self.open(&sealed).map_err(|why| self.offend(sender, from, 1, why))?;
        let request = Request::decode(&plain).map_err(|_| self.offend(sender, from, 2, Dropped::Malformed))?;
        match request {
            Request::GetNodes(ping_id) => self.get_nodes(from, sender, ping_id),
            Request::SendNodes(ping_id, nodes) => self.send_nodes(from, sender, ping_id, nodes),
            Request::Broadcast(broadcast) => self.broadcast(from, sender, broadcast),
            Request::JoinRequest(request) => self.join_request(from, sender, &request),
            Request::JoinReply(reply) => self.join_reply(sender, reply),
            Request::SyncRequest(request) => self.sync_request(from, sender, request),
            Request::SyncRecords(records) => self.sync_records(from, sender, records),
        }
    }

    /// Opens a box of a member, whose key is remembered.
    fn open(&mut self, sealed: &Sealed<'_>) -> Result<Vec<u8>, Dropped> {
        let key = self.key(&sealed.sender).ok_or(Dropped::Forged)?;
        sealed.open(&key).map_err(|_| Dropped::Forged)
    }

    /// The key that is shared with a member.
    fn key(&mut self, id: &ClientId) -> Option<Secret<32>> {
        let link = &mut self.members.get_mut(id)?.link;
        if link.key.is_none() {
            link.key = boxes::beforenm(&self.me.secret, &id.0).ok();
        }
        link.key.clone()
    }

    fn send(&mut self, to: Endpoint, id: ClientId, request: &Request) {
        self.send_plain(to, id, &request.encode());
    }

    fn send_plain(&mut self, to: Endpoint, id: ClientId, plain: &[u8]) {
        if let Some(key) = self.key(&id) {
            self.seal_to(&key, to, id, plain);
        }
    }

    /// To somebody who need not be a member.
    fn send_with(&mut self, key: &Secret<32>, to: Endpoint, id: ClientId, request: &Request) {
        self.seal_to(key, to, id, &request.encode());
    }

    fn seal_to(&mut self, key: &Secret<32>, to: Endpoint, id: ClientId, plain: &[u8]) {
        let nonce = self.bytes();
        self.step.sends.push((to, seal(key, &id, &self.me.id, &nonce, plain)));
    }

    fn tick(&mut self) {
        let now = self.now.monotonic;
        self.tend_neighbours();
        self.tend_joining();
        self.say_what_waits();
        for id in std::iter::once(self.me.id).chain(self.virtuals.keys().copied()).collect::<Vec<_>>() {
            self.tend_own(id);
        }
        if self.rules.hub && !self.is_signed() && !self.topic.is_empty() && self.topic_due <= now {
            self.topic_due = now + TOPIC_EVERY;
            let topic = Message::Topic(self.topic.clone());
            self.originate(self.me.id, topic);
        }
        let expired = |(id, member): (&ClientId, &Member)| {
            (member.heard + EXPIRY <= now && !member.is_virtual && !self.anchors.contains(id)).then_some(*id)
        };
        for id in self.members.iter().filter_map(expired).take(EXPIRED_MAX).collect::<Vec<_>>() {
            self.remove(id, Why::Expired);
        }
        self.pending.retain(|(since, ..)| *since + PENDING_FOR > now);
        if self.is_signed() {
            self.tend_sync();
        }
        if self.next_sweep <= now {
            self.next_sweep = now + SWEEP_EVERY;
            self.sweep();
        }
    }

    /// What one of ours says by the clock: that it is there, and how it is called.
    fn tend_own(&mut self, id: ClientId) {
        let (now, pace) = (self.now.monotonic, self.rules.limits.settings.careful());
        let pause = self.ping_pause();
        let Some(own) = self.own(&id) else { return };
        // What comes too early is said a little later.
        let mut due = Vec::new();
        if own.next_name <= now && !own.name.is_empty() && own.settings.take(now, pace, 1) {
            own.next_name = now + NAME_EVERY;
            due.push(Message::Name(own.name.clone()));
        }
        if own.tells_presence && own.settings.take(now, pace, 1) {
            own.tells_presence = false;
            due.push(Message::Status(own.presence));
        }
        for message in due {
            self.originate(id, message);
        }
        if let Some(own) = self.own(&id)
            && own.next_ping <= now
        {
            own.next_ping = now + pause;
            self.originate(id, Message::Ping);
        }
    }

    fn sweep(&mut self) {
        let (now, now_s) = (self.now.monotonic, self.now_s());
        self.tombstones.retain(|_, tomb| tomb.until > now);
        let forgotten = |(id, known): (&ClientId, &Known)| (known.since + KNOWN_FOR <= now).then_some(*id);
        for id in self.known.iter().filter_map(forgotten).collect::<Vec<_>>() {
            self.known.remove(&id);
            self.save(Save::Forget(id));
        }
        self.welcomed.retain(|_, welcome| welcome.until > now);
        self.arrivals.sweep(now);
        self.stray_sources.sweep(now);
        self.answers.sweep(now);
        for record in self.records.sweep(now_s) {
            self.save(Save::RecordGone(record));
        }
        let over: Vec<_> = self.tickets.values().filter(|it| it.expires_s <= now_s).map(|it| it.id).collect();
        for id in over {
            self.tickets.remove(&id);
            self.save(Save::TokenGone(id));
        }
        self.renew_certs();
    }

    fn is_open(&self) -> bool {
        self.records.state().is_some_and(|state| state.open)
    }
}

/// Drops the oldest while there are too many.
fn bound<T>(map: &mut BTreeMap<ClientId, T>, age: impl Fn(&T) -> Duration) {
    while map.len() > KEPT_MAX {
        let oldest = map.iter().min_by_key(|(_, it)| age(it)).map(|(id, _)| *id);
        oldest.and_then(|id| map.remove(&id));
    }
}
