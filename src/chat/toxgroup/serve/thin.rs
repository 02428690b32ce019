//! What thin users say (spec 10.3): people without group code of their own, for whom the hub holds a member with keys.
//!
//! JSON in frames of a big-endian u16 length, both ways. The first thing said is `hello`: a name, and a secret of the user's
//! making. A name belongs to whoever used it first. Each request may carry an `id`; its answer (`ok`, `error`, or what was
//! asked for) carries the same one. Events of a group go to all lines of everybody who is in it without a socket.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::super::state::Role;
use super::super::wire::message::Presence;
use super::super::wire::record::{Verdict, Voice};

/// Longest name of a user, in bytes.
pub const USER_MAX: usize = 64;
/// Shortest secret, in bytes; longest the same as anything in a frame.
pub const SECRET_MIN: usize = 16;

/// What proves that a user is the same as before. It is shown to nobody.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Password(pub String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Password({} bytes)", self.0.len())
    }
}

/// What is asked for, and by which number it is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Comes back with the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// What.
    #[serde(flatten)]
    pub op: Op,
}

/// Groups and members are named by 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Op {
    /// Who this is: said once on a line.
    Hello {
        /// Up to 64 bytes.
        user: String,
        /// At least 16 bytes that nobody else knows.
        secret: Password,
    },
    /// A new group, in which this user has the hub's right.
    Create {
        /// How it is called.
        name: String,
        /// Without signatures.
        #[serde(default)]
        classic: bool,
        /// Only this user's topic counts. In a classic group; else, see `shape`.
        #[serde(default)]
        topic_lock: bool,
        /// Nobody needs an invitation. Not in a classic group.
        #[serde(default)]
        open: bool,
        /// How this user is called in it.
        nick: String,
    },
    /// To come in.
    Join {
        /// An invitation, or an open group.
        group: String,
        /// How this user is called in it.
        nick: String,
    },
    /// To be gone from it.
    Leave {
        /// Where.
        group: String,
    },
    /// To say something.
    Say {
        /// Where.
        group: String,
        /// What.
        text: String,
        /// `/me`.
        #[serde(default)]
        action: bool,
    },
    /// To be called differently.
    Nick {
        /// Where.
        group: String,
        /// How.
        nick: String,
    },
    /// To be there in another way.
    Presence {
        /// Where.
        group: String,
        /// How.
        presence: Presence,
    },
    /// To set the topic.
    Topic {
        /// Where.
        group: String,
        /// What.
        text: String,
    },
    /// To sanction somebody; a kick is a ban for a minute.
    Sanction {
        /// Where.
        group: String,
        /// Whom.
        member: String,
        /// How.
        verdict: Verdict,
        /// For how long; for ever without.
        #[serde(default)]
        for_s: Option<u64>,
        /// Why.
        #[serde(default)]
        reason: String,
    },
    /// To give or take a moderator's role. Only who made the group may.
    Moderator {
        /// Where.
        group: String,
        /// Who.
        member: String,
        /// Whether they are to have it.
        on: bool,
    },
    /// To change what the group is. Only who made it may.
    Shape {
        /// Where.
        group: String,
        /// Whether nobody needs an invitation.
        #[serde(default)]
        open: Option<bool>,
        /// Whether users may set the topic.
        #[serde(default)]
        open_topic: Option<bool>,
        /// Who may talk.
        #[serde(default)]
        voice: Option<Voice>,
    },
    /// Who is in, by their keys in order.
    Members {
        /// Where.
        group: String,
        /// The last one that was told already.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
    /// What was said lately.
    History {
        /// Where.
        group: String,
        /// How many of the last ones were told already.
        #[serde(default)]
        skip: usize,
    },
    /// To let in whose key was exchanged by other means: a program of 2014, into a classic group. Only who made it may.
    Peer {
        /// Where.
        group: String,
        /// Who.
        member: String,
        /// Where they take datagrams.
        #[serde(default)]
        address: Option<SocketAddr>,
    },
    /// To end the group, for everybody. Only who made it may.
    End {
        /// Which.
        group: String,
    },
    /// To make an invitation. Only who made the group may.
    Invite {
        /// Where.
        group: String,
        /// For how many.
        #[serde(default = "one")]
        uses: u32,
        /// For how long it counts; a day without.
        #[serde(default = "day")]
        for_s: u64,
    },
}

const fn one() -> u32 {
    1
}

const fn day() -> u64 {
    86_400
}

/// What the hub says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Of the request it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// A member, as the hub sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Who.
    pub member: String,
    /// How it is called.
    pub name: String,
    /// How it is.
    pub presence: Presence,
    /// What it may, in a signed group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
}

/// A text that was said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// Unix milliseconds.
    pub at_ms: u64,
    /// Who.
    pub member: String,
    /// How they were called.
    pub name: String,
    /// What.
    pub text: String,
    /// `/me`.
    pub action: bool,
}

/// An answer, or something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ev", rename_all = "snake_case")]
pub enum What {
    /// To `hello`: the groups this user is in.
    Welcome {
        /// Their ids.
        groups: Vec<String>,
    },
    /// Done.
    Ok,
    /// Not done.
    Error {
        /// Why.
        why: String,
    },
    /// To `create` and `join`.
    Entered {
        /// Where.
        group: String,
        /// As whom.
        member: String,
    },
    /// To `invite`: the text to hand on. It holds a secret.
    Invited {
        /// Where.
        group: String,
        /// The text.
        token: String,
    },
    /// To `members`.
    Members {
        /// Where.
        group: String,
        /// They.
        members: Vec<MemberInfo>,
        /// Whether there are more after the last of these.
        more: bool,
        /// What it is about.
        topic: String,
        /// How many neighbours the hub has.
        neighbours: usize,
    },
    /// To `history`, the oldest first.
    History {
        /// Where.
        group: String,
        /// They.
        said: Vec<Said>,
        /// Whether there are more before the first of these.
        more: bool,
    },
    /// Somebody said something, this user included.
    Message {
        /// Where.
        group: String,
        /// Who and what.
        #[serde(flatten)]
        said: Said,
    },
    /// Somebody is in.
    Joined {
        /// Where.
        group: String,
        /// Who.
        member: String,
    },
    /// Somebody is not.
    Left {
        /// Where.
        group: String,
        /// Who.
        member: String,
        /// `quit`, `expired` or `banned`.
        why: String,
    },
    /// Somebody has another name.
    Renamed {
        /// Where.
        group: String,
        /// Who.
        member: String,
        /// How.
        name: String,
    },
    /// Somebody is in another way.
    Presence {
        /// Where.
        group: String,
        /// Who.
        member: String,
        /// How.
        presence: Presence,
    },
    /// It is about something else.
    Topic {
        /// Where.
        group: String,
        /// What.
        text: String,
    },
    /// Somebody may more, or less.
    Role {
        /// Where.
        group: String,
        /// Who.
        member: String,
        /// What.
        role: Role,
    },
    /// Somebody who cannot ban asks for it.
    BanAsked {
        /// Where.
        group: String,
        /// Who.
        member: String,
        /// Whom.
        target: String,
    },
    /// The group has another state.
    State {
        /// Where.
        group: String,
        /// How it is called.
        name: String,
        /// Whether nobody needs an invitation.
        open: bool,
        /// Who may talk.
        voice: Voice,
    },
    /// Who made the group ended it.
    Ended {
        /// Which.
        group: String,
    },
    /// So many neighbours the hub has; 0: cut off.
    Neighbours {
        /// Where.
        group: String,
        /// How many.
        count: usize,
    },
}
