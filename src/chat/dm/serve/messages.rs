//! Messages, reactions, and that somebody types (spec 2.3).

use super::scene::{Caller, Halt, Scene, Told};
use crate::chat::dm::state::{ConnId, PINNED_MAX, REACTIONS_MAX, SCHEDULES_MAX, UserId};
use crate::chat::dm::store::{Draft, Schedule, StoredDm, StoredMessage};
use crate::chat::dm::wire::{Code, Message, Notice, Signature, TypingNotice, raw};
use crate::chat::sql::SqlError;
use crate::metrics::{self, Room};

/// So long before it is sent its author is warned of a scheduled message, if there is more time than that.
const SOON_S: i64 = 60;

impl Scene<'_> {
    pub(super) async fn send_message(
        &mut self,
        caller: &Caller,
        id: i64,
        (body, signature): (&[u8], &Signature),
        schedule: i64,
        delete: i64,
    ) -> Told {
        let dm = self.dm(caller, id).await?;
        self.pair_rule(caller, &dm).await?;
        caller.signed(body, signature)?;
        if !self.gate.may_write(caller.id) {
            return Err(Code::RateLimited.into());
        }
        if schedule == 0 {
            let sender = (caller.id, caller.username.as_str());
            self.publish(&dm, sender, (body, signature), delete).await?;
        } else {
            if self.work.count_schedules(id, caller.id).await? >= SCHEDULES_MAX {
                return Err(Code::TooMany.into());
            }
            let now = self.now_us();
            let in_s = |seconds: i64| now.saturating_add(seconds.saturating_mul(1_000_000));
            let soon_at = (schedule > SOON_S).then(|| in_s(schedule.saturating_sub(SOON_S)));
            let schedule = Schedule {
                id: 0,
                dm: id,
                sender: caller.id,
                body: body.to_vec(),
                signature: *signature,
                due_at: in_s(schedule),
                delete_after_s: delete,
            };
            self.work.add_schedule(&schedule, soon_at).await?;
            self.wake_at(soon_at.unwrap_or(schedule.due_at));
        }
        metrics::get().chat_accepted.of(Room::Dm).increment(1);
        Ok(raw(&true))
    }

    /// A message is said now: kept, and told to everybody in the DM, its sender too.
    pub(super) async fn publish(
        &mut self,
        dm: &StoredDm,
        (sender, username): (UserId, &str),
        (body, signature): (&[u8], &Signature),
        delete_after_s: i64,
    ) -> Result<(), SqlError> {
        let draft = Draft { dm: dm.id, sender, username, body, signature, delete_after_s };
        let (message, delete_at) = self.work.add_message(draft, self.now_us()).await?;
        if let Some(at) = delete_at {
            self.wake_at(at);
        }
        self.say(self.room(&dm.members), Notice::Message, &message);
        Ok(())
    }

    /// A message that somebody can see, and where it is.
    ///
    /// # Errors
    /// [`Code::NoMessageAccess`], also when there is no such message.
    pub(super) async fn message(&mut self, caller: &Caller, id: i64) -> Result<(StoredMessage, StoredDm), Halt> {
        let stored = self.work.message(id).await?.ok_or(Code::NoMessageAccess)?;
        let dm = self.work.dm_of(caller.id, stored.message.dm_id).await?.ok_or(Code::NoMessageAccess)?;
        Ok((stored, dm))
    }

    pub(super) async fn get_history(&mut self, caller: &Caller, id: i64, cursor: Option<i64>, count: i64) -> Told {
        self.dm(caller, id).await?;
        let page = self.work.history(id, cursor.unwrap_or(i64::MAX), count).await?;
        Ok(raw(&messages(page)))
    }

    pub(super) async fn get_pinned(&mut self, caller: &Caller, id: i64) -> Told {
        self.dm(caller, id).await?;
        Ok(raw(&messages(self.work.pinned(id).await?)))
    }

    pub(super) async fn set_message(
        &mut self,
        caller: &Caller,
        id: i64,
        body: Option<(Vec<u8>, Signature)>,
        pinned: Option<bool>,
    ) -> Told {
        let (stored, dm) = self.message(caller, id).await?;
        if body.is_none() && pinned.is_none() {
            return Ok(raw(&true));
        }
        if let Some((body, signature)) = &body {
            if stored.sender != caller.id {
                return Err(Code::NotSender.into());
            }
            self.pair_rule(caller, &dm).await?;
            caller.signed(body, signature)?;
        }
        if !self.gate.may_write(caller.id) {
            return Err(Code::RateLimited.into());
        }
        if pinned == Some(true) && !stored.message.pinned && self.work.count_pinned(dm.id).await? >= PINNED_MAX {
            return Err(Code::TooMany.into());
        }
        if let Some((body, signature)) = &body {
            self.work.set_body(id, body, signature).await?;
        }
        if let Some(pinned) = pinned {
            self.work.set_pinned(id, pinned).await?;
        }
        self.tell_message(id, &dm).await?;
        Ok(raw(&true))
    }

    /// Everybody in the DM hears what has become of a message.
    async fn tell_message(&mut self, id: i64, dm: &StoredDm) -> Result<(), SqlError> {
        let stored = self.work.message(id).await?.ok_or(SqlError::Damaged("a message is gone"))?;
        self.say(self.room(&dm.members), Notice::MessageChange, &stored.message);
        Ok(())
    }

    pub(super) async fn cancel(&mut self, caller: &Caller, dm: i64, schedule: i64) -> Told {
        if self.work.cancel(dm, caller.id, schedule).await? { Ok(raw(&true)) } else { Err(Code::NoSchedule.into()) }
    }

    pub(super) async fn add_reaction(&mut self, caller: &Caller, id: i64, body: &[u8], signature: &Signature) -> Told {
        let (_, dm) = self.message(caller, id).await?;
        self.pair_rule(caller, &dm).await?;
        caller.signed(body, signature)?;
        if !self.gate.may_write(caller.id) {
            return Err(Code::RateLimited.into());
        }
        if self.work.count_reactions(id, caller.id).await? >= REACTIONS_MAX {
            return Err(Code::TooMany.into());
        }
        let reaction = self.work.add_reaction((id, caller.id), body, signature, self.now_us()).await?;
        self.tell_message(id, &dm).await?;
        Ok(raw(&reaction))
    }

    pub(super) async fn remove_reaction(&mut self, caller: &Caller, id: i64) -> Told {
        let message = self.work.reaction_of(caller.id, id).await?.ok_or(Code::NoReactionAccess)?;
        let (_, dm) = match self.message(caller, message).await {
            Err(Halt::Refused(_)) => return Err(Code::NoReactionAccess.into()),
            found => found?,
        };
        if !self.gate.may_write(caller.id) {
            return Err(Code::RateLimited.into());
        }
        self.work.remove_reaction(id).await?;
        self.tell_message(message, &dm).await?;
        Ok(raw(&true))
    }

    pub(super) async fn ping_typing(&mut self, conn: ConnId, caller: &Caller, id: i64) -> Told {
        let dm = self.dm(caller, id).await?;
        self.pair_rule(caller, &dm).await?;
        if self.gate.may_tell_typing(caller.id, id) {
            let notice = TypingNotice { id, username: caller.username.clone() };
            self.say(self.room_but(&dm.members, conn), Notice::Typing, &notice);
        }
        Ok(raw(&true))
    }
}

fn messages(stored: Vec<StoredMessage>) -> Vec<Message> {
    stored.into_iter().map(|stored| stored.message).collect()
}
