//! ServerHello, ClientHello, ServerInfo.

use prost::Message as _;

use super::id::DeviceId;
use super::{BadPayload, ENCRYPTED_DEVICE_INFO_MAX, pb};

/// The only protocol version there is.
pub const VERSION: u32 = 0;

/// The mediator's first word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerHello {
    /// Highest version the mediator speaks.
    pub version: u32,
    /// Ephemeral public key of this connection.
    pub esk: [u8; 32],
    /// Random bytes the device has to box.
    pub challenge: [u8; 32],
}

/// What to do with a new device when every slot is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotsExhausted {
    /// Turn it away.
    Reject,
    /// Drop the device that was used the longest time ago.
    DropLeastRecent,
}

/// What becomes of a slot after its device disconnected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotExpiration {
    /// Removed after some minutes.
    Volatile,
    /// Kept.
    Persistent,
}

/// Whether a slot exists, or is believed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotState {
    /// No slot yet.
    New,
    /// There is one.
    Existing,
}

/// A device introduces itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHello {
    /// Nonce and box of the challenge.
    pub response: [u8; 72],
    /// Who it is, within its group.
    pub device_id: DeviceId,
    /// Its wish for the case that every slot is taken.
    pub slots_exhausted: SlotsExhausted,
    /// Its wish for the time after it disconnected.
    pub slot_expiration: SlotExpiration,
    /// Opaque; shown to the other devices of the group.
    pub encrypted_device_info: Vec<u8>,
    /// Whether it believes to have a slot. An absent field means that it does not.
    pub expected_slot_state: SlotState,
}

/// The device is admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerInfo {
    /// How many devices a group may have.
    pub max_device_slots: u32,
    /// Whether this login made the slot.
    pub slot_state: SlotState,
    /// Opaque; as last set by any device of the group.
    pub encrypted_shared_device_data: Vec<u8>,
    /// Milliseconds since the Unix epoch.
    pub current_time_ms: u64,
    /// Messages that wait for this slot and will be transmitted now.
    pub reflection_queue_length: u32,
}

impl ServerHello {
    pub(super) fn encode(&self) -> Vec<u8> {
        pb::ServerHello { version: self.version, esk: self.esk.to_vec(), challenge: self.challenge.to_vec() }
            .encode_to_vec()
    }

    pub(super) fn decode(body: &[u8]) -> Result<Self, BadPayload> {
        let hello = pb::ServerHello::decode(body)?;
        Ok(Self {
            version: hello.version,
            esk: hello.esk.try_into().map_err(|_| BadPayload::Length("esk"))?,
            challenge: hello.challenge.try_into().map_err(|_| BadPayload::Length("challenge"))?,
        })
    }
}

/// A ClientHello as far as its version lets us read it: the version governs the rest, so it is looked at first.
pub(super) enum AnyClientHello {
    Known(ClientHello),
    Version(u32),
}

impl ClientHello {
    pub(super) fn encode(&self) -> Vec<u8> {
        pb::ClientHello {
            version: VERSION,
            response: self.response.to_vec(),
            device_id: self.device_id.0,
            device_slots_exhausted_policy: match self.slots_exhausted {
                SlotsExhausted::Reject => pb::DeviceSlotsExhaustedPolicy::Reject,
                SlotsExhausted::DropLeastRecent => pb::DeviceSlotsExhaustedPolicy::DropLeastRecent,
            }
            .into(),
            device_slot_expiration_policy: pb::DeviceSlotExpirationPolicy::from(self.slot_expiration).into(),
            encrypted_device_info: self.encrypted_device_info.clone(),
            expected_device_slot_state: pb::DeviceSlotState::from(self.expected_slot_state).into(),
        }
        .encode_to_vec()
    }

    pub(super) fn decode(body: &[u8]) -> Result<AnyClientHello, BadPayload> {
        let version = pb::ClientHelloVersion::decode(body)?.version;
        if version > VERSION {
            return Ok(AnyClientHello::Version(version));
        }
        let hello = pb::ClientHello::decode(body)?;
        if hello.encrypted_device_info.len() > ENCRYPTED_DEVICE_INFO_MAX {
            return Err(BadPayload::Length("encrypted_device_info"));
        }
        Ok(AnyClientHello::Known(Self {
            device_id: DeviceId(hello.device_id),
            slots_exhausted: match hello.device_slots_exhausted_policy.try_into() {
                Ok(pb::DeviceSlotsExhaustedPolicy::Reject) => SlotsExhausted::Reject,
                Ok(pb::DeviceSlotsExhaustedPolicy::DropLeastRecent) => SlotsExhausted::DropLeastRecent,
                Err(_) => return Err(BadPayload::Enum("device_slots_exhausted_policy")),
            },
            slot_expiration: SlotExpiration::decode(hello.device_slot_expiration_policy)?,
            expected_slot_state: SlotState::decode(hello.expected_device_slot_state, "expected_device_slot_state")?,
            response: hello.response.try_into().map_err(|_| BadPayload::Length("response"))?,
            encrypted_device_info: hello.encrypted_device_info,
        }))
    }
}

impl ServerInfo {
    pub(super) fn encode(&self) -> Vec<u8> {
        pb::ServerInfo {
            max_device_slots: self.max_device_slots,
            device_slot_state: pb::DeviceSlotState::from(self.slot_state).into(),
            encrypted_shared_device_data: self.encrypted_shared_device_data.clone(),
            current_time: self.current_time_ms,
            reflection_queue_length: self.reflection_queue_length,
        }
        .encode_to_vec()
    }

    pub(super) fn decode(body: &[u8]) -> Result<Self, BadPayload> {
        let info = pb::ServerInfo::decode(body)?;
        Ok(Self {
            max_device_slots: info.max_device_slots,
            slot_state: SlotState::decode(info.device_slot_state, "device_slot_state")?,
            encrypted_shared_device_data: info.encrypted_shared_device_data,
            current_time_ms: info.current_time,
            reflection_queue_length: info.reflection_queue_length,
        })
    }
}

impl SlotState {
    fn decode(number: i32, field: &'static str) -> Result<Self, BadPayload> {
        match number.try_into() {
            Ok(pb::DeviceSlotState::New) => Ok(Self::New),
            Ok(pb::DeviceSlotState::Existing) => Ok(Self::Existing),
            Err(_) => Err(BadPayload::Enum(field)),
        }
    }
}

impl From<SlotState> for pb::DeviceSlotState {
    fn from(state: SlotState) -> Self {
        match state {
            SlotState::New => Self::New,
            SlotState::Existing => Self::Existing,
        }
    }
}

impl SlotExpiration {
    pub(super) fn decode(number: i32) -> Result<Self, BadPayload> {
        match number.try_into() {
            Ok(pb::DeviceSlotExpirationPolicy::Volatile) => Ok(Self::Volatile),
            Ok(pb::DeviceSlotExpirationPolicy::Persistent) => Ok(Self::Persistent),
            Err(_) => Err(BadPayload::Enum("device_slot_expiration_policy")),
        }
    }
}

impl From<SlotExpiration> for pb::DeviceSlotExpirationPolicy {
    fn from(policy: SlotExpiration) -> Self {
        match policy {
            SlotExpiration::Volatile => Self::Volatile,
            SlotExpiration::Persistent => Self::Persistent,
        }
    }
}
