//! Logging in, registering, profiles (spec 2.1).

use super::scene::{Caller, Halt, Open, Scene, Task, Told, whole};
use crate::chat::dm::crypto::{Challenge, PublicKey};
use crate::chat::dm::state::{CONNECTIONS_MAX, ConnId, names};
use crate::chat::dm::store::{NewUser, StoredUser};
use crate::chat::dm::wire::{Code, Notice, Prekey, ProfileChange, Refusal, Request, ScheduleNotice, Status, raw};
use crate::chat::sql::SqlError;
use crate::crypto::Secret;
use crate::metrics::{self, Login, Room};

impl Scene<'_> {
    /// What one may ask for without being known.
    pub(super) async fn stranger_asked(&mut self, conn: ConnId, request: Request) -> Told {
        match request {
            Request::Login { username } => self.login(conn, &username).await,
            Request::LoginChallengeResponse { response } => self.answer(conn, &response).await,
            Request::Register { username, public_key, prekey, own_storage } => {
                self.register(conn, &username, &public_key, prekey, &own_storage).await
            }
            Request::UsernameExists { username } => {
                if !self.gate.may_look_up(self.session(conn)?.who) {
                    return Err(Code::RateLimited.into());
                }
                Ok(raw(&self.work.is_taken(&names::key(&username)).await?))
            }
            _ => Err(Code::NotLoggedIn.into()),
        }
    }

    /// Whether nobody listens to attempts to log in on this connection, or from where it comes.
    pub(super) fn is_locked_out(&mut self, conn: ConnId) -> bool {
        let (now, limits) = (self.now.monotonic, &self.settings.lockout);
        let Some(session) = self.house.sessions.get_mut(&conn) else { return false };
        session.lockout.is_locked(now)
            || matches!(session.who, super::gate::Who::Network(network)
                if self.house.failures.is_locked(network, limits, now))
    }

    /// Counts an attempt to log in that failed.
    pub(super) fn failed_login(&mut self, conn: ConnId, code: Code) -> Halt {
        metrics::get().chat_logins.of(Room::Dm).of(Login::Refused).increment(1);
        let (now, limits) = (self.now.monotonic, &self.settings.lockout);
        let Some(session) = self.house.sessions.get_mut(&conn) else { return code.into() };
        if let super::gate::Who::Network(network) = session.who {
            self.house.failures.failed(network, limits, now);
        }
        Refusal { code, tries_left: Some(session.lockout.failed(limits, now)) }.into()
    }

    fn session(&mut self, conn: ConnId) -> Result<&mut super::scene::Session, Code> {
        self.house.sessions.get_mut(&conn).ok_or(Code::Internal)
    }

    async fn login(&mut self, conn: ConnId, username: &str) -> Told {
        if self.session(conn)?.caller.is_some() {
            return Err(self.failed_login(conn, Code::AlreadyLoggedIn));
        }
        let Some(user) = self.work.user_named(username).await? else {
            return Err(self.failed_login(conn, Code::NoSuchUser));
        };
        let key = PublicKey::decode(&user.public_key).ok_or(SqlError::Damaged("key of a user"))?;
        let caller = Caller { id: user.id, username: user.username, key };
        let challenge = Challenge::new(&Secret::random());
        let point = hex::encode(challenge.point);
        let at = self.now.monotonic;
        self.session(conn)?.open = Some(Open { caller, challenge, at });
        Ok(raw(&point))
    }

    /// Whatever the answer is, the challenge has had it.
    async fn answer(&mut self, conn: ConnId, response: &[u8]) -> Told {
        let (now, max) = (self.now.monotonic, self.settings.challenge_max);
        let session = self.session(conn)?;
        if session.caller.is_some() {
            return Err(self.failed_login(conn, Code::AlreadyLoggedIn));
        }
        let open = session.open.take().filter(|open| now < open.at.saturating_add(max));
        let Some(Open { caller, challenge, .. }) = open else {
            return Err(self.failed_login(conn, Code::NoChallenge));
        };
        if !challenge.answered_by(&caller.key, &caller.username, response) {
            return Err(self.failed_login(conn, Code::WrongResponse));
        }
        if self.house.presence.conns(caller.id).len() >= CONNECTIONS_MAX {
            return Err(Code::TooMany.into());
        }
        let user = self.work.user(caller.id).await?;
        for missed in self.work.missed(caller.id).await? {
            self.work.warned(missed.id, false).await?;
            let notice = ScheduleNotice { dm_id: missed.dm, schedule_id: missed.id };
            self.say(vec![conn], Notice::ScheduledSoon, &notice);
        }
        let session = self.session(conn)?;
        session.lockout.succeeded();
        session.caller = Some(caller);
        session.wire.is_known();
        let others: Vec<_> = self.house.presence.all().collect();
        let is_first = self.house.presence.came(conn, user.id);
        self.house.after(now.saturating_add(self.settings.x3dh_after), conn, Task::Invite(user.id));
        if is_first && user.status != Status::Offline {
            self.house.everybody = None;
            let seen = self.seen(user);
            self.say(others, Notice::Profile, &seen);
        }
        metrics::get().chat_logins.of(Room::Dm).of(Login::Accepted).increment(1);
        Ok(raw(&true))
    }

    /// A connection goes on which somebody was logged in.
    pub(super) async fn goes(&mut self, conn: ConnId) -> Result<(), SqlError> {
        if let Some((user, true)) = self.house.presence.left(conn) {
            self.house.everybody = None;
            let user = self.work.user(user).await?;
            if user.status != Status::Offline {
                let others = self.house.presence.all().collect();
                let seen = self.seen(user);
                self.say(others, Notice::Profile, &seen);
            }
        }
        Ok(())
    }

    async fn register(
        &mut self,
        conn: ConnId,
        username: &str,
        public_key: &PublicKey,
        prekey: Prekey,
        own_storage: &str,
    ) -> Told {
        let session = self.session(conn)?;
        if session.caller.is_some() {
            return Err(Code::AlreadyLoggedIn.into());
        }
        let who = session.who;
        let username_key = self.is_to_be_had(conn, username).await?;
        signed_prekey(public_key, &prekey)?;
        // Last, so that only accounts count.
        if !self.gate.may_register(who) {
            return Err(Code::RateLimited.into());
        }
        let new = NewUser {
            username,
            username_key: &username_key,
            public_key: public_key.as_bytes(),
            spk: prekey.spk.as_bytes(),
            spk_sig: &prekey.sig,
            own_storage,
            created_at: self.now_us(),
        };
        self.house.everybody = None;
        self.work.add_user(new).await?;
        Ok(raw(&true))
    }

    /// Whether somebody can have this name; under what it is known then. Tells as much as looking it up, and may be asked as often.
    pub(super) async fn is_to_be_had(&mut self, conn: ConnId, username: &str) -> Result<String, Halt> {
        let who = self.session(conn)?.who;
        if !names::is_allowed(username) {
            return Err(Code::UsernameInvalid.into());
        }
        if !self.gate.may_look_up(who) {
            return Err(Code::RateLimited.into());
        }
        let username_key = names::key(username);
        if self.work.is_taken(&username_key).await? {
            return Err(Code::UsernameTaken.into());
        }
        Ok(username_key)
    }

    pub(super) async fn get_user(&mut self, username: &str) -> Told {
        let user = self.named(username).await?;
        Ok(raw(&self.seen(user)))
    }

    /// Somebody of this name.
    ///
    /// # Errors
    /// [`Code::NoSuchUser`].
    pub(super) async fn named(&mut self, username: &str) -> Result<StoredUser, Halt> {
        Ok(self.work.user_named(username).await?.ok_or(Code::NoSuchUser)?)
    }

    pub(super) async fn get_full_user(&mut self, caller: &Caller) -> Told {
        let mut user = whole(self.work.user(caller.id).await?);
        user.own_storage = Some(self.work.own_storage(caller.id).await?);
        Ok(raw(&user))
    }

    pub(super) async fn get_user_list(&mut self, conn: ConnId) -> Told {
        if !self.gate.may_list(conn) {
            return Err(Code::RateLimited.into());
        }
        if self.house.everybody.is_none() {
            let users = self.work.users().await?;
            self.house.everybody = Some(raw(&users.into_iter().map(|user| self.seen(user)).collect::<Vec<_>>()));
        }
        Ok(self.house.everybody.clone().ok_or(Code::Internal)?)
    }

    pub(super) async fn set_user(&mut self, conn: ConnId, caller: &Caller, change: &ProfileChange) -> Told {
        if let Some(Some(prekey)) = &change.prekey {
            signed_prekey(&caller.key, prekey)?;
        }
        let before = self.work.user(caller.id).await?;
        let stored_before = match &change.own_storage {
            Some(_) => Some(self.work.own_storage(caller.id).await?),
            None => None,
        };
        self.house.everybody = None;
        self.work.set_user(caller.id, change).await?;
        let after = self.work.user(caller.id).await?;
        let is_seen = before != after;
        let is_stored = change.own_storage != stored_before;
        // Last, and undone if need be: only what everybody is told of counts.
        if is_seen && !self.gate.may_change(caller.id) {
            return Err(Code::RateLimited.into());
        }
        if is_seen || is_stored {
            // What only changed for the user itself is a hint to its other devices.
            let to = match is_seen {
                true => self.house.presence.all().filter(|other| *other != conn).collect(),
                false => self.others_of(caller.id, conn),
            };
            let seen = self.seen(after);
            self.say(to, Notice::Profile, &seen);
        }
        Ok(raw(&true))
    }
}

/// # Errors
/// [`Code::BadSignature`] when the identity key did not sign it.
fn signed_prekey(key: &PublicKey, prekey: &Prekey) -> Result<(), Code> {
    if key.verifies(prekey.spk.as_bytes(), &prekey.sig) { Ok(()) } else { Err(Code::BadSignature) }
}
