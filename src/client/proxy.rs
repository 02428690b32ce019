//! The chat server's byte stream, carried in proxy payloads.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

use super::device::Outgoing;
use crate::wire::d2m::{FromDevice, PAYLOAD_MAX};

/// What the chat server would be over TCP: bytes in, bytes out.
///
/// Each write becomes one proxy payload (so an unbuffered writer decides how its bytes are cut), each payload received is
/// read as it comes. Up to [`super::device::PROXY_UNITS_HELD`] payloads wait here to be read; when that many do, the
/// connection's reader stops, and with it everything else on the socket. A chat server stops before that: it does not send
/// more than a window of messages that nobody acknowledged.
///
/// There is no half-closing: shutting down does nothing. After it is dropped, what the chat server says is an event again.
///
/// It is one of those who send on the connection, which therefore lasts as long as this does, like a socket of its own: also
/// when the device and all its [`Sender`](super::Sender)s are gone.
pub struct ProxyStream {
    units: mpsc::Receiver<Bytes>,
    /// The payload being read.
    unit: Bytes,
    out: PollSender<Outgoing>,
}

impl ProxyStream {
    pub(super) fn new(units: mpsc::Receiver<Bytes>, out: mpsc::Sender<Outgoing>) -> Self {
        Self { units, unit: Bytes::new(), out: PollSender::new(out) }
    }
}

impl fmt::Debug for ProxyStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyStream").field("unit_bytes", &self.unit.len()).finish_non_exhaustive()
    }
}

impl AsyncRead for ProxyStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // An empty payload is a no-op, not the end of the stream.
        while self.unit.is_empty() {
            match std::task::ready!(self.units.poll_recv(cx)) {
                Some(unit) => self.unit = unit,
                None => return Poll::Ready(Ok(())),
            }
        }
        let len = self.unit.len().min(buf.remaining());
        buf.put_slice(self.unit.get(..len).unwrap_or_default());
        self.unit.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ProxyStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        std::task::ready!(self.out.poll_reserve(cx)).map_err(gone)?;
        let bytes = buf.get(..PAYLOAD_MAX).unwrap_or(buf);
        let payload = FromDevice::Proxy(Bytes::copy_from_slice(bytes));
        self.out.send_item(Outgoing::Message(payload.encode())).map_err(gone)?;
        Poll::Ready(Ok(bytes.len()))
    }

    /// Nothing waits here to be flushed: the connection's task sends as soon as the socket takes it.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
