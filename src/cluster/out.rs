//! The device's node: dials the owner, asks for a seat, and carries what is said on it.

use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use h2::SendStream;
use h2::client::{Connection, ResponseFuture, SendRequest};
use http::Request;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::identity::{self, PROTOCOL};
use super::pulse::{Heard, Noted};
use super::stream::{Ear, Lost, Mouth, Unheard};
use super::wire::{FromOwner, Refusal, ToOwner};
use super::{GOODBYE, HEADERS_MAX, LINK_WINDOW, Links, STREAM_WINDOW, Shared};
use crate::hub::neighbours::{NeighbourError, Neighbours};
use crate::hub::seat::Said;
use crate::hub::{Admitted, FarSeat, Outgoing};
use crate::metrics::{self, Forwarded, LinkFailure, Presence};
use crate::store::Owner;
use crate::wire::d2m::DeviceGroupId;

/// What is asked of another node. There is nothing else.
const SEAT: &str = "https://owner/seat";

type Io = Noted<TlsStream<TcpStream>>;

/// The way to one address. Locked while somebody dials; others wait for what comes of it.
pub(super) type Way = Mutex<State>;

/// How things stand with a node.
#[derive(Debug, Default)]
pub(super) enum State {
    #[default]
    Closed,
    /// At this time.
    Failed(Duration),
    Open(Link),
}

/// A connection to another node.
#[derive(Debug, Clone)]
pub(super) struct Link {
    requests: SendRequest<Bytes>,
    /// Cancelled when it is over.
    gone: CancellationToken,
    /// One token for each seat.
    seats: TaskTracker,
}

/// A connection to another node was not made.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("{0} is no host and port")]
    Address(String),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("it speaks another version of the protocol between nodes")]
    Version,
    #[error(transparent)]
    Http2(#[from] h2::Error),
    #[error("it did not answer in time")]
    Late,
}

impl Neighbours for Links {
    fn seat(&self, owner: Owner, admitted: Admitted, far: FarSeat) -> BoxFuture<'_, Result<(), NeighbourError>> {
        let shared = &self.0;
        Box::pin(async move {
            let until = shared.clock.now().monotonic + shared.pace.answer_within;
            let line = tokio::select! {
                line = shared.ask(&owner, admitted) => line?,
                () = shared.clock.sleep_until(Some(until)) => {
                    shared.fails(LinkFailure::Silent, &owner.name, "it does not answer a device in time");
                    return Err(NeighbourError::Failed);
                }
            };
            let shared = Arc::clone(shared);
            self.0.tasks.spawn(async move { line.carry(far, &shared).await });
            Ok(())
        })
    }
}

impl Shared {
    /// Returns when the owner gave the device a seat.
    async fn ask(self: &Arc<Self>, owner: &Owner, admitted: Admitted) -> Result<Line, NeighbourError> {
        let (response, stream, token) = self.opens(owner).await?;
        let group = admitted.group();
        let lost = |_: Lost| NeighbourError::Unreachable;
        let broken = |error: h2::Error| lost(error.into());
        let mut mouth = Mouth::new(stream);
        mouth.put(&ToOwner::Hello(Box::new(admitted)));
        mouth.flush().await.map_err(lost)?;
        let mut ear = Ear::new(response.await.map_err(broken)?.into_body());
        let why = match ear.next().await {
            Ok(Some(FromOwner::Seated)) => {
                let counted = Presence::new(metrics::get().forwarded_seats.of(Forwarded::Out), None, None);
                return Ok(Line { mouth, ear, owner: owner.name.clone(), group, _held: (token, counted) });
            }
            Ok(Some(FromOwner::Refused(Refusal::Moved))) => NeighbourError::Moved,
            Ok(Some(FromOwner::Refused(Refusal::Failed))) => NeighbourError::Failed,
            Ok(None) | Err(Unheard::Lost(_)) => NeighbourError::Unreachable,
            Ok(Some(FromOwner::Says(_))) | Err(Unheard::Bad(_)) => {
                mouth.reject();
                self.fails(LinkFailure::Protocol, &owner.name, "it answers a device with what no node says");
                NeighbourError::Unreachable
            }
        };
        tracing::debug!(%group, node = owner.name, ?why, "a node gave a device no seat");
        Err(why)
    }

    /// A stream to a node, and what keeps its link open.
    async fn opens(
        self: &Arc<Self>,
        owner: &Owner,
    ) -> Result<(ResponseFuture, SendStream<Bytes>, TaskTrackerToken), NeighbourError> {
        // A link that breaks is found broken by whoever uses it next: then nothing was said on it, and the next one may do.
        for _ in 0..2 {
            let (link, token) = self.link(owner).await?;
            if let Ok(mut requests) = link.requests.ready().await
                && let Ok((response, stream)) = requests.send_request(request(), false)
            {
                return Ok((response, stream, token));
            }
            link.gone.cancel();
        }
        Err(NeighbourError::Unreachable)
    }

    /// The link to a node, and what keeps it open.
    async fn link(self: &Arc<Self>, owner: &Owner) -> Result<(Link, TaskTrackerToken), NeighbourError> {
        let way = self.way(&owner.address);
        let mut state = Arc::clone(&way).lock_owned().await;
        match &*state {
            State::Open(link) if !link.gone.is_cancelled() => return Ok((link.clone(), link.seats.token())),
            State::Failed(at) if self.clock.now().monotonic < *at + self.pace.again_after => {
                return Err(NeighbourError::Unreachable);
            }
            State::Closed | State::Failed(_) | State::Open(_) => {}
        }
        // Whoever dials may be given up meanwhile.
        *state = State::Closed;
        if self.closing.is_cancelled() {
            return Err(NeighbourError::Unreachable);
        }
        let dialled = timeout(self.pace.dial_within, self.dial(&owner.address)).await;
        let (requests, connection, heard) = match dialled.unwrap_or(Err(DialError::Late)) {
            Ok(dialled) => dialled,
            Err(error) => {
                *state = State::Failed(self.clock.now().monotonic);
                self.fails(LinkFailure::Unreachable, &owner.name, &error.to_string());
                return Err(NeighbourError::Unreachable);
            }
        };
        let link = Link { requests, gone: CancellationToken::new(), seats: TaskTracker::new() };
        let token = link.seats.token();
        tracing::info!(node = owner.name, address = owner.address, "connected to another node");
        let (shared, kept, node) = (Arc::clone(self), link.clone(), owner.name.clone());
        self.tasks.spawn(async move { shared.keep(connection, heard, kept.gone, kept.seats, way, node).await });
        *state = State::Open(link.clone());
        Ok((link, token))
    }

    /// Runs a link until it is lost, or nobody needs it.
    async fn keep(
        &self,
        mut connection: Connection<Io, Bytes>,
        heard: Heard,
        gone: CancellationToken,
        seats: TaskTracker,
        way: Arc<Way>,
        node: String,
    ) {
        let _open = Presence::new(metrics::get().links.of(Forwarded::Out), None, None);
        let (given_up, _gone) = (gone.clone(), gone.drop_guard());
        let ping = connection.ping_pong();
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => Some(ended),
            () = heard.fades(ping, self.pace) => {
                self.fails(LinkFailure::Silent, &node, "nothing came for too long: its link is given up");
                return;
            }
            () = unused(&way, &seats, self.pace.idle) => None,
            () = self.closing.cancelled() => None,
            // Another one has taken its place.
            () = given_up.cancelled() => return,
        };
        match ended {
            Some(Err(error)) => self.fails(LinkFailure::Broken, &node, &error.to_string()),
            Some(Ok(())) => tracing::info!(node, "the link to another node was closed there"),
            None => {
                // The last handle is dropped, after which the connection says goodbye.
                let closed = timeout(GOODBYE, async {
                    *way.lock().await = State::Closed;
                    connection.await
                });
                let _late = closed.await;
                tracing::info!(node, "the link to another node is closed");
            }
        }
    }

    fn way(&self, address: &str) -> Arc<Way> {
        let mut ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(way) = ways.get(address) {
            return Arc::clone(way);
        }
        // Nodes come and go: of those that are not used nothing is remembered.
        ways.retain(|_, way| {
            let is_open = || {
                way.try_lock().map_or(true, |state| matches!(&*state, State::Open(link) if !link.gone.is_cancelled()))
            };
            Arc::strong_count(way) > 1 || is_open()
        });
        Arc::clone(ways.entry(address.to_owned()).or_default())
    }

    async fn dial(&self, address: &str) -> Result<(SendRequest<Bytes>, Connection<Io, Bytes>, Heard), DialError> {
        let name = identity::name_of(address).ok_or_else(|| DialError::Address(address.to_owned()))?;
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let tls = self.identity.connector().connect(name, tcp).await?;
        if tls.get_ref().1.alpn_protocol() != Some(PROTOCOL) {
            return Err(DialError::Version);
        }
        let (io, heard) = Noted::new(tls);
        let (requests, connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(LINK_WINDOW)
            .max_send_buffer_size(STREAM_WINDOW.try_into().unwrap_or(usize::MAX))
            .max_header_list_size(HEADERS_MAX)
            .enable_push(false)
            // Counted over the whole life of a link, which has no end.
            .max_local_error_reset_streams(None)
            .handshake(io)
            .await?;
        Ok((requests, connection, heard))
    }

    /// Counts what is wrong with another node, and says it now and then.
    pub(super) fn fails(&self, failure: LinkFailure, node: &str, why: &str) {
        metrics::get().link_failures.of(failure).increment(1);
        if let Some(others) = self.said.may_say(failure) {
            tracing::warn!(node, why, others, ?failure, "trouble with another node");
        }
    }
}

/// Returns when there was no seat for a while, with the way closed.
async fn unused(way: &Way, seats: &TaskTracker, idle: Duration) {
    loop {
        let mut still = 0;
        while still < 4 {
            tokio::time::sleep(idle / 4).await;
            still = if seats.is_empty() { still + 1 } else { 0 };
        }
        // Who opens a seat holds this.
        if let Ok(mut state) = way.try_lock()
            && seats.is_empty()
        {
            *state = State::Closed;
            return;
        }
    }
}

fn request() -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = http::Uri::from_static(SEAT);
    *request.version_mut() = http::Version::HTTP_2;
    request
}

/// One seat's stream, from its device's node.
struct Line {
    mouth: Mouth,
    ear: Ear,
    owner: String,
    group: DeviceGroupId,
    _held: (TaskTrackerToken, Presence),
}

/// How what a session and its group have to say to each other came to an end.
#[derive(Debug)]
enum End {
    /// The device left.
    Left { introduced: bool },
    /// The group's last word.
    LastWord(Outgoing),
    /// The group failed.
    Failed,
    /// The link is lost, or as good as that.
    Lost,
}

impl Line {
    /// Carries everything both ways, until one of them ends it.
    async fn carry(mut self, mut far: FarSeat, shared: &Shared) {
        match self.converse(&mut far, shared).await {
            End::Left { introduced } => self.leave(introduced, shared).await,
            End::LastWord(last) => {
                far.end(last).await;
                self.mouth.put(&ToOwner::Released);
                let leaves = async {
                    self.mouth.flush().await.ok()?;
                    loop {
                        if let Said::Left { introduced } = far.next().await? {
                            return Some(introduced);
                        }
                    }
                };
                if let Ok(Some(introduced)) = timeout(shared.pace.last_word, leaves).await {
                    self.leave(introduced, shared).await;
                }
            }
            // As at the group's own node: its outbox closes without a farewell.
            End::Failed => {}
            End::Lost => {
                tracing::debug!(group = %self.group, node = self.owner, "the way to a device's group is lost");
                far.end(Outgoing::Moved).await;
            }
        }
    }

    async fn converse(&mut self, far: &mut FarSeat, shared: &Shared) -> End {
        loop {
            tokio::select! {
                // The group's words first: the last of them has to reach a device that talks without end.
                biased;
                heard = self.ear.next() => match heard {
                    Ok(Some(FromOwner::Says(Outgoing::Payload(payload)))) => {
                        if far.send(payload).is_err() {
                            // Gone, which it is about to say; or the owner sends more than there is room for.
                            return End::LastWord(Outgoing::Moved);
                        }
                    }
                    Ok(Some(FromOwner::Says(last))) => return End::LastWord(last),
                    Ok(Some(FromOwner::Refused(Refusal::Failed))) => return End::Failed,
                    Ok(Some(FromOwner::Refused(Refusal::Moved))) => return End::LastWord(Outgoing::Moved),
                    Ok(Some(FromOwner::Seated)) => return self.reject(shared, "it seats a device twice"),
                    Ok(None) | Err(Unheard::Lost(_)) => return End::Lost,
                    Err(Unheard::Bad(bad)) => return self.reject(shared, &bad.to_string()),
                },
                flushed = self.mouth.flush(), if self.mouth.waits() => {
                    if flushed.is_err() {
                        return End::Lost;
                    }
                }
                // Nothing more is taken from a session than has its way.
                said = far.next(), if !self.mouth.waits() => match said {
                    Some(Said::Request(request)) => self.mouth.put(&ToOwner::Request(request)),
                    Some(Said::Written(cost)) => self.mouth.put(&ToOwner::Written(cost)),
                    Some(Said::Left { introduced }) => return End::Left { introduced },
                    None => return End::Left { introduced: false },
                },
            }
        }
    }

    fn reject(&mut self, shared: &Shared, why: &str) -> End {
        shared.fails(LinkFailure::Protocol, &self.owner, why);
        self.mouth.reject();
        End::Lost
    }

    /// Says that the device left, and waits until it was heard: a stream that is dropped takes with it what is still on its way.
    async fn leave(mut self, introduced: bool, shared: &Shared) {
        self.mouth.put(&ToOwner::Left { introduced });
        let heard = async {
            self.mouth.finish().await.ok()?;
            while self.ear.next::<FromOwner>().await.ok()?.is_some() {}
            Some(())
        };
        let _late = timeout(shared.pace.last_word, heard).await;
    }
}
