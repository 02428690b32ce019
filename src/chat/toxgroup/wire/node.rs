//! Addresses of peers, in the three dialects that were on the wire (spec 3).
//!
//! The sizes of up to six nodes cannot be confused, so all three are always read; which one is spoken is a setting.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{ClientId, Malformed, ReadBig as _};
use crate::wire::bytes::Reader;

/// Nodes in one answer, at most.
pub const NODES_MAX: usize = 6;
/// Families as they stand on the wire.
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// How long a node is, and so how it is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `key ip4 port pad[2]`: what the seed says; no IPv6.
    N40,
    /// `key family addr[16] port`: of 2014.
    N51,
    /// `key family pad[3] addr[16] port pad[2]`: of the winter before.
    N56,
}

impl Dialect {
    const ALL: [Self; 3] = [Self::N40, Self::N51, Self::N56];

    /// Length of one node, in bytes.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::N40 => 40,
            Self::N51 => 51,
            Self::N56 => 56,
        }
    }
}

/// A peer and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// Who.
    pub id: ClientId,
    /// Where. Never an IPv4 address dressed as IPv6.
    pub address: SocketAddr,
}

impl Node {
    /// Whether anybody can be there: a port, and an address of one machine.
    #[must_use]
    pub fn is_reachable(&self) -> bool {
        let ip = self.address.ip();
        let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
        self.address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast
    }

    fn encode(&self, dialect: Dialect) -> Vec<u8> {
        let port = self.address.port().to_be_bytes();
        let (family, address) = match self.address.ip() {
            IpAddr::V4(ip) => (IPV4, [&ip.octets()[..], &[0; 12]].concat()),
            IpAddr::V6(ip) => (IPV6, ip.octets().to_vec()),
        };
        match dialect {
            Dialect::N40 => [&self.id.0[..], address.get(..4).unwrap_or_default(), &port, &[0; 2]].concat(),
            Dialect::N51 => [&self.id.0[..], &[family], &address, &port].concat(),
            Dialect::N56 => [&self.id.0[..], &[family, 0, 0, 0], &address, &port, &[0; 2]].concat(),
        }
    }

    /// `None` within: of a family nobody knows.
    fn decode(dialect: Dialect, bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        let mut reader = Reader::new(bytes);
        let id = ClientId(reader.array()?);
        let family = match dialect {
            Dialect::N40 => IPV4,
            Dialect::N51 => reader.u8()?,
            Dialect::N56 => {
                let [family, ..] = reader.array::<4>()?;
                family
            }
        };
        let ip: IpAddr = match (dialect, family) {
            (Dialect::N40, _) => Ipv4Addr::from(reader.array::<4>()?).into(),
            (_, IPV4) => {
                let [a, b, c, d, ..] = reader.array::<16>()?;
                Ipv4Addr::new(a, b, c, d).into()
            }
            (_, IPV6) => Ipv6Addr::from(reader.array::<16>()?).to_canonical(),
            _ => return Ok(None),
        };
        Ok(Some(Self { id, address: SocketAddr::new(ip, reader.u16_be()?) }))
    }
}

/// The nodes of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Nodes {
    /// How they are laid out. `None`: there are none, or they were of a size that nobody knows.
    pub dialect: Option<Dialect>,
    /// Up to six.
    pub nodes: Vec<Node>,
}

impl Nodes {
    /// For an answer in this dialect: what it cannot say, and what is more than six, is left out.
    #[must_use]
    pub fn new(dialect: Dialect, nodes: impl IntoIterator<Item = Node>) -> Self {
        let says = |node: &Node| dialect != Dialect::N40 || node.address.is_ipv4();
        let nodes: Vec<_> = nodes.into_iter().filter(says).take(NODES_MAX).collect();
        Self { dialect: (!nodes.is_empty()).then_some(dialect), nodes }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let Some(dialect) = self.dialect else { return Vec::new() };
        self.nodes.iter().flat_map(|node| node.encode(dialect)).collect()
    }

    /// A size that nobody knows makes no nodes: whoever sent it is alive all the same (decision 14).
    pub(super) fn decode(bytes: &[u8]) -> Self {
        let fits = |dialect: &Dialect| {
            bytes.len().is_multiple_of(dialect.size()) && (1..=NODES_MAX).contains(&(bytes.len() / dialect.size()))
        };
        let Some(dialect) = Dialect::ALL.into_iter().find(fits) else { return Self::default() };
        let nodes = bytes.chunks_exact(dialect.size()).filter_map(|node| Node::decode(dialect, node).ok().flatten());
        Self { dialect: Some(dialect), nodes: nodes.collect() }
    }
}
