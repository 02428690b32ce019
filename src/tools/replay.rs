//! `heliostat replay`: says again what the devices of a capture said, and compares what they are answered.
//!
//! The capture is played in its own order, one entry after the other: what a device said is said when its time has come, what
//! the mediator said is waited for. So nothing is said before what it may have been an answer to has come, at any speed,
//! and two runs say the same things in the same order. *Rejected: every connection by its own clock*, which at 100x
//! commits before the lock is granted.
//!
//! Frames are compared by what they are and what they say, except times, keys that are made for one connection, and the ids of
//! reflected messages: those are the mediator's to choose, so acknowledgements are rewritten to what this mediator chose. An
//! answer is found by what it answers (a reflect-id, an envelope, a device), so that one that is missing does not make all that
//! follow wrong.
//!
//! What devices recorded may be a part of their group only. So who leads is asked of all connections together (as with
//! `--any-order`), lists of devices are compared as far as they name devices that play, and a lock is not asked for that
//! somebody else held.
//!
//! A proof needs the group's private key. Without it (`--key`) the same devices are played in a fresh group: envelopes
//! and everything else that is sealed are said as they were recorded, and nobody can open them. Devices that knew
//! the mediator before the recording began are new to a fresh group, and say so, and messages
//! from before it are not waited for. What was said to chat servers is not in a
//! capture, so it is not said, and endings that chat servers or operators brought about are not waited for.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::select_all;
use miette::{IntoDiagnostic as _, Result};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines, Stdin};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::captured::{self, Devices};
use super::{TrustArgs, describe, keyfile, trust_of};
use crate::capture::{ClosedBy, Direction, Entry, Event, Frame, Observer, Tail, Track};
use crate::client::{DeviceConfig, Ended, GroupKey, Mediator, RawConnection};
use crate::time::Clock;
use crate::wire::d2m::{
    CONTAINER_MAX, ClientHello, CloseCode, DeviceId, DevicesInfo, FromDevice, PayloadType, ReflectedId, ServerGroup,
    ServerHello, SlotState, SlotsExhausted, ToDevice,
};

/// How long an answer may take longer than it took in the capture.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long whoever failed to answer is waited for at least.
const PATIENCE_LEFT: Duration = Duration::from_millis(100);
/// What was heard and not yet asked for waits here; when it is full, the socket is not read.
const HEARD: usize = 256;
/// What was heard and is in no place of the capture: a mediator that says more than this is believed to be wrong.
const KEPT_MAX: usize = 10_000;
/// What is about to be said.
const TO_SAY: usize = 64;
/// Fields that a mediator chooses.
const ASIDE: [&str; 6] =
    ["ephemeral server key", "challenge", "time", "reflected-id", "connected since", "disconnected at"];
/// Endings that nothing in a capture brings about: chat servers do, operators, a store that fails, and a network that is gone
/// (whoever is played answers pings).
const FROM_ELSEWHERE: [CloseCode; 6] = [
    CloseCode::ShuttingDown,
    CloseCode::InternalError,
    CloseCode::ChatServerClosed,
    CloseCode::ChatServerUnreachable,
    CloseCode::ChatProxyError,
    CloseCode::ClientIdleTimeout,
];

/// Drive the device side of a capture against a mediator, and say where it answers otherwise
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  heliostat replay session.d2mcap wss://localhost:8443 --speed 100
  heliostat replay session.d2mcap ws://localhost:8080 --step
  heliostat replay session.d2mcap wss://mediator.example --key group.key

Without --key the devices play in a group made for this: what is sealed stays sealed, and nothing of the \
                        real group is touched. With it they are the devices of that group: what they say reaches it.

Exit status 0: it answered as in the capture. 1: it did not, or the capture is cut or damaged.")]
pub struct Args {
    /// The capture
    file: PathBuf,
    /// The mediator's base URL
    #[arg(default_value = "wss://localhost:8443")]
    url: String,
    /// The device group key of the capture's group (64 hex digits)
    #[arg(long, visible_alias = "group-key", value_name = "FILE")]
    key: Option<PathBuf>,
    /// How fast: 1 as it was, 100 a hundred times as fast
    #[arg(long, default_value = "1", value_name = "TIMES", value_parser = speed, conflicts_with = "step")]
    speed: f64,
    /// Show each entry, and wait for Enter before anything is said
    #[arg(long)]
    step: bool,
    /// Do not mind answers that come in another order, as they may where devices spoke at the same time, nor what a
    /// device is still told while it leaves
    #[arg(long)]
    any_order: bool,
    #[command(flatten)]
    trust: TrustArgs,
    /// The server's data directory: its development CA is trusted
    #[arg(long, default_value = "heliostat-data", value_name = "DIR")]
    data: PathBuf,
}

fn speed(text: &str) -> Result<f64, String> {
    let speed: f64 = text.trim_end_matches('x').parse().map_err(|_| "not a number".to_owned())?;
    if speed.is_finite() && speed > 0.0 { Ok(speed) } else { Err("not more than 0".to_owned()) }
}

/// Plays a capture and says what was otherwise.
///
/// # Errors
/// When the capture or the key cannot be read, or the mediator's address is of no use.
pub async fn run(args: Args) -> Result<ExitCode> {
    let mediator = Mediator::new(&args.url, &trust_of(&args.trust, &args.data)?).into_diagnostic()?;
    let key = args.key.as_deref().map(keyfile::load).transpose()?;
    let mut reader = captured::open(&args.file)?;
    let mut fates = Fates::default();
    while let Some(entry) = reader.next_entry().into_diagnostic()? {
        fates.see(&entry);
    }
    let mut reader = captured::open(&args.file)?;
    if key.is_none() {
        println!("-- a fresh group: what is sealed stays sealed, and ids of reflected messages are the mediator's own");
    }
    let steps = args.step.then(|| BufReader::new(tokio::io::stdin()).lines());
    let mut replay = Replay {
        fresh: key.is_none(),
        key: key.unwrap_or_else(GroupKey::generate),
        mediator,
        clock: Clock::system(),
        speed: args.speed,
        steps,
        any_order: args.any_order,
        by_devices: reader.header().observer == Observer::Device,
        fates,
        live: HashMap::new(),
        known: HashSet::new(),
        introduced_before: HashSet::new(),
        ids: HashMap::new(),
        envelopes: HashSet::new(),
        began: Duration::ZERO,
        acted_at: Duration::ZERO,
        asked_for_lock: HashMap::new(),
        tally: Tally::default(),
    };
    replay.began = replay.clock.now().monotonic;
    while let Some(entry) = reader.next_entry().into_diagnostic()? {
        replay.play(&entry).await?;
    }
    replay.finish().await;
    let tail = reader.tail();
    let whole = matches!(tail, Tail::Ended(_) | Tail::Unended);
    if !whole {
        println!("-- the capture: {tail}");
    }
    print!("{}", replay.tally.table());
    let good = whole && replay.tally.otherwise == 0;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What becomes of the capture's connections.
#[derive(Debug, Default)]
struct Fates {
    devices: Devices,
    admitted: HashSet<Track>,
    closes: HashMap<Track, (ClosedBy, Option<u16>)>,
    /// Whom a recorded device dropped.
    dropped: HashSet<DeviceId>,
    /// Somebody asked for the place of whoever was away longest.
    drops_anyone: bool,
    /// Who has a connection in it.
    present: HashSet<DeviceId>,
    /// Of each connection, who held the lock when it was asked for, and how many of these were answered so far.
    locks: HashMap<Track, (VecDeque<Option<DeviceId>>, usize)>,
    /// Slots of the group.
    slots: Option<u32>,
}

impl Fates {
    fn see(&mut self, entry: &Entry) {
        self.devices.see(entry);
        match &entry.event {
            Event::Frame { track, direction: Direction::ToDevice, frame } => match ToDevice::decode(&frame.kept) {
                Ok(ToDevice::ServerInfo(info)) => {
                    self.admitted.insert(*track);
                    self.slots = Some(info.max_device_slots);
                }
                Ok(ToDevice::BeginTransactionAck) => self.lock_answered(*track, None),
                Ok(ToDevice::TransactionRejected(holder)) => self.lock_answered(*track, Some(holder.device_id)),
                _ => {}
            },
            Event::Frame { track, direction: Direction::FromDevice, frame } => match captured::from_device(frame) {
                Some(FromDevice::BeginTransaction(_)) => self.locks.entry(*track).or_default().0.push_back(None),
                Some(FromDevice::DropDevice(device)) => drop(self.dropped.insert(device)),
                Some(FromDevice::ClientHello(hello)) => {
                    self.present.insert(hello.device_id);
                    self.drops_anyone |= hello.slots_exhausted == SlotsExhausted::DropLeastRecent;
                }
                _ => {}
            },
            Event::Close { track, by, code, .. } => drop(self.closes.insert(*track, (*by, *code))),
            Event::Connect { device, .. } => self.present.extend(*device),
            Event::End(_) => {}
        }
    }

    fn lock_answered(&mut self, track: Track, holder: Option<DeviceId>) {
        let Some((asked, answered)) = self.locks.get_mut(&track) else { return };
        if let Some(asked) = asked.get_mut(*answered) {
            *asked = holder;
            *answered += 1;
        }
    }

    /// Whether somebody who is not in the capture held the lock that a device asks for next.
    fn next_lock_is_a_strangers(&mut self, track: Track) -> bool {
        let holder = self.locks.get_mut(&track).and_then(|(asked, _)| asked.pop_front()).flatten();
        holder.is_some_and(|holder| !self.present.contains(&holder))
    }

    /// Whether nothing in the capture brings about this ending.
    fn is_from_elsewhere(&self, track: Track, ending: CloseCode) -> bool {
        let dropped = |device| self.drops_anyone || self.dropped.contains(&device);
        match ending {
            CloseCode::Dropped => !self.devices.of(track).is_some_and(dropped),
            _ => FROM_ELSEWHERE.contains(&ending),
        }
    }

    fn closed_with(&self, track: Track) -> Option<CloseCode> {
        match self.closes.get(&track)? {
            (ClosedBy::Mediator, Some(code)) => CloseCode::from_code(*code),
            _ => None,
        }
    }
}

fn kind(container: &Bytes) -> Option<PayloadType> {
    container.first().map(|&kind| PayloadType(kind))
}

#[derive(Debug, Default)]
struct Tally {
    connections: u64,
    said: u64,
    /// Not said, or not compared.
    left_out: u64,
    as_captured: u64,
    otherwise: u64,
}

impl Tally {
    fn table(&self) -> String {
        let Self { connections, said, left_out, as_captured, otherwise } = self;
        format!(
            "said       {said} frames on {connections} connections\n\
             left out   {left_out}\n\
             answered   {as_captured} as in the capture\n\
             otherwise  {otherwise}\n"
        )
    }
}

struct Replay {
    mediator: Mediator,
    key: GroupKey,
    fresh: bool,
    clock: Clock,
    speed: f64,
    /// Lines of whoever steps; nothing when nobody does, or no more.
    steps: Option<Lines<BufReader<Stdin>>>,
    any_order: bool,
    /// Devices recorded it: others of their group may have been there.
    by_devices: bool,
    fates: Fates,
    live: HashMap<Track, Live>,
    /// Devices that this mediator admitted.
    known: HashSet<DeviceId>,
    /// Those of them that introduced themselves before the capture began: how is not in it.
    introduced_before: HashSet<DeviceId>,
    /// What this mediator calls what the captured one called otherwise.
    ids: HashMap<(DeviceId, ReflectedId), ReflectedId>,
    /// What was reflected so far.
    envelopes: HashSet<Bytes>,
    began: Duration,
    /// When a device did something last, in the capture's time.
    acted_at: Duration,
    /// When a device asked for the lock last, in the capture's time and in ours: however fast the rest is played, a lock
    /// expires after the time that was asked for.
    asked_for_lock: HashMap<Track, (Duration, Duration)>,
    tally: Tally,
}

/// A connection that is played.
struct Live {
    say: mpsc::Sender<Say>,
    heard: mpsc::Receiver<Result<Bytes, Ended>>,
    /// What was heard and not found in the capture so far.
    kept: VecDeque<Heard>,
    hello: Option<ServerHello>,
    /// Began before the capture, or new to a fresh group: what it is told first is not what it was told then.
    another_past: bool,
    /// A promotion is the group's affair, not this connection's; whether it got one.
    any_may_lead: bool,
    leads: bool,
    /// It did not introduce itself.
    unsaid: bool,
    patience: Duration,
    ended: Option<Ended>,
}

enum Say {
    Binary(Bytes),
    Close(u16, String),
}

/// Something a mediator said, ready to be compared.
#[derive(Debug)]
struct Heard {
    /// What it is, and what it answers.
    key: (PayloadType, Vec<u8>),
    fields: Vec<(String, Value)>,
    payload: Option<ToDevice>,
    /// Whether something that came behind it was found in the capture.
    passed: bool,
}

impl Heard {
    fn new(container: &Bytes) -> Self {
        let payload = ToDevice::decode(container).ok();
        let answers = match &payload {
            Some(ToDevice::ReflectAck(ack)) => ack.reflect_id.0.to_le_bytes().to_vec(),
            Some(ToDevice::Reflected(message)) => message.envelope().to_vec(),
            Some(ToDevice::DropDeviceAck(device)) => device.0.to_le_bytes().to_vec(),
            Some(_) => Vec::new(),
            None => container.to_vec(),
        };
        let fields = payload.as_ref().map_or_else(Vec::new, compared);
        Self { key: (kind(container).unwrap_or(PayloadType(0xff)), answers), fields, payload, passed: false }
    }

    fn name(&self) -> String {
        self.key.0.to_string()
    }
}

/// What is compared of it.
fn compared(payload: &ToDevice) -> Vec<(String, Value)> {
    let described = describe::of_mediator(payload, None);
    let compared = described.values().filter(|(name, _)| !ASIDE.contains(name));
    compared.map(|(name, value)| (name.to_owned(), value.clone())).collect()
}

/// The task of a connection: both directions at once, until either end has enough.
async fn drive(mut raw: RawConnection, mut say: mpsc::Receiver<Say>, heard: mpsc::Sender<Result<Bytes, Ended>>) {
    loop {
        tokio::select! {
            got = async { Some((heard.reserve().await.ok()?, raw.recv_binary().await)) } => {
                let Some((place, got)) = got else { return };
                let over = got.is_err();
                place.send(got);
                if over {
                    return;
                }
            }
            // Why something cannot be said is what the reading finds.
            what = say.recv() => match what {
                Some(Say::Binary(bytes)) => drop(raw.send_binary(bytes).await),
                Some(Say::Close(code, reason)) => drop(raw.send_close(code, &reason).await),
                None => return,
            },
        }
    }
}

impl Live {
    fn new(raw: RawConnection, any_may_lead: bool) -> Self {
        let (say, to_say) = mpsc::channel(TO_SAY);
        let (hears, heard) = mpsc::channel(HEARD);
        tokio::spawn(drive(raw, to_say, hears));
        Self {
            say,
            heard,
            kept: VecDeque::new(),
            hello: None,
            another_past: false,
            any_may_lead,
            leads: false,
            unsaid: false,
            patience: PATIENCE,
            ended: None,
        }
    }

    /// Takes in one more frame; says whether there was one.
    async fn hear(&mut self) -> bool {
        if self.ended.is_some() {
            return false;
        }
        match self.heard.recv().await {
            // What comes from a chat server is not in a capture either.
            Some(Ok(container)) if captured::is_proxy(&container) => true,
            Some(Ok(container))
                if self.any_may_lead
                    && !self.leads
                    && kind(&container) == Some(PayloadType::ROLE_PROMOTED_TO_LEADER) =>
            {
                self.leads = true;
                true
            }
            Some(Ok(container)) if self.kept.len() < KEPT_MAX => {
                self.kept.push_back(Heard::new(&container));
                true
            }
            Some(Ok(_)) => {
                self.ended = Some(Ended::Garbled("far more than was ever asked for".to_owned()));
                false
            }
            Some(Err(ended)) => {
                self.ended = Some(ended);
                false
            }
            None => {
                self.ended = Some(Ended::Lost("given up".to_owned()));
                false
            }
        }
    }

    /// Whoever did not answer once is waited for less the next time.
    fn was_silent(&mut self) {
        self.patience = (self.patience / 2).max(PATIENCE_LEFT);
    }

    /// The first frame of that kind that answers the same, if it comes in time.
    async fn find(&mut self, key: &(PayloadType, Vec<u8>), within: Duration) -> Option<Heard> {
        let search = async {
            let mut at = 0;
            loop {
                if let Some(found) = self.kept.iter().skip(at).position(|heard| heard.key == *key) {
                    return Some(at + found);
                }
                at = self.kept.len();
                if !self.hear().await {
                    return None;
                }
            }
        };
        let found = timeout(within, search).await.ok().flatten()?;
        self.kept.iter_mut().take(found).for_each(|heard| heard.passed = true);
        self.kept.remove(found)
    }

    /// Waits for the end; what comes before it is kept.
    async fn end(&mut self, within: Duration) -> Option<&Ended> {
        let to_end = async { while self.hear().await {} };
        timeout(within, to_end).await.ok()?;
        self.ended.as_ref()
    }
}

impl Replay {
    async fn play(&mut self, entry: &Entry) -> Result<()> {
        match &entry.event {
            Event::Connect { track, server_group, earlier, .. } => {
                self.wait_for_turn(entry, "opens").await?;
                self.connect(*track, server_group, *earlier, entry).await;
            }
            Event::Frame { track, direction: Direction::FromDevice, frame } => {
                let name = kind(&frame.kept).map_or_else(|| "nothing".to_owned(), |kind| kind.to_string());
                self.wait_for_turn(entry, &format!("-> {name}")).await?;
                self.say(*track, frame, entry).await;
            }
            Event::Frame { track, direction: Direction::ToDevice, frame } => self.expect(*track, frame, entry).await,
            Event::Close { track, by, code, reason } => {
                if *by != ClosedBy::Mediator {
                    self.wait_for_turn(entry, "ends").await?;
                }
                self.close(*track, *by, *code, reason, entry).await;
            }
            Event::End(_) => {}
        }
        Ok(())
    }

    /// Something a device does: in its time, or when whoever steps says so.
    async fn wait_for_turn(&mut self, entry: &Entry, what: &str) -> Result<()> {
        self.acted_at = entry.at;
        match &mut self.steps {
            Some(lines) => {
                println!("{} {what}  [Enter]", label(entry, &self.fates.devices));
                if lines.next_line().await.into_diagnostic()?.is_none() {
                    // Nobody is there to step any more.
                    self.steps = None;
                }
            }
            None => {
                let due = Duration::try_from_secs_f64(entry.at.as_secs_f64() / self.speed).unwrap_or(Duration::MAX);
                self.clock.sleep_until(Some(self.began.saturating_add(due))).await;
            }
        }
        Ok(())
    }

    /// As long as it took in the capture, and some patience.
    fn time_for(&self, entry: &Entry, patience: Duration) -> Duration {
        entry.at.saturating_sub(self.acted_at).saturating_add(patience)
    }

    /// As long as a lock may still be held that was asked for on one of these connections, or else as any answer.
    fn time_for_lock(&self, entry: &Entry, patience: Duration, on: Option<Track>) -> Duration {
        let now = self.clock.now().monotonic;
        let asked = self.asked_for_lock.iter().filter(|(track, _)| on.is_none_or(|on| on == **track));
        let over = asked.map(|(_, (captured, ours))| ours.saturating_add(entry.at.saturating_sub(*captured)));
        let left = over.max().map_or(Duration::ZERO, |over| over.saturating_sub(now));
        self.time_for(entry, patience).max(left.saturating_add(patience))
    }

    fn otherwise(&mut self, entry: &Entry, what: &str) {
        self.tally.otherwise += 1;
        println!("{} {what}", label(entry, &self.fates.devices));
    }

    fn answered(&mut self, entry: &Entry, what: &str) {
        self.tally.as_captured += 1;
        if self.steps.is_some() {
            println!("{} <- {what}", label(entry, &self.fates.devices));
        }
    }

    fn config(&self, server_group: ServerGroup, device: DeviceId) -> DeviceConfig {
        DeviceConfig::new(self.key.clone(), server_group, device)
    }

    async fn connect(&mut self, track: Track, server_group: &ServerGroup, earlier: bool, entry: &Entry) {
        let device = self.fates.devices.of(track);
        if earlier && device.is_none() {
            println!(
                "{} began before the capture and is nobody's, so it is left out",
                label(entry, &self.fates.devices)
            );
            return;
        }
        let config = self.config(server_group.clone(), device.unwrap_or(DeviceId(0)));
        let opened = timeout(PATIENCE, self.mediator.open(&config.url_info())).await;
        let raw = match opened {
            Ok(Ok(raw)) => raw,
            Ok(Err(error)) => return self.otherwise(entry, &format!("there is no connection: {error}")),
            Err(_elapsed) => return self.otherwise(entry, "there is no connection: no answer"),
        };
        self.tally.connections += 1;
        let mut live = Live::new(raw, self.any_order || self.by_devices);
        if let (true, Some(device)) = (earlier, device) {
            // Its handshake is not in the capture.
            live.another_past = true;
            let hello = live.find(&(PayloadType::SERVER_HELLO, Vec::new()), PATIENCE).await;
            let hello = hello.and_then(|heard| heard.payload);
            let expected_slot_state =
                if self.fresh && !self.known.contains(&device) { SlotState::New } else { SlotState::Existing };
            let config = DeviceConfig { expected_slot_state, ..config };
            let answer = match &hello {
                Some(ToDevice::ServerHello(hello)) => config.client_hello(hello).ok(),
                _ => None,
            };
            let Some(answer) = answer else { return self.otherwise(entry, "no server-hello came") };
            let answer = FromDevice::ClientHello(Box::new(answer)).encode();
            let _ended = live.say.send(Say::Binary(answer)).await;
            if live.find(&(PayloadType::SERVER_INFO, Vec::new()), PATIENCE).await.is_none() {
                return self.otherwise(entry, "a device that was there is not admitted");
            }
            self.known.insert(device);
            self.introduced_before.insert(device);
        }
        self.live.insert(track, live);
    }

    async fn say(&mut self, track: Track, frame: &Frame, entry: &Entry) {
        if captured::is_proxy(&frame.kept) || !self.live.contains_key(&track) {
            self.tally.left_out += 1;
            return;
        }
        let said = captured::from_device(frame);
        let unsaid = match &said {
            Some(FromDevice::BeginTransaction(_)) => self.fates.next_lock_is_a_strangers(track),
            Some(FromDevice::ClientHello(_)) => self.would_have_room(track),
            _ => false,
        };
        if unsaid {
            self.tally.left_out += 1;
            if let (Some(FromDevice::ClientHello(_)), Some(live)) = (said, self.live.get_mut(&track)) {
                live.unsaid = true;
            }
            return;
        }
        let bytes = match said {
            Some(FromDevice::ClientHello(hello)) => match self.introduce(track, &hello).await {
                Some(bytes) => bytes,
                None => return self.otherwise(entry, "cannot be introduced: no server-hello came"),
            },
            Some(FromDevice::ReflectedAck(id)) => match self.translate(track, id, &frame.kept) {
                Some(bytes) => bytes,
                None => {
                    self.tally.left_out += 1;
                    return;
                }
            },
            said => {
                // Of what was too long to be kept, the length is what matters.
                match said {
                    Some(FromDevice::Reflect(reflect)) => {
                        self.envelopes.insert(Bytes::copy_from_slice(reflect.envelope.as_bytes()));
                    }
                    Some(FromDevice::BeginTransaction(_)) => {
                        self.asked_for_lock.insert(track, (entry.at, self.clock.now().monotonic));
                    }
                    Some(FromDevice::CommitTransaction) => drop(self.asked_for_lock.remove(&track)),
                    _ => {}
                }
                let mut bytes = frame.kept.to_vec();
                let len = usize::try_from(frame.len).unwrap_or(usize::MAX);
                bytes.resize(len.clamp(bytes.len(), 2 * CONTAINER_MAX), 0);
                bytes.into()
            }
        };
        let Some(live) = self.live.get(&track) else { return };
        match timeout(PATIENCE, live.say.send(Say::Binary(bytes))).await {
            Ok(Ok(())) => self.tally.said += 1,
            // It ended; what was due next tells how.
            Ok(Err(_over)) => self.tally.left_out += 1,
            Err(_elapsed) => {
                self.live.remove(&track);
                self.otherwise(entry, "nothing is read of what is said");
            }
        }
    }

    /// Whether a device was turned away because of slots that devices have which are not in the capture.
    fn would_have_room(&self, track: Track) -> bool {
        let taken = u32::try_from(self.known.len()).unwrap_or(u32::MAX);
        self.by_devices
            && self.fates.closed_with(track) == Some(CloseCode::DeviceLimitReached)
            && self.fates.slots.is_none_or(|slots| taken < slots)
    }

    /// Whether some connection leads, or comes to lead in time.
    async fn is_led(&mut self, within: Duration) -> bool {
        let search = async {
            while !self.live.values().any(|live| live.leads) {
                let open = self.live.values_mut().filter(|live| live.ended.is_none());
                let hears: Vec<_> = open.map(|live| Box::pin(live.hear())).collect();
                if hears.is_empty() {
                    return false;
                }
                select_all(hears).await;
            }
            true
        };
        timeout(within, search).await.unwrap_or(false)
    }

    /// What is compared of a list of devices: those that play here.
    fn playing(&self, payload: Option<&ToDevice>) -> Option<Vec<(String, Value)>> {
        let Some(ToDevice::DevicesInfo(DevicesInfo(devices))) = payload.filter(|_| self.by_devices) else {
            return None;
        };
        let known = devices.iter().filter(|(id, _)| self.known.contains(id));
        Some(compared(&ToDevice::DevicesInfo(DevicesInfo(known.map(|(id, info)| (*id, info.clone())).collect()))))
    }

    /// A ClientHello like the captured one, with a proof for this connection.
    async fn introduce(&mut self, track: Track, captured: &ClientHello) -> Option<Bytes> {
        let live = self.live.get_mut(&track)?;
        if live.hello.is_none() {
            let found = live.find(&(PayloadType::SERVER_HELLO, Vec::new()), live.patience).await?;
            if let Some(ToDevice::ServerHello(hello)) = found.payload {
                live.hello = Some(*hello);
            }
        }
        let server_hello = live.hello.clone()?;
        let admitted = self.fates.admitted.contains(&track);
        let mut hello = captured.clone();
        // A proof that was refused is refused again: what is kept of it proves nothing.
        if admitted || self.fates.closed_with(track) != Some(CloseCode::ProtocolError) {
            // Which chat server it is matters to the URL only.
            let config = self.config(ServerGroup::new("a0")?, captured.device_id);
            hello.response = config.client_hello(&server_hello).ok()?.response;
        }
        let stranger = self.fresh && !self.known.contains(&captured.device_id);
        if stranger && admitted && captured.expected_slot_state == SlotState::Existing {
            hello.expected_slot_state = SlotState::New;
            self.live.get_mut(&track)?.another_past = true;
        }
        Some(FromDevice::ClientHello(Box::new(hello)).encode())
    }

    /// An acknowledgement by the id that this mediator uses; nothing when it is of what came before the capture.
    fn translate(&self, track: Track, id: ReflectedId, container: &Bytes) -> Option<Bytes> {
        let device = self.fates.devices.of(track)?;
        let id = match self.ids.get(&(device, id)) {
            Some(id) => *id,
            None if self.fates.closed_with(track) == Some(CloseCode::UnknownMessageAcked) => id,
            None => return None,
        };
        // Whatever else it carries stays as it was.
        let mut bytes = container.to_vec();
        bytes.get_mut(8..12)?.copy_from_slice(&id.0.to_le_bytes());
        Some(bytes.into())
    }

    async fn expect(&mut self, track: Track, frame: &Frame, entry: &Entry) {
        let due = Heard::new(&frame.kept);
        let (time, device) = (self.live.get(&track).map(|live| live.patience), self.fates.devices.of(track));
        let (Some(patience), false) = (time, captured::is_proxy(&frame.kept)) else {
            self.tally.left_out += 1;
            return;
        };
        if let Some(ToDevice::Reflected(message)) = &due.payload
            && !self.envelopes.contains(message.envelope())
        {
            // From before the capture, so nobody said it here.
            self.tally.left_out += 1;
            return;
        }
        if let Some(ToDevice::TransactionRejected(holder) | ToDevice::TransactionEnded(holder)) = &due.payload
            && !self.fates.present.contains(&holder.device_id)
        {
            self.tally.left_out += 1;
            return;
        }
        if due.key.0 == PayloadType::ROLE_PROMOTED_TO_LEADER && (self.any_order || self.by_devices) {
            let within = self.time_for(entry, patience);
            return match self.is_led(within).await {
                true => self.answered(entry, &due.name()),
                false => self.otherwise(entry, "role-promoted-to-leader was due, and nobody leads"),
            };
        }
        let within = match &due.payload {
            Some(ToDevice::TransactionEnded(_)) => self.time_for_lock(entry, patience, None),
            _ => self.time_for(entry, patience),
        };
        let Some(live) = self.live.get_mut(&track) else { return };
        let Some(found) = live.find(&due.key, within).await else {
            let ended = live.ended.clone();
            live.was_silent();
            match ended {
                None => self.otherwise(entry, &format!("{} was due and did not come", due.name())),
                Some(ended) => {
                    self.otherwise(entry, &format!("{} was due, and the connection was {ended}", due.name()));
                    self.live.remove(&track);
                }
            }
            return;
        };
        let another_past = live.another_past;
        match (&due.payload, &found.payload) {
            (Some(ToDevice::Reflected(captured)), Some(ToDevice::Reflected(now))) => {
                if let Some(device) = device {
                    self.ids.insert((device, captured.id()), now.id());
                }
            }
            (_, Some(ToDevice::ServerHello(hello))) => live.hello = Some((**hello).clone()),
            (_, Some(ToDevice::ServerInfo(_))) => self.known.extend(device),
            _ => {}
        }
        if found.passed && !self.any_order {
            return self.otherwise(entry, &format!("{} came earlier than it was due", found.name()));
        }
        let told_its_past = due.key.0 == PayloadType::SERVER_INFO && another_past;
        let without = if self.introduced_before.is_empty() { "" } else { "device info" };
        let playing = self.playing(due.payload.as_ref()).zip(self.playing(found.payload.as_ref()));
        let (due_fields, found_fields) = playing.unwrap_or_else(|| (due.fields.clone(), found.fields.clone()));
        let differences = differences(&due_fields, &found_fields, without);
        if !differences.is_empty() && !told_its_past {
            return self.otherwise(entry, &format!("{}: {differences}", found.name()));
        }
        self.answered(entry, &found.name());
    }

    async fn close(&mut self, track: Track, by: ClosedBy, code: Option<u16>, reason: &str, entry: &Entry) {
        let Some(patience) = self.live.get(&track).map(|live| live.patience) else {
            self.tally.left_out += 1;
            return;
        };
        let due = code.and_then(CloseCode::from_code);
        let within = match due {
            Some(CloseCode::TransactionTtlReached) => self.time_for_lock(entry, patience, Some(track)),
            _ => self.time_for(entry, patience),
        };
        let Some(mut live) = self.live.remove(&track) else { return };
        self.asked_for_lock.remove(&track);
        match by {
            // Dropped with its socket.
            ClosedBy::Nobody => self.answered(entry, "gone"),
            ClosedBy::Device => {
                let normal = CloseCode::Normal.code();
                let _ended = live.say.send(Say::Close(code.unwrap_or(normal), reason.to_owned())).await;
                match live.end(within).await {
                    Some(_) => self.answered(entry, "closed"),
                    None => self.otherwise(entry, "a close was not answered"),
                }
            }
            ClosedBy::Mediator if live.unsaid || due.is_some_and(|due| self.fates.is_from_elsewhere(track, due)) => {
                self.tally.left_out += 1;
            }
            ClosedBy::Mediator => {
                let due = code.map_or_else(|| "a close".to_owned(), |code| format!("close {code}"));
                match live.end(within).await.map(|ended| (ended.code(), ended.to_string())) {
                    Some((found, _)) if found == code => self.answered(entry, &due),
                    Some((_, ended)) => {
                        self.otherwise(entry, &format!("{due} was due, and the connection was {ended}"))
                    }
                    None => self.otherwise(entry, &format!("{due} was due and did not come")),
                }
            }
        }
        // What came after all that was due, or between it. While a device leaves, it may still hear of what others did then.
        let leaves = self.any_order && by == ClosedBy::Device;
        if !live.another_past {
            for extra in live.kept.into_iter().filter(|heard| heard.passed || !leaves) {
                self.otherwise(entry, &format!("{} came and was not due", extra.name()));
            }
        }
    }

    /// Connections that the capture leaves open: what it would have shown next nobody knows.
    async fn finish(&mut self) {
        let mut left: Vec<(Track, Live)> = self.live.drain().collect();
        left.sort_by_key(|(track, _)| *track);
        for (track, mut live) in left {
            let _ended = live.say.send(Say::Close(CloseCode::Normal.code(), String::new())).await;
            live.end(live.patience).await;
            if live.another_past {
                continue;
            }
            for extra in live.kept.iter().filter(|heard| heard.passed) {
                self.tally.otherwise += 1;
                println!("#{} {} came and was not due", track.0, extra.name());
            }
        }
    }
}

/// Time, connection and device of an entry.
fn label(entry: &Entry, devices: &Devices) -> String {
    let track = match &entry.event {
        Event::Connect { track, .. } | Event::Frame { track, .. } | Event::Close { track, .. } => *track,
        Event::End(_) => Track(0),
    };
    let device = devices.of(track).map_or_else(|| "-".repeat(16), |device| device.to_string());
    format!("{:>4}.{:06} #{:<2} {device}", entry.at.as_secs(), entry.at.subsec_micros(), track.0)
}

/// In words; fields of the name `without` are not minded.
fn differences(due: &[(String, Value)], found: &[(String, Value)], without: &str) -> String {
    let value = |value: Option<&(String, Value)>| value.map_or_else(|| "nothing".to_owned(), |(_, v)| v.to_string());
    let pairs = (0..due.len().max(found.len())).map(|at| (due.get(at), found.get(at))).filter(|(a, b)| a != b);
    let said: Vec<String> = pairs
        .filter(|(due, found)| due.or(*found).is_none_or(|(name, _)| name != without))
        .map(|(due, found)| {
            let name = found.or(due).map_or("", |(name, _)| name.as_str());
            format!("{name} is {} where {} was due", value(found), value(due))
        })
        .collect();
    said.join(", ")
}
