//! The requests about files, and what is answered.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use tokio::sync::mpsc;
use tracing::error;

use super::transfer::{Part, receive, send};
use super::{COMPLETE_WITHIN, FETCH_WITHIN, FileAsk, Files, Refused, blocking};
use crate::chat::skynet::serve::web::{HEADERS, Visit};
use crate::chat::skynet::state::transfer::{Brought, Purpose, Ticket, Wanted};
use crate::chat::skynet::store::{FileState, StoredFile};
use crate::chat::skynet::wire::{AccountId, FileId, SessionId};
use crate::metrics::{self, Outcome, Transfer};
use crate::net::tasks::Tasks;

/// Of a body that nobody asked for, this much is read, so that its sender gets to read the answer.
const UNWANTED_MAX: usize = 1024 * 1024;

const FILE_ID: HeaderName = HeaderName::from_static("x-skynet-fileid");
/// Where to go on with an upload, and whether there is nothing left to bring: as in the draft of resumable uploads for HTTP.
pub(super) const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");
const UPLOAD_COMPLETE: HeaderName = HeaderName::from_static("upload-complete");
/// RFC 9530.
pub(super) const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");

/// A header whose value was made here.
pub(super) fn text(name: HeaderName, value: &str) -> Option<(HeaderName, HeaderValue)> {
    Some((name, HeaderValue::from_str(value).ok()?))
}

impl Files {
    /// What somebody shows, if it is good for this.
    pub(super) fn ticket(&self, file: FileId, purpose: Purpose, query: Option<&str>) -> Result<Ticket, Refused> {
        let shown = parameter(query, "token").unwrap_or_default();
        let now_ms = self.clock.now().wall_ms;
        let ticket = Ticket::read(shown, (purpose, file), now_ms, |said| self.store.vouch(said));
        ticket.ok_or(Refused::Unauthorized)
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
pub(super) struct At {
    pub(super) files: Arc<Files>,
    public_url: String,
    pub(super) tasks: Tasks,
}

/// The requests about files. What they begin is among `tasks`.
pub(in crate::chat::skynet::serve) fn router(files: Arc<Files>, public_url: String, tasks: Tasks) -> Router {
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

/// A parameter of a request. Those that count have letters and digits only.
fn parameter<'q>(query: Option<&'q str>, name: &str) -> Option<&'q str> {
    query?.split('&').find_map(|it| it.strip_prefix(name)?.strip_prefix('='))
}

fn credentials(query: Option<&str>) -> Result<(SessionId, &str), Refused> {
    let session = parameter(query, "session").and_then(|it| it.parse().ok()).map(SessionId);
    session.zip(parameter(query, "token")).ok_or(Refused::Unauthorized)
}

pub(super) fn file_id(text: &str) -> Result<FileId, Refused> {
    text.parse().map(FileId).map_err(|_| Refused::Unknown)
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The SHA-256 in a `Repr-Digest`, if there is one.
pub(super) fn digest(header: &str) -> Option<Vec<u8>> {
    let value = header.split(',').find_map(|it| it.trim().strip_prefix("sha-256="))?;
    BASE64.decode(value.strip_prefix(':')?.strip_suffix(':')?).ok()
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;

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
