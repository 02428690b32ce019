//! What is kept, and for how long: the store holds what is not acknowledged and little else, and slots end when their time
//! is over, also of groups that sleep and across restarts and crashes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{Family, Server, Setup, mediate, plain, reflected, soon};
use heliostat::client::{ConnectError, Device, DeviceConfig};
use heliostat::group::Limits;
use heliostat::server::Mediator;
use heliostat::store::{Durability, SqliteStore, Store};
use heliostat::time::Clock;
use heliostat::wire::d2m::{
    CloseCode, Envelope, FromDevice, Reflect, ReflectFlags, ReflectId, SlotExpiration, ToDevice,
};

// ---- space

const MIB: u64 = 1_024 * 1_024;
/// What may stay when nothing is waiting: the free pages that are kept for later, and what a group itself takes.
const SMALL: u64 = 5 * MIB;
/// The write-ahead log between two checkpoints, with all that may go into one transaction.
const WAL_MOST: u64 = 20 * MIB;

fn size(dir: &Path, file: &str) -> u64 {
    std::fs::metadata(dir.join(file)).map_or(0, |file| file.len())
}

async fn is_small_again(dir: &Path) {
    let small = async {
        while size(dir, "mediator.sqlite") > SMALL {
            tokio::task::yield_now().await;
        }
    };
    let shrunk = tokio::time::timeout(common::PATIENCE, small).await;
    assert!(shrunk.is_ok(), "{} bytes are kept for nothing", size(dir, "mediator.sqlite"));
}

/// Reflects so many messages of 60 000 bytes, sixteen at a time.
async fn drives(sender: &mut Device, messages: u32) {
    for batch in 0..messages / 16 {
        for n in 1..=16 {
            let (reflect_id, envelope) = (ReflectId(batch * 16 + n), Envelope::copy_from(&[5; 60_000]));
            sender
                .send(&FromDevice::Reflect(Reflect { flags: ReflectFlags::default(), reflect_id, envelope }))
                .await
                .unwrap();
        }
        for n in 1..=16 {
            soon(sender.wait_reflect_ack(ReflectId(batch * 16 + n))).await.unwrap();
        }
    }
}

async fn acks(receiver: &mut Device, messages: u32) {
    for _ in 0..messages {
        let next = soon(receiver.wait_for(|payload| matches!(payload, ToDevice::Reflected(_)))).await.unwrap();
        let ToDevice::Reflected(message) = next else { unreachable!() };
        receiver.ack(message.id()).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_acknowledged_takes_no_space() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), Setup::default()).await;
    let family = Family::new(server.url());
    let (mut a, mut b) = (family.joins(1).await, family.joins(2).await);
    // 57 MiB, of which at most a second's worth waits at a time.
    let mut most = (0, 0);
    for _ in 0..10 {
        let ((), ()) = futures_util::future::join(drives(&mut a, 96), acks(&mut b, 96)).await;
        most = (most.0.max(size(dir.path(), "mediator.sqlite")), most.1.max(size(dir.path(), "mediator.sqlite-wal")));
    }
    assert!(most.1 < WAL_MOST, "a write-ahead log of {} bytes", most.1);
    is_small_again(dir.path()).await;
    println!("at most {most:?} bytes of database and log, {} at the end", size(dir.path(), "mediator.sqlite"));
    // What was not given back yet when the server stopped is given back by the next, and nothing in a log hides it.
    server.stop().await;
    let server = Server::start(dir.path(), Setup::default()).await;
    is_small_again(dir.path()).await;
    server.stop().await;
    assert!(size(dir.path(), "mediator.sqlite") <= SMALL);
}

#[tokio::test]
async fn what_waited_for_a_device_gives_its_space_back_when_the_device_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), Setup::default()).await;
    let family = Family::new(server.url());
    let mut a = family.joins(1).await;
    soon(family.joins(2).await.close(CloseCode::Normal)).await;
    drives(&mut a, 512).await;
    let kept = size(dir.path(), "mediator.sqlite") + size(dir.path(), "mediator.sqlite-wal");
    assert!(kept > 29 * MIB, "30 720 000 bytes wait, and {kept} are kept");
    let mut b = family.returns(2).await;
    acks(&mut b, 512).await;
    is_small_again(dir.path()).await;

    // Neither does a slot that is dropped keep what waited for it.
    drop(b);
    drives(&mut a, 512).await;
    a.drop_device(heliostat::wire::d2m::DeviceId(2)).await.unwrap();
    is_small_again(dir.path()).await;
    server.stop().await;
}

// ---- time

const START: u64 = 1_700_000_000_000;
const SECOND: u64 = 1_000;
const DAY: u64 = 86_400 * SECOND;

fn limits(persistent_slot_ttl: Option<Duration>) -> Limits {
    Limits { volatile_slot_ttl: Duration::from_secs(600), persistent_slot_ttl, ..Limits::default() }
}

/// A mediator on the real store, whose clock shows `wall_ms` when it starts.
struct At {
    mediator: Mediator,
    store: Arc<SqliteStore>,
    url: heliostat::client::Mediator,
}

impl At {
    async fn time(dir: &Path, wall_ms: u64, limits: Limits) -> Self {
        let store = SqliteStore::open(dir, Durability::Memory, wall_ms).unwrap();
        let kept: Arc<dyn Store> = Arc::<SqliteStore>::clone(&store);
        let (mediator, address) = mediate(kept, Setup { limits, ..Setup::default() }, Clock::following(wall_ms)).await;
        Self { mediator, store, url: plain(address) }
    }

    /// What the sweeper does once a minute; says how many groups it woke.
    async fn sweeps(&self) -> usize {
        self.sleeps().await;
        let woken = self.mediator.hub().sweep_once().await.unwrap();
        self.sleeps().await;
        woken
    }

    async fn sleeps(&self) {
        let sleeps = async {
            while self.mediator.hub().awake() > 0 {
                tokio::task::yield_now().await;
            }
        };
        soon(sleeps).await;
    }

    async fn stop(self) {
        soon(self.mediator.stop()).await.unwrap();
        self.store.close().await.unwrap();
    }
}

fn volatile(family: &Family, device: u64) -> DeviceConfig {
    DeviceConfig { slot_expiration: SlotExpiration::Volatile, ..family.config(device) }
}

async fn leaves(device: Device) {
    soon(device.close(CloseCode::Normal)).await;
}

/// Whether the mediator knows a slot of this device; leaves it as it is.
async fn has_slot(family: &Family, device: u64) -> bool {
    let mistaken = soon(Device::connect(&family.url, &family.config(device))).await;
    match mistaken {
        Err(ConnectError::NotAdmitted(ended)) => {
            assert_eq!(ended.close_code(), Some(CloseCode::DeviceSlotStateMismatch));
            true
        }
        Err(error) => panic!("{error}"),
        Ok(device) => {
            leaves(device).await;
            false
        }
    }
}

#[tokio::test]
async fn volatile_slots_of_sleeping_groups_end_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let at = At::time(dir.path(), START, limits(None)).await;
    let mut family = Family::new(at.url.clone());
    let mut lonely = Family::new(at.url.clone());
    let mut a = family.joins(1).await;
    leaves(family.connects(&volatile(&family, 2)).await).await;
    a.reflect_and_wait(b"for who comes in time", ReflectFlags::default()).await.unwrap();
    leaves(a).await;
    leaves(lonely.connects(&volatile(&lonely, 1)).await).await;
    at.stop().await;

    let at = At::time(dir.path(), START + 590 * SECOND, limits(None)).await;
    (family.url, lonely.url) = (at.url.clone(), at.url.clone());
    assert_eq!(at.sweeps().await, 0);
    assert!(has_slot(&family, 2).await && has_slot(&lonely, 1).await);
    at.stop().await;

    let at = At::time(dir.path(), START + 660 * SECOND, limits(None)).await;
    (family.url, lonely.url) = (at.url.clone(), at.url.clone());
    assert_eq!(at.sweeps().await, 2, "both groups have something to do");
    assert_eq!(at.sweeps().await, 0, "and have done it");
    assert!(has_slot(&family, 1).await, "the persistent one stays");
    assert!(!has_slot(&family, 2).await && !has_slot(&lonely, 1).await);
    at.stop().await;
}

#[tokio::test]
async fn a_volatile_slot_that_was_connected_at_a_crash_is_counted_from_the_restart() {
    let (dir, crashed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = At::time(dir.path(), START, limits(None)).await;
    let mut family = Family::new(at.url.clone());
    let mut a = family.joins(1).await;
    let mut b = family.connects(&volatile(&family, 2)).await;
    a.reflect_and_wait(b"before", ReflectFlags::default()).await.unwrap();
    assert_eq!(reflected(&mut b).await, b"before");
    // What the process would leave behind now; the log first, since it must not be behind the database.
    for file in ["mediator.sqlite-wal", "mediator.sqlite"] {
        std::fs::copy(dir.path().join(file), crashed.path().join(file)).unwrap();
    }
    at.stop().await;

    let restart = START + 10 * DAY;
    let at = At::time(crashed.path(), restart, limits(None)).await;
    family.url = at.url.clone();
    assert_eq!(at.sweeps().await, 0, "nobody knows when it left, so its time begins now");
    assert!(has_slot(&family, 2).await);
    at.stop().await;
    let at = At::time(crashed.path(), restart + 660 * SECOND, limits(None)).await;
    family.url = at.url.clone();
    assert_eq!(at.sweeps().await, 1);
    assert!(!has_slot(&family, 2).await && has_slot(&family, 1).await);
    at.stop().await;
}

#[tokio::test]
async fn persistent_slots_end_only_where_the_operator_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let at = At::time(dir.path(), START, limits(None)).await;
    let mut family = Family::new(at.url.clone());
    leaves(family.joins(1).await).await;
    at.stop().await;
    let (forever, month) = (limits(None), limits(Some(Duration::from_secs(30 * 86_400))));
    for (wall_ms, limits, stays) in [
        (START + 3_650 * DAY, forever, true),
        (START + 29 * DAY, month.clone(), true),
        (START + 31 * DAY, month, false),
    ] {
        let at = At::time(dir.path(), wall_ms, limits).await;
        family.url = at.url.clone();
        assert_eq!(at.sweeps().await, usize::from(!stays), "{wall_ms}");
        assert_eq!(has_slot(&family, 1).await, stays, "{wall_ms}");
        at.stop().await;
    }
}
