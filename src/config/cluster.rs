//! What several nodes on one database need to know of each other.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::kinds::{Fault, File, Given, Kind, Or, Shown, Time};
use super::settings::settings;
use super::{ADDRESS, MINUTE, SECOND, local};

/// What a node's name may be, so that it fits into logs, labels and file names.
const NAME_MAX: usize = 64;

settings! {
    /// Several nodes on one PostgreSQL database (`store`). Each group belongs to one of them at a time, and the others send its
    /// devices there. See docs/cluster.md.
    pub struct ClusterConfig {
        keys {
            /// What operators call this node. When not set, its `address`.
            name: Option<String> = None, Or(None, Name), Restart;
            /// Where other nodes reach this one. Only used with a certificate.
            listen: SocketAddr = local(7443), ADDRESS, Restart;
            /// The same as others see it, `"host:port"`; the host is what this node's certificate is for. When not set, `listen`.
            address: Option<String> = None, Or(None, HostAndPort), Restart;
            /// This node's certificate chain, PEM, from the nodes' own authority, as `heliostat cluster certificates` makes it.
            /// Without one, this node neither sends devices to others nor takes any from them: enough for one node alone.
            cert: Option<PathBuf> = None, Or(None, File), Restart;
            /// The private key of that certificate, PEM.
            key: Option<PathBuf> = None, Or(None, File), Restart;
            /// The authority of all nodes, PEM: whoever has a certificate from it is believed whom it admitted.
            authority: Option<PathBuf> = None, Or(None, File), Restart;
            /// How long a node that says nothing to the database keeps its groups: no longer than that are devices without a
            /// mediator when it dies. It says something three times as often. The same on all nodes.
            lease: Duration = 10 * SECOND, Time(SECOND..=5 * MINUTE), Restart;
        }
    }
}

/// What a node is called.
#[derive(Debug)]
struct Name;

impl Kind<String> for Name {
    fn name(&self) -> String {
        "name".into()
    }

    fn read(&self, given: Given<'_>) -> Result<String, Vec<Fault>> {
        const EXPECTED: &str = "a name of letters, digits, `.`, `_` and `-`, such as \"east-1\"";
        let text = given.text(EXPECTED)?;
        let fine = (1..=NAME_MAX).contains(&text.len())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        if fine { Ok(text.to_owned()) } else { Err(given.is_no(EXPECTED)) }
    }

    fn show(&self, name: &String) -> Shown {
        Shown::text(name)
    }
}

/// Where something is reached.
#[derive(Debug)]
struct HostAndPort;

impl Kind<String> for HostAndPort {
    fn name(&self) -> String {
        "host and port".into()
    }

    fn read(&self, given: Given<'_>) -> Result<String, Vec<Fault>> {
        const EXPECTED: &str = "a host and a port, such as \"node-1.example.org:7443\"";
        let text = given.text(EXPECTED)?;
        let fine = text
            .parse::<http::uri::Authority>()
            .is_ok_and(|place| !place.host().is_empty() && place.port_u16().is_some() && !text.contains('@'));
        if fine { Ok(text.to_owned()) } else { Err(given.is_no(EXPECTED)) }
    }

    fn show(&self, place: &String) -> Shown {
        Shown::text(place)
    }
}
