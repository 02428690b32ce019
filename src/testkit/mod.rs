//! A mediator inside a test, and clients that say what they expect (feature `testkit`).
//!
//! ```
//! use heliostat::testkit::TestServer;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let server = TestServer::start().await;
//! let family = server.group();
//! let mut phone = family.joins(1).await;
//! let mut tablet = family.joins(2).await;
//!
//! let id = phone.reflect(b"hello").await;
//! phone.expect_leader().await;
//! let ack = phone.expect_reflect_ack(id).await;
//! let message = tablet.expect_reflected().await;
//! assert_eq!(message.envelope(), b"hello");
//! assert_eq!(message.timestamp_ms(), ack.timestamp_ms);
//! tablet.ack(&message).await;
//!
//! // The same device once more: the older connection is told to go.
//! let _again = family.returns(2).await;
//! tablet.expect_close(4112).await;
//! # }
//! ```
//!
//! An expectation is about **the next payload**, because order is part of the protocol; only proxied bytes have a lane of
//! their own. One that is not met panics with the place of the test, what came instead, and everything the client has said
//! and heard. That *nothing* comes is shown by asking something and seeing the answer come first
//! ([`TestClient::expect_silence`]), never by waiting.
//!
//! # Virtual time
//!
//! In a test whose time stands still, with [`Builder::virtual_time`], two minutes of silence or ten of a transaction pass
//! at once. Clients and mediator talk through memory then, since a socket of the operating system waits in real time.
//!
//! ```
//! use std::time::Duration;
//! use heliostat::testkit::TestServer;
//!
//! # fn main() {
//! #[tokio::test(start_paused = true)]
//! # async fn not_seen() {}
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! # tokio::time::pause();
//! async fn a_device_that_says_nothing_is_closed() {
//!     let server = TestServer::builder().virtual_time().start().await;
//!     let mut phone = server.group().joins(1).await;
//!     // A client answers pings when it reads. This one does not read.
//!     tokio::time::sleep(Duration::from_secs(121)).await;
//!     phone.expect_close(4013).await;
//! }
//! # a_device_that_says_nothing_is_closed().await;
//! # });
//! # }
//! ```
//!
//! | file | holds |
//! |---|---|
//! | [`server`] | the mediator and what it is made of |
//! | [`client`] | what a client says and expects |
//!
//! For other languages there is the binary: `heliostat serve --port 0 --print-port --exit-with-parent` (docs/clients.md).

#![expect(clippy::panic, reason = "an expectation that is not met fails a test")]

pub mod client;
pub mod server;

pub use client::TestClient;
pub use server::{Builder, TestGroup, TestServer};
