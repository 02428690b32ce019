//! The task that decides: takes what waits in its mailbox, lets each use case read, decide and write, keeps all of it in one
//! transaction, and only then speaks.
//!
//! Being one task, it is what gives a DM its order: a message is kept and put into the lines of all who hear it before the
//! next one is looked at, so everybody hears the same in the same order. It is the scheduler, too: it sleeps until something
//! is due at most. While a transaction is being synced, events pile up for the next: the more there is to do, the less a
//! sync costs each.
//!
//! Each event is whole or nothing within that transaction: one that is refused, fails or panics is undone alone, and so is
//! everything that is done by itself. When the transaction fails, nothing of the batch was said, and every connection ends:
//! clients come back and are told what is kept.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use serde_json::value::RawValue;
use socketioxide::extract::AckSender;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::Settings;
use super::gate::{Gate, Who};
use super::scene::{Halt, House, Say, Scene, Session, Task, us};
use super::wire::{Heard, Wire};
use crate::chat::dm::state::ConnId;
use crate::chat::dm::store::{Store, Work};
use crate::chat::dm::wire::{Code, Envelope, Notice, Refusal};
use crate::chat::sql::SqlError;
use crate::metrics::{self, DmAnswer, Room};
use crate::time::{Clock, Now};

/// What may wait for the actor. Whoever finds it full waits, and so does everything behind it.
pub(super) const MAILBOX_MAX: usize = 4_096;
/// What is decided and kept at once, at most.
const BATCH_MAX: usize = 256;
/// Answers that are kept until what they tell is on the disk, in bytes; one more may be longer. Then the batch is over.
const ANSWERS_MAX: usize = 8 * 1024 * 1024;
/// What is done by itself on connections in one batch, at most.
const TASKS_MAX: usize = 64;
/// How often what is too old is looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// The longest sleep until something that is due by the wall clock: that clock may be set.
const SLEEP_MAX: Duration = Duration::from_secs(30);

/// What connections tell the actor.
#[derive(Debug)]
pub(super) enum Mail {
    Asked(Box<Asked>),
    /// A connection is gone; who tells it hears when everything it asked for is answered.
    Left(ConnId, Option<oneshot::Sender<()>>),
}

/// A request, and where its answer goes.
pub(super) struct Asked {
    pub(super) conn: ConnId,
    pub(super) who: Who,
    pub(super) wire: Wire,
    pub(super) event: String,
    pub(super) ack: AckSender,
    pub(super) heard: Heard,
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asked").field("conn", &self.conn).finish_non_exhaustive()
    }
}

/// What is to be said when everything counts, in this order.
enum Out {
    Answer(Wire, AckSender, Envelope),
    Say(Say),
    /// All of it is answered.
    Answered(oneshot::Sender<()>),
}

pub(super) struct Actor {
    settings: Settings,
    store: Store,
    clock: Clock,
    gate: Arc<Gate>,
    /// Cancelled when everybody has to go.
    shutdown: CancellationToken,
    house: House,
    /// When the next thing is due that is kept; microseconds since the Unix epoch.
    due: Option<i64>,
}

impl Actor {
    pub(super) fn new(
        settings: Settings,
        store: Store,
        clock: Clock,
        (gate, shutdown): (Arc<Gate>, CancellationToken),
    ) -> Self {
        Self { settings, store, clock, gate, shutdown, house: House::default(), due: None }
    }

    /// Does everything that came due while nobody was here (spec 4.3): sends, then deletes.
    pub(super) async fn catch_up(&mut self) -> Result<(), SqlError> {
        let now = self.clock.now();
        loop {
            let mut scene = self.scene(self.store.begin().await?, now);
            let due = scene.fire().await?;
            let Scene { work, .. } = scene;
            work.commit().await?;
            self.due = due;
            if due.is_none_or(|due| due > us(now.wall_ms)) {
                return Ok(());
            }
        }
    }

    /// Runs until told to stop, and then until the mailbox is empty.
    pub(super) async fn run(mut self, mut mailbox: mpsc::Receiver<Mail>, stop: CancellationToken) {
        let mut batch = Vec::new();
        let mut sweep_at = self.clock.now().monotonic.saturating_add(SWEEP_EVERY);
        loop {
            let wake_at = self.wake_at(sweep_at);
            tokio::select! {
                biased;
                // What the last batch left over is done first, and at once.
                () = std::future::ready(()), if !batch.is_empty() => {}
                taken = mailbox.recv_many(&mut batch, BATCH_MAX) => if taken == 0 { break },
                () = stop.cancelled() => break,
                () = self.clock.sleep_until(Some(wake_at)) => {}
            }
            let now = self.clock.now();
            if now.monotonic >= sweep_at {
                sweep_at = now.monotonic.saturating_add(SWEEP_EVERY);
                self.gate.tidy();
                self.house.failures.tidy(&self.settings.lockout, now.monotonic);
                self.house.reads.tidy(now.monotonic);
            }
            let worked = AssertUnwindSafe(self.work(&mut batch, now)).catch_unwind().await;
            let failed = match &worked {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_panic) => Some("a panic".to_owned()),
            };
            if let Some(error) = failed {
                error!(%error, "all connections end");
                batch.clear();
                let failures = std::mem::take(&mut self.house.failures);
                for (_, session) in std::mem::take(&mut self.house).sessions {
                    session.wire.cut();
                }
                // Nobody is forgiven because we failed.
                self.house.failures = failures;
                // Not at once: what fails may fail again.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        self.store.close().await;
    }

    fn wake_at(&self, sweep_at: Duration) -> Duration {
        let now = self.clock.now();
        let due = self.due.map(|due| {
            let wait_us = u64::try_from(due.saturating_sub(us(now.wall_ms))).unwrap_or_default();
            // Whole milliseconds are what the clock counts.
            let wait = Duration::from_millis(wait_us.div_ceil(1_000));
            now.monotonic.saturating_add(wait.min(SLEEP_MAX))
        });
        [due, self.house.next_task()].into_iter().flatten().fold(sweep_at, Duration::min)
    }

    fn scene(&mut self, work: Work, now: Now) -> Scene<'_> {
        let (settings, gate, house) = (&self.settings, &*self.gate, &mut self.house);
        Scene { work, house, settings, gate, now, says: Vec::new(), due: None }
    }

    async fn work(&mut self, batch: &mut Vec<Mail>, now: Now) -> Result<(), SqlError> {
        // Before anything can fail: who is in it is cut then.
        for mail in batch.iter() {
            if let Mail::Asked(asked) = mail {
                let session = || Session::new(asked.wire.clone(), asked.who);
                self.house.sessions.entry(asked.conn).or_insert_with(session);
            }
        }
        let mut outs = Vec::new();
        let mut due = self.due;
        let is_stopping = self.shutdown.is_cancelled();
        let is_due = due.is_some_and(|due| due <= us(now.wall_ms));
        let mut scene = self.scene(self.store.begin().await?, now);
        if is_due {
            scene.work.mark().await?;
            let fired = guarded(async { Ok(scene.fire().await?) }).await;
            scene.settle(fired.is_ok()).await?;
            due = fired.unwrap_or_else(|_| {
                error!("what is due could not be done, and is tried again");
                Some(us(now.plus(SLEEP_MAX).wall_ms))
            });
            outs.extend(scene.says.drain(..).map(Out::Say));
        }
        let mut said = 0_usize;
        for _ in 0..TASKS_MAX {
            let Some((conn, task)) = scene.house.due(now.monotonic) else { break };
            scene.work.mark().await?;
            let done = guarded(scene.perform(conn, task)).await;
            scene.settle(done.is_ok()).await?;
            said = scene.says.iter().fold(said, |said, say| said.saturating_add(say.said.get().len()));
            outs.extend(scene.says.drain(..).map(Out::Say));
            if said >= ANSWERS_MAX {
                break;
            }
        }
        let (mut mails, mut answers) = (std::mem::take(batch).into_iter(), 0_usize);
        while answers < ANSWERS_MAX
            && let Some(mail) = mails.next()
        {
            match mail {
                Mail::Asked(asked) => {
                    let Asked { conn, wire, event, ack, heard, .. } = *asked;
                    if let Some(invitations) = scene.house.proven(conn) {
                        scene.work.mark().await?;
                        let done = guarded(scene.perform(conn, Task::Received(invitations))).await;
                        scene.settle(done.is_ok()).await?;
                    }
                    scene.work.mark().await?;
                    let answer = guarded(scene.asked(conn, &event, heard)).await;
                    scene.settle(answer.is_ok()).await?;
                    count(&answer);
                    let answer = Envelope::from(answer);
                    answers = answers.saturating_add(answer.result.get().len());
                    scene.house.had(conn, answer.result.get().len(), now.monotonic);
                    outs.push(Out::Answer(wire, ack, answer));
                }
                Mail::Left(conn, heard) => {
                    scene.work.mark().await?;
                    let left = guarded(scene.left(conn)).await;
                    scene.settle(left.is_ok()).await?;
                    scene.house.forget(conn);
                    if is_stopping {
                        // Everybody goes: to tell all of all is work that nobody hears.
                        scene.says.clear();
                    }
                    outs.extend(heard.map(Out::Answered));
                }
            }
            outs.extend(scene.says.drain(..).map(Out::Say));
        }
        let Scene { work, due: sooner, .. } = scene;
        work.commit().await?;
        *batch = mails.collect();
        self.due = [due, sooner].into_iter().flatten().min();
        for out in outs {
            match out {
                // Cut when it does not fit, and its worker tells us that it left.
                Out::Answer(wire, ack, answer) => drop(spoken(&wire, || wire.answer(ack, &answer))),
                Out::Say(say) => self.speak(&say),
                Out::Answered(heard) => drop(heard.send(())),
            }
        }
        Ok(())
    }

    fn speak(&self, Say { to, notice, said }: &Say) {
        for conn in to {
            if let Some(session) = self.house.sessions.get(conn)
                && spoken(&session.wire, || session.wire.say(notice.name(), said))
                && *notice == Notice::Message
            {
                metrics::get().chat_delivered.of(Room::Dm).increment(1);
            }
        }
    }
}

/// Says something. Who it was for is cut when that panics: it is kept, and he missed it, and nobody else did.
fn spoken(wire: &Wire, speaks: impl FnOnce() -> bool) -> bool {
    catch_unwind(AssertUnwindSafe(speaks)).unwrap_or_else(|_panic| {
        error!("speaking to a client panicked, and it is disconnected");
        wire.cut();
        false
    })
}

/// What came of a use case, also when it panicked: then there is an answer all the same.
async fn guarded<T>(use_case: impl Future<Output = Result<T, Halt>>) -> Result<T, Refusal> {
    match AssertUnwindSafe(use_case).catch_unwind().await {
        Ok(Ok(told)) => Ok(told),
        Ok(Err(Halt::Refused(refusal))) => Err(refusal),
        Ok(Err(Halt::Store(error))) => {
            error!(%error, "a request failed");
            Err(Code::Internal.into())
        }
        Err(_panic) => {
            error!("a request panicked");
            Err(Code::Internal.into())
        }
    }
}

fn count(answer: &Result<Box<RawValue>, Refusal>) {
    let answered = match answer {
        Ok(_) => DmAnswer::Done,
        Err(Refusal { code: Code::Internal, .. }) => DmAnswer::Failed,
        Err(Refusal { code: Code::RateLimited, .. }) => DmAnswer::TooFast,
        Err(_) => DmAnswer::Refused,
    };
    metrics::get().dm_requests.of(answered).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::dm::wire::raw;

    #[tokio::test]
    async fn a_use_case_that_panics_is_answered() {
        let panics = guarded::<()>(async { panic!("on purpose") }).await;
        assert_eq!(panics.unwrap_err().code, Code::Internal);
        assert_eq!(guarded(async { Ok(raw(&1)) }).await.unwrap().get(), "1");
        let damaged = guarded::<()>(async { Err(Halt::Store(SqlError::Damaged("on purpose"))) }).await;
        assert_eq!(damaged.unwrap_err().code, Code::Internal);
    }

    #[test]
    fn who_cannot_be_spoken_to_ended_the_room() {
        let (one, other) = (Wire::to_nobody(), Wire::to_nobody());
        assert!(!spoken(&one, || panic!("on purpose")) && spoken(&other, || true));
        assert!(one.is_cut() && !other.is_cut());
    }
}
