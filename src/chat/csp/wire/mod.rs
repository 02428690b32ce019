//! The inside of CSP: what stands in the boxes, and the boxes themselves, for the server and for its clients.
//!
//! Direction is in the types: a client says [`FromClient`], the server says [`ToClient`]. Both are encoded and decoded
//! here, so that every test vector passes both ways and the client library needs no bytes of its own. All integers are
//! little-endian.
//!
//! | file | holds |
//! |---|---|
//! | [`id`] | identities, message ids, CSP device ids |
//! | [`handshake`] | hello, login with its vouch and extensions, login-ack; a type per state and role |
//! | [`frame`] | frames with their nonce counters, and cutting a stream into them |
//! | [`message`] | the message struct, and what the two ends of a conversation put into it |
//! | this one | containers |

pub mod frame;
pub mod handshake;
pub mod id;
pub mod message;

use std::fmt;

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::wire::bytes::{Reader, Truncated};
use crate::wire::numbers::named_numbers;

pub use frame::{FRAME_MAX, FRAME_MIN, Frames, Opener, Sealer, Session, TooLong};
pub use handshake::{DeviceCookie, Extensions, Features, HandshakeError, Introduction, LoginAck};
pub use id::{BadIdentity, CspDeviceId, Identity, MessageId, WireIdentity};
pub use message::{BadMessage, Message, MessageFlags, SealError};

/// Length of a container's header, in bytes: payload type, then three reserved.
pub const CONTAINER_HEADER: usize = 4;
/// Longest data of a container, in bytes.
pub const DATA_MAX: usize = FRAME_MAX - crate::crypto::boxes::TAG - CONTAINER_HEADER;
/// Longest push token, in bytes.
pub const PUSH_TOKEN_MAX: usize = 255;

const _: () = assert!(DATA_MAX == 8_172);

named_numbers! {
    /// The number that says what a container holds.
    pub struct PayloadType;

    ECHO_REQUEST = 0x00 "echo-request";
    OUTGOING_MESSAGE = 0x01 "outgoing-message";
    INCOMING_MESSAGE = 0x02 "incoming-message";
    UNBLOCK_INCOMING_MESSAGES = 0x03 "unblock-incoming-messages";
    SET_PUSH_NOTIFICATION_TOKEN = 0x20 "set-push-notification-token";
    PUSH_ALLOWED_IDENTITIES = 0x21 "push-allowed-identities";
    PUSH_SOUND = 0x22 "push-sound";
    PUSH_GROUP_SOUND = 0x23 "push-group-sound";
    SET_VOIP_PUSH_TOKEN = 0x24 "set-voip-push-token";
    DELETE_PUSH_NOTIFICATION_TOKEN = 0x25 "delete-push-notification-token";
    SET_CONNECTION_IDLE_TIMEOUT = 0x30 "set-connection-idle-timeout";
    OBSOLETE_31 = 0x31 "obsolete-31";
    ECHO_RESPONSE = 0x80 "echo-response";
    OUTGOING_MESSAGE_ACK = 0x81 "outgoing-message-ack";
    INCOMING_MESSAGE_ACK = 0x82 "incoming-message-ack";
    QUEUE_SEND_COMPLETE = 0xd0 "queue-send-complete";
    OBSOLETE_D1 = 0xd1 "obsolete-d1";
    DEVICE_COOKIE_CHANGE_INDICATION = 0xd2 "device-cookie-change-indication";
    CLEAR_DEVICE_COOKIE_CHANGE_INDICATION = 0xd3 "clear-device-cookie-change-indication";
    CLOSE_ERROR = 0xe0 "close-error";
    ALERT = 0xe1 "alert";
}

/// A payload this side does not expect: a number without meaning, an obsolete one, or one only the other side may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unknown {
    /// What the container said.
    pub kind: PayloadType,
    /// Length of the data, in bytes.
    pub len: usize,
}

/// Why the inside of a frame is no valid container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadContainer {
    /// Shorter than its header.
    #[error("a container has at least 4 bytes")]
    TooShort,
    /// The data have a length their type does not allow.
    #[error("{0} has a length that is not allowed")]
    Length(PayloadType),
    /// The message struct is malformed.
    #[error("malformed message: {0}")]
    Message(#[from] BadMessage),
    /// Text that is no UTF-8.
    #[error("{0} is not UTF-8")]
    Text(PayloadType),
}

/// Names one message in an acknowledgement: which party is meant depends on the direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MessageAck {
    /// In the ack of an outgoing message its receiver, in the ack of an incoming message its sender.
    pub identity: WireIdentity,
    /// The message.
    pub id: MessageId,
}

impl MessageAck {
    fn decode(kind: PayloadType, data: &[u8]) -> Result<Self, BadContainer> {
        let mut r = Reader::new(data);
        let mut read = || Ok(Self { identity: WireIdentity(r.array()?), id: MessageId(r.u64()?) });
        let ack = read().map_err(|Truncated| BadContainer::Length(kind))?;
        if r.is_empty() { Ok(ack) } else { Err(BadContainer::Length(kind)) }
    }

    fn encode(&self, out: &mut BytesMut) {
        out.put_slice(&self.identity.0);
        out.put_u64_le(self.id.0);
    }
}

/// A push token as the client sets it. Prints its kind and length only.
#[derive(Clone, PartialEq, Eq)]
pub struct PushToken {
    /// The push service: 0x01/0x02/0x05/0x06 APNs, 0x11 FCM, 0x13 HMS; 0x00 clears.
    pub kind: u8,
    /// Opaque to this server; at most 255 bytes, binary.
    pub token: Bytes,
}

impl PushToken {
    /// The kind that takes a token back.
    pub const NONE: u8 = 0x00;

    fn decode(kind: PayloadType, data: &Bytes) -> Result<Self, BadContainer> {
        let push = *data.first().ok_or(BadContainer::Length(kind))?;
        let token = data.slice(1..);
        if token.len() > PUSH_TOKEN_MAX { Err(BadContainer::Length(kind)) } else { Ok(Self { kind: push, token }) }
    }

    fn encode(&self, out: &mut BytesMut) {
        out.put_u8(self.kind);
        out.put_slice(&self.token);
    }
}

impl fmt::Debug for PushToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PushToken(0x{:02x}, {} bytes)", self.kind, self.token.len())
    }
}

/// What a client says. Echoes print as lengths.
#[derive(Clone, PartialEq, Eq)]
pub enum FromClient {
    /// To be answered with the same bytes.
    EchoRequest(Bytes),
    /// The answer to an echo of ours.
    EchoResponse(Bytes),
    /// A message for somebody.
    Message(Message),
    /// A message arrived; its identity is the sender's.
    MessageAck(MessageAck),
    /// From now on messages go to this connection.
    UnblockIncomingMessages,
    /// Where to wake this device.
    SetPushToken(PushToken),
    /// Where to wake this device for calls.
    SetVoipPushToken(PushToken),
    /// Which devices are not to be woken any more; none named: all others.
    DeletePushTokens(Vec<CspDeviceId>),
    /// How long silence may last, in seconds.
    SetIdleTimeout(u16),
    /// The change of the device cookie has been noticed.
    ClearDeviceCookieChangeIndication,
    /// Anything else.
    Unknown(Unknown),
}

impl FromClient {
    /// The number it travels under.
    #[must_use]
    pub const fn kind(&self) -> PayloadType {
        match self {
            Self::EchoRequest(_) => PayloadType::ECHO_REQUEST,
            Self::EchoResponse(_) => PayloadType::ECHO_RESPONSE,
            Self::Message(_) => PayloadType::OUTGOING_MESSAGE,
            Self::MessageAck(_) => PayloadType::INCOMING_MESSAGE_ACK,
            Self::UnblockIncomingMessages => PayloadType::UNBLOCK_INCOMING_MESSAGES,
            Self::SetPushToken(_) => PayloadType::SET_PUSH_NOTIFICATION_TOKEN,
            Self::SetVoipPushToken(_) => PayloadType::SET_VOIP_PUSH_TOKEN,
            Self::DeletePushTokens(_) => PayloadType::DELETE_PUSH_NOTIFICATION_TOKEN,
            Self::SetIdleTimeout(_) => PayloadType::SET_CONNECTION_IDLE_TIMEOUT,
            Self::ClearDeviceCookieChangeIndication => PayloadType::CLEAR_DEVICE_COOKIE_CHANGE_INDICATION,
            Self::Unknown(unknown) => unknown.kind,
        }
    }

    /// Reads a container.
    ///
    /// # Errors
    /// [`BadContainer`] says what is wrong with it.
    pub fn decode(container: &Bytes) -> Result<Self, BadContainer> {
        let (kind, data) = open_container(container)?;
        Ok(match kind {
            PayloadType::ECHO_REQUEST => Self::EchoRequest(data),
            PayloadType::ECHO_RESPONSE => Self::EchoResponse(data),
            PayloadType::OUTGOING_MESSAGE => Self::Message(Message::decode(&data)?),
            PayloadType::INCOMING_MESSAGE_ACK => Self::MessageAck(MessageAck::decode(kind, &data)?),
            PayloadType::UNBLOCK_INCOMING_MESSAGES => Self::UnblockIncomingMessages,
            PayloadType::SET_PUSH_NOTIFICATION_TOKEN => Self::SetPushToken(PushToken::decode(kind, &data)?),
            PayloadType::SET_VOIP_PUSH_TOKEN => Self::SetVoipPushToken(PushToken::decode(kind, &data)?),
            PayloadType::DELETE_PUSH_NOTIFICATION_TOKEN => {
                let (ids, rest) = data.as_chunks::<8>();
                if !rest.is_empty() {
                    return Err(BadContainer::Length(kind));
                }
                Self::DeletePushTokens(ids.iter().map(|id| CspDeviceId(u64::from_le_bytes(*id))).collect())
            }
            PayloadType::SET_CONNECTION_IDLE_TIMEOUT => {
                let seconds = <[u8; 2]>::try_from(&data[..]).map_err(|_| BadContainer::Length(kind))?;
                Self::SetIdleTimeout(u16::from_le_bytes(seconds))
            }
            PayloadType::CLEAR_DEVICE_COOKIE_CHANGE_INDICATION => Self::ClearDeviceCookieChangeIndication,
            kind => Self::Unknown(Unknown { kind, len: data.len() }),
        })
    }

    /// Writes the container. What was [`Self::Unknown`] comes out empty: its data were not kept.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        container(self.kind(), |out| match self {
            Self::EchoRequest(data) | Self::EchoResponse(data) => out.put_slice(data),
            Self::Message(message) => message.encode_into(out),
            Self::MessageAck(ack) => ack.encode(out),
            Self::SetPushToken(token) | Self::SetVoipPushToken(token) => token.encode(out),
            Self::DeletePushTokens(ids) => ids.iter().for_each(|id| out.put_u64_le(id.0)),
            Self::SetIdleTimeout(seconds) => out.put_u16_le(*seconds),
            Self::UnblockIncomingMessages | Self::ClearDeviceCookieChangeIndication | Self::Unknown(_) => {}
        })
    }
}

/// What the server says. Echoes and texts print as lengths.
#[derive(Clone, PartialEq, Eq)]
pub enum ToClient {
    /// To be answered with the same bytes.
    EchoRequest(Bytes),
    /// The answer to an echo of the client's.
    EchoResponse(Bytes),
    /// A message from somebody.
    Message(Message),
    /// A message is stored, or never will be; its identity is the receiver's.
    MessageAck(MessageAck),
    /// Everything that was queued when this connection became the active one has been sent.
    QueueSendComplete,
    /// Somebody else logged in with another device cookie.
    DeviceCookieChangeIndication,
    /// The connection ends.
    CloseError {
        /// Whether the client may reconnect by itself.
        can_reconnect: bool,
        /// For a person to read; clients compare its beginning.
        message: String,
    },
    /// For a person to read.
    Alert(String),
    /// Anything else.
    Unknown(Unknown),
}

impl ToClient {
    /// The number it travels under.
    #[must_use]
    pub const fn kind(&self) -> PayloadType {
        match self {
            Self::EchoRequest(_) => PayloadType::ECHO_REQUEST,
            Self::EchoResponse(_) => PayloadType::ECHO_RESPONSE,
            Self::Message(_) => PayloadType::INCOMING_MESSAGE,
            Self::MessageAck(_) => PayloadType::OUTGOING_MESSAGE_ACK,
            Self::QueueSendComplete => PayloadType::QUEUE_SEND_COMPLETE,
            Self::DeviceCookieChangeIndication => PayloadType::DEVICE_COOKIE_CHANGE_INDICATION,
            Self::CloseError { .. } => PayloadType::CLOSE_ERROR,
            Self::Alert(_) => PayloadType::ALERT,
            Self::Unknown(unknown) => unknown.kind,
        }
    }

    /// Reads a container.
    ///
    /// # Errors
    /// [`BadContainer`] says what is wrong with it.
    pub fn decode(container: &Bytes) -> Result<Self, BadContainer> {
        let (kind, data) = open_container(container)?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| BadContainer::Text(kind));
        Ok(match kind {
            PayloadType::ECHO_REQUEST => Self::EchoRequest(data),
            PayloadType::ECHO_RESPONSE => Self::EchoResponse(data),
            PayloadType::INCOMING_MESSAGE => Self::Message(Message::decode(&data)?),
            PayloadType::OUTGOING_MESSAGE_ACK => Self::MessageAck(MessageAck::decode(kind, &data)?),
            PayloadType::QUEUE_SEND_COMPLETE if data.is_empty() => Self::QueueSendComplete,
            PayloadType::DEVICE_COOKIE_CHANGE_INDICATION if data.is_empty() => Self::DeviceCookieChangeIndication,
            PayloadType::QUEUE_SEND_COMPLETE | PayloadType::DEVICE_COOKIE_CHANGE_INDICATION => {
                return Err(BadContainer::Length(kind));
            }
            PayloadType::CLOSE_ERROR => {
                let (can_reconnect, message) = data.split_first().ok_or(BadContainer::Length(kind))?;
                Self::CloseError { can_reconnect: *can_reconnect != 0, message: text(message)? }
            }
            PayloadType::ALERT => Self::Alert(text(&data)?),
            kind => Self::Unknown(Unknown { kind, len: data.len() }),
        })
    }

    /// Writes the container. What was [`Self::Unknown`] comes out empty: its data were not kept.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        container(self.kind(), |out| match self {
            Self::EchoRequest(data) | Self::EchoResponse(data) => out.put_slice(data),
            Self::Message(message) => message.encode_into(out),
            Self::MessageAck(ack) => ack.encode(out),
            Self::CloseError { can_reconnect, message } => {
                out.put_u8(u8::from(*can_reconnect));
                out.put_slice(message.as_bytes());
            }
            Self::Alert(message) => out.put_slice(message.as_bytes()),
            Self::QueueSendComplete | Self::DeviceCookieChangeIndication | Self::Unknown(_) => {}
        })
    }
}

impl fmt::Debug for FromClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EchoRequest(data) => write!(f, "EchoRequest({} bytes)", data.len()),
            Self::EchoResponse(data) => write!(f, "EchoResponse({} bytes)", data.len()),
            Self::Message(message) => f.debug_tuple("Message").field(message).finish(),
            Self::MessageAck(ack) => f.debug_tuple("MessageAck").field(ack).finish(),
            Self::UnblockIncomingMessages => f.write_str("UnblockIncomingMessages"),
            Self::SetPushToken(token) => f.debug_tuple("SetPushToken").field(token).finish(),
            Self::SetVoipPushToken(token) => f.debug_tuple("SetVoipPushToken").field(token).finish(),
            Self::DeletePushTokens(devices) => f.debug_tuple("DeletePushTokens").field(devices).finish(),
            Self::SetIdleTimeout(seconds) => f.debug_tuple("SetIdleTimeout").field(seconds).finish(),
            Self::ClearDeviceCookieChangeIndication => f.write_str("ClearDeviceCookieChangeIndication"),
            Self::Unknown(unknown) => f.debug_tuple("Unknown").field(unknown).finish(),
        }
    }
}

impl fmt::Debug for ToClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EchoRequest(data) => write!(f, "EchoRequest({} bytes)", data.len()),
            Self::EchoResponse(data) => write!(f, "EchoResponse({} bytes)", data.len()),
            Self::Message(message) => f.debug_tuple("Message").field(message).finish(),
            Self::MessageAck(ack) => f.debug_tuple("MessageAck").field(ack).finish(),
            Self::QueueSendComplete => f.write_str("QueueSendComplete"),
            Self::DeviceCookieChangeIndication => f.write_str("DeviceCookieChangeIndication"),
            Self::CloseError { can_reconnect, message } => {
                write!(f, "CloseError(can_reconnect: {can_reconnect}, {} bytes)", message.len())
            }
            Self::Alert(message) => write!(f, "Alert({} bytes)", message.len()),
            Self::Unknown(unknown) => f.debug_tuple("Unknown").field(unknown).finish(),
        }
    }
}

/// As much of `text` as fits `max` bytes, by whole characters.
pub(super) fn cut(text: &str, max: usize) -> &str {
    text.get(..text.floor_char_boundary(max)).unwrap_or(text)
}

fn open_container(container: &Bytes) -> Result<(PayloadType, Bytes), BadContainer> {
    match container.first() {
        Some(kind) if container.len() >= CONTAINER_HEADER => {
            Ok((PayloadType(*kind), container.slice(CONTAINER_HEADER..)))
        }
        _ => Err(BadContainer::TooShort),
    }
}

fn container(kind: PayloadType, data: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::with_capacity(64);
    out.put_slice(&[kind.0, 0, 0, 0]);
    data(&mut out);
    out.freeze()
}

#[cfg(test)]
mod tests;
