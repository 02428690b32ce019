//! What a client says and expects.

use std::collections::VecDeque;
use std::fmt;
use std::panic::Location;
use std::time::Duration;

use bytes::Bytes;

use crate::client::{DeviceConfig, Ended, GroupKey, RawConnection};
use crate::tools::describe;
use crate::wire::d2m::{
    BeginTransaction, CloseCode, DeviceId, DevicesInfo, Envelope, FromDevice, Reflect, ReflectAck, ReflectFlags,
    ReflectId, Reflected, ServerInfo, ToDevice, TransactionHolder,
};

/// Where in a test.
type At = &'static Location<'static>;

/// One connection of a device, which says what it is told to and nothing else: it acknowledges nothing by itself, and does
/// not come back. It reads when something is expected, so what came meanwhile is judged then.
///
/// Whatever is said on a connection that is over is not heard by anybody; the next expectation tells how it ended.
pub struct TestClient {
    raw: RawConnection,
    name: String,
    key: GroupKey,
    patience: Duration,
    next_reflect_id: u32,
    /// Read while something of the other lane was waited for.
    payloads: VecDeque<ToDevice>,
    proxied: VecDeque<Bytes>,
    /// What it said and heard.
    story: Vec<String>,
}

impl TestClient {
    pub(super) fn new(raw: RawConnection, config: &DeviceConfig, patience: Duration) -> Self {
        Self {
            raw,
            name: format!("device {:x}", config.device_id.0),
            key: config.key.clone(),
            patience,
            next_reflect_id: 1,
            payloads: VecDeque::new(),
            proxied: VecDeque::new(),
            story: Vec::new(),
        }
    }

    pub(super) async fn introduce(&mut self, config: &DeviceConfig) {
        let hello = match tokio::time::timeout(self.patience, self.raw.server_hello()).await {
            Ok(Ok(hello)) => hello,
            Ok(Err(error)) => panic!("{}: no ServerHello: {error}", self.name),
            Err(_) => panic!("{}: no ServerHello", self.name),
        };
        match config.client_hello(&hello) {
            Ok(answer) => self.say(&FromDevice::ClientHello(Box::new(answer))).await,
            Err(error) => panic!("{}: {error}", self.name),
        }
    }

    /// Says any payload.
    pub async fn say(&mut self, payload: &FromDevice) {
        self.story.push(format!("-> {}", describe::of_device(payload, Some(&self.key)).line()));
        let _over = self.raw.send(payload).await;
    }

    /// Says any bytes as one binary message, whatever they are.
    pub async fn say_bytes(&mut self, container: impl Into<Bytes>) {
        let container = container.into();
        self.story.push(format!("-> {} bytes that may be no payload", container.len()));
        let _over = self.raw.send_binary(container).await;
    }

    /// Reflects an envelope as it is; [`GroupKey::seal_envelope`] makes what other clients can open. Reflect-ids count from 1.
    pub async fn reflect(&mut self, envelope: &[u8]) -> ReflectId {
        self.reflect_with(envelope, ReflectFlags::default()).await
    }

    /// The same for the devices that are connected now; it is never acknowledged.
    pub async fn reflect_ephemeral(&mut self, envelope: &[u8]) -> ReflectId {
        self.reflect_with(envelope, ReflectFlags { ephemeral: true }).await
    }

    async fn reflect_with(&mut self, envelope: &[u8], flags: ReflectFlags) -> ReflectId {
        let reflect_id = ReflectId(self.next_reflect_id);
        self.next_reflect_id = self.next_reflect_id.wrapping_add(1);
        self.say(&FromDevice::Reflect(Reflect { flags, reflect_id, envelope: Envelope::copy_from(envelope) })).await;
        reflect_id
    }

    /// Acknowledges a message.
    pub async fn ack(&mut self, message: &Reflected) {
        self.say(&FromDevice::ReflectedAck(message.id())).await;
    }

    /// Asks for the lock; zero seconds ask for as long as the mediator allows.
    pub async fn begin(&mut self, encrypted_scope: &[u8], ttl_s: u32) {
        let begin = BeginTransaction { encrypted_scope: encrypted_scope.to_vec(), ttl_s };
        self.say(&FromDevice::BeginTransaction(begin)).await;
    }

    /// Gives the lock back and lets what was reflected under it be delivered.
    pub async fn commit(&mut self) {
        self.say(&FromDevice::CommitTransaction).await;
    }

    /// Asks to remove a device from the group, maybe this one.
    pub async fn drop_device(&mut self, id: u64) {
        self.say(&FromDevice::DropDevice(DeviceId(id))).await;
    }

    /// Says bytes to the chat server.
    pub async fn proxy(&mut self, bytes: &[u8]) {
        self.say(&FromDevice::Proxy(Bytes::copy_from_slice(bytes))).await;
    }

    /// Closes in order, and gives the mediator's answer. What it still says is in the story.
    pub async fn close(mut self) -> Ended {
        self.raw.close(CloseCode::Normal.code(), "").await
    }

    /// Returns when the mediator has done everything that this client said. What came meanwhile is still expected.
    ///
    /// # Panics
    /// When the connection is over, or no answer comes.
    #[track_caller]
    pub fn fence(&mut self) -> impl Future<Output = ()> {
        let at = Location::caller();
        async move {
            let before = std::mem::take(&mut self.payloads);
            self.say(&FromDevice::GetDevicesInfo).await;
            let mut came = VecDeque::new();
            loop {
                match self.next(at, "DevicesInfo").await {
                    ToDevice::DevicesInfo(_) => break,
                    other => came.push_back(other),
                }
            }
            self.payloads = before.into_iter().chain(came).collect();
        }
    }

    /// Expects that nothing has come for this client, of what the mediator did before it now asks something: no payload, and no
    /// end. For what another client said, let that one [`Self::fence`] first.
    ///
    /// # Panics
    /// When something has.
    #[track_caller]
    pub fn expect_silence(&mut self) -> impl Future<Output = ()> {
        let at = Location::caller();
        async move {
            self.say(&FromDevice::GetDevicesInfo).await;
            let heard = self.next(at, "an answer after nothing else").await;
            if !matches!(heard, ToDevice::DevicesInfo(_)) {
                self.fail(at, &format!("silence was expected, and there came\n    {}", self.line(&heard)));
            }
        }
    }

    /// Expects to have been admitted.
    ///
    /// # Panics
    /// When something else comes next.
    #[track_caller]
    pub fn expect_server_info(&mut self) -> impl Future<Output = ServerInfo> {
        self.server_info(Location::caller())
    }

    pub(super) async fn server_info(&mut self, at: At) -> ServerInfo {
        let fits = |payload| if let ToDevice::ServerInfo(info) = payload { Ok(info) } else { Err(payload) };
        self.expect(at, "ServerInfo", fits).await
    }

    /// Expects that everything that waited has come.
    ///
    /// # Panics
    /// When something else comes next.
    #[track_caller]
    pub fn expect_dry(&mut self) -> impl Future<Output = ()> {
        self.dry(Location::caller())
    }

    pub(super) async fn dry(&mut self, at: At) {
        self.expect(at, "ReflectionQueueDry", exactly(ToDevice::ReflectionQueueDry)).await;
    }

    /// Expects to be promoted.
    ///
    /// # Panics
    /// When something else comes next.
    #[track_caller]
    pub fn expect_leader(&mut self) -> impl Future<Output = ()> {
        let at = Location::caller();
        async move { self.expect(at, "RolePromotedToLeader", exactly(ToDevice::RolePromotedToLeader)).await }
    }

    /// Expects a reflected message.
    ///
    /// # Panics
    /// When something else comes next.
    #[track_caller]
    pub fn expect_reflected(&mut self) -> impl Future<Output = Reflected> {
        let at = Location::caller();
        let fits = |payload| if let ToDevice::Reflected(message) = payload { Ok(message) } else { Err(payload) };
        async move { self.expect(at, "Reflected", fits).await }
    }

    /// Expects the acknowledgement of a reflect.
    ///
    /// # Panics
    /// When something else comes next, that of another reflect for instance.
    #[track_caller]
    pub fn expect_reflect_ack(&mut self, id: ReflectId) -> impl Future<Output = ReflectAck> {
        let at = Location::caller();
        let fits = move |payload| match payload {
            ToDevice::ReflectAck(ack) if ack.reflect_id == id => Ok(ack),
            payload => Err(payload),
        };
        async move { self.expect(at, &format!("the reflect-ack of {}", id.0), fits).await }
    }

    /// Expects to have got the lock.
    ///
    /// # Panics
    /// When something else comes next.
    #[track_caller]
    pub fn expect_begin_ack(&mut self) -> impl Future<Output = ()> {
        let at = Location::caller();
        async move { self.expect(at, "BeginTransactionAck", exactly(ToDevice::BeginTransactionAck)).await }
    }

    /// Expects that what was reflected under the lock has been delivered.
    ///
    /// # Panics
    /// When something else comes next.
    #[track_caller]
    pub fn expect_commit_ack(&mut self) -> impl Future<Output = ()> {
        let at = Location::caller();
        async move { self.expect(at, "CommitTransactionAck", exactly(ToDevice::CommitTransactionAck)).await }
    }

    /// Expects that another device holds the lock.
    ///
    /// # Panics
    /// When something else comes next.
    #[track_caller]
    pub fn expect_rejected(&mut self) -> impl Future<Output = TransactionHolder> {
        let at = Location::caller();
        let fits = |payload| if let ToDevice::TransactionRejected(it) = payload { Ok(it) } else { Err(payload) };
        async move { self.expect(at, "TransactionRejected", fits).await }
    }

    /// Expects that another device's transaction is over.
    ///
    /// # Panics
    /// When something else comes next.
    #[track_caller]
    pub fn expect_transaction_ended(&mut self) -> impl Future<Output = TransactionHolder> {
        let at = Location::caller();
        let fits = |payload| if let ToDevice::TransactionEnded(it) = payload { Ok(it) } else { Err(payload) };
        async move { self.expect(at, "TransactionEnded", fits).await }
    }

    /// Expects that a device is not in the group (any more).
    ///
    /// # Panics
    /// When something else comes next.
    #[track_caller]
    pub fn expect_drop_ack(&mut self, id: u64) -> impl Future<Output = ()> {
        let at = Location::caller();
        let ack = ToDevice::DropDeviceAck(DeviceId(id));
        async move { self.expect(at, &format!("the DropDeviceAck of {id:x}"), exactly(ack)).await }
    }

    /// Asks who is in the group, and expects the answer next.
    ///
    /// # Panics
    /// When something else comes next.
    #[track_caller]
    pub fn devices(&mut self) -> impl Future<Output = DevicesInfo> {
        let at = Location::caller();
        let fits = |payload| if let ToDevice::DevicesInfo(it) = payload { Ok(it) } else { Err(payload) };
        async move {
            self.say(&FromDevice::GetDevicesInfo).await;
            self.expect(at, "DevicesInfo", fits).await
        }
    }

    /// Expects one unit of the chat server: the next in its lane, whatever comes in the other.
    ///
    /// # Panics
    /// When none comes.
    #[track_caller]
    pub fn expect_proxy(&mut self) -> impl Future<Output = Bytes> {
        let at = Location::caller();
        async move {
            loop {
                if let Some(unit) = self.proxied.pop_front() {
                    return unit;
                }
                let payload = self.hear(at, "a proxy payload").await;
                self.sort(payload);
            }
        }
    }

    /// Expects to be closed with this code. What comes before it is no matter.
    ///
    /// # Panics
    /// When the connection ends otherwise, or not in time.
    #[track_caller]
    pub fn expect_close(&mut self, code: u16) -> impl Future<Output = ()> {
        let at = Location::caller();
        async move {
            let ended = loop {
                match tokio::time::timeout(self.patience, self.raw.recv()).await {
                    Ok(Ok(payload)) => self.heard(&payload),
                    Ok(Err(ended)) => break ended,
                    Err(_) => self.fail(at, &format!("a close with {code} was due within {:?}", self.patience)),
                }
            };
            if ended.code() != Some(code) {
                self.fail(at, &format!("a close with {code} was due, and the connection was {ended}"));
            }
        }
    }

    async fn expect<T>(&mut self, at: At, due: &str, fits: impl FnOnce(ToDevice) -> Result<T, ToDevice>) -> T {
        let payload = self.next(at, due).await;
        fits(payload).unwrap_or_else(|other| {
            self.fail(at, &format!("{due} was due next, and there came\n    {}", self.line(&other)))
        })
    }

    /// The next payload that is not proxied.
    async fn next(&mut self, at: At, due: &str) -> ToDevice {
        loop {
            if let Some(payload) = self.payloads.pop_front() {
                return payload;
            }
            let payload = self.hear(at, due).await;
            self.sort(payload);
        }
    }

    fn sort(&mut self, payload: ToDevice) {
        match payload {
            ToDevice::Proxy(unit) => self.proxied.push_back(unit),
            payload => self.payloads.push_back(payload),
        }
    }

    async fn hear(&mut self, at: At, due: &str) -> ToDevice {
        match tokio::time::timeout(self.patience, self.raw.recv()).await {
            Ok(Ok(payload)) => {
                self.heard(&payload);
                payload
            }
            Ok(Err(ended)) => self.fail(at, &format!("{due} was due, and the connection was {ended}")),
            Err(_) => self.fail(at, &format!("{due} was due and did not come within {:?}", self.patience)),
        }
    }

    fn heard(&mut self, payload: &ToDevice) {
        let line = format!("<- {}", self.line(payload));
        self.story.push(line);
    }

    fn line(&self, payload: &ToDevice) -> String {
        describe::of_mediator(payload, Some(&self.key)).line()
    }

    fn fail(&self, at: At, what: &str) -> ! {
        let story: String = self.story.iter().map(|line| format!("\n    {line}")).collect();
        panic!("{at}: {}: {what}\nwhat it said and heard:{story}", self.name)
    }
}

/// Fits one payload alone.
fn exactly(expected: ToDevice) -> impl FnOnce(ToDevice) -> Result<(), ToDevice> {
    move |payload| if payload == expected { Ok(()) } else { Err(payload) }
}

impl fmt::Debug for TestClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestClient").field("name", &self.name).field("raw", &self.raw).finish_non_exhaustive()
    }
}
