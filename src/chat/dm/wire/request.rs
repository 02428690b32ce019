//! Requests: the events of clients, read (spec 2.1-2.5).
//!
//! What can be seen without looking anything up is refused here: forms, sizes, ranges, keys that are none.

use serde_json::value::RawValue;

use super::args::{Args, hex_of, number, text};
use super::objects::{Key, Signature, Status};
use super::refusal::Code;
use super::{
    BIOGRAPHY_MAX, DELAY_MAX_S, DM_NAME_MAX, MEMBERS_MAX, MESSAGE_MAX, OWN_STORAGE_MAX, PAGE, PAGE_MAX,
    PROFILE_PICTURE_MAX, REACTION_MAX, stamp,
};
use crate::chat::dm::crypto::PublicKey;

/// A prekey and its signature by the identity key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prekey {
    /// The prekey.
    pub spk: PublicKey,
    /// The signature.
    pub sig: Signature,
}

/// What is to change of one's own profile. What is not there stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProfileChange {
    /// Another prekey; `Some(None)` withdraws it.
    pub prekey: Option<Option<Prekey>>,
    /// What others see.
    pub status: Option<Status>,
    /// About the user.
    pub biography: Option<String>,
    /// Whatever clients make of it.
    pub profile_picture: Option<String>,
    /// Whatever the client keeps here.
    pub own_storage: Option<String>,
}

/// With what one who is invited computes the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    /// A key made for this.
    pub ek: PublicKey,
    /// The prekey that was used.
    pub spk: Key,
    /// The creator's signature over it.
    pub setup_sig: Option<Signature>,
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the parameters of the protocol's tables, under their names there")]
pub enum Request {
    /// A challenge for this name.
    Login { username: String },
    /// The answer to it: 32 bytes (v1) or 64 (EXT-1).
    LoginChallengeResponse { response: Vec<u8> },
    /// A new account.
    Register { username: String, public_key: PublicKey, prekey: Prekey, own_storage: String },
    /// Whether a name is not available.
    UsernameExists { username: String },
    /// Somebody.
    GetUser { username: String },
    /// Oneself.
    GetFullUser,
    /// Everybody.
    GetUserList,
    /// A change of one's own profile.
    SetUser(ProfileChange),
    /// A DM with others.
    CreateDm { usernames: Vec<String>, messages: Vec<Invitation>, key_tree: Vec<PublicKey> },
    /// One's own DMs.
    GetDms,
    /// One of them.
    GetDm { id: i64 },
    /// Another name for it, `Some(None)` for none.
    SetDm { id: i64, name: Option<Option<String>> },
    /// To be in it no longer.
    LeaveDm { id: i64 },
    /// To say something there; delays in seconds, 0 for none.
    SendMessage { id: i64, message: Vec<u8>, signature: Signature, schedule: i64, delete: i64 },
    /// One message.
    GetMessage { id: i64 },
    /// Messages before a time, in microseconds since the Unix epoch; without, the newest.
    GetMessageHistory { id: i64, cursor: Option<i64>, count: i64 },
    /// The pinned ones.
    GetPinned { id: i64 },
    /// A change of a message.
    SetMessage { id: i64, message: Option<(Vec<u8>, Signature)>, pinned: Option<bool> },
    /// A message not to be sent after all.
    CancelScheduledMessage { dm_id: i64, schedule_id: i64 },
    /// A reaction to a message.
    AddReaction { id: i64, reaction: Vec<u8>, signature: Signature },
    /// One less.
    RemoveReaction { id: i64 },
    /// The others to know that one types.
    PingTyping { id: i64 },
    /// To be somebody's friend.
    SendFriendRequest { username: String },
    /// Who wants to be.
    GetFriendRequests,
    /// Whom one has asked.
    GetOutgoingRequests,
    /// An answer to a request.
    AckFriendRequest { username: String, accept: bool },
    /// To be friends no longer.
    Unfriend { username: String },
    /// One's friends.
    GetFriends,
    /// To hear nothing of somebody.
    BlockUser { username: String },
    /// To hear of him again.
    Unblock { username: String },
    /// Whom one has blocked.
    GetBlocked,
    /// To be in the call of a DM, there to be found under `uuid`.
    JoinCall { id: i64, uuid: String },
    /// To be in it no longer.
    LeaveCall { id: i64 },
}

impl Request {
    /// The names of all events, the alias too.
    pub const NAMES: [&'static str; 34] = [
        "login",
        "login_challenge_response",
        "register",
        "username_exists",
        "get_user",
        "get_full_user",
        "get_user_list",
        "set_user",
        "create_dm",
        "get_dms",
        "get_dm",
        "set_dm",
        "leave_dm",
        "send_message",
        "get_message",
        "get_message_history",
        "get_pinned",
        "set_message",
        "cancel_scheduled_message",
        "add_reaction",
        "remove_reaction",
        "ping_typing",
        "send_friend_request",
        "get_friend_requests",
        "get_outgoing_requests",
        "ack_friend_request",
        "unfriend",
        "get_friends",
        "block_user",
        "unblock",
        "unblock_user",
        "get_blocked",
        "join_call",
        "leave_call",
    ];

    /// Reads the event called `name`, whose whole array is `event`.
    ///
    /// # Errors
    /// The [`Code`] it is refused with.
    pub fn read(name: &str, event: &str) -> Result<Self, Code> {
        if !Self::NAMES.contains(&name) {
            return Err(Code::UnknownEvent);
        }
        let args = Args::read(event)?;
        let username = || args.text(0, "username");
        let id = || args.number(0, "id");
        Ok(match name {
            "login" => Self::Login { username: username()? },
            "login_challenge_response" => {
                let response = args.bytes(0, "response", 64)?;
                if !matches!(response.len(), 32 | 64) {
                    return Err(Code::Malformed);
                }
                Self::LoginChallengeResponse { response }
            }
            "register" => {
                let (public_key, spk) = (args.hex(1, "public_key")?, point(args.hex(2, "spk")?)?);
                let prekey = Prekey { spk, sig: args.hex(3, "sig")? };
                let own_storage = bounded(args.text(4, "own_storage")?, OWN_STORAGE_MAX)?;
                Self::Register { username: username()?, public_key: point(public_key)?, prekey, own_storage }
            }
            "username_exists" => Self::UsernameExists { username: username()? },
            "get_user" => Self::GetUser { username: username()? },
            "get_full_user" => Self::GetFullUser,
            "get_user_list" => Self::GetUserList,
            "set_user" => Self::SetUser(profile_change(&args)?),
            "create_dm" => Self::create_dm(&args)?,
            "get_dms" => Self::GetDms,
            "get_dm" => Self::GetDm { id: id()? },
            "set_dm" => {
                let name =
                    args.given(1, "name").map(|it| if it.get() == "null" { Ok(String::new()) } else { text(it) });
                let name = name.transpose()?;
                if name.as_ref().is_some_and(|name| name.chars().count() > DM_NAME_MAX) {
                    return Err(Code::TooLarge);
                }
                Self::SetDm { id: id()?, name: name.map(|name| Some(name).filter(|name| !name.is_empty())) }
            }
            "leave_dm" => Self::LeaveDm { id: id()? },
            "send_message" => {
                let delay = |at, name| match args.some(at, name).map_or(Ok(0), number)? {
                    delay @ 0..=DELAY_MAX_S => Ok(delay),
                    _ => Err(Code::BadRequest),
                };
                Self::SendMessage {
                    id: id()?,
                    message: args.bytes(1, "message", MESSAGE_MAX)?,
                    signature: args.hex(2, "signature")?,
                    schedule: delay(3, "schedule")?,
                    delete: delay(4, "delete")?,
                }
            }
            "get_message" => Self::GetMessage { id: id()? },
            "get_message_history" => {
                let cursor = args.some(1, "cursor").map(text).transpose()?;
                let cursor = cursor.map(|text| stamp::read(&text).ok_or(Code::BadRequest)).transpose()?;
                let count = args.some(2, "count").or_else(|| args.some(2, "limit")).map_or(Ok(PAGE), number)?;
                if !(1..=PAGE_MAX).contains(&count) {
                    return Err(Code::BadRequest);
                }
                Self::GetMessageHistory { id: id()?, cursor, count }
            }
            "get_pinned" => Self::GetPinned { id: id()? },
            "set_message" => {
                let message = match (args.some(1, "message"), args.some(2, "signature")) {
                    (None, None) => None,
                    (Some(_), Some(_)) => Some((args.bytes(1, "message", MESSAGE_MAX)?, args.hex(2, "signature")?)),
                    _ => return Err(Code::BadRequest),
                };
                let pinned = args.some(3, "pinned").map(|_| args.yes(3, "pinned")).transpose()?;
                Self::SetMessage { id: id()?, message, pinned }
            }
            "cancel_scheduled_message" => Self::CancelScheduledMessage {
                dm_id: args.number(0, "dm_id")?,
                schedule_id: args.number(1, "schedule_id")?,
            },
            "add_reaction" => Self::AddReaction {
                id: id()?,
                reaction: args.bytes(1, "reaction", REACTION_MAX)?,
                signature: args.hex(2, "signature")?,
            },
            "remove_reaction" => Self::RemoveReaction { id: id()? },
            "ping_typing" => Self::PingTyping { id: id()? },
            "send_friend_request" => Self::SendFriendRequest { username: username()? },
            "get_friend_requests" => Self::GetFriendRequests,
            "get_outgoing_requests" => Self::GetOutgoingRequests,
            "ack_friend_request" => Self::AckFriendRequest { username: username()?, accept: args.yes(1, "accept")? },
            "unfriend" => Self::Unfriend { username: username()? },
            "get_friends" => Self::GetFriends,
            "block_user" => Self::BlockUser { username: username()? },
            "unblock" | "unblock_user" => Self::Unblock { username: username()? },
            "get_blocked" => Self::GetBlocked,
            "join_call" => {
                let uuid = args.text(1, "uuid")?;
                let is_word = |it: u8| it.is_ascii_alphanumeric() || it == b'_' || it == b'-';
                if !(1..=64).contains(&uuid.len()) || !uuid.bytes().all(is_word) {
                    return Err(Code::BadRequest);
                }
                Self::JoinCall { id: id()?, uuid }
            }
            "leave_call" => Self::LeaveCall { id: id()? },
            _ => return Err(Code::UnknownEvent),
        })
    }

    /// Whether it can be asked for by somebody who has not logged in.
    #[must_use]
    pub const fn is_for_strangers(&self) -> bool {
        matches!(
            self,
            Self::Login { .. }
                | Self::LoginChallengeResponse { .. }
                | Self::Register { .. }
                | Self::UsernameExists { .. }
        )
    }

    fn create_dm(args: &Args<'_>) -> Result<Self, Code> {
        let usernames = args.list(0, "usernames")?;
        let messages = args.list(1, "messages")?;
        let key_tree = args.list(2, "key_tree")?;
        let is_distinct = |names: &[String]| {
            let mut sorted: Vec<_> = names.iter().collect();
            sorted.sort_unstable();
            sorted.windows(2).all(|two| two.first() != two.last())
        };
        let leaves = usernames.len().saturating_add(1).checked_next_power_of_two().unwrap_or(usize::MAX);
        if usernames.len() >= MEMBERS_MAX {
            return Err(Code::TooMany);
        }
        if usernames.is_empty() || messages.len() != usernames.len() || key_tree.len() != 2 * leaves - 2 {
            return Err(Code::BadRequest);
        }
        let usernames = usernames.into_iter().map(text).collect::<Result<Vec<_>, _>>()?;
        if !is_distinct(&usernames) {
            return Err(Code::BadRequest);
        }
        let messages = messages.into_iter().map(invitation).collect::<Result<_, _>>()?;
        let key_tree = key_tree.into_iter().map(|key| point(hex_of(key)?)).collect::<Result<_, _>>()?;
        Ok(Self::CreateDm { usernames, messages, key_tree })
    }
}

/// What an event is about that cannot be read: to be looked at before the rest of it (spec 2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    /// Nothing in particular, or that cannot be read, either.
    Nothing,
    /// A DM, and whether something is to be said there.
    Dm(i64, bool),
    /// A message.
    Message(i64),
    /// Somebody who is to have an account.
    Name(String),
}

impl About {
    /// What the event called `name`, whose whole array is `event`, is about.
    #[must_use]
    pub fn of(name: &str, event: &str) -> Self {
        let Ok(args) = Args::read(event) else { return Self::Nothing };
        let number = |about: fn(i64) -> Self| args.number(0, "id").map_or(Self::Nothing, about);
        match name {
            "get_dm" | "set_dm" | "leave_dm" | "get_message_history" | "get_pinned" => number(|id| Self::Dm(id, false)),
            "send_message" | "join_call" => number(|id| Self::Dm(id, true)),
            "get_message" | "set_message" | "add_reaction" => number(Self::Message),
            "register" => args.text(0, "username").map_or(Self::Nothing, Self::Name),
            _ => Self::Nothing,
        }
    }
}

fn invitation(json: &RawValue) -> Result<Invitation, Code> {
    if !json.get().starts_with('{') {
        return Err(Code::BadRequest);
    }
    let args = Args::object(json.get())?;
    let setup_sig = args.some(2, "setup_sig").map(hex_of).transpose()?;
    Ok(Invitation { ek: point(args.hex(0, "ek")?)?, spk: args.hex(1, "spk")?, setup_sig })
}

fn profile_change(args: &Args<'_>) -> Result<ProfileChange, Code> {
    let prekey = match (args.given(0, "spk"), args.given(1, "sig")) {
        (None, None) => None,
        (Some(spk), Some(sig)) => match (spk.get() == "null", sig.get() == "null") {
            (true, true) => Some(None),
            (false, false) => Some(Some(Prekey { spk: point(hex_of(spk)?)?, sig: hex_of(sig)? })),
            _ => return Err(Code::BadRequest),
        },
        _ => return Err(Code::BadRequest),
    };
    let status = args.some(2, "status").map(text).transpose()?;
    let biography = args.some(3, "biography").map(text).transpose()?;
    if biography.as_ref().is_some_and(|biography| biography.chars().count() > BIOGRAPHY_MAX) {
        return Err(Code::TooLarge);
    }
    let text_within =
        |at, name, max| args.some(at, name).map(|value| text(value).and_then(|it| bounded(it, max))).transpose();
    Ok(ProfileChange {
        prekey,
        status: status.map(|name| Status::of(&name).ok_or(Code::BadRequest)).transpose()?,
        biography,
        profile_picture: text_within(4, "profile_picture", PROFILE_PICTURE_MAX)?,
        own_storage: text_within(5, "own_storage", OWN_STORAGE_MAX)?,
    })
}

fn bounded(text: String, max: usize) -> Result<String, Code> {
    if text.chars().count() > max { Err(Code::TooLarge) } else { Ok(text) }
}

/// A key that is a point one may compute with (spec 5.3).
fn point(key: Key) -> Result<PublicKey, Code> {
    PublicKey::decode(&key).ok_or(Code::Malformed)
}
