//! What is said: requests with their arguments, answers, notifications, and the objects in them (spec 1.2, 1.3, 2).

mod args;
mod objects;
mod refusal;
mod request;
pub mod stamp;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub use objects::{
    CallNotice, Dm, FullDm, InCall, Key, Message, Reaction, ScheduleNotice, Scheduled, Signature, Status, TypingNotice,
    User, UserNotice, VerdictNotice, X3dh,
};
pub use refusal::{Code, Refusal};
pub use request::{About, Invitation, Prekey, ProfileChange, Request};

/// Longest packet, in bytes.
pub const PACKET_MAX: usize = 1_000_000;
/// Longest ciphertext of a message, in bytes.
pub const MESSAGE_MAX: usize = 65_536;
/// Longest ciphertext of a reaction, in bytes.
pub const REACTION_MAX: usize = 256;
/// Longest own storage, in Unicode scalars: clients store hexadecimal digits.
pub const OWN_STORAGE_MAX: usize = 524_288;
/// Longest profile picture, in Unicode scalars.
pub const PROFILE_PICTURE_MAX: usize = 65_536;
/// Longest biography, in Unicode scalars.
pub const BIOGRAPHY_MAX: usize = 500;
/// Longest name of a DM, in Unicode scalars.
pub const DM_NAME_MAX: usize = 100;
/// Members of a DM, at most.
pub const MEMBERS_MAX: usize = 128;
/// Messages of one page of a history, at most; and how many there are when nobody says.
pub const PAGE_MAX: i64 = 100;
/// See [`PAGE_MAX`].
pub const PAGE: i64 = 50;
/// The longest delay of a schedule and of a deletion, in seconds.
pub const DELAY_MAX_S: i64 = 31_536_000;

/// What a request is answered with (spec 1.2).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Envelope {
    /// Whether it was done.
    pub success: bool,
    /// What came of it; the text of the refusal otherwise.
    pub result: Box<RawValue>,
    /// A stable word for the refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

impl From<Result<Box<RawValue>, Refusal>> for Envelope {
    fn from(answer: Result<Box<RawValue>, Refusal>) -> Self {
        match answer {
            Ok(result) => Self { success: true, result, code: None },
            Err(refusal) => {
                let code = Some(refusal.code.word().to_owned());
                Self { success: false, result: raw(&refusal.text()), code }
            }
        }
    }
}

/// What is said, as JSON: written once, however many hear it.
#[must_use]
pub fn raw<T: Serialize + ?Sized>(said: &T) -> Box<RawValue> {
    // Nothing here can fail: maps have text for keys, and nothing writes to elsewhere.
    serde_json::value::to_raw_value(said).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// The events that the server sends by itself (spec 2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Notice {
    /// A [`User`] changed, came or went.
    Profile,
    /// A [`Dm`] changed.
    Dm,
    /// Somebody types: [`TypingNotice`].
    Typing,
    /// A new [`Message`].
    Message,
    /// A [`Message`] changed.
    MessageChange,
    /// The id of a message that is gone.
    MessageDelete,
    /// A [`ScheduleNotice`]: the message was sent.
    ScheduledSent,
    /// A [`ScheduleNotice`]: it will be in a minute.
    ScheduledSoon,
    /// An [`X3dh`]: the key of a new DM.
    X3dh,
    /// Somebody asks for friendship: [`UserNotice`].
    FriendRequest,
    /// What became of a request: [`VerdictNotice`].
    FriendRequestAccept,
    /// Somebody is no friend any more: [`UserNotice`].
    Unfriend,
    /// Somebody is in the call: [`CallNotice`].
    UserJoinedCall,
    /// Somebody is not in it any more: [`CallNotice`].
    UserLeftCall,
}

impl Notice {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Profile,
        Self::Dm,
        Self::Typing,
        Self::Message,
        Self::MessageChange,
        Self::MessageDelete,
        Self::ScheduledSent,
        Self::ScheduledSoon,
        Self::X3dh,
        Self::FriendRequest,
        Self::FriendRequestAccept,
        Self::Unfriend,
        Self::UserJoinedCall,
        Self::UserLeftCall,
    ];

    /// The event's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Profile => "profile_notification",
            Self::Dm => "dm_notification",
            Self::Typing => "typing_notification",
            Self::Message => "message_notification",
            Self::MessageChange => "message_change_notification",
            Self::MessageDelete => "message_delete_notification",
            Self::ScheduledSent => "scheduled_message_sent_notification",
            Self::ScheduledSoon => "scheduled_soon_notification",
            Self::X3dh => "x3dh_notification",
            Self::FriendRequest => "friend_request_notification",
            Self::FriendRequestAccept => "friend_request_accept_notification",
            Self::Unfriend => "unfriend_notification",
            Self::UserJoinedCall => "user_joined_call",
            Self::UserLeftCall => "user_left_call",
        }
    }
}
