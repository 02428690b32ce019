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
//!
//! How a connection ends depends on who ends it. What its client said before it went is done like everything else. One that is
//! cut, or whose server stops, loses its transport without a word, once everything it asked for is answered: the usual clients
//! then come back by themselves, and do not when they are told to go (`41`), as only strangers and floods are.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde_json::value::RawValue;
use socketioxide::adapter::LocalAdapter;
use socketioxide::extract::{AckSender, Event};
use socketioxide::handler::{FromConnectParts, FromMessage, FromMessageParts, Value};
use socketioxide::socket::Socket;
use socketioxide::{SendError, SocketError};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use super::actor::{Asked, Mail};
use super::gate::{Flow, Gate, Tap, Who};
use super::line::Line;
use crate::chat::dm::state::ConnId;
use crate::chat::dm::wire::{About, Code, Envelope, Refusal, Request};
use crate::metrics::{self, Presence, Room};
use crate::time::Clock;

/// Events of a connection that may wait.
const QUEUE_MAX: usize = 4_096;
/// What these may take, in bytes, unless it is one alone.
const QUEUE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How often somebody who has to go and does not read is told so again.
const TELL_AGAIN: Duration = Duration::from_millis(50);
/// How long what was said last may take to get out before what carries it is closed.
const FAREWELL: Duration = Duration::from_millis(250);
/// How long a session may go on that everybody has left who was connected on it.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How long it may take until everything is answered that somebody asked for who has to go.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

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
    line: Arc<Line>,
    /// Not owned: the library's connection owns this.
    socket: Weak<Socket<LocalAdapter>>,
}

impl Wire {
    /// Somebody has logged in.
    pub(super) fn is_known(&self) {
        self.0.known.store(true, Ordering::Relaxed);
    }

    /// Sends a notification. `false` when the connection is cut, perhaps because of it.
    pub(super) fn say(&self, event: &str, said: &RawValue) -> bool {
        let Some(socket) = self.0.socket.upgrade() else { return true };
        self.fits(said) && self.went(socket.emit(event, said))
    }

    /// Sends an answer. `false` when the connection is cut, perhaps because of it.
    pub(super) fn answer(&self, ack: AckSender, answer: &Envelope) -> bool {
        self.fits(&answer.result) && self.went(ack.send(answer))
    }

    /// Nothing is said behind a gap.
    fn fits(&self, said: &RawValue) -> bool {
        if self.is_cut() {
            return false;
        }
        let fits = self.0.line.unsent.waits(said.get().len());
        if !fits {
            info!("a client does not read what it is sent, and is disconnected");
            self.cut();
        }
        fits
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

    /// Whether it has been ended.
    pub(super) fn is_cut(&self) -> bool {
        self.0.cut.is_cancelled()
    }

    /// Its client is gone.
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

/// What came in one event, and the line it came on: the library's connection may be gone by then.
struct Packet {
    wire: Wire,
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
        if let Value::Str(_, Some(attached)) = &mut args {
            // No event has any: that there were some is what it is refused for, and nobody counts what they take.
            *attached = Default::default();
        }
        if let Some(wire) = socket.extensions.get::<Wire>() {
            wire.clone().take(Packet { wire, event, bytes: args.len(), args, ack });
        }
        Ok(Self)
    }
}

/// A request that came, read or not.
#[expect(clippy::large_enum_variant, reason = "it goes to the actor in a box, with everything else of a request")]
pub(super) enum Heard {
    Read(Result<Request, Misread>),
    /// Nobody is known on the connection yet: what only those may ask for who are is not worth the work before somebody is.
    Unread(Value),
}

/// Something that is no request.
pub(super) struct Misread {
    pub(super) code: Code,
    /// What it is about, as far as that can be read: whoever may not know anything of that is told so before anything else.
    pub(super) about: About,
}

impl From<Code> for Misread {
    fn from(code: Code) -> Self {
        Self { code, about: About::Nothing }
    }
}

/// What is asked for. Also when reading it panics, there is an answer.
pub(super) fn read(event: &str, args: &Value) -> Result<Request, Misread> {
    let Value::Str(text, None) = args else { return Err(Code::BadRequest.into()) };
    let reads = || {
        let misread = |code| Misread { code, about: About::of(event, text.as_str()) };
        Request::read(event, text.as_str()).map_err(misread)
    };
    catch_unwind(AssertUnwindSafe(reads)).unwrap_or_else(|_panic| {
        error!("reading a request panicked");
        Err(Code::Internal.into())
    })
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
        // Never without: the door puts it there.
        let Some(line) = socket.req_parts().extensions.get::<Arc<Line>>().cloned() else { return Err(TooFast) };
        // The first connection of a session was counted when that was opened.
        if line.enters() && !self.gate.may_connect(line.from) {
            line.leaves();
            return Err(TooFast);
        }
        let (queue, events) = mpsc::channel(QUEUE_MAX);
        let inner = Inner {
            queue,
            waiting: Arc::default(),
            known: Arc::default(),
            cut: CancellationToken::new(),
            gone: CancellationToken::new(),
            line: Arc::clone(&line),
            socket: Arc::downgrade(socket),
        };
        let worker = Worker {
            hall: Arc::clone(self),
            conn,
            who: self.gate.who(conn, line.from),
            waiting: Arc::clone(&inner.waiting),
            known: Arc::clone(&inner.known),
            cut: inner.cut.clone(),
            gone: inner.gone.clone(),
            line,
            socket: Weak::clone(&inner.socket),
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

/// Why nothing more is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// The client went.
    Gone,
    /// It missed something.
    Cut,
    /// We stop.
    Stop,
    /// It is a stranger or a flood, and is told to go.
    Refused,
}

/// Tells the actor that a connection is gone, however its worker ends; without a worker it is none.
struct Leaving {
    mailbox: mpsc::Sender<Mail>,
    conn: ConnId,
    line: Arc<Line>,
    is_told: bool,
}

impl Leaving {
    /// Waits until everything is answered that was asked for before, within bounds.
    async fn tell(mut self) {
        let (heard, answered) = oneshot::channel();
        let told = async {
            self.mailbox.send(Mail::Left(self.conn, Some(heard))).await.map_err(drop)?;
            self.is_told = true;
            answered.await.map_err(drop)
        };
        // Never known to be answered: the batch failed, or we are slow. It ends all the same.
        let _in_vain = tokio::time::timeout(ANSWERED_WITHIN, told).await;
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if self.is_told {
            return;
        }
        self.line.close();
        if let Err(TrySendError::Full(left)) = self.mailbox.try_send(Mail::Left(self.conn, None)) {
            let mailbox = self.mailbox.clone();
            tokio::spawn(async move { mailbox.send(left).await });
        }
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
    line: Arc<Line>,
    socket: Weak<Socket<LocalAdapter>>,
}

impl Worker {
    async fn run(self, mut events: mpsc::Receiver<Packet>) {
        let metrics = metrics::get();
        let (opened, closed) = (metrics.chat_opened.of(Room::Dm), metrics.chat_closed.of(Room::Dm));
        let _counted = Presence::new(metrics.chat_connections.of(Room::Dm), Some(opened), Some(closed));
        let (mailbox, line) = (self.hall.mailbox.clone(), Arc::clone(&self.line));
        let leaving = Leaving { mailbox, conn: self.conn, line, is_told: false };
        let mut ending = self.hear(&mut events).await;
        events.close();
        // Dropped with what is in it: each packet holds the line, and the line the queue.
        while events.try_recv().is_ok() {}
        if self.cut.is_cancelled() {
            ending = Ending::Cut;
        }
        // Nothing of this connection comes behind that.
        leaving.tell().await;
        self.end(ending).await;
    }

    async fn hear(&self, events: &mut mpsc::Receiver<Packet>) -> Ending {
        let tap = self.hall.gate.tap();
        let stranger_until = self.hall.clock.now().monotonic.saturating_add(self.hall.stranger_max);
        let mut is_stranger = true;
        loop {
            let packet = tokio::select! {
                biased;
                () = self.cut.cancelled() => return Ending::Cut,
                () = self.gone.cancelled() => break,
                () = self.hall.stop.cancelled() => return Ending::Stop,
                () = self.hall.clock.sleep_until(Some(stranger_until)), if is_stranger => {
                    is_stranger = false;
                    if !self.known.load(Ordering::Relaxed) {
                        debug!("nobody logged in");
                        return Ending::Refused;
                    }
                    continue;
                }
                packet = events.recv() => match packet {
                    Some(packet) => packet,
                    None => return Ending::Gone,
                },
            };
            if self.hand_over(&tap, packet).await.is_none() {
                return Ending::Refused;
            }
        }
        // It went; what it said before that counts.
        events.close();
        while let Ok(packet) = events.try_recv()
            && !self.cut.is_cancelled()
            && self.hand_over(&tap, packet).await.is_some()
        {}
        Ending::Gone
    }

    /// `None` when nobody listens any more.
    async fn hand_over(&self, tap: &Tap, packet: Packet) -> Option<()> {
        let Packet { wire, event, args, bytes, ack } = packet;
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        match tap.event(bytes) {
            Flow::Flood => {
                debug!("a flood");
                return None;
            }
            Flow::TooFast => {
                // Cut when that does not fit, which is seen next.
                wire.answer(ack, &Envelope::from(Err(Code::RateLimited.into())));
                return Some(());
            }
            Flow::Heard => {}
        }
        let is_for_all = matches!(&*event, "login" | "login_challenge_response" | "register" | "username_exists");
        let heard = match is_for_all || self.known.load(Ordering::Relaxed) {
            true => Heard::Read(read(&event, &args)),
            false => Heard::Unread(args),
        };
        let asked = Asked { conn: self.conn, who: self.who, wire, event, ack, heard };
        self.hall.mailbox.send(Mail::Asked(Box::new(asked))).await.ok()
    }

    async fn end(&self, ending: Ending) {
        match ending {
            Ending::Gone => {
                self.line.leaves();
                // It may have gone from here alone, and keep what is below, with nobody to look after it.
                let (line, stop) = (Arc::downgrade(&self.line), self.hall.stop.clone());
                self.hall.tracker.spawn(async move {
                    let _stopped = stop.run_until_cancelled(tokio::time::sleep(IDLE_MAX)).await;
                    if let Some(line) = line.upgrade().filter(|line| line.is_idle()) {
                        line.close();
                    }
                });
            }
            Ending::Cut => self.line.close(),
            Ending::Stop => {
                tokio::time::sleep(FAREWELL).await;
                self.line.close();
            }
            Ending::Refused => {
                let told = async {
                    while let Some(socket) = self.socket.upgrade().filter(|socket| socket.connected()) {
                        if socket.disconnect().is_ok() {
                            break;
                        }
                        tokio::time::sleep(TELL_AGAIN).await;
                    }
                };
                let _in_vain = tokio::time::timeout(FAREWELL, told).await;
                tokio::time::sleep(FAREWELL).await;
                self.line.close();
            }
        }
    }
}

#[cfg(test)]
impl Wire {
    /// For tests of those who hold one.
    pub(super) fn to_nobody() -> Self {
        let (cut, gone) = (CancellationToken::new(), CancellationToken::new());
        let (waiting, known) = (Arc::default(), Arc::default());
        let (queue, line, socket) = (mpsc::channel(1).0, Line::of_nobody(), Weak::new());
        Self(Arc::new(Inner { queue, waiting, known, cut, gone, line, socket }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_panicked_left_its_user_there_for_ever() {
        let (mailbox, mut mail) = mpsc::channel(1);
        let line = Line::of_nobody();
        let leaving =
            |n| Leaving { mailbox: mailbox.clone(), conn: ConnId(n), line: Arc::clone(&line), is_told: false };
        drop((leaving(1), leaving(2)));
        assert!(line.is_closed(), "nobody answers on it any more");
        for _ in 0..2 {
            assert!(matches!(mail.recv().await, Some(Mail::Left(_, None))), "also when there was no room for it");
        }
        let (heard, ()) = tokio::join!(mail.recv(), leaving(3).tell());
        // Nobody answers: that it was told is enough.
        assert!(matches!(heard, Some(Mail::Left(ConnId(3), Some(_)))));
        assert!(mail.try_recv().is_err(), "once");
    }
}
