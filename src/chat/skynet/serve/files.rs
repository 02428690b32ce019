//! Files beside the messages, over HTTP (spec 4.15). One process is both of the protocol's servers: the one that knows who may
//! (`/api/`) gives a ticket and sends clients on to the one that has the bytes (`/cdn/`), so the word of the second to the first
//! that a file is complete is no request.
//!
//! Bytes go from the socket to the disk a piece at a time, and back, so a transfer takes a piece of memory, and is as fast as
//! the slower of the two. It lasts as long as pieces move: each has [`super::web::MOVES_WITHIN`].
//!
//! What was answered with 201 is on the disk. What was interrupted can be gone on with until [`COMPLETE_WITHIN`] is over.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::actor::Mail;
use super::web::{HEADERS, Visit};
use crate::chat::skynet::state::transfer::{Brought, Purpose, Ticket, Wanted};
use crate::chat::skynet::store::disk::{Coming, Disk, PIECE};
use crate::chat::skynet::store::{FileState, Store, StoreError, StoredFile};
use crate::chat::skynet::wire::{AccountId, FileId, SessionId};
use crate::metrics::{self, Outcome, Transfer};
use crate::net::tasks::Tasks;
use crate::time::Clock;

/// How long a file may take to come, in all its attempts. Then it is forgotten.
pub const COMPLETE_WITHIN: Duration = Duration::from_secs(6 * 3_600);
/// How long a download may take to begin.
pub const FETCH_WITHIN: Duration = Duration::from_secs(10 * 60);
/// Files of one account that may be on their way here.
pub const COMING_MAX: u64 = 32;
/// Transfers of one account at a time.
pub const TRANSFERS_PER_ACCOUNT: usize = 8;
/// Of a body that nobody asked for, this much is read, so that its sender gets to read the answer.
const UNWANTED_MAX: usize = 1024 * 1024;
/// Files that are removed before others are looked for.
const REMOVED_AT_ONCE: i64 = 100;

const FILE_ID: HeaderName = HeaderName::from_static("x-skynet-fileid");
/// Where to go on with an upload, and whether there is nothing left to bring: as in the draft of resumable uploads for HTTP.
const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");
const UPLOAD_COMPLETE: HeaderName = HeaderName::from_static("upload-complete");
/// RFC 9530.
const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");

/// How much files may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileLimits {
    /// Of one file, in bytes.
    pub length_max: u64,
    /// Of all files that an account uploaded, in bytes.
    pub per_account_max: u64,
    /// Transfers at a time, of everybody.
    pub transfers_max: usize,
    /// How long a file is kept that no message names.
    pub unnamed_age_max: Duration,
}

impl Default for FileLimits {
    fn default() -> Self {
        Self {
            length_max: 100 * 1024 * 1024,
            per_account_max: 2 * 1024 * 1024 * 1024,
            transfers_max: 128,
            unnamed_age_max: Duration::from_secs(86_400),
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

/// Why somebody does not get what was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("Content-Range has to be bytes FIRST-LAST/LENGTH, and what is brought as long")]
    BadRange,
    #[error("the upload ended early: go on where it was interrupted")]
    Interrupted,
    #[error("the session or its token is not valid, or the ticket is too old: ask again")]
    Unauthorized,
    #[error("this file is for others")]
    Forbidden,
    #[error("there is no such file")]
    Unknown,
    #[error("it is complete")]
    Complete,
    #[error("somebody else is bringing it")]
    Busy,
    #[error("it goes on at another byte")]
    Elsewhere { offset: u64 },
    #[error("it is too long")]
    TooLong,
    #[error("it does not have that part")]
    NoSuchPart { length: u64 },
    #[error("it is not what Repr-Digest says")]
    Corrupt,
    #[error("too many of yours are under way")]
    TooMany,
    #[error("your files take as much as they may")]
    Full,
    #[error("there is no room for it now")]
    NoRoom,
    #[error("too many files are under way, or the server is being restarted")]
    NotNow,
    #[error("the server failed: {0}")]
    Store(#[from] StoreError),
    #[error("the server failed: {0}")]
    Disk(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoRoom,
            // Nobody waits for it any more, and its bytes were removed.
            io::ErrorKind::NotFound => Self::Unknown,
            _ => Self::Disk(error),
        }
    }
}

impl Refused {
    const fn status(&self) -> StatusCode {
        match self {
            Self::BadRange | Self::Interrupted => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::Unknown => StatusCode::NOT_FOUND,
            Self::Complete | Self::Busy | Self::Elsewhere { .. } => StatusCode::CONFLICT,
            Self::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NoSuchPart { .. } => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::Corrupt => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Self::Full | Self::NoRoom => StatusCode::INSUFFICIENT_STORAGE,
            Self::NotNow => StatusCode::SERVICE_UNAVAILABLE,
            Self::Store(_) | Self::Disk(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl Refused {
    /// Whether what came of a file is of no use any more.
    const fn is_final(&self) -> bool {
        matches!(self, Self::Unknown | Self::TooLong | Self::Corrupt | Self::Full | Self::NoRoom)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let why = match &self {
            Self::Store(_) | Self::Disk(_) => {
                error!(error = %self, "a file cannot be brought or fetched");
                "the server failed\n".to_owned()
            }
            other => format!("{other}\n"),
        };
        let mut response = (self.status(), HEADERS, why).into_response();
        let headers = response.headers_mut();
        match self {
            Self::Unauthorized => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Skynet"));
            }
            Self::Elsewhere { offset } => {
                headers.insert(UPLOAD_OFFSET, offset.into());
            }
            Self::NoSuchPart { length } => {
                headers.extend(text(header::CONTENT_RANGE, &format!("bytes */{length}")));
            }
            Self::TooMany | Self::NotNow => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("10"));
            }
            _ => {}
        }
        response
    }
}

/// A header whose value was made here.
fn text(name: HeaderName, value: &str) -> Option<(HeaderName, HeaderValue)> {
    Some((name, HeaderValue::from_str(value).ok()?))
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

    fn ticket(&self, file: FileId, purpose: Purpose, query: Option<&str>) -> Result<Ticket, Refused> {
        let shown = parameter(query, "token").unwrap_or_default();
        let now_ms = self.clock.now().wall_ms;
        let ticket = Ticket::read(shown, (purpose, file), now_ms, |said| self.store.vouch(said));
        ticket.ok_or(Refused::Unauthorized)
    }

    async fn stored(&self, file: FileId) -> Result<StoredFile, Refused> {
        let stored = self.store.read().await?.file(file).await?;
        stored.filter(|stored| stored.state != FileState::Gone).ok_or(Refused::Unknown)
    }

    /// Sends somebody on to where the bytes are.
    fn send_on(&self, at: &At, file: FileId, account: AccountId, purpose: Purpose) -> Response {
        let within = match purpose {
            Purpose::Upload => COMPLETE_WITHIN,
            Purpose::Download => FETCH_WITHIN,
        };
        let until_ms = self.clock.now().plus(within).wall_ms;
        let ticket = Ticket { purpose, file, account, until_ms }.written(|said| self.store.vouch(said));
        let location = format!("{}/cdn/filetransfer/{}?token={ticket}", at.public_url.trim_end_matches('/'), file.0);
        let mut response = (StatusCode::TEMPORARY_REDIRECT, HEADERS).into_response();
        response.headers_mut().extend(text(header::LOCATION, &location));
        response.headers_mut().insert(FILE_ID, file.0.into());
        response
    }
}

/// The files as a door serves them.
#[derive(Debug)]
struct At {
    files: Arc<Files>,
    public_url: String,
    tasks: Tasks,
}

/// The requests about files. What they begin is among `tasks`.
pub(super) fn router(files: Arc<Files>, public_url: String, tasks: Tasks) -> Router {
    Router::new()
        .route("/api/filetransfer/upload", put(begin))
        .route("/api/filetransfer/{file}", get(find))
        .route("/cdn/filetransfer/{file}", put(bring).patch(bring_more).head(look).get(fetch))
        .with_state(Arc::new(At { files, public_url, tasks }))
}

type Served = State<Arc<At>>;

async fn begin(
    State(at): Served,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let (session, web_token) = credentials(query.as_deref())?;
    if length(&headers).is_some_and(|length| length > at.files.length_max) {
        return Err(Refused::TooLong);
    }
    let web_token = web_token.to_owned();
    let (file, account) = at.files.ask(|answer| FileAsk::Begin { session, web_token, answer }).await?;
    if !headers.contains_key(header::EXPECT) {
        let _too_long = axum::body::to_bytes(body, UNWANTED_MAX).await;
    }
    Ok(at.files.send_on(&at, file, account, Purpose::Upload))
}

async fn find(State(at): Served, Path(file): Path<String>, RawQuery(query): RawQuery) -> Result<Response, Refused> {
    let (session, web_token) = credentials(query.as_deref())?;
    let files = &at.files;
    let mut work = files.store.read().await?;
    let now_ms = files.clock.now().wall_ms;
    let account = work.web_session(session, web_token, (files.session_age_max, now_ms)).await?;
    let account = account.ok_or(Refused::Unauthorized)?;
    let file = work.file(file_id(&file)?).await?.filter(|file| file.state == FileState::Whole);
    let file = file.ok_or(Refused::Unknown)?;
    if !work.may_have(account, &file).await? {
        return Err(Refused::Forbidden);
    }
    Ok(files.send_on(&at, file.id, account, Purpose::Download))
}

async fn bring(
    State(at): Served,
    Path(file): Path<String>,
    RawQuery(query): RawQuery,
    Extension(visit): Extension<Visit>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let length = length(&headers);
    let part = Part { first: 0, length, total: length, is_all: true };
    let stored = receive(at, &file, query, visit, (headers, body), part).await?;
    let mut response = (StatusCode::CREATED, HEADERS).into_response();
    describe(response.headers_mut(), &stored);
    Ok(response)
}

async fn bring_more(
    State(at): Served,
    Path(file): Path<String>,
    RawQuery(query): RawQuery,
    Extension(visit): Extension<Visit>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let range = headers.get(header::CONTENT_RANGE).and_then(|it| it.to_str().ok());
    let range = range.and_then(Brought::read).ok_or(Refused::BadRange)?;
    if length(&headers).is_some_and(|length| length != range.bytes()) {
        return Err(Refused::BadRange);
    }
    let part = Part { first: range.first, length: Some(range.bytes()), total: range.total, is_all: false };
    let stored = receive(at, &file, query, visit, (headers, body), part).await?;
    let mut response = (StatusCode::NO_CONTENT, HEADERS).into_response();
    describe(response.headers_mut(), &stored);
    Ok(response)
}

/// What is known of a file, in headers.
fn describe(headers: &mut HeaderMap, stored: &StoredFile) {
    let whole = stored.state == FileState::Whole;
    headers.insert(FILE_ID, stored.id.0.into());
    headers.insert(UPLOAD_OFFSET, stored.length.into());
    headers.insert(UPLOAD_COMPLETE, HeaderValue::from_static(if whole { "?1" } else { "?0" }));
    if whole {
        headers.extend(text(header::ETAG, &etag(stored)));
        headers.extend(text(REPR_DIGEST, &format!("sha-256=:{}:", BASE64.encode(&stored.checksum))));
    }
}

fn etag(stored: &StoredFile) -> String {
    format!("\"{}\"", hex::encode(&stored.checksum))
}

/// What is brought of a file, as far as that is known.
#[derive(Debug, Clone, Copy)]
struct Part {
    /// Its first byte.
    first: u64,
    /// How many bytes it has.
    length: Option<u64>,
    /// How many bytes the file has.
    total: Option<u64>,
    /// Whether the file is whole when it ends, however long it is.
    is_all: bool,
}

/// Takes what is brought. Returns what is there now.
async fn receive(
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

/// How far an upload is; or, with a ticket for that, what a download would be.
async fn look(
    State(at): Served,
    Path(file): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let (files, file) = (&at.files, file_id(&file)?);
    if files.ticket(file, Purpose::Download, query.as_deref()).is_ok() {
        let stored = files.stored(file).await?;
        return Ok(answer(&stored, wanted(&headers, &stored)?, Body::empty()));
    }
    files.ticket(file, Purpose::Upload, query.as_deref())?;
    let mut stored = files.stored(file).await?;
    if stored.state == FileState::Coming {
        let disk = files.disk.clone();
        stored.length = blocking(move || disk.has_come(file)).await?;
    }
    let mut response = (StatusCode::OK, HEADERS).into_response();
    response.headers_mut().insert(header::CONTENT_LENGTH, stored.length.into());
    describe(response.headers_mut(), &stored);
    Ok(response)
}

async fn fetch(
    State(at): Served,
    Path(file): Path<String>,
    RawQuery(query): RawQuery,
    Extension(visit): Extension<Visit>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let (files, file) = (&at.files, file_id(&file)?);
    let ticket = files.ticket(file, Purpose::Download, query.as_deref())?;
    let place = files.transfers.enter(ticket.account, None)?;
    let stored = files.stored(file).await?;
    let part = wanted(&headers, &stored)?;
    let (first, length) = part.map_or((0, stored.length), |(first, last)| (first, last - first + 1));
    let disk = files.disk.clone();
    let bytes = blocking(move || disk.read(file, first)).await.inspect_err(|error| error!(%error, "a file is lost"))?;
    // Of the whole it can be told whether the disk still has what was brought.
    let checksum = part.is_none().then(|| stored.checksum.clone());
    let (pieces, body) = mpsc::channel(1);
    let stop = at.tasks.stop_token().clone();
    at.tasks.spawn(async move {
        let _place = place;
        let sent = stop.run_until_cancelled(send(bytes, length, checksum, &visit, pieces)).await.unwrap_or(false);
        let outcome = if sent { Outcome::Done } else { Outcome::Failed };
        metrics::get().skynet_transfers.of(Transfer::Download).of(outcome).increment(1);
    });
    let body = futures_util::stream::unfold(body, async |mut body| body.recv().await.map(|piece| (piece, body)));
    Ok(answer(&stored, part, Body::from_stream(body)))
}

/// Which part is wanted: its first byte and its last one; `None` for all of it.
fn wanted(headers: &HeaderMap, stored: &StoredFile) -> Result<Option<(u64, u64)>, Refused> {
    if stored.state != FileState::Whole {
        return Err(Refused::Unknown);
    }
    let said = |name| headers.get(name).and_then(|it| it.to_str().ok());
    let same = said(header::IF_RANGE).is_none_or(|known| known == etag(stored));
    match Wanted::read(said(header::RANGE).filter(|_| same), stored.length) {
        Wanted::All => Ok(None),
        Wanted::Part { first, last } => Ok(Some((first, last))),
        Wanted::None => Err(Refused::NoSuchPart { length: stored.length }),
    }
}

fn answer(stored: &StoredFile, part: Option<(u64, u64)>, body: Body) -> Response {
    let (status, length) = match part {
        Some((first, last)) => (StatusCode::PARTIAL_CONTENT, last - first + 1),
        None => (StatusCode::OK, stored.length),
    };
    let mut response = (status, HEADERS, body).into_response();
    let headers = response.headers_mut();
    describe(headers, stored);
    headers.remove(UPLOAD_OFFSET);
    headers.remove(UPLOAD_COMPLETE);
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some((first, last)) = part {
        headers.extend(text(header::CONTENT_RANGE, &format!("bytes {first}-{last}/{}", stored.length)));
    }
    response
}

/// Hands over what is to be sent. The last piece of a file only if all of it is what was brought. Says whether all was handed over.
async fn send(
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

/// Removes the bytes of files that were let go, whenever there are some, until told to stop.
pub(super) async fn remove_all(files: Arc<Files>, let_go: Arc<Notify>, stop: CancellationToken) {
    while stop.run_until_cancelled(let_go.notified()).await.is_some() {
        if let Err(error) = remove_some(&files).await {
            warn!(%error, "files that nobody can have any more are still there");
        }
    }
}

/// As many as there are. What cannot be removed is tried again another time.
async fn remove_some(files: &Files) -> Result<(), Refused> {
    loop {
        let gone = files.store.read().await?.gone_files(REMOVED_AT_ONCE).await?;
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
        failed?;
        if count == 0 {
            return Ok(());
        }
    }
}

/// Work on the disk, away from the threads that must not wait.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// A parameter of a request. Those that count have letters and digits only.
fn parameter<'q>(query: Option<&'q str>, name: &str) -> Option<&'q str> {
    query?.split('&').find_map(|it| it.strip_prefix(name)?.strip_prefix('='))
}

fn credentials(query: Option<&str>) -> Result<(SessionId, &str), Refused> {
    let session = parameter(query, "session").and_then(|it| it.parse().ok()).map(SessionId);
    session.zip(parameter(query, "token")).ok_or(Refused::Unauthorized)
}

fn file_id(text: &str) -> Result<FileId, Refused> {
    text.parse().map(FileId).map_err(|_| Refused::Unknown)
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The SHA-256 in a `Repr-Digest`, if there is one.
fn digest(header: &str) -> Option<Vec<u8>> {
    let value = header.split(',').find_map(|it| it.trim().strip_prefix("sha-256="))?;
    BASE64.decode(value.strip_prefix(':')?.strip_suffix(':')?).ok()
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

    #[test]
    fn what_a_client_says_it_sends_is_read_in_its_words() {
        let sent = format!("sha-512=:AA==:, sha-256=:{}:", BASE64.encode(Sha256::digest(b"x")));
        assert_eq!(digest(&sent).unwrap(), Sha256::digest(b"x").as_slice());
        for none in ["", "sha-512=:AA==:", "sha-256=AA==", "sha-256=:?:"] {
            assert_eq!(digest(none), None, "{none}");
        }
        let query = Some("session=-7&token=abc&mytoken=x");
        assert_eq!(credentials(query).unwrap(), (SessionId(-7), "abc"));
        for bad in [None, Some("session=x&token=abc"), Some("session=1"), Some("sessions=1&token=a")] {
            assert!(matches!(credentials(bad), Err(Refused::Unauthorized)), "{bad:?}");
        }
    }
}
