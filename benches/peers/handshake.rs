//! Full TLS 1.3 handshakes against a program that does nothing else, and with WebSocket and the proof of the key behind them.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use heliostat::client::{Device, DeviceConfig, GroupKey, Mediator, Trust};
use heliostat::net::development::{self, Development};
use heliostat::net::tls::{self, CertFiles};
use heliostat::time::Clock;
use heliostat::wire::d2m::{CloseCode, DeviceId, ServerGroup};
use rustls::RootCertStore;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::Plan;
use super::process::Program;
use super::report::{Aim, Comparison, Target};

/// Who shake hands at the same time.
const CLIENTS: usize = 32;

pub async fn compare(plan: Plan) -> Comparison {
    let conditions = format!(
        "{CLIENTS} clients, one full TLS 1.3 handshake after the other (ECDSA P-256, X25519, no resumption); heliostat: then \
         WebSocket, proof of the key, and a new group on disk; the clients' own part of all that is on the same cores"
    );
    let mut comparison = Comparison::new("handshake", conditions);
    let dir = tempfile::tempdir_in("target").unwrap();
    let heliostat = Program::heliostat_with(dir.path(), "listen.address = '127.0.0.1:0'\n", "wss://");
    let made = development::development(&dir.path().join("data/tls"), Clock::system().now().wall_ms).unwrap();
    let bare = Program::own("tls", &dir.path().join("data/tls"));
    let url = format!("wss://localhost:{}", heliostat.address.port());
    let (trust, connector) = (Trust::CaPem(std::fs::read(&made.ca).unwrap()), connector(&made));
    for _ in 0..plan.rounds {
        let (url, trust) = (url.clone(), trust.clone());
        let whole = run(&heliostat, plan.lasts, move || device(url.clone(), trust.clone())).await;
        let (address, connector) = (bare.address, connector.clone());
        let tls = run(&bare, plan.lasts, move || shake_hands(address, connector.clone())).await;
        for (name, (rate, cpu_us)) in [("heliostat", whole), ("tokio-rustls", tls)] {
            comparison.note(name, "handshakes", "/s", rate);
            comparison.note(name, "server CPU per handshake", "us", cpu_us);
        }
    }
    comparison.aim(Target { figure: "handshakes", of: "heliostat", to: "tokio-rustls", aim: Aim::AtLeast(0.8) });
    comparison
}

/// The same certificate as the mediator's, and not a byte beyond the handshake.
pub async fn serve(dir: &Path) {
    let files = CertFiles { cert: dir.join("dev-cert.pem"), key: dir.join("dev-key.pem") };
    let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(tls::read_certs(&files.cert).unwrap(), key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("at://{}", listener.local_addr().unwrap());
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let acceptor = acceptor.clone();
        tokio::spawn(async move { acceptor.accept(tcp).await?.read_u8().await });
    }
}

async fn run<F: Future<Output = ()> + Send>(
    program: &Program,
    lasts: Duration,
    one: impl Fn() -> F + Clone + Send + 'static,
) -> (f64, f64) {
    let (clock, done) = (Clock::system(), Arc::new(AtomicU64::new(0)));
    let (begins, ends) = (lasts / 5, lasts / 5 + lasts);
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (one, done) = (one.clone(), Arc::clone(&done));
        clients.spawn(async move {
            while clock.now().monotonic < ends {
                one().await;
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    clock.sleep_until(Some(begins)).await;
    let (cpu, before) = (program.cpu(), done.load(Ordering::Relaxed));
    clock.sleep_until(Some(ends)).await;
    let (cpu, handshakes) = (program.cpu().saturating_sub(cpu), done.load(Ordering::Relaxed) - before);
    clients.join_all().await;
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let handshakes = handshakes as f64;
    (handshakes / lasts.as_secs_f64(), cpu.as_secs_f64() * 1e6 / handshakes)
}

async fn device(url: String, trust: Trust) {
    // One of its own, or what the last handshake left would be resumed.
    let mediator = Mediator::new(&url, &trust).unwrap();
    let config = DeviceConfig::new(GroupKey::generate(), ServerGroup::new("a0").unwrap(), DeviceId(1));
    let device = Device::connect(&mediator, &config).await.unwrap();
    device.close(CloseCode::Normal).await;
}

fn connector(made: &Development) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(tls::read_certs(&made.ca).unwrap());
    let mut config = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    TlsConnector::from(Arc::new(config))
}

async fn shake_hands(address: SocketAddr, connector: TlsConnector) {
    let tcp = TcpStream::connect(address).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    drop(connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap());
}
