//! What a client does over HTTPS: confirming an address, and files beside the messages (spec 4.2.5, 4.15).
//!
//! One request for each connection. An answer is followed at most once, because uploads and downloads are: first the API says
//! where, then that place is asked. What is uploaded goes to that place alone.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use http_body_util::{Full, LengthLimitError};
use serde::Deserialize;

use super::folder::Session;
use super::keys::FILE_OVERHEAD;
use crate::chat::skynet::wire::FileId;
use crate::client::{BadMediator, Trust};
use crate::net::https::{AnyError, BadUrl, Bounds, Https};

/// Longest file that is sent or fetched, in bytes: what servers take unless they are told otherwise (spec 7.27).
pub const FILE_MAX: usize = 100 * 1024 * 1024;
/// How long a file may take.
const FILE_WITHIN: Duration = Duration::from_secs(600);

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// Not a URL, or one that leads out of TLS.
    #[error(transparent)]
    Url(#[from] BadUrl),
    /// Where the pages are is no URL.
    #[error("{0} is no URL")]
    Base(String),
    /// Nobody is trusted.
    #[error(transparent)]
    Trust(#[from] BadMediator),
    /// The server is not reached, or says something strange.
    #[error("{0}")]
    Http(String),
    /// It answers something else than success.
    #[error("the server answers {0}{1}")]
    Status(StatusCode, &'static str),
    /// It is longer than is allowed.
    #[error("the file is too long")]
    TooLong,
}

impl From<AnyError> for WebError {
    fn from(error: AnyError) -> Self {
        if error.is::<LengthLimitError>() {
            return Self::TooLong;
        }
        match error.downcast::<BadUrl>() {
            Ok(bad) => Self::Url(*bad),
            Err(error) => Self::Http(error.to_string()),
        }
    }
}

/// The pages and files of a server.
#[derive(Debug, Clone)]
pub struct Web {
    base: String,
    https: Https,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// What confirming an address is answered with.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Confirmed {
    /// For people.
    pub header: String,
    /// For people.
    pub content: String,
}

impl Web {
    /// What is below this URL, as `https://localhost:8444`.
    ///
    /// # Errors
    /// [`WebError::Trust`] when there is nobody to trust.
    pub fn new(base: &str, trust: &Trust) -> Result<Self, WebError> {
        let https = Https::with(trust.client_config()?).or_plain_here();
        Ok(Self { base: base.trim_end_matches('/').to_owned(), https })
    }

    /// Confirms an address with the token out of a mail, or with the whole link.
    ///
    /// # Errors
    /// [`WebError`] says why not; an unknown token is answered with 404.
    pub async fn confirm(&self, token_or_link: &str) -> Result<Confirmed, WebError> {
        let url = match token_or_link.rsplit_once("/confirm/") {
            Some((base, token)) => format!("{}/api/confirm/{token}", base.trim_end_matches("/api")),
            None => format!("{}/api/confirm/{token_or_link}", self.base),
        };
        let answer = self.ask(Method::POST, &parse(&url)?, Bytes::new(), Bounds::default()).await?;
        match answer.status {
            StatusCode::OK => serde_json::from_slice(&answer.body)
                .map_err(|_| WebError::Http("the answer is not understood".to_owned())),
            StatusCode::NOT_FOUND => Err(WebError::Status(answer.status, ": nothing waits for this token")),
            status => Err(WebError::Status(status, "")),
        }
    }

    /// Uploads a sealed file. What messages call it.
    ///
    /// # Errors
    /// [`WebError`] says why not.
    pub async fn upload(&self, session: &Session, sealed: Bytes) -> Result<FileId, WebError> {
        if sealed.len() > FILE_MAX + FILE_OVERHEAD {
            return Err(WebError::TooLong);
        }
        let url = self.with_session("upload", session)?;
        let first = self.ask(Method::PUT, &url, Bytes::new(), Bounds::default()).await?;
        let place = self.https.place(&url, &moved(&first)?)?;
        let id = first.headers.get("x-skynet-fileid").and_then(|it| it.to_str().ok()?.parse().ok()).map(FileId);
        let id = id.ok_or_else(|| WebError::Http("the server does not say what the file is called".to_owned()))?;
        let bounds = Bounds { within: FILE_WITHIN, ..Bounds::default() };
        let stored = self.ask(Method::PUT, &place, sealed, bounds).await?;
        match stored.status {
            StatusCode::CREATED => Ok(id),
            StatusCode::PAYLOAD_TOO_LARGE => Err(WebError::TooLong),
            status => Err(WebError::Status(status, meaning(status))),
        }
    }

    /// Fetches a sealed file.
    ///
    /// # Errors
    /// [`WebError`] says why not.
    pub async fn download(&self, session: &Session, file: FileId) -> Result<Bytes, WebError> {
        let url = self.with_session(&file.0.to_string(), session)?;
        let first = self.ask(Method::GET, &url, Bytes::new(), Bounds::default()).await?;
        let place = self.https.place(&url, &moved(&first)?)?;
        let bounds = Bounds { within: FILE_WITHIN, answer_max: FILE_MAX + FILE_OVERHEAD };
        let got = self.ask(Method::GET, &place, Bytes::new(), bounds).await?;
        match got.status {
            StatusCode::OK => Ok(got.body),
            status => Err(WebError::Status(status, meaning(status))),
        }
    }

    fn with_session(&self, path: &str, session: &Session) -> Result<Uri, WebError> {
        let Session { session, web_token, .. } = session;
        let url = format!("{}/api/filetransfer/{path}?session={}&token={}", self.base, session.0, web_token.0);
        url.parse().map_err(|_| WebError::Base(self.base.clone()))
    }

    async fn ask(&self, method: Method, url: &Uri, body: Bytes, bounds: Bounds) -> Result<Answer, WebError> {
        let mut request = Request::new(Full::new(body));
        (*request.method_mut(), *request.uri_mut()) = (method, url.clone());
        let (parts, body) = self.https.exchange_within(request, bounds).await?.into_parts();
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }
}

fn parse(url: &str) -> Result<Uri, WebError> {
    url.parse().map_err(|_| WebError::Base(url.to_owned()))
}

/// Where to go on.
fn moved(answer: &Answer) -> Result<String, WebError> {
    if answer.status != StatusCode::TEMPORARY_REDIRECT {
        return Err(WebError::Status(answer.status, meaning(answer.status)));
    }
    let place = answer.headers.get(header::LOCATION).and_then(|it| it.to_str().ok());
    place.map(str::to_owned).ok_or_else(|| WebError::Http("the server does not say where".to_owned()))
}

const fn meaning(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => ": it does not know this session",
        StatusCode::FORBIDDEN => ": the file is not for this account",
        StatusCode::NOT_FOUND => ": there is no such file, or there are none at all",
        _ => "",
    }
}
