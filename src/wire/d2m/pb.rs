//! The generated protobuf types. They do not leave this folder.
//!
//! Some messages of the protocol have the same fields under the same numbers; one type serves both then, and the other
//! stays in the `.proto` for its reader.
#![allow(
    missing_docs,
    dead_code,
    clippy::all,
    clippy::use_self,
    clippy::or_fun_call,
    unreachable_pub,
    reason = "generated"
)]

include!(concat!(env!("OUT_DIR"), "/d2m.rs"));
