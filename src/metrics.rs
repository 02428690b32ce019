//! What operators can measure: every metric of the process, in one list.
//!
//! # Rules
//!
//! * Whoever counts something calls a handle of [`Metrics`], which is made once. An event costs an atomic addition or two:
//!   nothing is allocated and nothing is looked up by its name.
//! * Labels are closed enums of this file. No device group, device, identity or address ever becomes one, so the number of
//!   series is known when this is compiled.
//! * A metric says which sum it has to satisfy. A sum holds between scrapes, not within one: a scrape reads one counter
//!   after the other while the server goes on counting.
//! * Everything is counted from the start of the process. Nothing is kept.
//!
//! The text here is what `# HELP` says and what `docs/metrics.md` lists; a test compares that page with this list.
//!
//! The metrics belong to the process, like its memory: a test that asserts sums has a process of its own.

use std::fmt::{self, Write as _};
use std::marker::PhantomData;
use std::sync::LazyLock;
use std::time::Duration;

use ::metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tokio_util::sync::CancellationToken;

use crate::time::Clock;
use crate::wire::d2m::CloseCode;

/// The metrics of this process.
#[must_use]
pub fn get() -> &'static Metrics {
    &PROCESS.metrics
}

/// Everything as Prometheus reads it (text format 0.0.4). Gauges that have to be asked for are set before by who knows
/// them; memory and file descriptors are read here.
#[must_use]
pub fn render() -> String {
    get().look_at_process();
    PROCESS.handle.render()
}

/// Says when the process started, and folds recorded samples into their buckets every few seconds until `stop`, whether or
/// not anybody scrapes: until then each sample takes room.
pub async fn keep_up(clock: Clock, stop: CancellationToken) {
    get().start_time.set(Duration::from_millis(clock.now().wall_ms).as_secs_f64());
    while stop.run_until_cancelled(tokio::time::sleep(UPKEEP_EVERY)).await.is_some() {
        PROCESS.handle.run_upkeep();
    }
}

const UPKEEP_EVERY: Duration = Duration::from_secs(5);

static PROCESS: LazyLock<Process> = LazyLock::new(|| {
    let mut builder = PrometheusBuilder::new();
    for it in catalogue().iter().filter(|it| it.kind == Kind::Histogram) {
        // Refused is an empty list of bounds only; then it would be a summary, and the test of this file would tell.
        let name = Matcher::Full(it.name.to_owned());
        builder = builder.set_buckets_for_metric(name, it.bounds).unwrap_or_else(|_| PrometheusBuilder::new());
    }
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    for it in catalogue() {
        it.describe(&recorder);
    }
    let metrics = Metrics::register(&recorder);
    metrics.build_info.of(Build::This).set(1.0);
    Process { metrics, handle }
});

#[derive(Debug)]
struct Process {
    metrics: Metrics,
    handle: PrometheusHandle,
}

// ---- labels

/// A closed set of values of one label.
pub trait Bounded: Copy + fmt::Debug + 'static {
    /// The label's name.
    const NAME: &'static str;

    /// Every value, in the order of [`Self::index`].
    fn all() -> Vec<Self>;

    /// Its place among all.
    fn index(self) -> usize;

    /// How it is written.
    fn value(self) -> &'static str;
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident($label:literal) { $($(#[$about:meta])* $variant:ident = $value:expr,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$about])* $variant,)* }

        impl Bounded for $name {
            const NAME: &'static str = $label;

            fn all() -> Vec<Self> {
                vec![$(Self::$variant),*]
            }

            fn index(self) -> usize {
                self as usize
            }

            fn value(self) -> &'static str {
                match self { $(Self::$variant => $value),* }
            }
        }
    };
}

label! {
    /// Which program this is.
    Build("version") {
        /// This one.
        This = env!("CARGO_PKG_VERSION"),
    }
}

label! {
    /// How a handshake of the Device-to-Mediator protocol ended.
    Handshake("result") {
        /// The device proved the group key.
        Admitted = "admitted",
        /// It did not.
        NotProved = "not_proved",
        /// It speaks a version that is not spoken here.
        UnsupportedVersion = "unsupported_version",
        /// It said something else.
        Broken = "protocol_error",
        /// It took too long.
        TimedOut = "timeout",
        /// The connection broke or was closed before.
        Lost = "lost",
        /// The mediator stopped before.
        Stopping = "stopping",
    }
}

label! {
    /// How a TLS handshake ended.
    Tls("result") {
        /// Well.
        Done = "done",
        /// With an error.
        Failed = "failed",
        /// It took too long.
        TimedOut = "timeout",
    }
}

label! {
    /// Why somebody was turned away before a session began.
    Refused("why") {
        /// Not a GET.
        Method = "method",
        /// A path that names no group by intent: `/`, `/metrics` and the like.
        NotHere = "not_here",
        /// A path that is no ClientUrlInfo.
        Url = "url",
        /// No WebSocket upgrade.
        NotWebSocket = "not_websocket",
        /// The group is not among those that are served.
        NotAllowed = "group_not_allowed",
        /// Too many connections altogether.
        Full = "connections",
        /// Too many connections from one address.
        FullForAddress = "connections_per_address",
        /// Too many connections of one group.
        FullForGroup = "connections_per_group",
        /// Too many handshakes from one address.
        AddressRate = "handshakes_per_address",
        /// Too many handshakes of one group.
        GroupRate = "handshakes_per_group",
        /// Too many new groups.
        NewGroups = "new_groups",
        /// Too much to do for groups that are not awake.
        Overload = "overload",
        /// A PROXY header was missing, broken or from somebody who may not send one.
        ProxyHeader = "proxy_header",
        /// The mediator stops or drains.
        Stopping = "stopping",
    }
}

label! {
    /// What there is too much of.
    Overload("what") {
        /// Commits wait for too long.
        Writer = "writer",
        /// Memory.
        Memory = "memory",
        /// Connections.
        Connections = "connections",
    }
}

label! {
    /// Why a request is turned away at the admin door.
    Denied("why") {
        /// No token, or another one.
        Token = "token",
        /// A token as browsers send it by themselves, for a change.
        BasicForChange = "basic_for_change",
        /// It is meant for another host.
        Host = "host",
        /// A page from elsewhere wants a change.
        Origin = "origin",
    }
}

label! {
    /// What a device sends more of than it may, so that it is read more slowly.
    Slowed("by") {
        /// Messages.
        Frames = "frames",
        /// Bytes in them.
        Bytes = "bytes",
    }
}

label! {
    /// Who caused the end of a connection.
    Culprit("culprit") {
        /// The device, or its network.
        Device = "device",
        /// The rules of its group.
        Group = "group",
        /// The chat server.
        ChatServer = "chat_server",
        /// The mediator.
        Mediator = "mediator",
    }
}

label! {
    /// Whether a device's slot was there.
    Slot("slot") {
        /// It was made.
        New = "new",
        /// It was there.
        Existing = "existing",
    }
}

label! {
    /// Why a slot was removed.
    Removed("why") {
        /// A device of the group dropped it.
        Dropped = "dropped",
        /// A new device needed room.
        LeastRecent = "least_recent",
        /// Too much waited for it.
        QueueLimit = "queue_limit",
        /// Its time was over.
        Expired = "expired",
        /// Its device never heard of it.
        RolledBack = "rolled_back",
    }
}

label! {
    /// What happens to a reflected message that nobody takes at once.
    Reflect("kind") {
        /// It is kept.
        Durable = "durable",
        /// It is not.
        Ephemeral = "ephemeral",
    }
}

label! {
    /// Why a transaction ended without a commit.
    Aborted("why") {
        /// The holder's connection ended.
        HolderGone = "holder_gone",
        /// It was held for too long.
        Ttl = "ttl",
        /// The group failed.
        GroupFailed = "group_failed",
    }
}

label! {
    /// Which way bytes went.
    Direction("direction") {
        /// From devices to the chat server.
        Up = "to_chat_server",
        /// From the chat server to devices.
        Down = "to_device",
    }
}

label! {
    /// Which end of a link between nodes this is.
    Forwarded("direction") {
        /// Devices here, their groups there.
        Out = "out",
        /// Devices there, their groups here.
        In = "in",
    }
}

label! {
    /// What is wrong with another node.
    LinkFailure("why") {
        /// No connection, or none that can be believed.
        Unreachable = "unreachable",
        /// The link broke.
        Broken = "broken",
        /// Nothing came for too long.
        Silent = "silent",
        /// It said what no node says, on one seat's stream.
        Protocol = "protocol",
        /// Whoever came to the links' door did not prove to be a node.
        Stranger = "stranger",
    }
}

label! {
    /// How connecting to a chat server ended.
    Connect("result") {
        /// Connected.
        Connected = "connected",
        /// Nobody answered in time.
        TimedOut = "timeout",
        /// Refused, no such name, no way there.
        Unreachable = "unreachable",
        /// The device was gone before.
        GivenUp = "given_up",
    }
}

label! {
    /// How something that is done now and then ended.
    Outcome("result") {
        /// Well.
        Done = "done",
        /// It changed nothing.
        Failed = "failed",
    }
}

label! {
    /// A chat server of ours.
    Room("room") {
        /// Chat Server Protocol.
        Csp = "csp",
        /// ChatOs.
        ChatOs = "chatos",
        /// Skynet v5.
        Skynet = "skynet",
        /// X3DH direct messages.
        Dm = "dm",
        /// Tox group chat.
        ToxGroup = "toxgroup",
    }
}

label! {
    /// What became of a request to the DM server.
    DmAnswer("result") {
        /// It was done.
        Done = "done",
        /// It was not, and the client heard why.
        Refused = "refused",
        /// It came too soon.
        TooFast = "too_fast",
        /// We failed.
        Failed = "failed",
    }
}

label! {
    /// What the DM server did at its time.
    DmTimer("timer") {
        /// A scheduled message was sent.
        Sent = "sent",
        /// It was dropped: its author may not speak there any more.
        Dropped = "dropped",
        /// The author of one was to be warned.
        Warned = "warned",
        /// A message was deleted.
        Deleted = "deleted",
    }
}

label! {
    /// What became of waking a device.
    Push("result") {
        /// The push service took it.
        Sent = "sent",
        /// It knows no such device any more.
        Unregistered = "unregistered",
        /// It did not take it.
        Failed = "failed",
        /// There is no push service.
        Logged = "logged",
    }
}

label! {
    /// Which way a file went.
    Transfer("kind") {
        /// To the server.
        Upload = "upload",
        /// From it.
        Download = "download",
    }
}

label! {
    /// How a login at a chat server ended.
    Login("result") {
        /// Let in.
        Accepted = "accepted",
        /// Bad proof, unknown, or out of the protocol.
        Refused = "refused",
        /// Turned away unheard after too many failures.
        Throttled = "throttled",
        /// It took too long.
        TimedOut = "timeout",
        /// The connection broke, or the server stopped or failed.
        Lost = "lost",
    }
}

label! {
    /// Why a hub of Tox groups threw a packet away.
    ToxDropped("why") {
        /// No packet, or none that means something.
        Malformed = "malformed",
        /// For or from nobody who is known.
        Stranger = "stranger",
        /// A box that does not open, a signature that does not hold.
        Forged = "forged",
        /// Heard already, or too far from what is expected.
        Stale = "stale",
        /// Its origin may not.
        NotAllowed = "not_allowed",
        /// More than a limit allows.
        TooMuch = "too_much",
        /// The hub's own, come back.
        Echo = "echo",
        /// More came, or was to be sent, at once than the hub or the kernel took.
        Full = "full",
        /// For a connection that does not read.
        SlowReader = "slow_reader",
    }
}

/// The code a connection was closed with; `none` when the device was not listening any more.
impl Bounded for Option<CloseCode> {
    const NAME: &'static str = "code";

    fn all() -> Vec<Self> {
        std::iter::once(None).chain(CloseCode::ALL.map(Some)).collect()
    }

    fn index(self) -> usize {
        self.map_or(0, |code| code as usize + 1)
    }

    fn value(self) -> &'static str {
        match self {
            None => "none",
            Some(CloseCode::Normal) => "1000",
            Some(CloseCode::ShuttingDown) => "1001",
            Some(CloseCode::InternalError) => "1011",
            Some(CloseCode::ChatServerClosed) => "4000",
            Some(CloseCode::ChatServerUnreachable) => "4001",
            Some(CloseCode::ChatProxyError) => "4009",
            Some(CloseCode::ProtocolError) => "4010",
            Some(CloseCode::TransactionTtlReached) => "4011",
            Some(CloseCode::UnknownMessageAcked) => "4012",
            Some(CloseCode::ClientIdleTimeout) => "4013",
            Some(CloseCode::UnsupportedVersion) => "4110",
            Some(CloseCode::DeviceLimitReached) => "4111",
            Some(CloseCode::DuplicateConnection) => "4112",
            Some(CloseCode::Dropped) => "4113",
            Some(CloseCode::ReflectionQueueLimit) => "4114",
            Some(CloseCode::DeviceSlotStateMismatch) => "4115",
        }
    }
}

// ---- instruments

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts samples by size.
    Histogram,
}

/// Something that can be registered: an instrument, or one for each value of a label.
trait Instrument {
    const KIND: Kind;

    /// Names and values of its labels, outermost first.
    fn labels() -> Vec<(&'static str, Vec<&'static str>)>;

    fn register(recorder: &PrometheusRecorder, name: &'static str, labels: &[Label]) -> Self;
}

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

macro_rules! instrument {
    ($($name:ident $register:ident $describe:ident,)*) => {
        $(impl Instrument for $name {
            const KIND: Kind = Kind::$name;

            fn labels() -> Vec<(&'static str, Vec<&'static str>)> {
                Vec::new()
            }

            fn register(recorder: &PrometheusRecorder, name: &'static str, labels: &[Label]) -> Self {
                recorder.$register(&Key::from_parts(name, labels.to_vec()), &METADATA)
            }
        })*

        impl Described {
            fn describe(&self, recorder: &PrometheusRecorder) {
                let text = SharedString::from(self.help());
                match self.kind {
                    $(Kind::$name => recorder.$describe(KeyName::from_const_str(self.name), self.unit, text),)*
                }
            }
        }
    };
}

instrument! {
    Counter register_counter describe_counter,
    Gauge register_gauge describe_gauge,
    Histogram register_histogram describe_histogram,
}

/// One instrument for each value of a label.
pub struct By<L, T> {
    each: Vec<T>,
    label: PhantomData<fn(L)>,
}

impl<L, T> fmt::Debug for By<L, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "By({} series)", self.each.len())
    }
}

impl<L: Bounded, T: Nothing> By<L, T> {
    /// The one for this value.
    #[must_use]
    pub fn of(&self, label: L) -> &T {
        // There is one for every value; a test looks.
        self.each.get(label.index()).unwrap_or(T::NOTHING)
    }
}

/// An instrument that measures nothing.
pub trait Nothing: 'static {
    /// See there.
    const NOTHING: &'static Self;
}

impl Nothing for Counter {
    const NOTHING: &'static Self = &Self::noop();
}

impl Nothing for Gauge {
    const NOTHING: &'static Self = &Self::noop();
}

impl Nothing for Histogram {
    const NOTHING: &'static Self = &Self::noop();
}

impl<L: 'static, T: 'static> Nothing for By<L, T> {
    const NOTHING: &'static Self = &Self { each: Vec::new(), label: PhantomData };
}

impl<L: Bounded, T: Instrument> Instrument for By<L, T> {
    const KIND: Kind = T::KIND;

    fn labels() -> Vec<(&'static str, Vec<&'static str>)> {
        let mut labels = vec![(L::NAME, L::all().into_iter().map(L::value).collect())];
        labels.extend(T::labels());
        labels
    }

    fn register(recorder: &PrometheusRecorder, name: &'static str, labels: &[Label]) -> Self {
        let one = |value: L| {
            let mut labels = labels.to_vec();
            labels.push(Label::from_static_parts(L::NAME, value.value()));
            T::register(recorder, name, &labels)
        };
        Self { each: L::all().into_iter().map(one).collect(), label: PhantomData }
    }
}

/// Counts something in as long as it lives.
#[derive(Debug)]
#[must_use = "what is counted in is counted out when this is dropped"]
pub struct Presence {
    now: &'static Gauge,
    gone: Option<&'static Counter>,
}

impl Presence {
    /// Counts in, and out when it is dropped.
    pub fn new(now: &'static Gauge, came: Option<&'static Counter>, gone: Option<&'static Counter>) -> Self {
        if let Some(came) = came {
            came.increment(1);
        }
        now.increment(1.0);
        Self { now, gone }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.now.decrement(1.0);
        if let Some(gone) = self.gone {
            gone.increment(1);
        }
    }
}

// ---- the list

/// From a fraction of a sync to a disk in trouble.
const SHORT_S: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// From a device that is online to one in a drawer.
const LONG_S: &[f64] =
    &[0.005, 0.02, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3_600.0, 21_600.0, 86_400.0, 604_800.0, 2_592_000.0];
/// From a caught-up device to the queue's limit.
const QUEUE: &[f64] = &[0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, 30_000.0, 100_000.0];
/// Up to the writer's largest batch.
const BATCH: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
const NONE: &[f64] = &[];

/// One line of the list.
#[derive(Debug, Clone)]
pub struct Described {
    /// Under which heading it stands.
    pub section: &'static str,
    /// As scraped.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// In what it counts.
    pub unit: Option<Unit>,
    /// Names and all values of its labels.
    pub labels: Vec<(&'static str, Vec<&'static str>)>,
    /// Upper bounds of a histogram's buckets.
    pub bounds: &'static [f64],
    /// What it says.
    pub about: &'static str,
    /// Which sum it has to satisfy; may be empty.
    pub sum: &'static str,
}

impl Described {
    fn help(&self) -> String {
        if self.sum.is_empty() { self.about.to_owned() } else { format!("{} Sum: {}.", self.about, self.sum) }
    }
}

macro_rules! metrics {
    ($($section:literal { $($field:ident: $type:ty = $name:literal, $unit:expr, $bounds:expr, $about:literal, $sum:literal;)* })*) => {
        /// The handles. Each stands for one metric, which its documentation names.
        #[derive(Debug)]
        pub struct Metrics {
            $($(
                #[doc = concat!("`", $name, "`: ", $about)]
                #[doc = ""]
                #[doc = $sum]
                pub $field: $type,
            )*)*
        }

        impl Metrics {
            fn register(recorder: &PrometheusRecorder) -> Self {
                Self { $($($field: <$type as Instrument>::register(recorder, $name, &[]),)*)* }
            }
        }

        /// Every metric there is, in order.
        #[must_use]
        pub fn catalogue() -> Vec<Described> {
            vec![$($(Described {
                section: $section,
                name: $name,
                kind: <$type as Instrument>::KIND,
                unit: $unit,
                labels: <$type as Instrument>::labels(),
                bounds: $bounds,
                about: $about,
                sum: $sum,
            },)*)*]
        }
    };
}

const SECONDS: Option<Unit> = Some(Unit::Seconds);
const BYTES: Option<Unit> = Some(Unit::Bytes);
const COUNT: Option<Unit> = None;

metrics! {
    "Connections of devices" {
        connections: Gauge = "heliostat_connections", COUNT, NONE,
            "WebSocket connections of devices that are open, admitted or not.",
            "heliostat_connections_opened_total - heliostat_connections_closed_total";
        connections_opened: Counter = "heliostat_connections_opened_total", COUNT, NONE,
            "WebSocket connections that were upgraded.", "";
        connections_closed: Counter = "heliostat_connections_closed_total", COUNT, NONE,
            "WebSocket connections that ended.", "all of heliostat_closes_total, and all of heliostat_endings_total";
        closes: By<Option<CloseCode>, Counter> = "heliostat_closes_total", COUNT, NONE,
            "Connections that ended, by the close code the device was sent; none when it had closed or was gone.", "";
        endings: By<Culprit, Counter> = "heliostat_endings_total", COUNT, NONE,
            "Connections that ended, by whose doing it was.", "";
        handshakes: By<Handshake, Counter> = "heliostat_handshakes_total", COUNT, NONE,
            "Handshakes of the Device-to-Mediator protocol that ended.",
            "heliostat_connections_opened_total, less those still shaking hands";
        handshake_seconds: Histogram = "heliostat_handshake_seconds", SECONDS, SHORT_S,
            "From the upgrade to the proof of the group key.",
            "its count is heliostat_handshakes_total with result admitted";
        tls_handshakes: By<Tls, Counter> = "heliostat_tls_handshakes_total", COUNT, NONE,
            "TLS handshakes at the public door and at chat servers of ours.", "";
        refused: By<Refused, Counter> = "heliostat_refused_total", COUNT, NONE,
            "Sockets and requests at the public door that did not become a connection.", "";
        ended_by_limit: Counter = "heliostat_ended_by_limit_total", COUNT, NONE,
            "Connections that were ended because the device sent more than it may.", "at most heliostat_connections_closed_total";
        slowed: By<Slowed, Counter> = "heliostat_slowed_total", COUNT, NONE,
            "Messages of devices that waited to be read, because the device sent more than it may.", "";
        draining: Gauge = "heliostat_draining", COUNT, NONE, "1 while the mediator drains or stops, else 0.", "";
        certificate_expires: Gauge = "heliostat_certificate_expiry_timestamp_seconds", SECONDS, NONE,
            "When the certificate of the public door expires, in Unix time; 0 without TLS.", "";
        certificate_missing: Gauge = "heliostat_certificate_missing", COUNT, NONE,
            "1 while the public door does TLS and has no certificate, so that every handshake fails, else 0.", "";
        overload: By<Overload, Gauge> = "heliostat_overload", COUNT, NONE,
            "1 for what there is too much of, so that new groups have to wait, else 0.", "";
        admin_denied: By<Denied, Counter> = "heliostat_admin_denied_total", COUNT, NONE,
            "Requests that were turned away at the admin door.", "";
        reloads: By<Outcome, Counter> = "heliostat_reloads_total", COUNT, NONE,
            "Reloads of certificates and configuration, one for all that a SIGHUP reloads. One that failed changed nothing.", "";
    }
    "Groups" {
        groups_awake: Gauge = "heliostat_groups_awake", COUNT, NONE,
            "Device groups in memory.", "heliostat_groups_woken_total - heliostat_groups_slept_total";
        groups_woken: Counter = "heliostat_groups_woken_total", COUNT, NONE, "Device groups that were woken.", "";
        groups_slept: Counter = "heliostat_groups_slept_total", COUNT, NONE,
            "Device groups that went to sleep, those that failed included.", "";
        groups_failed: Counter = "heliostat_groups_failed_total", COUNT, NONE,
            "Device groups that ended because the store failed. Their connections ended with 1011.",
            "at most heliostat_groups_slept_total";
        joined: By<Slot, Counter> = "heliostat_joined_total", COUNT, NONE,
            "Devices that took their seat in a group.", "at most heliostat_handshakes_total with result admitted";
        slots_made: Counter = "heliostat_slots_made_total", COUNT, NONE,
            "Device slots that were made.", "heliostat_joined_total with slot new";
        slots_removed: By<Removed, Counter> = "heliostat_slots_removed_total", COUNT, NONE,
            "Device slots that were removed, by reason. Removed minus made may be positive: slots live across restarts.", "";
        promotions: Counter = "heliostat_leader_promotions_total", COUNT, NONE,
            "Devices that became the leader of their group.", "at most heliostat_dried_total";
        dried: Counter = "heliostat_dried_total", COUNT, NONE,
            "Devices whose whole backlog was sent.", "at most all of heliostat_joined_total";
    }
    "Reflecting" {
        reflects: By<Reflect, Counter> = "heliostat_reflects_total", COUNT, NONE,
            "Messages that were accepted for delivery; those of a transaction when it commits.", "";
        reflect_bytes: Counter = "heliostat_reflect_bytes_total", BYTES, NONE,
            "Envelopes of the messages that were accepted for delivery.", "";
        reflect_acks: Counter = "heliostat_reflect_acks_total", COUNT, NONE,
            "Reflect-acks handed to connections.",
            "heliostat_reflects_total with kind durable plus heliostat_staged_discarded_total, less acknowledgements of \
             connections that ended at that moment, plus what is staged now";
        reflected_sent: Counter = "heliostat_reflected_sent_total", COUNT, NONE,
            "Reflected messages handed to connections, repetitions after a reconnect included.", "";
        reflected_acks: Counter = "heliostat_reflected_acks_total", COUNT, NONE,
            "Durable reflected messages that a device acknowledged after it was sent them on the same connection; each counts once per device.",
            "at most heliostat_reflected_sent_total";
        queue_seconds: Histogram = "heliostat_queue_seconds", SECONDS, LONG_S,
            "From accepting a message to a device's acknowledgement, by the wall clock: the time a device was offline is part of it.",
            "its count is at most heliostat_reflected_acks_total";
        queued_at_join: Histogram = "heliostat_queued_at_join_messages", COUNT, QUEUE,
            "How many messages waited for a device when it took its seat.", "its count is all of heliostat_joined_total";
        ephemeral_skipped: Counter = "heliostat_ephemeral_skipped_total", COUNT, NONE,
            "Ephemeral messages that were not handed to every connection, because one lagged too far behind.",
            "at most heliostat_reflects_total with kind ephemeral";
    }
    "Transactions" {
        transactions_begun: Counter = "heliostat_transactions_begun_total", COUNT, NONE, "Locks that were taken.", "";
        transactions_rejected: Counter = "heliostat_transactions_rejected_total", COUNT, NONE,
            "Locks that were refused because another device held it.", "";
        transactions_committed: Counter = "heliostat_transactions_committed_total", COUNT, NONE,
            "Transactions that were committed.", "";
        transactions_aborted: By<Aborted, Counter> = "heliostat_transactions_aborted_total", COUNT, NONE,
            "Transactions that ended without a commit.", "";
        transactions_held: Gauge = "heliostat_transactions_held", COUNT, NONE,
            "Locks that are held.",
            "heliostat_transactions_begun_total - heliostat_transactions_committed_total - all of heliostat_transactions_aborted_total";
        transaction_seconds: Histogram = "heliostat_transaction_held_seconds", SECONDS, SHORT_S,
            "How long a lock was held, committed or aborted; without those whose group failed.",
            "its count is heliostat_transactions_committed_total plus heliostat_transactions_aborted_total without group_failed";
        staged_discarded: Counter = "heliostat_staged_discarded_total", COUNT, NONE,
            "Durable messages that were staged in a transaction and discarded with it.", "";
    }
    "Proxying" {
        proxy_connections: Gauge = "heliostat_proxy_connections", COUNT, NONE,
            "Connections to chat servers that are open.",
            "at most heliostat_connections";
        proxy_connects: By<Connect, Counter> = "heliostat_proxy_connects_total", COUNT, NONE,
            "Attempts to connect a device with its chat server.", "";
        proxy_connect_seconds: Histogram = "heliostat_proxy_connect_seconds", SECONDS, SHORT_S,
            "How long connecting took when it succeeded.",
            "its count is heliostat_proxy_connects_total with result connected";
        proxy_bytes: By<Direction, Counter> = "heliostat_proxy_bytes_total", BYTES, NONE,
            "Bytes between devices and chat servers.", "";
    }
    "Between nodes (all 0 where there is one)" {
        forwarded_seats: By<Forwarded, Gauge> = "heliostat_cluster_forwarded_seats", COUNT, NONE,
            "Devices that are connected to one node and whose group is decided at another: out those that are connected here, \
             in those whose group is here.", "";
        links: By<Forwarded, Gauge> = "heliostat_cluster_links", COUNT, NONE,
            "Connections to other nodes that are open: out those that this node made, in those that it accepted.", "";
        link_failures: By<LinkFailure, Counter> = "heliostat_cluster_link_failures_total", COUNT, NONE,
            "What went wrong with other nodes. Devices whose link was lost were closed with 1001.", "";
    }
    "The store (all 0 where nothing is kept)" {
        commit_seconds: Histogram = "heliostat_commit_seconds", SECONDS, SHORT_S,
            "From a group's decision to its being kept: waiting for the writer, writing and syncing. A reflect-ack waits this long.", "";
        sync_seconds: Histogram = "heliostat_store_sync_seconds", SECONDS, SHORT_S,
            "How long one transaction of the store took, its sync included.",
            "its count is heliostat_store_transactions_total plus heliostat_store_failures_total";
        batch: Histogram = "heliostat_store_batch_commits", COUNT, BATCH,
            "Commits of groups that shared one transaction and one sync.",
            "its sum is heliostat_store_commits_total, its count heliostat_store_transactions_total";
        store_commits: Counter = "heliostat_store_commits_total", COUNT, NONE, "Commits of groups that were kept.", "";
        store_transactions: Counter = "heliostat_store_transactions_total", COUNT, NONE,
            "Transactions of the store that were kept: as many syncs.", "at most heliostat_store_commits_total";
        store_failures: Counter = "heliostat_store_failures_total", COUNT, NONE,
            "Transactions of the store that failed.", "";
        store_appended: Counter = "heliostat_store_messages_appended_total", COUNT, NONE,
            "Messages that were written.", "at most heliostat_reflects_total with kind durable";
        store_deleted: Counter = "heliostat_store_messages_deleted_total", COUNT, NONE,
            "Messages that were deleted because nobody waits for them any more.", "";
        store_messages: Gauge = "heliostat_store_messages", COUNT, NONE,
            "Messages that are kept; in PostgreSQL they are not counted.",
            "those found at the start plus heliostat_store_messages_appended_total less heliostat_store_messages_deleted_total; \
             grows to that while those found at the start are still being counted";
        store_checkpoints: Counter = "heliostat_store_checkpoints_total", COUNT, NONE,
            "Times the write-ahead log was copied into the database.", "";
        database_bytes: Gauge = "heliostat_store_database_bytes", BYTES, NONE, "Size of the database: of its file, or as its server says.", "";
        wal_bytes: Gauge = "heliostat_store_wal_bytes", BYTES, NONE, "Size of the write-ahead log.", "";
        store_failing: Gauge = "heliostat_store_failing", COUNT, NONE,
            "1 when the last transaction of the store failed, else 0.", "";
    }
    "Several nodes" {
        groups_owned: Gauge = "heliostat_groups_owned", COUNT, NONE,
            "Device groups that this node has taken from the database it shares; 0 without one.", "";
        lease_renewals: By<Outcome, Counter> = "heliostat_lease_renewals_total", COUNT, NONE,
            "Attempts to renew this node's lease.", "";
        lease_renewal_seconds: Histogram = "heliostat_lease_renewal_seconds", SECONDS, SHORT_S,
            "How long renewing the lease took.", "its count is heliostat_lease_renewals_total with result done";
        lease_losses: Counter = "heliostat_lease_losses_total", COUNT, NONE,
            "Times this node lost its lease, and all of its groups with it.", "";
    }
    "Chat servers of ours" {
        chat_connections: By<Room, Gauge> = "heliostat_chat_connections", COUNT, NONE,
            "Open connections, logged in or not.",
            "heliostat_chat_connections_opened_total - heliostat_chat_connections_closed_total";
        chat_opened: By<Room, Counter> = "heliostat_chat_connections_opened_total", COUNT, NONE, "Connections that were accepted.", "";
        chat_closed: By<Room, Counter> = "heliostat_chat_connections_closed_total", COUNT, NONE, "Connections that ended.", "";
        chat_logins: By<Room, By<Login, Counter>> = "heliostat_chat_logins_total", COUNT, NONE,
            "Logins that ended.",
            "heliostat_chat_connections_opened_total plus those throttled, less those still logging in";
        chat_accepted: By<Room, Counter> = "heliostat_chat_messages_accepted_total", COUNT, NONE,
            "Messages that were taken from clients to be delivered.", "";
        chat_delivered: By<Room, Counter> = "heliostat_chat_messages_delivered_total", COUNT, NONE,
            "Messages handed to connections of their receivers, repetitions included.", "";
        chat_queued: By<Room, Counter> = "heliostat_chat_messages_queued_total", COUNT, NONE,
            "Messages that were kept for their receivers.", "at most heliostat_chat_messages_accepted_total";
        chat_discarded: By<Room, Counter> = "heliostat_chat_messages_discarded_total", COUNT, NONE,
            "Messages that were taken and not delivered: no such receiver, expired, no room.",
            "at most heliostat_chat_messages_accepted_total since the data directory was made";
    }
    "The ChatOs server" {
        chatos_pipes: Gauge = "heliostat_chatos_pipes", COUNT, NONE,
            "Private connections that are established.",
            "at most half of heliostat_chat_connections with room chatos";
        chatos_pipe_bytes: Counter = "heliostat_chatos_pipe_bytes_total", BYTES, NONE,
            "Bytes that went through private connections.", "";
        chatos_cut: Counter = "heliostat_chatos_cut_total", COUNT, NONE,
            "Clients that were cut off because they did not read.",
            "at most heliostat_chat_connections_closed_total with room chatos";
        chatos_errors: Counter = "heliostat_chatos_errors_total", COUNT, NONE,
            "Connections that ended with an error packet; logins that were refused are not among them.",
            "at most heliostat_chat_connections_opened_total with room chatos";
    }
    "The Skynet server" {
        skynet_transfers_open: Gauge = "heliostat_skynet_transfers_open", COUNT, NONE,
            "Files that are on their way.", "";
        skynet_transfers: By<Transfer, By<Outcome, Counter>> = "heliostat_skynet_transfers_total", COUNT, NONE,
            "Transfers of files that ended; an upload that was interrupted counts once for each attempt.", "";
        skynet_file_bytes: By<Transfer, Counter> = "heliostat_skynet_file_bytes_total", BYTES, NONE,
            "Bytes of files that were received, or handed over to be sent.", "";
        skynet_files_removed: Counter = "heliostat_skynet_files_removed_total", COUNT, NONE,
            "Files whose bytes were removed because nobody can have them any more.", "";
        skynet_mails: By<Outcome, Counter> = "heliostat_skynet_mails_total", COUNT, NONE,
            "Mails that were taken by the mail server, or dropped.", "";
        skynet_pushes: By<Push, Counter> = "heliostat_skynet_pushes_total", COUNT, NONE,
            "Devices that were to be woken.", "";
        skynet_held_up: Counter = "heliostat_skynet_held_up_total", COUNT, NONE,
            "Packets that were heard later because their account asked for too much, or had too much kept.", "";
    }
    "The DM server" {
        dm_requests: By<DmAnswer, Counter> = "heliostat_dm_requests_total", COUNT, NONE,
            "Requests that were answered; those of a connection that was too fast as a whole are not among them.", "";
        dm_timers: By<DmTimer, Counter> = "heliostat_dm_timers_total", COUNT, NONE,
            "What was done because its time had come.", "";
        dm_cut: Counter = "heliostat_dm_cut_total", COUNT, NONE,
            "Clients that were cut off because they did not read, or did not wait for answers.",
            "at most heliostat_chat_connections_closed_total with room dm";
    }
    "The Tox group hub" {
        toxgroup_groups: Gauge = "heliostat_toxgroup_groups", COUNT, NONE, "Groups.", "";
        toxgroup_members: Gauge = "heliostat_toxgroup_members", COUNT, NONE,
            "Members of all groups, the hub and those of thin users included.", "";
        toxgroup_neighbours: Gauge = "heliostat_toxgroup_neighbours", COUNT, NONE,
            "Members that proved to be where packets go.", "at most heliostat_toxgroup_members";
        toxgroup_packets: Counter = "heliostat_toxgroup_packets_total", COUNT, NONE,
            "Packets that came, on all carriers.", "";
        toxgroup_dropped: By<ToxDropped, Counter> = "heliostat_toxgroup_dropped_total", COUNT, NONE,
            "Packets that were thrown away, and why: in a flood most are heard already.", "";
    }
    "Logs and limits" {
        log_suppressed: Counter = "heliostat_log_suppressed_total", COUNT, NONE,
            "Log lines that were left out because one like them was written in the same second.", "";
    }
    "The process" {
        build_info: By<Build, Gauge> = "heliostat_build_info", COUNT, NONE, "Always 1; the version is its label.", "";
        start_time: Gauge = "process_start_time_seconds", SECONDS, NONE, "When the process started, in Unix time.", "";
        resident_memory: Gauge = "process_resident_memory_bytes", BYTES, NONE, "Resident memory.", "";
        open_fds: Gauge = "process_open_fds", COUNT, NONE, "Open file descriptors.", "";
    }
}

impl Metrics {
    /// Reads what only the kernel knows. Where there is no `/proc`, these stay at 0.
    fn look_at_process(&self) {
        let resident = std::fs::read_to_string("/proc/self/status").ok().and_then(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            line.trim().strip_suffix(" kB")?.parse::<f64>().ok()
        });
        if let Some(resident) = resident {
            self.resident_memory.set(resident * 1_024.0);
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            self.open_fds.set(u32::try_from(open.count()).unwrap_or(u32::MAX));
        }
    }
}

/// The list as `docs/metrics.md` shows it.
#[must_use]
pub fn page() -> String {
    let mut page = String::new();
    let mut section = "";
    for it in catalogue() {
        if it.section != section {
            section = it.section;
            let _infallible = write!(page, "\n## {section}\n\n| metric | kind | says | sum |\n|---|---|---|---|\n");
        }
        let labels: String = it
            .labels
            .iter()
            .map(|(name, values)| {
                // A version is not worth a new page with every release.
                let values = if *name == Build::NAME { "…".to_owned() } else { values.join(", ") };
                format!("<br>`{name}`: {values}")
            })
            .collect();
        let kind = match it.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let unit = it.unit.map_or("", |unit| if unit == Unit::Seconds { ", seconds" } else { ", bytes" });
        let _infallible = writeln!(page, "| `{}` | {kind}{unit} | {}{labels} | {} |", it.name, it.about, it.sum);
    }
    page
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_follow_the_conventions_and_are_unique() {
        let list = catalogue();
        let names: HashSet<_> = list.iter().map(|it| it.name).collect();
        assert_eq!(names.len(), list.len());
        for it in &list {
            assert_eq!(it.name.ends_with("_total"), it.kind == Kind::Counter, "{}", it.name);
            assert!(it.name.starts_with("heliostat_") || it.name.starts_with("process_"), "{}", it.name);
            assert!(it.unit != Some(Unit::Seconds) || it.name.ends_with("_seconds"), "{}", it.name);
            assert!(it.unit != Some(Unit::Bytes) || it.name.contains("_bytes"), "{}", it.name);
            assert_eq!(it.kind == Kind::Histogram, !it.bounds.is_empty(), "{}", it.name);
            assert!(it.bounds.windows(2).all(|pair| pair[0] < pair[1]), "{}", it.name);
            assert!(it.about.ends_with('.') && !it.sum.ends_with('.'), "{}", it.name);
        }
    }

    #[test]
    fn every_metric_that_a_sum_speaks_of_exists() {
        let list = catalogue();
        for it in &list {
            for word in it.sum.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
                let exists = !word.starts_with("heliostat_") || list.iter().any(|other| other.name == word);
                assert!(exists, "{}: there is no {word}", it.name);
            }
        }
    }

    #[test]
    fn every_metric_is_scraped_with_its_help_and_every_value_of_its_labels_before_anything_happens() {
        for value in Option::<CloseCode>::all() {
            assert_eq!(value.map(|code| code.code().to_string()).unwrap_or_else(|| "none".to_owned()), value.value());
        }
        let text = render();
        for it in catalogue() {
            assert!(text.contains(&format!("# HELP {} {}\n", it.name, it.help())), "{}", it.name);
            let series = it.labels.iter().map(|(_, values)| values.len()).product::<usize>();
            let head = if it.kind == Kind::Histogram { format!("{}_count", it.name) } else { it.name.to_owned() };
            let found = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(&*head)).count();
            assert_eq!(found, series, "{}", it.name);
        }
        let rss = text.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes ")).unwrap();
        assert!(rss.parse::<f64>().unwrap() > 1e6, "{rss}");
    }

    #[test]
    fn a_presence_counts_out_what_it_counted_in() {
        let metrics = get();
        let before = sample("heliostat_chat_connections{room=\"toxgroup\"}");
        let presence = Presence::new(metrics.chat_connections.of(Room::ToxGroup), None, None);
        assert_eq!(sample("heliostat_chat_connections{room=\"toxgroup\"}"), before + 1.0);
        drop(presence);
        assert_eq!(sample("heliostat_chat_connections{room=\"toxgroup\"}"), before);
    }

    fn sample(series: &str) -> f64 {
        let text = render();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')).unwrap();
        line.parse().unwrap()
    }

    /// `UPDATE_DOCS=1 cargo test` writes the page anew.
    #[test]
    fn the_page_lists_every_metric() {
        const MARK: &str = "<!-- Below this line: written by the test `the_page_lists_every_metric`. -->\n";
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        let text = std::fs::read_to_string(file).unwrap();
        let (prose, list) = text.split_once(MARK).expect("the mark");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(file, format!("{prose}{MARK}{}", page())).unwrap();
        } else {
            assert!(list == page(), "docs/metrics.md is not current: run UPDATE_DOCS=1 cargo test the_page_lists");
        }
    }
}
