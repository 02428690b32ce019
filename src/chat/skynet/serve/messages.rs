//! What becomes of a message that a client sends: looked at, kept, answered, delivered, and acted upon (spec 2.5).

use std::collections::{BTreeSet, HashMap, HashSet};

use super::accounts::mail_token;
use super::scene::{Halt, Letter, Reason, Scene, by_id, hash};
use crate::chat::skynet::state::ConnId;
use crate::chat::skynet::state::names::normalised;
use crate::chat::skynet::state::presence::Seat;
use crate::chat::skynet::state::rules::{self, GroupUpdate, Refusal};
use crate::chat::skynet::store::{Channel, Draft, Fact, FileState, Member, Named, Role, StoreError, Stored};
use crate::chat::skynet::wire::content::{ArchiveMode, MemberFlags};
use crate::chat::skynet::wire::{
    AccountId, BadPacket, Body, ChannelId, ChannelType, Content, DateTime, Dependency, Kind, MessageFlags, MessageId,
    MessageSendStatus, ToClient, Upload,
};
use crate::crypto::{Secret, equal};
use crate::metrics::{self, Room};

/// What is to be done when a message is kept. What it takes to be sure that it may be kept was read before.
#[derive(Debug)]
enum Effect {
    None,
    ChangeName(String),
    ChangePassword(Secret<32>),
    PublishKeys,
    Archive(ArchiveMode),
    UpdateGroup { revision: i64, members: Vec<(AccountId, MemberFlags)> },
    Block { accounts: Vec<i64>, channels: Vec<i64> },
}

impl From<BadPacket> for Halt {
    fn from(_: BadPacket) -> Self {
        Self::Violation("content of a message")
    }
}

impl Scene<'_> {
    /// Takes a message, or says why not.
    pub(super) async fn message(&mut self, conn: ConnId, seat: Seat, upload: Upload) -> Result<(), Halt> {
        let Upload { channel, temp, body } = upload;
        let mut answer = ToClient::ChannelMessageResponse {
            channel,
            temp,
            status: MessageSendStatus::SUCCESS,
            message: MessageId::NONE,
            skip_count: 0,
            dispatched: DateTime::NONE,
        };
        let (found, member, effect) = match self.look(seat, channel, &body).await? {
            Ok(looked) => looked,
            Err(Refusal::Violation(why)) => return Err(Halt::Violation(why)),
            Err(Refusal::Status(refused)) => {
                if let ToClient::ChannelMessageResponse { status, .. } = &mut answer {
                    *status = refused;
                }
                self.say(conn, &answer);
                return Ok(());
            }
        };
        let audience = rules::audience(body.kind, member.flags);
        let draft = Draft { channel, sender: seat.account, audience, dispatched_ms: self.now_ms, body };
        // Who is in a group by this very message hears it, and who is not does not.
        if let Effect::UpdateGroup { revision, members } = &effect {
            self.update_group(conn, seat.account, &found, *revision, members).await?;
        }
        let stored = self.work.add_message(draft).await?;
        if stored.draft.body.flags.has(MessageFlags::EXTERNAL_FILE) {
            self.work.refer_to(stored.draft.body.file, self.now_ms).await?;
        }
        let metrics = metrics::get();
        metrics.chat_accepted.of(Room::Skynet).increment(1);
        metrics.chat_queued.of(Room::Skynet).increment(1);
        if let ToClient::ChannelMessageResponse { message, dispatched, .. } = &mut answer {
            (*message, *dispatched) = (stored.id, DateTime::from_unix_ms(self.now_ms));
        }
        self.say(conn, &answer);
        self.deliver(&stored, Some(conn)).await?;
        self.expect(&stored).await?;
        Ok(self.act_upon(seat.account, &found, effect).await?)
    }

    /// Who can be woken is to be, unless the message is acknowledged. A message that acknowledges others sees to it.
    async fn expect(&mut self, stored: &Stored) -> Result<(), StoreError> {
        let Draft { channel, sender, ref body, .. } = stored.draft;
        match body.kind {
            Kind::ChatMessage => {
                let Some(push_after) = self.settings.push_after else { return Ok(()) };
                let due = self.monotonic.saturating_add(push_after);
                for account in self.work.can_be_woken(channel).await? {
                    if account != sender {
                        self.wakes.expect(due, stored.id, account);
                    }
                }
            }
            Kind::MessageReceived | Kind::MessageRead => {
                for on in &body.dependencies {
                    self.wakes.acknowledged(on.message, sender);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Reads everything that it takes to decide, and decides. Nothing is written.
    async fn look(
        &mut self,
        seat: Seat,
        channel: ChannelId,
        body: &Body,
    ) -> Result<Result<(Channel, Member, Effect), Refusal>, Halt> {
        let sender = seat.account;
        macro_rules! allowed {
            ($decided:expr) => {
                if let Err(refusal) = $decided {
                    return Ok(Err(refusal));
                }
            };
        }
        allowed!(rules::may_be_sent(body.kind, body.flags));
        let denied = Ok(Err(Refusal::Status(MessageSendStatus::ACCESS_DENIED)));
        let Some(found) = self.work.channel(channel).await? else { return denied };
        let member = self.work.member(channel, sender).await?;
        allowed!(rules::may_write(&found, member, sender, body.kind, body.flags));
        let Some(member) = member else { return denied };
        if body.flags.has(MessageFlags::EXTERNAL_FILE) {
            let file = self.work.file(body.file).await?.filter(|file| file.state == FileState::Whole);
            let Some(file) = file else { return Ok(Err(Refusal::Status(MessageSendStatus::FILE_NOT_FOUND))) };
            if !self.work.may_have(sender, &file).await? {
                return denied;
            }
        }
        let targets: BTreeSet<i64> = body.dependencies.iter().map(|on| on.message.0).collect();
        let targets: Vec<i64> = targets.into_iter().collect();
        let facts = by_id(self.work.facts(&targets).await?);
        let loopback = match body.kind {
            Kind::PublicKeys => self.work.own(sender, ChannelType::Loopback).await?.map_or(ChannelId::NONE, |it| it.id),
            _ => ChannelId::NONE,
        };
        allowed!(rules::may_depend(&found, sender, body, &facts, loopback));
        if self.settings.strict_dependencies && !rules::names_its_keys(&found, body, &facts) {
            return denied;
        }
        match self.effect(sender, &found, body, &facts).await? {
            Ok(effect) => Ok(Ok((found, member, effect))),
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    /// What a message of this kind does, and whether it may.
    async fn effect(
        &mut self,
        sender: AccountId,
        channel: &Channel,
        body: &Body,
        facts: &HashMap<MessageId, Fact>,
    ) -> Result<Result<Effect, Refusal>, Halt> {
        let denied = Ok(Err(Refusal::Status(MessageSendStatus::ACCESS_DENIED)));
        // What is sealed is relayed as it came, and does nothing here. What is in clear is read whatever it is: who gets what
        // cannot be read would stop there, in every sync (spec 2.1, 2.3).
        if !body.flags.has(MessageFlags::UNENCRYPTED) {
            return Ok(Ok(Effect::None));
        }
        let (content, _) = Content::decode(body.kind, body.flags, &body.content)?;
        Ok(Ok(match content {
            Content::QueueMailAddressChange(wanted) => match normalised(&wanted) {
                // Only what somebody has confirmed is taken.
                Some(address)
                    if self.work.name(&address).await?.is_none_or(|it| it.confirmed_ms == 0)
                        && self.gate.may_wish(sender) =>
                {
                    Effect::ChangeName(address)
                }
                _ => return denied,
            },
            Content::PasswordUpdate { previous_key_hash, key_hash, .. } => {
                let stored = self.work.password_hash(sender).await?.unwrap_or_default();
                if !equal(&stored, &hash(previous_key_hash.expose())) {
                    return Ok(Err(rules::CONCURRENT));
                }
                Effect::ChangePassword(key_hash)
            }
            Content::PublicKeys(_) => Effect::PublishKeys,
            Content::ArchiveChannel(ArchiveMode::DELETED) => Effect::Archive(ArchiveMode::DELETED),
            Content::GroupChannelUpdate { revision, members, .. } => {
                let update = GroupUpdate { revision, members: &members, dependencies: &body.dependencies };
                // Who was faster is said before anything else is looked up.
                let exists = match update.revision == channel.revision.wrapping_add(1) {
                    true => self.existing(&members).await?,
                    false => HashSet::new(),
                };
                let keys = self.key_notifications(sender, facts).await?;
                if let Err(refusal) = rules::may_update_group(channel, sender, &update, &exists, &keys) {
                    return Ok(Err(refusal));
                }
                Effect::UpdateGroup { revision, members }
            }
            Content::BlockList { accounts, channels } => {
                let distinct = |ids: Vec<i64>| ids.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
                Effect::Block {
                    accounts: distinct(accounts.into_iter().map(|it| it.0).collect()),
                    channels: distinct(channels.into_iter().map(|it| it.0).collect()),
                }
            }
            Content::ArchiveChannel(_) => return denied,
            _ => Effect::None,
        }))
    }

    async fn existing(&mut self, members: &[(AccountId, MemberFlags)]) -> Result<HashSet<AccountId>, StoreError> {
        let mut exists = HashSet::with_capacity(members.len());
        for (account, _) in members {
            if self.work.is_confirmed(*account).await? {
                exists.insert(*account);
            }
        }
        Ok(exists)
    }

    /// The key notifications of `sender` among these, each with whom it is for.
    async fn key_notifications(
        &mut self,
        sender: AccountId,
        facts: &HashMap<MessageId, Fact>,
    ) -> Result<HashMap<MessageId, AccountId>, StoreError> {
        let mut keys = HashMap::new();
        for fact in facts.values().filter(|fact| fact.kind == Kind::GroupChannelKeyNotify && fact.sender == sender) {
            if let Some(direct) = self.work.channel(fact.channel).await? {
                keys.insert(fact.id, direct.other(sender));
            }
        }
        Ok(keys)
    }

    /// Who is in a group from now on. Who blocks the sender or the group is left out without a word (spec 4.6.4).
    async fn update_group(
        &mut self,
        conn: ConnId,
        sender: AccountId,
        channel: &Channel,
        revision: i64,
        members: &[(AccountId, MemberFlags)],
    ) -> Result<(), StoreError> {
        let before: HashSet<AccountId> = self.work.members(channel.id).await?.iter().map(|it| it.account).collect();
        let after: HashSet<AccountId> = members.iter().map(|(account, _)| *account).collect();
        let last = self.work.last_message().await?;
        self.work.set_revision(channel.id, revision).await?;
        for account in before.difference(&after).copied().collect::<BTreeSet<_>>() {
            self.work.leave_channel(channel.id, account).await?;
            let conns = self.conns(account, None);
            self.say_all(&conns, &ToClient::DeleteChannel { channel: channel.id });
        }
        for (account, flags) in members {
            let is_new = !before.contains(account);
            if is_new
                && (self.work.has_blocked(*account, sender).await?
                    || self.work.has_blocked_channel(*account, channel.id).await?)
            {
                continue;
            }
            self.work.join_channel(channel.id, *account, *flags, last).await?;
            if is_new {
                let conns = self.conns(*account, Some(conn));
                self.announce(&conns, *account, channel);
                let listed = self.work.introduction(*account, channel.id, MessageId(last)).await?;
                for conn in conns {
                    self.sync(conn, *account, &[], listed.clone());
                }
            }
        }
        Ok(())
    }

    async fn act_upon(&mut self, sender: AccountId, channel: &Channel, effect: Effect) -> Result<(), StoreError> {
        match effect {
            Effect::None | Effect::UpdateGroup { .. } => Ok(()),
            Effect::ChangeName(address) => self.queue_name(sender, address).await,
            Effect::ChangePassword(key_hash) => self.work.set_password_hash(sender, &hash(key_hash.expose())).await,
            Effect::PublishKeys => {
                for direct in self.work.channels_of(sender).await? {
                    if direct.channel_type == ChannelType::Direct {
                        self.update_direct(&direct).await?;
                    }
                }
                Ok(())
            }
            Effect::Archive(mode) => self.work.set_archive(channel.id, mode).await,
            Effect::Block { accounts, channels } => self.block(sender, &accounts, &channels).await,
        }
    }

    /// Tells the two of a direct channel which keys are the newest, if both have any (spec 4.5.6).
    pub(super) async fn update_direct(&mut self, channel: &Channel) -> Result<(), StoreError> {
        if channel.archive == ArchiveMode::DELETED {
            return Ok(());
        }
        let (a, b) = (channel.owner, channel.counterpart);
        let (Some(keys_a), Some(keys_b)) = (self.work.keys(a).await?, self.work.keys(b).await?) else {
            return Ok(());
        };
        let ((public_a, private_a), (public_b, private_b)) = (keys_a, keys_b);
        let on = [(a, private_a), (a, public_b), (b, private_b), (b, public_a)]
            .map(|(account, message)| Dependency { account, message });
        self.inject(channel.id, AccountId::NONE, &Content::DirectChannelUpdate, on).await.map(drop)
    }

    /// An account wants another name: the new address has to confirm it, the old one hears of it.
    async fn queue_name(&mut self, account: AccountId, address: String) -> Result<(), StoreError> {
        match self.named(&address).await? {
            // The mail was lost: it is the same wish.
            Some(wish) if wish.account == account => {
                self.letters.push(Letter { to: address, reason: Reason::Confirm { token: wish.token } });
                return Ok(());
            }
            Some(other) => self.work.forget_unconfirmed(&other).await?,
            None => {}
        }
        let mut present = None;
        for named in self.work.names_of(account).await? {
            match named.role {
                // A wish before this one.
                Role::Change if named.confirmed_ms == 0 => self.work.remove_name(&named.address).await?,
                Role::Initial | Role::Change => present = Some(named.address),
                Role::Alias => {}
            }
        }
        let token = mail_token();
        let named = Named {
            address: address.clone(),
            account,
            token: token.clone(),
            role: Role::Change,
            created_ms: self.now_ms,
            confirmed_ms: 0,
            password_hash: Vec::new(),
        };
        self.work.add_name(&named).await?;
        self.letters.push(Letter { to: address, reason: Reason::Confirm { token } });
        self.letters.extend(present.map(|to| Letter { to, reason: Reason::Changing }));
        Ok(())
    }

    /// Somebody does not want to hear of these any more, and of none else (spec 4.11).
    async fn block(&mut self, owner: AccountId, accounts: &[i64], channels: &[i64]) -> Result<(), StoreError> {
        self.work.set_blocked(owner, accounts, channels).await?;
        for channel in self.work.channels_of(owner).await? {
            match channel.channel_type {
                ChannelType::Direct => {
                    let blocked = self.work.is_blocked_channel(&channel).await?;
                    if let Some(mode) = rules::archive_after(&channel, blocked) {
                        self.work.set_archive(channel.id, mode).await?;
                        self.inject(channel.id, AccountId::NONE, &Content::ArchiveChannel(mode), []).await?;
                    }
                }
                ChannelType::Group | ChannelType::ProfileData if channels.binary_search(&channel.id.0).is_ok() => {
                    self.work.leave_channel(channel.id, owner).await?;
                    let conns = self.conns(owner, None);
                    self.say_all(&conns, &ToClient::DeleteChannel { channel: channel.id });
                }
                ChannelType::Loopback | ChannelType::AccountData | ChannelType::Group | ChannelType::ProfileData => {}
            }
        }
        Ok(())
    }
}
