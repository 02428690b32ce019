//! The task that decides: takes what waits in its mailbox, lets [`State`] decide, and speaks.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::outbox::{Lag, Outbox, Verdict};
use super::pipe::Orders;
use crate::chat::chatos::state::{ConnId, Ending, Input, Notice, Say, State};
use crate::chat::chatos::wire::PrivateId;
use crate::log::{LogId, Who};
use crate::metrics::{self, Login, Room};
use crate::time::Clock;

/// What may wait for the actor. Whoever finds it full waits, and stops reading from its socket.
pub(super) const MAILBOX_MAX: usize = 4_096;
/// What is taken at once, at most.
const BATCH_MAX: usize = 256;

/// What connections tell the actor.
#[derive(Debug)]
pub(super) enum Mail {
    Opened {
        conn: ConnId,
        ip: IpAddr,
        outbox: Arc<Outbox>,
    },
    Input(Input),
    /// Whose sender waits until that was handled.
    Awaited(Input, oneshot::Sender<()>),
}

#[derive(Debug)]
pub(super) struct Actor {
    state: State,
    clock: Clock,
    outboxes: HashMap<ConnId, Arc<Outbox>>,
    pipes: HashMap<PrivateId, CancellationToken>,
    lag: Arc<Lag>,
}

impl Actor {
    pub(super) fn new(state: State, clock: Clock, lag: Arc<Lag>) -> Self {
        Self { state, clock, outboxes: HashMap::new(), pipes: HashMap::new(), lag }
    }

    /// Runs until everybody who could send mail is gone.
    pub(super) async fn run(mut self, mut mailbox: mpsc::Receiver<Mail>, stop: CancellationToken) {
        let mut batch = Vec::new();
        let mut stopping = false;
        loop {
            tokio::select! {
                taken = mailbox.recv_many(&mut batch, BATCH_MAX) => if taken == 0 { break },
                () = self.clock.sleep_until(self.state.next_deadline()) => {}
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    self.decide(Input::Stop);
                }
            }
            for mail in batch.drain(..) {
                // What follows from one mail fits into what is left of every queue that does not lag.
                self.lag.over().await;
                match mail {
                    Mail::Opened { conn, ip, outbox } => {
                        self.outboxes.insert(conn, outbox);
                        self.decide(Input::Opened { conn, ip });
                    }
                    Mail::Input(input) => {
                        if let Input::PipeOver(id) = &input {
                            self.pipes.remove(id);
                        }
                        self.decide(input);
                    }
                    Mail::Awaited(input, handled) => {
                        self.decide(input);
                        // A connection that was ended meanwhile does not wait any more.
                        let _gone = handled.send(());
                    }
                }
                tokio::task::yield_now().await;
            }
            self.decide(Input::Tick);
        }
    }

    fn decide(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let step = self.state.handle(self.clock.now(), input);
            for say in step.says {
                if let Some(conn) = self.say(say) {
                    inputs.push(Input::Over { conn, why: Ending::QueueFull });
                }
            }
        }
    }

    /// Says it; names a connection that there was no room for.
    fn say(&mut self, say: Say) -> Option<ConnId> {
        match say {
            Say::Send(conn, packet) => {
                let full = self.outboxes.get(&conn).is_some_and(|outbox| outbox.put(packet).is_err());
                return full.then_some(conn);
            }
            Say::End(conn, ending, farewell) => {
                if farewell.is_some() && !matches!(ending, Ending::Refused { .. }) {
                    metrics::get().chatos_errors.increment(1);
                }
                if let Some(outbox) = self.outboxes.remove(&conn) {
                    outbox.decide(Verdict::End(ending), farewell);
                }
            }
            Say::Couple { first, second, id, established } => {
                let (give, take) = oneshot::channel();
                let close = CancellationToken::new();
                self.pipes.insert(id, close.clone());
                let verdicts =
                    [(first, Verdict::Take(take, Orders { id, established, close })), (second, Verdict::Give(give))];
                for (conn, verdict) in verdicts {
                    if let Some(outbox) = self.outboxes.remove(&conn) {
                        outbox.decide(verdict, None);
                    }
                }
            }
            Say::ClosePipe(id) => {
                if let Some(close) = self.pipes.get(&id) {
                    close.cancel();
                }
            }
            Say::Notice(notice) => tell(&notice),
        }
        None
    }
}

/// The only place of the room that turns notices into log lines and numbers.
fn tell(notice: &Notice) {
    let metrics = metrics::get();
    let logins = metrics.chat_logins.of(Room::ChatOs);
    let log_id = |name: &str| LogId::of(Who::Account(name.as_bytes()));
    match notice {
        Notice::LoggedIn { name } => {
            logins.of(Login::Accepted).increment(1);
            info!(name = %log_id(name), "logged in");
        }
        Notice::Joined => logins.of(Login::Accepted).increment(1),
        Notice::Left { name, why } => {
            if why.cuts() {
                metrics.chatos_cut.increment(1);
            }
            info!(name = %log_id(name), %why, "connection ended");
        }
        Notice::Refused { why } => {
            logins.of(counted_as(why)).increment(1);
            debug!(%why, "not let in");
        }
        Notice::Message { receivers } => {
            metrics.chat_accepted.of(Room::ChatOs).increment(1);
            match receivers {
                0 => metrics.chat_discarded.of(Room::ChatOs).increment(1),
                some => metrics.chat_delivered.of(Room::ChatOs).increment(*some as u64),
            }
        }
        Notice::Ignored { name, opcode } => debug!(name = %log_id(name), opcode, "ignored"),
        Notice::Established => debug!("a private connection is established"),
    }
}

/// How a connection that never got anywhere counts.
const fn counted_as(why: &Ending) -> Login {
    match why {
        Ending::Refused { .. } | Ending::Malformed(_) | Ending::ForeignSender | Ending::BadId | Ending::Full => {
            Login::Refused
        }
        Ending::NoLogin | Ending::PacketStalled | Ending::Inactive | Ending::Unjoined => Login::TimedOut,
        Ending::Gone
        | Ending::Broken
        | Ending::QueueFull
        | Ending::WriteStalled
        | Ending::PartnerGone
        | Ending::ShuttingDown => Login::Lost,
    }
}
