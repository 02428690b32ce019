//! From connections into a capture: taps record, a bounded queue holds, whoever reads the queue takes.
//!
//! Recording is a lock, a copy and no wait: it happens on the way of frames that somebody waits for. Times are read under that
//! lock, so records stand in the order of their times. When the queue is full, the capture is over: what waits is
//! given up (so that an abandoned capture holds nothing), the reader finds [`End::TooSlow`], and connections go on as if nobody
//! had ever listened. Thinning the stream out instead would make a capture in which an answer is missing for no reason.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{ClosedBy, Direction, End, Entry, Event, Header, Observer, Track, redact};
use crate::files;
use crate::time::Clock;
use crate::wire::d2m::{DeviceGroupId, DeviceId, ServerGroup};

/// Bytes that may wait for a reader: 128 of the longest frames, or some seconds of a busy group.
pub const WAITING_MAX: usize = 8 * 1024 * 1024;

/// Bytes in a piece of what waits, and at most one record more: so much is on its way to a reader beside the queue, and the queue
/// never grows by copying all of it.
const PIECE: usize = 256 * 1024;

/// Where connections are recorded. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Recorder(Arc<Shared>);

/// What was recorded, as bytes of a capture, header first. Dropping it ends the capture.
#[derive(Debug)]
pub struct Recording {
    /// Not in the queue, so that it is there even when the queue was given up.
    header: Option<Header>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    clock: Clock,
    began: Duration,
    /// The first group that connects, or the one it was made for.
    group: OnceLock<DeviceGroupId>,
    queue: Mutex<Queue>,
    frames: AtomicU64,
    more: Notify,
    over: CancellationToken,
}

#[derive(Debug)]
struct Queue {
    pieces: VecDeque<Vec<u8>>,
    /// Bytes in all of them.
    waiting: usize,
    tracks: u32,
    end: Option<End>,
}

impl Queue {
    fn push(&mut self, entry: &Entry) {
        let mut piece = self.pieces.pop_back().unwrap_or_default();
        if piece.len() >= PIECE {
            self.pieces.push_back(std::mem::take(&mut piece));
        }
        let before = piece.len();
        entry.encode(&mut piece);
        self.waiting += piece.len() - before;
        self.pieces.push_back(piece);
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        let piece = self.pieces.pop_front()?;
        self.waiting -= piece.len();
        Some(piece)
    }

    fn give_up(&mut self) {
        self.pieces = VecDeque::new();
        self.waiting = 0;
    }
}

impl Recorder {
    /// Begins a capture of one device group: of this one, else of the first that connects.
    #[must_use]
    pub fn begin(clock: Clock, observer: Observer, group: Option<DeviceGroupId>) -> (Self, Recording) {
        let now = clock.now();
        let header = Some(Header { wall_ms: now.wall_ms, observer });
        let shared = Arc::new(Shared {
            clock,
            began: now.monotonic,
            group: group.map_or_else(OnceLock::new, OnceLock::from),
            queue: Mutex::new(Queue { pieces: VecDeque::new(), waiting: 0, tracks: 0, end: None }),
            frames: AtomicU64::new(0),
            more: Notify::new(),
            over: CancellationToken::new(),
        });
        (Self(Arc::clone(&shared)), Recording { header, shared })
    }

    /// A connection was opened; nothing when it is another group's.
    #[must_use]
    pub fn connect(&self, group: DeviceGroupId, server_group: &ServerGroup) -> Option<Tap> {
        self.tap(group, server_group, false, None)
    }

    /// A connection that was opened before the recording began is heard of; nothing when it is another group's.
    #[must_use]
    pub fn meet(&self, group: DeviceGroupId, server_group: &ServerGroup, device: Option<DeviceId>) -> Option<Tap> {
        self.tap(group, server_group, true, device)
    }

    fn tap(
        &self,
        group: DeviceGroupId,
        server_group: &ServerGroup,
        earlier: bool,
        device: Option<DeviceId>,
    ) -> Option<Tap> {
        if *self.0.group.get_or_init(|| group) != group {
            return None;
        }
        let mut queue = self.0.queue();
        queue.tracks = queue.tracks.checked_add(1)?;
        let track = Track(queue.tracks);
        self.0.push(&mut queue, Event::Connect { track, server_group: server_group.clone(), earlier, device });
        drop(queue);
        Some(Tap(Arc::new(OnConnection {
            shared: Arc::clone(&self.0),
            track,
            leaving: OnceLock::new(),
            closed: AtomicBool::new(false),
        })))
    }

    /// Ends the capture; the first reason counts.
    pub fn end(&self, end: End) {
        let mut queue = self.0.queue();
        self.0.end(&mut queue, end);
    }

    /// Why it ended, if it did.
    #[must_use]
    pub fn ended(&self) -> Option<End> {
        self.0.queue().end
    }

    /// Returns when it ended.
    pub async fn over(&self) {
        self.0.over.cancelled().await;
    }

    /// Frames that were recorded so far.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.0.frames.load(Ordering::Relaxed)
    }

    /// Whether both are the same capture.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, queue: &mut Queue, event: Event) {
        if queue.end.is_some() {
            return;
        }
        let at = self.clock.now().monotonic.saturating_sub(self.began);
        queue.push(&Entry { at, event });
        if queue.waiting > WAITING_MAX {
            self.end(queue, End::TooSlow);
        } else {
            self.more.notify_one();
        }
    }

    fn end(&self, queue: &mut Queue, end: End) {
        if queue.end.is_some() {
            return;
        }
        match end {
            End::TooSlow | End::Left => queue.give_up(),
            End::Done | End::TimeOver | End::Stopping => {}
        }
        let at = self.clock.now().monotonic.saturating_sub(self.began);
        queue.push(&Entry { at, event: Event::End(end) });
        queue.end = Some(end);
        self.over.cancel();
        self.more.notify_one();
    }
}

impl Recording {
    /// The next of what was recorded, whole records of some 256 KiB at most; nothing when the capture is over and all of it was taken.
    pub async fn next(&mut self) -> Option<Bytes> {
        if let Some(header) = self.header.take() {
            return Some(header.encode().into());
        }
        loop {
            let woken = self.shared.more.notified();
            {
                let mut queue = self.shared.queue();
                if let Some(piece) = queue.take() {
                    return Some(piece.into());
                }
                if queue.end.is_some() {
                    return None;
                }
            }
            woken.await;
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let mut queue = self.shared.queue();
        self.shared.end(&mut queue, End::Left);
        queue.give_up();
    }
}

/// Records one connection. When the last clone is gone without a close, the connection counts as broken.
#[derive(Debug, Clone)]
pub struct Tap(Arc<OnConnection>);

#[derive(Debug)]
struct OnConnection {
    shared: Arc<Shared>,
    track: Track,
    /// What the device said when it began to close.
    leaving: OnceLock<(u16, String)>,
    closed: AtomicBool,
}

impl Tap {
    /// A binary message of the device's.
    pub fn from_device(&self, message: &[u8]) {
        self.0.frame(Direction::FromDevice, message);
    }

    /// A binary message of the mediator's.
    pub fn to_device(&self, message: &[u8]) {
        self.0.frame(Direction::ToDevice, message);
    }

    /// The device began to close. However the connection ends, it ended it.
    pub fn leaving(&self, code: u16, reason: &str) {
        self.0.leaving.get_or_init(|| (code, reason.to_owned()));
    }

    /// The connection ended; the first time counts.
    pub fn close(&self, by: ClosedBy, code: Option<u16>, reason: &str) {
        self.0.close(by, code, reason);
    }
}

impl OnConnection {
    fn frame(&self, direction: Direction, message: &[u8]) {
        if self.shared.over.is_cancelled() {
            return;
        }
        let event = Event::Frame { track: self.track, direction, frame: redact::frame(message) };
        self.shared.frames.fetch_add(1, Ordering::Relaxed);
        self.shared.push(&mut self.shared.queue(), event);
    }

    fn close(&self, by: ClosedBy, code: Option<u16>, reason: &str) {
        if self.closed.swap(true, Ordering::Relaxed) {
            return;
        }
        let (by, code, reason) = match self.leaving.get() {
            Some((code, reason)) => (ClosedBy::Device, Some(*code), reason.as_str()),
            None => (by, code, reason),
        };
        let event = Event::Close { track: self.track, by, code, reason: reason.to_owned() };
        self.shared.push(&mut self.shared.queue(), event);
    }
}

impl Drop for OnConnection {
    fn drop(&mut self) {
        self.close(ClosedBy::Nobody, None, "");
    }
}

/// A capture that is written to a file as it is made.
#[derive(Debug)]
pub struct ToFile {
    recorder: Recorder,
    written: JoinHandle<io::Result<()>>,
}

impl ToFile {
    /// Begins a capture on the device side, of the first group that connects, in a new file that its owner alone can read.
    ///
    /// # Errors
    /// The operating system's; `AlreadyExists` when there is such a file.
    pub fn begin(path: &Path, clock: Clock) -> io::Result<Self> {
        let file = files::private().create_new(true).open(path)?;
        let (recorder, mut recording) = Recorder::begin(clock, Observer::Device, None);
        let written = tokio::spawn(async move {
            let mut file = tokio::fs::File::from_std(file);
            while let Some(bytes) = recording.next().await {
                file.write_all(&bytes).await?;
                // To the operating system, so that a process that is killed leaves what happened before.
                file.flush().await?;
            }
            Ok(())
        });
        Ok(Self { recorder, written })
    }

    /// Where connections are recorded.
    #[must_use]
    pub const fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Ends it, and returns when everything is in the file: how it ended, and how many frames were recorded.
    ///
    /// # Errors
    /// The operating system's, when not everything could be written.
    pub async fn finish(self) -> io::Result<(End, u64)> {
        self.recorder.end(End::Done);
        self.written.await.map_err(io::Error::other)??;
        Ok((self.recorder.ended().unwrap_or(End::Done), self.recorder.frames()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::BODY_MAX;

    #[tokio::test]
    async fn a_reader_that_comes_late_gets_all_of_it_in_small_pieces() {
        let (recorder, mut recording) = Recorder::begin(Clock::system(), Observer::Device, None);
        let group = DeviceGroupId::new([1; 32]);
        let tap = recorder.connect(group, &ServerGroup::new("a0").unwrap()).unwrap();
        let frame = vec![0x82; 60_000];
        for _ in 0..100 {
            tap.to_device(&frame);
        }
        recorder.end(End::Done);
        let (mut all, mut pieces) = (0, 0);
        while let Some(piece) = recording.next().await {
            assert!(piece.len() <= PIECE + BODY_MAX, "{} bytes at once", piece.len());
            all += piece.len();
            pieces += 1;
        }
        assert!(all > 100 * frame.len() && pieces > 10, "{all} bytes in {pieces} pieces");
        assert_eq!((recorder.ended(), recorder.0.queue().waiting), (Some(End::Done), 0));
    }
}
