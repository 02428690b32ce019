//! Keys, signatures, agreement, fingerprints (spec 5.1, 5.3).

use std::fmt;

use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
use curve25519_dalek::montgomery::MontgomeryPoint;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha512};

use crate::crypto::{Secret, equal};

use super::seal::SealKey;

/// A point that may be used: in its one encoding, on the curve, and of prime order (spec 5.3).
///
/// The identity, points of small order and points with a part of small order are none: with them, what is agreed on would
/// be known to others, or would tell something about the secret it was multiplied with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// The key in its RFC 8032 form; nothing if these bytes are no key that may be used.
    #[must_use]
    pub fn decode(bytes: &[u8; 32]) -> Option<Self> {
        let point = CompressedEdwardsY(*bytes).decompress()?;
        let only_form = point.compress().as_bytes() == bytes;
        (only_form && !point.is_small_order() && point.is_torsion_free()).then(|| Self(VerifyingKey::from(point)))
    }

    /// The key in 64 digits; nothing if they are none, or no key that may be used.
    #[must_use]
    pub fn from_hex(digits: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).ok()?;
        Self::decode(&bytes)
    }

    /// The key in its RFC 8032 form.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// The key in 64 lowercase digits.
    #[must_use]
    pub fn to_hex(&self) -> String {
        hex::encode(self.as_bytes())
    }

    /// Whether this key signed the message. Strictly: what another implementation might or might not take is not taken.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.0.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
    }

    /// The point itself.
    pub(super) fn point(&self) -> EdwardsPoint {
        self.0.to_edwards()
    }

    /// Its form on Curve25519, `u = (1 + y) / (1 − y)`.
    pub(super) fn montgomery(&self) -> MontgomeryPoint {
        self.0.to_montgomery()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.to_hex())
    }
}

/// A seed of 32 bytes, and what follows from it: signs, agrees, opens what is under its personal key.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// The key of a seed: any 32 bytes are one.
    #[must_use]
    pub fn new(seed: &Secret<32>) -> Self {
        Self(SigningKey::from_bytes(seed.expose()))
    }

    /// A fresh key of the operating system's randomness.
    #[must_use]
    pub fn random() -> Self {
        Self::new(&Secret::random())
    }

    /// The seed: all there is to keep.
    #[must_use]
    pub fn seed(&self) -> Secret<32> {
        Secret::new(self.0.to_bytes())
    }

    /// Its public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// Signs a message (RFC 8032).
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }

    /// What this key and another agree on: X25519 over their forms on Curve25519.
    #[must_use]
    pub fn agree(&self, other: &PublicKey) -> Secret<32> {
        Secret::new(other.montgomery().mul_clamped(*self.half().expose()).to_bytes())
    }

    /// `encode(a · P)`: the agreement before it goes to Curve25519, which trees and the older login use.
    pub(super) fn multiply(&self, other: &PublicKey) -> Secret<32> {
        Secret::new(other.point().mul_clamped(*self.half().expose()).compress().to_bytes())
    }

    /// The key that only its owner computes: what the key agrees on with itself (spec 5.2). Seals the owner's storage.
    ///
    /// A server that lets its owner answer the older login's challenge can compute it too (spec 5.8, W1).
    #[must_use]
    pub fn personal(&self) -> SealKey {
        SealKey::new(self.agree(&self.public()))
    }

    /// The first half of the seed's SHA-512: clamped where it is used.
    fn half(&self) -> Secret<32> {
        Secret::new(self.0.to_scalar_bytes())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(32 bytes)")
    }
}

impl PartialEq for SecretKey {
    fn eq(&self, other: &Self) -> bool {
        equal(self.0.as_bytes(), other.0.as_bytes())
    }
}

impl Eq for SecretKey {}

/// What two people compare to know that nobody sits between them: the first 30 hexadecimal digits of SHA-512 over both
/// keys, the smaller first, in groups of five (spec 5.8, W6). The same from either side.
#[must_use]
pub fn fingerprint(one: &PublicKey, other: &PublicKey) -> String {
    let (first, second) = if one.as_bytes() <= other.as_bytes() { (one, other) } else { (other, one) };
    let digits = hex::encode(Sha512::new().chain_update(first.as_bytes()).chain_update(second.as_bytes()).finalize());
    let mut out = String::with_capacity(FINGERPRINT_DIGITS + FINGERPRINT_DIGITS / 5);
    for (at, digit) in digits.chars().take(FINGERPRINT_DIGITS).enumerate() {
        if at > 0 && at % 5 == 0 {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// 120 bits.
const FINGERPRINT_DIGITS: usize = 30;
