//! The mediator's doors: the public one for devices, the admin one for operators.
//!
//! | file | holds |
//! |---|---|
//! | [`routes`] | the public door: an upgrade for those who name a group, a status for everybody else |
//! | [`gate`] | who may come in, how many, how often |
//! | [`load`] | when there is too much to do, and who has to wait then |
//! | [`drain`] | emptying the house before it is closed |
//! | [`admin`] | whether the process lives and takes devices |
//! | [`serve`] | `heliostat serve`: everything the configuration names |
//! | [`supervisor`] | what systemd is told, and what it asks |
//! | [`verbosity`] | what is logged, changeable while running |

pub mod admin;
pub mod drain;
pub mod gate;
pub mod load;
pub mod routes;
pub mod serve;
mod supervisor;
pub mod verbosity;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use self::drain::Pace;
pub use self::gate::Admission;
use self::gate::Gate;
use self::routes::Public;
use crate::group::Limits;
use crate::hub::Hub;
use crate::net::listen::{self, Listener};
use crate::net::tasks::{Tasks, Unfinished};
use crate::session::{Context, Rates, Timeouts};
use crate::store::{Store, StoreError};
use crate::time::Clock;
use crate::upstream::{Dial, Directory, UpstreamLimits};

/// Time for a request's headers.
const HEADERS: Duration = Duration::from_secs(10);
/// Longest request line and headers, in bytes.
const HEADER_BYTES: usize = 16 * 1024;
/// How long a stop waits for sessions: a close takes five seconds to flush and five to be answered.
const STOP_WITHIN: Duration = Duration::from_secs(15);

/// How long a stop waits for groups to write down what they know. They have nothing to wait for but the store.
const HUB_WITHIN: Duration = Duration::from_secs(10);
/// When a successor can be expected, for the Retry-After of those who are not let in any more.
const RESTARTS_WITHIN: Duration = Duration::from_secs(5);
/// How long a stop waits for somebody who reads an admin page.
const ADMIN_STOP_WITHIN: Duration = Duration::from_secs(1);

/// What a mediator is made of.
#[derive(Debug)]
pub struct Parts {
    /// Keeps groups.
    pub store: Arc<dyn Store>,
    /// Reaches chat servers.
    pub dial: Arc<dyn Dial>,
    /// Bounds of a connection to a chat server.
    pub upstream: UpstreamLimits,
    /// What can be changed later.
    pub settings: Settings,
    /// The clocks.
    pub clock: Clock,
    /// For operators: what an acknowledgement survives, in a word.
    pub durability: &'static str,
}

/// What can be changed while a mediator runs.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Finds chat servers, for new connections.
    pub directory: Directory,
    /// Bounds of a group; those of groups that are awake change, too.
    pub limits: Limits,
    /// How long devices may take, in new connections.
    pub timeouts: Timeouts,
    /// How fast devices are listened to, in new connections.
    pub rates: Rates,
    /// Who may come in.
    pub admission: Admission,
}

/// A mediator that runs.
#[derive(Debug)]
pub struct Mediator {
    hub: Hub,
    tasks: Tasks,
    /// The admin door's: it is closed last, so that a supervisor can watch the stop.
    admin: Tasks,
    public: Arc<Public>,
    durability: &'static str,
    drain: CancellationToken,
}

impl Mediator {
    /// Starts serving devices that come in by `listener`.
    pub fn start<L: Listener>(listener: L, tls: Option<TlsAcceptor>, parts: Parts) -> Self {
        let Parts { store, dial, upstream, settings, clock, durability } = parts;
        let Settings { directory, limits, timeouts, rates, admission } = settings;
        let tasks = Tasks::new();
        let hub = Hub::new(store, limits, clock);
        let stop = tasks.stop_token().clone();
        let context = Context { hub: hub.clone(), directory, dial, upstream, timeouts, rates, clock };
        let gate = Arc::new(Gate::new(admission, hub.clone(), clock, stop.clone()));
        let public = Arc::new(Public::new(context, Arc::clone(&gate), tasks.tracker().clone()));
        let router = routes::router(Arc::clone(&public));
        let door = stop.clone();
        tasks.spawn(listen::serve(listener, tls, tasks.clone(), move |io, peer| {
            http(io, peer, router.clone(), door.clone())
        }));
        tasks.spawn(load::watch(hub.clone(), clock, stop.clone(), move |writer_latency| gate.look(writer_latency)));
        let sweeper = hub.clone();
        tasks.spawn(async move { sweeper.sweep(stop).await });
        Self { hub, tasks, admin: Tasks::new(), public, durability, drain: CancellationToken::new() }
    }

    /// Opens the admin door.
    pub fn open_admin(&self, listener: TcpListener) {
        let state =
            admin::State { hub: self.hub.clone(), public: Arc::clone(&self.public), durability: self.durability };
        let (router, door) = (admin::router(state), self.admin.stop_token().clone());
        let handler = move |io, peer| http(io, peer, router.clone(), door.clone());
        self.admin.spawn(listen::serve(listener, None, self.admin.clone(), handler));
    }

    /// Connections of devices, also of those that have not proved anything yet.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.public.connections()
    }

    /// All groups that are awake.
    #[must_use]
    pub const fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Other settings from now on. Nobody is sent away by that.
    pub fn change(&self, settings: Settings) {
        let Settings { directory, limits, timeouts, rates, admission } = settings;
        self.hub.set_limits(limits);
        self.public.change(|context| Context { directory, timeouts, rates, ..context.clone() }, admission);
    }

    /// Returns when connections are being accepted and commits kept at the moment; hangs when one of them hangs.
    ///
    /// # Errors
    /// [`StoreError`] when nothing is kept any more.
    pub async fn is_alive(&self) -> Result<(), StoreError> {
        self.tasks.pulse().beats().await;
        self.hub.probe().await
    }

    /// Asks whoever runs this mediator to drain it, stop it and end: the admin door's way to say what a signal says.
    pub fn ask_to_drain(&self) {
        self.drain.cancel();
    }

    /// Waits until somebody asked for that.
    pub async fn drain_asked(&self) {
        self.drain.cancelled().await;
    }

    /// Lets nobody in any more (503 with Retry-After), ends all connections with 1001 at this pace, and returns when the
    /// last one is closed. The doors stay open; [`Self::stop`] is what comes next.
    ///
    /// # Errors
    /// [`Unfinished`] when some did not close within 15 s after they were told; `stop` leaves them behind.
    pub async fn drain(&self, pace: Pace) -> Result<(), Unfinished> {
        let gate = self.public.gate();
        let connections = gate.connections();
        gate.close(pace.lasts(connections) + RESTARTS_WITHIN);
        tracing::info!(connections, batch = pace.batch(connections), "draining");
        gate.inside().ask_all(pace).await;
        let closed = tokio::time::timeout(STOP_WITHIN, gate.empty()).await;
        closed.map_err(|_| Unfinished { left: gate.connections(), within: STOP_WITHIN })
    }

    /// Ends every connection with 1001, lets every group write down what it knows, and returns when all is done.
    ///
    /// # Errors
    /// [`Unfinished`] when connections had to be left behind. Nothing that was acknowledged is lost by that.
    pub async fn stop(&self) -> Result<(), Unfinished> {
        if !self.public.gate().is_closed() {
            self.public.gate().close(RESTARTS_WITHIN);
        }
        let finished = self.tasks.finish(STOP_WITHIN).await;
        // A session that was left behind keeps its group awake; nobody waits for that.
        let _left_behind = tokio::time::timeout(HUB_WITHIN, self.hub.close()).await;
        let _pages_left_open = self.admin.finish(ADMIN_STOP_WITHIN).await;
        finished
    }
}

/// Serves HTTP on one connection. An upgraded one lives on in its session.
async fn http<Io>(io: Io, peer: SocketAddr, router: Router, stop: CancellationToken)
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(router.layer(axum::Extension(Peer(peer))));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "bad HTTP");
    }
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// Binds a listener, with the address in the error.
///
/// # Errors
/// When the address is taken or not this machine's.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))
}
