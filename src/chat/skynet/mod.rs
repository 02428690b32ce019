//! The Skynet v5 chat server: accounts with several devices each, channels, and everything kept until it is fetched.
//!
//! | file | holds |
//! |---|---|
//! | [`wire`] | bytes to packets, for the server and for clients |

pub mod wire;
