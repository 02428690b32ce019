//! The promise of the store, asked of every engine, and what only those can break that keep something elsewhere.
//!
//! PostgreSQL is started from the distribution's package. Where there is none, its part is not run and says so;
//! `HELIOSTAT_REQUIRE_POSTGRES=1` makes that a failure.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test says what it expects by panicking"
)]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use heliostat::group::limits::PAYLOAD_COST;
use heliostat::group::ranges::RangeSet;
use heliostat::group::record::{GroupRecord, Held, LogEntry, Page, Seq, SlotRecord, Snapshot, Write};
use heliostat::store::memory::Crash;
use heliostat::store::{
    Census, Durability, Exhausted, MemoryStore, OpenError, SEQ_MAX, SqliteStore, Store, StoreError,
};
use heliostat::wire::d2m::{DeviceGroupId, DeviceId, Envelope, ReflectFlags, Reflected, ReflectedId, SlotExpiration};
use proptest::prelude::*;
use rusqlite::Connection;
use tempfile::TempDir;

#[path = "store/postgres.rs"]
mod postgres;

const NOW: u64 = 1_700_000_000_000;

fn id(n: u8) -> DeviceGroupId {
    DeviceGroupId::new([n; 32])
}

fn group(seq_reserved: u64) -> Write {
    Write::Group(GroupRecord {
        seq_reserved: Seq(seq_reserved),
        last_timestamp_ms: NOW,
        encrypted_shared_device_data: vec![9; 40],
    })
}

fn slot(device: u64) -> SlotRecord {
    SlotRecord {
        device: DeviceId(device),
        expiration: SlotExpiration::Persistent,
        encrypted_device_info: vec![7; 100],
        connected: false,
        last_disconnect_ms: NOW,
        since: Seq(0),
        cursor: Seq(0),
        acked: RangeSet::new(),
        acked_unseen: RangeSet::new(),
        issued: Seq(0),
        counted_through: Seq(0),
        held: Held::default(),
    }
}

fn set(numbers: impl IntoIterator<Item = u64>) -> RangeSet {
    let mut set = RangeSet::new();
    for n in numbers {
        set.insert(n);
    }
    set
}

fn entry(seq: u64, origin: u64, envelope: &[u8]) -> LogEntry {
    let id = ReflectedId(Seq(seq).wire_id());
    let message = Reflected::new(Envelope::copy_from(envelope), ReflectFlags::default(), id, NOW + seq);
    LogEntry { seq: Seq(seq), origin: DeviceId(origin), message }
}

fn append(seq: u64, origin: u64) -> Write {
    Write::Append(entry(seq, origin, &[u8::try_from(seq & 0xff).unwrap(); 10]))
}

fn seqs(page: &Page) -> Vec<u64> {
    page.entries.iter().map(|entry| entry.seq.0).collect()
}

async fn whole_log(store: &dyn Store, group: DeviceGroupId) -> Vec<u64> {
    seqs(&store.page(group, Seq(0), SEQ_MAX, usize::MAX).await.unwrap())
}

/// A store, and the directory it lies in.
struct Kept<S>(Arc<S>, TempDir);

/// Opens a directory that nobody has. A process that another test is about to start holds our locks, too, between its fork and
/// its exec: whoever meets one waits until it lets go.
fn open(dir: &Path, durability: Durability, now_wall_ms: u64) -> Result<Arc<SqliteStore>, OpenError> {
    loop {
        match SqliteStore::open(dir, durability, now_wall_ms) {
            Err(OpenError::InUse { .. }) => std::fs::File::open(dir.join("mediator.lock")).unwrap().lock().unwrap(),
            opened => return opened,
        }
    }
}

fn sqlite() -> Kept<SqliteStore> {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Durability::Fsync, NOW).unwrap();
    Kept(store, dir)
}

macro_rules! promised_by_both {
    ($($name:ident)*) => {
        mod sqlite_promises { $(
            #[tokio::test]
            async fn $name() {
                let kept = super::sqlite();
                super::$name(&*kept.0).await;
            }
        )* }
        mod memory_promises { $(
            #[tokio::test]
            async fn $name() {
                super::$name(&heliostat::store::MemoryStore::new()).await;
            }
        )* }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn postgres_promises() {
            let promises: Vec<postgres::Story<'_>> = vec![$((
                stringify!($name),
                Box::new(|place| Box::pin(postgres::promise(place, async |store: &dyn Store| $name(store).await))),
            )),*];
            postgres::tell(promises).await;
        }
    };
}

promised_by_both! {
    what_was_committed_is_loaded
    of_an_unknown_group_there_is_nothing
    a_commit_that_fails_keeps_nothing
    an_entry_has_to_be_what_it_will_be_read_as
    the_log_is_read_in_order_and_by_group
    trim_takes_the_entries_through_its_seq
    a_group_that_is_forgotten_leaves_nothing
    a_removed_slot_is_gone_and_the_others_stay
    a_page_ends_where_its_cost_does
    what_a_slot_has_not_counted_is_counted
    slots_fall_due_by_kind_and_time
    all_groups_are_counted_and_some_listed_by_id
    writes_of_one_commit_see_each_other
}

async fn what_was_committed_is_loaded(store: &dyn Store) {
    let full = SlotRecord {
        device: DeviceId(u64::MAX),
        expiration: SlotExpiration::Volatile,
        encrypted_device_info: (0..=255).cycle().take(4_096).collect(),
        connected: true,
        last_disconnect_ms: NOW + 1,
        since: Seq(3),
        cursor: Seq(5),
        acked: set([7, 8, 11]),
        acked_unseen: set([13]),
        issued: Seq(14),
        counted_through: Seq(15),
        held: Held { pending: 1, entries: 2, bytes: 3 },
    };
    store.commit(id(1), vec![group(64), Write::Slot(full.clone()), Write::Slot(slot(2))]).await.unwrap();
    let snapshot = store.load(id(1)).await.unwrap().unwrap();
    let Write::Group(expected) = group(64) else { unreachable!() };
    assert_eq!(snapshot.group, expected);
    let records: Vec<_> = snapshot.slots.into_iter().map(|slot| slot.record).collect();
    assert_eq!(records, [slot(2), full.clone()], "in the order of their device ids");

    let again = SlotRecord { acked: RangeSet::new(), cursor: Seq(11), connected: false, ..full };
    store.commit(id(1), vec![Write::Slot(again.clone())]).await.unwrap();
    assert_eq!(store.load(id(1)).await.unwrap().unwrap().slots[1].record, again, "replaced");
}

async fn of_an_unknown_group_there_is_nothing(store: &dyn Store) {
    assert_eq!(store.load(id(1)).await.unwrap(), None);
    let page = store.page(id(1), Seq(3), Seq(9), 100).await.unwrap();
    assert_eq!(page, Page { entries: vec![], through: Seq(9) });
    let nothing_to_remove = vec![Write::Trim { through: Seq(4) }, Write::RemoveSlot(DeviceId(1)), Write::Forget];
    assert_eq!(store.commit(id(1), nothing_to_remove).await, Ok(()));
    for orphan in [Write::Slot(slot(1)), append(1, 1)] {
        assert!(matches!(store.commit(id(1), vec![orphan]).await, Err(StoreError::Refused(_))));
    }
    assert_eq!(store.load(id(1)).await.unwrap(), None);
}

async fn a_commit_that_fails_keeps_nothing(store: &dyn Store) {
    store.commit(id(1), vec![group(64), Write::Slot(slot(1)), append(1, 1)]).await.unwrap();
    let before = store.load(id(1)).await.unwrap();
    let writes = vec![group(128), Write::Slot(slot(2)), append(2, 1), Write::RemoveSlot(DeviceId(1)), append(1, 1)];
    assert!(matches!(store.commit(id(1), writes).await, Err(StoreError::Refused(_))));
    assert_eq!(store.load(id(1)).await.unwrap(), before);
    assert_eq!(whole_log(store, id(1)).await, [1]);
}

async fn an_entry_has_to_be_what_it_will_be_read_as(store: &dyn Store) {
    store.commit(id(1), vec![group(64)]).await.unwrap();
    let message = |flags, id| Reflected::new(Envelope::copy_from(b"x"), flags, ReflectedId(id), NOW);
    let of = |seq, message| vec![Write::Append(LogEntry { seq: Seq(seq), origin: DeviceId(1), message })];
    let ephemeral = ReflectFlags { ephemeral: true };
    for writes in [of(5, message(ReflectFlags::default(), 6)), of(5, message(ephemeral, 5))] {
        assert!(matches!(store.commit(id(1), writes).await, Err(StoreError::Refused(_))));
    }
    let beyond = vec![Write::Append(entry(SEQ_MAX.0 + 1, 1, b"x"))];
    assert_eq!(store.commit(id(1), beyond).await, Err(StoreError::Exhausted(Exhausted::Seq)));
    store.commit(id(1), vec![Write::Append(entry(SEQ_MAX.0, 1, b"last"))]).await.unwrap();
    let page = store.page(id(1), Seq(0), SEQ_MAX, 100).await.unwrap();
    assert_eq!(page.entries, [entry(SEQ_MAX.0, 1, b"last")]);
}

async fn the_log_is_read_in_order_and_by_group(store: &dyn Store) {
    for n in [1, 2, 3] {
        store.commit(id(n), vec![group(64)]).await.unwrap();
    }
    for seq in 1..=20 {
        store.commit(id(1 + u8::try_from(seq % 3).unwrap()), vec![append(seq, 5)]).await.unwrap();
    }
    assert_eq!(whole_log(store, id(2)).await, [1, 4, 7, 10, 13, 16, 19]);
    let page = store.page(id(2), Seq(4), Seq(13), usize::MAX).await.unwrap();
    assert_eq!((seqs(&page), page.through), (vec![7, 10, 13], Seq(13)));
    assert_eq!(page.entries[0], entry(7, 5, &[7; 10]), "as it was, container and all");
}

async fn trim_takes_the_entries_through_its_seq(store: &dyn Store) {
    for n in [1, 2, 3] {
        store
            .commit(id(n), std::iter::once(group(64)).chain((1..=9).map(|seq| append(seq, 1))).collect())
            .await
            .unwrap();
    }
    store.commit(id(2), vec![Write::Trim { through: Seq(7) }]).await.unwrap();
    assert_eq!(whole_log(store, id(2)).await, [8, 9]);
    assert_eq!(whole_log(store, id(1)).await.len() + whole_log(store, id(3)).await.len(), 18, "neighbours keep theirs");
}

async fn a_group_that_is_forgotten_leaves_nothing(store: &dyn Store) {
    for n in [1, 2] {
        store.commit(id(n), vec![group(64), Write::Slot(slot(1)), append(1, 2), append(2, 2)]).await.unwrap();
    }
    store.commit(id(1), vec![Write::Forget]).await.unwrap();
    assert_eq!(store.load(id(1)).await.unwrap(), None);
    store.commit(id(1), vec![group(64)]).await.unwrap();
    assert_eq!(store.load(id(1)).await.unwrap().unwrap().slots, []);
    assert_eq!(whole_log(store, id(1)).await, [0; 0]);
    assert_eq!(whole_log(store, id(2)).await, [1, 2]);
    assert_eq!(store.load(id(2)).await.unwrap().unwrap().slots.len(), 1);
}

async fn a_removed_slot_is_gone_and_the_others_stay(store: &dyn Store) {
    store.commit(id(1), vec![group(64), Write::Slot(slot(1)), Write::Slot(slot(2))]).await.unwrap();
    store.commit(id(1), vec![Write::RemoveSlot(DeviceId(1)), Write::RemoveSlot(DeviceId(3))]).await.unwrap();
    let left: Vec<_> = store.load(id(1)).await.unwrap().unwrap().slots.iter().map(|s| s.record.device.0).collect();
    assert_eq!(left, [2]);
}

async fn a_page_ends_where_its_cost_does(store: &dyn Store) {
    let log = (1..=5).map(|seq| append(seq * 2, 1));
    store.commit(id(1), std::iter::once(group(64)).chain(log).collect()).await.unwrap();
    let one = PAYLOAD_COST + 10;
    for (cost_max, expected, through) in [
        (0, &[2][..], 2),
        (one - 1, &[2], 2),
        (2 * one - 1, &[2], 2),
        (2 * one, &[2, 4], 4),
        (4 * one, &[2, 4, 6, 8], 8),
        (5 * one, &[2, 4, 6, 8, 10], 99),
        (usize::MAX, &[2, 4, 6, 8, 10], 99),
    ] {
        let page = store.page(id(1), Seq(0), Seq(99), cost_max).await.unwrap();
        assert_eq!((seqs(&page).as_slice(), page.through), (expected, Seq(through)), "{cost_max}");
    }
    let page = store.page(id(1), Seq(4), Seq(7), 9 * one).await.unwrap();
    assert_eq!((seqs(&page), page.through), (vec![6], Seq(7)));
    let page = store.page(id(1), Seq(7), Seq(7), 0).await.unwrap();
    assert_eq!((seqs(&page), page.through), (vec![], Seq(7)));
    let page = store.page(id(1), Seq(8), Seq(u64::MAX), one).await.unwrap();
    assert_eq!((seqs(&page), page.through), (vec![10], Seq(u64::MAX)));
}

async fn what_a_slot_has_not_counted_is_counted(store: &dyn Store) {
    let mut writes = vec![group(64)];
    let counted = SlotRecord { counted_through: Seq(4), held: Held { pending: 3, entries: 4, bytes: 40 }, ..slot(1) };
    let acked = SlotRecord { counted_through: Seq(2), acked: set([3, 4]), acked_unseen: set([6]), ..slot(2) };
    writes.extend([counted, acked, slot(3)].map(Write::Slot));
    writes.extend((1..=8).map(|seq| Write::Append(entry(seq, 1 + seq % 2, &[0; 10]))));
    store.commit(id(1), writes).await.unwrap();
    let slots = store.load(id(1)).await.unwrap().unwrap().slots;
    let uncounted: Vec<_> = slots.iter().map(|slot| slot.uncounted).collect();
    // Even seqs are of device 1, odd ones of device 2.
    let held = |pending, entries| Held { pending, entries, bytes: entries * 10 };
    assert_eq!(uncounted, [held(2, 4), held(1, 6), held(8, 8)]);
    assert_eq!(slots[0].record.held, held(3, 4), "as it was written");
}

async fn all_groups_are_counted_and_some_listed_by_id(store: &dyn Store) {
    assert_eq!(store.census(None, 9).await.unwrap(), Census::default());
    for n in [3, 1, 2] {
        store.commit(id(n), vec![group(64), Write::Slot(slot(1)), Write::Slot(slot(u64::from(n) + 1))]).await.unwrap();
    }
    store.commit(id(2), vec![Write::RemoveSlot(DeviceId(1))]).await.unwrap();
    let all = store.census(None, 9).await.unwrap();
    assert_eq!(all, Census { groups: 3, some: vec![(id(1), 2), (id(2), 1), (id(3), 2)] });
    assert_eq!(store.census(None, 0).await.unwrap(), Census { groups: 3, some: vec![] });
    assert_eq!(store.census(Some(id(1)), 1).await.unwrap(), Census { groups: 3, some: vec![(id(2), 1)] });
    assert_eq!(store.census(Some(id(3)), 9).await.unwrap().some, []);
    store.commit(id(3), vec![Write::Forget]).await.unwrap();
    assert_eq!(store.census(None, 0).await.unwrap().groups, 2);
}

async fn slots_fall_due_by_kind_and_time(store: &dyn Store) {
    use SlotExpiration::{Persistent, Volatile};
    let slots = [
        (1, 1, Volatile, false, 100),
        (1, 2, Volatile, false, 300),
        (2, 1, Volatile, false, 50),
        (3, 1, Volatile, true, 10),
        (4, 1, Persistent, false, 20),
        (5, 1, Persistent, false, 200),
    ];
    for n in 1..=5 {
        store.commit(id(n), vec![group(64)]).await.unwrap();
    }
    for (n, device, expiration, connected, last_disconnect_ms) in slots {
        let record = SlotRecord { expiration, connected, last_disconnect_ms, ..slot(device) };
        store.commit(id(n), vec![Write::Slot(record)]).await.unwrap();
    }
    assert_eq!(store.due(49, None, 9).await.unwrap(), []);
    assert_eq!(store.due(50, None, 9).await.unwrap(), [id(2)]);
    assert_eq!(store.due(300, None, 9).await.unwrap(), [id(2), id(1)], "once each, the longest waiting first");
    assert_eq!(store.due(300, None, 1).await.unwrap(), [id(2)]);
    assert_eq!(store.due(100, Some(199), 9).await.unwrap(), [id(2), id(1), id(4)]);
    assert_eq!(store.due(0, Some(u64::MAX), 9).await.unwrap(), [id(4), id(5)]);
    store.commit(id(2), vec![Write::RemoveSlot(DeviceId(1))]).await.unwrap();
    assert_eq!(store.due(u64::MAX, None, 9).await.unwrap(), [id(1)]);
}

async fn writes_of_one_commit_see_each_other(store: &dyn Store) {
    let writes = vec![group(1), append(1, 1), Write::Forget, group(2), append(1, 1), Write::Trim { through: Seq(1) }];
    store.commit(id(1), writes).await.unwrap();
    store.commit(id(1), vec![append(1, 3), Write::Trim { through: Seq(1) }, append(1, 4), append(2, 4)]).await.unwrap();
    let page = store.page(id(1), Seq(0), SEQ_MAX, usize::MAX).await.unwrap();
    assert_eq!(page.entries.iter().map(|e| (e.seq.0, e.origin.0)).collect::<Vec<_>>(), [(1, 4), (2, 4)]);
}

// ---- both engines say the same

fn any_ranges() -> impl Strategy<Value = RangeSet> {
    proptest::collection::vec(1..40_u64, 0..6).prop_map(set)
}

fn any_slot() -> impl Strategy<Value = Write> {
    let numbers = (0..40_u64, 0..40_u64, 0..40_u64, 0..1_000_u64);
    (1..5_u64, any::<bool>(), any::<bool>(), numbers, any_ranges(), any_ranges(), 0..50_usize).prop_map(
        |(device, persistent, connected, (cursor, counted, issued, left), acked, acked_unseen, info)| {
            Write::Slot(SlotRecord {
                expiration: if persistent { SlotExpiration::Persistent } else { SlotExpiration::Volatile },
                encrypted_device_info: vec![1; info],
                connected,
                last_disconnect_ms: left,
                cursor: Seq(cursor),
                counted_through: Seq(counted),
                issued: Seq(issued),
                acked,
                acked_unseen,
                held: Held { pending: left, entries: cursor, bytes: u64::MAX - issued },
                ..slot(device)
            })
        },
    )
}

fn any_write() -> impl Strategy<Value = Write> {
    prop_oneof![
        2 => (0..99_u64).prop_map(group),
        4 => any_slot(),
        1 => (1..5_u64).prop_map(|device| Write::RemoveSlot(DeviceId(device))),
        8 => (1..40_u64, 1..5_u64, 0..600_usize).prop_map(|(seq, origin, len)| Write::Append(entry(seq, origin, &vec![3; len]))),
        2 => (0..40_u64).prop_map(|through| Write::Trim { through: Seq(through) }),
        1 => Just(Write::Forget),
    ]
}

/// Everything that can be asked about three groups.
async fn told(store: &dyn Store) -> (Vec<Option<Snapshot>>, Vec<Page>, Vec<BTreeSet<DeviceGroupId>>) {
    let (mut snapshots, mut pages, mut due) = (Vec::new(), Vec::new(), Vec::new());
    for n in 1..=3 {
        snapshots.push(store.load(id(n)).await.unwrap());
        for (after, through, cost_max) in [(0, 50, usize::MAX), (0, 50, 2_000), (7, 20, 900), (20, 7, 900)] {
            pages.push(store.page(id(n), Seq(after), Seq(through), cost_max).await.unwrap());
        }
    }
    for (volatile, persistent) in [(500, None), (0, Some(500)), (u64::MAX, Some(u64::MAX))] {
        due.push(store.due(volatile, persistent, usize::MAX).await.unwrap().into_iter().collect());
    }
    (snapshots, pages, due)
}

fn any_commits() -> impl Strategy<Value = Vec<(u8, Vec<Write>)>> {
    proptest::collection::vec((1..=3_u8, proptest::collection::vec(any_write(), 1..8)), 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn both_engines_say_the_same(commits in any_commits()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let disk = open(dir.path(), Durability::Memory, NOW).unwrap();
            let memory = MemoryStore::new();
            for (n, writes) in commits {
                let answers = (disk.commit(id(n), writes.clone()).await, memory.commit(id(n), writes).await);
                prop_assert_eq!(answers.0, answers.1);
            }
            prop_assert_eq!(told(&*disk).await, told(&memory).await);
            disk.close().await.unwrap();
            let disk = open(dir.path(), Durability::Memory, NOW + 5).unwrap();
            prop_assert_eq!(told(&*disk).await, told(&memory.survivors(NOW + 5)).await);
            Ok(())
        })?;
    }
}

// ---- group commit

#[tokio::test]
async fn many_groups_share_a_sync() {
    let Kept(store, _dir) = sqlite();
    let groups = 64_u8;
    join_all((0..groups).map(|n| store.commit(id(n), vec![group(64)])))
        .await
        .into_iter()
        .for_each(|kept| kept.unwrap());
    let before = store.stats();
    let rounds = 20;
    let actors = (0..groups).map(|n| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for seq in 1..=rounds {
                store.commit(id(n), vec![Write::Append(entry(seq, 1, &[n; 1_024]))]).await.unwrap();
            }
        })
    });
    // The one thread of this runtime goes on with other work while the disk is busy.
    let turns = Arc::new(AtomicU32::new(0));
    let ticker = tokio::spawn({
        let turns = Arc::clone(&turns);
        async move {
            loop {
                turns.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        }
    });
    join_all(actors).await.into_iter().for_each(|actor| actor.unwrap());
    ticker.abort();
    let after = store.stats();
    let (commits, transactions) = (after.commits - before.commits, after.transactions - before.transactions);
    assert_eq!(commits, u64::from(groups) * rounds);
    assert!(transactions * 4 <= commits, "{transactions} transactions for {commits} commits");
    assert!(u64::from(turns.load(Ordering::Relaxed)) > transactions, "the runtime waited for the disk");
    for n in 0..groups {
        assert_eq!(whole_log(&*store, id(n)).await, (1..=rounds).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn one_bad_commit_among_many_fails_alone() {
    let Kept(store, _dir) = sqlite();
    store.commit(id(0), vec![group(64), append(1, 1)]).await.unwrap();
    let answers = join_all((0..32_u8).map(|n| {
        let first = if n == 0 { append(1, 1) } else { group(64) };
        store.commit(id(n), vec![first])
    }))
    .await;
    for (n, answer) in answers.iter().enumerate() {
        assert_eq!(answer.is_err(), n == 0, "{n}: {answer:?}");
    }
    for n in 1..32 {
        assert!(store.load(id(n)).await.unwrap().is_some());
    }
}

// ---- crashes

/// What a disk shows after the process died: the files as they are now.
fn copy_of(dir: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    // The log first: it may only be ahead of the copied database, as after a real crash, not behind it. No checkpoint runs.
    for name in ["mediator.sqlite-wal", "mediator.sqlite"] {
        if dir.join(name).exists() {
            std::fs::copy(dir.join(name), copy.path().join(name)).unwrap();
        }
    }
    copy
}

#[tokio::test]
async fn a_crash_leaves_every_answered_commit_and_nobody_connected() {
    let Kept(store, dir) = sqlite();
    let online = SlotRecord { connected: true, last_disconnect_ms: 5, expiration: SlotExpiration::Volatile, ..slot(1) };
    store.commit(id(1), vec![group(64), Write::Slot(online), Write::Slot(slot(2))]).await.unwrap();
    for seq in 1..=30 {
        store.commit(id(1), vec![append(seq, 1)]).await.unwrap();
        let copy = copy_of(dir.path());
        let survivors = open(copy.path(), Durability::Fsync, NOW + seq).unwrap();
        assert_eq!(whole_log(&*survivors, id(1)).await, (1..=seq).collect::<Vec<_>>());
        let slots = survivors.load(id(1)).await.unwrap().unwrap().slots;
        assert!(!slots[0].record.connected);
        assert_eq!(slots[0].record.last_disconnect_ms, NOW + seq);
        assert_eq!(slots[1].record, slot(2), "who had left before is left alone");
        assert_eq!(survivors.due(NOW + seq, None, 9).await.unwrap(), [id(1)]);
    }
}

#[tokio::test]
async fn a_crash_in_the_middle_of_a_transaction_leaves_what_was_answered() {
    let Kept(store, dir) = sqlite();
    store.commit(id(1), vec![group(64), append(1, 1)]).await.unwrap();
    let length_before = std::fs::metadata(dir.path().join("mediator.sqlite-wal")).unwrap().len();
    store.commit(id(1), (2..=200).map(|seq| Write::Append(entry(seq, 1, &[1; 1_000]))).collect()).await.unwrap();
    let length_after = std::fs::metadata(dir.path().join("mediator.sqlite-wal")).unwrap().len();
    // Wherever the second one is torn, it is gone as a whole.
    for part in 0..10 {
        let copy = copy_of(dir.path());
        let wal = std::fs::File::options().write(true).open(copy.path().join("mediator.sqlite-wal")).unwrap();
        wal.set_len(length_before + (length_after - length_before) * part / 10).unwrap();
        drop(wal);
        let survivors = open(copy.path(), Durability::Fsync, NOW).unwrap();
        assert_eq!(whole_log(&*survivors, id(1)).await, [1], "part {part}");
    }
}

const VICTIM_DIR: &str = "HELIOSTAT_TEST_VICTIM_DIR";

/// Not a test: what `a_killed_process_loses_nothing_it_had_said` starts and kills. Says each seq once it is answered.
#[tokio::test]
#[ignore = "runs as a child process"]
async fn victim() {
    let Some(dir) = std::env::var_os(VICTIM_DIR) else { return };
    let store = open(Path::new(&dir), Durability::Memory, NOW).unwrap();
    store.commit(id(1), vec![group(64)]).await.unwrap();
    for seq in 1.. {
        store.commit(id(1), vec![append(seq, 1)]).await.unwrap();
        println!("kept {seq}");
    }
}

#[test]
fn a_killed_process_loses_nothing_it_had_said() {
    use std::io::BufRead as _;
    let dir = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["victim", "--exact", "--ignored", "--nocapture"])
        .env(VICTIM_DIR, dir.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = std::io::BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let kept = |line: String| line.strip_prefix("kept ").and_then(|seq| seq.parse::<u64>().ok());
    assert!(said.by_ref().filter_map(kept).any(|seq| seq == 300), "the child came that far");
    child.kill().unwrap();
    let last = said.filter_map(kept).last().unwrap_or(300);
    child.wait().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let store = open(dir.path(), Durability::Memory, NOW).unwrap();
        let log = whole_log(&*store, id(1)).await;
        assert!(log.len() as u64 >= last, "{} of {last}", log.len());
        assert_eq!(log, (1..=log.len() as u64).collect::<Vec<_>>());
    });
}

#[tokio::test]
async fn closing_keeps_what_was_asked_before_and_gives_the_directory_free() {
    let Kept(store, dir) = sqlite();
    let mut asked: Vec<_> = (0..20).map(|n| store.commit(id(n), vec![group(64)])).collect();
    for ask in &mut asked {
        assert_eq!(ask.now_or_never(), None);
    }
    store.close().await.unwrap();
    assert!(join_all(asked).await.iter().all(Result::is_ok));
    assert_eq!(store.commit(id(1), vec![group(65)]).await, Err(StoreError::Closed));
    assert_eq!(store.load(id(1)).await, Err(StoreError::Closed));
    assert_eq!(store.close().await, Err(StoreError::Closed));
    assert!(!dir.path().join("mediator.sqlite-wal").exists(), "all of it is in the database");
    let again = open(dir.path(), Durability::Fsync, NOW).unwrap();
    for n in 0..20 {
        assert!(again.load(id(n)).await.unwrap().is_some());
    }
}

// ---- opening

#[tokio::test]
async fn a_second_opener_is_refused() {
    let Kept(store, dir) = sqlite();
    let refused = SqliteStore::open(dir.path(), Durability::Fsync, NOW).unwrap_err();
    assert!(matches!(refused, OpenError::InUse { .. }));
    assert!(refused.to_string().contains("another mediator is running on"), "{refused}");
    store.close().await.unwrap();
    open(dir.path(), Durability::Fsync, NOW).unwrap();
}

async fn closed_and_changed(sql: &str) -> Result<Arc<SqliteStore>, OpenError> {
    let Kept(store, dir) = sqlite();
    store.close().await.unwrap();
    Connection::open(dir.path().join("mediator.sqlite")).unwrap().execute_batch(sql).unwrap();
    open(dir.path(), Durability::Fsync, NOW)
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let refused = closed_and_changed("PRAGMA user_version = 2").await.unwrap_err();
    assert!(matches!(refused, OpenError::Newer { found: 2, known: 1, .. }), "{refused}");
}

#[tokio::test]
async fn a_database_of_someone_else_is_refused_and_left_alone() {
    let refused = closed_and_changed("PRAGMA application_id = 77").await.unwrap_err();
    assert!(matches!(refused, OpenError::NotOurs { .. }), "{refused}");

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mediator.sqlite");
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    let before = std::fs::read(&path).unwrap();
    let refused = open(dir.path(), Durability::Fsync, NOW).unwrap_err();
    assert!(matches!(refused, OpenError::NotOurs { .. }), "{refused}");
    assert_eq!(std::fs::read(&path).unwrap(), before);

    std::fs::write(&path, vec![b'?'; 8_192]).unwrap();
    let refused = open(dir.path(), Durability::Fsync, NOW).unwrap_err();
    assert!(matches!(refused, OpenError::NotOurs { .. }), "{refused}");
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let refused = open(&file.join("data"), Durability::Fsync, NOW).unwrap_err();
    assert!(matches!(&refused, OpenError::Unusable { path, .. } if path.ends_with("data")), "{refused}");
}

#[cfg(unix)]
#[tokio::test]
async fn everything_is_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("deep/data");
    let store = open(&dir, Durability::Fsync, NOW).unwrap();
    store.commit(id(1), vec![group(1)]).await.unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    let names = ["mediator.sqlite", "mediator.sqlite-wal", "mediator.sqlite-shm", "mediator.lock"];
    for name in names {
        assert_eq!(mode(&dir.join(name)), 0o600, "{name}");
    }
}

// ---- damage

#[tokio::test]
async fn a_flipped_bit_is_found_on_reading() {
    let flips = [
        ("UPDATE log SET envelope = zeroblob(10)", false),
        ("UPDATE log SET origin = origin + 1", false),
        ("UPDATE log SET timestamp_ms = timestamp_ms + 1", false),
        ("UPDATE log SET key = key + 1", false),
        ("UPDATE log SET seal = x'00'", false),
        ("UPDATE groups SET seq_reserved = 3", true),
        ("UPDATE groups SET shared_device_data = x''", true),
        ("UPDATE slots SET cursor = 1", true),
        ("UPDATE slots SET device_info = x'01'", true),
        ("UPDATE slots SET device = 8", true),
        ("UPDATE slots SET acked = x'01'", true),
    ];
    for (flip, on_load) in flips {
        let Kept(store, dir) = sqlite();
        store.commit(id(1), vec![group(64), Write::Slot(slot(1)), append(1, 2)]).await.unwrap();
        let other = Connection::open(dir.path().join("mediator.sqlite")).unwrap();
        assert_eq!(other.execute(flip, []).unwrap(), 1);
        let loaded = store.load(id(1)).await;
        assert_eq!(matches!(loaded, Err(StoreError::Damaged(_))), on_load, "{flip}: {loaded:?}");
        let page = store.page(id(1), Seq(0), Seq(9), 100).await;
        let on_page = !on_load || flip.contains("UPDATE groups");
        assert_eq!(matches!(page, Err(StoreError::Damaged(_))), on_page, "{flip}: {page:?}");
    }
}

/// Found by flipping bits: a page was read by whatever number the group's row gave, so one group was shown another's log.
#[tokio::test]
async fn no_group_is_shown_the_log_that_a_flipped_number_leads_to() {
    let Kept(store, dir) = sqlite();
    for n in [1, 2] {
        store.commit(id(n), vec![group(64), Write::Slot(slot(1)), append(1, 2)]).await.unwrap();
    }
    let other = Connection::open(dir.path().join("mediator.sqlite")).unwrap();
    other.execute("DELETE FROM groups WHERE device_group_id = ?1", [id(2).as_bytes()]).unwrap();
    assert_eq!(other.execute("UPDATE groups SET no = (SELECT max(key >> 38) FROM log)", []).unwrap(), 1);
    let page = store.page(id(1), Seq(0), Seq(9), 100).await;
    assert!(matches!(page, Err(StoreError::Damaged(_))), "{page:?}");
}

/// Found by flipping every bit: a group that wakes dates what it says by the log, and believed a bit there.
#[tokio::test]
async fn a_group_does_not_take_its_time_from_a_flipped_bit() {
    let Kept(store, dir) = sqlite();
    store.commit(id(1), vec![group(64), Write::Slot(slot(1)), append(1, 2), append(2, 2)]).await.unwrap();
    let other = Connection::open(dir.path().join("mediator.sqlite")).unwrap();
    other.execute("UPDATE log SET timestamp_ms = timestamp_ms | (1 << 50) WHERE key & 255 = 1", []).unwrap();
    assert_eq!(store.load(id(1)).await.unwrap().unwrap().group.last_timestamp_ms, NOW + 2, "the other entry's");
}

#[tokio::test]
async fn a_damaged_slot_does_not_keep_the_store_from_opening() {
    let Kept(store, dir) = sqlite();
    let online = || Write::Slot(SlotRecord { connected: true, ..slot(1) });
    for n in [1, 2] {
        store.commit(id(n), vec![group(64), online()]).await.unwrap();
    }
    store.close().await.unwrap();
    let other = Connection::open(dir.path().join("mediator.sqlite")).unwrap();
    other.execute("UPDATE slots SET issued = 9 WHERE group_no = 1", []).unwrap();
    drop(other);
    let store = open(dir.path(), Durability::Fsync, NOW).unwrap();
    assert!(matches!(store.load(id(1)).await, Err(StoreError::Damaged(_))));
    assert!(!store.load(id(2)).await.unwrap().unwrap().slots[0].record.connected);
}

#[tokio::test]
async fn a_group_gets_a_number_also_after_the_highest_was_given() {
    let Kept(store, dir) = sqlite();
    let highest = (1_i64 << 25) - 1;
    Connection::open(dir.path().join("mediator.sqlite"))
        .unwrap()
        .execute("INSERT INTO groups VALUES (?1, x'00', 0, 0, x'', x'')", [highest])
        .unwrap();
    for n in 1..=9 {
        store.commit(id(n), vec![group(64), append(SEQ_MAX.0, 1)]).await.unwrap();
        assert_eq!(whole_log(&*store, id(n)).await, [SEQ_MAX.0]);
    }
}

// ---- size

#[tokio::test]
async fn the_log_stays_bounded_and_space_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Durability::Memory, NOW).unwrap();
    let size = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().len();
    store.commit(id(1), vec![group(64)]).await.unwrap();
    let mut wal_most = 0;
    for hundred in 0..80_u64 {
        let log = (1..=100).map(|n| Write::Append(entry(hundred * 100 + n, 1, &[5; 4_000])));
        store.commit(id(1), log.collect()).await.unwrap();
        wal_most = wal_most.max(size("mediator.sqlite-wal"));
    }
    assert!(wal_most < 12 * 1024 * 1024, "32 MiB went through a write-ahead log of {wal_most} bytes");
    assert!(store.stats().checkpoints >= 3, "{:?}", store.stats());
    store.commit(id(1), vec![Write::Trim { through: Seq(8_000) }]).await.unwrap();
    let given_back = async {
        while size("mediator.sqlite") > 8 * 1024 * 1024 {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(std::time::Duration::from_secs(15), given_back).await;
    assert!(waited.is_ok(), "{} bytes, {:?}", size("mediator.sqlite"), store.stats());
    assert!(store.stats().pages_freed > 6_000, "{:?}", store.stats());
}

// ---- the twin's faults

#[tokio::test]
async fn the_twin_fails_at_the_write_it_was_told() {
    let store = MemoryStore::new();
    store.fail_at(2);
    store.fail_read_at(2);
    store.commit(id(1), vec![group(1)]).await.unwrap();
    assert!(matches!(store.commit(id(1), vec![group(2)]).await, Err(StoreError::Failed(_))));
    assert_eq!(store.load(id(1)).await.unwrap().unwrap().group.seq_reserved, Seq(1));
    assert!(store.load(id(1)).await.is_err());
    store.commit(id(1), vec![group(3)]).await.unwrap();
    assert_eq!((store.commits(), store.reads()), (3, 2));
}

#[tokio::test]
async fn the_twin_crashes_before_or_after_keeping() {
    for (crash, kept) in [(Crash::BeforeKeeping, Seq(1)), (Crash::AfterKeeping, Seq(2))] {
        let store = MemoryStore::new();
        store.crash_at(2, crash);
        let online = SlotRecord { connected: true, ..slot(1) };
        store.commit(id(1), vec![group(1), Write::Slot(online)]).await.unwrap();
        assert_eq!(store.commit(id(1), vec![group(2)]).await, Err(StoreError::Closed));
        assert_eq!(store.commit(id(1), vec![group(3)]).await, Err(StoreError::Closed));
        assert_eq!(store.load(id(1)).await, Err(StoreError::Closed));
        let found = store.survivors(NOW + 7).load(id(1)).await.unwrap().unwrap();
        assert_eq!(found.group.seq_reserved, kept);
        assert_eq!(found.slots[0].record, SlotRecord { last_disconnect_ms: NOW + 7, ..slot(1) });
    }
}

#[tokio::test]
async fn the_twin_holds_answers_back() {
    let store = Arc::new(MemoryStore::new());
    store.hold();
    let asked = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.commit(id(1), vec![group(1)]).await }
    });
    store.until_waiting(1).await;
    assert_eq!((store.commits(), asked.is_finished()), (0, false));
    assert_eq!(store.load(id(1)).await, Ok(None), "nothing is kept before it is answered");
    store.release();
    assert_eq!(asked.await.unwrap(), Ok(()));
    assert!(store.load(id(1)).await.unwrap().is_some());
}
