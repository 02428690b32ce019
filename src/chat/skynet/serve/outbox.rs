//! What waits to be written to one connection: one line, in which everything stands that the connection is told.
//!
//! A sync is not held in memory: its messages stand in the line as numbers, and the writer reads them page by page when
//! their turn comes. What is said live meanwhile stands behind them. So there is no gap and no doubling: which numbers belong
//! to the sync and which are live is decided at one moment, by the one who decides.
//!
//! The line is bounded. Whoever does not read while others talk is disconnected, and gets what it missed when it comes back;
//! whoever asks without reading the answers is not heard until it has read them ([`Outbox::room`]).

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::chat::skynet::wire::AccountId;

/// What may wait for a connection, in bytes: some of the longest messages, or many of the usual.
pub const OUTBOX_BYTES_MAX: usize = 8 * 1024 * 1024;
/// With more than this waiting, the connection's next packet is not read.
const ROOM: usize = 1024 * 1024;
/// What one entry costs beyond its bytes.
const ITEM_OVERHEAD: usize = 64;

/// One entry of the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    /// A frame.
    Frame(Bytes),
    /// Messages of a sync, by their numbers, as this account sees them.
    Messages {
        account: AccountId,
        ids: Vec<i64>,
        /// Told outside of any channel, as found by a search.
        found: bool,
    },
}

impl Item {
    /// Of frames, and of the numbers of syncs.
    fn cost(&self) -> (usize, usize) {
        match self {
            Self::Frame(frame) => (ITEM_OVERHEAD + frame.len(), 0),
            Self::Messages { ids, .. } => (ITEM_OVERHEAD, ids.len() * size_of::<i64>()),
        }
    }
}

#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<Item>,
    /// Of frames.
    bytes: usize,
    /// Of the numbers of syncs, which leave live messages their room: an account may have seen any number.
    sync_bytes: usize,
    /// Nothing more is taken; when what waits is written, it is over.
    closed: bool,
}

/// See the top of this file.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    queue: Mutex<Queue>,
    changed: Notify,
    drained: Notify,
    cut: CancellationToken,
}

impl Outbox {
    /// Puts something into the line. `false`: there is no room, and the connection is over.
    pub(super) fn put(&self, item: Item) -> bool {
        self.put_all([item])
    }

    /// The same for several, between which nothing else comes.
    pub(super) fn put_all(&self, items: impl IntoIterator<Item = Item>) -> bool {
        let mut queue = self.queue();
        if queue.closed {
            return true;
        }
        for item in items {
            let (bytes, sync_bytes) = item.cost();
            queue.bytes += bytes;
            queue.sync_bytes += sync_bytes;
            // A sync costs what an account has seen: it stands in the line however long it is, and so does what ends it.
            let full = queue.bytes > OUTBOX_BYTES_MAX && matches!(item, Item::Frame(_));
            if full {
                drop(queue);
                self.cut();
                return false;
            }
            queue.items.push_back(item);
        }
        drop(queue);
        self.changed.notify_one();
        true
    }

    /// Ends the connection when everything is written that waits.
    pub(super) fn close(&self) {
        self.queue().closed = true;
        self.changed.notify_one();
    }

    /// Ends the connection at once.
    pub(super) fn cut(&self) {
        let mut queue = self.queue();
        *queue = Queue { closed: true, ..Queue::default() };
        drop(queue);
        self.cut.cancel();
    }

    /// Waits until the connection is to end at once.
    pub(super) async fn is_cut(&self) {
        self.cut.cancelled().await;
    }

    /// The next entry; `None` when it is over.
    pub(super) async fn next(&self) -> Option<Item> {
        loop {
            if let Some(next) = self.take() {
                return next;
            }
            self.changed.notified().await;
        }
    }

    fn take(&self) -> Option<Option<Item>> {
        let mut queue = self.queue();
        let item = queue.items.pop_front();
        if let Some(item) = &item {
            let (bytes, sync_bytes) = item.cost();
            queue.bytes = queue.bytes.saturating_sub(bytes);
            queue.sync_bytes = queue.sync_bytes.saturating_sub(sync_bytes);
            self.drained.notify_one();
        }
        if item.is_none() && !queue.closed { None } else { Some(item) }
    }

    /// Waits until what waits is little.
    pub(super) async fn room(&self) {
        loop {
            {
                let queue = self.queue();
                if queue.bytes.saturating_add(queue.sync_bytes) <= ROOM || queue.closed {
                    return;
                }
            }
            self.drained.notified().await;
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while it holds the queue; if it did, what is in it is still whole.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(len: usize) -> Item {
        Item::Frame(vec![0; len].into())
    }

    #[test]
    fn a_line_keeps_its_order_and_ends_behind_its_last_entry() {
        let outbox = Outbox::default();
        let sync = Item::Messages { account: AccountId(1), ids: vec![1, 2], found: false };
        for item in [frame(1), sync.clone(), frame(2)] {
            assert!(outbox.put(item));
        }
        outbox.close();
        assert!(outbox.put(frame(3)), "what comes too late is dropped");
        let taken: Vec<_> = std::iter::from_fn(|| outbox.take().flatten()).collect();
        assert_eq!(taken, [frame(1), sync, frame(2)]);
        assert_eq!(outbox.take(), Some(None));
        let queue = outbox.queue();
        assert_eq!((queue.bytes, queue.sync_bytes), (0, 0));
    }

    #[tokio::test]
    async fn who_had_seen_a_million_messages_could_not_sync_any_more() {
        let outbox = Outbox::default();
        let ids = vec![1; OUTBOX_BYTES_MAX / size_of::<i64>() + 1];
        assert!(outbox.put(frame(1)) && outbox.put(Item::Messages { account: AccountId(1), ids, found: false }));
        assert!(
            outbox.put(frame(1)) && outbox.put(frame(OUTBOX_BYTES_MAX / 2)),
            "it ends, and live messages have room"
        );
        assert!(!outbox.cut.is_cancelled());
        // But whoever asks for it again is not heard before it is read.
        outbox.next().await;
        assert!(futures_util::poll!(std::pin::pin!(outbox.room())).is_pending());
        assert!(!outbox.put(frame(OUTBOX_BYTES_MAX / 2)), "the line is as bounded as before");
    }

    #[test]
    fn a_full_line_is_cut_and_holds_nothing_any_more() {
        let outbox = Outbox::default();
        while outbox.put(frame(1024 * 1024)) {
            assert!(!outbox.cut.is_cancelled());
        }
        assert!(outbox.cut.is_cancelled());
        assert_eq!(outbox.take(), Some(None));
    }

    #[tokio::test]
    async fn who_does_not_read_is_not_heard() {
        let outbox = Outbox::default();
        outbox.room().await;
        outbox.put(frame(ROOM));
        let waits = outbox.room();
        tokio::pin!(waits);
        assert!(futures_util::poll!(&mut waits).is_pending());
        assert!(outbox.next().await.is_some());
        waits.await;
    }
}
