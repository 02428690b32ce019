//! Accounts and sessions: registering, confirming, logging in, coming back, leaving for good (spec 4.2, 4.3, 4.4, 4.8b, 4.9).

use std::collections::{BTreeSet, HashSet};

use super::actor::{Answer, Confirmed};
use super::connection::Hello;
use super::scene::{CONFIRM_WITHIN_MS, Halt, Letter, Out, Reason, Scene, hash};
use crate::chat::skynet::state::ConnId;
use crate::chat::skynet::state::names::normalised;
use crate::chat::skynet::state::presence::Seat;
use crate::chat::skynet::store::{Channel, Named, Role, StoreError, StoredSession};
use crate::chat::skynet::wire::content::{ArchiveMode, MemberFlags};
use crate::chat::skynet::wire::{
    AccountId, ChannelAction, ChannelId, ChannelType, Content, CreateAccountStatus, CreateSessionStatus, DateTime,
    DeleteAccountStatus, Device, Doing, MessageId, OnlineState, RestoreSessionStatus, SessionId, ToClient, WebToken,
};
use crate::crypto::{Secret, equal, random};
use crate::metrics::{self, Login, Room};

/// Content of a device list, at most: of more sessions than fit, the newest are told.
const DEVICE_LIST_MAX: usize = u16::MAX as usize;
/// Longest push token, in bytes. Those of push services are some hundred bytes long.
const PUSH_TOKEN_MAX: usize = 4 * 1024;

impl Scene<'_> {
    pub(super) async fn create_account(&mut self, conn: ConnId, name: &str, key_hash: &Secret<32>) -> Result<(), Halt> {
        let status = match normalised(name) {
            None => CreateAccountStatus::INVALID_ACCOUNT_NAME,
            Some(address) => self.register(address, key_hash).await?,
        };
        self.say(conn, &ToClient::CreateAccountResponse { status });
        Ok(())
    }

    async fn register(&mut self, address: String, key_hash: &Secret<32>) -> Result<CreateAccountStatus, StoreError> {
        let password_hash = hash(key_hash.expose());
        let known = self.named(&address).await?;
        if let Some(known) = known {
            let resend =
                known.confirmed_ms == 0 && known.role == Role::Initial && equal(&known.password_hash, &password_hash);
            if !resend {
                return Ok(CreateAccountStatus::ACCOUNT_NAME_TAKEN);
            }
            self.letters.push(Letter { to: address, reason: Reason::Confirm { token: known.token } });
            return Ok(CreateAccountStatus::MAIL_RESENT);
        }
        let token = mail_token();
        let named = Named {
            address: address.clone(),
            account: AccountId::random(),
            token: token.clone(),
            role: Role::Initial,
            created_ms: self.now_ms,
            confirmed_ms: 0,
            password_hash,
        };
        self.work.add_account(&named, key_hash).await?;
        self.letters.push(Letter { to: address, reason: Reason::Confirm { token } });
        Ok(CreateAccountStatus::SUCCESS)
    }

    /// Whose name this is. One that nobody confirmed in time is nobody's.
    pub(super) async fn named(&mut self, address: &str) -> Result<Option<Named>, StoreError> {
        let Some(named) = self.work.name(address).await? else { return Ok(None) };
        if self.is_late(&named) {
            self.work.forget_unconfirmed(&named).await?;
            return Ok(None);
        }
        Ok(Some(named))
    }

    const fn is_late(&self, named: &Named) -> bool {
        named.confirmed_ms == 0 && named.created_ms.saturating_add(CONFIRM_WITHIN_MS) <= self.now_ms
    }

    /// Somebody shows the token out of a mail; without `really`, nothing changes.
    pub(super) async fn confirm(&mut self, token: &str, really: bool) -> Result<Confirmed, StoreError> {
        // Whatever stands in a URL comes here; only what can be a token is looked for.
        let can_be = token.len() == MAIL_TOKEN && token.bytes().all(|byte| ALPHABET.contains(&byte));
        let named = if can_be { self.work.name_by_token(token).await? } else { None };
        let Some(named) = named else { return Ok(Confirmed::Invalid) };
        if self.is_late(&named) {
            return Ok(Confirmed::Invalid);
        }
        let (address, account) = (named.address, named.account);
        if named.confirmed_ms != 0 {
            return Ok(Confirmed::Already { address });
        }
        if !really {
            return Ok(Confirmed::Pending { address });
        }
        for other in self.work.names_of(account).await? {
            match other.role {
                _ if other.address == address => {}
                // Good for logging in until the password follows the name, whose letters are part of every key: also one
                // that is an alias since the change before this one.
                Role::Initial | Role::Change | Role::Alias if other.confirmed_ms != 0 => {
                    self.work.set_name(&other.address, Role::Alias, other.confirmed_ms).await?;
                }
                _ => self.work.remove_name(&other.address).await?,
            }
        }
        self.work.set_name(&address, named.role, self.now_ms).await?;
        let account_data = match self.work.own(account, ChannelType::AccountData).await? {
            Some(channel) => channel,
            None => self.open_account(account).await?,
        };
        self.inject(account_data.id, account, &Content::MailAddress(address.clone()), []).await?;
        Ok(Confirmed::Done { address })
    }

    /// Makes the two channels that every account has, and says the first things in them. Returns its account data.
    async fn open_account(&mut self, account: AccountId) -> Result<Channel, StoreError> {
        let [loopback, account_data] =
            [ChannelType::Loopback, ChannelType::AccountData].map(|it| self.new_channel(it, account, AccountId::NONE));
        for channel in [loopback, account_data] {
            self.work.add_channel(&channel).await?;
            self.work.join_channel(channel.id, account, MemberFlags::default(), 0).await?;
        }
        let key_hash = self.work.take_first_key(account).await?;
        let first = Content::PasswordUpdate {
            previous_key_hash: Secret::new([0; 32]),
            key_hash,
            key_history: bytes::Bytes::new(),
        };
        self.inject(loopback.id, account, &first, []).await?;
        Ok(account_data)
    }

    pub(super) fn new_channel(&self, channel_type: ChannelType, owner: AccountId, counterpart: AccountId) -> Channel {
        let (id, created_ms) = (ChannelId::random(), self.now_ms);
        Channel { id, channel_type, owner, counterpart, created_ms, archive: ArchiveMode::NONE, revision: 0 }
    }

    pub(super) async fn create_session(
        &mut self,
        conn: ConnId,
        hello: &Hello,
        name: &str,
        key_hash: &Secret<32>,
        push_token: String,
    ) -> Result<Answer, Halt> {
        let logins = metrics::get().chat_logins.of(Room::Skynet);
        let named = match normalised(name) {
            Some(address) => self.named(&address).await?,
            None => None,
        };
        let password_hash = hash(key_hash.expose());
        let named = named.filter(|named| equal(&named.password_hash, &password_hash));
        let status = match &named {
            // No push service has such a token, and PostgreSQL keeps no such text.
            Some(named)
                if named.confirmed_ms != 0 && (push_token.len() > PUSH_TOKEN_MAX || push_token.contains('\0')) =>
            {
                CreateSessionStatus::INVALID_FCM_REGISTRATION_TOKEN
            }
            Some(named) if named.confirmed_ms != 0 => CreateSessionStatus::SUCCESS,
            Some(named) if named.role == Role::Initial => CreateSessionStatus::UNCONFIRMED_ACCOUNT,
            _ => CreateSessionStatus::INVALID_CREDENTIALS,
        };
        let Some(Named { account, .. }) = named.filter(|_| status == CreateSessionStatus::SUCCESS) else {
            logins.of(Login::Refused).increment(1);
            let refused = ToClient::CreateSessionResponse {
                status,
                account: AccountId::NONE,
                session: SessionId::NONE,
                token: Secret::new([0; 32]),
                web_token: WebToken::default(),
            };
            self.say(conn, &refused);
            return Ok(Answer::Stay);
        };
        logins.of(Login::Accepted).increment(1);
        let (token, web_token) = (Secret::<32>::random(), base32(&random::bytes::<30>()));
        let session = StoredSession {
            id: SessionId::random(),
            account,
            token_hash: hash(token.expose()),
            web_token_hash: hash(web_token.as_bytes()),
            application: hello.application.clone(),
            created_ms: self.now_ms,
            last_connected_ms: self.now_ms,
            last_version: hello.version_code,
            push_token,
            last_push_ms: 0,
        };
        self.make_room(account).await?;
        self.work.add_session(&session).await?;
        // The others hear of it now; the new one in its first sync.
        self.tell_devices(account).await?;
        self.presence.join(conn, account, session.id);
        let (status, session) = (CreateSessionStatus::SUCCESS, session.id);
        let web_token = WebToken(web_token);
        self.say(conn, &ToClient::CreateSessionResponse { status, account, session, token, web_token });
        self.catch_up(conn, account, MessageId::NONE, &[]).await?;
        Ok(Answer::Authenticated(account))
    }

    /// Lets go of the session that was away the longest, where an account has as many as it can.
    async fn make_room(&mut self, account: AccountId) -> Result<(), StoreError> {
        let mut sessions = self.work.sessions(account).await?;
        sessions.sort_by_key(|it| (self.presence.at(account, it.id).is_some(), it.last_connected_ms, it.id));
        let many = (sessions.len() + 1).saturating_sub(self.settings.sessions_max);
        for session in sessions.into_iter().take(many) {
            // The others hear of it with the new one.
            self.end_session(account, session.id).await?;
        }
        Ok(())
    }

    /// Forgets sessions that were away for too long.
    pub(super) async fn forget_sessions(&mut self, before_ms: u64) -> Result<usize, StoreError> {
        let mut told = BTreeSet::new();
        let mut forgotten = 0;
        for (account, session) in self.work.sessions_before(before_ms).await? {
            if self.presence.at(account, session).is_none() {
                self.work.remove_session(session).await?;
                told.insert(account);
                forgotten += 1;
            }
        }
        for account in told {
            self.tell_devices(account).await?;
        }
        Ok(forgotten)
    }

    /// Tells the devices of an account which there are.
    async fn tell_devices(&mut self, account: AccountId) -> Result<(), StoreError> {
        let Some(loopback) = self.work.own(account, ChannelType::Loopback).await? else { return Ok(()) };
        let sessions = self.work.sessions(account).await?;
        let (mut devices, mut len) = (Vec::new(), 2);
        for session in sessions.into_iter().rev() {
            len += 17 + session.application.len();
            if len > DEVICE_LIST_MAX {
                break;
            }
            let created = DateTime::from_unix_ms(session.created_ms);
            devices.push(Device { session: session.id, created, application: session.application });
        }
        devices.reverse();
        self.inject(loopback.id, account, &Content::DeviceList(devices), []).await?;
        Ok(())
    }

    pub(super) async fn restore_session(
        &mut self,
        conn: ConnId,
        hello: &Hello,
        session: SessionId,
        token: &Secret<32>,
        last_message: MessageId,
        channels: Vec<ChannelId>,
    ) -> Result<Answer, Halt> {
        let logins = metrics::get().chat_logins.of(Room::Skynet);
        let stored = self.work.session(session).await?;
        let stored = stored.filter(|stored| equal(&stored.token_hash, &hash(token.expose())));
        let stored = match stored {
            Some(stored) if stored.is_fresh(self.settings.session_age_max, self.now_ms) => stored,
            other => {
                if let Some(old) = other {
                    self.drop_session(old.id).await?;
                }
                logins.of(Login::Refused).increment(1);
                self.say(conn, &ToClient::RestoreSessionResponse { status: RestoreSessionStatus::INVALID_SESSION });
                return Ok(Answer::Stay);
            }
        };
        logins.of(Login::Accepted).increment(1);
        let account = stored.account;
        self.work.touch_session(session, self.now_ms, hello.version_code).await?;
        if let Some(old) = self.presence.at(account, session) {
            self.left(old).await?;
            self.out.push(Out::Cut(old));
        }
        self.presence.join(conn, account, session);
        self.say(conn, &ToClient::RestoreSessionResponse { status: RestoreSessionStatus::SUCCESS });
        self.catch_up(conn, account, last_message, &channels).await?;
        Ok(Answer::Authenticated(account))
    }

    /// A session is none any more: its device cannot be reached, and will not come.
    pub(super) async fn drop_session(&mut self, session: SessionId) -> Result<(), StoreError> {
        let Some(StoredSession { account, .. }) = self.work.session(session).await? else { return Ok(()) };
        self.end_session(account, session).await?;
        self.tell_devices(account).await
    }

    async fn end_session(&mut self, account: AccountId, session: SessionId) -> Result<(), StoreError> {
        self.work.remove_session(session).await?;
        if let Some(conn) = self.presence.at(account, session) {
            self.left(conn).await?;
            self.out.push(Out::Cut(conn));
        }
        Ok(())
    }

    /// The sync of a session that knows these channels and everything up to `last` in them.
    ///
    /// Of a channel that the client does not know it gets everything: a contact that was added meanwhile brings keys with
    /// smaller numbers (spec 7.19).
    async fn catch_up(
        &mut self,
        conn: ConnId,
        account: AccountId,
        last: MessageId,
        known: &[ChannelId],
    ) -> Result<(), StoreError> {
        let known: HashSet<ChannelId> = known.iter().copied().collect();
        let mine = self.work.channels_of(account).await?;
        let mut listed = self.work.pushed(account, last).await?;
        let mut first = Vec::new();
        for channel in mine.iter().filter(|channel| !known.contains(&channel.id)) {
            first.push(ToClient::CreateChannel { channel: channel.id, announced: channel.announced(account) });
            if !last.is_none() {
                listed.extend(self.work.pushed_of(account, channel.id, last).await?);
            }
        }
        listed.ids.sort_unstable();
        let mine: HashSet<ChannelId> = mine.iter().map(|channel| channel.id).collect();
        let mut gone: Vec<_> = known.difference(&mine).copied().collect();
        gone.sort_unstable();
        first.extend(gone.into_iter().map(|channel| ToClient::DeleteChannel { channel }));
        self.sync(conn, account, &first, listed);
        Ok(())
    }

    /// A connection is over: nobody there is doing anything any more.
    pub(super) async fn left(&mut self, conn: ConnId) -> Result<(), StoreError> {
        let Some((seat, changed)) = self.presence.leave(conn) else { return Ok(()) };
        self.act(conn, seat.account, changed.actions).await?;
        self.tell_online(seat.account, changed.active).await
    }

    /// Says of those of whom nobody is here that nobody is, where the last word was another: a crash took the one that should
    /// have followed.
    pub(super) async fn tell_absent(&mut self) -> Result<(), StoreError> {
        for account in self.work.said_to_be_active().await? {
            if !self.presence.is_active(account) {
                self.tell_online(account, Some(false)).await?;
            }
        }
        Ok(())
    }

    /// Tells contacts whether somebody of an account is there, if that changed.
    pub(super) async fn tell_online(&mut self, account: AccountId, active: Option<bool>) -> Result<(), StoreError> {
        let Some(active) = active else { return Ok(()) };
        let Some(account_data) = self.work.own(account, ChannelType::AccountData).await? else { return Ok(()) };
        let since = (!active).then(|| DateTime::from_unix_ms(self.now_ms));
        self.inject(account_data.id, account, &Content::OnlineState(since), []).await.map(drop)
    }

    pub(super) async fn delete_account(
        &mut self,
        conn: ConnId,
        seat: Seat,
        key_hash: &Secret<32>,
    ) -> Result<Answer, Halt> {
        let account = seat.account;
        let stored = self.work.password_hash(account).await?;
        if !stored.is_some_and(|stored| equal(&stored, &hash(key_hash.expose()))) {
            let status = DeleteAccountStatus::INVALID_CREDENTIALS;
            self.say(conn, &ToClient::DeleteAccountResponse { status });
            return Ok(Answer::Stay);
        }
        // Nobody of the account hears of what follows: nobody of it is there.
        for other in self.conns(account, None) {
            let Some((_, changed)) = self.presence.leave(other) else { continue };
            self.act(other, account, changed.actions).await?;
            // While there still are contacts to tell.
            self.tell_online(account, changed.active).await?;
            if other != conn {
                self.out.push(Out::Cut(other));
            }
        }
        let channels = self.work.channels_of(account).await?;
        self.work.remove_account(account, self.now_ms).await?;
        for channel in &channels {
            match channel.channel_type {
                ChannelType::Loopback => self.work.purge_channel(channel.id).await?,
                ChannelType::Direct if self.work.password_hash(channel.other(account)).await?.is_none() => {
                    self.work.purge_channel(channel.id).await?;
                }
                ChannelType::Direct if channel.archive != ArchiveMode::DELETED => {
                    self.work.set_archive(channel.id, ArchiveMode::DELETED).await?;
                    let deleted = Content::ArchiveChannel(ArchiveMode::DELETED);
                    self.inject(channel.id, AccountId::NONE, &deleted, []).await?;
                }
                ChannelType::Direct | ChannelType::AccountData | ChannelType::Group | ChannelType::ProfileData => {}
            }
        }
        let kept: Vec<i64> = channels
            .iter()
            .filter(|it| !matches!(it.channel_type, ChannelType::Loopback | ChannelType::Direct))
            .map(|channel| channel.id.0)
            .collect();
        for deserted in self.work.deserted(&kept).await? {
            self.work.purge_channel(deserted).await?;
        }
        self.say(conn, &ToClient::DeleteAccountResponse { status: DeleteAccountStatus::SUCCESS });
        self.out.push(Out::Close(conn));
        Ok(Answer::Over)
    }

    /// Says who of an account is active, and what is done, to those it concerns.
    pub(super) async fn set_client_state(
        &mut self,
        conn: ConnId,
        seat: Seat,
        online: OnlineState,
        doing: Doing,
    ) -> Result<(), Halt> {
        if doing.channel.is_none() && doing.action != ChannelAction::NONE {
            return Err(Halt::Violation("an action without a channel"));
        }
        let active = online == OnlineState::ACTIVE;
        let changed = self.presence.change(conn, active, doing);
        self.act(conn, seat.account, changed.actions).await?;
        Ok(self.tell_online(seat.account, changed.active).await?)
    }
}

/// What a mail has to show: 16 letters and digits.
pub(super) fn mail_token() -> String {
    base32(&random::bytes::<10>())
}

/// Length of such a token.
const MAIL_TOKEN: usize = 16;
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// RFC 4648, in lower case; whole groups of five bytes only, so there is no padding.
fn base32(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 8 / 5);
    for group in bytes.chunks(5) {
        let bits = group.iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
        for shift in (0..8).rev() {
            let digit = usize::try_from(bits >> (5 * shift) & 31).unwrap_or_default();
            text.extend(ALPHABET.get(digit).map(|letter| char::from(*letter)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_base32() {
        assert_eq!(base32(b"foobarfoob"), "mzxw6ytbojtg633c");
        assert_eq!((base32(&[0; 30]).len(), mail_token().len()), (48, MAIL_TOKEN));
    }
}
