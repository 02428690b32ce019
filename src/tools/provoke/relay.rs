//! A relay between a client and a mediator, at which something can be said as if the client had said it.
//!
//! It hands on frames byte for byte, with their masks, pings and closes, so neither side can tell that it is there. It never
//! closes by itself: whatever code the client sees is the mediator's.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use crate::client::{GroupKey, Mediator};
use crate::crypto::random;
use crate::net::listen::{self, Door};
use crate::net::tasks::Tasks;
use crate::tools::describe::{self, From};
use crate::wire::d2m::{
    ClientHello, ClientUrlInfo, DeviceGroupId, DeviceId, FromDevice, PayloadType, SlotState, ToDevice,
};

/// Longest request or answer head, in bytes.
const HEAD_MAX: usize = 16 * 1_024;
/// Longest frame that is handed on, in bytes: what a client may try that looks for the limit, and more.
const FRAME_MAX: usize = 1024 * 1024;
/// What happens at most once in a connection, so nobody waits here.
const SEEN: usize = 16;
/// Orders that wait for the end of a message in fragments.
const ORDERS: usize = 16;
/// Payloads of a kind that are told, in each direction; a queue that is filled would take the whole screen.
const TOLD_OF_A_KIND: u32 = 4;

const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;

/// What becomes of the client's ClientHello, which is protobuf: a field that is appended counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hello {
    /// It goes on as it is.
    Unchanged,
    /// It is of version 1.
    OfVersion1,
    /// It expects a slot that is not there, or none where there is one.
    OtherSlotState,
    /// It is that of a new device that wants to be turned away when there is no slot.
    OfOneMore,
}

/// What is to be done on a connection.
#[derive(Debug)]
pub(super) enum Order {
    /// Say this container to the mediator, and keep an answer from the client, who asked nothing.
    Say(Bytes, Option<PayloadType>),
    /// Say a close with this code to the mediator.
    Close(u16),
    /// Nothing of what the client says goes on, as if its network had gone.
    Mute,
    /// The client's acknowledgements of reflected messages do not go on.
    HoldAcks,
    /// The client gets nothing more from the chat server.
    HideProxy,
}

/// What was seen on a connection.
#[derive(Debug)]
pub(super) enum Seen {
    /// The client introduced itself.
    Hello(Box<ClientHello>),
    /// The client said something to its chat server, for the first time.
    Proxied,
    /// The mediator admitted the client.
    Admitted,
    /// The mediator closed.
    Closed(u16),
}

/// A client that has come. It waits until it is let on.
#[derive(Debug)]
pub(super) struct Visit {
    /// What its URL says.
    pub(super) url: ClientUrlInfo,
    /// Lets it on, to this mediator's door, with this done to its hello.
    pub(super) go: oneshot::Sender<(ClientUrlInfo, Hello)>,
    pub(super) orders: mpsc::Sender<Order>,
    /// Ends with the connection.
    pub(super) seen: mpsc::Receiver<Seen>,
}

impl Visit {
    /// Lets it on as it is; what is seen of it.
    pub(super) fn goes_on(self) -> mpsc::Receiver<Seen> {
        // It may have gone already.
        let _gone = self.go.send((self.url, Hello::Unchanged));
        self.seen
    }
}

/// Prints what is said.
#[derive(Debug, Default)]
pub(super) struct Story {
    key: Mutex<Option<GroupKey>>,
    told: Mutex<HashMap<(char, u8), u32>>,
}

impl Story {
    /// From now on, what is sealed with this key can be read.
    pub(super) fn open_with(&self, key: GroupKey) {
        *self.key.lock().unwrap_or_else(PoisonError::into_inner) = Some(key);
    }

    /// What provoke does itself.
    pub(super) fn note(&self, text: &str) {
        Self::line(&format!("-- {text}"));
    }

    fn payload(&self, sign: char, from: From, container: &Bytes) {
        let Some(&kind) = container.first() else { return Self::line(&format!("{sign}> an empty message")) };
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let times = told.entry((sign, kind)).or_default();
        *times += 1;
        if *times > TOLD_OF_A_KIND {
            if *times == TOLD_OF_A_KIND + 1 {
                Self::line(&format!("   ... and so on: no more of {} is told", PayloadType(kind)));
            }
            return;
        }
        let key = self.key.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let described = match from {
            From::Device => FromDevice::decode(container).map(|it| describe::of_device(&it, key.as_ref())),
            From::Mediator => ToDevice::decode(container).map(|it| describe::of_mediator(&it, key.as_ref())),
        };
        let what = described.map_or_else(|bad| format!("{} ({bad})", hex::encode(container)), |it| it.line());
        Self::line(&match sign {
            '<' => format!("<- {what}"),
            '=' => format!("=> {what}    (as if the client had said it)"),
            _ => format!("-> {what}"),
        });
    }

    fn line(text: &str) {
        use io::Write as _;
        // Whoever does not read what is told still gets the exit status.
        let _unread = writeln!(io::stdout().lock(), "{text}");
    }
}

/// Whom a mediator has met that was started here, so that it knew nobody. A client that ran before expects its slot there,
/// and would be turned away before anything could be provoked.
#[derive(Debug, Default)]
pub(super) struct Met(Mutex<HashSet<(DeviceGroupId, DeviceId)>>);

impl Met {
    /// Whether it is the first time; it is not the next time.
    fn first_time(&self, group: DeviceGroupId, device: DeviceId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((group, device))
    }
}

/// Listens until it is dropped.
#[derive(Debug)]
pub(super) struct Relay {
    pub(super) address: SocketAddr,
    tasks: Tasks,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.tasks.stop_token().cancel();
    }
}

impl Relay {
    /// One that listens, and who comes; before a mediator that was started for this, with whom that has met.
    pub(super) async fn before(
        mediator: Mediator,
        address: SocketAddr,
        door: Door,
        story: Arc<Story>,
        met: Option<Arc<Met>>,
    ) -> io::Result<(Self, mpsc::Receiver<Visit>)> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (sender, visits) = mpsc::channel(1);
        let tasks = Tasks::new();
        let handler = move |client, _peer| {
            let (mediator, sender, story, met) = (mediator.clone(), sender.clone(), Arc::clone(&story), met.clone());
            async move {
                if let Err(error) = carry(client, &mediator, &sender, &story, met).await {
                    tracing::debug!(%error, "a connection broke");
                }
            }
        };
        tasks.spawn(listen::serve(listener, door, tasks.clone(), handler));
        Ok((Self { address, tasks }, visits))
    }
}

type Client = listen::Stream<tokio::net::TcpStream>;

/// One connection, from its request to its end.
async fn carry(
    mut client: Client,
    mediator: &Mediator,
    visits: &mpsc::Sender<Visit>,
    story: &Arc<Story>,
    met: Option<Arc<Met>>,
) -> io::Result<()> {
    let mut from_client = BytesMut::new();
    let head = read_head(&mut client, &mut from_client).await?;
    let path = head.split(' ').nth(1).unwrap_or_default();
    let url = match ClientUrlInfo::from_path(path.split('?').next().unwrap_or_default()) {
        Ok(url) => url,
        Err(bad) => return refuse(&mut client, "400 Bad Request", &format!("{path}: {bad}")).await,
    };
    let (go, gone_on) = oneshot::channel();
    let (orders, obeyed) = mpsc::channel(ORDERS);
    let (sees, seen) = mpsc::channel(SEEN);
    if visits.send(Visit { url, go, orders, seen }).await.is_err() {
        return Ok(());
    }
    let Ok((url, hello)) = gone_on.await else { return Ok(()) };
    let mut upstream = match mediator.stream(&url).await {
        Ok(upstream) => upstream,
        Err(error) => {
            story.note(&format!("the mediator cannot be reached: {error}"));
            return refuse(&mut client, "502 Bad Gateway", &error.to_string()).await;
        }
    };
    upstream.write_all(request(&head, &mediator.path(&url), mediator).as_bytes()).await?;
    let mut from_mediator = BytesMut::new();
    let answer = read_head(&mut upstream, &mut from_mediator).await?;
    client.write_all(answer.as_bytes()).await?;
    if !answer.starts_with("HTTP/1.1 101") {
        story.note(&format!("the mediator answers {}", answer.lines().next().unwrap_or_default()));
        client.write_all(&from_mediator).await?;
        return tokio::io::copy_bidirectional(&mut client, &mut upstream).await.map(drop);
    }
    let (client_reads, client_writes) = tokio::io::split(client);
    let (mediator_reads, mediator_writes) = tokio::io::split(upstream);
    let between = Arc::new(Between { story: Arc::clone(story), ..Between::default() });
    let up = Up {
        reads: client_reads,
        buffer: from_client,
        writes: mediator_writes,
        between: Arc::clone(&between),
        seen: sees.clone(),
        hello: Some(hello),
        group: url.device_group_id,
        met,
        unfinished: false,
        waiting: VecDeque::new(),
        mute: false,
        hold_acks: false,
        proxied: false,
    };
    tokio::select! {
        over = up.run(obeyed) => over,
        over = down(mediator_reads, from_mediator, client_writes, &between, &sees) => over,
    }
}

/// Reads up to and including the empty line; what came behind it stays in the buffer.
async fn read_head(stream: &mut (impl tokio::io::AsyncRead + Unpin), buffer: &mut BytesMut) -> io::Result<String> {
    loop {
        if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            return Ok(String::from_utf8_lossy(&buffer.split_to(at + 4)).into_owned());
        }
        if buffer.len() > HEAD_MAX || stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

/// The client's request, as the mediator would have got it.
fn request(head: &str, path: &str, mediator: &Mediator) -> String {
    let mut out = String::with_capacity(head.len());
    for (at, line) in head.lines().enumerate() {
        if at == 0 {
            out += &format!("GET {path} HTTP/1.1\r\n");
        } else if line.to_ascii_lowercase().starts_with("host:") {
            out += &format!("Host: {}\r\n", mediator.host());
        } else {
            out += &format!("{line}\r\n");
        }
    }
    out
}

async fn refuse(client: &mut Client, status: &str, why: &str) -> io::Result<()> {
    let length = why.len();
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{why}");
    client.write_all(answer.as_bytes()).await?;
    client.shutdown().await
}

/// What both directions know.
#[derive(Debug, Default)]
struct Between {
    story: Arc<Story>,
    /// Answers that are not for the client.
    hidden: Mutex<Vec<PayloadType>>,
    hide_proxy: AtomicBool,
    /// The mediator has closed: there is no more to be provoked.
    closed: AtomicBool,
}

/// A WebSocket frame.
#[derive(Debug)]
struct Frame {
    /// FIN, reserved bits, opcode.
    first: u8,
    /// Without its mask.
    payload: Bytes,
    /// As it came.
    raw: Bytes,
}

impl Frame {
    const fn opcode(&self) -> u8 {
        self.first & 0x0f
    }

    /// The whole message, if it is one and binary.
    const fn is_binary_message(&self) -> bool {
        self.first == FINAL | BINARY
    }
}

/// Takes a frame off the buffer, if all of it is there.
fn next_frame(buffer: &mut BytesMut) -> io::Result<Option<Frame>> {
    let (Some(&first), Some(&second)) = (buffer.first(), buffer.get(1)) else { return Ok(None) };
    let length = |from: usize, bytes: usize| {
        buffer.get(from..from + bytes).map(|it| it.iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte)))
    };
    let (mut at, payload) = match second & !MASKED {
        126 => (4, length(2, 2)),
        127 => (10, length(2, 8)),
        short => (2, Some(usize::from(short))),
    };
    let Some(payload) = payload else { return Ok(None) };
    if payload > FRAME_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame that is too long to hand on"));
    }
    let mask = if second & MASKED == 0 {
        Some([0; 4])
    } else {
        at += 4;
        buffer.get(at - 4..at).and_then(|mask| mask.try_into().ok())
    };
    let Some(mask) = mask.filter(|_: &[u8; 4]| buffer.len() >= at + payload) else { return Ok(None) };
    let raw = buffer.split_to(at + payload).freeze();
    let unmasked: Bytes = raw.iter().skip(at).zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    Ok(Some(Frame { first, payload: unmasked, raw }))
}

/// A frame as a client sends it.
fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![FINAL | opcode];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(short @ ..126), _) => frame.push(MASKED | short),
        (_, Ok(medium)) => {
            frame.push(MASKED | 126);
            frame.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            frame.push(MASKED | 127);
            frame.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    let mask: [u8; 4] = random::bytes();
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// From the client to the mediator.
struct Up<W> {
    reads: ReadHalf<Client>,
    buffer: BytesMut,
    writes: WriteHalf<W>,
    between: Arc<Between>,
    seen: mpsc::Sender<Seen>,
    /// Until the ClientHello has come.
    hello: Option<Hello>,
    group: DeviceGroupId,
    met: Option<Arc<Met>>,
    /// A message in fragments is on its way: nothing may be said in between.
    unfinished: bool,
    waiting: VecDeque<Order>,
    mute: bool,
    hold_acks: bool,
    proxied: bool,
}

impl<W: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Up<W> {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) -> io::Result<()> {
        loop {
            while let Some(frame) = next_frame(&mut self.buffer)? {
                self.hand_on(frame).await?;
            }
            while !self.unfinished
                && let Some(order) = self.waiting.pop_front()
            {
                self.obey(order).await?;
            }
            tokio::select! {
                Some(order) = orders.recv(), if self.waiting.len() < ORDERS => self.waiting.push_back(order),
                read = self.reads.read_buf(&mut self.buffer) => if read? == 0 {
                    // A client that is gone behind a network that is gone: the mediator does not learn of it.
                    if self.mute {
                        return std::future::pending().await;
                    }
                    return Ok(());
                },
            }
        }
    }

    async fn hand_on(&mut self, frame: Frame) -> io::Result<()> {
        if frame.opcode() < CLOSE {
            self.unfinished = frame.first & FINAL == 0;
        }
        if self.mute && !self.between.closed.load(Ordering::Relaxed) {
            return Ok(());
        }
        if !frame.is_binary_message() {
            if frame.opcode() == CLOSE {
                self.between.story.note("the client closes");
            }
            return self.writes.write_all(&frame.raw).await;
        }
        let payload = FromDevice::decode(&frame.payload);
        match &payload {
            Ok(FromDevice::ReflectedAck(_)) if self.hold_acks => return Ok(()),
            Ok(FromDevice::Proxy(_)) if !self.proxied => {
                self.proxied = true;
                self.tell(Seen::Proxied).await;
            }
            _ => {}
        }
        let Ok(FromDevice::ClientHello(hello)) = payload else {
            self.between.story.payload('-', From::Device, &frame.payload);
            return self.writes.write_all(&frame.raw).await;
        };
        self.between.story.payload('-', From::Device, &frame.payload);
        let first = self.hello.take();
        let expected = |state| vec![0x38, u8::from(state == SlotState::Existing)];
        let appended = match first.unwrap_or(Hello::Unchanged) {
            Hello::Unchanged => match &self.met {
                Some(met)
                    if met.first_time(self.group, hello.device_id)
                        && hello.expected_slot_state == SlotState::Existing =>
                {
                    expected(SlotState::New)
                }
                _ => Vec::new(),
            },
            Hello::OfVersion1 => vec![0x08, 1],
            // Who was never met has no slot.
            Hello::OtherSlotState if self.met.is_some() => expected(SlotState::Existing),
            Hello::OtherSlotState => expected(match hello.expected_slot_state {
                SlotState::New => SlotState::Existing,
                SlotState::Existing => SlotState::New,
            }),
            Hello::OfOneMore => {
                let one_more = DeviceId(random::u64());
                let mut fields = vec![0x20, 0, 0x38, 0, 0x19];
                fields.extend_from_slice(&one_more.0.to_le_bytes());
                fields
            }
        };
        if first.is_some() {
            self.tell(Seen::Hello(hello)).await;
        }
        if appended.is_empty() {
            return self.writes.write_all(&frame.raw).await;
        }
        let changed: Bytes = frame.payload.iter().copied().chain(appended).collect();
        self.between.story.payload('=', From::Device, &changed);
        self.writes.write_all(&masked(BINARY, &changed)).await
    }

    async fn obey(&mut self, order: Order) -> io::Result<()> {
        match order {
            Order::Say(container, hide) => {
                self.between.hidden.lock().unwrap_or_else(PoisonError::into_inner).extend(hide);
                self.between.story.payload('=', From::Device, &container);
                self.writes.write_all(&masked(BINARY, &container)).await?;
            }
            Order::Close(code) => {
                self.between.story.note(&format!("as if the client had closed with {code}"));
                self.writes.write_all(&masked(CLOSE, &code.to_be_bytes())).await?;
            }
            Order::Mute => self.mute = true,
            Order::HoldAcks => self.hold_acks = true,
            Order::HideProxy => self.between.hide_proxy.store(true, Ordering::Relaxed),
        }
        Ok(())
    }

    async fn tell(&mut self, seen: Seen) {
        // Nobody has to look.
        self.seen.send(seen).await.unwrap_or_default();
    }
}

/// From the mediator to the client.
async fn down(
    mut reads: ReadHalf<impl tokio::io::AsyncRead>,
    mut buffer: BytesMut,
    mut writes: WriteHalf<Client>,
    between: &Between,
    seen: &mpsc::Sender<Seen>,
) -> io::Result<()> {
    loop {
        while let Some(frame) = next_frame(&mut buffer)? {
            if frame.opcode() == CLOSE {
                let mut payload = frame.payload.clone();
                let code = if payload.len() >= 2 { payload.get_u16() } else { 1005 };
                let reason = String::from_utf8_lossy(&payload).into_owned();
                between.story.note(&format!("the mediator closes with {code} ({reason:?})"));
                between.closed.store(true, Ordering::Relaxed);
                writes.write_all(&frame.raw).await?;
                seen.send(Seen::Closed(code)).await.unwrap_or_default();
                continue;
            }
            if frame.is_binary_message() {
                let kind = PayloadType(frame.payload.first().copied().unwrap_or_default());
                if !is_for_the_client(between, kind, &frame.payload) {
                    continue;
                }
                if kind == PayloadType::SERVER_INFO {
                    // Before the client can have answered.
                    seen.send(Seen::Admitted).await.unwrap_or_default();
                }
            }
            writes.write_all(&frame.raw).await?;
        }
        writes.flush().await?;
        if reads.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

/// Whether the client is to get what the mediator said; if so, it is told to whoever reads along.
fn is_for_the_client(between: &Between, kind: PayloadType, container: &Bytes) -> bool {
    if kind == PayloadType::PROXY && between.hide_proxy.load(Ordering::Relaxed) {
        return false;
    }
    let mut hidden = between.hidden.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(at) = hidden.iter().position(|hidden| *hidden == kind) {
        hidden.remove(at);
        return false;
    }
    between.story.payload('<', From::Mediator, container);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_every_length_go_both_ways() {
        for length in [0, 1, 125, 126, 65_535, 65_536, 70_000] {
            let payload = vec![0x5a; length];
            let frame = masked(BINARY, &payload);
            let mut buffer = BytesMut::from(&frame[..]);
            let read = next_frame(&mut buffer).unwrap().unwrap();
            assert!(read.is_binary_message() && buffer.is_empty());
            assert_eq!((read.payload.as_ref(), read.raw.as_ref()), (&payload[..], &frame[..]));
            let mut cut = BytesMut::from(&frame[..frame.len() - 1]);
            assert!(next_frame(&mut cut).unwrap().is_none(), "{length}: not all of it is there");
        }
    }

    #[test]
    fn a_frame_that_claims_too_much_is_not_waited_for() {
        let mut buffer = BytesMut::from(&[FINAL | BINARY, 127, 0xff, 0, 0, 0, 0, 0, 0, 0][..]);
        assert!(next_frame(&mut buffer).is_err());
    }

    #[test]
    fn a_request_goes_on_to_the_mediators_path_and_host() {
        let mediator = Mediator::new("ws://mediator.example:1/m", &crate::client::Trust::System).unwrap();
        let head = "GET /x//y HTTP/1.1\r\nHost: localhost:1\r\nUpgrade: websocket\r\n\r\n";
        let expected = "GET /m/y HTTP/1.1\r\nHost: mediator.example\r\nUpgrade: websocket\r\n\r\n";
        assert_eq!(request(head, "/m/y", &mediator), expected);
    }
}
