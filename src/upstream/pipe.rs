//! A channel whose bound is bytes.
//!
//! Counting messages would let either a few large ones hold too much or many small ones stall too early. Each message
//! takes its length and a little for itself out of one allowance; whoever finds too little left waits. The queue
//! underneath may therefore be an unbounded one: the allowance is its bound. Messages come in batches, since the way through
//! costs as much for one as for many.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// What one message costs beside its bytes, in bytes: its place in the queue.
const PER_MESSAGE: usize = 64;

/// The other side is gone; nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the other side is gone")]
pub struct Gone;

/// How many bytes a message holds.
pub trait Weigh {
    /// Its payload, in bytes.
    fn bytes(&self) -> usize;
}

impl Weigh for bytes::Bytes {
    fn bytes(&self) -> usize {
        self.len()
    }
}

/// A message and what it takes of the allowance.
type Weighed<T> = (T, OwnedSemaphorePermit);

/// Where messages go in.
#[derive(Debug)]
pub struct Sender<T> {
    queue: mpsc::UnboundedSender<Weighed<T>>,
    room: Arc<Semaphore>,
    bound: usize,
}

/// Where they come out, in order.
#[derive(Debug)]
pub struct Receiver<T> {
    queue: mpsc::UnboundedReceiver<Weighed<T>>,
    room: Arc<Semaphore>,
}

/// A pipe that holds at most `bound` bytes. A message larger than that passes when it is alone.
#[must_use]
pub fn pipe<T: Weigh>(bound: usize) -> (Sender<T>, Receiver<T>) {
    let (tx, rx) = mpsc::unbounded_channel();
    let bound = bound.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
    let room = Arc::new(Semaphore::new(bound));
    (Sender { queue: tx, room: Arc::clone(&room), bound }, Receiver { queue: rx, room })
}

impl<T: Weigh> Sender<T> {
    /// Waits for room, then sends. A future that is dropped before it is done has sent nothing.
    ///
    /// # Errors
    /// [`Gone`] when nobody will receive it.
    pub async fn send(&self, message: T) -> Result<(), Gone> {
        let weight = message.bytes().saturating_add(PER_MESSAGE).min(self.bound);
        let weight = u32::try_from(weight).map_err(|_| Gone)?;
        let permit = Arc::clone(&self.room).acquire_many_owned(weight).await.map_err(|_| Gone)?;
        self.queue.send((message, permit)).map_err(|_| Gone)
    }
}

impl<T> Receiver<T> {
    /// The next message; `None` when the sender is gone and everything was received. Safe to drop while waiting.
    pub async fn recv(&mut self) -> Option<T> {
        self.queue.recv().await.map(|(message, _)| message)
    }

    /// The next message, if there is one already.
    pub fn try_recv(&mut self) -> Option<T> {
        self.queue.try_recv().ok().map(|(message, _)| message)
    }

    /// Waits for a message and takes those behind it that are there already, at most `most`; each keeps its room until its second
    /// half is dropped. Returns how many: 0 when the sender is gone and everything was received.
    pub(super) async fn recv_many_held(&mut self, into: &mut Vec<Weighed<T>>, most: usize) -> usize {
        self.queue.recv_many(into, most).await
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.room.close();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn bytes_are_counted_and_a_full_pipe_waits() {
        let (tx, mut rx) = pipe(1_000);
        tx.send(Bytes::from_static(&[1; 900])).await.unwrap();
        assert!(tx.send(Bytes::from_static(&[2; 100])).now_or_never().is_none(), "no room for it");
        assert_eq!(rx.recv().await.unwrap().len(), 900);
        tx.send(Bytes::from_static(&[3; 100])).await.unwrap();
        assert_eq!(rx.recv().await.unwrap()[0], 3, "the send that was given up sent nothing");
    }

    #[tokio::test]
    async fn many_small_messages_are_bounded_too() {
        let (tx, _rx) = pipe(1_000);
        let mut sent = 0;
        while tx.send(Bytes::new()).now_or_never().is_some() {
            sent += 1;
        }
        assert_eq!(sent, 1_000 / PER_MESSAGE);
    }

    #[tokio::test]
    async fn one_message_larger_than_the_bound_passes_alone() {
        let (tx, mut rx) = pipe(1_000);
        tx.send(Bytes::from_static(&[1; 5_000])).await.unwrap();
        assert!(tx.send(Bytes::new()).now_or_never().is_none());
        assert_eq!(rx.recv().await.unwrap().len(), 5_000);
    }

    #[tokio::test]
    async fn a_sender_that_waits_learns_that_nobody_will_receive() {
        let (tx, rx) = pipe(100);
        tx.send(Bytes::from_static(&[1; 100])).await.unwrap();
        let (result, ()) = tokio::join!(tx.send(Bytes::new()), async { drop(rx) });
        assert_eq!(result, Err(Gone));
    }
}
