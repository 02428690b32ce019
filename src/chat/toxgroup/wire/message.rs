//! What a broadcast carries (spec 4), and the signed envelope of signed groups (spec 9.4).

use super::record::{Kind, Record, tagged};
use super::{ClientId, DATA_MAX, GroupId, Malformed, NAME_MAX, ReadBig as _, SigPk, TOPIC_MAX};
use crate::crypto::sign::{self, SIGNATURE, Signature};
use crate::wire::bytes::Reader;

/// What stands before a payload: origin, number, message id.
pub const BROADCAST_HEADER: usize = 37;
/// Longest payload, in bytes.
pub const PAYLOAD_MAX: usize = DATA_MAX - BROADCAST_HEADER;
/// What the signed envelope costs: flags, time, inner id, signature.
pub const ENVELOPE: usize = 1 + 8 + 1 + SIGNATURE;
/// Longest text in a signed envelope, in bytes.
pub const SIGNED_MAX: usize = PAYLOAD_MAX - ENVELOPE;

const _: () = assert!(PAYLOAD_MAX == 881 && SIGNED_MAX == 807, "the numbers of spec 1 and 9.4");

/// What a broadcast is. Open: others are read, counted and not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MessageId(pub u8);

impl MessageId {
    /// The origin is there.
    pub const PING: Self = Self(0);
    /// Somebody new is let in.
    pub const NEW_PEER: Self = Self(16);
    /// Somebody is to be out.
    pub const BAN_PEER: Self = Self(17);
    /// What this is about.
    pub const TOPIC: Self = Self(18);
    /// The origin leaves.
    pub const QUIT: Self = Self(24);
    /// What the origin is called.
    pub const NAME: Self = Self(48);
    /// How the origin is.
    pub const STATUS: Self = Self(49);
    /// An action, by the number the programs of 2014 used.
    pub const ACTION_2014: Self = Self(63);
    /// A text.
    pub const CHAT: Self = Self(64);
    /// An action.
    pub const ACTION: Self = Self(65);
    /// A signed envelope around one of the others.
    pub const SIGNED: Self = Self(128);
    /// A record.
    pub const RECORD: Self = Self(129);
}

/// What is flooded: unchanged from hop to hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broadcast {
    /// Who said it first.
    pub origin: ClientId,
    /// Its how-manieth it is.
    pub number: u32,
    /// What it is.
    pub id: MessageId,
    /// By `id`.
    pub payload: Vec<u8>,
}

impl Broadcast {
    pub(super) fn encode(&self) -> Vec<u8> {
        [&self.origin.0[..], &self.number.to_be_bytes(), &[self.id.0], &self.payload].concat()
    }

    pub(super) fn decode(data: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(data);
        let (origin, number, id) = (ClientId(reader.array()?), reader.u32_be()?, MessageId(reader.u8()?));
        Ok(Self { origin, number, id, payload: reader.rest().to_vec() })
    }
}

/// How somebody is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// There.
    #[default]
    Online,
    /// Not there.
    Away,
    /// There, and not to be disturbed.
    Busy,
}

impl Presence {
    fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Away,
            2 => Self::Busy,
            _ => Self::Online,
        }
    }
}

/// A payload that was understood. Texts are bytes: what is not UTF-8 is forwarded as it came and shown as well as can be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Message 0.
    Ping,
    /// Message 16.
    NewPeer(ClientId),
    /// Message 17.
    Ban(ClientId),
    /// Message 18.
    Topic(Vec<u8>),
    /// Message 24.
    Quit,
    /// Message 48: 1 to 128 bytes.
    Name(Vec<u8>),
    /// Message 49.
    Status(Presence),
    /// Message 64, and as an action 65, or 63 where that is spoken.
    Text {
        /// What.
        text: Vec<u8>,
        /// `/me`.
        action: bool,
    },
}

impl Message {
    /// Reads a payload. `None`: an id that nobody knows.
    ///
    /// # Errors
    /// [`Malformed`] when the payload is not what its id asks for.
    pub fn decode(id: MessageId, payload: &[u8]) -> Result<Option<Self>, Malformed> {
        let somebody = || Ok::<_, Malformed>(ClientId(payload.try_into().map_err(|_| Malformed)?));
        let empty = |message| if payload.is_empty() { Ok(message) } else { Err(Malformed) };
        Ok(Some(match id {
            MessageId::PING => empty(Self::Ping)?,
            MessageId::NEW_PEER => Self::NewPeer(somebody()?),
            MessageId::BAN_PEER => Self::Ban(somebody()?),
            MessageId::TOPIC if payload.len() <= TOPIC_MAX => Self::Topic(payload.to_vec()),
            MessageId::QUIT => empty(Self::Quit)?,
            MessageId::NAME if (1..=NAME_MAX).contains(&payload.len()) => Self::Name(payload.to_vec()),
            MessageId::STATUS => {
                let [status] = payload else { return Err(Malformed) };
                Self::Status(Presence::from_byte(*status))
            }
            MessageId::CHAT | MessageId::ACTION | MessageId::ACTION_2014 if payload.len() <= PAYLOAD_MAX => {
                Self::Text { text: payload.to_vec(), action: id != MessageId::CHAT }
            }
            MessageId::TOPIC | MessageId::NAME | MessageId::CHAT | MessageId::ACTION | MessageId::ACTION_2014 => {
                return Err(Malformed);
            }
            _ => return Ok(None),
        }))
    }

    /// Its id and payload; `action` is the number that actions get.
    #[must_use]
    pub fn encode(&self, action: MessageId) -> (MessageId, Vec<u8>) {
        match self {
            Self::Ping => (MessageId::PING, Vec::new()),
            Self::NewPeer(id) => (MessageId::NEW_PEER, id.0.to_vec()),
            Self::Ban(id) => (MessageId::BAN_PEER, id.0.to_vec()),
            Self::Topic(text) => (MessageId::TOPIC, text.clone()),
            Self::Quit => (MessageId::QUIT, Vec::new()),
            Self::Name(name) => (MessageId::NAME, name.clone()),
            Self::Status(status) => (MessageId::STATUS, vec![*status as u8]),
            Self::Text { text, action: false } => (MessageId::CHAT, text.clone()),
            Self::Text { text, action: true } => (action, text.clone()),
        }
    }
}

/// A text for people: old programs send trailing zeros (spec 4), and not everybody UTF-8.
#[must_use]
pub fn shown(text: &[u8]) -> String {
    let end = text.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    String::from_utf8_lossy(text.get(..end).unwrap_or_default()).into_owned()
}

/// Cuts a text at characters into parts of at most `max` bytes (spec 4.2).
#[must_use]
pub fn parts(text: &str, max: usize) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (part, behind) = rest.split_at(rest.floor_char_boundary(max.max(4)));
        out.push(part);
        rest = behind;
    }
    out
}

/// A signed envelope: the payload of message 128 (spec 9.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// Unix milliseconds.
    pub time_ms: u64,
    /// What is in it.
    pub id: MessageId,
    /// By `id`.
    pub data: Vec<u8>,
    /// By the origin, also over the broadcast's header.
    pub signature: Signature,
}

impl Signed {
    /// Signs for a broadcast of this origin and number.
    #[must_use]
    pub fn issue(
        pair: &sign::Pair,
        group: &GroupId,
        origin: &ClientId,
        number: u32,
        time_ms: u64,
        (id, data): (MessageId, Vec<u8>),
    ) -> Self {
        let mut signed = Self { time_ms, id, data, signature: [0; SIGNATURE] };
        signed.signature = pair.sign(&signed.to_sign(group, origin, number));
        signed
    }

    /// What is signed.
    #[must_use]
    pub fn to_sign(&self, group: &GroupId, origin: &ClientId, number: u32) -> Vec<u8> {
        tagged(b"toxgroup/1 msg", &[&group.0, &origin.0, &number.to_be_bytes(), &self.head(), &self.data])
    }

    /// Whether the origin signed it.
    #[must_use]
    pub fn holds(&self, by: &SigPk, group: &GroupId, origin: &ClientId, number: u32) -> bool {
        sign::verify(&by.0, &self.to_sign(group, origin, number), &self.signature).is_ok()
    }

    fn head(&self) -> [u8; 10] {
        let [a, b, c, d, e, f, g, h] = self.time_ms.to_be_bytes();
        [0, a, b, c, d, e, f, g, h, self.id.0]
    }

    /// The payload.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [&self.head()[..], &self.data, &self.signature].concat()
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// [`Malformed`], also when flags are set.
    pub fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let (signed, signature) = payload.split_last_chunk::<SIGNATURE>().ok_or(Malformed)?;
        let mut reader = Reader::new(signed);
        if reader.u8()? != 0 || payload.len() > PAYLOAD_MAX {
            return Err(Malformed);
        }
        let (time_ms, id) = (reader.u64_be()?, MessageId(reader.u8()?));
        Ok(Self { time_ms, id, data: reader.rest().to_vec(), signature: *signature })
    }
}

/// The payload of message 129: a record and its kind (spec 9.5).
#[must_use]
pub fn record_payload(record: &Record) -> Vec<u8> {
    [&[record.kind() as u8][..], &record.encode()].concat()
}

/// Reads the payload of message 129.
///
/// # Errors
/// [`Malformed`].
pub fn read_record(payload: &[u8]) -> Result<Record, Malformed> {
    let (&kind, bytes) = payload.split_first().ok_or(Malformed)?;
    Record::decode(Kind::from_byte(kind).ok_or(Malformed)?, bytes)
}
