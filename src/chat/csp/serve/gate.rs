//! Who may try to log in: slows down who fails again and again from one address (spec 2.7), and bounds how many try at
//! a time.
//!
//! Addresses are compared in their canonical form: on a listener for both families an IPv4 client shows up as
//! `::ffff:a.b.c.d`, and is still the one that the list of exemptions names `a.b.c.d`.
//!
//! Exempt addresses are neither counted nor bounded here: many clients stand behind them, and strangers who use up what
//! strangers may have must not keep them out. What bounds them is the number of connections.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::time::Now;

/// Failed handshakes from one address within [`WINDOW`], at most.
pub const FAILURES_MAX: u32 = 30;
/// How long failures count.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Handshakes at a time from one address, at most: many phones behind one router come back at once after it restarted.
pub const HANDSHAKES_PER_ADDRESS_MAX: usize = 64;
/// Handshakes at a time from all addresses, at most.
pub const HANDSHAKES_MAX: usize = 1_024;
/// Addresses whose failures are remembered, at most. Beyond that the oldest failures are forgiven.
const ADDRESSES_MAX: usize = 4_096;

#[derive(Debug, Clone, Copy)]
struct Failures {
    since: Duration,
    count: u32,
}

#[derive(Debug, Default)]
struct Counts {
    failures: HashMap<IpAddr, Failures>,
    /// Handshakes under way, by address; none of them is zero.
    trying: HashMap<IpAddr, usize>,
    trying_in_all: usize,
}

/// Counts by address. Clones are handles of the same gate.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    /// Behind these stand many clients: the mediator's address above all.
    exempt: Arc<[IpAddr]>,
    counts: Arc<Mutex<Counts>>,
}

/// Why a connection is not worth a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Shut {
    #[error("too many failed handshakes")]
    Failures,
    #[error("too many handshakes at a time from one address")]
    Address,
    #[error("too many handshakes at a time")]
    Everybody,
}

impl Gate {
    pub(super) fn new(exempt: &[IpAddr]) -> Self {
        Self { exempt: exempt.iter().map(IpAddr::to_canonical).collect(), counts: Arc::default() }
    }

    /// Lets a connection from there try, if it is worth a handshake.
    pub(super) fn enter(&self, now: Now, from: IpAddr) -> Result<Attempt, Shut> {
        let from = from.to_canonical();
        if self.exempt.contains(&from) {
            return Ok(Attempt(None));
        }
        let mut counts = self.counts();
        let shut = counts.failures.get(&from).is_some_and(|failures| {
            failures.count >= FAILURES_MAX && now.monotonic.saturating_sub(failures.since) < WINDOW
        });
        if shut {
            return Err(Shut::Failures);
        }
        if counts.trying_in_all >= HANDSHAKES_MAX {
            return Err(Shut::Everybody);
        }
        let trying = counts.trying.entry(from).or_default();
        if *trying >= HANDSHAKES_PER_ADDRESS_MAX {
            return Err(Shut::Address);
        }
        *trying += 1;
        counts.trying_in_all += 1;
        drop(counts);
        Ok(Attempt(Some((self.clone(), from))))
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Nothing panics while it holds the counts; if it did, what is in them is still whole.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handshake under way. It is over when this is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Attempt(Option<(Gate, IpAddr)>);

impl Attempt {
    /// It failed, and counts against the address it came from.
    pub(super) fn failed(self, now: Now) {
        if let Some((gate, from)) = &self.0 {
            gate.counts().failed(now, *from);
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some((gate, from)) = &self.0 {
            gate.counts().over(*from);
        }
    }
}

impl Counts {
    fn failed(&mut self, now: Now, from: IpAddr) {
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

    fn over(&mut self, from: IpAddr) {
        self.trying_in_all -= 1;
        if let Some(trying) = self.trying.get_mut(&from) {
            *trying -= 1;
            if *trying == 0 {
                self.trying.remove(&from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Now = Now { monotonic: Duration::from_secs(5), wall_ms: 0 };

    fn fail(gate: &Gate, now: Now, from: IpAddr) {
        if let Ok(attempt) = gate.enter(now, from) {
            attempt.failed(now);
        }
    }

    fn is_open(gate: &Gate, now: Now, from: IpAddr) -> bool {
        gate.enter(now, from).is_ok()
    }

    #[test]
    fn csp_2_7_failures_close_the_gate_for_a_minute_but_not_for_the_mediator() {
        let (stranger, mediator) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([127, 0, 0, 1]));
        let gate = Gate::new(&[mediator]);
        for _ in 0..FAILURES_MAX {
            assert!(is_open(&gate, NOW, stranger));
            fail(&gate, NOW, stranger);
            fail(&gate, NOW, mediator);
        }
        assert_eq!(gate.enter(NOW, stranger).unwrap_err(), Shut::Failures);
        assert!(is_open(&gate, NOW, mediator));
        assert!(is_open(&gate, NOW.plus(WINDOW), stranger));
        fail(&gate, NOW.plus(WINDOW), stranger);
        assert!(is_open(&gate, NOW.plus(WINDOW), stranger), "counted anew");
    }

    #[test]
    fn an_address_is_the_same_in_either_notation() {
        let [plain, mapped] = ["192.0.2.1", "::ffff:192.0.2.1"].map(|text| text.parse::<IpAddr>().unwrap());
        for (exempt, from) in [(plain, mapped), (mapped, plain)] {
            let gate = Gate::new(&[exempt]);
            (0..=FAILURES_MAX).for_each(|_| fail(&gate, NOW, from));
            assert!(is_open(&gate, NOW, from), "{exempt} is {from}");
        }
        let gate = Gate::new(&[]);
        (0..FAILURES_MAX).for_each(|n| fail(&gate, NOW, if n % 2 == 0 { plain } else { mapped }));
        assert!(!is_open(&gate, NOW, plain) && !is_open(&gate, NOW, mapped));
    }

    #[test]
    fn the_gate_remembers_a_bounded_number_of_addresses() {
        let gate = Gate::new(&[]);
        for n in 0..u32::try_from(ADDRESSES_MAX).unwrap() + 10 {
            fail(&gate, NOW.plus(Duration::from_millis(n.into())), IpAddr::from(n.to_be_bytes()));
        }
        assert_eq!(gate.counts().failures.len(), ADDRESSES_MAX);
        assert!(gate.counts().trying.is_empty(), "nobody is trying any more");
    }

    #[test]
    fn csp_2_7_handshakes_at_a_time_are_bounded_by_address_and_in_all_but_not_for_the_mediator() {
        let (stranger, mediator) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([127, 0, 0, 1]));
        let gate = Gate::new(&[mediator]);
        let mut here: Vec<Attempt> =
            (0..HANDSHAKES_PER_ADDRESS_MAX).map(|_| gate.enter(NOW, stranger).unwrap()).collect();
        assert_eq!(gate.enter(NOW, stranger).unwrap_err(), Shut::Address);
        here.pop();
        here.push(gate.enter(NOW, stranger).unwrap());

        let others =
            (HANDSHAKES_PER_ADDRESS_MAX..HANDSHAKES_MAX).map(|n| IpAddr::from(u32::try_from(n).unwrap().to_be_bytes()));
        here.extend(others.map(|other| gate.enter(NOW, other).unwrap()));
        let late = IpAddr::from([192, 0, 2, 2]);
        assert_eq!(gate.enter(NOW, late).unwrap_err(), Shut::Everybody);
        let mediators: Vec<Attempt> = (0..HANDSHAKES_MAX).map(|_| gate.enter(NOW, mediator).unwrap()).collect();

        drop(here);
        assert!(is_open(&gate, NOW, late), "the mediator's do not count");
        drop(mediators);
        assert!(gate.counts().trying.is_empty());
        assert_eq!(gate.counts().trying_in_all, 0);
    }
}
