//! One connection, from the first byte to the last: one task, one way out.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::actor::Mail;
use super::gate::Gate;
use super::outbox::{Batch, Outbox};
use crate::chat::csp::state::{ConnId, Ending, Join, Line, LineStep};
use crate::chat::csp::store::{Directory, DirectoryState, StoreError};
use crate::chat::csp::wire::handshake::{AwaitLogin, CLIENT_HELLO, LOGIN_BOX, Verified};
use crate::chat::csp::wire::{Frames, FromClient, HandshakeError, Identity, Opener, Sealer};
use crate::crypto::{Secret, random};
use crate::metrics::{self, Login, Presence, Room};
use crate::time::Clock;
use crate::wire::delimit::{BadUnit, Cutter};

/// How long a handshake may take, from the first byte to the login-ack (spec 2.7).
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(20);
/// How long one write may take before the client counts as not reading.
pub const WRITE_STALL_MAX: Duration = Duration::from_secs(30);
/// How long a farewell may take: what waits ahead, the close-error, and the client's own close.
const FAREWELL_MAX: Duration = Duration::from_secs(5);
/// How much is sealed for one write, in bytes: an echo never waits behind more than that.
const WRITE_BYTES: usize = 32 * 1024;
/// Longest client info that is logged, in characters.
const CLIENT_INFO_MAX: usize = 256;

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) server_key: Secret<32>,
    pub(super) directory: Directory,
    pub(super) clock: Clock,
    pub(super) gate: Mutex<Gate>,
    pub(super) shutdown: CancellationToken,
}

/// Why nobody was let in. The client sees nothing but the end of the connection.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error("unknown or revoked identity {}", .0.log_id())]
    Unknown(Identity),
    #[error("too slow")]
    TimedOut,
    #[error("{0}")]
    Socket(#[from] std::io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0}")]
    Ended(Ending),
    #[error("the server stops")]
    ShuttingDown,
}

impl Refused {
    /// Whether it counts against the address it came from.
    const fn is_suspicious(&self) -> bool {
        match self {
            Self::Handshake(_) | Self::Unknown(_) | Self::TimedOut => true,
            Self::Socket(_) | Self::Store(_) | Self::Ended(_) | Self::ShuttingDown => false,
        }
    }

    const fn counted_as(&self) -> Login {
        match self {
            Self::Handshake(_) | Self::Unknown(_) => Login::Refused,
            Self::TimedOut => Login::TimedOut,
            Self::Socket(_) | Self::Store(_) | Self::Ended(_) | Self::ShuttingDown => Login::Lost,
        }
    }
}

/// Serves one client. Everything that was told to the actor is taken back when this returns.
pub(super) async fn run(
    shared: Arc<Shared>,
    mailbox: mpsc::Sender<Mail>,
    conn: ConnId,
    socket: TcpStream,
    from: SocketAddr,
) {
    let metrics = metrics::get();
    let (opened, closed) = (metrics.chat_opened.of(Room::Csp), metrics.chat_closed.of(Room::Csp));
    let _counted = Presence::new(metrics.chat_connections.of(Room::Csp), Some(opened), Some(closed));
    let logins = metrics.chat_logins.of(Room::Csp);
    let outbox = Arc::new(Outbox::default());
    let ending = run_inner(&shared, &mailbox, &outbox, conn, socket).await;
    // Sent for those who never joined as well: it names a connection, so it cannot hit anybody else.
    let _ = mailbox.send(Mail::Left(conn)).await;
    match ending {
        Ok((identity, ending)) => info!(identity = %identity.log_id(), %ending, "connection ended"),
        Err(refused) => {
            logins.of(refused.counted_as()).increment(1);
            debug!(%refused, "not let in");
            if refused.is_suspicious() {
                shared.gate_failed(from.ip());
            }
        }
    }
}

async fn run_inner(
    shared: &Shared,
    mailbox: &mpsc::Sender<Mail>,
    outbox: &Arc<Outbox>,
    conn: ConnId,
    mut socket: TcpStream,
) -> Result<(Identity, Ending), Refused> {
    let admission = async {
        let verified = handshake(shared, &mut socket).await?;
        let identity = verified.identity();
        let introduction = verified.introduction();
        let info: String = introduction.client_info().chars().take(CLIENT_INFO_MAX).collect();
        debug!(identity = %identity.log_id(), client_info = %info.escape_debug(), "vouch verified");
        let join = Join {
            conn,
            identity,
            device: introduction.device_id(),
            features: introduction.features(),
            cookie: introduction.cookie(),
        };
        let joined = mailbox.send(Mail::Join { join, outbox: Arc::clone(outbox) }).await;
        joined.map_err(|_| Refused::ShuttingDown)?;
        let ack = outbox.admitted().await.map_err(Refused::Ended)?;
        let (session, ack) = verified.accept(ack);
        socket.write_all(&ack).await?;
        Ok((identity, session))
    };
    let (identity, session) = tokio::select! {
        admitted = tokio::time::timeout(HANDSHAKE_MAX, admission) => admitted.unwrap_or(Err(Refused::TimedOut))?,
        () = shared.shutdown.cancelled() => return Err(Refused::ShuttingDown),
    };
    metrics::get().chat_logins.of(Room::Csp).of(Login::Accepted).increment(1);

    let (mut reading, mut writing) = socket.into_split();
    let ending = {
        let mut write = std::pin::pin!(write(&mut writing, session.sealer, outbox, mailbox, identity));
        let read = read(&mut reading, session.opener, shared, mailbox, outbox, conn);
        let written = tokio::select! {
            ending = &mut write => Some(ending),
            ending = read => { outbox.end(ending); None }
            () = shared.shutdown.cancelled() => { outbox.end(Ending::ShuttingDown); None }
            () = outbox.ended() => None,
        };
        match written {
            Some(ending) => ending,
            // That it reads nothing is known already.
            None if outbox.ending() == Some(Ending::OutboxFull) => Ending::OutboxFull,
            // Nothing more is read. The writer may be stuck with a client that reads nothing: it gets this long.
            None => match tokio::time::timeout(FAREWELL_MAX, write).await {
                Ok(ending) => ending,
                Err(_) => outbox.ending().unwrap_or(Ending::WriteStalled),
            },
        }
    };
    if ending.farewell().is_some() {
        tokio::select! {
            () = linger(reading, writing) => {}
            () = shared.shutdown.cancelled() => {}
        }
    }
    Ok((identity, ending))
}

async fn handshake(shared: &Shared, socket: &mut TcpStream) -> Result<Verified, Refused> {
    let mut hello = [0; CLIENT_HELLO];
    socket.read_exact(&mut hello).await?;
    let (wait, answer) = AwaitLogin::answer(&shared.server_key, &hello, Secret::random(), random::bytes())?;
    socket.write_all(&answer).await?;
    let mut login = [0; LOGIN_BOX];
    socket.read_exact(&mut login).await?;
    let data = wait.open(&login)?;
    // Some clients write the two boxes separately (spec 2.3).
    let mut extensions = vec![0; data.extensions_len()];
    socket.read_exact(&mut extensions).await?;
    let claim = data.claim(&extensions)?;
    let identity = claim.identity();
    let entry = shared.directory.lookup(identity).await?.filter(|entry| entry.state == DirectoryState::Active);
    let entry = entry.ok_or(Refused::Unknown(identity))?;
    Ok(claim.verify(&shared.server_key, &entry.public_key)?)
}

/// Reads until the connection has to end, and says why.
async fn read(
    socket: &mut OwnedReadHalf,
    mut opener: Opener,
    shared: &Shared,
    mailbox: &mpsc::Sender<Mail>,
    outbox: &Outbox,
    conn: ConnId,
) -> Ending {
    let mut line = Line::new(shared.clock.now());
    let mut cutter = Cutter::new(Frames);
    loop {
        loop {
            let frame = match cutter.next_unit() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(BadUnit { len }) => return Ending::BadFrame(len),
            };
            let Ok(container) = opener.open_frame(&frame) else { return Ending::BadBox };
            let payload = match FromClient::decode(&container) {
                Ok(payload) => payload,
                Err(bad) => return Ending::BadContainer(bad),
            };
            let mail = match line.handle(shared.clock.now(), payload) {
                LineStep::Message(message) => Mail::Message { conn, message },
                LineStep::Route(request) => Mail::Request { conn, request },
                LineStep::Reply(payload) => {
                    outbox.send(&payload);
                    continue;
                }
                LineStep::End(ending) => return ending,
                LineStep::Heard => continue,
                LineStep::Ignored(unknown) => {
                    debug!(kind = %unknown.kind, len = unknown.len, "payload ignored");
                    continue;
                }
            };
            if mailbox.send(mail).await.is_err() {
                return Ending::ShuttingDown;
            }
        }
        tokio::select! {
            read = socket.read_buf(cutter.buffer()) => match read {
                Ok(0) | Err(_) => return Ending::Gone,
                Ok(_) => {}
            },
            () = shared.clock.sleep_until(Some(line.next_deadline())) => {
                if let Some(ending) = line.tick(shared.clock.now()) {
                    return ending;
                }
            }
        }
    }
}

/// Writes until the outbox ends, farewell included, and says why.
async fn write(
    socket: &mut OwnedWriteHalf,
    mut sealer: Sealer,
    outbox: &Outbox,
    mailbox: &mpsc::Sender<Mail>,
    identity: Identity,
) -> Ending {
    let mut buffer = BytesMut::new();
    loop {
        buffer.clear();
        let (written, ending) = match outbox.next(WRITE_BYTES).await {
            Batch::Items(items) => {
                items.iter().for_each(|item| sealer.seal_frame(&item.container, &mut buffer));
                (items, None)
            }
            Batch::End(ending) => {
                if let Some(farewell) = ending.farewell() {
                    sealer.seal_frame(&farewell.encode(), &mut buffer);
                }
                (Vec::new(), Some(ending))
            }
        };
        match tokio::time::timeout(WRITE_STALL_MAX, socket.write_all(&buffer)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return ending.unwrap_or(Ending::Gone),
            Err(_) => return ending.unwrap_or(Ending::WriteStalled),
        }
        if let Some(ending) = ending {
            return ending;
        }
        for seq in written.iter().filter_map(|item| item.written) {
            if mailbox.send(Mail::Written { receiver: identity, seq }).await.is_err() {
                return Ending::ShuttingDown;
            }
        }
    }
}

/// Closes without a reset: one that is sent because unread bytes are there could destroy the close-error on its way.
async fn linger(mut reading: OwnedReadHalf, mut writing: OwnedWriteHalf) {
    let _ = tokio::time::timeout(FAREWELL_MAX, async {
        let mut rest = [0; 1_024];
        writing.shutdown().await?;
        while reading.read(&mut rest).await? > 0 {}
        Ok::<_, std::io::Error>(())
    })
    .await;
}

impl Shared {
    pub(super) fn gate_is_open(&self, from: IpAddr) -> bool {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner).is_open(self.clock.now(), from)
    }

    fn gate_failed(&self, from: IpAddr) {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner).failed(self.clock.now(), from);
    }
}
