//! Sessions of Engine.IO: how many there may be, what carries each, what it has not read yet, and how it is ended.
//!
//! The library makes a session of every request that names none, and ends one only when its client says so or stops answering.
//! Both is too little. A session costs memory and tasks, and one TCP connection can open thousands: so they are counted here,
//! whatever carries them. And one that is to end has to end also when its client polls, or began by polling and became a
//! WebSocket later: so each has a [`Line`], kept beside the request that opened it, which lasts exactly as long as the
//! library's session. A line that is closed cuts its WebSocket; a client that polls is told that there is no such session.
//! Either is a transport that fails, after which the usual clients connect again; after a farewell (`41`) they would not.
//!
//! What waits to be read is counted in bytes, too, since the library counts packets only, and one may be megabytes: added when
//! something is said, taken away when it gets out to the socket, or into the answer to a poll. What is not counted (names of
//! events, frames, heartbeats) is taken away without having been added, so that errors are to the good of the client.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use axum::body::{self, Body};
use axum::extract::{Extension, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tokio_util::sync::CancellationToken;

use super::gate::Gate;
use crate::chat::dm::state::INBOX_MAX;
use crate::chat::dm::wire::MEMBERS_MAX;
use crate::net::listen::Bounds as _;
use crate::net::places::{Held, Places};

/// What may wait to be read by one client, in bytes, before one packet more. All invitations that one may have fit, which are
/// sent at once: who could not be sent them would be cut at each login, and could never come in again.
pub(super) const UNSENT_MAX: usize = 32 * 1024 * 1024;
/// An invitation is the keys of a tree, in hexadecimal with quotes and a comma, and less than 1 KiB of everything else.
const INVITATION_MAX: usize = 2 * MEMBERS_MAX * (2 * 32 + 3) + 1_024;
const _: () = assert!(INBOX_MAX <= 1_000 && 1_000 * INVITATION_MAX <= UNSENT_MAX, "the inbox fits");
/// The library's answer to who opens a session is shorter.
const OPENING_MAX: usize = 4_096;
/// How long it may take to say something by polling: a packet of the longest at 17 kB a second.
const POST_WITHIN: Duration = Duration::from_secs(60);
/// As the library says it.
const UNKNOWN_SESSION: &str = r#"{"code":"1","message":"Session ID unknown"}"#;

/// What the door knows of a connection: put beside each of its requests.
#[derive(Debug, Clone)]
pub(super) struct Below {
    pub(super) from: IpAddr,
    /// Closes it.
    pub(super) cut: CancellationToken,
    /// What waits to be written to the session it belongs to, once it has become a WebSocket.
    pub(super) carries: Arc<OnceLock<Arc<Unsent>>>,
}

/// What one client has not been sent yet, in bytes, and how much that may be.
#[derive(Debug)]
pub(super) struct Unsent {
    bytes: AtomicUsize,
    max: usize,
}

impl Unsent {
    fn up_to(max: usize) -> Self {
        Self { bytes: AtomicUsize::default(), max }
    }

    /// So much more waits. `false` when it is too much.
    pub(super) fn waits(&self, bytes: usize) -> bool {
        self.bytes.fetch_add(bytes, Ordering::Relaxed) < self.max
    }

    /// So much got out.
    pub(super) fn went(&self, bytes: usize) {
        let less = |before: usize| Some(before.saturating_sub(bytes));
        let _always = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

/// One session.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) from: IpAddr,
    pub(super) unsent: Arc<Unsent>,
    /// Whether somebody connected on it before; and how many are.
    entered: AtomicBool,
    here: AtomicUsize,
    closed: CancellationToken,
    /// The connection that is its own, when it is a WebSocket: requests of polling share theirs with whoever is behind a proxy.
    below: OnceLock<Below>,
    /// Where it is found, when it began by polling.
    listed: OnceLock<(String, Weak<Lines>)>,
    _places: (Held, Held),
}

impl Line {
    /// Somebody connects on it. Whether somebody did before.
    pub(super) fn enters(&self) -> bool {
        self.here.fetch_add(1, Ordering::Relaxed);
        self.entered.swap(true, Ordering::Relaxed)
    }

    /// He is gone.
    pub(super) fn leaves(&self) {
        self.here.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether everybody is.
    pub(super) fn is_idle(&self) -> bool {
        self.here.load(Ordering::Relaxed) == 0
    }

    /// Ends it, and what carries it.
    pub(super) fn close(&self) {
        self.closed.cancel();
        if let Some(below) = self.below.get() {
            below.cut.cancel();
        }
    }

    /// It is a WebSocket from here on. Of several that try, the first is: the library refuses the others.
    fn becomes(&self, below: Below) {
        if self.below.get().is_none() {
            let _first = below.carries.set(Arc::clone(&self.unsent));
            let _first = self.below.set(below);
        }
        if self.closed.is_cancelled() {
            self.close();
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some((sid, lines)) = self.listed.get()
            && let Some(lines) = lines.upgrade()
        {
            lines.polling().remove(sid);
        }
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Lines {
    gate: Arc<Gate>,
    places: Places,
    unsent_max: usize,
    /// Those that began by polling, by their names.
    polling: Mutex<HashMap<String, Weak<Line>>>,
}

impl Lines {
    /// As many as there may be connections.
    pub(super) fn new(gate: Arc<Gate>, places: Places, unsent_max: usize) -> Self {
        Self { gate, places, unsent_max, polling: Mutex::default() }
    }

    fn polling(&self) -> std::sync::MutexGuard<'_, HashMap<String, Weak<Line>>> {
        self.polling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` when there are too many.
    fn open(&self, from: IpAddr) -> Option<Arc<Line>> {
        if !self.gate.may_connect(from) {
            return None;
        }
        let places = (self.places.accepted()?, self.places.comes_from(from)?);
        Some(Arc::new(Line {
            from,
            unsent: Arc::new(Unsent::up_to(self.unsent_max)),
            entered: AtomicBool::new(false),
            here: AtomicUsize::new(0),
            closed: CancellationToken::new(),
            below: OnceLock::new(),
            listed: OnceLock::new(),
            _places: places,
        }))
    }

    /// It is found under this name, as long as it is there.
    fn list(self: &Arc<Self>, sid: &str, line: &Arc<Line>) {
        let _once = line.listed.set((sid.to_owned(), Arc::downgrade(self)));
        self.polling().insert(sid.to_owned(), Arc::downgrade(line));
    }

    fn find(&self, sid: &str) -> Option<Arc<Line>> {
        self.polling().get(sid)?.upgrade()
    }
}

/// Stands before the library: what it is asked passes through here.
pub(super) async fn pass(
    State(lines): State<Arc<Lines>>,
    Extension(below): Extension<Below>,
    mut request: Request,
    next: Next,
) -> Response {
    if !request.uri().path().starts_with("/socket.io") {
        return next.run(request).await;
    }
    let query = request.uri().query().unwrap_or_default();
    let sid = query.split('&').find_map(|pair| pair.strip_prefix("sid="));
    let line = match sid {
        Some(sid) => lines.find(sid),
        // That opens nothing: a browser asks whether it may ask.
        None if request.method() != Method::GET => None,
        None => match lines.open(below.from) {
            Some(line) => Some(line),
            None => return StatusCode::TOO_MANY_REQUESTS.into_response(),
        },
    };
    let Some(line) = line else { return next.run(request).await };
    let (opens, polls) = (sid.is_none(), request.method() == Method::GET);
    if opens {
        request.extensions_mut().insert(Arc::clone(&line));
    }
    let response = tokio::select! {
        biased;
        () = line.closed.cancelled() => {
            let json = [(header::CONTENT_TYPE, "application/json")];
            return (StatusCode::BAD_REQUEST, json, UNKNOWN_SESSION).into_response();
        }
        // What holds a place in which nothing arrives.
        () = tokio::time::sleep(POST_WITHIN), if !polls => return StatusCode::REQUEST_TIMEOUT.into_response(),
        response = next.run(request) => response,
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        line.becomes(below);
        return response;
    }
    if opens && response.status() == StatusCode::OK {
        return named(&lines, &line, response).await;
    }
    if polls {
        let bytes = response.headers().get(header::CONTENT_LENGTH).and_then(|bytes| bytes.to_str().ok()?.parse().ok());
        line.unsent.went(bytes.unwrap_or_default());
    }
    response
}

/// Reads out of the library's answer what it calls the session that it has made.
async fn named(lines: &Arc<Lines>, line: &Arc<Line>, response: Response) -> Response {
    let (head, body) = response.into_parts();
    let Ok(text) = body::to_bytes(body, OPENING_MAX).await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    if let Some(sid) = sid_in(&text) {
        lines.list(&sid, line);
    }
    Response::from_parts(head, Body::from(text))
}

fn sid_in(opening: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Opening {
        sid: String,
    }
    let opening: Opening = serde_json::from_slice(opening.strip_prefix(b"0")?).ok()?;
    Some(opening.sid)
}

#[cfg(test)]
impl Line {
    /// For tests of those who hold one.
    pub(super) fn of_nobody() -> Arc<Self> {
        let gate = Gate::new(super::gate::Rates::NONE, vec![], crate::time::Clock::following(0));
        Lines::new(Arc::new(gate), Places::new(9, 9, &[]), UNSENT_MAX).open([192, 0, 2, 1].into()).unwrap()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }
}

#[cfg(test)]
mod tests {
    use hyper::service::Service as _;
    use hyper_util::service::TowerToHyperService;

    use super::super::gate::Rates;
    use super::*;
    use crate::time::Clock;

    #[test]
    fn megabytes_that_nobody_read_were_counted_as_a_packet() {
        let unsent = Unsent::up_to(UNSENT_MAX);
        assert!(unsent.waits(UNSENT_MAX - 1) && unsent.waits(2 * UNSENT_MAX), "however long the last one is");
        assert!(!unsent.waits(1));
        unsent.went(2 * UNSENT_MAX + 1);
        assert!(unsent.waits(1) && !unsent.waits(1));
        unsent.went(usize::MAX);
        assert!(unsent.waits(UNSENT_MAX), "what was not counted is to the good of who reads");
    }

    #[tokio::test]
    async fn sessions_have_places_of_their_own_and_leave_nothing_behind() {
        let clock = Clock::following(0);
        let lines = |rates, all, each| {
            Lines::new(Arc::new(Gate::new(rates, vec![], clock)), Places::new(all, each, &[]), UNSENT_MAX)
        };
        let from = |n: u8| IpAddr::from([192, 0, 2, n]);
        let few = Arc::new(lines(Rates::NONE, 3, 2));
        let (first, second) = (few.open(from(1)).unwrap(), few.open(from(1)).unwrap());
        assert!(few.open(from(1)).is_none(), "of one address");
        let third = few.open(from(2)).unwrap();
        assert!(few.open(from(3)).is_none(), "of all");
        few.list("a", &first);
        assert!(few.find("a").is_some() && few.find("b").is_none());
        drop((first, second, third));
        assert!(few.find("a").is_none() && few.polling().is_empty());
        assert!(few.open(from(1)).is_some());
        let slow = lines(Rates::default(), 99, 99);
        assert_eq!((0..99).filter(|_| slow.open(from(1)).is_some()).count(), 10, "a second");
    }

    #[tokio::test]
    async fn a_line_that_was_closed_while_it_became_a_websocket_cuts_it() {
        let gate = Arc::new(Gate::new(Rates::NONE, vec![], Clock::following(0)));
        let lines = Lines::new(gate, Places::new(9, 9, &[]), UNSENT_MAX);
        let from = IpAddr::from([192, 0, 2, 1]);
        let below = || Below { from, cut: CancellationToken::new(), carries: Arc::default() };
        let (line, first, second) = (lines.open(from).unwrap(), below(), below());
        line.becomes(first.clone());
        line.becomes(second.clone());
        line.close();
        assert!(first.cut.is_cancelled() && !second.cut.is_cancelled(), "the first one carries it");
        let (line, late) = (lines.open(from).unwrap(), below());
        line.close();
        line.becomes(late.clone());
        assert!(late.cut.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_said_a_byte_a_minute_held_its_place() {
        let gate = Arc::new(Gate::new(Rates::NONE, vec![], Clock::following(0)));
        let lines = Arc::new(Lines::new(gate, Places::new(9, 9, &[]), UNSENT_MAX));
        let below = Below { from: [192, 0, 2, 1].into(), cut: CancellationToken::new(), carries: Arc::default() };
        let line = lines.open(below.from).unwrap();
        lines.list("a", &line);
        let reads = async |body: body::Bytes| body.len().to_string();
        let door = axum::Router::new()
            .route("/socket.io/", axum::routing::post(reads))
            .layer(axum::middleware::from_fn_with_state(Arc::clone(&lines), pass))
            .layer(Extension(below));
        let door = TowerToHyperService::new(door);
        let posts = |body| Request::post("/socket.io/?transport=polling&sid=a").body(body).unwrap();
        let answered = async |body| door.call(posts(body)).await.unwrap().status();
        assert_eq!(answered(Body::from("40")).await, StatusCode::OK);
        let never = futures_util::stream::pending::<Result<body::Bytes, std::io::Error>>();
        assert_eq!(answered(Body::from_stream(never)).await, StatusCode::REQUEST_TIMEOUT);
    }

    #[test]
    fn the_librarys_name_of_a_session_is_found() {
        assert_eq!(sid_in(br#"0{"sid":"AbC_-9","upgrades":[],"pingInterval":1}"#).as_deref(), Some("AbC_-9"));
        assert_eq!(sid_in(b"40"), None);
    }
}
