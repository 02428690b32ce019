//! One WebSocket, one payload after the other.
//!
//! Nothing happens behind the caller's back: no task, no handshake, no reading unless [`RawConnection::recv`] is called.
//! That is what a test needs that wants to misbehave, and what [`super::Device`] is built on. Pings are answered by the
//! library whenever something is read, which cannot be switched off; a connection that is not read answers nothing.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame};
use tokio_tungstenite::tungstenite::protocol::{Message, WebSocketConfig};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::connect::ConnectError;
use crate::capture::{ClosedBy, Tap};
use crate::wire::d2m::{
    BadContainer, CONTAINER_MAX, CloseCode, FromDevice, Reconnect, ServerHello, ServerInfo, ToDevice, hello,
};

/// How long the other side may take to finish the closing handshake.
pub(super) const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// Anything bytes can be read from and written to.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

pub(super) type BoxedStream = Box<dyn Duplex>;
pub(super) type Socket = WebSocketStream<BoxedStream>;

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// By a close frame; 1005 stands for one without a code.
    #[error("closed with {code} ({reason:?})")]
    Closed {
        /// The number.
        code: u16,
        /// The mediator's words, for logs only.
        reason: String,
    },
    /// Without one: the transport broke.
    #[error("lost: {0}")]
    Lost(String),
    /// By us: the mediator sent something that is no container.
    #[error("the mediator broke the protocol: {0}")]
    Garbled(String),
}

impl Ended {
    /// The close code's number, if there was a close frame.
    #[must_use]
    pub const fn code(&self) -> Option<u16> {
        match self {
            Self::Closed { code, .. } => Some(*code),
            Self::Lost(_) | Self::Garbled(_) => None,
        }
    }

    /// The close code, if it is one of the protocol's.
    #[must_use]
    pub fn close_code(&self) -> Option<CloseCode> {
        self.code().and_then(CloseCode::from_code)
    }

    /// What a well-behaved device does next.
    #[must_use]
    pub const fn reconnect(&self) -> Reconnect {
        match self {
            Self::Closed { code, .. } => Reconnect::after(*code),
            Self::Lost(_) => Reconnect::Automatic,
            Self::Garbled(_) => Reconnect::WithWarning,
        }
    }

    pub(super) fn by_frame(frame: Option<CloseFrame>) -> Self {
        match frame {
            Some(frame) => Self::Closed { code: frame.code.into(), reason: frame.reason.to_string() },
            None => Self::Closed { code: 1005, reason: String::new() },
        }
    }

    /// For a capture.
    pub(super) fn tell(&self, tap: &Tap) {
        match self {
            Self::Closed { code, reason } => {
                tap.close(ClosedBy::Mediator, Some(*code).filter(|&code| code != 1005), reason);
            }
            Self::Lost(_) | Self::Garbled(_) => tap.close(ClosedBy::Nobody, None, ""),
        }
    }

    pub(super) fn by_error(error: &WsError) -> Self {
        Self::Lost(error.to_string())
    }
}

impl From<BadContainer> for Ended {
    fn from(bad: BadContainer) -> Self {
        Self::Garbled(bad.to_string())
    }
}

pub(super) fn close_frame(code: u16, reason: &str) -> CloseFrame {
    CloseFrame { code: code.into(), reason: reason.into() }
}

/// A WebSocket to a mediator on which nothing has been said yet.
pub struct RawConnection {
    socket: Socket,
    ended: Option<Ended>,
    tap: Option<Tap>,
}

impl RawConnection {
    /// Upgrades any stream, for instance one of a simulated network. `url` is what the request says.
    ///
    /// # Errors
    /// [`ConnectError::Status`] or [`ConnectError::WebSocket`].
    pub async fn over(stream: impl Duplex + 'static, url: &str) -> Result<Self, ConnectError> {
        // A little above the protocol's limit, so that a container that is too long is seen and named.
        let config = WebSocketConfig::default()
            .read_buffer_size(8 * 1024)
            .max_message_size(Some(2 * CONTAINER_MAX))
            .max_frame_size(Some(2 * CONTAINER_MAX));
        let stream: BoxedStream = Box::new(stream);
        match client_async_with_config(url, stream, Some(config)).await {
            Ok((socket, _response)) => Ok(Self { socket, ended: None, tap: None }),
            Err(WsError::Http(response)) => Err(ConnectError::Status(response.status().as_u16())),
            Err(error) => Err(ConnectError::WebSocket(error.to_string())),
        }
    }

    /// Records what is said from here on.
    #[must_use]
    pub fn tapped(self, tap: Tap) -> Self {
        Self { tap: Some(tap), ..self }
    }

    pub(super) fn into_parts(self) -> (Socket, Option<Tap>) {
        (self.socket, self.tap)
    }

    /// Sends a payload.
    ///
    /// # Errors
    /// [`Ended::Lost`] when nothing can be sent any more; why is what [`Self::recv`] may still tell.
    pub async fn send(&mut self, payload: &FromDevice) -> Result<(), Ended> {
        self.send_binary(payload.encode()).await
    }

    /// Sends several payloads with one write: they arrive together.
    ///
    /// # Errors
    /// As for [`Self::send`].
    pub async fn send_all(&mut self, payloads: &[FromDevice]) -> Result<(), Ended> {
        for payload in payloads {
            let bytes = payload.encode();
            self.record(&bytes);
            self.socket.feed(Message::Binary(bytes)).await.map_err(|error| Ended::by_error(&error))?;
        }
        self.socket.flush().await.map_err(|error| Ended::by_error(&error))
    }

    /// Sends any bytes as a binary message.
    ///
    /// # Errors
    /// As for [`Self::send`].
    pub async fn send_binary(&mut self, bytes: impl Into<Bytes>) -> Result<(), Ended> {
        let bytes = bytes.into();
        self.record(&bytes);
        self.send_message(Message::Binary(bytes)).await
    }

    fn record(&self, said: &[u8]) {
        if let Some(tap) = &self.tap {
            tap.from_device(said);
        }
    }

    /// Sends one binary message in several frames.
    ///
    /// # Errors
    /// As for [`Self::send`].
    pub async fn send_fragments(&mut self, fragments: &[&[u8]]) -> Result<(), Ended> {
        self.record(&fragments.concat());
        for (at, fragment) in fragments.iter().enumerate() {
            let opcode = OpCode::Data(if at == 0 { Data::Binary } else { Data::Continue });
            let frame = Frame::message(fragment.to_vec(), opcode, at + 1 == fragments.len());
            self.send_message(Message::Frame(frame)).await?;
        }
        Ok(())
    }

    /// Sends a text message, which the protocol does not know.
    ///
    /// # Errors
    /// As for [`Self::send`].
    pub async fn send_text(&mut self, text: &str) -> Result<(), Ended> {
        self.send_message(Message::text(text)).await
    }

    /// Sends a WebSocket ping.
    ///
    /// # Errors
    /// As for [`Self::send`].
    pub async fn send_ping(&mut self) -> Result<(), Ended> {
        self.send_message(Message::Ping(Bytes::new())).await
    }

    async fn send_message(&mut self, message: Message) -> Result<(), Ended> {
        self.socket.send(message).await.map_err(|error| Ended::by_error(&error))
    }

    /// The next payload, or how the connection ended; the latter is repeated for as long as one asks. When the mediator
    /// closes, the closing handshake is finished before this returns.
    ///
    /// # Errors
    /// [`Ended`].
    pub async fn recv(&mut self) -> Result<ToDevice, Ended> {
        let bytes = self.recv_binary().await?;
        ToDevice::decode(&bytes).map_err(Ended::from)
    }

    /// The next binary message as it came, or how the connection ended.
    ///
    /// # Errors
    /// [`Ended`], as for [`Self::recv`].
    pub async fn recv_binary(&mut self) -> Result<Bytes, Ended> {
        if let Some(ended) = &self.ended {
            return Err(ended.clone());
        }
        let ended = loop {
            match self.socket.next().await {
                Some(Ok(Message::Binary(bytes))) => {
                    if let Some(tap) = &self.tap {
                        tap.to_device(&bytes);
                    }
                    return Ok(bytes);
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Text(_))) => break Ended::Garbled("a text message".to_owned()),
                Some(Ok(Message::Close(frame))) => {
                    // At once, so that whoever stops waiting in the middle of the handshake finds it the next time.
                    let ended = self.end_as(Ended::by_frame(frame));
                    self.drain().await;
                    return Err(ended);
                }
                Some(Err(error)) => break Ended::by_error(&error),
                None => break Ended::Lost("end of stream".to_owned()),
            }
        };
        Err(self.end_as(ended))
    }

    fn end_as(&mut self, ended: Ended) -> Ended {
        if let Some(tap) = &self.tap {
            ended.tell(tap);
        }
        self.ended.insert(ended).clone()
    }

    /// Reads until the mediator closes; what it still says is thrown away.
    pub async fn wait_ended(&mut self) -> Ended {
        loop {
            if let Err(ended) = self.recv_binary().await {
                return ended;
            }
        }
    }

    /// The handshake's first payload.
    ///
    /// # Errors
    /// [`ConnectError`] when something else comes, or nothing.
    pub async fn server_hello(&mut self) -> Result<ServerHello, ConnectError> {
        match self.recv().await? {
            ToDevice::ServerHello(hello) if hello.version == hello::VERSION => Ok(*hello),
            ToDevice::ServerHello(hello) => Err(ConnectError::Version(hello.version)),
            other => Err(ConnectError::Unexpected(other.kind().to_string(), "server-hello")),
        }
    }

    /// The mediator's answer to ClientHello.
    ///
    /// # Errors
    /// [`ConnectError`] when something else comes, or nothing.
    pub async fn server_info(&mut self) -> Result<ServerInfo, ConnectError> {
        match self.recv().await? {
            ToDevice::ServerInfo(info) => Ok(info),
            other => Err(ConnectError::Unexpected(other.kind().to_string(), "server-info")),
        }
    }

    /// Sends a close frame and nothing more. The mediator's answer is for [`Self::recv`] to see.
    ///
    /// # Errors
    /// As for [`Self::send`].
    pub async fn send_close(&mut self, code: u16, reason: &str) -> Result<(), Ended> {
        if let Some(tap) = &self.tap {
            tap.leaving(code, reason);
        }
        self.send_message(Message::Close(Some(close_frame(code, reason)))).await
    }

    /// Closes and waits for the mediator's close frame.
    pub async fn close(&mut self, code: u16, reason: &str) -> Ended {
        if let Err(ended) = self.send_close(code, reason).await {
            return self.ended.clone().unwrap_or(ended);
        }
        let patience = tokio::time::timeout(CLOSE_WAIT, self.wait_ended()).await;
        patience.unwrap_or_else(|_| Ended::Lost("the close was not answered".to_owned()))
    }

    /// Our close frame goes out, and the mediator closes TCP; it gets [`CLOSE_WAIT`] for that.
    async fn drain(&mut self) {
        let to_end = async { while let Some(Ok(_)) = self.socket.next().await {} };
        // A mediator that does not close TCP is left alone: everything it could say has been said.
        tokio::time::timeout(CLOSE_WAIT, to_end).await.unwrap_or_default();
    }
}

impl std::fmt::Debug for RawConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawConnection").field("ended", &self.ended).finish_non_exhaustive()
    }
}
