//! Keys and boxes: raw arrays in, raw arrays out.
//!
//! The crates underneath belong to a generation that is no longer developed; nothing outside this folder names them, so
//! that they can be exchanged in one place. Every function here is held by known-answer tests (`tests/vectors/`).
//!
//! | file | holds |
//! |---|---|
//! | [`boxes`] | X25519 agreement, XSalsa20-Poly1305 boxes in NaCl layout |
//! | [`kdf`] | keyed BLAKE2b, the keys of a device group, the CSP vouch |
//! | [`random`] | the one source of secret randomness |
//! | [`sign`] | Ed25519, verified strictly |

pub mod boxes;
pub mod kdf;
pub mod random;
pub mod sign;

use std::fmt;

use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A secret of `N` bytes: wiped when dropped, compared in constant time, printed as its length.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret<const N: usize>([u8; N]);

impl<const N: usize> Secret<N> {
    /// Takes ownership of key material.
    #[must_use]
    pub const fn new(bytes: [u8; N]) -> Self {
        Self(bytes)
    }

    /// A fresh random secret.
    #[must_use]
    pub fn random() -> Self {
        Self(random::bytes())
    }

    /// The key material itself. Whoever calls this answers for where it goes.
    #[must_use]
    pub const fn expose(&self) -> &[u8; N] {
        &self.0
    }
}

impl<const N: usize> fmt::Debug for Secret<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({N} bytes)")
    }
}

impl<const N: usize> PartialEq for Secret<N> {
    fn eq(&self, other: &Self) -> bool {
        equal(&self.0, &other.0)
    }
}

impl<const N: usize> Eq for Secret<N> {}

/// Compares in time that depends on the lengths only.
#[must_use]
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_prints_its_length_and_nothing_else() {
        let secret = Secret::new([0xab; 32]);
        assert_eq!(format!("{secret:?}"), "Secret(32 bytes)");
    }

    #[test]
    fn equality_needs_every_byte_and_the_length() {
        assert!(equal(b"abc", b"abc"));
        assert!(!equal(b"abc", b"abd"));
        assert!(!equal(b"abc", b"ab"));
    }
}
