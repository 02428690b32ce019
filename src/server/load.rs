//! When there is too much to do, and who has to wait then.
//!
//! A new group costs what it sends and brings nobody yet who would miss anything; a group that is kept has messages waiting
//! here and devices that can go nowhere else. So before it becomes too much for them, those of whom nothing is kept are told
//! to come again. Nobody inside notices.
//!
//! Memory is resident memory, which a heap keeps when it is done with it. So what is there says when it was too much, but not
//! when that is over: fewer connections do, whose memory is free again although nobody outside can see it.

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

/// What is remembered from one look to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Judgement {
    /// What there is too much of.
    pub overload: Option<Overload>,
    /// When memory reached its bound and is not below three quarters of it yet.
    full: Option<Full>,
}

/// Memory was full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Full {
    /// The most there was since.
    memory: u64,
    /// The most there were since.
    connections: usize,
    /// It is over as far as connections tell.
    over: bool,
}

impl Full {
    /// What is remembered of it after this look. It is over with three quarters of the connections, and begins anew when
    /// they are back, or when an eighth more memory is in use than the heap had then.
    fn followed_by(self, load: &Load) -> Self {
        let fewer = (load.connections as u128) * 4 < (self.connections as u128) * 3;
        let anew = load.connections >= self.connections || u128::from(load.memory) * 8 >= u128::from(self.memory) * 9;
        match self.over {
            true if anew => Self { memory: load.memory, connections: load.connections, over: false },
            true => self,
            false => Self {
                memory: self.memory.max(load.memory),
                connections: self.connections.max(load.connections),
                over: fewer,
            },
        }
    }
}

impl Shedding {
    /// Whether there is too much to do. It begins when a bound is reached and ends at three quarters of it, so that it
    /// does not come and go with every connection. That of memory ends at three quarters of the connections, too.
    #[must_use]
    pub fn judge(&self, before: Judgement, load: &Load) -> Judgement {
        let full = self.memory.and_then(|bound| match before.full {
            Some(full) if u128::from(load.memory) * 4 >= u128::from(bound) * 3 => Some(full.followed_by(load)),
            _ if load.memory >= bound => Some(Full { memory: load.memory, connections: load.connections, over: false }),
            _ => None,
        });
        let before = before.overload;
        let reached = |what: Overload, now: u128, bound: u128| {
            if before == Some(what) { now * 4 >= bound * 3 } else { now >= bound }
        };
        let connections = (load.connections as u128, self.connections.map(|bound| bound as u128));
        let signs = [
            (Overload::Writer, load.writer_latency.as_nanos(), self.writer_latency.map(|bound| bound.as_nanos())),
            (Overload::Connections, connections.0, connections.1),
        ];
        let beyond = |&(what, now, bound): &(Overload, u128, Option<u128>)| {
            bound.is_some_and(|bound| reached(what, now, bound)).then_some(what)
        };
        // What began it is named until it is over.
        let memory = full.filter(|full| !full.over).map(|_| Overload::Memory);
        let overload = signs.iter().filter_map(beyond).chain(memory).max_by_key(|&what| before == Some(what));
        Judgement { overload, full }
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

    fn judged(overload: Overload) -> Judgement {
        let full = Full { memory: 1_000, connections: 0, over: false };
        Judgement { overload: Some(overload), full: (overload == Overload::Memory).then_some(full) }
    }

    #[test]
    fn memory_that_the_heap_keeps_does_not_shut_out_new_groups_for_ever() {
        let look = |before, memory, connections| LIMITS.judge(before, &Load { memory, connections, ..Load::default() });
        let table = [
            (1_000, 60, Some(Overload::Memory)),
            (1_100, 80, Some(Overload::Memory)),
            (1_100, 60, Some(Overload::Memory)),
            (1_100, 59, None),
            // The heap gives nothing back, and fills again.
            (1_100, 79, None),
            (1_100, 80, Some(Overload::Memory)),
            (1_100, 59, None),
            (1_237, 59, None),
            // This is not the heap's habit.
            (1_238, 59, Some(Overload::Memory)),
            (749, 59, None),
            (999, 90, None),
        ];
        let mut judgement = Judgement::default();
        for (step, (memory, connections, expected)) in table.into_iter().enumerate() {
            judgement = look(judgement, memory, connections);
            assert_eq!(judgement.overload, expected, "{step}");
        }
    }

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
            let (idle, busy) = (Judgement::default(), judged(what));
            assert_eq!(LIMITS.judge(idle, &below).overload, None);
            assert_eq!(LIMITS.judge(idle, &reached).overload, Some(what));
            assert_eq!(LIMITS.judge(busy, &less).overload, Some(what));
            assert_eq!(LIMITS.judge(busy, &over), idle);
            assert_eq!(LIMITS.judge(idle, &less), idle);
            assert_eq!(Shedding::default().judge(busy, &reached), idle, "without bounds nothing is too much");
        }
    }

    #[test]
    fn what_began_it_is_named_until_it_is_over() {
        let both = Load { memory: 1_000, connections: 100, ..Load::default() };
        assert_eq!(LIMITS.judge(judged(Overload::Memory), &both).overload, Some(Overload::Memory));
        assert_eq!(LIMITS.judge(judged(Overload::Connections), &both).overload, Some(Overload::Connections));
        let other = Load { memory: 1_000, connections: 0, ..Load::default() };
        assert_eq!(LIMITS.judge(judged(Overload::Connections), &other).overload, Some(Overload::Memory));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_is_read() {
        assert!(resident().is_some_and(|bytes| bytes > 1_024 * 1_024));
    }
}
