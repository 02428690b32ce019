//! Socket plumbing that knows no protocol.
//!
//! | file | holds |
//! |---|---|
//! | [`listen`] | the accept loop, and one type for plain and encrypted connections |
//! | [`tasks`] | who is still running, and how everybody is asked to stop |
//! | [`tls`] | server certificates from files, and their pins |
//! | [`development`] | the certificate authority of a development box |

pub mod development;
pub mod listen;
pub mod tasks;
pub mod tls;
