//! What browsers are served: files that are part of the program, and nothing from elsewhere.

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// A file of the page.
#[derive(Debug, Clone, Copy)]
struct Asset {
    /// Below `/assets/`; the page itself is at `/`.
    name: &'static str,
    kind: &'static str,
    bytes: &'static [u8],
}

/// The page, at `/`.
const PAGE: Asset =
    Asset { name: "index.html", kind: "text/html; charset=utf-8", bytes: include_bytes!("../web/index.html") };

/// What it loads. The script and the licences are made of the sources in `web/src` and of packages: `npm ci && npm run build`.
const ASSETS: &[Asset] = &[
    Asset { name: "app.js", kind: "text/javascript; charset=utf-8", bytes: include_bytes!("../web/dist/app.js") },
    Asset { name: "app.css", kind: "text/css; charset=utf-8", bytes: include_bytes!("../web/app.css") },
    Asset { name: "icon.svg", kind: "image/svg+xml", bytes: include_bytes!("../web/icon.svg") },
    Asset {
        name: "licences.txt",
        kind: "text/plain; charset=utf-8",
        bytes: include_bytes!("../web/dist/licences.txt"),
    },
];

/// Scripts and everything else come from here; connections go here; nothing is done by what stands in the page.
const HEADERS: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; \
         connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::CACHE_CONTROL, "no-cache"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

/// `/` and `/assets/*`.
pub(super) fn router() -> Router {
    Router::new().route("/", get(async || sent(PAGE))).route("/assets/{name}", get(asset))
}

async fn asset(Path(name): Path<String>) -> Response {
    let found = ASSETS.iter().find(|asset| asset.name == name).copied();
    found.map_or_else(|| StatusCode::NOT_FOUND.into_response(), |asset| sent(asset).into_response())
}

fn sent(asset: Asset) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, asset.kind)], HEADERS, asset.bytes)
}
