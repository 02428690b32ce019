//! Many connections at once: every member hears every message once, and all in the same order.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use hdrhistogram::Histogram;
use heliostat::time::Clock;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use crate::world::{Account, Client, Ground, invitation};

const GROUPS: usize = 50;
const MEMBERS: usize = 10;
const PER_SECOND: usize = 200;

/// What one member heard: the ids of messages, and how long each took to get here, in microseconds.
struct Heard {
    group: usize,
    ids: Vec<i64>,
    latencies_us: Vec<u64>,
}

pub async fn load(ground: Ground, lasts: Duration) {
    let clock = Clock::system();
    let world = Arc::new(ground.open().await);
    let name = |group: usize, member: usize| format!("user {group} {member}");
    let began = clock.now().monotonic;
    let (mut coming, at_once) = (JoinSet::new(), Arc::new(Semaphore::new(16)));
    for n in 0..GROUPS * MEMBERS {
        let (world, at_once) = (Arc::clone(&world), Arc::clone(&at_once));
        coming.spawn(async move {
            let _turn = at_once.acquire().await.unwrap();
            (n, world.somebody(&name(n / MEMBERS, n % MEMBERS)).await)
        });
    }
    let mut clients: Vec<_> = coming.join_all().await;
    clients.sort_by_key(|(n, _)| *n);
    let mut clients: Vec<_> = clients.into_iter().map(|(_, client)| client).collect();
    println!("{} connections in {:?}", clients.len(), clock.now().monotonic - began);

    let mut dms = Vec::new();
    for group in 0..GROUPS {
        let others: Vec<_> = (1..MEMBERS).map(|member| name(group, member)).collect();
        let others: Vec<_> = others.iter().map(String::as_str).collect();
        dms.push(clients[group * MEMBERS].does("create_dm", invitation(&others)).await.as_i64().unwrap());
    }
    let each = PER_SECOND * usize::try_from(lasts.as_secs()).unwrap() / GROUPS;
    let (mut hearing, mut lines) = (JoinSet::new(), Vec::new());
    for (n, client) in clients.into_iter().enumerate() {
        let (line, said) = mpsc::channel(64);
        lines.push((client.me(), line));
        hearing.spawn(hears(client, n / MEMBERS, each, said, clock));
    }
    let began = clock.now().monotonic;
    for n in 0..GROUPS * each {
        let due = began + Duration::from_secs(1) * u32::try_from(n).unwrap() / u32::try_from(PER_SECOND).unwrap();
        clock.sleep_until(Some(due)).await;
        let (group, turn) = (n % GROUPS, n / GROUPS);
        let (account, line) = &lines[group * MEMBERS + turn % MEMBERS];
        line.send(frame(account, dms[group], clock)).await.unwrap();
    }
    let said = clock.now().monotonic - began;
    let heard = hearing.join_all().await;
    let all = clock.now().monotonic - began;

    let mut latencies = Histogram::<u64>::new(3).unwrap();
    for heard in &heard {
        assert_eq!(heard.ids.len(), each, "every member heard every message");
        assert!(heard.ids.is_sorted_by(|one, other| one < other), "once, and in order");
        heard.latencies_us.iter().for_each(|us| latencies.record(*us).unwrap());
    }
    let mut of: Vec<Option<&[i64]>> = vec![None; GROUPS];
    for heard in &heard {
        let same = of[heard.group].get_or_insert(&heard.ids);
        assert_eq!(*same, heard.ids, "the same as the others in the group");
    }
    let ms = |q: f64| Duration::from_micros(latencies.value_at_quantile(q));
    println!("{} messages said in {said:?}, heard {} times by {all:?}", GROUPS * each, latencies.len());
    println!("from saying to hearing: p50 {:?}, p99 {:?}, p99.9 {:?}, max {:?}", ms(0.5), ms(0.99), ms(0.999), ms(1.0));
    if let Some(world) = Arc::into_inner(world) {
        world.close().await;
    }
}

fn frame(account: &Account, dm: i64, clock: Clock) -> String {
    let text = format!("{:<120}", clock.now().monotonic.as_micros());
    format!("42{}", json!(["send_message", account.message(dm, &text)]))
}

/// Says what it is told to, and hears until it has heard everything.
async fn hears(client: Client, group: usize, count: usize, mut said: mpsc::Receiver<String>, clock: Clock) -> Heard {
    let mut ws = client.into_frames();
    let mut heard = Heard { group, ids: Vec::with_capacity(count), latencies_us: Vec::with_capacity(count) };
    let mut is_open = true;
    while heard.ids.len() < count {
        let frame = tokio::select! {
            told = said.recv(), if is_open => {
                match told {
                    Some(frame) => ws.send(Message::text(frame)).await.unwrap(),
                    None => is_open = false,
                }
                continue;
            }
            frame = ws.next() => frame.unwrap().unwrap(),
        };
        let Message::Text(text) = frame else { continue };
        if text.as_str() == "2" {
            ws.send(Message::text("3")).await.unwrap();
            continue;
        }
        let Some(message) = text.as_str().strip_prefix("42[\"message_notification\",") else { continue };
        let message: Value = serde_json::from_str(&message[..message.len() - 1]).unwrap();
        let text = String::from_utf8(hex::decode(message["message"].as_str().unwrap()).unwrap()).unwrap();
        let at: u128 = text.trim().parse().unwrap();
        heard.ids.push(message["id"].as_i64().unwrap());
        heard.latencies_us.push(u64::try_from(clock.now().monotonic.as_micros() - at).unwrap());
    }
    heard
}
