//! One seat's stream: what is said on it and heard from it.

use std::future::poll_fn;

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};

use super::wire::{BadMessage, Lengths, Spoken};
use crate::wire::delimit::Cutter;

/// What gathers before it is sent, in bytes, when there is more to say at once.
const GATHERED: usize = 16 * 1_024;

/// The stream, or its link, is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the link is lost")]
pub(super) struct Lost;

impl From<h2::Error> for Lost {
    fn from(_: h2::Error) -> Self {
        Self
    }
}

/// Why nothing more is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unheard {
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error(transparent)]
    Bad(#[from] BadMessage),
}

/// The direction from here.
pub(super) struct Mouth {
    stream: SendStream<Bytes>,
    waiting: BytesMut,
}

impl Mouth {
    pub(super) fn new(stream: SendStream<Bytes>) -> Self {
        Self { stream, waiting: BytesMut::new() }
    }

    /// Says something, as soon as [`Self::flush`] gets to it.
    pub(super) fn put(&mut self, message: &impl Spoken) {
        message.encode(&mut self.waiting);
    }

    /// Whether something is still to be sent.
    pub(super) fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether so much is still to be sent that nothing should be added.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= GATHERED
    }

    /// Sends what waits, as the other end makes room for it. Safe to drop while waiting.
    pub(super) async fn flush(&mut self) -> Result<(), Lost> {
        while self.waits() {
            self.stream.reserve_capacity(self.waiting.len());
            let room = match self.stream.capacity() {
                // What is there already is not told again.
                0 => poll_fn(|cx| self.stream.poll_capacity(cx)).await.ok_or(Lost)??,
                room => room,
            };
            let next = self.waiting.split_to(room.min(self.waiting.len())).freeze();
            self.stream.send_data(next, false)?;
        }
        Ok(())
    }

    /// Sends what waits, and ends this direction.
    pub(super) async fn finish(&mut self) -> Result<(), Lost> {
        self.flush().await?;
        Ok(self.stream.send_data(Bytes::new(), true)?)
    }

    /// Ends both directions: the other end broke the protocol.
    pub(super) fn reject(&mut self) {
        self.stream.send_reset(Reason::PROTOCOL_ERROR);
    }
}

/// The direction to here.
pub(super) struct Ear {
    stream: RecvStream,
    cutter: Cutter<Lengths>,
}

impl Ear {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self { stream, cutter: Cutter::new(Lengths) }
    }

    /// What is said next; `None` when the other end has nothing more to say. Safe to drop while waiting.
    pub(super) async fn next<M: Spoken>(&mut self) -> Result<Option<M>, Unheard> {
        loop {
            if let Some(message) = self.cutter.next_unit_as(M::decode).map_err(BadMessage::from)? {
                return Ok(Some(message?));
            }
            match self.stream.data().await {
                // Copied: it lies in a buffer of the whole link. There is room for more at once, since this holds less than
                // a message, and asks only when it needs more.
                Some(Ok(data)) => {
                    self.cutter.buffer().extend_from_slice(&data);
                    self.stream.flow_control().release_capacity(data.len()).map_err(Lost::from)?;
                }
                Some(Err(error)) => return Err(Lost::from(error).into()),
                None if self.cutter.buffer().is_empty() => return Ok(None),
                None => return Err(BadMessage::CutShort.into()),
            }
        }
    }
}
