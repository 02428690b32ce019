//! Records of signed groups (spec 9.3): whole in themselves, valid no matter who hands them on.
//!
//! Reading checks the layout alone; [`Record::holds`] checks the signature. Whether whoever signed had the right to is a question
//! for the group (`state`).

use super::{ClientId, GroupId, Malformed, ReadBig as _, SigPk, TOPIC_MAX};
use crate::crypto::sign::{self, SIGNATURE, Signature};
use crate::wire::bytes::Reader;

/// The version of everything in chapter 9.
pub const VERSION: u8 = 1;
/// Moderators of a group, at most.
pub const MODERATORS_MAX: usize = 16;
/// Longest name of a group, in bytes.
pub const GROUP_NAME_MAX: usize = 48;
/// Longest reason of a sanction, in bytes.
pub const REASON_MAX: usize = 64;

const OPEN_JOINING: u8 = 1;
const OPEN_TOPIC: u8 = 2;

/// `tag 0x00 bytes`: what a signature is over (spec 9.2).
pub(super) fn tagged(tag: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    [tag, &[0], &parts.concat()].concat()
}

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// Who somebody is.
    Cert = 1,
    /// What the group is.
    State = 2,
    /// What somebody may not.
    Sanction = 3,
    /// What it is about.
    Topic = 4,
}

impl Kind {
    /// By its number.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Cert, Self::State, Self::Sanction, Self::Topic].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// A record of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// See [`Cert`].
    Cert(Cert),
    /// See [`State`].
    State(State),
    /// See [`Sanction`].
    Sanction(Sanction),
    /// See [`Topic`].
    Topic(Topic),
}

impl Record {
    /// What it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Cert(_) => Kind::Cert,
            Self::State(_) => Kind::State,
            Self::Sanction(_) => Kind::Sanction,
            Self::Topic(_) => Kind::Topic,
        }
    }

    /// Its bytes, signature included.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Cert(cert) => cert.encode(),
            Self::State(state) => state.encode(),
            Self::Sanction(sanction) => sanction.encode(),
            Self::Topic(topic) => topic.encode(),
        }
    }

    /// Reads the bytes of a record.
    ///
    /// # Errors
    /// [`Malformed`], also for another version and for what stands behind.
    pub fn decode(kind: Kind, bytes: &[u8]) -> Result<Self, Malformed> {
        Ok(match kind {
            Kind::Cert => Self::Cert(Cert::decode(bytes)?),
            Kind::State => Self::State(State::decode(bytes)?),
            Kind::Sanction => Self::Sanction(Sanction::decode(bytes)?),
            Kind::Topic => Self::Topic(Topic::decode(bytes)?),
        })
    }

    /// Its signature.
    #[must_use]
    pub const fn signature(&self) -> &Signature {
        match self {
            Self::Cert(cert) => &cert.signature,
            Self::State(state) => &state.signature,
            Self::Sanction(sanction) => &sanction.signature,
            Self::Topic(topic) => &topic.signature,
        }
    }

    /// Which group it is of.
    #[must_use]
    pub const fn group(&self) -> &GroupId {
        match self {
            Self::Cert(cert) => &cert.group,
            Self::State(state) => &state.group,
            Self::Sanction(sanction) => &sanction.group,
            Self::Topic(topic) => &topic.group,
        }
    }

    /// Whether whoever is named as its issuer signed it.
    #[must_use]
    pub fn holds(&self) -> bool {
        let (by, signed) = match self {
            Self::Cert(cert) => (cert.issuer, cert.to_sign()),
            Self::State(state) => (state.group.founder(), tagged(State::TAG, &[&state.fields()])),
            Self::Sanction(sanction) => (sanction.issuer, tagged(Sanction::TAG, &[&sanction.fields()])),
            Self::Topic(topic) => (topic.setter, tagged(Topic::TAG, &[&topic.fields()])),
        };
        sign::verify(&by.0, &signed, self.signature()).is_ok()
    }
}

fn reader_of(bytes: &[u8]) -> Result<(Reader<'_>, GroupId), Malformed> {
    let mut reader = Reader::new(bytes);
    if reader.u8()? != VERSION {
        return Err(Malformed);
    }
    let group = GroupId(reader.array()?);
    Ok((reader, group))
}

fn text_of(bytes: &[u8]) -> Result<String, Malformed> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Malformed)
}

/// Who may do what in general; what is less than that is in sanctions, what is more in the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Grade {
    /// May talk.
    User = 2,
    /// May listen.
    Observer = 3,
}

/// Binds a member's key to the key it signs with: 210 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cert {
    /// Of which group.
    pub group: GroupId,
    /// Whose.
    pub client: ClientId,
    /// What they sign with.
    pub sig_pk: SigPk,
    /// What they may.
    pub grade: Grade,
    /// Unix seconds.
    pub not_before_s: u64,
    /// Unix seconds.
    pub not_after_s: u64,
    /// Who says so.
    pub issuer: SigPk,
    /// By the issuer.
    pub signature: Signature,
}

impl Cert {
    /// Length, in bytes.
    pub const LEN: usize = 210;
    const TAG: &'static [u8] = b"toxgroup/1 cert";

    /// Signs; `issuer` and `signature` become the pair's.
    #[must_use]
    pub fn signed(mut self, pair: &sign::Pair) -> Self {
        self.issuer = SigPk(pair.public());
        self.signature = pair.sign(&self.to_sign());
        self
    }

    /// What is signed.
    #[must_use]
    pub fn to_sign(&self) -> Vec<u8> {
        tagged(Self::TAG, &[&self.fields()])
    }

    fn fields(&self) -> Vec<u8> {
        [
            &[VERSION][..],
            &self.group.0,
            &self.client.0,
            &self.sig_pk.0,
            &[self.grade as u8],
            &self.not_before_s.to_be_bytes(),
            &self.not_after_s.to_be_bytes(),
            &self.issuer.0,
        ]
        .concat()
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [&self.fields()[..], &self.signature].concat()
    }

    /// Reads the bytes of one.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let (mut reader, group) = reader_of(bytes)?;
        let (client, sig_pk) = (ClientId(reader.array()?), SigPk(reader.array()?));
        let grade = match reader.u8()? {
            2 => Grade::User,
            3 => Grade::Observer,
            _ => return Err(Malformed),
        };
        let (not_before_s, not_after_s) = (reader.u64_be()?, reader.u64_be()?);
        let (issuer, signature) = (SigPk(reader.array()?), reader.array()?);
        reader.done()?;
        Ok(Self { group, client, sig_pk, grade, not_before_s, not_after_s, issuer, signature })
    }
}

/// Who may talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Voice {
    /// Everybody but observers.
    All = 0,
    /// Moderators and the founder.
    Moderators = 1,
    /// The founder.
    Founder = 2,
}

/// What the group is, by its founder: 115 bytes and more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Of which group.
    pub group: GroupId,
    /// The higher one counts.
    pub version: u32,
    /// Unix seconds.
    pub time_s: u64,
    /// Whether nobody needs an invitation.
    pub open: bool,
    /// Whether users may set the topic.
    pub open_topic: bool,
    /// Who may talk.
    pub voice: Voice,
    /// How many may be in; 0: as many as ever.
    pub peers_max: u16,
    /// Up to 48 bytes.
    pub name: String,
    /// Up to 16, ascending.
    pub moderators: Vec<SigPk>,
    /// By the founder.
    pub signature: Signature,
}

impl State {
    const TAG: &'static [u8] = b"toxgroup/1 state";

    /// Signs, with moderators in order.
    #[must_use]
    pub fn signed(mut self, founder: &sign::Pair) -> Self {
        self.moderators.sort_unstable();
        self.moderators.dedup();
        self.signature = founder.sign(&tagged(Self::TAG, &[&self.fields()]));
        self
    }

    fn fields(&self) -> Vec<u8> {
        let flags = if self.open { OPEN_JOINING } else { 0 } | if self.open_topic { OPEN_TOPIC } else { 0 };
        let lens = [self.name.len(), self.moderators.len()].map(|len| u8::try_from(len).unwrap_or(u8::MAX));
        let [name_len, moderators] = lens;
        let mut out = [
            &[VERSION][..],
            &self.group.0,
            &self.version.to_be_bytes(),
            &self.time_s.to_be_bytes(),
            &[flags, self.voice as u8],
            &self.peers_max.to_be_bytes(),
            &[name_len],
            self.name.as_bytes(),
            &[moderators],
        ]
        .concat();
        out.extend(self.moderators.iter().flat_map(|key| key.0));
        out
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [&self.fields()[..], &self.signature].concat()
    }

    /// Reads the bytes of one.
    ///
    /// # Errors
    /// [`Malformed`], also for flags nobody knows and moderators out of order.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let (mut reader, group) = reader_of(bytes)?;
        let (version, time_s, flags) = (reader.u32_be()?, reader.u64_be()?, reader.u8()?);
        let voice = match reader.u8()? {
            0 => Voice::All,
            1 => Voice::Moderators,
            2 => Voice::Founder,
            _ => return Err(Malformed),
        };
        let peers_max = reader.u16_be()?;
        let len = usize::from(reader.u8()?);
        let name = text_of(reader.take(len)?)?;
        let count = usize::from(reader.u8()?);
        let moderators: Vec<_> = reader.take(32 * count)?.as_chunks::<32>().0.iter().map(|key| SigPk(*key)).collect();
        let signature = reader.array()?;
        reader.done()?;
        let sound = flags & !(OPEN_JOINING | OPEN_TOPIC) == 0
            && len <= GROUP_NAME_MAX
            && count <= MODERATORS_MAX
            && moderators.is_sorted_by(|a, b| a < b)
            && version != u32::MAX;
        let (open, open_topic) = (flags & OPEN_JOINING != 0, flags & OPEN_TOPIC != 0);
        let state = Self { group, version, time_s, open, open_topic, voice, peers_max, name, moderators, signature };
        if sound { Ok(state) } else { Err(Malformed) }
    }
}

/// What a sanction does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Verdict {
    /// Takes an earlier one back.
    Lift = 0,
    /// They may listen.
    Observer = 1,
    /// They are out.
    Ban = 2,
}

/// What somebody may not: 183 bytes and more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sanction {
    /// Of which group.
    pub group: GroupId,
    /// Who.
    pub target: ClientId,
    /// What.
    pub verdict: Verdict,
    /// Of this issuer about this target.
    pub seq: u32,
    /// Unix seconds.
    pub time_s: u64,
    /// Unix seconds; 0: never.
    pub expires_s: u64,
    /// Up to 64 bytes.
    pub reason: String,
    /// Who says so.
    pub issuer: SigPk,
    /// By the issuer.
    pub signature: Signature,
}

impl Sanction {
    const TAG: &'static [u8] = b"toxgroup/1 sanction";

    /// Signs; `issuer` and `signature` become the pair's.
    #[must_use]
    pub fn signed(mut self, pair: &sign::Pair) -> Self {
        self.issuer = SigPk(pair.public());
        self.signature = pair.sign(&tagged(Self::TAG, &[&self.fields()]));
        self
    }

    fn fields(&self) -> Vec<u8> {
        [
            &[VERSION][..],
            &self.group.0,
            &self.target.0,
            &[self.verdict as u8],
            &self.seq.to_be_bytes(),
            &self.time_s.to_be_bytes(),
            &self.expires_s.to_be_bytes(),
            &[u8::try_from(self.reason.len()).unwrap_or(u8::MAX)],
            self.reason.as_bytes(),
            &self.issuer.0,
        ]
        .concat()
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [&self.fields()[..], &self.signature].concat()
    }

    /// Reads the bytes of one.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let (mut reader, group) = reader_of(bytes)?;
        let target = ClientId(reader.array()?);
        let verdict = match reader.u8()? {
            0 => Verdict::Lift,
            1 => Verdict::Observer,
            2 => Verdict::Ban,
            _ => return Err(Malformed),
        };
        let (seq, time_s, expires_s) = (reader.u32_be()?, reader.u64_be()?, reader.u64_be()?);
        let len = usize::from(reader.u8()?);
        if len > REASON_MAX {
            return Err(Malformed);
        }
        let reason = text_of(reader.take(len)?)?;
        let (issuer, signature) = (SigPk(reader.array()?), reader.array()?);
        reader.done()?;
        Ok(Self { group, target, verdict, seq, time_s, expires_s, reason, issuer, signature })
    }
}

/// What it is about: 143 bytes and more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Of which group.
    pub group: GroupId,
    /// One more with each.
    pub version: u32,
    /// Unix seconds; the later one counts.
    pub time_s: u64,
    /// Up to 512 bytes.
    pub text: String,
    /// Who set it.
    pub setter: SigPk,
    /// By the setter.
    pub signature: Signature,
}

impl Topic {
    const TAG: &'static [u8] = b"toxgroup/1 topic";

    /// Signs; `setter` and `signature` become the pair's.
    #[must_use]
    pub fn signed(mut self, pair: &sign::Pair) -> Self {
        self.setter = SigPk(pair.public());
        self.signature = pair.sign(&tagged(Self::TAG, &[&self.fields()]));
        self
    }

    fn fields(&self) -> Vec<u8> {
        [
            &[VERSION][..],
            &self.group.0,
            &self.version.to_be_bytes(),
            &self.time_s.to_be_bytes(),
            &u16::try_from(self.text.len()).unwrap_or(u16::MAX).to_be_bytes(),
            self.text.as_bytes(),
            &self.setter.0,
        ]
        .concat()
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [&self.fields()[..], &self.signature].concat()
    }

    /// Reads the bytes of one.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let (mut reader, group) = reader_of(bytes)?;
        let (version, time_s, len) = (reader.u32_be()?, reader.u64_be()?, usize::from(reader.u16_be()?));
        if len > TOPIC_MAX {
            return Err(Malformed);
        }
        let text = text_of(reader.take(len)?)?;
        let (setter, signature) = (SigPk(reader.array()?), reader.array()?);
        reader.done()?;
        Ok(Self { group, version, time_s, text, setter, signature })
    }
}

const _: () = assert!(SIGNATURE == 64 && Cert::LEN == 146 + SIGNATURE, "the layout of spec 9.3");
