//! A DM server on real sockets, and clients that say what they are told to in raw frames (spec 1.1).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use heliostat::chat::dm::crypto::{PublicKey, SecretKey};
use heliostat::chat::dm::store::Place;
use heliostat::chat::dm::{self, Config, Rates, Settings};
use heliostat::crypto::Secret;
use heliostat::net::listen::Door;
use heliostat::time::Clock;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

/// Long enough for a machine that does ten other things.
const PATIENCE: Duration = Duration::from_secs(60);

pub async fn soon<T>(happens: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, happens).await.expect("this happens in time")
}

/// Where a world keeps its data, and how it behaves.
#[derive(Clone)]
pub struct Ground {
    pub dir: PathBuf,
    pub place: Place,
    pub settings: Settings,
    pub rates: Rates,
    /// Connections at a time, and sessions.
    pub connections_max: usize,
    /// How far ahead of the real one the server's clock is.
    pub later: Duration,
}

impl Ground {
    pub fn new(dir: &Path, place: Place) -> Self {
        let settings = Settings { x3dh_after: Duration::from_millis(50), ..Settings::default() };
        let (rates, connections_max, later) = (Rates::NONE, 10_000, Duration::ZERO);
        Self { dir: dir.to_owned(), place, settings, rates, connections_max, later }
    }

    pub async fn open(&self) -> World {
        self.open_behind(Door::default()).await
    }

    pub async fn open_behind(&self, door: Door) -> World {
        let real = Clock::system().now().wall_ms;
        let later = u64::try_from(self.later.as_millis()).unwrap();
        let clock = Clock::following(real + later);
        let stop = CancellationToken::new();
        let doors = vec![(TcpListener::bind("127.0.0.1:0").await.unwrap(), door)];
        let config = Config {
            place: self.place.clone(),
            settings: self.settings.clone(),
            rates: self.rates,
            connections_max: self.connections_max,
            ..Config::new(self.dir.clone())
        };
        let running = dm::start_on(doors, config, clock, stop.clone()).await.unwrap();
        World { address: running.addresses()[0], running, stop }
    }
}

pub struct World {
    pub address: SocketAddr,
    running: dm::Running,
    stop: CancellationToken,
}

impl World {
    pub async fn close(self) {
        self.stop.cancel();
        soon(self.running.wait()).await;
    }

    pub async fn stranger(&self) -> Client {
        Client::over(TcpStream::connect(self.address).await.unwrap()).await
    }

    /// Somebody new, who has logged in.
    pub async fn somebody(&self, name: &str) -> Client {
        let mut client = self.stranger().await;
        let account = Account::of(name);
        assert_eq!(client.does("register", account.registration()).await, true);
        client.log_in(&account).await;
        client
    }

    /// The same, who takes little before it is read.
    pub async fn narrow(&self, name: &str) -> Client {
        let mut client = Client::over(self.narrow_tcp().await).await;
        client.log_in(&Account::of(name)).await;
        client
    }

    /// What takes little before it is read.
    pub async fn narrow_tcp(&self) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        socket.connect(self.address).await.unwrap()
    }

    /// Another connection of somebody.
    pub async fn again(&self, name: &str) -> Client {
        let mut client = self.stranger().await;
        client.log_in(&Account::of(name)).await;
        client
    }
}

/// Somebody's keys, which follow from the name.
#[derive(Clone)]
pub struct Account {
    pub name: String,
    pub identity: SecretKey,
    pub prekey: SecretKey,
}

impl Account {
    pub fn of(name: &str) -> Self {
        let key = |salt: u8| {
            let mut seed = [salt; 32];
            for (at, byte) in name.bytes().enumerate() {
                seed[at % 31] = seed[at % 31].wrapping_mul(31).wrapping_add(byte);
            }
            SecretKey::new(&Secret::new(seed))
        };
        Self { name: name.to_owned(), identity: key(1), prekey: key(2) }
    }

    pub fn registration(&self) -> Value {
        json!({
            "username": self.name,
            "public_key": self.identity.public().to_hex(),
            "spk": self.prekey.public().to_hex(),
            "sig": self.signed(self.prekey.public().as_bytes()),
            "own_storage": "",
        })
    }

    pub fn signed(&self, what: &[u8]) -> String {
        hex::encode(self.identity.sign(what))
    }

    /// A message with its signature.
    pub fn message(&self, dm: i64, text: &str) -> Value {
        let message = hex::encode(text);
        json!({ "id": dm, "message": message, "signature": self.signed(text.as_bytes()), "schedule": 0, "delete": 0 })
    }

    /// The same with delays.
    pub fn later(&self, dm: i64, text: &str, schedule: i64, delete: i64) -> Value {
        let mut sent = self.message(dm, text);
        (sent["schedule"], sent["delete"]) = (json!(schedule), json!(delete));
        sent
    }
}

/// Any point will do where nobody computes with it.
pub fn point(seed: u8) -> PublicKey {
    SecretKey::new(&Secret::new([seed; 32])).public()
}

/// What makes a DM with these.
pub fn invitation(names: &[&str]) -> Value {
    let leaves = (names.len() + 1).next_power_of_two();
    let messages: Vec<_> = names
        .iter()
        .zip(1..)
        .map(|(name, n)| json!({ "ek": point(100 + n).to_hex(), "spk": Account::of(name).prekey.public().to_hex() }))
        .collect();
    let key_tree: Vec<_> = (0..2 * leaves - 2).map(|n| point(u8::try_from(n).unwrap()).to_hex()).collect();
    json!({ "usernames": names, "messages": messages, "key_tree": key_tree })
}

/// What carries frames: a socket, or a device's tunnel.
pub trait Carrier: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Carrier for T {}

pub struct Client {
    ws: WebSocketStream<Box<dyn Carrier>>,
    next_ack: u64,
    answers: std::collections::HashMap<u64, Value>,
    notices: VecDeque<(String, Value)>,
    pub account: Option<Account>,
}

impl Client {
    /// Speaks through something: raw WebSocket frames.
    pub async fn over(carrier: impl Carrier + 'static) -> Self {
        Self::tries(carrier).await.expect("there is room for one more")
    }

    /// The same, unless nobody is let in.
    pub async fn tries(carrier: impl Carrier + 'static) -> Option<Self> {
        let carrier: Box<dyn Carrier> = Box::new(carrier);
        let url = "ws://dm/socket.io/?EIO=4&transport=websocket";
        let (ws, _) = soon(tokio_tungstenite::client_async(url, carrier)).await.ok()?;
        let mut client = Self::with(ws);
        let open = client.frame().await.unwrap();
        let open: Value = serde_json::from_str(open.strip_prefix('0').expect("the opening")).unwrap();
        assert!(open["sid"].is_string() && open["pingInterval"].is_u64(), "{open}");
        client.send("40".into()).await;
        loop {
            let frame = client.frame().await.unwrap();
            if frame.starts_with("40{") {
                return Some(client);
            }
            assert!(frame.starts_with('2'), "{frame}");
            client.send("3".into()).await;
        }
    }

    fn with(ws: WebSocketStream<Box<dyn Carrier>>) -> Self {
        Self { ws, next_ack: 0, answers: Default::default(), notices: VecDeque::new(), account: None }
    }

    /// Goes on as a WebSocket with a session that is connected and began by polling.
    pub async fn upgrades(carrier: impl Carrier + 'static, sid: &str) -> Self {
        let carrier: Box<dyn Carrier> = Box::new(carrier);
        let url = format!("ws://dm/socket.io/?EIO=4&transport=websocket&sid={sid}");
        let (ws, _) = soon(tokio_tungstenite::client_async(url, carrier)).await.unwrap();
        let mut client = Self::with(ws);
        client.send("2probe".into()).await;
        assert_eq!(client.frame().await.unwrap(), "3probe");
        client.send("5".into()).await;
        client
    }

    pub async fn send(&mut self, frame: String) {
        // Whoever is cut off hears of it when it reads.
        let _over = soon(self.ws.send(Message::text(frame))).await;
    }

    /// The next frame; `None` when the connection is over.
    pub async fn frame(&mut self) -> Option<String> {
        loop {
            match soon(self.ws.next()).await? {
                Ok(Message::Text(text)) => return Some(text.as_str().to_owned()),
                Ok(Message::Close(_)) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// Takes in one frame. `false` when the connection is over.
    async fn hear(&mut self) -> bool {
        let Some(frame) = self.frame().await else { return false };
        if frame == "2" {
            self.send("3".into()).await;
        } else if let Some(event) = frame.strip_prefix("42") {
            let event: (String, Value) = serde_json::from_str(event).unwrap();
            self.notices.push_back(event);
        } else if let Some(answer) = frame.strip_prefix("43") {
            let (id, answer) = answer.split_at(answer.find('[').unwrap());
            let [answer]: [Value; 1] = serde_json::from_str(answer).unwrap();
            self.answers.insert(id.parse().unwrap(), answer);
        } else if frame == "41" || frame == "1" {
            return false;
        }
        true
    }

    /// Asks without waiting for the answer.
    pub async fn ask(&mut self, event: &str, args: Value) -> u64 {
        self.next_ack += 1;
        self.send(format!("42{}{}", self.next_ack, json!([event, args]))).await;
        self.next_ack
    }

    pub async fn answer(&mut self, ack: u64) -> Value {
        loop {
            if let Some(answer) = self.answers.remove(&ack) {
                return answer;
            }
            assert!(self.hear().await, "the connection is over");
        }
    }

    /// The envelope.
    pub async fn call(&mut self, event: &str, args: Value) -> Value {
        let ack = self.ask(event, args).await;
        self.answer(ack).await
    }

    /// What came of it.
    pub async fn does(&mut self, event: &str, args: Value) -> Value {
        let answer = self.call(event, args).await;
        assert_eq!(answer["success"], true, "{event}: {answer}");
        assert_eq!(answer.as_object().unwrap().len(), 2);
        answer["result"].clone()
    }

    /// The code of a refusal.
    pub async fn cannot(&mut self, event: &str, args: Value) -> String {
        let answer = self.call(event, args).await;
        assert_eq!(answer["success"], false, "{event}: {answer}");
        assert!(answer["result"].is_string());
        answer["code"].as_str().unwrap().to_owned()
    }

    pub async fn log_in(&mut self, account: &Account) {
        let challenge = self.does("login", json!({ "username": account.name })).await;
        let mut point = [0; 32];
        hex::decode_to_slice(challenge.as_str().unwrap(), &mut point).unwrap();
        let response = hex::encode(account.identity.answer(&account.name, &point));
        assert_eq!(self.does("login_challenge_response", json!({ "response": response })).await, true);
        self.account = Some(account.clone());
    }

    pub fn me(&self) -> Account {
        self.account.clone().unwrap()
    }

    pub async fn says(&mut self, dm: i64, text: &str) {
        let message = self.me().message(dm, text);
        assert_eq!(self.does("send_message", message).await, true);
    }

    /// The next notification of this name; others before it are left for later.
    pub async fn hears(&mut self, event: &str) -> Value {
        loop {
            if let Some(at) = self.notices.iter().position(|(name, _)| name == event) {
                return self.notices.remove(at).unwrap().1;
            }
            assert!(self.hear().await, "the connection is over");
        }
    }

    /// Everything that was said by now.
    pub async fn heard(&mut self) -> Vec<(String, Value)> {
        // What the server said before it answers this is here before its answer.
        self.call("username_exists", json!({ "username": "x" })).await;
        self.notices.drain(..).collect()
    }

    /// The same without what others do in their own time: their comings and goings.
    pub async fn names_heard(&mut self) -> Vec<String> {
        let heard = self.heard().await.into_iter().map(|(name, _)| name);
        heard.filter(|name| name != "profile_notification").collect()
    }

    /// Waits for the end of the connection.
    pub async fn ends(&mut self) {
        while self.hear().await {}
    }

    /// For those who look at the frames themselves.
    pub fn into_frames(self) -> WebSocketStream<Box<dyn Carrier>> {
        self.ws
    }

    pub async fn leaves(mut self) {
        self.ws.close(None).await.unwrap();
        while soon(self.ws.next()).await.is_some_and(|frame| frame.is_ok()) {}
    }
}

/// Two become friends.
pub async fn befriend(one: &mut Client, other: &mut Client) {
    let (first, second) = (one.me().name, other.me().name);
    one.does("send_friend_request", json!({ "username": second })).await;
    other.does("ack_friend_request", json!({ "username": first, "accept": true })).await;
    other.hears("friend_request_notification").await;
    one.hears("friend_request_accept_notification").await;
}

/// Two friends with a DM of their own.
pub async fn pair(world: &World) -> (Client, Client, i64) {
    let (mut alice, mut bob) = (world.somebody("alice").await, world.somebody("bob").await);
    alice.hears("profile_notification").await;
    befriend(&mut alice, &mut bob).await;
    let dm = alice.does("create_dm", invitation(&["bob"])).await.as_i64().unwrap();
    assert_eq!(bob.hears("x3dh_notification").await["id"], dm);
    (alice, bob, dm)
}

/// The three of them in a group.
pub async fn group(world: &World) -> (Client, Client, Client, i64) {
    let mut alice = world.somebody("alice").await;
    let mut bob = world.somebody("bob").await;
    let mut carol = world.somebody("carol").await;
    let dm = alice.does("create_dm", invitation(&["bob", "carol"])).await.as_i64().unwrap();
    bob.hears("x3dh_notification").await;
    carol.hears("x3dh_notification").await;
    for client in [&mut alice, &mut bob, &mut carol] {
        client.heard().await;
    }
    (alice, bob, carol, dm)
}
