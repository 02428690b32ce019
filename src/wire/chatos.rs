//! The outside of ChatOs: where packets end, for whoever does not care what they mean.
//!
//! A packet is an opcode and the fields of that opcode; there is no length of the whole. So an opcode without a known
//! layout is the end: nobody can say where the next packet begins. All integers are big-endian and signed, lengths of
//! strings included, which is why a length is judged before it is believed.

use super::delimit::{BadUnit, Cut, Delimiter};

/// The first octet of each packet (ChatOs spec 3).
pub mod op {
    /// A client asks for a nickname.
    pub const LOGIN: u8 = 0;
    /// It has it.
    pub const LOGIN_OK: u8 = 1;
    /// It does not get it; later: an error, and the connection ends.
    pub const REFUSED: u8 = 2;
    /// Somebody asks for a private connection.
    pub const PRIV_REQUEST: u8 = 3;
    /// A message for everybody.
    pub const PUBLIC: u8 = 4;
    /// A message for one.
    pub const PRIVATE: u8 = 5;
    /// Nobody of that name is there.
    pub const UNKNOWN_USER: u8 = 6;
    /// A private connection is wanted.
    pub const PRIV_ACCEPT: u8 = 7;
    /// It is not.
    pub const PRIV_REFUSE: u8 = 8;
    /// What both sides present on their private connections.
    pub const PRIV_ID: u8 = 9;
    /// The first packet of a private connection.
    pub const PRIV_JOIN: u8 = 10;
    /// Both sides are there; what follows on this connection is a pipe.
    pub const PRIV_ESTABLISHED: u8 = 11;
    /// A line in the pipe: a convention of clients, of which the server knows nothing.
    pub const PRIV_DATA: u8 = 12;
}

/// Length of a string's length, in octets.
pub const INT: usize = 4;
/// Length of an id, in octets.
pub const LONG: usize = 8;

/// What a packet is made of, behind its opcode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// A nickname: a string.
    Name,
    /// A message: a string.
    Text,
    /// An id.
    Long,
}

/// The fields behind an opcode.
#[must_use]
pub const fn layout(opcode: u8) -> Option<&'static [Field]> {
    use Field::{Long, Name, Text};
    Some(match opcode {
        op::LOGIN | op::LOGIN_OK | op::REFUSED | op::UNKNOWN_USER => &[Name],
        op::PRIV_REQUEST | op::PRIV_ACCEPT | op::PRIV_REFUSE => &[Name, Name],
        op::PUBLIC => &[Name, Text],
        op::PRIVATE => &[Name, Name, Text],
        op::PRIV_ID => &[Name, Name, Long],
        op::PRIV_JOIN => &[Long],
        op::PRIV_ESTABLISHED => &[],
        op::PRIV_DATA => &[Long, Text],
        _ => return None,
    })
}

/// The longest strings that are let through, in octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// Of a nickname.
    pub name: usize,
    /// Of a message.
    pub text: usize,
}

/// Longest nickname field that is read at all, in octets (D-13).
pub const NAME_FIELD_MAX: usize = 1_024;
/// What a client has to accept (spec 12.3).
pub const CLIENT_CAPS: Caps = Caps { name: NAME_FIELD_MAX, text: 4_096 };

/// Why the front of a stream can never become a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoPacket {
    /// An opcode that is not expected here, or never.
    #[error("opcode {0} is not expected")]
    Opcode(u8),
    /// A string announces a length that is negative or over its cap.
    #[error("a string of {0} octets is announced")]
    Size(i32),
}

/// The length of the packet at the front, in octets; nothing while it is incomplete. It is judged as far as it is here: the
/// opcode by `accepts`, every length as soon as its four octets have come.
///
/// # Errors
/// [`NoPacket`] says what is wrong.
pub fn measure(pending: &[u8], caps: Caps, accepts: impl Fn(u8) -> bool) -> Result<Option<usize>, NoPacket> {
    let Some(&opcode) = pending.first() else { return Ok(None) };
    let fields = layout(opcode).filter(|_| accepts(opcode)).ok_or(NoPacket::Opcode(opcode))?;
    let mut len = 1;
    for field in fields {
        let cap = match field {
            Field::Name => caps.name,
            Field::Text => caps.text,
            Field::Long => {
                len += LONG;
                continue;
            }
        };
        let Some(size) = pending.get(len..).and_then(|rest| rest.first_chunk::<INT>()) else { return Ok(None) };
        let size = i32::from_be_bytes(*size);
        let octets = usize::try_from(size).ok().filter(|octets| *octets <= cap).ok_or(NoPacket::Size(size))?;
        len += INT + octets;
    }
    Ok((pending.len() >= len).then_some(len))
}

/// Finds the seams in what a ChatOs server sends. Behind [`op::PRIV_ESTABLISHED`] there are none any more: that connection
/// is a pipe, and comes in whatever pieces it comes.
#[derive(Debug)]
pub struct ServerStream {
    caps: Caps,
    piece_max: usize,
    piped: bool,
}

impl ServerStream {
    /// A connection from its first octet. Pieces of a pipe are no longer than `piece_max` octets.
    #[must_use]
    pub const fn new(caps: Caps, piece_max: usize) -> Self {
        Self { caps, piece_max, piped: false }
    }
}

impl Delimiter for ServerStream {
    fn cut(&mut self, pending: &[u8]) -> Result<Cut, BadUnit> {
        if self.piped {
            let len = pending.len().min(self.piece_max);
            return Ok(if len == 0 { Cut::More } else { Cut::Unit(len) });
        }
        match measure(pending, self.caps, |opcode| opcode != op::PRIV_DATA) {
            Ok(None) => Ok(Cut::More),
            Ok(Some(len)) => {
                self.piped = pending.first() == Some(&op::PRIV_ESTABLISHED);
                Ok(Cut::Unit(len))
            }
            Err(NoPacket::Opcode(_)) => Err(BadUnit { len: 1 }),
            Err(NoPacket::Size(size)) => Err(BadUnit { len: usize::try_from(size).unwrap_or(usize::MAX) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::delimit::Cutter;
    use super::*;

    const CAPS: Caps = Caps { name: 24, text: 2_048 };

    fn units(stream: &[u8], step: usize) -> Vec<Vec<u8>> {
        let mut cutter = Cutter::new(ServerStream::new(CAPS, 4));
        let mut out = Vec::new();
        for piece in stream.chunks(step) {
            cutter.buffer().extend_from_slice(piece);
            while let Some(unit) = cutter.next_unit().unwrap() {
                out.push(unit.to_vec());
            }
        }
        out
    }

    #[test]
    fn packets_are_found_however_tcp_cuts_them() {
        let packets: [&[u8]; 3] = [
            &[1, 0, 0, 0, 1, b'a'],
            &[4, 0, 0, 0, 1, b'a', 0, 0, 0, 2, b'h', b'i'],
            &[9, 0, 0, 0, 1, b'b', 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8],
        ];
        let mut stream = packets.concat();
        stream.extend([6, 0, 0]); // incomplete: no unit
        for step in 1..=stream.len() {
            assert_eq!(units(&stream, step), packets, "in steps of {step}");
        }
    }

    #[test]
    fn what_follows_the_establishment_is_a_pipe() {
        assert_eq!(units(&[11, 255, 254, 253, 252, 251], 6), [&[11][..], &[255, 254, 253, 252], &[251]]);
        assert_eq!(units(&[11, 255, 254], 1), [[11], [255], [254]]);
    }

    #[test]
    fn what_can_be_no_packet_is_refused_as_soon_as_that_is_known() {
        for (front, why) in [
            (&[13][..], NoPacket::Opcode(13)),
            (&[4, 255, 255, 255, 255], NoPacket::Size(-1)),
            (&[4, 0, 0, 0, 25], NoPacket::Size(25)),
            (&[4, 0, 0, 0, 1, b'a', 0, 0, 8, 1], NoPacket::Size(2_049)),
        ] {
            assert_eq!(measure(front, CAPS, |_| true), Err(why), "{front:?}");
            assert_eq!(measure(&front[..front.len() - 1], CAPS, |_| true), Ok(None), "{front:?}");
        }
        assert_eq!(measure(&[4], CAPS, |opcode| opcode == op::LOGIN), Err(NoPacket::Opcode(4)));
        let mut cutter = Cutter::new(ServerStream::new(CAPS, 4));
        cutter.buffer().extend_from_slice(&[12]);
        assert_eq!(cutter.next_unit(), Err(BadUnit { len: 1 }), "a server never sends one");
    }
}
