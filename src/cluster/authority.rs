//! The authority of a cluster's nodes, in a directory: its certificate, its key, and those of the nodes.
//!
//! Only the certificate goes to the nodes with theirs; the key stays where nodes are added, and whoever has it can be a node. Of each
//! pair the certificate is written last. A node that is made again gets a new key; as it is the authority that counts, no
//! other node has to hear of that.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use crate::files;
use crate::net::development::{params, write};
use crate::net::tls::{self, CertFiles, TlsError};

/// What its own files are called; no node may be.
pub const AUTHORITY: &str = "authority";
/// How long the authority lasts.
const AUTHORITY_DAYS: u32 = 3_650;
/// How long a node's certificate lasts: long enough not to be a chore, short enough to be practised.
const NODE_DAYS: u32 = 730;

/// Vouches for nodes.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    not_after: Duration,
    now: Duration,
}

impl Authority {
    /// The authority in `dir`, which is made if there is none.
    ///
    /// # Errors
    /// [`TlsError`] names the file that cannot be read, written or understood, or that is missing beside the other.
    pub fn open(dir: &Path, now_wall_ms: u64) -> Result<Self, TlsError> {
        let now = Duration::from_millis(now_wall_ms);
        files::make_private_dir(dir).map_err(|source| TlsError::file(dir, source))?;
        let (cert, key) = (Self::certificate_in(dir), Self::key_in(dir));
        // Never made anew beside what is there: nodes that trust it would not trust the next.
        if !cert.exists() && !key.exists() {
            let mut params = params("Heliostat nodes", now, AUTHORITY_DAYS);
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            let pair = KeyPair::generate()?;
            let made = params.self_signed(&pair)?;
            write(&key, &pair.serialize_pem(), true)?;
            write(&cert, &made.pem(), false)?;
        }
        let text = |file: &Path| std::fs::read_to_string(file).map_err(|source| TlsError::file(file, source));
        let signing = KeyPair::from_pem(&text(&key)?).map_err(|error| TlsError::content(&key, error))?;
        let ders = tls::read_certs(&cert)?;
        let der = ders.first().ok_or_else(|| TlsError::content(&cert, "no certificate"))?;
        let not_after = tls::parse(&cert, der)?.validity().not_after.timestamp();
        let not_after = Duration::from_secs(u64::try_from(not_after).unwrap_or_default());
        if not_after < now {
            return Err(TlsError::content(&cert, "expired: nodes need a new authority, made in another directory"));
        }
        let issuer =
            Issuer::from_ca_cert_pem(&text(&cert)?, signing).map_err(|error| TlsError::content(&cert, error))?;
        Ok(Self { dir: dir.to_owned(), issuer, not_after, now })
    }

    /// Its certificate, which every node needs.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        Self::certificate_in(&self.dir)
    }

    /// Its key, which none does.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        Self::key_in(&self.dir)
    }

    fn certificate_in(dir: &Path) -> PathBuf {
        dir.join(format!("{AUTHORITY}.pem"))
    }

    fn key_in(dir: &Path) -> PathBuf {
        dir.join(format!("{AUTHORITY}.key"))
    }

    /// Makes a key and a certificate for the node with this name, reached at these hosts: names or IP addresses. The name is a part
    /// of a file's.
    ///
    /// # Errors
    /// [`TlsError`] when a host is none, or a file cannot be written.
    pub fn vouch(&self, name: &str, hosts: &[String]) -> Result<CertFiles, TlsError> {
        let files = CertFiles { cert: self.dir.join(format!("{name}.pem")), key: self.dir.join(format!("{name}.key")) };
        let mut params = params(name, self.now, NODE_DAYS);
        params.not_after = params.not_after.min(rcgen::date_time_ymd(1970, 1, 1) + self.not_after);
        params.subject_alt_names = CertificateParams::new(hosts)?.subject_alt_names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let pair = KeyPair::generate()?;
        let made = params.signed_by(&pair, &self.issuer)?;
        write(&files.key, &pair.serialize_pem(), true)?;
        write(&files.cert, &made.pem(), false)?;
        Ok(files)
    }
}
