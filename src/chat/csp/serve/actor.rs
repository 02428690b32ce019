//! The task that decides: takes what waits in its mailbox, lets [`State`] decide, writes everything in one transaction,
//! and only then speaks.
//!
//! While one transaction is being synced, inputs pile up for the next: the more there is to do, the less a sync costs
//! each. When the store fails, nothing of the batch has been said, all connections are ended, and deciding begins anew
//! from what the store has: memory is never ahead of what was promised.
//!
//! The directory is changed by other processes. Everybody a batch is about, whoever sends, receives or logs in, is looked
//! up with one query before anything of it is decided, so that nothing a revoked identity says after its revocation is
//! taken, and nothing reaches it. Who is connected and silent is looked up once a minute. *Rejected*: a poll of
//! SQLite's `data_version`, which the server's own commits move as well, and which no other engine has.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use super::PushHook;
use super::outbox::Outbox;
use crate::chat::csp::state::{
    AlertText, ConnId, Discard, Ending, FetchId, Input, Join, Limits, Notice, Request, Say, Seq, Standing, State, Step,
    Write,
};
use crate::chat::csp::store::{Store, StoreError};
use crate::chat::csp::wire::{Identity, Message, ToClient};
use crate::metrics::{self, Room};
use crate::time::Clock;

/// What may wait for the actor. Whoever finds it full waits, and stops reading from its socket.
pub(super) const MAILBOX_MAX: usize = 4_096;
/// What is decided and written at once, at most.
const BATCH_MAX: usize = 1_024;

/// What connections tell the actor.
#[derive(Debug)]
pub(super) enum Mail {
    Join { join: Join, outbox: Arc<Outbox> },
    Message { conn: ConnId, message: Message },
    Request { conn: ConnId, request: Request },
    Written { conn: ConnId, seq: Seq },
    Left(ConnId),
    Alert { identity: Identity, text: AlertText },
}

/// What only the store can answer.
#[derive(Debug)]
enum Question {
    Messages { receiver: Identity, fetch: FetchId, seqs: Vec<Seq> },
    Standing(Vec<Identity>),
}

#[derive(Debug)]
pub(super) struct Actor {
    state: State,
    limits: Limits,
    store: Store,
    clock: Clock,
    push: Arc<dyn PushHook>,
    outboxes: HashMap<ConnId, Arc<Outbox>>,
}

impl Actor {
    pub(super) fn new(limits: Limits, store: Store, next_seq: Seq, clock: Clock, push: Arc<dyn PushHook>) -> Self {
        let state = State::new(clock.now(), limits, next_seq);
        Self { state, limits, store, clock, push, outboxes: HashMap::new() }
    }

    /// Runs until everybody who could send mail is gone.
    pub(super) async fn run(mut self, mut mailbox: mpsc::Receiver<Mail>) {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                taken = mailbox.recv_many(&mut batch, BATCH_MAX) => if taken == 0 { break },
                () = self.clock.sleep_until(self.state.next_deadline()) => {}
            }
            if let Err(error) = self.work(&mut batch).await {
                error!(%error, "the CSP store failed; all connections end");
                self.start_anew(batch.drain(..));
            }
        }
        self.store.close().await;
    }

    async fn work(&mut self, batch: &mut Vec<Mail>) -> Result<(), StoreError> {
        // Deadlines first: what has expired is not to be sent any more, and no mailbox may fall asleep between being
        // woken for an input and that input.
        let mut step = self.state.handle(self.clock.now(), Input::Tick);
        let (active, revoked) = self.prepare(batch).await?;
        for identity in revoked {
            append(&mut step, self.state.handle(self.clock.now(), Input::Revoked(identity)));
        }
        for mail in batch.drain(..) {
            let input = self.input(mail, &active);
            append(&mut step, self.state.handle(self.clock.now(), input));
        }
        loop {
            self.keep(&step.writes).await?;
            let questions = self.speak(step.says);
            if questions.is_empty() {
                return Ok(());
            }
            step = Step::default();
            for question in questions {
                for input in self.answer(question).await? {
                    append(&mut step, self.state.handle(self.clock.now(), input));
                }
            }
        }
    }

    async fn answer(&self, question: Question) -> Result<Vec<Input>, StoreError> {
        match question {
            Question::Messages { receiver, fetch, seqs } => {
                let through = seqs.last().copied().unwrap_or_default();
                let messages = self.store.messages(&seqs).await?;
                Ok(vec![Input::Fetched { receiver, fetch, through, messages }])
            }
            Question::Standing(identities) => {
                let asked = identities.into_iter().collect();
                let active = self.store.directory().active(&asked).await?;
                Ok(asked.difference(&active).copied().map(Input::Revoked).collect())
            }
        }
    }

    /// Reads what the batch needs to be decided: of those it is about, who is active and who is not, and the mailboxes
    /// that sleep.
    async fn prepare(&mut self, batch: &[Mail]) -> Result<(HashSet<Identity>, Vec<Identity>), StoreError> {
        let (mut about, mut to_wake) = (HashSet::new(), HashSet::new());
        for mail in batch {
            match mail {
                Mail::Join { join, .. } => to_wake.extend([join.identity]),
                Mail::Message { conn, message } => {
                    about.extend(self.state.identity(*conn));
                    to_wake.extend(message.receiver.valid());
                }
                Mail::Request { conn, .. } => about.extend(self.state.identity(*conn)),
                Mail::Written { .. } | Mail::Left(_) | Mail::Alert { .. } => {}
            }
        }
        about.extend(&to_wake);
        let active = self.store.directory().active(&about).await?;
        for identity in to_wake.intersection(&active).copied() {
            if !self.state.is_awake(identity) {
                let kept = self.store.kept(identity).await?;
                self.state.wake(self.clock.now(), identity, kept);
            }
        }
        let revoked = about.difference(&active).copied().collect();
        Ok((active, revoked))
    }

    fn input(&mut self, mail: Mail, active: &HashSet<Identity>) -> Input {
        let standing = |who: Option<Identity>| match who {
            Some(who) if active.contains(&who) => Standing::Active,
            _ => Standing::Unknown,
        };
        match mail {
            Mail::Join { join, outbox } => {
                self.outboxes.insert(join.conn, outbox);
                let standing = standing(Some(join.identity));
                Input::Join { join, standing }
            }
            Mail::Message { conn, message } => {
                metrics::get().chat_accepted.of(Room::Csp).increment(1);
                let receiver = standing(message.receiver.valid());
                Input::Message { conn, message, receiver }
            }
            Mail::Request { conn, request } => Input::Request { conn, request },
            Mail::Written { conn, seq } => Input::Written { conn, seq },
            Mail::Left(conn) => {
                self.outboxes.remove(&conn);
                Input::Left(conn)
            }
            Mail::Alert { identity, text } => Input::Alert { identity, text },
        }
    }

    async fn keep(&self, writes: &[Write]) -> Result<(), StoreError> {
        if writes.is_empty() {
            return Ok(());
        }
        self.store.commit(writes).await?;
        let queued = writes.iter().filter(|write| matches!(write, Write::Enqueue { .. })).count();
        metrics::get().chat_queued.of(Room::Csp).increment(queued as u64);
        Ok(())
    }

    /// Says everything but the questions, which are returned: they are for the store.
    fn speak(&mut self, says: Vec<Say>) -> Vec<Question> {
        let mut questions = Vec::new();
        for say in says {
            match say {
                Say::Admit(conn, ack) => self.with(conn, |outbox| outbox.admit(ack)),
                Say::Send(conn, payload) => self.with(conn, |outbox| outbox.send(&payload)),
                Say::Deliver(conn, delivery) => {
                    metrics::get().chat_delivered.of(Room::Csp).increment(1);
                    self.with(conn, |outbox| outbox.deliver(delivery));
                }
                Say::QueueSendComplete(conn) => {
                    self.with(conn, |outbox| outbox.send_behind(&ToClient::QueueSendComplete));
                }
                Say::Retract(conn) => self.with(conn, Outbox::retract),
                Say::End(conn, ending) => {
                    self.with(conn, |outbox| outbox.end(ending));
                    self.outboxes.remove(&conn);
                }
                Say::Fetch { receiver, fetch, seqs } => questions.push(Question::Messages { receiver, fetch, seqs }),
                Say::LookUp(identities) => questions.push(Question::Standing(identities)),
                Say::Push(request) => self.push.push(request),
                Say::Notice(notice) => tell(&notice),
            }
        }
        questions
    }

    fn with(&self, conn: ConnId, say: impl FnOnce(&Outbox)) {
        if let Some(outbox) = self.outboxes.get(&conn) {
            say(outbox);
        }
    }

    fn start_anew(&mut self, undecided: impl Iterator<Item = Mail>) {
        for mail in undecided {
            if let Mail::Join { outbox, .. } = mail {
                outbox.end(Ending::Store);
            }
        }
        for (_, outbox) in self.outboxes.drain() {
            outbox.end(Ending::Store);
        }
        // Numbers given in vain are not given again.
        self.state = State::new(self.clock.now(), self.limits, self.state.next_seq());
    }
}

fn append(to: &mut Step, from: Step) {
    to.writes.extend(from.writes);
    to.says.extend(from.says);
}

/// The only place of the room that turns notices into log lines and numbers.
fn tell(notice: &Notice) {
    let discarded = metrics::get().chat_discarded.of(Room::Csp);
    match notice {
        Notice::Joined { identity, queued } => info!(identity = %identity.log_id(), queued, "logged in"),
        Notice::Discarded { sender, receiver, why } => {
            discarded.increment(1);
            match why {
                // The operator has to know whose messages are lost. Not once for each: anybody can send to a queue that is
                // full.
                Discard::QueueFull { so_far } if so_far.is_power_of_two() => {
                    let (sender, receiver) = (sender.log_id(), receiver.log_id());
                    warn!(%sender, %receiver, so_far, "queue full: message acked and discarded");
                }
                _ => {
                    debug!(sender = %sender.log_id(), receiver = %receiver.log_id(), ?why, "message acked and discarded");
                }
            }
        }
        Notice::Expired { receiver } => {
            discarded.increment(1);
            debug!(receiver = %receiver.log_id(), "queued message expired");
        }
        Notice::Missing { receiver } => {
            discarded.increment(1);
            warn!(receiver = %receiver.log_id(), "queued message not in the store any more");
        }
    }
}
