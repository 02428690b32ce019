//! Every way a connection ends, and the one place that says what the client is told.

use crate::chat::chatos::wire::{BadNickname, Malformed, ToClient};
use crate::wire::chatos::NoPacket;

/// Why somebody is not called what they want to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nobody can be called that.
    #[error(transparent)]
    Nickname(#[from] BadNickname),
    /// Nobody may be called that here (D-11).
    #[error("the nickname is on the list of those that are not wanted")]
    Unwanted,
    /// Somebody is.
    #[error("the nickname is taken")]
    Taken,
}

/// Why a connection ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ending {
    // The client's doing.
    /// It said all it had to say.
    #[error("the client is gone")]
    Gone,
    /// The connection broke.
    #[error("the connection broke")]
    Broken,
    /// It does not get the nickname it asked for.
    #[error("refused: {why}")]
    Refused {
        /// As it was asked for.
        name: String,
        /// Why.
        why: Refusal,
    },
    /// It said what cannot be said, or not now.
    #[error("malformed: {0}")]
    Malformed(#[from] Malformed),
    /// It spoke in somebody else's name (D-16).
    #[error("a packet in somebody else's name")]
    ForeignSender,
    /// It presented an id that is unknown, expired or used up (D-29).
    #[error("no such private connection")]
    BadId,
    /// It said nothing whole for too long after it connected.
    #[error("no login in time")]
    NoLogin,
    /// It began a packet and did not finish it in time.
    #[error("a packet was not finished in time")]
    PacketStalled,
    /// It was silent for too long.
    #[error("inactive")]
    Inactive,
    /// It does not read, and too much waits for it (D-35).
    #[error("the client does not read: its queue is full")]
    QueueFull,
    /// It does not read, and has not for long.
    #[error("the client does not read: nothing could be written for long")]
    WriteStalled,
    // The partner's doing.
    /// Nobody came to the other end of a private connection in time (D-28).
    #[error("the other side did not come in time")]
    Unjoined,
    /// The other side of a private connection is gone.
    #[error("the other side is gone")]
    PartnerGone,
    // Ours.
    /// There are too many connections.
    #[error("too many connections")]
    Full,
    /// The server stops (D-38).
    #[error("shutting down")]
    ShuttingDown,
}

impl Ending {
    /// The last packet: ERROR is opcode 2 with the client's nickname, empty if it has none (D-03). `errors` is off for peers
    /// that are only to see the end of the connection; a login is refused in any case.
    #[must_use]
    pub fn farewell(&self, nickname: Option<&str>, errors: bool) -> Option<ToClient> {
        match self {
            Self::Refused { name, .. } => Some(ToClient::Refused(name.clone())),
            // A login that cannot be read, since before one nothing else has strings (spec 5.1).
            Self::Malformed(Malformed::Utf8 | Malformed::NoPacket(NoPacket::Size(_))) if nickname.is_none() => {
                Some(ToClient::Refused(String::new()))
            }
            Self::Malformed(_)
            | Self::ForeignSender
            | Self::BadId
            | Self::NoLogin
            | Self::PacketStalled
            | Self::Inactive
            | Self::Unjoined
            | Self::Full => errors.then(|| ToClient::Refused(nickname.unwrap_or_default().to_owned())),
            // It would not be read, or nothing went wrong.
            Self::Gone
            | Self::Broken
            | Self::QueueFull
            | Self::WriteStalled
            | Self::PartnerGone
            | Self::ShuttingDown => None,
        }
    }

    /// Whether the connection is cut (RST) with all that waits for it: whoever does not read would keep it for ever.
    #[must_use]
    pub const fn cuts(&self) -> bool {
        matches!(self, Self::QueueFull | Self::WriteStalled)
    }
}
