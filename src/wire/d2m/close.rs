//! Close codes and what they tell the device (spec 8.1).

/// The sixteen codes a mediator ends a connection with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CloseCode {
    /// Answer to the device's own close.
    Normal,
    /// The mediator stops.
    ShuttingDown,
    /// The mediator failed.
    InternalError,
    /// The chat server ended the proxied connection.
    ChatServerClosed,
    /// The chat server could not be reached.
    ChatServerUnreachable,
    /// The proxy failed, or the chat server sent something no container can hold.
    ChatProxyError,
    /// The device broke the protocol.
    ProtocolError,
    /// The device held a transaction for too long.
    TransactionTtlReached,
    /// The device acknowledged a message that it never got.
    UnknownMessageAcked,
    /// Nothing was heard from the device for too long.
    ClientIdleTimeout,
    /// The device speaks a protocol version that the mediator does not.
    UnsupportedVersion,
    /// Every device slot is taken.
    DeviceLimitReached,
    /// The same device connected again.
    DuplicateConnection,
    /// The slot was dropped, by any device of the group or to make room.
    Dropped,
    /// Too much waited for the slot; it is gone.
    ReflectionQueueLimit,
    /// The device believes to be new and is not, or the other way round.
    DeviceSlotStateMismatch,
}

/// What a device does after a close code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reconnect {
    /// It may reconnect by itself: 1xxx and 40xx.
    Automatic,
    /// A person has to decide: 41xx.
    UserInteraction,
    /// A code nobody planned: reconnect, with a warning.
    WithWarning,
}

impl CloseCode {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::Normal,
        Self::ShuttingDown,
        Self::InternalError,
        Self::ChatServerClosed,
        Self::ChatServerUnreachable,
        Self::ChatProxyError,
        Self::ProtocolError,
        Self::TransactionTtlReached,
        Self::UnknownMessageAcked,
        Self::ClientIdleTimeout,
        Self::UnsupportedVersion,
        Self::DeviceLimitReached,
        Self::DuplicateConnection,
        Self::Dropped,
        Self::ReflectionQueueLimit,
        Self::DeviceSlotStateMismatch,
    ];

    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Self::Normal => 1000,
            Self::ShuttingDown => 1001,
            Self::InternalError => 1011,
            Self::ChatServerClosed => 4000,
            Self::ChatServerUnreachable => 4001,
            Self::ChatProxyError => 4009,
            Self::ProtocolError => 4010,
            Self::TransactionTtlReached => 4011,
            Self::UnknownMessageAcked => 4012,
            Self::ClientIdleTimeout => 4013,
            Self::UnsupportedVersion => 4110,
            Self::DeviceLimitReached => 4111,
            Self::DuplicateConnection => 4112,
            Self::Dropped => 4113,
            Self::ReflectionQueueLimit => 4114,
            Self::DeviceSlotStateMismatch => 4115,
        }
    }

    /// The code with this number.
    #[must_use]
    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.code() == code)
    }

    /// What a device does after this code.
    #[must_use]
    pub const fn reconnect(self) -> Reconnect {
        Reconnect::after(self.code())
    }

    /// One sentence for people.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Normal => "closed normally",
            Self::ShuttingDown => "the mediator is shutting down",
            Self::InternalError => "internal error of the mediator",
            Self::ChatServerClosed => "the chat server closed the connection",
            Self::ChatServerUnreachable => "the chat server could not be reached",
            Self::ChatProxyError => "internal error of the chat server proxy",
            Self::ProtocolError => "the device broke the protocol",
            Self::TransactionTtlReached => "the transaction was held for too long",
            Self::UnknownMessageAcked => "a message was acknowledged that was never reflected to this device",
            Self::ClientIdleTimeout => "nothing was heard from the device for too long",
            Self::UnsupportedVersion => "the protocol version is not supported",
            Self::DeviceLimitReached => "every device slot of the group is taken",
            Self::DuplicateConnection => "the same device connected again",
            Self::Dropped => "the device was dropped from the group",
            Self::ReflectionQueueLimit => "too many messages waited for the device; its slot is gone",
            Self::DeviceSlotStateMismatch => "the device slot is not in the state the device expected",
        }
    }
}

impl Reconnect {
    /// What a device does after any number.
    #[must_use]
    pub const fn after(code: u16) -> Self {
        match code {
            1000..=1999 | 4000..=4099 => Self::Automatic,
            4100..=4199 => Self::UserInteraction,
            _ => Self::WithWarning,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_both_ways_and_are_listed_in_order() {
        assert!(CloseCode::ALL.windows(2).all(|pair| pair[0].code() < pair[1].code()));
        for code in CloseCode::ALL {
            assert_eq!(CloseCode::from_code(code.code()), Some(code));
            assert!(code.meaning().len() <= 123, "a control frame has room for 123 bytes of reason");
        }
        assert_eq!(CloseCode::from_code(4002), None);
    }

    #[test]
    fn the_class_follows_from_the_number() {
        assert_eq!(CloseCode::ShuttingDown.reconnect(), Reconnect::Automatic);
        assert_eq!(CloseCode::ClientIdleTimeout.reconnect(), Reconnect::Automatic);
        assert_eq!(CloseCode::UnsupportedVersion.reconnect(), Reconnect::UserInteraction);
        assert_eq!(CloseCode::DeviceSlotStateMismatch.reconnect(), Reconnect::UserInteraction);
        assert_eq!(Reconnect::after(4200), Reconnect::WithWarning);
    }
}
