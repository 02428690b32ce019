//! Going through what was kept, so that the device is what it was; and what is worth keeping.

use super::super::book::Channel;
use super::Talk;
use crate::chat::skynet::wire::{ChannelId, FromClient, Kind, MessageId, ToClient};

impl Talk {
    /// Goes through what was kept: something was heard.
    pub(in crate::tools::skynet) fn replay_heard(&mut self, packet: ToClient) {
        self.replaying = true;
        self.hear(packet);
        self.acts.clear();
        self.replaying = false;
    }

    /// Goes through what was kept: something was to be said.
    pub(in crate::tools::skynet) fn replay_said(&mut self, packet: FromClient) {
        match packet {
            FromClient::Message(upload) => {
                if matches!(upload.body.kind, Kind::MessageReceived | Kind::MessageRead) {
                    for on in &upload.body.dependencies {
                        self.unacknowledged.remove(&on.message);
                    }
                }
                let instead_of = self.instead_of(upload.channel, upload.body.kind);
                self.outbox.restore(upload, instead_of);
            }
            FromClient::CreateChannel { temp, wanted } => drop(self.creating.insert(temp, wanted)),
            _ => {}
        }
    }

    /// Goes through what was kept: something was not to be said any more.
    pub(in crate::tools::skynet) fn replay_dropped(&mut self, temp: MessageId) {
        self.outbox.remove(|it| it.upload.temp == temp);
    }

    /// Goes through what was kept: there was another connection.
    pub(in crate::tools::skynet) fn replay_connected(&mut self) {
        self.disconnected();
        self.connected();
    }

    /// Goes through what was kept: what was forgotten.
    pub(in crate::tools::skynet) fn replay_floor(&mut self, channel: ChannelId, floor: MessageId) {
        self.book.set_floor(channel, floor);
    }

    /// What was kept is read. Groups that were being created are not any more: whether they are, the next sync tells.
    pub(in crate::tools::skynet) fn replayed(&mut self) {
        self.disconnected();
        self.fresh = self.book.channels().next().is_none();
    }

    /// Whether what is worth keeping says everything: not as long as something is known to be missing, or is on its way.
    pub(in crate::tools::skynet) fn is_whole(&self) -> bool {
        !self.gap && self.open_syncs == 0 && self.creating.is_empty()
    }

    /// Up to where messages were forgotten, by channel.
    pub(in crate::tools::skynet) fn floors(&self) -> impl Iterator<Item = (ChannelId, MessageId)> {
        self.book.channels().filter(|it| !it.floor.is_none()).map(|it| (it.id, it.floor))
    }

    /// What is worth keeping besides, so that going through it leads back here; the newest message last.
    pub(in crate::tools::skynet) fn digest(&self) -> (Vec<ToClient>, Vec<FromClient>) {
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
}
