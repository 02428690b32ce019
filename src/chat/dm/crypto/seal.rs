//! What is under a key: messages, reactions, a user's own storage (spec 5.1, 5.7).
//!
//! `nonce (12) ‖ AES-256-GCM ‖ tag (16)`, nothing beside it authenticated. So a server can deliver what was sealed elsewhere
//! under the same key again, under another id or as another kind of thing (spec 5.8, W4): [`nonce_of`] is how clients notice.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::crypto::{Secret, random};

/// How much longer a sealed text is, in bytes.
pub const OVERHEAD: usize = NONCE_LEN + 16;

/// The key of a direct message, or of a user's storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealKey(Secret<32>);

impl SealKey {
    /// Any 32 bytes are a key.
    #[must_use]
    pub const fn new(key: Secret<32>) -> Self {
        Self(key)
    }

    /// The key itself, to be kept.
    #[must_use]
    pub const fn secret(&self) -> &Secret<32> {
        &self.0
    }

    /// Seals under a random nonce.
    #[must_use]
    pub fn seal(&self, plain: &[u8]) -> Vec<u8> {
        self.seal_with(random::bytes(), plain)
    }

    /// Seals under a nonce that nothing else was sealed under.
    pub(super) fn seal_with(&self, nonce: [u8; NONCE_LEN], plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(plain.len() + OVERHEAD);
        out.extend_from_slice(&nonce);
        let mut body = plain.to_vec();
        #[expect(clippy::expect_used, reason = "fails beyond 64 GiB only")]
        self.cipher()
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut body)
            .expect("a text that fits memory fits the cipher");
        out.append(&mut body);
        out
    }

    /// Opens what was sealed; nothing if it was not, or not under this key.
    #[must_use]
    pub fn open(&self, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, body) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut body = Zeroizing::new(body.to_vec());
        let plain =
            self.cipher().open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::empty(), &mut body).ok()?.len();
        body.truncate(plain);
        Some(body)
    }

    fn cipher(&self) -> LessSafeKey {
        #[expect(clippy::expect_used, reason = "32 bytes are a key of this cipher")]
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, self.0.expose()).expect("the key has its length"))
    }
}

/// What a sealed thing was sealed under: nothing honest has the same twice.
#[must_use]
pub fn nonce_of(sealed: &[u8]) -> Option<[u8; NONCE_LEN]> {
    sealed.first_chunk().copied()
}
