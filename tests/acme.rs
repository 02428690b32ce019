//! Certificates by ACME, from a real authority: Pebble, the test server of Let's Encrypt, and its name server, both found in
//! the path (Debian's package `pebble`). Where they are not, these tests say so and prove nothing; `.ci/run` installs them and
//! sets `HELIOSTAT_NEEDS_PEBBLE`, and then they fail.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may panic"
)]

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use heliostat::net::acme::{Acme, AcmeError, Settings};
use heliostat::net::tasks::Tasks;
use heliostat::net::tls::{self, Tls};
use heliostat::net::{development, listen};
use heliostat::time::Clock;
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_rustls::TlsConnector;

async fn soon<T>(happens: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), happens).await.expect("this happens in time")
}

/// Ends with the test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

fn start(program: &str, args: &[&str], env: &[(&str, &str)]) -> Option<Program> {
    let mut command = Command::new(program);
    command.args(args).envs(env.iter().copied()).stdout(Stdio::null()).stderr(Stdio::null());
    match command.spawn() {
        Ok(child) => Some(Program(child)),
        Err(error) => {
            assert!(std::env::var_os("HELIOSTAT_NEEDS_PEBBLE").is_none(), "{program}: {error}");
            println!("NOT RUN: {program} is not here ({error}); install the package pebble");
            None
        }
    }
}

/// An authority that looks for every domain at 127.0.0.1, at the port of one door.
struct Authority {
    config: PathBuf,
    name_server: String,
    listen: SocketAddr,
    /// Vouches for the authority's own server.
    ca: PathBuf,
    programs: Vec<Program>,
}

impl Authority {
    /// `None` when there is no Pebble here.
    async fn start(dir: &Path, door: SocketAddr) -> Option<Self> {
        // Addresses that were free a moment ago: neither program can be asked which one it took.
        let mut free = Vec::new();
        for _ in 0..4 {
            free.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let [listen, management, tricks, http] = [0, 1, 2, 3].map(|at| free[at].local_addr().unwrap());
        let name_server = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        drop(free);
        let own = development::development(dir, Clock::system().now().wall_ms).unwrap();
        let config = serde_json::json!({ "pebble": {
            "listenAddress": listen.to_string(),
            "managementListenAddress": management.to_string(),
            "certificate": own.files.cert,
            "privateKey": own.files.key,
            "httpPort": http.port(),
            "tlsPort": door.port(),
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
        }});
        let file = dir.join("pebble.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let tricks = tricks.to_string();
        let args = ["-dns01", &name_server, "-management", &tricks, "-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""];
        let off = ["-http01", "", "-https01", "", "-tlsalpn01", ""];
        let programs = vec![start("pebble-challtestsrv", &[&args[..], &off[..]].concat(), &[])?];
        let mut authority = Self { config: file, name_server, listen, ca: own.ca, programs };
        authority.opens().await?;
        Some(authority)
    }

    /// Starts with an empty memory.
    async fn opens(&mut self) -> Option<()> {
        // Without pauses, and with every fifth nonce refused for no reason: every sixth order or so fails of it.
        let env = [("PEBBLE_VA_NOSLEEP", "1"), ("PEBBLE_WFE_NONCEREJECT", "20")];
        let args = ["-strict", "-config", self.config.to_str().unwrap(), "-dnsserver", &self.name_server];
        self.programs.push(start("pebble", &args, &env)?);
        let listens = async {
            while TcpStream::connect(self.listen).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        soon(listens).await;
        Some(())
    }

    /// Is not there any more, and forgets everything.
    fn closes(&mut self) {
        self.programs.truncate(1);
    }

    fn settings(&self, cache: &Path, domains: &[&str]) -> Settings {
        Settings {
            directory: format!("https://localhost:{}/dir", self.listen.port()),
            ca: Some(self.ca.clone()),
            contact: vec!["mailto:admin@example.org".to_owned()],
            domains: domains.iter().map(|&domain| domain.to_owned()).collect(),
            cache: cache.to_owned(),
        }
    }
}

/// A client that asks for `name` and trusts whoever signed the kept certificate: whether it can shake hands.
async fn shakes_hands(door: SocketAddr, name: &str, kept: &Path) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(tls::read_certs(kept).unwrap().pop().unwrap()).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tcp = TcpStream::connect(door).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    soon(TlsConnector::from(Arc::new(config)).connect(name, tcp)).await.is_ok()
}

fn the_one(dir: &Path) -> PathBuf {
    let entries: Vec<_> = dir.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries[0].clone()
}

async fn until_there_is_a_certificate(tls: &Tls) {
    let there = async {
        while tls.identity().is_none() {
            tokio::task::yield_now().await;
        }
    };
    soon(there).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_ordered_at_the_first_start_and_kept_and_renewed() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let door = listener.local_addr().unwrap();
    let Some(mut authority) = Authority::start(&dir.path().join("authority"), door).await else { return };
    let settings = authority.settings(&cache, &["chat.example.org", "mediator.example.org"]);

    let acme = Acme::open(settings.clone(), Clock::system()).unwrap();
    let tls = acme.tls().clone();
    let tasks = Tasks::new();
    tasks.spawn(listen::serve(listener, Some(tls.clone()).into(), tasks.clone(), async |_, _| {}));
    assert_eq!(tls.identity(), None);
    let running = tokio::spawn(acme.run());
    until_there_is_a_certificate(&tls).await;
    running.abort();
    let first = tls.identity().unwrap();
    assert_eq!(first.names, ["chat.example.org", "mediator.example.org"]);
    let (account, kept) = (the_one(&cache).join("account.json"), the_one(&cache).join("certificate.pem"));
    for name in ["chat.example.org", "mediator.example.org"] {
        assert!(shakes_hands(door, name, &kept).await, "{name}");
    }
    assert!(!shakes_hands(door, "other.example.org", &kept).await);
    for secret in [&account, &kept] {
        assert_eq!(secret.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{}", secret.display());
    }

    // Renewed: by the same account and with the same key, at the same door.
    let again = Acme::open(settings.clone(), Clock::system()).unwrap();
    assert_eq!(again.tls().identity(), Some(Arc::clone(&first)), "a start with a certificate orders none");
    tasks.finish(Duration::from_secs(5)).await.unwrap();
    let listener = TcpListener::bind(door).await.unwrap();
    let tasks = Tasks::new();
    tasks.spawn(listen::serve(listener, Some(again.tls().clone()).into(), tasks.clone(), async |_, _| {}));
    let (credentials, before) = (std::fs::read(&account).unwrap(), tls::read_certs(&kept).unwrap());
    soon(again.renew()).await.unwrap();
    let second = again.tls().identity().unwrap();
    assert_eq!(second.pin, first.pin, "clients that know the pin notice nothing");
    assert_ne!(tls::read_certs(&kept).unwrap()[0], before[0]);
    assert_eq!(std::fs::read(&account).unwrap(), credentials);
    assert!(shakes_hands(door, "chat.example.org", &kept).await);

    // The authority is away: what is presented stays, also over a start.
    authority.closes();
    soon(again.renew()).await.unwrap_err();
    assert_eq!(again.tls().identity(), Some(Arc::clone(&second)));
    let offline = Acme::open(settings, Clock::system()).unwrap();
    assert_eq!(offline.tls().identity(), Some(Arc::clone(&second)));

    // It comes back and does not know us: the account is forgotten, and the next attempt makes another.
    authority.opens().await.unwrap();
    let error = soon(again.renew()).await.unwrap_err();
    assert!(matches!(&error, AcmeError::Authority(_)), "{error}");
    assert!(!account.exists(), "{error}");
    std::fs::remove_file(&kept).unwrap();
    soon(again.renew()).await.unwrap();
    assert_ne!(std::fs::read(&account).unwrap(), credentials);
    assert_ne!(again.tls().identity().unwrap().pin, second.pin, "without the file, a new key");
    tasks.finish(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domain_that_leads_elsewhere_is_named_with_what_the_authority_saw() {
    let dir = tempfile::tempdir().unwrap();
    // Nobody listens where the authority will look.
    let door = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let Some(authority) = Authority::start(&dir.path().join("authority"), door).await else { return };
    let acme =
        Acme::open(authority.settings(&dir.path().join("cache"), &["chat.example.org"]), Clock::system()).unwrap();
    let error = soon(acme.renew()).await.unwrap_err();
    let AcmeError::Refused { domain, reason } = &error else { panic!("{error:?}") };
    assert_eq!(domain, "chat.example.org");
    assert!(reason.contains(&format!("Failed to connect to {door}")), "{reason}");
    assert_eq!(acme.tls().identity(), None);
    assert!(the_one(&dir.path().join("cache")).join("account.json").exists(), "the next attempt needs no new account");
}
