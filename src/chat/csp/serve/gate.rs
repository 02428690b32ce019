//! Slows down who fails to log in again and again from one address (spec 2.7).

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::time::Now;

/// Failed handshakes from one address within [`WINDOW`], at most.
pub const FAILURES_MAX: u32 = 30;
/// How long failures count.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Addresses remembered, at most. Beyond that the oldest failures are forgiven.
const ADDRESSES_MAX: usize = 4_096;

#[derive(Debug, Clone, Copy)]
struct Failures {
    since: Duration,
    count: u32,
}

/// Counts failures by address.
#[derive(Debug)]
pub(super) struct Gate {
    /// Behind these stand many clients: the mediator's address above all.
    exempt: Vec<IpAddr>,
    failures: HashMap<IpAddr, Failures>,
}

impl Gate {
    pub(super) fn new(exempt: Vec<IpAddr>) -> Self {
        Self { exempt, failures: HashMap::new() }
    }

    /// Whether a connection from there is worth a handshake.
    pub(super) fn is_open(&self, now: Now, from: IpAddr) -> bool {
        self.failures.get(&from).is_none_or(|failures| {
            failures.count < FAILURES_MAX || now.monotonic.saturating_sub(failures.since) >= WINDOW
        })
    }

    /// A handshake from there failed.
    pub(super) fn failed(&mut self, now: Now, from: IpAddr) {
        if self.exempt.contains(&from) {
            return;
        }
        if self.failures.len() >= ADDRESSES_MAX && !self.failures.contains_key(&from) {
            self.failures.retain(|_, failures| now.monotonic.saturating_sub(failures.since) < WINDOW);
            if self.failures.len() >= ADDRESSES_MAX
                && let Some(oldest) = self.failures.iter().min_by_key(|(_, failures)| failures.since).map(|(ip, _)| *ip)
            {
                self.failures.remove(&oldest);
            }
        }
        let failures = self.failures.entry(from).or_insert(Failures { since: now.monotonic, count: 0 });
        if now.monotonic.saturating_sub(failures.since) >= WINDOW {
            *failures = Failures { since: now.monotonic, count: 0 };
        }
        failures.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csp_2_7_failures_close_the_gate_for_a_minute_but_not_for_the_mediator() {
        let (stranger, mediator) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([127, 0, 0, 1]));
        let mut gate = Gate::new(vec![mediator]);
        let now = Now { monotonic: Duration::from_secs(5), wall_ms: 0 };
        for _ in 0..FAILURES_MAX {
            assert!(gate.is_open(now, stranger));
            gate.failed(now, stranger);
            gate.failed(now, mediator);
        }
        assert!(!gate.is_open(now, stranger));
        assert!(gate.is_open(now, mediator));
        assert!(gate.is_open(now.plus(WINDOW), stranger));
        gate.failed(now.plus(WINDOW), stranger);
        assert!(gate.is_open(now.plus(WINDOW), stranger), "counted anew");
    }

    #[test]
    fn the_gate_remembers_a_bounded_number_of_addresses() {
        let mut gate = Gate::new(Vec::new());
        let now = Now { monotonic: Duration::ZERO, wall_ms: 0 };
        for n in 0..u32::try_from(ADDRESSES_MAX).unwrap() + 10 {
            gate.failed(now.plus(Duration::from_millis(n.into())), IpAddr::from(n.to_be_bytes()));
        }
        assert_eq!(gate.failures.len(), ADDRESSES_MAX);
    }
}
