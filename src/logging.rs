//! Where log lines go, and which are written. What may stand in them is the affair of [`crate::log`].
//!
//! `HELIOSTAT_LOG` says which lines are written (`info`, `warn,heliostat::store=debug`), and an operator can change that while
//! the server runs ([`change`]). Whatever it says, other people's libraries never write more than `info`: below that they
//! print the bytes that pass through them, and those are somebody's messages.

use std::io::{self, IsTerminal as _};
use std::sync::OnceLock;

use miette::IntoDiagnostic as _;
use tracing::Metadata;
use tracing_log::{AsLog as _, LogTracer};
use tracing_subscriber::filter::{FilterExt as _, LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::log::SPANS;

/// Names what is logged, as in `info,heliostat::upstream=debug`.
const FILTER: &str = "HELIOSTAT_LOG";

/// The way to the filter that holds.
static CHANGE: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// What was started.
#[derive(Debug)]
#[must_use = "what was traced last is sent when this is finished"]
pub struct Logging {
    #[cfg(feature = "otel")]
    traces: Option<crate::traces::Traces>,
}

impl Logging {
    /// Sends what was traced and not sent yet.
    pub fn finish(self) {
        #[cfg(feature = "otel")]
        drop(self.traces);
    }
}

/// Why the filter was not changed.
#[derive(Debug, thiserror::Error)]
pub enum BadFilter {
    /// It is none.
    #[error("not a log filter: {0}")]
    Text(#[from] tracing_subscriber::filter::ParseError),
    /// Nothing is logged in this process.
    #[error("logging was not started")]
    NotStarted,
}

/// Starts logging to standard error: people read on a terminal, everything else is read by programs. With the feature `otel`
/// it has to be called inside the runtime.
///
/// # Errors
/// When the environment asks for what cannot be understood.
pub fn start() -> miette::Result<Logging> {
    let filter =
        EnvFilter::builder().with_env_var(FILTER).with_default_directive(LevelFilter::INFO.into()).from_env().map_err(
            |error| {
                miette::miette!(
                    help = format!("for example {FILTER}=debug, or {FILTER}=info,heliostat::upstream=debug"),
                    "{FILTER} cannot be understood: {error}"
                )
            },
        )?;
    let (filter, handle) = reload::Layer::new(filter);
    // Without the hint, every line of every library would have to be asked about.
    let roughly = filter_fn(is_ours_or_rough).with_max_level_hint(LevelFilter::TRACE);
    let to = fmt::layer().with_writer(io::stderr);
    let to = if io::stderr().is_terminal() { to.boxed() } else { to.json().boxed() };
    let registry = tracing_subscriber::registry().with(to.with_filter(filter.and(roughly)));
    #[cfg(feature = "otel")]
    let (registry, traces) = {
        let traces = crate::traces::Traces::from_environment()?;
        let layer = traces.as_ref().map(crate::traces::Traces::layer);
        (registry.with(layer), traces)
    };
    // What libraries say by `log` is sorted out before it is looked at: tungstenite says several lines for every frame.
    LogTracer::builder().with_max_level(LevelFilter::INFO.as_log()).init().into_diagnostic()?;
    tracing::subscriber::set_global_default(registry).into_diagnostic()?;
    CHANGE.set(handle).unwrap_or_default();
    Ok(Logging {
        #[cfg(feature = "otel")]
        traces,
    })
}

/// Changes which lines are written, until the end of the process.
///
/// # Errors
/// [`BadFilter`]; what held before holds on.
pub fn change(filter: &str) -> Result<(), BadFilter> {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).parse(filter)?;
    CHANGE.get().ok_or(BadFilter::NotStarted)?.reload(filter).map_err(|_| BadFilter::NotStarted)
}

/// Changes which lines are written to what the configuration says, unless the environment said something: that is stronger.
/// Says whether it did.
///
/// # Errors
/// [`BadFilter`]; what held before holds on.
pub fn configure(filter: &str) -> Result<bool, BadFilter> {
    let free = std::env::var_os(FILTER).is_none_or(|given| given.is_empty());
    if free {
        change(filter)?;
    }
    Ok(free)
}

/// The filter that holds.
#[must_use]
pub fn current() -> Option<String> {
    CHANGE.get()?.with_current(ToString::to_string).ok()
}

/// Whether a line may be written, whatever was asked for. Spans are for traces; as parents of log lines they would repeat in
/// each what one of them says.
fn is_ours_or_rough(metadata: &Metadata<'_>) -> bool {
    let ours = metadata.target() == "heliostat" || metadata.target().starts_with("heliostat::");
    metadata.target() != SPANS && (ours || *metadata.level() <= LevelFilter::INFO)
}
