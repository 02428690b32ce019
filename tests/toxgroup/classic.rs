//! Classic groups (spec 2 to 7): what anybody can do, and what nobody can.

use std::time::Duration;

use heliostat::chat::toxgroup::state::{
    Command, Dropped, Endpoint, Event, Input, Mode, NodeFormat, Own, Refused, Rules, Save, Why,
};
use heliostat::chat::toxgroup::wire::record::Verdict;
use heliostat::chat::toxgroup::wire::{Broadcast, ClientId, Dialect, Message, MessageId, Node, Nodes, Request};
use heliostat::crypto::Secret;

use super::simulation::CLASSIC;
use super::world::{World, rules};

const SECOND: Duration = Duration::from_secs(1);

/// So many who all know each other.
fn acquainted(peers: usize, mode: Mode) -> World {
    let mut world = World::new(1, mode);
    for n in 0..peers {
        world.peer(rules(), None);
        for other in 0..n {
            world.introduce(other, n);
        }
        world.pass(2 * SECOND);
    }
    world.pass(10 * SECOND);
    world.peers.iter_mut().for_each(|peer| peer.events.clear());
    world
}

fn said(world: &World, by: usize, number: u32, message: &Message) -> Broadcast {
    let (id, payload) = message.encode(MessageId::ACTION);
    Broadcast { origin: world.peers[by].id(), number, id, payload }
}

fn text(text: &str) -> Message {
    Message::Text { text: text.into(), action: false }
}

#[test]
fn names_presence_topics_and_actions_reach_everybody() {
    let mut world = acquainted(4, CLASSIC);
    let by = world.peers[1].id();
    world.say(1, Command::Rename(by, "Ada".into())).unwrap();
    world.say(1, Command::SetTopic(by, "engines".into())).unwrap();
    world.say(1, Command::Say { by, text: "waves".into(), action: true }).unwrap();
    world.pass(12 * SECOND);
    for n in [0, 2, 3] {
        let peer = &world.peers[n];
        assert_eq!(peer.group.topic(), "engines");
        assert!(peer.group.members().iter().any(|it| it.id == by && it.name == "Ada" && it.direct));
        assert!(peer.events.contains(&Event::Said { by, text: "waves".into(), action: true }));
    }
    let other = world.peers[2].id();
    world.say(2, Command::Rename(other, "Ada".into())).unwrap();
    world.pass(12 * SECOND);
    let names: Vec<_> = world.peers[0].group.members().into_iter().map(|it| it.name).collect();
    assert!(names.contains(&format!("Ada#{}", by.short())) && names.contains(&format!("Ada#{}", other.short())));
}

#[test]
fn a_long_text_goes_out_in_parts_at_the_pace_others_listen_at() {
    let mut world = acquainted(2, CLASSIC);
    let text = "0123456789".repeat(700);
    world.text(0, &text);
    world.pass(SECOND);
    assert_eq!(world.peers[1].heard().len(), 4, "a burst, and then");
    world.pass(6 * SECOND);
    assert_eq!(world.peers[1].heard().len(), 4, "the rest");
}

#[test]
fn who_says_too_much_is_neither_heard_nor_passed_on() {
    let mut world = acquainted(3, CLASSIC);
    for number in 1_000..1_020 {
        let broadcast = said(&world, 0, number, &text("spam"));
        world.broadcast(0, 1, &broadcast);
    }
    world.pass(SECOND);
    assert_eq!(world.peers[1].events.iter().filter(|it| matches!(it, Event::Said { .. })).count(), 0, "too far ahead");
    for number in 20..50 {
        let broadcast = said(&world, 0, number, &text("spam"));
        world.broadcast(0, 1, &broadcast);
    }
    world.pass(SECOND);
    assert_eq!(world.peers[1].heard().len(), 5);
    assert_eq!(world.peers[2].heard().len(), 5);
}

#[test]
fn only_the_owner_bans_and_only_directly() {
    let mut world = World::new(3, CLASSIC);
    let first = world.peer(rules(), None);
    let owner = world.peers[first].id();
    let mut world = {
        // The owner's key is part of how the group is kept, so it has to be known before.
        let mut again = World::new(3, Mode::Classic { owner: Some(owner), topic_lock: true });
        for n in 0..4 {
            again.peer(rules(), None);
            for other in 0..n {
                again.introduce(other, n);
            }
            again.pass(2 * SECOND);
        }
        again
    };
    assert_eq!(world.peers[0].id(), owner);
    let [one, two, target] = [1, 2, 3].map(|n| world.peers[n].id());
    let ban = |by, target| Command::Sanction { by, target, verdict: Verdict::Ban, for_s: None, reason: String::new() };
    world.say(1, ban(one, two)).unwrap();
    world.pass(SECOND);
    assert!(world.peers[3].events.contains(&Event::BanAsked { by: one, target: two }));
    assert!(world.peers.iter().all(|peer| peer.group.me().id() == two || peer.knows(two)), "asked, not done");
    // Claimed by somebody else to come from the owner.
    let forged = said(&world, 0, 40, &Message::Ban(two));
    world.broadcast(1, 3, &forged);
    assert!(world.peers[3].knows(two));
    assert!(world.say(1, Command::SetTopic(one, "mine".into())).is_err(), "locked");
    assert!(world.say(0, ban(owner, owner)).is_err());

    world.say(0, ban(owner, target)).unwrap();
    world.pass(SECOND);
    for n in 0..3 {
        assert!(world.peers[n].events.contains(&Event::Left(target, Why::Banned)), "peer {n}");
    }
    world.peers.iter_mut().for_each(|peer| peer.events.clear());
    world.text(3, "I am still here");
    world.pass(200 * SECOND);
    for n in 0..3 {
        assert!(!world.peers[n].knows(target) && world.peers[n].heard().is_empty(), "peer {n}");
    }
}

#[test]
fn a_farewell_said_by_others_is_not_believed_of_who_is_there() {
    let mut world = acquainted(3, CLASSIC);
    let there = world.peers[2].id();
    let forged = said(&world, 2, 40, &Message::Quit);
    world.broadcast(0, 1, &forged);
    assert!(world.peers[1].knows(there));
    world.pass(30 * SECOND);
    assert!(world.peers[1].knows(there), "it was asked, and answered");
    world.peers[2].off = true;
    world.pass(10 * SECOND);
    let forged = said(&world, 2, 44, &Message::Quit);
    world.broadcast(0, 1, &forged);
    world.pass(20 * SECOND);
    assert!(!world.peers[1].knows(there), "it was asked, and did not");
}

#[test]
fn strangers_and_those_who_claim_a_key_get_nothing() {
    let mut world = acquainted(3, CLASSIC);
    let stranger = world.peer(rules(), None);
    let ask = world.boxed(stranger, 0, &Request::GetNodes([7; 8]));
    let from = world.peers[stranger].at;
    let sent = world.peers[0].sent;
    world.inject(0, from, &ask);
    assert_eq!(world.peers[0].events.pop(), Some(Event::Dropped(Dropped::Stranger)));
    assert_eq!(world.peers[0].sent, sent, "not even an answer");

    // Garbage under somebody's name from elsewhere does not make them ignored.
    let mut garbage = world.boxed(1, 0, &Request::GetNodes([8; 8]));
    *garbage.last_mut().unwrap() ^= 1;
    for _ in 0..300 {
        world.inject(0, from, &garbage);
    }
    world.peers[0].events.clear();
    world.text(1, "it was not me");
    world.pass(SECOND);
    assert_eq!(world.peers[0].heard().len(), 1);

    // A packet of theirs, played back from elsewhere, does not move them there.
    let replayed = world.boxed(1, 0, &Request::GetNodes([9; 8]));
    world.inject(0, from, &replayed);
    let id = world.peers[1].id();
    world.peers[stranger].events.clear();
    world.text(0, "a secret");
    world.pass(SECOND);
    assert!(world.peers[1].heard().iter().any(|(_, text)| text == "a secret"));
    assert!(world.peers[0].group.neighbour_ids().contains(&id) && !world.peers[0].group.is_verified(from));
    assert!(world.peers[stranger].heard().is_empty());
}

#[test]
fn a_neighbour_that_sends_garbage_is_ignored_for_a_while() {
    let mut world = acquainted(3, CLASSIC);
    let mut garbage = world.boxed(1, 0, &Request::GetNodes([8; 8]));
    *garbage.last_mut().unwrap() ^= 1;
    let from = world.peers[1].at;
    for _ in 0..150 {
        world.inject(0, from, &garbage);
    }
    world.peers[0].events.clear();
    let broadcast = said(&world, 1, 30, &text("hello"));
    world.broadcast(1, 0, &broadcast);
    assert!(world.peers[0].heard().is_empty());
    world.pass(61 * SECOND);
    let broadcast = said(&world, 1, 60, &text("hello"));
    world.broadcast(1, 0, &broadcast);
    assert_eq!(world.peers[0].heard().len(), 1);
}

#[test]
fn a_neighbours_own_dialect_is_spoken_once_it_is_known() {
    for dialect in [Dialect::N40, Dialect::N51, Dialect::N56] {
        let mut world = World::new(4, CLASSIC);
        world.peer(Rules { node_format: NodeFormat::Auto, ..rules() }, None);
        for n in 1..4 {
            world.peer(Rules { node_format: NodeFormat::Fixed(dialect), ..rules() }, None);
            for other in 0..n {
                world.introduce(other, n);
            }
            world.pass(2 * SECOND);
        }
        world.pass(30 * SECOND);
        // What it is answered with now tells how it was heard to speak.
        let ask = world.boxed(1, 0, &Request::GetNodes([1; 8]));
        let from = world.peers[1].at;
        let step = world.peers[0].group.handle(world.now, Input::Packet(from, &ask));
        let lens: Vec<_> = step.sends.iter().map(|(_, packet)| packet.len()).collect();
        assert!(lens.contains(&(114 + 2 * dialect.size())), "{dialect:?}: {lens:?}");
    }
}

#[test]
fn private_addresses_are_not_believed_from_public_ones() {
    let mut world = World::new(5, CLASSIC);
    let (a, b, c) = (world.peer(rules(), None), world.peer(rules(), None), world.peer(rules(), None));
    let public = Endpoint::Udp("198.51.100.7:33445".parse().unwrap());
    let id = world.peers[b].id();
    world.say(a, Command::AddPeer(id, None)).unwrap();
    // It asks, is asked back, and answers with where others are.
    let node = |address: &str| Node { id: world.peers[c].id(), address: address.parse().unwrap() };
    // Nor from a stream, which does not say where somebody is.
    let stream = Endpoint::Stream(1, [10, 0, 0, 9].into());
    for (public, list, believed) in [
        (public, node("10.0.0.3:1"), false),
        (public, node("203.0.113.9:1"), true),
        (stream, node("127.0.0.1:1"), false),
        (stream, node("203.0.113.8:1"), true),
    ] {
        let ask = world.boxed(b, a, &Request::GetNodes([1; 8]));
        let step = world.peers[a].group.handle(world.now, Input::Packet(public, &ask));
        let (_, question) = step.sends.last().unwrap();
        let sealed = heliostat::chat::toxgroup::wire::Sealed::read(question).unwrap();
        let key = heliostat::crypto::boxes::beforenm(
            &heliostat::crypto::Secret::new(world.peers[b].secret),
            &world.peers[a].id().0,
        );
        let plain = sealed.open(&key.unwrap()).unwrap();
        let Ok(Request::GetNodes(ping_id)) = Request::decode(&plain) else { panic!("it asks back") };
        let answer = world.boxed(b, a, &Request::SendNodes(ping_id, Nodes::new(Dialect::N40, [list])));
        let step = world.peers[a].group.handle(world.now, Input::Packet(public, &answer));
        assert_eq!(step.sends.iter().any(|(to, _)| *to == Endpoint::Udp(list.address)), believed, "{list:?}");
        world.now = world.now.plus(40 * SECOND);
    }
}

#[test]
fn a_question_played_back_again_and_again_cuts_nobody_off() {
    let mut world = acquainted(2, CLASSIC);
    let stranger = world.peer(rules(), None);
    let elsewhere = world.peers[stranger].at;
    let captured = world.boxed(1, 0, &Request::GetNodes([9; 8]));
    for second in 0..120 {
        for _ in 0..4 {
            world.inject(0, elsewhere, &captured);
        }
        world.pass(SECOND);
        let id = world.peers[1].id();
        assert!(world.peers[0].group.neighbour_ids().contains(&id), "after {second} s");
    }
    world.peers[1].events.clear();
    world.text(0, "are you there?");
    world.pass(SECOND);
    assert_eq!(world.peers[1].heard().len(), 1);
    assert!(!world.peers[0].group.is_verified(elsewhere));
}

#[test]
fn one_member_cannot_make_others_ignore_the_hub() {
    let mut world = World::with_owner(20);
    for _ in 0..2 {
        let n = world.peer(rules(), None);
        let credential = world.invitation(0, 1);
        assert_eq!(world.enter(n, 0, Some(credential)), Ok(()));
    }
    let thin = Own::new(Secret::new([7; 32]), None, 0, "thin");
    let by = thin.id();
    world.say(0, Command::AddVirtual(Box::new(thin), None)).unwrap();
    world.pass(2 * SECOND);
    let mut busy = 0;
    for n in 0..300 {
        let target = world.peers[2].id();
        let ban = Command::Sanction { by, target, verdict: Verdict::Ban, for_s: None, reason: String::new() };
        busy += usize::from(world.say(0, ban) == Err(Refused::Busy));
        if n % 10 == 0 {
            world.pass(SECOND);
        }
    }
    assert!(busy > 200, "{busy}");
    let asked = world.peers[1].events.iter().filter(|it| matches!(it, Event::BanAsked { .. })).count();
    assert!(asked > 20 && asked + busy == 300, "what goes out is believed: {asked}");
    world.some_speak(&[0, 2]);
}

#[test]
fn a_class_that_joins_at_once_is_known_to_everybody() {
    let mut world = World::with_owner(21);
    let credential = world.invitation(0, 40);
    let first = world.peer(rules(), None);
    assert_eq!(world.enter(first, 0, Some(credential.clone())), Ok(()));
    let (id, at) = (world.peers[0].id(), world.peers[0].at);
    for _ in 0..38 {
        let n = world.peer(rules(), None);
        world.say(n, Command::Enter { hub: id, at, credential: Some(credential.clone()) }).unwrap();
    }
    world.pass(20 * SECOND);
    assert!(world.peers[2..].iter().all(|peer| peer.events.contains(&Event::Entered)));
    let joined = world.peers[first].events.iter().filter(|it| matches!(it, Event::Joined(_))).count();
    assert_eq!(joined, 39, "the hub, and the others");
    assert_eq!(world.peers[0].group.neighbours(), 39);
}

#[test]
fn one_flooding_source_keeps_nobody_from_joining_or_coming_back() {
    let mut world = World::with_owner(22);
    let member = world.peer(rules(), None);
    let credential = world.invitation(0, 2);
    assert_eq!(world.enter(member, 0, Some(credential.clone())), Ok(()));
    let newcomer = world.peer(rules(), None);
    let mut garbage = world.boxed(member, 0, &Request::GetNodes([1; 8]));
    *garbage.last_mut().unwrap() ^= 1;
    let mut unknown = garbage.clone();
    let (id, at) = (world.peers[0].id(), world.peers[0].at);
    world.say(newcomer, Command::Enter { hub: id, at, credential: Some(credential) }).unwrap();
    // One address: a new connection for each packet, in the name of a member and of nobody.
    for n in 0..60_u64 {
        for m in 0..60_u8 {
            unknown[33] = m;
            unknown[34] = n as u8;
            let from = Endpoint::Stream(n * 100 + u64::from(m), [192, 0, 2, 1].into());
            world.inject(0, from, &unknown);
            world.inject(0, from, &garbage);
        }
        // The member has another address from now on.
        if n == 20 {
            world.moves(member);
        }
        world.pass(SECOND / 2);
    }
    assert!(world.peers[newcomer].events.contains(&Event::Entered), "{:?}", world.peers[newcomer].events);
    assert_eq!(world.peers[0].group.neighbours(), 2);
    world.some_speak(&[0, 1, 2]);
}

#[test]
fn whoever_was_here_is_no_ghost_after_a_restart_and_takes_no_place() {
    let mut world = World::with_owner(23);
    let member = world.peer(rules(), None);
    let credential = world.invitation(0, 9);
    assert_eq!(world.enter(member, 0, Some(credential.clone())), Ok(()));
    let thin = |bound| Own::new(Secret::new([7; 32]), None, bound, "thin");
    let by = thin(0).id();
    world.say(0, Command::AddVirtual(Box::new(thin(0)), None)).unwrap();
    world.pass(SECOND);
    for n in 0..600_u32 {
        let mut id = [1; 32];
        id[..4].copy_from_slice(&n.to_be_bytes());
        let address = Some(std::net::SocketAddr::from(([10, 9, (n >> 8) as u8, n as u8], 9)));
        world.peers[0].saved.push(Save::Member(ClientId(id), "past".into(), address));
    }
    world.restart(0);
    world.say(0, Command::RestoreVirtual(Box::new(thin(32)))).unwrap();
    assert_eq!(world.peers[0].group.size(), 2, "the hub, and who sits here");
    world.pass(45 * SECOND);
    assert_eq!(world.peers[0].group.size(), 3, "who answered is back");
    let newcomer = world.peer(rules(), None);
    assert_eq!(world.enter(newcomer, 0, Some(credential)), Ok(()));
    world.say(0, Command::Say { by, text: "nobody has to wait".into(), action: false }).unwrap();
    world.pass(SECOND);
    for n in [member, newcomer] {
        assert!(world.peers[n].heard().contains(&(by, "nobody has to wait".into())), "{n}");
    }
}

#[test]
fn who_talks_much_on_a_hub_keeps_nobody_else_from_talking() {
    let mut world = World::with_owner(24);
    let [one, two] = [7, 8].map(|byte| {
        let thin = Own::new(Secret::new([byte; 32]), None, 0, "thin");
        let id = thin.id();
        world.say(0, Command::AddVirtual(Box::new(thin), None)).unwrap();
        id
    });
    let long = |by| Command::Say { by, text: "x".repeat(880 * 14), action: false };
    while world.say(0, long(one)).is_ok() {}
    assert_eq!(world.say(0, Command::Say { by: two, text: "and I?".into(), action: false }), Ok(()));
    assert!(world.peers[0].heard().contains(&(two, "and I?".into())));
}

#[test]
fn an_honest_hop_does_not_pay_for_what_others_say_too_much() {
    let mut world = acquainted(3, CLASSIC);
    for round in 1..40_u32 {
        for who in 0..10_u8 {
            let (id, payload) = text("spam").encode(MessageId::ACTION);
            let broadcast = Broadcast { origin: ClientId([who + 1; 32]), number: round, id, payload };
            world.broadcast(1, 0, &broadcast);
        }
    }
    world.peers[0].events.clear();
    world.pass(4 * SECOND);
    world.text(1, "it was not me");
    world.pass(SECOND);
    let by = world.peers[1].id();
    assert!(world.peers[0].heard().contains(&(by, "it was not me".into())));
}
