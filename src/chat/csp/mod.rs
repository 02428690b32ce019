//! The embedded CSP chat server.

pub mod wire;
