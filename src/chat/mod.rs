//! Chat servers that ship in the binary: each a small building on floor 0 alone, unknown to the mediator.

pub mod chatos;
pub mod csp;
pub mod dm;
pub mod skynet;
pub mod sql;
pub mod toxgroup;
