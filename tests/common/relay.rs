//! A piece of network that can be cut and frozen: whoever connects here speaks with whoever is behind it.
#![allow(dead_code, unreachable_pub, missing_docs, missing_debug_implementations, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

/// Where a relay leads.
#[derive(Debug, Clone)]
pub enum Behind {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// What becomes of what is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// It arrives.
    Fair,
    /// It is taken and arrives later, when the weather is fair again; nobody is told.
    Frozen,
    /// Connections are broken, and new ones too.
    Cut,
}

/// Passes on as long as this lives.
pub struct Relay {
    address: SocketAddr,
    weather: Arc<watch::Sender<Weather>>,
    behind: Arc<watch::Sender<Option<Behind>>>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Relay {
    /// One whose far end is not known yet: who connects waits for it.
    pub async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (weather, behind) = (Arc::new(watch::Sender::new(Weather::Fair)), Arc::new(watch::Sender::new(None)));
        let (seen, leads) = (weather.subscribe(), behind.subscribe());
        let accepting = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(pass(near, leads.clone(), seen.clone()));
            }
        });
        Self { address, weather, behind, accepting }
    }

    pub async fn to(behind: Behind) -> Self {
        let relay = Self::new().await;
        relay.leads_to(behind);
        relay
    }

    pub fn leads_to(&self, behind: Behind) {
        self.behind.send_replace(Some(behind));
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn turns(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
        self.turns(Weather::Cut);
    }
}

async fn pass(
    near: TcpStream,
    mut leads: watch::Receiver<Option<Behind>>,
    mut seen: watch::Receiver<Weather>,
) -> Option<()> {
    let behind = leads.wait_for(Option::is_some).await.ok()?.clone()?;
    if *seen.borrow() == Weather::Cut {
        return None;
    }
    seen.wait_for(|weather| *weather != Weather::Frozen).await.ok()?;
    near.set_nodelay(true).ok()?;
    match behind {
        Behind::Tcp(address) => {
            let far = TcpStream::connect(address).await.ok()?;
            far.set_nodelay(true).ok()?;
            both(near, far, seen).await
        }
        Behind::Unix(path) => both(near, UnixStream::connect(path).await.ok()?, seen).await,
    }
}

/// Both directions, until one of them ends or the relay is cut.
async fn both(
    near: impl AsyncRead + AsyncWrite,
    far: impl AsyncRead + AsyncWrite,
    mut seen: watch::Receiver<Weather>,
) -> Option<()> {
    let (near_reads, near_writes) = tokio::io::split(near);
    let (far_reads, far_writes) = tokio::io::split(far);
    let (there, back) = (one(near_reads, far_writes, seen.clone()), one(far_reads, near_writes, seen.clone()));
    tokio::select! {
        _ = async { tokio::join!(there, back) } => {}
        _ = seen.wait_for(|weather| *weather == Weather::Cut) => {}
    }
    Some(())
}

async fn one(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut seen: watch::Receiver<Weather>,
) -> Option<()> {
    let mut held = vec![0; 16 * 1_024];
    loop {
        let read = from.read(&mut held).await.ok()?;
        seen.wait_for(|weather| *weather != Weather::Frozen).await.ok()?;
        if read == 0 {
            return to.shutdown().await.ok();
        }
        to.write_all(held.get(..read)?).await.ok()?;
    }
}
