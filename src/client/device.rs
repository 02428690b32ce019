//! A device that has been admitted.
//!
//! One task owns the socket and does both directions at once, so a blocked write never stops the reading. What the
//! mediator says comes out of [`Receiver`] in the order it was said: the order is part of the protocol (an acknowledgement
//! of a transaction means that everything accepted before it has been received), so answers are not routed past events.
//! [`Sender`] can be cloned and used beside it.
//!
//! [`Device`] is both halves with a memory: waiting for an answer keeps the events that come before it, and
//! [`Device::next_event`] gives them later, in their order. Real devices do the same while a task of theirs is running.
//!
//! Everything is bounded. [`PAYLOADS_HELD`] payloads wait for the receiver and [`PROXY_UNITS_HELD`] for the proxy stream;
//! when one of them is full the reading stops until somebody takes something, and the mediator feels the socket fill. A
//! device that waits keeps at most [`EVENTS_KEPT`] events, then it gives up with [`Ended::Lost`].

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_tungstenite::tungstenite::protocol::Message;

use super::connect::{ConnectError, Mediator};
use super::keys::GroupKey;
use super::proxy::ProxyStream;
use super::raw::{CLOSE_WAIT, Duplex, Ended, RawConnection, Socket, close_frame};
use crate::capture::Tap;
use crate::crypto::{boxes, kdf, random};
use crate::wire::d2m::{
    BeginTransaction, ClientHello, ClientUrlInfo, CloseCode, DeviceId, DevicesInfo, Envelope, FromDevice, Reflect,
    ReflectAck, ReflectFlags, ReflectId, ReflectedId, ServerGroup, ServerHello, ServerInfo, SlotExpiration, SlotState,
    SlotsExhausted, ToDevice, TransactionHolder,
};

/// Payloads that wait for the receiver before the reading stops. At 64 KiB each, 16 MiB in the worst case.
pub const PAYLOADS_HELD: usize = 256;
/// Proxy payloads that wait for the proxy stream before the reading stops: more than the messages a chat server sends
/// without an acknowledgement (64), so that a device which first reflects what it got can do so.
pub const PROXY_UNITS_HELD: usize = 256;
/// Messages that wait to be sent before senders wait.
pub const MESSAGES_TO_SEND: usize = 64;
/// Events that a device keeps while it waits for something else.
pub const EVENTS_KEPT: usize = 100_000;

/// Who a device is, and what it asks for when it connects. Prints no more of its description than the length.
#[derive(Clone)]
pub struct DeviceConfig {
    /// The keys of its group.
    pub key: GroupKey,
    /// Names its chat server.
    pub server_group: ServerGroup,
    /// Which device of the group it is.
    pub device_id: DeviceId,
    /// Its wish for the case that every slot is taken.
    pub slots_exhausted: SlotsExhausted,
    /// Its wish for the time after it disconnected.
    pub slot_expiration: SlotExpiration,
    /// Whether it believes to have a slot.
    pub expected_slot_state: SlotState,
    /// Its description, before it is sealed for the other devices.
    pub device_info: Vec<u8>,
}

impl DeviceConfig {
    /// A device that never connected: rejected when every slot is taken, kept after it disconnected, without a
    /// description.
    #[must_use]
    pub const fn new(key: GroupKey, server_group: ServerGroup, device_id: DeviceId) -> Self {
        Self {
            key,
            server_group,
            device_id,
            slots_exhausted: SlotsExhausted::Reject,
            slot_expiration: SlotExpiration::Persistent,
            expected_slot_state: SlotState::New,
            device_info: Vec::new(),
        }
    }

    /// The same device, which believes to have a slot.
    #[must_use]
    pub fn existing(&self) -> Self {
        Self { expected_slot_state: SlotState::Existing, ..self.clone() }
    }

    /// What its URL says.
    #[must_use]
    pub fn url_info(&self) -> ClientUrlInfo {
        ClientUrlInfo { device_group_id: self.key.device_group_id(), server_group: self.server_group.clone() }
    }

    /// Answers a mediator's hello.
    ///
    /// # Errors
    /// [`ConnectError::LowOrder`].
    pub fn client_hello(&self, hello: &ServerHello) -> Result<ClientHello, ConnectError> {
        self.client_hello_with(hello, &random::bytes())
    }

    /// Answers a mediator's hello with a nonce of the caller's choice: for tests that compare bytes.
    ///
    /// # Errors
    /// [`ConnectError::LowOrder`].
    pub fn client_hello_with(&self, hello: &ServerHello, nonce: &boxes::Nonce) -> Result<ClientHello, ConnectError> {
        let answer = kdf::answer_challenge(&self.key.keys().path, &hello.esk, &hello.challenge, nonce);
        let response = answer.ok().and_then(|answer| answer.try_into().ok()).ok_or(ConnectError::LowOrder)?;
        Ok(ClientHello {
            response,
            device_id: self.device_id,
            slots_exhausted: self.slots_exhausted,
            slot_expiration: self.slot_expiration,
            encrypted_device_info: self.key.seal_device_info(&self.device_info),
            expected_slot_state: self.expected_slot_state,
        })
    }
}

/// What became of a wish for the lock. Prints no more of a scope than the length.
#[derive(Clone, PartialEq, Eq)]
pub enum Begun {
    /// The lock is ours.
    Granted,
    /// Another device holds it.
    Rejected(TransactionHolder),
}

/// What the connection's task is asked to send.
pub(super) enum Outgoing {
    Message(Bytes),
    Close(u16, String),
}

/// The sending half. Clones send on the same connection. It is closed with 1000 when nobody can send on it any more: when the
/// last clone is gone, and the [`ProxyStream`], if there is one.
#[derive(Debug, Clone)]
pub struct Sender {
    out: mpsc::Sender<Outgoing>,
    ended: Arc<OnceLock<Ended>>,
    next_reflect_id: Arc<AtomicU32>,
    task: AbortHandle,
}

/// The receiving half. When it is dropped, what the mediator says is thrown away.
#[derive(Debug)]
pub struct Receiver {
    payloads: mpsc::Receiver<ToDevice>,
    ended: Arc<OnceLock<Ended>>,
}

/// An admitted device: both halves, and the events that came while it waited for something else. Prints how many these are.
pub struct Device {
    sender: Sender,
    receiver: Receiver,
    kept: VecDeque<ToDevice>,
    info: ServerInfo,
    dry: bool,
    leader: bool,
    proxy: Option<mpsc::Receiver<Bytes>>,
    proxy_taken: Arc<AtomicBool>,
}

impl Sender {
    /// Sends any payload.
    ///
    /// # Errors
    /// When the connection ended; how is what [`Receiver::next`] tells for certain.
    pub async fn send(&self, payload: &FromDevice) -> Result<(), Ended> {
        self.post(Outgoing::Message(payload.encode())).await
    }

    /// Asks the mediator to keep `envelope` for the other devices. The reflect-id counts up from 1 on each connection.
    ///
    /// # Errors
    /// How the connection ended, when it did.
    pub async fn reflect(&self, envelope: &[u8], flags: ReflectFlags) -> Result<ReflectId, Ended> {
        let reflect_id = ReflectId(self.next_reflect_id.fetch_add(1, Ordering::Relaxed));
        self.reflect_as(reflect_id, envelope, flags).await?;
        Ok(reflect_id)
    }

    /// The same under a reflect-id of the caller's choice.
    ///
    /// # Errors
    /// How the connection ended, when it did.
    pub async fn reflect_as(&self, reflect_id: ReflectId, envelope: &[u8], flags: ReflectFlags) -> Result<(), Ended> {
        self.send(&FromDevice::Reflect(Reflect { flags, reflect_id, envelope: Envelope::copy_from(envelope) })).await
    }

    /// Acknowledges a reflected message.
    ///
    /// # Errors
    /// How the connection ended, when it did.
    pub async fn ack(&self, id: ReflectedId) -> Result<(), Ended> {
        self.send(&FromDevice::ReflectedAck(id)).await
    }

    /// Asks for the lock; zero seconds ask for as long as the mediator allows.
    ///
    /// # Errors
    /// How the connection ended, when it did.
    pub async fn begin(&self, encrypted_scope: &[u8], ttl_s: u32) -> Result<(), Ended> {
        let begin = BeginTransaction { encrypted_scope: encrypted_scope.to_vec(), ttl_s };
        self.send(&FromDevice::BeginTransaction(begin)).await
    }

    /// Gives the lock back and lets what was reflected under it be delivered.
    ///
    /// # Errors
    /// How the connection ended, when it did.
    pub async fn commit(&self) -> Result<(), Ended> {
        self.send(&FromDevice::CommitTransaction).await
    }

    /// Asks for a closing handshake. How it went is for the receiving half to see.
    ///
    /// # Errors
    /// How the connection ended, when it already did.
    pub async fn close(&self, code: u16, reason: &str) -> Result<(), Ended> {
        self.post(Outgoing::Close(code, reason.to_owned())).await
    }

    /// Drops the socket without a word, as a device does that lost its network.
    pub fn abort(&self) {
        self.task.abort();
    }

    async fn post(&self, outgoing: Outgoing) -> Result<(), Ended> {
        self.out.send(outgoing).await.map_err(|_| how_it_ended(&self.ended))
    }
}

impl Receiver {
    /// The next payload, or how the connection ended; the latter is repeated for as long as one asks.
    ///
    /// # Errors
    /// [`Ended`].
    pub async fn next(&mut self) -> Result<ToDevice, Ended> {
        self.payloads.recv().await.ok_or_else(|| how_it_ended(&self.ended))
    }
}

fn how_it_ended(ended: &OnceLock<Ended>) -> Ended {
    ended.get().cloned().unwrap_or_else(|| Ended::Lost("given up on our side".to_owned()))
}

impl Device {
    /// Connects and introduces itself.
    ///
    /// # Errors
    /// [`ConnectError`] names what did not work; [`ConnectError::NotAdmitted`] holds the mediator's close code.
    pub async fn connect(mediator: &Mediator, config: &DeviceConfig) -> Result<Self, ConnectError> {
        Self::handshake(mediator.open(&config.url_info()).await?, config).await
    }

    /// The same over any stream, for instance one of a simulated network.
    ///
    /// # Errors
    /// [`ConnectError`], as for [`Self::connect`].
    pub async fn connect_over(stream: impl Duplex + 'static, config: &DeviceConfig) -> Result<Self, ConnectError> {
        let url = format!("ws://mediator.invalid/{}", config.url_info().to_segment());
        Self::handshake(RawConnection::over(stream, &url).await?, config).await
    }

    /// Introduces itself on a connection on which nothing has been read yet.
    ///
    /// # Errors
    /// [`ConnectError`], as for [`Self::connect`].
    pub async fn handshake(mut raw: RawConnection, config: &DeviceConfig) -> Result<Self, ConnectError> {
        let hello = raw.server_hello().await?;
        // Should the mediator have closed meanwhile, then its reason is what the reading finds.
        let sent = raw.send(&FromDevice::ClientHello(Box::new(config.client_hello(&hello)?))).await;
        let info = raw.server_info().await;
        Ok(Self::admitted(
            raw,
            match (sent, info) {
                (Err(ended), Err(ConnectError::NotAdmitted(Ended::Lost(_)))) => return Err(ended.into()),
                (_, info) => info?,
            },
        ))
    }

    /// Takes over a connection whose handshake the caller has done, up to and including ServerInfo.
    #[must_use]
    pub fn admitted(raw: RawConnection, info: ServerInfo) -> Self {
        let (out, outgoing) = mpsc::channel(MESSAGES_TO_SEND);
        let (payload_sender, payloads) = mpsc::channel(PAYLOADS_HELD);
        let (unit_sender, units) = mpsc::channel(PROXY_UNITS_HELD);
        let ended = Arc::new(OnceLock::new());
        let proxy_taken = Arc::new(AtomicBool::new(false));
        let reader = Reader {
            payloads: payload_sender,
            units: unit_sender,
            proxy_taken: Arc::clone(&proxy_taken),
            ended: Arc::clone(&ended),
        };
        let (socket, tap) = raw.into_parts();
        let task = tokio::spawn(drive(socket, tap, outgoing, reader)).abort_handle();
        let next_reflect_id = Arc::new(AtomicU32::new(1));
        Self {
            sender: Sender { out, ended: Arc::clone(&ended), next_reflect_id, task },
            receiver: Receiver { payloads, ended },
            kept: VecDeque::new(),
            info,
            dry: false,
            leader: false,
            proxy: Some(units),
            proxy_taken,
        }
    }

    /// What the mediator said when it admitted this device.
    #[must_use]
    pub const fn server_info(&self) -> &ServerInfo {
        &self.info
    }

    /// The sending half, to be cloned and used beside this.
    #[must_use]
    pub const fn sender(&self) -> &Sender {
        &self.sender
    }

    /// Both halves, for who wants to send and receive from different tasks. Events that were kept are lost; there are
    /// none as long as nothing has been waited for.
    #[must_use]
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }

    /// Sends any payload.
    ///
    /// # Errors
    /// How the connection ended, when it did.
    pub async fn send(&mut self, payload: &FromDevice) -> Result<(), Ended> {
        let sent = self.sender.send(payload).await;
        self.sent(sent).await
    }

    /// Reflects, without waiting for the acknowledgement.
    ///
    /// # Errors
    /// How the connection ended, when it did.
    pub async fn reflect(&mut self, envelope: &[u8], flags: ReflectFlags) -> Result<ReflectId, Ended> {
        let sent = self.sender.reflect(envelope, flags).await;
        self.sent(sent).await
    }

    /// Reflects and waits for the acknowledgement. An ephemeral message gets none, so it must not be waited for.
    ///
    /// # Errors
    /// How the connection ended, when it did.
    pub async fn reflect_and_wait(&mut self, envelope: &[u8], flags: ReflectFlags) -> Result<ReflectAck, Ended> {
        let reflect_id = self.reflect(envelope, flags).await?;
        self.wait_reflect_ack(reflect_id).await
    }

    /// Waits for the acknowledgement of one reflect.
    ///
    /// # Errors
    /// How the connection ended, when it did.
    pub async fn wait_reflect_ack(&mut self, reflect_id: ReflectId) -> Result<ReflectAck, Ended> {
        self.wait_map(|payload| match payload {
            ToDevice::ReflectAck(ack) if ack.reflect_id == reflect_id => Some(*ack),
            _ => None,
        })
        .await
    }

    /// Acknowledges a reflected message.
    ///
    /// # Errors
    /// How the connection ended, when it did.
    pub async fn ack(&mut self, id: ReflectedId) -> Result<(), Ended> {
        self.send(&FromDevice::ReflectedAck(id)).await
    }

    /// Asks for the lock and waits for the answer; zero seconds ask for as long as the mediator allows.
    ///
    /// # Errors
    /// How the connection ended, when it did.
    pub async fn begin(&mut self, encrypted_scope: &[u8], ttl_s: u32) -> Result<Begun, Ended> {
        let sent = self.sender.begin(encrypted_scope, ttl_s).await;
        self.sent(sent).await?;
        self.wait_map(|payload| match payload {
            ToDevice::BeginTransactionAck => Some(Begun::Granted),
            ToDevice::TransactionRejected(holder) => Some(Begun::Rejected(holder.clone())),
            _ => None,
        })
        .await
    }

    /// Gives the lock back and waits until the mediator has done it.
    ///
    /// # Errors
    /// How the connection ended, when it did.
    pub async fn commit(&mut self) -> Result<(), Ended> {
        self.send(&FromDevice::CommitTransaction).await?;
        self.wait_for(|payload| matches!(payload, ToDevice::CommitTransactionAck)).await.map(drop)
    }

    /// Who is in the group.
    ///
    /// # Errors
    /// How the connection ended, when it did.
    pub async fn devices_info(&mut self) -> Result<DevicesInfo, Ended> {
        self.send(&FromDevice::GetDevicesInfo).await?;
        self.wait_map(|payload| match payload {
            ToDevice::DevicesInfo(devices) => Some(devices.clone()),
            _ => None,
        })
        .await
    }

    /// Removes a device from the group, maybe this one, and waits for the acknowledgement.
    ///
    /// # Errors
    /// How the connection ended, when it did.
    pub async fn drop_device(&mut self, id: DeviceId) -> Result<(), Ended> {
        self.send(&FromDevice::DropDevice(id)).await?;
        self.wait_for(|payload| *payload == ToDevice::DropDeviceAck(id)).await.map(drop)
    }

    /// Replaces the data that every device is shown at login. The mediator does not answer.
    ///
    /// # Errors
    /// How the connection ended, when it did.
    pub async fn set_shared_device_data(&mut self, encrypted: &[u8]) -> Result<(), Ended> {
        self.send(&FromDevice::SetSharedDeviceData(encrypted.to_vec())).await
    }

    /// The next payload in the order the mediator said it, answers that nobody waited for included.
    ///
    /// # Errors
    /// How the connection ended, when it did and everything that came before has been given.
    pub async fn next_event(&mut self) -> Result<ToDevice, Ended> {
        match self.kept.pop_front() {
            Some(payload) => Ok(payload),
            None => self.pump().await,
        }
    }

    /// The first payload that fits, among those that were kept and those still to come. The others are kept.
    ///
    /// # Errors
    /// How the connection ended, when it did.
    pub async fn wait_for(&mut self, mut fits: impl FnMut(&ToDevice) -> bool) -> Result<ToDevice, Ended> {
        self.wait_map(|payload| fits(payload).then(|| payload.clone())).await
    }

    /// Waits until everything that was queued for this device has come.
    ///
    /// # Errors
    /// How the connection ended, when it did.
    pub async fn wait_dry(&mut self) -> Result<(), Ended> {
        while !self.dry {
            self.keep_one().await?;
        }
        self.kept.retain(|payload| *payload != ToDevice::ReflectionQueueDry);
        Ok(())
    }

    /// Waits until this device leads its group.
    ///
    /// # Errors
    /// How the connection ended, when it did.
    pub async fn wait_leader(&mut self) -> Result<(), Ended> {
        while !self.leader {
            self.keep_one().await?;
        }
        self.kept.retain(|payload| *payload != ToDevice::RolePromotedToLeader);
        Ok(())
    }

    /// Whether the queue ran dry, as far as events have been looked at.
    #[must_use]
    pub const fn is_dry(&self) -> bool {
        self.dry
    }

    /// Whether this device leads its group, as far as events have been looked at.
    #[must_use]
    pub const fn is_leader(&self) -> bool {
        self.leader
    }

    /// Waits for the end; what the mediator still says is thrown away.
    pub async fn wait_ended(&mut self) -> Ended {
        self.kept.clear();
        loop {
            if let Err(ended) = self.pump().await {
                return ended;
            }
        }
    }

    /// Closes, and waits for the end of the closing handshake, five seconds at most.
    pub async fn close(mut self, code: CloseCode) -> Ended {
        // When it ended already, waiting tells how.
        self.sender.close(code.code(), "").await.unwrap_or_default();
        self.wait_ended().await
    }

    /// Drops the socket without a word, as a device does that lost its network.
    pub fn abort(self) {
        self.sender.abort();
    }

    /// The chat server's byte stream; once per connection. Take it before the first proxy payload is sent: what comes
    /// earlier is an event.
    pub fn proxy_stream(&mut self) -> Option<ProxyStream> {
        let units = self.proxy.take()?;
        self.proxy_taken.store(true, Ordering::Release);
        Some(ProxyStream::new(units, self.sender.out.clone()))
    }

    async fn wait_map<T>(&mut self, mut fits: impl FnMut(&ToDevice) -> Option<T>) -> Result<T, Ended> {
        let found = self.kept.iter().enumerate().find_map(|(at, payload)| Some((at, fits(payload)?)));
        if let Some((at, answer)) = found {
            self.kept.remove(at);
            return Ok(answer);
        }
        loop {
            let payload = self.pump().await?;
            match fits(&payload) {
                Some(answer) => return Ok(answer),
                None => self.keep(payload)?,
            }
        }
    }

    /// A sender only knows that nothing can be sent any more; why is behind what has not been read yet.
    async fn sent<T>(&mut self, sent: Result<T, Ended>) -> Result<T, Ended> {
        if sent.is_err() {
            loop {
                self.keep_one().await?;
            }
        }
        sent
    }

    async fn keep_one(&mut self) -> Result<(), Ended> {
        let payload = self.pump().await?;
        self.keep(payload)
    }

    fn keep(&mut self, payload: ToDevice) -> Result<(), Ended> {
        if self.kept.len() >= EVENTS_KEPT {
            self.sender.abort();
            return Err(Ended::Lost(format!("gave up waiting behind {EVENTS_KEPT} events")));
        }
        self.kept.push_back(payload);
        Ok(())
    }

    async fn pump(&mut self) -> Result<ToDevice, Ended> {
        let payload = self.receiver.next().await?;
        self.dry |= payload == ToDevice::ReflectionQueueDry;
        self.leader |= payload == ToDevice::RolePromotedToLeader;
        Ok(payload)
    }
}

// What is said and kept is private, sealed or not: it prints as a length or a number.

impl fmt::Debug for DeviceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceConfig")
            .field("key", &self.key)
            .field("server_group", &self.server_group)
            .field("device_id", &self.device_id)
            .field("slots_exhausted", &self.slots_exhausted)
            .field("slot_expiration", &self.slot_expiration)
            .field("expected_slot_state", &self.expected_slot_state)
            .field("device_info_bytes", &self.device_info.len())
            .finish()
    }
}

impl fmt::Debug for Begun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Granted => f.write_str("Granted"),
            Self::Rejected(holder) => {
                write!(f, "Rejected({:?}, {} bytes of scope)", holder.device_id, holder.encrypted_scope.len())
            }
        }
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(bytes) => write!(f, "Message({} bytes)", bytes.len()),
            Self::Close(code, reason) => write!(f, "Close({code}, {reason:?})"),
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("kept", &self.kept.len())
            .field("dry", &self.dry)
            .field("leader", &self.leader)
            .field("ended", &self.receiver.ended.get())
            .finish_non_exhaustive()
    }
}

/// Where the connection's task puts what it reads.
struct Reader {
    payloads: mpsc::Sender<ToDevice>,
    units: mpsc::Sender<Bytes>,
    proxy_taken: Arc<AtomicBool>,
    ended: Arc<OnceLock<Ended>>,
}

/// The one task of a connection. Both directions are polled together; the socket is dropped when it returns.
async fn drive(socket: Socket, tap: Option<Tap>, mut outgoing: mpsc::Receiver<Outgoing>, reader: Reader) {
    let (mut sink, mut stream) = socket.split();
    let said = tap.clone();
    let write = async move {
        let mut close = close_frame(CloseCode::Normal.code(), "");
        'open: while let Some(first) = outgoing.recv().await {
            // Everything that is waiting goes out with one flush.
            let mut next = Some(first);
            while let Some(message) = next {
                match message {
                    Outgoing::Message(bytes) => {
                        if let Some(tap) = &said {
                            tap.from_device(&bytes);
                        }
                        sink.feed(Message::Binary(bytes)).await?;
                    }
                    Outgoing::Close(code, reason) => {
                        close = close_frame(code, &reason);
                        break 'open;
                    }
                }
                next = outgoing.try_recv().ok();
            }
            sink.flush().await?;
        }
        if let Some(tap) = &said {
            tap.leaving(close.code.into(), &close.reason);
        }
        sink.send(Message::Close(Some(close))).await
    };
    let read = async move {
        let ended = loop {
            match stream.next().await {
                Some(Ok(Message::Binary(bytes))) => {
                    if let Some(tap) = &tap {
                        tap.to_device(&bytes);
                    }
                    match ToDevice::decode(&bytes) {
                        Ok(payload) => reader.give(payload).await,
                        Err(bad) => break bad.into(),
                    }
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Text(_))) => break Ended::Garbled("a text message".to_owned()),
                Some(Ok(Message::Close(frame))) => break Ended::by_frame(frame),
                Some(Err(error)) => break Ended::by_error(&error),
                None => break Ended::Lost("end of stream".to_owned()),
            }
        };
        if let Some(tap) = &tap {
            ended.tell(tap);
        }
        let closing = matches!(ended, Ended::Closed { .. });
        // The receiver learns of it now; the rest is for politeness.
        reader.finish(ended);
        if closing {
            // Our close frame goes out while we read on; the mediator closes TCP.
            let to_end = async { while let Some(Ok(_)) = stream.next().await {} };
            tokio::time::timeout(CLOSE_WAIT, to_end).await.unwrap_or_default();
        }
    };
    tokio::pin!(write, read);
    tokio::select! {
        () = &mut read => {}
        // Closed by us, or nothing can be written any more: the mediator's last words are still worth reading.
        _written = &mut write => {
            let _unanswered = tokio::time::timeout(CLOSE_WAIT, read).await;
        }
    }
}

impl Reader {
    async fn give(&self, payload: ToDevice) {
        let payload = match payload {
            ToDevice::Proxy(unit) if self.proxy_taken.load(Ordering::Acquire) => {
                match self.units.send(unit).await {
                    Ok(()) => return,
                    // The stream was dropped: its bytes are events again.
                    Err(mpsc::error::SendError(unit)) => ToDevice::Proxy(unit),
                }
            }
            payload => payload,
        };
        // A receiver that was dropped does not want to know.
        self.payloads.send(payload).await.unwrap_or_default();
    }

    /// First the reason, then the end of the channels, so that whoever sees the end finds the reason.
    fn finish(self, ended: Ended) {
        self.ended.get_or_init(|| ended);
    }
}
