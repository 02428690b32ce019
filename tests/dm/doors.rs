//! What is at the doors: hostile input, polling, the page, limits, and the way through the mediator.

use std::sync::Arc;
use std::time::Duration;

use heliostat::chat::dm::Rates;
use heliostat::chat::dm::store::Place;
use heliostat::net::listen::Door;
use heliostat::net::proxies::{Proxies, SaidBy};
use heliostat::net::rate::{Per, Rate};
use heliostat::upstream::framer::Framing;
use heliostat::wire::d2m::ServerGroup;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::binary::Binary;
use crate::common::{Family, Server, Setup};
use crate::world::{Account, Client, Ground, World, befriend, group, invitation, pair, soon};

fn ground(dir: &tempfile::TempDir) -> Ground {
    Ground::new(dir.path(), Place::Sqlite)
}

/// A request by HTTP and all of its answer: head and body.
async fn http(world: &World, request: &str) -> (String, String) {
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    // Whoever says too much may be answered before the end of it.
    let _cut = tcp.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _cut = soon(tcp.read_to_end(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    (head.to_ascii_lowercase(), body.to_owned())
}

async fn get(world: &World, path: &str) -> (String, String) {
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: dm\r\nOrigin: https://elsewhere.example\r\nConnection: close\r\n\r\n");
    http(world, &request).await
}

async fn post(world: &World, path: &str, body: &str) -> (String, String) {
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: dm\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    http(world, &(head + body)).await
}

#[tokio::test]
async fn garbage_is_answered_or_ends_that_connection_alone() {
    let dir = tempfile::tempdir().unwrap();
    let world = ground(&dir).open().await;
    let mut bystander = world.somebody("alice").await;
    let mut client = world.somebody("bob").await;
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    for args in ["7", "[]", "null", "true", "\"\"", "{}", "[{}]", "{\"id\":{}}", "{\"id\":[1]}", "1e999", &deep] {
        for event in ["get_dm", "send_message", "create_dm", "set_user", "login", "join_call"] {
            if event == "set_user" && args == "{}" || event == "login" {
                continue;
            }
            client.send(format!("421[\"{event}\",{args}]")).await;
            let answer = client.answer(1).await;
            let is_nothing = args == "null" || args.starts_with("{\"id\"");
            let fine = event == "set_user" && is_nothing;
            assert!(fine || answer["success"] == false, "{event} {args}: {answer}");
        }
    }
    for (frame, code) in [
        ("421[\"no_such_event\"]".to_owned(), "unknown_event"),
        ("421[\"get_user\",{\"username\":\"\\ud800\"}]".to_owned(), "bad_request"),
        ("421[\"get_dm\"]".to_owned(), "bad_request"),
        (format!("421[\"get_dm\",{{\"id\":1,\"deep\":{deep}}}]"), "no_dm_access"),
    ] {
        client.send(frame.clone()).await;
        assert_eq!(client.answer(1).await["code"], code, "{:.60}", frame);
    }
    // Without a number there is no answer, and it is done all the same.
    client.send("42[\"set_user\",{\"biography\":\"done\"}]".to_owned()).await;
    assert_eq!(bystander.hears("profile_notification").await["username"], "bob");
    assert_eq!(bystander.hears("profile_notification").await["biography"], "done");
    // A packet of 900 kB is one; of 2 MB, or out of the protocol, is the end.
    let picture = json!({ "unknown": "x".repeat(900_000) });
    assert_eq!(client.does("set_user", picture).await, true);
    client.send(format!("421[\"get_dms\",\"{}\"]", "x".repeat(2_000_000))).await;
    client.ends().await;
    for frame in ["42{", "4", "9", "", "42[7]", "421", "44{}", "451-[\"get_dms\"]"] {
        let mut client = world.again("bob").await;
        client.send(frame.to_owned()).await;
        client.send("421[\"get_dms\"]".to_owned()).await;
        // Either is clean.
        while let Some(heard) = client.frame().await {
            if heard.starts_with("431") {
                break;
            }
        }
    }
    assert_eq!(bystander.does("get_dms", json!({})).await, json!([]), "nobody else notices");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_said_right_after_connecting_was_lost() {
    let dir = tempfile::tempdir().unwrap();
    let world = ground(&dir).open().await;
    for _ in 0..200 {
        let mut client = world.stranger().await;
        assert_eq!(client.does("username_exists", json!("alice")).await, false);
    }
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_said_right_before_leaving_was_lost() {
    let dir = tempfile::tempdir().unwrap();
    let world = ground(&dir).open().await;
    let (mut alice, mut bob, dm) = pair(&world).await;
    for n in 0..100 {
        // Nobody asks for an answer, or waits.
        let message = alice.me().message(dm, &n.to_string());
        alice.send(format!("42{}", json!(["send_message", message]))).await;
    }
    alice.leaves().await;
    for n in 0..100 {
        assert_eq!(bob.hears("message_notification").await["message"], hex::encode(n.to_string()));
    }
    while bob.hears("profile_notification").await["status"] != "offline" {}
    world.close().await;
}

#[tokio::test]
async fn who_asks_right_behind_logging_in_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let world = ground(&dir).open().await;
    world.somebody("alice").await.leaves().await;
    let (mut client, account) = (world.stranger().await, Account::of("alice"));
    let challenge = client.does("login", json!({ "username": "alice" })).await;
    let mut point = [0; 32];
    hex::decode_to_slice(challenge.as_str().unwrap(), &mut point).unwrap();
    let response = hex::encode(account.identity.answer("alice", &point));
    let before = client.ask("get_dms", json!({})).await;
    client.ask("login_challenge_response", json!({ "response": response })).await;
    let (behind, bad) = (client.ask("get_dms", json!({})).await, client.ask("get_dm", json!([])).await);
    assert_eq!(client.answer(before).await["code"], "not_logged_in");
    assert_eq!(client.answer(behind).await["success"], true);
    assert_eq!(client.answer(bad).await["code"], "bad_request");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stops_answers_what_it_did_and_tells_nobody_to_stay_away() {
    let dir = tempfile::tempdir().unwrap();
    let world = ground(&dir).open().await;
    let (mut alice, _bob, dm) = pair(&world).await;
    for n in 0..90 {
        let message = alice.me().message(dm, &n.to_string());
        alice.ask("send_message", message).await;
    }
    let closing = tokio::spawn(world.close());
    let mut answered = 0;
    while let Some(frame) = alice.frame().await {
        assert_ne!(frame, "41", "the usual clients would not come back");
        answered += usize::from(frame.starts_with("43") && frame.contains("\"success\":true"));
    }
    soon(closing).await.unwrap();
    let world = ground(&dir).open().await;
    let mut alice = world.again("alice").await;
    let kept = alice.does("get_message_history", json!({ "id": dm, "count": 100 })).await;
    assert_eq!(kept.as_array().unwrap().len(), answered, "whoever says again what was not answered says nothing twice");
    world.close().await;
}

/// Does something to what is kept while nobody serves it.
async fn tampers(dir: &tempfile::TempDir, sql: &'static str) {
    use sqlx::Connection as _;
    let file = dir.path().join("dm.sqlite");
    let mut database = sqlx::SqliteConnection::connect(file.to_str().unwrap()).await.unwrap();
    let done = sqlx::query(sql).execute(&mut database).await.unwrap();
    assert!(sql.starts_with("CREATE") || done.rows_affected() == 1, "{sql}");
    database.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_store_fails_nothing_was_said_and_everybody_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let world = ground(&dir).open().await;
    let (alice, bob, dm) = pair(&world).await;
    drop((alice, bob));
    world.close().await;
    // Not that one statement fails: the whole transaction is gone.
    let trigger = "CREATE TRIGGER fails BEFORE INSERT ON messages WHEN NEW.body = x'66' \
                   BEGIN SELECT RAISE(ROLLBACK, 'on purpose'); END";
    tampers(&dir, trigger).await;
    let world = ground(&dir).open().await;
    let (mut alice, mut bob) = (world.again("alice").await, world.again("bob").await);
    let failing = alice.me().message(dm, "f");
    alice.ask("send_message", failing).await;
    for client in [&mut alice, &mut bob] {
        while let Some(frame) = client.frame().await {
            assert!(!frame.starts_with("43") && !frame.contains("message_notification") && frame != "41", "{frame}");
        }
    }
    let (mut alice, mut bob) = (world.again("alice").await, world.again("bob").await);
    alice.says(dm, "next").await;
    assert_eq!(bob.hears("message_notification").await["message"], hex::encode("next"));
    let kept = bob.does("get_message_history", json!({ "id": dm })).await;
    assert_eq!(kept.as_array().unwrap().len(), 1);
    world.close().await;
}

#[tokio::test]
async fn a_row_that_cannot_be_read_stopped_everybody() {
    let dir = tempfile::tempdir().unwrap();
    let mut ground = ground(&dir);
    ground.settings.x3dh_after = Duration::ZERO;
    let world = ground.open().await;
    let (mut alice, bob, dm) = pair(&world).await;
    for (text, schedule) in [("bad", 50), ("good", 60)] {
        let later = alice.me().later(dm, text, schedule, 0);
        assert_eq!(alice.does("send_message", later).await, true);
    }
    drop((alice, bob));
    world.close().await;
    tampers(&dir, "UPDATE schedules SET signature = x'00' WHERE body = x'626164'").await;
    tampers(&dir, "UPDATE x3dh_inbox SET ek = x'00'").await;

    ground.later = Duration::from_secs(100);
    let world = ground.open().await;
    let mut alice = world.again("alice").await;
    let kept = alice.does("get_message_history", json!({ "id": dm })).await;
    assert_eq!((kept.as_array().unwrap().len(), &kept[0]["message"]), (1, &json!(hex::encode("good"))));
    // What waits for bob is looked at before the first thing he says.
    let mut bob = world.again("bob").await;
    assert_eq!(bob.names_heard().await, [""; 0]);
    alice.says(dm, "still here").await;
    assert_eq!(bob.hears("message_notification").await["message"], hex::encode("still here"));
    world.close().await;
}

#[tokio::test]
async fn polling_does_what_a_websocket_does() {
    let dir = tempfile::tempdir().unwrap();
    let world = ground(&dir).open().await;
    let path = "/socket.io/?EIO=4&transport=polling";
    let (head, open) = get(&world, path).await;
    assert!(head.contains("access-control-allow-origin: *"), "{head}");
    let open: Value = serde_json::from_str(&open[open.find('{').unwrap()..=open.rfind('}').unwrap()]).unwrap();
    assert_eq!(open["maxPayload"], 1_000_000);
    let path = format!("{path}&sid={}", open["sid"].as_str().unwrap());
    assert!(post(&world, &path, "40").await.0.starts_with("http/1.1 200"));
    let asks = "421[\"username_exists\",{\"username\":\"alice\"}]\u{1e}422[\"get_dms\"]";
    assert!(post(&world, &path, asks).await.0.starts_with("http/1.1 200"));
    let mut heard = String::new();
    while !heard.contains("432[") {
        heard += &get(&world, &path).await.1;
    }
    assert!(heard.contains("431[{\"success\":true,\"result\":false}]") && heard.contains("not_logged_in"), "{heard}");
    let long = format!("423[\"get_dms\",\"{}\"]", "x".repeat(1_100_000));
    let (head, _) = post(&world, &path, &long).await;
    assert!(head.is_empty() || head.starts_with("http/1.1 413"), "{head}");
    assert!(get(&world, "/socket.io/?EIO=3&transport=polling").await.0.starts_with("http/1.1 400"));
    world.close().await;
}

/// A session by polling that is connected: its path and its name.
async fn polling(world: &World) -> (String, String) {
    let path = "/socket.io/?EIO=4&transport=polling";
    let (_, open) = get(world, path).await;
    let open: Value = serde_json::from_str(&open[open.find('{').unwrap()..=open.rfind('}').unwrap()]).unwrap();
    let sid = open["sid"].as_str().unwrap().to_owned();
    let path = format!("{path}&sid={sid}");
    assert!(post(world, &path, "40").await.0.starts_with("http/1.1 200"));
    // It is asked whether it is there, too.
    while !get(world, &path).await.1.contains("40{") {}
    assert!(post(world, &path, "3").await.0.starts_with("http/1.1 200"));
    (path, sid)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_cut_while_polling_or_after_an_upgrade_heard_nothing_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let mut ground = ground(&dir);
    ground.settings.send_queue_max = 16;
    ground.settings.bounds_reads = false;
    let world = ground.open().await;
    let (path, _) = polling(&world).await;
    let asks: Vec<_> = (1..100).map(|n| format!("42{n}[\"username_exists\",\"x\"]")).collect();
    post(&world, &path, &asks.join("\u{1e}")).await;
    // There is no such session any more; until then, it is answered what fitted.
    while !get(&world, &path).await.0.starts_with("http/1.1 400") {}

    let mut bob = world.somebody("bob").await;
    let (_, sid) = polling(&world).await;
    let mut alice = Client::upgrades(world.narrow_tcp().await, &sid).await;
    let mut registration = Account::of("alice").registration();
    registration["own_storage"] = json!("x".repeat(100_000));
    assert_eq!(alice.does("register", registration).await, true);
    alice.log_in(&Account::of("alice")).await;
    bob.hears("profile_notification").await;
    for _ in 0..150 {
        alice.ask("get_full_user", json!({})).await;
    }
    assert_eq!(bob.hears("profile_notification").await["status"], "offline");
    alice.ends().await;
    world.close().await;
}

#[tokio::test]
async fn sessions_without_connections_were_bounded_by_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let world = Ground { connections_max: 4, ..ground(&dir) }.open().await;
    // Places come back, whatever becomes of a session.
    let connects = async || -> Option<Client> {
        let tcp = TcpStream::connect(world.address).await.unwrap();
        Client::tries(tcp).await
    };
    for n in 0..20 {
        let client = soon(async {
            loop {
                if let Some(client) = connects().await {
                    break client;
                }
            }
        });
        let mut client = client.await;
        assert_eq!(client.does("username_exists", json!("alice")).await, false);
        if n % 2 == 0 {
            client.leaves().await;
        }
    }
    let opens = async || get(&world, "/socket.io/?EIO=4&transport=polling").await.0;
    let opened = async {
        let mut opened = 0;
        while opened < 4 {
            opened += usize::from(opens().await.starts_with("http/1.1 200"));
        }
    };
    soon(opened).await;
    let refused = opens().await;
    assert!(refused.starts_with("http/1.1 429") && refused.contains("access-control-allow-origin"), "{refused}");
    assert!(get(&world, "/health").await.0.starts_with("http/1.1 200"));
    world.close().await;
}

#[tokio::test]
async fn the_page_loads_nothing_from_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let world = ground(&dir).open().await;
    let (head, page) = get(&world, "/").await;
    assert!(head.starts_with("http/1.1 200") && head.contains("default-src 'none'; script-src 'self'"), "{head}");
    assert!(!page.contains("http://") && !page.contains("https://") && !page.contains(" style="), "{page}");
    for link in
        page.split("\"/").skip(1).map(|rest| rest.split('"').next().unwrap()).filter(|it| it.starts_with("assets/"))
    {
        assert!(get(&world, &format!("/{link}")).await.0.starts_with("http/1.1 200"), "{link}");
    }
    assert!(get(&world, "/assets/../Cargo.toml").await.0.starts_with("http/1.1 404"));
    assert!(get(&world, "/health").await.1.contains("ok"));
    world.close().await;
}

#[tokio::test]
async fn who_is_too_fast_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let rate = |amount| Some(Rate { amount, per: Per::Hour });
    let rates = Rates {
        writes: rate(2),
        typing: rate(1),
        profiles: rate(1),
        dms: rate(1),
        lists: rate(1),
        registrations: rate(1),
        ..Rates::NONE
    };
    let world = Ground { rates, ..ground(&dir) }.open().await;
    let (mut alice, mut bob, dm) = pair(&world).await;
    for n in 0..7 {
        let answer = alice.call("send_message", alice.me().message(dm, "x")).await;
        let expected = if n < 6 { Value::Null } else { json!("rate_limited") };
        assert_eq!(answer["code"], expected, "three hours' at once: {n}");
    }
    for _ in 0..3 {
        assert_eq!(alice.does("ping_typing", json!({ "id": dm })).await, true);
    }
    let typed = bob.names_heard().await.into_iter().filter(|name| name == "typing_notification").count();
    assert_eq!(typed, 1, "the rest is left out");
    alice.does("get_user_list", json!({})).await;
    assert_eq!(alice.cannot("get_user_list", json!({})).await, "rate_limited");
    let mut stranger = world.stranger().await;
    stranger.does("register", Account::of("carol").registration()).await;
    assert_eq!(stranger.cannot("register", Account::of("dave").registration()).await, "rate_limited");
    // A refusal costs as much as a DM: three hours' may be tried at once, and one has been.
    assert_eq!(alice.cannot("create_dm", invitation(&["nobody"])).await, "no_such_user");
    assert_eq!(alice.cannot("create_dm", invitation(&["bob", "carol"])).await, "rate_limited");
    assert_eq!(alice.cannot("create_dm", invitation(&["nobody"])).await, "rate_limited");
    // Only what everybody is told of counts.
    for n in 0..7 {
        let answer = bob.call("set_user", json!({ "biography": n.to_string() })).await;
        let expected = if n < 5 { Value::Null } else { json!("rate_limited") };
        assert_eq!(answer["code"], expected, "five hours' at once: {n}");
        assert_eq!(bob.does("set_user", json!({ "own_storage": n.to_string() })).await, true);
    }
    assert_eq!(bob.does("get_full_user", json!({})).await["biography"], "4");
    world.close().await;

    let dir = tempfile::tempdir().unwrap();
    let rates = Rates { events: Some(Rate { amount: 5, per: Per::Hour }), ..Rates::NONE };
    let world = Ground { rates, ..ground(&dir) }.open().await;
    let mut client = world.stranger().await;
    let mut refused = 0;
    for _ in 0..150 {
        refused += usize::from(client.call("username_exists", json!("alice")).await["code"] == "rate_limited");
    }
    assert_eq!(refused, 130, "of ten times as many as there may be, and then some");
    client.ask("username_exists", json!("alice")).await;
    client.ends().await;
    world.close().await;
}

#[tokio::test]
async fn behind_a_proxy_everybody_had_the_limits_of_a_connection() {
    let dir = tempfile::tempdir().unwrap();
    let rates = Rates { registrations: Some(Rate { amount: 1, per: Per::Hour }), ..Rates::NONE };
    let proxies = Proxies::new(["127.0.0.1/32".parse().unwrap()].into_iter().collect(), SaidBy::ProxyProtocol);
    let door = Door { tls: None, proxies: Arc::new(proxies) };
    let world = Ground { rates, ..ground(&dir) }.open_behind(door).await;
    let comes_from = async |address: &str| {
        let mut proxy = TcpStream::connect(world.address).await.unwrap();
        let said = format!("PROXY TCP4 {address} 192.0.2.9 40000 443\r\n");
        proxy.write_all(said.as_bytes()).await.unwrap();
        Client::over(proxy).await
    };
    for (name, address, code) in [
        ("alice", "192.0.2.1", Value::Null),
        ("bob", "192.0.2.1", json!("rate_limited")),
        ("bob", "192.0.2.2", Value::Null),
    ] {
        let answer = comes_from(address).await.call("register", Account::of(name).registration()).await;
        assert_eq!(answer["code"], code, "{name} from {address}");
    }
    world.close().await;
}

#[tokio::test]
async fn who_does_not_log_in_does_not_stay() {
    let dir = tempfile::tempdir().unwrap();
    let mut ground = ground(&dir);
    // Long enough for alice to log in.
    ground.settings.stranger_max = Duration::from_secs(3);
    let world = ground.open().await;
    let (mut alice, mut stranger) = (world.somebody("alice").await, world.stranger().await);
    stranger.ends().await;
    assert_eq!(alice.does("get_dms", json!({})).await, json!([]));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_is_cut_and_keeps_nobody_waiting() {
    let dir = tempfile::tempdir().unwrap();
    // The sockets take some megabytes, whatever waits before them.
    for (name, send_queue_max, unsent_max) in [("packets", 16, usize::MAX), ("bytes", 100_000, 1_000_000)] {
        let mut ground = Ground::new(&dir.path().join(name), Place::Sqlite);
        std::fs::create_dir(&ground.dir).unwrap();
        ground.settings.send_queue_max = send_queue_max;
        ground.settings.unsent_max = unsent_max;
        let world = ground.open().await;
        let (mut alice, mut bob, carol, dm) = group(&world).await;
        carol.leaves().await;
        let carol = world.narrow("carol").await;
        for status in ["offline", "online"] {
            while alice.hears("profile_notification").await["status"] != status {}
        }
        // Carol is connected and reads nothing from here on: what she is sent fills the sockets, then her line, and she is gone.
        let message = alice.me().message(dm, &"x".repeat(60_000));
        let mut gone = false;
        for _ in 0..500 {
            alice.does("send_message", message.clone()).await;
            bob.hears("message_notification").await;
            let heard = alice.heard().await;
            gone = heard.iter().any(|(name, said)| name == "profile_notification" && said["status"] == "offline");
            if gone {
                break;
            }
        }
        assert!(gone, "her line was cut for its {name}");
        drop(carol);
        world.close().await;
    }
}

#[tokio::test]
async fn a_device_group_reaches_the_room_through_the_tunnel() {
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let world = ground(&dir).open().await;
    let setup = Setup { upstream: Some(world.address), framing: Framing::Raw, ..Setup::default() };
    let server = Server::start(data.path(), setup).await;
    let family = Family::new(server.url());
    let (mut phone, mut tablet) = (family.joins(1).await, family.joins(2).await);
    let mut bob = world.somebody("bob").await;
    let account = Account::of("alice");
    let mut alice = Client::over(phone.proxy_stream().unwrap()).await;
    assert_eq!(alice.does("register", account.registration()).await, true);
    alice.log_in(&account).await;
    let mut tablets = Client::over(tablet.proxy_stream().unwrap()).await;
    tablets.log_in(&account).await;
    befriend(&mut alice, &mut bob).await;
    let dm = bob.does("create_dm", invitation(&["alice"])).await.as_i64().unwrap();
    assert_eq!(alice.hears("x3dh_notification").await["id"], dm);
    // A message that fits no container of the mediator's passes in pieces.
    let text = "long ".repeat(13_000);
    bob.says(dm, &text).await;
    alice.says(dm, "short").await;
    for client in [&mut alice, &mut tablets, &mut bob] {
        assert_eq!(client.hears("message_notification").await["message"], hex::encode(&text));
        assert_eq!(client.hears("message_notification").await["message"], hex::encode("short"));
    }
    alice.leaves().await;
    tablets.leaves().await;
    server.stop().await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_binary_leads_a_group_called_dm_to_its_room_and_keeps_what_it_answered() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let account = Account::of("alice");
    for is_first in [true, false] {
        let mut binary = Binary::start_with(&data, "[chat.dm]\nenabled = true\nlisten = '127.0.0.1:0'\n");
        let family = Family::new(binary.mediator());
        let mut config = family.config(1);
        config.server_group = ServerGroup::new("dm").unwrap();
        let mut device = family.connects(&config).await;
        let mut alice = Client::over(device.proxy_stream().unwrap()).await;
        let registered = alice.call("register", account.registration()).await;
        assert_eq!(registered["success"], is_first, "{registered}");
        alice.log_in(&account).await;
        binary.kill();
    }
}
