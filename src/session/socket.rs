//! The WebSocket below a session: its limits, what a message means, and a proper end.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::time::timeout;

use super::ending::Ending;
use crate::wire::d2m::CONTAINER_MAX;

pub(super) type Sink = SplitSink<WebSocket, Message>;
pub(super) type Stream = SplitStream<WebSocket>;

/// Longest message the library lets through, in bytes. Above a container, so that the session can say what is wrong.
const MESSAGE_MAX: usize = 2 * CONTAINER_MAX;
/// Allocated per connection; a message that is longer makes it grow for a while. Most are much shorter, and one of 1 KiB of text
/// comes with one read.
const READ_BUFFER: usize = 1_536;
/// Written out when this much has gathered, in bytes.
const WRITE_BUFFER: usize = 16 * 1024;
const _: () = assert!(MESSAGE_MAX > CONTAINER_MAX, "the longest container fits a message");

/// How long a device may take to answer a close, and a socket to take what is written before it.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Bounds the buffers of a connection that is about to be upgraded.
pub fn limit(upgrade: WebSocketUpgrade) -> WebSocketUpgrade {
    upgrade
        .max_message_size(MESSAGE_MAX)
        .max_frame_size(MESSAGE_MAX)
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(4 * MESSAGE_MAX)
}

/// A frame from the device.
#[derive(Debug)]
pub(super) enum Frame {
    Container(Bytes),
    /// Ping or pong: a sign of life.
    Sign,
}

impl Frame {
    pub(super) const fn len(&self) -> usize {
        match self {
            Self::Container(bytes) => bytes.len(),
            Self::Sign => 0,
        }
    }
}

/// The next frame, or how the connection ended instead.
pub(super) async fn next(stream: &mut Stream) -> Result<Frame, Ending> {
    match stream.next().await {
        None => Err(Ending::Lost),
        Some(Ok(Message::Binary(bytes))) => Ok(Frame::Container(bytes)),
        Some(Ok(Message::Text(_))) => Err(Ending::TextMessage),
        Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(Frame::Sign),
        Some(Ok(Message::Close(frame))) => Err(Ending::ClosedByDevice(frame.map(|frame| frame.code))),
        Some(Err(error)) => Err(broken(error)),
    }
}

/// What a failing read means: a broken connection, or a device that does not speak WebSocket properly.
fn broken(error: axum::Error) -> Ending {
    use tokio_tungstenite::tungstenite::Error;
    use tokio_tungstenite::tungstenite::error::ProtocolError;
    let lost = error.into_inner().downcast::<Error>().map_or(true, |error| {
        matches!(
            *error,
            Error::ConnectionClosed
                | Error::AlreadyClosed
                | Error::Io(_)
                | Error::Tls(_)
                | Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)
        )
    });
    if lost { Ending::Lost } else { Ending::BadWebSocket }
}

/// Ends the connection: what was written goes out first, then a close with code and reason, then the device's answer is
/// waited for, so that the close is not lost to a reset. Nothing takes longer than [`CLOSE_TIMEOUT`] each.
pub(super) async fn close(mut sink: Sink, mut stream: Stream, ending: &Ending) {
    if let Some(code) = ending.close_code() {
        let frame = CloseFrame { code: code.code(), reason: ending.reason().into() };
        if !matches!(timeout(CLOSE_TIMEOUT, sink.send(Message::Close(Some(frame)))).await, Ok(Ok(()))) {
            return;
        }
    } else if timeout(CLOSE_TIMEOUT, sink.flush()).await.is_err() {
        // The library answers a device's close by itself; the flush was for that.
        return;
    }
    let answered = async { while let Some(Ok(_)) = stream.next().await {} };
    let _late = timeout(CLOSE_TIMEOUT, answered).await;
}
