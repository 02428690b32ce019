//! How many may be connected: in all, and from one address, unless many clients stand behind it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::listen::Bounds;

/// What one customer has: of IPv6 a whole network.
#[must_use]
pub fn network(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits() >> 64 << 64,
    }
}

/// See the top of this file. Clones are handles of the same ones.
#[derive(Debug, Clone)]
pub struct Places {
    all: Arc<Semaphore>,
    per_address_max: usize,
    exempt: Arc<[IpAddr]>,
    of: Arc<Mutex<HashMap<u128, usize>>>,
}

/// What a connection holds.
#[derive(Debug)]
pub enum Held {
    /// One of all.
    OfAll {
        /// Which.
        permit: OwnedSemaphorePermit,
    },
    /// One of its address.
    OfAddress {
        /// Which.
        network: u128,
        /// Among these.
        of: Arc<Mutex<HashMap<u128, usize>>>,
    },
    /// Of an address that is not counted.
    Exempt,
}

impl Places {
    /// So many, of which an address that is not in `exempt` may have `per_address_max`.
    #[must_use]
    pub fn new(max: usize, per_address_max: usize, exempt: &[IpAddr]) -> Self {
        Self { all: Arc::new(Semaphore::new(max)), per_address_max, exempt: exempt.into(), of: Arc::default() }
    }

    /// The same for fewer, of which nobody may have more than a quarter.
    #[must_use]
    pub fn among(&self, max: usize) -> Self {
        Self::new(max, self.per_address_max.min(max.div_ceil(4)), &self.exempt)
    }
}

impl Bounds for Places {
    type Place = Held;

    fn accepted(&self) -> Option<Held> {
        Some(Held::OfAll { permit: Arc::clone(&self.all).try_acquire_owned().ok()? })
    }

    fn comes_from(&self, address: IpAddr) -> Option<Held> {
        let address = address.to_canonical();
        if self.exempt.contains(&address) {
            return Some(Held::Exempt);
        }
        let network = network(address);
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let there = of.get(&network).copied().unwrap_or_default();
        if there >= self.per_address_max {
            return None;
        }
        of.insert(network, there + 1);
        Some(Held::OfAddress { network, of: Arc::clone(&self.of) })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Self::OfAddress { network, of } = self else { return };
        let mut of = of.lock().unwrap_or_else(PoisonError::into_inner);
        match of.get_mut(network) {
            Some(there) if *there > 1 => *there -= 1,
            _ => drop(of.remove(network)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_took_every_place() {
        let exempt = ["127.0.0.1".parse().unwrap()];
        let places = Places::new(5, 2, &exempt);
        let from = |address: &str| places.comes_from(address.parse().unwrap());
        let (first, second) = (from("2001:db8::1").unwrap(), from("2001:db8::2").unwrap());
        assert!(from("2001:db8::3").is_none(), "a customer has a whole network");
        let other = from("192.0.2.1").unwrap();
        assert!(from("::ffff:192.0.2.1").is_some() && from("192.0.2.1").is_some());
        drop(first);
        let third = from("2001:db8::3").unwrap();
        assert!(from("2001:db8::3").is_none());
        let mediators: Vec<_> = (0..9).map(|_| from("127.0.0.1").unwrap()).collect();
        drop((second, third, other, mediators));
        assert!(places.of.lock().unwrap().is_empty(), "nothing is left of those who went");
        let all: Vec<_> = std::iter::from_fn(|| places.accepted()).collect();
        let few = places.among(4);
        let visits: Vec<_> = std::iter::from_fn(|| few.comes_from("192.0.2.1".parse().unwrap())).collect();
        assert_eq!((all.len(), visits.len()), (5, 1), "a page is for more than one, too");
    }
}
