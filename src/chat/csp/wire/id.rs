//! Who and what: identities, message ids, device ids.

use std::fmt;
use std::str::FromStr;

use crate::log::{LogId, Who};

/// Eight bytes that stand where an identity belongs. Whether they are one, [`Self::valid`] tells.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WireIdentity(pub [u8; 8]);

impl WireIdentity {
    /// How it appears in today's log, be it an identity or not.
    #[must_use]
    pub fn log_id(&self) -> LogId {
        LogId::of(Who::Account(&self.0))
    }

    /// The identity, if the bytes are one: `[*0-9A-Z][0-9A-Z]{7}` (spec 2.3).
    #[must_use]
    pub fn valid(self) -> Option<Identity> {
        let fits = |c: &u8| c.is_ascii_uppercase() || c.is_ascii_digit();
        let [first, rest @ ..] = &self.0;
        ((*first == b'*' || fits(first)) && rest.iter().all(fits)).then_some(Identity(self.0))
    }
}

impl fmt::Debug for WireIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// The name of a chat account: eight letters or digits, the first of which may be an asterisk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity([u8; 8]);

impl Identity {
    /// As it travels.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 8] {
        &self.0
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Only ASCII passes `WireIdentity::valid`.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// How it appears in today's log.
    #[must_use]
    pub fn log_id(&self) -> LogId {
        LogId::of(Who::Account(&self.0))
    }

    /// A random identity without an asterisk.
    #[must_use]
    pub fn random() -> Self {
        const LETTERS: &[u8; 32] = b"ABCDEFGHJKLMNPRSTUVWXYZ023456789";
        let random = crate::crypto::random::bytes::<8>();
        Self(random.map(|byte| LETTERS.get(usize::from(byte) % LETTERS.len()).copied().unwrap_or(b'A')))
    }
}

/// The text is no identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an identity is 8 characters, A-Z and 0-9, of which the first may be *")]
pub struct BadIdentity;

impl FromStr for Identity {
    type Err = BadIdentity;

    fn from_str(text: &str) -> Result<Self, BadIdentity> {
        let bytes = <[u8; 8]>::try_from(text.as_bytes()).map_err(|_| BadIdentity)?;
        WireIdentity(bytes).valid().ok_or(BadIdentity)
    }
}

impl From<Identity> for WireIdentity {
    fn from(identity: Identity) -> Self {
        Self(identity.0)
    }
}

impl PartialEq<Identity> for WireIdentity {
    fn eq(&self, other: &Identity) -> bool {
        self.0 == other.0
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Chosen by the sender at random; names a message together with sender and receiver.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(pub u64);

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageId({:016x})", self.0)
    }
}

/// Names one device of an account towards the chat server. Only devices of a device group have one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CspDeviceId(pub u64);

impl fmt::Debug for CspDeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CspDeviceId({:016x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syntax_of_an_identity() {
        for good in ["ABCD1234", "*THREEMA", "00000000", "ZZZZZZZZ"] {
            assert_eq!(good.parse::<Identity>().unwrap().as_str(), good);
        }
        for bad in ["", "ABCD123", "ABCD12345", "abcd1234", "A*CD1234", "ABCD 234", "ÄBCD123"] {
            assert_eq!(bad.parse::<Identity>(), Err(BadIdentity), "{bad}");
        }
        let random = Identity::random();
        assert_eq!(random.as_str().parse(), Ok(random));
    }
}
