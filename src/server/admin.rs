//! The admin door: for operators, and for what watches over the process.

use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::middleware;
use tokio_util::sync::CancellationToken;

use super::backup::Backups;
use super::guard::{self, Guard};
use super::health::{self, Health};
use super::live::Live;
use super::routes::Public;
use super::{api, dashboard};
use crate::config::Secret;
use crate::hub::Hub;
use crate::time::Clock;

/// What operators are given.
#[derive(Debug, Default)]
pub struct AdminDoor {
    /// Asked for from everybody but supervisors; without one the door has to be on a loopback address.
    pub token: Option<Secret>,
    /// Cancelled when an operator wants the mediator to end in order.
    pub drain: CancellationToken,
    /// The certificate of the public door.
    pub certificate: CertificateSource,
    /// Makes backups; `None` where nothing is kept.
    pub backups: Option<Backups>,
}

/// The certificate of the public door, which may be another one tomorrow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Its public key's SHA-256 in base64.
    pub pin: String,
    /// Who it is for.
    pub names: Vec<String>,
    /// When it expires, in seconds of Unix time.
    pub not_after_s: u64,
}

/// Tells which certificate is presented now, if any.
#[derive(Clone)]
pub struct CertificateSource(Arc<dyn Fn() -> Option<CertificateInfo> + Send + Sync>);

impl CertificateSource {
    /// Asked once a second at most.
    pub fn new(source: impl Fn() -> Option<CertificateInfo> + Send + Sync + 'static) -> Self {
        Self(Arc::new(source))
    }

    pub(super) fn now(&self) -> Option<CertificateInfo> {
        (self.0)()
    }
}

/// A door without TLS.
impl Default for CertificateSource {
    fn default() -> Self {
        Self::new(|| None)
    }
}

impl fmt::Debug for CertificateSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CertificateSource({:?})", self.now())
    }
}

/// What the pages share.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) hub: Hub,
    pub(super) public: Arc<Public>,
    pub(super) health: Health,
    pub(super) clock: Clock,
    pub(super) drain: CancellationToken,
    pub(super) backups: Option<Backups>,
    pub(super) certificate: CertificateSource,
    pub(super) live: Live,
    /// Cancelled when this door closes, which is after all devices are gone.
    pub(super) closing: CancellationToken,
}

pub(super) fn router(state: State, token: Option<Secret>) -> Router {
    let health = health::router(state.health.clone(), state.hub.clone(), Arc::clone(&state.public));
    Router::new()
        .merge(api::router())
        .merge(dashboard::router())
        .with_state(state)
        .merge(health)
        .layer(middleware::from_fn_with_state(Guard::new(token), guard::check))
}
