//! What an operator sees of the real binary: numbers that add up, and a log that betrays nobody.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may panic"
)]

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use common::{Family, plain, reflected, soon};
use heliostat::chat::csp::wire::{CspDeviceId, Identity, Message, MessageFlags, MessageId};
use heliostat::client::csp::{CspClient, Draft, Event, Login};
use heliostat::client::{Begun, Device};
use heliostat::crypto::Secret;
use heliostat::crypto::boxes;
use heliostat::wire::d2m::{CloseCode, FromDevice, ReflectFlags, ReflectedId, ToDevice};

fn heliostat(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
    command.args(args).env_remove("HELIOSTAT_CONFIG");
    command
}

/// A development box without TLS. Killed when it is dropped.
struct Running {
    child: Child,
    banner: String,
}

impl Running {
    fn start(data: &Path, log: &str, log_to: Stdio) -> Self {
        let any = "127.0.0.1:0";
        let data = data.to_str().unwrap();
        let args = ["serve", "--plain", "--data", data, "--listen", any, "--admin-listen", any, "--csp-listen", any];
        let command = &mut heliostat(&args);
        let mut child = command.env("HELIOSTAT_LOG", log).stdout(Stdio::piped()).stderr(log_to).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut banner = String::new();
        while !banner.contains("durability") {
            match lines.next() {
                Some(line) => banner += &(line.unwrap() + "\n"),
                None => panic!("the server ended: {:?}\n{banner}", child.wait().unwrap()),
            }
        }
        std::thread::spawn(move || lines.count());
        Self { child, banner }
    }

    fn address(&self, label: &str) -> SocketAddr {
        let line = self.banner.lines().find(|line| line.trim_start().starts_with(label)).unwrap();
        let is_address = |word: &str| word.trim_matches(|c: char| !c.is_ascii_alphanumeric()).parse().ok();
        line.split([' ', '/']).find_map(is_address).unwrap_or_else(|| panic!("no address in {line:?}"))
    }

    fn chat_key(&self) -> boxes::Public {
        let (_, key) = self.banner.split_once("public key ").unwrap();
        hex::decode(&key[..64]).unwrap().try_into().unwrap()
    }

    fn metrics(&self) -> Metrics {
        let (head, body) = get(self.address("admin"), "/metrics");
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/plain; version=0.0.4"), "{head}");
        Metrics::parse(&body)
    }

    /// The first scrape of which this is true.
    fn metrics_when(&self, happens: impl Fn(&Metrics) -> bool) -> Metrics {
        let clock = heliostat::time::Clock::system();
        loop {
            let metrics = self.metrics();
            if happens(&metrics) {
                return metrics;
            }
            assert!(clock.now().monotonic < common::PATIENCE, "not in time: {:#?}", metrics.0);
            std::thread::yield_now();
        }
    }

    fn stop(mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", "TERM", &pid]).status().unwrap().success());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

/// Head and body of an answer.
fn get(address: SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// Series and their values.
struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let series = |line: &str| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        };
        Self(lines.map(series).collect())
    }

    /// One series, named as in the text.
    fn one(&self, series: &str) -> u64 {
        let value = self.0.get(series).unwrap_or_else(|| panic!("there is no {series}"));
        assert!(*value >= 0.0 && value.fract() == 0.0, "{series} is {value}");
        #[expect(clippy::cast_possible_truncation, reason = "a whole number, looked at one line above")]
        let value = *value as u64;
        value
    }

    /// All series of a metric together.
    fn all(&self, name: &str) -> u64 {
        let of = |series: &&String| series.split('{').next() == Some(name);
        let series: Vec<_> = self.0.keys().filter(of).collect();
        assert!(!series.is_empty(), "there is no {name}");
        series.into_iter().map(|series| self.one(series)).sum()
    }
}

/// What must not be found in a log.
#[derive(Default)]
struct Unspeakable(Vec<(&'static str, Vec<u8>)>);

impl Unspeakable {
    fn add(&mut self, what: &'static str, bytes: &[u8]) -> Vec<u8> {
        assert!(bytes.len() >= 8, "{what} is too short to be looked for");
        self.0.push((what, bytes.to_vec()));
        bytes.to_vec()
    }

    /// What is found, in any of the ways in which programs print bytes.
    fn found_in(&self, log: &[u8]) -> Vec<(&'static str, &'static str)> {
        let upper = log.to_ascii_uppercase();
        let has = |needle: &[u8]| log.windows(needle.len()).any(|window| window == needle);
        let mut out = Vec::new();
        for (what, bytes) in &self.0 {
            for part in [&bytes[..bytes.len().min(12)], &bytes[bytes.len() - bytes.len().min(12)..]] {
                let hex = hex::encode_upper(part).into_bytes();
                let list = format!("{part:?}");
                let ways = [
                    ("as it is", has(part)),
                    ("hexadecimal", upper.windows(hex.len()).any(|window| window == hex)),
                    ("escaped", has(part.escape_ascii().to_string().as_bytes())),
                    ("as a list", has(list.trim_matches(['[', ']']).as_bytes())),
                    // Only the beginning is aligned, and only its last group may differ.
                    ("base64", has(&STANDARD.encode(part).as_bytes()[..10])),
                    ("base64url", has(&URL_SAFE_NO_PAD.encode(part).as_bytes()[..10])),
                ];
                out.extend(ways.into_iter().filter(|(_, found)| *found).map(|(way, _)| (*what, way)));
            }
        }
        out
    }
}

async fn acknowledged(device: &mut Device) -> ReflectedId {
    let payload = soon(device.wait_for(|payload| matches!(payload, ToDevice::Reflected(_)))).await.unwrap();
    let ToDevice::Reflected(message) = payload else { unreachable!() };
    soon(device.ack(message.id())).await.unwrap();
    message.id()
}

/// Something of everything: all that happens is counted, and all that is said is unspeakable.
async fn story(running: &Running, data: &Path) -> Unspeakable {
    let mut secrets = Unspeakable::default();
    let family = Family::new(plain(running.address("devices")));
    secrets.add("device group key", family.key.dgk().expose());
    secrets.add("path key", family.key.keys().path.expose());
    secrets.add("reflect key", family.key.keys().reflect.expose());
    secrets.add("device group id", family.key.device_group_id().as_bytes());
    let (phone_id, tablet_id) = (0x1f2e_3d4c_5b6a_7988_u64, 0x8172_6354_4536_2718_u64);
    for id in [phone_id, tablet_id] {
        secrets.add("device id", &id.to_be_bytes());
        secrets.add("device id", &id.to_le_bytes());
        secrets.add("device id", id.to_string().as_bytes());
    }

    let mut config = family.config(phone_id);
    config.device_info = secrets.add("device info", b"a telephone of great renown");
    let mut phone = family.connects(&config).await;
    let mut tablet = family.joins(tablet_id).await;
    soon(phone.wait_leader()).await.unwrap();

    let durable = secrets.add("durable message", &heliostat::crypto::random::bytes::<64>());
    soon(phone.reflect_and_wait(&durable, ReflectFlags::default())).await.unwrap();
    acknowledged(&mut tablet).await;
    let ephemeral = secrets.add("ephemeral message", &heliostat::crypto::random::bytes::<64>());
    soon(phone.reflect(&ephemeral, ReflectFlags { ephemeral: true })).await.unwrap();
    assert_eq!(reflected(&mut tablet).await, ephemeral);

    let shared = secrets.add("shared data", &heliostat::crypto::random::bytes::<48>());
    soon(phone.set_shared_device_data(&shared)).await.unwrap();
    let scope = secrets.add("scope", &heliostat::crypto::random::bytes::<48>());
    assert!(matches!(soon(phone.begin(&scope, 60)).await.unwrap(), Begun::Granted));
    assert!(matches!(soon(tablet.begin(&scope, 60)).await.unwrap(), Begun::Rejected(_)));
    let staged = secrets.add("staged message", &heliostat::crypto::random::bytes::<64>());
    soon(phone.reflect_and_wait(&staged, ReflectFlags::default())).await.unwrap();
    soon(phone.commit()).await.unwrap();
    acknowledged(&mut tablet).await;

    // The chat server, through the proxy and beside it.
    let account = |name: &str| {
        let key = Secret::<32>::random();
        let public = hex::encode(boxes::public(&key));
        let dir = data.to_str().unwrap();
        assert!(heliostat(&["identity", "import", name, &public, "--data", dir]).output().unwrap().status.success());
        (name.parse::<Identity>().unwrap(), key)
    };
    let (alice, bob) = (account("QWERTYU1"), account("ASDFGHJ2"));
    for (identity, key) in [&alice, &bob] {
        secrets.add("identity", identity.bytes());
        secrets.add("identity's key", key.expose());
    }
    let chat_key = running.chat_key();
    let login = Login::new(alice.0, alice.1.clone(), chat_key).device(CspDeviceId(1));
    let mut alices = soon(CspClient::login(tablet.proxy_stream().unwrap(), login)).await.unwrap();
    let draft = Draft {
        sender: alice.0,
        receiver: bob.0,
        id: MessageId(1),
        created_at_s: 0,
        flags: MessageFlags::SEND_PUSH,
        nickname: "queen of hearts and spades",
        metadata: None,
        content: b"\x01the text of a chat message\x01",
    };
    secrets.add("nickname", draft.nickname.as_bytes());
    secrets.add("chat text", b"the text of a chat message");
    let message = Message::seal(&draft, &alice.1, &boxes::public(&bob.1)).unwrap();
    soon(alices.send_message(message)).await.unwrap();
    while !matches!(soon(alices.next_event()).await.unwrap(), Event::MessageAck(_)) {}
    let tcp = soon(tokio::net::TcpStream::connect(running.address("chat server"))).await.unwrap();
    let mut bobs = soon(CspClient::login(tcp, Login::new(bob.0, bob.1.clone(), chat_key))).await.unwrap();
    let message = loop {
        if let Event::Message(message) = soon(bobs.next_event()).await.unwrap() {
            break message;
        }
    };
    soon(bobs.ack(&message)).await.unwrap();
    soon(bobs.echo(&b"echo"[..])).await.unwrap();
    while !matches!(soon(bobs.next_event()).await.unwrap(), Event::EchoResponse(_)) {}
    drop((alices, bobs));

    // Something goes wrong: a transaction without its end, a proof that proves nothing, a path that leads nowhere.
    assert!(matches!(soon(phone.begin(&scope, 60)).await.unwrap(), Begun::Granted));
    let lost = secrets.add("discarded message", &heliostat::crypto::random::bytes::<64>());
    soon(phone.reflect_and_wait(&lost, ReflectFlags::default())).await.unwrap();
    phone.abort();
    soon(tablet.wait_leader()).await.unwrap();
    soon(tablet.close(CloseCode::Normal)).await;
    let stranger = Family::new(plain(running.address("devices")));
    let mut raw = family.opens().await;
    let mut hello = stranger.hello(&mut raw, &stranger.config(1)).await;
    hello.encrypted_device_info = secrets.add("a stranger's device info", &heliostat::crypto::random::bytes::<48>());
    soon(raw.send(&FromDevice::ClientHello(Box::new(hello)))).await.unwrap();
    while soon(raw.recv()).await.is_ok() {}
    for path in ["/metrics", "/not-hexadecimal"] {
        assert!(!get(running.address("devices"), path).0.starts_with("HTTP/1.1 200"), "{path} at the public door");
    }

    let chat_secret = std::fs::read_to_string(data.join("csp-server.key")).unwrap();
    secrets.add("chat server's key", &hex::decode(chat_secret.trim()).unwrap());
    secrets
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sums_hold_that_the_metrics_promise() {
    let data = tempfile::tempdir().unwrap();
    let running = Running::start(data.path(), "warn", Stdio::inherit());
    let _secrets = story(&running, data.path()).await;
    let idle = |metrics: &Metrics| {
        let gauges = ["heliostat_connections", "heliostat_groups_awake", "heliostat_chat_connections"];
        gauges.into_iter().all(|gauge| metrics.all(gauge) == 0)
    };
    let quiet = running.metrics_when(idle);
    // Here every number is known.
    for (series, expected) in [
        ("heliostat_connections_opened_total", 3),
        ("heliostat_closes_total{code=\"none\"}", 2),
        ("heliostat_closes_total{code=\"4010\"}", 1),
        ("heliostat_endings_total{culprit=\"device\"}", 3),
        ("heliostat_handshakes_total{result=\"admitted\"}", 2),
        ("heliostat_handshakes_total{result=\"not_proved\"}", 1),
        ("heliostat_refused_total{why=\"not_here\"}", 1),
        ("heliostat_refused_total{why=\"url\"}", 1),
        ("heliostat_joined_total{slot=\"new\"}", 2),
        ("heliostat_leader_promotions_total", 2),
        ("heliostat_reflects_total{kind=\"durable\"}", 2),
        ("heliostat_reflects_total{kind=\"ephemeral\"}", 1),
        ("heliostat_reflect_bytes_total", 3 * 64),
        ("heliostat_reflect_acks_total", 3),
        ("heliostat_reflected_sent_total", 3),
        ("heliostat_reflected_acks_total", 2),
        ("heliostat_staged_discarded_total", 1),
        ("heliostat_transactions_begun_total", 2),
        ("heliostat_transactions_rejected_total", 1),
        ("heliostat_transactions_committed_total", 1),
        ("heliostat_transactions_aborted_total{why=\"holder_gone\"}", 1),
        ("heliostat_proxy_connects_total{result=\"connected\"}", 1),
        ("heliostat_store_messages_appended_total", 2),
        ("heliostat_chat_logins_total{room=\"csp\",result=\"accepted\"}", 2),
        ("heliostat_chat_messages_accepted_total{room=\"csp\"}", 1),
        ("heliostat_chat_messages_queued_total{room=\"csp\"}", 1),
        ("heliostat_chat_messages_delivered_total{room=\"csp\"}", 1),
        ("heliostat_chat_messages_discarded_total{room=\"csp\"}", 0),
    ] {
        assert_eq!(quiet.one(series), expected, "{series}");
    }

    let url = format!("ws://{}", running.address("devices"));
    let data_dir = data.path().to_str().unwrap();
    let simulate =
        ["simulate", "--url", &url, "--data", data_dir, "--groups", "4", "--devices", "3", "--messages", "20"];
    let output = heliostat(&simulate).args(["--seed", "7"]).output().unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let metrics = running.metrics_when(idle);
    let (one, all) = (|series: &str| metrics.one(series), |name: &str| metrics.all(name));
    assert!(one("heliostat_reflects_total{kind=\"durable\"}") > 100, "something happened");

    let closed = one("heliostat_connections_closed_total");
    assert_eq!(one("heliostat_connections_opened_total"), closed);
    assert_eq!(all("heliostat_closes_total"), closed);
    assert_eq!(all("heliostat_endings_total"), closed);
    assert_eq!(all("heliostat_handshakes_total"), closed);
    assert_eq!(one("heliostat_handshake_seconds_count"), one("heliostat_handshakes_total{result=\"admitted\"}"));
    assert_eq!(one("heliostat_groups_woken_total"), one("heliostat_groups_slept_total"));
    assert_eq!(one("heliostat_slots_made_total"), one("heliostat_joined_total{slot=\"new\"}"));
    assert_eq!(one("heliostat_queued_at_join_messages_count"), all("heliostat_joined_total"));
    assert!(one("heliostat_dried_total") <= all("heliostat_joined_total"));

    let (durable, discarded) =
        (one("heliostat_reflects_total{kind=\"durable\"}"), one("heliostat_staged_discarded_total"));
    assert_eq!(one("heliostat_reflect_acks_total"), durable + discarded);
    assert!(one("heliostat_reflected_acks_total") <= one("heliostat_reflected_sent_total"));
    assert_eq!(one("heliostat_queue_seconds_count"), one("heliostat_reflected_acks_total"));
    let ended = one("heliostat_transactions_committed_total") + all("heliostat_transactions_aborted_total");
    assert_eq!(one("heliostat_transactions_begun_total"), ended);
    assert_eq!(one("heliostat_transactions_held"), 0);
    assert_eq!(one("heliostat_transaction_held_seconds_count"), ended);

    let connected = one("heliostat_proxy_connects_total{result=\"connected\"}");
    assert_eq!(one("heliostat_proxy_connect_seconds_count"), connected);
    assert!(connected > 1 && one("heliostat_proxy_bytes_total{direction=\"to_device\"}") > 0);
    assert_eq!(one("heliostat_proxy_connections"), 0);
    let logins = all("heliostat_chat_logins_total");
    assert_eq!(logins, all("heliostat_chat_connections_opened_total"), "nobody was throttled");
    assert_eq!(all("heliostat_chat_connections_closed_total"), logins);

    let (commits, transactions) = (one("heliostat_store_commits_total"), one("heliostat_store_transactions_total"));
    assert!(transactions <= commits);
    assert_eq!(one("heliostat_store_batch_commits_sum"), commits);
    assert_eq!(one("heliostat_store_batch_commits_count"), transactions);
    assert_eq!(one("heliostat_store_sync_seconds_count"), transactions + one("heliostat_store_failures_total"));
    assert_eq!(one("heliostat_commit_seconds_count"), commits);
    let appended = one("heliostat_store_messages_appended_total");
    assert!(appended <= durable);
    let kept = appended - one("heliostat_store_messages_deleted_total");
    assert_eq!(one("heliostat_store_messages"), kept);
    assert!(one("heliostat_store_database_bytes") > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_payload_no_key_and_nobodys_name_is_in_a_log_that_says_all_it_can() {
    let data = tempfile::tempdir().unwrap();
    let log = data.path().join("log");
    // Also of libraries, which print the bytes that pass through them when they may.
    let everything = "trace,hyper=trace,tungstenite=trace,tokio_tungstenite=trace,sqlx=trace";
    let running = Running::start(data.path(), everything, File::create(&log).unwrap().into());
    let secrets = story(&running, data.path()).await;
    running.stop();
    let log = std::fs::read(&log).unwrap();
    let text = String::from_utf8_lossy(&log);

    assert_eq!(secrets.found_in(&log), []);
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said = |message: &str| lines.iter().filter(|line| line["fields"]["message"] == message).collect::<Vec<_>>();
    for message in ["reflected", "acknowledged", "transaction committed", "leader promoted", "logged in", "stopping"] {
        assert!(!said(message).is_empty(), "the log says all it can: {message}\n{text}");
    }
    assert!(lines.iter().any(|line| line["level"] == "TRACE"), "trace was asked for");
    let joined = said("device joined");
    let group = joined[0]["fields"]["group"].as_str().unwrap();
    assert!(group.len() == 12 && joined.iter().all(|line| line["fields"]["group"] == group), "one group, one hash");
    assert_ne!(joined[0]["fields"]["device"], joined[1]["fields"]["device"], "two devices, two hashes");

    // And what is looked for would be found.
    for (what, bytes) in &secrets.0 {
        for leak in
            [hex::encode(bytes), STANDARD.encode(bytes), format!("{bytes:?}"), format!("{}", bytes.escape_ascii())]
        {
            let leaked = format!("some {leak} line");
            assert!(secrets.found_in(leaked.as_bytes()).iter().any(|(found, _)| found == what), "{what}: {leaked}");
        }
    }
}

#[tokio::test]
async fn what_is_kept_is_counted_again_after_a_restart() {
    let data = tempfile::tempdir().unwrap();
    let running = Running::start(data.path(), "warn", Stdio::inherit());
    let mut family = Family::new(plain(running.address("devices")));
    let mut phone = family.joins(1).await;
    soon(family.joins(2).await.close(CloseCode::Normal)).await;
    for _ in 0..40 {
        soon(phone.reflect_and_wait(b"for who is away", ReflectFlags::default())).await.unwrap();
    }
    assert_eq!(running.metrics().one("heliostat_store_messages"), 40);
    soon(phone.close(CloseCode::Normal)).await;
    running.stop();

    let running = Running::start(data.path(), "warn", Stdio::inherit());
    running.metrics_when(|metrics| metrics.one("heliostat_store_messages") == 40);
    family.url = plain(running.address("devices"));
    let tablet = family.returns(2).await;
    let queued = running.metrics();
    assert_eq!(queued.one("heliostat_queued_at_join_messages_sum"), 40);
    // The backlog was read by wait_dry; it is acknowledged from what the connection got.
    soon(tablet.close(CloseCode::Normal)).await;
    let mut raw = family.admitted(&family.config(2).existing()).await;
    let mut acknowledged = 0;
    while acknowledged < 40 {
        if let ToDevice::Reflected(message) = soon(raw.recv()).await.unwrap() {
            raw.send(&FromDevice::ReflectedAck(message.id())).await.unwrap();
            acknowledged += 1;
        }
    }
    // Not both of one moment: what is rendered first may be from before the last commit.
    running.metrics_when(|metrics| {
        metrics.one("heliostat_store_messages") == 0 && metrics.one("heliostat_store_messages_deleted_total") == 40
    });
    running.stop();
}
