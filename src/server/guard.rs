//! Who may use the admin door.
//!
//! Without a token the door is on a loopback address (the configuration sees to that), and whoever is on this machine may use
//! it. That includes every web page in a browser on this machine, so a request has to name this machine as its host: a foreign
//! name that was rebound to 127.0.0.1 (DNS rebinding) is refused, and so is a change that a foreign page asks for.
//!
//! With a token every request has to carry it, as `Authorization: Bearer`. A browser cannot be told to send that, so for reading
//! it may also come as the password of `Authorization: Basic`, for which browsers ask by themselves. A browser sends
//! Basic along with requests that foreign pages make, so it is good for no change.
//!
//! `/livez` and `/readyz` are open: supervisors ask for them. Whoever could not ask for anything else is told kinds there, no
//! addresses and no numbers ([`Trusted`]).

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::Peer;
use crate::config::Secret;
use crate::log::Occasionally;
use crate::metrics::{self, Denied};
use crate::time::Clock;

/// Asked for by supervisors.
const OPEN: [&str; 2] = ["/livez", "/readyz"];

/// What the door asks for.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    token: Option<Secret>,
    said: Arc<Occasionally<Denied>>,
}

/// Whether the request may use more of the door than what is open to everybody. Every request that passes carries it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trusted(pub(super) bool);

impl Guard {
    pub(super) fn new(token: Option<Secret>, clock: Clock) -> Self {
        Self { token, said: Arc::new(Occasionally::new(clock)) }
    }

    /// Whether the request passes, and as what.
    fn judge(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Trusted, Denied> {
        match self.trusts(method, uri, headers) {
            Ok(()) => Ok(Trusted(true)),
            Err(_) if OPEN.contains(&uri.path()) => Ok(Trusted(false)),
            Err(denied) => Err(denied),
        }
    }

    fn trusts(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Denied> {
        let changes = !matches!(*method, Method::GET | Method::HEAD);
        let host = uri.authority().map(|authority| authority.as_str()).or_else(|| text(headers, header::HOST.as_str()));
        // With a token there is nothing to be had by rebinding a name: a browser keeps what it knows by the name.
        // Whoever sends no host is no browser.
        if self.token.is_none() && !host.is_none_or(is_this_machine) {
            return Err(Denied::Host);
        }
        if changes && !comes_from_here(headers, host) {
            return Err(Denied::Origin);
        }
        let Some(token) = &self.token else { return Ok(()) };
        let (scheme, offered) =
            text(headers, header::AUTHORIZATION.as_str()).and_then(|text| text.split_once(' ')).ok_or(Denied::Token)?;
        let (matches, basic) = if scheme.eq_ignore_ascii_case("bearer") {
            (token.matches(offered.trim().as_bytes()), false)
        } else if scheme.eq_ignore_ascii_case("basic") {
            let decoded = BASE64.decode(offered.trim()).map_err(|_| Denied::Token)?;
            // Whatever the user is called.
            let password = decoded.iter().position(|&byte| byte == b':').and_then(|at| decoded.get(at + 1..));
            (password.is_some_and(|password| token.matches(password)), true)
        } else {
            (false, false)
        };
        match (matches, basic && changes) {
            (false, _) => Err(Denied::Token),
            (true, true) => Err(Denied::BasicForChange),
            (true, false) => Ok(()),
        }
    }
}

/// The only value of a header.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Whether a host, with or without a port, names this machine and nothing that somebody else could point here.
fn is_this_machine(host: &str) -> bool {
    let (name, rest) = match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        Some(parts) => parts,
        None => host.find(':').map_or((host, ""), |at| host.split_at(at)),
    };
    let port = rest.is_empty() || rest.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    port && (name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()))
}

/// Whether no page from elsewhere asks. Programs say neither where they come from nor that they are at home.
fn comes_from_here(headers: &HeaderMap, host: Option<&str>) -> bool {
    let fetched = text(headers, "sec-fetch-site").is_none_or(|site| matches!(site, "same-origin" | "none"));
    let origin = !headers.contains_key(header::ORIGIN)
        || text(headers, header::ORIGIN.as_str())
            .and_then(|origin| origin.split_once("://"))
            .is_some_and(|(_, origin)| host.is_some_and(|host| host.eq_ignore_ascii_case(origin)));
    fetched && origin
}

/// The layer before every page.
pub(super) async fn check(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
    match guard.judge(request.method(), request.uri(), request.headers()) {
        Ok(trusted) => {
            request.extensions_mut().insert(trusted);
            next.run(request).await
        }
        Err(denied) => {
            metrics::get().admin_denied.of(denied).increment(1);
            if let Some(others) = guard.said.may_say(denied) {
                let peer = request.extensions().get().map(|&Peer(address)| address.ip());
                tracing::warn!(?peer, ?denied, others, "turned away at the admin door");
            }
            denied.response()
        }
    }
}

impl Denied {
    fn response(self) -> Response {
        let text = match self {
            Self::Token => "this door needs its token: `Authorization: Bearer TOKEN`\n",
            Self::BasicForChange => "changes need the token as `Authorization: Bearer TOKEN`\n",
            Self::Host => "this door answers to localhost and loopback addresses only\n",
            Self::Origin => "changes cannot be asked for by pages from elsewhere\n",
        };
        match self {
            Self::Token => {
                let ask = [(header::WWW_AUTHENTICATE, "Basic realm=\"Heliostat\", charset=\"UTF-8\"")];
                (StatusCode::UNAUTHORIZED, ask, text).into_response()
            }
            Self::Host => (StatusCode::MISDIRECTED_REQUEST, text).into_response(),
            Self::BasicForChange | Self::Origin => (StatusCode::FORBIDDEN, text).into_response(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const TOKEN: &str = "correct horse battery staple";

    fn guarded() -> Guard {
        let config = Config::parse("test.toml", &format!("[admin]\ntoken = {TOKEN:?}\n")).unwrap();
        Guard::new(config.admin.token, Clock::system())
    }

    fn judge(guard: &Guard, method: Method, uri: &str, headers: &[(&'static str, &str)]) -> Result<(), Denied> {
        let headers = headers.iter().map(|&(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        guard.judge(&method, &uri.parse().unwrap(), &headers).map(drop)
    }

    #[test]
    fn without_a_token_only_this_machine_is_a_host() {
        let guard = Guard::new(None, Clock::system());
        for host in ["localhost", "LOCALHOST:9090", "127.0.0.1:9090", "127.8.0.1", "[::1]:9090", "[::1]"] {
            assert_eq!(judge(&guard, Method::GET, "/", &[("host", host)]), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9090",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "[::2]:9090",
            "localhost:9090:1",
            "127.0.0.1:x",
            "",
            "user@localhost",
            "0.0.0.0:9090",
        ] {
            assert_eq!(judge(&guard, Method::GET, "/", &[("host", host)]), Err(Denied::Host), "{host}");
        }
        let absolute = judge(&guard, Method::GET, "http://evil.example/", &[("host", "localhost")]);
        assert_eq!(absolute, Err(Denied::Host), "the address in the request line counts");
        assert_eq!(judge(&guard, Method::GET, "/", &[]), Ok(()), "a probe that speaks HTTP/1.0");
    }

    #[test]
    fn a_page_from_elsewhere_may_not_change_anything() {
        let guard = Guard::new(None, Clock::system());
        let host = ("host", "localhost:9090");
        let post = |more: &[(&'static str, &str)]| judge(&guard, Method::POST, "/api/drain", &[&[host], more].concat());
        assert_eq!(post(&[]), Ok(()), "a program");
        assert_eq!(post(&[("origin", "http://localhost:9090"), ("sec-fetch-site", "same-origin")]), Ok(()));
        for origin in ["http://evil.example", "null", "http://localhost", "http://localhost:8080"] {
            assert_eq!(post(&[("origin", origin)]), Err(Denied::Origin), "{origin}");
        }
        for site in ["cross-site", "same-site"] {
            assert_eq!(post(&[("sec-fetch-site", site)]), Err(Denied::Origin), "{site}");
        }
        assert_eq!(judge(&guard, Method::GET, "/", &[host, ("sec-fetch-site", "cross-site")]), Ok(()), "a link");
    }

    #[test]
    fn a_token_is_asked_for_everywhere_but_by_supervisors() {
        let guard = guarded();
        for path in ["/", "/metrics", "/events", "/api/groups", "/nowhere", "/readyz/", "//livez"] {
            assert_eq!(judge(&guard, Method::GET, path, &[]), Err(Denied::Token), "{path}");
        }
        for path in OPEN {
            assert_eq!(judge(&guard, Method::GET, path, &[("host", "evil.example")]), Ok(()), "{path}");
            let trusted = |guard: &Guard, name: &'static str, value: &str| {
                let headers = [(name.parse().unwrap(), value.parse().unwrap())].into_iter().collect();
                guard.judge(&Method::GET, &path.parse().unwrap(), &headers).unwrap().0
            };
            assert!(
                !trusted(&guard, "host", "localhost") && !trusted(&guard, "authorization", "Bearer other"),
                "{path}"
            );
            assert!(trusted(&guard, "authorization", &format!("Bearer {TOKEN}")), "{path}");
            let open = Guard::new(None, Clock::system());
            assert!(trusted(&open, "host", "localhost") && !trusted(&open, "host", "evil.example"), "{path}");
        }
        let with = |method: Method, value: &str| judge(&guard, method, "/api/drain", &[("authorization", value)]);
        assert_eq!(with(Method::POST, &format!("Bearer {TOKEN}")), Ok(()));
        assert_eq!(with(Method::GET, &format!("bearer  {TOKEN} ")), Ok(()));
        let shorter = &TOKEN[..TOKEN.len() - 1];
        for wrong in [
            "Bearer",
            "Bearer ",
            &format!("Bearer {shorter}"),
            &format!("Bearer {TOKEN}x"),
            TOKEN,
            &format!("Digest {TOKEN}"),
            "Basic %%%",
            &format!("Basic {}", BASE64.encode("nothing")),
        ] {
            assert_eq!(with(Method::GET, wrong), Err(Denied::Token), "{wrong}");
        }
    }

    #[test]
    fn what_browsers_send_by_themselves_is_good_for_reading_only() {
        let guard = guarded();
        let basic = format!("Basic {}", BASE64.encode(format!("me:{TOKEN}")));
        let with = |method: Method| judge(&guard, method, "/api/groups", &[("authorization", &basic)]);
        assert_eq!((with(Method::GET), with(Method::POST)), (Ok(()), Err(Denied::BasicForChange)));
    }
}
