//! Socket.IO over one WebSocket, from the client's side (spec 1.1).
//!
//! Of Engine.IO and Socket.IO this much is needed: an opening, a heartbeat that the server beats, requests with numbers, answers
//! under them, and events that the server sends by itself. Nothing is binary, there is one namespace, and polling is for browsers.
//!
//! A connection on which nothing comes for longer than the server promised to beat is over: neither a computer that slept nor a
//! network that forgot about it says so.

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Sink as _, Stream as _};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::Sleep;
use tokio_tungstenite::tungstenite::protocol::{Message, WebSocketConfig};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use tokio_util::sync::DropGuard;

use crate::chat::dm::wire::{Envelope, PACKET_MAX};
use crate::client::raw::Duplex;

/// How long the server may take to open.
const PATIENCE: Duration = Duration::from_secs(10);
/// An answer may be longer than a request: a page of ten messages, the longest there are, each with as many reactions as a server takes of
/// its members, is some 20 MB of digits. Beyond this it is nobody's answer.
const RECEIVED_MAX: usize = 64 * 1024 * 1024;
/// Nobody beats slower than this, whatever they promise.
const SILENCE_MAX: Duration = Duration::from_secs(300);

/// What the server says.
#[derive(Debug)]
pub enum Heard {
    /// The answer to a request, by its number.
    Answer(u64, Envelope),
    /// An event, and what came with it.
    Notice(String, Box<RawValue>),
}

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The transport.
    #[error("the connection broke: {0}")]
    Transport(String),
    /// The server closed it.
    #[error("the server closed the connection")]
    Closed,
    /// The server beats no more.
    #[error("nothing comes from the server any more")]
    Silent,
    /// The server does not want this connection.
    #[error("the server does not want this connection: {0}")]
    Refused(String),
    /// What comes is not the protocol's.
    #[error("the other side does not speak this protocol")]
    Strange,
}

/// A packet of the server's.
#[derive(Debug)]
enum Packet {
    Open { silence: Duration },
    Ping,
    Connected,
    Refused(String),
    Disconnected,
    Heard(Heard),
    Other,
}

/// What the server opens with.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Opening {
    ping_interval: u64,
    ping_timeout: u64,
}

impl Packet {
    fn read(frame: &str) -> Option<Self> {
        let mut bytes = frame.chars();
        let kind = bytes.next()?;
        let rest = bytes.as_str();
        Some(match kind {
            '0' => {
                let opening: Opening = serde_json::from_str(rest).ok()?;
                let silence = Duration::from_millis(opening.ping_interval.saturating_add(opening.ping_timeout));
                Self::Open { silence: silence.min(SILENCE_MAX) }
            }
            '1' => Self::Disconnected,
            '2' => Self::Ping,
            '4' => {
                let mut bytes = rest.chars();
                let kind = bytes.next()?;
                let rest = bytes.as_str();
                match kind {
                    '0' => Self::Connected,
                    '1' => Self::Disconnected,
                    '2' => {
                        let json = rest.trim_start_matches(|c: char| c.is_ascii_digit());
                        let mut parts = serde_json::from_str::<Vec<Box<RawValue>>>(json).ok()?.into_iter();
                        let name = serde_json::from_str(parts.next()?.get()).ok()?;
                        Self::Heard(Heard::Notice(name, parts.next().unwrap_or_else(|| RawValue::NULL.to_owned())))
                    }
                    '3' => {
                        let at = rest.find('[')?;
                        let (number, json) = rest.split_at_checked(at)?;
                        let answer = serde_json::from_str::<Vec<Envelope>>(json).ok()?.into_iter().next()?;
                        Self::Heard(Heard::Answer(number.parse().ok()?, answer))
                    }
                    '4' => {
                        let why: Option<Value> = serde_json::from_str(rest).ok();
                        let why = why.as_ref().and_then(|it| it.get("message")).and_then(Value::as_str);
                        Self::Refused(why.unwrap_or("no reason").to_owned())
                    }
                    _ => return None,
                }
            }
            '3' | '6' => Self::Other,
            _ => return None,
        })
    }
}

/// A connection with a server.
pub struct Line {
    socket: WebSocketStream<Box<dyn Duplex>>,
    waiting: VecDeque<Message>,
    /// Something was handed to the socket that may not be on its way.
    unflushed: bool,
    silence: Duration,
    /// Over when nothing came for that long.
    patience: Pin<Box<Sleep>>,
    /// What ends with the connection.
    _held: Option<DropGuard>,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Line({} packets wait to be written)", self.waiting.len())
    }
}

impl Line {
    /// Speaks Socket.IO on a stream to the server that `authority` names.
    ///
    /// # Errors
    /// [`Broken`], when the other side does not.
    pub async fn open(
        stream: Box<dyn Duplex>,
        authority: &str,
        encrypted: bool,
        held: Option<DropGuard>,
    ) -> Result<Self, Broken> {
        let scheme = if encrypted { "wss" } else { "ws" };
        let url = format!("{scheme}://{authority}/socket.io/?EIO=4&transport=websocket");
        let limits = WebSocketConfig::default()
            .max_message_size(Some(RECEIVED_MAX))
            .max_frame_size(Some(RECEIVED_MAX))
            .read_buffer_size(16 * 1024);
        let opened = async {
            let (socket, _) = client_async_with_config(url, stream, Some(limits)).await.map_err(transport)?;
            let patience = Box::pin(tokio::time::sleep(PATIENCE));
            let mut line =
                Self { socket, waiting: VecDeque::new(), unflushed: false, silence: PATIENCE, patience, _held: held };
            match line.packet().await? {
                Packet::Open { silence } => line.silence = silence,
                _ => return Err(Broken::Strange),
            }
            line.waiting.push_back(Message::text("40"));
            loop {
                match line.packet().await? {
                    Packet::Connected => return Ok(line),
                    Packet::Refused(why) => return Err(Broken::Refused(why)),
                    Packet::Disconnected => return Err(Broken::Closed),
                    Packet::Ping | Packet::Other => {}
                    Packet::Open { .. } | Packet::Heard(_) => return Err(Broken::Strange),
                }
            }
        };
        tokio::time::timeout(PATIENCE, opened).await.map_err(|_| Broken::Silent)?
    }

    /// Says any frame, also one that is none.
    pub fn say(&mut self, frame: String) {
        self.waiting.push_back(Message::text(frame));
    }

    /// Asks for something as soon as the other side takes it: while [`Self::next`] is waited for. Whether it is short enough.
    pub fn ask(&mut self, number: u64, event: &str, args: Value) -> bool {
        let packet = format!("42{number}{}", Value::Array(vec![event.into(), args]));
        let fits = packet.len() <= PACKET_MAX;
        if fits {
            self.waiting.push_back(Message::text(packet));
        }
        fits
    }

    /// Writes what waits until something is heard. May be cancelled without losing anything.
    ///
    /// # Errors
    /// [`Broken`], when it is over.
    pub async fn next(&mut self) -> Result<Heard, Broken> {
        loop {
            match self.packet().await? {
                Packet::Heard(heard) => return Ok(heard),
                Packet::Disconnected => return Err(Broken::Closed),
                Packet::Ping | Packet::Other | Packet::Connected | Packet::Open { .. } => {}
                Packet::Refused(why) => return Err(Broken::Refused(why)),
            }
        }
    }

    async fn packet(&mut self) -> Result<Packet, Broken> {
        let packet = poll_fn(|cx| self.poll(cx)).await?;
        self.patience = Box::pin(tokio::time::sleep(self.silence));
        if matches!(packet, Packet::Ping) {
            self.waiting.push_back(Message::text("3"));
        }
        Ok(packet)
    }

    /// Writing and reading go on beside each other, and what is half done stays in the socket: so whoever waits may stop waiting.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Packet, Broken>> {
        if let Poll::Ready(Err(broken)) = self.poll_write(cx) {
            return Poll::Ready(Err(broken));
        }
        while let Poll::Ready(frame) = Pin::new(&mut self.socket).poll_next(cx) {
            match frame {
                None | Some(Ok(Message::Close(_))) => return Poll::Ready(Err(Broken::Closed)),
                Some(Err(error)) => return Poll::Ready(Err(transport(error))),
                Some(Ok(Message::Text(text))) => return Poll::Ready(Packet::read(&text).ok_or(Broken::Strange)),
                Some(Ok(Message::Binary(_))) => return Poll::Ready(Err(Broken::Strange)),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            }
        }
        self.patience.as_mut().poll(cx).map(|()| Err(Broken::Silent))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let mut socket = Pin::new(&mut self.socket);
        while !self.waiting.is_empty() {
            std::task::ready!(socket.as_mut().poll_ready(cx)).map_err(transport)?;
            if let Some(frame) = self.waiting.pop_front() {
                socket.as_mut().start_send(frame).map_err(transport)?;
                self.unflushed = true;
            }
        }
        if self.unflushed {
            std::task::ready!(socket.poll_flush(cx)).map_err(transport)?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "what errors are mapped by")]
fn transport(error: tokio_tungstenite::tungstenite::Error) -> Broken {
    Broken::Transport(error.to_string())
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt as _, StreamExt as _};
    use tokio_tungstenite::accept_async;

    use super::*;

    /// A server that opens, answers everything in the order it came after `requests` of it, and then does nothing any more.
    async fn server(stream: tokio::io::DuplexStream, requests: usize) {
        let mut socket = accept_async(stream).await.unwrap();
        let say = async |socket: &mut WebSocketStream<_>, text: &str| socket.send(Message::text(text)).await.unwrap();
        let hear = async |socket: &mut WebSocketStream<_>| {
            let heard: Message = socket.next().await.unwrap().unwrap();
            heard.into_text().unwrap().to_string()
        };
        say(&mut socket, r#"0{"sid":"a","upgrades":[],"pingInterval":1000,"pingTimeout":500}"#).await;
        assert_eq!(hear(&mut socket).await, "40");
        // Before the other side knows that it is connected.
        say(&mut socket, "2").await;
        say(&mut socket, r#"40{"sid":"b"}"#).await;
        assert_eq!(hear(&mut socket).await, "3");
        for number in 1..=requests {
            let heard = hear(&mut socket).await;
            assert!(heard.starts_with(&format!("42{number}[\"x\",{{")), "{heard}");
        }
        say(&mut socket, r#"42["a",1]"#).await;
        say(&mut socket, &format!(r#"43{requests}[{{"success":true,"result":7}}]"#)).await;
        std::future::pending().await
    }

    #[tokio::test(start_paused = true)]
    async fn everything_that_is_asked_is_written_and_a_heart_that_stops_is_noticed() {
        // So little room that nothing is written at once.
        let (here, there) = tokio::io::duplex(64);
        tokio::spawn(server(there, 50));
        let mut line = Line::open(Box::new(here), "localhost", false, None).await.unwrap();
        for number in 1..=50 {
            assert!(line.ask(number, "x", serde_json::json!({ "text": "y".repeat(10_000) })));
            // Whoever waits may stop waiting, at any moment.
            tokio::select! {
                biased;
                _never = line.next() => panic!("nothing is answered before everything is asked"),
                () = tokio::task::yield_now() => {}
            }
        }
        assert!(!line.ask(51, "x", "y".repeat(PACKET_MAX).into()));
        assert!(matches!(line.next().await, Ok(Heard::Notice(name, said)) if name == "a" && said.get() == "1"));
        assert!(matches!(line.next().await, Ok(Heard::Answer(50, answer)) if answer.success));
        let clock = crate::time::Clock::system();
        let begun = clock.now().monotonic;
        assert!(matches!(line.next().await, Err(Broken::Silent)));
        assert_eq!(clock.now().monotonic - begun, Duration::from_millis(1_500));
    }

    #[tokio::test]
    async fn an_answer_may_be_longer_than_a_request() {
        let (here, there) = tokio::io::duplex(1024 * 1024);
        let server = async {
            let mut socket = accept_async(there).await.unwrap();
            socket.send(Message::text(r#"0{"pingInterval":25000,"pingTimeout":20000}"#)).await.unwrap();
            assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("40"));
            socket.send(Message::text("40{}")).await.unwrap();
            let page = vec!["0".repeat(131_072); 100];
            let answer = serde_json::json!([{ "success": true, "result": page }]);
            socket.send(Message::text(format!("431{answer}"))).await.unwrap();
        };
        let client = async {
            let mut line = Line::open(Box::new(here), "localhost", false, None).await.unwrap();
            line.next()
                .await
                .map(|heard| matches!(heard, Heard::Answer(1, answer) if answer.result.get().len() > 13_000_000))
        };
        let ((), heard) = tokio::join!(server, client);
        assert!(matches!(heard, Ok(true)), "{heard:?}");
    }

    #[test]
    fn what_a_server_says_is_understood() {
        let read = |frame: &str| Packet::read(frame);
        let opening = r#"0{"sid":"a","upgrades":[],"pingInterval":25000,"pingTimeout":20000}"#;
        assert!(matches!(read(opening), Some(Packet::Open { silence }) if silence == Duration::from_secs(45)));
        let never = r#"0{"pingInterval":18446744073709551615,"pingTimeout":20000}"#;
        assert!(matches!(read(never), Some(Packet::Open { silence }) if silence == SILENCE_MAX));
        assert!(matches!(read("2"), Some(Packet::Ping)));
        assert!(matches!(read(r#"40{"sid":"b"}"#), Some(Packet::Connected)));
        assert!(matches!(read("41"), Some(Packet::Disconnected)));
        assert!(matches!(read(r#"44{"message":"no"}"#), Some(Packet::Refused(why)) if why == "no"));
        let notice = |frame| match read(frame) {
            Some(Packet::Heard(Heard::Notice(name, said))) => Some((name, said.get().to_owned())),
            _ => None,
        };
        assert_eq!(notice(r#"42["a",{"b":[1]},2]"#), Some(("a".into(), r#"{"b":[1]}"#.into())));
        assert_eq!(notice(r#"427["message_delete_notification",9]"#).unwrap().1, "9");
        assert_eq!(notice(r#"42["a"]"#).unwrap().1, "null");
        match read(r#"4312[{"success":false,"result":"no","code":"bad_request"}]"#) {
            Some(Packet::Heard(Heard::Answer(12, answer))) => {
                assert_eq!((answer.success, answer.code.as_deref()), (false, Some("bad_request")));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_no_packet_is_refused() {
        let deep = format!("42[\"a\",{}{}]", "[".repeat(10_000), "]".repeat(10_000));
        for frame in
            ["", "x", "4", "4x", "42", "42[]", "42[1]", "42{}", "43[true]", "431", "431[]", "0", "0{}", "432[{}]"]
        {
            assert!(Packet::read(frame).is_none(), "{frame:?}");
        }
        // What nobody looks into may be as deep as it likes, or not.
        drop(Packet::read(&deep));
    }
}
