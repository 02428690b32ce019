//! Reverse proxies before the real binary: nginx, HAProxy and Caddy with the files in `deploy/`, and Heliostat with what
//! `docs/proxies.md` says belongs to them. Only ports, paths and the host's name are replaced, so what is documented is what
//! is tested.
//!
//! A proxy that is not installed is skipped, with a line that says so; with `HELIOSTAT_PROXIES=required` that is a failure.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::{Family, soon};
use heliostat::client::{Mediator, Trust};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");
/// Where devices are, in the documented files.
const UPSTREAM: &str = "127.0.0.1:8080";
/// Connections from one address: enough for the simulation, few enough to be used up.
const PER_ADDRESS: usize = 20;

fn certificate(what: &str) -> PathBuf {
    Path::new(REPOSITORY).join(format!("certs/throwaway-test-only-{what}.pem"))
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Nginx,
    HaProxy,
    Caddy,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Nginx, Self::HaProxy, Self::Caddy];

    const fn program(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::HaProxy => "haproxy",
            Self::Caddy => "caddy",
        }
    }

    fn documented(self) -> String {
        let file = match self {
            Self::Nginx => "nginx.conf",
            Self::HaProxy => "haproxy.cfg",
            Self::Caddy => "Caddyfile",
        };
        std::fs::read_to_string(Path::new(REPOSITORY).join("deploy").join(file)).unwrap()
    }

    /// Where the program is. `None`, told in a line, when it is nowhere and need not be.
    fn find(self) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
        let found = dirs.map(|dir| dir.join(self.program())).find(|file| file.is_file());
        let required = std::env::var("HELIOSTAT_PROXIES").is_ok_and(|word| word == "required");
        assert!(found.is_some() || !required, "{} is required and not installed", self.program());
        if found.is_none() {
            eprintln!("skipped: {} is not installed", self.program());
        }
        found
    }

    /// What `docs/proxies.md` says for Heliostat behind this proxy.
    fn for_heliostat(self) -> String {
        let docs = std::fs::read_to_string(Path::new(REPOSITORY).join("docs/proxies.md")).unwrap();
        let mut blocks = docs.split("<!-- tests/proxies.rs: ").skip(1);
        let block =
            blocks.find(|block| block.split(" -->").next().unwrap().split(' ').any(|name| name == self.program()));
        block.unwrap().split("```toml\n").nth(1).unwrap().split("```").next().unwrap().to_owned()
    }

    /// The documented file with its ports, paths and names replaced. Each of them has to be in it.
    fn config(self, dir: &Path, port: u16, upstream: SocketAddr) -> String {
        let (cert, key) = (certificate("cert"), certificate("key"));
        let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
        let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        let mut replaced = vec![(UPSTREAM, upstream.to_string())];
        match self {
            Self::Nginx => {
                let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
                let temporary = temporary.map(|it| format!("{it}_temp_path {};", at(it))).join("\n");
                replaced.extend([
                    ("listen 443 ssl", format!("listen 127.0.0.1:{port} ssl")),
                    ("/etc/heliostat/fullchain.pem", cert.to_owned()),
                    ("/etc/heliostat/key.pem", key.to_owned()),
                    ("http {", format!("pid {};\nhttp {{\n{temporary}", at("pid"))),
                ]);
            }
            Self::HaProxy => {
                let both = [cert, key].map(|file| std::fs::read_to_string(file).unwrap()).concat();
                std::fs::write(dir.join("both.pem"), both).unwrap();
                replaced.extend([
                    ("bind :443", format!("bind 127.0.0.1:{port}")),
                    ("/etc/heliostat/haproxy.pem", at("both.pem")),
                ]);
            }
            Self::Caddy => replaced.extend([
                ("https://chat.example.org", format!("https://localhost:{port}")),
                ("/etc/heliostat/fullchain.pem", cert.to_owned()),
                ("/etc/heliostat/key.pem", key.to_owned()),
            ]),
        }
        replaced.into_iter().fold(self.documented(), |text, (from, to)| {
            assert!(text.contains(from), "{self:?}: {from:?} is not in the documented file");
            text.replace(from, &to)
        })
    }
}

/// A proxy that listens. Ended when it is dropped.
struct Proxy {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Proxy {
    async fn start(kind: Kind, program: &Path, upstream: SocketAddr) -> Self {
        // A port that is free now may be taken a moment later; then there is another.
        for _ in 0..5 {
            let dir = tempfile::tempdir().unwrap();
            let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
            let file = dir.path().join("config");
            std::fs::write(&file, kind.config(dir.path(), port, upstream)).unwrap();
            let mut command = Command::new(program);
            match kind {
                Kind::Nginx => command.arg("-e").arg("stderr").arg("-g").arg("daemon off;").arg("-c").arg(&file),
                Kind::HaProxy => command.arg("-db").arg("-f").arg(&file),
                Kind::Caddy => command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&file),
            };
            // What a program wants to keep, it keeps here.
            command.env("HOME", dir.path()).env("XDG_DATA_HOME", dir.path()).env("XDG_CONFIG_HOME", dir.path());
            let log = std::fs::File::create(dir.path().join("log")).unwrap();
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
            let mut proxy = Self { child: command.spawn().unwrap(), port, _dir: dir };
            loop {
                if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                    return proxy;
                }
                if let Some(status) = proxy.child.try_wait().unwrap() {
                    let log = std::fs::read_to_string(proxy._dir.path().join("log")).unwrap();
                    assert!(log.to_lowercase().contains("in use"), "{kind:?} ended: {status}\n{log}");
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        panic!("no free port");
    }

    fn url(&self) -> String {
        format!("wss://localhost:{}", self.port)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
            return;
        }
        // Killed, nginx would leave its workers behind.
        let _gone = Command::new("kill").arg(self.child.id().to_string()).status();
        let _gone = self.child.wait();
    }
}

/// The real binary with the documented configuration.
struct Heliostat {
    child: Child,
    address: SocketAddr,
    data: PathBuf,
    _dir: tempfile::TempDir,
}

impl Heliostat {
    fn start(kind: Kind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (file, data) = (dir.path().join("heliostat.toml"), dir.path().join("data"));
        std::fs::write(&file, kind.for_heliostat()).unwrap();
        let mut command = heliostat(&["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
        command.args(["--csp-listen", "127.0.0.1:0", "--set"]);
        command.arg(format!("admission.max_connections_per_address={PER_ADDRESS}"));
        let mut child =
            command.arg("--config").arg(file).arg("--data").arg(&data).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut address = None;
        for line in said.by_ref() {
            if line.trim_start().starts_with("devices") {
                address = line.split([' ', ')']).find_map(|word| word.parse().ok());
            }
            // The last line of the table.
            if line.contains("durability") {
                break;
            }
        }
        std::thread::spawn(move || said.count());
        Self { child, address: address.expect("the server listens"), data, _dir: dir }
    }
}

impl Drop for Heliostat {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

fn heliostat(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
    command.args(args).env_remove("HELIOSTAT_CONFIG").env("HELIOSTAT_LOG", "warn").stdin(Stdio::null());
    command
}

/// A TLS connection to a proxy from any address of this machine.
async fn connect(from: [u8; 4], port: u16) -> TlsStream<tokio::net::TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate("ca")).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddrV4::new(from.into(), 0).into()).unwrap();
    let tcp = soon(socket.connect((Ipv4Addr::LOCALHOST, port).into())).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    soon(TlsConnector::from(Arc::new(config)).connect(name, tcp)).await.unwrap()
}

/// Asks for a WebSocket, claiming to be somebody else; the status, and the connection while it lasts.
async fn upgrade(from: [u8; 4], port: u16, path: &str, claims: &str) -> (u16, TlsStream<tokio::net::TcpStream>) {
    let mut stream = connect(from, port).await;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         X-Forwarded-For: {claims}\r\nForwarded: for={claims}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = soon(head(&mut stream)).await;
    (head.split(' ').nth(1).unwrap().parse().unwrap(), stream)
}

/// Up to the empty line.
async fn head(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// The source in a PROXY header of version 2 for TCP over IPv4.
async fn proxy_header(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> [u8; 4] {
    let mut fixed = [0; 16];
    stream.read_exact(&mut fixed).await.unwrap();
    assert_eq!(fixed[..14], *b"\r\n\r\n\0\r\nQUIT\n\x21\x11");
    let mut addresses = vec![0; usize::from(u16::from_be_bytes([fixed[14], fixed[15]]))];
    stream.read_exact(&mut addresses).await.unwrap();
    addresses[..4].try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_carries_devices() {
    carries_devices(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_carries_devices() {
    carries_devices(Kind::HaProxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn caddy_carries_devices() {
    carries_devices(Kind::Caddy).await;
}

async fn carries_devices(kind: Kind) {
    let Some(program) = kind.find() else { return };
    let mut server = Heliostat::start(kind);
    let proxy = Proxy::start(kind, &program, server.address).await;

    // Groups of devices, with transactions, and with chat through the mediator's own proxying.
    let mut simulate =
        heliostat(&["simulate", "--groups", "4", "--devices", "3", "--messages", "15", "--url", &proxy.url()]);
    simulate.arg("--ca").arg(certificate("ca")).arg("--data").arg(&server.data);
    let output = soon(tokio::task::spawn_blocking(move || simulate.output())).await.unwrap().unwrap();
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{kind:?}: {table}{}", String::from_utf8_lossy(&output.stderr));
    assert!(table.contains("chat messages"), "{kind:?}: {table}");

    // A double slash behind a prefix is a device's URL like any other.
    let trust = Trust::CaPem(std::fs::read(certificate("ca")).unwrap());
    let family = Family::new(Mediator::new(&proxy.url(), &trust).unwrap());
    let path = format!("/mediator//{}", family.config(1).url_info().to_segment());

    // As many connections from one address as are allowed, whatever else they claim; and another address is another.
    let [one, other] = [[127, 0, 0, 5], [127, 0, 0, 6]];
    let mut open = Vec::new();
    for n in 0..PER_ADDRESS {
        let (status, stream) = upgrade(one, proxy.port, &path, &format!("203.0.113.{n}")).await;
        assert_eq!(status, 101, "{kind:?}: connection {n}");
        open.push(stream);
    }
    assert_eq!(upgrade(one, proxy.port, &path, "203.0.113.200").await.0, 429, "{kind:?}");
    assert_eq!(upgrade(other, proxy.port, &path, "127.0.0.5").await.0, 101, "{kind:?}");
    drop(open);

    // The farewell reaches devices, and whoever comes later is told that nobody is there.
    let mut device = family.joins(1).await;
    assert!(Command::new("kill").arg(server.child.id().to_string()).status().unwrap().success());
    assert_eq!(soon(device.wait_ended()).await.code(), Some(1001), "{kind:?}");
    assert!(soon(tokio::task::spawn_blocking(move || server.child.wait())).await.unwrap().unwrap().success());
    let (status, _) = upgrade(one, proxy.port, &path, "203.0.113.1").await;
    assert!(matches!(status, 502 | 503), "{kind:?}: {status}");
}

#[tokio::test]
async fn requests_go_on_as_they_came_except_for_what_they_claim() {
    for kind in Kind::ALL {
        let Some(program) = kind.find() else { continue };
        let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(kind, &program, upstream.local_addr().unwrap()).await;
        let asking = upgrade([127, 0, 0, 5], proxy.port, "/a//b/../c%2F//0a20", "203.0.113.7");
        let receiving = async {
            let mut stream = upstream.accept().await.unwrap().0;
            let mut claimed = None;
            if kind == Kind::HaProxy {
                claimed = Some(proxy_header(&mut stream).await);
            }
            let head = head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            (claimed, head)
        };
        let ((status, _), (claimed, head)) = tokio::join!(asking, soon(receiving));
        assert_eq!(status, 503, "{kind:?}");
        assert!(head.contains("GET /a//b/../c%2F//0a20 HTTP/1.1\r\n"), "{kind:?}: {head}");
        assert!(head.to_lowercase().contains("upgrade: websocket\r\n"), "{kind:?}: {head}");
        if kind == Kind::HaProxy {
            assert_eq!(claimed, Some([127, 0, 0, 5]));
        } else {
            let header = head.lines().filter(|line| line.to_lowercase().starts_with("x-forwarded-for:"));
            assert_eq!(header.map(|line| &line[16..]).collect::<Vec<_>>(), [" 127.0.0.5"], "{kind:?}");
        }
    }
}

/// Nobody waits for that in a test, so it is read: an open connection is left alone for much longer than pings are apart.
#[test]
fn open_connections_are_given_more_time_than_pings_are_apart() {
    let limits = heliostat::config::Config::default().limits;
    let patience = Duration::from_secs(3_600);
    assert!(patience > limits.idle_timeout && limits.idle_timeout > limits.ping_interval);
    for (kind, lines) in [
        (Kind::Nginx, &["proxy_read_timeout 1h;", "proxy_send_timeout 1h;"][..]),
        (Kind::HaProxy, &["timeout tunnel 1h\n"]),
    ] {
        for line in lines {
            assert!(kind.documented().contains(line), "{kind:?}: {line}");
        }
    }
}
