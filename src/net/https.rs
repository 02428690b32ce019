//! Requests of our own to other servers: a certificate authority, a push service, and those of the clients among the tools.
//!
//! What is asked for can be a secret, and so can what is sent: no error here says more of a URL than whose it is. Nothing is followed by
//! itself; whoever follows an answer to another place asks [`Https::place`] where that is, which does not lead out of TLS.
//!
//! A connection each, closed behind the answer: they are a few a minute at most, and a connection that waits for the next one
//! is one more thing that can be half dead. *Rejected*: an HTTP client with a pool, whose dependencies are many.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Body;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::either::Either;

use super::tls::{self, TlsError};

/// Time for connecting.
const CONNECTING: Duration = Duration::from_secs(10);

/// What one exchange may take.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Time, connecting included.
    pub within: Duration,
    /// Longest answer, in bytes.
    pub answer_max: usize,
}

impl Default for Bounds {
    /// For a few kilobytes, as a chain of certificates.
    fn default() -> Self {
        Self { within: Duration::from_secs(30), answer_max: 1_024 * 1_024 }
    }
}

/// A URL that is none, or that would be asked in clear. Says whose it is, if that is known, and no more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no https:// URL, nor an http:// one of this machine that may be asked")]
pub struct BadUrl(String);

impl BadUrl {
    fn of(uri: &Uri) -> Self {
        Self(format!("{}://{}", uri.scheme_str().unwrap_or_default(), uri.host().unwrap_or_default()))
    }
}

/// Why there is no answer.
pub type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// See the top of this file.
#[derive(Debug, Clone)]
pub struct Https {
    tls: Arc<ClientConfig>,
    plain_here: bool,
}

impl Https {
    /// Trusts the certificate authorities in a PEM file, or the system's.
    ///
    /// # Errors
    /// [`TlsError`] names the file and what is wrong with it.
    pub fn trusting(ca: Option<&Path>) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        let vouching: Vec<CertificateDer<'static>> = match ca {
            Some(ca) => tls::read_certs(ca)?,
            None => rustls_native_certs::load_native_certs().certs,
        };
        let (usable, _) = roots.add_parsable_certificates(vouching);
        if usable == 0 {
            let nobody = "this system has no root certificates; install them, or name the authority's";
            return Err(match ca {
                Some(ca) => TlsError::content(ca, "no certificate in it can vouch for anybody"),
                None => TlsError::SetUp(rustls::Error::General(nobody.to_owned())),
            });
        }
        let config = ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::SetUp)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self::with(Arc::new(config)))
    }

    /// Trusts whom this trusts: some authorities, or one pinned key.
    #[must_use]
    pub const fn with(tls: Arc<ClientConfig>) -> Self {
        Self { tls, plain_here: false }
    }

    /// The same, and without TLS whatever runs on this machine.
    #[must_use]
    pub fn or_plain_here(self) -> Self {
        Self { plain_here: true, ..self }
    }

    /// Where an answer from `base` leads that names a whole URL or a path: never from TLS to where there is none, which would let a
    /// server send what is meant for it, and its key, to whatever listens on this machine.
    ///
    /// # Errors
    /// [`BadUrl`].
    pub fn place(&self, base: &Uri, location: &str) -> Result<Uri, BadUrl> {
        let unknown = || BadUrl(String::from("what the server answers"));
        let place = if location.starts_with('/') {
            let whole = Uri::builder().scheme(base.scheme_str().unwrap_or_default());
            let whole = whole.authority(base.authority().map(http::uri::Authority::as_str).unwrap_or_default());
            whole.path_and_query(location).build().map_err(|_| unknown())?
        } else {
            location.parse().map_err(|_| unknown())?
        };
        if base.scheme_str() == Some("https") && place.scheme_str() != Some("https") {
            return Err(BadUrl::of(&place));
        }
        self.endpoint(&place)?;
        Ok(place)
    }

    /// The host, the port, and whether there is TLS.
    fn endpoint<'a>(&self, uri: &'a Uri) -> Result<(&'a str, u16, bool), BadUrl> {
        let host = uri.host().ok_or_else(|| BadUrl::of(uri))?;
        // An IPv6 address stands in brackets in a URL, and nowhere else.
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let here = matches!(host, "localhost" | "127.0.0.1" | "::1");
        match uri.scheme_str() {
            Some("https") => Ok((host, uri.port_u16().unwrap_or(443), true)),
            Some("http") if self.plain_here && here => Ok((host, uri.port_u16().unwrap_or(80), false)),
            _ => Err(BadUrl::of(uri)),
        }
    }

    /// Asks, and takes the whole answer.
    ///
    /// # Errors
    /// Whatever happened on the way, or that there is no answer within the default [`Bounds`].
    pub async fn exchange<B>(&self, request: Request<B>) -> Result<Response<Bytes>, AnyError>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<AnyError>,
    {
        self.exchange_within(request, Bounds::default()).await
    }

    /// The same within other bounds.
    ///
    /// # Errors
    /// Whatever happened on the way: [`BadUrl`], or [`http_body_util::LengthLimitError`] when the answer is too long, among others.
    pub async fn exchange_within<B>(&self, request: Request<B>, bounds: Bounds) -> Result<Response<Bytes>, AnyError>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<AnyError>,
    {
        let answer = tokio::time::timeout(bounds.within, self.exchange_in_time(request, bounds.answer_max)).await;
        answer.unwrap_or_else(|_| Err("no answer in time".into()))
    }

    async fn exchange_in_time<B>(&self, mut request: Request<B>, answer_max: usize) -> Result<Response<Bytes>, AnyError>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<AnyError>,
    {
        let uri = request.uri().clone();
        let (name, port, encrypted) = self.endpoint(&uri)?;
        let connect = async {
            let tcp = TcpStream::connect((name, port)).await.map_err(|error| format!("{name}:{port}: {error}"))?;
            tcp.set_nodelay(true)?;
            if !encrypted {
                return Ok::<_, AnyError>(Either::Left(tcp));
            }
            let tls = TlsConnector::from(Arc::clone(&self.tls));
            Ok(Either::Right(tls.connect(ServerName::try_from(name.to_owned())?, tcp).await?))
        };
        let connected = tokio::time::timeout(CONNECTING, connect).await;
        let stream = connected.map_err(|_| format!("{name}:{port}: no connection in time"))??;

        let authority = uri.authority().map_or(name, http::uri::Authority::as_str);
        request.headers_mut().insert(header::HOST, HeaderValue::from_str(authority)?);
        *request.uri_mut() = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).parse()?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let mut answer = pin!(async move {
            let (parts, body) = sender.send_request(request).await?.into_parts();
            Ok(Response::from_parts(parts, Limited::new(body, answer_max).collect().await?.to_bytes()))
        });
        tokio::select! {
            answer = &mut answer => answer,
            // What has come may still be read.
            _ = connection => answer.await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn https() -> Https {
        let config = ClientConfig::builder_with_provider(tls::provider());
        let config = config.with_safe_default_protocol_versions().unwrap();
        Https::with(Arc::new(config.with_root_certificates(RootCertStore::empty()).with_no_client_auth()))
    }

    #[test]
    fn an_answer_does_not_lead_out_of_tls() {
        let https = https().or_plain_here();
        let place = |base: &str, location: &str| {
            https.place(&base.parse().unwrap(), location).map(|it| it.to_string()).map_err(|error| error.to_string())
        };
        let fine = |at: &str| Ok(at.to_owned());
        assert_eq!(place("https://a.b/x?y", "/c?d=e"), fine("https://a.b/c?d=e"));
        assert_eq!(place("https://a.b", "https://c.d:7/e"), fine("https://c.d:7/e"));
        assert_eq!(place("http://localhost:7/x", "/c"), fine("http://localhost:7/c"));
        assert_eq!(place("http://localhost:7/x", "http://127.0.0.1:8/c"), fine("http://127.0.0.1:8/c"));
        assert_eq!(place("http://localhost:7/x", "https://a.b/c"), fine("https://a.b/c"));
        for location in ["http://127.0.0.1:8/c?token=secret", "http://a.b/c", "ftp://a.b/c", "c", "//a.b/\u{0}", ""] {
            let refused = place("https://a.b/x", location).unwrap_err();
            assert!(!refused.contains("secret"), "{refused}");
        }
        assert!(place("http://localhost:7/x", "http://a.b/c").is_err());
    }

    /// What a URL asks for may be a secret.
    #[tokio::test]
    async fn what_is_not_asked_is_not_told_either() {
        for url in ["http://127.0.0.1:1/x?token=secret", "http://a.b/?token=secret", "ftp://a.b/secret"] {
            let request = Request::get(url).body(String::new()).unwrap();
            let refused = https().exchange(request).await.unwrap_err();
            assert!(refused.is::<BadUrl>() && !refused.to_string().contains("secret"), "{refused}");
        }
    }
}
