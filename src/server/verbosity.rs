//! What is logged, changeable while running.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// Names what is logged, as in `info,heliostat::upstream=debug`. Stronger than the configuration.
const VARIABLE: &str = "HELIOSTAT_LOG";

/// The handle of this process's log.
#[derive(Debug, Clone)]
pub struct Verbosity {
    handle: reload::Handle<EnvFilter, Registry>,
    fixed: bool,
}

/// Why the log could not be opened.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
#[error("{VARIABLE} cannot be understood: {0}")]
#[diagnostic(help("for example {VARIABLE}=debug, or {VARIABLE}=info,heliostat::upstream=debug"))]
pub struct BadFilter(#[from] tracing_subscriber::filter::ParseError);

impl Verbosity {
    /// Opens the log, on standard error: people read on a terminal, everything else is read by programs.
    ///
    /// # Errors
    /// [`BadFilter`].
    pub fn init() -> Result<Self, BadFilter> {
        let given = std::env::var(VARIABLE).ok().filter(|given| !given.is_empty());
        let filter = EnvFilter::builder().parse(given.as_deref().unwrap_or("info"))?;
        let (filter, handle) = reload::Layer::new(filter);
        let lines = fmt::layer().with_writer(io::stderr);
        let lines = if io::stderr().is_terminal() { lines.boxed() } else { lines.json().boxed() };
        tracing_subscriber::registry().with(filter).with(lines).init();
        Ok(Self { handle, fixed: given.is_some() })
    }

    /// Another filter from now on. Says whether it is: the environment's is stronger.
    #[must_use]
    pub fn change(&self, filter: EnvFilter) -> bool {
        !self.fixed && self.handle.reload(filter).is_ok()
    }
}
