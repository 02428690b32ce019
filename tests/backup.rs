//! A backup of the real server while it works, and another server that goes on with it. And a store that is moved to others.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may panic")]

#[path = "common/binary.rs"]
mod binary;
mod common;
#[path = "common/postgres.rs"]
mod postgres;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use heliostat::client::Device;
use heliostat::store::PostgresStore;
use heliostat::store::postgres::Settings;
use heliostat::time::Clock;
use heliostat::wire::d2m::ReflectFlags;

use self::binary::Binary;
use self::common::{Family, reflected, soon};
use self::postgres::Postgres;

/// Acknowledged before the backup begins.
const BEFORE: u32 = 200;
/// The embedded chat server runs, too.
const CSP: &str = "chat.csp = { enabled = true, listen = '127.0.0.1:0' }\n";

fn heliostat(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
    command.args(args).env("HELIOSTAT_LOG", "warn").stdin(Stdio::null());
    command.env_remove("HELIOSTAT_ADMIN_TOKEN_FILE").env_remove("HELIOSTAT__ADMIN__LISTEN");
    command
}

fn back_up(server: &Binary, to: &Path) -> Output {
    heliostat(&["admin", "backup", to.to_str().unwrap(), "--admin", server.admin()]).output().unwrap()
}

async fn reflects(device: &mut Device, n: u32) {
    soon(device.reflect_and_wait(&n.to_be_bytes(), ReflectFlags::default())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_was_acknowledged_before_a_backup_began_is_in_it_and_nobody_notices_it_being_made() {
    let dir = tempfile::tempdir().unwrap();
    let [data, copy] = ["data", "copy"].map(|name| dir.path().join(name));
    let mut server = Binary::start_with(&data, CSP);
    let made = heliostat(&["identity", "new", "ABCD1234", "--data", data.to_str().unwrap()]).output().unwrap();
    assert!(made.status.success(), "{made:?}");

    // A tablet that is away, and a phone that speaks all the time; beside them a crowd, with chat.
    let family = Family::new(server.mediator());
    drop(family.joins(2).await);
    let mut phone = family.joins(1).await;
    for n in 0..BEFORE {
        reflects(&mut phone, n).await;
    }
    let mut crowd = heliostat(&["simulate", "--groups", "5", "--devices", "3", "--messages", "60", "--pause", "50ms"]);
    crowd.args(["--url", server.url(), "--data", data.to_str().unwrap()]);
    let crowd = crowd.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();

    let speaks = async {
        let mut said = BEFORE;
        loop {
            reflects(&mut phone, said).await;
            said += 1;
        }
    };
    let (admin, to) = (server.admin().to_owned(), copy.to_str().unwrap().to_owned());
    let backing_up =
        tokio::task::spawn_blocking(move || heliostat(&["admin", "backup", &to, "--admin", &admin]).output());
    let output = tokio::select! {
        never = speaks => never,
        output = soon(backing_up) => output.unwrap().unwrap(),
    };
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("holds everything"), "{output:?}");
    assert!(!back_up(&server, &copy).status.success(), "nothing is overwritten");
    let crowd = soon(tokio::task::spawn_blocking(move || crowd.wait_with_output())).await.unwrap().unwrap();
    assert!(crowd.status.success(), "{crowd:?}");
    server.kill();

    // Another machine, another address: it goes on with what was kept.
    let restored = Binary::start_with(&copy, CSP);
    let family = Family { key: family.key, url: restored.mediator() };
    let mut tablet = soon(Device::connect(&family.url, &family.config(2).existing())).await.unwrap();
    let waiting = tablet.server_info().reflection_queue_length;
    assert!(waiting >= BEFORE, "{waiting}");
    for n in 0..waiting {
        assert_eq!(reflected(&mut tablet).await, n.to_be_bytes(), "in order and without a gap");
    }
    soon(tablet.wait_dry()).await.unwrap();
    let listed = heliostat(&["identity", "list", "--data", copy.to_str().unwrap()]).output().unwrap();
    assert!(String::from_utf8_lossy(&listed.stdout).contains("ABCD1234"), "{listed:?}");
    let key = |dir: &Path| std::fs::read(dir.join("csp-server.key")).unwrap();
    assert_eq!(key(&data), key(&copy), "clients know the chat server by its key");
}

/// What `store copy` says of both sides.
fn copy(from: &str, to: &str) -> String {
    let output = heliostat(&["store", "copy", from, to]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    let shown = |place: &str| place.split('?').next().unwrap().replace("postgres@", "");
    assert!(said.contains(&format!("{} holds the same as {}", shown(to), shown(from))), "{said}");
    said.lines().next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_moved_has_everything_for_everybody() {
    let dir = tempfile::tempdir().unwrap();
    let [data, moved] = ["data", "moved"].map(|name| dir.path().join(name));
    let mut server = Binary::start(&data);
    let family = Family::new(server.mediator());
    drop(family.joins(2).await);
    let mut phone = family.joins(1).await;
    for n in 0..BEFORE {
        reflects(&mut phone, n).await;
    }
    // Others, in which one device is away, one has everything, and one got none of it because it said it.
    let mut others = Vec::new();
    for n in 1..=4 {
        let other = Family::new(server.mediator());
        drop(other.joins(2).await);
        let (mut listens, mut speaks) = (other.joins(3).await, other.joins(1).await);
        for _ in 0..10 * n {
            soon(speaks.reflect_and_wait(&vec![7; 2_000 * n], ReflectFlags::default())).await.unwrap();
            reflected(&mut listens).await;
        }
        others.push((listens, speaks));
    }
    let place = |dir: &Path| format!("sqlite:{}", dir.display());
    let refused = heliostat(&["store", "copy", &place(&data), &place(&moved)]).output().unwrap();
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && why.contains("a server is running on"), "{why}");
    // As a crash leaves it, with a slot that was connected.
    server.kill();
    drop((phone, others));

    // Into a database and out of it again, where there is one.
    let said = match Postgres::start() {
        Some(postgres) => {
            let database = postgres.database("moved");
            let there = copy(&place(&data), &database);
            let node = PostgresStore::open(Settings {
                url: database.clone(),
                name: "east-1".to_owned(),
                address: "127.0.0.1:1".to_owned(),
                lease: Duration::from_secs(10),
                clock: Clock::system(),
            });
            let node = node.await.unwrap();
            let refused = heliostat(&["store", "copy", &database, &place(&moved)]).output().unwrap();
            let why = String::from_utf8_lossy(&refused.stderr);
            assert!(!refused.status.success() && why.contains("the node east-1 is running on it"), "{why}");
            node.close().await.unwrap();
            assert_eq!(copy(&database, &place(&moved)), there, "the same, to the last byte");
            assert_eq!(
                heliostat(&["store", "copy", &place(&data), &database]).status().unwrap().code(),
                Some(1),
                "not empty any more"
            );
            there
        }
        None => {
            assert!(
                std::env::var_os("HELIOSTAT_REQUIRE_POSTGRES").is_none(),
                "PostgreSQL is required and not installed"
            );
            copy(&place(&data), &place(&moved))
        }
    };
    assert!(said.starts_with(&format!("5 groups, 14 slots, {} messages", BEFORE + 100)), "{said}");
    let server = Binary::start(&moved);
    let family = Family { key: family.key, url: server.mediator() };
    let mut tablet = soon(Device::connect(&family.url, &family.config(2).existing())).await.unwrap();
    for n in 0..BEFORE {
        assert_eq!(reflected(&mut tablet).await, n.to_be_bytes(), "in order");
    }
    let mut phone = family.returns(1).await;
    reflects(&mut phone, BEFORE).await;
    assert_eq!(reflected(&mut tablet).await, BEFORE.to_be_bytes(), "and it goes on");
}
