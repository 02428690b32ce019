//! Devices, shared data, transactions: the protobuf payloads after the handshake.

use std::collections::BTreeMap;

use prost::Message as _;

use super::hello::SlotExpiration;
use super::id::DeviceId;
use super::{BadPayload, ENCRYPTED_SCOPE_MAX, ENCRYPTED_SHARED_DEVICE_DATA_MAX, pb};

/// One device as the others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AugmentedDeviceInfo {
    /// Opaque; as given at its last login.
    pub encrypted_device_info: Vec<u8>,
    /// Whether it is here.
    pub connection: ConnectionState,
    /// What becomes of its slot after it disconnected.
    pub slot_expiration: SlotExpiration,
}

/// Whether a device is here. Always written, even if the time is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionState {
    /// Milliseconds since the Unix epoch.
    ConnectedSince(u64),
    /// Milliseconds since the Unix epoch.
    LastDisconnectAt(u64),
}

/// All devices of a group, in the order of their ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicesInfo(pub BTreeMap<DeviceId, AugmentedDeviceInfo>);

/// Whose transaction it is, and its opaque scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionHolder {
    /// The device that holds, or held, the lock.
    pub device_id: DeviceId,
    /// As given when it began.
    pub encrypted_scope: Vec<u8>,
}

/// A device asks for the lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BeginTransaction {
    /// Opaque; shown to devices that are rejected, and when it ends.
    pub encrypted_scope: Vec<u8>,
    /// How long it wants to hold the lock; zero asks for the maximum.
    pub ttl_s: u32,
}

impl DevicesInfo {
    pub(super) fn encode(&self) -> Vec<u8> {
        use pb::devices_info::augmented_device_info::ConnectionState as Pb;
        let augment = |info: &AugmentedDeviceInfo| pb::devices_info::AugmentedDeviceInfo {
            encrypted_device_info: info.encrypted_device_info.clone(),
            device_slot_expiration_policy: pb::DeviceSlotExpirationPolicy::from(info.slot_expiration).into(),
            connection_state: Some(match info.connection {
                ConnectionState::ConnectedSince(ms) => Pb::ConnectedSince(ms),
                ConnectionState::LastDisconnectAt(ms) => Pb::LastDisconnectAt(ms),
            }),
        };
        // prost leaves out map keys that are zero, which every decoder reads as zero.
        let augmented_device_info = self.0.iter().map(|(id, info)| (id.0, augment(info))).collect();
        pb::DevicesInfo { augmented_device_info }.encode_to_vec()
    }

    pub(super) fn decode(body: &[u8]) -> Result<Self, BadPayload> {
        use pb::devices_info::augmented_device_info::ConnectionState as Pb;
        let info = pb::DevicesInfo::decode(body)?;
        let device = |(id, info): (u64, pb::devices_info::AugmentedDeviceInfo)| {
            let connection = match info.connection_state {
                Some(Pb::ConnectedSince(ms)) => ConnectionState::ConnectedSince(ms),
                Some(Pb::LastDisconnectAt(ms)) => ConnectionState::LastDisconnectAt(ms),
                None => return Err(BadPayload::Missing("connection_state")),
            };
            let slot_expiration = SlotExpiration::decode(info.device_slot_expiration_policy)?;
            let encrypted_device_info = info.encrypted_device_info;
            Ok((DeviceId(id), AugmentedDeviceInfo { encrypted_device_info, connection, slot_expiration }))
        };
        Ok(Self(info.augmented_device_info.into_iter().map(device).collect::<Result<_, _>>()?))
    }
}

impl TransactionHolder {
    /// TransactionRejected and TransactionEnded have the same fields under the same numbers.
    pub(super) fn encode(&self) -> Vec<u8> {
        pb::TransactionRejected { device_id: self.device_id.0, encrypted_scope: self.encrypted_scope.clone() }
            .encode_to_vec()
    }

    pub(super) fn decode(body: &[u8]) -> Result<Self, BadPayload> {
        let holder = pb::TransactionRejected::decode(body)?;
        Ok(Self { device_id: DeviceId(holder.device_id), encrypted_scope: holder.encrypted_scope })
    }
}

impl BeginTransaction {
    pub(super) fn encode(&self) -> Vec<u8> {
        pb::BeginTransaction { encrypted_scope: self.encrypted_scope.clone(), ttl: self.ttl_s }.encode_to_vec()
    }

    pub(super) fn decode(body: &[u8]) -> Result<Self, BadPayload> {
        let begin = pb::BeginTransaction::decode(body)?;
        if begin.encrypted_scope.len() > ENCRYPTED_SCOPE_MAX {
            return Err(BadPayload::Length("encrypted_scope"));
        }
        Ok(Self { encrypted_scope: begin.encrypted_scope, ttl_s: begin.ttl })
    }
}

/// DropDevice and DropDeviceAck have the same field under the same number.
pub(super) fn encode_device(id: DeviceId) -> Vec<u8> {
    pb::DropDevice { device_id: id.0 }.encode_to_vec()
}

pub(super) fn decode_device(body: &[u8]) -> Result<DeviceId, BadPayload> {
    Ok(DeviceId(pb::DropDevice::decode(body)?.device_id))
}

pub(super) fn encode_shared_device_data(data: &[u8]) -> Vec<u8> {
    pb::SetSharedDeviceData { encrypted_shared_device_data: data.to_vec() }.encode_to_vec()
}

pub(super) fn decode_shared_device_data(body: &[u8]) -> Result<Vec<u8>, BadPayload> {
    let data = pb::SetSharedDeviceData::decode(body)?.encrypted_shared_device_data;
    if data.len() > ENCRYPTED_SHARED_DEVICE_DATA_MAX {
        return Err(BadPayload::Length("encrypted_shared_device_data"));
    }
    Ok(data)
}
