//! Searches, and channels that do not exist yet: what takes an answer before it goes on.

use super::super::book::is_chat;
use super::super::event::Event;
use super::{Act, Acts, PAGE, Talk, Work};
use crate::chat::skynet::wire::{
    AccountId, Announced, ChannelId, ChannelType, CreateChannelStatus, DateTime, Delivery, Found, FromClient,
    MessageFlags, MessageId, WantedChannel,
};

impl Talk {
    pub(in crate::tools::skynet) fn search(&mut self, query: &str) -> Acts {
        let query = query.to_owned();
        self.work = Some(Work::Search(query.clone()));
        self.ask(FromClient::SearchAccount { query });
        self.take_acts()
    }

    pub(in crate::tools::skynet) fn list_devices(&mut self) -> Acts {
        self.work = Some(Work::Devices);
        self.ask(FromClient::DeviceListRequest {});
        self.take_acts()
    }

    /// Asks for what is not here: messages of a channel that are older than those that are.
    pub(in crate::tools::skynet) fn older(&mut self, channel: ChannelId) -> Acts {
        let oldest = self.book.messages().map(|it| &it.delivery);
        let oldest = oldest.filter(|it| it.channel == channel && is_chat(it.body.kind)).map(|it| it.id).next();
        let floor = self.book.channel(channel).map(|it| it.floor).unwrap_or_default();
        // What was forgotten meanwhile is asked for again.
        let page = self.pages.get(&channel).copied().filter(|page| *page > floor);
        self.page(channel, oldest.into_iter().chain(page).min().unwrap_or_default());
        self.take_acts()
    }

    fn page(&mut self, channel: ChannelId, before: MessageId) {
        self.work = Some(Work::Older { channel, before, lowest: None, found: false });
        self.ask(older(channel, before));
    }

    /// Whether a message comes because somebody looks back. What was kept once was asked for, if it had to be.
    pub(super) fn is_asked_for(&self, delivery: &Delivery) -> bool {
        let Some(Work::Older { channel, before, .. }) = &self.work else { return self.replaying };
        *channel == delivery.channel && (before.is_none() || delivery.id < *before)
    }

    /// Notes that a message came, if it belongs to what was asked for.
    pub(super) fn note_page(&mut self, delivery: &Delivery) {
        if self.replaying || !self.is_asked_for(delivery) {
            return;
        }
        if let Some(Work::Older { lowest, found, .. }) = &mut self.work {
            *lowest = Some(lowest.map_or(delivery.id, |it| it.min(delivery.id)));
            *found |= is_chat(delivery.body.kind);
        }
    }

    /// Everything that was asked for has come. A page of receipts alone is not what somebody wants to see.
    pub(super) fn page_is_over(&mut self) {
        if !self.ready {
            // Of the sync of another connection: it is asked for again.
            return;
        }
        let Some(Work::Older { channel, lowest, found, .. }) = self.work.take_if(|it| matches!(it, Work::Older { .. }))
        else {
            return;
        };
        match lowest {
            None => self.tell(Event::Note { text: "there is nothing older".to_owned() }),
            Some(lowest) => {
                self.pages.insert(channel, lowest);
                if !found {
                    self.page(channel, lowest);
                }
            }
        }
    }

    pub(in crate::tools::skynet) fn delete_account(&mut self) -> Acts {
        self.work = Some(Work::Delete);
        self.ask(FromClient::DeleteAccount { key_hash: self.keys.key_hash.clone() });
        self.take_acts()
    }

    /// Finds somebody, and a channel with them.
    pub(in crate::tools::skynet) fn contact(&mut self, address: &str) -> Acts {
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

    pub(super) fn found(&mut self, found: Vec<Found>) {
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

    pub(super) fn create(&mut self, wanted: WantedChannel) -> ChannelId {
        let temp = ChannelId(self.outbox.number());
        self.creating.insert(temp, wanted);
        let packet = FromClient::CreateChannel { temp, wanted };
        self.acts.extend([Act::Keep(packet.clone()), Act::Say(packet)]);
        temp
    }

    pub(super) fn created(
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
                // Of one that exists already, some servers do not say which it is (spec 7.35).
                let known = self.book.direct(counterpart).map(|it| it.id);
                let existing = known.or_else(|| Some(channel).filter(|it| !it.is_none()));
                if fine {
                    self.work = Some(Work::Contact(address, Some(channel)));
                } else if let Some(channel) = existing.filter(|_| status == CreateChannelStatus::ALREADY_EXISTS) {
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
    pub(super) fn contacted(&mut self) {
        let Some(Work::Contact(_, Some(channel))) = &self.work else { return };
        let channel = *channel;
        let Some((complete, with)) = self.book.channel(channel).map(|it| (it.complete, it.announced.counterpart))
        else {
            return;
        };
        let keys = self.book.key(channel, MessageFlags::NONE).is_ok();
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
}

pub(super) const fn older(channel: ChannelId, before: MessageId) -> FromClient {
    FromClient::RequestMessages { channel, after: MessageId::NONE, before, max_count: PAGE }
}
