//! What happens by itself (spec 4): messages that are sent and deleted, warnings, and keys that are delivered.
//!
//! A row that cannot be read keeps nobody else's from its time: it is dropped, and the log says so.

use tracing::error;

use super::scene::{Halt, Scene, Task};
use crate::chat::dm::state::{ConnId, UserId};
use crate::chat::dm::store::StoredDm;
use crate::chat::dm::wire::{Notice, ScheduleNotice};
use crate::chat::sql::SqlError;
use crate::metrics::{self, DmTimer};

/// What is done at once, of each kind, so that nobody waits for a whole backlog.
const AT_ONCE: i64 = 64;

impl Scene<'_> {
    /// Does the first of what is due, and says when there is more to do.
    pub(super) async fn fire(&mut self) -> Result<Option<i64>, SqlError> {
        let now = self.now_us();
        for schedule in self.work.take_due(now, AT_ONCE).await? {
            let dm = match self.work.dm_of(schedule.sender, schedule.dm).await {
                Err(error @ SqlError::Damaged(_)) => {
                    error!(%error, "a schedule is dropped");
                    None
                }
                found => found?,
            };
            // He may have left, or lost the right to speak since (spec 4.1); nobody is told.
            let Some((dm, username)) = self.still_speaks(schedule.sender, dm).await? else {
                metrics::get().dm_timers.of(DmTimer::Dropped).increment(1);
                continue;
            };
            let notice = ScheduleNotice { dm_id: schedule.dm, schedule_id: schedule.id };
            let authors = self.house.presence.conns(schedule.sender).to_vec();
            self.say(authors, Notice::ScheduledSent, &notice);
            let said = (schedule.body.as_slice(), &schedule.signature);
            self.publish(&dm, (schedule.sender, &username), said, schedule.delete_after_s).await?;
            metrics::get().dm_timers.of(DmTimer::Sent).increment(1);
        }
        for soon in self.work.due_soon(now, AT_ONCE).await? {
            let authors = self.house.presence.conns(soon.sender).to_vec();
            self.work.warned(soon.id, authors.is_empty()).await?;
            let notice = ScheduleNotice { dm_id: soon.dm, schedule_id: soon.id };
            self.say(authors, Notice::ScheduledSoon, &notice);
            metrics::get().dm_timers.of(DmTimer::Warned).increment(1);
        }
        for (message, dm) in self.work.overdue(now, AT_ONCE).await? {
            let dm = match self.work.dm(dm).await {
                // Its time has come all the same.
                Err(SqlError::Damaged(_)) => None,
                found => found?,
            };
            let room = dm.map(|dm| self.room(&dm.members)).unwrap_or_default();
            self.work.remove_message(message).await?;
            self.say(room, Notice::MessageDelete, &message);
            metrics::get().dm_timers.of(DmTimer::Deleted).increment(1);
        }
        self.work.next_due().await
    }

    /// The DM, and by which name, if somebody can say something in it.
    async fn still_speaks(
        &mut self,
        user: UserId,
        dm: Option<StoredDm>,
    ) -> Result<Option<(StoredDm, String)>, SqlError> {
        let Some(dm) = dm else { return Ok(None) };
        let Some(author) = dm.members.iter().find(|member| member.id == user) else { return Ok(None) };
        if let Some(partner) = dm.partner(user) {
            let between = self.work.between(user, partner).await?;
            if between.may_speak(self.settings.pair_requires_friendship).is_err() {
                return Ok(None);
            }
        }
        let username = author.username.clone();
        Ok(Some((dm, username)))
    }

    /// Does what was to be done on a connection after a while.
    pub(super) async fn perform(&mut self, conn: ConnId, task: Task) -> Result<(), Halt> {
        match task {
            Task::Invite(user) => {
                let waiting = self.work.invitations(user).await?;
                self.invite(conn, &waiting);
            }
            Task::Ripe(invitations) => {
                if let Some(session) = self.house.sessions.get_mut(&conn) {
                    session.ripe.extend(invitations);
                }
            }
            Task::Received(invitations) => self.work.received(&invitations).await?,
        }
        Ok(())
    }
}
