//! Heliostat lets one chat account live on many devices.
//!
//! The library, from the ground up. Arrows point down only; `tests/tidy.rs` holds them to it.
//!
//! | floor | modules | what lives there |
//! |---|---|---|
//! | 5 | [`cli`] [`config`] [`logging`] [`server`] [`tools`] | doors: command line, sockets, admin pages, tools |
//! | 4 | [`session`] [`upstream`] [`cluster`] [`client`] | one device connection's life; the pipe to the chat server; the way to other nodes; the device side |
//! | 3 | [`hub`] | who is awake; decide, keep, speak |
//! | 2 | [`store`] | what is promised to disk |
//! | 1 | [`group`] | what is decided; pure |
//! | 0 | [`wire`] [`crypto`] [`time`] [`net`] [`files`] [`log`] [`metrics`] [`capture`] | bytes, keys, clocks, socket and file plumbing, what operators see, what was recorded |
//!
//! The feature `testkit` adds `testkit` to the doors: a mediator inside a test.
//!
//! [`chat`] is a wing of its own on floor 0: chat servers that can stand behind the mediator, which does not know them.

pub mod capture;
pub mod chat;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod config;
pub mod crypto;
pub mod files;
pub mod group;
pub mod hub;
pub mod log;
pub mod logging;
pub mod metrics;
pub mod net;
pub mod server;
pub mod session;
pub mod store;
#[cfg(feature = "testkit")]
pub mod testkit;
pub mod time;
pub mod tools;
#[cfg(feature = "otel")]
pub mod traces;
pub mod upstream;
pub mod wire;
