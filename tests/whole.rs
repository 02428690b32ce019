//! Mediator and chat server together: one account on three devices, another on one, over real sockets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may panic"
)]

mod common;

use common::{Family, Server, Setup, soon};
use heliostat::chat::csp;
use heliostat::chat::csp::wire::{CspDeviceId, Identity, Message, MessageFlags, MessageId};
use heliostat::client::csp::{CspClient, Draft, EndToEnd, Event, Login};
use heliostat::client::{Device, ProxyStream};
use heliostat::crypto::Secret;
use heliostat::crypto::boxes::{self, Public};
use heliostat::time::Clock;
use heliostat::wire::d2m::{CloseCode, ReflectFlags, ToDevice};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

struct Account {
    identity: Identity,
    key: Secret<32>,
}

impl Account {
    async fn new(chat: &csp::Running) -> Self {
        let account = Self { identity: Identity::random(), key: Secret::random() };
        chat.directory().add(account.identity, &boxes::public(&account.key), "a0").await.unwrap();
        account
    }

    fn login(&self, server: &Public) -> Login {
        Login::new(self.identity, self.key.clone(), *server)
    }

    fn writes(&self, to: &Self, id: u64, text: &str) -> Message {
        let content = [&[1][..], text.as_bytes(), &[1]].concat();
        let draft = Draft {
            sender: self.identity,
            receiver: to.identity,
            id: MessageId(id),
            created_at_s: 0,
            flags: MessageFlags::SEND_PUSH,
            nickname: "",
            metadata: None,
            content: &content,
        };
        Message::seal(&draft, &self.key, &boxes::public(&to.key)).unwrap()
    }

    fn reads(&self, from: &Self, message: &Message) -> String {
        let keys = EndToEnd::new(&self.key, &boxes::public(&from.key)).unwrap();
        let plain = message.open(&keys).unwrap();
        String::from_utf8_lossy(&plain[1..plain.len() - 1]).into_owned()
    }
}

async fn next_message(client: &mut CspClient<impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>) -> Message {
    loop {
        if let Event::Message(message) = soon(client.next_event()).await.unwrap() {
            return message;
        }
    }
}

async fn logs_in(device: &mut Device, account: &Account, number: u64, server: &Public) -> CspClient<ProxyStream> {
    let login = account.login(server).device(CspDeviceId(number));
    soon(CspClient::login(device.proxy_stream().unwrap(), login)).await.unwrap()
}

#[tokio::test]
async fn the_leader_gets_the_chat_and_the_next_leader_goes_on_without_loss() {
    let dir = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let config = csp::Config::new("127.0.0.1:0".parse().unwrap(), dir.path().to_owned());
    let chat = csp::start(config, Clock::system(), stop.clone()).await.unwrap();
    let server = Server::start(dir.path(), Setup { upstream: Some(chat.local_addr()), ..Setup::default() }).await;
    let family = Family::new(server.url());
    let (alice, bob) = (Account::new(&chat).await, Account::new(&chat).await);

    // Bob has one device, on plain TCP.
    let tcp = TcpStream::connect(chat.local_addr()).await.unwrap();
    let mut bobs = soon(CspClient::login(tcp, bob.login(chat.public_key()))).await.unwrap();

    // Alice has three, all logged in to the chat server; the first one leads.
    let (mut phone, mut tablet, mut desk) = (family.joins(1).await, family.joins(2).await, family.joins(3).await);
    soon(phone.wait_leader()).await.unwrap();
    let mut on_phone = logs_in(&mut phone, &alice, 1, chat.public_key()).await;
    let mut on_tablet = logs_in(&mut tablet, &alice, 2, chat.public_key()).await;
    on_phone.unblock().await.unwrap();

    for (id, text) in (1..).zip(["one", "two", "three"]) {
        bobs.send_message(bob.writes(&alice, id, text)).await.unwrap();
    }
    let first = next_message(&mut on_phone).await;
    assert_eq!(alice.reads(&bob, &first), "one");
    // Reflected first, acknowledged afterwards: so it is nowhere lost.
    let envelope = family.key.seal_envelope(alice.reads(&bob, &first).as_bytes());
    soon(phone.reflect_and_wait(&envelope, ReflectFlags::default())).await.unwrap();
    on_phone.ack(&first).await.unwrap();
    assert_eq!(alice.reads(&bob, &next_message(&mut on_phone).await), "two");
    // What still waits for the chat server when a device vanishes is lost with it: the echo proves that the ack is there.
    on_phone.echo(&b"are you there"[..]).await.unwrap();
    while !matches!(soon(on_phone.next_event()).await.unwrap(), Event::EchoResponse(_)) {}
    for other in [&mut tablet, &mut desk] {
        let got = common::reflected(other).await;
        assert_eq!(family.key.open_envelope(&got).unwrap(), b"one");
    }

    // The phone goes before it acknowledged the second one. The tablet leads on, and gets the rest.
    drop(on_phone);
    phone.abort();
    soon(tablet.wait_leader()).await.unwrap();
    on_tablet.unblock().await.unwrap();
    for text in ["two", "three"] {
        let message = next_message(&mut on_tablet).await;
        assert_eq!(alice.reads(&bob, &message), text);
        on_tablet.ack(&message).await.unwrap();
    }

    // And any device may answer, leader or not.
    let mut on_desk = logs_in(&mut desk, &alice, 3, chat.public_key()).await;
    on_desk.send_message(alice.writes(&bob, 7, "hello from the desk")).await.unwrap();
    assert_eq!(bob.reads(&alice, &next_message(&mut bobs).await), "hello from the desk");
    loop {
        if let Event::MessageAck(ack) = soon(on_desk.next_event()).await.unwrap() {
            break assert_eq!(ack.id, MessageId(7));
        }
    }

    // The chat server stops: what it said last arrives, then 4000.
    stop.cancel();
    assert_eq!(soon(desk.wait_ended()).await.close_code(), Some(CloseCode::ChatServerClosed));
    soon(chat.wait()).await;
    server.stop().await;
}

#[tokio::test]
async fn a_connection_without_chat_never_meets_the_chat_servers_troubles() {
    let dir = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let config = csp::Config::new("127.0.0.1:0".parse().unwrap(), dir.path().to_owned());
    let chat = csp::start(config, Clock::system(), stop.clone()).await.unwrap();
    let server = Server::start(dir.path(), Setup { upstream: Some(chat.local_addr()), ..Setup::default() }).await;
    let family = Family::new(server.url());
    let (mut one, mut two) = (family.joins(1).await, family.joins(2).await);
    stop.cancel();
    soon(chat.wait()).await;
    soon(one.reflect_and_wait(b"still here", ReflectFlags::default())).await.unwrap();
    let payload = soon(two.wait_for(|payload| matches!(payload, ToDevice::Reflected(_)))).await.unwrap();
    assert!(matches!(payload, ToDevice::Reflected(message) if message.envelope() == b"still here"));
}
