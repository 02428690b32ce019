//! The room's doors: HTTP with Socket.IO on it, a worker per connection, and the task that decides.
//!
//! | file | holds |
//! |---|---|
//! | `actor` | decide, keep, then speak; also what is done by itself at its time |
//! | `scene` | what every use case works with |
//! | `accounts` `friends` `dms` `messages` `timers` | the use cases |
//! | `gate` | who may do what how often |
//! | `line` | what carries a session, and how it ends |
//! | `wire` | one connection's line in, and its way out |
//! | `web` | the listener, and what is below a connection |
//! | `assets` | what browsers are served |

mod accounts;
mod actor;
mod assets;
mod dms;
mod friends;
mod gate;
mod line;
mod messages;
mod scene;
mod timers;
mod web;
mod wire;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::error;

use super::state::LockoutLimits;
use super::store::{Place, Store};
use crate::chat::sql::SqlError;
use crate::net::listen::Door;
use crate::net::places::Places;
use crate::time::Clock;
use actor::Actor;
use gate::Gate;
use line::Lines;
use wire::Hall;

pub use gate::{Rates, STRANGER_MAX};
pub use web::WRITE_STALL_MAX;

/// Where it listens when nobody says where.
pub const PORT: u16 = 5_000;

/// How often a client is asked whether it is there, and how long it may take to say so (spec 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// How often.
    pub every: Duration,
    /// How long.
    pub within: Duration,
}

impl Default for Beat {
    fn default() -> Self {
        Self { every: Duration::from_secs(25), within: Duration::from_secs(20) }
    }
}

/// How the room behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whether two have to be friends to have a DM of their own and to speak in it. Else a block in either direction is in the
    /// way, and nothing else.
    pub pair_requires_friendship: bool,
    /// Whether `users_in_call` says where they are, too, as the first client of this protocol wants it.
    pub calls_as_map: bool,
    /// How long after logging in somebody is sent the keys that wait for him.
    pub x3dh_after: Duration,
    /// How long a connection has to stay that was sent keys for them to count as received, once something comes from it. While
    /// it is silent, they count when a heartbeat that was sent later has been answered.
    pub x3dh_kept: Duration,
    /// How long a challenge can be answered.
    pub challenge_max: Duration,
    /// How long a connection may stay on which nobody logs in.
    pub stranger_max: Duration,
    /// How many failures to log in there may be.
    pub lockout: LockoutLimits,
    /// How often clients are asked whether they are there.
    pub beat: Beat,
    /// Packets that may wait to be written to one client.
    pub send_queue_max: usize,
    /// What may wait to be read by one client, in bytes, before one packet more. Less than the default, and somebody with many
    /// invitations may never be able to take them in.
    pub unsent_max: usize,
    /// Whether users wait who were answered very much lately. Only for measurements not.
    pub bounds_reads: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pair_requires_friendship: true,
            calls_as_map: false,
            x3dh_after: Duration::from_secs(1),
            x3dh_kept: Duration::from_secs(30),
            challenge_max: Duration::from_secs(60),
            stranger_max: STRANGER_MAX,
            lockout: LockoutLimits::default(),
            beat: Beat::default(),
            // A burst of a thousand messages with their answers fits.
            send_queue_max: 4_096,
            unsent_max: line::UNSENT_MAX,
            bounds_reads: true,
        }
    }
}

/// What the room needs to know to be opened.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the database is, if it is a file.
    pub data_dir: PathBuf,
    /// Where the database is.
    pub place: Place,
    /// How it behaves.
    pub settings: Settings,
    /// How often something may be done.
    pub rates: Rates,
    /// Connections at a time, at most; further ones are dropped without a word.
    pub connections_max: usize,
    /// Connections at a time from one address that is not in `exempt`, at most; further ones are dropped likewise.
    pub connections_per_address_max: usize,
    /// Addresses that are not held responsible for single clients, because many stand behind them: the mediator's.
    pub exempt: Vec<IpAddr>,
}

impl Config {
    /// The defaults: SQLite in `data_dir`, the mediator on the same machine.
    #[must_use]
    pub fn new(data_dir: PathBuf) -> Self {
        Self {
            data_dir,
            place: Place::Sqlite,
            settings: Settings::default(),
            rates: Rates::default(),
            connections_max: 10_000,
            connections_per_address_max: 256,
            exempt: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        }
    }
}

/// Why the room could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The listener is not usable.
    #[error("cannot listen: {0}")]
    Listen(#[from] io::Error),
    /// The store cannot be opened, or what was due could not be done.
    #[error("the DM store: {0}")]
    Store(#[from] SqlError),
}

/// The room is open. It closes when the token it was started with is cancelled.
#[derive(Debug)]
pub struct Running {
    addresses: Vec<SocketAddr>,
    /// Cancelled when one of the tasks is over, however it came to that.
    over: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
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

    /// Waits until every connection is closed, everything is kept and the store is shut.
    pub async fn wait(self) {
        for task in self.tasks {
            if let Err(error) = task.await {
                error!(%error, "a task of the DM server failed");
            }
        }
    }
}

/// Opens the room: behind each door, on a listener that is already bound. What came due while it was closed is done by then.
///
/// # Errors
/// [`StartError`] says why not.
pub async fn start_on(
    doors: Vec<(TcpListener, Door)>,
    config: Config,
    clock: Clock,
    shutdown: CancellationToken,
) -> Result<Running, StartError> {
    let addresses = doors.iter().map(|(listener, _)| listener.local_addr()).collect::<io::Result<_>>()?;
    let store = Store::open(&config.place, &config.data_dir).await?;
    let places = Places::new(config.connections_max, config.connections_per_address_max, &config.exempt);
    // Sessions are counted apart: one connection may carry many that poll.
    let sessions = Places::new(config.connections_max, config.connections_per_address_max, &config.exempt);
    let gate = Arc::new(Gate::new(config.rates, config.exempt, clock));
    let settings = config.settings.clone();
    let mut actor = Actor::new(config.settings, store, clock, (Arc::clone(&gate), shutdown.clone()));
    actor.catch_up().await?;
    let (mailbox, mail) = mpsc::channel(actor::MAILBOX_MAX);
    let (over, tracker) = (CancellationToken::new(), TaskTracker::new());
    let next_conn = AtomicU64::new(1);
    let lines = Lines::new(Arc::clone(&gate), sessions, settings.unsent_max);
    let hall = Hall {
        gate,
        mailbox,
        next_conn,
        stranger_max: settings.stranger_max,
        clock,
        tracker: tracker.clone(),
        stop: shutdown.clone(),
    };
    let router = web::router(Arc::new(hall), Arc::new(lines), &settings);
    let heard_all = CancellationToken::new();
    let acting = tokio::spawn(telling(over.clone(), actor.run(mail, heard_all.clone())));
    let listen = |(listener, door)| {
        let served = web::serve(listener, door, (places.clone(), router.clone()), clock, shutdown.clone());
        tokio::spawn(telling(over.clone(), served))
    };
    let mut tasks: Vec<_> = doors.into_iter().map(listen).collect();
    let closing = async move {
        shutdown.cancelled().await;
        tracker.close();
        tracker.wait().await;
        heard_all.cancel();
    };
    tasks.extend([tokio::spawn(closing), acting]);
    Ok(Running { addresses, over, tasks })
}

/// Runs `task`, and cancels `over` when it has ended or panicked.
async fn telling(over: CancellationToken, task: impl Future<Output = ()>) {
    let _over = over.drop_guard();
    task.await;
}
