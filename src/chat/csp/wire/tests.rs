//! Every byte vector, in both roles; and input that is nobody's.

use proptest::prelude::*;

use super::handshake::{AwaitLogin, AwaitServerHello};
use super::message::{Draft, EndToEnd};
use super::*;
use crate::crypto::{Secret, boxes, kdf};
use crate::wire::delimit::Cutter;

struct Vectors(serde_json::Value);

impl Vectors {
    fn load() -> Self {
        let mut all: serde_json::Value =
            serde_json::from_str(include_str!("../../../../tests/vectors/d2m-csp.json")).unwrap();
        Self(all["csp"].take())
    }

    fn text(&self, name: &str) -> &str {
        self.0[name].as_str().unwrap_or_else(|| panic!("no vector {name}"))
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        hex::decode(self.text(name)).unwrap()
    }

    fn array<const N: usize>(&self, name: &str) -> [u8; N] {
        self.bytes(name).try_into().unwrap()
    }

    fn secret(&self, name: &str) -> Secret<32> {
        Secret::new(self.array(name))
    }

    fn frames(&self) -> Vec<(String, Bytes, Vec<u8>)> {
        let text = |frame: &serde_json::Value, name: &str| frame[name].as_str().unwrap().to_owned();
        let frames = self.0["frames"].as_array().unwrap();
        frames
            .iter()
            .map(|frame| {
                let plain = hex::decode(text(frame, "plain")).unwrap();
                (text(frame, "dir"), plain.into(), hex::decode(text(frame, "frame")).unwrap())
            })
            .collect()
    }

    fn server(&self) -> (AwaitLogin, [u8; 80]) {
        AwaitLogin::answer(
            &self.secret("sk_secret"),
            &self.array("client_hello"),
            self.secret("tsk_secret"),
            self.array("sck"),
        )
        .unwrap()
    }

    fn client(&self) -> (AwaitServerHello, [u8; 48]) {
        let (key, cookie) = (self.secret("tck_secret"), self.array("cck"));
        AwaitServerHello::start(vec![[9; 32], self.array("sk_public")], key, cookie)
    }

    fn identity(&self) -> Identity {
        self.text("identity").parse().unwrap()
    }

    fn introduction(&self) -> Introduction {
        let plain = self.bytes("extensions_plain");
        Introduction::Extensions(Extensions {
            features: Some(Features(3)),
            client_info: Some("1.0;Q;en/CH;Electron;107;Linux;x64".into()),
            device_id: Some(CspDeviceId(0x1122_3344_5566_7788)),
            cookie: Some(DeviceCookie(plain[plain.len() - 16..].try_into().unwrap())),
        })
    }

    fn session_of_server(&self) -> Session {
        let login = self.bytes("login");
        let data = self.server().0.open(login[..144].try_into().unwrap()).unwrap();
        let claim = data.claim(&login[144..]).unwrap();
        let verified = claim.verify(&self.secret("sk_secret"), &self.array("ck_public")).unwrap();
        verified.accept(LoginAck { time_ms: 1_700_000_000_123, queued: 2 }).0
    }

    fn session_of_client(&self) -> Session {
        let (wait, _) = self.client();
        let hello = self.array("server_hello");
        let (wait, _) = wait.login(&hello, self.identity(), &self.secret("ck_secret"), &self.introduction()).unwrap();
        wait.finish(&self.array("login_ack")).unwrap().0
    }
}

#[test]
fn csp_13_1_vectors_keys() {
    let v = Vectors::load();
    for who in ["sk", "ck", "tck", "tsk", "receiver_ck"] {
        assert_eq!(boxes::public(&v.secret(&format!("{who}_secret"))), v.array(&format!("{who}_public")));
    }
    let agree = |a: &str, b: &str| boxes::beforenm(&v.secret(a), &v.array(b)).unwrap();
    for (secret, public) in [("sk_secret", "tck_public"), ("tck_secret", "sk_public")] {
        assert_eq!(agree(secret, public), v.secret("k_hello"));
    }
    for (secret, public) in [("tsk_secret", "tck_public"), ("tck_secret", "tsk_public")] {
        assert_eq!(agree(secret, public), v.secret("session_key"));
    }
    assert_eq!((agree("sk_secret", "ck_public"), agree("ck_secret", "sk_public")), (v.secret("ss1"), v.secret("ss1")));
    assert_eq!(
        (agree("tsk_secret", "ck_public"), agree("ck_secret", "tsk_public")),
        (v.secret("ss2"), v.secret("ss2"))
    );
    let shared = [v.bytes("ss1"), v.bytes("ss2")].concat();
    assert_eq!(kdf::blake2b(&shared, b"v2", b"3ma-csp", b""), v.secret("vouch_key"));
    let vouch = kdf::csp_vouch(&v.secret("ss1"), &v.secret("ss2"), &v.array("sck"), &v.array("tck_public"));
    assert_eq!(vouch, v.secret("vouch"));
}

#[test]
fn csp_13_1_vectors_as_the_server() {
    let v = Vectors::load();
    let (wait, hello) = v.server();
    assert_eq!(hello[..], v.bytes("server_hello"));
    let opened = boxes::open(&v.secret("k_hello"), &nonce(&v, "sck", 1), &hello[16..]).unwrap();
    assert_eq!(opened, v.bytes("server_challenge_response_plain"));

    let login = v.bytes("login");
    let opened = boxes::open(&v.secret("session_key"), &nonce(&v, "cck", 1), &login[..144]).unwrap();
    assert_eq!(opened, v.bytes("login_data_plain"));
    let data = wait.open(login[..144].try_into().unwrap()).unwrap();
    assert_eq!(data.extensions_len(), usize::try_from(v.0["extensions_box_len"].as_u64().unwrap()).unwrap());
    assert_eq!(data.extensions_len(), login.len() - 144);
    let claim = data.claim(&login[144..]).unwrap();
    assert_eq!(claim.identity(), v.identity());
    let verified = claim.verify(&v.secret("sk_secret"), &v.array("ck_public")).unwrap();
    assert_eq!(verified.introduction(), &v.introduction());
    let (mut session, ack) = verified.accept(LoginAck { time_ms: 1_700_000_000_123, queued: 2 });
    assert_eq!(ack[..], v.bytes("login_ack"));

    for (dir, plain, frame) in v.frames() {
        if dir == "C->S" {
            assert_eq!(session.opener.open_frame(&frame).unwrap(), plain);
            assert_eq!(FromClient::decode(&plain).unwrap().encode(), plain);
        } else {
            let mut out = BytesMut::new();
            session.sealer.seal_frame(&plain, &mut out).unwrap();
            assert_eq!(out, frame);
            assert_eq!(ToClient::decode(&plain).unwrap().encode(), plain);
        }
    }
}

#[test]
fn csp_13_1_vectors_as_the_client() {
    let v = Vectors::load();
    let (wait, hello) = v.client();
    assert_eq!(hello[..], v.bytes("client_hello"));
    let introduction = v.introduction();
    let Introduction::Extensions(extensions) = &introduction else { unreachable!() };
    assert_eq!(extensions.encode(), v.bytes("extensions_plain"));
    let server_hello = v.array("server_hello");
    let (wait, login) = wait.login(&server_hello, v.identity(), &v.secret("ck_secret"), &introduction).unwrap();
    assert_eq!(login, v.bytes("login"));
    let (mut session, ack) = wait.finish(&v.array("login_ack")).unwrap();
    assert_eq!(ack, LoginAck { time_ms: 1_700_000_000_123, queued: 2 });
    assert_eq!(ack.encode()[..], v.bytes("login_ack_plain"));

    let mut cutter = Cutter::new(Frames);
    for (dir, plain, frame) in v.frames() {
        if dir == "S->C" {
            cutter.buffer().extend_from_slice(&frame);
            let unit = cutter.next_unit().unwrap().unwrap();
            assert_eq!(session.opener.open_frame(&unit).unwrap(), plain);
        } else {
            let mut out = BytesMut::new();
            session.sealer.seal_frame(&plain, &mut out).unwrap();
            assert_eq!(out, frame);
        }
    }
}

#[test]
fn csp_13_1_vectors_of_a_login_without_extensions() {
    let v = Vectors::load();
    let introduction = Introduction::Legacy { client_info: "1.0;A;en/CH;;".into() };
    let server_hello = v.array("server_hello");
    let (_, login) = v.client().0.login(&server_hello, v.identity(), &v.secret("ck_secret"), &introduction).unwrap();
    assert_eq!(login, v.bytes("legacy_login"));
    let opened = boxes::open(&v.secret("session_key"), &nonce(&v, "cck", 1), &login).unwrap();
    assert_eq!(opened, v.bytes("legacy_login_data_plain"));

    let data = v.server().0.open(&login.try_into().unwrap()).unwrap();
    assert_eq!(data.extensions_len(), 0);
    let claim = data.claim(&[]).unwrap();
    let verified = claim.verify(&v.secret("sk_secret"), &v.array("ck_public")).unwrap();
    assert_eq!(verified.introduction(), &introduction);
    assert_eq!((introduction.device_id(), introduction.cookie(), introduction.features().0), (None, None, 0));
}

#[test]
fn csp_13_1_vectors_of_the_conversation() {
    let v = Vectors::load();
    let ours = EndToEnd::new(&v.secret("ck_secret"), &v.array("receiver_ck_public")).unwrap();
    let theirs = EndToEnd::new(&v.secret("receiver_ck_secret"), &v.array("ck_public")).unwrap();
    assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
    assert_eq!(boxes::beforenm(&v.secret("ck_secret"), &v.array("receiver_ck_public")).unwrap(), v.secret("e2e_key"));
    assert_eq!(kdf::blake2b(&v.bytes("e2e_key"), b"mm", b"3ma-csp", b""), v.secret("mmk"));
    let plain = &v.frames()[2].1;
    let FromClient::Message(message) = FromClient::decode(plain).unwrap() else { panic!("not a message") };
    assert_eq!(message.receiver.valid().unwrap().as_str(), v.text("receiver_identity"));
    let (content, metadata) = (message.open(&theirs).unwrap(), message.open_metadata(&theirs).unwrap().unwrap());
    let draft = Draft {
        sender: v.identity(),
        receiver: message.receiver.valid().unwrap(),
        id: message.id,
        created_at_s: message.created_at_s,
        flags: message.flags,
        nickname: "",
        metadata: Some(&metadata),
        content: &content,
    };
    assert_eq!(FromClient::Message(Message::seal_with_nonce(&draft, &ours, message.nonce).unwrap()).encode(), plain);
}

fn nonce(v: &Vectors, cookie: &str, counter: u64) -> boxes::Nonce {
    [&v.bytes(cookie)[..], &counter.to_le_bytes()].concat().try_into().unwrap()
}

/// A login with the given plaintexts, sealed as a client would.
fn login_with(v: &Vectors, data: &[u8], extensions: Option<&[u8]>) -> Result<Introduction, HandshakeError> {
    let key = v.secret("session_key");
    let login = boxes::seal(&key, &nonce(v, "cck", 1), data);
    let extensions = extensions.map(|plain| boxes::seal(&key, &nonce(v, "cck", 2), plain)).unwrap_or_default();
    let claim = v.server().0.open(&login.try_into().unwrap())?.claim(&extensions)?;
    let verified = claim.verify(&v.secret("sk_secret"), &v.array("ck_public"))?;
    Ok(verified.introduction().clone())
}

#[test]
fn csp_2_3_a_login_is_refused_for_what_is_wrong_with_it() {
    let v = Vectors::load();
    let plain = v.bytes("login_data_plain");
    let extensions = v.bytes("extensions_plain");
    let with = |at: usize, byte: u8| {
        let mut changed = plain.clone();
        changed[at] ^= byte;
        login_with(&v, &changed, Some(&extensions))
    };
    assert_eq!(login_with(&v, &plain, Some(&extensions)), Ok(v.introduction()));
    assert_eq!(with(0, 0x20), Err(HandshakeError::Malformed), "a lower-case identity");
    assert_eq!(with(38, 0x57), Err(HandshakeError::BadExtensions), "extensions of 0 bytes");
    assert_eq!(with(39, 0x40), Err(HandshakeError::BadExtensions), "extensions of 16 KiB");
    assert_eq!(with(40, 1), Err(HandshakeError::WrongCookie));
    assert_eq!(with(56, 1), Err(HandshakeError::ObsoleteVouch), "spec C15");
    assert_eq!(with(80, 1), Err(HandshakeError::BadVouch));
    assert_eq!(with(112, 1), Ok(v.introduction()), "reserved2 is ignored");
    assert_eq!(login_with(&v, &plain, None), Err(HandshakeError::BadBox(boxes::BadBox)));
}

#[test]
fn csp_2_2_hellos_are_refused() {
    let v = Vectors::load();
    let mut hello: [u8; 48] = v.array("client_hello");
    let answer =
        |hello: &[u8; 48]| AwaitLogin::answer(&v.secret("sk_secret"), hello, v.secret("tsk_secret"), v.array("cck"));
    assert_eq!(answer(&hello).unwrap_err(), HandshakeError::SameCookie);
    hello[..32].fill(0);
    hello[47] ^= 1;
    assert_eq!(answer(&hello).unwrap_err(), HandshakeError::LowOrder(boxes::LowOrder));

    let login = |hello: &[u8; 80]| {
        v.client().0.login(hello, v.identity(), &v.secret("ck_secret"), &v.introduction()).map(|_| ())
    };
    let mut hello: [u8; 80] = v.array("server_hello");
    hello[79] ^= 1;
    assert_eq!(login(&hello), Err(HandshakeError::BadBox(boxes::BadBox)));
    hello[..16].copy_from_slice(&v.bytes("cck"));
    assert_eq!(login(&hello), Err(HandshakeError::SameCookie));
}

#[test]
fn csp_2_4_extensions_in_any_order_unknown_skipped_last_wins() {
    let whole = [&[9, 2, 0, 1, 2][..], &[2, 1, 0, 1], &[1, 8, 0, 1, 0, 0, 0, 0, 0, 0, 0], &[2, 1, 0, 3]].concat();
    let read = Extensions::decode(&whole).unwrap();
    assert_eq!((read.features, read.device_id), (Some(Features(3)), Some(CspDeviceId(1))));
    for cut in 0..whole.len() {
        let at_an_edge = [0, 5, 9, 20].contains(&cut);
        assert_eq!(Extensions::decode(&whole[..cut]).is_ok(), at_an_edge, "cut at {cut}");
    }
    for bad in [&[1, 7, 0, 0, 0, 0, 0, 0, 0, 0][..], &[2, 0, 0], &[2, 2, 0, 1, 1], &[3, 1, 0, 0]] {
        assert_eq!(Extensions::decode(bad), Err(HandshakeError::BadExtensions));
    }
}

#[test]
fn csp_13_4_features_are_a_bit_mask() {
    for (byte, metadata) in
        [(None, false), (Some(0x00), false), (Some(0x01), true), (Some(0x03), true), (Some(0xff), true)]
    {
        let extensions = Extensions { features: byte.map(Features), ..Extensions::default() };
        let read = Introduction::Extensions(Extensions::decode(&extensions.encode()).unwrap());
        assert_eq!(read.features().has(Features::METADATA), metadata);
    }
}

#[test]
fn containers_with_a_wrong_length_are_refused() {
    let decode = |bytes: &'static [u8]| FromClient::decode(&Bytes::from_static(bytes));
    assert_eq!(decode(&[0x30, 0, 0]), Err(BadContainer::TooShort));
    for kind in [PayloadType::SET_CONNECTION_IDLE_TIMEOUT, PayloadType::INCOMING_MESSAGE_ACK] {
        for len in [0, 1, 3, 15, 17] {
            let container = container(kind, |out| out.put_bytes(0, len));
            assert_eq!(FromClient::decode(&container), Err(BadContainer::Length(kind)), "{len} bytes");
        }
    }
    assert_eq!(decode(&[0x25, 0, 0, 0]), Ok(FromClient::DeletePushTokens(vec![])));
    assert!(decode(&[0x25, 0, 0, 0, 1]).is_err());
    assert!(decode(&[0x20, 0, 0, 0]).is_err());
    assert_eq!(
        decode(&[0x21, 0, 0, 0, 5]),
        Ok(FromClient::Unknown(Unknown { kind: PayloadType::PUSH_ALLOWED_IDENTITIES, len: 1 }))
    );
    assert!(ToClient::decode(&Bytes::from_static(&[0xd0, 0, 0, 0, 0])).is_err());
    assert!(ToClient::decode(&Bytes::from_static(&[0xe0, 0, 0, 0, 0, 0xff])).is_err(), "close-error is UTF-8");
}

proptest! {
    #[test]
    fn random_octets_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let v = Vectors::load();
        let _ = Extensions::decode(&bytes);
        let (mut server, mut client) = (v.session_of_server(), v.session_of_client());
        prop_assert!(server.opener.open_frame(&bytes).is_err());
        prop_assert!(client.opener.open_frame(&bytes).is_err());
        let bytes = Bytes::from(bytes);
        // Whatever is understood survives being written, but for the reserved bytes.
        if let Ok(payload) = FromClient::decode(&bytes) && !matches!(payload, FromClient::Unknown(_)) {
            prop_assert_eq!(FromClient::decode(&payload.encode()).unwrap(), payload);
        }
        if let Ok(payload) = ToClient::decode(&bytes) && !matches!(payload, ToClient::Unknown(_)) {
            prop_assert_eq!(ToClient::decode(&payload.encode()).unwrap(), payload);
        }
    }
}
