//! The ChatOs server on real sockets: the vectors of its specification as octets, its acceptance checklist by number, and
//! what one client can do to the others, which is nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may panic"
)]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use common::soon;
use heliostat::chat::chatos::serve::{OUTBOX_PACKETS_MAX, PIPE_BUFFER_MAX};
use heliostat::chat::chatos::wire::{CLIENT_CAPS, FromClient, PrivateId, SERVER_SAYS, Text, ToClient, take_packet};
use heliostat::chat::chatos::{Config, Running, start};
use heliostat::net::rate::{Per, Rate};
use heliostat::time::Clock;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

struct Room {
    running: Running,
    stop: CancellationToken,
}

impl Room {
    async fn open() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::new("127.0.0.1:0".parse().unwrap());
        change(&mut config);
        let stop = CancellationToken::new();
        Self { running: start(config, Clock::system(), stop.clone()).await.unwrap(), stop }
    }

    fn address(&self) -> SocketAddr {
        self.running.addresses()[0]
    }

    async fn connects(&self) -> Peer {
        let tcp = TcpStream::connect(self.address()).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        Peer { tcp, received: BytesMut::new(), name: String::new() }
    }

    async fn logs_in(&self, name: &str) -> Peer {
        let mut peer = self.connects().await;
        peer.says(&FromClient::Login(name.to_owned())).await;
        assert_eq!(peer.hears().await, ToClient::Welcome(name.to_owned()));
        Peer { name: name.to_owned(), ..peer }
    }

    /// Logs in as soon as the name is free, which it is when the server has noticed.
    async fn gets(&self, name: &str) -> Peer {
        loop {
            let mut peer = self.connects().await;
            peer.says(&FromClient::Login(name.to_owned())).await;
            match peer.hears().await {
                ToClient::Welcome(_) => return Peer { name: name.to_owned(), ..peer },
                other => assert_eq!(other, ToClient::Refused(name.to_owned())),
            }
        }
    }

    async fn joins(&self, id: PrivateId) -> Peer {
        let mut leg = self.connects().await;
        leg.says(&FromClient::Join(id)).await;
        leg
    }

    async fn closes(self) {
        self.stop.cancel();
        soon(self.running.wait()).await;
    }
}

/// A client that says what it is told to.
struct Peer {
    tcp: TcpStream,
    received: BytesMut,
    name: String,
}

impl Peer {
    async fn says(&mut self, packet: &FromClient) {
        self.tcp.write_all(&packet.encode()).await.unwrap();
    }

    async fn says_in_steps(&mut self, octets: &[u8], step: usize) {
        for piece in octets.chunks(step) {
            self.tcp.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
    }

    async fn shouts(&mut self, text: &str) {
        let packet = FromClient::Public { from: self.name.clone(), text: Text(text.to_owned()) };
        self.says(&packet).await;
    }

    /// The next packet; nothing at the end.
    async fn next(&mut self) -> Option<ToClient> {
        loop {
            if let Some(packet) = take_packet(&mut self.received, CLIENT_CAPS, SERVER_SAYS).unwrap() {
                return Some(ToClient::decode(&packet).unwrap());
            }
            if soon(self.tcp.read_buf(&mut self.received)).await.unwrap() == 0 {
                assert!(self.received.is_empty(), "ended in the middle of a packet");
                return None;
            }
        }
    }

    async fn hears(&mut self) -> ToClient {
        self.next().await.expect("the connection goes on")
    }

    async fn hears_public(&mut self, from: &str, text: &str) {
        let expected = ToClient::Public { from: from.to_owned(), text: Text(text.to_owned()) };
        assert_eq!(self.hears().await, expected);
    }

    /// Everything it said so far was handled, and this is all that came of it (spec 12.4).
    async fn fence(&mut self) -> Vec<ToClient> {
        let token = FromClient::Private { from: self.name.clone(), to: self.name.clone(), text: Text("fence".into()) };
        self.says(&token).await;
        let mut heard = Vec::new();
        loop {
            match self.hears().await {
                ToClient::Private { from, to, .. } if from == self.name && to == self.name => return heard,
                other => heard.push(other),
            }
        }
    }

    async fn ends_with(&mut self, last: Option<ToClient>) {
        if let Some(last) = last {
            assert_eq!(self.hears().await, last);
        }
        assert_eq!(self.next().await, None);
    }

    fn resets(self) {
        self.tcp.set_zero_linger().unwrap();
    }
}

/// alice and bob have an id.
async fn granted(alice: &mut Peer, bob: &mut Peer) -> PrivateId {
    let (a, b) = (alice.name.clone(), bob.name.clone());
    alice.says(&FromClient::Request { from: a.clone(), to: b.clone() }).await;
    assert_eq!(bob.hears().await, ToClient::Request { from: a.clone(), to: b.clone() });
    bob.says(&FromClient::Accept(b.clone(), a.clone())).await;
    assert_eq!(alice.hears().await, ToClient::Accept(b.clone(), a.clone()));
    let ToClient::Id(first, second, id) = alice.hears().await else { panic!("no id") };
    assert_eq!((&first, &second), (&b, &a), "the other, then oneself (D-27)");
    assert_eq!(bob.hears().await, ToClient::Id(a, b, id));
    id
}

async fn piped(room: &Room, alice: &mut Peer, bob: &mut Peer) -> (Peer, Peer) {
    let id = granted(alice, bob).await;
    let (mut one, mut two) = (room.joins(id).await, room.joins(id).await);
    assert_eq!((one.hears().await, two.hears().await), (ToClient::Established, ToClient::Established));
    (one, two)
}

fn hex(digits: &str) -> Vec<u8> {
    hex::decode(digits.replace(' ', "")).unwrap()
}

/// Octets that look like anything and are the same each time.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| random.u8(..)).collect()
}

/// N1 to N21 and their kin: what is sent before, by whom, and how it is answered.
const NEGATIVE: &[(&str, bool, &str, &str)] = &[
    ("N1", true, "04 ffffffff", "02 00000005 616c696365"),
    ("N2", true, "04 00000005 616c696365 7fffffff", "02 00000005 616c696365"),
    ("N3", true, "04 00000005 616c696365 00000801", "02 00000005 616c696365"),
    ("N4", true, "04 00000005 616c696365 00000002 c0af", "02 00000005 616c696365"),
    ("N5", true, "04 00000005 616c696365 00000003 eda080", "02 00000005 616c696365"),
    ("N6", true, "04 00000005 616c696365 00000002 e282", "02 00000005 616c696365"),
    ("N7", true, "04 00000005 616c696365 00000003 610a62", "02 00000005 616c696365"),
    ("N8", true, "04 00000003 626f62 00000001 78", "02 00000005 616c696365"),
    ("N9 0c", true, "0c", "02 00000005 616c696365"),
    ("N9 0d", true, "0d", "02 00000005 616c696365"),
    ("N9 ff", true, "ff", "02 00000005 616c696365"),
    ("N9 01", true, "01", "02 00000005 616c696365"),
    ("N9 06", true, "06", "02 00000005 616c696365"),
    ("N9 0b", true, "0b", "02 00000005 616c696365"),
    ("N10", true, "00 00000005 616c696365", "02 00000005 616c696365"),
    ("op 10 online", true, "0a 0000000000000001", "02 00000005 616c696365"),
    ("N13", false, "04 00000003 657665 00000002 6869", "02 00000000"),
    ("N14", false, "03", "02 00000000"),
    ("N15", false, "00 00000000", "02 00000000"),
    ("N16", false, "00 00000003 612062", "02 00000003 612062"),
    ("N17", false, "00 00000004 40626f62", "02 00000004 40626f62"),
    ("N18", false, "00 00000001 ff", "02 00000000"),
    ("N19", false, "00 00000401", "02 00000000"),
    ("N20", false, "0a ffffffffffffffff", "02 00000000"),
    (
        "V0d",
        false,
        "00 00000019 6162636465666768696a6b6c6d6e6f70717273747576777879",
        "02 00000019 6162636465666768696a6b6c6d6e6f70717273747576777879",
    ),
];

#[tokio::test]
async fn chatos_18_1_and_18_11_every_negative_vector_ends_its_connection_and_disturbs_nobody() {
    let room = Room::open().await;
    let mut bystander = room.logs_in("bob").await;
    for octet_by_octet in [false, true] {
        for (name, online, octets, farewell) in NEGATIVE {
            let mut peer = if *online { room.gets("alice").await } else { room.connects().await };
            let octets = hex(octets);
            if octet_by_octet {
                for octet in octets {
                    // The server may have had enough before the last one.
                    if peer.tcp.write_all(&[octet]).await.is_err() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
            } else {
                peer.tcp.write_all(&octets).await.unwrap();
            }
            let mut answer = Vec::new();
            soon(peer.tcp.read_to_end(&mut answer)).await.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(hex::encode(answer), farewell.replace(' ', ""), "{name}");
            assert_eq!(bystander.fence().await, [], "{name}");
        }
    }
    room.closes().await;
}

#[tokio::test]
async fn chatos_14_what_is_not_fatal_is_answered_and_goes_on() {
    let room = Room::open().await;
    let mut alice = room.logs_in("alice").await;
    let vectors = [
        ("N11", "05 00000005 616c696365 00000006 6e6f626f6479 00000002 6869", "06 00000005 616c696365"),
        ("N12", "03 00000005 616c696365 00000005 616c696365", "06 00000005 616c696365"),
        ("V4c", "04 00000005 616c696365 00000000", "04 00000005 616c696365 00000000"),
        (
            "V5b",
            "05 00000005 616c696365 00000005 616c696365 00000001 6b",
            "05 00000005 616c696365 00000005 616c696365 00000001 6b",
        ),
    ];
    for step in [usize::MAX, 1] {
        for (name, octets, answer) in vectors {
            alice.says_in_steps(&hex(octets), step).await;
            let expected = hex(answer);
            let mut heard = vec![0; expected.len()];
            soon(alice.tcp.read_exact(&mut heard)).await.unwrap();
            assert_eq!(heard, expected, "{name} by {step}");
        }
        // N21: the first alice is not disturbed.
        let mut second = room.connects().await;
        second.says_in_steps(&hex("00 00000005 616c696365"), step).await;
        second.ends_with(Some(ToClient::Refused("alice".into()))).await;
        assert_eq!(alice.fence().await, []);
    }
    room.closes().await;
}

#[tokio::test]
async fn chatos_14_streams_are_read_whatever_their_segments() {
    let room = Room::open().await;
    let stream = hex("00 00000005 616c696365 04 00000005 616c696365 00000001 61 04 00000005 616c696365 00000001 62");
    for step in [stream.len(), 1] {
        let mut peer = loop {
            let mut peer = room.connects().await;
            peer.says_in_steps(&stream, step).await;
            // The one before may not be gone yet.
            if peer.hears().await == ToClient::Welcome("alice".into()) {
                break peer;
            }
        };
        peer.hears_public("alice", "a").await;
        peer.hears_public("alice", "b").await;
    }
    // F3: a beginning, and the end.
    let mut peer = room.connects().await;
    peer.tcp.write_all(&hex("00 0000")).await.unwrap();
    peer.tcp.shutdown().await.unwrap();
    peer.ends_with(None).await;
    room.closes().await;
}

#[tokio::test]
async fn chatos_18_2_two_logins_at_the_same_instant() {
    let room = Room::open().await;
    for round in 0..20 {
        let name = format!("twin{round}");
        let (mut a, mut b) = (room.connects().await, room.connects().await);
        let login = FromClient::Login(name.clone());
        tokio::join!(a.says(&login), b.says(&login));
        let (a, b) = tokio::join!(a.next(), b.next());
        let welcome = [&a, &b].iter().filter(|said| ***said == Some(ToClient::Welcome(name.clone()))).count();
        let refused = [&a, &b].iter().filter(|said| ***said == Some(ToClient::Refused(name.clone()))).count();
        assert_eq!((welcome, refused), (1, 1), "{a:?} {b:?}");
    }
    room.closes().await;
}

#[tokio::test]
async fn chatos_18_3_everybody_hears_everything_in_the_same_order() {
    const CLIENTS: usize = 16;
    const MESSAGES: usize = 50;
    let room = Room::open().await;
    let silent = room.connects().await;
    let mut clients = Vec::new();
    for n in 0..CLIENTS {
        clients.push(room.logs_in(&format!("client{n}")).await);
    }
    let tasks: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            tokio::spawn(async move {
                let mut heard = Vec::new();
                for n in 0..MESSAGES {
                    client.shouts(&n.to_string()).await;
                }
                while heard.len() < CLIENTS * MESSAGES {
                    heard.push(client.hears().await);
                }
                (client, heard)
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.push(soon(task).await.unwrap());
    }
    let (_, first) = &all[0];
    for (client, heard) in &all {
        assert!(heard == first, "{} heard another order", client.name);
        let own = heard.iter().filter(|said| matches!(said, ToClient::Public { from, .. } if *from == client.name));
        assert_eq!(own.count(), MESSAGES, "its own are among them (D-17)");
    }
    let mut nothing = [0];
    assert!(silent.tcp.try_read(&mut nothing).is_err(), "who is nobody hears nothing");
    room.closes().await;
}

async fn exchange(mut one: Peer, mut two: Peer, seed: u64) {
    const MIB: usize = 1024 * 1024;
    async fn side(leg: &mut Peer, sends: Vec<u8>) -> Vec<u8> {
        let (mut reading, mut writing) = leg.tcp.split();
        let send = async {
            writing.write_all(&sends).await.unwrap();
            writing.shutdown().await.unwrap();
        };
        let mut heard = leg.received.to_vec();
        let ((), read) = tokio::join!(send, reading.read_to_end(&mut heard));
        read.unwrap();
        heard
    }
    let (a, b) = (noise(seed, MIB), noise(seed + 1, MIB));
    let (heard_by_one, heard_by_two) =
        soon(async { tokio::join!(side(&mut one, a.clone()), side(&mut two, b.clone())) }).await;
    assert_eq!(Sha256::digest(heard_by_two), Sha256::digest(a));
    assert_eq!(Sha256::digest(heard_by_one), Sha256::digest(b));
}

#[tokio::test]
async fn chatos_18_4_a_private_connection_carries_a_mebibyte_each_way() {
    let room = Room::open().await;
    let (mut alice, mut bob) = (room.logs_in("alice").await, room.logs_in("bob").await);
    for seed in [1, 3] {
        // The second time shows that the first left nothing behind.
        let (one, two) = piped(&room, &mut alice, &mut bob).await;
        exchange(one, two, seed).await;
        // The relation ends with the pipe; the server may need a moment to notice.
        loop {
            alice.says(&FromClient::Request { from: "alice".into(), to: "bob".into() }).await;
            alice.fence().await;
            if !bob.fence().await.is_empty() {
                break;
            }
        }
        bob.says(&FromClient::Refuse("bob".into(), "alice".into())).await;
        assert_eq!(alice.hears().await, ToClient::Refuse("bob".into(), "alice".into()));
    }
    room.closes().await;
}

#[tokio::test]
async fn chatos_18_4_half_closing_ends_one_direction_only() {
    let room = Room::open().await;
    let (mut alice, mut bob) = (room.logs_in("alice").await, room.logs_in("bob").await);
    let (mut one, mut two) = piped(&room, &mut alice, &mut bob).await;
    one.tcp.write_all(b"last words").await.unwrap();
    one.tcp.shutdown().await.unwrap();
    let mut heard = Vec::new();
    soon(two.tcp.read_to_end(&mut heard)).await.unwrap();
    assert_eq!(heard, b"last words");
    two.tcp.write_all(b"and an answer").await.unwrap();
    two.tcp.shutdown().await.unwrap();
    heard.clear();
    soon(one.tcp.read_to_end(&mut heard)).await.unwrap();
    assert_eq!(heard, b"and an answer");
    assert_eq!((alice.fence().await, bob.fence().await), (vec![], vec![]), "no departure (spec 8)");
    room.closes().await;
}

#[tokio::test]
async fn chatos_18_5_early_octets_arrive_behind_the_establishment() {
    let room = Room::open().await;
    let (mut alice, mut bob) = (room.logs_in("alice").await, room.logs_in("bob").await);
    let id = granted(&mut alice, &mut bob).await;
    let mut one = room.connects().await;
    // In the same segment as the id, and later.
    one.tcp.write_all(&[&FromClient::Join(id).encode()[..], b"early "].concat()).await.unwrap();
    one.tcp.write_all(b"bird").await.unwrap();
    alice.fence().await;
    let mut nothing = [0];
    assert!(one.tcp.try_read(&mut nothing).is_err(), "not before the other is there");
    let mut two = room.joins(id).await;
    assert_eq!((one.hears().await, two.hears().await), (ToClient::Established, ToClient::Established));
    let mut heard = two.received.to_vec();
    while heard.len() < 10 {
        soon(two.tcp.read_buf(&mut heard)).await.unwrap();
    }
    assert_eq!(heard, b"early bird");
    room.closes().await;
}

#[tokio::test]
async fn chatos_18_6_a_departure_closes_the_pipe_and_is_told_to_the_partner_alone() {
    let room = Room::open().await;
    let (mut alice, mut bob) = (room.logs_in("alice").await, room.logs_in("bob").await);
    let mut carol = room.logs_in("carol").await;
    let (mut one, mut two) = piped(&room, &mut alice, &mut bob).await;
    one.tcp.write_all(b"goodbye").await.unwrap();
    drop(alice);
    assert_eq!(bob.hears().await, ToClient::Unknown("alice".into()));
    let mut heard = Vec::new();
    soon(two.tcp.read_to_end(&mut heard)).await.unwrap();
    assert_eq!(heard, b"goodbye");
    heard.clear();
    soon(one.tcp.read_to_end(&mut heard)).await.unwrap();
    assert_eq!(heard, b"");
    assert_eq!((bob.fence().await, carol.fence().await), (vec![], vec![]));
    room.closes().await;
}

/// Octets that are on their way when their client leaves are not lost, however slowly the partner takes them (spec 11).
#[tokio::test]
async fn chatos_18_6_a_departure_loses_nothing_that_was_said_on_the_pipe() {
    let room = Room::open().await;
    let mut bob = room.logs_in("bob").await;
    for seed in 0..4 {
        let mut alice = room.gets("alice").await;
        let (mut one, mut two) = piped(&room, &mut alice, &mut bob).await;
        let octets = noise(seed, 1024 * 1024);
        soon(one.tcp.write_all(&octets)).await.unwrap();
        one.tcp.shutdown().await.unwrap();
        drop(alice);
        assert_eq!(bob.hears().await, ToClient::Unknown("alice".into()));
        let mut heard = Vec::new();
        soon(two.tcp.read_to_end(&mut heard)).await.unwrap();
        assert_eq!(heard.len(), octets.len());
        assert_eq!(Sha256::digest(heard), Sha256::digest(octets));
    }
    room.closes().await;
}

/// The end of the pipe is the end of the relation, also while a side does not close its own (spec 8).
#[tokio::test]
async fn a_pair_may_negotiate_again_as_soon_as_its_pipe_is_over() {
    let room = Room::open().await;
    let (mut alice, mut bob) = (room.logs_in("alice").await, room.logs_in("bob").await);
    let (one, mut two) = piped(&room, &mut alice, &mut bob).await;
    one.resets();
    two.ends_with(None).await;
    let clock = Clock::system();
    let begun = clock.now().monotonic;
    loop {
        alice.says(&FromClient::Request { from: "alice".into(), to: "bob".into() }).await;
        assert_eq!(alice.fence().await, []);
        if !bob.fence().await.is_empty() {
            break;
        }
    }
    let took = clock.now().monotonic - begun;
    assert!(took < Duration::from_millis(1_500), "{took:?}: as long as a side is given to close");
    drop(two);
    room.closes().await;
}

/// Whoever says more than is allowed is read more slowly, and not ended for what is not read (10.5).
#[tokio::test]
async fn who_is_slowed_down_has_not_stalled() {
    let room = Room::with(|config| {
        config.packets = Some(Rate { amount: 5, per: Per::Second });
        config.limits.partial_packet = Duration::from_millis(300);
    })
    .await;
    let mut alice = room.logs_in("alice").await;
    let text = "x".repeat(500);
    let packet = FromClient::Public { from: "alice".into(), text: Text(text.clone()) };
    // More than is read at once, so that a read ends in the middle of a packet.
    alice.tcp.write_all(&packet.encode().repeat(18)).await.unwrap();
    for _ in 0..18 {
        alice.hears_public("alice", &text).await;
    }
    assert_eq!(alice.fence().await, []);
    room.closes().await;
}

#[tokio::test]
async fn chatos_18_8_who_does_not_read_is_cut_off_and_nobody_else_notices() {
    let room = Room::open().await;
    let (mut alice, mut bob) = (room.logs_in("alice").await, room.logs_in("bob").await);
    let deaf = room.logs_in("deaf").await;
    alice.says(&FromClient::Request { from: "alice".into(), to: "deaf".into() }).await;
    // Far more than the kernel's buffers and the queue hold; bob hears each before the next is said, and hears it at once.
    let text = "x".repeat(512);
    let mut said = 0;
    let gone = ToClient::Unknown("deaf".into());
    'cut: loop {
        assert!(said < 60_000, "it is never cut off");
        for _ in 0..OUTBOX_PACKETS_MAX / 4 {
            alice.shouts(&text).await;
            said += 1;
        }
        for _ in 0..OUTBOX_PACKETS_MAX / 4 {
            bob.hears_public("alice", &text).await;
            match alice.hears().await {
                ToClient::Public { .. } => {}
                other => {
                    assert_eq!(other, gone);
                    break 'cut;
                }
            }
        }
    }
    // The name is free while the old socket is still there.
    let mut again = room.logs_in("deaf").await;
    assert!(again.fence().await.len() <= OUTBOX_PACKETS_MAX);
    // What was cut off was reset, not closed.
    let mut deaf = deaf;
    let mut rest = Vec::new();
    assert!(soon(deaf.tcp.read_to_end(&mut rest)).await.is_err(), "{} octets came", rest.len());
    room.closes().await;
}

/// One client says more at once than any queue holds: everybody who reads hears all of it, in order (10.2, D-35).
async fn much_at_once(by_name: bool) {
    const MESSAGES: usize = 5_000;
    const READERS: usize = 6;
    let room = Room::open().await;
    let mut speaker = room.logs_in("speaker").await;
    let mut readers = Vec::new();
    for n in 0..if by_name { 1 } else { READERS } {
        readers.push(room.logs_in(&format!("reader{n}")).await);
    }
    let (from, to) = (speaker.name.clone(), readers[0].name.clone());
    let packet = |n: usize| {
        let (from, to, text) = (from.clone(), to.clone(), Text(n.to_string()));
        if by_name { FromClient::Private { from, to, text } } else { FromClient::Public { from, text } }
    };
    let octets: Vec<u8> = (0..MESSAGES).flat_map(|n| packet(n).encode()).collect();
    let hear = |mut reader: Peer| {
        tokio::spawn(async move {
            for n in 0..MESSAGES {
                let (ToClient::Public { text, .. } | ToClient::Private { text, .. }) = reader.hears().await else {
                    panic!("not a message")
                };
                assert_eq!(text.0, n.to_string(), "{}", reader.name);
            }
        })
    };
    let mut hearing: Vec<_> = readers.into_iter().map(hear).collect();
    soon(speaker.tcp.write_all(&octets)).await.unwrap();
    if by_name {
        assert_eq!(speaker.fence().await, []);
    } else {
        hearing.push(hear(speaker));
    }
    for hears in hearing {
        soon(hears).await.unwrap();
    }
    room.closes().await;
}

#[tokio::test]
async fn chatos_18_8_much_at_once_cuts_nobody_who_reads_on_one_thread() {
    much_at_once(false).await;
    much_at_once(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chatos_18_8_much_at_once_cuts_nobody_who_reads_on_two_threads() {
    much_at_once(false).await;
    much_at_once(true).await;
}

#[tokio::test]
async fn chatos_18_9_a_partner_that_does_not_read_stops_the_sender_and_loses_nothing() {
    let room = Room::open().await;
    let (mut alice, mut bob) = (room.logs_in("alice").await, room.logs_in("bob").await);
    let (one, mut two) = piped(&room, &mut alice, &mut bob).await;
    // So many that no kernel holds them for both sockets.
    let octets = noise(9, 32 * 1024 * 1024);
    let mut sent = 0;
    loop {
        // Full is when a whole fence between two other clients goes by without room for one octet.
        match one.tcp.try_write(&octets[sent..]) {
            Ok(n) => sent += n,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                alice.fence().await;
                bob.fence().await;
                let waited = tokio::time::timeout(Duration::from_millis(200), one.tcp.writable()).await;
                if waited.is_err() {
                    break;
                }
            }
        }
    }
    assert!(sent > PIPE_BUFFER_MAX && sent < octets.len(), "{sent}");
    let (mut reading, mut writing) = (Vec::new(), one.tcp);
    let send = async {
        writing.write_all(&octets[sent..]).await.unwrap();
        writing.shutdown().await.unwrap();
    };
    let ((), read) = soon(async { tokio::join!(send, two.tcp.read_to_end(&mut reading)) }).await;
    read.unwrap();
    assert_eq!(Sha256::digest(reading), Sha256::digest(octets));
    room.closes().await;
}

#[tokio::test]
async fn chatos_18_10_a_reset_in_any_state_leaves_nothing_behind() {
    let room = Room::open().await;
    let mut bob = room.logs_in("bob").await;
    room.connects().await.resets();
    for state in ["online", "asked", "granted", "waiting", "open"] {
        let mut alice = room.gets("alice").await;
        let mut legs = Vec::new();
        match state {
            "asked" => {
                alice.says(&FromClient::Request { from: "alice".into(), to: "bob".into() }).await;
                assert!(matches!(bob.hears().await, ToClient::Request { .. }));
            }
            "granted" => drop(granted(&mut alice, &mut bob).await),
            "waiting" => {
                let id = granted(&mut alice, &mut bob).await;
                legs.push(room.joins(id).await);
            }
            "open" => {
                let (one, two) = piped(&room, &mut alice, &mut bob).await;
                one.resets();
                legs.push(two);
            }
            _ => {}
        }
        alice.resets();
        if state != "online" && state != "open" {
            assert_eq!(bob.hears().await, ToClient::Unknown("alice".into()), "{state}");
        }
        for mut leg in legs {
            leg.ends_with(None).await;
        }
        let mut again = room.gets("alice").await;
        // Of an open pipe whose leg was reset first there may be no relation any more when alice goes.
        let told = bob.fence().await;
        assert!(
            told.is_empty() || (state == "open" && told == [ToClient::Unknown("alice".into())]),
            "{state}: {told:?}"
        );
        assert_eq!(again.fence().await, []);
        drop(again);
    }
    room.closes().await;
}

#[tokio::test]
async fn chatos_18_11_random_octets_disturb_nobody() {
    let room = Room::open().await;
    let mut bystander = room.logs_in("bystander").await;
    for seed in 0..200 {
        let mut octets = noise(seed, 64);
        let mut peer = if seed % 2 == 0 { room.connects().await } else { room.gets("eve").await };
        if seed % 4 >= 2 {
            // Begins well.
            octets[..10].copy_from_slice(&[4, 0, 0, 0, 3, b'e', b'v', b'e', 0, 0]);
        }
        // It may be closed before all was taken.
        let _ = peer.tcp.write_all(&octets).await;
        let _ = peer.tcp.shutdown().await;
        let mut answer = Vec::new();
        let _ = soon(peer.tcp.read_to_end(&mut answer)).await;
        for heard in bystander.fence().await {
            assert!(matches!(heard, ToClient::Public { .. }), "{heard:?}");
        }
    }
    room.closes().await;
}

#[tokio::test]
async fn chatos_18_12_an_error_arrives_although_more_was_on_its_way() {
    let room = Room::open().await;
    for _ in 0..20 {
        let mut alice = room.gets("alice").await;
        let much = [&hex("ff")[..], &[0; 60_000]].concat();
        alice.tcp.write_all(&much).await.unwrap();
        alice.ends_with(Some(ToClient::Refused("alice".into()))).await;
    }
    room.closes().await;
}

#[tokio::test]
async fn a_client_that_only_closes_its_side_still_gets_what_it_is_owed() {
    let room = Room::open().await;
    let mut alice = room.logs_in("alice").await;
    alice.shouts("to be heard").await;
    alice.tcp.shutdown().await.unwrap();
    alice.hears_public("alice", "to be heard").await;
    alice.ends_with(None).await;
    drop(room.gets("alice").await);
    room.closes().await;
}

#[tokio::test]
async fn one_connection_too_many_is_told_an_error() {
    let room = Room::with(|config| config.limits.connections_max = 2).await;
    let (_alice, _bob) = (room.logs_in("alice").await, room.logs_in("bob").await);
    let mut third = room.connects().await;
    third.ends_with(Some(ToClient::Refused(String::new()))).await;
    room.closes().await;
}

/// One short timer in each room, so that nothing else has to be quick. The exact times are those of the tests of the state.
#[tokio::test]
async fn timers_end_connections_that_say_nothing() {
    let short = Duration::from_millis(200);
    let nobody = || Some(ToClient::Refused(String::new()));

    let room = Room::with(|config| config.limits.first_packet = short).await;
    room.connects().await.ends_with(nobody()).await;
    room.closes().await;

    let room = Room::with(|config| config.limits.partial_packet = short).await;
    let mut half = room.logs_in("half").await;
    half.tcp.write_all(&[4, 0]).await.unwrap();
    half.ends_with(Some(ToClient::Refused("half".into()))).await;
    room.closes().await;

    // Joined in time or too late: the answer is the same.
    let room = Room::with(|config| config.limits.unjoined = short).await;
    let (mut alice, mut bob) = (room.logs_in("alice").await, room.logs_in("bob").await);
    let id = granted(&mut alice, &mut bob).await;
    room.joins(id).await.ends_with(nobody()).await;
    assert_eq!((alice.fence().await, bob.fence().await), (vec![], vec![]));
    room.closes().await;

    let room = Room::with(|config| config.limits.inactivity = short).await;
    let mut alice = room.logs_in("alice").await;
    alice.ends_with(Some(ToClient::Refused("alice".into()))).await;
    room.closes().await;
}

#[tokio::test]
async fn a_stop_closes_everything_without_an_error() {
    let room = Room::open().await;
    let (mut alice, mut bob) = (room.logs_in("alice").await, room.logs_in("bob").await);
    let (mut one, mut two) = piped(&room, &mut alice, &mut bob).await;
    alice.shouts("last").await;
    bob.hears_public("alice", "last").await;
    room.stop.cancel();
    alice.hears_public("alice", "last").await;
    for peer in [&mut alice, &mut bob, &mut one, &mut two] {
        peer.ends_with(None).await;
    }
    soon(room.running.over()).await;
    room.closes().await;
}

#[tokio::test]
async fn with_a_certificate_the_same_is_said_through_tls() {
    use heliostat::client::Trust;
    use heliostat::net::development;
    use heliostat::net::tls::{Certificate, Tls};
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let made = development::development(dir.path(), clock.now().wall_ms).unwrap();
    let tls = Tls::presenting(Certificate::load(&made.files).unwrap()).unwrap();
    let room = Room::with(|config| config.tls = Some(tls)).await;
    let connector = tokio_rustls::TlsConnector::from(Trust::CaFile(made.ca).client_config().unwrap());
    let tcp = TcpStream::connect(room.address()).await.unwrap();
    let mut tls = soon(connector.connect("localhost".try_into().unwrap(), tcp)).await.unwrap();
    let stream = hex("00 00000005 616c696365 04 00000005 616c696365 00000001 61 ff");
    tls.write_all(&stream).await.unwrap();
    let mut heard = Vec::new();
    soon(tls.read_to_end(&mut heard)).await.unwrap();
    let expected = "01 00000005 616c696365 04 00000005 616c696365 00000001 61 02 00000005 616c696365";
    assert_eq!(heard, hex(expected));
    room.closes().await;
}

/// The figures of `docs/chatos.md`: `cargo test --release --test chatos -- --ignored --nocapture thousand`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "half a minute of load, to be run alone"]
async fn a_thousand_clients_hear_a_hundred_messages_a_second_in_the_same_order() {
    const CLIENTS: usize = 1_000;
    const PER_SECOND: u32 = 100;
    const MESSAGES: u32 = 30 * PER_SECOND;
    let room = Room::open().await;
    let clock = Clock::system();
    let mut listeners = Vec::new();
    for n in 0..CLIENTS - 1 {
        let mut client = room.logs_in(&format!("client{n}")).await;
        listeners.push(tokio::spawn(async move {
            let (mut order, mut late) = (Sha256::new(), Vec::new());
            for _ in 0..MESSAGES {
                let ToClient::Public { text, .. } = client.hears().await else { panic!("not a public message") };
                order.update(&text.0);
                let said: u64 = text.0.parse().unwrap();
                late.push(u64::try_from(clock.now().monotonic.as_micros()).unwrap() - said);
            }
            (order.finalize(), late)
        }));
    }
    let mut speaker = room.logs_in("speaker").await;
    let mut every = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
    let begun = clock.now().monotonic;
    for _ in 0..MESSAGES {
        every.tick().await;
        speaker.shouts(&clock.now().monotonic.as_micros().to_string()).await;
    }
    let mut heard = Vec::new();
    for listener in listeners {
        heard.push(listener.await.unwrap());
    }
    let took = clock.now().monotonic - begun;
    assert!(heard.iter().all(|(order, _)| *order == heard[0].0), "somebody heard another order");
    let mut late: Vec<u64> = heard.into_iter().flat_map(|(_, late)| late).collect();
    late.sort_unstable();
    let at = |share: usize| late[(late.len() - 1) * share / 1_000];
    println!(
        "{} receipts in {:.1} s; from said to heard, in ms: median {:.1}, p99 {:.1}, p99.9 {:.1}, most {:.1}",
        late.len(),
        took.as_secs_f64(),
        at(500) as f64 / 1e3,
        at(990) as f64 / 1e3,
        at(999) as f64 / 1e3,
        at(1_000) as f64 / 1e3
    );
    room.closes().await;
}
