//! The hub on real sockets (spec 10): the same conversation on every carrier, and what nobody can do to the others.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use heliostat::chat::toxgroup::serve::thin::{Op, Password, What};
use heliostat::chat::toxgroup::serve::{Addresses, SUBPROTOCOL};
use heliostat::chat::toxgroup::state::{Command, Credential, Event, Limits, Pace, Rules};
use heliostat::chat::toxgroup::wire::{ClientId, Door as Address, Token};
use heliostat::chat::toxgroup::{Config, Doors, Running, start_on};
use heliostat::client::raw::Duplex;
use heliostat::net::development;
use heliostat::net::listen::Door;
use heliostat::net::tls::{Certificate, Tls};
use heliostat::time::Clock;
use heliostat::tools::tox::peer::{Carrier, Peer};
use heliostat::tools::tox::thin::Thin;
use heliostat::upstream::framer::Framing;
use heliostat::wire::toxgroup::frame;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::sync::CancellationToken;

use super::common::{Family, Server, Setup, soon};

const ANY: &str = "127.0.0.1:0";

/// A hub and its directory.
pub struct Hub {
    dir: TempDir,
    pub at: Addresses,
    running: Running,
    stop: CancellationToken,
}

/// Limits that are none for what a test does in a second.
fn at_ease() -> Limits {
    let pace = Pace { every: Duration::from_micros(10), burst: 100_000 };
    let bytes = Pace { every: Duration::from_nanos(10), burst: 100_000_000 };
    let (texts, packets, joins, joins_per_address, welcomes) = (pace, pace, pace, pace, pace);
    Limits { texts, packets, bytes, joins, joins_per_address, welcomes, ..Limits::default() }
}

async fn hub_in(dir: TempDir, udp: SocketAddr, limits: Limits) -> Hub {
    hub_behind(dir, udp, limits, Door::default()).await
}

/// A hub whose WebSockets are encrypted, and the directory with the authority that says so.
pub async fn encrypted_hub() -> (Hub, TempDir) {
    let data = tempfile::tempdir().unwrap();
    let door = encrypted(data.path());
    (hub_behind(tempfile::tempdir().unwrap(), ANY.parse().unwrap(), Limits::default(), door).await, data)
}

/// A door with a certificate of a development authority, which is in this data directory.
pub fn encrypted(data: &Path) -> Door {
    let made = development::development(&data.join("tls"), Clock::system().now().wall_ms).unwrap();
    Door::from(Some(Tls::presenting(Certificate::load(&made.files).unwrap()).unwrap()))
}

async fn hub_behind(dir: TempDir, udp: SocketAddr, limits: Limits, door: Door) -> Hub {
    let scheme = if door.tls.is_some() { "wss" } else { "ws" };
    let listener = || async { (TcpListener::bind(ANY).await.unwrap(), Door::default()) };
    // Between two runs of a hub another test may have its port for a moment.
    let udp = soon(async {
        loop {
            match UdpSocket::bind(udp).await {
                Ok(socket) => return socket,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    })
    .await;
    let (tcp, thin) = (listener().await, listener().await);
    let web = (listener().await.0, door);
    let mut config = Config::new(dir.path().to_owned());
    config.rules.limits = limits;
    config.addresses = vec![
        Address::Udp(udp.local_addr().unwrap()),
        Address::Url(format!("tcp://{}", tcp.0.local_addr().unwrap())),
        // The name that the certificate is for.
        Address::Url(format!("{scheme}://localhost:{}/", web.0.local_addr().unwrap().port())),
    ];
    let stop = CancellationToken::new();
    let doors = Doors { udp, tcp, web, thin };
    let running = start_on(doors, config, Clock::system(), stop.clone()).await.unwrap();
    Hub { dir, at: running.addresses(), running, stop }
}

pub async fn hub() -> Hub {
    hub_in(tempfile::tempdir().unwrap(), ANY.parse().unwrap(), Limits::default()).await
}

impl Hub {
    pub async fn stop(self) -> TempDir {
        self.stop.cancel();
        soon(self.running.wait()).await;
        self.dir
    }

    pub async fn thin(&self, user: &str) -> Thin {
        thin_on(Box::new(TcpStream::connect(self.at.thin).await.unwrap()), user).await
    }

    async fn udp(&self, name: &str, token: &Token, limits: Limits) -> Member {
        Member::enters(name, token, limits, self.at.udp, Carrier::udp(ANY.parse().unwrap()).await.unwrap()).await
    }

    async fn tcp(&self, name: &str, token: &Token, limits: Limits) -> Member {
        let stream = TcpStream::connect(self.at.tcp).await.unwrap();
        Member::enters(name, token, limits, self.at.udp, Carrier::framed(stream)).await
    }

    async fn web(&self, name: &str, token: &Token) -> Member {
        let (socket, _) = soon(upgrade(self.at.web, Some(SUBPROTOCOL))).await.unwrap();
        Member::enters(name, token, Limits::default(), self.at.udp, Carrier::web(socket)).await
    }
}

async fn upgrade(
    at: SocketAddr,
    subprotocol: Option<&str>,
) -> tungstenite::Result<(tokio_tungstenite::WebSocketStream<TcpStream>, tungstenite::handshake::client::Response)> {
    let mut request = format!("ws://{at}/").into_client_request().unwrap();
    if let Some(subprotocol) = subprotocol {
        request.headers_mut().insert("Sec-WebSocket-Protocol", subprotocol.parse().unwrap());
    }
    tokio_tungstenite::client_async(request, TcpStream::connect(at).await.unwrap()).await
}

async fn thin_on(stream: Box<dyn Duplex>, user: &str) -> Thin {
    let mut thin = Thin::new(stream);
    let welcome =
        ask(&mut thin, Op::Hello { user: user.into(), secret: Password(format!("the secret of {user}")) }).await;
    assert!(matches!(welcome, What::Welcome { .. }), "{welcome:?}");
    thin
}

pub async fn ask(thin: &mut Thin, op: Op) -> What {
    soon(thin.ask(op)).await.unwrap()
}

/// A new group, and an invitation to it.
pub async fn group(thin: &mut Thin, classic: bool, uses: u32) -> (String, ClientId, Token) {
    let created =
        ask(thin, Op::Create { name: "lobby".into(), classic, topic_lock: false, open: false, nick: "thin".into() })
            .await;
    let What::Entered { group, member } = created else { panic!("{created:?}") };
    let invited = ask(thin, Op::Invite { group: group.clone(), uses, for_s: 60 }).await;
    let What::Invited { token, .. } = invited else { panic!("{invited:?}") };
    (group, member.parse().unwrap(), token.parse().unwrap())
}

pub async fn hears(thin: &mut Thin, text: &str) -> ClientId {
    soon(async {
        loop {
            if let What::Message { said, .. } = thin.next().await.unwrap()
                && said.text == text
            {
                return said.member.parse().unwrap();
            }
        }
    })
    .await
}

/// A peer in a task of its own.
struct Member {
    id: ClientId,
    commands: mpsc::Sender<Command>,
    events: mpsc::UnboundedReceiver<Event>,
    task: tokio::task::JoinHandle<()>,
    /// Cancelled, it neither reads nor hangs up.
    frozen: CancellationToken,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Member {
    async fn enters(name: &str, token: &Token, limits: Limits, hub: SocketAddr, carrier: Carrier) -> Self {
        let mut peer =
            Peer::newcomer(token.group, name, Rules { limits, ..Rules::default() }, carrier, Clock::system());
        let credential = Some(Credential { id: token.id, secret: *token.secret.expose() });
        let at = peer.way(hub);
        peer.command(Command::Enter { hub: token.hub, at, credential }).unwrap();
        let id = peer.group().me().id();
        let (commands, mut asked) = mpsc::channel(16);
        let (tell, events) = mpsc::unbounded_channel();
        let frozen = CancellationToken::new();
        let freeze = frozen.clone();
        let task = tokio::spawn(async move {
            loop {
                tokio::select! {
                    event = peer.next() => match event {
                        Some(event) => drop(tell.send(event)),
                        None => return,
                    },
                    () = freeze.cancelled() => return std::future::pending().await,
                    Some(command) = asked.recv() => peer.command(command).unwrap(),
                }
            }
        });
        let mut member = Self { id, commands, events, task, frozen };
        member
            .until(|event| {
                assert!(!matches!(event, Event::NotEntered(_)), "{event:?}");
                *event == Event::Entered
            })
            .await;
        member
    }

    async fn until(&mut self, fits: impl Fn(&Event) -> bool) -> Event {
        soon(async {
            loop {
                let event = self.events.recv().await.expect("the peer is there");
                if fits(&event) {
                    return event;
                }
            }
        })
        .await
    }

    async fn says(&self, text: &str) {
        self.commands.send(Command::Say { by: self.id, text: text.into(), action: false }).await.unwrap();
    }

    async fn hears(&mut self, text: &str) -> ClientId {
        let event = self.until(|event| matches!(event, Event::Said { text: said, .. } if said == text)).await;
        let Event::Said { by, .. } = event else { unreachable!() };
        by
    }
}

#[tokio::test]
async fn every_carrier_and_a_thin_user_see_the_same_conversation() {
    for classic in [false, true] {
        let hub = hub().await;
        let mut thin = hub.thin("alice").await;
        let (group, alice, token) = group(&mut thin, classic, 3).await;
        assert_eq!(token.doors.len(), 3);
        let mut udp = hub.udp("udp", &token, Limits::default()).await;
        let mut tcp = hub.tcp("tcp", &token, Limits::default()).await;
        let mut web = hub.web("web", &token).await;
        let ids = [alice, udp.id, tcp.id, web.id];
        ask(&mut thin, Op::Say { group: group.clone(), text: "from thin".into(), action: false }).await;
        udp.says("from udp").await;
        tcp.says("from tcp").await;
        web.says("from web").await;
        // Each in its own order: nothing orders what different people say at the same time.
        let texts = ["from thin", "from udp", "from tcp", "from web"];
        let checks = |left: &mut Vec<&str>, by: ClientId, text: &str| {
            let at = left.iter().position(|it| *it == text).unwrap_or_else(|| panic!("{text} again"));
            left.remove(at);
            assert_eq!(by, ids[texts.iter().position(|it| *it == text).unwrap()]);
        };
        let mut left = texts.to_vec();
        while !left.is_empty() {
            if let What::Message { said, .. } = soon(thin.next()).await.unwrap() {
                checks(&mut left, said.member.parse().unwrap(), &said.text);
            }
        }
        for member in [&mut udp, &mut tcp, &mut web] {
            let mut left = texts.to_vec();
            while !left.is_empty() {
                let event = member.until(|event| matches!(event, Event::Said { .. })).await;
                let Event::Said { by, text, .. } = event else { unreachable!() };
                checks(&mut left, by, &text);
            }
        }
        let members = ask(&mut thin, Op::Members { group: group.clone(), after: None }).await;
        let What::Members { members, .. } = members else { panic!("{members:?}") };
        assert_eq!(members.len(), 5, "the hub, too");
        let history = ask(&mut thin, Op::History { group: group.clone(), skip: 0 }).await;
        let What::History { said, .. } = history else { panic!("{history:?}") };
        assert_eq!(said.len(), 4);

        // Who made the group keeps order; a user does not.
        ask(&mut thin, Op::Topic { group: group.clone(), text: "carriers".into() }).await;
        tcp.until(|event| *event == Event::Topic("carriers".into())).await;
        let verdict = heliostat::chat::toxgroup::wire::record::Verdict::Ban;
        let target = web.id.to_string();
        let ban = Op::Sanction { group, member: target.clone(), verdict, for_s: None, reason: "test".into() };
        assert_eq!(ask(&mut thin, ban).await, What::Ok);
        soon(async {
            loop {
                if let What::Left { member, why, .. } = thin.next().await.unwrap()
                    && member == target
                {
                    return assert_eq!(why, "banned");
                }
            }
        })
        .await;
        let banned = web.id;
        udp.until(|event| matches!(event, Event::Left(id, _) if *id == banned)).await;
        hub.stop().await;
    }
}

#[tokio::test]
async fn who_claims_a_key_without_its_secret_gets_nothing() {
    let hub = hub().await;
    let mut thin = hub.thin("alice").await;
    let (group, _, token) = group(&mut thin, false, 2).await;
    let mut real = hub.tcp("real", &token, Limits::default()).await;
    let mut thief = TcpStream::connect(hub.at.tcp).await.unwrap();
    let claimed = [&[0x30][..], &token.hub.0, &real.id.0, &[7; 200]].concat();
    for _ in 0..10 {
        thief.write_all(&frame(&claimed).unwrap()).await.unwrap();
    }
    ask(&mut thin, Op::Say { group, text: "a secret".into(), action: false }).await;
    real.hears("a secret").await;
    for _ in 0..11 {
        // The last of them may find the connection closed.
        let _closed = thief.write_all(&frame(&claimed).unwrap()).await;
    }
    let mut got = Vec::new();
    let _reset = soon(thief.read_to_end(&mut got)).await;
    assert!(got.is_empty(), "not one byte, and after twenty packets the end");
    // Whom it claimed to be notices nothing.
    real.says("still here").await;
    hears(&mut thin, "still here").await;
    hub.stop().await;
}

#[tokio::test]
async fn a_member_that_sends_garbage_loses_its_connection() {
    let hub = hub().await;
    let mut thin = hub.thin("alice").await;
    let (_, _, token) = group(&mut thin, false, 1).await;
    // Between the member and the hub, where more can be written in its name.
    let (ours, theirs) = tokio::io::duplex(64 * 1_024);
    let (mut heard, mut says) = TcpStream::connect(hub.at.tcp).await.unwrap().into_split();
    let (mut from_member, mut to_member) = tokio::io::split(theirs);
    let hung_up = tokio::spawn(async move { tokio::io::copy(&mut heard, &mut to_member).await });
    let (inject, mut injected) = mpsc::channel::<Vec<u8>>(1);
    let carries = tokio::spawn(async move {
        let mut buffer = vec![0; 64 * 1_024];
        loop {
            let sent = tokio::select! {
                Ok(len @ 1..) = from_member.read(&mut buffer) => says.write_all(&buffer[..len]).await,
                Some(bytes) = injected.recv() => says.write_all(&bytes).await,
                else => return,
            };
            if sent.is_err() {
                return;
            }
        }
    });
    let member = Member::enters("noisy", &token, Limits::default(), hub.at.udp, Carrier::framed(ours)).await;
    let garbage = frame(&[&[0x30][..], &token.hub.0, &member.id.0, &[7; 200]].concat()).unwrap();
    while inject.send(garbage.to_vec()).await.is_ok() {}
    let _closed_or_reset = soon(hung_up).await.unwrap();
    soon(carries).await.unwrap();
    hub.stop().await;
}

#[tokio::test]
async fn what_is_no_packet_ends_the_connection_and_says_so_where_it_can() {
    let hub = hub().await;
    for bad in [&[0, 3, 1, 2, 3][..], &[4, 1], &[&[0, 107, 0x31][..], &[0; 106]].concat()] {
        let mut tcp = TcpStream::connect(hub.at.tcp).await.unwrap();
        tcp.write_all(&[&[0, 0][..], bad].concat()).await.unwrap();
        assert_eq!(soon(tcp.read(&mut [0; 9])).await.unwrap_or(0), 0, "closed");
    }
    let refused = soon(upgrade(hub.at.web, None)).await;
    assert!(matches!(refused, Err(tungstenite::Error::Http(answer)) if answer.status() == 400));
    use futures_util::{SinkExt as _, StreamExt as _};
    let (mut web, answer) = soon(upgrade(hub.at.web, Some("other, toxgroup.1"))).await.unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], SUBPROTOCOL);
    web.send(Message::text("hello")).await.unwrap();
    let Some(Ok(Message::Close(Some(close)))) = soon(web.next()).await else { panic!("a close frame") };
    assert_eq!(u16::from(close.code), 1_003);
    // Strangers' datagrams are not answered.
    let udp = UdpSocket::bind(ANY).await.unwrap();
    udp.send_to(&[0x30; 200], hub.at.udp).await.unwrap();
    let mut thin = hub.thin("alice").await;
    let bad = ask(&mut thin, Op::Leave { group: "00".into() }).await;
    assert!(matches!(bad, What::Error { .. }));
    assert!(udp.try_recv(&mut [0; 9]).is_err());
    let mut other = Thin::new(Box::new(TcpStream::connect(hub.at.thin).await.unwrap()));
    for (op, what) in [
        (Op::Members { group: "00".into(), after: None }, "say hello first"),
        (Op::Hello { user: "alice".into(), secret: Password("not the secret of alice".into()) }, "somebody else's"),
        (Op::Hello { user: "bob".into(), secret: Password("short".into()) }, "a secret at least 16"),
    ] {
        let answer = ask(&mut other, op).await;
        assert!(matches!(&answer, What::Error { why } if why.contains(what)), "{answer:?}");
    }
    hub.stop().await;
}

#[tokio::test]
async fn who_does_not_read_stalls_nobody() {
    let hub = hub_in(tempfile::tempdir().unwrap(), ANY.parse().unwrap(), at_ease()).await;
    let mut thin = hub.thin("alice").await;
    let (group, _, token) = group(&mut thin, true, 2).await;
    let mut fast = hub.udp("fast", &token, at_ease()).await;
    let slow = hub.tcp("slow", &token, at_ease()).await;
    slow.frozen.cancel();
    let dropped = || {
        let text = heliostat::metrics::render();
        let line = text.lines().find(|it| it.starts_with("heliostat_toxgroup_dropped_total{why=\"slow_reader\"}"));
        line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
    };
    let before = dropped();
    // As many packets as a text may have parts: few questions fill what lies between.
    let long = "x".repeat(880 * 12);
    soon(async {
        let mut n = 0;
        while dropped() == before {
            n += 1;
            let said = Op::Say { group: group.clone(), text: format!("{n} {long}"), action: false };
            let answer = thin.ask(said).await.unwrap();
            assert!(matches!(answer, What::Ok | What::Error { .. }), "{answer:?}");
        }
    })
    .await;
    let said = Op::Say { group: group.clone(), text: "and you?".into(), action: false };
    assert_eq!(ask(&mut thin, said).await, What::Ok);
    fast.hears("and you?").await;
    hub.stop().await;
}

#[tokio::test]
async fn a_thousand_connections_hold() {
    const GROUPS: usize = 50;
    const EACH: usize = 10;
    let hub = hub_in(tempfile::tempdir().unwrap(), ANY.parse().unwrap(), at_ease()).await;
    let mut rooms = join_all((0..GROUPS).map(async |n| {
        let user = format!("user {n}");
        let mut lines = vec![hub.thin(&user).await];
        let (group, _, token) = group(&mut lines[0], true, EACH as u32).await;
        lines.extend(join_all((1..EACH).map(|_| hub.thin(&user))).await);
        let mut members = Vec::new();
        for n in 0..EACH {
            members.push(hub.tcp(&format!("member {n}"), &token, at_ease()).await);
        }
        (group, lines, members)
    }))
    .await;
    for (n, (_, _, members)) in rooms.iter().enumerate() {
        members[n % EACH].says("can you hear me?").await;
    }
    for (n, (_, lines, members)) in rooms.iter_mut().enumerate() {
        let by = members[n % EACH].id;
        for member in members {
            assert_eq!(member.hears("can you hear me?").await, by);
        }
        for line in lines {
            assert_eq!(hears(line, "can you hear me?").await, by);
        }
    }
    drop(rooms);
    hub.stop().await;
}

#[tokio::test]
async fn a_hub_that_restarts_is_the_same_to_everybody() {
    let hub = hub().await;
    let mut thin = hub.thin("alice").await;
    let (group, alice, token) = group(&mut thin, false, 2).await;
    let mut udp = hub.udp("udp", &token, Limits::default()).await;
    ask(&mut thin, Op::Say { group: group.clone(), text: "before".into(), action: false }).await;
    udp.hears("before").await;
    let at = hub.at.udp;
    let dir = hub.stop().await;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = dir.path().join("toxgroup.sqlite").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "it holds secrets");
    }
    let hub = hub_in(dir, at, Limits::default()).await;
    let mut thin = hub.thin("alice").await;
    let history = ask(&mut thin, Op::History { group: group.clone(), skip: 0 }).await;
    assert!(
        matches!(&history, What::History { said, .. } if said.len() == 1 && said[0].text == "before"),
        "{history:?}"
    );
    // The peer is asked where it was, and both count on where they were.
    soon(async {
        loop {
            let state = ask(&mut thin, Op::Members { group: group.clone(), after: None }).await;
            if matches!(state, What::Members { neighbours: 1, .. }) {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    ask(&mut thin, Op::Say { group, text: "after".into(), action: false }).await;
    assert_eq!(udp.hears("after").await, alice);
    udp.says("welcome back").await;
    assert_eq!(hears(&mut thin, "welcome back").await, udp.id);
    // An invitation that was not used up still counts, once.
    let late = hub.tcp("late", &token, Limits::default()).await;
    drop(late);
    hub.stop().await;
}

#[tokio::test]
async fn a_line_is_one_users_and_no_user_takes_all() {
    let hub = hub_in(tempfile::tempdir().unwrap(), ANY.parse().unwrap(), at_ease()).await;
    let mut thin = hub.thin("alice").await;
    let again = Op::Hello { user: "bob".into(), secret: Password("the secret of bob".into()) };
    let answer = ask(&mut thin, again).await;
    assert!(matches!(&answer, What::Error { why } if why.contains("already")), "{answer:?}");
    // Whoever guesses is soon without a line.
    let mut thief = Thin::new(Box::new(TcpStream::connect(hub.at.thin).await.unwrap()));
    let guess = || Op::Hello { user: "alice".into(), secret: Password("not the secret of alice".into()) };
    soon(async { while thief.ask(guess()).await.is_ok() {} }).await;
    // Eight groups, and then one has to end first.
    let mut made = Vec::new();
    for _ in 0..8 {
        made.push(group(&mut thin, true, 9).await);
    }
    let one_more =
        || Op::Create { name: "x".into(), classic: true, topic_lock: true, open: false, nick: "thin".into() };
    assert!(matches!(ask(&mut thin, one_more()).await, What::Error { .. }));
    let (id, _, token) = made.pop().unwrap();
    let mut other = hub.thin("bob").await;
    let entered = ask(&mut other, Op::Join { group: token.text(), nick: "bob".into() }).await;
    assert!(matches!(entered, What::Entered { .. }), "{entered:?}");
    let mut udp = hub.udp("udp", &token, at_ease()).await;
    assert!(matches!(ask(&mut other, Op::End { group: id.clone() }).await, What::Error { .. }), "it is not his");
    assert_eq!(ask(&mut thin, Op::End { group: id.clone() }).await, What::Ok);
    soon(async { while other.next().await.unwrap() != (What::Ended { group: id.clone() }) {} }).await;
    udp.until(|event| *event == Event::Left(token.hub, heliostat::chat::toxgroup::state::Why::Quit)).await;
    let locked = ask(&mut thin, one_more()).await;
    let What::Entered { group: locked, .. } = locked else { panic!("{locked:?}") };
    // A topic is set with the hub's right; a program of 2014 is let in by its key.
    assert_eq!(ask(&mut thin, Op::Topic { group: locked.clone(), text: "mine".into() }).await, What::Ok);
    let member = ClientId([7; 32]).to_string();
    let peer =
        Op::Peer { group: locked.clone(), member: member.clone(), address: Some("127.0.0.1:9".parse().unwrap()) };
    assert_eq!(ask(&mut thin, peer).await, What::Ok);
    let dir = hub.stop().await;
    let hub = hub_in(dir, ANY.parse().unwrap(), at_ease()).await;
    let mut thin = Thin::new(Box::new(TcpStream::connect(hub.at.thin).await.unwrap()));
    let hello = Op::Hello { user: "alice".into(), secret: Password("the secret of alice".into()) };
    let welcome = ask(&mut thin, hello).await;
    assert!(matches!(&welcome, What::Welcome { groups } if groups.len() == 8 && !groups.contains(&id)), "{welcome:?}");
    let members = ask(&mut thin, Op::Members { group: locked, after: None }).await;
    assert!(matches!(&members, What::Members { topic, .. } if topic == "mine"), "{members:?}");
    hub.stop().await;
}

#[tokio::test]
async fn all_members_and_all_texts_are_told_page_by_page() {
    const USERS: usize = 110;
    let hub = hub_in(tempfile::tempdir().unwrap(), ANY.parse().unwrap(), at_ease()).await;
    let mut thin = hub.thin("alice").await;
    let (group, _, token) = group(&mut thin, true, USERS as u32).await;
    join_all((0..USERS).map(async |n| {
        let mut thin = hub.thin(&format!("user {n}")).await;
        let entered = ask(&mut thin, Op::Join { group: token.text(), nick: format!("a long name of user {n}") }).await;
        assert!(matches!(entered, What::Entered { .. }), "{entered:?}");
    }))
    .await;
    let (mut seen, mut pages) = (Vec::new(), 0);
    loop {
        let what = ask(&mut thin, Op::Members { group: group.clone(), after: seen.last().cloned() }).await;
        let What::Members { members, more, .. } = what else { panic!("{what:?}") };
        seen.extend(members.into_iter().map(|it| it.member));
        pages += 1;
        if !more {
            break;
        }
    }
    assert!(pages > 1 && seen.is_sorted() && seen.len() == USERS + 2, "{pages} pages, {}", seen.len());
    for n in 0..30 {
        let text = format!("{n} {}", "x".repeat(800));
        assert_eq!(ask(&mut thin, Op::Say { group: group.clone(), text, action: false }).await, What::Ok);
    }
    let (mut said, mut pages) = (Vec::new(), 0);
    loop {
        let what = ask(&mut thin, Op::History { group: group.clone(), skip: said.len() }).await;
        let What::History { said: mut page, more, .. } = what else { panic!("{what:?}") };
        page.append(&mut said);
        (said, pages) = (page, pages + 1);
        if !more {
            break;
        }
    }
    let numbers: Vec<u32> = said.iter().map(|it| it.text.split(' ').next().unwrap().parse().unwrap()).collect();
    assert!(pages > 1 && numbers == (0..30).collect::<Vec<_>>(), "{pages} pages, {numbers:?}");
    hub.stop().await;
}

#[tokio::test]
async fn a_device_group_speaks_in_a_group_through_the_mediator() {
    let hub = hub().await;
    let to = |upstream| Setup { upstream: Some(upstream), framing: Framing::ToxGroup, ..Setup::default() };
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let thin_side = Server::start(dirs[0].path(), to(hub.at.thin)).await;
    let packet_side = Server::start(dirs[1].path(), to(hub.at.tcp)).await;
    // One device of the group is a thin user of the hub; another group's device is a member with keys of its own.
    let mut device = Family::new(thin_side.url()).joins(1).await;
    let mut thin = thin_on(Box::new(device.proxy_stream().unwrap()), "device group").await;
    let (group, by, token) = group(&mut thin, false, 3).await;
    let mut udp = hub.udp("udp", &token, Limits::default()).await;
    let mut other = hub.udp("other", &token, Limits::default()).await;
    let mut device = Family::new(packet_side.url()).joins(1).await;
    let carrier = Carrier::framed(device.proxy_stream().unwrap());
    let mut member = Member::enters("device", &token, Limits::default(), hub.at.udp, carrier).await;

    ask(&mut thin, Op::Say { group, text: "through the mediator".into(), action: false }).await;
    for peer in [&mut udp, &mut other, &mut member] {
        assert_eq!(peer.hears("through the mediator").await, by);
    }
    member.says("and I").await;
    for peer in [&mut udp, &mut other] {
        assert_eq!(peer.hears("and I").await, member.id);
    }
    udp.says("we hear you").await;
    assert_eq!(hears(&mut thin, "we hear you").await, udp.id);
    assert_eq!(member.hears("we hear you").await, udp.id);
    hub.stop().await;
}
