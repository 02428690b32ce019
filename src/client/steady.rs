//! A small, well-behaved device: what a client has to get right, and nothing else.
//!
//! It processes before it acknowledges, and processes nothing twice; it reconnects as the close code says and ever more
//! slowly; it unblocks the chat server only when it leads, its queue is dry and the login is complete; and it tells the chat
//! server that a message arrived only when the other devices have it. `conform client` judges clients by the same rules.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fmt;
use std::future::pending;
use std::io;
use std::time::Duration;

use super::connect::{ConnectError, Mediator};
use super::csp::{CspClient, CspError, Event, Login};
use super::device::{Device, DeviceConfig};
use super::proxy::ProxyStream;
use super::raw::Ended;
use crate::chat::csp::wire::{CspDeviceId, FromClient, Message};
use crate::wire::d2m::{CloseCode, Reconnect, ReflectFlags, ReflectId, Reflected, ReflectedId, SlotState, ToDevice};

/// Messages that are remembered as processed. A mediator sends again what was not acknowledged: what is on its way, mostly.
const REMEMBERED: usize = 100_000;

/// How long a device waits before it connects again: twice as long each time, until it is admitted.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// Before the first attempt.
    pub first: Duration,
    /// Never longer than this.
    pub most: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_secs(1), most: Duration::from_secs(10) }
    }
}

/// Why a device stopped and wants a person to look.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// It could not connect, and trying again is not for it to decide.
    #[error(transparent)]
    NotConnected(#[from] ConnectError),
    /// Its connection ended in a way that a device must not answer by itself.
    #[error("the connection was {0}")]
    Ended(Ended),
}

/// A device that stays connected. `process` is handed each envelope once and keeps what it makes of it: what it returned from is
/// acknowledged and never comes again.
pub struct Steady<P> {
    mediator: Mediator,
    config: DeviceConfig,
    chat: Option<Login>,
    backoff: Backoff,
    process: P,
    processed: Processed,
}

impl<P: FnMut(&[u8]) -> io::Result<()> + Send> Steady<P> {
    /// A device that has yet to connect.
    pub fn new(mediator: Mediator, config: DeviceConfig, process: P) -> Self {
        Self { mediator, config, chat: None, backoff: Backoff::default(), process, processed: Processed::default() }
    }

    /// Logs in to the chat server, too.
    #[must_use]
    pub fn chat(mut self, login: Login) -> Self {
        self.chat = Some(login.device(CspDeviceId(self.config.device_id.0)));
        self
    }

    /// Waits differently before it connects again.
    #[must_use]
    pub const fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Connects, and again whenever it may. May be called again when a person has looked.
    pub async fn run(&mut self) -> Stopped {
        let mut wait = self.backoff.first;
        loop {
            let stopped = match Device::connect(&self.mediator, &self.config).await {
                Ok(device) => {
                    // From here on the mediator knows us, whatever becomes of this connection.
                    self.config.expected_slot_state = SlotState::Existing;
                    wait = self.backoff.first;
                    Stopped::Ended(self.serve(device).await)
                }
                Err(error) => Stopped::NotConnected(error),
            };
            let (reconnect, code) = match &stopped {
                Stopped::Ended(ended) => (ended.reconnect(), ended.close_code()),
                Stopped::NotConnected(error) => (error.reconnect(), None),
            };
            if matches!(code, Some(CloseCode::Dropped | CloseCode::ReflectionQueueLimit)) {
                self.config.expected_slot_state = SlotState::New;
            }
            match reconnect {
                Reconnect::UserInteraction => return stopped,
                Reconnect::WithWarning => tracing::warn!("{stopped}"),
                Reconnect::Automatic => {}
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(self.backoff.most);
        }
    }

    /// One connection, to its end.
    async fn serve(&mut self, mut device: Device) -> Ended {
        let stream = self.chat.is_some().then(|| device.proxy_stream()).flatten();
        let login = self.chat.clone().zip(stream);
        let login = async {
            match login {
                Some((login, stream)) => CspClient::login(stream, login).await,
                None => pending().await,
            }
        };
        tokio::pin!(login);
        let mut chat = Chat::LoggingIn;
        let (mut dry, mut leads) = (false, false);
        loop {
            let done = tokio::select! {
                heard = device.next_event() => match heard {
                    Ok(ToDevice::Reflected(message)) => self.reflected(&mut device, &message).await,
                    Ok(ToDevice::ReflectAck(ack)) => {
                        chat.reflected(ack.reflect_id).await;
                        Ok(())
                    }
                    Ok(ToDevice::ReflectionQueueDry) => {
                        dry = true;
                        Ok(())
                    }
                    Ok(ToDevice::RolePromotedToLeader) => {
                        leads = true;
                        Ok(())
                    }
                    Ok(_) => Ok(()),
                    Err(ended) => Err(ended),
                },
                logged_in = &mut login, if matches!(chat, Chat::LoggingIn) => {
                    chat = logged_in.map_or(Chat::Gone, Chat::logged_in);
                    Ok(())
                }
                heard = chat.next_event() => match heard {
                    Ok(Event::Message(message)) => self.message(&mut device, &mut chat, message).await,
                    Ok(Event::EchoRequest(data)) => {
                        chat.say(FromClient::EchoResponse(data)).await;
                        Ok(())
                    }
                    Ok(_) => Ok(()),
                    // The mediator closes when it has handed on everything.
                    Err(_) => {
                        chat = Chat::Gone;
                        Ok(())
                    }
                },
            };
            if let Err(ended) = done {
                return ended;
            }
            if dry && leads {
                chat.unblock().await;
            }
        }
    }

    async fn reflected(&mut self, device: &mut Device, message: &Reflected) -> Result<(), Ended> {
        let (id, timestamp_ms) = (message.id(), message.timestamp_ms());
        if !self.processed.contains(id, timestamp_ms) {
            if let Err(error) = (self.process)(message.envelope()) {
                // Not acknowledged, so it comes again.
                device.sender().abort();
                return Err(Ended::Lost(format!("a message cannot be processed: {error}")));
            }
            self.processed.insert(id, timestamp_ms);
        }
        device.ack(id).await
    }

    /// The other devices get it first: only the leader has it so far.
    async fn message(&mut self, device: &mut Device, chat: &mut Chat, message: Message) -> Result<(), Ended> {
        let envelope = self.config.key.seal_envelope(&message.encode());
        let id = device.reflect(&envelope, ReflectFlags::default()).await?;
        chat.reflecting(id, message);
        Ok(())
    }
}

impl<P> fmt::Debug for Steady<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Steady").field("mediator", &self.mediator).field("config", &self.config).finish_non_exhaustive()
    }
}

/// What was processed, as far back as [`REMEMBERED`]. An id alone may come again after four billion messages.
#[derive(Debug, Default)]
struct Processed {
    known: HashSet<(ReflectedId, u64)>,
    order: VecDeque<(ReflectedId, u64)>,
}

impl Processed {
    fn contains(&self, id: ReflectedId, timestamp_ms: u64) -> bool {
        self.known.contains(&(id, timestamp_ms))
    }

    fn insert(&mut self, id: ReflectedId, timestamp_ms: u64) {
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.order.push_back((id, timestamp_ms));
        self.known.insert((id, timestamp_ms));
    }
}

/// The chat server, as one connection of the device sees it.
enum Chat {
    LoggingIn,
    In {
        client: Box<CspClient<ProxyStream>>,
        unblocked: bool,
        /// Messages of the chat server that the mediator has not acknowledged yet. A chat server sends a window of them.
        reflecting: BTreeMap<ReflectId, Message>,
    },
    Gone,
}

impl Chat {
    fn logged_in(client: CspClient<ProxyStream>) -> Self {
        Self::In { client: Box::new(client), unblocked: false, reflecting: BTreeMap::new() }
    }

    /// What the chat server says next; never returns while there is none. May be cancelled.
    async fn next_event(&mut self) -> Result<Event, CspError> {
        match self {
            Self::In { client, .. } => client.next_event().await,
            Self::LoggingIn | Self::Gone => pending().await,
        }
    }

    async fn say(&mut self, payload: FromClient) {
        if let Self::In { client, .. } = self
            && client.send(&payload).await.is_err()
        {
            *self = Self::Gone;
        }
    }

    /// Once.
    async fn unblock(&mut self) {
        if let Self::In { unblocked: unblocked @ false, .. } = self {
            *unblocked = true;
            self.say(FromClient::UnblockIncomingMessages).await;
        }
    }

    fn reflecting(&mut self, id: ReflectId, message: Message) {
        if let Self::In { reflecting, .. } = self {
            reflecting.insert(id, message);
        }
    }

    async fn reflected(&mut self, id: ReflectId) {
        if let Self::In { client, reflecting, .. } = self
            && let Some(message) = reflecting.remove(&id)
            && client.ack(&message).await.is_err()
        {
            *self = Self::Gone;
        }
    }
}
