//! The room's doors: a listener, one task per connection, and the task that decides.
//!
//! | file | holds |
//! |---|---|
//! | `actor` | decide, write, then speak |
//! | `connection` | one client's socket |
//! | `outbox` | what waits to be written to it |
//! | `gate` | who may try to log in |

mod actor;
mod connection;
mod gate;
mod outbox;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use super::state::{AlertText, ConnId, Limits, PushRequest};
use super::store::{Directory, Store, StoreError};
use super::wire::Identity;
use crate::crypto::Secret;
use crate::crypto::boxes::{self, Public};
use crate::files;
use crate::metrics::{self, Login, Room};
use crate::time::Clock;
use actor::{Actor, Mail};
use connection::Shared;
use gate::Gate;

pub use connection::{HANDSHAKE_MAX, WRITE_STALL_MAX};
pub use gate::{FAILURES_MAX, HANDSHAKES_MAX, HANDSHAKES_PER_ADDRESS_MAX, WINDOW as FAILURES_WINDOW};
pub use outbox::outbox_bytes_max;

/// The file in the data directory that holds the server's permanent key: 64 hexadecimal digits.
pub const KEY_FILE: &str = "csp-server.key";
/// How long to wait after an accept that failed: for want of file descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Wakes phones. Called by the task that decides: must not block.
pub trait PushHook: Send + Sync + std::fmt::Debug {
    /// A message with the push flag is queued for somebody who is not there.
    fn push(&self, request: PushRequest);
}

/// Logs who would have been woken: this server has no push provider.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogPush;

impl PushHook for LogPush {
    fn push(&self, request: PushRequest) {
        info!(receiver = %request.receiver.log_id(), tokens = request.tokens.len(), "push: no provider");
    }
}

/// What the room needs to know to be opened.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen; port 0 for any.
    pub listen: SocketAddr,
    /// Where the server's key and the store are; made if it is not there.
    pub data_dir: PathBuf,
    /// Queues and delivery.
    pub limits: Limits,
    /// Connections at a time, at most; further ones wait to be accepted.
    pub connections_max: usize,
    /// Addresses that are not held responsible for single clients, because many stand behind them: the mediator's.
    pub exempt: Vec<IpAddr>,
    /// Wakes phones.
    pub push: Arc<dyn PushHook>,
}

impl Config {
    /// The defaults, with the mediator on the same machine: what comes from there has a loopback address, or the very
    /// one that is listened on.
    #[must_use]
    pub fn new(listen: SocketAddr, data_dir: PathBuf) -> Self {
        Self {
            listen,
            data_dir,
            limits: Limits::default(),
            connections_max: 10_000,
            exempt: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into(), listen.ip()],
            push: Arc::new(LogPush),
        }
    }
}

/// Why the room could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, #[source] io::Error),
    /// The data directory or the key file cannot be read or made.
    #[error("cannot use {0}: {1}")]
    File(PathBuf, #[source] io::Error),
    /// The key file holds no key.
    #[error("{0} does not hold 64 hexadecimal digits")]
    Key(PathBuf),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The room is open. It closes when the token it was started with is cancelled.
#[derive(Debug)]
pub struct Running {
    local_addr: SocketAddr,
    public_key: Public,
    directory: Directory,
    mailbox: mpsc::WeakSender<Mail>,
    /// Cancelled when one of the two is over, however it came to that.
    over: CancellationToken,
    listener: JoinHandle<()>,
    actor: JoinHandle<()>,
}

impl Running {
    /// Where it listens.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// What clients pin.
    #[must_use]
    pub const fn public_key(&self) -> &Public {
        &self.public_key
    }

    /// Who there is.
    #[must_use]
    pub const fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Shows a text to everybody who is connected as `identity`.
    pub async fn alert(&self, identity: Identity, text: AlertText) {
        if let Some(mailbox) = self.mailbox.upgrade() {
            let _ = mailbox.send(Mail::Alert { identity, text }).await;
        }
    }

    /// Waits until the room is not served whole any more: the task that accepts or the one that decides is over. Before it
    /// was asked to close, that is a fault, and what is left of it serves nobody well: connections that nobody decides
    /// for, or the opposite.
    pub async fn over(&self) {
        self.over.cancelled().await;
    }

    /// Waits until every connection is closed, everything is written and the store is shut.
    pub async fn wait(self) {
        for task in [self.listener, self.actor] {
            if let Err(error) = task.await {
                error!(%error, "a task of the CSP server failed");
            }
        }
    }
}

/// Opens the room.
///
/// # Errors
/// [`StartError`] says why not.
pub async fn start(config: Config, clock: Clock, shutdown: CancellationToken) -> Result<Running, StartError> {
    let listener = TcpListener::bind(config.listen).await.map_err(|error| StartError::Listen(config.listen, error))?;
    start_on(listener, config, clock, shutdown).await
}

/// Opens the room on a listener that is already bound; `config.listen` does not count.
///
/// # Errors
/// [`StartError`] says why not.
pub async fn start_on(
    listener: TcpListener,
    config: Config,
    clock: Clock,
    shutdown: CancellationToken,
) -> Result<Running, StartError> {
    let local_addr = listener.local_addr().map_err(|error| StartError::Listen(config.listen, error))?;
    let dir = config.data_dir;
    files::make_private_dir(&dir).map_err(|error| StartError::File(dir.clone(), error))?;
    let server_key = server_key(&dir.join(KEY_FILE))?;
    let public_key = boxes::public(&server_key);
    let store = Store::open(&dir).await?;
    let directory = store.directory().clone();
    let next_seq = store.next_seq().await?;

    let (mailbox, mail) = mpsc::channel(actor::MAILBOX_MAX);
    let weak = mailbox.downgrade();
    let over = CancellationToken::new();
    let actor = Actor::new(config.limits, store, next_seq, clock, config.push).run(mail);
    let actor = tokio::spawn(telling(over.clone(), actor));
    let gate = Gate::new(&config.exempt);
    let shared = Arc::new(Shared {
        server_key,
        directory: directory.clone(),
        clock,
        window: config.limits.window,
        gate,
        shutdown,
    });
    let listener = listen(listener, shared, mailbox, config.connections_max);
    let listener = tokio::spawn(telling(over.clone(), listener));
    Ok(Running { local_addr, public_key, directory, mailbox: weak, over, listener, actor })
}

/// Runs `task`, and cancels `over` when it has ended or panicked.
async fn telling(over: CancellationToken, task: impl Future<Output = ()>) {
    let _over = over.drop_guard();
    task.await;
}

/// Accepts until told to stop, then waits for every connection to end.
async fn listen(listener: TcpListener, shared: Arc<Shared>, mailbox: mpsc::Sender<Mail>, connections_max: usize) {
    let connections = TaskTracker::new();
    let places = Arc::new(Semaphore::new(connections_max));
    let mut next_conn = 0;
    let accept = async {
        loop {
            // Never closed, so always granted.
            let place = Arc::clone(&places).acquire_owned().await;
            let (socket, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let attempt = match shared.gate.enter(shared.clock.now(), from.ip()) {
                Ok(attempt) => attempt,
                Err(shut) => {
                    metrics::get().chat_logins.of(Room::Csp).of(Login::Throttled).increment(1);
                    debug!(%from, %shut, "turned away");
                    continue;
                }
            };
            // Acks and echoes are small and waited for.
            let _ = socket.set_nodelay(true);
            next_conn += 1;
            let (shared, mailbox) = (Arc::clone(&shared), mailbox.clone());
            connections.spawn(async move {
                connection::run(shared, mailbox, ConnId(next_conn), socket, attempt).await;
                drop(place);
            });
        }
    };
    tokio::select! {
        () = accept => {}
        () = shared.shutdown.cancelled() => {}
    }
    connections.close();
    connections.wait().await;
}

/// Reads the server's key, or makes one that nobody but the owner of the process may read.
fn server_key(path: &Path) -> Result<Secret<32>, StartError> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let mut key = [0; 32];
            hex::decode_to_slice(text.trim(), &mut key).map_err(|_| StartError::Key(path.to_owned()))?;
            Ok(Secret::new(key))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = Secret::random();
            files::write_whole(path, &(hex::encode(key.expose()) + "\n"), true)
                .map_err(|error| StartError::File(path.to_owned(), error))?;
            Ok(key)
        }
        Err(error) => Err(StartError::File(path.to_owned(), error)),
    }
}
