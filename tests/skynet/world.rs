//! A Skynet server on real sockets with clients that say what they are told to, and a PostgreSQL server of our own.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use bytes::Bytes;

use heliostat::chat::skynet::store::Place;
use heliostat::chat::skynet::wire::content::KeyFormat;
use heliostat::chat::skynet::wire::{
    AccountId, Announced, Body, ChannelId, ChannelType, Content, CreateAccountStatus, CreateSessionStatus, Delivery,
    Dependency, FromClient, HEADER, Keys, Kind, MessageFlags, MessageId, MessageSendStatus, RestoreSessionStatus,
    SessionId, ToClient, Upload, WantedChannel, read_header,
};
use heliostat::chat::skynet::{self, Config, Confirmed, Letter, MailHook, PushHook, Rates, Reason, Settings, Wake};
use heliostat::crypto::Secret;
use heliostat::net::development::development;
use heliostat::net::listen::Door;
use heliostat::net::tls::{self, Certificate, Tls, read_certs};
use heliostat::time::Clock;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use sha2::{Digest as _, Sha256};
use sqlx::Connection as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

/// Long enough for a machine that does ten other things.
const PATIENCE: Duration = Duration::from_secs(60);
pub const PLATFORM: &str = "android/de.vectordata.skynet";

/// What chance begins with: `HELIOSTAT_SEED`, or always the same.
pub fn seed() -> u64 {
    let seed = std::env::var("HELIOSTAT_SEED").map_or(7, |it| it.parse().unwrap());
    println!("HELIOSTAT_SEED={seed}");
    seed
}

pub async fn soon<T>(happens: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, happens).await.expect("this happens in time")
}

/// Waits until something holds that nobody tells of.
pub async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let waits = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(waits).await;
}

/// What servers here present, and who trusts it. Made once: its files are read and gone.
static SECURED: LazyLock<(Tls, RootCertStore)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let made = development(dir.path(), Clock::system().now().wall_ms).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(read_certs(&made.ca).unwrap());
    (Tls::presenting(Certificate::load(&made.files).unwrap()).unwrap(), roots)
});

/// Speaks TLS of these versions with a server here.
pub async fn secured(
    tcp: TcpStream,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> std::io::Result<TlsStream<TcpStream>> {
    let config = ClientConfig::builder_with_provider(tls::provider()).with_protocol_versions(versions).unwrap();
    let config = config.with_root_certificates(SECURED.1.clone()).with_no_client_auth();
    soon(TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), tcp)).await
}

/// Keeps the mails.
#[derive(Debug, Default)]
pub struct Mailbox(Mutex<Vec<Letter>>);

impl MailHook for Mailbox {
    fn send(&self, letter: Letter) {
        self.0.lock().unwrap().push(letter);
    }
}

/// Hands on who is to be woken.
#[derive(Debug)]
struct Waker(mpsc::UnboundedSender<Wake>);

impl PushHook for Waker {
    fn wake(&self, wake: Wake) {
        let _over = self.0.send(wake);
    }
}

impl Mailbox {
    /// The newest token that was sent there.
    pub fn token(&self, to: &str) -> String {
        let letters = self.0.lock().unwrap();
        let tokens = letters.iter().rev().filter(|letter| letter.to == to);
        tokens
            .filter_map(|letter| match &letter.reason {
                Reason::Confirm { token } => Some(token.clone()),
                Reason::Changing => None,
            })
            .next()
            .expect("a mail with a token")
    }

    pub fn reasons(&self, to: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|letter| letter.to == to).count()
    }
}

/// Where a world keeps its data, and how it behaves.
pub struct Ground {
    pub dir: PathBuf,
    pub place: Place,
    pub settings: Settings,
    pub door: Door,
    /// How far ahead of the real one the server's clock is.
    pub later: Duration,
    pub connections_max: usize,
    pub rates: Rates,
}

impl Ground {
    pub fn new(dir: &Path, place: Place) -> Self {
        let mut settings = Settings::default();
        settings.platforms[0].forward_profiles = true;
        Self {
            dir: dir.to_owned(),
            place,
            settings,
            door: Door::from(Some(SECURED.0.clone())),
            later: Duration::ZERO,
            connections_max: 100,
            rates: Rates::default(),
        }
    }
}

impl Ground {
    /// Does something to the database that the server would not.
    pub async fn runs(&self, sql: &'static str) {
        sqlx::any::install_default_drivers();
        let url = match &self.place {
            Place::Sqlite => format!("sqlite://{}", self.dir.join(skynet::store::FILE).display()),
            Place::Postgres(url) => url.clone(),
        };
        let mut connection = sqlx::AnyConnection::connect(&url).await.unwrap();
        soon(sqlx::query(sql).execute(&mut connection)).await.unwrap();
        connection.close().await.unwrap();
    }
}

pub struct World {
    pub running: skynet::Running,
    pub mail: Arc<Mailbox>,
    pub woken: mpsc::UnboundedReceiver<Wake>,
    web: SocketAddr,
    is_secured: bool,
    stop: CancellationToken,
}

impl World {
    pub async fn start(ground: &Ground) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let web = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (stop, mail) = (CancellationToken::new(), Arc::new(Mailbox::default()));
        let (waker, woken) = mpsc::unbounded_channel();
        let config = Config {
            push: Arc::new(Waker(waker)),
            place: ground.place.clone(),
            settings: ground.settings.clone(),
            connections_max: ground.connections_max,
            rates: ground.rates,
            mail: Arc::<Mailbox>::clone(&mail),
            ..Config::new(ground.dir.clone())
        };
        let later_ms = u64::try_from(ground.later.as_millis()).unwrap();
        let clock = Clock::following(Clock::system().now().wall_ms + later_ms);
        let doors = vec![(listener, ground.door.clone())];
        let mut running = skynet::start_on(doors, config, clock, stop.clone()).await.unwrap();
        let (address, is_secured) = (web.local_addr().unwrap(), ground.door.tls.is_some());
        running.open_web(web, ground.door.clone(), format!("https://localhost:{}", address.port()), stop.clone());
        Self { running, mail, woken, web: address, is_secured, stop }
    }

    pub fn address(&self) -> SocketAddr {
        self.running.addresses()[0]
    }

    pub async fn stop(self) {
        self.stop.cancel();
        soon(self.running.wait()).await;
    }

    /// Connected, and nothing said yet.
    pub async fn connect(&self) -> Client {
        self.may_connect().await.unwrap()
    }

    async fn may_connect(&self) -> std::io::Result<Client> {
        let tcp = TcpStream::connect(self.address()).await.unwrap();
        Ok(if self.is_secured { Client::over(secured(tcp, rustls::ALL_VERSIONS).await?) } else { Client::over(tcp) })
    }

    /// A connection to the web door.
    pub async fn web(&self) -> TlsStream<TcpStream> {
        secured(TcpStream::connect(self.web).await.unwrap(), rustls::ALL_VERSIONS).await.unwrap()
    }

    /// What the web door answers. `path` may be the whole address.
    pub async fn asks(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response<Bytes> {
        self.asks_with(method, path, headers, Full::new(Bytes::copy_from_slice(body))).await
    }

    pub async fn asks_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl hyper::body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
    ) -> Response<Bytes> {
        let base = format!("https://localhost:{}", self.web.port());
        asks(self.web().await, method, path.strip_prefix(&base).unwrap_or(path), headers, body).await
    }

    /// Whether a connection is dropped at once.
    pub async fn is_full(&self) -> bool {
        let Ok(mut client) = self.may_connect().await else { return true };
        let application = PLATFORM.to_owned();
        let hello = FromClient::ConnectionHandshake { protocol_version: 3, application, version_code: 60 };
        // Who is dropped may not even get this out.
        let _gone = client.io.write_all(&hello.encode().unwrap()).await;
        client.read().await.is_none()
    }

    /// A client that was greeted.
    pub async fn greeted(&self) -> Client {
        let mut client = self.connect().await;
        client.greet().await;
        client
    }

    pub async fn confirm(&self, address: &str) -> Confirmed {
        soon(self.running.confirm(&self.mail.token(address))).await.unwrap()
    }

    /// A confirmed account with its first device, which has heard everything.
    pub async fn account(&self, name: &str) -> Client {
        let mut client = self.greeted().await;
        assert_eq!(client.register(name, name).await, CreateAccountStatus::SUCCESS);
        assert_eq!(self.confirm(name).await, Confirmed::Done { address: name.to_owned() });
        assert_eq!(client.login(name, name).await, CreateSessionStatus::SUCCESS);
        client.first_sync().await;
        client
    }

    /// Another device of an account.
    pub async fn device(&self, name: &str) -> Client {
        self.device_with(name, name).await
    }

    pub async fn device_with(&self, name: &str, password: &str) -> Client {
        let mut client = self.greeted().await;
        assert_eq!(client.login(name, password).await, CreateSessionStatus::SUCCESS);
        client.first_sync().await;
        client
    }

    /// A device comes back with what it knows.
    pub async fn back(&self, old: &Client, last: i64, channels: &[ChannelId]) -> (Client, Sync) {
        let mut client = self.greeted().await;
        assert_eq!(client.restore(old, last, channels).await, RestoreSessionStatus::SUCCESS);
        let sync = client.sync().await;
        (client, sync)
    }

    /// See [`friends`].
    pub async fn friends(&self, alice: &mut Client, bob: &mut Client) -> ChannelId {
        friends(alice, bob).await
    }
}

/// Gives two accounts a direct channel that both have heard of.
pub async fn friends(alice: &mut Client, bob: &mut Client) -> ChannelId {
    let temp = ChannelId(-7);
    alice.send(&FromClient::CreateChannel { temp, wanted: WantedChannel::Direct(bob.account) }).await;
    let channel = alice
        .find(|packet| match packet {
            ToClient::CreateChannelResponse { channel, .. } => Some(*channel),
            _ => None,
        })
        .await;
    for client in [alice, bob] {
        client.find(|packet| matches!(packet, ToClient::SyncFinished {}).then_some(())).await;
        client.seen.clear();
    }
    channel
}

/// What is answered to a request.
pub async fn asks(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl hyper::body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
) -> Response<Bytes> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in [("Host", "localhost")].iter().chain(headers) {
        request = request.header(*name, *value);
    }
    let request = request.body(body.boxed_unsync()).unwrap();
    let (parts, body) = soon(sender.send_request(request)).await.unwrap().into_parts();
    let body = soon(body.collect()).await.unwrap().to_bytes();
    connection.abort();
    Response::from_parts(parts, body)
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send + std::marker::Sync {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + std::marker::Sync> Io for T {}

/// What a sync brought.
#[derive(Debug, Default)]
pub struct Sync {
    pub min_count: i32,
    pub announced: Vec<(ChannelId, Announced)>,
    pub deleted: Vec<ChannelId>,
    pub messages: Vec<Delivery>,
}

impl Sync {
    pub fn ids(&self) -> Vec<i64> {
        self.messages.iter().map(|message| message.id.0).collect()
    }

    pub fn kinds(&self) -> Vec<Kind> {
        self.messages.iter().map(|message| message.body.kind).collect()
    }
}

pub struct Client {
    io: Box<dyn Io>,
    pub account: AccountId,
    pub session: SessionId,
    pub token: Secret<32>,
    pub loopback: ChannelId,
    pub account_data: ChannelId,
    /// The newest message it was told of.
    pub last: i64,
    temp: i64,
    pub push_token: String,
    /// What it shows where files are.
    pub web_token: String,
    /// What it heard while it waited for something else.
    pub seen: VecDeque<ToClient>,
}

pub fn key_hash(password: &str) -> Secret<32> {
    Secret::new(Sha256::digest(password.as_bytes()).into())
}

pub fn body(content: &Content, flags: MessageFlags) -> Body {
    Body::new(content.kind(), flags, content.encode(None).unwrap())
}

pub fn public_keys() -> Content {
    let (format, key) = (KeyFormat::BOUNCY_CASTLE, Bytes::from_static(&[2; 8]));
    Content::PublicKeys(Keys {
        signature_format: format,
        signature: key.clone(),
        derivation_format: format,
        derivation: key,
    })
}

pub fn chat(text: &str) -> Body {
    Body::new(Kind::ChatMessage, MessageFlags::NONE, text.as_bytes().to_vec())
}

pub fn receipt(kind: Kind, of: MessageId) -> Body {
    Body::new(kind, MessageFlags::UNENCRYPTED, Vec::new()).on([on(AccountId::NONE, of)])
}

pub fn on(account: AccountId, message: MessageId) -> Dependency {
    Dependency { account, message }
}

impl Client {
    pub fn over(io: impl AsyncRead + AsyncWrite + Unpin + Send + std::marker::Sync + 'static) -> Self {
        Self {
            io: Box::new(io),
            account: AccountId::NONE,
            session: SessionId::NONE,
            token: Secret::new([0; 32]),
            loopback: ChannelId::NONE,
            account_data: ChannelId::NONE,
            last: 0,
            temp: 0,
            push_token: String::new(),
            web_token: String::new(),
            seen: VecDeque::new(),
        }
    }

    pub async fn send(&mut self, packet: &FromClient) {
        self.send_bytes(&packet.encode().unwrap()).await;
    }

    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        soon(self.io.write_all(bytes)).await.unwrap();
        soon(self.io.flush()).await.unwrap();
    }

    /// The next packet from the socket; `None` when the server closed it.
    async fn read(&mut self) -> Option<ToClient> {
        let mut header = [0; HEADER];
        soon(self.io.read_exact(&mut header)).await.ok()?;
        let (id, len) = read_header(header);
        let mut payload = vec![0; len];
        soon(self.io.read_exact(&mut payload)).await.ok()?;
        let packet = ToClient::decode(id, &payload).unwrap();
        if let ToClient::Message(message) = &packet {
            self.last = self.last.max(message.id.0);
        }
        Some(packet)
    }

    /// The next packet.
    pub async fn next(&mut self) -> ToClient {
        match self.seen.pop_front() {
            Some(packet) => packet,
            None => self.read().await.expect("the server says something"),
        }
    }

    /// The next packet that is what is looked for; what comes before it is kept.
    pub async fn find<T>(&mut self, wanted: impl Fn(&ToClient) -> Option<T>) -> T {
        if let Some((at, found)) = self.seen.iter().enumerate().find_map(|(at, packet)| Some((at, wanted(packet)?))) {
            self.seen.remove(at);
            return found;
        }
        loop {
            let packet = self.read().await.expect("the server says something");
            match wanted(&packet) {
                Some(found) => return found,
                None => self.seen.push_back(packet),
            }
        }
    }

    pub async fn find_message(&mut self, kind: Kind) -> Delivery {
        self.find(|packet| match packet {
            ToClient::Message(message) if message.body.kind == kind => Some(message.clone()),
            _ => None,
        })
        .await
    }

    /// Whether the server closes the connection, whatever it had to say before.
    pub async fn find_end(&mut self) -> bool {
        while self.read().await.is_some() {}
        true
    }

    /// A message for its own account data channel.
    pub fn upload(&self, body: Body) -> FromClient {
        FromClient::Message(Upload { channel: self.account_data, temp: MessageId(-1), body })
    }

    /// Whether the server closes the connection without another word.
    pub async fn is_closed(&mut self) -> bool {
        self.seen.is_empty() && self.read().await.is_none()
    }

    /// Nothing has come: the answer to a question that is put now comes first.
    pub async fn hears_nothing(&mut self) {
        self.send(&FromClient::DeviceListRequest {}).await;
        let packet = self.next().await;
        assert!(matches!(packet, ToClient::DeviceListResponse { .. }), "{packet:?}");
    }

    pub async fn greet(&mut self) {
        self.greet_as(PLATFORM).await;
    }

    pub async fn greet_as(&mut self, application: &str) {
        let application = application.to_owned();
        self.send(&FromClient::ConnectionHandshake { protocol_version: 3, application, version_code: 60 }).await;
        assert!(matches!(self.next().await, ToClient::ConnectionResponse { .. }));
    }

    pub async fn register(&mut self, name: &str, password: &str) -> CreateAccountStatus {
        self.send(&FromClient::CreateAccount { name: name.to_owned(), key_hash: key_hash(password) }).await;
        match self.next().await {
            ToClient::CreateAccountResponse { status } => status,
            other => panic!("{other:?}"),
        }
    }

    pub async fn login(&mut self, name: &str, password: &str) -> CreateSessionStatus {
        let (name, key_hash, push_token) = (name.to_owned(), key_hash(password), self.push_token.clone());
        self.send(&FromClient::CreateSession { name, key_hash, push_token }).await;
        match self.next().await {
            ToClient::CreateSessionResponse { status, account, session, token, web_token } => {
                (self.account, self.session, self.token) = (account, session, token);
                assert_eq!(web_token.0.len(), if status == CreateSessionStatus::SUCCESS { 48 } else { 0 });
                self.web_token = web_token.0;
                status
            }
            other => panic!("{other:?}"),
        }
    }

    pub async fn restore(&mut self, old: &Self, last: i64, channels: &[ChannelId]) -> RestoreSessionStatus {
        (self.account, self.session, self.token) = (old.account, old.session, old.token.clone());
        (self.loopback, self.account_data) = (old.loopback, old.account_data);
        self.web_token.clone_from(&old.web_token);
        let (session, token, last_message) = (old.session, old.token.clone(), MessageId(last));
        self.send(&FromClient::RestoreSession { session, token, last_message, channels: channels.to_vec() }).await;
        match self.next().await {
            ToClient::RestoreSessionResponse { status } => status,
            other => panic!("{other:?}"),
        }
    }

    /// Everything from the beginning of a sync, which is next, to its end.
    pub async fn sync(&mut self) -> Sync {
        let ToClient::SyncStarted { min_count } = self.next().await else { panic!("no sync") };
        let mut sync = Sync { min_count, ..Sync::default() };
        loop {
            match self.next().await {
                ToClient::CreateChannel { channel, announced } => sync.announced.push((channel, announced)),
                ToClient::DeleteChannel { channel } => sync.deleted.push(channel),
                ToClient::Message(message) => {
                    assert_eq!(message.skip_count, -1);
                    sync.messages.push(message);
                }
                ToClient::SyncFinished {} => break,
                other => panic!("in a sync: {other:?}"),
            }
        }
        assert!(sync.messages.is_sorted_by_key(|message| message.id), "{:?}", sync.ids());
        assert!(usize::try_from(sync.min_count).is_ok_and(|count| count <= sync.messages.len()));
        sync
    }

    pub async fn first_sync(&mut self) -> Sync {
        let sync = self.sync().await;
        let own = |channel_type| {
            let mut announced = sync.announced.iter();
            announced.find(|(_, it)| it.channel_type == channel_type && it.owner == self.account).unwrap().0
        };
        (self.loopback, self.account_data) = (own(ChannelType::Loopback), own(ChannelType::AccountData));
        sync
    }

    /// Sends a message without waiting for what becomes of it.
    pub async fn post(&mut self, channel: ChannelId, body: Body) -> MessageId {
        self.temp -= 1;
        let temp = MessageId(self.temp);
        self.send(&FromClient::Message(Upload { channel, temp, body })).await;
        temp
    }

    /// Sends a message, and returns what became of it.
    pub async fn say(&mut self, channel: ChannelId, body: Body) -> Result<MessageId, MessageSendStatus> {
        let sent = self.post(channel, body).await;
        let answer = self
            .find(|packet| match packet {
                ToClient::ChannelMessageResponse { channel: at, temp, status, message, skip_count, .. }
                    if *temp == sent =>
                {
                    assert_eq!((*at, *skip_count), (channel, 0));
                    Some(if *status == MessageSendStatus::SUCCESS { Ok(*message) } else { Err(*status) })
                }
                _ => None,
            })
            .await;
        self.last = self.last.max(answer.map_or(0, |id| id.0));
        answer
    }

    /// Where a request about files goes, with what shows who asks.
    pub fn file_api(&self, what: &str) -> String {
        format!("/api/filetransfer/{what}?session={}&token={}", self.session.0, self.web_token)
    }

    /// Sends a message, and returns its number, unless the server is gone before it says.
    pub async fn may_say(&mut self, channel: ChannelId, body: Body) -> Option<MessageId> {
        self.temp -= 1;
        let sent = MessageId(self.temp);
        let packet = FromClient::Message(Upload { channel, temp: sent, body }).encode().unwrap();
        soon(self.io.write_all(&packet)).await.ok()?;
        soon(self.io.flush()).await.ok()?;
        loop {
            match self.read().await? {
                ToClient::ChannelMessageResponse { temp, status: MessageSendStatus::SUCCESS, message, .. }
                    if temp == sent =>
                {
                    self.last = self.last.max(message.0);
                    return Some(message);
                }
                other => self.seen.push_back(other),
            }
        }
    }

    /// Uploads keys, as clients do after their first sync.
    pub async fn publish_keys(&mut self) -> (MessageId, MessageId) {
        let (loopback, account_data) = (self.loopback, self.account_data);
        let private = Body::new(Kind::PrivateKeys, MessageFlags::LOOPBACK, vec![1; 64]);
        let private = self.say(loopback, private).await.unwrap();
        let public = body(&public_keys(), MessageFlags::UNENCRYPTED).on([on(self.account, private)]);
        let public = self.say(account_data, public).await.unwrap();
        (private, public)
    }
}

/// A PostgreSQL server for as long as this lives, in a directory of its own, behind a socket of its own.
pub struct Postgres {
    dir: tempfile::TempDir,
    bin: PathBuf,
}

impl Postgres {
    /// `None` when there is none installed where Debian's package puts it.
    pub fn start() -> Option<Self> {
        let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
        let mut bins: Vec<_> = versions.map(|it| it.unwrap().path().join("bin")).collect();
        bins.retain(|bin| bin.join("initdb").exists());
        bins.sort();
        let dir = tempfile::Builder::new().prefix("heliostat-pg").tempdir().unwrap();
        let server = Self { bin: bins.pop()?, dir };
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(server.dir.path()));
        }
        let data = server.data();
        run(server.command("initdb").args(["-A", "trust", "-U", "postgres", "-N", "-D", &data]));
        let options = format!("-c listen_addresses= -c fsync=off -k {}", server.dir.path().display());
        let log = format!("{}/log", server.dir.path().display());
        run(server.command("pg_ctl").args(["-w", "-D", &data, "-l", &log, "-o", &options, "start"]));
        Some(server)
    }

    /// A database of its own.
    pub fn database(&self, name: &str) -> Place {
        let dir = self.dir.path().display();
        run(self.command("createdb").args(["-h", &dir.to_string(), "-U", "postgres", name]));
        Place::Postgres(format!("postgres://postgres@localhost/{name}?host={dir}"))
    }

    fn data(&self) -> String {
        format!("{}/data", self.dir.path().display())
    }

    /// PostgreSQL does not run as root.
    fn command(&self, program: &str) -> Command {
        let program = self.bin.join(program);
        if !is_root() {
            return Command::new(program);
        }
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(program);
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let data = self.data();
        let _gone =
            self.command("pg_ctl").args(["-D", &data, "-m", "immediate", "stop"]).stdout(Stdio::null()).status();
    }
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|it| it.uid() == 0)
}

fn run(command: &mut Command) {
    let output = command.current_dir("/").stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
