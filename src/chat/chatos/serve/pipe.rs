//! A private connection: two sockets, and every octet from one to the other, unread.
//!
//! One task looks after both legs. In each direction at most [`BUFFER_MAX`] wait; while they do, the sender's socket is not read, and
//! TCP passes that on to the sender: nothing is dropped, nobody else notices (D-36). An end of one direction is passed on as one, and
//! the other direction goes on (D-32).
//!
//! A leg that breaks, and a pipe that is to be closed because one of its clients left, end the same way: what was taken from the
//! one still goes to the other, then both see the end. Of a pipe that is to be closed, what is still on its way is taken first, since
//! the client that left may have said it just before (spec 11): until its end, or [`QUIET`], or [`FLUSH_MAX`] at the latest. How much
//! that is only its own kernel knows, so *rejected*: what ours holds at that moment.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::actor::Mail;
use super::connection::{FLUSH_MAX, linger};
use crate::chat::chatos::state::Input;
use crate::chat::chatos::wire::PrivateId;
use crate::metrics::{self, Presence};
use crate::net::listen::Stream;
use crate::time::Clock;

/// Octets that wait in one direction, at most; with so many, the sender is not read.
pub const BUFFER_MAX: usize = 64 * 1024;
/// With so few it is read again.
const BUFFER_LOW: usize = BUFFER_MAX / 2;
/// How much is read at a time.
const READ: usize = 8 * 1024;
/// How long nothing comes of what a client said before it left, when all of it has come. Loss on the way is made good within that.
const QUIET: Duration = Duration::from_millis(500);
/// How often the task that decides is told that something moves, at most.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// One side of a private connection.
#[derive(Debug)]
pub(super) struct Leg {
    pub(super) reading: ReadHalf<Stream<TcpStream>>,
    pub(super) writing: WriteHalf<Stream<TcpStream>>,
    /// What it said before the other was there.
    pub(super) early: BytesMut,
    /// Whether it has said all it will.
    pub(super) ended: bool,
    /// Dropped when the pipe is over.
    pub(super) _alive: Option<oneshot::Sender<()>>,
}

/// What a pipe is told.
#[derive(Debug, Clone)]
pub(super) struct Orders {
    pub(super) id: PrivateId,
    /// The first that each leg is sent.
    pub(super) established: Bytes,
    /// To be closed.
    pub(super) close: CancellationToken,
}

/// Relays until both directions are over.
pub(super) async fn run(first: Leg, second: Leg, orders: &Orders, mailbox: &mpsc::Sender<Mail>, clock: Clock) {
    let _counted = Presence::new(&metrics::get().chatos_pipes, None, None);
    let activity = Activity { clock, last_ms: AtomicU64::new(0), happened: Notify::new() };
    let stops = Stops { close: orders.close.clone(), broken: CancellationToken::new() };
    let Leg { reading: mut from_first, writing: mut to_first, early: early_first, ended: ended_first, .. } = first;
    let Leg { reading: mut from_second, writing: mut to_second, early: early_second, ended: ended_second, .. } = second;
    let greeted = |early: BytesMut| {
        let mut pending = BytesMut::from(&orders.established[..]);
        pending.extend_from_slice(&early);
        pending
    };
    {
        let there = pump(&mut from_first, ended_first, &mut to_second, greeted(early_first), &stops, &activity);
        let back = pump(&mut from_second, ended_second, &mut to_first, greeted(early_second), &stops, &activity);
        let patience = async {
            stops.any().await;
            tokio::time::sleep(FLUSH_MAX).await;
        };
        tokio::select! {
            _ends = futures_util::future::join(there, back) => {}
            () = patience => {}
            () = activity.tell(orders.id, mailbox) => {}
        }
    }
    // The relation is over now (spec 8), not when both sides have closed, too.
    let _stopped = mailbox.send(Mail::Input(Input::PipeOver(orders.id))).await;
    tokio::join!(linger(&mut from_first, &mut to_first), linger(&mut from_second, &mut to_second));
}

/// Why a pipe is to end before both of its clients said so.
struct Stops {
    close: CancellationToken,
    broken: CancellationToken,
}

impl Stops {
    async fn any(&self) {
        tokio::select! {
            () = self.close.cancelled() => {}
            () = self.broken.cancelled() => {}
        }
    }
}

/// When something last went through.
struct Activity {
    clock: Clock,
    last_ms: AtomicU64,
    happened: Notify,
}

impl Activity {
    fn note(&self, octets: usize) {
        let now_ms = u64::try_from(self.clock.now().monotonic.as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(now_ms, Ordering::Relaxed);
        self.happened.notify_one();
        metrics::get().chatos_pipe_bytes.increment(octets as u64);
    }

    async fn tell(&self, id: PrivateId, mailbox: &mpsc::Sender<Mail>) {
        loop {
            self.happened.notified().await;
            let at = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
            if mailbox.send(Mail::Input(Input::Moved { id, at })).await.is_err() {
                return;
            }
            tokio::time::sleep(TELL_EVERY).await;
        }
    }
}

/// One direction, to its end.
async fn pump<R, W>(
    from: &mut R,
    mut ended: bool,
    to: &mut W,
    mut pending: BytesMut,
    stops: &Stops,
    activity: &Activity,
) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut scratch = [0; READ];
    let (mut paused, mut flushed, mut closing) = (false, true, false);
    while !(ended && pending.is_empty() && flushed) {
        paused = match pending.len() {
            BUFFER_MAX.. => true,
            ..=BUFFER_LOW => false,
            _ => paused,
        };
        let room = BUFFER_MAX.saturating_sub(pending.len()).min(READ);
        tokio::select! {
            read = from.read(scratch.get_mut(..room).unwrap_or_default()), if !ended && !paused => match read {
                Ok(0) => ended = true,
                Ok(n) => {
                    pending.extend_from_slice(scratch.get(..n).unwrap_or_default());
                    activity.note(n);
                }
                Err(_) => {
                    ended = true;
                    stops.broken.cancel();
                }
            },
            pushed = push(to, &pending), if !(pending.is_empty() && flushed) => match pushed {
                Ok(n) => {
                    flushed = n == 0;
                    pending.advance(n);
                }
                Err(error) => {
                    stops.broken.cancel();
                    return Err(error);
                }
            },
            () = stops.broken.cancelled(), if !ended => ended = true,
            () = stops.close.cancelled(), if !closing => closing = true,
            // The room is not ours to wait for: time that passes without room does not count.
            () = tokio::time::sleep(QUIET), if closing && !ended && !paused => ended = true,
        }
    }
    to.shutdown().await
}

/// Writes some of it; when there is nothing, what TLS may still hold back. How much was taken.
async fn push<W: AsyncWrite + Unpin>(to: &mut W, pending: &[u8]) -> io::Result<usize> {
    if pending.is_empty() {
        return to.flush().await.map(|()| 0);
    }
    match to.write(pending).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        n => Ok(n),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> (Stops, Activity) {
        let stops = Stops { close: CancellationToken::new(), broken: CancellationToken::new() };
        (stops, Activity { clock: Clock::system(), last_ms: AtomicU64::new(0), happened: Notify::new() })
    }

    /// A sender whose octets nobody takes is not read beyond the bound, and everything arrives when somebody does.
    #[tokio::test]
    async fn chatos_18_9_a_full_pipe_stops_reading_and_loses_nothing() {
        let (stops, activity) = parts();
        let (mut sender, mut from) = tokio::io::duplex(1024);
        let (mut to, mut receiver) = tokio::io::duplex(1024);
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
        let pumping = pump(&mut from, false, &mut to, BytesMut::new(), &stops, &activity);
        tokio::pin!(pumping);
        let (mut taken, mut quiet) = (0, 0);
        // Until both wait, and have been asked often enough to be sure.
        while quiet < 100 {
            tokio::select! {
                biased;
                n = sender.write(&sent[taken..]) => (taken, quiet) = (taken + n.unwrap(), 0),
                _never = &mut pumping => unreachable!(),
                () = tokio::task::yield_now() => quiet += 1,
            }
        }
        assert!((BUFFER_MAX..=BUFFER_MAX + 2 * 1024).contains(&taken), "{taken}");
        let send = async {
            sender.write_all(&sent[taken..]).await.unwrap();
            sender.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let receive = receiver.read_to_end(&mut received);
        let (done, (), read) = tokio::join!(pumping, send, receive);
        done.unwrap();
        read.unwrap();
        assert!(received == sent);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_client_said_before_it_left_still_arrives() {
        let (stops, activity) = parts();
        let (mut sender, mut from) = tokio::io::duplex(1024);
        let (mut to, mut receiver) = tokio::io::duplex(1024);
        sender.write_all(b"goodbye").await.unwrap();
        stops.close.cancel();
        pump(&mut from, false, &mut to, BytesMut::from(&b"and "[..]), &stops, &activity).await.unwrap();
        sender.write_all(b"too late").await.unwrap();
        let mut received = Vec::new();
        receiver.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"and goodbye");
    }
}
