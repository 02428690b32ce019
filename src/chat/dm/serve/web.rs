//! The room's door: HTTP, for Socket.IO and for the page that speaks it.
//!
//! Connections are served by hyper and may become WebSockets, or stay for one request after the other: polling. What bounds
//! them is below all of that, in [`Guarded`]: whoever takes nothing for a while is cut, whatever is being written to him.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::Extension;
use axum::http::Method;
use axum::routing::get;
use axum::{Json, Router, middleware};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use socketioxide::handler::ConnectHandler as _;
use socketioxide::{SocketIo, extract::SocketRef};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tower_http::cors::{Any, CorsLayer};
use tracing::{debug, error};

use super::Settings;
use super::assets;
use super::line::{self, Below, Lines, Unsent};
use super::wire::{Connecting, Hall};
use crate::chat::dm::wire::PACKET_MAX;
use crate::net::listen::{self, Door};
use crate::net::places::Places;
use crate::net::tasks::Tasks;
use crate::time::Clock;

/// What a request's headers may take, in bytes.
const HEADERS_MAX: usize = 16 * 1024;
/// How long the next request of a connection may take to come.
const REQUEST_WITHIN: Duration = Duration::from_secs(60);
/// How long a session may take to connect.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// How long nothing of what is written may get out before a client counts as not reading.
pub const WRITE_STALL_MAX: Duration = Duration::from_secs(30);
/// How long connections may go on when the server stops.
const FAREWELL: Duration = Duration::from_secs(2);

/// Socket.IO, and everything else that is asked for by HTTP.
pub(super) fn router(hall: Arc<Hall>, lines: Arc<Lines>, settings: &Settings) -> Router {
    let (layer, io) = SocketIo::builder()
        .ping_interval(settings.beat.every)
        .ping_timeout(settings.beat.within)
        .max_buffer_size(settings.send_queue_max)
        .connect_timeout(CONNECT_WITHIN)
        .max_payload(PACKET_MAX as u64)
        .ws_max_message_size(PACKET_MAX)
        .ws_max_frame_size(PACKET_MAX)
        .build_layer();
    let enters = move |Connecting(socket): Connecting| {
        let entered = hall.enter(&socket);
        async move { entered }
    };
    io.ns("/", (async |_: SocketRef| {}).with(enters));
    let cors = CorsLayer::new().allow_origin(Any).allow_methods([Method::GET, Method::POST]).allow_headers(Any);
    Router::new()
        .route("/health", get(async || Json(json!({ "status": "ok" }))))
        .merge(assets::router())
        .layer(layer)
        .layer(middleware::from_fn_with_state(lines, line::pass))
        .layer(cors)
}

/// Serves it at one door until told to stop.
pub(super) async fn serve(
    listener: TcpListener,
    door: Door,
    (places, router): (Places, Router),
    clock: Clock,
    stop: CancellationToken,
) {
    let tasks = Tasks::new();
    let stopping = tasks.stop_token().clone();
    let handler = move |io, from: SocketAddr| visit(io, from, router.clone(), clock, stopping.clone());
    let accepting = tokio::spawn(listen::serve_within(places, listener, door, tasks.clone(), handler));
    stop.cancelled().await;
    tasks.stop();
    tasks.tracker().close();
    tasks.tracker().wait().await;
    if let Err(error) = accepting.await {
        error!(%error, "the DM server could not accept any more");
    }
}

/// One connection, until it is closed: also when it has become a WebSocket by then.
async fn visit(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    from: SocketAddr,
    router: Router,
    clock: Clock,
    stopping: CancellationToken,
) {
    let (cut, over) = (CancellationToken::new(), CancellationToken::new());
    let below = Below { from: from.ip(), cut: cut.clone(), carries: Arc::default() };
    let io = Guarded::new(io, clock, &below, over.clone());
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_WITHIN)
        .max_buf_size(HEADERS_MAX)
        .serve_connection(TokioIo::new(io), TowerToHyperService::new(router.layer(Extension(below))))
        .with_upgrades();
    let served = async {
        if let Err(error) = connection.await {
            debug!(%error, "a connection ended");
        }
        over.cancelled().await;
    };
    let stopped = async {
        stopping.cancelled().await;
        tokio::time::sleep(FAREWELL).await;
        cut.cancel();
    };
    tokio::pin!(served);
    tokio::select! {
        () = &mut served => {}
        () = stopped => served.await,
    }
}

/// A connection that can be cut from outside, and is when it takes nothing for [`WRITE_STALL_MAX`].
struct Guarded<Io> {
    io: Io,
    clock: Clock,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Runs while something is written that does not get out.
    stalls: Option<Pin<Box<Sleep>>>,
    /// What is written here was waiting there.
    carries: Arc<OnceLock<Arc<Unsent>>>,
    _over: DropGuard,
}

impl<Io> Guarded<Io> {
    fn new(io: Io, clock: Clock, below: &Below, over: CancellationToken) -> Self {
        let (cut, carries) = (Box::pin(below.cut.clone().cancelled_owned()), Arc::clone(&below.carries));
        Self { io, clock, cut, stalls: None, carries, _over: over.drop_guard() }
    }

    fn is_cut(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }

    /// What came of writing; an error when nothing came of it for too long.
    fn moved<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalls = None;
            return written;
        }
        let clock = self.clock;
        let until = || -> Instant { clock.instant_at(clock.now().monotonic.saturating_add(WRITE_STALL_MAX)) };
        let stalls = self.stalls.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until())));
        stalls.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<Io> Guarded<Io> {
    /// What is written got out.
    fn went(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let (Poll::Ready(Ok(bytes)), Some(unsent)) = (&written, self.carries.get()) {
            unsent.went(*bytes);
        }
        written
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Guarded<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.is_cut(cx)?;
        Pin::new(&mut this.io).poll_read(cx, buf)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Guarded<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.is_cut(cx)?;
        let written = Pin::new(&mut this.io).poll_write(cx, buf);
        let written = this.went(written);
        this.moved(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.is_cut(cx)?;
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        let written = this.went(written);
        this.moved(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.is_cut(cx)?;
        let flushed = Pin::new(&mut this.io).poll_flush(cx);
        this.moved(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.is_cut(cx)?;
        let shut = Pin::new(&mut this.io).poll_shutdown(cx);
        this.moved(cx, shut)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    fn below() -> Below {
        Below { from: [192, 0, 2, 1].into(), cut: CancellationToken::new(), carries: Arc::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_is_cut_and_who_reads_slowly_is_not() {
        let clock = Clock::following(0);
        let over = CancellationToken::new();
        let (mut near, far) = duplex(16);
        let mut guarded = Guarded::new(far, clock, &below(), over.clone());
        let reads = async {
            let mut read = [0; 16];
            for _ in 0..6 {
                tokio::time::sleep(WRITE_STALL_MAX / 2).await;
                near.read_exact(&mut read).await.unwrap();
            }
        };
        assert!(tokio::join!(guarded.write_all(&[7; 100]), reads).0.is_ok());
        let stalled = guarded.write_all(&[7; 100]).await.unwrap_err();
        assert_eq!(stalled.kind(), io::ErrorKind::TimedOut);
        drop(guarded);
        assert!(over.is_cancelled(), "its place is free");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_cut_ends_also_while_nothing_is_read_or_written() {
        let (below, over) = (below(), CancellationToken::new());
        let (_near, far) = duplex(16);
        let mut guarded = Guarded::new(far, Clock::following(0), &below, over);
        let reads = tokio::spawn(async move { guarded.read_u8().await });
        tokio::task::yield_now().await;
        below.cut.cancel();
        assert_eq!(reads.await.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
}
