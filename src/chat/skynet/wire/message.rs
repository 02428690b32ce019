//! Channel messages: the envelope that all 23 kinds share (spec 2.3), and the table of what may be said where (2.4).

use std::fmt;

use bytes::{Bytes, BytesMut};

use super::primitive::{Read, Write, byte_array, put_byte_array};
use super::{AccountId, BadPacket, ChannelId, ChannelType, DateTime, FileId, MessageId, TooLong};
use crate::wire::bytes::Reader;

use ChannelType::{AccountData, Direct, Group, Loopback, ProfileData};

/// Six bits of a message; the others have to be zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct MessageFlags(pub u8);

impl MessageFlags {
    /// None.
    pub const NONE: Self = Self(0);
    /// For the sender's own devices alone.
    pub const LOOPBACK: Self = Self(1);
    /// The content is in clear.
    pub const UNENCRYPTED: Self = Self(2);
    /// Not for the sender's own devices.
    pub const NO_SENDER_SYNC: Self = Self(4);
    /// A file block follows the content.
    pub const MEDIA: Self = Self(8);
    /// The file is not in the message, but beside it.
    pub const EXTERNAL_FILE: Self = Self(16);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of these are set.
    #[must_use]
    pub const fn has(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// The rule of spec 2.3, and that there is no file beside a message without a block that describes it.
    #[must_use]
    pub const fn obey(self, rule: &Rule) -> bool {
        self.has(rule.required) && rule.allowed.has(self) && (!self.has(Self::EXTERNAL_FILE) || self.has(Self::MEDIA))
    }
}

impl fmt::Debug for MessageFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageFlags(0x{:02x})", self.0)
    }
}

/// What may be said of a kind of message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Flags that must be set.
    pub required: MessageFlags,
    /// Flags that may be set.
    pub allowed: MessageFlags,
    /// Whether clients send it; otherwise only the server does.
    pub from_client: bool,
    /// Where it may be said.
    pub channels: &'static [ChannelType],
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $id:literal $kind:ident $required:literal / $allowed:literal $from:ident [$($channel:ident)*];)*) => {
        /// The 23 kinds of messages.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Kind {
            $($(#[$doc])* $kind = $id,)*
        }

        impl Kind {
            /// All of them, by number.
            pub const ALL: &'static [Self] = &[$(Self::$kind),*];

            /// The kind of this packet id.
            #[must_use]
            pub const fn from_id(id: u8) -> Option<Self> {
                match id {
                    $($id => Some(Self::$kind),)*
                    _ => None,
                }
            }

            /// The packet id it travels under.
            #[must_use]
            pub const fn id(self) -> u8 {
                self as u8
            }

            /// What may be said of it.
            #[must_use]
            pub const fn rule(self) -> Rule {
                match self {
                    $(Self::$kind => Rule {
                        required: MessageFlags($required),
                        allowed: MessageFlags($allowed),
                        from_client: kinds!($from),
                        channels: &[$($channel),*],
                    },)*
                }
            }
        }
    };
    (client) => { true };
    (server) => { false };
}

// Flags: 1 loopback, 2 unencrypted, 4 no sender sync, 8 media, 16 external file.
kinds! {
    /// The account wants another name.
    0x13 QueueMailAddressChange 0x03 / 0x03 client [Loopback];
    /// The account's name.
    0x14 MailAddress 0x02 / 0x02 server [AccountData];
    /// The account's password became another.
    0x15 PasswordUpdate 0x03 / 0x03 client [Loopback];
    /// The account's own keys.
    0x17 PrivateKeys 0x01 / 0x01 client [Loopback];
    /// Their public halves.
    0x18 PublicKeys 0x02 / 0x02 client [AccountData];
    /// The channel takes fewer messages from now on, or all again.
    0x19 ArchiveChannel 0x02 / 0x02 client [Direct Group ProfileData];
    /// The counterpart's keys were compared.
    0x1a VerifiedKeys 0x01 / 0x01 client [Direct];
    /// The keys of the two changed.
    0x1b DirectChannelUpdate 0x02 / 0x02 server [Direct];
    /// How the counterpart is shown.
    0x1c DirectChannelCustomization 0x01 / 0x01 client [Direct];
    /// The key of a group, for one of its members.
    0x1d GroupChannelKeyNotify 0x00 / 0x04 client [Direct];
    /// Who is in the group.
    0x1e GroupChannelUpdate 0x02 / 0x02 client [Group ProfileData];
    /// What people say.
    0x20 ChatMessage 0x00 / 0x18 client [Direct Group];
    /// Edits or deletes a message.
    0x21 MessageOverride 0x00 / 0x00 client [Direct Group ProfileData];
    /// A message has arrived.
    0x22 MessageReceived 0x02 / 0x02 client [Direct Group ProfileData];
    /// A message was read.
    0x23 MessageRead 0x02 / 0x02 client [Direct Group ProfileData];
    /// What somebody says to everybody who follows.
    0x24 DaystreamMessage 0x00 / 0x18 client [ProfileData];
    /// What somebody or something is called.
    0x25 Nickname 0x00 / 0x02 client [ProfileData AccountData Group];
    /// What somebody says about themselves.
    0x26 Bio 0x00 / 0x02 client [ProfileData AccountData Group];
    /// What somebody or something looks like.
    0x27 ProfileImage 0x00 / 0x1a client [ProfileData AccountData Group];
    /// Whom the account does not want to hear.
    0x28 BlockList 0x03 / 0x03 client [Loopback];
    /// The account's sessions.
    0x29 DeviceList 0x03 / 0x03 server [Loopback];
    /// What is behind the messages.
    0x2a BackgroundImage 0x01 / 0x19 client [Direct Group ProfileData Loopback];
    /// Whether somebody of the account is there.
    0x2b OnlineState 0x06 / 0x06 server [AccountData];
}

impl Kind {
    /// Whether only the newest of its kind is kept in a channel (spec 2.5, KeepLast); for the public profile separately for
    /// what is sealed and what is not.
    #[must_use]
    pub const fn keep_last(self) -> bool {
        matches!(
            self,
            Self::Nickname | Self::Bio | Self::ProfileImage | Self::BlockList | Self::DeviceList | Self::OnlineState
        )
    }
}

/// A message that this one builds on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Dependency {
    /// For whom; none for everybody.
    pub account: AccountId,
    /// Which.
    pub message: MessageId,
}

impl Read for Dependency {
    fn read(r: &mut Reader<'_>) -> Result<Self, BadPacket> {
        Ok(Self { account: Read::read(r)?, message: Read::read(r)? })
    }
}

impl Write for Dependency {
    fn write(&self, out: &mut BytesMut) -> Result<(), TooLong> {
        self.account.write(out)?;
        self.message.write(out)
    }
}

/// What a message is, whichever way it goes. The content prints as its length.
#[derive(Clone, PartialEq, Eq)]
pub struct Body {
    /// Of the packet; clients send 1.
    pub version: u8,
    /// What it is.
    pub kind: Kind,
    /// How it is to be treated.
    pub flags: MessageFlags,
    /// The file beside it; written only with [`MessageFlags::EXTERNAL_FILE`].
    pub file: FileId,
    /// In clear or sealed; at most 65 535 bytes. See [`super::Content`].
    pub content: Bytes,
    /// What it builds on.
    pub dependencies: Vec<Dependency>,
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, kind, flags, file, content, dependencies } = self;
        write!(f, "{kind:?}(v{version}, {flags:?}, {file:?}, {} bytes, {dependencies:?})", content.len())
    }
}

impl Body {
    /// A message without file and dependencies.
    #[must_use]
    pub fn new(kind: Kind, flags: MessageFlags, content: impl Into<Bytes>) -> Self {
        let (content, dependencies) = (content.into(), Vec::new());
        Self { version: 1, kind, flags, file: FileId::NONE, content, dependencies }
    }

    /// The same on top of these.
    #[must_use]
    pub fn on(mut self, dependencies: impl IntoIterator<Item = Dependency>) -> Self {
        self.dependencies.extend(dependencies);
        self
    }

    fn read_rest(version: u8, kind: Kind, r: &mut Reader<'_>) -> Result<Self, BadPacket> {
        let flags = MessageFlags(r.u8()?);
        let file = if flags.has(MessageFlags::EXTERNAL_FILE) { Read::read(r)? } else { FileId::NONE };
        Ok(Self { version, kind, flags, file, content: byte_array(r)?, dependencies: Read::read(r)? })
    }

    fn write_rest(&self, out: &mut BytesMut) -> Result<(), TooLong> {
        self.flags.0.write(out)?;
        if self.flags.has(MessageFlags::EXTERNAL_FILE) {
            self.file.write(out)?;
        }
        put_byte_array(out, &self.content)?;
        self.dependencies.write(out)
    }
}

/// A message on its way to the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// Where.
    pub channel: ChannelId,
    /// What the client calls it.
    pub temp: MessageId,
    /// What.
    pub body: Body,
}

impl Upload {
    pub(super) fn decode(kind: Kind, r: &mut Reader<'_>) -> Result<Self, BadPacket> {
        let version = r.u8()?;
        let (channel, temp) = (Read::read(r)?, Read::read(r)?);
        Ok(Self { channel, temp, body: Body::read_rest(version, kind, r)? })
    }

    pub(super) fn encode_into(&self, out: &mut BytesMut) -> Result<(), TooLong> {
        self.body.version.write(out)?;
        self.channel.write(out)?;
        self.temp.write(out)?;
        self.body.write_rest(out)
    }
}

/// A message on its way to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Where.
    pub channel: ChannelId,
    /// Who said it; none for the server.
    pub sender: AccountId,
    /// Its number.
    pub id: MessageId,
    /// Messages with a smaller number that are still to come; -1 in a sync, where there is nothing to compare with.
    pub skip_count: i64,
    /// When the server took it.
    pub dispatched: DateTime,
    /// What.
    pub body: Body,
}

impl Delivery {
    pub(super) fn decode(kind: Kind, r: &mut Reader<'_>) -> Result<Self, BadPacket> {
        let version = r.u8()?;
        Ok(Self {
            channel: Read::read(r)?,
            sender: Read::read(r)?,
            id: Read::read(r)?,
            skip_count: Read::read(r)?,
            dispatched: Read::read(r)?,
            body: Body::read_rest(version, kind, r)?,
        })
    }

    pub(super) fn encode_into(&self, out: &mut BytesMut) -> Result<(), TooLong> {
        self.body.version.write(out)?;
        self.channel.write(out)?;
        self.sender.write(out)?;
        self.id.write(out)?;
        self.skip_count.write(out)?;
        self.dispatched.write(out)?;
        self.body.write_rest(out)
    }
}
