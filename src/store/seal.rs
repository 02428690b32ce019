//! Seals: eight bytes over what a row says and where it belongs, so that neither a flipped bit nor a row in the wrong place
//! goes unnoticed.
//!
//! Where a row belongs is a group's number in SQLite and its id in PostgreSQL, which knows no numbers.

use super::StoreError;
use crate::crypto::kdf;
use crate::group::record::{GroupRecord, SlotRecord};
use crate::wire::d2m::{DeviceGroupId, DeviceId, SlotExpiration};

/// As it is kept beside the row.
pub(super) type Seal = [u8; 8];

/// Of a group, `no` its number where groups have one.
pub(super) fn group(no: i64, id: DeviceGroupId, record: &GroupRecord) -> Seal {
    seal(
        b"group",
        &[no.cast_unsigned(), record.seq_reserved.0, record.last_timestamp_ms],
        &[id.as_bytes(), &record.encrypted_shared_device_data],
        None,
    )
}

/// Of a slot of the group with this number, or else with this id.
pub(super) fn slot(no: i64, id: Option<DeviceGroupId>, record: &SlotRecord) -> Seal {
    seal(
        b"slot",
        &[
            no.cast_unsigned(),
            record.device.0,
            u64::from(record.expiration == SlotExpiration::Persistent),
            u64::from(record.connected),
            record.last_disconnect_ms,
            record.since.0,
            record.cursor.0,
            record.issued.0,
            record.counted_through.0,
            record.held.pending,
            record.held.entries,
            record.held.bytes,
        ],
        &[&record.encrypted_device_info, &record.acked.to_bytes(), &record.acked_unseen.to_bytes()],
        id,
    )
}

/// Of an entry: `key` is its place in the log of all groups, or its seq in that of the group with this id.
pub(super) fn entry(key: i64, id: Option<DeviceGroupId>, origin: DeviceId, timestamp_ms: u64, envelope: &[u8]) -> Seal {
    seal(b"log", &[key.cast_unsigned(), origin.0, timestamp_ms], &[envelope], id)
}

fn seal(of: &[u8], numbers: &[u64], blobs: &[&[u8]], id: Option<DeviceGroupId>) -> Seal {
    let blobs = || blobs.iter().copied().chain(id.as_ref().map(|id| &id.as_bytes()[..]));
    let len = 8 * numbers.len() + blobs().map(|blob| 8 + blob.len()).sum::<usize>();
    let mut input = Vec::with_capacity(len);
    input.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    for blob in blobs() {
        input.extend_from_slice(&(blob.len() as u64).to_le_bytes());
        input.extend_from_slice(blob);
    }
    let hash = kdf::blake2b(b"", of, b"heliostat-store", &input);
    let [seal @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = *hash.expose();
    seal
}

/// Compares what is kept with what it has to be.
pub(super) fn unbroken(kept: Seal, computed: Seal, what: &str) -> Result<(), StoreError> {
    if kept == computed { Ok(()) } else { Err(StoreError::Damaged(format!("the seal of {what} does not match"))) }
}
