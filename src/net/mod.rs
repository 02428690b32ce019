//! Socket plumbing that knows nothing of devices.
//!
//! | file | holds |
//! |---|---|
//! | [`ahead`] | reading more than was asked for |
//! | [`https`] | requests of our own to other servers |
//! | [`inherited`] | listening sockets that whoever started the process opened |
//! | [`listen`] | the accept loop, and one type for plain and encrypted connections |
//! | [`rate`] | how often something may happen |
//! | [`tasks`] | who is still running, and how everybody is asked to stop |
//! | [`proxies`] | whose word is taken for where a connection comes from |
//! | [`tls`] | what the door presents: certificates, their pins, and how one takes the place of another |
//! | [`watch`] | a certificate in files, and what becomes of it |
//! | [`acme`] | a certificate by ACME |
//! | [`development`] | the certificate authority of a development box |

pub mod acme;
pub mod ahead;
pub mod development;
pub mod https;
pub mod inherited;
pub mod listen;
pub mod places;
pub mod proxies;
pub mod rate;
pub mod tasks;
pub mod tls;
pub mod watch;
