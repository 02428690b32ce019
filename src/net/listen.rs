//! The accept loop.
//!
//! It accepts and does nothing else: a TLS handshake happens in the connection's own task and under a time limit, so a peer
//! that opens a connection and says nothing keeps nobody waiting. An accept that fails because the machine has run out of
//! something is tried again after a pause; the connections that exist go on meanwhile.
//!
//! What has not asked for anything yet costs a file descriptor and maybe a TLS handshake, so there are [`Bounds`] for that,
//! too. Whoever is beyond them is not answered: an answer would cost what the bound is to save.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;

use super::ahead::Ahead;
use super::proxies::Proxies;
use super::tasks::Tasks;
use super::tls::{ACME_TLS_1, Tls};
use crate::metrics;

/// Time for a TLS handshake.
pub const TLS_HANDSHAKE: Duration = Duration::from_secs(10);
/// Silence after which a connection that wants it is probed, and the time between probes.
const SILENT: Duration = Duration::from_secs(60);
const PROBE_EVERY: Duration = Duration::from_secs(15);
/// First pause after a failed accept; doubled with each failure that follows, up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Where connections come from: the network's own, or a simulated one's.
pub trait Listener: Send + 'static {
    /// A byte stream in both directions.
    type Io: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The next connection and where it comes from. Safe to drop while waiting.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Io, SocketAddr)>> + Send;
}

impl Listener for TcpListener {
    type Io = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, peer) = Self::accept(self).await?;
        // Frames here are small and awaited. A connection that refuses is gone already, and reading will tell.
        let _gone = stream.set_nodelay(true);
        Ok((stream, peer))
    }
}

/// What a connection passes before it is served.
#[derive(Debug, Clone, Default)]
pub struct Door {
    /// How it is encrypted; `None` not at all.
    pub tls: Option<Tls>,
    /// Who is believed about where it comes from.
    pub proxies: Arc<Proxies>,
}

impl From<Option<Tls>> for Door {
    /// A door that no proxy stands before.
    fn from(tls: Option<Tls>) -> Self {
        Self { tls, ..Self::default() }
    }
}

/// How many may be on their way in.
pub trait Bounds: Clone + Send + Sync + 'static {
    /// Held by a connection until it is served to its end, or has become something else that is counted.
    type Place: Send + 'static;

    /// A place for one that was accepted. `None`: there is none left.
    fn accepted(&self) -> Option<Self::Place>;

    /// A place for one more from this address, which is the client's own.
    fn comes_from(&self, address: IpAddr) -> Option<Self::Place>;
}

/// None.
impl Bounds for () {
    type Place = ();

    fn accepted(&self) -> Option<()> {
        Some(())
    }

    fn comes_from(&self, _address: IpAddr) -> Option<()> {
        Some(())
    }
}

/// [`serve_within`] no bounds.
pub async fn serve<L, H, F>(listener: L, door: Door, tasks: Tasks, handler: H)
where
    L: Listener,
    H: Fn(Stream<L::Io>, SocketAddr) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    serve_within((), listener, door, tasks, handler).await;
}

/// Accepts connections until `tasks` is asked to stop, and gives each to `handler` in a task of its own, which `tasks`
/// waits for. The handler sees only connections that came through the `door`, and where they really come from.
pub async fn serve_within<B, L, H, F>(bounds: B, mut listener: L, door: Door, tasks: Tasks, handler: H)
where
    B: Bounds,
    L: Listener,
    H: Fn(Stream<L::Io>, SocketAddr) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let mut pause = PAUSE;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = tasks.stopping() => return,
            () = tasks.pulse().asked() => {
                tasks.pulse().answer();
                continue;
            }
        };
        let (io, peer) = match accepted {
            Ok(accepted) => accepted,
            // The connection's own misfortune, not ours.
            Err(error) if is_peers(&error) => continue,
            Err(error) => {
                tracing::warn!(%error, pause_ms = pause.as_millis(), "cannot accept connections");
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = tasks.stopping() => return,
                }
                pause = (pause * 2).min(PAUSE_MAX);
                continue;
            }
        };
        pause = PAUSE;
        let Some(place) = bounds.accepted() else { continue };
        let (door, stop, handler) = (door.clone(), tasks.stop_token().clone(), handler.clone());
        let bounds = bounds.clone();
        tasks.spawn(async move {
            if let Some(Some((stream, origin, of_address))) =
                stop.run_until_cancelled(door.pass(&bounds, io, peer)).await
            {
                handler(stream, origin).await;
                drop(of_address);
            }
            drop(place);
        });
    }
}

impl Door {
    /// Lets a connection through, with where it comes from and its place. `None` when it stays outside.
    async fn pass<B, Io>(
        &self,
        bounds: &B,
        mut io: Io,
        peer: SocketAddr,
    ) -> Option<(Stream<Io>, SocketAddr, Option<B::Place>)>
    where
        B: Bounds,
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        // The proxy's header comes before TLS: a proxy that speaks it does not look inside.
        let origin = self.proxies.origin(&mut io, peer).await?;
        // What a proxy says later, in requests, is too late to count here; then it has to bound its clients.
        let place = match self.proxies.trusted.contains(origin.ip()) {
            true => None,
            false => Some(bounds.comes_from(origin.ip())?),
        };
        let io = Ahead::new(io);
        let Some(tls) = &self.tls else { return Some((Stream::Plain(io), origin, place)) };
        let (ended, stream) = match secure(tls, io).await {
            Ok(stream) => (metrics::Tls::Done, stream),
            Err(error) => {
                tracing::debug!(peer = %origin, %error, "no TLS handshake");
                let timed_out = error.kind() == io::ErrorKind::TimedOut;
                (if timed_out { metrics::Tls::TimedOut } else { metrics::Tls::Failed }, None)
            }
        };
        metrics::get().tls_handshakes.of(ended).increment(1);
        stream.map(|stream| (stream, origin, place))
    }
}

/// The TLS handshake. `None` when it was all that was wanted: a certificate authority's look.
async fn secure<Io: AsyncRead + AsyncWrite + Unpin>(tls: &Tls, io: Ahead<Io>) -> io::Result<Option<Stream<Io>>> {
    let handshake = async {
        let mut stream = tls.acceptor().accept(io).await?;
        if stream.get_ref().1.alpn_protocol() != Some(ACME_TLS_1) {
            return Ok(Some(Stream::Tls(Box::new(stream))));
        }
        tracing::debug!("showed an authority that a domain is ours");
        tokio::io::AsyncWriteExt::shutdown(&mut stream).await?;
        Ok(None)
    };
    tokio::time::timeout(TLS_HANDSHAKE, handshake).await.map_err(|_| io::ErrorKind::TimedOut)?
}

fn is_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// An accepted connection.
#[derive(Debug)]
pub enum Stream<Io> {
    /// As it came.
    Plain(Ahead<Io>),
    /// Through TLS.
    Tls(Box<TlsStream<Ahead<Io>>>),
}

impl<Io> Stream<Io> {
    /// What was accepted.
    #[must_use]
    pub fn get_ref(&self) -> &Io {
        match self {
            Self::Plain(io) => io.get_ref(),
            Self::Tls(tls) => tls.get_ref().0.get_ref(),
        }
    }
}

impl Stream<TcpStream> {
    /// See [`keep_alive`].
    pub fn keep_alive(&self) {
        keep_alive(self.get_ref());
    }
}

/// Finds out about a peer that is gone without a word: probes after a minute of silence, and ends a minute later.
pub fn keep_alive(tcp: &TcpStream) {
    let probes = TcpKeepalive::new().with_time(SILENT).with_interval(PROBE_EVERY).with_retries(4);
    if let Err(error) = SockRef::from(tcp).set_tcp_keepalive(&probes) {
        tracing::warn!(%error, "a connection without keepalive");
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_flush(cx),
            Self::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::sync::mpsc;

    use super::super::tls::tests::{DevBox, dev_box};
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    async fn echo<Io: AsyncRead + AsyncWrite + Unpin>(mut stream: Stream<Io>, _peer: SocketAddr) {
        let mut heard = [0; 4];
        if stream.read_exact(&mut heard).await.is_ok() {
            let _gone = stream.write_all(&heard).await;
            let _gone = stream.shutdown().await;
        }
    }

    #[tokio::test]
    async fn who_vanished_kept_a_place() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let stream = Stream::Plain(Ahead::new(tcp));
        stream.keep_alive();
        let socket = SockRef::from(stream.get_ref());
        assert!(socket.keepalive().unwrap());
        assert_eq!(
            (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap()),
            (SILENT, PROBE_EVERY)
        );
    }

    async fn says_ping(mut io: impl AsyncRead + AsyncWrite + Unpin) -> Vec<u8> {
        let mut heard = Vec::new();
        io.write_all(b"ping").await.unwrap();
        io.read_to_end(&mut heard).await.unwrap();
        heard
    }

    #[tokio::test]
    async fn a_silent_peer_does_not_keep_others_from_their_tls_handshake() {
        let DevBox { tls, connector, .. } = dev_box();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tasks = Tasks::new();
        let loop_ends = tokio::spawn(serve(listener, Some(tls).into(), tasks.clone(), echo));

        let silent = TcpStream::connect(address).await.unwrap();
        let mut babbling = TcpStream::connect(address).await.unwrap();
        babbling.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        for _ in 0..2 {
            let tcp = TcpStream::connect(address).await.unwrap();
            let stream = connector.connect("localhost".try_into().unwrap(), tcp).await.unwrap();
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
            assert_eq!(says_ping(stream).await, b"ping");
        }
        // Stopping ends the loop and the handshake that would still have ten seconds.
        tasks.finish(Duration::from_secs(5)).await.unwrap();
        tokio::time::timeout(SOON, loop_ends).await.unwrap().unwrap();
        drop(silent);
    }

    /// Gives what the script says, then nothing more.
    struct Scripted {
        script: VecDeque<io::Result<DuplexStream>>,
        accepts: mpsc::UnboundedSender<()>,
    }

    impl Listener for Scripted {
        type Io = DuplexStream;

        async fn accept(&mut self) -> io::Result<(DuplexStream, SocketAddr)> {
            let Some(next) = self.script.pop_front() else { return std::future::pending().await };
            self.accepts.send(()).unwrap();
            next.map(|io| (io, SocketAddr::from(([127, 0, 0, 1], 1))))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failed_accepts_are_survived_and_the_machines_own_failures_with_a_pause() {
        let clock = crate::time::Clock::following(0);
        let (near, far) = duplex(64);
        let (accepts, mut accepted) = mpsc::unbounded_channel();
        let too_many_files = || Err(io::Error::from_raw_os_error(24));
        let aborted = || Err(io::ErrorKind::ConnectionAborted.into());
        let script = [aborted(), too_many_files(), too_many_files(), Ok(far)].into();
        let tasks = Tasks::new();
        tokio::spawn(serve(Scripted { script, accepts }, Door::default(), tasks.clone(), echo));
        assert_eq!(says_ping(near).await, b"ping");
        assert_eq!(clock.now().monotonic, PAUSE + PAUSE * 2, "two pauses, and none for the aborted one");
        assert_eq!(accepted.len(), 4);
        assert_eq!(accepted.recv().await, Some(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_tls_handshake_has_ten_seconds() {
        let clock = crate::time::Clock::following(0);
        let (mut near, far) = duplex(64);
        let (accepts, _accepted) = mpsc::unbounded_channel();
        let listener = Scripted { script: [Ok(far)].into(), accepts };
        tokio::spawn(serve(listener, Some(dev_box().tls).into(), Tasks::new(), echo));
        assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 0, "closed");
        assert_eq!(clock.now().monotonic, TLS_HANDSHAKE);
    }
}
