//! What operators are told: the one place where facts from groups become log lines. A group appears as a short hash, a
//! message as its size.

use crate::group::{Farewell, Notice};
use crate::wire::d2m::DeviceGroupId;

pub(super) fn tell(group: DeviceGroupId, notice: Notice) {
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
        Notice::TransactionAborted { device, held_ms, why } => {
            tracing::info!(%group, device = %group.log_device(device), held_ms, ?why, "transaction aborted");
        }
    }
}
