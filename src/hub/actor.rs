//! One group that is awake: take what has gathered, decide, keep, speak.
//!
//! All writes of a batch are kept in one commit before any payload of that batch is put into an outbox. If the commit
//! fails, nothing is said at all: the actor ends, every session of the group finds its outbox closed and ends with 1011,
//! and the next join reads the group from the store again. So memory is never ahead of what was promised.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{mpsc, oneshot, watch};

use super::seat::{Line, Outgoing, answers};
use super::{Heart, Inspection, JoinError, Shared, notices};
use crate::group::limits::PAGE_COST;
use crate::group::record::Seq;
use crate::group::{Act, ConnectionId, Farewell, Group, Input, Introduction, Limits, Notice, Step};
use crate::metrics::{self, Presence};
use crate::store::{Standing, StoreError, Taken, Tenure};
use crate::wire::d2m::{DeviceGroupId, DeviceId, ToDevice};

/// Inputs that are decided together at most.
const BATCH: usize = 128;

/// What may lie in a group's mailbox.
#[derive(Debug)]
pub(super) enum Post {
    /// Rare and large, so not in line with the others.
    Join(Box<Join>),
    Input(Input),
    /// As rare.
    Ask(Box<Ask>),
}

#[derive(Debug)]
pub(super) struct Join {
    pub(super) conn: ConnectionId,
    pub(super) introduction: Introduction,
    pub(super) line: Line,
    /// Answered when the group knows of the connection; dropped when it has to look for the group again.
    pub(super) seated: oneshot::Sender<Result<(), JoinError>>,
}

/// An operator's question or wish.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) wish: Wish,
    /// Answered when what was wished is kept; dropped when it has to look for the group again.
    pub(super) answer: oneshot::Sender<Result<Answer, JoinError>>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Wish {
    Look,
    Remove(DeviceId),
    Kick(DeviceId),
    /// Everybody is to go on at another node.
    MoveOut,
}

/// Whether there was what the wish was about, and the group afterwards.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) found: bool,
    pub(super) inspection: Inspection,
}

#[derive(Debug)]
pub(super) struct Actor {
    id: DeviceGroupId,
    shared: Arc<Shared>,
    own_mailbox: mpsc::WeakSender<Post>,
    posts: mpsc::Receiver<Post>,
    group: Group,
    /// `None`: no other node can have it.
    tenure: Option<Tenure>,
    /// Another node is to have it: nobody is seated any more.
    moves: bool,
    /// Nothing was kept of it, and nobody joined yet.
    unborn: bool,
    limits: watch::Receiver<Limits>,
    lines: BTreeMap<ConnectionId, Line>,
    /// Stretches of backlog to be read, one per connection at most.
    reads: VecDeque<Read>,
    /// Operators who wait until what was decided is kept, and whether there was what they asked for.
    asked: Vec<(bool, oneshot::Sender<Result<Answer, JoinError>>)>,
    pulse: Arc<Heart>,
    /// As operators were told.
    lock_is_held: bool,
}

#[derive(Debug)]
struct Read {
    conn: ConnectionId,
    after: Seq,
    through: Seq,
}

impl Actor {
    pub(super) async fn run(
        id: DeviceGroupId,
        shared: Arc<Shared>,
        own_mailbox: mpsc::WeakSender<Post>,
        mut posts: mpsc::Receiver<Post>,
        pulse: Arc<Heart>,
    ) {
        let limits = shared.limits.subscribe();
        let now_hold = limits.borrow().clone();
        let taken = match shared.store.take(id).await {
            Ok(Taken::Alone) => Ok(None),
            Ok(Taken::Here(tenure)) => Ok(Some(tenure)),
            Ok(Taken::Elsewhere(owner)) => {
                Self::refuse(&shared, id, &mut posts, &JoinError::Elsewhere(owner)).await;
                return;
            }
            Err(error) => Err(error),
        };
        // What another node has is not awake here.
        let counters = metrics::get();
        let _awake = Presence::new(&counters.groups_awake, Some(&counters.groups_woken), Some(&counters.groups_slept));
        let woken = match taken {
            Ok(tenure) => shared.store.load(id).await.map(|snapshot| (tenure, snapshot)),
            Err(error) => Err(error),
        };
        let (tenure, group, unborn) = match woken {
            Ok((tenure, Some(snapshot))) => (tenure, Group::restore(shared.clock.now(), snapshot, now_hold), false),
            Ok((tenure, None)) => (tenure, Group::empty(now_hold), true),
            Err(error) => {
                if error == StoreError::Lost {
                    tracing::debug!(group = %id, "a group could not be woken: this node has no lease");
                } else {
                    tracing::error!(group = %id, %error, "a group could not be woken");
                    notices::failed(false);
                }
                Self::refuse(&shared, id, &mut posts, &error.into()).await;
                return;
            }
        };
        let (lines, reads) = (BTreeMap::new(), VecDeque::new());
        let mut actor = Self {
            id,
            shared,
            own_mailbox,
            posts,
            group,
            tenure,
            moves: false,
            unborn,
            limits,
            lines,
            reads,
            asked: Vec::new(),
            pulse,
            lock_is_held: false,
        };
        if let Err(error) = actor.live().await {
            // Everything that was decided and not kept is forgotten with `actor`; its lines close without a farewell, unless
            // another node will know better.
            match &error {
                StoreError::Lost => {
                    tracing::warn!(group = %id, "a group was lost to another node");
                    notices::lost(actor.lock_is_held);
                    actor.move_out().await;
                }
                // It goes on as soon as the database does, here or at another node.
                StoreError::Failed(_) if actor.tenure.is_some() => {
                    tracing::error!(group = %id, %error, "a group could not keep what it decided");
                    notices::failed(actor.lock_is_held);
                    actor.move_out().await;
                }
                error => {
                    tracing::error!(group = %id, %error, "a group could not keep what it decided");
                    notices::failed(actor.lock_is_held);
                }
            }
            let error = error.into();
            for (_, answer) in actor.asked.drain(..) {
                let _gone = answer.send(Err(JoinError::clone(&error)));
            }
            Self::refuse(&actor.shared, id, &mut actor.posts, &error).await;
        }
    }

    /// Takes the group out of the index and answers whoever still waits in the mailbox.
    async fn refuse(shared: &Shared, id: DeviceGroupId, posts: &mut mpsc::Receiver<Post>, error: &JoinError) {
        posts.close();
        shared.awake.remove_if(&id, |_, awake| awake.mailbox.is_closed());
        while let Some(post) = posts.recv().await {
            match post {
                Post::Join(join) => drop(join.seated.send(Err(error.clone()))),
                Post::Ask(ask) => drop(ask.answer.send(Err(error.clone()))),
                Post::Input(_) => {}
            }
        }
    }

    async fn live(&mut self) -> Result<(), StoreError> {
        let mut batch = Vec::new();
        loop {
            self.gather(&mut batch).await;
            self.stand().await?;
            let step = self.decide(batch.drain(..)).await?;
            self.keep_and_speak(step).await?;
            self.pulse.beat(self.group.pulse());
            self.answer();
            if self.group.is_deserted() && self.posts.is_empty() && self.fall_asleep().await? {
                return Ok(());
            }
        }
    }

    /// Looks whether the group is still this node's.
    async fn stand(&mut self) -> Result<(), StoreError> {
        match self.tenure.as_ref().map(Tenure::standing) {
            None | Some(Standing::Held) => Ok(()),
            Some(Standing::Wanted) => {
                self.move_out().await;
                Ok(())
            }
            Some(Standing::Lost) => Err(StoreError::Lost),
        }
    }

    /// What the store says, unless the group is lost before: a store that does not answer must not keep devices from those that
    /// will have the group then. What was asked may still be kept, like every commit whose answer was not awaited.
    async fn while_held<T>(&self, asked: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let mut tenure = self.tenure.clone();
        let lost = async { while changed(&mut tenure).await != Standing::Lost {} };
        tokio::select! {
            biased;
            answered = asked => answered,
            () = lost => Err(StoreError::Lost),
        }
    }

    /// Sends everybody to another node. Who was told leaves as always, and the last one lets the group fall asleep.
    async fn move_out(&mut self) {
        self.moves = true;
        let lines = std::mem::take(&mut self.lines);
        // Together: each may take its time to let go of its chat server.
        futures_util::future::join_all(lines.values().map(|line| line.end(Outgoing::Moved))).await;
    }

    /// Waits for something to do: posts, a deadline, or backlog to be read.
    async fn gather(&mut self, batch: &mut Vec<Post>) {
        if !self.reads.is_empty() {
            while batch.len() < BATCH
                && let Ok(post) = self.posts.try_recv()
            {
                batch.push(post);
            }
            return;
        }
        let deadline = self.group.next_deadline(self.shared.clock.now());
        tokio::select! {
            // By order, so that a simulated run can be repeated. Deadlines are looked at after every batch anyway.
            biased;
            _ = changed(&mut self.tenure) => {}
            _ = self.posts.recv_many(batch, BATCH) => {}
            () = self.shared.clock.sleep_until(deadline) => {}
            _ = self.limits.changed() => self.group.set_limits(self.limits.borrow().clone()),
        }
    }

    async fn decide(&mut self, batch: impl Iterator<Item = Post>) -> Result<Step, StoreError> {
        let now = self.shared.clock.now();
        if self.limits.has_changed().unwrap_or(false) {
            self.group.set_limits(self.limits.borrow_and_update().clone());
        }
        let mut step = Step::default();
        for post in batch {
            let input = match post {
                Post::Join(join) => {
                    let Join { conn, introduction, line, seated } = *join;
                    if self.moves {
                        let _gone = seated.send(Err(JoinError::Moving));
                        continue;
                    }
                    if seated.send(Ok(())).is_err() {
                        // The session ended while it waited.
                        continue;
                    }
                    if std::mem::take(&mut self.unborn) {
                        self.shared.born.fetch_add(1, Ordering::Relaxed);
                    }
                    self.lines.insert(conn, line);
                    Input::Join(conn, introduction)
                }
                Post::Input(input) => input,
                Post::Ask(ask) => {
                    let Ask { wish, answer } = *ask;
                    self.asked.push((self.grants(wish), answer));
                    match wish {
                        Wish::Look => continue,
                        Wish::Remove(device) => Input::Remove(device),
                        Wish::Kick(device) => Input::Kick(device),
                        Wish::MoveOut => {
                            self.move_out().await;
                            continue;
                        }
                    }
                }
            };
            step.append(self.group.handle(now, input));
        }
        if let Some(Read { conn, after, through }) = self.reads.pop_front() {
            match self.while_held(self.shared.store.page(self.id, after, through, PAGE_COST)).await {
                Ok(page) => step.append(self.group.handle(now, Input::Page(conn, page))),
                Err(error @ StoreError::Damaged(_)) => {
                    // Only who needs the damaged part cannot go on: its line closes without a farewell, 1011.
                    tracing::error!(group = %self.id, %error, "a backlog cannot be read");
                    self.lines.remove(&conn);
                }
                Err(error) => return Err(error),
            }
        }
        if self.group.next_deadline(now).is_some_and(|at| at <= now.monotonic) {
            step.append(self.group.handle(now, Input::Tick));
        }
        Ok(step)
    }

    /// Whether there is what a wish is about.
    fn grants(&self, wish: Wish) -> bool {
        match wish {
            Wish::Look | Wish::MoveOut => true,
            Wish::Remove(device) => self.group.devices().any(|known| known == device),
            Wish::Kick(device) => self.group.connection(device).is_some(),
        }
    }

    /// Answers operators. What they see is kept.
    fn answer(&mut self) {
        for (found, answer) in std::mem::take(&mut self.asked) {
            let view = self.group.describe(self.shared.clock.now());
            let proxied = self.lines.iter().filter(|(_, line)| !line.proxies.is_empty()).map(|(conn, _)| conn.0);
            let inspection = Inspection { view, proxied: proxied.collect() };
            let _gone = answer.send(Ok(Answer { found, inspection }));
        }
    }

    async fn keep_and_speak(&mut self, step: Step) -> Result<(), StoreError> {
        let Step { writes, acts, notices } = step;
        if writes.is_empty() {
            // What is kept proves by itself that the group is this node's.
            if self.tenure.is_some() && acts.iter().any(binds) {
                self.while_held(self.shared.store.prove(self.id)).await?;
            }
        } else {
            let asked = self.shared.clock.now();
            self.while_held(self.shared.store.commit(self.id, writes)).await?;
            let waited = self.shared.clock.now().monotonic.saturating_sub(asked.monotonic);
            metrics::get().commit_seconds.record(waited.as_secs_f64());
        }
        for act in acts {
            self.carry_out(act).await;
        }
        self.tell(notices);
        let Step { writes: _, acts: _, notices } = self.group.handle(self.shared.clock.now(), Input::Durable);
        self.tell(notices);
        Ok(())
    }

    fn tell(&mut self, notices: Vec<Notice>) {
        for notice in notices {
            self.lock_is_held = notices::lock_is_held_after(&notice).unwrap_or(self.lock_is_held);
            notices::tell(self.id, notice);
        }
    }

    async fn carry_out(&mut self, act: Act) {
        match act {
            Act::Send(conn, payload) => {
                let Some(line) = self.lines.get(&conn) else { return };
                match payload {
                    ToDevice::ReflectAck(_) => metrics::get().reflect_acks.increment(1),
                    ToDevice::Reflected(_) => metrics::get().reflected_sent.increment(1),
                    _ => {}
                }
                if let Err(mpsc::error::TrySendError::Full(_)) = line.outbox.try_send(Outgoing::Payload(payload)) {
                    // The group counts what it sends against what was written, so this cannot be. Were it so
                    // nevertheless, the connection must not go on with a payload missing.
                    tracing::error!(group = %self.id, "an outbox was fed more than it holds; its connection is ended");
                    self.lines.remove(&conn);
                }
            }
            Act::Close(conn, farewell) => {
                let Some(line) = self.lines.remove(&conn) else { return };
                if !line.end(Outgoing::Close(farewell)).await {
                    tracing::warn!(group = %self.id, "a session did not let go of its chat server connection in time");
                }
            }
            Act::Read { conn, after, through } => self.reads.push_back(Read { conn, after, through }),
        }
    }

    /// Writes everything down and leaves the index, unless somebody came in the meantime.
    async fn fall_asleep(&mut self) -> Result<bool, StoreError> {
        let step = self.group.lay_down();
        self.keep_and_speak(step).await?;
        let own = self.own_mailbox.clone();
        let left = self.shared.awake.remove_if(&self.id, |_, awake| {
            // Under the guard nobody can find this mailbox; whoever found it before may still post.
            self.posts.is_empty() && own.upgrade().is_none_or(|own| own.same_channel(&awake.mailbox))
        });
        if left.is_none() {
            return Ok(false);
        }
        // A join that slipped in finds its answer dropped, and looks for the group again. Up to the end, not only what is there:
        // who had found a place before this was closed may fill it after, and would wait for an answer for ever.
        self.posts.close();
        while self.posts.recv().await.is_some() {}
        if let Some(tenure) = self.tenure.take()
            && let Err(error) = self.shared.store.give_up(self.id, tenure).await
        {
            // Nobody waits for it: the next one to want the group is sent here, and the lease ends with the node.
            tracing::warn!(group = %self.id, %error, "a group that sleeps could not be given up");
        }
        Ok(true)
    }
}

/// Waits until a tenure stands otherwise; for ever, if there is none.
async fn changed(tenure: &mut Option<Tenure>) -> Standing {
    match tenure {
        Some(tenure) => tenure.changed().await,
        None => std::future::pending().await,
    }
}

/// Whether a device may rely on this: then only the node that has the group may say it.
const fn binds(act: &Act) -> bool {
    match act {
        Act::Send(_, payload) => answers(payload) || matches!(payload, ToDevice::RolePromotedToLeader),
        // After some of them a device does not come again by itself.
        Act::Close(_, farewell) => !matches!(farewell, Farewell::Kicked),
        Act::Read { .. } => false,
    }
}
