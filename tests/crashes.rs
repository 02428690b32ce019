//! The real binary, killed at any moment, started again on what it left, and asked for what it had promised.
//!
//! Three groups of three devices reflect and hold transactions until, after a number of answers that the seed chooses,
//! the server is killed (SIGKILL). Now and then the next one is killed while it starts. Then everybody connects again, takes
//! its backlog, and the books are compared. They are kept here, from outside: which message went into a socket, which was
//! acknowledged, which arrived where, and which of these were acknowledged in turn.
//!
//! Asked when everybody is dry again:
//!
//! * a message that was acknowledged to its sender, or whose transaction was, has arrived at every other device;
//! * one that a device did not acknowledge has come again on its new connection;
//! * one that nobody answered for has arrived everywhere or nowhere, a transaction as a whole, and what has not arrived
//!   by then never does;
//! * a transaction whose commit was never sent has arrived nowhere.
//!
//! Asked of every arrival: ids grow on a connection, and from one new message to the next over all of them; what comes
//! again keeps its id; nobody hears itself; the time is the one that was acknowledged. And all devices were shown the
//! same order.
//!
//! 20 rounds; a thousand by `CRASH_ROUNDS=1000 cargo test --profile proof --test crashes`. A failure names its seed and its round
//! and leaves the data where it was; `CRASH_SEED=n` plays the same moments again, as far as the machine's own timing lets it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

#[path = "common/binary.rs"]
mod binary;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use binary::Binary;
use fastrand::Rng;
use futures_util::future::join_all;
use heliostat::client::{ConnectError, Device, DeviceConfig, Ended, GroupKey, Mediator, Receiver, Sender};
use heliostat::wire::d2m::{
    DeviceId, ENVELOPE_MAX, ReflectAck, ReflectFlags, ReflectId, Reflected, ReflectedId, ServerGroup, ToDevice,
};
use tokio::sync::{Barrier, Notify};
use tokio_util::sync::CancellationToken;

const GROUPS: usize = 3;
const DEVICES: usize = 3;
/// Messages a device has in flight.
const WINDOW: usize = 16;
/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

// ---- the books

/// Its number in the group; travels in the envelope, and as reflect-id.
type Number = u32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Promise {
    /// Went into a socket.
    Said,
    /// Went into a socket under the lock; the commit did not.
    Staged,
    /// Acknowledged, alone or with its transaction.
    Kept,
    /// Was not answered for, and found nowhere after the crash.
    Void,
}

#[derive(Debug)]
struct Message {
    sender: usize,
    transaction: Option<usize>,
    promise: Promise,
    acked: bool,
    timestamp_ms: Option<u64>,
    /// By device: the id under which it arrived.
    arrived: [Option<u32>; DEVICES],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Lock {
    #[default]
    Idle,
    Asked,
    Held,
    Rejected,
    Free,
    Committed,
}

/// What is known of one device.
#[derive(Debug, Default)]
struct Lane {
    /// Arrived and not acknowledged on any connection, with the id to do so.
    unacked: BTreeMap<Number, ReflectedId>,
    /// Arrived on this connection.
    here: BTreeSet<Number>,
    /// The last id on this connection.
    last: Option<u32>,
    /// The highest id ever, and the last message of each sender.
    highest: Option<u32>,
    heard: [Number; DEVICES],
    /// What arrived for the first time since the books were compared.
    order: Vec<Number>,
    /// Said and not acknowledged on this connection.
    unanswered: usize,
    lock: Lock,
}

#[derive(Debug, Default)]
struct Books {
    messages: BTreeMap<Number, Message>,
    /// What has not been found everywhere or nowhere yet.
    open: BTreeSet<Number>,
    lanes: [Lane; DEVICES],
    next: Number,
    transactions: usize,
    /// For the closing line.
    kept: u64,
    in_doubt: u64,
    again: u64,
}

impl Books {
    fn connected(&mut self, device: usize) {
        let lane = &mut self.lanes[device];
        lane.here.clear();
        (lane.last, lane.unanswered, lane.lock) = (None, 0, Lock::Idle);
    }

    fn say(&mut self, sender: usize, transaction: Option<usize>) -> Number {
        self.next += 1;
        let promise = if transaction.is_some() { Promise::Staged } else { Promise::Said };
        let message =
            Message { sender, transaction, promise, acked: false, timestamp_ms: None, arrived: [None; DEVICES] };
        self.messages.insert(self.next, message);
        self.open.insert(self.next);
        self.lanes[sender].unanswered += 1;
        self.next
    }

    fn acked(&mut self, device: usize, ack: ReflectAck) {
        let message = self.messages.get_mut(&ack.reflect_id.0).expect("an acknowledgement of something that was said");
        assert_eq!((message.sender, message.acked), (device, false), "acknowledged once, to its sender");
        message.acked = true;
        if message.transaction.is_none() {
            message.promise = Promise::Kept;
        }
        assert_eq!(*message.timestamp_ms.get_or_insert(ack.timestamp_ms), ack.timestamp_ms);
        self.lanes[device].unanswered -= 1;
    }

    /// The commit goes into the socket, or is acknowledged.
    fn commit(&mut self, transaction: usize, promise: Promise) {
        for number in &self.open {
            let message = self.messages.get_mut(number).unwrap();
            if message.transaction == Some(transaction) {
                assert!(promise == Promise::Said || message.acked, "the commit is acknowledged behind its messages");
                message.promise = promise;
            }
        }
    }

    fn arrived(&mut self, device: usize, reflected: &Reflected) {
        let number = Number::from_le_bytes(*reflected.envelope().first_chunk().expect("one of our envelopes"));
        let (id, lane) = (reflected.id().0, &mut self.lanes[device]);
        let message = self.messages.get_mut(&number).expect("something that was said");
        assert_eq!(reflected.envelope(), envelope(number, reflected.envelope().len()), "as it was said");
        assert_ne!(message.sender, device, "heard itself");
        assert!(!matches!(message.promise, Promise::Void | Promise::Staged), "{number} is {:?}", message.promise);
        let timestamp_ms = reflected.timestamp_ms();
        assert_eq!(*message.timestamp_ms.get_or_insert(timestamp_ms), timestamp_ms);
        assert!(lane.last < Some(id), "ids grow on a connection: {:?}, then {id}", lane.last);
        lane.last = Some(id);
        match &mut message.arrived[device] {
            Some(before) => {
                assert_eq!(*before, id, "{number} comes again under another id");
                self.again += 1;
            }
            first => {
                assert!(lane.highest < Some(id), "a new message under an old id: {:?}, then {id}", lane.highest);
                assert!(lane.heard[message.sender] < number, "a sender's messages arrive as they were said");
                (*first, lane.highest, lane.heard[message.sender]) = (Some(id), Some(id), number);
                lane.order.push(number);
            }
        }
        lane.here.insert(number);
        lane.unacked.insert(number, reflected.id());
    }

    /// Everybody is connected and dry.
    fn compare(&mut self) {
        let everywhere = |message: &Message| message.arrived.iter().flatten().count() == DEVICES - 1;
        let nowhere = |message: &Message| message.arrived.iter().flatten().count() == 0;
        let mut doubtful = BTreeMap::<usize, BTreeSet<bool>>::new();
        for number in std::mem::take(&mut self.open) {
            let message = self.messages.get_mut(&number).unwrap();
            match message.promise {
                Promise::Kept => assert!(everywhere(message), "LOST: {number} was acknowledged: {message:?}"),
                Promise::Staged => assert!(nowhere(message), "{number} was never committed: {message:?}"),
                Promise::Said => {
                    let there = everywhere(message);
                    assert!(there || nowhere(message), "{number} arrived here and not there: {message:?}");
                    if let Some(transaction) = message.transaction {
                        doubtful.entry(transaction).or_default().insert(there);
                    }
                    self.in_doubt += 1;
                }
                Promise::Void => panic!("{number} is open"),
            }
            self.kept += u64::from(message.promise == Promise::Kept);
            if nowhere(message) {
                message.promise = Promise::Void;
            }
        }
        for (transaction, fates) in doubtful {
            assert_eq!(fates.len(), 1, "transaction {transaction} is there in parts");
        }
        for (device, lane) in self.lanes.iter().enumerate() {
            let missing: Vec<_> = lane.unacked.keys().filter(|number| !lane.here.contains(number)).collect();
            assert!(missing.is_empty(), "device {device} did not acknowledge {missing:?}, and they do not come again");
        }
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            let shown = |lane: usize| {
                let order = self.lanes[lane].order.iter().copied();
                order.filter(|number| ![a, b].contains(&self.messages[number].sender)).collect::<Vec<_>>()
            };
            assert_eq!(shown(a), shown(b), "devices {a} and {b} were shown different orders");
        }
        self.lanes.iter_mut().for_each(|lane| lane.order.clear());
    }
}

/// The number, then bytes that follow from it.
fn envelope(number: Number, len: usize) -> Vec<u8> {
    let mut rng = Rng::with_seed(number.into());
    let mut envelope = number.to_le_bytes().to_vec();
    envelope.resize_with(len, || rng.u8(..));
    envelope
}

// ---- the devices

/// A device group, over all rounds.
struct Group {
    key: GroupKey,
    books: Mutex<Books>,
    changed: Notify,
}

impl Group {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap()
    }

    fn config(&self, device: usize) -> DeviceConfig {
        DeviceConfig::new(self.key.clone(), ServerGroup::new("a0").unwrap(), DeviceId(device as u64 + 1))
    }

    async fn until<T>(&self, mut ready: impl FnMut(&mut Books) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            if let Some(value) = ready(&mut self.books()) {
                return value;
            }
            changed.await;
        }
    }

    /// Takes the backlog.
    async fn catches_up(&self, device: usize, receiver: &mut Receiver, fuse: &Fuse) -> Result<(), Ended> {
        loop {
            let payload = receiver.next().await?;
            fuse.burn();
            match payload {
                ToDevice::Reflected(reflected) => self.books().arrived(device, &reflected),
                ToDevice::ReflectionQueueDry => return Ok(()),
                other => assert_eq!(other, ToDevice::RolePromotedToLeader),
            }
        }
    }

    async fn hears(&self, device: usize, sender: &Sender, receiver: &mut Receiver, mut rng: Rng, fuse: &Fuse) -> Ended {
        loop {
            let payload = match receiver.next().await {
                Ok(payload) => payload,
                Err(ended) => return ended,
            };
            fuse.burn();
            let mut to_ack = Vec::new();
            {
                let mut books = self.books();
                match payload {
                    ToDevice::Reflected(reflected) => {
                        books.arrived(device, &reflected);
                        // Some are acknowledged at once, others later, in any order, or never on this connection.
                        let unacked = &mut books.lanes[device].unacked;
                        if rng.u8(..10) < 7 {
                            let at = rng.usize(..unacked.len());
                            let number = *unacked.keys().nth(at).unwrap();
                            to_ack.extend(unacked.remove(&number));
                        }
                    }
                    ToDevice::ReflectAck(ack) => books.acked(device, ack),
                    ToDevice::BeginTransactionAck => books.lanes[device].lock = Lock::Held,
                    ToDevice::TransactionRejected(_) => books.lanes[device].lock = Lock::Rejected,
                    ToDevice::TransactionEnded(_) if books.lanes[device].lock == Lock::Rejected => {
                        books.lanes[device].lock = Lock::Free;
                    }
                    ToDevice::CommitTransactionAck => books.lanes[device].lock = Lock::Committed,
                    ToDevice::TransactionEnded(_) | ToDevice::RolePromotedToLeader => {}
                    other => panic!("{other:?}"),
                }
            }
            self.changed.notify_waiters();
            for id in to_ack {
                // How it ended is for the next reading to see.
                let _ended = sender.ack(id).await;
            }
        }
    }

    async fn speaks(&self, device: usize, sender: &Sender, mut rng: Rng) -> Result<(), Ended> {
        // First what the last connection left.
        let left = std::mem::take(&mut self.books().lanes[device].unacked);
        for id in left.into_values() {
            sender.ack(id).await?;
        }
        loop {
            self.until(|books| (books.lanes[device].unanswered < WINDOW).then_some(())).await;
            if rng.u8(..10) > 0 {
                self.says(device, sender, None, &mut rng).await?;
                continue;
            }
            self.books().lanes[device].lock = Lock::Asked;
            sender.begin(b"scope", 0).await?;
            let answer = |books: &mut Books| {
                Some(books.lanes[device].lock).filter(|lock| !matches!(lock, Lock::Asked | Lock::Rejected))
            };
            if self.until(answer).await == Lock::Free {
                continue;
            }
            let transaction = {
                let mut books = self.books();
                books.transactions += 1;
                books.transactions
            };
            for _ in 0..rng.u8(1..8) {
                self.says(device, sender, Some(transaction), &mut rng).await?;
            }
            self.books().commit(transaction, Promise::Said);
            sender.commit().await?;
            self.until(|books| (books.lanes[device].lock == Lock::Committed).then_some(())).await;
            self.books().commit(transaction, Promise::Kept);
        }
    }

    async fn says(&self, device: usize, sender: &Sender, of: Option<usize>, rng: &mut Rng) -> Result<(), Ended> {
        let len = if rng.u8(..50) == 0 { ENVELOPE_MAX } else { rng.usize(4..2_000) };
        let number = self.books().say(device, of);
        sender.reflect_as(ReflectId(number), &envelope(number, len), ReflectFlags::default()).await
    }
}

/// Counts what devices are told; at the end of it, the server is killed.
struct Fuse {
    left: AtomicU64,
    burnt: CancellationToken,
    server: Mutex<Binary>,
}

impl Fuse {
    fn burn(&self) {
        let before = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if before == Ok(1) {
            self.server.lock().unwrap().kill();
            self.burnt.cancel();
        }
    }
}

/// One connection: connects, takes its backlog, waits for the others, and goes on until it is cut off.
async fn connection(group: &Group, device: usize, new: bool, meeting: &Meeting, mut rng: Rng) -> Result<(), Ended> {
    group.books().connected(device);
    let config = if new { group.config(device) } else { group.config(device).existing() };
    let connected = Device::connect(&meeting.mediator, &config).await.map_err(|error| match error {
        ConnectError::NotAdmitted(ended) => ended,
        error @ (ConnectError::Tcp(_) | ConnectError::WebSocket(_)) => Ended::Lost(error.to_string()),
        error => panic!("{error}"),
    })?;
    let (sender, mut receiver) = connected.split();
    group.catches_up(device, &mut receiver, &meeting.fuse).await?;
    meeting.everybody_is_dry().await?;
    if meeting.is_last {
        return Ok(());
    }
    let speaks = group.speaks(device, &sender, rng.fork());
    let hears = group.hears(device, &sender, &mut receiver, rng, &meeting.fuse);
    tokio::pin!(speaks, hears);
    tokio::select! {
        ended = &mut hears => Err(ended),
        Err(_) = &mut speaks => Err(hears.await),
    }
}

/// Where all connections of a round wait for each other; one of them compares the books.
struct Meeting {
    mediator: Mediator,
    fuse: Fuse,
    groups: Arc<Vec<Group>>,
    everybody: Barrier,
    compared: AtomicBool,
    /// After how many answers the server is killed, once the books are compared.
    answers: u64,
    is_last: bool,
}

impl Meeting {
    async fn everybody_is_dry(&self) -> Result<(), Ended> {
        let meet = async {
            if self.everybody.wait().await.is_leader() {
                self.groups.iter().for_each(|group| group.books().compare());
                self.compared.store(true, Ordering::Relaxed);
                if !self.is_last {
                    self.fuse.left.fetch_min(self.answers, Ordering::Relaxed);
                }
            }
            // Nobody speaks before the books are compared.
            self.everybody.wait().await;
        };
        // Somebody else may have been cut off before it was dry.
        let cut_off = || Ended::Lost("the server was killed".to_owned());
        self.fuse.burnt.run_until_cancelled(meet).await.ok_or_else(cut_off)
    }
}

/// Prints where it happened, and keeps the data, when the test fails.
struct Story {
    seed: u64,
    round: u64,
    data: Option<tempfile::TempDir>,
}

impl Drop for Story {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let data = self.data.take().map(tempfile::TempDir::keep);
            eprintln!("crashes: CRASH_SEED={} failed in round {}; its data are in {data:?}", self.seed, self.round);
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect(name))
}

#[tokio::test]
async fn whatever_moment_the_server_is_killed_at_nothing_that_was_promised_is_lost() {
    let rounds = number("CRASH_ROUNDS").unwrap_or(20);
    let seed = number("CRASH_SEED").unwrap_or_else(|| fastrand::u64(..));
    let mut rng = Rng::with_seed(seed);
    let mut story = Story { seed, round: 0, data: Some(tempfile::tempdir().unwrap()) };
    let data = story.data.as_ref().unwrap().path().join("data");
    let group = || Group { key: GroupKey::generate(), books: Mutex::default(), changed: Notify::new() };
    let groups: Arc<Vec<_>> = Arc::new(std::iter::repeat_with(group).take(GROUPS).collect());
    let mut compared = 0;
    for round in 0..=rounds {
        story.round = round;
        // Counted from the first word, or from when the books were compared. In the first round everybody gets a slot,
        // behind the last one it is only asked what is left.
        let (answers, early) = (rng.u64(1..800), round > 0 && rng.u8(..4) == 0);
        let is_last = round == rounds;
        if round > 0 && rng.u8(..5) == 0 {
            Binary::nips(&data);
        }
        let server = Binary::start(&data);
        let meeting = Meeting {
            mediator: server.mediator(),
            fuse: Fuse {
                left: AtomicU64::new(if early && !is_last { answers } else { u64::MAX }),
                burnt: CancellationToken::new(),
                server: Mutex::new(server),
            },
            answers,
            groups: Arc::clone(&groups),
            everybody: Barrier::new(GROUPS * DEVICES),
            compared: AtomicBool::new(false),
            is_last,
        };
        let devices = groups.iter().flat_map(|group| (0..DEVICES).map(move |device| (group, device)));
        let connections: Vec<_> =
            devices.map(|(group, device)| connection(group, device, round == 0, &meeting, rng.fork())).collect();
        let ends = tokio::time::timeout(PATIENCE, join_all(connections)).await.expect("a round ends");
        compared += u64::from(meeting.compared.load(Ordering::Relaxed));
        if meeting.is_last {
            assert!(ends.iter().all(Result::is_ok), "{ends:?}");
            let mut server = meeting.fuse.server.into_inner().unwrap();
            assert!(server.stop().await.success());
            break;
        }
        for ended in ends {
            let ended = ended.unwrap_err();
            assert_eq!(ended.code(), None, "a server that is killed says nothing: {ended}");
        }
        assert!(meeting.fuse.burnt.is_cancelled(), "everybody was cut off, and nobody killed the server");
    }
    let sum = |of: fn(&Books) -> u64| groups.iter().map(|group| of(&group.books())).sum::<u64>();
    let (kept, in_doubt, again) = (sum(|b| b.kept), sum(|b| b.in_doubt), sum(|b| b.again));
    println!(
        "{rounds} kills, books compared {compared} times: {kept} messages kept, {in_doubt} in doubt, {again} again"
    );
    assert!(compared > rounds / 2 && kept > 20 * rounds, "the rounds are about nothing");
}
