//! `heliostat trace`: a capture as a picture.
//!
//! Chrome's trace event format, which <https://ui.perfetto.dev> and `chrome://tracing` open: a track per device, on which its
//! connections are slices, its transactions slices inside these, and frames short ones inside those; arrows lead from each
//! reflect to its acknowledgement and to every device that got it, and from there to that device's acknowledgement; a
//! counter per device shows what waits for it.
//!
//! The format wants slices of a track to lie within each other or beside each other, so frames of one track that were recorded
//! in the same microsecond are moved apart by one each, and an arrow never leads back in time; `at_us` has the true time. A
//! connection that begins before the device's last one was over (4112) gets a second track.
//!
//! What waits for a device is not said on the wire but once, in ServerInfo. From there it is counted: more with each
//! message of another device that was acknowledged, at the commit if it was staged; less with each acknowledgement. Of a
//! device that is not recorded, a message counts when it comes, unless it is one of those that ServerInfo announced, which
//! come first. A device that was connected before the recording has no counter until it connects again.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};
use serde_json::{Value, json};

use super::captured::{self, Devices};
use super::describe::{self, From};
use crate::capture::{ClosedBy, Direction, Entry, Event, Frame, Observer, Tail, Track};
use crate::files;
use crate::wire::d2m::{CloseCode, DeviceId, FromDevice, ReflectId, ReflectedId, ToDevice};

/// Everything is in one process of the picture.
const PID: u32 = 1;

/// Turn a capture into a picture: a trace for Perfetto
#[derive(Debug, clap::Args)]
#[command(after_help = "Open what it writes at https://ui.perfetto.dev (nothing leaves your machine there) or in \
                        chrome://tracing.

Exit status 1 says that the capture is cut or damaged; what was there is in the picture.")]
pub struct Args {
    /// The capture
    file: PathBuf,
    /// Where to write; standard output when absent
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Reads a capture and writes its picture.
///
/// # Errors
/// When the capture cannot be read, or nothing can be written.
#[expect(clippy::unused_async, reason = "all tools are run the same way")]
pub async fn run(args: Args) -> Result<ExitCode> {
    let mut devices = Devices::default();
    let mut reader = captured::open(&args.file)?;
    while let Some(entry) = reader.next_entry().into_diagnostic()? {
        devices.see(&entry);
    }
    let same = args.out.as_deref().and_then(|out| Some(out.canonicalize().ok()? == args.file.canonicalize().ok()?));
    if same == Some(true) {
        return Err(miette!("{} is the capture itself, and would be lost", args.file.display()));
    }
    let out: Box<dyn Write> = match &args.out {
        None => Box::new(io::stdout().lock()),
        Some(path) => {
            let file = files::private().create(true).truncate(true).open(path);
            Box::new(file.into_diagnostic().wrap_err_with(|| format!("{} cannot be written", path.display()))?)
        }
    };
    let mut reader = captured::open(&args.file)?;
    let mut trace = Trace::begin(BufWriter::new(out), devices, reader.header().observer).into_diagnostic()?;
    while let Some(entry) = reader.next_entry().into_diagnostic()? {
        trace.entry(&entry).into_diagnostic()?;
    }
    trace.finish().into_diagnostic()?;
    let whole = matches!(reader.tail(), Tail::Ended(_) | Tail::Unended);
    if !whole {
        eprintln!("{}: {}", args.file.display(), reader.tail());
    }
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A slice that arrows can begin and end at.
#[derive(Debug, Clone, Copy)]
struct Place {
    tid: u32,
    ts: u64,
}

/// A track of the picture.
#[derive(Debug)]
struct Lane {
    owner: Owner,
    /// Up to here it is taken.
    until: u64,
    taken: bool,
}

/// Whose track it is. Who never said a hello has none of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Device(DeviceId),
    Stranger(Track),
}

#[derive(Debug)]
struct Connection {
    lane: usize,
    began: u64,
    about: String,
    earlier: bool,
    /// When the lock was given, and the messages staged since.
    transaction: Option<(u64, i64)>,
    /// Messages that ServerInfo counted and that have not come yet.
    announced: u32,
    /// Reflects without an answer.
    unanswered: HashMap<ReflectId, VecDeque<usize>>,
}

#[derive(Debug)]
struct Reflected {
    from: Place,
    sender: Option<DeviceId>,
}

struct Trace<W> {
    out: W,
    first: bool,
    devices: Devices,
    lanes: Vec<Lane>,
    open: BTreeMap<Track, Connection>,
    flows: u64,
    reflects: Vec<Reflected>,
    /// Reflects by what they hold, the earliest first.
    by_envelope: HashMap<u64, Vec<usize>>,
    /// Which device got which, under which id and time.
    got: HashSet<(DeviceId, usize)>,
    ids: HashMap<(DeviceId, ReflectedId, u64), usize>,
    /// Where a device got what it has not acknowledged, and whether it was ephemeral.
    unacked: HashMap<(DeviceId, ReflectedId), (Place, bool)>,
    waiting: BTreeMap<DeviceId, i64>,
    last: u64,
}

impl<W: Write> Trace<W> {
    fn begin(mut out: W, devices: Devices, observer: Observer) -> io::Result<Self> {
        out.write_all(b"{\"displayTimeUnit\":\"ms\",\"traceEvents\":[")?;
        let mut trace = Self {
            out,
            first: true,
            devices,
            lanes: Vec::new(),
            open: BTreeMap::new(),
            flows: 0,
            reflects: Vec::new(),
            by_envelope: HashMap::new(),
            got: HashSet::new(),
            ids: HashMap::new(),
            unacked: HashMap::new(),
            waiting: BTreeMap::new(),
            last: 0,
        };
        let name = match observer {
            Observer::Device => "a device group, as devices saw it",
            Observer::Mediator => "a device group, as the mediator saw it",
        };
        trace.event(&json!({ "ph": "M", "name": "process_name", "pid": PID, "tid": 0, "args": { "name": name } }))?;
        Ok(trace)
    }

    fn event(&mut self, event: &Value) -> io::Result<()> {
        self.out.write_all(if std::mem::take(&mut self.first) { b"\n" } else { b",\n" })?;
        serde_json::to_writer(&mut self.out, event)?;
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        let last = Duration::from_micros(self.last);
        while let Some((&track, _)) = self.open.first_key_value() {
            self.close(track, last, "still open".to_owned())?;
        }
        self.out.write_all(b"\n]}\n")?;
        self.out.flush()
    }

    fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        let at = micros(entry.at);
        self.last = self.last.max(at);
        match &entry.event {
            Event::Connect { track, server_group, earlier, .. } => {
                self.connect(*track, at, server_group.as_str(), *earlier)
            }
            Event::Frame { track, direction, frame } => self.frame(*track, *direction, at, frame),
            Event::Close { track, by, code, reason } => {
                let number = code.map_or_else(|| "without a code".to_owned(), |code| format!("{code} {reason}"));
                let how = match by {
                    ClosedBy::Nobody => "lost".to_owned(),
                    ClosedBy::Device => format!("closed by the device: {number}"),
                    ClosedBy::Mediator => format!("closed by the mediator: {number}"),
                };
                self.close(*track, entry.at, how)?;
                let gone = [CloseCode::Dropped, CloseCode::ReflectionQueueLimit].map(|code| Some(code.code()));
                match self.devices.of(*track) {
                    Some(device) if *by == ClosedBy::Mediator && gone.contains(code) => self.forget(device, at),
                    _ => Ok(()),
                }
            }
            Event::End(_) => Ok(()),
        }
    }

    fn connect(&mut self, track: Track, at: u64, server_group: &str, earlier: bool) -> io::Result<()> {
        let owner = self.devices.of(track).map_or(Owner::Stranger(track), Owner::Device);
        let lane = match self.lanes.iter().position(|lane| lane.owner == owner && !lane.taken) {
            Some(lane) => lane,
            None => self.new_lane(owner)?,
        };
        let Some(found) = self.lanes.get_mut(lane) else { return Ok(()) };
        found.taken = true;
        found.until = found.until.max(at);
        let (began, about) = (found.until, format!("server group {server_group}"));
        let connection =
            Connection { lane, began, about, earlier, transaction: None, announced: 0, unanswered: HashMap::new() };
        self.open.insert(track, connection);
        Ok(())
    }

    fn new_lane(&mut self, owner: Owner) -> io::Result<usize> {
        let before = self.lanes.iter().filter(|lane| lane.owner == owner).count();
        let again = if before > 0 { format!(" ({})", before + 1) } else { String::new() };
        let name = match owner {
            Owner::Device(device) => format!("device {device}{again}"),
            Owner::Stranger(track) => format!("connection {} without a hello", track.0),
        };
        let lane = self.lanes.len();
        self.lanes.push(Lane { owner, until: 0, taken: false });
        let tid = tid(lane);
        self.event(&json!({ "ph": "M", "name": "thread_name", "pid": PID, "tid": tid, "args": { "name": name } }))?;
        let order = json!({ "sort_index": tid });
        self.event(&json!({ "ph": "M", "name": "thread_sort_index", "pid": PID, "tid": tid, "args": order }))?;
        Ok(lane)
    }

    fn close(&mut self, track: Track, at: Duration, how: String) -> io::Result<()> {
        let Some(connection) = self.open.remove(&track) else { return Ok(()) };
        let Connection { lane, began, about, earlier, transaction, announced: _, unanswered: _ } = connection;
        let Some(found) = self.lanes.get_mut(lane) else { return Ok(()) };
        let end = found.until.max(micros(at)).max(began + 1);
        found.until = end;
        found.taken = false;
        if let Some((from, _)) = transaction {
            self.transaction(lane, from, end, "aborted")?;
        }
        self.event(&json!({
            "ph": "X", "cat": "connection", "name": format!("connection {}", track.0), "pid": PID, "tid": tid(lane),
            "ts": began, "dur": end - began, "args": { "end": how, "about": about, "open before": earlier },
        }))
    }

    fn transaction(&mut self, lane: usize, from: u64, to: u64, how: &str) -> io::Result<()> {
        self.event(&json!({
            "ph": "X", "cat": "transaction", "name": "transaction", "pid": PID, "tid": tid(lane),
            "ts": from, "dur": to - from, "args": { "end": how },
        }))
    }

    fn frame(&mut self, track: Track, direction: Direction, at: u64, frame: &Frame) -> io::Result<()> {
        if !self.open.contains_key(&track) {
            return Ok(());
        }
        let device = self.devices.of(track);
        match direction {
            Direction::FromDevice => self.said(track, device, at, frame),
            Direction::ToDevice => self.heard(track, device, at, frame),
        }
    }

    fn said(&mut self, track: Track, device: Option<DeviceId>, at: u64, frame: &Frame) -> io::Result<()> {
        let payload = FromDevice::decode(&frame.kept).ok();
        let acked = match (&payload, device) {
            (Some(FromDevice::ReflectedAck(id)), Some(device)) => self.unacked.remove(&(device, *id)),
            _ => None,
        };
        let arrow = acked.map(|(from, _)| ("reflected-ack", from));
        let Some(place) = self.slice(track, Direction::FromDevice, at, frame, arrow)? else { return Ok(()) };
        match (payload, device, acked) {
            (Some(FromDevice::Reflect(reflect)), ..) => {
                let index = self.reflects.len();
                self.reflects.push(Reflected { from: place, sender: device });
                self.by_envelope.entry(digest(reflect.envelope.as_bytes())).or_default().push(index);
                if let Some(connection) = self.open.get_mut(&track).filter(|_| !reflect.flags.ephemeral) {
                    connection.unanswered.entry(reflect.reflect_id).or_default().push_back(index);
                }
                Ok(())
            }
            (_, Some(device), Some((_, false))) => self.wait(device, -1, at),
            _ => Ok(()),
        }
    }

    fn heard(&mut self, track: Track, device: Option<DeviceId>, at: u64, frame: &Frame) -> io::Result<()> {
        let payload = ToDevice::decode(&frame.kept).ok();
        let origin = match &payload {
            Some(ToDevice::ReflectAck(ack)) => {
                let unanswered = self.open.get_mut(&track).and_then(|it| it.unanswered.get_mut(&ack.reflect_id));
                unanswered.and_then(VecDeque::pop_front).map(|index| ("reflect-ack", index))
            }
            Some(ToDevice::Reflected(message)) => device
                .and_then(|device| self.origin(device, message.id(), message.timestamp_ms(), message.envelope()))
                .map(|index| ("reflected", index)),
            _ => None,
        };
        let arrow = origin.and_then(|(name, index)| Some((name, self.reflects.get(index)?.from)));
        let Some(place) = self.slice(track, Direction::ToDevice, at, frame, arrow)? else { return Ok(()) };
        let Some(connection) = self.open.get_mut(&track) else { return Ok(()) };
        match (payload, device) {
            (Some(ToDevice::ReflectAck(_)), _) => match &mut connection.transaction {
                Some((_, staged)) => *staged += 1,
                None => self.accepted(device, 1, at)?,
            },
            (Some(ToDevice::BeginTransactionAck), _) => connection.transaction = Some((place.ts, 0)),
            (Some(ToDevice::CommitTransactionAck), _) => {
                if let Some((from, staged)) = connection.transaction.take() {
                    let lane = connection.lane;
                    self.transaction(lane, from, place.ts + 1, "committed")?;
                    self.accepted(device, staged, at)?;
                }
            }
            (Some(ToDevice::Reflected(message)), Some(device)) => {
                let ephemeral = message.flags().ephemeral;
                self.unacked.insert((device, message.id()), (place, ephemeral));
                match connection.announced.checked_sub(1) {
                    _ if ephemeral => {}
                    Some(left) => connection.announced = left,
                    None if origin.is_none() => self.wait(device, 1, at)?,
                    None => {}
                }
            }
            (Some(ToDevice::ServerInfo(info)), Some(device)) => {
                connection.announced = info.reflection_queue_length;
                self.waiting.insert(device, info.reflection_queue_length.into());
                self.wait(device, 0, at)?;
            }
            (Some(ToDevice::DropDeviceAck(dropped)), _) => self.forget(dropped, at)?,
            _ => {}
        }
        Ok(())
    }

    /// Which reflect a message comes from: the one it came from last time, else the earliest with that envelope which the
    /// device did not get yet.
    fn origin(&mut self, device: DeviceId, id: ReflectedId, timestamp_ms: u64, envelope: &[u8]) -> Option<usize> {
        if let Some(&index) = self.ids.get(&(device, id, timestamp_ms)) {
            return Some(index);
        }
        let same = self.by_envelope.get(&digest(envelope))?;
        let fits = |&&index: &&usize| {
            let foreign = self.reflects.get(index).is_some_and(|reflect| reflect.sender != Some(device));
            foreign && !self.got.contains(&(device, index))
        };
        let index = *same.iter().find(fits)?;
        self.got.insert((device, index));
        self.ids.insert((device, id, timestamp_ms), index);
        Some(index)
    }

    /// A frame on its track, and the arrow that leads to it.
    fn slice(
        &mut self,
        track: Track,
        direction: Direction,
        at: u64,
        frame: &Frame,
        arrow: Option<(&str, Place)>,
    ) -> io::Result<Option<Place>> {
        let Some(lane) = self.open.get(&track).map(|it| it.lane) else { return Ok(None) };
        let Some(found) = self.lanes.get_mut(lane) else { return Ok(None) };
        let ts = found.until.max(at).max(arrow.map_or(0, |(_, from)| from.ts + 1));
        found.until = ts + 1;
        let place = Place { tid: tid(lane), ts };
        let from = match direction {
            Direction::FromDevice => From::Device,
            Direction::ToDevice => From::Mediator,
        };
        let (name, line) = match describe::container(&frame.kept, Some(from), None) {
            Ok(described) => (described.title.clone(), described.line()),
            Err(bad) => ("no container".to_owned(), bad.to_string()),
        };
        let cat = if direction == Direction::FromDevice { "from device" } else { "to device" };
        self.event(&json!({
            "ph": "X", "cat": cat, "name": name, "pid": PID, "tid": place.tid, "ts": ts, "dur": 1,
            "args": { "what": line, "bytes": frame.len, "at_us": at },
        }))?;
        if let Some((name, from)) = arrow {
            self.flows += 1;
            let id = self.flows;
            let end = |ph, place: Place| {
                json!({
                    "ph": ph, "cat": "flow", "name": name, "id": id, "pid": PID, "tid": place.tid, "ts": place.ts,
                    "bp": "e",
                })
            };
            self.event(&end("s", from))?;
            self.event(&end("f", place))?;
        }
        Ok(Some(place))
    }

    /// So many messages of a device's wait for all others that are known.
    fn accepted(&mut self, sender: Option<DeviceId>, count: i64, at: u64) -> io::Result<()> {
        if count == 0 {
            return Ok(());
        }
        let others: Vec<DeviceId> = self.waiting.keys().copied().filter(|&device| Some(device) != sender).collect();
        others.into_iter().try_for_each(|device| self.wait(device, count, at))
    }

    fn wait(&mut self, device: DeviceId, more: i64, at: u64) -> io::Result<()> {
        let Some(waiting) = self.waiting.get_mut(&device) else { return Ok(()) };
        *waiting = waiting.saturating_add(more);
        // An acknowledgement may be recorded before the one that says that there was something to acknowledge.
        let shown = (*waiting).max(0);
        self.counter(device, shown, at)
    }

    fn forget(&mut self, device: DeviceId, at: u64) -> io::Result<()> {
        self.unacked.retain(|(other, _), _| *other != device);
        if self.waiting.remove(&device).is_some() { self.counter(device, 0, at) } else { Ok(()) }
    }

    fn counter(&mut self, device: DeviceId, waiting: i64, at: u64) -> io::Result<()> {
        self.event(&json!({
            "ph": "C", "name": format!("waits for device {device}"), "pid": PID, "tid": 0, "ts": at,
            "args": { "messages": waiting },
        }))
    }
}

fn micros(at: Duration) -> u64 {
    // Far beyond any recording, and far enough from where numbers end to be moved apart.
    u64::try_from(at.as_micros()).unwrap_or(u64::MAX).min(1 << 60)
}

/// Tracks count from 1: 0 is the process's own.
fn tid(lane: usize) -> u32 {
    u32::try_from(lane).unwrap_or(u32::MAX - 1) + 1
}

fn digest(envelope: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    envelope.hash(&mut hasher);
    hasher.finish()
}
