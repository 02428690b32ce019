//! The embedded CSP chat server: makes everything run end to end.
//!
//! The same server serves plain TCP clients, with one device, and the mediator's proxied connections, with many; the
//! mediator only forwards bytes.
//!
//! **Served**: the handshake with its vouch, extensions; messages with every flag through persisted queues;
//! several devices of an identity, of which one gets the messages; echo, idle time-out, close-error, alert; the device
//! cookie; push tokens, kept and handed to a hook.
//!
//! **Left out**: the HTTPS directory and blob server of the real system, push providers, rotation of the server's key
//! (a client may pin two; this server has one), echo requests of the server's own (spec 6: not needed).
//!
//! | file | holds |
//! |---|---|
//! | [`wire`] | bytes to payloads, for the server and for clients |
//! | [`state`] | what is decided (pure) |
//! | [`store`] | what is remembered |
//! | [`serve`] | the listener, one task per connection, and the task that decides |

pub mod serve;
pub mod state;
pub mod store;
pub mod wire;

pub use serve::{Config, LogPush, PushHook, Running, StartError, start, start_on};
