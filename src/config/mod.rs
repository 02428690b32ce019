//! The configuration: read once, checked whole, handed down as finished values.
//!
//! TOML, then environment variables (`HELIOSTAT__LIMITS__IDLE_TIMEOUT`), then flags; the later one wins. Every complaint names
//! the line, the variable or the flag it is about. Durations and sizes carry units (`"90 s"`, `"32 MiB"`). Zero never means
//! unlimited: `"unlimited"` does, and a limit of zero is refused like any other value out of range. Relative paths are
//! relative to the working directory.
//!
//! A file is read when one is named, by `--config` or `HELIOSTAT_CONFIG`; none is looked for, so that a server does not become
//! another one by being started in another directory. Without a file, [`Config::development`] is a complete development box:
//! mediator, chat server and certificates. A file starts from the same values except that no chat server runs unless it says
//! so. The environment and flags lie over either.
//!
//! # To add a key
//!
//! Write it into the `settings!` below, in its section: its meaning as a comment (that is the text of
//! `docs/configuration.md` too), name, type, default, kind ([`kinds`]) and `Reload` or `Restart`. Reading, checking, its
//! environment variable, `--set`, `config show`, the reference and the comparison at a reload follow from that line. A section
//! is one more struct in the macro and one line in `sections` of the struct it belongs to. What can be wrong only together with
//! other keys is one more row in `RULES`. Then `cargo run -- config doc > docs/configuration.md`; a test compares.

mod cluster;
pub mod kinds;
mod pages;
mod reload;
pub mod settings;
mod sources;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use self::kinds::{
    Bytes, Confidential, Fault, File, Given, Kind, List, Number, OneOf, Or, Parsed, Shown, Size, Switch, Time, Times,
    unlimited,
};
use self::settings::{settings, words};
use crate::chat::dm;
use crate::chat::skynet::{self, Platform, Release};
use crate::net::acme;
use crate::net::proxies::{Proxies, SaidBy};
use crate::net::rate::{Per, Rate};
use crate::net::tls::CertFiles;
use crate::upstream::directory::{Directory, DirectoryConfig, Target};
use crate::upstream::framer::Framing;
use crate::wire::d2m::{CONTAINER_MAX, DeviceGroupId};

pub use self::cluster::ClusterConfig;
pub use self::kinds::Secret;
pub use self::pages::reference;
pub use self::reload::{Changed, Changes, NeedsRestart};
pub use self::sources::{ConfigError, Effective, Flag, Mistake, Origin, PREFIX, Sources};

const CONTAINER: u64 = CONTAINER_MAX as u64;
const KIB: u64 = 1_024;
const MIB: u64 = 1_024 * KIB;
const GIB: u64 = 1_024 * MIB;
const TIB: u64 = 1_024 * GIB;
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);
const YEAR: Duration = Duration::from_secs(365 * 86_400);
/// What takes an address.
const ADDRESS: Parsed = Parsed("an address", "127.0.0.1:8443");
/// How often something may happen that somebody asks for.
const HANDSHAKES: Times = Times(1..=1_000_000);
/// The same at the DM server.
const DM_RATE: Or<Times> = Or(Some("off"), Times(1..=1_000_000));
/// More connections than any machine has.
const CONNECTIONS: Number = Number(1..=100_000_000);

words! {
    /// What an acknowledgement promises.
    pub enum Durability {
        /// it is on disk: synced before it is acknowledged
        Fsync = "fsync",
        /// nothing: everything is lost when the process ends; for tests
        Memory = "memory",
    }
}

words! {
    /// Which header says where a request comes from.
    pub enum ForwardedHeader {
        /// a list of addresses
        XForwardedFor = "x-forwarded-for",
        /// as RFC 7239 has it
        Forwarded = "forwarded",
    }
}

words! {
    /// How Tox groups tell where a peer is.
    pub enum NodeFormat {
        /// 40 bytes, IPv4 alone, as the protocol's document has it
        Seed = "40",
        /// 51 bytes, as the programs of April 2014
        April2014 = "51",
        /// 56 bytes, as those before
        Winter2013 = "56",
        /// as whoever asks does
        Auto = "auto",
    }
}

settings! {
    /// Everything that can be configured.
    pub struct Config {
        keys {
            /// Where everything is kept that has to be kept.
            data_dir: PathBuf = "heliostat-data".into(), File, Restart;
            /// What an acknowledgement promises.
            durability: Durability = Durability::Fsync, OneOf, Restart;
            /// Where groups are kept: `"sqlite"`, a file in the data directory; or the URL of a PostgreSQL database, which several
            /// nodes can share (section `cluster`).
            store: Option<Secret> = None, Or(Some("sqlite"), Postgres), Restart;
            /// The chat servers behind the mediator, by the server group in a device's URL: `exact.NAME`, else `template`,
            /// whose addresses contain `{serverGroup}`, else `default`. Each has `addresses`, a list of `"host:port"` that
            /// are tried in this order, and `framing`, `"csp"` (the default), `"chatos"`, `"skynet"`, `"toxgroup"`, or `"raw"` for
            /// anything else. When not set, `chatos`, `skynet`, `dm` and `toxgroup` lead to the embedded servers of these names,
            /// `toxthin` to where the latter's thin users are, and all others to the embedded CSP chat server, as far as they are
            /// enabled.
            server_groups: Option<ServerGroups> = None, Or(None, ServerGroupsTable), Reload;
        }
        sections {
            listen: ListenConfig,
            cluster: ClusterConfig,
            admission: AdmissionConfig,
            admin: AdminConfig,
            chat: ChatConfig,
            limits: LimitsConfig,
            shedding: SheddingConfig,
            drain: DrainConfig,
            log: LogConfig,
        }
    }

    /// The public door: WebSocket only.
    pub struct ListenConfig {
        keys {
            /// Where to listen.
            address: SocketAddr = local(8443), ADDRESS, Restart;
            /// WebSocket without TLS: behind a proxy that does TLS, and in tests.
            plain: bool = false, Switch, Restart;
            /// The server's certificate chain, PEM. What the file holds may change while the server runs: a usable pair is
            /// presented within seconds. Without certificate, key and `acme`, development ones are made.
            cert: Option<PathBuf> = None, Or(None, File), Restart;
            /// The private key of that certificate, PEM.
            key: Option<PathBuf> = None, Or(None, File), Restart;
            /// Addresses and networks of your own proxies. What they say about where a connection comes from is believed,
            /// and is what limits and logs go by. Nobody else's word is taken.
            trusted_proxies: BTreeSet<IpNet> = BTreeSet::new(), List(Network), Restart;
            /// Which header of a request trusted proxies write. They hand on whatever else a client sends, so only this one
            /// is read, from its end.
            forwarded_header: ForwardedHeader = ForwardedHeader::XForwardedFor, OneOf, Restart;
            /// Whether trusted proxies begin each connection with the PROXY protocol, version 1 or 2, before TLS. Nobody else
            /// can connect then, and no header is read.
            proxy_protocol: bool = false, Switch, Restart;
        }
        sections {
            acme: AcmeConfig,
        }
    }

    /// Certificates from an authority such as Let's Encrypt, renewed without a restart. The authority connects to port 443 of
    /// each domain, which has to lead to `listen.address`. To set `domains` is to agree to the authority's terms of service.
    pub struct AcmeConfig {
        keys {
            /// The domains that the certificate is for.
            domains: BTreeSet<String> = BTreeSet::new(), List(Domain), Restart;
            /// Where the authority reaches you: e-mail addresses.
            contact: BTreeSet<String> = BTreeSet::new(), List(Contact), Restart;
            /// The directory that keeps account and certificate; without it each start would order a certificate, and
            /// authorities give out few.
            cache: Option<PathBuf> = None, Or(None, File), Restart;
            /// Whether to try things out: with Let's Encrypt's staging authority, whose certificates nobody trusts.
            staging: bool = false, Switch, Restart;
            /// The directory URL of another authority than Let's Encrypt.
            directory: Option<String> = None, Or(None, HttpsUrl), Restart;
            /// Who vouches for that authority's own server, PEM. When not set, the system's roots do.
            ca: Option<PathBuf> = None, Or(None, File), Restart;
        }
    }

    /// Who may come in by the public door.
    pub struct AdmissionConfig {
        keys {
            /// Connections at once; one more is answered with 503. Sockets that are no connection of a device yet count, too: with 64
            /// more than this, the next is closed at once.
            max_connections: Option<usize> = None, unlimited(CONNECTIONS), Reload;
            /// Connections at once from one address; one more is answered with 429. Behind a proxy, all devices come from
            /// the proxy's address, unless it is among `listen.trusted_proxies`. With 16 sockets more than this, the next is closed
            /// at once, before TLS.
            max_connections_per_address: Option<usize> = None, unlimited(CONNECTIONS), Reload;
            /// Connections at once of one device group, also of those that are about to be replaced by a new one of the same
            /// device; one more is answered with 429. For a server that strangers can reach: 30.
            max_connections_per_group: Option<usize> = None, unlimited(CONNECTIONS), Reload;
            /// Handshakes from one address; one more is answered with 429. As many may come at once. All of an IPv6 /64 count
            /// as one address, here and for `max_connections_per_address`. An address may open twice as many sockets; one more is
            /// closed at once, before TLS. For a server that strangers can reach: "120/min".
            handshakes_per_address: Option<Rate> = None, unlimited(HANDSHAKES), Reload;
            /// Handshakes of one device group; one more is answered with 429. For a server that strangers can reach: "60/min".
            handshakes_per_group: Option<Rate> = None, unlimited(HANDSHAKES), Reload;
            /// Device groups that are not known here yet, from all addresses together; one more is answered with 503. Only those count
            /// whose key a device proved. Who is
            /// known comes in. To let nobody new in, name those that are served in `groups`. For a server that strangers can
            /// reach: as many as may register, such as "100/h".
            new_groups: Option<Rate> = None, unlimited(HANDSHAKES), Reload;
            /// The only device groups that are served, by their ids; all others are answered with 403.
            groups: Option<BTreeSet<DeviceGroupId>> = None, Or(Some("all"), List(GroupId)), Reload;
        }
    }

    /// The operator's door: dashboard, commands, metrics and health over plain HTTP. Where it leaves this machine, it needs a
    /// token, and something before it that does TLS.
    pub struct AdminConfig {
        keys {
            /// Where to listen.
            listen: SocketAddr = local(9090), ADDRESS, Restart;
            /// Asked for from everybody but supervisors (`/livez`, `/readyz`), as `Authorization: Bearer`, or by a browser as the
            /// password. Without it this machine alone is let in.
            token: Option<Secret> = None, Or(None, Confidential(16)), Restart;
            /// Whether an operator may record what one group's devices and the mediator say (`heliostat admin capture`). That is
            /// ciphertext, but who spoke to whom, when and how much is plain: see `docs/captures.md`.
            capture: bool = false, Switch, Restart;
        }
    }

    /// The chat servers in this process.
    pub struct ChatConfig {
        keys {}
        sections {
            csp: CspConfig,
            chatos: ChatOsConfig,
            skynet: SkynetConfig,
            dm: DmConfig,
            toxgroup: ToxGroupConfig,
        }
    }

    /// The embedded CSP chat server.
    pub struct CspConfig {
        keys {
            /// Whether it runs.
            enabled: bool = false, Switch, Restart;
            /// Where it listens.
            listen: SocketAddr = local(5222), ADDRESS, Restart;
            /// Whether devices are told that the account's device cookie changed. Desktop clients end the connection then.
            device_cookie_indication: bool = true, Switch, Restart;
            /// Addresses behind which many clients stand, so that none is shut out for what others do to log in: the
            /// mediator's above all. When not set, this machine's own.
            exempt: Option<BTreeSet<IpAddr>> = None, Or(None, List(Parsed("an IP address", "10.0.0.2"))), Restart;
        }
    }

    /// The ChatOs server: nicknames, one public room, private messages and private connections. It asks nobody for a password.
    pub struct ChatOsConfig {
        keys {
            /// Whether it runs.
            enabled: bool = false, Switch, Restart;
            /// Where it listens.
            listen: SocketAddr = local(7777), ADDRESS, Restart;
            /// Its certificate chain, PEM, for clients that do TLS. What the file holds may change while the server runs. Without
            /// certificate and key it is not encrypted, as the protocol has it.
            cert: Option<PathBuf> = None, Or(None, File), Restart;
            /// The private key of that certificate, PEM.
            key: Option<PathBuf> = None, Or(None, File), Restart;
            /// With a certificate, where it listens without TLS for the mediator: a loopback address. Port 0 takes one that is
            /// free.
            plain_listen: SocketAddr = local(0), ADDRESS, Restart;
            /// TCP connections at once, two for each private one; one more is told an error and closed.
            max_connections: usize = 1_024, Number(1..=1_000_000), Restart;
            /// Longest message in bytes. With 512, clients that count bytes where others count characters can be served, too.
            max_message_octets: usize = 2_048, Number(512..=2_048), Restart;
            /// Nicknames that are not wanted: each entry nowhere in a nickname, upper or lower case; one that begins with `=`,
            /// not as the whole of it.
            unwanted_nicknames: BTreeSet<String> = BTreeSet::new(), List(Parsed("a part of a nickname", "rude")), Restart;
            /// Whether a client that breaks the rules is told an error before it is disconnected. Clients that do not
            /// understand it need only the end.
            error_packets: bool = true, Switch, Restart;
            /// How long a client may say nothing, and a private connection carry nothing.
            inactivity_timeout: Duration = 5 * MINUTE, Time(SECOND..=DAY), Restart;
            /// Time from the connection to its first whole packet.
            login_timeout: Duration = 30 * SECOND, Time(SECOND..=5 * MINUTE), Restart;
            /// Time from the first byte of a packet to its last.
            packet_timeout: Duration = 30 * SECOND, Time(SECOND..=5 * MINUTE), Restart;
            /// How long both sides of a private connection may take to come.
            join_timeout: Duration = MINUTE, Time(SECOND..=5 * MINUTE), Restart;
            /// How long the socket of a client may take nothing that waits for it. Whoever lets 256 KiB or 1024 packets wait is
            /// disconnected at once.
            write_timeout: Duration = 30 * SECOND, Time(SECOND..=5 * MINUTE), Restart;
            /// Whether a private connection is only accepted from the addresses of the two it is for. Not behind a mediator.
            join_same_ip: bool = false, Switch, Restart;
            /// Packets one client may send; one that sends more is read more slowly. For a server that strangers can reach: "20/s".
            packets_per_client: Option<Rate> = None, Or(Some("off"), Times(1..=1_000_000)), Restart;
        }
    }

    /// The Skynet server: accounts, channels, and everything kept until each device has fetched it.
    pub struct SkynetConfig {
        keys {
            /// Whether it runs.
            enabled: bool = false, Switch, Restart;
            /// Where it listens, with TLS.
            listen: SocketAddr = local(skynet::PORT), ADDRESS, Restart;
            /// Where it listens without TLS, for the mediator and for a proxy that ends TLS: a loopback address. Port 0 takes one
            /// that is free.
            plain_listen: SocketAddr = local(0), ADDRESS, Restart;
            /// Where people confirm their addresses with a browser; encrypted like `listen`.
            web_listen: SocketAddr = local(8444), ADDRESS, Restart;
            /// Where people find those pages, if not there: what links in mails begin with.
            public_url: Option<String> = None, Or(None, HttpsUrl), Restart;
            /// The mail server that takes what is to be sent: `smtps://user:password@host`, or `smtp://` with `?tls=required`;
            /// without TLS only on this machine. When not set, mails are written into the log, links and all.
            smtp: Option<Secret> = None, Or(None, Smtp), Restart;
            /// The sender of mails.
            mail_from: Option<String> = None, Or(None, Contact), Restart;
            /// A directory where mails are put instead, each as a file: for development.
            mail_dir: Option<PathBuf> = None, Or(None, File), Restart;
            /// Its certificate chain, PEM, where it is not the one that is presented to devices: Skynet clients know their
            /// server by one certificate and look at no name. What the file holds may change while the server runs.
            cert: Option<PathBuf> = None, Or(None, File), Restart;
            /// The private key of that certificate, PEM.
            key: Option<PathBuf> = None, Or(None, File), Restart;
            /// Where the database is, for PostgreSQL. When not set, it is a file in the data directory, which holds the key to what
            /// is sealed in either.
            database: Option<Secret> = None, Or(None, Postgres), Restart;
            /// Who is served: by the name a client gives itself, its `latest` release (a number, and a `name` for people), the
            /// number below which it is `recommended` to take the latest one, and the number below which it is `required`. With
            /// `forward_profiles`, a search is followed by the public profiles of those it found; not for the Android client,
            /// which cannot stand messages outside of channels.
            platforms: Platforms = Platforms::default(), PlatformsTable, Restart;
            /// Connections at once; further ones are dropped without a word.
            max_connections: usize = 10_000, Number(1..=1_000_000), Restart;
            /// Connections at once from one address that is not in `exempt`; further ones are dropped without a word. All of an
            /// IPv6 /64 count as one address.
            max_connections_per_address: usize = 256, Number(1..=1_000_000), Restart;
            /// A session that was away for longer has to log in again.
            session_max_age: Duration = 183 * DAY, Time(DAY..=100 * YEAR), Restart;
            /// How long daystream messages are kept.
            daystream_max_age: Duration = DAY, Time(MINUTE..=YEAR), Restart;
            /// Whether a sealed message has to say with which keys. The only known client does not.
            strict_dependencies: bool = false, Switch, Restart;
            /// Registering, logging in and coming back from one address, or on one connection from an address in `exempt`. Who is
            /// faster is heard later.
            attempts_per_address: Rate = skynet::Rates::default().attempts, Times(1..=1_000_000), Restart;
            /// Logging in under one name. Who is faster is heard later.
            logins_per_name: Rate = skynet::Rates::default().logins, Times(1..=1_000_000), Restart;
            /// Mails to one address. What is asked for beyond that is answered as if it were sent.
            mails_per_address: Rate = skynet::Rates::default().mails, Times(1..=1_000_000), Restart;
            /// Registering from addresses in `exempt`, all together: each time somebody gets a mail. Who comes later is heard later.
            registrations_from_exempt: Rate = skynet::Rates::default().shared_registrations, Times(1..=1_000_000), Restart;
            /// Packets of one account that is logged in, from all its devices. Who is faster is heard later; so it is with the
            /// next three.
            packets_per_account: Rate = skynet::Rates::default().packets, Times(1..=1_000_000), Restart;
            /// Of these, those that are much work: searching, asking for messages, saying what one is doing, and changes of
            /// which many hear (keys, groups, block lists, new channels).
            costly_per_account: Rate = skynet::Rates::default().costly, Times(1..=1_000_000), Restart;
            /// Of these, those that show the password: another one, and deleting the account.
            guesses_per_account: Rate = skynet::Rates::default().guesses, Times(1..=1_000_000), Restart;
            /// What one account may have kept of what it says, in bytes.
            kept_per_account: Rate = skynet::Rates::default().kept, Bytes(MIB..=TIB), Restart;
            /// Changes of its address that one account may ask for: each time somebody gets a mail. Further ones are refused.
            address_changes_per_account: Rate = skynet::Rates::default().wishes, Times(1..=1_000_000), Restart;
            /// Addresses behind which many clients stand, so that none is held up for what others do: the mediator's above all.
            /// When not set, this machine's own.
            exempt: Option<BTreeSet<IpAddr>> = None, Or(None, List(Parsed("an IP address", "10.0.0.2"))), Restart;
            /// Whether the proxies in `listen.trusted_proxies` begin each connection to `listen` and `web_listen` with the PROXY
            /// protocol, version 1 or 2, before TLS. Nobody else is served there then. `plain_listen` is not meant: the mediator
            /// comes there.
            proxy_protocol: bool = false, Switch, Restart;
        }
        sections {
            files: SkynetFilesConfig,
            push: SkynetPushConfig,
        }
    }

    /// Files beside the messages of the Skynet server, brought and fetched at `chat.skynet.web_listen`.
    pub struct SkynetFilesConfig {
        keys {
            /// Where they are kept. When not set, in the data directory.
            dir: Option<PathBuf> = None, Or(None, File), Restart;
            /// Longest file.
            max_size: u64 = skynet::FileLimits::default().length_max, Size(KIB..=TIB), Restart;
            /// What the files may take together that one account uploaded within `counted_for` and somebody can still have.
            max_size_per_account: u64 = skynet::FileLimits::default().per_account_max, Size(KIB..=TIB), Restart;
            /// Files that are brought and fetched at once, by everybody. One account may have eight of them.
            max_transfers: usize = skynet::FileLimits::default().transfers_max, Number(1..=100_000), Restart;
            /// How long a file is kept that no message names.
            unnamed_max_age: Duration = skynet::FileLimits::default().unnamed_age_max, Time(MINUTE..=YEAR), Restart;
            /// How long a file that a message names counts towards `max_size_per_account`. It is there for as long as the message.
            counted_for: Duration = skynet::FileLimits::default().counted_for, Time(DAY..=100 * YEAR), Restart;
        }
    }

    /// How the Skynet server wakes devices that do not acknowledge a message.
    pub struct SkynetPushConfig {
        keys {
            /// How long a chat message may go unacknowledged by an account until its devices are woken.
            after: Option<Duration> = Some(MINUTE), Or(Some("never"), Time(Duration::ZERO..=30 * MINUTE)), Restart;
            /// Whether a device is woken again that was and did not come.
            every_message: bool = false, Switch, Restart;
            /// The key file of a service account for Firebase Cloud Messaging, JSON. Needs a program that was built with the feature
            /// `fcm`. When not set, the log says who would have been woken.
            fcm_account: Option<PathBuf> = None, Or(None, File), Restart;
            /// Whether a device that the push service does not know any more has to log in again.
            forget_unreachable: bool = true, Switch, Restart;
        }
    }

    /// The DM server: end-to-end encrypted direct messages over Socket.IO.
    pub struct DmConfig {
        keys {
            /// Whether it runs.
            enabled: bool = false, Switch, Restart;
            /// Where it listens, with TLS.
            listen: SocketAddr = local(dm::PORT), ADDRESS, Restart;
            /// Where it listens without TLS, for the mediator and for a proxy that ends TLS: a loopback address. Port 0 takes one
            /// that is free.
            plain_listen: SocketAddr = local(0), ADDRESS, Restart;
            /// Its certificate chain, PEM, where it is not the one that is presented to devices. What the file holds may change
            /// while the server runs.
            cert: Option<PathBuf> = None, Or(None, File), Restart;
            /// The private key of that certificate, PEM.
            key: Option<PathBuf> = None, Or(None, File), Restart;
            /// Where the database is, for PostgreSQL: one of its own. When not set, it is a file in the data directory.
            database: Option<Secret> = None, Or(None, Postgres), Restart;
            /// Whether two have to be friends to have a DM of their own and to speak in it. Else only a block is in the way.
            pair_requires_friendship: bool = true, Switch, Restart;
            /// Whether `users_in_call` is an object that says where each of them is, as the first web client of this protocol
            /// wants it, and not a list of names.
            calls_as_object: bool = false, Switch, Restart;
            /// Connections at once; further ones are dropped without a word.
            max_connections: usize = 10_000, Number(1..=1_000_000), Restart;
            /// Connections at once from one address that is not in `exempt`; further ones are dropped without a word. All of an
            /// IPv6 /64 count as one address.
            max_connections_per_address: usize = 256, Number(1..=1_000_000), Restart;
            /// Addresses behind which many clients stand, so that none is held up for what others do: the mediator's above all.
            /// When not set, this machine's own.
            exempt: Option<BTreeSet<IpAddr>> = None, Or(None, List(Parsed("an IP address", "10.0.0.2"))), Restart;
            /// Whether the proxies in `listen.trusted_proxies` begin each connection to `listen` with the PROXY protocol, version 1 or
            /// 2, before TLS. Nobody else is served there then. `plain_listen` is not meant: the mediator comes there.
            proxy_protocol: bool = false, Switch, Restart;
            /// How long after logging in a client is sent the keys of new DMs: it needs a moment to fetch what it has.
            x3dh_after: Duration = dm::Settings::default().x3dh_after, Time(Duration::ZERO..=MINUTE), Restart;
            /// How long a client that was sent keys has to stay for them to count as received. Until then they are sent again at the
            /// next login.
            x3dh_kept: Duration = dm::Settings::default().x3dh_kept, Time(SECOND / 10..=DAY), Restart;
            /// How long a connection may stay on which nobody logs in.
            login_timeout: Duration = dm::Settings::default().stranger_max, Time(SECOND..=DAY), Restart;
        }
        sections {
            rates: DmRatesConfig,
        }
    }

    /// How often something may be done at the DM server. Who is faster is answered `rate_limited`.
    pub struct DmRatesConfig {
        keys {
            /// Requests of a connection; four periods' may come at once. Who is three times as fast for ten periods is
            /// disconnected.
            requests_per_connection: Option<Rate> = dm::Rates::default().events, DM_RATE, Restart;
            /// Messages, changes of messages and reactions of a user; three periods' may come at once.
            messages_per_user: Option<Rate> = dm::Rates::default().writes, DM_RATE, Restart;
            /// Notifications that a user types in a DM. More are left out without a word.
            typing: Option<Rate> = dm::Rates::default().typing, DM_RATE, Restart;
            /// Changes of a user's profile that everybody is told of; five periods' may come at once.
            profile_changes_per_user: Option<Rate> = dm::Rates::default().profiles, DM_RATE, Restart;
            /// DMs that a user makes.
            new_dms_per_user: Option<Rate> = dm::Rates::default().dms, DM_RATE, Restart;
            /// Requests for friendship of a user.
            friend_requests_per_user: Option<Rate> = dm::Rates::default().requests, DM_RATE, Restart;
            /// Accounts made from one address, or on one connection from an address in `chat.dm.exempt`.
            registrations_per_address: Option<Rate> = dm::Rates::default().registrations, DM_RATE, Restart;
            /// Accounts made from addresses in `chat.dm.exempt`, all together.
            registrations_from_exempt: Option<Rate> = dm::Rates::default().shared_registrations, DM_RATE, Restart;
            /// Names looked up from one address, likewise.
            lookups_per_address: Option<Rate> = dm::Rates::default().lookups, DM_RATE, Restart;
            /// Lists of all users sent to one connection.
            user_lists_per_connection: Option<Rate> = dm::Rates::default().lists, DM_RATE, Restart;
            /// New connections from one address that is not in `chat.dm.exempt`.
            connections_per_address: Option<Rate> = dm::Rates::default().connections, DM_RATE, Restart;
        }
    }

    /// The Tox group hub: a member of each of its groups that never leaves, for peers that send datagrams, for clients on TCP and
    /// WebSocket, and for thin users. It reads everything that is said: see `docs/toxgroup.md`.
    pub struct ToxGroupConfig {
        keys {
            /// Whether it runs.
            enabled: bool = false, Switch, Restart;
            /// Where it listens, for datagrams (UDP) and for frames (TCP).
            listen: SocketAddr = local(33_445), ADDRESS, Restart;
            /// Where it listens for WebSockets of the subprotocol `toxgroup.1`.
            web_listen: SocketAddr = local(33_446), ADDRESS, Restart;
            /// Where thin users connect, JSON in frames: the mediator's devices above all. Not encrypted, so a loopback address.
            thin_listen: SocketAddr = local(33_447), ADDRESS, Restart;
            /// The certificate chain for WebSockets, PEM. What the file holds may change while the server runs. Packets are boxed
            /// already; TLS hides who talks with whom in a group.
            cert: Option<PathBuf> = None, Or(None, File), Restart;
            /// The private key of that certificate, PEM.
            key: Option<PathBuf> = None, Or(None, File), Restart;
            /// The name or address by which those who are invited reach this machine. Datagrams need an address. When not set,
            /// where it listens.
            public_host: Option<String> = None, Or(None, Parsed("a name or an address", "192.0.2.7")), Restart;
            /// In which of its three layouts others are told where peers are.
            node_format: NodeFormat = NodeFormat::Seed, OneOf, Restart;
            /// Whether programs of 2014 are members of classic groups: in these, their layout, their number for actions, a ping
            /// every 30 s, and what somebody said goes back to them, too.
            toxcore2014: bool = false, Switch, Restart;
            /// Connections at once, of all kinds; further ones are dropped without a word.
            max_connections: usize = 4_096, Number(1..=1_000_000), Restart;
            /// Connections of one address on which nobody proved a key or said who they are yet.
            max_unproved_per_address: usize = 64, Number(1..=1_000_000), Restart;
            /// Groups.
            max_groups: usize = 64, Number(1..=100_000), Restart;
            /// Members of one group.
            max_members: usize = 512, Number(2..=65_535), Restart;
            /// Thin users.
            max_users: u64 = 10_000, Number(1..=100_000_000), Restart;
            /// Texts of one member; five may come at once. What is more is neither shown nor passed on.
            texts_per_member: Rate = Rate { amount: 1, per: Per::Second }, Times(1..=10_000), Restart;
            /// Packets of one neighbour; 200 may come at once. What is more is not even opened.
            packets_per_neighbour: Rate = Rate { amount: 60, per: Per::Second }, Times(1..=1_000_000), Restart;
            /// Strangers of one address that want in; five may come at once.
            joins_per_address: Rate = Rate { amount: 5, per: Per::Second }, Times(1..=1_000_000), Restart;
            /// Addresses behind which many clients stand, so that `max_unproved_per_address` does not hold for them: the mediator's
            /// above all. When not set, this machine's own.
            exempt: Option<BTreeSet<IpAddr>> = None, Or(None, List(Parsed("an IP address", "10.0.0.2"))), Restart;
        }
    }

    /// How much of everything a device group may take.
    pub struct LimitsConfig {
        keys {
            /// Devices per group. More than 15 do not fit one `DevicesInfo`.
            max_device_slots: u32 = 10, Number(1..=15), Reload;
            /// Reflected messages that wait for one device.
            max_queue_messages: u64 = 100_000, Number(1..=100_000_000), Reload;
            /// Bytes that wait for one device; at least one container.
            max_queue_bytes: u64 = 256 * MIB, Size(CONTAINER..=TIB), Reload;
            /// Longest transaction.
            transaction_ttl: Duration = 10 * MINUTE, Time(SECOND..=DAY), Reload;
            /// Messages staged in one transaction.
            max_staged_messages: u64 = 4_096, Number(1..=1_000_000), Reload;
            /// Bytes staged in one transaction; at least one container.
            max_staged_bytes: u64 = 32 * MIB, Size(CONTAINER..=GIB), Reload;
            /// How long the slot of a disconnected device is kept that asked for a volatile one.
            volatile_slot_ttl: Duration = 10 * MINUTE, Time(SECOND..=YEAR), Reload;
            /// How long the slot of a disconnected device is kept that asked for a persistent one.
            persistent_slot_ttl: Option<Duration> = None, unlimited(Time(DAY..=100 * YEAR)), Reload;
            /// Time from the WebSocket's opening to a valid ClientHello.
            handshake_timeout: Duration = 20 * SECOND, Time(SECOND..=5 * MINUTE), Reload;
            /// How long a device may say nothing at all. Real ones are silent for up to 30 s.
            idle_timeout: Duration = 2 * MINUTE, Time(45 * SECOND..=DAY), Reload;
            /// How often a device is pinged, to keep what lies between open. No answer is required.
            ping_interval: Duration = 30 * SECOND, Time(5 * SECOND..=DAY), Reload;
            /// Messages a device may send, those for the chat server and acknowledgements included; as many may come at once.
            /// A device that sends more is read more slowly, nothing else. For a server that strangers can reach: "500/s".
            frames_per_device: Option<Rate> = None, unlimited(Times(10..=1_000_000)), Reload;
            /// Bytes a device may send; at least one container. A device that sends more is read more slowly. For a server
            /// that strangers can reach: "2 MiB/s".
            bytes_per_device: Option<Rate> = None, unlimited(Bytes(CONTAINER..=GIB)), Reload;
        }
    }

    /// When there is too much to do. Then device groups that are not known here yet are answered with 503 until there is
    /// less: it begins at these bounds and ends at three quarters of them. Whoever is known notices nothing.
    pub struct SheddingConfig {
        keys {
            /// How long a commit may wait and take.
            writer_latency: Option<Duration> = Some(5 * SECOND), unlimited(Time(SECOND / 100..=5 * MINUTE)), Reload;
            /// Resident memory of the process. A heap does not give back what it had, so this ends, too, with three quarters of
            /// the connections there were. On a machine for this alone: three quarters of what it has.
            memory: Option<u64> = None, unlimited(Size(16 * MIB..=TIB)), Reload;
            /// Open connections. For a server that strangers can reach: nine tenths of `admission.max_connections`.
            connections: Option<usize> = None, unlimited(CONNECTIONS), Reload;
        }
    }

    /// How a server is emptied before it ends, by SIGTERM or SIGINT: it lets nobody in any more (503 with Retry-After, and
    /// `/readyz` is 503), and ends connections in batches with 1001, so that not all devices reconnect at once. A second
    /// signal ends it on the spot, with exit status 3; nothing that was acknowledged is lost by that.
    pub struct DrainConfig {
        keys {
            /// In which time everybody is told to go. At least 8 are told at once, so fewer devices take less time.
            grace: Duration = 10 * SECOND, Time(Duration::ZERO..=DAY / 24), Reload;
            /// How often a batch is told. As many are in each as the grace demands.
            interval: Duration = SECOND / 10, Time(SECOND / 100..=MINUTE), Reload;
        }
    }

    /// What is written to standard error.
    pub struct LogConfig {
        keys {
            /// What is logged: a level (`error`, `warn`, `info`, `debug`, `trace`), or levels for parts, as in
            /// `"info,heliostat::upstream=debug"`. The environment variable `HELIOSTAT_LOG` is stronger and stays.
            filter: LogFilter = LogFilter::default(), Parsed("a log filter", "info,heliostat::upstream=debug"), Reload;
        }
    }
}

/// Values that are right alone and cannot be together.
#[derive(Debug)]
struct Rule<S> {
    /// The keys it is about; those that were set are pointed at.
    keys: &'static [&'static str],
    broken: fn(&S) -> bool,
    reason: &'static str,
}

const RULES: &[Rule<Config>] = &[
    Rule {
        keys: &["listen.plain", "listen.cert", "listen.key"],
        broken: |config| config.listen.plain && (config.listen.cert.is_some() || config.listen.key.is_some()),
        reason: "`plain` means no TLS, so there can be neither `cert` nor `key`",
    },
    Rule {
        keys: &["listen.cert", "listen.key"],
        broken: |config| config.listen.cert.is_some() != config.listen.key.is_some(),
        reason: "`cert` and `key` need each other",
    },
    Rule {
        keys: &["store", "durability"],
        broken: |config| config.store.is_some() && config.durability == Durability::Memory,
        reason: "a database that is shared keeps what is acknowledged: its durability is its own",
    },
    Rule {
        keys: &["cluster.cert", "cluster.key", "cluster.authority"],
        broken: |config| {
            let ClusterConfig { cert, key, authority, .. } = &config.cluster;
            cert.is_some() != key.is_some() || cert.is_some() != authority.is_some()
        },
        reason: "`cert`, `key` and `authority` need each other",
    },
    Rule {
        keys: &["store", "cluster.cert"],
        broken: |config| config.store.is_none() && config.cluster.cert.is_some(),
        reason: "nodes need a `store` that they share: the URL of a PostgreSQL database",
    },
    Rule {
        keys: &["chat.chatos.cert", "chat.chatos.key"],
        broken: |config| config.chat.chatos.cert.is_some() != config.chat.chatos.key.is_some(),
        reason: "`cert` and `key` need each other",
    },
    Rule {
        keys: &["chat.skynet.cert", "chat.skynet.key"],
        broken: |config| config.chat.skynet.cert.is_some() != config.chat.skynet.key.is_some(),
        reason: "`cert` and `key` need each other",
    },
    Rule {
        keys: &["chat.skynet.listen", "chat.skynet.web_listen", "listen.plain"],
        broken: |config| {
            let SkynetConfig { enabled, listen, web_listen, cert, .. } = &config.chat.skynet;
            let local = listen.ip().is_loopback() && web_listen.ip().is_loopback();
            *enabled && config.listen.plain && cert.is_none() && !local
        },
        reason: "with `listen.plain` there is no certificate but `chat.skynet.cert`; without one, clients can only be on this \
                 machine, or behind a proxy on it",
    },
    Rule {
        keys: &["chat.skynet.smtp", "chat.skynet.mail_dir"],
        broken: |config| config.chat.skynet.smtp.is_some() && config.chat.skynet.mail_dir.is_some(),
        reason: "mails are sent, or put into a directory",
    },
    Rule {
        keys: &["chat.skynet.smtp", "chat.skynet.mail_dir", "chat.skynet.mail_from"],
        broken: |config| {
            let SkynetConfig { smtp, mail_dir, mail_from, .. } = &config.chat.skynet;
            mail_from.is_some() != (smtp.is_some() || mail_dir.is_some())
        },
        reason: "mails need a sender (`mail_from`), and a sender mails (`smtp` or `mail_dir`)",
    },
    Rule {
        keys: &["chat.skynet.push.fcm_account"],
        broken: |config| config.chat.skynet.push.fcm_account.is_some() && !cfg!(feature = "fcm"),
        reason: "this program was built without the feature `fcm`",
    },
    Rule {
        keys: &["chat.skynet.files.max_size", "chat.skynet.files.max_size_per_account"],
        broken: |config| config.chat.skynet.files.max_size > config.chat.skynet.files.max_size_per_account,
        reason: "the longest file has to fit what one account may have",
    },
    Rule {
        keys: &["chat.chatos.plain_listen"],
        broken: |config| !config.chat.chatos.plain_listen.ip().is_loopback(),
        reason: "what is not encrypted does not leave this machine: a loopback address",
    },
    Rule {
        keys: &["chat.dm.cert", "chat.dm.key"],
        broken: |config| config.chat.dm.cert.is_some() != config.chat.dm.key.is_some(),
        reason: "`cert` and `key` need each other",
    },
    Rule {
        keys: &["chat.dm.listen", "listen.plain"],
        broken: |config| {
            let DmConfig { enabled, listen, cert, .. } = &config.chat.dm;
            *enabled && config.listen.plain && cert.is_none() && !listen.ip().is_loopback()
        },
        reason: "with `listen.plain` there is no certificate but `chat.dm.cert`; without one, clients can only be on this \
                 machine, or behind a proxy on it",
    },
    Rule {
        keys: &["chat.dm.plain_listen"],
        broken: |config| !config.chat.dm.plain_listen.ip().is_loopback(),
        reason: "what is not encrypted does not leave this machine: a loopback address",
    },
    Rule {
        keys: &["chat.skynet.plain_listen"],
        broken: |config| !config.chat.skynet.plain_listen.ip().is_loopback(),
        reason: "what is not encrypted does not leave this machine: a loopback address",
    },
    Rule {
        keys: &["chat.toxgroup.cert", "chat.toxgroup.key"],
        broken: |config| config.chat.toxgroup.cert.is_some() != config.chat.toxgroup.key.is_some(),
        reason: "`cert` and `key` need each other",
    },
    Rule {
        keys: &["chat.toxgroup.thin_listen"],
        broken: |config| !config.chat.toxgroup.thin_listen.ip().is_loopback(),
        reason: "what is not encrypted does not leave this machine: a loopback address",
    },
    Rule {
        keys: &["listen.acme.domains", "listen.plain", "listen.cert", "listen.key"],
        broken: |config| {
            let ListenConfig { plain, cert, key, acme, .. } = &config.listen;
            !acme.domains.is_empty() && (*plain || cert.is_some() || key.is_some())
        },
        reason: "`acme` orders the certificate, so there can be neither `plain` nor `cert` nor `key`",
    },
    Rule {
        keys: &["listen.acme.domains"],
        broken: |config| !config.listen.acme.domains.is_empty() && config.listen.acme.cache.is_none(),
        reason: "`domains` need a `cache`: authorities give out few certificates, and none at each start",
    },
    Rule {
        keys: &[
            "listen.acme.contact",
            "listen.acme.cache",
            "listen.acme.staging",
            "listen.acme.directory",
            "listen.acme.ca",
        ],
        broken: |config| config.listen.acme != AcmeConfig::default() && config.listen.acme.domains.is_empty(),
        reason: "nothing is ordered without `domains`",
    },
    Rule {
        keys: &["listen.acme.staging", "listen.acme.directory"],
        broken: |config| config.listen.acme.staging && config.listen.acme.directory.is_some(),
        reason: "`staging` is Let's Encrypt's; `directory` names another authority",
    },
    Rule {
        keys: &["listen.proxy_protocol", "chat.skynet.proxy_protocol", "chat.dm.proxy_protocol"],
        broken: |config| {
            (config.listen.proxy_protocol || config.chat.skynet.proxy_protocol || config.chat.dm.proxy_protocol)
                && config.listen.trusted_proxies.is_empty()
        },
        reason: "`proxy_protocol` without `trusted_proxies` would let nobody in",
    },
    Rule {
        keys: &["listen.proxy_protocol", "listen.forwarded_header"],
        broken: |config| {
            config.listen.proxy_protocol && config.listen.forwarded_header != ForwardedHeader::XForwardedFor
        },
        reason: "with `proxy_protocol` no header is read",
    },
    Rule {
        keys: &["admin.listen"],
        broken: |config| config.admin.token.is_none() && !config.admin.listen.ip().is_loopback(),
        reason: "without `admin.token` the admin door asks nobody who they are, so it has to be on a loopback address",
    },
    Rule {
        keys: &["limits.ping_interval", "limits.idle_timeout"],
        broken: |config| config.limits.ping_interval >= config.limits.idle_timeout,
        reason: "`ping_interval` has to be shorter than `idle_timeout`",
    },
    Rule {
        keys: &["admission.max_connections_per_group", "limits.max_device_slots"],
        broken: |config| {
            let slots = usize::try_from(config.limits.max_device_slots).unwrap_or(usize::MAX);
            config.admission.max_connections_per_group.is_some_and(|max| max < slots)
        },
        reason: "`max_connections_per_group` has to be at least `max_device_slots`, or devices are shut out",
    },
    Rule {
        keys: &["shedding.connections", "admission.max_connections"],
        broken: |config| match (config.shedding.connections, config.admission.max_connections) {
            (Some(shed), Some(max)) => shed >= max,
            _ => false,
        },
        reason: "`shedding.connections` has to be less than `max_connections`, or it is never reached",
    },
];

/// The server group that leads to the embedded ChatOs server when no others are configured.
pub const CHATOS_GROUP: &str = "chatos";

/// The server group that leads to the embedded Skynet server when no others are configured.
pub const SKYNET_GROUP: &str = "skynet";

/// The server group that leads to the embedded DM server when no others are configured.
pub const DM_GROUP: &str = "dm";

/// The server group that leads to the embedded Tox group hub when no others are configured, for devices that box packets.
pub const TOXGROUP_GROUP: &str = "toxgroup";

/// The same for devices that are thin users.
pub const TOXTHIN_GROUP: &str = "toxthin";

/// Where the mediator reaches the chat servers in this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rooms {
    /// The CSP chat server.
    pub csp: Option<SocketAddr>,
    /// The ChatOs server, without TLS.
    pub chatos: Option<SocketAddr>,
    /// The Skynet server, without TLS.
    pub skynet: Option<SocketAddr>,
    /// The DM server, without TLS.
    pub dm: Option<SocketAddr>,
    /// The Tox group hub, for packets.
    pub toxgroup: Option<SocketAddr>,
    /// The same for thin users.
    pub toxthin: Option<SocketAddr>,
}

/// How the public door is secured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Security {
    /// Not at all.
    Plain,
    /// By a certificate of the operator's.
    Files(CertFiles),
    /// By a certificate that is ordered.
    Acme(acme::Settings),
    /// By a certificate made at start.
    Development,
}

impl Config {
    /// What runs when nothing is configured.
    #[must_use]
    pub fn development() -> Self {
        let mut config = Self::default();
        config.chat.csp.enabled = true;
        config
    }

    /// Checks the text of a file called `name`, without environment and flags.
    ///
    /// # Errors
    /// [`ConfigError`] names the lines and what is wrong.
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigError> {
        Sources::text(name, text).read().map(|effective| effective.config)
    }

    /// The directory to use: the configured one; else the groups `chatos`, `skynet`, `dm`, `toxgroup` and `toxthin` go to the embedded
    /// servers of these names and everything else to the embedded CSP chat server, as far as there are any, at the addresses where they really listen.
    #[must_use]
    pub fn directory(&self, rooms: Rooms) -> Directory {
        let embedded = || {
            let target = |address: SocketAddr, framing| Target { addresses: vec![address.to_string()], framing };
            let named = [
                (CHATOS_GROUP, rooms.chatos, Framing::ChatOs),
                (SKYNET_GROUP, rooms.skynet, Framing::Skynet),
                // HTTP and what becomes of it: a browser's business, not the mediator's.
                (DM_GROUP, rooms.dm, Framing::Raw),
                (TOXGROUP_GROUP, rooms.toxgroup, Framing::ToxGroup),
                (TOXTHIN_GROUP, rooms.toxthin, Framing::ToxGroup),
            ];
            let exact = named.map(|(name, room, framing)| Some((name.to_owned(), target(room?, framing))));
            let default = rooms.csp.map(|address| target(address, Framing::Csp));
            let config = DirectoryConfig { exact: exact.into_iter().flatten().collect(), default, template: None };
            Directory::new(config).unwrap_or_default()
        };
        self.server_groups.as_ref().map_or_else(embedded, |groups| groups.directory.clone())
    }
}

impl ListenConfig {
    /// How this door is secured.
    #[must_use]
    pub fn security(&self) -> Security {
        match (self.plain, &self.cert, &self.key) {
            (true, ..) => Security::Plain,
            (false, Some(cert), Some(key)) => Security::Files(CertFiles { cert: cert.clone(), key: key.clone() }),
            (false, ..) => self.acme.settings().map_or(Security::Development, Security::Acme),
        }
    }

    /// Whose word is taken for where a connection comes from.
    #[must_use]
    pub fn proxies(&self) -> Proxies {
        let said_by = match (self.proxy_protocol, self.forwarded_header) {
            (true, _) => SaidBy::ProxyProtocol,
            (false, ForwardedHeader::XForwardedFor) => SaidBy::XForwardedFor,
            (false, ForwardedHeader::Forwarded) => SaidBy::Forwarded,
        };
        Proxies::new(self.trusted_proxies.iter().copied().collect(), said_by)
    }
}

impl ChatOsConfig {
    /// The files of its certificate, if it is to be encrypted.
    #[must_use]
    pub fn cert_files(&self) -> Option<CertFiles> {
        Some(CertFiles { cert: self.cert.clone()?, key: self.key.clone()? })
    }
}

impl SkynetConfig {
    /// The files of its own certificate, if it has one.
    #[must_use]
    pub fn cert_files(&self) -> Option<CertFiles> {
        Some(CertFiles { cert: self.cert.clone()?, key: self.key.clone()? })
    }
}

impl DmConfig {
    /// The files of its own certificate, if it has one.
    #[must_use]
    pub fn cert_files(&self) -> Option<CertFiles> {
        Some(CertFiles { cert: self.cert.clone()?, key: self.key.clone()? })
    }
}

impl ToxGroupConfig {
    /// The files of its certificate, if its WebSockets are to be encrypted.
    #[must_use]
    pub fn cert_files(&self) -> Option<CertFiles> {
        Some(CertFiles { cert: self.cert.clone()?, key: self.key.clone()? })
    }
}

impl DmRatesConfig {
    /// As the room takes them.
    #[must_use]
    pub fn rates(&self) -> dm::Rates {
        dm::Rates {
            events: self.requests_per_connection,
            writes: self.messages_per_user,
            typing: self.typing,
            profiles: self.profile_changes_per_user,
            dms: self.new_dms_per_user,
            requests: self.friend_requests_per_user,
            registrations: self.registrations_per_address,
            shared_registrations: self.registrations_from_exempt,
            lookups: self.lookups_per_address,
            lists: self.user_lists_per_connection,
            connections: self.connections_per_address,
        }
    }
}

impl AcmeConfig {
    /// What is ordered, if anything.
    fn settings(&self) -> Option<acme::Settings> {
        let Self { domains, contact, cache, staging, directory, ca } = self;
        let cache = cache.clone().filter(|_| !domains.is_empty())?;
        Some(acme::Settings {
            directory: directory.clone().unwrap_or_else(|| acme::lets_encrypt(*staging).to_owned()),
            ca: ca.clone(),
            contact: contact.iter().map(|address| format!("mailto:{address}")).collect(),
            domains: domains.iter().cloned().collect(),
            cache,
        })
    }
}

/// A release of a kind of Skynet client, and which older ones are served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Versions {
    /// The newest release, for programs to compare.
    pub latest: i32,
    /// The newest release, for people.
    pub name: String,
    /// Older ones are told that there is a newer one.
    pub recommended: i32,
    /// Older ones are not served.
    pub required: i32,
    /// Whether searches are followed by public profiles.
    #[serde(default)]
    pub forward_profiles: bool,
}

/// The kinds of Skynet clients that are served, by the names they give themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Platforms(pub BTreeMap<String, Versions>);

impl Default for Platforms {
    fn default() -> Self {
        let known = skynet::Settings::default().platforms.into_iter().map(|platform| {
            let Platform { application, latest, recommended_from, required_from, forward_profiles } = platform;
            let (Release { code, name }, recommended, required) = (latest, recommended_from, required_from);
            (application, Versions { latest: code, name, recommended, required, forward_profiles })
        });
        Self(known.collect())
    }
}

impl Platforms {
    /// As the room takes them.
    #[must_use]
    pub fn known(&self) -> Vec<Platform> {
        let platform = |(application, versions): (&String, &Versions)| Platform {
            application: application.clone(),
            latest: Release { code: versions.latest, name: versions.name.clone() },
            recommended_from: versions.recommended,
            required_from: versions.required,
            forward_profiles: versions.forward_profiles,
        };
        self.0.iter().map(platform).collect()
    }
}

#[derive(Debug)]
struct PlatformsTable;

impl Kind<Platforms> for PlatformsTable {
    fn name(&self) -> String {
        "table".into()
    }

    fn read(&self, given: Given<'_>) -> Result<Platforms, Vec<Fault>> {
        /// What a packet can say of a release, in bytes.
        const NAME_MAX: usize = u8::MAX as usize;
        let platforms: Platforms = kinds::table(given)?;
        let long = |name: &&String| name.len() > NAME_MAX;
        let Platforms(known) = &platforms;
        match known.keys().chain(known.values().map(|versions| &versions.name)).find(long) {
            Some(name) => Err(vec![Fault { at: None, reason: format!("{name:?} has more than {NAME_MAX} bytes") }]),
            None => Ok(platforms),
        }
    }

    fn show(&self, platforms: &Platforms) -> Shown {
        toml::Value::try_from(platforms).map_or(Shown::NotSet, |value| Shown::Value(value.to_string()))
    }
}

/// The URL of a PostgreSQL database. Shown as long as there is no password in it.
#[derive(Debug)]
struct Postgres;

impl Kind<Secret> for Postgres {
    fn name(&self) -> String {
        "URL, or `\"file:PATH\"`".into()
    }

    fn read(&self, given: Given<'_>) -> Result<Secret, Vec<Fault>> {
        let url = Confidential(1).read(given)?;
        let is_scheme = ["postgres://", "postgresql://"].iter().any(|scheme| url.expose().starts_with(scheme));
        if is_scheme && url.expose().parse::<sqlx::postgres::PgConnectOptions>().is_ok() {
            return Ok(url);
        }
        // Without the value, which may hold a password.
        let reason = "expected the URL of a PostgreSQL database, such as \"postgres://user:password@host/name\"";
        Err(vec![Fault { at: None, reason: reason.to_owned() }])
    }

    fn show(&self, url: &Secret) -> Shown {
        match Confidential(1).show(url) {
            Shown::Hidden if !names_a_password(url.expose()) => Shown::text(url.expose()),
            shown => shown,
        }
    }

    fn is_secret(&self) -> bool {
        true
    }
}

/// The URL of a mail server. Shown as long as there is no password in it.
#[derive(Debug)]
struct Smtp;

impl Kind<Secret> for Smtp {
    fn name(&self) -> String {
        "URL, or `\"file:PATH\"`".into()
    }

    fn read(&self, given: Given<'_>) -> Result<Secret, Vec<Fault>> {
        let url = Confidential(1).read(given)?;
        let fine = url.expose().parse::<http::Uri>().is_ok_and(|uri| {
            let required = uri.query().is_some_and(|query| query.split('&').any(|it| it == "tls=required"));
            match uri.scheme_str() {
                Some("smtps") => true,
                Some("smtp") => required || uri.host().is_some_and(is_this_machine),
                _ => false,
            }
        });
        // Without the value, which may hold a password.
        let reason = "expected the URL of a mail server, such as \"smtps://user:password@mail.example.org\", with TLS unless it \
                      is on this machine";
        if fine { Ok(url) } else { Err(vec![Fault { at: None, reason: reason.to_owned() }]) }
    }

    fn show(&self, url: &Secret) -> Shown {
        Postgres.show(url)
    }

    fn is_secret(&self) -> bool {
        true
    }
}

fn is_this_machine(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Whether there is a password in a URL: behind the user's name, or among the parameters.
fn names_a_password(url: &str) -> bool {
    let (address, parameters) = url.split_once('?').unwrap_or((url, ""));
    let behind_scheme = address.split_once("://").map_or(address, |(_, rest)| rest);
    behind_scheme.rsplit_once('@').is_some_and(|(user, _)| user.contains(':')) || parameters.contains("password")
}

/// The configured chat servers: a directory that was checked, and how it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerGroups {
    directory: Directory,
    written: DirectoryConfig,
}

#[derive(Debug)]
struct ServerGroupsTable;

impl Kind<ServerGroups> for ServerGroupsTable {
    fn name(&self) -> String {
        "table".into()
    }

    fn read(&self, given: Given<'_>) -> Result<ServerGroups, Vec<Fault>> {
        let written: DirectoryConfig = kinds::table(given)?;
        match Directory::new(written.clone()) {
            Ok(directory) => Ok(ServerGroups { directory, written }),
            Err(first) => Err(entry_faults(given, written, &first.to_string())),
        }
    }

    fn show(&self, groups: &ServerGroups) -> Shown {
        toml::Value::try_from(&groups.written).map_or(Shown::NotSet, |value| Shown::Value(value.to_string()))
    }

    fn sketch(&self, groups: &ServerGroups) -> String {
        let DirectoryConfig { exact, template, default } = &groups.written;
        let others = [("a template", template.is_some()), ("a default", default.is_some())];
        let others = others.iter().filter(|(_, there)| *there).map(|(name, _)| format!(", {name}"));
        others.fold(format!("{} exact", exact.len()), |out, other| out + &other)
    }

    fn difference(&self, from: &ServerGroups, to: &ServerGroups) -> [String; 2] {
        let (before, after) = (&from.written, &to.written);
        let names: BTreeSet<&String> = before.exact.keys().chain(after.exact.keys()).collect();
        let mut kinds = BTreeMap::<_, Vec<&str>>::new();
        let mut compare = |name, before: Option<&Target>, after: Option<&Target>| match (before, after) {
            (None, Some(_)) => kinds.entry("new").or_default().push(name),
            (Some(_), None) => kinds.entry("gone").or_default().push(name),
            (before, after) if before != after => kinds.entry("changed").or_default().push(name),
            _ => {}
        };
        for name in names {
            compare(name, before.exact.get(name), after.exact.get(name));
        }
        compare("the template", before.template.as_ref(), after.template.as_ref());
        compare("the default", before.default.as_ref(), after.default.as_ref());
        let told: Vec<_> = kinds.into_iter().map(|(kind, names)| format!("{kind}: {}", some_of(&names))).collect();
        [self.sketch(from), format!("{} ({})", self.sketch(to), told.join("; "))]
    }
}

/// A log line's worth of names.
fn some_of(names: &[&str]) -> String {
    const SHOWN: usize = 8;
    let shown = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

/// Every entry that cannot work, each with its place.
fn entry_faults(given: Given<'_>, written: DirectoryConfig, otherwise: &str) -> Vec<Fault> {
    let place = |path: &[&str]| match given {
        Given::File(value) => {
            let mut at = (value.span(), value.get_ref());
            for name in path {
                let (name, inner) = at.1.as_table()?.get_key_value(*name)?;
                at = (name.span(), inner.get_ref());
            }
            Some(at.0)
        }
        Given::Text(_) => None,
    };
    let DirectoryConfig { exact, template, default } = written;
    let alone = |path: &[&str], entry: DirectoryConfig| {
        Directory::new(entry).err().map(|bad| Fault { at: place(path), reason: bad.to_string() })
    };
    let mut faults: Vec<Fault> = Vec::new();
    for (name, target) in exact {
        let exact = HashMap::from([(name.clone(), target)]);
        faults.extend(alone(&["exact", &name], DirectoryConfig { exact, ..DirectoryConfig::default() }));
    }
    faults.extend(alone(&["template"], DirectoryConfig { template, ..DirectoryConfig::default() }));
    faults.extend(alone(&["default"], DirectoryConfig { default, ..DirectoryConfig::default() }));
    if faults.is_empty() {
        faults.push(Fault { at: None, reason: otherwise.to_owned() });
    }
    faults
}

/// Which log lines are written, in the words of `tracing_subscriber`'s `EnvFilter`; checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(String);

impl Default for LogFilter {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl FromStr for LogFilter {
    type Err = tracing_subscriber::filter::ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        EnvFilter::builder().parse(text)?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl LogFilter {
    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A device group's id in hex.
#[derive(Debug)]
struct GroupId;

impl Kind<DeviceGroupId> for GroupId {
    fn name(&self) -> String {
        "device group ids of 64 hex digits".into()
    }

    fn read(&self, given: Given<'_>) -> Result<DeviceGroupId, Vec<Fault>> {
        const EXPECTED: &str = "a device group id of 64 hex digits";
        let mut id = [0; DeviceGroupId::LEN];
        hex::decode_to_slice(given.text(EXPECTED)?, &mut id).map_err(|_| given.is_no(EXPECTED))?;
        Ok(DeviceGroupId::new(id))
    }

    fn show(&self, id: &DeviceGroupId) -> Shown {
        Shown::text(&hex::encode(id.as_bytes()))
    }
}

/// A network, or a single address.
#[derive(Debug)]
struct Network;

impl Kind<IpNet> for Network {
    fn name(&self) -> String {
        "networks and addresses".into()
    }

    fn read(&self, given: Given<'_>) -> Result<IpNet, Vec<Fault>> {
        const EXPECTED: &str = "a network or an address, such as \"10.0.0.0/8\"";
        let text = given.text(EXPECTED)?;
        let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        Ok(network.map_err(|_| given.is_no(EXPECTED))?.trunc())
    }

    fn show(&self, network: &IpNet) -> Shown {
        Shown::text(&network.to_string())
    }
}

/// A domain that a certificate can be ordered for.
#[derive(Debug)]
struct Domain;

impl Kind<String> for Domain {
    fn name(&self) -> String {
        "domain names".into()
    }

    fn read(&self, given: Given<'_>) -> Result<String, Vec<Fault>> {
        let text = given.text("a domain name, such as \"chat.example.org\"")?;
        acme::domain(text).map_err(|reason| vec![Fault { at: None, reason: format!("{text:?}: {reason}") }])
    }

    fn show(&self, domain: &String) -> Shown {
        Shown::text(domain)
    }
}

/// An e-mail address, as far as one can tell.
#[derive(Debug)]
struct Contact;

impl Kind<String> for Contact {
    fn name(&self) -> String {
        "e-mail addresses".into()
    }

    fn read(&self, given: Given<'_>) -> Result<String, Vec<Fault>> {
        const EXPECTED: &str = "an e-mail address, such as \"admin@example.org\"";
        let text = given.text(EXPECTED)?;
        let there = |part: &str| !part.is_empty() && !part.contains(|c: char| c.is_whitespace() || ":,".contains(c));
        let fine = text.split_once('@').is_some_and(|(user, host)| there(user) && there(host) && !host.contains('@'));
        if fine { Ok(text.to_owned()) } else { Err(given.is_no(EXPECTED)) }
    }

    fn show(&self, address: &String) -> Shown {
        Shown::text(address)
    }
}

/// Where an authority's directory is.
#[derive(Debug)]
struct HttpsUrl;

impl Kind<String> for HttpsUrl {
    fn name(&self) -> String {
        "https URL".into()
    }

    fn read(&self, given: Given<'_>) -> Result<String, Vec<Fault>> {
        const EXPECTED: &str = "an https URL, such as \"https://acme.example.org/directory\"";
        let text = given.text(EXPECTED)?;
        let fine = text.parse::<http::Uri>().is_ok_and(|uri| uri.scheme_str() == Some("https") && uri.host().is_some());
        if fine { Ok(text.to_owned()) } else { Err(given.is_no(EXPECTED)) }
    }

    fn show(&self, url: &String) -> Shown {
        Shown::text(url)
    }
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use toml::de::DeValue;

    use super::*;
    use crate::wire::d2m::ServerGroup;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse("test.toml", text)
    }

    #[test]
    fn an_empty_file_is_the_development_box_without_its_chat_server() {
        let mut config = parse("").unwrap();
        assert_eq!(config.listen.address.to_string(), "127.0.0.1:8443");
        assert_eq!(config.listen.security(), Security::Development);
        assert!(!config.chat.csp.enabled);
        config.chat.csp.enabled = true;
        assert_eq!(config, Config::development());
    }

    /// A value of each kind, none of them the default.
    pub(super) const FULL: &str = r#"
        data_dir = "/var/lib/heliostat"
        durability = "memory"
        [listen]
        address = "[::]:443"
        cert = "cert.pem"
        key = "key.pem"
        [admission]
        max_connections = 10000
        max_connections_per_address = 100
        groups = ["2fd17ba2f9c2c31e52f0acbba8ff741ac89b3b58a8c208a25ad4a625ea138723"]
        [admin]
        listen = "127.0.0.1:0"
        [server_groups.exact.a0]
        addresses = ["10.0.0.1:5222"]
        framing = "raw"
        [server_groups.template]
        addresses = ["{serverGroup}.chat.example.org:5222"]
        [server_groups.default]
        addresses = ["chat.example.org:5222"]
        [chat.csp]
        enabled = true
        listen = "127.0.0.1:0"
        device_cookie_indication = false
        exempt = ["10.0.0.2", "2001:db8::2"]
        [limits]
        max_device_slots = 15
        max_queue_messages = 1
        max_queue_bytes = "64 KiB"
        transaction_ttl = "1 s"
        max_staged_messages = 7
        max_staged_bytes = "1 MiB"
        volatile_slot_ttl = "5 min"
        persistent_slot_ttl = "90 days"
        handshake_timeout = "5 s"
        idle_timeout = "45 s"
        ping_interval = "20 s"
    "#;

    #[test]
    fn every_kind_of_value_is_understood() {
        let config = parse(FULL).unwrap();
        let files = CertFiles { cert: "cert.pem".into(), key: "key.pem".into() };
        assert_eq!(config.listen.security(), Security::Files(files));
        assert_eq!(config.durability, Durability::Memory);
        assert_eq!(config.admission.max_connections, Some(10_000));
        assert_eq!(config.admission.groups.map(|groups| groups.len()), Some(1));
        assert!(!config.chat.csp.device_cookie_indication);
        assert_eq!(config.limits.max_device_slots, 15);
        assert_eq!(config.limits.max_queue_bytes, 65_536);
        assert_eq!(config.limits.persistent_slot_ttl, Some(90 * DAY));
        assert_eq!(config.limits.idle_timeout, Duration::from_secs(45));
    }

    #[test]
    fn certificates_are_ordered_when_there_are_domains() {
        let text = "[listen.acme]\ndomains = ['Chat.Example.Org', 'b.example.org']\ncache = 'c'\ncontact = ['a@b']\n";
        let Security::Acme(settings) = parse(text).unwrap().listen.security() else { panic!("not by ACME") };
        assert_eq!(settings.domains, ["b.example.org", "chat.example.org"]);
        assert_eq!(settings.contact, ["mailto:a@b"]);
        assert_eq!(settings.directory, "https://acme-v02.api.letsencrypt.org/directory");
        let Security::Acme(settings) = parse(&format!("{text}staging = true")).unwrap().listen.security() else {
            panic!("not by ACME")
        };
        assert_eq!(settings.directory, "https://acme-staging-v02.api.letsencrypt.org/directory");
    }

    #[test]
    fn nobody_is_believed_unless_it_is_said_who_and_how() {
        let proxies = |text: &str| {
            let proxies = parse(text).unwrap().listen.proxies();
            (proxies.trusted.to_string(), proxies.said_by)
        };
        assert_eq!(proxies(""), (String::new(), SaidBy::XForwardedFor));
        let trusted = "listen.trusted_proxies = ['10.1.2.3/8', '::1']\n";
        let networks = || "10.0.0.0/8, ::1/128".to_owned();
        assert_eq!(proxies(trusted), (networks(), SaidBy::XForwardedFor));
        let forwarded = "listen.forwarded_header = 'forwarded'";
        assert_eq!(proxies(&format!("{trusted}{forwarded}")), (networks(), SaidBy::Forwarded));
        assert_eq!(proxies(&format!("{trusted}listen.proxy_protocol = true")), (networks(), SaidBy::ProxyProtocol));
    }

    #[test]
    fn what_cannot_be_ordered_or_believed_is_said() {
        let acme = "[listen.acme]\ncache = 'c'\ndomains = ";
        let cases = [
            (format!("{acme}['*.example.org']"), "a wildcard cannot be shown to be ours by TLS-ALPN-01"),
            (format!("{acme}['192.0.2.1']"), "not a domain name"),
            (format!("{acme}['a b']"), "not a domain name"),
            (format!("{acme}['a.b']\ncontact = ['me']"), "expected an e-mail address"),
            (format!("{acme}['a.b']\ndirectory = 'http://a.b/'"), "expected an https URL"),
            (format!("{acme}['a.b']\ndirectory = 'https://a.b/'\nstaging = true"), "names another authority"),
            ("[listen.acme]\ndomains = ['a.b']".to_owned(), "`domains` need a `cache`"),
            ("[listen.acme]\ncache = 'c'".to_owned(), "nothing is ordered without `domains`"),
            (format!("listen.plain = true\n{acme}['a.b']"), "neither `plain` nor `cert` nor `key`"),
            ("listen.trusted_proxies = ['10.0.0.0/33']".to_owned(), "expected a network or an address"),
            ("listen.proxy_protocol = true".to_owned(), "would let nobody in"),
            (
                "[listen]\ntrusted_proxies = ['::1']\nproxy_protocol = true\nforwarded_header = 'forwarded'".to_owned(),
                "no header is read",
            ),
        ];
        for (text, expected) in cases {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?} gave: {error}");
        }
    }

    #[test]
    fn the_file_for_compose_is_understood() {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
        let text = std::fs::read_to_string(deploy.join("compose.toml")).unwrap();
        // Where docker-compose.yml mounts it.
        let text = text.replace("file:/etc/", &format!("file:{}/", deploy.display()));
        let config = parse(&text).unwrap();
        assert_eq!(config.data_dir, Path::new("/data"));
        assert!(matches!(config.listen.security(), Security::Files(_)));
        assert!(config.chat.csp.enabled);
    }

    #[test]
    fn the_file_for_systemd_is_understood_and_leaves_nothing_that_strangers_can_do_unlimited() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/heliostat.toml");
        let effective = Sources::gather(Some(&file), [], Vec::new()).unwrap().read().unwrap();
        let shown = effective.show();
        let unlimited: Vec<&str> = shown.lines().filter(|line| line.contains("\"unlimited\"")).collect();
        assert_eq!(unlimited, ["persistent_slot_ttl = \"unlimited\""]);
    }

    #[test]
    fn every_rule_is_about_keys_that_exist() {
        let effective = Sources::default().read().unwrap().show();
        for rule in RULES {
            for key in rule.keys {
                let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
                let begins = if section.is_empty() { String::new() } else { format!("[{section}]\n") };
                let inside = effective.split_once(&begins).unwrap().1.split("\n[").next().unwrap();
                assert!(
                    inside.lines().any(|line| line.trim_start_matches("# ").starts_with(&format!("{name} "))),
                    "{key}"
                );
            }
        }
    }

    #[test]
    fn the_embedded_chat_server_takes_everything_unless_the_file_says_otherwise() {
        let group = ServerGroup::new("a0").unwrap();
        let embedded = Rooms { csp: Some("127.0.0.1:4711".parse().unwrap()), ..Rooms::default() };
        let config = Config::development();
        assert_eq!(config.directory(embedded).find(&group).unwrap().addresses, ["127.0.0.1:4711"]);
        assert_eq!(config.directory(Rooms::default()).find(&group), None);
        let config = parse("server_groups.exact.b1.addresses = [\"h:1\"]").unwrap();
        assert_eq!(config.directory(embedded).find(&group), None, "the file's word is the last");
    }

    #[test]
    fn the_embedded_dm_server_has_a_server_group_of_its_own_and_its_bytes_come_as_they_are() {
        let (group, address) = (ServerGroup::new(DM_GROUP).unwrap(), "127.0.0.1:5000".parse().unwrap());
        let directory = Config::development().directory(Rooms { dm: Some(address), ..Rooms::default() });
        let expected = Target { addresses: vec![address.to_string()], framing: Framing::Raw };
        assert_eq!(directory.find(&group), Some(expected));
        assert_eq!(Config::default().chat.dm.rates.rates(), dm::Rates::default());
        let text = "chat.dm.rates.messages_per_user = 'off'\nchat.dm.rates.typing = '5/s'";
        let rates = parse(text).unwrap().chat.dm.rates.rates();
        assert_eq!((rates.writes, rates.typing.unwrap().amount), (None, 5));
        let with = |more: &str| parse(&format!("chat.dm.enabled = true\n{more}"));
        assert!(with("chat.dm.listen = '0.0.0.0:5000'").is_ok());
        assert!(with("chat.dm.listen = '0.0.0.0:5000'\nlisten.plain = true").is_err());
        assert!(with("chat.dm.plain_listen = '0.0.0.0:1'").is_err() && with("chat.dm.cert = 'c'").is_err());
    }

    #[test]
    fn the_embedded_skynet_server_has_a_server_group_of_its_own() {
        let skynet = ServerGroup::new(SKYNET_GROUP).unwrap();
        let address = "127.0.0.1:4713".parse().unwrap();
        let directory = Config::development().directory(Rooms { skynet: Some(address), ..Rooms::default() });
        let expected = Target { addresses: vec![address.to_string()], framing: Framing::Skynet };
        assert_eq!(directory.find(&skynet), Some(expected));
    }

    #[test]
    fn the_embedded_tox_group_hub_has_two_server_groups_of_its_own() {
        let [packets, thin] = ["127.0.0.1:4714", "127.0.0.1:4715"].map(|address| address.parse().unwrap());
        let rooms = Rooms { toxgroup: Some(packets), toxthin: Some(thin), ..Rooms::default() };
        let directory = Config::development().directory(rooms);
        for (name, address) in [(TOXGROUP_GROUP, packets), (TOXTHIN_GROUP, thin)] {
            let expected = Target { addresses: vec![address.to_string()], framing: Framing::ToxGroup };
            assert_eq!(directory.find(&ServerGroup::new(name).unwrap()), Some(expected));
        }
        assert!(parse("chat.toxgroup.thin_listen = '0.0.0.0:1'").is_err());
        assert!(parse("chat.toxgroup.cert = 'c'").is_err());
        assert_eq!(parse("chat.toxgroup.node_format = 'auto'").unwrap().chat.toxgroup.node_format, NodeFormat::Auto);
    }

    #[test]
    fn what_is_not_encrypted_stays_on_this_machine() {
        let skynet = |more: &str| parse(&format!("chat.skynet.enabled = true\n{more}"));
        assert!(skynet("chat.skynet.listen = '0.0.0.0:32761'").is_ok());
        assert!(skynet("chat.skynet.listen = '0.0.0.0:32761'\nlisten.plain = true").is_err());
        assert!(skynet("listen.plain = true").is_ok());
        assert!(skynet("chat.skynet.web_listen = '0.0.0.0:443'\nlisten.plain = true").is_err());
        assert!(skynet("chat.skynet.plain_listen = '0.0.0.0:1'").is_err());
        assert!(skynet("chat.skynet.cert = 'c'").is_err(), "without its key");
    }

    #[test]
    fn the_database_is_shown_as_long_as_there_is_no_password_in_it() {
        let shown = |url: &str| {
            let value = DeValue::parse(url).unwrap();
            Postgres.read(Given::File(&value)).map(|url| Postgres.show(&url))
        };
        for url in ["'postgres://a@h/skynet'", "'postgres://postgres@localhost/name?host=/run/postgresql'"] {
            assert_eq!(shown(url), Ok(Shown::Value(url.replace('\'', "\""))));
        }
        for url in ["'postgres://a:hunter2@h/skynet'", "'postgresql://h/skynet?user=a&password=hunter2'"] {
            assert_eq!(shown(url), Ok(Shown::Hidden), "{url}");
        }
        for wrong in ["'mysql://a:hunter2@h/n'", "'hunter2'", "['hunter2']", "'postgres://a:hunter2@h:port/n'"] {
            assert!(!format!("{:?}", shown(wrong).unwrap_err()).contains("hunter2"), "{wrong}");
        }
    }

    #[test]
    fn mails_are_sent_with_tls_and_their_password_is_shown_to_nobody() {
        let smtp = |url: &str| parse(&format!("chat.skynet.mail_from = 'a@b.example'\nchat.skynet.smtp = '{url}'"));
        for fine in
            ["smtps://a:p@h", "smtp://h:587?tls=required", "smtp://127.0.0.1:25", "smtp://[::1]", "smtp://localhost"]
        {
            assert!(smtp(fine).is_ok(), "{fine}");
        }
        for wrong in ["smtp://h", "smtp://h?tls=opportunistic", "http://h", "hunter2", "smtp://a:hunter2@h"] {
            assert!(!smtp(wrong).unwrap_err().sentences().concat().contains("hunter2"), "{wrong}");
        }
        let shown = Smtp.show(smtp("smtps://a:hunter2@h").unwrap().chat.skynet.smtp.as_ref().unwrap());
        assert_eq!(shown, Shown::Hidden);
        assert!(parse("chat.skynet.smtp = 'smtps://h'").is_err(), "without a sender");
        assert!(parse("chat.skynet.mail_from = 'a@b.example'").is_err(), "without mails");
    }

    #[test]
    fn platforms_are_the_known_ones_unless_others_are_named() {
        assert_eq!(Config::default().chat.skynet.platforms.known(), skynet::Settings::default().platforms);
        let text = "[chat.skynet.platforms.'desktop/x']\nlatest = 7\nname = '0.7'\nrecommended = 6\nrequired = 5\n\
                    forward_profiles = true\n";
        let known = parse(text).unwrap().chat.skynet.platforms.known();
        let latest = Release { code: 7, name: "0.7".into() };
        let application = "desktop/x".to_owned();
        let (recommended_from, required_from, forward_profiles) = (6, 5, true);
        assert_eq!(known, [Platform { application, latest, recommended_from, required_from, forward_profiles }]);
        assert!(parse(&text.replace("0.7", &"7".repeat(256))).is_err());
    }

    #[test]
    fn the_embedded_chatos_server_has_a_server_group_of_its_own() {
        let [chatos, other] = [CHATOS_GROUP, "a0"].map(|name| ServerGroup::new(name).unwrap());
        let (csp, address) = (Some("127.0.0.1:4711".parse().unwrap()), "127.0.0.1:4712".parse().unwrap());
        let directory = Config::development().directory(Rooms { csp, chatos: Some(address), ..Rooms::default() });
        let expected = Target { addresses: vec![address.to_string()], framing: Framing::ChatOs };
        assert_eq!(directory.find(&chatos), Some(expected));
        assert_eq!(directory.find(&other).unwrap().framing, Framing::Csp);
        let only = Config::development().directory(Rooms { chatos: Some(address), ..Rooms::default() });
        assert_eq!(only.find(&other), None);
        let written = parse("server_groups.exact.c1 = { addresses = ['h:1'], framing = 'chatos' }").unwrap();
        let found = written.directory(Rooms::default()).find(&ServerGroup::new("c1").unwrap()).unwrap();
        assert_eq!(found.framing, Framing::ChatOs);
    }
}
