//! One connection of the client under test, as the scripted mediator sees it: nothing happens that the script does not say.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use super::ChatPlan;
use crate::chat::csp::wire::handshake::AwaitLogin;
use crate::chat::csp::wire::{Frames, FromClient, LoginAck, Session, ToClient};
use crate::client::raw::Duplex;
use crate::crypto::boxes::{self, Public};
use crate::crypto::{Secret, kdf, random};
use crate::tools::conform::finding::{Done, Finding, ensure};
use crate::wire::csp::LOGIN_ACK;
use crate::wire::d2m::{
    ClientHello, ClientUrlInfo, Envelope, FromDevice, ReflectFlags, Reflected, ReflectedId, ServerHello, ServerInfo,
    SlotState, ToDevice,
};
use crate::wire::delimit::Cutter;

/// A client that connected.
pub(super) struct Visit {
    socket: WebSocketStream<Box<dyn Duplex>>,
    pub(super) url: ClientUrlInfo,
    patience: Duration,
    now_ms: u64,
    /// What was heard and not asked for yet.
    heard: VecDeque<FromDevice>,
    /// What the client said to its chat server, not taken yet.
    proxied: BytesMut,
    /// How it ended, in words.
    over: Option<String>,
}

/// A challenge that was sent.
pub(super) struct Challenge {
    esk: Secret<32>,
    challenge: [u8; 32],
}

impl Visit {
    pub(super) fn new(
        socket: WebSocketStream<Box<dyn Duplex>>,
        url: ClientUrlInfo,
        patience: Duration,
        now_ms: u64,
    ) -> Self {
        Self { socket, url, patience, now_ms, heard: VecDeque::new(), proxied: BytesMut::new(), over: None }
    }

    pub(super) async fn say(&mut self, payload: &ToDevice) -> Done {
        self.say_bytes(payload.encode()).await
    }

    pub(super) async fn say_bytes(&mut self, container: Bytes) -> Done {
        self.write(Message::Binary(container)).await
    }

    /// One container in several frames, with pauses: a slow server.
    pub(super) async fn say_slowly(&mut self, container: &[u8], pieces: usize, pause: Duration) -> Done {
        let piece = container.len().div_ceil(pieces.max(1)).max(1);
        let mut rest = container;
        let mut first = true;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(piece.min(rest.len()));
            let opcode = OpCode::Data(if first { Data::Binary } else { Data::Continue });
            self.write(Message::Frame(Frame::message(now.to_vec(), opcode, later.is_empty()))).await?;
            tokio::time::sleep(pause).await;
            (first, rest) = (false, later);
        }
        Ok(())
    }

    async fn write(&mut self, message: Message) -> Done {
        let sent = tokio::time::timeout(self.patience, self.socket.send(message)).await;
        let sent = sent.map_err(|_| Finding::Broken("the client does not read what it is sent".to_owned()))?;
        sent.map_err(|error| Finding::Broken(format!("the client is gone: {error}")))
    }

    /// Reads one message into what was heard. May be cancelled.
    async fn read(&mut self) -> Result<(), String> {
        if let Some(over) = &self.over {
            return Err(over.clone());
        }
        let over = match self.socket.next().await {
            Some(Ok(Message::Binary(bytes))) => match FromDevice::decode(&bytes) {
                Ok(FromDevice::Proxy(bytes)) => {
                    self.proxied.extend_from_slice(&bytes);
                    return Ok(());
                }
                Ok(payload) => {
                    self.heard.push_back(payload);
                    return Ok(());
                }
                Err(bad) => format!("said what is no payload: {bad}"),
            },
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => return Ok(()),
            Some(Ok(Message::Text(_))) => "said a text message".to_owned(),
            Some(Ok(Message::Close(frame))) => {
                let code = frame.map_or(1005, |frame| frame.code.into());
                // The answer to its close, or the rest of ours.
                let _flushed = self.socket.flush().await;
                format!("closed with {code}")
            }
            Some(Err(error)) => format!("was lost: {error}"),
            None => "ended".to_owned(),
        };
        self.over = Some(over.clone());
        Err(over)
    }

    /// The next payload that is not for the chat server.
    pub(super) async fn next(&mut self, due: &str) -> Result<FromDevice, Finding> {
        let patience = self.patience;
        let reading = async {
            loop {
                if let Some(payload) = self.heard.pop_front() {
                    return Ok(payload);
                }
                self.read().await.map_err(|over| format!("{due} was due, and the client {over}"))?;
            }
        };
        let waited = tokio::time::timeout(patience, reading).await;
        waited.map_err(|_| Finding::Broken(format!("{due} did not come within {patience:?}")))?
    }

    /// What is said within a while that has to be long enough for whoever is wrong.
    pub(super) async fn listens(&mut self, a_while: Duration) -> Vec<FromDevice> {
        let reading = async { while self.read().await.is_ok() {} };
        // Until the time is over, or the client.
        let _time = tokio::time::timeout(a_while, reading).await;
        self.heard.drain(..).collect()
    }

    /// Whether the client has not ended the connection, as far as was read.
    pub(super) const fn is_open(&self) -> bool {
        self.over.is_none()
    }

    pub(super) fn over(&self) -> &str {
        self.over.as_deref().unwrap_or("is still there")
    }

    pub(super) fn challenge(&self) -> (Challenge, ServerHello) {
        let challenge = Challenge { esk: Secret::random(), challenge: random::bytes() };
        let hello = ServerHello { version: 0, esk: boxes::public(&challenge.esk), challenge: challenge.challenge };
        (challenge, hello)
    }

    /// The client's answer, which has to prove that it holds the key.
    pub(super) async fn client_hello(&mut self, challenge: &Challenge) -> Result<ClientHello, Finding> {
        match self.next("ClientHello").await? {
            FromDevice::ClientHello(hello) => {
                let group = self.url.device_group_id;
                let right =
                    kdf::challenge_answered(&challenge.esk, group.as_bytes(), &challenge.challenge, &hello.response);
                ensure!(right == Ok(true), "ClientHello does not prove that the client holds the group's key");
                Ok(*hello)
            }
            FromDevice::ClientHelloOfVersion(version) => Err(format!("ClientHello is of version {version}").into()),
            other => Err(format!("{} came where ClientHello was due", other.kind()).into()),
        }
    }

    /// The handshake, up to ClientHello.
    pub(super) async fn greets(&mut self) -> Result<ClientHello, Finding> {
        let (challenge, hello) = self.challenge();
        self.say(&ToDevice::ServerHello(hello.into())).await?;
        self.client_hello(&challenge).await
    }

    pub(super) async fn admits(&mut self, slot_state: SlotState, queue: u32) -> Done {
        let info = ServerInfo {
            max_device_slots: 10,
            slot_state,
            encrypted_shared_device_data: Vec::new(),
            current_time_ms: self.now_ms,
            reflection_queue_length: queue,
        };
        self.say(&ToDevice::ServerInfo(info)).await
    }

    pub(super) async fn reflects(&mut self, message: &Reflected) -> Done {
        self.say_bytes(message.container().clone()).await
    }

    /// The next acknowledgement; whatever else the client says is passed over.
    pub(super) async fn ack(&mut self) -> Result<ReflectedId, Finding> {
        loop {
            if let FromDevice::ReflectedAck(id) = self.next("a reflected-ack").await? {
                return Ok(id);
            }
        }
    }

    /// Waits until all these are acknowledged and takes exception to others.
    pub(super) async fn acks_of(&mut self, messages: &[Reflected]) -> Done {
        let mut missing: Vec<ReflectedId> = messages.iter().map(Reflected::id).collect();
        while !missing.is_empty() {
            let id = self.ack().await.map_err(|finding| match finding {
                Finding::Broken(why) => {
                    format!("{} of {} are not acknowledged: {why}", missing.len(), messages.len()).into()
                }
                untried @ Finding::Untried(_) => untried,
            })?;
            ensure!(messages.iter().any(|message| message.id() == id), "{} was acknowledged and never sent", id.0);
            missing.retain(|other| *other != id);
        }
        Ok(())
    }

    /// Closes, and says whether the client answered in order.
    pub(super) async fn closes(&mut self, code: u16) -> bool {
        let frame = CloseFrame { code: code.into(), reason: "".into() };
        if self.write(Message::Close(Some(frame))).await.is_err() {
            return false;
        }
        let patience = self.patience;
        let reading = async { while self.read().await.is_ok() {} };
        let answered = tokio::time::timeout(patience, reading).await.is_ok();
        answered && self.over.as_deref().is_some_and(|over| over.starts_with("closed with"))
    }

    /// Bytes for the chat server.
    async fn chat_bytes(&mut self, len: usize) -> Result<BytesMut, Finding> {
        let patience = self.patience;
        let reading = async {
            while self.proxied.len() < len {
                self.read().await.map_err(|over| format!("the chat server was due, and the client {over}"))?;
            }
            Ok(self.proxied.split_to(len))
        };
        let waited = tokio::time::timeout(patience, reading).await;
        waited.map_err(|_| Finding::Broken(format!("nothing came for the chat server within {patience:?}")))?
    }

    async fn chat_array<const N: usize>(&mut self) -> Result<[u8; N], Finding> {
        let bytes = self.chat_bytes(N).await?;
        bytes.first_chunk().copied().ok_or_else(|| Finding::Broken("too little for the chat server".to_owned()))
    }

    /// The chat server's handshake, up to a login-ack that is still to be sent.
    pub(super) async fn chat_login(&mut self, plan: &ChatPlan) -> Result<(Room, [u8; LOGIN_ACK]), Finding> {
        let bad = |error: crate::chat::csp::wire::HandshakeError| Finding::Broken(format!("its login: {error}"));
        let hello = self.chat_array().await?;
        let (wait, answer) =
            AwaitLogin::answer(&plan.server_key, &hello, Secret::random(), random::bytes()).map_err(bad)?;
        self.say(&ToDevice::Proxy(Bytes::copy_from_slice(&answer))).await?;
        let login = self.chat_array().await?;
        let login = wait.open(&login).map_err(bad)?;
        let extensions = self.chat_bytes(login.extensions_len()).await?;
        let claim = login.claim(&extensions).map_err(bad)?;
        ensure!(claim.identity() == plan.identity, "it logs in as {}", claim.identity());
        let verified = claim.verify(&plan.server_key, &plan.public_key).map_err(bad)?;
        ensure!(verified.introduction().device_id().is_some(), "it logs in without a device id");
        let (session, ack) = verified.accept(LoginAck { time_ms: self.now_ms, queued: 0 });
        Ok((Room { session, cutter: Cutter::new(Frames) }, ack))
    }

    pub(super) async fn chat_says(&mut self, room: &mut Room, payload: &ToClient) -> Done {
        let mut frame = BytesMut::new();
        let sealed = room.session.sealer.seal_frame(&payload.encode(), &mut frame);
        sealed.map_err(|error| Finding::Untried(format!("no frame for the client: {error}")))?;
        self.say(&ToDevice::Proxy(frame.freeze())).await
    }

    /// What the client says to the chat server within a while.
    pub(super) async fn chat_listens(
        &mut self,
        room: &mut Room,
        a_while: Duration,
    ) -> Result<Vec<FromClient>, Finding> {
        let reading = async { while self.read().await.is_ok() {} };
        let _time = tokio::time::timeout(a_while, reading).await;
        let mut said = Vec::new();
        while let Some(payload) = self.chat_taken(room)? {
            said.push(payload);
        }
        Ok(said)
    }

    /// Waits until the client says something to the chat server that fits.
    pub(super) async fn chat_hears(&mut self, room: &mut Room, due: &str, fits: impl Fn(&FromClient) -> bool) -> Done {
        let patience = self.patience;
        let reading = async {
            loop {
                while let Some(payload) = self.chat_taken(room)? {
                    if fits(&payload) {
                        return Ok(());
                    }
                }
                self.read().await.map_err(|over| format!("{due} was due, and the client {over}"))?;
            }
        };
        let waited = tokio::time::timeout(patience, reading).await;
        waited.map_err(|_| Finding::Broken(format!("{due} did not come within {patience:?}")))?
    }

    fn chat_taken(&mut self, room: &mut Room) -> Result<Option<FromClient>, Finding> {
        let bad = |error: &dyn std::fmt::Display| Finding::Broken(format!("a frame for the chat server: {error}"));
        room.cutter.buffer().extend_from_slice(&self.proxied.split());
        let Some(frame) = room.cutter.next_unit().map_err(|error| bad(&error))? else { return Ok(None) };
        let container = room.session.opener.open_frame(&frame).map_err(|error| bad(&error))?;
        Ok(Some(FromClient::decode(&container).map_err(|error| bad(&error))?))
    }
}

/// A chat server's session with the client.
pub(super) struct Room {
    session: Session,
    cutter: Cutter<Frames>,
}

/// A message for the client.
pub(super) fn reflected(id: u32, envelope: &[u8], ephemeral: bool, timestamp_ms: u64) -> Reflected {
    Reflected::new(Envelope::copy_from(envelope), ReflectFlags { ephemeral }, ReflectedId(id), timestamp_ms)
}

/// An ephemeral key of low order: no client may agree on anything with it.
pub(super) const LOW_ORDER: Public = [0; 32];
