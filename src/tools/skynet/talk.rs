//! What a client decides: what follows from a packet, and what a wish of its user comes to (spec 4, 5). Pure: it performs nothing.
//!
//! # Once, and not twice
//!
//! What is said waits in a line (`outbox`) until the server has answered it. When the connection is lost before that, nobody
//! knows whether it was taken. The sync of the next connection tells: it has everything that this account said, this device
//! included, and a sealed message is like no other. What is found there was taken; what is not found is said again, when the sync is
//! over.
//!
//! The other direction is the server's: it is told the newest message that came, and the channels of which everything came. A
//! channel whose announcement was heard, and not yet the end of the sync behind it, is not among them, so that it comes whole.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use bytes::Bytes;
use zeroize::Zeroizing;

use super::book::{Blocked, Book, CannotSeal, Channel, GroupKeys, Read};
use super::event::{ChannelShown, DeviceShown, Event, FileShown, Said};
use super::keys;
use crate::chat::skynet::wire::blob::{AccountKeys, ChannelKey};
use crate::chat::skynet::wire::content::{ArchiveMode, ImageShape, MemberFlags, MessageType};
use crate::chat::skynet::wire::{
    AccountId, Announced, Body, ChannelAction, ChannelId, ChannelType, Content, CreateChannelStatus, DateTime,
    DeleteAccountStatus, Delivery, Dependency, Doing, FileBlock, FileId, Found, FromClient, Kind, MessageFlags,
    MessageId, MessageSendStatus, OnlineState, SessionId, ToClient, Upload, WantedChannel,
};
use crate::crypto::Secret;

/// What waits for the server's answer, at most, before nothing more is taken from the user.
const OUTBOX_MAX: usize = 256;
/// Of that, what a client may say of its own accord.
const RECEIPTS_MAX: usize = 64;
/// Attempts at changing a group while others change it.
const ATTEMPTS: u32 = 8;
/// Messages that are asked for at a time.
const PAGE: u16 = 100;

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    /// Remember that this is to be said: it may not be forgotten until it was answered.
    Keep(FromClient),
    /// Say it now.
    Say(FromClient),
    /// Somebody may want to know.
    Tell(Event),
    /// What is kept is to be opened by these passwords and no others.
    Seal(Vec<Lock>),
    /// The account is no more, and so is what is kept of it.
    Erase,
}

/// What opens what is kept: keys, and the account's name when they were made of it and a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lock {
    pub(super) name: String,
    pub(super) keys: AccountKeys,
}

/// What a user asked for that takes more than one packet.
#[derive(Debug)]
enum Work {
    Search(String),
    /// The address, then the channel.
    Contact(String, Option<ChannelId>),
    Found {
        temp: ChannelId,
        name: String,
        change: Edit,
    },
    Change(Change),
    Password {
        temp: MessageId,
        lock: Lock,
        password: Zeroizing<String>,
    },
    Devices,
    /// Older messages of a channel.
    Older(ChannelId, MessageId),
    /// Something that changes what the next wish means.
    Confirm(MessageId),
    Delete,
}

/// How a group is to become another one.
#[derive(Debug, Clone, Default)]
pub(super) struct Edit {
    /// What these are from now on; nothing when they are not in it any more.
    pub(super) members: BTreeMap<AccountId, Option<MemberFlags>>,
    /// Whether who is new can read what was said before.
    pub(super) history: bool,
}

/// A group that is about to become another one: everybody is told the new key, then all are told who is in it.
#[derive(Debug)]
struct Change {
    group: ChannelId,
    edit: Edit,
    name: String,
    attempt: u32,
    /// One more than what the members below are made of: who changes the group meanwhile makes this one begin again.
    revision: i64,
    keys: GroupKeys,
    members: Vec<(AccountId, MemberFlags)>,
    /// Notifications on their way.
    telling: BTreeMap<MessageId, AccountId>,
    told: Vec<Dependency>,
    update: Option<MessageId>,
}

/// A client of one account on one device. Prints what it waits for.
pub(super) struct Talk {
    book: Book,
    /// With which the keys were made.
    name: String,
    password: Zeroizing<String>,
    keys: AccountKeys,
    session: SessionId,
    /// The newest message of which it is sure that all before it came.
    last: MessageId,
    highest: MessageId,
    /// Something before the newest message has not come yet.
    gap: bool,
    /// Channels of an older session that were not announced again.
    stale: BTreeSet<ChannelId>,
    open_syncs: u32,
    /// The connection's first sync is over.
    ready: bool,
    /// The first sync of a new session is not.
    fresh: bool,
    outbox: VecDeque<Upload>,
    next_temp: i64,
    creating: BTreeMap<ChannelId, WantedChannel>,
    work: Option<Work>,
    /// Messages of others that nobody was told of that they came.
    unacknowledged: BTreeSet<MessageId>,
    presence: (OnlineState, Doing),
    current: Option<ChannelId>,
    /// What was kept is gone through again: nothing follows from it.
    replaying: bool,
    acts: Vec<Act>,
}

type Acts = Vec<Act>;

impl fmt::Debug for Talk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ready, open_syncs, outbox, work, unacknowledged, .. } = self;
        let waits: Vec<_> = outbox.iter().map(|it| (it.temp, it.body.kind)).collect();
        let work = work.as_ref().map(std::mem::discriminant);
        write!(f, "Talk(ready: {ready}, syncs: {open_syncs}, {work:?}, {waits:?}, {unacknowledged:?})")
    }
}

impl Talk {
    pub(super) fn new(account: AccountId, session: SessionId, lock: Lock, password: Zeroizing<String>) -> Self {
        Self {
            book: Book::new(account, lock.keys.clone()),
            name: lock.name,
            password,
            keys: lock.keys,
            session,
            last: MessageId::NONE,
            highest: MessageId::NONE,
            gap: false,
            stale: BTreeSet::new(),
            open_syncs: 0,
            ready: false,
            fresh: true,
            outbox: VecDeque::new(),
            next_temp: -1,
            creating: BTreeMap::new(),
            work: None,
            unacknowledged: BTreeSet::new(),
            presence: (OnlineState::INACTIVE, Doing::default()),
            current: None,
            replaying: false,
            acts: Vec::new(),
        }
    }

    pub(super) const fn book(&self) -> &Book {
        &self.book
    }

    pub(super) const fn current(&self) -> Option<ChannelId> {
        self.current
    }

    /// What the account is called, as far as is known here.
    pub(super) fn address(&self) -> &str {
        let own = self.book.person(self.book.me).map(|it| it.address.as_str()).filter(|it| !it.is_empty());
        own.unwrap_or(&self.name)
    }

    pub(super) const fn keys(&self) -> &AccountKeys {
        &self.keys
    }

    /// What a server is told when this session comes back.
    pub(super) fn known(&self) -> (MessageId, Vec<ChannelId>) {
        (self.last, self.book.channels().filter(|it| it.complete).map(|it| it.id).collect())
    }

    /// Whether the next wish has to wait for this one.
    pub(super) fn is_busy(&self) -> bool {
        self.work.is_some() || self.outbox.len() >= OUTBOX_MAX
    }

    /// Whether everything that was said was answered.
    pub(super) fn is_idle(&self) -> bool {
        self.ready && self.work.is_none() && self.outbox.is_empty() && self.unacknowledged.is_empty()
    }

    /// The connection's first sync is over.
    pub(super) const fn is_ready(&self) -> bool {
        self.ready
    }

    /// The session is another one: everything will come again, and what does not come is gone.
    pub(super) fn renewed(&mut self, session: SessionId) {
        self.session = session;
        self.stale = self.book.channels().map(|it| it.id).collect();
    }

    // ---- What was kept

    /// Goes through what was kept: something was heard.
    pub(super) fn replay_heard(&mut self, packet: ToClient) {
        self.replaying = true;
        self.hear(packet);
        self.acts.clear();
        self.replaying = false;
    }

    /// Goes through what was kept: something was to be said.
    pub(super) fn replay_said(&mut self, packet: FromClient) {
        match packet {
            FromClient::Message(upload) => {
                self.next_temp = self.next_temp.min(upload.temp.0.saturating_sub(1));
                self.outbox.push_back(upload);
            }
            FromClient::CreateChannel { temp, wanted } => drop(self.creating.insert(temp, wanted)),
            _ => {}
        }
    }

    /// What was kept is read. Groups that were being created are not any more: whether they are, the next sync tells.
    pub(super) fn replayed(&mut self) {
        (self.open_syncs, self.ready) = (0, false);
        self.creating.clear();
        self.fresh = self.book.channels().next().is_none();
    }

    /// Whether what is worth keeping says everything: not as long as something is known to be missing.
    pub(super) const fn is_whole(&self) -> bool {
        !self.gap
    }

    /// What is worth keeping, so that going through it leads back here; the newest message last.
    pub(super) fn digest(&self) -> (Vec<ToClient>, Vec<FromClient>) {
        let mut heard = Vec::new();
        let complete = |it: &&Channel| it.complete;
        for channel in self.book.channels().filter(complete) {
            heard.push(ToClient::CreateChannel { channel: channel.id, announced: channel.announced });
        }
        heard.push(ToClient::SyncFinished {});
        for channel in self.book.channels().filter(|it| !it.complete) {
            heard.push(ToClient::CreateChannel { channel: channel.id, announced: channel.announced });
        }
        heard.extend(self.book.messages().map(|it| ToClient::Message(it.delivery.clone())));
        (heard, self.outbox.iter().cloned().map(FromClient::Message).collect())
    }

    // ---- The connection

    /// The connection is there, and its sync will come.
    pub(super) fn connected(&mut self) {
        (self.open_syncs, self.ready) = (0, false);
    }

    /// The connection is gone.
    pub(super) fn lost(&mut self) -> Acts {
        (self.open_syncs, self.ready, self.gap) = (0, false, false);
        // What is missing will come, and only then it is sure.
        self.highest = self.last;
        self.creating.clear();
        if let Some(Work::Found { .. }) = self.work.take_if(|it| matches!(it, Work::Found { .. })) {
            self.problem("the connection was lost before the group was there; `/channels` tells whether it is");
        }
        self.take_acts()
    }

    /// The first sync of a connection is over: what was not found in it is said again.
    fn caught_up(&mut self) {
        self.ready = true;
        self.fresh = false;
        for upload in self.outbox.clone() {
            self.acts.push(Act::Say(FromClient::Message(upload)));
        }
        if self.presence.0 == OnlineState::ACTIVE {
            self.acts.push(Act::Say(FromClient::SetClientState { online: self.presence.0, doing: self.presence.1 }));
        }
        let (account, session, name) = (self.book.me, self.session, self.address().to_owned());
        self.tell(Event::Online { account, session, name });
        if !self.book.is_unlocked() {
            self.tell(Event::Password { known: false });
        }
        let again = match &self.work {
            Some(Work::Search(query) | Work::Contact(query, None)) => {
                Some(FromClient::SearchAccount { query: query.clone() })
            }
            Some(Work::Devices) => Some(FromClient::DeviceListRequest {}),
            Some(Work::Older(channel, before)) => Some(older(*channel, *before)),
            Some(Work::Delete) => Some(FromClient::DeleteAccount { key_hash: self.keys.key_hash.clone() }),
            _ => None,
        };
        self.acts.extend(again.map(Act::Say));
    }

    /// Something was heard.
    pub(super) fn heard(&mut self, packet: ToClient) -> Acts {
        self.hear(packet);
        if self.ready && self.open_syncs == 0 {
            self.keep_up();
        }
        self.contacted();
        self.take_acts()
    }

    fn take_acts(&mut self) -> Acts {
        std::mem::take(&mut self.acts)
    }

    fn tell(&mut self, event: Event) {
        if !self.replaying {
            self.acts.push(Act::Tell(event));
        }
    }

    fn problem(&mut self, text: impl Into<String>) {
        self.tell(Event::problem(text));
    }

    fn hear(&mut self, packet: ToClient) {
        match packet {
            ToClient::CreateChannel { channel, announced } => {
                self.stale.remove(&channel);
                self.book.announce(channel, announced);
            }
            ToClient::DeleteChannel { channel } => self.forget(channel),
            ToClient::SyncStarted { .. } => self.open_syncs = self.open_syncs.saturating_add(1),
            ToClient::SyncFinished {} => self.sync_finished(),
            ToClient::Message(delivery) if delivery.channel.is_none() => self.glimpse(&delivery),
            ToClient::Message(delivery) => self.delivered(delivery),
            ToClient::ChannelMessageResponse { temp, status, message, skip_count, dispatched, .. } => {
                if status == MessageSendStatus::SUCCESS {
                    self.reached(message, skip_count);
                }
                let Some(at) = self.outbox.iter().position(|it| it.temp == temp) else { return };
                let Some(upload) = self.outbox.remove(at) else { return };
                if status == MessageSendStatus::SUCCESS {
                    self.confirmed(upload, message, dispatched);
                } else {
                    self.refused(&upload, status);
                }
            }
            ToClient::CreateChannelResponse { temp, status, channel, created } => {
                if let Some(wanted) = self.creating.remove(&temp) {
                    self.created(temp, wanted, status, channel, created);
                }
            }
            ToClient::SearchAccountResponse { found } => self.found(found),
            ToClient::DeviceListResponse { sessions } => {
                self.work.take_if(|it| matches!(it, Work::Devices));
                let devices = sessions.into_iter().map(|it| DeviceShown {
                    session: it.session,
                    last_connected: it.last_connected,
                    version: it.last_version,
                    this: it.session == self.session,
                });
                let devices = devices.collect();
                self.tell(Event::Devices { devices });
            }
            ToClient::ChannelAction { channel, account, action } => {
                let (name, action) = (self.book.name_of(account), action.to_string());
                self.tell(Event::Action { channel, name, action });
            }
            ToClient::DeleteAccountResponse { status } => {
                self.work.take_if(|it| matches!(it, Work::Delete));
                if status == DeleteAccountStatus::SUCCESS {
                    self.acts.push(Act::Erase);
                    self.tell(Event::Deleted);
                } else {
                    self.problem("the account was not deleted: the server knows another password");
                }
            }
            // Answers of before the session.
            ToClient::ConnectionResponse { .. }
            | ToClient::CreateAccountResponse { .. }
            | ToClient::CreateSessionResponse { .. }
            | ToClient::RestoreSessionResponse { .. } => {}
        }
    }

    fn forget(&mut self, channel: ChannelId) {
        let name = self.channel_name(channel);
        if self.book.forget(channel).is_none() {
            return;
        }
        self.current.take_if(|it| *it == channel);
        self.tell(Event::ChannelGone { channel, name });
    }

    fn sync_finished(&mut self) {
        for channel in std::mem::take(&mut self.stale) {
            self.forget(channel);
        }
        self.open_syncs = self.open_syncs.saturating_sub(1);
        if self.open_syncs > 0 {
            return;
        }
        self.gap = false;
        self.last = self.highest;
        let people = |it: &&Channel| {
            !it.complete && !matches!(it.channel_type(), ChannelType::Loopback | ChannelType::AccountData)
        };
        let new: Vec<ChannelId> = self.book.channels().filter(people).map(|it| it.id).collect();
        self.book.complete();
        for channel in new {
            if let Some(shown) = self.show_channel(channel) {
                self.tell(Event::Channel(shown));
            }
        }
        if self.replaying {
            return;
        }
        self.work.take_if(|it| matches!(it, Work::Older(..)));
        if !self.ready {
            self.caught_up();
        }
    }

    /// A message has come, or was taken: what is before it has come, too, unless the server says otherwise.
    fn reached(&mut self, id: MessageId, skipped: i64) {
        self.highest = self.highest.max(id);
        if skipped > 0 && !self.gap {
            self.gap = true;
            let (channel, after, before) = (ChannelId::NONE, self.last, id);
            self.acts.push(Act::Say(FromClient::RequestMessages { channel, after, before, max_count: 0 }));
        }
        if !self.gap {
            self.last = self.highest;
        }
    }

    fn delivered(&mut self, delivery: Delivery) {
        self.reached(delivery.id, delivery.skip_count);
        if delivery.sender == self.book.me {
            let me = self.book.me;
            let shown = |it: &&Dependency| it.account.is_none() || it.account == me;
            let same = |it: &Upload| {
                let (said, heard) = (&it.body, &delivery.body);
                let on = said.dependencies.iter().filter(shown);
                it.channel == delivery.channel
                    && (said.kind, &said.content) == (heard.kind, &heard.content)
                    && on.eq(&heard.dependencies)
            };
            // What is not sealed may be like another; that is what was said before.
            let is_new = !self.book.knows(&delivery);
            let at = self.outbox.iter().position(same).filter(|_| is_new && !self.ready);
            if let Some(upload) = at.and_then(|at| self.outbox.remove(at)) {
                return self.confirmed(upload, delivery.id, delivery.dispatched);
            }
        }
        let read = self.book.take(delivery);
        self.tell_all(read, None);
    }

    /// Something that this device said was taken.
    fn confirmed(&mut self, upload: Upload, id: MessageId, dispatched: DateTime) {
        let Upload { channel, temp, body } = upload;
        let delivery = Delivery { channel, sender: self.book.me, id, skip_count: -1, dispatched, body };
        let read = self.book.take(delivery);
        if let Some(Work::Password { temp: of, .. }) = &self.work
            && *of == temp
            && let Some(Work::Password { lock, password, .. }) = self.work.take()
        {
            self.password = password;
            self.adopt(lock);
        }
        self.tell_all(read, Some(temp));
        match &mut self.work {
            Some(Work::Confirm(of)) if *of == temp => self.work = None,
            Some(Work::Change(change)) => {
                if let Some(account) = change.telling.remove(&temp) {
                    change.told.push(Dependency { account, message: id });
                    self.changed();
                } else if change.update == Some(temp) {
                    let (group, name) = (change.group, std::mem::take(&mut change.name));
                    self.work = None;
                    if name.is_empty() {
                        self.tell(Event::Keys { channel: group, name: self.channel_name(group) });
                    } else {
                        self.say(group, MessageFlags::NONE, &Content::Nickname(name), None, &[]);
                    }
                }
            }
            _ => {}
        }
    }

    /// Something that this device said was not taken.
    fn refused(&mut self, upload: &Upload, status: MessageSendStatus) {
        let (channel, temp, kind) = (upload.channel, upload.temp, upload.body.kind);
        let concurrent = status == MessageSendStatus::CONCURRENT_CHANGES;
        match self.work.take() {
            Some(Work::Change(change)) if change.update == Some(temp) && concurrent && change.attempt < ATTEMPTS => {
                let Change { group, edit, name, attempt, .. } = change;
                return self.change(group, edit, name, attempt + 1);
            }
            Some(Work::Change(change)) if change.update == Some(temp) || change.telling.contains_key(&temp) => {}
            Some(Work::Password { temp: of, .. } | Work::Confirm(of)) if of == temp => {}
            other => self.work = other,
        }
        if kind == Kind::PasswordUpdate {
            self.seal_with_own();
        }
        // Nobody asked for those.
        if matches!(kind, Kind::MessageReceived) {
            return;
        }
        let (what, why) = (words_of(kind).to_owned(), status.to_string());
        self.tell(Event::Refused { channel, temp, what, why });
    }

    fn tell_all(&mut self, read: Vec<Read>, own: Option<MessageId>) {
        for read in read {
            match read {
                Read::Opened(id) => self.opened(id, own),
                Read::Unreadable(id) => {
                    let channel = self.book.message(id).map(|it| it.delivery.channel).unwrap_or_default();
                    self.tell(Event::Unreadable { channel, id });
                }
            }
        }
    }

    /// A message can be read. `own` is what this device called it, if it said it.
    fn opened(&mut self, id: MessageId, own: Option<MessageId>) {
        let Some(entry) = self.book.message(id) else { return };
        let (channel, sender, kind) = (entry.delivery.channel, entry.delivery.sender, entry.delivery.body.kind);
        let on: Vec<MessageId> = entry.delivery.body.dependencies.iter().map(|it| it.message).collect();
        let mine = sender == self.book.me;
        match kind {
            Kind::ChatMessage | Kind::DaystreamMessage => {
                if let Some(temp) = own {
                    return self.tell(Event::Sent { channel, id, temp });
                }
                if !mine {
                    self.unacknowledged.insert(id);
                }
                if let Some(said) = self.said(id) {
                    self.tell(Event::Message(said));
                }
            }
            Kind::MessageReceived | Kind::MessageRead => {
                for target in on {
                    if mine {
                        self.unacknowledged.remove(&target);
                    } else if !self.fresh
                        && self.book.message(target).is_some_and(|it| it.delivery.sender == self.book.me)
                    {
                        let (by, read) = (self.book.name_of(sender), kind == Kind::MessageRead);
                        self.tell(Event::Receipt { channel, id: target, by, read });
                    }
                }
            }
            Kind::MessageOverride => {
                if let Some(said) = on
                    .into_iter()
                    .filter(|it| self.book.text(*it).is_some() || self.is_said(*it))
                    .find_map(|it| self.said(it))
                {
                    self.tell(Event::Edited(said));
                }
            }
            Kind::PasswordUpdate => self.password_changed(),
            Kind::MailAddress if mine && !self.fresh => {
                let name = self.address().to_owned();
                self.tell(Event::Name { name });
            }
            _ if self.fresh => {}
            Kind::Nickname | Kind::Bio | Kind::ProfileImage | Kind::MailAddress => {
                match self.book.channel(channel).map(Channel::channel_type) {
                    Some(ChannelType::Group) => self.tell_changed(channel),
                    _ => self.tell_profile(sender),
                }
            }
            Kind::OnlineState if !mine => {
                if let Some((online, since)) = self.book.person(sender).map(|it| (it.online, it.last_active)) {
                    let name = self.book.name_of(sender);
                    self.tell(Event::Presence { account: sender, name, online, since });
                }
            }
            Kind::ArchiveChannel | Kind::DirectChannelCustomization | Kind::GroupChannelUpdate => {
                self.tell_changed(channel)
            }
            Kind::DirectChannelUpdate => {
                let name = self.channel_name(channel);
                self.tell(Event::Keys { channel, name });
            }
            Kind::BlockList => {
                let shown = self.show_blocked();
                self.tell(shown);
            }
            _ => {}
        }
    }

    fn is_said(&self, id: MessageId) -> bool {
        let kind = self.book.message(id).map(|it| it.delivery.body.kind);
        matches!(kind, Some(Kind::ChatMessage | Kind::DaystreamMessage))
    }

    fn tell_changed(&mut self, channel: ChannelId) {
        if let Some(shown) = self.show_channel(channel) {
            self.tell(Event::Changed(shown));
        }
    }

    fn tell_profile(&mut self, account: AccountId) {
        let Some(it) = self.book.person(account).cloned() else { return };
        let picture = it.image.map(|id| id.0);
        self.tell(Event::Profile { account, address: it.address, nickname: it.nickname, bio: it.bio, picture });
    }

    /// The public profile of somebody who was searched for.
    fn glimpse(&mut self, delivery: &Delivery) {
        let decoded = Content::decode(delivery.body.kind, delivery.body.flags, &delivery.body.content);
        let (mut nickname, mut bio) = (String::new(), String::new());
        match decoded {
            Ok((Content::Nickname(text), _)) => nickname = text,
            Ok((Content::Bio(text), _)) => bio = text,
            _ => return,
        }
        let (account, address, picture) = (delivery.sender, String::new(), None);
        self.tell(Event::Profile { account, address, nickname, bio, picture });
    }

    // ---- Keys and passwords

    /// Whether the account's password is the one that is known here.
    fn is_current(&self) -> bool {
        self.book.key_hash() == Some(&self.keys.key_hash)
    }

    /// There is another password. If it is one that can be known here, it is.
    fn password_changed(&mut self) {
        if self.replaying {
            return;
        }
        if !self.is_current() {
            // The same password under another name, as another device did it.
            let name = self.address().to_owned();
            let lock = Lock { keys: AccountKeys::derive(&name, &self.password), name };
            if self.book.key_hash() == Some(&lock.keys.key_hash) {
                self.adopt(lock);
            }
        }
        if !self.fresh {
            let known = self.book.is_unlocked();
            self.tell(Event::Password { known });
        }
    }

    /// These are the keys from now on.
    fn adopt(&mut self, lock: Lock) {
        (self.name, self.keys) = (lock.name.clone(), lock.keys.clone());
        self.acts.push(Act::Seal(vec![lock.clone()]));
        let read = self.book.learn_password(lock.keys);
        self.tell_all(read, None);
    }

    fn seal_with_own(&mut self) {
        let lock = Lock { name: self.name.clone(), keys: self.keys.clone() };
        self.acts.push(Act::Seal(vec![lock]));
    }

    /// The password was changed on another device, and is this.
    pub(super) fn unlock(&mut self, password: Zeroizing<String>) -> Acts {
        let name = self.address().to_owned();
        let lock = Lock { keys: AccountKeys::derive(&name, &password), name };
        if self.book.key_hash() == Some(&lock.keys.key_hash) {
            self.password = password;
            self.adopt(lock);
            self.tell(Event::Password { known: true });
            self.keep_up();
        } else {
            self.problem("that is not the account's password");
        }
        self.take_acts()
    }

    /// Changes the password.
    pub(super) fn change_password(&mut self, password: Zeroizing<String>) -> Acts {
        self.update_password(password);
        self.take_acts()
    }

    fn update_password(&mut self, password: Zeroizing<String>) {
        let Some(loopback) = self.book.own(ChannelType::Loopback).filter(|_| self.is_current()) else {
            return self.problem("the password that is valid now is not known here");
        };
        let name = self.address().to_owned();
        let lock = Lock { keys: AccountKeys::derive(&name, &password), name };
        let content = Content::PasswordUpdate {
            previous_key_hash: self.keys.key_hash.clone(),
            key_hash: lock.keys.key_hash.clone(),
            key_history: Bytes::from(lock.keys.account_key.seal(self.keys.account_key.0.expose())),
        };
        // Whichever of the two the server has in the end opens what is kept.
        let own = Lock { name: self.name.clone(), keys: self.keys.clone() };
        self.acts.push(Act::Seal(vec![own, lock.clone()]));
        let read = self.book.learn_password(lock.keys.clone());
        self.tell_all(read, None);
        if let Some(temp) =
            self.say(loopback, MessageFlags::LOOPBACK.and(MessageFlags::UNENCRYPTED), &content, None, &[])
        {
            self.work = Some(Work::Password { temp, lock, password });
        }
    }

    /// What a client sees to by itself: keys for contacts to talk to, a password that fits the name, receipts.
    fn keep_up(&mut self) {
        let (Some(loopback), Some(data)) =
            (self.book.own(ChannelType::Loopback), self.book.own(ChannelType::AccountData))
        else {
            return;
        };
        let me = self.book.me;
        let waits = |kind: Kind| self.outbox.iter().any(|it| it.body.kind == kind);
        let uploading = waits(Kind::PrivateKeys) || waits(Kind::PublicKeys);
        if self.book.is_unlocked() && self.book.person(me).is_none_or(|it| it.keys.is_none()) && !uploading {
            let private = self
                .book
                .messages()
                .rev()
                .find(|it| it.delivery.body.kind == Kind::PrivateKeys && it.delivery.sender == me);
            let opened = private.and_then(|it| Some((it.delivery.id, it.opened.as_ref()?.content.clone())));
            match opened {
                Some((id, Content::PrivateKeys(private))) => {
                    if let Ok(public) = keys::public(&private) {
                        let on = Dependency { account: me, message: id };
                        self.say(data, MessageFlags::UNENCRYPTED, &Content::PublicKeys(public), None, &[on]);
                    }
                }
                _ => {
                    if let Ok(fresh) = keys::fresh() {
                        self.say(loopback, MessageFlags::LOOPBACK, &Content::PrivateKeys(fresh), None, &[]);
                    }
                }
            }
        }
        // The name is part of every key (spec 4.8b).
        if self.work.is_none() && self.address() != self.name && self.is_current() {
            let password = self.password.clone();
            self.update_password(password);
        }
        while self.outbox.len() < RECEIPTS_MAX
            && let Some(id) = self.unacknowledged.pop_first()
        {
            let channel = self.book.message(id).map(|it| it.delivery.channel).unwrap_or_default();
            if self.may_acknowledge(channel) {
                let on = Dependency { account: AccountId::NONE, message: id };
                self.say(channel, MessageFlags::UNENCRYPTED, &Content::MessageReceived, None, &[on]);
            }
        }
    }

    fn may_acknowledge(&self, channel: ChannelId) -> bool {
        self.book.channel(channel).is_some_and(|it| {
            let silent = it.members.get(&self.book.me).is_some_and(|flags| flags.has(MemberFlags::NO_METADATA));
            it.archive == ArchiveMode::NONE && !silent
        })
    }

    // ---- What is said

    /// Seals something, and puts it into the line. What it is called there; nothing when it cannot be said.
    fn say(
        &mut self,
        channel: ChannelId,
        flags: MessageFlags,
        content: &Content,
        file: Option<(&FileBlock, FileId)>,
        on: &[Dependency],
    ) -> Option<MessageId> {
        match self.book.seal(channel, flags, content, file.map(|(block, _)| block)) {
            Ok(mut body) => {
                body.file = file.map(|(_, id)| id).unwrap_or_default();
                Some(self.post(channel, body.on(on.iter().copied())))
            }
            Err(why) => {
                let name = self.channel_name(channel);
                let what = words_of(content.kind());
                self.problem(match why {
                    CannotSeal::Key => {
                        format!("{what} cannot be said in {name}: {why}; the other side may not have been here")
                    }
                    CannotSeal::Channel | CannotSeal::TooLong => format!("{what} cannot be said in {name}: {why}"),
                });
                None
            }
        }
    }

    fn post(&mut self, channel: ChannelId, body: Body) -> MessageId {
        let temp = MessageId(self.next_temp);
        self.next_temp = self.next_temp.saturating_sub(1);
        let upload = Upload { channel, temp, body };
        self.outbox.push_back(upload.clone());
        self.acts.push(Act::Keep(FromClient::Message(upload.clone())));
        // Before that, it is said when the sync is over.
        if self.ready {
            self.acts.push(Act::Say(FromClient::Message(upload)));
        }
        temp
    }

    fn ask(&mut self, packet: FromClient) {
        // Before that, it is asked when the sync is over.
        if self.ready {
            self.acts.push(Act::Say(packet));
        }
    }

    /// Says something to people.
    pub(super) fn chat(
        &mut self,
        channel: ChannelId,
        text: &str,
        quoted: MessageId,
        file: Option<(FileBlock, FileId)>,
    ) -> Acts {
        let text = text.to_owned();
        let message_type = match &file {
            None => MessageType::PLAINTEXT,
            Some((block, _)) if block.thumbnail_type.starts_with("image/") => MessageType::IMAGE,
            Some(_) => MessageType::FILE,
        };
        let content = match self.book.channel(channel).map(Channel::channel_type) {
            Some(ChannelType::ProfileData) => Content::DaystreamMessage { message_type, text },
            _ => Content::ChatMessage { message_type, text, quoted },
        };
        let on = Dependency { account: AccountId::NONE, message: quoted };
        let on: &[Dependency] = if quoted.is_none() { &[] } else { &[on] };
        self.say(channel, flags_of(file.as_ref()), &content, file.as_ref().map(|(block, id)| (block, *id)), on);
        self.take_acts()
    }

    /// Says something that was said in another way, or takes it back.
    pub(super) fn edit(&mut self, id: MessageId, text: Option<String>) -> Acts {
        match self.book.message(id).map(|it| (it.delivery.channel, it.delivery.sender)) {
            Some((channel, sender)) if sender == self.book.me && self.is_said(id) => {
                let on = Dependency { account: AccountId::NONE, message: id };
                self.say(channel, MessageFlags::NONE, &Content::MessageOverride(text), None, &[on]);
            }
            _ => self.problem(format!("[{}] is nothing that you said", id.0)),
        }
        self.take_acts()
    }

    /// Tells others that everything in a channel up to a message was read.
    pub(super) fn read(&mut self, channel: ChannelId, up_to: MessageId) -> Acts {
        let me = self.book.me;
        let unread = self.book.messages().filter(|it| {
            let seen = self.book.receipts(it.delivery.id).and_then(|by| by.get(&me)).copied().unwrap_or(false);
            it.delivery.channel == channel && it.delivery.sender != me && it.delivery.id <= up_to && !seen
        });
        let unread: Vec<MessageId> = unread.map(|it| it.delivery.id).filter(|it| self.is_said(*it)).collect();
        if self.may_acknowledge(channel) {
            for id in unread.into_iter().rev().take(OUTBOX_MAX.saturating_sub(self.outbox.len())).rev() {
                self.unacknowledged.remove(&id);
                let on = Dependency { account: AccountId::NONE, message: id };
                self.say(channel, MessageFlags::UNENCRYPTED, &Content::MessageRead, None, &[on]);
            }
        }
        self.take_acts()
    }

    /// Shows the account differently to everybody.
    pub(super) fn profile(&mut self, content: &Content, file: Option<(FileBlock, FileId)>) -> Acts {
        if let Some(data) = self.book.own(ChannelType::AccountData) {
            let flags = flags_of(file.as_ref()).and(MessageFlags::UNENCRYPTED);
            self.say(data, flags, content, file.as_ref().map(|(block, id)| (block, *id)), &[]);
        }
        self.take_acts()
    }

    /// Says how something is called: a group for all of its members, a contact for this account alone.
    pub(super) fn rename(&mut self, channel: ChannelId, name: String) -> Acts {
        match self.book.channel(channel).map(Channel::channel_type) {
            Some(ChannelType::Direct) => {
                let content = Content::DirectChannelCustomization { nickname: name, shape: ImageShape::CIRCLE };
                self.say(channel, MessageFlags::LOOPBACK, &content, None, &[]);
            }
            _ => drop(self.say(channel, MessageFlags::NONE, &Content::Nickname(name), None, &[])),
        }
        self.take_acts()
    }

    /// A picture behind the messages of a channel, for this account alone; of the loopback channel, behind all others.
    pub(super) fn background(&mut self, channel: Option<ChannelId>, file: (FileBlock, FileId)) -> Acts {
        if let Some(channel) = channel.or_else(|| self.book.own(ChannelType::Loopback)) {
            let flags = flags_of(Some(&file)).and(MessageFlags::LOOPBACK);
            self.say(channel, flags, &Content::BackgroundImage, Some((&file.0, file.1)), &[]);
        }
        self.take_acts()
    }

    /// Shows the keys of a counterpart; `verified` says that they were compared.
    pub(super) fn verify(&mut self, channel: ChannelId, verified: bool) -> Acts {
        let print = |account| {
            let keys = self.book.person(account).and_then(|it| it.keys).and_then(|id| self.book.message(id));
            keys.map(|it| keys::fingerprint(&it.delivery.body.content))
        };
        let with = self.book.channel(channel).map(|it| it.announced.counterpart).unwrap_or_default();
        let (theirs, own) = (print(with), print(self.book.me));
        match (theirs, own) {
            (Some(theirs), Some(own)) => {
                let before = self.book.channel(channel).and_then(|it| it.verified);
                if verified && before != Some(theirs) {
                    self.say(channel, MessageFlags::LOOPBACK, &Content::VerifiedKeys(theirs), None, &[]);
                }
                let verified = verified || before == Some(theirs);
                let name = self.book.name_of(with);
                self.tell(Event::Fingerprint { name, theirs: hex::encode(theirs), own: hex::encode(own), verified });
            }
            _ => self.problem("there are no keys to compare yet"),
        }
        self.take_acts()
    }

    /// Does not want to hear somebody any more, or again.
    pub(super) fn block(&mut self, account: Option<AccountId>, channel: Option<ChannelId>, blocked: bool) -> Acts {
        let Blocked { mut accounts, mut channels } = self.book.blocked().clone();
        if let Some(account) = account {
            if blocked {
                accounts.insert(account)
            } else {
                accounts.remove(&account)
            };
        }
        if let Some(channel) = channel {
            if blocked {
                channels.insert(channel)
            } else {
                channels.remove(&channel)
            };
        }
        let content =
            Content::BlockList { accounts: accounts.into_iter().collect(), channels: channels.into_iter().collect() };
        let flags = MessageFlags::LOOPBACK.and(MessageFlags::UNENCRYPTED);
        if let Some(loopback) = self.book.own(ChannelType::Loopback) {
            // The next list is made of this one.
            self.work = self.say(loopback, flags, &content, None, &[]).map(Work::Confirm);
        }
        self.take_acts()
    }

    /// Wants to be called otherwise: the new address has to confirm that.
    pub(super) fn change_address(&mut self, address: &str) -> Acts {
        let content = Content::QueueMailAddressChange(address.to_lowercase());
        let flags = MessageFlags::LOOPBACK.and(MessageFlags::UNENCRYPTED);
        if let Some(loopback) = self.book.own(ChannelType::Loopback) {
            self.work = self.say(loopback, flags, &content, None, &[]).map(Work::Confirm);
        }
        self.take_acts()
    }

    /// Is there, or not; does something, or nothing.
    pub(super) fn presence(&mut self, online: bool, doing: Doing) -> Acts {
        let online = if online { OnlineState::ACTIVE } else { OnlineState::INACTIVE };
        self.presence = (online, doing);
        self.ask(FromClient::SetClientState { online, doing });
        self.take_acts()
    }

    pub(super) fn is_online(&self) -> bool {
        self.presence.0 == OnlineState::ACTIVE
    }

    pub(super) fn typing(&mut self, channel: Option<ChannelId>) -> Acts {
        let doing = match channel {
            Some(channel) => Doing { action: ChannelAction::TYPING, channel },
            None => Doing::default(),
        };
        self.presence(self.is_online(), doing)
    }

    pub(super) fn set_current(&mut self, channel: ChannelId) -> Acts {
        self.current = Some(channel);
        let name = self.channel_name(channel);
        self.tell(Event::Current { channel, name });
        self.take_acts()
    }

    // ---- What takes more than one packet

    pub(super) fn search(&mut self, query: &str) -> Acts {
        let query = query.to_owned();
        self.work = Some(Work::Search(query.clone()));
        self.ask(FromClient::SearchAccount { query });
        self.take_acts()
    }

    pub(super) fn list_devices(&mut self) -> Acts {
        self.work = Some(Work::Devices);
        self.ask(FromClient::DeviceListRequest {});
        self.take_acts()
    }

    /// Asks for what is not here: messages of a channel that are older than those that are.
    pub(super) fn older(&mut self, channel: ChannelId) -> Acts {
        let oldest = self.book.messages().find(|it| it.delivery.channel == channel && self.is_said(it.delivery.id));
        let before = oldest.map(|it| it.delivery.id).unwrap_or_default();
        self.work = Some(Work::Older(channel, before));
        self.ask(older(channel, before));
        self.take_acts()
    }

    pub(super) fn delete_account(&mut self) -> Acts {
        self.work = Some(Work::Delete);
        self.ask(FromClient::DeleteAccount { key_hash: self.keys.key_hash.clone() });
        self.take_acts()
    }

    /// Finds somebody, and a channel with them.
    pub(super) fn contact(&mut self, address: &str) -> Acts {
        let address = address.to_lowercase();
        let known = self.book.people().find(|(_, it)| it.address == address).map(|(account, _)| account);
        if let Some(channel) = known.and_then(|it| self.book.direct(it)).map(|it| it.id) {
            self.work = Some(Work::Contact(address, Some(channel)));
            self.contacted();
        } else {
            self.work = Some(Work::Contact(address.clone(), None));
            self.ask(FromClient::SearchAccount { query: address });
        }
        self.take_acts()
    }

    fn found(&mut self, found: Vec<Found>) {
        match self.work.take() {
            Some(Work::Search(_)) => {
                let names = found.into_iter().map(|it| it.name).collect();
                self.tell(Event::Found { names });
            }
            Some(Work::Contact(address, None)) => match found.into_iter().find(|it| it.name == address) {
                None => self.problem(format!("there is nobody called {address}")),
                Some(found) => {
                    let channel = self.book.direct(found.account).map(|it| it.id);
                    if channel.is_none() {
                        self.create(WantedChannel::Direct(found.account));
                    }
                    self.work = Some(Work::Contact(address, channel));
                }
            },
            other => self.work = other,
        }
    }

    fn create(&mut self, wanted: WantedChannel) -> ChannelId {
        let temp = ChannelId(self.next_temp);
        self.next_temp = self.next_temp.saturating_sub(1);
        self.creating.insert(temp, wanted);
        let packet = FromClient::CreateChannel { temp, wanted };
        self.acts.extend([Act::Keep(packet.clone()), Act::Say(packet)]);
        temp
    }

    fn created(
        &mut self,
        temp: ChannelId,
        wanted: WantedChannel,
        status: CreateChannelStatus,
        channel: ChannelId,
        created: DateTime,
    ) {
        let (owner, fine) = (self.book.me, status == CreateChannelStatus::SUCCESS);
        let (channel_type, counterpart) = match wanted {
            WantedChannel::Direct(counterpart) => (ChannelType::Direct, counterpart),
            WantedChannel::Other(channel_type) => (channel_type, AccountId::NONE),
        };
        if fine {
            self.book.announce(channel, Announced { channel_type, owner, created, counterpart });
        }
        match self.work.take() {
            Some(Work::Contact(address, None)) if channel_type == ChannelType::Direct => {
                if fine || status == CreateChannelStatus::ALREADY_EXISTS {
                    self.work = Some(Work::Contact(address, Some(channel)));
                } else {
                    self.problem(format!("there is no channel with {address}: {status}"));
                }
            }
            Some(Work::Found { temp: of, name, change, .. }) if of == temp => {
                if fine {
                    self.change(channel, change, name, 0);
                } else {
                    self.problem(format!("there is no group: {status}"));
                }
            }
            other => self.work = other,
        }
    }

    /// Whether a contact that was asked for is there by now: with a key, or without any to come.
    fn contacted(&mut self) {
        let Some(Work::Contact(_, Some(channel))) = &self.work else { return };
        let channel = *channel;
        let Some((complete, with)) = self.book.channel(channel).map(|it| (it.complete, it.announced.counterpart))
        else {
            return;
        };
        let keys = self.book.key(channel, MessageFlags::NONE).is_some();
        let none = complete && self.book.person(with).is_none_or(|it| it.keys.is_none());
        if keys || none {
            self.work = None;
            self.current = Some(channel);
            let name = self.channel_name(channel);
            self.tell(Event::Current { channel, name: name.clone() });
            if !keys {
                self.tell(Event::Note { text: format!("{name} has never been here: nothing can be said yet") });
            }
        }
    }

    /// Founds a group, or a profile.
    pub(super) fn found_group(&mut self, channel_type: ChannelType, name: &str, members: &[AccountId]) -> Acts {
        let flags =
            if channel_type == ChannelType::ProfileData { MemberFlags::INVISIBLE } else { MemberFlags::default() };
        if let Some(without) = members.iter().find(|it| !self.can_be_told(**it)) {
            let name = self.book.name_of(*without);
            self.problem(format!("{name} cannot be in it: there are no keys for a channel with them"));
        } else if members.is_empty() {
            self.problem("somebody else has to be in it");
        } else if !self.ready {
            self.problem("there is no connection");
        } else {
            let members = members.iter().map(|it| (*it, Some(flags))).collect();
            let change = Edit { members, history: false };
            let temp = self.create(WantedChannel::Other(channel_type));
            self.work = Some(Work::Found { temp, name: name.to_owned(), change });
        }
        self.take_acts()
    }

    fn can_be_told(&mut self, account: AccountId) -> bool {
        let direct = self.book.direct(account).filter(|it| it.archive != ArchiveMode::DELETED).map(|it| it.id);
        direct.is_some_and(|direct| self.book.key(direct, MessageFlags::NONE).is_some())
    }

    /// Changes who is in a group.
    pub(super) fn change_group(&mut self, group: ChannelId, edit: Edit) -> Acts {
        self.change(group, edit, String::new(), 0);
        self.take_acts()
    }

    fn change(&mut self, group: ChannelId, edit: Edit, name: String, attempt: u32) {
        let me = self.book.me;
        let Some(channel) = self.book.channel(group).filter(|it| it.is_group()) else {
            return self.problem("that is no group");
        };
        let (founding, revision) = (channel.updates.is_empty(), channel.revision.wrapping_add(1));
        // It is sealed anew, so that who cannot read what was before knows it, too.
        let name = if name.is_empty() { channel.name.clone() } else { name };
        let mut members = channel.members.clone();
        if founding {
            members.insert(me, MemberFlags::ADMINISTRATOR);
        }
        let before = members.clone();
        for (account, flags) in &edit.members {
            match flags {
                Some(flags) => drop(members.insert(*account, *flags)),
                None => drop(members.remove(account)),
            }
        }
        if !before.get(&me).is_some_and(|flags| flags.has(MemberFlags::ADMINISTRATOR)) {
            return self.problem("that is for the group's administrators");
        }
        let others: Vec<(AccountId, MemberFlags)> =
            members.iter().map(|(a, f)| (*a, *f)).filter(|(it, _)| *it != me).collect();
        if others.is_empty() {
            return self.problem("somebody else has to be in it: `/end` ends a group");
        }
        if let Some((without, _)) = others.iter().find(|(it, _)| !self.can_be_told(*it)) {
            let name = self.book.name_of(*without);
            return self.problem(format!(
                "{name} cannot be told the group's new key: there are no keys for a channel with them"
            ));
        }
        let keys = GroupKeys { channel: ChannelKey::random(), history: Some(ChannelKey::random()) };
        let mut telling = BTreeMap::new();
        for (account, flags) in others {
            // Who could read what was before still can; who is new, if that is wanted; who may change the group, has to.
            let history = founding
                || flags.has(MemberFlags::ADMINISTRATOR)
                || if before.contains_key(&account) { self.book.told_history(group, account) } else { edit.history };
            let history_key = match &keys.history {
                Some(key) if history => key.0.clone(),
                _ => Secret::new([0; 64]),
            };
            let new_key = keys.channel.0.clone();
            let content = Content::GroupChannelKeyNotify { group, new_key, history_key };
            let Some(direct) = self.book.direct(account).map(|it| it.id) else { return };
            // Kept by this account's other devices, too: they have no other way to the key, and to know who was told what.
            let Some(temp) = self.say(direct, MessageFlags::NONE, &content, None, &[]) else { return };
            telling.insert(temp, account);
        }
        let (members, told, update) = (members.into_iter().collect(), Vec::new(), None);
        let change = Change { group, edit, name, attempt, revision, keys, members, telling, told, update };
        self.work = Some(Work::Change(change));
    }

    /// Somebody was told the new key of a group. When all were, the group is told.
    fn changed(&mut self) {
        let Some(Work::Change(change)) = &self.work else { return };
        if !change.telling.is_empty() || change.update.is_some() {
            return;
        }
        let Change { group, revision, .. } = *change;
        let (members, told) = (change.members.clone(), change.told.clone());
        let before = self.book.keys_of_group(group);
        let Some(Work::Change(change)) = &self.work else { return };
        let key_history = match (before, &change.keys.history) {
            (Some(before), Some(key)) => {
                let history = before.history.map_or([0; 64], |key| *key.0.expose());
                Bytes::from(key.seal(&Zeroizing::new([&before.channel.0.expose()[..], &history].concat())))
            }
            // There is nothing before the first.
            _ => Bytes::new(),
        };
        let content = Content::GroupChannelUpdate { revision, members, key_history };
        let temp = self.say(group, MessageFlags::UNENCRYPTED, &content, None, &told);
        match &mut self.work {
            Some(Work::Change(change)) if temp.is_some() => change.update = temp,
            _ => self.work = None,
        }
    }

    /// Ends a group for all.
    pub(super) fn end_group(&mut self, group: ChannelId) -> Acts {
        self.say(group, MessageFlags::UNENCRYPTED, &Content::ArchiveChannel(ArchiveMode::DELETED), None, &[]);
        self.take_acts()
    }

    // ---- What people see

    /// What a channel is called.
    pub(super) fn channel_name(&self, id: ChannelId) -> String {
        match self.book.channel(id) {
            Some(it) if it.channel_type() == ChannelType::Direct => self.book.name_of(it.announced.counterpart),
            Some(it) if it.channel_type() == ChannelType::ProfileData => {
                format!("the profile of {}", self.book.name_of(it.announced.owner))
            }
            Some(it) if !it.name.is_empty() => it.name.clone(),
            _ => format!("#{}", id.0),
        }
    }

    pub(super) fn show_channel(&mut self, id: ChannelId) -> Option<ChannelShown> {
        let ready = self.book.key(id, MessageFlags::NONE).is_some();
        let it = self.book.channel(id)?;
        let name = self.channel_name(id);
        let members = match it.channel_type() {
            ChannelType::Direct => vec![self.book.name_of(it.announced.counterpart)],
            _ => it.members.keys().map(|account| self.book.name_of(*account)).collect(),
        };
        let (channel_type, archived) = (it.channel_type(), it.archive.to_string());
        Some(ChannelShown { channel: id, channel_type, name, members, archived, ready })
    }

    pub(super) fn show_channels(&mut self) -> Event {
        let ids: Vec<ChannelId> = self.book.channels().map(|it| it.id).collect();
        let all = ids.into_iter().filter_map(|id| self.show_channel(id));
        let people = |it: &ChannelShown| !matches!(it.channel_type, ChannelType::Loopback | ChannelType::AccountData);
        let channels = all.filter(people).collect();
        Event::Channels { channels }
    }

    pub(super) fn show_blocked(&self) -> Event {
        let Blocked { accounts, channels } = self.book.blocked();
        let accounts = accounts.iter().map(|it| self.book.name_of(*it)).collect();
        Event::Blocked { accounts, channels: channels.iter().map(|it| self.channel_name(*it)).collect() }
    }

    /// Something that was said, as it is now.
    pub(super) fn said(&self, id: MessageId) -> Option<Said> {
        let entry = self.book.message(id).filter(|_| self.is_said(id))?;
        let opened = entry.opened.as_ref()?;
        let quoted = match &opened.content {
            Content::ChatMessage { quoted, .. } => *quoted,
            _ => MessageId::NONE,
        };
        let file = opened.file.as_ref().map(|block| FileShown {
            name: block.name.clone(),
            length: match &block.external {
                Some(external) => u64::try_from(external.length).unwrap_or_default(),
                None => u64::try_from(block.thumbnail.len()).unwrap_or_default(),
            },
            external: block.external.is_some(),
        });
        let Delivery { channel, sender, dispatched, .. } = entry.delivery;
        Some(Said {
            channel,
            place: self.channel_name(channel),
            id,
            account: sender,
            from: self.book.name_of(sender),
            own: sender == self.book.me,
            text: self.book.text(id).map(str::to_owned),
            quoted,
            file,
            time: dispatched,
        })
    }

    /// What was said last in a channel, the oldest first.
    pub(super) fn history(&self, channel: ChannelId, count: usize) -> Vec<Event> {
        let here = self.book.messages().rev().filter(|it| it.delivery.channel == channel);
        let mut said: Vec<_> =
            here.filter_map(|it| self.said(it.delivery.id)).take(count).map(Event::History).collect();
        said.reverse();
        said
    }

    /// Who is meant: a `#` and a number, an address, or what somebody is called, if nobody else is.
    pub(super) fn find_person(&self, who: &str) -> Result<AccountId, String> {
        if let Some(id) = who.strip_prefix('#').and_then(|id| id.parse().ok()) {
            return Ok(AccountId(id));
        }
        let others = || self.book.people().filter(|(account, _)| *account != self.book.me);
        let address = who.to_lowercase();
        if let Some((account, _)) = others().find(|(_, it)| it.address == address) {
            return Ok(account);
        }
        let mut called = others().map(|(account, _)| account).filter(|account| self.book.name_of(*account) == who);
        match (called.next(), called.next()) {
            (Some(account), None) => Ok(account),
            (Some(_), Some(_)) => Err(format!("several people are called {who}: say an address")),
            (None, _) => Err(format!("nobody is called {who} here: `/contact ADDRESS` finds people")),
        }
    }

    /// Which channel is meant: a `#` and a number, a group's name, or somebody.
    pub(super) fn find_channel(&self, name: &str) -> Result<ChannelId, String> {
        if let Some(id) = name.strip_prefix('#').and_then(|id| id.parse().ok()).map(ChannelId)
            && self.book.channel(id).is_some()
        {
            return Ok(id);
        }
        let mut groups =
            self.book.channels().filter(|it| it.is_group() && self.channel_name(it.id) == name).map(|it| it.id);
        match (groups.next(), groups.next()) {
            (Some(id), None) => return Ok(id),
            (Some(_), Some(_)) => {
                return Err(format!("several groups are called {name}: `/channels` has their numbers"));
            }
            (None, _) => {}
        }
        let with = self.find_person(name)?;
        self.book
            .direct(with)
            .map(|it| it.id)
            .ok_or_else(|| format!("there is no channel with {name}: `/contact ADDRESS` makes one"))
    }
}

const fn older(channel: ChannelId, before: MessageId) -> FromClient {
    FromClient::RequestMessages { channel, after: MessageId::NONE, before, max_count: PAGE }
}

fn flags_of(file: Option<&(FileBlock, FileId)>) -> MessageFlags {
    match file {
        None => MessageFlags::NONE,
        Some((block, _)) if block.external.is_none() => MessageFlags::MEDIA,
        Some(_) => MessageFlags::MEDIA.and(MessageFlags::EXTERNAL_FILE),
    }
}

/// What people call a kind of message.
const fn words_of(kind: Kind) -> &'static str {
    match kind {
        Kind::QueueMailAddressChange => "another address",
        Kind::PasswordUpdate => "another password",
        Kind::PrivateKeys | Kind::PublicKeys => "this account's keys",
        Kind::ArchiveChannel => "the end of the channel",
        Kind::VerifiedKeys => "that keys are right",
        Kind::DirectChannelCustomization | Kind::Nickname => "a name",
        Kind::GroupChannelKeyNotify | Kind::GroupChannelUpdate => "the change of a group",
        Kind::MessageOverride => "a correction",
        Kind::MessageReceived | Kind::MessageRead => "a receipt",
        Kind::Bio => "what you say about yourself",
        Kind::ProfileImage | Kind::BackgroundImage => "a picture",
        Kind::BlockList => "whom you block",
        Kind::ChatMessage
        | Kind::DaystreamMessage
        | Kind::MailAddress
        | Kind::DirectChannelUpdate
        | Kind::DeviceList
        | Kind::OnlineState => "what you said",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: AccountId = AccountId(1);
    const BOB: AccountId = AccountId(2);
    const LOOPBACK: ChannelId = ChannelId(11);
    const GROUP: ChannelId = ChannelId(12);

    fn lock() -> Lock {
        let key = |byte| ChannelKey(Secret::new([byte; 64]));
        Lock { name: "a@b.c".to_owned(), keys: AccountKeys { account_key: key(1), key_hash: Secret::new([2; 32]) } }
    }

    fn announced(channel: ChannelId, channel_type: ChannelType) -> ToClient {
        let (owner, created, counterpart) = (ME, DateTime::NONE, AccountId::NONE);
        ToClient::CreateChannel { channel, announced: Announced { channel_type, owner, created, counterpart } }
    }

    fn message(channel: ChannelId, sender: AccountId, id: i64, skip_count: i64, body: Body) -> ToClient {
        let dispatched = DateTime::from_unix_ms(0);
        ToClient::Message(Delivery { channel, sender, id: MessageId(id), skip_count, dispatched, body })
    }

    fn receipt(of: i64) -> Body {
        let on = Dependency { account: AccountId::NONE, message: MessageId(of) };
        Body::new(Kind::MessageReceived, MessageFlags::UNENCRYPTED, Vec::new()).on([on])
    }

    /// In a first sync that is not over; its channels are announced.
    fn syncing() -> Talk {
        let mut talk = Talk::new(ME, SessionId(3), lock(), Zeroizing::new("pw".to_owned()));
        talk.connected();
        talk.heard(ToClient::SyncStarted { min_count: 1 });
        talk.heard(announced(LOOPBACK, ChannelType::Loopback));
        talk.heard(announced(GROUP, ChannelType::Group));
        let first = Content::PasswordUpdate {
            previous_key_hash: Secret::new([0; 32]),
            key_hash: lock().keys.key_hash,
            key_history: Bytes::new(),
        };
        let flags = MessageFlags::LOOPBACK.and(MessageFlags::UNENCRYPTED);
        let body = Body::new(Kind::PasswordUpdate, flags, first.encode(None).unwrap());
        talk.heard(message(LOOPBACK, ME, 1, -1, body));
        talk
    }

    fn said(acts: &[Act]) -> Vec<FromClient> {
        acts.iter().filter_map(|act| if let Act::Say(packet) = act { Some(packet.clone()) } else { None }).collect()
    }

    fn told(acts: &[Act]) -> Vec<Event> {
        acts.iter().filter_map(|act| if let Act::Tell(event) = act { Some(event.clone()) } else { None }).collect()
    }

    #[test]
    fn a_channel_is_known_when_its_sync_is_over() {
        let mut talk = syncing();
        assert_eq!(talk.known(), (MessageId(1), vec![]));
        talk.heard(ToClient::SyncFinished {});
        assert_eq!(talk.known(), (MessageId(1), vec![LOOPBACK, GROUP]));
        // One that is announced later, and one whose sync is within another.
        let other = ChannelId(13);
        talk.heard(announced(other, ChannelType::Group));
        talk.heard(ToClient::SyncStarted { min_count: -1 });
        talk.heard(ToClient::SyncStarted { min_count: -1 });
        talk.heard(ToClient::SyncFinished {});
        assert_eq!(talk.known().1, [LOOPBACK, GROUP]);
        talk.heard(ToClient::SyncFinished {});
        assert_eq!(talk.known().1, [LOOPBACK, GROUP, other]);
    }

    #[test]
    fn what_was_skipped_is_asked_for_and_not_taken_for_known() {
        let mut talk = syncing();
        talk.heard(ToClient::SyncFinished {});
        assert_eq!(said(&talk.heard(message(GROUP, BOB, 4, 0, receipt(1)))), []);
        let asked = said(&talk.heard(message(GROUP, BOB, 7, 2, receipt(1))));
        let (channel, max_count) = (ChannelId::NONE, 0);
        let (after, before) = (MessageId(4), MessageId(7));
        assert_eq!(asked, [FromClient::RequestMessages { channel, after, before, max_count }]);
        assert_eq!(said(&talk.heard(message(GROUP, BOB, 8, 0, receipt(1)))), []);
        assert_eq!(talk.known().0, MessageId(4));
        // Should the connection be lost now, they come again, and not all at once.
        talk.lost();
        talk.connected();
        talk.heard(ToClient::SyncStarted { min_count: 4 });
        talk.heard(message(GROUP, BOB, 5, -1, receipt(1)));
        assert_eq!(talk.known().0, MessageId(5));
        talk.heard(ToClient::SyncFinished {});
        assert_eq!(talk.known().0, MessageId(5));
        assert_eq!(said(&talk.heard(message(GROUP, BOB, 9, 1, receipt(1)))).len(), 1);
        talk.heard(ToClient::SyncStarted { min_count: 2 });
        talk.heard(message(GROUP, BOB, 6, -1, receipt(1)));
        assert_eq!(talk.known().0, MessageId(5));
        talk.heard(ToClient::SyncFinished {});
        assert_eq!(talk.known().0, MessageId(9));
    }

    #[test]
    fn what_was_taken_is_not_said_again_and_what_was_not_is() {
        let mut talk = syncing();
        talk.heard(ToClient::SyncFinished {});
        let name = |name: &str| name.to_owned();
        let mut uploads = Vec::new();
        for text in ["one@b.c", "two@b.c"] {
            let acts = talk.change_address(&name(text));
            uploads.extend(said(&acts));
            assert!(matches!(&acts[..], [Act::Keep(kept), Act::Say(said)] if kept == said), "kept before it is said");
        }
        let [FromClient::Message(one), FromClient::Message(two)] = &uploads[..] else { panic!("{uploads:?}") };
        // The connection is lost before either is answered. While there is none, a third is added.
        talk.lost();
        let third = talk.change_address("three@b.c");
        assert!(matches!(&third[..], [Act::Keep(_)]), "{third:?}");
        talk.connected();
        talk.heard(ToClient::SyncStarted { min_count: 1 });
        // The first one was taken; so was the like of it that another device said before.
        talk.heard(message(LOOPBACK, ME, 2, -1, one.body.clone()));
        assert!(talk.outbox.iter().all(|it| it.temp != one.temp));
        let acts = talk.heard(ToClient::SyncFinished {});
        let again = said(&acts);
        assert_eq!(again.len(), 2, "{again:?}");
        assert_eq!(again[0], FromClient::Message(two.clone()));
        // An answer that comes twice is none.
        let answer = |temp, id| ToClient::ChannelMessageResponse {
            channel: LOOPBACK,
            temp,
            status: MessageSendStatus::SUCCESS,
            message: MessageId(id),
            skip_count: 0,
            dispatched: DateTime::NONE,
        };
        talk.heard(answer(two.temp, 3));
        talk.heard(answer(two.temp, 3));
        assert_eq!((talk.outbox.len(), talk.known().0), (1, MessageId(3)));
    }

    #[test]
    fn of_another_session_everything_comes_anew_and_the_rest_is_gone() {
        let mut talk = syncing();
        talk.heard(ToClient::SyncFinished {});
        talk.lost();
        talk.renewed(SessionId(4));
        talk.connected();
        talk.heard(ToClient::SyncStarted { min_count: 0 });
        talk.heard(announced(LOOPBACK, ChannelType::Loopback));
        let events = told(&talk.heard(ToClient::SyncFinished {}));
        assert!(matches!(events[..], [Event::ChannelGone { channel: GROUP, .. }, Event::Online { .. }]), "{events:?}");
        assert_eq!(talk.known().1, [LOOPBACK]);
    }

    #[test]
    fn what_was_kept_leads_to_the_same() {
        let mut talk = syncing();
        talk.heard(ToClient::SyncFinished {});
        talk.heard(message(GROUP, BOB, 4, 0, receipt(1)));
        talk.change_address("one@b.c");
        talk.heard(announced(ChannelId(13), ChannelType::Group));
        let mut again = Talk::new(ME, SessionId(3), lock(), Zeroizing::new("pw".to_owned()));
        let (heard, kept) = talk.digest();
        heard.into_iter().for_each(|packet| again.replay_heard(packet));
        kept.into_iter().for_each(|packet| again.replay_said(packet));
        again.replayed();
        assert_eq!(again.known(), (MessageId(4), vec![LOOPBACK, GROUP]), "what was not complete is not now");
        assert_eq!((&again.outbox, again.next_temp), (&talk.outbox, talk.next_temp));
        assert!(again.acts.is_empty() && !again.ready && !again.fresh);
        assert_eq!(again.digest(), talk.digest());
    }
}
