//! Creating channels, listing devices (spec 4.5, 4.6).

use super::scene::{Halt, Scene};
use crate::chat::skynet::state::ConnId;
use crate::chat::skynet::state::presence::Seat;
use crate::chat::skynet::store::{Channel, StoreError};
use crate::chat::skynet::wire::content::MemberFlags;
use crate::chat::skynet::wire::{
    AccountId, ChannelId, ChannelType, CreateChannelStatus, DateTime, ListedSession, MessageId, ToClient, WantedChannel,
};

impl Scene<'_> {
    pub(super) async fn create_channel(
        &mut self,
        conn: ConnId,
        seat: Seat,
        temp: ChannelId,
        wanted: WantedChannel,
    ) -> Result<(), Halt> {
        match wanted {
            WantedChannel::Direct(counterpart) => Ok(self.create_direct(conn, seat.account, temp, counterpart).await?),
            WantedChannel::Other(channel_type @ (ChannelType::Group | ChannelType::ProfileData)) => {
                Ok(self.create_group(conn, seat.account, temp, channel_type).await?)
            }
            WantedChannel::Other(_) => Err(Halt::Violation("a channel that is not for clients to create")),
        }
    }

    async fn create_group(
        &mut self,
        conn: ConnId,
        owner: AccountId,
        temp: ChannelId,
        channel_type: ChannelType,
    ) -> Result<(), StoreError> {
        let channel = self.new_channel(channel_type, owner, AccountId::NONE);
        let last = self.work.last_message().await?;
        self.work.add_channel(&channel).await?;
        self.work.join_channel(channel.id, owner, MemberFlags::ADMINISTRATOR, last).await?;
        self.created(conn, temp, &channel);
        let others = self.conns(owner, Some(conn));
        self.announce(&others, owner, &channel);
        Ok(())
    }

    fn created(&mut self, conn: ConnId, temp: ChannelId, channel: &Channel) {
        let (status, created) = (CreateChannelStatus::SUCCESS, DateTime::from_unix_ms(channel.created_ms));
        self.say(conn, &ToClient::CreateChannelResponse { temp, status, channel: channel.id, created });
    }

    async fn create_direct(
        &mut self,
        conn: ConnId,
        alice: AccountId,
        temp: ChannelId,
        bob: AccountId,
    ) -> Result<(), StoreError> {
        let refused = |status| {
            let (channel, created) = (ChannelId::NONE, DateTime::NONE);
            ToClient::CreateChannelResponse { temp, status, channel, created }
        };
        if alice == bob || !self.work.is_confirmed(bob).await? {
            self.say(conn, &refused(CreateChannelStatus::INVALID_COUNTERPART));
            return Ok(());
        }
        if let Some(there) = self.work.direct(alice, bob).await? {
            let (status, created) = (CreateChannelStatus::ALREADY_EXISTS, DateTime::from_unix_ms(there.created_ms));
            self.say(conn, &ToClient::CreateChannelResponse { temp, status, channel: there.id, created });
            return Ok(());
        }
        if self.work.is_blocked(alice, bob).await? {
            self.say(conn, &refused(CreateChannelStatus::BLOCKED));
            return Ok(());
        }
        let data_a = self.work.own(alice, ChannelType::AccountData).await?;
        let data_b = self.work.own(bob, ChannelType::AccountData).await?;
        let (Some(data_a), Some(data_b)) = (data_a, data_b) else {
            return Err(StoreError::Damaged("a confirmed account without account data"));
        };
        let direct = self.new_channel(ChannelType::Direct, alice, bob);
        let last = self.work.last_message().await?;
        self.work.add_channel(&direct).await?;
        for (channel, account) in [(direct.id, alice), (direct.id, bob), (data_b.id, alice), (data_a.id, bob)] {
            self.work.join_channel(channel, account, MemberFlags::default(), last).await?;
        }
        self.announce(&[conn], alice, &data_b);
        self.created(conn, temp, &direct);
        let (others, bobs) = (self.conns(alice, Some(conn)), self.conns(bob, None));
        for (conns, account, data) in [(&others, alice, &data_b), (&bobs, bob, &data_a)] {
            self.announce(conns, account, data);
            self.announce(conns, account, &direct);
        }
        // What the other one had said to its contacts before.
        for (account, data) in [(alice, &data_b), (bob, &data_a)] {
            let listed = self.work.pushed_of(account, data.id, MessageId(last)).await?;
            for conn in self.conns(account, None) {
                self.sync(conn, account, &[], listed.clone());
            }
        }
        self.update_direct(&direct).await
    }

    pub(super) async fn list_devices(&mut self, conn: ConnId, seat: Seat) -> Result<(), Halt> {
        let sessions = self.work.sessions(seat.account).await?;
        let listed = sessions.into_iter().map(|session| ListedSession {
            session: session.id,
            last_connected: DateTime::from_unix_ms(session.last_connected_ms),
            last_version: session.last_version,
        });
        // The newest, should there be more than can be told.
        let skip = listed.len().saturating_sub(usize::from(u16::MAX));
        let sessions = listed.skip(skip).collect();
        self.say(conn, &ToClient::DeviceListResponse { sessions });
        Ok(())
    }
}
