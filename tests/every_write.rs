//! Every write fails once. A long story of one group is told on the store in memory, and its commits are counted. Then it is
//! told again for every commit: once that commit fails, once the process dies before it is kept, once after. Each time the
//! group is woken again, from what a disk would have shown, and must still know everything that was acknowledged, in
//! order, and go on as if nothing had happened.
//!
//! The story is told to the hub: what lies above it, sessions and sockets, is `tests/simulation.rs`' business.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may panic"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use heliostat::client::{DeviceConfig, GroupKey};
use heliostat::crypto::Secret;
use heliostat::group::record::{Page, Seq, Snapshot, Write};
use heliostat::group::{Limits, Request};
use heliostat::hub::{Challenge, Hub, Outgoing, Seat};
use heliostat::store::memory::Crash;
use heliostat::store::{Census, MemoryStore, Store, StoreError};
use heliostat::time::Clock;
use heliostat::wire::d2m::{
    BeginTransaction, DeviceGroupId, DeviceId, Envelope, Reflect, ReflectFlags, ReflectId, ReflectedId, ServerGroup,
    SlotExpiration, ToDevice,
};

const WALL_MS: u64 = 1_795_219_200_000;

/// What is done to the n-th commit.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Fails,
    Dies(Crash),
}

/// The group failed, or would not have us.
#[derive(Debug)]
struct Over;

/// What the others know of a device, and what it has to get.
#[derive(Debug, Default)]
struct Known {
    owed: Vec<String>,
    acked: BTreeSet<String>,
}

/// Something that was asked and whose answer never came: all of it happened, or nothing.
#[derive(Debug, Default, Clone)]
struct Doubt {
    messages: Vec<String>,
    from: u64,
    joining: Option<u64>,
    leaving: Option<u64>,
    shared_data: Option<Vec<u8>>,
}

/// A store that calls one commit kept which is not, the `n`-th.
#[derive(Debug)]
struct Pretender {
    inner: Arc<MemoryStore>,
    n: u64,
    commits: AtomicU64,
}

impl Store for Pretender {
    fn load(&self, group: DeviceGroupId) -> BoxFuture<'_, Result<Option<Snapshot>, StoreError>> {
        self.inner.load(group)
    }

    fn commit(&self, group: DeviceGroupId, writes: Vec<Write>) -> BoxFuture<'_, Result<(), StoreError>> {
        if self.commits.fetch_add(1, Ordering::Relaxed) + 1 == self.n {
            return Box::pin(async { Ok(()) });
        }
        self.inner.commit(group, writes)
    }

    fn page(&self, group: DeviceGroupId, after: Seq, to: Seq, most: usize) -> BoxFuture<'_, Result<Page, StoreError>> {
        self.inner.page(group, after, to, most)
    }

    fn due(&self, a: u64, b: Option<u64>, most: usize) -> BoxFuture<'_, Result<Vec<DeviceGroupId>, StoreError>> {
        self.inner.due(a, b, most)
    }

    fn census(&self, after: Option<DeviceGroupId>, most: usize) -> BoxFuture<'_, Result<Census, StoreError>> {
        self.inner.census(after, most)
    }
}

struct World {
    store: Arc<MemoryStore>,
    hub: Hub,
    clock: Clock,
    key: GroupKey,
    seats: BTreeMap<u64, Seat>,
    devices: BTreeMap<u64, Known>,
    /// Ids under which a device got what it has not acknowledged.
    ids: BTreeMap<(u64, String), ReflectedId>,
    doubt: Doubt,
    shared_data: Vec<u8>,
    reflected: u32,
}

impl World {
    fn new(store: Arc<MemoryStore>) -> Self {
        let clock = Clock::following(WALL_MS);
        let kept: Arc<dyn Store> = Arc::<MemoryStore>::clone(&store);
        Self::over(store, Hub::new(kept, Limits::default(), clock), clock)
    }

    fn over(store: Arc<MemoryStore>, hub: Hub, clock: Clock) -> Self {
        Self {
            hub,
            store,
            clock,
            key: GroupKey::new(Secret::new([7; 32])),
            seats: BTreeMap::new(),
            devices: BTreeMap::new(),
            ids: BTreeMap::new(),
            doubt: Doubt::default(),
            shared_data: Vec::new(),
            reflected: 0,
        }
    }

    /// Takes a seat; says how many messages wait.
    async fn sits_down(&mut self, device: u64, existing: bool, volatile: bool) -> Result<u32, Over> {
        let mut config = DeviceConfig::new(self.key.clone(), ServerGroup::new("a0").unwrap(), DeviceId(device));
        if volatile {
            config.slot_expiration = SlotExpiration::Volatile;
        }
        let config = if existing { config.existing() } else { config };
        let challenge = Challenge::new(Secret::random(), [5; 32]);
        let hello = config.client_hello(&challenge.server_hello()).unwrap();
        let admitted = challenge.check(self.key.device_group_id(), hello).unwrap();
        let seat = self.hub.join(admitted).await.map_err(|_| Over)?;
        self.seats.insert(device, seat);
        let ToDevice::ServerInfo(info) = self.next(device).await? else { panic!("server-info is first") };
        self.seats.get_mut(&device).unwrap().place.introduced();
        let seen = info.encrypted_shared_device_data;
        let doubtful = self.doubt.shared_data.take();
        assert!(seen == self.shared_data || Some(&seen) == doubtful.as_ref(), "the shared data is what was set last");
        self.shared_data = seen;
        Ok(info.reflection_queue_length)
    }

    async fn joins(&mut self, device: u64, volatile: bool) -> Result<(), Over> {
        self.doubt.joining = Some(device);
        self.sits_down(device, false, volatile).await?;
        self.doubt = Doubt::default();
        self.devices.insert(device, Known::default());
        assert_eq!(self.backlog(device).await?, Vec::<String>::new(), "nothing waits for a new device");
        Ok(())
    }

    async fn returns(&mut self, device: u64) -> Result<(), Over> {
        let queued = self.sits_down(device, true, false).await?;
        let got = self.backlog(device).await?;
        assert_eq!(got.len(), usize::try_from(queued).unwrap());
        assert_eq!(got, self.owed(device), "what is owed comes, in order");
        Ok(())
    }

    fn owed(&self, device: u64) -> Vec<String> {
        let Known { owed, acked } = &self.devices[&device];
        owed.iter().filter(|text| !acked.contains(*text)).cloned().collect()
    }

    fn leaves(&mut self, device: u64) {
        self.seats.remove(&device);
    }

    /// Lets time go by, so that what is written late is written.
    async fn waits(&self) {
        tokio::time::sleep(Duration::from_secs(2)).await;
    }

    async fn next(&mut self, device: u64) -> Result<ToDevice, Over> {
        let seat = self.seats.get_mut(&device).unwrap();
        match seat.outbox.next().await {
            Some(Outgoing::Payload(payload)) => {
                seat.outbox.written(&payload).await;
                if let ToDevice::Reflected(message) = &payload {
                    let text = String::from_utf8(message.envelope().to_vec()).unwrap();
                    self.ids.insert((device, text), message.id());
                }
                Ok(payload)
            }
            Some(Outgoing::Close(_) | Outgoing::Moved) | None => Err(Over),
        }
    }

    async fn until(&mut self, device: u64, fits: impl Fn(&ToDevice) -> bool) -> Result<Vec<String>, Over> {
        let mut texts = Vec::new();
        loop {
            let payload = self.next(device).await?;
            if let ToDevice::Reflected(message) = &payload {
                texts.push(String::from_utf8(message.envelope().to_vec()).unwrap());
            }
            if fits(&payload) {
                return Ok(texts);
            }
        }
    }

    async fn backlog(&mut self, device: u64) -> Result<Vec<String>, Over> {
        self.until(device, |payload| *payload == ToDevice::ReflectionQueueDry).await
    }

    async fn says(&self, device: u64, request: Request) -> Result<(), Over> {
        self.seats[&device].place.say(request).await.map_err(|_| Over)
    }

    async fn says_reflect(&mut self, device: u64, text: &str, ephemeral: bool) -> Result<(), Over> {
        self.reflected += 1;
        let (flags, reflect_id) = (ReflectFlags { ephemeral }, ReflectId(self.reflected));
        let reflect = Reflect { flags, reflect_id, envelope: Envelope::copy_from(text.as_bytes()) };
        self.says(device, Request::Reflect(reflect)).await
    }

    async fn reflects(&mut self, device: u64, text: &str) -> Result<(), Over> {
        self.doubt = Doubt { messages: vec![text.to_owned()], from: device, ..Doubt::default() };
        self.says_reflect(device, text, false).await?;
        self.until(device, |payload| matches!(payload, ToDevice::ReflectAck(_))).await?;
        self.owes(device);
        self.all_get(device, text).await
    }

    /// What was in doubt was acknowledged.
    fn owes(&mut self, from: u64) {
        let messages = std::mem::take(&mut self.doubt).messages;
        for known in self.devices.iter_mut().filter(|(device, _)| **device != from).map(|(_, known)| known) {
            known.owed.extend(messages.iter().cloned());
        }
    }

    async fn all_get(&mut self, from: u64, last: &str) -> Result<(), Over> {
        let others: Vec<u64> = self.seats.keys().copied().filter(|&other| other != from).collect();
        for other in others {
            let is_last = |p: &ToDevice| matches!(p, ToDevice::Reflected(m) if m.envelope() == last.as_bytes());
            self.until(other, is_last).await?;
        }
        Ok(())
    }

    async fn transacts(&mut self, device: u64, texts: &[&str]) -> Result<(), Over> {
        let begin = BeginTransaction { encrypted_scope: b"scope".to_vec(), ttl_s: 0 };
        self.says(device, Request::BeginTransaction(begin)).await?;
        self.until(device, |payload| *payload == ToDevice::BeginTransactionAck).await?;
        for text in texts {
            self.says_reflect(device, text, false).await?;
        }
        let messages = texts.iter().map(|text| (*text).to_owned()).collect();
        self.doubt = Doubt { messages, from: device, ..Doubt::default() };
        self.says(device, Request::CommitTransaction).await?;
        self.until(device, |payload| *payload == ToDevice::CommitTransactionAck).await?;
        self.owes(device);
        self.all_get(device, texts.last().unwrap()).await
    }

    /// Acknowledges one message; whether that is ever written is the group's business.
    async fn acks(&mut self, device: u64, text: &str) -> Result<(), Over> {
        let id = self.ids[&(device, text.to_owned())];
        self.devices.get_mut(&device).unwrap().acked.insert(text.to_owned());
        self.says(device, Request::ReflectedAck(id)).await
    }

    async fn acks_everything(&mut self, device: u64) -> Result<(), Over> {
        for text in self.owed(device) {
            self.acks(device, &text).await?;
        }
        Ok(())
    }

    async fn drops(&mut self, by: u64, device: u64) -> Result<(), Over> {
        self.doubt.leaving = Some(device);
        self.says(by, Request::DropDevice(DeviceId(device))).await?;
        self.until(by, |payload| matches!(payload, ToDevice::DropDeviceAck(_))).await?;
        self.doubt = Doubt::default();
        self.devices.remove(&device);
        self.seats.remove(&device);
        Ok(())
    }

    async fn sets_shared_data(&mut self, device: u64, data: &[u8]) -> Result<(), Over> {
        self.doubt.shared_data = Some(data.to_vec());
        self.says(device, Request::SetSharedDeviceData(data.to_vec())).await?;
        // It has no answer of its own; the next one stands behind it.
        self.says(device, Request::GetDevicesInfo).await?;
        self.until(device, |payload| matches!(payload, ToDevice::DevicesInfo(_))).await?;
        self.doubt = Doubt::default();
        self.shared_data = data.to_vec();
        Ok(())
    }

    async fn story(&mut self) -> Result<(), Over> {
        self.joins(1, false).await?;
        self.joins(2, false).await?;
        self.reflects(1, "a").await?;
        self.reflects(2, "b").await?;
        self.acks(2, "a").await?;
        self.joins(3, false).await?;
        self.sets_shared_data(1, b"shared").await?;
        for text in ["c", "d", "e"] {
            self.reflects(1, text).await?;
        }
        // Out of order, and written late.
        self.acks(2, "d").await?;
        self.acks(3, "e").await?;
        self.waits().await;
        self.leaves(3);
        self.transacts(2, &["f", "g", "h"]).await?;
        self.acks(1, "b").await?;
        self.joins(4, true).await?;
        self.says_reflect(4, "~", true).await?;
        self.reflects(4, "i").await?;
        self.returns(3).await?;
        self.acks_everything(3).await?;
        self.waits().await;
        self.sets_shared_data(3, b"shared again").await?;
        self.reflects(3, "j").await?;
        self.drops(1, 4).await?;
        self.leaves(2);
        self.reflects(1, "k").await?;
        // Everybody goes, and the group writes down what it knows.
        self.leaves(1);
        self.leaves(3);
        self.waits().await;
        self.returns(2).await?;
        self.acks(2, "c").await?;
        self.acks(2, "e").await?;
        self.returns(1).await?;
        self.transacts(1, &["l", "m"]).await?;
        self.acks_everything(2).await?;
        self.acks_everything(1).await?;
        self.waits().await;
        self.drops(2, 3).await?;
        self.waits().await;
        // Again and again: what is written late meets what is written at once.
        for round in 0..4 {
            self.joins(10 + round, round % 2 == 0).await?;
            for n in 0..3 {
                self.reflects(1, &format!("{round} one {n}")).await?;
                self.reflects(10 + round, &format!("{round} ten {n}")).await?;
                self.acks(2, &format!("{round} one {n}")).await?;
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
            self.leaves(2);
            self.transacts(1, &[&format!("{round} x"), &format!("{round} y")]).await?;
            self.returns(2).await?;
            self.acks_everything(2).await?;
            self.acks_everything(1).await?;
            self.waits().await;
        }
        Ok(())
    }

    /// What follows a fault: everybody comes back and finds what was acknowledged, and the group goes on.
    async fn aftermath(&mut self, fault: Fault) -> Result<(), Over> {
        self.seats.clear();
        self.waits().await;
        if let Fault::Dies(_) = fault {
            self.store = Arc::new(self.store.survivors(self.clock.now().wall_ms));
            let kept: Arc<dyn Store> = Arc::<MemoryStore>::clone(&self.store);
            self.hub = Hub::new(kept, Limits::default(), self.clock);
        }
        let doubt = self.doubt.clone();
        if let Some(device) = doubt.joining {
            // Whether its slot was made is not known; a device finds out.
            if self.sits_down(device, false, false).await.is_err() {
                self.sits_down(device, true, false).await?;
            }
            self.backlog(device).await?;
            self.devices.insert(device, Known::default());
        }
        let mut happened = BTreeSet::new();
        for device in self.devices.keys().copied().collect::<Vec<_>>() {
            if doubt.joining == Some(device) {
                continue;
            }
            if self.sits_down(device, true, false).await.is_err() {
                assert_eq!(doubt.leaving, Some(device), "device {device} is not forgotten");
                self.devices.remove(&device);
                self.seats.remove(&device);
                continue;
            }
            let got = self.backlog(device).await?;
            let Known { owed, acked } = &self.devices[&device];
            let mut sure = owed.clone();
            if device != doubt.from && !doubt.messages.is_empty() {
                let last = got.len().saturating_sub(doubt.messages.len());
                let there = got[last..] == doubt.messages[..];
                assert!(there || !got.iter().any(|text| doubt.messages.contains(text)), "half of {doubt:?}: {got:?}");
                happened.insert(there);
                if there {
                    sure.extend(doubt.messages.iter().cloned());
                }
            }
            // What was acknowledged may come again, for acknowledgements are written late. Nothing else may be missing.
            let missing = sure.iter().filter(|text| !acked.contains(*text) && !got.contains(text)).count();
            let mut rest = sure.iter();
            assert_eq!(missing, 0, "device {device} got {got:?} of {sure:?}, without {acked:?}");
            assert!(
                got.iter().all(|text| rest.any(|owed| owed == text)),
                "device {device}: {got:?} is no part of {sure:?}"
            );
            let known = self.devices.get_mut(&device).unwrap();
            *known = Known { owed: got, acked: BTreeSet::new() };
        }
        assert!(happened.len() <= 1, "what happened, happened for everybody");
        self.doubt.messages.clear();

        // It goes on: with everybody who is left, and one more.
        self.joins(9, false).await?;
        self.reflects(9, "after").await?;
        self.transacts(9, &["all", "well"]).await?;
        for device in self.devices.keys().copied().collect::<Vec<_>>() {
            self.acks_everything(device).await?;
        }
        self.waits().await;
        self.seats.clear();
        self.waits().await;
        assert_eq!(self.hub.awake(), 0, "the group sleeps");
        let id = self.key.device_group_id();
        let page = self.store.page(id, Seq(0), Seq(u64::MAX), usize::MAX).await.unwrap();
        assert_eq!(page.entries, [], "everything was acknowledged, so nothing is kept");
        for device in self.devices.keys().copied().collect::<Vec<_>>() {
            self.returns(device).await?;
        }
        Ok(())
    }
}

/// Commits of the story when nothing goes wrong.
async fn commits() -> u64 {
    let mut world = World::new(Arc::new(MemoryStore::new()));
    world.story().await.expect("without a fault the story has a good end");
    world.store.commits()
}

/// Tells the story once for every commit, with this fault at it.
async fn at_every_commit(fault: Fault) {
    let commits = commits().await;
    assert!(commits > 60, "{commits} commits are a story");
    let mut noticed = 0;
    for n in 1..=commits {
        let store = Arc::new(MemoryStore::new());
        match fault {
            Fault::Fails => store.fail_at(n),
            Fault::Dies(crash) => store.crash_at(n, crash),
        }
        let mut world = World::new(store);
        noticed += u64::from(world.story().await.is_err());
        if let Err(Over) = world.aftermath(fault).await {
            panic!("{fault:?} at commit {n} of {commits}: the group did not go on; in doubt: {:?}", world.doubt);
        }
    }
    assert!(noticed > commits / 2, "only {noticed} of {commits} faults were noticed while the story was told");
}

#[tokio::test(start_paused = true)]
async fn every_commit_fails_once() {
    at_every_commit(Fault::Fails).await;
}

#[tokio::test(start_paused = true)]
async fn the_process_dies_before_every_commit() {
    at_every_commit(Fault::Dies(Crash::BeforeKeeping)).await;
}

#[tokio::test(start_paused = true)]
async fn the_process_dies_after_every_commit() {
    at_every_commit(Fault::Dies(Crash::AfterKeeping)).await;
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_was_only_said_to_be_kept_is_found() {
    let commits = commits().await;
    let mut found = 0;
    for n in 1..commits {
        let told = tokio::spawn(async move {
            let (inner, clock) = (Arc::new(MemoryStore::new()), Clock::following(WALL_MS));
            // The next one to come dies: what was pretended is all that is missing.
            inner.crash_at(n, Crash::BeforeKeeping);
            let pretender = Pretender { inner: Arc::clone(&inner), n, commits: AtomicU64::new(0) };
            let mut world = World::over(inner, Hub::new(Arc::new(pretender), Limits::default(), clock), clock);
            assert!(world.story().await.is_err(), "the next commit died");
            world.aftermath(Fault::Dies(Crash::BeforeKeeping)).await
        });
        found += u64::from(!matches!(told.await, Ok(Ok(()))));
    }
    // Of acknowledgements and disconnects alone nobody was told that they are kept.
    assert!(found > commits / 2, "{found} of {commits}");
}
