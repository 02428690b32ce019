//! One connection, from the first byte to the last: a reader that hands over one packet at a time and waits until it is dealt
//! with, and a writer that empties the line.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::actor::{Answer, Mail};
use super::gate::Gate;
use super::outbox::{Item, Outbox};
use super::reads::Reads;
use super::scene::{Settings, render};
use crate::chat::skynet::state::ConnId;
use crate::chat::skynet::state::line::Line;
use crate::chat::skynet::store::{Store, StoreError};
use crate::chat::skynet::wire::{
    AccountId, BadPacket, FromClient, HEADER, MEMBERS_PAYLOAD_MAX, STRANGERS_PAYLOAD_MAX, ToClient, read_header,
};
use crate::metrics::{self, Presence, Room};

/// How long somebody who has not logged in may be silent: the protocol has no ping, and people type passwords.
pub const STRANGER_SILENT_MAX: Duration = Duration::from_secs(300);
/// How long somebody who has not logged in may take for a packet that has begun.
const STRANGERS_PACKET_MAX: Duration = Duration::from_secs(30);
/// Longest first packet, in bytes: a handshake is shorter. Only who has said which client it is may say more.
const HELLO_PAYLOAD_MAX: usize = 512;
/// Longest packet of somebody who registers or logs in, in bytes: a push token makes up most of it. Only coming back takes more, for the
/// channels that a client knows.
const LOGIN_PAYLOAD_MAX: usize = 68 * 1024;
const RESTORE_SESSION: u8 = 0x08;
/// How long nothing of what is written may get out before the client counts as not reading.
pub const WRITE_STALL_MAX: Duration = Duration::from_secs(30);
/// Messages of a sync that are read at once, unless they are long ([`PAGE_BYTES_MAX`]).
const PAGE: usize = 64;
/// What these may take in memory, in bytes, unless it is one alone.
const PAGE_BYTES_MAX: u64 = 512 * 1024;

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) store: Store,
    pub(super) reads: Reads,
    pub(super) gate: Arc<Gate>,
    pub(super) stop: CancellationToken,
}

/// Which client this is, as it said itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Hello {
    pub(super) application: String,
    pub(super) version_code: i32,
}

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
enum Ending {
    #[error("the client left")]
    Left,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("out of the protocol: {0}")]
    BadPacket(#[from] BadPacket),
    #[error("out of the protocol: {0}")]
    Violation(&'static str),
    #[error("the store failed: {0}")]
    Store(#[from] StoreError),
    #[error("the client does not read")]
    Stalled,
    #[error("nobody logged in")]
    Silent,
    #[error("replaced, deleted, or too slow")]
    Cut,
    #[error("everything is said")]
    Said,
    #[error("the server stops")]
    ShuttingDown,
}

/// Serves one client.
pub(super) async fn run<Io>(shared: Arc<Shared>, mailbox: mpsc::Sender<Mail>, conn: ConnId, from: IpAddr, io: Io)
where
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let metrics = metrics::get();
    let (opened, closed) = (metrics.chat_opened.of(Room::Skynet), metrics.chat_closed.of(Room::Skynet));
    let _counted = Presence::new(metrics.chat_connections.of(Room::Skynet), Some(opened), Some(closed));
    let outbox = Arc::new(Outbox::default());
    let (reading, writing) = tokio::io::split(io);
    let ending = tokio::select! {
        ending = read(&shared, &mailbox, &outbox, (conn, from), reading) => ending,
        ending = write(&shared.store, &outbox, writing) => ending,
        () = outbox.is_cut() => Ending::Cut,
        () = shared.stop.cancelled() => Ending::ShuttingDown,
    };
    outbox.cut();
    // Nobody is left to hear of it when the server stops.
    let _gone = mailbox.send(Mail::Left(conn)).await;
    match ending {
        Ending::Store(error) => error!(%error, "a sync could not be read"),
        ending => debug!(%ending, "connection ended"),
    }
}

async fn read<Io: AsyncRead + Unpin>(
    shared: &Shared,
    mailbox: &mpsc::Sender<Mail>,
    outbox: &Arc<Outbox>,
    (conn, from): (ConnId, IpAddr),
    io: Io,
) -> Ending {
    let mut io = tokio::io::BufReader::with_capacity(8 * 1024, io);
    let (mut line, mut hello, mut account, mut forward) = (Line::New, Hello::default(), AccountId::NONE, false);
    loop {
        outbox.room().await;
        let packet = if line == Line::Authenticated {
            next_packet(&mut io, line).await
        } else {
            strangers_packet(&mut io, line).await
        };
        let packet = match packet {
            Ok(packet) if line.accepts(&packet) => packet,
            Ok(_) => return Ending::Violation("a packet at the wrong time"),
            Err(ending) => return ending,
        };
        if let FromClient::ConnectionHandshake { protocol_version, application, version_code } = packet {
            let Some(platform) = shared.settings.platforms.iter().find(|it| it.application == application) else {
                return Ending::Violation("unknown platform");
            };
            let state = platform.judge(protocol_version == shared.settings.protocol_version, version_code);
            (line, forward) = (Line::greeted(&state), platform.forward_profiles);
            hello = Hello { application, version_code };
            match (ToClient::ConnectionResponse { state }).encode() {
                Ok(frame) => drop(outbox.put(Item::Frame(frame))),
                Err(_) => return Ending::Violation("a release name that is too long"),
            }
            continue;
        }
        match line {
            Line::Authenticated => shared.gate.hear(account, &packet).await,
            Line::New | Line::Initialised | Line::Outdated => shared.gate.pass(conn, from, &packet).await,
        }
        let read = match packet {
            FromClient::SearchAccount { query } => shared.reads.search(account, &query, forward).await,
            FromClient::RequestMessages { channel, after, before, max_count } => {
                shared.reads.messages(account, channel, (after, before), max_count).await
            }
            packet => {
                let mail = |answer| {
                    let (hello, outbox) = (hello.clone(), Arc::clone(outbox));
                    Mail::Said { conn, hello, packet, outbox, answer }
                };
                match ask(mailbox, mail).await {
                    Ok(Answer::Stay) => {}
                    Ok(Answer::Authenticated(who)) => (line, account) = (Line::Authenticated, who),
                    // The writer ends it, when it has said everything.
                    Ok(Answer::Over) => std::future::pending().await,
                    Ok(Answer::Violation(why)) => return Ending::Violation(why),
                    Err(ending) => return ending,
                }
                continue;
            }
        };
        match (read, ask(mailbox, Mail::AllSaid).await) {
            (Ok(answer), Ok(())) => drop(outbox.put_all(answer)),
            (Err(error), _) => return error.into(),
            (_, Err(ending)) => return ending,
        }
    }
}

/// What the task that decides answers.
async fn ask<T>(mailbox: &mpsc::Sender<Mail>, mail: impl FnOnce(oneshot::Sender<T>) -> Mail) -> Result<T, Ending> {
    let (answer, answered) = oneshot::channel();
    mailbox.send(mail(answer)).await.map_err(|_| Ending::ShuttingDown)?;
    answered.await.map_err(|_| Ending::Cut)
}

/// The next packet of somebody who has not logged in, and has less time for it.
async fn strangers_packet<Io: AsyncBufRead + Unpin>(io: &mut Io, line: Line) -> Result<FromClient, Ending> {
    let begins = async { io.fill_buf().await.map(drop) };
    tokio::time::timeout(STRANGER_SILENT_MAX, begins).await.map_err(|_| Ending::Silent)??;
    let packet = tokio::time::timeout(STRANGERS_PACKET_MAX, next_packet(io, line)).await;
    packet.map_err(|_| Ending::Silent)?
}

/// How long a packet may be, in bytes.
const fn payload_max(line: Line, id: u8) -> usize {
    match line {
        Line::New | Line::Outdated => HELLO_PAYLOAD_MAX,
        Line::Initialised if id == RESTORE_SESSION => STRANGERS_PAYLOAD_MAX,
        Line::Initialised => LOGIN_PAYLOAD_MAX,
        Line::Authenticated => MEMBERS_PAYLOAD_MAX,
    }
}

/// The next packet. Its payload is read as it comes: what is only announced takes no memory.
async fn next_packet<Io: AsyncRead + Unpin>(io: &mut Io, line: Line) -> Result<FromClient, Ending> {
    let mut header = [0; HEADER];
    match io.read_exact(&mut header).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(Ending::Left),
        Err(error) => return Err(error.into()),
    }
    let (id, len) = read_header(header);
    if len > payload_max(line, id) {
        return Err(Ending::Violation("a packet that is too long"));
    }
    let mut payload = BytesMut::with_capacity(len.min(8 * 1024));
    let mut rest = io.take(len as u64);
    while payload.len() < len {
        if rest.read_buf(&mut payload).await? == 0 {
            return Err(Ending::Left);
        }
    }
    Ok(FromClient::decode(id, &payload)?)
}

async fn write<Io: AsyncWrite + Unpin>(store: &Store, outbox: &Outbox, mut io: Io) -> Ending {
    while let Some(item) = outbox.next().await {
        let written = match item {
            Item::Frame(frame) => put(&mut io, &[frame]).await,
            Item::Messages { account, ids, found } => {
                let mut written = Ok(());
                let mut rest = ids.as_slice();
                while !rest.is_empty() {
                    let (frames, read) = match page_of(store, account, rest, found).await {
                        Ok(page) => page,
                        Err(error) => return error.into(),
                    };
                    rest = rest.get(read..).unwrap_or_default();
                    written = put(&mut io, &frames).await;
                    if written.is_err() {
                        break;
                    }
                }
                written
            }
        };
        if let Err(ending) = written {
            return ending;
        }
    }
    // Whoever was told to go has this long to take it.
    let _gone = tokio::time::timeout(WRITE_STALL_MAX, io.shutdown()).await;
    Ending::Said
}

/// The first of these messages as frames, and how many they are.
async fn page_of(
    store: &Store,
    account: AccountId,
    ids: &[i64],
    found: bool,
) -> Result<(Vec<Bytes>, usize), StoreError> {
    let mut work = store.read().await?;
    let page = work.light(ids.get(..PAGE).unwrap_or(ids), PAGE_BYTES_MAX).await?;
    let mut frames = Vec::with_capacity(page.len());
    for message in work.messages(page).await? {
        frames.extend(render(&mut work, &message, account, -1, found).await?);
    }
    Ok((frames, page.len()))
}

/// Writes frames. The limit is for each write that makes progress: who is slow is not gone.
async fn put<Io: AsyncWrite + Unpin>(io: &mut Io, frames: &[Bytes]) -> Result<(), Ending> {
    for frame in frames {
        let mut rest = Bytes::clone(frame);
        while !rest.is_empty() {
            let writes = tokio::time::timeout(WRITE_STALL_MAX, io.write_buf(&mut rest));
            if writes.await.map_err(|_| Ending::Stalled)?? == 0 {
                return Err(Ending::Left);
            }
        }
    }
    Ok(tokio::time::timeout(WRITE_STALL_MAX, io.flush()).await.map_err(|_| Ending::Stalled)??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn strangers_held_memory_for_five_minutes() {
        let (mut client, io) = tokio::io::duplex(1024);
        let mut io = tokio::io::BufReader::new(io);
        assert!(matches!(strangers_packet(&mut io, Line::New).await, Err(Ending::Silent)));
        // A byte of a packet, and then nothing.
        client.write_all(&[0]).await.unwrap();
        let soon = tokio::time::timeout(STRANGERS_PACKET_MAX * 2, strangers_packet(&mut io, Line::New));
        assert!(matches!(soon.await, Ok(Err(Ending::Silent))));
        for (line, header) in
            [(Line::New, [0, 1, 2, 0]), (Line::Initialised, [6, 0, 0, 2]), (Line::Initialised, [8, 0, 0, 10])]
        {
            let (mut client, io) = tokio::io::duplex(1024);
            client.write_all(&header).await.unwrap();
            let long = strangers_packet(&mut tokio::io::BufReader::new(io), line).await;
            assert!(matches!(long, Err(Ending::Violation(_))), "{header:?} is not so long");
        }
        let (mut client, io) = tokio::io::duplex(1024);
        client.write_all(&[8, 0, 0, 8]).await.unwrap();
        drop(client);
        let restore = strangers_packet(&mut tokio::io::BufReader::new(io), Line::Initialised).await;
        assert!(matches!(restore, Err(Ending::Left)), "who comes back may know many channels");
    }

    #[tokio::test(start_paused = true)]
    async fn who_read_slowly_was_cut_as_one_who_does_not_read() {
        let (mut io, mut client) = tokio::io::duplex(16);
        let frames = [Bytes::from_static(&[7; 100])];
        let reads = async {
            let mut read = [0; 16];
            for _ in 0..6 {
                // Each is in time, and all together are not.
                tokio::time::sleep(WRITE_STALL_MAX / 2).await;
                client.read_exact(&mut read).await.unwrap();
            }
        };
        assert!(tokio::join!(put(&mut io, &frames), reads).0.is_ok());
        assert!(matches!(put(&mut io, &frames).await, Err(Ending::Stalled)));
    }
}
