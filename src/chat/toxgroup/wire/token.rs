//! Invitations: a text that says where a group's hub is and proves that somebody may come (spec 9.6).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use super::record::VERSION;
use super::{ClientId, GroupId, Malformed, ReadBig as _};
use crate::crypto::Secret;
use crate::wire::bytes::Reader;

const PREFIX: &str = "toxgroup1:";
/// Addresses in one token, at most; what its count can say is more than anybody needs.
const DOORS_MAX: usize = 16;

/// Where a hub can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Door {
    /// By datagrams.
    Udp(SocketAddr),
    /// By a stream: `tcp://HOST:PORT`, `ws://` or `wss://`.
    Url(String),
}

/// An invitation. Whoever has it can join; printed without its secret unless as the text itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Which group.
    pub group: GroupId,
    /// Whom to ask.
    pub hub: ClientId,
    /// Which invitation.
    pub id: [u8; 16],
    /// What proves it.
    pub secret: Secret<32>,
    /// Unix seconds.
    pub expires_s: u64,
    /// Where the hub is.
    pub doors: Vec<Door>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("group", &self.group).field("doors", &self.doors).finish_non_exhaustive()
    }
}

impl Token {
    /// The text to hand to whoever is invited. It holds the secret.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(self.encode()))
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out =
            [&[VERSION][..], &self.group.0, &self.hub.0, &self.id, self.secret.expose(), &self.expires_s.to_be_bytes()]
                .concat();
        let doors: Vec<_> = self.doors.iter().filter_map(encode_door).take(DOORS_MAX).collect();
        out.push(u8::try_from(doors.len()).unwrap_or(u8::MAX));
        out.extend(doors.into_iter().flatten());
        out
    }

    /// Reads the bytes of one.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != VERSION {
            return Err(Malformed);
        }
        let (group, hub, id) = (GroupId(reader.array()?), ClientId(reader.array()?), reader.array()?);
        let (secret, expires_s, count) = (Secret::new(reader.array()?), reader.u64_be()?, usize::from(reader.u8()?));
        if count > DOORS_MAX {
            return Err(Malformed);
        }
        let doors = (0..count).map(|_| decode_door(&mut reader)).collect::<Result<_, _>>()?;
        reader.done()?;
        Ok(Self { group, hub, id, secret, expires_s, doors })
    }
}

impl FromStr for Token {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let text = text.trim().strip_prefix(PREFIX).ok_or(Malformed)?;
        Self::decode(&BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| Malformed)?)
    }
}

/// `None`: a URL that is too long to be written.
fn encode_door(door: &Door) -> Option<Vec<u8>> {
    Some(match door {
        Door::Udp(address) => {
            let port = address.port().to_be_bytes();
            match address.ip() {
                IpAddr::V4(ip) => [&[4][..], &ip.octets(), &port].concat(),
                IpAddr::V6(ip) => [&[6][..], &ip.octets(), &port].concat(),
            }
        }
        Door::Url(url) => [&[1, u8::try_from(url.len()).ok()?][..], url.as_bytes()].concat(),
    })
}

fn decode_door(reader: &mut Reader<'_>) -> Result<Door, Malformed> {
    Ok(match reader.u8()? {
        4 => Door::Udp(SocketAddr::new(reader.array::<4>()?.into(), reader.u16_be()?)),
        6 => Door::Udp(SocketAddr::new(reader.array::<16>()?.into(), reader.u16_be()?)),
        1 => {
            let len = usize::from(reader.u8()?);
            Door::Url(String::from_utf8(reader.take(len)?.to_vec()).map_err(|_| Malformed)?)
        }
        _ => return Err(Malformed),
    })
}
