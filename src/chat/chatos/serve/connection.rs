//! One connection, from the first octet to the last: one task, one way out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use super::actor::Mail;
use super::outbox::{Lag, Next, Outbox, PACKETS_MAX as OUTBOX_PACKETS_MAX, Verdict};
use super::pipe::{self, BUFFER_MAX, Leg};
use crate::chat::chatos::state::{ConnId, Ending, Input};
use crate::chat::chatos::wire::{FromClient, NEW, ONLINE, take_packet};
use crate::metrics::{self, Presence, Room};
use crate::net::listen::Stream;
use crate::net::rate::{Bucket, Measure, Rate};
use crate::time::Clock;
use crate::wire::chatos::Caps;

/// How long what waits for a client that is told to go may take (spec 9, 10.1).
pub(super) const FLUSH_MAX: Duration = Duration::from_secs(5);
/// How long, and how much of what a client still says is taken and thrown away, so that it can read why it has to go.
const DISCARD_MAX: Duration = Duration::from_secs(2);
const DISCARD_OCTETS: usize = 64 * 1024;
/// How much is read at a time.
const READ: usize = 4 * 1024;
/// Packets that are handed on at once, at most; no more are taken before those were handled. Each of them puts at most three
/// packets into a queue, so all fit where half is free.
const HEARD_MAX: usize = OUTBOX_PACKETS_MAX / 32;

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) clock: Clock,
    pub(super) caps: Caps,
    pub(super) write_stall: Duration,
    pub(super) packets: Option<Rate>,
    pub(super) lag: Arc<Lag>,
}

/// How the writer came to its end.
enum Wrote {
    All(Verdict),
    Failed(Ending),
}

/// Serves one client.
pub(super) async fn run(
    shared: &Shared,
    mailbox: mpsc::Sender<Mail>,
    conn: ConnId,
    socket: Stream<TcpStream>,
    from: SocketAddr,
) {
    let metrics = metrics::get();
    let (opened, closed) = (metrics.chat_opened.of(Room::ChatOs), metrics.chat_closed.of(Room::ChatOs));
    let _counted = Presence::new(metrics.chat_connections.of(Room::ChatOs), Some(opened), Some(closed));
    let outbox = Arc::new(Outbox::new(Arc::clone(&shared.lag)));
    if mailbox.send(Mail::Opened { conn, ip: from.ip(), outbox: Arc::clone(&outbox) }).await.is_err() {
        return;
    }
    let (mut reading, mut writing) = tokio::io::split(socket);
    let (mut received, mut ended) = (BytesMut::new(), false);
    let verdict = {
        let mut write = std::pin::pin!(write(&mut writing, &outbox, shared.write_stall));
        let read = read(&mut reading, shared, &mailbox, conn, &mut received, &mut ended);
        let over = tokio::select! {
            wrote = &mut write => match wrote {
                Wrote::All(verdict) => Ok(verdict),
                Wrote::Failed(why) => Err(Some(why)),
            },
            why = read => Err(Some(why)),
            () = outbox.decided() => Err(None),
        };
        match over {
            Ok(verdict) => Some(verdict),
            Err(why) => {
                let failed = why.as_ref().is_some_and(|why| matches!(why, Ending::Broken | Ending::WriteStalled));
                let mut decided = std::pin::pin!(async {
                    if let Some(why) = why
                        && mailbox.send(Mail::Input(Input::Over { conn, why })).await.is_err()
                    {
                        return false;
                    }
                    // It may be another one than was asked for: a leg whose partner has just come is not over.
                    outbox.decided().await;
                    true
                });
                if failed {
                    outbox.writing(false);
                }
                // What waits goes on being written: as long as it lags, nothing is decided.
                let (known, wrote) = tokio::select! {
                    known = &mut decided => (known, None),
                    wrote = &mut write, if !failed => (decided.await, Some(wrote)),
                };
                if !known {
                    return;
                }
                match wrote {
                    Some(Wrote::All(verdict)) => Some(verdict),
                    Some(Wrote::Failed(_)) => outbox.verdict(),
                    None if failed || outbox.is_cut() => outbox.verdict(),
                    None => match tokio::time::timeout(FLUSH_MAX, write).await {
                        Ok(Wrote::All(verdict)) => Some(verdict),
                        Ok(Wrote::Failed(_)) | Err(_) => outbox.verdict(),
                    },
                }
            }
        }
    };
    match verdict {
        Some(Verdict::End(ending)) if ending.cuts() => cut(reading.unsplit(writing)),
        Some(Verdict::End(_)) => linger(&mut reading, &mut writing).await,
        Some(Verdict::Give(to)) => {
            let (alive, over) = oneshot::channel();
            // When nobody takes it, it is closed.
            if to.send(Leg { reading, writing, early: received, ended, _alive: Some(alive) }).is_ok() {
                // Counted as one connection as long as it is one.
                let _dropped = over.await;
            }
        }
        Some(Verdict::Take(other, orders)) => {
            if let Ok(other) = other.await {
                let leg = Leg { reading, writing, early: received, ended, _alive: None };
                pipe::run(leg, other, &orders, &mailbox, shared.clock).await;
            } else {
                let _stopped = mailbox.send(Mail::Input(Input::PipeOver(orders.id))).await;
            }
        }
        None => debug!(%from, "closed without what was to be said"),
    }
}

/// Reads until nothing more comes, and says why.
async fn read<R: AsyncRead + Unpin>(
    socket: &mut R,
    shared: &Shared,
    mailbox: &mpsc::Sender<Mail>,
    conn: ConnId,
    received: &mut BytesMut,
    ended: &mut bool,
) -> Ending {
    let bucket = shared.packets.map(|rate| Bucket::new(rate, Measure::Times, shared.clock));
    let (mut accepts, mut partial) = (NEW, false);
    loop {
        let (mut packets, mut fault, mut is_leg) = (Vec::new(), None, false);
        while packets.len() < HEARD_MAX && !is_leg && fault.is_none() {
            match take_packet(received, shared.caps, accepts) {
                Ok(None) => break,
                Ok(Some(octets)) => match FromClient::decode(&octets, shared.caps.text) {
                    Ok(packet) => {
                        accepts = ONLINE;
                        is_leg = matches!(packet, FromClient::Join(_));
                        while let Some(Err(too_much)) = bucket.as_ref().map(|bucket| bucket.take(1)) {
                            // What came before does not wait with it, and half a packet is not stalled that is not read (10.5).
                            let packets = std::mem::take(&mut packets);
                            if (partial || !packets.is_empty())
                                && !handled(mailbox, Input::Heard { conn, packets, partial: false }).await
                            {
                                return Ending::ShuttingDown;
                            }
                            partial = false;
                            tokio::time::sleep(too_much.wait).await;
                        }
                        packets.push(packet);
                    }
                    Err(why) => fault = Some(why),
                },
                Err(why) => fault = Some(why.into()),
            }
        }
        let more = packets.len() == HEARD_MAX;
        partial = !is_leg && !more && !received.is_empty();
        if (partial || !packets.is_empty()) && !handled(mailbox, Input::Heard { conn, packets, partial }).await {
            return Ending::ShuttingDown;
        }
        if let Some(why) = fault {
            if mailbox.send(Mail::Input(Input::Malformed { conn, why })).await.is_err() {
                return Ending::ShuttingDown;
            }
            // The verdict is on its way.
            return std::future::pending().await;
        }
        if is_leg {
            return wait_as_leg(socket, received, ended).await;
        }
        if more {
            continue;
        }
        received.reserve(READ);
        match socket.read_buf(received).await {
            Ok(0) => return Ending::Gone,
            Ok(_) => {}
            Err(_) => return Ending::Broken,
        }
    }
}

/// Hands it on and waits until it was handled: whoever says much waits for us, not the others. Not if nobody decides any more.
async fn handled(mailbox: &mpsc::Sender<Mail>, input: Input) -> bool {
    let (handled, waits) = oneshot::channel();
    mailbox.send(Mail::Awaited(input, handled)).await.is_ok() && waits.await.is_ok()
}

/// What comes before the other leg is there is kept for it (spec 5), up to the bound of a pipe.
async fn wait_as_leg<R: AsyncRead + Unpin>(socket: &mut R, received: &mut BytesMut, ended: &mut bool) -> Ending {
    loop {
        let room = BUFFER_MAX.saturating_sub(received.len());
        if room == 0 {
            return std::future::pending().await;
        }
        match socket.take(room as u64).read_buf(received).await {
            Ok(0) => {
                *ended = true;
                return Ending::Gone;
            }
            Ok(_) => {}
            Err(_) => {
                *ended = true;
                return Ending::Broken;
            }
        }
    }
}

/// Writes until the verdict, each packet by one write as far as the kernel takes it (spec 2).
async fn write<W: AsyncWrite + Unpin>(socket: &mut W, outbox: &Outbox, stall: Duration) -> Wrote {
    /// However this ends, nobody writes any more.
    struct Writing<'a>(&'a Outbox);
    impl Drop for Writing<'_> {
        fn drop(&mut self) {
            self.0.writing(false);
        }
    }
    outbox.writing(true);
    let _writing = Writing(outbox);
    loop {
        let packet = match outbox.next().await {
            Next::Packet(packet) => packet,
            Next::Verdict(verdict) => return Wrote::All(verdict),
        };
        let mut rest = &packet[..];
        while !rest.is_empty() {
            match tokio::time::timeout(stall, by_peer(outbox, socket.write(rest))).await {
                Ok(Ok(n)) if n > 0 => rest = rest.get(n..).unwrap_or_default(),
                Ok(Ok(_) | Err(_)) => return Wrote::Failed(Ending::Broken),
                Err(_) => return Wrote::Failed(Ending::WriteStalled),
            }
        }
        match tokio::time::timeout(stall, by_peer(outbox, socket.flush())).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Wrote::Failed(Ending::Broken),
            Err(_) => return Wrote::Failed(Ending::WriteStalled),
        }
        // Here and not in the socket, where it would look as if the peer did not read.
        tokio::task::coop::consume_budget().await;
    }
}

/// What waits for the peer alone: while it does, the queue is not ours to empty.
async fn by_peer<T>(outbox: &Outbox, writes: impl Future<Output = T>) -> T {
    let mut writes = std::pin::pin!(tokio::task::unconstrained(writes));
    let mut waits = false;
    std::future::poll_fn(|context| {
        let done = writes.as_mut().poll(context);
        if done.is_pending() != waits {
            waits = done.is_pending();
            outbox.writing(!waits);
        }
        done
    })
    .await
}

/// Closes without a reset: one that is sent because unread octets are there could destroy the last packet on its way.
pub(super) async fn linger<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(reading: &mut R, writing: &mut W) {
    let discard = async {
        writing.shutdown().await?;
        let (mut rest, mut left) = ([0; 1_024], DISCARD_OCTETS);
        while left > 0 {
            match reading.read(&mut rest).await? {
                0 => break,
                n => left = left.saturating_sub(n),
            }
        }
        Ok::<_, std::io::Error>(())
    };
    // Whatever came of it, nothing more can be done.
    let _closed = tokio::time::timeout(DISCARD_MAX, discard).await;
}

/// Closes with a reset: what the kernel holds for somebody who does not read is dropped.
fn cut(socket: Stream<TcpStream>) {
    if let Err(error) = socket.get_ref().set_zero_linger() {
        debug!(%error, "a connection is closed that was to be cut");
    }
}
