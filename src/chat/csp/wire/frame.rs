//! Frames: a length, and a box whose nonce both sides count for themselves (spec 1 and 3).

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::crypto::Secret;
use crate::crypto::boxes::{self, BadBox, Nonce};
use crate::wire::csp::FRAME_PREFIX;
use crate::wire::delimit::{BadUnit, Cut, Delimiter};

/// Longest box of a frame, in bytes; the length prefix does not count (spec C13).
pub const FRAME_MAX: usize = 8_192;
/// Shortest box of a frame, in bytes: a tag and a container's header.
pub const FRAME_MIN: usize = 20;

/// One direction's nonces: the sender's cookie, then how many boxes it has sent, this one included.
#[derive(Debug, Clone)]
struct Nonces {
    cookie: [u8; 16],
    next: u64,
}

impl Nonces {
    fn next(&mut self) -> Nonce {
        let mut nonce = [0; 24];
        let (cookie, counter) = nonce.split_at_mut(16);
        cookie.copy_from_slice(&self.cookie);
        counter.copy_from_slice(&self.next.to_le_bytes());
        self.next = self.next.wrapping_add(1);
        nonce
    }
}

/// The sending direction of a connection.
#[derive(Debug)]
pub struct Sealer {
    key: Secret<32>,
    nonces: Nonces,
}

impl Sealer {
    /// A direction whose next box is number `next`.
    #[must_use]
    pub(super) const fn new(key: Secret<32>, cookie: [u8; 16], next: u64) -> Self {
        Self { key, nonces: Nonces { cookie, next } }
    }

    /// Seals without a frame around it: handshake boxes.
    pub(super) fn seal(&mut self, plain: &[u8]) -> Vec<u8> {
        boxes::seal(&self.key, &self.nonces.next(), plain)
    }

    /// Appends the frame that carries `container`. The order of calls is the order on the wire.
    pub fn seal_frame(&mut self, container: &[u8], out: &mut BytesMut) {
        let boxed = self.seal(container);
        // What is longer than the prefix can say is longer than a receiver accepts: it will hang up, either way.
        out.put_u16_le(u16::try_from(boxed.len()).unwrap_or(u16::MAX));
        out.put_slice(&boxed);
    }
}

/// The receiving direction of a connection.
#[derive(Debug)]
pub struct Opener {
    key: Secret<32>,
    nonces: Nonces,
}

impl Opener {
    /// A direction whose next box is number `next`.
    #[must_use]
    pub(super) const fn new(key: Secret<32>, cookie: [u8; 16], next: u64) -> Self {
        Self { key, nonces: Nonces { cookie, next } }
    }

    /// Opens without a frame around it: handshake boxes.
    pub(super) fn open(&mut self, boxed: &[u8]) -> Result<Vec<u8>, BadBox> {
        boxes::open(&self.key, &self.nonces.next(), boxed)
    }

    /// Opens a frame as [`Frames`] cuts it, its prefix included, and gives the container.
    ///
    /// # Errors
    /// [`BadBox`] when it is not the next one of this direction: the connection is beyond repair.
    pub fn open_frame(&mut self, frame: &[u8]) -> Result<Bytes, BadBox> {
        self.open(frame.get(FRAME_PREFIX..).ok_or(BadBox)?).map(Bytes::from)
    }
}

/// Both directions, as the handshake leaves them.
#[derive(Debug)]
pub struct Session {
    /// What this side sends.
    pub sealer: Sealer,
    /// What this side receives.
    pub opener: Opener,
}

/// Cuts what follows the handshake into frames. Either direction has the same.
#[derive(Debug, Clone, Copy, Default)]
pub struct Frames;

impl Delimiter for Frames {
    fn cut(&mut self, pending: &[u8]) -> Result<Cut, BadUnit> {
        let Some(prefix) = pending.first_chunk::<FRAME_PREFIX>() else { return Ok(Cut::More) };
        let len = usize::from(u16::from_le_bytes(*prefix));
        if !(FRAME_MIN..=FRAME_MAX).contains(&len) {
            return Err(BadUnit { len });
        }
        Ok(if pending.len() < FRAME_PREFIX + len { Cut::More } else { Cut::Unit(FRAME_PREFIX + len) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csp_13_13_frame_lengths_at_the_edges() {
        for (len, allowed) in [(0, false), (19, false), (20, true), (8_192, true), (8_193, false), (65_535, false)] {
            let mut stream = u16::try_from(len).unwrap().to_le_bytes().to_vec();
            let verdict = Frames.cut(&stream);
            assert_eq!(verdict, if allowed { Ok(Cut::More) } else { Err(BadUnit { len }) });
            stream.resize(FRAME_PREFIX + len, 0);
            if allowed {
                assert_eq!(Frames.cut(&stream), Ok(Cut::Unit(FRAME_PREFIX + len)));
            }
        }
    }

    #[test]
    fn a_frame_opens_once_and_in_its_turn() {
        let key = Secret::random();
        let mut sealer = Sealer::new(key.clone(), [1; 16], 3);
        let (mut first, mut second) = (BytesMut::new(), BytesMut::new());
        sealer.seal_frame(&[0x80, 0, 0, 0], &mut first);
        sealer.seal_frame(&[0x80, 0, 0, 0], &mut second);
        assert_ne!(first, second);
        let opener = || Opener::new(key.clone(), [1; 16], 3);
        assert_eq!(opener().open_frame(&second), Err(BadBox), "out of turn");
        let mut in_turn = opener();
        assert!(in_turn.open_frame(&first).is_ok());
        assert_eq!(in_turn.open_frame(&first), Err(BadBox), "twice");
        assert_eq!(opener().open_frame(&first[..1]), Err(BadBox));
    }
}
