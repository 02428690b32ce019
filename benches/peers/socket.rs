//! A message and an answer on a plain WebSocket: what reflecting to nobody costs, beside sending the same bytes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use heliostat::client::GroupKey;
use heliostat::time::Clock;
use heliostat::wire::d2m::{Envelope, FromDevice, Reflect, ReflectFlags, ReflectId, ToDevice};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use super::fanout::{Socket, binary, open};
use super::process::Program;
use super::report::Comparison;
use super::{Plan, fanout};

const CONNECTIONS: usize = 64;
const SIZE: usize = 1_024;

pub async fn compare(plan: Plan) -> Comparison {
    let conditions = format!(
        "{CONNECTIONS} plain WebSockets with one message of {SIZE} bytes each on its way; heliostat (memory): a reflect in a \
         group of one, and its acknowledgement; tungstenite: the same bytes back"
    );
    let mut comparison = Comparison::new("socket", conditions);
    let dir = tempfile::tempdir_in("target").unwrap();
    let heliostat = Program::heliostat(dir.path(), "durability = 'memory'\n");
    let echo = Program::own("echo", dir.path());
    for _ in 0..plan.rounds {
        for (name, program, reflects) in [("heliostat (memory)", &heliostat, true), ("tungstenite", &echo, false)] {
            let (rate, cpu_us) = run(program, plan.lasts, reflects).await;
            comparison.note(name, "messages", "/s", rate);
            comparison.note(name, "server CPU per message", "us", cpu_us);
        }
    }
    comparison
}

pub async fn serve() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("at://{}", listener.local_addr().unwrap());
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        tcp.set_nodelay(true).unwrap();
        tokio::spawn(async move {
            let mut socket = tokio_tungstenite::accept_async(tcp).await?;
            while let Some(message) = socket.next().await {
                let mut next = Some(message?);
                while let Some(message) = next {
                    if message.is_binary() {
                        socket.feed(message).await?;
                    }
                    next = socket.next().now_or_never().flatten().transpose()?;
                }
                socket.flush().await?;
            }
            Ok::<_, tokio_tungstenite::tungstenite::Error>(())
        });
    }
}

async fn run(program: &Program, lasts: Duration, reflects: bool) -> (f64, f64) {
    let (clock, done) = (Clock::system(), Arc::new(AtomicU64::new(0)));
    let (begins, ends) = (lasts / 5, lasts / 5 + lasts);
    let mut lives = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (address, done) = (program.address, Arc::clone(&done));
        lives.spawn(async move {
            let life = async {
                let mut socket = if reflects {
                    device(address).await
                } else {
                    open(address, &format!("ws://{address}/"), None).await
                };
                let reflect = FromDevice::Reflect(Reflect {
                    flags: ReflectFlags::default(),
                    reflect_id: ReflectId(1),
                    envelope: Envelope::copy_from(&[1; SIZE]),
                });
                let bytes: Bytes = reflect.encode();
                loop {
                    socket.send(Message::Binary(bytes.clone())).await.unwrap();
                    binary(&mut socket).await;
                    done.fetch_add(1, Ordering::Relaxed);
                }
            };
            let _time_is_over = tokio::time::timeout_at(clock.instant_at(ends), life).await;
        });
    }
    clock.sleep_until(Some(begins)).await;
    let (cpu, before) = (program.cpu(), done.load(Ordering::Relaxed));
    clock.sleep_until(Some(ends)).await;
    let (cpu, messages) = (program.cpu().saturating_sub(cpu), done.load(Ordering::Relaxed) - before);
    lives.join_all().await;
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let messages = messages as f64;
    (messages / lasts.as_secs_f64(), cpu.as_secs_f64() * 1e6 / messages)
}

/// Alone in its group, and its leader: everything that comes from now on is an answer.
async fn device(address: std::net::SocketAddr) -> Socket {
    let mut socket = fanout::device(address, &GroupKey::generate(), 1).await;
    while !matches!(ToDevice::decode(&binary(&mut socket).await).unwrap(), ToDevice::RolePromotedToLeader) {}
    socket
}
