//! What the room remembers, in SQLite or PostgreSQL ([`crate::chat::sql`] makes the promise).
//!
//! Bodies are ciphertext. Times are microseconds since the Unix epoch.

mod dms;
mod friends;
mod messages;
mod timers;
mod users;

use std::path::Path;

use crate::chat::sql::{Database, Schema, SqlError, Tx};

pub use crate::chat::sql::Place;
pub use dms::{Kind, Member, StoredDm};
pub use messages::{Draft, StoredMessage};
pub use timers::{Pending, Schedule, StoredInvitation};
pub use users::{NewUser, StoredUser};

/// The file in the data directory, for SQLite.
pub const FILE: &str = "dm.sqlite";
/// Nothing else locks this in a database of ours.
const LOCK: i64 = 5_327_610_327_618;

/// Everything that is kept.
#[derive(Debug, Clone)]
pub struct Store(Database);

impl Store {
    /// Opens what is there, making it if there is nothing. `data_dir` holds the database if it is a file.
    ///
    /// # Errors
    /// [`SqlError`] says why not.
    pub async fn open(place: &Place, data_dir: &Path) -> Result<Self, SqlError> {
        let schema = Schema {
            lock: LOCK,
            sqlite: sqlx::migrate!("src/chat/dm/store/migrations/sqlite"),
            postgres: sqlx::migrate!("src/chat/dm/store/migrations/postgres"),
        };
        Ok(Self(Database::open(place, &data_dir.join(FILE), schema).await?))
    }

    /// Begins a piece of work: reads and writes that count all together or not at all.
    ///
    /// # Errors
    /// [`SqlError`] when the store fails.
    pub async fn begin(&self) -> Result<Work, SqlError> {
        Ok(Work { tx: self.0.begin().await? })
    }

    /// Closes it. Whatever else uses it fails from now on.
    pub async fn close(&self) {
        self.0.close().await;
    }
}

/// See [`Store::begin`]. Dropped without [`Self::commit`], nothing has happened.
#[derive(Debug)]
pub struct Work {
    tx: Tx,
}

impl Work {
    /// Makes everything count.
    ///
    /// # Errors
    /// [`SqlError`] when the store fails; then nothing does.
    pub async fn commit(self) -> Result<(), SqlError> {
        self.tx.commit().await
    }

    /// From here on, until [`Self::keep`] or [`Self::undo`].
    ///
    /// # Errors
    /// [`SqlError`] when the store fails.
    pub async fn mark(&mut self) -> Result<(), SqlError> {
        self.tx.run("SAVEPOINT event", Vec::new()).await.map(drop)
    }

    /// Everything since [`Self::mark`] counts, if the rest does.
    ///
    /// # Errors
    /// [`SqlError`] when the store fails.
    pub async fn keep(&mut self) -> Result<(), SqlError> {
        self.tx.run("RELEASE SAVEPOINT event", Vec::new()).await.map(drop)
    }

    /// Nothing since [`Self::mark`] has happened.
    ///
    /// # Errors
    /// [`SqlError`] when the store fails.
    pub async fn undo(&mut self) -> Result<(), SqlError> {
        self.tx.run("ROLLBACK TO SAVEPOINT event", Vec::new()).await?;
        self.keep().await
    }
}

/// Bytes of a length that is known.
fn exactly<const N: usize>(bytes: &[u8]) -> Result<[u8; N], SqlError> {
    <[u8; N]>::try_from(bytes).map_err(|_| SqlError::Damaged("length of bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_process_serves_a_database_and_what_is_undone_was_never_written() {
        let dir = tempfile::tempdir().unwrap();
        let open = async || Store::open(&Place::Sqlite, dir.path()).await;
        let store = open().await.unwrap();
        assert!(matches!(open().await, Err(SqlError::Taken)));
        let mut work = store.begin().await.unwrap();
        let add = |name: &'static str| NewUser {
            username: name,
            username_key: name,
            public_key: &[1; 32],
            spk: &[2; 32],
            spk_sig: &[3; 64],
            own_storage: "",
            created_at: 1,
        };
        work.mark().await.unwrap();
        work.add_user(add("alice")).await.unwrap();
        work.keep().await.unwrap();
        work.mark().await.unwrap();
        work.add_user(add("bob")).await.unwrap();
        // What fails in the engine can be undone, too.
        assert!(work.add_user(add("alice")).await.is_err());
        work.undo().await.unwrap();
        work.commit().await.unwrap();
        store.close().await;
        let store = open().await.unwrap();
        let mut work = store.begin().await.unwrap();
        assert_eq!(work.users().await.unwrap().len(), 1);
        assert!(work.user_named("bob").await.unwrap().is_none());
        drop(work);
        store.close().await;
    }
}
