//! Socket plumbing that knows no protocol.
//!
//! | file | holds |
//! |---|---|
//! | [`inherited`] | listening sockets that whoever started the process opened |
//! | [`listen`] | the accept loop, and one type for plain and encrypted connections |
//! | [`rate`] | how often something may happen |
//! | [`tasks`] | who is still running, and how everybody is asked to stop |
//! | [`tls`] | server certificates from files, and their pins |
//! | [`development`] | the certificate authority of a development box |

pub mod development;
pub mod inherited;
pub mod listen;
pub mod rate;
pub mod tasks;
pub mod tls;
