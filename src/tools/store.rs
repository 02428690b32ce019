//! Moving everything a mediator keeps from one store to another, of whichever engine.
//!
//! # What is copied
//!
//! What a group needs to wake ([`Store::load`]) and its whole log, through the same questions the mediator asks. A slot's record goes
//! over as it is: cursor, sets and counts refer to the log, which goes over with it, so what a slot has not counted yet is
//! counted there as it was here. What nobody can ask a store for, such as how it numbers groups, is the engine's own.
//!
//! # What a copy that ended early leaves
//!
//! A group's slots are written with the last of its log. So a group without slots is one that was begun, and `--resume` makes it anew; one
//! that is the same on both sides is left; one that differs was changed by somebody else since, and nothing may be overwritten
//! there.
//!
//! # When it is believed
//!
//! When all has been written, everything is read again on both sides, and a digest made of it: SHA-256 over each group's id, record,
//! slots, counts and log, and then over those of all groups in the order of their ids. The same digest means the same content, also
//! a year later and on another engine.

use std::fmt;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Subcommand;
use futures_util::{Stream, TryStreamExt as _, stream};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use miette::{IntoDiagnostic as _, Report, Result, WrapErr as _, miette};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::group::record::{LogEntry, Seq, SlotSnapshot, Snapshot, Write};
use crate::store::sqlite::DATABASE_FILE;
use crate::store::{Durability, OpenError, PostgresStore, SEQ_MAX, SqliteStore, Store, StoreError, Taken, postgres};
use crate::time::Clock;
use crate::wire::d2m::{DeviceGroupId, SlotExpiration};

/// Groups that are copied or read at a time: as many share the target's syncs.
const AT_ONCE: usize = 64;
/// Groups that are listed at a time.
const LISTED: usize = 1_000;
/// What is read of a log at a time, by [`Store::page`]'s counting, and written in one commit.
const PAGE: usize = 256 * 1_024;

/// For how long a database that is copied remembers this process, should it be killed.
const LEASE: Duration = Duration::from_secs(10);

/// `store`
#[derive(Debug, Subcommand)]
pub enum Tool {
    /// Copy all groups with everything that waits in them from one store into another, and compare both
    Copy(CopyArgs),
}

/// `store copy`
#[derive(Debug, clap::Args)]
pub struct CopyArgs {
    /// The store that is read, which no server may be using: `sqlite:DIR`, a data directory; `postgres://…`; or `file:PATH` of a file that
    /// holds such a URL with its password
    from: Spelled,
    /// The store that is written, which has to be empty. A data directory is made when there is none
    to: Spelled,
    /// Go on with a copy that ended early
    #[arg(long)]
    resume: bool,
}

/// A store as it was named. It is read when the command runs: whatever clap refuses it repeats, with the password that may be in it.
#[derive(Clone)]
struct Spelled(Zeroizing<String>);

impl From<String> for Spelled {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl fmt::Debug for Spelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Spelled")
    }
}

impl Spelled {
    fn place(&self) -> Result<Place> {
        self.0.parse::<Place>().map_err(|why| miette!("{why}"))
    }
}

/// Where a store is.
#[derive(Clone, PartialEq, Eq)]
enum Place {
    /// A data directory.
    Sqlite(PathBuf),
    /// A database, by its URL.
    Postgres(Zeroizing<String>),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("sqlite", dir)) if !dir.is_empty() => Ok(Self::Sqlite(dir.into())),
            Some(("postgres" | "postgresql", rest)) if rest.starts_with("//") => {
                Ok(Self::Postgres(text.to_owned().into()))
            }
            Some(("file", url)) if url.contains("://") => {
                Err("file: stands before the path of a file that holds a URL, not before the URL".to_owned())
            }
            Some(("file", path)) => {
                let held = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
                let held = Zeroizing::new(held);
                let url = held.trim();
                if url.starts_with("postgres") { url.parse() } else { Err(format!("{path} holds no postgres://…")) }
            }
            // What it was is not repeated: it may be a URL with a password and a slip in its first letters.
            _ => Err(
                "a store is sqlite:DIR, a data directory, postgres://USER@HOST/DATABASE, or file:PATH of a file that \
                      holds such a URL"
                    .to_owned(),
            ),
        }
    }
}

/// Without users and passwords, wherever in the URL they are.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(dir) => write!(f, "sqlite:{}", dir.display()),
            Self::Postgres(url) => write!(f, "postgres://{}", whereabouts(url).unwrap_or("…")),
        }
    }
}

/// Hosts and database of a URL; `None` when what looks like them could be a part of a password.
///
/// As the library reads it, everything before the first `@` is user and password, also `?`, `#` and `/` in it. Whoever wrote an `@` into
/// a password, or into a parameter, meant something else.
fn whereabouts(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let place = match rest.split_once('@') {
        Some((user, place)) => {
            let has_parameters = user.split_once('?').is_some_and(|(_, parameters)| parameters.contains('='));
            if has_parameters || place.contains('@') {
                return None;
            }
            place
        }
        None => rest,
    };
    place.split(['?', '#']).next()
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({self})")
    }
}

/// A store that is open.
enum Opened {
    Sqlite(Arc<SqliteStore>),
    Postgres(Arc<PostgresStore>),
}

impl Opened {
    /// Opens what is to be read: it has to be there.
    async fn source(place: &Place) -> Result<Self> {
        match place {
            Place::Sqlite(dir) if !dir.join(DATABASE_FILE).exists() => {
                Err(miette!("there is no {DATABASE_FILE} in {}", dir.display()))
            }
            place => Self::open(place).await,
        }
    }

    async fn open(place: &Place) -> Result<Self> {
        match place {
            Place::Sqlite(dir) => sqlite(dir).map(Self::Sqlite),
            Place::Postgres(url) => postgres(url).await.map(Self::Postgres),
        }
    }

    fn store(&self) -> &dyn Store {
        match self {
            Self::Sqlite(store) => &**store,
            Self::Postgres(store) => &**store,
        }
    }

    async fn close(self) -> Result<()> {
        match self {
            Self::Sqlite(store) => store.close().await.into_diagnostic(),
            Self::Postgres(store) => store.close().await.into_diagnostic(),
        }
    }
}

fn sqlite(dir: &Path) -> Result<Arc<SqliteStore>> {
    SqliteStore::open(dir, Durability::Fsync, Clock::system().now().wall_ms).map_err(|error| match error {
        OpenError::InUse { path } => miette!(
            help = "stop the server first: what it writes while it is copied would be lost",
            "a server is running on {}",
            path.display()
        ),
        other => miette!("{other}"),
    })
}

/// Joins the nodes of a database, of which there may be no other.
async fn postgres(url: &str) -> Result<Arc<PostgresStore>> {
    let settings = postgres::Settings {
        url: url.to_owned(),
        name: "store-copy".to_owned(),
        // It takes no seats: whoever would send one here is told that nobody listens.
        address: "127.0.0.1:0".to_owned(),
        lease: LEASE,
        clock: Clock::system(),
    };
    let store = PostgresStore::open(settings).await.map_err(|error| miette!("{error}"))?;
    let this = store.node().into_diagnostic()?;
    let others = store.nodes().await.into_diagnostic()?;
    if let Some(other) = others.into_iter().find(|other| other.node != this) {
        store.close().await.into_diagnostic()?;
        return Err(miette!(
            help = "stop all its nodes first; one that was killed counts until its lease is over",
            "the node {} is running on it",
            other.name
        ));
    }
    Ok(store)
}

/// Carries out the command.
///
/// # Errors
/// Why there is no copy, or none that can be trusted.
pub async fn run(tool: Tool) -> Result<ExitCode> {
    let Tool::Copy(CopyArgs { from, to, resume }) = tool;
    let (from, to) = (from.place()?, to.place()?);
    let clock = Clock::system();
    let began = clock.now().monotonic;
    let source = Opened::source(&from).await.wrap_err("nothing can be copied")?;
    let (copied, closed) = match Opened::open(&to).await.wrap_err("nothing can be copied there") {
        Ok(target) => {
            let copied = copy(source.store(), target.store(), resume, &bar()).await.map_err(advice);
            (copied, target.close().await)
        }
        Err(error) => (Err(error), Ok(())),
    };
    // In order in any case: a database would take this process for a living node for a while.
    let closed = closed.and(source.close().await);
    let both = copied?;
    closed?;
    let took = Duration::from_secs(clock.now().monotonic.saturating_sub(began).as_secs().max(1));
    let mut out = std::io::stdout().lock();
    writeln!(out, "{both}\n{to} holds the same as {from}. Took {}.", humantime::format_duration(took))
        .into_diagnostic()?;
    Ok(ExitCode::SUCCESS)
}

/// How far it is, on a terminal.
fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    // A template that cannot be read leaves the plain bar.
    if let Ok(style) = ProgressStyle::with_template("{msg} {pos}/{len} groups {wide_bar} {elapsed}") {
        bar.set_style(style);
    }
    bar
}

/// Why there is no copy that can be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// There are groups in the target.
    #[error("the target already holds {0} groups")]
    NotEmpty(u64),
    /// There are groups in the target that cannot be from an earlier copy.
    #[error("the target holds a group that the source does not know")]
    Foreign,
    /// There is a group in the target that is neither finished as it is in the source nor unfinished.
    #[error("a group in the target is not what it is in the source: one of them was used since")]
    Used,
    /// A server decides for the group.
    #[error("the node {0} has a group of it: it is in use")]
    InUse(String),
    /// A group went while it was read.
    #[error("a group is gone that was there a moment ago: it is in use")]
    Gone,
    /// What was read again is not the same on both sides.
    #[error("the two differ:\nsource  {}\ntarget  {}", _0.0, _0.1)]
    Differ(Box<(Content, Content)>),
    /// The store that is read.
    #[error("the source: {0}")]
    Source(StoreError),
    /// The store that is written.
    #[error("the target: {0}")]
    Target(StoreError),
}

/// What a person can do about it.
fn advice(error: CopyError) -> Report {
    let help = match &error {
        CopyError::NotEmpty(_) => "name an empty one, or go on with a copy that ended early by --resume",
        CopyError::Foreign | CopyError::Used => "nothing of it was changed. Copy into an empty store",
        CopyError::InUse(_) | CopyError::Gone => {
            "stop all servers on both sides first, then copy into an empty store or --resume"
        }
        CopyError::Differ(_) => "do not use the target: something wrote to one of them, or a disk is failing",
        CopyError::Source(_) | CopyError::Target(_) => "when that is cured, go on with --resume",
    };
    miette!(help = help, "{error}")
}

/// What a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Content {
    /// Device groups.
    pub groups: u64,
    /// Slots of all of them.
    pub slots: u64,
    /// Messages that wait.
    pub messages: u64,
    /// Bytes of their envelopes.
    pub bytes: u64,
    /// SHA-256 over everything; see the top of this file.
    pub digest: [u8; 32],
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { groups, slots, messages, bytes, digest } = self;
        let digest = hex::encode(digest);
        write!(f, "{groups} groups, {slots} slots, {messages} messages ({}), sha256 {digest}", ByteSize(*bytes))
    }
}

/// Copies everything, compares, and says what both hold.
///
/// # Errors
/// [`CopyError`]. What was copied until then stays, for another attempt with `resume`.
pub async fn copy(
    from: &dyn Store,
    to: &dyn Store,
    resume: bool,
    progress: &ProgressBar,
) -> Result<Content, CopyError> {
    let there = to.census(None, 0).await.map_err(CopyError::Target)?.groups;
    if there > 0 {
        if !resume {
            return Err(CopyError::NotEmpty(there));
        }
        groups(to, CopyError::Target)
            .try_for_each_concurrent(AT_ONCE, |group| async move {
                let known = from.knows(group).await.map_err(CopyError::Source)?;
                if known { Ok(()) } else { Err(CopyError::Foreign) }
            })
            .await?;
    }
    progress.set_length(from.census(None, 0).await.map_err(CopyError::Source)?.groups);
    progress.set_message("copying");
    groups(from, CopyError::Source)
        .try_for_each_concurrent(AT_ONCE, |group| async move {
            let copying = having(to, group, CopyError::Target, copy_group(from, to, group));
            having(from, group, CopyError::Source, copying).await?;
            progress.inc(1);
            Ok(())
        })
        .await?;
    progress.set_position(0);
    progress.set_message("comparing");
    // The target's pace is the pace of both.
    let source = content(from, CopyError::Source, || ());
    let target = content(to, CopyError::Target, || progress.inc(1));
    let (source, target) = futures_util::future::try_join(source, target).await?;
    progress.finish_and_clear();
    if source == target { Ok(source) } else { Err(CopyError::Differ(Box::new((source, target)))) }
}

/// All groups, in the order of their ids.
fn groups(
    store: &dyn Store,
    whose: fn(StoreError) -> CopyError,
) -> impl Stream<Item = Result<DeviceGroupId, CopyError>> {
    let pages = stream::try_unfold(None, move |after| async move {
        let some = store.census(after, LISTED).await.map_err(whose)?.some;
        let next = some.last().map(|&(group, _)| Some(group));
        Ok(next.map(|next| (stream::iter(some.into_iter().map(|(group, _)| Ok(group))), next)))
    });
    pages.try_flatten()
}

/// Does something while a group is this process's.
async fn having<T>(
    store: &dyn Store,
    group: DeviceGroupId,
    whose: fn(StoreError) -> CopyError,
    work: impl Future<Output = Result<T, CopyError>>,
) -> Result<T, CopyError> {
    match store.take(group).await.map_err(whose)? {
        Taken::Alone => work.await,
        Taken::Here(tenure) => {
            let done = work.await;
            let given_up = store.give_up(group, tenure).await.map_err(whose);
            done.and_then(|done| given_up.map(|()| done))
        }
        Taken::Elsewhere(owner) => Err(CopyError::InUse(owner.name)),
    }
}

async fn copy_group(from: &dyn Store, to: &dyn Store, group: DeviceGroupId) -> Result<(), CopyError> {
    let mut writes = Vec::new();
    if let Some(there) = to.load(group).await.map_err(CopyError::Target)? {
        if !there.slots.is_empty() {
            let source = of_group(from, group, CopyError::Source).await?;
            let target = of_group(to, group, CopyError::Target).await?;
            return if source == target { Ok(()) } else { Err(CopyError::Used) };
        }
        writes.push(Write::Forget);
    }
    let Snapshot { group: record, slots } =
        from.load(group).await.map_err(CopyError::Source)?.ok_or(CopyError::Gone)?;
    writes.push(Write::Group(record));
    let mut slots = Some(slots);
    let mut after = Seq(0);
    while after < SEQ_MAX {
        let page = from.page(group, after, SEQ_MAX, PAGE).await.map_err(CopyError::Source)?;
        after = page.through;
        writes.extend(page.entries.into_iter().map(Write::Append));
        if after >= SEQ_MAX {
            writes.extend(slots.take().into_iter().flatten().map(|slot| Write::Slot(slot.record)));
        }
        to.commit(group, std::mem::take(&mut writes)).await.map_err(CopyError::Target)?;
    }
    Ok(())
}

/// What a store holds, as it says itself. `seen` is called for each group.
async fn content(store: &dyn Store, whose: fn(StoreError) -> CopyError, seen: impl Fn()) -> Result<Content, CopyError> {
    let (all, digest) = groups(store, whose)
        .map_ok(|group| having(store, group, whose, of_group(store, group, whose)))
        .try_buffered(AT_ONCE)
        .try_fold((Content::default(), Sha256::new()), |(all, digest), one| {
            seen();
            let all = Content {
                groups: all.groups + one.groups,
                slots: all.slots + one.slots,
                messages: all.messages + one.messages,
                bytes: all.bytes + one.bytes,
                ..all
            };
            std::future::ready(Ok((all, digest.chain_update(one.digest))))
        })
        .await?;
    Ok(Content { digest: digest.finalize().into(), ..all })
}

/// What a store holds of one group.
async fn of_group(
    store: &dyn Store,
    group: DeviceGroupId,
    whose: fn(StoreError) -> CopyError,
) -> Result<Content, CopyError> {
    let mut snapshot = store.load(group).await.map_err(whose)?.ok_or(CopyError::Gone)?;
    snapshot.slots.sort_unstable_by_key(|slot| slot.record.device);
    let mut digest = Said::default();
    digest.bytes(group.as_bytes());
    let record = &snapshot.group;
    digest.numbers(&[record.seq_reserved.0, record.last_timestamp_ms]);
    digest.bytes(&record.encrypted_shared_device_data);
    digest.numbers(&[snapshot.slots.len() as u64]);
    for slot in &snapshot.slots {
        digest.slot(slot);
    }
    let mut content = Content { groups: 1, slots: snapshot.slots.len() as u64, ..Content::default() };
    let mut after = Seq(0);
    while after < SEQ_MAX {
        let page = store.page(group, after, SEQ_MAX, PAGE).await.map_err(whose)?;
        after = page.through;
        for entry in &page.entries {
            digest.entry(entry);
            content.messages += 1;
            content.bytes += entry.message.envelope().len() as u64;
        }
    }
    content.digest = digest.0.finalize().into();
    Ok(content)
}

/// What a digest is made of: numbers of eight bytes, and bytes behind their number, so that nothing can stand for something else.
#[derive(Default)]
struct Said(Sha256);

impl Said {
    fn numbers(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.0.update(number.to_le_bytes());
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.numbers(&[bytes.len() as u64]);
        self.0.update(bytes);
    }

    fn slot(&mut self, SlotSnapshot { record, uncounted }: &SlotSnapshot) {
        self.numbers(&[
            record.device.0,
            u64::from(record.expiration == SlotExpiration::Persistent),
            u64::from(record.connected),
            record.last_disconnect_ms,
            record.since.0,
            record.cursor.0,
            record.issued.0,
            record.counted_through.0,
        ]);
        for held in [&record.held, uncounted] {
            self.numbers(&[held.pending, held.entries, held.bytes]);
        }
        for bytes in [&record.encrypted_device_info, &record.acked.to_bytes(), &record.acked_unseen.to_bytes()] {
            self.bytes(bytes);
        }
    }

    fn entry(&mut self, entry: &LogEntry) {
        self.numbers(&[entry.seq.0, entry.origin.0, entry.message.timestamp_ms()]);
        self.bytes(entry.message.envelope());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::ranges::RangeSet;
    use crate::group::record::{GroupRecord, Held, SlotRecord};
    use crate::store::MemoryStore;
    use crate::store::memory::Crash;
    use crate::store::nodes::Nodes;
    use crate::wire::d2m::{DeviceId, Envelope, ReflectFlags, Reflected, ReflectedId};

    const NOW: u64 = 1_700_000_000_000;

    fn id(n: u8) -> DeviceGroupId {
        DeviceGroupId::new([n; 32])
    }

    fn entry(seq: u64, origin: u64, envelope: &[u8]) -> Write {
        let id = ReflectedId(Seq(seq).wire_id());
        let message = Reflected::new(Envelope::copy_from(envelope), ReflectFlags::default(), id, NOW + seq);
        Write::Append(LogEntry { seq: Seq(seq), origin: DeviceId(origin), message })
    }

    fn slot(device: u64) -> SlotRecord {
        let mut acked = RangeSet::new();
        for n in [device + 3, device + 4, device + 9] {
            acked.insert(n);
        }
        let mut acked_unseen = RangeSet::new();
        acked_unseen.insert(device + 20);
        SlotRecord {
            device: DeviceId(device),
            expiration: if device.is_multiple_of(2) { SlotExpiration::Persistent } else { SlotExpiration::Volatile },
            encrypted_device_info: vec![7; 100],
            connected: false,
            last_disconnect_ms: NOW - device,
            since: Seq(1),
            cursor: Seq(2),
            acked,
            acked_unseen,
            issued: Seq(10),
            counted_through: Seq(10),
            held: Held { pending: 4, entries: 8, bytes: 80 },
        }
    }

    fn record(seq_reserved: u64) -> Write {
        let encrypted_shared_device_data = vec![9; 40];
        Write::Group(GroupRecord {
            seq_reserved: Seq(seq_reserved),
            last_timestamp_ms: NOW,
            encrypted_shared_device_data,
        })
    }

    /// Groups of every kind: with a log of several pages, part of which no slot has counted; with an empty one; without anything; and many
    /// small ones.
    async fn fill(store: &dyn Store) {
        let long = (3..=40).map(|seq| entry(seq, seq % 3, &vec![seq.to_le_bytes()[0]; 20_000]));
        let slots = (1..=3).map(|device| Write::Slot(slot(device)));
        store.commit(id(0), std::iter::once(record(64)).chain(long).chain(slots).collect()).await.unwrap();
        store.commit(id(1), vec![record(64), Write::Slot(slot(1))]).await.unwrap();
        store.commit(id(2), vec![record(0)]).await.unwrap();
        for n in 10..110 {
            let writes = vec![record(64), Write::Slot(slot(2)), Write::Slot(slot(5)), entry(11, 1, &[n; 30])];
            store.commit(id(n), writes).await.unwrap();
        }
    }

    async fn full() -> MemoryStore {
        let store = MemoryStore::new();
        fill(&store).await;
        store
    }

    async fn copied(from: &dyn Store, to: &dyn Store, resume: bool) -> Result<Content, CopyError> {
        copy(from, to, resume, &ProgressBar::hidden()).await
    }

    #[tokio::test]
    async fn a_copy_is_what_the_mediator_would_find() {
        let (from, to) = (full().await, MemoryStore::new());
        let content = copied(&from, &to, false).await.unwrap();
        assert_eq!((content.groups, content.slots, content.messages), (103, 204, 138));
        assert_eq!(content.bytes, 38 * 20_000 + 100 * 30);
        for n in [0, 1, 2, 50] {
            let loaded = from.load(id(n)).await.unwrap();
            assert!(loaded.is_some() && loaded == to.load(id(n)).await.unwrap(), "{n}");
            let log = from.page(id(n), Seq(0), SEQ_MAX, usize::MAX).await.unwrap();
            assert_eq!(to.page(id(n), Seq(0), SEQ_MAX, usize::MAX).await.unwrap(), log, "{n}");
        }
        let uncounted = to.load(id(0)).await.unwrap().unwrap().slots[0].uncounted;
        assert_eq!((uncounted.entries, uncounted.bytes), (30, 600_000), "what was not counted is counted there, too");
    }

    #[tokio::test]
    async fn from_engine_to_engine_and_back_it_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (from, back) = (full().await, MemoryStore::new());
        let sqlite = SqliteStore::open(&dir.path().join("copy"), Durability::Memory, NOW).unwrap();
        let there = copied(&from, &*sqlite, false).await.unwrap();
        assert_eq!(copied(&*sqlite, &back, false).await.unwrap(), there);
        sqlite.close().await.unwrap();
    }

    #[tokio::test]
    async fn whatever_differs_the_digest_does_too() {
        let whole = content(&full().await, CopyError::Source, || ()).await.unwrap();
        let changed = |change: fn(&mut SlotRecord)| {
            let mut slot = slot(2);
            change(&mut slot);
            Write::Slot(slot)
        };
        let others = [
            changed(|slot| slot.cursor = Seq(3)),
            changed(|slot| slot.acked = RangeSet::new()),
            changed(|slot| slot.acked_unseen = RangeSet::new()),
            changed(|slot| slot.held.bytes += 1),
            changed(|slot| slot.counted_through = Seq(11)),
            changed(|slot| slot.last_disconnect_ms += 1),
            changed(|slot| slot.expiration = SlotExpiration::Volatile),
            changed(|slot| slot.encrypted_device_info.clear()),
            record(65),
            Write::RemoveSlot(DeviceId(2)),
            Write::Trim { through: Seq(11) },
            entry(12, 1, b""),
            Write::Forget,
        ];
        let mut seen = std::collections::BTreeSet::from([whole.digest]);
        for write in others {
            let other = full().await;
            other.commit(id(50), vec![write.clone()]).await.unwrap();
            let content = content(&other, CopyError::Source, || ()).await.unwrap();
            assert!(seen.insert(content.digest), "{write:?}");
        }
        assert_eq!(content(&full().await, CopyError::Target, || ()).await.unwrap(), whole, "and nothing else");
    }

    #[tokio::test]
    async fn a_target_that_holds_something_is_left_alone() {
        let (from, to) = (full().await, MemoryStore::new());
        to.commit(id(200), vec![record(1), Write::Slot(slot(1))]).await.unwrap();
        let before = content(&to, CopyError::Target, || ()).await.unwrap();
        assert_eq!(copied(&from, &to, false).await, Err(CopyError::NotEmpty(1)));
        assert_eq!(copied(&from, &to, true).await, Err(CopyError::Foreign), "nobody's copy");
        assert_eq!(content(&to, CopyError::Target, || ()).await.unwrap(), before);
    }

    #[tokio::test]
    async fn a_copy_that_was_used_is_not_overwritten() {
        let (from, to) = (full().await, MemoryStore::new());
        copied(&from, &to, false).await.unwrap();
        to.commit(id(50), vec![entry(12, 1, b"written by a server since")]).await.unwrap();
        let before = content(&to, CopyError::Target, || ()).await.unwrap();
        assert_eq!(copied(&from, &to, true).await, Err(CopyError::Used));
        assert_eq!(content(&to, CopyError::Target, || ()).await.unwrap(), before);
    }

    #[tokio::test]
    async fn a_copy_that_ended_anywhere_is_finished_by_another() {
        let from = full().await;
        let all = MemoryStore::new();
        let whole = copied(&from, &all, false).await.unwrap();
        for n in (1..=all.commits()).step_by(7).chain([2, 3, all.commits()]) {
            let to = MemoryStore::new();
            to.crash_at(n, if n % 2 == 0 { Crash::BeforeKeeping } else { Crash::AfterKeeping });
            assert_eq!(copied(&from, &to, false).await, Err(CopyError::Target(StoreError::Closed)), "{n}");
            let to = to.survivors(NOW);
            assert_eq!(copied(&from, &to, true).await, Ok(whole), "{n}");
        }
    }

    #[tokio::test]
    async fn a_group_is_nobody_else_s_while_it_is_copied_and_nobody_s_afterwards() {
        let nodes = Nodes::over(Arc::new(MemoryStore::new()));
        let (this, other) = (nodes.node("copy", ""), nodes.node("east-1", "east-1:7443"));
        // Nothing is kept of a group that was not taken.
        let whole = copied(&full().await, &*this, false).await.unwrap();
        assert_eq!(nodes.owner(id(50)), None);
        let Taken::Here(tenure) = other.take(id(50)).await.unwrap() else { panic!("it was nobody's") };
        let refused = copied(&*this, &MemoryStore::new(), false).await;
        assert_eq!(refused, Err(CopyError::InUse("east-1".to_owned())));
        other.give_up(id(50), tenure).await.unwrap();
        assert_eq!(copied(&*this, &MemoryStore::new(), false).await, Ok(whole));
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_named() {
        let (from, to) = (full().await, MemoryStore::new());
        from.fail_read_at(20);
        let error = copied(&from, &to, false).await.unwrap_err();
        assert!(matches!(error, CopyError::Source(StoreError::Failed(_))), "{error}");
        assert_eq!(copied(&from, &to, true).await.unwrap().groups, 103);
    }

    #[tokio::test]
    async fn a_server_that_runs_and_a_directory_without_a_store_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let running = SqliteStore::open(&dir.path().join("data"), Durability::Memory, NOW).unwrap();
        let place = |name: &str| Spelled::from(format!("sqlite:{}", dir.path().join(name).display()));
        let args = |from, to| Tool::Copy(CopyArgs { from: place(from), to: place(to), resume: false });
        let error = run(args("data", "new")).await.unwrap_err();
        assert!(format!("{error:?}").contains("stop the server first"), "{error:?}");
        let error = run(args("nowhere", "new")).await.unwrap_err();
        assert!(format!("{error:?}").contains("there is no mediator.sqlite"), "{error:?}");
        assert!(!dir.path().join("nowhere").exists(), "nothing was made there");
        running.close().await.unwrap();
        let error = run(args("data", "data")).await.unwrap_err();
        assert!(format!("{error:?}").contains("a server is running on"), "a store and itself: {error:?}");
        for text in ["data", "sqlite:", "postgres:db/h", "mysql://localhost/db", "file:/nowhere"] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }

    #[test]
    fn neither_users_nor_passwords_are_shown() {
        let dir = tempfile::tempdir().unwrap();
        let url = "postgres://me:s3cret@db.internal:5432/heliostat?sslmode=require&password=s3cret";
        let file = dir.path().join("url");
        std::fs::write(&file, format!("{url}\n")).unwrap();
        for text in [url.to_owned(), format!("file:{}", file.display())] {
            let place = text.parse::<Place>().unwrap();
            assert_eq!(place.to_string(), "postgres://db.internal:5432/heliostat");
            assert_eq!(format!("{place:?}"), "Place(postgres://db.internal:5432/heliostat)");
        }
        for (url, shown) in [
            ("postgres://db/h", "postgres://db/h"),
            ("postgresql://db/h?host=/run/postgresql", "postgres://db/h"),
            ("postgres://me@db/h", "postgres://db/h"),
            ("postgres://me:s3?cret@db/h", "postgres://db/h"),
            ("postgres://me:s3#cret@db/h", "postgres://db/h"),
            ("postgres://me:s3/cr:et@db/h?sslmode=require", "postgres://db/h"),
            ("postgres://me:s3?cret#s3cret@db/h#s3cret", "postgres://db/h"),
            // Where one ends and the other begins is anybody's guess.
            ("postgres://me:s3@cret@db/h", "postgres://…"),
            ("postgres://me:s3@c?ret@db/h", "postgres://…"),
            ("postgres://me:s3@c#ret@db/h", "postgres://…"),
            ("postgres://db/h?user=me&password=s3@cret", "postgres://…"),
            ("postgres://me@db/h?password=s3@cret", "postgres://…"),
        ] {
            assert_eq!(url.parse::<Place>().unwrap().to_string(), shown, "{url}");
        }
    }

    #[tokio::test]
    async fn what_is_refused_is_not_repeated() {
        let good = "sqlite:/nowhere";
        for bad in
            ["postgre://me:s3cret@db/h", "postgres:me:s3cret@db/h", "me:s3cret@db/h", "file:postgres://me:s3cret@db/h"]
        {
            for (from, to) in [(bad, good), (good, bad)] {
                let args = CopyArgs { from: from.to_owned().into(), to: to.to_owned().into(), resume: false };
                let told = format!("{args:?}");
                let error = run(Tool::Copy(args)).await.unwrap_err();
                let told = format!("{told} {error} {error:?}");
                assert!(!told.contains("s3cret"), "{told}");
            }
        }
    }
}
