//! Who may try how often. The protocol has no word for *too often*, so whoever is too fast is heard later: its packet waits at
//! the door, and so does everything behind it.
//!
//! Attempts are counted by address, or by connection where many clients share an address, and logins by the name they are for, so
//! that nobody guesses a password through a mediator either. Who knows a name can make its owner wait for a new login that way, but
//! not for coming back to a session: a session's token cannot be guessed. Registering sends a mail to an address that somebody only
//! says is theirs, so all who share an address share one more bucket for that.
//!
//! Who is logged in answers as an account, however many its devices are: for packets, for those of them that are much work or that show
//! what the password became (a stolen session guesses), and for the bytes that it has kept.

use std::net::IpAddr;

use crate::chat::skynet::state::ConnId;
use crate::chat::skynet::state::names::normalised;
use crate::chat::skynet::wire::{AccountId, FromClient, Kind, Upload};
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
    /// Registering from addresses that many clients share, all together.
    pub shared_registrations: Rate,
    /// Packets of an account that is logged in.
    pub packets: Rate,
    /// Of these, what is much work: searching, asking for messages, saying what one is doing, and changes of which many hear.
    pub costly: Rate,
    /// Of these, what shows the password: changing it, and deleting the account.
    pub guesses: Rate,
    /// Changes of its address that an account asks for.
    pub wishes: Rate,
    /// What an account has kept, in bytes.
    pub kept: Rate,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            attempts: Rate { amount: 120, per: Per::Minute },
            logins: Rate { amount: 20, per: Per::Minute },
            mails: Rate { amount: 5, per: Per::Hour },
            shared_registrations: Rate { amount: 120, per: Per::Minute },
            packets: Rate { amount: 1_200, per: Per::Minute },
            costly: Rate { amount: 120, per: Per::Minute },
            guesses: Rate { amount: 10, per: Per::Minute },
            wishes: Rate { amount: 5, per: Per::Hour },
            kept: Rate { amount: 64 * 1024 * 1024, per: Per::Hour },
        }
    }
}

/// What a message takes beside its content, in bytes, and each that it builds on.
const ROW: u64 = 128;
const DEPENDENCY: u64 = 64;

/// See the top of this file.
#[derive(Debug)]
pub(super) struct Gate {
    attempts: Buckets,
    logins: Buckets,
    mails: Buckets,
    shared_registrations: Buckets,
    packets: Buckets,
    costly: Buckets,
    guesses: Buckets,
    wishes: Buckets,
    kept: Buckets,
    exempt: Vec<IpAddr>,
}

impl Gate {
    pub(super) fn new(rates: Rates, exempt: Vec<IpAddr>, clock: Clock) -> Self {
        let times = |rate| Buckets::new(rate, clock);
        Self {
            attempts: times(rates.attempts),
            logins: times(rates.logins),
            mails: times(rates.mails),
            shared_registrations: times(rates.shared_registrations),
            packets: times(rates.packets),
            costly: times(rates.costly),
            guesses: times(rates.guesses),
            wishes: times(rates.wishes),
            kept: Buckets::of_bytes(rates.kept, clock),
            exempt,
        }
    }

    /// Waits until somebody may try this.
    pub(super) async fn pass(&self, conn: ConnId, from: IpAddr, packet: &FromClient) {
        let from = from.to_canonical();
        let who = if self.exempt.contains(&from) { Who::Connection(conn) } else { Who::Network(network(from)) };
        let mut waited = wait(&self.attempts, &who, 1).await;
        match (packet, who) {
            (FromClient::CreateSession { name, .. }, _) => {
                // What nobody can be called is refused without looking.
                if let Some(name) = normalised(name) {
                    waited |= wait(&self.logins, &name, 1).await;
                }
            }
            (FromClient::CreateAccount { .. }, Who::Connection(_)) => {
                waited |= wait(&self.shared_registrations, &(), 1).await;
            }
            _ => {}
        }
        if waited {
            metrics::get().chat_logins.of(Room::Skynet).of(Login::Throttled).increment(1);
        }
    }

    /// Waits until an account may say this.
    pub(super) async fn hear(&self, account: AccountId, packet: &FromClient) {
        let mut waited = wait(&self.packets, &account, 1).await;
        waited |= match Toll::of(packet) {
            Toll::Usual => false,
            Toll::Costly => wait(&self.costly, &account, 1).await,
            Toll::Guess => wait(&self.guesses, &account, 1).await,
        };
        if let FromClient::Message(Upload { body, .. }) = packet {
            let bytes = ROW + body.content.len() as u64 + body.dependencies.len() as u64 * DEPENDENCY;
            waited |= wait(&self.kept, &account, bytes).await;
        }
        if waited {
            metrics::get().skynet_held_up.increment(1);
        }
    }

    /// Whether an account may ask for another address: each time somebody gets a mail.
    pub(super) fn may_wish(&self, account: AccountId) -> bool {
        self.wishes.take(&account).is_ok()
    }

    /// Whether an address gets another mail.
    pub(super) fn may_mail(&self, address: &str) -> bool {
        self.mails.take(&address).is_ok()
    }

    /// Forgets those who were quiet. To be called now and then.
    pub(super) fn tidy(&self) {
        let Self { attempts, logins, mails, shared_registrations, packets, costly, guesses, wishes, kept, exempt: _ } =
            self;
        for buckets in [attempts, logins, mails, shared_registrations, packets, costly, guesses, wishes, kept] {
            buckets.tidy();
        }
    }
}

/// What else is counted of what an account says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Toll {
    Usual,
    Costly,
    Guess,
}

impl Toll {
    const fn of(packet: &FromClient) -> Self {
        match packet {
            FromClient::DeleteAccount { .. } => Self::Guess,
            FromClient::CreateChannel { .. }
            | FromClient::RequestMessages { .. }
            | FromClient::SearchAccount { .. }
            | FromClient::SetClientState { .. } => Self::Costly,
            FromClient::Message(Upload { body, .. }) => match body.kind {
                Kind::PasswordUpdate => Self::Guess,
                Kind::PublicKeys | Kind::GroupChannelUpdate | Kind::BlockList => Self::Costly,
                _ => Self::Usual,
            },
            FromClient::DeviceListRequest {}
            | FromClient::ConnectionHandshake { .. }
            | FromClient::CreateAccount { .. }
            | FromClient::CreateSession { .. }
            | FromClient::RestoreSession { .. } => Self::Usual,
        }
    }
}

/// Who is held responsible for an attempt.
#[derive(Debug, Hash)]
enum Who {
    Connection(ConnId),
    Network(u128),
}

/// Says whether it had to wait.
async fn wait(buckets: &Buckets, key: &impl std::hash::Hash, amount: u64) -> bool {
    let mut waited = false;
    while let Err(TooMuch { wait }) = buckets.take_many(key, amount) {
        waited = true;
        tokio::time::sleep(wait).await;
    }
    waited
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
    use crate::chat::skynet::wire::{Body, ChannelId, MessageFlags, MessageId};
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

    #[tokio::test(start_paused = true)]
    async fn who_was_logged_in_could_ask_for_anything_without_end() {
        let message = |kind, len| {
            let body = Body::new(kind, MessageFlags::NONE, vec![0; len]);
            FromClient::Message(Upload { channel: ChannelId(1), temp: MessageId(-1), body })
        };
        let (alice, bob) = (AccountId(1), AccountId(2));
        let search = FromClient::SearchAccount { query: "x".into() };
        let delete = FromClient::DeleteAccount { key_hash: Secret::new([0; 32]) };
        let rates = Rates::default();
        // Whole cells of what bytes are counted in.
        let long = 60_032 - usize::try_from(ROW).unwrap();
        for (packet, burst, beyond_s) in [
            (FromClient::DeviceListRequest {}, rates.packets.amount, 0.05),
            (search, rates.costly.amount, 0.5),
            (delete, rates.guesses.amount, 6.0),
            (message(Kind::PasswordUpdate, 0), rates.guesses.amount, 6.0),
            (message(Kind::ChatMessage, long), rates.kept.amount / 60_032, 0.3),
        ] {
            let clock = Clock::following(0);
            let gate = Gate::new(rates, Vec::new(), clock);
            for _ in 0..burst {
                gate.hear(alice, &packet).await;
            }
            assert_eq!(clock.now().monotonic, Duration::ZERO, "{packet:?}");
            gate.hear(bob, &packet).await;
            assert_eq!(clock.now().monotonic, Duration::ZERO, "others are not held up");
            gate.hear(alice, &packet).await;
            let waited = clock.now().monotonic.as_secs_f64();
            assert!(waited > beyond_s * 0.9 && waited < beyond_s * 4.0 + 0.1, "{packet:?}: {waited}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn through_a_shared_address_mails_were_sent_without_end() {
        let clock = Clock::following(0);
        let shared = "127.0.0.1".parse().unwrap();
        let gate = Gate::new(Rates::default(), vec![shared], clock);
        let register = FromClient::CreateAccount { name: String::new(), key_hash: Secret::new([0; 32]) };
        for n in 0..120 {
            gate.pass(ConnId(n), shared, &register).await;
        }
        gate.pass(ConnId(200), shared, &login("a@example.com")).await;
        assert_eq!(clock.now().monotonic, Duration::ZERO);
        gate.pass(ConnId(201), shared, &register).await;
        assert!(clock.now().monotonic >= Duration::from_millis(400));
        assert!((0..5).all(|_| gate.may_wish(AccountId(1))) && !gate.may_wish(AccountId(1)));
        assert!(gate.may_wish(AccountId(2)));
    }
}
