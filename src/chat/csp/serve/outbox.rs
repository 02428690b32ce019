//! What waits to be written to one connection: two lanes and an ending.
//!
//! Ahead go acks, echoes, alerts: the very things a client needs to produce its next 0x82. Behind them go messages and
//! the queue-send-complete. Both count against one limit; whoever exceeds it is not reading, and is disconnected. Nothing
//! promised is lost by that: messages without a 0x82 are still queued.
//!
//! A connection that is blocked again gives back what waits behind, so a window's worth of messages waits at most, also
//! when the next window comes at once.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::chat::csp::state::{Delivery, Ending, Seq};
use crate::chat::csp::wire::{CONTAINER_HEADER, DATA_MAX, LoginAck, ToClient};
use crate::time::{Clock, Now};

/// What may wait ahead of messages, in bytes: acks and echoes of what a client sent without listening.
const AHEAD_BYTES_MAX: usize = 512 * 1024;
/// What one payload costs beyond its bytes.
const ITEM_OVERHEAD: usize = 64;
/// What one payload costs at most.
const ITEM_COST_MAX: usize = CONTAINER_HEADER + DATA_MAX + ITEM_OVERHEAD;

/// What may wait for a connection, in bytes, if at most `window` messages are in flight to it: however long they are, they
/// fit, and leave room for what goes ahead of them.
#[must_use]
pub const fn outbox_bytes_max(window: usize) -> usize {
    window.saturating_mul(ITEM_COST_MAX).saturating_add(AHEAD_BYTES_MAX)
}

/// One payload that waits. Prints its length only.
pub(super) struct Item {
    pub(super) container: Bytes,
    /// To be reported when it is on the socket.
    pub(super) written: Option<Seq>,
    /// When it is not to be written any more, on the monotonic clock.
    expires: Option<Duration>,
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Item({} bytes)", self.container.len())
    }
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
#[derive(Debug)]
pub(super) struct Outbox {
    bytes_max: usize,
    lanes: Mutex<Lanes>,
    changed: Notify,
    ended: CancellationToken,
}

impl Outbox {
    /// Of a connection to which at most `window` messages are in flight.
    pub(super) fn new(window: usize) -> Self {
        Self {
            bytes_max: outbox_bytes_max(window),
            lanes: Mutex::default(),
            changed: Notify::new(),
            ended: CancellationToken::new(),
        }
    }

    /// The client is let in.
    pub(super) fn admit(&self, ack: LoginAck) {
        self.lanes().admission = Some(ack);
        self.changed.notify_one();
    }

    /// Waits for [`Self::admit`], or for the end. Who was let in and is to end already is let in all the same: only
    /// behind its login-ack can it be told why, and who is not told comes back at once.
    pub(super) async fn admitted(&self) -> Result<LoginAck, Ending> {
        loop {
            {
                let mut lanes = self.lanes();
                if let Some(ack) = lanes.admission.take() {
                    return Ok(ack);
                }
                if let Some(ending) = &lanes.ending {
                    return Err(ending.clone());
                }
            }
            self.changed.notified().await;
        }
    }

    /// Ahead of messages.
    pub(super) fn send(&self, payload: &ToClient) {
        self.put(Item { container: payload.encode(), written: None, expires: None }, |lanes| &mut lanes.ahead);
    }

    /// Behind the messages before it.
    pub(super) fn send_behind(&self, payload: &ToClient) {
        self.put(Item { container: payload.encode(), written: None, expires: None }, |lanes| &mut lanes.behind);
    }

    /// A message, behind the messages before it.
    pub(super) fn deliver(&self, delivery: Delivery) {
        if delivery.now_or_never && !self.lanes().behind.is_empty() {
            return;
        }
        let container = ToClient::Message(delivery.message).encode();
        self.put(Item { container, written: delivery.tell_written, expires: Some(delivery.expires) }, |lanes| {
            &mut lanes.behind
        });
    }

    fn put(&self, item: Item, lane: impl FnOnce(&mut Lanes) -> &mut VecDeque<Item>) {
        let mut lanes = self.lanes();
        if lanes.ending.is_some() {
            return;
        }
        lanes.bytes += item.cost();
        if lanes.bytes > self.bytes_max {
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

    /// What waits behind is not to be written any more. What the writer has taken out already counts as written.
    pub(super) fn retract(&self) {
        let mut lanes = self.lanes();
        let retracted: usize = lanes.behind.drain(..).map(|item| item.cost()).sum();
        lanes.bytes = lanes.bytes.saturating_sub(retracted);
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

    /// Waits for something to write: everything ahead first, about `bytes` of it, and no message whose time has passed
    /// while it waited (spec 4.3): state forgets it by itself.
    pub(super) async fn next(&self, bytes: usize, clock: &Clock) -> Batch {
        loop {
            if let Some(batch) = self.take(bytes, clock.now()) {
                return batch;
            }
            self.changed.notified().await;
        }
    }

    fn take(&self, bytes: usize, now: Now) -> Option<Batch> {
        let mut lanes = self.lanes();
        let mut items = Vec::new();
        let mut taken = 0;
        while taken < bytes
            && let Some(item) = lanes.ahead.pop_front().or_else(|| lanes.behind.pop_front())
        {
            lanes.bytes = lanes.bytes.saturating_sub(item.cost());
            if item.expires.is_none_or(|expires| now.monotonic < expires) {
                taken += item.cost();
                items.push(item);
            }
        }
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
    use crate::chat::csp::wire::message::BOXES_MAX;
    use crate::chat::csp::wire::{Message, MessageFlags, MessageId, WireIdentity};

    const WINDOW: usize = 64;
    const NOW: Now = Now { monotonic: Duration::from_secs(100), wall_ms: 0 };

    fn echo(len: usize) -> ToClient {
        ToClient::EchoResponse(vec![0; len].into())
    }

    fn kinds(batch: Option<Batch>) -> Vec<u8> {
        match batch {
            Some(Batch::Items(items)) => items.iter().map(|item| item.container[0]).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn longest_message() -> Delivery {
        let message = Message {
            sender: WireIdentity(*b"AAAAAAAA"),
            receiver: WireIdentity(*b"BBBBBBBB"),
            id: MessageId(1),
            created_at_s: 0,
            flags: MessageFlags::default(),
            nickname: [0; 32],
            metadata_box: Bytes::new(),
            nonce: [0; 24],
            message_box: vec![0; BOXES_MAX].into(),
        };
        Delivery { message, tell_written: None, now_or_never: false, expires: Duration::MAX }
    }

    #[test]
    fn csp_6_echo_goes_ahead_of_what_waits_behind() {
        let outbox = Outbox::new(WINDOW);
        outbox.send_behind(&ToClient::QueueSendComplete);
        outbox.send(&echo(8));
        assert_eq!(kinds(outbox.take(usize::MAX, NOW)), [0x80, 0xd0]);
        assert!(outbox.take(usize::MAX, NOW).is_none());
    }

    #[test]
    fn what_waits_is_not_printed() {
        let outbox = Outbox::new(WINDOW);
        outbox.send(&ToClient::EchoResponse(Bytes::from_static(&[0xab; 8])));
        let waiting = format!("{outbox:?}");
        assert!(waiting.contains("Item(12 bytes)"), "{waiting}");
        let taken = format!("{:?}", outbox.take(usize::MAX, NOW));
        assert!(taken.contains("Item(12 bytes)"), "{taken}");
    }

    #[test]
    fn a_full_outbox_ends_the_connection_and_holds_nothing_any_more() {
        let outbox = Outbox::new(WINDOW);
        for _ in 0..=outbox_bytes_max(WINDOW) / ITEM_COST_MAX {
            assert!(outbox.ending().is_none());
            outbox.send(&echo(DATA_MAX));
        }
        assert!(matches!(outbox.take(1, NOW), Some(Batch::End(Ending::OutboxFull))));
        outbox.end(Ending::Replaced);
        assert!(matches!(outbox.take(1, NOW), Some(Batch::End(Ending::OutboxFull))), "the first reason counts");
    }

    #[test]
    fn window_after_window_fits_when_the_last_one_was_retracted() {
        for window in [1, WINDOW, 1_000] {
            let outbox = Outbox::new(window);
            for _ in 0..3 {
                outbox.retract();
                (0..window).for_each(|_| outbox.deliver(longest_message()));
                outbox.send_behind(&ToClient::QueueSendComplete);
            }
            outbox.send(&echo(DATA_MAX));
            assert_eq!(outbox.ending(), None, "window {window}");
            let all = kinds(outbox.take(usize::MAX, NOW));
            assert_eq!((all.len(), all[0], all[1], all[window + 1]), (window + 2, 0x80, 0x02, 0xd0));
        }
    }

    #[test]
    fn csp_4_3_what_expires_while_it_waits_is_not_written() {
        let outbox = Outbox::new(WINDOW);
        let in_time = Duration::from_secs(1);
        for expires in [NOW.monotonic, NOW.monotonic + in_time, NOW.monotonic - in_time] {
            outbox.deliver(Delivery { expires, ..longest_message() });
        }
        outbox.send_behind(&ToClient::QueueSendComplete);
        assert_eq!(kinds(outbox.take(usize::MAX, NOW)), [0x02, 0xd0]);
        outbox.deliver(Delivery { expires: NOW.monotonic, ..longest_message() });
        assert!(outbox.take(usize::MAX, NOW).is_none());
        assert_eq!(outbox.lanes().bytes, 0);
    }

    #[test]
    fn csp_5_what_waits_behind_can_be_retracted_and_what_waits_ahead_stays() {
        let outbox = Outbox::new(WINDOW);
        outbox.deliver(longest_message());
        outbox.send_behind(&ToClient::QueueSendComplete);
        outbox.send(&echo(8));
        outbox.retract();
        assert_eq!(kinds(outbox.take(usize::MAX, NOW)), [0x80]);
        assert_eq!(outbox.lanes().bytes, 0);
    }

    #[tokio::test]
    async fn an_ending_comes_behind_the_admission() {
        let (outbox, ack) = (Outbox::new(WINDOW), LoginAck { time_ms: 1, queued: 2 });
        outbox.admit(ack);
        outbox.end(Ending::Replaced);
        assert_eq!(outbox.admitted().await, Ok(ack));
        assert!(matches!(outbox.take(usize::MAX, NOW), Some(Batch::End(Ending::Replaced))));
        let outbox = Outbox::new(WINDOW);
        outbox.end(Ending::Store);
        assert_eq!(outbox.admitted().await, Err(Ending::Store));
    }

    #[test]
    fn an_ending_lets_acks_out_and_keeps_messages_back() {
        let outbox = Outbox::new(WINDOW);
        outbox.send_behind(&ToClient::QueueSendComplete);
        outbox.send(&echo(8));
        outbox.end(Ending::Replaced);
        outbox.send(&echo(8));
        assert_eq!(kinds(outbox.take(usize::MAX, NOW)), [0x80]);
        assert!(matches!(outbox.take(usize::MAX, NOW), Some(Batch::End(Ending::Replaced))));
    }
}
