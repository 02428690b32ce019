//! Whether the simulation can be believed: it runs through a relay that tampers with one message on its way to a device,
//! and has to say so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use common::{Server, Setup, soon};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What the relay does to the tenth message that is reflected to anybody.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Tamper {
    Nothing,
    Drop,
    Repeat,
    /// Delivered behind the next one.
    Delay,
    /// One bit of the sealed envelope.
    Change,
    /// However often it comes again; and whoever is told that a commit was made hears no more on that connection.
    DropAndCutBehindCommits,
}

const VICTIM: u32 = 10;

/// Passes on what devices and mediator say, except for one message.
async fn relay(mediator: SocketAddr, tamper: Tamper) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Seen::default());
    tokio::spawn(async move {
        loop {
            let (device, _) = listener.accept().await.unwrap();
            tokio::spawn(pass(device, mediator, tamper, Arc::clone(&seen)));
        }
    });
    address
}

/// What went through the relay.
#[derive(Default)]
struct Seen {
    reflected: AtomicU32,
    /// The reflected-id of the message that is tampered with.
    victim: AtomicU32,
}

impl Seen {
    fn is_victim(&self, tamper: Tamper, reflected: &[u8]) -> bool {
        let id = u32::from_le_bytes(reflected[8..12].try_into().unwrap());
        if self.reflected.fetch_add(1, Ordering::Relaxed) + 1 == VICTIM {
            self.victim.store(id, Ordering::Relaxed);
            return true;
        }
        // An id is never 0.
        tamper == Tamper::DropAndCutBehindCommits && self.victim.load(Ordering::Relaxed) == id
    }
}

async fn pass(device: TcpStream, mediator: SocketAddr, tamper: Tamper, seen: Arc<Seen>) -> std::io::Result<()> {
    let (mut from_mediator, mut to_mediator) = TcpStream::connect(mediator).await?.into_split();
    let (mut from_device, mut to_device) = device.into_split();
    tokio::spawn(async move { tokio::io::copy(&mut from_device, &mut to_mediator).await });
    // The answer to the upgrade, then frames.
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(from_mediator.read_u8().await?);
    }
    to_device.write_all(&answer).await?;
    let mut held: Option<Vec<u8>> = None;
    loop {
        let (mut frame, payload_at) = frame(&mut from_mediator).await?;
        let is_reflected = frame.get(payload_at) == Some(&0x82);
        let is_victim = is_reflected && seen.is_victim(tamper, &frame[payload_at..]);
        let is_commit_ack = frame.get(payload_at) == Some(&0x43);
        match tamper {
            Tamper::Drop | Tamper::DropAndCutBehindCommits if is_victim => continue,
            Tamper::DropAndCutBehindCommits if is_commit_ack => {
                to_device.write_all(&frame).await?;
                return to_device.shutdown().await;
            }
            Tamper::Delay if is_victim => {
                held = Some(frame);
                continue;
            }
            Tamper::Change if is_victim => *frame.last_mut().unwrap() ^= 1,
            Tamper::Repeat if is_victim => to_device.write_all(&frame).await?,
            _ => {}
        }
        to_device.write_all(&frame).await?;
        if let Some(held) = held.take_if(|_| is_reflected) {
            to_device.write_all(&held).await?;
        }
    }
}

/// A WebSocket frame of a server, which is never masked, and where its payload begins.
async fn frame(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<(Vec<u8>, usize)> {
    let mut frame = vec![from.read_u8().await?, from.read_u8().await?];
    let more = match frame[1] {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mut length = u64::from(frame[1]);
    if more > 0 {
        length = 0;
        for _ in 0..more {
            let byte = from.read_u8().await?;
            frame.push(byte);
            length = (length << 8) | u64::from(byte);
        }
    }
    let payload_at = frame.len();
    frame.resize(payload_at + usize::try_from(length).unwrap(), 0);
    from.read_exact(&mut frame[payload_at..]).await?;
    Ok((frame, payload_at))
}

/// Runs a small simulation through a relay; says whether it was content, and its table.
async fn simulate(tamper: Tamper) -> (bool, String) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), Setup::default()).await;
    let url = format!("ws://{}", relay(server.address, tamper).await);
    let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
    command.args(["simulate", "--no-csp", "--groups", "1", "--devices", "2", "--messages", "20", "--url", &url]);
    // Only one kind of message, so that the tampered one is known; nothing moves any more once it is gone.
    let transactions = if tamper == Tamper::DropAndCutBehindCommits { "1" } else { "0" };
    // Where something is lost, it is waited for in vain. Everything else has time, whatever else the machine does.
    let patience = match tamper {
        Tamper::Drop | Tamper::Change | Tamper::DropAndCutBehindCommits => "8s",
        Tamper::Nothing | Tamper::Repeat | Tamper::Delay => "20s",
    };
    command.args(["--transactions", transactions, "--ephemeral", "0", "--patience", patience]);
    let output = soon(tokio::task::spawn_blocking(move || command.output())).await.unwrap().unwrap();
    server.stop().await;
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

/// The value of a row of the table.
fn row<'a>(table: &'a str, name: &str) -> &'a str {
    table.lines().find_map(|line| Some(line.strip_prefix(name)?.trim())).unwrap_or_else(|| panic!("no {name}: {table}"))
}

#[tokio::test]
async fn a_relay_that_changes_nothing_is_not_noticed() {
    let (good, table) = simulate(Tamper::Nothing).await;
    assert!(good, "{table}");
    assert_eq!((row(&table, "lost"), row(&table, "misordered")), ("0", "0"), "{table}");
}

#[tokio::test]
async fn a_lost_message_is_counted_as_lost() {
    let (good, table) = simulate(Tamper::Drop).await;
    assert!(!good, "{table}");
    assert_eq!((row(&table, "lost"), row(&table, "misordered")), ("1", "0"), "{table}");
}

#[tokio::test]
async fn a_message_that_comes_twice_on_one_connection_is_a_fault() {
    let (good, table) = simulate(Tamper::Repeat).await;
    assert!(!good, "{table}");
    assert_eq!(row(&table, "lost"), "0", "{table}");
    assert!(table.contains("1 messages twice on one connection"), "{table}");
}

#[tokio::test]
async fn a_message_behind_a_later_one_is_a_fault() {
    let (good, table) = simulate(Tamper::Delay).await;
    assert!(!good, "{table}");
    assert_eq!((row(&table, "lost"), row(&table, "misordered")), ("0", "1"), "{table}");
    assert!(table.contains("1 messages behind a later one"), "{table}");
}

#[tokio::test]
async fn a_message_with_a_changed_bit_is_foreign_and_the_true_one_lost() {
    let (good, table) = simulate(Tamper::Change).await;
    assert!(!good, "{table}");
    assert_eq!(row(&table, "lost"), "1", "{table}");
    assert!(table.contains("1 messages that nobody sent"), "{table}");
}

#[tokio::test]
async fn a_message_of_an_acknowledged_commit_is_owed_even_if_the_connection_broke_right_behind_it() {
    let (good, table) = simulate(Tamper::DropAndCutBehindCommits).await;
    assert!(!good, "{table}");
    assert_eq!(row(&table, "lost"), "1", "{table}");
    assert_ne!(row(&table, "reconnects"), "0", "{table}");
    // Whoever connects again behind the loss is told of a queue that is longer than what comes.
    let faults: Vec<&str> = table.lines().filter(|line| line.starts_with("  fault")).collect();
    assert!(faults.iter().all(|fault| fault.contains(" queue")), "{table}");
}
