//! The challenge of a login, and its two answers (spec 5.4).
//!
//! The older answer multiplies the challenge with the identity key and gives the product away: whoever chooses the challenge may so
//! have anything agreed on that the key agrees on, the personal key first of all (spec 5.8, W1). The newer answer is a
//! signature over a text that nothing else signs. The server takes both and knows them by their lengths.

use std::fmt;

use crate::crypto::{Secret, equal};

use super::{PublicKey, SecretKey};

/// What a signed answer begins with, so that it is no signature of anything else.
const PREFIX: &[u8] = b"dm-login-v1\0";

/// What was asked of somebody who says to be a user.
#[derive(Clone)]
pub struct Challenge {
    secret: SecretKey,
    /// The challenge as it is sent: a random point.
    pub point: [u8; 32],
}

impl Challenge {
    /// The challenge that follows from a random seed.
    #[must_use]
    pub fn new(seed: &Secret<32>) -> Self {
        let secret = SecretKey::new(seed);
        Self { point: *secret.public().as_bytes(), secret }
    }

    /// Whether the owner of `key`, known as `username`, answered: by the product (32 bytes) or by a signature (64).
    #[must_use]
    pub fn answered_by(&self, key: &PublicKey, username: &str, response: &[u8]) -> bool {
        match <&[u8; 64]>::try_from(response) {
            Ok(signature) => key.verifies(&login_message(username, &self.point), signature),
            Err(_) => equal(self.secret.multiply(key).expose(), response),
        }
    }
}

impl fmt::Debug for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Challenge(32 bytes)")
    }
}

/// What a signed answer signs: the prefix, the name, a zero, the challenge.
#[must_use]
pub fn login_message(username: &str, point: &[u8; 32]) -> Vec<u8> {
    [PREFIX, username.as_bytes(), b"\0", point].concat()
}

impl SecretKey {
    /// The signed answer to a challenge.
    #[must_use]
    pub fn answer(&self, username: &str, point: &[u8; 32]) -> [u8; 64] {
        self.sign(&login_message(username, point))
    }

    /// The older answer: **tells a server that wants to know it everything that this key can agree on** (spec 5.8, W1).
    #[must_use]
    pub fn answer_by_product(&self, point: &PublicKey) -> Secret<32> {
        self.multiply(point)
    }
}
