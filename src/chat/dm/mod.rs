//! End-to-end encrypted direct messages over Socket.IO: accounts, friends, direct messages of two and of groups.
//!
//! What is said is sealed on the device that says it. Whoever serves it sees names, times and lengths, checks signatures
//! and keys, and keeps the rest as it comes.
//!
//! | file | holds |
//! |---|---|
//! | [`crypto`] | keys, agreement, trees, seals: what server and clients compute |

pub mod crypto;
