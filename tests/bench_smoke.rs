//! `bench` measures: with tiny numbers, against servers of its own and against one that runs. What the numbers are says nothing
//! here; that they are there, and what they are of.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Server, Setup};
use serde_json::Value;

/// A measurement is made of several rounds with several servers.
const PATIENCE: Duration = Duration::from_secs(180);

fn bench(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
    command.arg("bench").args(args).args(["--time", "900ms", "--warm-up", "100ms", "--json", "-"]);
    if !args.contains(&"--rounds") {
        command.args(["--rounds", "2"]);
    }
    command.arg("--dir").arg(dir).stdin(Stdio::null());
    command
}

async fn report(mut command: Command) -> Value {
    let output = tokio::task::spawn_blocking(move || command.output());
    let output = tokio::time::timeout(PATIENCE, output).await.expect("a measurement ends").unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Measures; the directory is as empty as before, and every result has its rounds.
async fn measures(args: &[&str]) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let report = report(bench(dir.path(), args)).await;
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
    let machine = &report["machine"];
    assert!(machine["cores"].as_u64().unwrap() > 0 && machine["program"].as_str().unwrap().contains("sha256"));
    assert_eq!(report["parameters"]["durability"], "fsync");
    for result in report["measurements"][0]["results"].as_array().unwrap() {
        let rounds = result["rounds"].as_array().unwrap().len();
        // A round in which nothing was acknowledged has no cost of each.
        let may_be_less = result["name"].as_str().unwrap().starts_with("server CPU per reflect");
        assert!(rounds == 2 || may_be_less && rounds < 2, "{result}");
    }
    report
}

fn median(report: &Value, name: &str) -> f64 {
    let results = report["measurements"][0]["results"].as_array().unwrap();
    let result =
        results.iter().find(|result| result["name"] == name).unwrap_or_else(|| panic!("no {name}: {report:#}"));
    result["median"].as_f64().unwrap()
}

const SMALL: [&str; 4] = ["--groups", "2", "--size", "300"];

#[tokio::test]
async fn reflects_are_measured() {
    let report = measures(&[&["reflect"], &SMALL[..]].concat()).await;
    assert!(median(&report, "reflects") > 0.0);
    // Twice as many, but what is acknowledged in one round may be delivered in the next.
    assert!(median(&report, "deliveries") > 0.0);
    assert!(median(&report, "reflect to ack, p50") <= median(&report, "reflect to ack, p99"));
    assert!(median(&report, "server CPU per reflect") >= 0.0);
    assert_eq!(report["measurements"][0]["parameters"]["shape"]["bytes"], 300);
}

#[tokio::test]
async fn a_schedule_is_kept() {
    let report = measures(&[&["reflect", "--rate", "20", "--tls"], &SMALL[..]].concat()).await;
    // After a pause of seconds a round still stays below that; without a schedule it does not.
    assert!(median(&report, "reflects") < 200.0, "{report:#}");
    assert_eq!(report["measurements"][0]["parameters"]["rate_per_s"], 20);
}

#[tokio::test]
async fn what_is_ended_by_a_signal_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = bench(dir.path(), &["idle", "--idle-devices", "30"]).stderr(Stdio::null()).spawn().unwrap();
    let has_a_server = || {
        let mut entries = std::fs::read_dir(dir.path()).unwrap().flatten();
        entries.any(|entry| entry.path().join("data").exists())
    };
    let begun = async {
        while !has_a_server() {
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
    };
    tokio::time::timeout(PATIENCE, begun).await.expect("a server is started");
    assert!(Command::new("kill").args(["-s", "TERM", &bench.id().to_string()]).status().unwrap().success());
    let ended = tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(move || bench.wait())).await;
    assert_eq!(ended.expect("it ends").unwrap().unwrap().code(), Some(1));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
}

#[tokio::test]
async fn a_server_that_runs_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), Setup::default()).await;
    let url = format!("ws://{}", server.address);
    let scratch = tempfile::tempdir().unwrap();
    for what in ["reflect", "handshakes"] {
        let own = std::process::id().to_string();
        let report = report(bench(scratch.path(), &[what, "--url", &url, "--pid", &own])).await;
        assert_eq!(report["parameters"]["durability"], "the server's");
        assert!(report["measurements"][0]["results"][0]["median"].as_f64().unwrap() > 0.0, "{report:#}");
        assert_eq!(heliostat::store::Store::census(&*server.store, None, 1).await.unwrap().groups, 0, "{what}");
    }
    server.stop().await;
}

#[tokio::test]
async fn idle_devices_and_handshakes_are_measured() {
    let idle = measures(&["idle", "--idle-devices", "30"]).await;
    assert!(median(&idle, "memory of an idle device, TLS") >= 0.0);
    assert!(median(&idle, "memory of an idle device, plain") >= 0.0);
    let handshakes = measures(&["handshakes", "--at-once", "2"]).await;
    assert!(median(&handshakes, "handshakes, TLS and D2M") > 0.0);
    assert!(median(&handshakes, "handshakes, D2M without TLS") > 0.0);
}

/// In KiB of resident memory, and in debug builds; optimised ones need less. A fifth more than is measured, so that what costs every
/// device something is noticed by whoever adds it.
const BUDGET_PLAIN: f64 = 16.0;
const BUDGET_TLS: f64 = 25.0;
/// Of a group with one device, with that device.
const BUDGET_GROUP: f64 = 24.0;

#[tokio::test]
async fn idle_devices_and_groups_stay_within_their_budgets_of_memory() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = |among: &'static str| {
        let command = bench(dir.path(), &["idle", "--idle-devices", "600", "--idle-among", among, "--rounds", "1"]);
        report(command)
    };
    let shared = sizes("3").await;
    let [plain, tls] = ["plain", "TLS"].map(|door| median(&shared, &format!("memory of an idle device, {door}")));
    let alone = median(&sizes("1").await, "memory of an idle device, plain");
    println!("{plain:.1} KiB, {tls:.1} KiB with TLS, {alone:.1} KiB alone in its group");
    assert!(plain > 4.0, "nothing is measured: {plain} KiB");
    assert!(plain <= BUDGET_PLAIN && tls <= BUDGET_TLS && alone <= BUDGET_GROUP, "{plain}, {tls}, {alone} KiB");
}

#[tokio::test]
async fn the_proxy_is_measured_in_both_directions() {
    let report = measures(&["proxy", "--connections", "2", "--frame", "1000"]).await;
    for name in ["proxy, down", "proxy, up", "the same without a mediator, down", "the same without a mediator, up"] {
        assert!(median(&report, name) > 0.0, "{name}: {report:#}");
    }
    assert!(median(&report, "round trip, p50, proxied") > 0.0);
}

#[tokio::test]
async fn a_start_with_a_full_store_and_reflects_beside_one_are_measured() {
    let start = measures(&["start", "--stored-messages", "20,200", "--messages-each", "4"]).await;
    for stored in [20, 200] {
        assert!(median(&start, &format!("from start to ready, {stored} messages stored")) > 0.0);
    }
    let size = measures(
        &[&["size", "--stored", "10,20", "--queued", "0,100", "--among", "2,15", "--bytes", "64"], &SMALL[..]].concat(),
    )
    .await;
    for suffix in [
        "10 groups stored",
        "20 groups stored",
        "0 messages queued",
        "100 messages queued",
        "2 devices in a group",
        "15 devices in a group",
        "64 bytes in a message",
    ] {
        assert!(median(&size, &format!("reflects, {suffix}")) > 0.0, "{size:#}");
    }
}
