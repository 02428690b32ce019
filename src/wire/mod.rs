//! Bytes and their meaning, nothing else: no sockets, no clocks, no keys.
//!
//! | file | holds |
//! |---|---|
//! | [`bytes`] | a reader that cannot run over the end, for hand-packed layouts |
//! | [`delimit`] | cutting a byte stream into self-delimiting units |
//! | [`haproxy`] | the PROXY protocol's header, which a TCP proxy writes before anything else is said |
//! | [`chatos`] | the outside of ChatOs: packets without a length |
//! | [`csp`] | the outside of the Chat Server Protocol: 80, 32, then length-prefixed frames |
//! | [`skynet`] | the outside of Skynet: packets behind their length |
//! | [`toxgroup`] | the outside of Tox group chat on a stream: packets behind their length |
//! | `numbers` | open sets of named numbers |
//! | [`d2m`] | the Device-to-Mediator protocol |

pub mod bytes;
pub mod chatos;
pub mod csp;
pub mod d2m;
pub mod delimit;
pub mod haproxy;
pub(crate) mod numbers;
pub mod skynet;
pub mod toxgroup;
