//! A chat server that sends frames back, behind Heliostat's proxy and behind HAProxy in TCP mode.
//!
//! The same frames go the same way twice, to the chat server and back. Before HAProxy the client speaks TCP, before Heliostat
//! WebSocket, as there is no other way to either: unmasking is a part of the job there. What the load costs must not decide
//! the comparison, since it runs on the same cores: both clients write bytes that were made before and count those that
//! come back. A device's are frames with their mask on.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use heliostat::client::GroupKey;
use heliostat::time::Clock;
use heliostat::wire::d2m::{CONTAINER_HEADER, FromDevice, ToDevice};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::process::{Program, free};
use super::report::{Aim, Comparison, Target};
use super::{Plan, fanout};

const CONNECTIONS: u64 = 32;
/// Of a frame, its length before it included.
const SIZE: usize = 1_024;
/// Frames a connection has on the way.
const WINDOW: u64 = 16;

pub async fn compare(plan: Plan) -> Comparison {
    let conditions = format!(
        "{CONNECTIONS} connections with {WINDOW} frames of {SIZE} bytes each on their way to a chat server that sends them back"
    );
    let mut comparison = Comparison::new("relay", conditions);
    let chat = chat_server().await;
    let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir_in("target").unwrap()).collect();
    let target = format!("[server_groups.default]\naddresses = ['{chat}']\nframing = 'csp'\n");
    let heliostat = Program::heliostat(dirs[0].path(), &target);
    let haproxy = haproxy(dirs[1].path(), chat).await;
    if haproxy.is_none() {
        comparison.missing("HAProxy is not here (Debian's package `haproxy`)");
    }
    for _ in 0..plan.rounds {
        for (name, program, through) in
            [("heliostat", Some(&heliostat), Through::Proxy), ("haproxy", haproxy.as_ref(), Through::Tcp)]
        {
            let Some(program) = program else { continue };
            let (rate, cpu_us) = run(through, program, plan.lasts).await;
            comparison.note(name, "frames there and back", "/s", rate);
            comparison.note(name, "relay CPU per frame", "us", cpu_us);
        }
    }
    comparison.aim(Target { figure: "frames there and back", of: "heliostat", to: "haproxy", aim: Aim::AtLeast(0.8) });
    comparison
}

/// Says what a CSP server says first, hears what its client does, and then sends every byte back.
async fn chat_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tcp.set_nodelay(true).unwrap();
            tokio::spawn(async move {
                tcp.write_all(&[0; 80 + 32]).await?;
                let (mut from, mut to) = tcp.split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    address
}

async fn haproxy(dir: &Path, chat: SocketAddr) -> Option<Program> {
    let address = free();
    let config = dir.join("haproxy.cfg");
    let text = format!(
        "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
         listen relay\n  bind {address}\n  server chat {chat}\n"
    );
    std::fs::write(&config, text).unwrap();
    let program = if Path::new("/usr/sbin/haproxy").exists() { "/usr/sbin/haproxy" } else { "haproxy" };
    Program::that_is_told(Command::new(program).arg("-db").arg("-f").arg(config), address).await
}

#[derive(Debug, Clone, Copy)]
enum Through {
    Proxy,
    Tcp,
}

async fn run(through: Through, program: &Program, lasts: Duration) -> (f64, f64) {
    let (clock, back) = (Clock::system(), Arc::new(AtomicU64::new(0)));
    let (begins, ends) = (lasts / 5, lasts / 5 + lasts);
    let mut lives = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (address, back) = (program.address, Arc::clone(&back));
        lives.spawn(async move {
            let life = async {
                match through {
                    Through::Proxy => device(address, &back).await,
                    Through::Tcp => client(address, &back).await,
                }
            };
            let _time_is_over = tokio::time::timeout_at(clock.instant_at(ends), life).await;
        });
    }
    clock.sleep_until(Some(begins)).await;
    let (cpu, before) = (program.cpu(), back.load(Ordering::Relaxed));
    clock.sleep_until(Some(ends)).await;
    let (cpu, frames) = (program.cpu().saturating_sub(cpu), back.load(Ordering::Relaxed) - before);
    lives.join_all().await;
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let frames = frames as f64;
    (frames / lasts.as_secs_f64(), cpu.as_secs_f64() * 1e6 / frames)
}

fn frame() -> Bytes {
    let len = u16::try_from(SIZE - 2).unwrap().to_le_bytes();
    [&len[..], &[3; SIZE - 2]].concat().into()
}

async fn device(address: SocketAddr, back: &AtomicU64) {
    let mut socket = fanout::device(address, &GroupKey::generate(), 1).await;
    // The only device of its group leads it, and hears nothing of the group after that.
    while !matches!(ToDevice::decode(&fanout::binary(&mut socket).await).unwrap(), ToDevice::RolePromotedToLeader) {}
    let mut tcp = socket.into_inner();
    let frame = masked(&FromDevice::Proxy(frame()).encode());
    tcp.write_all(&frame.repeat(usize::try_from(WINDOW).unwrap())).await.unwrap();
    let (mut buffer, mut pending) = (vec![0; 16 * 1_024], Vec::new());
    loop {
        let read = tcp.read(&mut buffer).await.unwrap();
        pending.extend_from_slice(&buffer[..read]);
        let (whole, used) = frames(&pending);
        pending.drain(..used);
        back.fetch_add(whole as u64, Ordering::Relaxed);
        tcp.write_all(&frame.repeat(whole)).await.unwrap();
    }
}

/// A binary WebSocket frame as a client sends it. Any mask is allowed, so it is always the same.
fn masked(message: &[u8]) -> Vec<u8> {
    let mask = [0x3c, 0xa5, 0x5a, 0xc3];
    let len = u16::try_from(message.len()).unwrap().to_be_bytes();
    let message = message.iter().zip(mask.into_iter().cycle()).map(|(byte, mask)| byte ^ mask);
    [0x82, 0x80 | 126, len[0], len[1]].into_iter().chain(mask).chain(message).collect()
}

/// How many whole frames of the chat server there are, and how many bytes of WebSocket frames they and others take. What a
/// chat server says first, and pings, are shorter.
fn frames(mut pending: &[u8]) -> (usize, usize) {
    let (mut whole, mut used) = (0, 0);
    loop {
        let (header, len) = match *pending {
            [_, 126, high, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
            [_, len, ..] if len < 126 => (2, usize::from(len)),
            _ => return (whole, used),
        };
        let Some(rest) = pending.get(header + len..) else { return (whole, used) };
        whole += usize::from(len == CONTAINER_HEADER + SIZE);
        used += header + len;
        pending = rest;
    }
}

async fn client(address: SocketAddr, back: &AtomicU64) {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp.read_exact(&mut [0; 80 + 32]).await.unwrap();
    let frame = frame();
    tcp.write_all(&frame.repeat(usize::try_from(WINDOW).unwrap())).await.unwrap();
    let (mut buffer, mut pending) = (vec![0; 16 * 1_024], 0);
    loop {
        pending += tcp.read(&mut buffer).await.unwrap();
        let whole = pending / SIZE;
        pending %= SIZE;
        back.fetch_add(whole as u64, Ordering::Relaxed);
        tcp.write_all(&frame.repeat(whole)).await.unwrap();
    }
}
