//! A chat server that pours, swallows or echoes, and devices that talk to it: through the mediator, and straight.
//!
//! It speaks the outside of CSP: 80 bytes, 32 bytes, then frames with their length before them, so that the mediator has to cut
//! the stream at every seam as it does for a real one. The first byte that a device sends says what it wants.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use miette::{IntoDiagnostic as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use super::server_group;
use crate::client::raw::Duplex;
use crate::client::{Device, DeviceConfig, GroupKey, Mediator};
use crate::time::Clock;
use crate::tools::simulate::totals::{histogram, record};
use crate::wire::csp;
use crate::wire::d2m::DeviceId;

const POUR: u8 = b'd';
const SWALLOW: u8 = b'u';
const ECHO: u8 = b'e';
/// What comes before the frames.
const PREFACE: usize = csp::SERVER_HELLO + csp::LOGIN_ACK;
const MIB: f64 = 1_048_576.0;

/// Which way bytes go, as the device sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Down,
    Up,
}

/// How a device gets to the chat server.
#[derive(Debug, Clone)]
pub(super) enum Way {
    Proxied(Mediator),
    Direct,
}

/// Counts for the measurement that runs: what is left of the one before counts for that one still.
type Swallowed = Arc<Mutex<Arc<AtomicU64>>>;

/// The chat server. Gone when this is dropped.
#[derive(Debug)]
pub(super) struct ChatServer {
    address: SocketAddr,
    frame: Arc<[u8]>,
    swallowed: Swallowed,
    task: AbortHandle,
}

impl Drop for ChatServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ChatServer {
    /// Frames are of so many bytes, without their length.
    pub(super) async fn start(frame_bytes: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.into_diagnostic()?;
        let address = listener.local_addr().into_diagnostic()?;
        let mut frame = frame_bytes.to_le_bytes().to_vec();
        frame.resize(frame.len() + usize::from(frame_bytes), 0x5a);
        let (frame, swallowed): (Arc<[u8]>, Swallowed) = (frame.into(), Arc::default());
        let (served, counter) = (Arc::clone(&frame), Arc::clone(&swallowed));
        let accept = async move {
            // Who is still served when nobody listens any more goes with the listener.
            let mut serving = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                while serving.try_join_next().is_some() {}
                serving.spawn(serve(stream, Arc::clone(&served), current(&counter)));
            }
        };
        Ok(Self { address, frame, swallowed, task: tokio::spawn(accept).abort_handle() })
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }
}

fn current(swallowed: &Swallowed) -> Arc<AtomicU64> {
    Arc::clone(&swallowed.lock().unwrap_or_else(PoisonError::into_inner))
}

async fn serve(mut stream: TcpStream, frame: Arc<[u8]>, swallowed: Arc<AtomicU64>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let wish = stream.read_u8().await?;
    stream.write_all(&[0; PREFACE]).await?;
    let mut buf = vec![0; 64 * 1_024];
    loop {
        match wish {
            POUR => stream.write_all(&frame).await?,
            SWALLOW => match stream.read(&mut buf).await? {
                0 => return Ok(()),
                read => drop(swallowed.fetch_add(read as u64, Ordering::Relaxed)),
            },
            _ => {
                let whole = buf.get_mut(..frame.len()).unwrap_or_default();
                stream.read_exact(whole).await?;
                stream.write_all(whole).await?;
            }
        }
    }
}

/// What was poured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Poured {
    pub(super) mib_per_second: f64,
}

/// A connection to the chat server that was told what is wanted, and whatever it needs to live on.
async fn connect(way: &Way, chat: &ChatServer, wish: u8) -> Result<(Pin<Box<dyn Duplex>>, Option<Device>)> {
    let (mut stream, device): (Pin<Box<dyn Duplex>>, _) = match way {
        Way::Direct => {
            let tcp = TcpStream::connect(chat.address).await.into_diagnostic()?;
            tcp.set_nodelay(true).into_diagnostic()?;
            (Box::pin(tcp), None)
        }
        Way::Proxied(mediator) => {
            let config = DeviceConfig::new(GroupKey::generate(), server_group()?, DeviceId(1));
            let mut device = Device::connect(mediator, &config).await.into_diagnostic()?;
            device.wait_leader().await.into_diagnostic()?;
            let stream = device.proxy_stream().ok_or_else(|| miette::miette!("the proxy stream is taken"))?;
            (Box::pin(stream), Some(device))
        }
    };
    stream.write_all(&[wish]).await.into_diagnostic()?;
    stream.flush().await.into_diagnostic()?;
    stream.read_exact(&mut [0; PREFACE]).await.into_diagnostic()?;
    Ok((stream, device))
}

/// Pours for so long over several connections.
pub(super) async fn pour(
    way: &Way,
    chat: &ChatServer,
    direction: Direction,
    connections: u16,
    time: Duration,
    clock: Clock,
) -> Result<Poured> {
    let received = Arc::new(AtomicU64::new(0));
    let swallowed = Arc::new(AtomicU64::new(0));
    // Before anybody connects for this one.
    *chat.swallowed.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&swallowed);
    let mut pouring = JoinSet::new();
    for _ in 0..connections {
        let wish = if direction == Direction::Down { POUR } else { SWALLOW };
        let (mut stream, device) = connect(way, chat, wish).await?;
        let (received, frame) = (Arc::clone(&received), Arc::clone(&chat.frame));
        pouring.spawn(async move {
            let _lives_on = device;
            let mut buf = vec![0; 64 * 1_024];
            loop {
                match direction {
                    Direction::Down => match stream.read(&mut buf).await? {
                        0 => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)),
                        read => drop(received.fetch_add(read as u64, Ordering::Relaxed)),
                    },
                    Direction::Up => stream.write_all(&frame).await?,
                }
            }
        });
    }
    let counter = if direction == Direction::Down { &*received } else { &*swallowed };
    let (before, began) = (counter.load(Ordering::Relaxed), clock.now().monotonic);
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        // None of them ends by itself.
        Some(ended) = pouring.join_next() => {
            let never: Result<std::convert::Infallible, std::io::Error> = ended.into_diagnostic()?;
            match never.into_diagnostic()? {}
        }
    }
    let bytes = counter.load(Ordering::Relaxed) - before;
    let elapsed = clock.now().monotonic.saturating_sub(began);
    pouring.shutdown().await;
    #[expect(clippy::cast_precision_loss, reason = "a quotient to be read by people")]
    let mib_per_second = bytes as f64 / MIB / elapsed.as_secs_f64();
    Ok(Poured { mib_per_second })
}

/// Sends one frame after the other to be echoed, for so long; says how long each took, in microseconds.
pub(super) async fn ping(way: &Way, chat: &ChatServer, time: Duration, clock: Clock) -> Result<Histogram<u64>> {
    let (mut stream, _device) = connect(way, chat, ECHO).await?;
    let mut took = histogram().into_diagnostic()?;
    let mut echo = vec![0; chat.frame.len()];
    let ends_at = clock.now().monotonic + time;
    loop {
        let began = clock.now().monotonic;
        if began >= ends_at {
            return Ok(took);
        }
        stream.write_all(&chat.frame).await.into_diagnostic()?;
        stream.flush().await.into_diagnostic()?;
        stream.read_exact(&mut echo).await.into_diagnostic()?;
        record(&mut took, clock.now().monotonic.saturating_sub(began));
    }
}
