//! What people see of what is known, and what the names mean that they type.

use super::super::book::{Blocked, Channel, looks_like_an_address};
use super::super::event::{ChannelShown, Event, FileShown, Said};
use super::Talk;
use crate::chat::skynet::wire::{AccountId, ChannelId, ChannelType, Content, Delivery, MessageFlags, MessageId};

impl Talk {
    /// What a channel is called.
    pub(in crate::tools::skynet) fn channel_name(&self, id: ChannelId) -> String {
        match self.book.channel(id) {
            Some(it) if it.channel_type() == ChannelType::Direct => self.book.name_of(it.announced.counterpart),
            Some(it) if it.channel_type() == ChannelType::ProfileData => {
                format!("the profile of {}", self.book.name_of(it.announced.owner))
            }
            // What its administrators call it may be somebody's name.
            Some(it) if it.name.is_empty() => format!("#{}", id.0),
            // What its administrators call it may be somebody's name.
            Some(it) if looks_like_an_address(&it.name) || self.book.is_name_of_another(&it.name, AccountId::NONE) => {
                format!("{} (#{})", it.name, id.0)
            }
            Some(it) => it.name.clone(),
            None => format!("#{}", id.0),
        }
    }

    pub(in crate::tools::skynet) fn show_channel(&mut self, id: ChannelId) -> Option<ChannelShown> {
        let ready = self.book.key(id, MessageFlags::NONE).is_ok();
        let it = self.book.channel(id)?;
        let name = self.channel_name(id);
        let members = match it.channel_type() {
            ChannelType::Direct => vec![self.book.name_of(it.announced.counterpart)],
            _ => it.members.keys().map(|account| self.book.name_of(*account)).collect(),
        };
        let (channel_type, archived) = (it.channel_type(), it.archive.to_string());
        Some(ChannelShown { channel: id, channel_type, name, members, archived, ready })
    }

    pub(in crate::tools::skynet) fn show_channels(&mut self) -> Event {
        let ids: Vec<ChannelId> = self.book.channels().map(|it| it.id).collect();
        let all = ids.into_iter().filter_map(|id| self.show_channel(id));
        let people = |it: &ChannelShown| !matches!(it.channel_type, ChannelType::Loopback | ChannelType::AccountData);
        let channels = all.filter(people).collect();
        Event::Channels { channels }
    }

    pub(in crate::tools::skynet) fn show_blocked(&self) -> Event {
        let Blocked { accounts, channels } = self.book.blocked();
        let accounts = accounts.iter().map(|it| self.book.name_of(*it)).collect();
        Event::Blocked { accounts, channels: channels.iter().map(|it| self.channel_name(*it)).collect() }
    }

    /// Something that was said, as it is now.
    pub(in crate::tools::skynet) fn said(&self, id: MessageId) -> Option<Said> {
        let entry = self.book.message(id).filter(|_| self.is_chat(id))?;
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
    pub(in crate::tools::skynet) fn history(&self, channel: ChannelId, count: usize) -> Vec<Event> {
        let here = self.book.messages().rev().filter(|it| it.delivery.channel == channel);
        let mut said: Vec<_> =
            here.filter_map(|it| self.said(it.delivery.id)).take(count).map(Event::History).collect();
        said.reverse();
        said
    }

    /// Who is meant: a `#` and a number, an address, what this account calls them, or what they call themselves if nobody else is
    /// called that. What others choose comes last, and cannot be an address: nobody puts themselves in somebody's place.
    pub(in crate::tools::skynet) fn find_person(&self, who: &str) -> Result<AccountId, String> {
        match self.find(who)? {
            Some(Named::Person(account)) => Ok(account),
            _ => Err(format!("nobody is called {who} here: `/contact ADDRESS` finds people")),
        }
    }

    /// Which channel is meant: a `#` and a number, an address or a name of somebody, or a group's name, as in [`Self::find_person`].
    pub(in crate::tools::skynet) fn find_channel(&self, name: &str) -> Result<ChannelId, String> {
        if let Some(id) = name.strip_prefix('#').and_then(|id| id.parse().ok()).map(ChannelId)
            && self.book.channel(id).is_some()
        {
            return Ok(id);
        }
        match self.find(name)? {
            Some(Named::Group(channel)) => Ok(channel),
            Some(Named::Person(account)) => {
                let direct = self.book.direct(account).map(|it| it.id);
                direct.ok_or_else(|| format!("there is no channel with {name}: `/contact ADDRESS` makes one"))
            }
            None => Err(format!("nobody is called {name} here: `/contact ADDRESS` finds people")),
        }
    }

    fn find(&self, name: &str) -> Result<Option<Named>, String> {
        if let Some(id) = name.strip_prefix('#').and_then(|id| id.parse().ok()) {
            return Ok(Some(Named::Person(AccountId(id))));
        }
        let others = || self.book.people().filter(|(account, _)| *account != self.book.me);
        let address = name.to_lowercase();
        if let Some((account, _)) = others().find(|(_, it)| it.address == address) {
            return Ok(Some(Named::Person(account)));
        }
        let only = |found: Vec<Named>| match found[..] {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            _ => Err(format!("several are called {name}: say an address, or the number that `/channels` has")),
        };
        let called = |it: &&Channel| it.channel_type() == ChannelType::Direct && it.name == name;
        let own = self.book.channels().filter(called).map(|it| Named::Person(it.announced.counterpart));
        if let Some(own) = only(own.collect())? {
            return Ok(Some(own));
        }
        let called = others().filter(|(_, it)| it.nickname == name && !looks_like_an_address(name));
        let groups = self.book.channels().filter(|it| match it.channel_type() {
            ChannelType::Group => it.name == name && !looks_like_an_address(name),
            // Made of what its owner is called.
            ChannelType::ProfileData => self.channel_name(it.id) == name,
            ChannelType::Loopback | ChannelType::AccountData | ChannelType::Direct => false,
        });
        only(called.map(|(account, _)| Named::Person(account)).chain(groups.map(|it| Named::Group(it.id))).collect())
    }
}

/// Whom or what a name means.
#[derive(Debug, Clone, Copy)]
enum Named {
    Person(AccountId),
    Group(ChannelId),
}
