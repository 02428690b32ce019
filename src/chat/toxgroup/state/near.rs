//! Who is near whom, and which peers are kept as neighbours (spec 5.1, 5.3).
//!
//! The old programs keep the six nearest. That splits groups: with random keys, of a hundred members hardly any group hangs
//! together. So two of the six are drawn at random, those who keep us are kept in return, and a hub is never given up.

use super::ClientId;

/// Nearest peers that are kept.
pub(super) const NEAR_MAX: usize = 4;
/// Peers kept by chance.
pub(super) const RANDOM_MAX: usize = 2;
/// Peers kept because they keep us.
pub(super) const REVERSE_MAX: usize = 12;
/// Hubs that are kept whatever else is.
pub(super) const ANCHORS_MAX: usize = 2;

/// How far two keys are from each other: compared from the first byte on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Distance(pub [u8; 32]);

impl Distance {
    /// Byte by byte the difference of the two as signed numbers; not a circle.
    #[must_use]
    pub fn between(a: &ClientId, b: &ClientId) -> Self {
        let mut out = [0; 32];
        for (out, (a, b)) in out.iter_mut().zip(a.0.iter().zip(&b.0)) {
            *out = a.cast_signed().abs_diff(b.cast_signed());
        }
        Self(out)
    }
}

/// Why somebody is a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Slot {
    /// A hub we came by.
    Anchor,
    /// One of the nearest. To a hub, everybody is.
    Near,
    /// By chance.
    Random,
    /// It keeps us.
    Reverse,
}
