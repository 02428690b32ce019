//! The judge of clients, judged: the client of this crate passes, and one that is wrong in one way fails what it should. The
//! wrong ones are the same client behind a relay.

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

#[path = "conform/relay.rs"]
mod relay;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use heliostat::chat::csp::wire::Identity;
use heliostat::client::csp::Login;
use heliostat::client::steady::Backoff;
use heliostat::client::{Device, DeviceConfig, GroupKey, Mediator, Steady, Trust};
use heliostat::crypto::{Secret, boxes};
use heliostat::tools::conform::client::{ChatPlan, Plan, Start, judge};
use heliostat::tools::conform::report::{Report, Verdict};
use heliostat::wire::d2m::{
    DeviceId, Envelope, FromDevice, ReflectAck, Reflected, ReflectedId, ServerGroup, SlotState, ToDevice,
};
use relay::{Instead, Relay, Said, Wrong};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

/// What is wrong with a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Fault {
    AcksWithoutProcessing,
    AcksNothingTwice,
    ProcessesTwice,
    AcksWhatNeverCame,
    SpeaksFirst,
    SaysHelloTwice,
    ProvesNothing,
    AnswersAnyKey,
    IsAlwaysNew,
    WantsNoVersion,
    LosesTheLargest,
    DiesOfEphemeral,
    DiesOfEmptyProxy,
    DiesOfEarlyPromotion,
    IgnoresCloses,
    MistakesCode { from: u16, to: u16 },
    LeadsUnasked,
    ThinksItIsDry,
    TalksBeforeLoginAck,
    RepeatsItself,
    AcksChatAtOnce,
    ReflectsOnce,
    HammersTheServer,
    ComesOnce,
}

/// What the connections of a client share.
#[derive(Default)]
struct Shared {
    connections: usize,
    seen: BTreeSet<u32>,
    reflects: usize,
}

struct Faulty {
    fault: Fault,
    shared: Arc<Mutex<Shared>>,
    seen_before: BTreeSet<u32>,
    proxied: Vec<Said>,
    units: usize,
    dry: bool,
}

impl Faulty {
    fn refuse() -> Instead {
        Instead::down(Said::Close(1001))
    }
}

impl Wrong for Faulty {
    fn begins(&mut self) -> Vec<Said> {
        let mut shared = self.shared.lock().unwrap();
        shared.connections += 1;
        self.seen_before = shared.seen.clone();
        if self.fault == Fault::SpeaksFirst { vec![Said::device(&FromDevice::GetDevicesInfo)] } else { Vec::new() }
    }

    fn from_device(&mut self, said: Said) -> Instead {
        match (said.from_device(), self.fault) {
            (Some(FromDevice::ReflectedAck(id)), Fault::AcksNothingTwice) if self.seen_before.contains(&id.0) => {
                Instead::nothing()
            }
            (Some(FromDevice::ReflectedAck(id)), Fault::AcksWhatNeverCame) => {
                let other = ReflectedId(id.0 + 1_000_000);
                Instead::up(Said::device(&FromDevice::ReflectedAck(other))).and_up(said)
            }
            (Some(FromDevice::ClientHello(_)), Fault::SaysHelloTwice) => Instead::up(said.clone()).and_up(said),
            (Some(FromDevice::ClientHello(mut hello)), Fault::ProvesNothing) => {
                hello.response[40] ^= 1;
                Instead::up(Said::device(&FromDevice::ClientHello(hello)))
            }
            (Some(FromDevice::ClientHello(mut hello)), Fault::IsAlwaysNew) => {
                hello.expected_slot_state = SlotState::New;
                Instead::up(Said::device(&FromDevice::ClientHello(hello)))
            }
            (Some(FromDevice::Reflect(reflect)), Fault::AcksChatAtOnce) => {
                let ack = ReflectAck { reflect_id: reflect.reflect_id, timestamp_ms: 1 };
                Instead::up(said).and_down(Said::mediator(&ToDevice::ReflectAck(ack)))
            }
            (Some(FromDevice::Reflect(_)), Fault::ReflectsOnce) => {
                let mut shared = self.shared.lock().unwrap();
                shared.reflects += 1;
                if shared.reflects > 1 { Instead::nothing() } else { Instead::up(said) }
            }
            (Some(FromDevice::Proxy(_)), fault) => {
                self.proxied.push(said.clone());
                // Client-hello, then the login.
                if fault == Fault::TalksBeforeLoginAck && self.proxied.len() == 2 {
                    let frame = [&[20, 0][..], &[0; 20]].concat();
                    return Instead::up(said).and_up(Said::device(&FromDevice::Proxy(frame.into())));
                }
                if fault == Fault::RepeatsItself && self.proxied.len() > 2 {
                    return Instead::up(said.clone()).and_up(said);
                }
                Instead::up(said)
            }
            _ => Instead::up(said),
        }
    }

    fn to_device(&mut self, said: Said) -> Instead {
        if let Said::Close(code) = said {
            return match self.fault {
                Fault::IgnoresCloses => Instead::nothing(),
                Fault::MistakesCode { from, to } if code == from => Instead::down(Said::Close(to)),
                _ => Instead::down(said),
            };
        }
        if let (Fault::WantsNoVersion, Said::Binary(bytes)) = (self.fault, &said)
            && bytes.starts_with(&[0x10, 0, 0, 0, 0x08])
        {
            return Self::refuse();
        }
        match (said.to_device(), self.fault) {
            (Some(ToDevice::Reflected(message)), fault) => {
                self.shared.lock().unwrap().seen.insert(message.id().0);
                match fault {
                    Fault::AcksWithoutProcessing => Instead {
                        to_mediator: vec![Said::device(&FromDevice::ReflectedAck(message.id()))],
                        to_device: vec![],
                    },
                    Fault::ProcessesTwice if self.seen_before.contains(&message.id().0) => {
                        let envelope = Envelope::copy_from(message.envelope());
                        let other = Reflected::new(envelope, message.flags(), message.id(), 1);
                        Instead::down(Said::mediator(&ToDevice::Reflected(other)))
                    }
                    Fault::LosesTheLargest if message.container().len() > 60_000 => Instead::nothing(),
                    Fault::DiesOfEphemeral if message.flags().ephemeral => Self::refuse(),
                    _ => Instead::down(said),
                }
            }
            (Some(ToDevice::ServerHello(mut hello)), Fault::AnswersAnyKey) if hello.esk == [0; 32] => {
                // The client's own code refuses it; so it is shown another.
                hello.esk = boxes::public(&Secret::random());
                Instead::down(Said::mediator(&ToDevice::ServerHello(hello)))
            }
            (Some(ToDevice::ServerInfo(_)), Fault::ThinksItIsDry) => {
                Instead::down(said).and_down(Said::mediator(&ToDevice::ReflectionQueueDry))
            }
            (Some(ToDevice::ReflectionQueueDry), fault) => {
                self.dry = true;
                match fault {
                    Fault::LeadsUnasked => {
                        Instead::down(said).and_down(Said::mediator(&ToDevice::RolePromotedToLeader))
                    }
                    _ => Instead::down(said),
                }
            }
            (Some(ToDevice::RolePromotedToLeader), Fault::DiesOfEarlyPromotion) if !self.dry => Self::refuse(),
            (Some(ToDevice::Proxy(bytes)), fault) => {
                self.units += 1;
                if fault == Fault::DiesOfEmptyProxy && bytes.is_empty() { Self::refuse() } else { Instead::down(said) }
            }
            _ => Instead::down(said),
        }
    }
}

/// A client under test, which is started again whenever the judge says so.
struct Clients {
    mediator: Mediator,
    config: DeviceConfig,
    login: Login,
    journal: PathBuf,
    backoff: Backoff,
    once: bool,
    running: Mutex<Option<AbortHandle>>,
}

impl Clients {
    fn start(&self) {
        let Self { mediator, config, login, journal, backoff, once, .. } = self;
        let (mediator, config, journal, once) = (mediator.clone(), config.clone(), journal.clone(), *once);
        let keep = move |envelope: &[u8]| {
            let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&journal)?;
            writeln!(file, "{}", hex::encode(envelope))
        };
        let mut steady = Steady::new(mediator.clone(), config.clone(), keep).chat(login.clone()).backoff(*backoff);
        let task = tokio::spawn(async move {
            if once {
                if let Ok(mut device) = Device::connect(&mediator, &config).await {
                    device.wait_ended().await;
                }
            } else {
                steady.run().await;
            }
        });
        if let Some(old) = self.running.lock().unwrap().replace(task.abort_handle()) {
            old.abort();
        }
    }
}

async fn judged(fault: Option<Fault>, only: &[&str], patience: Duration) -> Report {
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("journal");
    std::fs::write(&journal, "").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let judge_at = listener.local_addr().unwrap();
    let shared = Arc::new(Mutex::new(Shared::default()));
    let relay = match fault {
        Some(fault) => Some(
            Relay::before(
                judge_at,
                Arc::new(move |_| {
                    Box::new(Faulty {
                        fault,
                        shared: Arc::clone(&shared),
                        seen_before: BTreeSet::new(),
                        proxied: Vec::new(),
                        units: 0,
                        dry: false,
                    })
                }),
            )
            .await,
        ),
        None => None,
    };
    let at: SocketAddr = relay.as_ref().map_or(judge_at, |relay| relay.address);
    let (key, server_key, client_key) = (GroupKey::generate(), Secret::random(), Secret::random());
    let identity = Identity::random();
    let first = if fault == Some(Fault::HammersTheServer) { 1 } else { 20 };
    let clients = Clients {
        mediator: Mediator::new(&format!("ws://{at}/"), &Trust::System).unwrap(),
        config: DeviceConfig::new(key.clone(), ServerGroup::new("a0").unwrap(), DeviceId(1)),
        login: Login::new(identity, client_key.clone(), boxes::public(&server_key)),
        journal: journal.clone(),
        backoff: Backoff { first: Duration::from_millis(first), most: Duration::from_millis(first * 50) },
        once: fault == Some(Fault::ComesOnce),
        running: Mutex::default(),
    };
    let report = judge(Plan {
        listener,
        tls: None,
        start: Start::Hook(Arc::new(move || clients.start())),
        key: Some(key),
        journal: Some(journal),
        chat: Some(ChatPlan { server_key, identity, public_key: boxes::public(&client_key) }),
        patience,
        quiet: Duration::from_millis(1_500),
        grace: Duration::from_millis(400),
        only: only.iter().map(|&only| only.to_owned()).collect(),
    });
    report.await.unwrap()
}

fn told(report: &Report) -> Vec<String> {
    let failed = report.outcomes.iter().filter(|outcome| matches!(outcome.verdict, Verdict::Failed(_)));
    failed.map(|outcome| format!("{}: {:?}", outcome.id, outcome.verdict)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_steady_client_keeps_every_rule() {
    let report = judged(None, &[], Duration::from_secs(30)).await;
    assert_eq!(told(&report), [""; 0]);
    assert!(report.outcomes.iter().all(|outcome| outcome.verdict == Verdict::Passed), "nothing was skipped");
}

/// What each fault turns red, of the cases that are tried with it.
const TABLE: &[(Fault, &[&str], &[&str])] = &[
    (Fault::AcksWithoutProcessing, &["CLIENT-4.3"], &["CLIENT-4.3c", "CLIENT-4.3e"]),
    (Fault::AcksNothingTwice, &["CLIENT-4.3"], &["CLIENT-4.3b", "CLIENT-4.3d", "CLIENT-4.3e"]),
    (Fault::ProcessesTwice, &["CLIENT-4.3"], &["CLIENT-4.3e"]),
    (Fault::AcksWhatNeverCame, &["CLIENT-4.3a", "CLIENT-3"], &["CLIENT-4.3a", "CLIENT-3.4a"]),
    (Fault::SpeaksFirst, &["CLIENT-3.2"], &["CLIENT-3.2a", "CLIENT-3.2b"]),
    (Fault::SaysHelloTwice, &["CLIENT-3"], &["CLIENT-3.2b"]),
    (Fault::ProvesNothing, &["CLIENT-3.3a"], &["CLIENT-3.3a"]),
    (Fault::AnswersAnyKey, &["CLIENT-3"], &["CLIENT-3.3c"]),
    (Fault::IsAlwaysNew, &["CLIENT-3"], &["CLIENT-3.3d"]),
    (Fault::WantsNoVersion, &["CLIENT-3"], &["CLIENT-3.3b"]),
    (Fault::LosesTheLargest, &["CLIENT-2", "CLIENT-4"], &["CLIENT-2.5a"]),
    (Fault::DiesOfEphemeral, &["CLIENT-2", "CLIENT-4"], &["CLIENT-4.3f"]),
    (Fault::DiesOfEmptyProxy, &["CLIENT-2", "CLIENT-4", "CLIENT-9.2a"], &["CLIENT-9.2a"]),
    (Fault::DiesOfEarlyPromotion, &["CLIENT-2", "CLIENT-3"], &["CLIENT-3.4a"]),
    (Fault::IgnoresCloses, &["CLIENT-8.1a"], &["CLIENT-8.1a"]),
    (Fault::MistakesCode { from: 4112, to: 1001 }, &["CLIENT-8.1/41*"], &["CLIENT-8.1/4112"]),
    (Fault::MistakesCode { from: 4115, to: 4010 }, &["CLIENT-8.1/411*"], &["CLIENT-8.1/4115"]),
    (Fault::MistakesCode { from: 4001, to: 4113 }, &["CLIENT-8.1/40*", "CLIENT-8.2a"], &["CLIENT-8.1/4001"]),
    (Fault::MistakesCode { from: 4299, to: 4199 }, &["CLIENT-8.1/*00*", "CLIENT-8.1/4299"], &["CLIENT-8.1/4299"]),
    (Fault::LeadsUnasked, &["CLIENT-5"], &["CLIENT-5a"]),
    (Fault::ThinksItIsDry, &["CLIENT-5"], &["CLIENT-5c"]),
    (Fault::TalksBeforeLoginAck, &["CLIENT-5b"], &["CLIENT-5b"]),
    (Fault::RepeatsItself, &["CLIENT-5d"], &["CLIENT-5d"]),
    (Fault::AcksChatAtOnce, &["CLIENT-5", "CLIENT-9"], &["CLIENT-9.1a"]),
    (Fault::ReflectsOnce, &["CLIENT-9.1b"], &["CLIENT-9.1b"]),
    (Fault::HammersTheServer, &["CLIENT-8.2"], &["CLIENT-8.2b"]),
    (Fault::ComesOnce, &["CLIENT-8.2a"], &["CLIENT-8.2a"]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_wrong_client_is_caught() {
    let runs = TABLE.iter().map(|&(fault, only, expected)| async move {
        let report = judged(Some(fault), only, Duration::from_secs(4)).await;
        let (mut red, mut expected) = (report.failed(), expected.to_vec());
        red.sort_unstable();
        expected.sort_unstable();
        (red != expected).then(|| format!("{fault:?} turned {red:?} red:\n  {}", told(&report).join("\n  ")))
    });
    let wrong: Vec<String> =
        futures_util::stream::iter(runs).buffer_unordered(6).filter_map(async |it| it).collect().await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
