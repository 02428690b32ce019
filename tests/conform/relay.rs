//! A relay between a device and a mediator that changes what they say to each other: the same honest server (or client)
//! behind it becomes one that is wrong in exactly one way.
//!
//! It works on frames, so that everything else (pings, closes, fragments, the upgrade itself) passes as it was said.
#![allow(dead_code, reason = "each test uses its part")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::{Buf as _, BytesMut};
use heliostat::wire::d2m::{FromDevice, ToDevice};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// One message, or a close.
#[derive(Debug, Clone)]
pub enum Said {
    Binary(Vec<u8>),
    Text(Vec<u8>),
    Close(u16),
}

impl Said {
    pub fn from_device(&self) -> Option<FromDevice> {
        let Self::Binary(bytes) = self else { return None };
        FromDevice::decode(&bytes.clone().into()).ok()
    }

    pub fn to_device(&self) -> Option<ToDevice> {
        let Self::Binary(bytes) = self else { return None };
        ToDevice::decode(&bytes.clone().into()).ok()
    }

    pub fn device(payload: &FromDevice) -> Self {
        Self::Binary(payload.encode().to_vec())
    }

    pub fn mediator(payload: &ToDevice) -> Self {
        Self::Binary(payload.encode().to_vec())
    }
}

/// What goes on instead of what was said.
#[derive(Debug, Default)]
pub struct Instead {
    pub to_mediator: Vec<Said>,
    pub to_device: Vec<Said>,
}

impl Instead {
    pub fn up(said: Said) -> Self {
        Self { to_mediator: vec![said], to_device: vec![] }
    }

    pub fn down(said: Said) -> Self {
        Self { to_mediator: vec![], to_device: vec![said] }
    }

    pub fn nothing() -> Self {
        Self::default()
    }

    pub fn and_up(mut self, said: Said) -> Self {
        self.to_mediator.push(said);
        self
    }

    pub fn and_down(mut self, said: Said) -> Self {
        self.to_device.push(said);
        self
    }
}

/// What is wrong, for one connection; `self` is behind a lock that its connections share if they like.
pub trait Wrong: Send {
    /// The path of the request; another one to change it, or a status to answer it.
    fn asks(&mut self, path: &str) -> Result<String, u16> {
        Ok(path.to_owned())
    }

    fn from_device(&mut self, said: Said) -> Instead {
        Instead::up(said)
    }

    fn to_device(&mut self, said: Said) -> Instead {
        Instead::down(said)
    }

    /// What is said to the mediator before the device says anything.
    fn begins(&mut self) -> Vec<Said> {
        Vec::new()
    }

    /// The device is gone without a close: what is still said to the mediator.
    fn device_lost(&mut self) -> Vec<Said> {
        Vec::new()
    }
}

pub type Make = Arc<dyn Fn(&str) -> Box<dyn Wrong> + Send + Sync>;

/// Listens until it is dropped.
pub struct Relay {
    pub address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relay {
    /// `make` is asked for what is wrong with each connection, by its path.
    pub async fn before(mediator: SocketAddr, make: Make) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            while let Ok((device, _)) = listener.accept().await {
                let make = Arc::clone(&make);
                tokio::spawn(async move {
                    // A connection that breaks is over; what that means is for the ends to say.
                    let _over = carry(device, mediator, &make).await;
                });
            }
        });
        Self { address, task }
    }
}

async fn carry(mut device: TcpStream, mediator: SocketAddr, make: &Make) -> std::io::Result<()> {
    device.set_nodelay(true)?;
    let head = head(&mut device).await?;
    let text = String::from_utf8_lossy(&head).into_owned();
    let mut words = text.splitn(3, ' ');
    let (method, path, rest) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
    let mut wrong = make(path);
    let path = match wrong.asks(path) {
        Ok(path) => path,
        Err(status) => {
            return device.write_all(format!("HTTP/1.1 {status} Wrong\r\nContent-Length: 0\r\n\r\n").as_bytes()).await;
        }
    };
    let mut mediator = TcpStream::connect(mediator).await?;
    mediator.set_nodelay(true)?;
    mediator.write_all(format!("{method} {path} {rest}").as_bytes()).await?;
    let answer = self::head(&mut mediator).await?;
    device.write_all(&answer).await?;
    if !answer.starts_with(b"HTTP/1.1 101") {
        return tokio::io::copy_bidirectional(&mut device, &mut mediator).await.map(drop);
    }
    let wrong = Arc::new(Mutex::new(wrong));
    let (device_reads, device_writes) = device.into_split();
    let (mediator_reads, mediator_writes) = mediator.into_split();
    let (to_device, device_queue) = mpsc::channel(64);
    let (to_mediator, mediator_queue) = mpsc::channel(64);
    tokio::spawn(write(device_queue, device_writes, false));
    tokio::spawn(write(mediator_queue, mediator_writes, true));
    let first_words = frames(wrong.lock().unwrap().begins());
    for frame in first_words {
        let _gone = to_mediator.send(frame).await;
    }
    let up = async {
        let lost = pass(
            device_reads,
            |opcode, frame| {
                let instead = match frame {
                    Some(said) => wrong.lock().unwrap().from_device(said),
                    None => return (Vec::new(), vec![opcode]),
                };
                (frames(instead.to_device), frames(instead.to_mediator))
            },
            &to_device,
            &to_mediator,
        )
        .await;
        let last_words = frames(wrong.lock().unwrap().device_lost());
        for frame in last_words {
            let _gone = to_mediator.send(frame).await;
        }
        lost
    };
    let down = pass(
        mediator_reads,
        |opcode, frame| {
            let instead = match frame {
                Some(said) => wrong.lock().unwrap().to_device(said),
                None => return (vec![opcode], Vec::new()),
            };
            (frames(instead.to_device), frames(instead.to_mediator))
        },
        &to_device,
        &to_mediator,
    );
    tokio::select! {
        over = up => over,
        over = down => over,
    }
}

/// Reads a request or an answer up to its empty line.
async fn head(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(head)
}

/// A frame, unmasked: first byte and payload.
type Raw = (u8, Vec<u8>);

fn frames(said: Vec<Said>) -> Vec<Raw> {
    let frame = |said| match said {
        Said::Binary(bytes) => (0x82, bytes),
        Said::Text(bytes) => (0x81, bytes),
        Said::Close(code) => (0x88, code.to_be_bytes().to_vec()),
    };
    said.into_iter().map(frame).collect()
}

/// Reads frames, asks what to do with whole messages and closes, and hands on what comes out.
async fn pass(
    mut from: OwnedReadHalf,
    mut judge: impl FnMut(Raw, Option<Said>) -> (Vec<Raw>, Vec<Raw>),
    to_device: &mpsc::Sender<Raw>,
    to_mediator: &mpsc::Sender<Raw>,
) -> std::io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        while let Some((first, payload)) = next_frame(&mut buffer) {
            let said = match first {
                0x82 => Some(Said::Binary(payload.clone())),
                0x81 => Some(Said::Text(payload.clone())),
                0x88 if payload.len() >= 2 => Some(Said::Close(u16::from_be_bytes([payload[0], payload[1]]))),
                _ => None,
            };
            let (device, mediator) = judge((first, payload), said);
            for (frames, to) in [(device, to_device), (mediator, to_mediator)] {
                for frame in frames {
                    to.send(frame).await.map_err(std::io::Error::other)?;
                }
            }
        }
        if from.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

fn next_frame(buffer: &mut BytesMut) -> Option<Raw> {
    let (&first, &second) = (buffer.first()?, buffer.get(1)?);
    let (mut at, len) = match second & 0x7f {
        126 => (4, usize::from(u16::from_be_bytes(buffer.get(2..4)?.try_into().unwrap()))),
        127 => (10, usize::try_from(u64::from_be_bytes(buffer.get(2..10)?.try_into().unwrap())).unwrap()),
        len => (2, usize::from(len)),
    };
    let mask: [u8; 4] = if second & 0x80 == 0 {
        [0; 4]
    } else {
        at += 4;
        buffer.get(at - 4..at)?.try_into().unwrap()
    };
    if buffer.len() < at + len {
        return None;
    }
    buffer.advance(at);
    let mut payload = buffer.split_to(len).to_vec();
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    Some((first, payload))
}

async fn write(mut queue: mpsc::Receiver<Raw>, mut to: OwnedWriteHalf, masked: bool) {
    while let Some((first, payload)) = queue.recv().await {
        let mask = if masked { 0x80 } else { 0 };
        let mut frame = vec![first];
        match payload.len() {
            len @ 0..=125 => frame.push(mask | u8::try_from(len).unwrap()),
            len => match u16::try_from(len) {
                Ok(len) => {
                    frame.push(mask | 126);
                    frame.extend_from_slice(&len.to_be_bytes());
                }
                Err(_) => {
                    frame.push(mask | 127);
                    frame.extend_from_slice(&(len as u64).to_be_bytes());
                }
            },
        }
        if masked {
            // A mask of zeros is a mask.
            frame.extend_from_slice(&[0; 4]);
        }
        frame.extend_from_slice(&payload);
        if to.write_all(&frame).await.is_err() {
            return;
        }
    }
}
