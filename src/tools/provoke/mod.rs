//! `heliostat provoke`: makes a mediator close a client with a close code of your choice, so that its developer sees what it
//! does then.
//!
//! The mediator is never told to send a code. It is brought into the situation the code is for: another device of the group
//! drops the client or logs in under its id, a limit is near, the chat server ends, the server is stopped; or something
//! is said that breaks a rule, as if the client had said it. For that a relay stands between client and mediator, which
//! hands on frames byte for byte and closes nothing itself. Without `--listen` the client is played here, too, so one way of
//! doing it serves both.
//!
//! | file | holds |
//! |---|---|
//! | `plan` | for each code: what provokes it, what that needs, what a client does then |
//! | `relay` | frames in both directions, and what is said in the client's name |

mod plan;
mod relay;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use self::plan::{Elsewhere, Key, Plan, plan};
use self::relay::{Hello, Order, Relay, Seen, Story, Visit};
use super::{TrustArgs, keyfile, not_connected, trust_of};
use crate::client::{ConnectError, Device, DeviceConfig, Ended, GroupKey, Mediator, Trust};
use crate::crypto::random;
use crate::logging;
use crate::net::development;
use crate::net::listen::Door;
use crate::net::tls::{Certificate, Tls};
use crate::server::stage::{self, Stage};
use crate::server::{self, bind};
use crate::store::Store;
use crate::store::memory::MemoryStore;
use crate::time::Clock;
use crate::wire::d2m::{
    BeginTransaction, ClientHello, ClientUrlInfo, CloseCode, DeviceId, FromDevice, PayloadType, Reconnect,
    ReflectFlags, ReflectedId, ServerGroup, SlotExpiration, SlotState, ToDevice,
};

/// How long a device of ours may take to leave its group.
const LEAVES_WITHIN: Duration = Duration::from_secs(5);
/// What a queue may hold, at the most that is tried: twice the default limit of a mediator.
const MESSAGES_MAX: u32 = 200_000;
/// Messages that are reflected before their acknowledgements are waited for.
const MESSAGES_AT_ONCE: u32 = 250;
/// Beyond the idle timeout of a mediator that is configured as it comes.
const IDLE: Duration = Duration::from_secs(150);
/// How long somebody may take to stop a mediator.
const STOPPED_WITHIN: Duration = Duration::from_secs(300);

/// Make a server close a client with a close code of your choice
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  heliostat provoke list
  heliostat provoke 4113                                            the client is played, the mediator started for it
  heliostat provoke 4113 --url wss://localhost:8443                 the client is played
  heliostat provoke 4113 --listen 127.0.0.1:8080 --key alice.key    your client connects to ws://127.0.0.1:8080
  heliostat provoke 4113 --listen 127.0.0.1:8080 --key alice.key --url wss://localhost:8443

With --listen, what is provoked happens when you press Enter, or at --after; 4110, 4111 and 4115 happen when the client \
                        introduces itself.

4114 with --url fills the queue of every other device of the group as well, so it is refused where there is any besides the \
                        client.

Exit status 0: the client was closed with the code.")]
pub struct Args {
    /// The close code, or `list`
    #[arg(value_parser = wanted, value_name = "CODE")]
    what: What,
    /// The mediator's base URL [default: one is started for the purpose; it knows nobody, so all are
    /// introduced to it as new, and it forgets everything]
    #[arg(long)]
    url: Option<String>,
    #[command(flatten)]
    trust: TrustArgs,
    /// The server's data directory: its development CA is trusted, and its certificate shown with --tls
    #[arg(long, value_name = "DIR", default_value = "heliostat-data")]
    data: PathBuf,
    /// Let your own client connect here, and be closed
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Speak TLS there, with the development certificate of the data directory, which is made if there is none
    #[arg(long, requires = "listen")]
    tls: bool,
    /// The group key of your client, for what another device of its group does: 64 hex digits in a file
    #[arg(long, value_name = "FILE", requires = "listen")]
    key: Option<PathBuf>,
    /// Do it this long after your client was admitted, instead of when you press Enter
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, requires = "listen")]
    after: Option<Duration>,
    /// Go to the mediator under this server group, whatever the client's URL says [default: a0 for the client that is played]
    #[arg(long, value_name = "NAME", value_parser = server_group)]
    server_group: Option<ServerGroup>,
    /// Play the chat server there; --server-group has to lead there
    #[arg(long, value_name = "ADDR", requires_all = ["url", "server_group"])]
    stage: Option<SocketAddr>,
    /// How long the code may take to come [default: 30 s, or what the code takes]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    patience: Option<Duration>,
    /// How long your client is watched for coming back
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    watch: Duration,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
enum What {
    List,
    Code(CloseCode),
}

fn wanted(text: &str) -> Result<What, String> {
    if text == "list" {
        return Ok(What::List);
    }
    let code = text.parse().ok().and_then(CloseCode::from_code);
    code.map(What::Code).ok_or_else(|| "no close code of a mediator; `heliostat provoke list` names them".to_owned())
}

fn server_group(name: &str) -> Result<ServerGroup, String> {
    ServerGroup::new(name).ok_or_else(|| "a server group is 1 to 32 digits and letters".to_owned())
}

/// Provokes it, and says what came.
///
/// # Errors
/// When it cannot begin, or what is needed is not there.
pub async fn run(args: Args) -> Result<ExitCode> {
    let code = match args.what {
        What::List => {
            std::io::stdout().write_all(plan::table().as_bytes()).into_diagnostic()?;
            return Ok(ExitCode::SUCCESS);
        }
        What::Code(code) => code,
    };
    let key = args.key.as_deref().map(keyfile::load).transpose()?;
    possible(code, &args, key.is_some())?;
    let (mut scene, mut visits) = Scene::set(code, &args, key).await?;
    let came = match args.listen {
        None => scene.with_our_client(&mut visits).await,
        Some(_) => scene.with_your_client(&mut visits, args.after, args.watch).await,
    };
    // Also after a failure: the mediator may be somebody's.
    scene.strike().await;
    Ok(if came? == Some(code.code()) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether it can be done at all.
fn possible(code: CloseCode, args: &Args, has_key: bool) -> Result<()> {
    let Plan { key, elsewhere, .. } = plan(code);
    let number = code.code();
    if args.listen.is_some() && key == Key::Needed && !has_key {
        return Err(miette!(
            help = "--key FILE: the group's key, 64 hex digits",
            "{number} takes another device of your client's group"
        ));
    }
    if args.url.is_none() {
        return Ok(());
    }
    match elsewhere {
        Elsewhere::Impossible => {
            Err(miette!(help = "leave out --url", "nothing makes the store of somebody else's mediator fail"))
        }
        Elsewhere::ServerGroup if args.server_group.is_none() => Err(miette!(
            help = "--server-group NAME, which has no chat server, or one where nobody listens",
            "{number} takes a server group that leads to nobody"
        )),
        Elsewhere::Stage if args.stage.is_none() => Err(miette!(
            help = "--stage ADDR --server-group NAME; [server_groups.exact.NAME] of the mediator has to lead to ADDR",
            "{number} takes a chat server that is played here"
        )),
        _ => Ok(()),
    }
}

/// Clients that come.
type Visits = mpsc::Receiver<Visit>;

/// Everything that stands around a client.
struct Scene {
    code: CloseCode,
    /// How the mediator is reached.
    mediator: Mediator,
    /// It, if it was started here.
    own: Option<Own>,
    chat: Option<Chat>,
    key: Option<GroupKey>,
    server_group: Option<ServerGroup>,
    patience: Duration,
    /// Listens until the end.
    _relay: Relay,
    base: String,
    story: Arc<Story>,
    /// Other devices of the group.
    crowd: Vec<(DeviceId, Device)>,
    /// The client's device once more.
    twin: Option<Device>,
    /// Which one it is, once it said so.
    device: Option<(ClientUrlInfo, Option<DeviceId>)>,
}

/// A mediator that was started for the purpose.
struct Own {
    mediator: Arc<server::Mediator>,
    store: Arc<MemoryStore>,
}

/// A chat server that is played here.
enum Chat {
    Inside(Stage),
    Outside(TcpListener),
}

trait Visitor: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Visitor for T {}

impl Chat {
    async fn accepts(&mut self) -> Result<Box<dyn Visitor>> {
        match self {
            Self::Inside(stage) => {
                let visitor = stage.accepts().await.ok_or_else(|| miette!("the mediator is gone"))?;
                Ok(Box::new(visitor))
            }
            Self::Outside(listener) => Ok(Box::new(listener.accept().await.into_diagnostic()?.0)),
        }
    }
}

impl Scene {
    /// Builds it up; and who comes.
    async fn set(code: CloseCode, args: &Args, key: Option<GroupKey>) -> Result<(Self, Visits)> {
        let story = Arc::new(Story::default());
        let (mediator, own, chat) = match &args.url {
            Some(url) => {
                let mediator = Mediator::new(url, &trust_of(&args.trust, &args.data)?).into_diagnostic()?;
                let chat = match args.stage {
                    Some(address) => Some(Chat::Outside(bind(address).await.into_diagnostic()?)),
                    None => None,
                };
                (mediator, None, chat)
            }
            None => {
                // What happens is told; what the mediator has to say about it only when it is asked for.
                let _the_environments_is_stronger = logging::configure("error").into_diagnostic()?;
                let (own, address, stage) = Own::start(code).await?;
                let mediator = Mediator::new(&format!("ws://{address}"), &Trust::System).into_diagnostic()?;
                // Nobody listens there without a stage.
                let chat = (code != CloseCode::ChatServerUnreachable).then_some(Chat::Inside(stage));
                (mediator, Some(own), chat)
            }
        };
        let (door, scheme) = if args.tls { (tls(&args.data)?, "wss") } else { (Door::default(), "ws") };
        let address = args.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let met = own.is_some().then(Arc::default);
        let relay = Relay::before(mediator.clone(), address, door, Arc::clone(&story), met).await;
        let (relay, visits) = relay.into_diagnostic().wrap_err_with(|| format!("cannot listen on {address}"))?;
        let host = if args.tls { format!("localhost:{}", relay.address.port()) } else { relay.address.to_string() };
        let usual = match (code, own.is_some()) {
            (CloseCode::ShuttingDown, false) => STOPPED_WITHIN,
            (CloseCode::ClientIdleTimeout | CloseCode::ReflectionQueueLimit, false) => IDLE,
            _ => Duration::from_secs(30),
        };
        let scene = Self {
            code,
            mediator,
            own,
            chat,
            key,
            server_group: args.server_group.clone(),
            patience: args.patience.unwrap_or(usual),
            _relay: relay,
            base: format!("{scheme}://{host}"),
            story,
            crowd: Vec::new(),
            twin: None,
            device: None,
        };
        Ok((scene, visits))
    }

    /// Plays the client; the code that it saw.
    async fn with_our_client(&mut self, visits: &mut Visits) -> Result<Option<u16>> {
        let key = GroupKey::generate();
        self.key = Some(key.clone());
        self.story.open_with(key.clone());
        let group = self.server_group.clone().or_else(|| ServerGroup::new("a0"));
        let group = group.ok_or_else(|| miette!("no server group"))?;
        let config = DeviceConfig::new(key, group, DeviceId(random::u64()));
        let relay = Mediator::new(&self.base, &Trust::System).into_diagnostic()?;
        let client = tokio::spawn(play(relay, config.clone()));
        let visit = visits.recv().await.ok_or_else(|| miette!("the client did not come"))?;
        let outcome = self.close(visit, visits, None).await;
        let waited = tokio::time::timeout(self.patience, client).await;
        let ended = waited.into_diagnostic().and_then(Result::into_diagnostic).and_then(|played| played);
        if self.code != CloseCode::Dropped && self.code != CloseCode::ShuttingDown {
            self.forget(&config).await;
        }
        outcome?;
        let ended = ended?;
        self.story.note(&format!("the client was {ended}"));
        self.judge(ended.code());
        Ok(ended.code())
    }

    /// Waits for a client; the code that it was sent.
    async fn with_your_client(
        &mut self,
        visits: &mut Visits,
        after: Option<Duration>,
        watch: Duration,
    ) -> Result<Option<u16>> {
        if let Some(key) = &self.key {
            self.story.open_with(key.clone());
        }
        self.story.note(&format!("waiting for your client on {}", self.base));
        let visit = visits.recv().await.ok_or_else(|| miette!("nobody can come"))?;
        let code = self.close(visit, visits, Some(Trigger { after })).await?;
        self.judge(code);
        if code.is_some() && !watch.is_zero() {
            self.watch(code, visits, watch).await;
        }
        Ok(code)
    }

    /// What the code means, and whether it is the right one.
    fn judge(&self, came: Option<u16>) {
        let asked = self.code.code();
        match came.and_then(CloseCode::from_code) {
            Some(code) => {
                self.story.note(&format!("{} {}: {}", code.code(), plan(code).name, code.meaning()));
                let class = match code.reconnect() {
                    Reconnect::Automatic => "it may reconnect by itself",
                    Reconnect::UserInteraction => "it must not reconnect by itself: a person has to decide",
                    Reconnect::WithWarning => "it may reconnect, with a warning",
                };
                self.story.note(&format!("a client has to: {} ({class})", plan(code).advice));
            }
            None => self.story.note("no close code of the protocol came"),
        }
        if came != Some(asked) {
            self.story.note(&format!("{asked} was asked for"));
        }
    }

    /// Whether a client comes back that was closed.
    async fn watch(&self, code: Option<u16>, visits: &mut Visits, within: Duration) {
        let came = tokio::time::timeout(within, self.comes_back(visits)).await.is_ok();
        let may = code.map(Reconnect::after) != Some(Reconnect::UserInteraction);
        let verdict = match (came, may) {
            (true, true) => "it came back, as it may",
            (true, false) => "it came back, which only a person may decide",
            (false, true) => "it did not come back in time; it may",
            (false, false) => "it did not come back, as it should",
        };
        self.story.note(&format!("{verdict} ({} s were watched)", within.as_secs_f32()));
    }

    /// Returns when the client has come back. Others are let on.
    async fn comes_back(&self, visits: &mut Visits) {
        let (group, device) = match &self.device {
            Some((url, device)) => (Some(url.device_group_id), *device),
            None => (None, None),
        };
        while let Some(visit) = visits.recv().await {
            let the_groups = Some(visit.url.device_group_id) == group;
            let mut seen = visit.goes_on();
            // Who it is, if it is let in so far.
            let mut id = None;
            while id.is_none() && the_groups {
                match seen.recv().await {
                    Some(Seen::Hello(hello)) => id = Some(hello.device_id),
                    Some(_) => {}
                    None => break,
                }
            }
            if the_groups && (id.is_none() || device.is_none() || device == id) {
                return;
            }
        }
        std::future::pending().await
    }

    /// Brings about the code on a connection; what came. Who else comes meanwhile is let on.
    async fn close(&mut self, visit: Visit, visits: &mut Visits, trigger: Option<Trigger>) -> Result<Option<u16>> {
        let Visit { url, go, orders, mut seen } = visit;
        if self.key.as_ref().is_some_and(|key| key.device_group_id() != url.device_group_id) {
            return Err(miette!("the key is that of another device group than the client's"));
        }
        let server_group = self.server_group.clone().unwrap_or_else(|| url.server_group.clone());
        let url = ClientUrlInfo { server_group, ..url };
        if self.code == CloseCode::DeviceLimitReached {
            self.fill_slots(&url).await?;
        }
        let hello = plan::hello(self.code);
        // A client that hung up already is seen below.
        let _gone = go.send((url.clone(), hello));
        self.device = Some((url.clone(), None));
        let mut client = Client { url: url.clone(), orders, hello: None, proxied: false };
        let mut admitted = false;
        while !admitted && hello == Hello::Unchanged {
            match seen.recv().await {
                Some(Seen::Admitted) => admitted = true,
                Some(Seen::Closed(code)) => return Ok(Some(code)),
                Some(other) => client.notice(other),
                None => return Ok(None),
            }
        }
        let mut id = client.hello.as_ref().map(|hello| hello.device_id);
        let act = async {
            if hello == Hello::Unchanged {
                if let Some(trigger) = trigger {
                    trigger.comes(&self.story).await;
                }
                self.act(&client).await?;
            }
            // What is to come now has only to be waited for.
            tokio::time::sleep(self.patience).await;
            Ok(None)
        };
        let closed = async {
            loop {
                match seen.recv().await {
                    Some(Seen::Closed(code)) => return Ok(Some(code)),
                    Some(Seen::Hello(hello)) => id = Some(hello.device_id),
                    Some(Seen::Proxied | Seen::Admitted) => {}
                    None => return Ok(None),
                }
            }
        };
        let others = async {
            while let Some(visit) = visits.recv().await {
                drop(visit.goes_on());
            }
            std::future::pending().await
        };
        // What the client proxied before it was admitted is known by now; what comes later is seen by the chat server.
        let came = tokio::select! {
            came = closed => came,
            failed = act => failed,
            never = others => never,
        };
        self.device = Some((url, id));
        came
    }

    /// Does what it takes.
    async fn act(&mut self, client: &Client) -> Result<()> {
        let story = Arc::clone(&self.story);
        story.note(plan(self.code).how);
        match self.code {
            CloseCode::Normal => client.order(Order::Close(1000)).await,
            CloseCode::ShuttingDown => match &self.own {
                Some(own) => {
                    let mediator = Arc::clone(&own.mediator);
                    // It waits for the client's answer, and so do we.
                    tokio::spawn(async move { mediator.stop().await });
                }
                None => story.note("stop the mediator now"),
            },
            CloseCode::InternalError => {
                if let Some(own) = &self.own {
                    own.store.fail_at(own.store.commits() + 1);
                }
                client.says(&FromDevice::SetSharedDeviceData(vec![0; 40]), None).await;
            }
            CloseCode::ChatServerClosed => match &mut self.chat {
                Some(chat) => {
                    client.proxies().await;
                    drop(chat.accepts().await?);
                }
                None => {
                    client.order(Order::HideProxy).await;
                    // No hello, no login and no frame of any chat server.
                    for length in [48, 144] {
                        client.says(&FromDevice::Proxy(vec![0xff; length].into()), None).await;
                    }
                }
            },
            CloseCode::ChatServerUnreachable => client.proxies().await,
            CloseCode::ChatProxyError => {
                let Some(chat) = &mut self.chat else { return Err(miette!("there is no chat server to play")) };
                client.order(Order::HideProxy).await;
                client.proxies().await;
                let mut visitor = chat.accepts().await?;
                // Behind where its hello and its answer to a login would stand: a frame of 65 535 bytes.
                visitor.write_all(&[0xff; 80 + 32 + 2]).await.into_diagnostic()?;
                visitor.flush().await.into_diagnostic()?;
                // Until the mediator has given up.
                tokio::time::sleep(self.patience).await;
            }
            CloseCode::ProtocolError => client.order(Order::Say(Bytes::from_static(&[0, 0, 0]), None)).await,
            CloseCode::TransactionTtlReached => {
                let begin = BeginTransaction { encrypted_scope: b"provoke".to_vec(), ttl_s: 1 };
                let hide = Some(PayloadType::BEGIN_TRANSACTION_ACK);
                client.says(&FromDevice::BeginTransaction(begin), hide).await;
            }
            CloseCode::UnknownMessageAcked => {
                client.says(&FromDevice::ReflectedAck(ReflectedId(u32::MAX)), None).await;
            }
            CloseCode::ClientIdleTimeout => client.order(Order::Mute).await,
            CloseCode::DuplicateConnection => self.log_in_again(client).await?,
            CloseCode::Dropped => {
                let id = client.hello()?.device_id;
                match &self.key {
                    Some(_) => self.other_device(&client.url).await?.drop_device(id).await.into_diagnostic()?,
                    None => client.says(&FromDevice::DropDevice(id), Some(PayloadType::DROP_DEVICE_ACK)).await,
                }
            }
            CloseCode::ReflectionQueueLimit => self.fill_queue(client).await?,
            CloseCode::UnsupportedVersion | CloseCode::DeviceLimitReached | CloseCode::DeviceSlotStateMismatch => {}
        }
        Ok(())
    }

    /// One more device of the group, for as long as the scene stands.
    async fn other_device(&mut self, url: &ClientUrlInfo) -> Result<&mut Device> {
        let device = self.one_more_device(url).await?;
        device.ok_or_else(|| miette!("the group has no slot left for the device that this takes"))
    }

    /// The same, or nothing where all slots are taken.
    async fn one_more_device(&mut self, url: &ClientUrlInfo) -> Result<Option<&mut Device>> {
        let config = self.other_config(url)?;
        let device = match Device::connect(&self.mediator, &config).await {
            Err(ConnectError::NotAdmitted(ended)) if ended.close_code() == Some(CloseCode::DeviceLimitReached) => {
                return Ok(None);
            }
            connected => connected.map_err(|error| not_connected(&error, &self.mediator)),
        };
        let device = device.wrap_err("another device of the group could not connect")?;
        self.crowd.push((config.device_id, device));
        Ok(self.crowd.last_mut().map(|(_, device)| device))
    }

    fn other_config(&self, url: &ClientUrlInfo) -> Result<DeviceConfig> {
        let key = self.key.clone().ok_or_else(|| miette!("the group's key is missing"))?;
        let config = DeviceConfig::new(key, url.server_group.clone(), DeviceId(random::u64()));
        Ok(DeviceConfig { slot_expiration: SlotExpiration::Volatile, ..config })
    }

    /// Until there is no slot left.
    async fn fill_slots(&mut self, url: &ClientUrlInfo) -> Result<()> {
        loop {
            let Some(device) = self.one_more_device(url).await? else {
                self.story.note("all slots are taken already");
                return Ok(());
            };
            let slots = usize::try_from(device.server_info().max_device_slots).into_diagnostic()?;
            let taken = device.devices_info().await.into_diagnostic()?.0.len();
            if taken >= slots {
                self.story.note(&format!("all {slots} slots are taken"));
                return Ok(());
            }
        }
    }

    /// Says what the client said, with an answer to another challenge.
    async fn log_in_again(&mut self, client: &Client) -> Result<()> {
        let hello = client.hello()?;
        let config = self.other_config(&client.url)?;
        let mut raw = self.mediator.open(&client.url).await.map_err(|error| not_connected(&error, &self.mediator))?;
        let challenge = raw.server_hello().await.into_diagnostic()?;
        let response = config.client_hello(&challenge).into_diagnostic()?.response;
        let again = ClientHello { response, expected_slot_state: SlotState::Existing, ..hello.clone() };
        raw.send(&FromDevice::ClientHello(Box::new(again))).await.into_diagnostic()?;
        let info = raw.server_info().await.into_diagnostic()?;
        self.twin = Some(Device::admitted(raw, info));
        Ok(())
    }

    /// Until the client's queue passes its limit.
    async fn fill_queue(&mut self, client: &Client) -> Result<()> {
        let envelope = self.key.as_ref().map(|key| key.seal_envelope(b"provoke")).unwrap_or_default();
        let id = client.hello()?.device_id;
        let others_group = self.own.is_none();
        self.other_device(&client.url).await?;
        let Some((ours, other)) = self.crowd.last_mut() else { return Err(miette!("another device did not stay")) };
        for _ in 0..MESSAGES_MAX / MESSAGES_AT_ONCE {
            // Asked again each time: a device may join meanwhile.
            if others_group && other.devices_info().await.into_diagnostic()?.0.keys().any(|it| *it != id && it != ours)
            {
                return Err(miette!(
                    help = "drop the other devices first, or leave out --url",
                    "the group has other devices, which would lose their slots and what waits there, too"
                ));
            }
            client.order(Order::HoldAcks).await;
            let mut last = None;
            for _ in 0..MESSAGES_AT_ONCE {
                last = Some(other.reflect(&envelope, ReflectFlags::default()).await.into_diagnostic()?);
            }
            if let Some(last) = last {
                other.wait_reflect_ack(last).await.into_diagnostic()?;
                // The acknowledgements before it are of no interest.
                while futures_util::FutureExt::now_or_never(other.next_event()).is_some_and(|event| event.is_ok()) {}
            }
        }
        Err(miette!("{MESSAGES_MAX} messages wait for the client, and the mediator keeps them all"))
    }

    /// Leaves nothing behind at a mediator of others.
    async fn forget(&self, config: &DeviceConfig) {
        if self.own.is_some() {
            return;
        }
        for config in [config.existing(), config.clone()] {
            let dropped = async {
                let mut device = Device::connect(&self.mediator, &config).await.ok()?;
                device.drop_device(config.device_id).await.ok()
            };
            if let Ok(Some(())) = tokio::time::timeout(self.patience, dropped).await {
                return;
            }
        }
    }

    /// Takes everything down.
    async fn strike(self) {
        if let Some(twin) = self.twin {
            twin.close(CloseCode::Normal).await;
        }
        for (id, mut device) in self.crowd {
            // They are volatile: where this fails, the mediator forgets them by itself.
            let _gone = tokio::time::timeout(LEAVES_WITHIN, device.drop_device(id)).await;
        }
        if let Some(own) = self.own {
            let _left_behind = own.mediator.stop().await;
        }
    }
}

impl Own {
    async fn start(code: CloseCode) -> Result<(Self, SocketAddr, Stage)> {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.into_diagnostic()?;
        let address = listener.local_addr().into_diagnostic()?;
        let (stage, door) = Stage::open();
        let store = Arc::new(MemoryStore::new());
        let kept: Arc<dyn Store> = Arc::<MemoryStore>::clone(&store);
        let (limits, timeouts) = plan::bounds(code);
        let parts = stage::parts(kept, Clock::system(), door, limits, timeouts).into_diagnostic()?;
        let mediator = Arc::new(server::Mediator::start(listener, None, parts));
        Ok((Self { mediator, store }, address, stage))
    }
}

/// What is known of a client, and the way to speak in its name.
struct Client {
    url: ClientUrlInfo,
    orders: mpsc::Sender<Order>,
    hello: Option<Box<ClientHello>>,
    proxied: bool,
}

impl Client {
    fn notice(&mut self, seen: Seen) {
        match seen {
            Seen::Hello(hello) => self.hello = Some(hello),
            Seen::Proxied => self.proxied = true,
            Seen::Admitted | Seen::Closed(_) => {}
        }
    }

    fn hello(&self) -> Result<&ClientHello> {
        self.hello.as_deref().ok_or_else(|| miette!("the client's ClientHello was not understood"))
    }

    async fn order(&self, order: Order) {
        // A connection that is over needs no more orders.
        self.orders.send(order).await.unwrap_or_default();
    }

    async fn says(&self, payload: &FromDevice, hide: Option<PayloadType>) {
        self.order(Order::Say(payload.encode(), hide)).await;
    }

    /// Says something to the chat server, unless the client did: then there is a connection already.
    async fn proxies(&self) {
        if !self.proxied {
            self.says(&FromDevice::Proxy(vec![0; 48].into()), None).await;
        }
    }
}

/// When it is to happen.
struct Trigger {
    after: Option<Duration>,
}

impl Trigger {
    async fn comes(self, story: &Story) {
        if let Some(after) = self.after {
            tokio::time::sleep(after).await;
            return;
        }
        story.note("press Enter");
        let (pressed, waits) = oneshot::channel();
        // A thread that nobody waits for: what reads a terminal cannot be stopped.
        std::thread::spawn(move || {
            let _end = std::io::stdin().read_line(&mut String::new());
            let _over = pressed.send(());
        });
        waits.await.unwrap_or_default();
    }
}

/// A plain device: introduces itself, acknowledges, and otherwise listens. How it ended.
async fn play(mediator: Mediator, config: DeviceConfig) -> Result<Ended> {
    let connected = mediator.open(&config.url_info()).await;
    let mut raw = connected.map_err(|error| not_connected(&error, &mediator))?;
    let hello = raw.server_hello().await.into_diagnostic()?;
    let answer = config.client_hello(&hello).into_diagnostic()?;
    // Should it be closed meanwhile, then reading tells why.
    let _closed = raw.send(&FromDevice::ClientHello(Box::new(answer))).await;
    loop {
        match raw.recv().await {
            Ok(ToDevice::Reflected(message)) => {
                let _closed = raw.send(&FromDevice::ReflectedAck(message.id())).await;
            }
            Ok(_) => {}
            Err(ended) => return Ok(ended),
        }
    }
}

/// A door with the development certificate.
fn tls(data: &Path) -> Result<Door> {
    let made = development::development(&data.join("tls"), Clock::system().now().wall_ms).into_diagnostic()?;
    let certificate = Certificate::load(&made.files).into_diagnostic()?;
    Ok(Some(Tls::presenting(certificate).into_diagnostic()?).into())
}
