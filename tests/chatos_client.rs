//! `heliostat chatos` as people and scripts meet it: the real binary against the real server, straight and through the
//! mediator with several devices.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may panic"
)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use heliostat::time::Clock;
use sha2::{Digest as _, Sha256};

const PATIENCE: Duration = Duration::from_secs(60);

fn heliostat(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
    command.args(args).env_remove("HELIOSTAT_CONFIG").env("HELIOSTAT_LOG", "error");
    command
}

/// A mediator without TLS and a ChatOs server, in one process. Killed when it is dropped.
struct Server {
    child: Child,
    mediator: String,
    chatos: String,
    admin: String,
}

impl Server {
    fn start(data: &Path) -> Self {
        Self::configured(data, &[])
    }

    fn configured(data: &Path, more: &[String]) -> Self {
        let any = "127.0.0.1:0";
        let mut command = heliostat(&["serve", "--data", data.to_str().unwrap(), "--plain", "--listen", any]);
        command.args(["--admin-listen", any, "--csp-listen", any, "--chatos-listen", any]).args(more);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let (mut mediator, mut chatos, mut admin) = (None, None, None);
        for line in said.by_ref() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["devices", url, ..] => mediator = Some(url.to_owned()),
                ["ChatOs", address, ..] => chatos = Some(address.to_owned()),
                ["admin", url, ..] => admin = Some(url.to_owned()),
                ["data", ..] => break,
                _ => {}
            }
        }
        std::thread::spawn(move || said.count());
        let [mediator, chatos, admin] = [mediator, chatos, admin].map(|door| door.expect("it is ready"));
        Self { child, mediator, chatos, admin }
    }

    /// What operators read of the room.
    fn sample(&self, series: &str) -> f64 {
        let authority = self.admin.trim_start_matches("http://").trim_end_matches('/');
        let mut tcp = std::net::TcpStream::connect(authority).unwrap();
        write!(tcp, "GET /metrics HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n").unwrap();
        let mut lines = BufReader::new(tcp).lines().map_while(Result::ok);
        let value = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_else(|| panic!("there is no {series}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

/// A client that is typed into. Killed when it is dropped.
struct Client {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    /// Everything it printed.
    heard: Vec<String>,
}

impl Client {
    fn start(args: &[&str]) -> Self {
        let mut command = heliostat(&["chatos"]);
        command.args(args);
        Self::of(command)
    }

    fn of(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (send, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Self { stdin: child.stdin.take(), child, lines, heard: Vec::new() }
    }

    fn online(name: &str, address: &str) -> Self {
        let mut client = Self::start(&[name, address]);
        client.hears(&format!("-- you are {name}"));
        client
    }

    fn types(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(format!("{line}\n").as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    /// Waits for a line.
    #[track_caller]
    fn hears(&mut self, expected: &str) {
        self.hears_some(|line| line == expected, expected);
    }

    #[track_caller]
    fn hears_some(&mut self, fits: impl Fn(&str) -> bool, what: &str) {
        loop {
            let Ok(line) = self.lines.recv_timeout(PATIENCE) else {
                panic!("waited for {what:?}; heard {:#?}", self.heard)
            };
            self.heard.push(line);
            if fits(self.heard.last().unwrap()) {
                return;
            }
        }
    }

    /// The end of its input, and its own.
    fn ends(&mut self) -> ExitStatus {
        self.stdin = None;
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => self.heard.push(line),
                // Its output is over, so it is.
                Err(RecvTimeoutError::Disconnected) => return self.child.wait().unwrap(),
                Err(RecvTimeoutError::Timeout) => panic!("it does not end; heard {:#?}", self.heard),
            }
        }
    }

    fn said(&self) -> Vec<&str> {
        self.heard.iter().map(String::as_str).filter(|line| !line.starts_with("--")).collect()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

#[test]
fn a_script_says_everything_before_it_ends() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    let mut alice = Client::online("alice", &server.chatos);
    let mut bob = Client::start(&["bob", &server.chatos]);
    bob.types("hello\n\n@alice h\u{e9}\n@nobody hi\n\\what");
    assert!(bob.ends().success());
    // What is shown at once may come before or behind what comes back.
    let mut said = bob.said();
    said.sort_unstable();
    let expected = [
        "!! nobody is not there",
        "!! there are `\\yes NAME`, `\\no NAME` and `\\quit`",
        "bob -> alice: h\u{e9}",
        "bob -> nobody: hi",
        "bob: hello",
    ];
    assert_eq!(said, expected);
    alice.hears("bob: hello");
    alice.hears("bob -> alice: h\u{e9}");
    assert!(alice.ends().success());

    // Whoever is refused is told so.
    let _carol = Client::online("carol", &server.chatos);
    let mut second = Client::start(&["carol", &server.chatos]);
    assert_eq!(second.ends().code(), Some(1));
    let room = |name: &str| server.sample(&format!("heliostat_chat_{name}{{room=\"chatos\"}}"));
    let logins =
        |result: &str| server.sample(&format!("heliostat_chat_logins_total{{room=\"chatos\",result=\"{result}\"}}"));
    // carol alone is left.
    let clock = Clock::system();
    let begun = clock.now().monotonic;
    while room("connections") > 1.0 {
        assert!(clock.now().monotonic - begun < PATIENCE, "the others stay");
        std::thread::yield_now();
    }
    assert_eq!((room("connections_opened_total"), room("connections_closed_total")), (4.0, 3.0));
    assert_eq!((logins("accepted"), logins("refused")), (3.0, 1.0));
    assert_eq!(room("messages_discarded_total"), 1.0, "the one for nobody");
    assert_eq!(server.sample("heliostat_chatos_errors_total"), 0.0);

    let output = heliostat(&["chatos", "a b", &server.chatos]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "nobody can be called that");
}

/// The lines of a mebibyte, so short that their command fits before them.
fn mebibyte(seed: u64) -> Vec<String> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..2_115).map(|_| (0..496).map(|_| random.alphanumeric()).collect()).collect()
}

fn digest<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<u8> {
    let mut hash = Sha256::new();
    lines.for_each(|line| hash.update(line));
    hash.finalize().to_vec()
}

#[test]
fn a_private_connection_between_two_clients_carries_a_mebibyte_each_way() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    let (mut alice, mut bob) = (Client::online("alice", &server.chatos), Client::online("bob", &server.chatos));
    alice.types("/bob");
    bob.hears("-- alice wants a private connection: `\\yes alice` or `\\no alice`");
    bob.types("\\yes alice");
    let open = |line: &str| line.contains("is open");
    alice.hears_some(open, "the private connection");
    bob.hears_some(open, "the private connection");
    let (from_alice, from_bob) = (mebibyte(1), mebibyte(2));
    let mut stdins =
        [(alice.stdin.take().unwrap(), "/bob", &from_alice), (bob.stdin.take().unwrap(), "/alice", &from_bob)];
    std::thread::scope(|scope| {
        for (stdin, to, lines) in &mut stdins {
            scope.spawn(move || {
                for line in lines.iter() {
                    writeln!(stdin, "{to} {line}").unwrap();
                }
                writeln!(stdin, "{to} the end").unwrap();
            });
        }
        alice.hears("bob => alice: the end");
        bob.hears("alice => bob: the end");
    });
    for (client, head, lines) in [(&alice, "bob => alice: ", &from_bob), (&bob, "alice => bob: ", &from_alice)] {
        let heard = client.heard.iter().filter_map(|line| line.strip_prefix(head)).filter(|line| *line != "the end");
        assert_eq!(digest(heard), digest(lines.iter().map(String::as_str)));
    }
    drop(stdins);
    assert!(alice.ends().success() && bob.ends().success());
    assert!(alice.heard.iter().chain(&bob.heard).any(|line| line.contains("is over")));
}

/// The whole of it: two clients with connections of their own, a third that is two devices, a private mebibyte each way, and a
/// leader that is lost while that is on its way.
#[test]
fn a_conversation_of_three_in_which_a_leader_is_lost() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(&data.path().join("server"));
    let key = data.path().join("carol.key");
    let key = key.to_str().unwrap();
    let (mut alice, mut bob) = (Client::online("alice", &server.chatos), Client::online("bob", &server.chatos));
    let mut phone = device(&server, key, "a1");
    phone.hears("-- you are carol");
    let mut laptop = device(&server, key, "b2");
    laptop.types("hello");
    for client in [&mut alice, &mut bob, &mut phone, &mut laptop] {
        client.hears("carol: hello");
    }
    // Nobody can have it with carol, and everybody is told.
    alice.types("/carol");
    alice.hears("-- carol refuses");
    laptop.hears("-- alice wants a private connection, which a mediator does not carry: refused");

    alice.types("/bob");
    bob.hears("-- alice wants a private connection: `\\yes alice` or `\\no alice`");
    bob.types("\\yes alice");
    let open = |line: &str| line.contains("is open");
    alice.hears_some(open, "the private connection");
    bob.hears_some(open, "the private connection");
    let (from_alice, from_bob) = (mebibyte(3), mebibyte(4));
    for (n, (a, b)) in from_alice.iter().zip(&from_bob).enumerate() {
        alice.types(&format!("/bob {a}"));
        bob.types(&format!("/alice {b}"));
        if n == 500 {
            bob.types("before");
            laptop.hears("bob: before");
            phone.child.kill().unwrap();
            phone.child.wait().unwrap();
            laptop.types("and I am still here");
        }
    }
    for client in [&mut alice, &mut bob, &mut laptop] {
        client.hears_some(|line| line.ends_with("carol: and I am still here"), "the next leader");
    }
    alice.types("/bob the end");
    bob.types("/alice the end");
    alice.hears("bob => alice: the end");
    bob.hears("alice => bob: the end");
    for (client, head, lines) in [(&alice, "bob => alice: ", &from_bob), (&bob, "alice => bob: ", &from_alice)] {
        let heard = client.heard.iter().filter_map(|line| line.strip_prefix(head)).filter(|line| *line != "the end");
        assert_eq!(digest(heard), digest(lines.iter().map(String::as_str)));
    }
    // The phone comes back, and has missed nothing.
    let mut phone = device(&server, key, "a1");
    phone.hears("carol: and I am still here");
    bob.types("@carol after");
    laptop.hears("bob -> carol: after");
    phone.hears("bob -> carol: after");
    for client in [&mut alice, &mut bob, &mut phone, &mut laptop] {
        assert!(client.ends().success());
    }
    assert_eq!(laptop.said(), ["carol: hello", "bob: before", "carol: and I am still here", "bob -> carol: after"]);
}

#[tokio::test]
async fn through_the_mediator_each_packet_is_a_payload_of_its_own() {
    let data = tempfile::tempdir().unwrap();
    each_packet_is_a_payload_of_its_own(&Server::start(data.path())).await;
}

/// The mediator does no TLS towards chat servers.
#[tokio::test]
async fn the_mediator_reaches_also_a_room_that_has_a_certificate() {
    use heliostat::net::development;
    let data = tempfile::tempdir().unwrap();
    let made = development::development(&data.path().join("room"), Clock::system().now().wall_ms).unwrap();
    let files = [("cert", &made.files.cert), ("key", &made.files.key)];
    let more: Vec<String> =
        files.iter().map(|(key, file)| format!("--set=chat.chatos.{key}={}", file.display())).collect();
    let server = Server::configured(data.path(), &more);
    each_packet_is_a_payload_of_its_own(&server).await;
    // And at its own address it is encrypted: what is no TLS is not answered in its words.
    let mut plain = std::net::TcpStream::connect(&server.chatos).unwrap();
    plain.write_all(b"\0\0\0\0\x04dave").unwrap();
    let mut answer = Vec::new();
    std::io::Read::read_to_end(&mut plain, &mut answer).unwrap_or_default();
    assert_ne!(answer.first(), Some(&1), "no welcome: {answer:?}");
}

async fn each_packet_is_a_payload_of_its_own(server: &Server) {
    use heliostat::chat::chatos::wire::{FromClient, ToClient};
    use heliostat::client::{Device, DeviceConfig, GroupKey, Mediator, Trust};
    use heliostat::wire::d2m::{DeviceId, FromDevice, ServerGroup, ToDevice};
    let mediator = Mediator::new(&server.mediator, &Trust::System).unwrap();
    let config = DeviceConfig::new(GroupKey::generate(), ServerGroup::new("chatos").unwrap(), DeviceId(1));
    let mut device = Device::connect(&mediator, &config).await.unwrap();
    let shout = |n: usize| FromClient::Public { from: "dave".into(), text: format!("{n}").as_str().into() };
    let mut said = FromClient::Login("dave".into()).encode().to_vec();
    (0..50).for_each(|n| said.extend_from_slice(&shout(n).encode()));
    // However they are cut on their way there.
    for piece in said.chunks(7) {
        device.send(&FromDevice::Proxy(piece.to_vec().into())).await.unwrap();
    }
    let is_proxy = |payload: &ToDevice| matches!(payload, ToDevice::Proxy(_));
    for n in 0..51 {
        let payload = tokio::time::timeout(PATIENCE, device.wait_for(is_proxy)).await.unwrap().unwrap();
        let ToDevice::Proxy(packet) = payload else { unreachable!() };
        let expected = match n {
            0 => ToClient::Welcome("dave".into()),
            n => ToClient::Public { from: "dave".into(), text: format!("{}", n - 1).as_str().into() },
        };
        assert_eq!(ToClient::decode(&packet), Ok(expected));
    }
}

/// A device of carol.
fn device(server: &Server, key: &str, id: &str) -> Client {
    Client::start(&["carol", &server.mediator, "--group-key", key, "--device-id", id])
}

#[test]
fn one_nickname_on_three_devices_whose_leader_leaves() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(&data.path().join("server"));
    let key = data.path().join("carol.key");
    let key = key.to_str().unwrap();
    let mut alice = Client::online("alice", &server.chatos);

    let mut phone = device(&server, key, "a1");
    phone.hears("-- you are carol");
    let mut laptop = device(&server, key, "b2");
    // What is typed on a device that does not lead is said by the one that does.
    laptop.types("hello from the laptop");
    alice.hears("carol: hello from the laptop");
    laptop.hears("carol: hello from the laptop");
    phone.hears("carol: hello from the laptop");
    alice.types("@carol for all of you");
    phone.hears("alice -> carol: for all of you");
    laptop.hears("alice -> carol: for all of you");

    // A third one registers, goes away, and misses nothing.
    let mut tablet = device(&server, key, "c3");
    tablet.types("@alice from the tablet");
    alice.hears("carol -> alice: from the tablet");
    tablet.hears("carol -> alice: from the tablet");
    assert!(tablet.ends().success());
    for n in 0..20 {
        alice.types(&format!("while you were away {n}"));
    }
    laptop.hears("alice: while you were away 19");
    phone.hears("alice: while you were away 19");

    // The leader is cut off, without a word. The laptop takes the nickname over.
    phone.child.kill().unwrap();
    phone.child.wait().unwrap();
    laptop.types("typed in between");
    alice.hears("carol: typed in between");
    laptop.hears("carol: typed in between");
    alice.types("@carol still there?");
    laptop.hears("alice -> carol: still there?");

    let mut tablet = device(&server, key, "c3");
    tablet.hears("alice -> carol: still there?");
    let expected: Vec<String> = (0..20).map(|n| format!("alice: while you were away {n}")).collect();
    let expected: Vec<&str> = expected
        .iter()
        .map(String::as_str)
        .chain(["carol: typed in between", "alice -> carol: still there?"])
        .collect();
    assert_eq!(tablet.said(), expected);
    // Nothing was shown twice, and nothing was lost.
    let laptops: Vec<&str> = laptop.said();
    assert_eq!(&laptops[laptops.len() - expected.len()..], expected);

    // In order, this time, and to the last.
    assert!(laptop.ends().success());
    tablet.hears("-- you are carol");
    tablet.types("the last one");
    alice.hears("carol: the last one");
    assert!(tablet.ends().success());
    assert!(alice.ends().success());
}

/// The leader is lost while many lines are on their way through it: each is said, by it or by the next one.
#[test]
fn lines_on_their_way_through_a_leader_that_is_lost_are_said_by_the_next() {
    const LINES: usize = 200;
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(&data.path().join("server"));
    let key = data.path().join("carol.key");
    let key = key.to_str().unwrap();
    let mut alice = Client::online("alice", &server.chatos);
    let args = ["carol", &server.mediator, "--group-key", key, "--device-id", "a1", "--peer-quirks", "reference"];
    // Slow enough to be lost in the middle of it.
    let mut phone = Client::start(&args);
    phone.hears("-- you are carol");
    let mut laptop = device(&server, key, "b2");
    laptop.types("first");
    alice.hears("carol: first");
    for n in 0..LINES {
        laptop.types(&format!("line {n}"));
    }
    alice.hears("carol: line 5");
    phone.child.kill().unwrap();
    phone.child.wait().unwrap();
    alice.hears(&format!("carol: line {}", LINES - 1));
    for n in 0..LINES {
        let line = format!("carol: line {n}");
        assert!(alice.heard.contains(&line), "{line} was never said");
    }
    assert!(laptop.ends().success());
    assert!(alice.ends().success());
}

/// What is left of a terminal's line without colours and movements of the cursor.
fn without_escapes(shown: &str) -> String {
    let mut parts = shown.trim_end().split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_owned();
    let is_end = |it: char| it.is_ascii_alphabetic();
    parts.fold(first, |text, part| text + part.split_once(is_end).map_or("", |(_, rest)| rest))
}

/// A screen takes its time: what comes faster waits, and is neither lost nor the end.
#[cfg(target_os = "linux")]
#[test]
fn a_person_who_was_away_is_shown_everything_however_much_it_is() {
    const LINES: usize = 1_200;
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(&data.path().join("server"));
    let key = data.path().join("carol.key");
    let key = key.to_str().unwrap();
    let mut phone = device(&server, key, "a1");
    phone.hears("-- you are carol");
    let mut laptop = device(&server, key, "b2");
    laptop.types("first");
    phone.hears("carol: first");
    assert!(laptop.ends().success());
    let mut alice = Client::online("alice", &server.chatos);
    for n in 0..LINES {
        alice.types(&format!("line {n}"));
    }
    phone.hears(&format!("alice: line {}", LINES - 1));

    // The laptop comes back, with a terminal.
    let binary = env!("CARGO_BIN_EXE_heliostat");
    let person = format!("{binary} chatos carol {} --group-key {key} --device-id b2", server.mediator);
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &person, "/dev/null"]);
    terminal.env_remove("HELIOSTAT_CONFIG").env("HELIOSTAT_LOG", "error").env("TERM", "xterm");
    let mut laptop = Client::of(terminal);
    for n in 0..LINES {
        let line = format!("alice: line {n}");
        laptop.hears_some(|shown| without_escapes(shown).ends_with(&line), &line);
    }
    laptop.types("\\quit");
    assert!(laptop.ends().success());
    for mut client in [alice, phone] {
        assert!(client.ends().success());
    }
}

/// The end of a private connection that was closed before the end of the input is no surprise behind it.
#[test]
fn a_private_connection_may_end_while_its_client_does() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path());
    let mut bob = Client::online("bob", &server.chatos);
    // Its packets go at a distance, so that the end of everything takes longer than that of the private connection.
    let mut alice = Client::start(&["alice", &server.chatos, "--peer-quirks", "reference"]);
    alice.hears("-- you are alice");
    alice.types("/bob");
    bob.hears("-- alice wants a private connection: `\\yes alice` or `\\no alice`");
    bob.types("\\yes alice");
    alice.hears_some(|line| line.contains("is open"), "the private connection");
    bob.hears_some(|line| line.contains("is open"), "the private connection");
    alice.types(&["x"; 30].join("\n"));
    alice.types("/bob");
    assert!(alice.ends().success());
    bob.hears("-- the private connection with alice is over: the other side closed it");
}
