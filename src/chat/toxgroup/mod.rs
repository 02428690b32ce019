//! Tox group chat: the groups of 2013 as their document and programs had them, and signed groups of this project's own.
//!
//! The room is a *hub*: a member of each of its groups that never leaves. What a peer sends in a datagram, a client on TCP sends in a
//! frame and one on WebSocket in a message: the same packets, boxed for the hub, so no carrier has a protocol of its own. People
//! without group code are *thin users*, for whom the hub holds members with keys.
//!
//! **Served**: everything of the specification's chapters 2 to 6 with the decisions of chapter 11; signed groups (9); UDP, TCP,
//! WebSocket and thin users (10).
//!
//! **Left out**: invitations over a Tox friend session (packets 144 and 145), which need a Tox messenger; additional hub
//! identities that listen near far clusters of old programs (spec 10.1 names them as a mitigation, if wanted).
//!
//! | file | holds |
//! |---|---|
//! | [`wire`] | bytes to packets, for hubs and peers |
//! | [`state`] | what is decided (pure): one group, as a hub or as a peer |
//! | [`store`] | what a hub remembers |
//! | [`serve`] | the carriers, thin users, and the task that owns the groups |

pub mod serve;
pub mod state;
pub mod store;
pub mod wire;

pub use serve::{Config, Doors, Running, StartError, start_on};
