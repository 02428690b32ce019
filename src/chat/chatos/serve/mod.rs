//! The room's doors: a listener, one task per connection, and the task that decides.
//!
//! | file | holds |
//! |---|---|
//! | `actor` | decide, then speak |
//! | `connection` | one client's socket |
//! | `outbox` | what waits to be written to it |
//! | `pipe` | a private connection's two sockets |

mod actor;
mod connection;
mod outbox;
mod pipe;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::state::{ConnId, Limits, State};
use super::wire::{MESSAGE_OCTETS_MAX, NAME_FIELD_MAX};
use crate::crypto::random;
use crate::net::listen::{self, Bounds, Door, Stream};
use crate::net::rate::Rate;
use crate::net::tasks::Tasks;
use crate::net::tls::Tls;
use crate::time::Clock;
use crate::wire::chatos::Caps;
use actor::Actor;
use connection::Shared;
use outbox::Lag;

pub use outbox::{OCTETS_MAX as OUTBOX_OCTETS_MAX, PACKETS_MAX as OUTBOX_PACKETS_MAX};
pub use pipe::BUFFER_MAX as PIPE_BUFFER_MAX;

/// Sockets more than connections are allowed: those that are being told so, or do not get through TLS.
const SPARE: usize = 64;
/// How long a stop waits for connections to close: what a farewell may take, and a little.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// What the room needs to know to be opened.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen; port 0 for any.
    pub listen: SocketAddr,
    /// Who may do what for how long.
    pub limits: Limits,
    /// Longest message, in octets.
    pub message_octets_max: usize,
    /// How long nothing may be taken by a client's socket.
    pub write_stall: Duration,
    /// Packets of one client; one that sends more is read more slowly.
    pub packets: Option<Rate>,
    /// How it is encrypted there.
    pub tls: Option<Tls>,
}

impl Config {
    /// The defaults of the specification, unencrypted.
    #[must_use]
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            limits: Limits::default(),
            message_octets_max: MESSAGE_OCTETS_MAX,
            write_stall: Duration::from_secs(30),
            packets: None,
            tls: None,
        }
    }
}

/// Why the room could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The listener is not usable.
    #[error("cannot listen: {0}")]
    Listen(#[from] io::Error),
}

/// The room is open. It closes when the token it was started with is cancelled.
#[derive(Debug)]
pub struct Running {
    addresses: Vec<SocketAddr>,
    /// Cancelled when one of the tasks is over, however it came to that.
    over: CancellationToken,
    room: JoinHandle<()>,
}

impl Running {
    /// Where it listens: one address for each door, in their order.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Waits until the room is not served whole any more. Before it was asked to close, that is a fault.
    pub async fn over(&self) {
        self.over.cancelled().await;
    }

    /// Waits until every connection is closed.
    pub async fn wait(self) {
        if let Err(error) = self.room.await {
            error!(%error, "a task of the ChatOs server failed");
        }
    }
}

/// Opens the room.
///
/// # Errors
/// [`StartError`] says why not.
pub async fn start(config: Config, clock: Clock, shutdown: CancellationToken) -> Result<Running, StartError> {
    let listener = TcpListener::bind(config.listen).await?;
    let door = Door::from(config.tls.clone());
    start_on(vec![(listener, door)], config, clock, shutdown)
}

/// Opens the room behind each door, on a listener that is already bound; `config.listen` and `config.tls` do not count.
///
/// # Errors
/// [`StartError`] says why not.
pub fn start_on(
    doors: Vec<(TcpListener, Door)>,
    config: Config,
    clock: Clock,
    shutdown: CancellationToken,
) -> Result<Running, StartError> {
    let addresses = doors.iter().map(|(listener, _)| listener.local_addr()).collect::<io::Result<_>>()?;
    let Config { limits, message_octets_max, write_stall, packets, .. } = config;
    let places =
        Places(Arc::new(Semaphore::new(limits.connections_max.saturating_add(SPARE).min(Semaphore::MAX_PERMITS))));
    let caps = Caps { name: NAME_FIELD_MAX, text: message_octets_max.min(MESSAGE_OCTETS_MAX) };
    let lag = Arc::new(Lag::default());
    let shared = Arc::new(Shared { clock, caps, write_stall, packets, lag: Arc::clone(&lag) });
    // Ours to cancel, without ending whatever else hangs on it.
    let shutdown = shutdown.child_token();
    let over = CancellationToken::new();
    let (tasks, told_over) = (Tasks::new(), over.clone());

    let (mailbox, mail) = mpsc::channel(actor::MAILBOX_MAX);
    let deciding =
        tokio::spawn(Actor::new(State::new(limits, Box::new(random::u64)), clock, lag).run(mail, shutdown.clone()));
    let next_conn = Arc::new(AtomicU64::new(1));
    let handler = move |socket: Stream<TcpStream>, from: SocketAddr| {
        let (shared, mailbox) = (Arc::clone(&shared), mailbox.clone());
        let conn = ConnId(next_conn.fetch_add(1, Ordering::Relaxed));
        async move {
            // Finds peers that are gone without a word (spec 10.4).
            socket.keep_alive();
            connection::run(&shared, mailbox, conn, socket, from).await;
        }
    };
    let serve = |(listener, door)| listen::serve_within(places.clone(), listener, door, tasks.clone(), handler.clone());
    let mut accepting: FuturesUnordered<_> = doors.into_iter().map(|door| tasks.spawn(serve(door))).collect();
    drop(handler);
    let room = tokio::spawn(async move {
        let mut deciding = std::pin::pin!(deciding);
        tokio::select! {
            () = shutdown.cancelled() => {}
            _one_ended = accepting.next() => {}
            _ended = &mut deciding => return told_over.cancel(),
        }
        // No connection is left without being told, also when nobody asked for the end.
        shutdown.cancel();
        told_over.cancel();
        if let Err(unfinished) = tasks.finish(STOP_WITHIN).await {
            return warn!(%unfinished, "connections of the ChatOs server were left behind");
        }
        if let Err(error) = deciding.await {
            error!(%error, "the task of the ChatOs server that decides failed");
        }
    });
    Ok(Running { addresses, over, room })
}

/// Sockets, all of them.
#[derive(Debug, Clone)]
struct Places(Arc<Semaphore>);

impl Bounds for Places {
    type Place = OwnedSemaphorePermit;

    fn accepted(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_owned().ok()
    }

    fn comes_from(&self, _: IpAddr) -> Option<OwnedSemaphorePermit> {
        // Counted already; this one counts for nothing.
        Arc::clone(&self.0).try_acquire_many_owned(0).ok()
    }
}
