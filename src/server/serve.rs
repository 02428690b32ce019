//! `heliostat serve`: everything the configuration names, in one process.

use std::io::{ErrorKind, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use miette::{IntoDiagnostic as _, WrapErr as _, miette};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::admin::AdminDoor;
use super::backup::Backups;
use super::{Admission, Mediator, Parts, bind};
use crate::chat::csp;
use crate::config::{AdmissionConfig, Config, Durability, LimitsConfig, Security};
use crate::group::Limits;
use crate::net::acme::Acme;
use crate::net::development;
use crate::net::listen::Door;
use crate::net::tls::{Certificate, Tls};
use crate::net::watch::{LOOK_EVERY, Watch};
use crate::session::Timeouts;
use crate::store::memory::MemoryStore;
use crate::store::sqlite::SqliteStore;
use crate::store::{self, DirLock, Store};
use crate::time::Clock;
use crate::upstream::{TcpDial, UpstreamLimits};
use crate::{log, metrics};

/// Runs until a signal asks for the end.
///
/// # Errors
/// What could not be opened, read or bound, in a sentence that says what to do.
pub async fn run(config: Config) -> miette::Result<ExitCode> {
    // Before anybody can know that we run, or a signal that comes early would kill instead of ending in order.
    let mut end = EndSignals::listen().into_diagnostic().wrap_err("cannot listen for signals")?;
    let clock = Clock::system();
    let data = &config.data_dir;
    let now_ms = clock.now().wall_ms;
    // Opening may have to repair after a crash; it must not hold up the runtime.
    let kept = Kept::open(&config, now_ms).await?;
    let public = open_door("devices", config.listen.address, "--listen").await?;
    let admin = open_door("the operator", config.admin.listen, "--admin-listen").await?;
    let secured = Secured::open(&config, clock)?;

    let stop_chat = CancellationToken::new();
    let csp = if config.chat.csp.enabled {
        let listener = open_door("the chat server", config.chat.csp.listen, "--csp-listen").await?;
        let mut settings = csp::Config::new(config.chat.csp.listen, data.clone());
        settings.limits.device_cookie_indication = config.chat.csp.device_cookie_indication;
        if let Some(exempt) = &config.chat.csp.exempt {
            settings.exempt = exempt.iter().copied().collect();
        }
        Some(csp::start_on(listener, settings, clock, stop_chat.clone()).await.into_diagnostic()?)
    } else {
        None
    };

    let addresses = Addresses {
        public: public.local_addr().into_diagnostic()?,
        admin: admin.local_addr().into_diagnostic()?,
        csp: csp.as_ref().map(csp::Running::local_addr),
    };
    let (limits, timeouts) = bounds(&config.limits);
    let parts = Parts {
        store: Arc::clone(&kept.store),
        directory: config.directory(addresses.csp),
        dial: Arc::new(TcpDial),
        upstream: UpstreamLimits::default(),
        limits,
        timeouts,
        admission: admission(&config.admission),
        clock,
        durability: kept.durability,
    };
    let watching = CancellationToken::new();
    let _watch_ends = watching.clone().drop_guard();
    tokio::spawn(log::rotate(clock, watching.clone()));
    tokio::spawn(metrics::keep_up(clock, watching));
    let mediator = Mediator::start(public, secured.door.clone(), parts);
    let asked = CancellationToken::new();
    let backups = kept.sqlite.is_some().then(|| Backups::new(Arc::clone(&kept.store), data.clone()));
    let token = config.admin.token.clone();
    mediator.open_admin(admin, AdminDoor { token, drain: asked.clone(), backups });
    banner(&config, &secured, &addresses, csp.as_ref(), kept.durability).into_diagnostic()?;
    // Only now, because an authority looks at the open door.
    let upkeep = tokio::spawn(secured.upkeep.run());

    let wish = async {
        tokio::select! {
            () = end.wait() => {}
            () = asked.cancelled() => {}
        }
    };
    let reason = until_over(wish, csp.as_ref()).await;
    if let Err(fault) = &reason {
        tracing::error!(%fault, "stopping");
    } else {
        tracing::info!("stopping");
    }
    if let Err(unfinished) = mediator.stop().await {
        tracing::warn!(%unfinished, "connections were left behind");
    }
    upkeep.abort();
    stop_chat.cancel();
    if let Some(csp) = csp {
        csp.wait().await;
    }
    kept.close().await?;
    reason.map(|()| ExitCode::SUCCESS)
}

/// Waits for the request to end, or for a chat server that ended without one. A process that serves half of what it is
/// configured to looks healthy and is not: it stops in order, and fails, so that a supervisor starts it anew.
async fn until_over(asked: impl Future<Output = ()>, csp: Option<&csp::Running>) -> miette::Result<()> {
    let csp_over = async {
        match csp {
            Some(csp) => csp.over().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = asked => Ok(()),
        () = csp_over => Err(miette::miette!("the CSP chat server ended unexpectedly")),
    }
}

/// A listener, or what to do when there can be none.
async fn open_door(for_whom: &str, address: SocketAddr, flag: &str) -> miette::Result<TcpListener> {
    bind(address).await.map_err(|error| {
        let help = match error.kind() {
            ErrorKind::AddrInUse => "another program listens there, perhaps another heliostat: stop it, or",
            ErrorKind::PermissionDenied => "ports below 1024 are not for everybody: run with the right to, or",
            ErrorKind::AddrNotAvailable => "that address is not one of this machine's:",
            _ => "",
        };
        let help = format!(
            "{help} choose another address with {flag} ADDR or in the configuration; port 0 takes any that is free"
        );
        miette!(help = help.trim_start(), "cannot listen for {for_whom} on {error}")
    })
}

/// The store that the configuration asks for. Whatever that is, the data directory is ours alone as long as something is kept
/// there: the embedded chat server always keeps its queues in a file, and two that share it would overwrite each other.
struct Kept {
    store: Arc<dyn Store>,
    sqlite: Option<Arc<SqliteStore>>,
    durability: &'static str,
    /// A store on disk has its own.
    _lock: Option<DirLock>,
}

impl Kept {
    async fn open(config: &Config, now_ms: u64) -> miette::Result<Self> {
        let data = config.data_dir.clone();
        match config.durability {
            Durability::Memory => {
                let lock = config.chat.csp.enabled.then(|| DirLock::take(&data)).transpose().into_diagnostic()?;
                Ok(Self { store: Arc::new(MemoryStore::new()), sqlite: None, durability: "memory", _lock: lock })
            }
            Durability::Fsync => {
                let open = move || SqliteStore::open(&data, store::Durability::Fsync, now_ms);
                let sqlite = tokio::task::spawn_blocking(open).await.into_diagnostic()?.into_diagnostic()?;
                let store: Arc<dyn Store> = Arc::<SqliteStore>::clone(&sqlite);
                Ok(Self { store, sqlite: Some(sqlite), durability: "fsync", _lock: None })
            }
        }
    }

    async fn close(self) -> miette::Result<()> {
        match self.sqlite {
            Some(sqlite) => sqlite.close().await.into_diagnostic().wrap_err("the store did not close in order"),
            None => Ok(()),
        }
    }
}

/// How the public door is secured, what clients need to know of it, and what keeps it so.
struct Secured {
    door: Door,
    /// The authority of a development box, for clients to trust.
    ca: Option<PathBuf>,
    upkeep: Upkeep,
}

/// What has to be done about a certificate while it is presented.
enum Upkeep {
    /// Nothing: there is none, or it was made at start and outlives the process.
    Nothing,
    Watch(Watch),
    Acme(Box<Acme>),
}

impl Upkeep {
    async fn run(self) {
        match self {
            Self::Nothing => {}
            Self::Watch(watch) => watch.run(LOOK_EVERY).await,
            Self::Acme(acme) => acme.run().await,
        }
    }
}

impl Secured {
    fn open(config: &Config, clock: Clock) -> miette::Result<Self> {
        let (tls, ca, upkeep) = match config.listen.security() {
            Security::Plain => (None, None, Upkeep::Nothing),
            Security::Files(files) => {
                let watch = Watch::open(files, clock).into_diagnostic()?;
                (Some(watch.tls().clone()), None, Upkeep::Watch(watch))
            }
            Security::Acme(settings) => {
                let acme = Acme::open(settings, clock).into_diagnostic()?;
                (Some(acme.tls().clone()), None, Upkeep::Acme(Box::new(acme)))
            }
            Security::Development => {
                let dir = config.data_dir.join("tls");
                let made = development::development(&dir, clock.now().wall_ms).into_diagnostic()?;
                let certificate = Certificate::load(&made.files).into_diagnostic()?;
                (Some(Tls::presenting(certificate).into_diagnostic()?), Some(made.ca), Upkeep::Nothing)
            }
        };
        Ok(Self { door: Door { tls, proxies: Arc::new(config.listen.proxies()) }, ca, upkeep })
    }
}

struct Addresses {
    public: SocketAddr,
    admin: SocketAddr,
    csp: Option<SocketAddr>,
}

fn bounds(config: &LimitsConfig) -> (Limits, Timeouts) {
    let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let limits = Limits {
        max_device_slots: count(config.max_device_slots.into()),
        max_queue_messages: config.max_queue_messages,
        max_queue_bytes: config.max_queue_bytes,
        transaction_ttl_max: config.transaction_ttl,
        volatile_slot_ttl: config.volatile_slot_ttl,
        persistent_slot_ttl: config.persistent_slot_ttl,
        staged_messages_max: count(config.max_staged_messages),
        staged_bytes_max: count(config.max_staged_bytes),
    };
    let timeouts =
        Timeouts { handshake: config.handshake_timeout, idle: config.idle_timeout, ping_every: config.ping_interval };
    (limits, timeouts)
}

fn admission(config: &AdmissionConfig) -> Admission {
    Admission {
        max_connections: config.max_connections,
        max_connections_per_address: config.max_connections_per_address,
        groups: config.groups.as_ref().map(|groups| groups.iter().copied().collect()),
    }
}

/// Tells whoever started this what is open and what to do next.
fn banner(
    config: &Config,
    secured: &Secured,
    addresses: &Addresses,
    csp: Option<&csp::Running>,
    durability: &str,
) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let scheme = if secured.door.tls.is_some() { "wss" } else { "ws" };
    // The development certificate names localhost.
    let host = if addresses.public.ip().is_loopback() || addresses.public.ip().is_unspecified() {
        format!("localhost:{}", addresses.public.port())
    } else {
        addresses.public.to_string()
    };
    writeln!(out, "Heliostat {} is ready.", env!("CARGO_PKG_VERSION"))?;
    writeln!(out, "  devices      {scheme}://{host}  (listening on {})", addresses.public)?;
    if let Some(ca) = &secured.ca {
        writeln!(out, "  CA           {}", ca.display())?;
    }
    match secured.door.tls.as_ref().map(Tls::identity) {
        Some(Some(identity)) => {
            writeln!(out, "  certificate  until {}  ({})", identity.not_after(), identity.names.join(", "))?;
            writeln!(out, "  SPKI pin     {}  (SHA-256, base64)", identity.pin)?;
        }
        Some(None) => writeln!(out, "  certificate  none yet: it is ordered, and until then nobody can connect")?,
        None => {}
    }
    if !secured.door.proxies.trusted.is_empty() {
        writeln!(out, "  proxies      {}", secured.door.proxies.trusted)?;
    }
    if let (Some(csp), Some(address)) = (csp, addresses.csp) {
        writeln!(out, "  chat server  {address}  (CSP, public key {})", hex::encode(csp.public_key()))?;
    }
    writeln!(out, "  admin        http://{}/", addresses.admin)?;
    writeln!(out, "  data         {}  (durability {durability})", config.data_dir.display())?;
    if durability == "memory" {
        writeln!(
            out,
            "\nDevice groups and their messages are in memory only: they are lost when this process ends, for good."
        )?;
        match (csp.is_some(), secured.ca.is_some()) {
            (true, true) => {
                writeln!(out, "Kept all the same: the chat server's data, and the development certificate.")?
            }
            (true, false) => writeln!(out, "Kept all the same: the chat server's data.")?,
            (false, true) => writeln!(out, "Kept all the same: the development certificate.")?,
            (false, false) => {}
        }
    }
    if secured.ca.is_some() {
        writeln!(
            out,
            "\nThis is a development set-up: its certificate is made here and nobody else trusts it.\n\
             Next, in a second terminal:\n\n  \
             cargo run --release -- simulate --groups 20 --devices 3 --messages 50\n  \
             cargo run --release -- device {scheme}://{host}"
        )?;
    }
    out.flush()
}

/// The signals that ask for the end. From [`Self::listen`] on none of them is missed.
struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl EndSignals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_chat_server_that_ends_unasked_ends_the_process_with_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let settings = csp::Config::new("127.0.0.1:0".parse().unwrap(), dir.path().to_owned());
        let csp = csp::start(settings, Clock::system(), stop.clone()).await.unwrap();
        assert!(until_over(std::future::ready(()), Some(&csp)).await.is_ok(), "asked");
        stop.cancel();
        let fault = until_over(std::future::pending(), Some(&csp)).await.unwrap_err();
        assert!(fault.to_string().contains("CSP"), "{fault}");
        csp.wait().await;
    }
}
