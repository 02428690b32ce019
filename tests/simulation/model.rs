//! What a device group promises, seen from outside, and whether a run kept it.
//!
//! The model hears two kinds of facts, in the order in which they happened: a device *said* something, a device *heard*
//! something. It knows nothing of how the mediator works and shares no code with it. When the mediator decided something
//! is not visible from here, so nothing is guessed: everything is concluded from *evidence*.
//!
//! A question that was asked at time q and is answered proves that the connection, and the slot it sits on, were alive
//! when the mediator looked at it, which was not before q. So a slot existed for certain from the moment its ServerInfo
//! was heard until the last q that was answered; a lock was held from the moment the grant was heard until the last q,
//! and the same for leadership. A message that was acknowledged at t was accepted between being sent and t. Whoever
//! existed for certain during all of that time is owed the message, and the debt is due with the next answer to a question
//! asked after t, because an answer stands behind everything that was accepted before it. Two certain tenures that
//! overlap, and an answer that comes while a debt is open, are faults whatever the network did.
//!
//! A group is judged alone: nothing one group does may be noticed by another.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Moments are numbered as they are told; the whole simulation runs in one thread.
pub type Time = u64;
pub type DeviceNo = u64;
pub type ConnNo = usize;
pub type MessageNo = usize;
pub type SlotNo = usize;
pub type TxNo = usize;

macro_rules! rules {
    ($($rule:ident = $text:literal;)*) => {
        /// What may not happen, by name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Rule { $($rule,)* }

        impl Rule {
            pub const fn text(self) -> &'static str {
                match self { $(Self::$rule => $text,)* }
            }
        }
    };
}

rules! {
    Lost = "a slot was told that it has everything, and has not got what was acknowledged before";
    Overtaken = "an answer stood before a message that was acknowledged when it was asked for";
    Twice = "a message came twice on one connection";
    Disorder = "two messages came in an order that nobody else saw, or that time forbids";
    IdsShrank = "a reflected-id did not grow";
    IdReused = "a reflected-id stands for two messages, or a message for two ids";
    Half = "a transaction was delivered in part";
    Leaked = "a staged message was delivered although its commit was never asked for";
    BehindEnded = "a transaction's message came behind its Ended";
    TwoHolders = "two connections held the lock at the same time";
    TwoLeaders = "two connections led at the same time";
    NoLeader = "everybody is dry and nobody leads";
    LeaderNotDry = "a connection was promoted before it was dry, or twice";
    DryTwice = "a connection was dry twice";
    EndedBeforeRejected = "a transaction ended for a device before it was rejected in its favour";
    NeverEnded = "a rejected device never heard that the transaction ended";
    UnknownHolder = "a device was rejected or told of an end in favour of a transaction that nobody began";
    EphemeralKept = "an ephemeral message came again, or to somebody who was not there";
    EphemeralAcked = "an ephemeral message was acknowledged";
    Answers = "answers came in another order than the questions, or unasked";
    Timestamp = "sender and receiver were told different times";
    Foreign = "a message came that nobody sent, or to its own sender";
    Past = "a new slot got what was accepted before it was made";
    AckedAgain = "a message came again although its acknowledgement had arrived and nothing had crashed";
    QueueLength = "fewer messages came before Dry than ServerInfo had announced";
    Ghost = "a device that had been dropped went on hearing";
    Forgotten = "a device that has a slot was taken for a new one";
    Mistaken = "a device that has no slot was taken for a known one";
    CloseCode = "a connection was ended with a code that nothing explains";
    Chat = "the chat server's units came changed, out of order or to somebody else";
    Base = "something stayed behind when everybody had left";
    Stuck = "the run did not come to its end";
}

#[derive(Debug, Clone)]
pub struct Fault {
    pub rule: Rule,
    pub detail: String,
}

/// Something a device may ask, in the order in which the answers have to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    Reflect(MessageNo),
    Begin(TxNo),
    Commit(TxNo),
    Devices,
    Drop(DeviceNo),
}

#[derive(Debug)]
struct Message {
    from: DeviceNo,
    conn: ConnNo,
    reflect_id: u32,
    ephemeral: bool,
    tx: Option<TxNo>,
    sent: Time,
    /// When its acknowledgement was heard; for ephemeral ones, when a later question was answered.
    accepted_by: Option<Time>,
    timestamp_ms: Option<u64>,
}

#[derive(Debug)]
struct Tx {
    device: DeviceNo,
    scope: Vec<u8>,
    messages: Vec<MessageNo>,
    commit_sent: Option<Time>,
    committed: Option<Time>,
}

/// One lifetime of a device's slot.
#[derive(Debug)]
struct Slot {
    device: DeviceNo,
    /// Not before this; the ClientHello that may have made it.
    made_after: Time,
    /// There for certain since its ServerInfo was heard,
    since: Time,
    order: Vec<MessageNo>,
    ids: BTreeMap<u32, MessageNo>,
    seen: BTreeMap<MessageNo, u32>,
    last_id: Option<u32>,
    /// The device said that it has them.
    acked: BTreeSet<MessageNo>,
    /// And said so on a connection on which they had not come.
    acked_early: BTreeSet<MessageNo>,
    /// And that has arrived.
    settled: BTreeSet<MessageNo>,
    latest: ConnNo,
    /// Why it may have been removed without its device hearing of it.
    doubt: Option<&'static str>,
}

#[derive(Debug)]
struct Conn {
    device: DeviceNo,
    hello_sent: Time,
    slot: Option<SlotNo>,
    dry: bool,
    announced: u32,
    before_dry: u32,
    questions: VecDeque<(Time, Question)>,
    got: BTreeSet<MessageNo>,
    last_id: Option<u32>,
    /// A transaction of which something came, and nothing else since.
    coming: Option<TxNo>,
    unsettled: Vec<(Time, MessageNo)>,
    /// Something came out of turn that only the end of the connection explains.
    last_words: bool,
    ephemerals: Vec<MessageNo>,
    rejected: BTreeSet<TxNo>,
    ended: BTreeSet<TxNo>,
    lock: Option<Tenure>,
    lead: Option<Tenure>,
}

/// Something that only one connection may have. Certain from `from` until `to`.
#[derive(Debug, Clone, Copy)]
struct Tenure {
    from: Time,
    to: Option<Time>,
    /// It may have been given back from then on.
    over: Option<Time>,
}

impl Tenure {
    fn proven(&mut self, asked: Time) {
        let asked = self.over.map_or(asked, |over| asked.min(over));
        if asked >= self.from {
            self.to = self.to.max(Some(asked));
        }
    }

    fn overlaps(&self, other: &Self) -> bool {
        matches!((self.to, other.to), (Some(to), Some(other_to)) if self.from <= other_to && other.from <= to)
    }
}

/// A DropDevice, as far as it is known what became of it.
#[derive(Debug)]
struct Dropped {
    device: DeviceNo,
    said: Time,
    acked: Option<Time>,
}

/// What the rules of a run allow beyond the usual.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allowed {
    /// Slots may be dropped because their queue is full.
    pub queue_limit: bool,
    /// Commits may fail.
    pub store_fails: bool,
    /// The mediator may stop in order.
    pub stops: bool,
}

/// One group, from outside.
#[derive(Debug)]
pub struct Model {
    allowed: Allowed,
    messages: Vec<Message>,
    txs: Vec<Tx>,
    slots: Vec<Slot>,
    conns: Vec<Conn>,
    drops: Vec<Dropped>,
    /// Past tenures of the lock, of connections that took it again.
    old_locks: Vec<(ConnNo, Tenure)>,
    /// Somebody asked for a slot that somebody else may have had to give up.
    newcomers: bool,
    pub faults: Vec<Fault>,
}

fn later(a: u32, b: u32) -> bool {
    // Serial numbers: they wrap.
    a != b && a.wrapping_sub(b) < 1 << 31
}

impl Model {
    pub fn new(allowed: Allowed) -> Self {
        Self {
            allowed,
            messages: Vec::new(),
            txs: Vec::new(),
            slots: Vec::new(),
            conns: Vec::new(),
            drops: Vec::new(),
            old_locks: Vec::new(),
            newcomers: false,
            faults: Vec::new(),
        }
    }

    pub const fn allowed(&self) -> Allowed {
        self.allowed
    }

    pub fn fault(&mut self, rule: Rule, detail: impl Into<String>) {
        self.faults.push(Fault { rule, detail: detail.into() });
    }

    // What devices say.

    pub fn hello(&mut self, now: Time, device: DeviceNo, takes_a_slot: bool) -> ConnNo {
        self.newcomers |= takes_a_slot;
        self.conns.push(Conn {
            device,
            hello_sent: now,
            slot: None,
            dry: false,
            announced: 0,
            before_dry: 0,
            questions: VecDeque::new(),
            got: BTreeSet::new(),
            last_id: None,
            coming: None,
            unsettled: Vec::new(),
            last_words: false,
            ephemerals: Vec::new(),
            rejected: BTreeSet::new(),
            ended: BTreeSet::new(),
            lock: None,
            lead: None,
        });
        self.conns.len() - 1
    }

    /// A message is about to be sent; its number goes into the envelope.
    pub fn reflect(
        &mut self,
        now: Time,
        conn: ConnNo,
        reflect_id: u32,
        ephemeral: bool,
        tx: Option<TxNo>,
    ) -> MessageNo {
        let message = self.messages.len();
        let from = self.conns[conn].device;
        self.messages.push(Message {
            from,
            conn,
            reflect_id,
            ephemeral,
            tx,
            sent: now,
            accepted_by: None,
            timestamp_ms: None,
        });
        if let Some(tx) = tx {
            self.txs[tx].messages.push(message);
        }
        if ephemeral {
            self.conns[conn].ephemerals.push(message);
        } else {
            self.ask(now, conn, Question::Reflect(message));
        }
        message
    }

    pub fn begin(&mut self, now: Time, conn: ConnNo) -> (TxNo, Vec<u8>) {
        let tx = self.txs.len();
        let scope = format!("scope {tx}").into_bytes();
        let device = self.conns[conn].device;
        self.txs.push(Tx { device, scope: scope.clone(), messages: Vec::new(), commit_sent: None, committed: None });
        self.ask(now, conn, Question::Begin(tx));
        (tx, scope)
    }

    pub fn commit(&mut self, now: Time, conn: ConnNo, tx: TxNo) {
        self.txs[tx].commit_sent = Some(now);
        if let Some(lock) = &mut self.conns[conn].lock {
            lock.over = Some(now);
        }
        self.ask(now, conn, Question::Commit(tx));
    }

    pub fn devices(&mut self, now: Time, conn: ConnNo) {
        self.ask(now, conn, Question::Devices);
    }

    pub fn drop_device(&mut self, now: Time, conn: ConnNo, device: DeviceNo) {
        for slot in self.slots.iter_mut().filter(|slot| slot.device == device) {
            slot.doubt.get_or_insert("somebody asked to drop it");
        }
        self.drops.push(Dropped { device, said: now, acked: None });
        self.ask(now, conn, Question::Drop(device));
    }

    pub fn ack(&mut self, now: Time, conn: ConnNo, id: u32) {
        let Some(slot) = self.conns[conn].slot else { return };
        let Some(&message) = self.slots[slot].ids.get(&id) else { return };
        self.slots[slot].acked.insert(message);
        if !self.conns[conn].got.contains(&message) {
            self.slots[slot].acked_early.insert(message);
        }
        self.conns[conn].unsettled.push((now, message));
    }

    fn ask(&mut self, now: Time, conn: ConnNo, question: Question) {
        self.conns[conn].questions.push_back((now, question));
    }

    // What devices hear.

    /// `made`: the hello said NEW. `unsure`: an earlier NEW may have made the slot, at or after the given time.
    pub fn info(&mut self, now: Time, conn: ConnNo, made: bool, unsure: Option<Time>, queued: u32, volatile: bool) {
        let Conn { device, hello_sent, .. } = self.conns[conn];
        let known = self.slots.iter().rposition(|slot| slot.device == device);
        let slot = match known.filter(|_| !made && unsure.is_none()) {
            Some(slot) => {
                // Nobody else could make this slot, so it was never gone.
                self.slots[slot].doubt = None;
                slot
            }
            None => {
                self.slots.push(Slot {
                    device,
                    made_after: unsure.unwrap_or(hello_sent),
                    since: now,
                    order: Vec::new(),
                    ids: BTreeMap::new(),
                    seen: BTreeMap::new(),
                    last_id: None,
                    acked: BTreeSet::new(),
                    acked_early: BTreeSet::new(),
                    settled: BTreeSet::new(),
                    latest: conn,
                    doubt: None,
                });
                self.slots.len() - 1
            }
        };
        // A drop that was not answered when this device said hello may have come later.
        let pending = |dropped: &Dropped| dropped.acked.is_none_or(|acked| acked > hello_sent);
        if self.drops.iter().any(|dropped| dropped.device == device && pending(dropped)) {
            self.slots[slot].doubt = Some("somebody asked to drop it");
        }
        if volatile {
            self.slots[slot].doubt = Some("it was to expire");
        }
        self.slots[slot].latest = conn;
        self.conns[conn].slot = Some(slot);
        self.conns[conn].announced = queued;
        self.alive(conn, hello_sent);
    }

    pub fn dry(&mut self, conn: ConnNo) {
        let Conn { device, hello_sent, dry, announced, before_dry, slot, .. } = self.conns[conn];
        if dry {
            self.fault(Rule::DryTwice, format!("device {device}"));
        }
        // What was acknowledged ahead of its coming is announced until the mediator comes to it.
        let early = slot.map_or(0, |slot| self.slots[slot].acked_early.len());
        if before_dry as usize + early < announced as usize {
            self.fault(Rule::QueueLength, format!("device {device}: {before_dry} of {announced}, {early} early"));
        }
        self.conns[conn].dry = true;
        self.not_coming(conn, None);
        self.owed(conn, hello_sent, Rule::Lost, "Dry");
    }

    pub fn leader(&mut self, now: Time, conn: ConnNo) {
        let Conn { device, dry, lead, .. } = self.conns[conn];
        if !dry || lead.is_some() {
            self.fault(Rule::LeaderNotDry, format!("device {device}"));
        }
        // May come amid a transaction: one of its messages may have been one too many for the leader's queue.
        self.conns[conn].lead = Some(Tenure { from: now, to: None, over: None });
    }

    pub fn reflect_ack(&mut self, now: Time, conn: ConnNo, reflect_id: u32, timestamp_ms: u64) {
        let device = self.conns[conn].device;
        let ephemeral =
            |message: &&Message| message.conn == conn && message.reflect_id == reflect_id && message.ephemeral;
        if self.messages.iter().any(|message| ephemeral(&message)) {
            return self.fault(Rule::EphemeralAcked, format!("device {device}, reflect-id {reflect_id}"));
        }
        let messages = &self.messages;
        let fits =
            |question: Question| matches!(question, Question::Reflect(m) if messages[m].reflect_id == reflect_id);
        let Some((asked, Question::Reflect(message))) =
            self.conns[conn].questions.front().copied().filter(|q| fits(q.1))
        else {
            return self.fault(Rule::Answers, format!("device {device}: reflect-ack {reflect_id}"));
        };
        let it = &mut self.messages[message];
        if it.tx.is_none() {
            it.accepted_by = Some(now);
        }
        if it.timestamp_ms.is_some_and(|told| told != timestamp_ms) {
            self.fault(Rule::Timestamp, format!("message {message}"));
        }
        self.messages[message].timestamp_ms = Some(timestamp_ms);
        self.answered(now, conn, asked, "reflect-ack");
    }

    /// Any other answer. Says which question it answers.
    pub fn answer(&mut self, now: Time, conn: ConnNo, what: &str, fits: impl Fn(Question) -> bool) -> Option<Question> {
        let Some((asked, question)) = self.conns[conn].questions.front().copied().filter(|q| fits(q.1)) else {
            let device = self.conns[conn].device;
            self.fault(Rule::Answers, format!("device {device}: {what}"));
            return None;
        };
        self.answered(now, conn, asked, what);
        Some(question)
    }

    pub fn granted(&mut self, now: Time, conn: ConnNo) -> Option<TxNo> {
        let Some(Question::Begin(tx)) = self.answer(now, conn, "grant", |q| matches!(q, Question::Begin(_))) else {
            return None;
        };
        if let Some(old) = self.conns[conn].lock.replace(Tenure { from: now, to: None, over: None }) {
            self.old_locks.push((conn, old));
        }
        Some(tx)
    }

    pub fn rejected(&mut self, now: Time, conn: ConnNo, holder: DeviceNo, scope: &[u8]) {
        self.answer(now, conn, "rejection", |q| matches!(q, Question::Begin(_)));
        let Some(tx) = self.tx_of(holder, scope) else { return };
        if self.conns[conn].ended.contains(&tx) {
            let device = self.conns[conn].device;
            self.fault(Rule::EndedBeforeRejected, format!("device {device}, transaction {tx} of device {holder}"));
        }
        self.conns[conn].rejected.insert(tx);
    }

    pub fn ended(&mut self, conn: ConnNo, holder: DeviceNo, scope: &[u8]) {
        self.not_coming(conn, None);
        let Some(tx) = self.tx_of(holder, scope) else { return };
        self.conns[conn].ended.insert(tx);
        let Tx { committed, commit_sent, .. } = self.txs[tx];
        let (Some(slot), Some(_), Some(asked)) = (self.conns[conn].slot, committed, commit_sent) else { return };
        if self.slots[slot].since < asked {
            self.complete(conn, slot, tx, Rule::Overtaken, "Ended");
        }
    }

    pub fn committed(&mut self, now: Time, conn: ConnNo) {
        let Some(Question::Commit(tx)) = self.answer(now, conn, "commit-ack", |q| matches!(q, Question::Commit(_)))
        else {
            return;
        };
        self.txs[tx].committed = Some(now);
        for message in self.txs[tx].messages.clone() {
            self.messages[message].accepted_by = Some(now);
        }
    }

    /// A connection that is about to be ended gets the acknowledgements of its drops before anything else that stands in
    /// its line, because a device that drops itself waits for nothing else. Then nothing may follow.
    pub fn dropped(&mut self, now: Time, conn: ConnNo, device: DeviceNo) {
        let it = &mut self.conns[conn];
        let Some(at) = it.questions.iter().position(|&(_, question)| question == Question::Drop(device)) else {
            let detail = format!("device {}: drop-ack {device}", it.device);
            return self.fault(Rule::Answers, detail);
        };
        let asked = it.questions[at].0;
        if let Some(dropped) = self.drops.iter_mut().find(|d| d.device == device && d.said == asked) {
            dropped.acked = Some(now);
        }
        if it.last_words || at > 0 || self.missing(conn, asked).is_some() {
            self.conns[conn].last_words = true;
            self.conns[conn].questions.drain(..=at);
        } else {
            self.answered(now, conn, asked, "drop-ack");
        }
    }

    pub fn reflected(&mut self, conn: ConnNo, message: Option<MessageNo>, id: u32, ephemeral: bool, ts_ms: u64) {
        let Conn { device, hello_sent, slot, .. } = self.conns[conn];
        let known = message.filter(|&m| m < self.messages.len()).filter(|&m| self.messages[m].ephemeral == ephemeral);
        let (Some(slot), Some(m)) = (slot, known.filter(|&m| self.messages[m].from != device)) else {
            return self.fault(Rule::Foreign, format!("device {device}: id {id}"));
        };
        let about = format!("device {device}: message {m} of device {}, id {id}", self.messages[m].from);
        let Message { tx, sent, accepted_by, timestamp_ms, .. } = self.messages[m];
        if timestamp_ms.is_some_and(|told| told != ts_ms) {
            self.fault(Rule::Timestamp, about.clone());
        }
        self.messages[m].timestamp_ms = Some(ts_ms);
        self.not_coming(conn, tx);
        if let Some(tx) = tx {
            if self.txs[tx].commit_sent.is_none() {
                self.fault(Rule::Leaked, about.clone());
            }
            if self.conns[conn].ended.contains(&tx) {
                self.fault(Rule::BehindEnded, about.clone());
            }
            if !ephemeral {
                self.conns[conn].coming = Some(tx);
            }
        }
        if self
            .drops
            .iter()
            .any(|d| d.device == device && self.slots[slot].since < d.said && d.acked.is_some_and(|acked| sent > acked))
        {
            self.fault(Rule::Ghost, about.clone());
        }
        if accepted_by.is_some_and(|at| at < self.slots[slot].made_after) && !ephemeral {
            self.fault(Rule::Past, about.clone());
        }

        let it = &mut self.conns[conn];
        it.before_dry += u32::from(!ephemeral);
        let again = !it.got.insert(m);
        let shrank = it.last_id.is_some_and(|last| !later(id, last));
        it.last_id = Some(id);
        if again {
            return self.fault(Rule::Twice, about);
        }
        if shrank {
            return self.fault(Rule::IdsShrank, about);
        }
        let it = &mut self.slots[slot];
        let reused =
            it.ids.get(&id).is_some_and(|&other| other != m) || it.seen.get(&m).is_some_and(|&other| other != id);
        let first = it.seen.insert(m, id).is_none();
        it.ids.insert(id, m);
        // A connection that was replaced may still hear what was under way.
        let shrank = first && it.latest == conn && it.last_id.is_some_and(|last| !later(id, last));
        if first {
            it.order.push(m);
            it.last_id = it.last_id.filter(|&last| later(last, id)).or(Some(id));
        }
        let settled = it.settled.contains(&m);
        if reused {
            self.fault(Rule::IdReused, about);
        } else if shrank {
            self.fault(Rule::IdsShrank, about);
        } else if ephemeral && (!first || accepted_by.is_some_and(|at| at < hello_sent)) {
            self.fault(Rule::EphemeralKept, about);
        } else if settled {
            self.fault(Rule::AckedAgain, about);
        }
    }

    /// A connection was ended by the mediator. `existing`: the hello said EXISTING. `unsure`: an earlier NEW may have
    /// made a slot.
    pub fn closed(&mut self, conn: ConnNo, code: u16, existing: bool, unsure: bool, why: &Reasons) {
        let Conn { device, slot, .. } = self.conns[conn];
        let known = self.slots.iter().rev().find(|slot| slot.device == device);
        let doubt = known.is_none_or(|slot| slot.doubt.is_some());
        let doubt = doubt || self.newcomers || self.allowed.queue_limit;
        let explained = match code {
            1001 => self.allowed.stops,
            1011 => self.allowed.store_fails,
            4000 | 4001 => why.proxied,
            4011 => why.held,
            4013 => true,
            4111 => slot.is_none() && !existing,
            4112 => why.replaced,
            4113 => doubt,
            4114 => self.allowed.queue_limit,
            4115 if existing => {
                return if !doubt && !unsure {
                    self.fault(Rule::Forgotten, format!("device {device}"))
                };
            }
            4115 => {
                return if !unsure {
                    self.fault(Rule::Mistaken, format!("device {device}"))
                };
            }
            _ => false,
        };
        if !explained {
            self.fault(Rule::CloseCode, format!("device {device}: {code}"));
        }
    }

    pub fn leads(&self, conn: ConnNo) -> bool {
        self.conns[conn].lead.is_some()
    }

    /// Everybody was connected and nobody said anything more; these were they, and these of them led.
    pub fn at_rest(&mut self, live: &[(ConnNo, bool)]) {
        let leaders = live.iter().filter(|(_, leads)| *leads).count();
        if !live.is_empty() && leaders != 1 {
            self.fault(Rule::NoLeader, format!("{leaders} of {} lead", live.len()));
        }
        for &(conn, _) in live {
            let Conn { device, rejected, ended, .. } = &self.conns[conn];
            if let Some(tx) = rejected.difference(ended).next() {
                let detail = format!("device {device}, transaction {tx}");
                self.fault(Rule::NeverEnded, detail);
            }
        }
    }

    /// What can only be said when all is told: that there is one order in which everything was accepted.
    pub fn finish(&mut self) {
        let earliest = |m: MessageNo| {
            let message = &self.messages[m];
            message.tx.map_or(Some(message.sent), |tx| self.txs[tx].commit_sent)
        };
        let mut out = Vec::new();
        let mut after: BTreeMap<MessageNo, BTreeSet<MessageNo>> = BTreeMap::new();
        for slot in &self.slots {
            // The order of the ids is the slot's order; arrivals on a connection that was replaced may lag.
            let order: Vec<MessageNo> = slot.order.clone();
            for (at, &one) in order.iter().enumerate() {
                for &two in &order[at + 1..] {
                    let overtaken =
                        self.messages[two].accepted_by.zip(earliest(one)).is_some_and(|(by, from)| by < from);
                    if overtaken && later(slot.seen[&two], slot.seen[&one]) {
                        out.push(format!(
                            "device {}: message {one} before {two}, which was accepted first",
                            slot.device
                        ));
                    }
                }
            }
            let mut sorted = order;
            if let Some(&first) = slot.order.first() {
                let base = slot.seen[&first].wrapping_sub(1 << 30);
                sorted.sort_by_key(|m| slot.seen[m].wrapping_sub(base));
            }
            for pair in sorted.windows(2) {
                after.entry(pair[0]).or_default().insert(pair[1]);
            }
        }
        // Everything that every slot saw, laid out in one line: possible unless two slots contradict each other.
        let mut before: BTreeMap<MessageNo, usize> = BTreeMap::new();
        for (&one, others) in &after {
            before.entry(one).or_default();
            for &two in others {
                *before.entry(two).or_default() += 1;
            }
        }
        let mut free: Vec<MessageNo> = before.iter().filter(|(_, n)| **n == 0).map(|(&m, _)| m).collect();
        let mut placed = 0;
        while let Some(one) = free.pop() {
            placed += 1;
            for two in after.get(&one).into_iter().flatten() {
                let left = before.entry(*two).or_default();
                *left -= 1;
                if *left == 0 {
                    free.push(*two);
                }
            }
        }
        if placed != before.len() {
            out.push(format!("slots contradict each other about {} messages", before.len() - placed));
        }
        for detail in out {
            self.fault(Rule::Disorder, detail);
        }
    }

    /// How many messages were acknowledged, and how many arrivals there were.
    pub fn figures(&self) -> (usize, usize) {
        let acked = self.messages.iter().filter(|m| m.accepted_by.is_some() && !m.ephemeral).count();
        (acked, self.slots.iter().map(|slot| slot.order.len()).sum())
    }

    // Conclusions.

    /// The front question of a connection was answered.
    fn answered(&mut self, now: Time, conn: ConnNo, asked: Time, what: &str) {
        self.conns[conn].questions.pop_front();
        self.not_coming(conn, None);
        let device = self.conns[conn].device;
        let ephemerals = std::mem::take(&mut self.conns[conn].ephemerals);
        for message in ephemerals {
            let it = &mut self.messages[message];
            if it.tx.is_none() && it.sent < asked {
                it.accepted_by = Some(now);
            } else if it.tx.is_none() {
                self.conns[conn].ephemerals.push(message);
            }
        }
        if let Some(slot) = self.conns[conn].slot {
            let gone = |d: &Dropped| {
                d.device == device && self.slots[slot].since < d.said && d.acked.is_some_and(|acked| asked > acked)
            };
            if self.drops.iter().any(gone) {
                self.fault(Rule::Ghost, format!("device {device} got a {what}"));
            }
            // The acknowledgements before it have arrived, too, unless it was before the mediator lost its memory.
            let (arrived, rest) =
                std::mem::take(&mut self.conns[conn].unsettled).into_iter().partition(|&(said, _)| said < asked);
            self.conns[conn].unsettled = rest;
            let arrived: Vec<(Time, MessageNo)> = arrived;
            if !self.allowed.store_fails {
                self.slots[slot].settled.extend(arrived.into_iter().map(|(_, message)| message));
            }
        }
        self.alive(conn, asked);
        self.owed(conn, asked, Rule::Overtaken, what);
    }

    /// What was acknowledged by devices may come again from now on: the mediator forgot what it had not written.
    pub fn forgets_acks(&mut self) {
        for slot in &mut self.slots {
            slot.settled.clear();
        }
        for conn in &mut self.conns {
            conn.unsettled.clear();
        }
    }

    /// The connection was alive when the mediator looked at something asked at this time.
    fn alive(&mut self, conn: ConnNo, asked: Time) {
        if let Some(lock) = &mut self.conns[conn].lock {
            lock.proven(asked);
        }
        if let Some(lead) = &mut self.conns[conn].lead {
            lead.proven(asked);
        }
        let Conn { lock, lead, device, .. } = self.conns[conn];
        let others = || self.conns.iter().enumerate().filter(|&(other, _)| other != conn);
        let rival = |mine: Option<Tenure>, theirs: Option<Tenure>| matches!((mine, theirs), (Some(mine), Some(theirs)) if mine.overlaps(&theirs));
        let locks = others().map(|(_, other)| (other.device, other.lock));
        let old = self.old_locks.iter().filter(|(other, _)| *other != conn);
        let old = old.map(|&(other, lock)| (self.conns[other].device, Some(lock)));
        let holders = locks.chain(old).find(|&(_, theirs)| rival(lock, theirs)).map(|(other, _)| other);
        let leaders = others().find(|(_, other)| rival(lead, other.lead)).map(|(_, other)| other.device);
        if let Some(other) = holders {
            self.fault(Rule::TwoHolders, format!("devices {device} and {other}"));
        }
        if let Some(other) = leaders {
            self.fault(Rule::TwoLeaders, format!("devices {device} and {other}"));
        }
    }

    /// Everything that was acknowledged before `asked` has come, or was acknowledged by the device.
    fn owed(&mut self, conn: ConnNo, asked: Time, rule: Rule, what: &str) {
        if let Some(message) = self.missing(conn, asked) {
            let detail = format!("device {}, {what}: message {message}", self.conns[conn].device);
            self.fault(rule, detail);
        }
    }

    fn missing(&self, conn: ConnNo, asked: Time) -> Option<MessageNo> {
        let slot = self.conns[conn].slot?;
        let (it, since) = (&self.conns[conn], self.slots[slot].since);
        let missing = |&(m, message): &(MessageNo, &Message)| {
            let from = message.tx.map_or(Some(message.sent), |tx| self.txs[tx].commit_sent);
            !message.ephemeral
                && message.from != it.device
                && message.accepted_by.is_some_and(|at| at < asked)
                && from.is_some_and(|from| from > since)
                && !it.got.contains(&m)
                && !self.slots[slot].acked.contains(&m)
        };
        self.messages.iter().enumerate().find(missing).map(|(m, _)| m)
    }

    /// Something came that is not of the transaction whose messages were coming: then all of it has come.
    fn not_coming(&mut self, conn: ConnNo, tx: Option<TxNo>) {
        if self.conns[conn].last_words {
            let detail = format!("device {} hears more after its last words", self.conns[conn].device);
            self.fault(Rule::Answers, detail);
        }
        let Some(coming) = self.conns[conn].coming.filter(|&coming| Some(coming) != tx) else { return };
        self.conns[conn].coming = None;
        if let Some(slot) = self.conns[conn].slot {
            self.complete(conn, slot, coming, Rule::Half, "something else");
        }
    }

    fn complete(&mut self, conn: ConnNo, slot: SlotNo, tx: TxNo, rule: Rule, before: &str) {
        let (it, acked) = (&self.conns[conn], &self.slots[slot].acked);
        let here = |m: &&MessageNo| self.messages[**m].ephemeral || it.got.contains(*m) || acked.contains(*m);
        if it.device != self.txs[tx].device
            && let Some(missing) = self.txs[tx].messages.iter().find(|m| !here(m))
        {
            let detail = format!("device {}: message {missing} of transaction {tx} before {before}", it.device);
            self.fault(rule, detail);
        }
    }

    fn tx_of(&mut self, holder: DeviceNo, scope: &[u8]) -> Option<TxNo> {
        let tx = self.txs.iter().position(|tx| tx.device == holder && tx.scope == scope);
        if tx.is_none() {
            self.fault(Rule::UnknownHolder, format!("device {holder}"));
        }
        tx
    }
}

/// What a device did that explains the end of its connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reasons {
    pub proxied: bool,
    pub held: bool,
    pub replaced: bool,
}
