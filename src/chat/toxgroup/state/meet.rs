//! Who is a neighbour, and where (spec 2.1, 2.2, 5).
//!
//! A way is somebody's address only after they answered our question on it. So nobody can take over an address by claiming a
//! key, or make us send floods to somebody who did not ask for them.

use std::net::IpAddr;
use std::time::Duration;

use super::super::wire::node::NODES_MAX;
use super::super::wire::{ClientId, Dialect, MessageId, Node, Nodes, PingId, Request};
use super::meter::Meter;
use super::near::{ANCHORS_MAX, Distance, NEAR_MAX, RANDOM_MAX, REVERSE_MAX, Slot};
use super::{Dropped, Endpoint, Group, Known, Member, NodeFormat, Save, Why};
use crate::crypto::{Secret, boxes};

/// Between two questions to a neighbour.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// Between two questions to anybody, and how long an answer counts.
const ASK_PAUSE: Duration = Duration::from_secs(5);
/// A neighbour that did not answer for so long is none.
pub(super) const DEAD_AFTER: Duration = Duration::from_secs(30);
/// Between two draws of neighbours by chance.
pub(super) const REDRAW_EVERY: Duration = Duration::from_secs(600);
/// The same, for who is kept by nobody.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Between two questions to somebody who does not answer any more.
const MISSED_EVERY: Duration = Duration::from_secs(60);
/// Questions to those, per tick.
const MISSED_MAX: usize = 4;
/// How long somebody who offends too much is not heard.
const IGNORED_FOR: Duration = Duration::from_secs(60);
/// Between two questions to somebody who is kept because they keep us: twice within the time in which an answer counts.
const RETURN_EVERY: Duration = Duration::from_secs(14);
/// Two questions of somebody who chose us are not farther apart, those of somebody who keeps us in return are.
const CHOSEN_WITHIN: Duration = Duration::from_secs(12);
/// Questions to one member that wait for answers, each sent another way.
const WAYS_MAX: usize = 4;

/// A question that waits for its answer, which counts only from where the question went (spec 5).
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    ping_id: PingId,
    at: Duration,
    to: Endpoint,
}

impl Asked {
    fn is_due(&self, now: Duration) -> bool {
        self.at + ASK_PAUSE > now
    }
}

/// What connects us with a member, if anything does.
#[derive(Debug, Default)]
pub(super) struct Link {
    /// The key we share, once it was needed.
    pub(super) key: Option<Secret<32>>,
    /// Where they are, and when they last proved it.
    pub(super) at: Option<(Endpoint, Option<Duration>)>,
    pub(super) slot: Option<Slot>,
    /// One to where they are; the others to where somebody says that they are, who may have heard them say so.
    asked: Vec<Asked>,
    /// When they were last asked where they are.
    last_asked: Option<Duration>,
    /// When they last asked us from there.
    asked_us: Option<Duration>,
    /// The same, and not for the first time: they ask by the clock.
    asks_on: Option<Duration>,
    /// The same, and as often as only those do who chose us.
    chose_us: Option<Duration>,
    dialect: Option<Dialect>,
    /// How often they were answered without our knowing how they lay out nodes.
    guesses: u8,
    /// Somebody said that they left, and they themselves did not.
    doubted: Option<Duration>,
    ignored_until: Duration,
    packets: Meter,
    octets: Meter,
    answers: Meter,
    pub(super) records: Meter,
    pub(super) syncs: Meter,
    pub(super) newcomers: Meter,
    offences: Meter,
}

impl Link {
    /// With somebody who was here, and was asked whether they are again.
    pub(super) fn of(endpoint: Option<Endpoint>, asked: Vec<Asked>) -> Self {
        Self { at: endpoint.map(|endpoint| (endpoint, None)), asked, ..Self::default() }
    }

    /// They asked us, from where they are. Who has a neighbour asks it every ten seconds, and who keeps one in return does it more
    /// rarely: if both were taken for the same, two that once were neighbours would hold each other's places for ever, and those who
    /// come later would find none.
    fn note_asked(&mut self, now: Duration) {
        let before = self.asked_us.replace(now);
        let within = |pause| before.is_some_and(|before| before + pause > now);
        if within(DEAD_AFTER) {
            self.asks_on = Some(now);
        }
        if within(CHOSEN_WITHIN) {
            self.chose_us = Some(now);
        }
    }

    /// Whether they chose us, and did not give us up.
    fn chose_us(&self, now: Duration) -> bool {
        self.chose_us.is_some_and(|at| at + DEAD_AFTER > now)
    }

    /// Whether they keep us, for whatever reason.
    fn asks_on(&self, now: Duration) -> bool {
        self.asks_on.is_some_and(|at| at + DEAD_AFTER > now)
    }

    /// Whether they answered lately, where we know them to be.
    pub(super) fn is_live(&self, now: Duration) -> bool {
        self.at.and_then(|(_, proved)| proved).is_some_and(|proved| proved + DEAD_AFTER > now)
    }

    /// Where floods go.
    fn target(&self, now: Duration) -> Option<Endpoint> {
        let (endpoint, _) = self.at?;
        (self.slot.is_some() && self.is_live(now)).then_some(endpoint)
    }
}

impl Group {
    /// Neighbours that are there, and where.
    pub(super) fn live(&self) -> impl Iterator<Item = (ClientId, Endpoint)> {
        let now = self.now.monotonic;
        self.members.iter().filter_map(move |(id, member)| Some((*id, member.link.target(now)?)))
    }

    /// Everybody who proved lately to be there, neighbour or not.
    pub(super) fn proved(&self) -> impl Iterator<Item = (ClientId, Endpoint)> {
        let now = self.now.monotonic;
        let there = self.members.iter().filter(move |(_, member)| member.link.is_live(now));
        there.filter_map(|(id, member)| Some((*id, member.link.at?.0)))
    }

    /// Asks somebody who is said to have left; without an answer, that is believed.
    pub(super) fn doubt(&mut self, id: ClientId) {
        let now = self.now.monotonic;
        let Some(link) = self.members.get_mut(&id).map(|member| &mut member.link) else { return };
        if let Some((at, _)) = link.at {
            link.doubted.get_or_insert(now);
            self.ask(id, at);
        }
    }

    fn in_slot(&self, slot: Slot) -> impl Iterator<Item = ClientId> {
        self.members.iter().filter(move |(_, member)| member.link.slot == Some(slot)).map(|(id, _)| *id)
    }

    /// Whether a packet is opened at all: known neighbours have a limit each, whoever comes another way one together.
    pub(super) fn admit(&mut self, from: Endpoint, sender: ClientId, len: usize) -> Result<(), Dropped> {
        let (now, limits) = (self.now.monotonic, self.rules.limits);
        let Some(member) = self.members.get_mut(&sender) else { return Err(Dropped::Stranger) };
        let link = &mut member.link;
        if link.at.is_none_or(|(at, _)| at != from) {
            // Anybody can write any sender into a header: that must cost neither the one who is meant nor those from elsewhere.
            let few = self.stray_sources.take(from.source(), now, limits.packets);
            return if few && self.strays.take(now, limits.strays, 1) { Ok(()) } else { Err(Dropped::TooMuch) };
        }
        if link.ignored_until > now {
            return Err(Dropped::TooMuch);
        }
        let octets = u32::try_from(len).unwrap_or(u32::MAX);
        if !link.packets.take(now, limits.packets, 1) || !link.octets.take(now, limits.bytes, octets) {
            return Err(self.offend(sender, from, 1, Dropped::TooMuch));
        }
        Ok(())
    }

    /// Notes an offence of whoever is at the other end of this way, and gives back why.
    pub(super) fn offend(&mut self, sender: ClientId, from: Endpoint, points: u32, why: Dropped) -> Dropped {
        let (now, pace) = (self.now.monotonic, self.rules.limits.offences);
        let Some(member) = self.members.get_mut(&sender) else { return why };
        if member.link.at.is_some_and(|(at, _)| at == from) && !member.link.offences.take(now, pace, points) {
            member.link.ignored_until = now + IGNORED_FOR;
            if matches!(from, Endpoint::Stream(..)) {
                self.step.closes.push(from);
            }
        }
        why
    }

    pub(super) fn get_nodes(&mut self, from: Endpoint, sender: ClientId, ping_id: PingId) -> Result<(), Dropped> {
        let (now, limits) = (self.now.monotonic, self.rules.limits);
        let Some(link) = self.members.get_mut(&sender).map(|member| &mut member.link) else {
            return Err(Dropped::Stranger);
        };
        // Questions can be played back from anywhere; what they take there must not be missing where they came from.
        let moved = link.at.is_some_and(|(at, _)| at != from);
        let may = match link.at {
            Some((at, _)) if at == from => link.answers.take(now, limits.answers, 1),
            _ => self.answers.take(from, now, limits.answers),
        };
        if !may {
            return Err(Dropped::TooMuch);
        }
        if !moved {
            link.note_asked(now);
        }
        let (live, slot) = (link.is_live(now), link.slot);
        let nodes = self.nodes_for(sender);
        self.send(from, sender, &Request::SendNodes(ping_id, nodes));
        // Who would get no place is not asked: by that they can tell that nobody keeps them.
        if moved || (!live && (slot.is_some() || self.has_place(&sender))) {
            self.ask(sender, from);
        } else if live && slot.is_none() {
            self.place(sender);
        }
        Ok(())
    }

    fn has_place(&self, id: &ClientId) -> bool {
        self.rules.hub || self.fits(id).is_some() || self.reverse_slot(*id, self.now.monotonic).is_some()
    }

    /// Who is told to somebody that asks.
    fn nodes_for(&mut self, asker: ClientId) -> Nodes {
        let format = self.rules.node_format;
        let Some(link) = self.members.get_mut(&asker).map(|member| &mut member.link) else { return Nodes::default() };
        let dialect = match (format, link.dialect) {
            (NodeFormat::Fixed(dialect), _) | (NodeFormat::Auto, Some(dialect)) => dialect,
            (NodeFormat::Auto, None) => {
                // It lists us back to ourselves, so soon we know. Until then an empty list is right in every dialect.
                link.guesses = link.guesses.saturating_add(1);
                if link.guesses <= 2 {
                    return Nodes::default();
                }
                Dialect::N40
            }
        };
        let slot_of = |id: &ClientId| self.members.get(id).and_then(|member| member.link.slot);
        let mut nodes: Vec<_> = self
            .live()
            .filter(|(id, _)| *id != asker)
            .filter_map(|(id, at)| Some((slot_of(&id), Node { id, address: at.udp()? })))
            .collect();
        // Of a hub, those nearest to whoever asks; else those we chose before those that chose us.
        nodes.sort_by_key(|(slot, node)| {
            let distance = Distance::between(&node.id, &asker);
            if self.rules.hub { (None, distance) } else { (slot.filter(|slot| *slot == Slot::Reverse), distance) }
        });
        let chosen = nodes.iter().filter(|(slot, _)| self.rules.hub || *slot != Some(Slot::Reverse)).count();
        let shown = if self.rules.hub || chosen >= NODES_MAX { NODES_MAX } else { nodes.len() };
        Nodes::new(dialect, nodes.into_iter().take(shown).map(|(_, node)| node))
    }

    pub(super) fn send_nodes(
        &mut self,
        from: Endpoint,
        sender: ClientId,
        ping_id: PingId,
        nodes: Nodes,
    ) -> Result<(), Dropped> {
        let now = self.now.monotonic;
        let Some(member) = self.members.get_mut(&sender) else { return Err(Dropped::Stranger) };
        let link = &mut member.link;
        let answered = |it: &Asked| it.ping_id == ping_id && it.to == from && it.is_due(now);
        let answered = link.asked.iter().position(answered).ok_or(Dropped::Stale)?;
        link.asked.swap_remove(answered);
        member.seen = true;
        self.recount = true;
        let moved = link.at.is_none_or(|(at, _)| at != from);
        link.at = Some((from, Some(now)));
        link.dialect = nodes.dialect.or(link.dialect);
        if moved && let Some(address) = from.udp() {
            let name = super::flood::name_of(&member.name);
            self.save(Save::Member(sender, name, Some(address)));
        }
        self.place(sender);
        if self.rules.datagrams {
            let private_ok = self.rules.private_nodes || from.udp().is_some_and(|address| is_private(address.ip()));
            let mut nodes = nodes.nodes;
            // Who is drawn by chance is not always the nearest.
            self.shuffle(&mut nodes);
            for node in nodes {
                let fine = node.is_reachable() && (private_ok || !is_private(node.address.ip()));
                if fine && self.is_wanted(&node.id) && self.may_add(sender, node.id) {
                    self.ask(node.id, Endpoint::Udp(node.address));
                }
            }
        }
        self.answered(sender);
        Ok(())
    }

    fn shuffle(&mut self, nodes: &mut [Node]) {
        for at in (1..nodes.len()).rev() {
            nodes.swap(at, usize::try_from(self.roll(at as u64 + 1)).unwrap_or(at));
        }
    }

    /// Whether somebody can be a member because a neighbour says so.
    pub(super) fn may_add(&mut self, by: ClientId, id: ClientId) -> bool {
        if self.members.contains_key(&id) {
            return true;
        }
        if self.is_own(&id) || self.is_dead(&id) || self.is_banned(&id) {
            return false;
        }
        if self.is_signed() {
            return self.role(&id).is_some() && self.add(id);
        }
        let (now, pace) = (self.now.monotonic, self.rules.limits.newcomers);
        let allowed = self.members.get_mut(&by).is_some_and(|member| member.link.newcomers.take(now, pace, 1));
        allowed && self.add(id)
    }

    /// Whether it is worth a question whether they are there (spec 5.1).
    fn is_wanted(&self, id: &ClientId) -> bool {
        let now = self.now.monotonic;
        let is_neighbour = self.members.get(id).is_some_and(|it| it.link.slot.is_some() && it.link.is_live(now));
        !is_neighbour && !self.is_own(id) && (self.rules.hub || self.fits(id).is_some())
    }

    /// Which slot somebody would get, and who would have to go for it.
    fn fits(&self, id: &ClientId) -> Option<(Slot, Option<ClientId>)> {
        if self.anchors.contains(id) {
            return Some((Slot::Anchor, None));
        }
        let others = |slot| self.in_slot(slot).filter(|it| it != id).collect::<Vec<_>>();
        let near = others(Slot::Near);
        if near.len() < NEAR_MAX {
            return Some((Slot::Near, None));
        }
        let distance = |it: &ClientId| Distance::between(it, &self.me.id);
        let farthest = near.into_iter().max_by_key(distance)?;
        if distance(id) < distance(&farthest) {
            return Some((Slot::Near, Some(farthest)));
        }
        (others(Slot::Random).len() < RANDOM_MAX).then_some((Slot::Random, None))
    }

    /// Gives a slot to somebody who just proved to be there.
    fn place(&mut self, id: ClientId) {
        let now = self.now.monotonic;
        let slot = self.members.get(&id).and_then(|member| member.link.slot);
        if !matches!(slot, None | Some(Slot::Reverse)) {
            return;
        }
        let slot = if self.rules.hub {
            let (udp, streams) = self.rules.hub_neighbours;
            let is_udp = |at: Endpoint| at.udp().is_some();
            let Some((at, _)) = self.members.get(&id).and_then(|member| member.link.at) else { return };
            let alike = self.live().filter(|(_, other)| is_udp(*other) == is_udp(at)).count();
            (alike < if is_udp(at) { udp } else { streams }).then_some(Slot::Near)
        } else {
            match self.fits(&id) {
                Some((slot, pushed)) => {
                    if let Some(pushed) = pushed {
                        self.set_slot(pushed, None);
                        self.set_slot(id, Some(slot));
                        // Who was near may still be there by chance, or because it keeps us.
                        return self.place(pushed);
                    }
                    Some(slot)
                }
                None => self.reverse_slot(id, now),
            }
        };
        self.set_slot(id, slot);
    }

    fn reverse_slot(&self, id: ClientId, now: Duration) -> Option<Slot> {
        let chose_us = self.members.get(&id).is_some_and(|member| member.link.chose_us(now));
        let room = self.in_slot(Slot::Reverse).filter(|it| *it != id).count() < REVERSE_MAX;
        (chose_us && room).then_some(Slot::Reverse)
    }

    fn set_slot(&mut self, id: ClientId, slot: Option<Slot>) {
        if let Some(member) = self.members.get_mut(&id) {
            member.link.slot = slot;
        }
    }

    /// A hub that is kept whatever else is (spec 5.3).
    pub(super) fn anchor(&mut self, id: ClientId) -> bool {
        let room = self.anchors.len() < ANCHORS_MAX || self.anchors.contains(&id);
        room && self.add(id) && {
            self.anchors.insert(id);
            true
        }
    }

    /// Asks somebody who is near them: one way not more often than every five seconds. Where they are known to be they can
    /// always be asked, however many say that they are elsewhere.
    pub(super) fn ask(&mut self, id: ClientId, at: Endpoint) {
        let now = self.now.monotonic;
        let ping_id = self.bytes();
        let Some(member) = self.members.get_mut(&id) else { return };
        let link = &mut member.link;
        link.asked.retain(|it| it.is_due(now));
        let home = link.at.map(|(home, _)| home);
        let elsewhere = link.asked.iter().filter(|it| Some(it.to) != home).count();
        if member.is_virtual || link.asked.iter().any(|it| it.to == at) || (Some(at) != home && elsewhere >= WAYS_MAX) {
            return;
        }
        if Some(at) == home {
            if link.last_asked.is_some_and(|last| last + ASK_PAUSE > now) {
                return;
            }
            link.last_asked = Some(now);
        }
        link.asked.push(Asked { ping_id, at: now, to: at });
        self.send(at, id, &Request::GetNodes(ping_id));
    }

    /// A connection is over: whoever was there is nowhere.
    pub(super) fn gone(&mut self, endpoint: Endpoint) {
        for member in self.members.values_mut() {
            if member.link.at.is_some_and(|(at, _)| at == endpoint) {
                member.link.at = None;
                member.link.slot = None;
            }
        }
    }

    /// What time does to neighbours.
    pub(super) fn tend_neighbours(&mut self) {
        let now = self.now.monotonic;
        let mut due = Vec::new();
        let mut missed = Vec::new();
        let mut left = Vec::new();
        for (id, member) in &mut self.members {
            let link = &mut member.link;
            if let Some(since) = link.doubted {
                let proved = link.at.and_then(|(_, proved)| proved).is_some_and(|proved| proved > since);
                if proved {
                    link.doubted = None;
                } else if since + ASK_EVERY + ASK_PAUSE <= now {
                    left.push(*id);
                }
            }
            let is_anchor = self.anchors.contains(id);
            let faded = link.slot == Some(Slot::Reverse) && !link.chose_us(now);
            if link.slot.is_some() && (!link.is_live(now) || faded) {
                link.slot = None;
            }
            let Some((at, _)) = link.at else { continue };
            let pause = match (is_anchor, link.slot) {
                _ if link.doubted.is_some() => ASK_PAUSE,
                (_, Some(Slot::Reverse)) => RETURN_EVERY,
                (_, Some(_)) => ASK_EVERY,
                (true, None) => ASK_PAUSE,
                (false, None) => MISSED_EVERY,
            };
            if link.last_asked.is_none_or(|last| last + pause <= now) {
                if is_anchor || link.slot.is_some() { due.push((*id, at)) } else { missed.push((*id, at)) }
            }
        }
        for id in left {
            self.remove(id, Why::Quit);
        }
        missed.truncate(MISSED_MAX);
        for (id, at) in due.into_iter().chain(missed) {
            self.ask(id, at);
        }
        self.ask_known();
        if self.rules.hub {
            return;
        }
        // Who keeps us asks us. If nobody does, nothing is said to us, and nobody else can notice.
        let is_kept = |(_, it): (&ClientId, &Member)| it.link.is_live(now) && it.link.asks_on(now);
        if !self.members.iter().any(is_kept) {
            self.next_redraw = self.next_redraw.min(self.last_redraw + LOOK_EVERY);
        }
        if self.next_redraw <= now {
            (self.last_redraw, self.next_redraw) = (now, now + REDRAW_EVERY);
            self.redraw();
        }
    }

    /// One of the neighbours by chance gives way to the next one that is verified, whoever that will be: rather one that does
    /// not keep us.
    fn redraw(&mut self) {
        let now = self.now.monotonic;
        let drawn: Vec<_> = self.in_slot(Slot::Random).collect();
        let keeps_us = |id: &ClientId| self.members.get(id).is_some_and(|it| it.link.asks_on(now));
        let (loyal, others): (Vec<_>, Vec<_>) = drawn.into_iter().partition(keeps_us);
        let among = if others.is_empty() { loyal } else { others };
        let at = self.roll(among.len() as u64);
        if let Some(old) = usize::try_from(at).ok().and_then(|at| among.get(at).copied()) {
            let slot = self.reverse_slot(old, now);
            self.set_slot(old, slot);
        }
    }

    /// Whether somebody proved lately to be at the other end of some way.
    pub(super) fn is_live(&self, id: &ClientId) -> bool {
        self.members.get(id).is_some_and(|member| member.link.is_live(self.now.monotonic))
    }

    /// Whether somebody proved to be at the other end of this way.
    #[must_use]
    pub fn is_verified(&self, endpoint: Endpoint) -> bool {
        self.members.values().any(|it| it.link.at.is_some_and(|(at, proved)| at == endpoint && proved.is_some()))
    }

    /// Tells of a neighbour, for tests and tools that look at the net.
    #[must_use]
    pub fn neighbour_ids(&self) -> Vec<ClientId> {
        self.live().map(|(id, _)| id).collect()
    }

    /// Asks those who were members once whether they are there again; a few at a time.
    fn ask_known(&mut self) {
        let now = self.now.monotonic;
        let rests = |it: &Known| it.last_asked.is_some_and(|last| last + MISSED_EVERY > now);
        let due = self.known.iter().filter(|(_, it)| !rests(it));
        let due: Vec<_> = due.filter_map(|(id, it)| Some((*id, it.endpoint?))).take(MISSED_MAX).collect();
        for (id, at) in due {
            self.ask_back(id, at);
        }
    }

    /// Asks somebody who is no member whether it is them: then they are one again.
    fn ask_back(&mut self, id: ClientId, at: Endpoint) {
        let now = self.now.monotonic;
        let ping_id: PingId = self.bytes();
        let Some(known) = self.known.get_mut(&id) else { return };
        if known.endpoint == Some(at) {
            known.last_asked = Some(now);
        }
        known.asked.retain(|it| it.is_due(now));
        if known.asked.iter().any(|it| it.to == at) || known.asked.len() >= WAYS_MAX {
            return;
        }
        known.asked.push(Asked { ping_id, at: now, to: at });
        if let Ok(key) = boxes::beforenm(&self.me.secret, &id.0) {
            self.send_with(&key, at, id, &Request::GetNodes(ping_id));
        }
    }

    /// Somebody who is no member and may be one says something they said to neighbours. Questions can be played back, so they prove
    /// nothing; but whoever asks is asked, and told no more than that we are here.
    pub(super) fn returns(
        &mut self,
        from: Endpoint,
        id: ClientId,
        key: &Secret<32>,
        request: Request,
    ) -> Result<(), Dropped> {
        let now = self.now.monotonic;
        match request {
            Request::GetNodes(ping_id) => {
                self.send_with(key, from, id, &Request::SendNodes(ping_id, Nodes::default()));
                let known = self.known.entry(id).or_insert_with(|| Known { since: now, ..Known::default() });
                known.endpoint.get_or_insert(from);
                super::bound(&mut self.known, |known| known.since);
                self.ask_back(id, from);
                Ok(())
            }
            Request::SendNodes(ping_id, nodes) => {
                let answered = |it: &Asked| it.ping_id == ping_id && it.to == from && it.is_due(now);
                if !self.known.get(&id).is_some_and(|it| it.asked.iter().any(answered)) || !self.add(id) {
                    return Err(Dropped::Stale);
                }
                self.send_nodes(from, id, ping_id, nodes)
            }
            // What is signed proves itself.
            Request::Broadcast(broadcast) if broadcast.id == MessageId::SIGNED && broadcast.origin == id => {
                self.broadcast(from, id, broadcast)
            }
            _ => Err(Dropped::Stranger),
        }
    }
}

/// An address that means another machine to everybody else.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}
