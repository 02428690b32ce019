//! A device's end of the socket, which reads slowly or not at all when it is told to.
//!
//! It stands between the socket and WebSocket, so that a device which does not read lets the socket fill: what the client
//! library would read ahead is not read either, and no ping is answered.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// What a slow device reads at a time, and how long it rests then: some 20 KiB each second.
const SIP: usize = 400;
const REST: Duration = Duration::from_millis(20);

const FREE: u8 = 0;
const SLOW: u8 = 1;
const SHUT: u8 = 2;

/// Opens and shuts one line.
#[derive(Debug, Default)]
pub(super) struct Tap {
    flow: AtomicU8,
    reader: AtomicWaker,
}

impl Tap {
    pub(super) fn open(&self) {
        self.set(FREE);
    }

    pub(super) fn slow(&self) {
        self.set(SLOW);
    }

    pub(super) fn shut(&self) {
        self.set(SHUT);
    }

    fn set(&self, flow: u8) {
        self.flow.store(flow, Ordering::Release);
        self.reader.wake();
    }
}

/// A stream behind a tap.
pub(super) struct Line<S> {
    inner: S,
    tap: Arc<Tap>,
    rest: Option<Pin<Box<Sleep>>>,
}

impl<S> Line<S> {
    pub(super) const fn new(inner: S, tap: Arc<Tap>) -> Self {
        Self { inner, tap, rest: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Line<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // First this: the tap may be turned while we look.
        self.tap.reader.register(cx.waker());
        match self.tap.flow.load(Ordering::Acquire) {
            SHUT => Poll::Pending,
            SLOW => {
                if let Some(rest) = &mut self.rest {
                    ready!(rest.as_mut().poll(cx));
                    self.rest = None;
                }
                let mut sip = [0; SIP];
                let mut some = ReadBuf::new(sip.get_mut(..SIP.min(buf.remaining())).unwrap_or_default());
                ready!(Pin::new(&mut self.inner).poll_read(cx, &mut some))?;
                buf.put_slice(some.filled());
                self.rest = Some(Box::pin(tokio::time::sleep(REST)));
                Poll::Ready(Ok(()))
            }
            _ => Pin::new(&mut self.inner).poll_read(cx, buf),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Line<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test(start_paused = true)]
    async fn what_is_shut_reads_nothing_and_what_is_slow_little() {
        let (ours, mut theirs) = tokio::io::duplex(8_192);
        let tap = Arc::new(Tap::default());
        let mut line = Line::new(ours, Arc::clone(&tap));
        theirs.write_all(&[7; 4_000]).await.unwrap();
        let mut buf = vec![0; 4_000];
        assert_eq!(line.read(&mut buf[..100]).await.unwrap(), 100);
        tap.shut();
        let shut = tokio::time::timeout(Duration::from_secs(60), line.read(&mut buf)).await;
        assert!(shut.is_err(), "nothing is read");
        tap.slow();
        assert_eq!(line.read(&mut buf).await.unwrap(), SIP);
        let second = tokio::time::timeout(REST / 2, line.read(&mut buf)).await;
        assert!(second.is_err(), "it rests");
        assert_eq!(line.read(&mut buf).await.unwrap(), SIP);
        tap.open();
        line.read_exact(&mut buf[..4_000 - 100 - 2 * SIP]).await.unwrap();
        assert_eq!(buf[0], 7);
    }

    #[tokio::test]
    async fn who_waits_behind_a_shut_line_is_woken_when_it_opens() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let tap = Arc::new(Tap::default());
        let mut line = Line::new(ours, Arc::clone(&tap));
        tap.shut();
        theirs.write_all(b"x").await.unwrap();
        let reads = tokio::spawn(async move { line.read_u8().await.unwrap() });
        tokio::task::yield_now().await;
        tap.open();
        assert_eq!(reads.await.unwrap(), b'x');
    }
}
