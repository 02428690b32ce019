//! Packets in datagrams, in frames on TCP, in messages on WebSocket; and the lines of thin users (spec 10.2).
//!
//! A carrier knows nothing of groups. It takes what is long enough to be a packet, hands it on with the number of its
//! connection, and writes what waits for that connection. Nobody ever waits for a connection: what does not fit its queue is
//! dropped, which the protocol has to stand anyway.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::actor::{Connection, Mail};
use super::{Held, Unproved, next, thin};
use crate::chat::toxgroup::state::Endpoint;
use crate::metrics::{self, Login, Presence, Room};
use crate::net::listen::Stream;
use crate::time::Clock;
use crate::wire::delimit::Cutter;
use crate::wire::toxgroup::{Frames, OUTER_GROUP_CHAT, PACKET_MAX, PACKET_MIN, PREFIX, THIN_MAX, frame};

/// What packets on WebSocket are called.
pub const SUBPROTOCOL: &str = "toxgroup.1";
/// Packets that wait for one connection, at most.
pub const OUTBOX_MAX: usize = 256;
/// Time until somebody proved a key, and how many packets they may take for it.
const PROVE_WITHIN: Duration = Duration::from_secs(10);
const PROVE_PACKETS: usize = 20;
/// After so long without anything of ours, a sign of life; without anything of theirs, the end.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const SILENCE_MAX: Duration = Duration::from_secs(90);
/// How long a socket may take nothing.
const WRITE_STALL: Duration = Duration::from_secs(60);
/// How long a farewell may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// How long an upgrade may take.
const UPGRADE_WITHIN: Duration = Duration::from_secs(10);
/// What the kernel may hold for a connection that does not read, about; packets are small and nobody waits for old ones.
const SEND_BUFFER: usize = 64 * 1_024;
/// How much is read at a time.
const READ: usize = 4 * 1024;

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) clock: Clock,
    pub(super) mailbox: mpsc::Sender<Mail>,
    pub(super) unproved: Unproved,
    pub(super) next_conn: AtomicU64,
    pub(super) stop: CancellationToken,
}

/// Datagrams, until the end. What comes faster than it is decided is lost, as on the net.
pub(super) async fn datagrams(socket: Arc<UdpSocket>, mailbox: mpsc::Sender<Mail>, stop: CancellationToken) {
    let mut buffer = [0; PACKET_MAX + 1];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            () = stop.cancelled() => return,
        };
        // An error here is about one datagram that somebody did not take.
        let Ok((len, from)) = received else { continue };
        let Some(packet) = buffer.get(..len).filter(|packet| is_packet(packet)) else { continue };
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let mail = Mail::Packet(Endpoint::Udp(from), Bytes::copy_from_slice(packet));
        if mailbox.try_send(mail).is_err() {
            metrics::get().toxgroup_dropped.of(metrics::ToxDropped::Full).increment(1);
        }
    }
}

fn is_packet(bytes: &[u8]) -> bool {
    (PACKET_MIN..=PACKET_MAX).contains(&bytes.len()) && bytes.first() == Some(&OUTER_GROUP_CHAT)
}

/// What came on a connection.
enum Heard {
    Frame(Bytes),
    /// A sign of life.
    Alive,
    /// Nothing more, or nothing that can be understood.
    Over,
}

/// One half of a connection that carries packets.
trait Reader {
    async fn next(&mut self) -> Heard;
}

trait Writer {
    /// Writes one packet, or a sign of life. `false`: it cannot.
    async fn write(&mut self, packet: Option<&[u8]>) -> bool;
    async fn close(&mut self);
}

struct Framed<S> {
    socket: ReadHalf<S>,
    cutter: Cutter<Frames>,
}

impl<S: AsyncRead> Framed<S> {
    fn new(socket: ReadHalf<S>, max: usize) -> Self {
        Self { socket, cutter: Cutter::new(Frames::new(max)) }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Reader for Framed<S> {
    /// Safe to drop while waiting.
    async fn next(&mut self) -> Heard {
        loop {
            match self.cutter.next_unit() {
                Ok(Some(unit)) if unit.len() == PREFIX => return Heard::Alive,
                Ok(Some(unit)) => return Heard::Frame(unit.slice(PREFIX..)),
                Ok(None) => {}
                Err(_) => return Heard::Over,
            }
            let buffer: &mut BytesMut = self.cutter.buffer();
            buffer.reserve(READ);
            match self.socket.read_buf(buffer).await {
                Ok(0) | Err(_) => return Heard::Over,
                Ok(_) => {}
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Writer for WriteHalf<S> {
    async fn write(&mut self, packet: Option<&[u8]>) -> bool {
        // What is too long for a frame was not made here.
        let Some(frame) = frame(packet.unwrap_or_default()) else { return true };
        self.write_all(&frame).await.is_ok() && self.flush().await.is_ok()
    }

    async fn close(&mut self) {
        let _closed = self.shutdown().await;
    }
}

struct WebReader<S>(futures_util::stream::SplitStream<WebSocketStream<S>>, Option<CloseCode>);

impl<S: AsyncRead + AsyncWrite + Unpin> Reader for WebReader<S> {
    async fn next(&mut self) -> Heard {
        match self.0.next().await {
            Some(Ok(Message::Binary(packet))) => Heard::Frame(packet),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Heard::Alive,
            Some(Ok(Message::Text(_))) => {
                self.1 = Some(CloseCode::Unsupported);
                Heard::Over
            }
            Some(Ok(Message::Close(_) | Message::Frame(_)) | Err(_)) | None => Heard::Over,
        }
    }
}

struct WebWriter<S>(futures_util::stream::SplitSink<WebSocketStream<S>, Message>);

impl<S: AsyncRead + AsyncWrite + Unpin> Writer for WebWriter<S> {
    async fn write(&mut self, packet: Option<&[u8]>) -> bool {
        let message = match packet {
            Some(packet) => Message::Binary(Bytes::copy_from_slice(packet)),
            None => Message::Ping(Bytes::new()),
        };
        self.0.send(message).await.is_ok()
    }

    async fn close(&mut self) {
        let _closed = self.0.close().await;
    }
}

/// Bounds what the kernel holds for a connection.
fn bound(socket: &Stream<TcpStream>) {
    if let Err(error) = SockRef::from(socket.get_ref()).set_send_buffer_size(SEND_BUFFER) {
        debug!(%error, "a connection with the kernel's own bound");
    }
}

/// A client that says packets in frames.
pub(super) async fn tcp(shared: &Shared, socket: Stream<TcpStream>, from: SocketAddr) {
    bound(&socket);
    let (reading, mut writing) = tokio::io::split(socket);
    let mut reading = Framed::new(reading, PACKET_MAX);
    carry(shared, &mut reading, &mut writing, from).await;
    // However that ends.
    let _closed = tokio::time::timeout(CLOSE_WITHIN, writing.close()).await;
}

/// A client that says packets in messages.
pub(super) async fn web(shared: &Shared, socket: Stream<TcpStream>, from: SocketAddr) {
    bound(&socket);
    let config = WebSocketConfig::default()
        .read_buffer_size(READ)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * PACKET_MAX)
        .max_message_size(Some(PACKET_MAX))
        .max_frame_size(Some(PACKET_MAX));
    let upgrade = tokio_tungstenite::accept_hdr_async_with_config(socket, offers_ours, Some(config));
    let Ok(Ok(socket)) = tokio::time::timeout(UPGRADE_WITHIN, upgrade).await else {
        return debug!(%from, "no WebSocket");
    };
    let (writing, reading) = socket.split();
    let (mut reading, mut writing) = (WebReader(reading, None), WebWriter(writing));
    carry(shared, &mut reading, &mut writing, from).await;
    let farewell = async {
        if let Some(code) = reading.1 {
            let frame = CloseFrame { code, reason: "packets are binary".into() };
            let _told = writing.0.send(Message::Close(Some(frame))).await;
        }
        writing.close().await;
    };
    let _closed = tokio::time::timeout(CLOSE_WITHIN, farewell).await;
}

/// Whether the client asks for packets.
#[expect(clippy::result_large_err, reason = "the answer is tungstenite's type")]
fn offers_ours(request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    let offered = request.headers().get_all("Sec-WebSocket-Protocol").iter().filter_map(|it| it.to_str().ok());
    if offered.flat_map(|it| it.split(',')).any(|it| it.trim() == SUBPROTOCOL) {
        response.headers_mut().insert("Sec-WebSocket-Protocol", http::HeaderValue::from_static(SUBPROTOCOL));
        return Ok(response);
    }
    let mut refusal = ErrorResponse::new(Some(format!("the subprotocol is {SUBPROTOCOL}")));
    *refusal.status_mut() = http::StatusCode::BAD_REQUEST;
    Err(refusal)
}

/// A connection that is counted; one on which nobody proved anything counts as a login that was lost.
struct Counted {
    proved: AtomicBool,
    _open: Presence,
}

impl Counted {
    fn new() -> Self {
        let metrics = metrics::get();
        let (opened, closed) = (metrics.chat_opened.of(Room::ToxGroup), metrics.chat_closed.of(Room::ToxGroup));
        let open = Presence::new(metrics.chat_connections.of(Room::ToxGroup), Some(opened), Some(closed));
        Self { proved: AtomicBool::new(false), _open: open }
    }

    fn proved(&self) {
        if !self.proved.swap(true, Ordering::Relaxed) {
            metrics::get().chat_logins.of(Room::ToxGroup).of(Login::Accepted).increment(1);
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if !self.proved.load(Ordering::Relaxed) {
            metrics::get().chat_logins.of(Room::ToxGroup).of(Login::Lost).increment(1);
        }
    }
}

/// Carries packets both ways until either side ends it.
async fn carry(shared: &Shared, reading: &mut impl Reader, writing: &mut impl Writer, from: SocketAddr) {
    let counted = Counted::new();
    let conn = next(&shared.next_conn);
    let (outbox, mut waits) = mpsc::channel(OUTBOX_MAX);
    let (proved, close) = (CancellationToken::new(), CancellationToken::new());
    let connection = Connection { outbox, proved: proved.clone(), close: close.clone() };
    if shared.mailbox.send(Mail::Opened(conn, from.ip(), connection)).await.is_err() {
        return;
    }
    let read = async {
        let mut place: Option<Held> = None;
        let (mut packets, since) = (0, shared.clock.now().monotonic);
        loop {
            let until = match &place {
                None => Some(since + PROVE_WITHIN),
                Some(_) => Some(shared.clock.now().monotonic + SILENCE_MAX),
            };
            let heard = tokio::select! {
                heard = reading.next() => heard,
                () = proved.cancelled(), if place.is_none() => {
                    counted.proved();
                    place = Some(shared.unproved.prove(from.ip()));
                    continue;
                }
                () = shared.clock.sleep_until(until) => return,
            };
            match heard {
                Heard::Alive => continue,
                Heard::Frame(packet) if is_packet(&packet) => {
                    packets += 1;
                    if place.is_none() && packets > PROVE_PACKETS && !proved.is_cancelled() {
                        return;
                    }
                    // Whoever says more than is decided waits, and stops reading from its socket.
                    if shared.mailbox.send(Mail::Packet(Endpoint::Stream(conn, from.ip()), packet)).await.is_err() {
                        return;
                    }
                }
                Heard::Frame(_) | Heard::Over => return,
            }
        }
    };
    tokio::select! {
        () = read => {}
        () = write(writing, &mut waits) => {}
        () = close.cancelled() => {}
        () = shared.stop.cancelled() => {}
    }
    let _stopped = shared.mailbox.send(Mail::Closed(conn)).await;
}

/// Writes what waits, and a sign of life now and then, as long as the socket takes it.
async fn write(writing: &mut impl Writer, waits: &mut mpsc::Receiver<Bytes>) {
    loop {
        let packet = match tokio::time::timeout(KEEP_ALIVE, waits.recv()).await {
            Ok(Some(packet)) => Some(packet),
            // The task that decides is gone.
            Ok(None) => return,
            Err(_) => None,
        };
        match tokio::time::timeout(WRITE_STALL, writing.write(packet.as_deref())).await {
            Ok(true) => {}
            Ok(false) | Err(_) => return,
        }
    }
}

/// A thin user's line: JSON in frames.
pub(super) async fn thin(shared: &Shared, socket: Stream<TcpStream>, from: SocketAddr) {
    let counted = Counted::new();
    let conn = next(&shared.next_conn);
    let (outbox, mut waits) = mpsc::channel(OUTBOX_MAX);
    let (proved, close) = (CancellationToken::new(), CancellationToken::new());
    let connection = Connection { outbox, proved: proved.clone(), close: close.clone() };
    if shared.mailbox.send(Mail::ThinOpened(conn, connection)).await.is_err() {
        return;
    }
    let (reading, mut writing) = tokio::io::split(socket);
    let mut reading = Framed::new(reading, THIN_MAX);
    let read = async {
        let mut place: Option<Held> = None;
        let since = shared.clock.now().monotonic;
        loop {
            // Behind a mediator, a line is silent as long as its user is: only strangers are in a hurry.
            let until = place.is_none().then_some(since + PROVE_WITHIN);
            let heard = tokio::select! {
                heard = reading.next() => heard,
                () = proved.cancelled(), if place.is_none() => {
                    counted.proved();
                    place = Some(shared.unproved.prove(from.ip()));
                    continue;
                }
                () = shared.clock.sleep_until(until) => return,
            };
            match heard {
                Heard::Alive => {}
                Heard::Frame(json) => {
                    let Ok(request) = serde_json::from_slice::<thin::Request>(&json) else { return };
                    if shared.mailbox.send(Mail::Thin(conn, Box::new(request))).await.is_err() {
                        return;
                    }
                }
                Heard::Over => return,
            }
        }
    };
    tokio::select! {
        () = read => {}
        () = write(&mut writing, &mut waits) => {}
        () = close.cancelled() => {}
        () = shared.stop.cancelled() => {}
    }
    let _stopped = shared.mailbox.send(Mail::ThinClosed(conn)).await;
    let _closed = tokio::time::timeout(CLOSE_WITHIN, writing.close()).await;
}
