//! The testkit, used as somebody would who builds a client and does not know this crate's insides.
//!
//! Needs the feature: `cargo test --features testkit --test testkit`.

#![cfg(feature = "testkit")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test may panic")]

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt as _;
use heliostat::client::{Device, DeviceConfig, Mediator, Trust};
use heliostat::group::Limits;
use heliostat::testkit::TestServer;
use heliostat::wire::d2m::{DeviceId, ServerGroup, SlotState, SlotsExhausted};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::test]
async fn a_first_device_is_admitted_dry_and_leads() {
    let server = TestServer::start().await;
    let family = server.group();
    let mut phone = family.connects(&family.device(1)).await;
    let info = phone.expect_server_info().await;
    assert_eq!((info.slot_state, info.reflection_queue_length), (SlotState::New, 0));
    phone.expect_dry().await;
    phone.expect_leader().await;
    phone.expect_silence().await;
    server.stop();
    phone.expect_close(1001).await;
}

#[tokio::test]
async fn what_was_not_acknowledged_comes_again_also_after_a_restart() {
    for server in [TestServer::builder(), TestServer::builder().on_disk()] {
        let mut server = server.start().await;
        let family = server.group();
        let (mut phone, tablet) = (family.joins(1).await, family.joins(2).await);
        tablet.close().await;
        phone.expect_leader().await;
        let id = phone.reflect(b"while you were away").await;
        phone.expect_reflect_ack(id).await;

        let mut tablet = family.connects(&family.device(2).existing()).await;
        assert_eq!(tablet.expect_server_info().await.reflection_queue_length, 1);
        let first = tablet.expect_reflected().await;
        tablet.expect_dry().await;
        phone.expect_silence().await;
        tokio::join!(server.restart(), phone.expect_close(1001), tablet.expect_close(1001));

        let mut tablet = family.connects(&family.device(2).existing()).await;
        tablet.expect_server_info().await;
        let again = tablet.expect_reflected().await;
        assert_eq!((again.id(), again.envelope()), (first.id(), first.envelope()));
        tablet.ack(&again).await;
        tablet.expect_dry().await;
        tablet.fence().await;
        tablet.close().await;
        family.returns(2).await.expect_leader().await;
    }
}

#[tokio::test]
async fn a_transaction_is_acknowledged_while_it_lasts_and_delivered_by_its_commit() {
    let server = TestServer::start().await;
    let family = server.group();
    let (mut phone, mut tablet) = (family.joins(1).await, family.joins(2).await);
    phone.expect_leader().await;
    phone.begin(b"members", 0).await;
    phone.expect_begin_ack().await;
    let id = phone.reflect(b"a new member").await;
    phone.expect_reflect_ack(id).await;
    tablet.begin(b"members", 0).await;
    assert_eq!(tablet.expect_rejected().await.device_id, DeviceId(1));
    tablet.expect_silence().await;
    phone.commit().await;
    phone.expect_commit_ack().await;
    assert_eq!(tablet.expect_reflected().await.envelope(), b"a new member");
    assert_eq!(tablet.expect_transaction_ended().await.encrypted_scope, b"members");
}

#[tokio::test]
async fn an_ephemeral_message_is_for_those_who_are_there() {
    let server = TestServer::start().await;
    let family = server.group();
    let (mut phone, mut tablet) = (family.joins(1).await, family.joins(2).await);
    family.joins(3).await.close().await;
    phone.reflect_ephemeral(b"typing").await;
    phone.expect_leader().await;
    phone.expect_silence().await;
    let typing = tablet.expect_reflected().await;
    assert!(typing.flags().ephemeral);
    family.returns(3).await.expect_silence().await;
}

#[tokio::test]
async fn devices_are_listed_dropped_and_turned_away() {
    let limits = Limits { max_device_slots: 2, ..Limits::default() };
    let server = TestServer::builder().limits(limits).start().await;
    let family = server.group();
    let (mut phone, mut tablet) = (family.joins(1).await, family.joins(2).await);
    assert_eq!(tablet.devices().await.0.len(), 2);
    family.connects(&family.device(3)).await.expect_close(4111).await;
    family.connects(&family.device(3).existing()).await.expect_close(4115).await;
    let pushy = DeviceConfig { slots_exhausted: SlotsExhausted::DropLeastRecent, ..family.device(3) };
    let mut pushy = family.connects(&pushy).await;
    phone.expect_close(4113).await;
    pushy.expect_server_info().await;
    pushy.expect_dry().await;
    tablet.expect_leader().await;
    tablet.drop_device(2).await;
    tablet.expect_drop_ack(2).await;
    tablet.expect_close(4113).await;
}

#[tokio::test]
async fn the_test_plays_the_chat_server() {
    let mut server = TestServer::start().await;
    let family = server.group();
    let mut phone = family.joins(1).await;
    phone.proxy(b"hello").await;
    let mut chat = server.chat_accepts().await;
    let mut heard = [0; 5];
    chat.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");
    // Two units in one piece, and the beginning of a third, which nobody gets.
    chat.write_all(&[&[1; 80][..], &[2; 32], &[9, 0]].concat()).await.unwrap();
    assert_eq!(phone.expect_proxy().await, [1; 80][..]);
    assert_eq!(phone.expect_proxy().await, [2; 32][..]);
    phone.expect_leader().await;
    drop(chat);
    phone.expect_close(4000).await;

    let server = TestServer::builder().no_chat_server().start().await;
    let mut phone = server.group().joins(1).await;
    phone.proxy(b"hello").await;
    phone.expect_close(4001).await;
}

#[tokio::test]
async fn a_write_that_fails_closes_the_group_and_breaks_no_promise() {
    let server = TestServer::start().await;
    let family = server.group();
    let (mut phone, mut tablet) = (family.joins(1).await, family.joins(2).await);
    phone.expect_leader().await;
    server.fail_next_write();
    phone.reflect(b"lost, and never acknowledged").await;
    phone.expect_close(1011).await;
    tablet.expect_close(1011).await;
    family.returns(2).await.expect_leader().await;
}

#[tokio::test]
async fn a_client_of_any_make_connects_by_the_url_also_with_tls() {
    for (server, encrypted) in [(TestServer::builder(), false), (TestServer::builder().tls(), true)] {
        let server = server.start().await;
        let trust = if encrypted { Trust::CaFile(server.ca()) } else { Trust::System };
        assert!(server.url().starts_with(if encrypted { "wss://localhost:" } else { "ws://127.0.0.1:" }));
        let family = server.group();
        let mediator = Mediator::new(server.url(), &trust).unwrap();
        let config = DeviceConfig::new(family.key().clone(), ServerGroup::new("a0").unwrap(), DeviceId(9));
        let mut stranger = Device::connect(&mediator, &config).await.unwrap();
        stranger.wait_dry().await.unwrap();
        let mut phone = family.joins(1).await;
        stranger.reflect_and_wait(b"from another make", heliostat::wire::d2m::ReflectFlags::default()).await.unwrap();
        assert_eq!(phone.expect_reflected().await.envelope(), b"from another make");
    }
}

#[tokio::test(start_paused = true)]
async fn ten_minutes_of_a_transaction_take_no_time() {
    let server = TestServer::builder().virtual_time().start().await;
    let family = server.group();
    let mut tablet = family.joins(2).await;
    let mut phone = family.joins(1).await;
    tablet.expect_leader().await;
    phone.begin(b"linking", 0).await;
    phone.expect_begin_ack().await;
    // Obeys tokio's time.
    let clock = heliostat::time::Clock::system();
    // Both read all the time, so both answer the mediator's pings.
    let ((), ended) = tokio::join!(phone.expect_close(4011), tablet.expect_transaction_ended());
    assert_eq!((clock.now().monotonic.as_secs(), ended.device_id), (600, DeviceId(1)));
}

#[tokio::test(start_paused = true)]
async fn a_silent_device_is_closed_and_a_volatile_one_forgotten() {
    use heliostat::wire::d2m::SlotExpiration;
    let server = TestServer::builder().virtual_time().start().await;
    let family = server.group();
    let volatile = DeviceConfig { slot_expiration: SlotExpiration::Volatile, ..family.device(1) };
    let mut phone = family.connects(&volatile).await;
    phone.expect_server_info().await;
    let _tablet = family.joins(2).await;
    // A client answers pings while it reads. This one does not read.
    tokio::time::sleep(Duration::from_secs(121)).await;
    phone.expect_close(4013).await;
    tokio::time::sleep(Duration::from_secs(11 * 60)).await;
    family.connects(&volatile.existing()).await.expect_close(4115).await;
    family.connects(&volatile).await.expect_server_info().await;
}

/// What a test would print that does not hold.
async fn complaint(fails: impl Future<Output = ()>) -> String {
    let panicked = AssertUnwindSafe(fails).catch_unwind().await.expect_err("this does not hold");
    *panicked.downcast::<String>().expect("it says why")
}

#[tokio::test]
async fn an_expectation_that_is_not_met_tells_where_what_and_the_story() {
    let server = TestServer::start().await;
    let family = server.group();
    let (mut phone, mut tablet) = (family.joins(1).await, family.joins(2).await);
    phone.reflect(&family.key().seal_envelope(b"hello")).await;

    let said = complaint(async { tablet.expect_dry().await }).await;
    assert!(said.contains("tests/testkit.rs:"), "{said}");
    assert!(said.contains("device 2: ReflectionQueueDry was due next, and there came"), "{said}");
    assert!(said.contains("envelope=hello"), "what is sealed is shown opened: {said}");
    assert!(said.contains("-> client-hello") && said.contains("<- server-info"), "{said}");

    let said = complaint(async { phone.expect_silence().await }).await;
    assert!(said.contains("silence was expected, and there came\n    role-promoted-to-leader"), "{said}");
    server.stop();
    let said = complaint(async { tablet.expect_close(4112).await }).await;
    assert!(said.contains("a close with 4112 was due, and the connection was closed with 1001"), "{said}");
    let said = complaint(async { tablet.expect_leader().await }).await;
    assert!(said.contains("RolePromotedToLeader was due, and the connection was closed with 1001"), "{said}");
}
