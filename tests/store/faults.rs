//! What only a server somewhere else can do to a store: hang, break, restart, and serve another node meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use heliostat::group::record::{Seq, SlotRecord, Write};
use heliostat::store::postgres::{PostgresError, Settings};
use heliostat::store::{Owner, PostgresStore, SEQ_MAX, Standing, Store, StoreError, Taken, Tenure};
use heliostat::time::Clock;
use heliostat::wire::d2m::DeviceGroupId;

use super::super::{append, entry, group, id, set, slot, whole_log};
use super::{LEASE, Place, node_at, taken};

/// Short, for stories in which it is lost.
const SHORT: Duration = Duration::from_millis(1_500);
/// For stories that wait for renewals, on a machine that may be busy.
const MEDIUM: Duration = Duration::from_millis(2_400);
/// How often a story looks whether something has come about.
const LOOK: Duration = Duration::from_millis(10);

/// Takes a group as soon as it can be had.
async fn taken_at_last(store: &PostgresStore, group: DeviceGroupId) -> Tenure {
    loop {
        match store.take(group).await {
            Ok(Taken::Here(tenure)) => return tenure,
            Ok(Taken::Elsewhere(_)) | Err(_) => tokio::time::sleep(LOOK).await,
            Ok(Taken::Alone) => panic!("there are others"),
        }
    }
}

async fn until(tenure: &mut Tenure, standing: Standing) {
    while tenure.standing() != standing {
        tenure.changed().await;
    }
}

async fn until_leased(store: &PostgresStore) {
    store.lease().wait_for(|lease| *lease == Standing::Held).await.unwrap();
}

fn by(seq: u64, origin: u64) -> Vec<Write> {
    vec![Write::Append(entry(seq, origin, &[1; 10]))]
}

/// Seqs and origins of what is kept.
async fn log_of(store: &dyn Store, group: DeviceGroupId) -> Vec<(u64, u64)> {
    let page = store.page(group, Seq(0), SEQ_MAX, usize::MAX).await.unwrap();
    page.entries.iter().map(|entry| (entry.seq.0, entry.origin.0)).collect()
}

async fn admin(place: &Place) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(&place.url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

pub(super) async fn a_group_is_one_nodes_at_a_time(place: Place) {
    let (a, b) = (place.node("a", LEASE).await, place.node("b", LEASE).await);
    assert_eq!(a.commit(id(1), vec![group(1)]).await, Err(StoreError::Lost), "nothing without having taken it");
    let first = taken(&a, id(1)).await;
    a.commit(id(1), vec![group(1), append(1, 1)]).await.unwrap();
    let owner = Owner { node: a.node().unwrap(), name: "a".to_owned(), address: "a:1".to_owned() };
    assert!(matches!(b.take(id(1)).await, Ok(Taken::Elsewhere(elsewhere)) if elsewhere == owner));
    assert_eq!(b.owner(id(1)).await, Ok(Some(owner)));
    assert_eq!(b.owner(id(2)).await, Ok(None));
    assert_eq!(b.nodes().await.unwrap().into_iter().map(|node| node.name).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(b.prove(id(1)).await, Err(StoreError::Lost));
    assert_eq!((a.prove(id(1)).await, a.probe().await), (Ok(()), Ok(())));

    let again = taken(&a, id(1)).await;
    assert!(again.epoch() > first.epoch());
    assert_eq!((first.standing(), again.standing()), (Standing::Lost, Standing::Held));
    a.give_up(id(1), first).await.unwrap();
    assert_eq!(a.prove(id(1)).await, Ok(()), "a tenure that is over cannot be given up");

    a.give_up(id(1), again).await.unwrap();
    assert_eq!(a.commit(id(1), vec![append(2, 1)]).await, Err(StoreError::Lost));
    let third = taken(&b, id(1)).await;
    b.commit(id(1), vec![append(2, 2)]).await.unwrap();
    assert_eq!(log_of(&*a, id(1)).await, [(1, 1), (2, 2)]);

    // A node that ends in order is not waited for.
    b.close().await.unwrap();
    assert_eq!(third.standing(), Standing::Lost);
    assert_eq!(b.commit(id(1), vec![append(3, 2)]).await, Err(StoreError::Lost));
    assert_eq!((b.close().await, b.load(id(1)).await), (Err(StoreError::Closed), Err(StoreError::Closed)));
    let _fourth = taken(&a, id(1)).await;
    a.close().await.unwrap();
}

pub(super) async fn a_node_that_hung_for_longer_than_its_lease_keeps_nothing(place: Place) {
    let relay = place.relay().await;
    let a = node_at(&relay.url(&place.url), "a", SHORT).await;
    let b = place.node("b", LEASE).await;
    let mut tenure = taken(&a, id(1)).await;
    a.commit(id(1), [vec![group(9)], by(1, 1)].concat()).await.unwrap();
    // What it says now is on its way for as long as the network hangs, and arrives after the group is another's.
    relay.freeze();
    let late = tokio::spawn({
        let a = Arc::clone(&a);
        async move { a.commit(id(1), by(7, 1)).await }
    });
    let _b_has_it = taken_at_last(&b, id(1)).await;
    assert_eq!(log_of(&*b, id(1)).await, [(1, 1)]);
    until(&mut tenure, Standing::Lost).await;
    b.commit(id(1), by(2, 2)).await.unwrap();
    assert!(late.await.unwrap().is_err());
    relay.heal();
    // Those it gave up end once all of it has arrived; it opens others then.
    until_leased(&a).await;
    assert_eq!(a.commit(id(1), by(3, 1)).await, Err(StoreError::Lost));
    let answer = loop {
        match a.take(id(1)).await {
            // Such a short one may be lost again at once.
            Err(StoreError::Lost) => until_leased(&a).await,
            answer => break answer,
        }
    };
    assert!(matches!(answer, Ok(Taken::Elsewhere(owner)) if owner.name == "b"));
    b.commit(id(1), by(3, 2)).await.unwrap();
    a.close().await.unwrap();
    relay.until_open(0).await;
    assert_eq!(log_of(&*b, id(1)).await, [(1, 1), (2, 2), (3, 2)]);
    b.close().await.unwrap();
}

/// The fence alone, without any clock of the node's: it thinks that it has its lease still.
pub(super) async fn a_node_that_was_buried_hears_it_with_its_next_commit(place: Place) {
    let a = place.node("a", LEASE).await;
    let mut tenure = taken(&a, id(1)).await;
    a.commit(id(1), vec![group(9), append(1, 1)]).await.unwrap();
    let before = a.node().unwrap();
    admin(&place).await.execute("DELETE FROM nodes WHERE node = $1", &[&before.0]).await.unwrap();
    assert_eq!(tenure.standing(), Standing::Held, "nobody told it");
    assert_eq!(a.commit(id(1), vec![append(2, 1)]).await, Err(StoreError::Lost));
    until(&mut tenure, Standing::Lost).await;
    until_leased(&a).await;
    assert!(a.node().unwrap() > before, "under another number");
    let _again = taken(&a, id(1)).await;
    assert_eq!(whole_log(&*a, id(1)).await, [1]);
    a.commit(id(1), vec![append(2, 1)]).await.unwrap();
    a.close().await.unwrap();
}

/// A transaction that was sent, and waits in the server when its connection breaks, is kept later: but not after the group was
/// loaded again.
pub(super) async fn what_became_of_a_commit_is_decided_before_the_group_is_taken_again(place: Place) {
    let relay = place.relay().await;
    let a = node_at(&relay.url(&place.url), "a", LEASE).await;
    let mut tenure = taken(&a, id(1)).await;
    a.commit(id(1), vec![group(9), append(1, 1)]).await.unwrap();
    // What is seen of others' doings stays the same within a transaction: one looks on, the other is in the way.
    let (watcher, mut admin) = (admin(&place).await, admin(&place).await);
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT INTO log%'
        AND state = 'active'";
    for (seq, takes) in [(2_u32, true), (3, false)] {
        // An insert of the same key waits for this one to be decided.
        let held = admin.transaction().await.unwrap();
        let contested = id(1);
        let bytes = &contested.as_bytes()[..];
        held.execute("INSERT INTO log VALUES ($1, $2, 0, 0, '', '')", &[&bytes, &i64::from(seq)]).await.unwrap();
        let asked = tokio::spawn({
            let a = Arc::clone(&a);
            async move { a.commit(id(1), vec![append(u64::from(seq), 1)]).await }
        });
        while watcher.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            tokio::time::sleep(LOOK).await;
        }
        relay.lose_client();
        assert!(matches!(asked.await.unwrap(), Err(StoreError::Failed(_))));
        let next = Arc::clone(&a);
        let given_up = tenure;
        let mut going_on = tokio::spawn(async move {
            if !takes {
                // Another node could have it as soon as this returns.
                next.give_up(id(1), given_up).await.unwrap();
            }
            taken(&next, id(1)).await
        });
        let early = tokio::time::timeout(Duration::from_millis(200), &mut going_on).await;
        assert!(early.is_err(), "taken while a commit was undecided");
        held.rollback().await.unwrap();
        tenure = going_on.await.unwrap();
        assert_eq!(whole_log(&*a, id(1)).await.len() as u64, u64::from(seq), "it was kept, and is seen at once");
    }
    drop(tenure);
    a.close().await.unwrap();
}

pub(super) async fn nothing_that_was_answered_is_lost_with_a_connection(place: Place) {
    let relay = place.relay().await;
    let url = format!("{}&application_name={}_a", relay.url(&place.url), place.name);
    let a = node_at(&url, "a", LEASE).await;
    let killer = admin(&place).await;
    let mut tenure = taken(&a, id(1)).await;
    a.commit(id(1), vec![group(9)]).await.unwrap();
    let (mut answered, mut failures, mut seq) = (Vec::new(), 0, 0);
    for round in 0..80_u64 {
        let next = seq + 1;
        let mut asked = Box::pin(a.commit(id(1), by(next, round)));
        // Sometimes before it was sent, sometimes while it is under way, sometimes behind it.
        let early = tokio::time::timeout(Duration::from_micros(round % 12 * 150), &mut asked).await;
        match round % 4 {
            0 => relay.cut(),
            1 => {
                let all =
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname =
                    current_database() AND application_name = current_setting('search_path') || '_a'";
                killer.execute(all, &[]).await.unwrap();
            }
            _ => {}
        }
        let answer = match early {
            Ok(answer) => answer,
            Err(_) => asked.await,
        };
        match answer {
            Ok(()) => answered.push((next, round)),
            Err(error) => {
                assert!(matches!(error, StoreError::Failed(_)), "{error}");
                failures += 1;
                tenure = taken_at_last(&a, id(1)).await;
            }
        }
        // What is kept now will be for ever: all that was answered, and of the rest at most the last.
        let log = log_of(&*a, id(1)).await;
        assert!(answered.iter().all(|entry| log.contains(entry)), "{answered:?} of {log:?}");
        assert!(log.iter().map(|entry| entry.0).eq(1..=log.len() as u64), "{log:?}");
        assert!(log.len() as u64 <= next, "{log:?}");
        seq = log.len() as u64;
    }
    assert!(failures > 0, "something was broken");
    drop(tenure);
    a.close().await.unwrap();
}

pub(super) async fn one_bad_commit_among_many_fails_alone(place: Place) {
    let a = place.node("a", LEASE).await;
    let tenures = join_all((0..33).map(|n| taken(&a, id(n)))).await;
    a.commit(id(0), vec![group(64), append(1, 1)]).await.unwrap();
    let lost = tenures.into_iter().nth(1).unwrap();
    admin(&place)
        .await
        .execute("UPDATE owners SET epoch = epoch + 1000 WHERE device_group_id = $1", &[&&id(1).as_bytes()[..]])
        .await
        .unwrap();
    // The writer is busy with the first while the others gather.
    let answers = join_all((0..33).map(|n| a.commit(id(n), vec![if n == 0 { append(1, 1) } else { group(64) }]))).await;
    for (n, answer) in answers.into_iter().enumerate() {
        match n {
            0 => assert!(matches!(answer, Err(StoreError::Refused(_))), "{answer:?}"),
            1 => assert_eq!(answer, Err(StoreError::Lost)),
            _ => assert_eq!(answer, Ok(()), "{n}"),
        }
    }
    assert_eq!(lost.standing(), Standing::Held, "whoever is told is the one who asked");
    assert!(!a.condition().failing);
    a.close().await.unwrap();
}

pub(super) async fn who_wants_a_group_gets_it(place: Place) {
    let (a, b) = (place.node("a", MEDIUM).await, place.node("b", MEDIUM).await);
    let mut tenure = taken(&a, id(1)).await;
    a.commit(id(1), vec![group(9)]).await.unwrap();
    b.want(id(1), a.node().unwrap()).await.unwrap();
    until(&mut tenure, Standing::Wanted).await;
    a.commit(id(1), vec![append(1, 1)]).await.unwrap();
    a.give_up(id(1), tenure).await.unwrap();
    let tenure = taken(&b, id(1)).await;
    b.commit(id(1), vec![append(2, 2)]).await.unwrap();
    // Whoever had it is gone without a word, though its node is not.
    drop(tenure);
    let _tenure = taken_at_last(&a, id(1)).await;
    // Nor does it help to have forgotten that one has it.
    let (client, node) = (admin(&place).await, b.node().unwrap());
    client.execute("INSERT INTO owners VALUES ($1, $2, 0)", &[&&id(2).as_bytes()[..], &node.0]).await.unwrap();
    assert!(matches!(a.take(id(2)).await, Ok(Taken::Elsewhere(_))));
    a.want(id(2), node).await.unwrap();
    let _other = taken_at_last(&a, id(2)).await;
    assert_eq!(whole_log(&*a, id(1)).await, [1, 2]);
    a.close().await.unwrap();
    b.close().await.unwrap();
}

/// Whatever the nodes' clocks say, and however far apart.
pub(super) async fn a_lease_is_kept_by_the_databases_clock_alone(place: Place) {
    let at = |name: &str, clock| Settings {
        url: place.url.clone(),
        name: name.to_owned(),
        address: String::new(),
        lease: MEDIUM,
        clock,
    };
    let a = PostgresStore::open(at("a", Clock::following(0))).await.unwrap();
    let b = PostgresStore::open(at("b", Clock::following(4_102_444_800_000))).await.unwrap();
    let tenure = taken(&a, id(1)).await;
    a.commit(id(1), vec![group(9)]).await.unwrap();
    let clock = Clock::system();
    let began = clock.now().monotonic;
    let mut seq = 0;
    while clock.now().monotonic.saturating_sub(began) < 2 * MEDIUM {
        assert!(matches!(b.take(id(1)).await, Ok(Taken::Elsewhere(_))));
        seq += 1;
        a.commit(id(1), vec![append(seq, 1)]).await.unwrap();
        tokio::time::sleep(LOOK).await;
    }
    assert_eq!(tenure.standing(), Standing::Held);
    // It leaves by itself, though nobody waits for that.
    drop(a);
    let _taken = taken_at_last(&b, id(1)).await;
    assert_eq!(whole_log(&*b, id(1)).await.len() as u64, seq);
    b.close().await.unwrap();
}

/// Nobody writes down who was connected to a node that is gone. Its groups are found all the same, and that they are not.
pub(super) async fn groups_of_a_node_that_is_gone_fall_due(place: Place) {
    let (a, b) = (place.node("a", LEASE).await, place.node("b", LEASE).await);
    let online = |connected| Write::Slot(SlotRecord { connected, ..slot(1) });
    for n in [1, 2, 3] {
        let tenure = taken(&a, id(n)).await;
        a.commit(id(n), vec![group(9), online(n != 3)]).await.unwrap();
        if n == 1 {
            a.give_up(id(n), tenure).await.unwrap();
        }
    }
    assert_eq!(b.due(0, None, 9).await.unwrap(), [id(1)], "the others have somebody");
    assert_eq!(b.due(0, Some(u64::MAX), 9).await.unwrap(), [id(1)], "who looks after all of its slots");
    a.close().await.unwrap();
    let mut due = b.due(0, None, 9).await.unwrap();
    due.sort_unstable();
    assert_eq!(due, [id(1), id(2)]);
    for group in due {
        let tenure = taken(&b, group).await;
        assert!(b.load(group).await.unwrap().unwrap().slots[0].record.connected, "as it was left");
        b.commit(group, vec![online(false)]).await.unwrap();
        b.give_up(group, tenure).await.unwrap();
    }
    assert_eq!(b.due(0, None, 9).await.unwrap(), []);
    assert_eq!(b.due(0, Some(u64::MAX), 9).await.unwrap().len(), 3);
    b.close().await.unwrap();
}

pub(super) async fn nodes_that_begin_together_make_the_tables_once(place: Place) {
    let nodes = join_all((0..4).map(|_| place.node("one", LEASE))).await;
    let mut numbers: Vec<_> = nodes.iter().map(|node| node.node().unwrap()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 4);
    join_all(nodes.iter().map(|node| node.close())).await.into_iter().for_each(|closed| closed.unwrap());
    let client = admin(&place).await;
    let left: i64 = client.query_one("SELECT count(*) FROM nodes", &[]).await.unwrap().get(0);
    assert_eq!(left, 0);
    let open = || {
        let url = place.url.clone();
        PostgresStore::open(Settings {
            url,
            name: String::new(),
            address: String::new(),
            lease: LEASE,
            clock: Clock::system(),
        })
    };
    client.execute("UPDATE heliostat_schema SET version = 2", &[]).await.unwrap();
    let refused = open().await.unwrap_err();
    assert!(matches!(refused, PostgresError::Newer { found: 2, known: 1 }), "{refused}");
    client.batch_execute("DROP TABLE heliostat_schema").await.unwrap();
    let refused = open().await.unwrap_err();
    assert!(matches!(refused, PostgresError::NotOurs), "{refused}");
}

pub(super) async fn a_changed_row_is_found_on_reading(place: Place) {
    let a = place.node("a", LEASE).await;
    let client = admin(&place).await;
    let flips = [
        ("UPDATE log SET envelope = '0123456789'", false),
        ("UPDATE log SET origin = origin + 1", false),
        ("UPDATE log SET timestamp_ms = timestamp_ms + 1", false),
        ("UPDATE log SET seq = seq + 1", false),
        ("UPDATE log SET seal = ''", false),
        ("UPDATE groups SET seq_reserved = 3", true),
        ("UPDATE groups SET shared_device_data = ''", true),
        ("UPDATE slots SET cursor = 1", true),
        ("UPDATE slots SET device_info = '1'", true),
        ("UPDATE slots SET device = 8", true),
        ("UPDATE slots SET acked = '1'", true),
    ];
    for (n, (flip, on_load)) in (1..).zip(flips) {
        let _tenure = taken(&a, id(n)).await;
        let known = SlotRecord { acked: set([1]), ..slot(1) };
        a.commit(id(n), vec![group(64), Write::Slot(known), append(1, 2)]).await.unwrap();
        let changed = client.execute(&format!("{flip} WHERE device_group_id = $1"), &[&&id(n).as_bytes()[..]]).await;
        assert_eq!(changed.unwrap(), 1);
        let loaded = a.load(id(n)).await;
        assert_eq!(matches!(loaded, Err(StoreError::Damaged(_))), on_load, "{flip}: {loaded:?}");
        let page = a.page(id(n), Seq(0), Seq(9), 100).await;
        let on_page = !on_load || flip.contains("UPDATE groups");
        assert_eq!(matches!(page, Err(StoreError::Damaged(_))), on_page, "{flip}: {page:?}");
    }
    // A row in another group's place is none of its own.
    for n in [101, 102] {
        let _tenure = taken(&a, id(n)).await;
        a.commit(id(n), vec![group(64), append(u64::from(n), 2)]).await.unwrap();
    }
    let (from, to) = (id(101), id(102));
    let moved: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&&from.as_bytes()[..], &&to.as_bytes()[..]];
    client.execute("UPDATE log SET device_group_id = $2 WHERE device_group_id = $1", &moved).await.unwrap();
    assert!(matches!(a.page(to, Seq(0), SEQ_MAX, 9_999).await, Err(StoreError::Damaged(_))));
    assert!(matches!(a.back_up(std::path::Path::new("/")), Err(StoreError::Refused(why)) if why.contains("pg_dump")));
    a.close().await.unwrap();
}

pub(super) async fn what_is_not_certified_is_not_spoken_to(place: Place) {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (ours, other) = (dir.path().join("ours.pem"), dir.path().join("other.pem"));
    std::fs::write(&ours, certified.cert.pem()).unwrap();
    std::fs::write(&other, rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap().cert.pem()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(heliostat::net::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let (port, _serving) = place.encrypted(config).await;
    let url = |host: &str, more: &str| {
        let options = place.url.rsplit_once("options=").unwrap().1;
        format!("postgres://postgres:hunter2@{host}:{port}/stories?{more}&options={options}")
    };
    let a =
        node_at(&url("localhost", &format!("sslmode=verify-full&sslrootcert={}", ours.display())), "a", LEASE).await;
    let _tenure = taken(&a, id(1)).await;
    a.commit(id(1), vec![group(9), append(1, 1)]).await.unwrap();
    assert_eq!(whole_log(&*a, id(1)).await, [1]);
    a.close().await.unwrap();
    let (ours, other) = (ours.display(), other.display());
    for (host, more) in [
        ("localhost", format!("sslmode=require&sslrootcert={other}")),
        ("127.0.0.1", format!("sslmode=require&sslrootcert={ours}")),
        ("localhost", "sslmode=require".to_owned()),
        ("localhost", "sslmode=prefer".to_owned()),
        ("localhost", format!("sslmode=require&sslrootcert={}", dir.path().join("none").display())),
    ] {
        let settings = Settings {
            url: url(host, &more),
            name: String::new(),
            address: String::new(),
            lease: LEASE,
            clock: Clock::system(),
        };
        let refused = PostgresStore::open(settings).await.unwrap_err();
        let told = format!("{refused} {refused:?}");
        assert!(told.to_lowercase().contains("certificate"), "{more}: {told}");
        assert!(!told.contains("hunter2"), "{told}");
    }
}

/// Told last: the others' server is the same.
pub(super) async fn a_restart_of_the_server_loses_nothing_and_ends_nobody(place: Place) {
    let a = place.node("a", LEASE).await;
    let mut tenure = taken(&a, id(1)).await;
    a.commit(id(1), vec![group(9), append(1, 1)]).await.unwrap();
    place.restart().await;
    // The connection had nothing under way, and its end was seen before anything was sent on it.
    a.commit(id(1), vec![append(2, 1)]).await.unwrap();
    assert_eq!(whole_log(&*a, id(1)).await, [1, 2]);
    assert_eq!(tenure.standing(), Standing::Held, "shorter than the lease");
    let is_over = Arc::new(AtomicBool::new(false));
    let asking = tokio::spawn({
        let (a, is_over) = (Arc::clone(&a), Arc::clone(&is_over));
        async move {
            let mut seq = 2;
            // One that is under way fails; one that finds nobody there waits for the server, and nothing may fail at all then.
            while !is_over.load(Ordering::Relaxed) && a.commit(id(1), vec![append(seq + 1, 1)]).await.is_ok() {
                seq += 1;
            }
            seq
        }
    });
    place.restart().await;
    is_over.store(true, Ordering::Relaxed);
    let answered = asking.await.unwrap();
    tenure = taken_at_last(&a, id(1)).await;
    let kept = whole_log(&*a, id(1)).await.len() as u64;
    assert!((answered..=answered + 1).contains(&kept), "{kept} of {answered}");
    a.give_up(id(1), tenure).await.unwrap();
    a.close().await.unwrap();
}
