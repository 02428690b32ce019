//! ChatOs packets, for the server and for clients: octets in, meaning out, and back.
//!
//! Direction is in the types: a client says [`FromClient`], the server [`ToClient`], and clients say [`Line`]s to each
//! other through a private connection. Where packets end is [`crate::wire::chatos`]'s; which may come at all depends on the
//! state of the connection, so whoever reads names them ([`NEW`], [`ONLINE`], [`SERVER_SAYS`]).
//!
//! What is decoded is encoded to the same octets, so forwarding unchanged is encoding again.

use std::fmt;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::wire::bytes::{Reader, Truncated};
pub use crate::wire::chatos::{CLIENT_CAPS, NAME_FIELD_MAX};
use crate::wire::chatos::{Caps, Field, INT, LONG, NoPacket, layout, measure, op};

/// Longest nickname that is given out, in octets (D-09).
pub const NICKNAME_MAX: usize = 24;
/// Longest message, in characters (D-06).
pub const MESSAGE_CHARS_MAX: usize = 512;
/// Longest message, in octets: as many characters of four octets each (D-06).
pub const MESSAGE_OCTETS_MAX: usize = 4 * MESSAGE_CHARS_MAX;
/// Longest message of peers that count octets, in octets (spec 15).
pub const MESSAGE_OCTETS_REFERENCE: usize = 512;

/// What may come on a connection that has said nothing yet.
pub const NEW: &[u8] = &[op::LOGIN, op::PRIV_JOIN];
/// What may come from somebody who has a nickname.
pub const ONLINE: &[u8] = &[op::PRIV_REQUEST, op::PUBLIC, op::PRIVATE, op::PRIV_ACCEPT, op::PRIV_REFUSE];
/// What a client may say, sooner or later.
const CLIENT_SAYS: &[u8] =
    &[op::LOGIN, op::PRIV_REQUEST, op::PUBLIC, op::PRIVATE, op::PRIV_ACCEPT, op::PRIV_REFUSE, op::PRIV_JOIN];
/// What a server may say.
pub const SERVER_SAYS: &[u8] = &[
    op::LOGIN_OK,
    op::REFUSED,
    op::PRIV_REQUEST,
    op::PUBLIC,
    op::PRIVATE,
    op::UNKNOWN_USER,
    op::PRIV_ACCEPT,
    op::PRIV_REFUSE,
    op::PRIV_ID,
    op::PRIV_ESTABLISHED,
];
/// What clients say to each other where they use packets at all.
pub const LINES: &[u8] = &[op::PRIV_DATA];

/// What both legs of a private connection present: any number, also 0 and negative ones (D-26).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrivateId(pub i64);

/// A message. Prints as its length.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Text(pub String);

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Text({} octets)", self.0.len())
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// Why a message may not be sent (D-06, D-07).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadText {
    /// Too many characters.
    #[error("a message has at most 512 characters, not {0}")]
    Characters(usize),
    /// Too many octets for this server.
    #[error("a message has at most {max} octets here, not {octets}")]
    Octets {
        /// How many it has.
        octets: usize,
        /// How many it may have.
        max: usize,
    },
    /// A message is one line.
    #[error("a message is one line: no LF, CR or NUL in it")]
    NotOneLine,
}

/// Checks a message against what may be sent; `octets_max` is the server's.
///
/// # Errors
/// [`BadText`].
pub fn check_text(text: &str, octets_max: usize) -> Result<(), BadText> {
    let characters = text.chars().count();
    if text.contains(['\n', '\r', '\0']) {
        Err(BadText::NotOneLine)
    } else if characters > MESSAGE_CHARS_MAX {
        Err(BadText::Characters(characters))
    } else if text.len() > octets_max {
        Err(BadText::Octets { octets: text.len(), max: octets_max })
    } else {
        Ok(())
    }
}

/// Why somebody cannot be called that (D-09, D-10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadNickname {
    /// Nothing.
    #[error("a nickname has at least one character")]
    Empty,
    /// Too many octets.
    #[error("a nickname has at most 24 octets, not {0}")]
    TooLong(usize),
    /// A character that is not allowed in it.
    #[error("a nickname has no spaces, control characters or invisible ones: {:?}", .0)]
    Character(char),
    /// A character that is not allowed at its beginning, where commands begin.
    #[error("a nickname does not begin with `@`, `/` or `\\`")]
    Begins,
}

/// Checks what somebody wants to be called. Whether it is taken is another matter.
///
/// # Errors
/// [`BadNickname`].
pub fn check_nickname(name: &str) -> Result<(), BadNickname> {
    /// Characters that show nothing, or turn the direction of those around them.
    const fn is_invisible(c: char) -> bool {
        matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2064}'
            | '\u{2066}'..='\u{2069}' | '\u{feff}')
    }
    if name.is_empty() {
        return Err(BadNickname::Empty);
    }
    if name.len() > NICKNAME_MAX {
        return Err(BadNickname::TooLong(name.len()));
    }
    if let Some(c) = name.chars().find(|c| c.is_whitespace() || c.is_control() || is_invisible(*c)) {
        return Err(BadNickname::Character(c));
    }
    if name.starts_with(['@', '/', '\\']) { Err(BadNickname::Begins) } else { Ok(()) }
}

/// Why octets are no packet that may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The layout is wrong already.
    #[error(transparent)]
    NoPacket(#[from] NoPacket),
    /// A string is not UTF-8.
    #[error("a string is not UTF-8")]
    Utf8,
    /// A message that may not be sent.
    #[error(transparent)]
    Text(#[from] BadText),
}

/// Takes the next packet of these opcodes from the front of what was received; nothing while there is none that is whole.
/// What it copies is the packet alone, so nobody who keeps one keeps a whole read.
///
/// # Errors
/// [`NoPacket`]: the stream cannot be read any further.
pub fn take_packet(received: &mut BytesMut, caps: Caps, accepts: &[u8]) -> Result<Option<Bytes>, NoPacket> {
    let Some(len) = measure(received, caps, |opcode| accepts.contains(&opcode))? else { return Ok(None) };
    let packet = received.get(..len).map(Bytes::copy_from_slice);
    received.advance(len);
    Ok(packet)
}

/// Reads fields of a packet whose length was measured.
struct Fields<'a>(Reader<'a>);

impl<'a> Fields<'a> {
    /// The opcode, and what is behind it.
    fn of(packet: &'a [u8], accepts: &[u8]) -> Result<(u8, Self), Malformed> {
        let (opcode, rest) = packet.split_first().ok_or(Malformed::NoPacket(NoPacket::Size(0)))?;
        let fits = measure(packet, Caps { name: usize::MAX, text: usize::MAX }, |opcode| accepts.contains(&opcode))?;
        if fits == Some(packet.len()) {
            Ok((*opcode, Self(Reader::new(rest))))
        } else {
            let len = i32::try_from(packet.len()).unwrap_or(i32::MAX);
            Err(Malformed::NoPacket(NoPacket::Size(len)))
        }
    }

    fn string(&mut self) -> Result<String, Malformed> {
        let octets = self.0.array::<INT>().and_then(|size| {
            let len = usize::try_from(i32::from_be_bytes(size)).map_err(|_| Truncated)?;
            self.0.take(len)
        });
        // It was measured, so it is there.
        let octets = octets.map_err(|Truncated| Malformed::NoPacket(NoPacket::Size(0)))?;
        std::str::from_utf8(octets).map(str::to_owned).map_err(|_| Malformed::Utf8)
    }

    fn text(&mut self) -> Result<Text, Malformed> {
        self.string().map(Text)
    }

    fn id(&mut self) -> Result<PrivateId, Malformed> {
        let octets = self.0.array::<LONG>().map_err(|Truncated| Malformed::NoPacket(NoPacket::Size(0)))?;
        Ok(PrivateId(i64::from_be_bytes(octets)))
    }
}

/// A field to be written.
enum Put<'a> {
    String(&'a str),
    Id(PrivateId),
}

/// Writes a packet. A string that is longer than its length can say is cut; none that is ever made is.
fn packet(opcode: u8, fields: &[Put<'_>]) -> Bytes {
    debug_assert!(layout(opcode).is_some_and(|layout| layout.len() == fields.len()));
    debug_assert!(layout(opcode).is_some_and(|layout| {
        layout.iter().zip(fields).all(|(is, put)| (*is == Field::Long) == matches!(put, Put::Id(_)))
    }));
    let mut out = BytesMut::new();
    out.put_u8(opcode);
    for field in fields {
        match field {
            Put::String(string) => {
                let len = i32::try_from(string.len()).unwrap_or(i32::MAX);
                out.put_i32(len);
                let octets = string.as_bytes();
                out.put_slice(usize::try_from(len).ok().and_then(|len| octets.get(..len)).unwrap_or(octets));
            }
            Put::Id(id) => out.put_i64(id.0),
        }
    }
    out.freeze()
}

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromClient {
    /// 0: it wants to be called that.
    Login(String),
    /// 3: it wants a private connection.
    Request {
        /// Who asks: itself.
        from: String,
        /// Who is asked.
        to: String,
    },
    /// 4: to everybody.
    Public {
        /// Who says it: itself.
        from: String,
        /// What.
        text: Text,
    },
    /// 5: to one.
    Private {
        /// Who says it: itself.
        from: String,
        /// To whom.
        to: String,
        /// What.
        text: Text,
    },
    /// 7: it wants the private connection it was asked for. Who is who is not certain (D-25).
    Accept(String, String),
    /// 8: it does not.
    Refuse(String, String),
    /// 10: this connection is one leg of a private one.
    Join(PrivateId),
}

impl FromClient {
    /// Reads one packet. `octets_max` is the longest message this server takes.
    ///
    /// # Errors
    /// [`Malformed`]; also for opcodes that a client never says.
    pub fn decode(octets: &[u8], octets_max: usize) -> Result<Self, Malformed> {
        let (opcode, mut fields) = Fields::of(octets, CLIENT_SAYS)?;
        let packet = match opcode {
            op::LOGIN => Self::Login(fields.string()?),
            op::PRIV_REQUEST => Self::Request { from: fields.string()?, to: fields.string()? },
            op::PUBLIC => Self::Public { from: fields.string()?, text: fields.text()? },
            op::PRIVATE => Self::Private { from: fields.string()?, to: fields.string()?, text: fields.text()? },
            op::PRIV_ACCEPT => Self::Accept(fields.string()?, fields.string()?),
            op::PRIV_REFUSE => Self::Refuse(fields.string()?, fields.string()?),
            op::PRIV_JOIN => Self::Join(fields.id()?),
            other => return Err(NoPacket::Opcode(other).into()),
        };
        if let Self::Public { text, .. } | Self::Private { text, .. } = &packet {
            check_text(&text.0, octets_max)?;
        }
        Ok(packet)
    }

    /// Writes it.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        use Put::{Id, String};
        match self {
            Self::Login(name) => packet(op::LOGIN, &[String(name)]),
            Self::Request { from, to } => packet(op::PRIV_REQUEST, &[String(from), String(to)]),
            Self::Public { from, text } => packet(op::PUBLIC, &[String(from), String(&text.0)]),
            Self::Private { from, to, text } => packet(op::PRIVATE, &[String(from), String(to), String(&text.0)]),
            Self::Accept(a, b) => packet(op::PRIV_ACCEPT, &[String(a), String(b)]),
            Self::Refuse(a, b) => packet(op::PRIV_REFUSE, &[String(a), String(b)]),
            Self::Join(id) => packet(op::PRIV_JOIN, &[Id(*id)]),
        }
    }
}

/// What the server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToClient {
    /// 1: you are called that.
    Welcome(String),
    /// 2: you are not called that; to somebody who is called something already, and on a private connection: an error, and the end
    /// (D-03).
    Refused(String),
    /// 3: somebody wants a private connection.
    Request {
        /// Who asks.
        from: String,
        /// Who is asked.
        to: String,
    },
    /// 4: somebody said to everybody.
    Public {
        /// Who.
        from: String,
        /// What.
        text: Text,
    },
    /// 5: somebody said to you alone.
    Private {
        /// Who.
        from: String,
        /// You.
        to: String,
        /// What.
        text: Text,
    },
    /// 6: your own name: who you named is not there. Another one: they are gone (D-20).
    Unknown(String),
    /// 7: the private connection is wanted.
    Accept(String, String),
    /// 8: it is not.
    Refuse(String, String),
    /// 9: what to present on a new connection. The first name is the partner's, if the server is like ours (D-27).
    Id(String, String, PrivateId),
    /// 11: both are there, and what follows is theirs.
    Established,
}

impl ToClient {
    /// Reads one packet.
    ///
    /// # Errors
    /// [`Malformed`]; also for opcodes that a server never says.
    pub fn decode(octets: &[u8]) -> Result<Self, Malformed> {
        let (opcode, mut fields) = Fields::of(octets, SERVER_SAYS)?;
        Ok(match opcode {
            op::LOGIN_OK => Self::Welcome(fields.string()?),
            op::REFUSED => Self::Refused(fields.string()?),
            op::PRIV_REQUEST => Self::Request { from: fields.string()?, to: fields.string()? },
            op::PUBLIC => Self::Public { from: fields.string()?, text: fields.text()? },
            op::PRIVATE => Self::Private { from: fields.string()?, to: fields.string()?, text: fields.text()? },
            op::UNKNOWN_USER => Self::Unknown(fields.string()?),
            op::PRIV_ACCEPT => Self::Accept(fields.string()?, fields.string()?),
            op::PRIV_REFUSE => Self::Refuse(fields.string()?, fields.string()?),
            op::PRIV_ID => Self::Id(fields.string()?, fields.string()?, fields.id()?),
            op::PRIV_ESTABLISHED => Self::Established,
            other => return Err(NoPacket::Opcode(other).into()),
        })
    }

    /// Writes it.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        use Put::{Id, String};
        match self {
            Self::Welcome(name) => packet(op::LOGIN_OK, &[String(name)]),
            Self::Refused(name) => packet(op::REFUSED, &[String(name)]),
            Self::Request { from, to } => packet(op::PRIV_REQUEST, &[String(from), String(to)]),
            Self::Public { from, text } => packet(op::PUBLIC, &[String(from), String(&text.0)]),
            Self::Private { from, to, text } => packet(op::PRIVATE, &[String(from), String(to), String(&text.0)]),
            Self::Unknown(name) => packet(op::UNKNOWN_USER, &[String(name)]),
            Self::Accept(a, b) => packet(op::PRIV_ACCEPT, &[String(a), String(b)]),
            Self::Refuse(a, b) => packet(op::PRIV_REFUSE, &[String(a), String(b)]),
            Self::Id(a, b, id) => packet(op::PRIV_ID, &[String(a), String(b), Id(*id)]),
            Self::Established => packet(op::PRIV_ESTABLISHED, &[]),
        }
    }
}

/// 12: a line between two clients (D-05). The server never looks at one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Of the private connection it is on.
    pub id: PrivateId,
    /// What.
    pub text: Text,
}

impl Line {
    /// Reads one packet.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(octets: &[u8]) -> Result<Self, Malformed> {
        let (_, mut fields) = Fields::of(octets, LINES)?;
        Ok(Self { id: fields.id()?, text: fields.text()? })
    }

    /// Writes it.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        packet(op::PRIV_DATA, &[Put::Id(self.id), Put::String(&self.text.0)])
    }
}

#[cfg(test)]
mod tests;
