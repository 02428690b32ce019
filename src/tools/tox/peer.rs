//! A member of a group on a real net: the engine, and a carrier that brings packets both ways.
//!
//! What the carriers of a hub drop because somebody does not read, this one drops as well: the protocol stands it.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Interval;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::chat::toxgroup::state::{Command, Endpoint, Event, Group, Input, Mode, Own, Refused, Rules, Step, dice};
use crate::chat::toxgroup::wire::GroupId;
use crate::client::raw::Duplex;
use crate::crypto::{Secret, sign};
use crate::time::Clock;
use crate::wire::delimit::Cutter;
use crate::wire::toxgroup::{Frames, PACKET_MAX, PREFIX, frame};

/// Packets that wait for the carrier, and for us.
const QUEUE_MAX: usize = 256;
const TICK: Duration = Duration::from_millis(200);
/// After so long without a packet of ours, a sign of life.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long a farewell may take.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);
/// The one connection of a peer that has one.
const STREAM: Endpoint = Endpoint::Stream(0, IpAddr::V4(Ipv4Addr::UNSPECIFIED));

type Packet = (Endpoint, Bytes);

/// How a peer's packets travel.
#[derive(Debug)]
pub struct Carrier {
    to: mpsc::Sender<Packet>,
    from: mpsc::Receiver<Packet>,
    /// Whether it takes datagrams.
    datagrams: bool,
    address: Option<SocketAddr>,
    /// Ends when everything is written behind the last of `to`.
    writer: JoinHandle<()>,
    stop: DropGuard,
}

impl Carrier {
    /// Datagrams from this address.
    ///
    /// # Errors
    /// When it cannot be bound.
    pub async fn udp(bind: SocketAddr) -> io::Result<Self> {
        let socket = Arc::new(UdpSocket::bind(bind).await?);
        let address = Some(socket.local_addr()?);
        let both = bind.is_ipv6();
        let (to, mut out) = mpsc::channel::<Packet>(QUEUE_MAX);
        let (heard, from) = mpsc::channel(QUEUE_MAX);
        let stop = CancellationToken::new();
        let (reading, stopped) = (Arc::clone(&socket), stop.clone());
        tokio::spawn(async move {
            let mut buffer = [0; PACKET_MAX + 1];
            while let Some(received) = stopped.run_until_cancelled(reading.recv_from(&mut buffer)).await {
                // An error is about one datagram that nobody took.
                let Ok((len, at)) = received else { continue };
                let packet = Bytes::copy_from_slice(buffer.get(..len).unwrap_or_default());
                // As others are told it, also on a socket for both families.
                let at = SocketAddr::new(at.ip().to_canonical(), at.port());
                let _full = heard.try_send((Endpoint::Udp(at), packet));
            }
        });
        let writer = tokio::spawn(async move {
            while let Some((to, packet)) = out.recv().await {
                if let Some(address) = to.udp() {
                    let address = match (address.ip(), both) {
                        (IpAddr::V4(ip), true) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
                        _ => address,
                    };
                    let _lost = socket.send_to(&packet, address).await;
                }
            }
        });
        Ok(Self { to, from, datagrams: true, address, writer, stop: stop.drop_guard() })
    }

    /// Frames on a stream: TCP, TLS, or what a mediator proxies.
    #[must_use]
    pub fn framed(stream: impl Duplex + 'static) -> Self {
        let (mut reading, mut writing) = tokio::io::split(stream);
        let (to, mut out) = mpsc::channel::<Packet>(QUEUE_MAX);
        let (heard, from) = mpsc::channel(QUEUE_MAX);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let writer = tokio::spawn(async move {
            let read = async {
                let mut frames = FrameReader::new(PACKET_MAX);
                while let Ok(Some(packet)) = frames.next(&mut reading).await {
                    if heard.send((STREAM, packet)).await.is_err() {
                        break;
                    }
                }
            };
            let write = async {
                loop {
                    let packet = match tokio::time::timeout(KEEP_ALIVE, out.recv()).await {
                        Ok(Some((_, packet))) => packet,
                        Ok(None) => break,
                        Err(_) => Bytes::new(),
                    };
                    if write_frame(&mut writing, &packet).await.is_err() {
                        break;
                    }
                }
            };
            tokio::select! {
                () = read => {}
                () = write => {}
                () = stopped.cancelled() => {}
            }
        });
        Self { to, from, datagrams: false, address: None, writer, stop: stop.drop_guard() }
    }

    /// Messages on a WebSocket.
    #[must_use]
    pub fn web<S: Duplex + 'static>(socket: WebSocketStream<S>) -> Self {
        let (mut writing, mut reading) = socket.split();
        let (to, mut out) = mpsc::channel::<Packet>(QUEUE_MAX);
        let (heard, from) = mpsc::channel(QUEUE_MAX);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let writer = tokio::spawn(async move {
            let read = async {
                while let Some(Ok(message)) = reading.next().await {
                    if let Message::Binary(packet) = message
                        && heard.send((STREAM, packet)).await.is_err()
                    {
                        break;
                    }
                }
            };
            let write = async {
                loop {
                    let message = match tokio::time::timeout(KEEP_ALIVE, out.recv()).await {
                        Ok(Some((_, packet))) => Message::Binary(packet),
                        Ok(None) => break,
                        Err(_) => Message::Ping(Bytes::new()),
                    };
                    if writing.send(message).await.is_err() {
                        break;
                    }
                }
            };
            tokio::select! {
                () = read => {}
                () = write => {}
                () = stopped.cancelled() => {}
            }
        });
        Self { to, from, datagrams: false, address: None, writer, stop: stop.drop_guard() }
    }
}

/// Cuts frames out of a stream. Signs of life are swallowed.
#[derive(Debug)]
pub(super) struct FrameReader(Cutter<Frames>);

impl FrameReader {
    pub(super) fn new(max: usize) -> Self {
        Self(Cutter::new(Frames::new(max)))
    }

    /// The next one; nothing at the end. Safe to drop while waiting.
    pub(super) async fn next(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Bytes>> {
        loop {
            match self.0.next_unit().map_err(|bad| io::Error::new(io::ErrorKind::InvalidData, bad))? {
                Some(unit) if unit.len() > PREFIX => return Ok(Some(unit.slice(PREFIX..))),
                Some(_) => continue,
                None => {}
            }
            let buffer: &mut BytesMut = self.0.buffer();
            buffer.reserve(4 * 1_024);
            if stream.read_buf(buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

/// Writes a frame.
pub(super) async fn write_frame(stream: &mut (impl AsyncWrite + Unpin), body: &[u8]) -> io::Result<()> {
    let frame = frame(body).ok_or(io::ErrorKind::InvalidInput)?;
    stream.write_all(&frame).await?;
    stream.flush().await
}

/// A member of a group.
#[derive(Debug)]
pub struct Peer {
    group: Group,
    carrier: Carrier,
    clock: Clock,
    tick: Interval,
    events: VecDeque<Event>,
}

impl Peer {
    /// Somebody with new keys, who is in no group yet. Whether `group` is signed is found out when it lets them in.
    #[must_use]
    pub fn newcomer(group: GroupId, name: &str, rules: Rules, carrier: Carrier, clock: Clock) -> Self {
        let pair = sign::Pair::new(&Secret::random());
        let own = Own::new(Secret::random(), Some(pair), 0, name);
        let rules = Rules { datagrams: carrier.datagrams, ..rules };
        Self::new(Group::new(group, Mode::Signed, rules, own, clock.now(), dice()), carrier, clock)
    }

    /// This member, on this carrier.
    #[must_use]
    pub fn new(group: Group, carrier: Carrier, clock: Clock) -> Self {
        Self { group, carrier, clock, tick: tokio::time::interval(TICK), events: VecDeque::new() }
    }

    /// What it knows.
    #[must_use]
    pub const fn group(&self) -> &Group {
        &self.group
    }

    /// Where its datagrams come from.
    #[must_use]
    pub const fn address(&self) -> Option<SocketAddr> {
        self.carrier.address
    }

    /// The way to a hub: its address for datagrams; on a stream there is one way only.
    #[must_use]
    pub const fn way(&self, hub: SocketAddr) -> Endpoint {
        if self.carrier.datagrams { Endpoint::Udp(hub) } else { STREAM }
    }

    /// Asks for something.
    ///
    /// # Errors
    /// [`Refused`] says why it is not done.
    pub fn command(&mut self, command: Command) -> Result<(), Refused> {
        let step = self.group.command(self.clock.now(), command)?;
        self.take(step);
        Ok(())
    }

    /// What happens next; nothing when the connection is over. Safe to drop while waiting.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            let step = tokio::select! {
                heard = self.carrier.from.recv() => {
                    let (from, packet) = heard?;
                    self.group.handle(self.clock.now(), Input::Packet(from, &packet))
                }
                _ = self.tick.tick() => self.group.handle(self.clock.now(), Input::Tick),
            };
            self.take(step);
        }
    }

    /// What happened already.
    pub fn happened(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Leaves, and waits until that is said.
    pub async fn leave(mut self) {
        let me = self.group.me().id();
        // Who is not in has nobody to tell.
        let _alone = self.command(Command::Leave(me));
        let Carrier { to, writer, stop, .. } = self.carrier;
        drop(to);
        let _written = tokio::time::timeout(LEAVE_WITHIN, writer).await;
        drop(stop);
    }

    fn take(&mut self, step: Step) {
        // Nothing is kept: whoever starts again comes with new keys (spec 4.1).
        for (to, packet) in step.sends {
            let _full = self.carrier.to.try_send((to, packet.into()));
        }
        self.events.extend(step.events);
    }
}
