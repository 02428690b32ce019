//! The public door: the last path segment names a device group, and then the connection becomes a WebSocket; everybody
//! else gets a status and a short text (spec 1.3).
//!
//! There is one fallback and no route, because a router that normalises `//` by a redirect would shut out the clients
//! that build such paths.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Extension, FromRequestParts as _, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio_util::task::TaskTracker;

use super::Peer;
use super::gate::{Admission, Denied, Entered, Gate};
use crate::log::Occasionally;
use crate::metrics::{self, Bounded as _, Refused};
use crate::session::{self, Context};
use crate::wire::d2m::{BadUrl, ClientUrlInfo};

/// What operators' tools ask for by habit. Never a group, and nothing to be found at this door.
const NOT_HERE: [&str; 7] = ["/", "/healthz", "/livez", "/readyz", "/metrics", "/favicon.ico", "/robots.txt"];

/// The state of the public door.
#[derive(Debug)]
pub struct Public {
    /// What new sessions share.
    context: ArcSwap<Context>,
    gate: Arc<Gate>,
    sessions: TaskTracker,
    said: Occasionally<Refused>,
}

impl Public {
    pub(super) fn new(context: Context, gate: Arc<Gate>, sessions: TaskTracker) -> Self {
        let said = Occasionally::new(context.clock);
        Self { context: ArcSwap::from_pointee(context), gate, sessions, said }
    }

    /// Connections that are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.gate.connections()
    }

    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Another context for new sessions, and other rules for who comes in.
    pub(super) fn change(&self, context: impl FnOnce(&Context) -> Context, admission: Admission) {
        self.context.store(Arc::new(context(&self.context.load())));
        self.gate.follow(admission);
    }
}

/// Why a request does not become a connection.
#[derive(Debug)]
struct Refusal {
    why: Refused,
    text: String,
    retry_after: Option<Duration>,
    /// More specific than what follows from `why`.
    status: Option<StatusCode>,
}

impl Refusal {
    fn new(why: Refused, text: impl Into<String>) -> Self {
        Self { why, text: text.into(), retry_after: None, status: None }
    }

    fn status(&self) -> StatusCode {
        self.status.unwrap_or(match self.why {
            Refused::Method => StatusCode::METHOD_NOT_ALLOWED,
            Refused::NotHere => StatusCode::NOT_FOUND,
            Refused::Url | Refused::ProxyHeader => StatusCode::BAD_REQUEST,
            Refused::NotWebSocket => StatusCode::UPGRADE_REQUIRED,
            Refused::NotAllowed => StatusCode::FORBIDDEN,
            Refused::FullForAddress | Refused::FullForGroup | Refused::AddressRate | Refused::GroupRate => {
                StatusCode::TOO_MANY_REQUESTS
            }
            Refused::Full | Refused::NewGroups | Refused::Overload | Refused::Stopping => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        })
    }
}

impl From<Denied> for Refusal {
    fn from(Denied { why, retry_after }: Denied) -> Self {
        let text = match why {
            Refused::NotAllowed => "this device group is not served here",
            Refused::AddressRate | Refused::GroupRate => "too many handshakes",
            Refused::NewGroups | Refused::Overload => "no new device groups at the moment",
            Refused::Stopping => "shutting down",
            Refused::Full | Refused::FullForAddress | Refused::FullForGroup => "too many connections",
            // Said by others than the gate.
            Refused::Method | Refused::NotHere | Refused::Url | Refused::NotWebSocket | Refused::ProxyHeader => "",
        };
        Self { retry_after, ..Self::new(why, text) }
    }
}

impl From<BadUrl> for Refusal {
    fn from(bad: BadUrl) -> Self {
        let status = match bad {
            BadUrl::NoSegment => StatusCode::NOT_FOUND,
            BadUrl::TooLong => StatusCode::URI_TOO_LONG,
            BadUrl::NotHex | BadUrl::NotClientUrlInfo | BadUrl::DeviceGroupId | BadUrl::ServerGroup => {
                StatusCode::BAD_REQUEST
            }
        };
        Self { status: Some(status), ..Self::new(Refused::Url, bad.to_string()) }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut headers = HeaderMap::new();
        // Who has no business here does not stay.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        if self.why == Refused::NotWebSocket {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade, close"));
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        }
        if let Some(after) = self.retry_after {
            // Whole seconds, and none of them too early.
            let seconds = after.as_millis().div_ceil(1_000).max(1);
            headers.insert(header::RETRY_AFTER, u64::try_from(seconds).unwrap_or(u64::MAX).into());
        }
        (self.status(), headers, self.text + "\n").into_response()
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
    match admit(&public, peer.ip(), request).await {
        Ok((upgrade, url, entered)) => {
            let (context, running) = (public.context.load_full(), public.sessions.token());
            let leave = entered.leave.clone();
            upgrade.on_upgrade(move |socket| session::run(socket, url, context, leave, (entered, running)))
        }
        Err(refusal) => {
            let why = refusal.why;
            metrics::get().refused.of(why).increment(1);
            if let Some(others) = public.said.may_say(why) {
                tracing::info!(%peer, why = why.value(), others, "turned away at the door");
            }
            refusal.into_response()
        }
    }
}

async fn admit(
    public: &Public,
    address: IpAddr,
    request: Request,
) -> Result<(WebSocketUpgrade, ClientUrlInfo, Entered), Refusal> {
    if request.method() != Method::GET {
        return Err(Refusal::new(Refused::Method, "only GET"));
    }
    let path = request.uri().path();
    if NOT_HERE.contains(&path) {
        return Err(Refusal::new(Refused::NotHere, "this door is for devices only"));
    }
    public.gate.is_open()?;
    let url = ClientUrlInfo::from_path(path)?;
    public.gate.serves(url.device_group_id)?;
    let (mut parts, _body) = request.into_parts();
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await;
    let upgrade = upgrade.map_err(|rejection| Refusal::new(Refused::NotWebSocket, rejection.body_text()))?;
    let entered = public.gate.enter(address, url.device_group_id).await?;
    Ok((session::socket::limit(upgrade), url, entered))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use hyper::service::Service as _;
    use hyper_util::service::TowerToHyperService;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::capture::Captures;
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
            timeouts: Timeouts::default(),
            rates: session::Rates::default(),
            clock: Clock::system(),
            said: Arc::new(Occasionally::new(Clock::system())),
            captures: Captures::default(),
            slowed: Arc::new(Occasionally::new(Clock::system())),
        };
        let gate = Gate::new(Admission::default(), context.hub.clone(), context.clock, stop.clone());
        Arc::new(Public::new(context, Arc::new(gate), TaskTracker::new()))
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
