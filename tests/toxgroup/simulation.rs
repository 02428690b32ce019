//! Groups of all sizes on a seeded net (spec 12): whether everybody hears everybody, and what that costs.
//!
//! In CI up to 30 peers. `HELIOSTAT_TOX_PEERS=300 cargo test --profile proof --test toxgroup -- --ignored --nocapture figures` prints the
//! figures of `docs/toxgroup.md`.

use std::time::Duration;

use heliostat::chat::toxgroup::state::{Command, Event, Mode, Rules};

use super::world::{World, rules};

pub const CLASSIC: Mode = Mode::Classic { owner: None, topic_lock: false };
const MINUTE: Duration = Duration::from_secs(60);

/// A group without a hub: each newcomer knows one who is in.
fn mesh(seed: u64, peers: usize, first: impl Fn(usize) -> Option<u8>) -> World {
    let mut world = World::new(seed, CLASSIC);
    let mut dice = fastrand::Rng::with_seed(seed);
    for n in 0..peers {
        world.peer(rules(), first(n));
        if n > 0 {
            world.introduce(dice.usize(0..n), n);
        }
        world.pass(Duration::from_secs(1));
    }
    // Whoever was not told of in time says that it is there.
    world.pass(MINUTE);
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
fn thirty_hang_together_where_the_six_nearest_alone_would_not() {
    let mut world = mesh(30, 30, |_| None);
    world.some_speak(&[0, 13, 29]);
    for peer in &world.peers {
        assert_eq!(peer.group.members().len(), 30);
        assert!(peer.group.neighbour_ids().len() <= 20, "floods go to twenty at most");
        let id = peer.id();
        assert!(world.peers.iter().any(|it| it.group.neighbour_ids().contains(&id)), "and somebody keeps everybody");
    }
}

#[test]
fn with_one_packet_in_twenty_lost_nearly_everything_arrives() {
    let mut world = mesh(5, 16, |_| None);
    world.loss = 5;
    world.pass(2 * MINUTE);
    let (heard, pairs) = world.everybody_speaks();
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
    world.pass(Duration::from_secs(100));
    assert!(world.peers[0].knows(silent), "a silence is no farewell");
    world.pass(Duration::from_secs(60));
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

#[test]
#[ignore = "minutes: prints the figures of docs/toxgroup.md"]
fn figures() {
    let most = std::env::var("HELIOSTAT_TOX_PEERS").ok().and_then(|it| it.parse().ok()).unwrap_or(100);
    println!("| peers | loss | pairs that heard | neighbours | packets per peer in the half second of a text |\n|---|---|---|---|---|");
    for peers in [2, 7, 8, 16, 50, 100, 300].into_iter().filter(|&peers| peers <= most) {
        let mut world = mesh(1_000 + peers as u64, peers, |_| None);
        for loss in [0, 5] {
            world.loss = loss;
            world.pass(MINUTE);
            let neighbours: usize = world.peers.iter().map(|peer| peer.group.neighbour_ids().len()).sum();
            let before: usize = world.peers.iter().map(|peer| peer.sent).sum();
            world.text(0, "how many copies?");
            // No ping of anybody would fit into this moment more often than into any other.
            world.pass(Duration::from_millis(500));
            let copies = world.peers.iter().map(|peer| peer.sent).sum::<usize>() - before;
            let (heard, pairs) = world.everybody_speaks();
            println!(
                "| {peers} | {loss} % | {:.2} % | {:.1} | {:.1} |",
                100.0 * heard as f64 / pairs as f64,
                neighbours as f64 / peers as f64,
                copies as f64 / peers as f64,
            );
        }
    }
}
