//! ChatOs: nicknames, one public room, private messages, and private connections as pipes through the server.
//!
//! Plain TCP clients and the mediator's proxied connections are the same to it: one connection, one nickname. What makes
//! many devices out of that is the client (`tools/chatos`), not this room.
//!
//! **Served**: opcodes 0 to 11 as the specification has them, with the decisions D-01 to D-44; TLS where it is configured.
//!
//! **Left out**: files (the seed plans them and has no packet), error codes (there are none), anything to do with presence
//! but the departure of somebody with whom there is a private relation.
//!
//! | file | holds |
//! |---|---|
//! | [`wire`] | octets to packets, for the server and for clients |
//! | [`state`] | what is decided (pure) |
//! | [`serve`] | the listener, one task per connection, and the task that decides |
//!
//! Nothing is kept, so there is no store: a nickname lives as long as its connection (spec 6.1).
//!
//! Devices of a group that share a nickname tell each other what was said in envelopes of their own, of which the room knows
//! nothing: their format stands in `tools/chatos/devices.rs`.

pub mod serve;
pub mod state;
pub mod wire;

pub use serve::{Config, Running, StartError, start, start_on};
