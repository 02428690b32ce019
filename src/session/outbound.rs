//! From the group and from the chat server to the socket: one frame of each in turn, flushed when neither has more.

use std::time::Duration;

use axum::extract::ws::Message;
use bytes::Bytes;
use futures_util::SinkExt as _;
use tokio::sync::{oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::ending::Ending;
use super::socket::{CLOSE_TIMEOUT, Sink};
use super::{Timeouts, at_most};
use crate::capture::watch::Line;
use crate::hub::Outgoing;
use crate::hub::seat::Outbox;
use crate::upstream::pipe::Receiver;
use crate::upstream::{Event, UpstreamEnd};
use crate::wire::d2m::ToDevice;

pub(super) async fn run(
    sink: &mut Sink,
    line: &Line,
    outbox: Outbox,
    cut: &CancellationToken,
    timeouts: Timeouts,
    introduced: &watch::Sender<bool>,
    opened: oneshot::Receiver<Receiver<Event>>,
) -> Ending {
    let mut outbound = Outbound {
        sink,
        line,
        outbox,
        from: ChatSide::Unopened(opened),
        introduced,
        greeting: Greeting::Unsaid,
        stalled: timeouts.idle,
    };
    let ending = tokio::select! {
        ending = outbound.speak(timeouts.ping_every) => Some(ending),
        // The group ended the connection. What it said before gets its time, but no more than that.
        () = async { cut.cancelled().await; sleep(CLOSE_TIMEOUT).await } => None,
    };
    match ending {
        Some(Ok(never)) => match never {},
        Some(Err(ending)) => ending,
        None => outbound.farewell(),
    }
}

struct Outbound<'a> {
    sink: &'a mut Sink,
    line: &'a Line,
    outbox: Outbox,
    from: ChatSide,
    /// Tells that the ServerInfo, the first payload of every seat, is on the socket.
    introduced: &'a watch::Sender<bool>,
    greeting: Greeting,
    /// How long a write may take.
    stalled: Duration,
}

/// Where the ServerInfo is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Greeting {
    Unsaid,
    /// Behind what will be flushed next.
    Written,
    Said,
}

/// A write that takes no byte for this long has no reader.
async fn within(stalled: Duration, write: impl Future<Output = Result<(), axum::Error>>) -> Result<(), Ending> {
    match at_most(stalled, write).await {
        Some(written) => written.map_err(|_| Ending::Lost),
        None => Err(Ending::NotReading),
    }
}

/// The chat server's side of the pipe.
enum ChatSide {
    Unopened(oneshot::Receiver<Receiver<Event>>),
    /// With what is left of a batch.
    Open(Receiver<Event>, std::vec::IntoIter<Bytes>),
    Done,
}

/// From the chat server.
enum Proxied {
    Payload(Bytes),
    Ended(UpstreamEnd),
}

enum Next {
    Proxied(Proxied),
    Outgoing(Outgoing),
    Ping,
}

impl Outbound<'_> {
    async fn speak(&mut self, ping_every: Duration) -> Result<std::convert::Infallible, Ending> {
        let mut ping = interval(ping_every);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ping.reset();
        loop {
            let next = tokio::select! {
                // By order, so that a simulated run can be repeated; the turns are taken below.
                biased;
                proxied = self.from.next() => Next::Proxied(proxied),
                outgoing = self.outbox.next() => Next::Outgoing(outgoing.ok_or(Ending::GroupFailed)?),
                _ = ping.tick() => Next::Ping,
            };
            match next {
                Next::Proxied(proxied) => self.pass_on(proxied).await?,
                Next::Outgoing(outgoing) => self.say(outgoing).await?,
                Next::Ping => self.feed(Message::Ping(Bytes::new())).await?,
            }
            // Whatever is there already goes out with the same flush, in turns.
            loop {
                let proxied = self.from.try_next();
                let outgoing = self.outbox.try_next();
                if proxied.is_none() && outgoing.is_none() {
                    break;
                }
                if let Some(proxied) = proxied {
                    self.pass_on(proxied).await?;
                }
                if let Some(outgoing) = outgoing {
                    self.say(outgoing).await?;
                }
            }
            self.flush().await?;
        }
    }

    async fn pass_on(&mut self, proxied: Proxied) -> Result<(), Ending> {
        match proxied {
            Proxied::Payload(payload) => self.feed(Message::Binary(payload)).await,
            Proxied::Ended(end) => {
                self.flush().await?;
                Err(Ending::Upstream(end))
            }
        }
    }

    async fn say(&mut self, outgoing: Outgoing) -> Result<(), Ending> {
        match outgoing {
            Outgoing::Payload(payload) => {
                if self.greeting == Greeting::Written && matches!(payload, ToDevice::Reflected(_)) {
                    // However much waits: once it has its ServerInfo, the device may believe that it is registered. What else
                    // there is to say at first is short and goes with it.
                    self.flush().await?;
                }
                self.feed(Message::Binary(payload.encode())).await?;
                self.outbox.written(&payload).await;
                if self.greeting == Greeting::Unsaid {
                    self.greeting = Greeting::Written;
                }
                Ok(())
            }
            Outgoing::Close(farewell) => {
                self.flush().await?;
                Err(Ending::Group(farewell))
            }
            Outgoing::Moved => {
                self.flush().await?;
                Err(Ending::GroupMoved)
            }
        }
    }

    async fn feed(&mut self, message: Message) -> Result<(), Ending> {
        if let Message::Binary(bytes) = &message {
            self.line.to_device(bytes);
        }
        within(self.stalled, self.sink.feed(message)).await
    }

    async fn flush(&mut self) -> Result<(), Ending> {
        within(self.stalled, self.sink.flush()).await?;
        if self.greeting == Greeting::Written {
            self.greeting = Greeting::Said;
            self.introduced.send_replace(true);
        }
        Ok(())
    }

    /// Why the group ended the connection, of which the device could not be told in time.
    fn farewell(&mut self) -> Ending {
        while let Some(outgoing) = self.outbox.try_next() {
            match outgoing {
                Outgoing::Payload(_) => {}
                Outgoing::Close(farewell) => return Ending::Group(farewell),
                Outgoing::Moved => return Ending::GroupMoved,
            }
        }
        Ending::GroupFailed
    }
}

impl ChatSide {
    /// What comes next; never, when there is no connection to the chat server.
    async fn next(&mut self) -> Proxied {
        loop {
            if let Some(proxied) = self.try_next() {
                return proxied;
            }
            match self {
                Self::Unopened(opened) => {
                    *self = match opened.await {
                        Ok(receiver) => Self::Open(receiver, Vec::new().into_iter()),
                        Err(_inbound_ended) => Self::Done,
                    };
                }
                Self::Open(receiver, batch) => match receiver.recv().await {
                    Some(Event::Payloads(payloads)) => *batch = payloads.into_iter(),
                    Some(Event::Ended(end)) => return Proxied::Ended(end),
                    None => *self = Self::Done,
                },
                Self::Done => std::future::pending().await,
            }
        }
    }

    fn try_next(&mut self) -> Option<Proxied> {
        let Self::Open(receiver, batch) = self else { return None };
        loop {
            if let Some(payload) = batch.next() {
                return Some(Proxied::Payload(payload));
            }
            match receiver.try_recv()? {
                Event::Payloads(payloads) => *batch = payloads.into_iter(),
                Event::Ended(end) => return Some(Proxied::Ended(end)),
            }
        }
    }
}
