//! What is promised to disk.
//!
//! # The promise
//!
//! [`Store::commit`] takes a list of writes of one group and keeps all of them or none. Once it has answered `Ok` they are
//! *kept*: [`Store::load`] and [`Store::page`] show them to everyone who asks later, also after a crash as far as the
//! table below reaches. Whoever speaks to a device waits for that answer first; so an acknowledgement never says more than the
//! disk does. A commit that answered with an error kept nothing. A commit whose answer was not awaited may have kept
//! everything or nothing. Commits of one group that must stay in order are asked one after the other, each when the one
//! before has answered.
//!
//! # What a crash leaves
//!
//! | | [`Durability::Fsync`] | [`Durability::Memory`] |
//! |---|---|---|
//! | the process is killed, panics, aborts | every answered commit | every answered commit |
//! | the machine loses power, the kernel dies | every answered commit | anything, a damaged file included |
//!
//! A commit that was under way at that moment is there whole or not at all: the promise forbids losing what was answered,
//! not keeping what was not. The same goes for a commit that was answered with an error *because of the disk* when the
//! crash comes before the next commit succeeds. Nobody was told of either, devices repeat what was not acknowledged, and a
//! message twice is what their protocol expects of a crash.
//!
//! Slots that were connected are found disconnected when the store is opened again, last seen at that moment: only the
//! devices know when they really left, and the time has to count from somewhere (D2M 3.5).
//!
//! # What is assumed of the disk
//!
//! * `fsync` returns after the bytes are where they survive a loss of power. A disk that answers from a volatile cache breaks the
//!   promise, and so does a network file system that does; neither can be noticed from here.
//! * A sector is not torn by a loss of power in a way that its neighbours notice. A torn page in the write-ahead log
//!   is found by SQLite's own checksum there, and ends the log at the commit before.
//! * When `fsync` fails, nothing is known about what it was to write. The commit is answered with an error, and what it
//!   wrote is written again, to the same place of the log, by whoever commits next. Nothing is read back from the page cache as proof.
//! * Bits rot. SQLite does not notice in its main file, so every row carries a seal, eight bytes of BLAKE2b over what it says and
//!   where it belongs, compared on reading: a flipped bit is [`StoreError::Damaged`], not a wrong message. A bit in a
//!   key of SQLite's own trees has no seal: what it leads to may be missed, never mistaken for something else. `PRAGMA
//!   integrity_check` on a copy finds it. BLAKE2b since
//!   it is in the house, at about 1 us per KiB a tenth of what keeping the row costs; a CRC would be ours to maintain for what it saves.
//! * `flock` works between processes of this machine. A second mediator in the same directory is refused by it.
//!
//! # What lies where
//!
//! Everything is in one directory, readable by its owner alone (0700, files 0600):
//!
//! | file | holds |
//! |---|---|
//! | `mediator.sqlite` | the database: `groups`, `slots`, `log` |
//! | `mediator.sqlite-wal` | what was committed since the last checkpoint: part of the database while it exists |
//! | `mediator.sqlite-shm` | index of the above; made anew when needed |
//! | `mediator.lock` | a line that says that there is a store; locked by the process that has the directory |
//!
//! A reflected message is one row of `log`, however many devices it waits for: the envelope alone, since the
//! container around it follows from seq and timestamp. Its key is the group's number in the upper bits and the seq in the lower
//! ones, so a group's log is one stretch of one B-tree: appended at its end, read by pages, trimmed at its beginning. What
//! a slot still has to get is not stored at all: it is the log beyond its cursor.
//!
//! # What is deleted when
//!
//! An entry goes with the `Trim` that passes it, when every slot has acknowledged it or is gone; a slot with its
//! `RemoveSlot`; everything of a group, its number included, with `Forget`. The space is used again at once. It is given back to the file
//! system in small steps while nothing waits to be written, until at most a quarter of the file (or 4 MiB) is free. Deleted
//! bytes are not overwritten: they were ciphertext.
//!
//! # One writes, some read
//!
//! A single thread owns the connection that writes (`writer.rs`). It takes whatever waits, of any group, keeps it in one
//! transaction with one sync, and then answers all of them; while it syncs, the next batch gathers. So the cost of a sync is
//! shared by as many as are waiting, and nobody waits for a timer. Readers have connections of their own and see what has
//! been committed; they neither wait for the writer nor hold it up.
//!
//! # Copies
//!
//! [`Store::back_up`] writes a database of its own beside the running one: one read transaction, so it is the state of one
//! moment, and everything that was answered before it began is in it. It is made by `VACUUM INTO`, which reads the tables and
//! builds new trees: nothing is waited for but the disk. SQLite's backup API copies pages instead, and begins anew whenever
//! another connection has written: on a busy server it would never end. As long as a copy is made, the write-ahead log
//! cannot start over and grows; the writer does not wait for that, as it would for an ordinary reader.
//!
//! # Elsewhere
//!
//! What is said of files is said of SQLite. [`postgres`] makes the same promise with a database that several nodes share.

pub mod copy;
pub mod memory;
pub mod nodes;
pub mod postgres;
mod seal;
pub mod sqlite;
pub mod tenure;
mod writer;

use std::path::Path;

use futures_util::future::BoxFuture;

pub use memory::MemoryStore;
pub use postgres::{PostgresError, PostgresStore};
pub use sqlite::{DirLock, OpenError, SqliteStore};
pub use tenure::{NodeId, Owner, Standing, Taken, Tenure};

use crate::group::limits::PAYLOAD_COST;
use crate::group::record::{LogEntry, Page, Seq, SlotSnapshot, Snapshot, Write};
use crate::wire::d2m::{DeviceGroupId, DeviceId, ReflectFlags};

/// The highest seq a log can keep: at a thousand messages a second a group gets there after 8 years.
pub const SEQ_MAX: Seq = Seq((1 << SEQ_BITS) - 1);
const SEQ_BITS: u32 = 38;

/// How far the promise reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// What was answered survives a loss of power.
    #[default]
    Fsync,
    /// What was answered survives the process, not the machine. For tests and development.
    Memory,
}

impl std::fmt::Display for Durability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fsync => "fsync",
            Self::Memory => "memory",
        })
    }
}

/// Why the store could not do as asked. Nothing of what was asked has been kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The engine reported a failure; its words are kept for the log.
    #[error("the store failed: {0}")]
    Failed(String),
    /// What was read back is not what can have been written.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// What was asked contradicts what is kept: a mistake of whoever asked.
    #[error("the store refuses: {0}")]
    Refused(&'static str),
    /// There is no room of this kind left.
    #[error("the store has no {0} left to give")]
    Exhausted(Exhausted),
    /// The group is another node's now, or may be.
    #[error("the group belongs to another node")]
    Lost,
    /// The store is closed or its writer is gone.
    #[error("the store is closed")]
    Closed,
}

/// What can run out, long before the disk's own limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exhausted {
    /// A group reached [`SEQ_MAX`].
    Seq,
    /// As many groups are kept as can be numbered.
    GroupNumber,
}

impl std::fmt::Display for Exhausted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Seq => "seq",
            Self::GroupNumber => "group number",
        })
    }
}

const NO_GROUP: StoreError = StoreError::Refused("a slot or an entry of a group that is not kept");
const TAKEN: StoreError = StoreError::Refused("an entry with a seq that is taken");

/// Keeps groups. Every engine makes the promise at the top of this file.
pub trait Store: Send + Sync + std::fmt::Debug {
    /// Takes a group for this node, as long as no other has it. Comes before [`Self::load`]; what an earlier tenure of this node
    /// may still have on its way is decided when this returns, and refused if it was not kept.
    fn take(&self, group: DeviceGroupId) -> BoxFuture<'_, Result<Taken, StoreError>> {
        let _ = group;
        Box::pin(std::future::ready(Ok(Taken::Alone)))
    }

    /// Lets other nodes have the group. A tenure that is over already is nobody's business.
    fn give_up(&self, group: DeviceGroupId, tenure: Tenure) -> BoxFuture<'_, Result<(), StoreError>> {
        let _ = (group, tenure);
        Box::pin(std::future::ready(Ok(())))
    }

    /// Asks a node to give up the group that it has, since this node cannot reach it otherwise. Nothing when another has it by now.
    fn want(&self, group: DeviceGroupId, of: NodeId) -> BoxFuture<'_, Result<(), StoreError>> {
        let _ = (group, of);
        Box::pin(std::future::ready(Ok(())))
    }

    /// Whether the group is still this node's: to be asked before anything is answered that no commit stands behind.
    ///
    /// Fails with [`StoreError::Lost`] when it is not.
    fn prove(&self, group: DeviceGroupId) -> BoxFuture<'_, Result<(), StoreError>> {
        let _ = group;
        Box::pin(std::future::ready(Ok(())))
    }

    /// Everything a group needs to wake; `None` when nothing is kept of it.
    fn load(&self, group: DeviceGroupId) -> BoxFuture<'_, Result<Option<Snapshot>, StoreError>>;

    /// Keeps all of `writes` or nothing. When this returns `Ok`, they survive whatever the durability mode survives. Refused with
    /// [`StoreError::Lost`] once the group is not this node's any more.
    fn commit(&self, group: DeviceGroupId, writes: Vec<Write>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Reads the log beyond `after` up to and including `through`: as many entries as fit `cost_max`, where each
    /// costs its envelope's bytes and [`PAYLOAD_COST`], and at least one when there is one.
    fn page(
        &self,
        group: DeviceGroupId,
        after: Seq,
        through: Seq,
        cost_max: usize,
    ) -> BoxFuture<'_, Result<Page, StoreError>>;

    /// Groups with a disconnected slot that was last seen at or before the given time: volatile slots by the first,
    /// persistent ones by the second. At most `most` of them, those that wait longest first within each kind.
    fn due(
        &self,
        volatile_before_ms: u64,
        persistent_before_ms: Option<u64>,
        most: usize,
    ) -> BoxFuture<'_, Result<Vec<DeviceGroupId>, StoreError>>;

    /// How many groups are kept; and of those whose id is beyond `after`, in the order of their ids, at most `most` with the
    /// number of their slots.
    fn census(&self, after: Option<DeviceGroupId>, most: usize) -> BoxFuture<'_, Result<Census, StoreError>>;

    /// Whether anything is kept of a group.
    fn knows(&self, group: DeviceGroupId) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(async move { Ok(self.load(group).await?.is_some()) })
    }

    /// Goes the way of a commit that keeps nothing: how long this takes is how long commits wait at the moment.
    fn probe(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Whether it can still keep anything.
    fn condition(&self) -> Condition {
        Condition { alive: true, failing: false }
    }

    /// The nodes that share it and live, this one among them; none where no other can reach it.
    fn nodes(&self) -> BoxFuture<'_, Result<Vec<Owner>, StoreError>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    /// Whether groups can be this node's at the moment. Not so while a node that shares its store has no lease.
    fn is_leased(&self) -> bool {
        true
    }

    /// Writes everything that is kept into a new database in `dir`, which another store can be opened on. Blocks for long,
    /// while commits go on.
    ///
    /// # Errors
    /// [`StoreError`]; whatever is in `dir` then is no copy.
    fn back_up(&self, dir: &Path) -> Result<(), StoreError> {
        let _ = dir;
        Err(StoreError::Refused("nothing is kept on disk, so there is nothing to back up"))
    }

    /// Tells [`metrics`](crate::metrics) how large it is. Cheap, and asked for with every scrape.
    fn measure(&self) {}
}

/// Whether a store can still keep anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// It takes commits at all. Once it does not, only a restart helps.
    pub alive: bool,
    /// The last transaction failed because of the engine or the disk.
    pub failing: bool,
}

/// Groups that are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// All of them.
    pub groups: u64,
    /// Some of them, each with the number of its slots.
    pub some: Vec<(DeviceGroupId, u64)>,
}

/// An entry is kept as its parts, so it must be made of nothing but them: asked of every engine.
fn check(writes: &[Write]) -> Result<(), StoreError> {
    for write in writes {
        let Write::Append(LogEntry { seq, message, .. }) = write else { continue };
        if *seq > SEQ_MAX {
            return Err(StoreError::Exhausted(Exhausted::Seq));
        }
        if message.id().0 != seq.wire_id() {
            return Err(StoreError::Refused("an entry whose id is not the low half of its seq"));
        }
        if message.flags() != ReflectFlags::default() {
            return Err(StoreError::Refused("an entry that is ephemeral"));
        }
    }
    Ok(())
}

/// Counts one entry of the log for each slot that has not counted it yet.
fn count_entry(slots: &mut [SlotSnapshot], seq: Seq, origin: DeviceId, envelope_bytes: u64) {
    for SlotSnapshot { record, uncounted } in slots {
        if seq <= record.counted_through {
            continue;
        }
        uncounted.entries += 1;
        uncounted.bytes += envelope_bytes;
        let waits = origin != record.device && !record.acked.contains(seq.0) && !record.acked_unseen.contains(seq.0);
        uncounted.pending += u64::from(waits);
    }
}

/// A page while it is filled, from entries in order.
struct Filling {
    cost_left: usize,
    entries: Vec<LogEntry>,
}

impl Filling {
    const fn new(cost_max: usize) -> Self {
        Self { cost_left: cost_max, entries: Vec::new() }
    }

    /// Whether one more of this length fits; takes its room when it does.
    const fn fits(&mut self, envelope_bytes: usize) -> bool {
        let left = self.cost_left.checked_sub(PAYLOAD_COST + envelope_bytes);
        self.cost_left = match left {
            Some(left) => left,
            None if self.entries.is_empty() => 0,
            None => return false,
        };
        true
    }

    /// The page, when the next entry did not fit.
    fn cut_short(self) -> Page {
        let through = self.entries.last().map(|entry| entry.seq).unwrap_or_default();
        Page { entries: self.entries, through }
    }

    /// The page, when there was no further entry up to `through`.
    fn ended(self, through: Seq) -> Page {
        Page { entries: self.entries, through }
    }
}
