//! Between Socket.IO and the task that decides: one connection's line in, in the order of arrival, and its way out.
//!
//! Three things here are there because of how the library works (spec 8.4). Everything is registered in a middleware, which
//! is done before the client hears that it is connected: registered later, what it says at once would be lost. A handler runs
//! in a task of its own, in no order; but what extracts its arguments runs in the order of the packets, so that is where an
//! event gets into the connection's queue, and one worker empties it. And arguments that a handler's type cannot take would go
//! unanswered; so the text is taken as it is and read by us.
//!
//! Whoever reads too slowly fills the send buffer; then a notification does not get into it, and the connection is cut: a
//! client that missed something has to come back and look. A packet that does not fit our own queue cuts, too: it comes from
//! somebody who does not wait for answers.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde::Serialize;
use socketioxide::adapter::LocalAdapter;
use socketioxide::extract::{AckSender, Event};
use socketioxide::handler::{FromConnectParts, FromMessage, FromMessageParts, Value};
use socketioxide::socket::Socket;
use socketioxide::{SendError, SocketError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::actor::{Asked, Mail};
use super::gate::{Flow, Gate, Who};
use crate::chat::dm::state::ConnId;
use crate::chat::dm::wire::{Code, Envelope, Refusal, Request};
use crate::metrics::{self, Presence, Room};
use crate::time::Clock;

/// Events of a connection that may wait.
const QUEUE_MAX: usize = 4_096;
/// What these may take, in bytes, unless it is one alone.
const QUEUE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How often somebody who is cut off and does not read is told so again.
const CUT_AGAIN: Duration = Duration::from_millis(50);
/// How long the farewell may take before the connection below is closed.
const FAREWELL: Duration = Duration::from_millis(250);

/// What the door knows of a connection: put beside each of its requests.
#[derive(Debug, Clone)]
pub(super) struct Below {
    pub(super) from: IpAddr,
    /// Closes it.
    pub(super) cut: CancellationToken,
}

/// One connection, for those who speak to it. Clones are handles of the same one.
#[derive(Debug, Clone)]
pub(super) struct Wire(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    queue: mpsc::Sender<Packet>,
    /// What waits in it, in bytes.
    waiting: Arc<AtomicUsize>,
    known: Arc<AtomicBool>,
    cut: CancellationToken,
    gone: CancellationToken,
    /// Not owned: the library's connection owns this.
    socket: Weak<Socket<LocalAdapter>>,
}

impl Wire {
    /// Somebody has logged in.
    pub(super) fn is_known(&self) {
        self.0.known.store(true, Ordering::Relaxed);
    }

    /// Sends a notification. `false` when it did not fit any more, and the connection is cut.
    pub(super) fn say(&self, event: &str, said: &(impl Serialize + ?Sized)) -> bool {
        let Some(socket) = self.0.socket.upgrade() else { return true };
        self.went(socket.emit(event, said))
    }

    /// Sends an answer. `false` when it did not fit any more, and the connection is cut.
    pub(super) fn answer(&self, ack: AckSender, answer: &Envelope) -> bool {
        self.went(ack.send(answer))
    }

    fn went(&self, sent: Result<(), SendError>) -> bool {
        match sent {
            Ok(()) | Err(SendError::Socket(SocketError::Closed)) => true,
            Err(error) => {
                info!(%error, "a client does not read what it is sent, and is disconnected");
                self.cut();
                false
            }
        }
    }

    /// Ends it.
    pub(super) fn cut(&self) {
        if !self.0.cut.is_cancelled() {
            metrics::get().dm_cut.increment(1);
        }
        self.0.cut.cancel();
    }

    /// It has ended.
    pub(super) fn is_gone(&self) {
        self.0.gone.cancel();
    }

    fn take(&self, packet: Packet) {
        let bytes = packet.bytes;
        let waiting = self.0.waiting.fetch_add(bytes, Ordering::Relaxed);
        if (waiting > 0 && waiting.saturating_add(bytes) > QUEUE_BYTES_MAX) || self.0.queue.try_send(packet).is_err() {
            debug!("a client does not wait for answers, and is disconnected");
            self.cut();
        }
    }
}

/// What came in one event.
struct Packet {
    event: String,
    args: Value,
    bytes: usize,
    ack: AckSender,
}

impl std::fmt::Debug for Packet {
    /// Without what is in it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packet({} bytes)", self.bytes)
    }
}

/// An event that is in its connection's queue.
pub(super) struct Queued;

impl FromMessage<LocalAdapter> for Queued {
    type Error = Infallible;

    fn from_message(
        socket: Arc<Socket<LocalAdapter>>,
        mut args: Value,
        ack_id: Option<i64>,
    ) -> Result<Self, Infallible> {
        let event = Event::from_message_parts(&socket, &mut args, &ack_id).map(|Event(name)| name).unwrap_or_default();
        let Ok(ack) = AckSender::from_message_parts(&socket, &mut args, &ack_id);
        if let Some(wire) = socket.extensions.get::<Wire>() {
            wire.take(Packet { event, bytes: args.len(), args, ack });
        }
        Ok(Self)
    }
}

/// A connection of the library's that is being made.
pub(super) struct Connecting(pub(super) Arc<Socket<LocalAdapter>>);

impl FromConnectParts<LocalAdapter> for Connecting {
    type Error = Infallible;

    fn from_connect_parts(socket: &Arc<Socket<LocalAdapter>>, _auth: &Option<Value>) -> Result<Self, Infallible> {
        Ok(Self(Arc::clone(socket)))
    }
}

/// Where connections lead.
#[derive(Debug)]
pub(super) struct Hall {
    pub(super) gate: Arc<Gate>,
    pub(super) mailbox: mpsc::Sender<Mail>,
    pub(super) next_conn: std::sync::atomic::AtomicU64,
    pub(super) stranger_max: Duration,
    pub(super) clock: Clock,
    pub(super) tracker: tokio_util::task::TaskTracker,
    /// Cancelled when everybody is to go.
    pub(super) stop: CancellationToken,
}

/// Why nobody is let in.
#[derive(Debug, thiserror::Error)]
#[error("{}", Refusal::from(Code::RateLimited).text())]
pub(super) struct TooFast;

impl Hall {
    /// Lets a connection in: from here on what it says is heard.
    pub(super) fn enter(self: &Arc<Self>, socket: &Arc<Socket<LocalAdapter>>) -> Result<(), TooFast> {
        let conn = ConnId(self.next_conn.fetch_add(1, Ordering::Relaxed));
        let below = socket.req_parts().extensions.get::<Below>().cloned();
        // Never without: the door puts it there.
        let Some(Below { from, cut: below }) = below else { return Err(TooFast) };
        let is_own = socket.req_parts().uri.query().is_some_and(|query| query.contains("transport=websocket"));
        let who = self.gate.who(conn, from);
        if !self.gate.may_connect(who) {
            return Err(TooFast);
        }
        let (queue, events) = mpsc::channel(QUEUE_MAX);
        let inner = Inner {
            queue,
            waiting: Arc::default(),
            known: Arc::default(),
            cut: CancellationToken::new(),
            gone: CancellationToken::new(),
            socket: Arc::downgrade(socket),
        };
        let worker = Worker {
            hall: Arc::clone(self),
            conn,
            who,
            waiting: Arc::clone(&inner.waiting),
            known: Arc::clone(&inner.known),
            cut: inner.cut.clone(),
            gone: inner.gone.clone(),
            socket: Weak::clone(&inner.socket),
            below: is_own.then_some(below),
        };
        let wire = Wire(Arc::new(inner));
        socket.extensions.insert(wire.clone());
        socket.on_fallback(async |_: Queued| {});
        socket.on_disconnect(move || {
            wire.is_gone();
            async {}
        });
        self.tracker.spawn(worker.run(events));
        Ok(())
    }
}

/// Hands over one event at a time, in order. Does not keep the connection open.
struct Worker {
    hall: Arc<Hall>,
    conn: ConnId,
    who: Who,
    waiting: Arc<AtomicUsize>,
    known: Arc<AtomicBool>,
    cut: CancellationToken,
    gone: CancellationToken,
    socket: Weak<Socket<LocalAdapter>>,
    /// Closes what is below, where nobody else uses that: a proxy sends requests of many through one connection.
    below: Option<CancellationToken>,
}

impl Worker {
    async fn run(self, mut events: mpsc::Receiver<Packet>) {
        let metrics = metrics::get();
        let (opened, closed) = (metrics.chat_opened.of(Room::Dm), metrics.chat_closed.of(Room::Dm));
        let _counted = Presence::new(metrics.chat_connections.of(Room::Dm), Some(opened), Some(closed));
        let tap = self.hall.gate.tap();
        let stranger_until = self.hall.clock.now().monotonic.saturating_add(self.hall.stranger_max);
        let mut is_stranger = true;
        loop {
            let packet = tokio::select! {
                biased;
                () = self.gone.cancelled() => break,
                () = self.cut.cancelled() => break,
                () = self.hall.stop.cancelled() => break,
                () = self.hall.clock.sleep_until(Some(stranger_until)), if is_stranger => {
                    is_stranger = false;
                    if !self.known.load(Ordering::Relaxed) {
                        debug!("nobody logged in");
                        break;
                    }
                    continue;
                }
                packet = events.recv() => match packet {
                    Some(packet) => packet,
                    None => break,
                },
            };
            self.waiting.fetch_sub(packet.bytes, Ordering::Relaxed);
            if self.hand_over(&tap, packet).await.is_none() {
                break;
            }
        }
        // Nothing of this connection comes behind that.
        let _closed = self.hall.mailbox.send(Mail::Left(self.conn)).await;
        self.disconnect().await;
    }

    /// `None` when nobody listens any more.
    async fn hand_over(&self, tap: &super::gate::Tap, packet: Packet) -> Option<()> {
        let wire = self.socket.upgrade()?.extensions.get::<Wire>()?;
        let flow = tap.event();
        if flow == Flow::Flood {
            debug!("a flood");
            return None;
        }
        let request = match (flow, &packet.args) {
            (Flow::TooFast, _) => Err(Code::RateLimited),
            (_, Value::Str(_, Some(_)) | Value::Bytes(_)) => Err(Code::BadRequest),
            (_, Value::Str(text, None)) => Request::read(&packet.event, text.as_str()),
        };
        let Packet { event, ack, .. } = packet;
        if flow == Flow::TooFast {
            let refused = Envelope::from(Err(Code::RateLimited.into()));
            return wire.answer(ack, &refused).then_some(());
        }
        let asked = Asked { conn: self.conn, who: self.who, wire, event, ack, request };
        self.hall.mailbox.send(Mail::Asked(Box::new(asked))).await.ok()
    }

    /// Tells the client, and then closes what is below. Somebody who does not read cannot be told, and is closed all the same.
    async fn disconnect(&self) {
        let was_gone = self.gone.is_cancelled();
        let told = async {
            while let Some(socket) = self.socket.upgrade().filter(|socket| socket.connected()) {
                if socket.disconnect().is_ok() {
                    break;
                }
                tokio::time::sleep(CUT_AGAIN).await;
            }
        };
        let _in_vain = tokio::time::timeout(FAREWELL, told).await;
        if let Some(below) = self.below.as_ref().filter(|_| !was_gone || self.cut.is_cancelled()) {
            // What was written last is on its way.
            tokio::time::sleep(FAREWELL).await;
            below.cancel();
        }
    }
}
