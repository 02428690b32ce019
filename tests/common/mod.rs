//! A real mediator on real sockets, for tests: port 0, a directory of its own, a scripted chat server behind it.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    reason = "each test binary uses its own part"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may panic"
)]

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use heliostat::client::{Device, DeviceConfig, GroupKey, Mediator as Url, RawConnection, Trust};
use heliostat::group::Limits;
use heliostat::net::listen::Door;
use heliostat::server::{Admission, Mediator, Parts, Settings};
use heliostat::session::{Rates, Timeouts};
use heliostat::store::sqlite::SqliteStore;
use heliostat::store::{Durability, Store};
use heliostat::time::Clock;
use heliostat::upstream::directory::{Directory, DirectoryConfig, Target};
use heliostat::upstream::framer::Framing;
use heliostat::upstream::{TcpDial, UpstreamLimits};
use heliostat::wire::d2m::{ClientHello, DeviceId, ServerGroup, ToDevice};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Long enough for a machine that does ten other things, short enough to end a test that waits for nothing.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for something that has to happen.
pub async fn soon<T>(happens: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, happens).await.expect("this happens in time")
}

/// How a mediator under test differs from the default one.
#[derive(Default)]
pub struct Setup {
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub rates: Rates,
    pub admission: Admission,
    pub upstream: Option<SocketAddr>,
    pub framing: Framing,
    pub door: Door,
}

/// A mediator that listens.
pub struct Server {
    pub mediator: Mediator,
    pub address: SocketAddr,
    pub store: Arc<SqliteStore>,
}

impl Server {
    pub async fn start(dir: &Path, setup: Setup) -> Self {
        let clock = Clock::system();
        let store = SqliteStore::open(dir, Durability::Memory, clock.now().wall_ms).unwrap();
        let kept: Arc<dyn Store> = Arc::<SqliteStore>::clone(&store);
        let (mediator, address) = mediate(kept, setup, clock).await;
        Self { mediator, address, store }
    }

    pub fn url(&self) -> Url {
        plain(self.address)
    }

    /// Stops as an operator would.
    pub async fn stop(self) {
        soon(self.mediator.stop()).await.unwrap();
        self.store.close().await.unwrap();
    }
}

/// Starts a mediator over any store.
pub async fn mediate(store: Arc<dyn Store>, setup: Setup, clock: Clock) -> (Mediator, SocketAddr) {
    let Setup { limits, timeouts, rates, admission, upstream, framing, door } = setup;
    let default = upstream.map(|address| Target { addresses: vec![address.to_string()], framing });
    let directory = Directory::new(DirectoryConfig { default, ..DirectoryConfig::default() }).unwrap_or_default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let parts = Parts {
        store,
        neighbours: None,
        dial: Arc::new(TcpDial),
        upstream: UpstreamLimits::default(),
        settings: Settings { directory, limits, timeouts, rates, admission },
        clock,
        durability: "memory",
    };
    (Mediator::start(listener, door, parts), address)
}

pub fn plain(address: SocketAddr) -> Url {
    Url::new(&format!("ws://{address}"), &Trust::System).unwrap()
}

/// What a door answers.
pub struct Answer {
    pub status: u16,
    /// In seconds.
    pub retry_after: Option<u64>,
}

/// Asks a door for a page or a WebSocket, and hangs up.
pub async fn http(address: SocketAddr, path: &str, upgrade: bool) -> Answer {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    let mut tcp = TcpStream::connect(address).await.unwrap();
    let headers = if upgrade {
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    } else {
        "Connection: close\r\n"
    };
    tcp.write_all(format!("GET {path} HTTP/1.1\r\nHost: test\r\n{headers}\r\n").as_bytes()).await.unwrap();
    let mut lines = BufReader::new(tcp).lines();
    let status = soon(lines.next_line()).await.unwrap().expect("a door answers");
    let mut answer = Answer { status: status.split(' ').nth(1).unwrap().parse().unwrap(), retry_after: None };
    while let Some(line) = soon(lines.next_line()).await.unwrap().filter(|line| !line.is_empty()) {
        if let Some(seconds) = line.to_ascii_lowercase().strip_prefix("retry-after: ") {
            answer.retry_after = Some(seconds.parse().unwrap());
        }
    }
    answer
}

/// A device group under test.
pub struct Family {
    pub key: GroupKey,
    pub url: Url,
}

impl Family {
    pub fn new(url: Url) -> Self {
        Self { key: GroupKey::generate(), url }
    }

    pub fn config(&self, device: u64) -> DeviceConfig {
        DeviceConfig::new(self.key.clone(), ServerGroup::new("a0").unwrap(), DeviceId(device))
    }

    /// A device that registers, and has its backlog.
    pub async fn joins(&self, device: u64) -> Device {
        self.connects(&self.config(device)).await
    }

    /// A device that was here before, and has its backlog.
    pub async fn returns(&self, device: u64) -> Device {
        self.connects(&self.config(device).existing()).await
    }

    pub async fn connects(&self, config: &DeviceConfig) -> Device {
        let mut device = soon(Device::connect(&self.url, config)).await.unwrap();
        soon(device.wait_dry()).await.unwrap();
        device
    }

    /// A connection that has said nothing yet.
    pub async fn opens(&self) -> RawConnection {
        soon(self.url.open(&self.config(1).url_info())).await.unwrap()
    }

    /// A connection that has been admitted, with nothing else read.
    pub async fn admitted(&self, config: &DeviceConfig) -> RawConnection {
        let mut raw = self.opens().await;
        let hello = self.hello(&mut raw, config).await;
        raw.send(&heliostat::wire::d2m::FromDevice::ClientHello(Box::new(hello))).await.unwrap();
        soon(raw.server_info()).await.unwrap();
        raw
    }

    /// The answer to a connection's ServerHello.
    pub async fn hello(&self, raw: &mut RawConnection, config: &DeviceConfig) -> ClientHello {
        let hello = soon(raw.server_hello()).await.unwrap();
        config.client_hello(&hello).unwrap()
    }
}

/// The next payload that is a reflected message: its envelope.
pub async fn reflected(device: &mut Device) -> Vec<u8> {
    let payload = soon(device.wait_for(|payload| matches!(payload, ToDevice::Reflected(_)))).await.unwrap();
    let ToDevice::Reflected(message) = payload else { unreachable!() };
    message.envelope().to_vec()
}

/// Proves that a connection was sent nothing that is not named: asks for something and sees only the answer.
pub async fn hears_nothing_before_devices_info(raw: &mut RawConnection) {
    raw.send(&heliostat::wire::d2m::FromDevice::GetDevicesInfo).await.unwrap();
    let next = soon(raw.recv()).await.unwrap();
    assert!(matches!(next, ToDevice::DevicesInfo(_)), "{next:?}");
}

/// A chat server that does what the test says.
pub struct ScriptedChat {
    listener: TcpListener,
    pub address: SocketAddr,
}

impl ScriptedChat {
    pub async fn bind() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self { listener, address }
    }

    pub async fn accepts(&self) -> TcpStream {
        soon(self.listener.accept()).await.unwrap().0
    }

    /// Whether somebody connected who has not been accepted yet.
    pub async fn nobody_came(&self) -> bool {
        futures_util::FutureExt::now_or_never(self.listener.accept()).is_none()
    }
}

/// A client's socket that lets no pong through, and counts them. Everything else passes.
pub struct PongSink {
    inner: TcpStream,
    /// Bytes of the current frame that are still to be written.
    left: usize,
    pongs: watch::Sender<usize>,
}

impl PongSink {
    pub fn new(inner: TcpStream) -> (Self, watch::Receiver<usize>) {
        let (pongs, counted) = watch::channel(0);
        (Self { inner, left: 0, pongs }, counted)
    }

    /// Length of the frame at the front, header included.
    fn frame_len(bytes: &[u8]) -> usize {
        const MASK: usize = 4;
        match bytes[1] & 0x7f {
            126 => 4 + MASK + usize::from(u16::from_be_bytes([bytes[2], bytes[3]])),
            127 => panic!("no test sends that much through here"),
            short => 2 + MASK + usize::from(short),
        }
    }
}

impl AsyncWrite for PongSink {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.starts_with(b"GET ") {
            return Pin::new(&mut self.inner).poll_write(cx, bytes);
        }
        if self.left == 0 {
            let len = Self::frame_len(bytes);
            if bytes[0] & 0x0f == 0xa {
                self.pongs.send_modify(|pongs| *pongs += 1);
                return Poll::Ready(Ok(len));
            }
            self.left = len;
        }
        let now = self.left.min(bytes.len());
        let written = std::task::ready!(Pin::new(&mut self.inner).poll_write(cx, &bytes[..now]))?;
        self.left -= written;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl AsyncRead for PongSink {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}
