//! The owner: seats devices of other nodes, and sits in their place.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::identity::{self, PROTOCOL};
use super::pulse::Noted;
use super::stream::{Ear, Lost, Mouth, Unheard};
use super::wire::{BadMessage, FromOwner, Refusal, ToOwner};
use super::{HEADERS_MAX, LINK_WINDOW, LINKS_MAX, LINKS_PER_ADDRESS, Links, SEATS_MAX, STREAM_WINDOW, Shared};
use crate::hub::seat::{Outbox, Place};
use crate::hub::{Admitted, Hub, JoinError, Outgoing, Seat};
use crate::metrics::{self, Forwarded, LinkFailure, Presence};
use crate::net::listen::{self, Door, Listener, Stream};
use crate::net::places::Places;
use crate::net::tasks::Tasks;
use crate::store::StoreError;

impl Links {
    /// Takes devices of other nodes into groups of this one, until `tasks` is asked to stop. Then nobody is seated any more, every
    /// seat ends with [`Outgoing::Moved`], and a link is over when its last device has left: [`Tasks::finish`] waits for that.
    pub async fn serve<L: Listener>(self: Arc<Self>, listener: L, hub: Hub, tasks: Tasks) {
        let bounds = Places::new(LINKS_MAX, LINKS_PER_ADDRESS, &[]);
        let (shared, ask) = (Arc::clone(&self.0), tasks.clone());
        let handler = move |stream, from| Arc::clone(&shared).accept(stream, from, hub.clone(), ask.clone());
        listen::serve_within(bounds, listener, Door::default(), tasks, handler).await;
    }
}

/// One link, from the node that was dialled.
struct Guests {
    shared: Arc<Shared>,
    hub: Hub,
    tasks: Tasks,
    /// The node that dialled.
    node: String,
}

impl Shared {
    async fn accept<Io>(self: Arc<Self>, stream: Stream<Io>, from: SocketAddr, hub: Hub, tasks: Tasks)
    where
        Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let shakes = timeout(listen::TLS_HANDSHAKE, self.identity.acceptor().accept(stream));
        let Some(shaken) = tasks.stop_token().run_until_cancelled(shakes).await else { return };
        let tls = match shaken.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
            Ok(tls) if tls.get_ref().1.alpn_protocol() == Some(PROTOCOL) => tls,
            // Anybody can cause these who reaches the port.
            Ok(_) => return self.fails(LinkFailure::Stranger, &from.to_string(), "it speaks no protocol of nodes"),
            Err(error) => return self.fails(LinkFailure::Stranger, &from.to_string(), &error.to_string()),
        };
        let node = identity::node_name(tls.get_ref().1.peer_certificates());
        let _open = Presence::new(metrics::get().links.of(Forwarded::In), None, None);
        Arc::new(Guests { shared: self, hub, tasks, node }).host(tls).await;
    }
}

impl Guests {
    async fn host<Io: AsyncRead + AsyncWrite + Send + Unpin + 'static>(self: Arc<Self>, io: Io) {
        let (io, heard) = Noted::new(io);
        let shaken = h2::server::Builder::new()
            .max_concurrent_streams(SEATS_MAX)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(LINK_WINDOW)
            .max_send_buffer_size(STREAM_WINDOW.try_into().unwrap_or(usize::MAX))
            .max_header_list_size(HEADERS_MAX)
            // Counted over the whole life of a link, which has no end.
            .max_local_error_reset_streams(None)
            .handshake::<_, Bytes>(io);
        let mut connection = match timeout(listen::TLS_HANDSHAKE, shaken).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return self.fails(LinkFailure::Broken, &error.to_string()),
            Err(_) => return self.fails(LinkFailure::Silent, "it says nothing"),
        };
        let ping = connection.ping_pong();
        let mut silent = pin!(heard.fades(ping, self.shared.pace));
        let seats = TaskTracker::new();
        tracing::info!(node = self.node, "another node connected");
        loop {
            tokio::select! {
                accepted = connection.accept() => match accepted {
                    Some(Ok((request, respond))) => drop(seats.spawn(Arc::clone(&self).seat(request, respond))),
                    Some(Err(error)) if !seats.is_empty() => {
                        self.fails(LinkFailure::Broken, &error.to_string());
                        break;
                    }
                    Some(Err(_)) | None => break,
                },
                () = &mut silent => {
                    self.fails(LinkFailure::Silent, "nothing came for too long: its link is given up");
                    break;
                }
                () = self.tasks.stopping(), if !seats.is_closed() => drop(seats.close()),
                // Closed above.
                () = seats.wait() => {
                    connection.graceful_shutdown();
                    let _late = timeout(super::GOODBYE, async { while let Some(Ok(_)) = connection.accept().await {} }).await;
                    break;
                }
            }
        }
        // Those that are left hear of it by their streams.
        drop(connection);
        seats.close();
        seats.wait().await;
        tracing::info!(node = self.node, "the link of another node is over");
    }

    fn fails(&self, failure: LinkFailure, why: &str) {
        self.shared.fails(failure, &self.node, why);
    }

    /// One stream.
    async fn seat(self: Arc<Self>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let mut ear = Ear::new(request.into_body());
        let Ok(stream) = respond.send_response(Response::new(()), false) else { return };
        let mut mouth = Mouth::new(stream);
        let ended = match timeout(self.shared.pace.answer_within, ear.next()).await {
            Ok(Ok(Some(ToOwner::Hello(admitted)))) => self.seated(*admitted, &mut mouth, &mut ear).await,
            Ok(Ok(Some(_))) => Err(BadMessage::OutOfTurn.into()),
            Ok(Ok(None)) | Err(_) => Err(Lost.into()),
            Ok(Err(why)) => Err(why),
        };
        match ended {
            Ok(last) => {
                if let Some(why) = last {
                    mouth.put(&FromOwner::Refused(why));
                }
                let _late = timeout(self.shared.pace.answer_within, mouth.finish()).await;
            }
            Err(Unheard::Lost(_)) => {}
            Err(Unheard::Bad(bad)) => {
                mouth.reject();
                self.fails(LinkFailure::Protocol, &bad.to_string());
            }
        }
    }

    /// From the device's introduction to its last word. `Ok`: what is still to be said, if anything.
    async fn seated(&self, admitted: Admitted, mouth: &mut Mouth, ear: &mut Ear) -> Result<Option<Refusal>, Unheard> {
        let group = admitted.group();
        if self.tasks.stop_token().is_cancelled() || self.hub.is_closed_to_guests() {
            return Ok(Some(Refusal::Moved));
        }
        let joined = tokio::select! {
            joined = self.hub.join_here(admitted) => joined,
            // It has nothing to say before it is seated, so it gave up.
            heard = ear.next::<ToOwner>() => return heard.and_then(|said| match said {
                Some(_) => Err(BadMessage::OutOfTurn.into()),
                None => Err(Lost.into()),
            }),
        };
        let Seat { mut outbox, mut place } = match joined {
            Ok(seat) => seat,
            Err(error) => {
                tracing::debug!(%group, node = self.node, %error, "no seat for a device of another node");
                return Ok(Some(match error {
                    JoinError::Elsewhere(_) | JoinError::Moving | JoinError::Store(StoreError::Lost) => Refusal::Moved,
                    JoinError::Store(_) | JoinError::Unreachable => Refusal::Failed,
                }));
            }
        };
        let _counted = Presence::new(metrics::get().forwarded_seats.of(Forwarded::In), None, None);
        mouth.put(&FromOwner::Seated);
        let mut introduced = false;
        let ended = tokio::select! {
            // By order: who left need not be told anything.
            biased;
            heard = listen(ear, &place, &mut introduced) => heard.map(|gone| match gone {
                Gone::Device => None,
                Gone::Group => Some(Refusal::Failed),
            }),
            spoken = self.speak(mouth, &mut outbox) => spoken.map_err(Unheard::from),
        };
        if introduced {
            place.introduced();
        }
        ended
    }

    /// Says what the group says. `Ok`: it has no more to say, without having said the last word; or that was said long ago.
    async fn speak(&self, mouth: &mut Mouth, outbox: &mut Outbox) -> Result<Option<Refusal>, Lost> {
        loop {
            mouth.flush().await?;
            let next = tokio::select! {
                next = outbox.next() => next,
                () = self.tasks.stopping() => Some(Outgoing::Moved),
            };
            let Some(mut next) = next else { return Ok(Some(Refusal::Failed)) };
            loop {
                let is_last = !matches!(next, Outgoing::Payload(_));
                mouth.put(&FromOwner::Says(next));
                if is_last {
                    mouth.flush().await?;
                    // It is for the device's node to end it.
                    tokio::time::sleep(self.shared.pace.last_word).await;
                    return Ok(None);
                }
                match outbox.try_next() {
                    Some(more) if !mouth.is_full() => next = more,
                    Some(more) => {
                        mouth.flush().await?;
                        next = more;
                    }
                    None => break,
                }
            }
        }
    }
}

/// Who is not there any more.
enum Gone {
    Device,
    Group,
}

/// Hears what the device says. Until it is said that its chat server connection is closed, the group believes that it is open.
async fn listen(ear: &mut Ear, place: &Place, introduced: &mut bool) -> Result<Gone, Unheard> {
    let mut proxy = Some(place.proxies.token());
    loop {
        let Some(said) = ear.next().await? else { return Err(Lost.into()) };
        let passed = match said {
            ToOwner::Hello(_) => return Err(BadMessage::OutOfTurn.into()),
            ToOwner::Request(request) => place.say(request).await,
            ToOwner::Written(cost) => {
                *introduced = true;
                place.written(cost).await
            }
            ToOwner::Released => {
                drop(proxy.take());
                Ok(())
            }
            ToOwner::Left { introduced: was } => {
                *introduced = was;
                return Ok(Gone::Device);
            }
        };
        if passed.is_err() {
            return Ok(Gone::Group);
        }
    }
}
