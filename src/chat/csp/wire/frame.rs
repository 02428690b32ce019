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

/// A box of this length does not fit a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a box of {len} bytes does not fit a frame")]
pub struct TooLong {
    /// Length of the box, in bytes.
    pub len: usize,
}

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

    /// Appends the frame that carries `container`. The order of calls is the order on the wire. Frames of more than
    /// [`FRAME_MAX`] are made, too: harnesses have to be able to send what a receiver refuses.
    ///
    /// # Errors
    /// [`TooLong`] when the prefix cannot say the length. Nothing is appended then, and no nonce used.
    pub fn seal_frame(&mut self, container: &[u8], out: &mut BytesMut) -> Result<(), TooLong> {
        let len = container.len().saturating_add(boxes::TAG);
        let prefix = u16::try_from(len).map_err(|_| TooLong { len })?;
        out.put_u16_le(prefix);
        out.put_slice(&self.seal(container));
        Ok(())
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
        sealer.seal_frame(&[0x80, 0, 0, 0], &mut first).unwrap();
        sealer.seal_frame(&[0x80, 0, 0, 0], &mut second).unwrap();
        assert_ne!(first, second);
        let opener = || Opener::new(key.clone(), [1; 16], 3);
        assert_eq!(opener().open_frame(&second), Err(BadBox), "out of turn");
        let mut in_turn = opener();
        assert!(in_turn.open_frame(&first).is_ok());
        assert_eq!(in_turn.open_frame(&first), Err(BadBox), "twice");
        assert_eq!(opener().open_frame(&first[..1]), Err(BadBox));
    }

    #[test]
    fn a_frame_that_its_prefix_cannot_name_is_refused_and_costs_no_nonce() {
        let key = Secret::random();
        let (mut sealer, mut opener) = (Sealer::new(key.clone(), [1; 16], 3), Opener::new(key, [1; 16], 3));
        let mut out = BytesMut::new();
        let longest = vec![0; usize::from(u16::MAX) - boxes::TAG];
        let refused = sealer.seal_frame(&[&longest[..], &[0]].concat(), &mut out);
        assert_eq!((refused, out.len()), (Err(TooLong { len: 65_536 }), 0));
        sealer.seal_frame(&longest, &mut out).unwrap();
        assert_eq!(opener.open_frame(&out).unwrap(), longest);
    }
}
