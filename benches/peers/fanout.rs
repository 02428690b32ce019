//! One publishes, acknowledged; the others of its group receive it, and acknowledge. On Heliostat that is a reflect, on an MQTT
//! broker a message at QoS 1 to sessions that stay.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use hdrhistogram::Histogram;
use heliostat::client::{DeviceConfig, GroupKey};
use heliostat::time::Clock;
use heliostat::wire::d2m::{DeviceId, Envelope, FromDevice, Reflect, ReflectFlags, ReflectId, ServerGroup, ToDevice};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use super::Plan;
use super::mqtt::{self, Packet};
use super::process::{Program, free};
use super::report::{Aim, Comparison, Target};

const GROUPS: u64 = 64;
const MEMBERS: u64 = 3;
const SIZE: usize = 1_024;
/// Numbers in flight of one group at most: a publisher has one, but the others may lag behind.
const IN_FLIGHT: usize = 4_096;

pub type Socket = WebSocketStream<TcpStream>;

pub async fn compare(plan: Plan) -> Comparison {
    let conditions = format!(
        "{GROUPS} groups of {MEMBERS}, plain WebSocket, {SIZE} bytes; one of each group publishes, the next when the last is \
         acknowledged; heliostat syncs before it acknowledges, heliostat (memory) and mosquitto do not"
    );
    let mut comparison = Comparison::new("fanout", conditions);
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir_in("target").unwrap()).collect();
    let durable = Program::heliostat(dirs[0].path(), "");
    let memory = Program::heliostat(dirs[1].path(), "durability = 'memory'\n");
    let mosquitto = mosquitto(dirs[2].path()).await;
    if mosquitto.is_none() {
        comparison.missing("mosquitto is not here (Debian's package of that name)");
    }
    comparison.missing("mosquitto 2.1 with its SQLite plugin and sync=full: no package of Debian");
    for round in 0..plan.rounds {
        for (name, program, kind) in [
            ("heliostat", Some(&durable), Kind::Heliostat),
            ("heliostat (memory)", Some(&memory), Kind::Heliostat),
            ("mosquitto", mosquitto.as_ref(), Kind::Mqtt),
        ] {
            let Some(program) = program else { continue };
            let found = run(kind, program, plan.lasts, round).await;
            comparison.note(name, "publishes", "/s", found.rate);
            comparison.note(name, "server CPU per publish", "us", found.cpu_us);
            comparison.note(name, "to acknowledgement, p50", "ms", found.ack_ms[0]);
            comparison.note(name, "to acknowledgement, p99", "ms", found.ack_ms[1]);
            comparison.note(name, "to last delivery, p99", "ms", found.last_ms);
        }
    }
    for (figure, aim) in [
        ("publishes", Aim::AtLeast(1.0)),
        ("server CPU per publish", Aim::AtMost(1.0)),
        ("to acknowledgement, p99", Aim::AtMost(1.0)),
    ] {
        comparison.aim(Target { figure, of: "heliostat", to: "mosquitto", aim });
    }
    comparison
}

async fn mosquitto(dir: &std::path::Path) -> Option<Program> {
    let address = free();
    let config = dir.join("mosquitto.conf");
    // Version 2.0 does not start with WebSocket alone.
    let text = format!(
        "listener {} 127.0.0.1\nprotocol websockets\nlistener {} 127.0.0.1\nallow_anonymous true\npersistence true\n\
         persistence_location {}/\nmax_queued_messages 0\nmax_inflight_messages 0\nset_tcp_nodelay true\nuser root\n",
        address.port(),
        free().port(),
        dir.display(),
    );
    std::fs::write(&config, text).unwrap();
    Program::that_is_told(Command::new("mosquitto").arg("-c").arg(config), address).await
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Heliostat,
    Mqtt,
}

struct Found {
    rate: f64,
    cpu_us: f64,
    ack_ms: [f64; 2],
    last_ms: f64,
}

/// What all connections of a run share.
struct Run {
    clock: Clock,
    begins: Duration,
    ends: Duration,
    acked: AtomicU64,
    to_ack: Mutex<Histogram<u64>>,
    to_last: Mutex<Histogram<u64>>,
}

/// When each number of a group was sent, and how many have not got it yet.
struct Sent(Mutex<Vec<(Duration, u64)>>);

impl Sent {
    fn at(&self, n: u32, now: Duration) {
        self.0.lock().unwrap()[n as usize % IN_FLIGHT] = (now, MEMBERS - 1);
    }

    /// When it was sent, if that was the last one who had to get it.
    fn got(&self, n: u32) -> Option<Duration> {
        let mut sent = self.0.lock().unwrap();
        let (at, left) = &mut sent[n as usize % IN_FLIGHT];
        *left = left.saturating_sub(1);
        (*left == 0).then_some(*at)
    }
}

async fn run(kind: Kind, program: &Program, lasts: Duration, round: u32) -> Found {
    let mut open = JoinSet::new();
    for group in 0..GROUPS {
        let (address, key) = (program.address, GroupKey::generate());
        open.spawn(async move {
            let mut members = Vec::new();
            for member in 0..MEMBERS {
                members.push(match kind {
                    Kind::Heliostat => Line::device(address, &key, member).await,
                    Kind::Mqtt => Line::session(address, &format!("r{round}g{group}"), member).await,
                });
            }
            members
        });
    }
    let groups = open.join_all().await;
    let clock = Clock::system();
    let histogram = || Mutex::new(Histogram::new(3).unwrap());
    let run = Arc::new(Run {
        clock,
        begins: lasts / 5,
        ends: lasts / 5 + lasts,
        acked: AtomicU64::new(0),
        to_ack: histogram(),
        to_last: histogram(),
    });
    let mut lives = JoinSet::new();
    for members in groups {
        let sent = Arc::new(Sent(Mutex::new(vec![(Duration::ZERO, 0); IN_FLIGHT])));
        for (member, line) in members.into_iter().enumerate() {
            lives.spawn(live(line, Arc::clone(&run), Arc::clone(&sent), member == 0));
        }
    }
    clock.sleep_until(Some(run.begins)).await;
    let (cpu, acked) = (program.cpu(), run.acked.load(Ordering::Relaxed));
    clock.sleep_until(Some(run.ends)).await;
    let (cpu, acked) = (program.cpu().saturating_sub(cpu), run.acked.load(Ordering::Relaxed) - acked);
    lives.join_all().await;
    #[expect(clippy::cast_precision_loss, reason = "figures of a few digits")]
    let quantile = |histogram: &Mutex<Histogram<u64>>, at| histogram.lock().unwrap().value_at_quantile(at) as f64 / 1e3;
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let acked = acked as f64;
    Found {
        rate: acked / lasts.as_secs_f64(),
        cpu_us: cpu.as_secs_f64() * 1e6 / acked,
        ack_ms: [quantile(&run.to_ack, 0.5), quantile(&run.to_ack, 0.99)],
        last_ms: quantile(&run.to_last, 0.99),
    }
}

/// One connection, until the run ends.
async fn live(mut line: Line, run: Arc<Run>, sent: Arc<Sent>, publishes: bool) {
    let (mut number, mut sent_at) = (0_u32, Duration::ZERO);
    let mut heard = Vec::new();
    let ends = run.clock.instant_at(run.ends);
    if publishes {
        sent_at = run.clock.now().monotonic;
        sent.at(number, sent_at);
        line.publish(number).await;
        line.socket.flush().await.unwrap();
    }
    while let Ok(Some(message)) = tokio::time::timeout_at(ends, line.socket.next()).await {
        let mut next = Some(message.unwrap());
        // What is there already is answered with one write.
        while let Some(message) = next {
            line.hear(message, &mut heard).await;
            next = line.socket.next().now_or_never().flatten().map(Result::unwrap);
        }
        let now = run.clock.now().monotonic;
        for heard in heard.drain(..) {
            match heard {
                Heard::Acked => {
                    run.acked.fetch_add(1, Ordering::Relaxed);
                    record(&run, &run.to_ack, now, sent_at);
                    number = number.wrapping_add(1);
                    sent_at = now;
                    sent.at(number, now);
                    line.publish(number).await;
                }
                Heard::Delivered(n) => {
                    if let Some(at) = sent.got(n) {
                        record(&run, &run.to_last, now, at);
                    }
                }
            }
        }
        line.socket.flush().await.unwrap();
    }
}

fn record(run: &Run, histogram: &Mutex<Histogram<u64>>, now: Duration, sent_at: Duration) {
    if sent_at >= run.begins {
        let us = u64::try_from((now - sent_at).as_micros()).unwrap();
        histogram.lock().unwrap().record(us).unwrap();
    }
}

enum Heard {
    Acked,
    Delivered(u32),
}

/// A connection, and what one says on it.
struct Line {
    socket: Socket,
    speaks: Speaks,
}

enum Speaks {
    D2m { reflect: Vec<u8>, number_at: usize },
    Mqtt { topic: String, came: BytesMut },
}

impl Line {
    async fn device(address: SocketAddr, key: &GroupKey, member: u64) -> Self {
        let mut socket = device(address, key, member + 1).await;
        while !matches!(ToDevice::decode(&binary(&mut socket).await).unwrap(), ToDevice::ReflectionQueueDry) {}
        let reflect = Reflect {
            flags: ReflectFlags::default(),
            reflect_id: ReflectId(0),
            envelope: Envelope::copy_from(&[1; SIZE]),
        };
        let reflect = FromDevice::Reflect(reflect).encode().to_vec();
        let number_at = reflect.len() - SIZE;
        Self { socket, speaks: Speaks::D2m { reflect, number_at } }
    }

    async fn session(address: SocketAddr, topic: &str, member: u64) -> Self {
        let mut socket = open(address, &format!("ws://{address}/mqtt"), Some("mqtt")).await;
        let mut came = BytesMut::new();
        socket.send(Message::Binary(mqtt::connect(&format!("{topic}m{member}")).into())).await.unwrap();
        assert_eq!(packet(&mut socket, &mut came).await, Packet::ConnAck);
        if member > 0 {
            socket.send(Message::Binary(mqtt::subscribe(topic).into())).await.unwrap();
            assert_eq!(packet(&mut socket, &mut came).await, Packet::SubAck);
        }
        Self { socket, speaks: Speaks::Mqtt { topic: topic.to_owned(), came } }
    }

    /// Not flushed. The number stands at the beginning of what is published.
    async fn publish(&mut self, number: u32) {
        let bytes: Bytes = match &mut self.speaks {
            Speaks::D2m { reflect, number_at } => {
                reflect[*number_at..*number_at + 4].copy_from_slice(&number.to_le_bytes());
                Bytes::copy_from_slice(reflect)
            }
            Speaks::Mqtt { topic, .. } => {
                let mut payload = [1; SIZE];
                payload[..4].copy_from_slice(&number.to_le_bytes());
                // Zero is no packet id.
                let id = u16::try_from(number % 0xffff).unwrap() + 1;
                mqtt::publish(topic, id, &payload).into()
            }
        };
        self.socket.feed(Message::Binary(bytes)).await.unwrap();
    }

    /// Acknowledges what was delivered; not flushed.
    async fn hear(&mut self, message: Message, heard: &mut Vec<Heard>) {
        let Message::Binary(bytes) = message else { return };
        let mut answers = Vec::new();
        match &mut self.speaks {
            Speaks::D2m { .. } => match ToDevice::decode(&bytes).unwrap() {
                ToDevice::ReflectAck(_) => heard.push(Heard::Acked),
                ToDevice::Reflected(message) => {
                    heard.push(Heard::Delivered(number(message.envelope())));
                    answers.push(FromDevice::ReflectedAck(message.id()).encode());
                }
                // Somebody else became the leader of another run.
                _ => {}
            },
            Speaks::Mqtt { came, .. } => {
                came.extend_from_slice(&bytes);
                while let Some(packet) = mqtt::next(came) {
                    match packet {
                        Packet::PubAck(_) => heard.push(Heard::Acked),
                        Packet::Publish { id, payload } => {
                            heard.push(Heard::Delivered(number(&payload)));
                            answers.push(mqtt::puback(id).into());
                        }
                        Packet::ConnAck | Packet::SubAck => {}
                    }
                }
            }
        }
        for answer in answers {
            self.socket.feed(Message::Binary(answer)).await.unwrap();
        }
    }
}

fn number(payload: &[u8]) -> u32 {
    u32::from_le_bytes(payload[..4].try_into().unwrap())
}

/// A WebSocket without TLS.
pub async fn open(address: SocketAddr, url: &str, protocol: Option<&'static str>) -> Socket {
    let tcp = TcpStream::connect(address).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let mut request = url.into_client_request().unwrap();
    if let Some(protocol) = protocol {
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse().unwrap());
    }
    tokio_tungstenite::client_async(request, tcp).await.unwrap().0
}

/// A device that has said who it is.
pub async fn device(address: SocketAddr, key: &GroupKey, device: u64) -> Socket {
    let config = DeviceConfig::new(key.clone(), ServerGroup::new("a0").unwrap(), DeviceId(device));
    let mut socket = open(address, &format!("ws://{address}/{}", config.url_info().to_segment()), None).await;
    let ToDevice::ServerHello(hello) = ToDevice::decode(&binary(&mut socket).await).unwrap() else { panic!() };
    let hello = FromDevice::ClientHello(Box::new(config.client_hello(&hello).unwrap()));
    socket.send(Message::Binary(hello.encode())).await.unwrap();
    socket
}

/// The next binary message.
pub async fn binary(socket: &mut Socket) -> Bytes {
    loop {
        if let Message::Binary(bytes) = socket.next().await.unwrap().unwrap() {
            return bytes;
        }
    }
}

async fn packet(socket: &mut Socket, came: &mut BytesMut) -> Packet {
    loop {
        if let Some(packet) = mqtt::next(came) {
            return packet;
        }
        came.extend_from_slice(&binary(socket).await);
    }
}
