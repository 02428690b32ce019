//! DMs (spec 2.2) and their calls (2.5).

use std::collections::HashMap;
use std::time::Duration;

use super::scene::{Caller, Halt, Scene, Task, Told};
use crate::chat::dm::crypto::{PublicKey, Setup, setup_message};
use crate::chat::dm::state::{ConnId, DMS_MAX, INBOX_MAX, UserId};
use crate::chat::dm::store::{Kind, StoredDm, StoredInvitation, StoredUser};
use crate::chat::dm::wire::{CallNotice, Code, FullDm, Invitation, Notice, Scheduled, X3dh, raw, stamp};
use crate::chat::sql::SqlError;

/// How long after its time the end of a connection may be heard that missed a heartbeat.
const HEARTBEAT_HEARD: Duration = Duration::from_secs(1);

impl Scene<'_> {
    pub(super) async fn create_dm(
        &mut self,
        conn: ConnId,
        caller: &Caller,
        usernames: &[String],
        invitations: &[Invitation],
        key_tree: &[PublicKey],
    ) -> Told {
        if usernames.contains(&caller.username) {
            return Err(Code::BadRequest.into());
        }
        // First, since a refusal costs as much work as a DM.
        if !self.gate.may_try_dm(caller.id) {
            return Err(Code::RateLimited.into());
        }
        let mut named: HashMap<_, _> =
            self.work.users_named(usernames).await?.into_iter().map(|user| (user.username.clone(), user)).collect();
        let invitees = usernames.iter().map(|username| named.remove(username).ok_or(Code::NoSuchUser));
        let invitees = invitees.collect::<Result<Vec<_>, _>>()?;
        for (invitee, invitation) in invitees.iter().zip(invitations) {
            let (spk, _) = invitee.prekey.ok_or(Code::SpkMissing)?;
            if spk != invitation.spk {
                return Err(Code::SpkMismatch.into());
            }
        }
        let kind = self.may_make(caller, &invitees).await?;
        setups_are_signed(caller, &invitees, invitations, key_tree)?;
        if !self.gate.may_make_dm(caller.id) {
            return Err(Code::RateLimited.into());
        }
        let (now, invited) = (self.now_us(), ids(&invitees));
        let members = [&[caller.id][..], &invited].concat();
        if self.work.has_any_full((&members, DMS_MAX), (&invited, INBOX_MAX)).await? {
            return Err(Code::TooMany.into());
        }
        let tree: Vec<u8> = key_tree.iter().flat_map(PublicKey::as_bytes).copied().collect();
        let id = self.work.add_dm(&members, kind, &tree, now).await?;
        let mut sent = Vec::new();
        for ((invitee, invitation), position) in invitees.iter().zip(invitations).zip(1..) {
            let mut stored = StoredInvitation {
                id: 0,
                dm: id,
                sender: caller.username.clone(),
                sender_ik: *caller.key.as_bytes(),
                spk: invitation.spk,
                ek: *invitation.ek.as_bytes(),
                position,
                setup_sig: invitation.setup_sig,
                key_tree: tree.clone(),
            };
            stored.id = self.work.add_invitation((invitee.id, caller.id), &stored, now).await?;
            sent.push((invitee.id, stored));
        }
        let dm = self.dm(caller, id).await?;
        for (invitee, stored) in sent {
            for to in self.house.presence.conns(invitee).to_vec() {
                self.invite(to, std::slice::from_ref(&stored));
            }
        }
        let shown = self.shown(&dm);
        self.say(self.others_of(caller.id, conn), Notice::Dm, &shown);
        Ok(raw(&id))
    }

    /// Whether the caller may have a DM with them, and of which sort it is (spec 6.2).
    async fn may_make(&mut self, caller: &Caller, invitees: &[StoredUser]) -> Result<Kind, Halt> {
        if let [other] = invitees {
            if self.work.is_paired(caller.id, other.id).await? {
                return Err(Code::DmExists.into());
            }
            let between = self.work.between(caller.id, other.id).await?;
            between.may_speak(self.settings.pair_requires_friendship)?;
            return Ok(Kind::Pair);
        }
        if self.work.blocks_any(caller.id, &ids(invitees)).await? {
            return Err(Code::CannotInvite.into());
        }
        Ok(Kind::Group)
    }

    /// Tells a connection what its user needs for the keys of DMs, once. Its user has it if the connection is still there in a
    /// while: if something comes from it then, or if it has answered a heartbeat that was sent since. That no end of it was
    /// heard is not enough: a phone that lost its network is missed only by the heartbeat.
    pub(super) fn invite(&mut self, conn: ConnId, invitations: &[StoredInvitation]) {
        let mut ids = Vec::new();
        for invitation in invitations {
            let session = self.house.sessions.get_mut(&conn);
            if session.is_some_and(|session| session.invited.insert(invitation.id)) {
                ids.push(invitation.id);
                self.say(vec![conn], Notice::X3dh, &shown(invitation));
            }
        }
        if !ids.is_empty() {
            let after = |delay| self.now.monotonic.saturating_add(delay);
            let (kept, beat) = (self.settings.x3dh_kept, self.settings.beat);
            // Of a connection that is silent, only the heartbeat tells that it is dead.
            let alive = beat.every.saturating_add(beat.within).saturating_add(HEARTBEAT_HEARD);
            self.house.after(after(kept), conn, Task::Ripe(ids.clone()));
            self.house.after(after(kept.max(alive)), conn, Task::Received(ids));
        }
    }

    pub(super) async fn get_dm(&mut self, caller: &Caller, id: i64) -> Told {
        let dm = self.dm(caller, id).await?;
        let latest_message = self.work.latest(id).await?.map(|stored| stored.message);
        let schedules = self.work.schedules(id, caller.id).await?.into_iter().map(|schedule| {
            let scheduled = Scheduled {
                message: hex::encode(schedule.body),
                signature: hex::encode(schedule.signature),
                timestamp: stamp::write(schedule.due_at),
            };
            (schedule.id.to_string(), scheduled)
        });
        Ok(raw(&FullDm { dm: self.shown(&dm), latest_message, scheduled_messages: schedules.collect() }))
    }

    pub(super) async fn set_dm(&mut self, caller: &Caller, id: i64, name: Option<Option<String>>) -> Told {
        let mut dm = self.dm(caller, id).await?;
        if let Some(name) = name {
            if !self.gate.may_write(caller.id) {
                return Err(Code::RateLimited.into());
            }
            self.work.rename_dm(id, name.as_deref()).await?;
            dm.name = name;
            self.tell_changed(&dm);
        }
        Ok(raw(&true))
    }

    fn tell_changed(&mut self, dm: &StoredDm) {
        let shown = self.shown(dm);
        self.say(self.room(&dm.members), Notice::Dm, &shown);
    }

    /// The last one out takes all of it with him.
    pub(super) async fn leave_dm(&mut self, conn: ConnId, caller: &Caller, id: i64) -> Told {
        let mut dm = self.dm(caller, id).await?;
        dm.members.retain(|member| member.id != caller.id);
        if dm.members.is_empty() {
            self.work.remove_dm(id).await?;
        } else {
            self.work.leave_dm(id, caller.id, self.now_us()).await?;
        }
        if self.house.calls.leave(id, caller.id) {
            self.tell_call(&dm, caller, conn, Notice::UserLeftCall);
        }
        self.tell_changed(&dm);
        Ok(raw(&true))
    }

    pub(super) async fn join_call(&mut self, conn: ConnId, caller: &Caller, id: i64, uuid: &str) -> Told {
        let dm = self.dm(caller, id).await?;
        self.pair_rule(caller, &dm).await?;
        if !self.gate.may_write(caller.id) {
            return Err(Code::RateLimited.into());
        }
        if !self.house.calls.join(id, (caller.id, &caller.username), uuid, conn) {
            return Err(Code::TooMany.into());
        }
        self.tell_changed(&dm);
        self.tell_call(&dm, caller, conn, Notice::UserJoinedCall);
        Ok(raw(&self.house.calls.peers(id)))
    }

    pub(super) async fn leave_call(&mut self, conn: ConnId, caller: &Caller, id: i64) -> Told {
        let dm = self.dm(caller, id).await?;
        if !self.house.calls.leave(id, caller.id) {
            return Err(Code::NotInCall.into());
        }
        self.tell_changed(&dm);
        self.tell_call(&dm, caller, conn, Notice::UserLeftCall);
        Ok(raw(&true))
    }

    /// A connection goes, and with it those who were in calls through it.
    pub(super) async fn leave_calls(&mut self, conn: ConnId) -> Result<(), SqlError> {
        let session = self.house.sessions.get(&conn);
        let Some(caller) = session.and_then(|session| session.caller.clone()) else { return Ok(()) };
        for id in self.house.calls.of(conn) {
            self.house.calls.leave(id, caller.id);
            if let Some(dm) = self.work.dm(id).await? {
                self.tell_changed(&dm);
                self.tell_call(&dm, &caller, conn, Notice::UserLeftCall);
            }
        }
        Ok(())
    }

    fn tell_call(&mut self, dm: &StoredDm, caller: &Caller, conn: ConnId, notice: Notice) {
        let said = CallNotice { id: dm.id, username: caller.username.clone() };
        self.say(self.room_but(&dm.members, conn), notice, &said);
    }
}

fn ids(users: &[StoredUser]) -> Vec<UserId> {
    users.iter().map(|user| user.id).collect()
}

/// # Errors
/// [`Code::BadSignature`] when a signature over the group is not the creator's (EXT-2); there need not be one.
fn setups_are_signed(
    caller: &Caller,
    invitees: &[StoredUser],
    invitations: &[Invitation],
    key_tree: &[PublicKey],
) -> Result<(), Halt> {
    let members = u16::try_from(invitees.len() + 1).map_err(|_| Code::TooMany)?;
    for ((invitee, invitation), position) in invitees.iter().zip(invitations).zip(1..) {
        let Some(setup_sig) = &invitation.setup_sig else { continue };
        let decode = |key| PublicKey::decode(key).ok_or(SqlError::Damaged("key of a user"));
        let setup = Setup {
            creator: &caller.key,
            invitee: &decode(&invitee.public_key)?,
            spk: &decode(&invitation.spk)?,
            ek: &invitation.ek,
            position,
            members,
            tree: key_tree,
        };
        caller.signed(&setup_message(&setup), setup_sig)?;
    }
    Ok(())
}

fn shown(invitation: &StoredInvitation) -> X3dh {
    X3dh {
        sender: invitation.sender.clone(),
        ik: hex::encode(invitation.sender_ik),
        spk: hex::encode(invitation.spk),
        ek: hex::encode(invitation.ek),
        key_tree: invitation.key_tree.chunks(32).map(hex::encode).collect(),
        position: invitation.position,
        id: invitation.dm,
        setup_sig: invitation.setup_sig.map(hex::encode),
    }
}
