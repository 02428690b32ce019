//! The outside of Tox group chat on a byte stream: frames with a length, for whoever does not care what is in them.

use super::delimit::{BadUnit, Cut, Delimiter};

/// The first byte of each packet: group chat (toxgroup spec 2).
pub const OUTER_GROUP_CHAT: u8 = 0x30;
/// Shortest packet, in bytes: a request id and at least one byte of data.
pub const PACKET_MIN: usize = 107;
/// Longest packet, in bytes.
pub const PACKET_MAX: usize = 1_024;
/// Length of what stands before each frame, in bytes: a big-endian u16.
pub const PREFIX: usize = 2;
/// Longest frame of the line for thin users, in bytes. They say JSON in the same frames as others say packets.
pub const THIN_MAX: usize = 16 * 1_024;

/// Finds the seams: frames of `max` bytes at most, prefixes not counted. A frame of no bytes is a sign of life.
#[derive(Debug, Clone, Copy)]
pub struct Frames {
    max: usize,
}

impl Frames {
    /// A stream from its first byte.
    #[must_use]
    pub const fn new(max: usize) -> Self {
        Self { max }
    }
}

impl Delimiter for Frames {
    fn cut(&mut self, pending: &[u8]) -> Result<Cut, BadUnit> {
        let Some(prefix) = pending.first_chunk::<PREFIX>() else { return Ok(Cut::More) };
        let len = usize::from(u16::from_be_bytes(*prefix));
        if len > self.max {
            return Err(BadUnit { len });
        }
        Ok(if pending.len() < PREFIX + len { Cut::More } else { Cut::Unit(PREFIX + len) })
    }
}

/// Puts a frame's length before it; nothing when it fits no frame.
#[must_use]
pub fn frame(body: &[u8]) -> Option<Vec<u8>> {
    let len = u16::try_from(body.len()).ok()?;
    Some([&len.to_be_bytes()[..], body].concat())
}

#[cfg(test)]
mod tests {
    use super::super::delimit::Cutter;
    use super::*;

    #[test]
    fn frames_are_found_however_tcp_cuts_them_and_a_long_one_is_refused_by_its_length() {
        let frames = [frame(b"").unwrap(), frame(&[OUTER_GROUP_CHAT; 107]).unwrap(), frame(&[7; 1_024]).unwrap()];
        let stream = [frames.concat(), vec![0]].concat();
        for step in [1, 2, 3, 500, stream.len()] {
            let mut cutter = Cutter::new(Frames::new(PACKET_MAX));
            let mut units = Vec::new();
            for piece in stream.chunks(step) {
                cutter.buffer().extend_from_slice(piece);
                while let Some(unit) = cutter.next_unit().unwrap() {
                    units.push(unit.to_vec());
                }
            }
            assert_eq!(units, frames, "in steps of {step}");
        }
        let mut cutter = Cutter::new(Frames::new(PACKET_MAX));
        cutter.buffer().extend_from_slice(&1_025_u16.to_be_bytes());
        assert_eq!(cutter.next_unit(), Err(BadUnit { len: 1_025 }));
        assert_eq!(frame(&vec![0; 65_536]), None);
    }
}
