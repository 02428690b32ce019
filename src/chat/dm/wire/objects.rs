//! The objects in answers and notifications (spec 2.7). Both directions: clients read what the server writes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// 32 bytes, 64 hexadecimal digits.
pub type Key = [u8; 32];
/// 64 bytes, 128 hexadecimal digits.
pub type Signature = [u8; 64];

/// What a user wants others to see of him.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Here.
    Online,
    /// For the moment not.
    Away,
    /// Not to be disturbed.
    Dnd,
    /// Not here, or nobody is to know.
    Offline,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Online, Self::Away, Self::Dnd, Self::Offline];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Away => "away",
            Self::Dnd => "dnd",
            Self::Offline => "offline",
        }
    }

    /// The one of a name.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }
}

/// Somebody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The name, for good.
    pub username: String,
    /// The identity key, for good.
    pub public_key: String,
    /// The prekey, unless there is none.
    pub spk: Option<String>,
    /// Its signature by the identity key.
    pub sig: Option<String>,
    /// What others see; in one's own, what was set.
    pub status: Status,
    /// About the user.
    pub biography: String,
    /// Whatever clients make of it.
    pub profile_picture: String,
    /// Only in one's own: whatever the client keeps here, sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_storage: Option<String>,
}

/// Who is in a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum InCall {
    /// Their names.
    Names(Vec<String>),
    /// Their names and where they are, as the first client of this protocol wants it.
    Peers(BTreeMap<String, String>),
}

/// A DM, of two or more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dm {
    /// Which.
    pub id: i64,
    /// Its members, the creator first.
    pub users: Vec<String>,
    /// What it is called, if it is.
    pub name: Option<String>,
    /// When it was made.
    pub created_at: String,
    /// Who is in its call.
    pub users_in_call: InCall,
    /// The same, with where they are. Servers that are not ours do not say it.
    #[serde(default)]
    pub call_peers: BTreeMap<String, String>,
}

/// A DM with what is in it for the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FullDm {
    /// The DM.
    #[serde(flatten)]
    pub dm: Dm,
    /// The newest message.
    pub latest_message: Option<Message>,
    /// What the caller has not sent yet, by the ids of the schedules in digits.
    pub scheduled_messages: BTreeMap<String, Scheduled>,
}

/// A message that will be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduled {
    /// Ciphertext, in hexadecimal digits.
    pub message: String,
    /// Its signature by the sender's identity key.
    pub signature: String,
    /// When it will be sent.
    pub timestamp: String,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Which. Never given twice.
    pub id: i64,
    /// Where.
    pub dm_id: i64,
    /// Whose.
    pub sender: String,
    /// Ciphertext, in hexadecimal digits.
    pub message: String,
    /// Its signature by the sender's identity key.
    pub signature: String,
    /// When it was sent: rises within a DM.
    pub timestamp: String,
    /// When it will be deleted, if it will be.
    pub delete_timestamp: Option<String>,
    /// Whether a member pinned it.
    pub pinned: bool,
    /// The oldest first.
    pub reactions: Vec<Reaction>,
}

/// A reaction to a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reaction {
    /// Which. Never given twice.
    pub id: i64,
    /// Whose.
    pub sender: String,
    /// Ciphertext, in hexadecimal digits.
    pub reaction: String,
    /// Its signature by the sender's identity key.
    pub signature: String,
}

/// With what one who was invited computes the key of a DM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct X3dh {
    /// Who made the DM.
    pub sender: String,
    /// The sender's identity key.
    pub ik: String,
    /// Which prekey of the receiver's was used.
    pub spk: String,
    /// The key that was made for this.
    pub ek: String,
    /// The public keys of the tree, its root left out.
    pub key_tree: Vec<String>,
    /// Which leaf is the receiver's.
    pub position: u16,
    /// Which DM.
    pub id: i64,
    /// The sender's signature over all of it, if the sender made one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub setup_sig: Option<String>,
}

/// Somebody, in a notification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNotice {
    /// Who.
    pub username: String,
}

/// What somebody said to a request for friendship.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictNotice {
    /// Who.
    pub username: String,
    /// Yes or no.
    pub accept: bool,
}

/// Somebody types.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypingNotice {
    /// In which DM.
    pub id: i64,
    /// Who.
    pub username: String,
}

/// Somebody joins or leaves the call of a DM.
pub type CallNotice = TypingNotice;

/// A schedule, in a notification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleNotice {
    /// Of which DM.
    pub dm_id: i64,
    /// Which.
    pub schedule_id: i64,
}
