//! What happens, for people in one line, for programs in one JSON object.

use serde::{Serialize, Serializer};

use crate::chat::skynet::wire::{AccountId, ChannelId, ChannelType, DateTime, MessageId, SessionId};
use crate::tools::harmless;

trait Number {
    fn number(&self) -> i64;
}

macro_rules! numbers {
    ($($id:ident)*) => { $(
        impl Number for $id {
            fn number(&self) -> i64 {
                self.0
            }
        }
    )* };
}
numbers! { AccountId ChannelId SessionId }

/// A 64-bit identifier as text: not every reader of JSON has such numbers.
fn text<S: Serializer>(id: &impl Number, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&id.number())
}

fn number<S: Serializer>(id: &MessageId, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_i64(id.0)
}

fn time<S: Serializer>(at: &DateTime, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_some(&at.unix_ms())
}

fn channel_type<S: Serializer>(it: &ChannelType, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(name_of_type(*it))
}

const fn name_of_type(it: ChannelType) -> &'static str {
    match it {
        ChannelType::Loopback => "loopback",
        ChannelType::AccountData => "account-data",
        ChannelType::Direct => "direct",
        ChannelType::Group => "group",
        ChannelType::ProfileData => "profile",
    }
}

/// A file that comes with a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileShown {
    /// What it is called.
    pub name: String,
    /// In bytes.
    pub length: u64,
    /// Whether it lies beside the messages and has to be fetched.
    pub external: bool,
}

/// Something that was said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Said {
    /// Where.
    #[serde(serialize_with = "text")]
    pub channel: ChannelId,
    /// What that channel is called.
    #[serde(rename = "in")]
    pub place: String,
    /// Its number.
    #[serde(serialize_with = "number")]
    pub id: MessageId,
    /// Who said it.
    #[serde(serialize_with = "text")]
    pub account: AccountId,
    /// What they are called.
    pub from: String,
    /// Whether it was this account.
    pub own: bool,
    /// What was said; none when it was deleted.
    pub text: Option<String>,
    /// What it answers to.
    #[serde(serialize_with = "number")]
    pub quoted: MessageId,
    /// The file that comes with it.
    pub file: Option<FileShown>,
    /// When, in milliseconds since 1970.
    #[serde(serialize_with = "time")]
    pub time: DateTime,
}

/// A channel as people are shown it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChannelShown {
    /// Which.
    #[serde(serialize_with = "text")]
    pub channel: ChannelId,
    /// What it is for.
    #[serde(rename = "type", serialize_with = "channel_type")]
    pub channel_type: ChannelType,
    /// What it is called.
    pub name: String,
    /// Who is in it, the account itself included; of a direct channel, the other one.
    pub members: Vec<String>,
    /// What it still takes: `none` when it takes everything.
    pub archived: String,
    /// Whether something can be said in it: there is a key.
    pub ready: bool,
}

/// A device as people are shown it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceShown {
    /// Which.
    #[serde(serialize_with = "text")]
    pub session: SessionId,
    /// When it was last connected.
    #[serde(serialize_with = "time")]
    pub last_connected: DateTime,
    /// Its version then.
    pub version: i32,
    /// Whether it is this one.
    pub this: bool,
}

/// What happened. See the top of this file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// This device is connected, and has heard everything that waited for it.
    Online {
        /// The account.
        #[serde(serialize_with = "text")]
        account: AccountId,
        /// The device.
        #[serde(serialize_with = "text")]
        session: SessionId,
        /// What the account is called.
        name: String,
    },
    /// The connection is over; another one is tried.
    Lost {
        /// Why.
        why: String,
    },
    /// There is a channel.
    Channel(ChannelShown),
    /// There is no such channel any more.
    ChannelGone {
        /// Which.
        #[serde(serialize_with = "text")]
        channel: ChannelId,
        /// What it was called.
        name: String,
    },
    /// What is said from now on goes there.
    Current {
        /// Where.
        #[serde(serialize_with = "text")]
        channel: ChannelId,
        /// What it is called.
        name: String,
    },
    /// Something was said.
    Message(Said),
    /// Something that was said before and is asked for.
    History(Said),
    /// Something was said in another way afterwards; without text, it was taken back.
    Edited(Said),
    /// What was said here was taken by the server.
    Sent {
        /// Where.
        #[serde(serialize_with = "text")]
        channel: ChannelId,
        /// Its number.
        #[serde(serialize_with = "number")]
        id: MessageId,
        /// What it was called until then.
        #[serde(serialize_with = "number")]
        temp: MessageId,
    },
    /// What was said here was not taken.
    Refused {
        /// Where.
        #[serde(serialize_with = "text")]
        channel: ChannelId,
        /// What it was called.
        #[serde(serialize_with = "number")]
        temp: MessageId,
        /// What it was.
        what: String,
        /// Why.
        why: String,
    },
    /// Somebody has a message.
    Receipt {
        /// Where.
        #[serde(serialize_with = "text")]
        channel: ChannelId,
        /// Which.
        #[serde(serialize_with = "number")]
        id: MessageId,
        /// Who.
        by: String,
        /// Whether they have read it.
        read: bool,
    },
    /// A message cannot be read: it was changed, or sealed with another key.
    Unreadable {
        /// Where.
        #[serde(serialize_with = "text")]
        channel: ChannelId,
        /// Which.
        #[serde(serialize_with = "number")]
        id: MessageId,
    },
    /// The keys of a channel are there, or are others now.
    Keys {
        /// Where.
        #[serde(serialize_with = "text")]
        channel: ChannelId,
        /// What it is called.
        name: String,
    },
    /// The keys of a channel were compared, and are others now: nothing is said there until they are compared again.
    Unverified {
        /// Where.
        #[serde(serialize_with = "text")]
        channel: ChannelId,
        /// What it is called.
        name: String,
    },
    /// Who is in a group, or what may be said in a channel, changed.
    Changed(ChannelShown),
    /// Somebody shows themselves differently.
    Profile {
        /// Who.
        #[serde(serialize_with = "text")]
        account: AccountId,
        /// Their address.
        address: String,
        /// What they call themselves.
        nickname: String,
        /// What they say about themselves.
        bio: String,
        /// The message with their picture.
        picture: Option<i64>,
    },
    /// Somebody comes or goes.
    Presence {
        /// Who.
        #[serde(serialize_with = "text")]
        account: AccountId,
        /// What they are called.
        name: String,
        /// Whether they are there.
        online: bool,
        /// Since when they are not, in milliseconds since 1970.
        #[serde(serialize_with = "time")]
        since: DateTime,
    },
    /// Somebody does something.
    Action {
        /// Where.
        #[serde(serialize_with = "text")]
        channel: ChannelId,
        /// Who.
        name: String,
        /// What.
        action: String,
    },
    /// Accounts that were searched for.
    Found {
        /// Their names.
        names: Vec<String>,
    },
    /// The account's channels.
    Channels {
        /// All of them.
        channels: Vec<ChannelShown>,
    },
    /// The account's devices.
    Devices {
        /// All of them.
        devices: Vec<DeviceShown>,
    },
    /// Whom this account does not hear.
    Blocked {
        /// Accounts.
        accounts: Vec<String>,
        /// Channels.
        channels: Vec<String>,
    },
    /// The keys of a counterpart, to be compared by other means.
    Fingerprint {
        /// Whose.
        name: String,
        /// SHA-256, in hex.
        theirs: String,
        /// One's own.
        own: String,
        /// Whether theirs was said to be right.
        verified: bool,
    },
    /// The password is another one now. When `known` is false it was changed on another device, and what is for the account's
    /// own devices cannot be read here until it is known (`/unlock`).
    Password {
        /// Whether it is known here.
        known: bool,
    },
    /// The account is called otherwise.
    Name {
        /// Its address.
        name: String,
    },
    /// A file was saved.
    Saved {
        /// The message it came with.
        #[serde(serialize_with = "number")]
        id: MessageId,
        /// Where it is.
        path: String,
        /// In bytes.
        length: u64,
    },
    /// The account is no more.
    Deleted,
    /// Something is as somebody may want to know.
    Note {
        /// What.
        text: String,
    },
    /// Something was asked for that did not work.
    Problem {
        /// What.
        text: String,
    },
}

impl Event {
    /// What did not work.
    pub fn problem(text: impl Into<String>) -> Self {
        Self::Problem { text: text.into() }
    }

    /// Whether something that was asked for did not work.
    #[must_use]
    pub const fn is_failure(&self) -> bool {
        matches!(self, Self::Problem { .. } | Self::Refused { .. })
    }

    /// One JSON object, in one line.
    #[must_use]
    pub fn json(&self) -> String {
        // Made of text and numbers: it can always be written.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// One line for people. What strangers say can neither move the cursor nor begin another line.
    #[must_use]
    pub fn line(&self) -> String {
        harmless(&self.words())
    }

    fn words(&self) -> String {
        match self {
            Self::Online { name, .. } => format!("-- online as {name}"),
            Self::Lost { why } => format!("-- the connection is lost: {why}; it is tried again"),
            Self::Channel(it) => format!("-- there is {}", it.words()),
            Self::Changed(it) => format!("-- now there is {}", it.words()),
            Self::ChannelGone { name, .. } => format!("-- {name} is gone"),
            Self::Current { name, .. } => format!("-- what you say goes to {name}"),
            Self::Message(said) => said.words(),
            Self::History(said) => format!(".. {}", said.words()),
            Self::Edited(Said { text: Some(text), id, from, .. }) => format!("[{}] {from} now says: {text}", id.0),
            Self::Edited(Said { id, from, .. }) => format!("[{}] {from} took that back", id.0),
            Self::Sent { id, .. } => format!("-- sent [{}]", id.0),
            Self::Refused { what, why, .. } => format!("!! {what} was not taken: {why}"),
            Self::Receipt { id, by, read: true, .. } => format!("-- {by} has read [{}]", id.0),
            Self::Receipt { id, by, .. } => format!("-- {by} has [{}]", id.0),
            Self::Unreadable { id, .. } => {
                format!("!! [{}] cannot be read: it was changed, or is not for this device", id.0)
            }
            Self::Keys { name, .. } => format!("-- there are keys for {name}"),
            Self::Unverified { name, .. } => format!(
                "!! the keys for {name} are not those that were verified: nothing is sealed with them until `/verified` (`/verify` shows them)"
            ),
            Self::Profile { account, address, nickname, bio, .. } => {
                let parts = [nickname.as_str(), address, bio].into_iter().filter(|it| !it.is_empty());
                format!("-- #{} is {}", account.0, parts.collect::<Vec<_>>().join(", "))
            }
            Self::Presence { name, online: true, .. } => format!("-- {name} is there"),
            Self::Presence { name, .. } => format!("-- {name} is away"),
            Self::Action { name, action, .. } => format!("-- {name}: {action}"),
            Self::Found { names } if names.is_empty() => "-- nobody was found".to_owned(),
            Self::Found { names } => format!("-- found: {}", names.join(", ")),
            Self::Channels { channels } => {
                let channels: Vec<String> = channels.iter().map(ChannelShown::words).collect();
                format!("-- channels: {}", channels.join("; "))
            }
            Self::Devices { devices } => {
                let device =
                    |it: &DeviceShown| format!("#{}{}", it.session.0, if it.this { " (this one)" } else { "" });
                format!("-- devices: {}", devices.iter().map(device).collect::<Vec<_>>().join(", "))
            }
            Self::Blocked { accounts, channels } => {
                format!("-- blocked: {}", [accounts.as_slice(), channels].concat().join(", "))
            }
            Self::Fingerprint { name, theirs, own, verified } => {
                let verified = if *verified { ", verified" } else { "" };
                format!("-- the keys of {name}: {theirs}{verified}; your own: {own}")
            }
            Self::Password { known: true } => "-- the password is another one now".to_owned(),
            Self::Password { known: false } => {
                "!! the password was changed on another device: `/unlock FILE` tells this one".to_owned()
            }
            Self::Name { name } => format!("-- this account is called {name} now"),
            Self::Saved { id, path, length } => format!("-- the file of [{}] is in {path}: {length} bytes", id.0),
            Self::Deleted => "-- the account is no more".to_owned(),
            Self::Note { text } => format!("-- {text}"),
            Self::Problem { text } => format!("!! {text}"),
        }
    }
}

impl Said {
    fn words(&self) -> String {
        let Self { place, id, from, text, quoted, file, .. } = self;
        let quoted = if quoted.is_none() { String::new() } else { format!(" (to [{}])", quoted.0) };
        let file = file.as_ref().map(|it| format!(" <{}, {} bytes>", it.name, it.length)).unwrap_or_default();
        let text = text.as_deref().unwrap_or("(taken back)");
        let from = if from == place { from.clone() } else { format!("{from} in {place}") };
        format!("[{}] {from}{quoted}:{file} {text}", id.0)
    }
}

impl ChannelShown {
    fn words(&self) -> String {
        let Self { channel, channel_type, name, members, archived, ready } = self;
        let members = if members.is_empty() { String::new() } else { format!(": {}", members.join(", ")) };
        let archived = if archived == "none" { String::new() } else { format!(", {archived}") };
        let ready = if *ready { "" } else { ", without keys yet" };
        format!("{} {name} (#{}{archived}{ready}){members}", name_of_type(*channel_type), channel.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said() -> Said {
        Said {
            channel: ChannelId(i64::MIN),
            place: "us".into(),
            id: MessageId(7),
            account: AccountId(-5),
            from: "b\u{1b}ob".into(),
            own: false,
            text: Some("one\ntwo".into()),
            quoted: MessageId(3),
            file: None,
            time: DateTime::from_unix_ms(1),
        }
    }

    #[test]
    fn what_strangers_say_is_one_harmless_line() {
        assert_eq!(Event::Message(said()).line(), "[7] b\u{fffd}ob in us (to [3]): one\u{fffd}two");
    }

    /// Scripts read it, so the words are a promise.
    #[test]
    fn json_is_what_is_documented() {
        let json = r#"{"event":"message","channel":"-9223372036854775808","in":"us","id":7,"account":"-5","from":"b\u001bob","own":false,"text":"one\ntwo","quoted":3,"file":null,"time":1}"#;
        assert_eq!(Event::Message(said()).json(), json);
        let sent = Event::Sent { channel: ChannelId(9), id: MessageId(8), temp: MessageId(-2) };
        assert_eq!(sent.json(), r#"{"event":"sent","channel":"9","id":8,"temp":-2}"#);
        assert_eq!(Event::Deleted.json(), r#"{"event":"deleted"}"#);
    }
}
