//! End-to-end encrypted direct messages over Socket.IO: accounts, friends, direct messages of two and of groups.
//!
//! What is said is sealed on the device that says it. Whoever serves it sees names, times and lengths, checks signatures
//! and keys, and keeps the rest as it comes.
//!
//! **Served**: all 33 events, the 14 notifications, messages that are sent and deleted at their time, keys of new DMs until
//! somebody has them, signalling of calls. **Left out**: the calls themselves, which go from one to the other.
//!
//! | file | holds |
//! |---|---|
//! | [`crypto`] | keys, agreement, trees, seals: what server and clients compute |
//! | [`wire`] | what is said: requests, answers, notifications |
//! | [`state`] | what is decided (pure) |
//! | [`store`] | what is remembered |
//! | [`serve`] | HTTP and Socket.IO, a worker per connection, and the task that decides |

pub mod crypto;
pub mod serve;
pub mod state;
pub mod store;
pub mod wire;

pub use serve::{Beat, Config, PORT, Rates, Running, Settings, StartError, start_on};
