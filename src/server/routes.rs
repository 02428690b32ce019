//! The public door: the last path segment names a device group, and then the connection becomes a WebSocket; everybody
//! else gets a status and a short text (spec 1.3).
//!
//! There is one fallback and no route, because a router that normalises `//` by a redirect would shut out the clients
//! that build such paths.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Extension, FromRequestParts as _, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::{RequestExt as _, Router};
use dashmap::DashMap;
use tokio_util::task::TaskTracker;

use super::{Admission, Peer};
use crate::log::Occasionally;
use crate::metrics::{self, Bounded as _, Refused};
use crate::session::{self, Context};
use crate::wire::d2m::{BadUrl, ClientUrlInfo};

/// What operators' tools ask for by habit. Never a group, and nothing to be found at this door.
const NOT_HERE: [&str; 7] = ["/", "/healthz", "/livez", "/readyz", "/metrics", "/favicon.ico", "/robots.txt"];

/// The state of the public door.
#[derive(Debug)]
pub struct Public {
    context: Arc<Context>,
    admission: Admission,
    sessions: TaskTracker,
    connections: AtomicUsize,
    per_address: DashMap<IpAddr, usize>,
    refusals: Occasionally<Refused>,
}

impl Public {
    pub(super) fn new(context: Context, admission: Admission, sessions: TaskTracker) -> Self {
        let (connections, per_address) = (AtomicUsize::new(0), DashMap::new());
        let refusals = Occasionally::new(context.clock);
        Self { context: Arc::new(context), admission, sessions, connections, per_address, refusals }
    }

    /// Connections that are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Counts somebody who was turned away, and writes a line if none like it was written in this second.
    fn tell_refused(&self, why: Refused, peer: SocketAddr) {
        metrics::get().refused.of(why).increment(1);
        if let Some(others) = self.refusals.may_say(why) {
            tracing::info!(%peer, why = why.value(), others, "turned away at the door");
        }
    }

    /// Counts a connection in, if it may come in. It is counted out when the guard is dropped.
    fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Entered, Refusal> {
        let before = self.connections.fetch_add(1, Ordering::Relaxed);
        let mut entered = Entered { public: Arc::clone(self), address: None };
        if self.admission.max_connections.is_some_and(|max| before >= max) {
            return Err(Refusal::Full);
        }
        if let Some(max) = self.admission.max_connections_per_address {
            let mut from_here = self.per_address.entry(address).or_insert(0);
            *from_here += 1;
            entered.address = Some(address);
            if *from_here > max {
                // The guard of the map goes before the one that counts out.
                drop(from_here);
                return Err(Refusal::FullForAddress);
            }
        }
        Ok(entered)
    }
}

/// A connection that was counted in.
#[derive(Debug)]
struct Entered {
    public: Arc<Public>,
    address: Option<IpAddr>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.public.connections.fetch_sub(1, Ordering::Relaxed);
        if let Some(address) = self.address {
            if let Some(mut from_here) = self.public.per_address.get_mut(&address) {
                *from_here = from_here.saturating_sub(1);
            }
            self.public.per_address.remove_if(&address, |_, connections| *connections == 0);
        }
    }
}

/// Why a request does not become a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Method,
    NotHere,
    Url(BadUrl),
    NotAllowed,
    Full,
    FullForAddress,
    Stopping,
}

impl Refusal {
    const fn status(self) -> StatusCode {
        match self {
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotHere | Self::Url(BadUrl::NoSegment) => StatusCode::NOT_FOUND,
            Self::Url(BadUrl::TooLong) => StatusCode::URI_TOO_LONG,
            Self::Url(BadUrl::NotHex | BadUrl::NotClientUrlInfo | BadUrl::DeviceGroupId | BadUrl::ServerGroup) => {
                StatusCode::BAD_REQUEST
            }
            Self::NotAllowed => StatusCode::FORBIDDEN,
            Self::Full | Self::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            Self::FullForAddress => StatusCode::TOO_MANY_REQUESTS,
        }
    }

    const fn counted_as(self) -> Refused {
        match self {
            Self::Method => Refused::Method,
            Self::NotHere => Refused::NotHere,
            Self::Url(_) => Refused::Url,
            Self::NotAllowed => Refused::NotAllowed,
            Self::Full => Refused::Full,
            Self::FullForAddress => Refused::FullForAddress,
            Self::Stopping => Refused::Stopping,
        }
    }

    fn text(self) -> String {
        match self {
            Self::Method => "only GET".to_owned(),
            Self::NotHere => "this door is for devices only".to_owned(),
            Self::Url(bad) => bad.to_string(),
            Self::NotAllowed => "this device group is not served here".to_owned(),
            Self::Full | Self::FullForAddress => "too many connections".to_owned(),
            Self::Stopping => "shutting down".to_owned(),
        }
    }
}

pub(super) fn router(public: Arc<Public>) -> Router {
    Router::new().fallback(upgrade).with_state(public)
}

async fn upgrade(
    State(public): State<Arc<Public>>,
    Extension(Peer(peer)): Extension<Peer>,
    request: Request,
) -> Response {
    match admit(&public, peer.ip(), &request) {
        Ok((url, entered)) => {
            let (mut parts, _body) = request.with_limited_body().into_parts();
            let upgrade = match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
                Ok(upgrade) => session::socket::limit(upgrade),
                Err(rejection) => {
                    public.tell_refused(Refused::NotWebSocket, peer);
                    let text = rejection.body_text() + "\n";
                    return (StatusCode::UPGRADE_REQUIRED, [(header::UPGRADE, "websocket")], text).into_response();
                }
            };
            let (context, running) = (Arc::clone(&public.context), public.sessions.token());
            upgrade.on_upgrade(async move |socket| {
                session::run(socket, url, context).await;
                drop((entered, running));
            })
        }
        Err(refusal) => {
            public.tell_refused(refusal.counted_as(), peer);
            (refusal.status(), refusal.text() + "\n").into_response()
        }
    }
}

fn admit(public: &Arc<Public>, address: IpAddr, request: &Request) -> Result<(ClientUrlInfo, Entered), Refusal> {
    if request.method() != Method::GET {
        return Err(Refusal::Method);
    }
    let path = request.uri().path();
    if NOT_HERE.contains(&path) {
        return Err(Refusal::NotHere);
    }
    if public.context.stop.is_cancelled() {
        return Err(Refusal::Stopping);
    }
    let url = ClientUrlInfo::from_path(path).map_err(Refusal::Url)?;
    if public.admission.groups.as_ref().is_some_and(|groups| !groups.contains(&url.device_group_id)) {
        return Err(Refusal::NotAllowed);
    }
    Ok((url, public.enter(address)?))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use hyper::service::Service as _;
    use hyper_util::service::TowerToHyperService;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::group::Limits;
    use crate::hub::Hub;
    use crate::session::Timeouts;
    use crate::store::memory::MemoryStore;
    use crate::time::Clock;
    use crate::upstream::{Directory, TcpDial, UpstreamLimits};

    fn public(stop: &CancellationToken) -> Arc<Public> {
        let context = Context {
            hub: Hub::new(Arc::new(MemoryStore::new()), Limits::default(), Clock::system()),
            directory: Directory::default(),
            dial: Arc::new(TcpDial),
            upstream: UpstreamLimits::default(),
            clock: Clock::system(),
            timeouts: Timeouts::default(),
            stop: stop.clone(),
        };
        Arc::new(Public::new(context, Admission::default(), TaskTracker::new()))
    }

    async fn status(public: &Arc<Public>, path: &str) -> StatusCode {
        let peer = Peer(([127, 0, 0, 1], 1).into());
        let service = TowerToHyperService::new(router(Arc::clone(public)).layer(Extension(peer)));
        service.call(Request::get(path).body(Body::empty()).unwrap()).await.unwrap().status()
    }

    #[tokio::test]
    async fn d2m_1_3_nobody_comes_in_any_more_while_the_mediator_stops() {
        let stop = CancellationToken::new();
        let public = public(&stop);
        let path = "/0a202fd17ba2f9c2c31e52f0acbba8ff741ac89b3b58a8c208a25ad4a625ea1387231a026130";
        assert_eq!(status(&public, path).await, StatusCode::UPGRADE_REQUIRED);
        assert_eq!(public.connections(), 0, "whoever is turned away is not counted");
        stop.cancel();
        assert_eq!(status(&public, path).await, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(status(&public, "/metrics").await, StatusCode::NOT_FOUND);
    }
}
