//! What a client does over HTTPS: confirming an address, and files beside the messages (spec 4.2.5, 4.15).
//!
//! One request for each connection. An answer is followed at most once, because uploads and downloads are: first the API says
//! where, then that place is asked. What is uploaded goes to that place alone.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::folder::Session;
use super::keys::FILE_OVERHEAD;
use crate::chat::skynet::wire::FileId;
use crate::client::raw::Duplex;
use crate::client::{BadMediator, Trust};

/// Longest file that is sent or fetched, in bytes: what servers take unless they are told otherwise (spec 7.27).
pub const FILE_MAX: usize = 100 * 1024 * 1024;
/// How long connecting may take, and then the answer to come.
const PATIENCE: Duration = Duration::from_secs(10);
const ANSWER_WITHIN: Duration = Duration::from_secs(600);

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// Not a URL, or one that leads out of TLS.
    #[error("{0} is no https:// URL, nor an http:// one of this machine")]
    Url(String),
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

impl From<std::io::Error> for WebError {
    fn from(error: std::io::Error) -> Self {
        Self::Http(error.to_string())
    }
}

impl From<hyper::Error> for WebError {
    fn from(error: hyper::Error) -> Self {
        Self::Http(error.to_string())
    }
}

/// The pages and files of a server.
#[derive(Debug, Clone)]
pub struct Web {
    base: String,
    tls: Arc<ClientConfig>,
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
        Ok(Self { base: base.trim_end_matches('/').to_owned(), tls: trust.client_config()? })
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
        let answer = self.ask(Method::POST, &url, Bytes::new(), 64 * 1024).await?;
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
        let url = self.with_session("upload", session);
        let first = self.ask(Method::PUT, &url, Bytes::new(), 64 * 1024).await?;
        let place = moved(&first)?;
        let id = first.headers.get("x-skynet-fileid").and_then(|it| it.to_str().ok()?.parse().ok()).map(FileId);
        let id = id.ok_or_else(|| WebError::Http("the server does not say what the file is called".to_owned()))?;
        let stored = self.ask(Method::PUT, &self.absolute(&place), sealed, 64 * 1024).await?;
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
        let url = self.with_session(&file.0.to_string(), session);
        let first = self.ask(Method::GET, &url, Bytes::new(), 64 * 1024).await?;
        let place = self.absolute(&moved(&first)?);
        let got = self.ask(Method::GET, &place, Bytes::new(), FILE_MAX + FILE_OVERHEAD).await?;
        match got.status {
            StatusCode::OK => Ok(got.body),
            status => Err(WebError::Status(status, meaning(status))),
        }
    }

    fn with_session(&self, path: &str, session: &Session) -> String {
        let Session { session, web_token, .. } = session;
        format!("{}/api/filetransfer/{path}?session={}&token={web_token}", self.base, session.0)
    }

    /// A place that a server names may be one of its own paths.
    fn absolute(&self, place: &str) -> String {
        let origin = self.base.match_indices('/').nth(2).map_or(self.base.as_str(), |(at, _)| self.base.split_at(at).0);
        if place.starts_with('/') { format!("{origin}{place}") } else { place.to_owned() }
    }

    async fn ask(&self, method: Method, url: &str, body: Bytes, answer_max: usize) -> Result<Answer, WebError> {
        let bad = || WebError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(bad()) };
        let host = authority.host().trim_matches(['[', ']']);
        let local = matches!(host, "localhost" | "127.0.0.1" | "::1");
        let (encrypted, port) = match scheme {
            "https" => (true, 443),
            "http" if local => (false, 80),
            _ => return Err(bad()),
        };
        let address = (host, authority.port_u16().unwrap_or(port));
        let connect = async {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            if !encrypted {
                return Ok::<Box<dyn Duplex>, WebError>(Box::new(tcp));
            }
            let name = ServerName::try_from(host.to_owned()).map_err(|_| bad())?;
            Ok(Box::new(TlsConnector::from(Arc::clone(&self.tls)).connect(name, tcp).await?))
        };
        let io = tokio::time::timeout(PATIENCE, connect)
            .await
            .map_err(|_| WebError::Http("no connection in time".to_owned()))??;
        let path = uri.path_and_query().map_or("/", |it| it.as_str());
        let mut request = Request::new(Full::new(body));
        (*request.method_mut(), *request.uri_mut()) = (method, path.parse().map_err(|_| bad())?);
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| bad())?;
        request.headers_mut().insert(header::HOST, host);
        let talk = async {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
            let connection = tokio::spawn(connection);
            let answered = async {
                let (parts, body) = sender.send_request(request).await?.into_parts();
                let body = Limited::new(body, answer_max).collect().await.map_err(|_| WebError::TooLong)?;
                let mut bytes = BytesMut::new();
                bytes.extend_from_slice(&body.to_bytes());
                Ok(Answer { status: parts.status, headers: parts.headers, body: bytes.freeze() })
            };
            let answered = answered.await;
            connection.abort();
            answered
        };
        tokio::time::timeout(ANSWER_WITHIN, talk).await.map_err(|_| WebError::Http("no answer in time".to_owned()))?
    }
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
