//! Bytes on their way to the disk, and back.

use std::fs::File;
use std::io::{self, Read as _};
use std::sync::Arc;

use axum::body::Body;
use axum::http::HeaderMap;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::http::{At, REPR_DIGEST, digest, file_id};
use super::{FileAsk, Files, Refused, blocking};
use crate::chat::skynet::serve::web::Visit;
use crate::chat::skynet::state::transfer::Purpose;
use crate::chat::skynet::store::disk::{Coming, PIECE};
use crate::chat::skynet::store::{FileState, StoredFile};
use crate::metrics::{self, Outcome, Transfer};

/// What is brought of a file, as far as that is known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// Its first byte.
    pub(super) first: u64,
    /// How many bytes it has.
    pub(super) length: Option<u64>,
    /// How many bytes the file has.
    pub(super) total: Option<u64>,
    /// Whether the file is whole when it ends, however long it is.
    pub(super) is_all: bool,
}

/// Takes what is brought. Returns what is there now.
pub(super) async fn receive(
    at: Arc<At>,
    file: &str,
    query: Option<String>,
    visit: Visit,
    (headers, body): (HeaderMap, Body),
    part: Part,
) -> Result<StoredFile, Refused> {
    let files = Arc::clone(&at.files);
    let file = file_id(file)?;
    let ticket = files.ticket(file, Purpose::Upload, query.as_deref())?;
    let place = files.transfers.enter(ticket.account, Some(file))?;
    let stored = files.stored(file).await?;
    if stored.state == FileState::Whole {
        return Err(Refused::Complete);
    }
    let least = part.total.unwrap_or_else(|| part.first.saturating_add(part.length.unwrap_or_default()));
    if least > files.length_max {
        return Err(Refused::TooLong);
    }
    let disk = files.disk.clone();
    let there = blocking(move || disk.has_come(file)).await?;
    if part.first > there {
        return Err(Refused::Elsewhere { offset: there });
    }
    let limit = files.ask(|answer| FileAsk::SetAside { file, wanted: part.total, answer }).await?;
    let promised = headers.get(REPR_DIGEST).and_then(|it| it.to_str().ok()).and_then(digest);
    let receiving = Receiving { files, stored, part, limit, promised, visit, stop: at.tasks.stop_token().clone() };
    // In a task of its own: whoever brings a file may go when all of it is out.
    let received = at.tasks.spawn(async move {
        let _place = place;
        let received = receiving.run(body).await;
        let (outcome, bytes) = match &received {
            Ok((_, bytes)) => (Outcome::Done, *bytes),
            Err((_, bytes)) => (Outcome::Failed, *bytes),
        };
        metrics::get().skynet_transfers.of(Transfer::Upload).of(outcome).increment(1);
        metrics::get().skynet_file_bytes.of(Transfer::Upload).increment(bytes);
        received
    });
    match received.await {
        Ok(Ok((stored, _))) => Ok(stored),
        Ok(Err((refused, _))) => Err(refused),
        Err(failed) => Err(Refused::Disk(io::Error::other(failed))),
    }
}

/// An upload that has begun.
#[derive(Debug)]
struct Receiving {
    files: Arc<Files>,
    stored: StoredFile,
    part: Part,
    /// What there is room for.
    limit: u64,
    /// The checksum, as the client says.
    promised: Option<Vec<u8>>,
    visit: Visit,
    stop: CancellationToken,
}

impl Receiving {
    /// Returns what is there in the end, and how many bytes came.
    async fn run(self, body: Body) -> Result<(StoredFile, u64), (Refused, u64)> {
        let mut came = 0;
        let taken = self.take(body, &mut came).await;
        let ended = match taken {
            Ok(stored) => Ok((stored, came)),
            Err(refused) => {
                // What is interrupted can be gone on with; what cannot become a file only takes room.
                if refused.is_final() {
                    let (disk, file) = (self.files.disk.clone(), self.stored.id);
                    let removed = blocking(move || disk.remove(file)).await;
                    let _said = removed.inspect_err(|error| warn!(%error, "what came of a file cannot be removed"));
                }
                Err((refused, came))
            }
        };
        let is_whole = matches!(&ended, Ok((stored, _)) if stored.state == FileState::Whole);
        let is_final = matches!(&ended, Err((refused, _)) if refused.is_final());
        if !is_whole && (is_final || self.part.total.is_none()) {
            self.settle().await;
        }
        ended
    }

    /// Sets aside what is there and nothing more: nobody knows how long the file is to be, or whether anything comes again.
    async fn settle(&self) {
        let (disk, file) = (self.files.disk.clone(), self.stored.id);
        let settled = match blocking(move || disk.has_come(file)).await {
            Ok(there) => {
                self.files.ask(|answer| FileAsk::SetAside { file, wanted: Some(there), answer }).await.map(drop)
            }
            Err(error) => Err(Refused::Disk(error)),
        };
        match settled {
            // It is no more, or the server is going.
            Ok(()) | Err(Refused::Unknown | Refused::NotNow) => {}
            Err(error) => warn!(%error, "what was set aside for a file cannot be given back"),
        }
    }

    async fn take(&self, body: Body, came: &mut u64) -> Result<StoredFile, Refused> {
        self.visit.moves();
        let (file, first) = (self.stored.id, self.part.first);
        let disk = || self.files.disk.clone();
        let coming = {
            let disk = disk();
            blocking(move || disk.go_on(file, first)).await?
        };
        let coming = self.pour(body, coming, came).await?;
        let length = coming.there();
        let stored = StoredFile { length, ..self.stored.clone() };
        if self.part.total.map_or(!self.part.is_all, |total| total != length) {
            return Ok(stored);
        }
        // Until all of it is on the disk, also if that takes longer than to bring it.
        self.visit.moves();
        let checksum = {
            let disk = disk();
            blocking(move || disk.complete(file, coming)).await?
        };
        if self.promised.as_ref().is_some_and(|promised| *promised != checksum) {
            return Err(Refused::Corrupt);
        }
        let disk = disk();
        blocking(move || disk.keep(file)).await?;
        self.files.ask(|answer| FileAsk::Complete { file, length, checksum, answer }).await?;
        Ok(StoredFile { state: FileState::Whole, checksum: checksum.to_vec(), ..stored })
    }

    /// Puts everything that comes to the disk.
    async fn pour(&self, mut body: Body, mut coming: Coming, came: &mut u64) -> Result<Coming, Refused> {
        let mut piece = Vec::with_capacity(PIECE);
        let ended = loop {
            let frame = tokio::select! {
                frame = body.frame() => frame,
                () = self.stop.cancelled() => break Err(Refused::NotNow),
            };
            match frame {
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    *came += data.len() as u64;
                    let there = coming.there() + piece.len() as u64 + data.len() as u64;
                    if self.part.length.is_some_and(|length| there > self.part.first + length) {
                        break Err(Refused::BadRange);
                    }
                    if there > self.limit {
                        // What was set aside for a file of unknown length is what was left.
                        break Err(if self.limit < self.files.length_max { Refused::Full } else { Refused::TooLong });
                    }
                    piece.extend_from_slice(&data);
                    if piece.len() >= PIECE {
                        let full = std::mem::replace(&mut piece, Vec::with_capacity(PIECE));
                        coming = append(coming, full).await?;
                        self.visit.moves();
                    }
                }
                Some(Err(error)) => {
                    debug!(%error, "an upload was interrupted");
                    break Err(Refused::Interrupted);
                }
                None => break Ok(()),
            }
        };
        // What came is kept, however it ended.
        let coming = append(coming, piece).await?;
        ended?;
        let short = match self.part.length {
            Some(length) => coming.there() != self.part.first + length,
            // The end of a body that does not say how long it is looks like the end of its connection.
            None => self.visit.is_over(),
        };
        if short { Err(Refused::Interrupted) } else { Ok(coming) }
    }
}

async fn append(mut coming: Coming, piece: Vec<u8>) -> io::Result<Coming> {
    blocking(move || coming.append(&piece).map(|()| coming)).await
}

/// Hands over what is to be sent. The last piece of a file only if all of it is what was brought. Says whether all was handed over.
pub(super) async fn send(
    mut file: File,
    mut left: u64,
    checksum: Option<Vec<u8>>,
    visit: &Visit,
    pieces: mpsc::Sender<io::Result<Bytes>>,
) -> bool {
    let mut hash = Sha256::new();
    visit.moves();
    while left > 0 {
        let len = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        let read = blocking(move || {
            let mut piece = vec![0; len];
            file.read_exact(&mut piece).map(|()| (file, piece))
        });
        let piece = match read.await {
            Ok((rest, piece)) => {
                file = rest;
                piece
            }
            Err(error) => {
                error!(%error, "a file cannot be read");
                let _gone = pieces.send(Err(error)).await;
                return false;
            }
        };
        left -= len as u64;
        if let Some(checksum) = &checksum {
            hash.update(&piece);
            if left == 0 && hash.finalize_reset().as_slice() != checksum {
                error!("a file is not what was brought: the disk has changed it");
                let _gone = pieces.send(Err(io::ErrorKind::InvalidData.into())).await;
                return false;
            }
        }
        if pieces.send(Ok(piece.into())).await.is_err() {
            return false;
        }
        metrics::get().skynet_file_bytes.of(Transfer::Download).increment(len as u64);
        visit.moves();
    }
    true
}
