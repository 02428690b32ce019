//! The pipe to the chat server over real sockets. Names carry the clauses of the D2M specification.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use heliostat::upstream::{Event, Framing, Target, TcpDial, Upstream, UpstreamEnd, UpstreamLimits};
use heliostat::wire::d2m::{self, ToDevice};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Longer than anything here takes; only a failure waits for it.
const SOON: Duration = Duration::from_secs(20);

/// A pipe and the chat server at its other end.
struct World {
    upstream: Upstream,
    chat_server: TcpStream,
    tracker: TaskTracker,
    cut: CancellationToken,
}

fn open(address: String, framing: Framing, tracker: &TaskTracker, cut: &CancellationToken) -> Upstream {
    let target = Target { addresses: vec![address], framing };
    Upstream::open(target, UpstreamLimits::default(), Arc::new(TcpDial), tracker, cut)
}

async fn world(framing: Framing) -> World {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (tracker, cut) = (TaskTracker::new(), CancellationToken::new());
    tracker.close();
    let upstream = open(listener.local_addr().unwrap().to_string(), framing, &tracker, &cut);
    let (chat_server, _) = soon(listener.accept()).await.unwrap();
    chat_server.set_nodelay(true).unwrap();
    World { upstream, chat_server, tracker, cut }
}

async fn soon<F: Future>(future: F) -> F::Output {
    timeout(SOON, future).await.expect("within a few seconds")
}

/// What is in a proxy payload.
fn unit(payload: &Bytes) -> Bytes {
    match ToDevice::decode(payload) {
        Ok(ToDevice::Proxy(unit)) => unit,
        other => unreachable!("{other:?}"),
    }
}

/// Everything until the end.
async fn all(upstream: &mut Upstream) -> (Vec<Bytes>, UpstreamEnd) {
    let mut units = Vec::new();
    loop {
        match soon(upstream.from.recv()).await.expect("an end comes before nothing") {
            Event::Payloads(payloads) => units.extend(payloads.iter().map(unit)),
            Event::Ended(end) => {
                assert_eq!(soon(upstream.from.recv()).await, None, "the end is the last event");
                return (units, end);
            }
        }
    }
}

/// A server-hello, a login-ack and three frames, the last of them empty.
fn conversation() -> (Vec<u8>, Vec<Vec<u8>>) {
    let units = vec![vec![1; 80], vec![2; 32], vec![3, 0, 7, 8, 9], [vec![0, 1], vec![4; 256]].concat(), vec![0, 0]];
    (units.concat(), units)
}

#[tokio::test]
async fn d2m_12_19_one_segment_becomes_one_payload_per_unit() {
    let mut w = world(Framing::Csp).await;
    let (stream, units) = conversation();
    w.chat_server.write_all(&stream).await.unwrap();
    drop(w.chat_server);
    assert_eq!(all(&mut w.upstream).await, (units.into_iter().map(Bytes::from).collect(), UpstreamEnd::Closed));
}

#[tokio::test]
async fn d2m_12_19_byte_by_byte_makes_no_difference() {
    let mut w = world(Framing::Csp).await;
    let (stream, units) = conversation();
    let mut chat_server = w.chat_server;
    let sending = async move {
        for byte in stream {
            chat_server.write_all(&[byte]).await.unwrap();
        }
    };
    let ((), got) = tokio::join!(sending, all(&mut w.upstream));
    assert_eq!(got, (units.into_iter().map(Bytes::from).collect(), UpstreamEnd::Closed));
}

#[tokio::test]
async fn d2m_9_3_an_incomplete_tail_is_discarded() {
    let mut w = world(Framing::Csp).await;
    let (mut stream, units) = conversation();
    stream.extend_from_slice(&[20, 0, 1, 2, 3]);
    w.chat_server.write_all(&stream).await.unwrap();
    drop(w.chat_server);
    let (got, end) = all(&mut w.upstream).await;
    assert_eq!((got.len(), end), (units.len(), UpstreamEnd::Closed));
}

#[tokio::test]
async fn d2m_9_3_the_last_frame_comes_before_the_end_also_to_a_device_that_is_still_writing() {
    let mut w = world(Framing::Csp).await;
    let (stream, units) = conversation();
    w.chat_server.write_all(&stream).await.unwrap();
    // Closing with unread bytes resets the connection, so the device's later writes fail.
    w.upstream.to.send(vec![Bytes::from_static(b"never read")]).await.unwrap();
    // Not `readable`, which may say so too early.
    assert_eq!(soon(w.chat_server.peek(&mut [0])).await.unwrap(), 1);
    drop(w.chat_server);
    while w.upstream.to.send(vec![Bytes::from_static(&[0; 1_024])]).await.is_ok() {}
    let (got, end) = all(&mut w.upstream).await;
    assert_eq!(got.len(), units.len());
    assert!(matches!(end, UpstreamEnd::Failed(_)), "{end:?}");
}

#[tokio::test]
async fn d2m_9_3_refused_is_unreachable() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut upstream = open(free.to_string(), Framing::Csp, &TaskTracker::new(), &CancellationToken::new());
    let refused = UpstreamEnd::Unreachable(io::ErrorKind::ConnectionRefused);
    assert_eq!(all(&mut upstream).await, (vec![], refused));
}

#[tokio::test]
async fn d2m_9_3_the_next_address_is_tried() {
    let refusing = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = vec![refusing.to_string(), listener.local_addr().unwrap().to_string()];
    let target = Target { addresses, framing: Framing::Raw };
    let (tracker, cut) = (TaskTracker::new(), CancellationToken::new());
    let mut upstream = Upstream::open(target, UpstreamLimits::default(), Arc::new(TcpDial), &tracker, &cut);
    let (mut chat_server, _) = soon(listener.accept()).await.unwrap();
    chat_server.write_all(b"welcome").await.unwrap();
    assert_eq!(soon(upstream.from.recv()).await, Some(Event::Payloads(vec![d2m::proxied(b"welcome")])));
}

#[tokio::test]
async fn d2m_9_2_a_frame_that_fits_no_payload_ends_the_connection_behind_the_good_ones() {
    let mut w = world(Framing::Csp).await;
    let (mut stream, units) = conversation();
    stream.extend_from_slice(&65_531_u16.to_le_bytes());
    w.chat_server.write_all(&stream).await.unwrap();
    let (got, end) = all(&mut w.upstream).await;
    assert_eq!((got.len(), end), (units.len(), UpstreamEnd::UnitTooBig { len: 65_531 }));
    assert_closed(&mut w.chat_server).await;
}

#[tokio::test]
async fn d2m_9_1_what_the_device_says_arrives_as_one_stream() {
    let mut w = world(Framing::Csp).await;
    for part in [&b"iOS sends its login "[..], b"", b"in two payloads"] {
        w.upstream.to.send(vec![Bytes::copy_from_slice(part)]).await.unwrap();
    }
    let mut got = [0; 35];
    soon(w.chat_server.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got[..], b"iOS sends its login in two payloads");
}

/// Sends until there has been no progress for a while: everything between the two ends is full. Returns what was sent.
async fn fill(mut send: impl AsyncFnMut() -> usize) -> usize {
    let mut sent = 0;
    while let Ok(n) = timeout(Duration::from_millis(300), send()).await {
        sent += n;
        assert!(sent < 64 << 20, "64 MiB are waiting somewhere");
    }
    sent
}

#[tokio::test]
async fn d2m_9_1_a_chat_server_that_does_not_read_stops_the_device_but_not_what_it_says() {
    let mut w = world(Framing::Raw).await;
    let chunk = Bytes::from_static(&[7; 32 * 1_024]);
    let to = &w.upstream.to;
    fill(async || {
        to.send(vec![chunk.clone()]).await.unwrap();
        chunk.len()
    })
    .await;
    w.chat_server.write_all(b"still here").await.unwrap();
    assert_eq!(soon(w.upstream.from.recv()).await, Some(Event::Payloads(vec![d2m::proxied(b"still here")])));
}

#[tokio::test]
async fn a_chat_server_that_floods_is_braked_by_a_device_that_does_not_read_but_hears_it() {
    let mut w = world(Framing::Raw).await;
    let chunk = vec![7; 32 * 1_024];
    let (mut reading, mut writing) = w.chat_server.into_split();
    let flooded = fill(async || writing.write(&chunk).await.unwrap()).await;
    w.upstream.to.send(vec![Bytes::from_static(b"ouch")]).await.unwrap();
    let mut got = [0; 4];
    soon(reading.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"ouch");
    // Nothing of the flood is lost when the device reads on.
    drop((reading, writing));
    let (units, end) = all(&mut w.upstream).await;
    assert_eq!((units.iter().map(Bytes::len).sum::<usize>(), end), (flooded, UpstreamEnd::Closed));
}

#[tokio::test]
async fn cutting_drops_the_connection_at_once_also_when_both_directions_are_full() {
    let mut w = world(Framing::Raw).await;
    let chunk = Bytes::from_static(&[7; 32 * 1_024]);
    let to = &w.upstream.to;
    fill(async || {
        to.send(vec![chunk.clone()]).await.unwrap();
        chunk.len()
    })
    .await;
    fill(async || w.chat_server.write(&chunk).await.unwrap()).await;
    w.cut.cancel();
    soon(w.tracker.wait()).await;
    assert_closed(&mut w.chat_server).await;
    assert_eq!(w.upstream.to.send(vec![Bytes::new()]).await, Err(heliostat::upstream::Gone));
    while let Some(event) = soon(w.upstream.from.recv()).await {
        assert!(matches!(event, Event::Payloads(_)), "who cuts is not told of the end: {event:?}");
    }
}

#[tokio::test]
async fn d2m_9_3_the_device_going_away_closes_the_connection_at_once() {
    let mut w = world(Framing::Csp).await;
    let Upstream { to, from } = w.upstream;
    drop(to);
    soon(w.tracker.wait()).await;
    assert_closed(&mut w.chat_server).await;
    assert!(!w.cut.is_cancelled(), "one connection's end is not everybody's");
    drop(from);
}

/// Reads to the end; a reset is an end, too.
async fn assert_closed(chat_server: &mut TcpStream) {
    let mut rest = Vec::new();
    match soon(chat_server.read_to_end(&mut rest)).await {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
}
