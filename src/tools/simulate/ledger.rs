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
//!   commit was never answered arrives everywhere whole or nowhere.
//!
//! A repeated arrival is allowed on a later connection only: the acknowledgement may have been lost with the first one. An
//! entry that nobody acknowledged may have arrived or not; what it said is said again, so that both may arrive.

use std::collections::HashMap;
use std::time::Duration;

/// A device's place in its group.
pub(super) type Member = usize;

/// One `reflect` that went into a socket.
#[derive(Debug)]
struct Entry {
    kind: Kind,
    said_at: Duration,
    acked: bool,
    timestamp_ms: Option<u64>,
    /// By member; the sender's own stays empty.
    arrivals: Vec<Option<Arrival>>,
}

#[derive(Debug, Clone, Copy)]
struct Arrival {
    connection: u32,
    reflected_id: u32,
}

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

/// How far a transaction got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transaction {
    /// Not committed, and once its connection is gone never to be: nothing of it may arrive.
    Begun,
    CommitSent,
    Committed,
}

/// One arrival, as the receiving device saw it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) receiver: Member,
    /// Which of the receiver's connections, counted up.
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
        }
    }
}

/// The books of one group.
#[derive(Debug)]
pub(super) struct Ledger {
    members: usize,
    entries: Vec<Vec<Entry>>,
    transactions: Vec<Vec<Transaction>>,
    /// By receiver and sender: connection and entry of the last arrival, and the highest entry that ever arrived.
    last: HashMap<(Member, Member), (u32, usize, usize)>,
    /// By receiver and reflected-id: whose entry it was. Ephemeral ones are given away once, too.
    ids: HashMap<(Member, u32), (Member, usize)>,
    /// Arrivals that are due and have not happened.
    outstanding: usize,
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
    pub(super) lost: u64,
    pub(super) faults: std::collections::BTreeMap<Fault, u64>,
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
        *self.faults.entry(fault).or_default() += 1;
    }

    pub(super) fn is_clean(&self) -> bool {
        self.lost == 0 && self.faults.is_empty()
    }
}

impl Ledger {
    pub(super) fn new(members: usize) -> Self {
        let per_member = || std::iter::repeat_with(Vec::new).take(members).collect();
        Self {
            members,
            entries: per_member(),
            transactions: std::iter::repeat_with(Vec::new).take(members).collect(),
            last: HashMap::new(),
            ids: HashMap::new(),
            outstanding: 0,
            tally: Tally::default(),
        }
    }

    /// A message goes into the socket; says under which number. `again` when it was said before.
    pub(super) fn say(&mut self, sender: Member, kind: Kind, again: bool, now: Duration) -> usize {
        let entry = Entry { kind, said_at: now, acked: false, timestamp_ms: None, arrivals: vec![None; self.members] };
        self.tally.sent += 1;
        self.tally.ephemeral += u64::from(kind == Kind::Ephemeral);
        self.tally.resent += u64::from(again);
        let Some(entries) = self.entries.get_mut(sender) else { return 0 };
        entries.push(entry);
        entries.len() - 1
    }

    /// A transaction is about to be granted; says under which number.
    pub(super) fn begin(&mut self, sender: Member) -> usize {
        let Some(transactions) = self.transactions.get_mut(sender) else { return 0 };
        transactions.push(Transaction::Begun);
        transactions.len() - 1
    }

    /// The commit goes into the socket.
    pub(super) fn commit_sent(&mut self, sender: Member, transaction: usize) {
        self.advance(sender, transaction, Transaction::CommitSent);
    }

    /// The commit was acknowledged: everything of the transaction that was acknowledged is due now.
    pub(super) fn committed(&mut self, sender: Member, transaction: usize) {
        self.advance(sender, transaction, Transaction::Committed);
        let members = self.members;
        for entry in self.entries.get(sender).into_iter().flatten() {
            if entry.kind == Kind::Staged(transaction) {
                self.tally.committed += 1;
                self.outstanding += entry.missing(members);
                if !entry.acked {
                    self.tally.fault(Fault::LateAck);
                }
            }
        }
    }

    /// The mediator took the lock back: what was on the way to it as a commit came too late.
    pub(super) fn expired(&mut self, sender: Member, transaction: usize) {
        self.advance(sender, transaction, Transaction::Begun);
        let staged = self.entries.get(sender).into_iter().flatten();
        let leaked: usize = staged
            .filter(|entry| entry.kind == Kind::Staged(transaction))
            .map(|entry| entry.arrivals.iter().flatten().count())
            .sum();
        for _ in 0..leaked {
            self.tally.fault(Fault::Leaked);
        }
    }

    fn advance(&mut self, sender: Member, transaction: usize, to: Transaction) {
        if let Some(state) = self.transactions.get_mut(sender).and_then(|all| all.get_mut(transaction)) {
            *state = to;
        }
    }

    /// A reflect-ack came. Returns how long it took; nothing when it acknowledges nothing.
    pub(super) fn acked(&mut self, sender: Member, entry: usize, timestamp_ms: u64, now: Duration) -> Option<Duration> {
        let members = self.members;
        let found = self.entries.get_mut(sender).and_then(|entries| entries.get_mut(entry));
        let Some(found) = found.filter(|found| !found.acked && found.kind != Kind::Ephemeral) else {
            self.tally.fault(Fault::Foreign);
            return None;
        };
        found.acked = true;
        self.tally.acked += 1;
        if found.kind == Kind::Single {
            self.outstanding += found.missing(members);
        }
        let took = now.saturating_sub(found.said_at);
        if *found.timestamp_ms.get_or_insert(timestamp_ms) != timestamp_ms {
            self.tally.fault(Fault::AnotherTime);
        }
        Some(took)
    }

    /// A message arrived. Returns how long a single message took when this was the last device it was due at.
    pub(super) fn arrived(&mut self, seen: Seen, now: Duration) -> Option<Duration> {
        let Seen { receiver, connection, sender, .. } = seen;
        let members = self.members;
        let Some(entry) = self.entries.get_mut(sender).and_then(|entries| entries.get_mut(seen.entry)) else {
            self.tally.fault(Fault::Foreign);
            return None;
        };
        let Some(arrival) = entry.arrivals.get_mut(receiver).filter(|_| receiver != sender) else {
            self.tally.fault(Fault::Echoed);
            return None;
        };
        if *entry.timestamp_ms.get_or_insert(seen.timestamp_ms) != seen.timestamp_ms {
            self.tally.fault(Fault::AnotherTime);
        }
        let was_ephemeral = entry.kind == Kind::Ephemeral;
        if was_ephemeral != seen.ephemeral {
            self.tally.fault(Fault::NotEphemeral);
        }
        // Connections count from 1, so the default is nobody's.
        let (last_connection, last_entry, highest) = self.last.get(&(receiver, sender)).copied().unwrap_or_default();
        let first = arrival.is_none();
        match arrival {
            None => {
                *arrival = Some(Arrival { connection, reflected_id: seen.reflected_id });
                if was_ephemeral {
                    self.tally.ephemeral_delivered += 1;
                } else {
                    self.tally.delivered += 1;
                }
            }
            Some(before) => {
                if before.connection == connection {
                    self.tally.fault(Fault::Repeated);
                } else {
                    self.tally.redelivered += 1;
                }
                if before.reflected_id != seen.reflected_id {
                    self.tally.fault(Fault::AnotherId);
                }
                if was_ephemeral {
                    self.tally.fault(Fault::NotEphemeral);
                }
                before.connection = connection;
            }
        }
        let behind_on_this_connection = last_connection == connection && seen.entry < last_entry;
        let first_behind_others = first && !was_ephemeral && seen.entry < highest;
        if behind_on_this_connection || first_behind_others {
            self.tally.fault(Fault::Misordered);
        }
        self.last.insert((receiver, sender), (connection, seen.entry, highest.max(seen.entry)));

        if *self.ids.entry((receiver, seen.reflected_id)).or_insert((sender, seen.entry)) != (sender, seen.entry) {
            self.tally.fault(Fault::SameId);
        }
        let (missing, kind, acked, said_at) = (entry.missing(members), entry.kind, entry.acked, entry.said_at);
        if let Kind::Staged(transaction) = kind
            && self.state(sender, transaction) == Some(Transaction::Begun)
        {
            self.tally.fault(Fault::Leaked);
        }
        if first && self.is_due(sender, kind, acked) {
            self.outstanding = self.outstanding.saturating_sub(1);
        }
        (first && missing == 0 && kind == Kind::Single).then(|| now.saturating_sub(said_at))
    }

    fn is_due(&self, sender: Member, kind: Kind, acked: bool) -> bool {
        match kind {
            Kind::Single => acked,
            Kind::Ephemeral => false,
            Kind::Staged(transaction) => self.state(sender, transaction) == Some(Transaction::Committed),
        }
    }

    fn state(&self, sender: Member, transaction: usize) -> Option<Transaction> {
        self.transactions.get(sender)?.get(transaction).copied()
    }

    /// Whether everything that is due has arrived.
    pub(super) const fn is_settled(&self) -> bool {
        self.outstanding == 0
    }

    /// Closes the books: what is due and did not arrive is lost. Counted afresh, not from what was added up on the way.
    pub(super) fn close(mut self) -> Tally {
        let mut torn = 0;
        for (sender, entries) in self.entries.iter().enumerate() {
            let mut parts: HashMap<usize, (usize, usize)> = HashMap::new();
            for entry in entries {
                let missing = entry.missing(self.members);
                if self.is_due(sender, entry.kind, entry.acked) {
                    self.tally.lost += missing as u64;
                }
                let Kind::Staged(transaction) = entry.kind else { continue };
                let (here, gone) = parts.entry(transaction).or_default();
                *gone += missing;
                *here += self.members - 1 - missing;
            }
            for (transaction, (here, gone)) in parts {
                let unanswered = self.state(sender, transaction) == Some(Transaction::CommitSent);
                torn += u64::from(unanswered && here > 0 && gone > 0);
            }
        }
        if torn > 0 {
            self.tally.faults.insert(Fault::Torn, torn);
        }
        self.tally
    }
}

impl Entry {
    /// At how many other devices it has not arrived.
    fn missing(&self, members: usize) -> usize {
        (members - 1).saturating_sub(self.arrivals.iter().flatten().count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Duration = Duration::ZERO;

    fn seen(receiver: Member, sender: Member, entry: usize) -> Seen {
        let reflected_id = u32::try_from(100 * sender + entry).unwrap();
        Seen { receiver, connection: 1, sender, entry, reflected_id, ephemeral: false, timestamp_ms: 9 }
    }

    fn faults(tally: &Tally) -> Vec<(Fault, u64)> {
        tally.faults.iter().map(|(fault, count)| (*fault, *count)).collect()
    }

    #[test]
    fn an_acknowledged_message_is_due_at_every_other_device() {
        let mut ledger = Ledger::new(3);
        assert_eq!(ledger.say(0, Kind::Single, false, T), 0);
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
        let mut ledger = Ledger::new(2);
        ledger.say(0, Kind::Single, false, T);
        ledger.arrived(seen(1, 0, 0), T);
        ledger.acked(0, 0, 9, T);
        assert!(ledger.is_settled());
        assert!(ledger.close().is_clean());
    }

    #[test]
    fn what_was_acknowledged_and_did_not_arrive_is_lost_and_nothing_else() {
        let mut ledger = Ledger::new(3);
        for kind in [Kind::Single, Kind::Single, Kind::Ephemeral] {
            ledger.say(0, kind, false, T);
        }
        ledger.acked(0, 0, 9, T);
        ledger.arrived(seen(1, 0, 0), T);
        assert_eq!(ledger.close().lost, 1);
    }

    #[test]
    fn order_is_per_sender_and_per_connection() {
        let mut ledger = Ledger::new(3);
        for sender in [0, 0, 0, 1] {
            ledger.say(sender, Kind::Single, false, T);
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
        let mut ledger = Ledger::new(2);
        ledger.say(0, Kind::Single, false, T);
        ledger.say(0, Kind::Ephemeral, false, T);
        ledger.say(0, Kind::Ephemeral, false, T);
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
                let entry = ledger.say(0, Kind::Staged(transaction), false, T);
                ledger.acked(0, entry, 9, T);
            }
            transaction
        };
        // Committed: due.
        let mut ledger = Ledger::new(2);
        let transaction = staged(&mut ledger);
        ledger.commit_sent(0, transaction);
        assert!(ledger.is_settled());
        ledger.committed(0, transaction);
        ledger.arrived(seen(1, 0, 0), T);
        assert!(!ledger.is_settled());
        assert_eq!(ledger.close().lost, 1);
        // Commit unanswered: whole or not at all.
        for (arrive, torn) in [(0, false), (1, true), (2, false)] {
            let mut ledger = Ledger::new(2);
            let transaction = staged(&mut ledger);
            ledger.commit_sent(0, transaction);
            for entry in 0..arrive {
                ledger.arrived(seen(1, 0, entry), T);
            }
            assert!(ledger.is_settled());
            assert_eq!(faults(&ledger.close()).contains(&(Fault::Torn, 1)), torn, "{arrive} arrived");
        }
        // Not committed: nothing, neither before the commit nor when there never is one.
        let mut ledger = Ledger::new(2);
        let transaction = staged(&mut ledger);
        ledger.arrived(seen(1, 0, 0), T);
        ledger.commit_sent(0, transaction);
        ledger.committed(0, transaction);
        ledger.arrived(seen(1, 0, 1), T);
        assert_eq!(faults(&ledger.close()), [(Fault::Leaked, 1)]);
        // Nor when the lock was taken back before the commit came.
        let mut ledger = Ledger::new(2);
        let transaction = staged(&mut ledger);
        ledger.commit_sent(0, transaction);
        ledger.arrived(seen(1, 0, 0), T);
        ledger.expired(0, transaction);
        ledger.arrived(seen(1, 0, 1), T);
        let tally = ledger.close();
        assert_eq!((faults(&tally), tally.lost), (vec![(Fault::Leaked, 2)], 0));
    }
}
