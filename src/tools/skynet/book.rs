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
//! A message that says nothing was sealed with the newest key before it. Named can be what announced a key of *this* channel, and
//! nothing else: whoever could choose another channel's key could pass on there what was said here. What cannot be opened yet, because a key is itself
//! sealed and its key still to come, waits; whatever brings a key opens everything that waited for it, in order. A message whose key is
//! there and that does not open is reported: somebody changed it, or sealed it with something else.
//!
//! # Who is believed
//!
//! The server carries what is sealed, and is not to be able to say it. So a kind that is to be sealed is never taken in clear, nothing is
//! taken where its kind has no place, and what is for an account's own devices alone only from the account itself. The keys of
//! two are taken from the two: a note of the server that names anybody else's announces none. When two have compared their keys, what one
//! of them says is sealed for those and no others.
//!
//! An administrator's other devices are told the keys of a group in what is sent to its members; which of several such
//! notifications became the group's key is told by what opens.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;

use super::keys;
use crate::chat::skynet::wire::blob::{AccountKeys, ChannelKey};
use crate::chat::skynet::wire::content::{ArchiveMode, MemberFlags};
use crate::chat::skynet::wire::{
    AccountId, Announced, Body, ChannelId, ChannelType, Content, DateTime, Delivery, Dependency, Device, FileBlock,
    Kind, MessageFlags, MessageId, TooLong,
};
use crate::crypto::Secret;

/// What is kept of what people say, and as much again of the rest; of more, the oldest are forgotten here. The server has them.
pub const KEPT_MAX: Weight = Weight { messages: 50_000, bytes: 256 * 1024 * 1024 };
/// The newest of each channel, which stay whatever else is said there.
const NEWEST: usize = 100;

/// How many messages, and about how much memory they take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Weight {
    /// In number.
    pub messages: usize,
    /// In bytes.
    pub bytes: usize,
}

impl Weight {
    /// Sealed and opened, and what is built around them.
    fn of(delivery: &Delivery) -> Self {
        let Body { content, dependencies, .. } = &delivery.body;
        let bytes = content.len().saturating_mul(2).saturating_add(dependencies.len().saturating_mul(64));
        Self { messages: 1, bytes: bytes.saturating_add(512) }
    }

    const fn add(&mut self, other: Self) {
        self.messages = self.messages.saturating_add(other.messages);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    const fn remove(&mut self, other: Self) {
        self.messages = self.messages.saturating_sub(other.messages);
        self.bytes = self.bytes.saturating_sub(other.bytes);
    }

    const fn is_within(self, most: Self) -> bool {
        self.messages <= most.messages && self.bytes <= most.bytes
    }

    const fn tenths(self, tenths: usize) -> Self {
        Self { messages: self.messages.saturating_mul(tenths) / 10, bytes: self.bytes.saturating_mul(tenths) / 10 }
    }

    /// In parts of what is allowed, in millions.
    fn share(self, most: Self) -> usize {
        let part = |is: usize, most: usize| is.saturating_mul(1_000_000) / most.max(1);
        part(self.messages, most.messages).max(part(self.bytes, most.bytes))
    }
}

const NOTHING: Weight = Weight { messages: 0, bytes: 0 };

/// What people say is kept apart from what opens it and what else there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Kept {
    said: Weight,
    rest: Weight,
}

impl Kept {
    const fn of(self, said: bool) -> Weight {
        if said { self.said } else { self.rest }
    }

    const fn part(&mut self, said: bool) -> &mut Weight {
        if said { &mut self.said } else { &mut self.rest }
    }
}

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
    /// The counterpart's keys are others than those that were compared.
    #[error("their keys are not those that were verified: `/verify` shows them, `/verified` says that they are right")]
    Unverified,
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
    /// Up to there, what is not here was forgotten.
    pub floor: MessageId,
    kept: Kept,
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
            floor: MessageId::NONE,
            kept: Kept { said: NOTHING, rest: NOTHING },
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

/// See the top of this file. Prints how much it knows.
#[derive(Default)]
pub struct Book {
    /// Whose it is.
    pub me: AccountId,
    channels: BTreeMap<ChannelId, Channel>,
    people: BTreeMap<AccountId, Person>,
    messages: BTreeMap<MessageId, Entry>,
    /// What waits for a key.
    sealed: BTreeSet<MessageId>,
    kept: Kept,
    /// More than this is not kept; more than what is allowed as long as nothing can be forgotten.
    bounds: Kept,
    most: Weight,
    /// What passwords became, the newest last.
    secrets: Vec<AccountKeys>,
    /// By password update.
    account_keys: BTreeMap<MessageId, ChannelKey>,
    updates: BTreeSet<MessageId>,
    notified: BTreeMap<MessageId, Notified>,
    /// By member list: what may be its keys, the likeliest first.
    group_keys: BTreeMap<MessageId, Vec<GroupKeys>>,
    direct_keys: BTreeMap<MessageId, ChannelKey>,
    /// By message and who says so where: the text it has now, or none if it was deleted, and by which message. The message itself may
    /// come later, when it is asked for.
    edits: BTreeMap<(MessageId, AccountId, ChannelId), (MessageId, Option<String>)>,
    /// By message and where that is said: who has it, and whether it was read.
    receipts: BTreeMap<(MessageId, ChannelId), BTreeMap<AccountId, bool>>,
    /// By channel and kind: which message said it last.
    newest: BTreeMap<(ChannelId, Kind), MessageId>,
    blocked: Blocked,
    devices: Vec<Device>,
}

impl fmt::Debug for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { me, channels, people, messages, sealed, .. } = self;
        let [channels, people, messages, sealed] = [channels.len(), people.len(), messages.len(), sealed.len()];
        write!(f, "Book({me:?}, {channels} channels, {people} people, {messages} messages, {sealed} of them sealed)")
    }
}

impl Book {
    /// An empty one of an account whose password became this.
    #[must_use]
    pub fn new(me: AccountId, keys: AccountKeys) -> Self {
        let bounds = Kept { said: KEPT_MAX, rest: KEPT_MAX };
        Self { me, secrets: vec![keys], bounds, most: KEPT_MAX, ..Self::default() }
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

    /// What this account calls somebody, by `/rename`; empty if nothing.
    #[must_use]
    pub fn own_name_of(&self, account: AccountId) -> &str {
        self.direct(account).map(|it| it.name.as_str()).unwrap_or_default()
    }

    /// What to call somebody: by what this account calls them, else what they call themselves, else their address. People may call
    /// themselves anything, so what could be taken for somebody else comes with the address.
    #[must_use]
    pub fn name_of(&self, account: AccountId) -> String {
        let own = self.own_name_of(account);
        if !own.is_empty() {
            return own.to_owned();
        }
        let Some(Person { nickname, address, .. }) = self.people.get(&account) else {
            return format!("#{}", account.0);
        };
        let shown = if address.is_empty() { format!("#{}", account.0) } else { address.clone() };
        match nickname.as_str() {
            "" => shown,
            name if looks_like_an_address(name) || self.is_name_of_another(name, account) => {
                format!("{name} ({shown})")
            }
            name => name.to_owned(),
        }
    }

    /// Whether somebody else is called this, by this account or by themselves.
    pub(super) fn is_name_of_another(&self, name: &str, account: AccountId) -> bool {
        let named = |(other, person): (&AccountId, &Person)| {
            *other != account && (person.nickname == name || self.own_name_of(*other) == name)
        };
        self.people.iter().any(named)
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
        let Entry { delivery, opened } = self.messages.get(&id)?;
        if let Some((_, text)) = self.edits.get(&(id, delivery.sender, delivery.channel)) {
            return text.as_deref().filter(|_| is_chat(delivery.body.kind));
        }
        match &opened.as_ref()?.content {
            Content::ChatMessage { text, .. } | Content::DaystreamMessage { text, .. } => Some(text),
            _ => None,
        }
    }

    /// Who has a message, and whether it was read.
    #[must_use]
    pub fn receipts(&self, id: MessageId) -> Option<&BTreeMap<AccountId, bool>> {
        self.receipts.get(&(id, self.messages.get(&id)?.delivery.channel))
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

    /// Up to there, messages of a channel that are not here were forgotten.
    pub fn set_floor(&mut self, channel: ChannelId, floor: MessageId) {
        if let Some(channel) = self.channels.get_mut(&channel) {
            channel.floor = channel.floor.max(floor);
        }
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

    /// Nothing is known to be complete any more.
    pub fn doubt(&mut self) {
        for channel in self.channels.values_mut() {
            channel.complete = false;
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

    fn remove(&mut self, id: MessageId) {
        let Some(Entry { delivery, .. }) = self.messages.remove(&id) else { return };
        let weight = Weight::of(&delivery);
        let Delivery { channel, sender, body, .. } = delivery;
        let said = is_for_people(body.kind);
        self.kept.part(said).remove(weight);
        if let Some(channel) = self.channels.get_mut(&channel) {
            channel.kept.part(said).remove(weight);
            if let Ok(at) = channel.updates.binary_search(&id) {
                channel.updates.remove(at);
            }
        }
        self.sealed.remove(&id);
        self.direct_keys.remove(&id);
        self.group_keys.remove(&id);
        self.notified.remove(&id);
        self.receipts.remove(&(id, channel));
        // What was said of it stays as long as the message that says so; and goes with that, unless it is said of what is here.
        if self.edits.get(&(id, sender, channel)).is_some_and(|(by, _)| !self.messages.contains_key(by)) {
            self.edits.remove(&(id, sender, channel));
        }
        for on in body.dependencies.iter().map(|on| on.message).filter(|on| !self.messages.contains_key(on)) {
            if self.edits.get(&(on, sender, channel)).is_some_and(|(by, _)| *by == id) {
                self.edits.remove(&(on, sender, channel));
            }
            self.receipts.remove(&(on, channel));
        }
    }

    /// Whether a message is here, or was. One that was asked for may have been forgotten.
    #[must_use]
    pub fn knows(&self, delivery: &Delivery, asked_for: bool) -> bool {
        // Of a contact that is added, keys come that are older than what was forgotten.
        let forgotten = || self.channels.get(&delivery.channel).is_some_and(|it| delivery.id <= it.floor);
        self.messages.contains_key(&delivery.id) || (!asked_for && is_for_people(delivery.body.kind) && forgotten())
    }

    /// A message came. What can be read now that could not before; nothing when it was known.
    pub fn take(&mut self, delivery: Delivery, asked_for: bool) -> Vec<Read> {
        let (id, kind, weight) = (delivery.id, delivery.body.kind, Weight::of(&delivery));
        if self.knows(&delivery, asked_for) {
            return Vec::new();
        }
        let Some(channel) = self.channels.get_mut(&delivery.channel) else { return Vec::new() };
        channel.kept.part(is_for_people(kind)).add(weight);
        self.kept.part(is_for_people(kind)).add(weight);
        let believed = self.is_in_its_place(&delivery);
        self.messages.insert(id, Entry { delivery, opened: None });
        if kind == Kind::PasswordUpdate && believed {
            self.updates.insert(id);
            self.resolve_passwords();
        }
        let mut read = Vec::new();
        self.sealed.insert(id);
        if self.open(id, &mut read) {
            read.extend(self.open_sealed());
        }
        self.prune(id);
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
        match kind {
            // One that nobody told the keys of brings none.
            Kind::GroupChannelUpdate => !self.group_keys(id).is_empty(),
            kind => matches!(
                kind,
                Kind::PasswordUpdate
                    | Kind::PrivateKeys
                    | Kind::PublicKeys
                    | Kind::DirectChannelUpdate
                    | Kind::GroupChannelKeyNotify
            ),
        }
    }

    /// Whether such a message may be there at all: sealed if it has to be, in a channel for its kind, and from somebody who has a
    /// say there (spec 2.4, 2.6). A server that is what it should be sends no other.
    fn is_in_its_place(&self, delivery: &Delivery) -> bool {
        let Delivery { channel, sender, body, .. } = delivery;
        let Some(announced) = self.channels.get(channel).map(|it| it.announced) else { return false };
        let rule = body.kind.rule();
        let has_a_say = match announced.channel_type {
            ChannelType::Loopback => *sender == self.me && announced.owner == self.me,
            ChannelType::AccountData => *sender == announced.owner && body.flags.has(MessageFlags::UNENCRYPTED),
            // Only the server archives.
            ChannelType::Direct if !rule.from_client || body.kind == Kind::ArchiveChannel => sender.is_none(),
            ChannelType::Direct => [self.me, announced.counterpart].contains(sender),
            ChannelType::Group | ChannelType::ProfileData => !sender.is_none(),
        };
        let of_this_account = !body.flags.has(MessageFlags::LOOPBACK) || *sender == self.me;
        body.flags.obey(&rule) && rule.channels.contains(&announced.channel_type) && has_a_say && of_this_account
    }

    /// The content of a message; nothing as long as there is no key for it.
    fn try_open(&mut self, id: MessageId) -> Option<Result<Opened, ()>> {
        let delivery = &self.messages.get(&id)?.delivery;
        if !self.is_in_its_place(delivery) {
            return Some(Err(()));
        }
        let body = delivery.body.clone();
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
        let mut named = body.dependencies.iter().map(|on| on.message);
        let announced_by = if loopback {
            named.find(|on| self.updates.contains(on)).or_else(|| self.updates.range(..id).next_back().copied())
        } else {
            let before = channel.updates.partition_point(|it| *it < id).checked_sub(1);
            let before = before.and_then(|at| channel.updates.get(at)).copied();
            named.find(|on| channel.updates.binary_search(on).is_ok()).or(before)
        };
        let Some(announced_by) = announced_by else { return Vec::new() };
        match channel.channel_type() {
            _ if loopback => self.account_keys.get(&announced_by).cloned().into_iter().collect(),
            ChannelType::Direct => self.direct_key(announced_by).into_iter().collect(),
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

    /// The messages with this account's private and the counterpart's public keys that the server's note on the keys of two names;
    /// nothing when they are anybody else's.
    fn keys_of_two(&self, update: MessageId) -> Option<(&Entry, &Entry)> {
        let delivery = &self.messages.get(&update)?.delivery;
        let with = self.channels.get(&delivery.channel)?.announced.counterpart;
        let find = |kind: Kind, of: AccountId, within: ChannelType| {
            let named = delivery.body.dependencies.iter().filter_map(|on| self.messages.get(&on.message));
            let there = |id: ChannelId| self.channels.get(&id).map(|it| (it.channel_type(), it.announced.owner));
            let mut named = named.filter(|it| (it.delivery.body.kind, it.delivery.sender) == (kind, of));
            named.find(|it| there(it.delivery.channel) == Some((within, of)))
        };
        let private = find(Kind::PrivateKeys, self.me, ChannelType::Loopback)?;
        Some((private, find(Kind::PublicKeys, with, ChannelType::AccountData)?))
    }

    /// The key that the server's note on the keys of two announces.
    fn direct_key(&mut self, update: MessageId) -> Option<ChannelKey> {
        if let Some(key) = self.direct_keys.get(&update) {
            return Some(key.clone());
        }
        let (private, public) = self.keys_of_two(update)?;
        let (Content::PrivateKeys(own), Content::PublicKeys(other)) =
            (&private.opened.as_ref()?.content, &public.opened.as_ref()?.content)
        else {
            return None;
        };
        let key = keys::agree(own, other).ok()?;
        self.direct_keys.insert(update, key.clone());
        Some(key)
    }

    /// What two people compare: the fingerprints of the keys with which their channel is sealed now, the counterpart's and one's
    /// own. One's own is made of the private keys that are here, not of what the server shows others.
    #[must_use]
    pub fn fingerprints(&self, channel: ChannelId) -> Option<([u8; 32], [u8; 32])> {
        let (private, public) = self.keys_of_two(*self.channels.get(&channel)?.updates.last()?)?;
        let Content::PrivateKeys(own) = &private.opened.as_ref()?.content else { return None };
        let own = Content::PublicKeys(keys::public(own).ok()?).encode(None).ok()?;
        Some((keys::fingerprint(&public.delivery.body.content), keys::fingerprint(&own)))
    }

    /// Whether the keys of a channel were compared and are others now.
    #[must_use]
    pub fn is_unverified(&self, channel: ChannelId) -> bool {
        let Some(verified) = self.channels.get(&channel).and_then(|it| it.verified) else { return false };
        let update = self.channels.get(&channel).and_then(|it| it.updates.last().copied());
        let theirs = update.and_then(|update| Some(self.keys_of_two(update)?.1));
        theirs.is_none_or(|it| keys::fingerprint(&it.delivery.body.content) != verified)
    }

    /// Whether the server shows others keys as this account's that are not the public halves of its own.
    #[must_use]
    pub fn is_impersonated(&self) -> bool {
        let shown = self.people.get(&self.me).and_then(|it| self.messages.get(&it.keys?));
        let Some(Entry { delivery, opened: Some(Opened { content: Content::PublicKeys(shown), .. }) }) = shown else {
            return false;
        };
        let mut named = delivery.body.dependencies.iter().filter_map(|on| self.messages.get(&on.message));
        match named.find(|it| it.delivery.body.kind == Kind::PrivateKeys) {
            Some(Entry { opened: Some(Opened { content: Content::PrivateKeys(own), .. }), .. }) => {
                keys::public(own).as_ref() != Ok(shown)
            }
            // Sealed with a password that is not known here.
            Some(Entry { delivery, opened: None }) => !self.sealed.contains(&delivery.id),
            _ => true,
        }
    }

    /// What may be the keys that a list of members announces, the likeliest first.
    ///
    /// When nobody told this account, because it was not in the group yet, each change opens the keys before it, from one whose keys are
    /// known on backwards. What is found on the way is remembered, also that there is nothing, until something comes that may have it.
    /// A loop: how often a group changed is for others to say.
    fn group_keys(&mut self, update: MessageId) -> Vec<GroupKeys> {
        if let Some(keys) = self.group_keys.get(&update) {
            return keys.clone();
        }
        let channel = self.messages.get(&update).and_then(|it| self.channels.get(&it.delivery.channel));
        let Some(channel) = channel.filter(|it| it.is_group()) else { return Vec::new() };
        let from = channel.updates.partition_point(|it| *it < update);
        let later: Vec<MessageId> = channel.updates.iter().skip(from).copied().collect();
        let (mut walked, mut keys) = (Vec::new(), Vec::new());
        for at in later {
            walked.push(at);
            let known = self.group_keys.get(&at).cloned();
            let is_known = known.is_some();
            keys = known.unwrap_or_else(|| self.told_keys(at));
            if is_known || !keys.is_empty() {
                break;
            }
        }
        while let Some(at) = walked.pop() {
            self.group_keys.insert(at, keys.clone());
            if at == update {
                break;
            }
            let history = self.key_history(at);
            let opened = keys.iter().find_map(|keys| two_keys(&keys.history.as_ref()?.open(&history).ok()?));
            keys = opened.into_iter().collect();
        }
        keys
    }

    /// The same from what this account was told, or told others.
    fn told_keys(&self, update: MessageId) -> Vec<GroupKeys> {
        let Some(Entry { delivery, .. }) = self.messages.get(&update) else { return Vec::new() };
        let (group, sender) = (delivery.channel, delivery.sender);
        let named = delivery.body.dependencies.iter().filter(|on| on.account == self.me);
        let of = |it: &&Notified| it.group == group && it.sender == sender;
        let named = named.filter_map(|on| self.notified.get(&on.message)).find(of).map(|it| it.keys.clone());
        if let Some(keys) = named {
            return vec![keys];
        }
        if sender != self.me {
            return Vec::new();
        }
        // Of another device of this account, or of this one: whoever it was for, it is the key.
        let updates = self.channels.get(&group).map(|it| it.updates.as_slice()).unwrap_or_default();
        let before = updates.partition_point(|it| *it < update).checked_sub(1);
        let before = before.and_then(|at| updates.get(at)).copied().unwrap_or_default();
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
        found
    }

    /// Something may be known of a group's keys that was not.
    fn look_again(&mut self, group: ChannelId) {
        let updates = self.channels.get(&group).map(|it| it.updates.as_slice()).unwrap_or_default();
        for update in updates {
            if self.group_keys.get(update).is_some_and(Vec::is_empty) {
                self.group_keys.remove(update);
            }
        }
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
                self.look_again(group);
            }
            Content::GroupChannelUpdate { revision, members, .. } => {
                note(&mut found.updates, id);
                if found.updates.last() == Some(&id) {
                    (found.revision, found.members) = (revision, members.into_iter().collect());
                }
                if found.updates.last() == Some(&id) {
                    // Of what comes before it more may be known now, if this one is.
                    if !self.told_keys(id).is_empty() {
                        self.look_again(channel);
                    }
                } else {
                    for update in &found.updates {
                        self.group_keys.remove(update);
                    }
                }
            }
            Content::MessageOverride(text) => {
                for on in dependencies {
                    let by = self.edits.entry((on.message, sender, channel)).or_default();
                    if by.0 < id {
                        *by = (id, text.clone());
                    }
                }
            }
            Content::MessageReceived | Content::MessageRead => {
                let is_read = kind == Kind::MessageRead;
                for on in dependencies {
                    *self.receipts.entry((on.message, channel)).or_default().entry(sender).or_default() |= is_read;
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

    /// Forgets the oldest of whatever there is too much of, a tenth at a time, where there is most of it: whoever says a great deal pays
    /// for it in their own channels. Not `just`, which was just taken, and nothing that something else is opened with.
    fn prune(&mut self, just: MessageId) {
        for said in [true, false] {
            if self.kept.of(said).is_within(self.bounds.of(said)) {
                continue;
            }
            let (most, goal) = (self.most, self.most.tenths(9));
            let mut looked_at: BTreeSet<ChannelId> = BTreeSet::new();
            while !self.kept.of(said).is_within(goal) {
                let others = self.channels.values().filter(|it| !looked_at.contains(&it.id));
                let heaviest = others.max_by_key(|it| it.kept.of(said).share(most)).map(|it| it.id);
                let Some(heaviest) = heaviest else { break };
                looked_at.insert(heaviest);
                for id in self.forgettable(heaviest, said, just) {
                    if self.kept.of(said).is_within(goal) {
                        break;
                    }
                    if said {
                        self.set_floor(heaviest, id);
                    }
                    self.remove(id);
                }
            }
            // It is not looked through again for each message when there is nothing to be forgotten.
            let mut bound = self.kept.of(said);
            bound.add(most.tenths(1));
            *self.bounds.part(said) = if self.kept.of(said).is_within(goal) { most } else { bound };
        }
    }

    /// What can be forgotten of a channel, the oldest first.
    fn forgettable(&self, channel: ChannelId, said: bool, just: MessageId) -> Vec<MessageId> {
        let Some(channel) = self.channels.get(&channel) else { return Vec::new() };
        if !said && channel.channel_type() == ChannelType::Loopback {
            return Vec::new();
        }
        let here = |it: &&Entry| it.delivery.channel == channel.id && is_for_people(it.delivery.body.kind) == said;
        let mut found: Vec<MessageId> = self.messages.values().filter(here).map(|it| it.delivery.id).collect();
        found.truncate(found.len().saturating_sub(NEWEST));
        let mut needed: BTreeSet<MessageId> = BTreeSet::from([just]);
        if !said {
            needed.extend(
                self.messages.values().flat_map(|it| it.delivery.body.dependencies.iter().map(|on| on.message)),
            );
            needed.extend(self.newest.values().copied());
            needed.extend(channel.updates.last());
            // Of what an administrator told others, nobody says which was used.
            needed.extend(self.notified.iter().filter(|(_, it)| it.sender == self.me).map(|(id, _)| *id));
        }
        found.retain(|id| !needed.contains(id));
        found
    }

    /// What announces the key that is used in a channel now.
    #[must_use]
    pub fn base(&self, channel: ChannelId, flags: MessageFlags) -> Option<MessageId> {
        match self.channels.get(&channel)? {
            _ if flags.has(MessageFlags::LOOPBACK) => self.updates.last().copied(),
            it => it.updates.last().copied(),
        }
    }

    /// The key that is used in a channel now, and what announced it.
    ///
    /// # Errors
    /// [`CannotSeal`].
    pub fn key(&mut self, channel: ChannelId, flags: MessageFlags) -> Result<(MessageId, ChannelKey), CannotSeal> {
        let channel_type = self.channels.get(&channel).ok_or(CannotSeal::Channel)?.channel_type();
        let base = self.base(channel, flags).ok_or(CannotSeal::Key)?;
        let key = match channel_type {
            _ if flags.has(MessageFlags::LOOPBACK) => self.account_keys.get(&base).cloned(),
            ChannelType::Direct if self.is_unverified(channel) => return Err(CannotSeal::Unverified),
            ChannelType::Direct => self.direct_key(base),
            _ => self.group_keys(base).into_iter().next().map(|keys| keys.channel),
        };
        Ok((base, key.ok_or(CannotSeal::Key)?))
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
        let (base, key) = self.key(channel, flags)?;
        let on = Dependency { account: AccountId::NONE, message: base };
        within(Body::new(content.kind(), flags, key.seal(&plain)).on([on]))
    }
}

/// Addresses are found by their `@`; whatever else has one could be taken for one.
pub(super) fn looks_like_an_address(name: &str) -> bool {
    name.contains('@')
}

/// Whether people say something with it.
pub(super) const fn is_chat(kind: Kind) -> bool {
    matches!(kind, Kind::ChatMessage | Kind::DaystreamMessage)
}

/// Whether it is for people alone, what is said of what they say included: nothing else needs it.
const fn is_for_people(kind: Kind) -> bool {
    is_chat(kind) || matches!(kind, Kind::MessageOverride | Kind::MessageReceived | Kind::MessageRead)
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

#[cfg(test)]
mod tests;
