//! The one source of secret randomness: the operating system's.

/// `N` bytes from the operating system.
///
/// # Panics
/// When the operating system has no randomness to give. Nothing secret can be made then, so there is no answer to send.
#[must_use]
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    #[expect(clippy::expect_used, reason = "without randomness no key may be made; no peer can cause this")]
    getrandom::fill(&mut out).expect("the operating system gives randomness");
    out
}

/// A random number, for identifiers that must not be guessed.
#[must_use]
pub fn u64() -> u64 {
    u64::from_le_bytes(bytes())
}
