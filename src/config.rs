//! The configuration: read once, checked whole, handed down as finished values.
//!
//! TOML; every key has a default, every value that can be wrong alone is checked while it is read, so that a complaint comes
//! with its line. Durations and sizes carry units (`"90 s"`, `"32 MiB"`). Zero never means unlimited: a limit of
//! zero is refused like any other value out of range. Relative paths are relative to the working directory.
//!
//! Without any file, [`Config::development`] is a complete development box: mediator, chat server and certificates. A file
//! starts from the same values except that no chat server runs unless it says so.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use miette::{Diagnostic, NamedSource, SourceSpan};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::net::tls::CertFiles;
use crate::upstream::directory::{Directory, DirectoryConfig, Target};
use crate::upstream::framer::Framing;
use crate::wire::d2m::{CONTAINER_MAX, DeviceGroupId};

/// Everything that can be configured.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where everything is kept that has to be kept.
    pub data_dir: PathBuf,
    /// What an acknowledgement promises.
    pub durability: Durability,
    /// The public door.
    #[serde(deserialize_with = "ListenConfig::checked")]
    pub listen: ListenConfig,
    /// Who may come in by the public door.
    pub admission: AdmissionConfig,
    /// The operator's door.
    pub admin: AdminConfig,
    /// The chat servers behind the mediator; `None` when the file does not say, see [`Config::directory`].
    #[serde(deserialize_with = "directory")]
    pub server_groups: Option<Directory>,
    /// The chat servers in this process.
    pub chat: ChatConfig,
    /// How much of everything.
    #[serde(deserialize_with = "LimitsConfig::checked")]
    pub limits: LimitsConfig,
}

/// What an acknowledgement promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// It is on disk: synced before it is acknowledged.
    #[default]
    Fsync,
    /// Nothing: everything is lost when the process ends. For tests.
    Memory,
}

/// The public door: WebSocket only.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenConfig {
    /// Where to listen.
    pub address: SocketAddr,
    /// WebSocket without TLS: behind a proxy that does TLS, and in tests.
    pub plain: bool,
    /// The server's certificate chain, PEM. Without certificate and key, development ones are made.
    pub cert: Option<PathBuf>,
    /// The private key of that certificate, PEM.
    pub key: Option<PathBuf>,
}

/// How the public door is secured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Security {
    /// Not at all.
    Plain,
    /// By a certificate of the operator's.
    Files(CertFiles),
    /// By a certificate made at start.
    Development,
}

/// Who may come in by the public door. What is not set is not limited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdmissionConfig {
    /// Connections at once; one more is answered with 503.
    #[serde(deserialize_with = "some_number")]
    pub max_connections: Option<usize>,
    /// Connections at once from one address; one more is answered with 429.
    #[serde(deserialize_with = "some_number")]
    pub max_connections_per_address: Option<usize>,
    /// Device group ids, 64 hex digits each; all others are answered with 403.
    #[serde(deserialize_with = "some_groups")]
    pub groups: Option<BTreeSet<DeviceGroupId>>,
}

/// The operator's door: plain HTTP on loopback.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// Where to listen.
    #[serde(deserialize_with = "loopback")]
    pub listen: SocketAddr,
}

/// The chat servers in this process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChatConfig {
    /// Chat Server Protocol.
    pub csp: CspConfig,
}

/// The embedded CSP chat server.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CspConfig {
    /// Whether it runs.
    pub enabled: bool,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Whether devices are told that the account's device cookie changed. Desktop clients end the connection then.
    pub device_cookie_indication: bool,
    /// Addresses behind which many clients stand, so that none is shut out for what others do to log in: the mediator's
    /// above all. Without it, this machine's own.
    pub exempt: Option<Vec<IpAddr>>,
}

/// How much of everything a device group may take.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Devices per group. More than 15 do not fit one `DevicesInfo`.
    #[serde(deserialize_with = "number::<_, _, 1, 15>")]
    pub max_device_slots: u32,
    /// Reflected messages that wait for one device.
    #[serde(deserialize_with = "number::<_, _, 1, 100_000_000>")]
    pub max_queue_messages: u64,
    /// Bytes that wait for one device; at least one container.
    #[serde(deserialize_with = "bytes::<_, CONTAINER, TIB>")]
    pub max_queue_bytes: u64,
    /// Longest transaction.
    #[serde(deserialize_with = "seconds::<_, 1, DAY_S>")]
    pub transaction_ttl: Duration,
    /// Messages staged in one transaction.
    #[serde(deserialize_with = "number::<_, _, 1, 1_000_000>")]
    pub max_staged_messages: u64,
    /// Bytes staged in one transaction; at least one container.
    #[serde(deserialize_with = "bytes::<_, CONTAINER, GIB>")]
    pub max_staged_bytes: u64,
    /// How long the slot of a disconnected device is kept that asked for a volatile one.
    #[serde(deserialize_with = "seconds::<_, 1, YEAR_S>")]
    pub volatile_slot_ttl: Duration,
    /// How long the slot of a disconnected device is kept that asked for a persistent one; for ever when not set.
    #[serde(deserialize_with = "some_days")]
    pub persistent_slot_ttl: Option<Duration>,
    /// Time from the WebSocket's opening to a valid ClientHello.
    #[serde(deserialize_with = "seconds::<_, 1, 300>")]
    pub handshake_timeout: Duration,
    /// How long a device may say nothing at all. Real ones are silent for up to 30 s.
    #[serde(deserialize_with = "seconds::<_, 45, DAY_S>")]
    pub idle_timeout: Duration,
    /// How often a device is pinged, to keep what lies between open. No answer is required.
    #[serde(deserialize_with = "seconds::<_, 5, DAY_S>")]
    pub ping_interval: Duration,
}

const CONTAINER: u64 = CONTAINER_MAX as u64;
const MIB: u64 = 1_024 * 1_024;
const GIB: u64 = 1_024 * MIB;
const TIB: u64 = 1_024 * GIB;
const DAY_S: u64 = 86_400;
const YEAR_S: u64 = 365 * DAY_S;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", file.display())]
    Read {
        /// Which file.
        file: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// Something in it is wrong.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Content(#[from] Box<Mistake>),
}

/// Something in a configuration is wrong.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("{}, line {line}: {reason}", text.name())]
pub struct Mistake {
    /// Counted from one.
    pub line: usize,
    /// What is wrong.
    pub reason: String,
    #[source_code]
    text: NamedSource<String>,
    #[label("here")]
    at: SourceSpan,
}

impl Config {
    /// What runs when nothing is configured.
    #[must_use]
    pub fn development() -> Self {
        let mut config = Self::default();
        config.chat.csp.enabled = true;
        config
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the line and what is wrong.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(file).map_err(|source| ConfigError::Read { file: file.to_owned(), source })?;
        Self::parse(&file.display().to_string(), &text)
    }

    /// Checks the text of a file called `name`.
    ///
    /// # Errors
    /// [`ConfigError::Content`] names the line and what is wrong.
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let at = error.span().unwrap_or_default();
            let line = 1 + text.bytes().take(at.start).filter(|&byte| byte == b'\n').count();
            let text = NamedSource::new(name, text.to_owned());
            Box::new(Mistake { line, reason: error.message().to_owned(), text, at: at.into() }).into()
        })
    }

    /// The directory to use: the configured one; else everything goes to the embedded chat server, if there is one, at the
    /// address where it really listens.
    #[must_use]
    pub fn directory(&self, embedded_csp: Option<SocketAddr>) -> Directory {
        let embedded = || {
            let default =
                embedded_csp.map(|address| Target { addresses: vec![address.to_string()], framing: Framing::Csp });
            Directory::new(DirectoryConfig { default, ..DirectoryConfig::default() }).unwrap_or_default()
        };
        self.server_groups.clone().unwrap_or_else(embedded)
    }
}

impl ListenConfig {
    /// How this door is secured.
    #[must_use]
    pub fn security(&self) -> Security {
        match (self.plain, &self.cert, &self.key) {
            (true, ..) => Security::Plain,
            (false, Some(cert), Some(key)) => Security::Files(CertFiles { cert: cert.clone(), key: key.clone() }),
            (false, ..) => Security::Development,
        }
    }

    fn checked<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let listen = Self::deserialize(from)?;
        match (listen.plain, &listen.cert, &listen.key) {
            (true, None, None) | (false, None, None) | (false, Some(_), Some(_)) => Ok(listen),
            (true, ..) => Err(D::Error::custom("`plain` means no TLS, so there can be neither `cert` nor `key`")),
            (false, Some(_), None) => Err(D::Error::custom("`cert` needs its `key`")),
            (false, None, Some(_)) => Err(D::Error::custom("`key` needs its `cert`")),
        }
    }
}

impl LimitsConfig {
    fn checked<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let limits = Self::deserialize(from)?;
        if limits.ping_interval >= limits.idle_timeout {
            return Err(D::Error::custom("`ping_interval` has to be shorter than `idle_timeout`"));
        }
        Ok(limits)
    }
}

fn directory<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Directory>, D::Error> {
    Directory::new(DirectoryConfig::deserialize(from)?).map(Some).map_err(D::Error::custom)
}

fn loopback<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    let address = SocketAddr::deserialize(from)?;
    loopback_only(address).map_err(D::Error::custom)
}

/// The admin door asks nobody who they are, so it opens to this machine only.
///
/// # Errors
/// The reason, when `address` is not a loopback address.
pub fn loopback_only(address: SocketAddr) -> Result<SocketAddr, String> {
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err(format!("the admin listener has to be on a loopback address, {address} is not"))
    }
}

fn number<'de, D, T, const LEAST: u64, const MOST: u64>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<u64, Error: Display>,
{
    let number = within::<_, D::Error>(u64::deserialize(from)?, LEAST, MOST, |number| number.to_string())?;
    T::try_from(number).map_err(D::Error::custom)
}

fn some_number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<usize>, D::Error> {
    number::<_, _, 1, 100_000_000>(from).map(Some)
}

fn some_groups<'de, D: Deserializer<'de>>(from: D) -> Result<Option<BTreeSet<DeviceGroupId>>, D::Error> {
    let read = |text: String| {
        let mut id = [0; DeviceGroupId::LEN];
        hex::decode_to_slice(&text, &mut id).map_err(|_| D::Error::custom("a device group id is 64 hex digits"))?;
        Ok(DeviceGroupId::new(id))
    };
    Vec::<String>::deserialize(from)?.into_iter().map(read).collect::<Result<_, _>>().map(Some)
}

fn bytes<'de, D: Deserializer<'de>, const LEAST: u64, const MOST: u64>(from: D) -> Result<u64, D::Error> {
    within(ByteSize::deserialize(from)?.as_u64(), LEAST, MOST, |bytes| ByteSize(*bytes).to_string())
}

fn seconds<'de, D: Deserializer<'de>, const LEAST: u64, const MOST: u64>(from: D) -> Result<Duration, D::Error> {
    let (least, most) = (Duration::from_secs(LEAST), Duration::from_secs(MOST));
    within(humantime_serde::deserialize(from)?, least, most, |time| humantime::format_duration(*time).to_string())
}

fn some_days<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    seconds::<_, DAY_S, { 100 * YEAR_S }>(from).map(Some)
}

fn within<T: PartialOrd, E: serde::de::Error>(
    value: T,
    least: T,
    most: T,
    show: impl Fn(&T) -> String,
) -> Result<T, E> {
    if (&least..=&most).contains(&&value) {
        return Ok(value);
    }
    Err(E::custom(format_args!("has to be between {} and {}, not {}", show(&least), show(&most), show(&value))))
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "heliostat-data".into(),
            durability: Durability::Fsync,
            listen: ListenConfig::default(),
            admission: AdmissionConfig::default(),
            admin: AdminConfig::default(),
            server_groups: None,
            chat: ChatConfig::default(),
            limits: LimitsConfig::default(),
        }
    }
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self { address: local(8443), plain: false, cert: None, key: None }
    }
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { listen: local(9090) }
    }
}

impl Default for CspConfig {
    fn default() -> Self {
        Self { enabled: false, listen: local(5222), device_cookie_indication: true, exempt: None }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            max_device_slots: 10,
            max_queue_messages: 100_000,
            max_queue_bytes: 256 * MIB,
            transaction_ttl: Duration::from_secs(600),
            max_staged_messages: 4_096,
            max_staged_bytes: 32 * MIB,
            volatile_slot_ttl: Duration::from_secs(600),
            persistent_slot_ttl: None,
            handshake_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_secs(120),
            ping_interval: Duration::from_secs(30),
        }
    }
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn every_key_is_understood() {
        let config = parse(
            r#"
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
            "#,
        )
        .unwrap();
        let files = CertFiles { cert: "cert.pem".into(), key: "key.pem".into() };
        assert_eq!(config.listen.security(), Security::Files(files));
        assert_eq!(config.durability, Durability::Memory);
        assert_eq!(config.admission.max_connections, Some(10_000));
        assert_eq!(config.admission.groups.map(|groups| groups.len()), Some(1));
        assert!(!config.chat.csp.device_cookie_indication);
        assert_eq!(config.chat.csp.exempt.map(|addresses| addresses.len()), Some(2));
        assert_eq!(config.limits.max_device_slots, 15);
        assert_eq!(config.limits.max_queue_bytes, 65_536);
        assert_eq!(config.limits.persistent_slot_ttl, Some(Duration::from_secs(90 * DAY_S)));
        assert_eq!(config.limits.idle_timeout, Duration::from_secs(45));
    }

    #[test]
    fn each_mistake_is_named_with_its_line() {
        let cases = [
            ("\ndata_dirs = \"x\"", 2, "unknown field `data_dirs`"),
            ("[listen]\naddress = \"127.0.0.1:1\"\nport = 3", 3, "unknown field `port`"),
            ("[chat.csp]\nlisten = \"5222\"", 2, "invalid socket address"),
            ("[chat.csp]\nexempt = [\"localhost\"]", 2, "invalid IP address"),
            ("durability = \"never\"", 1, "unknown variant `never`"),
            ("[limits]\nmax_device_slots = 0", 2, "has to be between 1 and 15, not 0"),
            ("[limits]\nmax_device_slots = 16", 2, "has to be between 1 and 15, not 16"),
            ("[limits]\nmax_queue_messages = 0", 2, "has to be between 1 and 100000000, not 0"),
            ("[limits]\n\nmax_queue_bytes = 0", 3, "has to be between 64.0 KiB and 1.0 TiB, not 0 B"),
            ("[limits]\nidle_timeout = \"44 s\"", 2, "has to be between 45s and 1day, not 44s"),
            ("[limits]\ntransaction_ttl = \"0 s\"", 2, "has to be between 1s and 1day, not 0s"),
            ("[limits]\ntransaction_ttl = 600", 2, "expected"),
            (
                "[limits]\nidle_timeout = \"1 min\"\nping_interval = \"60 s\"",
                1,
                "has to be shorter than `idle_timeout`",
            ),
            ("\n[listen]\ncert = \"c.pem\"", 2, "`cert` needs its `key`"),
            ("[listen]\nkey = \"k.pem\"", 1, "`key` needs its `cert`"),
            ("[listen]\nplain = true\nkey = \"k.pem\"", 1, "`plain` means no TLS"),
            ("[admission]\nmax_connections = 0", 2, "has to be between 1 and 100000000, not 0"),
            ("[admission]\ngroups = [\"2fd1\"]", 2, "a device group id is 64 hex digits"),
            ("[admin]\nlisten = \"0.0.0.0:9090\"", 2, "has to be on a loopback address"),
            ("\n\n[server_groups.exact.a-b]\naddresses = [\"h:1\"]", 3, "`a-b` is no server group"),
            ("[server_groups.default]\naddress = \"h:1\"", 2, "unknown field `address`"),
            ("[limits\n", 1, ""),
        ];
        for (text, line, expected) in cases {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("test.toml, line {line}: ")), "{text:?} gave: {error}");
            assert!(error.contains(expected), "{text:?} gave: {error}");
        }
    }

    #[test]
    fn the_file_for_compose_is_understood() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/compose.toml");
        let config = Config::load(&file).unwrap();
        assert_eq!(config.data_dir, Path::new("/data"));
        assert!(matches!(config.listen.security(), Security::Files(_)));
        assert!(config.chat.csp.enabled);
    }

    #[test]
    fn an_unreadable_file_is_named() {
        let error = Config::load(Path::new("/nowhere/heliostat.toml")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/heliostat.toml: No such file"), "{error}");
    }

    #[test]
    fn the_embedded_chat_server_takes_everything_unless_the_file_says_otherwise() {
        let group = ServerGroup::new("a0").unwrap();
        let embedded = Some("127.0.0.1:4711".parse().unwrap());
        let config = Config::development();
        assert_eq!(config.directory(embedded).find(&group).unwrap().addresses, ["127.0.0.1:4711"]);
        assert_eq!(config.directory(None).find(&group), None);
        let config = parse("server_groups.exact.b1.addresses = [\"h:1\"]").unwrap();
        assert_eq!(config.directory(embedded).find(&group), None, "the file's word is the last");
    }
}
