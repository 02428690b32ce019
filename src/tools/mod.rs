//! Tools for people who build, run or judge a mediator. Each has its arguments and one `run`; what they print goes to
//! standard output, and their exit status says what they found.
//!
//! | file | holds |
//! |---|---|
//! | [`decode`] | names every field of a frame, a URL, a close code |

//! | [`simulate`] | many groups of devices, and a judgement of what reached whom |
//! | [`describe`] | payloads as fields with names: what the others print |
//! | [`keyfile`] | the device group key in a file, and what is remembered beside it |

pub mod decode;
pub mod describe;
pub mod keyfile;
