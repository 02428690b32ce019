//! `heliostat serve`: everything the configuration names, in one process.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use miette::{IntoDiagnostic as _, WrapErr as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{Admission, Mediator, Parts, bind};
use crate::chat::csp;
use crate::config::{AdmissionConfig, Config, Durability, LimitsConfig, Security};
use crate::group::Limits;
use crate::net::{development, tls};
use crate::session::Timeouts;
use crate::store::memory::MemoryStore;
use crate::store::sqlite::SqliteStore;
use crate::store::{self, Store};
use crate::time::Clock;
use crate::upstream::{TcpDial, UpstreamLimits};
use crate::{log, metrics};

/// Runs until a signal asks for the end.
///
/// # Errors
/// What could not be opened, read or bound, in a sentence that says what to do.
pub async fn run(config: Config) -> miette::Result<ExitCode> {
    let clock = Clock::system();
    let data = &config.data_dir;
    let now_ms = clock.now().wall_ms;
    // Opening may have to repair after a crash; it must not hold up the runtime.
    let kept = Kept::open(config.durability, data, now_ms).await?;
    let door = Door::open(config.listen.security(), data, now_ms)?;

    let stop_chat = CancellationToken::new();
    let csp = if config.chat.csp.enabled {
        let mut settings = csp::Config::new(config.chat.csp.listen, data.clone());
        settings.limits.device_cookie_indication = config.chat.csp.device_cookie_indication;
        Some(csp::start(settings, clock, stop_chat.clone()).await.into_diagnostic()?)
    } else {
        None
    };

    let public = bind(config.listen.address).await.into_diagnostic().wrap_err("cannot open the door for devices")?;
    let admin = bind(config.admin.listen).await.into_diagnostic().wrap_err("cannot open the admin door")?;
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
    let mediator = Mediator::start(public, door.acceptor.clone(), parts);
    mediator.open_admin(admin);
    banner(&config, &door, &addresses, csp.as_ref(), kept.durability).into_diagnostic()?;

    asked_to_end().await?;
    tracing::info!("stopping");
    if let Err(unfinished) = mediator.stop().await {
        tracing::warn!(%unfinished, "connections were left behind");
    }
    stop_chat.cancel();
    if let Some(csp) = csp {
        csp.wait().await;
    }
    kept.close().await?;
    Ok(ExitCode::SUCCESS)
}

/// The store that the configuration asks for.
struct Kept {
    store: Arc<dyn Store>,
    sqlite: Option<Arc<SqliteStore>>,
    durability: &'static str,
}

impl Kept {
    async fn open(durability: Durability, data: &Path, now_ms: u64) -> miette::Result<Self> {
        match durability {
            Durability::Memory => Ok(Self { store: Arc::new(MemoryStore::new()), sqlite: None, durability: "memory" }),
            Durability::Fsync => {
                let data = data.to_owned();
                let open = move || SqliteStore::open(&data, store::Durability::Fsync, now_ms);
                let sqlite = tokio::task::spawn_blocking(open).await.into_diagnostic()?.into_diagnostic()?;
                let store: Arc<dyn Store> = Arc::<SqliteStore>::clone(&sqlite);
                Ok(Self { store, sqlite: Some(sqlite), durability: "fsync" })
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

/// How the public door is secured, and what clients need to know of it.
struct Door {
    acceptor: Option<TlsAcceptor>,
    pin: Option<String>,
    ca: Option<std::path::PathBuf>,
}

impl Door {
    fn open(security: Security, data: &Path, now_ms: u64) -> miette::Result<Self> {
        let (files, ca) = match security {
            Security::Plain => return Ok(Self { acceptor: None, pin: None, ca: None }),
            Security::Files(files) => (files, None),
            Security::Development => {
                let made = development::development(&data.join("tls"), now_ms).into_diagnostic()?;
                (made.files, Some(made.ca))
            }
        };
        let acceptor = tls::acceptor(&files).into_diagnostic()?;
        Ok(Self { acceptor: Some(acceptor), pin: Some(tls::spki_pin(&files.cert).into_diagnostic()?), ca })
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
    door: &Door,
    addresses: &Addresses,
    csp: Option<&csp::Running>,
    durability: &str,
) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let scheme = if door.acceptor.is_some() { "wss" } else { "ws" };
    // The development certificate names localhost.
    let host = if addresses.public.ip().is_loopback() || addresses.public.ip().is_unspecified() {
        format!("localhost:{}", addresses.public.port())
    } else {
        addresses.public.to_string()
    };
    writeln!(out, "Heliostat {} is ready.", env!("CARGO_PKG_VERSION"))?;
    writeln!(out, "  devices      {scheme}://{host}  (listening on {})", addresses.public)?;
    if let Some(ca) = &door.ca {
        writeln!(out, "  CA           {}", ca.display())?;
    }
    if let Some(pin) = &door.pin {
        writeln!(out, "  SPKI pin     {pin}  (SHA-256, base64)")?;
    }
    if let (Some(csp), Some(address)) = (csp, addresses.csp) {
        writeln!(out, "  chat server  {address}  (CSP, public key {})", hex::encode(csp.public_key()))?;
    }
    writeln!(out, "  admin        http://{}/readyz", addresses.admin)?;
    writeln!(out, "  data         {}  (durability {durability})", config.data_dir.display())?;
    if durability == "memory" {
        writeln!(out, "\nNothing is kept: everything is lost when this process ends.")?;
    }
    if door.ca.is_some() {
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

/// Waits for an interrupt or a termination signal.
async fn asked_to_end() -> miette::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).into_diagnostic()?;
    let mut interrupt = signal(SignalKind::interrupt()).into_diagnostic()?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
