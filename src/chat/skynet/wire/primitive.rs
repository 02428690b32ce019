//! The encodings that packets are made of (spec 1.3, 1.4): everything little-endian, text with a length and strictly UTF-8.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::{AccountId, BadPacket, ChannelId, FileId, MessageId, SessionId};
use crate::crypto::Secret;
use crate::wire::bytes::Reader;

/// Longest `ShortString`, in bytes.
pub const SHORT_MAX: usize = u8::MAX as usize;
/// Longest `String` and `ByteArray`, in bytes, and longest list, in elements.
pub const LONG_MAX: usize = u16::MAX as usize;

/// More than the length before it can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} is longer than its length can say")]
pub struct TooLong {
    /// The encoding that is too small.
    pub what: &'static str,
}

/// A point in time as it travels: ticks of 100 ns since the year 1, with the kind in the two highest bits. All zero: none.
///
/// Whatever the kind says, the ticks are taken as UTC; what is written is of the kind *local*, the only one that the
/// known client shows correctly (spec 1.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct DateTime(pub u64);

/// What the two highest bits of a [`DateTime`] say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DateTimeKind {
    /// Nothing.
    Unspecified,
    /// UTC.
    Utc,
    /// UTC as well, to be shown in the reader's own zone.
    Local,
}

impl DateTime {
    /// No time.
    pub const NONE: Self = Self(0);
    const TICKS: u64 = (1 << 62) - 1;
    const LOCAL: u64 = 1 << 63;
    const UNIX_EPOCH_TICKS: u64 = 621_355_968_000_000_000;
    const TICKS_PER_MS: u64 = 10_000;

    /// Milliseconds since the Unix epoch, of the kind local.
    #[must_use]
    pub const fn from_unix_ms(ms: u64) -> Self {
        let ticks = ms.saturating_mul(Self::TICKS_PER_MS).saturating_add(Self::UNIX_EPOCH_TICKS);
        Self(Self::LOCAL | if ticks > Self::TICKS { Self::TICKS } else { ticks })
    }

    /// Milliseconds since the Unix epoch; `None` when it is before that, as no time is.
    #[must_use]
    pub const fn unix_ms(self) -> Option<u64> {
        match self.ticks().checked_sub(Self::UNIX_EPOCH_TICKS) {
            Some(ticks) => Some(ticks / Self::TICKS_PER_MS),
            None => None,
        }
    }

    /// 100 ns since the beginning of the year 1, UTC.
    #[must_use]
    pub const fn ticks(self) -> u64 {
        self.0 & Self::TICKS
    }

    /// What the sender says the ticks are.
    #[must_use]
    pub const fn kind(self) -> DateTimeKind {
        match self.0 >> 62 {
            0 => DateTimeKind::Unspecified,
            1 => DateTimeKind::Utc,
            _ => DateTimeKind::Local,
        }
    }
}

/// What a session shows to the file API; printable. Prints as its length.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct WebToken(pub String);

impl std::fmt::Debug for WebToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WebToken({} bytes)", self.0.len())
    }
}

impl Read for WebToken {
    fn read(r: &mut Reader<'_>) -> Result<Self, BadPacket> {
        string(r).map(Self)
    }
}

impl Write for WebToken {
    fn write(&self, out: &mut BytesMut) -> Result<(), TooLong> {
        put_string(out, &self.0)
    }
}

/// Reads what can be read in one way only.
pub(super) trait Read: Sized {
    fn read(r: &mut Reader<'_>) -> Result<Self, BadPacket>;
}

/// Writes it.
pub(super) trait Write {
    fn write(&self, out: &mut BytesMut) -> Result<(), TooLong>;
}

macro_rules! numbers {
    ($($type:ty: $read:ident, $write:ident;)*) => { $(
        impl Read for $type {
            fn read(r: &mut Reader<'_>) -> Result<Self, BadPacket> {
                Ok(r.$read()?.cast_signed())
            }
        }

        impl Write for $type {
            fn write(&self, out: &mut BytesMut) -> Result<(), TooLong> {
                out.$write(*self);
                Ok(())
            }
        }
    )* };
}

macro_rules! newtypes {
    ($($type:ident)*) => { $(
        impl Read for $type {
            fn read(r: &mut Reader<'_>) -> Result<Self, BadPacket> {
                Read::read(r).map(Self)
            }
        }

        impl Write for $type {
            fn write(&self, out: &mut BytesMut) -> Result<(), TooLong> {
                self.0.write(out)
            }
        }
    )* };
}
pub(super) use newtypes;

numbers! {
    i32: u32, put_i32_le;
    i64: u64, put_i64_le;
}
newtypes! { AccountId SessionId ChannelId MessageId FileId }

impl Read for u8 {
    fn read(r: &mut Reader<'_>) -> Result<Self, BadPacket> {
        Ok(r.u8()?)
    }
}

impl Write for u8 {
    fn write(&self, out: &mut BytesMut) -> Result<(), TooLong> {
        out.put_u8(*self);
        Ok(())
    }
}

impl Read for u16 {
    fn read(r: &mut Reader<'_>) -> Result<Self, BadPacket> {
        Ok(r.u16()?)
    }
}

impl Write for u16 {
    fn write(&self, out: &mut BytesMut) -> Result<(), TooLong> {
        out.put_u16_le(*self);
        Ok(())
    }
}

impl Read for DateTime {
    fn read(r: &mut Reader<'_>) -> Result<Self, BadPacket> {
        Ok(Self(r.u64()?))
    }
}

impl Write for DateTime {
    fn write(&self, out: &mut BytesMut) -> Result<(), TooLong> {
        out.put_u64_le(self.0);
        Ok(())
    }
}

/// `Byte[n]`.
impl<const N: usize> Read for Secret<N> {
    fn read(r: &mut Reader<'_>) -> Result<Self, BadPacket> {
        Ok(Self::new(r.array()?))
    }
}

impl<const N: usize> Write for Secret<N> {
    fn write(&self, out: &mut BytesMut) -> Result<(), TooLong> {
        out.put_slice(self.expose());
        Ok(())
    }
}

/// `{UInt16 X ...}`: a count, then the elements.
impl<T: Read> Read for Vec<T> {
    fn read(r: &mut Reader<'_>) -> Result<Self, BadPacket> {
        let count = usize::from(r.u16()?);
        // No element is empty, so what is not there is not reserved either.
        let mut list = Self::with_capacity(count.min(r.len()));
        for _ in 0..count {
            list.push(T::read(r)?);
        }
        Ok(list)
    }
}

impl<T: Write> Write for Vec<T> {
    fn write(&self, out: &mut BytesMut) -> Result<(), TooLong> {
        out.put_u16_le(u16::try_from(self.len()).map_err(|_| TooLong { what: "a list" })?);
        self.iter().try_for_each(|item| item.write(out))
    }
}

impl<A: Read, B: Read> Read for (A, B) {
    fn read(r: &mut Reader<'_>) -> Result<Self, BadPacket> {
        Ok((A::read(r)?, B::read(r)?))
    }
}

impl<A: Write, B: Write> Write for (A, B) {
    fn write(&self, out: &mut BytesMut) -> Result<(), TooLong> {
        self.0.write(out)?;
        self.1.write(out)
    }
}

/// `ShortString`.
pub(super) fn short_string(r: &mut Reader<'_>) -> Result<String, BadPacket> {
    let len = usize::from(r.u8()?);
    text(r.take(len)?)
}

pub(super) fn put_short_string(out: &mut BytesMut, text: &str) -> Result<(), TooLong> {
    out.put_u8(u8::try_from(text.len()).map_err(|_| TooLong { what: "a ShortString" })?);
    out.put_slice(text.as_bytes());
    Ok(())
}

/// `String`.
pub(super) fn string(r: &mut Reader<'_>) -> Result<String, BadPacket> {
    let len = usize::from(r.u16()?);
    text(r.take(len)?)
}

pub(super) fn put_string(out: &mut BytesMut, text: &str) -> Result<(), TooLong> {
    put_byte_array(out, text.as_bytes())
}

/// `ByteArray`.
pub(super) fn byte_array(r: &mut Reader<'_>) -> Result<Bytes, BadPacket> {
    let len = usize::from(r.u16()?);
    Ok(Bytes::copy_from_slice(r.take(len)?))
}

pub(super) fn put_byte_array(out: &mut BytesMut, bytes: &[u8]) -> Result<(), TooLong> {
    out.put_u16_le(u16::try_from(bytes.len()).map_err(|_| TooLong { what: "a String or ByteArray" })?);
    out.put_slice(bytes);
    Ok(())
}

fn text(bytes: &[u8]) -> Result<String, BadPacket> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| BadPacket::Text)
}
