//! Who may try how often. The protocol has no word for *too often*, so whoever is too fast is heard later: its packet waits at
//! the door, and so does everything behind it.
//!
//! Attempts are counted by address, or by connection where many clients share an address, and logins by the name they are for, so
//! that nobody guesses a password through a mediator either. Who knows a name can make its owner wait for a new login that way, but
//! not for coming back to a session: a session's token cannot be guessed.

use std::net::IpAddr;

use crate::chat::skynet::state::ConnId;
use crate::chat::skynet::state::names::normalised;
use crate::chat::skynet::wire::FromClient;
use crate::metrics::{self, Login, Room};
use crate::net::rate::{Buckets, Per, Rate, TooMuch};
use crate::time::Clock;

/// How often something may be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// Registering, logging in and coming back, from an address; on a connection, where many clients share an address.
    pub attempts: Rate,
    /// Logging in under a name.
    pub logins: Rate,
    /// Mails to an address: what is asked for beyond that is answered as if it were sent.
    pub mails: Rate,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            attempts: Rate { amount: 120, per: Per::Minute },
            logins: Rate { amount: 20, per: Per::Minute },
            mails: Rate { amount: 5, per: Per::Hour },
        }
    }
}

/// See the top of this file.
#[derive(Debug)]
pub(super) struct Gate {
    attempts: Buckets,
    logins: Buckets,
    mails: Buckets,
    exempt: Vec<IpAddr>,
}

impl Gate {
    pub(super) fn new(rates: Rates, exempt: Vec<IpAddr>, clock: Clock) -> Self {
        let [attempts, logins, mails] =
            [rates.attempts, rates.logins, rates.mails].map(|rate| Buckets::new(rate, clock));
        Self { attempts, logins, mails, exempt }
    }

    /// Waits until somebody may try this.
    pub(super) async fn pass(&self, conn: ConnId, from: IpAddr, packet: &FromClient) {
        let from = from.to_canonical();
        let who = if self.exempt.contains(&from) { Who::Connection(conn) } else { Who::Network(network(from)) };
        wait(&self.attempts, &who).await;
        if let FromClient::CreateSession { name, .. } = packet {
            // What nobody can be called is refused without looking.
            if let Some(name) = normalised(name) {
                wait(&self.logins, &name).await;
            }
        }
    }

    /// Whether an address gets another mail.
    pub(super) fn may_mail(&self, address: &str) -> bool {
        self.mails.take(&address).is_ok()
    }

    /// Forgets those who were quiet. To be called now and then.
    pub(super) fn tidy(&self) {
        for buckets in [&self.attempts, &self.logins, &self.mails] {
            buckets.tidy();
        }
    }
}

/// Who is held responsible for an attempt.
#[derive(Debug, Hash)]
enum Who {
    Connection(ConnId),
    Network(u128),
}

async fn wait(buckets: &Buckets, key: &impl std::hash::Hash) {
    let mut is_first = true;
    while let Err(TooMuch { wait }) = buckets.take(key) {
        if std::mem::take(&mut is_first) {
            metrics::get().chat_logins.of(Room::Skynet).of(Login::Throttled).increment(1);
        }
        tokio::time::sleep(wait).await;
    }
}

/// What one customer has: of IPv6 a whole network.
pub(super) fn network(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits() >> 64 << 64,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::crypto::Secret;

    fn login(name: &str) -> FromClient {
        FromClient::CreateSession { name: name.into(), key_hash: Secret::new([0; 32]), push_token: String::new() }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_too_fast_waits_alone() {
        let clock = Clock::following(0);
        let rates = Rates { attempts: Rate { amount: 6, per: Per::Minute }, ..Rates::default() };
        let [shared, one, other]: [IpAddr; 3] =
            ["127.0.0.1", "::ffff:192.0.2.1", "192.0.2.2"].map(|it| it.parse().unwrap());
        let gate = Gate::new(rates, vec![shared], clock);
        let register = FromClient::CreateAccount { name: String::new(), key_hash: Secret::new([0; 32]) };
        let (first, second) = (ConnId(1), ConnId(2));
        for n in 0..6 {
            gate.pass(ConnId(n), one, &register).await;
        }
        assert_eq!(clock.now().monotonic, Duration::ZERO);
        gate.pass(second, one.to_canonical(), &register).await;
        let waited = clock.now().monotonic;
        assert!(waited >= Duration::from_secs(10) && waited < Duration::from_secs(11), "{waited:?}");
        for _ in 0..6 {
            gate.pass(first, other, &register).await;
        }
        // Where all come from one address, each connection answers for itself.
        for conn in 0..12 {
            gate.pass(ConnId(conn / 6), shared, &register).await;
        }
        assert_eq!(clock.now().monotonic, waited);
        gate.pass(first, shared, &register).await;
        assert!(clock.now().monotonic > waited);
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_guarded_wherever_one_comes_from() {
        let clock = Clock::following(0);
        let shared = "127.0.0.1".parse().unwrap();
        let gate = Gate::new(Rates::default(), vec![shared], clock);
        for n in 0..20 {
            gate.pass(ConnId(n), shared, &login(if n % 2 == 0 { "a@example.com" } else { "A@Example.COM" })).await;
        }
        gate.pass(ConnId(99), shared, &login("b@example.com")).await;
        assert_eq!(clock.now().monotonic, Duration::ZERO);
        gate.pass(ConnId(99), shared, &login("a@example.com")).await;
        assert!(clock.now().monotonic >= Duration::from_secs(3));
        assert!((0..5).all(|_| gate.may_mail("a@example.com")) && !gate.may_mail("a@example.com"));
        assert!(gate.may_mail("b@example.com"));
    }
}
