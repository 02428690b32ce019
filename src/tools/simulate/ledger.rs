//! What was said and what arrived: the simulation's own books, kept without asking the server.
//!
//! Every `reflect` that goes into a socket is an **entry**: one sender, one number that only grows. What has to be said
//! again on a new connection becomes a new entry, so the books know exactly which bytes arrived how often. The entry's
//! number travels inside the sealed envelope, where no server can change it.
//!
//! What has to hold, for each receiver:
//!
//! * an acknowledged entry arrives, one of a transaction when the commit was acknowledged;
//! * the entries of one sender arrive in the order they were said, on each connection at most once, and over all
//!   connections for the first time in that order;
//! * what arrives again keeps its reflected-id, and is no ephemeral; no two entries have the same at one receiver;
//! * everybody, the sender included, is shown the same time for an entry;
//! * nothing of a transaction arrives before its commit was sent, and nothing at all when it ended without one; one whose
//!   commit was never answered arrives everywhere whole or nowhere. It is missing only where that is certain: something later
//!   of its sender came there, or the queue of a connection that was begun after its arrival elsewhere was called dry;
//! * what the receiver had not acknowledged when its connection broke comes again, before that connection's end of the queue;
//! * a queue is not called dry before everything came that was owed when the connection was begun, and is not announced
//!   longer than it is.
//!
//! **Who is owed what.** A device has a slot for certain once it was told so, and until somebody sets out to drop it. What
//! was said within that time and acknowledged is owed to it. Between asking and being told, and from being dropped on until
//! that is confirmed, messages may arrive or not. What was acknowledged before a device first asked must not arrive there, and
//! neither must anything that was said after its drop was confirmed. With its slot a device loses what it was owed.
//!
//! A repeated arrival is allowed on a later connection only: the acknowledgement may have been lost with the first one. An
//! entry that nobody acknowledged may have arrived or not; what it said is said again, so that both may arrive.
//!
//! **What is forgotten.** An entry that is owed to nobody any more is struck after [`REMEMBERED`], so that a long simulation
//! fits into memory. Should it arrive again all the same, order and repetition are still judged, its id and time are not. The
//! same goes for one that was never acknowledged, counted from the end of its connection. A transaction whose commit was never
//! answered stays until it is certain for every device whether it came there.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

/// A device's place in its group. One that takes the place of a dropped device gets a number of its own.
pub(super) type Member = usize;

/// How long an entry is remembered that is owed to nobody.
const REMEMBERED: Duration = Duration::from_secs(30);

/// Which entry: sender and number.
pub(super) type EntryId = (Member, usize);

/// One `reflect` that went into a socket.
#[derive(Debug)]
struct Entry {
    kind: Kind,
    said: Tick,
    due_at: Duration,
    acked: bool,
    /// Since when it is owed to everybody who has a slot: acknowledged, or committed.
    kept: Option<Tick>,
    timestamp_ms: Option<u64>,
    arrivals: Vec<Arrival>,
    /// At how many devices it is due and has not arrived.
    owed: usize,
    /// How many devices had a slot and a connection when it was said, and have not got it; none once one of them lost either.
    online: Option<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Arrival {
    receiver: Member,
    connection: u32,
    reflected_id: u32,
}

/// Counts what is booked, so that it is known what was before what. Finer than any clock.
pub(super) type Tick = u64;

/// What kind of message an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Delivered as soon as it is accepted.
    Single,
    /// For who is there.
    Ephemeral,
    /// Part of one of its sender's transactions.
    Staged(usize),
}

/// A transaction that was not committed yet, as far as its sender knows, and what was said in it.
#[derive(Debug)]
struct Transaction {
    state: Progress,
    entries: Vec<usize>,
    /// When something of it arrived first, anywhere.
    seen: Option<Tick>,
    /// When its connection ended without an answer to it.
    abandoned: Option<Tick>,
}

/// How far a transaction got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Not committed, and once its connection is gone never to be: nothing of it may arrive.
    Begun,
    CommitSent(Tick),
}

/// Whether a device has a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    /// Not that it knew.
    Unknown,
    Since(Tick),
    /// Somebody is dropping it.
    Leaving,
    GoneSince(Tick),
}

/// The books of one device.
#[derive(Debug)]
struct Book {
    slot: Slot,
    /// When it first asked for a slot.
    asked: Option<Tick>,
    connection: Option<Connection>,
    /// What the mediator had by then has arrived here: a connection that was asked for then was called dry.
    complete_until: Tick,
    entries: HashMap<usize, Entry>,
    next_entry: usize,
    /// Single entries of this connection that were not acknowledged.
    unanswered: BTreeSet<usize>,
    next_transaction: usize,
    transactions: BTreeMap<usize, Transaction>,
    /// What has to arrive here, and since when.
    owed: HashMap<EntryId, Tick>,
    /// By sender: connection and entry of the last arrival, and the highest entry that ever arrived.
    last: HashMap<Member, (u32, usize, usize)>,
}

#[derive(Debug, Clone, Copy)]
struct Connection {
    /// When it was asked for.
    began: Tick,
    since: Tick,
    /// Messages of the queue that were announced and have not come.
    announced: u64,
    dry: bool,
    leads: bool,
}

/// One arrival, as the receiving device saw it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) receiver: Member,
    /// Which of the receiver's connections, counted up from 1.
    pub(super) connection: u32,
    pub(super) sender: Member,
    pub(super) entry: usize,
    pub(super) reflected_id: u32,
    pub(super) ephemeral: bool,
    pub(super) timestamp_ms: u64,
}

/// What went wrong. All of it counts as misordered in the closing table, with a line of its own each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Fault {
    /// Nobody said this.
    Foreign,
    /// The sender got its own message.
    Echoed,
    /// Behind a later one of the same sender.
    Misordered,
    /// Twice on one connection.
    Repeated,
    /// An ephemeral message that arrived again, or lost or gained the flag.
    NotEphemeral,
    /// Again, under another reflected-id.
    AnotherId,
    /// Under the reflected-id of another message.
    SameId,
    /// Not the time the others were shown.
    AnotherTime,
    /// Part of a transaction that was not committed.
    Leaked,
    /// A transaction arrived in parts.
    Torn,
    /// An answer to nothing that was said.
    Unasked,
    /// An acknowledgement that is not of the oldest unacknowledged message, or comes behind that of the commit.
    LateAck,
    /// Kept before the device existed.
    BeforeItsTime,
    /// Said after the device was dropped.
    AfterItsTime,
    /// The end of the queue was told before the queue was.
    DryTooEarly,
    /// Fewer messages than were announced.
    ShortQueue,
    /// Told twice that the queue is dry, to lead twice, or to lead before the queue was dry.
    Role,
    /// A lock that its holder kept beyond the time it asked for, and could commit.
    Overheld,
    /// A second login that did not end the first.
    NotReplaced,
    /// The mediator dropped a device that nobody dropped.
    Evicted,
}

impl Fault {
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Foreign => "messages that nobody sent",
            Self::Echoed => "messages that came back to their sender",
            Self::Misordered => "messages behind a later one of the same sender",
            Self::Repeated => "messages twice on one connection",
            Self::NotEphemeral => "ephemeral messages that were kept, or flags that changed",
            Self::AnotherId => "messages again under another reflected-id",
            Self::SameId => "messages under the reflected-id of another",
            Self::AnotherTime => "messages whose time is not what others were shown",
            Self::Leaked => "messages of transactions that were not committed",
            Self::Torn => "transactions that arrived in parts",
            Self::Unasked => "answers that nobody asked for",
            Self::LateAck => "acknowledgements out of their order",
            Self::BeforeItsTime => "messages from before the device was there",
            Self::AfterItsTime => "messages from after the device was dropped",
            Self::DryTooEarly => "messages missing from a queue that was called dry",
            Self::ShortQueue => "queues that were announced longer than they were",
            Self::Role => "promotions or ends of the queue out of their order",
            Self::Overheld => "locks that were kept beyond their time",
            Self::NotReplaced => "connections that a second login did not end",
            Self::Evicted => "devices dropped by the mediator itself",
        }
    }
}

/// The books of one group.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    tick: Tick,
    books: Vec<Book>,
    /// By receiver and reflected-id: whose entry it was. Ephemeral ones are given away once, too.
    ids: HashMap<(Member, u32), EntryId>,
    /// Entries that may be struck, and since when.
    settled: VecDeque<(Duration, EntryId)>,
    /// The same of transactions, by sender and number.
    abandoned: VecDeque<(Duration, (Member, usize))>,
    /// Devices that may have a slot, or may get one.
    present: Vec<Member>,
    pub(super) tally: Tally,
}

/// The numbers of one group, or of all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) sent: u64,
    pub(super) ephemeral: u64,
    pub(super) acked: u64,
    pub(super) committed: u64,
    pub(super) delivered: u64,
    pub(super) ephemeral_delivered: u64,
    /// Said again after a connection broke before the acknowledgement.
    pub(super) resent: u64,
    /// Arrived again on a later connection.
    pub(super) redelivered: u64,
    /// Owed to devices that were dropped before they got it.
    pub(super) forfeited: u64,
    pub(super) lost: u64,
    pub(super) faults: BTreeMap<Fault, u64>,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.ephemeral += other.ephemeral;
        self.acked += other.acked;
        self.committed += other.committed;
        self.delivered += other.delivered;
        self.ephemeral_delivered += other.ephemeral_delivered;
        self.resent += other.resent;
        self.redelivered += other.redelivered;
        self.forfeited += other.forfeited;
        self.lost += other.lost;
        for (fault, count) in &other.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
    }

    /// Arrivals for the first time.
    pub(super) const fn arrivals(&self) -> u64 {
        self.delivered + self.ephemeral_delivered
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        self.faults_of(fault, 1);
    }

    fn faults_of(&mut self, fault: Fault, count: u64) {
        if count > 0 {
            *self.faults.entry(fault).or_default() += count;
        }
    }

    pub(super) fn is_clean(&self) -> bool {
        self.lost == 0 && self.faults.is_empty()
    }
}

impl Ledger {
    /// One more device; says which.
    pub(super) fn joins(&mut self) -> Member {
        self.books.push(Book {
            slot: Slot::Unknown,
            asked: None,
            connection: None,
            complete_until: 0,
            entries: HashMap::new(),
            next_entry: 0,
            unanswered: BTreeSet::new(),
            next_transaction: 0,
            transactions: BTreeMap::new(),
            owed: HashMap::new(),
            last: HashMap::new(),
        });
        let member = self.books.len() - 1;
        self.present.push(member);
        member
    }

    /// A device is about to connect; the answer is what [`Self::admitted`] wants to know.
    pub(super) fn asks(&mut self, member: Member) -> Tick {
        let tick = self.tick();
        if let Some(book) = self.books.get_mut(member) {
            book.asked.get_or_insert(tick);
        }
        tick
    }

    /// A device was told that it has a slot, and how much waits for it.
    pub(super) fn admitted(&mut self, member: Member, began: Tick, queue_length: u32) {
        let tick = self.tick();
        let Some(book) = self.books.get_mut(member) else { return };
        if book.slot == Slot::Unknown {
            book.slot = Slot::Since(tick);
        }
        book.connection =
            Some(Connection { began, since: tick, announced: queue_length.into(), dry: false, leads: false });
    }

    /// The queue is dry, the mediator says.
    pub(super) fn dry(&mut self, member: Member) {
        let Some(book) = self.books.get_mut(member) else { return };
        let began = book.connection.map_or(0, |connection| connection.began);
        let missing = book.owed.values().filter(|since| **since < began).count() as u64;
        self.tally.faults_of(Fault::DryTooEarly, missing);
        let Some(connection) = &mut book.connection else { return };
        book.complete_until = connection.began;
        self.tally.faults_of(Fault::ShortQueue, u64::from(connection.announced > 0));
        self.tally.faults_of(Fault::Role, u64::from(std::mem::replace(&mut connection.dry, true)));
    }

    /// Whether the queue of the device's connection was called dry.
    pub(super) fn is_dry(&self, member: Member) -> bool {
        self.books.get(member).and_then(|book| book.connection).is_some_and(|connection| connection.dry)
    }

    /// The device leads, the mediator says.
    pub(super) fn leads(&mut self, member: Member) {
        let Some(connection) = self.books.get_mut(member).and_then(|book| book.connection.as_mut()) else { return };
        let twice = std::mem::replace(&mut connection.leads, true);
        let early = !connection.dry;
        self.tally.faults_of(Fault::Role, u64::from(twice || early));
    }

    /// A connection is over. What it brought and was for certain not acknowledged has to come again; what was said on it and
    /// not acknowledged never will be.
    pub(super) fn disconnected(&mut self, member: Member, unacked: impl IntoIterator<Item = EntryId>, now: Duration) {
        let tick = self.tick();
        let Some(book) = self.books.get_mut(member) else { return };
        book.connection = None;
        self.settled.extend(std::mem::take(&mut book.unanswered).into_iter().map(|entry| (now, (member, entry))));
        book.transactions.retain(|_, transaction| !transaction.entries.is_empty());
        for (number, transaction) in &mut book.transactions {
            if transaction.abandoned.is_none() {
                transaction.abandoned = Some(tick);
                self.abandoned.push_back((now, (member, *number)));
            }
        }
        if !matches!(book.slot, Slot::Since(_)) {
            return;
        }
        let again: Vec<EntryId> =
            unacked.into_iter().filter(|entry| book.owed.insert(*entry, tick).is_none()).collect();
        for id in again {
            if let Some(entry) = self.entry(id) {
                entry.owed += 1;
            }
        }
    }

    /// Somebody sets out to drop a device.
    pub(super) fn leaving(&mut self, member: Member, now: Duration) {
        self.loses_slot(member, Slot::Leaving, now);
    }

    /// A device was dropped, and that was confirmed.
    pub(super) fn gone(&mut self, member: Member, now: Duration) {
        let tick = self.tick();
        self.loses_slot(member, Slot::GoneSince(tick), now);
    }

    fn loses_slot(&mut self, member: Member, slot: Slot, now: Duration) {
        let Some(book) = self.books.get_mut(member) else { return };
        book.slot = slot;
        if matches!(slot, Slot::GoneSince(_)) {
            self.present.retain(|present| *present != member);
        }
        let owed = std::mem::take(&mut book.owed);
        self.tally.forfeited += owed.len() as u64;
        for id in owed.into_keys() {
            self.one_less(id, now);
        }
    }

    /// Whether somebody drops a device, or has.
    pub(super) fn is_dropped(&self, member: Member) -> bool {
        self.books.get(member).is_none_or(|book| matches!(book.slot, Slot::Leaving | Slot::GoneSince(_)))
    }

    /// A message goes into the socket; says under which number. `again` when it was said before; `due_at` is when it should have
    /// been said, from where its time counts.
    pub(super) fn say(&mut self, sender: Member, kind: Kind, again: bool, due_at: Duration, now: Duration) -> usize {
        let said = self.tick();
        self.forget(now);
        self.tally.sent += 1;
        self.tally.ephemeral += u64::from(kind == Kind::Ephemeral);
        self.tally.resent += u64::from(again);
        let others = || self.with_slot().filter(|(member, _)| *member != sender).map(|(_, book)| book);
        let with_slot = others().count();
        let all_here = others().all(|book| book.connection.is_some());
        let online = all_here.then_some(with_slot);
        let entry = Entry {
            kind,
            said,
            due_at,
            acked: false,
            kept: None,
            timestamp_ms: None,
            arrivals: Vec::new(),
            owed: 0,
            online,
        };
        let Some(book) = self.books.get_mut(sender) else { return 0 };
        let number = book.next_entry;
        book.next_entry += 1;
        book.entries.insert(number, entry);
        match kind {
            Kind::Single => drop(book.unanswered.insert(number)),
            // Nobody is owed it.
            Kind::Ephemeral => self.settled.push_back((now, (sender, number))),
            Kind::Staged(transaction) => {
                if let Some(transaction) = book.transactions.get_mut(&transaction) {
                    transaction.entries.push(number);
                }
            }
        }
        number
    }

    /// A transaction is about to be granted; says under which number.
    pub(super) fn begin(&mut self, sender: Member) -> usize {
        let Some(book) = self.books.get_mut(sender) else { return 0 };
        let number = book.next_transaction;
        book.next_transaction += 1;
        let begun = Transaction { state: Progress::Begun, entries: Vec::new(), seen: None, abandoned: None };
        book.transactions.insert(number, begun);
        number
    }

    /// The commit goes into the socket.
    pub(super) fn commit_sent(&mut self, sender: Member, transaction: usize) {
        let tick = self.tick();
        self.advance(sender, transaction, Progress::CommitSent(tick));
    }

    /// The commit was acknowledged: everything of the transaction that was acknowledged is due now.
    pub(super) fn committed(&mut self, sender: Member, transaction: usize, now: Duration) {
        let tick = self.tick();
        let sent = match self.state(sender, transaction) {
            Some(Progress::CommitSent(sent)) => sent,
            _ => tick,
        };
        let staged = self.staged(sender, transaction);
        if let Some(book) = self.books.get_mut(sender) {
            // What arrives of it from now on is as good as anything else.
            book.transactions.remove(&transaction);
        }
        for entry in staged {
            self.tally.committed += 1;
            if self.entry((sender, entry)).is_some_and(|entry| !entry.acked) {
                self.tally.fault(Fault::LateAck);
            }
            self.keep((sender, entry), sent, now);
        }
    }

    /// The mediator took the lock back: what was on the way to it as a commit came too late.
    pub(super) fn expired(&mut self, sender: Member, transaction: usize) {
        self.advance(sender, transaction, Progress::Begun);
        let staged = self.staged(sender, transaction);
        let leaked: usize =
            staged.into_iter().filter_map(|entry| Some(self.entry((sender, entry))?.arrivals.len())).sum();
        self.tally.faults_of(Fault::Leaked, leaked as u64);
    }

    fn staged(&self, sender: Member, transaction: usize) -> Vec<usize> {
        let transaction = self.books.get(sender).and_then(|book| book.transactions.get(&transaction));
        transaction.map(|transaction| transaction.entries.clone()).unwrap_or_default()
    }

    fn advance(&mut self, sender: Member, transaction: usize, to: Progress) {
        let transaction = self.books.get_mut(sender).and_then(|book| book.transactions.get_mut(&transaction));
        if let Some(transaction) = transaction {
            transaction.state = to;
        }
    }

    /// A reflect-ack came. Returns how long it took; nothing when it acknowledges nothing.
    pub(super) fn acked(&mut self, sender: Member, entry: usize, timestamp_ms: u64, now: Duration) -> Option<Duration> {
        let found = self.entry((sender, entry));
        let Some(found) = found.filter(|found| !found.acked && found.kind != Kind::Ephemeral) else {
            self.tally.fault(Fault::Foreign);
            return None;
        };
        found.acked = true;
        let (kind, said, due_at) = (found.kind, found.said, found.due_at);
        let another = *found.timestamp_ms.get_or_insert(timestamp_ms) != timestamp_ms;
        self.tally.acked += 1;
        if another {
            self.tally.fault(Fault::AnotherTime);
        }
        if kind == Kind::Single {
            if let Some(book) = self.books.get_mut(sender) {
                book.unanswered.remove(&entry);
            }
            self.keep((sender, entry), said, now);
        }
        Some(now.saturating_sub(due_at))
    }

    /// From here on an entry is owed to every device that had its slot by `then` and has it still.
    fn keep(&mut self, id: EntryId, then: Tick, now: Duration) {
        let tick = self.tick();
        let arrived: Vec<Member> =
            self.entry(id).map(|entry| entry.arrivals.iter().map(|it| it.receiver).collect()).unwrap_or_default();
        let mut owed = 0;
        for &member in &self.present {
            let Some(book) = self.books.get_mut(member) else { continue };
            let has_slot = matches!(book.slot, Slot::Since(since) if since < then);
            // What arrived and has to come again is in the list already.
            if has_slot && member != id.0 && !arrived.contains(&member) && book.owed.insert(id, tick).is_none() {
                owed += 1;
            }
        }
        let Some(entry) = self.entry(id) else { return };
        entry.kept = Some(tick);
        entry.owed += owed;
        if entry.owed == 0 {
            self.settled.push_back((now, id));
        }
    }

    /// A message arrived. Returns how long a single message took when this was the last device it was for, and all of them
    /// were connected all the time.
    pub(super) fn arrived(&mut self, seen: Seen, now: Duration) -> Option<Duration> {
        let Seen { receiver, connection, sender, .. } = seen;
        let id = (sender, seen.entry);
        if self.books.get(sender).is_none_or(|book| seen.entry >= book.next_entry) {
            self.tally.fault(Fault::Foreign);
            return None;
        }
        if receiver == sender {
            self.tally.fault(Fault::Echoed);
            return None;
        }
        if !seen.ephemeral
            && let Some(connection) = self.books.get_mut(receiver).and_then(|book| book.connection.as_mut())
        {
            connection.announced = connection.announced.saturating_sub(1);
        }
        // Connections count from 1, so the default is nobody's.
        let book = self.books.get_mut(receiver)?;
        let (last_connection, last_entry, highest) = book.last.get(&sender).copied().unwrap_or_default();
        book.last.insert(sender, (connection, seen.entry, highest.max(seen.entry)));
        let (asked, slot) = (book.asked, book.slot);
        let since = book.connection.map_or(0, |connection| connection.since);
        let was_owed = book.owed.remove(&id).is_some();
        let on_this_connection = last_connection == connection;
        if *self.ids.entry((receiver, seen.reflected_id)).or_insert(id) != id {
            self.tally.fault(Fault::SameId);
        }
        let Some(entry) = self.books.get_mut(sender).and_then(|book| book.entries.get_mut(&seen.entry)) else {
            // Struck long ago.
            self.ids.remove(&(receiver, seen.reflected_id));
            let first = last_connection == 0 || seen.entry > highest;
            *(if first { &mut self.tally.delivered } else { &mut self.tally.redelivered }) += 1;
            if on_this_connection && seen.entry <= last_entry {
                self.tally.fault(if seen.entry == last_entry { Fault::Repeated } else { Fault::Misordered });
            }
            return None;
        };
        let mut faults = Vec::new();
        if *entry.timestamp_ms.get_or_insert(seen.timestamp_ms) != seen.timestamp_ms {
            faults.push(Fault::AnotherTime);
        }
        let was_ephemeral = entry.kind == Kind::Ephemeral;
        if was_ephemeral != seen.ephemeral {
            faults.push(Fault::NotEphemeral);
        }
        let before = entry.arrivals.iter_mut().find(|arrival| arrival.receiver == receiver);
        let first = before.is_none();
        match before {
            None => {
                if was_ephemeral {
                    self.tally.ephemeral_delivered += 1;
                } else {
                    self.tally.delivered += 1;
                }
                if asked.zip(entry.kept).is_some_and(|(asked, kept)| kept < asked) {
                    faults.push(Fault::BeforeItsTime);
                }
                if matches!(slot, Slot::GoneSince(gone) if gone < entry.said) {
                    faults.push(Fault::AfterItsTime);
                }
                entry.arrivals.push(Arrival { receiver, connection, reflected_id: seen.reflected_id });
            }
            Some(before) => {
                if before.connection == connection {
                    faults.push(Fault::Repeated);
                } else {
                    self.tally.redelivered += 1;
                }
                if before.reflected_id != seen.reflected_id {
                    faults.push(Fault::AnotherId);
                }
                if was_ephemeral {
                    faults.push(Fault::NotEphemeral);
                }
                before.connection = connection;
            }
        }
        let behind_on_this_connection = on_this_connection && seen.entry < last_entry;
        let first_behind_others = first && !was_ephemeral && seen.entry < highest;
        if behind_on_this_connection || first_behind_others {
            faults.push(Fault::Misordered);
        }
        let (kind, due_at) = (entry.kind, entry.due_at);
        if since > entry.said {
            entry.online = None;
        }
        let mut was_last = false;
        if let Some(online) = entry.online.as_mut().filter(|_| first) {
            was_last = *online == 1;
            *online = online.saturating_sub(1);
        }
        for fault in faults {
            self.tally.fault(fault);
        }
        if let Kind::Staged(transaction) = kind {
            let tick = self.tick();
            let transaction = self.books.get_mut(sender).and_then(|book| book.transactions.get_mut(&transaction));
            if let Some(transaction) = transaction {
                transaction.seen.get_or_insert(tick);
                self.tally.faults_of(Fault::Leaked, u64::from(transaction.state == Progress::Begun));
            }
        }
        if was_owed {
            self.one_less(id, now);
        }
        (was_last && kind == Kind::Single).then(|| now.saturating_sub(due_at))
    }

    /// An entry is owed to one device less.
    fn one_less(&mut self, id: EntryId, now: Duration) {
        let Some(entry) = self.entry(id) else { return };
        entry.owed = entry.owed.saturating_sub(1);
        if entry.owed == 0 && entry.kept.is_some() {
            self.settled.push_back((now, id));
        }
    }

    /// Strikes what was settled long ago.
    fn forget(&mut self, now: Duration) {
        let is_old = |since: Duration| now.saturating_sub(since) > REMEMBERED;
        while let Some((_, id)) = self.settled.pop_front_if(|(since, _)| is_old(*since)) {
            if self.entry(id).is_some_and(|entry| entry.owed == 0) {
                self.strike(id);
            }
        }
        while let Some((_, (sender, number))) = self.abandoned.pop_front_if(|(since, _)| is_old(*since)) {
            let Some(transaction) = self.books.get(sender).and_then(|book| book.transactions.get(&number)) else {
                continue;
            };
            if !self.is_certain(sender, transaction) {
                self.abandoned.push_back((now, (sender, number)));
                continue;
            }
            let torn = self.is_torn(sender, transaction);
            self.tally.faults_of(Fault::Torn, u64::from(torn));
            for entry in self.staged(sender, number) {
                self.strike((sender, entry));
            }
            if let Some(book) = self.books.get_mut(sender) {
                book.transactions.remove(&number);
            }
        }
    }

    fn strike(&mut self, id: EntryId) {
        let struck = self.books.get_mut(id.0).and_then(|book| book.entries.remove(&id.1));
        for arrival in struck.into_iter().flat_map(|entry| entry.arrivals) {
            self.ids.remove(&(arrival.receiver, arrival.reflected_id));
        }
    }

    fn with_slot(&self) -> impl Iterator<Item = (Member, &Book)> {
        let books = self.present.iter().filter_map(|member| Some((*member, self.books.get(*member)?)));
        books.filter(|(_, book)| matches!(book.slot, Slot::Since(_)))
    }

    /// Whether nothing of an abandoned transaction can be under way to anybody.
    fn is_certain(&self, sender: Member, transaction: &Transaction) -> bool {
        let Some(abandoned) = transaction.abandoned else { return false };
        let since = abandoned.max(transaction.seen.unwrap_or_default());
        let mut others = self.with_slot().filter(|(member, _)| *member != sender);
        others.all(|(_, book)| book.is_past(sender, transaction, since))
    }

    /// Whether a transaction whose commit was not answered came to somebody, and to somebody else not, or in part.
    fn is_torn(&self, sender: Member, transaction: &Transaction) -> bool {
        let (Progress::CommitSent(sent), Some(seen)) = (transaction.state, transaction.seen) else { return false };
        let Some(book) = self.books.get(sender) else { return false };
        let has_everything = |receiver: Member| {
            let mut entries = transaction.entries.iter().filter_map(|entry| book.entries.get(entry));
            entries.all(|entry| entry.arrivals.iter().any(|it| it.receiver == receiver))
        };
        // Somebody has got something of it, so it was committed. Elsewhere it may still be on its way.
        let misses = |(receiver, other): (Member, &Book)| {
            let had_slot = receiver != sender && matches!(other.slot, Slot::Since(since) if since < sent);
            had_slot && other.is_past(sender, transaction, seen) && !has_everything(receiver)
        };
        self.with_slot().any(misses)
    }

    fn state(&self, sender: Member, transaction: usize) -> Option<Progress> {
        Some(self.books.get(sender)?.transactions.get(&transaction)?.state)
    }

    fn entry(&mut self, (sender, entry): EntryId) -> Option<&mut Entry> {
        self.books.get_mut(sender)?.entries.get_mut(&entry)
    }

    const fn tick(&mut self) -> Tick {
        self.tick += 1;
        self.tick
    }

    /// Whether everything that is due has arrived.
    pub(super) fn is_settled(&self) -> bool {
        self.present.iter().filter_map(|member| self.books.get(*member)).all(|book| book.owed.is_empty())
    }

    /// How many entries, ids and transactions are remembered.
    #[cfg(test)]
    fn remembered(&self) -> (usize, usize, usize) {
        let count = |of: fn(&Book) -> usize| self.books.iter().map(of).sum();
        (count(|book| book.entries.len()), self.ids.len(), count(|book| book.transactions.len()))
    }

    /// Closes the books: what is due and did not arrive is lost.
    pub(super) fn close(mut self) -> Tally {
        let transactions = |(sender, book): (Member, &Book)| {
            book.transactions.values().filter(|transaction| self.is_torn(sender, transaction)).count() as u64
        };
        let torn = self.books.iter().enumerate().map(transactions).sum();
        self.tally.lost += self.books.iter().map(|book| book.owed.len() as u64).sum::<u64>();
        self.tally.faults_of(Fault::Torn, torn);
        self.tally
    }
}

impl Book {
    /// Whether nothing of that transaction can come here any more that was there at that time: something later of its sender
    /// has come, or all that was there by then.
    fn is_past(&self, sender: Member, transaction: &Transaction, since: Tick) -> bool {
        let highest = self.last.get(&sender).map(|(_, _, highest)| highest);
        self.complete_until > since
            || highest.zip(transaction.entries.last()).is_some_and(|(highest, last)| highest > last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Duration = Duration::ZERO;

    /// So many devices that are connected.
    fn connected(members: usize) -> Ledger {
        let mut ledger = Ledger::default();
        for _ in 0..members {
            let member = ledger.joins();
            let asked = ledger.asks(member);
            ledger.admitted(member, asked, 0);
        }
        ledger
    }

    fn say(ledger: &mut Ledger, sender: Member, kind: Kind) -> usize {
        ledger.say(sender, kind, false, T, T)
    }

    fn seen(receiver: Member, sender: Member, entry: usize) -> Seen {
        let reflected_id = u32::try_from(100 * sender + entry).unwrap();
        Seen { receiver, connection: 1, sender, entry, reflected_id, ephemeral: false, timestamp_ms: 9 }
    }

    fn faults(tally: &Tally) -> Vec<(Fault, u64)> {
        tally.faults.iter().map(|(fault, count)| (*fault, *count)).collect()
    }

    #[test]
    fn an_acknowledged_message_is_due_at_every_other_device() {
        let mut ledger = connected(3);
        assert_eq!(say(&mut ledger, 0, Kind::Single), 0);
        assert!(ledger.is_settled(), "nothing is due before the acknowledgement");
        ledger.acked(0, 0, 9, T);
        assert!(!ledger.is_settled());
        assert_eq!(ledger.arrived(seen(1, 0, 0), T), None);
        let last = ledger.arrived(seen(2, 0, 0), Duration::from_millis(5));
        assert_eq!(last, Some(Duration::from_millis(5)), "the last one tells how long it took");
        assert!(ledger.is_settled());
        let tally = ledger.close();
        assert!(tally.is_clean());
        assert_eq!((tally.sent, tally.acked, tally.delivered), (1, 1, 2));
    }

    #[test]
    fn it_may_arrive_before_its_acknowledgement() {
        let mut ledger = connected(2);
        say(&mut ledger, 0, Kind::Single);
        ledger.arrived(seen(1, 0, 0), T);
        ledger.acked(0, 0, 9, T);
        assert!(ledger.is_settled());
        assert!(ledger.close().is_clean());
    }

    #[test]
    fn what_was_acknowledged_and_did_not_arrive_is_lost_and_nothing_else() {
        let mut ledger = connected(3);
        for kind in [Kind::Single, Kind::Single, Kind::Ephemeral] {
            say(&mut ledger, 0, kind);
        }
        ledger.acked(0, 0, 9, T);
        ledger.arrived(seen(1, 0, 0), T);
        assert_eq!(ledger.close().lost, 1);
    }

    #[test]
    fn order_is_per_sender_and_per_connection() {
        let mut ledger = connected(3);
        for sender in [0, 0, 0, 1] {
            say(&mut ledger, sender, Kind::Single);
        }
        ledger.arrived(seen(2, 0, 1), T);
        ledger.arrived(seen(2, 1, 0), T);
        assert!(ledger.tally.is_clean(), "another sender's order is its own");
        // On a new connection the queue starts again at what was not acknowledged.
        ledger.arrived(Seen { connection: 2, ..seen(2, 0, 1) }, T);
        ledger.arrived(Seen { connection: 2, ..seen(2, 0, 2) }, T);
        assert!(ledger.tally.is_clean());
        assert_eq!(ledger.tally.redelivered, 1);
        ledger.arrived(Seen { connection: 3, ..seen(2, 0, 0) }, T);
        assert_eq!(faults(&ledger.tally), [(Fault::Misordered, 1)], "for the first time, behind later ones");
    }

    #[test]
    fn each_kind_of_wrong_arrival_has_its_name() {
        let mut ledger = connected(2);
        say(&mut ledger, 0, Kind::Single);
        say(&mut ledger, 0, Kind::Ephemeral);
        say(&mut ledger, 0, Kind::Ephemeral);
        ledger.acked(0, 0, 9, T);
        ledger.arrived(seen(1, 0, 0), T);
        for wrong in [
            seen(1, 0, 7),                                              // nobody said it
            seen(0, 0, 0),                                              // its own sender
            seen(1, 0, 0),                                              // again
            Seen { connection: 2, reflected_id: 8, ..seen(1, 0, 0) },   // again, another id
            Seen { connection: 3, timestamp_ms: 8, ..seen(1, 0, 0) },   // again, another time
            Seen { connection: 3, ephemeral: false, ..seen(1, 0, 1) },  // without its flag
            Seen { ephemeral: true, reflected_id: 0, ..seen(1, 0, 2) }, // under an id that was given to another
        ] {
            ledger.arrived(wrong, T);
        }
        assert_eq!(
            faults(&ledger.close()),
            [
                (Fault::Foreign, 1),
                (Fault::Echoed, 1),
                (Fault::Repeated, 1),
                (Fault::NotEphemeral, 1),
                (Fault::AnotherId, 1),
                (Fault::SameId, 1),
                (Fault::AnotherTime, 1),
            ]
        );
    }

    #[test]
    fn a_transaction_arrives_after_its_commit_and_whole() {
        let staged = |ledger: &mut Ledger| {
            let transaction = ledger.begin(0);
            for _ in 0..2 {
                let entry = say(ledger, 0, Kind::Staged(transaction));
                ledger.acked(0, entry, 9, T);
            }
            transaction
        };
        // Committed: due.
        let mut ledger = connected(2);
        let transaction = staged(&mut ledger);
        ledger.commit_sent(0, transaction);
        assert!(ledger.is_settled());
        ledger.committed(0, transaction, T);
        ledger.arrived(seen(1, 0, 0), T);
        assert!(!ledger.is_settled());
        assert_eq!(ledger.close().lost, 1);
        // Commit unanswered: whole or not at all.
        for (arrive, torn) in [(0, false), (1, true), (2, false)] {
            let mut ledger = connected(2);
            let transaction = staged(&mut ledger);
            ledger.commit_sent(0, transaction);
            for entry in 0..arrive {
                ledger.arrived(seen(1, 0, entry), T);
            }
            assert!(ledger.is_settled());
            // The rest has to be in the queue.
            ledger.disconnected(1, [], T);
            let asked = ledger.asks(1);
            ledger.admitted(1, asked, 0);
            ledger.dry(1);
            assert_eq!(faults(&ledger.close()).contains(&(Fault::Torn, 1)), torn, "{arrive} arrived");
        }
        // Somewhere whole, elsewhere on its way: nobody can say yet. Once something later has come there, it is missing.
        for later in [false, true] {
            let mut ledger = connected(3);
            let transaction = staged(&mut ledger);
            ledger.commit_sent(0, transaction);
            ledger.dry(2);
            for entry in 0..2 {
                ledger.arrived(seen(1, 0, entry), T);
            }
            if later {
                let entry = say(&mut ledger, 0, Kind::Single);
                ledger.arrived(seen(2, 0, entry), T);
            }
            assert_eq!(faults(&ledger.close()).contains(&(Fault::Torn, 1)), later);
        }
        // Not committed: nothing, neither before the commit nor when there never is one.
        let mut ledger = connected(2);
        let transaction = staged(&mut ledger);
        ledger.arrived(seen(1, 0, 0), T);
        ledger.commit_sent(0, transaction);
        ledger.committed(0, transaction, T);
        ledger.arrived(seen(1, 0, 1), T);
        assert_eq!(faults(&ledger.close()), [(Fault::Leaked, 1)]);
        // Nor when the lock was taken back before the commit came.
        let mut ledger = connected(2);
        let transaction = staged(&mut ledger);
        ledger.commit_sent(0, transaction);
        ledger.arrived(seen(1, 0, 0), T);
        ledger.expired(0, transaction);
        ledger.arrived(seen(1, 0, 1), T);
        let tally = ledger.close();
        assert_eq!((faults(&tally), tally.lost), (vec![(Fault::Leaked, 2)], 0));
    }

    /// Said and acknowledged.
    fn keeps(ledger: &mut Ledger, sender: Member) -> usize {
        let entry = say(ledger, sender, Kind::Single);
        ledger.acked(sender, entry, 9, T);
        entry
    }

    #[test]
    fn a_device_is_owed_what_was_said_while_it_had_a_slot() {
        let mut ledger = connected(1);
        let newcomer = ledger.joins();
        keeps(&mut ledger, 0);
        assert!(ledger.is_settled(), "it did not even ask");
        let asked = ledger.asks(newcomer);
        keeps(&mut ledger, 0);
        assert!(ledger.is_settled(), "it may get this one, or not");
        ledger.admitted(newcomer, asked, 0);
        keeps(&mut ledger, 0);
        assert!(!ledger.is_settled());
        ledger.arrived(seen(1, 0, 1), T);
        ledger.arrived(seen(1, 0, 2), T);
        assert!(ledger.is_settled() && ledger.tally.is_clean());
        // The first one was kept before anybody asked for a slot.
        ledger.arrived(Seen { connection: 2, ..seen(1, 0, 0) }, T);
        assert!(faults(&ledger.close()).contains(&(Fault::BeforeItsTime, 1)));
    }

    #[test]
    fn with_its_slot_a_device_loses_what_it_was_owed_and_gets_nothing_that_is_said_later() {
        let mut ledger = connected(3);
        keeps(&mut ledger, 0);
        ledger.arrived(seen(2, 0, 0), T);
        ledger.leaving(1, T);
        assert!(ledger.is_settled() && ledger.is_dropped(1));
        keeps(&mut ledger, 0);
        ledger.arrived(seen(2, 0, 1), T);
        ledger.arrived(seen(1, 0, 0), T);
        ledger.arrived(seen(1, 0, 1), T);
        assert!(ledger.is_settled() && ledger.tally.is_clean(), "until it is confirmed, both may be");
        ledger.gone(1, T);
        keeps(&mut ledger, 0);
        ledger.arrived(seen(2, 0, 2), T);
        ledger.arrived(seen(1, 0, 2), T);
        let tally = ledger.close();
        assert_eq!((faults(&tally), tally.lost, tally.forfeited), (vec![(Fault::AfterItsTime, 1)], 0, 1));
    }

    #[test]
    fn what_was_not_acknowledged_has_to_come_again() {
        let mut ledger = connected(2);
        keeps(&mut ledger, 0);
        ledger.arrived(seen(1, 0, 0), T);
        assert!(ledger.is_settled());
        ledger.disconnected(1, [(0, 0)], T);
        assert!(!ledger.is_settled());
        let asked = ledger.asks(1);
        ledger.admitted(1, asked, 1);
        ledger.arrived(Seen { connection: 2, ..seen(1, 0, 0) }, T);
        ledger.dry(1);
        assert!(ledger.is_settled() && ledger.tally.is_clean());
        assert_eq!(ledger.tally.redelivered, 1);
        ledger.disconnected(1, [(0, 0)], T);
        assert_eq!(ledger.close().lost, 1);
    }

    #[test]
    fn a_queue_is_as_long_as_it_was_announced_and_dry_when_it_is() {
        let mut ledger = connected(2);
        ledger.disconnected(1, [], T);
        keeps(&mut ledger, 0);
        let asked = ledger.asks(1);
        keeps(&mut ledger, 0);
        ledger.admitted(1, asked, 2);
        ledger.arrived(Seen { connection: 2, ..seen(1, 0, 1) }, T);
        // The first one was owed before the connection was asked for. The other one need not have been in time.
        ledger.dry(1);
        assert_eq!(faults(&ledger.tally), [(Fault::DryTooEarly, 1), (Fault::ShortQueue, 1)]);
    }

    #[test]
    fn to_be_dry_and_to_lead_is_told_once_and_in_this_order() {
        let mut ledger = connected(3);
        ledger.dry(0);
        ledger.leads(0);
        assert!(ledger.tally.is_clean());
        ledger.leads(0);
        ledger.leads(1);
        ledger.dry(2);
        ledger.dry(2);
        assert_eq!(faults(&ledger.tally), [(Fault::Role, 3)]);
    }

    #[test]
    fn only_deliveries_to_devices_that_were_connected_are_timed_and_from_when_they_were_due() {
        let mut ledger = connected(3);
        let ms = Duration::from_millis;
        ledger.say(0, Kind::Single, false, ms(10), ms(40));
        assert_eq!(ledger.acked(0, 0, 9, ms(50)), Some(ms(40)));
        ledger.arrived(seen(1, 0, 0), ms(60));
        ledger.disconnected(2, [], T);
        let asked = ledger.asks(2);
        ledger.admitted(2, asked, 0);
        assert_eq!(ledger.arrived(seen(2, 0, 0), ms(9_000)), None, "it was away");
        ledger.say(0, Kind::Single, false, ms(9_000), ms(9_000));
        ledger.arrived(seen(1, 0, 1), ms(9_005));
        assert_eq!(ledger.arrived(seen(2, 0, 1), ms(9_007)), Some(ms(7)));
    }

    #[test]
    fn what_is_owed_to_nobody_is_forgotten_after_a_while_and_its_order_is_judged_all_the_same() {
        let mut ledger = connected(2);
        let later = REMEMBERED + Duration::from_secs(1);
        for _ in 0..3 {
            keeps(&mut ledger, 0);
        }
        say(&mut ledger, 0, Kind::Ephemeral);
        ledger.arrived(seen(1, 0, 0), T);
        ledger.arrived(seen(1, 0, 1), T);
        ledger.say(0, Kind::Single, false, later, later);
        assert_eq!(ledger.remembered(), (2, 0, 0), "one is owed still, and one is new");
        ledger.arrived(seen(1, 0, 2), later);
        for again in [0, 1] {
            ledger.arrived(Seen { connection: 2, ..seen(1, 0, again) }, later);
        }
        assert!(ledger.tally.is_clean());
        assert_eq!((ledger.tally.redelivered, ledger.tally.delivered), (2, 3));
        for wrong in [1, 0] {
            ledger.arrived(Seen { connection: 2, ..seen(1, 0, wrong) }, later);
        }
        assert_eq!(faults(&ledger.close()), [(Fault::Misordered, 1), (Fault::Repeated, 1)]);
    }

    #[test]
    fn a_long_life_of_broken_connections_is_not_remembered() {
        let mut ledger = connected(3);
        let every = Duration::from_secs(1);
        let most = (1..=1_000_u32).fold((0, 0, 0), |most, round| {
            let now = every * round;
            ledger.say(0, Kind::Single, false, now, now);
            let transaction = ledger.begin(0);
            let staged = ledger.say(0, Kind::Staged(transaction), false, now, now);
            ledger.acked(0, staged, 9, now);
            ledger.commit_sent(0, transaction);
            // The answers are lost: one commit of two came through. One device hears of it at once, the other later.
            if round % 2 == 0 {
                ledger.arrived(seen(1, 0, staged), now);
            }
            ledger.disconnected(0, [], now);
            for member in [0, 1, 2] {
                ledger.disconnected(member, [], now);
                let asked = ledger.asks(member);
                ledger.admitted(member, asked, 0);
            }
            if round % 2 == 0 {
                ledger.arrived(seen(2, 0, staged), now);
            }
            for member in [0, 1, 2] {
                ledger.dry(member);
            }
            let (entries, ids, transactions) = ledger.remembered();
            (most.0.max(entries), most.1.max(ids), most.2.max(transactions))
        });
        assert!(most.0 < 80 && most.1 < 80 && most.2 < 80, "{most:?} are remembered");
        assert!(ledger.close().is_clean());
    }

    #[test]
    fn a_transaction_in_parts_is_found_when_it_is_struck() {
        let mut ledger = connected(3);
        let transaction = ledger.begin(0);
        let staged = say(&mut ledger, 0, Kind::Staged(transaction));
        ledger.acked(0, staged, 9, T);
        ledger.commit_sent(0, transaction);
        ledger.disconnected(0, [], T);
        ledger.arrived(seen(1, 0, staged), T);
        let mut later = T;
        let mut much_later = |ledger: &mut Ledger| {
            later += REMEMBERED + Duration::from_secs(1);
            ledger.say(0, Kind::Ephemeral, false, later, later);
        };
        much_later(&mut ledger);
        assert_eq!(faults(&ledger.tally), [], "the third device may still get it");
        for member in [1, 2] {
            ledger.disconnected(member, [], T);
            let asked = ledger.asks(member);
            ledger.admitted(member, asked, 0);
            ledger.dry(member);
        }
        much_later(&mut ledger);
        assert_eq!(faults(&ledger.tally), [(Fault::Torn, 1)]);
        assert_eq!(ledger.remembered().2, 0);
    }
}
