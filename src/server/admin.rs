//! The admin door: for operators, and for what watches over the process.

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
use crate::capture::Captures;
use crate::config::Secret;
use crate::hub::Hub;
use crate::net::tls::Tls;
use crate::time::Clock;

/// What the pages share.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) hub: Hub,
    pub(super) public: Arc<Public>,
    pub(super) health: Health,
    pub(super) clock: Clock,
    pub(super) drain: CancellationToken,
    pub(super) backups: Option<Backups>,
    /// Nothing where groups may not be recorded.
    pub(super) captures: Option<Captures>,
    /// Presents the certificate of the public door.
    pub(super) tls: Option<Tls>,
    pub(super) live: Live,
    /// Cancelled when this door closes, which is after all devices are gone.
    pub(super) closing: CancellationToken,
}

pub(super) fn router(state: State, token: Option<Secret>) -> Router {
    let health = health::router(state.health.clone(), state.hub.clone(), Arc::clone(&state.public));
    let guard = Guard::new(token, state.clock);
    Router::new()
        .merge(api::router())
        .merge(dashboard::router())
        .with_state(state)
        .merge(health)
        .layer(middleware::from_fn_with_state(guard, guard::check))
}
