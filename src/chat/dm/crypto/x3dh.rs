//! What a creator and somebody who is offline agree on (spec 5.5).
//!
//! X3DH without one-time prekeys; the fourth agreement is that of the two identity keys, and prekeys are signed with plain
//! Ed25519.

use ring::hkdf::{HKDF_SHA512, Salt};
use zeroize::{Zeroize as _, Zeroizing};

use crate::crypto::Secret;

use super::{PublicKey, SecretKey};

/// Who may be invited: what a user publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bundle {
    /// The identity key.
    pub identity: PublicKey,
    /// The signed prekey.
    pub prekey: PublicKey,
    /// The identity key's signature over the prekey's 32 bytes.
    pub signature: [u8; 64],
}

impl Bundle {
    /// Whether the prekey is the owner's.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        self.identity.verifies(self.prekey.as_bytes(), &self.signature)
    }
}

/// What the creator computes, with a key made for this one invitee. The caller has checked [`Bundle::is_signed`].
#[must_use]
pub fn send(own: &SecretKey, ephemeral: &SecretKey, to: &Bundle) -> Secret<32> {
    derive([own.agree(&to.prekey), ephemeral.agree(&to.identity), ephemeral.agree(&to.prekey), own.agree(&to.identity)])
}

/// What the invitee computes.
#[must_use]
pub fn receive(own: &SecretKey, prekey: &SecretKey, from: &PublicKey, ephemeral: &PublicKey) -> Secret<32> {
    derive([prekey.agree(from), own.agree(ephemeral), prekey.agree(ephemeral), own.agree(from)])
}

/// HKDF-SHA-512 over 32 times 0xFF and the four agreements, without salt.
fn derive(agreements: [Secret<32>; 4]) -> Secret<32> {
    let mut material = Zeroizing::new([0xff; 32 * 5]);
    for (place, agreement) in material.chunks_exact_mut(32).skip(1).zip(&agreements) {
        place.copy_from_slice(agreement.expose());
    }
    let mut out = [0; 32];
    #[expect(clippy::expect_used, reason = "fails beyond 255 times the hash's length only")]
    Salt::new(HKDF_SHA512, &[0; 64])
        .extract(&material[..])
        .expand(&[b"Unmanageable"], Length)
        .and_then(|key| key.fill(&mut out))
        .expect("32 bytes are few enough");
    let secret = Secret::new(out);
    out.zeroize();
    secret
}

/// 32 bytes, as ring asks for them.
struct Length;

impl ring::hkdf::KeyType for Length {
    fn len(&self) -> usize {
        32
    }
}
