//! Captures: recorded by devices and by the mediator at once, cut anywhere, read, played again, drawn.

#![allow(
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    clippy::wrong_self_convention,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may panic"
)]

#[path = "common/binary.rs"]
mod binary;
mod common;
#[path = "conform/faults.rs"]
#[allow(dead_code, reason = "some of them are enough here")]
mod faults;
#[path = "conform/relay.rs"]
mod relay;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use heliostat::capture::reader::{NotACapture, Reader, Tail};
use heliostat::capture::{
    BODY_MAX, ClosedBy, Direction, End, Entry, Event, Frame, Header, KEPT_MAX, Observer, ToFile, Track,
};
use heliostat::client::{Begun, Device, GroupKey, Mediator};
use heliostat::time::Clock;
use heliostat::wire::d2m::{CloseCode, DeviceId, FromDevice, ReflectFlags, ServerGroup, ToDevice};
use proptest::prelude::*;
use serde_json::Value;

use self::binary::Binary;
use self::common::{Family, Server, Setup, soon};
use self::faults::Fault;
use self::relay::Relay;

// ---- the format

fn any_event() -> impl Strategy<Value = Event> {
    let track = any::<u32>().prop_map(Track);
    let connect = (track.clone(), "[a-zA-Z0-9]{1,32}", any::<bool>(), any::<Option<u64>>()).prop_map(
        |(track, name, earlier, device)| {
            let server_group = ServerGroup::new(&name).unwrap();
            Event::Connect { track, server_group, earlier, device: device.map(DeviceId) }
        },
    );
    let frame = (track.clone(), any::<bool>(), prop::collection::vec(any::<u8>(), 0..300), 0..1000_u32).prop_map(
        |(track, up, kept, withheld)| {
            let direction = if up { Direction::FromDevice } else { Direction::ToDevice };
            let len = u32::try_from(kept.len()).unwrap() + withheld;
            Event::Frame { track, direction, frame: Frame { len, kept: kept.into() } }
        },
    );
    let by = prop::sample::select(vec![ClosedBy::Nobody, ClosedBy::Device, ClosedBy::Mediator]);
    let close = (track, by, prop::option::of(1..=u16::MAX), "[ -~ä]{0,60}")
        .prop_map(|(track, by, code, reason)| Event::Close { track, by, code, reason });
    prop_oneof![connect, frame, close]
}

fn any_entry() -> impl Strategy<Value = Entry> {
    (any::<u64>(), any_event()).prop_map(|(at, event)| Entry { at: Duration::from_micros(at), event })
}

const HEADER: Header = Header { wall_ms: 1_700_000_000_000, observer: Observer::Mediator };

fn bytes_of(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = HEADER.encode();
    entries.iter().for_each(|entry| entry.encode(&mut bytes));
    bytes
}

fn read(bytes: &[u8]) -> (Vec<Entry>, Tail) {
    let mut reader = Reader::new(bytes).unwrap();
    assert_eq!(reader.header(), HEADER);
    (reader.rest().unwrap(), reader.tail())
}

proptest! {
    #[test]
    fn what_is_written_is_read(entries in prop::collection::vec(any_entry(), 0..20)) {
        prop_assert_eq!(read(&bytes_of(&entries)), (entries.clone(), Tail::Unended));
        let end = Entry { at: Duration::ZERO, event: Event::End(End::TimeOver) };
        let ended = [&entries[..], std::slice::from_ref(&end)].concat();
        let mut bytes = bytes_of(&ended);
        bytes.extend_from_slice(b"what stands behind the end is not read");
        prop_assert_eq!(read(&bytes), (ended, Tail::Ended(End::TimeOver)));
    }

    #[test]
    fn a_capture_that_is_cut_anywhere_is_read_to_its_last_whole_record(
        entries in prop::collection::vec(any_entry(), 1..6),
    ) {
        let bytes = bytes_of(&entries);
        let ends: Vec<usize> = (0..=entries.len()).map(|n| bytes_of(&entries[..n]).len()).collect();
        for len in 0..=bytes.len() {
            let cut = &bytes[..len];
            let Some(whole) = ends.iter().rposition(|&end| end <= len) else {
                let refused = Reader::new(cut).unwrap_err();
                let empty = matches!(refused, NotACapture::Magic);
                prop_assert_eq!(empty, len == 0);
                prop_assert!(empty || matches!(refused, NotACapture::Cut));
                continue;
            };
            let tail = match len - ends[whole] {
                0 => Tail::Unended,
                there => Tail::Cut { at: ends[whole] as u64, there: there as u64 },
            };
            prop_assert_eq!(read(cut), (entries[..whole].to_vec(), tail));
        }
    }

    #[test]
    fn no_bytes_at_all_make_the_reader_panic(noise in prop::collection::vec(any::<u8>(), 0..400)) {
        drop(Reader::new(&noise[..]));
        let bytes = [HEADER.encode(), noise].concat();
        let (_, tail) = read(&bytes);
        prop_assert_ne!(tail, Tail::Unread);
    }
}

fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).unwrap();
    [&len.to_le_bytes()[..], &[kind], body].concat()
}

#[test]
fn records_of_later_versions_are_passed_over_and_longer_ones_are_read_as_far_as_they_are_known() {
    let end = record(5, &[&[0; 8][..], &[0], b"appended"].concat());
    let bytes = [HEADER.encode(), record(6, b"?"), record(255, &vec![7; BODY_MAX]), end].concat();
    let mut reader = Reader::new(&bytes[..]).unwrap();
    let entries = reader.rest().unwrap();
    assert_eq!(entries, [Entry { at: Duration::ZERO, event: Event::End(End::Done) }]);
    assert_eq!((reader.passed_over(), reader.tail()), (2, Tail::Ended(End::Done)));
    let mut longer = HEADER.encode();
    longer[10] += 3;
    longer.extend_from_slice(b"new");
    assert_eq!(read(&longer), (vec![], Tail::Unended));
}

#[test]
fn what_means_nothing_is_named_with_its_place() {
    let at = HEADER.encode().len() as u64;
    let time = [0; 8];
    let frame = |kept: usize, len: u32| [&time[..], &[1, 0, 0, 0], &len.to_le_bytes(), &vec![0; kept]].concat();
    let long = u32::try_from(BODY_MAX).unwrap() + 1;
    for (bytes, why) in [
        ([&long.to_le_bytes()[..], &[2]].concat(), "131072 are the most"),
        (record(5, &time), "ends before its fields do"),
        (record(5, &[&time[..], &[9]].concat()), "the reason of the end"),
        (record(4, &[&time[..], &[1, 0, 0, 0, 3, 0, 0, 0]].concat()), "who closed"),
        (record(4, &[&time[..], &[1, 0, 0, 0, 1, 0, 0, 1, 0xff]].concat()), "the reason of a close"),
        (record(1, &[&time[..], &[1, 0, 0, 0, 0], &time, &[1, b'/']].concat()), "a server group"),
        (record(2, &frame(5, 4)), "the length of a frame"),
        (record(3, &frame(KEPT_MAX + 1, 100_000)), "the length of a frame"),
    ] {
        let (entries, tail) = read(&[HEADER.encode(), bytes].concat());
        assert_eq!(entries, []);
        assert!(matches!(tail, Tail::Damaged { at: found, .. } if found == at), "{tail:?}");
        assert!(tail.to_string().contains(why), "{tail} is not about {why}");
    }
    let other = |at: usize, byte: u8| {
        let mut bytes = HEADER.encode();
        bytes[at] = byte;
        Reader::new(&bytes[..]).unwrap_err().to_string()
    };
    assert!(other(0, b'\n').contains("does not begin like one"));
    assert!(other(8, 2).contains("version 2"));
    assert!(other(20, 0).contains("the observer"));
    assert!(other(11, 0xff).contains("damaged"));
}

// ---- recording

/// A mediator that is recorded into a file.
struct Recorded {
    family: Family,
    capture: ToFile,
}

impl Recorded {
    fn begin(mediator: Mediator, file: &Path) -> Self {
        let capture = ToFile::begin(file, Clock::system()).unwrap();
        let family = Family::new(mediator.recorded(capture.recorder().clone()));
        Self { family, capture }
    }

    async fn finish(self) {
        let (end, frames) = soon(self.capture.finish()).await.unwrap();
        assert!(end == End::Done && frames > 0);
    }
}

async fn hears(device: &mut Device, what: impl Fn(&ToDevice) -> bool) -> ToDevice {
    soon(device.wait_for(what)).await.unwrap()
}

async fn gets(device: &mut Device) {
    let ToDevice::Reflected(message) = hears(device, |it| matches!(it, ToDevice::Reflected(_))).await else {
        unreachable!()
    };
    soon(device.ack(message.id())).await.unwrap();
}

/// Something of everything. Each step is over before the next begins, so that its answers can stand in one order only.
async fn story(family: &Family) {
    let kept = ReflectFlags::default();
    let sealed = |text: &str| family.key.seal_envelope(text.as_bytes());
    let mut phone = family.joins(1).await;
    soon(phone.wait_leader()).await.unwrap();
    let mut tablet = family.joins(2).await;
    for text in ["one", "two"] {
        soon(phone.reflect_and_wait(&sealed(text), kept)).await.unwrap();
        gets(&mut tablet).await;
    }
    soon(tablet.reflect_and_wait(&sealed("three"), kept)).await.unwrap();
    gets(&mut phone).await;
    soon(phone.reflect(&sealed("ephemeral"), ReflectFlags { ephemeral: true })).await.unwrap();
    gets(&mut tablet).await;

    let scope = family.key.seal_scope(b"scope");
    assert_eq!(soon(phone.begin(&scope, 60)).await.unwrap(), Begun::Granted);
    assert!(matches!(soon(tablet.begin(&scope, 60)).await.unwrap(), Begun::Rejected(_)));
    soon(phone.reflect_and_wait(&sealed("staged"), kept)).await.unwrap();
    soon(phone.commit()).await.unwrap();
    gets(&mut tablet).await;
    hears(&mut tablet, |it| matches!(it, ToDevice::TransactionEnded(_))).await;

    soon(phone.set_shared_device_data(&family.key.seal_shared_device_data(b"shared"))).await.unwrap();
    soon(phone.devices_info()).await.unwrap();
    soon(tablet.close(CloseCode::Normal)).await;
    soon(phone.reflect_and_wait(&sealed("for whoever is away"), kept)).await.unwrap();
    let mut tablet = soon(Device::connect(&family.url, &family.config(2).existing())).await.unwrap();
    assert_eq!(tablet.server_info().reflection_queue_length, 1);
    gets(&mut tablet).await;
    soon(tablet.wait_dry()).await.unwrap();
    soon(phone.drop_device(DeviceId(2))).await.unwrap();
    assert_eq!(soon(tablet.wait_ended()).await.close_code(), Some(CloseCode::Dropped));
    soon(phone.close(CloseCode::Normal)).await;
}

fn file(path: &Path) -> (Header, Vec<Entry>, Tail) {
    let mut reader = Reader::new(std::fs::File::open(path).unwrap()).unwrap();
    let entries = reader.rest().unwrap();
    (reader.header(), entries, reader.tail())
}

/// By device and the how manieth connection of it.
type Said = BTreeMap<(DeviceId, usize), (Vec<Frame>, Vec<Frame>, (ClosedBy, Option<u16>))>;

/// What was said on each connection, each way, and how it ended.
fn said(entries: &[Entry]) -> Said {
    let mut tracks: BTreeMap<Track, (Option<DeviceId>, _)> = BTreeMap::new();
    for Entry { event, .. } in entries {
        match event {
            Event::Connect { track, .. } => {
                tracks.insert(*track, (None, (vec![], vec![], (ClosedBy::Nobody, None))));
            }
            Event::Frame { track, direction, frame } => {
                let (device, (up, down, _)) = tracks.get_mut(track).unwrap();
                if let Ok(FromDevice::ClientHello(hello)) = FromDevice::decode(&frame.kept) {
                    assert_eq!(hello.response, [0; 72], "no proof is kept");
                    *device = Some(hello.device_id);
                }
                if *direction == Direction::FromDevice {
                    up.push(frame.clone())
                } else {
                    down.push(frame.clone())
                };
            }
            Event::Close { track, by, code, .. } => tracks.get_mut(track).unwrap().1.2 = (*by, *code),
            Event::End(_) => {}
        }
    }
    let mut said = Said::new();
    for (device, what) in tracks.into_values() {
        let device = device.unwrap();
        let nth = said.keys().filter(|(other, _)| *other == device).count();
        said.insert((device, nth), what);
    }
    said
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// `heliostat`
fn heliostat(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_heliostat")).args(args).env("NO_COLOR", "1").stdin(Stdio::null()).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What the operator's door said, as it was before it was broken into lines.
fn refusal(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stderr.clone()).unwrap().replace('│', "");
    said.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_and_the_operator_record_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (dir.path().join("devices.d2mcap"), dir.path().join("mediator.d2mcap"));
    let mut server = Binary::start_with(&dir.path().join("data"), "admin.capture = true\n");
    let recorded = Recorded::begin(server.mediator(), &ours);
    let key = recorded.family.key.clone();
    let id = hex::encode(key.device_group_id().as_bytes());
    let admin = server.admin().to_owned();
    let args = |out: &Path| {
        let args = ["admin", "capture", &id, "--for", "10m", "--admin", &admin, "--out"].map(str::to_owned);
        args.into_iter().chain([path(out).to_owned()]).collect::<Vec<_>>()
    };
    let mut operator = Command::new(env!("CARGO_BIN_EXE_heliostat"));
    let operator = operator.args(args(&theirs)).stdout(Stdio::piped()).spawn().unwrap();
    begins(&theirs).await;
    let second = args(&dir.path().join("second.d2mcap"));
    let second = heliostat(&second.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(refusal(&second).contains("is being recorded already"));
    // Another group's devices are nobody's business here.
    drop(Family::new(server.mediator()).joins(9).await);

    story(&recorded.family).await;
    recorded.finish().await;
    assert!(soon(server.stop()).await.success());
    let told = operator.wait_with_output().unwrap();
    assert!(text(&told).contains("the mediator stopped"), "{told:?}");

    let (header, devices, tail) = file(&ours);
    assert_eq!((header.observer, tail), (Observer::Device, Tail::Ended(End::Done)));
    let (header, mediator, tail) = file(&theirs);
    assert_eq!((header.observer, tail), (Observer::Mediator, Tail::Ended(End::Stopping)));
    let (devices, mediator) = (said(&devices), said(&mediator));
    assert_eq!(devices.len(), 3, "one connection of the first device, two of the second");
    assert_eq!(devices.keys().collect::<Vec<_>>(), mediator.keys().collect::<Vec<_>>());
    for (which, ours) in &devices {
        assert_eq!(ours, &mediator[which], "{which:?}");
        assert!(ours.0.len() >= 2 && ours.1.len() >= 4, "a hello and more");
    }

    for (name, bytes) in [("ours", std::fs::read(&ours).unwrap()), ("theirs", std::fs::read(&theirs).unwrap())] {
        let holds = |secret: &[u8]| bytes.windows(secret.len()).any(|window| window == secret);
        assert!(!holds(key.dgk().expose()) && !holds(key.keys().path.expose()), "{name}: a key");
        assert!(!holds(key.device_group_id().as_bytes()) && !holds(b"127.0.0.1"), "{name}: whose it is");
        assert!(!holds(b"for whoever is away"), "{name}: plain text");
    }
    assert_eq!((mode(&ours), mode(&theirs)), (0o600, 0o600));
    assert!(ToFile::begin(&ours, Clock::system()).is_err(), "what was recorded is not written over");

    // What the mediator saw can be played, too.
    let fresh = Server::start(&dir.path().join("fresh"), Setup::default()).await;
    is_matched(&theirs, fresh.address, &[]);
    fresh.stop().await;
}

/// How often a test looks at what other processes do.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Waits until a capture has its header.
async fn begins(capture: &Path) {
    let begun = async {
        while std::fs::metadata(capture).map_or(0, |it| it.len()) < 21 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    soon(begun).await;
}

#[test]
fn nothing_is_recorded_where_it_is_not_configured() {
    let dir = tempfile::tempdir().unwrap();
    let server = Binary::start(&dir.path().join("data"));
    let out = dir.path().join("out.d2mcap");
    let refused = heliostat(&["admin", "capture", &"11".repeat(32), "--out", path(&out), "--admin", server.admin()]);
    assert!(refusal(&refused).contains("it has no `admin.capture = true`"));
    assert!(!out.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_was_there_is_recorded_from_its_next_frame_until_the_time_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let server = Binary::start_with(&dir.path().join("data"), "admin.capture = true\n");
    let family = Family::new(server.mediator());
    let mut phone = family.joins(1).await;
    soon(phone.wait_leader()).await.unwrap();
    let id = hex::encode(family.key.device_group_id().as_bytes());
    let out = dir.path().join("out.d2mcap");
    let mut operator = Command::new(env!("CARGO_BIN_EXE_heliostat"));
    operator.args(["admin", "capture", &id, "--for", "5s", "--admin", server.admin(), "--out", path(&out)]);
    let mut operator = operator.stdout(Stdio::piped()).spawn().unwrap();
    begins(&out).await;
    soon(phone.devices_info()).await.unwrap();
    while operator.try_wait().unwrap().is_none() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let (_, entries, tail) = file(&out);
    assert_eq!(tail, Tail::Ended(End::TimeOver));
    let [connect, asked, answered, _end] = &entries[..] else { panic!("{entries:?}") };
    assert!(matches!(connect.event, Event::Connect { earlier: true, device: Some(DeviceId(1)), .. }), "{connect:?}");
    for (entry, expected) in [(asked, Direction::FromDevice), (answered, Direction::ToDevice)] {
        assert!(matches!(entry.event, Event::Frame { direction, .. } if direction == expected), "{entry:?}");
    }
    // Played against a mediator that never heard of it.
    let fresh = Server::start(&dir.path().join("fresh"), Setup::default()).await;
    is_matched(&out, fresh.address, &[]);
    fresh.stop().await;
}

// ---- playing it again

/// A story, recorded by its devices.
async fn recorded(dir: &Path) -> (PathBuf, GroupKey) {
    let out = dir.join("story.d2mcap");
    let server = Server::start(&dir.join("first"), Setup::default()).await;
    let recorded = Recorded::begin(server.url(), &out);
    let key = recorded.family.key.clone();
    story(&recorded.family).await;
    recorded.finish().await;
    server.stop().await;
    (out, key)
}

fn replay(capture: &Path, address: SocketAddr, more: &[&str]) -> Output {
    let url = format!("ws://{address}");
    heliostat(&[&["replay", path(capture), &url, "--speed", "100"], more].concat())
}

#[track_caller]
fn is_matched(capture: &Path, address: SocketAddr, more: &[&str]) {
    let output = replay(capture, address, more);
    let said = text(&output);
    assert!(output.status.success() && said.contains("otherwise  0\n"), "{said}\n{output:?}");
    assert!(!said.contains("answered   0 "), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_story_is_answered_the_same_by_another_mediator_with_its_key_and_without() {
    let dir = tempfile::tempdir().unwrap();
    let (capture, key) = recorded(dir.path()).await;
    let file = dir.path().join("group.key");
    std::fs::write(&file, hex::encode(key.dgk().expose())).unwrap();
    let server = Server::start(&dir.path().join("second"), Setup::default()).await;
    is_matched(&capture, server.address, &[]);
    is_matched(&capture, server.address, &["--key", path(&file)]);
    // Ids went on meanwhile, so nothing matches by accident; but this group is not new any more.
    let again = replay(&capture, server.address, &["--key", path(&file)]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again).contains("server-info was due, and the connection was closed with 4115"), "{}", text(&again));
    is_matched(&capture, server.address, &[]);
    server.stop().await;
}

/// Whoever is dropped is told another number.
struct ClosesWith(u16);

impl relay::Wrong for ClosesWith {
    fn to_device(&mut self, said: relay::Said) -> relay::Instead {
        relay::Instead::down(match said {
            relay::Said::Close(4113) => relay::Said::Close(self.0),
            other => other,
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_mediator_that_answers_otherwise_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let (capture, _) = recorded(dir.path()).await;
    let server = Server::start(&dir.path().join("second"), Setup::default()).await;
    for (fault, expected) in [
        (Fault::AcksEphemeral, "reflect-ack came and was not due"),
        (Fault::MiscountsTheQueue, "server-info: queued is"),
        (Fault::TellsTheCommitter, "transaction-ended came and was not due"),
        (Fault::ForgetsTheBacklog, "reflected was due and did not come"),
        (Fault::SaysEndedBeforeMessages, "transaction-ended came earlier than it was due"),
        (Fault::IsDryTwice, "reflection-queue-dry came and was not due"),
        (Fault::ReflectsToTheSender, "reflected came and was not due"),
        (Fault::NamesTheAskerInRejections, "transaction-rejected: device is \"0000000000000002\""),
    ] {
        let wrong = Relay::before(server.address, fault.make()).await;
        let output = replay(&capture, wrong.address, &[]);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{fault:?}: {said}");
        assert!(said.contains(expected), "{fault:?}: {said}");
    }
    let unordered = Relay::before(server.address, Fault::SaysEndedBeforeMessages.make()).await;
    is_matched(&capture, unordered.address, &["--any-order"]);
    let closes = Relay::before(server.address, Arc::new(|_: &str| Box::new(ClosesWith(4112)))).await;
    let said = text(&replay(&capture, closes.address, &[]));
    assert!(said.contains("close 4113 was due, and the connection was closed with 4112"), "{said}");
    // And behind a relay that changes nothing, nothing is otherwise.
    let honest = Relay::before(server.address, Arc::new(|_: &str| Box::new(ClosesWith(4113)))).await;
    is_matched(&capture, honest.address, &[]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_steps_sees_what_comes_next() {
    use std::io::Write as _;
    let dir = tempfile::tempdir().unwrap();
    let (capture, _) = recorded(dir.path()).await;
    let server = Server::start(&dir.path().join("second"), Setup::default()).await;
    let url = format!("ws://{}", server.address);
    let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
    command.args(["replay", path(&capture), &url, "--step"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Then nobody steps any more, and the rest is played.
    child.stdin.take().unwrap().write_all(b"\n\n\n\n").unwrap();
    let output = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("opens  [Enter]") && said.contains("0000000000000001 -> client-hello  [Enter]"), "{said}");
    assert!(said.contains("<- server-hello"), "{said}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ending_that_nothing_in_the_capture_brings_about_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), Setup::default()).await;
    let one = dir.path().join("one.d2mcap");
    let recorded = Recorded::begin(server.url(), &one);
    let family = Family { key: recorded.family.key.clone(), url: server.url() };
    let mut tablet = recorded.family.joins(2).await;
    soon(family.joins(1).await.drop_device(DeviceId(2))).await.unwrap();
    assert_eq!(soon(tablet.wait_ended()).await.code(), Some(4113));
    recorded.finish().await;
    let (header, entries, _) = file(&one);
    for ending in [4113, 1011, 4013] {
        let entries = entries.iter().cloned().map(|mut entry| {
            if let Event::Close { code, .. } = &mut entry.event {
                *code = Some(ending);
            }
            entry
        });
        let capture = dir.path().join(format!("{ending}.d2mcap"));
        std::fs::write(&capture, [header.encode(), bytes_of(&entries.collect::<Vec<_>>())[21..].to_vec()].concat())
            .unwrap();
        let output = replay(&capture, server.address, &[]);
        assert!(text(&output).contains("otherwise  0\n"), "{ending}: {}", text(&output));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_that_are_not_recorded_are_not_missed() {
    let dir = tempfile::tempdir().unwrap();
    let capture = dir.path().join("part.d2mcap");
    let limits = heliostat::group::Limits { max_device_slots: 2, ..heliostat::group::Limits::default() };
    let server = Server::start(&dir.path().join("data"), Setup { limits, ..Setup::default() }).await;
    let recorded = Recorded::begin(server.url(), &capture);
    let family = Family { key: recorded.family.key.clone(), url: server.url() };
    let mut phone = family.joins(1).await;
    soon(phone.wait_leader()).await.unwrap();
    let mut tablet = recorded.family.joins(2).await;
    assert_eq!(soon(tablet.devices_info()).await.unwrap().0.len(), 2);
    let scope = family.key.seal_scope(b"scope");
    assert_eq!(soon(phone.begin(&scope, 60)).await.unwrap(), Begun::Granted);
    assert!(matches!(soon(tablet.begin(&scope, 60)).await.unwrap(), Begun::Rejected(_)));
    soon(phone.commit()).await.unwrap();
    hears(&mut tablet, |it| matches!(it, ToDevice::TransactionEnded(_))).await;
    assert_eq!(soon(tablet.begin(&scope, 60)).await.unwrap(), Begun::Granted);
    soon(tablet.commit()).await.unwrap();
    soon(Device::connect(&recorded.family.url, &family.config(3))).await.unwrap_err();
    soon(tablet.close(CloseCode::Normal)).await;
    recorded.finish().await;
    is_matched(&capture, server.address, &[]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_expired_is_waited_for_at_any_speed() {
    let dir = tempfile::tempdir().unwrap();
    let capture = dir.path().join("lock.d2mcap");
    let server = Server::start(&dir.path().join("data"), Setup::default()).await;
    let recorded = Recorded::begin(server.url(), &capture);
    let mut phone = recorded.family.joins(1).await;
    let mut tablet = recorded.family.joins(2).await;
    let scope = recorded.family.key.seal_scope(b"scope");
    assert_eq!(soon(phone.begin(&scope, 7)).await.unwrap(), Begun::Granted);
    // Somebody speaks just before the end.
    tokio::time::timeout(Duration::from_millis(6_500), tablet.next_event()).await.unwrap_err();
    soon(tablet.devices_info()).await.unwrap();
    assert_eq!(soon(phone.wait_ended()).await.code(), Some(4011));
    recorded.finish().await;
    is_matched(&capture, server.address, &[]);
    server.stop().await;
}

// ---- drawing it

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_picture_of_a_story_is_well_formed_and_has_its_arrows() {
    let dir = tempfile::tempdir().unwrap();
    let (capture, _) = recorded(dir.path()).await;
    let out = dir.path().join("trace.json");
    let output = heliostat(&["trace", path(&capture), "-o", path(&out)]);
    assert!(output.status.success(), "{output:?}");
    let trace: Value = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();

    let mut names = BTreeMap::new();
    let mut slices: BTreeMap<u64, Vec<(u64, u64, &Value)>> = BTreeMap::new();
    let mut flows: BTreeMap<u64, Vec<&Value>> = BTreeMap::new();
    let mut waiting: BTreeMap<&str, Vec<(u64, i64)>> = BTreeMap::new();
    for event in events {
        assert_eq!(event["pid"], 1, "{event}");
        let (phase, tid) = (event["ph"].as_str().unwrap(), event["tid"].as_u64().unwrap());
        let name = event["name"].as_str().unwrap();
        let ts = || event["ts"].as_u64().unwrap();
        match phase {
            "M" => {
                assert!(["process_name", "thread_name", "thread_sort_index"].contains(&name), "{event}");
                if name == "thread_name" {
                    names.insert(tid, event["args"]["name"].as_str().unwrap());
                }
            }
            "X" => {
                let duration = event["dur"].as_u64().unwrap();
                assert!(duration > 0 && event["cat"].is_string(), "{event}");
                slices.entry(tid).or_default().push((ts(), ts() + duration, event));
            }
            "s" | "f" => {
                assert!(phase == "s" || event["bp"] == "e", "{event}");
                flows.entry(event["id"].as_u64().unwrap()).or_default().push(event);
            }
            "C" => waiting.entry(name).or_default().push((ts(), event["args"]["messages"].as_i64().unwrap())),
            other => panic!("phase {other}"),
        }
    }
    assert_eq!(
        names.values().copied().collect::<BTreeSet<_>>(),
        BTreeSet::from(["device 0000000000000001", "device 0000000000000002"]),
        "a track per device"
    );
    assert_eq!(names.keys().collect::<Vec<_>>(), slices.keys().collect::<Vec<_>>());

    // Slices of a track lie within each other or beside each other.
    for slices in slices.values_mut() {
        slices.sort_by_key(|&(from, to, _)| (from, std::cmp::Reverse(to)));
        let mut around: Vec<u64> = Vec::new();
        for &(from, to, event) in slices.iter() {
            while around.last().is_some_and(|&end| end <= from) {
                around.pop();
            }
            assert!(around.last().is_none_or(|&end| to <= end), "{event} sticks out");
            around.push(to);
        }
    }
    let of = |category: &str| -> Vec<&Value> {
        slices.values().flatten().map(|(.., event)| *event).filter(|event| event["cat"] == category).collect()
    };
    assert_eq!(of("connection").len(), 3);
    let transactions = of("transaction");
    assert_eq!(transactions.len(), 1);
    assert_eq!(transactions[0]["args"]["end"], "committed");

    // Every arrow has both its ends, forward in time, and each of them lies on a frame of the right kind.
    let frame_at = |end: &Value| {
        let (tid, ts) = (end["tid"].as_u64().unwrap(), end["ts"].as_u64().unwrap());
        let frames = slices[&tid].iter().map(|(.., event)| *event);
        let mut frames = frames.filter(|event| event["ts"] == ts && event["dur"] == 1);
        frames.next().unwrap_or_else(|| panic!("{end} lies on nothing"))["name"].as_str().unwrap().to_owned()
    };
    let mut arrows: BTreeMap<(String, String), usize> = BTreeMap::new();
    for (id, ends) in flows {
        let [begin, end] = ends[..] else { panic!("flow {id}: {ends:?}") };
        assert_eq!((&begin["ph"], &end["ph"]), (&"s".into(), &"f".into()));
        assert_eq!((&begin["name"], &begin["cat"]), (&end["name"], &end["cat"]));
        assert!(begin["ts"].as_u64() < end["ts"].as_u64());
        *arrows.entry((frame_at(begin), frame_at(end))).or_default() += 1;
    }
    let arrow = |from: &str, to: &str, count| ((from.to_owned(), to.to_owned()), count);
    let expected = [
        // One, two, three, staged, and for whoever is away; the ephemeral one is not acknowledged.
        arrow("reflect", "reflect-ack", 5),
        arrow("reflect", "reflected", 6),
        arrow("reflected", "reflected-ack", 6),
    ];
    assert_eq!(arrows, BTreeMap::from(expected));

    let tablet: Vec<i64> = waiting["waits for device 0000000000000002"].iter().map(|&(_, count)| count).collect();
    assert!(tablet.iter().all(|&count| (0..=1).contains(&count)), "{tablet:?}");
    assert_eq!((tablet.iter().max(), tablet.last()), (Some(&1), Some(&0)), "{tablet:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_device_is_counted_also_when_its_sender_is_not_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let (capture, out) = (dir.path().join("one.d2mcap"), dir.path().join("trace.json"));
    let server = Server::start(&dir.path().join("data"), Setup::default()).await;
    let recorded = Recorded::begin(server.url(), &capture);
    let family = Family { key: recorded.family.key.clone(), url: server.url() };
    let mut phone = family.joins(1).await;
    let sealed = family.key.seal_envelope(b"text");
    let tablet = recorded.family.joins(2).await;
    soon(tablet.close(CloseCode::Normal)).await;
    soon(phone.reflect_and_wait(&sealed, ReflectFlags::default())).await.unwrap();
    let mut tablet = soon(Device::connect(&recorded.family.url, &family.config(2).existing())).await.unwrap();
    gets(&mut tablet).await;
    soon(tablet.wait_dry()).await.unwrap();
    for ephemeral in [false, true, false] {
        soon(phone.reflect(&sealed, ReflectFlags { ephemeral })).await.unwrap();
        gets(&mut tablet).await;
    }
    soon(tablet.close(CloseCode::Normal)).await;
    recorded.finish().await;
    server.stop().await;

    let output = heliostat(&["trace", path(&capture), "-o", path(&out)]);
    assert!(output.status.success(), "{output:?}");
    let trace: Value = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
    let counters = trace["traceEvents"].as_array().unwrap().iter().filter(|event| event["ph"] == "C");
    let counted: Vec<i64> = counters.map(|event| event["args"]["messages"].as_i64().unwrap()).collect();
    assert_eq!(counted, [0, 1, 0, 1, 0, 1, 0]);
}

#[test]
fn a_capture_is_not_written_over_with_its_picture() {
    let dir = tempfile::tempdir().unwrap();
    let (capture, _) = by_hand(dir.path());
    let before = std::fs::read(&capture).unwrap();
    let output = heliostat(&["trace", path(&capture), "-o", path(&dir.path().join("./hand.d2mcap"))]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(std::fs::read(&capture).unwrap(), before);
}

// ---- reading it

/// A capture made by hand of the vectors' frames.
fn by_hand(dir: &Path) -> (PathBuf, PathBuf) {
    let frame = |hex: &str, direction| {
        let kept = Bytes::from(hex::decode(hex).unwrap());
        Event::Frame { track: Track(1), direction, frame: Frame { len: u32::try_from(kept.len()).unwrap(), kept } }
    };
    let hello = FromDevice::ClientHello(Box::new(heliostat::wire::d2m::ClientHello {
        response: [0; 72],
        device_id: DeviceId(2),
        slots_exhausted: heliostat::wire::d2m::SlotsExhausted::Reject,
        slot_expiration: heliostat::wire::d2m::SlotExpiration::Persistent,
        encrypted_device_info: hex::decode("f417d990269813637739d9a6bca7400fb8609fd492b4c8ef72b596b856aced4e5bc17474ceb5ec5cbb3bafcf48b0f5f97ed20a9f2b5e9a237fc04925eb40e7").unwrap(),
        expected_slot_state: heliostat::wire::d2m::SlotState::New,
    }));
    let proxy = Frame { len: 84, kept: Bytes::from_static(&[0; 4]) };
    let ack = FromDevice::ReflectedAck(heliostat::wire::d2m::ReflectedId(7)).encode();
    let server_group = ServerGroup::new("a0").unwrap();
    let events = [
        Event::Connect { track: Track(1), server_group, earlier: false, device: None },
        frame(&hex::encode(hello.encode()), Direction::FromDevice),
        frame("120000000801", Direction::ToDevice),
        Event::Frame { track: Track(1), direction: Direction::ToDevice, frame: proxy },
        frame(
            "820000001000000007000000c869e5cf8b010000f1db890743fe68cf790d152fadeb3edab9b6cc8d267f1cc78ce7804ac2ca7e30e613ff516762b93bc4a5dca86c07e261e44e18abc44c7f",
            Direction::ToDevice,
        ),
        frame(&hex::encode(ack), Direction::FromDevice),
        Event::Close { track: Track(1), by: ClosedBy::Mediator, code: Some(4113), reason: "Dropped".to_owned() },
        Event::End(End::Done),
    ];
    let entries = events.into_iter().zip(0..).map(|(event, at)| Entry { at: Duration::from_micros(at * 1_500), event });
    let (capture, key) = (dir.join("hand.d2mcap"), dir.join("group.key"));
    std::fs::write(&capture, bytes_of(&entries.collect::<Vec<_>>())).unwrap();
    std::fs::write(&key, (0..32).map(|byte| format!("{byte:02x}")).collect::<String>()).unwrap();
    (capture, key)
}

#[test]
fn a_capture_is_read_by_people_and_by_programs() {
    let dir = tempfile::tempdir().unwrap();
    let (capture, key) = by_hand(dir.path());
    let output = heliostat(&["decode", path(&capture), "--key", path(&key)]);
    assert!(output.status.success(), "{output:?}");
    insta::assert_snapshot!(text(&output), @r#"
    -- recorded by the mediator, beginning 2023-11-14T22:13:20.000Z
       0.000000 #1  ---------------- == opened, server group a0
       0.001500 #1  0000000000000002 -> client-hello
      payload type            0x11 client-hello
      reserved                000000
      version                 0
      response nonce          000000000000000000000000000000000000000000000000 (24 bytes)
      response box            000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000 (48 bytes)
      device                  0000000000000002
      if slots are exhausted  REJECT
      slot expiration         PERSISTENT
      expected slot state     NEW
      device info             f417d990269813637739d9a6bca7400fb8609fd492b4c8ef72b596b856aced4e5bc17474ceb5ec5cbb3bafcf48b0f5f97ed20a9f2b5e9a237fc04925eb40e7 (63 bytes)
        opened                0a03aaaaaa10031a04746573742203312e302a036c6162 (23 bytes)
       0.003000 #1  0000000000000002 <- server-info
      payload type        0x12 server-info
      reserved            000000
      slots               1
      slot state          NEW
      queued              0
      time                0 (1970-01-01T00:00:00.000Z)
      shared device data  (0 bytes)
       0.004500 #1  0000000000000002 <- proxy
      payload type  0x00 proxy
      reserved      000000
      not recorded  80 bytes
       0.006000 #1  0000000000000002 <- reflected
      payload type   0x82 reflected
      reserved       000000
      header-length  16
      ephemeral      false
      reflected-id   7
      time           1700000000456 (2023-11-14T22:13:20.456Z)
      envelope       f1db890743fe68cf790d152fadeb3edab9b6cc8d267f1cc78ce7804ac2ca7e30e613ff516762b93bc4a5dca86c07e261e44e18abc44c7f (55 bytes)
        opened       0a02000069efcdab89674523011803 (15 bytes)
       0.007500 #1  0000000000000002 -> reflected-ack
      payload type  0x83 reflected-ack
      reserved      000000
      reflected-id  7
       0.009000 #1  0000000000000002 == closed by the mediator with 4113 ("Dropped"): the device was dropped from the group
    -- the end: the recording was over
    "#);

    let output = heliostat(&["decode", "--file", path(&capture), "--key", path(&key), "--json"]);
    let lines: Vec<Value> = text(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 10, "one for each entry, one before and one behind them");
    let reflected = &lines[5];
    assert_eq!((&reflected["what"], &reflected["from"]), (&"reflected".into(), &"mediator".into()));
    assert_eq!((&reflected["time_us"], &reflected["device"]), (&6_000.into(), &"0000000000000002".into()));
    let fields = reflected["fields"].as_array().unwrap();
    assert!(fields.iter().any(|field| field["name"] == "opened" && field["value"] == "0a02000069efcdab89674523011803"));

    // What is printed in hex can be read again.
    let hex = heliostat(&["decode", path(&capture), "--hex"]);
    let lines = dir.path().join("lines.txt");
    std::fs::write(&lines, &hex.stdout).unwrap();
    let again = heliostat(&["decode", "--file", path(&lines)]);
    assert!(again.status.success() && text(&again).contains("reflected-ack"), "{again:?}");
}

#[test]
fn of_a_capture_that_was_cut_what_is_there_is_shown_and_what_is_not_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (capture, _) = by_hand(dir.path());
    let whole = std::fs::read(&capture).unwrap();
    std::fs::write(&capture, &whole[..whole.len() - 20]).unwrap();
    let output = heliostat(&["decode", path(&capture)]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = text(&output);
    assert!(said.contains("reflected-ack") && !said.contains("4113"), "{said}");
    assert!(said.contains("-- the end: it was cut: of a record that begins at byte"), "{said}");
    let drawn = heliostat(&["trace", path(&capture)]);
    assert_eq!(drawn.status.code(), Some(1));
    serde_json::from_slice::<Value>(&drawn.stdout).unwrap();
    assert!(String::from_utf8(drawn.stderr).unwrap().contains("it was cut"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_and_a_simulation_record_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), Setup::default()).await;
    let url = format!("ws://{}", server.address);
    let (device, crowd) = (dir.path().join("device.d2mcap"), dir.path().join("crowd.d2mcap"));
    let key = dir.path().join("group.key");
    let output = heliostat(&["device", &url, "--group-key", path(&key), "--capture", path(&device)]);
    assert!(output.status.success(), "{output:?}");
    let (_, entries, tail) = file(&device);
    assert_eq!((said(&entries).len(), tail), (1, Tail::Ended(End::Done)));

    let args = ["simulate", "--url", &url, "--groups", "3", "--devices", "2", "--messages", "4", "--no-csp"];
    let output = heliostat(&[&args[..], &["--capture", path(&crowd)]].concat());
    assert!(output.status.success(), "{output:?}");
    let (_, entries, tail) = file(&crowd);
    assert_eq!(tail, Tail::Ended(End::Done));
    let reflects = entries.iter().filter(|entry| {
        matches!(&entry.event, Event::Frame { direction: Direction::FromDevice, frame, .. }
            if matches!(FromDevice::decode(&frame.kept), Ok(FromDevice::Reflect(_))))
    });
    assert_eq!(reflects.count(), 8, "those of one group");
    server.stop().await;
}
