//! The task that decides: takes what waits in its mailbox, lets [`State`] decide, writes everything in one transaction,
//! and only then speaks.
//!
//! While one transaction is being synced, inputs pile up for the next: the more there is to do, the less a sync costs
//! each. When the store fails, nothing of the batch has been said, all connections are ended, and deciding begins anew
//! from what the store has: memory is never ahead of what was promised.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use super::PushHook;
use super::outbox::Outbox;
use crate::chat::csp::state::{
    ConnId, Ending, FetchId, Input, Join, Limits, Notice, Request, Say, Seq, Standing, State, Step, Write,
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
    Written { receiver: Identity, seq: Seq },
    Left(ConnId),
    Alert { identity: Identity, text: String },
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
        let known = self.prepare(batch).await?;
        for mail in batch.drain(..) {
            let input = self.input(mail, &known);
            append(&mut step, self.state.handle(self.clock.now(), input));
        }
        loop {
            self.keep(&step.writes).await?;
            let fetches = self.speak(step.says);
            if fetches.is_empty() {
                return Ok(());
            }
            step = Step::default();
            for (receiver, fetch, seqs) in fetches {
                let through = seqs.last().copied().unwrap_or_default();
                let messages = self.store.messages(&seqs).await?;
                let input = Input::Fetched { receiver, fetch, through, messages };
                append(&mut step, self.state.handle(self.clock.now(), input));
            }
        }
    }

    /// Reads what the batch needs to be decided: which receivers there are, and the mailboxes that sleep.
    async fn prepare(&mut self, batch: &[Mail]) -> Result<HashSet<Identity>, StoreError> {
        let receivers = batch.iter().filter_map(|mail| match mail {
            Mail::Message { message, .. } => message.receiver.valid(),
            _ => None,
        });
        let known = self.store.directory().active(&receivers.collect()).await?;
        let joining = batch.iter().filter_map(|mail| match mail {
            Mail::Join { join, .. } => Some(join.identity),
            _ => None,
        });
        for identity in joining.chain(known.iter().copied()) {
            if !self.state.is_awake(identity) {
                let kept = self.store.kept(identity).await?;
                self.state.wake(self.clock.now(), identity, kept);
            }
        }
        Ok(known)
    }

    fn input(&mut self, mail: Mail, known: &HashSet<Identity>) -> Input {
        match mail {
            Mail::Join { join, outbox } => {
                self.outboxes.insert(join.conn, outbox);
                Input::Join(join)
            }
            Mail::Message { conn, message } => {
                let is_known = message.receiver.valid().is_some_and(|receiver| known.contains(&receiver));
                metrics::get().chat_accepted.of(Room::Csp).increment(1);
                let receiver = if is_known { Standing::Active } else { Standing::Unknown };
                Input::Message { conn, message, receiver }
            }
            Mail::Request { conn, request } => Input::Request { conn, request },
            Mail::Written { receiver, seq } => Input::Written { receiver, seq },
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

    /// Says everything but the fetches, which are returned: they are for the store.
    fn speak(&mut self, says: Vec<Say>) -> Vec<(Identity, FetchId, Vec<Seq>)> {
        let mut fetches = Vec::new();
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
                Say::End(conn, ending) => {
                    self.with(conn, |outbox| outbox.end(ending));
                    self.outboxes.remove(&conn);
                }
                Say::Fetch { receiver, fetch, seqs } => fetches.push((receiver, fetch, seqs)),
                Say::Push(request) => self.push.push(request),
                Say::Notice(notice) => tell(&notice),
            }
        }
        fetches
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
        Notice::Discarded { sender, why } => {
            discarded.increment(1);
            debug!(sender = %sender.log_id(), ?why, "message acked and discarded");
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
