//! Wakes phones by Firebase Cloud Messaging, HTTP v1 (spec 4.14), with the feature `fcm`.
//!
//! A service account signs a statement about itself (RS256, by rustls's own provider: no second library of cryptography) and gets
//! a token for an hour. Wakes stand in a bounded line, and a few are on their way at a time. Nothing is promised about them: a
//! phone that is not woken finds everything when it comes by itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Full;
use rustls::SignatureScheme;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::sign::SigningKey;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Lost, PushHook, Wake};
use crate::metrics::{self, Push};
use crate::net::https::{AnyError, Https};
use crate::net::tls::TlsError;
use crate::time::Clock;

/// Where Google takes what is to be pushed.
pub const SERVICE: &str = "https://fcm.googleapis.com";
const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";
/// Wakes that wait to be sent, at most.
const LINE_MAX: usize = 4_096;
/// Wakes that are on their way at a time.
const UNDER_WAY_MAX: usize = 8;
/// How long is waited before each further attempt.
const AGAIN_AFTER: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(30)];
/// How long a statement is good for, at most.
const STATEMENT: Duration = Duration::from_secs(3_600);
/// A token that is good for less than that is not used any more.
const SPARE: Duration = Duration::from_secs(60);

/// Where pushes go, and in whose name.
#[derive(Debug, Clone)]
pub struct FcmSettings {
    /// The key file of the service account, JSON as Google gives it out.
    pub account: PathBuf,
    /// The push service: [`SERVICE`].
    pub service: String,
    /// Who vouches for it, PEM; the system's roots when not set.
    pub ca: Option<PathBuf>,
    /// Whether a device that it does not know any more has to log in again.
    pub forget_unreachable: bool,
}

/// Why there is no push.
#[derive(Debug, thiserror::Error)]
pub enum BadFcm {
    /// The account's file cannot be read.
    #[error("{}: {source}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// It does not hold what it should.
    #[error("{}: {reason}", file.display())]
    Content {
        /// Which.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Nobody can be trusted.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What is used of the key file.
#[derive(Deserialize)]
struct KeyFile {
    project_id: String,
    private_key_id: String,
    private_key: String,
    client_email: String,
    token_uri: String,
}

/// A service account.
#[derive(Debug)]
struct Account {
    project: String,
    key_id: String,
    key: Arc<dyn SigningKey>,
    email: String,
    token_uri: String,
}

impl Account {
    fn read(file: &Path) -> Result<Self, BadFcm> {
        let text = std::fs::read_to_string(file).map_err(|source| BadFcm::File { file: file.to_owned(), source })?;
        let bad = |reason: String| BadFcm::Content { file: file.to_owned(), reason };
        // Without what it says, which may be a part of the key.
        let told = |error: serde_json::Error| format!("no service account: line {}", error.line());
        let KeyFile { project_id, private_key_id, private_key, client_email, token_uri } =
            serde_json::from_str(&text).map_err(|error| bad(told(error)))?;
        let key = PrivateKeyDer::from_pem_slice(private_key.as_bytes()).map_err(|_| bad("no private key".into()))?;
        let key = any_supported_type(&key).map_err(|error| bad(error.to_string()))?;
        if key.choose_scheme(&[SignatureScheme::RSA_PKCS1_SHA256]).is_none() {
            return Err(bad("the private key is none of RSA's".into()));
        }
        Ok(Self { project: project_id, key_id: private_key_id, key, email: client_email, token_uri })
    }

    /// What the account says of itself (RFC 7523).
    fn statement(&self, now_s: u64) -> Result<String, AnyError> {
        let head = json!({ "alg": "RS256", "typ": "JWT", "kid": self.key_id });
        let until_s = now_s + STATEMENT.as_secs();
        let claims = json!({ "iss": self.email, "scope": SCOPE, "aud": self.token_uri, "iat": now_s, "exp": until_s });
        let said = format!("{}.{}", BASE64.encode(head.to_string()), BASE64.encode(claims.to_string()));
        let signer = self.key.choose_scheme(&[SignatureScheme::RSA_PKCS1_SHA256]).ok_or("no key of RSA's")?;
        let signature = signer.sign(said.as_bytes())?;
        Ok(format!("{said}.{}", BASE64.encode(signature)))
    }
}

/// The hook: see the top of this file. What it takes is sent by [`Fcm::run`].
#[derive(Debug)]
pub struct FcmLine(mpsc::Sender<Wake>);

impl PushHook for FcmLine {
    fn wake(&self, wake: Wake) {
        if self.0.try_send(wake).is_err() {
            metrics::get().skynet_pushes.of(Push::Failed).increment(1);
            warn!("a device is not woken: too many wait for that");
        }
    }
}

/// What sends.
#[derive(Debug)]
pub struct Fcm {
    line: mpsc::Receiver<Wake>,
    sender: Sender,
}

struct Sender {
    account: Account,
    service: String,
    forget_unreachable: bool,
    https: Https,
    clock: Clock,
    token: Mutex<Option<Token>>,
}

/// Opens the service until then.
struct Token {
    bearer: String,
    until: Duration,
}

/// What the service says.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Sent,
    /// It knows no such device any more.
    Unregistered,
    /// The token is none any more.
    NotUs,
    /// Not now.
    Later(String),
    /// Never.
    Refused(String),
}

/// Without what opens the service.
impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sender({}, {:?})", self.service, self.account)
    }
}

impl Fcm {
    /// Reads the account. Nobody is asked for anything yet.
    ///
    /// # Errors
    /// [`BadFcm`] says what is wrong.
    pub fn open(settings: FcmSettings, clock: Clock) -> Result<(FcmLine, Self), BadFcm> {
        let FcmSettings { account, service, ca, forget_unreachable } = settings;
        let account = Account::read(&account)?;
        let https = Https::trusting(ca.as_deref())?;
        let (line, waiting) = mpsc::channel(LINE_MAX);
        let sender = Sender { account, service, forget_unreachable, https, clock, token: Mutex::default() };
        Ok((FcmLine(line), Self { line: waiting, sender }))
    }

    /// Sends until `stop`, and tells the room whom it cannot reach any more.
    pub async fn run(self, lost: Lost, stop: CancellationToken) {
        let Self { mut line, sender } = self;
        let (sender, places) = (Arc::new(sender), Arc::new(Semaphore::new(UNDER_WAY_MAX)));
        // Ends with the room, and what is under way with it.
        let mut under_way = tokio::task::JoinSet::new();
        while let Some(Some(wake)) = stop.run_until_cancelled(line.recv()).await {
            let Some(Ok(place)) = stop.run_until_cancelled(Arc::clone(&places).acquire_owned()).await else { return };
            let (sender, lost) = (Arc::clone(&sender), lost.clone());
            under_way.spawn(async move {
                let _place = place;
                let (result, gone) = match sender.wake(&wake).await {
                    Said::Sent => (Push::Sent, false),
                    Said::Unregistered => (Push::Unregistered, sender.forget_unreachable),
                    Said::NotUs => {
                        warn!("a device is not woken: the push service does not take our account's word");
                        (Push::Failed, false)
                    }
                    Said::Later(why) | Said::Refused(why) => {
                        warn!(%why, "a device is not woken");
                        (Push::Failed, false)
                    }
                };
                metrics::get().skynet_pushes.of(result).increment(1);
                if gone {
                    info!("a device that the push service does not know any more has to log in again");
                    lost.session(wake.session).await;
                }
            });
            while under_way.try_join_next().is_some() {}
        }
    }
}

impl Sender {
    async fn wake(&self, wake: &Wake) -> Said {
        let (mut again_after, mut with_another) = (AGAIN_AFTER.into_iter(), true);
        loop {
            let said = self.attempt(wake).await.unwrap_or_else(|error| Said::Later(error.to_string()));
            match said {
                Said::NotUs if std::mem::take(&mut with_another) => continue,
                Said::Later(_) => {}
                said => return said,
            }
            let Some(pause) = again_after.next() else { return said };
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt(&self, wake: &Wake) -> Result<Said, AnyError> {
        let bearer = self.bearer().await?;
        let message = json!({ "message": {
            "token": wake.push_token,
            "data": { "Action": "FetchMessages" },
            "android": { "priority": "HIGH" },
        } });
        let uri = format!("{}/v1/projects/{}/messages:send", self.service, self.account.project);
        let request = Request::post(uri)
            .header(header::AUTHORIZATION, format!("Bearer {bearer}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(message.to_string())))?;
        let answer = self.https.exchange(request).await?;
        let said = judge(answer.status(), answer.body());
        if said == Said::NotUs {
            // Unless somebody has another one by now.
            self.token.lock().await.take_if(|token| token.bearer == bearer);
        }
        Ok(said)
    }

    /// What opens the service: of those who need it, one asks, and the others wait.
    async fn bearer(&self) -> Result<String, AnyError> {
        #[derive(Deserialize)]
        struct Given {
            access_token: String,
            expires_in: u64,
        }
        let mut token = self.token.lock().await;
        let now = self.clock.now();
        if let Some(Token { bearer, .. }) = token.as_ref().filter(|token| now.monotonic + SPARE < token.until) {
            return Ok(bearer.clone());
        }
        let statement = self.account.statement(now.wall_ms / 1_000)?;
        // Both are of letters, digits and the like.
        let form = format!("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion={statement}");
        let request = Request::post(&self.account.token_uri)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::new(Bytes::from(form)))?;
        let answer = self.https.exchange(request).await?;
        if !answer.status().is_success() {
            return Err(format!("no token for the push service: {}", answer.status()).into());
        }
        let Given { access_token, expires_in } = serde_json::from_slice(answer.body())?;
        let until = now.monotonic.saturating_add(Duration::from_secs(expires_in));
        Ok(token.insert(Token { bearer: access_token, until }).bearer.clone())
    }
}

/// What an answer means. That a device is not registered is said in its details; not found alone may be the project.
fn judge(status: StatusCode, body: &[u8]) -> Said {
    let codes = || {
        let body: serde_json::Value = serde_json::from_slice(body).ok()?;
        let details = body.get("error")?.get("details")?.as_array()?.clone();
        Some(details.iter().any(|it| it.get("errorCode").is_some_and(|code| code == "UNREGISTERED")))
    };
    match status {
        status if status.is_success() => Said::Sent,
        StatusCode::UNAUTHORIZED => Said::NotUs,
        StatusCode::TOO_MANY_REQUESTS => Said::Later(status.to_string()),
        status if status.is_server_error() => Said::Later(status.to_string()),
        _ if codes().unwrap_or(false) => Said::Unregistered,
        status => Said::Refused(status.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use axum::Json;
    use axum::extract::Request;
    use axum::response::IntoResponse as _;
    use http_body_util::BodyExt as _;
    use hyper_util::rt::TokioIo;
    use hyper_util::service::TowerToHyperService;
    use serde_json::Value;
    use tokio::net::TcpListener;

    use super::super::Mail;
    use super::*;
    use crate::chat::skynet::wire::SessionId;
    use crate::net::development::development;
    use crate::net::listen::{self, Door};
    use crate::net::tasks::Tasks;
    use crate::net::tls::{Certificate, Tls};

    fn account_file(dir: &Path, token_uri: &str) -> PathBuf {
        let key = include_str!("../../../../tests/skynet/throwaway-test-only-rsa.pem");
        let (project, email) = ("hearth", "push@hearth.example");
        let account = json!({ "type": "service_account", "project_id": project, "private_key_id": "k1",
            "private_key": key, "client_email": email, "token_uri": token_uri });
        let file = dir.join("account.json");
        std::fs::write(&file, account.to_string()).unwrap();
        file
    }

    /// Whether a statement is signed by the account's key; and what it says.
    fn read(account: &Account, statement: &str) -> (Value, Value) {
        let (said, signature) = statement.rsplit_once('.').unwrap();
        let signature = BASE64.decode(signature).unwrap();
        let provider = rustls::crypto::ring::default_provider();
        let known = provider.signature_verification_algorithms.mapping;
        let (_, algorithms) = known.iter().find(|(scheme, _)| *scheme == SignatureScheme::RSA_PKCS1_SHA256).unwrap();
        let public = account.key.public_key().unwrap();
        // Behind what says that it is a key of RSA's.
        algorithms[0].verify_signature(&public.as_ref()[24..], said.as_bytes(), &signature).unwrap();
        let (head, claims) = said.split_once('.').unwrap();
        let json = |part: &str| serde_json::from_slice(&BASE64.decode(part).unwrap()).unwrap();
        (json(head), json(claims))
    }

    #[test]
    fn an_account_signs_what_it_says_of_itself() {
        let dir = tempfile::tempdir().unwrap();
        let account = Account::read(&account_file(dir.path(), "https://tokens.example/")).unwrap();
        let (head, claims) = read(&account, &account.statement(1_000).unwrap());
        assert_eq!(head, json!({ "alg": "RS256", "typ": "JWT", "kid": "k1" }));
        let expected = json!({ "iss": "push@hearth.example", "aud": "https://tokens.example/", "iat": 1_000,
            "exp": 4_600, "scope": "https://www.googleapis.com/auth/firebase.messaging" });
        assert_eq!(claims, expected);
        for (bad, why) in [("{}", "line 1"), ("", "line 1")] {
            std::fs::write(dir.path().join("bad.json"), bad).unwrap();
            let error = Account::read(&dir.path().join("bad.json")).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(matches!(Account::read(&dir.path().join("none.json")), Err(BadFcm::File { .. })));
    }

    #[test]
    fn answers_mean_what_their_status_and_details_say() {
        let with = |code: &str| json!({ "error": { "details": [{}, { "errorCode": code }] } }).to_string();
        let said = |status: u16, body: &str| judge(StatusCode::from_u16(status).unwrap(), body.as_bytes());
        assert_eq!(said(200, "{}"), Said::Sent);
        assert_eq!(said(404, &with("UNREGISTERED")), Said::Unregistered);
        assert_eq!(said(401, ""), Said::NotUs);
        for refused in [said(404, ""), said(404, "{}"), said(400, &with("INVALID_ARGUMENT")), said(403, "[")] {
            assert!(matches!(refused, Said::Refused(_)), "{refused:?}");
        }
        for later in [429, 500, 503] {
            assert!(matches!(said(later, ""), Said::Later(_)), "{later}");
        }
    }

    /// A push service: does not take the token `old`, and knows no device whose token is `gone`.
    async fn serves(
        request: Request,
        heard: mpsc::UnboundedSender<(String, String, String)>,
    ) -> axum::response::Response {
        let (parts, body) = request.into_parts();
        let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        let bearer = parts.headers.get(header::AUTHORIZATION).map_or("", |it| it.to_str().unwrap()).to_owned();
        heard.send((parts.uri.path().to_owned(), bearer.clone(), body.clone())).unwrap();
        let gone = json!({ "error": { "details": [{ "errorCode": "UNREGISTERED" }] } });
        match (parts.uri.path(), bearer.as_str()) {
            ("/token", _) => {
                Json(json!({ "access_token": body.len().to_string(), "expires_in": 3_600 })).into_response()
            }
            (_, "Bearer old") => StatusCode::UNAUTHORIZED.into_response(),
            _ if body.contains("gone") => (StatusCode::NOT_FOUND, Json(gone)).into_response(),
            _ => Json(json!({})).into_response(),
        }
    }

    #[tokio::test]
    async fn devices_are_woken_with_a_token_for_an_hour_and_the_unreachable_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let made = development(dir.path(), clock.now().wall_ms).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let service = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let (told, mut heard) = mpsc::unbounded_channel();
        let handler = move |io, _| {
            let told = told.clone();
            let router = axum::Router::new().fallback(move |request: Request| serves(request, told.clone()));
            let serving = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(io), TowerToHyperService::new(router));
            async move { drop(serving.await) }
        };
        let door = Door::from(Some(Tls::presenting(Certificate::load(&made.files).unwrap()).unwrap()));
        tokio::spawn(listen::serve(listener, door, Tasks::new(), handler));

        let account = account_file(dir.path(), &format!("{service}/token"));
        let ca = Some(made.ca);
        let settings = FcmSettings { account, service, ca, forget_unreachable: true };
        let (line, fcm) = Fcm::open(settings, clock).unwrap();
        // One that the service does not take any more.
        let until = Duration::from_secs(3_600);
        *fcm.sender.token.lock().await = Some(Token { bearer: "old".into(), until });
        let account = Account::read(&dir.path().join("account.json")).unwrap();
        let (mailbox, mut mail) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let running = tokio::spawn(fcm.run(Lost(mailbox.downgrade()), stop.clone()));

        line.wake(Wake { session: SessionId(1), push_token: "here".into() });
        let message = json!({ "message": { "token": "here", "data": { "Action": "FetchMessages" },
            "android": { "priority": "HIGH" } } });
        let send = "/v1/projects/hearth/messages:send";
        let (path, bearer, body) = heard.recv().await.unwrap();
        assert_eq!((path.as_str(), bearer.as_str()), (send, "Bearer old"));
        assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), message);
        let (path, _, body) = heard.recv().await.unwrap();
        assert_eq!(path, "/token");
        let form: HashMap<_, _> = body.split('&').map(|it| it.split_once('=').unwrap()).collect();
        assert_eq!(form["grant_type"], "urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer");
        assert_eq!(read(&account, form["assertion"]).1["iss"], "push@hearth.example");
        let given = format!("Bearer {}", body.len());
        let (_, bearer, body) = heard.recv().await.unwrap();
        assert_eq!((bearer.as_str(), serde_json::from_str::<Value>(&body).unwrap()), (given.as_str(), message));

        // The next goes with the same token, and its device is none any more.
        line.wake(Wake { session: SessionId(2), push_token: "gone".into() });
        let (path, bearer, _) = heard.recv().await.unwrap();
        assert_eq!((path.as_str(), bearer), (send, given));
        assert!(matches!(mail.recv().await, Some(Mail::Unreachable(SessionId(2)))));
        stop.cancel();
        running.await.unwrap();
        assert!(heard.try_recv().is_err());
    }
}
