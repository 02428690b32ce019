//! The mediator over real sockets: the conformance checklist of the Device-to-Mediator protocol, line by line, and what
//! else an untidy device can do. A test's name carries its clause.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may panic"
)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Family, ScriptedChat, Server, Setup, hears_nothing_before_devices_info, plain, reflected, soon};
use heliostat::client::{Begun, ConnectError, Device, GroupKey};
use heliostat::group::Limits;
use heliostat::server::Admission;
use heliostat::session::Timeouts;
use heliostat::store::memory::MemoryStore;
use heliostat::time::Clock;
use heliostat::wire::d2m::{
    BeginTransaction, CloseCode, ConnectionState, DeviceId, Envelope, FromDevice, Reflect, ReflectFlags, ReflectId,
    ReflectedId, SlotState, SlotsExhausted, ToDevice,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const DURABLE: ReflectFlags = ReflectFlags { ephemeral: false };
const EPHEMERAL: ReflectFlags = ReflectFlags { ephemeral: true };

async fn serve(setup: Setup) -> (Server, Family, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), setup).await;
    let family = Family::new(server.url());
    (server, family, dir)
}

fn reflect(id: u32, envelope: &[u8]) -> FromDevice {
    let (reflect_id, envelope) = (ReflectId(id), Envelope::copy_from(envelope));
    FromDevice::Reflect(Reflect { flags: DURABLE, reflect_id, envelope })
}

fn refused(error: &ConnectError) -> Option<CloseCode> {
    match error {
        ConnectError::NotAdmitted(ended) => ended.close_code(),
        _ => None,
    }
}

#[tokio::test]
async fn d2m_12_1_server_hello_comes_first_unprompted_and_is_never_the_same() {
    let (_server, family, _dir) = serve(Setup::default()).await;
    let (mut one, mut two) = (family.opens().await, family.opens().await);
    let (one, two) = (soon(one.server_hello()).await.unwrap(), soon(two.server_hello()).await.unwrap());
    assert_eq!((one.version, two.version), (0, 0));
    assert_ne!(one.esk, two.esk);
    assert_ne!(one.challenge, two.challenge);
}

#[tokio::test]
async fn d2m_12_2_early_proxy_bytes_are_held_and_reach_the_chat_server_first() {
    let chat = ScriptedChat::bind().await;
    let (_server, family, _dir) = serve(Setup { upstream: Some(chat.address), ..Setup::default() }).await;
    let mut raw = family.opens().await;
    raw.send(&FromDevice::Proxy(vec![1; 48].into())).await.unwrap();
    let hello = family.hello(&mut raw, &family.config(1)).await;
    assert!(chat.nobody_came().await, "nothing is dialled for somebody who proved nothing");
    let pipelined = [FromDevice::ClientHello(Box::new(hello)), FromDevice::Proxy(vec![2; 3].into())];
    raw.send_all(&pipelined).await.unwrap();
    let mut upstream = chat.accepts().await;
    upstream.write_all(&[7; 80]).await.unwrap();
    let mut got = [0; 51];
    soon(upstream.read_exact(&mut got)).await.unwrap();
    assert_eq!((&got[..48], &got[48..]), (&[1; 48][..], &[2; 3][..]));
    soon(raw.server_info()).await.expect("ServerInfo comes before anything of the chat server's");
    loop {
        match soon(raw.recv()).await.unwrap() {
            ToDevice::Proxy(unit) => break assert_eq!(unit[..], [7; 80]),
            ToDevice::ReflectionQueueDry | ToDevice::RolePromotedToLeader => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn d2m_12_2_more_early_proxy_bytes_than_may_be_held_are_a_protocol_error() {
    let (_server, family, _dir) = serve(Setup::default()).await;
    let mut raw = family.opens().await;
    raw.send(&FromDevice::Proxy(vec![1; 8_192].into())).await.unwrap();
    raw.send(&FromDevice::Proxy(vec![1; 1].into())).await.unwrap();
    soon(raw.server_hello()).await.unwrap();
    assert_eq!(soon(raw.wait_ended()).await.code(), Some(4010));
}

#[tokio::test]
async fn d2m_12_3_who_proves_nothing_is_not_let_in() {
    let (_server, family, _dir) = serve(Setup::default()).await;
    let config = family.config(1);
    let mut raw = family.opens().await;
    let mut hello = family.hello(&mut raw, &config).await;
    hello.response[30] ^= 1;
    raw.send(&FromDevice::ClientHello(Box::new(hello))).await.unwrap();
    assert_eq!(soon(raw.wait_ended()).await.code(), Some(4010));

    let mut raw = family.opens().await;
    soon(raw.server_hello()).await.unwrap();
    raw.send(&FromDevice::ClientHelloOfVersion(1)).await.unwrap();
    assert_eq!(soon(raw.wait_ended()).await.code(), Some(4110));

    // Nothing of that registered anybody.
    let error = soon(Device::connect(&family.url, &config.existing())).await.unwrap_err();
    assert_eq!(refused(&error), Some(CloseCode::DeviceSlotStateMismatch));
}

#[tokio::test]
async fn d2m_12_3_a_wrong_belief_is_4115_and_the_live_connection_survives() {
    let (_server, family, _dir) = serve(Setup::default()).await;
    let mut device = family.joins(1).await;
    let error = soon(Device::connect(&family.url, &family.config(1))).await.unwrap_err();
    assert_eq!(refused(&error), Some(CloseCode::DeviceSlotStateMismatch));
    assert_eq!(soon(device.devices_info()).await.unwrap().0.len(), 1);
}

#[tokio::test]
async fn d2m_12_4_full_slots_reject_or_drop_the_least_recent() {
    let limits = Limits { max_device_slots: 2, ..Limits::default() };
    let (_server, family, _dir) = serve(Setup { limits, ..Setup::default() }).await;
    let (mut one, mut two) = (family.joins(1).await, family.joins(2).await);
    let error = soon(Device::connect(&family.url, &family.config(3))).await.unwrap_err();
    assert_eq!(refused(&error), Some(CloseCode::DeviceLimitReached));
    let mut config = family.config(3);
    config.slots_exhausted = SlotsExhausted::DropLeastRecent;
    let mut three = family.connects(&config).await;
    assert_eq!(soon(one.wait_ended()).await.code(), Some(4113));
    let devices = soon(three.devices_info()).await.unwrap();
    assert_eq!(devices.0.keys().copied().collect::<Vec<_>>(), [DeviceId(2), DeviceId(3)]);
    assert!(soon(two.devices_info()).await.is_ok());
}

#[tokio::test]
async fn d2m_12_5_the_same_device_twice_ends_the_older_connection() {
    let (_server, family, _dir) = serve(Setup::default()).await;
    let mut old = family.joins(1).await;
    let new = family.returns(1).await;
    assert_eq!(soon(old.wait_ended()).await.code(), Some(4112));
    assert_eq!(new.server_info().slot_state, SlotState::Existing);
}

#[tokio::test]
async fn d2m_12_6_dry_then_leader_and_one_leader_at_a_time() {
    let (_server, family, _dir) = serve(Setup::default()).await;
    let mut one = family.admitted(&family.config(1)).await;
    assert_eq!(soon(one.recv()).await.unwrap(), ToDevice::ReflectionQueueDry);
    assert_eq!(soon(one.recv()).await.unwrap(), ToDevice::RolePromotedToLeader);
    let mut two = family.admitted(&family.config(2)).await;
    assert_eq!(soon(two.recv()).await.unwrap(), ToDevice::ReflectionQueueDry);
    hears_nothing_before_devices_info(&mut two).await;
    assert_eq!(soon(one.close(1000, "")).await.code(), Some(1000));
    assert_eq!(soon(two.recv()).await.unwrap(), ToDevice::RolePromotedToLeader);
}

#[tokio::test]
async fn d2m_12_7_reflect_reaches_others_now_or_later_until_acknowledged() {
    let (_server, family, _dir) = serve(Setup::default()).await;
    let mut sender = family.joins(1).await;
    let mut here = family.joins(2).await;
    let away = family.joins(3).await;
    soon(away.close(CloseCode::Normal)).await;

    let ack = soon(sender.reflect_and_wait(b"hello", DURABLE)).await.unwrap();
    let payload = soon(here.next_event()).await.unwrap();
    let ToDevice::Reflected(message) = payload else { panic!("{payload:?}") };
    assert_eq!((message.envelope(), message.timestamp_ms()), (&b"hello"[..], ack.timestamp_ms));

    let mut away = soon(Device::connect(&family.url, &family.config(3).existing())).await.unwrap();
    assert_eq!(away.server_info().reflection_queue_length, 1);
    let payload = soon(away.next_event()).await.unwrap();
    let ToDevice::Reflected(late) = payload else { panic!("{payload:?}") };
    assert_eq!(late, message);
    soon(away.close(CloseCode::Normal)).await;

    let mut away = soon(Device::connect(&family.url, &family.config(3).existing())).await.unwrap();
    let payload = soon(away.next_event()).await.unwrap();
    assert_eq!(payload, ToDevice::Reflected(message.clone()), "not acknowledged: again, under the same id");
    away.ack(message.id()).await.unwrap();
    soon(away.close(CloseCode::Normal)).await;
    let away = soon(Device::connect(&family.url, &family.config(3).existing())).await.unwrap();
    assert_eq!(away.server_info().reflection_queue_length, 0);

    // The sender got its ack and nothing else.
    let devices = soon(sender.devices_info()).await.unwrap();
    assert_eq!(devices.0.len(), 3);
}

#[tokio::test]
async fn d2m_12_8_ephemeral_messages_are_for_who_is_here() {
    let (_server, family, _dir) = serve(Setup::default()).await;
    let mut sender = family.admitted(&family.config(1)).await;
    let mut here = family.joins(2).await;
    let away = family.joins(3).await;
    soon(away.close(CloseCode::Normal)).await;
    let typing = Reflect { flags: EPHEMERAL, reflect_id: ReflectId(1), envelope: Envelope::copy_from(b"typing") };
    sender.send(&FromDevice::Reflect(typing)).await.unwrap();
    let payload = soon(here.next_event()).await.unwrap();
    let ToDevice::Reflected(message) = payload else { panic!("{payload:?}") };
    assert!(message.flags().ephemeral);
    here.ack(message.id()).await.unwrap();
    assert!(soon(here.devices_info()).await.is_ok(), "an ack for it is ignored");
    soon(here.close(CloseCode::Normal)).await;
    for device in [2, 3] {
        let back = soon(Device::connect(&family.url, &family.config(device).existing())).await.unwrap();
        assert_eq!(back.server_info().reflection_queue_length, 0);
    }
    assert_eq!(soon(sender.recv()).await.unwrap(), ToDevice::ReflectionQueueDry);
    assert_eq!(soon(sender.recv()).await.unwrap(), ToDevice::RolePromotedToLeader);
    hears_nothing_before_devices_info(&mut sender).await;
}

#[tokio::test]
async fn d2m_12_9_an_ack_for_an_id_never_issued_is_4012() {
    let (_server, family, _dir) = serve(Setup::default()).await;
    let mut bystander = family.joins(2).await;
    let mut device = family.joins(1).await;
    device.ack(ReflectedId(12_345)).await.unwrap();
    assert_eq!(soon(device.wait_ended()).await.code(), Some(4012));
    assert!(soon(bystander.devices_info()).await.is_ok());
}

#[tokio::test]
async fn d2m_12_10_a_transaction_is_delivered_whole_or_not_at_all() {
    let (_server, family, _dir) = serve(Setup::default()).await;
    let mut holder = family.joins(1).await;
    let mut other = family.joins(2).await;
    assert_eq!(soon(holder.begin(b"scope", 0)).await.unwrap(), Begun::Granted);
    soon(holder.reflect_and_wait(b"1", DURABLE)).await.expect("acknowledged when staged");
    soon(holder.reflect_and_wait(b"2", DURABLE)).await.unwrap();
    // Whatever had been delivered would be in front of this answer.
    assert!(soon(other.devices_info()).await.is_ok());
    soon(holder.commit()).await.unwrap();
    let mut heard = Vec::new();
    loop {
        match soon(other.next_event()).await.unwrap() {
            ToDevice::Reflected(message) => heard.push(message.envelope().to_vec()),
            ToDevice::TransactionEnded(ended) => {
                assert_eq!((ended.device_id, &ended.encrypted_scope[..]), (DeviceId(1), &b"scope"[..]));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(heard, [b"1", b"2"], "delivered, and only then ended");

    assert_eq!(soon(holder.begin(b"scope", 0)).await.unwrap(), Begun::Granted);
    soon(holder.reflect_and_wait(b"never", DURABLE)).await.unwrap();
    holder.abort();
    let next = soon(other.next_event()).await.unwrap();
    assert!(matches!(next, ToDevice::TransactionEnded(_)), "{next:?}");
}

#[tokio::test]
async fn d2m_12_11_rejected_names_the_holder_and_ended_follows() {
    let (_server, family, _dir) = serve(Setup::default()).await;
    let mut holder = family.joins(1).await;
    let mut other = family.joins(2).await;
    assert_eq!(soon(holder.begin(b"mine", 0)).await.unwrap(), Begun::Granted);
    let Begun::Rejected(by) = soon(other.begin(b"theirs", 0)).await.unwrap() else { panic!("granted twice") };
    assert_eq!((by.device_id, &by.encrypted_scope[..]), (DeviceId(1), &b"mine"[..]));
    soon(holder.commit()).await.unwrap();
    assert!(matches!(soon(other.next_event()).await.unwrap(), ToDevice::TransactionEnded(_)));
    assert_eq!(soon(other.begin(b"theirs", 0)).await.unwrap(), Begun::Granted);
}

#[tokio::test]
async fn d2m_12_12_a_transaction_held_too_long_is_4011() {
    let (_server, family, _dir) = serve(Setup::default()).await;
    let mut holder = family.joins(1).await;
    let mut other = family.joins(2).await;
    assert_eq!(soon(holder.begin(b"scope", 1)).await.unwrap(), Begun::Granted);
    assert_eq!(soon(holder.wait_ended()).await.code(), Some(4011));
    assert!(matches!(soon(other.next_event()).await.unwrap(), ToDevice::TransactionEnded(_)));
}

#[tokio::test]
async fn d2m_12_13_a_self_drop_is_acknowledged_then_4113() {
    let (_server, family, _dir) = serve(Setup::default()).await;
    let mut device = family.joins(1).await;
    soon(device.drop_device(DeviceId(1))).await.expect("the ack comes first");
    assert_eq!(soon(device.wait_ended()).await.code(), Some(4113));
    let error = soon(Device::connect(&family.url, &family.config(1).existing())).await.unwrap_err();
    assert_eq!(refused(&error), Some(CloseCode::DeviceSlotStateMismatch));
    assert_eq!(family.joins(1).await.server_info().slot_state, SlotState::New);
}

#[tokio::test]
async fn d2m_12_13_a_self_drop_may_be_pipelined_behind_client_hello() {
    let (_server, family, _dir) = serve(Setup::default()).await;
    let mut raw = family.opens().await;
    let hello = family.hello(&mut raw, &family.config(1)).await;
    raw.send_all(&[FromDevice::ClientHello(Box::new(hello)), FromDevice::DropDevice(DeviceId(1))]).await.unwrap();
    soon(raw.server_info()).await.unwrap();
    let acked = async {
        while soon(raw.recv()).await.unwrap() != ToDevice::DropDeviceAck(DeviceId(1)) {}
        raw.wait_ended().await
    };
    assert_eq!(soon(acked).await.code(), Some(4113));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d2m_12_13_a_self_drop_is_acknowledged_also_to_a_device_that_goes_on_talking() {
    // Found by the simulation: when the last device dropped itself, its group fell asleep, and what the device said into the
    // closed mailbox ended the connection with 1011 before the acknowledgement was out.
    let (_server, family, _dir) = serve(Setup::default()).await;
    for _ in 0..50 {
        let mut raw = family.admitted(&family.config(1)).await;
        raw.send(&FromDevice::DropDevice(DeviceId(1))).await.unwrap();
        let (mut acked, mut ended) = (false, None);
        while ended.is_none() {
            let _may_be_over = raw.send(&FromDevice::GetDevicesInfo).await;
            match soon(raw.recv()).await {
                Ok(payload) => acked |= payload == ToDevice::DropDeviceAck(DeviceId(1)),
                Err(end) => ended = end.code(),
            }
        }
        assert_eq!((acked, ended), (true, Some(4113)));
    }
}

#[tokio::test]
async fn d2m_12_14_dropping_another_or_nobody_is_acknowledged() {
    let (_server, family, _dir) = serve(Setup::default()).await;
    let mut device = family.joins(1).await;
    let mut victim = family.joins(2).await;
    soon(device.drop_device(DeviceId(2))).await.unwrap();
    soon(device.drop_device(DeviceId(99))).await.unwrap();
    assert_eq!(soon(victim.wait_ended()).await.code(), Some(4113));
}

#[tokio::test]
async fn d2m_12_15_shared_device_data_is_in_the_next_server_info() {
    let (_server, family, _dir) = serve(Setup::default()).await;
    let mut device = family.joins(1).await;
    device.set_shared_device_data(b"shared").await.unwrap();
    // No answer is due; whatever is answered afterwards comes after it was stored.
    soon(device.devices_info()).await.unwrap();
    assert_eq!(family.joins(2).await.server_info().encrypted_shared_device_data, b"shared");
}

#[tokio::test]
async fn d2m_12_16_devices_info_holds_self_and_absent_devices() {
    let (_server, family, _dir) = serve(Setup::default()).await;
    let mut device = family.joins(1).await;
    let mut config = family.config(2);
    config.device_info = b"tablet".to_vec();
    soon(family.connects(&config).await.close(CloseCode::Normal)).await;
    let told = async {
        loop {
            let devices = device.devices_info().await.unwrap();
            let (own, other) = (&devices.0[&DeviceId(1)], &devices.0[&DeviceId(2)]);
            assert!(matches!(own.connection, ConnectionState::ConnectedSince(ms) if ms > 0));
            assert_eq!(family.key.open_device_info(&other.encrypted_device_info).unwrap(), b"tablet");
            if matches!(other.connection, ConnectionState::LastDisconnectAt(ms) if ms > 0) {
                return;
            }
        }
    };
    soon(told).await;
}

#[tokio::test]
async fn d2m_12_17_sizes_at_the_limit_pass_and_one_more_byte_does_not() {
    let chat = ScriptedChat::bind().await;
    let (_server, family, _dir) = serve(Setup { upstream: Some(chat.address), ..Setup::default() }).await;
    let mut other = family.admitted(&family.config(9)).await;
    let mut raw = family.admitted(&family.config(1)).await;
    raw.send(&FromDevice::Proxy(vec![5; 65_532].into())).await.unwrap();
    let mut upstream = chat.accepts().await;
    let mut got = vec![0; 65_532];
    soon(upstream.read_exact(&mut got)).await.unwrap();
    raw.send(&reflect(1, &[6; 65_516])).await.unwrap();
    let container = loop {
        let container = soon(other.recv_binary()).await.unwrap();
        if container[0] == 0x82 {
            break container;
        }
    };
    assert_eq!(container.len(), 65_536);
    raw.send_binary(vec![0; 65_537]).await.unwrap();
    assert_eq!(soon(raw.wait_ended()).await.code(), Some(4010));

    let mut raw = family.admitted(&family.config(2)).await;
    raw.send(&reflect(1, &[6; 65_517])).await.unwrap();
    assert_eq!(soon(raw.wait_ended()).await.code(), Some(4010));
    other.send(&FromDevice::GetDevicesInfo).await.unwrap();
    soon(async { while !matches!(other.recv().await.unwrap(), ToDevice::DevicesInfo(_)) {} }).await;
}

#[tokio::test]
async fn d2m_12_18_malformed_frames_are_4010_and_disturb_nobody() {
    let (_server, family, _dir) = serve(Setup::default()).await;
    let mut bystander = family.joins(99).await;
    let mut short_header = vec![0x80, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0];
    let bad: Vec<Vec<u8>> = vec![
        vec![],
        vec![0, 0, 0],
        vec![0x12, 0, 0, 0],                           // only the mediator says this
        vec![0x77, 0, 0, 0],                           // nobody says this
        vec![0x11, 0, 0, 0],                           // a second, empty ClientHello
        vec![0x32, 0, 0, 0, 0xff],                     // not protobuf
        vec![0x80, 0, 0, 0, 8, 0, 0, 0],               // a reflect that ends in its header
        vec![0x80, 0, 0, 0, 200, 0, 0, 0, 1, 0, 0, 0], // a header longer than the payload
        vec![0x83, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0],      // a reflected-ack one byte short
        std::mem::take(&mut short_header),
        FromDevice::BeginTransaction(BeginTransaction { encrypted_scope: vec![1; 1_025], ttl_s: 0 }).encode().to_vec(),
        FromDevice::SetSharedDeviceData(vec![1; 32_769]).encode().to_vec(),
    ];
    for (device, frame) in (1..).zip(bad) {
        let mut config = family.config(device);
        config.slots_exhausted = SlotsExhausted::DropLeastRecent;
        let mut raw = family.admitted(&config).await;
        raw.send_binary(frame.clone()).await.unwrap();
        assert_eq!(soon(raw.wait_ended()).await.code(), Some(4010), "{frame:02x?}");
        let mut raw = family.admitted(&config.existing()).await;
        raw.send(&FromDevice::DropDevice(DeviceId(device))).await.unwrap();
        soon(raw.wait_ended()).await;
    }
    let mut raw = family.admitted(&family.config(50)).await;
    raw.send_text("hello").await.unwrap();
    assert_eq!(soon(raw.wait_ended()).await.code(), Some(4010));
    let mut raw = family.admitted(&family.config(51)).await;
    raw.send_binary(vec![0; 300_000]).await.unwrap();
    assert_eq!(soon(raw.wait_ended()).await.code(), Some(4010), "a message beyond the library's limit");
    assert!(soon(bystander.devices_info()).await.is_ok());
}

#[tokio::test]
async fn d2m_12_18_a_longer_reflect_header_is_skipped() {
    let (_server, family, _dir) = serve(Setup::default()).await;
    let mut other = family.joins(2).await;
    let mut raw = family.admitted(&family.config(1)).await;
    // header-length 9, all flags set but the ephemeral one, reserved bytes not zero.
    let frame = [&[0x80, 1, 2, 3, 9, 7, 0xfe, 0xff, 4, 0, 0, 0, 0xee][..], b"envelope"].concat();
    raw.send_fragments(&[&frame[..5], &frame[5..9], &frame[9..]]).await.unwrap();
    let payload = soon(other.wait_for(|payload| matches!(payload, ToDevice::Reflected(_)))).await.unwrap();
    let ToDevice::Reflected(message) = payload else { panic!("{payload:?}") };
    assert_eq!(message.envelope(), b"envelope");
    assert_eq!(message.container()[..8], [0x82, 0, 0, 0, 16, 0, 0, 0], "unknown flags and reserved bytes stay here");
}

#[tokio::test]
async fn d2m_12_19_each_unit_of_the_chat_server_is_one_payload() {
    let chat = ScriptedChat::bind().await;
    let (_server, family, _dir) = serve(Setup { upstream: Some(chat.address), ..Setup::default() }).await;
    let stream = [&[1; 80][..], &[2; 32], &[3, 0, 9, 9, 9], &[0, 0], &[1, 0, 7]].concat();
    for piece in [stream.len(), 1] {
        let mut raw = family.admitted(&family.config(piece as u64)).await;
        raw.send(&FromDevice::Proxy(vec![1].into())).await.unwrap();
        let mut upstream = chat.accepts().await;
        for bytes in stream.chunks(piece) {
            upstream.write_all(bytes).await.unwrap();
        }
        // An incomplete tail is nobody's.
        upstream.write_all(&[20, 0, 1]).await.unwrap();
        drop(upstream);
        let mut units = Vec::new();
        let ended = loop {
            match soon(raw.recv()).await {
                Ok(ToDevice::Proxy(unit)) => units.push(unit.len()),
                Ok(_) => {}
                Err(ended) => break ended,
            }
        };
        assert_eq!(units, [80, 32, 5, 2, 3], "in pieces of {piece}");
        assert_eq!(ended.code(), Some(4000), "and only then the end");
    }
}

#[tokio::test]
async fn d2m_12_19_a_chat_server_that_is_down_is_4001_but_only_when_it_is_needed() {
    let nobody = ScriptedChat::bind().await.address;
    let (_server, family, _dir) = serve(Setup { upstream: Some(nobody), ..Setup::default() }).await;
    let mut raw = family.admitted(&family.config(1)).await;
    assert_eq!(soon(raw.recv()).await.unwrap(), ToDevice::ReflectionQueueDry);
    assert_eq!(soon(raw.recv()).await.unwrap(), ToDevice::RolePromotedToLeader);
    raw.send(&FromDevice::Proxy(bytes::Bytes::new())).await.unwrap();
    hears_nothing_before_devices_info(&mut raw).await;
    raw.send(&FromDevice::Proxy(vec![1].into())).await.unwrap();
    assert_eq!(soon(raw.wait_ended()).await.code(), Some(4001));

    let (_server, family, _dir) = serve(Setup::default()).await;
    let mut raw = family.admitted(&family.config(1)).await;
    raw.send(&FromDevice::Proxy(vec![1].into())).await.unwrap();
    assert_eq!(soon(raw.wait_ended()).await.code(), Some(4001), "no chat server is known for the server group");
}

#[tokio::test]
async fn d2m_9_2_a_unit_that_fits_no_container_is_4009() {
    let chat = ScriptedChat::bind().await;
    let (_server, family, _dir) = serve(Setup { upstream: Some(chat.address), ..Setup::default() }).await;
    let mut raw = family.admitted(&family.config(1)).await;
    raw.send(&FromDevice::Proxy(vec![1].into())).await.unwrap();
    let mut upstream = chat.accepts().await;
    upstream.write_all(&[0; 112]).await.unwrap();
    upstream.write_all(&65_531_u16.to_le_bytes()).await.unwrap();
    assert_eq!(soon(raw.wait_ended()).await.code(), Some(4009));
}

#[tokio::test]
async fn d2m_9_3_the_chat_server_sees_the_old_connection_end_before_the_new_one_begins() {
    let chat = ScriptedChat::bind().await;
    let (_server, family, _dir) = serve(Setup { upstream: Some(chat.address), ..Setup::default() }).await;
    let mut old = family.admitted(&family.config(1)).await;
    old.send(&FromDevice::Proxy(vec![1].into())).await.unwrap();
    let mut first = chat.accepts().await;
    let mut one = [0; 1];
    soon(first.read_exact(&mut one)).await.unwrap();
    let _new = family.admitted(&family.config(1).existing()).await;
    // The new connection was told that it is admitted; the old one's must be over by now.
    let end = futures_util::FutureExt::now_or_never(first.read(&mut one));
    assert!(matches!(end, Some(Ok(0) | Err(_))), "{end:?}");
    assert_eq!(soon(old.wait_ended()).await.code(), Some(4112));
}

#[tokio::test]
async fn d2m_12_20_ios_forms_are_understood() {
    let chat = ScriptedChat::bind().await;
    let (_server, family, _dir) = serve(Setup { upstream: Some(chat.address), ..Setup::default() }).await;
    let mut other = family.joins(2).await;
    // A double slash, and a prefix before it.
    let path = format!("mediator//{}", family.config(1).url_info().to_segment());
    let mut raw = soon(family.url.open_path(&path)).await.unwrap();
    let hello = family.hello(&mut raw, &family.config(1)).await;
    raw.send(&FromDevice::ClientHello(Box::new(hello))).await.unwrap();
    soon(raw.server_info()).await.unwrap();
    soon(other.reflect_and_wait(b"x", DURABLE)).await.unwrap();
    let id = loop {
        if let ToDevice::Reflected(message) = soon(raw.recv()).await.unwrap() {
            break message.id().0;
        }
    };
    // Reserved bytes that are not zero.
    raw.send_binary([&[0x83, 0, 0, 0, 8, 0, 0, 0][..], &id.to_le_bytes()].concat()).await.unwrap();
    // A login in two payloads is one stream.
    raw.send(&FromDevice::Proxy(vec![1; 144].into())).await.unwrap();
    raw.send(&FromDevice::Proxy(vec![2; 87].into())).await.unwrap();
    let mut login = [0; 231];
    soon(chat.accepts().await.read_exact(&mut login)).await.unwrap();
    assert_eq!((login[143], login[144]), (1, 2));
    drop(raw);
    let back = family.returns(1).await;
    assert_eq!(back.server_info().reflection_queue_length, 0, "its ack was counted");
}

#[tokio::test]
async fn d2m_12_20_no_pong_is_ever_required() {
    let timeouts =
        Timeouts { ping_every: Duration::from_millis(20), idle: Duration::from_millis(400), ..Timeouts::default() };
    let (server, family, _dir) = serve(Setup { timeouts, ..Setup::default() }).await;
    let (tcp, pongs) = common::PongSink::new(tokio::net::TcpStream::connect(server.address).await.unwrap());
    let url = family.url.url(&family.config(1).url_info());
    let mut quiet = soon(heliostat::client::RawConnection::over(tcp, &url)).await.unwrap();
    let hello = family.hello(&mut quiet, &family.config(1)).await;
    quiet.send(&FromDevice::ClientHello(Box::new(hello))).await.unwrap();
    soon(quiet.server_info()).await.unwrap();
    // It answers no ping, but says something now and then; that alone keeps it.
    for round in 1..=8 {
        let mut heard = pongs.clone();
        tokio::select! {
            heard = soon(heard.wait_for(|&pings| pings >= 5 * round)) => drop(heard.unwrap()),
            ended = listen(&mut quiet) => panic!("ended: {ended}"),
        }
        quiet.send(&FromDevice::GetDevicesInfo).await.unwrap();
    }
    // And when it says nothing at all, it is idle.
    assert_eq!(soon(quiet.wait_ended()).await.code(), Some(4013));
}

#[tokio::test]
async fn d2m_12_21_a_stop_says_1001_and_everything_survives_it() {
    let (server, family, dir) = serve(Setup::default()).await;
    let mut sender = family.joins(1).await;
    soon(family.joins(2).await.close(CloseCode::Normal)).await;
    for text in [b"1", b"2"] {
        soon(sender.reflect_and_wait(text, DURABLE)).await.unwrap();
    }
    sender.set_shared_device_data(b"shared").await.unwrap();
    let mut undecided = family.opens().await;
    soon(undecided.server_hello()).await.unwrap();
    let stopped = tokio::spawn(server.stop());
    assert_eq!(soon(sender.wait_ended()).await.code(), Some(1001));
    assert_eq!(soon(undecided.wait_ended()).await.code(), Some(1001), "also during the handshake");
    soon(stopped).await.unwrap();

    let server = Server::start(dir.path(), Setup::default()).await;
    let family = Family { url: server.url(), ..family };
    let mut receiver = soon(Device::connect(&family.url, &family.config(2).existing())).await.unwrap();
    assert_eq!(receiver.server_info().reflection_queue_length, 2);
    assert_eq!(receiver.server_info().encrypted_shared_device_data, b"shared");
    let mut ids = Vec::new();
    for text in [b"1", b"2"] {
        let payload = soon(receiver.next_event()).await.unwrap();
        let ToDevice::Reflected(message) = payload else { panic!("{payload:?}") };
        assert_eq!(message.envelope(), text);
        ids.push(message.id().0);
    }
    let mut sender = family.returns(1).await;
    soon(sender.reflect_and_wait(b"3", DURABLE)).await.unwrap();
    soon(receiver.wait_dry()).await.unwrap();
    let payload = soon(receiver.wait_for(|payload| matches!(payload, ToDevice::Reflected(_)))).await.unwrap();
    let ToDevice::Reflected(message) = payload else { unreachable!() };
    assert_eq!(message.envelope(), b"3");
    assert!(ids.iter().all(|&id| id < message.id().0), "ids go on growing after a restart");
    server.stop().await;
}

#[tokio::test]
async fn d2m_8_3_a_handshake_that_takes_too_long_is_4013() {
    let timeouts = Timeouts { handshake: Duration::from_millis(50), ..Timeouts::default() };
    let (_server, family, _dir) = serve(Setup { timeouts, ..Setup::default() }).await;
    let mut raw = family.opens().await;
    soon(raw.server_hello()).await.unwrap();
    assert_eq!(soon(raw.wait_ended()).await.code(), Some(4013));
}

#[tokio::test]
async fn d2m_1_3_each_bad_request_has_its_status() {
    let (server, family, _dir) = serve(Setup::default()).await;
    let segment = family.config(1).url_info().to_segment();
    let cases = [
        ("GET", "/".to_owned(), true, 404),
        ("GET", "/metrics".to_owned(), true, 404),
        ("GET", format!("/{}", "a".repeat(513)), true, 414),
        ("GET", "/zz".to_owned(), true, 400),
        ("GET", format!("/{}", segment.to_uppercase()), true, 400),
        ("GET", format!("/{}", &segment[..70]), true, 400),
        ("GET", format!("/0a20{}1a026130", "0".repeat(64)), true, 400),
        ("POST", format!("/{segment}"), true, 405),
        ("GET", format!("/{segment}"), false, 426),
        ("GET", format!("/05//{segment}?x=1"), true, 101),
    ];
    for (method, path, upgrade, status) in cases {
        assert_eq!(http_status(server.address, method, &path, upgrade).await, status, "{method} {path}");
    }
}

/// Reads, for that is what answers pings.
async fn listen(raw: &mut heliostat::client::RawConnection) -> heliostat::client::Ended {
    loop {
        if let Err(ended) = raw.recv().await {
            return ended;
        }
    }
}

async fn http_status(address: std::net::SocketAddr, method: &str, path: &str, upgrade: bool) -> u16 {
    let mut tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let headers = if upgrade {
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    } else {
        ""
    };
    let request = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nOrigin: file://\r\n{headers}\r\n");
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut line = [0; 12];
    soon(tcp.read_exact(&mut line)).await.unwrap();
    std::str::from_utf8(&line[9..]).unwrap().parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_request_that_never_ends_is_given_up() {
    let (server, _family, _dir) = serve(Setup::default()).await;
    let mut tcp = tokio::net::TcpStream::connect(server.address).await.unwrap();
    tcp.write_all(b"GET /0a20").await.unwrap();
    // Time moves when everybody waits: no header comes in ten seconds, and the connection is closed.
    let mut nothing = Vec::new();
    let _reset_or_end = tcp.read_to_end(&mut nothing).await;
    assert_eq!(nothing, b"");
}

#[tokio::test]
async fn d2m_1_3_who_may_come_in_can_be_limited() {
    let allowed = GroupKey::generate();
    let admission = Admission {
        max_connections: Some(2),
        groups: Some([allowed.device_group_id()].into()),
        ..Admission::default()
    };
    let (server, stranger, _dir) = serve(Setup { admission, ..Setup::default() }).await;
    let path = |family: &Family| format!("/{}", family.config(1).url_info().to_segment());
    assert_eq!(http_status(server.address, "GET", &path(&stranger), true).await, 403);
    let family = Family { key: allowed, url: server.url() };
    let _one = family.joins(1).await;
    let two = family.joins(2).await;
    assert_eq!(http_status(server.address, "GET", &path(&family), true).await, 503);
    soon(two.close(CloseCode::Normal)).await;
    soon(async {
        while server.mediator.connections() > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let _two = family.returns(2).await;

    let admission = Admission { max_connections_per_address: Some(1), ..Admission::default() };
    let (server, family, _dir) = serve(Setup { admission, ..Setup::default() }).await;
    let _one = family.joins(1).await;
    assert_eq!(http_status(server.address, "GET", &path(&family), true).await, 429);
}

#[tokio::test]
async fn d2m_a9_stray_commits_and_nested_begins_are_4010_and_the_others_hear_of_the_end() {
    let (_server, family, _dir) = serve(Setup::default()).await;
    let mut other = family.joins(9).await;
    let mut device = family.joins(1).await;
    device.send(&FromDevice::CommitTransaction).await.unwrap();
    assert_eq!(soon(device.wait_ended()).await.code(), Some(4010));
    let mut device = family.returns(1).await;
    assert_eq!(soon(device.begin(b"scope", 0)).await.unwrap(), Begun::Granted);
    let again = BeginTransaction { encrypted_scope: vec![], ttl_s: 0 };
    device.send(&FromDevice::BeginTransaction(again)).await.unwrap();
    assert_eq!(soon(device.wait_ended()).await.code(), Some(4010));
    assert!(soon(other.wait_for(|p| matches!(p, ToDevice::TransactionEnded(_)))).await.is_ok());
}

#[tokio::test]
async fn d2m_a10_an_explicit_zero_and_an_absent_field_both_mean_new() {
    let (_server, family, _dir) = serve(Setup::default()).await;
    for (device, zero) in [(1, &[][..]), (2, &[0x38, 0x00][..])] {
        let mut raw = family.opens().await;
        let hello = family.hello(&mut raw, &family.config(device)).await;
        let hello = [&FromDevice::ClientHello(Box::new(hello)).encode()[..], zero].concat();
        raw.send_binary(hello).await.unwrap();
        assert_eq!(soon(raw.server_info()).await.unwrap().slot_state, SlotState::New);
    }
}

#[tokio::test]
async fn d2m_a12_the_version_is_looked_at_before_anything_else() {
    let (_server, family, _dir) = serve(Setup::default()).await;
    let mut raw = family.opens().await;
    soon(raw.server_hello()).await.unwrap();
    // Version 1, and a response that is a number in that version.
    raw.send_binary(vec![0x11, 0, 0, 0, 0x08, 0x01, 0x10, 0x05]).await.unwrap();
    assert_eq!(soon(raw.wait_ended()).await.code(), Some(4110));
}

#[tokio::test]
async fn d2m_2_5_a_device_info_that_is_too_long_is_4010() {
    let (_server, family, _dir) = serve(Setup::default()).await;
    for (length, admitted) in [(4_096, true), (4_097, false)] {
        let mut raw = family.opens().await;
        let mut hello = family.hello(&mut raw, &family.config(length)).await;
        hello.encrypted_device_info = vec![1; usize::try_from(length).unwrap()];
        raw.send(&FromDevice::ClientHello(Box::new(hello))).await.unwrap();
        if admitted {
            soon(raw.server_info()).await.unwrap();
        } else {
            assert_eq!(soon(raw.wait_ended()).await.code(), Some(4010));
        }
    }
}

#[tokio::test]
async fn d2m_a23_a_slot_for_which_too_much_waits_is_4114_and_then_4115() {
    let limits = Limits { max_queue_messages: 2, ..Limits::default() };
    let (_server, family, _dir) = serve(Setup { limits, ..Setup::default() }).await;
    let mut sender = family.joins(1).await;
    let mut receiver = family.joins(2).await;
    for _ in 0..3 {
        soon(sender.reflect_and_wait(b"x", DURABLE)).await.expect("the sender is acknowledged all the same");
    }
    assert_eq!(soon(receiver.wait_ended()).await.code(), Some(4114));
    let error = soon(Device::connect(&family.url, &family.config(2).existing())).await.unwrap_err();
    assert_eq!(refused(&error), Some(CloseCode::DeviceSlotStateMismatch));
}

#[tokio::test]
async fn d2m_a36_a_second_login_of_the_holder_ends_its_transaction() {
    let (_server, family, _dir) = serve(Setup::default()).await;
    let mut other = family.joins(9).await;
    let mut holder = family.joins(1).await;
    assert_eq!(soon(holder.begin(b"scope", 0)).await.unwrap(), Begun::Granted);
    soon(holder.reflect_and_wait(b"never", DURABLE)).await.unwrap();
    let _again = family.returns(1).await;
    assert_eq!(soon(holder.wait_ended()).await.code(), Some(4112));
    let next = soon(other.wait_for(|p| !matches!(p, ToDevice::RolePromotedToLeader))).await.unwrap();
    assert!(matches!(next, ToDevice::TransactionEnded(_)), "{next:?}");
}

#[tokio::test]
async fn d2m_a38_the_chat_server_is_heard_while_a_long_backlog_flows() {
    let chat = ScriptedChat::bind().await;
    let (_server, family, _dir) = serve(Setup { upstream: Some(chat.address), ..Setup::default() }).await;
    let mut sender = family.joins(1).await;
    soon(family.joins(2).await.close(CloseCode::Normal)).await;
    const BACKLOG: usize = 20_000;
    for _ in 0..BACKLOG / 100 {
        for _ in 0..100 {
            sender.reflect(&[7; 60], DURABLE).await.unwrap();
        }
        for _ in 0..100 {
            soon(sender.wait_for(|p| matches!(p, ToDevice::ReflectAck(_)))).await.unwrap();
        }
    }
    let mut raw = family.admitted(&family.config(2).existing()).await;
    // It talks to its chat server as soon as the backlog begins, and has the answer long before the backlog ends.
    raw.send(&FromDevice::Proxy(vec![1; 48].into())).await.unwrap();
    let mut upstream = chat.accepts().await;
    let mut got = [0; 48];
    soon(upstream.read_exact(&mut got)).await.unwrap();
    upstream.write_all(&[2; 80]).await.unwrap();
    let mut before = 0;
    loop {
        match soon(raw.recv()).await.unwrap() {
            ToDevice::Proxy(unit) => break assert_eq!(unit.len(), 80),
            ToDevice::Reflected(_) => before += 1,
            ToDevice::ReflectionQueueDry => panic!("the chat server had to wait for the whole backlog"),
            _ => {}
        }
    }
    // What lay in the socket's buffers was in front of it, no more.
    assert!(before < BACKLOG, "{before} of {BACKLOG} were in front");
}

#[tokio::test]
async fn a_slow_reader_delays_nobody_and_gets_everything_later() {
    let (_server, family, _dir) = serve(Setup::default()).await;
    let mut sender = family.joins(1).await;
    let mut quick = family.joins(2).await;
    let mut slow = family.admitted(&family.config(3)).await;
    let envelope = vec![7; 60_000];
    for _ in 0..150 {
        soon(sender.reflect_and_wait(&envelope, DURABLE)).await.unwrap();
        assert_eq!(reflected(&mut quick).await.len(), 60_000);
    }
    // 9 MB later it begins to read.
    let mut got = 0;
    while got < 150 {
        if let ToDevice::Reflected(message) = soon(slow.recv()).await.unwrap() {
            assert_eq!(message.envelope().len(), 60_000);
            got += 1;
        }
    }
}

#[tokio::test]
async fn a_device_that_pipelines_without_reading_is_not_listened_to_but_loses_nothing() {
    const MESSAGES: u32 = 8_000;
    let (_server, family, _dir) = serve(Setup::default()).await;
    let mut other = family.joins(2).await;
    let (sender, mut receiver) = family.joins(1).await.split();
    let (sent, mut progress) = tokio::sync::watch::channel(0);
    let writer = tokio::spawn(async move {
        for n in 0..MESSAGES {
            sender.send(&reflect(n, b"x")).await.unwrap();
            sent.send_replace(n);
        }
        sender
    });
    // It reads nothing before a good part was written.
    soon(progress.wait_for(|&n| n >= MESSAGES / 4)).await.unwrap();
    let mut next = 0;
    while next < MESSAGES {
        if let ToDevice::ReflectAck(ack) = soon(receiver.next()).await.unwrap() {
            assert_eq!(ack.reflect_id, ReflectId(next), "in order");
            next += 1;
        }
    }
    let _sender = soon(writer).await.unwrap();
    for _ in 0..MESSAGES {
        reflected(&mut other).await;
    }
}

#[tokio::test]
async fn a_failed_write_ends_the_group_with_1011_and_nothing_acknowledged_is_lost() {
    let store = Arc::new(MemoryStore::new());
    let kept: Arc<dyn heliostat::store::Store> = Arc::<MemoryStore>::clone(&store);
    let (_mediator, address) = common::mediate(kept, Setup::default(), Clock::system()).await;
    let (family, bystanders) = (Family::new(plain(address)), Family::new(plain(address)));
    let mut bystander = bystanders.joins(1).await;
    let mut sender = family.joins(1).await;
    let mut receiver = family.joins(2).await;
    soon(sender.reflect_and_wait(b"kept", DURABLE)).await.unwrap();
    store.fail_at(store.commits() + 1);
    sender.reflect(b"not kept", DURABLE).await.unwrap();
    assert_eq!(soon(sender.wait_ended()).await.code(), Some(1011));
    assert_eq!(reflected(&mut receiver).await, b"kept");
    assert_eq!(soon(receiver.wait_ended()).await.code(), Some(1011), "what failed was not delivered");

    let mut receiver = soon(Device::connect(&family.url, &family.config(2).existing())).await.unwrap();
    assert_eq!(receiver.server_info().reflection_queue_length, 1);
    assert_eq!(reflected(&mut receiver).await, b"kept");
    assert!(soon(bystander.devices_info()).await.is_ok(), "another group noticed nothing");
}

#[tokio::test]
async fn nothing_is_said_before_it_is_kept() {
    let store = Arc::new(MemoryStore::new());
    let kept: Arc<dyn heliostat::store::Store> = Arc::<MemoryStore>::clone(&store);
    let (_mediator, address) = common::mediate(kept, Setup::default(), Clock::system()).await;
    let family = Family::new(plain(address));
    let mut sender = family.joins(1).await;
    let mut receiver = family.joins(2).await;
    soon(sender.wait_leader()).await.unwrap();
    store.hold();
    sender.reflect(b"x", DURABLE).await.unwrap();
    soon(store.until_waiting(1)).await;
    assert!(futures_util::FutureExt::now_or_never(receiver.next_event()).is_none(), "delivered before it was kept");
    assert!(futures_util::FutureExt::now_or_never(sender.next_event()).is_none(), "acknowledged before it was kept");
    store.release();
    soon(sender.next_event()).await.unwrap();
    soon(receiver.next_event()).await.unwrap();
}
