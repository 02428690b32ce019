//! What a client decides: what follows from a packet, and what a wish of its user comes to (spec 4, 5). Pure: it performs nothing.
//!
//! | file | holds |
//! |---|---|
//! | `wishes` | what a user says and wants that takes one packet |
//! | `contact` | what takes an answer before it goes on: searches, new channels |
//! | `group` | how a group becomes another one |
//! | `password` | the account's password and the keys made of it |
//! | `kept` | going through what was kept |
//! | `shown` | what people see, and what the names mean that they type |
//! | this one | the connection, what is heard, and what waits for an answer |
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

mod contact;
mod group;
mod kept;
mod password;
mod shown;
mod wishes;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use zeroize::Zeroizing;

use contact::older;
use group::Change;
pub(super) use group::Edit;

use super::book::{Book, CannotSeal, Channel, Read, is_chat};
use super::event::{DeviceShown, Event};
use super::keys;
use super::outbox::Outbox;
use crate::chat::skynet::wire::blob::AccountKeys;
use crate::chat::skynet::wire::content::{ArchiveMode, MemberFlags};
use crate::chat::skynet::wire::{
    AccountId, Body, ChannelId, ChannelType, Content, DateTime, DeleteAccountStatus, Delivery, Dependency, Doing,
    FileBlock, FileId, FromClient, Kind, MessageFlags, MessageId, MessageSendStatus, OnlineState, SessionId, ToClient,
    Upload, WantedChannel,
};

/// What waits for the server's answer, at most, before nothing more is taken from the user.
const OUTBOX_MAX: usize = 256;
/// Of that, what a client may say of its own accord.
const RECEIPTS_MAX: usize = 64;
/// Attempts at changing a group while others change it.
const ATTEMPTS: u32 = 8;
/// Messages that are asked for at a time.
const PAGE: u16 = 100;
/// How long a server keeps a daystream message (spec 2.5): nothing can be said of it after that.
const DAYSTREAM_MS: u64 = 24 * 60 * 60 * 1_000;
const IMPERSONATED: &str =
    "the server shows others keys as yours that are not: whoever sits between reads what is sealed with them";

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    /// Remember that this is to be said: it may not be forgotten until it was answered.
    Keep(FromClient),
    /// That will not be said any more.
    Drop(MessageId),
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
        /// Whether somebody wanted that; otherwise another device of the account may be doing the same.
        asked: bool,
    },
    Devices,
    /// Older messages of a channel, page by page until there is one that people say.
    Older {
        channel: ChannelId,
        before: MessageId,
        /// The oldest that came.
        lowest: Option<MessageId>,
        found: bool,
    },
    /// Something that changes what the next wish means.
    Confirm(MessageId),
    Delete,
}

/// Why something that was said was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// The server says why.
    Answered(MessageSendStatus),
    /// It closes the connection whenever that is said.
    NotHad,
    /// What it is about is not there any more.
    Over,
    /// Another device of the account said something newer.
    Overtaken,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(status) => status.fmt(f),
            Self::NotHad => f.write_str("the server closes the connection whenever it is said"),
            Self::Over => f.write_str("what it is about is not there any more"),
            Self::Overtaken => f.write_str("another device said something else meanwhile"),
        }
    }
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
    outbox: Outbox,
    /// Milliseconds since 1970.
    now_ms: u64,
    /// Grows with every answer.
    progress: u64,
    creating: BTreeMap<ChannelId, WantedChannel>,
    /// Up to where older messages were asked for.
    pages: BTreeMap<ChannelId, MessageId>,
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
            outbox: Outbox::new(),
            now_ms: 0,
            creating: BTreeMap::new(),
            pages: BTreeMap::new(),
            progress: 0,
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

    /// Whether the connection is good for something: its first sync is over, and what was said is answered.
    pub(super) fn is_heard(&self) -> bool {
        self.ready && self.outbox.is_heard()
    }

    /// Grows with every answer of the server.
    pub(super) const fn progress(&self) -> u64 {
        self.progress
    }

    /// What time it is, in milliseconds since 1970.
    pub(super) const fn at(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
    }

    /// The session is another one: everything will come again, and what does not come is gone.
    pub(super) fn renewed(&mut self, session: SessionId) {
        self.session = session;
        self.book.doubt();
        self.stale = self.book.channels().map(|it| it.id).collect();
    }

    // ---- The connection

    /// The connection is there, and its sync will come.
    pub(super) fn connected(&mut self) {
        (self.open_syncs, self.ready) = (0, false);
    }

    fn disconnected(&mut self) {
        (self.open_syncs, self.ready, self.gap) = (0, false, false);
        // What is missing will come, and only then it is sure.
        self.highest = self.last;
        self.creating.clear();
        self.outbox.lost(false);
    }

    /// The connection is gone; `closed` if it was not this side that gave it up.
    pub(super) fn lost(&mut self, closed: bool) -> Acts {
        if let Some(upload) = self.outbox.lost(closed) {
            self.acts.push(Act::Drop(upload.temp));
            self.refused(&upload, Refusal::NotHad);
        }
        self.disconnected();
        if let Some(Work::Found { .. }) = self.work.take_if(|it| matches!(it, Work::Found { .. })) {
            self.problem("the connection was lost before the group was there; `/channels` tells whether it is");
        }
        self.take_acts()
    }

    /// The first sync of a connection is over: what was not found in it is said again.
    fn caught_up(&mut self) {
        self.ready = true;
        self.fresh = false;
        self.drop_what_is_over();
        self.say_what_waits();
        if self.replaying {
            return;
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
            Some(Work::Older { channel, before, .. }) => Some(older(*channel, *before)),
            Some(Work::Delete) => Some(FromClient::DeleteAccount { key_hash: self.keys.key_hash.clone() }),
            _ => None,
        };
        self.acts.extend(again.map(Act::Say));
    }

    /// Drops what can come to nothing any more, so that it is not said again.
    fn drop_what_is_over(&mut self) {
        loop {
            let (book, now_ms, mut why) = (&self.book, self.now_ms, Refusal::Over);
            let over = self.outbox.remove(|it| {
                let Upload { channel, body, .. } = &it.upload;
                let overtaken = it.instead_of.is_some_and(|before| {
                    let newest = book.newest(*channel, body.kind).filter(|newest| *newest > before);
                    newest.and_then(|newest| book.message(newest)).is_some_and(|it| it.delivery.sender == book.me)
                });
                if overtaken {
                    why = Refusal::Overtaken;
                }
                overtaken || body.dependencies.iter().any(|on| is_over(book, on.message, now_ms))
            });
            let Some(upload) = over else { return };
            self.acts.push(Act::Drop(upload.temp));
            self.refused(&upload, why);
        }
    }

    fn say_what_waits(&mut self) {
        self.acts.extend(self.outbox.next_to_say().into_iter().map(|upload| Act::Say(FromClient::Message(upload))));
    }

    /// Of what is kept as its newest only: what it is now.
    fn instead_of(&self, channel: ChannelId, kind: Kind) -> Option<MessageId> {
        kind.keep_last().then(|| self.book.newest(channel, kind).unwrap_or_default())
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
        self.progress += u64::from(is_answer(&packet));
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
                let Some(upload) = self.outbox.answer(temp) else { return };
                if status == MessageSendStatus::SUCCESS {
                    self.confirmed(upload, message, dispatched);
                } else {
                    self.refused(&upload, Refusal::Answered(status));
                }
                if self.ready {
                    self.say_what_waits();
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
        self.page_is_over();
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
            let is_new = !self.knows(&delivery);
            let taken = is_new && !self.ready;
            if let Some(upload) = taken.then(|| self.outbox.remove(|it| same(&it.upload))).flatten() {
                return self.confirmed(upload, delivery.id, delivery.dispatched);
            }
        }
        let asked_for = self.is_asked_for(&delivery);
        self.note_page(&delivery);
        let read = self.book.take(delivery, asked_for);
        self.tell_all(read, None);
    }

    /// Whether a message is here, or was, and nobody asked for it again.
    pub(super) fn knows(&self, delivery: &Delivery) -> bool {
        self.book.knows(delivery, self.is_asked_for(delivery))
    }

    /// Something that this device said was taken.
    fn confirmed(&mut self, upload: Upload, id: MessageId, dispatched: DateTime) {
        let Upload { channel, temp, body } = upload;
        let delivery = Delivery { channel, sender: self.book.me, id, skip_count: -1, dispatched, body };
        let read = self.book.take(delivery, false);
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
    fn refused(&mut self, upload: &Upload, why: Refusal) {
        let (channel, temp, kind) = (upload.channel, upload.temp, upload.body.kind);
        let concurrent = why == Refusal::Answered(MessageSendStatus::CONCURRENT_CHANGES);
        let mut asked = true;
        match self.work.take() {
            Some(Work::Change(change)) if change.update == Some(temp) && concurrent && change.attempt < ATTEMPTS => {
                let Change { group, edit, name, attempt, .. } = change;
                return self.change(group, edit, name, attempt + 1);
            }
            Some(Work::Change(change)) if change.update == Some(temp) || change.telling.contains_key(&temp) => {}
            // Another device did what this one would have done: it was heard before.
            Some(Work::Password { temp: of, asked: wanted, .. }) if of == temp => asked = wanted || !concurrent,
            Some(Work::Confirm(of)) if of == temp => {}
            other => self.work = other,
        }
        if kind == Kind::PasswordUpdate {
            self.seal_with_own();
        }
        // Nobody asked for those.
        if !asked || kind == Kind::MessageReceived {
            return;
        }
        let (what, why) = (words_of(kind).to_owned(), why.to_string());
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
                    .filter(|it| self.book.text(*it).is_some() || self.is_chat(*it))
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
            Kind::PublicKeys if mine && self.book.is_impersonated() => self.problem(IMPERSONATED),
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
                let unverified = self.book.is_unverified(channel);
                self.tell(if unverified { Event::Unverified { channel, name } } else { Event::Keys { channel, name } });
            }
            Kind::BlockList => {
                let shown = self.show_blocked();
                self.tell(shown);
            }
            _ => {}
        }
    }

    fn is_chat(&self, id: MessageId) -> bool {
        self.book.message(id).is_some_and(|it| is_chat(it.delivery.body.kind))
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

    // ---- By itself

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
            self.update_password(password, false);
        }
        while self.outbox.len() < RECEIPTS_MAX
            && let Some(id) = self.unacknowledged.pop_first()
        {
            let channel = self.book.message(id).map(|it| it.delivery.channel).unwrap_or_default();
            if self.may_acknowledge(channel) && !is_over(&self.book, id, self.now_ms) {
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
                    CannotSeal::Channel | CannotSeal::Unverified | CannotSeal::TooLong => {
                        format!("{what} cannot be said in {name}: {why}")
                    }
                });
                None
            }
        }
    }

    fn post(&mut self, channel: ChannelId, body: Body) -> MessageId {
        let instead_of = self.instead_of(channel, body.kind);
        let upload = self.outbox.post(channel, body, instead_of);
        let temp = upload.temp;
        self.acts.push(Act::Keep(FromClient::Message(upload)));
        // Before that, it is said when the sync is over.
        if self.ready {
            self.say_what_waits();
        }
        temp
    }

    fn ask(&mut self, packet: FromClient) {
        // Before that, it is asked when the sync is over.
        if self.ready {
            self.acts.push(Act::Say(packet));
        }
    }
}

/// Whether it comes because this device asked for something.
const fn is_answer(packet: &ToClient) -> bool {
    match packet {
        ToClient::Message(delivery) => delivery.skip_count < 0,
        ToClient::ChannelAction { .. } | ToClient::DeleteChannel { .. } => false,
        _ => true,
    }
}

/// Whether the server does not have a message any more, though it is here.
fn is_over(book: &Book, id: MessageId, now_ms: u64) -> bool {
    let daystream = book.message(id).filter(|it| it.delivery.body.kind == Kind::DaystreamMessage);
    let said = daystream.and_then(|it| it.delivery.dispatched.unix_ms());
    said.is_some_and(|said| said.saturating_add(DAYSTREAM_MS) <= now_ms)
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
mod tests;
