//! What every use case works with: the store's transaction, who is there, and what is to be said when it is kept.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;
use tracing::{error, info};

use super::actor::Answer;
use super::connection::Hello;
use super::files::{COMING_MAX, COMPLETE_WITHIN, FileAsk, FileLimits, Refused};
use super::gate::Gate;
use super::outbox::Item;
use crate::chat::skynet::state::ConnId;
use crate::chat::skynet::state::line::Platform;
use crate::chat::skynet::state::presence::Presence;
use crate::chat::skynet::state::rules;
use crate::chat::skynet::state::wakes::Wakes;
use crate::chat::skynet::store::{
    Audience, Channel, Draft, Fact, FileState, Listed, StoreError, Stored, StoredFile, Work,
};
use crate::chat::skynet::wire::content::MemberFlags;
use crate::chat::skynet::wire::{
    AccountId, Body, ChannelAction, ChannelId, Content, Dependency, FileId, FromClient, Kind, MessageFlags, MessageId,
    Release, SessionId, ToClient, TooLong,
};
use crate::metrics::{self, Room};

/// How the room behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The protocol's version, as clients say it.
    pub protocol_version: i32,
    /// Who is served.
    pub platforms: Vec<Platform>,
    /// A session that was away for longer has to log in again.
    pub session_age_max: Duration,
    /// Sessions of one account, at most: they are told in every device list, and woken. Of more, the one that was away the
    /// longest goes.
    pub sessions_max: usize,
    /// Whether sealed messages have to say with which keys. The only known client does not.
    pub strict_dependencies: bool,
    /// How much files may take.
    pub files: FileLimits,
    /// How long daystream messages are kept.
    pub daystream_age_max: Duration,
    /// How long a chat message may go unacknowledged until the account is woken; `None` when nobody ever is.
    pub push_after: Option<Duration>,
    /// Whether a session is woken again that was and did not come.
    pub push_every_message: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let release = Release { code: 60, name: "0.9.1".to_owned() };
        let android = Platform {
            application: "android/de.vectordata.skynet".to_owned(),
            latest: release,
            recommended_from: 60,
            required_from: 0,
            forward_profiles: false,
        };
        Self {
            protocol_version: 3,
            platforms: vec![android],
            session_age_max: Duration::from_secs(183 * 86_400),
            sessions_max: 64,
            strict_dependencies: false,
            files: FileLimits::default(),
            daystream_age_max: Duration::from_secs(86_400),
            push_after: Some(Duration::from_secs(60)),
            push_every_message: false,
        }
    }
}

/// How long an address may wait to be confirmed, in milliseconds.
pub(super) const CONFIRM_WITHIN_MS: u64 = 24 * 60 * 60 * 1_000;

/// A mail that somebody is to get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Where.
    pub to: String,
    /// Why.
    pub reason: Reason,
}

/// Why somebody gets a mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// To confirm that the address is theirs: this token does.
    Confirm {
        /// 16 letters and digits.
        token: String,
    },
    /// The account of this address is about to get another.
    Changing,
}

/// A device that is to be woken, so that it fetches what there is. Prints who, and not where.
#[derive(Clone, PartialEq, Eq)]
pub struct Wake {
    /// Which.
    pub session: SessionId,
    /// Where, as the device said.
    pub push_token: String,
}

impl std::fmt::Debug for Wake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Wake({} bytes)", self.push_token.len())
    }
}

/// Why a use case goes no further.
#[derive(Debug)]
pub(super) enum Halt {
    /// The client is out of the protocol. Nothing was changed.
    Violation(&'static str),
    Store(StoreError),
}

impl<E: Into<StoreError>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Store(error.into())
    }
}

/// What is to be said when everything is kept, in order.
#[derive(Debug)]
pub(super) enum Out {
    Say(ConnId, Item),
    /// Over, when everything is written.
    Close(ConnId),
    /// Over at once.
    Cut(ConnId),
}

/// How much was to be said when [`Scene::mark`] was.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    out: usize,
    letters: usize,
    woken: usize,
}

/// What is to be said to somebody who waits for it, when everything is kept.
pub(super) type Told = Box<dyn FnOnce() + Send>;

pub(super) fn told<T: Send + 'static>(answer: oneshot::Sender<T>, said: T) -> Told {
    Box::new(move || {
        // Whoever asked may be gone.
        let _gone = answer.send(said);
    })
}

/// See the top of this file.
#[derive(Debug)]
pub(super) struct Scene<'a> {
    pub(super) work: Work,
    pub(super) presence: &'a mut Presence,
    pub(super) wakes: &'a mut Wakes,
    pub(super) settings: &'a Settings,
    pub(super) gate: &'a Gate,
    pub(super) now_ms: u64,
    pub(super) monotonic: Duration,
    pub(super) out: Vec<Out>,
    pub(super) letters: Vec<Letter>,
    pub(super) woken: Vec<Wake>,
}

impl Scene<'_> {
    /// Deals with a packet, of which the connection has seen to it that it may be said now.
    pub(super) async fn said(&mut self, conn: ConnId, hello: &Hello, packet: FromClient) -> Result<Answer, Halt> {
        let seat = self.presence.seat(conn);
        match (packet, seat) {
            (FromClient::CreateAccount { name, key_hash }, None) => self.create_account(conn, &name, &key_hash).await?,
            (FromClient::CreateSession { name, key_hash, push_token }, None) => {
                return self.create_session(conn, hello, &name, &key_hash, push_token).await;
            }
            (FromClient::RestoreSession { session, token, last_message, channels }, None) => {
                return self.restore_session(conn, hello, session, &token, last_message, channels).await;
            }
            (FromClient::DeleteAccount { key_hash }, Some(seat)) => {
                return self.delete_account(conn, seat, &key_hash).await;
            }
            (FromClient::CreateChannel { temp, wanted }, Some(seat)) => {
                self.create_channel(conn, seat, temp, wanted).await?;
            }
            (FromClient::DeviceListRequest {}, Some(seat)) => self.list_devices(conn, seat).await?,
            (FromClient::SetClientState { online, doing }, Some(seat)) => {
                self.set_client_state(conn, seat, online, doing).await?;
            }
            (FromClient::Message(upload), Some(seat)) => self.message(conn, seat, upload).await?,
            // Its session was taken over while the packet was on its way here; or it is answered where it came in (`reads`).
            _ => return Ok(Answer::Over),
        }
        Ok(Answer::Stay)
    }

    pub(super) fn say(&mut self, conn: ConnId, packet: &ToClient) {
        if let Some(frame) = framed(packet) {
            self.out.push(Out::Say(conn, Item::Frame(frame)));
        }
    }

    pub(super) fn say_all(&mut self, conns: &[ConnId], packet: &ToClient) {
        let Some(frame) = framed(packet) else { return };
        self.out.extend(conns.iter().map(|conn| Out::Say(*conn, Item::Frame(Bytes::clone(&frame)))));
    }

    /// The connections of an account, but for one.
    pub(super) fn conns(&self, account: AccountId, except: Option<ConnId>) -> Vec<ConnId> {
        self.presence.of(account).filter(|conn| Some(*conn) != except).collect()
    }

    pub(super) fn announce(&mut self, conns: &[ConnId], to: AccountId, channel: &Channel) {
        self.say_all(conns, &ToClient::CreateChannel { channel: channel.id, announced: channel.announced(to) });
    }

    /// A sync: begins, says `first`, then these messages, and ends.
    pub(super) fn sync(&mut self, conn: ConnId, account: AccountId, first: &[ToClient], listed: Listed) {
        self.out.extend(sync(account, first, listed, false).into_iter().map(|item| Out::Say(conn, item)));
    }

    /// From here on, everything can be taken back that is written and is to be said.
    pub(super) async fn mark(&mut self) -> Result<Mark, StoreError> {
        self.work.mark().await?;
        Ok(Mark { out: self.out.len(), letters: self.letters.len(), woken: self.woken.len() })
    }

    /// What came of something. Where a row was damaged, `None`: then nothing did, and only who asked for it hears no answer. Who was to
    /// be cut still is, being known to nobody any more.
    pub(super) async fn unless_damaged<T>(
        &mut self,
        mark: Mark,
        done: Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let what = match done {
            Ok(done) => return Ok(Some(done)),
            Err(StoreError::Damaged(what)) => what,
            Err(error) => return Err(error),
        };
        error!(what, "a damaged row: who asks for it is disconnected");
        self.work.take_back().await?;
        let cut: Vec<_> = self.out.drain(mark.out..).filter(|it| matches!(it, Out::Cut(_))).collect();
        self.out.extend(cut);
        self.letters.truncate(mark.letters);
        self.woken.truncate(mark.woken);
        Ok(None)
    }

    /// Says something in the name of the server, or of an account that did not say it itself, to all who hear it.
    pub(super) async fn inject(
        &mut self,
        channel: ChannelId,
        sender: AccountId,
        content: &Content,
        dependencies: impl IntoIterator<Item = Dependency>,
    ) -> Result<MessageId, StoreError> {
        let kind = content.kind();
        let content = content.encode(None).map_err(|TooLong { .. }| StoreError::Damaged("too long to be said"))?;
        let body = Body::new(kind, kind.rule().required, content).on(dependencies);
        let draft = Draft { channel, sender, audience: Audience::Members, dispatched_ms: self.now_ms, body };
        let stored = self.work.add_message(draft).await?;
        self.deliver(&stored, None).await?;
        Ok(stored.id)
    }

    /// Says a message that is kept to all who hear it and are here, but for the connection it came from.
    pub(super) async fn deliver(&mut self, stored: &Stored, except: Option<ConnId>) -> Result<(), StoreError> {
        let Draft { channel, sender, audience, ref body, .. } = stored.draft;
        let same_for_all =
            body.kind != Kind::GroupChannelUpdate && body.dependencies.iter().all(|on| on.account.is_none());
        let mut shared: Option<Bytes> = None;
        for member in self.work.members(channel).await? {
            if !rules::hears(member, sender, body.flags, audience) {
                continue;
            }
            let conns = self.conns(member.account, except);
            if conns.is_empty() {
                continue;
            }
            let frame = match shared.clone() {
                Some(frame) => Some(frame),
                None => render(&mut self.work, stored, member.account, 0, false).await?,
            };
            if same_for_all {
                shared.clone_from(&frame);
            }
            let Some(frame) = frame else { continue };
            metrics::get().chat_delivered.of(Room::Skynet).increment(conns.len() as u64);
            self.out.extend(conns.into_iter().map(|conn| Out::Say(conn, Item::Frame(Bytes::clone(&frame)))));
        }
        Ok(())
    }

    /// Tells the other members what somebody is doing; of the invisible only administrators hear.
    pub(super) async fn act(
        &mut self,
        conn: ConnId,
        account: AccountId,
        actions: Vec<(ChannelId, ChannelAction)>,
    ) -> Result<(), StoreError> {
        for (channel, action) in actions {
            let members = self.work.members(channel).await?;
            // Without membership it is ignored.
            let Some(own) = members.iter().find(|member| member.account == account).copied() else { continue };
            let packet = ToClient::ChannelAction { channel, account, action };
            for member in members {
                let hears = member.account == account
                    || !own.flags.has(MemberFlags::INVISIBLE)
                    || member.flags.has(MemberFlags::ADMINISTRATOR);
                if hears {
                    let conns = self.conns(member.account, Some(conn));
                    self.say_all(&conns, &packet);
                }
            }
        }
        Ok(())
    }

    /// Somebody has not acknowledged a message in time.
    pub(super) async fn wake(&mut self, account: AccountId) -> Result<(), StoreError> {
        for session in self.work.sessions(account).await? {
            let came = session.last_push_ms < session.last_connected_ms || session.last_push_ms == 0;
            if !session.push_token.is_empty() && (came || self.settings.push_every_message) {
                self.work.set_pushed(session.id, self.now_ms).await?;
                self.woken.push(Wake { session: session.id, push_token: session.push_token });
            }
        }
        Ok(())
    }

    /// Forgets what is too old.
    pub(super) async fn sweep(&mut self) -> Result<(), StoreError> {
        let before = self.now_ms.saturating_sub(CONFIRM_WITHIN_MS);
        let names = self.work.remove_unconfirmed(before).await?;
        let daystream = self.work.remove_daystream(self.ago(self.settings.daystream_age_max)).await?;
        let (coming, unnamed) = (self.ago(COMPLETE_WITHIN), self.ago(self.settings.files.unnamed_age_max));
        let files = self.work.forget_files(coming, unnamed).await?;
        let sessions = self.forget_sessions(self.ago(self.settings.session_age_max)).await?;
        if names + daystream + files > 0 || sessions > 0 {
            info!(names, daystream, files, sessions, "forgot what was too old");
        }
        Ok(())
    }

    fn ago(&self, age: Duration) -> u64 {
        self.now_ms.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
    }

    /// What the doors for files ask. Answers with what is to be said when it is kept.
    pub(super) async fn file(&mut self, ask: FileAsk) -> Result<Told, StoreError> {
        Ok(match ask {
            FileAsk::Begin { session, web_token, answer } => told(answer, self.begin_file(session, &web_token).await?),
            FileAsk::SetAside { file, wanted, answer } => told(answer, self.set_aside(file, wanted).await?),
            FileAsk::Complete { file, length, checksum, answer } => {
                let known = self.work.complete_file(file, length, &checksum).await?;
                told(answer, if known { Ok(()) } else { Err(Refused::Unknown) })
            }
            FileAsk::Removed { files, answer } => {
                for file in files {
                    self.work.remove_gone(file).await?;
                }
                told(answer, Ok(()))
            }
        })
    }

    async fn begin_file(
        &mut self,
        session: SessionId,
        web_token: &str,
    ) -> Result<Result<(FileId, AccountId), Refused>, StoreError> {
        let fresh = (self.settings.session_age_max, self.now_ms);
        let Some(owner) = self.work.web_session(session, web_token, fresh).await? else {
            return Ok(Err(Refused::Unauthorized));
        };
        let used = self.work.files_of(owner, self.ago(self.settings.files.counted_for)).await?;
        if used.coming >= COMING_MAX {
            return Ok(Err(Refused::TooMany));
        }
        if used.bytes >= self.settings.files.per_account_max {
            return Ok(Err(Refused::Full));
        }
        let (id, state, created_ms) = (FileId::random(), FileState::Coming, self.now_ms);
        let file = StoredFile { id, owner, state, length: 0, checksum: Vec::new(), created_ms, referenced_ms: 0 };
        self.work.add_file(&file).await?;
        Ok(Ok((id, owner)))
    }

    async fn set_aside(&mut self, file: FileId, wanted: Option<u64>) -> Result<Result<u64, Refused>, StoreError> {
        let stored = self.work.file(file).await?.filter(|stored| stored.state == FileState::Coming);
        let Some(stored) = stored else { return Ok(Err(Refused::Unknown)) };
        let FileLimits { length_max, per_account_max, .. } = self.settings.files;
        let counted = self.ago(self.settings.files.counted_for);
        let others = self.work.files_of(stored.owner, counted).await?.bytes.saturating_sub(stored.length);
        let left = per_account_max.saturating_sub(others);
        let length = wanted.unwrap_or_else(|| left.min(length_max));
        if length > left {
            return Ok(Err(Refused::Full));
        }
        self.work.set_aside(file, length).await?;
        Ok(Ok(length))
    }
}

/// A sync as it stands in a line. See [`Scene::sync`].
pub(super) fn sync(account: AccountId, first: &[ToClient], listed: Listed, found: bool) -> Vec<Item> {
    let Listed { ids, lasting } = listed;
    let start = ToClient::SyncStarted { min_count: i32::try_from(lasting).unwrap_or(-1) };
    let mut items: Vec<_> = [&start].into_iter().chain(first).filter_map(framed).map(Item::Frame).collect();
    if !ids.is_empty() {
        items.push(Item::Messages { account, ids, found });
    }
    items.extend(framed(&ToClient::SyncFinished {}).map(Item::Frame));
    items
}

/// A message as a frame for `to`. What a search found is told outside of its channel.
pub(super) async fn render(
    work: &mut Work,
    stored: &Stored,
    to: AccountId,
    skip_count: i64,
    found: bool,
) -> Result<Option<Bytes>, StoreError> {
    let mut delivery = stored.delivery(to, skip_count);
    if found {
        delivery.channel = ChannelId::NONE;
        delivery.body.dependencies.clear();
    }
    if delivery.body.kind == Kind::GroupChannelUpdate {
        let member = work.member(delivery.channel, to).await?;
        let administers = member.is_some_and(|member| member.flags.has(MemberFlags::ADMINISTRATOR));
        let content = Content::decode(delivery.body.kind, MessageFlags::NONE, &delivery.body.content);
        if !administers && let Ok((Content::GroupChannelUpdate { revision, mut members, key_history }, _)) = content {
            rules::hide_invisible(&mut members, to);
            let shown = Content::GroupChannelUpdate { revision, members, key_history };
            // It is shorter than what it was made of.
            if let Ok(shown) = shown.encode(None) {
                delivery.body.content = shown;
            }
        }
    }
    Ok(framed(&ToClient::Message(delivery)))
}

/// Everything that the server says fits its layout, because everything that came from clients did. If it does not, that is a
/// fault of ours, and leaving out one packet is the smaller harm.
pub(super) fn framed(packet: &ToClient) -> Option<Bytes> {
    packet.encode().inspect_err(|error| error!(%error, id = packet.id(), "a packet cannot be said")).ok()
}

/// What is kept of a secret.
pub(super) fn hash(secret: &[u8]) -> Vec<u8> {
    Sha256::digest(secret).to_vec()
}

/// Facts by their message.
pub(super) fn by_id(facts: Vec<Fact>) -> HashMap<MessageId, Fact> {
    facts.into_iter().map(|fact| (fact.id, fact)).collect()
}
