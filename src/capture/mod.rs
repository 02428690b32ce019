//! Captures: what a group's devices and their mediator said, with the time of each frame, in a file (`.d2mcap`).
//!
//! `docs/captures.md` describes the format to the byte. What carries it:
//!
//! * **A capture is a stream.** Nothing is filled in later and nothing stands at the end but a record that says why it is
//!   the end. So a file can be written by a pipe, and one that was cut anywhere is readable up to its last whole record;
//!   the reader says what became of the rest ([`Tail`]).
//! * **One group, seen from one side.** A device's side sees its own connections, a mediator's all of a group; which it was
//!   stands in the header, and a [`Recorder`] takes no second group. Whose capture it is does not stand there: no group id,
//!   no address, no key.
//! * **What would let somebody in is not kept** (`redact`): the proof in a ClientHello, and what is said to chat servers
//!   and by them, which need not be sealed. Everything else is as it was on the wire, where it is ciphertext; who has the
//!   group's key can open it, also later, and who has not still sees who spoke when and how much.
//! * **A recorder never waits.** What is recorded goes into a bounded queue; a reader that does not keep up ends the
//!   capture, never slows the group ([`recorder`]).
//!
//! *Rejected: pcap*, whose packets would need invented addresses and a link type nobody reads; *JSON lines*, four times the size
//! and without a natural place for a bound; *a checksum in each record*: what reads these files is a person with a tool, and a
//! cut, which does happen, is found without one.
//!
//! | file | holds |
//! |---|---|
//! | this one | what a record is, in memory and in bytes |
//! | [`reader`] | reads a capture as far as it is whole |
//! | [`recorder`] | the queue, the taps on connections, and the file at its end |
//! | [`watch`] | which groups of a mediator are being recorded |
//! | `redact` | what is not kept |

pub mod reader;
pub mod recorder;
mod redact;
pub mod watch;

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

pub use self::reader::{NotACapture, Reader, Tail};
pub use self::recorder::{Recorder, Recording, Tap, ToFile};
pub use self::watch::Captures;
use crate::wire::bytes::Truncated;
use crate::wire::d2m::{DeviceId, ServerGroup};

/// What a capture begins with: no text, no valid UTF-8, and broken by whatever changes line ends.
pub const MAGIC: [u8; 8] = *b"\x89D2MCAP\n";
/// The version that is written and read.
pub const VERSION: u16 = 1;
/// Bytes of magic, version and length of what else stands in the header.
const PREAMBLE: usize = 12;
/// Bytes of the header behind that, in this version.
const HEADER: u16 = 9;
/// Longest header that is read, in bytes.
const HEADER_MAX: u16 = 1_024;
/// Bytes before a record's body: its length and its kind.
const RECORD_HEAD: usize = 5;
/// Longest body of a record, in bytes: a frame and what stands before it, with room for what later versions add.
pub const BODY_MAX: usize = 128 * 1_024;
/// Bytes of a frame that are kept at most: a container. A frame that is longer is none, and what it is shows at its front.
pub const KEPT_MAX: usize = crate::wire::d2m::CONTAINER_MAX;
const _: () = assert!(KEPT_MAX + 16 <= BODY_MAX, "the longest frame fits a record");
/// Longest reason of a close that is kept, in bytes: what fits a control frame.
const REASON_MAX: usize = 123;

/// On which side a capture was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observer {
    /// By devices, of their own connections.
    Device,
    /// By the mediator, of all connections of the group.
    Mediator,
}

/// What stands before the first record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// When the recording began, in milliseconds since the Unix epoch. Records count from here.
    pub wall_ms: u64,
    /// On which side it was recorded.
    pub observer: Observer,
}

/// The number of a connection in its capture; connections count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Track(pub u32);

/// Which way a frame went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// A device said it.
    FromDevice,
    /// The mediator said it.
    ToDevice,
}

/// One binary message. Prints its length only.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its length on the wire, in bytes.
    pub len: u32,
    /// As many of its first bytes as were kept.
    pub kept: Bytes,
}

impl Frame {
    /// Bytes that were not kept.
    #[must_use]
    pub fn withheld(&self) -> u64 {
        u64::from(self.len).saturating_sub(self.kept.len() as u64)
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({} bytes, {} kept)", self.len, self.kept.len())
    }
}

/// Who ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClosedBy {
    /// Nobody said goodbye: the transport broke, or the recording side dropped it.
    Nobody,
    /// The device closed.
    Device,
    /// The mediator closed.
    Mediator,
}

/// Why a capture ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Whoever recorded was done.
    Done,
    /// The time it was asked for was over.
    TimeOver,
    /// Its reader did not keep up; what waited for it last is missing.
    TooSlow,
    /// The mediator stopped.
    Stopping,
    /// Its reader went away. Nobody is left to read this.
    Left,
}

impl End {
    /// In a few words, for people.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Done => "the recording was over",
            Self::TimeOver => "its time was over",
            Self::TooSlow => "its reader did not keep up, and what waited last is missing",
            Self::Stopping => "the mediator stopped",
            Self::Left => "its reader went away",
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A WebSocket was opened.
    Connect {
        /// Its number from here on.
        track: Track,
        /// Names its chat server.
        server_group: ServerGroup,
        /// Whether it had been opened before the recording began; then this stands where it was first heard of.
        earlier: bool,
        /// Whose connection it is, if that was known.
        device: Option<DeviceId>,
    },
    /// A binary message passed.
    Frame {
        /// On this connection.
        track: Track,
        /// That way.
        direction: Direction,
        /// It, as far as it was kept.
        frame: Frame,
    },
    /// A connection ended.
    Close {
        /// This one.
        track: Track,
        /// Who ended it.
        by: ClosedBy,
        /// The close code, if one was given.
        code: Option<u16>,
        /// The words beside the code.
        reason: String,
    },
    /// There is nothing more.
    End(End),
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When, since the recording began, on a clock that never goes back. Microseconds are kept.
    pub at: Duration,
    /// What.
    pub event: Event,
}

/// Why a record means nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    /// It says that it is longer than any record may be.
    #[error("a record of {0} bytes, and {BODY_MAX} are the most")]
    TooLong(u32),
    /// Its body ends before its fields do.
    #[error("a record that ends before its fields do")]
    Truncated,
    /// A field has a value that means nothing.
    #[error("{0} has a value that means nothing")]
    Value(&'static str),
}

impl From<Truncated> for BadRecord {
    fn from(_: Truncated) -> Self {
        Self::Truncated
    }
}

impl Header {
    /// Magic, version and header.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(PREAMBLE + usize::from(HEADER));
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&HEADER.to_le_bytes());
        out.extend_from_slice(&self.wall_ms.to_le_bytes());
        out.push(match self.observer {
            Observer::Device => 1,
            Observer::Mediator => 2,
        });
        out
    }

    /// What stands behind the length; what is appended by others is passed over.
    fn decode(bytes: &[u8]) -> Result<Self, BadRecord> {
        let mut r = crate::wire::bytes::Reader::new(bytes);
        let wall_ms = r.u64()?;
        let observer = match r.u8()? {
            1 => Observer::Device,
            2 => Observer::Mediator,
            _ => return Err(BadRecord::Value("the observer")),
        };
        Ok(Self { wall_ms, observer })
    }
}

/// The kinds of records. Others are passed over.
mod kind {
    pub(super) const CONNECT: u8 = 1;
    pub(super) const FROM_DEVICE: u8 = 2;
    pub(super) const TO_DEVICE: u8 = 3;
    pub(super) const CLOSE: u8 = 4;
    pub(super) const END: u8 = 5;
}

const EARLIER: u8 = 1;
const DEVICE_KNOWN: u8 = 2;

impl Entry {
    /// Appends the record.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        out.extend_from_slice(&[0; RECORD_HEAD]);
        out.extend_from_slice(&u64::try_from(self.at.as_micros()).unwrap_or(u64::MAX).to_le_bytes());
        let kind = match &self.event {
            Event::Connect { track, server_group, earlier, device } => {
                out.extend_from_slice(&track.0.to_le_bytes());
                let earlier = if *earlier { EARLIER } else { 0 };
                out.push(earlier | if device.is_some() { DEVICE_KNOWN } else { 0 });
                out.extend_from_slice(&device.map_or(0, |device| device.0).to_le_bytes());
                text(out, server_group.as_str());
                kind::CONNECT
            }
            Event::Frame { track, direction, frame } => {
                out.extend_from_slice(&track.0.to_le_bytes());
                out.extend_from_slice(&frame.len.to_le_bytes());
                out.extend_from_slice(frame.kept.get(..KEPT_MAX).unwrap_or(&frame.kept));
                match direction {
                    Direction::FromDevice => kind::FROM_DEVICE,
                    Direction::ToDevice => kind::TO_DEVICE,
                }
            }
            Event::Close { track, by, code, reason } => {
                out.extend_from_slice(&track.0.to_le_bytes());
                out.push(match by {
                    ClosedBy::Nobody => 0,
                    ClosedBy::Device => 1,
                    ClosedBy::Mediator => 2,
                });
                out.extend_from_slice(&code.unwrap_or(0).to_le_bytes());
                text(out, reason);
                kind::CLOSE
            }
            Event::End(end) => {
                out.push(match end {
                    End::Done => 0,
                    End::TimeOver => 1,
                    End::TooSlow => 2,
                    End::Stopping => 3,
                    End::Left => 4,
                });
                kind::END
            }
        };
        // Everything above is bounded far below what four bytes count.
        let len = u32::try_from(out.len() - begin - RECORD_HEAD).unwrap_or(u32::MAX);
        if let Some(head) = out.get_mut(begin..begin + RECORD_HEAD) {
            let [a, b, c, d] = len.to_le_bytes();
            head.copy_from_slice(&[a, b, c, d, kind]);
        }
    }

    /// Reads a record's body; nothing when its kind is not known. What is appended by later versions is passed over.
    fn decode(kind: u8, body: &Bytes) -> Result<Option<Self>, BadRecord> {
        if !(kind::CONNECT..=kind::END).contains(&kind) {
            return Ok(None);
        }
        let mut r = crate::wire::bytes::Reader::new(body);
        let at = Duration::from_micros(r.u64()?);
        let event = match kind {
            kind::CONNECT => {
                let track = Track(r.u32()?);
                let (flags, device) = (r.u8()?, DeviceId(r.u64()?));
                let n = r.u8()?;
                let name = std::str::from_utf8(r.take(n.into())?).ok().and_then(ServerGroup::new);
                Event::Connect {
                    track,
                    server_group: name.ok_or(BadRecord::Value("a server group"))?,
                    earlier: flags & EARLIER != 0,
                    device: (flags & DEVICE_KNOWN != 0).then_some(device),
                }
            }
            kind::FROM_DEVICE | kind::TO_DEVICE => {
                let (track, len) = (Track(r.u32()?), r.u32()?);
                let kept = body.slice_ref(r.rest());
                if kept.len() > KEPT_MAX || u32::try_from(kept.len()).is_ok_and(|kept| kept > len) {
                    return Err(BadRecord::Value("the length of a frame"));
                }
                let direction = if kind == kind::FROM_DEVICE { Direction::FromDevice } else { Direction::ToDevice };
                Event::Frame { track, direction, frame: Frame { len, kept } }
            }
            kind::CLOSE => {
                let track = Track(r.u32()?);
                let by = match r.u8()? {
                    0 => ClosedBy::Nobody,
                    1 => ClosedBy::Device,
                    2 => ClosedBy::Mediator,
                    _ => return Err(BadRecord::Value("who closed")),
                };
                let (code, n) = (r.u16()?, r.u8()?);
                let reason = std::str::from_utf8(r.take(n.into())?);
                Event::Close {
                    track,
                    by,
                    code: (code != 0).then_some(code),
                    reason: reason.map_err(|_| BadRecord::Value("the reason of a close"))?.to_owned(),
                }
            }
            _ => Event::End(match r.u8()? {
                0 => End::Done,
                1 => End::TimeOver,
                2 => End::TooSlow,
                3 => End::Stopping,
                4 => End::Left,
                _ => return Err(BadRecord::Value("the reason of the end")),
            }),
        };
        Ok(Some(Self { at, event }))
    }
}

/// A short text behind its length; what is too long is cut between characters.
fn text(out: &mut Vec<u8>, text: &str) {
    let mut len = text.len().min(REASON_MAX);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    out.push(u8::try_from(len).unwrap_or(0));
    out.extend_from_slice(text.as_bytes().get(..len).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex_of(event: Event) -> String {
        let mut out = Vec::new();
        Entry { at: Duration::from_micros(0x0102), event }.encode(&mut out);
        hex::encode(out)
    }

    /// The layout as `docs/captures.md` has it.
    #[test]
    fn each_kind_of_record_has_its_bytes() {
        let header = Header { wall_ms: 1_700_000_000_456, observer: Observer::Mediator };
        //                                    magic            version len  time             observer
        assert_eq!(hex::encode(header.encode()), "894432 4d4341500a 0100 0900 c869e5cf8b010000 02".replace(' ', ""));
        let server_group = ServerGroup::new("a0").unwrap();
        let connect = Event::Connect { track: Track(3), server_group, earlier: true, device: Some(DeviceId(9)) };
        //                           len      kind time             track    flags device          n  name
        assert_eq!(
            hex_of(connect),
            "18000000 01 0201000000000000 03000000 03 0900000000000000 02 6130".replace(' ', "")
        );
        let frame = Frame { len: 100, kept: Bytes::from_static(&[0, 0, 0, 0]) };
        let frame = Event::Frame { track: Track(3), direction: Direction::ToDevice, frame };
        //                         len      kind time             track    len      kept
        assert_eq!(hex_of(frame), "14000000 03 0201000000000000 03000000 64000000 00000000".replace(' ', ""));
        let reason = "Dropped".to_owned();
        let close = Event::Close { track: Track(3), by: ClosedBy::Mediator, code: Some(4113), reason };
        //                         len      kind time             track    by code n  reason
        assert_eq!(hex_of(close), "17000000 04 0201000000000000 03000000 02 1110 07 44726f70706564".replace(' ', ""));
        //                                        len      kind time             why
        assert_eq!(hex_of(Event::End(End::TooSlow)), "09000000 05 0201000000000000 02".replace(' ', ""));
    }

    #[test]
    fn a_reason_is_cut_between_characters() {
        let reason = "ä".repeat(100);
        let mut out = Vec::new();
        let event = Event::Close { track: Track(1), by: ClosedBy::Device, code: None, reason };
        Entry { at: Duration::ZERO, event }.encode(&mut out);
        let body = Bytes::copy_from_slice(&out[RECORD_HEAD..]);
        let Ok(Some(Entry { event: Event::Close { reason, .. }, .. })) = Entry::decode(kind::CLOSE, &body) else {
            panic!("{out:?}")
        };
        assert_eq!(reason, "ä".repeat(61));
    }
}
