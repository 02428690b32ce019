//! The message struct (spec 4), and what the two ends of a conversation put into it. The server opens none of its boxes.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::{DATA_MAX, Identity, MessageId, WireIdentity, cut};
use crate::crypto::boxes::{self, BadBox, LowOrder, NONCE, Nonce, Public, TAG};
use crate::crypto::{Secret, kdf};
use crate::wire::bytes::{Reader, Truncated};

/// Length of the part before the metadata box, in bytes.
const HEADER: usize = 64;
/// Shortest message box, in bytes: a tag, a type and one byte of padding. Clients hang up on anything shorter.
const MESSAGE_BOX_MIN: usize = TAG + 2;
/// Longest metadata box and message box together, in bytes.
pub const BOXES_MAX: usize = DATA_MAX - HEADER - NONCE;

/// What the sender wants done with a message (spec 4.1). Forwarded unchanged, unknown bits included.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct MessageFlags(pub u8);

impl MessageFlags {
    /// Wake the receiver when it has no active connection.
    pub const SEND_PUSH: Self = Self(0x01);
    /// Deliver now or never.
    pub const NO_QUEUING: Self = Self(0x02);
    /// Neither the sender gets an ack, nor will the receiver send one.
    pub const NO_ACK: Self = Self(0x04);
    /// Keep for 60 s at most.
    pub const SHORT_LIVED: Self = Self(0x20);
    /// The receiver is not to send delivery receipts.
    pub const NO_DELIVERY_RECEIPTS: Self = Self(0x80);

    /// Whether all bits of `flags` are set.
    #[must_use]
    pub const fn has(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// These and those.
    #[must_use]
    pub const fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }
}

impl std::fmt::Debug for MessageFlags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MessageFlags(0x{:02x})", self.0)
    }
}

/// A message on its way. Prints the lengths of its boxes only.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// Who sent it.
    pub sender: WireIdentity,
    /// Who is to get it.
    pub receiver: WireIdentity,
    /// Its name.
    pub id: MessageId,
    /// When it was made, in seconds since the Unix epoch; 0 when the server is to say.
    pub created_at_s: u32,
    /// What is to be done with it.
    pub flags: MessageFlags,
    /// The sender's nickname for clients that know no metadata, padded with zeros.
    pub nickname: [u8; 32],
    /// Encrypted metadata; empty in a legacy message, else longer than 16 bytes.
    pub metadata_box: Bytes,
    /// Nonce of both boxes.
    pub nonce: Nonce,
    /// The content; at least 18 bytes.
    pub message_box: Bytes,
}

/// What is wrong with a message struct. An iPhone that is handed such a message disconnects, reconnects and is handed
/// it again (spec 4.2), so none may ever be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    /// Ended before its layout did.
    #[error("truncated")]
    Truncated,
    /// There is a metadata box, but it is too short to be one.
    #[error("a metadata box is longer than 16 bytes")]
    MetadataTooShort,
    /// The message box is too short to be one.
    #[error("a message box has at least 18 bytes")]
    BoxTooShort,
    /// Longer than a container may be: no client could be sent it.
    #[error("longer than a container")]
    TooLong,
}

/// Why a message cannot be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The other's key agrees with nothing.
    #[error(transparent)]
    LowOrder(#[from] LowOrder),
    /// Metadata and content do not fit one message.
    #[error("metadata box and message box are {0} bytes together, {BOXES_MAX} fit a message")]
    TooLong(usize),
}

impl From<Truncated> for BadMessage {
    fn from(_: Truncated) -> Self {
        Self::Truncated
    }
}

impl Message {
    /// Reads a message struct.
    ///
    /// # Errors
    /// [`BadMessage`] says what is wrong with it.
    pub fn decode(data: &Bytes) -> Result<Self, BadMessage> {
        let mut r = Reader::new(data);
        let (sender, receiver) = (WireIdentity(r.array()?), WireIdentity(r.array()?));
        let (id, created_at_s, flags) = (MessageId(r.u64()?), r.u32()?, MessageFlags(r.u8()?));
        let _reserved = r.u8()?;
        let metadata_len = usize::from(r.u16()?);
        let nickname = r.array()?;
        let metadata_box = data.slice_ref(r.take(metadata_len)?);
        let nonce = r.array()?;
        let message_box = data.slice_ref(r.rest());
        if (1..=TAG).contains(&metadata_len) {
            return Err(BadMessage::MetadataTooShort);
        }
        if message_box.len() < MESSAGE_BOX_MIN {
            return Err(BadMessage::BoxTooShort);
        }
        if data.len() > DATA_MAX {
            return Err(BadMessage::TooLong);
        }
        Ok(Self { sender, receiver, id, created_at_s, flags, nickname, metadata_box, nonce, message_box })
    }

    /// Writes the message struct, the reserved byte as zero.
    pub(super) fn encode_into(&self, out: &mut BytesMut) {
        out.reserve(self.len());
        out.put_slice(&self.sender.0);
        out.put_slice(&self.receiver.0);
        out.put_u64_le(self.id.0);
        out.put_u32_le(self.created_at_s);
        out.put_u8(self.flags.0);
        out.put_u8(0);
        // A metadata box that does not fit the field does not fit a frame either, which is where that is refused.
        out.put_u16_le(u16::try_from(self.metadata_box.len()).unwrap_or(u16::MAX));
        out.put_slice(&self.nickname);
        out.put_slice(&self.metadata_box);
        out.put_slice(&self.nonce);
        out.put_slice(&self.message_box);
    }

    /// The message struct.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        self.encode_into(&mut out);
        out.freeze()
    }

    /// Length of the message struct, in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        HEADER + self.metadata_box.len() + NONCE + self.message_box.len()
    }

    /// Never: a message struct has a header.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// As a client without feature bit 0 understands it: a legacy message (spec 4).
    #[must_use]
    pub fn without_metadata(self) -> Self {
        Self { metadata_box: Bytes::new(), ..self }
    }

    /// What the owner of `key` has to say to `to`, or had to: both ends compute the same keys. The nonce is random.
    ///
    /// # Errors
    /// [`SealError`] when the other's key agrees with nothing, or what is to be said is too long.
    pub fn seal(draft: &Draft<'_>, key: &Secret<32>, to: &Public) -> Result<Self, SealError> {
        Self::seal_with_nonce(draft, &EndToEnd::new(key, to)?, crate::crypto::random::bytes())
    }

    /// [`Self::seal`] with keys at hand and a given nonce. A nonce must never be used twice.
    ///
    /// # Errors
    /// [`SealError::TooLong`] when what is to be said does not fit a message.
    pub fn seal_with_nonce(draft: &Draft<'_>, keys: &EndToEnd, nonce: Nonce) -> Result<Self, SealError> {
        let boxes_len = draft.metadata.map_or(0, |plain| plain.len() + TAG) + draft.content.len() + TAG;
        if boxes_len > BOXES_MAX {
            return Err(SealError::TooLong(boxes_len));
        }
        let mut nickname = [0; 32];
        for (to, from) in nickname.iter_mut().zip(cut(draft.nickname, 32).bytes()) {
            *to = from;
        }
        Ok(Self {
            sender: draft.sender.into(),
            receiver: draft.receiver.into(),
            id: draft.id,
            created_at_s: draft.created_at_s,
            flags: draft.flags,
            nickname,
            metadata_box: draft
                .metadata
                .map(|plain| boxes::seal(&keys.metadata, &nonce, plain).into())
                .unwrap_or_default(),
            nonce,
            message_box: boxes::seal(&keys.message, &nonce, draft.content).into(),
        })
    }

    /// Opens the message box: either end of the conversation can.
    ///
    /// # Errors
    /// [`BadBox`] when the keys are not those of sender and receiver, or a byte has changed.
    pub fn open(&self, keys: &EndToEnd) -> Result<Vec<u8>, BadBox> {
        boxes::open(&keys.message, &self.nonce, &self.message_box)
    }

    /// Opens the metadata box; `None` in a legacy message.
    ///
    /// # Errors
    /// [`BadBox`] as for [`Self::open`].
    pub fn open_metadata(&self, keys: &EndToEnd) -> Result<Option<Vec<u8>>, BadBox> {
        if self.metadata_box.is_empty() {
            return Ok(None);
        }
        boxes::open(&keys.metadata, &self.nonce, &self.metadata_box).map(Some)
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message")
            .field("sender", &self.sender)
            .field("receiver", &self.receiver)
            .field("id", &self.id)
            .field("created_at_s", &self.created_at_s)
            .field("flags", &self.flags)
            .field("metadata_box_len", &self.metadata_box.len())
            .field("message_box_len", &self.message_box.len())
            .finish()
    }
}

/// A message before it is sealed. Prints the lengths of what is said only.
#[derive(Clone)]
pub struct Draft<'a> {
    /// Who sends it.
    pub sender: Identity,
    /// Who is to get it.
    pub receiver: Identity,
    /// Its name.
    pub id: MessageId,
    /// When it was made, in seconds since the Unix epoch; 0 when the server is to say.
    pub created_at_s: u32,
    /// What is to be done with it.
    pub flags: MessageFlags,
    /// Shown by clients that know no metadata; cut off after the last character that fits 32 bytes.
    pub nickname: &'a str,
    /// Goes into the metadata box; `None` makes a legacy message.
    pub metadata: Option<&'a [u8]>,
    /// Goes into the message box: a type byte, the content and its padding, two bytes at least.
    pub content: &'a [u8],
}

impl std::fmt::Debug for Draft<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Draft")
            .field("sender", &self.sender)
            .field("receiver", &self.receiver)
            .field("id", &self.id)
            .field("created_at_s", &self.created_at_s)
            .field("flags", &self.flags)
            .field("nickname_len", &self.nickname.len())
            .field("metadata_len", &self.metadata.map(<[u8]>::len))
            .field("content_len", &self.content.len())
            .finish()
    }
}

/// The keys two identities share. The server never has them.
#[derive(Debug, Clone)]
pub struct EndToEnd {
    message: Secret<32>,
    metadata: Secret<32>,
}

impl EndToEnd {
    /// From one's own permanent key and the other's.
    ///
    /// # Errors
    /// [`LowOrder`] when the other's key agrees with nothing.
    pub fn new(key: &Secret<32>, other: &Public) -> Result<Self, LowOrder> {
        let message = boxes::beforenm(key, other)?;
        let metadata = kdf::blake2b(message.expose(), b"mm", b"3ma-csp", b"");
        Ok(Self { message, metadata })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::boxes::public;

    fn draft(metadata: Option<&'static [u8]>) -> Draft<'static> {
        Draft {
            sender: "AAAAAAAA".parse().unwrap(),
            receiver: "BBBBBBBB".parse().unwrap(),
            id: MessageId(7),
            created_at_s: 1_700_000_000,
            flags: MessageFlags::SEND_PUSH,
            nickname: "nick",
            metadata,
            content: b"\x01hi\x01",
        }
    }

    #[test]
    fn both_ends_open_what_one_sealed_and_nobody_else_does() {
        let (a, b, c) = (Secret::random(), Secret::random(), Secret::random());
        let message = Message::seal(&draft(Some(b"meta")), &a, &public(&b)).unwrap();
        for keys in [EndToEnd::new(&a, &public(&b)).unwrap(), EndToEnd::new(&b, &public(&a)).unwrap()] {
            assert_eq!(message.open(&keys).unwrap(), b"\x01hi\x01");
            assert_eq!(message.open_metadata(&keys).unwrap().unwrap(), b"meta");
        }
        assert_eq!(message.open(&EndToEnd::new(&c, &public(&a)).unwrap()), Err(BadBox));
    }

    #[test]
    fn csp_4_2_sizes_a_client_would_hang_up_on_are_refused() {
        let keys = EndToEnd::new(&Secret::random(), &public(&Secret::random())).unwrap();
        for metadata in [None, Some(&b"m"[..])] {
            let whole = Message::seal_with_nonce(&draft(metadata), &keys, [1; 24]).unwrap();
            assert_eq!(Message::decode(&whole.encode()).unwrap(), whole);
            for cut in 0..whole.len() {
                // Two bytes of the content may go: what remains is a tag and two bytes.
                let left = Message::decode(&whole.encode().slice(..cut));
                assert_eq!(left.is_ok(), cut + 2 >= whole.len(), "cut at {cut} of {}", whole.len());
            }
        }
        let mut tag_only = Message::seal_with_nonce(&draft(Some(b"")), &keys, [1; 24]).unwrap();
        assert_eq!(Message::decode(&tag_only.encode()), Err(BadMessage::MetadataTooShort));
        tag_only.metadata_box = Bytes::from_static(b"short");
        assert_eq!(Message::decode(&tag_only.encode()), Err(BadMessage::MetadataTooShort));
    }

    #[test]
    fn a_reserved_byte_is_ignored_and_written_as_zero() {
        let keys = EndToEnd::new(&Secret::random(), &public(&Secret::random())).unwrap();
        let plain = Message::seal_with_nonce(&draft(None), &keys, [1; 24]).unwrap().encode();
        let mut odd = plain.to_vec();
        odd[29] = 0xff;
        assert_eq!(Message::decode(&odd.into()).unwrap().encode(), plain);
    }

    #[test]
    fn what_does_not_fit_a_message_is_refused_and_not_cut() {
        let keys = EndToEnd::new(&Secret::random(), &public(&Secret::random())).unwrap();
        let bytes = vec![1; BOXES_MAX];
        for (metadata, content_max) in [(None, BOXES_MAX - TAG), (Some(&bytes[..100]), BOXES_MAX - TAG - 100 - TAG)] {
            let seal = |content| {
                let draft = Draft { metadata, content, ..draft(None) };
                Message::seal_with_nonce(&draft, &keys, [1; 24])
            };
            let longest = seal(&bytes[..content_max]).unwrap();
            assert_eq!(longest.len(), DATA_MAX);
            assert_eq!(Message::decode(&longest.encode()).unwrap(), longest);
            assert_eq!(seal(&bytes[..=content_max]), Err(SealError::TooLong(BOXES_MAX + 1)));
        }
        let mut longer = Message::seal_with_nonce(&draft(None), &keys, [1; 24]).unwrap();
        longer.message_box = vec![0; BOXES_MAX + 1].into();
        assert_eq!(Message::decode(&longer.encode()), Err(BadMessage::TooLong));
    }

    #[test]
    fn a_nickname_is_cut_between_characters() {
        let keys = EndToEnd::new(&Secret::random(), &public(&Secret::random())).unwrap();
        for (nickname, kept) in
            [("nick", 4), (&*"x".repeat(40), 32), (&*"\u{fc}".repeat(20), 32), (&*"\u{1f600}x".repeat(8), 30)]
        {
            let message = Message::seal_with_nonce(&Draft { nickname, ..draft(None) }, &keys, [1; 24]).unwrap();
            let (text, padding) = message.nickname.split_at(kept);
            assert!(nickname.starts_with(std::str::from_utf8(text).unwrap()), "{nickname}");
            assert!(padding.iter().all(|byte| *byte == 0), "{nickname}");
        }
    }
}
