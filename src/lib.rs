//! Heliostat lets one chat account live on many devices.
//!
//! The library, from the ground up. Arrows point down only; `tests/tidy.rs` holds them to it.
//!
//! | floor | modules | what lives there |
//! |---|---|---|
//! | 5 | [`cli`] [`config`] | doors |
//! | 4 | [`upstream`] | the pipe to the chat server |
//! | 2 | [`store`] | what is promised to disk |
//! | 1 | [`group`] | what is decided |
//! | 0 | [`wire`] [`crypto`] [`time`] [`net`] | bytes, keys, clocks, socket plumbing |

pub mod cli;
pub mod config;
pub mod crypto;
pub mod group;
pub mod net;
pub mod store;
pub mod time;
pub mod upstream;
pub mod wire;
