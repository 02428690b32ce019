//! `heliostat conform server`: every clause of the protocol that can be seen from outside, tried on any mediator.
//!
//! A case is a line of a table (number, rule, what it needs, how long it waits) and an async function that says what was not
//! as it has to be. Each has a device group of its own, so that cases can run side by side and one that fails disturbs no
//! other; when it is over, every device of the group is dropped.
//!
//! | file | cases about |
//! |---|---|
//! | `door` | paths and requests |
//! | `hello` | the handshake, slots, first payloads, the leader |
//! | `reflection` `transactions` `devices` | what devices do with each other |
//! | `frames` | containers |
//! | `proxy` | the pipe to the chat server, which is played here |
//! | `chat` | the CSP chat server behind the pipe |
//! | `world` | what all of them are made of |

mod chat;
mod devices;
mod door;
mod frames;
mod hello;
mod proxy;
mod reflection;
mod transactions;
mod world;

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};
use tokio::net::TcpListener;

use self::chat::Room;
use self::world::{Case, Finding, Needs, Stage, Target, World};
use super::report::{Format, Outcome, Report, Verdict};
use super::{chosen, print};
use crate::client::{ConnectError, GroupKey, Mediator};
use crate::time::Clock;
use crate::tools::{TrustArgs, not_connected, trust_of};
use crate::wire::d2m::{ClientUrlInfo, ServerGroup};

/// What a case that waits for nothing takes, roughly, with its neighbours and its cleaning up.
const QUICK: Duration = Duration::from_millis(250);

/// Try every clause on a mediator
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  heliostat conform server wss://localhost:8443
  heliostat conform server wss://localhost:8443 --csp --format junit > conform.xml
  heliostat conform server wss://mediator.example/m/ --pin 3q2+7w...= --only D2M-12 --only 'D2M-A*'

Cases about the proxy need a chat server that does what the case says: conform plays it on --stage, and the mediator's server \
                        group --stage-group has to lead there.

Exit status 0: every rule that was tried is kept. 1: one is not, or none could be tried.")]
pub struct Args {
    /// The mediator's base URL
    #[arg(default_value = "wss://localhost:8443")]
    url: String,
    #[command(flatten)]
    trust: TrustArgs,
    /// The server's data directory: its development CA is trusted, and with --csp identities are made there
    #[arg(long, value_name = "DIR", default_value = "heliostat-data")]
    data: PathBuf,
    /// Names the chat server in the devices' URLs
    #[arg(long, value_name = "NAME", default_value = "a0", value_parser = server_group)]
    server_group: ServerGroup,
    /// Also try the CSP chat server to which --server-group leads, over TCP and through the proxy
    #[arg(long)]
    csp: bool,
    /// Where that chat server listens
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:5222", requires = "csp")]
    csp_address: String,
    /// Play a chat server there, for the cases about the proxy
    #[arg(long, value_name = "ADDR", requires = "stage_group")]
    stage: Option<SocketAddr>,
    /// The server group that leads to --stage
    #[arg(long, value_name = "NAME", requires = "stage", value_parser = server_group)]
    stage_group: Option<ServerGroup>,
    /// A server group that leads to an address where nobody listens
    #[arg(long, value_name = "NAME", value_parser = server_group)]
    unreachable_group: Option<ServerGroup>,
    /// Also try what takes minutes
    #[arg(long)]
    slow: bool,
    /// Only cases whose number is this, begins with it, or matches its `*`; may be given again
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
    /// Name the cases and try none
    #[arg(long)]
    list: bool,
    /// How the results are printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// How many cases run at a time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// How long something that has to happen may take
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    patience: Duration,
}

fn server_group(name: &str) -> Result<ServerGroup, String> {
    ServerGroup::new(name).ok_or_else(|| "a server group is 1 to 32 digits and letters".to_owned())
}

/// Who is judged, by which cases.
#[derive(Debug)]
pub struct Plan {
    /// Who.
    pub mediator: Mediator,
    /// Names the chat server in the devices' URLs.
    pub server_group: ServerGroup,
    /// Where a chat server is played, and the server group that leads there.
    pub stage: Option<(TcpListener, ServerGroup)>,
    /// A server group that leads to nobody.
    pub unreachable: Option<ServerGroup>,
    /// The CSP chat server behind `server_group`: its data directory and its address.
    pub chat: Option<(PathBuf, String)>,
    /// Also what takes minutes.
    pub slow: bool,
    /// Which cases; all when empty.
    pub only: Vec<String>,
    /// How many at a time.
    pub jobs: usize,
    /// How long something that has to happen may take.
    pub patience: Duration,
}

impl Plan {
    /// All quick cases that need nothing but the mediator.
    #[must_use]
    pub const fn new(mediator: Mediator, server_group: ServerGroup) -> Self {
        Self {
            mediator,
            server_group,
            stage: None,
            unreachable: None,
            chat: None,
            slow: false,
            only: Vec::new(),
            jobs: 8,
            patience: Duration::from_secs(10),
        }
    }
}

/// A case, and whether it goes through the proxy where both ways are tried.
struct Planned {
    id: String,
    case: &'static Case,
    through_proxy: bool,
}

impl Planned {
    fn all() -> impl Iterator<Item = Self> {
        let tables = [
            door::CASES,
            frames::CASES,
            hello::CASES,
            reflection::CASES,
            transactions::CASES,
            devices::CASES,
            proxy::CASES,
        ];
        tables.into_iter().chain([chat::CASES]).flatten().flat_map(|case| {
            let both: &[bool] = if case.needs == Needs::Csp { &[false, true] } else { &[false] };
            both.iter().map(move |&through_proxy| {
                let suffix = if case.needs == Needs::Csp { chat::suffix(through_proxy) } else { "" };
                Self { id: format!("{}{suffix}", case.id), case, through_proxy }
            })
        })
    }

    /// Why it cannot be tried, if it cannot.
    fn obstacle(&self, target: &Target, slow: bool) -> Option<String> {
        match (self.case.needs, self.case.slow_s) {
            (_, Some(seconds)) if !slow => Some(format!("takes {seconds} s: --slow")),
            (Needs::Stage, _) if target.stage.is_none() => Some("needs a chat server to play: --stage".to_owned()),
            (Needs::Unreachable, _) if target.unreachable.is_none() => {
                Some("needs a server group that leads to nobody: --unreachable-group".to_owned())
            }
            (Needs::Csp, _) if target.room.is_none() => Some("needs the CSP chat server: --csp".to_owned()),
            (Needs::Mediator | Needs::Stage | Needs::Unreachable | Needs::Csp, _) => None,
        }
    }

    async fn run(self, target: Arc<Target>, slow: bool, progress: &ProgressBar) -> (Outcome, Option<String>) {
        let before = target.clock.now().monotonic;
        let (verdict, left) = match self.obstacle(&target, slow) {
            Some(why) => (Verdict::Skipped(why), None),
            None => self.try_on(&target).await,
        };
        let took = target.clock.now().monotonic.saturating_sub(before);
        progress.inc(1);
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        (Outcome { id: self.id, rule: self.case.rule, verdict, took_ms }, left)
    }

    async fn try_on(&self, target: &Arc<Target>) -> (Verdict, Option<String>) {
        let staged = target.stage.as_ref().filter(|_| self.case.needs == Needs::Stage);
        let server_group = staged.map_or(&target.server_group, |stage| &stage.server_group);
        let world = World::new(Arc::clone(target), server_group.clone(), self.through_proxy);
        let verdict = match (self.case.run)(&world).await {
            Ok(()) => Verdict::Passed,
            Err(Finding::Broken(what)) => Verdict::Failed(what),
            Err(Finding::Untried(why)) => Verdict::Skipped(why),
        };
        let left = world.clean_up().await.err();
        (verdict, left.map(|why| format!("a device group of {}: {why}", self.id)))
    }
}

/// The number and rule of every case, also of those that need more than the mediator.
pub fn cases() -> impl Iterator<Item = (String, &'static str)> {
    Planned::all().map(|planned| (planned.id, planned.case.rule))
}

/// Tries the cases of a plan.
///
/// # Errors
/// When it cannot begin: what is needed is not there, or nothing answers.
pub async fn judge(plan: Plan) -> Result<Report> {
    let Plan { mediator, server_group, stage, unreachable, chat, slow, only, jobs, patience } = plan;
    let clock = Clock::system();
    let before = clock.now().monotonic;
    reach(&mediator, &server_group, patience).await?;
    let room = match chat {
        Some((data, address)) => Some(Room::open(&data, address, server_group.as_str()).await?),
        None => None,
    };
    let stage = stage.map(|(listener, server_group)| Stage::open(listener, server_group));
    let subject = mediator.url(&ClientUrlInfo {
        device_group_id: GroupKey::generate().device_group_id(),
        server_group: server_group.clone(),
    });
    let subject = subject.rsplit_once('/').map_or_else(|| subject.clone(), |(base, _)| format!("{base}/"));
    let target = Arc::new(Target { mediator, server_group, unreachable, stage, room, patience, clock });

    let planned: Vec<Planned> = Planned::all().filter(|planned| chosen(&only, &planned.id)).collect();
    if planned.is_empty() {
        return Err(miette!(help = "--list names them all", "no case has such a number"));
    }
    let order: Vec<String> = planned.iter().map(|planned| planned.id.clone()).collect();
    let progress = progress(&planned, &target, slow, jobs);
    // Slow cases wait, mostly: all at once they take no longer than the slowest.
    let (waiting, quick): (Vec<_>, Vec<_>) = planned.into_iter().partition(|planned| planned.case.slow_s.is_some());
    let run = |planned: Planned| planned.run(Arc::clone(&target), slow, &progress);
    let (mut done, waited) = tokio::join!(
        stream::iter(quick).map(run).buffer_unordered(jobs.max(1)).collect::<Vec<_>>(),
        futures_util::future::join_all(waiting.into_iter().map(run)),
    );
    progress.finish_and_clear();
    done.extend(waited);
    let place = |id: &String| order.iter().position(|other| other == id);
    done.sort_by_key(|(outcome, _)| place(&outcome.id));
    let took = target.clock.now().monotonic.saturating_sub(before);
    let (outcomes, left): (Vec<_>, Vec<_>) = done.into_iter().unzip();
    Ok(Report {
        subject,
        outcomes,
        left_behind: left.into_iter().flatten().collect(),
        took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    })
}

/// Says how many cases there are and how long they will take, on a terminal also how far they are.
fn progress(planned: &[Planned], target: &Target, slow: bool, jobs: usize) -> ProgressBar {
    let possible = || planned.iter().filter(|planned| planned.obstacle(target, slow).is_none());
    let quick = possible().filter(|planned| planned.case.slow_s.is_none()).count();
    let quick = QUICK * u32::try_from(quick.div_ceil(jobs.max(1))).unwrap_or(u32::MAX);
    let longest = possible().filter_map(|planned| planned.case.slow_s).max().unwrap_or_default();
    let takes = quick.max(Duration::from_secs(longest)).as_secs() + 1;
    tracing::info!(cases = possible().count(), skipped = planned.len() - possible().count(), "about {takes} s");
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let progress = ProgressBar::with_draw_target(u64::try_from(planned.len()).ok(), ProgressDrawTarget::stderr());
    // A template that cannot be read leaves the plain bar.
    if let Ok(style) = ProgressStyle::with_template("{pos}/{len} cases {wide_bar} {elapsed}") {
        progress.set_style(style);
    }
    progress
}

/// A mediator that is not there is one mistake, not two hundred.
async fn reach(mediator: &Mediator, server_group: &ServerGroup, patience: Duration) -> Result<()> {
    let group =
        ClientUrlInfo { device_group_id: GroupKey::generate().device_group_id(), server_group: server_group.clone() };
    let opened = tokio::time::timeout(patience, mediator.open(&group)).await;
    match opened.unwrap_or_else(|_| Err(ConnectError::Tcp(std::io::ErrorKind::TimedOut.into()))) {
        Ok(_) => Ok(()),
        Err(error) => Err(not_connected(&error, mediator)),
    }
}

/// Tries the cases and prints what was found.
///
/// # Errors
/// When it cannot begin.
pub(super) async fn run(args: Args) -> Result<ExitCode> {
    if args.list {
        let listed = Planned::all().filter(|planned| chosen(&args.only, &planned.id));
        let line = |planned: Planned| {
            let slow = planned.case.slow_s.map_or_else(String::new, |seconds| format!(" ({seconds} s: --slow)"));
            format!("{:16}  {}{slow}\n", planned.id, planned.case.rule)
        };
        print(&listed.map(line).collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mediator = Mediator::new(&args.url, &trust_of(&args.trust, &args.data)?).into_diagnostic()?;
    let stage = match args.stage.zip(args.stage_group) {
        Some((address, group)) => {
            let listener = TcpListener::bind(address).await.into_diagnostic();
            Some((listener.wrap_err_with(|| format!("cannot listen on {address}"))?, group))
        }
        None => None,
    };
    let report = judge(Plan {
        mediator,
        server_group: args.server_group,
        stage,
        unreachable: args.unreachable_group,
        chat: args.csp.then_some((args.data, args.csp_address)),
        slow: args.slow,
        only: args.only,
        jobs: usize::from(args.jobs),
        patience: args.patience,
    })
    .await?;
    super::conclude(&report, args.format)
}
