//! What waits to be written to one connection: two lanes and an ending.
//!
//! Ahead go acks, echoes, alerts: the very things a client needs to produce its next 0x82. Behind them go messages and
//! the queue-send-complete. Both count against one limit; whoever exceeds it is not reading, and is disconnected. Nothing
//! promised is lost by that: messages without a 0x82 are still queued.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::chat::csp::state::{Delivery, Ending, Seq};
use crate::chat::csp::wire::{DATA_MAX, LoginAck, ToClient};

/// What may wait for a connection, in bytes: twice a full window of the longest messages.
pub const OUTBOX_BYTES_MAX: usize = 1024 * 1024;
/// What one payload costs beyond its bytes.
const ITEM_OVERHEAD: usize = 64;

const _: () = assert!(OUTBOX_BYTES_MAX >= 64 * (DATA_MAX + ITEM_OVERHEAD));

/// One payload that waits.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) container: Bytes,
    /// To be reported when it is on the socket.
    pub(super) written: Option<Seq>,
}

impl Item {
    fn cost(&self) -> usize {
        self.container.len() + ITEM_OVERHEAD
    }
}

#[derive(Debug, Default)]
struct Lanes {
    admission: Option<LoginAck>,
    ahead: VecDeque<Item>,
    behind: VecDeque<Item>,
    bytes: usize,
    ending: Option<Ending>,
}

/// What the writer takes out.
#[derive(Debug)]
pub(super) enum Batch {
    /// Write these.
    Items(Vec<Item>),
    /// Everything is written that was to be: say farewell.
    End(Ending),
}

/// See the top of this file.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    lanes: Mutex<Lanes>,
    changed: Notify,
    ended: CancellationToken,
}

impl Outbox {
    /// The client is let in.
    pub(super) fn admit(&self, ack: LoginAck) {
        self.lanes().admission = Some(ack);
        self.changed.notify_one();
    }

    /// Waits for [`Self::admit`], or for the end.
    pub(super) async fn admitted(&self) -> Result<LoginAck, Ending> {
        loop {
            {
                let mut lanes = self.lanes();
                if let Some(ending) = &lanes.ending {
                    return Err(ending.clone());
                }
                if let Some(ack) = lanes.admission.take() {
                    return Ok(ack);
                }
            }
            self.changed.notified().await;
        }
    }

    /// Ahead of messages.
    pub(super) fn send(&self, payload: &ToClient) {
        self.put(Item { container: payload.encode(), written: None }, |lanes| &mut lanes.ahead);
    }

    /// Behind the messages before it.
    pub(super) fn send_behind(&self, payload: &ToClient) {
        self.put(Item { container: payload.encode(), written: None }, |lanes| &mut lanes.behind);
    }

    /// A message, behind the messages before it.
    pub(super) fn deliver(&self, delivery: Delivery) {
        if delivery.now_or_never && !self.lanes().behind.is_empty() {
            return;
        }
        let container = ToClient::Message(delivery.message).encode();
        self.put(Item { container, written: delivery.tell_written }, |lanes| &mut lanes.behind);
    }

    fn put(&self, item: Item, lane: impl FnOnce(&mut Lanes) -> &mut VecDeque<Item>) {
        let mut lanes = self.lanes();
        if lanes.ending.is_some() {
            return;
        }
        lanes.bytes += item.cost();
        if lanes.bytes > OUTBOX_BYTES_MAX {
            lanes.ahead.clear();
            lanes.behind.clear();
            lanes.ending = Some(Ending::OutboxFull);
            self.ended.cancel();
        } else {
            lane(&mut lanes).push_back(item);
        }
        drop(lanes);
        self.changed.notify_one();
    }

    /// The connection ends when what waits ahead is written. The first reason counts.
    pub(super) fn end(&self, ending: Ending) {
        let mut lanes = self.lanes();
        lanes.behind.clear();
        lanes.ending.get_or_insert(ending);
        drop(lanes);
        self.ended.cancel();
        self.changed.notify_one();
    }

    /// Waits until the connection is to end, also while a write is stuck.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Why the connection is to end.
    pub(super) fn ending(&self) -> Option<Ending> {
        self.lanes().ending.clone()
    }

    /// Waits for something to write: everything ahead first, about `bytes` of it.
    pub(super) async fn next(&self, bytes: usize) -> Batch {
        loop {
            if let Some(batch) = self.take(bytes) {
                return batch;
            }
            self.changed.notified().await;
        }
    }

    fn take(&self, bytes: usize) -> Option<Batch> {
        let mut lanes = self.lanes();
        let mut items = Vec::new();
        let mut taken = 0;
        while taken < bytes
            && let Some(item) = lanes.ahead.pop_front().or_else(|| lanes.behind.pop_front())
        {
            taken += item.cost();
            items.push(item);
        }
        lanes.bytes = lanes.bytes.saturating_sub(taken);
        if items.is_empty() { lanes.ending.clone().map(Batch::End) } else { Some(Batch::Items(items)) }
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        // Nothing panics while it holds the lanes; if it did, what is in them is still whole.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo(len: usize) -> ToClient {
        ToClient::EchoResponse(vec![0; len].into())
    }

    fn kinds(batch: Option<Batch>) -> Vec<u8> {
        match batch {
            Some(Batch::Items(items)) => items.iter().map(|item| item.container[0]).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn csp_6_echo_goes_ahead_of_what_waits_behind() {
        let outbox = Outbox::default();
        outbox.send_behind(&ToClient::QueueSendComplete);
        outbox.send(&echo(8));
        assert_eq!(kinds(outbox.take(usize::MAX)), [0x80, 0xd0]);
        assert!(outbox.take(usize::MAX).is_none());
    }

    #[test]
    fn a_full_outbox_ends_the_connection_and_holds_nothing_any_more() {
        let outbox = Outbox::default();
        for _ in 0..OUTBOX_BYTES_MAX / DATA_MAX {
            outbox.send(&echo(DATA_MAX));
        }
        assert!(matches!(outbox.take(1), Some(Batch::End(Ending::OutboxFull))));
        outbox.end(Ending::Replaced);
        assert!(matches!(outbox.take(1), Some(Batch::End(Ending::OutboxFull))), "the first reason counts");
    }

    #[test]
    fn an_ending_lets_acks_out_and_keeps_messages_back() {
        let outbox = Outbox::default();
        outbox.send_behind(&ToClient::QueueSendComplete);
        outbox.send(&echo(8));
        outbox.end(Ending::Replaced);
        outbox.send(&echo(8));
        assert_eq!(kinds(outbox.take(usize::MAX)), [0x80]);
        assert!(matches!(outbox.take(usize::MAX), Some(Batch::End(Ending::Replaced))));
    }
}
