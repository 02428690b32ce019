//! Cuts what a chat server sends into units, each of which becomes one proxy payload (D2M spec 9.2).

use bytes::{Bytes, BytesMut};

use crate::wire::chatos;
use crate::wire::csp;
use crate::wire::d2m::{self, PAYLOAD_MAX};
use crate::wire::delimit::{BadUnit, Cut, Cutter, Delimiter};
use crate::wire::skynet;
use crate::wire::toxgroup;

/// Longest body of a CSP frame that can be proxied, in bytes: with its prefix it has to fit a container.
pub const CSP_FRAME_MAX: usize = PAYLOAD_MAX - csp::FRAME_PREFIX;

const _: () = assert!(
    1 + 2 * (chatos::INT + chatos::CLIENT_CAPS.name) + chatos::INT + chatos::CLIENT_CAPS.text <= PAYLOAD_MAX,
    "the longest packet, a private message, fits a container"
);
const _: () = assert!(toxgroup::PREFIX + toxgroup::THIN_MAX <= PAYLOAD_MAX, "the longest frame fits a container");
const _: () = assert!(CSP_FRAME_MAX == 65_530, "the number D2M spec 9.2 names");

/// How a chat server's byte stream is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Framing {
    /// The Chat Server Protocol: 80 bytes, 32 bytes, then length-prefixed frames.
    #[default]
    Csp,
    /// ChatOs: packets, and behind an established private connection whatever comes.
    ChatOs,
    /// Skynet: packets; one that fits no container comes in pieces, of which all but the last fill one.
    Skynet,
    /// Tox group chat: frames behind their length, whether packets are in them or what thin users say.
    ToxGroup,
    /// As it comes, in pieces that fit a container: for devices that find the seams themselves.
    Raw,
}

/// One chat server's stream, being cut.
#[derive(Debug)]
pub struct Framer {
    cutter: Cutter<Seams>,
}

#[derive(Debug)]
enum Seams {
    Csp(csp::ServerStream),
    ChatOs(chatos::ServerStream),
    Skynet(skynet::ServerStream),
    ToxGroup(toxgroup::Frames),
    Raw,
}

impl Delimiter for Seams {
    fn cut(&mut self, pending: &[u8]) -> Result<Cut, BadUnit> {
        match self {
            Self::Csp(stream) => stream.cut(pending),
            Self::ChatOs(stream) => stream.cut(pending),
            Self::Skynet(stream) => stream.cut(pending),
            Self::ToxGroup(frames) => frames.cut(pending),
            Self::Raw if pending.is_empty() => Ok(Cut::More),
            Self::Raw => Ok(Cut::Unit(pending.len().min(PAYLOAD_MAX))),
        }
    }
}

impl Framer {
    /// A stream from its first byte.
    #[must_use]
    pub fn new(framing: Framing) -> Self {
        let seams = match framing {
            Framing::Csp => Seams::Csp(csp::ServerStream::new(CSP_FRAME_MAX)),
            // As much as clients have to accept, so that the packet of a server with wider limits than ours is for the device to judge.
            Framing::ChatOs => Seams::ChatOs(chatos::ServerStream::new(chatos::CLIENT_CAPS, PAYLOAD_MAX)),
            Framing::Skynet => Seams::Skynet(skynet::ServerStream::new(PAYLOAD_MAX)),
            Framing::ToxGroup => Seams::ToxGroup(toxgroup::Frames::new(toxgroup::THIN_MAX)),
            Framing::Raw => Seams::Raw,
        };
        Self { cutter: Cutter::new(seams) }
    }

    /// Takes what was received.
    pub fn push(&mut self, received: &[u8]) {
        self.cutter.buffer().extend_from_slice(received);
    }

    /// The next complete unit in a container of its own, ready to be sent. It is copied: a slice would keep the whole buffer alive
    /// for as long as a slow device needs.
    ///
    /// # Errors
    /// [`BadUnit`] when the stream cannot be proxied any further.
    pub fn next_payload(&mut self) -> Result<Option<Bytes>, BadUnit> {
        let payload = self.cutter.next_unit_as(d2m::proxied)?;
        let pending = self.cutter.buffer();
        if payload.is_none() && pending.is_empty() {
            // A connection with nothing to say holds no buffer.
            *pending = BytesMut::new();
        }
        Ok(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::d2m::{CONTAINER_HEADER, ToDevice};

    fn lengths(framer: &mut Framer) -> Vec<usize> {
        std::iter::from_fn(|| framer.next_payload().unwrap()).map(|payload| payload.len() - CONTAINER_HEADER).collect()
    }

    #[test]
    fn a_unit_comes_in_its_container() {
        let mut framer = Framer::new(Framing::Raw);
        framer.push(b"said");
        assert_eq!(framer.next_payload(), Ok(Some(ToDevice::Proxy(Bytes::from_static(b"said")).encode())));
    }

    #[test]
    fn csp_is_cut_at_its_own_seams() {
        let mut framer = Framer::new(Framing::Csp);
        framer.push(&[0; 80 + 32]);
        framer.push(&[2, 0, 7, 8, 9]);
        assert_eq!(lengths(&mut framer), [80, 32, 4]);
        framer.push(&[0, 1]);
        assert_eq!(lengths(&mut framer), [0_usize; 0], "9 then 0: a frame of nine bytes has begun");
    }

    #[test]
    fn the_largest_frame_fills_a_payload_and_one_more_byte_is_refused() {
        let mut framer = Framer::new(Framing::Csp);
        framer.push(&[0; 80 + 32]);
        framer.push(&65_530_u16.to_le_bytes());
        framer.push(&vec![1; 65_530]);
        assert_eq!(lengths(&mut framer), [80, 32, PAYLOAD_MAX]);
        framer.push(&65_531_u16.to_le_bytes());
        assert_eq!(framer.next_payload(), Err(BadUnit { len: 65_531 }));
    }

    #[test]
    fn chatos_is_one_packet_per_payload_and_a_private_connection_a_pipe() {
        let mut framer = Framer::new(Framing::ChatOs);
        let said = [&[1, 0, 0, 0, 1, b'a', 4, 0, 0, 0, 1, b'b'][..], &[0, 0, 0, 2, b'h'], b"i\x06\0\0\0"].concat();
        let mut found = Vec::new();
        for octet in &said {
            framer.push(&[*octet]);
            found.extend(lengths(&mut framer));
        }
        assert_eq!(found, [6, 12]);
        framer.push(&[0]);
        assert_eq!(lengths(&mut framer), [5]);
        framer.push(&[12]);
        assert_eq!(framer.next_payload(), Err(BadUnit { len: 1 }), "no server says that");

        let mut framer = Framer::new(Framing::ChatOs);
        framer.push(&[&[11][..], &[200; PAYLOAD_MAX + 1]].concat());
        assert_eq!(lengths(&mut framer), [1, PAYLOAD_MAX, 1]);
    }

    #[test]
    fn the_longest_chatos_packet_passes_and_one_octet_more_is_refused_by_its_length_alone() {
        let packet = |text: u32| {
            let name = [&1_024_u32.to_be_bytes()[..], &[b'n'; 1_024]].concat();
            [&[5][..], &name, &name, &text.to_be_bytes()].concat()
        };
        let mut framer = Framer::new(Framing::ChatOs);
        framer.push(&packet(4_096));
        framer.push(&[b't'; 4_096]);
        assert_eq!(lengths(&mut framer), [1 + 2 * 1_028 + 4 + 4_096]);
        framer.push(&packet(4_097));
        assert_eq!(framer.next_payload(), Err(BadUnit { len: 4_097 }));
    }

    #[test]
    fn skynet_is_one_packet_per_payload_and_one_that_is_too_long_comes_in_pieces() {
        let mut framer = Framer::new(Framing::Skynet);
        let packet = |len: usize| [&[0x20], &len.to_le_bytes()[..3], &vec![7; len]].concat();
        framer.push(&[packet(0), packet(PAYLOAD_MAX - 4), packet(2 * PAYLOAD_MAX), packet(1)].concat());
        assert_eq!(lengths(&mut framer), [4, PAYLOAD_MAX, PAYLOAD_MAX, PAYLOAD_MAX, 4, 5]);
    }

    #[test]
    fn tox_groups_are_one_frame_per_payload() {
        let mut framer = Framer::new(Framing::ToxGroup);
        let frame = |body: &[u8]| toxgroup::frame(body).unwrap();
        framer.push(&[frame(b""), frame(&[0x30; 107]), frame(b"{}"), vec![0]].concat());
        assert_eq!(lengths(&mut framer), [2, 109, 4]);
        framer.push(&[1]);
        assert_eq!(lengths(&mut framer), [0_usize; 0], "a frame of one byte has begun");
        let mut framer = Framer::new(Framing::ToxGroup);
        framer.push(&16_385_u16.to_be_bytes());
        assert_eq!(framer.next_payload(), Err(BadUnit { len: 16_385 }));
    }

    #[test]
    fn raw_pieces_fit_a_container() {
        let mut framer = Framer::new(Framing::Raw);
        framer.push(b"hello");
        assert_eq!(lengths(&mut framer), [5]);
        framer.push(&vec![1; PAYLOAD_MAX + 3]);
        assert_eq!(lengths(&mut framer), [PAYLOAD_MAX, 3]);
    }

    #[test]
    fn a_silent_stream_holds_no_buffer() {
        let mut framer = Framer::new(Framing::Csp);
        framer.push(&[0; 112]);
        assert_eq!(lengths(&mut framer), [80, 32]);
        assert_eq!(framer.cutter.buffer().capacity(), 0);
    }
}
