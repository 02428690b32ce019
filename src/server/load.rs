//! When there is too much to do, and who has to wait then.
//!
//! A new group costs what it sends and brings nobody yet who would miss anything; a group that is kept has messages waiting
//! here and devices that can go nowhere else. So before it becomes too much for them, those of whom nothing is kept are told
//! to come again. Nobody inside notices.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::hub::Hub;
use crate::time::Clock;

/// How often it is looked at how much there is to do.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How much is too much; `None`: that does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shedding {
    /// How long a commit waits and takes.
    pub writer_latency: Option<Duration>,
    /// Resident memory of the process, in bytes.
    pub memory: Option<u64>,
    /// Open connections.
    pub connections: Option<usize>,
}

/// How much there is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// How long a commit waits and takes, or how long the one asked last has been taking already.
    pub writer_latency: Duration,
    /// Resident memory of the process, in bytes; zero where that cannot be told.
    pub memory: u64,
    /// Open connections.
    pub connections: usize,
}

/// What there is too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overload {
    /// Commits wait for too long.
    Writer,
    /// Memory.
    Memory,
    /// Connections.
    Connections,
}

impl Shedding {
    /// Whether there is too much to do. It begins when a bound is reached and ends at three quarters of it, so that it
    /// does not come and go with every connection.
    #[must_use]
    pub fn judge(&self, before: Option<Overload>, load: &Load) -> Option<Overload> {
        let reached = |what: Overload, now: u128, bound: u128| {
            if before == Some(what) { now * 4 >= bound * 3 } else { now >= bound }
        };
        let connections = (load.connections as u128, self.connections.map(|bound| bound as u128));
        let signs = [
            (Overload::Writer, load.writer_latency.as_nanos(), self.writer_latency.map(|bound| bound.as_nanos())),
            (Overload::Memory, load.memory.into(), self.memory.map(u128::from)),
            (Overload::Connections, connections.0, connections.1),
        ];
        let over = |&(what, now, bound): &(Overload, u128, Option<u128>)| {
            bound.is_some_and(|bound| reached(what, now, bound)).then_some(what)
        };
        // What began it is named until it is over.
        signs.iter().filter_map(over).max_by_key(|&what| before == Some(what))
    }
}

/// Looks again and again until `stop`, and tells of every look.
pub(super) async fn watch(hub: Hub, clock: Clock, stop: CancellationToken, tell: impl Fn(Duration)) {
    let look = async {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let asked = clock.now().monotonic;
            let waited = || clock.now().monotonic.saturating_sub(asked);
            let mut probe = std::pin::pin!(hub.probe());
            // A writer that hangs does not answer, and that is what has to be told.
            while tokio::time::timeout(LOOK_EVERY, probe.as_mut()).await.is_err() {
                tell(waited());
            }
            tell(waited());
        }
    };
    let _stopped = stop.run_until_cancelled(look).await;
}

/// Resident memory of this process, where the system tells it.
pub(super) fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix("kB")?;
    kib.trim().parse::<u64>().ok()?.checked_mul(1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Shedding =
        Shedding { writer_latency: Some(Duration::from_secs(2)), memory: Some(1_000), connections: Some(100) };

    #[test]
    fn each_bound_is_reached_alone_and_left_at_three_quarters() {
        let load = |writer_ms, memory, connections| Load {
            writer_latency: Duration::from_millis(writer_ms),
            memory,
            connections,
        };
        let table = [
            (Overload::Writer, load(1_999, 0, 0), load(2_000, 0, 0), load(1_500, 0, 0), load(1_499, 0, 0)),
            (Overload::Memory, load(0, 999, 0), load(0, 1_000, 0), load(0, 750, 0), load(0, 749, 0)),
            (Overload::Connections, load(0, 0, 99), load(0, 0, 100), load(0, 0, 75), load(0, 0, 74)),
        ];
        for (what, below, reached, less, over) in table {
            assert_eq!(LIMITS.judge(None, &below), None);
            assert_eq!(LIMITS.judge(None, &reached), Some(what));
            assert_eq!(LIMITS.judge(Some(what), &less), Some(what));
            assert_eq!(LIMITS.judge(Some(what), &over), None);
            assert_eq!(LIMITS.judge(None, &less), None);
            assert_eq!(Shedding::default().judge(Some(what), &reached), None, "without bounds nothing is too much");
        }
    }

    #[test]
    fn what_began_it_is_named_until_it_is_over() {
        let both = Load { memory: 1_000, connections: 100, ..Load::default() };
        assert_eq!(LIMITS.judge(Some(Overload::Memory), &both), Some(Overload::Memory));
        assert_eq!(LIMITS.judge(Some(Overload::Connections), &both), Some(Overload::Connections));
        let other = Load { memory: 1_000, connections: 0, ..Load::default() };
        assert_eq!(LIMITS.judge(Some(Overload::Connections), &other), Some(Overload::Memory));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_is_read() {
        assert!(resident().is_some_and(|bytes| bytes > 1_024 * 1_024));
    }
}
