//! Who is let in, and how records spread (spec 6.3, 9.6, 9.7).

use std::net::IpAddr;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::super::wire::record::Grade;
use super::super::wire::{
    Cert, ClientId, JoinRefused, JoinReply, JoinRequest, Message, Record, Request, Sealed, SigPk, SyncRecords,
    SyncRequest, seal,
};
use super::meter::Meter;
use super::{Dropped, Endpoint, Event, Group, KEPT_MAX, REMEMBERED, Role, Save};
use crate::crypto::{boxes, equal, sign};

/// Between two requests to be let in, and how many there are.
const JOIN_EVERY: Duration = Duration::from_secs(3);
const JOIN_TRIES: u32 = 5;
/// Between two questions to the hub before it answered, and how many there are (spec 6.3).
const KNOCK_EVERY: Duration = Duration::from_secs(5);
const KNOCK_TRIES: u32 = 12;
/// How long a certificate lasts, and from when on it is renewed, in seconds.
const CERT_LIFE_S: u64 = 30 * 86_400;
const CERT_RENEW_S: u64 = 7 * 86_400;
/// Between two questions for records, and between two when one is missing.
const SYNC_EVERY: Duration = Duration::from_secs(60);
const SYNC_PAUSE: Duration = Duration::from_secs(5);
/// How far the time in a request may be off, in seconds.
const SKEW_S: u64 = 600;

/// What proves that somebody was invited; zeros where nobody has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Which invitation.
    pub id: [u8; 16],
    /// What proves it.
    pub secret: [u8; 32],
}

/// Why we are not in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The hub says so.
    #[error("{0}")]
    Refused(#[from] JoinRefused),
    /// The hub says nothing.
    #[error("the hub does not answer")]
    NoAnswer,
}

/// Our way in.
#[derive(Debug)]
pub(super) struct Joining {
    pub(super) hub: ClientId,
    pub(super) at: Endpoint,
    /// `None`: let in, or known there already; now the hub has to tell who is near.
    pub(super) credential: Option<Credential>,
    tries: u32,
    next: Duration,
}

impl Joining {
    pub(super) const fn new(hub: ClientId, at: Endpoint, credential: Option<Credential>, now: Duration) -> Self {
        Self { hub, at, credential, tries: 0, next: now }
    }
}

/// Somebody was let in: the same answer, if it is lost.
#[derive(Debug)]
pub(super) struct Welcome {
    sig_pk: SigPk,
    pub(super) until: Duration,
}

/// By what strangers are counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival(Option<IpAddr>);

impl Arrival {
    /// An IPv4 address, or the first 56 bits of another. Connections are counted where they are accepted.
    pub(super) fn of(from: Endpoint) -> Self {
        Self(from.udp().map(|address| match address.ip().to_canonical() {
            IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) & !(u128::MAX >> 56)).into()),
            ip => ip,
        }))
    }
}

impl Group {
    /// A packet of somebody who is not a member: the only thing they can say is that they want to be one.
    pub(super) fn stranger(&mut self, from: Endpoint, sealed: &Sealed<'_>) -> Result<(), Dropped> {
        self.count_arrival(from)?;
        let request = self.open_stranger(sealed)?;
        self.join_request(from, sealed.sender, &request)
    }

    /// Somebody who is banned is told so, where they ask in due form.
    pub(super) fn refuse_banned(&mut self, from: Endpoint, sealed: &Sealed<'_>) -> Result<(), Dropped> {
        if !self.is_signed() {
            return Err(Dropped::NotAllowed);
        }
        self.count_arrival(from)?;
        self.open_stranger(sealed)?;
        self.reply(from, sealed.sender, JoinReply::Refused(JoinRefused::Banned));
        Err(Dropped::NotAllowed)
    }

    /// Before anything is decrypted for them.
    fn count_arrival(&mut self, from: Endpoint) -> Result<(), Dropped> {
        let (now, limits) = (self.now.monotonic, self.rules.limits);
        if !self.rules.hub {
            return Err(Dropped::Stranger);
        }
        let Arrival(address) = Arrival::of(from);
        if let Some(address) = address {
            if self.arrivals.len() >= KEPT_MAX {
                self.arrivals.retain(|_, meter: &mut Meter| !meter.is_rested(now));
            }
            let is_new = !self.arrivals.contains_key(&address);
            if is_new && self.arrivals.len() >= KEPT_MAX {
                return Err(Dropped::TooMuch);
            }
            if !self.arrivals.entry(address).or_default().take(now, limits.joins_per_address, 1) {
                return Err(Dropped::TooMuch);
            }
        }
        if self.joins.take(now, limits.joins, 1) { Ok(()) } else { Err(Dropped::TooMuch) }
    }

    fn open_stranger(&self, sealed: &Sealed<'_>) -> Result<JoinRequest, Dropped> {
        if !sealed.sender.is_usable() {
            return Err(Dropped::Stranger);
        }
        let key = boxes::beforenm(&self.me.secret, &sealed.sender.0).map_err(|_| Dropped::Forged)?;
        let plain = sealed.open(&key).map_err(|_| Dropped::Forged)?;
        match Request::decode(&plain) {
            Ok(Request::JoinRequest(request)) => Ok(request),
            Ok(_) => Err(Dropped::Stranger),
            Err(_) => Err(Dropped::Malformed),
        }
    }

    /// Answers also those who are no members.
    fn reply(&mut self, to: Endpoint, id: ClientId, reply: JoinReply) {
        let nonce = self.bytes();
        if let Ok(key) = boxes::beforenm(&self.me.secret, &id.0) {
            let plain = Request::JoinReply(reply).encode();
            self.step.sends.push((to, seal(&key, &id, &self.me.id, &nonce, &plain)));
        }
    }

    pub(super) fn join_request(
        &mut self,
        from: Endpoint,
        sender: ClientId,
        request: &JoinRequest,
    ) -> Result<(), Dropped> {
        if !self.rules.hub {
            return Err(Dropped::NotAllowed);
        }
        match self.judge_join(sender, request) {
            Ok(cert) => {
                self.reply(from, sender, JoinReply::Welcome(cert.map(Box::new)));
                self.ask(sender, from);
                Ok(())
            }
            Err(why) => {
                self.reply(from, sender, JoinReply::Refused(why));
                Err(Dropped::NotAllowed)
            }
        }
    }

    /// Lets somebody in, or says why not.
    fn judge_join(&mut self, sender: ClientId, request: &JoinRequest) -> Result<Option<Cert>, JoinRefused> {
        let (now, now_s) = (self.now.monotonic, self.now_s());
        let signed = self.is_signed();
        if signed {
            let skew = request.time_s.abs_diff(now_s);
            let to_sign = request.to_sign(&self.id, &self.me.id, &sender);
            if skew > SKEW_S || sign::verify(&request.sig_pk.0, &to_sign, &request.signature).is_err() {
                return Err(JoinRefused::Signature);
            }
        }
        let same = self.welcomed.get(&sender).is_some_and(|it| it.sig_pk == request.sig_pk && it.until > now);
        if same && self.members.contains_key(&sender) {
            return Ok(self.records.cert(&sender, now_s).cloned());
        }
        let invited = if self.is_open() && request.token_id == [0; 16] {
            None
        } else {
            Some(self.ticket(&request.token_id, &request.token_secret).ok_or(JoinRefused::Token)?)
        };
        if self.is_banned(&sender) {
            return Err(JoinRefused::Banned);
        }
        let name = std::str::from_utf8(&request.name).map_err(|_| JoinRefused::Signature)?;
        // A key that signs for somebody else already signs for nobody new.
        if signed && self.records.certs(now_s).any(|it| it.sig_pk == request.sig_pk && it.client != sender) {
            return Err(JoinRefused::Signature);
        }
        if !self.welcomes.take(now, self.rules.limits.welcomes, 1) {
            return Err(JoinRefused::SlowDown);
        }
        let cert = self.welcome(sender, signed.then_some(request.sig_pk), name)?;
        if let Some(id) = invited {
            self.use_ticket(id);
        }
        self.welcomed.insert(sender, Welcome { sig_pk: request.sig_pk, until: now + REMEMBERED });
        super::bound(&mut self.welcomed, |welcome| welcome.until);
        Ok(cert)
    }

    /// An invitation that still counts.
    pub(super) fn ticket(&self, id: &[u8; 16], secret: &[u8; 32]) -> Option<[u8; 16]> {
        let ticket = self.tickets.get(id)?;
        let fits = equal(&ticket.hash, &Sha256::digest(secret));
        (fits && ticket.uses > 0 && ticket.expires_s > self.now_s()).then_some(*id)
    }

    pub(super) fn use_ticket(&mut self, id: [u8; 16]) {
        let Some(ticket) = self.tickets.get_mut(&id) else { return };
        ticket.uses = ticket.uses.saturating_sub(1);
        let ticket = *ticket;
        if ticket.uses == 0 {
            self.tickets.remove(&id);
            self.save(Save::TokenGone(id));
        } else {
            self.save(Save::Token(ticket));
        }
    }

    /// Makes somebody a member and tells everybody.
    pub(super) fn welcome(
        &mut self,
        id: ClientId,
        sig_pk: Option<SigPk>,
        name: &str,
    ) -> Result<Option<Cert>, JoinRefused> {
        // Who left and asks again is here again.
        if let Some(tomb) = self.tombstones.get_mut(&id) {
            tomb.dead_until = self.now.monotonic;
        }
        let cert = match sig_pk {
            Some(sig_pk) => Some(self.certify(id, sig_pk, Grade::User).ok_or(JoinRefused::NoGroup)?),
            None => None,
        };
        if !self.add(id) {
            return Err(JoinRefused::Full);
        }
        if let Some(member) = self.members.get_mut(&id) {
            member.name = name.as_bytes().to_vec();
        }
        let address = None;
        self.save(Save::Member(id, super::flood::name_of(name.as_bytes()), address));
        if let Some(cert) = &cert {
            // Nobody can be shown as a member whose certificate is not known, so that one first.
            let record = Record::Cert(cert.clone());
            if self.records.take(&record, self.now_s()) == super::Taken::Changed {
                self.changed(&record);
            }
            self.spread(&record);
        }
        self.originate(self.me.id, Message::NewPeer(id));
        self.introduce_ourselves();
        Ok(cert)
    }

    /// A certificate from us, if we may give any.
    pub(super) fn certify(&self, client: ClientId, sig_pk: SigPk, grade: Grade) -> Option<Cert> {
        let pair = self.me.pair.as_ref().filter(|pair| self.records.rank(&SigPk(pair.public())) >= Role::Moderator)?;
        let now_s = self.now_s();
        let cert = Cert {
            group: self.id,
            client,
            sig_pk,
            grade,
            not_before_s: now_s,
            not_after_s: now_s + CERT_LIFE_S,
            issuer: SigPk([0; 32]),
            signature: [0; 64],
        };
        Some(cert.signed(pair))
    }

    /// New certificates for members whose old ones run out, or were given by somebody who has no right to it any more.
    pub(super) fn renew_certs(&mut self) {
        if !self.rules.hub || !self.is_signed() {
            return;
        }
        let now_s = self.now_s();
        let old = self.records.certs(now_s).filter(|cert| cert.not_after_s < now_s + CERT_RENEW_S);
        let here = |cert: &&Cert| self.members.contains_key(&cert.client) || cert.client == self.me.id;
        // Those of a moderator that was removed are the founder's to judge.
        let is_founder = self.role(&self.me.id) == Some(Role::Founder);
        let orphans = self.records.orphans().filter(|_| is_founder);
        let due: Vec<_> = old.chain(orphans).filter(here).cloned().collect();
        for cert in due {
            if let Some(cert) = self.certify(cert.client, cert.sig_pk, cert.grade) {
                self.publish(Record::Cert(cert));
            }
        }
    }

    /// A record of our own making: it counts here first.
    pub(super) fn publish(&mut self, record: Record) {
        if self.records.take(&record, self.now_s()) == super::Taken::Changed {
            self.spread(&record);
            self.changed(&record);
        }
    }

    pub(super) fn join_reply(&mut self, sender: ClientId, reply: JoinReply) -> Result<(), Dropped> {
        let (now, now_s) = (self.now.monotonic, self.now_s());
        let Some(joining) = self.joining.as_mut().filter(|it| it.hub == sender && it.credential.is_some()) else {
            return Err(Dropped::Stale);
        };
        match reply {
            JoinReply::Welcome(cert) => {
                joining.credential = None;
                (joining.tries, joining.next) = (0, now);
                if cert.is_none() && self.is_signed() {
                    // An invitation does not say which kind of group it is for; the answer does.
                    self.mode = super::Mode::Classic { owner: Some(sender), topic_lock: false };
                    self.me.pair = None;
                }
                if let Some(cert) = cert {
                    // Whether the hub may give it is known with the state, which comes next: a moderator's waits until then.
                    self.records.take(&Record::Cert(*cert), now_s);
                }
                self.tend_joining();
            }
            // It does not say for how long: we ask again anyway.
            JoinReply::Refused(JoinRefused::SlowDown) => {}
            JoinReply::Refused(why) => {
                self.joining = None;
                self.tell(Event::NotEntered(why.into()));
            }
        }
        Ok(())
    }

    /// Asks again, until there is an answer or hope is gone.
    pub(super) fn tend_joining(&mut self) {
        let now = self.now.monotonic;
        let Some(joining) = self.joining.as_mut().filter(|joining| joining.next <= now) else { return };
        let (every, tries) =
            if joining.credential.is_some() { (JOIN_EVERY, JOIN_TRIES) } else { (KNOCK_EVERY, KNOCK_TRIES) };
        if joining.tries == tries {
            self.joining = None;
            return self.tell(Event::NotEntered(Failure::NoAnswer));
        }
        joining.tries += 1;
        joining.next = now + every;
        let (hub, at, credential) = (joining.hub, joining.at, joining.credential.clone());
        let Some(credential) = credential else { return self.ask(hub, at) };
        let mut request = JoinRequest {
            token_id: credential.id,
            token_secret: credential.secret,
            sig_pk: self.me.sig_pk().unwrap_or(SigPk([0; 32])),
            time_s: self.now_s(),
            name: self.me.name.clone(),
            signature: [0; sign::SIGNATURE],
        };
        if let Some(pair) = &self.me.pair {
            request.signature = pair.sign(&request.to_sign(&self.id, &hub, &self.me.id));
        }
        self.send(at, hub, &Request::JoinRequest(request));
    }

    /// Somebody answered: if that is whom we came by, we are in (spec 6.3).
    pub(super) fn answered(&mut self, id: ClientId) {
        let now = self.now.monotonic;
        if self.joining.as_ref().is_some_and(|it| it.hub == id && it.credential.is_none()) {
            self.joining = None;
            (self.me.next_name, self.me.next_ping) = (now, now);
            self.me.tells_presence = true;
            self.tend_own(self.me.id);
            if self.is_signed() {
                (self.awaits_records, self.next_sync) = (true, now);
                self.tend_sync();
            } else {
                self.tell(Event::Entered);
            }
        }
    }

    /// In a signed group we are in when we know what we may.
    fn note_entered(&mut self) {
        if self.awaits_records && self.records.state().is_some() && self.role(&self.me.id).is_some() {
            self.awaits_records = false;
            self.tell(Event::Entered);
        }
    }

    /// Asks a neighbour by chance for records, a hub rather than another.
    pub(super) fn tend_sync(&mut self) {
        let now = self.now.monotonic;
        if self.next_sync > now {
            return;
        }
        let live: Vec<_> = self.live().collect();
        let hubs: Vec<_> = live.iter().filter(|(id, _)| self.anchors.contains(id)).copied().collect();
        let among = if hubs.is_empty() { live } else { hubs };
        let at = self.roll(among.len() as u64);
        if let Some((id, at)) = usize::try_from(at).ok().and_then(|at| among.get(at).copied()) {
            self.next_sync = now + if self.awaits_records { SYNC_PAUSE } else { SYNC_EVERY };
            self.ask_records(id, at, 0);
        }
    }

    /// Asks this one now, if it was not just done.
    pub(super) fn sync_with(&mut self, id: ClientId, at: Endpoint) {
        let now = self.now.monotonic;
        if self.last_sync.is_zero() || self.last_sync + SYNC_PAUSE <= now {
            self.last_sync = now.max(Duration::from_nanos(1));
            self.ask_records(id, at, 0);
        }
    }

    fn ask_records(&mut self, id: ClientId, at: Endpoint, offset: u16) {
        let digest = self.records.digest(self.now_s());
        let state_version = self.records.state().map_or(0, |state| state.version);
        self.send(at, id, &Request::SyncRequest(SyncRequest { state_version, digest, offset }));
    }

    pub(super) fn sync_request(
        &mut self,
        from: Endpoint,
        sender: ClientId,
        request: SyncRequest,
    ) -> Result<(), Dropped> {
        let (now, now_s, pace) = (self.now.monotonic, self.now_s(), self.rules.limits.syncs);
        let Some(member) = self.members.get_mut(&sender).filter(|_| matches!(self.mode, super::Mode::Signed)) else {
            return Err(Dropped::NotAllowed);
        };
        if !member.link.syncs.take(now, pace, 1) {
            return Err(self.offend(sender, from, 1, Dropped::TooMuch));
        }
        // Records are many and requests small: only to where somebody proved to be.
        if member.link.at.is_none_or(|(at, proved)| at != from || proved.is_none()) {
            self.ask(sender, from);
            return Ok(());
        }
        let held = self.records.held(now_s);
        let ours = self.records.state().map_or(0, |state| state.version);
        let same = request.offset == 0 && request.digest == self.records.digest(now_s) && request.state_version == ours;
        let total = u16::try_from(held.len()).unwrap_or(u16::MAX);
        let rest = held.get(usize::from(request.offset)..).unwrap_or_default();
        let packets = if same { Vec::new() } else { SyncRecords::packets(total, request.offset, rest) };
        if packets.is_empty() {
            let nothing = SyncRecords { total: 0, offset: 0, records: Vec::new() };
            self.send(from, sender, &Request::SyncRecords(nothing));
        }
        for packet in packets {
            self.send(from, sender, &Request::SyncRecords(packet));
        }
        Ok(())
    }

    pub(super) fn sync_records(
        &mut self,
        from: Endpoint,
        sender: ClientId,
        answer: SyncRecords,
    ) -> Result<(), Dropped> {
        let SyncRecords { total, offset, records } = answer;
        let count = u16::try_from(records.len()).unwrap_or(u16::MAX);
        // What allows something before what is allowed by it.
        let (topics, others): (Vec<_>, Vec<_>) = records.iter().partition(|it| matches!(it, Record::Topic(_)));
        for record in others.into_iter().chain(topics) {
            match self.take_record(from, sender, record) {
                Ok(()) => self.changed(record),
                Err(why @ (Dropped::Forged | Dropped::NotAllowed)) => self.tell(Event::Dropped(why)),
                Err(_) => {}
            }
        }
        let next = offset.saturating_add(count);
        if next >= total {
            self.note_entered();
        }
        // Eight packets are an answer: with the last of them the next are asked for.
        let packets = self.sync_page.take().filter(|page| page.from == sender).map_or(0, |page| page.packets) + 1;
        if count > 0 && next < total {
            let full = packets == super::super::wire::SYNC_PACKETS_MAX;
            self.sync_page = Some(super::SyncPage { from: sender, packets: if full { 0 } else { packets } });
            if full {
                self.ask_records(sender, from, next);
            }
        }
        Ok(())
    }
}
