//! Slows down who fails to log in again and again from one address (spec 2.7).
//!
//! Addresses are compared in their canonical form: on a listener for both families an IPv4 client shows up as
//! `::ffff:a.b.c.d`, and is still the one that the list of exemptions names `a.b.c.d`.

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
    pub(super) fn new(exempt: &[IpAddr]) -> Self {
        Self { exempt: exempt.iter().map(IpAddr::to_canonical).collect(), failures: HashMap::new() }
    }

    /// Whether a connection from there is worth a handshake.
    pub(super) fn is_open(&self, now: Now, from: IpAddr) -> bool {
        self.failures.get(&from.to_canonical()).is_none_or(|failures| {
            failures.count < FAILURES_MAX || now.monotonic.saturating_sub(failures.since) >= WINDOW
        })
    }

    /// A handshake from there failed.
    pub(super) fn failed(&mut self, now: Now, from: IpAddr) {
        let from = from.to_canonical();
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
        let mut gate = Gate::new(&[mediator]);
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
    fn an_address_is_the_same_in_either_notation() {
        let now = Now { monotonic: Duration::ZERO, wall_ms: 0 };
        let [plain, mapped] = ["192.0.2.1", "::ffff:192.0.2.1"].map(|text| text.parse::<IpAddr>().unwrap());
        for (exempt, from) in [(plain, mapped), (mapped, plain)] {
            let mut gate = Gate::new(&[exempt]);
            (0..=FAILURES_MAX).for_each(|_| gate.failed(now, from));
            assert!(gate.is_open(now, from), "{exempt} is {from}");
        }
        let mut gate = Gate::new(&[]);
        (0..FAILURES_MAX).for_each(|n| gate.failed(now, if n % 2 == 0 { plain } else { mapped }));
        assert!(!gate.is_open(now, plain) && !gate.is_open(now, mapped));
    }

    #[test]
    fn the_gate_remembers_a_bounded_number_of_addresses() {
        let mut gate = Gate::new(&[]);
        let now = Now { monotonic: Duration::ZERO, wall_ms: 0 };
        for n in 0..u32::try_from(ADDRESSES_MAX).unwrap() + 10 {
            gate.failed(now.plus(Duration::from_millis(n.into())), IpAddr::from(n.to_be_bytes()));
        }
        assert_eq!(gate.failures.len(), ADDRESSES_MAX);
    }
}
