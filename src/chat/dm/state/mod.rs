//! What is decided, purely: who stands how to whom, what names there can be, who is here and in which call, who may try again.

mod between;
mod calls;
mod lockout;
pub mod names;
mod presence;
mod reads;

pub use between::{Between, Step};
pub use calls::Calls;
pub use lockout::{Failures, Lockout, LockoutLimits};
pub use presence::Presence;
pub use reads::Reads;

use crate::chat::dm::wire::Status;

/// A user, as the store knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(pub i64);

/// A connection: not its user, who may have several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// What others see of somebody who set `stored` (spec 2.8).
#[must_use]
pub const fn effective(stored: Status, is_here: bool) -> Status {
    if is_here { stored } else { Status::Offline }
}

/// Pending schedules of one user in one DM, at most.
pub const SCHEDULES_MAX: i64 = 50;
/// Reactions of one user to one message, at most.
pub const REACTIONS_MAX: i64 = 20;
/// DMs of one user, at most.
pub const DMS_MAX: i64 = 2_000;
/// Invitations that wait for one user, at most.
pub const INBOX_MAX: i64 = 1_000;
/// Logged-in connections of one user, at most.
pub const CONNECTIONS_MAX: usize = 20;
/// Pinned messages of one DM, at most: they are asked for all at once, and there are clients that take no frame of 16 MiB.
pub const PINNED_MAX: i64 = 100;
