//! What every use case works with: what is kept, who is here, and what is to be said when all of it counts.
//!
//! A use case looks, then writes, and only when nothing can fail any more changes who is here and in which call. So one that
//! is refused or fails half way has changed nothing: its writes are undone, and there was nothing else.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;

use super::Settings;
use super::gate::{Gate, Who};
use super::wire::{Heard, Misread, Wire, read};
use crate::chat::dm::crypto::{Challenge, PublicKey};
use crate::chat::dm::state::{Calls, ConnId, Failures, Lockout, Presence, Reads, UserId, effective};
use crate::chat::dm::store::{Member, StoredDm, StoredUser, Work};
use crate::chat::dm::wire::{About, Code, Dm, InCall, Notice, Refusal, Request, User, raw, stamp};
use crate::chat::sql::SqlError;
use crate::metrics::{self, Login, Room};
use crate::time::Now;

/// Why a use case did not do what was asked.
#[derive(Debug)]
pub(super) enum Halt {
    Refused(Refusal),
    Store(SqlError),
}

impl From<Code> for Halt {
    fn from(code: Code) -> Self {
        Self::Refused(code.into())
    }
}

impl From<Refusal> for Halt {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<SqlError> for Halt {
    fn from(error: SqlError) -> Self {
        Self::Store(error)
    }
}

/// What came of it, as JSON.
pub(super) type Told = Result<Box<RawValue>, Halt>;

/// Somebody who is logged in.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) id: UserId,
    pub(super) username: String,
    pub(super) key: PublicKey,
}

impl Caller {
    /// # Errors
    /// [`Code::BadSignature`] when it is not the caller's.
    pub(super) fn signed(&self, what: &[u8], signature: &[u8; 64]) -> Result<(), Code> {
        if self.key.verifies(what, signature) { Ok(()) } else { Err(Code::BadSignature) }
    }
}

/// A challenge that waits for its answer.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) caller: Caller,
    pub(super) challenge: Challenge,
    pub(super) at: Duration,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) wire: Wire,
    pub(super) who: Who,
    pub(super) lockout: Lockout,
    pub(super) open: Option<Open>,
    pub(super) caller: Option<Caller>,
    /// The invitations that were sent through it.
    pub(super) invited: HashSet<i64>,
    /// Those of them that were long enough ago to count as received when its user says something.
    pub(super) ripe: Vec<i64>,
}

impl Session {
    pub(super) fn new(wire: Wire, who: Who) -> Self {
        let (lockout, invited) = (Lockout::default(), HashSet::new());
        Self { wire, who, lockout, open: None, caller: None, invited, ripe: Vec::new() }
    }
}

/// What is to be done on a connection after a while.
#[derive(Debug)]
pub(super) enum Task {
    /// Its user is sent what waits for him.
    Invite(UserId),
    /// It seems to be still there. When it says something, it is, and its user has these.
    Ripe(Vec<i64>),
    /// It is still there, so its user has these.
    Received(Vec<i64>),
}

/// What is not kept: who is here, what they are about.
#[derive(Debug, Default)]
pub(super) struct House {
    pub(super) sessions: HashMap<ConnId, Session>,
    pub(super) presence: Presence,
    pub(super) calls: Calls,
    pub(super) failures: Failures,
    pub(super) reads: Reads,
    /// Everybody as others see them, as it was asked for last, until something of it changes.
    pub(super) everybody: Option<Box<RawValue>>,
    tasks: BTreeMap<(Duration, u64), (ConnId, Task)>,
    tasks_made: u64,
}

impl House {
    pub(super) fn after(&mut self, at: Duration, conn: ConnId, task: Task) {
        self.tasks_made += 1;
        self.tasks.insert((at, self.tasks_made), (conn, task));
    }

    pub(super) fn next_task(&self) -> Option<Duration> {
        self.tasks.first_key_value().map(|((at, _), _)| *at)
    }

    /// The next task that is due. What was to be done on connections that are gone is forgotten.
    pub(super) fn due(&mut self, now: Duration) -> Option<(ConnId, Task)> {
        while let Some(entry) = self.tasks.first_entry().filter(|entry| entry.key().0 <= now) {
            let (conn, task) = entry.remove();
            // Who is cut off is not here any more.
            if self.sessions.get(&conn).is_some_and(|session| !session.wire.is_cut()) {
                return Some((conn, task));
            }
        }
        None
    }

    /// A connection said something: which invitations its user has therefore.
    pub(super) fn proven(&mut self, conn: ConnId) -> Option<Vec<i64>> {
        let ripe = &mut self.sessions.get_mut(&conn)?.ripe;
        Some(std::mem::take(ripe)).filter(|ripe| !ripe.is_empty())
    }

    /// Whoever is logged in on a connection was answered so much.
    pub(super) fn had(&mut self, conn: ConnId, bytes: usize, now: Duration) {
        let caller = self.sessions.get(&conn).and_then(|session| session.caller.as_ref());
        if let Some(Caller { id, .. }) = caller {
            self.reads.had(*id, bytes, now);
        }
    }

    /// Nothing is left of a connection, whatever became of what was to be said of it.
    pub(super) fn forget(&mut self, conn: ConnId) {
        if let Some(Session { caller: Some(caller), .. }) = self.sessions.remove(&conn) {
            for dm in self.calls.of(conn) {
                self.calls.leave(dm, caller.id);
            }
        }
        self.presence.left(conn);
        self.everybody = None;
    }
}

/// A notification, and who hears it.
#[derive(Debug)]
pub(super) struct Say {
    pub(super) to: Vec<ConnId>,
    pub(super) notice: Notice,
    pub(super) said: Box<RawValue>,
}

pub(super) struct Scene<'a> {
    pub(super) work: Work,
    pub(super) house: &'a mut House,
    pub(super) settings: &'a Settings,
    pub(super) gate: &'a Gate,
    pub(super) now: Now,
    pub(super) says: Vec<Say>,
    /// The first time at which something is due that was not before.
    pub(super) due: Option<i64>,
}

impl Scene<'_> {
    /// Does what was asked on a connection.
    pub(super) async fn asked(&mut self, conn: ConnId, name: &str, heard: Heard) -> Told {
        let is_login = matches!(name, "login" | "login_challenge_response");
        if is_login && self.is_locked_out(conn) {
            metrics::get().chat_logins.of(Room::Dm).of(Login::Throttled).increment(1);
            return Err(Code::LockedOut.into());
        }
        let request = match heard {
            Heard::Read(request) => request,
            Heard::Unread(args) if self.caller(conn).is_ok() => read(name, &args),
            Heard::Unread(_) if Request::NAMES.contains(&name) => return Err(Code::NotLoggedIn.into()),
            Heard::Unread(_) => return Err(Code::UnknownEvent.into()),
        };
        let request = match request {
            Ok(request) => request,
            Err(Misread { code, .. }) if is_login => {
                // Whatever the answer is, the challenge has had it.
                if let Some(session) = self.house.sessions.get_mut(&conn).filter(|_| name != "login") {
                    session.open = None;
                }
                let code = if self.caller(conn).is_ok() { Code::AlreadyLoggedIn } else { code };
                return Err(self.failed_login(conn, code));
            }
            Err(misread) => return Err(self.misread(conn, name, misread).await?.into()),
        };
        if request.is_for_strangers() {
            return self.stranger_asked(conn, request).await;
        }
        let caller = self.caller(conn)?;
        let is_long = matches!(
            request,
            Request::GetUserList
                | Request::GetFullUser
                | Request::GetDms
                | Request::GetDm { .. }
                | Request::GetMessageHistory { .. }
                | Request::GetPinned { .. }
        );
        if is_long && self.settings.bounds_reads && !self.house.reads.may(caller.id, self.now.monotonic) {
            return Err(Code::RateLimited.into());
        }
        self.caller_asked(conn, &caller, request).await
    }

    /// What is wrong with something that cannot be read: who asks, and about what, is looked at first (spec 2).
    async fn misread(&mut self, conn: ConnId, name: &str, Misread { code, about }: Misread) -> Result<Code, Halt> {
        match (name, about) {
            _ if code == Code::UnknownEvent => {}
            // Nobody needs an account to hear that he cannot look up a name in this way.
            ("username_exists", _) => {}
            ("register", about) => {
                if self.caller(conn).is_ok() {
                    return Ok(Code::AlreadyLoggedIn);
                }
                if let About::Name(username) = about {
                    self.is_to_be_had(conn, &username).await?;
                }
            }
            (_, about) => {
                let caller = self.caller(conn)?;
                match about {
                    About::Dm(id, is_said) => {
                        let dm = self.dm(&caller, id).await?;
                        if is_said {
                            self.pair_rule(&caller, &dm).await?;
                        }
                    }
                    About::Message(id) => drop(self.message(&caller, id).await?),
                    About::Nothing | About::Name(_) => {}
                }
            }
        }
        Ok(code)
    }

    /// What was done since the mark counts, or never happened.
    pub(super) async fn settle(&mut self, counts: bool) -> Result<(), SqlError> {
        if counts {
            return self.work.keep().await;
        }
        self.says.clear();
        self.work.undo().await
    }

    async fn caller_asked(&mut self, conn: ConnId, caller: &Caller, request: Request) -> Told {
        match request {
            Request::Login { .. }
            | Request::LoginChallengeResponse { .. }
            | Request::Register { .. }
            | Request::UsernameExists { .. } => self.stranger_asked(conn, request).await,
            Request::GetUser { username } => self.get_user(&username).await,
            Request::GetFullUser => self.get_full_user(caller).await,
            Request::GetUserList => self.get_user_list(conn).await,
            Request::SetUser(change) => self.set_user(conn, caller, &change).await,
            Request::CreateDm { usernames, messages, key_tree } => {
                self.create_dm(conn, caller, &usernames, &messages, &key_tree).await
            }
            Request::GetDms => Ok(raw(&self.work.dms(caller.id).await?)),
            Request::GetDm { id } => self.get_dm(caller, id).await,
            Request::SetDm { id, name } => self.set_dm(caller, id, name).await,
            Request::LeaveDm { id } => self.leave_dm(conn, caller, id).await,
            Request::SendMessage { id, message, signature, schedule, delete } => {
                self.send_message(caller, id, (&message, &signature), schedule, delete).await
            }
            Request::GetMessage { id } => Ok(raw(&self.message(caller, id).await?.0.message)),
            Request::GetMessageHistory { id, cursor, count } => self.get_history(caller, id, cursor, count).await,
            Request::GetPinned { id } => self.get_pinned(caller, id).await,
            Request::SetMessage { id, message, pinned } => self.set_message(caller, id, message, pinned).await,
            Request::CancelScheduledMessage { dm_id, schedule_id } => self.cancel(caller, dm_id, schedule_id).await,
            Request::AddReaction { id, reaction, signature } => {
                self.add_reaction(caller, id, &reaction, &signature).await
            }
            Request::RemoveReaction { id } => self.remove_reaction(caller, id).await,
            Request::PingTyping { id } => self.ping_typing(conn, caller, id).await,
            Request::SendFriendRequest { username } => self.send_friend_request(caller, &username).await,
            Request::GetFriendRequests => Ok(raw(&self.work.requests_to(caller.id).await?)),
            Request::GetOutgoingRequests => Ok(raw(&self.work.requests_from(caller.id).await?)),
            Request::AckFriendRequest { username, accept } => self.ack_friend_request(caller, &username, accept).await,
            Request::Unfriend { username } => self.unfriend(caller, &username).await,
            Request::GetFriends => Ok(raw(&self.work.friends(caller.id).await?)),
            Request::BlockUser { username } => self.block_user(caller, &username).await,
            Request::Unblock { username } => self.unblock(caller, &username).await,
            Request::GetBlocked => Ok(raw(&self.work.blocked_by(caller.id).await?)),
            Request::JoinCall { id, uuid } => self.join_call(conn, caller, id, &uuid).await,
            Request::LeaveCall { id } => self.leave_call(conn, caller, id).await,
        }
    }

    /// A connection is gone.
    pub(super) async fn left(&mut self, conn: ConnId) -> Result<(), Halt> {
        if self.house.sessions.get(&conn).is_some_and(|session| session.caller.is_some()) {
            self.leave_calls(conn).await?;
            self.goes(conn).await?;
        }
        Ok(())
    }

    /// Who is logged in on a connection.
    ///
    /// # Errors
    /// [`Code::NotLoggedIn`] when nobody is.
    fn caller(&self, conn: ConnId) -> Result<Caller, Code> {
        let session = self.house.sessions.get(&conn);
        session.and_then(|session| session.caller.clone()).ok_or(Code::NotLoggedIn)
    }

    /// Microseconds since the Unix epoch.
    pub(super) fn now_us(&self) -> i64 {
        us(self.now.wall_ms)
    }

    /// Something is to be done at this time.
    pub(super) fn wake_at(&mut self, us: i64) {
        self.due = Some(self.due.map_or(us, |due| due.min(us)));
    }

    /// To be said when everything counts.
    pub(super) fn say(&mut self, to: Vec<ConnId>, notice: Notice, said: &(impl Serialize + ?Sized)) {
        if !to.is_empty() {
            self.says.push(Say { to, notice, said: raw(said) });
        }
    }

    /// The connections of all who are in a DM now.
    pub(super) fn room(&self, members: &[Member]) -> Vec<ConnId> {
        members.iter().flat_map(|member| self.house.presence.conns(member.id)).copied().collect()
    }

    /// The same without one.
    pub(super) fn room_but(&self, members: &[Member], conn: ConnId) -> Vec<ConnId> {
        let mut room = self.room(members);
        room.retain(|other| *other != conn);
        room
    }

    /// The other connections of a user.
    pub(super) fn others_of(&self, user: UserId, conn: ConnId) -> Vec<ConnId> {
        self.house.presence.conns(user).iter().copied().filter(|other| *other != conn).collect()
    }

    /// A DM that somebody is in.
    ///
    /// # Errors
    /// [`Code::NoDmAccess`], also when there is no such DM.
    pub(super) async fn dm(&mut self, caller: &Caller, id: i64) -> Result<StoredDm, Halt> {
        Ok(self.work.dm_of(caller.id, id).await?.ok_or(Code::NoDmAccess)?)
    }

    /// In a DM of two, both have to be friends for this (spec 6.2).
    pub(super) async fn pair_rule(&mut self, caller: &Caller, dm: &StoredDm) -> Result<(), Halt> {
        if let Some(partner) = dm.partner(caller.id) {
            let between = self.work.between(caller.id, partner).await?;
            between.may_speak(self.settings.pair_requires_friendship)?;
        }
        Ok(())
    }

    /// A DM as its members see it.
    pub(super) fn shown(&self, dm: &StoredDm) -> Dm {
        let peers = self.house.calls.peers(dm.id);
        let in_call = if self.settings.calls_as_map {
            InCall::Peers(peers.clone())
        } else {
            InCall::Names(self.house.calls.names(dm.id))
        };
        Dm {
            id: dm.id,
            users: dm.members.iter().map(|member| member.username.clone()).collect(),
            name: dm.name.clone(),
            created_at: stamp::write(dm.created_at),
            users_in_call: in_call,
            call_peers: peers,
        }
    }

    /// A user as others see him.
    pub(super) fn seen(&self, user: StoredUser) -> User {
        let status = effective(user.status, self.house.presence.is_here(user.id));
        User { status, ..whole(user) }
    }
}

/// A user with what was set.
pub(super) fn whole(user: StoredUser) -> User {
    let StoredUser { username, public_key, prekey, status, biography, profile_picture, .. } = user;
    User {
        username,
        public_key: hex::encode(public_key),
        spk: prekey.map(|(spk, _)| hex::encode(spk)),
        sig: prekey.map(|(_, sig)| hex::encode(sig)),
        status,
        biography,
        profile_picture,
        own_storage: None,
    }
}

pub(super) fn us(wall_ms: u64) -> i64 {
    i64::try_from(wall_ms.saturating_mul(1_000)).unwrap_or(i64::MAX)
}
