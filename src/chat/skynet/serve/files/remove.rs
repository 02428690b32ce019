//! Files that nobody can have any more: their bytes go, and then the database forgets them.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{FileAsk, Files, Refused, blocking};
use crate::chat::skynet::wire::FileId;
use crate::metrics;

/// Files that are removed before others are looked for.
const REMOVED_AT_ONCE: i64 = 100;

/// Removes the bytes of files that were let go, whenever there are some, until told to stop.
pub(in crate::chat::skynet::serve) async fn remove_all(
    files: Arc<Files>,
    let_go: Arc<Notify>,
    stop: CancellationToken,
) {
    while stop.run_until_cancelled(let_go.notified()).await.is_some() {
        if let Err(error) = remove_some(&files).await {
            warn!(%error, "files that nobody can have any more are still there");
        }
    }
}

/// All that there are, in the order of their ids. What cannot be removed keeps none of the others, and is tried again another time.
async fn remove_some(files: &Files) -> Result<(), Refused> {
    let (mut after, mut failure) = (FileId(i64::MIN), Ok(()));
    loop {
        let gone = files.store.read().await?.gone_files(after, REMOVED_AT_ONCE).await?;
        let Some(last) = gone.last() else { return Ok(failure?) };
        after = *last;
        let disk = files.disk.clone();
        let remove = move || {
            let (removed, mut failed) = (gone.into_iter(), Ok(()));
            let removed: Vec<_> =
                removed.filter(|file| disk.remove(*file).map_err(|error| failed = Err(error)).is_ok()).collect();
            Ok((removed, failed))
        };
        let (removed, failed) = blocking(remove).await?;
        let count = removed.len();
        if count > 0 {
            files.ask(|answer| FileAsk::Removed { files: removed, answer }).await?;
            info!(files = count, "files that nobody can have any more are removed");
            metrics::get().skynet_files_removed.increment(count as u64);
        }
        failure = failure.and(failed);
    }
}
