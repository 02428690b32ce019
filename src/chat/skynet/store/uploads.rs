//! Files beside the messages: whose they are, who may have them, and when they are to go (spec 3.5).
//!
//! The messages that name a file are the references to it: there is no second table that could disagree. Whatever removes
//! messages goes through [`Work::remove_messages`], which lets go of their files.

use sqlx::any::AnyRow;

use super::{StoreError, Value, Work, get, narrow, values};
use crate::chat::skynet::wire::{AccountId, FileId};

/// How far a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileState {
    /// Its bytes are still to come.
    Coming = 0,
    /// It can be named and fetched.
    Whole = 1,
    /// Nobody can have it any more; its bytes are to be removed.
    Gone = 2,
}

/// A file beside the messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFile {
    /// Which.
    pub id: FileId,
    /// Who uploaded it.
    pub owner: AccountId,
    /// How far it is.
    pub state: FileState,
    /// In bytes; while it is coming, what is set aside for it.
    pub length: u64,
    /// SHA-256, when it is whole.
    pub checksum: Vec<u8>,
    /// When its upload began, in milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// When a message named it first; 0 for never. Until then it is its owner's.
    pub referenced_ms: u64,
}

/// What the files of an account take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Of all, in bytes.
    pub bytes: u64,
    /// How many are still coming.
    pub coming: u64,
}

/// Which messages are to be removed: a condition on `message`, without anything that came from outside.
#[derive(Debug, Clone, Copy)]
pub(super) struct Doomed {
    pub(super) files: &'static str,
    pub(super) dependencies: &'static str,
    pub(super) messages: &'static str,
}

/// The three statements that [`Work::remove_messages`] needs, for one condition.
macro_rules! doomed {
    ($condition:literal) => {
        crate::chat::skynet::store::uploads::Doomed {
            files: concat!("SELECT DISTINCT file_id FROM message WHERE file_id <> 0 AND ", $condition),
            dependencies: concat!(
                "DELETE FROM dependency WHERE message_id IN (SELECT id FROM message WHERE ",
                $condition,
                ")"
            ),
            messages: concat!("DELETE FROM message WHERE ", $condition),
        }
    };
}
pub(super) use doomed;

const COLUMNS: &str =
    "SELECT id, owner_id, state, length, checksum, created_ms, referenced_ms FROM file WHERE id IN ({})";

impl Work {
    /// Which database this is, as the directory of its files knows it; `None` when there is none yet.
    pub(super) async fn files_owner(&mut self) -> Result<Option<i64>, StoreError> {
        let row = self.row("SELECT value FROM counter WHERE name = 'files'", values![]).await?;
        row.map(|row| get(&row, 0)).transpose()
    }

    pub(super) async fn set_files_owner(&mut self, id: i64) -> Result<(), StoreError> {
        self.run("INSERT INTO counter (name, value) VALUES ('files', $1)", values![id]).await.map(drop)
    }

    pub(in crate::chat::skynet) async fn add_file(&mut self, file: &StoredFile) -> Result<(), StoreError> {
        let sql = "INSERT INTO file (id, owner_id, state, length, checksum, created_ms, referenced_ms) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7)";
        let StoredFile { id, owner, state, length, checksum, created_ms, referenced_ms } = file;
        let values = values![id.0, owner.0, *state as u8, *length, checksum.as_slice(), *created_ms, *referenced_ms];
        self.run(sql, values).await.map(drop)
    }

    pub(in crate::chat::skynet) async fn file(&mut self, file: FileId) -> Result<Option<StoredFile>, StoreError> {
        Ok(self.files(&[file.0]).await?.pop())
    }

    /// Those of these that are known.
    pub(in crate::chat::skynet) async fn files(&mut self, files: &[i64]) -> Result<Vec<StoredFile>, StoreError> {
        self.rows_of(COLUMNS, &[], files).await?.iter().map(stored_file).collect()
    }

    /// What an account's files take: of those that a message names, the ones that came after that.
    pub(in crate::chat::skynet) async fn files_of(
        &mut self,
        owner: AccountId,
        named_after_ms: u64,
    ) -> Result<Used, StoreError> {
        let sql = "SELECT COALESCE(CAST(SUM(length) AS BIGINT), 0), COALESCE(CAST(SUM(1 - state) AS BIGINT), 0) \
                   FROM file WHERE owner_id = $1 AND state < 2 AND (referenced_ms = 0 OR created_ms > $2)";
        let row =
            self.row(sql, values![owner.0, named_after_ms]).await?.ok_or(StoreError::Damaged("no sum of files"))?;
        Ok(Used { bytes: narrow(&row, 0)?, coming: narrow(&row, 1)? })
    }

    /// How much is set aside for a file that is coming.
    pub(in crate::chat::skynet) async fn set_aside(&mut self, file: FileId, length: u64) -> Result<(), StoreError> {
        self.run("UPDATE file SET length = $2 WHERE id = $1 AND state = 0", values![file.0, length]).await.map(drop)
    }

    /// All of it has come. `false`: nobody waits for it any more.
    pub(in crate::chat::skynet) async fn complete_file(
        &mut self,
        file: FileId,
        length: u64,
        checksum: &[u8],
    ) -> Result<bool, StoreError> {
        let sql = "UPDATE file SET state = 1, length = $2, checksum = $3 WHERE id = $1 AND state = 0";
        Ok(self.run(sql, values![file.0, length, checksum]).await? == 1)
    }

    /// A message names it: from now on it is the channel's.
    pub(in crate::chat::skynet) async fn refer_to(&mut self, file: FileId, now_ms: u64) -> Result<(), StoreError> {
        let sql = "UPDATE file SET referenced_ms = $2 WHERE id = $1 AND referenced_ms = 0";
        self.run(sql, values![file.0, now_ms]).await.map(drop)
    }

    /// Whether an account may name and fetch a file that is whole: its owner until somebody names it, then whoever sees a
    /// message that does.
    pub(in crate::chat::skynet) async fn may_have(
        &mut self,
        account: AccountId,
        file: &StoredFile,
    ) -> Result<bool, StoreError> {
        match file.referenced_ms {
            0 => Ok(file.owner == account),
            _ => self.sees_file(account, file.id).await,
        }
    }

    /// Files that nobody waits for any more, or that nobody named in time. Says how many.
    pub(in crate::chat::skynet) async fn forget_files(
        &mut self,
        coming_before_ms: u64,
        unnamed_before_ms: u64,
    ) -> Result<u64, StoreError> {
        let coming = "UPDATE file SET state = 2 WHERE state = 0 AND created_ms <= $1";
        let unnamed = "UPDATE file SET state = 2 WHERE state = 1 AND referenced_ms = 0 AND created_ms <= $1";
        let forgotten =
            self.run(coming, values![coming_before_ms]).await? + self.run(unnamed, values![unnamed_before_ms]).await?;
        self.let_go |= forgotten > 0;
        Ok(forgotten)
    }

    /// What an account that is no more had uploaded without naming it.
    pub(super) async fn forget_unnamed_of(&mut self, owner: AccountId) -> Result<(), StoreError> {
        let sql = "UPDATE file SET state = 2 WHERE owner_id = $1 AND state < 2 AND referenced_ms = 0";
        self.let_go |= self.run(sql, values![owner.0]).await? > 0;
        Ok(())
    }

    /// Some files whose bytes are to be removed: the next ones behind `after`, by their ids.
    pub(in crate::chat::skynet) async fn gone_files(
        &mut self,
        after: FileId,
        max: i64,
    ) -> Result<Vec<FileId>, StoreError> {
        let sql = "SELECT id FROM file WHERE state = 2 AND id > $1 ORDER BY id LIMIT $2";
        let rows = self.rows(sql, values![after.0, max]).await?;
        rows.iter().map(|row| Ok(FileId(get(row, 0)?))).collect()
    }

    /// Forgets a file whose bytes are removed.
    pub(in crate::chat::skynet) async fn remove_gone(&mut self, file: FileId) -> Result<(), StoreError> {
        self.run("DELETE FROM file WHERE id = $1 AND state = 2", values![file.0]).await.map(drop)
    }

    /// Removes messages with what they depended on, and lets go of files that no other message names.
    pub(super) async fn remove_messages(
        &mut self,
        doomed: Doomed,
        values: impl Fn() -> Vec<Value>,
    ) -> Result<u64, StoreError> {
        let files = self.rows(doomed.files, values()).await?;
        self.run(doomed.dependencies, values()).await?;
        let removed = self.run(doomed.messages, values()).await?;
        for row in files {
            let sql = "UPDATE file SET state = 2 WHERE id = $1 \
                       AND NOT EXISTS (SELECT 1 FROM message m WHERE m.file_id = $1 AND m.file_id <> 0)";
            self.let_go |= self.run(sql, values![get::<i64>(&row, 0)?]).await? > 0;
        }
        Ok(removed)
    }
}

fn stored_file(row: &AnyRow) -> Result<StoredFile, StoreError> {
    let state = match get::<i64>(row, 2)? {
        0 => FileState::Coming,
        1 => FileState::Whole,
        2 => FileState::Gone,
        _ => return Err(StoreError::Damaged("state of a file")),
    };
    Ok(StoredFile {
        id: FileId(get(row, 0)?),
        owner: AccountId(get(row, 1)?),
        state,
        length: narrow(row, 3)?,
        checksum: get(row, 4)?,
        created_ms: narrow(row, 5)?,
        referenced_ms: narrow(row, 6)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Place, Store};
    use super::*;

    #[tokio::test]
    async fn the_files_of_a_lifetime_counted_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&Place::Sqlite, dir.path()).await.unwrap();
        let mut work = store.begin().await.unwrap();
        let owner = AccountId(1);
        let files = [
            (FileState::Whole, 1, 1, 1),
            (FileState::Whole, 10, 0, 1),
            (FileState::Whole, 100, 1, 5),
            (FileState::Coming, 1_000, 0, 1),
            (FileState::Gone, 10_000, 0, 5),
        ];
        for (id, (state, length, referenced_ms, created_ms)) in (1..).zip(files) {
            let id = FileId(id);
            let file = StoredFile { id, owner, state, length, checksum: Vec::new(), created_ms, referenced_ms };
            work.add_file(&file).await.unwrap();
        }
        let mut used = Vec::new();
        for after in [0, 4, 5] {
            used.push(work.files_of(owner, after).await.unwrap());
        }
        let coming = 1;
        assert_eq!(
            used,
            [1_111, 1_110, 1_010].map(|bytes| Used { bytes, coming }),
            "old ones only until one names them"
        );
        let mut gone = Vec::new();
        for after in [i64::MIN, 4, 5] {
            gone.extend(work.gone_files(FileId(after), 1).await.unwrap());
        }
        assert_eq!(gone, [FileId(5), FileId(5)], "who asks for the next ones gets those behind");
        drop(work);
        store.close().await;
    }
}
