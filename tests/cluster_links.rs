//! Several nodes in one process, linked over real sockets: a device at one of them, its group at another. What they share is the
//! twin of a store.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may panic"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use heliostat::cluster::authority::Authority;
use heliostat::cluster::{Links, Pace, Settings};
use heliostat::group::limits::{OUTBOX_COST, PAGE_COST, cost};
use heliostat::group::view::Presence;
use heliostat::group::{Farewell, Introduction, Limits, Request};
use heliostat::hub::neighbours::Neighbours;
use heliostat::hub::{Admitted, Hub, Outgoing, Seat};
use heliostat::net::tasks::Tasks;
use heliostat::net::tls::{self, CertFiles};
use heliostat::store::Store;
use heliostat::store::memory::MemoryStore;
use heliostat::store::nodes::{Node, Nodes};
use heliostat::time::Clock;
use heliostat::wire::d2m::{
    BeginTransaction, ClientHello, DeviceGroupId, DeviceId, Envelope, FromDevice, PayloadType, Reflect, ReflectFlags,
    ReflectId, SlotExpiration, SlotState, SlotsExhausted, ToDevice,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const GROUP: DeviceGroupId = DeviceGroupId::new([7; 32]);
/// Longer than anything here takes; only a failure waits for it.
const SOON: Duration = Duration::from_secs(20);

async fn soon<F: Future>(future: F) -> F::Output {
    timeout(SOON, future).await.expect("within a few seconds")
}

/// What all nodes share.
struct World {
    kept: Arc<MemoryStore>,
    nodes: Nodes,
    clock: Clock,
    dir: tempfile::TempDir,
    pace: Pace,
}

/// One node, and the way to it.
struct Member {
    hub: Hub,
    store: Arc<Node>,
    links: Arc<Links>,
    serving: Tasks,
    path: watch::Sender<Path>,
    address: String,
}

/// What becomes of bytes on their way to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    Open,
    /// Connections are accepted, and nothing passes.
    Frozen,
    /// Connections are cut, and accepted ones too.
    Cut,
}

fn world() -> World {
    let kept = Arc::new(MemoryStore::new());
    let nodes = Nodes::over(Arc::clone(&kept));
    World { kept, nodes, clock: Clock::system(), dir: tempfile::tempdir().unwrap(), pace: Pace::default() }
}

impl World {
    fn authority(&self) -> Authority {
        Authority::open(self.dir.path(), self.clock.now().wall_ms).unwrap()
    }

    async fn node(&self, name: &str) -> Member {
        self.node_vouched_for(name, &self.authority()).await
    }

    async fn node_vouched_for(&self, name: &str, authority: &Authority) -> Member {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, path) = relay(listener.local_addr().unwrap()).await;
        let store = self.nodes.node(name, &address);
        let settings = Settings {
            cert: authority.vouch(name, &["127.0.0.1".to_owned()]).unwrap(),
            authority: authority.certificate(),
            address: address.clone(),
            pace: self.pace,
        };
        let links = Links::new(settings, self.clock).unwrap();
        let (kept, neighbours): (Arc<dyn Store>, Arc<dyn Neighbours>) =
            (Arc::<Node>::clone(&store), Arc::<Links>::clone(&links));
        let hub = Hub::new(kept, Limits::default(), self.clock).among(neighbours);
        let serving = Tasks::new();
        tokio::spawn(Arc::clone(&links).serve(listener, hub.clone(), serving.clone()));
        Member { hub, store, links, serving, path, address }
    }
}

/// A path to a node on which bytes can be held up.
async fn relay(to: std::net::SocketAddr) -> (String, watch::Sender<Path>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (path, stands) = watch::channel(Path::Open);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut stands = stands.clone();
            tokio::spawn(async move {
                let Ok(mut far) = TcpStream::connect(to).await else { return };
                for end in [&near, &far] {
                    end.set_nodelay(true).unwrap();
                }
                loop {
                    let now = *stands.borrow_and_update();
                    let ended = match now {
                        Path::Open => tokio::select! {
                            _ = tokio::io::copy_bidirectional(&mut near, &mut far) => true,
                            changed = stands.changed() => changed.is_err(),
                        },
                        Path::Frozen => stands.changed().await.is_err(),
                        Path::Cut => true,
                    };
                    if ended {
                        return;
                    }
                }
            });
        }
    });
    (address, path)
}

fn admitted(group: DeviceGroupId, device: u64, expected_slot_state: SlotState) -> Admitted {
    let introduction = Introduction {
        device: DeviceId(device),
        slots_exhausted: SlotsExhausted::Reject,
        slot_expiration: SlotExpiration::Persistent,
        expected_slot_state,
        encrypted_device_info: vec![1, 2, 3],
    };
    Admitted::vouched(group, introduction)
}

impl Member {
    /// A device that has its ServerInfo.
    async fn joins(&self, device: u64, expected: SlotState) -> Device {
        self.joins_of(GROUP, device, expected).await
    }

    async fn joins_of(&self, group: DeviceGroupId, device: u64, expected: SlotState) -> Device {
        let seat = soon(self.hub.join(admitted(group, device, expected))).await.unwrap();
        let mut device = Device(seat);
        let first = device.hears().await;
        assert!(matches!(first, ToDevice::ServerInfo(_)), "{first:?}");
        device.0.place.introduced();
        device
    }

    async fn connected(&self) -> usize {
        let inspection = self.hub.inspect(GROUP).await.unwrap().unwrap();
        inspection.view.devices.iter().filter(|device| matches!(device.presence, Presence::Connected(_))).count()
    }
}

/// A session, as its group sees it.
struct Device(Seat);

impl Device {
    async fn next(&mut self) -> Option<Outgoing> {
        let next = soon(self.0.outbox.next()).await;
        if let Some(Outgoing::Payload(payload)) = &next {
            self.0.outbox.written(payload).await;
        }
        next
    }

    /// The next payload that is not about who leads and what waits.
    async fn hears(&mut self) -> ToDevice {
        loop {
            match self.next().await {
                Some(Outgoing::Payload(ToDevice::ReflectionQueueDry | ToDevice::RolePromotedToLeader)) => {}
                Some(Outgoing::Payload(payload)) => return payload,
                other => panic!("{other:?}"),
            }
        }
    }

    /// Returns when its group has heard everything that was said until now, also that it got its ServerInfo.
    async fn is_heard(&mut self) {
        self.says(Request::GetDevicesInfo).await;
        assert!(matches!(self.hears().await, ToDevice::DevicesInfo(_)));
    }

    /// What waits for it, if anything does, without taking it from there.
    fn finds(&mut self) -> Option<Outgoing> {
        self.0.outbox.try_next()
    }

    /// The last word, behind whatever was said before.
    async fn ends(&mut self) -> Option<Outgoing> {
        loop {
            match self.next().await {
                Some(Outgoing::Payload(_)) => {}
                last => return last,
            }
        }
    }

    async fn says(&self, request: Request) {
        soon(self.0.place.say(request)).await.unwrap();
    }

    /// The envelope of the next reflected message.
    async fn hears_reflected(&mut self) -> Vec<u8> {
        match self.hears().await {
            ToDevice::Reflected(message) => message.envelope().to_vec(),
            other => panic!("{other:?}"),
        }
    }
}

fn reflect(n: u32, bytes: usize) -> Request {
    let mut envelope = n.to_le_bytes().to_vec();
    envelope.resize(bytes.max(4), 0);
    let envelope = Envelope::copy_from(&envelope);
    Request::Reflect(Reflect { flags: ReflectFlags::default(), reflect_id: ReflectId(n), envelope })
}

fn number(envelope: &[u8]) -> u32 {
    u32::from_le_bytes(envelope[..4].try_into().unwrap())
}

async fn until(mut holds: impl AsyncFnMut() -> bool) {
    soon(async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_device_of_another_node_is_one_of_the_group() {
    let world = world();
    let (a, b) = (world.node("a").await, world.node("b").await);
    let mut here = b.joins(1, SlotState::New).await;
    let mut there = a.joins(2, SlotState::New).await;
    assert_eq!(world.nodes.owner(GROUP), Some(b.store.id()));
    assert_eq!(a.hub.awake(), 0, "the group is awake at one node only");
    for n in 0..200 {
        here.says(reflect(n, 100)).await;
        there.says(reflect(1_000 + n, 60_000)).await;
    }
    for (device, own, others) in [(&mut here, 0, 1_000), (&mut there, 1_000, 0)] {
        let (mut acked, mut heard) = (Vec::new(), Vec::new());
        while acked.len() < 200 || heard.len() < 200 {
            match device.hears().await {
                ToDevice::ReflectAck(ack) => acked.push(ack.reflect_id.0),
                ToDevice::Reflected(message) => heard.push(number(message.envelope())),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(acked, (own..own + 200).collect::<Vec<_>>());
        assert_eq!(heard, (others..others + 200).collect::<Vec<_>>());
    }
    // It leaves, and so it is known there.
    drop(there);
    until(async || b.connected().await == 1).await;
    drop(here);
    until(async || b.hub.awake() == 0).await;
    let again = a.joins(2, SlotState::Existing).await;
    assert_eq!(world.nodes.owner(GROUP), Some(a.store.id()), "whoever wakes it has it");
    drop(again);
}

#[tokio::test]
async fn a_device_that_does_not_read_holds_no_more_than_its_outbox_and_keeps_nobody_waiting() {
    const MANY: u32 = 200;
    let world = world();
    let (a, b) = (world.node("a").await, world.node("b").await);
    let mut sender = b.joins(1, SlotState::New).await;
    let (mut slow, mut quick) = (a.joins(2, SlotState::New).await, a.joins(3, SlotState::New).await);
    for n in 0..MANY {
        sender.says(reflect(n, 32_000)).await;
        assert!(matches!(sender.hears().await, ToDevice::ReflectAck(_)));
    }
    for n in 0..MANY {
        assert_eq!(number(&quick.hears_reflected().await), n);
    }
    // All that came for it while it did not read: what the group lets out before it is paid for, and the last page.
    let (mut held, mut next) = (0, 0);
    let mut unpaid = Vec::new();
    while let Some(found) = slow.finds() {
        let Outgoing::Payload(payload) = found else { panic!("{found:?}") };
        held += cost(&payload);
        if let ToDevice::Reflected(message) = &payload {
            assert_eq!(number(message.envelope()), next);
            next += 1;
        }
        unpaid.push(payload);
    }
    assert!(held <= OUTBOX_COST + PAGE_COST && next < MANY, "{held} bytes, {next} messages");
    for payload in &unpaid {
        slow.0.outbox.written(payload).await;
    }
    while next < MANY {
        assert_eq!(number(&slow.hears_reflected().await), next);
        next += 1;
    }
}

#[tokio::test]
async fn a_group_that_has_too_much_to_do_keeps_its_own_devices_waiting_and_no_others() {
    /// Twice what may wait: at the device's node, on the link, and at the owner.
    const TOO_MANY: u32 = 1_200;
    const OTHER: DeviceGroupId = DeviceGroupId::new([8; 32]);
    let world = world();
    let (a, b) = (world.node("a").await, world.node("b").await);
    let _here = b.joins(1, SlotState::New).await;
    let mut busy = a.joins(2, SlotState::New).await;
    let mut near = b.joins_of(OTHER, 1, SlotState::New).await;
    let mut far = a.joins_of(OTHER, 2, SlotState::New).await;
    busy.is_heard().await;
    // With a block of numbers for what follows, which then needs nothing to be kept.
    far.says(reflect(0, 4)).await;
    assert!(matches!(far.hears().await, ToDevice::ReflectAck(_)));
    near.hears_reflected().await;
    // Nothing is kept for a while, so that a group that has to keep something goes no further.
    world.kept.hold();
    let mut said = 0;
    let says = async {
        for n in 0..TOO_MANY {
            busy.0.place.say(reflect(n, 1_024)).await.unwrap();
            said += 1;
        }
    };
    let others = async {
        soon(world.kept.until_waiting(1)).await;
        let envelope = Envelope::copy_from(&[9]);
        let ephemeral = Reflect { flags: ReflectFlags { ephemeral: true }, reflect_id: ReflectId(1), envelope };
        for _ in 0..200 {
            far.says(Request::Reflect(ephemeral.clone())).await;
            assert_eq!(near.hears_reflected().await, [9]);
            near.says(Request::Reflect(ephemeral.clone())).await;
            assert_eq!(far.hears_reflected().await, [9]);
        }
    };
    tokio::select! {
        () = says => panic!("nobody waited"),
        () = others => {}
    }
    assert!(said < TOO_MANY * 2 / 3, "{said} requests of a kibibyte were on their way");
    world.kept.release();
    for n in 0..said {
        let ToDevice::ReflectAck(ack) = busy.hears().await else { panic!("no acknowledgement") };
        assert_eq!(ack.reflect_id.0, n);
    }
}

#[tokio::test]
async fn the_lock_is_one_wherever_devices_are() {
    let world = world();
    let (a, b) = (world.node("a").await, world.node("b").await);
    let mut here = b.joins(1, SlotState::New).await;
    let mut there = a.joins(2, SlotState::New).await;
    let begin = || BeginTransaction { encrypted_scope: vec![9], ttl_s: 60 };
    there.says(Request::BeginTransaction(begin())).await;
    assert_eq!(there.hears().await, ToDevice::BeginTransactionAck);
    here.says(Request::BeginTransaction(begin())).await;
    let ToDevice::TransactionRejected(holder) = here.hears().await else { panic!("no rejection") };
    assert_eq!((holder.device_id, holder.encrypted_scope), (DeviceId(2), vec![9]));
    there.says(reflect(5, 10)).await;
    assert!(matches!(there.hears().await, ToDevice::ReflectAck(_)));
    there.says(Request::CommitTransaction).await;
    assert_eq!(there.hears().await, ToDevice::CommitTransactionAck);
    assert_eq!(number(&here.hears_reflected().await), 5);
    assert!(matches!(here.hears().await, ToDevice::TransactionEnded(_)));
    // Who holds it and leaves, loses it.
    there.says(Request::BeginTransaction(begin())).await;
    assert_eq!(there.hears().await, ToDevice::BeginTransactionAck);
    drop(there);
    assert!(matches!(here.hears().await, ToDevice::TransactionEnded(_)));
}

#[tokio::test]
async fn a_chat_server_sees_the_end_of_one_connection_before_the_next_begins_wherever_they_are() {
    let world = world();
    let (a, b, c) = (world.node("a").await, world.node("b").await, world.node("c").await);
    let mut here = b.joins(1, SlotState::New).await;
    let mut there = a.joins(2, SlotState::New).await;
    let proxy = there.0.place.proxies.token();
    let released = Arc::new(AtomicBool::new(false));
    let comes_again = async {
        let again = c.joins(2, SlotState::Existing).await;
        assert!(released.load(Ordering::SeqCst), "the first connection's was open");
        again
    };
    let goes = async {
        soon(there.0.place.cut.cancelled()).await;
        tokio::task::yield_now().await;
        released.store(true, Ordering::SeqCst);
        drop(proxy);
        assert_eq!(there.ends().await, Some(Outgoing::Close(Farewell::Replaced)));
        drop(there);
    };
    let (mut again, ()) = tokio::join!(comes_again, goes);
    // Its leaving is not taken for that of the other connection.
    here.says(Request::DropDevice(DeviceId(2))).await;
    assert_eq!(here.hears().await, ToDevice::DropDeviceAck(DeviceId(2)));
    assert_eq!(again.ends().await, Some(Outgoing::Close(Farewell::Dropped)));
}

#[tokio::test]
async fn when_a_link_breaks_its_devices_are_sent_away_and_find_everything_again() {
    let world = world();
    let (a, b) = (world.node("a").await, world.node("b").await);
    let here = b.joins(1, SlotState::New).await;
    let mut there = a.joins(2, SlotState::New).await;
    here.says(reflect(1, 10)).await;
    assert_eq!(number(&there.hears_reflected().await), 1);
    there.is_heard().await;
    b.path.send_replace(Path::Cut);
    assert_eq!(there.ends().await, Some(Outgoing::Moved));
    assert!(there.0.place.cut.is_cancelled(), "nothing of its chat server connection is left");
    drop(there);
    until(async || b.connected().await == 1).await;
    here.says(reflect(2, 10)).await;
    b.path.send_replace(Path::Open);
    // Its slot is there: that it had its ServerInfo was known before the link broke.
    let mut there = a.joins(2, SlotState::Existing).await;
    assert_eq!(number(&there.hears_reflected().await), 1, "it was not acknowledged");
    assert_eq!(number(&there.hears_reflected().await), 2);
}

#[tokio::test]
async fn a_link_on_which_nothing_comes_any_more_is_given_up() {
    let mut world = world();
    world.pace.ping_every = Duration::from_millis(50);
    world.pace.silent = Duration::from_millis(600);
    let (a, b) = (world.node("a").await, world.node("b").await);
    let _here = b.joins(1, SlotState::New).await;
    let mut there = a.joins(2, SlotState::New).await;
    there.is_heard().await;
    let silent = world.clock.now().monotonic;
    b.path.send_replace(Path::Frozen);
    assert_eq!(there.ends().await, Some(Outgoing::Moved));
    let took = world.clock.now().monotonic - silent;
    assert!(took >= world.pace.silent * 4 / 5, "nothing was wrong for {took:?} only");
    // The other end is alone with its seat, too.
    until(async || b.connected().await == 1).await;
    b.path.send_replace(Path::Open);
    drop(there);
    drop(a.joins(2, SlotState::Existing).await);
}

#[tokio::test]
async fn a_link_is_kept_while_it_is_used_and_closed_when_it_is_not() {
    let mut world = world();
    world.pace.idle = Duration::from_millis(200);
    world.pace.ping_every = Duration::from_millis(20);
    world.pace.silent = Duration::from_millis(600);
    let (a, b) = (world.node("a").await, world.node("b").await);
    let here = b.joins(1, SlotState::New).await;
    let mut there = a.joins(2, SlotState::New).await;
    there.is_heard().await;
    // Much longer than silence may last, and than a link without a seat does.
    tokio::time::sleep(2 * world.pace.silent).await;
    here.says(reflect(1, 10)).await;
    assert_eq!(number(&there.hears_reflected().await), 1);
    drop(there);
    // The accepting side waits for its links only, once it is stopped: it has none.
    until(async || b.serving.tracker().is_empty()).await;
    drop(a.joins(2, SlotState::Existing).await);
}

#[tokio::test]
async fn a_node_that_stops_sends_guests_away_and_the_next_one_takes_their_group() {
    let world = world();
    let (a, b) = (world.node("a").await, world.node("b").await);
    let here = b.joins(1, SlotState::New).await;
    let mut there = a.joins(2, SlotState::New).await;
    there.is_heard().await;
    let leaves = async {
        assert_eq!(there.ends().await, Some(Outgoing::Moved));
        drop(there);
    };
    let (finished, ()) = tokio::join!(b.serving.finish(SOON), leaves);
    assert_eq!(finished, Ok(()));
    assert_eq!(b.connected().await, 1);
    let comes_again = async { a.joins(2, SlotState::Existing).await };
    let goes = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(here);
    };
    let (there, ()) = tokio::join!(comes_again, goes);
    assert_eq!(world.nodes.owner(GROUP), Some(a.store.id()));
    drop(there);
    a.links.close().await;
}

#[tokio::test]
async fn who_is_no_node_of_ours_gets_no_device_and_is_asked_for_the_group_by_way_of_the_store() {
    let world = world();
    let elsewhere = tempfile::tempdir().unwrap();
    let of_others = Authority::open(elsewhere.path(), world.clock.now().wall_ms).unwrap();
    let (a, stranger) = (world.node("a").await, world.node_vouched_for("stranger", &of_others).await);
    let mut here = stranger.joins(1, SlotState::New).await;
    let goes = async {
        let moved = async { assert_eq!(here.ends().await, Some(Outgoing::Moved)) };
        let looks = async {
            loop {
                stranger.store.look();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            () = moved => {}
            () = looks => {}
        }
        drop(here);
    };
    let (there, ()) = tokio::join!(a.joins(2, SlotState::New), goes);
    assert_eq!(world.nodes.owner(GROUP), Some(a.store.id()));
    drop(there);
}

#[test]
fn a_node_does_not_start_with_what_others_would_not_believe() {
    let world = world();
    let elsewhere = tempfile::tempdir().unwrap();
    let of_others = Authority::open(elsewhere.path(), world.clock.now().wall_ms).unwrap();
    let authority = world.authority();
    let settings = |address: &str, authority: &Authority| Settings {
        cert: authority.vouch("a", &["a.example.org".to_owned(), "::1".to_owned()]).unwrap(),
        authority: world.authority().certificate(),
        address: address.to_owned(),
        pace: world.pace,
    };
    for address in ["a.example.org:7443", "[::1]:7443"] {
        Links::new(settings(address, &authority), world.clock).unwrap();
    }
    for address in ["b.example.org:7443", "127.0.0.1:7443", "nowhere at all"] {
        let error = Links::new(settings(address, &authority), world.clock).unwrap_err().to_string();
        assert!(error.contains("a.pem") && error.contains(address), "{error}");
    }
    Links::new(settings("a.example.org:7443", &of_others), world.clock).unwrap_err();
}

/// The other end of a link, with any certificate or none.
async fn dials(to: &Member, trusts: &Authority, with: Option<&CertFiles>) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(tls::read_certs(&trusts.certificate()).unwrap().remove(0)).unwrap();
    let config = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match with {
        Some(files) => {
            let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
            config.with_client_auth_cert(tls::read_certs(&files.cert).unwrap(), key).unwrap()
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"heliostat-cluster/1".to_vec()];
    let tcp = TcpStream::connect(&to.address).await?;
    TlsConnector::from(Arc::new(config)).connect("127.0.0.1".try_into().unwrap(), tcp).await
}

#[tokio::test]
async fn strangers_are_told_nothing() {
    let world = world();
    let b = world.node("b").await;
    let ours = world.authority();
    let elsewhere = tempfile::tempdir().unwrap();
    let of_others = Authority::open(elsewhere.path(), world.clock.now().wall_ms).unwrap();
    let theirs = of_others.vouch("b", &["127.0.0.1".to_owned()]).unwrap();
    for with in [None, Some(&theirs)] {
        // In TLS 1.3 whoever dials believes to be connected, and is told otherwise with the first answer.
        let mut tls = dials(&b, &ours, with).await.unwrap();
        let mut told = Vec::new();
        let ended = soon(tls.read_to_end(&mut told)).await;
        assert!(ended.is_err() && told.is_empty(), "{ended:?}: {told:?}");
    }
    let us = ours.vouch("c", &["127.0.0.1".to_owned()]).unwrap();
    let mut tls = dials(&b, &ours, Some(&us)).await.unwrap();
    assert!(soon(tls.read_u8()).await.is_ok(), "a node is told how much it may say");
}

/// A field of a protobuf message: bytes, or another message.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    prost::encode_length_delimiter(bytes.len(), &mut out).unwrap();
    out.extend_from_slice(bytes);
    out
}

fn with_length(message: &[u8]) -> Vec<u8> {
    [&u32::try_from(message.len()).unwrap().to_le_bytes(), message].concat()
}

fn hello(version: u8, device: u64) -> Vec<u8> {
    let introduction = FromDevice::ClientHello(Box::new(ClientHello {
        response: [0; 72],
        device_id: DeviceId(device),
        slots_exhausted: SlotsExhausted::Reject,
        slot_expiration: SlotExpiration::Persistent,
        encrypted_device_info: vec![],
        expected_slot_state: SlotState::New,
    }));
    let version = [1 << 3, version];
    let hello = [&version[..], &field(2, GROUP.as_bytes()), &field(3, &introduction.encode())].concat();
    with_length(&field(1, &hello))
}

#[tokio::test]
async fn nonsense_ends_the_stream_it_came_on_and_nothing_else() {
    let world = world();
    let b = world.node("b").await;
    let ours = world.authority();
    let us = ours.vouch("mallory", &["127.0.0.1".to_owned()]).unwrap();
    let tls = dials(&b, &ours, Some(&us)).await.unwrap();
    let (requests, connection) = h2::client::handshake(tls).await.unwrap();
    tokio::spawn(connection);
    let opens = async |said: Vec<u8>, ends: bool| {
        let mut requests = requests.clone().ready().await.unwrap();
        let request = http::Request::post("https://owner/seat").body(()).unwrap();
        let (response, mut stream) = requests.send_request(request, false).unwrap();
        stream.send_data(said.into(), ends).unwrap();
        (response, stream)
    };
    let request = |container: &FromDevice| with_length(&field(2, &container.encode()));

    let (good, mut says) = opens(hello(1, 1), false).await;
    let mut good = soon(good).await.unwrap().into_body();
    let seated = soon(good.data()).await.unwrap().unwrap();
    assert_eq!(seated[..6], [2, 0, 0, 0, 1 << 3 | 2, 0]);
    until(async || b.connected().await == 1).await;

    let bad = [
        ("another version", hello(2, 2)),
        ("too long", vec![0xff; 100]),
        ("no protobuf", with_length(&[0xff; 100])),
        ("nothing in it", with_length(&[])),
        ("no group", with_length(&field(1, &[1 << 3, 1]))),
        ("a request first", request(&FromDevice::GetDevicesInfo)),
        ("a second hello", [hello(1, 2), hello(1, 2)].concat()),
        ("chat server bytes", [hello(1, 2), request(&FromDevice::Proxy(vec![1].into()))].concat()),
        ("no container", [hello(1, 2), with_length(&field(2, &[1]))].concat()),
    ];
    for (what, said) in bad {
        let (response, _says) = opens(said, false).await;
        let ended = soon(async {
            let mut hears = response.await?.into_body();
            while let Some(data) = hears.data().await {
                hears.flow_control().release_capacity(data?.len())?;
            }
            Ok::<_, h2::Error>(())
        });
        let reason = ended.await.err().and_then(|error| error.reason());
        assert_eq!(reason, Some(h2::Reason::PROTOCOL_ERROR), "{what}");
    }
    // In the middle of a word.
    drop(opens(hello(1, 2)[..20].to_vec(), true).await);
    until(async || b.connected().await == 1).await;

    says.send_data(request(&FromDevice::GetDevicesInfo).into(), false).unwrap();
    let mut heard = Vec::new();
    let info = [PayloadType::DEVICES_INFO.0, 0, 0, 0];
    while !heard.windows(4).any(|four| four == info) {
        let data = soon(good.data()).await.unwrap().unwrap();
        good.flow_control().release_capacity(data.len()).unwrap();
        heard.extend_from_slice(&data);
    }
    says.send_data(vec![0xff; 4].into(), false).unwrap();
    until(async || b.hub.awake() == 0).await;
}
