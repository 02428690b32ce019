use std::net::SocketAddr;

use super::message::{PAYLOAD_MAX, Presence, SIGNED_MAX, parts, shown};
use super::*;

fn id(byte: u8) -> ClientId {
    ClientId([byte; 32])
}

fn node(address: &str) -> Node {
    Node { id: id(1), address: address.parse().unwrap() }
}

#[test]
fn every_request_survives_its_bytes_and_no_prefix_of_them_is_another() {
    let cert = Cert {
        group: GroupId([9; 32]),
        client: id(1),
        sig_pk: SigPk([2; 32]),
        grade: record::Grade::Observer,
        not_before_s: 5,
        not_after_s: 6,
        issuer: SigPk([3; 32]),
        signature: [4; 64],
    };
    let requests = [
        Request::GetNodes([1; 8]),
        Request::JoinRequest(JoinRequest {
            token_id: [1; 16],
            token_secret: [2; 32],
            sig_pk: SigPk([3; 32]),
            time_s: 4,
            name: b"a".to_vec(),
            signature: [5; 64],
        }),
        Request::JoinReply(JoinReply::Welcome(Some(Box::new(cert.clone())))),
        Request::SyncRequest(SyncRequest { state_version: 1, digest: [2; 8], offset: 3 }),
        Request::SyncRecords(SyncRecords { total: 2, offset: 1, records: vec![Record::Cert(cert)] }),
    ];
    for request in requests {
        let bytes = request.encode();
        assert_eq!(Request::decode(&bytes), Ok(request.clone()));
        for at in 0..bytes.len() {
            assert_ne!(Request::decode(&bytes[..at]), Ok(request.clone()), "cut at {at}");
        }
        assert_eq!(Request::decode(&[&bytes[..], &[0]].concat()), Err(Malformed), "one byte too many");
    }
    assert_eq!(Request::decode(&[51, 0]), Err(Malformed), "a request that nobody knows");
    assert_eq!(Request::decode(&[]), Err(Malformed));
    for why in JoinRefused::ALL {
        let bytes = Request::JoinReply(JoinReply::Refused(why)).encode();
        assert_eq!(Request::decode(&bytes), Ok(Request::JoinReply(JoinReply::Refused(why))));
    }
}

#[test]
fn a_list_of_nodes_is_known_by_its_size_and_one_that_is_not_makes_no_nodes() {
    let list = [node("192.0.2.7:1"), node("[2001:db8::7]:2"), node("192.0.2.9:3")];
    for dialect in [Dialect::N40, Dialect::N51, Dialect::N56] {
        let nodes = Nodes::new(dialect, list);
        let expected = if dialect == Dialect::N40 { 2 } else { 3 };
        assert_eq!(nodes.nodes.len(), expected, "IPv6 has no place in forty bytes");
        assert_eq!(Nodes::decode(&nodes.encode()), nodes);
        assert_eq!(Nodes::new(dialect, [list[0]; 9]).nodes.len(), 6);
    }
    for odd in [1, 39, 41, 8 * 40, 7 * 51, 7 * 56] {
        assert_eq!(Nodes::decode(&vec![2; odd]), Nodes::default(), "{odd} bytes");
    }
    let mut mapped = Nodes::new(Dialect::N51, [node("[::ffff:192.0.2.7]:5")]).encode();
    assert_eq!(Nodes::decode(&mapped).nodes[0].address, "192.0.2.7:5".parse::<SocketAddr>().unwrap());
    mapped[32] = 77;
    assert_eq!(Nodes::decode(&mapped), Nodes { dialect: Some(Dialect::N51), nodes: vec![] }, "no such family");
    for nowhere in ["0.0.0.0:1", "192.0.2.1:0", "224.0.0.1:1", "255.255.255.255:1", "[::]:1", "[ff02::1]:1"] {
        assert!(!node(nowhere).is_reachable(), "{nowhere}");
    }
    assert!(node("192.0.2.1:1").is_reachable());
}

#[test]
fn payloads_are_of_their_lengths_or_dropped() {
    let bad: [(MessageId, &[u8]); 9] = [
        (MessageId::PING, &[0]),
        (MessageId::QUIT, &[0]),
        (MessageId::NEW_PEER, &[0; 31]),
        (MessageId::BAN_PEER, &[0; 33]),
        (MessageId::NAME, &[]),
        (MessageId::NAME, &[0; 129]),
        (MessageId::STATUS, &[]),
        (MessageId::TOPIC, &[0; 513]),
        (MessageId::CHAT, &[0; PAYLOAD_MAX + 1]),
    ];
    for (id, payload) in bad {
        assert_eq!(Message::decode(id, payload), Err(Malformed), "{id:?}");
    }
    assert_eq!(Message::decode(MessageId(77), b"?"), Ok(None));
    assert_eq!(Message::decode(MessageId::STATUS, &[9]), Ok(Some(Message::Status(Presence::Online))));
    let action = Message::Text { text: b"waves".to_vec(), action: true };
    for number in [MessageId::ACTION, MessageId::ACTION_2014] {
        let (id, payload) = action.encode(number);
        assert_eq!((id, Message::decode(id, &payload)), (number, Ok(Some(action.clone()))));
    }
}

#[test]
fn texts_lose_their_trailing_zeros_and_are_cut_between_characters() {
    assert_eq!(shown(b"hi\0\0"), "hi");
    assert_eq!(shown(b"\xff"), "\u{fffd}");
    let text = "ä".repeat(1_000);
    let cut = parts(&text, SIGNED_MAX);
    assert_eq!(cut.concat(), text);
    assert_eq!(cut.iter().map(|part| part.len()).collect::<Vec<_>>(), [806, 806, 388]);
    assert!(parts("", SIGNED_MAX).is_empty());
}

#[test]
fn a_packet_is_known_by_its_length_and_its_first_byte() {
    let packet = [&[0x30][..], &[0; 106]].concat();
    assert!(Sealed::read(&packet).is_ok());
    assert_eq!(Sealed::read(&packet[..106]), Err(Malformed));
    assert_eq!(Sealed::read(&[&packet[..], &[0; 918]].concat()), Err(Malformed), "1025 bytes");
    assert_eq!(Sealed::read(&[&[0x31][..], &packet[1..]].concat()), Err(Malformed));
}

#[test]
fn keys_that_agree_on_nothing_are_no_keys() {
    assert!(!ClientId([0; 32]).is_usable());
    let good = boxes::public(&Secret::new([7; 32]));
    assert!(ClientId(good).is_usable());
    let mut high = good;
    high[31] |= 0x80;
    assert!(!ClientId(high).is_usable());
}

#[test]
fn records_fill_packets_whole_and_no_more_than_an_answer_may_have() {
    let topic = Topic {
        group: GroupId([0; 32]),
        version: 1,
        time_s: 1,
        text: "t".repeat(300),
        setter: SigPk([0; 32]),
        signature: [0; 64],
    };
    let records = vec![Record::Topic(topic); 20];
    let packets = SyncRecords::packets(20, 3, &records);
    assert_eq!(packets.len(), SYNC_PACKETS_MAX);
    assert_eq!(packets.iter().map(|packet| packet.offset).collect::<Vec<_>>(), [3, 5, 7, 9, 11, 13, 15, 17]);
    for packet in packets {
        assert!(packet.encode().len() <= DATA_MAX);
        assert_eq!(packet.records.len(), 2);
    }
}
