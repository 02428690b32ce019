//! The D2M vectors, in both directions: what we compute and encode is byte for byte what they say, and what they say is
//! decoded to the value we encoded.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test's way to fail")]

use std::collections::BTreeMap;

use bytes::Bytes;
use heliostat::client::{DeviceConfig, GroupKey};
use heliostat::crypto::Secret;
use heliostat::crypto::{boxes, kdf};
use heliostat::wire::d2m::{
    AugmentedDeviceInfo, BeginTransaction, ClientHello, ClientUrlInfo, ConnectionState, DeviceGroupId, DeviceId,
    DevicesInfo, Envelope, FromDevice, Reflect, ReflectAck, ReflectFlags, ReflectId, Reflected, ReflectedId,
    ServerGroup, ServerHello, ServerInfo, SlotExpiration, SlotState, SlotsExhausted, ToDevice, TransactionHolder,
};

struct Vector(serde_json::Value);

impl Vector {
    fn text(&self, name: &str) -> &str {
        self.0[name].as_str().unwrap_or_else(|| panic!("no {name}"))
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

    fn frame(&self, name: &str) -> Bytes {
        self.bytes(name).into()
    }

    fn group_key(&self) -> GroupKey {
        GroupKey::new(self.secret("dgk"))
    }

    fn server_group(&self) -> ServerGroup {
        ServerGroup::new(self.text("server_group")).unwrap()
    }

    fn device_id(&self) -> DeviceId {
        DeviceId(u64::from_str_radix(self.text("device_id"), 16).unwrap())
    }

    fn server_hello(&self) -> ServerHello {
        ServerHello { version: 0, esk: self.array("esk_public"), challenge: self.array("challenge") }
    }
}

/// What the frames of the three vectors say beyond the fields of the JSON (spec 11.2 to 11.4).
struct Said {
    slots_exhausted: SlotsExhausted,
    slot_state: SlotState,
    ttl_s: u32,
    shared_data: bool,
    queue: u32,
    ephemeral: bool,
    reflect_id: ReflectId,
    reflected_id: ReflectedId,
}

fn vectors() -> Vec<(Vector, Said)> {
    let json: serde_json::Value = serde_json::from_str(include_str!("vectors/d2m-csp.json")).unwrap();
    let vectors: Vec<_> = json["d2m"].as_array().unwrap().iter().cloned().map(Vector).collect();
    assert_eq!(vectors.len(), 3);
    let said = [
        Said {
            slots_exhausted: SlotsExhausted::Reject,
            slot_state: SlotState::New,
            ttl_s: 0,
            shared_data: false,
            queue: 0,
            ephemeral: false,
            reflect_id: ReflectId(0x0102_0300),
            reflected_id: ReflectedId(7),
        },
        Said {
            slots_exhausted: SlotsExhausted::DropLeastRecent,
            slot_state: SlotState::New,
            ttl_s: 60,
            shared_data: false,
            queue: 1,
            ephemeral: true,
            reflect_id: ReflectId(0x0102_0301),
            reflected_id: ReflectedId(8),
        },
        Said {
            slots_exhausted: SlotsExhausted::Reject,
            slot_state: SlotState::Existing,
            ttl_s: 60,
            shared_data: true,
            queue: 2,
            ephemeral: false,
            reflect_id: ReflectId(0x0102_0302),
            reflected_id: ReflectedId(9),
        },
    ];
    vectors.into_iter().zip(said).collect()
}

#[test]
fn every_key_is_derived_from_the_device_group_key() {
    for (v, _) in vectors() {
        let key = v.group_key();
        assert_eq!(key.keys().path, v.secret("dgpk"));
        assert_eq!(key.keys().reflect, v.secret("dgrk"));
        assert_eq!(key.keys().device_info, v.secret("dgdik"));
        assert_eq!(key.keys().shared_device_data, v.secret("dgsddk"));
        assert_eq!(key.keys().transaction_scope, v.secret("dgtsk"));
        assert_eq!(key.device_group_id(), DeviceGroupId::new(v.array("dgid")));
    }
}

#[test]
fn both_sides_agree_on_the_challenge_key() {
    for (v, _) in vectors() {
        let (esk, dgpk) = (v.secret("esk_secret"), v.secret("dgpk"));
        assert_eq!(boxes::public(&esk), v.array("esk_public"));
        assert_eq!(boxes::x25519(&esk, &v.array("dgid")).unwrap(), v.secret("x25519_raw"));
        assert_eq!(boxes::x25519(&dgpk, &v.array("esk_public")).unwrap(), v.secret("x25519_raw"));
        assert_eq!(boxes::beforenm(&esk, &v.array("dgid")).unwrap(), v.secret("box_key"));
        assert_eq!(boxes::beforenm(&dgpk, &v.array("esk_public")).unwrap(), v.secret("box_key"));
    }
}

#[test]
fn the_challenge_is_answered_and_the_answer_judged() {
    for (v, _) in vectors() {
        let challenge = v.array("challenge");
        let answer = kdf::answer_challenge(&v.secret("dgpk"), &v.array("esk_public"), &challenge, &v.array("nonce"));
        assert_eq!(answer.unwrap(), v.bytes("response"));
        let judge = |response: &[u8; 72]| {
            kdf::challenge_answered(&v.secret("esk_secret"), &v.array("dgid"), &challenge, response)
        };
        assert!(judge(&v.array("response")).unwrap());
        for at in 0..72 {
            let mut response = v.array("response");
            response[at] ^= 0x80;
            assert!(!judge(&response).unwrap(), "byte {at}");
        }
    }
}

#[test]
fn the_url_names_group_and_chat_server() {
    for (v, _) in vectors() {
        let info =
            ClientUrlInfo { device_group_id: DeviceGroupId::new(v.array("dgid")), server_group: v.server_group() };
        assert_eq!(info.to_segment(), v.text("client_url_info"));
        assert_eq!(ClientUrlInfo::from_path(&format!("/2f/{}", v.text("client_url_info"))).unwrap(), info);
        assert_eq!(DeviceConfig::new(v.group_key(), v.server_group(), v.device_id()).url_info(), info);
    }
}

#[test]
fn what_devices_seal_for_each_other_opens() {
    for (v, _) in vectors() {
        let key = v.group_key();
        assert_eq!(key.open_envelope(&v.bytes("encrypted_envelope")).unwrap(), v.bytes("envelope_plain"));
        assert_eq!(key.open_scope(&v.bytes("encrypted_scope")).unwrap(), v.bytes("scope_plain"));
        assert_eq!(key.open_device_info(&v.bytes("encrypted_device_info")).unwrap(), v.bytes("device_info_plain"));
        let shared = key.open_shared_device_data(&v.bytes("encrypted_shared_device_data")).unwrap();
        assert_eq!(shared, v.bytes("shared_device_data_plain"));
        // And sealing with the vector's nonce gives the vector's bytes.
        for (name, plain, key) in [
            ("encrypted_envelope", "envelope_plain", &key.keys().reflect),
            ("encrypted_scope", "scope_plain", &key.keys().transaction_scope),
            ("encrypted_device_info", "device_info_plain", &key.keys().device_info),
            ("encrypted_shared_device_data", "shared_device_data_plain", &key.keys().shared_device_data),
        ] {
            let sealed = v.bytes(name);
            let nonce: boxes::Nonce = sealed[..24].try_into().unwrap();
            assert_eq!([&nonce[..], &boxes::seal(key, &nonce, &v.bytes(plain))].concat(), sealed, "{name}");
        }
    }
}

#[test]
fn a_device_config_makes_the_client_hello_of_the_vector() {
    for (v, said) in vectors() {
        let config = DeviceConfig {
            slots_exhausted: said.slots_exhausted,
            expected_slot_state: said.slot_state,
            device_info: v.bytes("device_info_plain"),
            ..DeviceConfig::new(v.group_key(), v.server_group(), v.device_id())
        };
        let mut hello = config.client_hello_with(&v.server_hello(), &v.array("nonce")).unwrap();
        // Sealed with a random nonce: compared by what it holds, then exchanged for the vector's.
        let info = v.group_key().open_device_info(&hello.encrypted_device_info).unwrap();
        assert_eq!(info, v.bytes("device_info_plain"));
        hello.encrypted_device_info = v.bytes("encrypted_device_info");
        assert_eq!(FromDevice::ClientHello(Box::new(hello)).encode(), v.frame("frame_client_hello"));
    }
}

#[test]
fn every_frame_encodes_and_decodes() {
    const MS: u64 = 1_700_000_000_123;
    const REFLECTED_MS: u64 = 1_700_000_000_456;
    for (v, said) in vectors() {
        let holder = TransactionHolder { device_id: v.device_id(), encrypted_scope: v.bytes("encrypted_scope") };
        let flags = ReflectFlags { ephemeral: said.ephemeral };
        let envelope = || Envelope::copy_from(&v.bytes("encrypted_envelope"));
        let from_device: BTreeMap<&str, FromDevice> = BTreeMap::from([
            (
                "frame_client_hello",
                FromDevice::ClientHello(Box::new(ClientHello {
                    response: v.array("response"),
                    device_id: v.device_id(),
                    slots_exhausted: said.slots_exhausted,
                    slot_expiration: SlotExpiration::Persistent,
                    encrypted_device_info: v.bytes("encrypted_device_info"),
                    expected_slot_state: said.slot_state,
                })),
            ),
            (
                "frame_begin_transaction",
                FromDevice::BeginTransaction(BeginTransaction {
                    encrypted_scope: v.bytes("encrypted_scope"),
                    ttl_s: said.ttl_s,
                }),
            ),
            ("frame_drop_device", FromDevice::DropDevice(v.device_id())),
            (
                "frame_reflect",
                FromDevice::Reflect(Reflect { flags, reflect_id: said.reflect_id, envelope: envelope() }),
            ),
            ("frame_reflected_ack", FromDevice::ReflectedAck(said.reflected_id)),
        ]);
        let mut to_device: BTreeMap<&str, ToDevice> = BTreeMap::from([
            ("frame_server_hello", ToDevice::ServerHello(v.server_hello().into())),
            (
                "frame_server_info",
                ToDevice::ServerInfo(ServerInfo {
                    max_device_slots: 5,
                    slot_state: said.slot_state,
                    encrypted_shared_device_data: if said.shared_data {
                        v.bytes("encrypted_shared_device_data")
                    } else {
                        Vec::new()
                    },
                    current_time_ms: MS,
                    reflection_queue_length: said.queue,
                }),
            ),
            ("frame_transaction_rejected", ToDevice::TransactionRejected(holder)),
            (
                "frame_reflect_ack",
                ToDevice::ReflectAck(ReflectAck { reflect_id: said.reflect_id, timestamp_ms: REFLECTED_MS }),
            ),
            (
                "frame_reflected",
                ToDevice::Reflected(Reflected::new(envelope(), flags, said.reflected_id, REFLECTED_MS)),
            ),
        ]);
        // Only the first vector has one.
        if v.0.get("frame_devices_info").is_some() {
            let info = |connection, slot_expiration| AugmentedDeviceInfo {
                encrypted_device_info: v.bytes("encrypted_device_info"),
                connection,
                slot_expiration,
            };
            let devices = BTreeMap::from([
                (v.device_id(), info(ConnectionState::ConnectedSince(1_700_000_000_000), SlotExpiration::Persistent)),
                (DeviceId(2), info(ConnectionState::LastDisconnectAt(1_699_999_999_000), SlotExpiration::Volatile)),
            ]);
            to_device.insert("frame_devices_info", ToDevice::DevicesInfo(DevicesInfo(devices)));
        }
        let frames = v.0.as_object().unwrap().keys().filter(|name| name.starts_with("frame_"));
        for name in frames {
            let frame = v.frame(name);
            if let Some(value) = from_device.get(name.as_str()) {
                assert_eq!(FromDevice::decode(&frame).as_ref(), Ok(value), "{name}");
                assert_eq!(hex::encode(value.encode()), v.text(name), "{name}");
            } else {
                let value = to_device.get(name.as_str()).unwrap_or_else(|| panic!("{name} is not tested"));
                assert_eq!(ToDevice::decode(&frame).as_ref(), Ok(value), "{name}");
                if name != "frame_devices_info" {
                    assert_eq!(hex::encode(value.encode()), v.text(name), "{name}");
                } else {
                    // A protobuf map has no order; ours is that of the ids.
                    assert_eq!(ToDevice::decode(&value.encode()).as_ref(), Ok(value), "{name}");
                    assert_eq!(value.encode().len(), frame.len());
                }
            }
        }
    }
}
