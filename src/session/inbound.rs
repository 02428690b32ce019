//! From the socket to the group and to the chat server, strictly in the order of arrival.

use std::pin::{Pin, pin};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use tokio::sync::{oneshot, watch};

use super::ending::Ending;
use super::socket::{CLOSE_TIMEOUT, Frame, Stream};
use super::{Context, at_most, brake, socket};
use crate::capture::watch::Line;
use crate::group::Request;
use crate::hub::seat::Place;
use crate::metrics::{self, Bounded as _};
use crate::upstream::pipe::Receiver;
use crate::upstream::{self, Event, ToChatServer, Upstream};
use crate::wire::d2m::{ClientUrlInfo, FromDevice, PayloadType};

pub(super) async fn run(
    stream: &mut Stream,
    line: &Line,
    place: &Place,
    context: &Context,
    early: BytesMut,
    introduced: watch::Receiver<bool>,
    opened: oneshot::Sender<Receiver<Event>>,
) -> Ending {
    let (gathered, opened) = (Vec::new(), Some(opened));
    let chat = ChatServer { place, url: line.url(), context, introduced, opened, to: None, gathered, bytes: 0 };
    match listen(stream, line, place, context, early.freeze(), chat).await {
        Ok(never) => match never {},
        Err(ending) => ending,
    }
}

async fn listen(
    stream: &mut Stream,
    line: &Line,
    place: &Place,
    context: &Context,
    early: Bytes,
    mut chat: ChatServer<'_>,
) -> Result<std::convert::Infallible, Ending> {
    let brake = brake::Brake::new(context.rates, context.clock);
    chat.gather(early).await?;
    loop {
        // A device that does not take its answers is not listened to: the socket is the brake. The other direction
        // notices when it takes nothing at all.
        chat.before(pin!(place.listening())).await?;
        let frame = chat.before(pin!(at_most(context.timeouts.idle, socket::next(stream)))).await?;
        let frame = frame.ok_or(Ending::IdleTimeout)??;
        if let Some(by) = chat.before(pin!(brake.pass(frame.len()))).await? {
            metrics::get().slowed.of(by).increment(1);
            if let Some(others) = context.slowed.may_say(by) {
                let group = line.url().device_group_id;
                tracing::info!(%group, by = by.value(), others, "a device sends more than it may and is read more slowly");
            }
        }
        let Frame::Container(message) = frame else { continue };
        line.from_device(&message);
        let request = match FromDevice::decode(&message).map_err(Ending::BadContainer)? {
            FromDevice::Proxy(bytes) => {
                chat.gather(bytes).await?;
                continue;
            }
            FromDevice::GetDevicesInfo => Request::GetDevicesInfo,
            FromDevice::DropDevice(device) => Request::DropDevice(device),
            FromDevice::SetSharedDeviceData(data) => Request::SetSharedDeviceData(data),
            FromDevice::BeginTransaction(begin) => Request::BeginTransaction(begin),
            FromDevice::CommitTransaction => Request::CommitTransaction,
            FromDevice::Reflect(reflect) => Request::Reflect(reflect),
            FromDevice::ReflectedAck(id) => Request::ReflectedAck(id),
            FromDevice::ClientHello(_) | FromDevice::ClientHelloOfVersion(_) => {
                return Err(Ending::WrongState(PayloadType::CLIENT_HELLO));
            }
            FromDevice::Unknown(unknown) => return Err(Ending::UnknownPayload(unknown.kind)),
        };
        chat.hand_over().await?;
        if place.say(request).await.is_err() {
            // The group is gone, maybe asleep because this device was its last and dropped itself. Its last words are for
            // the other direction to say; a socket that does not take them is not waited for much longer.
            tokio::time::sleep(CLOSE_TIMEOUT).await;
            return Err(Ending::GroupFailed);
        }
    }
}

/// The way to the chat server, dialled when the first byte for it is there and the device knows that it is admitted.
struct ChatServer<'a> {
    place: &'a Place,
    url: &'a ClientUrlInfo,
    context: &'a Context,
    introduced: watch::Receiver<bool>,
    /// Where the other direction is handed over.
    opened: Option<oneshot::Sender<Receiver<Event>>>,
    to: Option<ToChatServer>,
    /// What the device said while there was more to read, and what it takes of the pipe, in bytes.
    gathered: Vec<Bytes>,
    bytes: usize,
}

impl ChatServer<'_> {
    async fn gather(&mut self, said: Bytes) -> Result<(), Ending> {
        if said.is_empty() {
            return Ok(());
        }
        self.bytes += upstream::cost(&said);
        self.gathered.push(said);
        match self.bytes < upstream::BATCH {
            true => Ok(()),
            false => self.hand_over().await,
        }
    }

    /// What `future` gives. Nothing that was gathered waits for it.
    async fn before<F: Future>(&mut self, mut future: Pin<&mut F>) -> Result<F::Output, Ending> {
        if !self.gathered.is_empty() {
            if let Some(done) = future.as_mut().now_or_never() {
                return Ok(done);
            }
            self.hand_over().await?;
        }
        Ok(future.await)
    }

    async fn hand_over(&mut self) -> Result<(), Ending> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        if self.to.is_none() {
            self.to = Some(self.open().await?);
        }
        let Some(to) = &self.to else { return Ok(()) };
        self.bytes = 0;
        match at_most(self.context.timeouts.idle, to.send(std::mem::take(&mut self.gathered))).await {
            // When the pipe is gone, the other direction is about to say why: it has the last words of the chat server.
            Some(Err(_gone)) => std::future::pending().await,
            Some(Ok(())) => Ok(()),
            None => Err(Ending::UpstreamStalled),
        }
    }

    async fn open(&mut self) -> Result<ToChatServer, Ending> {
        // Nothing may reach the device before its ServerInfo (A15).
        if self.introduced.wait_for(|&introduced| introduced).await.is_err() {
            return std::future::pending().await;
        }
        let target = self.context.directory.find(&self.url.server_group).ok_or(Ending::NoUpstream)?;
        let Place { proxies, cut, .. } = self.place;
        let dial = std::sync::Arc::clone(&self.context.dial);
        let Upstream { to, from } = Upstream::open(target, self.context.upstream, dial, proxies, cut);
        if let Some(opened) = self.opened.take() {
            let _outbound_ended = opened.send(from);
        }
        Ok(to)
    }
}
