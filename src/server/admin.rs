//! The admin door: for operators, and for what watches over the process.

use std::sync::Arc;

use axum::Router;

use super::health::{self, Health};
use super::routes::Public;
use crate::hub::Hub;

pub(super) fn router(health: Health, hub: Hub, public: Arc<Public>) -> Router {
    health::router(health, hub, public)
}
