//! The device side against a mediator that follows a script: real handshake, real WebSocket, no state.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test's way to fail")]

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use heliostat::chat::csp::wire::handshake::{AwaitLogin, CLIENT_HELLO, LOGIN_BOX};
use heliostat::chat::csp::wire::{Frames, FromClient, Identity, LoginAck, Opener};
use heliostat::client::csp::{CspClient, CspError, Login};
use heliostat::client::{Begun, ConnectError, Device, DeviceConfig, Ended, GroupKey, Mediator, RawConnection, Trust};
use heliostat::crypto::{Secret, boxes, kdf, random};
use heliostat::wire::d2m::{
    ClientHello, ClientUrlInfo, CloseCode, DeviceId, DevicesInfo, Envelope, FromDevice, Reconnect, ReflectAck,
    ReflectFlags, ReflectId, Reflected, ReflectedId, ServerGroup, ServerHello, ServerInfo, SlotState, ToDevice,
    TransactionHolder,
};
use heliostat::wire::delimit::Cutter;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async};

/// A mediator that says and expects what the test tells it to.
struct Scripted<S> {
    socket: WebSocketStream<S>,
    group: ClientUrlInfo,
    esk: Secret<32>,
    challenge: [u8; 32],
}

impl<S: AsyncRead + AsyncWrite + Unpin> Scripted<S> {
    /// Accepts the upgrade and says hello.
    async fn greet(stream: S) -> Self {
        let mut path = String::new();
        #[expect(clippy::result_large_err, reason = "the library's callback")]
        let note = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
            path = request.uri().path().to_owned();
            Ok(response)
        };
        let socket = accept_hdr_async(stream, note).await.unwrap();
        let group = ClientUrlInfo::from_path(&path).unwrap();
        let mut mediator = Self { socket, group, esk: Secret::random(), challenge: random::bytes() };
        let esk = boxes::public(&mediator.esk);
        mediator
            .say(ToDevice::ServerHello(ServerHello { version: 0, esk, challenge: mediator.challenge }.into()))
            .await;
        mediator
    }

    /// Hears the ClientHello, judges its response and admits the device.
    async fn admit(&mut self) -> ClientHello {
        let FromDevice::ClientHello(hello) = self.hear().await else { panic!("no ClientHello") };
        let group = self.group.device_group_id.as_bytes();
        assert!(kdf::challenge_answered(&self.esk, group, &self.challenge, &hello.response).unwrap());
        self.say(ToDevice::ServerInfo(ServerInfo {
            max_device_slots: 7,
            slot_state: hello.expected_slot_state,
            encrypted_shared_device_data: b"shared".to_vec(),
            current_time_ms: 1,
            reflection_queue_length: 0,
        }))
        .await;
        *hello
    }

    async fn say(&mut self, payload: ToDevice) {
        self.socket.send(Message::Binary(payload.encode())).await.unwrap();
    }

    async fn message(&mut self) -> Option<Message> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(message)) => return Some(message),
                Some(Err(_)) | None => return None,
            }
        }
    }

    async fn hear(&mut self) -> FromDevice {
        match self.message().await {
            Some(Message::Binary(bytes)) => FromDevice::decode(&bytes).unwrap(),
            other => panic!("expected a payload, got {other:?}"),
        }
    }

    async fn close(&mut self, code: CloseCode) {
        let frame = CloseFrame { code: code.code().into(), reason: "because".into() };
        self.socket.close(Some(frame)).await.unwrap();
    }
}

fn config() -> DeviceConfig {
    let mut config =
        DeviceConfig::new(GroupKey::generate(), ServerGroup::new("a0").unwrap(), DeviceId(0x0123_4567_89ab_cdef));
    config.device_info = b"a test".to_vec();
    config
}

/// A device and the mediator that admitted it, over a pipe of 64 KiB.
async fn pair() -> (Device, Scripted<DuplexStream>) {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let mediator = async {
        let mut mediator = Scripted::greet(theirs).await;
        mediator.admit().await;
        mediator
    };
    let config = config();
    let (device, mediator) = tokio::join!(Device::connect_over(ours, &config), mediator);
    (device.unwrap(), mediator)
}

fn reflected(id: u32, envelope: &[u8]) -> ToDevice {
    let flags = ReflectFlags::default();
    ToDevice::Reflected(Reflected::new(Envelope::copy_from(envelope), flags, ReflectedId(id), 5))
}

fn ack(reflect_id: ReflectId) -> ToDevice {
    ToDevice::ReflectAck(ReflectAck { reflect_id, timestamp_ms: 5 })
}

#[tokio::test]
async fn a_device_proves_its_group_and_shows_its_wishes() {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let config = config().existing();
    let mediator = async {
        let mut mediator = Scripted::greet(theirs).await;
        assert_eq!(mediator.group, config.url_info());
        mediator.admit().await
    };
    let (device, hello) = tokio::join!(Device::connect_over(ours, &config), mediator);
    assert_eq!(hello.device_id, config.device_id);
    assert_eq!(hello.expected_slot_state, SlotState::Existing);
    assert_eq!(config.key.open_device_info(&hello.encrypted_device_info).unwrap(), b"a test");
    let device = device.unwrap();
    assert_eq!(device.server_info().max_device_slots, 7);
    assert_eq!(device.server_info().encrypted_shared_device_data, b"shared");
}

#[tokio::test]
async fn a_close_code_in_the_handshake_is_why_there_is_no_device() {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let mediator = async {
        let mut mediator = Scripted::greet(theirs).await;
        mediator.hear().await;
        mediator.close(CloseCode::DeviceSlotStateMismatch).await;
        assert!(matches!(mediator.message().await, Some(Message::Close(_))), "the close is answered");
    };
    let config = config();
    let (device, ()) = tokio::join!(Device::connect_over(ours, &config), mediator);
    let error = device.unwrap_err();
    assert_eq!(error.reconnect(), Reconnect::UserInteraction);
    let ConnectError::NotAdmitted(ended) = error else { panic!("{error}") };
    assert_eq!(ended, Ended::Closed { code: 4115, reason: "because".to_owned() });
    assert_eq!(ended.close_code(), Some(CloseCode::DeviceSlotStateMismatch));
}

#[tokio::test]
async fn a_version_we_do_not_speak_is_not_answered() {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let mediator = async {
        let mut socket = tokio_tungstenite::accept_async(theirs).await.unwrap();
        let hello = ToDevice::ServerHello(ServerHello { version: 1, esk: [9; 32], challenge: [0; 32] }.into());
        socket.send(Message::Binary(hello.encode())).await.unwrap();
        assert!(!matches!(socket.next().await, Some(Ok(Message::Binary(_)))));
    };
    let config = config();
    let connect = async { Device::connect_over(ours, &config).await.unwrap_err() };
    let (error, ()) = tokio::join!(connect, mediator);
    assert!(matches!(error, ConnectError::Version(1)), "{error}");
}

#[tokio::test]
async fn an_http_status_is_reported() {
    let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
    let mediator = async {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(theirs.read_u8().await.unwrap());
        }
        theirs.write_all(b"HTTP/1.1 414 URI Too Long\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    };
    let (raw, ()) = tokio::join!(RawConnection::over(ours, "ws://mediator.invalid/00"), mediator);
    assert!(matches!(raw.unwrap_err(), ConnectError::Status(414)));
}

#[tokio::test]
async fn waiting_for_an_answer_keeps_the_events_before_it_in_their_order() {
    let (mut device, mut mediator) = pair().await;
    let script = async {
        let FromDevice::Reflect(reflect) = mediator.hear().await else { panic!() };
        assert_eq!(reflect.envelope.as_bytes(), b"mine");
        for payload in [reflected(1, b"one"), ToDevice::ReflectionQueueDry, reflected(2, b"two")] {
            mediator.say(payload).await;
        }
        mediator.say(ack(reflect.reflect_id)).await;
        mediator.say(ToDevice::RolePromotedToLeader).await;
    };
    let (acked, ()) = tokio::join!(device.reflect_and_wait(b"mine", ReflectFlags::default()), script);
    assert_eq!(acked.unwrap().timestamp_ms, 5);
    assert!(device.is_dry() && !device.is_leader());
    device.wait_leader().await.unwrap();
    device.wait_dry().await.unwrap();
    assert_eq!(device.next_event().await, Ok(reflected(1, b"one")));
    assert_eq!(device.next_event().await, Ok(reflected(2, b"two")), "dry was waited for, so it is no event any more");
}

#[tokio::test]
async fn requests_and_their_answers() {
    let (mut device, mut mediator) = pair().await;
    let holder = TransactionHolder { device_id: DeviceId(2), encrypted_scope: b"scope".to_vec() };
    let script = async {
        assert!(matches!(mediator.hear().await, FromDevice::BeginTransaction(b) if b.ttl_s == 9));
        mediator.say(ToDevice::TransactionRejected(holder.clone())).await;
        assert!(matches!(mediator.hear().await, FromDevice::BeginTransaction(_)));
        mediator.say(ToDevice::BeginTransactionAck).await;
        assert_eq!(mediator.hear().await, FromDevice::CommitTransaction);
        mediator.say(ToDevice::CommitTransactionAck).await;
        assert_eq!(mediator.hear().await, FromDevice::GetDevicesInfo);
        mediator.say(ToDevice::DevicesInfo(DevicesInfo(std::collections::BTreeMap::new()))).await;
        assert_eq!(mediator.hear().await, FromDevice::SetSharedDeviceData(b"new".to_vec()));
        assert_eq!(mediator.hear().await, FromDevice::ReflectedAck(ReflectedId(3)));
        assert_eq!(mediator.hear().await, FromDevice::DropDevice(DeviceId(4)));
        // Somebody else's acknowledgement does not count.
        mediator.say(ToDevice::DropDeviceAck(DeviceId(5))).await;
        mediator.say(ToDevice::DropDeviceAck(DeviceId(4))).await;
    };
    let requests = async {
        assert_eq!(device.begin(b"scope", 9).await, Ok(Begun::Rejected(holder.clone())));
        assert_eq!(device.begin(b"scope", 0).await, Ok(Begun::Granted));
        device.commit().await.unwrap();
        assert!(device.devices_info().await.unwrap().0.is_empty());
        device.set_shared_device_data(b"new").await.unwrap();
        device.ack(ReflectedId(3)).await.unwrap();
        device.drop_device(DeviceId(4)).await.unwrap();
        assert_eq!(device.next_event().await, Ok(ToDevice::DropDeviceAck(DeviceId(5))));
    };
    tokio::join!(requests, script);
}

#[tokio::test]
async fn proxied_bytes_and_events_do_not_mix() {
    let (mut device, mut mediator) = pair().await;
    let mut proxy = device.proxy_stream().unwrap();
    assert!(device.proxy_stream().is_none(), "one chat server per connection");
    let script = async {
        assert_eq!(mediator.hear().await, FromDevice::Proxy(Bytes::from_static(b"client-hello")));
        mediator.say(ToDevice::Proxy(Bytes::from_static(b"server"))).await;
        mediator.say(reflected(1, b"one")).await;
        mediator.say(ToDevice::Proxy(Bytes::new())).await;
        mediator.say(ToDevice::Proxy(Bytes::from_static(b"-hello"))).await;
        // One write, one payload: 144 bytes and the rest, as some clients send their login.
        assert_eq!(mediator.hear().await, FromDevice::Proxy(Bytes::from_static(&[1; 144])));
        assert_eq!(mediator.hear().await, FromDevice::Proxy(Bytes::from_static(&[2; 87])));
        mediator.close(CloseCode::ChatServerClosed).await;
    };
    let chat = async {
        proxy.write_all(b"client-hello").await.unwrap();
        let mut hello = [0; 12];
        proxy.read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello, b"server-hello", "an empty payload is not the end");
        proxy.write_all(&[1; 144]).await.unwrap();
        proxy.write_all(&[2; 87]).await.unwrap();
        assert_eq!(proxy.read(&mut hello).await.unwrap(), 0, "the connection's end is the stream's end");
    };
    tokio::join!(script, chat);
    assert_eq!(device.next_event().await, Ok(reflected(1, b"one")));
    assert_eq!(device.next_event().await.unwrap_err().close_code(), Some(CloseCode::ChatServerClosed));
}

#[tokio::test]
async fn a_long_write_is_cut_to_what_a_container_holds() {
    let (mut device, mut mediator) = pair().await;
    let mut proxy = device.proxy_stream().unwrap();
    let script = async {
        let mut lengths = Vec::new();
        while lengths.iter().sum::<usize>() < 100_000 {
            let FromDevice::Proxy(bytes) = mediator.hear().await else { panic!() };
            lengths.push(bytes.len());
        }
        assert_eq!(lengths, [65_532, 34_468]);
    };
    let (written, ()) = tokio::join!(async { proxy.write_all(&[7; 100_000]).await }, script);
    written.unwrap();
}

#[tokio::test]
async fn a_blocked_writer_does_not_stop_the_reading() {
    let (mut device, mut mediator) = pair().await;
    // More than the pipe, the WebSocket's buffer and the queue of messages hold together: this cannot finish unread.
    let sender = device.sender().clone();
    let flood = tokio::spawn(async move {
        for _ in 0..200 {
            sender.reflect(&[0; 60_000], ReflectFlags::default()).await.unwrap();
        }
    });
    for id in 0..500 {
        mediator.say(reflected(id, &[1; 1_000])).await;
        assert_eq!(device.next_event().await, Ok(reflected(id, &[1; 1_000])));
    }
    assert!(!flood.is_finished(), "the mediator has read nothing yet");
    for _ in 0..200 {
        assert!(matches!(mediator.hear().await, FromDevice::Reflect(_)));
    }
    flood.await.unwrap();
}

#[tokio::test]
async fn closing_is_a_handshake_from_either_side() {
    let (device, mut mediator) = pair().await;
    let script = async {
        let Some(Message::Close(Some(frame))) = mediator.message().await else { panic!() };
        assert_eq!(u16::from(frame.code), 1000);
        assert!(mediator.message().await.is_none());
    };
    let (ended, ()) = tokio::join!(device.close(CloseCode::Normal), script);
    assert_eq!(ended.code(), Some(1000));

    let (mut device, mut mediator) = pair().await;
    let script = async {
        mediator.say(reflected(1, b"last words")).await;
        mediator.close(CloseCode::DuplicateConnection).await;
        assert!(matches!(mediator.message().await, Some(Message::Close(_))), "the close is answered");
    };
    let ((), event) = tokio::join!(script, device.next_event());
    assert_eq!(event, Ok(reflected(1, b"last words")));
    let ended = device.next_event().await.unwrap_err();
    assert_eq!((ended.code(), ended.reconnect()), (Some(4112), Reconnect::UserInteraction));
    assert_eq!(device.next_event().await, Err(ended.clone()), "asking again gives the same");
    assert_eq!(device.reflect_and_wait(b"late", ReflectFlags::default()).await, Err(ended));
}

#[tokio::test]
async fn dropping_every_sender_closes_and_aborting_does_not() {
    let (device, mut mediator) = pair().await;
    let second = device.sender().clone();
    drop(device);
    second.reflect(b"still here", ReflectFlags::default()).await.unwrap();
    assert!(matches!(mediator.hear().await, FromDevice::Reflect(_)));
    drop(second);
    assert!(matches!(mediator.message().await, Some(Message::Close(Some(_)))));

    let (device, mut mediator) = pair().await;
    device.abort();
    assert!(mediator.message().await.is_none(), "no close frame");
}

#[tokio::test]
async fn a_proxy_stream_keeps_the_connection_like_a_socket_of_its_own() {
    let (mut device, mut mediator) = pair().await;
    let mut proxy = device.proxy_stream().unwrap();
    drop(device);
    proxy.write_all(b"still here").await.unwrap();
    assert_eq!(mediator.hear().await, FromDevice::Proxy(Bytes::from_static(b"still here")));
    mediator.say(ToDevice::Proxy(Bytes::from_static(b"me too"))).await;
    let mut heard = [0; 6];
    proxy.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"me too");
    drop(proxy);
    assert!(matches!(mediator.message().await, Some(Message::Close(Some(_)))));
}

#[tokio::test]
async fn nothing_private_is_printed_for_debugging() {
    let mut config = config();
    config.device_info = b"private".to_vec();
    let holder = TransactionHolder { device_id: DeviceId(2), encrypted_scope: b"private".to_vec() };
    let (mut device, mut mediator) = pair().await;
    mediator.say(reflected(1, b"private")).await;
    mediator.say(ToDevice::TransactionEnded(holder.clone())).await;
    mediator.say(ToDevice::ReflectionQueueDry).await;
    device.wait_dry().await.unwrap();
    let mut proxy = device.proxy_stream().unwrap();
    mediator.say(ToDevice::Proxy(Bytes::from_static(b"private"))).await;
    proxy.read_u8().await.unwrap();
    let (ca, begun) = (Trust::CaPem(b"private".to_vec()), Begun::Rejected(holder));
    for shown in [format!("{config:?}"), format!("{device:?}"), format!("{proxy:?}"), format!("{ca:?} {begun:?}")] {
        // As text, and as a list of numbers: "rivat" is what is left to be read of the proxied bytes, too.
        assert!(!shown.contains("rivat") && !shown.contains("114, 105, 118, 97"), "{shown}");
    }
    assert!(format!("{config:?} {device:?} {proxy:?} {ca:?}").contains("bytes: 6"), "lengths are printed");
}

#[tokio::test]
async fn a_raw_connection_can_misbehave() {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let config = config();
    let script = async {
        let mut mediator = Scripted::greet(theirs).await;
        // Proxy bytes before the ClientHello, then three payloads at once.
        assert_eq!(mediator.hear().await, FromDevice::Proxy(Bytes::from_static(b"early")));
        assert!(matches!(mediator.hear().await, FromDevice::ClientHello(_)));
        assert_eq!(mediator.hear().await, FromDevice::DropDevice(DeviceId(1)));
        assert_eq!(mediator.message().await, Some(Message::Binary(Bytes::from_static(&[0x80, 0, 0]))));
        assert_eq!(mediator.message().await, Some(Message::text("hello")));
        assert_eq!(mediator.message().await, Some(Message::Binary(Bytes::from_static(b"\x00\0\0\0abc"))));
        mediator.socket.send(Message::Binary(Bytes::from_static(&[0x82, 0]))).await.unwrap();
        mediator.close(CloseCode::ProtocolError).await;
        mediator.message().await;
    };
    let naughty = async {
        let mut raw =
            RawConnection::over(ours, &format!("ws://m.invalid/x//{}", config.url_info().to_segment())).await.unwrap();
        raw.send(&FromDevice::Proxy(Bytes::from_static(b"early"))).await.unwrap();
        let hello = raw.server_hello().await.unwrap();
        let mut hello = config.client_hello(&hello).unwrap();
        hello.response[71] ^= 1;
        raw.send_all(&[FromDevice::ClientHello(Box::new(hello)), FromDevice::DropDevice(DeviceId(1))]).await.unwrap();
        raw.send_binary(vec![0x80, 0, 0]).await.unwrap();
        raw.send_text("hello").await.unwrap();
        raw.send_fragments(&[b"\x00\0", b"\0\0ab", b"c"]).await.unwrap();
        assert!(matches!(raw.recv().await, Err(Ended::Garbled(_))));
        let ended = raw.recv().await.unwrap_err();
        assert_eq!(ended.close_code(), Some(CloseCode::ProtocolError));
        assert_eq!(raw.recv().await, Err(ended));
    };
    tokio::join!(script, naughty);
}

/// A chat server that lets one client in and reads what it says.
struct CspServer {
    io: DuplexStream,
    opener: Opener,
    cutter: Cutter<Frames>,
}

impl CspServer {
    /// A client and its server over a pipe of `len` bytes.
    async fn pair(len: usize) -> (CspClient<DuplexStream>, Self) {
        let (ours, mut theirs) = tokio::io::duplex(len);
        let (server_key, client_key) = (Secret::random(), Secret::random());
        let client = boxes::public(&client_key);
        let login = Login::new(Identity::random(), client_key, boxes::public(&server_key));
        let serve = async {
            let mut hello = [0; CLIENT_HELLO];
            theirs.read_exact(&mut hello).await.unwrap();
            let (wait, answer) = AwaitLogin::answer(&server_key, &hello, Secret::random(), random::bytes()).unwrap();
            theirs.write_all(&answer).await.unwrap();
            let mut login = [0; LOGIN_BOX];
            theirs.read_exact(&mut login).await.unwrap();
            let data = wait.open(&login).unwrap();
            let mut extensions = vec![0; data.extensions_len()];
            theirs.read_exact(&mut extensions).await.unwrap();
            let verified = data.claim(&extensions).unwrap().verify(&server_key, &client).unwrap();
            let (session, ack) = verified.accept(LoginAck { time_ms: 1, queued: 0 });
            theirs.write_all(&ack).await.unwrap();
            session.opener
        };
        let (client, opener) = tokio::join!(CspClient::login(ours, login), serve);
        (client.unwrap(), Self { io: theirs, opener, cutter: Cutter::new(Frames) })
    }

    /// The next echo-request's bytes. Fails when a frame does not open, as any does behind one that was cut short.
    async fn hears(&mut self) -> Bytes {
        loop {
            if let Some(frame) = self.cutter.next_unit().unwrap() {
                let container = self.opener.open_frame(&frame).unwrap();
                let FromClient::EchoRequest(bytes) = FromClient::decode(&container).unwrap() else { panic!() };
                return bytes;
            }
            assert_ne!(self.io.read_buf(self.cutter.buffer()).await.unwrap(), 0);
        }
    }
}

#[tokio::test]
async fn a_csp_send_that_is_cancelled_half_way_corrupts_nothing() {
    let (mut client, mut server) = CspServer::pair(64).await;
    assert!(client.echo(vec![1; 1_000]).now_or_never().is_none(), "the pipe holds 64 bytes");
    assert!(client.echo("never begun").now_or_never().is_none(), "the first one is still in the way");
    let (sent, (first, second)) =
        tokio::join!(client.echo("next"), async { (server.hears().await, server.hears().await) });
    sent.unwrap();
    assert_eq!((&first[..], &second[..]), (&[1; 1_000][..], &b"next"[..]));

    assert!(client.echo(vec![2; 1_000]).now_or_never().is_none());
    let (sent, last) = tokio::join!(client.flush(), server.hears());
    sent.unwrap();
    assert_eq!(last, vec![2; 1_000], "nothing has to be said after it");

    assert!(client.echo(vec![3; 1_000]).now_or_never().is_none());
    let shown = format!("{client:?}");
    assert!(!shown.contains("\\x") && shown.contains("unsent_bytes"), "{shown}");
    drop(server);
    assert!(matches!(client.flush().await, Err(CspError::Closed(_))));
}

#[tokio::test]
async fn a_script_fails_when_the_mediator_closes_in_order_and_owes_an_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_heliostat"));
    command.args(["device", &format!("ws://{}", listener.local_addr().unwrap())]);
    command.current_dir(dir.path()).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let script = async {
        let mut mediator = Scripted::greet(listener.accept().await.unwrap().0).await;
        mediator.admit().await;
        assert!(matches!(mediator.hear().await, FromDevice::Reflect(_)));
        assert!(matches!(mediator.message().await, Some(Message::Close(_))), "it gave up waiting");
        mediator.message().await;
    };
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"reflect hello\n").unwrap();
    let (output, ()) = tokio::join!(tokio::task::spawn_blocking(|| child.wait_with_output()), script);
    let output = output.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("closed with 1000") && said.contains("-- answers that did not come: 1"), "{said}");
    assert_eq!(output.status.code(), Some(1));
}

/// A self-signed CA and a certificate of its own, as PEM and as a server configuration.
fn certificate() -> (String, [u8; 32], Arc<rustls::ServerConfig>) {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &issuer).unwrap();
    let pin = Sha256::digest(rcgen::PublicKeyData::subject_public_key_info(&key)).into();
    let der = rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let server = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], der)
        .unwrap();
    (ca_certificate.pem(), pin, Arc::new(server))
}

#[tokio::test]
async fn tls_trusts_what_it_is_told_to_trust() {
    let (ca, pin, server) = certificate();
    let (other_ca, other_pin, _) = certificate();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("wss://localhost:{}/base", listener.local_addr().unwrap().port());
    let serve = tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(server);
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            // A client that does not trust us hangs up here.
            let Ok(stream) = acceptor.accept(tcp).await else { continue };
            let mut mediator = Scripted::greet(stream).await;
            mediator.admit().await;
            while mediator.message().await.is_some() {}
        }
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &ca).unwrap();
    let connect = async |trust: Trust| Device::connect(&Mediator::new(&url, &trust).unwrap(), &config()).await;

    let good = [Trust::CaPem(ca.into_bytes()), Trust::CaFile(file.path().to_owned()), Trust::Pin(pin)];
    for (trust, name) in good.into_iter().zip(["CA", "CA file", "pin"]) {
        let ended = connect(trust).await.unwrap().close(CloseCode::Normal).await;
        assert_eq!(ended.code(), Some(1000), "{name}");
    }
    let bad = [Trust::CaPem(other_ca.into_bytes()), Trust::Pin(other_pin)];
    for (trust, name) in bad.into_iter().zip(["CA", "pin"]) {
        assert!(matches!(connect(trust).await, Err(ConnectError::Tls(_))), "{name}");
    }
    serve.abort();
}
