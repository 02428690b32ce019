//! Groups of all sizes on a seeded net (spec 12): whether everybody hears everybody, and what that costs.
//!
//! In CI up to 50 peers. `cargo test --profile proof --test toxgroup -- --ignored --nocapture figures` does the same with up to 300 (or with as
//! many as `HELIOSTAT_TOX_PEERS` says), asserts the same, and prints the table of `docs/toxgroup.md`.

use std::time::Duration;

use heliostat::chat::toxgroup::state::{Command, Event, Mode, Rules};

use super::world::{World, rules};

pub const CLASSIC: Mode = Mode::Classic { owner: None, topic_lock: false };
const MINUTE: Duration = Duration::from_secs(60);

/// A group without a hub: each newcomer knows one who is in, and one comes each second.
fn mesh(seed: u64, peers: usize, first: impl Fn(usize) -> Option<u8>) -> World {
    mesh_within(seed, peers, Duration::from_secs(1), first)
}

fn mesh_within(seed: u64, peers: usize, pause: Duration, first: impl Fn(usize) -> Option<u8>) -> World {
    let mut world = World::new(seed, CLASSIC);
    let mut dice = fastrand::Rng::with_seed(seed);
    for n in 0..peers {
        world.peer(rules(), first(n));
        if n > 0 {
            world.introduce(dice.usize(0..n), n);
        }
        world.pass(pause);
    }
    // Whoever was not told of in time says that it is there.
    world.pass(MINUTE);
    world
}

/// A signed group: all come in by its hub, and then each has neighbours of its own.
fn signed(seed: u64, peers: usize) -> World {
    let mut world = World::new(seed, Mode::Signed);
    let hub = world.hub();
    let credential = world.invitation(hub, 1_000);
    for _ in 1..peers {
        let n = world.peer(rules(), None);
        let (id, at) = (world.peers[hub].id(), world.peers[hub].at);
        world.say(n, Command::Enter { hub: id, at, credential: Some(credential.clone()) }).unwrap();
        // The pace at which a hub lets in.
        world.pass(Duration::from_millis(1_200));
    }
    world.pass(MINUTE);
    for peer in &world.peers[1..] {
        assert!(peer.events.contains(&Event::Entered), "{:?}", peer.events);
    }
    world
}

#[test]
fn without_loss_everybody_hears_everybody() {
    for peers in [2, 7, 8, 16] {
        let mut world = mesh(peers as u64, peers, |_| None);
        let (heard, pairs) = world.everybody_speaks();
        assert_eq!(heard, pairs, "{peers} peers");
    }
}

#[test]
fn fifty_hang_together_where_the_six_nearest_alone_would_not() {
    let mut world = mesh_within(50, 50, Duration::from_millis(250), |_| None);
    for peer in &world.peers {
        assert_eq!(peer.group.members().len(), 50);
        // Six are chosen; of those who keep somebody, twelve at most have a place, and hardly anybody is chosen by so many.
        assert!(peer.group.neighbour_ids().len() <= 18, "floods go to few");
        let id = peer.id();
        assert!(world.peers.iter().any(|it| it.group.neighbour_ids().contains(&id)), "and somebody keeps everybody");
    }
    let neighbours: usize = world.peers.iter().map(|peer| peer.group.neighbour_ids().len()).sum();
    assert!(neighbours < 50 * 10, "places are not held by those who were neighbours once: {neighbours}");
    world.some_speak(&[0, 13, 26, 39, 49]);
}

#[test]
fn a_signed_group_hangs_together_and_stands_loss() {
    let mut world = signed(12, 16);
    let (heard, pairs) = world.everybody_speaks();
    assert_eq!(heard, pairs);
    world.loss = 5;
    let (heard, pairs) = world.everybody_speaks();
    assert!(heard * 100 >= pairs * 99, "{heard} of {pairs}");
}

#[test]
fn with_one_packet_in_twenty_lost_nearly_everything_arrives() {
    let mut world = mesh_within(5, 50, Duration::from_millis(250), |_| None);
    world.loss = 5;
    world.pass(MINUTE / 2);
    let (heard, pairs) = world.all_hear(&[0, 9, 18, 27, 36, 45]);
    assert!(heard * 100 >= pairs * 99, "{heard} of {pairs}");
}

#[test]
fn two_clusters_of_keys_stay_one_group() {
    let mut world = mesh(6, 16, |n| Some(if n % 2 == 0 { 0x10 } else { 0x60 }));
    world.pass(2 * MINUTE);
    let (heard, pairs) = world.everybody_speaks();
    assert_eq!(heard, pairs);
}

#[test]
fn who_leaves_is_no_ghost_and_who_is_silent_expires() {
    let mut world = mesh(7, 8, |_| None);
    let (leaver, silent) = (world.peers[3].id(), world.peers[5].id());
    world.say(3, Command::Leave(leaver)).unwrap();
    world.peers[3].off = true;
    world.pass(Duration::from_secs(15));
    for _ in 0..20 {
        world.pass(Duration::from_secs(10));
        for peer in world.peers.iter().filter(|peer| !peer.off) {
            assert!(!peer.knows(leaver), "gone, and not named again by those who did not hear of it yet");
        }
    }
    world.peers[5].off = true;
    // It said something a minute before at most.
    world.pass(Duration::from_secs(80));
    assert!(world.peers[0].knows(silent), "a silence is no farewell");
    world.pass(Duration::from_secs(75));
    assert!(world.peers.iter().filter(|peer| !peer.off).all(|peer| !peer.knows(silent)));
}

#[test]
fn a_restart_keeps_the_counter_valid_and_a_lost_minute_mutes_nobody() {
    let mut world = mesh(8, 7, |_| None);
    for _ in 0..3 {
        world.everybody_speaks();
        // All that was promised to the disk, and nothing else.
        world.restart(2);
        let (id, at) = (world.peers[0].id(), world.peers[0].at);
        world.say(2, Command::AddPeer(id, Some(at))).unwrap();
        world.pass(Duration::from_secs(40));
        let (heard, pairs) = world.everybody_speaks();
        assert_eq!(heard, pairs);
    }
}

#[test]
fn a_partition_heals() {
    for (away, seed) in [(Duration::from_secs(90), 9), (Duration::from_secs(400), 10)] {
        let mut world = mesh(seed, 12, |_| None);
        world.cut = Some(6);
        for n in [1, 8] {
            world.pass(away / 2);
            world.text(n, "is anybody there?");
        }
        world.cut = None;
        world.pass(3 * MINUTE);
        let (heard, pairs) = world.everybody_speaks();
        assert_eq!(heard, pairs, "after {away:?}");
    }
}

#[test]
fn a_hub_holds_together_those_who_know_nobody_else() {
    let mut world = World::new(11, CLASSIC);
    let hub = world.hub();
    for _ in 0..20 {
        let n = world.peer(Rules { datagrams: false, ..rules() }, None);
        let (id, at) = (world.peers[n].id(), world.peers[n].at);
        world.say(hub, Command::AddPeer(id, None)).unwrap();
        let (id, hub_at) = (world.peers[hub].id(), world.peers[hub].at);
        world.say(n, Command::Enter { hub: id, at: hub_at, credential: None }).unwrap();
        assert_ne!(at, hub_at);
        world.pass(Duration::from_secs(2));
        assert!(world.peers[n].events.contains(&Event::Entered));
    }
    let (heard, pairs) = world.everybody_speaks();
    assert_eq!(heard, pairs);
    assert_eq!(world.peers[hub].group.neighbours(), 20);
    assert!(world.peers[1..].iter().all(|peer| peer.group.neighbours() == 1), "and ignore where others are");
    // The hub goes, and comes back with what it saved.
    world.peers[hub].off = true;
    world.pass(Duration::from_secs(45));
    world.restart(hub);
    world.peers[hub].off = false;
    world.pass(Duration::from_secs(30));
    let (heard, pairs) = world.everybody_speaks();
    assert_eq!(heard, pairs);
}

/// The largest size in a moment: nobody has a name, so that what there is to send is mostly what somebody hears.
#[test]
#[ignore = "minutes"]
fn three_hundred_that_came_within_a_minute_hear_everything() {
    let mut world = World::new(300, CLASSIC);
    let mut dice = fastrand::Rng::with_seed(300);
    for n in 0..300 {
        world.nameless(rules());
        if n > 0 {
            world.introduce(dice.usize(0..n), n);
        }
        world.pass(Duration::from_millis(200));
    }
    world.pass(MINUTE);
    let neighbours: usize = world.peers.iter().map(|peer| peer.group.neighbour_ids().len()).sum();
    let kept = |id| world.peers.iter().any(|it| it.group.neighbour_ids().contains(&id));
    let alone = world.peers.iter().filter(|peer| !kept(peer.id())).count();
    let (heard, pairs) = world.all_hear(&[0, 60, 150, 299]);
    println!("{heard} of {pairs}, {:.1} neighbours each, {alone} kept by nobody", neighbours as f64 / 300.0);
    assert_eq!(heard, pairs);
    world.loss = 5;
    let (heard, pairs) = world.all_hear(&[30, 90, 180, 298]);
    println!("{heard} of {pairs} with 5 % lost");
    assert!(heard * 100 >= pairs * 99);
}

/// Asserts what spec 12 asks for, at all of its sizes.
#[test]
#[ignore = "minutes, with optimisation: prints the figures of docs/toxgroup.md"]
fn figures() {
    println!(
        "| group | peers | loss | pairs that heard | neighbours | packets per peer in the half second of a text |"
    );
    println!("|---|---|---|---|---|---|");
    let chosen = std::env::var("HELIOSTAT_TOX_PEERS").ok().map(|it| vec![it.parse().unwrap()]);
    for peers in chosen.unwrap_or_else(|| vec![2, 7, 8, 16, 50, 100, 300]) {
        for kind in ["without a hub", "signed, with a hub"] {
            let seed = 1_000 + peers as u64;
            let mut world = if kind == "without a hub" { mesh(seed, peers, |_| None) } else { signed(seed, peers) };
            for loss in [0, 5] {
                world.loss = loss;
                world.pass(MINUTE);
                let neighbours: usize = world.peers.iter().map(|peer| peer.group.neighbour_ids().len()).sum();
                let before: usize = world.peers.iter().map(|peer| peer.sent).sum();
                world.text(0, "how many copies?");
                // No ping of anybody would fit into this moment more often than into any other.
                world.pass(Duration::from_millis(500));
                let copies = world.peers.iter().map(|peer| peer.sent).sum::<usize>() - before;
                // Of many, every fifth says something.
                let speakers: Vec<_> = (0..peers).step_by(if peers > 50 { 5 } else { 1 }).collect();
                let (heard, pairs) = world.all_hear(&speakers);
                println!(
                    "| {kind} | {peers} | {loss} % | {:.2} % | {:.1} | {:.1} |",
                    100.0 * heard as f64 / pairs as f64,
                    neighbours as f64 / peers as f64,
                    copies as f64 / peers as f64,
                );
                assert!(heard * 100 >= pairs * if loss == 0 { 100 } else { 99 }, "{heard} of {pairs}");
            }
        }
    }
}
