//! `heliostat dm` and the library below it against a real server over real sockets: the acceptance script of the protocol's
//! specification, step by step, with several clients; what becomes of connections that are lost; and the program as people run it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may panic"
)]

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command as Process, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use heliostat::chat::dm::crypto::{PublicKey, SecretKey, fingerprint, words};
use heliostat::chat::dm::{self, Config, Rates, Settings};
use heliostat::client::Trust;
use heliostat::crypto::Secret;
use heliostat::net::listen::Door;
use heliostat::time::Clock;
use heliostat::tools::dm::{Client, Command, Doubt, Event, Failure, Heard, Line, Options, Place, Said};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);
const PASSPHRASE: &str = "correct horse";

/// The first event of a form; those before it are kept.
macro_rules! find {
    ($person:expr, $pattern:pat $(if $guard:expr)? => $value:expr) => {
        $person.find(|event| match event { $pattern $(if $guard)? => Some($value), _ => None }).await
    };
}

async fn soon<T>(happens: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, happens).await.expect("this happens in time")
}

/// A server, and where clients keep what they know.
struct Home {
    dir: tempfile::TempDir,
    address: SocketAddr,
    running: Option<(dm::Running, CancellationToken)>,
    settings: Settings,
}

impl Home {
    async fn new() -> Self {
        let settings = Settings { x3dh_after: Duration::from_millis(50), ..Settings::default() };
        Self::with(settings).await
    }

    async fn with(settings: Settings) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut home = Self { dir: tempfile::tempdir().unwrap(), address, running: None, settings };
        home.start().await;
        home
    }

    /// Where it was before, if it was.
    async fn start(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let mut config = Config::new(self.dir.path().join("server"));
        std::fs::create_dir_all(&config.data_dir).unwrap();
        (config.settings, config.rates) = (self.settings.clone(), Rates::NONE);
        let stop = CancellationToken::new();
        let doors = vec![(listener, Door::default())];
        let running = dm::start_on(doors, config, Clock::system(), stop.clone()).await.unwrap();
        self.running = Some((running, stop));
    }

    async fn stop(&mut self) {
        let (running, stop) = self.running.take().unwrap();
        stop.cancel();
        soon(running.wait()).await;
    }

    fn place(&self) -> Place {
        Place::direct(&format!("plain://{}", self.address), &Trust::System).unwrap()
    }

    fn state(&self, device: &str) -> PathBuf {
        self.dir.path().join("devices").join(device)
    }

    /// A new account with its first device.
    async fn account(&self, name: &str) -> Person {
        self.account_with(name, Options::default()).await
    }

    async fn account_with(&self, name: &str, options: Options) -> Person {
        Person::of(soon(Client::register(self.place(), options, &self.state(name), name, PASSPHRASE)).await.unwrap())
    }

    /// A device that was closed.
    fn open(&self, device: &str, name: &str) -> Person {
        let opened = Client::open(self.place(), Options::default(), &self.state(device), name, PASSPHRASE);
        Person::of(opened.unwrap())
    }

    async fn recover(&self, device: &str, name: &str, identity: SecretKey) -> Result<Person, Failure> {
        let dir = self.state(device);
        let recovered = Client::recover(self.place(), Options::default(), &dir, name, PASSPHRASE, identity);
        soon(recovered).await.map(Person::of)
    }

    /// Two friends with a direct message, which is the current one for both.
    async fn pair(&self) -> (Person, Person) {
        let (mut alice, mut bob) = (self.account("alice").await, self.account("bob").await);
        befriend(&mut alice, &mut bob).await;
        alice.does("/dm bob").await;
        bob.has_key(alice.here()).await;
        bob.does("/to alice").await;
        (alice, bob)
    }

    /// Whether the server has these bytes on its disk.
    fn server_knows(&self, secret: &str) -> bool {
        let files = std::fs::read_dir(self.dir.path().join("server")).unwrap().map(|it| it.unwrap().path());
        let mut contents = files.filter(|it| it.is_file()).map(|it| std::fs::read(it).unwrap());
        contents.any(|bytes| bytes.windows(secret.len()).any(|it| it == secret.as_bytes()))
    }
}

async fn befriend(one: &mut Person, other: &mut Person) {
    one.does(&format!("/friend {}", other.name())).await;
    find!(other, Event::FriendRequest { .. } => ());
    other.does(&format!("/accept {}", one.name())).await;
    find!(one, Event::FriendAnswer { accepted: true, .. } => ());
}

/// A client, and what happened that nobody has looked at.
struct Person {
    client: Client,
    seen: VecDeque<Event>,
}

impl Person {
    fn of(client: Client) -> Self {
        Self { client, seen: VecDeque::new() }
    }

    fn name(&self) -> String {
        self.client.book().name().to_owned()
    }

    fn here(&self) -> i64 {
        self.client.current().unwrap()
    }

    async fn find<T>(&mut self, wanted: impl Fn(&Event) -> Option<T>) -> T {
        if let Some((at, found)) = self.seen.iter().enumerate().find_map(|(at, event)| Some((at, wanted(event)?))) {
            self.seen.remove(at);
            return found;
        }
        loop {
            let next = tokio::time::timeout(PATIENCE, self.client.next_event()).await;
            let Ok(next) = next else {
                panic!("waited for something else than {:#?}: {:?}", self.lines(), self.client)
            };
            let event = next.unwrap();
            match wanted(&event) {
                Some(found) => return found,
                None => self.seen.push_back(event),
            }
        }
    }

    fn lines(&self) -> Vec<String> {
        self.seen.iter().map(Event::line).collect()
    }

    /// Types a line and waits until what it asks for is done.
    async fn types(&mut self, line: &str) {
        soon(self.client.obey(Command::parse(line).unwrap().unwrap())).await.unwrap();
        self.seen.extend(std::iter::from_fn(|| self.client.take_event()));
    }

    /// The same for what has to work.
    async fn does(&mut self, line: &str) {
        self.types(line).await;
        let failed: Vec<_> = self.seen.iter().filter(|it| it.is_failure()).collect();
        assert!(failed.is_empty(), "{line}: {:#?}", self.lines());
    }

    /// The same for what has not; why not.
    async fn fails(&mut self, line: &str) -> String {
        self.types(line).await;
        let at = self.seen.iter().position(Event::is_failure);
        let at = at.unwrap_or_else(|| panic!("{line} worked: {:#?}", self.lines()));
        self.seen.remove(at).unwrap().line()
    }

    /// What the server refuses it with, asked as it stands.
    async fn refused(&mut self, event: &str, args: Value) -> String {
        soon(self.client.ask_raw(event, args)).await.unwrap_err()
    }

    async fn asks(&mut self, event: &str, args: Value) -> Value {
        soon(self.client.ask_raw(event, args)).await.unwrap()
    }

    /// Hears everything that the server said before now.
    async fn settle(&mut self) {
        self.asks("get_friends", json!({})).await;
        soon(self.client.attend()).await.unwrap();
        self.seen.extend(std::iter::from_fn(|| self.client.take_event()));
    }

    /// Nothing of this form was heard.
    async fn has_not(&mut self, what: impl Fn(&Event) -> bool) {
        self.settle().await;
        assert!(!self.seen.iter().any(what), "{:#?}", self.lines());
    }

    /// Until there is a connection and nothing waits.
    async fn idles(&mut self) {
        while !self.client.is_idle() {
            soon(self.client.wait()).await.unwrap();
            soon(self.client.attend()).await.unwrap();
        }
        self.seen.extend(std::iter::from_fn(|| self.client.take_event()));
    }

    async fn hears(&mut self, text: &str) -> Said {
        find!(self, Event::Said(said) if said.text.as_deref() == Some(text) => said.clone())
    }

    async fn says(&mut self, text: &str) -> i64 {
        self.does(text).await;
        self.hears(text).await.id
    }

    async fn has_key(&mut self, dm: i64) {
        let signed = find!(self, Event::Key { dm: of, signed, .. } if *of == dm => *signed);
        assert!(signed);
    }

    async fn history(&mut self, line: &str) -> Vec<Said> {
        self.does(line).await;
        let mut shown = Vec::new();
        self.seen.retain(|event| match event {
            Event::Shown(said) => {
                shown.push(said.clone());
                false
            }
            _ => true,
        });
        shown
    }

    async fn names(&mut self, line: &str) -> Vec<String> {
        self.does(line).await;
        find!(self, Event::Names { names, .. } => names.clone())
    }
}

/// A connection on which nobody logs in by himself.
struct Stranger {
    line: Line,
    number: u64,
    heard: Vec<String>,
}

impl Stranger {
    async fn at(home: &Home) -> Self {
        Self { line: soon(home.place().connect()).await.unwrap(), number: 0, heard: Vec::new() }
    }

    async fn asks(&mut self, event: &str, args: Value) -> Result<Value, String> {
        self.number += 1;
        assert!(self.line.ask(self.number, event, args));
        self.answer(self.number).await
    }

    async fn answer(&mut self, number: u64) -> Result<Value, String> {
        loop {
            match soon(self.line.next()).await.unwrap() {
                Heard::Answer(it, envelope) if it == number => {
                    let result = serde_json::from_str(envelope.result.get()).unwrap();
                    return if envelope.success { Ok(result) } else { Err(envelope.code.unwrap()) };
                }
                Heard::Answer(..) => {}
                Heard::Notice(name, _) => self.heard.push(name),
            }
        }
    }

    async fn refused(&mut self, event: &str, args: Value) -> String {
        self.asks(event, args).await.unwrap_err()
    }

    async fn challenge(&mut self, name: &str) -> [u8; 32] {
        let challenge = self.asks("login", json!({ "username": name })).await.unwrap();
        hex::decode(challenge.as_str().unwrap()).unwrap().try_into().unwrap()
    }

    async fn responds(&mut self, response: impl AsRef<[u8]>) -> Result<Value, String> {
        self.asks("login_challenge_response", json!({ "response": hex::encode(response) })).await
    }
}

fn registration(name: &str, identity: &SecretKey, prekey: &SecretKey) -> Value {
    json!({
        "username": name,
        "public_key": identity.public().to_hex(),
        "spk": prekey.public().to_hex(),
        "sig": hex::encode(identity.sign(prekey.public().as_bytes())),
        "own_storage": "",
    })
}

fn seeded(byte: u8) -> SecretKey {
    SecretKey::new(&Secret::new([byte; 32]))
}

fn vectors() -> Value {
    serde_json::from_str(include_str!("vectors/dm.json")).unwrap()
}

#[tokio::test]
async fn steps_1_to_3_accounts_and_logins() {
    let settings = Settings {
        lockout: dm::state::LockoutLimits { locks_for: Duration::from_millis(400), ..Default::default() },
        ..Settings::default()
    };
    let home = Home::with(settings).await;
    let mut stranger = Stranger::at(&home).await;
    let (alice, prekey) = (seeded(0x11), seeded(0x12));
    let good = registration("alice", &alice, &prekey);
    // 1.
    assert_eq!(stranger.asks("register", good.clone()).await, Ok(json!(true)));
    assert_eq!(stranger.refused("register", good.clone()).await, "username_taken");
    let with = |name: &str, key: &str, value: &str| {
        let mut it = good.clone();
        it["username"] = name.into();
        it[key] = value.into();
        it
    };
    assert_eq!(stranger.refused("register", with("ALICE", "own_storage", "")).await, "username_taken");
    let sig = hex::encode(prekey.sign(prekey.public().as_bytes()));
    assert_eq!(stranger.refused("register", with("bob", "sig", &sig)).await, "bad_signature");
    for (name, bad) in vectors()["bad_points"].as_object().unwrap() {
        for key in ["public_key", "spk"] {
            let refused = stranger.refused("register", with("bob", key, bad.as_str().unwrap())).await;
            assert_eq!(refused, "malformed", "{name}");
        }
    }
    for (name, exists) in [("alice", true), ("Alice", true), ("bob", false)] {
        assert_eq!(stranger.asks("username_exists", json!({ "username": name })).await, Ok(json!(exists)));
    }
    // 2.
    for event in dm::wire::Request::NAMES {
        if !["login", "login_challenge_response", "register", "username_exists"].contains(&event) {
            let code = stranger.refused(event, json!({})).await;
            assert!(code == "not_logged_in", "{event}: {code}");
        }
    }
    // 3.
    assert_eq!(stranger.refused("login", json!({ "username": "nobody" })).await, "no_such_user");
    assert_eq!(stranger.responds([7; 32]).await, Err("no_challenge".to_owned()));
    let point = stranger.challenge("alice").await;
    assert_eq!(stranger.responds([7; 32]).await, Err("wrong_response".to_owned()));
    assert_eq!(
        stranger.responds(alice.answer("alice", &point)).await,
        Err("no_challenge".to_owned()),
        "it was its last"
    );
    let point = stranger.challenge("alice").await;
    let product = alice.answer_by_product(&PublicKey::decode(&point).unwrap());
    assert_eq!(stranger.responds(product.expose()).await, Ok(json!(true)));
    assert_eq!(stranger.refused("login", json!({ "username": "alice" })).await, "already_logged_in");
    let mut other = Stranger::at(&home).await;
    let point = other.challenge("alice").await;
    assert_eq!(other.responds(alice.answer("bob", &point)).await, Err("wrong_response".to_owned()));
    let point = other.challenge("alice").await;
    assert_eq!(other.responds(alice.answer("alice", &point)).await, Ok(json!(true)));
    let mut guesser = Stranger::at(&home).await;
    for _ in 0..10 {
        assert_eq!(guesser.responds([7; 32]).await, Err("no_challenge".to_owned()));
    }
    assert_eq!(guesser.refused("login", json!({ "username": "alice" })).await, "locked_out");
    let again = async {
        while guesser.asks("login", json!({ "username": "alice" })).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(again).await;
    // Whoever is nobody hears nothing; whoever logs in does not hear of others that he is nobody.
    let mut bob = home.account("bob").await;
    bob.does("/bio hello").await;
    assert_eq!(guesser.refused("get_friends", json!({})).await, "not_logged_in");
    assert!(guesser.heard.is_empty(), "{:?}", guesser.heard);
    // With our own client: a name that is another's, and the older login for who asks for it.
    let taken = Client::register(home.place(), Options::default(), &home.state("x"), "alice", PASSPHRASE).await;
    assert!(matches!(taken, Err(Failure::Name(_))), "{taken:?}");
    assert!(!home.state("x").join("device.json").exists(), "nothing is kept of it");
    assert!(matches!(home.recover("x", "alice", seeded(0x99)).await, Err(Failure::Login(_))));
    let older = Options { by_product: true, ..Options::default() };
    let mut carol = home.account_with("carol", older).await;
    carol.does("/bio carol").await;
}

#[tokio::test]
async fn steps_4_and_5_profiles() {
    let home = Home::new().await;
    let (mut alice, mut bob) = (home.account("alice").await, home.account("bob").await);
    // 4.
    let own = alice.asks("get_full_user", json!({})).await;
    assert!(own["own_storage"].as_str().unwrap().len() > 56);
    let other = bob.asks("get_user", json!({ "username": "alice" })).await;
    let list = bob.asks("get_user_list", json!({})).await;
    for user in list.as_array().unwrap().iter().chain([&other]) {
        for key in ["own_storage", "id", "x3dh_inbox"] {
            assert!(user.get(key).is_none(), "{user}");
        }
    }
    assert_eq!(list.as_array().unwrap().len(), 2);
    // 5.
    alice.does(&format!("/bio {}", "\u{1f98a}".repeat(500))).await;
    assert!(alice.fails(&format!("/bio {}", "x".repeat(501))).await.contains("long"));
    let heard =
        find!(bob, Event::Person { name, biography, .. } if !biography.is_empty() => (name.clone(), biography.clone()));
    assert_eq!(heard, ("alice".to_owned(), "\u{1f98a}".repeat(500)));
    alice.has_not(|event| matches!(event, Event::Person { name, .. } if name == "alice")).await;
    let spk = seeded(0x55).public();
    assert_eq!(alice.refused("set_user", json!({ "spk": spk.to_hex() })).await, "bad_request");
    let foreign = hex::encode(seeded(0x56).sign(spk.as_bytes()));
    assert_eq!(alice.refused("set_user", json!({ "spk": spk.to_hex(), "sig": foreign })).await, "bad_signature");
    alice.does("/picture #aabbcc").await;
    alice.does("/status dnd").await;
    bob.does("/who alice").await;
    let dnd = heliostat::chat::dm::wire::Status::Dnd;
    let picture = find!(bob, Event::Person { status, picture, prekey: true, .. } if *status == dnd => picture.clone());
    assert_eq!(picture, "#aabbcc");
    assert_eq!(bob.names("/users").await, ["alice", "bob"]);
    // Without a prekey nobody is invited.
    befriend(&mut alice, &mut bob).await;
    alice.does("/withdraw").await;
    assert!(bob.fails("/dm alice").await.contains("prekey"));
    alice.does("/rotate").await;
    bob.does("/dm alice").await;
}

#[tokio::test]
async fn steps_6_and_20_friends_and_blocks() {
    let home = Home::new().await;
    let (mut alice, mut bob) = (home.account("alice").await, home.account("bob").await);
    // 6.
    alice.does("/friend bob").await;
    find!(bob, Event::FriendRequest { name } if name == "alice" => ());
    for (person, line, code) in [
        ("alice", "bob", "already_requested"),
        ("bob", "alice", "request_waiting"),
        ("alice", "alice", "cannot_friend_self"),
        ("alice", "nobody", "cannot_friend"),
    ] {
        let person = if person == "alice" { &mut alice } else { &mut bob };
        assert_eq!(person.refused("send_friend_request", json!({ "username": line })).await, code);
    }
    assert_eq!(
        (alice.names("/outgoing").await, bob.names("/requests").await),
        (vec!["bob".into()], vec!["alice".into()])
    );
    bob.does("/refuse alice").await;
    find!(alice, Event::FriendAnswer { name, accepted: false } if name == "bob" => ());
    assert!(bob.fails("/accept alice").await.contains("no request"));
    alice.does("/friend bob").await;
    find!(bob, Event::FriendRequest { .. } => ());
    bob.does("/accept alice").await;
    find!(alice, Event::FriendAnswer { accepted: true, .. } => ());
    assert_eq!(
        (alice.names("/friends").await, bob.names("/friends").await),
        (vec!["bob".into()], vec!["alice".into()])
    );
    // 20.
    alice.does("/dm bob").await;
    bob.has_key(alice.here()).await;
    bob.does("/to alice").await;
    alice.does("/block bob").await;
    assert_eq!(alice.names("/blocked").await, ["bob"]);
    bob.has_not(|event| matches!(event, Event::Unfriended { .. })).await;
    assert!(alice.fails("not any more").await.contains("not friends"));
    assert!(bob.fails("why").await.contains("not friends"));
    assert!(bob.fails("/typing").await.contains("not friends"));
    assert_eq!(bob.refused("send_friend_request", json!({ "username": "alice" })).await, "cannot_friend");
    alice.does("/friend bob").await;
    assert!(alice.names("/blocked").await.is_empty(), "asking takes the block away");
    find!(bob, Event::FriendRequest { .. } => ());
    bob.does("/block alice").await;
    assert_eq!(bob.names("/requests").await, ["alice"]);
    bob.does("/accept alice").await;
    assert!(bob.names("/blocked").await.is_empty());
    assert_eq!(alice.names("/friends").await, ["bob"]);
    alice.does("/unfriend bob").await;
    find!(bob, Event::Unfriended { name } if name == "alice" => ());
    find!(alice, Event::Unfriended { name } if name == "bob" => ());
    bob.does("/block alice").await;
    assert!(alice.fails("/friend bob").await.contains("cannot"));
    bob.does("/unblock alice").await;
    assert_eq!(bob.refused("unblock_user", json!({ "username": "alice" })).await, "not_blocked");
}

#[tokio::test]
async fn steps_7_and_8_pairs_and_groups() {
    let home = Home::new().await;
    let (mut alice, mut bob) = (home.account("alice").await, home.account("bob").await);
    // 7.
    assert!(alice.fails("/dm bob").await.contains("not friends"));
    befriend(&mut alice, &mut bob).await;
    alice.does("/dm bob").await;
    let pair = alice.here();
    bob.has_key(pair).await;
    alice.has_not(|event| matches!(event, Event::Key { .. })).await;
    let keys = |people: [&Person; 2], dm: i64| people.map(|person| person.client.book().key(dm).unwrap().clone());
    let [of_alice, of_bob] = keys([&alice, &bob], pair);
    assert_eq!(of_alice, of_bob);
    assert!(alice.fails("/dm bob").await.contains("already"));
    // What a server refuses of a client that is not ours.
    let prekey = bob.asks("get_full_user", json!({})).await["spk"].clone();
    let point = seeded(0x61).public().to_hex();
    let message = json!({ "ek": point, "spk": prekey });
    let tree = |len: usize| vec![point.clone(); len];
    let with = |names: &[&str], len: usize| json!({ "usernames": names, "messages": vec![&message; names.len()], "key_tree": tree(len) });
    for (args, code) in [
        (with(&["bob"], 2), "dm_exists"),
        (with(&["bob"], 1), "bad_request"),
        (with(&["bob"], 6), "bad_request"),
        (with(&["bob", "bob"], 6), "bad_request"),
        (with(&["alice"], 2), "bad_request"),
        (with(&[], 2), "bad_request"),
        (with(&["nobody"], 2), "no_such_user"),
    ] {
        assert_eq!(alice.refused("create_dm", args.clone()).await, code, "{args}");
    }
    let stale = json!({ "usernames": ["bob"], "messages": [{ "ek": point, "spk": point }], "key_tree": tree(2) });
    assert_eq!(alice.refused("create_dm", stale).await, "spk_mismatch");
    // 8. Carol is not there; her key waits for her, and is delivered again to who was not there for long.
    let carol = home.account("carol").await;
    carol.client.close().unwrap();
    alice.does("/group bob carol").await;
    let group = alice.here();
    bob.has_key(group).await;
    let mut brief = home.open("carol", "carol");
    brief.has_key(group).await;
    brief.client.close().unwrap();
    let mut carol = home.open("carol", "carol");
    find!(carol, Event::Ready { .. } => ());
    let key = alice.client.book().key(group).unwrap();
    assert_eq!((bob.client.book().key(group), carol.client.book().key(group)), (Some(key), Some(key)));
    alice.says("to all of you").await;
    carol.hears("to all of you").await;
    carol.has_not(|event| matches!(event, Event::Key { .. } | Event::NotInvited { .. })).await;
    // The digits are the same from both sides, and of the keys that are used.
    bob.does("/verify alice").await;
    let shown = find!(bob, Event::Fingerprint { fingerprint, verified: false, .. } => fingerprint.clone());
    let identity = |person: &Person| person.client.book().identity().public();
    assert_eq!(shown, fingerprint(&identity(&alice), &identity(&bob)));
    alice.does("/verified bob").await;
    assert_eq!(find!(alice, Event::Fingerprint { fingerprint, verified: true, .. } => fingerprint.clone()), shown);
    alice.does("/to bob").await;
    bob.does("/to alice").await;
    bob.says("it is me").await;
    assert!(alice.hears("it is me").await.verified);
    alice.says("and me").await;
    assert!(!bob.hears("and me").await.verified);
}

#[tokio::test]
async fn step_8_what_other_clients_made_is_understood() {
    let home = Home::new().await;
    let (mut stranger, vectors) = (Stranger::at(&home).await, vectors());
    for (name, own) in [("alice", 0x11), ("bob", 0x21), ("carol", 0x31)] {
        let mut registration = registration(name, &seeded(own), &seeded(own + 1));
        assert_eq!(registration["sig"], vectors[name]["sig"]);
        if name == "alice" {
            registration["own_storage"] = vectors["own_storage"]["value"].clone();
        }
        assert_eq!(stranger.asks("register", registration).await, Ok(json!(true)));
    }
    let mut alice = home.recover("alice", "alice", seeded(0x11)).await.unwrap();
    // Of the others the prekeys are nobody's here: they are written where devices share them.
    for (name, own) in [("bob", 0x21), ("carol", 0x31)] {
        let mut line = Stranger::at(&home).await;
        let point = line.challenge(name).await;
        line.responds(seeded(own).answer(name, &point)).await.unwrap();
        let plain = format!(r#"{{"privSPK":"{}","sharedKeys":{{}}}}"#, hex::encode([own + 1; 32]));
        let sealed = hex::encode(seeded(own).personal().seal(plain.as_bytes()));
        line.asks("set_user", json!({ "own_storage": sealed })).await.unwrap();
    }
    let mut bob = home.recover("bob", "bob", seeded(0x21)).await.unwrap();
    let mut carol = home.recover("carol", "carol", seeded(0x31)).await.unwrap();
    befriend(&mut alice, &mut bob).await;
    let mut messages = vectors["group2"]["messages"].clone();
    messages[0]["setup_sig"] = vectors["ext2_setup_sig_for_bob"]["setup_sig"].clone();
    let made = json!({ "usernames": ["bob"], "messages": messages, "key_tree": vectors["group2"]["key_tree"] });
    let mut forged = made.clone();
    forged["key_tree"][0] = seeded(0x66).public().to_hex().into();
    assert_eq!(alice.refused("create_dm", forged).await, "bad_signature", "the server looks, too");
    let pair = alice.asks("create_dm", made).await.as_i64().unwrap();
    bob.has_key(pair).await;
    let key = |person: &Person, dm: i64| hex::encode(person.client.book().key(dm).unwrap().secret().expose());
    assert_eq!(key(&bob, pair), vectors["group2"]["root"]);
    // A creator who signs no setups.
    let made = json!({
        "usernames": ["bob", "carol"],
        "messages": vectors["group3"]["messages"],
        "key_tree": vectors["group3"]["key_tree"],
    });
    let group = alice.asks("create_dm", made).await.as_i64().unwrap();
    for person in [&mut bob, &mut carol] {
        assert!(!find!(person, Event::Key { dm, signed, .. } if *dm == group => *signed));
        assert_eq!(key(person, group), vectors["group3"]["root"]);
    }
    let said = &vectors["message"];
    let args =
        json!({ "id": pair, "message": said["message"], "signature": said["signature"], "schedule": 0, "delete": 0 });
    alice.asks("send_message", args.clone()).await;
    let heard = bob.hears("hi \u{2713}").await;
    assert_eq!((heard.from.as_str(), heard.dm), ("alice", pair));
    // The same again is another message for the server, and none for whoever has seen it.
    alice.asks("send_message", args).await;
    let again = find!(bob, Event::Said(said) if said.id != heard.id => said.clone());
    assert_eq!((again.text, again.doubt), (None, Some(Doubt::Repeats(heliostat::tools::dm::Thing::Message(heard.id)))));
    bob.does("/to alice").await;
    let react = &vectors["reaction"];
    let args = json!({ "id": heard.id, "reaction": react["reaction"], "signature": react["signature"] });
    bob.asks("add_reaction", args).await;
    let shown = bob.history("/history").await;
    assert_eq!(shown[0].reactions[0].text.as_deref(), Some("0"));
}

#[tokio::test]
async fn steps_9_10_and_14_to_18_what_is_said_and_what_becomes_of_it() {
    let home = Home::new().await;
    let (mut alice, mut bob) = home.pair().await;
    let mut carol = home.account("carol").await;
    let pair = alice.here();
    // 9.
    let id = alice.says("h\u{e9}llo").await;
    assert_eq!(bob.hears("h\u{e9}llo").await.id, id);
    assert!(!home.server_knows("h\u{e9}llo"));
    let (message, signature) = {
        let sealed = carol.client.book().identity().personal().seal(b"x");
        (hex::encode(&sealed), hex::encode(carol.client.book().identity().sign(&sealed)))
    };
    for event in [
        "send_message",
        "get_dm",
        "get_message_history",
        "get_pinned",
        "ping_typing",
        "join_call",
        "set_dm",
        "leave_dm",
    ] {
        let args = json!({ "id": pair, "message": message, "signature": signature, "schedule": 0, "delete": 0, "uuid": "u", "name": "n" });
        assert_eq!(carol.refused(event, args).await, "no_dm_access", "{event}");
    }
    for event in ["get_message", "set_message", "add_reaction"] {
        let args = json!({ "id": id, "reaction": message, "message": message, "signature": signature });
        assert_eq!(carol.refused(event, args).await, "no_message_access", "{event}");
    }
    // 10.
    let forged = json!({ "id": pair, "message": message, "signature": signature, "schedule": 0, "delete": 0 });
    assert_eq!(alice.refused("send_message", forged.clone()).await, "bad_signature");
    let mut past = forged;
    past["schedule"] = json!(-1);
    assert_eq!(alice.refused("send_message", past).await, "bad_request");
    // 14.
    alice.does(&format!("/edit {id} hello, all")).await;
    let changed = find!(bob, Event::Changed(said) => said.clone());
    assert_eq!((changed.id, changed.text.as_deref()), (id, Some("hello, all")));
    assert!(bob.fails(&format!("/edit {id} mine")).await.contains("not yours"));
    let of_bob = {
        let sealed = bob.client.book().key(pair).unwrap().seal(b"mine");
        json!({ "id": id, "message": hex::encode(&sealed), "signature": hex::encode(bob.client.book().identity().sign(&sealed)) })
    };
    assert_eq!(bob.refused("set_message", of_bob.clone()).await, "not_sender");
    let alone = json!({ "id": id, "signature": of_bob["signature"] });
    assert_eq!(alice.refused("set_message", alone).await, "bad_request");
    bob.does(&format!("/pin {id}")).await;
    assert!(find!(alice, Event::Changed(said) if said.pinned => said.text.as_deref() == Some("hello, all")));
    assert_eq!(alice.history("/pinned").await.len(), 1);
    alice.does(&format!("/unpin {id}")).await;
    assert!(bob.history("/pinned").await.is_empty());
    // 15.
    bob.does(&format!("/react {id} \u{1f44d}")).await;
    let reaction = find!(bob, Event::Done { what } if what.contains("reaction") => what.clone());
    let reaction: i64 = reaction.rsplit(' ').next().unwrap().parse().unwrap();
    let seen = find!(alice, Event::Changed(said) if !said.reactions.is_empty() => said.reactions.clone());
    assert_eq!((seen[0].id, seen[0].from.as_str(), seen[0].text.as_deref()), (reaction, "bob", Some("\u{1f44d}")));
    assert!(alice.fails(&format!("/unreact {reaction}")).await.contains("reaction"));
    alice.seen.clear();
    bob.does(&format!("/unreact {reaction}")).await;
    find!(alice, Event::Changed(said) if said.reactions.is_empty() && !said.pinned => ());
    // 17.
    alice.does("/typing").await;
    assert_eq!(find!(bob, Event::Typing { dm, name } => (*dm, name.clone())), (pair, "alice".to_owned()));
    alice.has_not(|event| matches!(event, Event::Typing { .. })).await;
    // 18.
    alice.does("/name the two of us").await;
    for person in [&mut alice, &mut bob] {
        find!(person, Event::Dm(shown) if shown.name.as_deref() == Some("the two of us") => ());
    }
    bob.seen.clear();
    alice.does("/name").await;
    find!(bob, Event::Dm(shown) if shown.name.is_none() => ());
    bob.does("/leave").await;
    find!(bob, Event::Left { dm } if *dm == pair => ());
    find!(alice, Event::Dm(shown) if shown.users == ["alice"] => ());
    alice.says("into the void").await;
    bob.has_not(|event| matches!(event, Event::Said(said) if said.text.as_deref() == Some("into the void"))).await;
    assert!(bob.fails("/to alice").await.contains("/dm"));
    assert_eq!(bob.refused("get_message", json!({ "id": id })).await, "no_message_access");
    alice.does("/leave").await;
    assert_eq!(alice.asks("get_dms", json!({})).await, json!([]));
    // And begin anew.
    bob.does("/dm alice").await;
    alice.has_key(bob.here()).await;
    alice.does("/to bob").await;
}

/// At the same time: most of it is waiting.
#[tokio::test]
async fn steps_11_to_13_what_waits_for_its_time() {
    tokio::join!(
        steps_11_and_12_what_is_said_later_and_deletes_itself(),
        step_13_a_server_that_was_away_forgets_nothing(),
    );
}

async fn steps_11_and_12_what_is_said_later_and_deletes_itself() {
    let home = Home::new().await;
    let (mut alice, mut bob) = home.pair().await;
    let pair = alice.here();
    // 12, the warning: a minute before, so after two seconds.
    alice.does("/later 62 much later").await;
    // 11 and 12 at the same time.
    alice.does("/vanish 2 gone soon").await;
    alice.does("/timed 3 2 later").await;
    let id = bob.hears("gone soon").await.id;
    assert!(bob.client.book().shown(pair).is_some());
    alice.does("/schedules").await;
    let mut pending = Vec::new();
    for _ in 0..2 {
        let found = find!(alice, Event::Scheduled { id, text, time, .. } => (*id, text.clone().unwrap(), time.clone()));
        pending.push(found);
    }
    pending.sort();
    let [(much_later, first, _), (later, second, due)] = &pending[..] else { panic!("{pending:?}") };
    assert_eq!((first.as_str(), second.as_str()), ("much later", "later"));
    bob.does("/schedules").await;
    bob.has_not(|event| matches!(event, Event::Scheduled { .. })).await;
    let cancel = json!({ "dm_id": pair, "schedule_id": much_later });
    assert_eq!(bob.refused("cancel_scheduled_message", cancel.clone()).await, "no_schedule");
    // All three of them within three seconds.
    assert_eq!(find!(bob, Event::Vanished { id, dm } => (*id, *dm)), (id, Some(pair)));
    assert_eq!(bob.refused("get_message", json!({ "id": id })).await, "no_message_access");
    assert_eq!(find!(alice, Event::Sent { id, .. } => *id), *later);
    let sent = bob.hears("later").await;
    assert!(sent.id > id, "ids are not given twice");
    assert!(sent.time >= *due && sent.vanishes.as_ref().is_some_and(|it| *it > sent.time), "{sent:?}, due {due}");
    assert_eq!(find!(alice, Event::Soon { id, .. } => *id), *much_later);
    bob.has_not(|event| matches!(event, Event::Sent { .. } | Event::Soon { .. })).await;
    alice.does(&format!("/cancel {much_later}")).await;
    assert!(alice.fails(&format!("/cancel {much_later}")).await.contains("no such"));
    let next = alice.says("after all of that").await;
    assert!(next > sent.id);
    // And two more.
    assert_eq!(find!(bob, Event::Vanished { id, .. } => *id), sent.id);
    assert_eq!(alice.history("/history").await.len(), 1);
}

async fn step_13_a_server_that_was_away_forgets_nothing() {
    let mut home = Home::new().await;
    let (mut alice, mut bob) = home.pair().await;
    let carol = home.account("carol").await;
    let pair = alice.here();
    let pinned = alice.says("pinned").await;
    alice.does(&format!("/pin {pinned}")).await;
    let gone = {
        alice.does("/vanish 1 gone").await;
        alice.hears("gone").await.id
    };
    carol.client.close().unwrap();
    alice.does("/group bob carol").await;
    let group = alice.here();
    bob.has_key(group).await;
    alice.does("/to bob").await;
    alice.does("/later 1 due while away").await;
    alice.does("/later 3 due afterwards").await;
    let [of_alice, of_bob] = [&mut alice, &mut bob].map(|person| async { find!(person, Event::Lost { .. } => ()) });
    tokio::join!(home.stop(), of_alice, of_bob);
    // Nobody serves while the first of them comes due.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    home.start().await;
    for person in [&mut alice, &mut bob] {
        find!(person, Event::Ready { .. } => ());
        person.hears("due while away").await;
        person.hears("due afterwards").await;
        assert_eq!(person.refused("get_message", json!({ "id": gone })).await, "no_message_access");
    }
    bob.does("/to alice").await;
    assert_eq!(bob.history("/pinned").await[0].id, pinned);
    let history: Vec<_> = bob.history("/history").await.into_iter().filter_map(|said| said.text).collect();
    assert_eq!(history, ["pinned", "due while away", "due afterwards"]);
    assert_eq!(bob.names("/friends").await, ["alice"]);
    let mut carol = home.open("carol", "carol");
    carol.has_key(group).await;
    assert_eq!(carol.client.book().key(group), alice.client.book().key(group));
    assert_eq!(alice.here(), pair);
}

#[tokio::test]
async fn steps_16_and_23_a_long_history_in_order() {
    let home = Home::new().await;
    let (mut alice, mut bob) = home.pair().await;
    let pair = alice.here();
    // 16.
    for n in 0..120 {
        alice.does(&format!("message {n}")).await;
    }
    let mut cursor = Value::Null;
    let (mut sizes, mut ids) = (Vec::new(), Vec::new());
    loop {
        let page = bob.asks("get_message_history", json!({ "id": pair, "cursor": cursor, "count": 50 })).await;
        let page = page.as_array().unwrap().clone();
        let Some(oldest) = page.last() else { break };
        // With a zone and without.
        let zone = if sizes.len() % 2 == 0 { "Z" } else { "" };
        cursor = format!("{}{zone}", oldest["timestamp"].as_str().unwrap()).into();
        sizes.push(page.len());
        ids.extend(page.iter().map(|message| message["id"].as_i64().unwrap()));
    }
    assert_eq!(sizes, [50, 50, 20]);
    assert!(ids.windows(2).all(|two| two[0] > two[1]), "newest first, no gap, no repetition");
    let texts = |shown: Vec<Said>| shown.into_iter().map(|said| said.text.unwrap()).collect::<Vec<_>>();
    let expected = |range: std::ops::Range<usize>| range.map(|n| format!("message {n}")).collect::<Vec<_>>();
    assert_eq!(texts(bob.history("/history 100").await), expected(20..120));
    assert_eq!(texts(bob.history("/older").await), expected(0..20));
    // Bob heard each of them once while he looked elsewhere.
    let heard = bob.seen.iter().filter(|event| matches!(event, Event::Said(_))).count();
    assert_eq!(heard, 120);
    // 23: nobody waits for an answer.
    let mut line = Stranger::at(&home).await;
    let point = line.challenge("alice").await;
    let identity = alice.client.book().identity().clone();
    line.responds(identity.answer("alice", &point)).await.unwrap();
    let key = alice.client.book().key(pair).unwrap().clone();
    for n in 0..1_000 {
        let sealed = key.seal(format!("burst {n}").as_bytes());
        let signature = hex::encode(identity.sign(&sealed));
        let args =
            json!({ "id": pair, "message": hex::encode(sealed), "signature": signature, "schedule": 0, "delete": 0 });
        line.number += 1;
        assert!(line.line.ask(line.number, "send_message", args));
    }
    assert_eq!(line.answer(line.number).await, Ok(json!(true)));
    let mut before = 0;
    for n in 0..1_000 {
        let said = bob.hears(&format!("burst {n}")).await;
        assert!(said.id > before, "in the order in which they were said");
        before = said.id;
    }
    assert!(bob.seen.iter().all(
        |event| !matches!(event, Event::Said(said) if said.text.as_deref().is_some_and(|it| it.starts_with("burst")))
    ));
}

#[tokio::test]
async fn steps_19_and_21_calls_and_who_is_there() {
    let home = Home::new().await;
    let (mut alice, mut bob) = home.pair().await;
    let pair = alice.here();
    let identity = alice.client.book().identity().clone();
    // 21. Another device, by the words of the key.
    let words = words::of(&identity.seed());
    let read = SecretKey::new(&words::read(&words).unwrap());
    let mut tablet = home.recover("tablet", "alice", read).await.unwrap();
    assert_eq!(tablet.client.book().key(pair), alice.client.book().key(pair), "devices share what they know");
    tablet.does("/to bob").await;
    let id = tablet.says("from the tablet").await;
    assert_eq!((alice.hears("from the tablet").await.id, bob.hears("from the tablet").await.id), (id, id));
    bob.says("to both of you").await;
    tablet.hears("to both of you").await;
    assert!(alice.hears("to both of you").await.doubt.is_none());
    // What one of them makes the other has.
    let mut carol = home.account("carol").await;
    befriend(&mut tablet, &mut carol).await;
    tablet.does("/dm carol").await;
    let other = tablet.here();
    tablet.says("hello, carol").await;
    assert_eq!(
        find!(alice, Event::Dm(shown) if shown.dm == other && shown.ready => shown.users.clone()),
        ["alice", "carol"]
    );
    alice.hears("hello, carol").await;
    alice.does("/to carol").await;
    alice.does("/to bob").await;
    // 19.
    alice.does("/call of-alice").await;
    find!(alice, Event::Call { peers, .. } if peers.len() == 1 => ());
    find!(bob, Event::Joined { dm, name } if *dm == pair && name == "alice" => ());
    find!(bob, Event::Dm(shown) if shown.call == ["alice"] => ());
    bob.does("/call of-bob").await;
    let peers = find!(bob, Event::Call { peers, .. } => peers.clone());
    assert_eq!(
        peers.into_iter().collect::<Vec<_>>(),
        [("alice".into(), "of-alice".into()), ("bob".into(), "of-bob".into())]
    );
    find!(alice, Event::Joined { name, .. } if name == "bob" => ());
    bob.does("/hangup").await;
    find!(alice, Event::Hung { name, .. } if name == "bob" => ());
    assert!(bob.fails("/hangup").await.contains("not in the call"));
    assert!(alice.refused("join_call", json!({ "id": pair, "uuid": "a b" })).await == "bad_request");
    alice.client.close().unwrap();
    find!(bob, Event::Hung { name, .. } if name == "alice" => ());
    // 21: she is still there by the other one.
    bob.settle().await;
    let offline = heliostat::chat::dm::wire::Status::Offline;
    let is_gone =
        |event: &Event| matches!(event, Event::Person { name, status, .. } if name == "alice" && *status == offline);
    assert!(!bob.seen.iter().any(is_gone), "{:#?}", bob.lines());
    tablet.client.close().unwrap();
    find!(bob, Event::Person { name, status, .. } if name == "alice" && *status == offline => ());
}

#[tokio::test]
async fn step_22_garbage_is_answered_or_ends_its_connection_alone() {
    let home = Home::new().await;
    let (mut alice, mut bob) = home.pair().await;
    let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
    for event in dm::wire::Request::NAMES {
        for args in
            [json!(999), json!([1, [2]]), Value::Null, json!("x"), json!({ "id": "x", "username": 5 }), json!([])]
        {
            // What has no parameters may well be done.
            let _answered = soon(alice.client.ask_raw(event, args)).await;
            assert!(alice.client.is_connected(), "{event}");
        }
    }
    assert_eq!(alice.refused("what", json!({})).await, "unknown_event");
    // What is JSON is refused, however it is meant; what is none ends the connection.
    for (frame, code) in [
        (format!("421[\"login\",{deep}]"), Some("bad_request")),
        (format!("421[\"login\",{{\"username\":{deep}}}]"), Some("bad_request")),
        ("421[\"login\",\"\\ud800\"]".to_owned(), Some("bad_request")),
        ("421[\"get_friends\",{}]".to_owned(), Some("not_logged_in")),
        ("421[\"login\",{]".to_owned(), None),
        ("421{}".to_owned(), None),
    ] {
        let mut stranger = Stranger::at(&home).await;
        stranger.line.say(frame.clone());
        let refused = async {
            loop {
                match stranger.line.next().await {
                    Ok(Heard::Answer(1, answer)) => break answer.code,
                    Ok(_) => {}
                    Err(_) => break None,
                }
            }
        };
        assert_eq!(soon(refused).await.as_deref(), code, "{}", &frame[..frame.len().min(60)]);
        if code.is_some() {
            assert_eq!(stranger.asks("username_exists", json!({ "username": "alice" })).await, Ok(json!(true)));
        }
    }
    let mut stranger = Stranger::at(&home).await;
    stranger.line.say(format!("421[\"login\",\"{}\"]", "x".repeat(1_500_000)));
    let ended = async { while stranger.line.next().await.is_ok() {} };
    soon(ended).await;
    // Nobody else noticed.
    alice.seen.clear();
    bob.says("still here").await;
    alice.hears("still here").await;
}

/// Something between a client and the server that loses answers when it is told to.
struct Relay {
    address: SocketAddr,
    /// Which of the next things that the server says is lost, and the connection with it; none is 0.
    loses: Arc<AtomicU32>,
}

impl Relay {
    async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, loses) = (listener.local_addr().unwrap(), Arc::new(AtomicU32::new(0)));
        let losing = Arc::clone(&loses);
        tokio::spawn(async move {
            while let Ok((here, _)) = listener.accept().await {
                let losing = Arc::clone(&losing);
                let Ok(there) = TcpStream::connect(server).await else { continue };
                tokio::spawn(async move {
                    let ((mut from, mut to), (mut back, mut forth)) = (here.into_split(), there.into_split());
                    let up = tokio::io::copy(&mut from, &mut forth);
                    let down = async {
                        let mut bytes = vec![0; 65_536];
                        while let Ok(len @ 1..) = back.read(&mut bytes).await {
                            let one_less = |left: u32| left.checked_sub(1);
                            let left = losing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less);
                            if left == Ok(1) || to.write_all(&bytes[..len]).await.is_err() {
                                break;
                            }
                        }
                    };
                    tokio::select! { _up = up => {}, () = down => {} }
                });
            }
        });
        Self { address, loses }
    }
}

/// At the same time: most of it is waiting.
#[tokio::test]
async fn what_becomes_of_connections_that_end() {
    tokio::join!(
        what_was_said_arrives_once_whatever_becomes_of_the_connection(),
        a_server_that_ends_every_connection_is_asked_ever_more_slowly(),
    );
}

async fn what_was_said_arrives_once_whatever_becomes_of_the_connection() {
    let mut home = Home::new().await;
    let relay = Relay::before(home.address).await;
    let direct = std::mem::replace(&mut home.address, relay.address);
    let mut alice = home.account("alice").await;
    home.address = direct;
    let mut bob = home.account("bob").await;
    befriend(&mut alice, &mut bob).await;
    // After Bob's key, the answer that has the number in it is lost: what was made is found again, and its key with it.
    relay.loses.store(2, Ordering::SeqCst);
    alice.types("/dm bob").await;
    assert_eq!(alice.client.book().dms().next(), None);
    alice.idles().await;
    assert!(alice.seen.iter().any(Event::is_failure), "it was said: {:#?}", alice.lines());
    let dm = alice.client.book().dms().next().unwrap();
    bob.has_key(dm).await;
    assert_eq!(alice.client.book().key(dm), bob.client.book().key(dm));
    alice.types("/to bob").await;
    alice.seen.clear();
    let mut lost = 0;
    for n in 0..6 {
        if n % 3 == 1 {
            relay.loses.store(1, Ordering::SeqCst);
        }
        if n % 3 == 2 {
            alice.client.drop_connection();
        }
        alice.types(&format!("message {n}")).await;
        alice.idles().await;
        lost += alice.seen.iter().filter(|event| matches!(event, Event::Lost { .. })).count();
        alice.seen.retain(|event| !matches!(event, Event::Lost { .. }));
    }
    assert!(lost >= 4, "{lost}");
    assert!(!alice.seen.iter().any(Event::is_failure), "{:#?}", alice.lines());
    for n in 0..6 {
        bob.hears(&format!("message {n}")).await;
    }
    bob.does("/to alice").await;
    let shown: Vec<_> = bob.history("/history 50").await.into_iter().map(|said| said.text.unwrap()).collect();
    assert_eq!(shown, (0..6).map(|n| format!("message {n}")).collect::<Vec<_>>());
    // Of what deletes itself it cannot be seen whether it was there: that is told, and it is not said again.
    relay.loses.store(1, Ordering::SeqCst);
    alice.types("/vanish 1 once").await;
    bob.hears("once").await;
    find!(bob, Event::Vanished { .. } => ());
    alice.idles().await;
    assert!(alice.lines().iter().any(|line| line.contains("it is not known whether")), "{:#?}", alice.lines());
    bob.has_not(|event| matches!(event, Event::Said(said) if said.text.as_deref() == Some("once"))).await;
}

#[tokio::test]
async fn a_device_that_was_away_hears_what_it_missed_and_old_prekeys_open_old_invitations() {
    let home = Home::new().await;
    let (mut alice, bob) = home.pair().await;
    let mut carol = home.account("carol").await;
    befriend(&mut alice, &mut carol).await;
    // Bob's other device publishes a prekey while an invitation with the one before is on its way.
    let identity = bob.client.book().identity().clone();
    bob.client.close().unwrap();
    alice.says("while you were away").await;
    alice.does("/group bob carol").await;
    let group = alice.here();
    carol.has_key(group).await;
    alice.says("in the group").await;
    let mut tablet = home.recover("tablet", "bob", identity).await.unwrap();
    let of_before =
        |event: &Event| matches!(event, Event::Said(said) if said.text.as_deref() == Some("while you were away"));
    tablet.has_not(of_before).await;
    tablet.does("/rotate").await;
    tablet.has_key(group).await;
    tablet.hears("in the group").await;
    let mut bob = home.open("bob", "bob");
    assert_eq!(bob.hears("while you were away").await.from, "alice");
    bob.hears("in the group").await;
    assert_eq!(bob.client.book().key(group), alice.client.book().key(group));
    bob.has_not(|event| event.is_failure()).await;
    // And what is new is made with the new one.
    alice.does("/group carol bob").await;
    bob.has_key(alice.here()).await;
    tablet.has_key(alice.here()).await;
    // Nothing is told twice to whoever comes back.
    bob.client.close().unwrap();
    let mut bob = home.open("bob", "bob");
    find!(bob, Event::Ready { .. } => ());
    bob.has_not(|event| matches!(event, Event::Said(_) | Event::Pinned { .. })).await;
    // Nobody else opens it.
    bob.client.close().unwrap();
    let wrong = Client::open(home.place(), Options::default(), &home.state("bob"), "bob", "wrong");
    assert!(wrong.is_err_and(|error| error.to_string().contains("passphrase")));
}

#[tokio::test]
async fn however_long_what_was_missed_is_it_arrives() {
    let home = Home::new().await;
    let (mut alice, bob) = home.pair().await;
    bob.client.close().unwrap();
    // In one answer, they would be longer than any request may be.
    let text = |n: usize| format!("{n:02} {}", "x".repeat(dm::wire::MESSAGE_MAX - 100));
    for n in 0..17 {
        alice.does(&text(n)).await;
    }
    let mut bob = home.open("bob", "bob");
    for n in 0..17 {
        bob.hears(&text(n)).await;
    }
    bob.does("/to alice").await;
    assert_eq!(bob.history("/history 17").await.len(), 17);
    assert!(!bob.seen.iter().any(|event| matches!(event, Event::Lost { .. })), "on one connection");
}

#[tokio::test]
async fn what_devices_share_is_not_written_over_because_it_is_not_understood() {
    let home = Home::new().await;
    let (mut alice, _bob) = home.pair().await;
    let pair = alice.here();
    let identity = alice.client.book().identity().clone();
    // A form that is not ours, and what does not open at all.
    let strange = hex::encode(identity.personal().seal(br#"{"sharedKeys":{},"verified":{"bob":true}}"#));
    for (n, shared) in [strange, "00".repeat(40)].into_iter().enumerate() {
        alice.asks("set_user", json!({ "own_storage": shared })).await;
        alice.client.drop_connection();
        alice.types("/verified bob").await;
        alice.idles().await;
        let told = alice.seen.drain(..).any(|event| event.is_failure() && event.line().contains("/overwrite"));
        assert_eq!(told, n == 0, "once");
        assert!(alice.fails("/rotate").await.contains("/overwrite"));
        alice.seen.clear();
        let tablet = home.recover("tablet", "alice", identity.clone()).await;
        assert!(matches!(tablet, Err(Failure::Shared(_))), "it has nothing else");
        assert_eq!(alice.asks("get_full_user", json!({})).await["own_storage"], shared);
    }
    alice.does("/overwrite").await;
    let tablet = home.recover("tablet", "alice", identity.clone()).await.unwrap();
    assert_eq!(tablet.client.book().key(pair), alice.client.book().key(pair));
    assert!(tablet.client.book().fingerprint("bob").unwrap().1);
    // Whoever has no other device begins anew.
    alice.client.close().unwrap();
    tablet.client.close().unwrap();
    let mut line = Stranger::at(&home).await;
    let point = line.challenge("alice").await;
    line.responds(identity.answer("alice", &point)).await.unwrap();
    line.asks("set_user", json!({ "own_storage": "00".repeat(40) })).await.unwrap();
    let (dir, afresh) = (home.state("anew"), Options { afresh: true, ..Options::default() });
    let anew = soon(Client::recover(home.place(), afresh, &dir, "alice", PASSPHRASE, identity.clone())).await.unwrap();
    let own = line.asks("get_full_user", json!({})).await.unwrap();
    let published = PublicKey::from_hex(own["spk"].as_str().unwrap()).unwrap();
    let shared = dm::crypto::Storage::open(&identity.personal(), own["own_storage"].as_str().unwrap()).unwrap();
    assert_eq!(shared.prekey.unwrap().public(), published);
    assert_eq!(anew.book().key(pair), None);
}

#[tokio::test]
async fn what_one_device_gives_up_no_other_brings_back() {
    let home = Home::new().await;
    let (mut alice, _bob) = home.pair().await;
    let pair = alice.here();
    let identity = alice.client.book().identity().clone();
    let mut tablet = home.recover("tablet", "alice", identity).await.unwrap();
    async fn until(person: &mut Person, so: impl Fn(&heliostat::tools::dm::Book) -> bool) {
        while !so(person.client.book()) {
            soon(person.client.wait()).await.unwrap();
            soon(person.client.attend()).await.unwrap();
        }
    }
    // Both write at once: whoever is overwritten finds out, and writes again.
    let _carol = home.account("carol").await;
    tokio::join!(alice.types("/verified bob"), tablet.types("/verified carol"));
    let both = |book: &heliostat::tools::dm::Book| {
        ["bob", "carol"].iter().all(|name| book.fingerprint(name).is_some_and(|(_, verified)| verified))
    };
    soon(async { tokio::join!(until(&mut alice, both), until(&mut tablet, both)) }).await;
    tablet.idles().await;
    alice.idles().await;
    // What is forgotten.
    alice.does("/forget bob").await;
    soon(until(&mut tablet, |book| book.pinned("bob").is_none())).await;
    tablet.idles().await;
    alice.settle().await;
    alice.client.drop_connection();
    alice.idles().await;
    assert_eq!((alice.client.book().pinned("bob"), alice.client.book().find("bob").is_err()), (None, true));
    // What is left.
    alice.does("/leave").await;
    soon(until(&mut tablet, |book| book.key(pair).is_none())).await;
    tablet.idles().await;
    alice.client.drop_connection();
    alice.idles().await;
    assert_eq!((alice.client.book().key(pair), alice.client.book().dms().next()), (None, None));
}

/// What a server says to a request: what it says by itself before, and its answer; nothing ends the connection.
type Told = Option<(Vec<(&'static str, Value)>, Value)>;

/// A server that says what it likes, to the requests of one connection after the other.
async fn liar(mut says: impl FnMut(u32, &str, &Value) -> Told + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for connection in 1.. {
            let Ok((stream, _)) = listener.accept().await else { return };
            let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { continue };
            let opening = r#"0{"pingInterval":25000,"pingTimeout":20000}"#;
            let mut waits = VecDeque::from([opening.to_owned()]);
            'connection: loop {
                while let Some(frame) = waits.pop_front() {
                    if socket.send(Frame::text(frame)).await.is_err() {
                        break 'connection;
                    }
                }
                let Some(Ok(Frame::Text(frame))) = socket.next().await else { break };
                if frame.as_str() == "40" {
                    waits.push_back("40{}".to_owned());
                } else if let Some(request) = frame.strip_prefix("42") {
                    let (number, request) = request.split_at(request.find('[').unwrap());
                    let request: Value = serde_json::from_str(request).unwrap();
                    let Some((notices, answer)) = says(connection, request[0].as_str().unwrap(), &request[1]) else {
                        break;
                    };
                    waits.extend(notices.into_iter().map(|(name, said)| format!("42{}", json!([name, said]))));
                    waits.push_back(format!("43{number}{}", json!([{ "success": true, "result": answer }])));
                }
            }
        }
    });
    address
}

/// What a server that knows one account would say, and nothing else.
fn plainly(own: &mut Value, event: &str, args: &Value) -> Value {
    match event {
        "register" => {
            own.clone_from(args);
            for (name, value) in [("status", "online"), ("biography", ""), ("profile_picture", "")] {
                own[name] = value.into();
            }
            json!(true)
        }
        "login" => json!("05".repeat(32)),
        "get_full_user" => own.clone(),
        "get_dms" | "get_friend_requests" | "get_message_history" => json!([]),
        "set_user" => {
            for (name, value) in args.as_object().unwrap() {
                own[name] = value.clone();
            }
            json!(true)
        }
        _ => json!(true),
    }
}

fn at(address: SocketAddr) -> Place {
    Place::direct(&format!("plain://{address}"), &Trust::System).unwrap()
}

fn full_dm(id: i64, users: &[&str]) -> Value {
    json!({
        "id": id, "users": users, "name": null, "created_at": "", "users_in_call": [],
        "latest_message": null, "scheduled_messages": {},
    })
}

#[tokio::test]
async fn what_is_made_late_is_not_made_again() {
    let (bob, prekey) = (seeded(0x21), seeded(0x22));
    let (mut own, mut looks) = (Value::Null, 0);
    let address = liar(move |connection, event, args| {
        let answer = plainly(&mut own, event, args);
        looks += u32::from(connection == 2 && event == "get_dms");
        match event {
            "get_user" => {
                let mut user = registration("bob", &bob, &prekey);
                for name in ["status", "biography", "profile_picture"] {
                    user[name] = own[name].clone();
                }
                Some((vec![], user))
            }
            // The answer is lost, and whoever looks at once does not find it.
            "create_dm" => None,
            "get_dms" if looks > 1 => Some((vec![], json!([7]))),
            "get_dm" => Some((vec![], full_dm(7, &["alice", "bob"]))),
            _ => Some((vec![], answer)),
        }
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let client =
        soon(Client::register(at(address), Options::default(), dir.path(), "alice", PASSPHRASE)).await.unwrap();
    let mut alice = Person::of(client);
    alice.types("/dm bob").await;
    alice.idles().await;
    assert_eq!(alice.client.book().dms().next(), None);
    alice.seen.clear();
    alice.does("/dm bob").await;
    assert!(alice.here() == 7 && alice.client.book().key(7).is_some());
}

async fn a_server_that_ends_every_connection_is_asked_ever_more_slowly() {
    let mut own = Value::Null;
    let address = liar(move |_, event, args| {
        // Everything is well until the client is there.
        let answer = plainly(&mut own, event, args);
        (event != "get_friends").then_some((vec![], answer))
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let mut client =
        soon(Client::register(at(address), Options::default(), dir.path(), "alice", PASSPHRASE)).await.unwrap();
    let clock = Clock::system();
    let begun = clock.now().monotonic;
    for _ in 0..4 {
        while !client.is_connected() {
            soon(client.wait()).await.unwrap();
            soon(client.attend()).await.unwrap();
        }
        assert_eq!(client.ask_raw("get_friends", json!({})).await, Err("lost".to_owned()));
    }
    let passed = clock.now().monotonic - begun;
    assert!(passed >= Duration::from_millis(250 + 500 + 1_000), "{passed:?}");
}

#[tokio::test]
async fn a_server_that_always_has_something_to_say_does_not_keep_a_client() {
    let mut own = Value::Null;
    let address = liar(move |_, event, args| {
        let answer = plainly(&mut own, event, args);
        let more = event == "get_full_user";
        Some((if more { vec![("profile_notification", own.clone())] } else { vec![] }, answer))
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let mut client =
        soon(Client::register(at(address), Options::default(), dir.path(), "alice", PASSPHRASE)).await.unwrap();
    for _ in 0..10 {
        soon(client.wait()).await.unwrap();
        soon(client.attend()).await.unwrap();
    }
    assert!(client.is_connected());
}

#[tokio::test]
async fn an_invitation_that_was_heard_once_is_not_lost_with_the_connection_or_the_process() {
    let bob = seeded(0x21);
    let mut own = Value::Null;
    let (told, mut keys) = tokio::sync::mpsc::channel(1);
    let address = liar(move |connection, event, args| {
        let answer = plainly(&mut own, event, args);
        match (connection, event) {
            // Once, while the client looks at everything; and then the connection ends.
            (1, "get_full_user") => {
                let point = |name: &str| PublicKey::from_hex(own[name].as_str().unwrap()).unwrap();
                let mut signature = [0; 64];
                hex::decode_to_slice(own["sig"].as_str().unwrap(), &mut signature).unwrap();
                let bundle =
                    dm::crypto::x3dh::Bundle { identity: point("public_key"), prekey: point("spk"), signature };
                let created = dm::crypto::tree::create(&bob, &[bundle], Secret::random).unwrap();
                let message = &created.messages[0];
                let invitation = json!({
                    "sender": "bob",
                    "ik": bob.public().to_hex(),
                    "spk": message.spk.to_hex(),
                    "ek": message.ek.to_hex(),
                    "key_tree": created.tree.iter().map(PublicKey::to_hex).collect::<Vec<_>>(),
                    "position": 1,
                    "id": 7,
                    "setup_sig": hex::encode(message.setup_sig),
                });
                told.try_send(created.key).unwrap();
                Some((vec![("x3dh_notification", invitation)], answer))
            }
            (1, "get_dms") => None,
            (_, "get_dms") => Some((vec![], json!([7]))),
            (_, "get_dm") => Some((vec![], full_dm(7, &["bob", "alice"]))),
            (2, "get_user") => None,
            (_, "get_user") => {
                let mut user = own.clone();
                user["username"] = "bob".into();
                user["public_key"] = bob.public().to_hex().into();
                Some((vec![], user))
            }
            _ => Some((vec![], answer)),
        }
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let first = soon(Client::register(at(address), Options::default(), dir.path(), "alice", PASSPHRASE)).await;
    assert!(matches!(first, Err(Failure::Lost(_))), "{first:?}");
    drop(first);
    let made = keys.recv().await.unwrap();
    let client = Client::open(at(address), Options::default(), dir.path(), "alice", PASSPHRASE).unwrap();
    let mut alice = Person::of(client);
    alice.has_key(7).await;
    assert_eq!(alice.client.book().key(7), Some(&made));
    alice.seen.clear();
    alice.does("/to bob").await;
}

/// The binary as a server. Killed when it is dropped.
struct Server {
    child: Child,
    mediator: String,
    dm: String,
    data: PathBuf,
}

impl Server {
    fn start(data: &Path) -> Self {
        let any = "127.0.0.1:0";
        let mut command =
            heliostat(&["serve", "--data", data.to_str().unwrap(), "--listen", any, "--admin-listen", any]);
        command.args(["--csp-listen", any, "--dm-listen", any]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let (mut mediator, mut dm) = (None, None);
        for line in said.by_ref() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["devices", url, ..] => mediator = Some(url.to_owned()),
                // By its name: that is what its certificate says.
                ["DM", url, ..] => {
                    let authority = url.trim_start_matches("https://").trim_end_matches('/');
                    dm = Some(authority.replace("127.0.0.1", "localhost"));
                }
                ["data", ..] => break,
                _ => {}
            }
        }
        std::thread::spawn(move || said.count());
        let (mediator, dm) = (mediator.expect("it is ready"), dm.expect("it has a DM server"));
        Self { child, mediator, dm, data: data.to_owned() }
    }

    /// The client's binary, which trusts this server, with the passphrase in a file.
    fn client(&self, what: &str, name: &str, server: &str, state: &Path, more: &[&str]) -> Process {
        let file = self.data.with_extension("passphrase");
        std::fs::write(&file, format!("{PASSPHRASE}\n")).unwrap();
        let mut command = heliostat(&["dm", what, name, server, "--state", state.to_str().unwrap()]);
        command.args(["--data", self.data.to_str().unwrap(), "--passphrase-file", file.to_str().unwrap()]);
        command.args(more).stdin(Stdio::null());
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

fn heliostat(args: &[&str]) -> Process {
    let mut command = Process::new(env!("CARGO_BIN_EXE_heliostat"));
    command.args(args).env_remove("HELIOSTAT_CONFIG").env("HELIOSTAT_LOG", "error");
    command
}

/// A client that is typed into. Killed when it is dropped.
struct Typed {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    heard: Vec<String>,
}

impl Typed {
    fn start(mut command: Process) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (send, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).all(|line| send.send(line).is_ok()));
        Self { stdin: child.stdin.take(), child, lines, heard: Vec::new() }
    }

    fn types(&mut self, lines: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(format!("{lines}\n").as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    /// Waits for a line with this in it.
    #[track_caller]
    fn hears(&mut self, what: &str) -> String {
        loop {
            let Ok(line) = self.lines.recv_timeout(PATIENCE) else {
                panic!("waited for {what:?}; heard {:#?}", self.heard)
            };
            self.heard.push(line.clone());
            if line.contains(what) {
                return line;
            }
        }
    }

    /// The end of its input, and its own: its exit status.
    fn ends(&mut self) -> Option<i32> {
        self.stdin = None;
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            self.heard.push(line);
        }
        self.child.wait().unwrap().code()
    }

    /// By force, wherever it is.
    fn is_killed(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn events(&self, name: &str) -> Vec<Value> {
        let parsed = self.heard.iter().map(|line| serde_json::from_str(line).expect(line));
        parsed.filter(|it: &Value| it["event"] == name).collect()
    }
}

impl Drop for Typed {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

#[test]
fn people_and_scripts_talk_with_the_binary_over_tls_and_through_its_mediator() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"));
    let state = |name: &str| dir.path().join(name);
    let talk = |name: &str, more: &[&str]| server.client("talk", name, &server.dm, &state(name), more);
    for name in ["alice", "bob"] {
        let done = server.client("register", name, &server.dm, &state(name), &[]).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }
    let again = server.client("register", "alice", &server.dm, &state("other"), &[]).output().unwrap();
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("taken"), "{again:?}");
    let other = server.client("talk", "bob", &server.dm, &state("alice"), &[]).output().unwrap();
    assert!(!other.status.success() && String::from_utf8_lossy(&other.stderr).contains("device"), "{other:?}");
    let plain = server.client("talk", "alice", "plain://192.0.2.1:7", &state("alice"), &[]).output().unwrap();
    assert_eq!(plain.status.code(), Some(1));
    let mut pinned = Typed::start(talk("alice", &["--pin", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]));
    assert_eq!(pinned.ends(), Some(1));

    let mut bob = Typed::start(talk("bob", &[]));
    bob.hears("-- bob is connected");
    // A script: each line waits for what the one before asks for.
    let mut alice = Typed::start(talk("alice", &["--json"]));
    alice.types("/friend bob");
    bob.hears("alice wants to be your friend");
    bob.types("/accept alice");
    alice.hears("friend-answer");
    alice.types("/dm bob\nh\u{e9}llo\nsecond");
    assert_eq!(alice.ends(), Some(0), "{:#?}", alice.heard);
    bob.hears("alice: h\u{e9}llo");
    bob.hears("alice: second");
    bob.types("/to alice\nbefore it is killed");
    bob.hears("bob: before it is killed");
    bob.is_killed();

    // It comes back with what it knows, and is told what is new, once.
    let mut alice = Typed::start(talk("alice", &["--json"]));
    alice.types("/to bob\n/history\nare you there?");
    assert_eq!(alice.ends(), Some(0), "{:#?}", alice.heard);
    let texts =
        |events: Vec<Value>| events.into_iter().map(|it| it["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(texts(alice.events("shown")), ["h\u{e9}llo", "second", "before it is killed"]);
    let mut bob = Typed::start(talk("bob", &["--json"]));
    bob.hears("are you there?");
    bob.types("/verify alice\n/to alice\n/later 3600 much later\n/schedules");
    assert_eq!(bob.ends(), Some(0), "{:#?}", bob.heard);
    assert_eq!(texts(bob.events("scheduled")), ["much later"]);
    let digits = bob.events("fingerprint")[0]["fingerprint"].as_str().unwrap().to_owned();
    for (lines, code, what) in
        [("/verify bob", 0, digits.as_str()), ("/what", 1, "there is no /what"), ("to nobody", 1, "to whom?")]
    {
        let mut back = Typed::start(talk("alice", &[]));
        back.types(lines);
        assert_eq!(back.ends(), Some(code), "{lines}: {:#?}", back.heard);
        assert!(back.heard.iter().any(|line| line.contains(what)), "{:#?}", back.heard);
    }

    // Another device, by its words, behind the mediator.
    let words = server.client("words", "alice", &server.dm, &state("alice"), &[]).output().unwrap();
    let words = String::from_utf8(words.stdout).unwrap();
    assert_eq!(words.split_whitespace().count(), 24);
    let file = state("words");
    std::fs::write(&file, &words).unwrap();
    let group = state("group.key");
    let (file, group) = (file.to_str().unwrap(), group.to_str().unwrap());
    let behind = ["--group-key", group, "--device-id", "2"];
    let mut command = server.client("recover", "alice", &server.mediator, &state("tablet"), &behind);
    let done = command.args(["--words-file", file]).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let mut bob = Typed::start(talk("bob", &[]));
    bob.hears("-- bob is connected");
    let mut tablet = Typed::start(server.client("talk", "alice", &server.mediator, &state("tablet"), &behind));
    tablet.types("/to bob\nthrough the mirror");
    bob.hears("alice: through the mirror");
    assert_eq!((tablet.ends(), bob.ends()), (Some(0), Some(0)));
    // Nothing of it is on anybody's disk.
    let mut files = vec![dir.path().to_owned()];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(path).unwrap().map(|it| it.unwrap().path()));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            assert!(!bytes.windows(18).any(|it| it == b"through the mirror"), "{path:?}");
        }
    }
}
