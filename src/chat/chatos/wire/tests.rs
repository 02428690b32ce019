//! The vectors of the specification (section 14), whole and cut everywhere, and what holds for all packets.

use proptest::prelude::*;

use super::*;

const SERVER_CAPS: Caps = Caps { name: NAME_FIELD_MAX, text: MESSAGE_OCTETS_MAX };
const ID: PrivateId = PrivateId(0x0123_4567_89ab_cdef);

fn hex(digits: &str) -> Vec<u8> {
    hex::decode(digits.replace(' ', "")).unwrap()
}

fn s(text: &str) -> String {
    text.to_owned()
}

/// Everything that comes out of a stream, cut into pieces of so many octets.
fn packets(stream: &[u8], step: usize, caps: Caps, accepts: &[u8]) -> Result<Vec<Bytes>, NoPacket> {
    let (mut received, mut out) = (BytesMut::new(), Vec::new());
    for piece in stream.chunks(step) {
        received.extend_from_slice(piece);
        while let Some(packet) = take_packet(&mut received, caps, accepts)? {
            out.push(packet);
        }
    }
    Ok(out)
}

fn from_client(vector: &str, packet: &FromClient) {
    let octets = hex(vector);
    assert_eq!(packet.encode(), octets);
    assert_eq!(FromClient::decode(&octets, MESSAGE_OCTETS_MAX).as_ref(), Ok(packet));
    let accepts = [NEW, ONLINE].concat();
    for step in 1..=octets.len() {
        assert_eq!(packets(&octets, step, SERVER_CAPS, &accepts).unwrap(), [&octets[..]], "{vector} by {step}");
    }
}

fn to_client(vector: &str, packet: &ToClient) {
    let octets = hex(vector);
    assert_eq!(packet.encode(), octets);
    assert_eq!(ToClient::decode(&octets).as_ref(), Ok(packet));
    for step in 1..=octets.len() {
        assert_eq!(packets(&octets, step, CLIENT_CAPS, SERVER_SAYS).unwrap(), [&octets[..]], "{vector} by {step}");
    }
}

#[test]
fn chatos_18_1_every_positive_vector_both_ways_and_one_octet_at_a_time() {
    let (alice, bob, carol, zoe) = (s("alice"), s("bob"), s("carol"), s("zoé"));
    let public = |from: &String, text: &str| FromClient::Public { from: from.clone(), text: text.into() };
    let whisper = |from: &String, to: &String, text: &str| FromClient::Private {
        from: from.clone(),
        to: to.clone(),
        text: text.into(),
    };
    for (vector, packet) in [
        ("00 00000005 616c696365", FromClient::Login(alice.clone())),
        ("00 00000004 7a6fc3a9", FromClient::Login(zoe.clone())),
        (
            "00 00000018 6162636465666768696a6b6c6d6e6f707172737475767778",
            FromClient::Login(s("abcdefghijklmnopqrstuvwx")),
        ),
        (
            "00 00000019 6162636465666768696a6b6c6d6e6f70717273747576777879",
            FromClient::Login(s("abcdefghijklmnopqrstuvwxy")),
        ),
        ("03 00000005 616c696365 00000003 626f62", FromClient::Request { from: alice.clone(), to: bob.clone() }),
        ("04 00000005 616c696365 00000005 68656c6c6f", public(&alice, "hello")),
        ("04 00000004 7a6fc3a9 0000000a 3520e282ac20f09f9880", public(&zoe, "5 € 😀")),
        ("04 00000005 616c696365 00000000", public(&alice, "")),
        ("05 00000003 626f62 00000005 616c696365 00000003 68c3a9", whisper(&bob, &alice, "hé")),
        ("05 00000005 616c696365 00000005 616c696365 00000001 6b", whisper(&alice, &alice, "k")),
        ("07 00000003 626f62 00000005 616c696365", FromClient::Accept(bob.clone(), alice.clone())),
        ("07 00000005 616c696365 00000003 626f62", FromClient::Accept(alice.clone(), bob.clone())),
        ("08 00000005 6361726f6c 00000005 616c696365", FromClient::Refuse(carol.clone(), alice.clone())),
        ("0a 0123456789abcdef", FromClient::Join(ID)),
    ] {
        from_client(vector, &packet);
    }
    for (vector, packet) in [
        ("01 00000005 616c696365", ToClient::Welcome(alice.clone())),
        ("02 00000003 626f62", ToClient::Refused(bob.clone())),
        ("02 00000000", ToClient::Refused(String::new())),
        ("02 00000005 616c696365", ToClient::Refused(alice.clone())),
        ("03 00000005 616c696365 00000003 626f62", ToClient::Request { from: alice.clone(), to: bob.clone() }),
        ("04 00000005 616c696365 00000005 68656c6c6f", ToClient::Public { from: alice.clone(), text: "hello".into() }),
        (
            "05 00000003 626f62 00000005 616c696365 00000003 68c3a9",
            ToClient::Private { from: bob.clone(), to: alice.clone(), text: "hé".into() },
        ),
        ("06 00000005 616c696365", ToClient::Unknown(alice.clone())),
        ("06 00000003 626f62", ToClient::Unknown(bob.clone())),
        ("07 00000003 626f62 00000005 616c696365", ToClient::Accept(bob.clone(), alice.clone())),
        ("08 00000005 6361726f6c 00000005 616c696365", ToClient::Refuse(carol, alice.clone())),
        ("09 00000003 626f62 00000005 616c696365 0123456789abcdef", ToClient::Id(bob.clone(), alice.clone(), ID)),
        ("09 00000005 616c696365 00000003 626f62 0123456789abcdef", ToClient::Id(alice.clone(), bob.clone(), ID)),
        ("09 00000003 626f62 00000005 616c696365 0000000000000000", ToClient::Id(bob, alice, PrivateId(0))),
        ("0b", ToClient::Established),
    ] {
        to_client(vector, &packet);
    }
    for (vector, text) in
        [("0c 0123456789abcdef 00000003 6f6e65", "one"), ("0c 0123456789abcdef 00000007 6465757820c3a9", "deux é")]
    {
        let (octets, line) = (hex(vector), Line { id: ID, text: text.into() });
        assert_eq!(line.encode(), octets);
        assert_eq!(Line::decode(&octets), Ok(line));
        for step in 1..=octets.len() {
            assert_eq!(packets(&octets, step, CLIENT_CAPS, LINES).unwrap(), [&octets[..]]);
        }
    }
}

#[test]
fn chatos_14_length_boundaries() {
    let message = |text: &str| FromClient::Public { from: s("a"), text: text.into() }.encode();
    for (character, octets, size, total) in
        [("x", 1, "00000200", 522), ("é", 2, "00000400", 1_034), ("😀", 4, "00000800", 2_058)]
    {
        let full = message(&character.repeat(512));
        assert_eq!((hex::encode(&full[6..10]).as_str(), full.len()), (size, total));
        assert_eq!(total, 10 + 512 * octets);
        assert!(FromClient::decode(&full, MESSAGE_OCTETS_MAX).is_ok());
        let over = message(&character.repeat(513));
        assert_eq!(FromClient::decode(&over, MESSAGE_OCTETS_MAX), Err(BadText::Characters(513).into()));
    }
    // 513 of four octets each are over the cap of octets, too: refused by the length.
    let over = message(&"😀".repeat(513));
    assert_eq!(packets(&over, over.len(), SERVER_CAPS, ONLINE), Err(NoPacket::Size(2_052)));
    let over = message(&"é".repeat(513));
    assert_eq!(packets(&over, over.len(), SERVER_CAPS, ONLINE).unwrap().len(), 1, "1026 octets pass the cap");
    assert_eq!(
        FromClient::decode(&message(&"é".repeat(257)), MESSAGE_OCTETS_REFERENCE),
        Err(BadText::Octets { octets: 514, max: 512 }.into())
    );
}

#[test]
fn chatos_14_negative_vectors_that_are_no_packets() {
    // N1 to N3, by the length alone; N9, by the opcode alone.
    for (vector, why) in [
        ("04 ffffffff", NoPacket::Size(-1)),
        ("04 00000005 616c696365 7fffffff", NoPacket::Size(i32::MAX)),
        ("04 00000005 616c696365 00000801", NoPacket::Size(2_049)),
        ("0c", NoPacket::Opcode(12)),
        ("0d", NoPacket::Opcode(13)),
        ("ff", NoPacket::Opcode(255)),
        ("01", NoPacket::Opcode(1)),
        ("06", NoPacket::Opcode(6)),
        ("0b", NoPacket::Opcode(11)),
        ("00", NoPacket::Opcode(0)),
    ] {
        let octets = hex(vector);
        assert_eq!(packets(&octets, 1, SERVER_CAPS, ONLINE), Err(why), "{vector}");
        assert_eq!(packets(&octets[..octets.len() - 1], 1, SERVER_CAPS, ONLINE), Ok(vec![]), "{vector}");
    }
    // N19, and a nickname that is only too long to be given out.
    assert_eq!(packets(&hex("00 00000401"), 1, SERVER_CAPS, NEW), Err(NoPacket::Size(1_025)));
    assert_eq!(packets(&hex("00 00000400"), 1, SERVER_CAPS, NEW), Ok(vec![]));
    assert_eq!(packets(&hex("03"), 1, SERVER_CAPS, NEW), Err(NoPacket::Opcode(3)), "N14");
    // N4 to N7: whole, and wrong.
    for (message, why) in [
        ("00000002 c0af", Malformed::Utf8),
        ("00000003 eda080", Malformed::Utf8),
        ("00000002 e282", Malformed::Utf8),
        ("00000004 f4908080", Malformed::Utf8),
        ("00000003 610a62", BadText::NotOneLine.into()),
        ("00000003 610d62", BadText::NotOneLine.into()),
        ("00000003 610062", BadText::NotOneLine.into()),
    ] {
        let octets = hex(&format!("04 00000005 616c696365 {message}"));
        let [packet] = &packets(&octets, 1, SERVER_CAPS, ONLINE).unwrap()[..] else { panic!("{message}") };
        assert_eq!(FromClient::decode(packet, MESSAGE_OCTETS_MAX), Err(why), "{message}");
    }
    let control = hex("04 00000005 616c696365 00000003 610762");
    assert!(FromClient::decode(&control, MESSAGE_OCTETS_MAX).is_ok(), "other control characters pass (D-07)");
}

#[test]
fn chatos_14_streams() {
    let stream = hex("04 00000005 616c696365 00000001 61 04 00000005 616c696365 00000001 62");
    for step in 1..=stream.len() {
        let found = packets(&stream, step, SERVER_CAPS, ONLINE).unwrap();
        assert_eq!(found, [&stream[..15], &stream[15..]], "by {step}");
    }
    assert_eq!(packets(&hex("00 0000"), 1, SERVER_CAPS, NEW), Ok(vec![]), "F3");
}

/// What the authors' peers said, as it was captured.
#[test]
fn chatos_14_the_captured_session() {
    let server = "0100000005616c696365 0100000003626f62 0400000005616c6963650000000568656c6c6f \
                  0500000003626f6200000005616c6963650000000368c3a9 0600000005616c696365 0300000005616c69636500000003626f62 \
                  0900000005616c69636500000003626f620000000000000000 0900000003626f6200000005616c6963650000000000000000 0b";
    let found = packets(&hex(server), 1, CLIENT_CAPS, SERVER_SAYS).unwrap();
    let found: Vec<ToClient> = found.iter().map(|packet| ToClient::decode(packet).unwrap()).collect();
    let (alice, bob) = (s("alice"), s("bob"));
    assert_eq!(
        found,
        [
            ToClient::Welcome(alice.clone()),
            ToClient::Welcome(bob.clone()),
            ToClient::Public { from: alice.clone(), text: "hello".into() },
            ToClient::Private { from: bob.clone(), to: alice.clone(), text: "hé".into() },
            ToClient::Unknown(alice.clone()),
            ToClient::Request { from: alice.clone(), to: bob.clone() },
            ToClient::Id(alice.clone(), bob.clone(), PrivateId(0)),
            ToClient::Id(bob, alice, PrivateId(0)),
            ToClient::Established,
        ]
    );
    let line = Line::decode(&hex("0c00000000000000000000000d707269766174652068656c6c6f")).unwrap();
    assert_eq!((line.id, line.text.0.as_str()), (PrivateId(0), "private hello"));
}

#[test]
fn nicknames_that_nobody_can_have() {
    for (name, why) in [
        ("", BadNickname::Empty),
        ("abcdefghijklmnopqrstuvwxy", BadNickname::TooLong(25)),
        ("a b", BadNickname::Character(' ')),
        ("a\u{a0}b", BadNickname::Character('\u{a0}')),
        ("a\u{3000}", BadNickname::Character('\u{3000}')),
        ("a\u{7}", BadNickname::Character('\u{7}')),
        ("a\u{85}", BadNickname::Character('\u{85}')),
        ("\u{feff}a", BadNickname::Character('\u{feff}')),
        ("a\u{200b}", BadNickname::Character('\u{200b}')),
        ("a\u{202e}b", BadNickname::Character('\u{202e}')),
        ("a\u{2064}", BadNickname::Character('\u{2064}')),
        ("\u{2066}a", BadNickname::Character('\u{2066}')),
        ("@bob", BadNickname::Begins),
        ("/bob", BadNickname::Begins),
        ("\\bob", BadNickname::Begins),
    ] {
        assert_eq!(check_nickname(name), Err(why), "{name:?}");
    }
    for name in ["a", "zoé", "abcdefghijklmnopqrstuvwx", "b@b", "李明", "😀😀😀😀😀😀"] {
        assert_eq!(check_nickname(name), Ok(()), "{name:?}");
    }
}

#[test]
fn a_message_prints_as_its_length() {
    let printed = format!("{:?}", ToClient::Public { from: s("a"), text: "secret".into() });
    assert!(printed.contains("Text(6 octets)") && !printed.contains("secret"), "{printed}");
}

fn name() -> impl Strategy<Value = String> {
    "\\PC{0,24}"
}

fn anything_said() -> impl Strategy<Value = FromClient> {
    let text = || "[^\\n\\r\\x00]{0,512}".prop_map(Text);
    prop_oneof![
        name().prop_map(FromClient::Login),
        (name(), name()).prop_map(|(from, to)| FromClient::Request { from, to }),
        (name(), text()).prop_map(|(from, text)| FromClient::Public { from, text }),
        (name(), name(), text()).prop_map(|(from, to, text)| FromClient::Private { from, to, text }),
        (name(), name()).prop_map(|(a, b)| FromClient::Accept(a, b)),
        (name(), name()).prop_map(|(a, b)| FromClient::Refuse(a, b)),
        any::<i64>().prop_map(|id| FromClient::Join(PrivateId(id))),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read_again_and_no_part_of_it_is(packet in anything_said()) {
        let octets = packet.encode();
        prop_assert_eq!(FromClient::decode(&octets, MESSAGE_OCTETS_MAX), Ok(packet));
        let accepts = [NEW, ONLINE].concat();
        for len in 0..octets.len() {
            prop_assert_eq!(packets(&octets[..len], octets.len(), SERVER_CAPS, &accepts), Ok(vec![]));
            prop_assert!(FromClient::decode(&octets[..len], MESSAGE_OCTETS_MAX).is_err());
        }
    }

    #[test]
    fn whatever_comes_is_answered(octets in proptest::collection::vec(any::<u8>(), 0..300)) {
        for accepts in [NEW, ONLINE, SERVER_SAYS, LINES] {
            if let Ok(found) = packets(&octets, 7, SERVER_CAPS, accepts) {
                for packet in found {
                    if let Ok(read) = FromClient::decode(&packet, MESSAGE_OCTETS_MAX) {
                        prop_assert_eq!(read.encode(), &packet[..]);
                    }
                    if let Ok(read) = ToClient::decode(&packet) {
                        prop_assert_eq!(read.encode(), &packet[..]);
                    }
                }
            }
        }
    }
}
