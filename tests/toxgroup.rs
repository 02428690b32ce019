//! Tox group chat: the vectors, groups on virtual time, and the hub on real sockets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_debug_implementations,
    unreachable_pub,
    reason = "a test may panic"
)]

mod common;

#[path = "toxgroup/classic.rs"]
mod classic;
#[path = "toxgroup/client.rs"]
mod client;
#[path = "toxgroup/hub.rs"]
mod hub;
#[path = "toxgroup/signed.rs"]
mod signed;
#[path = "toxgroup/simulation.rs"]
mod simulation;
#[path = "toxgroup/vectors.rs"]
mod vectors;
#[path = "toxgroup/world.rs"]
mod world;
