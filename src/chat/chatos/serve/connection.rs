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
use super::outbox::{Next, Outbox, Verdict};
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

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) clock: Clock,
    pub(super) caps: Caps,
    pub(super) write_stall: Duration,
    pub(super) packets: Option<Rate>,
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
    let outbox = Arc::new(Outbox::default());
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
                if let Some(why) = why
                    && mailbox.send(Mail::Input(Input::Over { conn, why })).await.is_err()
                {
                    return;
                }
                // It may be another one than was asked for: a leg whose partner has just come is not over.
                outbox.decided().await;
                if failed || outbox.is_cut() {
                    outbox.verdict()
                } else {
                    match tokio::time::timeout(FLUSH_MAX, write).await {
                        Ok(Wrote::All(verdict)) => Some(verdict),
                        Ok(Wrote::Failed(_)) | Err(_) => outbox.verdict(),
                    }
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
            }
            let _stopped = mailbox.send(Mail::Input(Input::PipeOver(orders.id))).await;
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
    let mut accepts = NEW;
    loop {
        let mut packets = Vec::new();
        let mut fault = None;
        let mut is_leg = false;
        while !is_leg && fault.is_none() {
            match take_packet(received, shared.caps, accepts) {
                Ok(None) => break,
                Ok(Some(octets)) => match FromClient::decode(&octets, shared.caps.text) {
                    Ok(packet) => {
                        accepts = ONLINE;
                        is_leg = matches!(packet, FromClient::Join(_));
                        packets.push(packet);
                    }
                    Err(why) => fault = Some(why),
                },
                Err(why) => fault = Some(why.into()),
            }
        }
        let count = packets.len() as u64;
        let partial = !is_leg && !received.is_empty();
        if (count > 0 || partial) && mailbox.send(Mail::Input(Input::Heard { conn, packets, partial })).await.is_err() {
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
        if let Some(bucket) = &bucket {
            while count > 0
                && let Err(too_much) = bucket.take(count)
            {
                tokio::time::sleep(too_much.wait).await;
            }
        }
        received.reserve(READ);
        match socket.read_buf(received).await {
            Ok(0) => return Ending::Gone,
            Ok(_) => {}
            Err(_) => return Ending::Broken,
        }
    }
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
    loop {
        let packet = match outbox.next().await {
            Next::Packet(packet) => packet,
            Next::Verdict(verdict) => return Wrote::All(verdict),
        };
        let mut rest = &packet[..];
        while !rest.is_empty() {
            match tokio::time::timeout(stall, socket.write(rest)).await {
                Ok(Ok(n)) if n > 0 => rest = rest.get(n..).unwrap_or_default(),
                Ok(Ok(_) | Err(_)) => return Wrote::Failed(Ending::Broken),
                Err(_) => return Wrote::Failed(Ending::WriteStalled),
            }
        }
        match tokio::time::timeout(stall, socket.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Wrote::Failed(Ending::Broken),
            Err(_) => return Wrote::Failed(Ending::WriteStalled),
        }
    }
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
    let tcp = match &socket {
        Stream::Plain(tcp) => tcp,
        Stream::Tls(tls) => tls.get_ref().0,
    };
    if let Err(error) = tcp.set_zero_linger() {
        debug!(%error, "a connection is closed that was to be cut");
    }
}
