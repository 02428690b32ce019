//! Reverse proxies before the real binary: nginx, HAProxy and Caddy with the files in `deploy/`, and Heliostat with what
//! `docs/proxies.md` says belongs to them. Only ports, paths and the host's name are replaced, so what is documented is what
//! is tested. And what `heliostat shard plan` writes for nginx and HAProxy, in front of small servers that say who they are.
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
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Family, soon};
use heliostat::client::{Mediator, Trust};
use heliostat::tools::shard::{self, Front, Plan};
use heliostat::wire::d2m::{ClientUrlInfo, DeviceGroupId, ServerGroup};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
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

    /// The documented file for an upstream of our own.
    fn config(self, dir: &Path, port: u16, upstream: SocketAddr) -> String {
        let text = self.documented();
        assert!(text.contains(UPSTREAM), "{self:?}: {UPSTREAM} is not in the documented file");
        self.at_home(text.replace(UPSTREAM, &upstream.to_string()), dir, port)
    }

    /// A file with its port, paths and names replaced. Each of them has to be in it.
    fn at_home(self, text: String, dir: &Path, port: u16) -> String {
        let (cert, key) = (certificate("cert"), certificate("key"));
        let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
        let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        let replaced = match self {
            Self::Nginx => {
                let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
                let temporary = temporary.map(|it| format!("{it}_temp_path {};", at(it))).join("\n");
                vec![
                    ("listen 443 ssl", format!("listen 127.0.0.1:{port} ssl")),
                    ("/etc/heliostat/fullchain.pem", cert.to_owned()),
                    ("/etc/heliostat/key.pem", key.to_owned()),
                    ("http {", format!("pid {};\nhttp {{\n{temporary}", at("pid"))),
                ]
            }
            Self::HaProxy => {
                let both = [cert, key].map(|file| std::fs::read_to_string(file).unwrap()).concat();
                std::fs::write(dir.join("both.pem"), both).unwrap();
                vec![("bind :443", format!("bind 127.0.0.1:{port}")), ("/etc/heliostat/haproxy.pem", at("both.pem"))]
            }
            Self::Caddy => vec![
                ("https://chat.example.org", format!("https://localhost:{port}")),
                ("/etc/heliostat/fullchain.pem", cert.to_owned()),
                ("/etc/heliostat/key.pem", key.to_owned()),
            ],
        };
        replaced.into_iter().fold(text, |text, (from, to)| {
            assert!(text.contains(from), "{self:?}: {from:?} is not in the file");
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
        Self::configured(kind, program, |dir, port| kind.config(dir, port, upstream)).await
    }

    async fn configured(kind: Kind, program: &Path, config: impl Fn(&Path, u16) -> String) -> Self {
        // A port that is free now may be taken a moment later; then there is another.
        for _ in 0..5 {
            let dir = tempfile::tempdir().unwrap();
            let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
            let file = dir.path().join("config");
            std::fs::write(&file, config(dir.path(), port)).unwrap();
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

// ---- shard plan

/// How a node of ours is, as it says at its admin door.
#[derive(Debug, Default)]
struct State {
    drains: AtomicBool,
    /// Accepts, as the kernel does for a process that is stopped, and answers nothing more.
    hangs: AtomicBool,
}

/// A node as a load balancer sees it: whoever asks is told its name.
struct Node {
    name: String,
    door: SocketAddr,
    admin: SocketAddr,
    state: Arc<State>,
    /// Ends with it, and what it has accepted, too.
    running: Option<JoinSet<()>>,
}

impl Node {
    async fn start(&mut self) {
        let mut running = JoinSet::new();
        for address in [self.door, self.admin] {
            // Connections of its last run may still be closing.
            let listener = loop {
                match TcpListener::bind(address).await {
                    Ok(listener) => break listener,
                    Err(_) => tokio::task::yield_now().await,
                }
            };
            let (name, state) = (self.name.clone(), Arc::clone(&self.state));
            running.spawn(async move {
                let mut accepted = JoinSet::new();
                loop {
                    let stream = listener.accept().await.unwrap().0;
                    let (name, state) = (name.clone(), Arc::clone(&state));
                    accepted.spawn(async move { answer(stream, name, state).await.unwrap_or(()) });
                }
            });
        }
        self.running = Some(running);
    }

    /// All its sockets are closed.
    async fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.shutdown().await;
        }
    }
}

/// One request, possibly behind a PROXY header; one with `?stay` becomes a connection that stays.
async fn answer(mut stream: TcpStream, name: String, state: Arc<State>) -> Option<()> {
    let mut head = Vec::new();
    // The PROXY header begins like the end of a request.
    while head.len() < 16 || !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
        if head.len() == 16 && head.starts_with(b"\r\n\r\n\0\r\nQUIT\n") {
            let mut addresses = vec![0; usize::from(u16::from_be_bytes([head[14], head[15]]))];
            stream.read_exact(&mut addresses).await.ok()?;
            head.clear();
        }
    }
    if state.hangs.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap();
    let status = match path {
        "/readyz" if state.drains.load(Ordering::Relaxed) => "503 Service Unavailable",
        _ if path.ends_with("?stay") => {
            "101 Switching Protocols\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        }
        _ => "200 OK",
    };
    let length = if status.starts_with("101") {
        "Connection: upgrade".to_owned()
    } else {
        format!("Content-Length: {}", name.len())
    };
    stream.write_all(format!("HTTP/1.1 {status}\r\n{length}\r\n\r\n{name}").as_bytes()).await.ok()?;
    while status.starts_with("101") {
        if state.hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        let byte = stream.read_u8().await.ok()?;
        stream.write_all(&[byte]).await.ok()?;
    }
    Some(())
}

/// Nodes that run, a plan for them, and a proxy that has its configuration.
struct Cluster {
    nodes: Vec<Node>,
    plan: Plan,
    proxy: Proxy,
}

impl Cluster {
    async fn start(kind: Kind, program: &Path, asks_the_admin_door: bool) -> Self {
        // Their admin doors are to be on one port, so each has an address of its own.
        let free = |host: [u8; 4], port| async move { TcpListener::bind((Ipv4Addr::from(host), port)).await };
        let (mut nodes, mut given): (Vec<Node>, Vec<shard::Node>) = (Vec::new(), Vec::new());
        let hosts = [[127, 0, 0, 21], [127, 0, 0, 22], [127, 0, 0, 23]];
        let admin = 'port: loop {
            let first = free(hosts[0], 0).await.unwrap();
            let port = first.local_addr().unwrap().port();
            for host in &hosts[1..] {
                if free(*host, port).await.is_err() {
                    continue 'port;
                }
            }
            break port;
        };
        for (n, host) in hosts.into_iter().enumerate() {
            let door = free(host, 0).await.unwrap().local_addr().unwrap();
            let name = format!("node-{n}");
            given.push(format!("{name}={door}").parse().unwrap());
            let mut node = Node { name, door, admin: (host, admin).into(), state: Arc::default(), running: None };
            soon(node.start()).await;
            nodes.push(node);
        }
        let plan = Plan::new(given).unwrap();
        let (proxy, certificate) = match kind {
            Kind::HaProxy => (shard::Proxy::Haproxy, "/etc/heliostat/haproxy.pem"),
            _ => (shard::Proxy::Nginx, "/etc/heliostat/fullchain.pem"),
        };
        let front = Front {
            port: 443,
            certificate: certificate.to_owned(),
            key: "/etc/heliostat/key.pem".to_owned(),
            admin_port: asks_the_admin_door.then_some(admin),
        };
        let text = plan.configuration(proxy, &front);
        let proxy = Proxy::configured(kind, program, |dir, port| kind.at_home(text.clone(), dir, port)).await;
        Self { nodes, plan, proxy }
    }

    /// Those that a group of this prefix is to reach, the first one first.
    fn ranked(&self, prefix: u8) -> Vec<&str> {
        self.plan.ranked(prefix).iter().map(shard::Node::name).collect()
    }

    fn node(&mut self, name: &str) -> &mut Node {
        self.nodes.iter_mut().find(|node| node.name == name).unwrap()
    }

    /// Who answers.
    async fn asks(&self, path: &str) -> String {
        let (mut stream, status) = self.opens(path).await;
        let mut name = String::new();
        // A proxy's own pages end without a farewell of TLS's.
        let _end = soon(stream.read_to_string(&mut name)).await;
        if status == 200 { name } else { format!("status {status}") }
    }

    async fn opens(&self, path: &str) -> (TlsStream<TcpStream>, u16) {
        let mut stream = connect([127, 0, 0, 1], self.proxy.port).await;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: {}\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            if path.ends_with("?stay") { "Upgrade" } else { "close" }
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = soon(head(&mut stream)).await;
        (stream, head.split(' ').nth(1).unwrap().parse().unwrap())
    }

    /// Waits until that node answers.
    async fn reaches(&self, path: &str, name: &str) {
        soon(async {
            while self.asks(path).await != name {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
    }
}

fn segment(prefix: u8, server_group: &str) -> String {
    let mut id = [0x5a; 32];
    id[0] = prefix;
    let server_group = ServerGroup::new(server_group).unwrap();
    ClientUrlInfo { device_group_id: DeviceGroupId::new(id), server_group }.to_segment()
}

/// Some of all 256, so that every node is the first for some of them.
fn some_prefixes() -> impl Iterator<Item = u8> {
    (0..=u8::MAX).step_by(23)
}

async fn keeps_to_the_plan(kind: Kind) {
    let Some(program) = kind.find() else { return };
    let mut cluster = Cluster::start(kind, &program, false).await;
    for prefix in some_prefixes() {
        let first = cluster.ranked(prefix)[0];
        let (usual, other) = (segment(prefix, "a0"), segment(prefix, "chatos"));
        for path in [format!("/{usual}"), format!("/mediator//{usual}/"), format!("//{other}?version=1")] {
            assert_eq!(cluster.asks(&path).await, first, "{kind:?}: {path}");
        }
    }
    // What names no group in the usual form has its own place, too.
    let upside_down = format!("/1a0261300a20{}", &segment(7, "a0")[4..68]);
    for path in ["/", "/0a20", &upside_down] {
        let answer = cluster.asks(path).await;
        assert!(answer.starts_with("node-"), "{kind:?}: {path}: {answer}");
        assert_eq!(cluster.asks(path).await, answer, "{kind:?}: {path}");
    }

    let gone = cluster.ranked(0)[0].to_owned();
    cluster.node(&gone).stop().await;
    for prefix in some_prefixes() {
        let heir = cluster.ranked(prefix).into_iter().find(|name| *name != gone).unwrap();
        cluster.reaches(&format!("/{}", segment(prefix, "a0")), heir).await;
    }
    soon(cluster.node(&gone).start()).await;
    for prefix in some_prefixes() {
        cluster.reaches(&format!("/{}", segment(prefix, "a0")), cluster.ranked(prefix)[0]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_sends_a_group_to_its_own_node_and_to_the_next_while_that_is_away() {
    keeps_to_the_plan(Kind::HaProxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_sends_a_group_to_its_own_node_and_to_the_next_while_that_is_away() {
    keeps_to_the_plan(Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_leaves_a_node_that_drains_its_devices_and_takes_them_from_one_that_hangs() {
    let Some(program) = Kind::HaProxy.find() else { return };
    let mut cluster = Cluster::start(Kind::HaProxy, &program, true).await;
    let path = format!("/{}", segment(0, "a0"));
    let [first, second] = [0, 1].map(|rank| cluster.ranked(0)[rank].to_owned());
    // Until it has asked, everybody is there.
    cluster.reaches(&path, &first).await;
    let (mut stays, status) = cluster.opens(&format!("{path}?stay")).await;
    assert_eq!(status, 101);
    let mut name = vec![0; first.len()];
    soon(stays.read_exact(&mut name)).await.unwrap();
    assert_eq!(name, first.as_bytes());

    cluster.node(&first).state.drains.store(true, Ordering::Relaxed);
    cluster.reaches(&path, &second).await;
    stays.write_all(b"!").await.unwrap();
    assert_eq!(soon(stays.read_u8()).await.unwrap(), b'!', "whoever is inside stays until it is told");
    cluster.node(&first).state.drains.store(false, Ordering::Relaxed);
    cluster.reaches(&path, &first).await;

    cluster.node(&first).state.hangs.store(true, Ordering::Relaxed);
    let mut rest = Vec::new();
    let _end = soon(stays.read_to_end(&mut rest)).await;
    assert!(rest.is_empty(), "its devices are let go: nobody else would tell them");
    cluster.reaches(&path, &second).await;
}

/// What it says about its own file when it is asked: nothing is the best.
#[test]
fn haproxy_has_no_objection_to_a_plan_of_names_nor_to_the_file_beside_the_compose_file() {
    let Some(program) = Kind::HaProxy.find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let site = dir.path().join("site.pem");
    std::fs::copy(certificate("cert"), &site).unwrap();
    std::fs::copy(certificate("key"), dir.path().join("site.pem.key")).unwrap();
    let of_the_container = "/usr/local/etc/haproxy/tls/site.pem";
    let nodes = ["east_1=one.invalid:8080", "b=[2001:db8::1]:8080", "c=three.invalid:8080", "d=four.invalid:8080"];
    let plan = Plan::new(nodes.map(|node| node.parse().unwrap()).into()).unwrap();
    let front =
        Front { port: 8443, certificate: of_the_container.to_owned(), key: String::new(), admin_port: Some(9090) };
    let shipped = std::fs::read_to_string(Path::new(REPOSITORY).join("deploy/cluster/haproxy.cfg")).unwrap();
    for text in [plan.configuration(shard::Proxy::Haproxy, &front), shipped] {
        assert!(text.contains(of_the_container));
        let file = dir.path().join("haproxy.cfg");
        std::fs::write(&file, text.replace(of_the_container, site.to_str().unwrap())).unwrap();
        let output = Command::new(&program).args(["-c", "-f"]).arg(file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        // It goes on without those whose names mean nothing yet.
        let objections =
            said.lines().filter(|line| !line.contains("NOTICE") && !line.contains("could not resolve address"));
        assert!(output.status.success() && objections.count() == 0, "{said}");
    }
}
