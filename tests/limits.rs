//! Every limit at the public door, and the brake behind it, on a real mediator.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may panic"
)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{Family, Server, Setup, http, mediate, plain, soon};
use futures_util::future::BoxFuture;
use heliostat::client::GroupKey;
use heliostat::group::record::{Page, Seq, Snapshot, Write};
use heliostat::metrics;
use heliostat::net::rate::{Per, Rate};
use heliostat::server::load::Shedding;
use heliostat::server::{Admission, Settings};
use heliostat::session::Rates;
use heliostat::store::{Census, MemoryStore, Store, StoreError};
use heliostat::time::Clock;
use heliostat::wire::d2m::{
    CloseCode, DeviceGroupId, Envelope, FromDevice, Reflect, ReflectFlags, ReflectId, ToDevice,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

const fn per(amount: u64, per: Per) -> Option<Rate> {
    Some(Rate { amount, per })
}

async fn admitting(dir: &Path, admission: Admission) -> Server {
    Server::start(dir, Setup { admission, ..Setup::default() }).await
}

/// Knocks as this family would; the status, and when to come again.
async fn knocks(server: &Server, family: &Family) -> (u16, Option<u64>) {
    let path = format!("/{}", family.config(1).url_info().to_segment());
    let answer = http(server.address, &path, true).await;
    (answer.status, answer.retry_after)
}

/// Until whoever left is counted out.
async fn nobody_is_inside(server: &Server) {
    soon(async {
        while server.mediator.connections() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_address_may_knock_so_often_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let admission = Admission { handshakes_per_address: per(3, Per::Hour), ..Admission::default() };
    let server = admitting(dir.path(), admission.clone()).await;
    for _ in 0..3 {
        assert_eq!(knocks(&server, &Family::new(server.url())).await, (101, None));
    }
    let (status, again) = knocks(&server, &Family::new(server.url())).await;
    assert_eq!(status, 429);
    assert!((1_100..=1_200).contains(&again.unwrap()), "a twentieth of an hour: {again:?}");

    // Another limit elsewhere forgets nothing, another rate begins anew.
    let change = |admission| server.mediator.change(Settings { admission, ..Settings::default() });
    change(Admission { max_connections: Some(1_000), ..admission.clone() });
    assert_eq!(knocks(&server, &Family::new(server.url())).await.0, 429);
    change(Admission { handshakes_per_address: per(1, Per::Minute), ..admission });
    assert_eq!(knocks(&server, &Family::new(server.url())).await.0, 101);
    assert_eq!(knocks(&server, &Family::new(server.url())).await.0, 429);
    change(Admission::default());
    assert_eq!(knocks(&server, &Family::new(server.url())).await.0, 101);
    server.stop().await;
}

#[tokio::test]
async fn a_group_may_knock_so_often_and_no_more_and_others_do_not_notice() {
    let dir = tempfile::tempdir().unwrap();
    let server =
        admitting(dir.path(), Admission { handshakes_per_group: per(2, Per::Minute), ..Admission::default() }).await;
    let (many, few) = (Family::new(server.url()), Family::new(server.url()));
    for _ in 0..2 {
        assert_eq!(knocks(&server, &many).await.0, 101);
    }
    let (status, again) = knocks(&server, &many).await;
    assert_eq!(status, 429);
    assert!((1..=30).contains(&again.unwrap()), "{again:?}");
    assert_eq!(knocks(&server, &few).await.0, 101);
    nobody_is_inside(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn a_group_has_so_many_connections_and_others_do_not_notice() {
    let dir = tempfile::tempdir().unwrap();
    let server = admitting(dir.path(), Admission { max_connections_per_group: Some(2), ..Admission::default() }).await;
    let family = Family::new(server.url());
    let (one, _two) = (family.joins(1).await, family.joins(2).await);
    assert_eq!(knocks(&server, &family).await, (429, Some(10)));
    assert_eq!(knocks(&server, &Family::new(server.url())).await.0, 101);
    soon(one.close(CloseCode::Normal)).await;
    soon(async { while knocks(&server, &family).await.0 != 101 {} }).await;
    assert!(server.mediator.connections() <= 3, "who is refused is not counted");
    server.stop().await;
}

#[tokio::test]
async fn so_many_new_groups_come_in_and_those_that_are_known_always_do() {
    let dir = tempfile::tempdir().unwrap();
    let server = admitting(dir.path(), Admission { new_groups: per(1, Per::Hour), ..Admission::default() }).await;
    let known = Family::new(server.url());
    let one = known.joins(1).await;
    let two = known.joins(2).await;
    let (status, again) = knocks(&server, &Family::new(server.url())).await;
    assert_eq!(status, 503);
    assert!((3_500..=3_600).contains(&again.unwrap()), "{again:?}");
    // Also when it sleeps.
    soon(one.close(CloseCode::Normal)).await;
    soon(two.close(CloseCode::Normal)).await;
    nobody_is_inside(&server).await;
    while server.mediator.hub().awake() > 0 {
        tokio::task::yield_now().await;
    }
    let _one = known.returns(1).await;
    server.stop().await;
}

#[tokio::test]
async fn strangers_who_prove_nothing_take_no_room_from_new_groups() {
    let dir = tempfile::tempdir().unwrap();
    let server = admitting(dir.path(), Admission { new_groups: per(2, Per::Hour), ..Admission::default() }).await;
    for _ in 0..5 {
        assert_eq!(knocks(&server, &Family::new(server.url())).await.0, 101);
    }
    // Devices that arrive together bring one group.
    let family = Family::new(server.url());
    let (_one, _two) = tokio::join!(family.joins(1), family.joins(2));
    let _second = Family::new(server.url()).joins(1).await;
    assert_eq!(knocks(&server, &Family::new(server.url())).await.0, 503, "these were two");
    server.stop().await;
}

#[tokio::test]
async fn too_many_connections_shut_out_new_groups_before_they_shut_out_anybody_else() {
    let dir = tempfile::tempdir().unwrap();
    let shedding = Shedding { connections: Some(2), ..Shedding::default() };
    let server = admitting(dir.path(), Admission { shedding, ..Admission::default() }).await;
    let known = Family::new(server.url());
    let (_one, two) = (known.joins(1).await, known.joins(2).await);
    soon(async { while knocks(&server, &Family::new(server.url())).await != (503, Some(10)) {} }).await;
    let three = known.joins(3).await;
    for device in [two, three] {
        soon(device.close(CloseCode::Normal)).await;
    }
    soon(async { while knocks(&server, &Family::new(server.url())).await.0 != 101 {} }).await;
    server.stop().await;
}

/// A store whose writer has something else to do while the test says so.
#[derive(Debug)]
struct Busy {
    inner: MemoryStore,
    busy: watch::Sender<bool>,
}

impl Store for Busy {
    fn load(&self, group: DeviceGroupId) -> BoxFuture<'_, Result<Option<Snapshot>, StoreError>> {
        self.inner.load(group)
    }

    fn commit(&self, group: DeviceGroupId, writes: Vec<Write>) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.commit(group, writes)
    }

    fn page(
        &self,
        group: DeviceGroupId,
        after: Seq,
        through: Seq,
        cost_max: usize,
    ) -> BoxFuture<'_, Result<Page, StoreError>> {
        self.inner.page(group, after, through, cost_max)
    }

    fn due(
        &self,
        volatile_before_ms: u64,
        persistent_before_ms: Option<u64>,
        most: usize,
    ) -> BoxFuture<'_, Result<Vec<DeviceGroupId>, StoreError>> {
        self.inner.due(volatile_before_ms, persistent_before_ms, most)
    }

    fn census(&self, after: Option<DeviceGroupId>, most: usize) -> BoxFuture<'_, Result<Census, StoreError>> {
        self.inner.census(after, most)
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        let mut busy = self.busy.subscribe();
        Box::pin(async move { busy.wait_for(|busy| !busy).await.map(|_| ()).map_err(|_| StoreError::Closed) })
    }
}

#[tokio::test]
async fn a_store_that_is_behind_makes_new_groups_wait_and_nobody_else() {
    let store = Arc::new(Busy { inner: MemoryStore::new(), busy: watch::Sender::new(false) });
    let shedding = Shedding { writer_latency: Some(Duration::from_millis(50)), ..Shedding::default() };
    let setup = Setup { admission: Admission { shedding, ..Admission::default() }, ..Setup::default() };
    let kept: Arc<dyn Store> = Arc::<Busy>::clone(&store);
    let (mediator, address) = mediate(kept, setup, Clock::system()).await;
    let family = || Family::new(plain(address));
    let knocks = async |family: &Family| {
        http(address, &format!("/{}", family.config(1).url_info().to_segment()), true).await.status
    };
    let known = family();
    let _one = known.joins(1).await;
    assert!(soon(mediator.is_alive()).await.is_ok());

    store.busy.send_replace(true);
    soon(async { while knocks(&family()).await != 503 {} }).await;
    let _two = known.joins(2).await;
    let hangs = tokio::time::timeout(Duration::from_millis(200), mediator.is_alive()).await;
    assert!(hangs.is_err(), "a watchdog is not told that all is well");

    store.busy.send_replace(false);
    soon(async { while knocks(&family()).await != 101 {} }).await;
    assert!(soon(mediator.is_alive()).await.is_ok());
    soon(mediator.stop()).await.unwrap();
}

/// Asks for nothing that is here and would keep the connection; what comes until it is closed.
async fn asks(server: &Server) -> Vec<u8> {
    let mut tcp = TcpStream::connect(server.address).await.unwrap();
    let _closed = tcp.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").await;
    let mut answer = Vec::new();
    let _reset_or_end = soon(tcp.read_to_end(&mut answer)).await;
    answer
}

#[tokio::test]
async fn sockets_that_ask_for_nothing_are_bounded_too() {
    let all = Admission { max_connections: Some(1), ..Admission::default() };
    let of_address = Admission { max_connections_per_address: Some(1), ..Admission::default() };
    for (admission, most) in [(all, 65), (of_address, 17)] {
        let dir = tempfile::tempdir().unwrap();
        let server = admitting(dir.path(), admission).await;
        let mut silent = Vec::new();
        for _ in 1..most {
            silent.push(TcpStream::connect(server.address).await.unwrap());
        }
        assert!(asks(&server).await.starts_with(b"HTTP/1.1 404"), "the last that has room");
        soon(async { while asks(&server).await.is_empty() {} }).await;
        silent.push(TcpStream::connect(server.address).await.unwrap());
        soon(async { while !asks(&server).await.is_empty() {} }).await;
        drop(silent);
        soon(async { while asks(&server).await.is_empty() {} }).await;
        server.stop().await;
    }
}

#[tokio::test]
async fn an_address_may_open_two_sockets_per_handshake_and_none_stays_for_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let admission = Admission { handshakes_per_address: per(1, Per::Hour), ..Admission::default() };
    let server = admitting(dir.path(), admission).await;
    let clock = Clock::system();
    for _ in 0..2 {
        assert!(asks(&server).await.starts_with(b"HTTP/1.1 404"));
    }
    assert_eq!(asks(&server).await, b"");
    assert!(clock.now().monotonic < Duration::from_secs(5), "a connection that is kept has ten");
    server.stop().await;
}

#[tokio::test]
async fn half_a_request_does_not_delay_the_stop() {
    let dir = tempfile::tempdir().unwrap();
    let server = admitting(dir.path(), Admission::default()).await;
    let mut half = TcpStream::connect(server.address).await.unwrap();
    half.write_all(b"GET /0a20").await.unwrap();
    // Whoever came later was answered.
    assert_eq!(http(server.address, "/", false).await.status, 404);
    let clock = Clock::system();
    soon(server.mediator.stop()).await.unwrap();
    assert!(clock.now().monotonic < Duration::from_secs(5), "the request itself would have ten");
}

/// Sends so many messages of this length at once; how long it takes until the last is acknowledged.
async fn reflects(family: &Family, device: u64, many: u32, len: usize) -> Duration {
    let clock = Clock::system();
    let mut device = family.joins(device).await;
    for n in 0..many {
        let reflect = Reflect {
            flags: ReflectFlags::default(),
            reflect_id: ReflectId(n),
            envelope: Envelope::copy_from(&vec![0; len]),
        };
        device.send(&FromDevice::Reflect(reflect)).await.unwrap();
    }
    let last =
        |payload: &ToDevice| matches!(payload, ToDevice::ReflectAck(ack) if ack.reflect_id == ReflectId(many - 1));
    soon(device.wait_for(last)).await.unwrap();
    clock.now().monotonic
}

/// Messages that waited to be read, in this process: no other test here slows anybody.
fn slowed() -> u64 {
    let page = metrics::render();
    let counts = page.lines().filter(|line| line.starts_with("heliostat_slowed_total{"));
    counts.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[tokio::test]
async fn a_device_that_sends_too_much_is_read_more_slowly_and_loses_nothing() {
    for (rates, many, len) in [
        (Rates { frames: per(20, Per::Second), bytes: None }, 40, 10),
        (Rates { frames: None, bytes: per(64 * 1024, Per::Second) }, 4, 32 * 1024),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(dir.path(), Setup { rates, ..Setup::default() }).await;
        let family = Family { key: GroupKey::generate(), url: server.url() };
        let before = slowed();
        let took = reflects(&family, 1, many, len).await;
        // Twice what may come at once: the second half takes a second.
        assert!(took >= Duration::from_millis(900), "{rates:?}: {took:?}");
        let told = slowed();
        assert!(told > before, "an operator can see it");
        server.mediator.change(Settings::default());
        reflects(&family, 2, many, len).await;
        assert_eq!(slowed(), told, "unlimited again for new connections");
        server.stop().await;
    }
}
