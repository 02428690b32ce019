//! What operators are told: the one place where facts from groups become log lines and numbers. A group and its devices
//! appear as hashes, a message as its size.

use std::time::Duration;

use crate::group::{Abort, Farewell, Notice, SlotRemoval};
use crate::metrics::{self, Aborted, Metrics, Reflect, Removed, Slot};
use crate::wire::d2m::DeviceGroupId;

pub(super) fn tell(group: DeviceGroupId, notice: Notice) {
    count(metrics::get(), notice);
    log(group, notice);
}

/// A group failed while its lock was held, or not: what it decided after it was last kept is not told any more.
pub(super) fn failed(lock_is_held: bool) {
    metrics::get().groups_failed.increment(1);
    lost(lock_is_held);
}

/// The same of a group that goes on at another node.
pub(super) fn lost(lock_is_held: bool) {
    let metrics = metrics::get();
    if lock_is_held {
        metrics.transactions_held.decrement(1.0);
        metrics.transactions_aborted.of(Aborted::GroupFailed).increment(1);
    }
}

/// Whether the lock is held after this; `None` when it changes nothing.
pub(super) const fn lock_is_held_after(notice: &Notice) -> Option<bool> {
    match notice {
        Notice::TransactionBegan(_) => Some(true),
        Notice::TransactionCommitted { .. } | Notice::TransactionAborted { .. } => Some(false),
        _ => None,
    }
}

#[expect(clippy::cast_precision_loss, reason = "a histogram's buckets are coarser by far")]
fn count(metrics: &Metrics, notice: Notice) {
    let seconds = |ms| Duration::from_millis(ms).as_secs_f64();
    match notice {
        Notice::Joined { new, queued, .. } => {
            metrics.joined.of(if new { Slot::New } else { Slot::Existing }).increment(1);
            if new {
                metrics.slots_made.increment(1);
            }
            metrics.queued_at_join.record(queued as f64);
        }
        Notice::Left(_) | Notice::Ended(..) => {}
        Notice::SlotRemoved { why, .. } => {
            let why = match why {
                SlotRemoval::Dropped => Removed::Dropped,
                SlotRemoval::LeastRecent => Removed::LeastRecent,
                SlotRemoval::QueueLimit => Removed::QueueLimit,
                SlotRemoval::Expired => Removed::Expired,
                SlotRemoval::RolledBack => Removed::RolledBack,
            };
            metrics.slots_removed.of(why).increment(1);
        }
        Notice::Reflected { bytes, ephemeral, .. } => {
            metrics.reflects.of(if ephemeral { Reflect::Ephemeral } else { Reflect::Durable }).increment(1);
            metrics.reflect_bytes.increment(bytes as u64);
        }
        Notice::Acked { waited_ms } => {
            metrics.reflected_acks.increment(1);
            metrics.queue_seconds.record(seconds(waited_ms));
        }
        Notice::EphemeralSkipped(messages) => metrics.ephemeral_skipped.increment(messages as u64),
        Notice::Dry(_) => metrics.dried.increment(1),
        Notice::Promoted(_) => metrics.promotions.increment(1),
        Notice::TransactionBegan(_) => {
            metrics.transactions_begun.increment(1);
            metrics.transactions_held.increment(1.0);
        }
        Notice::TransactionRejected(_) => metrics.transactions_rejected.increment(1),
        Notice::TransactionCommitted { held_ms, .. } => {
            metrics.transactions_held.decrement(1.0);
            metrics.transactions_committed.increment(1);
            metrics.transaction_seconds.record(seconds(held_ms));
        }
        Notice::TransactionAborted { held_ms, messages, why, .. } => {
            let why = match why {
                Abort::HolderGone => Aborted::HolderGone,
                Abort::Ttl => Aborted::Ttl,
            };
            metrics.transactions_held.decrement(1.0);
            metrics.transactions_aborted.of(why).increment(1);
            metrics.staged_discarded.increment(messages as u64);
            metrics.transaction_seconds.record(seconds(held_ms));
        }
    }
}

fn log(group: DeviceGroupId, notice: Notice) {
    match notice {
        Notice::Joined { device, new, queued } => {
            tracing::info!(%group, device = %group.log_device(device), new, queued, "device joined");
        }
        Notice::Left(device) => tracing::info!(%group, device = %group.log_device(device), "device left"),
        Notice::Ended(device, why @ (Farewell::UnknownAck | Farewell::CommitWithoutBegin | Farewell::NestedBegin)) => {
            tracing::warn!(%group, device = %group.log_device(device), ?why, "device broke the protocol");
        }
        Notice::Ended(device, why) => {
            tracing::info!(%group, device = %group.log_device(device), ?why, "connection ended by the group")
        }
        Notice::SlotRemoved { device, why, entries } => {
            tracing::info!(%group, device = %group.log_device(device), ?why, entries, "slot removed")
        }
        Notice::Reflected { bytes, ephemeral, receivers } => {
            tracing::trace!(%group, bytes, ephemeral, receivers, "reflected");
        }
        Notice::Acked { waited_ms } => tracing::trace!(%group, waited_ms, "acknowledged"),
        Notice::EphemeralSkipped(messages) => tracing::debug!(%group, messages, "ephemeral messages skipped"),
        Notice::Dry(device) => tracing::debug!(%group, device = %group.log_device(device), "backlog sent"),
        Notice::Promoted(device) => tracing::info!(%group, device = %group.log_device(device), "leader promoted"),
        Notice::TransactionBegan(device) => {
            tracing::debug!(%group, device = %group.log_device(device), "transaction began")
        }
        Notice::TransactionRejected(device) => {
            tracing::debug!(%group, device = %group.log_device(device), "transaction rejected")
        }
        Notice::TransactionCommitted { device, held_ms, messages } => {
            tracing::debug!(%group, device = %group.log_device(device), held_ms, messages, "transaction committed");
        }
        Notice::TransactionAborted { device, held_ms, messages, why } => {
            tracing::info!(%group, device = %group.log_device(device), held_ms, messages, ?why, "transaction aborted");
        }
    }
}
