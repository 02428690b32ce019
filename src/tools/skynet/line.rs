//! Packets over a byte stream, whatever carries it: what a client says waits here until it is written.

use std::collections::VecDeque;
use std::fmt;
use std::io;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio_util::sync::DropGuard;

use crate::chat::skynet::wire::{FromClient, HEADER, ToClient, TooLong, read_header};
use crate::client::raw::Duplex;

/// What happened on a connection.
#[derive(Debug)]
pub(super) enum Turn {
    Heard(Box<ToClient>),
    /// Everything that waited.
    Wrote,
    Ended,
}

/// A connection with a server, or with whatever hands its bytes on.
pub struct Line {
    reading: ReadHalf<Box<dyn Duplex>>,
    writing: WriteHalf<Box<dyn Duplex>>,
    received: BytesMut,
    waiting: VecDeque<Bytes>,
    /// What was written may still be on its way through the stream: TLS keeps what a full socket does not take.
    unflushed: bool,
    /// What ends with the connection.
    _held: Option<DropGuard>,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Line({} packets wait to be written)", self.waiting.len())
    }
}

impl Line {
    /// Packets from the first byte on.
    #[must_use]
    pub fn over(stream: impl Duplex + 'static) -> Self {
        let (reading, writing) = tokio::io::split(Box::new(stream) as Box<dyn Duplex>);
        Self { reading, writing, received: BytesMut::new(), waiting: VecDeque::new(), unflushed: false, _held: None }
    }

    /// The same; with the connection ends whatever waits for this.
    pub(super) fn holding(self, guard: DropGuard) -> Self {
        Self { _held: Some(guard), ..self }
    }

    /// Says something as soon as the other side takes it: while [`Self::next`] or [`Self::flush`] is waited for.
    ///
    /// # Errors
    /// [`TooLong`] when it cannot be said at all.
    pub fn say(&mut self, packet: &FromClient) -> Result<(), TooLong> {
        self.waiting.push_back(packet.encode()?);
        Ok(())
    }

    /// Says any bytes.
    pub fn say_bytes(&mut self, bytes: impl Into<Bytes>) {
        self.waiting.push_back(bytes.into());
    }

    /// How many packets wait to be written. The last one does until the stream says that all of it is gone.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len() + usize::from(self.unflushed)
    }

    /// Writes what waits until something is heard; nothing at the end. May be cancelled without losing anything.
    ///
    /// # Errors
    /// The stream's; also when what is heard is no packet.
    pub async fn next(&mut self) -> io::Result<Option<ToClient>> {
        loop {
            match self.turn().await? {
                Turn::Heard(packet) => return Ok(Some(*packet)),
                Turn::Wrote => {}
                Turn::Ended => return Ok(None),
            }
        }
    }

    /// The same until something is heard or everything is written.
    pub(super) async fn turn(&mut self) -> io::Result<Turn> {
        loop {
            if let Some(packet) = take_packet(&mut self.received)? {
                return Ok(Turn::Heard(Box::new(packet)));
            }
            tokio::select! {
                read = self.reading.read_buf(&mut self.received) => if read? == 0 { return Ok(Turn::Ended) },
                pushed = push(&mut self.writing, &mut self.waiting, &mut self.unflushed),
                    if !self.waiting.is_empty() || self.unflushed =>
                {
                    pushed?;
                    if self.waiting() == 0 {
                        return Ok(Turn::Wrote);
                    }
                }
            }
        }
    }

    /// Writes everything that waits.
    ///
    /// # Errors
    /// The stream's.
    pub async fn flush(&mut self) -> io::Result<()> {
        while self.waiting() > 0 {
            push(&mut self.writing, &mut self.waiting, &mut self.unflushed).await?;
        }
        Ok(())
    }
}

/// Writes a part of what waits, or what the stream keeps of it. May be cancelled without losing anything.
async fn push(
    writing: &mut WriteHalf<Box<dyn Duplex>>,
    waiting: &mut VecDeque<Bytes>,
    unflushed: &mut bool,
) -> io::Result<()> {
    let Some(packet) = waiting.front_mut() else {
        writing.flush().await?;
        *unflushed = false;
        return Ok(());
    };
    match writing.write(packet).await? {
        0 => return Err(io::ErrorKind::WriteZero.into()),
        n => packet.advance(n),
    }
    *unflushed = true;
    if packet.is_empty() {
        waiting.pop_front();
    }
    Ok(())
}

fn take_packet(received: &mut BytesMut) -> io::Result<Option<ToClient>> {
    let Some(header) = received.first_chunk::<HEADER>() else { return Ok(None) };
    // A header cannot announce more than 16 MiB.
    let (id, len) = read_header(*header);
    if received.len() < HEADER + len {
        received.reserve(HEADER + len - received.len());
        return Ok(None);
    }
    let packet = received.split_to(HEADER + len);
    ToClient::decode(id, packet.get(HEADER..).unwrap_or_default()).map(Some).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::skynet::wire::{AccountId, CreateAccountStatus, Found};

    #[tokio::test]
    async fn packets_are_cut_out_of_whatever_pieces_they_come_in() {
        let (here, mut there) = tokio::io::duplex(7);
        let mut line = Line::over(here);
        line.say(&FromClient::DeviceListRequest {}).unwrap();
        let answer = ToClient::CreateAccountResponse { status: CreateAccountStatus::SUCCESS };
        let found =
            ToClient::SearchAccountResponse { found: vec![Found { account: AccountId(7), name: "a@b.c".into() }] };
        let bytes = [answer.encode().unwrap(), found.encode().unwrap()].concat();
        let other = tokio::spawn(async move {
            there.write_all(&bytes).await.unwrap();
            let mut heard = [0; HEADER];
            there.read_exact(&mut heard).await.unwrap();
            heard
        });
        assert_eq!(line.next().await.unwrap(), Some(answer));
        assert_eq!(line.next().await.unwrap(), Some(found));
        assert_eq!(line.next().await.unwrap(), None);
        assert_eq!(other.await.unwrap(), [0x32, 0, 0, 0]);
    }

    /// A stream may take what is written and keep it, and something may be heard while it is told to let go of it.
    #[tokio::test]
    async fn what_a_stream_keeps_back_is_written_though_something_is_heard_meanwhile() {
        for _ in 0..20 {
            let (here, mut there) = tokio::io::duplex(HEADER);
            let mut line = Line::over(tokio::io::BufStream::new(here));
            let query = FromClient::SearchAccount { query: "a question that is longer than what fits".to_owned() };
            line.say(&query).unwrap();
            for _ in 0..3 {
                there.write_all(&ToClient::SyncFinished {}.encode().unwrap()).await.unwrap();
                assert_eq!(line.next().await.unwrap(), Some(ToClient::SyncFinished {}));
                assert!(line.waiting() > 0, "nobody has read it");
            }
            let len = query.encode().unwrap().len();
            let read = tokio::spawn(async move {
                let mut heard = vec![0; len];
                there.read_exact(&mut heard).await.unwrap();
                (heard, there)
            });
            assert!(matches!(line.turn().await.unwrap(), Turn::Wrote));
            assert_eq!((read.await.unwrap().0, line.waiting()), (query.encode().unwrap().to_vec(), 0));
        }
    }

    #[tokio::test]
    async fn what_is_no_packet_of_a_server_is_refused() {
        for bytes in [&[0x00, 0, 0, 0][..], &[0x03, 0, 0, 0], &[0x77, 1, 0, 0, 9]] {
            let (here, mut there) = tokio::io::duplex(64);
            there.write_all(bytes).await.unwrap();
            assert!(Line::over(here).next().await.is_err(), "{bytes:?}");
        }
    }
}
