//! Three nodes of the real binary on one PostgreSQL, and everything that can go wrong between them while devices talk.
//!
//! Each node reaches the database by a relay of its own, and the others reach it by another one; both can be cut and frozen.
//! Devices come in by a balancer that sends each connection to any node that says it is ready, so that most groups have
//! devices on several nodes. `heliostat simulate` judges what reached whom; probes, two devices each, measure how long a
//! group was without a mediator.
//!
//! Every fault once, in an order that the seed chooses, is what CI runs. Ten minutes of them:
//! `CLUSTER_MINUTES=10 cargo test --test cluster -- --ignored --nocapture`; then how soon devices are back is asserted, too.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may panic"
)]

#[path = "common/binary.rs"]
mod binary;
#[path = "common/postgres.rs"]
mod postgres;
#[path = "common/relay.rs"]
mod relay;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use binary::Binary;
use fastrand::Rng;
use heliostat::client::{ConnectError, Device, DeviceConfig, Ended, GroupKey, Mediator, Trust};
use heliostat::time::Clock;
use heliostat::wire::d2m::{CloseCode, DeviceId, ReflectFlags, ServerGroup, SlotState, ToDevice};
use postgres::Postgres;
use relay::{Behind, Relay, Weather};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// Short, so that a test need not wait long for a dead node's groups.
const LEASE: Duration = Duration::from_secs(2);
/// What is promised beyond the lease.
const GRACE: Duration = Duration::from_secs(5);

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let look = async {
        while !is_so().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

// ---- the cluster

struct Node {
    name: String,
    home: tempfile::TempDir,
    to_database: Relay,
    to_others: Relay,
    more: String,
    binary: Mutex<Option<Binary>>,
    door: Arc<Door>,
    watching: Mutex<Option<JoinHandle<()>>>,
}

/// What the balancer knows of a node.
#[derive(Default)]
struct Door {
    /// Where devices come in, while it says that it is ready.
    ready: Mutex<Option<SocketAddr>>,
    /// How often it was found to say nothing. Connections to it are ended then, as a balancer does who looks.
    silences: watch::Sender<u64>,
}

impl Node {
    /// Starts the process, and waits for it to say where it listens.
    async fn start(&self) {
        let (data, more) = (self.home.path().join("data"), self.more.clone());
        let binary = tokio::task::spawn_blocking(move || Binary::start_with(&data, &more)).await.unwrap();
        let links = binary.links().expect("a node says where others reach it").parse().unwrap();
        self.to_others.leads_to(Behind::Tcp(links));
        let devices: SocketAddr = binary.url().trim_start_matches("ws://localhost:").parse::<u16>().map_or_else(
            |_| binary.url().trim_start_matches("ws://").parse().unwrap(),
            |port| SocketAddr::from(([127, 0, 0, 1], port)),
        );
        let admin = binary.admin().trim_start_matches("http://").trim_end_matches('/').parse().unwrap();
        let door = Arc::clone(&self.door);
        let watching = tokio::spawn(async move {
            loop {
                let says = timeout(Duration::from_millis(800), says_ready(admin)).await;
                if says.is_err() {
                    door.silences.send_modify(|silences| *silences += 1);
                }
                *door.ready.lock().unwrap() = says.unwrap_or(false).then_some(devices);
                sleep(Duration::from_millis(100)).await;
            }
        });
        *self.watching.lock().unwrap() = Some(watching);
        *self.binary.lock().unwrap() = Some(binary);
    }

    fn signal(&self, signal: &str) {
        let id = self.binary.lock().unwrap().as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
    }

    fn kill(&self) {
        self.binary.lock().unwrap().take().unwrap().kill();
        self.forget();
    }

    /// It is no longer there for the balancer.
    fn forget(&self) {
        if let Some(watching) = self.watching.lock().unwrap().take() {
            watching.abort();
        }
        *self.door.ready.lock().unwrap() = None;
    }
}

async fn says_ready(admin: SocketAddr) -> bool {
    let ask = async {
        let mut tcp = TcpStream::connect(admin).await?;
        tcp.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
        let mut status = [0; 12];
        tcp.read_exact(&mut status).await?;
        std::io::Result::Ok(&status == b"HTTP/1.1 200")
    };
    ask.await.unwrap_or(false)
}

struct Cluster {
    postgres: Postgres,
    nodes: Vec<Node>,
    balancer: SocketAddr,
    /// How many connections came in.
    arrived: Arc<AtomicU64>,
    balancing: JoinHandle<()>,
    _certificates: tempfile::TempDir,
}

impl Cluster {
    /// `None` where PostgreSQL is not installed.
    async fn start(size: usize) -> Option<Self> {
        Self::start_on(tokio::task::spawn_blocking(Postgres::start).await.unwrap()?, size).await
    }

    async fn start_on(postgres: Postgres, size: usize) -> Option<Self> {
        postgres.database("mediator");
        let certificates = tempfile::tempdir().unwrap();
        let names: Vec<_> = (1..=size).map(|n| format!("node-{n}")).collect();
        let mut make = Command::new(binary::program());
        make.args(["cluster", "certificates", "--out"]).arg(certificates.path());
        for name in &names {
            make.args(["--node", &format!("{name}=127.0.0.1")]);
        }
        assert!(make.stdout(Stdio::null()).status().unwrap().success());
        let mut nodes = Vec::new();
        for name in names {
            let to_database = Relay::to(Behind::Unix(postgres.socket())).await;
            let to_others = Relay::new().await;
            let file = |end: &str| certificates.path().join(end);
            let more = format!(
                // A busy machine is no reason here to let nobody new in.
                "store = 'postgres://postgres@127.0.0.1:{port}/mediator?sslmode=disable'\n\
                 shedding.writer_latency = 'unlimited'\n\
                 cluster = {{ name = '{name}', listen = '127.0.0.1:0', address = '{address}', lease = '{lease}', \
                 cert = {cert:?}, key = {key:?}, authority = {authority:?} }}\n",
                port = to_database.address().port(),
                address = to_others.address(),
                lease = humantime::format_duration(LEASE),
                cert = file(&format!("{name}.pem")),
                key = file(&format!("{name}.key")),
                authority = file("authority.pem"),
            );
            let home = tempfile::tempdir().unwrap();
            let node = Node {
                name,
                home,
                to_database,
                to_others,
                more,
                binary: Mutex::default(),
                door: Arc::default(),
                watching: Mutex::default(),
            };
            node.start().await;
            nodes.push(node);
        }
        let arrived = Arc::<AtomicU64>::default();
        let count = Arc::clone(&arrived);
        let (balancer, balancing) = balance(count, nodes.iter().map(|node| Arc::clone(&node.door)).collect()).await;
        let cluster = Self { postgres, nodes, balancer, arrived, balancing, _certificates: certificates };
        cluster.whole().await;
        Some(cluster)
    }

    fn url(&self) -> String {
        format!("ws://{}", self.balancer)
    }

    /// Waits until every node is ready.
    async fn whole(&self) {
        until("all nodes are ready", async || self.nodes.iter().all(|node| node.door.ready.lock().unwrap().is_some()))
            .await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.balancing.abort();
        for node in &self.nodes {
            node.forget();
        }
    }
}

/// Sends each connection to any of those that are ready.
async fn balance(arrived: Arc<AtomicU64>, nodes: Vec<Arc<Door>>) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let balancing = tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            arrived.fetch_add(1, Ordering::Relaxed);
            let ready = nodes.iter().filter_map(|node| Some((Arc::clone(node), (*node.ready.lock().unwrap())?)));
            let Some((door, chosen)) = fastrand::choice(ready.collect::<Vec<_>>()) else { continue };
            tokio::spawn(async move {
                let mut silences = door.silences.subscribe();
                let mut far = TcpStream::connect(chosen).await?;
                near.set_nodelay(true)?;
                far.set_nodelay(true)?;
                tokio::select! {
                    passed = tokio::io::copy_bidirectional(&mut near, &mut far) => passed.map(drop),
                    _ = silences.changed() => Ok(()),
                }
            });
        }
    });
    (address, balancing)
}

// ---- probes

/// A group of two devices of whom one speaks all the time.
struct Probe {
    /// When the last message was acknowledged, in milliseconds of the test's clock.
    acked_ms: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<()>>,
}

struct Probes {
    clock: Clock,
    over: Arc<AtomicBool>,
    /// With which codes nodes ended connections that had a seat.
    codes: Arc<Mutex<BTreeSet<u16>>>,
    probes: Vec<Probe>,
}

fn millis(clock: Clock) -> u64 {
    u64::try_from(clock.now().monotonic.as_millis()).unwrap()
}

impl Probes {
    fn begin(url: &str, count: usize) -> Self {
        let (clock, over) = (Clock::system(), Arc::<AtomicBool>::default());
        let codes = Arc::<Mutex<BTreeSet<u16>>>::default();
        let (ends, seen) = (Arc::clone(&over), Arc::clone(&codes));
        let probe = move |_| {
            let acked_ms = Arc::new(AtomicU64::new(0));
            let (key, url) = (GroupKey::generate(), Mediator::new(url, &Trust::System).unwrap());
            let tasks = (1..=2).map(|device| {
                let config = DeviceConfig::new(key.clone(), ServerGroup::new("a0").unwrap(), DeviceId(device));
                let (url, acked_ms, over) = (url.clone(), Arc::clone(&acked_ms), Arc::clone(&ends));
                let codes = Arc::clone(&seen);
                tokio::spawn(async move {
                    let mut config = config;
                    while !over.load(Ordering::Relaxed) {
                        let ended = talk(&url, &mut config, device == 1, clock, &acked_ms, &over).await;
                        codes.lock().unwrap().extend(ended);
                        // What a client waits at least.
                        sleep(Duration::from_millis(100)).await;
                    }
                })
            });
            Probe { tasks: tasks.collect(), acked_ms }
        };
        let probes = (0..count).map(probe).collect();
        Self { clock, over, codes, probes }
    }

    /// Waits until every probe got something acknowledged that it said after `since`; says how long after that the last one did.
    async fn are_back(&self, since_ms: u64) -> Duration {
        until("every probe is back", async || {
            self.probes.iter().all(|probe| probe.acked_ms.load(Ordering::Relaxed) > since_ms)
        })
        .await;
        Duration::from_millis(millis(self.clock) - since_ms)
    }

    async fn end(self) -> BTreeSet<u16> {
        self.over.store(true, Ordering::Relaxed);
        for probe in self.probes {
            for task in probe.tasks {
                task.await.unwrap();
            }
        }
        let codes = self.codes.lock().unwrap();
        codes.clone()
    }
}

/// One connection, until it ends; says with which code, if it had a seat. As patient as a device is: it waits for what it was
/// promised until somebody ends the connection.
async fn talk(
    url: &Mediator,
    config: &mut DeviceConfig,
    speaks: bool,
    clock: Clock,
    acked_ms: &AtomicU64,
    over: &AtomicBool,
) -> Option<u16> {
    // Longer than a node looks for a seat. Whoever gives up sooner and comes again may be replaced (4112) by the connection that was
    // given up, when that gets its seat at last: a node does not see meanwhile that nobody is there any more.
    let connected = timeout(PATIENCE, Device::connect(url, config)).await;
    let mut device = match connected {
        Ok(Ok(device)) => device,
        Ok(Err(ConnectError::NotAdmitted(ended)))
            if ended.code() == Some(CloseCode::DeviceSlotStateMismatch.code()) =>
        {
            config.expected_slot_state = match config.expected_slot_state {
                SlotState::New => SlotState::Existing,
                SlotState::Existing => SlotState::New,
            };
            return None;
        }
        Ok(Err(_)) | Err(_) => return None,
    };
    config.expected_slot_state = SlotState::Existing;
    while !over.load(Ordering::Relaxed) {
        let one = async {
            if speaks {
                let began = millis(clock);
                device.reflect_and_wait(b"still here", ReflectFlags::default()).await?;
                acked_ms.fetch_max(began, Ordering::Relaxed);
                sleep(Duration::from_millis(50)).await;
            } else if let ToDevice::Reflected(reflected) = device.next_event().await? {
                device.ack(reflected.id()).await?;
            }
            Ok::<(), Ended>(())
        };
        match timeout(if speaks { PATIENCE } else { Duration::from_secs(1) }, one).await {
            Ok(Ok(())) => {}
            // The other one may have nothing to say for long.
            Err(_) if !speaks => {}
            Ok(Err(ended)) => return ended.code(),
            Err(_) => panic!("a device waited in vain, and nobody ended its connection"),
        }
    }
    None
}

// ---- faults

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// `kill -9` of a node, which is started again.
    Kill,
    /// A node sleeps for longer than its lease, and goes on as if nothing had been.
    Pause,
    /// A node hears nothing of the database, nor the database of it.
    FrozenFromDatabase,
    /// A node's connections to the database break and cannot be made again.
    CutFromDatabase,
    /// Others cannot reach a node.
    CutFromOthers,
    /// The same, and they are not told.
    FrozenFromOthers,
    /// The database crashes and starts again.
    Restart,
    /// A node is asked to end in order, and started again.
    Drain,
}

const FAULTS: [Fault; 8] = [
    Fault::Kill,
    Fault::Pause,
    Fault::FrozenFromDatabase,
    Fault::CutFromDatabase,
    Fault::CutFromOthers,
    Fault::FrozenFromOthers,
    Fault::Restart,
    Fault::Drain,
];

impl Cluster {
    /// Lets it happen to a node, and puts everything right again. Says how long the probes were without a mediator after
    /// it began (for the database: after it was back).
    async fn suffer(&self, fault: Fault, node: &Node, probes: &Probes) -> Duration {
        let began = millis(probes.clock);
        let long = LEASE + LEASE / 2;
        let is_back = match fault {
            Fault::Kill => {
                node.kill();
                let back = probes.are_back(began).await;
                node.start().await;
                back
            }
            Fault::Pause => {
                node.signal("STOP");
                let back = probes.are_back(began).await;
                sleep(long.saturating_sub(back)).await;
                node.signal("CONT");
                back
            }
            Fault::FrozenFromDatabase | Fault::CutFromDatabase => {
                let frozen = fault == Fault::FrozenFromDatabase;
                node.to_database.turns(if frozen { Weather::Frozen } else { Weather::Cut });
                let back = probes.are_back(began).await;
                sleep(long.saturating_sub(back)).await;
                node.to_database.turns(Weather::Fair);
                back
            }
            Fault::CutFromOthers | Fault::FrozenFromOthers => {
                let frozen = fault == Fault::FrozenFromOthers;
                node.to_others.turns(if frozen { Weather::Frozen } else { Weather::Cut });
                let back = probes.are_back(began).await;
                sleep(long.saturating_sub(back)).await;
                node.to_others.turns(Weather::Fair);
                back
            }
            Fault::Restart => {
                tokio::task::block_in_place(|| self.postgres.restart());
                probes.are_back(millis(probes.clock)).await
            }
            Fault::Drain => {
                let mut binary = node.binary.lock().unwrap().take().unwrap();
                assert!(binary.stop().await.success(), "{} ends in order", node.name);
                node.forget();
                drop(binary);
                let back = probes.are_back(began).await;
                node.start().await;
                back
            }
        };
        self.whole().await;
        probes.are_back(millis(probes.clock)).await;
        is_back
    }
}

/// Devices that are judged, until they are told to end.
struct Judge {
    child: Child,
    report: PathBuf,
    dir: tempfile::TempDir,
}

impl Judge {
    /// Returns when its devices are there: what it does not reach when it begins it takes for something that never was.
    async fn begin(cluster: &Cluster, groups: u64) -> Self {
        const DEVICES: u64 = 3;
        let arrived = || cluster.arrived.load(Ordering::Relaxed);
        let (before, url) = (arrived(), cluster.url());
        let dir = tempfile::tempdir().unwrap();
        let report = dir.path().join("report.json");
        let mut command = Command::new(binary::program());
        command.args(["simulate", "--no-csp", "--plain", "--pause", "100ms", "--patience", "60s", "--duration", "1h"]);
        command.args(["--groups", &groups.to_string(), "--devices", &DEVICES.to_string(), "--transactions", "0.2"]);
        command.args(["--url", &url, "--data"]).arg(dir.path()).arg("--json").arg(&report);
        let said = std::fs::File::create(dir.path().join("said")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said).spawn().unwrap();
        until("the simulation's devices are there", async || arrived() > before + groups * DEVICES).await;
        Self { child, report, dir }
    }

    /// What it found.
    async fn end(mut self) -> (bool, String) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", "INT", &id]).status().unwrap().success());
        let mut ended = None;
        until("the simulation ends", async || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        })
        .await;
        let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        (ended.unwrap().success(), read(&self.report) + &read(&self.dir.path().join("said")))
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

/// As many faults as there is time for, every kind as often as every other. Returns how long the probes waited at most.
async fn storm(seed: u64, enough: impl Fn(usize) -> bool) -> Option<Duration> {
    let cluster = Cluster::start(3).await?;
    let mut rng = Rng::with_seed(seed);
    println!("seed {seed}");
    let probes = Probes::begin(&cluster.url(), 6);
    probes.are_back(0).await;
    let judge = Judge::begin(&cluster, 4).await;
    let (mut left, mut suffered, mut longest) = (Vec::new(), 0, Duration::ZERO);
    while !enough(suffered) {
        if left.is_empty() {
            left = FAULTS.to_vec();
            rng.shuffle(&mut left);
        }
        let (fault, node) = (left.pop().unwrap(), rng.choice(&cluster.nodes).unwrap());
        let back = cluster.suffer(fault, node, &probes).await;
        println!("{fault:?} of {}: back after {back:.1?}", node.name);
        longest = longest.max(back);
        suffered += 1;
    }
    let codes = probes.end().await;
    let (good, report) = judge.end().await;
    assert!(good, "seed {seed}: {report}");
    // Whatever happened to its node, a device is told to come again, and not that something is wrong.
    assert!(codes.iter().all(|code| *code == CloseCode::ShuttingDown.code()), "seed {seed}: {codes:?}");
    println!("{suffered} faults; the longest wait {longest:.1?}; {report}");
    Some(longest)
}

/// What devices of some nodes at once get acknowledged, by `heliostat bench`.
async fn measured(urls: Vec<String>) -> (f64, f64) {
    let benches = urls.into_iter().map(|url| {
        tokio::task::spawn_blocking(move || {
            let mut command = Command::new(binary::program());
            command.args(["bench", "reflect", "--rounds", "3", "--time", "5s", "--json", "-", "--url", &url]);
            let output = command.stderr(Stdio::null()).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
        })
    });
    let (mut together, mut p50) = (0.0, 0.0_f64);
    for report in futures_util::future::join_all(benches).await {
        let report = report.unwrap();
        let median = |name: &str| {
            let rows = report["measurements"][0]["results"].as_array().expect("a report lists what was measured");
            let row = rows.iter().find(|row| row["name"].as_str().is_some_and(|it| it.contains(name)));
            row.unwrap_or_else(|| panic!("{name} in {report:#}"))["median"].as_f64().unwrap()
        };
        together += median("reflects");
        p50 = p50.max(median("p50"));
    }
    (together, p50)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures: HELIOSTAT_BINARY=target/release/heliostat cargo test --test cluster throughput -- --ignored --nocapture"]
async fn throughput_of_one_two_and_three_nodes() {
    let data = tempfile::tempdir().unwrap();
    let alone = Binary::start(&data.path().join("data"));
    let (per_s, p50) = measured(vec![alone.url().to_owned()]).await;
    println!("one node on SQLite: {per_s:.0} reflects/s, p50 {p50}");
    drop(alone);
    for nodes in 1..=3 {
        let postgres = tokio::task::spawn_blocking(Postgres::durable).await.unwrap().expect("PostgreSQL is installed");
        let cluster = Cluster::start_on(postgres, nodes).await.unwrap();
        let own =
            cluster.nodes.iter().map(|node| format!("ws://{}", node.door.ready.lock().unwrap().unwrap())).collect();
        let (per_s, p50) = measured(own).await;
        println!("{nodes} nodes, every device at its group's: {per_s:.0} reflects/s, p50 {p50}");
        let (per_s, p50) = measured(vec![cluster.url()]).await;
        println!("{nodes} nodes, devices anywhere: {per_s:.0} reflects/s, p50 {p50}");
    }
}

fn required() {
    assert!(std::env::var_os("HELIOSTAT_REQUIRE_POSTGRES").is_none(), "PostgreSQL is not installed");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_nothing_acknowledged_is_lost_and_devices_come_back() {
    let seed = std::env::var("CLUSTER_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    if storm(seed, |suffered| suffered == FAULTS.len()).await.is_none() {
        required();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes as many minutes as CLUSTER_MINUTES says"]
async fn for_minutes() {
    let minutes: u64 = std::env::var("CLUSTER_MINUTES").map_or(10, |minutes| minutes.parse().unwrap());
    let (clock, seed) = (Clock::system(), fastrand::u64(..));
    let until = clock.now().monotonic + Duration::from_secs(60 * minutes);
    let longest = storm(seed, |_| clock.now().monotonic >= until).await.expect("PostgreSQL is installed");
    assert!(longest <= LEASE + GRACE, "{longest:?}");
}
