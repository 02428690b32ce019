//! Heliostat lets one chat account live on many devices.
//!
//! The library, from the ground up. Arrows point down only; `tests/tidy.rs` holds them to it.
//!
//! | floor | modules | what lives there |
//! |---|---|---|
//! | 5 | [`tools`] | doors: what people run beside a server |
//! | 4 | [`client`] | the device side |
//! | 2 | [`store`] | what is promised to disk |
//! | 1 | [`group`] | what is decided |
//! | 0 | [`wire`] [`crypto`] [`time`] | bytes, keys, clocks |

pub mod chat;
pub mod client;
pub mod crypto;
pub mod group;
pub mod store;
pub mod time;
pub mod tools;
pub mod wire;
