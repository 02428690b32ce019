//! Heliostat beside programs that do a part of its job, and beside what the machine can do at best: interleaved rounds on one
//! machine, ratios with medians and spreads, as a table, as JSON and as a plot.
//!
//! ```text
//! benches/peers/run                    installs the peers (Debian) and runs everything
//! cargo bench --bench peers -- --only fanout --rounds 9
//! cargo bench --bench peers -- --curves size.json    draws what `heliostat bench size --json size.json` measured
//! ```
//!
//! | comparison | beside | what is compared |
//! |---|---|---|
//! | `fanout` | mosquitto over WebSocket, QoS 1, persistent sessions | reflects, and the server's CPU time for each |
//! | `disk` | a file that is appended to and synced in batches | durable appends of the store alone |
//! | `relay` | HAProxy in TCP mode | frames through the proxy, and the CPU time for each |
//! | `handshake` | a bare tokio-rustls accept loop | TLS handshakes, here with WebSocket and proof of the key on top |
//! | `socket` | a bare tokio-tungstenite echo | messages with an answer on a plain WebSocket |
//!
//! Load and server share the machine, so a rate says how much CPU both need; the CPU time is the server's alone, as the kernel
//! counts it. Every server runs as a process of its own. All begin before the first round, and in each round they are measured one
//! after the other, so that what else happens on the machine meets all of them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "a bench may panic and has no callers"
)]

mod curves;
mod disk;
mod fanout;
mod handshake;
mod mqtt;
mod process;
mod relay;
mod report;
mod socket;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use report::Comparison;

#[derive(Debug, Parser)]
struct Args {
    /// Only these comparisons
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Which>,
    /// How often each program is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long each measurement lasts, after a fifth of that to warm up
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    seconds: Duration,
    /// Where `peers.json` and `peers.svg` are written
    #[arg(long, default_value = "target/peers", value_name = "DIR")]
    out: PathBuf,
    /// Measure nothing: draw `curves.svg` of what `heliostat bench size --json FILE` measured
    #[arg(long, value_name = "FILE")]
    curves: Option<PathBuf>,
    /// Be a peer: for the processes that this program starts.
    #[arg(long, hide = true)]
    serve: Option<Peer>,
    #[arg(long, hide = true)]
    dir: Option<PathBuf>,
    /// `cargo bench` says so.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    Fanout,
    Disk,
    Relay,
    Handshake,
    Socket,
}

/// What this program itself can be as a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Peer {
    /// Shakes hands by TLS and closes.
    Tls,
    /// Sends every WebSocket message back.
    Echo,
}

/// For how long, and how often.
#[derive(Debug, Clone, Copy)]
struct Plan {
    rounds: u32,
    lasts: Duration,
}

fn main() {
    let args = Args::parse();
    if let Some(measured) = &args.curves {
        return curves::draw(measured, &args.out);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match args.serve {
        Some(Peer::Tls) => return runtime.block_on(handshake::serve(&args.dir.unwrap())),
        Some(Peer::Echo) => return runtime.block_on(socket::serve()),
        None => {}
    }
    let plan = Plan { rounds: args.rounds, lasts: args.seconds };
    let comparisons: Vec<Comparison> = runtime.block_on(async {
        let mut all = Vec::new();
        for which in Which::value_variants().iter().filter(|which| args.only.is_empty() || args.only.contains(which)) {
            let comparison = match which {
                Which::Fanout => fanout::compare(plan).await,
                Which::Disk => disk::compare(plan).await,
                Which::Relay => relay::compare(plan).await,
                Which::Handshake => handshake::compare(plan).await,
                Which::Socket => socket::compare(plan).await,
            };
            println!("{}", comparison.table());
            all.push(comparison);
        }
        all
    });
    report::write(&args.out, plan, &comparisons);
}
