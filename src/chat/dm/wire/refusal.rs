//! Why something was not done (spec 6.7).

/// Why, as a word that stays the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// A field is missing or wrong.
    BadRequest,
    /// A key or hexadecimal digits are.
    Malformed,
    /// A signature does not match.
    BadSignature,
    /// Nobody is logged in on this connection.
    NotLoggedIn,
    /// Somebody is.
    AlreadyLoggedIn,
    /// Nobody has that name.
    NoSuchUser,
    /// Somebody has.
    UsernameTaken,
    /// Nobody may have.
    UsernameInvalid,
    /// There is nothing to answer.
    NoChallenge,
    /// The answer is wrong.
    WrongResponse,
    /// Too many were.
    LockedOut,
    /// There is no such DM for the caller.
    NoDmAccess,
    /// There is no such message for the caller.
    NoMessageAccess,
    /// There is no such reaction of the caller's.
    NoReactionAccess,
    /// The message is somebody else's.
    NotSender,
    /// The two are no friends.
    NotFriends,
    /// They are already.
    AlreadyFriends,
    /// The caller has already asked.
    AlreadyRequested,
    /// The other one has asked.
    RequestWaiting,
    /// Nobody has.
    NoRequest,
    /// They cannot be.
    CannotFriend,
    /// Nobody is his own friend.
    CannotFriendSelf,
    /// There is nobody to be blocked, or he is already.
    CannotBlock,
    /// He is not.
    NotBlocked,
    /// Somebody cannot be in a group with the caller.
    CannotInvite,
    /// Somebody has left no prekey.
    SpkMissing,
    /// Somebody has another prekey by now.
    SpkMismatch,
    /// The two have a DM already.
    DmExists,
    /// There is no such schedule of the caller's.
    NoSchedule,
    /// The caller is in no call there.
    NotInCall,
    /// It is longer than it may be.
    TooLarge,
    /// There are more than there may be.
    TooMany,
    /// It was too soon.
    RateLimited,
    /// There is no such event.
    UnknownEvent,
    /// We failed.
    Internal,
}

impl Code {
    /// All of them.
    pub const ALL: [Self; 35] = [
        Self::BadRequest,
        Self::Malformed,
        Self::BadSignature,
        Self::NotLoggedIn,
        Self::AlreadyLoggedIn,
        Self::NoSuchUser,
        Self::UsernameTaken,
        Self::UsernameInvalid,
        Self::NoChallenge,
        Self::WrongResponse,
        Self::LockedOut,
        Self::NoDmAccess,
        Self::NoMessageAccess,
        Self::NoReactionAccess,
        Self::NotSender,
        Self::NotFriends,
        Self::AlreadyFriends,
        Self::AlreadyRequested,
        Self::RequestWaiting,
        Self::NoRequest,
        Self::CannotFriend,
        Self::CannotFriendSelf,
        Self::CannotBlock,
        Self::NotBlocked,
        Self::CannotInvite,
        Self::SpkMissing,
        Self::SpkMismatch,
        Self::DmExists,
        Self::NoSchedule,
        Self::NotInCall,
        Self::TooLarge,
        Self::TooMany,
        Self::RateLimited,
        Self::UnknownEvent,
        Self::Internal,
    ];

    /// The word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        self.words().0
    }

    /// The code of a word, if there is such a one.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.word() == word)
    }

    /// The word, and the text for people. Neither tells of a block.
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::BadRequest => ("bad_request", "The request has a missing or wrong field."),
            Self::Malformed => ("malformed", "A key or hex value is not valid."),
            Self::BadSignature => ("bad_signature", "The signature does not match."),
            Self::NotLoggedIn => ("not_logged_in", "Log in first."),
            Self::AlreadyLoggedIn => ("already_logged_in", "This connection is already logged in."),
            Self::NoSuchUser => ("no_such_user", "There is no user of that name."),
            Self::UsernameTaken => ("username_taken", "That name is taken."),
            Self::UsernameInvalid => ("username_invalid", "That name is not allowed."),
            Self::NoChallenge => ("no_challenge", "No challenge is open."),
            Self::WrongResponse => ("wrong_response", "The answer is wrong."),
            Self::LockedOut => ("locked_out", "Too many failures, wait a while."),
            Self::NoDmAccess => ("no_dm_access", "You cannot use that DM."),
            Self::NoMessageAccess => ("no_message_access", "You cannot use that message."),
            Self::NoReactionAccess => ("no_reaction_access", "You cannot use that reaction."),
            Self::NotSender => ("not_sender", "Only the sender can change it."),
            Self::NotFriends => ("not_friends", "You are not friends."),
            Self::AlreadyFriends => ("already_friends", "You are already friends."),
            Self::AlreadyRequested => ("already_requested", "You have already sent a request."),
            Self::RequestWaiting => ("request_waiting", "That user has sent you a request: accept it."),
            Self::NoRequest => ("no_request", "There is no request from that user."),
            Self::CannotFriend => ("cannot_friend", "You cannot send that user a request."),
            Self::CannotFriendSelf => ("cannot_friend_self", "You cannot send yourself a request."),
            Self::CannotBlock => ("cannot_block", "You cannot block that user."),
            Self::NotBlocked => ("not_blocked", "That user is not blocked."),
            Self::CannotInvite => ("cannot_invite", "One of these users cannot be invited."),
            Self::SpkMissing => ("spk_missing", "One of these users has no prekey."),
            Self::SpkMismatch => ("spk_mismatch", "One of these users has another prekey by now."),
            Self::DmExists => ("dm_exists", "There is already a DM with that user."),
            Self::NoSchedule => ("no_schedule", "There is no such scheduled message."),
            Self::NotInCall => ("not_in_call", "You are not in the call."),
            Self::TooLarge => ("too_large", "That is too long."),
            Self::TooMany => ("too_many", "There are too many of these."),
            Self::RateLimited => ("rate_limited", "That was too fast, try again later."),
            Self::UnknownEvent => ("unknown_event", "There is no such event."),
            Self::Internal => ("internal", "The server failed."),
        }
    }
}

/// Why, and what is to be said about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub code: Code,
    /// How many failures to log in are left, where that is what it was.
    pub tries_left: Option<u32>,
}

impl From<Code> for Refusal {
    fn from(code: Code) -> Self {
        Self { code, tries_left: None }
    }
}

impl Refusal {
    /// For people.
    #[must_use]
    pub fn text(self) -> String {
        let (_, text) = self.code.words();
        match self.tries_left {
            None => text.to_owned(),
            Some(1) => format!("{text} 1 try left."),
            Some(left) => format!("{text} {left} tries left."),
        }
    }
}
