//! What is inside of each kind of message (spec 2.4), in clear: as it travels with [`MessageFlags::UNENCRYPTED`], and as it
//! is before a client seals it.
//!
//! The server reads whatever is in clear, and takes nothing that is malformed; it relays what is sealed as it came.

use std::fmt;

use bytes::{Bytes, BytesMut};

use super::primitive::{Read, Write, byte_array, newtypes, put_byte_array, put_short_string, put_string};
use super::primitive::{short_string, string};
use super::{AccountId, BadPacket, ChannelId, DateTime, Kind, MessageFlags, MessageId, SessionId, TooLong};
use crate::crypto::Secret;
use crate::wire::bytes::Reader;
use crate::wire::numbers::named_numbers;

named_numbers! {
    /// What a channel still takes.
    pub struct ArchiveMode;

    NONE = 0 "none";
    BLOCKED = 1 "blocked";
    DELETED = 2 "deleted";
}

named_numbers! {
    /// What a chat or daystream message is.
    pub struct MessageType;

    PLAINTEXT = 0 "plaintext";
    IMAGE = 1 "image";
    VIDEO = 2 "video";
    FILE = 3 "file";
    LOCATION = 4 "location";
    AUDIO = 5 "audio";
    CONTACT = 6 "contact";
}

named_numbers! {
    /// How a picture is cut.
    pub struct ImageShape;

    SQUARE = 0 "square";
    SQUIRCLE = 1 "squircle";
    CIRCLE = 2 "circle";
    STAR = 3 "star";
    HEART = 4 "heart";
}

named_numbers! {
    /// How a key is written.
    pub struct KeyFormat;

    BOUNCY_CASTLE = 0 "bouncy castle";
}

newtypes! { ArchiveMode MessageType ImageShape KeyFormat }

/// What a member of a group may do, and who sees that there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct MemberFlags(pub u8);

newtypes! { MemberFlags }

impl MemberFlags {
    /// Changes the group.
    pub const ADMINISTRATOR: Self = Self(1);
    /// May not say anything.
    pub const NO_CONTENT: Self = Self(2);
    /// May not acknowledge anything.
    pub const NO_METADATA: Self = Self(4);
    /// Seen by administrators only.
    pub const INVISIBLE: Self = Self(8);

    /// Whether all of these are set.
    #[must_use]
    pub const fn has(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Two keys, private or public. Prints their lengths: nobody can see whether they are secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    /// How the one for signatures is written.
    pub signature_format: KeyFormat,
    /// The one for signatures.
    pub signature: Bytes,
    /// How the one for agreement is written.
    pub derivation_format: KeyFormat,
    /// The one for agreement.
    pub derivation: Bytes,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({} and {} bytes)", self.signature.len(), self.derivation.len())
    }
}

impl Read for Keys {
    fn read(r: &mut Reader<'_>) -> Result<Self, BadPacket> {
        Ok(Self {
            signature_format: Read::read(r)?,
            signature: byte_array(r)?,
            derivation_format: Read::read(r)?,
            derivation: byte_array(r)?,
        })
    }
}

impl Write for Keys {
    fn write(&self, out: &mut BytesMut) -> Result<(), TooLong> {
        self.signature_format.write(out)?;
        put_byte_array(out, &self.signature)?;
        self.derivation_format.write(out)?;
        put_byte_array(out, &self.derivation)
    }
}

/// A session in a list of devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Which.
    pub session: SessionId,
    /// When it logged in.
    pub created: DateTime,
    /// The platform; at most 255 bytes.
    pub application: String,
}

impl Read for Device {
    fn read(r: &mut Reader<'_>) -> Result<Self, BadPacket> {
        Ok(Self { session: Read::read(r)?, created: Read::read(r)?, application: short_string(r)? })
    }
}

impl Write for Device {
    fn write(&self, out: &mut BytesMut) -> Result<(), TooLong> {
        self.session.write(out)?;
        self.created.write(out)?;
        put_short_string(out, &self.application)
    }
}

/// The file that belongs to a message, which is small enough to be here as its own thumbnail, or lies beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileBlock {
    /// What it is called; at most 255 bytes.
    pub name: String,
    /// When it was made.
    pub created: DateTime,
    /// When it was last changed.
    pub written: DateTime,
    /// Media type of the thumbnail; at most 255 bytes.
    pub thumbnail_type: String,
    /// A small picture of it, or itself.
    pub thumbnail: Bytes,
    /// What is beside the message.
    pub external: Option<ExternalFile>,
}

/// What is needed to read a file beside the messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalFile {
    /// Media type; at most 255 bytes.
    pub content_type: String,
    /// In bytes.
    pub length: i64,
    /// What it is encrypted with.
    pub key: Secret<32>,
}

impl FileBlock {
    fn read(flags: MessageFlags, r: &mut Reader<'_>) -> Result<Self, BadPacket> {
        let (name, created, written) = (short_string(r)?, Read::read(r)?, Read::read(r)?);
        let (thumbnail_type, thumbnail) = (short_string(r)?, byte_array(r)?);
        let mut external = || {
            Ok::<_, BadPacket>(ExternalFile {
                content_type: short_string(r)?,
                length: Read::read(r)?,
                key: Read::read(r)?,
            })
        };
        let external = if flags.has(MessageFlags::EXTERNAL_FILE) { Some(external()?) } else { None };
        Ok(Self { name, created, written, thumbnail_type, thumbnail, external })
    }

    fn write(&self, out: &mut BytesMut) -> Result<(), TooLong> {
        put_short_string(out, &self.name)?;
        self.created.write(out)?;
        self.written.write(out)?;
        put_short_string(out, &self.thumbnail_type)?;
        put_byte_array(out, &self.thumbnail)?;
        let Some(external) = &self.external else { return Ok(()) };
        put_short_string(out, &external.content_type)?;
        external.length.write(out)?;
        external.key.write(out)
    }
}

/// The content of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// 0x13: the name that is wanted.
    QueueMailAddressChange(String),
    /// 0x14: the account's name.
    MailAddress(String),
    /// 0x15: the password became another.
    PasswordUpdate {
        /// What the old one became; zero for a new account.
        previous_key_hash: Secret<32>,
        /// What the new one became.
        key_hash: Secret<32>,
        /// The old account key, sealed with the new one; empty for a new account.
        key_history: Bytes,
    },
    /// 0x17.
    PrivateKeys(Keys),
    /// 0x18.
    PublicKeys(Keys),
    /// 0x19.
    ArchiveChannel(ArchiveMode),
    /// 0x1A: SHA-256 over the counterpart's keys.
    VerifiedKeys([u8; 32]),
    /// 0x1B.
    DirectChannelUpdate,
    /// 0x1C.
    DirectChannelCustomization {
        /// What the counterpart is called here.
        nickname: String,
        /// How its picture is cut.
        shape: ImageShape,
    },
    /// 0x1D.
    GroupChannelKeyNotify {
        /// Whose key it is.
        group: ChannelId,
        /// From now on.
        new_key: Secret<64>,
        /// For what was before.
        history_key: Secret<64>,
    },
    /// 0x1E.
    GroupChannelUpdate {
        /// One more than before.
        revision: i64,
        /// All of them.
        members: Vec<(AccountId, MemberFlags)>,
        /// The old keys, sealed with the new one.
        key_history: Bytes,
    },
    /// 0x20.
    ChatMessage {
        /// What it is.
        message_type: MessageType,
        /// What is said.
        text: String,
        /// What it answers to; none for nothing.
        quoted: MessageId,
    },
    /// 0x21: the new text, or none when the message is to be deleted.
    MessageOverride(Option<String>),
    /// 0x22.
    MessageReceived,
    /// 0x23.
    MessageRead,
    /// 0x24.
    DaystreamMessage {
        /// What it is.
        message_type: MessageType,
        /// What is said.
        text: String,
    },
    /// 0x25.
    Nickname(String),
    /// 0x26.
    Bio(String),
    /// 0x27: what is written below the picture.
    ProfileImage(String),
    /// 0x28.
    BlockList {
        /// Accounts that may not talk to this one.
        accounts: Vec<AccountId>,
        /// Channels this one wants no part in.
        channels: Vec<ChannelId>,
    },
    /// 0x29.
    DeviceList(Vec<Device>),
    /// 0x2A.
    BackgroundImage,
    /// 0x2B: since when nobody is there; none when somebody is.
    OnlineState(Option<DateTime>),
}

impl Content {
    /// The kind of message it is the content of.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::QueueMailAddressChange(_) => Kind::QueueMailAddressChange,
            Self::MailAddress(_) => Kind::MailAddress,
            Self::PasswordUpdate { .. } => Kind::PasswordUpdate,
            Self::PrivateKeys(_) => Kind::PrivateKeys,
            Self::PublicKeys(_) => Kind::PublicKeys,
            Self::ArchiveChannel(_) => Kind::ArchiveChannel,
            Self::VerifiedKeys(_) => Kind::VerifiedKeys,
            Self::DirectChannelUpdate => Kind::DirectChannelUpdate,
            Self::DirectChannelCustomization { .. } => Kind::DirectChannelCustomization,
            Self::GroupChannelKeyNotify { .. } => Kind::GroupChannelKeyNotify,
            Self::GroupChannelUpdate { .. } => Kind::GroupChannelUpdate,
            Self::ChatMessage { .. } => Kind::ChatMessage,
            Self::MessageOverride(_) => Kind::MessageOverride,
            Self::MessageReceived => Kind::MessageReceived,
            Self::MessageRead => Kind::MessageRead,
            Self::DaystreamMessage { .. } => Kind::DaystreamMessage,
            Self::Nickname(_) => Kind::Nickname,
            Self::Bio(_) => Kind::Bio,
            Self::ProfileImage(_) => Kind::ProfileImage,
            Self::BlockList { .. } => Kind::BlockList,
            Self::DeviceList(_) => Kind::DeviceList,
            Self::BackgroundImage => Kind::BackgroundImage,
            Self::OnlineState(_) => Kind::OnlineState,
        }
    }

    /// Reads what is inside of a message of this kind, and the file block, if the flags say that there is one.
    ///
    /// # Errors
    /// [`BadPacket`] says what is wrong with it.
    pub fn decode(kind: Kind, flags: MessageFlags, bytes: &[u8]) -> Result<(Self, Option<FileBlock>), BadPacket> {
        let r = &mut Reader::new(bytes);
        let content = match kind {
            Kind::QueueMailAddressChange => Self::QueueMailAddressChange(short_string(r)?),
            Kind::MailAddress => Self::MailAddress(short_string(r)?),
            Kind::PasswordUpdate => Self::PasswordUpdate {
                previous_key_hash: Read::read(r)?,
                key_hash: Read::read(r)?,
                key_history: byte_array(r)?,
            },
            Kind::PrivateKeys => Self::PrivateKeys(Read::read(r)?),
            Kind::PublicKeys => Self::PublicKeys(Read::read(r)?),
            Kind::ArchiveChannel => Self::ArchiveChannel(Read::read(r)?),
            Kind::VerifiedKeys => Self::VerifiedKeys(r.array()?),
            Kind::DirectChannelUpdate => Self::DirectChannelUpdate,
            Kind::DirectChannelCustomization => {
                Self::DirectChannelCustomization { nickname: short_string(r)?, shape: Read::read(r)? }
            }
            Kind::GroupChannelKeyNotify => Self::GroupChannelKeyNotify {
                group: Read::read(r)?,
                new_key: Read::read(r)?,
                history_key: Read::read(r)?,
            },
            Kind::GroupChannelUpdate => Self::GroupChannelUpdate {
                revision: Read::read(r)?,
                members: Read::read(r)?,
                key_history: byte_array(r)?,
            },
            Kind::ChatMessage => {
                Self::ChatMessage { message_type: Read::read(r)?, text: string(r)?, quoted: Read::read(r)? }
            }
            Kind::MessageOverride => match r.u8()? {
                0 => Self::MessageOverride(Some(string(r)?)),
                1 => Self::MessageOverride(None),
                unknown => return Err(BadPacket::Content(unknown)),
            },
            Kind::MessageReceived => Self::MessageReceived,
            Kind::MessageRead => Self::MessageRead,
            Kind::DaystreamMessage => Self::DaystreamMessage { message_type: Read::read(r)?, text: string(r)? },
            Kind::Nickname => Self::Nickname(short_string(r)?),
            Kind::Bio => Self::Bio(string(r)?),
            Kind::ProfileImage => Self::ProfileImage(string(r)?),
            Kind::BlockList => Self::BlockList { accounts: Read::read(r)?, channels: Read::read(r)? },
            Kind::DeviceList => Self::DeviceList(Read::read(r)?),
            Kind::BackgroundImage => Self::BackgroundImage,
            Kind::OnlineState => match r.u8()? {
                0 => Self::OnlineState(Some(Read::read(r)?)),
                1 => Self::OnlineState(None),
                unknown => return Err(BadPacket::Content(unknown)),
            },
        };
        let file = if flags.has(MessageFlags::MEDIA) { Some(FileBlock::read(flags, r)?) } else { None };
        Ok((content, file))
    }

    /// Writes it, and the file block behind it.
    ///
    /// # Errors
    /// [`TooLong`] when something in it is longer than the layout allows.
    pub fn encode(&self, file: Option<&FileBlock>) -> Result<Bytes, TooLong> {
        let out = &mut BytesMut::new();
        match self {
            Self::QueueMailAddressChange(text) | Self::MailAddress(text) | Self::Nickname(text) => {
                put_short_string(out, text)?;
            }
            Self::PasswordUpdate { previous_key_hash, key_hash, key_history } => {
                previous_key_hash.write(out)?;
                key_hash.write(out)?;
                put_byte_array(out, key_history)?;
            }
            Self::PrivateKeys(keys) | Self::PublicKeys(keys) => keys.write(out)?,
            Self::ArchiveChannel(mode) => mode.write(out)?,
            Self::VerifiedKeys(hash) => out.extend_from_slice(hash),
            Self::DirectChannelCustomization { nickname, shape } => {
                put_short_string(out, nickname)?;
                shape.write(out)?;
            }
            Self::GroupChannelKeyNotify { group, new_key, history_key } => {
                group.write(out)?;
                new_key.write(out)?;
                history_key.write(out)?;
            }
            Self::GroupChannelUpdate { revision, members, key_history } => {
                revision.write(out)?;
                members.write(out)?;
                put_byte_array(out, key_history)?;
            }
            Self::ChatMessage { message_type, text, quoted } => {
                message_type.write(out)?;
                put_string(out, text)?;
                quoted.write(out)?;
            }
            Self::MessageOverride(Some(text)) => {
                0_u8.write(out)?;
                put_string(out, text)?;
            }
            Self::MessageOverride(None) | Self::OnlineState(None) => 1_u8.write(out)?,
            Self::DaystreamMessage { message_type, text } => {
                message_type.write(out)?;
                put_string(out, text)?;
            }
            Self::Bio(text) | Self::ProfileImage(text) => put_string(out, text)?,
            Self::BlockList { accounts, channels } => {
                accounts.write(out)?;
                channels.write(out)?;
            }
            Self::DeviceList(devices) => devices.write(out)?,
            Self::OnlineState(Some(last_active)) => {
                0_u8.write(out)?;
                last_active.write(out)?;
            }
            Self::DirectChannelUpdate | Self::MessageReceived | Self::MessageRead | Self::BackgroundImage => {}
        }
        if let Some(file) = file {
            file.write(out)?;
        }
        Ok(std::mem::take(out).freeze())
    }
}
