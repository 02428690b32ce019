//! Stories on virtual time. The world keeps what it is told to, answers fetches, and listens to everybody.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::*;
use crate::chat::csp::wire::{FromClient, MessageId};

const START_MS: u64 = 1_700_000_000_000;
const A: &str = "AAAAAAAA";
const B: &str = "BBBBBBBB";
/// What cannot be read when it is fetched.
const DAMAGED: &[u8] = b"damaged";

/// What somebody heard.
#[derive(Debug, Clone, PartialEq)]
enum Heard {
    Admitted { queued: u32 },
    Ack(u64),
    Message(u64),
    Complete,
    CookieChanged,
    Retracted,
    Alert(String),
    Ended(Ending),
}

struct World {
    state: State,
    now: Now,
    kept: BTreeMap<Seq, (Message, u64)>,
    heard: HashMap<ConnId, Vec<Heard>>,
    /// As they went out.
    delivered: Vec<Message>,
    cookies: HashMap<Identity, (DeviceCookie, bool)>,
    /// Of everybody.
    tokens: Vec<KeptToken>,
    pushes: Vec<PushRequest>,
    discards: Vec<Discard>,
    /// Who the directory was asked for last.
    looked_up: Vec<Identity>,
    /// A connection that does not get its messages written leaves them here.
    unwritten: Vec<(ConnId, Seq)>,
    next_conn: u64,
}

fn id(name: &str) -> Identity {
    name.parse().unwrap()
}

fn message(from: &str, to: &str, n: u64, flags: u8) -> Message {
    Message {
        sender: id(from).into(),
        receiver: id(to).into(),
        id: MessageId(n),
        created_at_s: 1,
        flags: MessageFlags(flags),
        nickname: [0; 32],
        metadata_box: Bytes::from_static(&[0; 20]),
        nonce: [0; 24],
        message_box: Bytes::from_static(&[0; 18]),
    }
}

impl World {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let now = Now { monotonic: Duration::from_secs(1), wall_ms: START_MS };
        Self {
            state: State::new(now, limits, Seq(1)),
            now,
            kept: BTreeMap::new(),
            heard: HashMap::new(),
            delivered: Vec::new(),
            cookies: HashMap::new(),
            tokens: Vec::new(),
            pushes: Vec::new(),
            discards: Vec::new(),
            looked_up: Vec::new(),
            unwritten: Vec::new(),
            next_conn: 1,
        }
    }

    /// The server is killed and started again: only what was kept is left.
    fn restart(&mut self) {
        let next = self.kept.last_key_value().map_or(Seq(1), |(seq, _)| Seq(seq.0 + 1));
        self.state = State::new(self.now, self.state.limits, next);
        self.heard.clear();
    }

    fn wake(&mut self, who: Identity) {
        let entries = self.kept.iter().filter(|(_, (message, _))| message.receiver == who);
        let entries = entries.map(|(seq, (message, expires_ms))| KeptEntry {
            seq: *seq,
            sender: message.sender.valid().unwrap(),
            id: message.id,
            len: message.len(),
            flags: message.flags,
            expires_ms: *expires_ms,
        });
        let kept = Kept { entries: entries.collect(), cookie: self.cookies.get(&who).copied(), tokens: Vec::new() };
        self.state.wake(self.now, who, kept);
    }

    fn input(&mut self, input: Input) {
        let step = self.state.handle(self.now, input);
        for write in step.writes {
            match write {
                Write::Enqueue { seq, message, expires_ms } => {
                    assert!(self.kept.insert(seq, (message, expires_ms)).is_none(), "a number is given once");
                }
                Write::Remove(seq) => _ = self.kept.remove(&seq),
                Write::Cookie { identity, cookie, changed } => _ = self.cookies.insert(identity, (cookie, changed)),
                Write::PushToken { device, voip, token, .. } => {
                    self.tokens.retain(|kept| kept.device != device || kept.voip != voip);
                    self.tokens.extend(token.map(|token| KeptToken { device, voip, token }));
                }
                Write::Sweep { now_ms } => self.kept.retain(|_, (_, expires_ms)| *expires_ms > now_ms),
            }
        }
        for say in step.says {
            match say {
                Say::Admit(conn, ack) => self.hear(conn, Heard::Admitted { queued: ack.queued }),
                Say::Send(conn, ToClient::MessageAck(ack)) => self.hear(conn, Heard::Ack(ack.id.0)),
                Say::Send(conn, ToClient::DeviceCookieChangeIndication) => self.hear(conn, Heard::CookieChanged),
                Say::Send(conn, ToClient::Alert(text)) => self.hear(conn, Heard::Alert(text)),
                Say::Send(_, other) => panic!("{other:?}"),
                Say::Deliver(conn, delivery) => {
                    self.hear(conn, Heard::Message(delivery.message.id.0));
                    if let Some(seq) = delivery.tell_written {
                        self.unwritten.push((conn, seq));
                    }
                    self.delivered.push(delivery.message);
                }
                Say::QueueSendComplete(conn) => self.hear(conn, Heard::Complete),
                Say::Retract(conn) => self.hear(conn, Heard::Retracted),
                Say::End(conn, ending) => self.hear(conn, Heard::Ended(ending)),
                Say::Fetch { receiver, fetch, seqs } => {
                    let through = *seqs.last().unwrap();
                    let read = |seq: &Seq| {
                        let message = self.kept.get(seq)?.0.clone();
                        Some((*seq, Some(message).filter(|message| message.message_box != DAMAGED)))
                    };
                    let messages = seqs.iter().filter_map(read).collect();
                    self.input(Input::Fetched { receiver, fetch, through, messages });
                }
                Say::LookUp(identities) => self.looked_up = identities,
                Say::Push(request) => self.pushes.push(request),
                Say::Notice(Notice::Discarded { why, .. }) => self.discards.push(why),
                Say::Notice(_) => {}
            }
        }
    }

    fn hear(&mut self, conn: ConnId, what: Heard) {
        self.heard.entry(conn).or_default().push(what);
    }

    fn heard(&mut self, conn: ConnId) -> Vec<Heard> {
        self.heard.remove(&conn).unwrap_or_default()
    }

    fn join_with(&mut self, who: &str, device: Option<u64>, features: u8, cookie: Option<DeviceCookie>) -> ConnId {
        let conn = ConnId(self.next_conn);
        self.next_conn += 1;
        self.wake(id(who));
        let device = device.map(CspDeviceId);
        let join = Join { conn, identity: id(who), device, features: Features(features), cookie };
        self.input(Input::Join { join, standing: Standing::Active });
        conn
    }

    fn join(&mut self, who: &str, device: Option<u64>) -> ConnId {
        self.join_with(who, device, 3, None)
    }

    /// Joined, and what it heard by that forgotten.
    fn joined(&mut self, who: &str, device: Option<u64>) -> ConnId {
        let conn = self.join(who, device);
        self.heard(conn);
        conn
    }

    fn send(&mut self, conn: ConnId, message: Message) {
        let receiver = message.receiver.valid().filter(|who| who.as_str() != "NOBODY00");
        if let Some(receiver) = receiver {
            self.wake(receiver);
        }
        let receiver = if receiver.is_some() { Standing::Active } else { Standing::Unknown };
        self.input(Input::Message { conn, message, receiver });
    }

    fn ack(&mut self, conn: ConnId, from: &str, n: u64) {
        let ack = MessageAck { identity: id(from).into(), id: MessageId(n) };
        self.input(Input::Request { conn, request: Request::MessageAck(ack) });
    }

    fn unblock(&mut self, conn: ConnId) {
        self.input(Input::Request { conn, request: Request::Unblock });
    }

    fn pass(&mut self, seconds: u64) {
        self.now = self.now.plus(Duration::from_secs(seconds));
        self.input(Input::Tick);
    }

    fn queue(&self, who: &str) -> Vec<u64> {
        let of = |message: &Message| message.receiver == id(who);
        self.kept.values().filter(|(message, _)| of(message)).map(|(message, _)| message.id.0).collect()
    }
}

fn messages(ids: impl IntoIterator<Item = u64>) -> Vec<Heard> {
    ids.into_iter().map(Heard::Message).collect()
}

#[test]
fn csp_13_6_message_to_an_online_receiver_is_kept_acked_delivered_and_forgotten() {
    let mut w = World::new();
    let a = w.joined(A, None);
    let b = w.joined(B, None);
    w.send(a, message(A, B, 7, 0));
    assert_eq!(w.heard(a), [Heard::Ack(7)]);
    assert_eq!(w.heard(b), [Heard::Message(7)]);
    assert_eq!(w.queue(B), [7]);
    w.ack(b, A, 7);
    assert!(w.kept.is_empty());
    w.ack(b, A, 7);
    assert_eq!(w.heard(b), [], "an unknown ack is ignored");
}

#[test]
fn csp_13_6_offline_and_blocked_receivers_get_it_when_they_are_active() {
    let mut w = World::new();
    let a = w.joined(A, None);
    w.send(a, message(A, B, 1, 0));
    let b = w.join(B, Some(5));
    assert_eq!(w.heard(b), [Heard::Admitted { queued: 1 }]);
    w.send(a, message(A, B, 2, 0));
    assert_eq!(w.heard(b), [], "csp_13_10: nothing before 0x03");
    w.unblock(b);
    assert_eq!(w.heard(b), [Heard::Message(1), Heard::Message(2), Heard::Complete]);
    w.unblock(b);
    assert_eq!(w.heard(b), [], "0x03 on an active connection means nothing");
}

#[test]
fn csp_13_6_receivers_that_are_none_are_acked_and_nothing_is_kept() {
    let mut w = World::new();
    let a = w.joined(A, None);
    w.send(a, message(A, "NOBODY00", 1, 0));
    w.send(a, message(A, A, 2, 0));
    let mut bad = message(A, B, 3, 0);
    bad.receiver = WireIdentity(*b"not one!");
    w.send(a, bad);
    assert_eq!(w.heard(a), [Heard::Ack(1), Heard::Ack(2), Heard::Ack(3)]);
    w.send(a, message(A, "NOBODY00", 4, 0x04));
    assert_eq!(w.heard(a), [], "unless it wants no ack");
    assert_eq!(w.discards, [Discard::NoReceiver; 4]);
    assert!(w.kept.is_empty());
}

#[test]
fn csp_4_2_a_foreign_sender_ends_the_connection() {
    let mut w = World::new();
    let a = w.joined(A, None);
    w.send(a, message("CCCCCCCC", B, 1, 0));
    assert_eq!(w.heard(a), [Heard::Ended(Ending::ForeignSender)]);
    w.send(a, message(A, B, 2, 0));
    assert_eq!((w.heard(a), w.kept.len()), (vec![], 0), "and nothing more is taken from it");
}

/// Every combination of no-queuing and no-ack, for a receiver that is there and one that is not (spec C12).
#[test]
fn csp_13_6_no_queuing_and_no_ack_are_independent() {
    for (flags, acked, kept) in [(0x00, true, true), (0x02, true, false), (0x04, false, true), (0x06, false, false)] {
        for online in [true, false] {
            let mut w = World::new();
            let a = w.joined(A, None);
            let b = if online { w.joined(B, None) } else { ConnId(0) };
            w.send(a, message(A, B, 1, flags));
            let case = format!("flags {flags:#04x}, online {online}");
            assert_eq!(w.heard(a).len(), usize::from(acked), "{case}");
            assert_eq!(w.heard(b).len(), usize::from(online), "{case}");
            assert_eq!(w.kept.len(), usize::from(kept), "{case}");
            for (conn, seq) in std::mem::take(&mut w.unwritten) {
                w.input(Input::Written { conn, seq });
            }
            let no_ack = flags & 0x04 != 0;
            assert_eq!(w.kept.is_empty(), !kept || (online && no_ack), "written means done, {case}");
        }
    }
}

#[test]
fn csp_5_blocked_does_not_count_as_connected() {
    let mut w = World::new();
    let a = w.joined(A, None);
    let b = w.joined(B, Some(1));
    w.send(a, message(A, B, 1, 0x02));
    w.send(a, message(A, B, 2, 0x01));
    assert_eq!(w.discards, [Discard::NotNow]);
    assert_eq!(w.pushes.len(), 1);
    assert_eq!(w.pushes[0].receiver, id(B));
    w.unblock(b);
    w.send(a, message(A, B, 3, 0x01));
    assert_eq!(w.pushes.len(), 1, "an active connection needs no push");
    assert_eq!(w.heard(b), [Heard::Message(2), Heard::Complete, Heard::Message(3)]);
}

#[test]
fn csp_13_8_what_was_not_acked_comes_again_in_order() {
    let mut w = World::new();
    let a = w.joined(A, None);
    let b = w.joined(B, None);
    for n in 1..=4 {
        w.send(a, message(A, B, n, 0));
    }
    w.ack(b, A, 2);
    w.input(Input::Left(b));
    w.send(a, message(A, B, 5, 0));
    let b = w.joined(B, None);
    for n in [5, 4, 3, 1] {
        w.ack(b, A, n);
    }
    assert!(w.kept.is_empty());
    assert_eq!(w.delivered.iter().map(|m| m.id.0).collect::<Vec<_>>(), [1, 2, 3, 4, 1, 3, 4, 5]);
}

#[test]
fn csp_13_8_a_restart_loses_nothing_that_was_acked() {
    let mut w = World::new();
    let a = w.joined(A, None);
    let b = w.joined(B, None);
    for n in 1..=3 {
        w.send(a, message(A, B, n, 0));
    }
    w.ack(b, A, 1);
    w.restart();
    let b = w.join(B, None);
    assert_eq!(w.heard(b), [Heard::Admitted { queued: 2 }, Heard::Message(2), Heard::Message(3), Heard::Complete]);
}

#[test]
fn csp_13_9_short_lived_vanishes_after_60_s() {
    let mut w = World::new();
    let a = w.joined(A, None);
    w.send(a, message(A, B, 1, 0x20));
    w.send(a, message(A, B, 2, 0));
    w.pass(59);
    assert_eq!(w.queue(B), [1, 2]);
    w.pass(1);
    assert_eq!(w.queue(B), [2]);
    w.pass(14 * 86_400);
    assert!(w.queue(B).is_empty(), "the others stay for 14 days");
}

#[test]
fn csp_13_9_short_lived_vanishes_from_a_sleeping_mailbox_too() {
    let mut w = World::new();
    let a = w.joined(A, None);
    w.send(a, message(A, B, 1, 0x20));
    w.restart();
    w.pass(61);
    assert!(!w.state.is_awake(id(B)));
    assert!(w.queue(B).is_empty());
}

#[test]
fn csp_13_9_short_lived_is_not_transmitted_late() {
    let mut w = World::new();
    let a = w.joined(A, None);
    w.send(a, message(A, B, 1, 0x20));
    // Time passes without a tick: the message is due at the moment it would be sent.
    w.now = w.now.plus(Duration::from_secs(60));
    let b = w.join(B, None);
    assert_eq!(w.heard(b), [Heard::Admitted { queued: 1 }, Heard::Complete]);
    assert!(w.queue(B).is_empty());
}

/// What was on its way to somebody who goes waits again, but not longer than it would have.
#[test]
fn csp_13_9_short_lived_is_not_kept_longer_because_its_receiver_goes() {
    let mut w = World::new();
    let a = w.joined(A, None);
    let b = w.joined(B, Some(1));
    w.unblock(b);
    w.send(a, message(A, B, 1, 0x20));
    w.pass(30);
    w.input(Input::Left(b));
    assert_eq!(w.queue(B), [1], "as if it had never been on its way");
    let b = w.joined(B, Some(1));
    w.unblock(b);
    assert_eq!(w.heard(b), [Heard::Message(1), Heard::Complete]);
    w.pass(29);
    w.input(Input::Left(b));
    assert_eq!(w.queue(B), [1]);
    w.pass(1);
    assert!(w.queue(B).is_empty(), "60 s after it came");
    let b = w.join(B, None);
    assert_eq!(w.heard(b), [Heard::Admitted { queued: 0 }, Heard::Complete]);
}

#[test]
fn csp_13_10_hand_over_between_devices_returns_what_was_not_acked_and_late_acks_count() {
    let mut w = World::new();
    let a = w.joined(A, None);
    let (old, new) = (w.joined(B, Some(1)), w.joined(B, Some(2)));
    w.unblock(old);
    for n in 1..=3 {
        w.send(a, message(A, B, n, 0));
    }
    assert_eq!(w.heard(old), [vec![Heard::Complete], messages(1..=3)].concat());
    w.unblock(new);
    assert_eq!(w.heard(new), [messages(1..=3), vec![Heard::Complete]].concat());
    w.ack(old, A, 1);
    assert_eq!(w.queue(B), [2, 3], "the old leader had it");
    w.send(a, message(A, B, 4, 0));
    assert_eq!((w.heard(old), w.heard(new)), (vec![Heard::Retracted], messages([4])));
    w.unblock(old);
    assert_eq!(w.heard(old), [messages(2..=4), vec![Heard::Complete]].concat(), "last 0x03 wins, both ways");
    w.input(Input::Left(old));
    w.send(a, message(A, B, 5, 0));
    assert_eq!(w.heard(new), [Heard::Retracted], "it was blocked again");
}

/// What one connection's writer gets round to late says nothing about the one that gets the messages now.
#[test]
fn csp_4_3_a_message_without_ack_is_done_only_when_the_active_connection_wrote_it() {
    let mut w = World::new();
    let a = w.joined(A, None);
    let (old, new) = (w.joined(B, Some(1)), w.joined(B, Some(2)));
    w.unblock(old);
    w.send(a, message(A, B, 1, 0x04));
    w.unblock(new);
    let written = std::mem::take(&mut w.unwritten);
    assert_eq!(written, [(old, Seq(1)), (new, Seq(1))]);
    w.input(Input::Written { conn: old, seq: Seq(1) });
    assert_eq!(w.queue(B), [1], "the new one may not have got it yet");
    let newest = w.joined(B, Some(2));
    w.input(Input::Written { conn: new, seq: Seq(1) });
    assert_eq!(w.queue(B), [1], "displaced before it was written");
    w.unblock(newest);
    w.input(Input::Written { conn: newest, seq: Seq(1) });
    assert!(w.queue(B).is_empty());
}

/// The table of spec 5: who goes when somebody comes.
#[test]
fn csp_5_who_displaces_whom() {
    for (first, second, displaced) in [
        (None, None, true),
        (None, Some(1), true),
        (Some(1), None, true),
        (Some(1), Some(1), true),
        (Some(1), Some(2), false),
    ] {
        let mut w = World::new();
        let old = w.joined(B, first);
        let new = w.joined(B, second);
        let expected = if displaced { vec![Heard::Ended(Ending::Replaced)] } else { vec![] };
        assert_eq!(w.heard(old), expected, "{first:?} then {second:?}");
        // A farewell that comes late names the old connection and hits nobody else.
        w.input(Input::Left(old));
        assert_eq!(w.state.mailboxes[&id(B)].connections().collect::<Vec<_>>(), [new]);
    }
}

#[test]
fn csp_4_3_the_window_holds_back_messages_and_nothing_else() {
    let mut w = World::new();
    let a = w.joined(A, None);
    let b = w.joined(B, None);
    for n in 1..=200 {
        w.send(a, message(A, B, n, 0));
    }
    assert_eq!(w.heard(b), messages(1..=64));
    w.send(b, message(B, A, 900, 0));
    assert_eq!(w.heard(b), [Heard::Ack(900)]);
    for n in 1..=200 {
        w.ack(b, A, n);
    }
    assert_eq!(w.heard(b), messages(65..=200));
    assert!(w.queue(B).is_empty());
}

#[test]
fn csp_5_queue_send_complete_waits_for_the_window_and_comes_once() {
    let mut w = World::new();
    let a = w.joined(A, None);
    for n in 1..=100 {
        w.send(a, message(A, B, n, 0));
    }
    let b = w.join(B, None);
    assert_eq!(w.heard(b), [vec![Heard::Admitted { queued: 100 }], messages(1..=64)].concat());
    w.send(a, message(A, B, 101, 0));
    for n in 1..=64 {
        w.ack(b, A, n);
    }
    let heard = w.heard(b);
    assert_eq!(heard.iter().filter(|heard| **heard == Heard::Complete).count(), 1);
    let complete = heard.iter().position(|heard| *heard == Heard::Complete).unwrap();
    let last = heard.iter().position(|heard| *heard == Heard::Message(100)).unwrap();
    assert!(last < complete, "behind the last one that was queued at activation");
    assert!(heard.contains(&Heard::Message(101)));
}

#[test]
fn csp_4_3_a_duplicate_is_acked_again_and_kept_once() {
    let mut w = World::new();
    let a = w.joined(A, None);
    w.send(a, message(A, B, 1, 0));
    w.send(a, message(A, B, 1, 0));
    assert_eq!(w.heard(a), [Heard::Ack(1), Heard::Ack(1)]);
    assert_eq!(w.queue(B), [1]);
    let b = w.joined(B, None);
    w.ack(b, A, 1);
    w.send(a, message(A, B, 1, 0));
    assert_eq!(w.heard(b), [Heard::Message(1)], "after the delivery it is a message like any other");
}

#[test]
fn csp_4_3_a_full_queue_acks_and_discards() {
    let mut w = World::with(Limits { queue_messages_max: 2, ..Limits::default() });
    let a = w.joined(A, None);
    for n in 1..=4 {
        w.send(a, message(A, B, n, 0));
    }
    assert_eq!(w.heard(a), [Heard::Ack(1), Heard::Ack(2), Heard::Ack(3), Heard::Ack(4)]);
    let full = |so_far| Discard::QueueFull { so_far };
    assert_eq!((w.queue(B), w.discards.as_slice()), (vec![1, 2], &[full(1), full(2)][..]));

    let len = message(A, B, 1, 0).len();
    let mut w = World::with(Limits { queue_bytes_max: len * 2, ..Limits::default() });
    let a = w.joined(A, None);
    for n in 1..=3 {
        w.send(a, message(A, B, n, 0));
    }
    assert_eq!(w.queue(B), [1, 2]);
    let b = w.joined(B, None);
    w.ack(b, A, 1);
    w.send(a, message(A, B, 4, 0));
    assert_eq!(w.queue(B), [2, 4], "room again");
}

#[test]
fn csp_13_14_created_at_is_overwritten_when_it_is_0_future_or_short_lived() {
    let now_s = u32::try_from(START_MS / 1_000).unwrap();
    for (given, flags, kept) in [(0, 0, now_s), (now_s + 1, 0, now_s), (5, 0x20, now_s), (5, 0, 5), (now_s, 0, now_s)] {
        let mut w = World::new();
        let a = w.joined(A, None);
        w.joined(B, None);
        w.send(a, Message { created_at_s: given, ..message(A, B, 1, flags) });
        assert_eq!(w.delivered[0].created_at_s, kept, "{given} with flags {flags}");
        assert_eq!(w.delivered[0].flags, MessageFlags(flags), "flags are forwarded unchanged");
    }
}

#[test]
fn csp_13_15_metadata_is_stripped_for_whom_does_not_understand_it() {
    for (features, stripped) in [(0x00, true), (0x02, true), (0x01, false), (0x03, false)] {
        let mut w = World::new();
        let a = w.joined(A, None);
        w.send(a, message(A, B, 1, 0));
        w.join_with(B, None, features, None);
        w.send(a, message(A, B, 2, 0));
        w.send(a, message(A, B, 3, 0x02));
        assert_eq!(w.delivered.len(), 3);
        assert!(w.delivered.iter().all(|m| m.metadata_box.is_empty() == stripped), "features {features}");
        assert!(w.kept.values().all(|(m, _)| !m.metadata_box.is_empty()), "kept whole for the next client");
    }
}

#[test]
fn csp_13_16_a_changed_cookie_is_indicated_until_it_is_cleared() {
    let (one, two) = (Some(DeviceCookie([1; 16])), Some(DeviceCookie([2; 16])));
    let mut w = World::new();
    let login = |w: &mut World, cookie| {
        let conn = w.join_with(B, None, 3, cookie);
        (w.heard(conn).contains(&Heard::CookieChanged), conn)
    };
    assert!(!login(&mut w, None).0, "none known, none presented");
    assert!(!login(&mut w, one).0, "the first one is stored");
    assert!(!login(&mut w, one).0);
    assert!(login(&mut w, two).0);
    assert!(login(&mut w, two).0, "on every login");
    w.restart();
    let (indicated, conn) = login(&mut w, two);
    assert!(indicated, "and after a restart");
    w.input(Input::Request { conn, request: Request::ClearDeviceCookieChange });
    assert!(!login(&mut w, two).0);
    assert!(login(&mut w, None).0, "no cookie where one is stored counts as zeros");

    let mut w = World::with(Limits { device_cookie_indication: false, ..Limits::default() });
    assert!(!login(&mut w, one).0);
    assert!(!login(&mut w, two).0, "switched off");
}

#[test]
fn csp_9_push_tokens_go_to_the_hook_until_they_are_deleted() {
    let mut w = World::new();
    let a = w.joined(A, None);
    let (one, two) = (w.joined(B, Some(1)), w.joined(B, Some(2)));
    let token = |kind| PushToken { kind, token: Bytes::from_static(b"t|o|k") };
    let set = |w: &mut World, conn, voip, kind| {
        w.input(Input::Request { conn, request: Request::SetPushToken { voip, token: token(kind) } });
    };
    let devices = |w: &mut World| -> Vec<(u64, bool)> {
        w.send(a, message(A, B, w.next_conn, 0x01));
        w.next_conn += 1;
        w.pushes.pop().unwrap().tokens.iter().map(|kept| (kept.device.unwrap().0, kept.voip)).collect()
    };
    set(&mut w, one, false, 0x11);
    set(&mut w, one, true, 0x01);
    set(&mut w, two, false, 0x13);
    set(&mut w, two, false, 0x13);
    assert_eq!(devices(&mut w), [(1, false), (1, true), (2, false)]);
    set(&mut w, one, true, PushToken::NONE);
    assert_eq!(devices(&mut w), [(1, false), (2, false)]);
    let delete = |of: &[u64]| Request::DeletePushTokens(of.iter().map(|n| CspDeviceId(*n)).collect());
    w.input(Input::Request { conn: two, request: delete(&[]) });
    assert_eq!(devices(&mut w), [(2, false)], "an empty list: all but the sender's own");
    w.input(Input::Request { conn: one, request: delete(&[2, 9]) });
    assert_eq!(devices(&mut w), []);
}

#[test]
fn csp_5_an_identity_has_a_bounded_number_of_connections_and_the_oldest_goes() {
    let mut w = World::new();
    let conns: Vec<ConnId> = (0..CONNECTIONS_MAX as u64).map(|n| w.joined(B, Some(1_000 - n))).collect();
    w.unblock(conns[0]);
    w.heard(conns[0]);
    let newest = w.joined(B, Some(5_000));
    assert_eq!(w.heard(conns[0]), [Heard::Ended(Ending::Replaced)]);
    assert_eq!(w.heard(conns[1]), []);
    let same = w.joined(B, Some(5_000));
    assert_eq!((w.heard(newest), w.heard(conns[1])), (vec![Heard::Ended(Ending::Replaced)], vec![]), "one for one");
    assert_eq!(w.state.mailboxes[&id(B)].connections().count(), CONNECTIONS_MAX);
    assert_eq!(w.state.seats.len(), CONNECTIONS_MAX);
    w.unblock(same);
    assert_eq!(w.heard(same), [Heard::Complete]);
}

#[test]
fn csp_9_an_identity_has_a_bounded_number_of_push_tokens_and_the_oldest_absent_one_goes() {
    let mut w = World::new();
    let token = PushToken { kind: 0x11, token: Bytes::from_static(b"t") };
    let set = |w: &mut World, device: u64| {
        let conn = w.joined(B, Some(device));
        w.input(Input::Request { conn, request: Request::SetPushToken { voip: false, token: token.clone() } });
        conn
    };
    let kept = |w: &World| w.tokens.iter().map(|kept| kept.device.unwrap().0).collect::<Vec<_>>();
    set(&mut w, 0);
    for device in 1..PUSH_TOKENS_MAX as u64 {
        let conn = set(&mut w, device);
        w.input(Input::Left(conn));
    }
    assert_eq!(kept(&w), (0..PUSH_TOKENS_MAX as u64).collect::<Vec<_>>());
    set(&mut w, 3);
    set(&mut w, 9_000);
    set(&mut w, 9_001);
    let gone = [1, 2];
    let mut expected: Vec<u64> = (0..PUSH_TOKENS_MAX as u64).filter(|n| !gone.contains(n) && *n != 3).collect();
    expected.extend([3, 9_000, 9_001]);
    assert_eq!(kept(&w), expected, "the first is connected, the third was renewed");
    assert_eq!(w.state.mailboxes[&id(B)].tokens(), w.tokens);
}

#[test]
fn csp_10_who_is_revoked_is_ended_on_every_connection_and_nothing_more_is_taken() {
    let mut w = World::new();
    let (a, one, two) = (w.joined(A, None), w.joined(B, Some(1)), w.joined(B, Some(2)));
    w.unblock(one);
    w.send(a, message(A, B, 1, 0));
    w.heard(one);
    w.input(Input::Revoked(id(B)));
    for conn in [one, two] {
        assert_eq!(w.heard(conn), [Heard::Ended(Ending::Revoked)]);
        w.send(conn, message(B, A, 9, 0));
        w.ack(conn, A, 1);
        assert_eq!(w.heard(conn), []);
    }
    assert_eq!((w.queue(A), w.queue(B)), (vec![], vec![1]), "nothing more is taken from it");
    w.input(Input::Revoked(id(B)));

    // Revoked while it was logging in.
    let conn = ConnId(900);
    let join = Join { conn, identity: id(B), device: None, features: Features(3), cookie: None };
    w.input(Input::Join { join, standing: Standing::Unknown });
    assert_eq!(w.heard(conn), [Heard::Ended(Ending::Revoked)]);
    assert!(!w.state.seats.contains_key(&conn));
}

#[test]
fn csp_10_the_directory_is_asked_every_minute_for_those_who_say_nothing() {
    let mut w = World::new();
    w.pass(60);
    assert!(w.looked_up.is_empty(), "nobody is there");
    w.joined(A, None);
    w.joined(B, Some(2));
    w.joined(B, Some(1));
    w.pass(60);
    assert_eq!(std::mem::take(&mut w.looked_up), [id(A), id(B)]);
    w.pass(60);
    assert_eq!(w.looked_up, [id(A), id(B)]);
}

#[test]
fn csp_7_an_alert_reaches_blocked_connections_too() {
    let mut w = World::new();
    let (one, two, other) = (w.joined(B, Some(1)), w.joined(B, Some(2)), w.joined(A, None));
    w.input(Input::Alert { identity: id(B), text: AlertText::new("hello") });
    assert_eq!((w.heard(one), w.heard(two)), (vec![Heard::Alert("hello".into())], vec![Heard::Alert("hello".into())]));
    assert_eq!(w.heard(other), []);

    // Two bytes to a character, and one more in front: the last one does not fit.
    let long = format!("x{}", "\u{fc}".repeat(ALERT_MAX));
    w.input(Input::Alert { identity: id(B), text: AlertText::new(&long) });
    assert_eq!(w.heard(one), [Heard::Alert(long[..ALERT_MAX - 1].to_owned())]);
}

/// Whatever of this ends up in a log or a panic says how long things are, not what they are.
#[test]
fn what_people_say_is_not_printed() {
    let secret = || Bytes::from_static(b"secret");
    let m = || Message { message_box: secret(), metadata_box: secret(), nickname: [b's'; 32], ..message(A, B, 1, 0) };
    let token = || PushToken { kind: 1, token: secret() };
    let (a, b) = (id(A), id(B));
    let close = ToClient::CloseError { can_reconnect: true, message: "secret".into() };
    let delivery = Delivery { message: m(), tell_written: None, now_or_never: false, expires: Duration::ZERO };
    let cookie = DeviceCookie(*b"secretsecretsecr");
    let join = Join { conn: ConnId(1), identity: a, device: None, features: Features(0), cookie: Some(cookie) };
    let fetched =
        Input::Fetched { receiver: a, fetch: FetchId(1), through: Seq(1), messages: vec![(Seq(1), Some(m()))] };
    let set = Request::SetPushToken { voip: true, token: token() };
    let writes = vec![
        Write::Enqueue { seq: Seq(1), message: m(), expires_ms: 0 },
        Write::Cookie { identity: a, cookie, changed: false },
        Write::PushToken { identity: a, device: None, voip: false, token: Some(token()) },
    ];
    let draft = crate::chat::csp::wire::message::Draft {
        sender: a,
        receiver: b,
        id: MessageId(1),
        created_at_s: 0,
        flags: MessageFlags(0),
        nickname: "secret",
        metadata: Some(b"secret"),
        content: b"secret",
    };
    let printed = [
        format!(
            "{:?}",
            [FromClient::EchoRequest(secret()), FromClient::EchoResponse(secret()), FromClient::Message(m())]
        ),
        format!("{:?}", [FromClient::SetPushToken(token()), FromClient::SetVoipPushToken(token())]),
        format!(
            "{:?}",
            [ToClient::EchoRequest(secret()), ToClient::EchoResponse(secret()), ToClient::Message(m()), close]
        ),
        format!(
            "{:?}",
            [LineStep::Message(m()), LineStep::Reply(ToClient::Alert("secret".into())), LineStep::Route(set)]
        ),
        format!("{:?}", Input::Alert { identity: a, text: AlertText::new("secret") }),
        format!("{:?}", (fetched, Input::Join { join, standing: Standing::Active })),
        format!("{:?}", Step { writes, says: vec![Say::Deliver(ConnId(1), delivery)] }),
        format!("{draft:?}"),
    ];
    for printed in printed {
        let bytes_of_it = format!("{:?}", b"secret");
        assert!(!printed.contains("secret") && !printed.contains(bytes_of_it.trim_matches(['[', ']'])), "{printed}");
    }
}

#[test]
fn messages_that_vanished_from_the_store_do_not_hold_up_the_others() {
    let mut w = World::new();
    let a = w.joined(A, None);
    for n in 1..=3 {
        w.send(a, message(A, B, n, 0));
    }
    w.kept.remove(&Seq(1));
    w.kept.remove(&Seq(3));
    let b = w.join(B, None);
    assert_eq!(w.heard(b), [Heard::Admitted { queued: 3 }, Heard::Message(2), Heard::Complete]);
    w.ack(b, A, 2);
    assert_eq!(w.state.mailboxes[&id(B)].len(), 0);
}

#[test]
fn a_damaged_message_is_passed_over_and_stays_in_the_store() {
    let mut w = World::new();
    let a = w.joined(A, None);
    for n in 1..=3 {
        w.send(a, message(A, B, n, 0));
    }
    for seq in [1, 3] {
        w.kept.get_mut(&Seq(seq)).unwrap().0.message_box = Bytes::from_static(DAMAGED);
    }
    let b = w.join(B, None);
    assert_eq!(w.heard(b), [Heard::Admitted { queued: 3 }, Heard::Message(2), Heard::Complete]);
    w.ack(b, A, 2);
    assert_eq!((w.state.mailboxes[&id(B)].len(), w.queue(B)), (0, vec![1, 3]));
    w.send(a, message(A, B, 3, 0));
    assert_eq!(w.heard(b), [Heard::Message(3)], "its sender may try again");

    // The next time both are there under the same name; the ack is for the one that was sent.
    w.restart();
    let b = w.join(B, None);
    assert_eq!(w.heard(b), [Heard::Admitted { queued: 3 }, Heard::Message(3), Heard::Complete]);
    w.ack(b, A, 3);
    assert_eq!(w.queue(B), [1, 3], "of the two named 3 the damaged one is left");
    w.pass(14 * 86_400);
    assert!(w.kept.is_empty(), "until its time is over");
}

#[test]
fn a_mailbox_falls_asleep_when_nobody_needs_it_and_leaves_nothing_behind() {
    let mut w = World::new();
    let a = w.joined(A, None);
    w.send(a, message(A, B, 1, 0));
    w.pass(59);
    assert!(w.state.is_awake(id(B)));
    w.pass(1);
    assert!(!w.state.is_awake(id(B)));
    assert!(w.state.is_awake(id(A)), "somebody is connected");
    w.input(Input::Left(a));
    w.pass(60);
    assert!(w.state.mailboxes.is_empty() && w.state.seats.is_empty());
    assert_eq!(w.state.timers.len(), 1, "the sweep");
    let b = w.join(B, None);
    assert_eq!(w.heard(b), [Heard::Admitted { queued: 1 }, Heard::Message(1), Heard::Complete]);
}
