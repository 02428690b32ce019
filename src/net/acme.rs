//! A certificate by ACME (RFC 8555), with TLS-ALPN-01 (RFC 8737): the authority connects to this very door and asks for a
//! certificate that only who holds the account can make. So one port is enough, and nothing but this process is involved.
//!
//! `instant-acme` speaks the protocol. It is used without its HTTP client, whose dependencies are many, and `rustls-acme`,
//! which would do more, was not taken: it runs a second reactor with threads of its own beside tokio and reads its own clock.
//!
//! What was issued is in the cache before it is presented, and the account before anything is ordered: authorities count
//! certificates per week, so a server that restarts in a loop must not order in a loop. Key and chain are one file, and so
//! always fit together. A renewal takes the same key again, or clients that know its pin would be shut out every few weeks; who
//! wants another removes the file. Each authority has its own place in the cache; a staging certificate is never presented in production.
//!
//! Until the first certificate is there, handshakes fail, except for the authority's. A renewal that fails changes nothing:
//! the present certificate stays until it expires, and is renewed when a third of its life is left.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Uri};
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, BodyWrapper, BytesResponse, ChallengeType, HttpClient,
    Identifier, LetsEncrypt, NewAccount, NewOrder, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::pki_types::{DnsName, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};

use super::https::Https;
use super::tls::{self, CertFiles, Certificate, Identity, Tls, TlsError};
use super::watch;
use crate::files;
use crate::metrics::{self, Outcome};
use crate::time::Clock;

/// How long the authority may take to look, and to issue.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often an order is begun when the authority refuses nonces, before it counts as failed.
const ORDERS: u32 = 10;
/// First pause after a failure; doubled with each that follows, up to [`PAUSE_MAX`]. Let's Encrypt stops looking for an hour
/// after five failures within one: this makes five.
const PAUSE: Duration = Duration::from_secs(120);
const PAUSE_MAX: Duration = Duration::from_secs(6 * 3_600);
/// The longest sleep: the wall clock may jump, and suspended machines count no time.
const LOOK_EVERY: Duration = Duration::from_secs(3_600);

/// What is ordered, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The authority's directory.
    pub directory: String,
    /// Who vouches for the authority's own server, PEM; the system's roots when not set.
    pub ca: Option<PathBuf>,
    /// Where the authority reaches the operator: `mailto:` addresses.
    pub contact: Vec<String>,
    /// What the certificate is for; see [`domain`].
    pub domains: Vec<String>,
    /// Where account and certificate are kept.
    pub cache: PathBuf,
}

/// The directory of Let's Encrypt: the real one, or the one to try things out, whose certificates nobody trusts.
#[must_use]
pub const fn lets_encrypt(staging: bool) -> &'static str {
    if staging { LetsEncrypt::Staging.url() } else { LetsEncrypt::Production.url() }
}

/// A domain that a certificate can be ordered for, in lower case.
///
/// # Errors
/// The reason why not.
pub fn domain(text: &str) -> Result<String, &'static str> {
    if text.contains('*') {
        Err("a wildcard cannot be shown to be ours by TLS-ALPN-01")
    } else if DnsName::try_from(text).is_ok() && text.parse::<std::net::IpAddr>().is_err() {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("not a domain name")
    }
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    /// The authority did not do what was asked, or could not be asked.
    #[error("{0}")]
    Authority(#[from] instant_acme::Error),
    /// The authority looked and did not see that a domain is ours.
    #[error("{domain} was not shown to be ours: {reason}")]
    Refused {
        /// Which domain.
        domain: String,
        /// What the authority says.
        reason: String,
    },
    /// The authority does not look the way we can show.
    #[error("{0} cannot be shown to be ours by TLS-ALPN-01: the authority does not offer it")]
    NotOffered(String),
    /// The order came to nothing.
    #[error("the authority gave up the order: it is {0:?}")]
    Order(OrderStatus),
    /// Something in the cache cannot be read or written, or what was issued cannot be used.
    #[error(transparent)]
    Kept(#[from] TlsError),
}

/// Orders certificates and keeps what is presented young.
#[derive(Debug)]
pub struct Acme {
    settings: Settings,
    account_file: PathBuf,
    /// Key and chain.
    certificate_file: PathBuf,
    https: Https,
    tls: Tls,
    clock: Clock,
}

impl Acme {
    /// Presents what is in the cache, if there is something. Asks nobody.
    ///
    /// # Errors
    /// [`TlsError`] when the cache cannot be used, or nobody could vouch for the authority.
    pub fn open(settings: Settings, clock: Clock) -> Result<Self, TlsError> {
        let place = settings.cache.join(place(&settings.directory));
        files::make_private_dir(&place).map_err(|source| TlsError::file(&place, source))?;
        let https = Https::trusting(settings.ca.as_deref())?;
        let (account_file, certificate_file) = (place.join("account.json"), place.join("certificate.pem"));
        let tls = Tls::without_certificate()?;
        if certificate_file.try_exists().map_err(|source| TlsError::file(&certificate_file, source))? {
            match Certificate::load(&one_file(&certificate_file)) {
                Ok(certificate) => drop(tls.present(certificate)),
                Err(error @ TlsError::File { .. }) => return Err(error),
                Err(error) => tracing::warn!(%error, "the cached certificate cannot be used; a new one is ordered"),
            }
        }
        Ok(Self { settings, account_file, certificate_file, https, tls, clock })
    }

    /// What presents the certificate.
    #[must_use]
    pub const fn tls(&self) -> &Tls {
        &self.tls
    }

    /// Orders whenever it is time to, for ever, and logs what became of it.
    pub async fn run(self) {
        let mut pause = PAUSE;
        loop {
            let wait = self.due_in();
            if !wait.is_zero() {
                tokio::time::sleep(wait.min(LOOK_EVERY)).await;
                continue;
            }
            match self.renew().await {
                Ok(()) => {
                    metrics::get().reloads.of(Outcome::Done).increment(1);
                    pause = PAUSE;
                }
                Err(error) => {
                    metrics::get().reloads.of(Outcome::Failed).increment(1);
                    let (domains, again_in) = (&self.settings.domains, humantime::format_duration(pause));
                    tracing::warn!(%error, ?domains, %again_in, "no certificate could be ordered");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    /// Time until a certificate is to be ordered.
    fn due_in(&self) -> Duration {
        due_in(self.tls.identity().as_deref(), &self.settings.domains, self.clock.now().wall_ms)
    }

    /// Orders a certificate, keeps it, and presents it.
    ///
    /// # Errors
    /// [`AcmeError`] says what failed; what was presented still is.
    pub async fn renew(&self) -> Result<(), AcmeError> {
        let pem = self.order_in_time().await?;
        let files = one_file(&self.certificate_file);
        let certificate = Certificate::from_pem(&files, pem.as_bytes(), pem.as_bytes())?;
        // A certificate that cannot be kept can be presented all the same, until the next start.
        let kept = files::write_whole(&self.certificate_file, &pem, true);
        let identity = Arc::clone(certificate.identity());
        let before = self.tls.present(certificate);
        watch::log_replaced(&identity, before.is_none_or(|before| before.pin != identity.pin));
        Ok(kept.map_err(|source| TlsError::file(&self.certificate_file, source))?)
    }

    /// As [`Self::order`]. An authority may refuse a nonce at any time, which says nothing about the request (RFC 8555, 6.5);
    /// the library sends a request three times, and an authority that forgets its nonces needs more: a new order then.
    async fn order_in_time(&self) -> Result<zeroize::Zeroizing<String>, AcmeError> {
        for _ in 1..ORDERS {
            match self.order().await {
                Err(AcmeError::Authority(error)) if is_problem(&error, "badNonce") => {
                    tracing::debug!(%error, "the order is begun again");
                }
                other => return other,
            }
        }
        self.order().await
    }

    /// A key and a new chain for it, PEM.
    async fn order(&self) -> Result<zeroize::Zeroizing<String>, AcmeError> {
        let account = self.account().await?;
        let identifiers: Vec<_> = self.settings.domains.iter().cloned().map(Identifier::Dns).collect();
        let mut order = account.new_order(&NewOrder::new(&identifiers)).await.map_err(|error| self.no_order(error))?;
        let retries = RetryPolicy::new().timeout(PATIENCE);

        let mut answered = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            let domain = authorization.identifier().to_string();
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let mut challenge = authorization
                .challenge(ChallengeType::TlsAlpn01)
                .ok_or_else(|| AcmeError::NotOffered(domain.clone()))?;
            let shown = shown(&domain, challenge.key_authorization().digest().as_ref())?;
            answered.push(self.tls.answer(&domain, shown));
            challenge.set_ready().await?;
        }
        let failed = match order.poll_ready(&retries).await {
            Ok(OrderStatus::Ready) => None,
            Ok(other) => Some(AcmeError::Order(other)),
            Err(error) => Some(error.into()),
        };
        if let Some(error) = failed {
            return Err(refused(&mut order).await.unwrap_or(error));
        }
        drop(answered);

        let key = self.key()?;
        let mut params = CertificateParams::new(self.settings.domains.clone()).map_err(TlsError::from)?;
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key).map_err(TlsError::from)?;
        order.finalize_csr(request.der()).await?;
        let chain = order.poll_certificate(&retries).await?;
        let mut pem = zeroize::Zeroizing::new(key.serialize_pem());
        pem.push_str(&chain);
        Ok(pem)
    }

    /// The key of the cached certificate, or a new one.
    fn key(&self) -> Result<KeyPair, TlsError> {
        let cached = tls::read_pem(&self.certificate_file).ok();
        let cached = cached.and_then(|pem| KeyPair::from_pem(std::str::from_utf8(&pem).ok()?).ok());
        Ok(cached.map_or_else(KeyPair::generate, Ok)?)
    }

    /// The account of the cache, or a new one, which is in the cache then.
    async fn account(&self) -> Result<Account, AcmeError> {
        let builder = Account::builder_with_http(Box::new(self.https.clone()));
        let kept = match std::fs::read(&self.account_file) {
            Ok(kept) => Some(kept),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => return Err(TlsError::file(&self.account_file, source).into()),
        };
        if let Some(kept) = kept {
            let credentials: AccountCredentials = serde_json::from_slice(&zeroize::Zeroizing::new(kept))
                .map_err(|error| TlsError::content(&self.account_file, error))?;
            return Ok(builder.from_credentials(credentials).await?);
        }
        let contact: Vec<&str> = self.settings.contact.iter().map(String::as_str).collect();
        let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let (account, credentials) = builder.create(&new, self.settings.directory.clone(), None).await?;
        let text = serde_json::to_string(&credentials).map_err(instant_acme::Error::from)?;
        files::write_whole(&self.account_file, &text, true)
            .map_err(|source| TlsError::file(&self.account_file, source))?;
        Ok(account)
    }

    /// An account that the authority does not know any more is forgotten, so that the next attempt makes a new one.
    fn no_order(&self, error: instant_acme::Error) -> AcmeError {
        if is_problem(&error, "accountDoesNotExist")
            && let Err(source) = std::fs::remove_file(&self.account_file)
        {
            return TlsError::file(&self.account_file, source).into();
        }
        error.into()
    }
}

/// Whether the authority names this problem: RFC 8555, 6.7.
fn is_problem(error: &instant_acme::Error, name: &str) -> bool {
    let instant_acme::Error::Api(problem) = error else { return false };
    problem.r#type.as_deref().and_then(|urn| urn.strip_prefix("urn:ietf:params:acme:error:")) == Some(name)
}

/// What the authority says about the domain that it refused.
async fn refused(order: &mut instant_acme::Order) -> Option<AcmeError> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.ok()?;
        authorization.refresh().await.ok()?;
        let domain = authorization.identifier().to_string();
        if let Some(error) = authorization.challenges.iter().find_map(|challenge| challenge.error.as_ref()) {
            let reason = error.detail.clone().unwrap_or_else(|| error.to_string());
            return Some(AcmeError::Refused { domain, reason });
        }
    }
    None
}

/// Time until a certificate is to be ordered: none when there is no certificate or it lacks a domain, else until a third of
/// its life is left.
fn due_in(identity: Option<&Identity>, domains: &[String], now_wall_ms: u64) -> Duration {
    let Some(identity) = identity.filter(|identity| domains.iter().all(|domain| identity.names.contains(domain)))
    else {
        return Duration::ZERO;
    };
    let life = identity.not_after_s.saturating_sub(identity.not_before_s);
    let due_ms = identity.not_after_s.saturating_sub(life / 3).saturating_mul(1_000);
    Duration::from_millis(due_ms.saturating_sub(now_wall_ms))
}

/// What shows that a domain is ours: RFC 8737, 3.
fn shown(domain: &str, digest: &[u8]) -> Result<CertifiedKey, TlsError> {
    let mut params = CertificateParams::new([domain.to_owned()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let pair = KeyPair::generate()?;
    let made = params.self_signed(&pair)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
    let key = tls::provider().key_provider.load_private_key(key).map_err(TlsError::SetUp)?;
    // Not compared with the key, which was made for it a moment ago: rustls reads no certificate with this extension.
    Ok(CertifiedKey::new(vec![made.der().clone()], key))
}

/// Where an authority's things are in the cache: its host for people, a digest for certainty.
fn place(directory: &str) -> String {
    let host = directory.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_owned)).unwrap_or_default();
    let host: String = host.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let digest = hex::encode(Sha256::digest(directory));
    format!("{host}-{}", digest.get(..8).unwrap_or_default())
}

fn one_file(file: &std::path::Path) -> CertFiles {
    CertFiles { cert: file.to_owned(), key: file.to_owned() }
}

impl Settings {
    /// Whether the certificates of the authority's own can be used, if there are any.
    ///
    /// # Errors
    /// [`TlsError`] names the file and what is wrong with it.
    pub fn check(&self) -> Result<(), TlsError> {
        self.ca.as_deref().map_or(Ok(()), |ca| Https::trusting(Some(ca)).map(drop))
    }
}

impl HttpClient for Https {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let this = self.clone();
        Box::pin(async move {
            let (parts, body) = this.exchange(request).await.map_err(instant_acme::Error::Other)?.into_parts();
            Ok(BytesResponse { parts, body: Box::new(body) })
        })
    }
}

#[cfg(test)]
mod tests {
    use rustls::ClientConfig;
    use rustls::pki_types::{CertificateDer, ServerName};
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream;

    use super::super::listen;
    use super::super::tasks::Tasks;
    use super::super::tls::tests::{TODAY, dev_box};
    use super::*;

    fn settings(cache: &std::path::Path, ca: Option<PathBuf>) -> Settings {
        Settings {
            directory: "https://127.0.0.1:1/directory".to_owned(),
            ca,
            contact: vec!["mailto:admin@example.org".to_owned()],
            domains: vec!["chat.example.org".to_owned()],
            cache: cache.to_owned(),
        }
    }

    /// Somebody who vouches for nobody in these tests.
    fn some_ca(dir: &std::path::Path) -> PathBuf {
        super::super::development::development(dir, TODAY).unwrap().ca
    }

    #[test]
    fn a_certificate_is_ordered_when_a_third_of_its_life_is_left_or_a_domain_is_missing() {
        const DAY: u64 = 86_400;
        let identity = Identity {
            pin: String::new(),
            names: vec!["a.example.org".to_owned(), "b.example.org".to_owned()],
            not_before_s: 100 * DAY,
            not_after_s: 190 * DAY,
        };
        let due = |domains: &[&str], day: u64| {
            let domains: Vec<String> = domains.iter().map(|&domain| domain.to_owned()).collect();
            due_in(Some(&identity), &domains, day * DAY * 1_000).as_secs() / DAY
        };
        assert_eq!(due(&["a.example.org"], 100), 60);
        assert_eq!(due(&["b.example.org", "a.example.org"], 159), 1);
        assert_eq!(due(&["a.example.org"], 161), 0);
        assert_eq!(due(&["a.example.org", "c.example.org"], 100), 0);
        assert_eq!(due_in(None, &[], 0), Duration::ZERO);
    }

    #[test]
    fn authorities_have_places_of_their_own() {
        let [real, staging] = [false, true].map(|staging| place(lets_encrypt(staging)));
        assert!(real.starts_with("acme-v02.api.letsencrypt.org-"), "{real}");
        assert!(staging.starts_with("acme-staging-v02.api.letsencrypt.org-"), "{staging}");
        assert_ne!(place("https://h/a"), place("https://h/b"));
        assert!(!place("https://[::1]:4/../x").contains(['/', ':']));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_in_the_cache_is_presented_without_asking_and_rubbish_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let ca = some_ca(&dir.path().join("ca"));
        let settings = settings(&dir.path().join("cache"), Some(ca));
        let open = || Acme::open(settings.clone(), Clock::following(TODAY)).unwrap();
        let acme = open();
        assert_eq!((acme.tls().identity(), acme.due_in()), (None, Duration::ZERO), "the first start");
        let pair = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(settings.domains.clone()).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 11, 1);
        params.not_after = rcgen::date_time_ymd(2027, 1, 30);
        let pem = pair.serialize_pem() + &params.self_signed(&pair).unwrap().pem();
        files::write_whole(&acme.certificate_file, &pem, true).unwrap();
        let acme = open();
        assert_eq!(acme.tls().identity().unwrap().names, ["chat.example.org"]);
        assert_eq!(acme.due_in(), Duration::from_secs(40 * 86_400));
        std::fs::write(&acme.certificate_file, &pem[..pem.len() - 99]).unwrap();
        assert_eq!(open().tls().identity(), None);
    }

    #[tokio::test]
    async fn an_authority_that_cannot_be_reached_leaves_everything_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(&dir.path().join("cache"), Some(some_ca(&dir.path().join("ca"))));
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        settings.directory = format!("https://{nobody}/directory");
        let acme = Acme::open(settings.clone(), Clock::following(TODAY)).unwrap();
        let error = acme.renew().await.unwrap_err().to_string();
        assert!(error.contains(&nobody.to_string()) && error.contains("refused"), "{error}");
        assert!(!acme.account_file.exists() && acme.tls().identity().is_none());
        // Somebody else answers: with a certificate that the configured authority did not sign.
        let stranger = dev_box();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        settings.directory = format!("https://{}/directory", listener.local_addr().unwrap());
        let tasks = Tasks::new();
        tokio::spawn(listen::serve(listener, Some(stranger.tls).into(), tasks.clone(), async |_, _| {}));
        let acme = Acme::open(settings, Clock::following(TODAY)).unwrap();
        let error = acme.renew().await.unwrap_err().to_string();
        assert!(error.contains("invalid peer certificate"), "{error}");
        tasks.finish(Duration::from_secs(5)).await.unwrap();
    }

    #[test]
    fn a_cache_that_cannot_be_and_an_authority_that_nobody_vouches_for_are_said_at_start() {
        let dir = tempfile::tempdir().unwrap();
        let ca = some_ca(&dir.path().join("ca"));
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = Acme::open(settings(&file, Some(ca)), Clock::following(TODAY)).unwrap_err().to_string();
        assert!(error.contains("file/127.0.0.1-"), "{error}");
        let error = Acme::open(settings(dir.path(), Some(file)), Clock::following(TODAY)).unwrap_err().to_string();
        assert!(error.contains("file: there is no certificate"), "{error}");
    }

    /// Who validates: offers these protocols, trusts anybody, and says what it saw.
    async fn validates(tls: &Tls, name: &str, alpn: &[&[u8]]) -> Result<TlsStream<tokio::io::DuplexStream>, String> {
        #[derive(Debug)]
        struct Anybody;
        impl rustls::client::danger::ServerCertVerifier for Anybody {
            fn verify_server_cert(
                &self,
                _: &CertificateDer<'_>,
                _: &[CertificateDer<'_>],
                _: &ServerName<'_>,
                _: &[u8],
                _: rustls::pki_types::UnixTime,
            ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
                Ok(rustls::client::danger::ServerCertVerified::assertion())
            }
            fn verify_tls12_signature(
                &self,
                _: &[u8],
                _: &CertificateDer<'_>,
                _: &rustls::DigitallySignedStruct,
            ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
                Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
            }
            fn verify_tls13_signature(
                &self,
                _: &[u8],
                _: &CertificateDer<'_>,
                _: &rustls::DigitallySignedStruct,
            ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
                Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
            }
            fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
                tls::provider().signature_verification_algorithms.supported_schemes()
            }
        }
        let mut config = ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody))
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        let (near, far) = tokio::io::duplex(16 * 1_024);
        let client = TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let (server, client) = tokio::join!(tls.acceptor().accept(far), client.connect(name, near));
        server.map_err(|error| error.to_string())?;
        client.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn only_who_asks_for_the_proof_and_nothing_else_sees_it_and_only_while_it_is_asked_for() {
        let tls = Tls::without_certificate().unwrap();
        let digest = [0x5a; 32];
        let answered = tls.answer("Chat.Example.Org", shown("chat.example.org", &digest).unwrap());
        let acme: &[&[u8]] = &[tls::ACME_TLS_1];
        let stream = validates(&tls, "chat.example.org", acme).await.unwrap();
        let connection = stream.get_ref().1;
        assert_eq!(connection.alpn_protocol(), Some(tls::ACME_TLS_1));
        let cert = &connection.peer_certificates().unwrap()[0];
        let cert = tls::parse("it".as_ref(), cert).unwrap();
        let proof = cert.extensions().iter().find(|it| it.oid.to_id_string() == "1.3.6.1.5.5.7.1.31").unwrap();
        assert!(proof.critical, "RFC 8737, 3");
        assert_eq!(proof.value, [&[0x04, 0x20], &digest[..]].concat(), "an octet string");
        assert_eq!(cert.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);

        validates(&tls, "other.example.org", acme).await.unwrap_err();
        validates(&tls, "chat.example.org", &[]).await.unwrap_err();
        validates(&tls, "chat.example.org", &[b"http/1.1", tls::ACME_TLS_1]).await.unwrap_err();
        drop(answered);
        validates(&tls, "chat.example.org", acme).await.unwrap_err();
    }
}
