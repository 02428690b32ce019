//! What is decided about a device group. Pure.

pub mod ranges;
pub mod record;
