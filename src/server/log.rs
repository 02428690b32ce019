//! What is logged, and how that is changed while the server runs.

use std::sync::{Mutex, OnceLock, PoisonError};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Longest filter that is taken, in bytes.
pub const FILTER_MAX: usize = 1_024;

/// The filter of this process: what it is, and how it is replaced.
static FILTER: OnceLock<Filter> = OnceLock::new();

struct Filter {
    now: Mutex<String>,
    replace: Box<dyn Fn(EnvFilter) -> bool + Send + Sync>,
}

/// Why the filter stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadFilter {
    /// It is none.
    #[error("{0:?} is no filter, as are `debug` and `info,heliostat::upstream=debug`: {1}")]
    Syntax(String, String),
    /// It is longer than [`FILTER_MAX`].
    #[error("a filter has at most {FILTER_MAX} bytes")]
    TooLong,
    /// This process logs in another way.
    #[error("what this process logs cannot be changed")]
    Fixed,
}

/// To be called by who sets up the log, once.
pub fn installed(now: String, replace: impl Fn(EnvFilter) -> bool + Send + Sync + 'static) {
    let _later_ones_are_not_in_force = FILTER.set(Filter { now: Mutex::new(now), replace: Box::new(replace) });
}

/// The filter that is in force.
#[must_use]
pub fn filter() -> Option<String> {
    FILTER.get().map(|filter| filter.now.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// Puts another filter in force; returns what it is then.
///
/// # Errors
/// [`BadFilter`]; then the old one stays.
pub fn change(text: &str) -> Result<String, BadFilter> {
    if text.len() > FILTER_MAX {
        return Err(BadFilter::TooLong);
    }
    let bad = |why: String| BadFilter::Syntax(text.to_owned(), why);
    let text = text.trim();
    if text.is_empty() {
        return Err(bad("it is empty".to_owned()));
    }
    // A word alone would be taken for a module of that name, so that `debig` logged everything about nothing.
    if let Some(word) = text.split(',').find(|it| !it.contains(['=', '[']) && it.parse::<LevelFilter>().is_err()) {
        return Err(bad(format!("{word:?} is no level: error, warn, info, debug, trace or off")));
    }
    let new = EnvFilter::builder().parse(text).map_err(|error| bad(error.to_string()))?;
    let filter = FILTER.get().ok_or(BadFilter::Fixed)?;
    let mut now = filter.now.lock().unwrap_or_else(PoisonError::into_inner);
    let shown = new.to_string();
    if !(filter.replace)(new) {
        return Err(BadFilter::Fixed);
    }
    now.clone_from(&shown);
    drop(now);
    tracing::warn!(filter = shown, "what is logged was changed");
    Ok(shown)
}
