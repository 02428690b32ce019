//! Every way a connection ends, and the one place that says what the client is told.

use crate::chat::csp::wire::{BadContainer, ToClient, TooLong};

/// Why a connection ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ending {
    // The client's doing.
    /// It closed the connection, or the connection broke.
    #[error("the client is gone")]
    Gone,
    /// A frame is too short or too long.
    #[error("a frame of {0} bytes")]
    BadFrame(usize),
    /// A frame does not open.
    #[error("a frame does not open")]
    BadBox,
    /// A frame opens and holds what may not be there.
    #[error("bad container: {0}")]
    BadContainer(#[from] BadContainer),
    /// A message names somebody else as its sender.
    #[error("a message in somebody else's name")]
    ForeignSender,
    /// It asked for an idle time-out that is not allowed.
    #[error("idle time-out of {0} s requested")]
    IdleTimeoutOutOfRange(u16),
    /// It was silent for too long.
    #[error("idle")]
    Idle,
    /// It does not read, and too much waits for it.
    #[error("the client does not read: its outbox is full")]
    OutboxFull,
    /// It does not read, and has not for long.
    #[error("the client does not read: nothing could be written for long")]
    WriteStalled,
    /// The same identity logged in again.
    #[error("replaced by another connection")]
    Replaced,
    /// The identity was revoked.
    #[error("the identity is revoked")]
    Revoked,
    // Ours.
    /// The store failed: nothing that was not acked is promised.
    #[error("the store failed")]
    Store,
    /// What was to be said does not fit a frame.
    #[error("unsendable: {0}")]
    Unsendable(#[from] TooLong),
    /// The server stops.
    #[error("shutting down")]
    ShuttingDown,
}

impl Ending {
    /// The last frame. Where there is none, the client sees a lost connection and comes back by itself.
    #[must_use]
    pub fn farewell(&self) -> Option<ToClient> {
        let (can_reconnect, message) = match self {
            // Apps compare the beginning of this text: with any other, a change of networks would leave a phone
            // disconnected and showing an error (spec 7).
            Self::Replaced => (false, "Another connection for the same identity has been established."),
            // Coming back would be in vain, for ever.
            Self::Revoked => (false, "This identity has been revoked."),
            Self::IdleTimeoutOutOfRange(_) => (true, "The connection idle timeout must be between 30 and 600 seconds."),
            Self::Gone
            | Self::BadFrame(_)
            | Self::BadBox
            | Self::BadContainer(_)
            | Self::ForeignSender
            | Self::Idle
            | Self::OutboxFull
            | Self::WriteStalled
            | Self::Store
            | Self::Unsendable(_)
            | Self::ShuttingDown => return None,
        };
        Some(ToClient::CloseError { can_reconnect, message: message.to_owned() })
    }
}
