//! The connections of a ChatOs client: the public one, and private ones with what two clients say on them (spec 8.1).

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::Sleep;

use super::talk::{LinkEvent, LinkId};
use crate::chat::chatos::wire::{
    CLIENT_CAPS, FromClient, LINES, Line, MESSAGE_OCTETS_MAX, PrivateId, SERVER_SAYS, Text, ToClient, take_packet,
};
use crate::client::raw::Duplex;
use crate::wire::chatos::op;

/// A byte stream to the server, however it gets there.
pub(super) type Stream = Box<dyn Duplex>;

/// Packets that wait to be written before no more lines are taken.
const OUTGOING_MAX: usize = 64;
/// Lines that wait for a private connection before no more are taken.
pub(super) const LINK_LINES_MAX: usize = 64;
/// How long a private connection may take to be there: the server gives it a minute.
const LINK_WITHIN: Duration = Duration::from_secs(70);
/// How long the other side may take to close behind us.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// How far the other side has to be humoured (spec 15).
#[derive(Debug, Clone, Copy)]
pub(super) struct Manners {
    /// Between two packets.
    pub(super) gap: Duration,
    /// Between the establishment of a private connection and the first line on it.
    pub(super) join_delay: Duration,
}

/// What waits to be written, packet by packet, each by one write as far as it is taken.
#[derive(Default)]
struct Outgoing {
    packets: VecDeque<Bytes>,
    gap: Duration,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Outgoing {
    /// Writes a part of it. May be cancelled without losing anything.
    async fn push<W: AsyncWrite + Unpin>(&mut self, socket: &mut W) -> io::Result<()> {
        if let Some(pause) = &mut self.pause {
            pause.await;
            self.pause = None;
        }
        let Some(packet) = self.packets.front_mut() else { return socket.flush().await };
        match socket.write(packet).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => packet.advance(n),
        }
        if packet.is_empty() {
            self.packets.pop_front();
            if !self.gap.is_zero() {
                self.pause = Some(Box::pin(tokio::time::sleep(self.gap)));
            }
            socket.flush().await?;
        }
        Ok(())
    }
}

/// The public connection.
pub(super) struct Public {
    reading: ReadHalf<Stream>,
    writing: WriteHalf<Stream>,
    received: BytesMut,
    outgoing: Outgoing,
}

impl Public {
    pub(super) fn new(stream: Stream, manners: Manners) -> Self {
        let (reading, writing) = tokio::io::split(stream);
        let outgoing = Outgoing { gap: manners.gap, ..Outgoing::default() };
        Self { reading, writing, received: BytesMut::new(), outgoing }
    }

    pub(super) fn say(&mut self, packet: &FromClient) {
        self.outgoing.packets.push_back(packet.encode());
    }

    /// Whether more may be said.
    pub(super) fn has_room(&self) -> bool {
        self.outgoing.packets.len() < OUTGOING_MAX
    }

    /// Writes what waits until something is heard; nothing at the end. May be cancelled without losing anything.
    pub(super) async fn next(&mut self) -> io::Result<Option<ToClient>> {
        loop {
            if let Some(packet) = take_packet(&mut self.received, CLIENT_CAPS, SERVER_SAYS).map_err(io::Error::other)? {
                return ToClient::decode(&packet).map(Some).map_err(io::Error::other);
            }
            let full = !self.has_room();
            tokio::select! {
                read = self.reading.read_buf(&mut self.received) => if read? == 0 { return Ok(None) },
                pushed = self.outgoing.push(&mut self.writing), if !self.outgoing.packets.is_empty() => {
                    pushed?;
                    if full && self.has_room() {
                        // Whoever waits for room looks again.
                        tokio::task::yield_now().await;
                    }
                }
            }
        }
    }

    /// Waits until everything that waits is written or the connection ends.
    pub(super) async fn close(&mut self) {
        while !self.outgoing.packets.is_empty() && self.outgoing.push(&mut self.writing).await.is_ok() {}
        // A reset would make some servers forget to free the nickname.
        let goodbye = async {
            self.writing.shutdown().await?;
            while self.reading.read_buf(&mut self.received).await? > 0 {
                self.received.clear();
            }
            Ok::<_, io::Error>(())
        };
        let _closed = tokio::time::timeout(CLOSE_WITHIN, goodbye).await;
    }
}

/// What is said on a private connection, and how it is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// Nothing yet.
    Unknown,
    /// Packets of opcode 12.
    Framed,
    /// Lines.
    Raw,
}

/// What a private connection needs to know.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub(super) link: LinkId,
    pub(super) id: PrivateId,
    /// Lines go as lines, not as packets.
    pub(super) raw: bool,
    pub(super) manners: Manners,
}

impl Link {
    /// One private connection, from its first packet until either side ends it.
    pub(super) async fn run(
        self,
        stream: io::Result<Stream>,
        lines: mpsc::Receiver<String>,
        events: mpsc::Sender<(LinkId, LinkEvent)>,
    ) {
        let why = match stream {
            Ok(stream) => self.talk(stream, lines, &events).await.unwrap_or_else(|error| error.to_string()),
            Err(error) => error.to_string(),
        };
        // Whoever does not listen any more does not want to know.
        let _gone = events.send((self.link, LinkEvent::Ended(why))).await;
    }

    async fn talk(
        &self,
        stream: Stream,
        mut lines: mpsc::Receiver<String>,
        events: &mpsc::Sender<(LinkId, LinkEvent)>,
    ) -> io::Result<String> {
        let (mut reading, mut writing) = tokio::io::split(stream);
        writing.write_all(&FromClient::Join(self.id).encode()).await?;
        writing.flush().await?;
        let mut received = BytesMut::new();
        let established = async {
            loop {
                match received.first().copied() {
                    Some(op::PRIV_ESTABLISHED) => {
                        received.advance(1);
                        break Ok(());
                    }
                    Some(op::REFUSED) => break Err(io::Error::other("the server refuses it")),
                    Some(_) => break Err(io::Error::other("the server does not establish it")),
                    None if reading.read_buf(&mut received).await? == 0 => {
                        break Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    None => {}
                }
            }
        };
        tokio::select! {
            done = tokio::time::timeout(LINK_WITHIN, established) => {
                done.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            }
            // Nothing is said before it is open, so this is that it is not wanted any more.
            _none = lines.recv() => return Ok("you closed it".to_owned()),
        }
        let tell = |event| async { events.send((self.link, event)).await.map_err(|_| io::ErrorKind::BrokenPipe) };
        tell(LinkEvent::Opened).await?;

        let delay = self.manners.join_delay;
        let pause = (!delay.is_zero()).then(|| Box::pin(tokio::time::sleep(delay)));
        let mut outgoing = Outgoing { gap: self.manners.gap, pause, ..Outgoing::default() };
        let mut mode = Heard::Unknown;
        let why = loop {
            while let Some(text) = self.heard(&mut received, &mut mode, false)? {
                tell(LinkEvent::Heard(text)).await?;
            }
            tokio::select! {
                line = lines.recv(), if outgoing.packets.is_empty() => match line {
                    Some(line) => outgoing.packets.push_back(self.said(line)),
                    None => break "you closed it",
                },
                pushed = outgoing.push(&mut writing), if !outgoing.packets.is_empty() => pushed?,
                read = reading.read_buf(&mut received) => if read? == 0 {
                    if let Some(text) = self.heard(&mut received, &mut mode, true)? {
                        tell(LinkEvent::Heard(text)).await?;
                    }
                    break "the other side closed it";
                },
            }
        };
        let close = async {
            writing.shutdown().await?;
            while reading.read_buf(&mut received).await? > 0 {
                // What was on its way is still heard.
                while let Some(text) = self.heard(&mut received, &mut mode, false)? {
                    tell(LinkEvent::Heard(text)).await?;
                }
            }
            Ok::<_, io::Error>(())
        };
        let _closed = tokio::time::timeout(CLOSE_WITHIN, close).await;
        Ok(why.to_owned())
    }

    fn said(&self, text: String) -> Bytes {
        if self.raw { Bytes::from(text + "\n") } else { Line { id: self.id, text: Text(text) }.encode() }
    }

    /// The next line, if there is one. How the other side says lines shows in its first octet.
    fn heard(&self, received: &mut BytesMut, mode: &mut Heard, ended: bool) -> io::Result<Option<String>> {
        if *mode == Heard::Unknown {
            *mode = match received.first() {
                None => return Ok(None),
                Some(&op::PRIV_DATA) => Heard::Framed,
                Some(_) => Heard::Raw,
            };
        }
        if *mode == Heard::Framed {
            let Some(packet) = take_packet(received, CLIENT_CAPS, LINES).map_err(io::Error::other)? else {
                return Ok(None);
            };
            let line = Line::decode(&packet).map_err(io::Error::other)?;
            if line.id != self.id {
                return Err(io::Error::other("a line of another private connection came"));
            }
            return Ok(Some(line.text.0));
        }
        let end = received.iter().position(|octet| *octet == b'\n');
        let (len, skip) = match end {
            Some(end) if end <= MESSAGE_OCTETS_MAX => (end, 1),
            _ if received.len() >= MESSAGE_OCTETS_MAX => (MESSAGE_OCTETS_MAX, 0),
            _ if ended && !received.is_empty() => (received.len(), 0),
            _ => return Ok(None),
        };
        let line = String::from_utf8_lossy(received.get(..len).unwrap_or_default()).into_owned();
        received.advance(len + skip);
        Ok(Some(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANNERS: Manners = Manners { gap: Duration::ZERO, join_delay: Duration::ZERO };
    const LINK: Link = Link { link: LinkId(1), id: PrivateId(7), raw: false, manners: MANNERS };

    fn all(octets: &[u8], step: usize, ended: bool) -> io::Result<Vec<String>> {
        let (mut received, mut mode, mut out) = (BytesMut::new(), Heard::Unknown, Vec::new());
        for piece in octets.chunks(step) {
            received.extend_from_slice(piece);
            while let Some(line) = LINK.heard(&mut received, &mut mode, false)? {
                out.push(line);
            }
        }
        out.extend(LINK.heard(&mut received, &mut mode, ended)?);
        Ok(out)
    }

    #[test]
    fn the_first_octet_tells_packets_from_lines() {
        let packets = [LINK.said("one".into()), LINK.said("deux é".into())].concat();
        let raw = Link { raw: true, ..LINK };
        let lines = [raw.said("one".into()), raw.said("deux é".into())].concat();
        for step in 1..packets.len() {
            assert_eq!(all(&packets, step, false).unwrap(), ["one", "deux é"]);
            assert_eq!(all(&lines, step, false).unwrap(), ["one", "deux é"]);
        }
        assert_eq!(all(b"no end\xff", 3, true).unwrap(), ["no end\u{fffd}"]);
        let lengths: Vec<_> = all(&[b'x'; 5_000], 1_000, true).unwrap().iter().map(String::len).collect();
        assert_eq!(lengths, [2_048, 2_048, 904]);
    }

    #[test]
    fn among_packets_nothing_else_may_come() {
        let other = Line { id: PrivateId(8), text: "x".into() }.encode();
        let mut stray = LINK.said("x".into()).to_vec();
        stray.push(b'!');
        for wrong in
            [&other[..], &stray, b"\x0c\0\0\0\0\0\0\0\x07\xff\xff\xff\xff", b"\x0c\0\0\0\0\0\0\0\x07\0\0\0\x01\xff"]
        {
            assert!(all(wrong, 5, false).is_err(), "{wrong:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn packets_keep_their_distance_where_that_is_needed() {
        let (here, mut there) = tokio::io::duplex(1024);
        let mut public = Public::new(Box::new(here), Manners { gap: Duration::from_millis(20), ..MANNERS });
        for _ in 0..3 {
            public.say(&FromClient::Login("a".into()));
        }
        let clock = crate::time::Clock::system();
        let begun = clock.now().monotonic;
        let read = async {
            let mut octets = [0; 18];
            there.read_exact(&mut octets).await.unwrap();
        };
        tokio::select! {
            _never = public.next() => panic!("nothing is said"),
            () = read => {}
        }
        assert_eq!(clock.now().monotonic - begun, Duration::from_millis(40));
    }
}
