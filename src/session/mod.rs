//! One device connection's life: handshake, a seat, two directions at once, one end.
//!
//! ```text
//! run ─ handshake ─ seat ─┬─ inbound:  socket → group, socket → chat server
//!                         ├─ outbound: chat server → socket, group → socket
//!                         └─ the mediator stops
//! ```
//!
//! Whatever happens first is the [`Ending`]. Then, always in this order: the connection to the chat server is closed, the
//! group is told, the device is told. Decisions about the protocol are not made here: `handshake` and the group make them.
//!
//! Traffic with the chat server and traffic with the group share the socket but not their queues: one frame of each in
//! turn, so that a long backlog cannot starve the chat server's echo replies, for which devices wait ten seconds only.

mod brake;
pub mod ending;
pub mod handshake;
mod inbound;
mod outbound;
pub mod socket;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket};
use bytes::BytesMut;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::sync::{oneshot, watch};
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use tracing::field::Empty;

pub use self::brake::Rates;
pub use self::ending::{Culprit, Ending};
use self::handshake::{AwaitClientHello, Progress};
use self::socket::{Frame, Sink, Stream};
use crate::capture::watch::Line;
use crate::capture::{Captures, ClosedBy};
use crate::crypto::{Secret, random};
use crate::hub::{Admitted, Challenge, Hub, JoinError, Seat};
use crate::log::{Occasionally, SPANS};
use crate::metrics::{self, Bounded as _, Handshake, Presence, Slowed};
use crate::store::StoreError;
use crate::time::Clock;
use crate::upstream::{Dial, Directory, UpstreamLimits};
use crate::wire::d2m::{ClientUrlInfo, CloseCode, FromDevice};

/// What all sessions of a mediator share.
#[derive(Debug, Clone)]
pub struct Context {
    /// Seats are given here.
    pub hub: Hub,
    /// Chat servers are found here.
    pub directory: Directory,
    /// Chat servers are reached by this.
    pub dial: Arc<dyn Dial>,
    /// Bounds of a connection to a chat server.
    pub upstream: UpstreamLimits,
    /// The clocks.
    pub clock: Clock,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// How fast devices are listened to.
    pub rates: Rates,
    /// Keeps strangers from filling the log.
    pub said: Arc<Occasionally<Handshake>>,
    /// Groups that an operator records.
    pub captures: Captures,
    /// Keeps devices that send too much from filling the log.
    pub slowed: Arc<Occasionally<Slowed>>,
}

/// How long a device may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// From the connection to a valid ClientHello (spec 3.3).
    pub handshake: Duration,
    /// Without any frame from the device (spec 8.3), and without its taking a byte of what is written to it.
    pub idle: Duration,
    /// Between pings, which keep the path open. No pong is ever required: iOS sends none.
    pub ping_every: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { handshake: Duration::from_secs(20), idle: Duration::from_secs(120), ping_every: Duration::from_secs(30) }
    }
}

/// Runs a connection from its first byte to its last. `leave` is cancelled when the mediator wants it to end; `place` is given
/// back when it has.
///
/// There is one of these futures for each connection: neither the whole socket nor another future around it has a place in it.
pub fn run(
    socket: WebSocket,
    url: ClientUrlInfo,
    context: Arc<Context>,
    leave: CancellationToken,
    place: impl Send + 'static,
) -> impl Future<Output = ()> + Send {
    let (sink, stream) = socket.split();
    run_halves(sink, stream, url, context, leave, place)
}

async fn run_halves<P: Send + 'static>(
    mut sink: Sink,
    mut stream: Stream,
    url: ClientUrlInfo,
    context: Arc<Context>,
    leave: CancellationToken,
    _place: P,
) {
    let metrics = metrics::get();
    let (opened, closed) = (&metrics.connections_opened, &metrics.connections_closed);
    let _counted = Presence::new(&metrics.connections, Some(opened), Some(closed));
    let span =
        tracing::debug_span!(target: SPANS, "connection", group = %url.device_group_id, code = Empty, culprit = Empty);
    let line = context.captures.line(&url);
    let ended = run_inner(&mut sink, &mut stream, &line, &context, &leave).instrument(span.clone()).await;
    // What comes before admission everybody can cause who reaches the door.
    let others = ended.as_ref().map_or_else(|early| context.said.may_say(early.of_handshake()), |_| Some(0));
    let ending = ended.unwrap_or_else(|early| early);
    span.record("code", ending.close_code().map(CloseCode::code));
    span.record("culprit", ending.culprit().value());
    let (group, code) = (url.device_group_id, ending.close_code().map(|code| code.code()));
    let culprit = ending.culprit();
    match others {
        Some(others) => tracing::info!(%group, code, ?culprit, ?ending, others, "connection ended"),
        None => tracing::debug!(%group, code, ?culprit, ?ending, "connection ended"),
    }
    match (&ending, code) {
        (Ending::ClosedByDevice(code), _) => line.close(ClosedBy::Device, *code, ""),
        (_, Some(code)) => line.close(ClosedBy::Mediator, Some(code), &ending.reason()),
        (_, None) => line.close(ClosedBy::Nobody, None, ""),
    }
    socket::close(sink, stream, &ending).await;
    // With the presence above and nothing to wait for in between, so that the sums hold.
    metrics.closes.of(ending.close_code()).increment(1);
    metrics.endings.of(ending.culprit()).increment(1);
}

pin_project_lite::pin_project! {
    /// See [`at_most`].
    struct AtMost<F> {
        limit: Duration,
        #[pin]
        future: F,
        #[pin]
        late: Option<Sleep>,
    }
}

/// [`timeout`] for what is mostly there already: the clock is asked only when there is something to wait for. `None`: too late.
const fn at_most<F: Future>(limit: Duration, future: F) -> AtMost<F> {
    AtMost { limit, future, late: None }
}

/// No `async fn`: that would take the place of `future` twice, in every connection.
impl<F: Future> Future for AtMost<F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Poll::Ready(done) = this.future.poll(cx) {
            return Poll::Ready(Some(done));
        }
        if this.late.is_none() {
            this.late.set(Some(sleep(*this.limit)));
        }
        this.late.as_pin_mut().map_or(Poll::Pending, |late| late.poll(cx)).map(|()| None)
    }
}

/// `Err`: it ended before it was admitted.
async fn run_inner(
    sink: &mut Sink,
    stream: &mut Stream,
    line: &Line,
    context: &Context,
    leave: &CancellationToken,
) -> Result<Ending, Ending> {
    let (began, span) = (context.clock.now(), tracing::debug_span!(target: SPANS, "handshake"));
    let shaken = tokio::select! {
        shaken = timeout(context.timeouts.handshake, shake_hands(sink, stream, line).instrument(span)) => {
            shaken.unwrap_or(Err(Ending::HandshakeTimeout))
        }
        () = leave.cancelled() => Err(Ending::ShuttingDown),
    };
    let (admitted, early) = match shaken {
        Ok(admitted) => {
            let took = context.clock.now().monotonic.saturating_sub(began.monotonic);
            metrics::get().handshake_seconds.record(took.as_secs_f64());
            metrics::get().handshakes.of(Handshake::Admitted).increment(1);
            admitted
        }
        Err(ending) => {
            metrics::get().handshakes.of(ending.of_handshake()).increment(1);
            return Err(ending);
        }
    };
    let joined = tokio::select! {
        joined = context.hub.join(admitted) => joined,
        // A group that moves, or a database that hangs, may take its time. Whoever comes late finds nobody, and leaves again.
        () = leave.cancelled() => return Ok(Ending::ShuttingDown),
    };
    Ok(match joined {
        Ok(seat) => established(sink, stream, line, context, leave, seat, early).await,
        Err(error) => {
            tracing::warn!(group = %line.url().device_group_id, %error, "no seat for a device");
            match error {
                JoinError::Elsewhere(_) | JoinError::Moving | JoinError::Store(StoreError::Lost) => Ending::GroupMoved,
                JoinError::Store(_) | JoinError::Unreachable => Ending::GroupFailed,
            }
        }
    })
}

async fn shake_hands(sink: &mut Sink, stream: &mut Stream, line: &Line) -> Result<(Admitted, BytesMut), Ending> {
    let challenge = Challenge::new(Secret::random(), random::bytes());
    let (mut state, hello) = AwaitClientHello::start(line.url().device_group_id, challenge);
    let hello = hello.encode();
    line.to_device(&hello);
    sink.send(Message::Binary(hello)).await.map_err(|_| Ending::Lost)?;
    loop {
        let Frame::Container(message) = socket::next(stream).await? else { continue };
        line.from_device(&message);
        let payload = FromDevice::decode(&message).map_err(Ending::BadContainer)?;
        if let FromDevice::ClientHello(hello) = &payload {
            line.is_of(hello.device_id);
        }
        state = match state.handle(payload)? {
            Progress::Waiting(state) => state,
            Progress::Admitted(admitted, early) => return Ok((admitted, early)),
        };
    }
}

/// Both directions, until something ends the connection.
async fn established(
    sink: &mut Sink,
    stream: &mut Stream,
    line: &Line,
    context: &Context,
    leave: &CancellationToken,
    seat: Seat,
    early: BytesMut,
) -> Ending {
    let Seat { outbox, mut place } = seat;
    let (introduced, hear_introduced) = watch::channel(false);
    let (opened, hear_opened) = oneshot::channel();
    let ending = {
        let inbound = inbound::run(stream, line, &place, context, early, hear_introduced, opened);
        let outbound = outbound::run(sink, line, outbox, &place.cut, context.timeouts, &introduced, hear_opened);
        tokio::select! {
            // By order, so that a simulated run can be repeated. Outbound first: it has the group's last words.
            biased;
            ending = outbound => ending,
            ending = inbound => ending,
            () = leave.cancelled() => Ending::ShuttingDown,
        }
    };
    if *introduced.borrow() {
        place.introduced();
    }
    // The chat server sees the end before the group does, and with it the next leader or the same device's next
    // connection.
    place.cut.cancel();
    place.proxies.close();
    place.proxies.wait().await;
    drop(place);
    ending
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size of what a function of six arguments returns.
    fn size<A, B, C, D, E, F, Out>(_: impl Fn(A, B, C, D, E, F) -> Out) -> usize {
        size_of::<Out>()
    }

    /// One of the largest things that a connected device costs; see the budgets in `tests/bench_smoke.rs`.
    #[test]
    fn a_session_is_small() {
        let size = size(run_halves::<()>);
        assert!(size <= 3_840, "{size} bytes");
    }
}
