//! Who this node is for the others, and whom it believes: TLS 1.3, certificates on both sides, from the nodes' own authority.
//!
//! Whoever has a certificate from that authority is a node: it is believed whom it admitted to a group. So the authority is made
//! for this alone, and the web's are not asked. A node that is dialled has to be the one at that address, by its certificate's
//! names; one that dials may be any.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::uri::Authority;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use sha2::{Digest as _, Sha256};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::net::tls::{self, Certificate, TlsError};
use crate::time::Clock;

use super::Settings;

/// The protocol inside, in its first version. A node that speaks another one gets no connection.
pub(super) const PROTOCOL: &[u8] = b"heliostat-cluster/1";

/// What the files of [`Settings`] hold, in a digest.
type Contents = [u8; 32];

/// How long before its end a certificate is spoken of.
const ENDS_SOON: Duration = Duration::from_secs(14 * 86_400);
/// How long it is not spoken of again.
const SAID_EVERY: Duration = Duration::from_secs(86_400);

/// See the top of this file.
#[derive(Debug)]
pub(super) struct Identity {
    settings: Settings,
    clock: Clock,
    ends: ArcSwap<Ends>,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    presented: Contents,
    /// What was found unusable and has been reported.
    reported: Option<Contents>,
    /// Until when nothing more is said about the end of what is presented, by the monotonic clock.
    quiet_until: Duration,
}

/// What both ends of a link are made with.
struct Ends {
    accepts: TlsAcceptor,
    connects: TlsConnector,
    /// What they present.
    presented: Arc<tls::Identity>,
}

impl std::fmt::Debug for Ends {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ends")
    }
}

impl Identity {
    pub(super) fn open(settings: Settings, clock: Clock) -> Result<Self, TlsError> {
        // In this order, so that what changes in between is seen by the next look.
        let presented = contents(&settings);
        let ends = ArcSwap::from_pointee(ends(&settings, clock)?);
        let seen = Seen { presented, reported: None, quiet_until: Duration::ZERO };
        Ok(Self { settings, clock, ends, seen: Mutex::new(seen) })
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.ends.load().accepts.clone()
    }

    pub(super) fn connector(&self) -> TlsConnector {
        self.ends.load().connects.clone()
    }

    /// Reads the files again; what is connected stays connected. Says whether they held something new.
    ///
    /// # Errors
    /// [`TlsError`] when that cannot be used, once for the same.
    pub(super) fn look(&self) -> Result<bool, TlsError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = contents(&self.settings);
        if now == seen.presented {
            seen.reported = None;
            return Ok(false);
        }
        if seen.reported == Some(now) {
            return Ok(false);
        }
        match ends(&self.settings, self.clock) {
            Ok(ends) => {
                self.ends.store(Arc::new(ends));
                *seen = Seen { presented: now, reported: None, quiet_until: Duration::ZERO };
                Ok(true)
            }
            Err(error) => {
                seen.reported = Some(now);
                Err(error)
            }
        }
    }

    /// What there is to say about the end of the certificate that is presented, with its file: once a day at most, from two weeks
    /// before. Nothing in the files changes when it ends, and other nodes name no files of this one.
    pub(super) fn ends_soon(&self) -> Option<String> {
        let now = self.clock.now();
        let ends = self.ends.load();
        let left = Duration::from_secs(ends.presented.not_after_s).saturating_sub(Duration::from_millis(now.wall_ms));
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if left >= ENDS_SOON || now.monotonic < seen.quiet_until {
            return None;
        }
        seen.quiet_until = now.monotonic + SAID_EVERY;
        let (file, at) = (self.settings.cert.cert.display(), ends.presented.not_after());
        Some(if left.is_zero() { format!("{file} ended at {at}") } else { format!("{file} ends at {at}") })
    }
}

fn contents(settings: &Settings) -> Contents {
    let Settings { cert: tls::CertFiles { cert, key }, authority, .. } = settings;
    let mut held = Sha256::new();
    for file in [cert, key, authority] {
        held.update(
            tls::read_pem(file).map_or_else(|error| Sha256::digest(error.to_string()), |text| Sha256::digest(&*text)),
        );
    }
    held.finalize().into()
}

fn ends(settings: &Settings, clock: Clock) -> Result<Ends, TlsError> {
    let certificate = Certificate::load(&settings.cert)?;
    let mut roots = RootCertStore::empty();
    for root in tls::read_certs(&settings.authority)? {
        roots.add(root).map_err(|error| TlsError::content(&settings.authority, error))?;
    }
    let roots = Arc::new(roots);
    fits(settings, &certificate, &roots, clock)?;

    let nodes = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), tls::provider())
        .build()
        .map_err(|error| TlsError::content(&settings.authority, error))?;
    let ours = Arc::new(SingleCertAndKey::from(Arc::clone(certificate.key())));
    let mut accepts = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::SetUp)?
        .with_client_cert_verifier(nodes)
        .with_cert_resolver(Arc::<SingleCertAndKey>::clone(&ours));
    accepts.alpn_protocols = vec![PROTOCOL.to_vec()];
    // Links are few and last; a ticket would let in who would not be believed any more.
    accepts.session_storage = Arc::new(NoServerSessionStorage {});
    accepts.send_tls13_tickets = 0;
    let mut connects = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::SetUp)?
        .with_root_certificates(roots)
        .with_client_cert_resolver(ours);
    connects.alpn_protocols = vec![PROTOCOL.to_vec()];
    connects.resumption = rustls::client::Resumption::disabled();
    let presented = Arc::clone(certificate.identity());
    Ok(Ends { accepts: Arc::new(accepts).into(), connects: Arc::new(connects).into(), presented })
}

/// Whether other nodes will take this certificate for ours: found out here, and not by each of them.
fn fits(
    settings: &Settings,
    certificate: &Certificate,
    roots: &Arc<RootCertStore>,
    clock: Clock,
) -> Result<(), TlsError> {
    let file = &settings.cert.cert;
    let name = name_of(&settings.address)
        .ok_or_else(|| TlsError::content(file, format_args!("{} is no host and port", settings.address)))?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), tls::provider())
        .build()
        .map_err(|error| TlsError::content(&settings.authority, error))?;
    let now = UnixTime::since_unix_epoch(Duration::from_millis(clock.now().wall_ms));
    let [first, others @ ..] = certificate.key().cert.as_slice() else {
        return Err(TlsError::content(file, "no certificate"));
    };
    verifier.verify_server_cert(first, others, &name, &[], now).map(drop).map_err(|error| {
        let (authority, address) = (settings.authority.display(), &settings.address);
        TlsError::content(file, format_args!("not from the authority {authority}, or not for {address}: {error}"))
    })
}

/// What the certificate of the node at this address has to be for.
pub(super) fn name_of(address: &str) -> Option<ServerName<'static>> {
    let authority: Authority = address.parse().ok()?;
    let host = authority.host();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    ServerName::try_from(host.to_owned()).ok()
}

/// What a node's certificate calls it, for logs: its common name. Only the authority can have put something there.
pub(super) fn node_name(certs: Option<&[CertificateDer<'_>]>) -> String {
    let first = certs.and_then(<[_]>::first);
    let parsed = first.and_then(|der| tls::parse(Path::new("a node's certificate"), der).ok());
    let name = parsed.as_ref().and_then(|cert| cert.subject().iter_common_name().next()?.as_str().ok());
    name.unwrap_or("without a name").to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::{Pace, authority::Authority};
    use super::*;

    #[test]
    fn what_is_shown_to_other_nodes_is_what_is_in_the_files_and_can_be_used() {
        let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let authority = Authority::open(dir.path(), clock.now().wall_ms).unwrap();
        let hosts = ["127.0.0.1".to_owned()];
        let cert = authority.vouch("a", &hosts).unwrap();
        let (pace, address) = (Pace::default(), "127.0.0.1:7443".to_owned());
        let settings = Settings { cert: cert.clone(), authority: authority.certificate(), address, pace };
        let identity = Identity::open(settings, clock).unwrap();
        let shown = || Arc::clone(&identity.ends.load());
        let first = shown();
        assert!(!identity.look().unwrap());
        authority.vouch("a", &hosts).unwrap();
        assert!(identity.look().unwrap());
        let second = shown();
        assert!(!Arc::ptr_eq(&first, &second));
        // For another host, so that nobody would believe it: said once, and the present one stays.
        let good = [&cert.cert, &cert.key].map(|file| std::fs::read(file).unwrap());
        authority.vouch("a", &["127.0.0.2".to_owned()]).unwrap();
        let error = identity.look().unwrap_err().to_string();
        assert!(error.contains("a.pem") && error.contains("127.0.0.1"), "{error}");
        assert!(!identity.look().unwrap() && Arc::ptr_eq(&second, &shown()));
        // As it was before, and then broken again: that is news.
        let bad = std::fs::read(&cert.key).unwrap();
        std::fs::write(&cert.key, &good[1]).unwrap();
        identity.look().unwrap_err();
        std::fs::write(&cert.cert, &good[0]).unwrap();
        assert!(!identity.look().unwrap());
        std::fs::write(&cert.key, bad).unwrap();
        identity.look().unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_certificate_is_told_in_time_and_once_a_day() {
        let day = Duration::from_secs(86_400);
        let dir = tempfile::tempdir().unwrap();
        let hosts = ["127.0.0.1".to_owned()];
        let authority = Authority::open(dir.path(), Clock::system().now().wall_ms).unwrap();
        let cert = authority.vouch("a", &hosts).unwrap();
        let end = Certificate::load(&cert).unwrap().identity().not_after_s;
        let clock = Clock::following((end - 15 * day.as_secs()) * 1_000);
        let (pace, address) = (Pace::default(), "127.0.0.1:7443".to_owned());
        let settings = Settings { cert, authority: authority.certificate(), address, pace };
        let identity = Identity::open(settings, clock).unwrap();
        assert_eq!(identity.ends_soon(), None, "too early");
        tokio::time::advance(2 * day).await;
        let said = identity.ends_soon().unwrap();
        assert!(said.contains("a.pem ends at 20"), "{said}");
        tokio::time::advance(day / 2).await;
        assert_eq!(identity.ends_soon(), None, "said today");
        tokio::time::advance(20 * day).await;
        assert!(!identity.look().unwrap(), "the files are what they were");
        let said = identity.ends_soon().unwrap();
        assert!(said.contains("a.pem ended at 20"), "{said}");
        // With another one there is nothing to say.
        let authority = Authority::open(dir.path(), clock.now().wall_ms).unwrap();
        authority.vouch("a", &hosts).unwrap();
        assert!(identity.look().unwrap());
        assert_eq!(identity.ends_soon(), None);
    }
}
