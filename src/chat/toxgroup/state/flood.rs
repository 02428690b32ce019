//! What is said, taken and passed on (spec 4.2, 6, 9.4, 9.5).
//!
//! Data are flooded unchanged; each hop boxes them anew. A broadcast acts and is passed on only once, by its origin and number;
//! a record only where it changed something.

use super::super::wire::message::{Presence, Signed, read_record, record_payload, shown};
use super::super::wire::{Broadcast, ClientId, Message, MessageId, Record, Request};
use super::meter::Meter;
use super::{
    COUNTER_BLOCK, Dropped, Endpoint, Event, Group, HISTORY_MAX, Line, Mode, PENDING_FOR, PENDING_MAX,
    RESTART_SLACK_MS, Role, Save, Taken, Why,
};
use crate::crypto::random;

/// How far the time in a signed envelope may be off, in milliseconds.
const SKEW_MS: u64 = 600_000;
/// Points for a signature that does not hold.
const FORGERY: u32 = 10;

/// A name for people, on one line.
pub(super) fn name_of(name: &[u8]) -> String {
    shown(name).chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
}

impl Group {
    /// Neighbours, whoever of them first: where not all of a burst gets through, it is not always the same who go without.
    fn targets(&mut self) -> Vec<(ClientId, Endpoint)> {
        let mut all: Vec<_> = self.live().collect();
        let first = self.roll(all.len() as u64);
        all.rotate_left(usize::try_from(first).unwrap_or(0));
        all
    }

    /// Says something as one of ours. The number is not used up when nobody is there to hear it (spec 4.1).
    pub(super) fn originate(&mut self, by: ClientId, message: Message) {
        // Signed groups are ours alone: nobody in them needs the number of 2014.
        let (id, payload) = message.encode(if self.is_signed() { MessageId::ACTION } else { self.rules.action });
        // A farewell also to those who are near us though we are not near them: nobody else can tell them (spec 6.4).
        let targets: Vec<_> = if message == Message::Quit { self.proved().collect() } else { self.targets() };
        if targets.is_empty() {
            return;
        }
        let Some(number) = self.next_number(by) else { return };
        let (group, time_ms) = (self.id, self.now.wall_ms);
        let Some(own) = self.own(&by) else { return };
        let (id, payload) = match &own.pair {
            Some(pair) => {
                let signed = Signed::issue(pair, &group, &by, number, time_ms, (id, payload));
                (MessageId::SIGNED, signed.encode())
            }
            None => (id, payload),
        };
        let plain = Request::Broadcast(Broadcast { origin: by, number, id, payload }).encode();
        for (target, endpoint) in targets {
            self.send_plain(endpoint, target, &plain);
        }
    }

    /// The next number of one of ours, promised to the disk by blocks.
    fn next_number(&mut self, by: ClientId) -> Option<u32> {
        let own = self.own(&by)?;
        let next = match own.counter.wrapping_add(1) {
            0 => 1,
            next => next,
        };
        own.counter = next;
        let ahead = own.bound.wrapping_sub(next);
        if ahead >= COUNTER_BLOCK {
            own.bound = next.wrapping_add(COUNTER_BLOCK - 1);
            let bound = own.bound;
            self.save(Save::Counter(by, bound));
        }
        Some(next)
    }

    /// Hands a record to everybody near. Whose it is does not matter: it stands for itself (spec 9.5).
    pub(super) fn spread(&mut self, record: &Record) {
        let (origin, payload) = (self.me.id, record_payload(record));
        let broadcast = Broadcast { origin, number: 0, id: MessageId::RECORD, payload };
        let plain = Request::Broadcast(broadcast).encode();
        for (target, endpoint) in self.targets() {
            self.send_plain(endpoint, target, &plain);
        }
    }

    /// Passes it on: not to whom it came from, nor to whom it is from unless that is wanted.
    fn forward(&mut self, hop: ClientId, broadcast: &Broadcast) {
        let plain = Request::Broadcast(broadcast.clone()).encode();
        for (target, endpoint) in self.targets() {
            let is_origin = target == broadcast.origin;
            if (target != hop && !is_origin) || (is_origin && self.rules.echo_to_origin) {
                self.send_plain(endpoint, target, &plain);
            }
        }
    }

    pub(super) fn broadcast(&mut self, from: Endpoint, hop: ClientId, broadcast: Broadcast) -> Result<(), Dropped> {
        let origin = broadcast.origin;
        if broadcast.id == MessageId::RECORD {
            return self.record(from, hop, &broadcast);
        }
        if self.is_own(&origin) {
            return Err(Dropped::Echo);
        }
        if broadcast.number == 0 || self.is_banned(&origin) {
            return Err(if broadcast.number == 0 { Dropped::Stale } else { Dropped::NotAllowed });
        }
        if self.is_signed() { self.signed(from, hop, broadcast) } else { self.classic(from, hop, broadcast) }
    }

    /// Anybody can have written this (spec 7).
    fn classic(&mut self, from: Endpoint, hop: ClientId, broadcast: Broadcast) -> Result<(), Dropped> {
        let Broadcast { origin, number, id, ref payload } = broadcast;
        if id == MessageId::SIGNED {
            return Err(Dropped::NotAllowed);
        }
        let is_new = !self.members.contains_key(&origin);
        if is_new && id == MessageId::QUIT {
            return Err(Dropped::Stranger);
        }
        if is_new && (self.is_dead(&origin) || !self.may_add(hop, origin)) {
            return Err(Dropped::Stranger);
        }
        self.take_number(origin, number, false)?;
        // Used up, whatever becomes of the rest; what nobody knows goes no further.
        let message = Message::decode(id, payload).map_err(|_| self.offend(hop, from, 2, Dropped::Malformed))?;
        let Some(message) = message else { return Err(Dropped::NotAllowed) };
        if !self.within_limits(origin, &message) {
            return Err(self.excess(origin, hop, from));
        }
        if self.act(origin, hop, message) {
            self.forward(hop, &broadcast);
        }
        Ok(())
    }

    /// More than the origin may. Each hop lets pass what its own limit allows, so of others one gets the sum of that: it is no
    /// fault of theirs.
    fn excess(&mut self, origin: ClientId, hop: ClientId, from: Endpoint) -> Dropped {
        if hop == origin { self.offend(hop, from, 1, Dropped::TooMuch) } else { Dropped::TooMuch }
    }

    fn signed(&mut self, from: Endpoint, hop: ClientId, broadcast: Broadcast) -> Result<(), Dropped> {
        let Broadcast { origin, number, id, ref payload } = broadcast;
        if id != MessageId::SIGNED {
            return Err(Dropped::NotAllowed);
        }
        let now_s = self.now_s();
        let Some((sig_pk, since_s)) = self.records.cert(&origin, now_s).map(|it| (it.sig_pk, it.not_before_s)) else {
            return self.postpone(from, hop, broadcast);
        };
        if self.is_dead(&origin) {
            return Err(Dropped::Stranger);
        }
        let now = self.now.monotonic;
        // Nobody is a member before they proved to have said this.
        let member = self.members.get(&origin).map(|member| member.window);
        let window = member.or_else(|| self.tombstones.get(&origin).map(|it| it.window)).unwrap_or_default();
        if !window.accepts(number, now, true) {
            return Err(Dropped::Stale);
        }
        let signed = Signed::decode(payload).map_err(|_| self.offend(hop, from, 2, Dropped::Malformed))?;
        if signed.time_ms.abs_diff(self.now.wall_ms) > SKEW_MS {
            return Err(Dropped::Stale);
        }
        // Which numbers were heard before a restart is not kept: of those who were here then, nothing is taken from before it.
        let before = signed.time_ms.saturating_add(RESTART_SLACK_MS) < self.started_ms;
        if before && window.is_empty() && since_s.saturating_mul(1_000) < self.started_ms {
            return Err(Dropped::Stale);
        }
        if !signed.holds(&sig_pk, &self.id, &origin, number) {
            return Err(self.offend(hop, from, FORGERY, Dropped::Forged));
        }
        let message = Message::decode(signed.id, &signed.data);
        let message = message.map_err(|_| self.offend(hop, from, 2, Dropped::Malformed))?;
        let allowed = |message: &Message| self.may_say(&origin, message);
        let Some(message) = message.filter(allowed).filter(|_| signed.id != MessageId::ACTION_2014) else {
            return Err(Dropped::NotAllowed);
        };
        if !self.add(origin) {
            return Err(Dropped::Stranger);
        }
        // Nobody but the origin can have caused it, so its number is used up also when it is too much.
        self.take_number(origin, number, true)?;
        if !self.within_limits(origin, &message) {
            return Err(self.excess(origin, hop, from));
        }
        if self.act(origin, hop, message) {
            self.forward(hop, &broadcast);
        }
        Ok(())
    }

    /// Whether somebody may say this in a signed group (the table of spec 9.1). Bans and topics are records there.
    pub(super) fn may_say(&self, by: &ClientId, message: &Message) -> bool {
        let Some(role) = self.role(by) else { return false };
        let state = self.records.state();
        match message {
            Message::Ping | Message::Quit | Message::Name(_) | Message::Status(_) => role >= Role::Observer,
            Message::Text { .. } => state.is_some_and(|state| role.may_talk(state.voice)),
            Message::NewPeer(_) => role >= Role::Moderator,
            Message::Ban(_) | Message::Topic(_) => false,
        }
    }

    fn take_number(&mut self, origin: ClientId, number: u32, signed: bool) -> Result<(), Dropped> {
        let now = self.now.monotonic;
        let member = self.members.get_mut(&origin).ok_or(Dropped::Stranger)?;
        if !member.window.accepts(number, now, signed) {
            return Err(Dropped::Stale);
        }
        member.window.take(number, now);
        (member.heard, member.seen) = (now, true);
        Ok(())
    }

    /// The limits of an origin (spec 9.8).
    fn within_limits(&mut self, origin: ClientId, message: &Message) -> bool {
        let (now, limits) = (self.now.monotonic, self.rules.limits);
        let announcements = self.announcements_of(&origin);
        let Some(member) = self.members.get_mut(&origin) else { return false };
        let (meter, pace): (&mut Meter, _) = match message {
            Message::Text { .. } => (&mut member.texts, limits.texts),
            Message::Name(_) | Message::Status(_) => (&mut member.settings, limits.settings),
            Message::Topic(_) => (&mut member.topics, limits.settings),
            Message::Ping => (&mut member.pings, limits.pings),
            Message::NewPeer(_) | Message::Ban(_) => (&mut member.newcomers, announcements),
            Message::Quit => return true,
        };
        meter.take(now, pace, 1)
    }

    /// Somebody without a certificate: it may be on its way (spec 9.4).
    fn postpone(&mut self, from: Endpoint, hop: ClientId, broadcast: Broadcast) -> Result<(), Dropped> {
        let now = self.now.monotonic;
        let waits = self.pending.iter().any(|(since, _, it)| it == &broadcast && *since + PENDING_FOR > now);
        if waits || self.pending.len() >= PENDING_MAX {
            return Err(Dropped::Stranger);
        }
        self.pending.push_back((now, hop, broadcast));
        self.sync_with(hop, from);
        Ok(())
    }

    /// A certificate came: what waited for it is heard.
    pub(super) fn hear_pending(&mut self) {
        let (now_s, now) = (self.now_s(), self.now.monotonic);
        let pending = std::mem::take(&mut self.pending);
        for (since, hop, broadcast) in pending {
            if self.records.cert(&broadcast.origin, now_s).is_none() {
                self.pending.push_back((since, hop, broadcast));
            } else if since + PENDING_FOR > now
                && let Some((from, _)) = self.members.get(&hop).and_then(|member| member.link.at)
                && let Err(why) = self.signed(from, hop, broadcast)
            {
                self.tell(Event::Dropped(why));
            }
        }
    }

    fn record(&mut self, from: Endpoint, hop: ClientId, broadcast: &Broadcast) -> Result<(), Dropped> {
        let (now, pace) = (self.now.monotonic, self.rules.limits.records);
        if !self.is_signed() {
            return Err(Dropped::NotAllowed);
        }
        if !self.members.get_mut(&hop).is_some_and(|member| member.link.records.take(now, pace, 1)) {
            return Err(self.offend(hop, from, 1, Dropped::TooMuch));
        }
        let record = read_record(&broadcast.payload).map_err(|_| self.offend(hop, from, 2, Dropped::Malformed))?;
        self.take_record(from, hop, &record)?;
        // First passed on: who is banned by it is not left in the dark.
        self.forward(hop, broadcast);
        self.changed(&record);
        Ok(())
    }

    /// Takes a record over from a neighbour; `Ok` when it changed something, which [`Self::changed`] has to hear of.
    pub(super) fn take_record(&mut self, from: Endpoint, hop: ClientId, record: &Record) -> Result<(), Dropped> {
        match self.hold(record) {
            Taken::Changed => Ok(()),
            Taken::Known => Err(Dropped::Stale),
            Taken::Refused => Err(Dropped::NotAllowed),
            Taken::Forged => Err(self.offend(hop, from, FORGERY, Dropped::Forged)),
        }
    }

    /// What follows from a record that counts from now on.
    pub(super) fn changed(&mut self, record: &Record) {
        self.save(Save::Record(record.clone()));
        for gone in self.records.evicted() {
            self.save(Save::RecordGone(gone));
        }
        match record {
            Record::Cert(cert) => {
                // As long as nobody has to go for them: that they have one does not say that they are here.
                if self.has_room() && !self.is_dead(&cert.client) {
                    self.add(cert.client);
                }
                self.hear_pending();
            }
            Record::State(_) => {
                self.tell(Event::State);
                self.remove_banned();
            }
            Record::Sanction(sanction) => {
                if let Some(role) = self.role(&sanction.target) {
                    self.tell(Event::Role(sanction.target, role));
                }
                self.remove_banned();
            }
            Record::Topic(topic) => self.tell(Event::Topic(topic.text.clone())),
        }
    }

    fn remove_banned(&mut self) {
        let banned: Vec<_> = self.members.keys().filter(|id| self.is_banned(id)).copied().collect();
        for id in banned {
            self.virtuals.remove(&id);
            self.remove(id, Why::Banned);
        }
    }

    /// Does what a message says. Whether it is to be passed on.
    fn act(&mut self, origin: ClientId, hop: ClientId, message: Message) -> bool {
        let direct = origin == hop;
        match message {
            Message::Ping => {}
            Message::NewPeer(id) => self.newcomer(origin, hop, id),
            Message::Ban(target) => {
                let owner = match self.mode {
                    Mode::Classic { owner, .. } => owner,
                    Mode::Signed => None,
                };
                let by_owner = owner == Some(origin) && direct;
                if by_owner && target == self.me.id {
                    self.tell(Event::Left(target, Why::Banned));
                } else if by_owner && owner != Some(target) {
                    self.ban(target);
                } else if !by_owner {
                    self.tell(Event::BanAsked { by: origin, target });
                }
            }
            Message::Topic(topic) => {
                let counts = match self.mode {
                    Mode::Classic { owner, topic_lock } => !topic_lock || (direct && owner == Some(origin)),
                    Mode::Signed => false,
                };
                if counts {
                    self.set_topic(topic);
                }
            }
            Message::Quit => {
                // In a classic group anybody can say so of anybody: not of one who proved to be there.
                if direct || self.is_signed() || !self.is_live(&origin) {
                    self.known.remove(&origin);
                    self.remove(origin, Why::Quit);
                } else {
                    self.doubt(origin);
                }
            }
            Message::Name(name) => self.renamed(origin, name),
            Message::Status(presence) => self.presence_of(origin, presence),
            Message::Text { text, action } => self.said(origin, &text, action),
        }
        true
    }

    pub(super) fn set_topic(&mut self, topic: Vec<u8>) {
        if self.topic != topic {
            self.topic = topic;
            self.save(Save::Topic(self.topic.clone()));
            let text = shown(&self.topic);
            self.tell(Event::Topic(text));
        }
    }

    fn renamed(&mut self, id: ClientId, name: Vec<u8>) {
        let Some(member) = self.members.get_mut(&id) else { return };
        if member.name != name {
            member.name = name;
            let (name, address) = (name_of(&member.name), member.link.at.and_then(|(at, _)| at.udp()));
            self.save(Save::Member(id, name.clone(), address));
            self.tell(Event::Renamed(id, name));
        }
    }

    fn presence_of(&mut self, id: ClientId, presence: Presence) {
        let Some(member) = self.members.get_mut(&id) else { return };
        if std::mem::replace(&mut member.presence, presence) != presence {
            self.tell(Event::Presence(id, presence));
        }
    }

    /// Somebody said something: it is told, and a hub keeps it for a while. An empty text is passed on and not shown.
    pub(super) fn said(&mut self, by: ClientId, text: &[u8], action: bool) {
        let text = shown(text);
        if text.is_empty() {
            return;
        }
        if self.rules.hub {
            let own = self.own(&by).map(|own| own.name.clone());
            let name = own.or_else(|| self.members.get(&by).map(|it| it.name.clone())).unwrap_or_default();
            let line = Line { at_ms: self.now.wall_ms, by, name: name_of(&name), text: text.clone(), action };
            if self.history.len() == HISTORY_MAX {
                self.history.pop_front();
            }
            self.history.push_back(line.clone());
            self.save(Save::Line(line));
        }
        self.tell(Event::Said { by, text, action });
    }

    /// Somebody new was let in (spec 6.1, decision 27).
    fn newcomer(&mut self, origin: ClientId, hop: ClientId, id: ClientId) {
        if self.is_own(&id) || self.is_banned(&id) {
            return;
        }
        let trusted = match self.mode {
            Mode::Classic { owner, .. } => owner == Some(origin) || origin == hop,
            Mode::Signed => true,
        };
        if trusted {
            // Its numbers are still remembered when it is added.
            if let Some(tomb) = self.tombstones.get_mut(&id) {
                tomb.dead_until = self.now.monotonic;
            }
        }
        if !self.is_dead(&id) && (!self.is_signed() || self.role(&id).is_some()) {
            self.add(id);
        }
        self.introduce_ourselves();
    }

    /// Says soon how ours are called, once for all newcomers of a moment; a hub also what it is about.
    pub(super) fn introduce_ourselves(&mut self) {
        let now = self.now.monotonic;
        let pause = std::time::Duration::from_millis(500 + self.roll(2_500));
        for own in std::iter::once(&mut self.me).chain(self.virtuals.values_mut()) {
            own.next_name = own.next_name.min(now + pause);
            own.tells_presence |= own.presence != Presence::Online;
        }
        if self.rules.hub {
            self.topic_due = self.topic_due.min(now + std::time::Duration::from_secs(2));
        }
    }
}

/// Dice of the operating system, for groups that are not simulated.
#[must_use]
pub fn dice() -> super::Dice {
    Box::new(random::u64)
}
