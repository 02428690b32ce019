//! Every close code, brought about on purpose: seen by the client that is played, by a plain WebSocket client that knows
//! nothing of the relay, and at a mediator that provoke did not start.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may panic"
)]

mod common;

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use common::{Server, Setup, soon};
use futures_util::future::join_all;
use futures_util::{SinkExt as _, StreamExt as _};
use heliostat::chat::csp;
use heliostat::client::steady::Backoff;
use heliostat::client::{DeviceConfig, GroupKey, Mediator, Steady, Trust};
use heliostat::group::Limits;
use heliostat::session::Timeouts;
use heliostat::store::Store as _;
use heliostat::time::Clock;
use heliostat::wire::d2m::{CloseCode, DeviceId, FromDevice, ServerGroup, ToDevice};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

/// Long enough for a machine that does ten other things.
const PATIENCE: &str = "30s";

/// One run of the binary.
struct Provoke {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    told: Vec<String>,
}

impl Provoke {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_heliostat"))
            .args([&["provoke", "--patience", PATIENCE], args].concat())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines, told: Vec::new() }
    }

    /// Reads up to the line with these words; the rest of it.
    async fn tells(&mut self, words: &str) -> String {
        while let Some(line) = soon(self.lines.next_line()).await.unwrap() {
            self.told.push(line.clone());
            if let Some((_, rest)) = line.split_once(words) {
                return rest.to_owned();
            }
        }
        panic!("it never told {words:?}:\n{}", self.told.join("\n"));
    }

    /// Everything it told, and whether it went well.
    async fn ends(mut self) -> (String, bool) {
        while let Some(line) = soon(self.lines.next_line()).await.unwrap() {
            self.told.push(line);
        }
        let status = soon(self.child.wait()).await.unwrap();
        (self.told.join("\n"), status.success())
    }
}

#[tokio::test]
async fn the_client_that_is_played_is_closed_with_every_code() {
    let runs = CloseCode::ALL.map(|code| async move {
        let (told, good) = Provoke::start(&[&code.code().to_string()]).ends().await;
        assert!(good, "{told}");
        assert!(told.contains(&format!("-- the client was closed with {}", code.code())), "{told}");
        assert!(told.contains(code.meaning()) && told.contains("a client has to: "), "{told}");
    });
    join_all(runs).await;
}

/// A client that shares no connection code with ours. The code of the close frame that it was sent.
async fn plain_client(base: &str, config: &DeviceConfig) -> Option<u16> {
    let url = format!("{base}/{}", config.url_info().to_segment());
    let (mut socket, _) = soon(tokio_tungstenite::connect_async(&url)).await.unwrap();
    loop {
        match soon(socket.next()).await.unwrap().unwrap() {
            Message::Binary(bytes) => match ToDevice::decode(&bytes).unwrap() {
                ToDevice::ServerHello(hello) => {
                    let answer = FromDevice::ClientHello(Box::new(config.client_hello(&hello).unwrap()));
                    socket.send(Message::Binary(answer.encode())).await.unwrap();
                }
                ToDevice::Reflected(message) => {
                    // After a close there is nobody to tell.
                    let ack = FromDevice::ReflectedAck(message.id()).encode();
                    let _closed = socket.send(Message::Binary(ack)).await;
                }
                ToDevice::DropDeviceAck(_) | ToDevice::BeginTransactionAck | ToDevice::Proxy(_) => {
                    panic!("an answer to what this client never said")
                }
                _ => {}
            },
            Message::Close(frame) => return frame.map(|frame| frame.code.into()),
            _ => {}
        }
    }
}

fn family(dir: &Path) -> (DeviceConfig, String) {
    let key = GroupKey::generate();
    let file = dir.join(format!("{:x}.key", heliostat::crypto::random::u64()));
    std::fs::write(&file, hex::encode(key.dgk().expose())).unwrap();
    let config = DeviceConfig::new(key, ServerGroup::new("a0").unwrap(), DeviceId(7));
    (config, file.to_str().unwrap().to_owned())
}

const LISTENING: [&str; 6] = ["--listen", "127.0.0.1:0", "--after", "0s", "--watch", "0s"];

#[tokio::test]
async fn a_client_of_another_make_is_closed_with_every_code() {
    let dir = tempfile::tempdir().unwrap();
    // One that was never anywhere, and one that ran before, elsewhere.
    let newcomers = CloseCode::ALL.into_iter().map(|code| (code, false));
    let runs = newcomers.chain(CloseCode::ALL.into_iter().map(|code| (code, true))).map(|(code, ran_before)| {
        let (config, key) = family(dir.path());
        let config = if ran_before { config.existing() } else { config };
        async move {
            let number = code.code().to_string();
            let mut provoke = Provoke::start(&[&[&*number, "--key", &key], &LISTENING[..]].concat());
            let base = provoke.tells("waiting for your client on ").await;
            let came = plain_client(&base, &config).await;
            let (told, good) = provoke.ends().await;
            assert_eq!(came, Some(code.code()), "{told}");
            assert!(good && told.contains(code.meaning()), "{told}");
        }
    });
    join_all(runs).await;
}

#[tokio::test]
async fn without_its_key_a_client_drops_itself_as_if_it_had_said_so() {
    let dir = tempfile::tempdir().unwrap();
    let (config, _) = family(dir.path());
    let mut provoke = Provoke::start(&[&["4113"], &LISTENING[..]].concat());
    let base = provoke.tells("waiting for your client on ").await;
    assert_eq!(plain_client(&base, &config).await, Some(4113));
    let (told, _) = provoke.ends().await;
    assert!(told.contains("=> drop-device") && told.contains("(as if the client had said it)"), "{told}");
}

/// A mediator whose chat server is played by provoke, or whom none stands behind.
async fn mediator(dir: &Path, chat: Option<std::net::SocketAddr>) -> Server {
    let limits = Limits { max_queue_messages: 5, max_device_slots: 3, ..Limits::default() };
    let timeouts = Timeouts { idle: Duration::from_secs(3), ping_every: Duration::from_secs(1), ..Timeouts::default() };
    Server::start(dir, Setup { limits, timeouts, upstream: chat, ..Setup::default() }).await
}

#[tokio::test]
async fn a_mediator_of_others_closes_with_every_code_that_can_be_had_from_outside() {
    let dir = tempfile::tempdir().unwrap();
    // Provoke binds it itself; until then it is only known to be free.
    let stage = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let with_chat = mediator(&dir.path().join("with chat"), Some(stage)).await;
    let without = mediator(&dir.path().join("without"), None).await;
    let (url, bare) = (format!("ws://{}", with_chat.address), format!("ws://{}", without.address));
    let stage = stage.to_string();
    let more: HashMap<u16, Vec<&str>> = HashMap::from([
        (4000, vec!["--stage", &*stage, "--server-group", "a0"]),
        (4001, vec!["--server-group", "nobody"]),
        (4009, vec!["--stage", &*stage, "--server-group", "a0"]),
    ]);
    for staged in [true, false] {
        let codes = CloseCode::ALL.into_iter().filter(|code| !matches!(code.code(), 1001 | 1011));
        // One at a time may listen on the stage.
        let codes = codes.filter(|code| matches!(code.code(), 4000 | 4009) == staged);
        let run = |code: CloseCode| {
            let url = if code.code() == 4001 { &bare } else { &url };
            let number = code.code().to_string();
            let more = more.get(&code.code()).cloned().unwrap_or_default();
            let args: Vec<String> =
                [&[&*number, "--url", url], &more[..]].concat().iter().map(|it| (*it).to_owned()).collect();
            async move {
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                let (told, good) = Provoke::start(&args).ends().await;
                assert!(good, "{told}");
            }
        };
        if staged {
            for code in codes {
                run(code).await;
            }
        } else {
            join_all(codes.map(run)).await;
        }
    }
    for server in [&with_chat, &without] {
        let census = server.store.census(None, 100).await.unwrap();
        assert_eq!(census.groups, 0, "nothing is left behind: {census:?}");
    }
    let mut provoke = Provoke::start(&["1001", "--url", &url]);
    provoke.tells("stop the mediator now").await;
    with_chat.stop().await;
    let (told, good) = provoke.ends().await;
    assert!(good, "{told}");
    without.stop().await;
}

#[tokio::test]
async fn no_queue_is_filled_where_other_devices_would_lose_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let server = mediator(&dir.path().join("data"), None).await;
    let (config, key) = family(dir.path());
    let bystander = DeviceConfig { device_id: DeviceId(8), ..config.clone() };
    soon(heliostat::client::Device::connect(&server.url(), &bystander)).await.unwrap().close(CloseCode::Normal).await;
    let url = format!("ws://{}", server.address);
    let mut provoke = Provoke::start(&[&["4114", "--key", &key, "--url", &url], &LISTENING[..]].concat());
    let base = provoke.tells("waiting for your client on ").await;
    let through = Mediator::new(&base, &Trust::System).unwrap();
    let client = soon(heliostat::client::Device::connect(&through, &config)).await.unwrap();
    assert!(!provoke.ends().await.1, "it is refused");
    drop(client);
    let mut back = soon(heliostat::client::Device::connect(&server.url(), &bystander.existing())).await.unwrap();
    assert_eq!(back.server_info().reflection_queue_length, 0, "nothing was said to it");
    let devices = soon(back.devices_info()).await.unwrap();
    assert_eq!(devices.0.len(), 2, "the device that was to fill the queue took its slot with it");
    server.stop().await;
}

#[tokio::test]
async fn the_device_limit_is_reached_also_where_all_slots_are_taken_already() {
    let dir = tempfile::tempdir().unwrap();
    let server = mediator(&dir.path().join("data"), None).await;
    let (config, key) = family(dir.path());
    for id in 11..=13 {
        let device = DeviceConfig { device_id: DeviceId(id), ..config.clone() };
        soon(heliostat::client::Device::connect(&server.url(), &device)).await.unwrap().close(CloseCode::Normal).await;
    }
    let url = format!("ws://{}", server.address);
    let mut provoke = Provoke::start(&[&["4111", "--key", &key, "--url", &url], &LISTENING[..]].concat());
    let base = provoke.tells("waiting for your client on ").await;
    assert_eq!(plain_client(&base, &config).await, Some(4111));
    let (told, good) = provoke.ends().await;
    assert!(good && told.contains("all slots are taken already"), "{told}");
    server.stop().await;
}

#[tokio::test]
async fn a_real_chat_server_ends_the_connection_of_who_speaks_nonsense() {
    let dir = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let config = csp::Config::new(([127, 0, 0, 1], 0).into(), dir.path().join("chat"));
    let chat = csp::start(config, Clock::system(), stop.clone()).await.unwrap();
    let server = mediator(&dir.path().join("mediator"), Some(chat.local_addr())).await;
    let (told, good) = Provoke::start(&["4000", "--url", &format!("ws://{}", server.address)]).ends().await;
    assert!(good, "{told}");
    server.stop().await;
    stop.cancel();
    chat.wait().await;
}

#[tokio::test]
async fn whether_a_client_comes_back_is_told() {
    let dir = tempfile::tempdir().unwrap();
    for (code, verdict) in [("4010", "it came back, as it may"), ("4113", "it did not come back, as it should")] {
        let (config, key) = family(dir.path());
        let mut provoke =
            Provoke::start(&[code, "--key", &key, "--listen", "127.0.0.1:0", "--after", "0s", "--watch", "2s"]);
        let base = provoke.tells("waiting for your client on ").await;
        let backoff = Backoff { first: Duration::from_millis(10), most: Duration::from_millis(10) };
        let mediator = Mediator::new(&base, &Trust::System).unwrap();
        let mut client = Steady::new(mediator, config, |_: &[u8]| Ok(())).backoff(backoff);
        let client = tokio::spawn(async move { client.run().await });
        provoke.tells(verdict).await;
        assert!(provoke.ends().await.1);
        client.abort();
    }
}

#[tokio::test]
async fn other_devices_are_served_meanwhile_and_are_not_the_client_that_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (config, key) = family(dir.path());
    let listening = ["--listen", "127.0.0.1:0", "--after", "1s", "--watch", "5s"];
    let mut provoke = Provoke::start(&[&["4113", "--key", &key], &listening[..]].concat());
    let base = provoke.tells("waiting for your client on ").await;
    let mediator = Mediator::new(&base, &Trust::System).unwrap();
    let client = soon(heliostat::client::Device::connect(&mediator, &config)).await.unwrap();
    let other = |id| DeviceConfig { device_id: DeviceId(id), ..config.clone() };
    let mut second = soon(heliostat::client::Device::connect(&mediator, &other(8))).await.unwrap();
    soon(second.wait_dry()).await.unwrap();
    let mut client = client;
    assert_eq!(soon(client.wait_ended()).await.code(), Some(4113));
    let mut third = soon(heliostat::client::Device::connect(&mediator, &other(9))).await.unwrap();
    soon(third.wait_dry()).await.unwrap();
    provoke.tells("it did not come back, as it should").await;
    assert!(provoke.ends().await.1);
}

#[tokio::test]
async fn your_client_may_speak_tls() {
    let dir = tempfile::tempdir().unwrap();
    let (config, _) = family(dir.path());
    let data = dir.path().to_str().unwrap();
    let mut provoke = Provoke::start(&[&["4012", "--tls", "--data", data], &LISTENING[..]].concat());
    let base = provoke.tells("waiting for your client on ").await;
    let mediator = Mediator::new(&base, &Trust::CaFile(dir.path().join("tls/dev-ca.pem"))).unwrap();
    let mut client = soon(heliostat::client::Device::connect(&mediator, &config)).await.unwrap();
    assert_eq!(soon(client.wait_ended()).await.code(), Some(4012));
    assert!(provoke.ends().await.1);
}

#[tokio::test]
async fn what_cannot_be_provoked_is_said_before_anything_is_done() {
    let cases: [(&[&str], i32); 6] = [
        (&["4112", "--listen", "127.0.0.1:0"], 1),
        (&["1011", "--url", "ws://127.0.0.1:1"], 1),
        (&["4001", "--url", "ws://127.0.0.1:1"], 1),
        (&["4009", "--url", "ws://127.0.0.1:1"], 1),
        (&["4010", "--url", "ws://127.0.0.1:1"], 1),
        (&["4002"], 2),
    ];
    for (args, status) in cases {
        let mut child = Command::new(env!("CARGO_BIN_EXE_heliostat"));
        let output = child.arg("provoke").args(args).output().await.unwrap();
        assert_eq!(output.status.code(), Some(status), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}

#[tokio::test]
async fn the_list_names_every_code() {
    let (told, good) = Provoke::start(&["list"]).ends().await;
    assert!(good);
    for code in CloseCode::ALL {
        assert!(told.contains(&format!("{}  ", code.code())) && told.contains(code.meaning()), "{told}");
    }
}
