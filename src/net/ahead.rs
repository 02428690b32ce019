//! Reading more than was asked for.
//!
//! Libraries above a socket read in small pieces, so that thousands of silent connections hold small buffers: one piece, one call
//! of the kernel, and a busy connection pays one for each message. Here one call takes whatever has come, into a buffer
//! on the stack; what was not asked for yet is kept until it is. A connection that waits holds nothing, and what one holds
//! that nobody listens to is at most [`AHEAD`].

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The most that is read at a time, in bytes.
pub const AHEAD: usize = 16 * 1_024;

/// A byte stream that is read ahead.
#[derive(Debug)]
pub struct Ahead<Io> {
    io: Io,
    ahead: BytesMut,
}

impl<Io> Ahead<Io> {
    /// Nothing of it was read yet.
    #[must_use]
    pub fn new(io: Io) -> Self {
        Self { io, ahead: BytesMut::new() }
    }

    /// The stream below.
    #[must_use]
    pub const fn get_ref(&self) -> &Io {
        &self.io
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Ahead<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { io, ahead } = self.get_mut();
        if !ahead.is_empty() {
            let (now, later) = ahead.split_at(ahead.len().min(buf.remaining()));
            buf.put_slice(now);
            match later.is_empty() {
                true => *ahead = BytesMut::new(),
                false => ahead.advance(now.len()),
            }
            return Poll::Ready(Ok(()));
        }
        if buf.remaining() >= AHEAD {
            return Pin::new(io).poll_read(cx, buf);
        }
        let mut stack = [MaybeUninit::uninit(); AHEAD];
        let mut wide = ReadBuf::uninit(&mut stack);
        ready!(Pin::new(io).poll_read(cx, &mut wide))?;
        let read = wide.filled();
        let (now, later) = read.split_at(read.len().min(buf.remaining()));
        buf.put_slice(now);
        ahead.extend_from_slice(later);
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Ahead<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    /// Counts how often it is read.
    struct Counted<Io>(Io, usize);

    impl<Io: AsyncRead + Unpin> AsyncRead for Counted<Io> {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.1 += 1;
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    #[tokio::test]
    async fn what_came_together_is_read_at_once_and_given_in_pieces_whole_and_in_order() {
        let (mut near, far) = duplex(64 * 1_024);
        let said: Vec<u8> = (0..20_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        near.write_all(&said).await.unwrap();
        drop(near);
        let mut ahead = Ahead::new(Counted(far, 0));
        let (mut heard, mut piece) = (Vec::new(), [0; 1_000]);
        loop {
            match ahead.read(&mut piece).await.unwrap() {
                0 => break,
                n => heard.extend_from_slice(&piece[..n]),
            }
        }
        assert!(heard == said);
        assert_eq!(ahead.get_ref().1, 3, "16 KiB, the rest, the end");
        assert_eq!(ahead.ahead.capacity(), 0, "nothing is held");
    }

    #[tokio::test]
    async fn who_asks_for_much_is_given_it_directly() {
        let (mut near, far) = duplex(64 * 1_024);
        near.write_all(&[7; 40_000]).await.unwrap();
        let mut ahead = Ahead::new(far);
        let mut heard = vec![0; 40_000];
        assert_eq!(ahead.read(&mut heard).await.unwrap(), 40_000);
        assert!(ahead.ahead.is_empty());
    }
}
