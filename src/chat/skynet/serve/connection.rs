//! One connection, from the first byte to the last: a reader that hands over one packet at a time and waits until it is dealt
//! with, and a writer that empties the line.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::actor::{Answer, Mail};
use super::gate::Gate;
use super::outbox::{Item, Outbox};
use super::scene::{Settings, render};
use crate::chat::skynet::state::ConnId;
use crate::chat::skynet::state::line::Line;
use crate::chat::skynet::store::{Store, StoreError};
use crate::chat::skynet::wire::{
    BadPacket, FromClient, HEADER, MEMBERS_PAYLOAD_MAX, STRANGERS_PAYLOAD_MAX, ToClient, read_header,
};
use crate::metrics::{self, Presence, Room};

/// How long somebody who has not logged in may be silent: the protocol has no ping, and people type passwords.
pub const STRANGER_SILENT_MAX: Duration = Duration::from_secs(300);
/// How long one write may take before the client counts as not reading.
pub const WRITE_STALL_MAX: Duration = Duration::from_secs(30);
/// Messages of a sync that are read at once.
const PAGE: usize = 64;

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) store: Store,
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
    let (mut line, mut hello) = (Line::New, Hello::default());
    loop {
        outbox.room().await;
        let packet = if line == Line::Authenticated {
            next_packet(&mut io, MEMBERS_PAYLOAD_MAX).await
        } else {
            let packet = tokio::time::timeout(STRANGER_SILENT_MAX, next_packet(&mut io, STRANGERS_PAYLOAD_MAX)).await;
            packet.unwrap_or(Err(Ending::Silent))
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
            line = Line::greeted(&state);
            hello = Hello { application, version_code };
            match (ToClient::ConnectionResponse { state }).encode() {
                Ok(frame) => drop(outbox.put(Item::Frame(frame))),
                Err(_) => return Ending::Violation("a release name that is too long"),
            }
            continue;
        }
        if line != Line::Authenticated {
            shared.gate.pass(conn, from, &packet).await;
        }
        let (answer, answered) = oneshot::channel();
        let mail = Mail::Said { conn, hello: hello.clone(), packet, outbox: Arc::clone(outbox), answer };
        if mailbox.send(mail).await.is_err() {
            return Ending::ShuttingDown;
        }
        match answered.await {
            Ok(Answer::Stay) => {}
            Ok(Answer::Authenticated) => line = Line::Authenticated,
            // The writer ends it, when it has said everything.
            Ok(Answer::Over) => std::future::pending().await,
            Ok(Answer::Violation(why)) => return Ending::Violation(why),
            Err(_) => return Ending::Cut,
        }
    }
}

/// The next packet. Its payload is read as it comes: what is only announced takes no memory.
async fn next_packet<Io: AsyncRead + Unpin>(io: &mut Io, max: usize) -> Result<FromClient, Ending> {
    let mut header = [0; HEADER];
    match io.read_exact(&mut header).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(Ending::Left),
        Err(error) => return Err(error.into()),
    }
    let (id, len) = read_header(header);
    if len > max {
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
                for page in ids.chunks(PAGE) {
                    let frames = match page_of(store, account, page, found).await {
                        Ok(frames) => frames,
                        Err(error) => return error.into(),
                    };
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

async fn page_of(
    store: &Store,
    account: crate::chat::skynet::wire::AccountId,
    ids: &[i64],
    found: bool,
) -> Result<Vec<Bytes>, StoreError> {
    let mut work = store.read().await?;
    let mut frames = Vec::with_capacity(ids.len());
    for message in work.messages(ids).await? {
        frames.extend(render(&mut work, &message, account, -1, found).await?);
    }
    Ok(frames)
}

async fn put<Io: AsyncWrite + Unpin>(io: &mut Io, frames: &[Bytes]) -> Result<(), Ending> {
    let write = async {
        for frame in frames {
            io.write_all(frame).await?;
        }
        io.flush().await
    };
    Ok(tokio::time::timeout(WRITE_STALL_MAX, write).await.map_err(|_| Ending::Stalled)??)
}
