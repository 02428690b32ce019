//! Which groups of a mediator are being recorded.
//!
//! An operator begins a capture while connections are open, so each connection asks with every frame whether one concerns it.
//! While nothing changed since it asked last and the answer was no, that is one load of a number that is hardly ever written.
//! A connection that was there earlier appears in a capture with its first frame; one that says nothing and is told
//! nothing does not.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::{ClosedBy, Observer, Recorder, Recording, Tap};
use crate::time::Clock;
use crate::wire::d2m::{ClientUrlInfo, DeviceGroupId, DeviceId};

/// Captures at the same time, of different groups: what they hold is bounded by this many times
/// [`WAITING_MAX`](super::recorder::WAITING_MAX).
pub const CAPTURES_MAX: usize = 4;

/// All captures of a mediator. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct Captures(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Counts beginnings and ends.
    changes: AtomicUsize,
    running: Mutex<Vec<(DeviceGroupId, Recorder)>>,
}

/// Why no capture begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    /// There is one of this group.
    #[error("that group is being recorded already")]
    Group,
    /// There are as many as there may be.
    #[error("{CAPTURES_MAX} groups are being recorded, which is the most at a time")]
    Mediator,
}

impl Captures {
    /// Begins to record a group, of whom nothing need be known yet.
    ///
    /// # Errors
    /// [`Busy`].
    pub fn begin(&self, group: DeviceGroupId, clock: Clock) -> Result<(Recorder, Recording), Busy> {
        let mut running = self.running();
        running.retain(|(_, recorder)| recorder.ended().is_none());
        if running.iter().any(|(other, _)| *other == group) {
            return Err(Busy::Group);
        }
        if running.len() >= CAPTURES_MAX {
            return Err(Busy::Mediator);
        }
        let (recorder, recording) = Recorder::begin(clock, Observer::Mediator, Some(group));
        running.push((group, recorder.clone()));
        self.0.changes.fetch_add(1, Ordering::Release);
        Ok((recorder, recording))
    }

    /// Lets connections forget captures that ended.
    pub fn forget_ended(&self) {
        self.running().retain(|(_, recorder)| recorder.ended().is_none());
        self.0.changes.fetch_add(1, Ordering::Release);
    }

    /// A connection was opened.
    #[must_use]
    pub fn line(&self, url: &ClientUrlInfo) -> Line {
        let seen = self.0.changes.load(Ordering::Acquire);
        let recorder = self.of(url.device_group_id);
        let tap = recorder.and_then(|it| Some((it.connect(url.device_group_id, &url.server_group)?, it)));
        let unconcerned = AtomicUsize::new(if tap.is_some() { NEVER } else { seen });
        let state = Mutex::new(State { device: None, seen, tap });
        Line { captures: self.clone(), url: url.clone(), unconcerned, state }
    }

    fn of(&self, group: DeviceGroupId) -> Option<Recorder> {
        self.running().iter().find(|(other, _)| *other == group).map(|(_, recorder)| recorder.clone())
    }

    fn running(&self) -> MutexGuard<'_, Vec<(DeviceGroupId, Recorder)>> {
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// No number of changes is this one.
const NEVER: usize = usize::MAX;

/// One connection of a mediator, which may be recorded, now or later.
#[derive(Debug)]
pub struct Line {
    captures: Captures,
    url: ClientUrlInfo,
    /// The number of changes at which nobody recorded this connection.
    unconcerned: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    device: Option<DeviceId>,
    /// The number of changes at which the captures were looked at last.
    seen: usize,
    tap: Option<(Tap, Recorder)>,
}

impl Line {
    /// What its request said.
    #[must_use]
    pub const fn url(&self) -> &ClientUrlInfo {
        &self.url
    }

    /// It says whose connection it is.
    pub fn is_of(&self, device: DeviceId) {
        self.state().device = Some(device);
    }

    /// The device said this.
    pub fn from_device(&self, message: &Bytes) {
        self.record(|tap| tap.from_device(message));
    }

    /// The device is told this.
    pub fn to_device(&self, message: &Bytes) {
        self.record(|tap| tap.to_device(message));
    }

    /// The connection ended.
    pub fn close(&self, by: ClosedBy, code: Option<u16>, reason: &str) {
        self.record(|tap| tap.close(by, code, reason));
    }

    fn record(&self, what: impl FnOnce(&Tap)) {
        let changes = self.captures.0.changes.load(Ordering::Acquire);
        if self.unconcerned.load(Ordering::Relaxed) == changes {
            return;
        }
        let mut state = self.state();
        if state.seen != changes {
            let recorder = self.captures.of(self.url.device_group_id);
            let tap = state.tap.take();
            state.tap = recorder.and_then(|recorder| match tap {
                Some((tap, same)) if same.is(&recorder) => Some((tap, recorder)),
                _ => {
                    let tap = recorder.meet(self.url.device_group_id, &self.url.server_group, state.device)?;
                    Some((tap, recorder))
                }
            });
            state.seen = changes;
            self.unconcerned.store(if state.tap.is_some() { NEVER } else { changes }, Ordering::Relaxed);
        }
        if let Some((tap, _)) = &state.tap {
            what(tap);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Direction, Entry, Event, Reader, Tail, Track};
    use super::*;
    use crate::capture::End;
    use crate::wire::d2m::ServerGroup;

    fn url(group: u8) -> ClientUrlInfo {
        let server_group = ServerGroup::new("a0").unwrap();
        ClientUrlInfo { device_group_id: DeviceGroupId::new([group; 32]), server_group }
    }

    async fn all(mut recording: Recording) -> Vec<Event> {
        let mut bytes = Vec::new();
        while let Some(more) = recording.next().await {
            bytes.extend_from_slice(&more);
        }
        let mut reader = Reader::new(&bytes[..]).unwrap();
        let entries = reader.rest().unwrap();
        assert!(matches!(reader.tail(), Tail::Ended(_)), "{:?}", reader.tail());
        entries.into_iter().map(|Entry { event, .. }| event).collect()
    }

    #[tokio::test]
    async fn a_connection_from_before_appears_with_its_first_frame_and_another_group_never() {
        let captures = Captures::default();
        let (early, other) = (captures.line(&url(1)), captures.line(&url(2)));
        early.is_of(DeviceId(7));
        early.from_device(&Bytes::from_static(b"before"));
        let (recorder, recording) = captures.begin(url(1).device_group_id, Clock::system()).unwrap();
        let late = captures.line(&url(1));
        other.from_device(&Bytes::from_static(b"strange"));
        early.to_device(&Bytes::from_static(b"heard"));
        late.close(ClosedBy::Mediator, Some(1001), "");
        recorder.end(End::TimeOver);
        early.to_device(&Bytes::from_static(b"after"));
        let events = all(recording).await;
        let server_group = url(1).server_group;
        let connect =
            |track, earlier, device| Event::Connect { track, server_group: server_group.clone(), earlier, device };
        let [first, second, frame, close, end] = &events[..] else { panic!("{events:?}") };
        assert_eq!(*first, connect(Track(1), false, None));
        assert_eq!(*second, connect(Track(2), true, Some(DeviceId(7))));
        assert!(matches!(frame, Event::Frame { track: Track(2), direction: Direction::ToDevice, .. }), "{frame:?}");
        assert!(matches!(close, Event::Close { track: Track(1), code: Some(1001), .. }), "{close:?}");
        assert_eq!(*end, Event::End(End::TimeOver));
    }

    #[tokio::test]
    async fn a_second_capture_of_a_group_is_refused_until_the_first_one_is_over() {
        let captures = Captures::default();
        let begin = |group| captures.begin(url(group).device_group_id, Clock::system());
        let (_, first) = begin(1).unwrap();
        let line = captures.line(&url(1));
        assert_eq!(begin(1).unwrap_err(), Busy::Group);
        let others: Vec<_> = (2..=4).map(|group| begin(group).unwrap()).collect();
        assert_eq!(begin(9).unwrap_err(), Busy::Mediator);
        // Whoever read the first one hung up.
        drop(first);
        let (recorder, second) = begin(1).unwrap();
        line.to_device(&Bytes::from_static(b"again"));
        recorder.end(End::Done);
        captures.forget_ended();
        assert_eq!(all(second).await.len(), 3, "a connection, its frame, the end");
        drop(others);
    }

    #[tokio::test]
    async fn a_reader_that_does_not_keep_up_ends_the_capture_and_nothing_is_kept_for_it() {
        let captures = Captures::default();
        let (recorder, recording) = captures.begin(url(1).device_group_id, Clock::system()).unwrap();
        let line = captures.line(&url(1));
        let frame = Bytes::from(vec![0x80; 60_000]);
        let mut said = 0_usize;
        while recorder.ended().is_none() {
            line.from_device(&frame);
            said += 1;
        }
        assert_eq!(recorder.ended(), Some(End::TooSlow));
        assert_eq!(said, super::super::recorder::WAITING_MAX / 60_000 + 1);
        line.from_device(&frame);
        assert_eq!(recorder.frames(), said as u64);
        let mut recording = recording;
        assert_eq!(recording.next().await.unwrap().len(), 21, "the header");
        assert_eq!(recording.next().await.unwrap().len(), 14, "the end");
        assert_eq!(recording.next().await, None);
    }
}
