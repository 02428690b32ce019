//! Bytes to packets and back: 46 kinds, of which 23 are channel messages in a common envelope.
//!
//! Direction is in the types: a client says [`FromClient`], the server says [`ToClient`]. Both are encoded and decoded
//! here, for the server and for clients. Bytes behind a packet's last field are ignored, as the original does; anything
//! else that is not as described is a [`BadPacket`], for which there is no answer but the end of the connection.
//! Numbers that stand for words are carried as they are, known or not; only a channel's type has to be known.
//!
//! | file | holds |
//! |---|---|
//! | [`id`] | accounts, sessions, channels, messages, files |
//! | [`primitive`] | numbers, text, lists, points in time |
//! | [`message`] | the envelope, flags, and what may be said where |
//! | [`content`] | what is inside of each kind of message, when it is not sealed |
//! | [`blob`] | how clients seal it, and with what |
//! | this one | frames and plain packets |

pub mod blob;
pub mod content;
pub mod id;
pub mod message;
pub mod primitive;

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::crypto::Secret;
use crate::wire::bytes::{Reader, Truncated};
use crate::wire::numbers::named_numbers;

pub use content::{Content, Device, FileBlock, Keys};
pub use id::{AccountId, ChannelId, FileId, MessageId, SessionId};
pub use message::{Body, Delivery, Dependency, Kind, MessageFlags, Rule, Upload};
pub use primitive::{DateTime, DateTimeKind, TooLong, WebToken};

pub use crate::wire::skynet::{HEADER, read_header};

use primitive::{Read, Write, newtypes, put_short_string, put_string, short_string, string};

/// Longest payload that a header can announce, in bytes.
pub const PAYLOAD_MAX: usize = 0xff_ffff;
/// Longest payload that is read from somebody who has not logged in: the longest legal one restores a session with
/// 65 535 channels and takes 524 330 bytes.
pub const STRANGERS_PAYLOAD_MAX: usize = 600 * 1024;
/// Longest payload that is read from somebody who has: the longest legal message takes 1 114 125 bytes.
pub const MEMBERS_PAYLOAD_MAX: usize = 1_258_291;

const _: () = assert!(8 + 32 + 8 + 2 + 8 * u16::MAX as usize <= STRANGERS_PAYLOAD_MAX);
const _: () = assert!(22 + 8 + u16::MAX as usize + 16 * u16::MAX as usize <= MEMBERS_PAYLOAD_MAX);

/// Not a packet that may be said in this direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPacket {
    /// It ends before its last field does.
    #[error("truncated packet")]
    Truncated,
    /// Text that is no UTF-8.
    #[error("text that is not UTF-8")]
    Text,
    /// No such packet, or one that only the other side may send.
    #[error("unexpected packet 0x{0:02x}")]
    Unexpected(u8),
    /// No such type of channel.
    #[error("unknown channel type {0}")]
    ChannelType(u8),
    /// A word of a message's content that has no meaning.
    #[error("unknown value {0} in a message")]
    Content(u8),
}

impl From<Truncated> for BadPacket {
    fn from(Truncated: Truncated) -> Self {
        Self::Truncated
    }
}

/// A whole frame of what `payload` writes.
fn frame(id: u8, payload: impl FnOnce(&mut BytesMut) -> Result<(), TooLong>) -> Result<Bytes, TooLong> {
    let mut out = BytesMut::with_capacity(64);
    out.put_bytes(id, 1);
    out.put_bytes(0, HEADER - 1);
    payload(&mut out)?;
    let too_long = TooLong { what: "a payload" };
    let [a, b, c, 0] = u32::try_from(out.len() - HEADER).map_err(|_| too_long)?.to_le_bytes() else {
        return Err(too_long);
    };
    if let Some(header) = out.first_chunk_mut::<HEADER>() {
        *header = [id, a, b, c];
    }
    Ok(out.freeze())
}

/// How a field is encoded: `plain` in the only way its type has.
macro_rules! field {
    (read plain $r:ident) => {
        Read::read($r)?
    };
    (read short $r:ident) => {
        short_string($r)?
    };
    (read long $r:ident) => {
        string($r)?
    };
    (write plain $value:ident $out:ident) => {
        $value.write($out)?
    };
    (write short $value:ident $out:ident) => {
        put_short_string($out, $value)?
    };
    (write long $value:ident $out:ident) => {
        put_string($out, $value)?
    };
}

/// An enum of the packets of one direction, each with its id and its fields in order, and the messages.
macro_rules! packets {
    (
        $(#[$doc:meta])* pub enum $enum:ident, messages $message:ident;
        $(
            $(#[$packet_doc:meta])*
            $id:literal $packet:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty as $codec:tt,)* }
        )*
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $enum {
            $($(#[$packet_doc])* $packet { $($(#[$field_doc])* $field: $type,)* },)*
            /// A channel message.
            Message($message),
        }

        impl $enum {
            /// The ids of the plain packets of this direction.
            pub const PLAIN: &'static [u8] = &[$($id),*];

            /// The number it travels under.
            #[must_use]
            pub const fn id(&self) -> u8 {
                match self {
                    $(Self::$packet { .. } => $id,)*
                    Self::Message(message) => message.body.kind.id(),
                }
            }

            /// Reads the payload of a frame.
            ///
            /// # Errors
            /// [`BadPacket`] says what is wrong with it.
            pub fn decode(id: u8, payload: &[u8]) -> Result<Self, BadPacket> {
                let r = &mut Reader::new(payload);
                match id {
                    $($id => Ok(Self::$packet { $($field: field!(read $codec r),)* }),)*
                    id => {
                        let kind = Kind::from_id(id).ok_or(BadPacket::Unexpected(id))?;
                        $message::decode(kind, r).map(Self::Message)
                    }
                }
            }

            /// Writes a whole frame.
            ///
            /// # Errors
            /// [`TooLong`] when something in it is longer than the layout allows.
            pub fn encode(&self) -> Result<Bytes, TooLong> {
                frame(self.id(), |out| {
                    match self {
                        $(Self::$packet { $($field,)* } => {
                            let _ = &out;
                            $(field!(write $codec $field out);)*
                        })*
                        Self::Message(message) => message.encode_into(out)?,
                    }
                    Ok(())
                })
            }
        }
    };
}

named_numbers! {
    /// How creating an account ended.
    pub struct CreateAccountStatus;

    SUCCESS = 0 "success";
    MAIL_RESENT = 1 "mail resent";
    ACCOUNT_NAME_TAKEN = 2 "account name taken";
    INVALID_ACCOUNT_NAME = 3 "invalid account name";
}

named_numbers! {
    /// How deleting an account ended.
    pub struct DeleteAccountStatus;

    SUCCESS = 0 "success";
    INVALID_CREDENTIALS = 1 "invalid credentials";
}

named_numbers! {
    /// How logging in ended.
    pub struct CreateSessionStatus;

    SUCCESS = 0 "success";
    INVALID_CREDENTIALS = 1 "invalid credentials";
    INVALID_FCM_REGISTRATION_TOKEN = 2 "invalid FCM registration token";
    UNCONFIRMED_ACCOUNT = 3 "unconfirmed account";
}

named_numbers! {
    /// How coming back to a session ended.
    pub struct RestoreSessionStatus;

    SUCCESS = 0 "success";
    INVALID_SESSION = 1 "invalid session";
}

named_numbers! {
    /// How creating a channel ended.
    pub struct CreateChannelStatus;

    SUCCESS = 0 "success";
    ALREADY_EXISTS = 1 "already exists";
    INVALID_COUNTERPART = 2 "invalid counterpart";
    BLOCKED = 3 "blocked";
}

named_numbers! {
    /// What became of a message.
    pub struct MessageSendStatus;

    SUCCESS = 0 "success";
    FILE_NOT_FOUND = 1 "file not found";
    ACCESS_DENIED = 2 "access denied";
    CONCURRENT_CHANGES = 3 "concurrent changes";
}

named_numbers! {
    /// What somebody is doing in a channel.
    pub struct ChannelAction;

    NONE = 0 "none";
    TYPING = 1 "typing";
    RECORDING_AUDIO = 2 "recording audio";
}

named_numbers! {
    /// Whether somebody is there.
    pub struct OnlineState;

    INACTIVE = 0 "inactive";
    ACTIVE = 1 "active";
}

newtypes! {
    CreateAccountStatus DeleteAccountStatus CreateSessionStatus RestoreSessionStatus CreateChannelStatus
    MessageSendStatus ChannelAction OnlineState
}

/// What a channel is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum ChannelType {
    /// Between the devices of an account.
    Loopback = 0,
    /// From an account to everybody it has a direct channel with.
    AccountData = 1,
    /// Between two accounts.
    Direct = 2,
    /// Between many.
    Group = 3,
    /// From an account to those it chose.
    ProfileData = 4,
}

impl ChannelType {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Loopback, Self::AccountData, Self::Direct, Self::Group, Self::ProfileData];

    /// The type of this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|it| *it as u8 == number)
    }
}

impl Read for ChannelType {
    fn read(r: &mut Reader<'_>) -> Result<Self, BadPacket> {
        let number = r.u8()?;
        Self::from_number(number).ok_or(BadPacket::ChannelType(number))
    }
}

impl Write for ChannelType {
    fn write(&self, out: &mut BytesMut) -> Result<(), TooLong> {
        (*self as u8).write(out)
    }
}

/// What the server thinks of a client's version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectionState {
    /// Good.
    Valid,
    /// Good enough; there is a newer one.
    CanUpgrade(Release),
    /// Too old: nothing more is accepted.
    MustUpgrade(Release),
}

/// A version of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// For programs to compare.
    pub code: i32,
    /// For people; at most 255 bytes.
    pub name: String,
}

impl Read for ConnectionState {
    fn read(r: &mut Reader<'_>) -> Result<Self, BadPacket> {
        let state = r.u8()?;
        let mut release = || Ok::<_, BadPacket>(Release { code: Read::read(r)?, name: short_string(r)? });
        match state {
            0 => Ok(Self::Valid),
            1 => release().map(Self::CanUpgrade),
            2 => release().map(Self::MustUpgrade),
            unknown => Err(BadPacket::Content(unknown)),
        }
    }
}

impl Write for ConnectionState {
    fn write(&self, out: &mut BytesMut) -> Result<(), TooLong> {
        let (state, release) = match self {
            Self::Valid => return 0_u8.write(out),
            Self::CanUpgrade(release) => (1_u8, release),
            Self::MustUpgrade(release) => (2, release),
        };
        state.write(out)?;
        release.code.write(out)?;
        put_short_string(out, &release.name)
    }
}

/// The channel a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WantedChannel {
    /// With this account.
    Direct(AccountId),
    /// Of another type; only [`ChannelType::Group`] and [`ChannelType::ProfileData`] are for clients to create.
    Other(ChannelType),
}

impl Read for WantedChannel {
    fn read(r: &mut Reader<'_>) -> Result<Self, BadPacket> {
        match ChannelType::read(r)? {
            ChannelType::Direct => Read::read(r).map(Self::Direct),
            other => Ok(Self::Other(other)),
        }
    }
}

impl Write for WantedChannel {
    fn write(&self, out: &mut BytesMut) -> Result<(), TooLong> {
        match self {
            Self::Direct(counterpart) => {
                ChannelType::Direct.write(out)?;
                counterpart.write(out)
            }
            Self::Other(channel_type) => channel_type.write(out),
        }
    }
}

/// A channel that a client is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announced {
    /// What it is for.
    pub channel_type: ChannelType,
    /// Who created it; none when the account was deleted.
    pub owner: AccountId,
    /// When.
    pub created: DateTime,
    /// Of a direct channel: the other one, from the receiver's point of view.
    pub counterpart: AccountId,
}

impl Read for Announced {
    fn read(r: &mut Reader<'_>) -> Result<Self, BadPacket> {
        let (channel_type, owner, created) = (Read::read(r)?, Read::read(r)?, Read::read(r)?);
        let counterpart = if channel_type == ChannelType::Direct { Read::read(r)? } else { AccountId::NONE };
        Ok(Self { channel_type, owner, created, counterpart })
    }
}

impl Write for Announced {
    fn write(&self, out: &mut BytesMut) -> Result<(), TooLong> {
        self.channel_type.write(out)?;
        self.owner.write(out)?;
        self.created.write(out)?;
        if self.channel_type == ChannelType::Direct { self.counterpart.write(out) } else { Ok(()) }
    }
}

/// What a session is doing, and where: the channel is there unless it is doing nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Doing {
    /// What.
    pub action: ChannelAction,
    /// Where; none when nothing is done.
    pub channel: ChannelId,
}

impl Default for ChannelAction {
    fn default() -> Self {
        Self::NONE
    }
}

impl Read for Doing {
    fn read(r: &mut Reader<'_>) -> Result<Self, BadPacket> {
        let action = Read::read(r)?;
        let channel = if action == ChannelAction::NONE { ChannelId::NONE } else { Read::read(r)? };
        Ok(Self { action, channel })
    }
}

impl Write for Doing {
    fn write(&self, out: &mut BytesMut) -> Result<(), TooLong> {
        self.action.write(out)?;
        if self.action == ChannelAction::NONE { Ok(()) } else { self.channel.write(out) }
    }
}

/// An account that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Who.
    pub account: AccountId,
    /// Its name; at most 255 bytes.
    pub name: String,
}

impl Read for Found {
    fn read(r: &mut Reader<'_>) -> Result<Self, BadPacket> {
        Ok(Self { account: Read::read(r)?, name: short_string(r)? })
    }
}

impl Write for Found {
    fn write(&self, out: &mut BytesMut) -> Result<(), TooLong> {
        self.account.write(out)?;
        put_short_string(out, &self.name)
    }
}

/// One of the account's own sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedSession {
    /// Which.
    pub session: SessionId,
    /// When it last logged in or came back.
    pub last_connected: DateTime,
    /// The version that it said then.
    pub last_version: i32,
}

impl Read for ListedSession {
    fn read(r: &mut Reader<'_>) -> Result<Self, BadPacket> {
        Ok(Self { session: Read::read(r)?, last_connected: Read::read(r)?, last_version: Read::read(r)? })
    }
}

impl Write for ListedSession {
    fn write(&self, out: &mut BytesMut) -> Result<(), TooLong> {
        self.session.write(out)?;
        self.last_connected.write(out)?;
        self.last_version.write(out)
    }
}

packets! {
    /// What a client says.
    pub enum FromClient, messages Upload;

    /// The first packet: which client this is.
    0x00 ConnectionHandshake {
        /// Of the protocol; the fifth version's second revision has number 3 here.
        protocol_version: i32 as plain,
        /// The platform, as `android/de.vectordata.skynet`.
        application: String as short,
        /// The client's own version.
        version_code: i32 as plain,
    }
    /// Registers a name.
    0x02 CreateAccount {
        /// A mail address.
        name: String as short,
        /// What the password became.
        key_hash: Secret<32> as plain,
    }
    /// Deletes the own account for good.
    0x04 DeleteAccount {
        /// What the password became.
        key_hash: Secret<32> as plain,
    }
    /// Logs in as a new device.
    0x06 CreateSession {
        /// A mail address.
        name: String as short,
        /// What the password became.
        key_hash: Secret<32> as plain,
        /// Where to wake this device; empty for nowhere.
        push_token: String as long,
    }
    /// Comes back to a session.
    0x08 RestoreSession {
        /// Which.
        session: SessionId as plain,
        /// Proves that it is the client's.
        token: Secret<32> as plain,
        /// The newest message it has.
        last_message: MessageId as plain,
        /// The channels it knows.
        channels: Vec<ChannelId> as plain,
    }
    /// Creates a channel.
    0x0a CreateChannel {
        /// What the client calls it until it has an id.
        temp: ChannelId as plain,
        /// What it is for.
        wanted: WantedChannel as plain,
    }
    /// Asks for messages after one and before another.
    0x0e RequestMessages {
        /// Where; none for all channels.
        channel: ChannelId as plain,
        /// 0 for no bound.
        after: MessageId as plain,
        /// 0 for no bound.
        before: MessageId as plain,
        /// 0 for no limit.
        max_count: u16 as plain,
    }
    /// Looks for accounts.
    0x2d SearchAccount {
        /// A part of what they are called.
        query: String as short,
    }
    /// Asks for the account's own sessions.
    0x32 DeviceListRequest {}
    /// Says whether somebody is looking, and at what.
    0x34 SetClientState {
        /// Whether somebody is there.
        online: OnlineState as plain,
        /// What is being done.
        doing: Doing as plain,
    }
}

packets! {
    /// What the server says.
    pub enum ToClient, messages Delivery;

    /// Answers a handshake.
    0x01 ConnectionResponse {
        /// What the server thinks of the client's version.
        state: ConnectionState as plain,
    }
    /// Answers a registration.
    0x03 CreateAccountResponse {
        /// How it ended.
        status: CreateAccountStatus as plain,
    }
    /// Answers a deletion.
    0x05 DeleteAccountResponse {
        /// How it ended.
        status: DeleteAccountStatus as plain,
    }
    /// Answers a login. When that failed, everything else is zero.
    0x07 CreateSessionResponse {
        /// How it ended.
        status: CreateSessionStatus as plain,
        /// Who the client is.
        account: AccountId as plain,
        /// Which of its devices.
        session: SessionId as plain,
        /// What it comes back with.
        token: Secret<32> as plain,
        /// What it shows to the file API; printable.
        web_token: WebToken as plain,
    }
    /// Answers a return.
    0x09 RestoreSessionResponse {
        /// How it ended.
        status: RestoreSessionStatus as plain,
    }
    /// There is a channel.
    0x0a CreateChannel {
        /// Which.
        channel: ChannelId as plain,
        /// What it is.
        announced: Announced as plain,
    }
    /// A sync begins.
    0x0b SyncStarted {
        /// How many messages follow, or -1 when that is not known.
        min_count: i32 as plain,
    }
    /// Answers a message.
    0x0c ChannelMessageResponse {
        /// Where it was sent.
        channel: ChannelId as plain,
        /// What the client called it.
        temp: MessageId as plain,
        /// What became of it.
        status: MessageSendStatus as plain,
        /// Its number; 0 when it was not taken.
        message: MessageId as plain,
        /// Messages with a smaller number that are still to come.
        skip_count: i64 as plain,
        /// When it was taken.
        dispatched: DateTime as plain,
    }
    /// A channel is none of the client's any more.
    0x0d DeleteChannel {
        /// Which.
        channel: ChannelId as plain,
    }
    /// A sync ends.
    0x0f SyncFinished {}
    /// What somebody is doing in a channel.
    0x2c ChannelAction {
        /// Where.
        channel: ChannelId as plain,
        /// Who.
        account: AccountId as plain,
        /// What.
        action: ChannelAction as plain,
    }
    /// Answers a search.
    0x2e SearchAccountResponse {
        /// Who was found.
        found: Vec<Found> as plain,
    }
    /// Answers the creation of a channel. When that failed, the rest is zero, unless there was such a channel.
    0x2f CreateChannelResponse {
        /// What the client called it.
        temp: ChannelId as plain,
        /// How it ended.
        status: CreateChannelStatus as plain,
        /// Its id.
        channel: ChannelId as plain,
        /// When it was created.
        created: DateTime as plain,
    }
    /// The account's own sessions.
    0x33 DeviceListResponse {
        /// In any order.
        sessions: Vec<ListedSession> as plain,
    }
}

#[cfg(test)]
mod tests;
