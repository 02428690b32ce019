//! A client that stays: it connects, comes back when the connection was lost, keeps what it knows, and tells what happens.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use zeroize::Zeroizing;

use super::book::Book;
use super::command::{Command, flags};
use super::event::{Event, Said};
use super::folder::{BadFolder, Folder, Record, Session};
use super::keys;
use super::line::{Line, Turn};
use super::place::{NoConnection, Place};
use super::talk::{Act, Edit, Lock, Talk};
use super::web::{FILE_MAX, Web};
use crate::chat::skynet::wire::blob::AccountKeys;
use crate::chat::skynet::wire::content::{ExternalFile, MemberFlags};
use crate::chat::skynet::wire::{
    AccountId, ChannelId, ChannelType, ConnectionState, Content, CreateAccountStatus, CreateSessionStatus, DateTime,
    Doing, FileBlock, FileId, FromClient, Kind, MessageId, RestoreSessionStatus, SessionId, ToClient,
};
use crate::crypto::{Secret, random};
use crate::files;
use crate::time::Clock;

/// Before a connection is tried again: twice as long each time.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Attempts in a row that came to nothing.
const ATTEMPTS: u32 = 10;
/// How long a server may take to answer a greeting or a login.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long it may leave unanswered what was said and asked later.
const STALLED: Duration = Duration::from_secs(60);
/// The protocol's version, as the fifth's second revision calls itself.
const PROTOCOL: i32 = 3;
/// A file that is not longer comes with its message, in bytes (spec 2.3).
const INLINE_MAX: usize = 50 * 1024;

/// How a client introduces itself, and where its files are.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The platform: servers serve those they know.
    pub application: String,
    /// The version of the platform's client whose manners it has.
    pub version_code: i32,
    /// Where files beside the messages are kept; none when there is no such place.
    pub web: Option<Web>,
    /// The server of a device that is kept is reached otherwise than before.
    pub moved: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { application: "android/de.vectordata.skynet".to_owned(), version_code: 60, web: None, moved: false }
    }
}

/// Why there is no client, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// What is kept of the device.
    #[error(transparent)]
    Folder(#[from] BadFolder),
    /// There is no connection.
    #[error(transparent)]
    Connection(#[from] NoConnection),
    /// The server closed the connection, broke it, or says what it cannot say.
    #[error("the server does not go on: {0}")]
    Server(String),
    /// The server wants a newer client.
    #[error("the server wants version {0} of this client")]
    Outdated(String),
    /// The server does not know this name with this password.
    #[error("the server does not know this name with this password")]
    Credentials,
    /// Nobody has confirmed the address yet.
    #[error("nobody has confirmed that this address is theirs: follow the link in the mail")]
    Unconfirmed,
    /// Another answer to a login.
    #[error("the server answers the login: {0}")]
    Refused(String),
}

impl Failure {
    fn is_final(&self) -> bool {
        match self {
            Self::Connection(error) => error.is_final(),
            Self::Server(_) => false,
            _ => true,
        }
    }
}

/// Registers an account. Its address has to be confirmed before it can be used.
///
/// # Errors
/// [`Failure`], when there is no answer.
pub async fn register(
    place: &Place,
    settings: &Settings,
    name: &str,
    password: &str,
) -> Result<CreateAccountStatus, Failure> {
    let name = name.to_lowercase();
    let mut line = greeted(place, settings).await?;
    let key_hash = AccountKeys::derive(&name, password).key_hash;
    match ask(&mut line, &FromClient::CreateAccount { name, key_hash }).await? {
        ToClient::CreateAccountResponse { status } => Ok(status),
        _ => Err(strange()),
    }
}

fn strange() -> Failure {
    Failure::Server("it answers something else than it was asked".to_owned())
}

/// Connects and says who is there.
async fn greeted(place: &Place, settings: &Settings) -> Result<Line, Failure> {
    let mut line = place.connect().await?;
    let (application, version_code) = (settings.application.clone(), settings.version_code);
    let hello = FromClient::ConnectionHandshake { protocol_version: PROTOCOL, application, version_code };
    match ask(&mut line, &hello).await? {
        ToClient::ConnectionResponse { state: ConnectionState::MustUpgrade(release) } => {
            Err(Failure::Outdated(release.name))
        }
        ToClient::ConnectionResponse { .. } => Ok(line),
        _ => Err(strange()),
    }
}

async fn ask(line: &mut Line, packet: &FromClient) -> Result<ToClient, Failure> {
    let failed = |error: &dyn fmt::Display| Failure::Server(error.to_string());
    line.say(packet).map_err(|error| failed(&error))?;
    match tokio::time::timeout(PATIENCE, line.next()).await {
        Ok(Ok(Some(answer))) => Ok(answer),
        Ok(Ok(None)) => Err(Failure::Server("it closed the connection".to_owned())),
        Ok(Err(error)) => Err(failed(&error)),
        Err(_) => Err(Failure::Server("it does not answer".to_owned())),
    }
}

/// Logs in as a new device.
async fn log_in(line: &mut Line, name: &str, key_hash: Secret<32>) -> Result<Session, Failure> {
    let packet = FromClient::CreateSession { name: name.to_owned(), key_hash, push_token: String::new() };
    match ask(line, &packet).await? {
        ToClient::CreateSessionResponse { status, account, session, token, web_token } => match status {
            CreateSessionStatus::SUCCESS => Ok(Session { account, session, token, web_token }),
            CreateSessionStatus::INVALID_CREDENTIALS => Err(Failure::Credentials),
            CreateSessionStatus::UNCONFIRMED_ACCOUNT => Err(Failure::Unconfirmed),
            other => Err(Failure::Refused(other.to_string())),
        },
        _ => Err(strange()),
    }
}

/// A connection of the account: the session it came back to, or another one.
type Connected = Result<(Line, Option<Session>), Failure>;
/// What became of a file: what is to be said with it, or what was fetched.
type Transferred = Result<Moved, String>;

enum Moved {
    Up { wish: Wish, block: Box<FileBlock>, file: FileId },
    Down { id: MessageId, path: String, length: u64 },
}

/// What a file is for.
#[derive(Debug, Clone)]
enum Wish {
    Chat { channel: ChannelId, text: String },
    Picture { text: String },
    Background { channel: Option<ChannelId> },
}

/// One device of an account. See the top of this file.
pub struct Client {
    place: Place,
    settings: Settings,
    folder: Folder,
    session: Session,
    talk: Talk,
    line: Option<Line>,
    connecting: Option<Pin<Box<dyn Future<Output = Connected> + Send>>>,
    transfer: Option<Pin<Box<dyn Future<Output = Transferred> + Send>>>,
    clock: Clock,
    /// When an answer is overdue, and what had been answered before.
    overdue: Option<(u64, Pin<Box<tokio::time::Sleep>>)>,
    failures: u32,
    events: VecDeque<Event>,
    over: bool,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({:?}, connected: {}, {:?})", self.session.session, self.line.is_some(), self.talk)
    }
}

impl Client {
    /// The device that is kept in this directory; a new one, logged in now, when there is none.
    ///
    /// # Errors
    /// [`Failure`]: what is kept cannot be used, or the login came to nothing.
    pub async fn open(
        place: Place,
        settings: Settings,
        dir: &Path,
        name: &str,
        password: Zeroizing<String>,
    ) -> Result<Self, Failure> {
        if Folder::exists(dir) {
            return Self::kept(place, settings, dir, name, password);
        }
        let name = name.to_lowercase();
        let mut line = greeted(&place, &settings).await?;
        let lock = Lock { keys: AccountKeys::derive(&name, &password), name };
        let session = log_in(&mut line, &lock.name, lock.keys.key_hash.clone()).await?;
        let folder = Folder::create(dir, &place.name(), &lock, &Record::Session(session.clone()))?;
        let talk = Talk::new(session.account, session.session, lock, password);
        Ok(Self::with(place, settings, folder, session, talk, Some(line)))
    }

    fn with(
        place: Place,
        settings: Settings,
        folder: Folder,
        session: Session,
        talk: Talk,
        line: Option<Line>,
    ) -> Self {
        Self {
            place,
            settings,
            folder,
            session,
            talk,
            line,
            connecting: None,
            transfer: None,
            clock: Clock::system(),
            overdue: None,
            failures: 0,
            events: VecDeque::new(),
            over: false,
        }
    }

    fn kept(
        place: Place,
        settings: Settings,
        dir: &Path,
        name: &str,
        password: Zeroizing<String>,
    ) -> Result<Self, Failure> {
        let (mut folder, lock, records) = Folder::open(dir, &password)?;
        let (kept, asked) = (folder.server().to_owned(), place.name());
        if kept != asked {
            if !settings.moved {
                return Err(BadFolder::OtherServer { dir: dir.to_owned(), kept, asked }.into());
            }
            folder.move_to(&asked)?;
        }
        let of_lock = lock.name.clone();
        let mut records = records.into_iter();
        let Some(Record::Session(mut session)) = records.next() else {
            return Err(BadFolder::Damaged(dir.to_owned()).into());
        };
        let mut talk = Talk::new(session.account, session.session, lock, password);
        for record in records {
            match record {
                Record::Session(other) => {
                    talk.renewed(other.session);
                    session = other;
                }
                Record::Heard(packet) => talk.replay_heard(packet),
                Record::Said(packet) => talk.replay_said(packet),
                Record::Connected => talk.replay_connected(),
                Record::Dropped(temp) => talk.replay_dropped(temp),
                Record::Floor(channel, floor) => talk.replay_floor(channel, floor),
            }
        }
        talk.replayed();
        // Its address may have changed, and its keys not yet.
        let asked = name.to_lowercase();
        if asked != of_lock && asked != talk.address() {
            let kept = talk.address().to_owned();
            return Err(BadFolder::OtherAccount { dir: dir.to_owned(), kept, asked }.into());
        }
        let mut client = Self::with(place, settings, folder, session, talk, None);
        client.tidy()?;
        Ok(client)
    }

    /// Writes the journal anew when it has become long.
    fn tidy(&mut self) -> Result<(), Failure> {
        if self.folder.is_long() && self.talk.is_whole() {
            let (heard, said) = self.talk.digest();
            let first = std::iter::once(Record::Session(self.session.clone()));
            let heard = heard.into_iter().map(Record::Heard);
            let floors = self.talk.floors().map(|(channel, floor)| Record::Floor(channel, floor));
            let said = said.into_iter().map(Record::Said);
            self.folder.replace(&first.chain(heard).chain(floors).chain(said).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// What this device knows.
    #[must_use]
    pub const fn book(&self) -> &Book {
        self.talk.book()
    }

    /// The account.
    #[must_use]
    pub const fn account(&self) -> AccountId {
        self.talk.book().me
    }

    /// This device.
    #[must_use]
    pub const fn session(&self) -> SessionId {
        self.session.session
    }

    /// Where text goes.
    #[must_use]
    pub const fn current(&self) -> Option<ChannelId> {
        self.talk.current()
    }

    /// A message as people are shown it.
    #[must_use]
    pub fn said(&self, id: MessageId) -> Option<Said> {
        self.talk.said(id)
    }

    /// Whether the next command has to wait: what it means depends on the one before.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.talk.is_busy() || self.transfer.is_some() || !self.talk.is_ready()
    }

    /// Whether everything that was said was written and, where there is an answer, answered.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let written = self.line.as_ref().is_some_and(|line| line.waiting() == 0);
        self.talk.is_idle() && self.transfer.is_none() && written
    }

    /// What happens next; nothing when the account is no more. May be cancelled without losing anything.
    ///
    /// # Errors
    /// [`Failure`], when there is no point in going on.
    pub async fn next_event(&mut self) -> Result<Option<Event>, Failure> {
        loop {
            if let Some(event) = self.take_event() {
                return Ok(Some(event));
            }
            if self.over {
                return Ok(None);
            }
            self.drive().await?;
        }
    }

    /// Goes on until everything that was said was answered. What happens meanwhile is to be had afterwards.
    ///
    /// # Errors
    /// [`Failure`], when there is no point in going on.
    pub async fn settle(&mut self) -> Result<(), Failure> {
        while !self.is_idle() && !self.over {
            self.drive().await?;
        }
        Ok(())
    }

    /// Something that happened and that nobody was told of.
    pub fn take_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether the account is no more.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.over
    }

    /// Goes on until something happened, which may be nothing that anybody is told. May be cancelled without losing anything.
    ///
    /// # Errors
    /// [`Failure`], when there is no point in going on.
    pub async fn drive(&mut self) -> Result<(), Failure> {
        if self.line.is_none() && self.connecting.is_none() {
            self.connecting = Some(self.reconnect());
        }
        let (waits, progress) = (self.line.is_some() && !self.talk.is_idle(), self.talk.progress());
        if self.overdue.as_ref().is_none_or(|(before, _)| *before != progress) || !waits {
            self.overdue = waits.then(|| (progress, Box::pin(tokio::time::sleep(STALLED))));
        }
        tokio::select! {
            heard = next_of(&mut self.line) => match heard {
                Ok(Turn::Heard(packet)) => self.heard(*packet),
                Ok(Turn::Wrote) => Ok(()),
                Ok(Turn::Ended) => self.lost("the server closed it", true),
                Err(error) => self.lost(&error.to_string(), true),
            },
            connected = done(&mut self.connecting) => self.connected(connected),
            transferred = done(&mut self.transfer) => self.transferred(transferred),
            () = until(&mut self.overdue) => self.lost("the server does not answer", true),
        }
    }

    /// Drops the connection: another one is made. For tests of what survives that.
    ///
    /// # Errors
    /// [`Failure`], when there is no point in going on.
    pub fn drop_connection(&mut self) -> Result<(), Failure> {
        self.lost("dropped", false)
    }

    fn lost(&mut self, why: &str, closed: bool) -> Result<(), Failure> {
        if self.line.take().is_none() {
            return Ok(());
        }
        self.talk.at(self.clock.now().wall_ms);
        let acts = self.talk.lost(closed);
        self.events.push_back(Event::Lost { why: why.to_owned() });
        self.perform(acts)?;
        if closed && self.failures >= ATTEMPTS {
            return Err(Failure::Server(format!("its connections come to nothing: {why}")));
        }
        Ok(())
    }

    fn reconnect(&self) -> Pin<Box<dyn Future<Output = Connected> + Send>> {
        let (place, settings, session) = (self.place.clone(), self.settings.clone(), self.session.clone());
        let (name, key_hash) = (self.talk.address().to_owned(), self.talk.keys().key_hash.clone());
        let (last_message, channels) = self.talk.known();
        let wait = match self.failures {
            0 => Duration::ZERO,
            n => FIRST_WAIT.saturating_mul(1 << n.saturating_sub(1).min(10)).min(LONGEST_WAIT),
        };
        Box::pin(async move {
            // Not all at once after a server was away: up to half of it is for chance.
            let chance = random::u64() % u64::try_from(wait.as_millis() / 2).unwrap_or(0).max(1);
            tokio::time::sleep(wait.saturating_sub(Duration::from_millis(chance))).await;
            let mut line = greeted(&place, &settings).await?;
            let (id, token) = (session.session, session.token);
            let restore = FromClient::RestoreSession { session: id, token, last_message, channels };
            match ask(&mut line, &restore).await? {
                ToClient::RestoreSessionResponse { status: RestoreSessionStatus::SUCCESS } => Ok((line, None)),
                // It was too old, or the server has forgotten it.
                ToClient::RestoreSessionResponse { .. } => {
                    let session = log_in(&mut line, &name, key_hash).await?;
                    Ok((line, Some(session)))
                }
                _ => Err(strange()),
            }
        })
    }

    fn connected(&mut self, connected: Connected) -> Result<(), Failure> {
        match connected {
            Ok((line, renewed)) => {
                if let Some(session) = renewed {
                    self.folder.append(&Record::Session(session.clone()))?;
                    self.talk.renewed(session.session);
                    self.session = session;
                }
                self.folder.append(&Record::Connected)?;
                self.line = Some(line);
                self.talk.connected();
                // Until the sync is over and what was said is answered, this attempt came to nothing.
                self.failures += 1;
                Ok(())
            }
            Err(failure) => {
                self.failures += 1;
                if failure.is_final() || self.failures >= ATTEMPTS { Err(failure) } else { Ok(()) }
            }
        }
    }

    fn heard(&mut self, packet: ToClient) -> Result<(), Failure> {
        // What is kept is what leads to the same again.
        let matters = match &packet {
            ToClient::Message(delivery) => !delivery.channel.is_none() && !self.talk.knows(delivery),
            ToClient::CreateChannel { .. }
            | ToClient::DeleteChannel { .. }
            | ToClient::SyncStarted { .. }
            | ToClient::SyncFinished {}
            | ToClient::CreateChannelResponse { .. }
            | ToClient::ChannelMessageResponse { .. } => true,
            _ => false,
        };
        if matters {
            self.folder.append(&Record::Heard(packet.clone()))?;
        }
        self.talk.at(self.clock.now().wall_ms);
        let acts = self.talk.heard(packet);
        if self.talk.is_heard() {
            self.failures = 0;
        }
        self.perform(acts)?;
        self.tidy()
    }

    fn perform(&mut self, acts: Vec<Act>) -> Result<(), Failure> {
        for act in acts {
            match act {
                Act::Keep(packet) => self.folder.append(&Record::Said(packet))?,
                Act::Drop(temp) => self.folder.append(&Record::Dropped(temp))?,
                Act::Say(packet) => {
                    if let Some(line) = &mut self.line
                        && let Err(error) = line.say(&packet)
                    {
                        self.events.push_back(Event::problem(error.to_string()));
                    }
                }
                Act::Tell(event) => self.events.push_back(event),
                Act::Seal(locks) => self.folder.seal(&locks)?,
                Act::Erase => {
                    self.folder.erase()?;
                    self.over = true;
                }
            }
        }
        Ok(())
    }

    /// Does what was asked for, or begins with it: what comes of it are events.
    ///
    /// # Errors
    /// [`Failure`], when there is no point in going on.
    pub fn obey(&mut self, command: Command) -> Result<(), Failure> {
        self.talk.at(self.clock.now().wall_ms);
        match self.decide(command) {
            Ok(acts) => self.perform(acts),
            Err(text) => {
                self.events.push_back(Event::problem(text));
                Ok(())
            }
        }
    }

    fn here(&self) -> Result<ChannelId, String> {
        self.talk.current().ok_or_else(|| "there is no current channel: `/contact ADDRESS` or `/to CHANNEL`".to_owned())
    }

    fn people(&self, names: &[String]) -> Result<Vec<AccountId>, String> {
        names.iter().map(|name| self.talk.find_person(name)).collect()
    }

    fn decide(&mut self, command: Command) -> Result<Vec<Act>, String> {
        let tell = |event| Ok(vec![Act::Tell(event)]);
        match command {
            Command::Say { text } => Ok(self.talk.chat(self.here()?, &text, MessageId::NONE, None)),
            Command::Reply { id, text } => {
                let there = self.talk.said(id).ok_or_else(|| format!("[{}] is not here", id.0))?.channel;
                Ok(self.talk.chat(there, &text, id, None))
            }
            Command::Edit { id, text } => Ok(self.talk.edit(id, Some(text))),
            Command::Delete { id } => Ok(self.talk.edit(id, None)),
            Command::Read { up_to } => Ok(self.talk.read(self.here()?, up_to)),
            Command::Contact { address } => Ok(self.talk.contact(&address)),
            Command::To { channel } => {
                let channel = self.talk.find_channel(&channel)?;
                Ok(self.talk.set_current(channel))
            }
            Command::Channels => tell(self.talk.show_channels()),
            Command::History { count } => {
                Ok(self.talk.history(self.here()?, count).into_iter().map(Act::Tell).collect())
            }
            Command::Older => Ok(self.talk.older(self.here()?)),
            Command::Typing => Ok(self.talk.typing(Some(self.here()?))),
            Command::Online => Ok(self.talk.presence(true, Doing::default())),
            Command::Away => Ok(self.talk.presence(false, Doing::default())),
            Command::File { path, text } => self.send_file(&path, Wish::Chat { channel: self.here()?, text }),
            Command::Picture { path, text } => self.send_file(&path, Wish::Picture { text }),
            Command::Background { path } => self.send_file(&path, Wish::Background { channel: self.talk.current() }),
            Command::Save { id, path } => self.save(id, path),
            Command::Group { name, members } => {
                let members = self.people(&members)?;
                Ok(self.talk.found_group(ChannelType::Group, &name, &members))
            }
            Command::Profile { members } => {
                let members = self.people(&members)?;
                Ok(self.talk.found_group(ChannelType::ProfileData, "", &members))
            }
            Command::Add { who, how } => {
                let (account, (mut flags, history)) = (self.talk.find_person(&who)?, flags(&how)?);
                let here = self.here()?;
                if self.book().channel(here).is_some_and(|it| it.channel_type() == ChannelType::ProfileData) {
                    flags = flags.and(MemberFlags::INVISIBLE);
                }
                let members = [(account, Some(flags))].into();
                Ok(self.talk.change_group(here, Edit { members, history }))
            }
            Command::Remove { who } => {
                let members = [(self.talk.find_person(&who)?, None)].into();
                Ok(self.talk.change_group(self.here()?, Edit { members, history: false }))
            }
            Command::End => Ok(self.talk.end_group(self.here()?)),
            Command::Rename { name } => Ok(self.talk.rename(self.here()?, name)),
            Command::Nickname { text } => Ok(self.talk.profile(&Content::Nickname(text), None)),
            Command::Bio { text } => Ok(self.talk.profile(&Content::Bio(text), None)),
            Command::Verify { verified } => Ok(self.talk.verify(self.here()?, verified)),
            Command::Block { who, blocked } if who == "." => Ok(self.talk.block(None, Some(self.here()?), blocked)),
            Command::Block { who, blocked } => {
                let account = self.talk.find_person(&who)?;
                Ok(self.talk.block(Some(account), None, blocked))
            }
            Command::Blocked => tell(self.talk.show_blocked()),
            Command::Search { query } => Ok(self.talk.search(&query)),
            Command::Devices => Ok(self.talk.list_devices()),
            Command::Password { file } => {
                let password = password_of(Path::new(&file))?;
                Ok(self.talk.change_password(password))
            }
            Command::Unlock { file } => {
                let password = password_of(Path::new(&file))?;
                Ok(self.talk.unlock(password))
            }
            Command::Address { address } => Ok(self.talk.change_address(&address)),
            Command::DeleteAccount { address } if address.to_lowercase() == self.talk.address() => {
                Ok(self.talk.delete_account())
            }
            Command::DeleteAccount { address } => Err(format!("this account is not {address}: nothing was deleted")),
            Command::Quit => Ok(Vec::new()),
        }
    }

    /// Says something with a file: a small one comes with it, a longer one lies beside.
    fn send_file(&mut self, path: &str, wish: Wish) -> Result<Vec<Act>, String> {
        self.one_at_a_time()?;
        let (path, web, session) = (PathBuf::from(path), self.settings.web.clone(), self.session.clone());
        self.transfer = Some(Box::pin(async move {
            let (mut block, bytes) = apart(move || read_file(&path)).await?;
            if bytes.len() <= INLINE_MAX {
                block.thumbnail = bytes.into();
                return Ok(Moved::Up { wish, block: Box::new(block), file: FileId::NONE });
            }
            let web = web.ok_or("that is too long to come with a message, and no place for files is known (--web)")?;
            let (key, content_type) = (Secret::random(), block.thumbnail_type.clone());
            let length = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
            let seal = {
                let key = key.clone();
                move || keys::seal_file(&key, &bytes).map_err(|error| error.to_string())
            };
            let uploaded = web.upload(&session, apart(seal).await?.into()).await;
            let file = uploaded.map_err(|error| format!("the file was not uploaded: {error}"))?;
            block.external = Some(ExternalFile { content_type, length, key });
            Ok(Moved::Up { wish, block: Box::new(block), file })
        }));
        Ok(Vec::new())
    }

    fn one_at_a_time(&self) -> Result<(), String> {
        if self.transfer.is_some() { Err("another file is under way".to_owned()) } else { Ok(()) }
    }

    fn say_with_file(&mut self, wish: Wish, block: FileBlock, file: FileId) -> Vec<Act> {
        match wish {
            Wish::Chat { channel, text } => self.talk.chat(channel, &text, MessageId::NONE, Some((block, file))),
            Wish::Picture { text } => self.talk.profile(&Content::ProfileImage(text), Some((block, file))),
            Wish::Background { channel } => self.talk.background(channel, (block, file)),
        }
    }

    fn save(&mut self, id: MessageId, path: String) -> Result<Vec<Act>, String> {
        self.one_at_a_time()?;
        let entry = self.book().message(id).ok_or_else(|| format!("[{}] is not here", id.0))?;
        let block = entry.opened.as_ref().and_then(|it| it.file.clone());
        let block = block.ok_or_else(|| format!("no file comes with [{}]", id.0))?;
        let file = entry.delivery.body.file;
        let (web, session) = (self.settings.web.clone(), self.session.clone());
        self.transfer = Some(Box::pin(async move {
            let (plain, sealed) = match block.external {
                None => (block.thumbnail, None),
                Some(external) => {
                    let web = web.ok_or("no place for files is known (--web)")?;
                    let sealed = web.download(&session, file).await;
                    (
                        Bytes::new(),
                        Some((external.key, sealed.map_err(|error| format!("the file was not fetched: {error}"))?)),
                    )
                }
            };
            let (path, length) = apart(move || {
                let length = match sealed {
                    None => write_file(&path, &plain)?,
                    Some((key, sealed)) => {
                        let opened = keys::open_file(&key, sealed.into());
                        write_file(&path, &opened.map_err(|_| "the file was changed on its way".to_owned())?)?
                    }
                };
                Ok((path, length))
            })
            .await?;
            Ok(Moved::Down { id, path, length })
        }));
        Ok(Vec::new())
    }

    fn transferred(&mut self, transferred: Transferred) -> Result<(), Failure> {
        let acts = match transferred {
            Ok(Moved::Up { wish, block, file }) => self.say_with_file(wish, *block, file),
            Ok(Moved::Down { id, path, length }) => vec![Act::Tell(Event::Saved { id, path, length })],
            Err(why) => vec![Act::Tell(Event::problem(why))],
        };
        self.perform(acts)
    }

    /// The newest message of a kind that is kept as its newest only, as a profile's picture.
    #[must_use]
    pub fn newest(&self, channel: ChannelId, kind: Kind) -> Option<MessageId> {
        self.book().newest(channel, kind)
    }
}

async fn next_of(line: &mut Option<Line>) -> std::io::Result<Turn> {
    match line {
        Some(line) => line.turn().await,
        None => std::future::pending().await,
    }
}

async fn until(overdue: &mut Option<(u64, Pin<Box<tokio::time::Sleep>>)>) {
    match overdue {
        Some((_, sleep)) => sleep.await,
        None => std::future::pending().await,
    }
}

/// Waits for something that may be under way, and is not any more then.
async fn done<T>(under_way: &mut Option<Pin<Box<dyn Future<Output = T> + Send>>>) -> T {
    match under_way {
        Some(future) => {
            let value = future.await;
            *under_way = None;
            value
        }
        None => std::future::pending().await,
    }
}

/// Does what takes long where it keeps nobody waiting: whatever is to be heard meanwhile is.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string()))
}

/// A file, and what is said of it.
fn read_file(path: &Path) -> Result<(FileBlock, Vec<u8>), String> {
    let name = path.file_name().and_then(|it| it.to_str()).ok_or("that is no file")?.to_owned();
    let unreadable = |error| format!("{} cannot be read: {error}", path.display());
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let (written, created) =
        (time_of(file.metadata().and_then(|it| it.modified())), time_of(file.metadata().and_then(|it| it.created())));
    let limit = u64::try_from(FILE_MAX).unwrap_or(u64::MAX) + 1;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > FILE_MAX {
        return Err(format!("{} is longer than {FILE_MAX} bytes", path.display()));
    }
    let (thumbnail_type, thumbnail, external) = (media_type(&name).to_owned(), Bytes::new(), None);
    Ok((FileBlock { name, created, written, thumbnail_type, thumbnail, external }, bytes))
}

/// The first line of a file.
pub(super) fn password_of(file: &Path) -> Result<Zeroizing<String>, String> {
    let text = std::fs::read_to_string(file).map(Zeroizing::new);
    let text = text.map_err(|error| format!("{} cannot be read: {error}", file.display()))?;
    match text.lines().next() {
        Some(password) if !password.is_empty() => Ok(Zeroizing::new(password.to_owned())),
        _ => Err(format!("there is no password in {}", file.display())),
    }
}

/// Writes a file that is not there.
fn write_file(path: &str, bytes: &[u8]) -> Result<u64, String> {
    let path = PathBuf::from(path);
    let written =
        files::private().create_new(true).open(&path).and_then(|mut file| std::io::Write::write_all(&mut file, bytes));
    written.map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
    Ok(u64::try_from(bytes.len()).unwrap_or(u64::MAX))
}

fn time_of(at: std::io::Result<std::time::SystemTime>) -> DateTime {
    let since = at.ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    let ms = since.and_then(|it| u64::try_from(it.as_millis()).ok());
    DateTime::from_unix_ms(ms.unwrap_or_else(|| Clock::system().now().wall_ms))
}

/// What is in a file, by its name.
fn media_type(name: &str) -> &'static str {
    let extension = name.rsplit_once('.').map(|(_, it)| it.to_lowercase()).unwrap_or_default();
    match extension.as_str() {
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "txt" => "text/plain",
        "pdf" => "application/pdf",
        _ => "application/octet-stream",
    }
}
