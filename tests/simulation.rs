//! The whole mediator in a simulated world: the real server, its sessions, groups and pipes on a simulated network, with
//! virtual time and a store that survives crashes as a disk would; model devices that do what devices do at the worst of
//! times; a chat server that echoes, stalls and dies. What the devices hear is judged by a model of a device group that
//! shares no code with the mediator (`simulation/model.rs`).
//!
//! One seed is one run. A failure prints its seed, the smallest plan found that fails in the same way, the end of the
//! story, and the command that tells all of it again:
//!
//! ```text
//! SIM_SEED=17 cargo test --test simulation replay -- --nocapture                      one seed, with its whole story
//! SIM_SEEDS=10000 cargo test --profile proof --test simulation seeds -- --nocapture   the long run, with its progress
//! ```
//!
//! `SIM_FIRST` is the first of the seeds; `SIM_MS` and `SIM_DEVICES` make a replayed plan smaller.
//!
//! What has to be random to be safe still comes from the operating system: keys, challenges, nonces, WebSocket masks. Nothing
//! that is decided depends on it, since only the bytes change and never their number, and one test runs seeds twice and
//! compares their stories. The simulated TCP does not send a lost segment again: a partition leaves behind a connection that
//! hangs, which both sides have to give up. So a link loses everything for a while or delays it, but no single message.
//!
//! The rest of this file shows that the model can be believed: faults are made on purpose, by a store that lies and a
//! relay that tampers with what the mediator says, and each has to be found and called by its name.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    reason = "a test may panic, print and keep its modules simple"
)]

#[path = "simulation/device.rs"]
mod device;
#[path = "simulation/model.rs"]
mod model;
#[path = "simulation/network.rs"]
mod network;
#[path = "simulation/store.rs"]
mod store;
#[path = "simulation/world.rs"]
mod world;

use std::collections::BTreeSet;
use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressStyle};
use model::Rule;
use network::Tamper;
use store::Lie;
use world::{Outcome, Plan, run};

/// How many seeds a run without options takes: about half a minute on one core.
const SEEDS: u64 = 200;
/// How far the seeds are, on a terminal.
const BAR: &str = "{bar:40} {pos} of {len} seeds, {per_sec}, {eta} to go";
/// Lines of the story that a failure shows.
const LAST_LINES: usize = 60;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
}

fn planned(seed: u64) -> Plan {
    let mut plan = Plan::of(seed);
    plan.wild_ms = number("SIM_MS").unwrap_or(plan.wild_ms);
    plan.devices = number("SIM_DEVICES").unwrap_or(plan.devices);
    plan
}

/// Looks for a smaller plan that fails by the same rule: fewer devices, then less time.
fn shrunk(mut plan: Plan, rule: Rule) -> Plan {
    let fails = |plan: &Plan| run(plan).faults.first().is_some_and(|fault| fault.rule == rule);
    while plan.devices > 2 && fails(&Plan { devices: plan.devices - 1, ..plan.clone() }) {
        plan.devices -= 1;
    }
    for part in [2, 4, 8] {
        let smaller = Plan { wild_ms: plan.wild_ms - plan.wild_ms / part, ..plan.clone() };
        if fails(&smaller) {
            plan = smaller;
        }
    }
    plan
}

fn report(plan: &Plan, outcome: &Outcome) -> String {
    let mut out = format!("\nseed {} broke a promise\n\n", plan.seed);
    let skipped = outcome.story.len().saturating_sub(LAST_LINES);
    out += &format!("the last lines of its story ({skipped} before them):\n");
    for line in &outcome.story[skipped..] {
        out += &format!("  {line}\n");
    }
    for fault in &outcome.faults {
        out += &format!("\n{:?}: {}\n  {}\n", fault.rule, fault.rule.text(), fault.detail);
    }
    out += &format!("\n{plan:?}\n\nthe whole story:\n  ");
    let Plan { seed, wild_ms, devices, .. } = plan;
    out + &format!(
        "SIM_SEED={seed} SIM_MS={wild_ms} SIM_DEVICES={devices} cargo test --test simulation replay -- --nocapture\n"
    )
}

/// What has to happen somewhere in a few hundred seeds, in the story's words: promises about what never happens are cheap.
const SIGHTS: [&str; 21] = [
    "-- Crash",
    "-- Stop",
    "-- Partition",
    "-- Hold(",
    "-- HoldStore",
    "-- FailCommit",
    "-- CrashChat",
    "hears transaction-rejected",
    "hears transaction-ended",
    "hears commit-transaction-ack",
    "hears drop-device-ack",
    "hears proxy",
    ", ephemeral",
    "closed with 1001",
    "closed with 1011",
    "closed with 4000",
    "closed with 4011",
    "closed with 4111",
    "closed with 4112",
    "closed with 4113",
    "closed with 4114",
];

/// What the seeds so far have seen.
#[derive(Default)]
struct Tally {
    acknowledged: usize,
    arrivals: usize,
    virtual_ms: u128,
    sights: [usize; SIGHTS.len()],
}

impl Tally {
    fn add(&mut self, outcome: &Outcome) {
        for (sight, count) in SIGHTS.iter().zip(&mut self.sights) {
            *count += outcome.story.iter().filter(|line| line.contains(sight)).count();
        }
        self.acknowledged += outcome.acknowledged;
        self.arrivals += outcome.arrivals;
        self.virtual_ms += outcome.virtual_ms;
    }
}

/// Runs one seed; a fault is shrunk and told.
fn judged(seed: u64) -> Result<Outcome, String> {
    let plan = planned(seed);
    let outcome = run(&plan);
    let Some(fault) = outcome.faults.first() else { return Ok(outcome) };
    let smaller = shrunk(plan.clone(), fault.rule);
    let again = run(&smaller);
    Err(if again.faults.is_empty() { report(&plan, &outcome) } else { report(&smaller, &again) })
}

#[test]
fn seeds() {
    let (first, seeds) = (number("SIM_FIRST").unwrap_or(1), number("SIM_SEEDS").unwrap_or(SEEDS));
    let next = AtomicU64::new(first);
    let tally = Mutex::new(Tally::default());
    let bar = ProgressBar::new(seeds).with_style(ProgressStyle::with_template(BAR).unwrap());
    let work = || -> Result<(), String> {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + seeds {
                return Ok(());
            }
            // The others stop at the first fault, too.
            let outcome = judged(seed).inspect_err(|_| next.store(first + seeds, Ordering::Relaxed))?;
            let mut tally = tally.lock().unwrap();
            tally.add(&outcome);
            bar.inc(1);
            if bar.is_hidden() && bar.position().is_multiple_of(100) {
                eprintln!("{} of {seeds} seeds, {} acknowledged", bar.position(), tally.acknowledged);
            }
        }
    };
    // A world lives on one thread, so there is one at a time for every core.
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            if let Err(fault) = worker.join().unwrap() {
                panic!("{fault}");
            }
        }
    });
    bar.finish_and_clear();

    let Tally { acknowledged, arrivals, virtual_ms, sights } = tally.into_inner().unwrap();
    for (sight, count) in SIGHTS.iter().zip(sights) {
        eprintln!("{count:>8} x {sight}");
        assert!(count > 0 || seeds < SEEDS, "no seed ever saw: {sight}");
    }
    eprintln!("{seeds} seeds: {acknowledged} acknowledged, {arrivals} arrivals, {} virtual s", virtual_ms / 1_000);
}

#[test]
fn replay() {
    let Some(seed) = number("SIM_SEED") else { return };
    let plan = planned(seed);
    let outcome = run(&plan);
    for line in &outcome.story {
        eprintln!("{line}");
    }
    assert!(outcome.faults.is_empty(), "{}", report(&plan, &outcome));
    eprintln!("nothing is wrong with seed {seed}: {plan:?}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 1..=number("SIM_TWICE").unwrap_or(10) {
        let plan = Plan::of(seed);
        let (one, two) = (run(&plan).story, run(&plan).story);
        let differs = one.iter().zip(&two).position(|(one, two)| one != two);
        if let Some(at) = differs {
            let from = at.saturating_sub(5);
            panic!("seed {seed} differs:\n{:#?}\n{:#?}", &one[from..=at + 2], &two[from..=at + 2]);
        }
        assert_eq!(one.len(), two.len(), "seed {seed}");
    }
}

/// Runs plans with a fault made on purpose until it is noticed and called by this name. What a fault leads to depends on the
/// plan, so other names may come first in others; without a fault there are none at all, as the seeds show.
fn found(rule: Rule, plan: impl Fn(Plan) -> Plan) {
    const SEEDS: u64 = 100;
    let mut others = BTreeSet::new();
    for seed in 1..=SEEDS {
        // Without the store's own troubles, but with crashes; long enough for something to happen.
        let it = Plan { store_fails: false, stops: false, volatile: false, queue_messages: 100_000, ..Plan::of(seed) };
        let plan = plan(Plan { makes_room: false, max_slots: 10, wild_ms: 8_000, heavy: false, ..it });
        match run(&plan).faults.first() {
            Some(fault) if fault.rule == rule => return,
            fault => others.extend(fault.map(|fault| fault.rule)),
        }
    }
    panic!("{SEEDS} seeds, and it was only called {others:?}");
}

fn tampered(tamper: Tamper, rule: Rule) {
    found(rule, |plan| Plan { tamper: Some(tamper), ..plan });
}

fn lied(lie: Lie, rule: Rule) {
    found(rule, |plan| Plan { lie: Some(lie), troubles: 5, ..plan });
}

#[test]
fn a_store_that_answers_before_it_keeps_is_found() {
    lied(Lie::OkBeforeKeeping, Rule::Lost);
}

#[test]
fn a_lost_cursor_is_found() {
    lied(Lie::LostCursor, Rule::Lost);
}

#[test]
fn a_commit_that_is_kept_in_part_is_found() {
    lied(Lie::TornCommit, Rule::Half);
}

#[test]
fn a_slot_that_is_not_removed_is_found() {
    lied(Lie::KeptSlot, Rule::Ghost);
}

#[test]
fn ids_that_begin_anew_after_a_crash_are_found() {
    lied(Lie::ForgottenReservation, Rule::IdReused);
}

#[test]
fn a_lost_message_is_found() {
    tampered(Tamper::LoseReflected, Rule::Overtaken);
}

#[test]
fn a_repeated_message_is_found() {
    tampered(Tamper::RepeatReflected, Rule::Twice);
}

#[test]
fn swapped_messages_are_found() {
    tampered(Tamper::SwapReflected, Rule::IdsShrank);
}

#[test]
fn an_id_that_comes_again_is_found() {
    tampered(Tamper::ReuseId, Rule::IdsShrank);
}

#[test]
fn ended_before_rejected_is_found() {
    tampered(Tamper::EndedBeforeRejected, Rule::EndedBeforeRejected);
}

#[test]
fn two_holders_are_found() {
    tampered(Tamper::GrantInsteadOfRejection, Rule::TwoHolders);
}

#[test]
fn two_leaders_are_found() {
    tampered(Tamper::PromoteAnother, Rule::TwoLeaders);
}

#[test]
fn a_leader_that_is_not_dry_is_found() {
    tampered(Tamper::PromoteBeforeDry, Rule::LeaderNotDry);
}

#[test]
fn a_second_dry_is_found() {
    tampered(Tamper::DryAgain, Rule::DryTwice);
}

#[test]
fn an_ephemeral_message_that_was_kept_is_found() {
    tampered(Tamper::KeepEphemeral, Rule::EphemeralKept);
}

#[test]
fn a_changed_timestamp_is_found() {
    tampered(Tamper::ChangeTimestamp, Rule::Timestamp);
}
