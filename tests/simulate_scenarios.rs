//! Scenarios against a real mediator: whatever is done to devices and server, an honest one is found to be honest, and one that
//! is wrong in one way is found out.
#![allow(
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    clippy::wrong_self_convention,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;
#[path = "conform/relay.rs"]
mod relay;

use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Server, Setup, soon};
use heliostat::wire::d2m::{FromDevice, ToDevice};
use relay::{Instead, Make, Relay, Said, Wrong};
use serde_json::Value;

/// Everything that can become of a device, often enough to happen within seconds.
const EVERYTHING: &str = r#"
groups = 4
devices = 4
duration = "6 s"
think = { exponential = "60 ms" }
size = { uniform = ["50 B", "4 KiB"] }
offline = { every = "3 s", lasts = { uniform = ["100 ms", "400 ms"] } }
leader_leaves = { every = "1 s", lasts = { fixed = "100 ms" } }
replace_device = "500 ms"
[transactions]
share = 0.3
hold = { exponential = "5 ms" }
[chaos]
drop = "2 s"
delay = { every = "2 s", lasts = { fixed = "200 ms" } }
stall = { every = "2 s", lasts = { fixed = "200 ms" } }
duplicate = "2 s"
kill = "2 s"
"#;

/// How often it is looked whether something has come about.
const LOOK_EVERY: Duration = Duration::from_millis(15);

fn simulate(url: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
    command.args(["simulate", "--no-csp", "--json", "-", "--patience", "20s", "--url", url]).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What it found, once it is over.
async fn report(mut command: Command) -> Value {
    let output = soon(tokio::task::spawn_blocking(move || command.output())).await.unwrap().unwrap();
    read(&output)
}

fn read(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}\n{said}"));
    assert_eq!(output.status.success(), report["good"].as_bool().unwrap(), "{report:#}\n{said}");
    report
}

/// Runs a scenario straight against a mediator.
async fn honest(more: &[&str]) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), Setup::default()).await;
    let report = report(simulate(&format!("ws://{}", server.address), more)).await;
    server.stop().await;
    assert!(report["good"].as_bool().unwrap(), "{report:#}");
    report
}

fn number(report: &Value, path: &str) -> u64 {
    report.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {path}: {report:#}"))
}

fn file(dir: &Path, text: &str) -> String {
    let path = dir.join("scenario.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_honest_mediator_passes_every_scenario_that_comes_with_the_program() {
    for name in ["steady", "offline", "transactions", "churn", "storm"] {
        let report = honest(&["--scenario", name, "--groups", "3", "--duration", "3s"]).await;
        assert!(number(&report, "/messages/delivered") > 10, "{name}: {report:#}");
        assert_eq!(report["latencies_counted_from"], "due");
    }
    let report = honest(&["--groups", "2", "--messages", "20"]).await;
    assert_eq!(report["latencies_counted_from"], "said");
    assert_eq!(number(&report, "/messages/sent"), 2 * 3 * 20);
}

#[tokio::test]
async fn an_honest_mediator_passes_whatever_goes_wrong_around_it() {
    let dir = tempfile::tempdir().unwrap();
    let report = honest(&["--scenario", &file(dir.path(), EVERYTHING)]).await;
    // What of it is drawn when is up to the seed and to how fast the machine is.
    let events: u64 = report["chaos"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
    assert!(events > 20, "{report:#}");
    assert!(number(&report, "/messages/committed") > 0, "{report:#}");
    for latency in ["reflect_to_ack_us", "reflect_to_last_delivery_us", "connect_to_dry_us"] {
        let at = |quantile: &str| number(&report, &format!("/latencies/{latency}/{quantile}"));
        assert!(at("count") > 0 && 0 < at("p50") && at("p50") <= at("p99") && at("p99") <= at("max"), "{latency}");
    }
}

#[tokio::test]
async fn locks_that_are_held_too_long_are_taken_back_and_nothing_of_it_is_owed() {
    let dir = tempfile::tempdir().unwrap();
    let text = "groups = 2\nduration = \"3 s\"\nthink = { fixed = \"100 ms\" }\n[transactions]\nshare = 0.9\n\
                entries = [1, 3]\nhold = { uniform = [\"10 ms\", \"2 s\"] }\nttl = \"1 s\"";
    let report = honest(&["--scenario", &file(dir.path(), text)]).await;
    assert!(number(&report, "/reconnects") > 0, "somebody was told 4011: {report:#}");
}

/// A server that a shell starts again whenever it is gone.
struct Restarted {
    shell: Child,
    dir: tempfile::TempDir,
    url: String,
}

impl Restarted {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        // The port is found once; whoever connects again has to find the server there. While the server is gone nobody holds
        // it, so it is one of an address that nothing else on this machine uses.
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let address = SocketAddr::from(([127, 77, high, low], 0));
        let address = std::net::TcpListener::bind(address).unwrap().local_addr().unwrap();
        let config = format!(
            "data_dir = '{path}/data'\nadmin.listen = '127.0.0.1:0'\nlisten = {{ address = '{address}', plain = true }}\n"
        );
        std::fs::write(dir.path().join("heliostat.toml"), config).unwrap();
        let server = env!("CARGO_BIN_EXE_heliostat");
        // It says where it listens when it does.
        let script = format!(
            "while :; do {server} serve --config {path}/heliostat.toml > {path}/said & echo $! > {path}/pid; wait $!; done"
        );
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).env("HELIOSTAT_LOG", "off").stdin(Stdio::null());
        // A group of its own, to be ended as one.
        let shell = shell.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn().unwrap();
        Self { shell, url: format!("ws://{address}"), dir }
    }

    async fn listens(&self) {
        let address = self.url.strip_prefix("ws://").unwrap().parse::<SocketAddr>().unwrap();
        soon(async {
            while tokio::net::TcpStream::connect(address).await.is_err() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        })
        .await;
    }

    /// A command that kills it, once it listens: a slow machine must not kill it before each time.
    fn kill(&self) -> String {
        let path = self.dir.path().to_str().unwrap();
        format!(
            "until grep -q devices {path}/said; do test -d {path} || exit; sleep 0.02; done; \
             rm {path}/said; kill -9 $(cat {path}/pid)"
        )
    }
}

impl Drop for Restarted {
    fn drop(&mut self) {
        let group = format!("-{}", self.shell.id());
        let _gone = Command::new("kill").args(["-s", "KILL", "--", &group]).status();
        let _gone = self.shell.wait();
    }
}

#[tokio::test]
async fn a_server_that_is_killed_again_and_again_loses_nothing() {
    let server = Restarted::start();
    server.listens().await;
    let text = format!(
        "groups = 3\nduration = \"6 s\"\nthink = {{ exponential = \"50 ms\" }}\n[chaos]\nkill = \"2 s\"\n\
         server = {{ every = \"1500 ms\", command = \"{}\" }}\n",
        server.kill()
    );
    let report = report(simulate(&server.url, &["--scenario", &file(server.dir.path(), &text)])).await;
    assert!(report["good"].as_bool().unwrap(), "{report:#}");
    assert!(number(&report, "/chaos/commands run on the server") > 0, "{report:#}");
    assert!(number(&report, "/messages/acked") > 0 && number(&report, "/reconnects") > 0, "{report:#}");
}

#[tokio::test]
async fn an_interrupt_ends_it_early_with_a_report() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), Setup::default()).await;
    let url = format!("ws://{}", server.address);
    let simulation = simulate(&url, &["--scenario", "steady", "--duration", "1h"]).spawn().unwrap();
    let pid = simulation.id().to_string();
    // Everybody is there: whoever asks for the end now finds somebody who listens.
    soon(async {
        while server.store_groups().await < 20 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    })
    .await;
    assert!(Command::new("kill").args(["-s", "INT", &pid]).status().unwrap().success());
    let output = soon(tokio::task::spawn_blocking(move || simulation.wait_with_output())).await.unwrap().unwrap();
    let report = read(&output);
    assert!(report["good"].as_bool().unwrap() && report["interrupted"].as_bool().unwrap(), "{report:#}");
    server.stop().await;
}

#[tokio::test]
async fn a_group_that_has_not_come_when_it_ends_does_not_come() {
    let dir = tempfile::tempdir().unwrap();
    let text = "groups = 3\narrival = { over = \"10 h\" }\nduration = \"2 s\"\nthink = { fixed = \"50 ms\" }\n\
                [transactions]\nshare = 0.2\nhold = { fixed = \"1 h\" }";
    let report = honest(&["--scenario", &file(dir.path(), text)]).await;
    assert!(number(&report, "/messages/sent") > 0, "{report:#}");
}

trait Groups {
    async fn store_groups(&self) -> u64;
}

impl Groups for Server {
    async fn store_groups(&self) -> u64 {
        heliostat::store::Store::census(&*self.store, None, 1).await.unwrap().groups
    }
}

/// For what is waited for in vain, and for what comes some time.
const IN_VAIN: &str = "8s";
const IN_TIME: &str = "20s";

/// Runs a scenario through a relay that makes the mediator wrong.
async fn wrong(text: &str, patience: &str, make: impl Fn() -> Box<dyn Wrong> + Send + Sync + 'static) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), Setup::default()).await;
    let make: Make = Arc::new(move |_| make());
    let relay = Relay::before(server.address, make).await;
    let scenario = file(dir.path(), text);
    let more = ["--scenario", &scenario, "--patience", patience];
    let url = format!("ws://{}", relay.address);
    let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
    command.args(["simulate", "--no-csp", "--json", "-", "--url", &url]).args(more);
    let report = report(command).await;
    assert!(!report["good"].as_bool().unwrap(), "{report:#}");
    server.stop().await;
    report
}

/// Now and then a message never arrives at any device: the relay takes it and acknowledges it itself, each time. More than one,
/// because the acknowledgement for its sender may be lost with a connection, and then nobody is owed it.
#[derive(Clone, Default)]
struct Loses(Arc<Mutex<(u32, Vec<Vec<u8>>)>>);

impl Wrong for Loses {
    fn to_device(&mut self, said: Said) -> Instead {
        let Some(ToDevice::Reflected(message)) = said.to_device().filter(|it| matches!(it, ToDevice::Reflected(_)))
        else {
            return Instead::down(said);
        };
        let (seen, victims) = &mut *self.0.lock().unwrap();
        *seen += 1;
        if *seen % 20 == 0 {
            victims.push(message.envelope().to_vec());
        }
        if !message.flags().ephemeral && victims.iter().any(|victim| victim == message.envelope()) {
            return Instead::up(Said::device(&FromDevice::ReflectedAck(message.id())));
        }
        Instead::down(said)
    }
}

#[tokio::test]
async fn an_acknowledged_message_that_is_lost_is_found_out_whatever_else_goes_wrong() {
    let text = "groups = 2\nduration = \"3 s\"\nthink = { exponential = \"50 ms\" }\nephemeral = 0.0\n\
                offline = { every = \"2 s\", lasts = { fixed = \"200 ms\" } }\n[chaos]\ndrop = \"1 s\"\nkill = \"2 s\"\n";
    let loses = Loses::default();
    let report = wrong(text, IN_VAIN, move || Box::new(loses.clone())).await;
    assert!(number(&report, "/messages/lost") > 0, "{report:#}");
    assert!(report["gave_up"].as_str().unwrap().contains("nothing moved"), "{report:#}");
}

/// Acknowledges on behalf of every device what that has yet to process.
struct AcksForThem;

impl Wrong for AcksForThem {
    fn to_device(&mut self, said: Said) -> Instead {
        match said.to_device() {
            Some(ToDevice::Reflected(message)) => {
                Instead::down(said).and_up(Said::device(&FromDevice::ReflectedAck(message.id())))
            }
            _ => Instead::down(said),
        }
    }
}

#[tokio::test]
async fn what_a_dying_device_had_not_acknowledged_has_to_come_again() {
    let text = "groups = 2\nduration = \"3 s\"\nthink = { fixed = \"50 ms\" }\n[chaos]\nkill = \"500 ms\"\n";
    let report = wrong(text, IN_VAIN, || Box::new(AcksForThem)).await;
    assert!(number(&report, "/messages/lost") > 0, "{report:#}");
    assert!(number(&report, "/faults/messages missing from a queue that was called dry") > 0, "{report:#}");
}

/// Announces one message more than wait.
struct Miscounts;

impl Wrong for Miscounts {
    fn to_device(&mut self, said: Said) -> Instead {
        match said.to_device() {
            Some(ToDevice::ServerInfo(mut info)) => {
                info.reflection_queue_length += 1;
                Instead::down(Said::mediator(&ToDevice::ServerInfo(info)))
            }
            _ => Instead::down(said),
        }
    }
}

#[tokio::test]
async fn a_queue_that_is_announced_too_long_is_found_out() {
    let report = wrong("groups = 1\nmessages = 5\n", IN_TIME, || Box::new(Miscounts)).await;
    assert_eq!(number(&report, "/faults/queues that were announced longer than they were"), 3, "{report:#}");
    assert_eq!(number(&report, "/messages/lost"), 0);
}

/// The whole mediator stands still for a second, once.
#[derive(Clone, Default)]
struct Stands(Arc<Mutex<u32>>);

impl Wrong for Stands {
    fn to_device(&mut self, said: Said) -> Instead {
        if matches!(said.to_device(), Some(ToDevice::ReflectAck(_))) {
            let mut seen = self.0.lock().unwrap();
            *seen += 1;
            if *seen == 20 {
                // The relay and the mediator share this thread.
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        Instead::down(said)
    }
}

#[tokio::test]
async fn a_server_that_stands_still_is_slow_for_every_message_that_was_due_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), Setup::default()).await;
    let stands = Stands::default();
    let make: Make = Arc::new(move |_| Box::new(stands.clone()));
    let relay = Relay::before(server.address, make).await;
    let text = "groups = 1\ndevices = 2\nmessages = 150\nthink = { fixed = \"20 ms\" }\nephemeral = 0.0\n\
                [transactions]\nshare = 0.0\n";
    let scenario = file(dir.path(), text);
    let report = report(simulate(&format!("ws://{}", relay.address), &["--scenario", &scenario])).await;
    assert!(report["good"].as_bool().unwrap(), "{report:#}");
    let at = |quantile: &str| number(&report, &format!("/latencies/reflect_to_ack_us/{quantile}"));
    // A third of what was due, not one message of each device.
    assert!(at("max") > 900_000 && at("p90") > 300_000, "{report:#}");
    assert_eq!(at("count"), 300, "what was due has been said, if late: {report:#}");
    server.stop().await;
}

#[test]
fn a_scenario_is_listed_printed_and_complained_about_by_line() {
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
        command.arg("simulate").args(args).env("NO_COLOR", "1").output().unwrap()
    };
    let list = run(&["--list"]);
    assert!(list.status.success() && String::from_utf8_lossy(&list.stdout).contains("storm"));
    let printed = run(&["--scenario", "storm", "--print-scenario", "--groups", "7", "--messages", "9"]);
    let text = String::from_utf8(printed.stdout).unwrap();
    assert!(text.contains("groups = 7") && text.contains("messages = 9") && !text.contains("duration"), "{text}");
    let dir = tempfile::tempdir().unwrap();
    // What is printed is understood again.
    let again = run(&["--scenario", &file(dir.path(), &text), "--print-scenario"]);
    assert_eq!(String::from_utf8(again.stdout).unwrap(), text);
    let wrong = run(&["--scenario", &file(dir.path(), "groups = 3\nthink = { exponential = \"1\" }\n")]);
    assert_eq!(wrong.status.code(), Some(1));
    let said = String::from_utf8_lossy(&wrong.stderr);
    assert!(said.contains("line 2") && said.contains("unit"), "{said}");
}
