//! X25519 agreement and XSalsa20-Poly1305 boxes.
//!
//! Layout of every box is NaCl's: 16 bytes Poly1305 tag, then the ciphertext.

use blake2::digest::generic_array::GenericArray;
use crypto_secretbox::aead::AeadInPlace as _;
use crypto_secretbox::{KeyInit as _, XSalsa20Poly1305};
use salsa20::cipher::consts::U10;
use x25519_dalek::{PublicKey, StaticSecret};

use super::Secret;

/// Length of a nonce, in bytes.
pub const NONCE: usize = 24;
/// Length of the Poly1305 tag that precedes every ciphertext, in bytes.
pub const TAG: usize = 16;

/// A nonce of 24 bytes.
pub type Nonce = [u8; NONCE];
/// The public half of an X25519 pair.
pub type Public = [u8; 32];

/// A box that did not open: wrong key, wrong nonce, or a changed byte. Which of them cannot be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("box does not open")]
pub struct BadBox;

/// A public key with which every secret would agree on zero: a point of low order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("public key is of low order")]
pub struct LowOrder;

/// The public half of an X25519 secret. Clamping happens inside the multiplication, the secret is kept as given.
#[must_use]
pub fn public(secret: &Secret<32>) -> Public {
    PublicKey::from(&StaticSecret::from(*secret.expose())).to_bytes()
}

/// Raw X25519.
///
/// # Errors
/// [`LowOrder`] when the result would be zero whatever the secret is.
pub fn x25519(secret: &Secret<32>, public: &Public) -> Result<Secret<32>, LowOrder> {
    let shared = StaticSecret::from(*secret.expose()).diffie_hellman(&PublicKey::from(*public));
    if shared.was_contributory() { Ok(Secret::new(shared.to_bytes())) } else { Err(LowOrder) }
}

/// Every way to write a point of low order, of the curve or its twist, but for the highest bit, which X25519 ignores. Clamping
/// makes each secret a multiple of the cofactor and of no large prime order, so these and no others give zero, with every secret.
const LOW_ORDER: [Public; 7] = {
    // 2^255 - 19, the prime of the field, little-endian.
    let mut prime = [0xff; 32];
    prime[0] = 0xed;
    prime[31] = 0x7f;
    let (mut one, mut before, mut behind) = ([0; 32], prime, prime);
    one[0] = 1;
    before[0] -= 1;
    behind[0] += 1;
    [[0; 32], one, EIGHTH, OTHER_EIGHTH, before, prime, behind]
};
/// The points of order 8.
const EIGHTH: Public = [
    0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09, 0x8d,
    0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
];
const OTHER_EIGHTH: Public = [
    0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04, 0x44, 0x5c,
    0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
];

/// Whether a public key can agree on anything: false for the zero point and every other point of low order. Costs no
/// multiplication: strangers may ask.
#[must_use]
pub fn is_contributory(public: &Public) -> bool {
    let mut point = *public;
    if let Some(last) = point.last_mut() {
        *last &= 0x7f;
    }
    !LOW_ORDER.contains(&point)
}

/// The key two parties share: `HSalsa20(X25519(secret, public), 0)`, NaCl's `beforenm`.
///
/// # Errors
/// [`LowOrder`] as for [`x25519`].
pub fn beforenm(secret: &Secret<32>, public: &Public) -> Result<Secret<32>, LowOrder> {
    let shared = x25519(secret, public)?;
    let key = salsa20::hsalsa::<U10>(GenericArray::from_slice(shared.expose()), &GenericArray::default());
    Ok(Secret::new(key.into()))
}

/// Boxes `plain`: tag, then ciphertext, 16 bytes longer than `plain`.
#[must_use]
pub fn seal(key: &Secret<32>, nonce: &Nonce, plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(TAG + plain.len());
    out.extend_from_slice(&[0; TAG]);
    out.extend_from_slice(plain);
    let (head, body) = out.split_at_mut(TAG);
    let cipher = XSalsa20Poly1305::new(GenericArray::from_slice(key.expose()));
    #[expect(clippy::expect_used, reason = "fails beyond 256 GiB of plaintext, which no caller can hold")]
    let tag = cipher
        .encrypt_in_place_detached(GenericArray::from_slice(nonce), b"", body)
        .expect("plaintext fits the cipher");
    head.copy_from_slice(&tag);
    out
}

/// Opens a box made by [`seal`].
///
/// # Errors
/// [`BadBox`] when it is shorter than a tag or not authentic.
pub fn open(key: &Secret<32>, nonce: &Nonce, boxed: &[u8]) -> Result<Vec<u8>, BadBox> {
    let (tag, body) = boxed.split_at_checked(TAG).ok_or(BadBox)?;
    let mut plain = body.to_vec();
    XSalsa20Poly1305::new(GenericArray::from_slice(key.expose()))
        .decrypt_in_place_detached(GenericArray::from_slice(nonce), b"", &mut plain, GenericArray::from_slice(tag))
        .map_err(|_| BadBox)?;
    Ok(plain)
}

/// `nonce ‖ box` with a random nonce: how devices of a group encrypt for each other.
#[must_use]
pub fn seal_with_random_nonce(key: &Secret<32>, plain: &[u8]) -> Vec<u8> {
    let nonce = super::random::bytes();
    [&nonce[..], &seal(key, &nonce, plain)].concat()
}

/// Opens `nonce ‖ box`.
///
/// # Errors
/// [`BadBox`] as for [`open`].
pub fn open_with_leading_nonce(key: &Secret<32>, bytes: &[u8]) -> Result<Vec<u8>, BadBox> {
    let (nonce, boxed) = bytes.split_first_chunk::<NONCE>().ok_or(BadBox)?;
    open(key, nonce, boxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_order_points_are_refused() {
        let secret = Secret::random();
        let written = LOW_ORDER.into_iter().chain(LOW_ORDER.map(|mut point| {
            point[31] |= 0x80;
            point
        }));
        for point in written {
            assert_eq!(x25519(&secret, &point).unwrap_err(), LowOrder);
            assert!(beforenm(&secret, &point).is_err());
            assert!(!is_contributory(&point));
        }
        assert!(is_contributory(&public(&secret)));
    }

    /// The multiplication is the judge of the list: of its neighbours and of anything else.
    #[test]
    fn a_point_is_of_low_order_when_it_agrees_on_zero_and_only_then() {
        let secret = Secret::random();
        let neighbours = LOW_ORDER.into_iter().flat_map(|point| {
            [(0, 1), (0, 2), (0, 0x80), (15, 1), (31, 0x40)].map(|(at, bit)| {
                let mut point = point;
                point[at] ^= bit;
                point
            })
        });
        for point in neighbours.chain((0..50).map(|_| super::super::random::bytes())) {
            assert_eq!(is_contributory(&point), x25519(&secret, &point).is_ok(), "{point:02x?}");
        }
    }

    #[test]
    fn a_box_opens_only_whole_and_unchanged() {
        let key = Secret::random();
        let boxed = seal(&key, &[7; 24], b"hello");
        assert_eq!(boxed.len(), 5 + TAG);
        assert_eq!(open(&key, &[7; 24], &boxed).unwrap(), b"hello");
        assert_eq!(open(&key, &[8; 24], &boxed), Err(BadBox));
        for at in 0..boxed.len() {
            let mut changed = boxed.clone();
            changed[at] ^= 1;
            assert_eq!(open(&key, &[7; 24], &changed), Err(BadBox), "byte {at}");
            assert_eq!(open(&key, &[7; 24], &boxed[..at]), Err(BadBox), "cut at {at}");
        }
    }

    #[test]
    fn random_nonces_differ() {
        let key = Secret::random();
        let (a, b) = (seal_with_random_nonce(&key, b"x"), seal_with_random_nonce(&key, b"x"));
        assert_ne!(a[..24], b[..24]);
        assert_eq!(open_with_leading_nonce(&key, &a).unwrap(), b"x");
        assert_eq!(open_with_leading_nonce(&key, &a[..23]), Err(BadBox));
    }
}
