//! The public door on real sockets: certificates that change under open connections, and proxies that say, truly or not,
//! where a connection comes from.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may panic"
)]

mod common;

use std::io::{BufRead as _, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use common::{Family, Server, Setup, reflected, soon};
use heliostat::client::{Device, Mediator as Url, Trust};
use heliostat::net::listen::Door;
use heliostat::net::proxies::{Proxies, SaidBy};
use heliostat::net::tls::{self, CertFiles, Identity, Tls};
use heliostat::net::watch::{Looked, Watch};
use heliostat::server::Admission;
use heliostat::time::Clock;
use heliostat::wire::d2m::ReflectFlags;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::ServerName;
use rustls::{HandshakeKind, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

/// A new pair in `dir`, for localhost.
fn new_pair(dir: &Path) -> CertFiles {
    let files = CertFiles { cert: dir.join("cert.pem"), key: dir.join("key.pem") };
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(&files.cert, cert.pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    files
}

async fn secured(dir: &Path) -> (Server, Watch) {
    let watch = Watch::open(new_pair(dir), Clock::system()).unwrap();
    let door = Door::from(Some(watch.tls().clone()));
    let server = Server::start(&dir.join("data"), Setup { door, ..Setup::default() }).await;
    (server, watch)
}

/// How devices name the server that shows this pin.
fn pinned(server: &Server, identity: &Identity) -> Url {
    let pin = base64::engine::general_purpose::STANDARD.decode(&identity.pin).unwrap();
    let url = format!("wss://localhost:{}", server.address.port());
    Url::new(&url, &Trust::Pin(pin.try_into().unwrap())).unwrap()
}

#[tokio::test]
async fn a_certificate_is_replaced_under_open_connections_and_none_is_dropped() {
    const DEVICES: u64 = 9;
    let dir = tempfile::tempdir().unwrap();
    let (server, watch) = secured(dir.path()).await;
    let old = watch.tls().identity().unwrap();
    let mut family = Family::new(pinned(&server, &old));
    let mut devices = Vec::new();
    for device in 1..=DEVICES {
        devices.push(family.joins(device).await);
    }
    let Looked::Replaced { identity: new, new_pin: true } = ({
        new_pair(dir.path());
        watch.reload().unwrap()
    }) else {
        panic!("not replaced")
    };
    assert_eq!(server.mediator.tls().unwrap().identity(), Some(Arc::clone(&new)), "what the dashboard would show");

    // Every connection from before carries messages in both directions.
    for sender in 0..devices.len() {
        let flags = ReflectFlags::default();
        soon(devices[sender].reflect_and_wait(&[u8::try_from(sender).unwrap()], flags)).await.unwrap();
        for (receiver, device) in devices.iter_mut().enumerate() {
            if receiver != sender {
                assert_eq!(reflected(device).await, [u8::try_from(sender).unwrap()]);
            }
        }
    }
    assert_eq!(server.mediator.connections(), devices.len());

    // Who connects now sees the new one: the old pin is refused, the new one accepted.
    let before = Family { key: family.key.clone(), url: pinned(&server, &old) };
    soon(Device::connect(&before.url, &before.config(DEVICES + 1))).await.unwrap_err();
    family.url = pinned(&server, &new);
    family.joins(DEVICES + 1).await;
}

/// A client that trusts the file's certificate and keeps its tickets.
fn connector(cert: &Path) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(tls::read_certs(cert).unwrap().remove(0)).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// Asks for a page that is not there, to the end, so that tickets have been read.
async fn visits(connector: &TlsConnector, address: SocketAddr) -> HandshakeKind {
    let tcp = TcpStream::connect(address).await.unwrap();
    let mut stream = connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    soon(stream.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 404"));
    stream.get_ref().1.handshake_kind().unwrap()
}

#[tokio::test]
async fn tickets_outlive_the_certificate_they_were_given_under() {
    let dir = tempfile::tempdir().unwrap();
    let (server, watch) = secured(dir.path()).await;
    let connector = connector(&dir.path().join("cert.pem"));
    assert_eq!(visits(&connector, server.address).await, HandshakeKind::Full);
    assert_eq!(visits(&connector, server.address).await, HandshakeKind::Resumed);
    new_pair(dir.path());
    watch.reload().unwrap();
    assert_eq!(visits(&connector, server.address).await, HandshakeKind::Resumed);
}

#[tokio::test]
async fn files_that_change_are_noticed_and_half_a_pair_is_waited_out() {
    let dir = tempfile::tempdir().unwrap();
    let (server, watch) = secured(dir.path()).await;
    let tls: Tls = watch.tls().clone();
    let old = tls.identity().unwrap();
    let watching = tokio::spawn(watch.clone().run(Duration::from_millis(1)));

    let coming = tempfile::tempdir().unwrap();
    let next = new_pair(coming.path());
    std::fs::copy(&next.cert, dir.path().join("cert.pem")).unwrap();
    watch.reload().unwrap_err();
    let family = Family::new(pinned(&server, &old));
    family.joins(1).await;
    assert_eq!(tls.identity().unwrap(), old, "the key is still missing");

    std::fs::copy(&next.key, dir.path().join("key.pem")).unwrap();
    soon(async {
        while tls.identity().unwrap() == old {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let family = Family::new(pinned(&server, &tls.identity().unwrap()));
    family.joins(1).await;
    watching.abort();
}

#[tokio::test]
async fn without_a_certificate_the_door_stays_shut_and_opens_with_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let tls = Tls::without_certificate().unwrap();
    let door = Door::from(Some(tls.clone()));
    let server = Server::start(&dir.path().join("data"), Setup { door, ..Setup::default() }).await;
    let files = new_pair(dir.path());
    let connector = connector(&files.cert);
    let tcp = TcpStream::connect(server.address).await.unwrap();
    connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap_err();
    assert_eq!(tls.present(tls::Certificate::load(&files).unwrap()), None);
    assert_eq!(visits(&connector, server.address).await, HandshakeKind::Full);
}

/// A mediator that lets each address in once, before which stand proxies of these networks.
async fn behind(dir: &Path, trusted: &str, said_by: SaidBy, tls: Option<Tls>) -> Server {
    let trusted = trusted.split(' ').map(|network| network.parse().unwrap()).collect();
    let door = Door { tls, proxies: Arc::new(Proxies::new(trusted, said_by)) };
    let admission = Admission { max_connections_per_address: Some(1), ..Admission::default() };
    Server::start(dir, Setup { door, admission, ..Setup::default() }).await
}

/// Connects from one of this machine's own addresses.
async fn from(source: &str, server: &Server) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
    socket.connect(server.address).await.unwrap()
}

/// Asks for a WebSocket; returns the status. The connection counts as long as the stream is held.
async fn upgrade(io: &mut (impl AsyncRead + AsyncWrite + Unpin), headers: &str) -> String {
    let path = "/0a202fd17ba2f9c2c31e52f0acbba8ff741ac89b3b58a8c208a25ad4a625ea1387231a026130";
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{headers}\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    io.write_all(request.as_bytes()).await.unwrap();
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(soon(io.read_u8()).await.unwrap());
    }
    String::from_utf8(line).unwrap().split(' ').nth(1).unwrap().to_owned()
}

const OPEN: &str = "101";
const TOO_MANY: &str = "429";

#[tokio::test]
async fn behind_an_http_proxy_the_limit_is_per_client() {
    for (said_by, header) in [(SaidBy::XForwardedFor, "X-Forwarded-For: "), (SaidBy::Forwarded, "Forwarded: for=")] {
        let dir = tempfile::tempdir().unwrap();
        let server = behind(dir.path(), "127.0.0.1/32 10.0.0.0/8", said_by, None).await;
        let mut held = Vec::new();
        for (client, expected) in [
            ("203.0.113.1", OPEN),
            ("203.0.113.2", OPEN),
            ("203.0.113.1", TOO_MANY),
            // Another of ours in between, and what the client made up before it.
            ("198.51.100.1, {}203.0.113.2, {}10.0.0.9", TOO_MANY),
            ("198.51.100.1, {}203.0.113.3, {}10.0.0.9", OPEN),
        ] {
            let mut io = from("127.0.0.1", &server).await;
            let more = if said_by == SaidBy::Forwarded { "for=" } else { "" };
            let headers = format!("{header}{}\r\n", client.replace("{}", more));
            assert_eq!(upgrade(&mut io, &headers).await, expected, "{headers}");
            held.push(io);
        }
    }
}

#[tokio::test]
async fn nobody_chooses_an_address_by_a_header() {
    let dir = tempfile::tempdir().unwrap();
    let server = behind(dir.path(), "127.0.0.1/32", SaidBy::XForwardedFor, None).await;
    // Not the proxy: whatever it says, it is who it is.
    let mut first = from("127.0.0.2", &server).await;
    assert_eq!(upgrade(&mut first, "X-Forwarded-For: 203.0.113.1\r\n").await, OPEN);
    let mut second = from("127.0.0.2", &server).await;
    assert_eq!(upgrade(&mut second, "X-Forwarded-For: 203.0.113.2\r\n").await, TOO_MANY);
    // The address it named is still free. A header that the proxy does not write changes nothing.
    let mut proxied = from("127.0.0.1", &server).await;
    let headers = "Forwarded: for=127.0.0.2\r\nX-Forwarded-For: 127.0.0.2\r\nX-Forwarded-For: 203.0.113.1\r\n";
    assert_eq!(upgrade(&mut proxied, headers).await, OPEN);
}

#[tokio::test]
async fn each_request_through_one_connection_of_the_proxy_is_its_own_clients() {
    let dir = tempfile::tempdir().unwrap();
    let server = behind(dir.path(), "127.0.0.1/32", SaidBy::XForwardedFor, None).await;
    let mut first = from("127.0.0.1", &server).await;
    assert_eq!(upgrade(&mut first, "X-Forwarded-For: 203.0.113.1\r\n").await, OPEN);
    let mut shared = from("127.0.0.1", &server).await;
    assert_eq!(upgrade(&mut shared, "X-Forwarded-For: 203.0.113.1\r\n").await, TOO_MANY);
    let mut rest = Vec::new();
    while !rest.ends_with(b"too many connections\n") {
        rest.push(soon(shared.read_u8()).await.unwrap());
    }
    assert_eq!(upgrade(&mut shared, "X-Forwarded-For: 203.0.113.2\r\n").await, OPEN);
}

/// A header of version 2 for a client of IPv4.
fn v2(client: [u8; 4]) -> Vec<u8> {
    let tail = [203, 0, 113, 200, 0x12, 0x34, 1, 187];
    [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", &client[..], &tail].concat()
}

#[tokio::test]
async fn behind_the_proxy_protocol_the_limit_is_per_client_and_headers_say_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = behind(dir.path(), "127.0.0.1/32", SaidBy::ProxyProtocol, None).await;
    let v1 = |client: &str| format!("PROXY TCP4 {client} 203.0.113.200 4660 443\r\n").into_bytes();
    let mut held = Vec::new();
    for (header, expected) in [
        (v1("203.0.113.1"), OPEN),
        (v2([203, 0, 113, 2]), OPEN),
        (v2([203, 0, 113, 1]), TOO_MANY),
        (v1("203.0.113.2"), TOO_MANY),
        (b"PROXY TCP6 2001:db8::1 2001:db8::2 4660 443\r\n".to_vec(), OPEN),
        (b"PROXY TCP6 ::ffff:203.0.113.1 ::1 4660 443\r\n".to_vec(), TOO_MANY),
        // The proxy's own, and it cannot lend itself another address either.
        (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec(), OPEN),
        (b"PROXY UNKNOWN\r\n".to_vec(), TOO_MANY),
    ] {
        let mut io = from("127.0.0.1", &server).await;
        io.write_all(&header).await.unwrap();
        let status = upgrade(&mut io, "X-Forwarded-For: 198.51.100.1\r\n").await;
        assert_eq!(status, expected, "{:?}", String::from_utf8_lossy(&header));
        held.push(io);
    }
}

#[tokio::test]
async fn who_does_not_speak_the_proxy_protocol_or_is_not_trusted_is_turned_away() {
    let dir = tempfile::tempdir().unwrap();
    let server = behind(dir.path(), "127.0.0.1/32", SaidBy::ProxyProtocol, None).await;
    let get = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    let cases: [(&str, Vec<u8>); 5] = [
        ("127.0.0.1", get.to_vec()),
        ("127.0.0.1", b"PROXY TCP4 nobody 203.0.113.200 1 2\r\n".to_vec()),
        ("127.0.0.1", [&b"PROXY UNKNOWN "[..], &[b'x'; 200]].concat()),
        ("127.0.0.1", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff".to_vec()),
        ("127.0.0.2", [&v2([203, 0, 113, 1])[..], get].concat()),
    ];
    for (source, bytes) in cases {
        let mut io = from(source, &server).await;
        // It may be gone before all is written.
        let _gone = io.write_all(&bytes).await;
        let mut answer = Vec::new();
        let _reset = soon(io.read_to_end(&mut answer)).await;
        assert!(answer.is_empty(), "{:?}", String::from_utf8_lossy(&answer));
    }
    // Nobody was harmed by that.
    let mut io = from("127.0.0.1", &server).await;
    io.write_all(&v2([203, 0, 113, 1])).await.unwrap();
    assert_eq!(upgrade(&mut io, "").await, OPEN);
}

#[tokio::test]
async fn the_proxy_speaks_before_tls_and_in_as_many_pieces_as_it_likes() {
    let dir = tempfile::tempdir().unwrap();
    let files = new_pair(dir.path());
    let tls = Tls::presenting(tls::Certificate::load(&files).unwrap()).unwrap();
    let server = behind(&dir.path().join("data"), "127.0.0.1/32", SaidBy::ProxyProtocol, Some(tls)).await;
    let connector = connector(&files.cert);
    let mut held = Vec::new();
    for (client, expected) in [([203, 0, 113, 1], OPEN), ([203, 0, 113, 2], OPEN), ([203, 0, 113, 1], TOO_MANY)] {
        let mut tcp = from("127.0.0.1", &server).await;
        tcp.set_nodelay(true).unwrap();
        for byte in v2(client) {
            tcp.write_all(&[byte]).await.unwrap();
        }
        let name = ServerName::try_from("localhost").unwrap();
        let mut io = soon(connector.connect(name, tcp)).await.unwrap();
        assert_eq!(upgrade(&mut io, "").await, expected);
        held.push(io);
    }
}

/// The real binary. Killed when the test is over.
struct Binary(Child);

impl Drop for Binary {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

/// The first line of `from` that holds one of these; what comes later finds a reader, too.
fn says(from: impl Read + Send + 'static, what: &'static str) -> tokio::sync::oneshot::Receiver<String> {
    let (said, heard) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut lines = BufReader::new(from).lines().map_while(Result::ok);
        let _over = lines.by_ref().find(|line| line.contains(what)).map(|line| said.send(line));
        lines.count()
    });
    heard
}

#[tokio::test]
async fn the_real_server_notices_new_files_while_a_device_stays_connected_behind_a_proxy() {
    let dir = tempfile::tempdir().unwrap();
    let CertFiles { cert, key } = new_pair(dir.path());
    let old = tls::Certificate::load(&CertFiles { cert: cert.clone(), key: key.clone() }).unwrap();
    let config = dir.path().join("heliostat.toml");
    let data = dir.path().join("data");
    let text = format!(
        "data_dir = {data:?}\nadmin.listen = '127.0.0.1:0'\n[listen]\naddress = '127.0.0.1:0'\ncert = {cert:?}\nkey = \
         {key:?}\ntrusted_proxies = ['127.0.0.1']\nproxy_protocol = true\n[admission]\nmax_connections_per_address = 1\n"
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
    command.args(["serve", "--config"]).arg(&config).env_remove("HELIOSTAT_LOG");
    let mut binary = Binary(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let listening = says(binary.0.stdout.take().unwrap(), "listening on ");
    let replaced = says(binary.0.stderr.take().unwrap(), "a new certificate is presented");
    let line = soon(listening).await.unwrap();
    let address: SocketAddr = line.rsplit("listening on ").next().unwrap().trim_end_matches(')').parse().unwrap();

    let connects = async |cert: &Path, client: [u8; 4]| {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tcp.write_all(&v2(client)).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        soon(connector(cert).connect(name, tcp)).await.unwrap()
    };
    let mut device = connects(&cert, [203, 0, 113, 1]).await;
    assert_eq!(upgrade(&mut device, "").await, OPEN);
    new_pair(dir.path());
    let line = soon(replaced).await.unwrap();
    assert!(!line.contains(&old.identity().pin), "{line}");

    // It is counted still, as who it is; somebody else comes in by the new certificate.
    assert_eq!(upgrade(&mut connects(&cert, [203, 0, 113, 1]).await, "").await, TOO_MANY);
    assert_eq!(upgrade(&mut connects(&cert, [203, 0, 113, 2]).await, "").await, OPEN);
}
