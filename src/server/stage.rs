//! A mediator for one purpose inside this process, and the chat server behind it, which is played by whoever holds it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc;

use super::{Parts, Settings};
use crate::group::Limits;
use crate::session::Timeouts;
use crate::store::Store;
use crate::time::Clock;
use crate::upstream::directory::{BadDirectory, DirectoryConfig};
use crate::upstream::{Dial, Directory, Framing, Io, Target, UpstreamLimits};

/// Connections that wait for the player; one more is refused.
const VISITORS_WAITING: usize = 64;
/// Bytes that wait in each direction of a connection.
const PIPE: usize = 64 * 1_024;
/// What leads to the player. It is never looked up.
const NOWHERE: &str = "played.invalid:5222";

/// A chat server without a protocol. Whoever holds it says what it says; when it is dropped, connections are refused.
#[derive(Debug)]
pub struct Stage {
    visitors: mpsc::Receiver<DuplexStream>,
}

/// The way to a [`Stage`].
#[derive(Debug)]
pub struct StageDoor {
    visitors: mpsc::Sender<DuplexStream>,
}

impl Stage {
    /// One, and the way to it.
    #[must_use]
    pub fn open() -> (Self, StageDoor) {
        let (sender, visitors) = mpsc::channel(VISITORS_WAITING);
        (Self { visitors }, StageDoor { visitors: sender })
    }

    /// The next connection of a mediator; `None` when there is no mediator any more.
    pub async fn accepts(&mut self) -> Option<DuplexStream> {
        self.visitors.recv().await
    }
}

impl Dial for StageDoor {
    fn dial<'a>(&'a self, _address: &'a str, _within: Duration) -> BoxFuture<'a, io::Result<Box<dyn Io>>> {
        Box::pin(async move {
            let (ours, theirs) = duplex(PIPE);
            self.visitors.try_send(theirs).map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
            Ok(Box::new(ours) as Box<dyn Io>)
        })
    }
}

/// What a mediator is made of behind which every server group leads to a stage.
///
/// # Errors
/// [`BadDirectory`]: never, as long as the address that stands for the stage is one.
pub fn parts(
    store: Arc<dyn Store>,
    clock: Clock,
    door: StageDoor,
    limits: Limits,
    timeouts: Timeouts,
) -> Result<Parts, BadDirectory> {
    let target = Target { addresses: vec![NOWHERE.to_owned()], framing: Framing::Csp };
    let directory = Directory::new(DirectoryConfig { default: Some(target), ..DirectoryConfig::default() })?;
    Ok(Parts {
        store,
        neighbours: None,
        dial: Arc::new(door),
        upstream: UpstreamLimits::default(),
        settings: Settings { directory, limits, timeouts, ..Settings::default() },
        clock,
        durability: "memory",
    })
}
