//! Ed25519 signatures, verified strictly: a canonical scalar, no point of small order. What passes here passes everywhere,
//! and nobody can make a second signature out of one he saw.

use std::fmt;

use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};

use super::Secret;

/// Length of a signature, in bytes.
pub const SIGNATURE: usize = 64;

/// The public half of a pair.
pub type Public = [u8; 32];
/// A signature.
pub type Signature = [u8; SIGNATURE];

/// A signature that does not hold: another key, another message, or not canonical.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("signature does not hold")]
pub struct BadSignature;

/// A pair that signs. Wiped when dropped, printed without its secret half.
#[derive(Clone)]
pub struct Pair(SigningKey);

impl Pair {
    /// The pair that grows from a seed.
    #[must_use]
    pub fn new(seed: &Secret<32>) -> Self {
        Self(SigningKey::from_bytes(seed.expose()))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> Public {
        self.0.verifying_key().to_bytes()
    }

    /// The seed it grew from, to be kept.
    #[must_use]
    pub fn seed(&self) -> Secret<32> {
        Secret::new(self.0.to_bytes())
    }

    /// Signs.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Signature {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pair({})", hex::encode(self.public()))
    }
}

/// Verifies strictly.
///
/// # Errors
/// [`BadSignature`] whatever the reason is.
pub fn verify(public: &Public, message: &[u8], signature: &Signature) -> Result<(), BadSignature> {
    let key = VerifyingKey::from_bytes(public).map_err(|_| BadSignature)?;
    key.verify_strict(message, &ed25519_dalek::Signature::from_bytes(signature)).map_err(|_| BadSignature)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_8032_test_2() {
        let seed: [u8; 32] = hex::decode("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
            .unwrap()
            .try_into()
            .unwrap();
        let pair = Pair::new(&Secret::new(seed));
        assert_eq!(hex::encode(pair.public()), "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c");
        let signature = pair.sign(&[0x72]);
        assert_eq!(
            hex::encode(signature),
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c\
             387b2eaeb4302aeeb00d291612bb0c00"
        );
        assert_eq!(verify(&pair.public(), &[0x72], &signature), Ok(()));
        assert_eq!(verify(&pair.public(), &[0x73], &signature), Err(BadSignature));
    }

    #[test]
    fn what_is_not_canonical_or_of_small_order_does_not_hold() {
        let pair = Pair::new(&Secret::new([7; 32]));
        let mut signature = pair.sign(b"x");
        // S + L is the same scalar, written in another way.
        let order = hex::decode("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010").unwrap();
        let mut carry = 0;
        for (byte, add) in signature[32..].iter_mut().zip(order) {
            let sum = u16::from(*byte) + u16::from(add) + carry;
            (*byte, carry) = (sum.to_le_bytes()[0], sum >> 8);
        }
        assert_eq!(verify(&pair.public(), b"x", &signature), Err(BadSignature));
        // With the neutral point as key and as R, and a zero S, the equation holds for every message.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let mut forged = [0; 64];
        forged[0] = 1;
        assert_eq!(verify(&neutral, b"anything", &forged), Err(BadSignature));
        assert!(!format!("{pair:?}").contains(&hex::encode([7; 32])));
    }
}
