//! The group's one log: where it stands, and the part of it that is in memory.
//!
//! Every accepted reflect takes a seq, stored or ephemeral. Stored ones are written once for all slots. In memory stays
//! only what some connection has not been handed yet: the *window*. It begins behind `floor`; a connection that fell
//! behind the floor reads pages from the store until it has caught up with the window again. Nothing leaves the window
//! before it is durable, so a page never misses anything.

use std::collections::VecDeque;

use super::limits::{ENTRY_COST, SEQ_BLOCK, WINDOW_BYTES_MAX};
use super::record::{LogEntry, Seq};
use crate::time::Now;

#[derive(Debug)]
pub(super) struct Log {
    /// The last seq that was given.
    pub(super) last: Seq,
    /// No seq beyond this is given before a higher one is written.
    pub(super) reserved: Seq,
    /// Entries up to here are gone from the store, or on their way out.
    pub(super) trimmed: Seq,
    /// The window holds everything beyond this.
    pub(super) floor: Seq,
    pub(super) last_timestamp_ms: u64,
    /// Writes up to here are kept.
    durable: Seq,
    window: VecDeque<LogEntry>,
    window_bytes: usize,
}

/// What an entry takes in memory, in bytes.
fn takes(entry: &LogEntry) -> usize {
    entry.message.container().len().saturating_add(ENTRY_COST)
}

impl Log {
    /// A log whose every seq up to `reserved` may have been given.
    pub(super) const fn resume(reserved: Seq, last_timestamp_ms: u64) -> Self {
        Self {
            last: reserved,
            reserved,
            trimmed: Seq(0),
            floor: reserved,
            last_timestamp_ms,
            durable: reserved,
            window: VecDeque::new(),
            window_bytes: 0,
        }
    }

    /// The next seq; the second value says that a new block was reserved, which has to be written.
    pub(super) fn advance(&mut self) -> (Seq, bool) {
        self.last = self.last.next();
        let reserve = self.last > self.reserved;
        if reserve {
            self.reserved = Seq(self.last.0.saturating_add(SEQ_BLOCK));
        }
        (self.last, reserve)
    }

    /// The timestamp of what is accepted now: never less than the one before (spec A35).
    pub(super) fn timestamp(&mut self, now: Now) -> u64 {
        self.last_timestamp_ms = self.last_timestamp_ms.max(now.wall_ms);
        self.last_timestamp_ms
    }

    pub(super) fn push(&mut self, entry: LogEntry) {
        self.window_bytes = self.window_bytes.saturating_add(takes(&entry));
        self.window.push_back(entry);
    }

    /// The first entry of the window beyond `after`. Only for `after >= floor`.
    pub(super) fn first_beyond(&self, after: Seq) -> Option<&LogEntry> {
        let at = self.window.partition_point(|entry| entry.seq <= after);
        self.window.get(at)
    }

    pub(super) fn durable(&mut self) {
        self.durable = self.last;
    }

    /// Lets go of entries that every connection was handed, and of more when too much has gathered. `handed` is the
    /// least of what the connections were handed; nobody needs anything when there is none. Says how many ephemeral
    /// messages went before everybody was handed them.
    pub(super) fn shrink(&mut self, handed: Option<Seq>) -> usize {
        let mut skipped = 0;
        let handed = handed.unwrap_or(self.last);
        while let Some(front) = self.window.front() {
            let wanted = front.seq > handed && self.window_bytes <= WINDOW_BYTES_MAX;
            if wanted || front.seq > self.durable {
                return skipped;
            }
            skipped += usize::from(front.seq > handed && front.message.flags().ephemeral);
            self.floor = front.seq;
            self.window_bytes = self.window_bytes.saturating_sub(takes(front));
            self.window.pop_front();
        }
        self.floor = self.durable;
        if self.window.capacity() > 64 {
            self.window.shrink_to(16);
        }
        skipped
    }

    pub(super) fn window(&self) -> impl Iterator<Item = &LogEntry> {
        self.window.iter()
    }
}
