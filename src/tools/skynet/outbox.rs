//! What was said and not answered yet, in order. Pure.
//!
//! A server closes the connection, without a word, at what is out of the protocol (spec 2.1). What was said stays here until it is
//! answered, so one message that a server will not have would end every connection from then on. So it is noticed: when two connections
//! in a row ended before anything was answered, what waits is said one by one, and what was alone on the line at two such ends is
//! given up. *Rejected*: giving up at once what was said first, because connections also end by themselves.

use std::collections::VecDeque;

use crate::chat::skynet::wire::{Body, ChannelId, MessageId, Upload};

/// Connections that ended with nothing answered, in a row, before one thing at a time is said.
const IN_VAIN: u32 = 2;
/// Connections that ended with the same thing alone on the line, before it is given up.
const ALONE: u32 = 2;

/// Something that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) upload: Upload,
    /// Of what is kept as its newest only: what that was when this was said.
    pub(super) instead_of: Option<MessageId>,
}

/// See the top of this file.
#[derive(Debug)]
pub(super) struct Outbox {
    waiting: VecDeque<Waiting>,
    next_temp: i64,
    /// So many, from the first on, were said on this connection.
    said: usize,
    /// Something was answered on it.
    answered: bool,
    in_vain: u32,
    one_by_one: bool,
    alone: (MessageId, u32),
}

impl Outbox {
    pub(super) const fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            next_temp: -1,
            said: 0,
            answered: false,
            in_vain: 0,
            one_by_one: false,
            alone: (MessageId::NONE, 0),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Upload> {
        self.waiting.iter().map(|it| &it.upload)
    }

    /// Whether a connection is good for something: it had something answered, or there is nothing to be.
    pub(super) fn is_heard(&self) -> bool {
        self.answered || self.waiting.is_empty()
    }

    /// A number that nothing else has here.
    pub(super) fn number(&mut self) -> i64 {
        let number = self.next_temp;
        self.next_temp = self.next_temp.saturating_sub(1);
        number
    }

    /// Something is to be said.
    pub(super) fn post(&mut self, channel: ChannelId, body: Body, instead_of: Option<MessageId>) -> Upload {
        let upload = Upload { channel, temp: MessageId(self.number()), body };
        self.waiting.push_back(Waiting { upload: upload.clone(), instead_of });
        upload
    }

    /// The same of what was kept.
    pub(super) fn restore(&mut self, upload: Upload, instead_of: Option<MessageId>) {
        self.next_temp = self.next_temp.min(upload.temp.0.saturating_sub(1));
        self.waiting.push_back(Waiting { upload, instead_of });
    }

    /// What can be said now, once on each connection.
    pub(super) fn next_to_say(&mut self) -> Vec<Upload> {
        let until = if self.one_by_one { self.waiting.len().min(1) } else { self.waiting.len() };
        let from = self.said;
        self.said = until.max(from);
        self.waiting.iter().take(until).skip(from).map(|it| it.upload.clone()).collect()
    }

    /// The server has answered something.
    pub(super) fn answer(&mut self, temp: MessageId) -> Option<Upload> {
        self.answered = true;
        self.in_vain = 0;
        self.remove(|it| it.upload.temp == temp)
    }

    /// Takes out what is answered otherwise, or is not to be said any more.
    pub(super) fn remove(&mut self, which: impl FnMut(&Waiting) -> bool) -> Option<Upload> {
        let at = self.waiting.iter().position(which)?;
        if at < self.said {
            self.said -= 1;
        }
        let removed = self.waiting.remove(at);
        if self.waiting.is_empty() {
            self.one_by_one = false;
        }
        removed.map(|it| it.upload)
    }

    /// The connection is gone; `closed` if it was not this side that gave it up. What the server will not have.
    pub(super) fn lost(&mut self, closed: bool) -> Option<Upload> {
        let (said, answered) = (std::mem::take(&mut self.said), std::mem::take(&mut self.answered));
        if !closed || said == 0 || (answered && !self.one_by_one) {
            return None;
        }
        self.in_vain += 1;
        if !self.one_by_one {
            self.one_by_one = self.in_vain >= IN_VAIN;
            return None;
        }
        let first = self.waiting.front().map(|it| it.upload.temp)?;
        self.alone = (first, if self.alone.0 == first { self.alone.1 + 1 } else { 1 });
        if self.alone.1 < ALONE { None } else { self.remove(|it| it.upload.temp == first) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::skynet::wire::{Kind, MessageFlags};

    fn temps(uploads: &[Upload]) -> Vec<i64> {
        uploads.iter().map(|it| it.temp.0).collect()
    }

    fn with(count: usize) -> Outbox {
        let mut outbox = Outbox::new();
        for _ in 0..count {
            outbox.post(ChannelId(1), Body::new(Kind::MessageRead, MessageFlags::UNENCRYPTED, Vec::new()), None);
        }
        outbox
    }

    /// The second of three ends every connection at which it is said. How many connections it takes until all are gone.
    #[test]
    fn what_a_server_will_not_have_is_found_and_given_up() {
        let mut outbox = with(3);
        let (mut answered, mut given_up, mut connections) = (Vec::new(), Vec::new(), 0);
        while !outbox.is_empty() {
            connections += 1;
            assert!(connections < 10, "{outbox:?}");
            let mut line = std::collections::VecDeque::from(temps(&outbox.next_to_say()));
            while let Some(temp) = line.pop_front() {
                if temp == -2 {
                    given_up.extend(outbox.lost(true).map(|it| it.temp.0));
                    break;
                }
                answered.extend(outbox.answer(MessageId(temp)).map(|it| it.temp.0));
                line.extend(temps(&outbox.next_to_say()));
            }
        }
        assert_eq!((answered, given_up, connections), (vec![-1, -3], vec![-2], 6));
        // And the next ones are said together again.
        outbox.lost(false);
        for temp in [-4, -5] {
            assert_eq!(
                outbox.post(ChannelId(1), Body::new(Kind::MessageRead, MessageFlags::NONE, Vec::new()), None).temp.0,
                temp
            );
        }
        assert_eq!(temps(&outbox.next_to_say()), [-4, -5]);
    }

    #[test]
    fn connections_that_end_by_themselves_cost_nothing() {
        let mut outbox = with(2);
        for _ in 0..20 {
            assert_eq!((outbox.next_to_say().len(), outbox.lost(false)), (2, None));
        }
        // Nor those on which something was answered.
        for _ in 0..20 {
            let more = outbox.post(ChannelId(1), Body::new(Kind::MessageRead, MessageFlags::NONE, Vec::new()), None);
            assert_eq!(outbox.next_to_say().len(), 3);
            outbox.answer(more.temp);
            assert_eq!(outbox.lost(true), None);
        }
        assert_eq!(outbox.len(), 2);
    }
}
