//! The AES-HMAC blob (spec 5.2), and the key schedule that gives its keys (5.1): what clients seal with. The server
//! never opens one.
//!
//! Layout: HMAC-SHA-256 over what follows, 16 bytes IV, AES-256-CBC with PKCS#7. Which account, channel or message a blob
//! belongs to is not authenticated: the envelope around it says so, and the server can change that.

use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{BlockDecryptMut as _, BlockEncryptMut as _, KeyIvInit as _};
use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::crypto::{Secret, random};

/// Length of what goes before the ciphertext, in bytes.
pub const OVERHEAD: usize = HMAC + IV;
/// Shortest blob there is, in bytes.
pub const BLOB_MIN: usize = OVERHEAD + BLOCK;
const HMAC: usize = 32;
const IV: usize = 16;
const BLOCK: usize = 16;

/// The blob does not open: too short, another key, or a changed byte. Which of them cannot be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the blob does not open")]
pub struct BadBlob;

/// How long the blob of so many bytes is.
#[must_use]
pub const fn sealed_len(plain: usize) -> usize {
    OVERHEAD + BLOCK * (plain / BLOCK + 1)
}

/// Two keys of a channel: the first half authenticates, the second encrypts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelKey(pub Secret<64>);

impl ChannelKey {
    /// A fresh one.
    #[must_use]
    pub fn random() -> Self {
        Self(Secret::random())
    }

    /// Seals under a fresh IV.
    #[must_use]
    pub fn seal(&self, plain: &[u8]) -> Vec<u8> {
        self.seal_with(random::bytes(), plain)
    }

    /// Seals under this IV, which must never have been used with this key.
    #[must_use]
    pub fn seal_with(&self, iv: [u8; IV], plain: &[u8]) -> Vec<u8> {
        let (mac_key, aes_key) = self.halves();
        let ciphertext =
            cbc::Encryptor::<aes::Aes256>::new((&*aes_key).into(), &iv.into()).encrypt_padded_vec_mut::<Pkcs7>(plain);
        let mut mac = mac(&mac_key);
        mac.update(&iv);
        mac.update(&ciphertext);
        let mut blob = Vec::with_capacity(sealed_len(plain.len()));
        blob.extend_from_slice(&mac.finalize().into_bytes());
        blob.extend_from_slice(&iv);
        blob.extend_from_slice(&ciphertext);
        blob
    }

    /// Opens a blob: authenticates first, and decrypts only what is authentic.
    ///
    /// # Errors
    /// [`BadBlob`] when it is not what this key sealed.
    pub fn open(&self, blob: &[u8]) -> Result<Zeroizing<Vec<u8>>, BadBlob> {
        let (tag, sealed) = blob.split_first_chunk::<HMAC>().ok_or(BadBlob)?;
        let (iv, ciphertext) = sealed.split_first_chunk::<IV>().ok_or(BadBlob)?;
        if ciphertext.is_empty() {
            return Err(BadBlob);
        }
        let (mac_key, aes_key) = self.halves();
        let mut mac = mac(&mac_key);
        mac.update(sealed);
        mac.verify(tag.into()).map_err(|_| BadBlob)?;
        let plain = cbc::Decryptor::<aes::Aes256>::new((&*aes_key).into(), iv.into())
            .decrypt_padded_vec_mut::<Pkcs7>(ciphertext)
            .map_err(|_| BadBlob)?;
        Ok(Zeroizing::new(plain))
    }

    fn halves(&self) -> (Zeroizing<[u8; 32]>, Zeroizing<[u8; 32]>) {
        let (mut mac, mut aes) = (Zeroizing::new([0; 32]), Zeroizing::new([0; 32]));
        let (first, second) = self.0.expose().split_at(32);
        mac.copy_from_slice(first);
        aes.copy_from_slice(second);
        (mac, aes)
    }
}

fn mac(key: &[u8; 32]) -> Hmac<Sha256> {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of every length")]
    <Hmac<Sha256> as hmac::Mac>::new_from_slice(key).expect("every key fits")
}

/// Rounds over the memory; 8 MiB of it; 96 bytes out.
const ARGON2_T: u32 = 2;
const ARGON2_M_KIB: u32 = 8_192;
const MATERIAL: usize = 96;
/// The number of lanes that the protocol's text demands. The Java client has 4: other keys, and nothing a server sees.
pub const LANES: u32 = 8;

/// What a password becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountKeys {
    /// Seals what is for the account's own devices. Never leaves the client.
    pub account_key: ChannelKey,
    /// What the server is told instead of the password.
    pub key_hash: Secret<32>,
}

impl AccountKeys {
    /// Derives the keys of an account, with [`LANES`]. Takes some milliseconds and 8 MiB.
    ///
    /// The name is part of it letter by letter, and servers turn names into lower case: do that first.
    #[must_use]
    pub fn derive(account_name: &str, password: &str) -> Self {
        Self::derive_with_lanes(account_name, password, LANES)
    }

    /// The same with another number of lanes, from 1 to 255; for the keys that the Java client would derive.
    #[must_use]
    pub fn derive_with_lanes(account_name: &str, password: &str, lanes: u32) -> Self {
        let salt = Sha256::digest(account_name.as_bytes());
        let mut material = Zeroizing::new([0; MATERIAL]);
        #[expect(clippy::expect_used, reason = "the numbers are constants within Argon2's bounds")]
        let params = argon2::Params::new(ARGON2_M_KIB, ARGON2_T, lanes.clamp(1, 255), Some(MATERIAL))
            .expect("valid parameters of Argon2");
        let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        #[expect(clippy::expect_used, reason = "a password of more than 4 GiB does not fit here otherwise")]
        argon2.hash_password_into(password.as_bytes(), &salt, &mut *material).expect("lengths within Argon2's bounds");
        let (mut account_key, mut key_hash) = (Zeroizing::new([0; 64]), Zeroizing::new([0; 32]));
        let (first, second) = material.split_at(64);
        account_key.copy_from_slice(first);
        key_hash.copy_from_slice(second);
        Self { account_key: ChannelKey(Secret::new(*account_key)), key_hash: Secret::new(*key_hash) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> ChannelKey {
        ChannelKey(Secret::new(std::array::from_fn(|at| u8::try_from(at).unwrap())))
    }

    fn iv() -> [u8; 16] {
        std::array::from_fn(|at| 0xa0 + u8::try_from(at).unwrap())
    }

    #[test]
    fn blobs_are_those_of_the_vectors() {
        let a1 = "72be6930ea6674099731d20e8c991b668f5b63ae139d73b69bdf044e9e29ab9ea0a1a2a3a4a5a6a7a8a9aaabacadaeaf\
                  77599921f7393a061a36890daf86aac3";
        let a2 = "ab4389a9faed48866cf41965a6d17f9fe3a88ce36ee81a4234b8652187304b0ba0a1a2a3a4a5a6a7a8a9aaabacadaeaf\
                  816c86c0657c761ac502272e3127d1b3";
        for (plain, blob) in [(&b""[..], a1), (b"Hello World!", a2)] {
            assert_eq!(hex::encode(key().seal_with(iv(), plain)), blob);
            assert_eq!(&key().open(&hex::decode(blob).unwrap()).unwrap()[..], plain);
        }
    }

    #[test]
    fn lengths_are_those_of_the_table() {
        for (plain, sealed) in [(0, 64), (15, 64), (16, 80), (31, 80), (32, 96), (64, 128), (100, 160), (128, 192)] {
            assert_eq!(sealed_len(plain), sealed);
            assert_eq!(key().seal(&vec![7; plain]).len(), sealed);
        }
    }

    #[test]
    fn a_changed_byte_anywhere_and_every_shorter_blob_is_refused() {
        let blob = key().seal(b"sixteen bytes...and more");
        for at in 0..blob.len() {
            let mut changed = blob.clone();
            changed[at] ^= 1;
            assert_eq!(key().open(&changed), Err(BadBlob), "byte {at}");
            assert_eq!(key().open(&blob[..at]), Err(BadBlob), "length {at}");
        }
        assert_eq!(ChannelKey::random().open(&blob), Err(BadBlob));
        // Authentic, and yet no whole block: what only the owner of the key can make.
        let mut mac = mac(&key().halves().0);
        mac.update(&[0; 17]);
        let odd = [&mac.finalize().into_bytes()[..], &[0; 17]].concat();
        assert_eq!(key().open(&odd), Err(BadBlob));
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens(plain in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(&key().open(&key().seal(&plain)).unwrap()[..], &plain[..]);
        }
    }

    #[test]
    fn keys_are_those_of_the_vectors() {
        let cases = [
            ("alice@example.com", "password", 8, "cd84465675cc476dc2f30108d92ac0418674ed4c36c0225b226892f231a250a5"),
            ("alice@example.com", "password", 4, "18b37e24ee207f0d7905652876af7924d4fc67ed09363656cbcb3aae5a03972d"),
            (
                "bob@example.com",
                "correct horse battery staple",
                8,
                "ce5848375c248145ea2a75e4dc6f5a41605e07b765191fa652215685775fa89f",
            ),
            ("alice@example.com", "pässwörd", 8, "490edb57d13601c5d19d328a4cbc3224639c74125998b2866ff044be2b0c4d08"),
            ("Alice@Example.com", "password", 8, "ffb260fb50e0887dffe92c019c6da59e51e5ce41e3f22dbed277af4cb1bf0711"),
        ];
        for (name, password, lanes, key_hash) in cases {
            let keys = AccountKeys::derive_with_lanes(name, password, lanes);
            assert_eq!(hex::encode(keys.key_hash.expose()), key_hash, "{name}");
        }
        let keys = AccountKeys::derive("alice@example.com", "password");
        let (mac, aes) = keys.account_key.halves();
        assert_eq!(hex::encode(*mac), "05e790fc7630a3f24138fbd9168e482372c0a8332e9edf6c8b9a75c5e7ad4612");
        assert_eq!(hex::encode(*aes), "1e4ea1aa141014aad47824d44d8a68ade9d0f793a35729f2a938bbbf48c44aad");
        let stored = Sha256::digest(keys.key_hash.expose());
        assert_eq!(hex::encode(stored), "6d80de45c40339faf3512a08309620900242407d1833713f5f8700c536409a5e");
    }
}
