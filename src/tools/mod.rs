//! Tools for people who build, run or judge a mediator. Each has its arguments and one `run`; what they print goes to
//! standard output, and their exit status says what they found.
//!
//! | file | holds |
//! |---|---|
//! | [`admin`] | operating a server that runs |
//! | [`chatos`] | a line client for ChatOs, also as one of many devices |
//! | [`cluster`] | certificates of nodes that share a database |
//! | [`mod@bench`] | how fast a running server is, and what it costs |
//! | [`conform`] | judges mediators and clients, clause by clause |
//! | [`decode`] | names every field of a frame, a URL, a close code, a capture |
//! | [`device`] | an interactive device |
//! | [`dm`] | a client for end-to-end encrypted direct messages, as a library and for lines |
//! | [`provoke`] | makes a server close a client with any code |
//! | [`simulate`] | many groups of devices, and a judgement of what reached whom |
//! | [`skynet`] | a client for Skynet v5, as a library and for lines |
//! | [`shard`] | which node of a cluster gets which groups, and load balancers that send them there |
//! | [`store`] | copies what is kept from one store to another |
//! | [`replay`] | drives the device side of a capture against any mediator |
//! | [`tox`] | a client for Tox groups: as a peer, and as a thin user |
//! | [`trace`] | a capture as a picture for Perfetto |
//! | [`describe`] | payloads as fields with names: what the others print |
//! | `captured` | captures, as those tools read them |
//! | `terminal` | where lines come from and go to |
//! | [`keyfile`] | the device group key in a file, and what is remembered beside it |

pub mod admin;
pub mod bench;
mod captured;
pub mod chatos;
pub mod cluster;
pub mod conform;
pub mod decode;
pub mod describe;
pub mod device;
pub mod dm;
pub mod identity;
pub mod keyfile;
pub mod provoke;
pub mod replay;
pub mod shard;
pub mod simulate;
pub mod skynet;
pub mod store;
mod terminal;
pub mod tox;
pub mod trace;

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use miette::{IntoDiagnostic as _, Report, Result, WrapErr as _, miette};

use crate::capture::{End, ToFile};
use crate::client::{ConnectError, Mediator, Trust};
use crate::time::Clock;

/// How a mediator proves to be the right one
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub struct TrustArgs {
    /// Trust certificates of the CA in this PEM file [default: the development CA in the data directory if there is one,
    /// else the system's roots]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Trust the one public key (SubjectPublicKeyInfo) with this SHA-256, in base64
    #[arg(long, value_name = "BASE64")]
    pin: Option<String>,
}

/// What strangers say, as one line: without control characters.
fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Whether what goes to standard output may be coloured.
fn colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty())
}

/// Records the first device group that connects to this mediator from here on.
fn begin_capture(path: &Path, mediator: &mut Mediator) -> Result<ToFile> {
    let capture = ToFile::begin(path, Clock::system()).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => miette!("there is a file {} already", path.display()),
        _ => miette!("the capture {} cannot be written: {error}", path.display()),
    })?;
    *mediator = mediator.clone().recorded(capture.recorder().clone());
    Ok(capture)
}

/// Ends a capture, if there is one, and complains when it is not whole.
async fn finish_capture(capture: Option<ToFile>) -> Result<()> {
    let Some(capture) = capture else { return Ok(()) };
    let (end, _frames) = capture.finish().await.into_diagnostic().wrap_err("the capture was not written whole")?;
    if end == End::Done { Ok(()) } else { Err(miette!("the capture is not whole: {}", end.meaning())) }
}

/// A connection that was not made, and what a person can do about it.
fn not_connected(error: &ConnectError, mediator: &Mediator) -> Report {
    let help = match error {
        ConnectError::Tcp(_) => "is a server running there? `heliostat serve` starts one on wss://localhost:8443",
        ConnectError::Tls(_) => {
            "trust the server's CA with --ca FILE or its key with --pin BASE64, both of which `heliostat serve` prints, or \
             name its data directory with --data DIR; a server without TLS is reached by ws://"
        }
        ConnectError::WebSocket(_) if !mediator.is_encrypted() => "a server with TLS is reached by wss://",
        ConnectError::Status(403) => "the server serves the groups of its configuration only: see [admission] there",
        ConnectError::Status(429 | 503) => "the server is full or about to stop: try again later",
        ConnectError::Status(_) | ConnectError::WebSocket(_) => "is that a mediator, and the path of its URL right?",
        ConnectError::NotAdmitted(_)
        | ConnectError::Version(_)
        | ConnectError::Unexpected(..)
        | ConnectError::LowOrder => return miette!("{error}"),
    };
    miette!(help = help, "{error}")
}

/// What the arguments say, and what is meant when they say nothing.
fn trust_of(args: &TrustArgs, data: &Path) -> Result<Trust> {
    if let Some(pin) = &args.pin {
        let digits = pin.strip_prefix("sha256/").or_else(|| pin.strip_prefix("sha256:")).unwrap_or(pin);
        let pin = BASE64_STANDARD.decode(digits).ok().and_then(|pin| pin.try_into().ok());
        return pin.map(Trust::Pin).ok_or_else(|| {
            miette!(help = "`heliostat serve` prints the right one", "the pin is not the base64 of 32 bytes")
        });
    }
    if let Some(ca) = &args.ca {
        return Ok(Trust::CaFile(ca.clone()));
    }
    // Made there by a development server.
    let development = data.join("tls").join("dev-ca.pem");
    Ok(if development.exists() { Trust::CaFile(development) } else { Trust::System })
}
