//! The room's doors: a listener, one task per connection, and the task that decides.
//!
//! | file | holds |
//! |---|---|
//! | `actor` | decide, keep, then speak |
//! | `scene` | what every use case works with |
//! | `accounts` `channels` `messages` | the use cases |
//! | `fcm` | waking phones, with the feature of this name |
//! | `files` | files beside the messages, over HTTP |
//! | `mail` | how mails are sent |
//! | `reads` | what is answered without deciding |
//! | `gate` | who may try how often |
//! | `connection` | one client's socket |
//! | `outbox` | what waits to be written to it |
//! | `web` | the door for browsers and for files |

mod accounts;
mod actor;
mod channels;
mod connection;
#[cfg(feature = "fcm")]
pub mod fcm;
mod files;
mod gate;
mod mail;
mod messages;
mod outbox;
mod reads;
mod scene;
mod web;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::state::ConnId;
use super::store::disk::{Disk, LOST};
use super::store::{Place, Store, StoreError};
use super::wire::SessionId;
use crate::metrics::{self, Push};
use crate::net::listen::{self, Bounds, Door, Stream};
use crate::net::tasks::Tasks;
use crate::time::Clock;
use actor::{Actor, Mail};
use connection::Shared;
use files::Files;
use gate::Gate;
use reads::Reads;

pub use actor::Confirmed;
pub use connection::{STRANGER_SILENT_MAX, WRITE_STALL_MAX};
pub use files::{COMING_MAX, COMPLETE_WITHIN, FETCH_WITHIN, FileLimits, TRANSFERS_PER_ACCOUNT};
pub use gate::Rates;
pub use mail::{BadMail, Post, Way};
pub use outbox::OUTBOX_BYTES_MAX;
pub use scene::{Letter, Reason, Settings, Wake};
pub use web::link;

/// Where the protocol's clients look for a server.
pub const PORT: u16 = 32_761;

/// The directory in the data directory for the files beside the messages.
pub const FILES: &str = "skynet-files";

/// Sends mails. Called by the task that decides: must not block.
pub trait MailHook: Send + Sync + std::fmt::Debug {
    /// Somebody is to get a mail.
    fn send(&self, letter: Letter);
}

/// Logs what would have been mailed, tokens included: for development, where there is no mail.
#[derive(Debug, Clone, Default)]
pub struct LogMail {
    /// Where people reach the pages, for links; without it, tokens are logged alone.
    pub public_url: Option<String>,
}

impl MailHook for LogMail {
    fn send(&self, letter: Letter) {
        match letter.reason {
            Reason::Confirm { token } => match &self.public_url {
                Some(url) => info!(link = link(url, &token), "mail: to be confirmed there"),
                None => info!(%token, "mail: to be confirmed with this"),
            },
            Reason::Changing => info!("mail: the address of an account changes"),
        }
    }
}

/// Wakes devices. Called by the task that decides: must not block. Whoever finds out that a device cannot be woken any more says
/// so to [`Running::lost`].
pub trait PushHook: Send + Sync + std::fmt::Debug {
    /// A device is to fetch what there is.
    fn wake(&self, wake: Wake);
}

/// Logs that somebody would have been woken: there is no push provider.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogPush;

impl PushHook for LogPush {
    fn wake(&self, _wake: Wake) {
        metrics::get().skynet_pushes.of(Push::Logged).increment(1);
        info!("push: no provider");
    }
}

/// Tells the room which devices cannot be woken any more. Does not keep it open.
#[derive(Debug, Clone)]
pub struct Lost(mpsc::WeakSender<Mail>);

impl Lost {
    /// The device of a session will not come: it has to log in again.
    pub async fn session(&self, session: SessionId) {
        if let Some(mailbox) = self.0.upgrade() {
            // The room closes, and with it all sessions.
            let _closed = mailbox.send(Mail::Unreachable(session)).await;
        }
    }
}

/// What the room needs to know to be opened.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the data are: the database, or the key to what is sealed in it.
    pub data_dir: PathBuf,
    /// Where the database is.
    pub place: Place,
    /// Where the files beside the messages are.
    pub files_dir: PathBuf,
    /// How it behaves.
    pub settings: Settings,
    /// Connections at a time, at most; further ones are dropped without a word.
    pub connections_max: usize,
    /// Connections at a time from one address that is not in `exempt`, at most; further ones are dropped likewise.
    pub connections_per_address_max: usize,
    /// How often something may be tried.
    pub rates: Rates,
    /// Addresses that are not held responsible for single clients, because many stand behind them: the mediator's.
    pub exempt: Vec<IpAddr>,
    /// Sends mails.
    pub mail: Arc<dyn MailHook>,
    /// Wakes devices.
    pub push: Arc<dyn PushHook>,
}

impl Config {
    /// The defaults: SQLite in `data_dir`, the mediator on the same machine, mails into the log.
    #[must_use]
    pub fn new(data_dir: PathBuf) -> Self {
        Self {
            files_dir: data_dir.join(FILES),
            data_dir,
            place: Place::Sqlite,
            settings: Settings::default(),
            connections_max: 10_000,
            connections_per_address_max: 256,
            rates: Rates::default(),
            exempt: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            mail: Arc::new(LogMail::default()),
            push: Arc::new(LogPush),
        }
    }
}

/// Why the room could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The listener is not usable.
    #[error("cannot listen: {0}")]
    Listen(#[from] io::Error),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The room is open. It closes when the token it was started with is cancelled.
#[derive(Debug)]
pub struct Running {
    addresses: Vec<SocketAddr>,
    mailbox: mpsc::WeakSender<Mail>,
    /// Cancelled when one of the tasks is over, however it came to that.
    over: CancellationToken,
    listeners: Vec<JoinHandle<()>>,
    actor: JoinHandle<()>,
    files: Arc<Files>,
    visits: Places,
    clock: Clock,
}

impl Running {
    /// Where it listens: one address for each door, in their order.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Somebody shows the token out of a mail. `None` when the room closes.
    pub async fn confirm(&self, token: &str) -> Option<Confirmed> {
        web::ask(&self.mailbox, token.to_owned(), true).await
    }

    /// Opens the door where people confirm their addresses, and clients leave and fetch files, until `shutdown` is cancelled. It is
    /// reached at `public_url`.
    pub fn open_web(&mut self, listener: TcpListener, door: Door, public_url: String, shutdown: CancellationToken) {
        let site = web::Site {
            mailbox: self.mailbox.clone(),
            files: Arc::clone(&self.files),
            public_url,
            places: self.visits.clone(),
            clock: self.clock,
        };
        let pages = web::serve(listener, door, site, shutdown);
        self.listeners.push(tokio::spawn(telling(self.over.clone(), pages)));
    }

    /// Who is to hear of devices that cannot be woken any more.
    #[must_use]
    pub fn lost(&self) -> Lost {
        Lost(self.mailbox.clone())
    }

    /// Waits until the room is not served whole any more. Before it was asked to close, that is a fault.
    pub async fn over(&self) {
        self.over.cancelled().await;
    }

    /// Waits until every connection is closed, everything is kept and the store is shut.
    pub async fn wait(self) {
        for task in self.listeners.into_iter().chain([self.actor]) {
            if let Err(error) = task.await {
                error!(%error, "a task of the Skynet server failed");
            }
        }
    }
}

/// Opens the room: behind each door, on a listener that is already bound.
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
    let disk = Disk::open(&config.files_dir).map_err(StoreError::Files)?;
    let moved = disk.tidy(&store).await?;
    if moved > 0 {
        warn!(moved, directory = LOST, "moved aside what the database does not know of the files");
    }
    let (mailbox, mail) = mpsc::channel(actor::MAILBOX_MAX);
    let weak = mailbox.downgrade();
    let over = CancellationToken::new();
    let gate = Arc::new(Gate::new(config.rates, config.exempt.clone(), clock));
    let (settings, places) = (config.settings.clone(), Places::new(&config));
    let visits = places.among(web::VISITORS_MAX.saturating_add(settings.files.transfers_max));
    let (limits, let_go) = (settings.files, Arc::new(Notify::new()));
    let files = Files::new((store.clone(), disk), weak.clone(), limits, settings.session_age_max, clock);
    let files = Arc::new(files);
    let actor = Actor::new(config, store.clone(), clock, Arc::clone(&gate), Arc::clone(&let_go)).run(mail);
    let actor = tokio::spawn(telling(over.clone(), actor));
    let removing = files::remove_all(Arc::clone(&files), let_go, shutdown.clone());
    let removing = tokio::spawn(telling(over.clone(), removing));
    let reads = Reads::new(store.clone());
    let shared = Arc::new(Shared { settings, store, reads, gate, stop: shutdown });
    let next_conn = Arc::new(AtomicU64::new(1));
    let listen = |(listener, door)| {
        let (shared, next_conn) = (Arc::clone(&shared), Arc::clone(&next_conn));
        let serving = serve(listener, door, places.clone(), shared, mailbox.clone(), next_conn);
        tokio::spawn(telling(over.clone(), serving))
    };
    let listeners = doors.into_iter().map(listen).chain([removing]).collect();
    Ok(Running { addresses, mailbox: weak, over, listeners, actor, files, visits, clock })
}

/// Runs `task`, and cancels `over` when it has ended or panicked.
async fn telling(over: CancellationToken, task: impl Future<Output = ()>) {
    let _over = over.drop_guard();
    task.await;
}

/// How many may be connected: in all, and from one address, unless many clients stand behind it.
#[derive(Debug, Clone)]
struct Places {
    all: Arc<Semaphore>,
    per_address_max: usize,
    exempt: Arc<[IpAddr]>,
    of: Arc<Mutex<HashMap<u128, usize>>>,
}

/// What a connection holds.
#[derive(Debug)]
enum Held {
    OfAll {
        _permit: OwnedSemaphorePermit,
    },
    OfAddress {
        network: u128,
        of: Arc<Mutex<HashMap<u128, usize>>>,
    },
    /// Of an address that is not counted.
    Exempt,
}

impl Places {
    fn new(config: &Config) -> Self {
        Self {
            all: Arc::new(Semaphore::new(config.connections_max)),
            per_address_max: config.connections_per_address_max,
            exempt: config.exempt.clone().into(),
            of: Arc::default(),
        }
    }

    /// The same for fewer, of which nobody may have more than a quarter.
    fn among(&self, max: usize) -> Self {
        let (per_address_max, exempt) = (self.per_address_max.min(max.div_ceil(4)), Arc::clone(&self.exempt));
        Self { all: Arc::new(Semaphore::new(max)), per_address_max, exempt, of: Arc::default() }
    }
}

impl Bounds for Places {
    type Place = Held;

    fn accepted(&self) -> Option<Held> {
        Some(Held::OfAll { _permit: Arc::clone(&self.all).try_acquire_owned().ok()? })
    }

    fn comes_from(&self, address: IpAddr) -> Option<Held> {
        let address = address.to_canonical();
        if self.exempt.contains(&address) {
            return Some(Held::Exempt);
        }
        let network = gate::network(address);
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let there = of.get(&network).copied().unwrap_or_default();
        if there >= self.per_address_max {
            return None;
        }
        of.insert(network, there + 1);
        Some(Held::OfAddress { network, of: Arc::clone(&self.of) })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Self::OfAddress { network, of } = self else { return };
        let mut of = of.lock().unwrap_or_else(PoisonError::into_inner);
        match of.get_mut(network) {
            Some(there) if *there > 1 => *there -= 1,
            _ => drop(of.remove(network)),
        }
    }
}

/// Accepts until told to stop, then waits for every connection to end.
async fn serve(
    listener: TcpListener,
    door: Door,
    places: Places,
    shared: Arc<Shared>,
    mailbox: mpsc::Sender<Mail>,
    next_conn: Arc<AtomicU64>,
) {
    let tasks = Tasks::new();
    let shutdown = shared.stop.clone();
    let handler = move |stream: Stream<TcpStream>, origin: SocketAddr| {
        // The protocol has no ping: without it, who vanishes holds a place, and is active for others (spec 1.1).
        stream.keep_alive();
        let conn = ConnId(next_conn.fetch_add(1, Ordering::Relaxed));
        connection::run(Arc::clone(&shared), mailbox.clone(), conn, origin.ip(), stream)
    };
    let accepting = tokio::spawn(listen::serve_within(places, listener, door, tasks.clone(), handler));
    shutdown.cancelled().await;
    tasks.stop();
    tasks.tracker().close();
    tasks.tracker().wait().await;
    if let Err(error) = accepting.await {
        error!(%error, "the Skynet server could not accept any more");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_took_every_place() {
        let mut config = Config::new(PathBuf::new());
        (config.connections_max, config.connections_per_address_max) = (5, 2);
        let places = Places::new(&config);
        let from = |address: &str| places.comes_from(address.parse().unwrap());
        let (first, second) = (from("2001:db8::1").unwrap(), from("2001:db8::2").unwrap());
        assert!(from("2001:db8::3").is_none(), "a customer has a whole network");
        let other = from("192.0.2.1").unwrap();
        assert!(from("::ffff:192.0.2.1").is_some() && from("192.0.2.1").is_some());
        drop(first);
        let third = from("2001:db8::3").unwrap();
        assert!(from("2001:db8::3").is_none());
        let mediators: Vec<_> = (0..9).map(|_| from("127.0.0.1").unwrap()).collect();
        drop((second, third, other, mediators));
        assert!(places.of.lock().unwrap().is_empty(), "nothing is left of those who went");
        let all: Vec<_> = std::iter::from_fn(|| places.accepted()).collect();
        let few = places.among(4);
        let visits: Vec<_> = std::iter::from_fn(|| few.comes_from("192.0.2.1".parse().unwrap())).collect();
        assert_eq!((all.len(), visits.len()), (5, 1), "a page is for more than one, too");
    }
}
