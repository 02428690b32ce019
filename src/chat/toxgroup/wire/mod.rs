//! Bytes to packets and back (spec 2 to 4, 9). Integers are big-endian; what follows a layout is refused.
//!
//! Three number spaces all contain 48, so they are three types: [`OUTER`] begins a datagram, a [`RequestId`] its decrypted text, a
//! [`MessageId`] names what a broadcast carries.
//!
//! | file | holds |
//! |---|---|
//! | this one | the outer packet and what is in it |
//! | [`node`] | addresses of peers, in three dialects |
//! | [`message`] | what a broadcast carries |
//! | [`record`] | certificates, state, sanctions and topics of signed groups |
//! | [`token`] | invitations |

pub mod message;
pub mod node;
pub mod record;
pub mod token;

#[cfg(test)]
mod tests;

use std::fmt;

use crate::crypto::boxes::{self, NONCE, Nonce, TAG};
use crate::crypto::{Secret, sign};
use crate::wire::bytes::{Reader, Truncated};
use crate::wire::toxgroup::{OUTER_GROUP_CHAT, PACKET_MAX, PACKET_MIN};

pub use self::message::{Broadcast, Message, MessageId};
pub use self::node::{Dialect, Node, Nodes};
pub use self::record::{Cert, Kind, Record, Sanction, State, Topic};
pub use self::token::{Door, Token};

/// The first byte of a datagram that belongs to a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outer(pub u8);

/// Group chat.
pub const OUTER: Outer = Outer(OUTER_GROUP_CHAT);
/// What stands before the box: outer byte, two keys, nonce.
pub const HEADER: usize = 1 + 32 + 32 + NONCE;
/// What a packet costs beside its data (spec 1).
pub const OVERHEAD: usize = HEADER + TAG + 1;
/// Most data behind a request id, in bytes.
pub const DATA_MAX: usize = PACKET_MAX - OVERHEAD;
/// Longest name, in bytes; the shortest has one.
pub const NAME_MAX: usize = 128;
/// Longest topic, in bytes.
pub const TOPIC_MAX: usize = 512;
/// Whole packets one answer to a sync may take (spec 9.7).
pub const SYNC_PACKETS_MAX: usize = 8;

const _: () = assert!(OVERHEAD == 106 && DATA_MAX == 918, "the numbers of spec 1");

/// 32 bytes that name something, as hex where they are shown.
macro_rules! name32 {
    ($($(#[doc = $about:literal])* $name:ident;)*) => {$(
        $(#[doc = $about])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// The first four bytes, for people.
            #[must_use]
            pub fn short(&self) -> String {
                let [a, b, c, d, ..] = self.0;
                hex::encode([a, b, c, d])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl std::str::FromStr for $name {
            type Err = Malformed;

            fn from_str(text: &str) -> Result<Self, Malformed> {
                let mut bytes = [0; 32];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| Malformed)?;
                Ok(Self(bytes))
            }
        }
    )*};
}

name32! {
    /// A member: the public half of its X25519 pair for this group.
    ClientId;
    /// The public half of a member's Ed25519 pair for this group.
    SigPk;
    /// A group. In a signed group the founder's [`SigPk`], in a classic one 32 random bytes.
    GroupId;
}

impl ClientId {
    /// Whether it can be somebody's key at all (spec 2): its highest bit is clear and it agrees on something.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.0[31] & 0x80 == 0 && boxes::is_contributory(&self.0)
    }
}

impl GroupId {
    /// The founder of a signed group.
    #[must_use]
    pub const fn founder(&self) -> SigPk {
        SigPk(self.0)
    }
}

/// What a request is, in the decrypted text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RequestId {
    /// Who is near you?
    GetNodes = 48,
    /// These are.
    SendNodes = 49,
    /// Something for everybody.
    Broadcast = 50,
    /// Let me in.
    JoinRequest = 0xc0,
    /// Whether so.
    JoinReply = 0xc1,
    /// What have you that I have not?
    SyncRequest = 0xc2,
    /// This.
    SyncRecords = 0xc3,
}

impl RequestId {
    const ALL: [Self; 7] = [
        Self::GetNodes,
        Self::SendNodes,
        Self::Broadcast,
        Self::JoinRequest,
        Self::JoinReply,
        Self::SyncRequest,
        Self::SyncRecords,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|id| *id as u8 == byte)
    }
}

/// Bytes that are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed")]
pub struct Malformed;

impl From<Truncated> for Malformed {
    fn from(_: Truncated) -> Self {
        Self
    }
}

/// Big-endian integers, which [`Reader`] has not.
pub(super) trait ReadBig {
    fn u16_be(&mut self) -> Result<u16, Malformed>;
    fn u32_be(&mut self) -> Result<u32, Malformed>;
    fn u64_be(&mut self) -> Result<u64, Malformed>;
    fn done(&self) -> Result<(), Malformed>;
}

impl ReadBig for Reader<'_> {
    fn u16_be(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32_be(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64_be(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn done(&self) -> Result<(), Malformed> {
        if self.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

/// A packet as it travels: who it is for, who sent it, and a box that is not opened yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed<'a> {
    /// Which group instance it is for.
    pub receiver: ClientId,
    /// Who boxed it: the hop, not necessarily the origin.
    pub sender: ClientId,
    nonce: Nonce,
    boxed: &'a [u8],
}

impl<'a> Sealed<'a> {
    /// Reads the header of a packet.
    ///
    /// # Errors
    /// [`Malformed`] by its length or its first byte.
    pub fn read(packet: &'a [u8]) -> Result<Self, Malformed> {
        if !(PACKET_MIN..=PACKET_MAX).contains(&packet.len()) {
            return Err(Malformed);
        }
        let mut reader = Reader::new(packet);
        if Outer(reader.u8()?) != OUTER {
            return Err(Malformed);
        }
        let (receiver, sender, nonce) = (reader.array()?, reader.array()?, reader.array()?);
        Ok(Self { receiver: ClientId(receiver), sender: ClientId(sender), nonce, boxed: reader.rest() })
    }

    /// Opens the box with the key the two share.
    ///
    /// # Errors
    /// [`boxes::BadBox`] when it is not authentic.
    pub fn open(&self, key: &Secret<32>) -> Result<Vec<u8>, boxes::BadBox> {
        boxes::open(key, &self.nonce, self.boxed)
    }
}

/// Boxes a decrypted text, which is a request's; see [`Request::encode`].
#[must_use]
pub fn seal(key: &Secret<32>, receiver: &ClientId, sender: &ClientId, nonce: &Nonce, plain: &[u8]) -> Vec<u8> {
    [&[OUTER.0][..], &receiver.0, &sender.0, nonce, &boxes::seal(key, nonce, plain)].concat()
}

/// Opaque bytes that tie an answer to a question. Never swapped, never counted.
pub type PingId = [u8; 8];

/// What is in a box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Spec 2.1.
    GetNodes(PingId),
    /// Spec 2.2.
    SendNodes(PingId, Nodes),
    /// Spec 2.3.
    Broadcast(Broadcast),
    /// Spec 9.6.
    JoinRequest(JoinRequest),
    /// Spec 9.6.
    JoinReply(JoinReply),
    /// Spec 9.7.
    SyncRequest(SyncRequest),
    /// Spec 9.7.
    SyncRecords(SyncRecords),
}

impl Request {
    /// Reads a decrypted text.
    ///
    /// # Errors
    /// [`Malformed`] for an unknown request as well as for one that is not laid out as it should be.
    pub fn decode(plain: &[u8]) -> Result<Self, Malformed> {
        let (&id, data) = plain.split_first().ok_or(Malformed)?;
        let mut reader = Reader::new(data);
        Ok(match RequestId::from_byte(id).ok_or(Malformed)? {
            RequestId::GetNodes => {
                let ping_id = reader.array()?;
                reader.done()?;
                Self::GetNodes(ping_id)
            }
            RequestId::SendNodes => Self::SendNodes(reader.array()?, Nodes::decode(reader.rest())),
            RequestId::Broadcast => Self::Broadcast(Broadcast::decode(data)?),
            RequestId::JoinRequest => Self::JoinRequest(JoinRequest::decode(data)?),
            RequestId::JoinReply => Self::JoinReply(JoinReply::decode(data)?),
            RequestId::SyncRequest => Self::SyncRequest(SyncRequest::decode(data)?),
            RequestId::SyncRecords => Self::SyncRecords(SyncRecords::decode(data)?),
        })
    }

    /// The text to be boxed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let with = |id: RequestId, data: &[u8]| [&[id as u8], data].concat();
        match self {
            Self::GetNodes(ping_id) => with(RequestId::GetNodes, ping_id),
            Self::SendNodes(ping_id, nodes) => {
                with(RequestId::SendNodes, &[&ping_id[..], nodes.encode().as_slice()].concat())
            }
            Self::Broadcast(broadcast) => with(RequestId::Broadcast, &broadcast.encode()),
            Self::JoinRequest(join) => with(RequestId::JoinRequest, &join.encode()),
            Self::JoinReply(reply) => with(RequestId::JoinReply, &reply.encode()),
            Self::SyncRequest(sync) => with(RequestId::SyncRequest, &sync.encode()),
            Self::SyncRecords(records) => with(RequestId::SyncRecords, &records.encode()),
        }
    }
}

/// A stranger asks to be let in (spec 9.6).
#[derive(Clone, PartialEq, Eq)]
pub struct JoinRequest {
    /// Which invitation; zeros without one.
    pub token_id: [u8; 16],
    /// What proves that it was given to them.
    pub token_secret: [u8; 32],
    /// Their signing key; zeros in a classic group.
    pub sig_pk: SigPk,
    /// Unix seconds.
    pub time_s: u64,
    /// How they want to be called: 1 to 128 bytes.
    pub name: Vec<u8>,
    /// By `sig_pk`; zeros in a classic group.
    pub signature: sign::Signature,
}

impl fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not what proves the invitation.
        f.debug_struct("JoinRequest")
            .field("token_id", &self.token_id)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl JoinRequest {
    /// What is signed.
    #[must_use]
    pub fn to_sign(&self, group: &GroupId, receiver: &ClientId, sender: &ClientId) -> Vec<u8> {
        record::tagged(b"toxgroup/1 join", &[&group.0, &receiver.0, &sender.0, &self.fields()])
    }

    fn fields(&self) -> Vec<u8> {
        let len = u8::try_from(self.name.len()).unwrap_or(u8::MAX);
        [
            &[record::VERSION][..],
            &self.token_id,
            &self.token_secret,
            &self.sig_pk.0,
            &self.time_s.to_be_bytes(),
            &[len],
            &self.name,
        ]
        .concat()
    }

    fn encode(&self) -> Vec<u8> {
        [&self.fields()[..], &self.signature].concat()
    }

    fn decode(data: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(data);
        if reader.u8()? != record::VERSION {
            return Err(Malformed);
        }
        let (token_id, token_secret, sig_pk) = (reader.array()?, reader.array()?, SigPk(reader.array()?));
        let time_s = reader.u64_be()?;
        let len = usize::from(reader.u8()?);
        if !(1..=NAME_MAX).contains(&len) {
            return Err(Malformed);
        }
        let (name, signature) = (reader.take(len)?.to_vec(), reader.array()?);
        reader.done()?;
        Ok(Self { token_id, token_secret, sig_pk, time_s, name, signature })
    }
}

/// Why somebody is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[repr(u8)]
pub enum JoinRefused {
    /// The invitation is unknown, used up or expired.
    #[error("the invitation is unknown, used up or expired")]
    Token = 1,
    /// The group is full.
    #[error("the group is full")]
    Full = 2,
    /// That key is banned.
    #[error("banned")]
    Banned = 3,
    /// The signature does not hold, or the clocks differ by too much.
    #[error("bad signature or time")]
    Signature = 4,
    /// Too many join at once.
    #[error("too many are joining: later")]
    SlowDown = 5,
    /// There is no such group here.
    #[error("no such group")]
    NoGroup = 6,
}

impl JoinRefused {
    const ALL: [Self; 6] = [Self::Token, Self::Full, Self::Banned, Self::Signature, Self::SlowDown, Self::NoGroup];
}

/// What becomes of a [`JoinRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinReply {
    /// They are in; with a certificate in a signed group.
    Welcome(Option<Box<Cert>>),
    /// They are not.
    Refused(JoinRefused),
}

impl JoinReply {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Welcome(cert) => {
                let cert = cert.as_deref().map(Cert::encode).unwrap_or_default();
                [&[0][..], &cert].concat()
            }
            Self::Refused(why) => vec![*why as u8],
        }
    }

    fn decode(data: &[u8]) -> Result<Self, Malformed> {
        Ok(match data {
            [0] => Self::Welcome(None),
            [0, cert @ ..] => Self::Welcome(Some(Box::new(Cert::decode(cert)?))),
            [status] => {
                let why = JoinRefused::ALL.into_iter().find(|why| *why as u8 == *status);
                Self::Refused(why.ok_or(Malformed)?)
            }
            _ => return Err(Malformed),
        })
    }
}

/// Asks a neighbour for records (spec 9.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncRequest {
    /// Of the state that is known; 0 without one.
    pub state_version: u32,
    /// Over all records that are held.
    pub digest: [u8; 8],
    /// From which record on.
    pub offset: u16,
}

impl SyncRequest {
    fn encode(&self) -> Vec<u8> {
        let Self { state_version, digest, offset } = self;
        [&[record::VERSION][..], &state_version.to_be_bytes(), digest, &offset.to_be_bytes()].concat()
    }

    fn decode(data: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(data);
        if reader.u8()? != record::VERSION {
            return Err(Malformed);
        }
        let (state_version, digest, offset) = (reader.u32_be()?, reader.array()?, reader.u16_be()?);
        reader.done()?;
        Ok(Self { state_version, digest, offset })
    }
}

/// Records from a neighbour: whole ones, as many as fit (spec 9.7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncRecords {
    /// How many the neighbour has in all; 0: nothing that would be new.
    pub total: u16,
    /// The number of the first one here.
    pub offset: u16,
    /// They.
    pub records: Vec<Record>,
}

impl SyncRecords {
    /// Cuts records into as few packets as hold them, [`SYNC_PACKETS_MAX`] at most. `records` are those from `offset` on.
    #[must_use]
    pub fn packets(total: u16, offset: u16, records: &[Record]) -> Vec<Self> {
        let mut out: Vec<Self> = Vec::new();
        let (mut at, mut room) = (offset, 0);
        for record in records {
            let len = 3 + record.encode().len();
            if len > room {
                if out.len() == SYNC_PACKETS_MAX {
                    break;
                }
                out.push(Self { total, offset: at, records: Vec::new() });
                room = DATA_MAX - 4;
            }
            if let Some(last) = out.last_mut() {
                last.records.push(record.clone());
            }
            room = room.saturating_sub(len);
            at = at.saturating_add(1);
        }
        out
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = [self.total.to_be_bytes(), self.offset.to_be_bytes()].concat();
        for record in &self.records {
            let bytes = record.encode();
            out.extend(u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes());
            out.push(record.kind() as u8);
            out.extend(bytes);
        }
        out
    }

    fn decode(data: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(data);
        let (total, offset) = (reader.u16_be()?, reader.u16_be()?);
        let mut records = Vec::new();
        while !reader.is_empty() {
            let len = usize::from(reader.u16_be()?);
            let kind = Kind::from_byte(reader.u8()?).ok_or(Malformed)?;
            records.push(Record::decode(kind, reader.take(len)?)?);
        }
        Ok(Self { total, offset, records })
    }
}
