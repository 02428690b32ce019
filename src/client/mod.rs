//! The device side as a library: what tests, tools and other people's harnesses use.

pub mod csp;
