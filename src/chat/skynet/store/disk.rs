//! The bytes of files: a directory with a file for each, named by its id in hexadecimal digits.
//!
//! What is still coming is called `ID.part` and can be gone on with. It gets its name when all of it is on the disk: synced,
//! renamed, and the directory synced. Only then the database says that it is whole. The database forgets a file only after its
//! bytes are gone. So whatever a crash leaves behind is either known, or nobody's: [`Disk::tidy`] moves that aside at start. It does
//! not remove it, because a database that was restored from a backup does not know what is newer, and it refuses a directory
//! that is another database's, of which everything would be nobody's.
//!
//! Everything here blocks.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::{FileState, Store, StoreError, StoredFile};
use crate::chat::skynet::wire::FileId;
use crate::crypto::random;
use crate::files;

/// What is read at once, in bytes.
pub const PIECE: usize = 64 * 1024;
/// Files that are asked for at once when everything is looked at.
const PAGE: usize = 256;
const COMING: &str = "part";
/// In the directory: whose files these are.
const OWNER: &str = "database";
/// The directory in it for what the database does not know.
pub const LOST: &str = "lost";

/// See the top of this file.
#[derive(Debug, Clone)]
pub struct Disk(Arc<Path>);

/// A file that is coming, and how much of it is there.
#[derive(Debug)]
pub struct Coming {
    file: File,
    there: u64,
}

impl Coming {
    /// How much is there, in bytes.
    #[must_use]
    pub const fn there(&self) -> u64 {
        self.there
    }

    /// Puts more behind it.
    ///
    /// # Errors
    /// The operating system's.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.there += bytes.len() as u64;
        Ok(())
    }
}

impl Disk {
    /// The directory, which is made if it is not there.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open(dir: &Path) -> io::Result<Self> {
        files::make_private_dir(dir)?;
        Ok(Self(dir.into()))
    }

    fn whole(&self, file: FileId) -> PathBuf {
        self.0.join(format!("{:016x}", file.0))
    }

    fn coming(&self, file: FileId) -> PathBuf {
        self.whole(file).with_extension(COMING)
    }

    /// How much has come of a file, in bytes.
    ///
    /// # Errors
    /// The operating system's.
    pub fn has_come(&self, file: FileId) -> io::Result<u64> {
        match fs::metadata(self.coming(file)) {
            Ok(there) => Ok(there.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Goes on with a file behind its first `from` bytes; what came behind them is dropped.
    ///
    /// # Errors
    /// The operating system's; `InvalidInput` when less than that is there.
    pub fn go_on(&self, file: FileId, from: u64) -> io::Result<Coming> {
        let mut file = files::private().create(true).truncate(false).open(self.coming(file))?;
        if file.metadata()?.len() < from {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        file.set_len(from)?;
        file.seek(SeekFrom::Start(from))?;
        Ok(Coming { file, there: from })
    }

    /// All of a file has come. Returns its SHA-256, as it was read from the disk.
    ///
    /// # Errors
    /// The operating system's.
    pub fn complete(&self, file: FileId, coming: Coming) -> io::Result<[u8; 32]> {
        coming.file.sync_all()?;
        drop(coming);
        let mut written = File::open(self.coming(file))?;
        let (mut hash, mut piece) = (Sha256::new(), vec![0; PIECE]);
        loop {
            let read = written.read(&mut piece)?;
            if read == 0 {
                break;
            }
            hash.update(piece.get(..read).unwrap_or_default());
        }
        Ok(hash.finalize().into())
    }

    /// Gives a file that is complete its name.
    ///
    /// # Errors
    /// The operating system's.
    pub fn keep(&self, file: FileId) -> io::Result<()> {
        fs::rename(self.coming(file), self.whole(file))?;
        files::sync_dir(&self.0)
    }

    /// A file that is whole, from `at` on.
    ///
    /// # Errors
    /// The operating system's.
    pub fn read(&self, file: FileId, at: u64) -> io::Result<File> {
        let mut file = File::open(self.whole(file))?;
        file.seek(SeekFrom::Start(at))?;
        Ok(file)
    }

    /// Removes whatever there is of a file.
    ///
    /// # Errors
    /// The operating system's.
    pub fn remove(&self, file: FileId) -> io::Result<()> {
        for path in [self.coming(file), self.whole(file)] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Sees to it that the directory is this database's.
    async fn claim(&self, store: &Store) -> Result<(), StoreError> {
        let path = self.0.join(OWNER);
        let marked = match fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(StoreError::Files(error)),
        };
        let mut work = store.begin().await?;
        let owner = work.files_owner().await?;
        if let Some(marked) = marked {
            if owner.is_some_and(|owner| marked.trim() == mark(owner)) {
                return Ok(());
            }
            let why = format!("{} says that they belong to another database", path.display());
            return Err(StoreError::Files(io::Error::other(why)));
        }
        let owner = match owner {
            Some(owner) => owner,
            None => {
                let owner = i64::from_le_bytes(random::bytes());
                work.set_files_owner(owner).await?;
                // Before the directory knows: a crash between the two leaves a directory that is nobody's yet.
                work.commit().await?;
                owner
            }
        };
        files::write_whole(&path, &(mark(owner) + "\n"), true).map_err(StoreError::Files)
    }

    /// Moves what `store` does not know, or not like this, into [`LOST`]. Says how many. Before anything comes or is fetched.
    ///
    /// # Errors
    /// The store's; [`StoreError::Files`] when the directory is another database's, or cannot be read or changed.
    pub async fn tidy(&self, store: &Store) -> Result<u64, StoreError> {
        self.claim(store).await?;
        let (mut moved, lost) = (0, self.0.join(LOST));
        let mut entries = fs::read_dir(&self.0).map_err(StoreError::Files)?;
        loop {
            let page: Vec<_> = entries.by_ref().take(PAGE).collect::<Result<_, _>>().map_err(StoreError::Files)?;
            if page.is_empty() {
                return Ok(moved);
            }
            // Whatever else somebody put here is not ours to remove.
            let page: Vec<_> = page.iter().filter_map(|it| Some((it.path(), named(&it.path())?))).collect();
            let ids: Vec<i64> = page.iter().map(|(_, (id, _))| id.0).collect();
            let known = store.read().await?.files(&ids).await?;
            for (path, (id, state)) in page {
                let is_known = |it: &StoredFile| it.id == id && it.state == state;
                if !known.iter().any(is_known)
                    && let Some(name) = path.file_name()
                {
                    let moving = files::make_private_dir(&lost).and_then(|()| fs::rename(&path, lost.join(name)));
                    moving.map_err(StoreError::Files)?;
                    moved += 1;
                }
            }
        }
    }
}

/// A database, as its directory knows it.
fn mark(owner: i64) -> String {
    format!("{:016x}", owner.cast_unsigned())
}

/// Which file this is, and how far it is by its name.
fn named(path: &Path) -> Option<(FileId, FileState)> {
    let stem = path.file_stem()?.to_str()?;
    let state = match path.extension() {
        None => FileState::Whole,
        Some(extension) if extension == COMING => FileState::Coming,
        Some(_) => return None,
    };
    let is_ours = stem.len() == 16 && stem.bytes().all(|it| it.is_ascii_digit() || (b'a'..=b'f').contains(&it));
    let id = u64::from_str_radix(stem, 16).ok().filter(|_| is_ours)?;
    Some((FileId(id.cast_signed()), state))
}

#[cfg(test)]
mod tests {
    use super::super::Place;
    use super::*;
    use crate::chat::skynet::wire::AccountId;

    fn stored(id: i64, state: FileState) -> StoredFile {
        let (id, owner) = (FileId(id), AccountId(1));
        StoredFile { id, owner, state, length: 3, checksum: Vec::new(), created_ms: 1, referenced_ms: 0 }
    }

    #[test]
    fn a_file_is_gone_on_with_where_it_was_left_and_has_its_name_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(&dir.path().join("files")).unwrap();
        let id = FileId(-2);
        assert_eq!(disk.has_come(id).unwrap(), 0);
        let mut coming = disk.go_on(id, 0).unwrap();
        coming.append(b"abcdef").unwrap();
        drop(coming);
        assert_eq!(disk.has_come(id).unwrap(), 6);
        assert_eq!(disk.go_on(id, 7).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let mut coming = disk.go_on(id, 3).unwrap();
        coming.append(b"DEF").unwrap();
        assert_eq!(disk.complete(id, coming).unwrap(), <[u8; 32]>::from(Sha256::digest(b"abcDEF")));
        assert!(disk.read(id, 0).is_err());
        disk.keep(id).unwrap();
        let mut text = String::new();
        disk.read(id, 2).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "cDEF");
        assert_eq!(std::fs::read_dir(&*disk.0).unwrap().next().unwrap().unwrap().file_name(), "fffffffffffffffe");
        disk.remove(id).unwrap();
        disk.remove(id).unwrap();
        assert_eq!(std::fs::read_dir(&*disk.0).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_a_crash_left_behind_is_moved_aside_and_what_is_known_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&Place::Sqlite, dir.path()).await.unwrap();
        let mut work = store.begin().await.unwrap();
        for file in [stored(1, FileState::Whole), stored(2, FileState::Coming), stored(3, FileState::Coming)] {
            work.add_file(&file).await.unwrap();
        }
        work.commit().await.unwrap();
        let disk = Disk::open(&dir.path().join("files")).unwrap();
        let hex = |id: i64, extension: &str| disk.0.join(format!("{id:016x}{extension}"));
        // The third had its name, and the crash came before the database knew; the fourth is nobody's.
        let kept = [hex(1, ""), hex(2, ".part"), disk.0.join("README"), disk.0.join("00000000000000AB")];
        let lost = [hex(3, ""), hex(4, ""), hex(5, ".part"), hex(1, ".part")];
        for path in kept.iter().chain(&lost) {
            fs::write(path, "abc").unwrap();
        }
        assert_eq!(disk.tidy(&store).await.unwrap(), 4);
        assert!(kept.iter().all(|path| path.exists()) && !lost.iter().any(|path| path.exists()));
        for path in &lost {
            assert_eq!(fs::read(disk.0.join(LOST).join(path.file_name().unwrap())).unwrap(), b"abc");
        }
        assert_eq!(disk.tidy(&store).await.unwrap(), 0);
        store.close().await;
    }

    #[tokio::test]
    async fn another_database_removed_all_files() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let store = Store::open(&Place::Sqlite, &at("a")).await.unwrap();
        let disk = Disk::open(&at("files")).unwrap();
        let mut work = store.begin().await.unwrap();
        work.add_file(&stored(1, FileState::Whole)).await.unwrap();
        work.commit().await.unwrap();
        let path = disk.0.join("0000000000000001");
        fs::write(&path, "abc").unwrap();
        assert_eq!(disk.tidy(&store).await.unwrap(), 0);
        let owned = Disk::open(&at("others")).unwrap();
        let other = Store::open(&Place::Sqlite, &at("b")).await.unwrap();
        // One that is new, and one that has files of its own.
        for _ in 0..2 {
            assert!(matches!(disk.tidy(&other).await, Err(StoreError::Files(_))));
            assert!(path.exists());
            assert_eq!(owned.tidy(&other).await.unwrap(), 0);
        }
        assert_eq!(disk.tidy(&store).await.unwrap(), 0);
        store.close().await;
        other.close().await;
    }
}
