//! A model device: does everything a device may do, at moments that are good for nobody, and tells the model.
//!
//! It speaks WebSocket by itself, so that it decides when to read. Its choices come from its own dice.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use futures_util::{SinkExt as _, StreamExt as _};
use heliostat::client::{DeviceConfig, GroupKey};
use heliostat::wire::d2m::{
    BeginTransaction, DeviceId, Envelope, FromDevice, Reflect, ReflectFlags, ReflectId, ReflectedId, ServerGroup,
    SlotExpiration, SlotState, SlotsExhausted, ToDevice,
};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::{WebSocketStream, client_async};
use turmoil::net::TcpStream;

use super::model::{ConnNo, Question, Reasons, Rule, Time, TxNo};
use super::world::{SERVER, Stage, World};

/// Nothing heard for this long, pings included, and the device gives a connection up.
const PATIENCE: Duration = Duration::from_secs(5);
const CONNECT: Duration = Duration::from_secs(3);
/// First bytes of every envelope; then the message's number, then as much filling as it takes.
const MARK: [u8; 4] = *b"sim:";

type Socket = WebSocketStream<TcpStream>;

/// What a device knows of its own slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Belief {
    Nothing,
    /// It introduced itself as new and never heard what came of it.
    Unsure(Time),
    Slot,
}

pub struct Member {
    pub world: Rc<World>,
    pub group: usize,
    pub device: u64,
    pub key: GroupKey,
    pub rng: Rng,
    pub volatile: bool,
    pub makes_room: bool,
    pub chats: bool,
    /// Its messages are long.
    pub long: bool,
    belief: Belief,
    /// What was heard and is not acknowledged yet.
    unacked: Vec<u32>,
    /// What was acknowledged and may be once more.
    acked: Vec<u32>,
    next_reflect: u32,
}

/// One connection.
struct Line {
    socket: Socket,
    conn: ConnNo,
    existing: bool,
    /// Nothing was said before that could have made a slot.
    fresh: bool,
    reasons: Reasons,
    lock: Lock,
    dry: bool,
    proxy_said: u32,
    proxy_heard: u32,
    waiting: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lock {
    Free,
    Asked,
    Held(TxNo),
    Committing,
}

/// How a session is left.
enum Left {
    /// The mediator, or the network, ended it.
    Over,
    /// The device vanishes.
    Vanish,
    Close,
    /// The device connects once more while this connection still exists.
    Replace,
}

impl Member {
    pub fn new(world: Rc<World>, group: usize, device: u64, key: GroupKey, rng: Rng) -> Self {
        Self {
            world,
            group,
            device,
            key,
            rng,
            volatile: false,
            makes_room: false,
            chats: false,
            long: false,
            belief: Belief::Nothing,
            unacked: Vec::new(),
            acked: Vec::new(),
            next_reflect: 0,
        }
    }

    pub async fn live(mut self) {
        let late = self.rng.u64(0..1_500);
        sleep(Duration::from_millis(late)).await;
        while self.world.stage() == Stage::Wild {
            if let Some(line) = self.connect().await {
                self.session(line).await;
            }
            let pause = if self.rng.bool() { self.rng.u64(0..100) } else { self.rng.u64(0..3_000) };
            sleep(Duration::from_millis(pause)).await;
        }
        self.rest().await;
    }

    fn tell(&self, conn: Option<ConnNo>, what: impl std::fmt::Display) {
        let conn = conn.map_or(String::new(), |conn| format!("#{conn}"));
        self.world.tell(format_args!("g{} d{}{conn}  {what}", self.group, self.device));
    }

    /// Connects and is admitted, or is not.
    async fn connect(&mut self) -> Option<Line> {
        let opened = timeout(CONNECT, async {
            let tcp = TcpStream::connect((SERVER, 1)).await.ok()?;
            let segment = self.config().url_info().to_segment();
            let (mut socket, _) = client_async(format!("ws://{SERVER}/{segment}"), tcp).await.ok()?;
            let hello = heard(socket.next().await?.ok()?)?;
            Some((socket, hello))
        });
        let Ok(Some((mut socket, ToDevice::ServerHello(hello)))) = opened.await else {
            self.tell(None, "cannot connect");
            return None;
        };
        let existing = match self.belief {
            Belief::Nothing => false,
            Belief::Slot => true,
            Belief::Unsure(_) => self.rng.bool(),
        };
        let fresh = self.belief == Belief::Nothing;
        let config = if existing { self.config().existing() } else { self.config() };
        let now = self.world.now();
        let conn = self.world.model(self.group).hello(now, self.device, self.makes_room && !existing);
        if fresh {
            self.belief = Belief::Unsure(now);
        }
        self.tell(Some(conn), if existing { "says hello, as existing" } else { "says hello, as new" });
        let hello = FromDevice::ClientHello(Box::new(config.client_hello(&hello).ok()?));
        let answer = timeout(PATIENCE, async {
            socket.send(Frame::Binary(hello.encode())).await.ok()?;
            // The chat server's first bytes may come at once, too.
            loop {
                match socket.next().await?.ok()? {
                    Frame::Ping(_) | Frame::Pong(_) => {}
                    frame => return Some(frame),
                }
            }
        });
        let answer = answer.await.ok().flatten();
        let mut line = Line {
            socket,
            conn,
            existing,
            fresh,
            reasons: Reasons::default(),
            lock: Lock::Free,
            dry: false,
            proxy_said: 0,
            proxy_heard: 0,
            waiting: 0,
        };
        match answer {
            Some(Frame::Close(frame)) => {
                self.closed(&mut line, frame.map(|frame| frame.code.into()));
                None
            }
            Some(frame) => match heard(frame) {
                Some(ToDevice::ServerInfo(info)) => {
                    let state = if existing { SlotState::Existing } else { SlotState::New };
                    if info.slot_state != state {
                        self.fault(Rule::Mistaken, format!("device {}: {:?}", self.device, info.slot_state));
                    }
                    let unsure = match self.belief {
                        Belief::Unsure(since) => Some(since),
                        Belief::Nothing | Belief::Slot => None,
                    };
                    if unsure.is_some() {
                        self.unacked.clear();
                        self.acked.clear();
                    }
                    self.belief = Belief::Slot;
                    let (now, queued) = (self.world.now(), info.reflection_queue_length);
                    let made = !existing;
                    self.world.model(self.group).info(now, conn, made, unsure, queued, self.volatile);
                    self.tell(Some(conn), format_args!("hears server-info, {queued} wait"));
                    Some(line)
                }
                other => {
                    self.fault(Rule::Answers, format!("device {}: {other:?} where server-info was due", self.device));
                    None
                }
            },
            None => {
                self.tell(Some(conn), "never hears what came of it");
                None
            }
        }
    }

    fn config(&self) -> DeviceConfig {
        let mut config = DeviceConfig::new(self.key.clone(), ServerGroup::new("a0").unwrap(), DeviceId(self.device));
        if self.volatile {
            config.slot_expiration = SlotExpiration::Volatile;
        }
        if self.makes_room {
            config.slots_exhausted = SlotsExhausted::DropLeastRecent;
        }
        config
    }

    fn fault(&self, rule: Rule, detail: String) {
        self.world.model(self.group).fault(rule, detail);
    }

    async fn session(&mut self, mut line: Line) {
        let actions = if self.rng.u8(0..3) == 0 { self.rng.u32(40..200) } else { self.rng.u32(1..40) };
        let left = self.act(&mut line, actions).await;
        match left {
            Left::Over => {}
            Left::Vanish => self.tell(Some(line.conn), "vanishes"),
            Left::Close => {
                self.tell(Some(line.conn), "closes");
                let bye = async {
                    line.socket.close(None).await.unwrap_or_default();
                    while let Some(Ok(frame)) = line.socket.next().await {
                        if let Some(payload) = heard(frame) {
                            self.hears(&mut line, payload);
                        }
                    }
                };
                timeout(PATIENCE, bye).await.unwrap_or_default();
            }
            Left::Replace => self.replace(line).await,
        }
    }

    /// Connects again, then listens to what the old connection still hears.
    async fn replace(&mut self, mut old: Line) {
        self.tell(Some(old.conn), "is to be replaced");
        old.reasons.replaced = true;
        let new = self.connect().await;
        let tail = async {
            while let Some(Ok(frame)) = old.socket.next().await {
                match frame {
                    Frame::Close(frame) => return self.closed(&mut old, frame.map(|frame| frame.code.into())),
                    frame => {
                        if let Some(payload) = heard(frame) {
                            self.hears(&mut old, payload);
                        }
                    }
                }
            }
        };
        timeout(Duration::from_millis(500), tail).await.unwrap_or_default();
        drop(old);
        if let Some(mut line) = new {
            let actions = self.rng.u32(1..20);
            let _left = self.act(&mut line, actions).await;
        }
    }

    /// Does things, and listens in between.
    async fn act(&mut self, line: &mut Line, actions: u32) -> Left {
        let mut deaf_until = None;
        let steady = self.rng.bool();
        for _ in 0..actions {
            if self.world.stage() != Stage::Wild {
                return Left::Vanish;
            }
            let pause = match self.rng.u8(0..10) {
                0..5 => 0,
                5..9 => self.rng.u64(1..150),
                _ => self.rng.u64(150..1_500),
            };
            let until = now() + Duration::from_millis(pause);
            if let Some(deaf_until) = deaf_until.filter(|&deaf| deaf > until) {
                sleep_until(until.min(deaf_until)).await;
            } else if !self.listen(line, until).await {
                return Left::Over;
            }
            let sent = match self.rng.u8(0..100) {
                0..26 => {
                    let ephemeral = self.rng.u8(0..4) == 0;
                    let burst = if self.rng.u8(0..4) == 0 { self.rng.u8(2..12) } else { 1 };
                    let mut sent = true;
                    for _ in 0..burst {
                        sent = sent && self.reflect(line, ephemeral).await;
                    }
                    sent
                }
                26..38 => self.transact(line).await,
                38..68 => self.acknowledge(line).await,
                68..76 => {
                    self.asks(line, |member, conn, now| member.world.model(member.group).devices(now, conn));
                    self.say(line, FromDevice::GetDevicesInfo).await
                }
                76..78 => self.drop_somebody(line).await,
                78..86 if self.chats => self.proxy(line).await,
                86..89 => {
                    self.tell(Some(line.conn), "goes deaf");
                    deaf_until = Some(now() + Duration::from_millis(self.rng.u64(500..3_000)));
                    true
                }
                89..91 if !steady => return Left::Vanish,
                91..93 if !steady => return Left::Close,
                93..95 if !steady => return Left::Replace,
                _ => true,
            };
            if !sent {
                return Left::Over;
            }
        }
        if self.rng.bool() { Left::Vanish } else { Left::Close }
    }

    /// Hears what comes until then; says whether the connection still is.
    async fn listen(&mut self, line: &mut Line, until: Instant) -> bool {
        loop {
            let frame = tokio::select! {
                biased;
                frame = line.socket.next() => frame,
                () = sleep_until(until) => return true,
            };
            match frame {
                Some(Ok(Frame::Close(frame))) => {
                    self.closed(line, frame.map(|frame| frame.code.into()));
                    timeout(PATIENCE, async { while let Some(Ok(_)) = line.socket.next().await {} })
                        .await
                        .unwrap_or_default();
                    return false;
                }
                Some(Ok(frame)) => {
                    if let Some(payload) = heard(frame) {
                        self.hears(line, payload);
                    }
                }
                Some(Err(_)) | None => {
                    self.tell(Some(line.conn), "is cut off");
                    return false;
                }
            }
        }
    }

    fn asks(&self, line: &mut Line, ask: impl FnOnce(&Self, ConnNo, Time)) {
        line.waiting += 1;
        ask(self, line.conn, self.world.now());
    }

    async fn say(&mut self, line: &mut Line, payload: FromDevice) -> bool {
        self.tell(Some(line.conn), format_args!("says {}", said(&payload)));
        let sent = timeout(PATIENCE, line.socket.send(Frame::Binary(payload.encode()))).await;
        if !matches!(sent, Ok(Ok(()))) {
            // Why may still lie in the socket.
            return self.listen(line, now() + Duration::from_millis(200)).await && matches!(sent, Ok(Ok(())));
        }
        true
    }

    async fn reflect(&mut self, line: &mut Line, ephemeral: bool) -> bool {
        let tx = match line.lock {
            Lock::Held(tx) => Some(tx),
            // What is said now may come before or after the lock's answer; that would be nobody's to judge.
            Lock::Asked | Lock::Committing => return true,
            Lock::Free => None,
        };
        let reflect_id = self.next_reflect;
        self.next_reflect += 1;
        if !ephemeral {
            line.waiting += 1;
        }
        let now = self.world.now();
        let message = self.world.model(self.group).reflect(now, line.conn, reflect_id, ephemeral, tx);
        let filling =
            if self.long || self.rng.u8(0..20) == 0 { self.rng.usize(1_000..60_000) } else { self.rng.usize(0..60) };
        let mut envelope = MARK.to_vec();
        envelope.extend_from_slice(&u32::try_from(message).unwrap().to_le_bytes());
        envelope.resize(envelope.len() + filling, 7);
        let flags = ReflectFlags { ephemeral };
        let reflect = Reflect { flags, reflect_id: ReflectId(reflect_id), envelope: Envelope::copy_from(&envelope) };
        self.tell(Some(line.conn), format_args!("reflects message {message}"));
        self.say(line, FromDevice::Reflect(reflect)).await
    }

    async fn transact(&mut self, line: &mut Line) -> bool {
        match line.lock {
            Lock::Free => {
                let now = self.world.now();
                let (_, scope) = self.world.model(self.group).begin(now, line.conn);
                line.waiting += 1;
                line.lock = Lock::Asked;
                let ttl_s = if self.rng.u8(0..4) == 0 { 1 } else { 0 };
                self.say(line, FromDevice::BeginTransaction(BeginTransaction { encrypted_scope: scope, ttl_s })).await
            }
            Lock::Held(tx) => {
                line.lock = Lock::Committing;
                let now = self.world.now();
                self.world.model(self.group).commit(now, line.conn, tx);
                line.waiting += 1;
                self.say(line, FromDevice::CommitTransaction).await
            }
            Lock::Asked | Lock::Committing => true,
        }
    }

    /// Acknowledges something: soon or late, in any order, sometimes twice.
    async fn acknowledge(&mut self, line: &mut Line) -> bool {
        let mut ids = Vec::new();
        match self.rng.u8(0..10) {
            0..6 => ids.append(&mut self.unacked),
            6..9 if !self.unacked.is_empty() => {
                ids.push(self.unacked.swap_remove(self.rng.usize(0..self.unacked.len())))
            }
            _ if !self.acked.is_empty() => ids.push(self.acked[self.rng.usize(0..self.acked.len())]),
            _ => {}
        }
        for id in ids {
            if !self.ack(line, id).await {
                return false;
            }
        }
        true
    }

    async fn ack(&mut self, line: &mut Line, id: u32) -> bool {
        let now = self.world.now();
        self.world.model(self.group).ack(now, line.conn, id);
        self.acked.push(id);
        self.say(line, FromDevice::ReflectedAck(ReflectedId(id))).await
    }

    async fn drop_somebody(&mut self, line: &mut Line) -> bool {
        let device = self.rng.u64(1..6);
        self.asks(line, |member, conn, now| member.world.model(member.group).drop_device(now, conn, device));
        self.say(line, FromDevice::DropDevice(DeviceId(device))).await
    }

    /// Says something to the chat server, in one piece or in two.
    async fn proxy(&mut self, line: &mut Line) -> bool {
        line.reasons.proxied = true;
        let mut body = [0; 32];
        body[..8].copy_from_slice(&(line.conn as u64).to_le_bytes());
        body[8..12].copy_from_slice(&line.proxy_said.to_le_bytes());
        body[12] = u8::try_from(self.group).unwrap();
        line.proxy_said += 1;
        let frame = [&32u16.to_le_bytes()[..], &body].concat();
        let cut = self.rng.usize(0..frame.len());
        for piece in [&frame[..cut], &frame[cut..]] {
            if !self.say(line, FromDevice::Proxy(Bytes::copy_from_slice(piece))).await {
                return false;
            }
        }
        true
    }

    fn hears(&mut self, line: &mut Line, payload: ToDevice) {
        let (world, conn) = (Rc::clone(&self.world), line.conn);
        let now = world.now();
        self.tell(Some(conn), format_args!("hears {}", told(&payload)));
        let mut model = world.model(self.group);
        let asked = line.waiting;
        line.waiting = asked.saturating_sub(1);
        match payload {
            ToDevice::ReflectAck(ack) => model.reflect_ack(now, conn, ack.reflect_id.0, ack.timestamp_ms),
            ToDevice::DevicesInfo(info) => {
                model.answer(now, conn, "devices-info", |question| question == Question::Devices);
                if !info.0.contains_key(&DeviceId(self.device)) {
                    model.fault(Rule::Ghost, format!("device {} is not among its devices", self.device));
                }
            }
            ToDevice::DropDeviceAck(device) => model.dropped(now, conn, device.0),
            ToDevice::BeginTransactionAck => {
                line.lock = Lock::Free;
                if let Some(tx) = model.granted(now, conn) {
                    line.reasons.held = true;
                    line.lock = Lock::Held(tx);
                }
            }
            ToDevice::TransactionRejected(holder) => {
                line.lock = Lock::Free;
                model.rejected(now, conn, holder.device_id.0, &holder.encrypted_scope);
            }
            ToDevice::CommitTransactionAck => {
                line.lock = Lock::Free;
                model.committed(now, conn);
            }
            other => {
                line.waiting = asked;
                match other {
                    ToDevice::Reflected(message) => {
                        let number = message.envelope().strip_prefix(&MARK).and_then(|rest| rest.first_chunk::<4>());
                        let number = number.and_then(|number| usize::try_from(u32::from_le_bytes(*number)).ok());
                        let (id, ephemeral) = (message.id().0, message.flags().ephemeral);
                        model.reflected(conn, number, id, ephemeral, message.timestamp_ms());
                        // Real devices acknowledge ephemeral messages, too.
                        self.unacked.push(id);
                    }
                    ToDevice::ReflectionQueueDry => {
                        line.dry = true;
                        model.dry(conn);
                    }
                    ToDevice::RolePromotedToLeader => model.leader(now, conn),
                    ToDevice::TransactionEnded(holder) => {
                        model.ended(conn, holder.device_id.0, &holder.encrypted_scope);
                    }
                    ToDevice::Proxy(unit) => {
                        let at = line.proxy_heard;
                        line.proxy_heard += 1;
                        let expected = match at {
                            0 => unit.len() == 80,
                            1 => unit.len() == 32,
                            at => {
                                at - 2 < line.proxy_said
                                    && unit.len() == 34
                                    && unit[2..10] == (conn as u64).to_le_bytes()
                                    && unit[10..14] == (at - 2).to_le_bytes()
                                    && usize::from(unit[14]) == self.group
                            }
                        };
                        if !expected {
                            model.fault(Rule::Chat, format!("device {}: unit {at}, {} bytes", self.device, unit.len()));
                        }
                    }
                    other => {
                        model.fault(Rule::Answers, format!("device {}: {}", self.device, other.kind()));
                    }
                }
            }
        }
    }

    fn closed(&mut self, line: &mut Line, code: Option<u16>) {
        let code = code.unwrap_or(1005);
        self.tell(Some(line.conn), format_args!("is closed with {code}"));
        let unsure = matches!(self.belief, Belief::Unsure(_));
        if code != 1000 {
            self.world.model(self.group).closed(line.conn, code, line.existing, unsure, &line.reasons);
        }
        match code {
            // Its slot is gone. The end of a connection that was replaced says nothing about the next one.
            4113 | 4114 if !line.reasons.replaced => self.belief = Belief::Nothing,
            4111 if line.fresh => self.belief = Belief::Nothing,
            4115 if line.existing => {
                self.belief = if unsure { self.belief } else { Belief::Nothing };
            }
            _ => {}
        }
    }

    /// The end: everybody comes back, gets what is due, acknowledges it, and goes.
    async fn rest(&mut self) {
        let mut line = None;
        let mut tries = 0;
        while line.is_none() && self.belief != Belief::Nothing && tries < 40 {
            tries += 1;
            line = self.connect().await;
            if let Some(mut found) = line.take() {
                if self.until(&mut found, |line| line.dry).await && self.settle(&mut found).await {
                    line = Some(found);
                }
            } else {
                sleep(Duration::from_millis(300)).await;
            }
        }
        if line.is_none() && self.belief == Belief::Slot {
            self.fault(Rule::Stuck, format!("device {} never comes back", self.device));
        }
        // Everybody is there; from now on nobody says anything that concerns others.
        self.meet(&mut line, 1).await;
        if let Some(mut found) = line.take()
            && self.settle(&mut found).await
        {
            line = Some(found);
        }
        self.meet(&mut line, 2).await;
        if let Some(line) = &line {
            self.world.rests(self.group, line.conn);
        }
        self.meet(&mut line, 3).await;
        if let Some(mut line) = line {
            self.tell(Some(line.conn), "goes home");
            line.socket.close(None).await.unwrap_or_default();
            timeout(PATIENCE, async { while let Some(Ok(_)) = line.socket.next().await {} }).await.unwrap_or_default();
        }
    }

    /// Acknowledges everything and knows that it arrived.
    async fn settle(&mut self, line: &mut Line) -> bool {
        for _ in 0..2 {
            for id in std::mem::take(&mut self.unacked) {
                if !self.ack(line, id).await {
                    return false;
                }
            }
            self.asks(line, |member, conn, now| member.world.model(member.group).devices(now, conn));
            if !self.say(line, FromDevice::GetDevicesInfo).await || !self.until(line, |line| line.waiting == 0).await {
                return false;
            }
        }
        true
    }

    async fn until(&mut self, line: &mut Line, done: impl Fn(&Line) -> bool) -> bool {
        let patience = now() + 4 * PATIENCE;
        while !done(line) {
            let next = now() + Duration::from_millis(20);
            if !self.listen(line, next).await {
                return false;
            }
            if next > patience {
                self.tell(Some(line.conn), "loses patience");
                return false;
            }
        }
        true
    }

    /// Waits for the others, listening.
    async fn meet(&mut self, line: &mut Option<Line>, number: usize) {
        self.world.arrive(number);
        while !self.world.all_arrived(number) {
            let next = now() + Duration::from_millis(50);
            match line {
                Some(here) => {
                    if !self.listen(here, next).await {
                        *line = None;
                    }
                }
                None => sleep_until(next).await,
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "virtual time, in a world of its own")]
fn now() -> Instant {
    Instant::now()
}

fn heard(frame: Frame) -> Option<ToDevice> {
    match frame {
        Frame::Binary(bytes) => ToDevice::decode(&bytes).ok(),
        Frame::Text(_) | Frame::Ping(_) | Frame::Pong(_) | Frame::Close(_) | Frame::Frame(_) => None,
    }
}

fn said(payload: &FromDevice) -> String {
    match payload {
        FromDevice::Reflect(it) => {
            let ephemeral = if it.flags.ephemeral { ", ephemeral" } else { "" };
            format!("reflect {} ({} bytes{ephemeral})", it.reflect_id.0, it.envelope.len())
        }
        FromDevice::ReflectedAck(id) => format!("reflected-ack {}", id.0),
        FromDevice::DropDevice(device) => format!("drop-device {}", device.0),
        FromDevice::BeginTransaction(it) => format!("begin {}", String::from_utf8_lossy(&it.encrypted_scope)),
        other => other.kind().to_string(),
    }
}

fn told(payload: &ToDevice) -> String {
    match payload {
        ToDevice::Reflected(it) => {
            let number = it.envelope().get(4..8).and_then(|n| n.first_chunk()).map_or(0, |n| u32::from_le_bytes(*n));
            let ephemeral = if it.flags().ephemeral { ", ephemeral" } else { "" };
            format!("reflected {} = message {number}{ephemeral}", it.id().0)
        }
        ToDevice::ReflectAck(it) => format!("reflect-ack {}", it.reflect_id.0),
        ToDevice::DropDeviceAck(device) => format!("drop-device-ack {}", device.0),
        ToDevice::TransactionRejected(it) | ToDevice::TransactionEnded(it) => {
            format!("{} {} of d{}", payload.kind(), String::from_utf8_lossy(&it.encrypted_scope), it.device_id.0)
        }
        other => other.kind().to_string(),
    }
}
