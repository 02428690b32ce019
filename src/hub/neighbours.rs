//! The way to groups that other nodes have.
//!
//! The hub does not know how nodes reach each other. What it asks of whoever does is that a seat there be like a seat here:
//! the same things are said, in the same order, and as much may be on its way as the group counts for a device of its own. What a
//! device says waits at its own node when the group is busy; what the group says was counted before it was sent
//! ([`Said::Written`](super::Said::Written) gives it back), so a link has to hold no more of a seat than a line does.

use futures_util::future::BoxFuture;

use super::admission::Admitted;
use super::seat::FarSeat;
use crate::store::Owner;

/// Reaches other nodes.
pub trait Neighbours: Send + Sync + std::fmt::Debug {
    /// Seats a device at the node that has its group. When this returns `Ok`, that node's hub has answered its join, and goes on
    /// with the seat by `far` until one of them ends it. Ends it with [`Outgoing::Moved`](super::Outgoing::Moved) when the node, or the way to it, is
    /// lost.
    fn seat(&self, owner: Owner, admitted: Admitted, far: FarSeat) -> BoxFuture<'_, Result<(), NeighbourError>>;
}

/// Why another node gave no seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NeighbourError {
    /// It was asked, and does not have the group any more, or is about to give it up.
    #[error("the node does not have the group any more")]
    Moved,
    /// It could not be asked.
    #[error("the node cannot be reached")]
    Unreachable,
    /// It was asked, and has not answered in time, or could not seat anybody. Its group is where it should be all the same.
    #[error("the node did not seat the device")]
    Failed,
}
