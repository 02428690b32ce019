//! Who is let in (spec 6.3, 9.6), and by what certificates.

use std::fmt;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::super::wire::record::Grade;
use super::super::wire::{
    Cert, ClientId, JoinRefused, JoinReply, JoinRequest, Message, Record, Request, Sealed, SigPk,
};
use super::meter::Pace;
use super::sync::Entering;
use super::{Dropped, Endpoint, Event, Group, Mode, REMEMBERED, Role, Save, Taken};
use crate::crypto::{Secret, boxes, equal, sign};

/// Between two requests to be let in, and how many there are.
const JOIN_EVERY: Duration = Duration::from_secs(3);
const JOIN_TRIES: u32 = 5;
/// Between two questions to the hub before it answered, and how many there are (spec 6.3).
const KNOCK_EVERY: Duration = Duration::from_secs(5);
const KNOCK_TRIES: u32 = 12;
/// How long a certificate lasts, and from when on it is renewed, in seconds.
const CERT_LIFE_S: u64 = 30 * 86_400;
const CERT_RENEW_S: u64 = 7 * 86_400;
/// Certificates that are renewed at once, fewer than neighbours take; the others follow.
const RENEWED_MAX: usize = 64;
/// How far the time in a request may be off, in seconds.
const SKEW_S: u64 = 600;

/// What proves that somebody was invited; zeros where nobody has to be.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// Which invitation.
    pub id: [u8; 16],
    /// What proves it.
    pub secret: [u8; 32],
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("id", &self.id).finish_non_exhaustive()
    }
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

impl Group {
    /// A packet of somebody who is not a member: the only thing they can say is that they want to be one, or, if they were or
    /// have a certificate, that they are here. Nobody is made a member by what can be written without their secret, or was
    /// written once.
    pub(super) fn stranger(&mut self, from: Endpoint, sealed: &Sealed<'_>) -> Result<(), Dropped> {
        let sender = sealed.sender;
        let was_here = self.known.contains_key(&sender) || self.role(&sender).is_some();
        let may_return = was_here && !self.is_dead(&sender);
        if !self.rules.hub && !may_return {
            return Err(Dropped::Stranger);
        }
        self.count_arrival(from)?;
        let (key, request) = self.open_stranger(sealed)?;
        match request {
            Request::JoinRequest(request) => self.join_request(from, sender, &request),
            request if may_return => self.returns(from, sender, &key, request),
            _ => Err(Dropped::Stranger),
        }
    }

    /// Somebody who is banned is told so, where they ask in due form.
    pub(super) fn refuse_banned(&mut self, from: Endpoint, sealed: &Sealed<'_>) -> Result<(), Dropped> {
        if !self.is_signed() {
            return Err(Dropped::NotAllowed);
        }
        self.count_arrival(from)?;
        let (_, Request::JoinRequest(_)) = self.open_stranger(sealed)? else { return Err(Dropped::NotAllowed) };
        self.reply(from, sealed.sender, JoinReply::Refused(JoinRefused::Banned));
        Err(Dropped::NotAllowed)
    }

    /// Before anything is decrypted for them.
    fn count_arrival(&mut self, from: Endpoint) -> Result<(), Dropped> {
        let (now, limits) = (self.now.monotonic, self.rules.limits);
        // One source first: it must not take the share of all.
        let few = self.arrivals.take(from.source(), now, limits.joins_per_address);
        if few && self.joins.take(now, limits.joins, 1) { Ok(()) } else { Err(Dropped::TooMuch) }
    }

    fn open_stranger(&self, sealed: &Sealed<'_>) -> Result<(Secret<32>, Request), Dropped> {
        if !sealed.sender.is_usable() {
            return Err(Dropped::Stranger);
        }
        let key = boxes::beforenm(&self.me.secret, &sealed.sender.0).map_err(|_| Dropped::Forged)?;
        let plain = sealed.open(&key).map_err(|_| Dropped::Forged)?;
        Ok((key, Request::decode(&plain).map_err(|_| Dropped::Malformed)?))
    }

    /// Answers also those who are no members.
    fn reply(&mut self, to: Endpoint, id: ClientId, reply: JoinReply) {
        if let Ok(key) = boxes::beforenm(&self.me.secret, &id.0) {
            self.send_with(&key, to, id, &Request::JoinReply(reply));
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
        // A restart forgets who was welcomed, not what they were given.
        let certified = signed && self.records.cert(&sender, now_s).is_some_and(|it| it.sig_pk == request.sig_pk);
        if (same || certified) && self.members.contains_key(&sender) {
            return Ok(self.records.cert(&sender, now_s).cloned());
        }
        let invited = if certified || (self.is_open() && request.token_id == [0; 16]) {
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
        if !self.may_announce(self.me.id) {
            return Err(JoinRefused::SlowDown);
        }
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
            if self.hold(&record) == Taken::Changed {
                self.changed(&record);
            }
            self.spread(&record);
        }
        self.originate(self.me.id, Message::NewPeer(id));
        self.introduce_ourselves();
        Ok(cert)
    }

    /// Whether one of ours may tell of a newcomer, or ask for a ban, so that others believe it: they count both together.
    pub(super) fn may_announce(&mut self, by: ClientId) -> bool {
        let (now, pace) = (self.now.monotonic, self.announcements_of(&by).careful());
        self.own(&by).is_some_and(|own| own.newcomers.take(now, pace, 1))
    }

    /// How many newcomers somebody is believed: those who may let in, as many as they may.
    pub(super) fn announcements_of(&self, id: &ClientId) -> Pace {
        let limits = &self.rules.limits;
        match self.mode {
            Mode::Classic { owner, .. } if owner != Some(*id) => limits.newcomers,
            Mode::Classic { .. } | Mode::Signed => limits.welcomes,
        }
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
        let mut due: Vec<_> = old.chain(orphans).filter(here).cloned().collect();
        due.truncate(RENEWED_MAX);
        // Ours may have run out while we were away, or never have come from here.
        let lost: Vec<_> = std::iter::once(&self.me).chain(self.virtuals.values()).collect();
        let lost = lost.into_iter().filter(|own| self.records.cert(&own.id, now_s).is_none());
        let lost: Vec<_> = lost.filter_map(|own| Some((own.id, own.sig_pk()?))).take(RENEWED_MAX).collect();
        for (id, sig_pk) in lost {
            if let Some(cert) = self.certify(id, sig_pk, Grade::User) {
                self.publish(Record::Cert(cert));
            }
        }
        for cert in due {
            if let Some(cert) = self.certify(cert.client, cert.sig_pk, cert.grade) {
                self.publish(Record::Cert(cert));
            }
        }
    }

    /// A record of our own making: it counts here first.
    pub(super) fn publish(&mut self, record: Record) {
        if self.hold(&record) == Taken::Changed {
            self.spread(&record);
            self.changed(&record);
        }
    }

    /// Holds a record, if it counts. Certificates of those who are here are kept before others.
    pub(super) fn hold(&mut self, record: &Record) -> Taken {
        let (members, virtuals, me) = (&self.members, &self.virtuals, self.me.id);
        let here = |id: &ClientId| members.contains_key(id) || virtuals.contains_key(id) || *id == me;
        self.records.take_among(record, self.now.wall_ms / 1_000, here)
    }

    pub(super) fn join_reply(&mut self, sender: ClientId, reply: JoinReply) -> Result<(), Dropped> {
        let now = self.now.monotonic;
        let Some(joining) = self.joining.as_mut().filter(|it| it.hub == sender && it.credential.is_some()) else {
            return Err(Dropped::Stale);
        };
        match reply {
            JoinReply::Welcome(cert) => {
                joining.credential = None;
                (joining.tries, joining.next) = (0, now);
                if cert.is_none() && matches!(self.mode, Mode::Signed) {
                    // An invitation does not say which kind of group it is for; the answer does.
                    self.mode = Mode::Classic { owner: Some(sender), topic_lock: false };
                    self.me.pair = None;
                }
                if let Some(cert) = cert {
                    // Whether the hub may give it is known with the state, which comes next: a moderator's waits until then.
                    self.hold(&Record::Cert(*cert));
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
                self.entering = Some(Entering::new(now));
                self.next_sync = now;
                self.tend_sync();
            } else {
                self.tell(Event::Entered);
            }
        }
    }
}
