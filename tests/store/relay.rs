//! The network between a node and its database: can be cut, frozen, and healed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

pub(super) struct Relay {
    port: u16,
    /// Nothing is passed on. Nor does it get lost: it arrives later, though its sender may be gone by then.
    frozen: watch::Sender<bool>,
    open: Arc<watch::Sender<usize>>,
    /// Ends the connections there are: for both sides, or for the client's alone.
    cut: watch::Sender<[CancellationToken; 2]>,
    _stops: DropGuard,
}

impl Relay {
    pub(super) async fn to(socket: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = CancellationToken::new();
        let (frozen, cut) = (watch::Sender::new(false), watch::Sender::new(Default::default()));
        let open = Arc::new(watch::Sender::new(0));
        let (mode, cuts, socket) = (frozen.subscribe(), cut.subscribe(), socket.to_owned());
        let accepting = accept(listener, socket, mode, cuts, Arc::clone(&open));
        let stopped = stop.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(accepting).await });
        Self { port, frozen, open, cut, _stops: stop.drop_guard() }
    }

    /// The same database, by this way.
    pub(super) fn url(&self, place: &str) -> String {
        let (front, query) = place.split_once('?').unwrap();
        let rest: Vec<_> = query.split('&').filter(|pair| !pair.starts_with("host=")).collect();
        format!("{}?{}", front.replace("@localhost/", &format!("@127.0.0.1:{}/", self.port)), rest.join("&"))
    }

    /// Nothing is passed on, either way.
    pub(super) fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    pub(super) fn heal(&self) {
        self.frozen.send_replace(false);
    }

    /// Ends every connection, for both sides.
    pub(super) fn cut(&self) {
        let [both, _] = self.cut.send_replace(Default::default());
        both.cancel();
    }

    /// Ends every connection for the client. The server goes on with what it was sent, and hears nothing of it.
    pub(super) fn lose_client(&self) {
        let [_, near] = self.cut.send_replace(Default::default());
        near.cancel();
    }

    /// Returns when at most so many connections are open: what was held back on the others has arrived.
    pub(super) async fn until_open(&self, most: usize) {
        self.open.subscribe().wait_for(|&open| open <= most).await.unwrap();
    }
}

/// The same server behind TLS, as `certified` by its authority; serves until it is dropped.
pub(super) async fn encrypting(socket: &Path, certified: ServerConfig) -> (u16, DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (acceptor, socket, stop) =
        (TlsAcceptor::from(Arc::new(certified)), socket.to_owned(), CancellationToken::new());
    let stopped = stop.clone();
    let serving = async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let (acceptor, socket) = (acceptor.clone(), socket.clone());
            tokio::spawn(async move {
                // What asks for TLS is eight bytes long, and answered with one.
                let mut request = [0; 8];
                near.read_exact(&mut request).await?;
                assert_eq!(request, [0, 0, 0, 8, 4, 210, 22, 47], "nothing is said before TLS");
                near.write_all(b"S").await?;
                let mut near = acceptor.accept(near).await?;
                let mut far = UnixStream::connect(&socket).await?;
                tokio::io::copy_bidirectional(&mut near, &mut far).await
            });
        }
    };
    tokio::spawn(async move { stopped.run_until_cancelled(serving).await.unwrap_or(()) });
    (port, stop.drop_guard())
}

async fn accept(
    listener: TcpListener,
    socket: PathBuf,
    mode: watch::Receiver<bool>,
    cuts: watch::Receiver<[CancellationToken; 2]>,
    open: Arc<watch::Sender<usize>>,
) {
    loop {
        let (near, _) = listener.accept().await.unwrap();
        let (socket, mode, cut, open) = (socket.clone(), mode.clone(), cuts.borrow().clone(), Arc::clone(&open));
        open.send_modify(|open| *open += 1);
        tokio::spawn(async move {
            if let Ok(far) = UnixStream::connect(&socket).await {
                near.set_nodelay(true).unwrap();
                let ((near_read, near_write), (mut far_read, mut far_write)) = (near.into_split(), far.into_split());
                let [both, near] = cut;
                let passing = async {
                    let up = pass(near_read, &mut far_write, mode.clone());
                    let down = pass(&mut far_read, near_write, mode);
                    if near.run_until_cancelled(async { tokio::join!(up, down) }).await.is_none() {
                        drop(tokio::io::copy(&mut far_read, &mut tokio::io::sink()).await);
                    }
                };
                both.run_until_cancelled(passing).await;
            }
            open.send_modify(|open| *open -= 1);
        });
    }
}

/// Passes on until the end, and the end as well.
async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut mode: watch::Receiver<bool>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        if mode.wait_for(|frozen| !frozen).await.is_err() {
            return;
        }
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            drop(to.shutdown().await);
            return;
        }
    }
}
