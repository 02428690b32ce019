//! The disk says no: full, not to be written, changed behind our back, cut off, of another version. Each has a name, nothing
//! pretends, whoever can goes on, and nothing is deleted: what was refused is left as it was, byte for byte.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

#[path = "common/binary.rs"]
mod binary;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use binary::Binary;
use heliostat::client::{ConnectError, Device, DeviceConfig, Ended, GroupKey};
use heliostat::group::ranges::RangeSet;
use heliostat::group::record::{GroupRecord, Held, LogEntry, Page, Seq, SlotRecord, Snapshot, Write};
use heliostat::store::{Durability, OpenError, SEQ_MAX, SqliteStore, Store as _, StoreError};
use heliostat::wire::d2m::{
    DeviceGroupId, DeviceId, Envelope, ReflectFlags, Reflected, ReflectedId, ServerGroup, SlotExpiration, ToDevice,
};
use tempfile::TempDir;

const NOW: u64 = 1_700_000_000_000;
/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const DATABASE: &str = "mediator.sqlite";

async fn soon<T>(happens: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, happens).await.expect("this happens in time")
}

// ---- a store with something in it

fn id(n: u8) -> DeviceGroupId {
    DeviceGroupId::new([n; 32])
}

fn entry(seq: u64, envelope: &[u8]) -> Write {
    let message = Reflected::new(
        Envelope::copy_from(envelope),
        ReflectFlags::default(),
        ReflectedId(Seq(seq).wire_id()),
        NOW + seq,
    );
    Write::Append(LogEntry { seq: Seq(seq), origin: DeviceId(1), message })
}

/// A group of two slots.
fn group() -> Vec<Write> {
    let slot = |device| {
        Write::Slot(SlotRecord {
            device: DeviceId(device),
            expiration: SlotExpiration::Persistent,
            encrypted_device_info: vec![7; 50],
            connected: false,
            last_disconnect_ms: NOW,
            since: Seq(0),
            cursor: Seq(0),
            acked: RangeSet::new(),
            acked_unseen: RangeSet::new(),
            issued: Seq(0),
            counted_through: Seq(0),
            held: Held::default(),
        })
    };
    let seq_reserved = Seq(1_024);
    let record = GroupRecord { seq_reserved, last_timestamp_ms: NOW, encrypted_shared_device_data: vec![9; 40] };
    vec![Write::Group(record), slot(1), slot(2)]
}

/// Opens a directory that nobody has. A process that another test is about to start holds our locks, too, between its fork and
/// its exec: whoever meets one waits until it lets go.
fn open(dir: &Path) -> Result<Arc<SqliteStore>, OpenError> {
    loop {
        match SqliteStore::open(dir, Durability::Memory, NOW) {
            Err(OpenError::InUse { .. }) => std::fs::File::open(dir.join("mediator.lock")).unwrap().lock().unwrap(),
            opened => return opened,
        }
    }
}

/// Eight groups with twenty messages each, closed in order.
async fn filled() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    for n in 1..=8 {
        let log = (1..=20).map(|seq| entry(seq, &[n ^ u8::try_from(seq).unwrap(); 700]));
        store.commit(id(n), group().into_iter().chain(log).collect()).await.unwrap();
    }
    store.close().await.unwrap();
    dir
}

type Told = (Result<Option<Snapshot>, StoreError>, Result<Page, StoreError>);

async fn told(store: &SqliteStore, n: u8) -> Told {
    (store.load(id(n)).await, store.page(id(n), Seq(0), SEQ_MAX, usize::MAX).await)
}

/// Every file of a directory, except what holds nothing: the lock, and the index of the write-ahead log.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths
        .filter(|path| !path.ends_with("mediator.lock") && !path.ends_with("mediator.sqlite-shm") && path.is_file())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect()
}

/// Neither the store nor the program opens `dir`, both say why, and nothing of it changes.
fn is_refused(dir: &Path, named: fn(&OpenError) -> bool, advice: &str) {
    let before = files(dir);
    let refused = open(dir).unwrap_err();
    assert!(named(&refused), "{refused:?}");
    let output = Binary::refuses(dir);
    let said = String::from_utf8_lossy(&output.stderr).replace('\n', " ");
    let said = said.split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ");
    for text in [refused.to_string().as_str(), advice] {
        assert!(text.contains(advice), "{text}");
    }
    assert!(said.contains(advice), "{said}");
    let after = files(dir);
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    assert!(before == after, "a file was changed");
}

fn sql(dir: &Path, statements: &str) {
    rusqlite::Connection::open(dir.join(DATABASE)).unwrap().execute_batch(statements).unwrap();
}

// ---- not what it should be

#[tokio::test]
async fn a_newer_version_is_refused_and_left_alone() {
    let dir = filled().await;
    sql(dir.path(), "PRAGMA user_version = 2");
    is_refused(dir.path(), |error| matches!(error, OpenError::Newer { found: 2, known: 1, .. }), "Run that version");
}

#[tokio::test]
async fn a_newer_version_that_crashed_is_left_alone_with_its_write_ahead_log() {
    let dir = filled().await;
    let crashed = tempfile::tempdir().unwrap();
    {
        let newer = rusqlite::Connection::open(dir.path().join(DATABASE)).unwrap();
        newer.execute_batch("PRAGMA user_version = 2; CREATE TABLE of_tomorrow (x)").unwrap();
        for file in [DATABASE, "mediator.sqlite-wal"] {
            std::fs::copy(dir.path().join(file), crashed.path().join(file)).unwrap();
        }
    }
    is_refused(crashed.path(), |error| matches!(error, OpenError::Newer { .. }), "Run that version");
}

#[tokio::test]
async fn an_older_version_that_never_was_is_refused_and_left_alone() {
    let dir = filled().await;
    sql(dir.path(), "PRAGMA user_version = 0");
    is_refused(dir.path(), |error| matches!(error, OpenError::Engine { .. }), "restore a backup");
}

#[tokio::test]
async fn a_file_that_was_cut_off_is_refused_and_left_alone() {
    for keep in [100, 4_096, 20_000, 40_960] {
        let dir = filled().await;
        let file = std::fs::File::options().write(true).open(dir.path().join(DATABASE)).unwrap();
        assert!(file.metadata().unwrap().len() > 60_000);
        file.set_len(keep).unwrap();
        let named = |error: &OpenError| matches!(error, OpenError::Engine { .. } | OpenError::NotOurs { .. });
        is_refused(dir.path(), named, "");
    }
}

#[tokio::test]
async fn a_store_that_is_gone_is_not_taken_for_one_that_never_was() {
    type Loss = fn(&Path);
    let losses: [Loss; 4] = [
        |database| std::fs::write(database, b"").unwrap(),
        |database| std::fs::remove_file(database).unwrap(),
        // Of a crash: the log of what is not there any more. SQLite would delete it.
        |database| {
            std::fs::write(database, b"").unwrap();
            std::fs::write(database.with_extension("sqlite-wal"), vec![1; 5_000]).unwrap();
        },
        |database| {
            std::fs::remove_file(database).unwrap();
            rusqlite::Connection::open(database).unwrap().execute_batch("PRAGMA journal_mode = WAL").unwrap();
        },
    ];
    for lose in losses {
        let dir = filled().await;
        lose(&dir.path().join(DATABASE));
        is_refused(dir.path(), |error| matches!(error, OpenError::Gone { .. }), "Restore a backup");
        // As it is told.
        for file in files(dir.path()).keys() {
            std::fs::remove_file(file).unwrap();
        }
        std::fs::remove_file(dir.path().join("mediator.lock")).unwrap();
        assert_eq!(told(&open(dir.path()).unwrap(), 1).await.0, Ok(None));
    }
}

#[tokio::test]
async fn something_else_under_our_name_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(DATABASE), vec![b'?'; 10_000]).unwrap();
    is_refused(dir.path(), |error| matches!(error, OpenError::NotOurs { .. }), "is not a mediator's database");
}

// ---- not to be written

/// What no rights of root can get around.
#[tokio::test]
async fn what_stands_in_the_way_of_a_file_is_named() {
    for name in [DATABASE, "mediator.lock"] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(name)).unwrap();
        is_refused(dir.path(), |error| matches!(error, OpenError::Unusable { .. }), "belongs to this user");
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, b"precious").unwrap();
    for data in [file.clone(), file.join("data")] {
        let refused = open(&data).unwrap_err();
        assert!(matches!(&refused, OpenError::Unusable { .. }), "{refused}");
    }
    assert_eq!(std::fs::read(file).unwrap(), b"precious");
}

/// A directory that is read-only for root, too: mounted so, in a namespace of the server's own.
#[tokio::test]
async fn a_read_only_file_system_is_named() {
    let dir = filled().await;
    let before = files(dir.path());
    let script = r#"mount --bind "$DIR" "$DIR" && mount -o remount,bind,ro "$DIR" && exec "$0" "$@""#;
    let Some(mut unshare) = in_a_namespace(dir.path(), script) else { return };
    unshare.args([env!("CARGO_BIN_EXE_heliostat"), "serve", "--listen", "127.0.0.1:0", "--data"]).arg(dir.path());
    let output = unshare.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("Read-only file system") && said.contains("cannot use"), "{said}");
    assert!(before == files(dir.path()));
}

/// A command that runs `script` where it may mount; nothing where that is not allowed.
fn in_a_namespace(dir: &Path, script: &str) -> Option<Command> {
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c"]).env("DIR", dir);
        command
    };
    let may = unshare().arg(r#"mount -t tmpfs none "$DIR""#).stderr(Stdio::null()).status();
    if !may.is_ok_and(|status| status.success()) {
        eprintln!("not allowed to mount anything here: what a file size limit and a file in the way show has to do");
        return None;
    }
    let mut command = unshare();
    command.arg(script);
    Some(command)
}

// ---- full

/// No file may grow beyond this, from now on. Unlike a quota it needs nobody's permission, and it can be taken back.
fn limit_files_of(pid: u32, bytes: Option<u64>) {
    let soft = bytes.map_or_else(|| "unlimited".to_owned(), |bytes| bytes.to_string());
    let pid = pid.to_string();
    let done = Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={soft}:")]).status().unwrap();
    assert!(done.success());
}

/// The write beyond the limit is to fail, not to kill.
const SURVIVES_LIMITS: [&str; 3] = ["sh", "-c", r#"trap '' XFSZ; exec "$0" "$@""#];
const VICTIM_DIR: &str = "HELIOSTAT_TEST_FULL_DISK";

/// Not a test: what `a_full_disk_is_an_error_and_no_more` starts, since the limit is of a whole process.
#[tokio::test]
#[ignore = "runs as a child process"]
async fn victim_of_a_full_disk() {
    let Some(dir) = std::env::var_os(VICTIM_DIR).map(PathBuf::from) else { return };
    let store = open(&dir).unwrap();
    for n in [1, 2] {
        let log = (1..=20).map(|seq| entry(seq, &[n; 5_000]));
        store.commit(id(n), group().into_iter().chain(log).collect()).await.unwrap();
    }
    let before = (told(&store, 1).await, told(&store, 2).await);
    assert!(before.0.1.is_ok() && before.1.1.is_ok());
    limit_files_of(std::process::id(), Some(std::fs::metadata(dir.join("mediator.sqlite-wal")).unwrap().len()));
    for n in [1, 2, 1] {
        let refused = store.commit(id(n), vec![entry(21, &[n; 5_000])]).await.unwrap_err();
        assert!(matches!(refused, StoreError::Failed(_)), "{refused:?}");
        println!("refused with: {refused}");
    }
    assert_eq!((told(&store, 1).await, told(&store, 2).await), before, "all that was kept can be read");
    limit_files_of(std::process::id(), None);
    store.commit(id(1), vec![entry(21, &[1; 5_000])]).await.unwrap();
    assert_eq!(store.page(id(1), Seq(0), SEQ_MAX, usize::MAX).await.unwrap().entries.len(), 21);
    assert_eq!(told(&store, 2).await, before.1, "what failed did not come back");
    store.close().await.unwrap();
}

#[test]
fn a_full_disk_is_an_error_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new("sh")
        .args(&SURVIVES_LIMITS[1..])
        .arg(std::env::current_exe().unwrap())
        .args(["victim_of_a_full_disk", "--exact", "--ignored", "--nocapture"])
        .env(VICTIM_DIR, dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.matches("refused with: the store failed: ").count(), 3, "{said}");
}

/// A group at the real server: what was acknowledged, and how to ask for it.
struct Family {
    key: GroupKey,
    acked: Vec<Vec<u8>>,
}

impl Family {
    fn new() -> Self {
        Self { key: GroupKey::generate(), acked: Vec::new() }
    }

    fn config(&self, device: u64) -> DeviceConfig {
        DeviceConfig::new(self.key.clone(), ServerGroup::new("a0").unwrap(), DeviceId(device))
    }

    async fn joins(&self, server: &Binary, device: u64) -> Device {
        let mut device = soon(Device::connect(&server.mediator(), &self.config(device))).await.unwrap();
        soon(device.wait_dry()).await.unwrap();
        device
    }

    async fn tries(&self, server: &Binary, device: u64) -> Result<Device, Ended> {
        let connected = soon(Device::connect(&server.mediator(), &self.config(device).existing())).await;
        let mut device = connected.map_err(|error| match error {
            ConnectError::NotAdmitted(ended) => ended,
            error => panic!("{error}"),
        })?;
        soon(device.wait_dry()).await?;
        Ok(device)
    }

    async fn returns(&self, server: &Binary, device: u64) -> Device {
        self.tries(server, device).await.unwrap()
    }

    async fn reflects(&mut self, from: &mut Device, text: &str, len: usize) -> Result<(), Ended> {
        let mut envelope = text.as_bytes().to_vec();
        envelope.resize(len.max(text.len()), b'.');
        soon(from.reflect_and_wait(&envelope, ReflectFlags::default())).await?;
        self.acked.push(envelope);
        Ok(())
    }

    /// What `device` is sent next has to be what was acknowledged, from the first message on; one more that was not
    /// answered for may follow.
    async fn hears_all(&self, device: &mut Device) {
        for expected in &self.acked {
            let payload = soon(device.wait_for(|payload| matches!(payload, ToDevice::Reflected(_)))).await.unwrap();
            let ToDevice::Reflected(message) = payload else { unreachable!() };
            assert_eq!(message.envelope(), expected);
        }
    }
}

/// The disk gets full under the server, and is not any more.
async fn the_server_lives_through_a_full_disk(server: &mut Binary, full: impl Fn(&Binary), free: impl Fn(&Binary)) {
    let (mut family, mut others) = (Family::new(), Family::new());
    let (mut a, mut b) = (family.joins(server, 1).await, family.joins(server, 2).await);
    let mut quiet = others.joins(server, 1).await;
    drop(others.joins(server, 2).await);
    for n in 0..10 {
        family.reflects(&mut a, &format!("before {n}"), 3_000).await.unwrap();
    }
    family.hears_all(&mut b).await;

    full(server);
    let refused = family.reflects(&mut a, "never", 9_000).await.unwrap_err();
    assert_eq!(refused.code(), Some(1011), "not acknowledged: {refused}");
    assert_eq!(soon(b.wait_ended()).await.code(), Some(1011), "nor delivered");
    assert_eq!(family.tries(server, 1).await.unwrap_err().code(), Some(1011), "a join has to be written down, too");
    assert!(server.runs());
    assert_eq!(soon(quiet.devices_info()).await.unwrap().0.len(), 2, "who wants nothing written does not notice");

    free(server);
    let mut a = family.returns(server, 1).await;
    family.reflects(&mut a, "after", 3_000).await.unwrap();
    others.reflects(&mut quiet, "after", 3_000).await.unwrap();
    family.hears_all(&mut family.returns(server, 2).await).await;
    others.hears_all(&mut others.returns(server, 2).await).await;
    assert!(soon(server.stop()).await.success());
}

#[tokio::test]
async fn a_server_whose_files_may_not_grow_says_1011_and_goes_on_when_they_may() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut server = Binary::start_under(&data, &SURVIVES_LIMITS);
    let full = |server: &Binary| {
        let wal = std::fs::metadata(data.join("mediator.sqlite-wal")).unwrap();
        limit_files_of(server.id(), Some(wal.len()));
    };
    the_server_lives_through_a_full_disk(&mut server, full, |server| limit_files_of(server.id(), None)).await;
}

#[tokio::test]
async fn a_server_on_a_full_file_system_says_1011_and_goes_on_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    if in_a_namespace(&data, "true").is_none() {
        return;
    }
    let mounts = format!(r#"mount -t tmpfs -o size=4m none '{}' && exec "$0" "$@""#, data.display());
    let before = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", &mounts];
    let mut server = Binary::start_under(&data, &before);
    let filler = |server: &Binary| {
        let root = PathBuf::from(format!("/proc/{}/root", server.id()));
        root.join(data.strip_prefix("/").unwrap()).join("filler")
    };
    let full = |server: &Binary| {
        use std::io::Write as _;
        let mut file = std::fs::File::create(filler(server)).unwrap();
        let error = std::iter::repeat_with(|| file.write(&[0; 4_096])).find_map(Result::err).unwrap();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    };
    let free = |server: &Binary| std::fs::remove_file(filler(server)).unwrap();
    the_server_lives_through_a_full_disk(&mut server, full, free).await;
}

// ---- changed behind our back

/// Flips the lowest bit of the byte behind `text`, wherever it stands in the database: copies that are of no use any more
/// look like the one that is.
fn flip_behind(data: &Path, text: &str) {
    let path = data.join(DATABASE);
    let mut bytes = std::fs::read(&path).unwrap();
    let found: Vec<_> = (0..bytes.len() - text.len()).filter(|&at| bytes[at..].starts_with(text.as_bytes())).collect();
    assert!(!found.is_empty(), "it is in there");
    for at in found {
        bytes[at + text.len()] ^= 1;
    }
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_server_with_a_flipped_bit_serves_everybody_else_and_deletes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (mut hit, mut spared) = (Family::new(), Family::new());
    let mut server = Binary::start(&data);
    for (name, family) in [("hit", &mut hit), ("spared", &mut spared)] {
        let mut a = family.joins(&server, 1).await;
        drop(family.joins(&server, 2).await);
        for n in 0..5 {
            family.reflects(&mut a, &format!("{name} {n}"), 500).await.unwrap();
        }
    }
    assert!(soon(server.stop()).await.success());
    flip_behind(&data, "hit 2");

    let mut server = Binary::start(&data);
    for _ in 0..2 {
        assert_eq!(hit.tries(&server, 2).await.unwrap_err().code(), Some(1011), "not a wrong message, and no gap");
    }
    spared.hears_all(&mut spared.returns(&server, 2).await).await;
    // Whoever need not read it can go on, in the same group, too.
    let mut a = hit.returns(&server, 1).await;
    hit.reflects(&mut a, "hit 5", 500).await.unwrap();
    assert!(soon(server.stop()).await.success());

    // Nothing was thrown away: with the bit back in its place everything is there.
    flip_behind(&data, "hit 2");
    let mut server = Binary::start(&data);
    hit.hears_all(&mut hit.returns(&server, 2).await).await;
    assert!(soon(server.stop()).await.success());
}

/// Any bit of the file, one at a time: whatever the store still tells is true. What it cannot promise is to notice a bit
/// in a key of SQLite's own trees, which may hide what the key leads to. `FLIPS=n` flips
/// as many, `FLIP_SEED=n` the same ones again.
#[tokio::test]
async fn whichever_bit_flips_no_group_is_told_what_it_did_not_say() {
    let number = |name| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let flips = number("FLIPS").unwrap_or(300);
    let dir = filled().await;
    let path = dir.path().join(DATABASE);
    let sound = std::fs::read(&path).unwrap();
    let mut truth = BTreeMap::new();
    {
        let store = open(dir.path()).unwrap();
        for n in 1..=8 {
            truth.insert(n, told(&store, n).await);
        }
        store.close().await.unwrap();
    }
    let seed = number("FLIP_SEED").unwrap_or_else(|| fastrand::u64(..));
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut refused, mut damaged, mut hidden) = (0, 0, 0_u64);
    for _ in 0..flips {
        let mut bytes = sound.clone();
        let (at, bit) = (rng.usize(..bytes.len()), rng.u8(..8));
        bytes[at] ^= 1 << bit;
        std::fs::write(&path, bytes).unwrap();
        let Ok(store) = open(dir.path()) else {
            refused += 1;
            continue;
        };
        for (n, true_answers) in &truth {
            let answers = told(&store, *n).await;
            assert!(is_part_of(&answers, true_answers), "seed {seed}: bit {bit} of byte {at}: group {n}: {answers:?}");
            match answers {
                (Ok(snapshot), Ok(page)) => {
                    hidden += u64::from((Ok(snapshot), Ok(page)) != *true_answers);
                }
                _ => damaged += 1,
            }
        }
        store.close().await.unwrap_or_else(|error| assert!(is_named(&error), "{error}"));
    }
    println!(
        "seed {seed}: of {flips} flips {refused} refused; groups: {damaged} damaged, {hidden} with something hidden"
    );
    assert!(damaged > 0 && hidden <= flips / 20, "{damaged} damaged, {hidden} hidden");
}

/// Damage that SQLite meets in its schema makes it fail, anything else is named for what it is.
const fn is_named(error: &StoreError) -> bool {
    matches!(error, StoreError::Damaged(_) | StoreError::Failed(_))
}

/// Whether everything that is told is in the truth, too.
fn is_part_of((snapshot, page): &Told, (true_snapshot, true_page): &Told) -> bool {
    let (Ok(Some(truth)), Ok(true_page)) = (true_snapshot, true_page) else { return false };
    let snapshot_is_true = match snapshot {
        Err(error) => is_named(error),
        Ok(None) => true,
        Ok(Some(found)) => {
            let known = |slot: &SlotRecord| truth.slots.iter().any(|true_slot| true_slot.record == *slot);
            // The time of the newest entry counts when that entry is sound; a lower one is no untruth.
            let dated = found.group.last_timestamp_ms.min(truth.group.last_timestamp_ms);
            let group = GroupRecord { last_timestamp_ms: dated, ..truth.group.clone() };
            found.group == group && found.slots.iter().all(|slot| known(&slot.record))
        }
    };
    let page_is_true = match page {
        Err(error) => is_named(error),
        Ok(found) => found.entries.iter().all(|entry| true_page.entries.contains(entry)),
    };
    snapshot_is_true && page_is_true
}
