//! `heliostat bench`: how fast a running server is, and what it costs.
//!
//! Each measurement starts a server of its own: this same executable, in a process of its own, on a data directory that is
//! made for it and removed behind it, on loopback ports that the system picks, with `durability = "fsync"`. So nothing
//! stands in the way of repeating it, and the server's time on the processor and its memory are its own. Where that makes
//! sense, a server that runs already is measured instead (`--url`, and `--pid` for what it costs).
//!
//! Every measurement is made in several rounds; what is reported is the median, with the least and the most beside it. The
//! devices run on the same machine as the server and take their share of it: the report describes the machine for that
//! reason, and because durable numbers are mostly those of the disk.
//!
//! | file | holds |
//! |---|---|
//! | `server.rs` | the server that is measured: started, watched, stopped |
//! | `load.rs` | devices that reflect as fast as they may, or by a schedule |
//! | `stock.rs` | stores that are full before the server starts |
//! | `proxy.rs` | a chat server that pours, swallows and echoes, and devices that talk to it |
//! | `machine.rs` | what it all ran on |
//! | `report.rs` | medians, as a table and as JSON |

mod load;
mod machine;
mod proxy;
mod report;
mod server;
mod stock;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use load::{Load, Shape};
use machine::Machine;
use report::{Better, Report};
use server::{Door, Scratch, Server, Usage};
use stock::Stock;

use super::{TrustArgs, trust_of};
use crate::client::{Device, DeviceConfig, GroupKey, Mediator, Trust};
use crate::time::Clock;
use crate::wire::d2m::{CloseCode, DeviceId, ENVELOPE_MAX, ServerGroup, SlotState};

/// Devices that connect at once while many are connected.
const CONNECTING: usize = 64;
/// How long a server's memory is watched until it stays the same.
const SETTLING: Duration = Duration::from_secs(10);

/// Measure how fast a running server is, and what it costs
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  heliostat bench all --json report.json
  heliostat bench reflect --rounds 5 --time 10s
  heliostat bench reflect --rate 500                       (latency at a load that is not the highest)
  heliostat bench reflect --url wss://localhost:8443 --pid $(pidof heliostat)

Use a release build on a machine that does nothing else. Numbers of a debug build say nothing.")]
pub struct Args {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// How often everything is measured
    #[arg(long, global = true, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    rounds: u16,
    /// How long a round lasts, where it is not over by itself
    #[arg(long, global = true, default_value = "5s", value_name = "DURATION", value_parser = some_time)]
    time: Duration,
    /// How long the load runs before the first round
    #[arg(long, global = true, default_value = "2s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    warm_up: Duration,
    /// Where servers keep their data meanwhile: durable numbers are those of this disk
    #[arg(long, global = true, default_value_os_t = std::env::temp_dir(), value_name = "DIR")]
    dir: PathBuf,
    /// Measure a server that runs already
    #[arg(long, global = true, value_name = "URL")]
    url: Option<String>,
    #[command(flatten)]
    trust: TrustArgs,
    /// The process of that server, on this machine
    #[arg(long, global = true, value_name = "PID", requires = "url")]
    pid: Option<u32>,
    /// Write the report as JSON there, too; with `-` to standard output instead of the table
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum What {
    /// Durable reflects per second, their latency at that load, and the server's time for each
    Reflect(ReflectArgs),
    /// Memory of a device that is connected and silent, plain and with TLS
    Idle(IdleArgs),
    /// Full TLS and D2M handshakes per second
    Handshakes(HandshakeArgs),
    /// What goes through the proxy: bytes down and up, and round trips
    Proxy(ProxyArgs),
    /// How long a server with much in its store takes to be ready
    Start(StartArgs),
    /// What a reflect costs beside many stored groups, behind many queued messages, among many devices, and with many bytes
    Size(SizeArgs),
    /// All of them, with the sizes they have by default
    All,
}

#[derive(Debug, Clone, clap::Args)]
struct ReflectArgs {
    #[command(flatten)]
    shape: ShapeArgs,
    /// Reflect so many messages per second, by a schedule, instead of as fast as they are acknowledged
    #[arg(long, value_name = "PER SECOND")]
    rate: Option<u32>,
    /// Over TLS
    #[arg(long)]
    tls: bool,
}

#[derive(Debug, Clone, clap::Args)]
struct ShapeArgs {
    /// Device groups
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    groups: u16,
    /// Devices in each, all of which reflect
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=15))]
    devices: u16,
    /// Bytes of an envelope
    #[arg(long, default_value_t = 1_024, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=ENVELOPE_MAX as i64))]
    size: u32,
    /// Messages a device has under way before it waits for an acknowledgement
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1_024))]
    window: u16,
}

#[derive(Debug, Clone, clap::Args)]
struct IdleArgs {
    /// Connected devices
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u32).range(1..))]
    idle_devices: u32,
    /// Of which so many are in each group: the more, the less each carries of what a group that is awake takes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=15))]
    idle_among: u32,
}

#[derive(Debug, Clone, clap::Args)]
struct HandshakeArgs {
    /// Devices that connect at the same time, again and again
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    at_once: u16,
}

#[derive(Debug, Clone, clap::Args)]
struct ProxyArgs {
    /// Devices that talk to the chat server
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// Bytes of a frame of the chat server's protocol
    #[arg(long, default_value_t = 4_096, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(1..=65_000))]
    frame: u16,
}

#[derive(Debug, Clone, clap::Args)]
struct StartArgs {
    /// Numbers of messages in the store to compare, each of which waits for a device
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000, 100_000, 1_000_000], value_parser = clap::value_parser!(u32).range(1..))]
    stored_messages: Vec<u32>,
    /// So many of them in each group
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    messages_each: u32,
}

#[derive(Debug, Clone, clap::Args)]
struct SizeArgs {
    #[command(flatten)]
    shape: ShapeArgs,
    #[command(flatten)]
    sizes: Sizes,
}

#[derive(Debug, Clone, clap::Args)]
struct Sizes {
    /// Numbers of stored groups to compare
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000, 100_000])]
    stored: Vec<u32>,
    /// Numbers of messages to compare that wait, altogether, for one more device of each group under load
    #[arg(long, value_delimiter = ',', default_values_t = [0, 10_000, 100_000])]
    queued: Vec<u32>,
    /// Numbers of devices in each group to compare
    #[arg(long, value_delimiter = ',', default_values_t = [2, 4, 8, 15], value_parser = clap::value_parser!(u16).range(1..=15))]
    among: Vec<u16>,
    /// Bytes of an envelope to compare
    #[arg(long, value_delimiter = ',', value_name = "BYTES", default_values_t = [64, 1_024, 8_192, 65_000], value_parser = clap::value_parser!(u32).range(1..=ENVELOPE_MAX as i64))]
    bytes: Vec<u32>,
}

/// What every measurement needs.
struct Bench {
    common: Common,
    clock: Clock,
    report: Report,
}

/// Measures and prints.
///
/// # Errors
/// When something cannot be measured here.
pub async fn run(args: Args) -> Result<ExitCode> {
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tell(&format!("the limit on open files cannot be raised: {error}"));
    }
    let Args { what, common } = args;
    let clock = Clock::system();
    let machine = Machine::describe(&common.dir, clock)?;
    let mut bench = Bench { clock, report: Report::new(machine, &common_parameters(&common)), common };
    let mut signals = Vec::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        signals.push(signal(kind).into_diagnostic()?);
    }
    let interrupted = std::future::poll_fn(|cx| {
        let any = signals.iter_mut().any(|signal| signal.poll_recv(cx).is_ready());
        if any { Poll::Ready(()) } else { Poll::Pending }
    });
    tokio::select! {
        measured = bench.measure(what) => measured?,
        // Dropping the measurement ends its servers and clears their directories away.
        () = interrupted => return Err(miette!("interrupted")),
    }
    bench.report.finish();
    let (table, json) = (bench.report.table(), bench.report.json());
    let mut out = std::io::stdout().lock();
    match &bench.common.json {
        Some(path) if path.as_os_str() == "-" => writeln!(out, "{json:#}").into_diagnostic()?,
        Some(path) => {
            out.write_all(table.as_bytes()).into_diagnostic()?;
            let written = std::fs::write(path, format!("{json:#}\n"));
            written.into_diagnostic().wrap_err_with(|| format!("cannot write the report to {}", path.display()))?;
        }
        None => out.write_all(table.as_bytes()).into_diagnostic()?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Rates are counted by it.
fn some_time(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("has to be longer than nothing".to_owned()),
        parsed => parsed.map_err(|error| error.to_string()),
    }
}

fn common_parameters(common: &Common) -> Value {
    json!({
        "rounds": common.rounds,
        "time_s": common.time.as_secs_f64(),
        "warm_up_s": common.warm_up.as_secs_f64(),
        "dir": common.dir,
        "url": common.url,
        "durability": if common.url.is_some() { "the server's" } else { "fsync" },
    })
}

impl Bench {
    async fn measure(&mut self, what: What) -> Result<()> {
        match what {
            What::Reflect(args) => self.reflect(&args).await,
            What::Idle(args) => self.idle(&args).await,
            What::Handshakes(args) => self.handshakes(&args).await,
            What::Proxy(args) => self.proxy(&args).await,
            What::Start(args) => self.start(&args).await,
            What::Size(args) => self.size(&args).await,
            What::All => self.all().await,
        }
    }

    async fn all(&mut self) -> Result<()> {
        if self.common.url.is_some() {
            return Err(miette!("a server that runs already can be measured by `reflect` and `handshakes` only"));
        }
        let defaults = <AllArgs as clap::Parser>::try_parse_from(["bench"]).into_diagnostic()?;
        self.reflect(&defaults.reflect).await?;
        self.idle(&defaults.idle).await?;
        self.handshakes(&defaults.handshakes).await?;
        self.proxy(&defaults.proxy).await?;
        self.start(&defaults.start).await?;
        self.size(&SizeArgs { shape: defaults.reflect.shape, sizes: defaults.sizes }).await
    }

    /// The server that `--url` names, or a new one.
    async fn target(&self, door: Door) -> Result<Target> {
        let Some(url) = &self.common.url else {
            let scratch = Scratch::new(&self.common.dir)?;
            let server = Server::start(scratch.path(), door, None).await?;
            let mediator = server.mediator()?;
            return Ok(Target {
                mediator,
                trust: server.trust()?,
                url: server.url().to_owned(),
                usage: Some(server.usage()),
                server: Some((server, scratch)),
            });
        };
        let trust = trust_of(&self.common.trust, std::path::Path::new("heliostat-data"))?;
        let mediator = Mediator::new(url, &trust).into_diagnostic()?;
        let usage = self.common.pid.map(Usage::of);
        Ok(Target { mediator, trust, url: url.clone(), usage, server: None })
    }

    async fn reflect(&mut self, args: &ReflectArgs) -> Result<()> {
        let target = self.target(if args.tls { Door::Tls } else { Door::Plain }).await?;
        let shape = args.shape.shape(args.rate);
        let parameters =
            json!({"shape": args.shape.parameters(), "rate_per_s": args.rate, "tls": args.tls, "url": self.common.url});
        self.report.begin("reflect", parameters);
        let load =
            Load::start(&target.mediator, self.clock, shape, &stock::keys(args.shape.groups.into()), SlotState::New)
                .await?;
        self.measure_load(load, target.usage.as_ref(), "").await?;
        target.stop().await
    }

    /// Measures a load that runs, in rounds.
    async fn measure_load(&mut self, mut load: Load, usage: Option<&Usage>, suffix: &str) -> Result<()> {
        let mut rounds = Vec::new();
        load.run_for(self.common.warm_up, usage).await?;
        for number in 1..=self.common.rounds {
            let round = load.run_for(self.common.time, usage).await?;
            tell(&format!("round {number}{suffix}: {:.0} reflects per second", round.per_second()));
            rounds.push(round);
        }
        load.stop().await?;
        let of = |value: fn(&load::Round) -> f64| rounds.iter().map(value).collect::<Vec<_>>();
        let report = &mut self.report;
        report.add(&format!("reflects{suffix}"), "/s", Better::More, of(load::Round::per_second));
        report.add(&format!("deliveries{suffix}"), "/s", Better::More, of(load::Round::delivered_per_second));
        report.add(&format!("reflect to ack, p50{suffix}"), "ms", Better::Less, of(|round| round.latency_ms(0.5)));
        report.add(&format!("reflect to ack, p99{suffix}"), "ms", Better::Less, of(|round| round.latency_ms(0.99)));
        let cpu: Vec<f64> = rounds.iter().filter_map(load::Round::server_us_per_reflect).collect();
        report.add(&format!("server CPU per reflect{suffix}"), "us", Better::Less, cpu);
        Ok(())
    }

    async fn idle(&mut self, args: &IdleArgs) -> Result<()> {
        if self.common.url.is_some() {
            return Err(miette!("memory is measured of a server that was just started: leave out --url"));
        }
        self.report.begin("idle", json!({"devices": args.idle_devices, "devices_per_group": args.idle_among}));
        for (door, name) in [(Door::Plain, "plain"), (Door::Tls, "TLS")] {
            let mut kib = Vec::new();
            for number in 1..=self.common.rounds {
                let target = self.target(door).await?;
                let usage = target.usage.as_ref().ok_or_else(|| miette!("no process to measure"))?;
                // What is made once, for whoever comes first.
                drop(connect_many(&target.mediator, 3, 3).await?);
                let before = self.settled(usage).await?;
                let devices = connect_many(&target.mediator, args.idle_devices, args.idle_among).await?;
                let after = self.settled(usage).await?;
                #[expect(clippy::cast_precision_loss, reason = "a quotient to be read by people")]
                let each = after.saturating_sub(before) as f64 / f64::from(args.idle_devices) / 1024.0;
                tell(&format!("round {number}: {each:.1} KiB for each device, {name}"));
                kib.push(each);
                drop(devices);
                target.stop().await?;
            }
            self.report.add(&format!("memory of an idle device, {name}"), "KiB", Better::Less, kib);
        }
        Ok(())
    }

    /// Resident bytes, once they stay the same three times.
    async fn settled(&self, usage: &Usage) -> Result<u64> {
        let began = self.clock.now().monotonic;
        let (mut last, mut same) = (usage.resident_bytes()?, 0);
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let now = usage.resident_bytes()?;
            same = if now.abs_diff(last) * 200 <= last { same + 1 } else { 0 };
            if same >= 2 || self.clock.now().monotonic.saturating_sub(began) > SETTLING {
                return Ok(now);
            }
            last = now;
        }
    }

    async fn handshakes(&mut self, args: &HandshakeArgs) -> Result<()> {
        self.report.begin("handshakes", json!({"at_once": args.at_once, "url": self.common.url}));
        let doors: &[(Door, &str)] = match &self.common.url {
            None => &[(Door::Tls, "TLS and D2M"), (Door::Plain, "D2M without TLS")],
            Some(url) if url.starts_with("wss:") => &[(Door::Tls, "TLS and D2M")],
            Some(_) => &[(Door::Plain, "D2M without TLS")],
        };
        for (door, name) in doors {
            let target = self.target(*door).await?;
            let (mut rates, mut costs) = (Vec::new(), Vec::new());
            for number in 1..=self.common.rounds {
                let cpu = target.usage.as_ref().map(Usage::cpu).transpose()?;
                let (made, connected) = self.shake_hands(&target, args.at_once).await?;
                rates.push(f64::from(made) / self.common.time.as_secs_f64());
                if let (Some(before), Some(usage)) = (cpu, &target.usage) {
                    let took = usage.cpu()?.saturating_sub(before);
                    costs.push(took.as_secs_f64() * 1e6 / f64::from(connected.max(1)));
                }
                tell(&format!(
                    "round {number}: {:.0} handshakes per second, {name}",
                    rates.last().copied().unwrap_or_default()
                ));
            }
            self.report.add(&format!("handshakes, {name}"), "/s", Better::More, rates);
            self.report.add(&format!("server CPU per handshake, {name}"), "us", Better::Less, costs);
            target.stop().await?;
        }
        Ok(())
    }

    /// Connects again and again for the time of a round; says how often within it, and altogether.
    async fn shake_hands(&self, target: &Target, at_once: u16) -> Result<(u32, u32)> {
        let ends_at = self.clock.now().monotonic + self.common.time;
        let mut workers = JoinSet::new();
        for _ in 0..at_once {
            let (clock, url, trust) = (self.clock, target.url.clone(), target.trust.clone());
            let mut config = DeviceConfig::new(GroupKey::generate(), server_group()?, DeviceId(1));
            workers.spawn(async move {
                let (mut made, mut connected) = (0_u32, 1_u32);
                while clock.now().monotonic < ends_at {
                    // A configuration of its own has no TLS session to resume: each handshake is a full one.
                    let mediator = Mediator::new(&url, &trust).into_diagnostic()?;
                    let device = Device::connect(&mediator, &config).await.into_diagnostic()?;
                    config.expected_slot_state = SlotState::Existing;
                    made += u32::from(clock.now().monotonic < ends_at);
                    connected += 1;
                    device.close(CloseCode::Normal).await;
                }
                // Nothing stays behind on a server that is somebody's.
                let mediator = Mediator::new(&url, &trust).into_diagnostic()?;
                let mut device = Device::connect(&mediator, &config).await.into_diagnostic()?;
                device.drop_device(config.device_id).await.into_diagnostic()?;
                Ok::<_, miette::Report>((made, connected))
            });
        }
        let mut all = (0, 0);
        while let Some(worker) = workers.join_next().await {
            let (made, connected) = worker.into_diagnostic()??;
            all = (all.0 + made, all.1 + connected);
        }
        Ok(all)
    }

    async fn proxy(&mut self, args: &ProxyArgs) -> Result<()> {
        if self.common.url.is_some() {
            return Err(miette!(
                "the chat server is part of the measurement, so a server of its own is started: leave out --url"
            ));
        }
        self.report.begin("proxy", json!({"connections": args.connections, "frame_bytes": args.frame}));
        let chat = proxy::ChatServer::start(args.frame).await?;
        let scratch = Scratch::new(&self.common.dir)?;
        let server = Server::start(scratch.path(), Door::Plain, Some(chat.address())).await?;
        let (mediator, usage) = (server.mediator()?, server.usage());
        for (direction, name) in [(proxy::Direction::Down, "down"), (proxy::Direction::Up, "up")] {
            let warm_up = self.common.warm_up;
            let way = proxy::Way::Proxied(mediator.clone());
            proxy::pour(&way, &chat, direction, args.connections, warm_up, self.clock).await?;
            let [mut through, mut direct, mut costs] = [Vec::new(), Vec::new(), Vec::new()];
            for number in 1..=self.common.rounds {
                let before = usage.cpu()?;
                let proxied = proxy::pour(
                    &proxy::Way::Proxied(mediator.clone()),
                    &chat,
                    direction,
                    args.connections,
                    self.common.time,
                    self.clock,
                )
                .await?;
                let took = usage.cpu()?.saturating_sub(before);
                costs.push(
                    took.as_secs_f64() * 1e6 / (proxied.mib_per_second * self.common.time.as_secs_f64()).max(1e-9),
                );
                through.push(proxied.mib_per_second);
                let straight =
                    proxy::pour(&proxy::Way::Direct, &chat, direction, args.connections, self.common.time, self.clock)
                        .await?;
                direct.push(straight.mib_per_second);
                tell(&format!(
                    "round {number}: {:.0} MiB/s {name}, {:.0} without a mediator",
                    proxied.mib_per_second, straight.mib_per_second
                ));
            }
            self.report.add(&format!("proxy, {name}"), "MiB/s", Better::More, through);
            self.report.add(&format!("the same without a mediator, {name}"), "MiB/s", Better::More, direct);
            self.report.add(&format!("server CPU per MiB, {name}"), "us", Better::Less, costs);
        }
        for (way, name) in
            [(proxy::Way::Proxied(mediator.clone()), "proxied"), (proxy::Way::Direct, "without a mediator")]
        {
            let (mut p50, mut p99) = (Vec::new(), Vec::new());
            for _ in 0..self.common.rounds {
                let histogram = proxy::ping(&way, &chat, self.common.time, self.clock).await?;
                #[expect(clippy::cast_precision_loss, reason = "to be read by people")]
                let at = |quantile| histogram.value_at_quantile(quantile) as f64;
                p50.push(at(0.5));
                p99.push(at(0.99));
            }
            self.report.add(&format!("round trip, p50, {name}"), "us", Better::Less, p50);
            self.report.add(&format!("round trip, p99, {name}"), "us", Better::Less, p99);
        }
        server.stop().await
    }

    async fn start(&mut self, args: &StartArgs) -> Result<()> {
        if self.common.url.is_some() {
            return Err(miette!("a start is measured of a server that is started: leave out --url"));
        }
        let parameters = json!({"stored_messages": args.stored_messages, "messages_per_group": args.messages_each, "message_bytes": stock::BYTES});
        self.report.begin("start", parameters);
        for messages in &args.stored_messages {
            self.start_with(*messages, messages.div_ceil(args.messages_each)).await?;
        }
        Ok(())
    }

    async fn start_with(&mut self, messages: u32, groups: u32) -> Result<()> {
        let scratch = Scratch::new(&self.common.dir)?;
        tell(&format!("making a store of {groups} groups with {messages} messages"));
        Stock::strangers(groups, messages).make(scratch.path(), self.clock).await?;
        let (mut times, mut memory) = (Vec::new(), Vec::new());
        for number in 1..=self.common.rounds {
            let began = self.clock.now().monotonic;
            let server = Server::start(scratch.path(), Door::Plain, None).await?;
            server.wait_ready().await?;
            let took = self.clock.now().monotonic.saturating_sub(began);
            #[expect(clippy::cast_precision_loss, reason = "to be read by people")]
            memory.push(server.usage().resident_bytes()? as f64 / 1_048_576.0);
            tell(&format!("round {number}: ready after {:.3} s", took.as_secs_f64()));
            times.push(took.as_secs_f64());
            server.stop().await?;
        }
        self.report.add(&format!("from start to ready, {messages} messages stored"), "s", Better::Less, times);
        self.report.add(&format!("memory then, {messages} messages stored"), "MiB", Better::Less, memory);
        Ok(())
    }

    async fn size(&mut self, args: &SizeArgs) -> Result<()> {
        if self.common.url.is_some() {
            return Err(miette!("the store's size is part of the measurement: leave out --url"));
        }
        let parameters = json!({"shape": args.shape.parameters(), "stored": args.sizes.stored, "queued": args.sizes.queued,
            "among": args.sizes.among, "bytes": args.sizes.bytes, "stored_message_bytes": stock::BYTES});
        self.report.begin("size", parameters);
        let stored = args.sizes.stored.iter().map(|stored| (*stored, 0, format!(", {stored} groups stored")));
        let queued = args.sizes.queued.iter().map(|queued| (0, *queued, format!(", {queued} messages queued")));
        for (stored, queued, suffix) in stored.chain(queued).collect::<Vec<_>>() {
            let scratch = Scratch::new(&self.common.dir)?;
            let keys = stock::keys(args.shape.groups.into());
            Stock::strangers(stored, 0)
                .beside(&keys, args.shape.devices.into(), queued)
                .make(scratch.path(), self.clock)
                .await?;
            let server = Server::start(scratch.path(), Door::Plain, None).await?;
            let usage = server.usage();
            let load = Load::start(&server.mediator()?, self.clock, args.shape.shape(None), &keys, SlotState::Existing)
                .await?;
            self.measure_load(load, Some(&usage), &suffix).await?;
            server.stop().await?;
        }
        let among = args.sizes.among.iter().map(|devices| {
            let shape = ShapeArgs { devices: *devices, ..args.shape.clone() };
            (shape, format!(", {devices} devices in a group"))
        });
        let bytes = args.sizes.bytes.iter().map(|size| {
            let shape = ShapeArgs { size: *size, ..args.shape.clone() };
            (shape, format!(", {size} bytes in a message"))
        });
        for (shape, suffix) in among.chain(bytes) {
            let target = self.target(Door::Plain).await?;
            let keys = stock::keys(shape.groups.into());
            let load = Load::start(&target.mediator, self.clock, shape.shape(None), &keys, SlotState::New).await?;
            self.measure_load(load, target.usage.as_ref(), &suffix).await?;
            target.stop().await?;
        }
        Ok(())
    }
}

/// The defaults of everything, for `all`.
#[derive(Debug, clap::Parser)]
struct AllArgs {
    #[command(flatten)]
    reflect: ReflectArgs,
    #[command(flatten)]
    idle: IdleArgs,
    #[command(flatten)]
    handshakes: HandshakeArgs,
    #[command(flatten)]
    proxy: ProxyArgs,
    #[command(flatten)]
    start: StartArgs,
    #[command(flatten)]
    sizes: Sizes,
}

impl ShapeArgs {
    const fn shape(&self, rate: Option<u32>) -> Shape {
        Shape { devices: self.devices as usize, size: self.size as usize, window: self.window as usize, rate }
    }

    fn parameters(&self) -> Value {
        json!({"groups": self.groups, "devices": self.devices, "bytes": self.size, "window": self.window})
    }
}

/// What is measured.
struct Target {
    mediator: Mediator,
    trust: Trust,
    url: String,
    /// What it costs, where that can be seen.
    usage: Option<Usage>,
    server: Option<(Server, Scratch)>,
}

impl Target {
    async fn stop(self) -> Result<()> {
        match self.server {
            Some((server, _scratch)) => server.stop().await,
            None => Ok(()),
        }
    }
}

/// Which chat server devices name: none of ours looks at it.
fn server_group() -> Result<ServerGroup> {
    ServerGroup::new("a0").ok_or_else(|| miette!("not a server group"))
}

/// Devices that are connected, have their backlog, and are silent.
async fn connect_many(mediator: &Mediator, count: u32, in_each_group: u32) -> Result<Vec<Device>> {
    let few = Arc::new(tokio::sync::Semaphore::new(CONNECTING));
    let mut connecting = JoinSet::new();
    let mut key = GroupKey::generate();
    for number in 0..count {
        if number % in_each_group == 0 {
            key = GroupKey::generate();
        }
        let config = DeviceConfig::new(key.clone(), server_group()?, DeviceId(u64::from(number % in_each_group) + 1));
        let (mediator, few) = (mediator.clone(), Arc::clone(&few));
        connecting.spawn(async move {
            let _one_of_few = few.acquire().await;
            let mut device = Device::connect(&mediator, &config).await.into_diagnostic()?;
            device.wait_dry().await.into_diagnostic()?;
            Ok::<_, miette::Report>(device)
        });
    }
    let mut devices = Vec::new();
    while let Some(device) = connecting.join_next().await {
        devices.push(device.into_diagnostic()??);
    }
    Ok(devices)
}

/// A line for whoever watches. Nobody watching is no reason to stop.
fn tell(line: &str) {
    writeln!(std::io::stderr(), "{line}").unwrap_or_default();
}
