//! Every vector of the specification, both ways: bytes to meaning, and meaning to the same bytes.

use std::collections::BTreeSet;

use heliostat::chat::toxgroup::state::{Distance, Window};
use heliostat::chat::toxgroup::wire::message::{Signed, read_record, record_payload};
use heliostat::chat::toxgroup::wire::record::{Grade, Verdict, Voice};
use heliostat::chat::toxgroup::wire::{
    Broadcast, Cert, ClientId, Dialect, Door, GroupId, JoinReply, JoinRequest, Kind, Message, MessageId, Node, Nodes,
    Record, Request, Sanction, Sealed, SigPk, State, SyncRecords, SyncRequest, Token, Topic, seal,
};
use heliostat::crypto::{Secret, boxes, sign};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// The time from which the extension's vectors count, in Unix seconds.
const T: u64 = 1_700_000_000;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../vectors/toxgroup.json")).unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    bytes(value).try_into().unwrap()
}

/// The three of the vectors, by their first letters.
struct Keys(Value);

impl Keys {
    fn secret(&self, name: &str) -> Secret<32> {
        Secret::new(array(&self.0[format!("{name}_sk")]))
    }

    fn public(&self, name: &str) -> ClientId {
        ClientId(array(&self.0[format!("{name}_pk")]))
    }

    fn who(&self, id: ClientId) -> &'static str {
        ["alice", "bob", "carol"].into_iter().find(|name| self.public(name) == id).unwrap()
    }
}

struct Signers {
    founder: sign::Pair,
    moderator: sign::Pair,
    alice: sign::Pair,
    group: GroupId,
}

fn signers() -> Signers {
    let keys = &vectors()["ext_keys"];
    let pair = |name: &str| sign::Pair::new(&Secret::new(array(&keys[format!("{name}_seed")])));
    let (founder, moderator, alice) = (pair("founder"), pair("mod"), pair("alice"));
    let group = GroupId(array(&keys["group_id"]));
    assert_eq!(founder.public(), group.0);
    assert_eq!(moderator.public(), array(&keys["mod_sig_pk"]));
    assert_eq!(alice.public(), array(&keys["alice_sig_pk"]));
    Signers { founder, moderator, alice, group }
}

#[test]
fn keys_agree() {
    let keys = Keys(vectors()["keys"].clone());
    for name in ["alice", "bob", "carol"] {
        assert_eq!(ClientId(boxes::public(&keys.secret(name))), keys.public(name));
        assert!(keys.public(name).is_usable());
    }
    let shared = boxes::beforenm(&keys.secret("alice"), &keys.public("bob").0).unwrap();
    assert_eq!(*shared.expose(), array::<32>(&keys.0["shared_alice_bob"]));
}

#[test]
fn every_packet_opens_to_its_text_and_is_boxed_to_the_same_bytes() {
    let vectors = vectors();
    let keys = Keys(vectors["keys"].clone());
    let mut seen = BTreeSet::new();
    for (name, vector) in vectors.as_object().unwrap() {
        if vector.get("packet").is_none() {
            continue;
        }
        let (packet, plain) = (bytes(&vector["packet"]), bytes(&vector["plain"]));
        assert_eq!(packet.len() as u64, vector["length"].as_u64().unwrap(), "{name}");
        let sealed = Sealed::read(&packet).unwrap();
        let (receiver, sender) = (keys.who(sealed.receiver), keys.who(sealed.sender));
        let key = boxes::beforenm(&keys.secret(receiver), &sealed.sender.0).unwrap();
        assert_eq!(sealed.open(&key).unwrap(), plain, "{name}");
        let request = Request::decode(&plain).unwrap();
        assert_eq!(request.encode(), plain, "{name}");
        let key = boxes::beforenm(&keys.secret(sender), &sealed.receiver.0).unwrap();
        let again = seal(&key, &sealed.receiver, &sealed.sender, &array(&vector["nonce"]), &request.encode());
        assert_eq!(again, packet, "{name}");
        if let Request::Broadcast(Broadcast { number, id, .. }) = &request {
            let said = |field: &str| vector.get(field).and_then(Value::as_u64);
            assert!(said("message_number").is_none_or(|said| said == u64::from(*number)), "{name}");
            assert!(said("message_id").is_none_or(|said| said == u64::from(id.0)), "{name}");
        }
        seen.insert(plain[0]);
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [48, 49, 50, 0xc0, 0xc1, 0xc2, 0xc3]);
}

#[test]
fn every_message_means_what_its_name_says() {
    let vectors = vectors();
    let carol = Keys(vectors["keys"].clone()).public("carol");
    let text = |text: &str, action| Message::Text { text: text.into(), action };
    let cases = [
        ("ping", Message::Ping),
        ("new_peer", Message::NewPeer(carol)),
        ("ban_peer", Message::Ban(carol)),
        ("topic", Message::Topic("Tox été".into())),
        ("quit", Message::Quit),
        ("name", Message::Name("alice".into())),
        ("status_away", Message::Status(heliostat::chat::toxgroup::wire::message::Presence::Away)),
        ("action_63_compat", text("waves", true)),
        ("chat", text("hello, group", false)),
        ("action", text("waves", true)),
    ];
    for (name, expected) in cases {
        let plain = bytes(&vectors[format!("broadcast {name}")]["plain"]);
        let Request::Broadcast(broadcast) = Request::decode(&plain).unwrap() else { panic!("{name}") };
        assert_eq!(Message::decode(broadcast.id, &broadcast.payload).unwrap(), Some(expected.clone()), "{name}");
        let action = if name == "action_63_compat" { MessageId::ACTION_2014 } else { MessageId::ACTION };
        assert_eq!(expected.encode(action), (broadcast.id, broadcast.payload), "{name}");
    }
    let sent = bytes(&vectors["broadcast chat"]["plain"]);
    assert_eq!(bytes(&vectors["forward of chat bob->carol"]["plain"]), sent, "flooded unchanged");
}

#[test]
fn nodes_are_laid_out_in_each_dialect() {
    let vectors = vectors();
    let id = Keys(vectors["keys"].clone()).public("carol");
    for (name, dialect, address) in [
        ("node_v4_40", Dialect::N40, "192.0.2.7:33445"),
        ("node_v4_51", Dialect::N51, "192.0.2.7:33445"),
        ("node_v4_56", Dialect::N56, "192.0.2.7:33445"),
        ("node_v6_51", Dialect::N51, "[2001:db8::7]:33446"),
        ("node_v6_56", Dialect::N56, "[2001:db8::7]:33446"),
    ] {
        let nodes = Nodes::new(dialect, [Node { id, address: address.parse().unwrap() }]);
        let plain = [&[49][..], &[0; 8], &bytes(&vectors[name]["bytes"])].concat();
        assert_eq!(Request::SendNodes([0; 8], nodes.clone()).encode(), plain, "{name}");
        assert_eq!(Request::decode(&plain), Ok(Request::SendNodes([0; 8], nodes)), "{name}");
    }
}

#[test]
fn the_longest_chat_fills_a_packet() {
    let vectors = vectors();
    let keys = Keys(vectors["keys"].clone());
    let (alice, bob) = (keys.public("alice"), keys.public("bob"));
    let text = Message::Text { text: vec![b'm'; 881], action: false };
    let (id, payload) = text.encode(MessageId::ACTION);
    let request = Request::Broadcast(Broadcast { origin: alice, number: 100, id, payload });
    let key = boxes::beforenm(&keys.secret("alice"), &bob.0).unwrap();
    let packet = seal(&key, &bob, &alice, &[0x61; 24], &request.encode());
    assert_eq!(packet.len() as u64, vectors["max chat 881"]["length"].as_u64().unwrap());
    assert_eq!(hex::encode(Sha256::digest(&packet)), vectors["max chat 881"]["sha256"].as_str().unwrap());
}

#[test]
fn numbers_are_accepted_at_least_as_the_old_programs_do() {
    let vectors = vectors();
    for case in vectors["dedup"]["cases"].as_array().unwrap() {
        let [last, number, accepted] = [0, 1, 2].map(|at| u32::try_from(case[at].as_u64().unwrap()).unwrap());
        let now = std::time::Duration::from_secs(100);
        let mut window = Window::default();
        if last != 0 {
            assert!(window.accepts(last, now, false));
            window.take(last, now);
        }
        // Late ones that were not seen are taken, too, which is more than the old programs do (spec 4.1).
        let late = last != 0 && number.wrapping_sub(last) > u32::MAX / 2;
        assert_eq!(window.accepts(number, now, false), accepted == 1 || late, "{case}");
    }
}

#[test]
fn distance_is_byte_by_byte_and_signed() {
    let vectors = vectors();
    let keys = Keys(vectors["keys"].clone());
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|name| keys.public(name));
    let distance = &vectors["distance"];
    for (a, b, name) in [(alice, bob, "alice_bob"), (alice, carol, "alice_carol"), (bob, carol, "bob_carol")] {
        let expected = array::<4>(&distance[format!("{name}_first4")]);
        assert_eq!(Distance::between(&a, &b).0[..4], expected, "{name}");
        assert_eq!(Distance::between(&b, &a), Distance::between(&a, &b));
    }
    assert_eq!(distance["closer_to_alice"], "carol");
    assert!(Distance::between(&alice, &carol) < Distance::between(&alice, &bob));
    for case in distance["ex"].as_array().unwrap() {
        let [a, b] = [0, 1].map(|at| ClientId([array::<1>(&case[at])[0]; 32]));
        assert_eq!(u64::from(Distance::between(&a, &b).0[0]), case[2].as_u64().unwrap(), "{case}");
    }
}

#[test]
fn records_are_signed_and_laid_out_to_the_same_bytes() {
    let vectors = vectors();
    let keys = Keys(vectors["keys"].clone());
    let Signers { founder, moderator, alice, group } = signers();
    let empty = [0; 64];
    let cert = Cert {
        group,
        client: keys.public("alice"),
        sig_pk: SigPk(alice.public()),
        grade: Grade::User,
        not_before_s: T,
        not_after_s: T + 30 * 86_400,
        issuer: group.founder(),
        signature: empty,
    };
    assert_eq!(cert.to_sign(), bytes(&vectors["ext_cert alice user by founder"]["to_sign"]));
    let state = State {
        group,
        version: 7,
        time_s: T,
        open: true,
        open_topic: false,
        voice: Voice::All,
        peers_max: 256,
        name: "lobby".into(),
        moderators: vec![SigPk(moderator.public())],
        signature: empty,
    };
    let sanction = Sanction {
        group,
        target: keys.public("carol"),
        verdict: Verdict::Ban,
        seq: 1,
        time_s: T + 5,
        expires_s: 0,
        reason: "spam".into(),
        issuer: SigPk([0; 32]),
        signature: empty,
    };
    let topic =
        Topic { group, version: 1, time_s: T + 9, text: "welcome".into(), setter: SigPk([0; 32]), signature: empty };
    let records = [
        ("ext_cert alice user by founder", Record::Cert(cert.signed(&founder))),
        ("ext_state v7 one mod", Record::State(state.signed(&founder))),
        ("ext_sanction ban carol by mod", Record::Sanction(sanction.signed(&moderator))),
        ("ext_topic v1 by mod", Record::Topic(topic.signed(&moderator))),
    ];
    for (name, record) in &records {
        let expected = bytes(&vectors[*name]["bytes"]);
        assert_eq!(hex::encode(record.encode()), hex::encode(&expected), "{name}");
        assert_eq!(expected.len() as u64, vectors[*name]["length"].as_u64().unwrap());
        let read = Record::decode(record.kind(), &expected).unwrap();
        assert_eq!(read, *record);
        assert!(read.holds(), "{name}");
        for at in 0..expected.len() {
            let mut changed = expected.clone();
            changed[at] ^= 0x40;
            assert!(!Record::decode(record.kind(), &changed).is_ok_and(|record| record.holds()), "{name}: byte {at}");
            assert!(Record::decode(record.kind(), &expected[..at]).is_err(), "{name}: cut at {at}");
        }
        assert!(Record::decode(record.kind(), &[&expected[..], &[0]].concat()).is_err(), "{name}: something behind");
    }
    let digest = heliostat::chat::toxgroup::state::digest(records.iter().map(|(_, record)| record.signature()));
    assert_eq!(digest, array::<8>(&vectors["ext_sync digest of cert+state+sanction+topic above"]["digest"]));

    let plain = bytes(&vectors["broadcast ext record sanction"]["plain"]);
    let Request::Broadcast(broadcast) = Request::decode(&plain).unwrap() else { panic!() };
    assert_eq!((broadcast.number, broadcast.id), (0, MessageId::RECORD));
    assert_eq!(read_record(&broadcast.payload).unwrap(), records[2].1);
    assert_eq!(record_payload(&records[2].1), broadcast.payload);

    let plain = bytes(&vectors["ext SYNC_RECORDS bob->alice"]["plain"]);
    let sync = SyncRecords { total: 1, offset: 0, records: vec![records[2].1.clone()] };
    assert_eq!(Request::SyncRecords(sync.clone()).encode(), plain);
    assert_eq!(SyncRecords::packets(1, 0, &sync.records), [sync]);
    let plain = bytes(&vectors["ext SYNC_REQUEST alice->bob"]["plain"]);
    let sync = SyncRequest { state_version: 7, digest, offset: 0 };
    assert_eq!(Request::SyncRequest(sync).encode(), plain);
    let plain = bytes(&vectors["ext JOIN_REPLY bob(hub)->alice"]["plain"]);
    let Record::Cert(cert) = records[0].1.clone() else { panic!() };
    assert_eq!(Request::JoinReply(JoinReply::Welcome(Some(Box::new(cert)))).encode(), plain);
    assert_eq!(Kind::from_byte(5), None);
}

#[test]
fn an_envelope_and_a_join_request_are_signed_over_what_they_should_be() {
    let vectors = vectors();
    let keys = Keys(vectors["keys"].clone());
    let Signers { alice, group, .. } = signers();
    let (origin, hub) = (keys.public("alice"), keys.public("bob"));
    let vector = &vectors["ext_signed chat"];
    let said = (MessageId::CHAT, b"signed hello".to_vec());
    let signed = Signed::issue(&alice, &group, &origin, 12, T * 1_000 + 123, said);
    assert_eq!(hex::encode(signed.encode()), vector["payload"].as_str().unwrap());
    assert_eq!(Signed::decode(&bytes(&vector["payload"])), Ok(signed.clone()));
    assert_eq!(signed.to_sign(&group, &origin, 12), bytes(&vector["to_sign"]));
    assert_eq!((signed.id, &signed.data[..]), (MessageId::CHAT, &b"signed hello"[..]));
    let sig_pk = SigPk(alice.public());
    assert!(signed.holds(&sig_pk, &group, &origin, 12));
    assert!(!signed.holds(&sig_pk, &group, &origin, 13), "another number");
    assert!(!signed.holds(&sig_pk, &group, &hub, 12), "another origin");
    let mut flagged = signed.encode();
    flagged[0] = 1;
    assert!(Signed::decode(&flagged).is_err());

    let vector = &vectors["ext_join_request fields"];
    let mut join = JoinRequest {
        token_id: [10; 16],
        token_secret: [11; 32],
        sig_pk,
        time_s: T + 2,
        name: b"alice".to_vec(),
        signature: [0; 64],
    };
    assert_eq!(join.to_sign(&group, &hub, &origin), bytes(&vector["to_sign"]));
    join.signature = alice.sign(&join.to_sign(&group, &hub, &origin));
    let plain = [&[0xc0][..], &bytes(&vector["bytes"])].concat();
    assert_eq!(Request::JoinRequest(join.clone()).encode(), plain);
    assert_eq!(Request::decode(&plain), Ok(Request::JoinRequest(join)));
}

#[test]
fn an_invitation_is_a_text() {
    let vectors = vectors();
    let vector = &vectors["ext_invite_token"];
    let token: Token = vector["text"].as_str().unwrap().parse().unwrap();
    assert_eq!(token.encode(), bytes(&vector["bytes"]));
    assert_eq!(token.text(), vector["text"].as_str().unwrap());
    assert_eq!(token.doors, [Door::Udp("127.0.0.1:33445".parse().unwrap())]);
    assert_eq!((token.group, token.id), (signers().group, [10; 16]));
    assert_eq!(token.hub, Keys(vectors["keys"].clone()).public("bob"));
    assert!(!format!("{token:?}").contains("0b0b"), "the secret is not printed");
    let more =
        Token { doors: vec![Door::Url("wss://hub.example/".into()), Door::Udp("[::1]:5".parse().unwrap())], ..token };
    assert_eq!(more.text().parse(), Ok(more));
}
