//! What a user says and wants that takes one packet.

use super::super::book::{Blocked, Channel};
use super::super::event::Event;
use super::{Acts, IMPERSONATED, OUTBOX_MAX, Talk, Work, is_over};
use crate::chat::skynet::wire::content::{ImageShape, MessageType};
use crate::chat::skynet::wire::{
    AccountId, ChannelAction, ChannelId, ChannelType, Content, Dependency, Doing, FileBlock, FileId, FromClient,
    MessageFlags, MessageId, OnlineState,
};

impl Talk {
    /// Says something to people.
    pub(in crate::tools::skynet) fn chat(
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
    pub(in crate::tools::skynet) fn edit(&mut self, id: MessageId, text: Option<String>) -> Acts {
        match self.book.message(id).map(|it| (it.delivery.channel, it.delivery.sender)) {
            Some(_) if is_over(&self.book, id, self.now_ms) => {
                self.problem(format!("[{}] is over: what is said in a profile stays for a day", id.0));
            }
            Some((channel, sender)) if sender == self.book.me && self.is_chat(id) => {
                let on = Dependency { account: AccountId::NONE, message: id };
                self.say(channel, MessageFlags::NONE, &Content::MessageOverride(text), None, &[on]);
            }
            _ => self.problem(format!("[{}] is nothing that you said", id.0)),
        }
        self.take_acts()
    }

    /// Tells others that everything in a channel up to a message was read.
    pub(in crate::tools::skynet) fn read(&mut self, channel: ChannelId, up_to: MessageId) -> Acts {
        let me = self.book.me;
        let unread = self.book.messages().filter(|it| {
            let seen = self.book.receipts(it.delivery.id).and_then(|by| by.get(&me)).copied().unwrap_or(false);
            it.delivery.channel == channel && it.delivery.sender != me && it.delivery.id <= up_to && !seen
        });
        let unread = unread.map(|it| it.delivery.id).filter(|it| self.is_chat(*it));
        let unread: Vec<MessageId> = unread.filter(|it| !is_over(&self.book, *it, self.now_ms)).collect();
        if self.may_acknowledge(channel) {
            let room = OUTBOX_MAX.saturating_sub(self.outbox.len());
            let left = unread.len().saturating_sub(room);
            if left > 0 {
                self.tell(Event::Note {
                    text: format!("{left} more are to be said that they were read: `/read` again"),
                });
            }
            for id in unread.into_iter().take(room) {
                self.unacknowledged.remove(&id);
                let on = Dependency { account: AccountId::NONE, message: id };
                self.say(channel, MessageFlags::UNENCRYPTED, &Content::MessageRead, None, &[on]);
            }
        }
        self.take_acts()
    }

    /// Shows the account differently to everybody.
    pub(in crate::tools::skynet) fn profile(&mut self, content: &Content, file: Option<(FileBlock, FileId)>) -> Acts {
        if let Some(data) = self.book.own(ChannelType::AccountData) {
            let flags = flags_of(file.as_ref()).and(MessageFlags::UNENCRYPTED);
            self.say(data, flags, content, file.as_ref().map(|(block, id)| (block, *id)), &[]);
        }
        self.take_acts()
    }

    /// Says how something is called: a group for all of its members, a contact for this account alone.
    pub(in crate::tools::skynet) fn rename(&mut self, channel: ChannelId, name: String) -> Acts {
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
    pub(in crate::tools::skynet) fn background(
        &mut self,
        channel: Option<ChannelId>,
        file: (FileBlock, FileId),
    ) -> Acts {
        if let Some(channel) = channel.or_else(|| self.book.own(ChannelType::Loopback)) {
            let flags = flags_of(Some(&file)).and(MessageFlags::LOOPBACK);
            self.say(channel, flags, &Content::BackgroundImage, Some((&file.0, file.1)), &[]);
        }
        self.take_acts()
    }

    /// Shows the keys of a counterpart; `verified` says that they were compared.
    pub(in crate::tools::skynet) fn verify(&mut self, channel: ChannelId, verified: bool) -> Acts {
        let with = self.book.channel(channel).map(|it| it.announced.counterpart).unwrap_or_default();
        if self.book.is_impersonated() {
            self.problem(IMPERSONATED);
        }
        match self.book.fingerprints(channel) {
            Some((theirs, own)) => {
                let before = self.book.channel(channel).and_then(|it| it.verified);
                if verified && before != Some(theirs) {
                    self.say(channel, MessageFlags::LOOPBACK, &Content::VerifiedKeys(theirs), None, &[]);
                }
                let verified = verified || before == Some(theirs);
                let name = self.book.name_of(with);
                self.tell(Event::Fingerprint { name, theirs: hex::encode(theirs), own: hex::encode(own), verified });
            }
            None => self.problem("there are no keys to compare yet"),
        }
        self.take_acts()
    }

    /// Does not want to hear somebody any more, or again.
    pub(in crate::tools::skynet) fn block(
        &mut self,
        account: Option<AccountId>,
        channel: Option<ChannelId>,
        blocked: bool,
    ) -> Acts {
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
    pub(in crate::tools::skynet) fn change_address(&mut self, address: &str) -> Acts {
        let content = Content::QueueMailAddressChange(address.to_lowercase());
        let flags = MessageFlags::LOOPBACK.and(MessageFlags::UNENCRYPTED);
        if let Some(loopback) = self.book.own(ChannelType::Loopback) {
            self.work = self.say(loopback, flags, &content, None, &[]).map(Work::Confirm);
        }
        self.take_acts()
    }

    /// Is there, or not; does something, or nothing.
    pub(in crate::tools::skynet) fn presence(&mut self, online: bool, doing: Doing) -> Acts {
        let online = if online { OnlineState::ACTIVE } else { OnlineState::INACTIVE };
        self.presence = (online, doing);
        self.ask(FromClient::SetClientState { online, doing });
        self.take_acts()
    }

    pub(in crate::tools::skynet) fn is_online(&self) -> bool {
        self.presence.0 == OnlineState::ACTIVE
    }

    pub(in crate::tools::skynet) fn typing(&mut self, channel: Option<ChannelId>) -> Acts {
        let doing = match channel {
            Some(channel) => Doing { action: ChannelAction::TYPING, channel },
            None => Doing::default(),
        };
        self.presence(self.is_online(), doing)
    }

    pub(in crate::tools::skynet) fn set_current(&mut self, channel: ChannelId) -> Acts {
        self.current = Some(channel);
        let name = self.channel_name(channel);
        self.tell(Event::Current { channel, name });
        self.take_acts()
    }
}

fn flags_of(file: Option<&(FileBlock, FileId)>) -> MessageFlags {
    match file {
        None => MessageFlags::NONE,
        Some((block, _)) if block.external.is_none() => MessageFlags::MEDIA,
        Some(_) => MessageFlags::MEDIA.and(MessageFlags::EXTERNAL_FILE),
    }
}
