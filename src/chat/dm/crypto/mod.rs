//! What server and clients of direct messages compute (spec 5).
//!
//! Everything is one sort of key: an Ed25519 seed of 32 bytes. It signs; it agrees, through its form on Curve25519; and it
//! is a leaf of a group's tree. A server needs [`PublicKey`], [`Challenge`] and [`setup_message`] only.
//!
//! The protocol is older than this room and cannot be changed by it; what its weaknesses are, and what is added against
//! two of them (signed logins, signed setups), is in `docs/dm.md`. No function here reads dice: whoever calls it throws them.
//!
//! | file | holds |
//! |---|---|
//! | [`keys`] | keys, signatures, agreement, fingerprints |
//! | [`login`] | the challenge of a login, and its two answers |
//! | [`x3dh`] | what a creator and somebody who is offline agree on |
//! | [`tree`] | a group's key: making it, and receiving it |
//! | [`seal`] | what is under a key: messages, reactions, a user's own storage |
//! | [`storage`] | what a user's devices share |
//! | [`words`] | a key as words that a person can write down |

pub mod keys;
pub mod login;
pub mod seal;
pub mod storage;
pub mod tree;
pub mod words;
pub mod x3dh;

pub use keys::{PublicKey, SecretKey, fingerprint};
pub use login::{Challenge, login_message};
pub use seal::SealKey;
pub use storage::Storage;
pub use tree::{Setup, setup_message};

#[cfg(test)]
mod tests;
