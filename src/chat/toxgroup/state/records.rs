//! What counts in a signed group (spec 9.3): a set of records that comes out the same in whatever order they came in.
//!
//! Authority flows from the founder's key alone. Records of those who lost their role are kept and do not count; they are neither
//! handed on nor part of the digest, so that those who never saw them agree with those who did.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::super::wire::record::{Grade, Verdict, Voice};
use super::super::wire::{Cert, ClientId, GroupId, Record, Sanction, SigPk, State, Topic};
use crate::crypto::sign::Signature;

/// How far a record may be from the future, in seconds.
pub const SKEW_S: u64 = 600;
/// Sanctions kept of one issuer.
const SANCTIONS_MAX: usize = 64;
/// Certificates kept.
pub(super) const CERTS_MAX: usize = 2_048;
const DAY_S: u64 = 86_400;

/// What somebody may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Nothing: they are out.
    Banned,
    /// Listen.
    Observer,
    /// Talk.
    User,
    /// Keep order.
    Moderator,
    /// Everything.
    Founder,
}

impl Role {
    /// Whether they may talk (the table of spec 9.1).
    #[must_use]
    pub fn may_talk(self, voice: Voice) -> bool {
        match voice {
            Voice::All => self >= Self::User,
            Voice::Moderators => self >= Self::Moderator,
            Voice::Founder => self >= Self::Founder,
        }
    }

    /// Whether they may set the topic.
    #[must_use]
    pub fn may_set_topic(self, open: bool) -> bool {
        self >= if open { Self::User } else { Self::Moderator }
    }
}

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It changed something.
    Changed,
    /// It is known, or something stronger is.
    Known,
    /// Whoever signed it had no right to, or it is of another time or group.
    Refused,
    /// Nobody signed it.
    Forged,
}

/// The first 8 bytes of the SHA-256 over signatures in ascending order (spec 9.7).
#[must_use]
pub fn digest<'a>(signatures: impl Iterator<Item = &'a Signature>) -> [u8; 8] {
    let mut all: Vec<_> = signatures.collect();
    all.sort_unstable();
    let hash = all.into_iter().fold(Sha256::new(), |hash, signature| hash.chain_update(signature)).finalize();
    hash.first_chunk::<8>().copied().unwrap_or_default()
}

/// See the top of this file.
#[derive(Debug, Clone)]
pub struct Records {
    group: GroupId,
    state: Option<State>,
    topic: Option<Topic>,
    certs: BTreeMap<ClientId, Cert>,
    sanctions: BTreeMap<(ClientId, SigPk), Sanction>,
    /// What had to make room.
    evicted: Vec<Record>,
}

impl Records {
    /// Of a group of which nothing is known.
    #[must_use]
    pub const fn new(group: GroupId) -> Self {
        Self {
            group,
            state: None,
            topic: None,
            certs: BTreeMap::new(),
            sanctions: BTreeMap::new(),
            evicted: Vec::new(),
        }
    }

    /// What the group is.
    #[must_use]
    pub const fn state(&self) -> Option<&State> {
        self.state.as_ref()
    }

    /// What it is about.
    #[must_use]
    pub const fn topic(&self) -> Option<&Topic> {
        self.topic.as_ref()
    }

    /// The certificate of somebody, as long as it counts.
    #[must_use]
    pub fn cert(&self, id: &ClientId, now_s: u64) -> Option<&Cert> {
        self.certs.get(id).filter(|cert| self.counts(cert, now_s))
    }

    /// All that count.
    pub fn certs(&self, now_s: u64) -> impl Iterator<Item = &Cert> {
        self.certs.values().filter(move |cert| self.counts(cert, now_s))
    }

    /// Certificates of issuers that have no right to it any more.
    pub(super) fn orphans(&self) -> impl Iterator<Item = &Cert> {
        self.certs.values().filter(|cert| !self.is_authority(&cert.issuer))
    }

    /// What somebody may. `None` without a certificate.
    #[must_use]
    pub fn role(&self, id: &ClientId, now_s: u64) -> Option<Role> {
        let cert = self.cert(id, now_s)?;
        let rank = self.rank(&cert.sig_pk);
        Some(match (rank, self.verdict(id, now_s)) {
            (Role::Founder, _) => Role::Founder,
            (_, Some(Verdict::Ban)) => Role::Banned,
            (_, Some(Verdict::Observer)) => Role::Observer,
            (Role::Moderator, _) => Role::Moderator,
            _ if cert.grade == Grade::Observer => Role::Observer,
            _ => Role::User,
        })
    }

    /// Whether a key is out, with a certificate or without.
    #[must_use]
    pub fn is_banned(&self, id: &ClientId, now_s: u64) -> bool {
        self.verdict(id, now_s) == Some(Verdict::Ban)
    }

    /// The sanction about somebody that is in force, or was lifted last.
    pub(super) fn effective(&self, target: &ClientId) -> Option<&Sanction> {
        let of_target = self.sanctions.range((*target, SigPk([0; 32]))..=(*target, SigPk([0xff; 32])));
        of_target
            .map(|(_, sanction)| sanction)
            .filter(|sanction| self.may_sanction(&sanction.issuer, target))
            .max_by_key(|it| (it.time_s, self.rank(&it.issuer), it.seq, it.signature))
    }

    /// The number of the last sanction of an issuer about somebody.
    pub(super) fn seq(&self, target: &ClientId, issuer: &SigPk) -> u32 {
        self.sanctions.get(&(*target, *issuer)).map_or(0, |sanction| sanction.seq)
    }

    fn verdict(&self, target: &ClientId, now_s: u64) -> Option<Verdict> {
        let it = self.effective(target)?;
        (it.verdict != Verdict::Lift && !is_over(it, now_s)).then_some(it.verdict)
    }

    /// Founder, moderator, or user for everybody else.
    pub(super) fn rank(&self, key: &SigPk) -> Role {
        let is_moderator = || self.state.as_ref().is_some_and(|state| state.moderators.binary_search(key).is_ok());
        match *key == self.group.founder() {
            true => Role::Founder,
            false if is_moderator() => Role::Moderator,
            false => Role::User,
        }
    }

    fn is_authority(&self, key: &SigPk) -> bool {
        self.rank(key) >= Role::Moderator
    }

    /// The founder anybody, a moderator anybody but founder and moderators; nobody the founder.
    pub(super) fn may_sanction(&self, issuer: &SigPk, target: &ClientId) -> bool {
        let target = self.certs.get(target).map_or(Role::User, |cert| self.rank(&cert.sig_pk));
        self.is_authority(issuer) && self.rank(issuer) > target
    }

    fn counts(&self, cert: &Cert, now_s: u64) -> bool {
        self.is_authority(&cert.issuer) && cert.not_after_s > now_s
    }

    /// Takes a record over, if it is one that counts.
    pub fn take(&mut self, record: &Record, now_s: u64) -> Taken {
        self.take_among(record, now_s, |_| false)
    }

    /// The same. When there are too many certificates, those of who is `here` stay, and those that authority stands on; of the others
    /// the oldest goes.
    pub fn take_among(&mut self, record: &Record, now_s: u64, here: impl Fn(&ClientId) -> bool) -> Taken {
        if *record.group() != self.group {
            return Taken::Refused;
        }
        let judged = match record {
            Record::Cert(cert) => self.judge_cert(cert, now_s),
            Record::State(state) => self.judge_state(state, now_s),
            Record::Sanction(sanction) => self.judge_sanction(sanction, now_s),
            Record::Topic(topic) => self.judge_topic(topic, now_s),
        };
        if judged != Taken::Changed {
            return judged;
        }
        let room = match record {
            Record::Cert(cert) => self.room_for(cert, now_s, here),
            Record::State(_) | Record::Sanction(_) | Record::Topic(_) => Room::Enough,
        };
        // What would have to go at once changes nothing: passed on, it would go round for ever.
        if matches!(room, Room::None) {
            return Taken::Refused;
        }
        // The signature last: it costs most, and floods are mostly of what is known.
        if !record.holds() {
            return Taken::Forged;
        }
        if let Room::Of(oldest) = room {
            self.evicted.extend(self.certs.remove(&oldest).map(Record::Cert));
        }
        self.keep(record.clone());
        Taken::Changed
    }

    /// Whose certificate has to go for this one.
    fn room_for(&self, cert: &Cert, now_s: u64, here: impl Fn(&ClientId) -> bool) -> Room {
        if self.certs.len() < CERTS_MAX || self.certs.contains_key(&cert.client) {
            return Room::Enough;
        }
        let stays = |it: &Cert| here(&it.client) || self.is_authority(&it.sig_pk);
        let order = |it: &Cert| (self.counts(it, now_s), it.not_before_s, it.signature);
        let Some(oldest) = self.certs.values().filter(|it| !stays(it)).min_by_key(|it| order(it)) else {
            return Room::None;
        };
        if stays(cert) || order(oldest) < order(cert) { Room::Of(oldest.client) } else { Room::None }
    }

    /// Takes back what was kept: it was judged when it came.
    pub fn restore(&mut self, record: Record) {
        if *record.group() == self.group {
            self.keep(record);
        }
    }

    fn keep(&mut self, record: Record) {
        match record {
            Record::Cert(cert) => drop(self.certs.insert(cert.client, cert)),
            Record::State(state) => self.state = Some(state),
            Record::Sanction(sanction) => {
                let issuer = sanction.issuer;
                self.sanctions.insert((sanction.target, issuer), sanction);
                let of_issuer = || self.sanctions.iter().filter(|((_, by), _)| *by == issuer);
                if of_issuer().count() > SANCTIONS_MAX {
                    let oldest = of_issuer().min_by_key(|(_, it)| (it.time_s, it.signature)).map(|(key, _)| *key);
                    self.evicted.extend(oldest.and_then(|key| self.sanctions.remove(&key)).map(Record::Sanction));
                }
            }
            Record::Topic(topic) => self.topic = Some(topic),
        }
    }

    fn judge_cert(&self, cert: &Cert, now_s: u64) -> Taken {
        if self.certs.get(&cert.client) == Some(cert) {
            return Taken::Known;
        }
        let from_future = cert.not_before_s > now_s + SKEW_S;
        if !cert.client.is_usable() || from_future || !self.counts(cert, now_s) {
            return Taken::Refused;
        }
        let Some(ours) = self.certs.get(&cert.client) else { return Taken::Changed };
        let wins = if ours.sig_pk == cert.sig_pk || !self.counts(ours, now_s) {
            // The later one; of two of the same second always the same one.
            !self.counts(ours, now_s) || (cert.not_before_s, cert.signature) > (ours.not_before_s, ours.signature)
        } else {
            // A moderator must not be able to take over whom the founder named.
            let order = |it: &Cert| (self.rank(&it.issuer), std::cmp::Reverse((it.not_before_s, it.signature)));
            order(cert) > order(ours)
        };
        if wins { Taken::Changed } else { Taken::Known }
    }

    fn judge_state(&self, state: &State, now_s: u64) -> Taken {
        if state.version == u32::MAX || state.time_s > now_s + SKEW_S {
            return Taken::Refused;
        }
        let order = |it: &State| (it.version, it.time_s, it.signature);
        if self.state.as_ref().is_none_or(|ours| order(state) > order(ours)) { Taken::Changed } else { Taken::Known }
    }

    fn judge_sanction(&self, it: &Sanction, now_s: u64) -> Taken {
        if it.time_s > now_s + SKEW_S || !self.is_authority(&it.issuer) || is_forgotten(it, now_s) {
            return Taken::Refused;
        }
        let order = |it: &Sanction| (it.time_s, it.seq, it.signature);
        let ours = self.sanctions.get(&(it.target, it.issuer));
        if ours.is_none_or(|ours| order(it) > order(ours)) { Taken::Changed } else { Taken::Known }
    }

    fn judge_topic(&self, topic: &Topic, now_s: u64) -> Taken {
        let order = |it: &Topic| (it.time_s, it.version, self.rank(&it.setter), it.signature);
        if self.topic.as_ref().is_some_and(|ours| order(topic) <= order(ours)) {
            return Taken::Known;
        }
        if topic.time_s > now_s + SKEW_S || !self.may_set_topic(&topic.setter, now_s) {
            return Taken::Refused;
        }
        Taken::Changed
    }

    fn may_set_topic(&self, key: &SigPk, now_s: u64) -> bool {
        let open = self.state.as_ref().is_some_and(|state| state.open_topic);
        let mut holders = self.certs(now_s).filter(|cert| cert.sig_pk == *key);
        *key == self.group.founder()
            || holders.any(|cert| self.role(&cert.client, now_s).is_some_and(|role| role.may_set_topic(open)))
    }

    /// What had to make room since the last time.
    pub(super) fn evicted(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.evicted)
    }

    /// Forgets what is over, and says what that was.
    pub(super) fn sweep(&mut self, now_s: u64) -> Vec<Record> {
        let mut gone = self.evicted();
        self.certs.retain(|_, cert| {
            let keep = cert.not_after_s > now_s;
            if !keep {
                gone.push(Record::Cert(cert.clone()));
            }
            keep
        });
        self.sanctions.retain(|_, sanction| {
            let keep = !is_forgotten(sanction, now_s);
            if !keep {
                gone.push(Record::Sanction(sanction.clone()));
            }
            keep
        });
        gone
    }

    /// What is handed on: the state, the topic, then the others by signature (spec 9.7).
    #[must_use]
    pub fn held(&self, now_s: u64) -> Vec<Record> {
        let sanctions = self.sanctions.values().filter(|it| self.is_authority(&it.issuer) && !is_over(it, now_s));
        let mut others: Vec<_> = self.certs(now_s).cloned().map(Record::Cert).collect();
        others.extend(sanctions.cloned().map(Record::Sanction));
        others.sort_unstable_by(|a, b| a.signature().cmp(b.signature()));
        let first = self.state.clone().map(Record::State).into_iter().chain(self.topic.clone().map(Record::Topic));
        first.chain(others).collect()
    }

    /// Of what is handed on.
    #[must_use]
    pub fn digest(&self, now_s: u64) -> [u8; 8] {
        digest(self.held(now_s).iter().map(Record::signature))
    }
}

/// Whether there is room for a certificate.
enum Room {
    Enough,
    /// If this one's goes.
    Of(ClientId),
    None,
}

const fn is_over(it: &Sanction, now_s: u64) -> bool {
    it.expires_s != 0 && it.expires_s <= now_s
}

const fn is_forgotten(it: &Sanction, now_s: u64) -> bool {
    it.expires_s != 0 && it.expires_s.saturating_add(DAY_S) <= now_s
}
