//! A copy of the whole data directory while everything runs.
//!
//! A backup is a data directory: restoring it is starting a server on it. Databases are copied by [`crate::store::copy`], so each is
//! of one moment, and everything that was acknowledged before the backup began is in it; the mediator's own goes through
//! its store, which has to know. All other files, such as keys, are copied as they are. What makes no sense elsewhere is left out:
//! locks, and the parts of a running database beside it. What a link leads to is copied in its place: a backup stands by itself.
//!
//! It is made under a name of its own beside the one that was asked for, and gets that when it is complete and synced, so a directory of
//! the name that was asked for is a whole backup. Nothing is ever removed but what the same attempt made: whoever may ask for a
//! backup may name any path. It is made on a thread that nobody waits for at the end: a server that stops leaves it incomplete.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::crypto::random;
use crate::files;
use crate::store::sqlite::DATABASE_FILE;
use crate::store::{Store, StoreError, copy};

/// Endings of files that are of use only to the process that runs here.
const LEFT_OUT: [&str; 5] = ["-wal", "-shm", ".lock", ".new", ".part"];
/// Ends the name of a backup that is not complete, before a random number.
const INCOMPLETE: &str = ".incomplete";
/// How deep directories are nested. No part of this program makes more than one, so it takes a link that leads in a circle.
const DEPTH_MAX: usize = 16;

/// Makes backups, one at a time.
#[derive(Debug, Clone)]
pub struct Backups {
    store: Arc<dyn Store>,
    data_dir: PathBuf,
    running: Arc<AtomicBool>,
}

/// A backup that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// Where.
    pub path: PathBuf,
    /// What it consists of.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The server's working directory means nothing to who asks.
    #[error("{} is not an absolute path", .0.display())]
    Relative(PathBuf),
    /// Nothing is ever overwritten.
    #[error("{} exists; a backup is made in a directory of its own", .0.display())]
    Exists(PathBuf),
    /// There is one at work.
    #[error("another backup is being made")]
    Running,
    /// A database could not be copied.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// It is in the data directory, and no backup would be whole without.
    #[error("{} cannot be copied: {why}; a backup without it would not be whole", path.display())]
    Unfit {
        /// What.
        path: PathBuf,
        /// What is in the way.
        why: &'static str,
    },
    /// Something else could not.
    #[error("{}: {source}", path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl Backups {
    /// Of the data directory that `store` keeps its database in.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, data_dir: PathBuf) -> Self {
        Self { store, data_dir, running: Arc::default() }
    }

    /// Makes a backup at `to`, also when nobody waits for the answer any more.
    ///
    /// # Errors
    /// [`BackupError`]; nothing is left at `to` then.
    pub async fn make(&self, to: PathBuf) -> Result<Backup, BackupError> {
        if !to.is_absolute() {
            return Err(BackupError::Relative(to));
        }
        if self.running.swap(true, Ordering::AcqRel) {
            return Err(BackupError::Running);
        }
        let running = Running(Arc::clone(&self.running));
        let (answer, answered) = oneshot::channel();
        let (store, data_dir) = (Arc::clone(&self.store), self.data_dir.clone());
        let path = to.clone();
        std::thread::Builder::new()
            .name("backup".to_owned())
            .spawn(move || {
                let made = make(&*store, &data_dir, &to);
                drop(running);
                match &made {
                    Ok(Backup { files, bytes, .. }) => {
                        tracing::info!(path = %to.display(), files, bytes, "a backup was made");
                    }
                    Err(error) => tracing::warn!(path = %to.display(), %error, "no backup was made"),
                }
                answer.send(made).unwrap_or(());
            })
            .map_err(at(&path))?;
        answered.await.unwrap_or_else(|_| Err(at(&path)(io::Error::other("the thread that made the backup panicked"))))
    }
}

/// Gives the turn to the next when it is dropped.
struct Running(Arc<AtomicBool>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> BackupError {
    move |source| BackupError::Io { path: path.to_owned(), source }
}

fn make(store: &dyn Store, data_dir: &Path, to: &Path) -> Result<Backup, BackupError> {
    if to.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(to.to_owned()));
    }
    let mut incomplete = to.as_os_str().to_owned();
    incomplete.push(format!("{INCOMPLETE}-{:016x}", random::u64()));
    let incomplete = PathBuf::from(incomplete);
    if let Some(above) = to.parent() {
        files::make_private_dir(above).map_err(at(above))?;
    }
    // Not there yet, or it would not be ours to remove.
    let mut ours = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut ours, 0o700);
    ours.create(&incomplete).map_err(at(&incomplete))?;
    let mut made = Backup { path: to.to_owned(), files: 0, bytes: 0 };
    let kept = store.back_up(&incomplete).map_err(BackupError::from).and_then(|()| {
        made.count(&incomplete.join(DATABASE_FILE))?;
        made.copy_all(data_dir, &incomplete, DEPTH_MAX)?;
        fs::rename(&incomplete, to).and_then(|()| files::sync_parent(to)).map_err(at(to))
    });
    if kept.is_err() {
        let _already_gone = fs::remove_dir_all(&incomplete);
    }
    kept.map(|()| made)
}

impl Backup {
    fn count(&mut self, file: &Path) -> Result<(), BackupError> {
        self.files += 1;
        self.bytes += fs::metadata(file).map_err(at(file))?.len();
        Ok(())
    }

    /// Everything in `from` but what is in `to` already.
    fn copy_all(&mut self, from: &Path, to: &Path, depth_left: usize) -> Result<(), BackupError> {
        // Behind the databases, which say what is in them.
        let mut nested = Vec::new();
        for entry in fs::read_dir(from).map_err(at(from))? {
            let entry = entry.map_err(at(from))?;
            let (path, name) = (entry.path(), entry.file_name());
            let target = to.join(&name);
            let name = name.to_string_lossy();
            if name == DATABASE_FILE || LEFT_OUT.iter().any(|end| name.ends_with(end)) {
                continue;
            }
            let unfit = |why| BackupError::Unfit { path: path.clone(), why };
            // A chat server removes what nobody can have any more. A link that leads nowhere is still there.
            let is_removed =
                |error: &io::Error| error.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_err();
            // Of what a link leads to.
            let kind = match fs::metadata(&path) {
                Err(error) if is_removed(&error) => continue,
                found => found.map_err(at(&path))?.file_type(),
            };
            if kind.is_dir() {
                // Another data directory, most likely an earlier backup; this one, while it is made, is one, too.
                if !path.join(DATABASE_FILE).exists() {
                    let depth_left = depth_left.checked_sub(1).ok_or_else(|| unfit("it is nested too deep"))?;
                    nested.push((path, target, depth_left));
                }
            } else if !kind.is_file() {
                return Err(unfit("it is neither a file nor a directory"));
            } else {
                if name.ends_with(".sqlite") {
                    copy::copy(&path, &target)?;
                } else {
                    match copy_file(&path, &target) {
                        Err(BackupError::Io { source, .. }) if is_removed(&source) => continue,
                        copied => copied?,
                    }
                }
                self.count(&target)?;
            }
        }
        for (path, target, depth_left) in nested {
            files::make_private_dir(&target).map_err(at(&target))?;
            self.copy_all(&path, &target, depth_left)?;
        }
        files::sync_dir(to).map_err(at(to))
    }
}

/// With the rights it has.
fn copy_file(from: &Path, to: &Path) -> Result<(), BackupError> {
    fs::copy(from, to).map_err(at(from))?;
    File::open(to).and_then(|file| file.sync_all()).map_err(at(to))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::group::record::{GroupRecord, Write};
    use crate::store::memory::MemoryStore;
    use crate::store::{Durability, SqliteStore};
    use crate::wire::d2m::DeviceGroupId;

    const GROUP: DeviceGroupId = DeviceGroupId::new([7; DeviceGroupId::LEN]);

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_backup_is_a_data_directory_with_everything_that_is_kept_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let store = SqliteStore::open(&data, Durability::Fsync, 1).unwrap();
        store.commit(GROUP, vec![Write::Group(GroupRecord::default())]).await.unwrap();
        fs::create_dir(data.join("tls")).unwrap();
        for file in ["room.key", "tls/dev-ca.pem", "half.new", "tls/half.part"] {
            fs::write(data.join(file), "secret").unwrap();
            fs::set_permissions(data.join(file), fs::Permissions::from_mode(0o600)).unwrap();
        }
        // A room's database, which somebody else holds open: what is committed is in its write-ahead log.
        let room = rusqlite::Connection::open(data.join("room.sqlite")).unwrap();
        let schema = "PRAGMA journal_mode = WAL; CREATE TABLE t (n INTEGER); INSERT INTO t VALUES (42);";
        room.execute_batch(schema).unwrap();
        let backups = Backups::new(Arc::<SqliteStore>::clone(&store), data.clone());

        // Inside of what it copies, which is what a container has a volume for.
        let first = backups.make(data.join("first")).await.unwrap();
        let expected = ["mediator.sqlite", "room.key", "room.sqlite", "tls"];
        assert_eq!(names(&first.path), expected);
        assert_eq!(names(&first.path.join("tls")), ["dev-ca.pem"]);
        assert_eq!(first.files, 4, "with tls/dev-ca.pem");
        assert_eq!((mode(&first.path), mode(&first.path.join("tls"))), (0o700, 0o700));
        for file in ["mediator.sqlite", "room.key", "room.sqlite", "tls/dev-ca.pem"] {
            assert_eq!(mode(&first.path.join(file)), 0o600, "{file}");
        }
        let copied = rusqlite::Connection::open(first.path.join("room.sqlite")).unwrap();
        assert_eq!(copied.query_row("SELECT n FROM t", [], |row| row.get::<_, i64>(0)).unwrap(), 42);
        let restored = SqliteStore::open(&first.path, Durability::Fsync, 2).unwrap();
        assert!(restored.load(GROUP).await.unwrap().is_some());

        // The first is not in the second, and none takes another's place.
        let second = backups.make(dir.path().join("second")).await.unwrap();
        assert_eq!(names(&second.path), expected);
        let again = backups.make(second.path.clone()).await.unwrap_err();
        assert!(matches!(again, BackupError::Exists(_)), "{again}");
        assert!(matches!(backups.make("here".into()).await, Err(BackupError::Relative(_))));
        store.close().await.unwrap();
    }

    #[tokio::test]
    async fn what_fails_leaves_nothing_and_is_no_hindrance() {
        let dir = tempfile::tempdir().unwrap();
        let backups = Backups::new(Arc::new(MemoryStore::new()), dir.path().join("data"));
        let to = dir.path().join("to");
        let error = backups.make(to.clone()).await.unwrap_err();
        assert!(matches!(error, BackupError::Store(StoreError::Refused(_))), "{error}");
        assert!(names(dir.path()).is_empty());
        assert!(matches!(backups.make(to).await, Err(BackupError::Store(_))), "not Running");
    }

    /// A data directory with a store in it.
    fn kept(dir: &Path) -> (PathBuf, Backups) {
        let data = dir.join("data");
        let store = SqliteStore::open(&data, Durability::Fsync, 1).unwrap();
        (data.clone(), Backups::new(store, data))
    }

    #[tokio::test]
    async fn nothing_is_removed_that_the_backup_did_not_make() {
        let dir = tempfile::tempdir().unwrap();
        let (_, backups) = kept(dir.path());
        let foreign = dir.path().join("to.incomplete");
        fs::create_dir(&foreign).unwrap();
        fs::write(foreign.join("precious"), "kept").unwrap();
        let to = dir.path().join("to");
        backups.make(to.clone()).await.unwrap();
        assert_eq!(fs::read_to_string(foreign.join("precious")).unwrap(), "kept");
        assert_eq!((names(dir.path()), mode(&to)), (["data", "to", "to.incomplete"].map(str::to_owned).into(), 0o700));
    }

    #[tokio::test]
    async fn what_a_link_leads_to_is_copied_and_what_cannot_be_copied_is_named() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let (data, backups) = kept(dir.path());
        let elsewhere = dir.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("room.key"), "secret").unwrap();
        symlink(elsewhere.join("room.key"), data.join("room.key")).unwrap();
        symlink(&elsewhere, data.join("tls")).unwrap();
        let made = backups.make(dir.path().join("first")).await.unwrap();
        assert_eq!(
            (names(&made.path), made.files),
            (["mediator.sqlite", "room.key", "tls"].map(str::to_owned).into(), 3)
        );
        for file in ["room.key", "tls/room.key"] {
            assert_eq!(fs::read_to_string(made.path.join(file)).unwrap(), "secret", "{file}");
            assert!(made.path.join(file).symlink_metadata().unwrap().is_file(), "{file}");
        }

        let refused = async |name: &str| {
            let error = backups.make(dir.path().join("second")).await.unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
            fs::remove_file(data.join(name)).unwrap();
            assert_eq!(names(dir.path()), ["data", "elsewhere", "first"], "{name}");
        };
        symlink(dir.path().join("nowhere"), data.join("broken")).unwrap();
        refused("broken").await;
        let _socket = std::os::unix::net::UnixListener::bind(data.join("socket")).unwrap();
        refused("socket").await;
        symlink(&elsewhere, elsewhere.join("circle")).unwrap();
        let error = backups.make(dir.path().join("second")).await.unwrap_err();
        assert!(matches!(&error, BackupError::Unfit { path, .. } if path.ends_with("circle")), "{error}");
    }
}
