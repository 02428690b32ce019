//! Every packet and every content: bytes written down by hand, both ways, cut off at each length; and input that is
//! nobody's.

use proptest::prelude::*;

use super::content::{ArchiveMode, ExternalFile, ImageShape, KeyFormat, MemberFlags, MessageType};
use super::*;

const CREATED: DateTime = DateTime(0x88d7_e394_e716_7ccb);

/// Hexadecimal digits with spaces between the fields.
fn hex(digits: &str) -> Vec<u8> {
    hex::decode(digits.replace(' ', "")).unwrap()
}

fn secret<const N: usize>(byte: u8) -> Secret<N> {
    Secret::new([byte; N])
}

fn message() -> Body {
    let flags = MessageFlags::MEDIA.and(MessageFlags::EXTERNAL_FILE);
    let on = [(0, 7), (-1, 8)].map(|(account, id)| Dependency { account: AccountId(account), message: MessageId(id) });
    Body { file: FileId(5), ..Body::new(Kind::ChatMessage, flags, &b"\xab\xcd"[..]) }.on(on)
}

/// What a client says, as bytes: one of each packet, and one message.
fn from_client() -> Vec<(FromClient, String)> {
    let (ab, cd) = ("ab".repeat(32), "cd".repeat(32));
    let name = || "a@b.c".to_owned();
    vec![
        (
            FromClient::ConnectionHandshake { protocol_version: 3, application: "x/y".into(), version_code: 60 },
            "00 0c0000 03000000 03 782f79 3c000000".into(),
        ),
        (FromClient::CreateAccount { name: name(), key_hash: secret(0xab) }, format!("02 260000 05 6140622e63 {ab}")),
        (FromClient::DeleteAccount { key_hash: secret(0xab) }, format!("04 200000 {ab}")),
        (
            FromClient::CreateSession { name: name(), key_hash: secret(0xab), push_token: "tok".into() },
            format!("06 2b0000 05 6140622e63 {ab} 0300 746f6b"),
        ),
        (
            FromClient::RestoreSession {
                session: SessionId(-2),
                token: secret(0xcd),
                last_message: MessageId(9),
                channels: vec![ChannelId(1), ChannelId(-1)],
            },
            format!("08 420000 feffffffffffffff {cd} 0900000000000000 0200 0100000000000000 ffffffffffffffff"),
        ),
        (
            FromClient::CreateChannel { temp: ChannelId(-5), wanted: WantedChannel::Direct(AccountId(7)) },
            "0a 110000 fbffffffffffffff 02 0700000000000000".into(),
        ),
        (
            FromClient::CreateChannel { temp: ChannelId(-5), wanted: WantedChannel::Other(ChannelType::Group) },
            "0a 090000 fbffffffffffffff 03".into(),
        ),
        (
            FromClient::RequestMessages {
                channel: ChannelId(1),
                after: MessageId(2),
                before: MessageId(3),
                max_count: 0x0405,
            },
            "0e 1a0000 0100000000000000 0200000000000000 0300000000000000 0504".into(),
        ),
        (FromClient::SearchAccount { query: "ä".into() }, "2d 030000 02 c3a4".into()),
        (FromClient::DeviceListRequest {}, "32 000000".into()),
        (FromClient::SetClientState { online: OnlineState::ACTIVE, doing: Doing::default() }, "34 020000 01 00".into()),
        (
            FromClient::SetClientState {
                online: OnlineState::INACTIVE,
                doing: Doing { action: ChannelAction::TYPING, channel: ChannelId(6) },
            },
            "34 0a0000 00 01 0600000000000000".into(),
        ),
        (
            FromClient::Message(Upload { channel: ChannelId(3), temp: MessageId(-1), body: message() }),
            "20 400000 01 0300000000000000 ffffffffffffffff 18 0500000000000000 0200 abcd \
             0200 0000000000000000 0700000000000000 ffffffffffffffff 0800000000000000"
                .into(),
        ),
    ]
}

/// What the server says.
fn to_client() -> Vec<(ToClient, String)> {
    let (time, cd) = ("cb7c16e794e3d788", "cd".repeat(32));
    let release = || Release { code: 61, name: "1.0".into() };
    let announced = Announced {
        channel_type: ChannelType::Direct,
        owner: AccountId(1),
        created: CREATED,
        counterpart: AccountId(2),
    };
    vec![
        (ToClient::ConnectionResponse { state: ConnectionState::Valid }, "01 010000 00".into()),
        (
            ToClient::ConnectionResponse { state: ConnectionState::CanUpgrade(release()) },
            "01 090000 01 3d000000 03 312e30".into(),
        ),
        (
            ToClient::ConnectionResponse { state: ConnectionState::MustUpgrade(release()) },
            "01 090000 02 3d000000 03 312e30".into(),
        ),
        (ToClient::CreateAccountResponse { status: CreateAccountStatus::MAIL_RESENT }, "03 010000 01".into()),
        (ToClient::DeleteAccountResponse { status: DeleteAccountStatus::INVALID_CREDENTIALS }, "05 010000 01".into()),
        (
            ToClient::CreateSessionResponse {
                status: CreateSessionStatus::SUCCESS,
                account: AccountId(1),
                session: SessionId(2),
                token: secret(0xcd),
                web_token: WebToken("w".into()),
            },
            format!("07 340000 00 0100000000000000 0200000000000000 {cd} 0100 77"),
        ),
        (ToClient::RestoreSessionResponse { status: RestoreSessionStatus::INVALID_SESSION }, "09 010000 01".into()),
        (
            ToClient::CreateChannel { channel: ChannelId(4), announced },
            format!("0a 210000 0400000000000000 02 0100000000000000 {time} 0200000000000000"),
        ),
        (
            ToClient::CreateChannel {
                channel: ChannelId(4),
                announced: Announced { channel_type: ChannelType::Loopback, counterpart: AccountId::NONE, ..announced },
            },
            format!("0a 190000 0400000000000000 00 0100000000000000 {time}"),
        ),
        (ToClient::SyncStarted { min_count: -1 }, "0b 040000 ffffffff".into()),
        (
            ToClient::ChannelMessageResponse {
                channel: ChannelId(1),
                temp: MessageId(-1),
                status: MessageSendStatus::CONCURRENT_CHANGES,
                message: MessageId(0),
                skip_count: 0,
                dispatched: DateTime::NONE,
            },
            "0c 290000 0100000000000000 ffffffffffffffff 03 0000000000000000 0000000000000000 0000000000000000".into(),
        ),
        (ToClient::DeleteChannel { channel: ChannelId(1) }, "0d 080000 0100000000000000".into()),
        (ToClient::SyncFinished {}, "0f 000000".into()),
        (
            ToClient::ChannelAction {
                channel: ChannelId(1),
                account: AccountId(2),
                action: ChannelAction::RECORDING_AUDIO,
            },
            "2c 110000 0100000000000000 0200000000000000 02".into(),
        ),
        (
            ToClient::SearchAccountResponse { found: vec![Found { account: AccountId(2), name: "b".into() }] },
            "2e 0c0000 0100 0200000000000000 01 62".into(),
        ),
        (
            ToClient::CreateChannelResponse {
                temp: ChannelId(-1),
                status: CreateChannelStatus::BLOCKED,
                channel: ChannelId::NONE,
                created: DateTime::NONE,
            },
            "2f 190000 ffffffffffffffff 03 0000000000000000 0000000000000000".into(),
        ),
        (
            ToClient::DeviceListResponse {
                sessions: vec![ListedSession { session: SessionId(1), last_connected: CREATED, last_version: 60 }],
            },
            format!("33 160000 0100 0100000000000000 {time} 3c000000"),
        ),
        (
            ToClient::Message(Delivery {
                channel: ChannelId(3),
                sender: AccountId(4),
                id: MessageId(9),
                skip_count: -1,
                dispatched: CREATED,
                body: message(),
            }),
            format!(
                "20 580000 01 0300000000000000 0400000000000000 0900000000000000 ffffffffffffffff {time} 18 \
                 0500000000000000 0200 abcd 0200 0000000000000000 0700000000000000 ffffffffffffffff 0800000000000000"
            ),
        ),
    ]
}

fn contents() -> Vec<(Content, Option<FileBlock>, MessageFlags, String)> {
    let keys = Keys {
        signature_format: KeyFormat::BOUNCY_CASTLE,
        signature: b"s"[..].into(),
        derivation_format: KeyFormat(7),
        derivation: b"de"[..].into(),
    };
    let file = |external| FileBlock {
        name: "f".into(),
        created: CREATED,
        written: DateTime::NONE,
        thumbnail_type: "t".into(),
        thumbnail: b"th"[..].into(),
        external,
    };
    let external = ExternalFile { content_type: "c".into(), length: 9, key: secret(0xee) };
    let file_hex = "01 66 cb7c16e794e3d788 0000000000000000 01 74 0200 7468";
    let outside = MessageFlags::MEDIA.and(MessageFlags::EXTERNAL_FILE);
    let (none, media) = (MessageFlags::NONE, MessageFlags::MEDIA);
    let text = || "hi".to_owned();
    vec![
        (Content::QueueMailAddressChange(text()), None, none, "02 6869".into()),
        (Content::MailAddress(text()), None, none, "02 6869".into()),
        (
            Content::PasswordUpdate { previous_key_hash: secret(1), key_hash: secret(2), key_history: b"k"[..].into() },
            None,
            none,
            format!("{} {} 0100 6b", "01".repeat(32), "02".repeat(32)),
        ),
        (Content::PrivateKeys(keys.clone()), None, none, "00 0100 73 07 0200 6465".into()),
        (Content::PublicKeys(keys), None, none, "00 0100 73 07 0200 6465".into()),
        (Content::ArchiveChannel(ArchiveMode::DELETED), None, none, "02".into()),
        (Content::VerifiedKeys([9; 32]), None, none, "09".repeat(32)),
        (Content::DirectChannelUpdate, None, none, String::new()),
        (
            Content::DirectChannelCustomization { nickname: text(), shape: ImageShape::STAR },
            None,
            none,
            "02 6869 03".into(),
        ),
        (
            Content::GroupChannelKeyNotify { group: ChannelId(1), new_key: secret(2), history_key: secret(3) },
            None,
            none,
            format!("0100000000000000 {} {}", "02".repeat(64), "03".repeat(64)),
        ),
        (
            Content::GroupChannelUpdate {
                revision: 1,
                members: vec![
                    (AccountId(7), MemberFlags::ADMINISTRATOR),
                    (AccountId(8), MemberFlags::NO_CONTENT.and(MemberFlags::INVISIBLE)),
                ],
                key_history: b"k"[..].into(),
            },
            None,
            none,
            "0100000000000000 0200 0700000000000000 01 0800000000000000 0a 0100 6b".into(),
        ),
        (
            Content::ChatMessage { message_type: MessageType::PLAINTEXT, text: text(), quoted: MessageId(4) },
            None,
            none,
            "00 0200 6869 0400000000000000".into(),
        ),
        (
            Content::ChatMessage { message_type: MessageType::IMAGE, text: text(), quoted: MessageId::NONE },
            Some(file(Some(external))),
            outside,
            format!("01 0200 6869 0000000000000000 {file_hex} 01 63 0900000000000000 {}", "ee".repeat(32)),
        ),
        (Content::MessageOverride(Some(text())), None, none, "00 0200 6869".into()),
        (Content::MessageOverride(None), None, none, "01".into()),
        (Content::MessageReceived, None, none, String::new()),
        (Content::MessageRead, None, none, String::new()),
        (
            Content::DaystreamMessage { message_type: MessageType::CONTACT, text: text() },
            None,
            none,
            "06 0200 6869".into(),
        ),
        (Content::Nickname(text()), None, none, "02 6869".into()),
        (Content::Bio(text()), None, none, "0200 6869".into()),
        (Content::ProfileImage(text()), Some(file(None)), media, format!("0200 6869 {file_hex}")),
        (
            Content::BlockList { accounts: vec![AccountId(1)], channels: vec![] },
            None,
            none,
            "0100 0100000000000000 0000".into(),
        ),
        (
            Content::DeviceList(vec![Device { session: SessionId(1), created: CREATED, application: "x".into() }]),
            None,
            none,
            "0100 0100000000000000 cb7c16e794e3d788 01 78".into(),
        ),
        (Content::BackgroundImage, Some(file(None)), media, file_hex.into()),
        (Content::OnlineState(Some(CREATED)), None, none, "00 cb7c16e794e3d788".into()),
        (Content::OnlineState(None), None, none, "01".into()),
    ]
}

#[test]
fn every_packet_is_the_bytes_it_should_be_both_ways_and_nothing_less() {
    fn look<T: PartialEq + std::fmt::Debug>(
        samples: Vec<(T, String)>,
        encode: fn(&T) -> Result<Bytes, TooLong>,
        decode: fn(u8, &[u8]) -> Result<T, BadPacket>,
    ) {
        for (packet, digits) in samples {
            let bytes = hex(&digits);
            assert_eq!(hex::encode(encode(&packet).unwrap()), hex::encode(&bytes), "{packet:?}");
            let (id, len) = read_header(*bytes.first_chunk().unwrap());
            let payload = &bytes[HEADER..];
            assert_eq!(payload.len(), len, "{packet:?}");
            assert_eq!(decode(id, payload).as_ref(), Ok(&packet));
            let longer = [payload, &[0xff; 3]].concat();
            assert_eq!(decode(id, &longer).as_ref(), Ok(&packet), "what follows is ignored");
            for cut in 0..len {
                assert_eq!(decode(id, &payload[..cut]), Err(BadPacket::Truncated), "{packet:?} of {cut} bytes");
            }
        }
    }
    look(from_client(), FromClient::encode, FromClient::decode);
    look(to_client(), ToClient::encode, ToClient::decode);
}

#[test]
fn every_content_is_the_bytes_it_should_be_both_ways_and_nothing_less() {
    for (content, file, flags, digits) in contents() {
        let (kind, bytes) = (content.kind(), hex(&digits));
        assert_eq!(hex::encode(content.encode(file.as_ref()).unwrap()), hex::encode(&bytes), "{kind:?}");
        assert_eq!(Content::decode(kind, flags, &bytes), Ok((content, file)));
        for cut in 0..bytes.len() {
            assert_eq!(Content::decode(kind, flags, &bytes[..cut]), Err(BadPacket::Truncated), "{kind:?} of {cut}");
        }
    }
}

#[test]
fn nothing_is_left_out_of_the_samples() {
    let client: Vec<u8> = from_client().iter().map(|(packet, _)| packet.id()).collect();
    let server: Vec<u8> = to_client().iter().map(|(packet, _)| packet.id()).collect();
    assert!(FromClient::PLAIN.iter().all(|id| client.contains(id)));
    assert!(ToClient::PLAIN.iter().all(|id| server.contains(id)));
    let plain: std::collections::BTreeSet<u8> = [FromClient::PLAIN, ToClient::PLAIN].concat().into_iter().collect();
    assert_eq!((plain.len(), Kind::ALL.len()), (23, 23), "the one that goes both ways counts once");
    let kinds: std::collections::BTreeSet<Kind> = contents().iter().map(|(content, ..)| content.kind()).collect();
    assert_eq!(kinds.len(), 23);
    for id in 0..=u8::MAX {
        let assigned = plain.contains(&id) || Kind::from_id(id).is_some();
        let reserved = [0x10, 0x11, 0x12, 0x16, 0x1f, 0x30, 0x31].contains(&id) || id > 0x34;
        assert_ne!(assigned, reserved, "0x{id:02x}");
    }
}

#[test]
fn packets_of_the_other_direction_and_of_none_are_refused() {
    for (packet, _) in to_client() {
        let id = packet.id();
        if Kind::from_id(id).is_none() && id != 0x0a {
            assert_eq!(FromClient::decode(id, &[0; 64]), Err(BadPacket::Unexpected(id)));
        }
    }
    assert_eq!(FromClient::decode(0x35, &[]), Err(BadPacket::Unexpected(0x35)));
    assert_eq!(FromClient::decode(0x0a, &[0, 0, 0, 0, 0, 0, 0, 0, 5]), Err(BadPacket::ChannelType(5)));
    assert_eq!(FromClient::decode(0x2d, &[1, 0xff]), Err(BadPacket::Text));
}

#[test]
fn headers_are_those_of_the_vectors() {
    for (len, header) in [
        (0, [0x7f, 0, 0, 0]),
        (1, [0x7f, 1, 0, 0]),
        (0xff, [0x7f, 0xff, 0, 0]),
        (0xbe_eeef, [0x7f, 0xef, 0xee, 0xbe]),
        (PAYLOAD_MAX, [0x7f, 0xff, 0xff, 0xff]),
    ] {
        assert_eq!(read_header(header), (0x7f, len));
        let written = frame(0x7f, |out| {
            out.put_bytes(0, len);
            Ok(())
        });
        assert_eq!(written.unwrap().first_chunk(), Some(&header));
    }
    let too_long = frame(0x7f, |out| {
        out.put_bytes(0, PAYLOAD_MAX + 1);
        Ok(())
    });
    assert_eq!(too_long, Err(TooLong { what: "a payload" }));
}

#[test]
fn times_are_those_of_the_table() {
    let at = |wire: u64| DateTime(u64::from_le_bytes(wire.to_be_bytes()));
    assert_eq!(DateTime::NONE.unix_ms(), None);
    assert_eq!(at(0x0080_b5f7_f57f_9f48).unix_ms(), Some(0));
    for (wire, kind) in [
        (0xcb7c_16e7_94e3_d748, DateTimeKind::Utc),
        (0xcb7c_16e7_94e3_d788, DateTimeKind::Local),
        (0xcb7c_16e7_94e3_d708, DateTimeKind::Unspecified),
    ] {
        assert_eq!((at(wire).kind(), at(wire).ticks()), (kind, 0x08d7_e394_e716_7ccb));
        assert_eq!(at(wire).unix_ms(), Some(1_587_213_296_789));
    }
    assert_eq!(DateTime(0xc8d7_e394_e716_7ccb).kind(), DateTimeKind::Local, "both bits, too");
    let written = DateTime::from_unix_ms(1_587_213_296_789);
    assert_eq!((written.kind(), written.unix_ms()), (DateTimeKind::Local, Some(1_587_213_296_789)));
    assert_eq!(written.0, (CREATED.0 / 10_000) * 10_000 + written.0 % 10_000, "ticks of a whole millisecond");
    assert_eq!(DateTime::from_unix_ms(u64::MAX).kind(), DateTimeKind::Local, "no number spills into the kind");
}

#[test]
fn failures_have_their_whole_layout() {
    let empty =
        Upload { channel: ChannelId(1), temp: MessageId(1), body: Body::new(Kind::Bio, MessageFlags(0), &b""[..]) };
    assert_eq!(FromClient::Message(empty.clone()).encode().unwrap().len(), HEADER + 22);
    let delivery = Delivery {
        channel: ChannelId(1),
        sender: AccountId(1),
        id: MessageId(1),
        skip_count: 0,
        dispatched: DateTime::NONE,
        body: empty.body,
    };
    assert_eq!(ToClient::Message(delivery).encode().unwrap().len(), HEADER + 46);
    let refused = ToClient::CreateSessionResponse {
        status: CreateSessionStatus::INVALID_CREDENTIALS,
        account: AccountId::NONE,
        session: SessionId::NONE,
        token: secret(0),
        web_token: WebToken::default(),
    };
    assert_eq!(refused.encode().unwrap().len(), HEADER + 51);
}

#[test]
fn what_is_too_long_is_refused_and_the_longest_is_not() {
    let name = |len| FromClient::SearchAccount { query: "x".repeat(len) };
    assert!(name(255).encode().is_ok());
    assert!(name(256).encode().is_err());
    let body = |len| Body::new(Kind::Bio, MessageFlags::UNENCRYPTED, vec![0; len]);
    let message = |len| FromClient::Message(Upload { channel: ChannelId(1), temp: MessageId(1), body: body(len) });
    assert!(message(65_535).encode().is_ok());
    assert!(message(65_536).encode().is_err());
}

#[test]
fn flags_obey_the_rule_of_their_kind() {
    let obeys = |kind: Kind, flags| MessageFlags(flags).obey(&kind.rule());
    assert!(obeys(Kind::PublicKeys, 2) && !obeys(Kind::PublicKeys, 0) && !obeys(Kind::PublicKeys, 3));
    assert!(obeys(Kind::Nickname, 0) && obeys(Kind::Nickname, 2) && !obeys(Kind::Nickname, 1));
    assert!(obeys(Kind::ChatMessage, 0x18) && obeys(Kind::ChatMessage, 8));
    assert!(!obeys(Kind::ChatMessage, 0x10), "a file beside a message that does not describe it");
    assert!(obeys(Kind::GroupChannelKeyNotify, 0) && obeys(Kind::GroupChannelKeyNotify, 4));
    for kind in Kind::ALL {
        for bit in [32, 64, 128] {
            assert!(!obeys(*kind, kind.rule().required.0 | bit), "{kind:?}");
        }
    }
    let server: Vec<u8> = Kind::ALL.iter().filter(|kind| !kind.rule().from_client).map(|kind| kind.id()).collect();
    assert_eq!(server, [0x14, 0x1b, 0x29, 0x2b]);
}

#[test]
fn content_is_not_printed() {
    let body = Body::new(Kind::ChatMessage, MessageFlags::NONE, &b"secret"[..]);
    assert!(format!("{body:?}").contains("6 bytes") && !format!("{body:?}").contains("secret"));
}

/// Fields that are mostly plausible, so that many a packet is understood.
fn junk() -> impl Strategy<Value = Vec<u8>> {
    let chunk = prop_oneof![
        proptest::collection::vec(0_u8..6, 0..12),
        proptest::collection::vec(any::<u8>(), 0..12),
        Just(vec![0; 8]),
        Just(vec![0xcd; 32]),
    ];
    proptest::collection::vec(chunk, 0..12).prop_map(|chunks| chunks.concat())
}

proptest! {
    #[test]
    fn junk_is_refused_or_means_one_thing(id in 0_u8..0x40, bytes in junk()) {
        if let Ok(packet) = FromClient::decode(id, &bytes) {
            let again = packet.encode().unwrap();
            prop_assert!(again.len() <= HEADER + bytes.len());
            prop_assert_eq!(FromClient::decode(id, &again[HEADER..]), Ok(packet));
        }
        if let Ok(packet) = ToClient::decode(id, &bytes) {
            let again = packet.encode().unwrap();
            prop_assert!(again.len() <= HEADER + bytes.len());
            prop_assert_eq!(ToClient::decode(id, &again[HEADER..]), Ok(packet));
        }
        for kind in Kind::ALL {
            let flags = MessageFlags(id & 0x1f);
            if let Ok((content, file)) = Content::decode(*kind, flags, &bytes) {
                let again = content.encode(file.as_ref()).unwrap();
                prop_assert_eq!(Content::decode(*kind, flags, &again), Ok((content, file)));
            }
        }
    }

    #[test]
    fn every_message_round_trips(
        (version, kind, flags) in (any::<u8>(), proptest::sample::select(Kind::ALL), any::<u8>()),
        (channel, sender, id) in any::<(i64, i64, i64)>(),
        (skip_count, dispatched, file) in any::<(i64, u64, i64)>(),
        content in proptest::collection::vec(any::<u8>(), 0..300),
        dependencies in proptest::collection::vec(any::<(i64, i64)>(), 0..20),
    ) {
        let flags = MessageFlags(flags);
        let file = if flags.has(MessageFlags::EXTERNAL_FILE) { FileId(file) } else { FileId::NONE };
        let dependencies = dependencies
            .into_iter()
            .map(|(account, message)| Dependency { account: AccountId(account), message: MessageId(message) })
            .collect();
        let body = Body { version, kind, flags, file, content: content.into(), dependencies };
        let up = FromClient::Message(Upload { channel: ChannelId(channel), temp: MessageId(id), body: body.clone() });
        prop_assert_eq!(FromClient::decode(kind.id(), &up.encode().unwrap()[HEADER..]), Ok(up));
        let down = ToClient::Message(Delivery {
            channel: ChannelId(channel),
            sender: AccountId(sender),
            id: MessageId(id),
            skip_count,
            dispatched: DateTime(dispatched),
            body,
        });
        prop_assert_eq!(ToClient::decode(kind.id(), &down.encode().unwrap()[HEADER..]), Ok(down));
    }
}

/// Whatever is printed of a login, or of a message that brings keys, opens nothing.
#[test]
fn secrets_print_as_their_lengths() {
    let text = "0123456789abcdef";
    let bytes = Bytes::from_static(text.as_bytes());
    let (signature_format, derivation_format) = (KeyFormat::BOUNCY_CASTLE, KeyFormat::BOUNCY_CASTLE);
    let keys = Keys { signature_format, signature: bytes.clone(), derivation_format, derivation: bytes };
    let login = ToClient::CreateSessionResponse {
        status: CreateSessionStatus::SUCCESS,
        account: AccountId(1),
        session: SessionId(2),
        token: Secret::new([7; 32]),
        web_token: WebToken(text.into()),
    };
    let printed = format!("{login:?} {:?}", Content::PrivateKeys(keys));
    assert!(printed.contains("WebToken(16 bytes)") && printed.contains("Keys(16 and 16 bytes)"), "{printed}");
    assert!(!printed.contains(text) && !printed.contains("7, 7"), "{printed}");
}
