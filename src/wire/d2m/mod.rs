//! The Device-to-Mediator protocol: one WebSocket binary message is one container, one container is one payload.
//!
//! Direction is in the types: a device says [`FromDevice`], the mediator says [`ToDevice`]. Both are encoded and decoded
//! here, because this library is also a device. Numbers that have no meaning survive as [`Unknown`], for the session to
//! judge and the log to show.

pub mod close;
pub mod hello;
pub mod id;
pub mod manage;
mod pb;
pub mod reflect;
pub mod url;

use bytes::Bytes;
use prost::Message as _;

use super::numbers::named_numbers;

pub use close::{CloseCode, Reconnect};
pub use hello::{ClientHello, ServerHello, ServerInfo, SlotExpiration, SlotState, SlotsExhausted};
pub use id::{BadDeviceId, DeviceGroupId, DeviceId, ReflectId, ReflectedId};
pub use manage::{AugmentedDeviceInfo, BeginTransaction, ConnectionState, DevicesInfo, TransactionHolder};
pub use reflect::{Envelope, Reflect, ReflectAck, ReflectFlags, Reflected};
pub use url::{BadUrl, ClientUrlInfo, ServerGroup};

/// Length of a container's header, in bytes: payload type, then three reserved.
pub const CONTAINER_HEADER: usize = 4;
/// Longest container, in bytes.
pub const CONTAINER_MAX: usize = 65_536;
/// Longest payload, in bytes.
pub const PAYLOAD_MAX: usize = CONTAINER_MAX - CONTAINER_HEADER;
/// Longest envelope, in bytes: it has to fit the `reflected` container, whose header is longer than that of `reflect`.
pub const ENVELOPE_MAX: usize = PAYLOAD_MAX - 16;
/// Longest encrypted device info, in bytes: keeps a `DevicesInfo` of 15 devices inside a container.
pub const ENCRYPTED_DEVICE_INFO_MAX: usize = 4_096;
/// Longest encrypted transaction scope, in bytes.
pub const ENCRYPTED_SCOPE_MAX: usize = 1_024;
/// Longest encrypted shared device data, in bytes.
pub const ENCRYPTED_SHARED_DEVICE_DATA_MAX: usize = 32_768;
/// What one device adds to a `DevicesInfo` beyond its encrypted device info, in bytes, at most.
pub const DEVICES_INFO_OVERHEAD: usize = 40;

named_numbers! {
    /// The number that says what a container holds.
    pub struct PayloadType;

    PROXY = 0x00 "proxy";
    SERVER_HELLO = 0x10 "server-hello";
    CLIENT_HELLO = 0x11 "client-hello";
    SERVER_INFO = 0x12 "server-info";
    REFLECTION_QUEUE_DRY = 0x20 "reflection-queue-dry";
    ROLE_PROMOTED_TO_LEADER = 0x21 "role-promoted-to-leader";
    GET_DEVICES_INFO = 0x30 "get-devices-info";
    DEVICES_INFO = 0x31 "devices-info";
    DROP_DEVICE = 0x32 "drop-device";
    DROP_DEVICE_ACK = 0x33 "drop-device-ack";
    SET_SHARED_DEVICE_DATA = 0x34 "set-shared-device-data";
    BEGIN_TRANSACTION = 0x40 "begin-transaction";
    BEGIN_TRANSACTION_ACK = 0x41 "begin-transaction-ack";
    COMMIT_TRANSACTION = 0x42 "commit-transaction";
    COMMIT_TRANSACTION_ACK = 0x43 "commit-transaction-ack";
    TRANSACTION_REJECTED = 0x44 "transaction-rejected";
    TRANSACTION_ENDED = 0x45 "transaction-ended";
    REFLECT = 0x80 "reflect";
    REFLECT_ACK = 0x81 "reflect-ack";
    REFLECTED = 0x82 "reflected";
    REFLECTED_ACK = 0x83 "reflected-ack";
}

/// A payload this side does not expect: a number without meaning, or one that only the other side may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unknown {
    /// What the container said.
    pub kind: PayloadType,
    /// Length of the payload, in bytes.
    pub len: usize,
}

/// Why a WebSocket message is no valid container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadContainer {
    /// Shorter than its header.
    #[error("a container has at least 4 bytes")]
    TooShort,
    /// Longer than [`CONTAINER_MAX`].
    #[error("a container has at most 65536 bytes")]
    TooLong,
    /// The payload is not what its type says.
    #[error("{0}: {1}")]
    Payload(PayloadType, BadPayload),
}

/// Why a payload is not what its type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPayload {
    /// Ended before its layout did.
    #[error("truncated")]
    Truncated,
    /// Not protobuf, or not of these field types.
    #[error("not a valid protobuf message")]
    Protobuf,
    /// The header-length byte is too small or points behind the end.
    #[error("bad header-length")]
    HeaderLength,
    /// A field has a length it may not have.
    #[error("field {0} has a length that is not allowed")]
    Length(&'static str),
    /// An enum field holds a number without meaning.
    #[error("field {0} has an unknown value")]
    Enum(&'static str),
    /// A field that is always there is not.
    #[error("field {0} is missing")]
    Missing(&'static str),
}

impl From<prost::DecodeError> for BadPayload {
    fn from(_: prost::DecodeError) -> Self {
        Self::Protobuf
    }
}

impl From<super::bytes::Truncated> for BadPayload {
    fn from(_: super::bytes::Truncated) -> Self {
        Self::Truncated
    }
}

/// What a device may say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromDevice {
    /// Bytes for the chat server.
    Proxy(Bytes),
    /// The device introduces itself.
    ClientHello(Box<ClientHello>),
    /// The device introduces itself in a version we cannot read.
    ClientHelloOfVersion(u32),
    /// Who is in the group?
    GetDevicesInfo,
    /// Remove a device from the group.
    DropDevice(DeviceId),
    /// Replace the data shown to every device at login.
    SetSharedDeviceData(Vec<u8>),
    /// Ask for the lock.
    BeginTransaction(BeginTransaction),
    /// Deliver what was reflected under the lock, and give it back.
    CommitTransaction,
    /// Deliver to the others.
    Reflect(Reflect),
    /// Got it and processed it.
    ReflectedAck(ReflectedId),
    /// Nothing a device may say.
    Unknown(Unknown),
}

/// What the mediator may say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToDevice {
    /// Bytes from the chat server.
    Proxy(Bytes),
    /// The first payload of a connection.
    ServerHello(Box<ServerHello>),
    /// Admitted.
    ServerInfo(ServerInfo),
    /// Everything that had waited has been sent.
    ReflectionQueueDry,
    /// This device leads now: it may let the chat server deliver.
    RolePromotedToLeader,
    /// Who is in the group.
    DevicesInfo(DevicesInfo),
    /// The device is not in the group (any more).
    DropDeviceAck(DeviceId),
    /// The lock is yours.
    BeginTransactionAck,
    /// Delivered, and the lock is free.
    CommitTransactionAck,
    /// Another device holds the lock.
    TransactionRejected(TransactionHolder),
    /// Another device held the lock; it is free.
    TransactionEnded(TransactionHolder),
    /// Kept for the others.
    ReflectAck(ReflectAck),
    /// From another device.
    Reflected(Reflected),
    /// Nothing a mediator may say.
    Unknown(Unknown),
}

fn split(message: &Bytes) -> Result<(PayloadType, Bytes), BadContainer> {
    if message.len() > CONTAINER_MAX {
        return Err(BadContainer::TooLong);
    }
    match message.first() {
        Some(&kind) if message.len() >= CONTAINER_HEADER => Ok((PayloadType(kind), message.slice(CONTAINER_HEADER..))),
        _ => Err(BadContainer::TooShort),
    }
}

fn container(kind: PayloadType, body: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(CONTAINER_HEADER + body.len());
    out.extend_from_slice(&[kind.0, 0, 0, 0]);
    out.extend_from_slice(body);
    out.into()
}

/// What [`ToDevice::Proxy`] encodes to, around a unit that lies in a buffer.
#[must_use]
pub fn proxied(unit: &[u8]) -> Bytes {
    container(PayloadType::PROXY, unit)
}

/// Payloads without fields have an empty body, but unknown fields are let pass.
fn empty(body: &[u8]) -> Result<(), BadPayload> {
    pb::Empty::decode(body)?;
    Ok(())
}

impl FromDevice {
    /// Reads one WebSocket message. Reserved bytes are ignored.
    ///
    /// # Errors
    /// [`BadContainer`] when it is not a container, or not what its type says.
    pub fn decode(message: &Bytes) -> Result<Self, BadContainer> {
        let (kind, body) = split(message)?;
        let len = body.len();
        let payload = match kind {
            PayloadType::PROXY => Ok(Self::Proxy(body)),
            PayloadType::CLIENT_HELLO => ClientHello::decode(&body).map(|hello| match hello {
                hello::AnyClientHello::Known(hello) => Self::ClientHello(Box::new(hello)),
                hello::AnyClientHello::Version(version) => Self::ClientHelloOfVersion(version),
            }),
            PayloadType::GET_DEVICES_INFO => empty(&body).map(|()| Self::GetDevicesInfo),
            PayloadType::DROP_DEVICE => manage::decode_device(&body).map(Self::DropDevice),
            PayloadType::SET_SHARED_DEVICE_DATA => {
                manage::decode_shared_device_data(&body).map(Self::SetSharedDeviceData)
            }
            PayloadType::BEGIN_TRANSACTION => BeginTransaction::decode(&body).map(Self::BeginTransaction),
            PayloadType::COMMIT_TRANSACTION => empty(&body).map(|()| Self::CommitTransaction),
            PayloadType::REFLECT => Reflect::decode(&body).map(Self::Reflect),
            PayloadType::REFLECTED_ACK => reflect::decode_reflected_ack(&body).map(Self::ReflectedAck),
            _ => Ok(Self::Unknown(Unknown { kind, len })),
        };
        payload.map_err(|bad| BadContainer::Payload(kind, bad))
    }

    /// The number this payload travels under.
    #[must_use]
    pub const fn kind(&self) -> PayloadType {
        match self {
            Self::Proxy(_) => PayloadType::PROXY,
            Self::ClientHello(_) | Self::ClientHelloOfVersion(_) => PayloadType::CLIENT_HELLO,
            Self::GetDevicesInfo => PayloadType::GET_DEVICES_INFO,
            Self::DropDevice(_) => PayloadType::DROP_DEVICE,
            Self::SetSharedDeviceData(_) => PayloadType::SET_SHARED_DEVICE_DATA,
            Self::BeginTransaction(_) => PayloadType::BEGIN_TRANSACTION,
            Self::CommitTransaction => PayloadType::COMMIT_TRANSACTION,
            Self::Reflect(_) => PayloadType::REFLECT,
            Self::ReflectedAck(_) => PayloadType::REFLECTED_ACK,
            Self::Unknown(unknown) => unknown.kind,
        }
    }

    /// The container, ready to be sent. An unknown payload is encoded without its body, which was not kept.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let kind = self.kind();
        match self {
            Self::Proxy(bytes) => container(kind, bytes),
            Self::ClientHello(hello) => container(kind, &hello.encode()),
            Self::ClientHelloOfVersion(version) => {
                container(kind, &pb::ClientHello { version: *version, ..Default::default() }.encode_to_vec())
            }
            Self::DropDevice(id) => container(kind, &manage::encode_device(*id)),
            Self::SetSharedDeviceData(data) => container(kind, &manage::encode_shared_device_data(data)),
            Self::BeginTransaction(begin) => container(kind, &begin.encode()),
            Self::Reflect(reflect) => container(kind, &reflect.encode()),
            Self::ReflectedAck(id) => container(kind, &reflect::encode_reflected_ack(*id)),
            Self::GetDevicesInfo | Self::CommitTransaction | Self::Unknown(_) => container(kind, &[]),
        }
    }
}

impl ToDevice {
    /// Reads one WebSocket message. Reserved bytes are ignored.
    ///
    /// # Errors
    /// [`BadContainer`] when it is not a container, or not what its type says.
    pub fn decode(message: &Bytes) -> Result<Self, BadContainer> {
        let (kind, body) = split(message)?;
        let len = body.len();
        let payload = match kind {
            PayloadType::PROXY => Ok(Self::Proxy(body)),
            PayloadType::SERVER_HELLO => ServerHello::decode(&body).map(|hello| Self::ServerHello(hello.into())),
            PayloadType::SERVER_INFO => ServerInfo::decode(&body).map(Self::ServerInfo),
            PayloadType::REFLECTION_QUEUE_DRY => empty(&body).map(|()| Self::ReflectionQueueDry),
            PayloadType::ROLE_PROMOTED_TO_LEADER => empty(&body).map(|()| Self::RolePromotedToLeader),
            PayloadType::DEVICES_INFO => DevicesInfo::decode(&body).map(Self::DevicesInfo),
            PayloadType::DROP_DEVICE_ACK => manage::decode_device(&body).map(Self::DropDeviceAck),
            PayloadType::BEGIN_TRANSACTION_ACK => empty(&body).map(|()| Self::BeginTransactionAck),
            PayloadType::COMMIT_TRANSACTION_ACK => empty(&body).map(|()| Self::CommitTransactionAck),
            PayloadType::TRANSACTION_REJECTED => TransactionHolder::decode(&body).map(Self::TransactionRejected),
            PayloadType::TRANSACTION_ENDED => TransactionHolder::decode(&body).map(Self::TransactionEnded),
            PayloadType::REFLECT_ACK => ReflectAck::decode(&body).map(Self::ReflectAck),
            PayloadType::REFLECTED => Reflected::decode(&body).map(Self::Reflected),
            _ => Ok(Self::Unknown(Unknown { kind, len })),
        };
        payload.map_err(|bad| BadContainer::Payload(kind, bad))
    }

    /// The number this payload travels under.
    #[must_use]
    pub const fn kind(&self) -> PayloadType {
        match self {
            Self::Proxy(_) => PayloadType::PROXY,
            Self::ServerHello(_) => PayloadType::SERVER_HELLO,
            Self::ServerInfo(_) => PayloadType::SERVER_INFO,
            Self::ReflectionQueueDry => PayloadType::REFLECTION_QUEUE_DRY,
            Self::RolePromotedToLeader => PayloadType::ROLE_PROMOTED_TO_LEADER,
            Self::DevicesInfo(_) => PayloadType::DEVICES_INFO,
            Self::DropDeviceAck(_) => PayloadType::DROP_DEVICE_ACK,
            Self::BeginTransactionAck => PayloadType::BEGIN_TRANSACTION_ACK,
            Self::CommitTransactionAck => PayloadType::COMMIT_TRANSACTION_ACK,
            Self::TransactionRejected(_) => PayloadType::TRANSACTION_REJECTED,
            Self::TransactionEnded(_) => PayloadType::TRANSACTION_ENDED,
            Self::ReflectAck(_) => PayloadType::REFLECT_ACK,
            Self::Reflected(_) => PayloadType::REFLECTED,
            Self::Unknown(unknown) => unknown.kind,
        }
    }

    /// The container, ready to be sent. An unknown payload is encoded without its body, which was not kept.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let kind = self.kind();
        match self {
            Self::Reflected(reflected) => reflected.container().clone(),
            Self::Proxy(bytes) => container(kind, bytes),
            Self::ServerHello(hello) => container(kind, &hello.encode()),
            Self::ServerInfo(info) => container(kind, &info.encode()),
            Self::DevicesInfo(devices) => container(kind, &devices.encode()),
            Self::DropDeviceAck(id) => container(kind, &manage::encode_device(*id)),
            Self::TransactionRejected(holder) | Self::TransactionEnded(holder) => container(kind, &holder.encode()),
            Self::ReflectAck(ack) => container(kind, &ack.encode()),
            Self::ReflectionQueueDry
            | Self::RolePromotedToLeader
            | Self::BeginTransactionAck
            | Self::CommitTransactionAck
            | Self::Unknown(_) => container(kind, &[]),
        }
    }

    /// Bytes the container holds beyond the fixed parts: what counts against a connection's outbox.
    #[must_use]
    pub fn weight(&self) -> usize {
        match self {
            Self::Proxy(bytes) => bytes.len(),
            Self::ServerInfo(info) => info.encrypted_shared_device_data.len(),
            Self::DevicesInfo(devices) => {
                devices.0.values().map(|d| d.encrypted_device_info.len() + DEVICES_INFO_OVERHEAD).sum()
            }
            Self::TransactionRejected(holder) | Self::TransactionEnded(holder) => holder.encrypted_scope.len(),
            Self::Reflected(reflected) => reflected.container().len(),
            Self::ServerHello(_)
            | Self::ReflectionQueueDry
            | Self::RolePromotedToLeader
            | Self::DropDeviceAck(_)
            | Self::BeginTransactionAck
            | Self::CommitTransactionAck
            | Self::ReflectAck(_)
            | Self::Unknown(_) => 0,
        }
    }
}
