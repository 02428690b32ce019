//! The mediator of a test.

use std::io;
use std::net::SocketAddr;
use std::panic::Location;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{DuplexStream, duplex};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::client::TestClient;
use crate::client::{DeviceConfig, GroupKey, Mediator, RawConnection, Trust};
use crate::group::Limits;
use crate::net::listen::{Door, Listener};
use crate::net::{development, tls};
use crate::server::stage::{self, Stage};
use crate::server::{self, bind};
use crate::session::Timeouts;
use crate::store::memory::MemoryStore;
use crate::store::sqlite::SqliteStore;
use crate::store::{Durability, Store};
use crate::time::Clock;
use crate::wire::d2m::{ClientUrlInfo, DeviceId, ServerGroup};

/// How long something that has to happen may take, in real time.
const PATIENCE: Duration = Duration::from_secs(20);
/// The same in virtual time, which costs nothing: longer than every timeout of a mediator.
const VIRTUAL_PATIENCE: Duration = Duration::from_secs(3_600);
/// When virtual time begins: milliseconds since the Unix epoch.
const VIRTUAL_BEGINNING_MS: u64 = 1_700_000_000_000;
/// Bytes that wait in each direction of a connection through memory.
const PIPE: usize = 64 * 1_024;
/// Connections through memory that wait to be accepted.
const BACKLOG: usize = 64;

/// What a test says when its surroundings fail it.
#[track_caller]
fn works<T, E: std::fmt::Display>(done: Result<T, E>, what: &str) -> T {
    done.unwrap_or_else(|error| panic!("{what}: {error}"))
}

/// How the mediator of a test differs from one that is started as it comes.
#[derive(Debug, Clone, Default)]
pub struct Builder {
    limits: Limits,
    timeouts: Timeouts,
    tls: bool,
    on_disk: bool,
    virtual_time: bool,
    no_chat_server: bool,
}

impl Builder {
    /// Other bounds of groups.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Other times that devices may take.
    #[must_use]
    pub const fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// Speaks TLS, with a certificate for `localhost` that is made for this test ([`TestServer::ca`]).
    #[must_use]
    pub const fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Keeps groups in a real store, in a directory that goes with the server. In memory otherwise.
    #[must_use]
    pub const fn on_disk(mut self) -> Self {
        self.on_disk = true;
        self
    }

    /// Obeys tokio's time, for tests in which it stands still (`start_paused`): clients come through memory, there is no URL.
    /// Not together with [`Self::tls`] or [`Self::on_disk`]: a disk works in real time.
    #[must_use]
    pub const fn virtual_time(mut self) -> Self {
        self.virtual_time = true;
        self
    }

    /// Nobody is there where the chat server should be.
    #[must_use]
    pub const fn no_chat_server(mut self) -> Self {
        self.no_chat_server = true;
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// When this machine cannot give what it takes: a port, a directory.
    pub async fn start(self) -> TestServer {
        assert!(
            !(self.virtual_time && (self.tls || self.on_disk)),
            "virtual time is for a mediator in memory, without TLS and disk"
        );
        let dir = works(TempDir::new(), "no directory for the test");
        let clock = if self.virtual_time { Clock::following(VIRTUAL_BEGINNING_MS) } else { Clock::system() };
        let patience = if self.virtual_time { VIRTUAL_PATIENCE } else { PATIENCE };
        let kept = Kept::open(&self, &dir, clock);
        let road = if self.virtual_time {
            Road::Memory(Mutex::new(None))
        } else {
            let listener = works(bind(SocketAddr::from(([127, 0, 0, 1], 0))).await, "no port for the test");
            let address = works(listener.local_addr(), "no port for the test");
            let listener = works(listener.into_std(), "no port for the test");
            let (url, trust) = if self.tls {
                (
                    format!("wss://localhost:{}", address.port()),
                    Trust::CaFile(dir.path().join("tls").join("dev-ca.pem")),
                )
            } else {
                (format!("ws://{address}"), Trust::System)
            };
            let door = if self.tls { secured(&dir, clock) } else { Door::default() };
            // The CA is made with the certificate, so the door comes first.
            let mediator = works(Mediator::new(&url, &trust), "no mediator");
            Road::Tcp { url, mediator, door, listener }
        };
        let net = Arc::new(Net { road, patience });
        let mut server = TestServer { how: self, dir, clock, kept, net, running: None };
        server.run().await;
        server
    }
}

/// A mediator that runs for a test, and the chat server behind it, which the test plays.
#[derive(Debug)]
pub struct TestServer {
    how: Builder,
    dir: TempDir,
    clock: Clock,
    kept: Kept,
    net: Arc<Net>,
    running: Option<(server::Mediator, Stage)>,
}

impl TestServer {
    /// One as it comes: plain WebSocket on a port of its own, groups in memory.
    ///
    /// # Panics
    /// As [`Builder::start`].
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// One that differs.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Its base URL, for clients of any make: `ws://127.0.0.1:PORT` or `wss://localhost:PORT`.
    ///
    /// # Panics
    /// In virtual time, where no socket leads to it.
    #[must_use]
    #[track_caller]
    pub fn url(&self) -> &str {
        match &self.net.road {
            Road::Tcp { url, .. } => url,
            Road::Memory(_) => panic!("in virtual time there is no URL"),
        }
    }

    /// With [`Builder::tls`]: the file with the CA that clients have to trust.
    #[must_use]
    pub fn ca(&self) -> std::path::PathBuf {
        self.dir.path().join("tls").join("dev-ca.pem")
    }

    /// A device group that nobody else knows.
    #[must_use]
    pub fn group(&self) -> TestGroup {
        self.group_of(GroupKey::generate())
    }

    /// The device group of this key.
    #[must_use]
    pub fn group_of(&self, key: GroupKey) -> TestGroup {
        TestGroup { key, net: Arc::clone(&self.net) }
    }

    /// The next connection of the mediator to its chat server, for the test to play it. A device's first proxied bytes
    /// make one; dropping it ends the device's connection with 4000.
    ///
    /// # Panics
    /// When none comes.
    #[track_caller]
    pub fn chat_accepts(&mut self) -> impl Future<Output = DuplexStream> {
        let (at, patience) = (Location::caller(), self.net.patience);
        let stage = self.running.as_mut().map(|(_, stage)| stage);
        async move {
            let accepted = async { stage?.accepts().await };
            match tokio::time::timeout(patience, accepted).await {
                Ok(Some(stream)) => stream,
                Ok(None) | Err(_) => panic!("{at}: the mediator did not connect to the chat server"),
            }
        }
    }

    /// The next thing that has to be written fails: every device of its group is closed with 1011.
    ///
    /// # Panics
    /// On disk, where nothing fails on demand.
    #[track_caller]
    pub fn fail_next_write(&self) {
        match &self.kept {
            Kept::Memory(store) => store.fail_at(store.commits() + 1),
            Kept::Disk(_) => panic!("only a store in memory fails on demand"),
        }
    }

    /// Stops in order (1001 to everybody) and starts again, at the same place with what was kept. Groups stay usable.
    ///
    /// A client answers the close when it reads; one that does not is waited for, five seconds. So expect its end meanwhile:
    /// `tokio::join!(server.restart(), phone.expect_close(1001))`.
    ///
    /// # Panics
    /// When it does not stop or start.
    pub async fn restart(&mut self) {
        self.halt().await;
        self.kept = match &self.kept {
            Kept::Memory(store) => Kept::Memory(Arc::new(store.survivors(self.clock.now().wall_ms))),
            Kept::Disk(_) => Kept::open(&self.how, &self.dir, self.clock),
        };
        self.run().await;
    }

    /// Begins to stop: 1001 to everybody who is still connected, which is for them to expect. A test that only ends needs no
    /// stop.
    pub fn stop(mut self) {
        tokio::spawn(async move { self.halt().await });
    }

    async fn halt(&mut self) {
        if let Some((mediator, _stage)) = self.running.take() {
            works(mediator.stop().await, "the mediator does not stop");
        }
        if let Kept::Disk(store) = &self.kept {
            works(store.close().await, "the store does not close");
        }
    }

    async fn run(&mut self) {
        let (mut stage, door) = Stage::open();
        if self.how.no_chat_server {
            stage = Stage::open().0;
        }
        let store: Arc<dyn Store> = match &self.kept {
            Kept::Memory(store) => Arc::<MemoryStore>::clone(store),
            Kept::Disk(store) => Arc::<SqliteStore>::clone(store),
        };
        let parts = stage::parts(store, self.clock, door, self.how.limits.clone(), self.how.timeouts);
        let parts = works(parts, "no directory of chat servers");
        let mediator = match &self.net.road {
            Road::Tcp { door, listener, .. } => {
                let listener = works(listener.try_clone().and_then(TcpListener::from_std), "the port is gone");
                server::Mediator::start(listener, door.clone(), parts)
            }
            Road::Memory(way_in) => {
                let (sender, arrivals) = mpsc::channel(BACKLOG);
                *way_in.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
                server::Mediator::start(Arrivals(arrivals), None, parts)
            }
        };
        self.running = Some((mediator, stage));
    }
}

/// Where groups are kept.
#[derive(Debug)]
enum Kept {
    Memory(Arc<MemoryStore>),
    Disk(Arc<SqliteStore>),
}

impl Kept {
    fn open(how: &Builder, dir: &TempDir, clock: Clock) -> Self {
        if !how.on_disk {
            return Self::Memory(Arc::new(MemoryStore::new()));
        }
        // A test's machine does not lose its power.
        let opened = SqliteStore::open(dir.path(), Durability::Memory, clock.now().wall_ms);
        Self::Disk(works(opened, "no store for the test"))
    }
}

/// How clients reach the mediator.
#[derive(Debug)]
pub(super) struct Net {
    road: Road,
    pub(super) patience: Duration,
}

#[derive(Debug)]
enum Road {
    Tcp {
        url: String,
        mediator: Mediator,
        door: Door,
        /// Kept over restarts, so that nobody else gets the port meanwhile.
        listener: std::net::TcpListener,
    },
    Memory(Mutex<Option<mpsc::Sender<DuplexStream>>>),
}

impl Net {
    async fn open(&self, url: &ClientUrlInfo) -> RawConnection {
        let opened = match &self.road {
            Road::Tcp { mediator, .. } => mediator.open(url).await,
            Road::Memory(way_in) => {
                let (ours, theirs) = duplex(PIPE);
                let way_in = way_in.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let come = match way_in {
                    Some(way_in) => way_in.send(theirs).await.is_ok(),
                    None => false,
                };
                assert!(come, "the mediator does not run");
                RawConnection::over(ours, &format!("ws://mediator.test/{}", url.to_segment())).await
            }
        };
        works(opened, "a client could not connect")
    }
}

/// Connections through memory.
struct Arrivals(mpsc::Receiver<DuplexStream>);

impl Listener for Arrivals {
    type Io = DuplexStream;

    async fn accept(&mut self) -> io::Result<(DuplexStream, SocketAddr)> {
        match self.0.recv().await {
            Some(stream) => Ok((stream, SocketAddr::from(([127, 0, 0, 1], 1)))),
            // Nobody can come any more; the mediator stops when it is told to.
            None => std::future::pending().await,
        }
    }
}

fn secured(dir: &TempDir, clock: Clock) -> Door {
    let made = development::development(&dir.path().join("tls"), clock.now().wall_ms);
    let made = works(made, "no certificate for the test");
    let certificate = works(tls::Certificate::load(&made.files), "no certificate for the test");
    Some(works(tls::Tls::presenting(certificate), "no certificate for the test")).into()
}

/// A device group of a test. Its devices' server group is `a0`, which leads to the chat server that the test plays.
#[derive(Debug, Clone)]
pub struct TestGroup {
    key: GroupKey,
    net: Arc<Net>,
}

impl TestGroup {
    /// Seals and opens what devices say to each other.
    #[must_use]
    pub const fn key(&self) -> &GroupKey {
        &self.key
    }

    /// A device that never connected, to be changed as the test likes ([`Self::connects`]).
    #[must_use]
    pub fn device(&self, id: u64) -> DeviceConfig {
        let Some(server_group) = ServerGroup::new("a0") else { panic!("a0 is a server group") };
        DeviceConfig::new(self.key.clone(), server_group, DeviceId(id))
    }

    /// A new device that has been admitted and has nothing waiting: `ServerInfo` and `ReflectionQueueDry` came.
    ///
    /// # Panics
    /// When it is not admitted.
    #[track_caller]
    pub fn joins(&self, id: u64) -> impl Future<Output = TestClient> {
        let (at, config) = (Location::caller(), self.device(id));
        async move { self.settled(&config, at).await }
    }

    /// The same for a device that was here before; nothing may wait for it.
    ///
    /// # Panics
    /// When it is not admitted, or something waits for it.
    #[track_caller]
    pub fn returns(&self, id: u64) -> impl Future<Output = TestClient> {
        let (at, config) = (Location::caller(), self.device(id).existing());
        async move { self.settled(&config, at).await }
    }

    async fn settled(&self, config: &DeviceConfig, at: &'static Location<'static>) -> TestClient {
        let mut client = self.connects(config).await;
        client.server_info(at).await;
        client.dry(at).await;
        client
    }

    /// A device that has introduced itself, and has not looked at the answer: `ServerInfo`, or a close.
    ///
    /// # Panics
    /// When there is no connection, or no `ServerHello` on it.
    pub async fn connects(&self, config: &DeviceConfig) -> TestClient {
        let mut client = TestClient::new(self.opens(config).await, config, self.net.patience);
        client.introduce(config).await;
        client
    }

    /// A WebSocket on which nothing has been said, for what no device should do.
    ///
    /// # Panics
    /// When there is no connection.
    pub async fn opens(&self, config: &DeviceConfig) -> RawConnection {
        self.net.open(&config.url_info()).await
    }
}
