//! `heliostat simulate`: groups of devices over real sockets, and a judgement of what reached whom.
//!
//! The judgement is the simulation's own (`ledger.rs`): it believes acknowledgements and arrivals, nothing else. A server
//! may be killed and started again underneath; what it acknowledged before has to arrive all the same.
//!
//! | file | holds |
//! |---|---|
//! | `scenario.rs` | what is to happen, as a file says it |
//! | `script.rs` | what one device says and what becomes of it, drawn from the seed |
//! | `group.rs` | devices that do it |
//! | `line.rs` | sockets that are read slowly or not at all |
//! | `ledger.rs` | the judgement |
//! | `chat.rs` | what the groups' identities say to each other through the proxy |
//! | `totals.rs`, `screen.rs`, `report.rs` | what is counted, while it runs and in the end |

mod chat;
mod group;
mod ledger;
mod line;
mod report;
mod scenario;
mod screen;
mod script;
pub(super) mod totals;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use chat::{Chat, ChatTally};
use group::{CONNECT_PATIENCE, Group, HANDSHAKES, World};
use ledger::Tally;
use scenario::{Bytes, Count, Delay, Scenario, ServerChaos, Share, Size, Time};
use screen::{Progress, Sight};
use script::Event;
use totals::Totals;

use super::{TrustArgs, begin_capture, finish_capture, not_connected, trust_of};
use crate::client::{GroupKey, Mediator};
use crate::time::Clock;
use crate::wire::d2m::{ClientUrlInfo, CloseCode, ServerGroup};

/// How often it is looked whether anything moves, and shown.
const TICK: Duration = Duration::from_millis(200);
/// How long whoever ends it waits for what is still due.
const LEAVE_PATIENCE: Duration = Duration::from_secs(10);

/// Let many groups of devices reflect, and judge what reached whom
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  heliostat simulate --groups 20 --devices 3 --messages 50
  heliostat simulate --scenario churn --duration 10m --json report.json
  heliostat simulate --scenario storm --print-scenario > mine.toml
  heliostat simulate --pause 100ms --messages 600     (and kill the server in the middle)
  heliostat simulate --url wss://mediator.example/ --pin 3q2+7w...=

Connections that break are made again, so the server may be restarted underneath. Ctrl-C, or q on the screen, ends it early \
                        with a report. Exit status 0: everything that was acknowledged reached every device it was owed to, in order. \
                        1: something did not, or nothing moved for too long.")]
pub struct Args {
    /// The mediator's base URL
    #[arg(long, default_value = "wss://localhost:8443", value_name = "URL")]
    url: String,
    #[command(flatten)]
    trust: TrustArgs,
    /// The server's data directory: its development CA is trusted, and the chat identities of simulations are kept there
    #[arg(long, default_value = "heliostat-data", value_name = "DIR")]
    data: PathBuf,
    /// What happens: a TOML file, or the name of one that comes with the program; the flags below change it
    #[arg(long, default_value = "default", value_name = "FILE|NAME")]
    scenario: String,
    /// List the scenarios that come with the program, and end
    #[arg(long)]
    list: bool,
    /// Print the scenario with all its keys, as changed by the flags, and end
    #[arg(long)]
    print_scenario: bool,
    /// How many device groups
    #[arg(long, value_parser = count)]
    groups: Option<Count>,
    /// How many devices in each
    #[arg(long, value_parser = count)]
    devices: Option<Count>,
    /// How many messages each device reflects
    #[arg(long, conflicts_with = "duration")]
    messages: Option<u32>,
    /// How long the devices speak
    #[arg(long)]
    duration: Option<Time>,
    /// Bytes of a message, before it is sealed
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    size: Option<Bytes>,
    /// Share of the messages that are reflected in transactions, 0 to 1
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    transactions: Option<Share>,
    /// Share of the other messages that are ephemeral, 0 to 1
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    ephemeral: Option<Share>,
    /// How long a device pauses between two messages; 0s: it speaks as fast as it is acknowledged
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pause: Option<Duration>,
    /// Give up when nothing moved for this long
    #[arg(long, default_value = "60s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    patience: Duration,
    /// What the devices choose follows from this number
    #[arg(long)]
    seed: Option<u64>,
    /// Do not send chat messages, even where identities can be made
    #[arg(long)]
    no_csp: bool,
    /// Record what one of the groups says, the first that connects, into a new file that you alone can read
    #[arg(long, value_name = "FILE")]
    capture: Option<PathBuf>,
    /// Names the chat server in the devices' URLs
    #[arg(long, default_value = "a0", value_name = "NAME")]
    server_group: String,
    /// Lines instead of a screen, also on a terminal
    #[arg(long)]
    plain: bool,
    /// Write the report as JSON there, too; with `-` to standard output instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn count(text: &str) -> Result<Count, String> {
    let number: u16 = text.parse().map_err(|_| "not a number from 1 to 65535".to_owned())?;
    Count::try_from(number).map_err(str::to_owned)
}

fn bytes(text: &str) -> Result<Bytes, String> {
    Bytes::try_from(text.parse::<u16>().map_err(|_| "not a number of bytes".to_owned())?)
}

fn ratio(text: &str) -> Result<Share, String> {
    Share::try_from(text.parse::<f64>().map_err(|_| "not a number".to_owned())?).map_err(str::to_owned)
}

impl Args {
    /// The scenario, as the flags change it.
    fn scenario(&self) -> Result<Scenario> {
        let mut scenario = Scenario::find(&self.scenario)?;
        fn set<T: Copy>(key: &mut T, flag: Option<T>) {
            *key = flag.unwrap_or(*key);
        }
        set(&mut scenario.groups, self.groups);
        set(&mut scenario.devices, self.devices);
        set(&mut scenario.seed, self.seed);
        set(&mut scenario.transactions.share, self.transactions);
        set(&mut scenario.ephemeral, self.ephemeral);
        if let Some(size) = self.size {
            scenario.size = Size::Fixed(size);
        }
        if let Some(pause) = self.pause {
            scenario.think = Time::new(pause).map_or(Delay::None, Delay::Fixed);
        }
        // One of them, and the flag is the stronger one.
        if self.messages.is_some() || self.duration.is_some() {
            (scenario.messages, scenario.duration) = (self.messages, self.duration);
        }
        scenario.check()?;
        Ok(scenario)
    }
}

/// What a simulation found.
#[derive(Debug)]
struct Outcome {
    tally: Tally,
    chat: Option<ChatTally>,
    /// Why it ended early.
    gave_up: Option<String>,
    interrupted: bool,
    elapsed: Duration,
}

impl Outcome {
    fn is_good(&self) -> bool {
        self.gave_up.is_none() && self.tally.is_clean() && self.chat.as_ref().is_none_or(ChatTally::is_clean)
    }
}

/// Runs a simulation and prints its closing table.
///
/// # Errors
/// When it cannot begin.
pub async fn run(args: Args) -> Result<ExitCode> {
    if args.list {
        return print(&Scenario::list()?);
    }
    let scenario = args.scenario()?;
    if args.print_scenario {
        return print(&scenario.print().into_diagnostic()?);
    }
    let server_group = ServerGroup::new(&args.server_group)
        .ok_or_else(|| miette!("{} is not a server group: 1 to 32 digits and letters", args.server_group))?;
    let trust = trust_of(&args.trust, &args.data)?;
    let mediator = Mediator::new(&args.url, &trust).into_diagnostic()?;
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tell(&format!("the limit on open files cannot be raised: {error}"));
    }
    // Patience is for a server that is started again, not for one that was never there.
    reach(&mediator, &server_group).await?;
    let mut mediator = mediator;
    let capture = args.capture.as_deref().map(|path| begin_capture(path, &mut mediator)).transpose()?;
    let groups = scenario.groups.get();
    let chats = usize::try_from(scenario.chat.or(scenario.messages).unwrap_or(0)).into_diagnostic()?;
    let chat = if args.no_csp || groups < 2 || chats == 0 {
        None
    } else if !chat::is_reachable(&args.data) {
        tell(&format!("no chat messages: {} is not the data directory of a chat server", args.data.display()));
        None
    } else {
        Some(Chat::prepare(&args.data, groups, chats, &server_group).await?)
    };
    let world = Arc::new(World {
        clock: Clock::system(),
        mediator,
        scenario,
        chat,
        totals: Totals::new().into_diagnostic().wrap_err("no histogram")?,
        ending: CancellationToken::new(),
        handshakes: Semaphore::new(HANDSHAKES),
        births: Mutex::default(),
        born: Notify::new(),
    });
    let outcome = simulate(&args, &world, &server_group).await?;
    let captured = finish_capture(capture).await;
    let (table, json) = (report::table(&outcome, &world.totals), report::json(&outcome, &world));
    match args.json {
        Some(path) if path.as_os_str() == "-" => {
            print(&format!("{json:#}\n"))?;
            tell(table.trim_end());
        }
        Some(path) => {
            print(&table)?;
            let written = std::fs::write(&path, format!("{json:#}\n"));
            written.into_diagnostic().wrap_err_with(|| format!("cannot write the report to {}", path.display()))?;
        }
        None => drop(print(&table)?),
    }
    captured?;
    Ok(if outcome.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(text: &str) -> Result<ExitCode> {
    std::io::stdout().lock().write_all(text.as_bytes()).into_diagnostic()?;
    Ok(ExitCode::SUCCESS)
}

/// Whether there is a mediator at all, and whether it can be trusted.
async fn reach(mediator: &Mediator, server_group: &ServerGroup) -> Result<()> {
    let group =
        ClientUrlInfo { device_group_id: GroupKey::generate().device_group_id(), server_group: server_group.clone() };
    let opened = tokio::time::timeout(CONNECT_PATIENCE, mediator.open(&group)).await;
    let mut connection = opened
        .map_err(|_| miette!("no answer within {}", humantime::format_duration(CONNECT_PATIENCE)))?
        .map_err(|error| not_connected(&error, mediator))?;
    connection.close(CloseCode::Normal.code(), "").await;
    Ok(())
}

async fn simulate(args: &Args, world: &Arc<World>, server_group: &ServerGroup) -> Result<Outcome> {
    let scenario = &world.scenario;
    let mut rng = fastrand::Rng::with_seed(scenario.seed);
    let count = scenario.groups.get();
    let arrivals = scenario.arrival.times(count, &mut rng.fork());
    let groups: Vec<_> = (0..count).map(|number| Group::new(world, number, server_group.clone())).collect();
    let left = scenario.messages.map(usize::try_from).transpose().into_diagnostic()?;
    let started = world.clock.now().monotonic;
    let mut lives = JoinSet::new();
    for (group, arrival) in groups.iter().zip(arrivals) {
        for member in 0..scenario.devices.get() {
            lives.spawn(Arc::clone(group).live(member, started + arrival, left, rng.fork()));
        }
    }
    let disturbance =
        scenario.chaos.server.as_ref().map(|chaos| tokio::spawn(disturb_server(Arc::clone(world), chaos.clone())));
    let mut progress = Progress::new(args.plain);
    let mut interrupts = signal(SignalKind::interrupt()).into_diagnostic()?;
    let ends_at = scenario.duration.map(|duration| started + duration.get());
    let (mut moved, mut moved_at, mut interrupted) = (0, started, false);
    let mut ticks = tokio::time::interval(TICK);
    let gave_up = loop {
        let asked_to_end = tokio::select! {
            life = lives.join_next() => {
                match life {
                    None => break None,
                    Some(Ok(Ok(()))) => {}
                    Some(Ok(Err(why))) => break Some(why),
                    Some(Err(panicked)) => break Some(panicked.to_string()),
                }
                false
            }
            () = world.born.notified() => {
                let births = std::mem::take(&mut *world.births.lock().unwrap_or_else(PoisonError::into_inner));
                for birth in births {
                    lives.spawn(birth.group.live(birth.member, Duration::ZERO, birth.left, birth.rng));
                }
                false
            }
            () = world.clock.sleep_until(ends_at), if !world.ending.is_cancelled() => {
                end(world);
                false
            }
            _ = interrupts.recv() => true,
            _ = ticks.tick() => {
                let now = world.clock.now().monotonic;
                let faults = groups.iter().map(|group| group.faults()).sum();
                let asked = progress.show(&Sight { world, faults, elapsed: now.saturating_sub(started), ends_at: ends_at.map(|at| at.saturating_sub(started)) });
                let counted = progress_of(world);
                let patience = if interrupted { args.patience.min(LEAVE_PATIENCE) } else { args.patience };
                // Who rests by plan will move again; at the end nobody does.
                let resting = world.totals.devices_resting() > 0 && !world.ending.is_cancelled();
                if counted != moved || resting {
                    (moved, moved_at) = (counted, now);
                } else if now.saturating_sub(moved_at) > patience {
                    let trouble = world.totals.troubles(1).pop().map(|last| format!("; last: {last}")).unwrap_or_default();
                    break Some(format!("nothing moved for {}{trouble}", humantime::format_duration(patience)));
                }
                asked
            }
        };
        if asked_to_end {
            if std::mem::replace(&mut interrupted, true) {
                break Some("ended before everything due had arrived".to_owned());
            }
            end(world);
        }
    };
    // Whatever disturbs the server ends with this, too: when its command is through, so that the server is not left half way.
    world.ending.cancel();
    drop(progress);
    lives.shutdown().await;
    if let Some(mut disturbance) = disturbance
        && tokio::time::timeout(LEAVE_PATIENCE, &mut disturbance).await.is_err()
    {
        tell("the server's command does not end, and is ended");
        disturbance.abort();
        let _ended = disturbance.await;
    }
    let mut tally = Tally::default();
    for group in groups {
        tally.add(&group.tally());
    }
    Ok(Outcome {
        tally,
        chat: world.chat.as_ref().map(Chat::tally),
        gave_up,
        interrupted,
        elapsed: world.clock.now().monotonic.saturating_sub(started),
    })
}

/// From here on nobody begins anything.
fn end(world: &World) {
    world.ending.cancel();
    if let Some(chat) = &world.chat {
        chat.stop();
    }
}

/// A number that grows as long as something moves.
fn progress_of(world: &World) -> u64 {
    let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    read(&world.totals.acked) + read(&world.totals.delivered) + world.chat.as_ref().map_or(0, Chat::moved)
}

/// Runs the scenario's command now and then.
async fn disturb_server(world: Arc<World>, chaos: ServerChaos) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(chaos.every.get()) => {}
            () = world.ending.cancelled() => return,
        }
        world.totals.happened(Event::Server);
        let mut command = tokio::process::Command::new("sh");
        command.arg("-c").arg(&chaos.command).stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        match command.stderr(std::process::Stdio::null()).kill_on_drop(true).status().await {
            Ok(status) if status.success() => {}
            Ok(status) => world.totals.note(format!("the server's command: {status}")),
            Err(error) => world.totals.note(format!("the server's command: {error}")),
        }
    }
}

/// A line for whoever watches. Nobody watching is no reason to stop.
fn tell(line: &str) {
    writeln!(std::io::stderr(), "{line}").unwrap_or_default();
}
