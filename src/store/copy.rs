//! A copy of a database that others go on writing to.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::StoreError;
use crate::files;

/// How long to wait for whoever recovers or closes the database. Nobody else is waited for.
const BUSY: Duration = Duration::from_secs(10);

/// Writes what the database at `from` held at one moment after this was called into a new file at `to`, for its owner alone
/// and synced. Any SQLite database with a write-ahead log can be copied so, whoever writes to it. Blocks.
///
/// # Errors
/// [`StoreError::Failed`] with the engine's or the system's words. What is at `to` then is no database.
pub fn copy(from: &Path, to: &Path) -> Result<(), StoreError> {
    let failed = |error: std::io::Error| StoreError::Failed(format!("{}: {error}", to.display()));
    // SQLite writes into an empty file, and only into an empty one; a new one would be readable by others.
    files::private().create_new(true).open(to).map_err(failed)?;
    let name = to.to_str().ok_or(StoreError::Refused("a copy whose path is not UTF-8"))?;
    {
        // Taking part in the write-ahead log takes the right to write.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(from, flags)?;
        connection.busy_timeout(BUSY)?;
        connection.execute_batch("PRAGMA trusted_schema = OFF; PRAGMA wal_autocheckpoint = 0;")?;
        connection.execute("VACUUM INTO ?1", [name])?;
    }
    File::open(to).and_then(|file| file.sync_all()).map_err(failed)
}
