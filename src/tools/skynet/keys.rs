//! Pairs of keys, what two of them agree on, and the key of a file (spec 5.3, 4.15).
//!
//! Where the protocol leaves the encoding open, it is this: P-256, private keys as PKCS#8 and public ones as
//! `SubjectPublicKeyInfo`, both DER, which the known client writes too. A direct channel's key is SHA-512 over the shared point's first
//! coordinate, the first half for authentication, as in every key of this protocol. A file is 12 bytes of nonce, then
//! AES-256-GCM's output.

use bytes::Bytes;
use p256::pkcs8::{DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _, EncodePublicKey as _};
use p256::{PublicKey, SecretKey, ecdh};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::{Digest as _, Sha256, Sha512};
use zeroize::Zeroizing;

use crate::chat::skynet::wire::Keys;
use crate::chat::skynet::wire::blob::ChannelKey;
use crate::chat::skynet::wire::content::KeyFormat;
use crate::crypto::{Secret, random};

/// A key that is none, or a file that is not what its key sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a key, or not what it sealed")]
pub struct BadKey;

/// A fresh pair of each sort, private.
///
/// # Errors
/// [`BadKey`] when they cannot be encoded, which does not happen.
pub fn fresh() -> Result<Keys, BadKey> {
    let pair = || {
        let secret = loop {
            // All but about one in 2^32 numbers of this length are keys.
            if let Ok(secret) = SecretKey::from_slice(&Zeroizing::new(random::bytes::<32>())[..]) {
                break secret;
            }
        };
        secret.to_pkcs8_der().map(|der| Bytes::copy_from_slice(der.as_bytes())).map_err(|_| BadKey)
    };
    Ok(keys(pair()?, pair()?))
}

fn keys(signature: Bytes, derivation: Bytes) -> Keys {
    let format = KeyFormat::BOUNCY_CASTLE;
    Keys { signature_format: format, signature, derivation_format: format, derivation }
}

/// The public halves.
///
/// # Errors
/// [`BadKey`] when these are no private keys.
pub fn public(private: &Keys) -> Result<Keys, BadKey> {
    let half = |der: &[u8]| {
        let secret = SecretKey::from_pkcs8_der(der).map_err(|_| BadKey)?;
        secret.public_key().to_public_key_der().map(|der| Bytes::copy_from_slice(der.as_bytes())).map_err(|_| BadKey)
    };
    Ok(keys(half(&private.signature)?, half(&private.derivation)?))
}

/// The key of a direct channel, the same from either side.
///
/// # Errors
/// [`BadKey`] when one of them is not a key.
pub fn agree(own: &Keys, other: &Keys) -> Result<ChannelKey, BadKey> {
    let secret = SecretKey::from_pkcs8_der(&own.derivation).map_err(|_| BadKey)?;
    let public = PublicKey::from_public_key_der(&other.derivation).map_err(|_| BadKey)?;
    let shared = ecdh::diffie_hellman(secret.to_nonzero_scalar(), public.as_affine());
    Ok(ChannelKey(Secret::new(Sha512::digest(shared.raw_secret_bytes()).into())))
}

/// What two people compare to know that nobody sits between them: over the content of a message with public keys.
#[must_use]
pub fn fingerprint(public_keys: &[u8]) -> [u8; 32] {
    Sha256::digest(public_keys).into()
}

/// How much longer a sealed file is, in bytes.
pub const FILE_OVERHEAD: usize = NONCE_LEN + 16;

/// Seals a file with a key that is for it alone.
///
/// # Errors
/// [`BadKey`] when it is longer than the algorithm bears (64 GiB).
pub fn seal_file(key: &Secret<32>, plain: &[u8]) -> Result<Vec<u8>, BadKey> {
    let nonce = random::bytes::<NONCE_LEN>();
    let mut sealed = Vec::with_capacity(plain.len() + FILE_OVERHEAD);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(plain);
    let (_, in_place) = sealed.split_at_mut(NONCE_LEN);
    let nonce = Nonce::assume_unique_for_key(nonce);
    let tag = cipher(key)?.seal_in_place_separate_tag(nonce, Aad::empty(), in_place).map_err(|_| BadKey)?;
    sealed.extend_from_slice(tag.as_ref());
    Ok(sealed)
}

/// Opens what [`seal_file`] sealed, where it is.
///
/// # Errors
/// [`BadKey`] when it is something else.
pub fn open_file(key: &Secret<32>, mut sealed: Vec<u8>) -> Result<Vec<u8>, BadKey> {
    let nonce = Nonce::assume_unique_for_key(*sealed.first_chunk::<NONCE_LEN>().ok_or(BadKey)?);
    let len = cipher(key)?.open_within(nonce, Aad::empty(), &mut sealed, NONCE_LEN..).map_err(|_| BadKey)?.len();
    sealed.truncate(len);
    Ok(sealed)
}

fn cipher(key: &Secret<32>) -> Result<LessSafeKey, BadKey> {
    UnboundKey::new(&AES_256_GCM, key.expose()).map(LessSafeKey::new).map_err(|_| BadKey)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_agree_and_a_third_does_not() {
        let (alice, bob, eve) = (fresh().unwrap(), fresh().unwrap(), fresh().unwrap());
        let [a, b, e] = [&alice, &bob, &eve].map(|it| public(it).unwrap());
        let key = agree(&alice, &b).unwrap();
        assert_eq!(agree(&bob, &a).unwrap(), key);
        assert_ne!(agree(&alice, &e).unwrap(), key);
        assert_eq!(agree(&a, &b), Err(BadKey), "a public key agrees on nothing");
        assert!(agree(&alice, &keys(Bytes::new(), Bytes::new())).is_err());
        assert_ne!(fingerprint(&a.derivation), fingerprint(&b.derivation));
    }

    /// NIST's vector for ECDH on P-256 (CAVS 14.1, count 0): the point's coordinate is what is hashed.
    #[test]
    fn the_agreement_is_that_of_the_vector() {
        let secret = hex::decode("7d7dc5f71eb29ddaf80d6214632eeae03d9058af1fb6d22ed80badb62bc1a534").unwrap();
        let (x, y) = (
            "700c48f77f56584c5cc632ca65640db91b6bacce3a4df6b42ce7cc838833d287",
            "db71e509e3fd9b060ddb20ba5c51dcc5948d46fbf640dfe0441782cab85fa4ac",
        );
        let point = hex::decode(format!("04{x}{y}")).unwrap();
        let own = SecretKey::from_slice(&secret).unwrap().to_pkcs8_der().unwrap();
        let other = PublicKey::from_sec1_bytes(&point).unwrap().to_public_key_der().unwrap();
        let pair = |der: &[u8]| keys(Bytes::new(), Bytes::copy_from_slice(der));
        let shared = hex::decode("46fc62106420ff012e54a434fbdd2d25ccc5852060561e68040dd7778997bd7b").unwrap();
        let expected: [u8; 64] = Sha512::digest(shared).into();
        let key = agree(&pair(own.as_bytes()), &pair(other.as_bytes())).unwrap();
        assert_eq!(key.0.expose(), &expected);
        // The known client writes SubjectPublicKeyInfo with the curve's name and an uncompressed point: 91 bytes.
        assert_eq!((other.as_bytes().len(), &other.as_bytes()[26..]), (91, &point[..]));
    }

    #[test]
    fn a_file_opens_with_its_key_and_only_whole() {
        let key = Secret::random();
        let sealed = seal_file(&key, b"a file").unwrap();
        assert_eq!(sealed.len(), 6 + FILE_OVERHEAD);
        assert_eq!(open_file(&key, sealed.clone()).unwrap(), b"a file");
        assert_eq!(open_file(&Secret::random(), sealed.clone()), Err(BadKey));
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(open_file(&key, changed), Err(BadKey), "byte {at}");
            assert_eq!(open_file(&key, sealed[..at].to_vec()), Err(BadKey), "length {at}");
        }
    }
}
