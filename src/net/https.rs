//! Requests of our own to other servers: a certificate authority, a push service.
//!
//! A connection each, closed behind the answer: they are a few a minute at most, and a connection that waits for the next one
//! is one more thing that can be half dead. *Rejected*: an HTTP client with a pool, whose dependencies are many.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Body;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::tls::{self, TlsError};

/// Time for one exchange, connecting included.
pub const EXCHANGE: Duration = Duration::from_secs(30);
/// Longest answer, in bytes: a chain is a few kilobytes.
const ANSWER_MAX: usize = 1_024 * 1_024;

/// Why there is no answer.
pub type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// See the top of this file.
#[derive(Debug, Clone)]
pub struct Https(Arc<ClientConfig>);

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
        Ok(Self(Arc::new(config)))
    }

    /// Asks, and takes the whole answer.
    ///
    /// # Errors
    /// Whatever happened on the way, or that there is no answer within [`EXCHANGE`].
    pub async fn exchange<B>(&self, request: Request<B>) -> Result<Response<Bytes>, AnyError>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<AnyError>,
    {
        let answer = tokio::time::timeout(EXCHANGE, self.exchange_in_time(request)).await;
        answer.unwrap_or_else(|_| Err("no answer in time".into()))
    }

    async fn exchange_in_time<B>(&self, mut request: Request<B>) -> Result<Response<Bytes>, AnyError>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<AnyError>,
    {
        let uri = request.uri().clone();
        let (Some(host), Some("https")) = (uri.host(), uri.scheme_str()) else {
            return Err(format!("{uri} is not an https URL").into());
        };
        let port = uri.port_u16().unwrap_or(443);
        // An IPv6 address stands in brackets in a URL, and nowhere else.
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let tcp = TcpStream::connect((name, port)).await.map_err(|error| format!("{host}:{port}: {error}"))?;
        let tls = TlsConnector::from(Arc::clone(&self.0));
        let stream = tls.connect(ServerName::try_from(name.to_owned())?, tcp).await?;

        let authority = uri.authority().map_or(host, http::uri::Authority::as_str);
        request.headers_mut().insert(header::HOST, HeaderValue::from_str(authority)?);
        *request.uri_mut() = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).parse()?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let mut answer = pin!(async move {
            let (parts, body) = sender.send_request(request).await?.into_parts();
            Ok(Response::from_parts(parts, Limited::new(body, ANSWER_MAX).collect().await?.to_bytes()))
        });
        tokio::select! {
            answer = &mut answer => answer,
            // What has come may still be read.
            _ = connection => answer.await,
        }
    }
}
