//! What waits to be written to one connection, and what becomes of the connection behind that.
//!
//! The queue is bounded, and whoever lets it fill is not reading: then everything in it is dropped and the connection cut, at once
//! and without a word, so that nobody else ever waits (D-35). Of each connection exactly one verdict is given, by the task that
//! decides; the connection's own task waits for it, whatever its socket does meanwhile.
//!
//! A queue also fills when its writer does not get its turn, since deciding is faster than writing. That is our own [`Lag`] and
//! nobody's fault: while a queue is more than half full and its writer does not wait for the peer, nothing more is decided. Such a
//! writer always gets on, or comes to wait for its peer; so this ends by itself, and never depends on what a client does.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// How many queues are filled faster than they are emptied, by nobody's fault but ours.
#[derive(Debug, Default)]
pub(super) struct Lag {
    outboxes: AtomicUsize,
    less: Notify,
}

impl Lag {
    /// Waits until there are none. One task at a time may do so.
    pub(super) async fn over(&self) {
        while self.outboxes.load(Ordering::SeqCst) > 0 {
            self.less.notified().await;
        }
    }
}

/// There is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

#[derive(Default)]
struct Inner {
    packets: VecDeque<Bytes>,
    octets: usize,
    full: bool,
    /// Its writer is at it, and does not wait for the peer.
    writing: bool,
    /// It counts as one that lags.
    lags: bool,
    verdict: Option<Verdict>,
}

/// See the top of this file.
#[derive(Default)]
pub(super) struct Outbox {
    inner: Mutex<Inner>,
    changed: Notify,
    decided: CancellationToken,
    lag: Arc<Lag>,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.inner();
        f.debug_struct("Outbox").field("packets", &inner.packets.len()).field("octets", &inner.octets).finish()
    }
}

impl Outbox {
    /// Empty, and without a writer.
    pub(super) fn new(lag: Arc<Lag>) -> Self {
        Self { lag, ..Self::default() }
    }

    /// Its writer is at it; or waits for the peer, or there is none.
    pub(super) fn writing(&self, writing: bool) {
        let mut inner = self.inner();
        inner.writing = writing;
        self.count(&mut inner);
    }

    fn count(&self, inner: &mut Inner) {
        let much = inner.packets.len() > PACKETS_MAX / 2 || inner.octets > OCTETS_MAX / 2;
        // Nothing more comes into one that is decided about.
        let lags = inner.writing && much && !self.decided.is_cancelled();
        if lags == inner.lags {
            return;
        }
        inner.lags = lags;
        if lags {
            self.lag.outboxes.fetch_add(1, Ordering::SeqCst);
        } else if self.lag.outboxes.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.lag.less.notify_one();
        }
    }

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
            self.count(&mut inner);
            return Err(Full);
        }
        inner.octets += packet.len();
        inner.packets.push_back(packet);
        self.count(&mut inner);
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
        self.decided.cancel();
        self.count(&mut inner);
        drop(inner);
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
                    self.count(&mut inner);
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

    /// Only a queue that we could empty and did not makes everybody wait.
    #[test]
    fn a_queue_lags_while_it_is_full_by_half_and_its_writer_waits_for_nobody() {
        let lag = Arc::new(Lag::default());
        let outbox = Outbox::new(Arc::clone(&lag));
        let lags = || lag.over().now_or_never().is_none();
        for _ in 0..=PACKETS_MAX / 2 {
            outbox.put(Bytes::from_static(b"a")).unwrap();
        }
        assert!(!lags(), "nobody writes");
        outbox.writing(true);
        assert!(lags());
        outbox.writing(false);
        assert!(!lags(), "the peer does not read");
        outbox.writing(true);
        assert!(lags() && taken(&outbox).is_some() && !lags(), "half of it is not much");
        outbox.put(Bytes::from_static(b"a")).unwrap();
        assert!(lags());
        outbox.decide(Verdict::End(Ending::Gone), None);
        assert!(!lags(), "nothing more comes into it");
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
