//! `heliostat simulate`: groups of devices over real sockets, and a judgement of what reached whom.
//!
//! The judgement is the simulation's own (`ledger.rs`): it believes acknowledgements and arrivals, nothing else. A server
//! may be killed and started again underneath; what it acknowledged before has to arrive all the same.

mod chat;
mod group;
mod ledger;

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};
use tokio::task::JoinSet;

use chat::{Chat, ChatTally};
use group::{BODY_MIN, CONNECT_PATIENCE, Group, Totals, World};
use ledger::Tally;

use super::{TrustArgs, begin_capture, finish_capture, not_connected, trust_of};
use crate::client::{GroupKey, Mediator};
use crate::time::Clock;
use crate::wire::d2m::{ClientUrlInfo, CloseCode, ENVELOPE_MAX, ServerGroup};

/// Let many groups of devices reflect, and judge what reached whom
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  heliostat simulate --groups 20 --devices 3 --messages 50
  heliostat simulate --pause 100ms --messages 600     (and kill the server in the middle)
  heliostat simulate --url wss://mediator.example/ --pin 3q2+7w...=

Connections that break are made again, so the server may be restarted underneath. Exit status 0: everything \
                        that was acknowledged reached every other device, in order. 1: something did not, or nothing moved for too long.")]
pub struct Args {
    /// The mediator's base URL
    #[arg(long, default_value = "wss://localhost:8443", value_name = "URL")]
    url: String,
    #[command(flatten)]
    trust: TrustArgs,
    /// The server's data directory: its development CA is trusted, and the chat identities of simulations are kept there
    #[arg(long, default_value = "heliostat-data", value_name = "DIR")]
    data: PathBuf,
    /// How many device groups
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    groups: u16,
    /// How many devices in each
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    devices: u16,
    /// How many messages each device reflects
    #[arg(long, default_value_t = 50)]
    messages: u32,
    /// Bytes of a message, before it is sealed
    #[arg(long, default_value_t = 200, value_name = "BYTES")]
    size: u16,
    /// Share of the messages that are reflected in transactions, 0 to 1
    #[arg(long, default_value_t = 0.1, value_name = "RATIO", value_parser = ratio)]
    transactions: f64,
    /// Share of the other messages that are ephemeral, 0 to 1
    #[arg(long, default_value_t = 0.1, value_name = "RATIO", value_parser = ratio)]
    ephemeral: f64,
    /// How long a device pauses between two messages
    #[arg(long, default_value = "0s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pause: Duration,
    /// Give up when nothing moved for this long
    #[arg(long, default_value = "60s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    patience: Duration,
    /// What the devices choose follows from this number
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Do not send chat messages, even where identities can be made
    #[arg(long)]
    no_csp: bool,
    /// Record what one of the groups says, the first that connects, into a new file that you alone can read
    #[arg(long, value_name = "FILE")]
    capture: Option<PathBuf>,
    /// Names the chat server in the devices' URLs
    #[arg(long, default_value = "a0", value_name = "NAME")]
    server_group: String,
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=1.0).contains(&ratio) { Ok(ratio) } else { Err("not between 0 and 1".to_owned()) }
}

/// What a simulation found.
#[derive(Debug)]
struct Outcome {
    tally: Tally,
    chat: Option<ChatTally>,
    /// Why it ended early.
    gave_up: Option<String>,
    elapsed: Duration,
}

/// Runs a simulation and prints its closing table.
///
/// # Errors
/// When it cannot begin.
pub async fn run(args: Args) -> Result<ExitCode> {
    let server_group = ServerGroup::new(&args.server_group)
        .ok_or_else(|| miette!("{} is not a server group: 1 to 32 digits and letters", args.server_group))?;
    let trust = trust_of(&args.trust, &args.data)?;
    let mediator = Mediator::new(&args.url, &trust).into_diagnostic()?;
    let size = usize::from(args.size).max(BODY_MIN);
    if size + 40 > ENVELOPE_MAX {
        return Err(miette!("a message of {size} bytes does not fit an envelope: {} is the most", ENVELOPE_MAX - 40));
    }
    let messages = usize::try_from(args.messages).into_diagnostic()?;
    // Patience is for a server that is started again, not for one that was never there.
    reach(&mediator, &server_group).await?;
    let mut mediator = mediator;
    let capture = args.capture.as_deref().map(|path| begin_capture(path, &mut mediator)).transpose()?;
    let chat = if args.no_csp || args.groups < 2 {
        None
    } else if !chat::is_reachable(&args.data) {
        tell(&format!("no chat messages: {} is not the data directory of a chat server", args.data.display()));
        None
    } else {
        Some(Chat::prepare(&args.data, usize::from(args.groups), messages, &server_group).await?)
    };
    let world = Arc::new(World {
        clock: Clock::system(),
        mediator,
        devices: usize::from(args.devices),
        messages,
        size,
        transactions: args.transactions,
        ephemeral: args.ephemeral,
        pause: args.pause,
        chat,
        totals: Totals::new().into_diagnostic().wrap_err("no histogram")?,
    });
    let outcome = simulate(&args, &world, &server_group).await;
    let captured = finish_capture(capture).await;
    let mut out = std::io::stdout().lock();
    out.write_all(table(&outcome, &world.totals).as_bytes()).into_diagnostic()?;
    captured?;
    let good =
        outcome.gave_up.is_none() && outcome.tally.is_clean() && outcome.chat.as_ref().is_none_or(ChatTally::is_clean);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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

async fn simulate(args: &Args, world: &Arc<World>, server_group: &ServerGroup) -> Outcome {
    let mut rng = fastrand::Rng::with_seed(args.seed);
    let groups: Vec<_> =
        (0..args.groups).map(|number| Group::new(world, number.into(), server_group.clone())).collect();
    let mut lives = JoinSet::new();
    for group in &groups {
        for member in 0..world.devices {
            lives.spawn(Arc::clone(group).live(member, rng.fork()));
        }
    }
    let mut progress = Progress::new(args);
    let started = world.clock.now().monotonic;
    let (mut moved, mut moved_at) = (0, started);
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    let gave_up = loop {
        tokio::select! {
            life = lives.join_next() => match life {
                None => break None,
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(why))) => break Some(why),
                Some(Err(panicked)) => break Some(panicked.to_string()),
            },
            _ = ticks.tick() => {
                let now = world.clock.now().monotonic;
                let chatted = world.chat.as_ref().map_or(0, Chat::moved);
                let counted = chatted + progress.show(&world.totals, now.saturating_sub(started));
                if counted != moved {
                    (moved, moved_at) = (counted, now);
                } else if now.saturating_sub(moved_at) > args.patience {
                    let trouble = world.totals.trouble.lock().unwrap_or_else(PoisonError::into_inner);
                    let last = if trouble.is_empty() { String::new() } else { format!("; last: {trouble}") };
                    break Some(format!("nothing moved for {}{last}", humantime::format_duration(args.patience)));
                }
            }
        }
    };
    progress.clear();
    lives.shutdown().await;
    let mut tally = Tally::default();
    for group in groups {
        tally.add(&group.tally());
    }
    Outcome {
        tally,
        chat: world.chat.as_ref().map(Chat::tally),
        gave_up,
        elapsed: world.clock.now().monotonic.saturating_sub(started),
    }
}

/// A bar on a terminal, a line every few seconds elsewhere.
struct Progress {
    bar: ProgressBar,
    next_line: Option<Duration>,
}

impl Progress {
    const LINE_EVERY: Duration = Duration::from_secs(5);

    fn new(args: &Args) -> Self {
        let (groups, devices) = (u64::from(args.groups), u64::from(args.devices));
        let bar = ProgressBar::with_draw_target(
            Some(groups * devices * u64::from(args.messages) * (devices - 1)),
            ProgressDrawTarget::stderr(),
        );
        if let Ok(style) = ProgressStyle::with_template("{elapsed_precise} {wide_bar} {pos}/{len} delivered  {msg}") {
            bar.set_style(style);
        }
        Self { bar, next_line: (!std::io::stderr().is_terminal()).then_some(Self::LINE_EVERY) }
    }

    /// Returns a number that grows as long as something moves.
    fn show(&mut self, totals: &Totals, elapsed: Duration) -> u64 {
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (sent, acked, delivered) = (read(&totals.sent), read(&totals.acked), read(&totals.delivered));
        let text = format!("sent {sent}, acked {acked}, reconnects {}", read(&totals.reconnects));
        self.bar.set_position(delivered);
        self.bar.set_message(text.clone());
        if let Some(at) = self.next_line.filter(|at| elapsed >= *at) {
            self.next_line = Some(at + Self::LINE_EVERY);
            tell(&format!("{:6.1} s  {text}, delivered {delivered}", elapsed.as_secs_f64()));
        }
        acked + delivered
    }

    fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// A line for whoever watches. Nobody watching is no reason to stop.
fn tell(line: &str) {
    writeln!(std::io::stderr(), "{line}").unwrap_or_default();
}

fn table(outcome: &Outcome, totals: &Totals) -> String {
    let tally = &outcome.tally;
    let latencies = totals.latencies.lock().unwrap_or_else(PoisonError::into_inner);
    let mut rows = vec![
        ("sent", format!("{}  ({} ephemeral)", tally.sent, tally.ephemeral)),
        ("acked", format!("{}  ({} of them in committed transactions)", tally.acked, tally.committed)),
        ("delivered", format!("{}  and {} ephemeral", tally.delivered, tally.ephemeral_delivered)),
        ("duplicates", format!("{} sent again, {} redelivered", tally.resent, tally.redelivered)),
        ("lost", tally.lost.to_string()),
        ("misordered", tally.faults.values().sum::<u64>().to_string()),
        ("reconnects", totals.reconnects.load(Ordering::Relaxed).to_string()),
        ("reflect to ack", quantiles(&latencies.to_ack)),
        ("reflect to last delivery", quantiles(&latencies.to_last_delivery)),
        ("elapsed", format!("{:.2} s", outcome.elapsed.as_secs_f64())),
    ];
    if let Some(chat) = &outcome.chat {
        rows.push(("chat messages sent", chat.sent.to_string()));
        rows.push(("  acked", chat.acked.to_string()));
        rows.push(("  delivered", chat.delivered.to_string()));
        rows.push(("  duplicates", chat.duplicates.to_string()));
        rows.push(("  lost", chat.lost.to_string()));
        rows.push(("  misordered", chat.misordered.to_string()));
        if chat.foreign > 0 {
            rows.push(("  fault", format!("{} messages or acknowledgements of what nobody sent", chat.foreign)));
        }
    }
    rows.extend(tally.faults.iter().map(|(fault, count)| ("  fault", format!("{count} {}", fault.text()))));
    rows.extend(outcome.gave_up.iter().map(|why| ("gave up", why.clone())));
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    rows.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

fn quantiles(histogram: &Histogram<u64>) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    let ms = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    format!("p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms", ms(0.5), ms(0.99), ms(1.0))
}
