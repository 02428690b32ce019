//! How records are fetched from a neighbour (spec 9.7).
//!
//! A neighbour hands out its list by pages of eight packets, of which any may get lost. So there is one [`Round`] at a time, which
//! knows up to where the list is whole and asks for what follows there: at once after a whole page, and after a second in which
//! nothing came. A new neighbour's list may be another one, so a new round begins at its first record.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::wire::{ClientId, Record, Request, SYNC_PACKETS_MAX, SyncRecords, SyncRequest};
use super::meter::Pace;
use super::{Dropped, Endpoint, Event, Failure, Group, Mode};

/// Between two rounds, and between two when something is missing.
const SYNC_EVERY: Duration = Duration::from_secs(60);
const SYNC_PAUSE: Duration = Duration::from_secs(5);
/// Pages that are asked for: slower than neighbours allow, and so few at once that their packets are within our own limit of bytes.
const PAGES: Pace = Pace::new(Duration::from_millis(550), 4);
/// After so long without a packet something got lost; and so often in a row that happens before a neighbour is given up.
const STALLED: Duration = Duration::from_secs(1);
const TRIES: u32 = 6;
/// Who knows what they may is in after so long, whatever is still on its way.
const IN_AFTER: Duration = Duration::from_secs(3);
/// Who does not know by then is not in.
const IN_WITHIN: Duration = Duration::from_secs(60);

/// A list that is being fetched.
#[derive(Debug)]
pub(super) struct Round {
    from: ClientId,
    /// Everything before this record came.
    next: u16,
    /// What came too early: where it begins, and where it ends.
    early: BTreeMap<u16, u16>,
    /// Packets since the last request.
    packets: usize,
    /// When anything was asked for, or came.
    last: Duration,
    /// Requests since anything came.
    tries: u32,
}

impl Round {
    /// Notes what came. Whether that was the last of it.
    fn note(&mut self, answer: &SyncRecords, now: Duration) -> bool {
        let SyncRecords { total, offset, ref records } = *answer;
        (self.last, self.tries) = (now, 0);
        self.packets += 1;
        let end = offset.saturating_add(u16::try_from(records.len()).unwrap_or(u16::MAX));
        if offset <= self.next {
            self.next = self.next.max(end);
        } else if self.early.len() < 2 * SYNC_PACKETS_MAX {
            self.early.insert(offset, end);
        }
        while let Some(entry) = self.early.first_entry().filter(|entry| *entry.key() <= self.next) {
            self.next = self.next.max(entry.remove());
        }
        self.next >= total
    }
}

/// We were let in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entering {
    soon: Duration,
    at_last: Duration,
}

impl Entering {
    pub(super) const fn new(now: Duration) -> Self {
        Self { soon: now.saturating_add(IN_AFTER), at_last: now.saturating_add(IN_WITHIN) }
    }
}

impl Group {
    /// In a signed group we are in when we know what we may; `whole`: and everything else.
    fn note_entered(&mut self, whole: bool) {
        let Some(Entering { soon, at_last }) = self.entering else { return };
        let now = self.now.monotonic;
        if self.records.state().is_some() && self.role(&self.me.id).is_some() && (whole || soon <= now) {
            self.entering = None;
            self.tell(Event::Entered);
        } else if at_last <= now {
            self.entering = None;
            self.tell(Event::NotEntered(Failure::NoAnswer));
        }
    }

    /// Goes on with what is being fetched; else asks a neighbour by chance, a hub rather than another.
    pub(super) fn tend_sync(&mut self) {
        let now = self.now.monotonic;
        self.note_entered(false);
        if self.round.as_ref().is_some_and(|round| round.tries >= TRIES && round.last + STALLED <= now) {
            self.round = None;
        }
        if self.round.is_some() {
            return self.tend_round();
        }
        if self.next_sync > now {
            return;
        }
        let live: Vec<_> = self.live().collect();
        let hubs: Vec<_> = live.iter().filter(|(id, _)| self.anchors.contains(id)).copied().collect();
        let among = if hubs.is_empty() { live } else { hubs };
        let at = self.roll(among.len() as u64);
        if let Some((id, at)) = usize::try_from(at).ok().and_then(|at| among.get(at).copied()) {
            self.begin_round(id, at);
        }
    }

    /// Asks this one now, if it was not just done.
    pub(super) fn sync_with(&mut self, id: ClientId, at: Endpoint) {
        let now = self.now.monotonic;
        if self.round.is_none() && (self.last_sync.is_zero() || self.last_sync + SYNC_PAUSE <= now) {
            self.begin_round(id, at);
        }
    }

    fn begin_round(&mut self, from: ClientId, at: Endpoint) {
        let now = self.now.monotonic;
        self.last_sync = now.max(Duration::from_nanos(1));
        self.next_sync = now + if self.entering.is_some() { SYNC_PAUSE } else { SYNC_EVERY };
        self.round = Some(Round { from, next: 0, early: BTreeMap::new(), packets: 0, last: now, tries: 1 });
        self.ask_records(from, at, 0);
    }

    fn tend_round(&mut self) {
        let now = self.now.monotonic;
        let Some(round) = &mut self.round else { return };
        let (whole, stalled) = (round.packets >= SYNC_PACKETS_MAX, round.last + STALLED <= now);
        if !(whole || stalled) {
            return;
        }
        let at = self.members.get(&round.from).and_then(|member| member.link.at);
        let Some((at, _)) = at else {
            self.round = None;
            return;
        };
        if self.pages.take(now, PAGES, 1) {
            (round.packets, round.last, round.tries) = (0, now, round.tries + 1);
            let (from, next) = (round.from, round.next);
            self.ask_records(from, at, next);
        }
    }

    fn ask_records(&mut self, id: ClientId, at: Endpoint, offset: u16) {
        let digest = self.records.digest(self.now_s());
        let state_version = self.records.state().map_or(0, |state| state.version);
        self.send(at, id, &Request::SyncRequest(SyncRequest { state_version, digest, offset }));
    }

    pub(super) fn sync_request(
        &mut self,
        from: Endpoint,
        sender: ClientId,
        request: SyncRequest,
    ) -> Result<(), Dropped> {
        let (now, now_s, pace) = (self.now.monotonic, self.now_s(), self.rules.limits.syncs);
        let Some(member) = self.members.get_mut(&sender).filter(|_| matches!(self.mode, Mode::Signed)) else {
            return Err(Dropped::NotAllowed);
        };
        // Records are many and requests small: only to where somebody proved to be.
        if member.link.at.is_none_or(|(at, proved)| at != from || proved.is_none()) {
            self.ask(sender, from);
            return Ok(());
        }
        if !member.link.syncs.take(now, pace, 1) {
            return Err(self.offend(sender, from, 1, Dropped::TooMuch));
        }
        let held = self.records.held(now_s);
        let ours = self.records.state().map_or(0, |state| state.version);
        let same = request.offset == 0 && request.digest == self.records.digest(now_s) && request.state_version == ours;
        let total = u16::try_from(held.len()).unwrap_or(u16::MAX);
        let rest = held.get(usize::from(request.offset)..).unwrap_or_default();
        let packets = if same { Vec::new() } else { SyncRecords::packets(total, request.offset, rest) };
        if packets.is_empty() {
            let nothing = SyncRecords { total: 0, offset: 0, records: Vec::new() };
            self.send(from, sender, &Request::SyncRecords(nothing));
        }
        for packet in packets {
            self.send(from, sender, &Request::SyncRecords(packet));
        }
        Ok(())
    }

    pub(super) fn sync_records(
        &mut self,
        from: Endpoint,
        sender: ClientId,
        answer: SyncRecords,
    ) -> Result<(), Dropped> {
        let now = self.now.monotonic;
        // What allows something before what is allowed by it.
        let (topics, others): (Vec<_>, Vec<_>) = answer.records.iter().partition(|it| matches!(it, Record::Topic(_)));
        for record in others.into_iter().chain(topics) {
            match self.take_record(from, sender, record) {
                Ok(()) => self.changed(record),
                Err(why @ (Dropped::Forged | Dropped::NotAllowed)) => self.tell(Event::Dropped(why)),
                Err(_) => {}
            }
        }
        if let Some(round) = self.round.as_mut().filter(|round| round.from == sender) {
            if round.note(&answer, now) {
                self.round = None;
                self.note_entered(true);
            } else {
                self.tend_round();
            }
        }
        Ok(())
    }
}
