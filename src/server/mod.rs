//! The mediator's doors: the public one for devices, the admin one for operators.
//!
//! | file | holds |
//! |---|---|
//! | [`routes`] | the public door: an upgrade for those who name a group, a status for everybody else |
//! | [`admin`] | the admin door: what its pages share |
//! | `guard` | who may use it: this machine, or whoever has the token |
//! | [`gate`] | who may come in, how many, how often |
//! | [`load`] | when there is too much to do, and who has to wait then |
//! | [`drain`] | emptying the house before it is closed |
//! | `forwarded` | where a request really comes from |
//! | [`health`] | whether the process lives, takes devices, and what is degraded; metrics |
//! | [`api`], `explain` | what operators ask and change, as JSON; why something does not happen, in sentences |
//! | [`dashboard`], `live` | one page for people; what it shows, once a second for all viewers |
//! | [`backup`] | a copy of the whole data directory while everything runs |
//! | [`serve`] | `heliostat serve`: everything the configuration names |
//! | `parent` | whether whoever started the process is still there |
//! | [`stage`] | a mediator for one purpose inside this process, and the chat server that is played behind it |
//! | `supervisor` | what systemd is told, and what it asks |

pub mod admin;
pub mod api;
pub mod backup;
pub mod dashboard;
pub mod drain;
pub(crate) mod explain;
mod forwarded;
pub mod gate;
mod guard;
pub mod health;
mod live;
pub mod load;
mod parent;
pub mod routes;
pub mod serve;
pub mod stage;
mod supervisor;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::backup::Backups;
use self::drain::Pace;
pub use self::gate::Admission;
use self::gate::Gate;
use self::health::Health;
use self::live::Live;
use self::routes::Public;
use crate::capture::Captures;
use crate::cluster::Links;
use crate::config::Secret;
use crate::group::Limits;
use crate::hub::Hub;
use crate::hub::neighbours::Neighbours;
use crate::log::Occasionally;
use crate::net::listen::{self, Door, Listener};
use crate::net::proxies::Proxies;
use crate::net::tasks::{Tasks, Unfinished};
use crate::net::tls::Tls;
use crate::net::watch;
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

/// How long a stop waits for the rest of a request that has begun to come.
const HALF_A_REQUEST: Duration = Duration::from_secs(1);

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
    /// The way to groups that other nodes have, if there are any.
    pub neighbours: Option<Arc<dyn Neighbours>>,
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
    captures: Captures,
    tls: Option<Tls>,
    health: Health,
    clock: Clock,
    drain: CancellationToken,
}

impl Mediator {
    /// Starts serving devices that come in by `listener` and pass the `door`.
    pub fn start<L: Listener>(listener: L, door: impl Into<Door>, parts: Parts) -> Self {
        let door = door.into();
        let Parts { store, neighbours, dial, upstream, settings, clock, durability } = parts;
        let Settings { directory, limits, timeouts, rates, admission } = settings;
        let tasks = Tasks::new();
        let mut hub = Hub::new(Arc::clone(&store), limits, clock);
        if let Some(neighbours) = neighbours {
            hub = hub.among(neighbours);
        }
        let stop = tasks.stop_token().clone();
        let health = Health::new(clock, store, durability, stop.clone());
        let dial = health.watch_upstreams(dial);
        let captures = Captures::default();
        let context = Context {
            hub: hub.clone(),
            directory,
            dial,
            upstream,
            clock,
            timeouts,
            rates,
            said: Arc::new(Occasionally::new(clock)),
            captures: captures.clone(),
            slowed: Arc::new(Occasionally::new(clock)),
        };
        let gate = Arc::new(Gate::new(admission, hub.clone(), clock, stop.clone()));
        let public = Arc::new(Public::new(context, Arc::clone(&gate), tasks.tracker().clone()));
        let router = routes::router(Arc::clone(&public));
        let (tls, proxies, stop_door) = (door.tls.clone(), Arc::clone(&door.proxies), stop.clone());
        let handler = move |io, peer| http(io, peer, Arc::clone(&proxies), router.clone(), stop_door.clone());
        let serving = listen::serve_within(Arc::clone(&gate), listener, door, tasks.clone(), handler);
        let accepting = tasks.spawn(serving);
        health.watch_door("public", &accepting);
        if let Some(tls) = tls.clone() {
            health.watch_certificate(move || tls.identity());
        }
        let overloaded = Arc::clone(&gate);
        health.watch_overload(move || overloaded.overload());
        tasks.spawn(load::watch(hub.clone(), clock, stop.clone(), move |writer_latency| gate.look(writer_latency)));
        let sweeper = hub.clone();
        tasks.spawn(async move { sweeper.sweep(stop).await });
        Self { hub, tasks, admin: Tasks::new(), public, captures, tls, health, clock, drain: CancellationToken::new() }
    }

    /// Opens the admin door, where backups are made on demand if anything is kept, and what groups say is recorded if `capture`.
    /// Without a token the listener has to be on a loopback address.
    pub fn open_admin(&self, listener: TcpListener, token: Option<Secret>, backups: Option<Backups>, capture: bool) {
        let state = admin::State {
            hub: self.hub.clone(),
            public: Arc::clone(&self.public),
            health: self.health.clone(),
            clock: self.clock,
            drain: self.drain.clone(),
            backups,
            captures: capture.then(|| self.captures.clone()),
            tls: self.tls.clone(),
            live: Live::default(),
            closing: self.admin.stop_token().clone(),
        };
        let router = admin::router(state, token);
        let stop = self.admin.stop_token().clone();
        let handler = move |io, peer| http(io, peer, Arc::default(), router.clone(), stop.clone());
        let accepting = self.admin.spawn(listen::serve(listener, Door::default(), self.admin.clone(), handler));
        self.health.watch_door("admin", &accepting);
    }

    /// Lets other nodes seat devices in groups of this one.
    pub fn open_links(&self, listener: TcpListener, links: Arc<Links>) {
        let stop = self.tasks.stop_token().clone();
        let watched = Arc::clone(&links);
        self.tasks.spawn(async move { watched.watch(watch::LOOK_EVERY, stop).await });
        let accepting = self.tasks.spawn(links.serve(listener, self.hub.clone(), self.tasks.clone()));
        self.health.watch_door("nodes", &accepting);
    }

    /// Whether it lives, takes devices, and what is degraded.
    #[must_use]
    pub const fn health(&self) -> &Health {
        &self.health
    }

    /// Connections of devices, also of those that have not proved anything yet.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.public.connections()
    }

    /// What the public door presents; `None` when it is not encrypted.
    #[must_use]
    pub const fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
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
        let change = |context: &Context| {
            if context.directory != directory {
                self.health.forget_upstreams();
            }
            Context { directory, timeouts, rates, ..context.clone() }
        };
        self.public.change(change, admission);
    }

    /// Returns when connections are being accepted and commits handled at the moment; hangs when one of them hangs. A database
    /// that says no, or nothing, is no fault of this process, and not mended by starting it again.
    ///
    /// # Errors
    /// [`StoreError`] when nothing is kept any more.
    pub async fn is_alive(&self) -> Result<(), StoreError> {
        self.tasks.pulse().beats().await;
        match self.hub.probe().await {
            Ok(()) | Err(StoreError::Failed(_) | StoreError::Lost) => Ok(()),
            Err(error) => Err(error),
        }
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
        self.health.set_draining(true);
        tracing::info!(connections, batch = pace.batch(connections), "draining");
        // Or those who were sent away would be back by way of other nodes.
        self.hub.close_to_guests();
        gate.inside().ask_all(pace).await;
        let closed = tokio::time::timeout(STOP_WITHIN, gate.empty()).await;
        // What is still awake has devices at other nodes.
        self.hub.move_out(pace.batch(self.hub.awake()), pace.interval).await;
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
async fn http<Io>(io: Io, peer: SocketAddr, proxies: Arc<Proxies>, router: Router, stop: CancellationToken)
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let router = TowerToHyperService::new(router);
    // A proxy may send requests of different clients through one connection.
    let shared = proxies.trusted.contains(peer.ip());
    let served = Arc::new(());
    let serving = Arc::downgrade(&served);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let origin = forwarded::origin(&proxies, peer, request.headers());
        request.extensions_mut().insert(Peer(origin));
        let (answer, served) = (router.call(request), Arc::clone(&served));
        async move {
            let mut answer = answer.await;
            if let Ok(answer) = &mut answer
                && shared
                && answer.status() != StatusCode::SWITCHING_PROTOCOLS
            {
                // One client's refusal is no reason to close what others use.
                answer.headers_mut().remove(header::CONNECTION);
            }
            drop(served);
            answer
        }
    });
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
            loop {
                match tokio::time::timeout(HALF_A_REQUEST, connection.as_mut()).await {
                    Ok(served) => break served,
                    // The service itself has one.
                    Err(_) if serving.strong_count() <= 1 => break Ok(()),
                    Err(_) => {}
                }
            }
        }
    };
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "bad HTTP");
    }
}

/// Where a request really comes from: behind proxies that are trusted, what they say. The port is 0 when they do not say it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// Binds a listener, with the address in the error.
///
/// # Errors
/// When the address is taken or not this machine's.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))
}
