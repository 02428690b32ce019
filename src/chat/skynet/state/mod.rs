//! What is decided, without asking anybody: who may say what, who hears it, who is there.
//!
//! The room is relational: a use case reads what it needs, decides here, writes, and speaks when all of it is kept. Which
//! rows there are is the business of `serve`; what follows from them is this folder's.
//!
//! | file | holds |
//! |---|---|
//! | [`mod@line`] | what a connection may say at which point |
//! | [`names`] | mail addresses |
//! | [`presence`] | who is connected, and what they are doing |
//! | [`rules`] | who may say what where, and who is in a group |
//! | [`transfer`] | tickets and ranges of files |
//! | [`wakes`] | who is to be woken |

pub mod line;
pub mod names;
pub mod presence;
pub mod rules;
pub mod transfer;
pub mod wakes;

/// A connection, never the same twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);
