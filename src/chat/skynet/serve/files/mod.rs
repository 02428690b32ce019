//! Files beside the messages, over HTTP (spec 4.15). One process is both of the protocol's servers: the one that knows who may
//! (`/api/`) gives a ticket and sends clients on to the one that has the bytes (`/cdn/`), so the word of the second to the first
//! that a file is complete is no request.
//!
//! Bytes go from the socket to the disk a piece at a time, and back, so a transfer takes a piece of memory, and is as fast as
//! the slower of the two. It lasts as long as pieces move: each has [`super::web::MOVES_WITHIN`].
//!
//! What was answered with 201 is on the disk. What was interrupted can be gone on with until [`COMPLETE_WITHIN`] is over.
//!
//! | file | holds |
//! |---|---|
//! | here | what is asked of the task that decides, and who is under way |
//! | `http` | requests and answers |
//! | `transfer` | bytes on their way |
//! | `remove` | files that nobody can have any more |
//! | `refused` | why somebody does not get what was asked for |

mod http;
mod refused;
mod remove;
mod transfer;

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::actor::Mail;
use crate::chat::skynet::store::disk::Disk;
use crate::chat::skynet::store::{FileState, Store, StoredFile};
use crate::chat::skynet::wire::{AccountId, FileId, SessionId};
use crate::metrics;
use crate::time::Clock;

pub(super) use http::router;
pub(super) use refused::Refused;
pub(super) use remove::remove_all;

/// How long a file may take to come, in all its attempts. Then it is forgotten.
pub const COMPLETE_WITHIN: Duration = Duration::from_secs(6 * 3_600);
/// How long a download may take to begin.
pub const FETCH_WITHIN: Duration = Duration::from_secs(10 * 60);
/// Files of one account that may be on their way here.
pub const COMING_MAX: u64 = 32;
/// Transfers of one account at a time.
pub const TRANSFERS_PER_ACCOUNT: usize = 8;

/// How much files may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileLimits {
    /// Of one file, in bytes.
    pub length_max: u64,
    /// Of the files that an account uploaded lately, or that no message names, in bytes.
    pub per_account_max: u64,
    /// Transfers at a time, of everybody.
    pub transfers_max: usize,
    /// How long a file is kept that no message names.
    pub unnamed_age_max: Duration,
    /// How long a file that a message names counts among what its account uploaded.
    pub counted_for: Duration,
}

impl Default for FileLimits {
    fn default() -> Self {
        Self {
            length_max: 100 * 1024 * 1024,
            per_account_max: 2 * 1024 * 1024 * 1024,
            transfers_max: 128,
            unnamed_age_max: Duration::from_secs(86_400),
            counted_for: Duration::from_secs(30 * 86_400),
        }
    }
}

/// What the doors ask of the task that decides.
#[derive(Debug)]
pub(super) enum FileAsk {
    /// Somebody wants to upload.
    Begin {
        session: SessionId,
        web_token: String,
        answer: oneshot::Sender<Result<(FileId, AccountId), Refused>>,
    },
    /// Bytes are about to come: exactly so many, or as many as there is room for. Answers how many.
    SetAside {
        file: FileId,
        wanted: Option<u64>,
        answer: oneshot::Sender<Result<u64, Refused>>,
    },
    Complete {
        file: FileId,
        length: u64,
        checksum: [u8; 32],
        answer: oneshot::Sender<Result<(), Refused>>,
    },
    /// The bytes of these are gone.
    Removed {
        files: Vec<FileId>,
        answer: oneshot::Sender<Result<(), Refused>>,
    },
}

/// Who is under way. A place is held by a transfer until it is over.
#[derive(Debug)]
struct Transfers {
    places: Arc<Semaphore>,
    busy: Mutex<Busy>,
}

#[derive(Debug, Default)]
struct Busy {
    accounts: HashMap<AccountId, usize>,
    /// Files that somebody is bringing: one at a time.
    coming: HashSet<FileId>,
}

#[derive(Debug)]
struct Place {
    transfers: Arc<Transfers>,
    account: AccountId,
    coming: Option<FileId>,
    _place: OwnedSemaphorePermit,
}

impl Transfers {
    fn enter(self: &Arc<Self>, account: AccountId, coming: Option<FileId>) -> Result<Place, Refused> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| Refused::NotNow)?;
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if busy.accounts.get(&account).is_some_and(|count| *count >= TRANSFERS_PER_ACCOUNT) {
            return Err(Refused::TooMany);
        }
        if coming.is_some_and(|file| !busy.coming.insert(file)) {
            return Err(Refused::Busy);
        }
        *busy.accounts.entry(account).or_default() += 1;
        metrics::get().skynet_transfers_open.increment(1.0);
        Ok(Place { transfers: Arc::clone(self), account, coming, _place: place })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut busy = self.transfers.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = self.coming {
            busy.coming.remove(&file);
        }
        if let Some(count) = busy.accounts.get_mut(&self.account) {
            *count -= 1;
            if *count == 0 {
                busy.accounts.remove(&self.account);
            }
        }
        metrics::get().skynet_transfers_open.decrement(1.0);
    }
}

/// What every request works with.
#[derive(Debug)]
pub(super) struct Files {
    store: Store,
    disk: Disk,
    mailbox: mpsc::WeakSender<Mail>,
    length_max: u64,
    session_age_max: Duration,
    clock: Clock,
    transfers: Arc<Transfers>,
}

impl Files {
    pub(super) fn new(
        (store, disk): (Store, Disk),
        mailbox: mpsc::WeakSender<Mail>,
        limits: FileLimits,
        session_age_max: Duration,
        clock: Clock,
    ) -> Self {
        let (places, busy) = (Arc::new(Semaphore::new(limits.transfers_max)), Mutex::default());
        let (length_max, transfers) = (limits.length_max, Arc::new(Transfers { places, busy }));
        Self { store, disk, mailbox, length_max, session_age_max, clock, transfers }
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<Result<T, Refused>>) -> FileAsk) -> Result<T, Refused> {
        let (answer, answered) = oneshot::channel();
        let mailbox = self.mailbox.upgrade().ok_or(Refused::NotNow)?;
        mailbox.send(Mail::File(ask(answer))).await.map_err(|_| Refused::NotNow)?;
        answered.await.map_err(|_| Refused::NotNow)?
    }

    async fn stored(&self, file: FileId) -> Result<StoredFile, Refused> {
        let stored = self.store.read().await?.file(file).await?;
        stored.filter(|stored| stored.state != FileState::Gone).ok_or(Refused::Unknown)
    }
}

/// Work on the disk, away from the threads that must not wait.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_some_places_and_a_file_is_brought_by_one() {
        let (places, busy) = (Arc::new(Semaphore::new(TRANSFERS_PER_ACCOUNT + 1)), Mutex::default());
        let transfers = Arc::new(Transfers { places, busy });
        let enter = |account, file: Option<i64>| transfers.enter(AccountId(account), file.map(FileId));
        let mut places: Vec<_> = (1..).map(|file| enter(1, Some(file)).unwrap()).take(TRANSFERS_PER_ACCOUNT).collect();
        assert!(matches!(enter(1, None), Err(Refused::TooMany)));
        assert!(matches!(enter(2, Some(1)), Err(Refused::Busy)));
        let other = enter(2, None).unwrap();
        assert!(matches!(enter(3, None), Err(Refused::NotNow)));
        drop(other);
        places.remove(0);
        assert!(enter(2, Some(1)).is_ok(), "nobody brings it any more");
        drop(places);
        let busy = transfers.busy.lock().unwrap();
        assert!(busy.accounts.is_empty() && busy.coming.is_empty());
        assert_eq!(transfers.places.available_permits(), TRANSFERS_PER_ACCOUNT + 1);
    }
}
