//! Whom to trust: the system's roots, one CA, or one public key.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha256};

use super::connect::BadMediator;
use crate::crypto;

/// How a mediator proves to be the right one. Of no meaning for `ws://`.
#[derive(Clone)]
pub enum Trust {
    /// A certificate that the operating system's roots vouch for.
    System,
    /// A certificate that a CA in this PEM file vouches for.
    CaFile(PathBuf),
    /// A certificate that a CA in this PEM text vouches for.
    CaPem(Vec<u8>),
    /// The certificate whose public key (SubjectPublicKeyInfo, DER) has this SHA-256. Names and dates do not matter then.
    Pin([u8; 32]),
}

impl Trust {
    /// For connections that are not the mediator's, too.
    ///
    /// # Errors
    /// [`BadMediator::Ca`] when there is nobody to trust.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, BadMediator> {
        let provider = Arc::new(ring::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = match self {
            Self::Pin(pin) => Arc::new(Pinned { pin: *pin, provider: Arc::clone(&provider) }),
            Self::System => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                by_roots(roots, &provider)?
            }
            Self::CaPem(pem) => by_roots(roots_of(pem)?, &provider)?,
            Self::CaFile(path) => {
                let pem = std::fs::read(path)
                    .map_err(|error| BadMediator::Ca(format!("{} cannot be read: {error}", path.display())))?;
                by_roots(roots_of(&pem)?, &provider)?
            }
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| BadMediator::Ca(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        Ok(Arc::new(config))
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("System"),
            Self::CaFile(path) => f.debug_tuple("CaFile").field(path).finish(),
            Self::CaPem(pem) => write!(f, "CaPem({} bytes)", pem.len()),
            Self::Pin(_) => f.write_str("Pin"),
        }
    }
}

fn roots_of(pem: &[u8]) -> Result<RootCertStore, BadMediator> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| BadMediator::Ca(error.to_string()))?;
        roots.add(certificate).map_err(|error| BadMediator::Ca(error.to_string()))?;
    }
    Ok(roots)
}

fn by_roots(roots: RootCertStore, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>, BadMediator> {
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
    Ok(verifier.map_err(|_| BadMediator::Ca("there is no usable CA certificate".to_owned()))?)
}

/// Accepts one public key, whoever signed it.
#[derive(Debug)]
struct Pinned {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let spki = ParsedCertificate::try_from(end_entity)?.subject_public_key_info();
        if crypto::equal(&Sha256::digest(spki.as_ref()), &self.pin) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
