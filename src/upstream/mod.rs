//! The pipe to the chat server: one TCP connection per device connection, never shared, never reused (D2M spec 9).
//!
//! | file | holds |
//! |---|---|
//! | [`directory`] | which chat server stands behind which server group |
//! | [`framer`] | the seams in what a chat server sends |
//! | [`pipe`] | a channel whose bound is bytes |
//!
//! One task owns the TCP connection and moves bytes in both directions at once: a chat server that does not read does not
//! stop what it sends, and a device that does not read does not stop what it sends. Whoever is too slow is waited for;
//! what waits is bounded in bytes.
//!
//! Nothing overtakes the end: every unit that was received whole is handed over before [`Event::Ended`], which is how a
//! farewell of the chat server reaches the device ahead of the close. Only the other direction has no such patience: when
//! the device is gone (its [`ToChatServer`] was dropped) or `cut` is cancelled, the TCP connection is dropped at once,
//! because the chat server has to see that before it sees the device's next connection or the next leader's unblock.
//!
//! Groups, slots and leaders are unknown here.

pub mod directory;
pub mod framer;
pub mod pipe;

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::ready;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, Span};

pub use directory::{Directory, Target};
pub use framer::Framing;
pub use pipe::Gone;

use crate::log::SPANS;
use crate::metrics::{self, Connect, Direction, Presence};
use crate::time::Clock;
use crate::wire::delimit::BadUnit;
use framer::Framer;
use pipe::Weigh;

/// How much is read at a time, in bytes. It lies on the stack while bytes are being moved and nowhere while they are not.
const READ: usize = 16 * 1_024;
/// What a device says that goes out with one write, in messages.
const GATHERED_MAX: usize = 64;
/// What makes a batch of one side whole, in bytes: more is handed over as the next one.
pub const BATCH: usize = 16 * 1_024;
/// What one message of a batch costs beside its bytes, in bytes: its place there.
const PER_MESSAGE: usize = 64;

/// How much one upstream may wait and hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpstreamLimits {
    /// Time for finding and reaching the chat server, over all its addresses.
    pub connect_timeout: Duration,
    /// What may wait for the chat server, in bytes.
    pub to_bytes: usize,
    /// What may wait for the device, in bytes.
    pub from_bytes: usize,
}

impl Default for UpstreamLimits {
    /// The numbers of D2M spec 9.
    fn default() -> Self {
        Self { connect_timeout: Duration::from_secs(10), to_bytes: 64 * 1_024, from_bytes: 64 * 1_024 }
    }
}

/// What the chat server did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It sent units, each of which is a payload of its own now, in its container and ready to be sent.
    Payloads(Vec<Bytes>),
    /// The last event: there is no connection (any more).
    Ended(UpstreamEnd),
}

impl Weigh for Event {
    fn bytes(&self) -> usize {
        match self {
            Self::Payloads(payloads) => payloads.bytes(),
            Self::Ended(_) => 0,
        }
    }
}

impl Weigh for Vec<Bytes> {
    fn bytes(&self) -> usize {
        self.iter().map(cost).sum()
    }
}

/// What a message takes of a batch and of the pipe's allowance, in bytes.
pub fn cost(message: &Bytes) -> usize {
    message.len().saturating_add(PER_MESSAGE)
}

/// How a connection to a chat server ends without the device's doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamEnd {
    /// It was never reached: no address, no such name, refused, or too late.
    #[error("the chat server cannot be reached: {0}")]
    Unreachable(io::ErrorKind),
    /// It closed the connection.
    #[error("the chat server closed the connection")]
    Closed,
    /// The connection broke.
    #[error("the connection to the chat server broke: {0}")]
    Failed(io::ErrorKind),
    /// It sent a unit that fits no container.
    #[error("the chat server sent a unit of {len} bytes, too big to proxy")]
    UnitTooBig {
        /// The length it announced, in bytes.
        len: usize,
    },
}

/// A connection to a chat server, about to be made.
#[derive(Debug)]
pub struct Upstream {
    /// What the device says.
    pub to: ToChatServer,
    /// What the chat server says. Closes without [`Event::Ended`] only when the connection was cut from this side.
    pub from: pipe::Receiver<Event>,
}

impl Upstream {
    /// Starts a task that connects to `target` and moves bytes until one side ends or `cut` is cancelled; the end of the
    /// task, and with it of the TCP connection, is waited for through `tracker`.
    #[must_use]
    pub fn open(
        target: Target,
        limits: UpstreamLimits,
        dial: Arc<dyn Dial>,
        tracker: &TaskTracker,
        cut: &CancellationToken,
    ) -> Self {
        let (to, device) = pipe::pipe(limits.to_bytes);
        let (events, from) = pipe::pipe(limits.from_bytes);
        let cut = cut.child_token();
        let to = ToChatServer { queue: to, _hang_up: cut.clone().drop_guard() };
        // A task of its own, in the connection's trace.
        let span = tracing::Span::current();
        tracker.spawn(async move {
            // Leaving this drops the socket; the end is told only after that.
            let end = cut.run_until_cancelled(run(&target, limits, &*dial, device, &events, &span)).await;
            if let Some(Some(end)) = end {
                let _gone = cut.run_until_cancelled(events.send(Event::Ended(end))).await;
            }
        });
        Self { to, from }
    }
}

/// The device's side of the pipe. Dropping it hangs up at once, whatever still waits.
#[derive(Debug)]
pub struct ToChatServer {
    queue: pipe::Sender<Vec<Bytes>>,
    _hang_up: DropGuard,
}

impl ToChatServer {
    /// Waits for room and puts these messages in line. A future that is dropped before it is done has sent none of them.
    ///
    /// # Errors
    /// [`Gone`] when the connection takes no more; [`Event::Ended`] follows or has been received.
    pub async fn send(&self, messages: Vec<Bytes>) -> Result<(), Gone> {
        self.queue.send(messages).await
    }
}

/// One connection's life; `None` when nobody wants to know about its end.
async fn run(
    target: &Target,
    limits: UpstreamLimits,
    dial: &dyn Dial,
    device: pipe::Receiver<Vec<Bytes>>,
    events: &pipe::Sender<Event>,
    connection: &Span,
) -> Option<UpstreamEnd> {
    let span = tracing::debug_span!(target: SPANS, parent: connection, "upstream connect");
    let io = match connect(target, limits.connect_timeout, dial).instrument(span).await {
        Ok(io) => io,
        Err(error) => return Some(UpstreamEnd::Unreachable(error.kind())),
    };
    let _open = Presence::new(&metrics::get().proxy_connections, None, None);
    let (reading, writing) = tokio::io::split(io);
    let mut downward = pin!(to_device(reading, Framer::new(target.framing), events));
    let failed = tokio::select! {
        end = &mut downward => return end.ok(),
        failed = to_chat_server(writing, device) => failed,
    };
    // A write that failed is not the end yet: what the chat server said before is still to be read, and the reading side
    // sees the failure too.
    match downward.await {
        Ok(UpstreamEnd::Closed) => Some(UpstreamEnd::Failed(failed.kind())),
        end => end.ok(),
    }
}

/// Tries the addresses in order; each gets its share of the time, so that one black hole does not hide the next address.
async fn connect(target: &Target, within: Duration, dial: &dyn Dial) -> io::Result<Box<dyn Io>> {
    let (clock, mut attempt) = (Clock::system(), Attempt(Connect::GivenUp));
    let connected = connect_to_any(target, within, dial).await;
    attempt.0 = match &connected {
        Ok(_) => Connect::Connected,
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Connect::TimedOut,
        Err(_) => Connect::Unreachable,
    };
    if connected.is_ok() {
        metrics::get().proxy_connect_seconds.record(clock.now().monotonic.as_secs_f64());
    }
    connected
}

/// Counts an attempt when it is over, also when it was cut short.
struct Attempt(Connect);

impl Drop for Attempt {
    fn drop(&mut self) {
        metrics::get().proxy_connects.of(self.0).increment(1);
    }
}

async fn connect_to_any(target: &Target, within: Duration, dial: &dyn Dial) -> io::Result<Box<dyn Io>> {
    let share = within / u32::try_from(target.addresses.len()).unwrap_or(u32::MAX).max(1);
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in &target.addresses {
        match timeout(share, dial.dial(address, share)).await {
            Ok(Ok(io)) => return Ok(io),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// Moves what the device says; returns only when a write fails.
async fn to_chat_server(mut writing: impl AsyncWrite + Unpin, mut device: pipe::Receiver<Vec<Bytes>>) -> io::Error {
    let mut gathered = Vec::new();
    loop {
        // Whatever waits goes out together. It keeps its room until then.
        if device.recv_many_held(&mut gathered, GATHERED_MAX).await == 0 {
            // The device is gone: the task is being cut.
            return std::future::pending().await;
        }
        let messages = gathered.iter().flat_map(|(messages, _held)| messages);
        match write_all(&mut writing, messages).await {
            Ok(bytes) => metrics::get().proxy_bytes.of(Direction::Up).increment(bytes),
            Err(error) => return error,
        }
        gathered.clear();
    }
}

/// Writes one after the other, several with one call where the stream can do that, and flushes. Returns how many bytes.
async fn write_all<'a>(
    writing: &mut (impl AsyncWrite + Unpin),
    messages: impl Iterator<Item = &'a Bytes>,
) -> io::Result<u64> {
    let mut messages = messages.filter(|message| !message.is_empty());
    let mut bytes = 0;
    loop {
        let mut slices = [IoSlice::new(&[]); GATHERED_MAX];
        let mut count = 0;
        for (slice, message) in slices.iter_mut().zip(&mut messages) {
            *slice = IoSlice::new(message);
            count += 1;
        }
        let mut left = slices.get_mut(..count).unwrap_or_default();
        if left.is_empty() {
            writing.flush().await?;
            return Ok(bytes);
        }
        while !left.is_empty() {
            match writing.write_vectored(left).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => {
                    IoSlice::advance_slices(&mut left, written);
                    bytes += written as u64;
                }
            }
        }
    }
}

/// Cuts what the chat server says into events, until it says no more.
async fn to_device(
    mut reading: impl AsyncRead + Unpin,
    mut framer: Framer,
    events: &pipe::Sender<Event>,
) -> Result<UpstreamEnd, Gone> {
    loop {
        match read_into(&mut reading, &mut framer).await {
            Ok(0) => return Ok(UpstreamEnd::Closed),
            Ok(n) => metrics::get().proxy_bytes.of(Direction::Down).increment(n as u64),
            Err(error) => return Ok(UpstreamEnd::Failed(error.kind())),
        }
        loop {
            let (payloads, end) = batch(&mut framer);
            if !payloads.is_empty() {
                events.send(Event::Payloads(payloads)).await?;
            }
            match end {
                BatchEnd::Full => {}
                BatchEnd::NoMore => break,
                BatchEnd::Bad(bad) => return Ok(UpstreamEnd::UnitTooBig { len: bad.len }),
            }
        }
    }
}

/// Why a batch holds no more.
enum BatchEnd {
    Full,
    NoMore,
    Bad(BadUnit),
}

/// The units that are complete, until they are a [`BATCH`].
fn batch(framer: &mut Framer) -> (Vec<Bytes>, BatchEnd) {
    let (mut payloads, mut bytes) = (Vec::new(), 0);
    while bytes < BATCH {
        match framer.next_payload() {
            Ok(Some(payload)) => {
                bytes += cost(&payload);
                payloads.push(payload);
            }
            Ok(None) => return (payloads, BatchEnd::NoMore),
            Err(bad) => return (payloads, BatchEnd::Bad(bad)),
        }
    }
    (payloads, BatchEnd::Full)
}

/// Reads once. The buffer lives on the stack of a single poll, so a connection that waits holds none.
async fn read_into(reading: &mut (impl AsyncRead + Unpin), framer: &mut Framer) -> io::Result<usize> {
    poll_fn(|cx| {
        let mut stack = [MaybeUninit::uninit(); READ];
        let mut buffer = ReadBuf::uninit(&mut stack);
        ready!(Pin::new(&mut *reading).poll_read(cx, &mut buffer))?;
        framer.push(buffer.filled());
        std::task::Poll::Ready(Ok(buffer.filled().len()))
    })
    .await
}

/// A byte stream in both directions.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Makes connections: the network's own, or a simulated one's.
pub trait Dial: Send + Sync + fmt::Debug {
    /// Connects to `host:port`. The time is given so that it can be shared among the addresses a name stands for; the
    /// caller gives up when it has passed.
    fn dial<'a>(&'a self, address: &'a str, within: Duration) -> BoxFuture<'a, io::Result<Box<dyn Io>>>;
}

/// Connects by TCP.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpDial;

impl Dial for TcpDial {
    fn dial<'a>(&'a self, address: &'a str, within: Duration) -> BoxFuture<'a, io::Result<Box<dyn Io>>> {
        Box::pin(async move {
            let resolved: Vec<_> = tokio::net::lookup_host(address).await?.collect();
            let share = within / u32::try_from(resolved.len()).unwrap_or(u32::MAX).max(1);
            let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
            for address in resolved {
                match timeout(share, TcpStream::connect(address)).await {
                    Ok(Ok(stream)) => {
                        stream.set_nodelay(true)?;
                        return Ok(Box::new(stream) as Box<dyn Io>);
                    }
                    Ok(Err(error)) => last = error,
                    Err(_) => last = io::ErrorKind::TimedOut.into(),
                }
            }
            Err(last)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::d2m;

    /// A network in which nothing ever answers, except at one address.
    #[derive(Debug)]
    struct BlackHole {
        answers: &'static str,
    }

    impl Dial for BlackHole {
        fn dial<'a>(&'a self, address: &'a str, _within: Duration) -> BoxFuture<'a, io::Result<Box<dyn Io>>> {
            Box::pin(async move {
                if address != self.answers {
                    return std::future::pending().await;
                }
                let (near, mut far) = tokio::io::duplex(64);
                tokio::spawn(async move { far.write_all(b"here").await });
                Ok(Box::new(near) as Box<dyn Io>)
            })
        }
    }

    fn open(addresses: &[&str]) -> Upstream {
        let addresses = addresses.iter().map(|&address| address.into()).collect();
        let target = Target { addresses, framing: Framing::Raw };
        let dial = Arc::new(BlackHole { answers: "there:1" });
        Upstream::open(target, UpstreamLimits::default(), dial, &TaskTracker::new(), &CancellationToken::new())
    }

    #[tokio::test(start_paused = true)]
    async fn a_black_hole_is_given_up_after_ten_seconds() {
        let clock = crate::time::Clock::following(0);
        let mut upstream = open(&["nowhere:1", "nowhere:2"]);
        let end = upstream.from.recv().await.unwrap();
        assert_eq!(end, Event::Ended(UpstreamEnd::Unreachable(io::ErrorKind::TimedOut)));
        assert_eq!(clock.now().monotonic.as_secs(), 10);
        assert_eq!(upstream.from.recv().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_black_hole_does_not_hide_the_next_address() {
        let mut upstream = open(&["nowhere:1", "there:1"]);
        assert_eq!(upstream.from.recv().await, Some(Event::Payloads(vec![d2m::proxied(b"here")])));
        assert_eq!(upstream.from.recv().await, Some(Event::Ended(UpstreamEnd::Closed)));
    }

    /// Takes seven bytes at a time, from as many messages as it takes, and then none for a while.
    #[derive(Debug, Default)]
    struct Miser {
        taken: Vec<u8>,
        calls: usize,
    }

    impl AsyncWrite for Miser {
        fn poll_write(
            self: Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
            bytes: &[u8],
        ) -> std::task::Poll<io::Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> std::task::Poll<io::Result<usize>> {
            self.calls += 1;
            if self.calls.is_multiple_of(3) {
                cx.waker().wake_by_ref();
                return std::task::Poll::Pending;
            }
            let before = self.taken.len();
            self.taken.extend(slices.iter().flat_map(|slice| slice.iter()).take(7));
            std::task::Poll::Ready(Ok(self.taken.len() - before))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_waits_is_written_together_whole_and_in_order() {
        let messages: Vec<Bytes> = (0..200_u8).map(|n| vec![n; usize::from(n % 11)].into()).collect();
        let mut miser = Miser::default();
        let written = write_all(&mut miser, messages.iter()).await.unwrap();
        assert_eq!(written, miser.taken.len() as u64);
        assert_eq!(miser.taken, messages.concat());
        assert!(miser.calls < messages.len() * 2, "messages share writes: {}", miser.calls);

        let mut nothing = Miser::default();
        write_all(&mut nothing, [Bytes::new()].iter()).await.unwrap();
        assert_eq!(nothing.calls, 0);
    }

    #[tokio::test]
    async fn without_an_address_it_is_unreachable() {
        let mut upstream = open(&[]);
        let end = upstream.from.recv().await.unwrap();
        assert!(matches!(end, Event::Ended(UpstreamEnd::Unreachable(_))), "{end:?}");
    }
}
