//! What the chat server decides: who is active, what is queued, what is sent to whom.
//!
//! One door: [`State::handle`] takes the time and an input, and answers with a [`Step`]: what to write, and what to say
//! once that is written. Nothing here waits, reads a clock or touches a disk. The order matters to clients: a 0x81 means
//! *stored*, and their whole task queue waits for it, so every accepted message is acked (spec 4.2) and none before its
//! write (spec 4.3).
//!
//! A mailbox is awake while somebody of its identity is connected, and for a while after it was last needed. Awake
//! it knows of every queued message who sent it and how long it is, but never the message itself: a message goes out
//! straight from its input, or is fetched when its turn comes. So a full queue costs a receiver's worth of names, not
//! 64 MiB.
//!
//! Two positions tell the state of a queue. Everything before `next` that is still there is in flight to the active
//! connection; everything from `next` on waits. When the active connection goes, `next` goes back to the start, and the
//! next active connection gets everything that was not acked, in the same order. `sent_through` never goes back: it
//! lets late acks count after a hand-over (spec 5).
//!
//! | file | holds |
//! |---|---|
//! | [`mod@line`] | what one connection decides for itself: echo, idle time-out |
//! | [`ending`] | every way a connection ends, and what the client is told |
//! | `mailbox` | one identity: its queue and connections |
//! | this one | routing between identities |

pub mod ending;
pub mod line;
mod mailbox;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::wire::{
    CspDeviceId, DATA_MAX, DeviceCookie, Features, Identity, LoginAck, Message, MessageAck, MessageFlags, PushToken,
    ToClient, WireIdentity, cut,
};
use crate::time::Now;
pub use ending::Ending;
pub use line::{Line, LineStep, Request};
use mailbox::{Entry, Mailbox};
pub use mailbox::{Kept, KeptEntry, KeptToken};

/// One connection, never given twice. Not to be mixed up with a device, which comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// A position in the order in which messages were accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Seq(pub u64);

/// Names one fetch, so that a late answer is not taken for another one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FetchId(pub u64);

/// What is allowed (spec 4.3).
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Messages sent to a connection and not acked, at most. Nothing but messages waits for it.
    pub window: usize,
    /// Messages queued for one receiver, at most.
    pub queue_messages_max: usize,
    /// Bytes queued for one receiver, at most.
    pub queue_bytes_max: usize,
    /// How long a message is kept.
    pub retention: Duration,
    /// How long a short-lived message is kept.
    pub short_lived: Duration,
    /// Whether a changed device cookie is indicated. Old desktop links lack the cookie and flip it (spec 8).
    pub device_cookie_indication: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            window: 64,
            queue_messages_max: 10_000,
            queue_bytes_max: 64 * 1024 * 1024,
            retention: Duration::from_secs(14 * 86_400),
            short_lived: Duration::from_secs(60),
            device_cookie_indication: true,
        }
    }
}

/// Connections of one identity at a time, at most: twice as many as a device group can have devices. One more ends the
/// one that has been there longest.
pub const CONNECTIONS_MAX: usize = 32;
/// Push tokens kept for one identity, at most: two for each of these devices. One more replaces the one that was set
/// longest ago, devices that are connected last.
pub const PUSH_TOKENS_MAX: usize = 2 * CONNECTIONS_MAX;

/// Longest text of an alert, in bytes; what is beyond is cut off. It is shown on a phone, and has to be read.
pub const ALERT_MAX: usize = 1_024;
const _: () = assert!(ALERT_MAX <= DATA_MAX);

/// What an operator has to say, not longer than [`ALERT_MAX`]. Prints its length only.
#[derive(Clone, PartialEq, Eq)]
pub struct AlertText(String);

impl AlertText {
    /// As much of `text` as may be sent.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(cut(text, ALERT_MAX).to_owned())
    }
}

impl std::fmt::Debug for AlertText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlertText({} bytes)", self.0.len())
    }
}

/// How long a mailbox without connections stays awake.
const AWAKE: Duration = Duration::from_secs(60);
/// How often messages of sleeping mailboxes are looked through for those whose time has passed, and the connected for
/// those who were revoked.
const SWEEP: Duration = Duration::from_secs(60);

/// Somebody who has proved who they are, and wants in.
#[derive(Debug, Clone)]
pub struct Join {
    /// The connection.
    pub conn: ConnId,
    /// Who it is.
    pub identity: Identity,
    /// Which of their devices; `None` when the account has one only.
    pub device: Option<CspDeviceId>,
    /// What the client understands.
    pub features: Features,
    /// The device cookie it presented.
    pub cookie: Option<DeviceCookie>,
}

/// What the directory says of somebody, at the time of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// They are in it, and their mailbox is awake.
    Active,
    /// They are not, or were revoked.
    Unknown,
}

/// What can happen.
#[derive(Debug)]
pub enum Input {
    /// A connection has logged in.
    Join {
        /// Who.
        join: Join,
        /// Somebody may be revoked between the proof and the seat.
        standing: Standing,
    },
    /// A connection sends a message.
    Message {
        /// Who sends it.
        conn: ConnId,
        /// The message.
        message: Message,
        /// What the directory says of its receiver.
        receiver: Standing,
    },
    /// A connection asks for something else.
    Request {
        /// Who asks.
        conn: ConnId,
        /// For what.
        request: Request,
    },
    /// What [`Say::Fetch`] asked for. Messages that are missing are gone. In the place of one that is there and cannot be
    /// read stands nothing: it is passed over, and stays where it is.
    Fetched {
        /// Whose queue it is.
        receiver: Identity,
        /// Which fetch this answers.
        fetch: FetchId,
        /// The last one that was asked for.
        through: Seq,
        /// In order.
        messages: Vec<(Seq, Option<Message>)>,
    },
    /// A message with [`Delivery::tell_written`] is on the socket.
    Written {
        /// Whose socket.
        conn: ConnId,
        /// The message.
        seq: Seq,
    },
    /// The directory does not know this identity any more, or it was revoked.
    Revoked(Identity),
    /// A connection is gone.
    Left(ConnId),
    /// The operator has something to say to everybody of an identity.
    Alert {
        /// To whom.
        identity: Identity,
        /// What.
        text: AlertText,
    },
    /// A deadline may have passed.
    Tick,
}

/// What has to be kept, in this order, before anything is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Appends to a queue.
    Enqueue {
        /// Where in the order.
        seq: Seq,
        /// The message, which names its receiver.
        message: Message,
        /// When it is to be forgotten, in milliseconds since the Unix epoch.
        expires_ms: u64,
    },
    /// Removes from a queue.
    Remove(Seq),
    /// Remembers the cookie last presented, and whether its change is to be indicated.
    Cookie {
        /// Whose.
        identity: Identity,
        /// The cookie.
        cookie: DeviceCookie,
        /// Indicate the change at every login.
        changed: bool,
    },
    /// Sets a push token, or takes it away.
    PushToken {
        /// Whose.
        identity: Identity,
        /// Of which device.
        device: Option<CspDeviceId>,
        /// For calls.
        voip: bool,
        /// The token.
        token: Option<PushToken>,
    },
    /// Removes every message whose time has passed.
    Sweep {
        /// Now, in milliseconds since the Unix epoch.
        now_ms: u64,
    },
}

/// A message on its way to the active connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// As this client understands it.
    pub message: Message,
    /// Nobody will ack it: report when it is on the socket.
    pub tell_written: Option<Seq>,
    /// Must not wait: to be dropped when other messages are waiting for the socket.
    pub now_or_never: bool,
    /// When it is not to be sent any more, on the monotonic clock: it may wait long for a client that reads slowly.
    pub expires: Duration,
}

/// Somebody is to be woken.
#[derive(Debug, Clone)]
pub struct PushRequest {
    /// Who.
    pub receiver: Identity,
    /// Who sent the message.
    pub sender: Identity,
    /// The receiver's devices as far as they left tokens.
    pub tokens: Vec<KeptToken>,
}

/// What is worth telling the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A connection was let in.
    Joined {
        /// Who.
        identity: Identity,
        /// Messages waiting.
        queued: usize,
    },
    /// A message was acked and thrown away.
    Discarded {
        /// Who sent it.
        sender: Identity,
        /// Who was to get it, as the sender wrote it.
        receiver: WireIdentity,
        /// Why.
        why: Discard,
    },
    /// Queued messages ran out of time.
    Expired {
        /// Whose queue.
        receiver: Identity,
    },
    /// Queued messages were not where they had been put.
    Missing {
        /// Whose queue.
        receiver: Identity,
    },
}

/// Why a message is thrown away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discard {
    /// The receiver's identity is none, unknown, revoked, or the sender itself.
    NoReceiver,
    /// It was not to be queued, and could not be delivered right now.
    NotNow,
    /// The receiver's queue is full.
    QueueFull {
        /// How many messages this has cost the receiver since its mailbox woke up, this one included.
        so_far: u64,
    },
}

/// What is to be said once the writes are kept.
#[derive(Debug)]
pub enum Say {
    /// The login-ack.
    Admit(ConnId, LoginAck),
    /// Ahead of messages.
    Send(ConnId, ToClient),
    /// A message, behind the messages before it.
    Deliver(ConnId, Delivery),
    /// The queue has been sent, behind its messages.
    QueueSendComplete(ConnId),
    /// The connection is blocked again: what it was to be told of messages and is not on its socket is not to get there.
    Retract(ConnId),
    /// The connection ends.
    End(ConnId, Ending),
    /// Messages are wanted from the store.
    Fetch {
        /// Whose queue.
        receiver: Identity,
        /// To be repeated in the answer.
        fetch: FetchId,
        /// Which ones, in order; never empty.
        seqs: Vec<Seq>,
    },
    /// The directory is to be asked for these, who are connected: [`Input::Revoked`] for those it does not let in any more.
    LookUp(Vec<Identity>),
    /// Wake somebody.
    Push(PushRequest),
    /// Tell the operator.
    Notice(Notice),
}

/// What an input leads to. First the writes, then the words.
#[derive(Debug, Default)]
#[must_use]
pub struct Step {
    /// To be kept, all or nothing.
    pub writes: Vec<Write>,
    /// To be said, in this order.
    pub says: Vec<Say>,
}

impl Step {
    fn send(&mut self, conn: ConnId, payload: ToClient) {
        self.says.push(Say::Send(conn, payload));
    }

    fn notice(&mut self, notice: Notice) {
        self.says.push(Say::Notice(notice));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// A queued message runs out of time.
    Expiry(Identity, Seq),
    /// A mailbox may fall asleep.
    Sleep(Identity),
    /// Sleeping mailboxes are to be looked through.
    Sweep,
}

#[derive(Debug, Clone, Copy)]
struct Seat {
    identity: Identity,
    device: Option<CspDeviceId>,
    features: Features,
}

/// Everything the chat server knows without asking its store.
#[derive(Debug)]
pub struct State {
    limits: Limits,
    next_seq: Seq,
    next_fetch: FetchId,
    seats: HashMap<ConnId, Seat>,
    mailboxes: HashMap<Identity, Mailbox>,
    timers: BTreeSet<(Duration, Timer)>,
}

impl State {
    /// Nobody is here. Messages are numbered from `next_seq` on, which must be beyond everything that is kept.
    #[must_use]
    pub fn new(now: Now, limits: Limits, next_seq: Seq) -> Self {
        Self {
            limits,
            next_seq,
            next_fetch: FetchId(0),
            seats: HashMap::new(),
            mailboxes: HashMap::new(),
            timers: BTreeSet::from([(now.monotonic.saturating_add(SWEEP), Timer::Sweep)]),
        }
    }

    /// The number the next message will get.
    #[must_use]
    pub const fn next_seq(&self) -> Seq {
        self.next_seq
    }

    /// Whether the mailbox of `identity` is awake.
    #[must_use]
    pub fn is_awake(&self, identity: Identity) -> bool {
        self.mailboxes.contains_key(&identity)
    }

    /// As whom a connection is logged in.
    #[must_use]
    pub fn identity(&self, conn: ConnId) -> Option<Identity> {
        self.seats.get(&conn).map(|seat| seat.identity)
    }

    fn connections(&self, identity: Identity) -> impl Iterator<Item = ConnId> {
        self.mailboxes.get(&identity).into_iter().flat_map(Mailbox::connections)
    }

    /// Wakes a mailbox with what was kept of it. Does nothing to one that is awake.
    pub fn wake(&mut self, now: Now, identity: Identity, kept: Kept) {
        if self.is_awake(identity) {
            return;
        }
        let mailbox = Mailbox::new(now, kept);
        self.timers.extend(mailbox.entries().map(|(seq, entry)| (entry.expires, Timer::Expiry(identity, seq))));
        self.timers.insert((now.monotonic.saturating_add(AWAKE), Timer::Sleep(identity)));
        self.mailboxes.insert(identity, mailbox);
    }

    /// When to call [`Self::handle`] with [`Input::Tick`], on the monotonic clock.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Decides. The step must be kept and said before the next input's.
    pub fn handle(&mut self, now: Now, input: Input) -> Step {
        let mut step = Step::default();
        match input {
            Input::Join { join, standing: Standing::Active } => self.join(now, &join, &mut step),
            Input::Join { join, standing: Standing::Unknown } => step.says.push(Say::End(join.conn, Ending::Revoked)),
            Input::Message { conn, message, receiver } => self.message(now, conn, message, receiver, &mut step),
            Input::Request { conn, request } => self.request(conn, request, &mut step),
            Input::Fetched { receiver, fetch, through, messages } => {
                self.fetched(now, receiver, fetch, through, messages, &mut step);
            }
            Input::Written { conn, seq } => self.written(conn, seq, &mut step),
            Input::Revoked(identity) => {
                for conn in self.connections(identity).collect::<Vec<_>>() {
                    self.end(now, conn, Ending::Revoked, &mut step);
                }
            }
            Input::Left(conn) => self.leave(now, conn),
            Input::Alert { identity, text } => {
                for conn in self.connections(identity) {
                    step.send(conn, ToClient::Alert(text.0.clone()));
                }
            }
            Input::Tick => self.tick(now, &mut step),
        }
        step
    }

    fn join(&mut self, now: Now, join: &Join, step: &mut Step) {
        let Join { conn, identity, device, features, cookie } = *join;
        let Some(mailbox) = self.mailboxes.get_mut(&identity) else { return };
        for displaced in mailbox.displace(device) {
            self.seats.remove(&displaced);
            step.says.push(Say::End(displaced, Ending::Replaced));
        }
        self.seats.insert(conn, Seat { identity, device, features });
        mailbox.seat(device, conn);
        let queued = mailbox.len();
        step.notice(Notice::Joined { identity, queued });
        let ack = LoginAck { time_ms: now.wall_ms, queued: u32::try_from(queued).unwrap_or(u32::MAX) };
        step.says.push(Say::Admit(conn, ack));
        if mailbox.present(cookie)
            && let Some((cookie, changed)) = mailbox.cookie()
        {
            step.writes.push(Write::Cookie { identity, cookie, changed });
        }
        if self.limits.device_cookie_indication && mailbox.cookie().is_some_and(|(_, changed)| changed) {
            step.send(conn, ToClient::DeviceCookieChangeIndication);
        }
        if device.is_none() {
            mailbox.activate(conn);
            self.pump(identity, step);
        }
    }

    fn message(&mut self, now: Now, conn: ConnId, mut message: Message, standing: Standing, step: &mut Step) {
        let Some(&Seat { identity: sender, .. }) = self.seats.get(&conn) else { return };
        if message.sender != sender {
            return self.end(now, conn, Ending::ForeignSender, step);
        }
        let flags = message.flags;
        if !flags.has(MessageFlags::NO_ACK) {
            step.send(conn, ToClient::MessageAck(MessageAck { identity: message.receiver, id: message.id }));
        }
        let to = message.receiver;
        let receiver = to.valid().filter(|receiver| *receiver != sender && standing == Standing::Active);
        let Some((receiver, mailbox)) = receiver.and_then(|who| Some((who, self.mailboxes.get_mut(&who)?))) else {
            return step.notice(Notice::Discarded { sender, receiver: to, why: Discard::NoReceiver });
        };
        let now_s = u32::try_from(now.wall_ms / 1_000).unwrap_or(u32::MAX);
        let short_lived = flags.has(MessageFlags::SHORT_LIVED);
        if message.created_at_s == 0 || message.created_at_s > now_s || short_lived {
            message.created_at_s = now_s;
        }

        let ready = mailbox.ready();
        if flags.has(MessageFlags::NO_QUEUING) {
            let Some(active) = ready else {
                return step.notice(Notice::Discarded { sender, receiver: to, why: Discard::NotNow });
            };
            let message = self.understood_by(active, message);
            let expires = now.plus(self.limits.short_lived).monotonic;
            let delivery = Delivery { message, tell_written: None, now_or_never: true, expires };
            return step.says.push(Say::Deliver(active, delivery));
        }
        if mailbox.holds(sender, message.id) {
            return;
        }
        let len = message.len();
        if mailbox.len() >= self.limits.queue_messages_max || mailbox.bytes() + len > self.limits.queue_bytes_max {
            let why = Discard::QueueFull { so_far: mailbox.overflow() };
            return step.notice(Notice::Discarded { sender, receiver: to, why });
        }
        let seq = self.next_seq;
        self.next_seq = Seq(seq.0 + 1);
        let keep = if short_lived { self.limits.short_lived } else { self.limits.retention };
        let expiry = now.plus(keep);
        step.writes.push(Write::Enqueue { seq, message: message.clone(), expires_ms: expiry.wall_ms });
        self.timers.insert((expiry.monotonic, Timer::Expiry(receiver, seq)));
        mailbox.push(seq, Entry { sender, id: message.id, len, flags, expires: expiry.monotonic });

        if flags.has(MessageFlags::SEND_PUSH) && mailbox.active().is_none() {
            let tokens = mailbox.tokens().to_vec();
            step.says.push(Say::Push(PushRequest { receiver, sender, tokens }));
        }
        match ready {
            Some(active) if mailbox.in_flight() < self.limits.window => {
                mailbox.sent(seq);
                let message = self.understood_by(active, message);
                let tell_written = flags.has(MessageFlags::NO_ACK).then_some(seq);
                let delivery = Delivery { message, tell_written, now_or_never: false, expires: expiry.monotonic };
                step.says.push(Say::Deliver(active, delivery));
            }
            _ => self.pump(receiver, step),
        }
    }

    fn request(&mut self, conn: ConnId, request: Request, step: &mut Step) {
        let Some(&Seat { identity, device, .. }) = self.seats.get(&conn) else { return };
        let Some(mailbox) = self.mailboxes.get_mut(&identity) else { return };
        match request {
            Request::MessageAck(ack) => {
                if let Some(seq) = ack.identity.valid().and_then(|sender| mailbox.acked(sender, ack.id)) {
                    self.remove(identity, seq, step);
                }
            }
            // On the active connection, and without a device id, it means nothing (spec 5).
            Request::Unblock if device.is_some() && mailbox.active() != Some(conn) => {
                step.says.extend(mailbox.active().map(Say::Retract));
                mailbox.activate(conn);
                self.pump(identity, step);
            }
            Request::Unblock => {}
            Request::ClearDeviceCookieChange => {
                if let Some(cookie) = mailbox.clear_cookie_change() {
                    step.writes.push(Write::Cookie { identity, cookie, changed: false });
                }
            }
            Request::SetPushToken { voip, token } => {
                let token = Some(token).filter(|token| token.kind != PushToken::NONE);
                for KeptToken { device, voip, .. } in mailbox.set_token(device, voip, token.clone()) {
                    step.writes.push(Write::PushToken { identity, device, voip, token: None });
                }
                step.writes.push(Write::PushToken { identity, device, voip, token });
            }
            Request::DeletePushTokens(devices) => {
                let gone = |of: Option<CspDeviceId>| match (devices.as_slice(), of) {
                    ([], of) => of != device,
                    (listed, Some(of)) => listed.contains(&of),
                    (_, None) => false,
                };
                for KeptToken { device, voip, .. } in mailbox.remove_tokens(gone) {
                    step.writes.push(Write::PushToken { identity, device, voip, token: None });
                }
            }
        }
    }

    fn fetched(
        &mut self,
        now: Now,
        receiver: Identity,
        fetch: FetchId,
        through: Seq,
        messages: Vec<(Seq, Option<Message>)>,
        step: &mut Step,
    ) {
        let Some(mailbox) = self.mailboxes.get_mut(&receiver) else { return };
        let Some(active) = mailbox.end_fetch(fetch) else { return };
        let metadata = self.seats.get(&active).is_some_and(|seat| seat.features.has(Features::METADATA));
        let mut gone = mailbox.waiting(through);
        let mut damaged = Vec::new();
        for (seq, message) in messages {
            let Some(at) = gone.iter().position(|waiting| *waiting == seq) else { continue };
            let Some(message) = message else {
                damaged.push(gone.remove(at));
                continue;
            };
            // Checked again at transmit time: the deadline may be due in this very moment (spec 4.3).
            let Some(Entry { flags, expires, .. }) =
                mailbox.entry(seq).copied().filter(|entry| entry.expires > now.monotonic)
            else {
                continue;
            };
            gone.remove(at);
            mailbox.sent(seq);
            let message = if metadata { message } else { message.without_metadata() };
            let tell_written = flags.has(MessageFlags::NO_ACK).then_some(seq);
            step.says.push(Say::Deliver(active, Delivery { message, tell_written, now_or_never: false, expires }));
        }
        if !gone.is_empty() {
            let expired = gone.iter().all(|seq| mailbox.entry(*seq).is_none_or(|entry| entry.expires <= now.monotonic));
            step.notice(if expired { Notice::Expired { receiver } } else { Notice::Missing { receiver } });
        }
        for seq in gone {
            self.take(receiver, seq, step);
        }
        for seq in damaged {
            self.forget(receiver, seq);
        }
        self.pump(receiver, step);
    }

    /// A message that nobody will ack is done when it is written, but only by the connection that is active now: on its
    /// way to another one it was taken back, and goes to this one as well.
    fn written(&mut self, conn: ConnId, seq: Seq, step: &mut Step) {
        let Some(&Seat { identity, .. }) = self.seats.get(&conn) else { return };
        if self.mailboxes.get(&identity).is_some_and(|mailbox| mailbox.active() == Some(conn)) {
            self.remove(identity, seq, step);
        }
    }

    /// Takes a message out of a queue and sends what may follow it.
    fn remove(&mut self, receiver: Identity, seq: Seq, step: &mut Step) {
        self.take(receiver, seq, step);
        self.pump(receiver, step);
    }

    fn take(&mut self, receiver: Identity, seq: Seq, step: &mut Step) {
        if self.forget(receiver, seq) {
            step.writes.push(Write::Remove(seq));
        }
    }

    /// Takes a message out of a queue, but not out of the store. Whether it was there.
    fn forget(&mut self, receiver: Identity, seq: Seq) -> bool {
        let Some(entry) = self.mailboxes.get_mut(&receiver).and_then(|mailbox| mailbox.remove(seq)) else {
            return false;
        };
        self.timers.remove(&(entry.expires, Timer::Expiry(receiver, seq)))
    }

    /// Sends on what may be sent: asks for waiting messages as far as the window allows, then says that the queue is
    /// complete. Refills when half of the window is free, so that many acks cost one fetch.
    fn pump(&mut self, receiver: Identity, step: &mut Step) {
        let Some(mailbox) = self.mailboxes.get_mut(&receiver) else { return };
        if let Some(active) = mailbox.complete() {
            step.says.push(Say::QueueSendComplete(active));
        }
        if mailbox.in_flight() > self.limits.window / 2 {
            return;
        }
        let seqs = mailbox.begin_fetch(self.next_fetch, self.limits.window);
        if !seqs.is_empty() {
            step.says.push(Say::Fetch { receiver, fetch: self.next_fetch, seqs });
            self.next_fetch = FetchId(self.next_fetch.0 + 1);
        }
    }

    fn understood_by(&self, conn: ConnId, message: Message) -> Message {
        let metadata = self.seats.get(&conn).is_some_and(|seat| seat.features.has(Features::METADATA));
        if metadata { message } else { message.without_metadata() }
    }

    fn end(&mut self, now: Now, conn: ConnId, ending: Ending, step: &mut Step) {
        step.says.push(Say::End(conn, ending));
        self.leave(now, conn);
    }

    fn leave(&mut self, now: Now, conn: ConnId) {
        let Some(Seat { identity, device, .. }) = self.seats.remove(&conn) else { return };
        let Some(mailbox) = self.mailboxes.get_mut(&identity) else { return };
        mailbox.unseat(device, conn);
        if mailbox.is_lonely() {
            self.timers.insert((now.monotonic.saturating_add(AWAKE), Timer::Sleep(identity)));
        }
    }

    fn tick(&mut self, now: Now, step: &mut Step) {
        while let Some((at, timer)) = self.timers.first().copied().filter(|(at, _)| *at <= now.monotonic) {
            self.timers.remove(&(at, timer));
            match timer {
                Timer::Expiry(receiver, seq) => {
                    step.notice(Notice::Expired { receiver });
                    self.remove(receiver, seq, step);
                }
                Timer::Sleep(identity) => {
                    if self.mailboxes.get(&identity).is_some_and(Mailbox::is_lonely)
                        && let Some(mailbox) = self.mailboxes.remove(&identity)
                    {
                        for (seq, entry) in mailbox.entries() {
                            self.timers.remove(&(entry.expires, Timer::Expiry(identity, seq)));
                        }
                    }
                }
                Timer::Sweep => {
                    step.writes.push(Write::Sweep { now_ms: now.wall_ms });
                    let mut connected: Vec<Identity> = self.seats.values().map(|seat| seat.identity).collect();
                    connected.sort_unstable();
                    connected.dedup();
                    if !connected.is_empty() {
                        step.says.push(Say::LookUp(connected));
                    }
                    self.timers.insert((now.monotonic.saturating_add(SWEEP), Timer::Sweep));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
