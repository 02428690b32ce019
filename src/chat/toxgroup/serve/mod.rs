//! The room's doors: datagrams, TCP, WebSocket, thin users; and the task that owns all groups.
//!
//! | file | holds |
//! |---|---|
//! | `actor` | decide, keep, then speak |
//! | `users` | what thin users ask for |
//! | `carriers` | packets in datagrams, frames and messages |
//! | [`thin`] | what thin users say |

mod actor;
mod carriers;
pub mod thin;
mod users;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::state::{Rules, source};
use super::store::{Store, StoreError};
use super::wire::Door as Address;
use crate::net::listen::{self, Bounds, Door, Stream};
use crate::net::tasks::Tasks;
use crate::time::Clock;
use actor::Actor;
use carriers::Shared;

pub use carriers::{OUTBOX_MAX, SUBPROTOCOL};

/// What may wait for the task that decides. Streams wait while it is full; datagrams are lost.
const MAILBOX_MAX: usize = 4_096;
/// How long a stop waits for connections to close.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// What the kernel may hold of datagrams, each way: some for each of as many peers as a hub has.
const UDP_BUFFER: usize = 1_024 * 1_024;

/// What the room needs to know to be opened.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the store is.
    pub data_dir: PathBuf,
    /// How its members behave.
    pub rules: Rules,
    /// Whether programs of 2014 are members of classic groups.
    pub toxcore2014: bool,
    /// Where those who are invited find the hub.
    pub addresses: Vec<Address>,
    /// Connections of all kinds at once; one more is closed without a word.
    pub connections_max: usize,
    /// Connections of one address on which nobody proved a key yet.
    pub unproved_per_address: usize,
    /// Addresses that this does not hold for; `None`: this machine's own.
    pub exempt: Option<HashSet<IpAddr>>,
    /// Groups, at most.
    pub groups_max: usize,
    /// Thin users, at most.
    pub users_max: u64,
}

impl Config {
    /// The defaults of the specification.
    #[must_use]
    pub fn new(data_dir: PathBuf) -> Self {
        Self {
            data_dir,
            rules: Rules { hub: true, ..Rules::default() },
            toxcore2014: false,
            addresses: Vec::new(),
            connections_max: 4_096,
            unproved_per_address: 64,
            exempt: None,
            groups_max: 64,
            users_max: 10_000,
        }
    }
}

/// The sockets, bound already.
#[derive(Debug)]
pub struct Doors {
    /// Datagrams.
    pub udp: UdpSocket,
    /// Frames on TCP, and how they are encrypted beside being boxed.
    pub tcp: (TcpListener, Door),
    /// Messages on WebSocket.
    pub web: (TcpListener, Door),
    /// Thin users.
    pub thin: (TcpListener, Door),
}

/// Why the room could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A socket does not say where it is.
    #[error("cannot listen: {0}")]
    Listen(#[from] io::Error),
    /// What is kept cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where the room is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Datagrams.
    pub udp: SocketAddr,
    /// Frames on TCP.
    pub tcp: SocketAddr,
    /// Messages on WebSocket.
    pub web: SocketAddr,
    /// Thin users.
    pub thin: SocketAddr,
}

/// The room is open. It closes when the token it was started with is cancelled.
#[derive(Debug)]
pub struct Running {
    addresses: Addresses,
    over: CancellationToken,
    room: JoinHandle<()>,
}

impl Running {
    /// Where it is.
    #[must_use]
    pub const fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Waits until the room is not served whole any more. Before it was asked to close, that is a fault.
    pub async fn over(&self) {
        self.over.cancelled().await;
    }

    /// Waits until every connection is closed and everything is kept.
    pub async fn wait(self) {
        if let Err(error) = self.room.await {
            error!(%error, "a task of the Tox group hub failed");
        }
    }
}

/// Opens the room on sockets that are already bound.
///
/// # Errors
/// [`StartError`] says why not.
pub async fn start_on(
    doors: Doors,
    config: Config,
    clock: Clock,
    shutdown: CancellationToken,
) -> Result<Running, StartError> {
    let Doors { udp, tcp, web, thin } = doors;
    let addresses = Addresses {
        udp: udp.local_addr()?,
        tcp: tcp.0.local_addr()?,
        web: web.0.local_addr()?,
        thin: thin.0.local_addr()?,
    };
    let store = Store::open(&config.data_dir).await?;
    let stored = (store.users().await?, store.groups(clock.now().wall_ms).await?);
    // A text goes to everybody at once, and everybody answers at once.
    for failed in
        [SockRef::from(&udp).set_send_buffer_size(UDP_BUFFER), SockRef::from(&udp).set_recv_buffer_size(UDP_BUFFER)]
    {
        if let Err(error) = failed {
            warn!(%error, "datagrams of the Tox group hub have the kernel's own buffers");
        }
    }
    let udp = Arc::new(udp);
    let shutdown = shutdown.child_token();
    let (over, tasks) = (CancellationToken::new(), Tasks::new());
    let (mailbox, mail) = mpsc::channel(MAILBOX_MAX);
    let unproved = Unproved::new(config.unproved_per_address, config.exempt.clone());
    let all = Arc::new(Semaphore::new(config.connections_max.min(Semaphore::MAX_PERMITS)));
    let places = Places { all, unproved: unproved.clone() };
    let shared = Arc::new(Shared {
        clock,
        mailbox: mailbox.clone(),
        unproved,
        next_conn: AtomicU64::new(1),
        stop: shutdown.clone(),
    });
    let actor = Actor::new(config, store, stored, Arc::clone(&udp), clock);
    let deciding = tokio::spawn(actor.run(mail, shutdown.clone()));
    tasks.spawn(carriers::datagrams(udp, mailbox, tasks.stop_token().clone()));
    macro_rules! accept {
        ($door:expr, $serve:path) => {{
            let (listener, door) = $door;
            let shared = Arc::clone(&shared);
            let handler = move |socket: Stream<TcpStream>, from: SocketAddr| {
                let shared = Arc::clone(&shared);
                async move { $serve(&shared, socket, from).await }
            };
            tasks.spawn(listen::serve_within(places.clone(), listener, door, tasks.clone(), handler))
        }};
    }
    let mut accepting = accept!(tcp, carriers::tcp);
    let mut web = accept!(web, carriers::web);
    let mut thin = accept!(thin, carriers::thin);
    drop(shared);
    let told_over = over.clone();
    let room = tokio::spawn(async move {
        let mut deciding = std::pin::pin!(deciding);
        let mut decided = false;
        tokio::select! {
            () = shutdown.cancelled() => {}
            _ended = &mut accepting => {}
            _ended = &mut web => {}
            _ended = &mut thin => {}
            _ended = &mut deciding => decided = true,
        }
        shutdown.cancel();
        told_over.cancel();
        if let Err(unfinished) = tasks.finish(STOP_WITHIN).await {
            warn!(%unfinished, "connections of the Tox group hub were left behind");
        }
        if !decided && let Err(error) = deciding.await {
            error!(%error, "the task of the Tox group hub that decides failed");
        }
    });
    Ok(Running { addresses, over, room })
}

/// Connections, all of them; and those that did not get as far as to prove anything, from TLS and the upgrade on.
#[derive(Debug, Clone)]
struct Places {
    all: Arc<Semaphore>,
    unproved: Unproved,
}

impl Bounds for Places {
    type Place = (Option<OwnedSemaphorePermit>, Option<Held>);

    fn accepted(&self) -> Option<Self::Place> {
        Some((Some(Arc::clone(&self.all).try_acquire_owned().ok()?), None))
    }

    fn comes_from(&self, address: IpAddr) -> Option<Self::Place> {
        Some((None, Some(self.unproved.enter(address)?)))
    }
}

/// Connections on which nobody proved a key yet, by where they come from (spec 10.2). No more sources than connections.
#[derive(Debug, Clone)]
struct Unproved {
    max: usize,
    exempt: Option<Arc<HashSet<IpAddr>>>,
    counts: Arc<Mutex<HashMap<IpAddr, Counts>>>,
}

/// Of one source: how many are open, and on how many of them somebody proved a key.
#[derive(Debug, Default)]
struct Counts {
    open: usize,
    proved: usize,
}

impl Unproved {
    fn new(max: usize, exempt: Option<HashSet<IpAddr>>) -> Self {
        Self { max, exempt: exempt.map(Arc::new), counts: Arc::default() }
    }

    /// A place for a connection, until it ends. `None`: nobody proved anything on too many of that source.
    fn enter(&self, ip: IpAddr) -> Option<Held> {
        let exempt = self.exempt.as_ref().map_or_else(|| ip.is_loopback(), |exempt| exempt.contains(&ip));
        let source = source(ip);
        let mut all = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = all.entry(source).or_default();
        if counts.open.saturating_sub(counts.proved) >= self.max && !exempt {
            return None;
        }
        counts.open += 1;
        Some(Held { source, proved: false, counts: Arc::clone(&self.counts) })
    }

    /// Somebody proved a key on one of them. It counts so until it ends.
    fn prove(&self, ip: IpAddr) -> Held {
        let source = source(ip);
        let mut all = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(source).or_default().proved += 1;
        Held { source, proved: true, counts: Arc::clone(&self.counts) }
    }
}

#[derive(Debug)]
struct Held {
    source: IpAddr,
    proved: bool,
    counts: Arc<Mutex<HashMap<IpAddr, Counts>>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut all = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counts) = all.get_mut(&self.source) {
            let count = if self.proved { &mut counts.proved } else { &mut counts.open };
            *count = count.saturating_sub(1);
            if counts.open == 0 && counts.proved == 0 {
                all.remove(&self.source);
            }
        }
    }
}

/// Numbers for connections, never used again.
fn next(conns: &AtomicU64) -> u64 {
    conns.fetch_add(1, Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_has_so_many_connections_on_which_nobody_proved_a_key() {
        let unproved = Unproved::new(2, None);
        // Two addresses of one client.
        let [one, two]: [IpAddr; 2] = ["2001:db8:0:1::1", "2001:db8:0:2::9"].map(|it| it.parse().unwrap());
        let (first, _second) = (unproved.enter(one).unwrap(), unproved.enter(two).unwrap());
        assert!(unproved.enter(one).is_none() && unproved.enter("2001:db8:1::".parse().unwrap()).is_some());
        let proved = unproved.prove(two);
        let third = unproved.enter(two).unwrap();
        assert!(unproved.enter(two).is_none(), "one that is proved, two that are not");
        drop(proved);
        drop(first);
        assert!(unproved.enter(two).is_none());
        drop(third);
        assert!(unproved.enter(two).is_some());
        assert!((0..9).all(|_| unproved.enter("127.0.0.1".parse().unwrap()).is_some()), "this machine's own");
    }
}
