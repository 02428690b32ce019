//! Tox group chat.

pub mod state;
pub mod wire;
