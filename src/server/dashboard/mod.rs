//! The dashboard: one page for people, which reads `/events` and changes nothing.
//!
//! Page, style and script are files of their own beside this one and part of the binary; they load nothing from anywhere else,
//! which the content security policy enforces. What is shown is made in `live`; the script puts it where it belongs, as
//! text, never as markup.

use axum::Router;
use axum::extract::State as Extract;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use super::admin::State;
use super::live::TooManyViewers;

const PAGE: &str = include_str!("index.html");
const STYLE: &str = include_str!("dashboard.css");
const SCRIPT: &str = include_str!("dashboard.js");
const ICON: &str = include_str!("icon.svg");

/// Only what comes from this door, no inline code, in nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// With every page.
const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    // The page and its server are of one version, or the one does not understand the other.
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

pub(super) fn router() -> Router<State> {
    Router::new()
        .route("/", get(async || file("text/html; charset=utf-8", PAGE)))
        .route("/dashboard.css", get(async || file("text/css; charset=utf-8", STYLE)))
        .route("/dashboard.js", get(async || file("text/javascript; charset=utf-8", SCRIPT)))
        .route("/icon.svg", get(async || file("image/svg+xml", ICON)))
        .route("/events", get(events))
}

fn file(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], HEADERS, text).into_response()
}

async fn events(Extract(state): Extract<State>) -> Response {
    match state.live.watch(&state) {
        Ok(events) => (HEADERS, Sse::new(events).keep_alive(KeepAlive::default())).into_response(),
        Err(TooManyViewers) => {
            let later = [(header::RETRY_AFTER, "10")];
            (StatusCode::SERVICE_UNAVAILABLE, later, "too many are looking at the dashboard already\n").into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_that_its_policy_forbids() {
        for (tag, allowed) in [("<script", "<script src=\"dashboard.js\" defer></script>"), ("<style", "")] {
            for at in PAGE.match_indices(tag) {
                assert!(!allowed.is_empty() && PAGE[at.0..].starts_with(allowed), "{tag} inline");
            }
        }
        for attribute in [" style=", " onclick=", " onload=", "javascript:", "http:"] {
            assert!(!PAGE.contains(attribute), "{attribute}");
        }
        for (name, text) in [("script", SCRIPT), ("style", STYLE)] {
            assert!(!text.contains("https:") && !text.contains("@import") && !text.contains("url("), "{name}");
        }
        for sink in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "setAttribute(\"style\""]
        {
            assert!(!SCRIPT.contains(sink), "{sink}");
        }
    }
}
