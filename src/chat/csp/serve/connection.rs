//! One connection, from the first byte to the last: one task, one way out.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use super::actor::Mail;
use super::gate::{Attempt, Gate};
use super::outbox::{Batch, Outbox};
use crate::chat::csp::state::{ConnId, Ending, Join, Line, LineStep};
use crate::chat::csp::store::{Directory, DirectoryState, StoreError};
use crate::chat::csp::wire::handshake::{AwaitLogin, CLIENT_HELLO, LOGIN_BOX, Verified};
use crate::chat::csp::wire::{Frames, FromClient, HandshakeError, Identity, Opener, Sealer, Session};
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
/// How much is sealed for one write, in bytes: inside the server an echo waits behind no more than that. Beyond lies the
/// kernel's send buffer: what that has taken goes first, so on a slow line an echo does wait behind messages, up to the
/// buffer's size (some megabytes where it tunes itself). TCP_NOTSENT_LOWAT would keep it short; tokio cannot set it.
const WRITE_BYTES: usize = 32 * 1024;
/// Longest client info that is logged, in characters.
const CLIENT_INFO_MAX: usize = 256;

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) server_key: Secret<32>,
    pub(super) directory: Directory,
    pub(super) clock: Clock,
    /// Messages in flight to a connection, at most.
    pub(super) window: usize,
    pub(super) gate: Gate,
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
    #[error("closed before it said anything")]
    Silent,
    #[error("gone in the middle of its handshake: {0}")]
    Unfinished(#[source] std::io::Error),
    #[error("{who} cannot be looked up: {1}", who = .0.log_id())]
    Store(Identity, #[source] StoreError),
    #[error("{0}")]
    Ended(Ending),
    #[error("gone before it heard that it is let in: {0}")]
    Unheard(#[source] std::io::Error),
    #[error("proved who it is, but the server took too long to let it in")]
    KeptWaiting,
    #[error("the server stops")]
    ShuttingDown,
}

impl Refused {
    /// Whether it counts against the address it came from. Opening a connection and closing it does not: whoever watches
    /// a port does that. Whoever made this server calculate and was not let in counts, and so does who kept it waiting.
    const fn is_suspicious(&self) -> bool {
        match self {
            Self::Handshake(_) | Self::Unknown(_) | Self::TimedOut | Self::Unfinished(_) => true,
            Self::Silent
            | Self::Store(..)
            | Self::Ended(_)
            | Self::Unheard(_)
            | Self::KeptWaiting
            | Self::ShuttingDown => false,
        }
    }

    const fn counted_as(&self) -> Login {
        match self {
            Self::Handshake(_) | Self::Unknown(_) => Login::Refused,
            Self::TimedOut => Login::TimedOut,
            Self::Silent
            | Self::Unfinished(_)
            | Self::Store(..)
            | Self::Ended(_)
            | Self::Unheard(_)
            | Self::KeptWaiting
            | Self::ShuttingDown => Login::Lost,
        }
    }
}

/// Serves one client. Everything that was told to the actor is taken back when this returns.
pub(super) async fn run(
    shared: Arc<Shared>,
    mailbox: mpsc::Sender<Mail>,
    conn: ConnId,
    socket: TcpStream,
    attempt: Attempt,
) {
    let metrics = metrics::get();
    let (opened, closed) = (metrics.chat_opened.of(Room::Csp), metrics.chat_closed.of(Room::Csp));
    let _counted = Presence::new(metrics.chat_connections.of(Room::Csp), Some(opened), Some(closed));
    let logins = metrics.chat_logins.of(Room::Csp);
    let outbox = Arc::new(Outbox::new(shared.window));
    let admitted = tokio::select! {
        admitted = admit(&shared, &mailbox, &outbox, conn, socket) => admitted,
        () = shared.shutdown.cancelled() => Err(Refused::ShuttingDown),
    };
    match admitted {
        Ok(Admitted { identity, session, socket }) => {
            drop(attempt);
            logins.of(Login::Accepted).increment(1);
            let ending = serve(&shared, &mailbox, &outbox, conn, session, socket).await;
            info!(identity = %identity.log_id(), %ending, "connection ended");
        }
        Err(refused) => {
            logins.of(refused.counted_as()).increment(1);
            // Sent for those who never joined as well: it names a connection, so it cannot hit anybody else.
            let _ = mailbox.send(Mail::Left(conn)).await;
            match &refused {
                Refused::Store(..) => error!(%refused, "not let in"),
                _ => debug!(%refused, "not let in"),
            }
            if refused.is_suspicious() {
                attempt.failed(shared.clock.now());
            }
        }
    }
}

/// Somebody who is logged in, and knows it.
#[derive(Debug)]
struct Admitted {
    identity: Identity,
    session: Session,
    socket: TcpStream,
}

async fn admit(
    shared: &Shared,
    mailbox: &mpsc::Sender<Mail>,
    outbox: &Arc<Outbox>,
    conn: ConnId,
    mut socket: TcpStream,
) -> Result<Admitted, Refused> {
    let deadline = shared.clock.instant_at(shared.clock.now().monotonic.saturating_add(HANDSHAKE_MAX));
    let proof = tokio::time::timeout_at(deadline, handshake(shared, &mut socket)).await;
    let verified = proof.unwrap_or(Err(Refused::TimedOut))?;
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
    let seated = async {
        let joined = mailbox.send(Mail::Join { join, outbox: Arc::clone(outbox) }).await;
        joined.map_err(|_| Refused::ShuttingDown)?;
        let ack = outbox.admitted().await.map_err(Refused::Ended)?;
        let (session, ack) = verified.accept(ack);
        socket.write_all(&ack).await.map_err(Refused::Unheard)?;
        Ok(session)
    };
    let session = tokio::time::timeout_at(deadline, seated).await.unwrap_or(Err(Refused::KeptWaiting))?;
    Ok(Admitted { identity, session, socket })
}

/// Serves a client that is logged in. The actor hears that it leaves before the client hears why: from the moment it
/// is decided nobody is to count on this connection, however long the farewell takes. Else a message with the push
/// flag would wake nobody, because somebody is there who was just told to go.
async fn serve(
    shared: &Shared,
    mailbox: &mpsc::Sender<Mail>,
    outbox: &Outbox,
    conn: ConnId,
    session: Session,
    socket: TcpStream,
) -> Ending {
    let (mut reading, mut writing) = socket.into_split();
    let ending = {
        let mut write = std::pin::pin!(write(&mut writing, session.sealer, shared.clock, mailbox, outbox, conn));
        let read = read(&mut reading, session.opener, shared, mailbox, outbox, conn);
        let (written, decided) = tokio::select! {
            ending = &mut write => (Some(ending), None),
            ending = read => (None, Some(ending)),
            () = shared.shutdown.cancelled() => (None, Some(Ending::ShuttingDown)),
            () = outbox.ended() => (None, None),
        };
        let _ = mailbox.send(Mail::Left(conn)).await;
        if let Some(ending) = decided {
            outbox.end(ending);
        }
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
    ending
}

async fn handshake<IO: AsyncRead + AsyncWrite + Unpin>(shared: &Shared, socket: &mut IO) -> Result<Verified, Refused> {
    let mut hello = [0; CLIENT_HELLO];
    let (first, rest) = hello.split_at_mut(1);
    if !matches!(socket.read(first).await, Ok(1)) {
        return Err(Refused::Silent);
    }
    socket.read_exact(rest).await.map_err(Refused::Unfinished)?;
    let (wait, answer) = AwaitLogin::answer(&shared.server_key, &hello, Secret::random(), random::bytes())?;
    socket.write_all(&answer).await.map_err(Refused::Unfinished)?;
    let mut login = [0; LOGIN_BOX];
    socket.read_exact(&mut login).await.map_err(Refused::Unfinished)?;
    let data = wait.open(&login)?;
    // Some clients write the two boxes separately (spec 2.3).
    let mut extensions = vec![0; data.extensions_len()];
    socket.read_exact(&mut extensions).await.map_err(Refused::Unfinished)?;
    let claim = data.claim(&extensions)?;
    let identity = claim.identity();
    let entry = shared.directory.lookup(identity).await.map_err(|error| Refused::Store(identity, error))?;
    let entry = entry.filter(|entry| entry.state == DirectoryState::Active).ok_or(Refused::Unknown(identity))?;
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
    clock: Clock,
    mailbox: &mpsc::Sender<Mail>,
    outbox: &Outbox,
    conn: ConnId,
) -> Ending {
    let mut buffer = BytesMut::new();
    loop {
        buffer.clear();
        let (written, ending) = match outbox.next(WRITE_BYTES, &clock).await {
            Batch::Items(items) => (items, None),
            Batch::End(ending) => (Vec::new(), Some(ending)),
        };
        let farewell = ending.as_ref().and_then(Ending::farewell).map(|farewell| farewell.encode());
        for container in written.iter().map(|item| &item.container).chain(&farewell) {
            if let Err(too_long) = sealer.seal_frame(container, &mut buffer) {
                return too_long.into();
            }
        }
        match tokio::time::timeout(WRITE_STALL_MAX, socket.write_all(&buffer)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return ending.unwrap_or(Ending::Gone),
            Err(_) => return ending.unwrap_or(Ending::WriteStalled),
        }
        if let Some(ending) = ending {
            return ending;
        }
        for seq in written.iter().filter_map(|item| item.written) {
            if mailbox.send(Mail::Written { conn, seq }).await.is_err() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::csp::store::Directory;
    use crate::chat::csp::wire::handshake::AwaitServerHello;
    use crate::chat::csp::wire::{CspDeviceId, DeviceCookie, Extensions, Introduction};
    use crate::crypto::boxes;

    /// The pipe between holds so many bytes and takes no more before the server has read them: whatever its first read of
    /// the login asks for, it gets the bytes up to the split and not one more.
    #[tokio::test]
    async fn csp_13_2_login_split_at_every_byte_position() {
        let dir = tempfile::tempdir().unwrap();
        let (server_key, client_key) = (Secret::random(), Secret::random());
        let identity: Identity = "ABCD1234".parse().unwrap();
        let shared = Shared {
            server_key,
            directory: Directory::open(dir.path()).await.unwrap(),
            clock: Clock::system(),
            window: 1,
            gate: Gate::new(&[]),
            shutdown: CancellationToken::new(),
        };
        shared.directory.add(identity, &boxes::public(&client_key), "a0").await.unwrap();
        let (shared, server_public) = (&shared, boxes::public(&shared.server_key));
        let introduction = Introduction::Extensions(Extensions {
            client_info: Some("1.0;Q;en/CH;".into()),
            device_id: Some(CspDeviceId(7)),
            cookie: Some(DeviceCookie([3; 16])),
            ..Extensions::default()
        });
        let (mut split, mut len) = (1, usize::MAX);
        while split < len {
            let (client, mut server) = tokio::io::duplex(split);
            let client = async {
                let (mut reading, mut writing) = tokio::io::split(client);
                let (wait, hello) = AwaitServerHello::start(vec![server_public], Secret::random(), random::bytes());
                writing.write_all(&hello).await.unwrap();
                let mut answer = [0; 80];
                reading.read_exact(&mut answer).await.unwrap();
                // All that was written so far has been read: the pipe is empty.
                let (_, login) = wait.login(&answer, identity, &client_key, &introduction).unwrap();
                // It fails when the server hangs up; why, the server's side says.
                let _ = writing.write_all(&login).await;
                login.len()
            };
            // Hangs up when it is done.
            let server = async move { handshake(shared, &mut server).await };
            let (written, verified) = tokio::join!(client, server);
            let verified = verified.unwrap_or_else(|refused| panic!("split at {split}: {refused}"));
            assert_eq!((verified.identity(), verified.introduction()), (identity, &introduction));
            (split, len) = (split + 1, written);
        }
        assert!(len > LOGIN_BOX + 16, "both boxes were there");
        shared.directory.close().await;
    }
}
