//! Why somebody does not get what was asked for, and how that is said over HTTP.

use std::io;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tracing::error;

use super::http::{UPLOAD_OFFSET, text};
use crate::chat::skynet::serve::web::HEADERS;
use crate::chat::skynet::store::StoreError;

/// Why somebody does not get what was asked for.
#[derive(Debug, thiserror::Error)]
pub(in crate::chat::skynet::serve) enum Refused {
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
    pub(super) const fn is_final(&self) -> bool {
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
