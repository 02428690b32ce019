//! The outside of Skynet: packets behind a header that says how long they are, for whoever does not care what they mean.

use super::delimit::{BadUnit, Cut, Delimiter};

/// Length of a packet's header, in bytes: its id, then the length of the payload in 24 bits.
pub const HEADER: usize = 4;

/// A packet's header: which packet follows, and how long its payload is, in bytes (Skynet spec 1.2).
#[must_use]
pub const fn read_header([id, a, b, c]: [u8; HEADER]) -> (u8, usize) {
    (id, u32::from_le_bytes([a, b, c, 0]) as usize)
}

/// Finds the seams in what a Skynet server sends. A packet that is longer than `piece_max`, header included, comes in pieces:
/// all of that length but the last, the header in the first, and nothing of the next packet in any.
///
/// *Rejected*: to refuse such a packet, as CSP's are. A message of the longest legal content is one, and it is kept: the device
/// would be told of it, and disconnected, again and again.
#[derive(Debug)]
pub struct ServerStream {
    piece_max: usize,
    /// What is to come of the packet that has begun, in bytes.
    left: usize,
}

impl ServerStream {
    /// A connection from its first byte. `piece_max` is at least [`HEADER`].
    #[must_use]
    pub const fn new(piece_max: usize) -> Self {
        Self { piece_max, left: 0 }
    }
}

impl Delimiter for ServerStream {
    fn cut(&mut self, pending: &[u8]) -> Result<Cut, BadUnit> {
        if self.left == 0 {
            let Some(header) = pending.first_chunk::<HEADER>() else { return Ok(Cut::More) };
            self.left = HEADER + read_header(*header).1;
        }
        let len = self.left.min(self.piece_max);
        if pending.len() < len {
            return Ok(Cut::More);
        }
        self.left -= len;
        Ok(Cut::Unit(len))
    }
}

#[cfg(test)]
mod tests {
    use super::super::delimit::Cutter;
    use super::*;

    fn units(stream: &[u8], step: usize) -> Vec<Vec<u8>> {
        let mut cutter = Cutter::new(ServerStream::new(8));
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
    fn packets_are_found_however_tcp_cuts_them_and_long_ones_come_in_pieces() {
        let expected: [&[u8]; 6] = [
            &[0x0f, 0, 0, 0],             // nothing but a header
            &[0x0c, 4, 0, 0, 1, 2, 3, 4], // fills a piece
            &[0x20, 5, 0, 0, 1, 2, 3, 4], // one byte too many
            &[5],
            &[0x20, 12, 0, 0, 1, 2, 3, 4],
            &[5, 6, 7, 8, 9, 10, 11, 12], // no piece of nothing behind it
        ];
        let mut stream = expected.concat();
        stream.extend([0x0f, 1, 0, 0]); // incomplete: no unit
        for step in 1..=stream.len() {
            assert_eq!(units(&stream, step), expected, "in steps of {step}");
        }
    }

    #[test]
    fn a_header_is_an_id_and_an_unsigned_length() {
        assert_eq!(read_header([0x7f, 0, 0, 0]), (0x7f, 0));
        assert_eq!(read_header([0x7f, 0xef, 0xee, 0xbe]), (0x7f, 0x00be_eeef));
        assert_eq!(read_header([0xff; 4]), (0xff, 0x00ff_ffff));
    }
}
