//! A client that stays: it connects, logs in, comes back when the connection was lost, keeps what it knows, and tells what happens.
//!
//! It asks one thing after the other and waits for each answer, for [`ANSWER`] at most; what the server says by itself meanwhile stands in
//! line and is attended to afterwards. What is to be believed and what is to be said is the [`Book`]'s to decide.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::Sleep;

use super::book::{Book, DMS_MAX, Kept, NotSealed, Stranger};
use super::command::Command;
use super::event::Event;
use super::folder::{BadFolder, Folder};
use super::line::{Broken, Heard, Line};
use super::place::{NoConnection, Place};
use crate::chat::dm::crypto::storage::BadStorage;
use crate::chat::dm::crypto::tree::CreateError;
use crate::chat::dm::crypto::{PublicKey, SecretKey};
use crate::chat::dm::wire::{
    CallNotice, Code, Dm, Envelope, FullDm, Message, Notice, OWN_STORAGE_MAX, PACKET_MAX, PAGE_MAX, ScheduleNotice,
    TypingNotice, User, UserNotice, VerdictNotice, X3dh,
};
use crate::crypto::random;
use crate::time::{Clock, Now};

/// How long an answer may take.
pub const ANSWER: Duration = Duration::from_secs(10);
/// Before a connection is tried again: twice as long each time, and up to half of it more.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Connections in a row that came to nothing.
const ATTEMPTS: u32 = 30;
/// The same before there was one.
const FIRST_ATTEMPTS: u32 = 6;
/// Connections that one thing to be said may cost.
const TRIES: u32 = 3;
/// Times that something is asked again when that was too fast, and how long before.
const PATIENCE: u32 = 8;
const BREATH: Duration = Duration::from_millis(400);
/// What the server may say by itself while it is asked something; more is a reason to begin anew.
const NOTICES_MAX: usize = 10_000;
/// What the server said by itself that is looked at before what came of it is told.
const NOTICES_AT_ONCE: usize = 256;
/// Messages in a page: of the longest, with all the reactions that there can be, a page of more is too long for one answer. Where they are
/// short it is more, up to what a server gives.
const PAGE: usize = 10;
const PAGE_BYTES: usize = 64 * 1024;
/// Messages that are fetched of what was missed in a direct message.
const MISSED_MAX: usize = 10_000;
/// A connection that lasted this long came to something, also when nothing was said.
const LASTING: Duration = Duration::from_secs(30);
/// How long a direct message whose making was cut off is looked for: the server may still have been at it.
const MAKING: Duration = Duration::from_secs(300);
/// From how many characters on what nobody needs is left out of what devices share.
const STORAGE_NARROW: usize = OWN_STORAGE_MAX / 5 * 4;
/// What may be forgotten when the process ends is kept after that long.
const KEEP_AFTER: Duration = Duration::from_secs(1);

/// How a client behaves.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Answer logins as servers without signed logins want it, which **tells such a server everything this key can agree on**.
    pub by_product: bool,
    /// Whether no invitation is believed that its creator did not sign: for all devices of the account. As it was when nothing is said.
    pub signed_only: Option<bool>,
    /// Recover also when what the account's devices shared cannot be read: it is **written over**.
    pub afresh: bool,
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
    /// The connection was lost again and again.
    #[error("the server does not go on: {0}")]
    Lost(String),
    /// The server does not know the name, or another key for it.
    #[error("the server refuses the login: {0}")]
    Login(String),
    /// The server did not take the name.
    #[error("the name was not registered: {0}")]
    Name(String),
    /// The server says that this account has another key.
    #[error("the server shows another key for this account than this device has: somebody may be between")]
    OwnKey,
    /// What the account's other devices share cannot be read, and this one has nothing else.
    #[error("what other devices share cannot be taken over, and is left as it is: {0}")]
    Shared(BadStorage),
}

/// Why something was not done.
#[derive(Debug)]
enum NotDone {
    /// The server says no.
    Refused(Option<Code>, String),
    /// The connection is gone.
    Lost,
    /// It does not work, in words.
    Words(String),
    /// There is no point in going on.
    Over(Failure),
}

type Done<T = ()> = Result<T, NotDone>;

fn words(error: &impl ToString) -> NotDone {
    NotDone::Words(error.to_string())
}

impl From<String> for NotDone {
    fn from(why: String) -> Self {
        Self::Words(why)
    }
}

impl From<NotSealed> for NotDone {
    fn from(why: NotSealed) -> Self {
        words(&why)
    }
}

impl From<BadFolder> for NotDone {
    fn from(bad: BadFolder) -> Self {
        Self::Over(bad.into())
    }
}

/// How a message is told.
#[derive(Debug, Clone, Copy)]
enum As {
    New,
    Changed,
    Shown,
}

/// One device of an account. See the top of this file.
pub struct Client {
    place: Place,
    options: Options,
    folder: Folder,
    book: Book,
    line: Option<Line>,
    number: u64,
    notices: VecDeque<(String, Box<RawValue>)>,
    events: VecDeque<Event>,
    current: Option<i64>,
    /// Where the history that was shown last begins.
    older: Option<(i64, String)>,
    /// Connections in a row that came to nothing.
    failures: u32,
    /// There was a connection.
    came: bool,
    clock: Clock,
    /// When this connection was ready, of the clock's monotonic time.
    since: Option<Duration>,
    /// Why the last one ended.
    why: String,
    /// How many messages are asked for at once: fewer after a page that did not come.
    page: usize,
    /// Until when what is in the making is looked for.
    making_until: Duration,
    /// There are invitations that were not looked at on this connection.
    invited: bool,
    /// Another device shares something new.
    stale: bool,
    /// Names of which was told that another device knows another key.
    contradicted: BTreeSet<String>,
    /// It was told that there is little room for what is shared.
    narrow: bool,
    wait: Option<Pin<Box<Sleep>>>,
    /// Something is to be kept, and when.
    keep: Option<Pin<Box<Sleep>>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client(connected: {}, {:?})", self.line.is_some(), self.book)
    }
}

impl Client {
    /// Registers a name, with a key that is made here.
    ///
    /// # Errors
    /// [`Failure`]: the name was not taken, or there is no connection. Nothing is kept then, unless it was lost on the way: [`Self::open`]
    /// goes on from there.
    pub async fn register(
        place: Place,
        options: Options,
        dir: &Path,
        name: &str,
        passphrase: &str,
    ) -> Result<Self, Failure> {
        let mut book = Book::new(name, SecretKey::random(), false);
        book.rotate();
        // Before anybody is told the key.
        let folder = Folder::create(dir, name, &place.name(), passphrase, &book.kept())?;
        Self::begin(place, options, folder, book).await
    }

    /// Another device of an account whose key was written down.
    ///
    /// # Errors
    /// [`Failure`]: the key is not the account's, or there is no connection. Nothing is kept then.
    pub async fn recover(
        place: Place,
        options: Options,
        dir: &Path,
        name: &str,
        passphrase: &str,
        identity: SecretKey,
    ) -> Result<Self, Failure> {
        let book = Book::new(name, identity, true);
        let folder = Folder::create(dir, name, &place.name(), passphrase, &book.kept())?;
        Self::begin(place, options, folder, book).await
    }

    async fn begin(place: Place, options: Options, folder: Folder, book: Book) -> Result<Self, Failure> {
        let recovers = book.registered;
        let mut client = Self::with(place, options, folder, book);
        match client.connect().await {
            Ok(()) => Ok(client),
            Err(failure) => {
                // The key of a name that was registered, or may have been, is not thrown away.
                let refused = matches!(failure, Failure::Name(_));
                if recovers || refused || client.number == 0 {
                    client.folder.erase()?;
                } else {
                    client.keep_now().await?;
                }
                Err(failure)
            }
        }
    }

    /// The device that is kept in this directory.
    ///
    /// # Errors
    /// [`BadFolder`], when it cannot be used.
    pub fn open(place: Place, options: Options, dir: &Path, name: &str, passphrase: &str) -> Result<Self, BadFolder> {
        let (folder, kept) = Folder::open::<Kept>(dir, name, &place.name(), passphrase)?;
        let book = Book::restore(name, kept).ok_or_else(|| BadFolder::Damaged(dir.to_owned()))?;
        Ok(Self::with(place, options, folder, book))
    }

    fn with(place: Place, options: Options, folder: Folder, mut book: Book) -> Self {
        let clock = Clock::system();
        let Now { monotonic: now, wall_ms } = clock.now();
        if let Some(value) = options.signed_only {
            book.wants_signed(value, wall_ms);
        }
        Self {
            place,
            options,
            folder,
            book,
            line: None,
            number: 0,
            notices: VecDeque::new(),
            events: VecDeque::new(),
            current: None,
            older: None,
            failures: 0,
            came: false,
            clock,
            since: None,
            why: String::new(),
            page: PAGE,
            making_until: now.saturating_add(MAKING),
            invited: false,
            stale: false,
            contradicted: BTreeSet::new(),
            narrow: false,
            wait: None,
            keep: None,
        }
    }

    /// What this device knows.
    #[must_use]
    pub const fn book(&self) -> &Book {
        &self.book
    }

    /// Where text goes.
    #[must_use]
    pub const fn current(&self) -> Option<i64> {
        self.current
    }

    /// Whether there is a connection.
    #[must_use]
    pub const fn is_connected(&self) -> bool {
        self.line.is_some()
    }

    /// Whether there is a connection, and everything that was said was taken.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let shared = !self.book.unshared || self.book.unreadable;
        self.line.is_some() && self.book.outbox.is_empty() && self.notices.is_empty() && !self.invited && shared
    }

    /// Something that happened and that nobody was told of.
    pub fn take_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What happens next.
    ///
    /// # Errors
    /// [`Failure`], when there is no point in going on.
    pub async fn next_event(&mut self) -> Result<Event, Failure> {
        loop {
            if let Some(event) = self.take_event() {
                return Ok(event);
            }
            self.wait().await?;
            self.attend().await?;
        }
    }

    /// Waits until there is something to [`Self::attend`] to. May be cancelled without losing anything.
    ///
    /// # Errors
    /// [`Failure`], when what is known cannot be kept.
    pub async fn wait(&mut self) -> Result<(), Failure> {
        if !self.notices.is_empty() || (self.invited && self.line.is_some()) {
            return Ok(());
        }
        let kept = self.keep.is_some();
        let Some(line) = &mut self.line else {
            sleep(&mut self.wait).await;
            return Ok(());
        };
        tokio::select! {
            heard = line.next() => self.heard(heard),
            () = sleep(&mut self.keep), if kept => self.keep_now().await?,
        }
        Ok(())
    }

    fn heard(&mut self, heard: Result<Heard, Broken>) {
        match heard {
            Ok(Heard::Notice(name, said)) if name == Notice::X3dh.name() && self.hold(said.get()) => {}
            Ok(Heard::Notice(name, said)) => self.notices.push_back((name, said)),
            // Nobody waits for it any more.
            Ok(Heard::Answer(..)) => {}
            Err(broken) => self.lost(&broken.to_string()),
        }
    }

    /// The server says an invitation until a connection lasted, and not again: it is kept from now on. Unless it is none, or there is no room:
    /// then it stands in line.
    fn hold(&mut self, said: &str) -> bool {
        let held = serde_json::from_str(said).is_ok_and(|notice| self.book.hold(notice));
        if held {
            self.invited = true;
            self.keep_soon();
        }
        held
    }

    /// Does what is to be done: connects, looks at what the server said by itself, says what waits. Is to be waited for: what it was doing is
    /// not taken up again.
    ///
    /// # Errors
    /// [`Failure`], when there is no point in going on.
    pub async fn attend(&mut self) -> Result<(), Failure> {
        if self.line.is_none() && self.wait.is_none() {
            // Also when each of them began well: a server that ends them all is not asked for ever.
            if self.failures >= self.attempts() {
                return Err(Failure::Lost(std::mem::take(&mut self.why)));
            }
            match self.connect().await {
                Err(Failure::Lost(why)) if self.failures < self.attempts() => {
                    if self.failures == 1 {
                        self.events.push_back(Event::Lost { why });
                    }
                }
                done => done?,
            }
        }
        // Before what is said in what it invites to.
        let done = self.look_at_invitations().await;
        self.tell(done)?;
        for _ in 0..NOTICES_AT_ONCE {
            let Some((name, said)) = self.notices.pop_front() else { break };
            let done = self.notice(&name, said.get()).await;
            self.tell(done)?;
        }
        // Once, however often it was said.
        if std::mem::take(&mut self.stale) {
            let done = self.read_own().await.map(|_| ());
            self.tell(done)?;
        }
        let done = self.settle().await;
        self.tell(done)
    }

    /// What changed is shared with other devices, and what waits is said.
    async fn settle(&mut self) -> Done {
        if self.line.is_none() {
            return Ok(());
        }
        self.look_at_invitations().await?;
        if self.book.unshared && !self.book.unreadable {
            self.share().await?;
        }
        self.deliver().await
    }

    /// Each invitation is looked at once on each connection, until it can be said what it is.
    async fn look_at_invitations(&mut self) -> Done {
        if self.line.is_none() || !std::mem::take(&mut self.invited) {
            return Ok(());
        }
        for notice in self.book.held() {
            match self.invited(&notice).await {
                Ok(()) => {}
                // Time heals these.
                Err(NotDone::Refused(Some(Code::RateLimited | Code::Internal), _)) => continue,
                Err(NotDone::Refused(_, why) | NotDone::Words(why)) => {
                    self.events.push_back(Event::NotInvited { dm: notice.id, from: notice.sender.clone(), why });
                }
                Err(over) => return Err(over),
            }
            self.book.decided(&notice);
            self.keep_soon();
        }
        Ok(())
    }

    /// Does something. What came of it is an event.
    ///
    /// # Errors
    /// [`Failure`], when there is no point in going on.
    pub async fn obey(&mut self, command: Command) -> Result<(), Failure> {
        let done = self.perform(command).await;
        self.tell(done)?;
        self.attend().await
    }

    fn tell(&mut self, done: Done) -> Result<(), Failure> {
        match done {
            Ok(()) => {}
            Err(NotDone::Words(why) | NotDone::Refused(_, why)) => self.events.push_back(Event::Problem { why }),
            Err(NotDone::Lost) => {
                self.events
                    .push_back(Event::problem("the connection was lost meanwhile, so that may not have been done"));
            }
            Err(NotDone::Over(failure)) => return Err(failure),
        }
        Ok(())
    }

    /// Drops the connection, as if the network had gone: another one is made. For tests of what survives that.
    pub fn drop_connection(&mut self) {
        self.lost("dropped");
    }

    /// Asks for anything, in place of a command: for what there is none for, and for tests of what a server answers.
    ///
    /// # Errors
    /// The refusal's code; nothing when there is none, and `lost` when there is no answer.
    pub async fn ask_raw(&mut self, event: &str, args: Value) -> Result<Value, String> {
        match self.ask(event, args).await {
            Ok(envelope) if envelope.success => {
                serde_json::from_str(envelope.result.get()).map_err(|it| it.to_string())
            }
            Ok(envelope) => Err(envelope.code.unwrap_or_default()),
            Err(_) => Err("lost".to_owned()),
        }
    }

    /// Keeps what is known, and closes.
    ///
    /// # Errors
    /// [`BadFolder`], when it cannot be kept.
    pub fn close(self) -> Result<(), BadFolder> {
        self.folder.keep(&self.book.kept())
    }

    async fn keep_now(&mut self) -> Result<(), BadFolder> {
        self.keep = None;
        self.folder.keep_aside(self.book.kept()).await
    }

    fn keep_soon(&mut self) {
        self.keep.get_or_insert_with(|| Box::pin(tokio::time::sleep(KEEP_AFTER)));
    }

    fn lost(&mut self, why: &str) {
        if self.line.take().is_some() {
            self.events.push_back(Event::Lost { why: why.to_owned() });
        }
        let now = self.clock.now().monotonic;
        if self.since.take().is_some_and(|since| now.saturating_sub(since) >= LASTING) {
            self.failures = 0;
        }
        why.clone_into(&mut self.why);
        // Everything is asked for again.
        self.notices.clear();
        self.retry();
    }

    const fn attempts(&self) -> u32 {
        if self.came { ATTEMPTS } else { FIRST_ATTEMPTS }
    }

    fn retry(&mut self) {
        self.failures = self.failures.saturating_add(1);
        let wait = FIRST_WAIT.saturating_mul(1 << self.failures.saturating_sub(1).min(10)).min(LONGEST_WAIT);
        let most = u64::try_from(wait.as_millis() / 2).unwrap_or(0).max(1);
        // Not all at once when a server comes back.
        let more = Duration::from_millis(random::u64() % most);
        self.wait = Some(Box::pin(tokio::time::sleep(wait + more)));
    }

    // --- The connection.

    async fn connect(&mut self) -> Result<(), Failure> {
        let line = match self.place.connect().await {
            Ok(line) => line,
            Err(error) if error.is_final() => return Err(error.into()),
            Err(error) => {
                self.retry();
                let over = self.failures >= self.attempts();
                return Err(if over { error.into() } else { Failure::Lost(error.to_string()) });
            }
        };
        self.line = Some(line);
        let begun = async {
            self.log_in().await?;
            self.sync().await
        };
        match begun.await {
            Ok(()) => {
                self.came = true;
                self.since = Some(self.clock.now().monotonic);
                self.invited = !self.book.held().is_empty();
                self.events.push_back(Event::Ready { name: self.book.name().to_owned() });
                Ok(())
            }
            Err(NotDone::Over(failure)) => {
                self.line = None;
                Err(failure)
            }
            Err(NotDone::Lost) => Err(Failure::Lost("the connection was lost while logging in".to_owned())),
            Err(NotDone::Words(why) | NotDone::Refused(_, why)) => {
                self.lost(&why);
                Err(Failure::Lost(why))
            }
        }
    }

    async fn log_in(&mut self) -> Done {
        if !self.book.registered {
            self.sign_up().await?;
        }
        let login = |why: String| NotDone::Over(Failure::Login(why));
        let name = self.book.name().to_owned();
        let refused = |done: NotDone| match done {
            // Time heals these.
            NotDone::Refused(Some(Code::LockedOut | Code::RateLimited | Code::Internal), why) => NotDone::Words(why),
            NotDone::Refused(_, why) => login(why),
            other => other,
        };
        let challenge: String = self.call("login", json!({ "username": name })).await.map_err(refused)?;
        let mut point = [0; 32];
        hex::decode_to_slice(&challenge, &mut point).map_err(|_| login("the challenge is none".to_owned()))?;
        let identity = self.book.identity();
        let response = if self.options.by_product {
            let point = PublicKey::decode(&point).ok_or_else(|| login("the challenge is no key".to_owned()))?;
            if point == identity.public() || self.book.storage.prekeys().any(|prekey| prekey.public() == point) {
                return Err(login("the server asks for a secret in place of a proof".to_owned()));
            }
            hex::encode(identity.answer_by_product(&point).expose())
        } else {
            hex::encode(identity.answer(&name, &point))
        };
        self.call("login_challenge_response", json!({ "response": response })).await.map(|_: bool| ()).map_err(refused)
    }

    async fn sign_up(&mut self) -> Done {
        let prekey = self.book.storage.prekey.clone().unwrap_or_else(SecretKey::random).public();
        let sig = self.book.identity().sign(prekey.as_bytes());
        let args = json!({
            "username": self.book.name(),
            "public_key": self.book.identity().public().to_hex(),
            "spk": prekey.to_hex(),
            "sig": hex::encode(sig),
            "own_storage": self.book.sealed_storage(),
        });
        match self.call("register", args).await {
            Ok(true) => {}
            Ok(false) => return Err(NotDone::Over(Failure::Name("the server says no".to_owned()))),
            // By this very key, if the answer was lost: the login tells.
            Err(NotDone::Refused(Some(Code::UsernameTaken), why)) => {
                let taken = |done| match done {
                    NotDone::Over(Failure::Login(_)) => NotDone::Over(Failure::Name(why.clone())),
                    other => other,
                };
                self.book.registered = true;
                let logged_in = Box::pin(self.log_in()).await.map_err(taken);
                self.book.registered = logged_in.is_ok();
                logged_in?;
                self.keep_now().await?;
                // Once more, on another connection: on this one somebody is logged in.
                return Err(NotDone::Words("the name is registered already".to_owned()));
            }
            Err(NotDone::Refused(_, why)) => return Err(NotDone::Over(Failure::Name(why))),
            Err(other) => return Err(other),
        }
        self.book.registered = true;
        self.book.unshared = false;
        Ok(self.keep_now().await?)
    }

    /// Looks at everything that may have changed.
    async fn sync(&mut self) -> Done {
        let published = self.read_own().await?;
        let first = !self.book.synced;
        if let Some(published) = published
            && !self.book.unreadable
            && !self.book.storage.prekeys().any(|prekey| prekey.public() == published)
        {
            // Whoever had it is gone: invitations that used it are lost, and there should be no more.
            self.publish().await?;
        }
        let ids: Vec<i64> = self.call("get_dms", json!({})).await?;
        let gone: Vec<i64> = self.book.dms().filter(|dm| !ids.contains(dm)).collect();
        for dm in gone {
            self.leave(dm);
        }
        let mut scheduled = BTreeMap::new();
        for id in ids.into_iter().take(DMS_MAX) {
            let FullDm { dm, latest_message, scheduled_messages } = match self.call("get_dm", json!({ "id": id })).await
            {
                Ok(found) => found,
                // Another device left it meanwhile.
                Err(NotDone::Refused(Some(Code::NoDmAccess), _)) => continue,
                Err(NotDone::Refused(_, why)) => {
                    self.events.push_back(Event::problem(format!("#{id} is not looked at: {why}")));
                    continue;
                }
                Err(other) => return Err(other),
            };
            if dm.id != id {
                return Err(words(&"the server answers something else than it was asked"));
            }
            self.take_dm(&dm);
            scheduled.insert(id, scheduled_messages);
            let latest = latest_message.map_or(0, |message| message.id);
            if first && self.book.key(id).is_some() {
                // Another device of this account was told.
                self.book.looked(id, latest);
            } else if latest > self.book.last(id) {
                match self.catch_up(id).await {
                    // Of the others something can be told.
                    Err(NotDone::Refused(_, why) | NotDone::Words(why)) => {
                        let why = format!("what was missed in #{id} is not told, /history has it: {why}");
                        self.events.push_back(Event::Problem { why });
                    }
                    done => done?,
                }
            }
        }
        self.book.synced = true;
        // What may have been taken when the connection went: it is here, or it is said again.
        for waiting in std::mem::take(&mut self.book.outbox) {
            let is_scheduled =
                || scheduled.get(&waiting.dm).is_some_and(|all| all.values().any(|it| it.message == waiting.message));
            if !waiting.asked {
                self.book.outbox.push_back(waiting);
            } else if self.book.came_back(&waiting) || is_scheduled() {
                continue;
            } else if waiting.later_s > 0 || waiting.vanish_s > 0 {
                let why = format!(
                    "it is not known whether a message to #{} was sent before the connection was lost",
                    waiting.dm
                );
                self.events.push_back(Event::Problem { why });
            } else {
                self.book.outbox.push_back(super::book::Waiting { asked: false, ..waiting });
            }
        }
        self.keep_now().await?;
        let requests: Vec<String> = self.call("get_friend_requests", json!({})).await?;
        self.events.extend(requests.into_iter().map(|name| Event::FriendRequest { name }));
        Ok(())
    }

    // --- Asking.

    async fn call<T: DeserializeOwned>(&mut self, event: &str, args: Value) -> Done<T> {
        for attempt in 1.. {
            let Envelope { success, result, code } = self.ask(event, args.clone()).await?;
            if success {
                let strange = |_| words(&format!("the server's answer to {event} is not understood"));
                return serde_json::from_str(result.get()).map_err(strange);
            }
            let code = code.as_deref().and_then(Code::of);
            if code != Some(Code::RateLimited) || attempt == PATIENCE {
                let why: String = serde_json::from_str(result.get()).unwrap_or_else(|_| "no reason".to_owned());
                return Err(NotDone::Refused(code, why));
            }
            self.breathe(BREATH.saturating_mul(attempt)).await;
        }
        Err(NotDone::Lost)
    }

    async fn ask(&mut self, event: &str, args: Value) -> Done<Envelope> {
        self.number += 1;
        let number = self.number;
        let line = self.line.as_mut().ok_or(NotDone::Lost)?;
        if !line.ask(number, event, args) {
            return Err(words(&format!("that is longer than {PACKET_MAX} bytes")));
        }
        let mut patience = Box::pin(tokio::time::sleep(ANSWER));
        loop {
            let kept = self.keep.is_some();
            let Some(line) = &mut self.line else { return Err(NotDone::Lost) };
            tokio::select! {
                // An invitation that was heard is not said again after a while, and asking may take long.
                () = sleep(&mut self.keep), if kept => self.keep_now().await?,
                heard = line.next() => match heard {
                    Ok(Heard::Answer(it, answer)) if it == number => return Ok(answer),
                    heard => self.heard(heard),
                },
                () = &mut patience => self.lost("the server does not answer"),
            }
            if self.notices.len() > NOTICES_MAX {
                self.lost("the server says too much at once");
            }
        }
    }

    /// Pauses; what is heard stands in line.
    async fn breathe(&mut self, pause: Duration) {
        let mut pause = Box::pin(tokio::time::sleep(pause));
        while let Some(line) = &mut self.line {
            tokio::select! {
                heard = line.next() => self.heard(heard),
                () = &mut pause => return,
            }
        }
    }

    // --- What is known.

    /// Reads what the server knows of this account, and takes in what other devices share. The prekey that is published.
    async fn read_own(&mut self) -> Done<Option<PublicKey>> {
        let own: User = self.call("get_full_user", json!({})).await?;
        if PublicKey::from_hex(&own.public_key) != Some(self.book.identity().public()) {
            return Err(NotDone::Over(Failure::OwnKey));
        }
        let published = own.spk.as_deref().and_then(PublicKey::from_hex);
        let keys: Vec<i64> = self.book.storage.keys.keys().copied().collect();
        let was_unreadable = self.book.unreadable;
        match self.book.merge(own.own_storage.as_deref().unwrap_or_default(), published.as_ref()) {
            Ok(contradicted) => {
                for name in contradicted {
                    if self.contradicted.insert(name.clone()) {
                        self.events.push_back(Event::KeyChanged { name });
                    }
                }
            }
            Err(_) if !self.book.synced && self.options.afresh => {
                (self.book.unreadable, self.book.unshared) = (false, true);
            }
            // It has nothing to go on with, and what the others have must not be lost.
            Err(bad) if !self.book.synced => return Err(NotDone::Over(Failure::Shared(bad))),
            Err(bad) if !was_unreadable => {
                let why = format!(
                    "what other devices share: {bad}; nothing is shared with them until it can be read, or /overwrite is said"
                );
                self.events.push_back(Event::Problem { why });
            }
            Err(_) => {}
        }
        self.keep_soon();
        let fresh: Vec<i64> = self
            .book
            .storage
            .keys
            .keys()
            .copied()
            .filter(|dm| !keys.contains(dm) && self.book.shown(*dm).is_some())
            .collect();
        for dm in fresh {
            self.events.extend(self.book.shown(dm).map(Event::Dm));
            self.catch_up(dm).await?;
        }
        Ok(published)
    }

    /// Reads, merges, writes.
    async fn share(&mut self) -> Done {
        self.read_own().await?;
        if self.book.unshared && !self.book.unreadable {
            self.write_own(json!({})).await?;
        }
        Ok(())
    }

    async fn write_own(&mut self, mut change: Value) -> Done {
        self.keep_now().await?;
        if self.book.unreadable {
            return Err(words(
                &"what other devices share cannot be read: nothing is written over it until /overwrite is said",
            ));
        }
        let mut storage = self.book.sealed_storage();
        if storage.len() > STORAGE_NARROW {
            self.book.make_room();
            storage = self.book.sealed_storage();
        }
        // Whatever becomes of it, it is not tried again before something changes.
        self.book.unshared = false;
        if storage.len() > OWN_STORAGE_MAX {
            return Err(words(
                &"there is more to share with other devices than the server keeps: /leave what is not needed",
            ));
        }
        let narrow = storage.len() > STORAGE_NARROW;
        if narrow && !std::mem::replace(&mut self.narrow, narrow) {
            self.done("there is little room left for what devices share: /leave what is not needed any more");
        }
        if let Some(change) = change.as_object_mut() {
            change.insert("own_storage".to_owned(), storage.into());
        }
        let done = self.call::<bool>("set_user", change).await;
        self.book.unshared |= matches!(done, Err(NotDone::Lost));
        done.map(|_| ())
    }

    /// Another prekey.
    async fn publish(&mut self) -> Done {
        let (spk, sig) = self.book.rotate();
        self.write_own(json!({ "spk": spk.to_hex(), "sig": hex::encode(sig) })).await
    }

    /// Asks for somebody, and looks at the key.
    async fn person(&mut self, name: &str) -> Done<User> {
        let user: User = self.call("get_user", json!({ "username": name })).await?;
        match self.book.meet(name, &user) {
            Ok(None) => {}
            Ok(Some(fingerprint)) => {
                self.keep_now().await?;
                self.events.push_back(Event::Pinned { name: name.to_owned(), fingerprint });
            }
            Err(Stranger::Changed) => {
                self.events.push_back(Event::KeyChanged { name: name.to_owned() });
                return Err(words(&format!("{name} has another key than the known one")));
            }
            Err(Stranger::NoKey) => return Err(words(&format!("the server gives no key for {name}"))),
        }
        Ok(user)
    }

    fn take_dm(&mut self, dm: &Dm) {
        if self.clock.now().monotonic > self.making_until {
            self.book.making = None;
        }
        if self.book.is_making(dm)
            && let Err(taken) = self.book.created(dm.id)
        {
            self.events.push_back(Event::problem(taken.to_string()));
        }
        let before = self.book.shown(dm.id);
        if self.book.update(dm).is_none() {
            self.events.push_back(Event::problem("there are too many direct messages"));
            return;
        }
        let now = self.book.shown(dm.id);
        if before != now {
            self.events.extend(now.map(Event::Dm));
        }
    }

    fn leave(&mut self, dm: i64) {
        if self.current == Some(dm) {
            self.current = None;
        }
        if self.book.left(dm) {
            self.events.push_back(Event::Left { dm });
            self.keep_soon();
        }
    }

    /// Fetches and tells what is newer than what was looked at.
    async fn catch_up(&mut self, dm: i64) -> Done {
        if self.book.key(dm).is_none() {
            return Ok(());
        }
        let last = self.book.last(dm);
        let (mut missed, mut cursor, mut fetched) = (Vec::new(), None::<String>, 0_usize);
        loop {
            if fetched >= MISSED_MAX {
                let why =
                    format!("so much was said in #{dm} that only the newest of it is told: /history has the rest");
                self.events.push_back(Event::Problem { why });
                break;
            }
            let messages = self.page(dm, cursor.as_deref(), self.page).await?;
            cursor = messages.last().map(|message| message.timestamp.clone());
            let whole = messages.is_empty() || messages.iter().any(|message| message.id <= last);
            fetched = fetched.saturating_add(messages.len());
            missed.extend(messages.into_iter().filter(|message| !self.book.is_told(message)));
            if whole {
                break;
            }
        }
        missed.sort_by_key(|message| message.id);
        for message in missed {
            self.take(&message, As::New).await?;
        }
        Ok(())
    }

    /// A page of what was said, the newest first.
    async fn page(&mut self, dm: i64, cursor: Option<&str>, count: usize) -> Done<Vec<Message>> {
        let mut args = json!({ "id": dm, "count": count });
        if let (Some(cursor), Some(args)) = (cursor, args.as_object_mut()) {
            args.insert("cursor".to_owned(), cursor.into());
        }
        let page = self.call::<Vec<Message>>("get_message_history", args).await;
        if matches!(page, Err(NotDone::Lost)) {
            // That may have been too much for this connection.
            self.page = (self.page / 2).max(1);
        }
        let mut page = page?;
        let reactions =
            |it: &Message| it.reactions.iter().map(|it| it.reaction.len() + it.signature.len()).sum::<usize>();
        let bytes: usize = page.iter().map(|it| it.message.len() + reactions(it)).sum();
        let most = usize::try_from(PAGE_MAX).unwrap_or(PAGE);
        self.page = if bytes < PAGE_BYTES { (2 * self.page).min(most) } else { self.page.min(PAGE) };
        page.retain(|message| message.dm_id == dm);
        Ok(page)
    }

    /// Looks at a message, after its senders, and tells it.
    async fn take(&mut self, message: &Message, how: As) -> Done {
        if matches!(how, As::New) && self.book.is_told(message) {
            return Ok(());
        }
        let unknown: Vec<String> = self.book.unknown(message).into_iter().map(str::to_owned).collect();
        for name in unknown {
            match self.person(&name).await {
                // Then there is no key, and it is not shown.
                Ok(_) | Err(NotDone::Words(_) | NotDone::Refused(..)) => {}
                Err(other) => return Err(other),
            }
        }
        let said = self.book.open(message);
        self.events.push_back(match how {
            As::New => {
                self.book.told(&said);
                Event::Said(said)
            }
            As::Changed => Event::Changed(said),
            As::Shown => {
                self.book.leafed(&said);
                Event::Shown(said)
            }
        });
        self.keep_soon();
        Ok(())
    }

    /// Says what waits.
    async fn deliver(&mut self) -> Done {
        while let Some(waiting) = self.book.outbox.front_mut() {
            waiting.asked = true;
            let args = json!({
                "id": waiting.dm,
                "message": waiting.message,
                "signature": waiting.signature,
                "schedule": waiting.later_s,
                "delete": waiting.vanish_s,
            });
            let dm = waiting.dm;
            let tries = waiting.tries;
            match self.call::<Value>("send_message", args).await {
                // This connection came to something.
                Ok(_) => self.failures = 0,
                Err(NotDone::Refused(_, why) | NotDone::Words(why)) => {
                    self.events.push_back(Event::problem(format!("what was said in #{dm} was not taken: {why}")));
                }
                // It is said again, if it has to be, when there is another connection.
                Err(NotDone::Lost) if tries + 1 < TRIES => {
                    if let Some(waiting) = self.book.outbox.front_mut() {
                        waiting.tries += 1;
                    }
                    return Ok(());
                }
                Err(NotDone::Lost) => {
                    let why =
                        format!("the server closes whenever it is told what was said in #{dm}: it is not said again");
                    self.events.push_back(Event::Problem { why });
                }
                Err(over @ NotDone::Over(_)) => return Err(over),
            }
            self.book.outbox.pop_front();
            self.keep_soon();
        }
        Ok(())
    }

    // --- What the server says by itself.

    async fn notice(&mut self, name: &str, said: &str) -> Done {
        let Some(notice) = Notice::ALL.into_iter().find(|it| it.name() == name) else { return Ok(()) };
        fn read<T: DeserializeOwned>(said: &str) -> Done<T> {
            serde_json::from_str(said).map_err(|_| words(&"something that the server says is not understood"))
        }
        match notice {
            Notice::Message => {
                let message: Message = read(said)?;
                self.known(message.dm_id).await?;
                // Without a key it is fetched when there is one.
                if self.book.key(message.dm_id).is_some() {
                    self.take(&message, As::New).await?;
                }
            }
            Notice::MessageChange => {
                let message: Message = read(said)?;
                self.known(message.dm_id).await?;
                if self.book.key(message.dm_id).is_some() {
                    self.take(&message, As::Changed).await?;
                }
            }
            Notice::MessageDelete => {
                let id = read(said)?;
                self.events.push_back(Event::Vanished { id, dm: self.book.dm_of(id) });
            }
            Notice::Dm => {
                let dm: Dm = read(said)?;
                let fresh = self.book.shown(dm.id).is_none();
                self.take_dm(&dm);
                if !self.book.is_member(dm.id) {
                    self.leave(dm.id);
                } else if fresh && self.book.key(dm.id).is_none() {
                    // Another device of this account made it, and shares its key.
                    self.read_own().await?;
                }
            }
            // One that there was no room for.
            Notice::X3dh => {
                let notice: X3dh = read(said)?;
                self.invited(&notice).await?;
            }
            Notice::Profile => {
                let user: User = read(said)?;
                if user.username == self.book.name() {
                    self.stale = true;
                } else {
                    let key = PublicKey::from_hex(&user.public_key);
                    if self.book.pinned(&user.username).is_some_and(|known| Some(known) != key) {
                        self.events.push_back(Event::KeyChanged { name: user.username });
                    } else {
                        self.events.push_back(person(user));
                    }
                }
            }
            Notice::Typing => {
                let TypingNotice { id, username } = read(said)?;
                self.events.push_back(Event::Typing { dm: id, name: username });
            }
            Notice::ScheduledSent | Notice::ScheduledSoon => {
                let ScheduleNotice { dm_id: dm, schedule_id: id } = read(said)?;
                let sent = notice == Notice::ScheduledSent;
                self.events.push_back(if sent { Event::Sent { dm, id } } else { Event::Soon { dm, id } });
            }
            Notice::FriendRequest => {
                let UserNotice { username: name } = read(said)?;
                self.events.push_back(Event::FriendRequest { name });
            }
            Notice::FriendRequestAccept => {
                let VerdictNotice { username: name, accept: accepted } = read(said)?;
                self.events.push_back(Event::FriendAnswer { name, accepted });
            }
            Notice::Unfriend => {
                let UserNotice { username: name } = read(said)?;
                self.events.push_back(Event::Unfriended { name });
            }
            Notice::UserJoinedCall | Notice::UserLeftCall => {
                let CallNotice { id: dm, username: name } = read(said)?;
                let joined = notice == Notice::UserJoinedCall;
                self.events.push_back(if joined { Event::Joined { dm, name } } else { Event::Hung { dm, name } });
            }
        }
        Ok(())
    }

    /// Asks for a direct message that is not known.
    async fn known(&mut self, dm: i64) -> Done {
        if self.book.shown(dm).is_none() {
            let found: FullDm = self.call("get_dm", json!({ "id": dm })).await?;
            if found.dm.id == dm {
                self.take_dm(&found.dm);
            }
        }
        Ok(())
    }

    async fn invited(&mut self, notice: &X3dh) -> Done {
        let (dm, from) = (notice.id, notice.sender.clone());
        if self.book.pinned(&from).is_none() {
            self.person(&from).await?;
        }
        let mut done = self.book.invited(notice);
        if done.as_ref().is_err_and(|why| why.is_prekey()) {
            // Another device may have published it.
            self.read_own().await?;
            done = self.book.invited(notice);
        }
        match done {
            Ok(None) => {}
            Ok(Some(event)) => {
                // It is on disk before it is told, and on the server before anything is said with it.
                self.book.decided(notice);
                self.keep_now().await?;
                self.events.push_back(event);
                let done = match self.known(dm).await {
                    Ok(()) => self.share().await,
                    other => other,
                };
                match done {
                    Ok(()) => self.catch_up(dm).await,
                    other => other,
                }
                .or_else(|not| match not {
                    // There is the key all the same.
                    NotDone::Refused(_, why) | NotDone::Words(why) => {
                        self.events.push_back(Event::Problem { why });
                        Ok(())
                    }
                    other => Err(other),
                })?;
            }
            Err(why) => self.events.push_back(Event::NotInvited { dm, from, why: why.to_string() }),
        }
        Ok(())
    }

    // --- Commands.

    fn here(&self) -> Done<i64> {
        self.current.ok_or_else(|| words(&"to whom? /to WHO says it, /dms lists what there is"))
    }

    fn done(&mut self, what: impl Into<String>) {
        self.events.push_back(Event::Done { what: what.into() });
    }

    async fn perform(&mut self, command: Command) -> Done {
        match command {
            Command::Say { text, later_s, vanish_s } => {
                let dm = self.here()?;
                self.book.say(dm, &text, later_s, vanish_s)?;
                self.keep_now().await?;
                self.settle().await?;
            }
            Command::To { who } => {
                let dm = self.book.find(&who)?;
                self.go(dm);
            }
            Command::Dms => {
                let all: Vec<i64> = self.book.dms().collect();
                self.events.extend(all.into_iter().filter_map(|dm| self.book.shown(dm)).map(Event::Dm));
            }
            Command::Create { who } => self.create(who).await?,
            Command::Schedules => {
                let dm = self.here()?;
                let found: FullDm = self.call("get_dm", json!({ "id": dm })).await?;
                for (id, scheduled) in found.scheduled_messages {
                    let id = id.parse().map_err(|_| words(&"the number of a schedule is none"))?;
                    let text = self.book.scheduled(dm, &scheduled);
                    self.events.push_back(Event::Scheduled { dm, id, text, time: scheduled.timestamp });
                }
            }
            Command::Cancel { id } => {
                let dm = self.here()?;
                self.call::<bool>("cancel_scheduled_message", json!({ "dm_id": dm, "schedule_id": id })).await?;
                self.done(format!("{id} is not sent"));
            }
            Command::Edit { id, text } => {
                let (message, signature) = self.book.edit(self.here()?, id, &text)?;
                let args = json!({ "id": id, "message": hex::encode(message), "signature": hex::encode(signature) });
                self.call::<bool>("set_message", args).await?;
            }
            Command::React { id, text } => {
                let (reaction, signature) = self.book.react(self.here()?, id, &text)?;
                let args = json!({ "id": id, "reaction": hex::encode(reaction), "signature": hex::encode(signature) });
                let id: i64 = self.call("add_reaction", args).await?;
                self.done(format!("that is reaction {id}"));
            }
            Command::Unreact { id } => {
                self.call::<bool>("remove_reaction", json!({ "id": id })).await?;
            }
            Command::Pin { id, pinned } => {
                self.book.seen_there(self.here()?, id)?;
                self.call::<bool>("set_message", json!({ "id": id, "pinned": pinned })).await?;
            }
            Command::History { count } => {
                let dm = self.here()?;
                self.history(dm, None, count).await?;
            }
            Command::Older => {
                let here = self.here()?;
                let older = self.older.clone().filter(|(dm, _)| *dm == here);
                let (dm, cursor) = older.ok_or_else(|| words(&"/history comes first"))?;
                self.history(dm, Some(cursor), 20).await?;
            }
            Command::Pinned => {
                let dm = self.here()?;
                let mut pinned: Vec<Message> = self.call("get_pinned", json!({ "id": dm })).await?;
                pinned.retain(|message| message.dm_id == dm);
                for message in pinned.iter().rev() {
                    self.take(message, As::Shown).await?;
                }
            }
            Command::Typing => {
                let dm = self.here()?;
                self.call::<bool>("ping_typing", json!({ "id": dm })).await?;
            }
            Command::Call { uuid } => {
                let dm = self.here()?;
                let uuid = uuid.unwrap_or_else(|| hex::encode(random::bytes::<16>()));
                let peers = self.call("join_call", json!({ "id": dm, "uuid": uuid })).await?;
                self.events.push_back(Event::Call { dm, peers });
            }
            Command::Hangup => {
                let dm = self.here()?;
                self.call::<bool>("leave_call", json!({ "id": dm })).await?;
                self.done(format!("you left the call of #{dm}"));
            }
            Command::Name { name } => {
                let dm = self.here()?;
                self.call::<bool>("set_dm", json!({ "id": dm, "name": name })).await?;
            }
            Command::Leave => {
                let dm = self.here()?;
                self.call::<bool>("leave_dm", json!({ "id": dm })).await?;
                self.leave(dm);
                self.book.gave_up(dm);
                self.keep_now().await?;
            }
            Command::Friend { who } => {
                self.call::<bool>("send_friend_request", json!({ "username": who })).await?;
                self.done("they are asked");
            }
            Command::Answer { who, accept } => {
                self.call::<bool>("ack_friend_request", json!({ "username": who, "accept": accept })).await?;
                self.done(if accept { "you are friends" } else { "you are not friends" });
            }
            Command::Unfriend { who } => {
                self.call::<bool>("unfriend", json!({ "username": who })).await?;
            }
            Command::Block { who, blocked } => {
                let event = if blocked { "block_user" } else { "unblock" };
                self.call::<bool>(event, json!({ "username": who })).await?;
                self.done(if blocked { "they are blocked" } else { "they are not blocked any more" });
            }
            Command::Friends => self.names("friends", "get_friends").await?,
            Command::Requests => self.names("want to be your friends", "get_friend_requests").await?,
            Command::Outgoing => self.names("were asked", "get_outgoing_requests").await?,
            Command::Blocked => self.names("blocked", "get_blocked").await?,
            Command::Users => {
                let users: Vec<User> = self.call("get_user_list", json!({})).await?;
                let names = users.into_iter().map(|user| user.username).collect();
                self.events.push_back(Event::Names { what: "users", names });
            }
            Command::Who { name } => {
                let user = self.person(&name).await?;
                self.events.push_back(person(user));
            }
            Command::Verify { who, verified } => {
                if self.book.pinned(&who).is_none() {
                    self.person(&who).await?;
                }
                if verified {
                    self.book.verified(&who);
                    self.keep_now().await?;
                }
                let (fingerprint, verified) = self.book.fingerprint(&who).ok_or_else(|| words(&"that is you"))?;
                self.events.push_back(Event::Fingerprint { name: who, fingerprint, verified });
            }
            Command::Forget { who } => {
                // After what others share, or it would come back with that.
                self.read_own().await?;
                self.contradicted.remove(&who);
                if !self.book.forget(&who) {
                    return Err(words(&format!("no key is known for {who}")));
                }
                self.write_own(json!({})).await?;
                self.done(format!("the key of {} is forgotten", super::event::name(&who)));
            }
            Command::Status { status } => self.set(json!({ "status": status.name() })).await?,
            Command::Bio { text } => self.set(json!({ "biography": text })).await?,
            Command::Picture { text } => self.set(json!({ "profile_picture": text })).await?,
            Command::Rotate => {
                self.read_own().await?;
                self.publish().await?;
                self.done("there is a new prekey");
            }
            Command::Overwrite => {
                self.read_own().await?;
                self.book.unreadable = false;
                self.book.unshared = true;
                self.write_own(json!({})).await?;
                self.done("what this device knows is shared");
            }
            Command::Withdraw => {
                self.set(json!({ "spk": null, "sig": null })).await?;
            }
            Command::Quit => {}
        }
        Ok(())
    }

    fn go(&mut self, dm: i64) {
        self.current = Some(dm);
        let with = self.book.shown(dm).map(|it| it.users).unwrap_or_default();
        let with = with.into_iter().filter(|name| name != self.book.name()).collect();
        self.events.push_back(Event::Current { dm, with });
    }

    async fn set(&mut self, change: Value) -> Done {
        self.call::<bool>("set_user", change).await?;
        self.done("that is what others see of you now");
        Ok(())
    }

    async fn names(&mut self, what: &'static str, event: &str) -> Done {
        let names = self.call(event, json!({})).await?;
        self.events.push_back(Event::Names { what, names });
        Ok(())
    }

    /// What was asked for when the answer was lost, if it is there by now: asked for again, it would be refused, and its key be lost.
    async fn made(&mut self, who: &[String]) -> Done<Option<i64>> {
        if !self.book.makes(who) {
            return Ok(None);
        }
        let ids: Vec<i64> = self.call("get_dms", json!({})).await?;
        for id in ids {
            if self.book.shown(id).is_some() {
                continue;
            }
            self.known(id).await?;
            if !self.book.makes(who) && self.book.key(id).is_some() {
                self.keep_now().await?;
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    async fn create(&mut self, who: Vec<String>) -> Done {
        if let Some(dm) = self.made(&who).await? {
            self.share().await?;
            self.go(dm);
            return Ok(());
        }
        for last in [false, true] {
            let mut invitees = Vec::new();
            for name in &who {
                let user = self.person(name).await?;
                let bundle = self.book.bundle(name, &user);
                invitees.push(bundle.ok_or_else(|| words(&format!("{name} has no prekey, so cannot be invited")))?);
            }
            let created = self.book.create(&invitees).map_err(|error| match error {
                CreateError::Size => words(&error),
                CreateError::Prekey(at) => {
                    let name = who.get(at).map_or("somebody", String::as_str);
                    words(&format!(
                        "the prekey that the server gives for {name} is not theirs: somebody may be between"
                    ))
                }
            })?;
            let message = |it: &crate::chat::dm::crypto::tree::Message| json!({ "ek": it.ek.to_hex(), "spk": it.spk.to_hex(), "setup_sig": hex::encode(it.setup_sig) });
            let args = json!({
                "usernames": who,
                "messages": created.messages.iter().map(message).collect::<Vec<_>>(),
                "key_tree": created.tree.iter().map(PublicKey::to_hex).collect::<Vec<_>>(),
            });
            self.book.making(&who, &created.key);
            self.making_until = self.clock.now().monotonic.saturating_add(MAKING);
            self.keep_now().await?;
            match self.call::<i64>("create_dm", args).await {
                Ok(id) => {
                    let created = self.book.created(id);
                    self.keep_now().await?;
                    created.map_err(|taken| words(&taken))?;
                    self.share().await?;
                    let found: FullDm = self.call("get_dm", json!({ "id": id })).await?;
                    self.take_dm(&found.dm);
                    self.go(id);
                    return Ok(());
                }
                // Somebody published another one just now.
                Err(NotDone::Refused(Some(Code::SpkMismatch), _)) if !last => {}
                Err(other) => {
                    if matches!(other, NotDone::Refused(..)) {
                        self.book.making = None;
                    }
                    return Err(other);
                }
            }
        }
        Ok(())
    }

    async fn history(&mut self, dm: i64, mut cursor: Option<String>, count: usize) -> Done {
        let mut found = Vec::new();
        // A server may give fewer than were asked for: there are no more when it gives none.
        while found.len() < count {
            let page = self.page(dm, cursor.as_deref(), (count - found.len()).min(self.page)).await?;
            let Some(oldest) = page.last() else { break };
            cursor = Some(oldest.timestamp.clone());
            found.extend(page);
        }
        self.older = cursor.map(|cursor| (dm, cursor));
        for message in found.iter().rev() {
            self.take(message, As::Shown).await?;
        }
        Ok(())
    }
}

fn person(user: User) -> Event {
    let User { username: name, status, biography, profile_picture: picture, spk, .. } = user;
    Event::Person { name, status, biography, picture, prekey: spk.is_some() }
}

/// Waits for a time that may have been set, and is not any more then.
async fn sleep(until: &mut Option<Pin<Box<Sleep>>>) {
    if let Some(sleep) = until {
        sleep.await;
        *until = None;
    }
}
