//! The four hand-packed payloads: reflect, reflect-ack, reflected, reflected-ack (spec 2.3).
//!
//! A reflected message goes to many devices byte for byte the same, so it is kept as the finished container. The bytes
//! of an envelope are copied once, out of the socket's buffer into an [`Envelope`] that has room for the header before
//! them; a slice would pin the whole buffer it came from.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::id::{ReflectId, ReflectedId};
use super::{BadPayload, CONTAINER_HEADER, ENVELOPE_MAX, PayloadType};
use crate::wire::bytes::Reader;

/// Shortest header of a `reflect`, in bytes.
const REFLECT_HEADER: usize = 8;
/// The header of a `reflected`, in bytes. Real clients discard any other.
const REFLECTED_HEADER: usize = 16;
/// Where the envelope starts in the container of a `reflected`.
const ENVELOPE_AT: usize = CONTAINER_HEADER + REFLECTED_HEADER;

const EPHEMERAL: u16 = 0x0001;

/// Flags of a reflected message. Bits without a meaning are not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReflectFlags {
    /// For the devices that are connected now; neither stored nor acknowledged.
    pub ephemeral: bool,
}

impl ReflectFlags {
    const fn decode(bits: u16) -> Self {
        Self { ephemeral: bits & EPHEMERAL != 0 }
    }

    const fn encode(self) -> u16 {
        if self.ephemeral { EPHEMERAL } else { 0 }
    }
}

/// Opaque bytes on their way from one device to the others.
#[derive(Clone, PartialEq, Eq)]
pub struct Envelope(BytesMut);

impl Envelope {
    /// Copies an envelope and leaves room for the header of a `reflected` before it.
    #[must_use]
    pub fn copy_from(envelope: &[u8]) -> Self {
        let mut bytes = BytesMut::with_capacity(ENVELOPE_AT + envelope.len());
        bytes.put_bytes(0, ENVELOPE_AT);
        bytes.extend_from_slice(envelope);
        Self(bytes)
    }

    /// The envelope itself.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.get(ENVELOPE_AT..).unwrap_or_default()
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len().saturating_sub(ENVELOPE_AT)
    }

    /// Whether it has no bytes at all, which is allowed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Debug for Envelope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Envelope({} bytes)", self.len())
    }
}

/// A device asks to reflect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reflect {
    /// How to deliver.
    pub flags: ReflectFlags,
    /// Comes back in the reflect-ack.
    pub reflect_id: ReflectId,
    /// What to deliver.
    pub envelope: Envelope,
}

impl Reflect {
    pub(super) fn decode(body: &[u8]) -> Result<Self, BadPayload> {
        let mut r = Reader::new(body);
        let header_length = usize::from(r.u8()?);
        let _reserved = r.u8()?;
        let flags = ReflectFlags::decode(r.u16()?);
        let reflect_id = ReflectId(r.u32()?);
        // A longer header holds fields of a later protocol version: skipped.
        let skip = header_length.checked_sub(REFLECT_HEADER).ok_or(BadPayload::HeaderLength)?;
        r.take(skip).map_err(|_| BadPayload::HeaderLength)?;
        if r.len() > ENVELOPE_MAX {
            return Err(BadPayload::Length("envelope"));
        }
        Ok(Self { flags, reflect_id, envelope: Envelope::copy_from(r.rest()) })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(REFLECT_HEADER + self.envelope.len());
        out.put_u8(u8::try_from(REFLECT_HEADER).unwrap_or(u8::MAX));
        out.put_u8(0);
        out.put_u16_le(self.flags.encode());
        out.put_u32_le(self.reflect_id.0);
        out.extend_from_slice(self.envelope.as_bytes());
        out
    }
}

/// The mediator keeps a reflected message for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReflectAck {
    /// Of the `reflect` that is acknowledged.
    pub reflect_id: ReflectId,
    /// Milliseconds since the Unix epoch; the same that the others are shown.
    pub timestamp_ms: u64,
}

impl ReflectAck {
    pub(super) fn decode(body: &[u8]) -> Result<Self, BadPayload> {
        let mut r = Reader::new(body);
        let _reserved = r.u32()?;
        Ok(Self { reflect_id: ReflectId(r.u32()?), timestamp_ms: r.u64()? })
    }

    pub(super) fn encode(self) -> [u8; 16] {
        let mut out = [0; 16];
        let mut at = &mut out[..];
        at.put_u32_le(0);
        at.put_u32_le(self.reflect_id.0);
        at.put_u64_le(self.timestamp_ms);
        out
    }
}

/// A message from another device of the group, kept as the finished container.
#[derive(Clone, PartialEq, Eq)]
pub struct Reflected(Bytes);

impl Reflected {
    /// Writes the header before the envelope. Does not copy the envelope.
    #[must_use]
    pub fn new(mut envelope: Envelope, flags: ReflectFlags, id: ReflectedId, timestamp_ms: u64) -> Self {
        if let Some(mut header) = envelope.0.get_mut(..ENVELOPE_AT) {
            header.put_u32_le(u32::from(PayloadType::REFLECTED.0));
            header.put_u8(u8::try_from(REFLECTED_HEADER).unwrap_or(u8::MAX));
            header.put_u8(0);
            header.put_u16_le(flags.encode());
            header.put_u32_le(id.0);
            header.put_u64_le(timestamp_ms);
        }
        Self(envelope.0.freeze())
    }

    /// The id under which the receiving device acknowledges it.
    #[must_use]
    pub fn id(&self) -> ReflectedId {
        ReflectedId(self.field(8).map_or(0, u32::from_le_bytes))
    }

    /// How it is delivered.
    #[must_use]
    pub fn flags(&self) -> ReflectFlags {
        ReflectFlags::decode(self.field(6).map_or(0, u16::from_le_bytes))
    }

    /// Milliseconds since the Unix epoch, the same that the sender's reflect-ack shows.
    #[must_use]
    pub fn timestamp_ms(&self) -> u64 {
        self.field(12).map_or(0, u64::from_le_bytes)
    }

    /// What the other device reflected.
    #[must_use]
    pub fn envelope(&self) -> &[u8] {
        self.0.get(ENVELOPE_AT..).unwrap_or_default()
    }

    /// The whole container, shared.
    #[must_use]
    pub fn container(&self) -> &Bytes {
        &self.0
    }

    fn field<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..)?.first_chunk().copied()
    }

    pub(super) fn decode(body: &[u8]) -> Result<Self, BadPayload> {
        let mut r = Reader::new(body);
        let header_length = usize::from(r.u8()?);
        let _reserved = r.u8()?;
        let flags = ReflectFlags::decode(r.u16()?);
        let (id, timestamp_ms) = (ReflectedId(r.u32()?), r.u64()?);
        let skip = header_length.checked_sub(REFLECTED_HEADER).ok_or(BadPayload::HeaderLength)?;
        r.take(skip).map_err(|_| BadPayload::HeaderLength)?;
        Ok(Self::new(Envelope::copy_from(r.rest()), flags, id, timestamp_ms))
    }
}

impl std::fmt::Debug for Reflected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reflected")
            .field("id", &self.id().0)
            .field("timestamp_ms", &self.timestamp_ms())
            .field("ephemeral", &self.flags().ephemeral)
            .field("envelope_bytes", &self.envelope().len())
            .finish()
    }
}

/// The reserved bytes are ignored (iOS writes 8 into the first), and so is anything behind the id.
pub(super) fn decode_reflected_ack(body: &[u8]) -> Result<ReflectedId, BadPayload> {
    let mut r = Reader::new(body);
    let _reserved = r.u32()?;
    Ok(ReflectedId(r.u32()?))
}

pub(super) fn encode_reflected_ack(id: ReflectedId) -> [u8; 8] {
    let mut out = [0; 8];
    let mut at = &mut out[4..];
    at.put_u32_le(id.0);
    out
}
