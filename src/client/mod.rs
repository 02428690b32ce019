//! The device side, as a library: what this crate's tools and tests use, and other people's harnesses may.
//!
//! ```no_run
//! # async fn tour() -> Result<(), Box<dyn std::error::Error>> {
//! use heliostat::client::{Device, DeviceConfig, GroupKey, Mediator, Trust};
//! use heliostat::wire::d2m::{DeviceId, ReflectFlags, ServerGroup, ToDevice};
//!
//! let mediator = Mediator::new("wss://localhost:8443", &Trust::CaFile("heliostat-data/tls/dev-ca.pem".into()))?;
//! let key = GroupKey::generate();
//! let group = ServerGroup::new("a0").ok_or("not a server group")?;
//! let phone = DeviceConfig::new(key.clone(), group.clone(), DeviceId(1));
//! let tablet = DeviceConfig::new(key.clone(), group, DeviceId(2));
//!
//! let mut phone = Device::connect(&mediator, &phone).await?;
//! let mut tablet = Device::connect(&mediator, &tablet).await?;
//! phone.reflect_and_wait(&key.seal_envelope(b"hello"), ReflectFlags::default()).await?;
//! if let ToDevice::Reflected(reflected) = tablet.wait_for(|p| matches!(p, ToDevice::Reflected(_))).await? {
//!     assert_eq!(key.open_envelope(reflected.envelope())?, b"hello");
//!     tablet.ack(reflected.id()).await?;
//! }
//! # Ok(()) }
//! ```
//!
//! | file | holds |
//! |---|---|
//! | [`keys`] | the device group key and what is sealed with it |
//! | [`connect`] | where the mediator is, and how the socket gets there |
//! | [`tls`] | whom to trust: the system, a CA, or one public key |
//! | [`raw`] | one WebSocket, one payload after the other, nothing done behind the caller's back: for tests that misbehave |
//! | [`device`] | a device that has been admitted: two halves for load, one whole for stories |
//! | [`steady`] | a device that stays connected and does everything right |
//! | [`csp`] | the chat server's protocol, over [`proxy`] or over TCP |
//! | [`proxy`] | the chat server's byte stream inside proxy payloads |

pub mod connect;
pub mod csp;
pub mod device;
pub mod keys;
pub mod proxy;
pub mod raw;
pub mod steady;
pub mod tls;

pub use connect::{BadMediator, ConnectError, Mediator};
pub use device::{Begun, Device, DeviceConfig, Receiver, Sender};
pub use keys::GroupKey;
pub use proxy::ProxyStream;
pub use raw::{Ended, RawConnection};
pub use steady::Steady;
pub use tls::Trust;
