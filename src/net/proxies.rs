//! Whose word is taken for where a connection comes from.
//!
//! Behind a proxy every connection comes from the proxy, and the real address is hearsay. It is believed from the operator's
//! own proxies only, by their addresses, and in one way only: a proxy writes the one header it was told to write and hands on
//! whatever else a client sent, so a server that looks at several lets clients choose their address.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::log::Occasionally;
use crate::metrics::{self, Refused};
use crate::time::Clock;
use crate::wire::haproxy::{self, BadHeader, Said, Step};

/// Time for a PROXY header: the proxy writes it with its first packet.
pub const PROXY_HEADER: Duration = Duration::from_secs(5);

/// The operator's own proxies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// Whether an address is in one of them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<IpNet> for Networks {
    fn from_iter<I: IntoIterator<Item = IpNet>>(networks: I) -> Self {
        Self(networks.into_iter().collect())
    }
}

/// How a proxy says where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SaidBy {
    /// The header `X-Forwarded-For` of each request: what most HTTP proxies write.
    #[default]
    XForwardedFor,
    /// The header `Forwarded` of each request (RFC 7239).
    Forwarded,
    /// The PROXY protocol, before anything else. Whoever does not speak it is not served.
    ProxyProtocol,
}

/// Who is believed, and how.
#[derive(Debug)]
pub struct Proxies {
    /// Whose word is taken. Nobody's by default.
    pub trusted: Networks,
    /// What is taken for it.
    pub said_by: SaidBy,
    said: Occasionally<Refused>,
}

impl Default for Proxies {
    fn default() -> Self {
        Self::new(Networks::default(), SaidBy::default())
    }
}

/// Why a connection to a listener for proxies is not served.
#[derive(Debug, thiserror::Error)]
enum NoProxy {
    #[error("not among `trusted_proxies`")]
    Stranger,
    #[error("bad PROXY header: {0}")]
    Header(#[from] BadHeader),
    #[error("no PROXY header: {0}")]
    Io(#[from] io::Error),
}

impl Proxies {
    /// Takes these at their word.
    #[must_use]
    pub fn new(trusted: Networks, said_by: SaidBy) -> Self {
        Self { trusted, said_by, said: Occasionally::new(Clock::system()) }
    }

    /// Where a new connection comes from, which came to us from `peer`; `None` when it is not served. Reads the PROXY header,
    /// where there has to be one, and nothing behind it.
    pub(super) async fn origin<Io: AsyncRead + Unpin>(&self, io: &mut Io, peer: SocketAddr) -> Option<SocketAddr> {
        if self.said_by != SaidBy::ProxyProtocol {
            return Some(canonical(peer));
        }
        let error = match self.header(io, peer.ip()).await {
            Ok(Said::From(source)) => return Some(canonical(source)),
            Ok(Said::Nothing) => return Some(canonical(peer)),
            Err(error) => error,
        };
        metrics::get().refused.of(Refused::ProxyHeader).increment(1);
        tracing::debug!(%peer, %error, "turned away before TLS");
        if let Some(others) = self.said.may_say(Refused::ProxyHeader) {
            tracing::info!(%error, others, "turned away at a listener with `proxy_protocol`");
        }
        None
    }

    async fn header<Io: AsyncRead + Unpin>(&self, io: &mut Io, peer: IpAddr) -> Result<Said, NoProxy> {
        if !self.trusted.contains(peer) {
            return Err(NoProxy::Stranger);
        }
        let read = tokio::time::timeout(PROXY_HEADER, read_header(io));
        read.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// The last address in a chain that somebody trusted vouches for. `hops` are what a header lists, in its order: each was
    /// added by the one that follows, the last by `peer`. A hop that cannot be read ends the chain.
    #[must_use]
    pub fn behind(&self, peer: SocketAddr, hops: impl DoubleEndedIterator<Item = Option<SocketAddr>>) -> SocketAddr {
        let mut real = canonical(peer);
        for hop in hops.rev() {
            match hop {
                Some(hop) if self.trusted.contains(real.ip()) => real = canonical(hop),
                _ => break,
            }
        }
        real
    }
}

async fn read_header<Io: AsyncRead + Unpin>(io: &mut Io) -> Result<Said, NoProxy> {
    let mut bytes = Vec::new();
    loop {
        match haproxy::decode(&bytes)? {
            Step::Done(said) => return Ok(said),
            Step::Read(more) => {
                let have = bytes.len();
                bytes.resize(have + more, 0);
                io.read_exact(bytes.split_at_mut(have).1).await?;
            }
        }
    }
}

/// A listener for both families sees IPv4 as IPv6; limits and networks mean the address behind that.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> = self.0.iter().map(IpNet::to_string).collect();
        f.write_str(&all.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn trusting(networks: &[&str]) -> Proxies {
        Proxies::new(networks.iter().map(|it| it.parse().unwrap()).collect(), SaidBy::default())
    }

    #[test]
    fn a_chain_is_believed_from_its_end_as_long_as_who_speaks_is_trusted() {
        let client = "203.0.113.9:0";
        let cases: [(&str, &[&str], &str); 8] = [
            ("10.0.0.1:7", &[client], client),
            ("10.0.0.1:7", &["1.1.1.1:0", client], client),
            ("10.0.0.1:7", &["1.1.1.1:0", client, "10.0.0.2:0"], client),
            ("10.0.0.1:7", &["1.1.1.1:0", "?", "10.0.0.2:0"], "10.0.0.2:0"),
            ("10.0.0.1:7", &["10.0.0.3:0", "10.0.0.2:0"], "10.0.0.3:0"),
            ("10.0.0.1:7", &[], "10.0.0.1:7"),
            ("[::ffff:10.0.0.1]:7", &["[::ffff:203.0.113.9]:0"], client),
            ("203.0.113.1:7", &[client], "203.0.113.1:7"),
        ];
        let proxies = trusting(&["10.0.0.0/8", "fd00::/8"]);
        for (peer, hops, expected) in cases {
            assert_eq!(proxies.behind(at(peer), hops.iter().map(|hop| hop.parse().ok())), at(expected), "{hops:?}");
        }
        assert_eq!(trusting(&[]).behind(at("10.0.0.1:7"), [Some(at(client))].into_iter()), at("10.0.0.1:7"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxy_has_five_seconds_for_its_header() {
        let clock = crate::time::Clock::following(0);
        let proxies = Proxies::new(["10.0.0.0/8".parse().unwrap()].into_iter().collect(), SaidBy::ProxyProtocol);
        let (_silent, mut io) = tokio::io::duplex(64);
        assert_eq!(proxies.origin(&mut io, at("10.0.0.1:7")).await, None);
        assert_eq!(clock.now().monotonic, PROXY_HEADER);
    }
}
