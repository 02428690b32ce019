//! The room's web door: where people confirm that an address is theirs (spec 4.2.5), and clients leave and fetch files
//! (`files`).
//!
//! Programs that look after mails follow the links in them, so a link alone changes nothing: its page posts by itself, which
//! those programs do not do, or at the press of a button where there are no scripts.
//!
//! One request for each connection, which has to be over within [`VISIT_MAX`]: nobody stays here, but for files, as long as they
//! move.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, Path, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::Places;
use super::actor::{Confirmed, Mail};
use super::files::{self, Files};
use crate::net::listen::{self, Door};
use crate::net::tasks::Tasks;
use crate::time::Clock;

/// Visitors at a time, at most, beside those who bring or fetch files; further ones are dropped without a word.
pub(super) const VISITORS_MAX: usize = 256;
/// How long a visit may take, in all.
const VISIT_MAX: Duration = Duration::from_secs(15);
/// How long a visit may go on when the server stops.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long the next 64 KiB of a file may take.
pub(super) const MOVES_WITHIN: Duration = Duration::from_secs(30);
/// What a request's headers may take, in bytes.
const HEADERS_MAX: usize = 16 * 1024;

/// Nothing on a page is from elsewhere, and where it leads to is told to nobody: its address holds the token.
pub(super) const HEADERS: [(HeaderName, &str); 4] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; form-action 'self'; frame-ancestors 'none'",
    ),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
];

/// Where a token is to be shown, below the address of these pages as people reach them.
#[must_use]
pub fn link(public_url: &str, token: &str) -> String {
    format!("{}/confirm/{token}", public_url.trim_end_matches('/'))
}

/// What is served, and where people and clients find it.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) mailbox: mpsc::WeakSender<Mail>,
    pub(super) files: Arc<Files>,
    pub(super) public_url: String,
    pub(super) places: Places,
    pub(super) clock: Clock,
}

/// Serves it until told to stop.
pub(super) async fn serve(listener: TcpListener, door: Door, site: Site, stop: CancellationToken) {
    let Site { mailbox, files, public_url, places, clock } = site;
    let tasks = Tasks::new();
    let router = router(mailbox).merge(files::router(files, public_url, tasks.clone()));
    let stopping = tasks.stop_token().clone();
    let handler = move |io, _from| visit(io, router.clone(), clock, stopping.clone());
    let accepting = tokio::spawn(listen::serve_within(places, listener, door, tasks.clone(), handler));
    stop.cancelled().await;
    tasks.stop();
    tasks.tracker().close();
    tasks.tracker().wait().await;
    if let Err(error) = accepting.await {
        error!(%error, "the Skynet server's pages could not be visited any more");
    }
}

/// One connection, for those whose request takes longer than others.
#[derive(Debug, Clone)]
pub(super) struct Visit {
    clock: Clock,
    until: Arc<watch::Sender<Duration>>,
    over: CancellationToken,
}

impl Visit {
    /// Something moved: it may go on.
    pub(super) fn moves(&self) {
        self.until.send_replace(self.clock.now().monotonic.saturating_add(MOVES_WITHIN));
    }

    /// Whether the connection is over.
    pub(super) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }
}

async fn visit(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    clock: Clock,
    stopping: CancellationToken,
) {
    let (until, mut ends) = watch::channel(clock.now().monotonic.saturating_add(VISIT_MAX));
    let visit = Visit { clock, until: Arc::new(until), over: CancellationToken::new() };
    let _over = visit.over.clone().drop_guard();
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .max_buf_size(HEADERS_MAX)
        .serve_connection(TokioIo::new(io), TowerToHyperService::new(router.layer(Extension(visit.clone()))));
    let late = async {
        loop {
            let until = *ends.borrow_and_update();
            tokio::select! {
                () = clock.sleep_until(Some(until)) => return,
                _ = ends.changed() => {}
                () = stopping.cancelled() => return tokio::time::sleep(FAREWELL).await,
            }
        }
    };
    tokio::select! {
        ended = connection => match ended {
            Ok(()) => {}
            Err(error) => debug!(%error, "a visit ended"),
        },
        () = late => debug!("a visit took too long"),
    }
}

fn router(mailbox: mpsc::WeakSender<Mail>) -> Router {
    Router::new()
        .route("/confirm/{token}", get(look).post(confirm))
        .route("/api/confirm/{token}", post(confirm_by_program))
        .route("/confirm.js", get(async || ([(header::CONTENT_TYPE, "text/javascript")], "document.forms[0].submit()")))
        .with_state(mailbox)
}

async fn look(State(mailbox): State<mpsc::WeakSender<Mail>>, Path(token): Path<String>) -> Response {
    page(ask(&mailbox, token, false).await)
}

async fn confirm(State(mailbox): State<mpsc::WeakSender<Mail>>, Path(token): Path<String>) -> Response {
    page(ask(&mailbox, token, true).await)
}

async fn confirm_by_program(State(mailbox): State<mpsc::WeakSender<Mail>>, Path(token): Path<String>) -> Response {
    let (status, words) = Words::about(ask(&mailbox, token, true).await);
    (status, HEADERS, Json(words)).into_response()
}

/// `None` when the room closes.
pub(super) async fn ask(mailbox: &mpsc::WeakSender<Mail>, token: String, confirm: bool) -> Option<Confirmed> {
    let (answer, answered) = oneshot::channel();
    let mailbox = mailbox.upgrade()?;
    mailbox.send(Mail::Confirm { token, confirm, answer }).await.ok()?;
    answered.await.ok()
}

/// What people are told.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Words {
    title: &'static str,
    header: &'static str,
    content: String,
    /// Whether the page is to post.
    #[serde(skip)]
    asks: bool,
}

impl Words {
    fn about(confirmed: Option<Confirmed>) -> (StatusCode, Self) {
        let (status, title, header, content, asks) = match confirmed {
            Some(Confirmed::Pending { address }) => {
                (StatusCode::OK, "Confirm your address", "One moment", format!("{address} is being confirmed."), true)
            }
            Some(Confirmed::Done { address }) => (
                StatusCode::OK,
                "Confirmed",
                "Thank you",
                format!("{address} is confirmed. You can log in now."),
                false,
            ),
            Some(Confirmed::Already { address }) => {
                (StatusCode::OK, "Confirmed", "Nothing to do", format!("{address} was already confirmed."), false)
            }
            Some(Confirmed::Invalid) => {
                let content = "This link is not valid, or it is older than 24 hours. Register again for another one.";
                (StatusCode::NOT_FOUND, "Not valid", "Not valid", content.to_owned(), false)
            }
            None => {
                let content = "The server is being restarted. Try again in a minute.";
                (StatusCode::SERVICE_UNAVAILABLE, "Not now", "Not now", content.to_owned(), false)
            }
        };
        (status, Self { title, header, content, asks })
    }
}

fn page(confirmed: Option<Confirmed>) -> Response {
    let (status, Words { title, header, content, asks }) = Words::about(confirmed);
    let content = escaped(&content);
    let form = if asks {
        "<form method=\"post\"><button>Confirm</button></form><script src=\"../confirm.js\"></script>"
    } else {
        ""
    };
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><h1>{header}</h1><p>{content}</p>{form}</html>\n"
    );
    (status, HEADERS, Html(html)).into_response()
}

/// Text as it can stand between tags.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http_body_util::BodyExt as _;
    use tokio::io::{AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::task::JoinHandle;
    use tokio::time::sleep;

    use super::*;

    /// A visitor of a page that takes what comes, a piece at a time.
    fn visitor(clock: Clock, stopping: &CancellationToken) -> (DuplexStream, JoinHandle<()>) {
        let takes = async |Extension(visit): Extension<Visit>, mut body: Body| {
            while body.frame().await.is_some() {
                visit.moves();
            }
        };
        let (ours, theirs) = duplex(1_024);
        let router = Router::new().route("/", axum::routing::put(takes));
        (ours, tokio::spawn(visit(theirs, router, clock, stopping.clone())))
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_stays_but_who_moves() {
        let (clock, stopping) = (Clock::following(0), CancellationToken::new());
        let (_silent, visit) = visitor(clock, &stopping);
        visit.await.unwrap();
        assert_eq!(clock.now().monotonic.as_secs(), VISIT_MAX.as_secs());

        let (mut moving, visit) = visitor(clock, &stopping);
        moving.write_all(b"PUT / HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\nx").await.unwrap();
        for _ in 0..10 {
            sleep(MOVES_WITHIN - FAREWELL).await;
            moving.write_all(b"x").await.unwrap();
        }
        assert!(!visit.is_finished());
        let moved = clock.now().monotonic;
        visit.await.unwrap();
        assert_eq!((clock.now().monotonic - moved).as_secs(), MOVES_WITHIN.as_secs());

        let (_silent, visit) = visitor(clock, &stopping);
        stopping.cancel();
        let stopped = clock.now().monotonic;
        visit.await.unwrap();
        assert_eq!((clock.now().monotonic - stopped).as_secs(), FAREWELL.as_secs());
    }

    #[test]
    fn a_link_is_below_the_public_address() {
        for base in ["https://account.skynet.app/indev/", "https://account.skynet.app/indev"] {
            assert_eq!(link(base, "token"), "https://account.skynet.app/indev/confirm/token");
        }
    }

    #[test]
    fn an_address_is_text_and_nothing_else() {
        assert_eq!(escaped("\"<b>&\"@example.com"), "\"&lt;b&gt;&amp;\"@example.com");
    }
}
