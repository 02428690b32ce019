//! What a case has to hand: a device group that nobody else uses, devices of it that misbehave on demand, and words for
//! what was not as it should be.
//!
//! That something does *not* happen is shown by asking and seeing the answer come first, never by waiting: all payloads for
//! a device stand in one line ([`Line::heard_before_answer`]).

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::chat::Room;
use crate::client::{DeviceConfig, Ended, GroupKey, Mediator, RawConnection};
use crate::crypto::random;
use crate::time::Clock;
pub(super) use crate::tools::conform::finding::{Done, Finding, ensure};
use crate::wire::d2m::{
    BeginTransaction, ClientHello, CloseCode, DeviceId, DevicesInfo, Envelope, FromDevice, Reflect, ReflectAck,
    ReflectFlags, ReflectId, Reflected, ReflectedId, ServerGroup, ServerHello, ServerInfo, SlotState, SlotsExhausted,
    ToDevice,
};

/// A rule, and how it is tried.
pub(super) struct Case {
    pub(super) id: &'static str,
    pub(super) rule: &'static str,
    /// Seconds it takes to wait for something, if it has to.
    pub(super) slow_s: Option<u64>,
    pub(super) needs: Needs,
    pub(super) run: for<'a> fn(&'a World) -> futures_util::future::BoxFuture<'a, Done>,
}

/// What a case cannot be tried without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    Mediator,
    /// A server group that leads to the chat server which is played here.
    Stage,
    /// A server group that leads to nobody.
    Unreachable,
    /// A CSP chat server, reached by TCP and again through the proxy.
    Csp,
}

/// Makes a line of a table of cases; `slow` says how many seconds it waits.
macro_rules! case {
    ($id:literal, $run:path, $rule:literal) => {
        case!($id, Mediator, $run, $rule)
    };
    ($id:literal, slow $seconds:literal, $run:path, $rule:literal) => {
        Case { slow_s: Some($seconds), ..case!($id, Mediator, $run, $rule) }
    };
    ($id:literal, $needs:ident slow $seconds:literal, $run:path, $rule:literal) => {
        Case { slow_s: Some($seconds), ..case!($id, $needs, $run, $rule) }
    };
    ($id:literal, $needs:ident, $run:path, $rule:literal) => {
        Case { id: $id, rule: $rule, slow_s: None, needs: Needs::$needs, run: |world| Box::pin($run(world)) }
    };
}
pub(super) use case;

/// Who is judged, and with what patience.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) mediator: Mediator,
    pub(super) server_group: ServerGroup,
    pub(super) unreachable: Option<ServerGroup>,
    pub(super) stage: Option<Stage>,
    pub(super) room: Option<Room>,
    pub(super) patience: Duration,
    pub(super) clock: Clock,
}

/// A device group of its own for one case.
pub(super) struct World {
    pub(super) target: Arc<Target>,
    pub(super) key: GroupKey,
    /// Whether CSP goes through the proxy.
    pub(super) through_proxy: bool,
    /// Whom a slot may be left of.
    seen: Mutex<BTreeSet<DeviceId>>,
    server_group: ServerGroup,
}

impl World {
    pub(super) fn new(target: Arc<Target>, server_group: ServerGroup, through_proxy: bool) -> Self {
        Self { target, key: GroupKey::generate(), through_proxy, seen: Mutex::default(), server_group }
    }

    /// A device that never came before and wants to be turned away when there is no room.
    pub(super) fn config(&self, device: u64) -> DeviceConfig {
        DeviceConfig::new(self.key.clone(), self.server_group.clone(), DeviceId(device))
    }

    pub(super) async fn soon<T>(&self, what: &str, happens: impl Future<Output = T>) -> Result<T, Finding> {
        soon(self.target.patience, what, happens).await
    }

    /// A connection on which nothing has been said.
    pub(super) async fn open(&self, config: &DeviceConfig) -> Result<Line, Finding> {
        let raw = self.soon("a WebSocket", self.target.mediator.open(&config.url_info())).await??;
        Ok(self.line(raw))
    }

    pub(super) fn line(&self, raw: RawConnection) -> Line {
        Line { raw, patience: self.target.patience }
    }

    /// A connection that was greeted, and the answer it ought to give.
    pub(super) async fn greeted(&self, config: &DeviceConfig) -> Result<(Line, ClientHello), Finding> {
        let mut line = self.open(config).await?;
        let hello = self.answer(&mut line, config).await?;
        Ok((line, hello))
    }

    pub(super) async fn answer(&self, line: &mut Line, config: &DeviceConfig) -> Result<ClientHello, Finding> {
        let hello = line.server_hello().await?;
        let hello = config.client_hello(&hello)?;
        self.sees(config.device_id);
        Ok(hello)
    }

    /// A slot of this device may be left.
    pub(super) fn sees(&self, device: DeviceId) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(device);
    }

    /// A connection that was admitted, and with which words.
    pub(super) async fn admitted(&self, config: &DeviceConfig) -> Result<(Line, ServerInfo), Finding> {
        let (mut line, hello) = self.greeted(config).await?;
        line.say(&FromDevice::ClientHello(Box::new(hello))).await?;
        let info = line.server_info().await?;
        Ok((line, info))
    }

    /// The same, when nobody wants to know the words.
    pub(super) async fn joins(&self, device: u64) -> Result<Line, Finding> {
        Ok(self.admitted(&self.config(device)).await?.0)
    }

    /// A device that was here before: what it was told, and everything up to Dry.
    pub(super) async fn returns(&self, device: u64) -> Result<(Line, ServerInfo, Vec<ToDevice>), Finding> {
        let (mut line, info) = self.admitted(&self.config(device).existing()).await?;
        let backlog = line.until("ReflectionQueueDry", |it| *it == ToDevice::ReflectionQueueDry).await?;
        Ok((line, info, backlog))
    }

    /// A device that was here before: the messages that waited for it.
    pub(super) async fn queue_of(&self, device: u64) -> Result<(Line, Vec<Reflected>), Finding> {
        let (line, _, backlog) = self.returns(device).await?;
        Ok((line, messages(backlog)))
    }

    /// Says ClientHello and returns how the connection ended.
    pub(super) async fn turned_away(&self, config: &DeviceConfig) -> Result<Ended, Finding> {
        let (mut line, hello) = self.greeted(config).await?;
        line.say(&FromDevice::ClientHello(Box::new(hello))).await?;
        line.ended().await
    }

    /// Waits until the others are told that a device is not connected.
    pub(super) async fn until_away(&self, asker: &mut Line, device: u64) -> Done {
        use crate::wire::d2m::ConnectionState::LastDisconnectAt;
        let told = async {
            loop {
                let devices = asker.devices().await?;
                let state = devices.0.get(&DeviceId(device)).map(|info| info.connection);
                if matches!(state, Some(LastDisconnectAt(_))) {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        self.soon("DevicesInfo that shows the device disconnected", told).await?
    }

    /// The chat server's stage, waiting for one visitor.
    pub(super) fn expects_visit(&self) -> Result<Visit<'_>, Finding> {
        let stage = self.target.stage.as_ref().ok_or_else(|| Finding::Untried("there is no stage".to_owned()))?;
        Ok(stage.expect(self.target.patience))
    }

    /// Removes every device of the group. Says what is left, if anything may be.
    pub(super) async fn clean_up(&self) -> Result<(), String> {
        /// Unlike any device that the cases use.
        const JANITOR: u64 = 0xc1ea_0000_0000_0000;
        if self.seen.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            return Ok(());
        }
        let cleaned = async {
            let janitor = DeviceConfig { slots_exhausted: SlotsExhausted::DropLeastRecent, ..self.config(JANITOR) };
            let (mut line, _) = self.admitted(&janitor).await?;
            let devices = line.devices().await?;
            for device in devices.0.keys().filter(|device| **device != janitor.device_id) {
                line.drop_device(*device).await?;
            }
            line.say(&FromDevice::DropDevice(janitor.device_id)).await?;
            line.ended().await
        };
        match tokio::time::timeout(self.target.patience * 2, cleaned).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(Finding::Broken(why) | Finding::Untried(why))) => Err(why),
            Err(_) => Err("the mediator did not answer".to_owned()),
        }
    }
}

async fn soon<T>(patience: Duration, what: &str, happens: impl Future<Output = T>) -> Result<T, Finding> {
    let waited = tokio::time::timeout(patience, happens).await;
    waited.map_err(|_| Finding::Broken(format!("{what} did not come within {patience:?}")))
}

/// The reflected messages among payloads.
pub(super) fn messages(payloads: Vec<ToDevice>) -> Vec<Reflected> {
    let reflected = |payload| if let ToDevice::Reflected(message) = payload { Some(message) } else { None };
    payloads.into_iter().filter_map(reflected).collect()
}

/// Their envelopes.
pub(super) fn envelopes(messages: &[Reflected]) -> Vec<&[u8]> {
    messages.iter().map(Reflected::envelope).collect()
}

/// What payloads are, for people.
pub(super) fn names(payloads: &[ToDevice]) -> String {
    let names: Vec<String> = payloads.iter().map(|payload| payload.kind().to_string()).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

/// Whether a connection ended with a code, and how if not.
pub(super) fn code(ended: &Ended, expected: CloseCode) -> Done {
    ensure!(ended.close_code() == Some(expected), "{} was due, and the connection was {ended}", expected.code());
    Ok(())
}

/// One connection of a device, admitted or not.
pub(super) struct Line {
    pub(super) raw: RawConnection,
    patience: Duration,
}

impl Line {
    pub(super) async fn say(&mut self, payload: &FromDevice) -> Done {
        self.say_bytes(payload.encode()).await
    }

    pub(super) async fn say_bytes(&mut self, container: impl Into<Bytes>) -> Done {
        // A connection that is over says why when it is read.
        if soon(self.patience, "room to write", self.raw.send_binary(container)).await?.is_err() {
            return Err(self.ended().await?.into());
        }
        Ok(())
    }

    /// The next container as it came.
    pub(super) async fn next_bytes(&mut self, due: &str) -> Result<Bytes, Finding> {
        match soon(self.patience, due, self.raw.recv_binary()).await? {
            Ok(bytes) => Ok(bytes),
            Err(ended) => Err(Finding::Broken(format!("{due} was due, and the connection was {ended}"))),
        }
    }

    pub(super) async fn next(&mut self, due: &str) -> Result<ToDevice, Finding> {
        let bytes = self.next_bytes(due).await?;
        ToDevice::decode(&bytes).map_err(|bad| Finding::Broken(format!("the mediator sent no payload: {bad}")))
    }

    /// Reads up to what fits; returns what came before it, and it.
    pub(super) async fn until(
        &mut self,
        due: &str,
        fits: impl Fn(&ToDevice) -> bool,
    ) -> Result<Vec<ToDevice>, Finding> {
        let mut heard = Vec::new();
        loop {
            let payload = self.next(due).await?;
            let enough = fits(&payload);
            heard.push(payload);
            if enough {
                return Ok(heard);
            }
        }
    }

    /// Reads up to what fits and returns what is made of it.
    pub(super) async fn wait<T>(
        &mut self,
        due: &str,
        mut fits: impl FnMut(ToDevice) -> Option<T>,
    ) -> Result<T, Finding> {
        loop {
            if let Some(found) = fits(self.next(due).await?) {
                return Ok(found);
            }
        }
    }

    pub(super) async fn wait_for(&mut self, due: &str, expected: ToDevice) -> Done {
        self.wait(due, |payload| (payload == expected).then_some(())).await
    }

    pub(super) async fn server_hello(&mut self) -> Result<ServerHello, Finding> {
        match self.next("ServerHello").await? {
            ToDevice::ServerHello(hello) => Ok(*hello),
            other => Err(format!("{} came where ServerHello was due", other.kind()).into()),
        }
    }

    pub(super) async fn server_info(&mut self) -> Result<ServerInfo, Finding> {
        match self.next("ServerInfo").await? {
            ToDevice::ServerInfo(info) => Ok(info),
            other => Err(format!("{} came where ServerInfo was due", other.kind()).into()),
        }
    }

    /// The next reflected message.
    pub(super) async fn reflected(&mut self) -> Result<Reflected, Finding> {
        self.wait("a reflected message", |it| if let ToDevice::Reflected(it) = it { Some(it) } else { None }).await
    }

    pub(super) async fn reflect(&mut self, id: u32, envelope: &[u8]) -> Done {
        self.say(&reflect(id, envelope, false)).await
    }

    pub(super) async fn ephemeral(&mut self, id: u32, envelope: &[u8]) -> Done {
        self.say(&reflect(id, envelope, true)).await
    }

    pub(super) async fn reflect_ack(&mut self, id: u32) -> Result<ReflectAck, Finding> {
        let due = format!("the reflect-ack of {id}");
        self.wait(&due, |payload| match payload {
            ToDevice::ReflectAck(ack) if ack.reflect_id == ReflectId(id) => Some(ack),
            _ => None,
        })
        .await
    }

    /// Reflects and waits for the acknowledgement.
    pub(super) async fn reflects(&mut self, id: u32, envelope: &[u8]) -> Result<ReflectAck, Finding> {
        self.reflect(id, envelope).await?;
        self.reflect_ack(id).await
    }

    pub(super) async fn ack(&mut self, id: ReflectedId) -> Done {
        self.say(&FromDevice::ReflectedAck(id)).await
    }

    pub(super) async fn begin(&mut self, scope: &[u8], ttl_s: u32) -> Done {
        self.say(&FromDevice::BeginTransaction(BeginTransaction { encrypted_scope: scope.to_vec(), ttl_s })).await
    }

    /// Asks for a lock that nobody holds.
    pub(super) async fn begins(&mut self, scope: &[u8], ttl_s: u32) -> Done {
        self.begin(scope, ttl_s).await?;
        let answer = self.wait("BeginTransactionAck", |payload| match payload {
            ToDevice::BeginTransactionAck => Some(true),
            ToDevice::TransactionRejected(_) => Some(false),
            _ => None,
        });
        ensure!(answer.await?, "the lock is free, and TransactionRejected came");
        Ok(())
    }

    pub(super) async fn commits(&mut self) -> Done {
        self.say(&FromDevice::CommitTransaction).await?;
        self.wait_for("CommitTransactionAck", ToDevice::CommitTransactionAck).await
    }

    pub(super) async fn dry(&mut self) -> Done {
        self.wait_for("ReflectionQueueDry", ToDevice::ReflectionQueueDry).await
    }

    pub(super) async fn leads(&mut self) -> Done {
        self.wait_for("RolePromotedToLeader", ToDevice::RolePromotedToLeader).await
    }

    pub(super) async fn devices(&mut self) -> Result<DevicesInfo, Finding> {
        self.say(&FromDevice::GetDevicesInfo).await?;
        self.wait("DevicesInfo", |it| if let ToDevice::DevicesInfo(it) = it { Some(it) } else { None }).await
    }

    /// Asks something and returns what came before the answer.
    pub(super) async fn heard_before_answer(&mut self) -> Result<Vec<ToDevice>, Finding> {
        self.say(&FromDevice::GetDevicesInfo).await?;
        let mut heard = self.until("DevicesInfo", |it| matches!(it, ToDevice::DevicesInfo(_))).await?;
        heard.pop();
        Ok(heard)
    }

    pub(super) async fn drop_device(&mut self, id: DeviceId) -> Done {
        self.say(&FromDevice::DropDevice(id)).await?;
        self.wait_for("DropDeviceAck", ToDevice::DropDeviceAck(id)).await
    }

    /// How the connection ends, whatever is said before.
    pub(super) async fn ended(&mut self) -> Result<Ended, Finding> {
        soon(self.patience, "the end of the connection", self.raw.wait_ended()).await
    }

    pub(super) async fn ends_with(&mut self, expected: CloseCode) -> Done {
        let ended = soon(self.patience, &format!("a close with {}", expected.code()), self.raw.wait_ended()).await?;
        code(&ended, expected)
    }

    /// Sends something the mediator has to answer with 4010.
    pub(super) async fn closes_for(mut self, container: impl Into<Bytes>) -> Done {
        // Whether it could be written to the end is no matter.
        let _refused = self.raw.send_binary(container).await;
        self.ends_with(CloseCode::ProtocolError).await
    }

    /// Shows that the connection is still served.
    pub(super) async fn is_alive(&mut self) -> Done {
        self.devices().await.map(drop)
    }

    /// Closes in order.
    pub(super) async fn leaves(mut self) -> Result<Ended, Finding> {
        soon(self.patience, "the end of the closing handshake", self.raw.close(1000, "")).await
    }

    /// Proxy payloads up to a number, as they came.
    pub(super) async fn units(&mut self, how_many: usize) -> Result<Vec<Bytes>, Finding> {
        let mut units = Vec::new();
        while units.len() < how_many {
            units.push(
                self.wait("a proxy payload", |it| if let ToDevice::Proxy(it) = it { Some(it) } else { None }).await?,
            );
        }
        Ok(units)
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.raw.fmt(f)
    }
}

pub(super) fn reflect(id: u32, envelope: &[u8], ephemeral: bool) -> FromDevice {
    let (flags, envelope) = (ReflectFlags { ephemeral }, Envelope::copy_from(envelope));
    FromDevice::Reflect(Reflect { flags, reflect_id: ReflectId(id), envelope })
}

/// Whether a device was told that its slot exists.
pub(super) fn slot(info: &ServerInfo, expected: SlotState) -> Done {
    ensure!(info.slot_state == expected, "ServerInfo says that the slot is {:?}", info.slot_state);
    Ok(())
}

/// The chat server that is played here. Visitors say whose case they belong to by their first bytes, so that cases can run
/// side by side behind one address.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) server_group: ServerGroup,
    expected: Arc<Mutex<HashMap<[u8; TOKEN], oneshot::Sender<TcpStream>>>>,
    _listening: AbortOnDropHandle<()>,
}

const TOKEN: usize = 16;
/// As long as a CSP client-hello.
const VISIT: usize = 48;

impl Stage {
    pub(super) fn open(listener: TcpListener, server_group: ServerGroup) -> Self {
        let expected = Arc::new(Mutex::new(HashMap::<[u8; TOKEN], oneshot::Sender<TcpStream>>::new()));
        let register = Arc::clone(&expected);
        let listening = tokio::spawn(async move {
            // An address that cannot be accepted on any more fails the cases that wait.
            while let Ok((mut visitor, _)) = listener.accept().await {
                let register = Arc::clone(&register);
                tokio::spawn(async move {
                    let mut token = [0; TOKEN];
                    if visitor.read_exact(&mut token).await.is_ok() && visitor.set_nodelay(true).is_ok() {
                        let waiting = register.lock().unwrap_or_else(PoisonError::into_inner).remove(&token);
                        // A case that is over lets the visitor go.
                        waiting.map(|waiting| waiting.send(visitor));
                    }
                });
            }
        });
        Self { server_group, expected, _listening: AbortOnDropHandle::new(listening) }
    }

    fn expect(&self, patience: Duration) -> Visit<'_> {
        let (token, (sender, arrival)) = (random::bytes(), oneshot::channel());
        self.expected.lock().unwrap_or_else(PoisonError::into_inner).insert(token, sender);
        Visit { stage: self, token, arrival, patience }
    }
}

/// A visitor of the stage who is to come.
pub(super) struct Visit<'a> {
    stage: &'a Stage,
    token: [u8; TOKEN],
    arrival: oneshot::Receiver<TcpStream>,
    patience: Duration,
}

impl Visit<'_> {
    /// What the device has to say first.
    pub(super) fn hello(&self) -> Bytes {
        let mut hello = vec![0x5a; VISIT];
        hello.splice(..TOKEN, self.token);
        hello.into()
    }

    pub(super) fn proxy(&self) -> FromDevice {
        FromDevice::Proxy(self.hello())
    }

    /// The visitor, who has said all of [`Self::hello`].
    pub(super) async fn arrives(&mut self) -> Result<Visitor, Finding> {
        let arrival = soon(self.patience, "the mediator's connection to the chat server", &mut self.arrival).await?;
        let stream = arrival.map_err(|_| Finding::Untried("the stage was closed".to_owned()))?;
        let mut visitor = Visitor { stream, patience: self.patience };
        let rest = visitor.hears(VISIT - TOKEN).await?;
        ensure!(self.hello().ends_with(&rest), "the chat server did not get the bytes that were proxied first");
        Ok(visitor)
    }

    pub(super) fn has_arrived(&mut self) -> bool {
        !matches!(self.arrival.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.stage.expected.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.token);
    }
}

/// The mediator, as the chat server sees it.
pub(super) struct Visitor {
    pub(super) stream: TcpStream,
    patience: Duration,
}

impl Visitor {
    pub(super) async fn hears(&mut self, len: usize) -> Result<Vec<u8>, Finding> {
        let mut got = vec![0; len];
        soon(self.patience, &format!("{len} bytes for the chat server"), self.stream.read_exact(&mut got)).await??;
        Ok(got)
    }

    pub(super) async fn says(&mut self, bytes: &[u8]) -> Done {
        Ok(soon(self.patience, "room to write", self.stream.write_all(bytes)).await??)
    }

    /// Waits for the mediator to close.
    pub(super) async fn is_left(&mut self) -> Done {
        let mut rest = Vec::new();
        // A reset is an end, too.
        let _end =
            soon(self.patience, "the end of the chat server's connection", self.stream.read_to_end(&mut rest)).await?;
        Ok(())
    }
}
