//! `heliostat tox`: a client for Tox groups.

pub mod peer;
pub mod thin;
