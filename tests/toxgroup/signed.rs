//! Signed groups (spec 9): nobody speaks for another, and everybody comes to the same view.

use std::time::Duration;

use heliostat::chat::toxgroup::state::{
    Command, Credential, Dropped, Event, Failure, Mode, Own, Records, Refused, Role, Save, Shape, Taken, Why,
};
use heliostat::chat::toxgroup::wire::message::Signed;
use heliostat::chat::toxgroup::wire::record::{Grade, Verdict, Voice};
use heliostat::chat::toxgroup::wire::{
    Broadcast, Cert, ClientId, GroupId, JoinRefused, Message, MessageId, Record, Request, Sanction, SigPk, State, Topic,
};
use heliostat::crypto::{Secret, boxes, sign};

use super::world::{World, rules};

const SECOND: Duration = Duration::from_secs(1);

fn text(text: &str) -> Message {
    Message::Text { text: text.into(), action: false }
}

/// A hub, and three who came by invitations.
fn world(seed: u64) -> World {
    let mut world = World::new(seed, Mode::Signed);
    let hub = world.hub();
    for _ in 0..3 {
        world.member(hub);
    }
    world.pass(10 * SECOND);
    world.peers.iter_mut().for_each(|peer| peer.events.clear());
    world
}

fn role_of(world: &World, at: usize, of: usize) -> Option<Role> {
    let id = world.peers[of].id();
    world.peers[at].group.members().into_iter().find(|it| it.id == id).and_then(|it| it.role)
}

fn sanction(by: ClientId, target: ClientId, verdict: Verdict, for_s: Option<u64>) -> Command {
    Command::Sanction { by, target, verdict, for_s, reason: "reasons".into() }
}

#[test]
fn who_is_invited_is_in_and_everybody_hears_everybody() {
    let mut world = world(1);
    let (heard, pairs) = world.everybody_speaks();
    assert_eq!(heard, pairs);
    let now_s = world.now.wall_ms / 1_000;
    let digests: Vec<_> = world.peers.iter().map(|peer| peer.group.records().digest(now_s)).collect();
    assert!(digests.iter().all(|digest| *digest == digests[0]), "all hold the same records");
    assert_eq!(role_of(&world, 1, 0), Some(Role::Founder));
    assert_eq!(role_of(&world, 1, 2), Some(Role::User));
}

#[test]
fn an_invitation_is_used_up_and_a_lost_answer_is_given_again() {
    let mut world = world(2);
    let credential = world.invitation(0, 1);
    let [one, two] = [(); 2].map(|()| world.peer(rules(), None));
    assert_eq!(world.enter(one, 0, Some(credential.clone())), Ok(()));
    assert_eq!(world.enter(one, 0, Some(credential.clone())), Ok(()), "the same key again");
    assert_eq!(world.enter(two, 0, Some(credential.clone())), Err(Failure::Refused(JoinRefused::Token)));
    let nobody = world.enter(two, 0, Some(Credential { id: [0; 16], secret: [0; 32] }));
    assert_eq!(nobody, Err(Failure::Refused(JoinRefused::Token)), "the group is not open");
    world.say(0, Command::Reshape(Shape { open: Some(true), ..Shape::default() })).unwrap();
    let anybody = world.enter(two, 0, Some(Credential { id: [0; 16], secret: [0; 32] }));
    assert_eq!(anybody, Ok(()));
    let late = world.invitation(0, 9);
    world.pass(Duration::from_secs(3_700));
    let three = world.peer(rules(), None);
    assert_eq!(world.enter(three, 0, Some(late)), Err(Failure::Refused(JoinRefused::Token)), "expired");
}

#[test]
fn nobody_can_say_anything_in_anothers_name_or_twice() {
    let mut world = world(3);
    let time_ms = world.now.wall_ms;
    // Signed by 1, said to be from 2.
    let mut forged = world.signed(1, 500, time_ms, &text("I am 2"));
    forged.origin = world.peers[2].id();
    world.broadcast(1, 3, &forged);
    assert_eq!(world.peers[3].events.pop(), Some(Event::Dropped(Dropped::Forged)));
    // Without an envelope at all.
    let (id, payload) = text("I am 2").encode(MessageId::ACTION);
    world.broadcast(1, 3, &Broadcast { origin: world.peers[2].id(), number: 501, id, payload });
    assert_eq!(world.peers[3].events.pop(), Some(Event::Dropped(Dropped::NotAllowed)));

    let fine = world.signed(1, 600, time_ms, &text("once"));
    world.broadcast(2, 3, &fine);
    assert_eq!(world.peers[3].heard().len(), 1);
    world.broadcast(1, 3, &fine);
    assert_eq!(world.peers[3].events.pop(), Some(Event::Dropped(Dropped::Stale)), "heard already");
    let late = world.signed(1, 700, time_ms, &text("late"));
    world.pass(601 * SECOND);
    world.peers[3].events.clear();
    world.broadcast(2, 3, &late);
    assert_eq!(world.peers[3].events.pop(), Some(Event::Dropped(Dropped::Stale)), "played back after ten minutes");
}

#[test]
fn who_left_is_not_brought_back_by_what_they_said_before() {
    let mut world = world(4);
    let id = world.peers[1].id();
    let before = world.signed(1, 900, world.now.wall_ms, &text("before"));
    let (at, keys) = (world.peers[1].at, world.peers[1].secret);
    assert_ne!(keys, [0; 32]);
    world.say(1, Command::Leave(id)).unwrap();
    world.peers[1].off = true;
    world.pass(5 * SECOND);
    assert!(world.peers.iter().filter(|peer| !peer.off).all(|peer| !peer.knows(id)));
    world.peers[3].events.clear();
    world.broadcast(2, 3, &before);
    assert!(!world.peers[3].knows(id) && world.peers[3].heard().is_empty());
    assert!(at != world.peers[2].at);
}

#[test]
fn roles_say_who_may_what() {
    let mut world = world(5);
    let [founder, one, two] = [0, 1, 2].map(|n| world.peers[n].id());
    assert_eq!(world.say(1, sanction(one, two, Verdict::Ban, None)), Err(Refused::NotAllowed));
    assert_eq!(world.say(1, Command::SetTopic(one, "mine".into())), Err(Refused::NotAllowed));
    assert_eq!(world.say(1, Command::Reshape(Shape::default())), Err(Refused::NotAllowed));
    world.say(0, Command::Reshape(Shape { moderator: Some((one, true)), ..Shape::default() })).unwrap();
    world.pass(2 * SECOND);
    assert_eq!(role_of(&world, 3, 1), Some(Role::Moderator));
    world.say(1, Command::SetTopic(one, "order".into())).unwrap();
    world.say(1, sanction(one, two, Verdict::Observer, None)).unwrap();
    world.pass(2 * SECOND);
    assert!(world.peers.iter().all(|peer| peer.group.topic() == "order"));
    assert_eq!(role_of(&world, 3, 2), Some(Role::Observer));
    let by = two;
    assert_eq!(world.say(2, Command::Say { by, text: "but".into(), action: false }), Err(Refused::NotAllowed));
    world.peers[3].events.clear();
    let anyway = world.signed(2, 800, world.now.wall_ms, &text("but"));
    world.broadcast(2, 3, &anyway);
    assert_eq!(world.peers[3].events.pop(), Some(Event::Dropped(Dropped::NotAllowed)));
    assert_eq!(world.say(1, sanction(one, founder, Verdict::Ban, None)), Err(Refused::NotAllowed));

    // Voice: moderators alone.
    world.say(0, Command::Reshape(Shape { voice: Some(Voice::Moderators), ..Shape::default() })).unwrap();
    world.pass(2 * SECOND);
    let by = world.peers[3].id();
    assert_eq!(world.say(3, Command::Say { by, text: "and I".into(), action: false }), Err(Refused::NotAllowed));
    // Without the role, what the moderator said does not count any more.
    world.say(0, Command::Reshape(Shape { moderator: Some((one, false)), ..Shape::default() })).unwrap();
    world.pass(2 * SECOND);
    assert_eq!(role_of(&world, 3, 2), Some(Role::User));
    assert_eq!(world.say(1, Command::SetTopic(one, "mine".into())), Err(Refused::NotAllowed));
    assert!(world.peers.iter().all(|peer| peer.group.topic() == "order"), "a topic stays");
}

#[test]
fn a_kick_is_over_after_a_minute_and_a_ban_is_not_evaded_without_an_invitation() {
    let mut world = world(6);
    let [founder, kicked, banned] = [0, 1, 2].map(|n| world.peers[n].id());
    world.say(0, sanction(founder, kicked, Verdict::Ban, Some(60))).unwrap();
    world.say(0, sanction(founder, banned, Verdict::Ban, None)).unwrap();
    world.pass(2 * SECOND);
    for n in [0, 3] {
        assert!(world.peers[n].events.contains(&Event::Left(kicked, Why::Banned)), "peer {n}");
        assert!(!world.peers[n].knows(banned));
    }
    assert_eq!(world.say(2, Command::Say { by: banned, text: "no".into(), action: false }), Err(Refused::NotAllowed));
    let credential = world.invitation(0, 5);
    assert_eq!(world.enter(2, 0, Some(credential)), Err(Failure::Refused(JoinRefused::Banned)));
    let again = world.peer(rules(), None);
    let none = Credential { id: [1; 16], secret: [1; 32] };
    assert_eq!(world.enter(again, 0, Some(none)), Err(Failure::Refused(JoinRefused::Token)), "by a new key");
    world.pass(90 * SECOND);
    world.peers[3].events.clear();
    world.text(1, "sorry");
    world.pass(2 * SECOND);
    assert!(world.peers[3].heard().iter().any(|(by, _)| *by == kicked), "its certificate lets it back in");
    assert!(!world.peers[3].knows(banned));
}

#[test]
fn a_hub_that_restarts_knows_its_group() {
    let mut world = world(7);
    let virtual_member = Own::new(Secret::new([7; 32]), Some(sign::Pair::new(&Secret::new([8; 32]))), 0, "thin");
    let thin = virtual_member.id();
    world.say(0, Command::AddVirtual(Box::new(virtual_member), None)).unwrap();
    world.pass(5 * SECOND);
    world.say(0, Command::Say { by: thin, text: "without a socket".into(), action: false }).unwrap();
    world.pass(2 * SECOND);
    for n in 1..4 {
        assert!(world.peers[n].heard().iter().any(|(by, text)| *by == thin && text == "without a socket"), "peer {n}");
    }
    world.restart(0);
    world.pass(30 * SECOND);
    let hub = &world.peers[0].group;
    assert_eq!(hub.history().map(|line| line.text.as_str()).collect::<Vec<_>>(), ["without a socket"]);
    assert_eq!(hub.neighbours(), 3);
    world.some_speak(&[0, 2]);
}

/// What a founder and two moderators signed, each in every order.
#[test]
fn two_moderators_at_once_come_to_the_same_in_every_order() {
    const NOW_S: u64 = 1_700_000_000;
    let pair = |byte| sign::Pair::new(&Secret::new([byte; 32]));
    let (founder, one, two) = (pair(1), pair(2), pair(3));
    let group = GroupId(founder.public());
    let [target, first, second] = [4, 5, 6].map(|byte| ClientId(boxes::public(&Secret::new([byte; 32]))));
    let empty = SigPk([0; 32]);
    let cert = |client, by: &sign::Pair, of: &sign::Pair| {
        Record::Cert(
            Cert {
                group,
                client,
                sig_pk: SigPk(of.public()),
                grade: Grade::User,
                not_before_s: NOW_S,
                not_after_s: NOW_S + 1_000,
                issuer: empty,
                signature: [0; 64],
            }
            .signed(by),
        )
    };
    let state = |moderators: &[&sign::Pair], version| {
        let moderators = moderators.iter().map(|it| SigPk(it.public())).collect();
        let name = String::new();
        let (time_s, open, open_topic, voice, peers_max) = (NOW_S, false, false, Voice::All, 0);
        Record::State(
            State { group, version, time_s, open, open_topic, voice, peers_max, name, moderators, signature: [0; 64] }
                .signed(&founder),
        )
    };
    let sanction = |by: &sign::Pair, target, verdict, time_s| {
        let (seq, expires_s, reason) = (1, 0, String::new());
        Record::Sanction(
            Sanction { group, target, verdict, seq, time_s, expires_s, reason, issuer: empty, signature: [0; 64] }
                .signed(by),
        )
    };
    let topic = |by: &sign::Pair, text: &str| {
        let text = text.to_owned();
        Record::Topic(Topic { group, version: 1, time_s: NOW_S, text, setter: empty, signature: [0; 64] }.signed(by))
    };
    let first_of_all = [state(&[&one, &two], 1), cert(first, &founder, &one), cert(second, &founder, &two)];
    let concurrent = [
        sanction(&one, target, Verdict::Ban, NOW_S),
        sanction(&two, target, Verdict::Lift, NOW_S),
        sanction(&one, second, Verdict::Ban, NOW_S),
        topic(&one, "one"),
        topic(&two, "two"),
    ];
    let mut seen = Vec::new();
    for order in 0..120 {
        let mut records = Records::new(group);
        for record in &first_of_all {
            assert_eq!(records.take(record, NOW_S), Taken::Changed);
        }
        let (mut left, mut code) = (concurrent.to_vec(), order);
        while !left.is_empty() {
            let record = left.remove(code % left.len());
            code /= left.len() + 1;
            assert_ne!(records.take(&record, NOW_S), Taken::Forged);
        }
        assert!(!records.is_banned(&second, NOW_S), "a moderator bans no moderator");
        let view =
            (records.topic().map(|it| it.text.clone()), records.is_banned(&target, NOW_S), records.digest(NOW_S));
        assert!(seen.is_empty() || seen.contains(&view), "in order {order}");
        seen.push(view);
        // And what one of them said stops to count with the role, the other's does not.
        assert_eq!(records.take(&state(&[&two], 2), NOW_S), Taken::Changed);
        assert!(!records.is_banned(&target, NOW_S));
        assert_eq!(records.take(&sanction(&one, target, Verdict::Ban, NOW_S + 9), NOW_S), Taken::Refused);
        assert_eq!(records.take(&sanction(&two, target, Verdict::Ban, NOW_S + 601), NOW_S), Taken::Refused);
        assert_eq!(records.take(&sanction(&founder, target, Verdict::Ban, NOW_S), NOW_S), Taken::Changed);
        assert!(records.is_banned(&target, NOW_S), "the founder before a moderator");
    }
}

#[test]
fn a_moderator_cannot_take_over_whom_the_founder_named() {
    const NOW_S: u64 = 1_700_000_000;
    let pair = |byte| sign::Pair::new(&Secret::new([byte; 32]));
    let (founder, moderator, member, thief) = (pair(1), pair(2), pair(3), pair(4));
    let group = GroupId(founder.public());
    let client = ClientId(boxes::public(&Secret::new([5; 32])));
    let cert = |by: &sign::Pair, of: &sign::Pair, not_before_s| {
        let (grade, not_after_s, issuer) = (Grade::User, NOW_S + 900, SigPk([0; 32]));
        let sig_pk = SigPk(of.public());
        Record::Cert(
            Cert { group, client, sig_pk, grade, not_before_s, not_after_s, issuer, signature: [0; 64] }.signed(by),
        )
    };
    let state = State {
        group,
        version: 1,
        time_s: NOW_S,
        open: false,
        open_topic: false,
        voice: Voice::All,
        peers_max: 0,
        name: String::new(),
        moderators: vec![SigPk(moderator.public())],
        signature: [0; 64],
    };
    let mut records = Records::new(group);
    assert_eq!(records.take(&Record::State(state.signed(&founder)), NOW_S), Taken::Changed);
    assert_eq!(records.take(&cert(&moderator, &member, NOW_S), NOW_S), Taken::Changed);
    assert_eq!(records.take(&cert(&moderator, &thief, NOW_S + 5), NOW_S), Taken::Known, "the earlier one stays");
    assert_eq!(records.take(&cert(&founder, &member, NOW_S), NOW_S), Taken::Changed, "the founder's is stronger");
    assert_eq!(records.take(&cert(&moderator, &thief, NOW_S - 5), NOW_S), Taken::Known);
    assert_eq!(records.take(&cert(&founder, &member, NOW_S + 601), NOW_S), Taken::Refused, "from the future");
    assert_eq!(records.take(&cert(&thief, &thief, NOW_S), NOW_S), Taken::Refused);
    assert_eq!(records.cert(&client, NOW_S).unwrap().sig_pk, SigPk(member.public()));
    assert_eq!(records.role(&client, NOW_S + 900), None, "its time is over");
}

#[test]
fn a_group_with_many_records_is_joined_also_where_packets_get_lost() {
    for loss in [0, 5] {
        let mut world = World::new(30, Mode::Signed);
        let hub = world.hub();
        let past = world.certificates(600);
        world.peers[hub].saved.extend(past.into_iter().map(Save::Record));
        world.restart(hub);
        world.loss = loss;
        let (one, two) = (world.member(hub), world.member(hub));
        world.pass(60 * SECOND);
        let now_s = world.now.wall_ms / 1_000;
        let digests = [hub, one, two].map(|n| world.peers[n].group.records().digest(now_s));
        assert!(digests.iter().all(|digest| *digest == digests[0]), "all 600 came, with {loss} % lost");
        world.loss = 0;
        world.some_speak(&[hub, one, two]);
    }
}

#[test]
fn who_comes_and_goes_pushes_out_no_certificate_of_who_is_here() {
    let mut world = World::new(31, Mode::Signed);
    let hub = world.hub();
    let (member, away) = (world.member(hub), world.member(hub));
    let now_s = world.now.wall_ms / 1_000;
    let [hub, member, away] = [hub, member, away].map(|n| world.peers[n].id());
    let held = world.peers[0].group.records().held(now_s);
    world.now = world.now.plus(5_000 * SECOND);
    let now_s = world.now.wall_ms / 1_000;
    let past = world.certificates(2_100);
    let mut records = Records::new(world.id);
    let here = |id: &ClientId| *id == member;
    for record in held.iter().chain(&past) {
        assert_eq!(records.take_among(record, now_s, here), Taken::Changed);
    }
    assert_eq!(records.role(&hub, now_s), Some(Role::Founder));
    assert_eq!(records.role(&member, now_s), Some(Role::User));
    assert_eq!(records.role(&away, now_s), None, "the oldest of nobody");
    assert_eq!(records.certs(now_s).count(), 2_048);
    // What would be the next to go changes nothing, so it is not passed on.
    assert_eq!(records.take_among(&past[0], now_s, here), Taken::Refused);
}

#[test]
fn those_without_a_socket_join_no_faster_than_others() {
    let mut world = World::new(32, Mode::Signed);
    let hub = world.hub();
    let join = |byte: u8| {
        Command::AddVirtual(
            Box::new(Own::new(Secret::new([byte; 32]), Some(sign::Pair::new(&Secret::new([byte; 32]))), 0, "thin")),
            None,
        )
    };
    let joined = (1..100).filter(|byte| world.say(hub, join(*byte)) == Ok(())).count();
    assert_eq!(joined, 31);
    world.pass(5 * SECOND);
    assert_eq!((100..200).filter(|byte| world.say(hub, join(*byte)) == Ok(())).count(), 4);
}

#[test]
fn whose_certificate_ran_out_while_the_hub_was_off_gets_a_new_one() {
    let mut world = World::new(33, Mode::Signed);
    let hub = world.hub();
    let thin = || Own::new(Secret::new([7; 32]), Some(sign::Pair::new(&Secret::new([8; 32]))), 64, "thin");
    let by = thin().id();
    world.say(hub, Command::AddVirtual(Box::new(thin()), None)).unwrap();
    world.now = world.now.plus(31 * 86_400 * SECOND);
    world.restart(hub);
    world.say(hub, Command::RestoreVirtual(Box::new(thin()))).unwrap();
    world.pass(35 * SECOND);
    let member = world.member(hub);
    world.say(hub, Command::Say { by, text: "still here".into(), action: false }).unwrap();
    world.pass(SECOND);
    assert!(world.peers[member].heard().contains(&(by, "still here".into())));
    world.some_speak(&[hub, member]);
}

#[test]
fn nobody_is_a_member_again_by_what_others_send_in_their_name() {
    let mut world = world(34);
    let id = world.peers[1].id();
    let asked = world.boxed(1, 0, &Request::GetNodes([3; 8]));
    world.say(1, Command::Leave(id)).unwrap();
    let (off, at) = (1, world.peers[1].at);
    world.peers[off].off = true;
    world.pass(200 * SECOND);
    // Their question, played back; a box that does not open; an envelope that they did not sign.
    let mut garbage = asked.clone();
    *garbage.last_mut().unwrap() ^= 1;
    for packet in [&garbage, &asked] {
        world.inject(0, at, packet);
        assert!(!world.peers[0].knows(id));
    }
    let mut forged = world.signed(2, 5_000, world.now.wall_ms, &text("I am back"));
    forged.origin = id;
    world.broadcast(2, 3, &forged);
    assert!(!world.peers[3].knows(id) && world.peers[3].events.contains(&Event::Dropped(Dropped::Forged)));
    // They themselves are, by what they say.
    world.peers[off].off = false;
    world.text(1, "I am back");
    world.pass(15 * SECOND);
    assert!(world.peers[0].knows(id) && world.peers[3].knows(id));
}

#[test]
fn a_restart_forgets_neither_who_was_welcomed_nor_what_was_said() {
    let mut world = world(35);
    let credential = world.invitation(0, 1);
    let late = world.peer(rules(), None);
    assert_eq!(world.enter(late, 0, Some(credential.clone())), Ok(()));
    let before = world.signed(3, 4_000, world.now.wall_ms, &text("once"));
    world.broadcast(2, 0, &before);
    assert_eq!(world.peers[0].heard().iter().filter(|(_, text)| text == "once").count(), 1);
    world.pass(120 * SECOND);
    world.restart(0);
    world.pass(15 * SECOND);
    world.broadcast(2, 0, &before);
    assert!(!world.peers[0].heard().iter().any(|(_, text)| text == "once"), "not once more");
    assert_eq!(world.enter(late, 0, Some(credential)), Ok(()), "whose answer got lost with the restart");
    world.some_speak(&[0, 1, late]);

    // Who left is remembered for as long as anything they said could be played back.
    let id = world.peers[1].id();
    world.say(1, Command::Leave(id)).unwrap();
    world.peers[1].off = true;
    world.pass(SECOND);
    world.restart(0);
    let forged = world.signed(1, 9_000, world.now.wall_ms, &text("a ghost"));
    world.broadcast(2, 0, &forged);
    assert!(!world.peers[0].knows(id));
}

#[test]
fn a_ban_said_again_is_not_forgotten_with_the_first_one() {
    let mut world = World::new(36, Mode::Signed);
    let hub = world.hub();
    let founder = world.peers[hub].id();
    let target = |byte| ClientId([byte; 32]);
    for byte in (1..=65).chain([1]) {
        world.pass(SECOND);
        world.say(hub, sanction(founder, target(byte), Verdict::Ban, None)).unwrap();
    }
    world.pass(40 * SECOND);
    let now_s = world.now.wall_ms / 1_000;
    let banned = |world: &World, byte| world.peers[0].group.records().is_banned(&target(byte), now_s);
    assert!(banned(&world, 1) && !banned(&world, 2), "64 of one issuer");
    world.restart(hub);
    assert!(banned(&world, 1) && !banned(&world, 2));
}

#[test]
fn the_number_of_2014_means_nothing_in_an_envelope() {
    let mut world = world(37);
    let pair = sign::Pair::new(&Secret::new(world.peers[1].seed.unwrap()));
    let (origin, number, time_ms) = (world.peers[1].id(), 700, world.now.wall_ms);
    let old = (MessageId::ACTION_2014, b"waves".to_vec());
    let payload = Signed::issue(&pair, &world.id, &origin, number, time_ms, old).encode();
    world.broadcast(1, 3, &Broadcast { origin, number, id: MessageId::SIGNED, payload });
    assert_eq!(world.peers[3].events.pop(), Some(Event::Dropped(Dropped::NotAllowed)));
}
