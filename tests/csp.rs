//! The embedded chat server over real sockets, with the library's own client. Names carry the line of the conformance
//! checklist they stand for; what would have to sleep is told on virtual time beside the state.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail")]

use std::collections::HashSet;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use heliostat::chat::csp::state::{AlertText, PushRequest};
use heliostat::chat::csp::store::{AddError, Directory, DirectoryState};
use heliostat::chat::csp::wire::handshake::AwaitServerHello;
use heliostat::chat::csp::wire::{
    CspDeviceId, DeviceCookie, Features, FromClient, Identity, Message, MessageAck, MessageFlags, MessageId,
    WireIdentity,
};
use heliostat::chat::csp::{self, Config, PushHook, Running, StartError};
use heliostat::client::csp::{CspClient, CspError, Draft, EndToEnd, Event, Login};
use heliostat::crypto::boxes::{self, Public};
use heliostat::crypto::{Secret, random};
use heliostat::time::Clock;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// Nothing here takes that long; a test that waits for something that never comes fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("this should not take so long")
}

struct Room {
    running: Running,
    shutdown: CancellationToken,
}

impl Room {
    async fn open(dir: &Path) -> Self {
        Self::open_with(dir, |_| {}).await
    }

    async fn open_with(dir: &Path, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::new(([127, 0, 0, 1], 0).into(), dir.to_owned());
        change(&mut config);
        let shutdown = CancellationToken::new();
        let running = csp::start(config, Clock::system(), shutdown.clone()).await.unwrap();
        Self { running, shutdown }
    }

    async fn close(self) {
        self.shutdown.cancel();
        soon(self.running.wait()).await;
    }

    async fn person(&self) -> Person {
        let person = Person::new();
        self.running.directory().add(person.identity, &person.public, "00").await.unwrap();
        person
    }

    async fn socket(&self) -> TcpStream {
        let socket = TcpStream::connect(self.running.local_addr()).await.unwrap();
        socket.set_nodelay(true).unwrap();
        socket
    }

    fn login_of(&self, person: &Person) -> Login {
        Login::new(person.identity, person.key.clone(), *self.running.public_key())
    }

    async fn try_login(&self, login: Login) -> Result<Client, CspError> {
        soon(CspClient::login(self.socket().await, login)).await
    }

    async fn login(&self, login: Login) -> Client {
        self.try_login(login).await.unwrap()
    }

    async fn alone(&self, person: &Person) -> Client {
        let mut client = self.login(self.login_of(person)).await;
        assert!(events_until_complete(&mut client).await.is_empty());
        client
    }

    async fn device(&self, person: &Person, device: u64) -> Client {
        self.login(self.login_of(person).device(CspDeviceId(device))).await
    }
}

type Client = CspClient<TcpStream>;

struct Person {
    identity: Identity,
    key: Secret<32>,
    public: Public,
}

impl Person {
    fn new() -> Self {
        let key = Secret::random();
        Self { identity: Identity::random(), public: boxes::public(&key), key }
    }

    fn message(&self, to: &Self, id: u64) -> Message {
        self.flagged(to, id, MessageFlags::default())
    }

    fn flagged(&self, to: &Self, id: u64, flags: MessageFlags) -> Message {
        let content = format!("\x01message {id}\x01");
        let draft = Draft {
            sender: self.identity,
            receiver: to.identity,
            id: MessageId(id),
            created_at_s: 0,
            flags,
            nickname: "nick",
            metadata: Some(b"metadata"),
            content: content.as_bytes(),
        };
        Message::seal(&draft, &self.key, &to.public).unwrap()
    }

    fn ack_of(&self, id: u64) -> Event {
        Event::MessageAck(MessageAck { identity: self.identity.into(), id: MessageId(id) })
    }
}

async fn event(client: &mut Client) -> Event {
    soon(client.next_event()).await.unwrap()
}

/// The next message's id; the receiver can open it.
async fn message_id(client: &mut Client, to: &Person, from: &Person) -> u64 {
    let Event::Message(message) = event(client).await else { panic!("not a message") };
    let keys = EndToEnd::new(&to.key, &from.public).unwrap();
    assert_eq!(message.open(&keys).unwrap(), format!("\x01message {}\x01", message.id.0).as_bytes());
    assert_eq!(message.open_metadata(&keys).unwrap().unwrap(), b"metadata");
    client.ack(&message).await.unwrap();
    message.id.0
}

/// Ids of messages, none of them acked, up to the queue-send-complete.
async fn events_until_complete(client: &mut Client) -> Vec<u64> {
    let mut ids = Vec::new();
    loop {
        match event(client).await {
            Event::Message(message) => ids.push(message.id.0),
            Event::QueueSendComplete => return ids,
            Event::DeviceCookieChangeIndication => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn echoes(client: &mut Client, data: &[u8]) {
    client.echo(data.to_vec()).await.unwrap();
    assert_eq!(event(client).await, Event::EchoResponse(data.to_vec().into()));
}

/// The server closes, without another word.
async fn ends(client: &mut Client) {
    let end = soon(client.next_event()).await;
    assert!(matches!(end, Err(CspError::Closed(_))), "{end:?}");
}

async fn sent(client: &mut Client, message: Message, ack: Event) {
    client.send_message(message).await.unwrap();
    assert_eq!(event(client).await, ack);
}

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test]
async fn csp_13_1_a_server_with_the_vectors_key_lets_the_vectors_client_in() {
    let all: serde_json::Value = serde_json::from_str(include_str!("vectors/d2m-csp.json")).unwrap();
    let bytes = |name: &str| hex::decode(all["csp"][name].as_str().unwrap()).unwrap();
    let array = |name: &str| <[u8; 32]>::try_from(bytes(name)).unwrap();
    let dir = temp();
    std::fs::write(dir.path().join("csp-server.key"), hex::encode(bytes("sk_secret"))).unwrap();
    let room = Room::open(dir.path()).await;
    assert_eq!(room.running.public_key()[..], bytes("sk_public"));
    let identity = all["csp"]["identity"].as_str().unwrap().parse().unwrap();
    room.running.directory().add(identity, &array("ck_public"), "00").await.unwrap();
    let (_, hello) = AwaitServerHello::start(vec![], Secret::new(array("tck_secret")), [7; 16]);
    assert_eq!(hello[..32], bytes("client_hello")[..32]);

    let mut client = room.login(Login::new(identity, Secret::new(array("ck_secret")), array("sk_public"))).await;
    assert_eq!(client.login_ack().queued, 0);
    assert_eq!(event(&mut client).await, Event::QueueSendComplete);
    let minute_ms = 60_000;
    assert!(client.login_ack().time_ms.abs_diff(Clock::system().now().wall_ms) < minute_ms, "clients check the time");
    echoes(&mut client, b"ping").await;
    room.close().await;
}

/// A login by hand, up to its bytes.
async fn login_bytes(room: &Room, socket: &mut TcpStream, login: &Login) -> Vec<u8> {
    let (wait, hello) = AwaitServerHello::start(login.server_public_keys.clone(), Secret::random(), random::bytes());
    socket.write_all(&hello).await.unwrap();
    let mut answer = [0; 80];
    soon(socket.read_exact(&mut answer)).await.unwrap();
    let (_, bytes) = wait.login(&answer, login.identity, &login.client_key, &login.introduction).unwrap();
    assert_eq!(login.server_public_keys, [*room.running.public_key()]);
    bytes
}

/// The server closes the socket and has not said a byte since.
async fn closes_silently(mut socket: TcpStream) {
    let mut rest = Vec::new();
    let _ = soon(socket.read_to_end(&mut rest)).await;
    assert!(rest.is_empty(), "{rest:02x?}");
}

#[tokio::test]
async fn csp_13_3_wrong_vouch_unknown_and_revoked_identity_end_without_a_word() {
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let person = room.person().await;
    let revoked = room.person().await;
    assert!(room.running.directory().revoke(revoked.identity).await.unwrap());
    let wrong_key = Login { client_key: Secret::random(), ..room.login_of(&person) };
    for login in [wrong_key, room.login_of(&Person::new()), room.login_of(&revoked)] {
        let mut socket = room.socket().await;
        let bytes = login_bytes(&room, &mut socket, &login).await;
        socket.write_all(&bytes).await.unwrap();
        closes_silently(socket).await;
    }
    room.alone(&person).await;
    room.close().await;
}

#[tokio::test]
async fn csp_13_3_wrong_server_cookie_and_changed_bytes_end_without_a_word() {
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let person = room.person().await;
    let login = room.login_of(&person);
    // A login for another connection: its boxes do not open here, and its cookie is not ours.
    let mut other = room.socket().await;
    let replayed = login_bytes(&room, &mut other, &login).await;
    let mut socket = room.socket().await;
    login_bytes(&room, &mut socket, &login).await;
    socket.write_all(&replayed).await.unwrap();
    closes_silently(socket).await;
    for at in [0, 143, 144, 160] {
        let mut socket = room.socket().await;
        let mut bytes = login_bytes(&room, &mut socket, &login).await;
        bytes[at] ^= 1;
        socket.write_all(&bytes).await.unwrap();
        closes_silently(socket).await;
    }

    // Everything right but the cookie that is repeated inside the box.
    let mut socket = room.socket().await;
    let (ephemeral, cookie) = (Secret::random(), random::bytes::<16>());
    let (wait, hello) = AwaitServerHello::start(login.server_public_keys.clone(), ephemeral.clone(), cookie);
    socket.write_all(&hello).await.unwrap();
    let mut answer = [0; 80];
    soon(socket.read_exact(&mut answer)).await.unwrap();
    let nonce = |cookie: &[u8]| <[u8; 24]>::try_from([cookie, &1_u64.to_le_bytes()].concat()).unwrap();
    let hello_key = boxes::beforenm(&ephemeral, room.running.public_key()).unwrap();
    let challenge = boxes::open(&hello_key, &nonce(&answer[..16]), &answer[16..]).unwrap();
    let session_key = boxes::beforenm(&ephemeral, challenge[..32].try_into().unwrap()).unwrap();
    let (_, bytes) = wait.login(&answer, login.identity, &login.client_key, &login.introduction).unwrap();
    let mut data = boxes::open(&session_key, &nonce(&cookie), &bytes[..144]).unwrap();
    data[40] ^= 1;
    socket.write_all(&boxes::seal(&session_key, &nonce(&cookie), &data)).await.unwrap();
    socket.write_all(&bytes[144..]).await.unwrap();
    closes_silently(socket).await;
    room.close().await;
}

#[tokio::test]
async fn csp_2_7_who_fails_too_often_is_not_heard_for_a_while() {
    let dir = temp();
    let room = Room::open_with(dir.path(), |config| config.exempt.clear()).await;
    let person = room.person().await;
    for _ in 0..csp::serve::FAILURES_MAX {
        let mut socket = room.socket().await;
        // A key of low order fails at once.
        socket.write_all(&[0; 48]).await.unwrap();
        closes_silently(socket).await;
    }
    // The last failure is counted after its socket closed: wait for the gate to shut.
    let shut = async { while room.try_login(room.login_of(&person)).await.is_ok() {} };
    soon(shut).await;
    room.close().await;
}

#[tokio::test]
async fn csp_2_7_who_leaves_in_the_middle_of_a_handshake_has_failed_and_who_said_nothing_has_not() {
    let dir = temp();
    let room = Room::open_with(dir.path(), |config| config.exempt.clear()).await;
    let person = room.person().await;
    for _ in 0..2 * csp::serve::FAILURES_MAX {
        let mut socket = room.socket().await;
        socket.shutdown().await.unwrap();
        closes_silently(socket).await;
    }
    room.alone(&person).await;
    for _ in 0..csp::serve::FAILURES_MAX {
        let mut socket = room.socket().await;
        login_bytes(&room, &mut socket, &room.login_of(&person)).await;
        socket.shutdown().await.unwrap();
        closes_silently(socket).await;
    }
    // The last failure is counted after its socket closed: wait for the gate to shut.
    let shut = async { while room.try_login(room.login_of(&person)).await.is_ok() {} };
    soon(shut).await;
    room.close().await;
}

#[tokio::test]
async fn csp_2_7_handshakes_at_a_time_are_bounded_and_connections_are_not() {
    let dir = temp();
    let room = Room::open_with(dir.path(), |config| config.exempt.clear()).await;
    let (person, other) = (room.person().await, room.person().await);
    let mut trying = Vec::new();
    for _ in 0..csp::serve::HANDSHAKES_PER_ADDRESS_MAX - 1 {
        let mut socket = room.socket().await;
        // It is known to be accepted, because it is answered.
        login_bytes(&room, &mut socket, &room.login_of(&person)).await;
        trying.push(socket);
    }
    let mut first = room.alone(&person).await;
    let mut second = room.alone(&other).await;
    let mut socket = room.socket().await;
    login_bytes(&room, &mut socket, &room.login_of(&person)).await;
    trying.push(socket);
    closes_silently(room.socket().await).await;
    echoes(&mut first, b"undisturbed").await;
    echoes(&mut second, b"undisturbed").await;
    drop(trying);
    room.close().await;
}

/// On a listener for both families the mediator's address comes as an IPv4 address in IPv6's clothes.
#[tokio::test]
async fn csp_2_7_the_mediator_is_exempt_also_on_a_listener_for_both_families() {
    let dir = temp();
    let room = Room::open_with(dir.path(), |config| config.listen = "[::]:0".parse().unwrap()).await;
    let person = room.person().await;
    let address = ("127.0.0.1", room.running.local_addr().port());
    // A failure is counted after its socket is closed: a few more, so that the gate would be shut by now.
    for _ in 0..csp::serve::FAILURES_MAX + 5 {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(&[0; 48]).await.unwrap();
        closes_silently(socket).await;
    }
    let socket = TcpStream::connect(address).await.unwrap();
    soon(CspClient::login(socket, room.login_of(&person))).await.unwrap();
    room.close().await;
}

#[tokio::test]
async fn csp_13_4_every_feature_byte_logs_in_and_13_15_gets_what_it_understands() {
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let (a, b) = (room.person().await, room.person().await);
    let mut sender = room.alone(&a).await;
    let logins = [
        (room.login_of(&b).features(None), false),
        (room.login_of(&b).features(Some(Features(0x00))), false),
        (room.login_of(&b).features(Some(Features(0x01))), true),
        (room.login_of(&b).features(Some(Features(0x03))), true),
        (room.login_of(&b).features(Some(Features(0xff))), true),
        (room.login_of(&b).legacy("1.0;A;en/CH;;"), false),
    ];
    for (id, (login, metadata)) in (1..).zip(logins) {
        let message = a.message(&b, id);
        let (nonce, content, nickname) = (message.nonce, message.message_box.clone(), message.nickname);
        sent(&mut sender, message, b.ack_of(id)).await;
        let mut receiver = room.login(login.clone()).await;
        assert_eq!(receiver.login_ack().queued, 1);
        let Event::Message(got) = event(&mut receiver).await else { panic!("not a message") };
        assert_eq!(!got.metadata_box.is_empty(), metadata, "{:?}", login.introduction);
        assert_eq!((got.nonce, &got.message_box, got.nickname), (nonce, &content, nickname));
        receiver.ack(&got).await.unwrap();
        assert_eq!(event(&mut receiver).await, Event::QueueSendComplete);
        // What a connection says is taken in order: with this ack, the one for the message has been taken.
        sent(&mut receiver, b.message(&b, 1), b.ack_of(1)).await;
    }
    room.close().await;
}

#[tokio::test]
async fn csp_13_5_echo_is_verbatim() {
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let person = room.person().await;
    let mut client = room.alone(&person).await;
    for len in [0, 8, 12, 8_172] {
        let data: Vec<u8> = (0..len).map(|n: usize| n.to_le_bytes()[0]).collect();
        echoes(&mut client, &data).await;
    }
    let mut blocked = room.device(&person, 1).await;
    echoes(&mut blocked, b"blocked connections get theirs too").await;
    room.close().await;
}

#[tokio::test]
async fn csp_13_6_online_offline_blocked_unknown_and_13_7_the_ack_names_the_receiver() {
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let (a, online, offline, blocked) =
        (room.person().await, room.person().await, room.person().await, room.person().await);
    let unknown = Person::new();
    let mut sender = room.alone(&a).await;
    let mut online_client = room.alone(&online).await;
    let mut blocked_client = room.device(&blocked, 1).await;
    sent(&mut sender, a.message(&online, 1), online.ack_of(1)).await;
    sent(&mut sender, a.message(&offline, 2), offline.ack_of(2)).await;
    sent(&mut sender, a.message(&blocked, 3), blocked.ack_of(3)).await;
    sent(&mut sender, a.message(&unknown, 4), unknown.ack_of(4)).await;
    sent(&mut sender, a.message(&a, 5), a.ack_of(5)).await;
    let nobody = Message { receiver: WireIdentity(*b"no-body!"), ..a.message(&unknown, 6) };
    let ack = MessageAck { identity: WireIdentity(*b"no-body!"), id: MessageId(6) };
    sent(&mut sender, nobody, Event::MessageAck(ack)).await;

    assert_eq!(message_id(&mut online_client, &online, &a).await, 1);
    let mut offline_client = room.login(room.login_of(&offline)).await;
    assert_eq!(message_id(&mut offline_client, &offline, &a).await, 2);
    echoes(&mut blocked_client, b"nothing yet").await;
    blocked_client.unblock().await.unwrap();
    assert_eq!(message_id(&mut blocked_client, &blocked, &a).await, 3);
    room.close().await;
}

#[derive(Debug, Default)]
struct Pushes(Mutex<Vec<Identity>>);

impl PushHook for Pushes {
    fn push(&self, request: PushRequest) {
        self.0.lock().unwrap().push(request.receiver);
    }
}

#[tokio::test]
async fn csp_13_6_each_flag() {
    let dir = temp();
    let pushes: std::sync::Arc<Pushes> = Default::default();
    let hook = std::sync::Arc::clone(&pushes);
    let room = Room::open_with(dir.path(), |config| config.push = hook).await;
    let (a, b) = (room.person().await, room.person().await);
    let mut sender = room.alone(&a).await;
    let no_ack = MessageFlags::NO_ACK;
    let others = MessageFlags(0x10).with(MessageFlags::NO_DELIVERY_RECEIPTS);

    // Offline. Those without an ack are followed by one with, so that it is known that they have been taken.
    sent(&mut sender, a.flagged(&b, 1, MessageFlags::NO_QUEUING), b.ack_of(1)).await;
    sender.send_message(a.flagged(&b, 2, no_ack)).await.unwrap();
    sender.send_message(a.flagged(&b, 3, no_ack.with(MessageFlags::NO_QUEUING))).await.unwrap();
    sent(&mut sender, a.flagged(&b, 4, MessageFlags::SEND_PUSH), b.ack_of(4)).await;
    sent(&mut sender, a.flagged(&b, 5, MessageFlags::SHORT_LIVED.with(others)), b.ack_of(5)).await;
    assert_eq!(*pushes.0.lock().unwrap(), [b.identity]);
    let mut receiver = room.login(room.login_of(&b)).await;
    assert_eq!(receiver.login_ack().queued, 3);
    assert_eq!(event_flags(&mut receiver).await, (2, no_ack));
    assert_eq!(event_flags(&mut receiver).await, (4, MessageFlags::SEND_PUSH));
    assert_eq!(event_flags(&mut receiver).await, (5, MessageFlags::SHORT_LIVED.with(others)));
    assert_eq!(event(&mut receiver).await, Event::QueueSendComplete);

    // Online.
    let typing = no_ack.with(MessageFlags::NO_QUEUING);
    sender.send_message(a.flagged(&b, 6, typing)).await.unwrap();
    assert_eq!(event_flags(&mut receiver).await, (6, typing));
    sent(&mut sender, a.flagged(&b, 7, MessageFlags::SEND_PUSH), b.ack_of(7)).await;
    assert_eq!(event_flags(&mut receiver).await, (7, MessageFlags::SEND_PUSH));
    assert_eq!(pushes.0.lock().unwrap().len(), 1);

    // What needed no ack is gone once it was written; the rest was never acked and comes again.
    drop(receiver);
    let mut receiver = room.login(room.login_of(&b)).await;
    assert_eq!(events_until_complete(&mut receiver).await, [4, 5, 7]);
    room.close().await;
}

/// The client was told to go and has not gone yet: it does not count as present.
#[tokio::test]
async fn csp_5_who_was_told_to_go_is_not_active_any_more() {
    let dir = temp();
    let pushes: std::sync::Arc<Pushes> = Default::default();
    let hook = std::sync::Arc::clone(&pushes);
    let room = Room::open_with(dir.path(), |config| config.push = hook).await;
    let (a, b) = (room.person().await, room.person().await);
    let mut sender = room.alone(&a).await;
    let mut receiver = room.alone(&b).await;
    receiver.set_idle_timeout(29).await.unwrap();
    assert!(matches!(event(&mut receiver).await, Event::CloseError { .. }));
    sent(&mut sender, a.flagged(&b, 1, MessageFlags::SEND_PUSH), b.ack_of(1)).await;
    assert_eq!(*pushes.0.lock().unwrap(), [b.identity]);
    sent(&mut sender, a.flagged(&b, 2, MessageFlags::NO_QUEUING), b.ack_of(2)).await;
    ends(&mut receiver).await;
    let mut receiver = room.login(room.login_of(&b)).await;
    assert_eq!(events_until_complete(&mut receiver).await, [1]);
    room.close().await;
}

async fn event_flags(client: &mut Client) -> (u64, MessageFlags) {
    match event(client).await {
        Event::Message(message) => (message.id.0, message.flags),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn csp_13_8_un_acked_messages_come_again_in_order_after_a_reconnect_and_a_restart() {
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let (a, b) = (room.person().await, room.person().await);
    let mut sender = room.alone(&a).await;
    let mut receiver = room.alone(&b).await;
    for id in 1..=100 {
        sent(&mut sender, a.message(&b, id), b.ack_of(id)).await;
    }
    for id in 1..=10 {
        assert_eq!(message_id(&mut receiver, &b, &a).await, id);
    }
    drop(receiver);
    let mut receiver = room.login(room.login_of(&b)).await;
    // Acks that were still on their way when the connection was lost may not have been taken.
    let first = message_id(&mut receiver, &b, &a).await;
    assert!(first <= 11, "{first}");
    for id in first + 1..=60 {
        assert_eq!(message_id(&mut receiver, &b, &a).await, id);
    }
    room.close().await;

    let room = Room::open(dir.path()).await;
    let mut receiver = room.login(room.login_of(&b)).await;
    let queued = u64::from(receiver.login_ack().queued);
    // The same goes for acks that were on their way when the server stopped. Nothing else is missing.
    assert!((40..=100).contains(&queued), "{queued}");
    for id in 101 - queued..=100 {
        assert_eq!(message_id(&mut receiver, &b, &a).await, id);
    }
    assert_eq!(event(&mut receiver).await, Event::QueueSendComplete);
    room.close().await;
}

#[tokio::test]
async fn csp_13_9_short_lived_vanishes_after_60_s() {
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let (a, b) = (room.person().await, room.person().await);
    let mut sender = room.alone(&a).await;
    sent(&mut sender, a.flagged(&b, 1, MessageFlags::SHORT_LIVED), b.ack_of(1)).await;
    sent(&mut sender, a.message(&b, 2), b.ack_of(2)).await;
    pass(59).await;
    let mut receiver = room.login(room.login_of(&b)).await;
    assert_eq!(events_until_complete(&mut receiver).await, [1, 2]);
    pass(1).await;
    let mut receiver = room.login(room.login_of(&b)).await;
    assert_eq!(events_until_complete(&mut receiver).await, [2]);
    room.close().await;
}

#[tokio::test]
async fn csp_13_10_hand_over_between_two_devices_without_loss() {
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let (a, b) = (room.person().await, room.person().await);
    let mut sender = room.alone(&a).await;
    let (mut one, mut two) = (room.device(&b, 1).await, room.device(&b, 2).await);
    sent(&mut sender, a.message(&b, 1), b.ack_of(1)).await;
    // A blocked device sends and is acked, and hears of nothing else.
    sent(&mut one, b.message(&a, 50), a.ack_of(50)).await;
    one.unblock().await.unwrap();
    assert_eq!(events_until_complete(&mut one).await, [1], "once, and not before 0x03");
    assert_eq!(event_flags(&mut sender).await.0, 50);
    sent(&mut sender, a.message(&b, 2), b.ack_of(2)).await;
    assert_eq!(event_flags(&mut one).await.0, 2);
    two.unblock().await.unwrap();
    assert_eq!(events_until_complete(&mut two).await, [1, 2]);
    drop(two);
    one.unblock().await.unwrap();
    assert_eq!(events_until_complete(&mut one).await, [1, 2]);
    room.close().await;
}

#[tokio::test]
async fn csp_5_a_connection_that_is_blocked_again_gets_no_more_messages() {
    const COUNT: u64 = 1_000;
    let dir = temp();
    let room = Room::open_with(dir.path(), |config| config.limits.window = 1_000).await;
    let (a, b) = (room.person().await, room.person().await);
    // Nothing is read, and 8 MB are more than the sockets between hold: the rest waits in the server.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let socket = socket.connect(room.running.local_addr()).await.unwrap();
    let mut one = soon(CspClient::login(socket, room.login_of(&b).device(CspDeviceId(1)))).await.unwrap();
    one.unblock().await.unwrap();
    assert_eq!(event(&mut one).await, Event::QueueSendComplete);
    let mut sender = room.alone(&a).await;
    for id in 1..=COUNT {
        let message = Message { message_box: vec![1; 7_900].into(), ..a.message(&b, id) };
        sender.send_message(message).await.unwrap();
    }
    for id in 1..=COUNT {
        assert_eq!(event(&mut sender).await, b.ack_of(id));
    }
    let mut two = room.device(&b, 2).await;
    two.unblock().await.unwrap();
    assert_eq!(events_until_complete(&mut two).await, (1..=COUNT).collect::<Vec<_>>());

    // Whatever was on the socket of the first one by now comes ahead of the echo, and nothing behind it.
    one.echo(&b"blocked"[..]).await.unwrap();
    let mut before = 0;
    loop {
        match event(&mut one).await {
            Event::Message(_) => before += 1,
            other => break assert_eq!(other, Event::EchoResponse(b"blocked"[..].into())),
        }
    }
    echoes(&mut one, b"still nothing").await;
    assert!(before < COUNT, "all of it fitted the sockets: this proves nothing");
    room.close().await;
}

#[tokio::test]
async fn csp_13_11_the_same_device_id_twice_ends_the_older_with_the_text_that_apps_know() {
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let person = room.person().await;
    for device in [None, Some(7)] {
        let login = device.into_iter().fold(room.login_of(&person), |login, id| login.device(CspDeviceId(id)));
        let mut old = room.login(login.clone()).await;
        let mut new = room.login(login).await;
        let farewell = loop {
            match event(&mut old).await {
                Event::QueueSendComplete => {}
                other => break other,
            }
        };
        let Event::CloseError { can_reconnect: false, message } = farewell else { panic!("{farewell:?}") };
        assert!(message.starts_with("Another connection"), "{message}");
        ends(&mut old).await;
        if device.is_none() {
            assert_eq!(event(&mut new).await, Event::QueueSendComplete);
        }
        echoes(&mut new, b"the new one stays").await;
    }
    room.close().await;
}

/// Logins that come together are decided together: all but the last are displaced before they are let in.
#[tokio::test]
async fn csp_7_who_is_displaced_while_logging_in_is_let_in_and_told() {
    const COUNT: usize = 20;
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let person = room.person().await;
    let logins = (0..COUNT).map(|_| room.login(room.login_of(&person)));
    let mut told = 0;
    for mut client in futures_util::future::join_all(logins).await {
        client.echo(&b"last"[..]).await.unwrap_or_default();
        let last = loop {
            match event(&mut client).await {
                Event::QueueSendComplete => {}
                other => break other,
            }
        };
        match last {
            Event::CloseError { can_reconnect: false, message } if message.starts_with("Another connection") => {
                told += 1
            }
            other => assert_eq!(other, Event::EchoResponse(b"last"[..].into())),
        }
    }
    assert_eq!(told, COUNT - 1);
    room.close().await;
}

#[tokio::test]
async fn csp_13_12_idle_timeout_29_is_closed_and_30_accepted() {
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let person = room.person().await;
    for seconds in [29, 601] {
        let mut client = room.alone(&person).await;
        client.set_idle_timeout(seconds).await.unwrap();
        assert!(matches!(event(&mut client).await, Event::CloseError { can_reconnect: true, .. }));
        ends(&mut client).await;
    }
    let mut client = room.alone(&person).await;
    for seconds in [30, 600] {
        client.set_idle_timeout(seconds).await.unwrap();
        echoes(&mut client, b"still here").await;
    }
    room.close().await;
}

/// Lets time pass for the server, which is otherwise waiting for its sockets.
async fn pass(seconds: u64) {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(seconds)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn csp_13_12_idle_timeout_is_enforced_without_a_close_error() {
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let person = room.person().await;
    let mut client = room.alone(&person).await;
    client.set_idle_timeout(30).await.unwrap();
    echoes(&mut client, b"taken").await;
    pass(29).await;
    echoes(&mut client, b"any frame breaks the silence").await;
    pass(29).await;
    echoes(&mut client, b"again").await;
    pass(30).await;
    ends(&mut client).await;
    let mut client = room.alone(&person).await;
    pass(299).await;
    echoes(&mut client, b"five minutes when nothing is said").await;
    pass(300).await;
    ends(&mut client).await;
    room.close().await;
}

#[tokio::test]
async fn csp_2_7_a_handshake_takes_20_s_at_most() {
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let person = room.person().await;
    let silent = room.socket().await;
    let mut slow = room.socket().await;
    login_bytes(&room, &mut slow, &room.login_of(&person)).await;
    // Known to be accepted, because later ones are.
    let mut bystander = room.alone(&person).await;
    pass(20).await;
    closes_silently(silent).await;
    closes_silently(slow).await;
    echoes(&mut bystander, b"undisturbed").await;
    room.close().await;
}

#[tokio::test]
async fn a_failed_write_ends_connections_without_an_ack_and_loses_nothing_that_was_acked() {
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let (a, b) = (room.person().await, room.person().await);
    let mut sender = room.alone(&a).await;
    sent(&mut sender, a.message(&b, 1), b.ack_of(1)).await;
    let file = file_of(dir.path()).await;
    sqlx::query("CREATE TRIGGER full BEFORE INSERT ON queue BEGIN SELECT RAISE(ABORT, 'disk full'); END")
        .execute(&file)
        .await
        .unwrap();
    for _ in 0..3 {
        sender.send_message(a.message(&b, 2)).await.unwrap();
        ends(&mut sender).await;
        sender = room.alone(&a).await;
    }
    sqlx::query("DROP TRIGGER full").execute(&file).await.unwrap();
    file.close().await;
    sent(&mut sender, a.message(&b, 2), b.ack_of(2)).await;
    let mut receiver = room.login(room.login_of(&b)).await;
    assert_eq!(events_until_complete(&mut receiver).await, [1, 2]);
    room.close().await;
}

#[tokio::test]
async fn csp_13_13_frames_at_the_edges() {
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let person = room.person().await;
    let mut client = room.alone(&person).await;
    echoes(&mut client, &[0x5a; 8_192 - 16 - 4]).await;
    for len in [0, 19, 8_193, u16::MAX] {
        let mut client = room.alone(&person).await;
        let mut frame = len.to_le_bytes().to_vec();
        frame.resize(2 + usize::from(len), 0);
        // The server may have hung up before it was all written.
        let _ = client.send_raw(&frame).await;
        ends(&mut client).await;
    }
    room.close().await;
}

#[tokio::test]
async fn csp_13_14_created_at_is_overwritten_when_it_is_0_future_or_short_lived() {
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let (a, b) = (room.person().await, room.person().await);
    let (mut sender, mut receiver) = (room.alone(&a).await, room.alone(&b).await);
    let now = || u32::try_from(Clock::system().now().wall_ms / 1_000).unwrap();
    let start = now();
    let none = MessageFlags::default();
    let short = MessageFlags::SHORT_LIVED;
    for (id, given, flags, kept) in
        [(1, 0, none, false), (2, start + 3_600, none, false), (3, 5, short, false), (4, 5, none, true)]
    {
        sent(&mut sender, Message { created_at_s: given, ..a.flagged(&b, id, flags) }, b.ack_of(id)).await;
        let Event::Message(message) = event(&mut receiver).await else { panic!("not a message") };
        let got = message.created_at_s;
        assert!(if kept { got == given } else { (start..=now()).contains(&got) }, "{given} became {got}");
    }
    room.close().await;
}

#[tokio::test]
async fn csp_13_16_a_changed_cookie_is_indicated_on_each_login_until_it_is_cleared() {
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let person = room.person().await;
    // The indication comes ahead of the queue-send-complete.
    let indicated = async |cookie: u8| {
        let mut client = room.login(room.login_of(&person).cookie(DeviceCookie([cookie; 16]))).await;
        let indicated = match event(&mut client).await {
            Event::DeviceCookieChangeIndication => true,
            Event::QueueSendComplete => return (false, client),
            other => panic!("{other:?}"),
        };
        assert_eq!(event(&mut client).await, Event::QueueSendComplete);
        (indicated, client)
    };
    assert!(!indicated(1).await.0);
    assert!(!indicated(1).await.0);
    assert!(indicated(2).await.0);
    let (again, mut client) = indicated(2).await;
    assert!(again);
    client.send(&FromClient::ClearDeviceCookieChangeIndication).await.unwrap();
    sent(&mut client, person.message(&person, 1), person.ack_of(1)).await;
    assert!(!indicated(2).await.0);
    room.close().await;
}

#[tokio::test]
async fn csp_13_17_a_malformed_message_never_reaches_a_receiver() {
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let (a, b) = (room.person().await, room.person().await);
    let mut receiver = room.alone(&b).await;
    let good = FromClient::Message(a.message(&b, 1)).encode();
    let no_metadata = FromClient::Message(a.message(&b, 1).without_metadata()).encode();
    let with_metadata_len = |len: u16| {
        let mut bytes = good.to_vec();
        bytes[4 + 30..4 + 32].copy_from_slice(&len.to_le_bytes());
        bytes
    };
    let mut foreign = a.message(&b, 1);
    foreign.sender = b.identity.into();
    let malformed: [Vec<u8>; 8] = [
        no_metadata[..4 + 88 + 17].to_vec(),
        good[..4].to_vec(),
        good[..4 + 63].to_vec(),
        with_metadata_len(1),
        with_metadata_len(16),
        with_metadata_len(u16::MAX),
        FromClient::Message(foreign).encode().to_vec(),
        vec![0x82, 0, 0, 0, 1],
    ];
    for container in malformed {
        let mut sender = room.login(room.login_of(&a).device(CspDeviceId(1))).await;
        sender.send_container(&container).await.unwrap();
        ends(&mut sender).await;
    }
    let mut sender = room.alone(&a).await;
    sent(&mut sender, a.message(&b, 2), b.ack_of(2)).await;
    assert_eq!(message_id(&mut receiver, &b, &a).await, 2, "the first and only one");
    room.close().await;
}

#[derive(Debug)]
struct Breaks;

impl PushHook for Breaks {
    fn push(&self, _: PushRequest) {
        panic!("this hook is broken");
    }
}

#[tokio::test]
async fn a_room_whose_task_fails_says_so() {
    let dir = temp();
    let room = Room::open_with(dir.path(), |config| config.push = std::sync::Arc::new(Breaks)).await;
    let (a, b) = (room.person().await, room.person().await);
    let mut sender = room.alone(&a).await;
    assert!(futures_util::FutureExt::now_or_never(room.running.over()).is_none());
    sender.send_message(a.flagged(&b, 1, MessageFlags::SEND_PUSH)).await.unwrap();
    soon(room.running.over()).await;
    room.close().await;
}

#[tokio::test]
async fn csp_3_unknown_and_obsolete_payloads_are_ignored() {
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let person = room.person().await;
    let mut client = room.alone(&person).await;
    for kind in [0x02, 0x21, 0x22, 0x23, 0x31, 0x81, 0x7f, 0xd1, 0xe0, 0xff] {
        client.send_container(&[kind, 9, 9, 9, 1, 2, 3]).await.unwrap();
    }
    echoes(&mut client, b"unimpressed").await;
    room.close().await;
}

#[tokio::test]
async fn csp_7_an_alert_is_shown_to_the_connected() {
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let person = room.person().await;
    let mut client = room.alone(&person).await;
    room.running.alert(person.identity, AlertText::new("Maintenance at noon")).await;
    assert_eq!(event(&mut client).await, Event::Alert("Maintenance at noon".into()));
    room.close().await;
}

#[tokio::test]
async fn random_octets_disturb_no_bystander() {
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let (a, b) = (room.person().await, room.person().await);
    let mut bystander = room.alone(&b).await;
    for round in 0..40 {
        let noise =
            [random::bytes::<32>(), random::bytes(), random::bytes(), random::bytes(), random::bytes()].concat();
        // As a hello, as a login, as frames.
        let mut socket = room.socket().await;
        let _ = socket.write_all(&noise).await;
        drop(socket);
        let mut socket = room.socket().await;
        login_bytes(&room, &mut socket, &room.login_of(&a)).await;
        socket.write_all(&noise).await.unwrap();
        closes_silently(socket).await;
        let mut client = room.alone(&a).await;
        client.send_raw(&noise).await.unwrap();
        client.send_raw(&[0; 2]).await.unwrap_or_default();
        drop(client);
        // Containers that open and mean nothing.
        let mut client = room.alone(&a).await;
        let _ = client.send_container(&noise).await;
        let _ = client.send_container(&noise[..usize::from(noise[0]) % 8]).await;
        drop(client);
        echoes(&mut bystander, &[round]).await;
    }
    let mut client = room.alone(&a).await;
    sent(&mut client, a.message(&b, 1), b.ack_of(1)).await;
    assert_eq!(message_id(&mut bystander, &b, &a).await, 1);
    room.close().await;
}

#[tokio::test]
async fn who_does_not_read_is_disconnected_and_loses_nothing() {
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let (a, b) = (room.person().await, room.person().await);
    let mut sender = room.alone(&a).await;
    let mut deaf = room.alone(&b).await;
    for id in 1..=20 {
        sent(&mut sender, a.message(&b, id), b.ack_of(id)).await;
    }
    // Asks and asks, and never listens, until the server has had enough.
    let flood = async {
        loop {
            if deaf.echo(vec![0; 8_172]).await.is_err() {
                break;
            }
        }
    };
    soon(flood).await;
    echoes(&mut sender, b"undisturbed").await;
    drop(deaf);
    let mut receiver = room.login(room.login_of(&b)).await;
    assert_eq!(events_until_complete(&mut receiver).await, (1..=20).collect::<Vec<_>>());
    room.close().await;
}

#[tokio::test]
async fn a_thousand_messages_both_ways_arrive_in_order() {
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let (a, b) = (room.person().await, room.person().await);
    const COUNT: u64 = 1_000;
    let (client_a, client_b) = (room.alone(&a).await, room.alone(&b).await);
    let talk = async |client: Client, me: &Person, other: &Person| {
        let (mut sender, mut receiver) = client.split();
        let send = async {
            for id in 1..=COUNT {
                sender.send_message(me.message(other, id)).await.unwrap();
            }
            sender
        };
        let (acks, received) = (&mut HashSet::new(), &mut Vec::new());
        let mut sender = soon(send).await;
        while acks.len() as u64 + (received.len() as u64) < 2 * COUNT {
            match soon(receiver.next_event()).await.unwrap() {
                Event::MessageAck(ack) => assert!(acks.insert(ack.id), "acked once"),
                Event::Message(message) => {
                    received.push(message.id.0);
                    sender.ack(&message).await.unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(*received, (1..=COUNT).collect::<Vec<_>>());
        (sender, receiver)
    };
    let _both = tokio::join!(talk(client_a, &a, &b), talk(client_b, &b, &a));
    room.close().await;
}

#[tokio::test]
async fn csp_10_the_directory_is_changed_beside_a_running_server() {
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let directory = Directory::open(dir.path()).await.unwrap();
    let person = Person::new();
    assert!(matches!(room.try_login(room.login_of(&person)).await, Err(CspError::Closed(_))));
    directory.add(person.identity, &person.public, "7f").await.unwrap();
    room.alone(&person).await;
    let entry = directory.lookup(person.identity).await.unwrap().unwrap();
    assert_eq!((entry.public_key, entry.server_group.as_str()), (person.public, "7f"));
    assert!(matches!(directory.add(person.identity, &person.public, "").await, Err(AddError::Taken)));
    assert!(matches!(directory.add(Identity::random(), &[0; 32], "").await, Err(AddError::LowOrder)));
    assert!(directory.revoke(person.identity).await.unwrap());
    assert!(!directory.revoke(person.identity).await.unwrap(), "it is revoked");
    assert!(matches!(room.try_login(room.login_of(&person)).await, Err(CspError::Closed(_))));
    let list = directory.list().await.unwrap();
    assert_eq!((list.len(), list[0].state), (1, DirectoryState::Revoked));
    directory.close().await;
    room.close().await;
}

/// The directory is changed through a connection of its own, as another process does.
#[tokio::test]
async fn csp_10_who_is_revoked_while_connected_is_told_and_ended() {
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let (a, b) = (room.person().await, room.person().await);
    let directory = Directory::open(dir.path()).await.unwrap();
    let revoke = async |who: &Person| assert!(directory.revoke(who.identity).await.unwrap());
    let told = async |client: &mut Client| {
        let farewell = event(client).await;
        let Event::CloseError { can_reconnect: false, message } = farewell else { panic!("{farewell:?}") };
        assert!(message.contains("revoked"), "{message}");
        ends(client).await;
    };

    // One that speaks is ended by that, unheard.
    let mut receiver = room.alone(&b).await;
    let mut sender = room.alone(&a).await;
    revoke(&a).await;
    sender.send_message(a.message(&b, 1)).await.unwrap();
    told(&mut sender).await;
    echoes(&mut receiver, b"nothing came").await;

    // One that is spoken to is ended by that. Its sender sees no difference to one that never was.
    let c = room.person().await;
    let mut sender = room.alone(&c).await;
    revoke(&b).await;
    sent(&mut sender, c.message(&b, 2), b.ack_of(2)).await;
    told(&mut receiver).await;

    // One that says nothing is ended within a minute.
    let mut silent = sender;
    revoke(&c).await;
    pass(60).await;
    told(&mut silent).await;
    directory.close().await;
    room.close().await;
}

#[tokio::test]
async fn the_servers_key_is_made_once_kept_private_and_never_guessed_at() {
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let key = *room.running.public_key();
    room.close().await;
    let file = dir.path().join("csp-server.key");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let room = Room::open(dir.path()).await;
    assert_eq!(*room.running.public_key(), key);
    room.close().await;
    std::fs::write(&file, "half a k").unwrap();
    let config = Config::new(([127, 0, 0, 1], 0).into(), dir.path().to_owned());
    let refused = csp::start(config, Clock::system(), CancellationToken::new()).await;
    assert!(matches!(refused, Err(StartError::Key(_))), "a damaged key is not replaced by another one");
}

/// The file beside the running server.
async fn file_of(dir: &Path) -> sqlx::SqlitePool {
    sqlx::SqlitePool::connect(&format!("sqlite:{}", dir.join("csp.sqlite").display())).await.unwrap()
}

#[tokio::test]
async fn a_damaged_row_of_one_receiver_is_skipped_and_ends_nobody() {
    let dir = temp();
    let room = Room::open(dir.path()).await;
    let (a, b, c) = (room.person().await, room.person().await, room.person().await);
    let mut sender = room.alone(&a).await;
    for id in 1..=3 {
        sent(&mut sender, a.message(&b, id), b.ack_of(id)).await;
    }
    let file = file_of(dir.path()).await;
    sqlx::query("UPDATE queue SET message = x'00' WHERE seq = 2").execute(&file).await.unwrap();
    sqlx::query("INSERT INTO device_cookie (identity, cookie, changed) VALUES ($1, x'00', 0)")
        .bind(b.identity.as_str())
        .execute(&file)
        .await
        .unwrap();
    room.close().await;

    // Now the receiver's mailbox sleeps, and is woken by a message, with the damage in it.
    let room = Room::open(dir.path()).await;
    let (mut bystander, mut sender) = (room.alone(&c).await, room.alone(&a).await);
    sent(&mut sender, a.message(&b, 4), b.ack_of(4)).await;
    let mut receiver = room.login(room.login_of(&b)).await;
    assert_eq!(events_until_complete(&mut receiver).await, [1, 3, 4]);
    echoes(&mut bystander, b"undisturbed").await;
    echoes(&mut sender, b"undisturbed").await;
    file.close().await;
    room.close().await;
}
