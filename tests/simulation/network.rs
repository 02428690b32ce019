//! The mediator's doors inside the simulated network, and a relay behind the public one that tampers with what the
//! mediator says, to show that the model notices.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use heliostat::net::listen::Listener;
use heliostat::upstream::{Dial, Io};
use heliostat::wire::d2m::ToDevice;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::{TcpListener, TcpStream};

/// Something that is done to what the mediator says, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tamper {
    LoseReflected,
    RepeatReflected,
    SwapReflected,
    /// A reflected message gets the id of the one before it.
    ReuseId,
    /// A device hears of an end before it hears of the rejection.
    EndedBeforeRejected,
    /// A device that was rejected is told that it holds the lock.
    GrantInsteadOfRejection,
    /// A device is promoted that was not chosen.
    PromoteAnother,
    PromoteBeforeDry,
    DryAgain,
    /// An ephemeral message comes again on the device's next connection.
    KeepEphemeral,
    /// An acknowledgement tells another time.
    ChangeTimestamp,
}

/// What is known of a tampering that is going on.
#[derive(Debug, Default)]
pub struct Tampering {
    tamper: Option<Tamper>,
    done: bool,
    leaders: usize,
    /// An ephemeral message and who had it.
    kept: Option<(std::net::IpAddr, Bytes)>,
}

impl Tampering {
    pub fn new(tamper: Option<Tamper>) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { tamper, ..Self::default() }))
    }
}

pub struct Door {
    pub listener: TcpListener,
    pub tampering: Arc<Mutex<Tampering>>,
}

impl Listener for Door {
    type Io = Wire;

    async fn accept(&mut self) -> io::Result<(Wire, SocketAddr)> {
        let (inner, peer) = self.listener.accept().await?;
        let relay = self.tampering.lock().unwrap().tamper.map(|tamper| Relay {
            tamper,
            tampering: Arc::clone(&self.tampering),
            peer: peer.ip(),
            upgraded: false,
            taken: BytesMut::new(),
            out: BytesMut::new(),
            held: VecDeque::new(),
            last_id: None,
        });
        Ok((Wire { inner, relay }, peer))
    }
}

/// A connection of a device.
#[derive(Debug)]
pub struct Wire {
    inner: TcpStream,
    relay: Option<Relay>,
}

#[derive(Debug)]
struct Relay {
    tamper: Tamper,
    tampering: Arc<Mutex<Tampering>>,
    peer: std::net::IpAddr,
    upgraded: bool,
    taken: BytesMut,
    out: BytesMut,
    held: VecDeque<Bytes>,
    last_id: Option<u32>,
}

fn frame(container: &[u8]) -> Vec<u8> {
    let mut out = vec![0x82];
    match u8::try_from(container.len()) {
        Ok(len) if len < 126 => out.push(len),
        _ => {
            out.push(126);
            out.extend_from_slice(&u16::try_from(container.len()).unwrap().to_be_bytes());
        }
    }
    out.extend_from_slice(container);
    out
}

impl Relay {
    fn take(&mut self, bytes: &[u8]) {
        self.taken.extend_from_slice(bytes);
        if !self.upgraded {
            let Some(end) = self.taken.windows(4).position(|four| four == b"\r\n\r\n") else { return };
            self.out.extend_from_slice(&self.taken.split_to(end + 4));
            self.upgraded = true;
        }
        // The mediator's frames are not masked and not fragmented.
        while let [_, short, rest @ ..] = &self.taken[..] {
            let (head, len) = match (*short, rest) {
                (126, [high, low, ..]) => (4, usize::from(u16::from_be_bytes([*high, *low]))),
                (127, [a, b, c, d, e, f, g, h, ..]) => {
                    (10, usize::try_from(u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h])).unwrap())
                }
                (126 | 127, _) => return,
                (short, _) => (2, usize::from(short)),
            };
            if self.taken.len() < head + len {
                return;
            }
            let mut whole = self.taken.split_to(head + len).freeze();
            if whole[0] == 0x82 {
                let container = whole.split_off(head);
                for container in self.pass(container) {
                    self.out.extend_from_slice(&frame(&container));
                }
            } else {
                self.out.extend_from_slice(&whole);
            }
        }
    }

    fn pass(&mut self, container: Bytes) -> Vec<Bytes> {
        let payload = ToDevice::decode(&container).unwrap();
        let tampering = Arc::clone(&self.tampering);
        let mut now = tampering.lock().unwrap();
        let it = vec![container.clone()];
        if now.done && self.held.is_empty() {
            return it;
        }
        let Tampering { done, leaders, kept, .. } = &mut *now;
        match (self.tamper, &payload) {
            (Tamper::LoseReflected, ToDevice::Reflected(message)) if !message.flags().ephemeral => {
                *done = true;
                Vec::new()
            }
            (Tamper::RepeatReflected, ToDevice::Reflected(_)) => {
                *done = true;
                vec![container.clone(), container]
            }
            (Tamper::SwapReflected, ToDevice::Reflected(_)) => match self.held.pop_front() {
                Some(held) => {
                    *done = true;
                    vec![container, held]
                }
                None => {
                    self.held.push_back(container);
                    Vec::new()
                }
            },
            (Tamper::ReuseId, ToDevice::Reflected(message)) => match self.last_id.replace(message.id().0) {
                Some(last) => {
                    *done = true;
                    let mut changed = BytesMut::from(&container[..]);
                    changed[8..12].copy_from_slice(&last.to_le_bytes());
                    vec![changed.freeze()]
                }
                None => it,
            },
            (Tamper::EndedBeforeRejected, ToDevice::TransactionRejected(holder)) => {
                *done = true;
                vec![ToDevice::TransactionEnded(holder.clone()).encode(), container]
            }
            (Tamper::GrantInsteadOfRejection, ToDevice::TransactionRejected(_)) => {
                // Not only once: the holder may give the lock back before anything else is asked.
                vec![ToDevice::BeginTransactionAck.encode()]
            }
            (Tamper::PromoteAnother, ToDevice::RolePromotedToLeader) => {
                *leaders += 1;
                it
            }
            (Tamper::PromoteAnother, ToDevice::ReflectionQueueDry) if *leaders > 0 => {
                vec![container, ToDevice::RolePromotedToLeader.encode()]
            }
            (Tamper::PromoteBeforeDry, ToDevice::ServerInfo(_)) => {
                *done = true;
                vec![container, ToDevice::RolePromotedToLeader.encode()]
            }
            (Tamper::DryAgain, ToDevice::ReflectionQueueDry) => {
                *done = true;
                vec![container.clone(), container]
            }
            (Tamper::KeepEphemeral, ToDevice::Reflected(message)) if message.flags().ephemeral && kept.is_none() => {
                *kept = Some((self.peer, container));
                it
            }
            (Tamper::KeepEphemeral, ToDevice::ServerInfo(_)) => match kept {
                Some((peer, again)) if *peer == self.peer => {
                    *done = true;
                    vec![container, again.clone()]
                }
                _ => it,
            },
            (Tamper::ChangeTimestamp, ToDevice::ReflectAck(_)) => {
                let mut changed = BytesMut::from(&container[..]);
                changed[12] ^= 1;
                vec![changed.freeze()]
            }
            _ => it,
        }
    }
}

impl Wire {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(relay) = &mut self.relay else { return Poll::Ready(Ok(())) };
        while !relay.out.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &relay.out))?;
            relay.out.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.relay.is_none() {
            return Pin::new(&mut self.inner).poll_write(cx, bytes);
        }
        ready!(self.poll_drain(cx))?;
        if let Some(relay) = &mut self.relay {
            relay.take(bytes);
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

/// Reaches the simulated chat server.
#[derive(Debug)]
pub struct Phone;

impl Dial for Phone {
    fn dial<'a>(&'a self, address: &'a str, _within: Duration) -> BoxFuture<'a, io::Result<Box<dyn Io>>> {
        Box::pin(async move { Ok(Box::new(TcpStream::connect(address).await?) as Box<dyn Io>) })
    }
}
