//! A CSP client: over plain TCP, or over whatever else carries bytes both ways, such as the mediator's proxy.
//!
//! ```no_run
//! use heliostat::client::csp::{CspClient, Event, Login};
//! use heliostat::chat::csp::wire::Identity;
//! use heliostat::crypto::Secret;
//!
//! # async fn run(client_key: Secret<32>, server_public_key: [u8; 32]) -> Result<(), Box<dyn std::error::Error>> {
//! let socket = tokio::net::TcpStream::connect("127.0.0.1:5222").await?;
//! let identity: Identity = "ABCD1234".parse()?;
//! let mut client = CspClient::login(socket, Login::new(identity, client_key, server_public_key)).await?;
//! loop {
//!     match client.next_event().await? {
//!         Event::Message(message) => client.ack(&message).await?,
//!         Event::QueueSendComplete => break,
//!         other => println!("{other:?}"),
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! The client answers nothing by itself, neither messages nor echo requests: harnesses have to be able not to. For the
//! handshake and the frames without any transport see [`chat::csp::wire`](crate::chat::csp::wire).

use std::fmt;
use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};

use crate::chat::csp::wire::handshake::AwaitServerHello;
use crate::chat::csp::wire::{
    BadContainer, CspDeviceId, DeviceCookie, Extensions, Features, Frames, FromClient, HandshakeError, Identity,
    Introduction, LoginAck, Message, MessageAck, Opener, Sealer, ToClient, TooLong,
};
use crate::crypto::boxes::{BadBox, Public};
use crate::crypto::{Secret, random};
use crate::wire::csp::{LOGIN_ACK, SERVER_HELLO};
use crate::wire::delimit::{BadUnit, Cutter};

/// What the server says: everything it may say after the login-ack is an event.
pub use crate::chat::csp::wire::ToClient as Event;
/// A message before and after it is sealed, for either end of a conversation.
pub use crate::chat::csp::wire::message::{Draft, EndToEnd};

/// Why a connection to a chat server failed.
#[derive(Debug, thiserror::Error)]
pub enum CspError {
    /// The server closed the connection, or it broke. Before the login-ack: the server does not want us, and never
    /// says why.
    #[error("the connection ended: {0}")]
    Closed(#[from] io::Error),
    /// The handshake failed on our side.
    #[error("the handshake failed: {0}")]
    Handshake(#[from] HandshakeError),
    /// The server's frame has a length that is not allowed.
    #[error("the server sent a bad frame: {0}")]
    BadFrame(#[from] BadUnit),
    /// What was to be sent does not fit a frame. The connection goes on.
    #[error("not sent: {0}")]
    TooLong(#[from] TooLong),
    /// The server's frame does not open.
    #[error("the server's frame: {0}")]
    BadBox(#[from] BadBox),
    /// The server's frame opens and is malformed.
    #[error("the server sent a bad container: {0}")]
    BadContainer(#[from] BadContainer),
}

/// Who logs in, and how it introduces itself.
#[derive(Debug, Clone)]
pub struct Login {
    /// Who.
    pub identity: Identity,
    /// The identity's permanent secret key.
    pub client_key: Secret<32>,
    /// The server's pinned public keys: the current one, then the alternate one if there is any.
    pub server_public_keys: Vec<Public>,
    /// What is told to the server.
    pub introduction: Introduction,
}

impl Login {
    /// As a current client with a single device.
    #[must_use]
    pub fn new(identity: Identity, client_key: Secret<32>, server_public_key: Public) -> Self {
        let extensions = Extensions {
            features: Some(Features(Features::METADATA.0 | Features::ECHO.0)),
            client_info: Some(format!("{};Q;en/CH;heliostat", env!("CARGO_PKG_VERSION"))),
            device_id: None,
            cookie: None,
        };
        let introduction = Introduction::Extensions(extensions);
        Self { identity, client_key, server_public_keys: vec![server_public_key], introduction }
    }

    /// As one device of several: messages come only after [`CspSender::unblock`].
    #[must_use]
    pub fn device(self, device: CspDeviceId) -> Self {
        self.with(|extensions| extensions.device_id = Some(device))
    }

    /// Presents a device cookie.
    #[must_use]
    pub fn cookie(self, cookie: DeviceCookie) -> Self {
        self.with(|extensions| extensions.cookie = Some(cookie))
    }

    /// Says what this client understands; `None` to say nothing.
    #[must_use]
    pub fn features(self, features: Option<Features>) -> Self {
        self.with(|extensions| extensions.features = features)
    }

    /// Names the client.
    #[must_use]
    pub fn client_info(self, info: impl Into<String>) -> Self {
        self.with(|extensions| extensions.client_info = Some(info.into()))
    }

    /// As an old client, with nothing but its info.
    #[must_use]
    pub fn legacy(mut self, client_info: impl Into<String>) -> Self {
        self.introduction = Introduction::Legacy { client_info: client_info.into() };
        self
    }

    fn with(mut self, change: impl FnOnce(&mut Extensions)) -> Self {
        let mut extensions = match self.introduction {
            Introduction::Extensions(extensions) => extensions,
            Introduction::Legacy { client_info } => {
                Extensions { client_info: Some(client_info), ..Extensions::default() }
            }
        };
        change(&mut extensions);
        self.introduction = Introduction::Extensions(extensions);
        self
    }
}

/// A connection that is logged in. Sending and receiving may be cancelled: see [`CspSender`] and [`CspReceiver::next_event`].
#[derive(Debug)]
pub struct CspClient<IO> {
    sender: CspSender<IO>,
    receiver: CspReceiver<IO>,
    login_ack: LoginAck,
}

impl<IO: AsyncRead + AsyncWrite> CspClient<IO> {
    /// Runs the handshake. Sets no time limit: wrap it in one.
    ///
    /// # Errors
    /// [`CspError`]; a server that refuses just closes the connection.
    pub async fn login(io: IO, login: Login) -> Result<Self, CspError> {
        let (mut reading, mut writing) = tokio::io::split(io);
        let Login { identity, client_key, server_public_keys, introduction } = login;
        let (wait, hello) = AwaitServerHello::start(server_public_keys, Secret::random(), random::bytes());
        writing.write_all(&hello).await?;
        writing.flush().await?;
        let mut answer = [0; SERVER_HELLO];
        reading.read_exact(&mut answer).await?;
        let (wait, login) = wait.login(&answer, identity, &client_key, &introduction)?;
        writing.write_all(&login).await?;
        writing.flush().await?;
        let mut ack = [0; LOGIN_ACK];
        reading.read_exact(&mut ack).await?;
        let (session, login_ack) = wait.finish(&ack)?;
        Ok(Self {
            sender: CspSender { io: writing, sealer: session.sealer, unsent: BytesMut::new() },
            receiver: CspReceiver { io: reading, opener: session.opener, cutter: Cutter::new(Frames) },
            login_ack,
        })
    }

    /// What the server said when it let us in.
    #[must_use]
    pub const fn login_ack(&self) -> LoginAck {
        self.login_ack
    }

    /// Two halves, to send and receive at the same time.
    #[must_use]
    pub fn split(self) -> (CspSender<IO>, CspReceiver<IO>) {
        (self.sender, self.receiver)
    }

    /// See [`CspReceiver::next_event`].
    ///
    /// # Errors
    /// As there.
    pub async fn next_event(&mut self) -> Result<Event, CspError> {
        self.receiver.next_event().await
    }

    /// See [`CspSender::send_message`].
    ///
    /// # Errors
    /// As there.
    pub async fn send_message(&mut self, message: Message) -> Result<(), CspError> {
        self.sender.send_message(message).await
    }

    /// See [`CspSender::ack`].
    ///
    /// # Errors
    /// As there.
    pub async fn ack(&mut self, message: &Message) -> Result<(), CspError> {
        self.sender.ack(message).await
    }

    /// See [`CspSender::unblock`].
    ///
    /// # Errors
    /// As there.
    pub async fn unblock(&mut self) -> Result<(), CspError> {
        self.sender.unblock().await
    }

    /// See [`CspSender::set_idle_timeout`].
    ///
    /// # Errors
    /// As there.
    pub async fn set_idle_timeout(&mut self, seconds: u16) -> Result<(), CspError> {
        self.sender.set_idle_timeout(seconds).await
    }

    /// See [`CspSender::echo`].
    ///
    /// # Errors
    /// As there.
    pub async fn echo(&mut self, data: impl Into<Bytes>) -> Result<(), CspError> {
        self.sender.echo(data).await
    }

    /// See [`CspSender::send`].
    ///
    /// # Errors
    /// As there.
    pub async fn send(&mut self, payload: &FromClient) -> Result<(), CspError> {
        self.sender.send(payload).await
    }

    /// See [`CspSender::send_container`].
    ///
    /// # Errors
    /// As there.
    pub async fn send_container(&mut self, container: &[u8]) -> Result<(), CspError> {
        self.sender.send_container(container).await
    }

    /// See [`CspSender::send_raw`].
    ///
    /// # Errors
    /// As there.
    pub async fn send_raw(&mut self, bytes: &[u8]) -> Result<(), CspError> {
        self.sender.send_raw(bytes).await
    }

    /// See [`CspSender::flush`].
    ///
    /// # Errors
    /// As there.
    pub async fn flush(&mut self) -> Result<(), CspError> {
        self.sender.flush().await
    }
}

/// What a client says.
///
/// Sending may be cancelled. A frame whose nonce is used has to go out whole, or everything behind it is lost; so what was
/// sealed and not yet written is kept and goes first the next time. A send that was dropped has therefore either not begun, or
/// its frame is sent before the next one; [`Self::flush`] sends it if there is no next one. No more than one frame is ever kept.
pub struct CspSender<IO> {
    io: WriteHalf<IO>,
    sealer: Sealer,
    /// Sealed, and not written yet.
    unsent: BytesMut,
}

impl<IO: AsyncWrite> CspSender<IO> {
    /// Sends a message. The server acks it with its receiver and id when it is stored, unless its flags say otherwise.
    ///
    /// # Errors
    /// [`CspError::Closed`] when the connection is gone.
    pub async fn send_message(&mut self, message: Message) -> Result<(), CspError> {
        self.send(&FromClient::Message(message)).await
    }

    /// Acks a message that came: the server may forget it.
    ///
    /// # Errors
    /// [`CspError::Closed`] when the connection is gone.
    pub async fn ack(&mut self, message: &Message) -> Result<(), CspError> {
        self.send(&FromClient::MessageAck(MessageAck { identity: message.sender, id: message.id })).await
    }

    /// Asks for messages: the leader of a device group does.
    ///
    /// # Errors
    /// [`CspError::Closed`] when the connection is gone.
    pub async fn unblock(&mut self) -> Result<(), CspError> {
        self.send(&FromClient::UnblockIncomingMessages).await
    }

    /// Says how long this client may be silent, in seconds: 30 to 600.
    ///
    /// # Errors
    /// [`CspError::Closed`] when the connection is gone.
    pub async fn set_idle_timeout(&mut self, seconds: u16) -> Result<(), CspError> {
        self.send(&FromClient::SetIdleTimeout(seconds)).await
    }

    /// Asks for an echo, which comes as an [`Event::EchoResponse`].
    ///
    /// # Errors
    /// [`CspError::Closed`] when the connection is gone.
    pub async fn echo(&mut self, data: impl Into<Bytes>) -> Result<(), CspError> {
        self.send(&FromClient::EchoRequest(data.into())).await
    }

    /// Says anything.
    ///
    /// # Errors
    /// [`CspError::Closed`] when the connection is gone.
    pub async fn send(&mut self, payload: &FromClient) -> Result<(), CspError> {
        self.send_container(&payload.encode()).await
    }

    /// Sends a container of any content, well-formed or not.
    ///
    /// # Errors
    /// [`CspError::Closed`] when the connection is gone, [`CspError::TooLong`] when the container does not fit a frame.
    pub async fn send_container(&mut self, container: &[u8]) -> Result<(), CspError> {
        self.write().await?;
        self.sealer.seal_frame(container, &mut self.unsent)?;
        self.flush().await
    }

    /// Sends bytes that are no frame, to see what the server makes of them.
    ///
    /// # Errors
    /// [`CspError::Closed`] when the connection is gone.
    pub async fn send_raw(&mut self, bytes: &[u8]) -> Result<(), CspError> {
        self.write().await?;
        self.unsent.extend_from_slice(bytes);
        self.flush().await
    }

    /// Sends what a cancelled send has left to be sent.
    ///
    /// # Errors
    /// [`CspError::Closed`] when the connection is gone.
    pub async fn flush(&mut self) -> Result<(), CspError> {
        self.write().await?;
        Ok(self.io.flush().await?)
    }

    async fn write(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            // Takes off what was written in the same breath.
            if self.io.write_buf(&mut self.unsent).await? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}

impl<IO> fmt::Debug for CspSender<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CspSender").field("unsent_bytes", &self.unsent.len()).finish_non_exhaustive()
    }
}

/// What a client hears.
pub struct CspReceiver<IO> {
    io: ReadHalf<IO>,
    opener: Opener,
    cutter: Cutter<Frames>,
}

impl<IO: AsyncRead> CspReceiver<IO> {
    /// Waits for what the server says next. May be cancelled without losing anything.
    ///
    /// # Errors
    /// [`CspError::Closed`] when the connection is gone; the others when the server breaks the protocol.
    pub async fn next_event(&mut self) -> Result<Event, CspError> {
        loop {
            if let Some(frame) = self.cutter.next_unit()? {
                return Ok(ToClient::decode(&self.opener.open_frame(&frame)?)?);
            }
            if self.io.read_buf(self.cutter.buffer()).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }
}

impl<IO> fmt::Debug for CspReceiver<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CspReceiver").field("cutter", &self.cutter).finish_non_exhaustive()
    }
}
