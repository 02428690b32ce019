//! The task that decides: takes what waits in its mailbox, lets each use case read, decide and write, keeps all of it in one
//! transaction, and only then speaks.
//!
//! Being one task, it is the critical section that the protocol needs: a message gets its number, is kept and put into the
//! lines of all who hear it before the next one is looked at, so numbers rise on every connection. While a transaction is
//! being synced, packets pile up for the next: the more there is to do, the less a sync costs each.
//!
//! When the store fails, nothing of the batch was said, and every connection ends: clients come back and are told what is
//! kept. Use cases look before they write, so one that finds its packet out of the protocol has changed nothing for the others. One that
//! finds a damaged row may have: what it wrote is taken back, and who asked is disconnected alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tracing::{debug, error, info};

use super::connection::Hello;
use super::files::FileAsk;
use super::gate::Gate;
use super::outbox::{Item, Outbox};
use super::scene::{Halt, Out, Scene, Settings, Told, told};
use super::{Config, MailHook, PushHook};
use crate::chat::skynet::state::ConnId;
use crate::chat::skynet::state::presence::Presence;
use crate::chat::skynet::state::wakes::Wakes;
use crate::chat::skynet::store::{Store, StoreError};
use crate::chat::skynet::wire::{AccountId, FromClient, SessionId};
use crate::time::Clock;

/// What may wait for the actor. Whoever finds it full waits, and stops reading from its socket.
pub(super) const MAILBOX_MAX: usize = 4_096;
/// What is decided and kept at once, at most.
const BATCH_MAX: usize = 256;
/// How often what is too old is looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(600);

/// What connections and doors tell the actor.
#[derive(Debug)]
pub(super) enum Mail {
    Said {
        conn: ConnId,
        hello: Hello,
        packet: FromClient,
        outbox: Arc<Outbox>,
        answer: oneshot::Sender<Answer>,
    },
    Left(ConnId),
    /// A token, which is only looked at unless `confirm`.
    Confirm {
        token: String,
        confirm: bool,
        answer: oneshot::Sender<Confirmed>,
    },
    Unreachable(SessionId),
    File(FileAsk),
    /// Answered when everything is said that was decided before.
    AllSaid(oneshot::Sender<()>),
}

/// What became of a packet, for the connection it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Stay,
    /// A session is bound to the connection now.
    Authenticated(AccountId),
    /// Nothing more is to be said.
    Over,
    Violation(&'static str),
}

/// What became of a token out of a mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Confirmed {
    /// The address is the account's name now.
    Done {
        /// Which.
        address: String,
    },
    /// It was already.
    Already {
        /// Which.
        address: String,
    },
    /// It waits for that: the token was only looked at.
    Pending {
        /// Which.
        address: String,
    },
    /// No such token, or it is too old.
    Invalid,
}

#[derive(Debug)]
pub(super) struct Actor {
    settings: Settings,
    store: Store,
    clock: Clock,
    mail: Arc<dyn MailHook>,
    gate: Arc<Gate>,
    push: Arc<dyn PushHook>,
    presence: Presence,
    wakes: Wakes,
    outboxes: HashMap<ConnId, Arc<Outbox>>,
    /// Whether who was here went without a word: after a start, and when everybody was cut.
    unsaid: bool,
    /// Told when there are files whose bytes can be removed.
    let_go: Arc<Notify>,
}

impl Actor {
    pub(super) fn new(config: Config, store: Store, clock: Clock, gate: Arc<Gate>, let_go: Arc<Notify>) -> Self {
        let Config { settings, mail, push, .. } = config;
        let (presence, wakes, outboxes) = (Presence::default(), Wakes::default(), HashMap::new());
        Self { settings, store, clock, mail, gate, push, presence, wakes, outboxes, unsaid: true, let_go }
    }

    /// Runs until everybody who could send mail is gone.
    pub(super) async fn run(mut self, mut mailbox: mpsc::Receiver<Mail>) {
        let mut batch = Vec::new();
        let mut sweep_at = self.clock.now().monotonic;
        loop {
            tokio::select! {
                taken = mailbox.recv_many(&mut batch, BATCH_MAX) => if taken == 0 { break },
                () = self.clock.sleep_until(Some(self.wakes.next_deadline().map_or(sweep_at, |due| due.min(sweep_at)))) => {}
            }
            let now = self.clock.now();
            let sweep = now.monotonic >= sweep_at;
            if sweep {
                sweep_at = now.monotonic.saturating_add(SWEEP_EVERY);
                self.gate.tidy();
            }
            if let Err(error) = self.work(&mut batch, sweep).await {
                error!(%error, "all connections end");
                batch.clear();
                (self.presence, self.wakes, self.unsaid) = (Presence::default(), Wakes::default(), true);
                for (_, outbox) in self.outboxes.drain() {
                    outbox.cut();
                }
            }
        }
        self.store.close().await;
    }

    async fn work(&mut self, batch: &mut Vec<Mail>, sweep: bool) -> Result<(), StoreError> {
        let now = self.clock.now();
        let work = self.store.begin().await?;
        let mut scene = Scene {
            work,
            presence: &mut self.presence,
            wakes: &mut self.wakes,
            settings: &self.settings,
            gate: &self.gate,
            now_ms: now.wall_ms,
            monotonic: now.monotonic,
            out: Vec::new(),
            letters: Vec::new(),
            woken: Vec::new(),
        };
        let mut tells: Vec<Told> = Vec::new();
        if self.unsaid {
            let mark = scene.mark().await?;
            let done = scene.tell_absent().await;
            scene.unless_damaged(mark, done).await?;
        }
        if sweep {
            let mark = scene.mark().await?;
            let done = scene.sweep().await;
            scene.unless_damaged(mark, done).await?;
        }
        for mail in batch.drain(..) {
            let mark = scene.mark().await?;
            let done = deal_with(&mut scene, &mut self.outboxes, mail).await;
            tells.extend(scene.unless_damaged(mark, done).await?.flatten());
        }
        // Behind the batch: what acknowledges may be in it.
        for account in scene.wakes.due(now.monotonic) {
            let mark = scene.mark().await?;
            let done = scene.wake(account).await;
            scene.unless_damaged(mark, done).await?;
        }
        let Scene { work, out, letters, woken, .. } = scene;
        let let_go = work.commit().await?;
        self.unsaid = false;
        // Also those that could not be removed when they were let go.
        if let_go || sweep {
            self.let_go.notify_one();
        }
        for said in out {
            self.speak(said);
        }
        for letter in letters {
            if self.gate.may_mail(&letter.to) {
                self.mail.send(letter);
            } else {
                debug!("a mail too many is not sent");
            }
        }
        for wake in woken {
            self.push.wake(wake);
        }
        for tell in tells {
            tell();
        }
        Ok(())
    }

    fn speak(&self, out: Out) {
        let with = |conn: ConnId, say: &dyn Fn(&Outbox)| {
            if let Some(outbox) = self.outboxes.get(&conn) {
                say(outbox);
            }
        };
        match out {
            Out::Say(conn, item) => with(conn, &|outbox| {
                if !outbox.put(Item::clone(&item)) {
                    info!("a client does not read what others say, and is disconnected");
                }
            }),
            Out::Close(conn) => with(conn, &Outbox::close),
            Out::Cut(conn) => with(conn, &|outbox| {
                debug!("a connection was replaced, or its account deleted");
                outbox.cut();
            }),
        }
    }
}

/// Returns what is to be said to who waits for it. Dropped with an error, it is the end of that connection or request.
async fn deal_with(
    scene: &mut Scene<'_>,
    outboxes: &mut HashMap<ConnId, Arc<Outbox>>,
    mail: Mail,
) -> Result<Option<Told>, StoreError> {
    Ok(match mail {
        Mail::Said { conn, hello, packet, outbox, answer } => {
            outboxes.entry(conn).or_insert(outbox);
            let said = match scene.said(conn, &hello, packet).await {
                Ok(said) => said,
                Err(Halt::Violation(why)) => Answer::Violation(why),
                Err(Halt::Store(error)) => return Err(error),
            };
            Some(told(answer, said))
        }
        Mail::Left(conn) => {
            outboxes.remove(&conn);
            scene.left(conn).await?;
            None
        }
        Mail::Unreachable(session) => {
            scene.drop_session(session).await?;
            None
        }
        Mail::Confirm { token, confirm, answer } => Some(told(answer, scene.confirm(&token, confirm).await?)),
        Mail::File(ask) => Some(scene.file(ask).await?),
        Mail::AllSaid(answer) => Some(told(answer, ())),
    })
}
