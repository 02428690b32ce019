//! One identity: what is queued for it, who of it is connected, which connection gets the messages.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::{CONNECTIONS_MAX, ConnId, FetchId, PUSH_TOKENS_MAX, Seq};
use crate::chat::csp::wire::{CspDeviceId, DeviceCookie, Identity, MessageFlags, MessageId, PushToken};
use crate::time::Now;

/// What the store kept of an identity.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// The queue, in order.
    pub entries: Vec<KeptEntry>,
    /// The device cookie last presented, and whether its change is to be indicated.
    pub cookie: Option<(DeviceCookie, bool)>,
    /// Push tokens.
    pub tokens: Vec<KeptToken>,
}

/// One queued message, without the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptEntry {
    /// Where in the order.
    pub seq: Seq,
    /// Who sent it.
    pub sender: Identity,
    /// Its name.
    pub id: MessageId,
    /// Length of the message struct, in bytes.
    pub len: usize,
    /// What is to be done with it.
    pub flags: MessageFlags,
    /// When it is to be forgotten, in milliseconds since the Unix epoch.
    pub expires_ms: u64,
}

/// A push token and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptToken {
    /// Of which device.
    pub device: Option<CspDeviceId>,
    /// For calls.
    pub voip: bool,
    /// The token.
    pub token: PushToken,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) sender: Identity,
    pub(super) id: MessageId,
    pub(super) len: usize,
    pub(super) flags: MessageFlags,
    /// On the monotonic clock.
    pub(super) expires: Duration,
}

/// The connection that gets the messages, and how far it has got.
#[derive(Debug)]
struct Active {
    conn: ConnId,
    in_flight: usize,
    fetching: Option<FetchId>,
    /// The last message that was queued at activation: behind it belongs the queue-send-complete.
    complete_after: Option<Seq>,
}

#[derive(Debug, Default)]
pub(super) struct Mailbox {
    entries: BTreeMap<Seq, Entry>,
    /// At most one message per sender and id is queued (spec 4.3, duplicates).
    by_name: HashMap<(Identity, MessageId), Seq>,
    bytes: usize,
    connections: BTreeMap<Option<CspDeviceId>, ConnId>,
    active: Option<Active>,
    /// Everything from here on waits.
    next: Seq,
    /// Nothing beyond this was ever sent to anyone.
    sent_through: Option<Seq>,
    cookie: Option<(DeviceCookie, bool)>,
    tokens: Vec<KeptToken>,
    /// Messages for which there was no room.
    overflown: u64,
}

impl Mailbox {
    pub(super) fn new(now: Now, kept: Kept) -> Self {
        let mut mailbox = Self { cookie: kept.cookie, tokens: kept.tokens, ..Self::default() };
        for KeptEntry { seq, sender, id, len, flags, expires_ms } in kept.entries {
            let left = Duration::from_millis(expires_ms.saturating_sub(now.wall_ms));
            mailbox.push(seq, Entry { sender, id, len, flags, expires: now.monotonic.saturating_add(left) });
        }
        mailbox
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (Seq, &Entry)> {
        self.entries.iter().map(|(seq, entry)| (*seq, entry))
    }

    pub(super) fn entry(&self, seq: Seq) -> Option<&Entry> {
        self.entries.get(&seq)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn holds(&self, sender: Identity, id: MessageId) -> bool {
        self.by_name.contains_key(&(sender, id))
    }

    pub(super) fn push(&mut self, seq: Seq, entry: Entry) {
        self.by_name.insert((entry.sender, entry.id), seq);
        self.bytes += entry.len;
        self.entries.insert(seq, entry);
    }

    /// There is no room for a message. How often that has been so.
    pub(super) const fn overflow(&mut self) -> u64 {
        self.overflown += 1;
        self.overflown
    }

    pub(super) fn remove(&mut self, seq: Seq) -> Option<Entry> {
        let entry = self.entries.remove(&seq)?;
        // A damaged message stays in the store, and may have been sent anew: then the name is the new one's.
        let name = (entry.sender, entry.id);
        if self.by_name.get(&name) == Some(&seq) {
            self.by_name.remove(&name);
        }
        self.bytes -= entry.len;
        if let Some(active) = self.active.as_mut().filter(|_| seq < self.next) {
            active.in_flight -= 1;
        }
        Some(entry)
    }

    /// The queued message an ack names, if it was ever sent.
    pub(super) fn acked(&self, sender: Identity, id: MessageId) -> Option<Seq> {
        self.by_name.get(&(sender, id)).copied().filter(|seq| self.sent_through.is_some_and(|sent| *seq <= sent))
    }

    pub(super) fn connections(&self) -> impl Iterator<Item = ConnId> {
        self.connections.values().copied()
    }

    pub(super) fn is_lonely(&self) -> bool {
        self.connections.is_empty()
    }

    /// Makes room for a connection: without a device id it wants to be alone, with one it shares with other devices
    /// only (spec 5), and not with any number of them. Whoever has to go is returned, and has gone.
    pub(super) fn displace(&mut self, device: Option<CspDeviceId>) -> Vec<ConnId> {
        let (goes, stays): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.connections)
            .into_iter()
            .partition(|(of, _)| device.is_none() || of.is_none() || *of == device);
        self.connections = stays;
        let mut displaced: Vec<ConnId> = goes.into_values().collect();
        while self.connections.len() >= CONNECTIONS_MAX {
            let Some((oldest, conn)) =
                self.connections.iter().map(|(of, conn)| (*of, *conn)).min_by_key(|(_, conn)| *conn)
            else {
                break;
            };
            self.connections.remove(&oldest);
            displaced.push(conn);
        }
        if self.active().is_some_and(|active| displaced.contains(&active)) {
            self.deactivate();
        }
        displaced
    }

    pub(super) fn seat(&mut self, device: Option<CspDeviceId>, conn: ConnId) {
        self.connections.insert(device, conn);
    }

    pub(super) fn unseat(&mut self, device: Option<CspDeviceId>, conn: ConnId) {
        self.connections.remove(&device);
        if self.active() == Some(conn) {
            self.deactivate();
        }
    }

    pub(super) fn active(&self) -> Option<ConnId> {
        self.active.as_ref().map(|active| active.conn)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.active.as_ref().map_or(0, |active| active.in_flight)
    }

    /// The active connection, when no queued message has to go before a new one.
    pub(super) fn ready(&self) -> Option<ConnId> {
        let waiting = self.entries.range(self.next..).next().is_some();
        self.active().filter(|_| !waiting)
    }

    /// From now on this connection gets the messages: first everything that is not acked.
    pub(super) fn activate(&mut self, conn: ConnId) {
        self.deactivate();
        let last = self.entries.last_key_value().map_or(Seq(0), |(seq, _)| *seq);
        self.active = Some(Active { conn, in_flight: 0, fetching: None, complete_after: Some(last) });
    }

    fn deactivate(&mut self) {
        self.active = None;
        self.next = Seq(0);
    }

    /// The active connection, if the time to tell it that its queue has been sent is now.
    pub(super) fn complete(&mut self) -> Option<ConnId> {
        let active = self.active.as_mut()?;
        let last = active.complete_after?;
        if self.next <= last && self.entries.range(self.next..=last).next().is_some() {
            return None;
        }
        active.complete_after = None;
        Some(active.conn)
    }

    /// What may be sent next and has to be fetched for it; nothing while a fetch is under way.
    pub(super) fn begin_fetch(&mut self, fetch: FetchId, window: usize) -> Vec<Seq> {
        let Some(active) = self.active.as_mut().filter(|active| active.fetching.is_none()) else { return Vec::new() };
        let room = window.saturating_sub(active.in_flight);
        let seqs: Vec<Seq> = self.entries.range(self.next..).take(room).map(|(seq, _)| *seq).collect();
        if !seqs.is_empty() {
            active.fetching = Some(fetch);
        }
        seqs
    }

    /// The active connection, if it is the one this fetch was for.
    pub(super) fn end_fetch(&mut self, fetch: FetchId) -> Option<ConnId> {
        let active = self.active.as_mut().filter(|active| active.fetching == Some(fetch))?;
        active.fetching = None;
        Some(active.conn)
    }

    /// What waits, up to and including `through`.
    pub(super) fn waiting(&self, through: Seq) -> Vec<Seq> {
        if through < self.next {
            return Vec::new();
        }
        self.entries.range(self.next..=through).map(|(seq, _)| *seq).collect()
    }

    /// This message, and nothing beyond it, has been handed to the active connection.
    pub(super) fn sent(&mut self, seq: Seq) {
        if let Some(active) = &mut self.active {
            // Whatever is passed over here is about to be removed as gone, and counted down then.
            active.in_flight += self.entries.range(self.next..=seq).count();
            self.next = Seq(seq.0 + 1);
            self.sent_through = self.sent_through.max(Some(seq));
        }
    }

    pub(super) const fn cookie(&self) -> Option<(DeviceCookie, bool)> {
        self.cookie
    }

    /// Notes the cookie of a login (spec 8). Whether that changed anything.
    pub(super) fn present(&mut self, presented: Option<DeviceCookie>) -> bool {
        let before = self.cookie;
        self.cookie = match (before, presented) {
            (None, None) => None,
            (None, Some(first)) => Some((first, false)),
            (Some((stored, changed)), presented) => {
                let presented = presented.unwrap_or(DeviceCookie([0; 16]));
                Some((presented, changed || presented != stored))
            }
        };
        self.cookie != before
    }

    /// The change has been noticed. Gives the cookie if there was a change.
    pub(super) fn clear_cookie_change(&mut self) -> Option<DeviceCookie> {
        let (cookie, changed) = self.cookie.as_mut().filter(|(_, changed)| *changed)?;
        *changed = false;
        Some(*cookie)
    }

    pub(super) fn tokens(&self) -> &[KeptToken] {
        &self.tokens
    }

    /// The latest one last. Those that have to make room for it are returned, and gone. What was set before the mailbox
    /// fell asleep has lost its order, and counts as old.
    pub(super) fn set_token(
        &mut self,
        device: Option<CspDeviceId>,
        voip: bool,
        token: Option<PushToken>,
    ) -> Vec<KeptToken> {
        self.tokens.retain(|kept| kept.device != device || kept.voip != voip);
        let Some(token) = token else { return Vec::new() };
        let mut replaced = Vec::new();
        while self.tokens.len() >= PUSH_TOKENS_MAX {
            let oldest_absent = self.tokens.iter().position(|kept| !self.connections.contains_key(&kept.device));
            replaced.push(self.tokens.remove(oldest_absent.unwrap_or(0)));
        }
        self.tokens.push(KeptToken { device, voip, token });
        replaced
    }

    pub(super) fn remove_tokens(&mut self, gone: impl Fn(Option<CspDeviceId>) -> bool) -> Vec<KeptToken> {
        self.tokens.extract_if(.., |kept| gone(kept.device)).collect()
    }
}
