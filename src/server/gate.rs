//! Who may come in, and how many, and how often: what is decided at the public door before a request becomes a WebSocket.
//!
//! | bound | of | refused with |
//! |---|---|---|
//! | connections | all, an address, a group | 503, 429, 429 |
//! | handshakes per time | an address, a group | 429, 429 |
//! | new groups per time | all | 503 |
//! | too much to do ([`super::load`]) | groups of whom nothing is kept | 503 |
//!
//! Sockets that are no connection of a device (yet) are bounded before TLS ([`Bounds`]), by the same keys and somewhat more, so
//! that a refusal is answered as a rule; beyond that they are closed at once.
//!
//! A new group costs when a device proved its key, not when somebody names it: what anybody can invent must not use up what
//! there is for everybody (`Newcomers`).
//!
//! Every refusal carries a Retry-After. An IPv6 address counts with all others of its /64, which is what one customer of a
//! provider has. A group is named here by whoever knows its id, before anything is proved; ids are in no log and travel
//! inside TLS only, so that is the group's devices.

use std::collections::HashSet;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use dashmap::DashMap;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::drain::Inside;
use super::load::{self, Judgement, Load, Overload, Shedding};
use crate::hub::Hub;
use crate::log::Occasionally;
use crate::metrics::{self, Bounded as _, Refused};
use crate::net::listen::Bounds;
use crate::net::rate::{Bucket, Buckets, Measure, Rate, TooMuch};
use crate::time::Clock;
use crate::wire::d2m::DeviceGroupId;

/// One look in so many tidies, too: once a minute.
const TIDY_EVERY: u64 = 120;
/// How many sockets there may be beyond the connections that are allowed, so that who is refused can be told.
const SOCKETS_BEYOND: usize = 64;
/// The same of one address.
const SOCKETS_BEYOND_OF_ADDRESS: usize = 16;
/// How many sockets an address may open for each of its handshakes.
const SOCKETS_PER_HANDSHAKE: u64 = 2;
/// When to come again, where nothing better is known.
const LATER: Duration = Duration::from_secs(10);

/// Who may come in at all. `None`: no bound.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Admission {
    /// Connections at once.
    pub max_connections: Option<usize>,
    /// Connections at once from one address.
    pub max_connections_per_address: Option<usize>,
    /// Connections at once of one group.
    pub max_connections_per_group: Option<usize>,
    /// Handshakes from one address.
    pub handshakes_per_address: Option<Rate>,
    /// Handshakes of one group.
    pub handshakes_per_group: Option<Rate>,
    /// Groups of whom nothing is kept.
    pub new_groups: Option<Rate>,
    /// When these have to wait altogether.
    pub shedding: Shedding,
    /// The only groups served; `None` for all.
    pub groups: Option<HashSet<DeviceGroupId>>,
}

/// Somebody may not come in: why, and when to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Denied {
    pub(super) why: Refused,
    pub(super) retry_after: Option<Duration>,
}

impl Denied {
    const fn later(why: Refused) -> Self {
        Self { why, retry_after: Some(LATER) }
    }

    fn too_often(why: Refused) -> impl FnOnce(TooMuch) -> Self {
        move |TooMuch { wait }| Self { why, retry_after: Some(wait) }
    }
}

/// What holds now.
#[derive(Debug)]
struct Rules {
    admission: Admission,
    /// Sockets.
    arrivals: Option<Arc<Buckets>>,
    per_address: Option<Arc<Buckets>>,
    per_group: Option<Arc<Buckets>>,
    new_groups: Option<Arc<Newcomers>>,
}

impl Rules {
    fn new(admission: Admission, born: u64, clock: Clock) -> Self {
        let buckets = |rate: Option<Rate>| rate.map(|rate| Arc::new(Buckets::new(rate, clock)));
        let per_address = buckets(admission.handshakes_per_address);
        let arrivals = buckets(
            admission
                .handshakes_per_address
                .map(|Rate { amount, per }| Rate { amount: amount.saturating_mul(SOCKETS_PER_HANDSHAKE), per }),
        );
        let per_group = buckets(admission.handshakes_per_group);
        let new_groups = admission.new_groups.map(|rate| Arc::new(Newcomers::new(rate, born, clock)));
        Self { admission, arrivals, per_address, per_group, new_groups }
    }

    /// Others in their place. Of a rate that stays the same nothing is forgotten.
    fn followed_by(&self, admission: Admission, born: u64, clock: Clock) -> Self {
        let old = &self.admission;
        let same = (
            old.handshakes_per_address == admission.handshakes_per_address,
            old.handshakes_per_group == admission.handshakes_per_group,
            old.new_groups == admission.new_groups,
        );
        let mut new = Self::new(admission, born, clock);
        if same.0 {
            new.arrivals.clone_from(&self.arrivals);
            new.per_address.clone_from(&self.per_address);
        }
        if same.1 {
            new.per_group.clone_from(&self.per_group);
        }
        if same.2 {
            new.new_groups.clone_from(&self.new_groups);
        }
        new
    }
}

/// Whether there is room for one more new group.
///
/// What is taken from the bucket is kept for the next group that is born, however many knock until then and prove nothing.
/// Of those that shake hands at the same moment more may be born than there is room for; they are paid for before anybody
/// else comes in. *Rejected: to take at the door and give back what was not proved*, since whoever knocks again and again
/// would hold all there is.
#[derive(Debug)]
struct Newcomers {
    bucket: Bucket,
    /// For how many was taken, of all that were ever born.
    paid: Mutex<u64>,
}

impl Newcomers {
    fn new(rate: Rate, born: u64, clock: Clock) -> Self {
        Self { bucket: Bucket::new(rate, Measure::Times, clock), paid: Mutex::new(born) }
    }

    /// Whether another may come, when so many were born.
    fn room(&self, born: u64) -> Result<(), TooMuch> {
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        while *paid <= born {
            self.bucket.take(1)?;
            *paid += 1;
        }
        drop(paid);
        Ok(())
    }
}

/// How many there are of each. Takes no room for those of which there is none.
#[derive(Debug)]
struct Counts<K: Eq + Hash>(DashMap<K, usize>);

impl<K: Eq + Hash> Counts<K> {
    fn of(&self, key: &K) -> usize {
        self.0.get(key).map_or(0, |count| *count)
    }

    /// One more; says how many there are then.
    fn more(&self, key: K) -> usize {
        let mut count = self.0.entry(key).or_insert(0);
        *count += 1;
        *count
    }

    fn less(&self, key: &K) {
        if let Some(mut count) = self.0.get_mut(key) {
            *count = count.saturating_sub(1);
        }
        self.0.remove_if(key, |_, count| *count == 0);
    }
}

/// The public door's memory.
#[derive(Debug)]
pub(super) struct Gate {
    rules: ArcSwap<Rules>,
    hub: Hub,
    clock: Clock,
    /// Asks everybody inside to leave.
    stop: CancellationToken,
    /// Cancelled when nobody is let in any more.
    closed: CancellationToken,
    /// Until when the house is being emptied, in milliseconds of the monotonic clock.
    closed_until_ms: AtomicU64,
    load: Mutex<Judgement>,
    looks: AtomicU64,
    connections: AtomicUsize,
    nobody_left: Notify,
    numbers: AtomicU64,
    inside: Inside,
    /// Sockets that are no connection of a device.
    sockets: AtomicUsize,
    sockets_per_address: Counts<IpAddr>,
    said: Occasionally<Refused>,
    per_address: Counts<IpAddr>,
    per_group: Counts<DeviceGroupId>,
}

impl Gate {
    pub(super) fn new(admission: Admission, hub: Hub, clock: Clock, stop: CancellationToken) -> Self {
        Self {
            rules: ArcSwap::from_pointee(Rules::new(admission, hub.born(), clock)),
            hub,
            clock,
            // Whoever is asked to stop lets nobody in either.
            closed: stop.child_token(),
            stop,
            closed_until_ms: AtomicU64::new(0),
            load: Mutex::default(),
            looks: AtomicU64::new(0),
            connections: AtomicUsize::new(0),
            nobody_left: Notify::new(),
            numbers: AtomicU64::new(0),
            inside: Inside::default(),
            sockets: AtomicUsize::new(0),
            sockets_per_address: Counts(DashMap::new()),
            said: Occasionally::new(clock),
            per_address: Counts(DashMap::new()),
            per_group: Counts(DashMap::new()),
        }
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(super) const fn inside(&self) -> &Inside {
        &self.inside
    }

    /// Waits until everybody left.
    pub(super) async fn empty(&self) {
        loop {
            let left = self.nobody_left.notified();
            let mut left = std::pin::pin!(left);
            left.as_mut().enable();
            if self.connections() == 0 {
                return;
            }
            left.await;
        }
    }

    /// Other rules from now on; who is inside stays.
    pub(super) fn follow(&self, admission: Admission) {
        self.rules.store(Arc::new(self.rules.load().followed_by(admission, self.hub.born(), self.clock)));
    }

    /// Lets nobody in any more, for so long as far as is known.
    pub(super) fn close(&self, lasts: Duration) {
        let until = self.clock.now().monotonic.saturating_add(lasts);
        self.closed_until_ms.store(u64::try_from(until.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.closed.cancel();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    pub(super) fn overload(&self) -> Option<Overload> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner).overload
    }

    /// Looks whether there is too much to do, and tidies. Commits take so long at the moment.
    pub(super) fn look(&self, writer_latency: Duration) {
        let rules = self.rules.load();
        let shedding = &rules.admission.shedding;
        let memory = shedding.memory.and_then(|_| load::resident()).unwrap_or(0);
        let load = Load { writer_latency, memory, connections: self.connections() };
        let (before, now) = {
            let mut held = self.load.lock().unwrap_or_else(PoisonError::into_inner);
            let now = shedding.judge(*held, &load);
            (std::mem::replace(&mut *held, now).overload, now.overload)
        };
        match (before, now) {
            (None, Some(what)) => tracing::warn!(?what, ?load, "too much to do: new groups have to wait"),
            (Some(_), None) => tracing::info!(?load, "new groups are let in again"),
            _ => {}
        }
        if self.looks.fetch_add(1, Ordering::Relaxed).is_multiple_of(TIDY_EVERY) {
            for buckets in [&rules.arrivals, &rules.per_address, &rules.per_group].into_iter().flatten() {
                buckets.tidy();
            }
        }
    }

    /// Whether anybody is let in at all.
    pub(super) fn is_open(&self) -> Result<(), Denied> {
        let denied = || Denied { why: Refused::Stopping, retry_after: Some(self.closed_for()) };
        if self.is_closed() { Err(denied()) } else { Ok(()) }
    }

    /// Whether a group is served at all.
    pub(super) fn serves(&self, group: DeviceGroupId) -> Result<(), Denied> {
        let rules = self.rules.load();
        let allowed = rules.admission.groups.as_ref().is_none_or(|groups| groups.contains(&group));
        if allowed { Ok(()) } else { Err(Denied { why: Refused::NotAllowed, retry_after: None }) }
    }

    /// Lets a connection of this group in, or says why not. It is counted out when the guard is dropped.
    pub(super) async fn enter(self: &Arc<Self>, address: IpAddr, group: DeviceGroupId) -> Result<Entered, Denied> {
        let rules = self.rules.load_full();
        let admission = &rules.admission;
        let address = customer(address);
        if let Some(buckets) = &rules.per_address {
            buckets.take(&address).map_err(Denied::too_often(Refused::AddressRate))?;
        }
        let entered = self.count(admission, address, group)?;
        if let Some(buckets) = &rules.per_group {
            buckets.take(&group).map_err(Denied::too_often(Refused::GroupRate))?;
        }
        let overload = self.overload();
        if overload.is_some() || rules.new_groups.is_some() {
            // When the store cannot tell, the session will learn it, and end with the code for that.
            let known = self.hub.knows(group).await.unwrap_or(true);
            if !known && overload.is_some() {
                return Err(Denied::later(Refused::Overload));
            }
            if let Some(newcomers) = rules.new_groups.as_ref().filter(|_| !known) {
                newcomers.room(self.hub.born()).map_err(Denied::too_often(Refused::NewGroups))?;
            }
        }
        Ok(entered)
    }

    fn count(
        self: &Arc<Self>,
        admission: &Admission,
        address: IpAddr,
        group: DeviceGroupId,
    ) -> Result<Entered, Denied> {
        let beyond = |count: usize, max: Option<usize>| max.is_some_and(|max| count > max);
        let all = self.connections.fetch_add(1, Ordering::SeqCst) + 1;
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (of_address, of_group) = (self.per_address.more(address), self.per_group.more(group));
        let leave = self.stop.child_token();
        let entered = Entered { gate: Arc::clone(self), number, address, group, leave };
        if beyond(all, admission.max_connections) {
            return Err(Denied::later(Refused::Full));
        }
        if beyond(of_address, admission.max_connections_per_address) {
            return Err(Denied::later(Refused::FullForAddress));
        }
        if beyond(of_group, admission.max_connections_per_group) {
            return Err(Denied::later(Refused::FullForGroup));
        }
        self.inside.entered(number, entered.leave.clone());
        // Not before: whoever closes the door asks everybody who is inside to leave, and may have passed by already.
        self.is_open()?;
        Ok(entered)
    }

    /// How long it will take until there is a successor, as far as is known.
    fn closed_for(&self) -> Duration {
        let until = Duration::from_millis(self.closed_until_ms.load(Ordering::Relaxed));
        until.saturating_sub(self.clock.now().monotonic)
    }
}

impl Gate {
    /// Counts a socket that is closed without an answer.
    fn turned_away(&self, why: Refused) {
        metrics::get().refused.of(why).increment(1);
        if let Some(others) = self.said.may_say(why) {
            tracing::info!(why = why.value(), others, "closed before it asked for anything");
        }
    }
}

impl Bounds for Arc<Gate> {
    type Place = Socket;

    fn accepted(&self) -> Option<Socket> {
        let sockets = self.sockets.fetch_add(1, Ordering::SeqCst) + 1;
        let place = Socket { gate: Self::clone(self), address: None };
        let max = self.rules.load().admission.max_connections;
        if max.is_some_and(|max| sockets + self.connections() > max.saturating_add(SOCKETS_BEYOND)) {
            self.turned_away(Refused::Full);
            return None;
        }
        Some(place)
    }

    fn comes_from(&self, address: IpAddr) -> Option<Socket> {
        let (rules, address) = (self.rules.load(), customer(address));
        let sockets = self.sockets_per_address.more(address);
        let place = Socket { gate: Self::clone(self), address: Some(address) };
        let max = rules.admission.max_connections_per_address;
        let all = sockets + self.per_address.of(&address);
        if max.is_some_and(|max| all > max.saturating_add(SOCKETS_BEYOND_OF_ADDRESS)) {
            self.turned_away(Refused::FullForAddress);
            return None;
        }
        if rules.arrivals.as_ref().is_some_and(|buckets| buckets.take(&address).is_err()) {
            self.turned_away(Refused::AddressRate);
            return None;
        }
        Some(place)
    }
}

/// A socket that was counted in, altogether or for its address.
#[derive(Debug)]
pub(super) struct Socket {
    gate: Arc<Gate>,
    address: Option<IpAddr>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        match &self.address {
            Some(address) => self.gate.sockets_per_address.less(address),
            None => {
                self.gate.sockets.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }
}

/// A connection that was counted in.
#[derive(Debug)]
pub(super) struct Entered {
    gate: Arc<Gate>,
    number: u64,
    address: IpAddr,
    group: DeviceGroupId,
    /// Cancelled when it is asked to leave.
    pub(super) leave: CancellationToken,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let gate = &self.gate;
        gate.inside.left(self.number);
        gate.per_address.less(&self.address);
        gate.per_group.less(&self.group);
        if gate.connections.fetch_sub(1, Ordering::SeqCst) == 1 {
            gate.nobody_left.notify_waiters();
        }
    }
}

/// Whom an address stands for.
fn customer(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_stands_for_whoever_has_it() {
        for (address, whom) in [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::"),
            ("2001:db8:1:3::", "2001:db8:1:3::"),
        ] {
            assert_eq!(customer(address.parse().unwrap()), whom.parse::<IpAddr>().unwrap(), "{address}");
        }
    }
}
