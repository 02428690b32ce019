//! Operating a server that runs: the real binary on both sides of the admin door.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may panic")]

#[path = "common/binary.rs"]
mod binary;
mod common;

use std::path::Path;
use std::process::{Command, Output};

use heliostat::wire::d2m::{CloseCode, ReflectFlags};
use serde_json::Value;

use self::binary::Binary;
use self::common::{Family, soon};

const TOKEN: &str = "a token of more than sixteen bytes";

/// `heliostat admin`
fn admin(server: &Binary, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
    command.arg("admin").args(args).args(["--admin", server.admin()]);
    command.env_remove("HELIOSTAT_ADMIN_TOKEN_FILE").env_remove("HELIOSTAT__ADMIN__LISTEN").output().unwrap()
}

#[track_caller]
fn says(server: &Binary, args: &[&str]) -> String {
    let output = admin(server, args);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn answers(server: &Binary, args: &[&str]) -> Value {
    serde_json::from_str(&says(server, &[args, &["--json"]].concat())).unwrap()
}

#[track_caller]
fn is_refused(server: &Binary, args: &[&str]) -> String {
    let output = admin(server, args);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    // As it was before it was broken into lines.
    let said = String::from_utf8(output.stderr).unwrap().replace('│', "");
    said.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What the door says to a request, status line first.
fn asks(server: &Binary, head: &str) -> String {
    use std::io::{Read as _, Write as _};
    let authority = server.admin().trim_start_matches("http://").trim_end_matches('/');
    let mut stream = std::net::TcpStream::connect(authority).unwrap();
    let (request, headers) = head.split_once('\n').unwrap_or((head, ""));
    let headers: String = headers.lines().map(|line| format!("{line}\r\n")).collect();
    write!(stream, "{request} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.trim_start_matches("HTTP/1.1 ").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_are_listed_shown_and_explained_by_hash_and_by_id() {
    let data = tempfile::tempdir().unwrap();
    let server = Binary::start(&data.path().join("data"));
    assert_eq!(says(&server, &["groups"]), "0 awake, 0 asleep\n");
    let family = Family::new(server.mediator());
    let id = hex::encode(family.key.device_group_id().as_bytes());
    let mut phone = family.joins(1).await;
    let mut tablet = family.joins(2).await;
    drop(family.joins(3).await);
    soon(phone.wait_leader()).await.unwrap();

    let list = answers(&server, &["groups"]);
    assert_eq!((&list["awake"], &list["asleep"]), (&1.into(), &0.into()));
    let hash = list["groups"][0]["hash"].as_str().unwrap().to_owned();
    assert_eq!(list["groups"][0]["awake"]["leader"], "0000000000000001");
    assert!(says(&server, &["groups"]).contains(&hash));

    // A lock with something staged under it, and something that waits for whoever is away.
    soon(phone.begin(b"", 90)).await.unwrap();
    soon(phone.reflect_and_wait(b"staged", ReflectFlags::default())).await.unwrap();
    soon(tablet.reflect_and_wait(b"not staged", ReflectFlags::default())).await.unwrap();

    for name in [&hash, &id] {
        let group = answers(&server, &["group", name]);
        assert_eq!((&group["id"], &group["hash"]), (&Value::from(&*id), &Value::from(&*hash)));
        let lock = &group["lock"];
        assert_eq!((&lock["holder"], &lock["staged"]), (&"0000000000000001".into(), &1.into()));
        let left = lock["remaining_ms"].as_u64().unwrap();
        assert!((1..=90_000).contains(&left), "{left}");
        assert_eq!(group["devices"][2]["waiting"], 1);
        assert_eq!(group["devices"][2]["presence"]["state"], "away");
        let said = says(&server, &["group", name]);
        assert!(said.contains("lock     held by 0000000000000001") && said.contains("leads, "), "{said}");

        let why = says(&server, &["explain", name, "2"]);
        assert!(why.contains("It does not lead, because device 0000000000000001 does"), "{why}");
        assert!(why.contains("Device 0000000000000001 has held the lock for"), "{why}");
        assert!(why.contains("What is staged reaches this device with the commit"), "{why}");
        let why = says(&server, &["explain", name, "3"]);
        assert!(why.contains("Device 0000000000000003 is not connected") && why.contains("1 message"), "{why}");
        assert!(says(&server, &["explain", name]).contains("2 of 3 devices are connected."));
        assert!(says(&server, &["explain", name, "4"]).contains("Device 0000000000000004 has no slot"));
    }

    // Asleep, it is found in the store, by both names.
    drop((phone, tablet));
    while !says(&server, &["groups"]).starts_with("0 awake, 1 asleep") {
        tokio::task::yield_now().await;
    }
    let all = answers(&server, &["groups", "--all"]);
    assert_eq!((&all["groups"][0]["devices"], &all["groups"][0]["awake"]), (&3.into(), &Value::Null));
    for name in [&hash, &id] {
        assert!(says(&server, &["explain", name]).contains("0 of 3 devices are connected."));
    }

    assert!(is_refused(&server, &["group", &"11".repeat(32)]).contains("there is no group 1111"));
    assert!(is_refused(&server, &["group", "0123456789ab"]).contains("there is no group 0123456789ab"));
    assert!(is_refused(&server, &["group", "abc"]).contains("names no group"));
    assert!(is_refused(&server, &["group", "../drain"]).contains("names no group"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kicked_device_may_come_back_and_a_dropped_one_is_gone_for_good() {
    let data = tempfile::tempdir().unwrap();
    let dir = data.path().join("data");
    let mut server = Binary::start(&dir);
    let family = Family::new(server.mediator());
    let id = hex::encode(family.key.device_group_id().as_bytes());
    let phone = family.joins(1).await;
    let mut tablet = family.joins(2).await;

    let said = says(&server, &["kick", &id, "2"]);
    assert!(said.contains("ended with 1001"), "{said}");
    assert_eq!(soon(tablet.wait_ended()).await.close_code(), Some(CloseCode::ShuttingDown));
    assert!(is_refused(&server, &["kick", &id, "2"]).contains("is not connected"));
    let mut tablet = family.returns(2).await;

    assert!(says(&server, &["drop", &id, "2"]).contains("was dropped"));
    assert_eq!(soon(tablet.wait_ended()).await.close_code(), Some(CloseCode::Dropped));
    assert!(is_refused(&server, &["drop", &id, "2"]).contains("there is no device 0000000000000002"));
    drop(phone);

    // It was on disk before it was said.
    server.kill();
    let server = Binary::start(&dir);
    let group = answers(&server, &["group", &id]);
    assert_eq!(group["devices"].as_array().unwrap().len(), 1, "{group}");
    assert!(says(&server, &["drop", &id, "1"]).contains("was dropped"), "a group that sleeps is woken for it");
    assert!(is_refused(&server, &["group", &id]).contains("there is no group"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_sessions_with_1001_and_the_process_in_order() {
    let data = tempfile::tempdir().unwrap();
    let mut server = Binary::start(&data.path().join("data"));
    let mut phone = Family::new(server.mediator()).joins(1).await;
    let said = says(&server, &["drain"]);
    assert!(said.contains("drains: 1 connection"), "{said}");
    assert_eq!(soon(phone.wait_ended()).await.close_code(), Some(CloseCode::ShuttingDown));
    assert!(soon(server.ended()).await.success());
}

#[test]
fn what_is_logged_is_changed_while_it_runs() {
    let data = tempfile::tempdir().unwrap();
    let server = Binary::start(&data.path().join("data"));
    assert_eq!(says(&server, &["log"]), "error\n");
    assert_eq!(says(&server, &["log", "info,heliostat::upstream=debug"]), "heliostat::upstream=debug,info\n");
    assert_eq!(answers(&server, &["log"])["filter"], "heliostat::upstream=debug,info");
    assert!(is_refused(&server, &["log", "debig"]).contains("\"debig\" is no level"));
    assert_eq!(says(&server, &["log"]), "heliostat::upstream=debug,info\n");
}

#[test]
fn without_a_token_a_foreign_name_gets_nothing_and_a_foreign_page_changes_nothing() {
    let data = tempfile::tempdir().unwrap();
    let mut server = Binary::start(&data.path().join("data"));
    assert!(asks(&server, "GET /api/groups\nHost: localhost").starts_with("200"));
    for path in ["/", "/events", "/api/groups", "/metrics", "/nowhere"] {
        assert!(asks(&server, &format!("GET {path}\nHost: rebound.example")).starts_with("421"), "{path}");
    }
    assert!(asks(&server, "POST /api/drain\nHost: localhost\nOrigin: http://evil.example").starts_with("403"));
    assert!(asks(&server, "GET /api/drain\nHost: localhost").starts_with("405"), "reading changes nothing");
    assert!(server.runs());
    assert!(asks(&server, "GET /livez\nHost: probe.example").starts_with("200"));
    let page = asks(&server, "GET /\nHost: localhost").to_lowercase();
    assert!(page.contains("content-security-policy: default-src 'none'") && page.contains("nosniff"), "{page}");
}

#[test]
fn with_a_token_everybody_but_supervisors_has_to_know_it() {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let file = file.to_str().unwrap();
    let server = Binary::start_with(&data.path().join("data"), &format!("admin.token = 'file:{file}'\n"));
    for path in ["/", "/dashboard.js", "/events", "/api/groups", "/metrics", "/nowhere"] {
        let answer = asks(&server, &format!("GET {path}\nHost: localhost"));
        assert!(answer.starts_with("401") && answer.to_lowercase().contains("www-authenticate: basic"), "{path}");
    }
    for path in ["/livez", "/readyz"] {
        assert!(asks(&server, &format!("GET {path}\nHost: localhost")).starts_with("200"), "{path}");
    }
    let ready = |more: &str| asks(&server, &format!("GET /readyz\nHost: localhost{more}"));
    assert!(!ready("").contains("version") && !ready("").contains("connections"), "{}", ready(""));
    let authorized = ready(&format!("\nAuthorization: Bearer {TOKEN}"));
    assert!(authorized.contains("version") && authorized.contains("connections"), "{authorized}");
    let metrics = asks(&server, &format!("GET /metrics\nHost: localhost\nAuthorization: Bearer {TOKEN}"));
    assert!(metrics.contains("heliostat_admin_denied_total{why=\"token\"} 6"), "{metrics}");
    assert!(is_refused(&server, &["groups"]).contains("needs its token"));
    assert!(says(&server, &["groups", "--token-file", file]).contains("0 awake"));
    assert!(
        asks(&server, &format!("GET /api/groups\nHost: x.example\nAuthorization: Bearer {TOKEN}")).starts_with("200")
    );
    assert!(asks(&server, &format!("GET /\nHost: x.example\nAuthorization: Bearer {TOKEN}!")).starts_with("401"));
}

#[test]
fn a_check_reads_the_files_of_tls() {
    let dir = tempfile::tempdir().unwrap();
    let (config, cert, key) = (dir.path().join("h.toml"), dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&config, format!("listen = {{ cert = {cert:?}, key = {key:?} }}\n")).unwrap();
    let says = || {
        let output = check(&config);
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let (fine, said) = says();
    assert!(!fine && said.contains("cert.pem"), "{said}");
    let rcgen::CertifiedKey { cert: made, signing_key } =
        rcgen::generate_simple_self_signed(vec!["chat.example.org".to_owned()]).unwrap();
    std::fs::write(&cert, made.pem()).unwrap();
    std::fs::write(&key, "no key").unwrap();
    let (fine, said) = says();
    assert!(!fine && said.contains("key.pem"), "{said}");
    std::fs::write(&key, signing_key.serialize_pem()).unwrap();
    assert!(says().0, "{}", says().1);
}

#[test]
fn off_loopback_the_admin_door_needs_a_token() {
    let refused = |more: &str| {
        let data = tempfile::tempdir().unwrap();
        let config = data.path().join("heliostat.toml");
        std::fs::write(&config, format!("[admin]\nlisten = '0.0.0.0:0'\n{more}")).unwrap();
        check(&config)
    };
    let output = refused("");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("without `admin.token`"), "{said}");
    assert!(refused(&format!("token = '{TOKEN}'\n")).status.success());
    assert_eq!(refused("token = 'short'\n").status.code(), Some(1));
}

fn check(config: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
    command.args(["config", "check", "--config"]).arg(config).output().unwrap()
}

/// Somebody who looks at the dashboard: reads until a line begins like this.
struct Viewer(std::io::BufReader<std::net::TcpStream>);

impl Viewer {
    fn opens(server: &Binary) -> Self {
        use std::io::Write as _;
        let authority = server.admin().trim_start_matches("http://").trim_end_matches('/');
        let mut stream = std::net::TcpStream::connect(authority).unwrap();
        stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
        write!(stream, "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        Self(std::io::BufReader::new(stream))
    }

    fn reads(&mut self, beginning: &str) -> String {
        use std::io::BufRead as _;
        loop {
            let mut line = String::new();
            assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "the stream ended before {beginning:?}");
            if line.starts_with(beginning) {
                return line;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_are_made_for_a_bounded_number_of_viewers_and_end_with_the_server() {
    let data = tempfile::tempdir().unwrap();
    let mut server = Binary::start(&data.path().join("data"));
    let _phone = Family::new(server.mediator()).joins(1).await;
    let mut viewers: Vec<Viewer> = (0..16).map(|_| Viewer::opens(&server)).collect();
    for viewer in &mut viewers {
        assert!(viewer.reads("HTTP/1.1").contains("200"));
        assert_eq!(viewer.reads("event: ").trim(), "event: history");
    }
    assert!(Viewer::opens(&server).reads("HTTP/1.1").contains("503"));
    let snapshots = viewers.iter_mut().map(|viewer| {
        assert_eq!(viewer.reads("event: ").trim(), "event: snapshot");
        viewer.reads("data: ")
    });
    let snapshots: std::collections::BTreeSet<String> = snapshots.collect();
    assert!(snapshots.len() <= 2, "made once for all: {snapshots:?}");
    let snapshot: Value = serde_json::from_str(snapshots.first().unwrap().trim_start_matches("data: ")).unwrap();
    assert_eq!((&snapshot["connections"], &snapshot["groups"]["awake"]), (&1.into(), &1.into()));

    // Whoever leaves makes room, and whoever comes later sees what was.
    viewers.truncate(8);
    let mut late = loop {
        let mut viewer = Viewer::opens(&server);
        if viewer.reads("HTTP/1.1").contains("200") {
            break viewer;
        }
    };
    let history: Value = serde_json::from_str(late.reads("data: ").trim_start_matches("data: ")).unwrap();
    assert!(!history.as_array().unwrap().is_empty());

    // Viewers do not hold up the end.
    assert!(soon(server.stop()).await.success());
}
