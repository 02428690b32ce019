//! Server certificates from files, and their pins.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use sha2::{Digest as _, Sha256};
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer as _, X509Certificate};

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
    #[error("cannot make a development certificate: {0}")]
    Make(#[from] rcgen::Error),
}

impl TlsError {
    /// A file does not hold what it should.
    pub(super) fn content(file: &Path, reason: impl fmt::Display) -> Self {
        Self::Content { file: file.to_owned(), reason: reason.to_string() }
    }

    /// A file cannot be read or written.
    pub(super) fn file(file: &Path, source: std::io::Error) -> Self {
        Self::File { file: file.to_owned(), source }
    }
}

/// The one provider of cryptography in the tree. It is named wherever a configuration is made, so that nothing depends on
/// who installed a process-wide default first.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// What accepts TLS connections with this certificate: TLS 1.2 and 1.3, HTTP/1.1 inside.
///
/// # Errors
/// [`TlsError`] names the file and what is wrong with it.
pub fn acceptor(files: &CertFiles) -> Result<TlsAcceptor, TlsError> {
    let certs = read_certs(&files.cert)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| pem_error(&files.key, "private key", error))?;
    let unusable = |source| TlsError::Unusable { cert: files.cert.clone(), key: files.key.clone(), source };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(certs, key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Devices come back often. A ticket lets them resume and costs the server no memory, where a session cache would.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = ring::Ticketer::new().map_err(unusable)?;
    config.send_tls13_tickets = 1;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The certificates of a PEM file, at least one.
///
/// # Errors
/// [`TlsError`] names the file and what is wrong with it.
pub fn read_certs(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certs = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| pem_error(file, "certificate", error))?;
    if certs.is_empty() {
        return Err(pem_error(file, "certificate", pem::Error::NoItemsFound));
    }
    Ok(certs)
}

/// The pin of a certificate's public key: base64 of the SHA-256 of its SubjectPublicKeyInfo, as clients configure it.
///
/// # Errors
/// [`TlsError`] names the file and what is wrong with it.
pub fn spki_pin(cert_file: &Path) -> Result<String, TlsError> {
    let certs = read_certs(cert_file)?;
    let first = certs.first().ok_or_else(|| TlsError::content(cert_file, "no certificate"))?;
    let cert = parse(cert_file, first)?;
    Ok(base64::engine::general_purpose::STANDARD.encode(Sha256::digest(cert.public_key().raw)))
}

/// Takes a certificate apart; `file` is where it came from.
pub(super) fn parse<'a>(file: &Path, der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, TlsError> {
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
        pub(in crate::net) acceptor: TlsAcceptor,
        pub(in crate::net) connector: TlsConnector,
        dir: tempfile::TempDir,
    }

    /// Both ends of a development box.
    pub(in crate::net) fn dev_box() -> DevBox {
        let dir = tempfile::tempdir().unwrap();
        let made = development(dir.path(), crate::time::Clock::system().now().wall_ms).unwrap();
        DevBox { acceptor: acceptor(&made.files).unwrap(), connector: connector(&made.ca), dir }
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
            ("wrong.pem", "dev-key.pem", "wrong.pem and key"),
            ("dev-cert.pem", "dev-cert.pem", "dev-cert.pem: there is no private key in PEM form"),
            ("dev-cert.pem", "dev-ca.key", "cannot be used: "),
        ];
        for (cert, key, expected) in cases {
            let Err(error) = acceptor(&CertFiles { cert: file(cert), key: file(key) }) else {
                panic!("{cert} and {key} were accepted")
            };
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[tokio::test]
    async fn the_throwaway_pair_of_the_repository_serves_localhost() {
        let certs = Path::new(env!("CARGO_MANIFEST_DIR")).join("certs");
        let file = |name: &str| certs.join(format!("throwaway-test-only-{name}.pem"));
        let acceptor = acceptor(&CertFiles { cert: file("cert"), key: file("key") }).unwrap();
        let (near, far) = tokio::io::duplex(16 * 1_024);
        let connector = connector(&file("ca"));
        let (server, client) =
            tokio::join!(acceptor.accept(far), connector.connect("localhost".try_into().unwrap(), near));
        server.unwrap();
        client.unwrap();
    }

    #[test]
    fn a_pin_is_what_openssl_computes() {
        // openssl x509 -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cert.pem");
        std::fs::write(&file, CERT).unwrap();
        assert_eq!(spki_pin(&file).unwrap(), PIN);
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
