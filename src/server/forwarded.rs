//! Where a request really comes from, as the proxies before us wrote into its headers.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, HeaderName, header};

use crate::net::proxies::{Proxies, SaidBy};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address behind `peer`, which the connection comes from. The port is 0 when no proxy said it.
pub(super) fn origin(proxies: &Proxies, peer: SocketAddr, headers: &HeaderMap) -> SocketAddr {
    // A header may come in several lines; they are one list.
    let lines = |name| headers.get_all(name).iter().map(|line| line.to_str().unwrap_or_default());
    let hops: Vec<Option<SocketAddr>> = match proxies.said_by {
        _ if proxies.trusted.is_empty() => return peer,
        SaidBy::ProxyProtocol => return peer,
        SaidBy::XForwardedFor => lines(X_FORWARDED_FOR).flat_map(|line| line.split(',')).map(node).collect(),
        SaidBy::Forwarded => lines(header::FORWARDED).flat_map(forwarded).collect(),
    };
    proxies.behind(peer, hops.into_iter())
}

/// The `for` of each element of a `Forwarded` line (RFC 7239, 4). A line that is not as specified is one hop that cannot be
/// read.
fn forwarded(line: &str) -> Vec<Option<SocketAddr>> {
    let mut hops = Vec::new();
    for element in split(line, ',') {
        let Some(element) = element else { return vec![None] };
        let mut hop = None;
        for pair in split(element, ';').flatten() {
            if let Some((name, value)) = pair.split_once('=')
                && name.trim().eq_ignore_ascii_case("for")
            {
                hop = unquoted(value.trim()).and_then(node);
            }
        }
        hops.push(hop);
    }
    hops
}

/// Splits outside of quoted strings; `None` for one that is not closed.
fn split(text: &str, at: char) -> impl Iterator<Item = Option<&str>> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let (mut quoted, mut escaped) = (false, false);
        for (here, c) in text.char_indices() {
            match c {
                _ if escaped => escaped = false,
                '\\' if quoted => escaped = true,
                '"' => quoted = !quoted,
                c if c == at && !quoted => {
                    rest = text.get(here + c.len_utf8()..);
                    return Some(text.get(..here));
                }
                _ => {}
            }
        }
        Some((!quoted).then_some(text))
    })
}

/// A token or a quoted string. No address needs a backslash, so one that has any is none.
fn unquoted(value: &str) -> Option<&str> {
    match value.strip_prefix('"') {
        Some(quoted) => quoted.strip_suffix('"').filter(|inside| !inside.contains(['"', '\\'])),
        None => Some(value),
    }
}

/// An address as proxies write it: IPv4 or IPv6, in brackets or not, with or without a port.
fn node(text: &str) -> Option<SocketAddr> {
    let text = text.trim();
    let bare = || text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    text.parse().ok().or_else(|| bare().parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, line)| (HeaderName::from_static(name), line.parse().unwrap())).collect()
    }

    fn seen(said_by: SaidBy, lines: &[(&'static str, &str)]) -> String {
        let proxies = Proxies::new(["10.0.0.0/8".parse().unwrap()].into_iter().collect(), said_by);
        origin(&proxies, "10.0.0.1:7".parse().unwrap(), &headers(lines)).to_string()
    }

    #[test]
    fn x_forwarded_for_is_read_from_its_end() {
        let cases: [(&[(&str, &str)], &str); 9] = [
            (&[("x-forwarded-for", "203.0.113.9")], "203.0.113.9:0"),
            (&[("x-forwarded-for", "1.1.1.1, 203.0.113.9 ,10.0.0.2")], "203.0.113.9:0"),
            (&[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "203.0.113.9")], "203.0.113.9:0"),
            (&[("x-forwarded-for", "2001:db8::1")], "[2001:db8::1]:0"),
            (&[("x-forwarded-for", "[2001:db8::1]:80")], "[2001:db8::1]:80"),
            (&[("x-forwarded-for", "203.0.113.9:80")], "203.0.113.9:80"),
            (&[("x-forwarded-for", "unknown")], "10.0.0.1:7"),
            (&[("x-forwarded-for", "203.0.113.9,")], "10.0.0.1:7"),
            (&[("forwarded", "for=203.0.113.9")], "10.0.0.1:7"),
        ];
        for (lines, expected) in cases {
            assert_eq!(seen(SaidBy::XForwardedFor, lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn forwarded_is_read_from_its_end() {
        let cases = [
            ("for=203.0.113.9", "203.0.113.9:0"),
            ("For=1.1.1.1;proto=https, by=10.0.0.2; FOR = 203.0.113.9;host=x", "203.0.113.9:0"),
            ("for=\"[2001:db8::1]:4711\"", "[2001:db8::1]:4711"),
            ("for=\"[2001:db8::1]\",for=10.0.0.9", "[2001:db8::1]:0"),
            ("for=1.1.1.1;note=\"a, for=2.2.2.2;\"", "1.1.1.1:0"),
            ("for=1.1.1.1;note=\"a \\\", for=2.2.2.2\"", "1.1.1.1:0"),
            ("for=1.1.1.1, for=_hidden", "10.0.0.1:7"),
            ("for=1.1.1.1, proto=https", "10.0.0.1:7"),
            ("for=1.1.1.1;note=\"open", "10.0.0.1:7"),
            ("for=\"1.1\\.1.1\"", "10.0.0.1:7"),
            ("", "10.0.0.1:7"),
        ];
        for (line, expected) in cases {
            let lines = [("forwarded", line), ("x-forwarded-for", "6.6.6.6")];
            assert_eq!(seen(SaidBy::Forwarded, &lines), expected, "{line}");
        }
    }

    #[test]
    fn behind_the_proxy_protocol_headers_say_nothing() {
        let lines = [("forwarded", "for=6.6.6.6"), ("x-forwarded-for", "6.6.6.6")];
        assert_eq!(seen(SaidBy::ProxyProtocol, &lines), "10.0.0.1:7");
    }
}
