//! The judge, judged: an honest mediator passes every case, and one that is wrong in one way fails exactly the cases that
//! it should.

#![allow(
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    clippy::wrong_self_convention,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may panic"
)]

mod common;
#[path = "conform/faults.rs"]
mod faults;
#[path = "conform/relay.rs"]
mod relay;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use common::plain;
use faults::Fault;
use futures_util::StreamExt as _;
use heliostat::chat::csp;
use heliostat::server::{Mediator, Parts, Settings};
use heliostat::store::memory::MemoryStore;
use heliostat::time::Clock;
use heliostat::tools::conform::report::{Report, Verdict};
use heliostat::tools::conform::server::{Plan, cases, judge};
use heliostat::upstream::directory::{Directory, DirectoryConfig, Target};
use heliostat::upstream::framer::Framing;
use heliostat::upstream::{TcpDial, UpstreamLimits};
use heliostat::wire::d2m::ServerGroup;
use relay::Relay;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

fn group(name: &str) -> ServerGroup {
    ServerGroup::new(name).unwrap()
}

/// A mediator whose server group `a0` leads to `chat`, `stage` to a chat server that the judge plays, `nobody` to nobody.
struct Honest {
    mediator: Mediator,
    address: SocketAddr,
    stage: TcpListener,
}

impl Honest {
    async fn start(chat: Option<SocketAddr>) -> Self {
        let stage = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let target = |address: SocketAddr| Target { addresses: vec![address.to_string()], framing: Framing::Csp };
        let exact = [("stage", Some(stage.local_addr().unwrap())), ("nobody", Some(nobody)), ("a0", chat)];
        let exact = exact.into_iter().filter_map(|(name, address)| Some((name.to_owned(), target(address?))));
        let directory = DirectoryConfig { exact: exact.collect(), ..DirectoryConfig::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let parts = Parts {
            store: Arc::new(MemoryStore::new()),
            neighbours: None,
            dial: Arc::new(TcpDial),
            upstream: UpstreamLimits::default(),
            settings: Settings { directory: Directory::new(directory).unwrap(), ..Settings::default() },
            clock: Clock::system(),
            durability: "memory",
        };
        Self { mediator: Mediator::start(listener, None, parts), address, stage }
    }

    fn plan(self, address: SocketAddr) -> (Plan, Mediator) {
        let plan = Plan {
            stage: Some((self.stage, group("stage"))),
            unreachable: Some(group("nobody")),
            ..Plan::new(plain(address), group("a0"))
        };
        (plan, self.mediator)
    }
}

fn skipped(report: &Report) -> Vec<&str> {
    let skipped = report.outcomes.iter().filter(|outcome| matches!(outcome.verdict, Verdict::Skipped(_)));
    skipped.map(|outcome| outcome.id.as_str()).collect()
}

fn told(report: &Report, id: &str) -> String {
    let outcome = report.outcomes.iter().find(|outcome| outcome.id == id).unwrap();
    format!("{id}: {:?}", outcome.verdict)
}

async fn chat_server(dir: &Path, stop: &CancellationToken) -> csp::Running {
    let config = csp::Config::new(([127, 0, 0, 1], 0).into(), dir.to_owned());
    csp::start(config, Clock::system(), stop.clone()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_honest_mediator_and_its_chat_server_keep_every_rule() {
    let dir = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let chat = chat_server(dir.path(), &stop).await;
    let honest = Honest::start(Some(chat.local_addr())).await;
    let address = honest.address;
    let (plan, mediator) = honest.plan(address);
    let chat_address = chat.local_addr().to_string();
    let plan = Plan { chat: Some((dir.path().to_owned(), chat_address)), patience: common::PATIENCE, ..plan };
    let report = judge(plan).await.unwrap();
    let failed: Vec<_> = report.failed().into_iter().map(|id| told(&report, id)).collect();
    assert_eq!(failed, [""; 0]);
    assert!(skipped(&report).into_iter().all(|id| told(&report, id).contains("--slow")), "{:?}", skipped(&report));
    assert_eq!(report.left_behind, [""; 0]);
    mediator.stop().await.unwrap();
    stop.cancel();
    chat.wait().await;
}

/// What each fault turns red, and nothing else.
const TABLE: &[(Fault, &[&str])] = &[
    (Fault::AcksAtCommit, &["D2M-A1a"]),
    (Fault::DeliversWhatWasAborted, &["D2M-A2a"]),
    (Fault::ForgetsWhoJoinedInTheTransaction, &["D2M-A3a"]),
    (Fault::AcksEphemeral, &["D2M-12.8b", "D2M-A4b"]),
    (Fault::RefusesAcksOfEphemeral, &["D2M-4.2b", "D2M-A5a"]),
    (Fault::RefusesSecondAcks, &["D2M-A6a"]),
    (Fault::IgnoresAcksOfUnknown, &["D2M-12.9a"]),
    (Fault::HasAnotherCodeForBadProofs, &["D2M-12.3a", "D2M-2.5a", "D2M-3.1a", "D2M-3.3a", "D2M-3.3b", "D2M-A14a"]),
    (Fault::LetsAnybodyCommit, &["D2M-A9a", "D2M-A9c"]),
    (Fault::LetsHoldersBeginAgain, &["D2M-A9b"]),
    (Fault::ExpectsNothingOfNew, &["D2M-12.3d", "D2M-12.3e"]),
    (Fault::MakesSlotsForExisting, &["D2M-12.13b", "D2M-12.14a", "D2M-12.3c", "D2M-A11a"]),
    (Fault::AnnouncesVersionOne, &["D2M-A13a"]),
    (Fault::RefusesEarlyProxy, &["D2M-12.2a", "D2M-A15a"]),
    (Fault::SpeaksForTheChatServerEarly, &["D2M-A15a"]),
    (Fault::ForgetsWhatIsPipelined, &["D2M-6b", "D2M-A16a", "D2M-A16b", "D2M-A6c"]),
    (Fault::PromotesBeforeDry, &["D2M-12.6b"]),
    (Fault::PromotesEverybody, &["D2M-12.6c", "D2M-A17a", "D2M-A17b"]),
    (Fault::IsSilentAboutUnknownDrops, &["D2M-12.14b"]),
    (Fault::IsSilentAboutSelfDrops, &["D2M-12.13a", "D2M-A16b"]),
    (Fault::HoldsDropsInTransactions, &["D2M-6a", "D2M-A21a"]),
    (Fault::KnowsNoTtl, &["D2M-12.12a", "D2M-12.12b"]),
    (Fault::NeverMakesRoom, &["D2M-12.4b", "D2M-A24a", "D2M-A24b"]),
    (Fault::IgnoresWhatItDoesNotKnow, &["D2M-12.18b", "D2M-12.18c", "D2M-12.18d"]),
    (Fault::PassesFlagsOn, &["D2M-2.1a", "D2M-A26b"]),
    (Fault::TakesEnvelopesThatFitReflect, &["D2M-12.17c"]),
    (Fault::WantsSomethingInEnvelopesAndScopes, &["D2M-A28a", "D2M-A28b"]),
    (Fault::RedirectsDoubleSlashes, &["D2M-A29a"]),
    (Fault::ReadsCapitalHex, &["D2M-A29b"]),
    (Fault::TellsTheSenderAnotherTime, &["D2M-A35a"]),
    (Fault::SaysEndedBeforeMessages, &["D2M-12.10c", "D2M-A3a", "D2M-A4a"]),
    (
        Fault::ForgetsTheBacklog,
        &["D2M-12.10e", "D2M-12.7c", "D2M-12.7d", "D2M-12.7e", "D2M-12.7f", "D2M-12.7g", "D2M-A35a", "D2M-A6b"],
    ),
    (Fault::GivesNewIdsToOldMessages, &["D2M-12.7d"]),
    (Fault::KeepsEphemeral, &["D2M-12.8c"]),
    (Fault::ReflectsToTheSender, &["D2M-12.7b"]),
    (
        Fault::LosesAcks,
        &["D2M-12.20b", "D2M-12.7e", "D2M-12.7f", "D2M-12.9a", "D2M-2.3b", "D2M-A6a", "D2M-A6b", "D2M-A6c"],
    ),
    (Fault::MiscountsTheQueue, &["D2M-12.7f"]),
    (Fault::IsDryTwice, &[]),
    (Fault::NamesTheAskerInRejections, &["D2M-12.11a"]),
    (Fault::TellsTheCommitter, &["D2M-12.11c"]),
    (Fault::ForgetsSharedData, &["D2M-12.15a", "D2M-12.15b"]),
    (Fault::HidesTheAskerFromDevicesInfo, &["D2M-12.16a", "D2M-12.3f", "D2M-12.4b", "D2M-3.5b", "D2M-A11a"]),
    (Fault::ThinksEverybodyIsConnected, &["D2M-12.16b", "D2M-A24a"]),
    (Fault::CutsUnits, &["D2M-12.19a", "D2M-12.19b", "D2M-12.19c", "D2M-9.2a", "D2M-9.3c", "D2M-A15a"]),
    (Fault::ClosesWithoutReason, &["D2M-12.19c"]),
    (Fault::ReplacesSilently, &["D2M-12.5a"]),
    (Fault::WantsHeadersOfEight, &["D2M-12.18f"]),
    (Fault::WantsReservedZero, &["D2M-12.20b"]),
    (Fault::WaitsForAcks, &["D2M-A32a"]),
    (Fault::AnswersClosesWithAnother, &["D2M-8.1a"]),
    (Fault::RefusesUnknownFields, &["D2M-2.2a"]),
    (Fault::SwapsReflectAcks, &["D2M-4.1a"]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d2m_a38_a_long_backlog_and_the_chat_server_share_the_socket() {
    let honest = Honest::start(None).await;
    let address = honest.address;
    let (plan, _mediator) = honest.plan(address);
    let only = vec!["D2M-A38b".to_owned()];
    let report = judge(Plan { only, slow: true, patience: common::PATIENCE, ..plan }).await.unwrap();
    assert!(report.is_good(), "{}", told(&report, "D2M-A38b"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_turns_exactly_its_cases_red() {
    let runs = TABLE.iter().map(|&(fault, expected)| async move {
        let honest = Honest::start(None).await;
        let relay = Relay::before(honest.address, fault.make()).await;
        let (plan, _mediator) = honest.plan(relay.address);
        let report = judge(Plan { patience: Duration::from_secs(8), jobs: 16, ..plan }).await.unwrap();
        let (mut red, mut expected) = (report.failed(), expected.to_vec());
        red.sort_unstable();
        expected.sort_unstable();
        let why: Vec<_> = red.iter().map(|id| told(&report, id)).collect();
        (red != expected).then(|| format!("{fault:?} turned {red:?} red:\n  {}", why.join("\n  ")))
    });
    let wrong: Vec<String> =
        futures_util::stream::iter(runs).buffer_unordered(6).filter_map(async |it| it).collect().await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Clauses without a case of their number: seen by a case of another, or not from outside.
const UNSEEN: [(&str, &str); 10] = [
    ("D2M-12.21", "nobody outside stops a server"),
    ("D2M-A18", "D2M-12.6d"),
    ("D2M-A19", "D2M-12.14b"),
    ("D2M-A20", "D2M-12.13a"),
    ("D2M-A25", "D2M-12.18b"),
    ("D2M-A27", "D2M-12.17c"),
    ("D2M-A30", "D2M-12.19d"),
    ("D2M-A33", "it takes a socket that breaks at one moment of the handshake"),
    ("D2M-A7", "D2M-12.9a"),
    ("D2M-A8", "D2M-12.3a"),
];

/// The number without the letter and the way: `D2M-12.7` of `D2M-12.7a`.
fn clause(id: &str) -> String {
    let id = id.split('/').next().unwrap();
    id.trim_end_matches(|c: char| c.is_ascii_lowercase()).to_owned()
}

#[test]
fn cases_have_the_numbers_of_the_index_and_leave_out_no_clause_without_a_reason() {
    let index = include_str!("../docs/spec.md");
    let listed: BTreeSet<&str> = index
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next())
        .filter(|id| id.contains('-'))
        .collect();
    let ids: Vec<String> = cases().map(|(id, _)| id).collect();
    let tried: BTreeSet<String> = ids.iter().map(|id| clause(id)).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "no number is given twice");
    let unknown: Vec<_> = tried.iter().filter(|id| !listed.contains(id.as_str())).collect();
    assert!(unknown.is_empty(), "not in docs/spec.md: {unknown:?}");
    let clauses = listed.iter().filter(|id| id.starts_with("D2M-12.") || id.starts_with("D2M-A"));
    let missing: Vec<_> = clauses.filter(|id| !tried.contains(**id)).collect();
    assert_eq!(missing, UNSEEN.iter().map(|(id, _)| id).collect::<Vec<_>>());
    let others = UNSEEN.iter().filter(|(_, by)| by.starts_with("D2M-"));
    assert!(others.into_iter().all(|(_, by)| ids.iter().any(|id| id == by)));
}

fn heliostat(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_heliostat")).arg("conform").args(args).output().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_says_by_its_exit_status_what_it_found() {
    let Honest { mediator: _mediator, address, .. } = Honest::start(None).await;
    let relay = Relay::before(address, Fault::AnnouncesVersionOne.make()).await;
    let (good, bad) = (format!("ws://{address}"), format!("ws://{}", relay.address));
    let run = move || {
        let only = ["--only", "D2M-A13", "--only", "D2M-12.1", "--format"];
        let judged = |url: &str, format| heliostat(&[&["server", url], &only[..], &[format]].concat());
        for (url, status) in [(&good, 0), (&bad, 1)] {
            for (format, start) in
                [("table", "pass  D2M-12.1a"), ("tap", "TAP version 14\n1..3\n"), ("junit", "<?xml"), ("json", "{")]
            {
                let output = judged(url, format);
                let said = String::from_utf8(output.stdout).unwrap();
                assert_eq!(output.status.code(), Some(status), "{said}");
                assert!(said.starts_with(start) && !said.contains('\x1b'), "{said}");
            }
        }
        let listed = String::from_utf8(heliostat(&["server", "--list", "--only", "D2M-8"]).stdout).unwrap();
        assert!(
            listed.lines().eq(cases().filter(|(id, _)| id.starts_with("D2M-8")).map(|(id, rule)| {
                let slow = if id == "D2M-8.3a" { " (130 s: --slow)" } else { "" };
                format!("{id:16}  {rule}{slow}")
            })),
            "{listed}"
        );
        assert_eq!(heliostat(&["server", &good, "--only", "D2M-99"]).status.code(), Some(1), "no such case");
        assert_eq!(heliostat(&["server", "ws://127.0.0.1:1"]).status.code(), Some(1), "nobody is there");
    };
    tokio::task::spawn_blocking(run).await.unwrap();
}

#[test]
fn a_client_is_started_by_a_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let device = format!(
        "printf 'wait 30' | {} device \"$HELIOSTAT_JUDGE\" --group-key {}",
        env!("CARGO_BIN_EXE_heliostat"),
        dir.path().join("key").display()
    );
    let output = heliostat(&["client", "--listen", "127.0.0.1:0", "--only", "CLIENT-3.3a", "--start", &device]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("pass  CLIENT-3.3a") && output.status.success(), "{said}");
}
