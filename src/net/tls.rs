//! What the public door presents: certificates, their pins, and how one takes the place of another.
//!
//! A handshake is answered with what [`Tls`] presents at that moment, and replacing that is the store of one pointer: what
//! is connected stays connected, the next full handshake sees the new certificate. There is one `ServerConfig` as long as the
//! process lives, so a ticket that was given before a replacement resumes after it.

use std::collections::HashMap;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use base64::Engine as _;
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
use zeroize::Zeroizing;

use crate::metrics;

/// The application protocol inside: WebSocket begins as HTTP/1.1.
const HTTP_1_1: &[u8] = b"http/1.1";
/// The application protocol of those who only want to see that a domain is ours (RFC 8737).
pub const ACME_TLS_1: &[u8] = b"acme-tls/1";
/// More than any chain or key has, in bytes. Whoever names a device or a log by mistake is told, not waited for.
const PEM_MAX: u64 = 1_024 * 1_024;

/// A certificate chain and its private key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertFiles {
    /// The server's certificate first, then those it was signed by.
    pub cert: PathBuf,
    /// The private key of the first certificate.
    pub key: PathBuf,
}

/// Why there is no TLS, with the file to look at.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or written.
    #[error("{}: {source}", file.display())]
    File {
        /// Which file.
        file: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {reason}", file.display())]
    Content {
        /// Which file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Certificate and key are readable, but of no use together.
    #[error("certificate {} and key {} cannot be used: {source}", cert.display(), key.display())]
    Unusable {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What rustls says.
        source: rustls::Error,
    },
    /// Nothing could be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The cryptography does not work at all.
    #[error("TLS cannot be set up: {0}")]
    SetUp(rustls::Error),
}

impl TlsError {
    /// A file does not hold what it should.
    pub(crate) fn content(file: &Path, reason: impl fmt::Display) -> Self {
        Self::Content { file: file.to_owned(), reason: reason.to_string() }
    }

    /// A file cannot be read or written.
    pub(crate) fn file(file: &Path, source: std::io::Error) -> Self {
        Self::File { file: file.to_owned(), source }
    }
}

/// The one provider of cryptography in the tree. It is named wherever a configuration is made, so that nothing depends on
/// who installed a process-wide default first.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Who a certificate says we are, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The pin of the public key: base64 of the SHA-256 of its SubjectPublicKeyInfo, as clients configure it.
    pub pin: String,
    /// The names it is for, as clients know them.
    pub names: Vec<String>,
    /// Valid from then, in seconds since the Unix epoch.
    pub not_before_s: u64,
    /// Valid until then, in seconds since the Unix epoch.
    pub not_after_s: u64,
}

impl Identity {
    fn of(file: &Path, der: &CertificateDer<'_>) -> Result<Self, TlsError> {
        let cert = parse(file, der)?;
        let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
        let names = cert.subject_alternative_name().map_err(|error| TlsError::content(file, error))?;
        let names = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => ip(bytes).map(|ip| ip.to_string()),
            _ => None,
        });
        Ok(Self {
            pin: base64::engine::general_purpose::STANDARD.encode(Sha256::digest(cert.public_key().raw)),
            names: names.collect(),
            not_before_s: seconds(cert.validity().not_before),
            not_after_s: seconds(cert.validity().not_after),
        })
    }

    /// Seconds until it expires; negative once it has.
    #[must_use]
    pub fn seconds_left(&self, now_wall_ms: u64) -> i64 {
        let seconds = |s: u64| i64::try_from(s).unwrap_or(i64::MAX);
        seconds(self.not_after_s).saturating_sub(seconds(now_wall_ms / 1_000))
    }

    /// Why clients refuse it now, if its dates are the reason.
    #[must_use]
    pub fn out_of_date(&self, now_wall_ms: u64) -> Option<String> {
        if self.seconds_left(now_wall_ms) < 0 {
            Some(format!("expired on {}", day_and_time(self.not_after_s)))
        } else if self.not_before_s > now_wall_ms / 1_000 {
            Some(format!("not valid before {}", day_and_time(self.not_before_s)))
        } else {
            None
        }
    }

    /// When it expires, as people read it.
    #[must_use]
    pub fn not_after(&self) -> String {
        day_and_time(self.not_after_s)
    }
}

fn day_and_time(seconds: u64) -> String {
    // The year 9999 is what certificates without an end say, and the last that can be printed.
    let at = UNIX_EPOCH + Duration::from_secs(seconds.min(253_402_300_799));
    humantime::format_rfc3339_seconds(at).to_string()
}

fn ip(bytes: &[u8]) -> Option<std::net::IpAddr> {
    <[u8; 4]>::try_from(bytes).map(Into::into).or_else(|_| <[u8; 16]>::try_from(bytes).map(Into::into)).ok()
}

/// A certificate with its key: they belong together, and the key can sign.
#[derive(Debug, Clone)]
pub struct Certificate {
    key: Arc<CertifiedKey>,
    identity: Arc<Identity>,
}

impl Certificate {
    /// Reads a pair of files.
    ///
    /// # Errors
    /// [`TlsError`] names the file and what is wrong with it.
    pub fn load(files: &CertFiles) -> Result<Self, TlsError> {
        Self::from_pem(files, &read_pem(&files.cert)?, &read_pem(&files.key)?)
    }

    /// Takes what was read from `files`.
    pub(super) fn from_pem(files: &CertFiles, cert: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let certs = certs_of(&files.cert, cert)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| pem_error(&files.key, "private key", error))?;
        let first = certs.first().ok_or_else(|| TlsError::content(&files.cert, "no certificate"))?;
        let identity = Identity::of(&files.cert, first)?;
        // Checks that the key is the certificate's.
        let key = CertifiedKey::from_der(certs, key, &provider()).map_err(|source| TlsError::Unusable {
            cert: files.cert.clone(),
            key: files.key.clone(),
            source,
        })?;
        Ok(Self { key: Arc::new(key), identity: Arc::new(identity) })
    }

    /// Who it says we are.
    #[must_use]
    pub const fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// What signs.
    #[must_use]
    pub const fn key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }
}

/// TLS at a door. Clones are handles of the same: what one presents, all present.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    presented: Arc<Presented>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("identity", &self.identity()).finish_non_exhaustive()
    }
}

impl Tls {
    /// A door that has no certificate yet: every handshake fails until there is one.
    ///
    /// # Errors
    /// [`TlsError::SetUp`]
    pub fn without_certificate() -> Result<Self, TlsError> {
        let presented = Arc::new(Presented::default());
        let resolver: Arc<dyn ResolvesServerCert> = Arc::<Presented>::clone(&presented);
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::SetUp)?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![HTTP_1_1.to_vec(), ACME_TLS_1.to_vec()];
        // Devices come back often. A ticket lets them resume and costs the server no memory, where a session cache would.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = ring::Ticketer::new().map_err(TlsError::SetUp)?;
        config.send_tls13_tickets = 1;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), presented })
    }

    /// A door that presents this certificate: TLS 1.2 and 1.3, HTTP/1.1 inside.
    ///
    /// # Errors
    /// [`TlsError::SetUp`]
    pub fn presenting(certificate: Certificate) -> Result<Self, TlsError> {
        let tls = Self::without_certificate()?;
        tls.present(certificate);
        Ok(tls)
    }

    /// What accepts connections.
    #[must_use]
    pub const fn acceptor(&self) -> &TlsAcceptor {
        &self.acceptor
    }

    /// From now on every full handshake sees this certificate. Returns who was presented before.
    pub fn present(&self, certificate: Certificate) -> Option<Arc<Identity>> {
        metrics::get().certificate_expires.set(certificate.identity.not_after_s as f64);
        let before = self.presented.current.swap(Some(Arc::new(certificate)));
        before.map(|before| Arc::clone(&before.identity))
    }

    /// Who is presented now.
    #[must_use]
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.presented.current.load().as_ref().map(|current| Arc::clone(&current.identity))
    }

    /// Answers who wants to see that `domain` is ours, as long as the guard lives.
    pub(super) fn answer(&self, domain: &str, key: CertifiedKey) -> Answered {
        let domain = domain.to_ascii_lowercase();
        self.presented.answers().insert(domain.clone(), Arc::new(key));
        Answered { domain, presented: Arc::clone(&self.presented) }
    }
}

/// What handshakes are answered with.
#[derive(Debug, Default)]
struct Presented {
    current: ArcSwapOption<Certificate>,
    /// Challenges of a certificate authority, by domain. Locked for an insertion or a look.
    answers: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

impl Presented {
    fn answers(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<CertifiedKey>>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResolvesServerCert for Presented {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // RFC 8737, 3: who validates offers this protocol and no other.
        if hello.alpn().is_some_and(|mut offered| offered.next() == Some(ACME_TLS_1) && offered.next().is_none()) {
            return self.answers().get(&hello.server_name()?.to_ascii_lowercase()).cloned();
        }
        self.current.load().as_ref().map(|current| Arc::clone(&current.key))
    }
}

/// A challenge is answered until this is dropped.
#[derive(Debug)]
pub(super) struct Answered {
    domain: String,
    presented: Arc<Presented>,
}

impl Drop for Answered {
    fn drop(&mut self) {
        self.presented.answers().remove(&self.domain);
    }
}

/// The certificates of a PEM file, at least one.
///
/// # Errors
/// [`TlsError`] names the file and what is wrong with it.
pub fn read_certs(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    certs_of(file, &read_pem(file)?)
}

fn certs_of(file: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certs = CertificateDer::pem_slice_iter(text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| pem_error(file, "certificate", error))?;
    if certs.is_empty() {
        return Err(pem_error(file, "certificate", pem::Error::NoItemsFound));
    }
    Ok(certs)
}

/// What a PEM file holds; it may hold a key.
pub(crate) fn read_pem(file: &Path) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    // As large as it gets from the beginning: a vector that grows leaves copies of a key behind.
    let mut text = Zeroizing::new(Vec::with_capacity(16 * 1_024));
    let read = std::fs::File::open(file).and_then(|open| open.take(PEM_MAX + 1).read_to_end(&mut text));
    read.map_err(|source| TlsError::file(file, source))?;
    if text.len() as u64 > PEM_MAX {
        return Err(TlsError::content(file, "more than a mebibyte, so neither a certificate nor a key"));
    }
    Ok(text)
}

/// Takes a certificate apart; `file` is where it came from.
pub(crate) fn parse<'a>(file: &Path, der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, TlsError> {
    X509Certificate::from_der(der).map(|(_, cert)| cert).map_err(|error| TlsError::content(file, error))
}

fn pem_error(file: &Path, what: &str, error: pem::Error) -> TlsError {
    match error {
        pem::Error::Io(source) => TlsError::file(file, source),
        pem::Error::NoItemsFound => TlsError::content(file, format_args!("there is no {what} in PEM form in it")),
        error => TlsError::content(file, format_args!("not PEM: {error}")),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use rustls::{ClientConfig, RootCertStore};
    use tokio_rustls::TlsConnector;

    use super::super::development::development;
    use super::*;

    /// 21 November 2026, in milliseconds.
    pub(in crate::net) const TODAY: u64 = 1_795_219_200_000;

    pub(in crate::net) struct DevBox {
        pub(in crate::net) tls: Tls,
        pub(in crate::net) connector: TlsConnector,
        dir: tempfile::TempDir,
    }

    /// Both ends of a development box.
    pub(in crate::net) fn dev_box() -> DevBox {
        let dir = tempfile::tempdir().unwrap();
        let made = development(dir.path(), crate::time::Clock::system().now().wall_ms).unwrap();
        DevBox { tls: tls(&made.files), connector: connector(&made.ca), dir }
    }

    pub(in crate::net) fn tls(files: &CertFiles) -> Tls {
        Tls::presenting(Certificate::load(files).unwrap()).unwrap()
    }

    pub(in crate::net) fn connector(ca: &Path) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(read_certs(ca).unwrap().remove(0)).unwrap();
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        TlsConnector::from(Arc::new(config))
    }

    #[test]
    fn each_bad_file_is_named_with_its_reason() {
        let DevBox { dir, .. } = dev_box();
        let file = |name: &str| dir.path().join(name);
        std::fs::write(file("empty.pem"), "").unwrap();
        std::fs::write(file("torn.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap();
        std::fs::write(file("wrong.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        let cases = [
            ("missing.pem", "dev-key.pem", "missing.pem: No such file"),
            ("empty.pem", "dev-key.pem", "empty.pem: there is no certificate in PEM form"),
            ("torn.pem", "dev-key.pem", "torn.pem: not PEM: "),
            ("wrong.pem", "dev-key.pem", "wrong.pem: "),
            ("dev-cert.pem", "dev-cert.pem", "dev-cert.pem: there is no private key in PEM form"),
            ("dev-cert.pem", "dev-ca.key", "cannot be used: "),
        ];
        for (cert, key, expected) in cases {
            let Err(error) = Certificate::load(&CertFiles { cert: file(cert), key: file(key) }) else {
                panic!("{cert} and {key} were accepted")
            };
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[tokio::test]
    async fn the_throwaway_pair_of_the_repository_serves_localhost() {
        let certs = Path::new(env!("CARGO_MANIFEST_DIR")).join("certs");
        let file = |name: &str| certs.join(format!("throwaway-test-only-{name}.pem"));
        let tls = tls(&CertFiles { cert: file("cert"), key: file("key") });
        let (near, far) = tokio::io::duplex(16 * 1_024);
        let connector = connector(&file("ca"));
        let (server, client) =
            tokio::join!(tls.acceptor().accept(far), connector.connect("localhost".try_into().unwrap(), near));
        server.unwrap();
        client.unwrap();
    }

    #[test]
    fn a_pin_is_what_openssl_computes() {
        // openssl x509 -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cert.pem");
        std::fs::write(&file, CERT).unwrap();
        let cert = read_certs(&file).unwrap().remove(0);
        assert_eq!(Identity::of(&file, &cert).unwrap().pin, PIN);
    }

    const CERT: &str = "-----BEGIN CERTIFICATE-----\n\
MIIBczCCARmgAwIBAgIUW+L/hOiQ10hri8rpwjE6tU+quUwwCgYIKoZIzj0EAwIw\n\
DjEMMAoGA1UEAwwDcGluMCAXDTI2MTEyMTAzMzU1N1oYDzIxMjYxMDI4MDMzNTU3\n\
WjAOMQwwCgYDVQQDDANwaW4wWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATk2eVa\n\
duqHMzRBuZuF2iVE4YzbVGUrahmSof28MzbnQ99qV2M0VaF9JK4L8zEWlQk+GMCh\n\
YiSx7v+WUDUD4h/Yo1MwUTAdBgNVHQ4EFgQU3tDtShzQaRjt7/wPRMHux5r9eHgw\n\
HwYDVR0jBBgwFoAU3tDtShzQaRjt7/wPRMHux5r9eHgwDwYDVR0TAQH/BAUwAwEB\n\
/zAKBggqhkjOPQQDAgNIADBFAiEA5vjIOOUPPlNOdLz4TQuatUmSmP5EuooGT2iU\n\
7HbCgmUCIAXo1K5wDGOpOz/MQiu/xonmfkeRiYMbr/z1A0NNlknN\n\
-----END CERTIFICATE-----";
    const PIN: &str = "aEHmlJeav1RmnuaIBuZm0soyWp+wUl0t8tJxvdS+s0A=";
}
