//! What a device knows: channels, people, messages, and the keys that open them. Pure.
//!
//! # Which key opens what
//!
//! A sealed message says which message announced its key: for one's own devices a password update, in a direct channel the
//! server's note on the keys of the two, in a group the list of members. From there the key is found:
//!
//! | announced by | key |
//! |---|---|
//! | 0x15 | of the password whose hash it names; those before it, one sealed with the next (`KeyHistory`) |
//! | 0x1B | agreed between the private keys (0x17) and the public ones (0x18) that it names |
//! | 0x1E | in the notification (0x1D) it names for this account; those before it, one sealed with the next |
//!
//! A message that says nothing was sealed with the newest key before it. What cannot be opened yet, because a key is itself
//! sealed and its key still to come, waits; whatever brings a key opens everything that waited for it, in order. A message whose key is
//! there and that does not open is reported: somebody changed it, or sealed it with something else.
//!
//! An administrator's other devices are told the keys of a group in what is sent to its members; which of several such
//! notifications became the group's key is told by what opens.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::keys;
use crate::chat::skynet::wire::blob::{AccountKeys, ChannelKey};
use crate::chat::skynet::wire::content::{ArchiveMode, MemberFlags};
use crate::chat::skynet::wire::{
    AccountId, Announced, Body, ChannelId, ChannelType, Content, DateTime, Delivery, Dependency, Device, FileBlock,
    Kind, MessageFlags, MessageId, TooLong,
};
use crate::crypto::Secret;

/// Messages that are kept; of more, the oldest that only people need are forgotten here. The server has them.
pub const MESSAGES_MAX: usize = 50_000;

/// What is inside of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// What it says.
    pub content: Content,
    /// The file that comes with it.
    pub file: Option<FileBlock>,
}

/// A message, and what is inside if that could be read.
#[derive(Debug, Clone)]
pub struct Entry {
    /// As it came.
    pub delivery: Delivery,
    /// `None` as long as it is sealed.
    pub opened: Option<Opened>,
}

/// What became of a message that could not be read before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// It can be read now.
    Opened(MessageId),
    /// It never will be.
    Unreadable(MessageId),
}

/// Why something cannot be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CannotSeal {
    /// There is no such channel.
    #[error("there is no such channel")]
    Channel,
    /// No key is known. In a direct channel, the other side has not been there yet.
    #[error("there is no key for it yet")]
    Key,
    /// It is longer than a message can be.
    #[error("it is too long")]
    TooLong,
}

impl From<TooLong> for CannotSeal {
    fn from(_: TooLong) -> Self {
        Self::TooLong
    }
}

/// A channel of this account.
#[derive(Debug, Clone)]
pub struct Channel {
    /// Which.
    pub id: ChannelId,
    /// What the server said of it.
    pub announced: Announced,
    /// Whether everything that was to come with its announcement has come.
    pub complete: bool,
    /// What it still takes.
    pub archive: ArchiveMode,
    /// What announced its keys, oldest first.
    pub updates: Vec<MessageId>,
    /// Of a group: how often it changed.
    pub revision: i64,
    /// Of a group: who is in it.
    pub members: BTreeMap<AccountId, MemberFlags>,
    /// Of a group, what it is called; of a direct channel, what the counterpart is called here.
    pub name: String,
    /// Of a direct channel: the keys that were compared.
    pub verified: Option<[u8; 32]>,
}

impl Channel {
    const fn new(id: ChannelId, announced: Announced) -> Self {
        Self {
            id,
            announced,
            complete: false,
            archive: ArchiveMode::NONE,
            updates: Vec::new(),
            revision: 0,
            members: BTreeMap::new(),
            name: String::new(),
            verified: None,
        }
    }

    /// What it is for.
    #[must_use]
    pub const fn channel_type(&self) -> ChannelType {
        self.announced.channel_type
    }

    /// Whether it is a group, or somebody's profile, which is one.
    #[must_use]
    pub const fn is_group(&self) -> bool {
        matches!(self.announced.channel_type, ChannelType::Group | ChannelType::ProfileData)
    }
}

/// What is known of an account.
#[derive(Debug, Clone, Default)]
pub struct Person {
    /// Its name, a mail address.
    pub address: String,
    /// What it calls itself in public, or to this account.
    pub nickname: String,
    /// What it says about itself.
    pub bio: String,
    /// The message with its picture.
    pub image: Option<MessageId>,
    /// The message with its newest public keys.
    pub keys: Option<MessageId>,
    /// Whether it is there.
    pub online: bool,
    /// When it last was.
    pub last_active: DateTime,
}

/// The keys of a group, from one change of it to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupKeys {
    /// Seals what is said.
    pub channel: ChannelKey,
    /// Opens what was before; not everybody gets it.
    pub history: Option<ChannelKey>,
}

/// A notification of a group's keys.
#[derive(Debug, Clone)]
struct Notified {
    group: ChannelId,
    sender: AccountId,
    /// Who is at the other end of the channel it came in.
    counterpart: AccountId,
    keys: GroupKeys,
}

/// Whom this account does not want to hear.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blocked {
    /// Accounts.
    pub accounts: BTreeSet<AccountId>,
    /// Channels.
    pub channels: BTreeSet<ChannelId>,
}

/// See the top of this file.
#[derive(Debug, Default)]
pub struct Book {
    /// Whose it is.
    pub me: AccountId,
    channels: BTreeMap<ChannelId, Channel>,
    people: BTreeMap<AccountId, Person>,
    messages: BTreeMap<MessageId, Entry>,
    /// What waits for a key.
    sealed: BTreeSet<MessageId>,
    /// Up to there, what is not here was forgotten.
    floor: MessageId,
    /// What passwords became, the newest last.
    secrets: Vec<AccountKeys>,
    /// By password update.
    account_keys: BTreeMap<MessageId, ChannelKey>,
    updates: BTreeSet<MessageId>,
    notified: BTreeMap<MessageId, Notified>,
    /// By member list: what may be its keys, the likeliest first.
    group_keys: BTreeMap<MessageId, Vec<GroupKeys>>,
    direct_keys: BTreeMap<MessageId, ChannelKey>,
    /// By message: the text it has now, or none if it was deleted, and by which message.
    edits: BTreeMap<MessageId, (MessageId, Option<String>)>,
    /// By message: who has it, and whether it was read.
    receipts: BTreeMap<MessageId, BTreeMap<AccountId, bool>>,
    /// By channel and kind: which message said it last.
    newest: BTreeMap<(ChannelId, Kind), MessageId>,
    blocked: Blocked,
    devices: Vec<Device>,
}

impl Book {
    /// An empty one of an account whose password became this.
    #[must_use]
    pub fn new(me: AccountId, keys: AccountKeys) -> Self {
        Self { me, secrets: vec![keys], ..Self::default() }
    }

    /// All channels.
    pub fn channels(&self) -> impl Iterator<Item = &Channel> {
        self.channels.values()
    }

    /// A channel.
    #[must_use]
    pub fn channel(&self, id: ChannelId) -> Option<&Channel> {
        self.channels.get(&id)
    }

    /// The account's own channel of a type.
    #[must_use]
    pub fn own(&self, channel_type: ChannelType) -> Option<ChannelId> {
        let mut own =
            self.channels.values().filter(|it| it.channel_type() == channel_type && it.announced.owner == self.me);
        own.next().map(|it| it.id)
    }

    /// The direct channel with somebody.
    #[must_use]
    pub fn direct(&self, with: AccountId) -> Option<&Channel> {
        let of = |it: &&Channel| it.channel_type() == ChannelType::Direct && it.announced.counterpart == with;
        self.channels.values().find(of)
    }

    /// What is known of somebody.
    #[must_use]
    pub fn person(&self, account: AccountId) -> Option<&Person> {
        self.people.get(&account)
    }

    /// Everybody of whom something is known.
    pub fn people(&self) -> impl Iterator<Item = (AccountId, &Person)> {
        self.people.iter().map(|(account, person)| (*account, person))
    }

    /// What to call somebody.
    #[must_use]
    pub fn name_of(&self, account: AccountId) -> String {
        let custom = self.direct(account).map(|it| it.name.as_str()).unwrap_or_default();
        let person = self.people.get(&account);
        let [nickname, address] = person.map_or([""; 2], |person| [person.nickname.as_str(), person.address.as_str()]);
        match [custom, nickname, address].into_iter().find(|name| !name.is_empty()) {
            Some(name) => name.to_owned(),
            None => format!("#{}", account.0),
        }
    }

    /// A message.
    #[must_use]
    pub fn message(&self, id: MessageId) -> Option<&Entry> {
        self.messages.get(&id)
    }

    /// All messages, the oldest first.
    pub fn messages(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.messages.values()
    }

    /// What a message says now; none when it was deleted or never said anything.
    #[must_use]
    pub fn text(&self, id: MessageId) -> Option<&str> {
        if let Some((_, text)) = self.edits.get(&id) {
            return text.as_deref();
        }
        match &self.messages.get(&id)?.opened.as_ref()?.content {
            Content::ChatMessage { text, .. } | Content::DaystreamMessage { text, .. } => Some(text),
            _ => None,
        }
    }

    /// Who has a message, and whether it was read.
    #[must_use]
    pub fn receipts(&self, id: MessageId) -> Option<&BTreeMap<AccountId, bool>> {
        self.receipts.get(&id)
    }

    /// Whom the account does not want to hear.
    #[must_use]
    pub const fn blocked(&self) -> &Blocked {
        &self.blocked
    }

    /// The account's devices.
    #[must_use]
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Up to there, messages that are not here were forgotten.
    #[must_use]
    pub const fn floor(&self) -> MessageId {
        self.floor
    }

    /// The newest message of a kind that is kept as its newest only.
    #[must_use]
    pub fn newest(&self, channel: ChannelId, kind: Kind) -> Option<MessageId> {
        self.newest.get(&(channel, kind)).copied()
    }

    /// Whether the password that is valid now is known here.
    #[must_use]
    pub fn is_unlocked(&self) -> bool {
        self.updates.last().is_none_or(|update| self.account_keys.contains_key(update))
    }

    /// What the account's password is hashed to, according to its newest update.
    #[must_use]
    pub fn key_hash(&self) -> Option<&Secret<32>> {
        match &self.messages.get(self.updates.last()?)?.opened.as_ref()?.content {
            Content::PasswordUpdate { key_hash, .. } => Some(key_hash),
            _ => None,
        }
    }

    /// Another password is known. What that opens.
    pub fn learn_password(&mut self, keys: AccountKeys) -> Vec<Read> {
        if !self.secrets.contains(&keys) {
            self.secrets.push(keys);
        }
        self.open_sealed()
    }

    /// There is a channel.
    pub fn announce(&mut self, id: ChannelId, announced: Announced) -> bool {
        match self.channels.get_mut(&id) {
            Some(known) => {
                known.announced = announced;
                false
            }
            None => {
                self.channels.insert(id, Channel::new(id, announced));
                true
            }
        }
    }

    /// What was to come with the announcements so far has come.
    pub fn complete(&mut self) {
        for channel in self.channels.values_mut() {
            channel.complete = true;
        }
    }

    /// A channel is none of this account's any more.
    pub fn forget(&mut self, id: ChannelId) -> Option<Channel> {
        let gone: Vec<_> =
            self.messages.iter().filter(|(_, it)| it.delivery.channel == id).map(|(id, _)| *id).collect();
        for message in gone {
            self.remove(message);
        }
        self.newest.retain(|(channel, _), _| *channel != id);
        self.channels.remove(&id)
    }

    fn remove(&mut self, message: MessageId) {
        self.messages.remove(&message);
        self.sealed.remove(&message);
        self.edits.remove(&message);
        self.receipts.remove(&message);
    }

    /// Whether a message is here, or was.
    #[must_use]
    pub fn knows(&self, delivery: &Delivery) -> bool {
        // Of a contact that is added, keys come that are older than what was forgotten.
        (delivery.id <= self.floor && is_said(delivery.body.kind)) || self.messages.contains_key(&delivery.id)
    }

    /// A message came. What can be read now that could not before; nothing when it was known.
    pub fn take(&mut self, delivery: Delivery) -> Vec<Read> {
        let (id, kind) = (delivery.id, delivery.body.kind);
        if self.knows(&delivery) || !self.channels.contains_key(&delivery.channel) {
            return Vec::new();
        }
        self.messages.insert(id, Entry { delivery, opened: None });
        if kind == Kind::PasswordUpdate {
            self.updates.insert(id);
            self.resolve_passwords();
        }
        let mut read = Vec::new();
        self.sealed.insert(id);
        if self.open(id, &mut read) {
            read.extend(self.open_sealed());
        }
        self.prune();
        read
    }

    /// Opens what waits as long as that brings keys.
    fn open_sealed(&mut self) -> Vec<Read> {
        let mut read = Vec::new();
        self.resolve_passwords();
        loop {
            let mut again = false;
            for id in self.sealed.iter().copied().collect::<Vec<_>>() {
                again |= self.open(id, &mut read);
            }
            if !again {
                return read;
            }
        }
    }

    /// Opens one message if there is a key for it. Whether that brings keys for others.
    fn open(&mut self, id: MessageId, read: &mut Vec<Read>) -> bool {
        let Some(opened) = self.try_open(id) else { return false };
        self.sealed.remove(&id);
        let Ok(opened) = opened else {
            read.push(Read::Unreadable(id));
            return false;
        };
        let Some(entry) = self.messages.get_mut(&id) else { return false };
        entry.opened = Some(opened);
        let kind = entry.delivery.body.kind;
        self.apply(id);
        read.push(Read::Opened(id));
        matches!(
            kind,
            Kind::PasswordUpdate
                | Kind::PrivateKeys
                | Kind::PublicKeys
                | Kind::DirectChannelUpdate
                | Kind::GroupChannelKeyNotify
                | Kind::GroupChannelUpdate
        )
    }

    /// The content of a message; nothing as long as there is no key for it.
    fn try_open(&mut self, id: MessageId) -> Option<Result<Opened, ()>> {
        let body = self.messages.get(&id)?.delivery.body.clone();
        let decode = |plain: &[u8]| {
            let decoded = Content::decode(body.kind, body.flags, plain);
            decoded.map(|(content, file)| Opened { content, file }).map_err(|_| ())
        };
        if body.flags.has(MessageFlags::UNENCRYPTED) {
            return Some(decode(&body.content));
        }
        let keys = self.keys_for(id);
        if keys.is_empty() {
            return None;
        }
        let plain = keys.iter().find_map(|key| key.open(&body.content).ok());
        Some(plain.ok_or(()).and_then(|plain| decode(&plain)))
    }

    /// What may open a message.
    fn keys_for(&mut self, id: MessageId) -> Vec<ChannelKey> {
        let Some(entry) = self.messages.get(&id) else { return Vec::new() };
        let Delivery { channel, body, .. } = &entry.delivery;
        let Some(channel) = self.channels.get(channel) else { return Vec::new() };
        let loopback = body.flags.has(MessageFlags::LOOPBACK);
        let named = |kind: Kind| {
            let mut on = body.dependencies.iter().map(|on| on.message);
            on.find(|on| self.messages.get(on).is_some_and(|it| it.delivery.body.kind == kind))
        };
        let (kind, before) = match channel.channel_type() {
            _ if loopback => (Kind::PasswordUpdate, self.updates.range(..id).next_back().copied()),
            ChannelType::Direct => (Kind::DirectChannelUpdate, channel.updates.iter().rfind(|it| **it < id).copied()),
            _ => (Kind::GroupChannelUpdate, channel.updates.iter().rfind(|it| **it < id).copied()),
        };
        let Some(announced_by) = named(kind).or(before) else { return Vec::new() };
        match kind {
            Kind::PasswordUpdate => self.account_keys.get(&announced_by).cloned().into_iter().collect(),
            Kind::DirectChannelUpdate => self.direct_key(announced_by).into_iter().collect(),
            _ => self.group_keys(announced_by).into_iter().map(|keys| keys.channel).collect(),
        }
    }

    /// Finds the keys of passwords: those that are known, and from each the one before it.
    fn resolve_passwords(&mut self) {
        let mut next: Option<(ChannelKey, Bytes)> = None;
        for update in self.updates.iter().rev() {
            let content = self.messages.get(update).map(|it| it.delivery.body.content.clone()).unwrap_or_default();
            let decoded = Content::decode(Kind::PasswordUpdate, MessageFlags::NONE, &content);
            let Ok((Content::PasswordUpdate { key_hash, key_history, .. }, _)) = decoded else {
                next = None;
                continue;
            };
            if !self.account_keys.contains_key(update) {
                let known = self.secrets.iter().find(|it| it.key_hash == key_hash).map(|it| it.account_key.clone());
                let sealed = next.as_ref().and_then(|(key, history)| one_key(&key.open(history).ok()?));
                if let Some(key) = known.or(sealed) {
                    self.account_keys.insert(*update, key);
                }
            }
            next = self.account_keys.get(update).map(|key| (key.clone(), key_history));
        }
    }

    /// The key that the server's note on the keys of two announces.
    fn direct_key(&mut self, update: MessageId) -> Option<ChannelKey> {
        if let Some(key) = self.direct_keys.get(&update) {
            return Some(key.clone());
        }
        let on = &self.messages.get(&update)?.delivery.body.dependencies;
        let find = |kind: Kind| {
            on.iter().filter_map(|on| self.messages.get(&on.message)).find(|it| it.delivery.body.kind == kind)
        };
        let private = find(Kind::PrivateKeys).filter(|it| it.delivery.sender == self.me)?;
        let public = find(Kind::PublicKeys).filter(|it| it.delivery.sender != self.me)?;
        let (Content::PrivateKeys(own), Content::PublicKeys(other)) =
            (&private.opened.as_ref()?.content, &public.opened.as_ref()?.content)
        else {
            return None;
        };
        let key = keys::agree(own, other).ok()?;
        self.direct_keys.insert(update, key.clone());
        Some(key)
    }

    /// What may be the keys that a list of members announces, the likeliest first.
    fn group_keys(&mut self, update: MessageId) -> Vec<GroupKeys> {
        if let Some(keys) = self.group_keys.get(&update) {
            return keys.clone();
        }
        let found = self.find_group_keys(update);
        if !found.is_empty() {
            self.group_keys.insert(update, found.clone());
        }
        found
    }

    fn find_group_keys(&mut self, update: MessageId) -> Vec<GroupKeys> {
        let Some(Entry { delivery, .. }) = self.messages.get(&update) else { return Vec::new() };
        let (group, sender) = (delivery.channel, delivery.sender);
        let named = delivery.body.dependencies.iter().filter(|on| on.account == self.me);
        let of = |it: &&Notified| it.group == group && it.sender == sender;
        let named = named.filter_map(|on| self.notified.get(&on.message)).find(of).map(|it| it.keys.clone());
        if let Some(keys) = named {
            return vec![keys];
        }
        let Some(channel) = self.channels.get(&group) else { return Vec::new() };
        let at = channel.updates.iter().position(|it| *it == update);
        let (before, after) = match at {
            Some(at) => (
                at.checked_sub(1).and_then(|at| channel.updates.get(at)).copied().unwrap_or_default(),
                channel.updates.get(at + 1).copied(),
            ),
            None => (MessageId::NONE, None),
        };
        if sender == self.me {
            // Of another device of this account, or of this one: whoever it was for, it is the key.
            let own = self.notified.range(before..update).rev().map(|(_, it)| it).filter(of);
            let mut found: Vec<GroupKeys> = Vec::new();
            for notified in own {
                match found.iter_mut().find(|it| it.channel == notified.keys.channel) {
                    Some(same) => same.history = same.history.take().or_else(|| notified.keys.history.clone()),
                    None => found.push(notified.keys.clone()),
                }
            }
            let history = self.key_history(update);
            // The one that opens what was sealed with it comes first; of the others, the newest.
            found.sort_by_key(|keys| keys.history.as_ref().is_none_or(|key| key.open(&history).is_err()));
            if !found.is_empty() {
                return found;
            }
        }
        // Before this account was in it.
        let Some(after) = after else { return Vec::new() };
        let history = self.key_history(after);
        let later = self.group_keys(after);
        let opened = later.iter().find_map(|keys| two_keys(&keys.history.as_ref()?.open(&history).ok()?));
        opened.into_iter().collect()
    }

    fn key_history(&self, update: MessageId) -> Bytes {
        match self.messages.get(&update).and_then(|it| it.opened.as_ref()) {
            Some(Opened { content: Content::GroupChannelUpdate { key_history, .. }, .. }) => key_history.clone(),
            _ => Bytes::new(),
        }
    }

    /// What a message that was just opened means.
    #[expect(clippy::too_many_lines, reason = "one arm for each kind of message")]
    fn apply(&mut self, id: MessageId) {
        let Some(Entry { delivery, opened: Some(opened) }) = self.messages.get(&id) else { return };
        let (sender, channel) = (delivery.sender, delivery.channel);
        let (kind, dependencies) = (delivery.body.kind, delivery.body.dependencies.clone());
        let content = opened.content.clone();
        let keeps_newest = kind.keep_last()
            || matches!(
                kind,
                Kind::MailAddress
                    | Kind::PublicKeys
                    | Kind::ArchiveChannel
                    | Kind::DirectChannelCustomization
                    | Kind::VerifiedKeys
                    | Kind::BackgroundImage
            );
        if keeps_newest {
            // What is asked for later may be older than what is known.
            let newest = self.newest.entry((channel, kind)).or_default();
            if *newest > id {
                return;
            }
            let before = std::mem::replace(newest, id);
            if kind.keep_last() && !before.is_none() {
                self.remove(before);
            }
        }
        let Some(found) = self.channels.get_mut(&channel) else { return };
        let is_group = found.channel_type() == ChannelType::Group;
        // An account's public profile is its own; in a profile it is for those who are in it.
        let person = match found.channel_type() {
            ChannelType::AccountData | ChannelType::ProfileData => Some(self.people.entry(sender).or_default()),
            _ => None,
        };
        match content {
            Content::MailAddress(address) => self.people.entry(sender).or_default().address = address,
            Content::PublicKeys(_) => self.people.entry(sender).or_default().keys = Some(id),
            Content::OnlineState(since) => {
                let person = self.people.entry(sender).or_default();
                (person.online, person.last_active) = (since.is_none(), since.unwrap_or_default());
            }
            Content::Nickname(name) => match person {
                Some(person) => person.nickname = name,
                None if is_group => found.name = name,
                None => {}
            },
            Content::Bio(bio) => {
                if let Some(person) = person {
                    person.bio = bio;
                }
            }
            Content::ProfileImage(_) => {
                if let Some(person) = person {
                    person.image = Some(id);
                }
            }
            Content::ArchiveChannel(mode) if sender.is_none() || found.is_group() => found.archive = mode,
            Content::VerifiedKeys(fingerprint) => found.verified = Some(fingerprint),
            Content::DirectChannelCustomization { nickname, .. } => found.name = nickname,
            Content::DirectChannelUpdate if sender.is_none() => note(&mut found.updates, id),
            Content::GroupChannelKeyNotify { group, new_key, history_key } => {
                let history = Some(ChannelKey(history_key)).filter(|key| key.0.expose() != &[0; 64]);
                let keys = GroupKeys { channel: ChannelKey(new_key), history };
                let counterpart = found.announced.counterpart;
                self.notified.insert(id, Notified { group, sender, counterpart, keys });
            }
            Content::GroupChannelUpdate { revision, members, .. } => {
                note(&mut found.updates, id);
                if found.updates.last() == Some(&id) {
                    (found.revision, found.members) = (revision, members.into_iter().collect());
                }
                // Of what comes before it more may be known now.
                let known: BTreeSet<MessageId> = found.updates.iter().copied().collect();
                self.group_keys.retain(|update, _| !known.contains(update));
            }
            Content::MessageOverride(text) => {
                for on in dependencies {
                    let target = self.messages.get(&on.message).map(|it| &it.delivery);
                    let own = target.is_some_and(|it| {
                        let said = matches!(it.body.kind, Kind::ChatMessage | Kind::DaystreamMessage);
                        said && it.sender == sender && it.channel == channel
                    });
                    let by = self.edits.get(&on.message).map_or(MessageId::NONE, |(by, _)| *by);
                    if own && by < id {
                        self.edits.insert(on.message, (id, text.clone()));
                    }
                }
            }
            Content::MessageReceived | Content::MessageRead => {
                let is_read = kind == Kind::MessageRead;
                for on in dependencies {
                    if self.messages.get(&on.message).is_some_and(|it| it.delivery.channel == channel) {
                        *self.receipts.entry(on.message).or_default().entry(sender).or_default() |= is_read;
                    }
                }
            }
            Content::BlockList { accounts, channels } => {
                self.blocked =
                    Blocked { accounts: accounts.into_iter().collect(), channels: channels.into_iter().collect() };
            }
            Content::DeviceList(devices) => self.devices = devices,
            Content::QueueMailAddressChange(_)
            | Content::PasswordUpdate { .. }
            | Content::PrivateKeys(_)
            | Content::ArchiveChannel(_)
            | Content::DirectChannelUpdate
            | Content::ChatMessage { .. }
            | Content::DaystreamMessage { .. }
            | Content::BackgroundImage => {}
        }
    }

    /// Forgets what is older than what is kept, but for what opens or explains something.
    fn prune(&mut self) {
        if self.messages.len() <= MESSAGES_MAX {
            return;
        }
        // A tenth at a time.
        let said = self.messages.iter().filter(|(_, it)| is_said(it.delivery.body.kind));
        let gone: Vec<MessageId> = said.map(|(id, _)| *id).take(MESSAGES_MAX / 10).collect();
        for id in gone {
            self.floor = self.floor.max(id);
            self.remove(id);
        }
    }

    /// What announces the key that is used in a channel now.
    #[must_use]
    pub fn base(&self, channel: ChannelId, flags: MessageFlags) -> Option<MessageId> {
        match self.channels.get(&channel)? {
            _ if flags.has(MessageFlags::LOOPBACK) => self.updates.last().copied(),
            it => it.updates.last().copied(),
        }
    }

    /// The key that is used in a channel now.
    pub fn key(&mut self, channel: ChannelId, flags: MessageFlags) -> Option<(MessageId, ChannelKey)> {
        let base = self.base(channel, flags)?;
        let key = match self.channels.get(&channel)?.channel_type() {
            _ if flags.has(MessageFlags::LOOPBACK) => self.account_keys.get(&base).cloned(),
            ChannelType::Direct => self.direct_key(base),
            _ => self.group_keys(base).into_iter().next().map(|keys| keys.channel),
        };
        key.map(|key| (base, key))
    }

    /// The keys of a group now.
    pub fn keys_of_group(&mut self, group: ChannelId) -> Option<GroupKeys> {
        let update = *self.channels.get(&group)?.updates.last()?;
        self.group_keys(update).into_iter().next()
    }

    /// Whether somebody can read what was said in a group before it was in it, because this account told it how.
    #[must_use]
    pub fn told_history(&self, group: ChannelId, to: AccountId) -> bool {
        let told = self.notified.values().rev();
        let mut told = told.filter(|it| it.group == group && it.sender == self.me && it.counterpart == to);
        told.next().is_some_and(|it| it.keys.history.is_some())
    }

    /// A message for a channel: sealed unless the flags say otherwise, and on top of what announced its key.
    ///
    /// # Errors
    /// [`CannotSeal`].
    pub fn seal(
        &mut self,
        channel: ChannelId,
        flags: MessageFlags,
        content: &Content,
        file: Option<&FileBlock>,
    ) -> Result<Body, CannotSeal> {
        if !self.channels.contains_key(&channel) {
            return Err(CannotSeal::Channel);
        }
        let plain = content.encode(file)?;
        if flags.has(MessageFlags::UNENCRYPTED) {
            return within(Body::new(content.kind(), flags, plain));
        }
        let (base, key) = self.key(channel, flags).ok_or(CannotSeal::Key)?;
        let on = Dependency { account: AccountId::NONE, message: base };
        within(Body::new(content.kind(), flags, key.seal(&plain)).on([on]))
    }
}

/// Whether it is for people alone: nothing else needs it.
const fn is_said(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::ChatMessage | Kind::DaystreamMessage | Kind::MessageOverride | Kind::MessageReceived | Kind::MessageRead
    )
}

fn within(body: Body) -> Result<Body, CannotSeal> {
    if body.content.len() > usize::from(u16::MAX) { Err(CannotSeal::TooLong) } else { Ok(body) }
}

/// Notes a number in its place.
fn note(numbers: &mut Vec<MessageId>, id: MessageId) {
    if let Err(at) = numbers.binary_search(&id) {
        numbers.insert(at, id);
    }
}

fn one_key(plain: &[u8]) -> Option<ChannelKey> {
    plain.first_chunk::<64>().map(|key| ChannelKey(Secret::new(*key)))
}

fn two_keys(plain: &[u8]) -> Option<GroupKeys> {
    let (channel, rest) = plain.split_first_chunk::<64>()?;
    let history = one_key(rest)?;
    let history = Some(history).filter(|key| key.0.expose() != &[0; 64]);
    Some(GroupKeys { channel: ChannelKey(Secret::new(*channel)), history })
}
