//! Whether the other end of a link is alive.
//!
//! A peer that vanished is silent, and so is one that was stopped, or whose packets go nowhere: TCP alone would wait for many
//! minutes. So each end asks the other for a word every second, and gives the link up when no byte at all came for three: any
//! byte is as good as the answer, which may stand behind many others. What is counted are periods in which this end was awake
//! itself, or a node that was stopped for a while would find all its links silent, with everything waiting to be read.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Pace;

/// In how many parts the time of silence is counted.
const PARTS: u32 = 6;

/// How often something came.
#[derive(Debug, Clone, Default)]
pub(super) struct Heard(Arc<AtomicU64>);

impl Heard {
    /// Returns when nothing came for too long. Never asks twice before it was answered.
    pub(super) async fn fades(&self, ping: Option<PingPong>, pace: Pace) {
        let asks = async {
            if let Some(mut ping) = ping {
                while ping.ping(Ping::opaque()).await.is_ok() {
                    tokio::time::sleep(pace.ping_every).await;
                }
            }
            std::future::pending().await
        };
        let silence = async {
            let (mut silent, mut before) = (0, self.0.load(Ordering::Relaxed));
            while silent < PARTS {
                tokio::time::sleep(pace.silent / PARTS).await;
                let now = self.0.load(Ordering::Relaxed);
                silent = if now == before { silent + 1 } else { 0 };
                before = now;
            }
        };
        tokio::select! {
            () = silence => {}
            () = asks => {}
        }
    }
}

/// A connection that notes when something comes.
#[derive(Debug)]
pub(super) struct Noted<Io> {
    io: Io,
    heard: Heard,
}

impl<Io> Noted<Io> {
    pub(super) fn new(io: Io) -> (Self, Heard) {
        let heard = Heard::default();
        (Self { io, heard: heard.clone() }, heard)
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Noted<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            this.heard.0.fetch_add(1, Ordering::Relaxed);
        }
        polled
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Noted<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
