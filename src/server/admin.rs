//! The admin door: whether the process lives, and whether it takes devices.

use std::sync::Arc;

use axum::extract;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;

use super::routes::Public;
use crate::hub::Hub;

#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) hub: Hub,
    pub(super) public: Arc<Public>,
    pub(super) durability: &'static str,
}

/// The answer of `/readyz`.
#[derive(Debug, Serialize)]
struct Ready {
    ready: bool,
    /// What an acknowledgement survives.
    durability: &'static str,
    connections: usize,
    groups_awake: usize,
    version: &'static str,
}

pub(super) fn router(state: State) -> Router {
    Router::new().route("/livez", get(async || "alive\n")).route("/readyz", get(readyz)).with_state(state)
}

async fn readyz(extract::State(state): extract::State<State>) -> (StatusCode, Json<Ready>) {
    let ready = !state.public.gate().is_closed();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = Ready {
        ready,
        durability: state.durability,
        connections: state.public.connections(),
        groups_awake: state.hub.awake(),
        version: env!("CARGO_PKG_VERSION"),
    };
    (status, Json(body))
}
