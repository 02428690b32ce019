//! Whether whoever started this process is still there: for servers that belong to a test and must not outlive it.
//!
//! Two signs, because neither is always there. The parent's process id changes when the parent ends, however it ends; but
//! a shell in between would be the parent, and outlive the test. A pipe (or socket) that is our standard input is closed
//! when the last one who could write to it is gone; but a test may not have made one. It is only watched, never read: one
//! that was inherited belongs to somebody else, who may have something to say in it to others.
//!
//! *Rejected: Linux's `PR_SET_PDEATHSIG`*, which no other system has, and which comes when the parent's *thread* ends.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::process::parent_id;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::unix::pipe;

/// How often the parent is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Who started this process.
#[derive(Debug)]
pub(super) struct Parent {
    id: u32,
    /// Standard input, if somebody has its other end.
    pipe: Option<pipe::Receiver>,
}

impl Parent {
    /// Ours, as it is now.
    ///
    /// # Errors
    /// When standard input cannot be watched.
    pub(super) fn ours() -> io::Result<Self> {
        let id = parent_id();
        let stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let kind = stdin.metadata()?.file_type();
        // Unchecked, because a socket does as well, and whether its reads block is for others to say.
        let pipe = (kind.is_fifo() || kind.is_socket()).then(|| pipe::Receiver::from_file_unchecked(stdin));
        Ok(Self { id, pipe: pipe.transpose()? })
    }

    /// Returns when it is gone.
    pub(super) async fn gone(self) {
        tokio::select! {
            () = ended(self.id) => tracing::info!("the process that started this one has ended"),
            // A warning, since whoever starts this with a pipe that was closed before has to find out why nothing runs.
            () = closed(self.pipe) => tracing::warn!(
                "standard input is a pipe that was closed at its other end, so this server ends (--exit-with-parent)"
            ),
        }
    }
}

async fn ended(id: u32) {
    while parent_id() == id {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn closed(pipe: Option<pipe::Receiver>) {
    let Some(pipe) = pipe else { return std::future::pending().await };
    loop {
        match pipe.ready(Interest::READABLE).await {
            Ok(ready) if ready.is_read_closed() => return,
            // What there is to read is for nobody here, and stays; so this has to be asked again.
            Ok(_) => tokio::time::sleep(LOOK_EVERY).await,
            // Nothing can be known of it; the parent's id still tells.
            Err(_) => return std::future::pending().await,
        }
    }
}
