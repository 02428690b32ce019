//! Every way a connection can end, who caused it, and the one place where that becomes a close code.

use crate::group::Farewell;
use crate::metrics;
use crate::upstream::UpstreamEnd;
use crate::wire::d2m::{BadContainer, CloseCode, PayloadType};

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The device closed, with this code if it gave one.
    ClosedByDevice(Option<u16>),
    /// The connection broke without a close.
    Lost,
    /// The device sent bytes that are not WebSocket, or a message that is much too long.
    BadWebSocket,
    /// The device sent a text message.
    TextMessage,
    /// The device sent something that is no container, or not what its type says.
    BadContainer(BadContainer),
    /// The device sent a payload that no device may send.
    UnknownPayload(PayloadType),
    /// The device sent a payload at a time when it may not.
    WrongState(PayloadType),
    /// The device did not prove the group key.
    NotProved,
    /// The device speaks another version.
    UnsupportedVersion(u32),
    /// More chat server bytes came before the handshake was over than may be held.
    TooMuchEarlyProxy,
    /// The handshake took too long.
    HandshakeTimeout,
    /// Nothing came for too long.
    IdleTimeout,
    /// The device took nothing of what was written to it for too long.
    NotReading,
    /// The device's group ended the connection.
    Group(Farewell),
    /// The chat server ended its side, or was never reached.
    Upstream(UpstreamEnd),
    /// The chat server takes nothing for too long.
    UpstreamStalled,
    /// Nothing is known about the server group.
    NoUpstream,
    /// The device's group failed.
    GroupFailed,
    /// The group goes on at another node, where the device finds it when it comes again.
    GroupMoved,
    /// The mediator stops.
    ShuttingDown,
}

pub use crate::metrics::Culprit;

impl Ending {
    /// The code the device is told; `None` when it is not listening any more.
    #[must_use]
    pub const fn close_code(&self) -> Option<CloseCode> {
        Some(match self {
            Self::ClosedByDevice(_) | Self::Lost => return None,
            Self::BadWebSocket
            | Self::TextMessage
            | Self::BadContainer(_)
            | Self::UnknownPayload(_)
            | Self::WrongState(_)
            | Self::NotProved
            | Self::TooMuchEarlyProxy
            | Self::Group(Farewell::CommitWithoutBegin | Farewell::NestedBegin | Farewell::StagingLimit) => {
                CloseCode::ProtocolError
            }
            Self::UnsupportedVersion(_) => CloseCode::UnsupportedVersion,
            // The closest meaning, and it may reconnect (A37).
            Self::HandshakeTimeout | Self::IdleTimeout | Self::NotReading | Self::Group(Farewell::SlowReader) => {
                CloseCode::ClientIdleTimeout
            }
            Self::Group(Farewell::SlotStateMismatch) => CloseCode::DeviceSlotStateMismatch,
            Self::Group(Farewell::DeviceLimitReached) => CloseCode::DeviceLimitReached,
            Self::Group(Farewell::Replaced) => CloseCode::DuplicateConnection,
            Self::Group(Farewell::Dropped | Farewell::LeastRecent) => CloseCode::Dropped,
            Self::Group(Farewell::QueueLimit) => CloseCode::ReflectionQueueLimit,
            Self::Group(Farewell::TransactionTtl) => CloseCode::TransactionTtlReached,
            Self::Group(Farewell::UnknownAck) => CloseCode::UnknownMessageAcked,
            Self::Upstream(UpstreamEnd::Unreachable(_)) | Self::NoUpstream => CloseCode::ChatServerUnreachable,
            Self::Upstream(UpstreamEnd::Closed | UpstreamEnd::Failed(_)) => CloseCode::ChatServerClosed,
            Self::Upstream(UpstreamEnd::UnitTooBig { .. }) | Self::UpstreamStalled => CloseCode::ChatProxyError,
            Self::GroupFailed => CloseCode::InternalError,
            // Going away, as far as this connection is concerned; every client comes back after it.
            Self::GroupMoved | Self::ShuttingDown | Self::Group(Farewell::Kicked) => CloseCode::ShuttingDown,
        })
    }

    /// Whose doing it was.
    #[must_use]
    pub const fn culprit(&self) -> Culprit {
        match self {
            Self::ClosedByDevice(_)
            | Self::Lost
            | Self::BadWebSocket
            | Self::TextMessage
            | Self::BadContainer(_)
            | Self::UnknownPayload(_)
            | Self::WrongState(_)
            | Self::NotProved
            | Self::UnsupportedVersion(_)
            | Self::TooMuchEarlyProxy
            | Self::HandshakeTimeout
            | Self::IdleTimeout
            | Self::NotReading => Culprit::Device,
            Self::Group(Farewell::Kicked) => Culprit::Mediator,
            Self::Group(_) => Culprit::Group,
            Self::Upstream(_) | Self::UpstreamStalled => Culprit::ChatServer,
            Self::NoUpstream | Self::GroupFailed | Self::GroupMoved | Self::ShuttingDown => Culprit::Mediator,
        }
    }

    /// What the handshake came to, for those that ended in it.
    pub(super) const fn of_handshake(&self) -> metrics::Handshake {
        use metrics::Handshake;
        match self {
            Self::NotProved => Handshake::NotProved,
            Self::UnsupportedVersion(_) => Handshake::UnsupportedVersion,
            Self::HandshakeTimeout => Handshake::TimedOut,
            Self::ClosedByDevice(_) | Self::Lost => Handshake::Lost,
            Self::ShuttingDown => Handshake::Stopping,
            Self::BadWebSocket
            | Self::TextMessage
            | Self::BadContainer(_)
            | Self::UnknownPayload(_)
            | Self::WrongState(_)
            | Self::TooMuchEarlyProxy
            | Self::IdleTimeout
            | Self::NotReading
            | Self::Group(_)
            | Self::Upstream(_)
            | Self::UpstreamStalled
            | Self::NoUpstream
            | Self::GroupFailed
            | Self::GroupMoved => Handshake::Broken,
        }
    }

    /// What the close frame says, for a client developer's log: the name of the situation, short and ASCII.
    #[must_use]
    pub fn reason(&self) -> String {
        let mut reason = match self {
            Self::BadContainer(bad) => format!("BadContainer: {bad}"),
            Self::UnknownPayload(kind) => format!("UnknownPayload: {kind}"),
            Self::WrongState(kind) => format!("WrongState: {kind}"),
            Self::Group(farewell) => format!("{farewell:?}"),
            // Nothing about the mediator's surroundings.
            Self::Upstream(UpstreamEnd::Unreachable(_)) => "UpstreamUnreachable".to_owned(),
            Self::Upstream(UpstreamEnd::Closed | UpstreamEnd::Failed(_)) => "UpstreamClosed".to_owned(),
            Self::Upstream(UpstreamEnd::UnitTooBig { len }) => format!("UpstreamUnitTooBig: {len}"),
            other => format!("{other:?}"),
        };
        // A control frame has room for 125 bytes, two of which are the code.
        reason.truncate(123);
        reason
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::d2m::BadPayload;

    #[test]
    fn every_reason_fits_a_control_frame() {
        let worst = Ending::BadContainer(BadContainer::Payload(
            PayloadType::SET_SHARED_DEVICE_DATA,
            BadPayload::Length("encrypted_shared_device_data"),
        ));
        assert!(worst.reason().len() <= 123 && worst.reason().is_ascii(), "{}", worst.reason());
    }

    /// Situations and their numbers, as the spec lists them (8.1 and the decisions).
    #[test]
    fn each_situation_has_the_number_the_spec_gives_it() {
        let table = [
            (Ending::GroupMoved, 1001),
            (Ending::ShuttingDown, 1001),
            (Ending::Group(Farewell::Kicked), 1001),
            (Ending::GroupFailed, 1011),
            (Ending::Upstream(UpstreamEnd::Closed), 4000),
            (Ending::Upstream(UpstreamEnd::Failed(std::io::ErrorKind::ConnectionReset)), 4000),
            (Ending::Upstream(UpstreamEnd::Unreachable(std::io::ErrorKind::ConnectionRefused)), 4001),
            (Ending::NoUpstream, 4001),
            (Ending::Upstream(UpstreamEnd::UnitTooBig { len: 65_531 }), 4009),
            (Ending::UpstreamStalled, 4009),
            (Ending::BadWebSocket, 4010),
            (Ending::TextMessage, 4010),
            (Ending::BadContainer(BadContainer::TooShort), 4010),
            (Ending::UnknownPayload(PayloadType(0x77)), 4010),
            (Ending::WrongState(PayloadType::CLIENT_HELLO), 4010),
            (Ending::NotProved, 4010),
            (Ending::TooMuchEarlyProxy, 4010),
            (Ending::Group(Farewell::CommitWithoutBegin), 4010),
            (Ending::Group(Farewell::NestedBegin), 4010),
            (Ending::Group(Farewell::StagingLimit), 4010),
            (Ending::Group(Farewell::TransactionTtl), 4011),
            (Ending::Group(Farewell::UnknownAck), 4012),
            (Ending::HandshakeTimeout, 4013),
            (Ending::IdleTimeout, 4013),
            (Ending::NotReading, 4013),
            (Ending::Group(Farewell::SlowReader), 4013),
            (Ending::UnsupportedVersion(1), 4110),
            (Ending::Group(Farewell::DeviceLimitReached), 4111),
            (Ending::Group(Farewell::Replaced), 4112),
            (Ending::Group(Farewell::Dropped), 4113),
            (Ending::Group(Farewell::LeastRecent), 4113),
            (Ending::Group(Farewell::QueueLimit), 4114),
            (Ending::Group(Farewell::SlotStateMismatch), 4115),
        ];
        for (ending, code) in table {
            assert_eq!(ending.close_code().map(CloseCode::code), Some(code), "{ending:?}");
        }
        assert_eq!(Ending::ClosedByDevice(None).close_code(), None);
        assert_eq!(Ending::Lost.close_code(), None);
    }

    #[test]
    fn a_device_that_broke_nothing_may_always_reconnect() {
        use crate::wire::d2m::Reconnect;
        for ending in
            [Ending::GroupFailed, Ending::GroupMoved, Ending::ShuttingDown, Ending::NoUpstream, Ending::UpstreamStalled]
        {
            assert_eq!(ending.close_code().map(CloseCode::reconnect), Some(Reconnect::Automatic), "{ending:?}");
        }
    }
}
