//! What waits to be written to one connection, and what becomes of the connection behind that.
//!
//! The queue is bounded, and whoever lets it fill is not reading: then everything in it is dropped and the connection cut, at once
//! and without a word, so that nobody else ever waits (D-35). Of each connection exactly one verdict is given, by the task that
//! decides; the connection's own task waits for it, whatever its socket does meanwhile.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use super::pipe::{Leg, Orders};
use crate::chat::chatos::state::Ending;

/// Octets that wait for one connection, at most.
pub const OCTETS_MAX: usize = 256 * 1024;
/// Packets that wait for one connection, at most.
pub const PACKETS_MAX: usize = 1_024;

/// What becomes of a connection.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It ends.
    End(Ending),
    /// It is one leg of a pipe that another connection's task looks after.
    Give(oneshot::Sender<Leg>),
    /// It is one leg of a pipe, and looks after the other, too.
    Take(oneshot::Receiver<Leg>, Orders),
}

/// What the writer takes out.
#[derive(Debug)]
pub(super) enum Next {
    Packet(Bytes),
    Verdict(Verdict),
}

/// There is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

#[derive(Default)]
struct Inner {
    packets: VecDeque<Bytes>,
    octets: usize,
    full: bool,
    verdict: Option<Verdict>,
}

/// See the top of this file.
#[derive(Default)]
pub(super) struct Outbox {
    inner: Mutex<Inner>,
    changed: Notify,
    decided: CancellationToken,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.inner();
        f.debug_struct("Outbox").field("packets", &inner.packets.len()).field("octets", &inner.octets).finish()
    }
}

impl Outbox {
    /// One packet more. From the moment there is no room there never will be.
    pub(super) fn put(&self, packet: Bytes) -> Result<(), Full> {
        let mut inner = self.inner();
        if inner.full || inner.verdict.is_some() {
            // Told already, or of no use any more.
            return Ok(());
        }
        if inner.packets.len() >= PACKETS_MAX || inner.octets + packet.len() > OCTETS_MAX {
            inner.full = true;
            inner.packets.clear();
            inner.octets = 0;
            return Err(Full);
        }
        inner.octets += packet.len();
        inner.packets.push_back(packet);
        drop(inner);
        self.changed.notify_one();
        Ok(())
    }

    /// The verdict, behind what waits and a last packet. The first one counts.
    pub(super) fn decide(&self, verdict: Verdict, last: Option<Bytes>) {
        let mut inner = self.inner();
        if inner.verdict.is_none() && !self.decided.is_cancelled() {
            inner.packets.extend(last);
            inner.verdict = Some(verdict);
        }
        drop(inner);
        self.decided.cancel();
        self.changed.notify_one();
    }

    /// Waits until there is a verdict, also while a write is stuck.
    pub(super) async fn decided(&self) {
        self.decided.cancelled().await;
    }

    /// The verdict, whatever waits before it.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        self.inner().verdict.take()
    }

    /// Whether the connection is to be cut with what waits for it.
    pub(super) fn is_cut(&self) -> bool {
        matches!(&self.inner().verdict, Some(Verdict::End(ending)) if ending.cuts())
    }

    /// Waits for something to write, or for the verdict when all is written.
    pub(super) async fn next(&self) -> Next {
        loop {
            {
                let mut inner = self.inner();
                if let Some(packet) = inner.packets.pop_front() {
                    inner.octets = inner.octets.saturating_sub(packet.len());
                    return Next::Packet(packet);
                }
                if let Some(verdict) = inner.verdict.take() {
                    return Next::Verdict(verdict);
                }
            }
            self.changed.notified().await;
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it holds this; if it did, what is in it is still whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn taken(outbox: &Outbox) -> Option<Bytes> {
        match outbox.next().now_or_never()? {
            Next::Packet(packet) => Some(packet),
            Next::Verdict(verdict) => panic!("{verdict:?}"),
        }
    }

    #[test]
    fn a_queue_is_full_by_packets_or_by_octets_and_holds_nothing_then() {
        for (len, most) in [(1, PACKETS_MAX), (2_000, OCTETS_MAX / 2_000)] {
            let outbox = Outbox::default();
            let packet = Bytes::from(vec![0; len]);
            for _ in 0..most {
                assert_eq!(outbox.put(packet.clone()), Ok(()));
            }
            assert_eq!(outbox.put(packet.clone()), Err(Full));
            assert_eq!(outbox.put(packet.clone()), Ok(()), "told once");
            assert_eq!(taken(&outbox), None);
            outbox.decide(Verdict::End(Ending::QueueFull), None);
            assert!(outbox.is_cut());
        }
    }

    #[test]
    fn room_comes_back_with_what_is_written() {
        let outbox = Outbox::default();
        for _ in 0..3 * PACKETS_MAX {
            assert_eq!(outbox.put(Bytes::from_static(b"a")), Ok(()));
            assert!(taken(&outbox).is_some());
        }
    }

    #[test]
    fn the_first_verdict_counts_and_comes_behind_the_last_packet() {
        let outbox = Outbox::default();
        outbox.put(Bytes::from_static(b"a")).unwrap();
        outbox.decide(Verdict::End(Ending::Inactive), Some(Bytes::from_static(b"b")));
        outbox.put(Bytes::from_static(b"c")).unwrap();
        outbox.decide(Verdict::End(Ending::Gone), Some(Bytes::from_static(b"d")));
        assert!(outbox.decided().now_or_never().is_some() && !outbox.is_cut());
        assert_eq!((taken(&outbox).unwrap(), taken(&outbox).unwrap()), (Bytes::from("a"), Bytes::from("b")));
        let Some(Next::Verdict(Verdict::End(ending))) = outbox.next().now_or_never() else { panic!("no verdict") };
        assert_eq!(ending, Ending::Inactive);
    }
}
