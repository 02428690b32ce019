//! The Skynet v5 chat server: accounts with several devices each, channels, and everything kept until it is fetched.
//!
//! **Served**: all packets; registration with confirmation, sessions, take-over, restore, every type of channel, groups and
//! profiles, receipts, block lists, password and mail changes, deletion, search, device lists, presence; the pages that confirm an
//! address; files beside the messages; waking devices, by Firebase Cloud Messaging with the feature `fcm`.
//!
//! **Left out**: the two servers for files in processes of their own.
//!
//! | file | holds |
//! |---|---|
//! | [`wire`] | bytes to packets, for the server and for clients |
//! | [`state`] | what is decided (pure) |
//! | [`store`] | what is remembered |
//! | [`serve`] | the listener, one task per connection, and the task that decides |

pub mod serve;
pub mod state;
pub mod store;
pub mod wire;

pub use serve::{
    BadMail, Config, Confirmed, FileLimits, Letter, LogMail, LogPush, MailHook, PORT, Post, PushHook, Rates, Reason,
    Running, Settings, StartError, Wake, Way, link, start_on,
};
pub use state::line::Platform;
pub use wire::Release;
