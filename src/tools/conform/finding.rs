//! What a case says in the end.

use crate::client::csp::CspError;
use crate::client::{ConnectError, Ended};

/// Nothing, or why the case did not pass.
pub(super) type Done = Result<(), Finding>;

/// Why a case did not pass.
#[derive(Debug, Clone)]
pub(super) enum Finding {
    /// The rule is broken, and this is how it shows.
    Broken(String),
    /// The rule cannot be tried here.
    Untried(String),
}

impl From<String> for Finding {
    fn from(what: String) -> Self {
        Self::Broken(what)
    }
}

impl From<Ended> for Finding {
    fn from(ended: Ended) -> Self {
        Self::Broken(format!("the connection was {ended}"))
    }
}

impl From<ConnectError> for Finding {
    fn from(error: ConnectError) -> Self {
        Self::Broken(error.to_string())
    }
}

impl From<std::io::Error> for Finding {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(format!("the stream broke: {error}"))
    }
}

impl From<CspError> for Finding {
    fn from(error: CspError) -> Self {
        Self::Broken(error.to_string())
    }
}

/// Ends the case when something is not as it has to be.
macro_rules! ensure {
    ($holds:expr, $($seen:tt)+) => {
        if !$holds {
            return Err(Finding::Broken(format!($($seen)+)));
        }
    };
}
pub(super) use ensure;
