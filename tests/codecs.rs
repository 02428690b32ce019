//! What holds for every value and not only for the vectors: what is encoded is decoded to itself, nothing that was cut
//! short passes for the whole, and octets that nobody encoded either are refused or mean what they would when encoded again.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test's way to fail")]

use std::collections::BTreeMap;
use std::fmt::Debug;

use bytes::Bytes;
use heliostat::chat::csp::wire as csp;
use heliostat::wire::d2m::{
    AugmentedDeviceInfo, BeginTransaction, ClientHello, ClientUrlInfo, ConnectionState, DeviceGroupId, DeviceId,
    DevicesInfo, Envelope, FromDevice, Reflect, ReflectAck, ReflectFlags, ReflectId, Reflected, ReflectedId,
    ServerGroup, ServerHello, ServerInfo, SlotExpiration, SlotState, SlotsExhausted, ToDevice, TransactionHolder,
};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

/// Longest octet string that is made up; every limit of the protocols has a test of its own.
const SOME: usize = 80;

fn octets() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..SOME)
}

fn device() -> impl Strategy<Value = DeviceId> {
    any::<u64>().prop_map(DeviceId)
}

fn expiration() -> impl Strategy<Value = SlotExpiration> {
    prop_oneof![Just(SlotExpiration::Volatile), Just(SlotExpiration::Persistent)]
}

fn slot_state() -> impl Strategy<Value = SlotState> {
    prop_oneof![Just(SlotState::New), Just(SlotState::Existing)]
}

fn flags() -> impl Strategy<Value = ReflectFlags> {
    any::<bool>().prop_map(|ephemeral| ReflectFlags { ephemeral })
}

fn envelope() -> impl Strategy<Value = Envelope> {
    octets().prop_map(|octets| Envelope::copy_from(&octets))
}

fn client_hello() -> impl Strategy<Value = FromDevice> {
    let exhausted = prop_oneof![Just(SlotsExhausted::Reject), Just(SlotsExhausted::DropLeastRecent)];
    let fields = (vec(any::<u8>(), 72), device(), exhausted, expiration(), octets(), slot_state());
    fields.prop_map(|(response, device_id, slots_exhausted, slot_expiration, encrypted_device_info, expected)| {
        FromDevice::ClientHello(Box::new(ClientHello {
            response: response.try_into().unwrap(),
            device_id,
            slots_exhausted,
            slot_expiration,
            encrypted_device_info,
            expected_slot_state: expected,
        }))
    })
}

fn from_device() -> impl Strategy<Value = FromDevice> {
    let begin = |(encrypted_scope, ttl_s)| FromDevice::BeginTransaction(BeginTransaction { encrypted_scope, ttl_s });
    let reflect = |(flags, id, envelope)| FromDevice::Reflect(Reflect { flags, reflect_id: ReflectId(id), envelope });
    prop_oneof![
        octets().prop_map(|octets| FromDevice::Proxy(octets.into())),
        client_hello(),
        (1..=u32::MAX).prop_map(FromDevice::ClientHelloOfVersion),
        Just(FromDevice::GetDevicesInfo),
        device().prop_map(FromDevice::DropDevice),
        octets().prop_map(FromDevice::SetSharedDeviceData),
        (octets(), any::<u32>()).prop_map(begin),
        Just(FromDevice::CommitTransaction),
        (flags(), any::<u32>(), envelope()).prop_map(reflect),
        any::<u32>().prop_map(|id| FromDevice::ReflectedAck(ReflectedId(id))),
    ]
}

fn devices_info() -> impl Strategy<Value = ToDevice> {
    let connection = (any::<bool>(), any::<u64>()).prop_map(|(here, ms)| match here {
        true => ConnectionState::ConnectedSince(ms),
        false => ConnectionState::LastDisconnectAt(ms),
    });
    let info = (octets(), connection, expiration()).prop_map(|(encrypted_device_info, connection, slot_expiration)| {
        AugmentedDeviceInfo { encrypted_device_info, connection, slot_expiration }
    });
    let devices = btree_map(device(), info, 0..15);
    devices.prop_map(|devices: BTreeMap<_, _>| ToDevice::DevicesInfo(DevicesInfo(devices)))
}

fn to_device() -> impl Strategy<Value = ToDevice> {
    let hello = |(version, esk, challenge)| ToDevice::ServerHello(ServerHello { version, esk, challenge }.into());
    let info = (any::<u32>(), slot_state(), octets(), any::<u64>(), any::<u32>()).prop_map(
        |(max_device_slots, slot_state, encrypted_shared_device_data, current_time_ms, reflection_queue_length)| {
            ToDevice::ServerInfo(ServerInfo {
                max_device_slots,
                slot_state,
                encrypted_shared_device_data,
                current_time_ms,
                reflection_queue_length,
            })
        },
    );
    let holder = || {
        (device(), octets()).prop_map(|(device_id, encrypted_scope)| TransactionHolder { device_id, encrypted_scope })
    };
    let ack = |(id, timestamp_ms)| ToDevice::ReflectAck(ReflectAck { reflect_id: ReflectId(id), timestamp_ms });
    let reflected =
        |(envelope, flags, id, ms)| ToDevice::Reflected(Reflected::new(envelope, flags, ReflectedId(id), ms));
    prop_oneof![
        octets().prop_map(|octets| ToDevice::Proxy(octets.into())),
        (any::<u32>(), any::<[u8; 32]>(), any::<[u8; 32]>()).prop_map(hello),
        info,
        Just(ToDevice::ReflectionQueueDry),
        Just(ToDevice::RolePromotedToLeader),
        devices_info(),
        device().prop_map(ToDevice::DropDeviceAck),
        Just(ToDevice::BeginTransactionAck),
        Just(ToDevice::CommitTransactionAck),
        holder().prop_map(ToDevice::TransactionRejected),
        holder().prop_map(ToDevice::TransactionEnded),
        (any::<u32>(), any::<u64>()).prop_map(ack),
        (envelope(), flags(), any::<u32>(), any::<u64>()).prop_map(reflected),
    ]
}

fn csp_message() -> impl Strategy<Value = csp::Message> {
    let ids = (any::<[u8; 8]>(), any::<[u8; 8]>(), any::<u64>(), any::<u32>(), any::<u8>());
    // A metadata box is empty or longer than 16, a message box at least 18 (clause 4.2).
    let metadata = prop_oneof![Just(Vec::new()), vec(any::<u8>(), 17..SOME)];
    let boxes = (any::<[u8; 32]>(), metadata, any::<[u8; 24]>(), vec(any::<u8>(), 18..SOME));
    (ids, boxes).prop_map(|((sender, receiver, id, created_at_s, flags), (nickname, metadata, nonce, message))| {
        csp::Message {
            sender: csp::WireIdentity(sender),
            receiver: csp::WireIdentity(receiver),
            id: csp::MessageId(id),
            created_at_s,
            flags: csp::MessageFlags(flags),
            nickname,
            metadata_box: metadata.into(),
            nonce,
            message_box: message.into(),
        }
    })
}

fn from_csp_client() -> impl Strategy<Value = csp::FromClient> {
    use csp::FromClient as Say;
    prop_oneof![
        octets().prop_map(|octets| Say::EchoRequest(octets.into())),
        octets().prop_map(|octets| Say::EchoResponse(octets.into())),
        csp_message().prop_map(Say::Message),
        Just(Say::UnblockIncomingMessages),
        vec(any::<u64>().prop_map(csp::CspDeviceId), 0..5).prop_map(Say::DeletePushTokens),
        any::<u16>().prop_map(Say::SetIdleTimeout),
        Just(Say::ClearDeviceCookieChangeIndication),
    ]
}

fn to_csp_client() -> impl Strategy<Value = csp::ToClient> {
    use csp::ToClient as Say;
    prop_oneof![
        octets().prop_map(|octets| Say::EchoRequest(octets.into())),
        octets().prop_map(|octets| Say::EchoResponse(octets.into())),
        csp_message().prop_map(Say::Message),
        Just(Say::QueueSendComplete),
        Just(Say::DeviceCookieChangeIndication),
        (any::<bool>(), "\\PC{0,40}").prop_map(|(can_reconnect, message)| Say::CloseError { can_reconnect, message }),
        "\\PC{0,40}".prop_map(Say::Alert),
    ]
}

/// What holds for `value`, given both directions of its codec.
fn is_faithful<T: PartialEq + Debug, E: Debug>(
    value: &T,
    encode: impl Fn(&T) -> Bytes,
    decode: impl Fn(&Bytes) -> Result<T, E>,
) -> Result<(), TestCaseError> {
    let whole = encode(value);
    prop_assert_eq!(&decode(&whole).unwrap(), value);
    for len in 0..whole.len() {
        let Ok(part) = decode(&whole.slice(..len)) else { continue };
        prop_assert!(part != *value, "{} of {} octets are not the whole", len, whole.len());
        prop_assert_eq!(&decode(&encode(&part)).unwrap(), &part);
    }
    Ok(())
}

proptest! {
    #[test]
    fn what_a_device_says_is_understood_whole_or_as_something_else(payload in from_device()) {
        is_faithful(&payload, FromDevice::encode, FromDevice::decode)?;
    }

    #[test]
    fn what_the_mediator_says_is_understood_whole_or_as_something_else(payload in to_device()) {
        is_faithful(&payload, ToDevice::encode, ToDevice::decode)?;
    }

    #[test]
    fn the_reserved_octets_of_a_container_mean_nothing(payload in from_device(), reserved in any::<[u8; 3]>()) {
        let mut octets = payload.encode().to_vec();
        octets[1..4].copy_from_slice(&reserved);
        prop_assert_eq!(FromDevice::decode(&octets.into()).unwrap(), payload);
    }

    #[test]
    fn a_longer_header_of_a_reflect_is_skipped(payload in (flags(), any::<u32>(), envelope()), later in vec(any::<u8>(), 0..200)) {
        let (flags, id, envelope) = payload;
        let reflect = FromDevice::Reflect(Reflect { flags, reflect_id: ReflectId(id), envelope });
        let mut octets = reflect.encode().to_vec();
        octets[4] += u8::try_from(later.len()).unwrap();
        octets.splice(12..12, later);
        prop_assert_eq!(FromDevice::decode(&octets.into()).unwrap(), reflect);
    }

    #[test]
    fn octets_of_nobody_are_refused_or_mean_what_they_mean_again(octets in vec(any::<u8>(), 0..300)) {
        let octets = Bytes::from(octets);
        if let Ok(payload) = FromDevice::decode(&octets) && !matches!(payload, FromDevice::Unknown(_)) {
            prop_assert_eq!(FromDevice::decode(&payload.encode()).unwrap(), payload);
        }
        if let Ok(payload) = ToDevice::decode(&octets) && !matches!(payload, ToDevice::Unknown(_)) {
            prop_assert_eq!(ToDevice::decode(&payload.encode()).unwrap(), payload);
        }
    }

    #[test]
    fn a_url_names_its_group_and_a_part_of_it_names_nobody(id in any::<[u8; 32]>(), group in "[0-9a-zA-Z]{1,32}") {
        let info = ClientUrlInfo {
            device_group_id: DeviceGroupId::new(id),
            server_group: ServerGroup::new(&group).unwrap(),
        };
        let path = format!("/{}", info.to_segment());
        prop_assert_eq!(&ClientUrlInfo::from_path(&path).unwrap(), &info);
        for len in 0..path.len() {
            prop_assert!(ClientUrlInfo::from_path(&path[..len]) != Ok(info.clone()));
        }
    }

    #[test]
    fn what_a_chat_client_says_is_understood_whole_or_as_something_else(payload in from_csp_client()) {
        is_faithful(&payload, csp::FromClient::encode, csp::FromClient::decode)?;
    }

    #[test]
    fn what_the_chat_server_says_is_understood_whole_or_as_something_else(payload in to_csp_client()) {
        is_faithful(&payload, csp::ToClient::encode, csp::ToClient::decode)?;
    }
}
