//! Files and directories that nobody else reads, and files that are whole or not there.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::Path;

use crate::crypto::random;

/// Makes a directory, and those above it, for its owner alone. One that exists stays as it is.
///
/// # Errors
/// The operating system's.
pub fn make_private_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(dir)?;
    // What holds the directory must know it, or a loss of power takes everything with it.
    sync_parent(dir)
}

/// Options that make a file for its owner alone.
#[must_use]
pub fn private() -> OpenOptions {
    let mut options = File::options();
    options.write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Makes an empty file for its owner alone, if there is none. SQLite makes the files beside its database with the same
/// rights.
///
/// # Errors
/// The operating system's.
pub fn make_private(path: &Path) -> io::Result<()> {
    private().create(true).truncate(false).open(path).map(drop)
}

/// A file that one process at a time has, and within it one holder; given up when this is dropped.
///
/// Closing the file would do that too, but later: a child that was forked meanwhile and is not its own program yet has it open as well.
#[derive(Debug)]
pub struct Held(File);

/// Takes a file, which is made for its owner alone if there is none. `None`: somebody has it.
///
/// # Errors
/// The operating system's.
pub fn hold(path: &Path) -> io::Result<Option<Held>> {
    let file = private().create(true).truncate(false).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Held(file))),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

impl Held {
    /// What is locked.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.0
    }

    /// Gives it up before it is dropped.
    ///
    /// # Errors
    /// The operating system's.
    pub fn give_up(&self) -> io::Result<()> {
        self.0.unlock()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Closing does the same, later.
        let _none = self.give_up();
    }
}

/// Writes a file that is whole or not there, whatever happens half way; with `secret`, for its owner alone. It takes the
/// place of one that exists; of those who write it at the same time, one may fail.
///
/// # Errors
/// The operating system's.
pub fn write_whole(path: &Path, text: &str, secret: bool) -> io::Result<()> {
    let beside = path.with_extension("new");
    write_beside(&beside, text, secret)?;
    std::fs::rename(&beside, path)?;
    sync_parent(path)
}

/// The same for a file that must not exist: of those who make it at the same time, one does.
///
/// # Errors
/// The operating system's; `AlreadyExists` when there is one.
pub fn write_new(path: &Path, text: &str, secret: bool) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{:016x}", random::u64()));
    let beside = Path::new(&beside);
    // Unlike a rename, a link replaces nothing.
    let made = write_beside(beside, text, secret).and_then(|()| std::fs::hard_link(beside, path));
    match std::fs::remove_file(beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => made?,
    }
    sync_parent(path)
}

/// What an earlier attempt left is replaced.
fn write_beside(beside: &Path, text: &str, secret: bool) -> io::Result<()> {
    match std::fs::remove_file(beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = if secret { private() } else { File::options().write(true).clone() };
    let mut file = options.create_new(true).open(beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// The same for the directory that holds `path`.
///
/// # Errors
/// The operating system's.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) if dir.as_os_str().is_empty() => sync_dir(Path::new(".")),
        Some(dir) => sync_dir(dir),
        None => Ok(()),
    }
}

/// Makes what was created, renamed or removed in a directory survive a loss of power.
///
/// # Errors
/// The operating system's.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_private_is_readable_by_its_owner_alone() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("a/b");
        make_private_dir(&dir).unwrap();
        make_private_dir(&dir).unwrap();
        assert_eq!(mode(&dir), 0o700);
        write_whole(&dir.join("key"), "1", true).unwrap();
        write_whole(&dir.join("key"), "2", true).unwrap();
        make_private(&dir.join("key")).unwrap();
        make_private(&dir.join("db")).unwrap();
        assert_eq!((mode(&dir.join("key")), mode(&dir.join("db"))), (0o600, 0o600));
        assert_eq!(std::fs::read_to_string(dir.join("key")).unwrap(), "2", "nothing that exists is emptied");
        assert_eq!(write_new(&dir.join("key"), "3", true).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        write_new(&dir.join("new"), "3", true).unwrap();
        assert_eq!((mode(&dir.join("new")), mode(&dir.join("key"))), (0o600, 0o600));
        assert_eq!(std::fs::read_to_string(dir.join("key")).unwrap(), "2");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 3, "nothing is left beside");
    }
}
