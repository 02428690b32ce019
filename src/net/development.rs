//! The certificate authority of a development box.
//!
//! A developer's client has to be told once whom to trust; after that, the server's certificate may change as it likes. So
//! there is an authority that lasts ten years, and a server certificate that lasts as long as the strictest clients accept
//! and is renewed in time at start. The authority may vouch for this machine's own names alone: trusting it, or losing its
//! key, opens nobody else's door.
//!
//! Of each pair the certificate is written last and is the mark of a complete pair; without it both are made anew. A renewed
//! authority takes the server's certificate with it first. A crash in between leaves nothing that does not fit together.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, NameConstraints,
};

use super::tls::{self, CertFiles, TlsError};
use crate::files;

/// The names the server certificate is for.
pub const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

const DAY: Duration = Duration::from_secs(86_400);
/// How long the authority lasts.
const CA_DAYS: u32 = 3_650;
/// How long the server's certificate lasts: Apple accepts none that lasts more than 825 days, public ones 398.
const SERVER_DAYS: u32 = 397;
/// A server's certificate is renewed when it has fewer days than this.
const RENEW_DAYS: u32 = 30;

/// Where the pieces are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Development {
    /// The authority's certificate, for clients to trust.
    pub ca: PathBuf,
    /// What the server presents.
    pub files: CertFiles,
}

/// Makes what is missing in `dir` or about to expire, and says where everything is.
///
/// # Errors
/// [`TlsError`] names the file that cannot be read, written or understood.
pub fn development(dir: &Path, now_wall_ms: u64) -> Result<Development, TlsError> {
    let now = Duration::from_millis(now_wall_ms);
    let (ca, ca_key) = (dir.join("dev-ca.pem"), dir.join("dev-ca.key"));
    let files = CertFiles { cert: dir.join("dev-cert.pem"), key: dir.join("dev-key.pem") };
    files::make_private_dir(dir).map_err(|source| TlsError::file(dir, source))?;
    // What the authority signs must not outlive it.
    if !(lasts(&ca, now + DAY * SERVER_DAYS)? && ca_key.exists()) {
        remove(&files.cert)?;
        remove(&ca)?;
        make_ca(&ca, &ca_key, now)?;
    }
    if !(lasts(&files.cert, now + DAY * RENEW_DAYS)? && files.key.exists()) {
        remove(&files.cert)?;
        make_server(&files, &ca, &ca_key, now)?;
    }
    Ok(Development { ca, files })
}

/// Whether there is a certificate that is valid until then.
fn lasts(cert: &Path, until: Duration) -> Result<bool, TlsError> {
    if !cert.exists() {
        return Ok(false);
    }
    let certs = tls::read_certs(cert)?;
    let Some(der) = certs.first() else { return Ok(false) };
    let not_after = tls::parse(cert, der)?.validity().not_after.timestamp();
    Ok(u64::try_from(not_after).is_ok_and(|not_after| not_after >= until.as_secs()))
}

fn make_ca(cert: &Path, key: &Path, now: Duration) -> Result<(), TlsError> {
    let mut params = params("Heliostat development CA, for this machine only", now, CA_DAYS);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![
            GeneralSubtree::DnsName("localhost".into()),
            GeneralSubtree::IpAddress(CidrSubnet::V4([127, 0, 0, 0], [255, 0, 0, 0])),
            GeneralSubtree::IpAddress(CidrSubnet::V6(std::net::Ipv6Addr::LOCALHOST.octets(), [255; 16])),
        ],
        excluded_subtrees: vec![],
    });
    let pair = KeyPair::generate()?;
    let made = params.self_signed(&pair)?;
    write(key, &pair.serialize_pem(), true)?;
    write(cert, &made.pem(), false)
}

fn make_server(files: &CertFiles, ca: &Path, ca_key: &Path, now: Duration) -> Result<(), TlsError> {
    let read = |file: &Path| std::fs::read_to_string(file).map_err(|source| TlsError::file(file, source));
    let signing = KeyPair::from_pem(&read(ca_key)?).map_err(|error| TlsError::content(ca_key, error))?;
    let issuer = Issuer::from_ca_cert_pem(&read(ca)?, signing).map_err(|error| TlsError::content(ca, error))?;
    let mut params = params("Heliostat development server", now, SERVER_DAYS);
    params.subject_alt_names = CertificateParams::new(NAMES.map(String::from))?.subject_alt_names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let pair = KeyPair::generate()?;
    let made = params.signed_by(&pair, &issuer)?;
    write(&files.key, &pair.serialize_pem(), true)?;
    write(&files.cert, &made.pem(), false)
}

/// A certificate for `days` from now; it counts from a day ago, because clocks differ.
pub(crate) fn params(common_name: &str, now: Duration, days: u32) -> CertificateParams {
    let mut params = CertificateParams::default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(DAY);
    params.not_after = epoch + now + DAY * days;
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

fn remove(file: &Path) -> Result<(), TlsError> {
    match std::fs::remove_file(file) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(TlsError::file(file, source)),
        _ => Ok(()),
    }
}

pub(crate) fn write(file: &Path, text: &str, secret: bool) -> Result<(), TlsError> {
    files::write_whole(file, text, secret).map_err(|source| TlsError::file(file, source))
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::super::tls::tests::{TODAY, connector, tls};
    use super::*;

    const DAY_MS: u64 = 86_400_000;

    fn read(file: &Path) -> String {
        std::fs::read_to_string(file).unwrap()
    }

    #[tokio::test]
    async fn clients_that_trust_the_authority_accept_the_server_under_each_name_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let made = development(&dir.path().join("tls"), crate::time::Clock::system().now().wall_ms).unwrap();
        for (name, accepted) in [("localhost", true), ("127.0.0.1", true), ("::1", true), ("example.org", false)] {
            let (near, far) = duplex(16 * 1_024);
            let tls = tls(&made.files);
            let connector = connector(&made.ca);
            let (server, client) =
                tokio::join!(tls.acceptor().accept(far), connector.connect(name.to_owned().try_into().unwrap(), near));
            assert_eq!((server.is_ok(), client.is_ok()), (accepted, accepted), "{name}: {client:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn private_keys_are_nobody_elses() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let made = development(dir.path(), TODAY).unwrap();
        for key in [&made.files.key, &dir.path().join("dev-ca.key")] {
            assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{}", key.display());
        }
    }

    #[test]
    fn a_second_start_changes_nothing_and_the_server_is_renewed_before_it_expires() {
        let dir = tempfile::tempdir().unwrap();
        let made = development(dir.path(), TODAY).unwrap();
        let (ca, cert) = (read(&made.ca), read(&made.files.cert));
        development(dir.path(), TODAY + 366 * DAY_MS).unwrap();
        assert_eq!((read(&made.ca), read(&made.files.cert)), (ca.clone(), cert.clone()));
        development(dir.path(), TODAY + 368 * DAY_MS).unwrap();
        assert_eq!(read(&made.ca), ca, "the authority stays");
        assert_ne!(read(&made.files.cert), cert, "less than thirty days were left");
    }

    #[test]
    fn an_authority_near_its_end_is_renewed_with_all_it_signed() {
        let dir = tempfile::tempdir().unwrap();
        let made = development(dir.path(), TODAY).unwrap();
        let (ca, cert) = (read(&made.ca), read(&made.files.cert));
        development(dir.path(), TODAY + 3_300 * DAY_MS).unwrap();
        assert_ne!(read(&made.ca), ca);
        assert_ne!(read(&made.files.cert), cert);
    }

    #[test]
    fn whatever_is_missing_is_made_again_and_fits_the_rest() {
        for gone in ["dev-ca.pem", "dev-ca.key", "dev-cert.pem", "dev-key.pem"] {
            let dir = tempfile::tempdir().unwrap();
            let made = development(dir.path(), TODAY).unwrap();
            std::fs::remove_file(dir.path().join(gone)).unwrap();
            assert_eq!(development(dir.path(), TODAY).unwrap(), made);
            tls::Certificate::load(&made.files).unwrap();
            let certs = (tls::read_certs(&made.ca).unwrap(), tls::read_certs(&made.files.cert).unwrap());
            let ca = tls::parse(&made.ca, &certs.0[0]).unwrap();
            let server = tls::parse(&made.files.cert, &certs.1[0]).unwrap();
            server.verify_signature(Some(ca.public_key())).expect(gone);
        }
    }

    #[test]
    fn a_file_that_is_no_certificate_is_named_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let made = development(dir.path(), TODAY).unwrap();
        std::fs::write(&made.ca, "my own notes").unwrap();
        let error = development(dir.path(), TODAY).unwrap_err().to_string();
        assert!(error.contains("dev-ca.pem: there is no certificate"), "{error}");
        assert_eq!(read(&made.ca), "my own notes");
    }
}
