//! Who is awake: one actor per group that has a connection, found through one index.
//!
//! The index is an index only. A mailbox is cloned out and the map's guard dropped before anything else happens; nothing
//! is ever held across a wait. A group whose last connection leaves writes down what it knows and goes to sleep; whoever
//! finds its mailbox closed simply looks again.
//!
//! | file | holds |
//! |---|---|
//! | [`admission`] | the proof of the group key; only it makes an [`Admitted`] |
//! | [`seat`] | a connection's place in its group; dropping it is the one way to leave |
//! | [`neighbours`] | the way to groups that other nodes have |
//! | `actor` | decide, keep, speak |
//! | `notices` | what operators are told |

mod actor;
pub mod admission;
pub mod neighbours;
mod notices;
pub mod seat;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::actor::{Actor, Answer, Ask, Join, Post, Wish};
pub use self::admission::{Admitted, Challenge};
use self::neighbours::{NeighbourError, Neighbours};
use self::seat::Mailbox;
pub use self::seat::{FarSeat, Outgoing, Said, Seat};
use crate::group::{ConnectionId, GroupView, Input, Limits, Pulse};
use crate::store::{Census, Owner, Store, StoreError};
use crate::time::Clock;
use crate::wire::d2m::{DeviceGroupId, DeviceId};

/// Inputs that may wait for one group. Enough to fill a commit, few enough to make a flooding device wait.
const MAILBOX: usize = 256;
/// How often slots of sleeping groups are looked at.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// How many groups one sweep wakes at most.
const SWEEP_MOST: usize = 1_024;
/// How often a join looks for its group again when it found it falling asleep.
const JOIN_TRIES: usize = 16;
/// How long a device waits for a seat while its group moves from node to node, before it is told to come again.
const SEATED_WITHIN: Duration = Duration::from_secs(5);
/// How soon a group on the move is looked for again.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// All groups that are awake.
#[derive(Debug, Clone)]
pub struct Hub(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    awake: DashMap<DeviceGroupId, Awake>,
    store: Arc<dyn Store>,
    /// `None`: there is no other node, or no way there.
    neighbours: Option<Arc<dyn Neighbours>>,
    /// Those of groups that are awake and of those that will be.
    limits: watch::Sender<Limits>,
    clock: Clock,
    connections: AtomicU64,
    born: AtomicU64,
    closed_to_guests: AtomicBool,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct Awake {
    mailbox: Mailbox,
    pulse: Arc<Heart>,
}

/// The last pulse of a group, so that many can be looked at without asking any.
#[derive(Debug, Default)]
struct Heart(Mutex<Pulse>);

impl Heart {
    fn beat(&self, pulse: Pulse) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = pulse;
    }

    fn pulse(&self) -> Pulse {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A group, looked at from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// What the group knows.
    #[serde(flatten)]
    pub view: GroupView,
    /// The numbers of the connections that have, or are opening, a connection to their chat server. The group does not know.
    pub proxied: BTreeSet<u64>,
}

/// Why a device got no seat, or an operator no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The group could not be woken.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The group fell asleep, or fell over, each time it was found.
    #[error("the group cannot be reached")]
    Unreachable,
    /// Another node has the group.
    #[error("node {} at {} has the group", .0.name, .0.address)]
    Elsewhere(Owner),
    /// This node has the group and gives it up.
    #[error("the group is on its way to another node")]
    Moving,
}

impl Hub {
    /// A hub over this store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, limits: Limits, clock: Clock) -> Self {
        let (awake, connections, tasks) = (DashMap::new(), AtomicU64::new(1), TaskTracker::new());
        let born = AtomicU64::new(0);
        let limits = watch::Sender::new(limits);
        let closed_to_guests = AtomicBool::new(false);
        let neighbours = None;
        Self(Arc::new(Shared { awake, store, neighbours, limits, clock, connections, born, closed_to_guests, tasks }))
    }

    /// One that seats devices of groups that other nodes have, too. To be said before anything else.
    #[must_use]
    pub fn among(mut self, neighbours: Arc<dyn Neighbours>) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.0) {
            shared.neighbours = Some(neighbours);
        }
        self
    }

    /// Seats a device that proved the group key, wherever its group is. What the group thinks of that comes as the seat's first
    /// payload.
    ///
    /// # Errors
    /// [`JoinError`] when the group can be reached nowhere: the mediator's fault, not the device's.
    pub async fn join(&self, admitted: Admitted) -> Result<Seat, JoinError> {
        let group = admitted.group();
        let until = self.0.clock.now().monotonic + SEATED_WITHIN;
        loop {
            let joined = match self.join_here(admitted.clone()).await {
                Err(JoinError::Elsewhere(owner)) => self.join_there(owner, &admitted).await,
                joined => joined,
            };
            // A lease that is lost is soon had again.
            let why = match joined {
                Err(why @ (JoinError::Elsewhere(_) | JoinError::Moving | JoinError::Store(StoreError::Lost))) => why,
                joined => return joined,
            };
            if self.0.clock.now().monotonic >= until {
                tracing::debug!(%group, error = %why, "a group that moves was given up");
                return Err(why);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Seats a device whose group is, or can be, this node's.
    ///
    /// # Errors
    /// [`JoinError`]; [`JoinError::Elsewhere`] and [`JoinError::Moving`] when another node has it, or is about to.
    pub async fn join_here(&self, admitted: Admitted) -> Result<Seat, JoinError> {
        let conn = self.connection();
        let (group, introduction) = admitted.into_parts();
        for _ in 0..JOIN_TRIES {
            let mailbox = self.mailbox(group);
            let (line, seat) = seat::pair(conn, mailbox.clone(), &self.0.tasks);
            let (seated, answer) = oneshot::channel();
            let join = Join { conn, introduction: introduction.clone(), line, seated };
            if mailbox.send(Post::Join(Box::new(join))).await.is_ok() {
                match answer.await {
                    Ok(Ok(())) => return Ok(seat),
                    Ok(Err(error)) => return Err(error),
                    // The group closed its mailbox with this join inside: look again.
                    Err(_) => {}
                }
            }
            self.0.awake.remove_if(&group, |_, found| found.mailbox.is_closed());
        }
        Err(JoinError::Unreachable)
    }

    /// Seats a device at the node that has its group.
    async fn join_there(&self, owner: Owner, admitted: &Admitted) -> Result<Seat, JoinError> {
        let (far, seat) = seat::far_pair(self.connection(), &self.0.tasks);
        let seated = match &self.0.neighbours {
            Some(neighbours) => neighbours.seat(owner.clone(), admitted.clone(), far).await,
            None => Err(NeighbourError::Unreachable),
        };
        match seated {
            Ok(()) => Ok(seat),
            Err(NeighbourError::Moved) => Err(JoinError::Moving),
            Err(NeighbourError::Failed) => Err(JoinError::Unreachable),
            Err(NeighbourError::Unreachable) => {
                // As long as that node keeps its lease, only it can say that it does not need the group any more.
                self.0.store.want(admitted.group(), owner.node).await?;
                Err(JoinError::Elsewhere(owner))
            }
        }
    }

    fn connection(&self) -> ConnectionId {
        ConnectionId(self.0.connections.fetch_add(1, Ordering::Relaxed))
    }

    /// Seats nobody of another node any more. A hub that is being emptied would get its own devices back that way.
    pub fn close_to_guests(&self) {
        self.0.closed_to_guests.store(true, Ordering::Relaxed);
    }

    /// Whether devices of other nodes have to look elsewhere.
    #[must_use]
    pub fn is_closed_to_guests(&self) -> bool {
        self.0.closed_to_guests.load(Ordering::Relaxed)
    }

    /// Sends on whoever is still in groups that are awake, so many groups in each `interval`, and lets other nodes have them.
    pub async fn move_out(&self, batch: usize, interval: Duration) {
        let awake: Vec<DeviceGroupId> = self.0.awake.iter().map(|awake| *awake.key()).collect();
        for (n, groups) in awake.chunks(batch.max(1)).enumerate() {
            if n > 0 {
                tokio::time::sleep(interval).await;
            }
            let asked =
                groups.iter().filter(|group| self.is_awake(**group)).map(|group| self.ask(*group, Wish::MoveOut));
            // A group that failed has sent everybody away itself.
            let _failed = futures_util::future::join_all(asked).await;
        }
    }

    /// Other limits from now on, also for groups that are awake; each takes them over before it does anything else.
    pub fn set_limits(&self, limits: Limits) {
        self.0.limits.send_if_modified(|held| {
            let other = *held != limits;
            *held = limits;
            other
        });
    }

    /// Whether there is such a group: awake, or kept.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot tell.
    pub async fn knows(&self, group: DeviceGroupId) -> Result<bool, StoreError> {
        Ok(self.0.awake.contains_key(&group) || self.0.store.knows(group).await?)
    }

    /// How many groups of whom nothing was kept were joined by a device that proved their key, since the start.
    #[must_use]
    pub fn born(&self) -> u64 {
        self.0.born.load(Ordering::Relaxed)
    }

    /// Goes the way of a commit that keeps nothing ([`Store::probe`]).
    ///
    /// # Errors
    /// [`StoreError`] when the store keeps nothing any more.
    pub async fn probe(&self) -> Result<(), StoreError> {
        self.0.store.probe().await
    }

    /// How many groups are awake.
    #[must_use]
    pub fn awake(&self) -> usize {
        self.0.awake.len()
    }

    /// A group as it is now; `None` when nothing is kept of it. One that sleeps is woken for this.
    ///
    /// # Errors
    /// [`JoinError`] when it cannot be woken.
    pub async fn inspect(&self, group: DeviceGroupId) -> Result<Option<Inspection>, JoinError> {
        let answer = self.ask(group, Wish::Look).await?;
        Ok(Some(answer.inspection).filter(|it| !it.view.devices.is_empty()))
    }

    /// Removes a device with all that waits for it, as a device of its group could; says whether there was one. It is kept
    /// when this returns.
    ///
    /// # Errors
    /// [`JoinError`] when the group cannot be woken, or not keep it.
    pub async fn drop_device(&self, group: DeviceGroupId, device: DeviceId) -> Result<bool, JoinError> {
        Ok(self.ask(group, Wish::Remove(device)).await?.found)
    }

    /// Ends a device's connection, after which it may come back; says whether there was one.
    ///
    /// # Errors
    /// [`JoinError`] when the group failed.
    pub async fn kick(&self, group: DeviceGroupId, device: DeviceId) -> Result<bool, JoinError> {
        // Nobody is connected to a group that sleeps, unless it is awake elsewhere.
        if self.0.neighbours.is_none() && !self.0.awake.contains_key(&group) {
            return Ok(false);
        }
        Ok(self.ask(group, Wish::Kick(device)).await?.found)
    }

    async fn ask(&self, group: DeviceGroupId, wish: Wish) -> Result<Answer, JoinError> {
        for _ in 0..JOIN_TRIES {
            let (answer, answered) = oneshot::channel();
            let mailbox = self.mailbox(group);
            if mailbox.send(Post::Ask(Box::new(Ask { wish, answer }))).await.is_ok()
                && let Ok(answer) = answered.await
            {
                return answer;
            }
            self.0.awake.remove_if(&group, |_, found| found.mailbox.is_closed());
        }
        Err(JoinError::Unreachable)
    }

    /// Whether a group is awake.
    #[must_use]
    pub fn is_awake(&self, group: DeviceGroupId) -> bool {
        self.0.awake.contains_key(&group)
    }

    /// The last pulse of every group that is awake. Asks none of them.
    #[must_use]
    pub fn pulses(&self) -> Vec<(DeviceGroupId, Pulse)> {
        self.0.awake.iter().map(|awake| (*awake.key(), awake.pulse.pulse())).collect()
    }

    /// How many groups are kept, and those behind `after`, by their ids.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot tell.
    pub async fn census(&self, after: Option<DeviceGroupId>, most: usize) -> Result<Census, StoreError> {
        self.0.store.census(after, most).await
    }

    /// The nodes among which groups are divided, this one included; none when there is no other.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot tell.
    pub async fn nodes(&self) -> Result<Vec<Owner>, StoreError> {
        self.0.store.nodes().await
    }

    /// Removes slots of sleeping groups whose time is over, until `stop`.
    pub async fn sweep(&self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(SWEEP_EVERY)).await.is_some() {
            if let Err(error) = self.sweep_once().await {
                tracing::warn!(%error, "sleeping groups could not be swept");
            }
        }
    }

    /// Wakes every sleeping group that has a slot whose time is over; says how many.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot tell.
    pub async fn sweep_once(&self) -> Result<usize, StoreError> {
        let now_ms = self.0.clock.now().wall_ms;
        let before = |ttl: Duration| now_ms.saturating_sub(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
        let (volatile, persistent) = {
            let limits = self.0.limits.borrow();
            (before(limits.volatile_slot_ttl), limits.persistent_slot_ttl.map(before))
        };
        let due = self.0.store.due(volatile, persistent, SWEEP_MOST).await?;
        for group in &due {
            // An actor looks at its deadlines when it wakes, and falls asleep again. One whose mailbox is full is awake.
            let _awake = self.mailbox(*group).try_send(Post::Input(Input::Tick));
        }
        Ok(due.len())
    }

    /// Waits until every group has written down what it knows. To be called when every session has ended.
    pub async fn close(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    fn mailbox(&self, group: DeviceGroupId) -> Mailbox {
        let entry = self.0.awake.entry(group).or_insert_with(|| {
            let (mailbox, posts) = mpsc::channel(MAILBOX);
            let pulse = Arc::<Heart>::default();
            let actor = Actor::run(group, Arc::clone(&self.0), mailbox.downgrade(), posts, Arc::clone(&pulse));
            self.0.tasks.spawn(actor);
            Awake { mailbox, pulse }
        });
        entry.value().mailbox.clone()
    }
}
