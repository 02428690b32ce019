//! The way to a group's owner: a seat whose device is connected to one node, and whose group is decided at another.
//!
//! ```text
//! device ── session ── FarSeat ══ out ══ link ══ serve ══ Seat ── group
//!           the node it reached                the node that has the group
//! ```
//!
//! # One link, many seats
//!
//! A node dials another one when a device of a group of that node comes, and keeps the connection for all such devices, one
//! stream each, until none was there for a while. Each direction has its own: who dials is who has the devices, so that nothing has
//! to be negotiated, and two nodes that dial each other at the same moment have what they want. Both ends prove to be nodes
//! (`identity`), and each finds out when the other is gone (`pulse`).
//!
//! The streams are those of HTTP/2, by `h2`. With it comes next to nothing else (and with the feature `otel` it is there); it takes and gives `Bytes` on tokio's
//! own traits; its bounds are all there (streams, each one's window, the connection's, what is buffered, frames that are too small,
//! streams that are reset too often), were attacked by everybody, and hold. *Rejected: yamux*, which is smaller on the wire and
//! would be fine, but brings crates that nothing else needs and a second set of I/O traits, gives every stream 256 KiB of credit,
//! and cannot say why one ended. *Rejected: a connection for each seat*, which is a handshake for each device and two sockets for each,
//! where one is what limits a node. *Rejected: framing of our own*: as the group counts what it sends, the way to the device needs no
//! window; the way from it does.
//!
//! # What is said
//!
//! | the device's node | the owner |
//! |---|---|
//! | `Hello` | |
//! | | `Seated`, or `Refused` |
//! | `Request`s and what was `Written` | payloads |
//! | | `Close` or `Moved`: the last word |
//! | `Released`: the chat server's connection is closed | |
//! | `Left`: the last word | |
//!
//! It is what a session and its group say to each other when they are neighbours (`hub::seat`), message for message. The owner
//! sits in the device's place: it holds what stands for the device's chat server connection until it hears `Released`, `Left`, or that
//! the link is lost. In the last case the connection to the chat server may live for a moment longer than the group believes: as long
//! as the other node takes to notice. It ends every connection then, so what a chat server sees is what it sees when a
//! mediator dies.
//!
//! # What waits where
//!
//! *To the device*: what the group has sent is in the session's outbox or on its way there, at most what the group counts for
//! a device of its own (`group::limits::OUTBOX_COST`), and the device's node takes everything from the link at once. *From the
//! device*: a group that has too much to do does not take a request, so [`STREAM_WINDOW`] bytes wait at its node, then the session does not read
//! its socket. Neither keeps other seats of the link waiting: the window of a connection is that of all streams it may have.
//!
//! # How it ends
//!
//! | what | the device | the group |
//! |---|---|---|
//! | the device leaves | | hears `Left` |
//! | the group ends the connection | its close code | waits for `Released` |
//! | the group fails | 1011, as at its own node | |
//! | the link is lost or silent, the owner says what no node says | 1001 | the device left |
//! | the owner stops, or gives the group up | 1001 | the device left |
//!
//! A stream that ended without a word means that the link is lost. A node that has no seats to give says so, and is asked again; one that
//! cannot be reached is asked by way of the store to give the group up (`Store::want`).
//!
//! | file | holds |
//! |---|---|
//! | [`authority`] | makes certificates |
//! | `identity` | presents them, and says who is believed |
//! | `pulse` | whether the other end is alive |
//! | `stream` | one seat's stream |
//! | `wire` | what is said on it |
//! | `out` | the device's node |
//! | `serve` | the owner |

pub mod authority;
mod identity;
mod out;
mod pulse;
mod serve;
mod stream;
mod wire;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::identity::Identity;
use self::out::Way;
use crate::log::Occasionally;
use crate::metrics::LinkFailure;
use crate::net::tls::{CertFiles, TlsError};
use crate::time::Clock;

/// Most seats of one link. A node that wants more asks for the groups instead: that many devices are then where their groups should
/// be.
pub const SEATS_MAX: u32 = 8_192;
/// Bytes of one seat that may be on their way without having been taken: one of the largest containers.
pub const STREAM_WINDOW: u32 = 64 * 1_024;
/// Bytes of all seats of a link: as many as they may have together, so that none waits for another.
const LINK_WINDOW: u32 = SEATS_MAX * STREAM_WINDOW;
const _: () = assert!(LINK_WINDOW < 1 << 31, "the largest window of HTTP/2");
/// Header fields of a request between nodes, in bytes: there are next to none.
const HEADERS_MAX: u32 = 4 * 1_024;
/// Time for the last frames of a link that is closed.
const GOODBYE: Duration = Duration::from_secs(1);
/// Connections that may come from other nodes, those included that have not yet proved to be from one.
const LINKS_MAX: usize = 1_024;
/// Of these, from one address: room for those that were lost and do not know it yet.
const LINKS_PER_ADDRESS: usize = 64;

/// What this node needs to be one of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// This node's certificate chain, from the authority, and its key.
    pub cert: CertFiles,
    /// The authority of all nodes.
    pub authority: PathBuf,
    /// Where other nodes reach this one, as the store tells them: host and port. The certificate is for this host.
    pub address: String,
    /// How long things may take.
    pub pace: Pace,
}

/// How long things may take between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// From the answer to one ping to the next one.
    pub ping_every: Duration,
    /// Without a byte, the other end is gone. Three pings in a row that come late are no accident on a path between servers.
    pub silent: Duration,
    /// To connect and to prove who both are. A part of `answer_within`.
    pub dial_within: Duration,
    /// From a device's admission to the answer of its group's node. A part of what the hub gives a device altogether, so that
    /// it can ask again.
    pub answer_within: Duration,
    /// After a dial that failed, before the next one: devices come back in crowds when a node is gone.
    pub again_after: Duration,
    /// Without a seat, a link is closed.
    pub idle: Duration,
    /// From the group's last word to the device's. Longer than a session takes to end.
    pub last_word: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            ping_every: Duration::from_secs(1),
            silent: Duration::from_secs(3),
            dial_within: Duration::from_secs(2),
            answer_within: Duration::from_secs(3),
            again_after: Duration::from_millis(500),
            idle: Duration::from_secs(60),
            last_word: Duration::from_secs(8),
        }
    }
}

/// All links of this node. Give it to [`Hub::among`](crate::hub::Hub::among), and let it [`serve`](Self::serve) others.
#[derive(Debug)]
pub struct Links(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    identity: Identity,
    pace: Pace,
    clock: Clock,
    /// By address. Locked for a look.
    ways: Mutex<HashMap<String, Arc<Way>>>,
    said: Occasionally<LinkFailure>,
    /// Seats of devices here, and links that this node made.
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl Links {
    /// Reads the certificates. Nobody is dialled.
    ///
    /// # Errors
    /// [`TlsError`] names the file and what is wrong with it; also when other nodes would not believe the certificate.
    pub fn new(settings: Settings, clock: Clock) -> Result<Arc<Self>, TlsError> {
        let pace = settings.pace;
        let identity = Identity::open(settings, clock)?;
        Ok(Arc::new(Self(Arc::new(Shared {
            identity,
            pace,
            clock,
            ways: Mutex::default(),
            said: Occasionally::new(clock),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        }))))
    }

    /// Looks at the files of the certificates every so often, until `stop`: links that are made later are made with what they hold
    /// then. What cannot be used changes nothing, and is said once. That a certificate ends is said every day from two weeks before.
    pub async fn watch(&self, every: Duration, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
            let shared = Arc::clone(&self.0);
            // A file system that hangs holds up a thread that nobody waits for.
            match tokio::task::spawn_blocking(move || shared.identity.look()).await {
                Ok(Ok(false)) => {}
                Ok(Ok(true)) => tracing::info!("a new certificate is shown to other nodes"),
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the new certificate for other nodes cannot be used; the present one stays")
                }
                Err(error) => tracing::error!(%error, "could not look at the certificate for other nodes"),
            }
            if let Some(end) = self.0.identity.ends_soon() {
                tracing::warn!(end, "other nodes do not believe this node once its certificate has ended");
            }
        }
    }

    /// Closes the links that this node made, and returns when that is done. To be called when every session has ended; seats that
    /// are left end as if the link were lost.
    pub async fn close(&self) {
        self.0.closing.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}
