//! The Skynet server as people run it: the real binary with its configuration, and a device group whose devices each hold a
//! session through a mediator.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may panic"
)]
#![allow(dead_code, unreachable_pub, missing_docs, missing_debug_implementations, reason = "a world has more in it")]

mod common;
#[path = "skynet/world.rs"]
mod world;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use bytes::Bytes;
use common::Family;
use heliostat::chat::skynet::store::Place;
use heliostat::chat::skynet::wire::{
    Body, ChannelId, CreateAccountStatus, CreateSessionStatus, FileId, FromClient, HEADER, Kind, MessageFlags,
    RestoreSessionStatus, ToClient, read_header,
};
use heliostat::client::{Device, Mediator, Trust};
use heliostat::net::listen::Door;
use heliostat::net::tls::{self, read_certs};
use heliostat::upstream::Framing;
use heliostat::wire::d2m::{FromDevice, PAYLOAD_MAX, ServerGroup, ToDevice};
use http_body_util::Full;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::client::TlsStream;
use world::{Client, Ground, PLATFORM, Postgres, World, soon};

const ALICE: &str = "alice@example.com";
const BOB: &str = "bob@example.com";
const PATIENCE: Duration = Duration::from_secs(60);

/// The binary with a Skynet server. Killed when it is dropped.
struct Server {
    child: Child,
    mediator: String,
    tls: SocketAddr,
    plain: SocketAddr,
    web: SocketAddr,
    /// What it logs.
    log: Receiver<String>,
}

impl Server {
    fn start(data: &Path) -> Self {
        Self::start_with(data, "")
    }

    /// With more lines in its configuration.
    fn start_with(data: &Path, more: &str) -> Self {
        let config = data.with_extension("toml");
        std::fs::write(&config, more).unwrap();
        let any = "127.0.0.1:0";
        let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
        command.args(["serve", "--data", data.to_str().unwrap(), "--listen", any, "--admin-listen", any]);
        command.args(["--csp-listen", any, "--skynet-listen", any]).arg("--config").arg(config);
        let mut child = command
            .env("HELIOSTAT_LOG", "error,heliostat::chat::skynet=info")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let (logged, log) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).all(|line| logged.send(line).is_ok()));
        let (mut mediator, mut skynet, mut web) = (None, None, None);
        for line in said.by_ref() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["devices", url, ..] => mediator = Some(url.to_owned()),
                ["Skynet", tls, "(TLS;", "without", "TLS", "on", plain] => {
                    skynet = Some((tls.parse().unwrap(), plain.trim_end_matches(')').parse().unwrap()));
                }
                [pages, "(where", ..] => web = pages.split([':', '/']).nth(4).map(|port| port.parse().unwrap()),
                ["data", ..] => break,
                _ => {}
            }
        }
        std::thread::spawn(move || said.count());
        let (mediator, (tls, plain)) = (mediator.expect("it is ready"), skynet.expect("it has a Skynet server"));
        let web = SocketAddr::from(([127, 0, 0, 1], web.expect("it has a web door")));
        Self { child, mediator, tls, plain, web, log }
    }

    /// A client of TLS that knows the certificates in a file.
    async fn secured(&self, ca: &Path) -> Client {
        Client::over(secured(self.tls, ca).await)
    }

    /// The next link that would have been mailed.
    fn link(&self) -> String {
        loop {
            let line = self.log.recv_timeout(PATIENCE).expect("a mail");
            if let Some((_, link)) = line.split_once("https://") {
                return format!("https://{}", link.split('"').next().unwrap().trim());
            }
        }
    }

    /// Waits for a line in the log.
    fn logs(&self, what: &str) {
        while !self.log.recv_timeout(PATIENCE).expect(what).contains(what) {}
    }

    fn stop(mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", "TERM", &pid]).status().unwrap().success());
        assert!(self.child.wait().unwrap().success());
    }
}

async fn secured(address: SocketAddr, ca: &Path) -> TlsStream<TcpStream> {
    secured_over(TcpStream::connect(address).await.unwrap(), ca).await.unwrap()
}

async fn secured_over(tcp: TcpStream, ca: &Path) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(read_certs(ca).unwrap());
    let config = rustls::ClientConfig::builder_with_provider(tls::provider());
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    soon(connector.connect("localhost".try_into().unwrap(), tcp)).await
}

/// What a page answers: its first line, and everything.
async fn visit(method: &str, link: &str, ca: &Path) -> (u16, String) {
    let (authority, path) = link.strip_prefix("https://localhost:").unwrap().split_once('/').unwrap();
    let mut page = secured(([127, 0, 0, 1], authority.parse().unwrap()).into(), ca).await;
    let request = format!("{method} /{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    soon(page.write_all(request.as_bytes())).await.unwrap();
    let mut answer = String::new();
    soon(page.read_to_string(&mut answer)).await.unwrap();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

/// What a device says to the Skynet server, and what it hears, with nothing in between.
async fn through(mediator: &Mediator, group: &str, device: u64) -> Device {
    let family = Family::new(mediator.clone());
    let mut config = family.config(device);
    config.server_group = ServerGroup::new(group).unwrap();
    family.connects(&config).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_binary_serves_it_with_its_certificate_and_to_its_mediator_and_keeps_what_it_answered() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::start(&data);
    let ca = data.join("tls").join("dev-ca.pem");

    let mut secured = server.secured(&ca).await;
    secured.greet().await;
    assert_eq!(secured.register(ALICE, "pw").await, CreateAccountStatus::SUCCESS);

    let mut plain = Client::over(TcpStream::connect(server.plain).await.unwrap());
    plain.greet().await;
    assert_eq!(plain.login(ALICE, "pw").await, CreateSessionStatus::UNCONFIRMED_ACCOUNT);

    let mediator = Mediator::new(&server.mediator, &Trust::CaPem(std::fs::read(&ca).unwrap())).unwrap();
    let mut device = through(&mediator, "skynet", 1).await;
    let mut client = Client::over(device.proxy_stream().unwrap());
    client.greet().await;
    assert_eq!(client.login(ALICE, "no").await, CreateSessionStatus::INVALID_CREDENTIALS);

    server.stop();
    assert!(secured.find_end().await && plain.find_end().await, "they are closed with the server");
    // From now on behind a proxy, which says where its connections come from, and nobody else gets in there.
    let proxied = "listen.trusted_proxies = ['127.0.0.1']\nchat.skynet.proxy_protocol = true\n";
    let again = Server::start_with(&data, proxied);
    let tcp = async |address| TcpStream::connect(address).await.unwrap();
    assert!(secured_over(tcp(again.tls).await, &ca).await.is_err());
    let mut from_proxy = tcp(again.tls).await;
    from_proxy.write_all(b"PROXY TCP4 192.0.2.7 192.0.2.1 50000 32761\r\n").await.unwrap();
    let mut client = Client::over(secured_over(from_proxy, &ca).await.unwrap());
    client.greet().await;
    assert_eq!(client.register(ALICE, "pw").await, CreateAccountStatus::MAIL_RESENT);
    let mut plain = Client::over(tcp(again.plain).await);
    plain.greet().await;
    again.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_the_link_in_the_mail_can_log_in() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::start(&data);
    let ca = &data.join("tls").join("dev-ca.pem");
    let mut client = server.secured(ca).await;
    client.greet().await;
    assert_eq!(client.register(ALICE, "pw").await, CreateAccountStatus::SUCCESS);
    let link = server.link();

    // What looks at the link changes nothing.
    for _ in 0..2 {
        let (status, page) = visit("GET", &link, ca).await;
        assert_eq!(status, 200);
        assert!(page.contains(ALICE) && page.contains("<form method=\"post\">") && page.contains("no-store"), "{page}");
    }
    assert_eq!(client.login(ALICE, "pw").await, CreateSessionStatus::UNCONFIRMED_ACCOUNT);
    let (status, page) = visit("POST", &link, ca).await;
    assert!(status == 200 && page.contains(ALICE) && !page.contains("<form"), "{page}");
    assert_eq!(client.login(ALICE, "pw").await, CreateSessionStatus::SUCCESS);
    client.first_sync().await;

    let (status, page) = visit("GET", &link, ca).await;
    assert!(status == 200 && page.contains("already") && !page.contains("<form"), "{page}");
    for unknown in [link.to_uppercase().replace("HTTPS://LOCALHOST", "https://localhost"), format!("{link}%00")] {
        let wrong = unknown.replace("/CONFIRM/", "/confirm/");
        assert_eq!(visit("POST", &wrong, ca).await.0, 404, "{wrong}");
    }

    // The same for programs, with the next account.
    let mut other = server.secured(ca).await;
    other.greet().await;
    assert_eq!(other.register(BOB, "pw").await, CreateAccountStatus::SUCCESS);
    let api = server.link().replace("/confirm/", "/api/confirm/");
    assert_eq!(visit("GET", &api, ca).await.0, 405);
    let (status, answer) = visit("POST", &api, ca).await;
    let json: serde_json::Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert!(status == 200 && json["content"].as_str().unwrap().contains(BOB), "{answer}");
    assert!(json["title"].is_string() && json["header"].is_string() && json.as_object().unwrap().len() == 3);
    assert_eq!(other.login(BOB, "pw").await, CreateSessionStatus::SUCCESS);
    server.stop();
}

/// Somebody who logged in at the binary, with an account of this name that is made if there is none.
async fn somebody(server: &Server, ca: &Path, name: &str) -> Client {
    let mut client = server.secured(ca).await;
    client.greet().await;
    if client.register(name, name).await == CreateAccountStatus::SUCCESS {
        assert_eq!(visit("POST", &server.link(), ca).await.0, 200);
    }
    assert_eq!(client.login(name, name).await, CreateSessionStatus::SUCCESS);
    client.first_sync().await;
    client
}

/// Says one thing after the other until the server is gone. Returns what was taken.
async fn talks(mut client: Client, channel: ChannelId, taken: watch::Sender<usize>) -> (Client, Vec<i64>) {
    let mut ids = Vec::new();
    while let Some(id) = client.may_say(channel, world::chat("x")).await {
        ids.push(id.0);
        taken.send_modify(|count| *count += 1);
    }
    (client, ids)
}

/// While several talk and one brings a file, the server is killed, and started again with the same data.
async fn nothing_that_was_answered_is_lost(config: &str) {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut server = Server::start_with(&data, config);
    let ca = &data.join("tls").join("dev-ca.pem");
    let (mut alice, mut bob) = (somebody(&server, ca, ALICE).await, somebody(&server, ca, BOB).await);
    let channel = world::friends(&mut alice, &mut bob).await;
    let known = [channel, alice.loopback, bob.loopback, alice.account_data, bob.account_data];
    let mut devices = vec![alice, bob, somebody(&server, ca, ALICE).await, somebody(&server, ca, BOB).await];
    let (mut taken, mut heard) = (BTreeSet::new(), vec![Vec::new(); devices.len()]);

    // A file of which half has come when the server is killed.
    let bytes: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let ask = async |server: &Server, method: &str, location: &str, headers: &[(&str, &str)], body: &[u8]| {
        let path = location.splitn(4, '/').last().unwrap();
        let body = Full::new(Bytes::copy_from_slice(body));
        world::asks(secured(server.web, ca).await, method, &format!("/{path}"), headers, body).await
    };
    let begun = ask(&server, "PUT", &format!("https://localhost{}", devices[0].file_api("upload")), &[], b"").await;
    assert_eq!(begun.status(), 307);
    let header = |answer: &http::Response<Bytes>, name: &str| answer.headers()[name].to_str().unwrap().to_owned();
    let (location, file) = (header(&begun, "location"), FileId(header(&begun, "x-skynet-fileid").parse().unwrap()));
    let path = location.splitn(4, '/').last().unwrap();
    let mut bringing = secured(server.web, ca).await;
    let head = format!("PUT /{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", bytes.len());
    soon(bringing.write_all(&[head.as_bytes(), &bytes[..200_000]].concat())).await.unwrap();
    soon(bringing.flush()).await.unwrap();
    let mut offset = 0;
    world::until(async || {
        offset = header(&ask(&server, "HEAD", &location, &[], b"").await, "upload-offset").parse().unwrap();
        offset != 0
    })
    .await;

    for round in 1..=3 {
        let (count, mut counted) = watch::channel(0);
        let talking: Vec<_> = devices.drain(..).map(|it| tokio::spawn(talks(it, channel, count.clone()))).collect();
        soon(counted.wait_for(|count| *count >= 25 * round)).await.unwrap();
        server.child.kill().unwrap();
        let mut gone = Vec::new();
        for (task, heard) in talking.into_iter().zip(&mut heard) {
            let (mut client, ids) = soon(task).await.unwrap();
            heard.extend(client.seen.drain(..).filter_map(said).chain(ids.iter().copied()));
            taken.extend(ids);
            gone.push(client);
        }
        drop(server);
        server = Server::start_with(&data, config);
        for (old, heard) in gone.iter().zip(&mut heard) {
            let mut client = server.secured(ca).await;
            client.greet().await;
            assert_eq!(client.restore(old, old.last, &known).await, RestoreSessionStatus::SUCCESS);
            client.last = old.last;
            let sync = client.sync().await;
            heard.extend(sync.messages.into_iter().map(ToClient::Message).filter_map(said));
            devices.push(client);
        }
    }
    heard.iter_mut().for_each(|heard| heard.sort_unstable());
    for of_device in &heard {
        assert!(of_device.windows(2).all(|two| two[0] < two[1]), "nothing comes twice: {of_device:?}");
        assert_eq!(of_device, &heard[0], "all know the same");
    }
    let everything: BTreeSet<_> = heard[0].iter().copied().collect();
    assert!(everything.is_superset(&taken), "lost: {:?}", taken.difference(&everything));
    // What was on its way when the server was killed may have been kept: one for each device and time.
    assert!(everything.len() - taken.len() <= 3 * devices.len(), "{} and {}", everything.len(), taken.len());

    let there: usize = header(&ask(&server, "HEAD", &location, &[], b"").await, "upload-offset").parse().unwrap();
    assert!((offset..=200_000).contains(&there), "{there} after {offset}");
    let range = format!("bytes {there}-{}/{}", bytes.len() - 1, bytes.len());
    let answer = ask(&server, "PATCH", &location, &[("Content-Range", &range)], &bytes[there..]).await;
    assert_eq!(answer.status(), 204, "{answer:?}");
    let flags = MessageFlags::MEDIA.and(MessageFlags::EXTERNAL_FILE);
    let photo = Body { file, ..Body::new(Kind::ChatMessage, flags, vec![4; 64]) };
    assert!(devices[0].say(channel, photo).await.is_ok());
    let api = format!("https://localhost{}", devices[1].file_api(&file.0.to_string()));
    let found = header(&ask(&server, "GET", &api, &[], b"").await, "location");
    assert_eq!(ask(&server, "GET", &found, &[], b"").await.into_body(), bytes);
    server.stop();
}

/// The number of a chat message.
fn said(packet: ToClient) -> Option<i64> {
    match packet {
        ToClient::Message(message) if message.body.kind == Kind::ChatMessage => Some(message.id.0),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_killed_in_the_middle_has_lost_nothing_that_was_answered() {
    nothing_that_was_answered_is_lost("").await;
    let Some(postgres) = Postgres::start() else {
        assert!(std::env::var_os("HELIOSTAT_REQUIRE_POSTGRES").is_none(), "PostgreSQL is not installed");
        return println!("NOT RUN on PostgreSQL: it is not installed");
    };
    let Place::Postgres(url) = postgres.database("killed") else { unreachable!() };
    nothing_that_was_answered_is_lost(&format!("chat.skynet.database = '{url}'\n")).await;
}

/// What a mail server was told: to whom, and what.
#[derive(Debug)]
struct Taken {
    to: String,
    mail: Vec<String>,
}

/// Takes mails, as a mail server does. The first recipients are given `answers`, all others welcome.
async fn mail_server(listener: TcpListener, mut answers: Vec<&'static str>, taken: mpsc::UnboundedSender<Taken>) {
    while let Ok((tcp, _)) = listener.accept().await {
        let (read, mut write) = tcp.into_split();
        let mut lines = tokio::io::BufReader::new(read).lines();
        write.write_all(b"220 mail.example ready\r\n").await.unwrap();
        let mut to = String::new();
        while let Ok(Some(line)) = lines.next_line().await {
            let said = if line.starts_with("RCPT TO:") {
                to = line.trim_start_matches("RCPT TO:").to_owned();
                if answers.is_empty() { "250 fine" } else { answers.remove(0) }
            } else if line == "DATA" {
                write.write_all(b"354 go on\r\n").await.unwrap();
                let mut mail = Vec::new();
                while let Some(line) = lines.next_line().await.unwrap().filter(|line| line != ".") {
                    mail.push(line);
                }
                taken.send(Taken { to: to.clone(), mail }).unwrap();
                "250 taken"
            } else if line == "QUIT" {
                "221 bye"
            } else {
                "250 fine"
            };
            if write.write_all(format!("{said}\r\n").as_bytes()).await.is_err() {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mails_are_sent_and_tried_again_unless_refused_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = format!(
        "chat.skynet = {{ smtp = 'smtp://{}', mail_from = 'skynet@example.org' }}\n",
        listener.local_addr().unwrap()
    );
    let (taken, mut mails) = mpsc::unbounded_channel();
    // The first is refused for good, the second for now, and the third is the second again.
    tokio::spawn(mail_server(listener, vec!["550 nobody", "451 later"], taken));
    let data = dir.path().join("data");
    let server = Server::start_with(&data, &config);
    let ca = &data.join("tls").join("dev-ca.pem");
    let mut client = server.secured(ca).await;
    client.greet().await;
    assert_eq!(client.register(BOB, "pw").await, CreateAccountStatus::SUCCESS);
    server.logs("a mail is dropped");
    assert_eq!(client.register(ALICE, "pw").await, CreateAccountStatus::SUCCESS);
    let Taken { to, mail } = soon(mails.recv()).await.unwrap();
    assert_eq!(to, format!("<{ALICE}>"));
    for header in ["From: skynet@example.org", "To: alice@example.com", "Subject: Confirm your address"] {
        assert!(mail.iter().any(|line| line == header), "{mail:#?}");
    }
    let link = mail.iter().find(|line| line.starts_with("https://localhost:")).expect("a link");
    assert_eq!(visit("POST", link, ca).await.0, 200);
    assert_eq!(client.login(ALICE, "pw").await, CreateSessionStatus::SUCCESS);
    server.stop();
    assert!(mails.try_recv().is_err(), "each mail is taken once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mails_are_files_for_who_develops() {
    let dir = tempfile::tempdir().unwrap();
    let (data, mails) = (dir.path().join("data"), dir.path().join("mails"));
    let config = format!("chat.skynet = {{ mail_dir = {mails:?}, mail_from = 'skynet@example.org' }}\n");
    let server = Server::start_with(&data, &config);
    let mut client = server.secured(&data.join("tls").join("dev-ca.pem")).await;
    client.greet().await;
    assert_eq!(client.register(ALICE, "pw").await, CreateAccountStatus::SUCCESS);
    server.logs("a mail is written");
    let mail = std::fs::read_dir(&mails).unwrap().next().unwrap().unwrap().path();
    let text = std::fs::read_to_string(mail).unwrap();
    assert!(text.contains("To: alice@example.com") && text.contains("https://localhost:"), "{text}");
    server.stop();
}

#[test]
fn the_password_of_the_database_is_shown_to_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("heliostat.toml");
    std::fs::write(&file, "chat.skynet.database = 'postgres://heliostat:hunter2@db.example/skynet'\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
    let shown = command.args(["config", "show", "--config"]).arg(&file).output().unwrap();
    assert!(shown.status.success(), "{shown:?}");
    let text = String::from_utf8(shown.stdout).unwrap() + &String::from_utf8(shown.stderr).unwrap();
    assert!(text.contains("[chat.skynet]") && !text.contains("hunter2"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_device_of_a_group_holds_a_session_through_the_mediator() {
    let dir = tempfile::tempdir().unwrap();
    let mut ground = Ground::new(&dir.path().join("chat"), Place::Sqlite);
    // No TLS between a mediator and its chat server.
    ground.door = Door::default();
    let world = World::start(&ground).await;
    let setup = common::Setup { upstream: Some(world.address()), framing: Framing::Skynet, ..common::Setup::default() };
    let server = common::Server::start(&dir.path().join("mediator"), setup).await;
    let family = Family::new(server.url());

    // One account, three devices, and somebody who is connected without a mediator.
    let mut bob = world.account(BOB).await;
    let mut first = family.joins(1).await;
    let mut alice = Client::over(first.proxy_stream().unwrap());
    alice.greet().await;
    assert_eq!(alice.register(ALICE, ALICE).await, CreateAccountStatus::SUCCESS);
    world.confirm(ALICE).await;
    assert_eq!(alice.login(ALICE, ALICE).await, CreateSessionStatus::SUCCESS);
    alice.first_sync().await;
    let mut second = family.joins(2).await;
    let mut other = Client::over(second.proxy_stream().unwrap());
    other.greet().await;
    assert_eq!(other.login(ALICE, ALICE).await, CreateSessionStatus::SUCCESS);
    other.first_sync().await;
    assert_ne!(alice.session, other.session);

    let channel = world.friends(&mut alice, &mut bob).await;
    // The longest content there is fits no container.
    let long = Body::new(Kind::ChatMessage, MessageFlags::NONE, vec![7; usize::from(u16::MAX)]);
    let id = alice.say(channel, long.clone()).await.unwrap();
    for client in [&mut bob, &mut other] {
        let heard = client.find_message(Kind::ChatMessage).await;
        assert_eq!((heard.id, &heard.body.content), (id, &long.content));
    }

    // The third looks at what comes, payload by payload.
    let mut third = family.joins(3).await;
    let name = ALICE.to_owned();
    let hello = FromClient::ConnectionHandshake { protocol_version: 3, application: PLATFORM.into(), version_code: 60 };
    let login = FromClient::CreateSession { name, key_hash: world::key_hash(ALICE), push_token: String::new() };
    let both = [hello.encode().unwrap(), login.encode().unwrap()].concat();
    third.send(&FromDevice::Proxy(both.into())).await.unwrap();
    let (mut packets, mut pieces) = (Vec::new(), Vec::new());
    while !matches!(packets.last(), Some(ToClient::SyncFinished {})) {
        let whole = packet(&mut third).await;
        pieces.push(whole.iter().map(Bytes::len).collect::<Vec<_>>());
        let whole = whole.concat();
        let (header, payload) = whole.split_first_chunk::<HEADER>().unwrap();
        packets.push(ToClient::decode(read_header(*header).0, payload).unwrap());
    }
    assert!(matches!(packets[..2], [ToClient::ConnectionResponse { .. }, ToClient::CreateSessionResponse { .. }]));
    let split: Vec<_> = pieces.iter().filter(|lengths| lengths.len() > 1).collect();
    assert_eq!(split, [&[PAYLOAD_MAX, HEADER + 46 + usize::from(u16::MAX) - PAYLOAD_MAX]]);

    // The device that leaves takes its session's connection with it, and no other.
    drop((alice, first));
    assert!(other.say(channel, world::chat("still here")).await.is_ok());
    assert_eq!(bob.find_message(Kind::ChatMessage).await.body, world::chat("still here"));
    server.stop().await;
    assert!(other.find_end().await);
    world.stop().await;
}

/// The payloads that one packet comes in.
async fn packet(device: &mut Device) -> Vec<Bytes> {
    let mut pieces: Vec<Bytes> = Vec::new();
    loop {
        let next = soon(device.wait_for(|payload| matches!(payload, ToDevice::Proxy(_)))).await.unwrap();
        let ToDevice::Proxy(piece) = next else { unreachable!() };
        pieces.push(piece);
        let came: usize = pieces.iter().map(Bytes::len).sum();
        let announced = HEADER + read_header(*pieces[0].first_chunk().unwrap()).1;
        assert!(came <= announced, "no payload holds parts of two packets");
        if came == announced {
            return pieces;
        }
    }
}
