//! Friends and blocks (spec 2.4).

use super::scene::{Caller, Halt, Scene, Told};
use crate::chat::dm::state::{Step, UserId};
use crate::chat::dm::wire::{Code, Notice, UserNotice, VerdictNotice, raw};

impl Scene<'_> {
    pub(super) async fn send_friend_request(&mut self, caller: &Caller, username: &str) -> Told {
        if username == caller.username {
            return Err(Code::CannotFriendSelf.into());
        }
        if !self.gate.may_ask(caller.id) {
            return Err(Code::RateLimited.into());
        }
        // Whether somebody blocks is no different from whether he is there.
        let other = self.other(caller, username, Code::CannotFriend).await?;
        self.step(caller, other, Step::Ask).await?;
        let notice = UserNotice { username: caller.username.clone() };
        self.say(self.house.presence.conns(other).to_vec(), Notice::FriendRequest, &notice);
        Ok(raw(&true))
    }

    pub(super) async fn ack_friend_request(&mut self, caller: &Caller, username: &str, accept: bool) -> Told {
        let other = self.other(caller, username, Code::NoRequest).await?;
        self.step(caller, other, Step::Answer { accept }).await?;
        let notice = VerdictNotice { username: caller.username.clone(), accept };
        self.say(self.house.presence.conns(other).to_vec(), Notice::FriendRequestAccept, &notice);
        Ok(raw(&true))
    }

    pub(super) async fn unfriend(&mut self, caller: &Caller, username: &str) -> Told {
        let other = self.other(caller, username, Code::NotFriends).await?;
        self.step(caller, other, Step::Unfriend).await?;
        for (to, named) in [(caller.id, username), (other, caller.username.as_str())] {
            let notice = UserNotice { username: named.to_owned() };
            self.say(self.house.presence.conns(to).to_vec(), Notice::Unfriend, &notice);
        }
        Ok(raw(&true))
    }

    pub(super) async fn block_user(&mut self, caller: &Caller, username: &str) -> Told {
        let other = self.other(caller, username, Code::CannotBlock).await?;
        self.step(caller, other, Step::Block).await?;
        Ok(raw(&true))
    }

    pub(super) async fn unblock(&mut self, caller: &Caller, username: &str) -> Told {
        let other = self.other(caller, username, Code::NotBlocked).await?;
        self.step(caller, other, Step::Unblock).await?;
        Ok(raw(&true))
    }

    async fn step(&mut self, caller: &Caller, other: UserId, step: Step) -> Result<(), Halt> {
        let before = self.work.between(caller.id, other).await?;
        let after = before.after(step)?;
        Ok(self.work.set_between((caller.id, other), before, after, self.now_us()).await?)
    }

    /// Somebody else of this name.
    ///
    /// # Errors
    /// `otherwise` when there is nobody, or it is the caller.
    async fn other(&mut self, caller: &Caller, username: &str, otherwise: Code) -> Result<UserId, Halt> {
        let user = self.work.user_named(username).await?;
        Ok(user.map(|user| user.id).filter(|id| *id != caller.id).ok_or(otherwise)?)
    }
}
