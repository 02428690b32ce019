//! The one place that reads clocks.
//!
//! Whatever decides is handed a [`Now`]; only the tasks that drive it hold a [`Clock`].

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// One reading of both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Time since the clock was made. Never goes back; means nothing after a restart.
    pub monotonic: Duration,
    /// Milliseconds since the Unix epoch. May jump; the only one that may be stored or sent.
    pub wall_ms: u64,
}

impl Now {
    /// This reading, moved on by `by` on both clocks.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        let ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        Self { monotonic: self.monotonic.saturating_add(by), wall_ms: self.wall_ms.saturating_add(ms) }
    }
}

/// Reads both clocks. The monotonic one is tokio's, so paused and simulated time are obeyed.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
    wall: Wall,
}

#[derive(Debug, Clone, Copy)]
enum Wall {
    System,
    /// Starts at this many milliseconds and follows the monotonic clock.
    Following(u64),
}

impl Clock {
    /// The clocks of this machine.
    #[must_use]
    pub fn system() -> Self {
        Self { origin: Self::instant(), wall: Wall::System }
    }

    /// A wall clock that starts at `wall_ms` and follows tokio's time: for simulations and tests.
    #[must_use]
    pub fn following(wall_ms: u64) -> Self {
        Self { origin: Self::instant(), wall: Wall::Following(wall_ms) }
    }

    /// Reads both clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        let monotonic = Self::instant().saturating_duration_since(self.origin);
        let wall_ms = match self.wall {
            Wall::System => Self::system_ms(),
            Wall::Following(from) => from.saturating_add(u64::try_from(monotonic.as_millis()).unwrap_or(u64::MAX)),
        };
        Now { monotonic, wall_ms }
    }

    /// The instant at which `now().monotonic` will be `at`, to sleep until.
    #[must_use]
    pub fn instant_at(&self, at: Duration) -> Instant {
        self.origin.checked_add(at).unwrap_or_else(|| self.origin + Duration::from_secs(86_400 * 365 * 30))
    }

    /// Sleeps until `now().monotonic` is `at`; for ever when there is nothing to wait for.
    pub async fn sleep_until(&self, at: Option<Duration>) {
        match at {
            Some(at) => tokio::time::sleep_until(self.instant_at(at)).await,
            None => std::future::pending().await,
        }
    }

    #[expect(clippy::disallowed_methods, reason = "this is the place that reads the clock")]
    fn instant() -> Instant {
        Instant::now()
    }

    #[expect(clippy::disallowed_methods, reason = "this is the place that reads the clock")]
    fn system_ms() -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}
