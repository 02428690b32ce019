//! `heliostat serve`: everything the configuration names, in one process.
//!
//! | signal | does |
//! |---|---|
//! | TERM, INT | empties the house ([`super::drain`]), stops, ends with status 0; another one ends at once with status 3 |
//! | HUP | reads the configuration and the certificate again |
//!
//! A reload first does everything that can fail, so that one that fails has changed nothing.

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use miette::{IntoDiagnostic as _, WrapErr as _, miette};
use tokio::net::{TcpListener, UdpSocket};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::backup::Backups;
use super::drain::Pace;
use super::load::Shedding;
use super::parent::Parent;
use super::{Admission, Mediator, Parts, Settings, bind, supervisor};
use crate::chat::toxgroup::wire::Dialect;
use crate::chat::{chatos, csp, dm, skynet, toxgroup};
use crate::cluster::{self, Links};
use crate::config::{Changed, ClusterConfig, Config, Durability, NodeFormat, Rooms, Security, ToxGroupConfig};
use crate::group::Limits;
use crate::hub::neighbours::Neighbours;
use crate::metrics::Outcome;
use crate::net::acme::Acme;
use crate::net::development;
use crate::net::inherited::Inherited;
use crate::net::listen::Door;
use crate::net::proxies::{Proxies, SaidBy};
use crate::net::tls::{CertFiles, Certificate, Tls};
use crate::net::watch::{LOOK_EVERY, Looked, Watch, log_replaced};
use crate::session::{Rates, Timeouts};
use crate::store::memory::MemoryStore;
use crate::store::postgres::{self, PostgresStore};
use crate::store::sqlite::SqliteStore;
use crate::store::{self, DirLock, Store};
use crate::time::Clock;
use crate::upstream::{TcpDial, UpstreamLimits};
use crate::{log, logging, metrics};

/// The exit status when a second signal asked for the end at once.
pub const AT_ONCE: u8 = 3;

/// What the process hands to its server.
pub struct Process {
    /// Reads the configuration again; else says everything that is wrong.
    pub reread: Box<dyn Fn() -> Result<Config, Vec<String>> + Send + Sync>,
    /// Sockets that were opened for it.
    pub inherited: Inherited,
    /// Standard output is for the port where devices connect, and nothing else.
    pub print_port: bool,
    /// Nobody needs the server after whoever started it.
    pub exit_with_parent: bool,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process").field("inherited", &self.inherited).finish_non_exhaustive()
    }
}

/// Runs until a signal or the operator asks for the end.
///
/// # Errors
/// What could not be opened, read or bound, in a sentence that says what to do.
pub async fn run(config: Config, process: Process) -> miette::Result<ExitCode> {
    // Before anybody can know that we run, or a signal that comes early would kill instead of ending in order.
    let mut signals = Signals::listen().into_diagnostic().wrap_err("cannot listen for signals")?;
    let Process { reread, inherited, print_port, exit_with_parent } = process;
    let orphaned = exit_with_parent.then(Parent::ours).transpose().into_diagnostic()?;
    let _the_environments_is_stronger = logging::configure(config.log.filter.as_str()).into_diagnostic()?;
    let clock = Clock::system();
    let data = &config.data_dir;
    // Opening may have to repair after a crash; it must not hold up the runtime.
    let links = open_links(&config, clock).await?;
    let node = Node::of(&config, links.as_ref())?;
    let kept = Kept::open(&config, &node, clock).await?;
    let public = take_or_open(inherited.devices, "devices", config.listen.address, "--listen").await?;
    let admin = take_or_open(inherited.admin, "the operator", config.admin.listen, "--admin-listen").await?;
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

    let chatos = if config.chat.chatos.enabled { Some(open_chatos(&config, clock, &stop_chat).await?) } else { None };
    let skynet = if config.chat.skynet.enabled {
        Some(open_skynet(&config, secured.door.tls.as_ref(), clock, &stop_chat).await?)
    } else {
        None
    };

    let dm = match config.chat.dm.enabled {
        true => Some(open_dm(&config, secured.door.tls.as_ref(), clock, &stop_chat).await?),
        false => None,
    };
    let toxgroup =
        if config.chat.toxgroup.enabled { Some(open_toxgroup(&config, clock, &stop_chat).await?) } else { None };
    let hub = toxgroup.as_ref().map(toxgroup::Running::addresses);

    let addresses = Addresses {
        public: public.local_addr().into_diagnostic()?,
        admin: admin.local_addr().into_diagnostic()?,
        rooms: Rooms {
            csp: csp.as_ref().map(csp::Running::local_addr),
            chatos: chatos.as_ref().and_then(|chatos| chatos.addresses().last().copied()),
            skynet: skynet.as_ref().and_then(|(skynet, _)| skynet.addresses().get(1).copied()),
            dm: dm.as_ref().and_then(|dm| dm.addresses().get(1).copied()),
            toxgroup: hub.map(|hub| hub.tcp),
            toxthin: hub.map(|hub| hub.thin),
        },
        chatos: chatos.as_ref().and_then(|chatos| chatos.addresses().first().copied()),
        hub,
        skynet: skynet.as_ref().and_then(|(skynet, _)| skynet.addresses().first().copied()),
        skynet_pages: skynet.as_ref().map(|(_, pages)| pages.clone()),
        dm: dm.as_ref().and_then(|dm| dm.addresses().first().copied()),
    };
    if config.admin.token.is_none() && !addresses.admin.ip().is_loopback() {
        // Of the configured address the configuration knows.
        miette::bail!(
            "without a token the admin door has to be on a loopback address, and the socket handed over is on {}",
            addresses.admin
        );
    }
    let skynet = skynet.map(|(skynet, _)| skynet);
    let parts = Parts {
        store: Arc::clone(&kept.store),
        neighbours: links.as_ref().map(|(links, _)| Arc::<Links>::clone(links) as Arc<dyn Neighbours>),
        dial: Arc::new(TcpDial),
        upstream: UpstreamLimits::default(),
        settings: settings(&config, addresses.rooms),
        clock,
        durability: kept.durability,
    };
    let watching = CancellationToken::new();
    let _watch_ends = watching.clone().drop_guard();
    tokio::spawn(log::rotate(clock, watching.clone()));
    tokio::spawn(metrics::keep_up(clock, watching));
    let mediator = Mediator::start(public, secured.door.clone(), parts);
    let backups =
        matches!(kept.engine, Kind::Sqlite(_)).then(|| Backups::new(Arc::clone(&kept.store), config.data_dir.clone()));
    let node = Some(node).filter(|_| matches!(kept.engine, Kind::Postgres(_)));
    let links = links.map(|(links, listener)| {
        mediator.open_links(listener, Arc::clone(&links));
        links
    });
    mediator.open_admin(admin, config.admin.token.clone(), backups, config.admin.capture);
    if print_port {
        banner(
            &mut std::io::stderr().lock(),
            &config,
            &secured,
            &addresses,
            csp.as_ref(),
            node.as_ref(),
            kept.durability,
        )
        .and_then(|()| {
            let mut out = std::io::stdout().lock();
            writeln!(out, "{}", addresses.public.port())?;
            out.flush()
        })
        .into_diagnostic()?;
    } else {
        let mut out = std::io::stdout().lock();
        banner(&mut out, &config, &secured, &addresses, csp.as_ref(), node.as_ref(), kept.durability)
            .into_diagnostic()?;
    }
    // Only now, because an authority looks at the open door.
    let watch = secured.upkeep.watch();
    let upkeep = tokio::spawn(secured.upkeep.run());
    supervisor::ready();

    let mut held = config;
    let orphaned = async {
        match orphaned {
            Some(parent) => parent.gone().await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(orphaned);
    let end = loop {
        tokio::select! {
            () = &mut orphaned => break End::Orphaned,
            asked = signals.next() => match asked {
                Asked::End => break End::BySignal,
                Asked::Reload => {
                    supervisor::reloading();
                    tokio::select! {
                        () = reload(&mut held, &*reread, watch.as_ref(), &mediator, addresses.rooms) => {}
                        never = supervisor::watchdog(&mediator) => match never {},
                    }
                    supervisor::ready();
                }
            },
            () = mediator.drain_asked() => break End::ByOperator,
            fault = ended_unasked(csp.as_ref(), chatos.as_ref(), skynet.as_ref(), dm.as_ref(), toxgroup.as_ref()) => break End::Fault(fault),
            never = supervisor::watchdog(&mediator) => match never {},
        }
    };
    supervisor::stopping();
    signals.end_at_once(matches!(end, End::BySignal));
    if let End::Fault(fault) = &end {
        tracing::error!(%fault, "stopping");
    }
    let pace = Pace { grace: held.drain.grace, interval: held.drain.interval };
    let drained = tokio::select! {
        drained = mediator.drain(pace) => drained,
        never = supervisor::watchdog(&mediator) => match never {},
    };
    if let Err(unfinished) = drained {
        tracing::warn!(%unfinished, "connections do not close");
    }
    tracing::info!("stopping");
    if let Err(unfinished) = mediator.stop().await {
        tracing::warn!(%unfinished, "connections were left behind");
    }
    if let Some(links) = links {
        links.close().await;
    }
    upkeep.abort();
    stop_chat.cancel();
    if let Some(csp) = csp {
        csp.wait().await;
    }
    if let Some(chatos) = chatos {
        chatos.wait().await;
    }
    if let Some(skynet) = skynet {
        skynet.wait().await;
    }
    if let Some(dm) = dm {
        dm.wait().await;
    }
    if let Some(toxgroup) = toxgroup {
        toxgroup.wait().await;
    }
    kept.close().await?;
    match end {
        End::BySignal | End::ByOperator | End::Orphaned => Ok(ExitCode::SUCCESS),
        End::Fault(fault) => Err(fault),
    }
}

/// Why a server ends.
enum End {
    BySignal,
    ByOperator,
    /// Whoever started us is gone.
    Orphaned,
    Fault(miette::Report),
}

/// Waits for a chat server that ends without being asked. A process that serves half of what it is configured to looks healthy
/// and is not: it stops in order, and fails, so that a supervisor starts it anew.
async fn ended_unasked(
    csp: Option<&csp::Running>,
    chatos: Option<&chatos::Running>,
    skynet: Option<&skynet::Running>,
    dm: Option<&dm::Running>,
    toxgroup: Option<&toxgroup::Running>,
) -> miette::Report {
    let csp = async {
        match csp {
            Some(csp) => csp.over().await,
            None => std::future::pending().await,
        }
    };
    let chatos = async {
        match chatos {
            Some(chatos) => chatos.over().await,
            None => std::future::pending().await,
        }
    };
    let skynet = async {
        match skynet {
            Some(skynet) => skynet.over().await,
            None => std::future::pending().await,
        }
    };
    let dm = async {
        match dm {
            Some(dm) => dm.over().await,
            None => std::future::pending().await,
        }
    };
    let toxgroup = async {
        match toxgroup {
            Some(toxgroup) => toxgroup.over().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = toxgroup => miette!("the Tox group hub ended unexpectedly"),
        () = csp => miette!("the CSP chat server ended unexpectedly"),
        () = chatos => miette!("the ChatOs server ended unexpectedly"),
        () = skynet => miette!("the Skynet server ended unexpectedly"),
        () = dm => miette!("the DM server ended unexpectedly"),
    }
}

/// What leads to other nodes, and where they come in; `None` for a node alone.
async fn open_links(config: &Config, clock: Clock) -> miette::Result<Option<(Arc<Links>, TcpListener)>> {
    let ClusterConfig { cert: Some(cert), key: Some(key), authority: Some(authority), listen, .. } = &config.cluster
    else {
        return Ok(None);
    };
    let settings = cluster::Settings {
        cert: CertFiles { cert: cert.clone(), key: key.clone() },
        authority: authority.clone(),
        address: config.cluster.address.clone().unwrap_or_else(|| listen.to_string()),
        pace: cluster::Pace::default(),
    };
    let links = Links::new(settings, clock).into_diagnostic()?;
    let listener = open_door("other nodes", *listen, "--set cluster.listen=").await?;
    Ok(Some((links, listener)))
}

/// What an operator is told of a node of several.
struct Node {
    name: String,
    /// Where others are told to come in.
    address: String,
    /// Where they do.
    links: Option<SocketAddr>,
}

impl Node {
    fn of(config: &Config, links: Option<&(Arc<Links>, TcpListener)>) -> miette::Result<Self> {
        let links = links.map(|(_, listener)| listener.local_addr()).transpose().into_diagnostic()?;
        let ClusterConfig { name, address, listen, .. } = &config.cluster;
        let address = address.clone().unwrap_or_else(|| links.unwrap_or(*listen).to_string());
        Ok(Self { name: name.clone().unwrap_or_else(|| address.clone()), address, links })
    }
}

/// Opens the ChatOs server as it is configured. At the last of its addresses it is not encrypted.
async fn open_chatos(config: &Config, clock: Clock, stop: &CancellationToken) -> miette::Result<chatos::Running> {
    let room = &config.chat.chatos;
    let tls = room.cert_files().map(|files| watched(files, clock, stop)).transpose()?;
    let listener = open_door("the ChatOs server", room.listen, "--chatos-listen").await?;
    let mut doors = vec![(listener, Door::from(tls.clone()))];
    if tls.is_some() {
        let key = "--set chat.chatos.plain_listen=";
        doors.push((open_door("the ChatOs server's mediator", room.plain_listen, key).await?, Door::default()));
    }
    let settings = chatos::Config {
        limits: chatos::state::Limits {
            inactivity: room.inactivity_timeout,
            first_packet: room.login_timeout,
            partial_packet: room.packet_timeout,
            unjoined: room.join_timeout,
            connections_max: room.max_connections,
            error_packets: room.error_packets,
            join_same_ip: room.join_same_ip,
            unwanted: chatos::state::Unwanted::new(room.unwanted_nicknames.iter().map(String::as_str)),
            ..chatos::state::Limits::default()
        },
        message_octets_max: room.max_message_octets,
        write_stall: room.write_timeout,
        packets: room.packets_per_client,
        ..chatos::Config::new(room.listen)
    };
    chatos::start_on(doors, settings, clock, stop.clone()).into_diagnostic()
}

/// Opens the Skynet server as it is configured: at the first of its addresses with TLS, as far as there is a certificate, and at
/// the second without. Returns also where people find its pages.
async fn open_skynet(
    config: &Config,
    presented_to_devices: Option<&Tls>,
    clock: Clock,
    stop: &CancellationToken,
) -> miette::Result<(skynet::Running, String)> {
    let room = &config.chat.skynet;
    let own = room.cert_files().map(|files| watched(files, clock, stop)).transpose()?;
    let tls = own.or_else(|| presented_to_devices.cloned());
    let secured = open_door("the Skynet server", room.listen, "--skynet-listen").await?;
    let plain = open_door("the Skynet server's mediator", room.plain_listen, "--set chat.skynet.plain_listen=").await?;
    let web = open_door("the Skynet server's pages", room.web_listen, "--set chat.skynet.web_listen=").await?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let here = format!("{scheme}://{}", host(web.local_addr().into_diagnostic()?));
    let public_url = room.public_url.clone().unwrap_or(here);
    let mut settings = skynet::Config::new(config.data_dir.clone());
    let smtp = room.smtp.as_ref().map(|url| skynet::Way::Smtp(url.expose().to_owned()));
    let way = smtp.or_else(|| room.mail_dir.clone().map(skynet::Way::Files));
    settings.mail = match (way, &room.mail_from) {
        (Some(way), Some(from)) => {
            Arc::new(skynet::Post::open(way, from, public_url.clone(), stop.clone()).into_diagnostic()?)
        }
        _ => Arc::new(skynet::LogMail { public_url: Some(public_url.clone()) }),
    };
    settings.settings = skynet::Settings {
        platforms: room.platforms.known(),
        session_age_max: room.session_max_age,
        strict_dependencies: room.strict_dependencies,
        daystream_age_max: room.daystream_max_age,
        files: skynet::FileLimits {
            length_max: room.files.max_size,
            per_account_max: room.files.max_size_per_account,
            transfers_max: room.files.max_transfers,
            unnamed_age_max: room.files.unnamed_max_age,
            counted_for: room.files.counted_for,
        },
        push_after: room.push.after,
        push_every_message: room.push.every_message,
        ..settings.settings
    };
    if let Some(dir) = &room.files.dir {
        settings.files_dir.clone_from(dir);
    }
    settings.connections_max = room.max_connections;
    settings.connections_per_address_max = room.max_connections_per_address;
    settings.rates = skynet::Rates {
        attempts: room.attempts_per_address,
        logins: room.logins_per_name,
        mails: room.mails_per_address,
        shared_registrations: room.registrations_from_exempt,
        packets: room.packets_per_account,
        costly: room.costly_per_account,
        guesses: room.guesses_per_account,
        wishes: room.address_changes_per_account,
        kept: room.kept_per_account,
    };
    if let Some(url) = &room.database {
        settings.place = skynet::store::Place::Postgres(url.expose().to_owned());
    }
    if let Some(exempt) = &room.exempt {
        settings.exempt = exempt.iter().copied().collect();
    }
    #[cfg(feature = "fcm")]
    let fcm = match &room.push.fcm_account {
        Some(account) => {
            let service = skynet::serve::fcm::FcmSettings {
                account: account.clone(),
                service: skynet::serve::fcm::SERVICE.to_owned(),
                ca: None,
                forget_unreachable: room.push.forget_unreachable,
            };
            let (line, fcm) = skynet::serve::fcm::Fcm::open(service, clock).into_diagnostic()?;
            settings.push = Arc::new(line);
            Some(fcm)
        }
        None => None,
    };
    let door = Door { tls, proxies: announced(config, room.proxy_protocol) };
    let doors = vec![(secured, door.clone()), (plain, Door::default())];
    let mut running = skynet::start_on(doors, settings, clock, stop.clone()).await.into_diagnostic()?;
    #[cfg(feature = "fcm")]
    if let Some(fcm) = fcm {
        tokio::spawn(fcm.run(running.lost(), stop.clone()));
    }
    running.open_web(web, door, public_url.clone(), stop.clone());
    Ok((running, public_url))
}

/// The proxies that say in the PROXY protocol for whom they come, if they do.
fn announced(config: &Config, proxy_protocol: bool) -> Arc<Proxies> {
    let said_by = if proxy_protocol { SaidBy::ProxyProtocol } else { SaidBy::default() };
    let trusted = config.listen.trusted_proxies.iter().filter(|_| proxy_protocol).copied().collect();
    Arc::new(Proxies::new(trusted, said_by))
}

/// Opens the DM server as it is configured: at the first of its addresses with TLS, as far as there is a certificate, and at the
/// second without.
async fn open_dm(
    config: &Config,
    presented_to_devices: Option<&Tls>,
    clock: Clock,
    stop: &CancellationToken,
) -> miette::Result<dm::Running> {
    let room = &config.chat.dm;
    let own = room.cert_files().map(|files| watched(files, clock, stop)).transpose()?;
    let tls = own.or_else(|| presented_to_devices.cloned());
    let secured = open_door("the DM server", room.listen, "--dm-listen").await?;
    let plain = open_door("the DM server's mediator", room.plain_listen, "--set chat.dm.plain_listen=").await?;
    let mut settings = dm::Config::new(config.data_dir.clone());
    settings.settings = dm::Settings {
        pair_requires_friendship: room.pair_requires_friendship,
        calls_as_map: room.calls_as_object,
        x3dh_after: room.x3dh_after,
        x3dh_kept: room.x3dh_kept,
        stranger_max: room.login_timeout,
        ..settings.settings
    };
    settings.rates = room.rates.rates();
    settings.connections_max = room.max_connections;
    settings.connections_per_address_max = room.max_connections_per_address;
    if let Some(url) = &room.database {
        settings.place = dm::store::Place::Postgres(url.expose().to_owned());
    }
    if let Some(exempt) = &room.exempt {
        settings.exempt = exempt.iter().copied().collect();
    }
    let door = Door { tls, proxies: announced(config, room.proxy_protocol) };
    let doors = vec![(secured, door), (plain, Door::default())];
    dm::start_on(doors, settings, clock, stop.clone()).await.into_diagnostic()
}

/// Opens the Tox group hub as it is configured.
async fn open_toxgroup(config: &Config, clock: Clock, stop: &CancellationToken) -> miette::Result<toxgroup::Running> {
    let room = &config.chat.toxgroup;
    let tls = room.cert_files().map(|files| watched(files, clock, stop)).transpose()?;
    let tcp = open_door("the Tox group hub", room.listen, "--toxgroup-listen").await?;
    // The same port for both, also where any was asked for.
    let at = tcp.local_addr().into_diagnostic()?;
    let udp = UdpSocket::bind(at).await.into_diagnostic().wrap_err_with(|| {
        format!(
            "cannot take datagrams for the Tox group hub on {at}; choose another address with --toxgroup-listen ADDR"
        )
    })?;
    let flag = "--set chat.toxgroup.web_listen=";
    let web = open_door("the Tox group hub's WebSockets", room.web_listen, flag).await?;
    let flag = "--set chat.toxgroup.thin_listen=";
    let thin = open_door("the Tox group hub's thin users", room.thin_listen, flag).await?;
    let mut settings = toxgroup::Config::new(config.data_dir.clone());
    settings.addresses = invited_to(room, at, web.local_addr().into_diagnostic()?, tls.is_some());
    settings.toxcore2014 = room.toxcore2014;
    settings.connections_max = room.max_connections;
    settings.unproved_per_address = room.max_unproved_per_address;
    settings.groups_max = room.max_groups;
    settings.users_max = room.max_users;
    settings.exempt = room.exempt.as_ref().map(|exempt| exempt.iter().copied().collect());
    settings.rules.node_format = match room.node_format {
        NodeFormat::Seed => toxgroup::state::NodeFormat::Fixed(Dialect::N40),
        NodeFormat::April2014 => toxgroup::state::NodeFormat::Fixed(Dialect::N51),
        NodeFormat::Winter2013 => toxgroup::state::NodeFormat::Fixed(Dialect::N56),
        NodeFormat::Auto => toxgroup::state::NodeFormat::Auto,
    };
    let limits = &mut settings.rules.limits;
    limits.members_max = room.max_members;
    limits.texts = limits.texts.at(room.texts_per_member);
    limits.packets = limits.packets.at(room.packets_per_neighbour);
    limits.joins_per_address = limits.joins_per_address.at(room.joins_per_address);
    let doors = toxgroup::Doors {
        udp,
        tcp: (tcp, Door::default()),
        web: (web, Door::from(tls)),
        thin: (thin, Door::default()),
    };
    toxgroup::start_on(doors, settings, clock, stop.clone()).await.into_diagnostic()
}

/// What invitations say about where the hub is. Nowhere, as far as it listens everywhere and nobody said by what name.
fn invited_to(room: &ToxGroupConfig, at: SocketAddr, web: SocketAddr, tls: bool) -> Vec<toxgroup::wire::Door> {
    use toxgroup::wire::Door::{Udp, Url};
    let said = room.public_host.clone();
    let host = |at: SocketAddr| said.clone().or_else(|| (!at.ip().is_unspecified()).then(|| at.ip().to_string()));
    let authority = |host: String, at: SocketAddr| match host.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, at.port()).to_string(),
        Err(_) => format!("{host}:{}", at.port()),
    };
    let udp = host(at).and_then(|host| host.parse().ok()).map(|ip| Udp(SocketAddr::new(ip, at.port())));
    let tcp = host(at).map(|host| Url(format!("tcp://{}", authority(host, at))));
    let scheme = if tls { "wss" } else { "ws" };
    let web = host(web).map(|host| Url(format!("{scheme}://{}/", authority(host, web))));
    udp.into_iter().chain(tcp).chain(web).collect()
}

/// A certificate of a room's own, which is looked at until the rooms close.
fn watched(files: CertFiles, clock: Clock, stop: &CancellationToken) -> miette::Result<Tls> {
    let watch = Watch::open(files, clock).into_diagnostic()?;
    let (tls, stop) = (watch.tls().clone(), stop.clone());
    tokio::spawn(async move { stop.run_until_cancelled(watch.run(LOOK_EVERY)).await });
    Ok(tls)
}

/// The socket that was handed over, or one of our own.
async fn take_or_open(
    inherited: Option<std::net::TcpListener>,
    for_whom: &str,
    address: SocketAddr,
    flag: &str,
) -> miette::Result<TcpListener> {
    let Some(inherited) = inherited else { return open_door(for_whom, address, flag).await };
    inherited.set_nonblocking(true).into_diagnostic()?;
    TcpListener::from_std(inherited).into_diagnostic()
}

/// Reads the configuration again, takes over what can be, and says what it did.
async fn reload(
    held: &mut Config,
    reread: &(dyn Fn() -> Result<Config, Vec<String>> + Send + Sync),
    watch: Option<&Watch>,
    mediator: &Mediator,
    rooms: Rooms,
) {
    let changes = reread().and_then(|new| held.reload(&new).map_err(|refused| vec![refused.to_string()]));
    // The last that can fail, since it alone changes something by itself.
    let looked = match watch.cloned().filter(|_| changes.is_ok()) {
        // A file system that hangs must not hold up the runtime.
        Some(watch) => tokio::task::spawn_blocking(move || watch.reload().map_err(|bad| bad.to_string())).await,
        None => Ok(Ok(Looked::Unchanged)),
    };
    let changes = changes.and_then(|changes| match looked.unwrap_or_else(|panicked| Err(panicked.to_string())) {
        Err(bad) => Err(vec![bad]),
        Ok(Looked::Replaced { identity, new_pin }) => {
            log_replaced(&identity, new_pin);
            Ok(changes)
        }
        Ok(Looked::Unchanged) => Ok(changes),
    });
    let changes = match changes {
        Ok(changes) => changes,
        Err(mistakes) => {
            metrics::get().reloads.of(Outcome::Failed).increment(1);
            for mistake in mistakes {
                tracing::error!(%mistake, "the configuration was not reloaded: nothing changed");
            }
            return;
        }
    };
    mediator.change(settings(&changes.config, rooms));
    let filter = &changes.config.log.filter;
    if *filter != held.log.filter && !logging::configure(filter.as_str()).unwrap_or(false) {
        tracing::warn!("HELIOSTAT_LOG is set, and stronger than log.filter");
    }
    for Changed { key, from, to } in &changes.taken_over {
        tracing::info!(key, from, to, "taken over");
    }
    for Changed { key, from, to } in &changes.waiting {
        tracing::warn!(key, from, to, "waits for a restart");
    }
    tracing::info!(taken_over = changes.taken_over.len(), waiting = changes.waiting.len(), "configuration reloaded");
    metrics::get().reloads.of(Outcome::Done).increment(1);
    *held = changes.config;
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
/// there: embedded chat servers always keep what they have in files, and two that share them would overwrite each other.
struct Kept {
    store: Arc<dyn Store>,
    engine: Kind,
    durability: &'static str,
    /// A store on disk has its own.
    _lock: Option<DirLock>,
}

/// What is to be closed in the end.
enum Kind {
    Memory,
    Sqlite(Arc<SqliteStore>),
    Postgres(Arc<PostgresStore>),
}

impl Kept {
    async fn open(config: &Config, node: &Node, clock: Clock) -> miette::Result<Self> {
        let data = config.data_dir.clone();
        let now_ms = clock.now().wall_ms;
        let rooms = &config.chat;
        let rooms_keep = rooms.csp.enabled || rooms.skynet.enabled || rooms.dm.enabled || rooms.toxgroup.enabled;
        let lock = || rooms_keep.then(|| DirLock::take(&data)).transpose().into_diagnostic();
        match (config.durability, &config.store) {
            (Durability::Memory, _) => {
                let store = Arc::new(MemoryStore::new());
                Ok(Self { store, engine: Kind::Memory, durability: "memory", _lock: lock()? })
            }
            (Durability::Fsync, Some(url)) => {
                let lock = lock()?;
                let settings = postgres::Settings {
                    url: url.expose().to_owned(),
                    name: node.name.clone(),
                    address: node.address.clone(),
                    lease: config.cluster.lease,
                    clock,
                };
                let postgres = PostgresStore::open(settings).await.into_diagnostic()?;
                let store: Arc<dyn Store> = Arc::<PostgresStore>::clone(&postgres);
                Ok(Self { store, engine: Kind::Postgres(postgres), durability: "fsync", _lock: lock })
            }
            (Durability::Fsync, None) => {
                let open = move || SqliteStore::open(&data, store::Durability::Fsync, now_ms);
                let sqlite = tokio::task::spawn_blocking(open).await.into_diagnostic()?.into_diagnostic()?;
                let store: Arc<dyn Store> = Arc::<SqliteStore>::clone(&sqlite);
                Ok(Self { store, engine: Kind::Sqlite(sqlite), durability: "fsync", _lock: None })
            }
        }
    }

    async fn close(self) -> miette::Result<()> {
        let closed = match self.engine {
            Kind::Memory => Ok(()),
            Kind::Sqlite(sqlite) => sqlite.close().await,
            Kind::Postgres(postgres) => postgres.close().await,
        };
        closed.into_diagnostic().wrap_err("the store did not close in order")
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
    /// What can be told to look at once.
    fn watch(&self) -> Option<Watch> {
        match self {
            Self::Watch(watch) => Some(watch.clone()),
            Self::Nothing | Self::Acme(_) => None,
        }
    }

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
    rooms: Rooms,
    chatos: Option<SocketAddr>,
    /// Where members of Tox groups connect.
    hub: Option<toxgroup::serve::Addresses>,
    /// Where Skynet clients connect.
    skynet: Option<SocketAddr>,
    /// Where its users confirm their addresses.
    skynet_pages: Option<String>,
    /// Where DM clients connect, and browsers find a page.
    dm: Option<SocketAddr>,
}

/// What can be changed while running.
fn settings(config: &Config, rooms: Rooms) -> Settings {
    let Config { limits, admission, shedding, .. } = config;
    let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    Settings {
        directory: config.directory(rooms),
        limits: Limits {
            max_device_slots: count(limits.max_device_slots.into()),
            max_queue_messages: limits.max_queue_messages,
            max_queue_bytes: limits.max_queue_bytes,
            transaction_ttl_max: limits.transaction_ttl,
            volatile_slot_ttl: limits.volatile_slot_ttl,
            persistent_slot_ttl: limits.persistent_slot_ttl,
            staged_messages_max: count(limits.max_staged_messages),
            staged_bytes_max: count(limits.max_staged_bytes),
        },
        timeouts: Timeouts {
            handshake: limits.handshake_timeout,
            idle: limits.idle_timeout,
            ping_every: limits.ping_interval,
        },
        rates: Rates { frames: limits.frames_per_device, bytes: limits.bytes_per_device },
        admission: Admission {
            max_connections: admission.max_connections,
            max_connections_per_address: admission.max_connections_per_address,
            max_connections_per_group: admission.max_connections_per_group,
            handshakes_per_address: admission.handshakes_per_address,
            handshakes_per_group: admission.handshakes_per_group,
            new_groups: admission.new_groups,
            shedding: Shedding {
                writer_latency: shedding.writer_latency,
                memory: shedding.memory,
                connections: shedding.connections,
            },
            groups: admission.groups.as_ref().map(|groups| groups.iter().copied().collect()),
        },
    }
}

/// How a door is called on this machine: the development certificate names localhost.
fn host(address: SocketAddr) -> String {
    if address.ip().is_loopback() || address.ip().is_unspecified() {
        format!("localhost:{}", address.port())
    } else {
        address.to_string()
    }
}

/// Tells whoever started this what is open and what to do next.
fn banner(
    out: &mut impl Write,
    config: &Config,
    secured: &Secured,
    addresses: &Addresses,
    csp: Option<&csp::Running>,
    node: Option<&Node>,
    durability: &str,
) -> std::io::Result<()> {
    let scheme = if secured.door.tls.is_some() { "wss" } else { "ws" };
    let host = host(addresses.public);
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
    if let (Some(csp), Some(address)) = (csp, addresses.rooms.csp) {
        writeln!(out, "  chat server  {address}  (CSP, public key {})", hex::encode(csp.public_key()))?;
    }
    if let (Some(address), Some(plain)) = (addresses.chatos, addresses.rooms.chatos) {
        let tls = if plain == address { String::new() } else { format!(", TLS; without TLS on {plain}") };
        writeln!(out, "  ChatOs       {address}  (nicknames without passwords{tls})")?;
    }
    if let (Some(address), Some(plain)) = (addresses.skynet, addresses.rooms.skynet) {
        let tls = secured.door.tls.is_some() || config.chat.skynet.cert.is_some();
        let tls = if tls { "TLS" } else { "not encrypted" };
        writeln!(out, "  Skynet       {address}  ({tls}; without TLS on {plain})")?;
    }
    if let Some(pages) = &addresses.skynet_pages {
        writeln!(out, "               {pages}/confirm/...  (where its users confirm their addresses)")?;
    }
    if let (Some(address), Some(plain)) = (addresses.dm, addresses.rooms.dm) {
        let tls = secured.door.tls.is_some() || config.chat.dm.cert.is_some();
        let scheme = if tls { "https" } else { "http" };
        writeln!(out, "  DM           {scheme}://{}/  (Socket.IO; without TLS on {plain})", self::host(address))?;
    }
    if let Some(hub) = addresses.hub {
        let web = if config.chat.toxgroup.cert.is_some() { "wss" } else { "ws" };
        writeln!(out, "  Tox groups   {}  (UDP and TCP; {web}://{}; thin users on {})", hub.tcp, hub.web, hub.thin)?;
    }
    if let Some(Node { name, address: _, links }) = node {
        let others = links.map_or_else(|| "alone".to_owned(), |links| format!("links on {links}"));
        writeln!(out, "  node         {name}  (groups in PostgreSQL; {others})")?;
    }
    writeln!(out, "  admin        http://{}/", addresses.admin)?;
    writeln!(out, "  data         {}  (durability {durability})", config.data_dir.display())?;
    if durability == "memory" {
        writeln!(
            out,
            "\nDevice groups and their messages are in memory only: they are lost when this process ends, for good."
        )?;
        let rooms = csp.is_some() || addresses.skynet.is_some() || addresses.dm.is_some() || addresses.hub.is_some();
        match (rooms, secured.ca.is_some()) {
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

/// What a signal asks for.
enum Asked {
    End,
    Reload,
}

/// What an operator says by signals.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::End,
            _ = self.interrupt.recv() => Asked::End,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }

    /// From now on, the second signal ends the process wherever it is. The store is made for that: what was acknowledged is
    /// kept.
    fn end_at_once(mut self, one_came: bool) {
        tokio::spawn(async move {
            let mut left = if one_came { 1 } else { 2 };
            while left > 0 {
                match self.next().await {
                    Asked::End => left -= 1,
                    Asked::Reload => tracing::info!("no reload: the end has begun"),
                }
            }
            tracing::warn!("asked twice: ending at once");
            std::process::exit(AT_ONCE.into());
        });
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
        stop.cancel();
        let fault = ended_unasked(Some(&csp), None, None, None, None).await;
        assert!(fault.to_string().contains("CSP"), "{fault}");
        csp.wait().await;

        let stop = CancellationToken::new();
        let settings = chatos::Config::new("127.0.0.1:0".parse().unwrap());
        let chatos = chatos::start(settings, Clock::system(), stop.clone()).await.unwrap();
        stop.cancel();
        let fault = ended_unasked(None, Some(&chatos), None, None, None).await;
        assert!(fault.to_string().contains("ChatOs"), "{fault}");
        chatos.wait().await;

        let (stop, dir) = (CancellationToken::new(), tempfile::tempdir().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let settings = skynet::Config::new(dir.path().to_owned());
        let doors = vec![(listener, Door::default())];
        let skynet = skynet::start_on(doors, settings, Clock::system(), stop.clone()).await.unwrap();
        stop.cancel();
        let fault = ended_unasked(None, None, Some(&skynet), None, None).await;
        assert!(fault.to_string().contains("Skynet"), "{fault}");
        skynet.wait().await;

        let (stop, dir) = (CancellationToken::new(), tempfile::tempdir().unwrap());
        let doors = vec![(TcpListener::bind("127.0.0.1:0").await.unwrap(), Door::default())];
        let settings = dm::Config::new(dir.path().to_owned());
        let dm = dm::start_on(doors, settings, Clock::system(), stop.clone()).await.unwrap();
        stop.cancel();
        let fault = ended_unasked(None, None, None, Some(&dm), None).await;
        assert!(fault.to_string().contains("DM"), "{fault}");
        dm.wait().await;
    }
}
