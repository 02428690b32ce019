//! What a group waits for, as data. One sleep is armed for the earliest; looking early or twice does nothing.

use std::time::Duration;

use super::limits::Limits;
use super::slots::Slot;
use crate::time::Now;
use crate::wire::d2m::{DeviceId, SlotExpiration};

/// Wall clocks jump: a deadline on one is looked at again after this long at the latest.
const WALL_CLOCK_RECHECK: Duration = Duration::from_secs(60);

/// Something that happens by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deadline {
    /// The holder of the lock has to be done. Monotonic: a restart ends every transaction anyway.
    TransactionTtl,
    /// An absent device loses its slot. Wall clock, since it survives restarts.
    SlotExpiry(DeviceId),
    /// Acknowledgements have to be written. Monotonic.
    Flush,
}

/// When an absent device loses its slot, in milliseconds since the Unix epoch.
pub(super) fn slot_expires_ms(slot: &Slot, limits: &Limits) -> Option<u64> {
    if slot.seat.is_some() {
        return None;
    }
    let ttl = match slot.record.expiration {
        SlotExpiration::Volatile => limits.volatile_slot_ttl,
        SlotExpiration::Persistent => limits.persistent_slot_ttl?,
    };
    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    Some(slot.record.last_disconnect_ms.saturating_add(ttl_ms))
}

/// A wall-clock time as a time to wake up on the monotonic clock.
pub(super) fn wake_for(now: Now, wall_ms: u64) -> Duration {
    let wait = Duration::from_millis(wall_ms.saturating_sub(now.wall_ms)).min(WALL_CLOCK_RECHECK);
    now.monotonic.saturating_add(wait)
}
