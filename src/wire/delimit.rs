//! Cutting a byte stream into self-delimiting units.
//!
//! A [`Delimiter`] says where the first unit ends, a [`Cutter`] keeps what is incomplete. How the bytes were cut by TCP
//! makes no difference to the units that come out.

use std::fmt;

use bytes::{Buf as _, Bytes, BytesMut};

/// What a look at the front of a stream tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The next unit is this many bytes long, all of them here.
    Unit(usize),
    /// Not complete yet.
    More,
}

/// The front of the stream can never become a unit: its length, in bytes, is not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a unit of {len} bytes is not allowed")]
pub struct BadUnit {
    /// The length the stream announced.
    pub len: usize,
}

/// Knows where units of one protocol end.
pub trait Delimiter {
    /// Looks at everything that has not been cut yet.
    ///
    /// # Errors
    /// [`BadUnit`] when the front can never become a unit.
    fn cut(&mut self, pending: &[u8]) -> Result<Cut, BadUnit>;
}

/// Collects a stream and cuts it. Nothing is set aside for what a stream announces: the buffer grows with what was received,
/// so that a length costs its sender as many bytes as it costs us.
pub struct Cutter<D> {
    delimiter: D,
    pending: BytesMut,
}

impl<D: Delimiter> Cutter<D> {
    /// An empty stream.
    #[must_use]
    pub fn new(delimiter: D) -> Self {
        Self { delimiter, pending: BytesMut::new() }
    }

    /// Where received bytes are to be put: read into the buffer's end, then ask for [`Self::next_unit`] until nothing comes.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.pending
    }

    /// The next complete unit, its delimiting bytes included.
    ///
    /// # Errors
    /// [`BadUnit`] when the stream cannot be cut any further.
    pub fn next_unit(&mut self) -> Result<Option<Bytes>, BadUnit> {
        Ok(match self.delimiter.cut(&self.pending)? {
            Cut::Unit(len) => Some(self.pending.split_to(len).freeze()),
            Cut::More => None,
        })
    }

    /// As [`Self::next_unit`], for who copies the unit: what `copy` makes of it.
    ///
    /// # Errors
    /// [`BadUnit`] when the stream cannot be cut any further.
    pub fn next_unit_as<T>(&mut self, copy: impl FnOnce(&[u8]) -> T) -> Result<Option<T>, BadUnit> {
        let Cut::Unit(len) = self.delimiter.cut(&self.pending)? else { return Ok(None) };
        let made = self.pending.get(..len).map(copy);
        self.pending.advance(len);
        Ok(made)
    }
}

impl<D: fmt::Debug> fmt::Debug for Cutter<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cutter")
            .field("delimiter", &self.delimiter)
            .field("pending_bytes", &self.pending.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Units of one length byte and that many bytes; 255 is not allowed.
    struct Prefixed;

    impl Delimiter for Prefixed {
        fn cut(&mut self, pending: &[u8]) -> Result<Cut, BadUnit> {
            match pending.first() {
                None => Ok(Cut::More),
                Some(255) => Err(BadUnit { len: 255 }),
                Some(&n) if pending.len() > usize::from(n) => Ok(Cut::Unit(1 + usize::from(n))),
                Some(_) => Ok(Cut::More),
            }
        }
    }

    #[test]
    fn fragmentation_makes_no_difference() {
        let stream = [2, 7, 8, 0, 1, 9, 3, 1];
        for step in 1..=stream.len() {
            let mut cutter = Cutter::new(Prefixed);
            let mut units = Vec::new();
            for piece in stream.chunks(step) {
                cutter.buffer().extend_from_slice(piece);
                while let Some(unit) = cutter.next_unit().unwrap() {
                    units.push(unit.to_vec());
                }
            }
            assert_eq!(units, [vec![2, 7, 8], vec![0], vec![1, 9]], "in steps of {step}");
        }
    }

    #[test]
    fn a_length_alone_takes_no_memory() {
        let mut cutter = Cutter::new(Prefixed);
        cutter.buffer().extend_from_slice(&[254]);
        assert_eq!(cutter.next_unit(), Ok(None));
        assert!(cutter.buffer().capacity() < 64, "{}", cutter.buffer().capacity());
        assert!(
            !format!("{cutter:?}", cutter = Cutter { delimiter: (), pending: BytesMut::from("secret") })
                .contains("secret")
        );
    }

    #[test]
    fn a_bad_unit_stops_the_stream_behind_the_good_ones() {
        let mut cutter = Cutter::new(Prefixed);
        cutter.buffer().extend_from_slice(&[0, 255, 1]);
        assert_eq!(cutter.next_unit().unwrap().unwrap()[..], [0]);
        assert_eq!(cutter.next_unit(), Err(BadUnit { len: 255 }));
    }
}
