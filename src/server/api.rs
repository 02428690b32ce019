//! What operators ask of a running server, and what it answers, as JSON. `heliostat admin` speaks it, and so can `curl`.
//!
//! | | |
//! |---|---|
//! | `GET /api/groups?limit=N` | groups that are awake, those in trouble first; `&all` lists what is kept instead |
//! | `GET /api/groups/GROUP` | one group with its devices and its lock |
//! | `GET /api/groups/GROUP/explain?device=ID` | why something does not happen, in sentences |
//! | `POST /api/groups/GROUP/devices/ID/drop` | removes a device, as a device of its group could |
//! | `POST /api/groups/GROUP/devices/ID/kick` | ends its connection with 1001; it may come back |
//! | `POST /api/groups/GROUP/capture?for=60s` | a capture of what its devices and the mediator say, as it happens |
//! | `POST /api/backup` | copies the data directory to the absolute path that is the body, on the server's machine |
//! | `POST /api/drain` | stops the server in order, as SIGTERM does |
//! | `GET /api/log`, `POST /api/log` | what is logged; the new filter is the body |
//!
//! A group is named by its id or by its hash in today's log. Every refusal is `{"error": "a sentence"}`.

use std::collections::HashMap;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, RawQuery, State as Extract};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::LevelFilter;

use super::admin::State;
use super::backup::{Backup, BackupError};
use super::explain;
use crate::capture::watch::Busy;
use crate::capture::{End, Recorder};
use crate::group::{GroupView, Pulse};
use crate::hub::{Hub, Inspection, JoinError};
use crate::log::LogId;
use crate::logging::{self, BadFilter};
use crate::store::{Owner, StoreError};
use crate::wire::d2m::{DeviceGroupId, DeviceId};

/// How long a group may take to answer an operator: longer than a slow disk, shorter than patience.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Groups listed when nothing else is said.
const LISTED: usize = 50;
/// Groups listed at most.
const LISTED_MAX: usize = 10_000;
/// Longest log filter, in bytes.
const FILTER_MAX: usize = 1_024;
/// How long a group is recorded when nothing else is said.
const CAPTURE_FOR: Duration = Duration::from_secs(60);
/// How long a group is recorded at most.
const CAPTURE_FOR_MAX: Duration = Duration::from_secs(3_600);
/// How often the log says that a group is being recorded.
const CAPTURE_TOLD_EVERY: Duration = Duration::from_secs(60);
/// Groups read from the store at a time when one is looked for by its hash.
const SEARCH_STEP: usize = 1_024;

/// The answer of `/api/groups`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupList {
    /// Some of them.
    pub groups: Vec<GroupLine>,
    /// How many are awake.
    pub awake: u64,
    /// How many are kept and asleep.
    pub asleep: u64,
}

/// The answer of `nodes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeList {
    /// Those that live.
    pub nodes: Vec<NodeLine>,
}

/// One node of several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLine {
    /// What its operator calls it.
    pub name: String,
    /// Where other nodes reach it.
    pub address: String,
    /// Under which number it runs: another one after each start, and after each lease it lost.
    pub number: i64,
}

/// One group of many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupLine {
    /// How it appears in today's log.
    pub hash: String,
    /// Its slots.
    pub devices: u64,
    /// What is known of it because it is awake.
    pub awake: Option<AwakeLine>,
}

/// A group that is awake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwakeLine {
    /// Devices that are connected.
    pub connected: u64,
    /// Who leads.
    pub leader: Option<DeviceId>,
    /// Messages that wait for the device with the longest queue.
    pub waiting: u64,
    /// Messages that wait for connected devices, together.
    pub lagging: u64,
    /// Connections whose socket takes nothing more at the moment.
    pub stalled: u64,
    /// Whether a transaction runs.
    pub locked: bool,
}

/// The answer of `/api/groups/GROUP`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupDetails {
    /// Its id, in hex.
    pub id: String,
    /// How it appears in today's log.
    pub hash: String,
    /// How its devices appear in today's log, in the order of `devices`.
    pub device_hashes: Vec<String>,
    /// What is seen of it.
    #[serde(flatten)]
    pub inspection: Inspection,
}

/// The answer of `explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// How the group appears in today's log.
    pub hash: String,
    /// What there is to say.
    pub sentences: Vec<String>,
}

/// The answer to a change: what was done, in a sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The sentence.
    pub done: String,
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogFilter {
    /// The filter.
    pub filter: String,
}

/// Every refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The sentence.
    pub error: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum ApiError {
    #[error("{0:?} names no group: 64 hex digits of its id, or the 12 of its hash in today's log")]
    BadGroup(String),
    #[error("{0:?} is no device id, which is 1 to 16 hex digits")]
    BadDevice(String),
    #[error("{0:?} is not understood here")]
    BadQuery(String),
    #[error("there is no group {0}")]
    NoGroup(String),
    #[error("more than one group has the hash {0} today; name it by its id")]
    Ambiguous(String),
    #[error("there is no device {0} in that group")]
    NoDevice(DeviceId),
    #[error("device {0} is not connected")]
    NotConnected(DeviceId),
    #[error("the group does not answer: it waits for the store")]
    Slow,
    #[error("{0}")]
    Failed(#[from] JoinError),
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("{0:?} is no filter, as are `debug` and `info,heliostat::upstream=debug`: {1}")]
    BadFilter(String, String),
    #[error("what this process logs cannot be changed")]
    NotLogging,
    #[error("this server does not let groups be recorded: it has no `admin.capture = true`")]
    NoCaptures,
    #[error("{0}")]
    Capture(#[from] Busy),
    #[error("nothing is kept on disk, so there is nothing to back up")]
    NothingKept,
    #[error("{0}")]
    Backup(#[from] BackupError),
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match self {
            Self::BadGroup(_) | Self::BadDevice(_) | Self::BadQuery(_) | Self::BadFilter(..) => StatusCode::BAD_REQUEST,
            Self::Backup(BackupError::Relative(_)) => StatusCode::BAD_REQUEST,
            Self::Backup(BackupError::Exists(_) | BackupError::Running) | Self::NothingKept => StatusCode::CONFLICT,
            Self::Backup(BackupError::Store(_) | BackupError::Io { .. } | BackupError::Unfit { .. }) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Self::NoCaptures => StatusCode::FORBIDDEN,
            Self::NoGroup(_) | Self::NoDevice(_) => StatusCode::NOT_FOUND,
            Self::Ambiguous(_) | Self::NotConnected(_) | Self::NotLogging | Self::Capture(_) => StatusCode::CONFLICT,
            Self::Slow => StatusCode::GATEWAY_TIMEOUT,
            // By whom it is to be asked instead, says the error.
            Self::Failed(JoinError::Elsewhere(_)) => StatusCode::MISDIRECTED_REQUEST,
            Self::Failed(JoinError::Moving) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Failed(_) | Self::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(Refusal { error: self.to_string() })).into_response()
    }
}

pub(super) fn router() -> Router<State> {
    Router::new()
        .route("/api/groups", get(groups))
        .route("/api/groups/{group}", get(group))
        .route("/api/groups/{group}/explain", get(explained))
        .route("/api/groups/{group}/devices/{device}/drop", post(drop_device))
        .route("/api/groups/{group}/devices/{device}/kick", post(kick))
        .route("/api/groups/{group}/capture", post(capture))
        .route("/api/nodes", get(nodes))
        .route("/api/backup", post(back_up))
        .route("/api/drain", post(drain))
        .route("/api/log", get(log_filter).post(change_log))
}

/// The words of a query, each with its value. Nothing here needs escapes.
fn query(query: Option<&str>, known: &[&str]) -> Result<Vec<(String, String)>, ApiError> {
    let words = query.unwrap_or_default().split('&').filter(|word| !word.is_empty());
    words
        .map(|word| {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            if known.contains(&name) { Ok((name.into(), value.into())) } else { Err(ApiError::BadQuery(word.into())) }
        })
        .collect()
}

async fn groups(Extract(state): Extract<State>, RawQuery(asked): RawQuery) -> Result<Json<GroupList>, ApiError> {
    let (mut all, mut limit) = (false, LISTED);
    for (name, value) in query(asked.as_deref(), &["all", "limit"])? {
        if name == "all" {
            all = true;
        } else {
            limit = value.parse().map_err(|_| ApiError::BadQuery(format!("limit={value}")))?;
        }
    }
    let limit = limit.min(LISTED_MAX);
    let mut pulses = state.hub.pulses();
    let awake = pulses.len() as u64;
    let kept = state.hub.census(None, if all { limit } else { 0 }).await?;
    let groups = if all {
        let pulses: HashMap<DeviceGroupId, Pulse> = pulses.into_iter().collect();
        let line = |&(id, devices): &(DeviceGroupId, u64)| GroupLine {
            hash: id.to_string(),
            devices,
            awake: pulses.get(&id).map(AwakeLine::from),
        };
        kept.some.iter().map(line).collect()
    } else {
        pulses.sort_unstable_by_key(|(id, pulse)| (std::cmp::Reverse(trouble(pulse)), *id));
        let line = |(id, pulse): &(DeviceGroupId, Pulse)| GroupLine {
            hash: id.to_string(),
            devices: pulse.devices as u64,
            awake: Some(pulse.into()),
        };
        pulses.iter().take(limit).map(line).collect()
    };
    Ok(Json(GroupList { groups, awake, asleep: kept.groups.saturating_sub(awake) }))
}

async fn nodes(Extract(state): Extract<State>) -> Result<Json<NodeList>, ApiError> {
    let nodes = state.hub.nodes().await?;
    let line = |Owner { node, name, address }: Owner| NodeLine { name, address, number: node.0 };
    Ok(Json(NodeList { nodes: nodes.into_iter().map(line).collect() }))
}

/// What makes a group worth looking at, the worst first.
pub(super) fn trouble(pulse: &Pulse) -> impl Ord + use<> {
    (pulse.stalled, pulse.lagging, pulse.locked, pulse.deepest, pulse.connected)
}

impl From<&Pulse> for AwakeLine {
    fn from(pulse: &Pulse) -> Self {
        let Pulse { devices: _, connected, leader, deepest, lagging, stalled, locked } = *pulse;
        Self { connected: connected as u64, leader, waiting: deepest, lagging, stalled: stalled as u64, locked }
    }
}

async fn group(Extract(state): Extract<State>, Path(name): Path<String>) -> Result<Json<GroupDetails>, ApiError> {
    let (id, inspection) = inspect(&state.hub, &name).await?;
    let GroupView { devices, .. } = &inspection.view;
    let device_hashes = devices.iter().map(|device| id.log_device(device.device).to_string()).collect();
    Ok(Json(GroupDetails { id: hex::encode(id.as_bytes()), hash: id.to_string(), device_hashes, inspection }))
}

async fn explained(
    Extract(state): Extract<State>,
    Path(name): Path<String>,
    RawQuery(asked): RawQuery,
) -> Result<Json<Explanation>, ApiError> {
    let mut about = None;
    for (_, value) in query(asked.as_deref(), &["device"])? {
        about = Some(device_id(&value)?);
    }
    let (id, inspection) = inspect(&state.hub, &name).await?;
    Ok(Json(Explanation { hash: id.to_string(), sentences: explain::explain(&inspection, about) }))
}

async fn drop_device(
    Extract(state): Extract<State>,
    Path((name, device)): Path<(String, String)>,
) -> Result<Json<Done>, ApiError> {
    let (device, id) = (device_id(&device)?, find(&state.hub, &name).await?);
    if !within(state.hub.drop_device(id, device)).await? {
        return Err(ApiError::NoDevice(device));
    }
    tracing::warn!(group = %id, device = %id.log_device(device), "an operator dropped a device");
    Ok(Json(Done { done: format!("Device {device} was dropped from group {id}, with all that waited for it.") }))
}

async fn kick(
    Extract(state): Extract<State>,
    Path((name, device)): Path<(String, String)>,
) -> Result<Json<Done>, ApiError> {
    let (device, id) = (device_id(&device)?, find(&state.hub, &name).await?);
    if !within(state.hub.kick(id, device)).await? {
        return Err(ApiError::NotConnected(device));
    }
    tracing::warn!(group = %id, device = %id.log_device(device), "an operator ended a connection");
    Ok(Json(Done { done: format!("The connection of device {device} was ended with 1001. It may come back.") }))
}

/// Streams what a group says. The group may be one that is not known yet, if it is named by its id.
async fn capture(
    Extract(state): Extract<State>,
    Path(name): Path<String>,
    RawQuery(asked): RawQuery,
) -> Result<Response, ApiError> {
    let captures = state.captures.ok_or(ApiError::NoCaptures)?;
    let mut lasts = CAPTURE_FOR;
    for (_, value) in query(asked.as_deref(), &["for"])? {
        let parsed = humantime::parse_duration(&value).ok().filter(|lasts| *lasts <= CAPTURE_FOR_MAX);
        lasts = parsed.ok_or_else(|| ApiError::BadQuery(format!("for={value}")))?;
    }
    let group = find(&state.hub, &name).await?;
    let (recorder, recording) = captures.begin(group, state.clock)?;
    tokio::spawn(async move {
        oversee(&recorder, group, lasts, state.closing.cancelled()).await;
        captures.forget_ended();
    });
    let stream = futures_util::stream::unfold(recording, async |mut recording| {
        let bytes = recording.next().await?;
        Some((Ok::<_, std::convert::Infallible>(bytes), recording))
    });
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], Body::from_stream(stream)).into_response())
}

/// Ends a capture in time, and lets nobody who reads the log overlook it.
async fn oversee(recorder: &Recorder, group: DeviceGroupId, lasts: Duration, stopping: impl Future<Output = ()>) {
    let seconds = lasts.as_secs();
    tracing::warn!(%group, seconds, "an operator records what a group says");
    let mut again = tokio::time::interval(CAPTURE_TOLD_EVERY);
    again.reset();
    let repeat = async {
        loop {
            again.tick().await;
            tracing::warn!(%group, frames = recorder.frames(), "an operator still records what a group says");
        }
    };
    tokio::select! {
        () = recorder.over() => {}
        () = tokio::time::sleep(lasts) => recorder.end(End::TimeOver),
        () = stopping => recorder.end(End::Stopping),
        () = repeat => {}
    }
    let why = recorder.ended().map_or("", End::meaning);
    tracing::warn!(%group, frames = recorder.frames(), why, "what a group says is not recorded any more");
}

async fn back_up(Extract(state): Extract<State>, path: String) -> Result<Json<Backup>, ApiError> {
    let backups = state.backups.ok_or(ApiError::NothingKept)?;
    Ok(Json(backups.make(path.into()).await?))
}

async fn drain(Extract(state): Extract<State>) -> (StatusCode, Json<Done>) {
    tracing::warn!("an operator asked for the end");
    // Counted before they hear of it.
    let connections = state.public.connections();
    state.drain.cancel();
    let done = format!("The server drains: {connections} connections are to be ended with 1001.");
    (StatusCode::ACCEPTED, Json(Done { done }))
}

async fn log_filter() -> Result<Json<LogFilter>, ApiError> {
    let filter = logging::current().ok_or(ApiError::NotLogging)?;
    Ok(Json(LogFilter { filter }))
}

async fn change_log(filter: String) -> Result<Json<LogFilter>, ApiError> {
    let bad = |why: &dyn std::fmt::Display| ApiError::BadFilter(filter.chars().take(100).collect(), why.to_string());
    if filter.len() > FILTER_MAX {
        return Err(bad(&format_args!("it has more than {FILTER_MAX} bytes")));
    }
    // A word alone would be taken for a module of that name, so that `debig` said everything about nothing.
    let mut words = filter.split(',').map(str::trim);
    if let Some(word) = words.find(|word| !word.contains(['=', '[']) && word.parse::<LevelFilter>().is_err()) {
        return Err(bad(&format_args!("{word:?} is no level: error, warn, info, debug, trace or off")));
    }
    logging::change(filter.trim()).map_err(|error| match error {
        BadFilter::Text(error) => bad(&error),
        BadFilter::NotStarted => ApiError::NotLogging,
    })?;
    tracing::warn!(filter, "what is logged was changed");
    log_filter().await
}

fn device_id(text: &str) -> Result<DeviceId, ApiError> {
    text.parse().map_err(|_| ApiError::BadDevice(text.to_owned()))
}

async fn inspect(hub: &Hub, name: &str) -> Result<(DeviceGroupId, Inspection), ApiError> {
    let id = find(hub, name).await?;
    let inspection = within(hub.inspect(id)).await?.ok_or_else(|| ApiError::NoGroup(name.to_owned()))?;
    Ok((id, inspection))
}

async fn within<T>(answer: impl Future<Output = Result<T, JoinError>>) -> Result<T, ApiError> {
    Ok(tokio::time::timeout(ANSWER_WITHIN, answer).await.map_err(|_elapsed| ApiError::Slow)??)
}

/// The group of this name: by its id, or by today's hash among those that are awake, else among all that are kept.
async fn find(hub: &Hub, name: &str) -> Result<DeviceGroupId, ApiError> {
    let mut id = [0; DeviceGroupId::LEN];
    if hex::decode_to_slice(name, &mut id).is_ok() {
        return Ok(DeviceGroupId::new(id));
    }
    let hash: LogId = name.parse().map_err(|_| ApiError::BadGroup(name.to_owned()))?;
    let mut found: Vec<DeviceGroupId> =
        hub.pulses().into_iter().map(|(id, _)| id).filter(|id| id.log_id() == hash).collect();
    let mut after = None;
    while found.is_empty() {
        let step = hub.census(after, SEARCH_STEP).await?.some;
        let Some(&(last, _)) = step.last() else { break };
        found.extend(step.into_iter().map(|(id, _)| id).filter(|id| id.log_id() == hash));
        after = Some(last);
    }
    match found[..] {
        [] => Err(ApiError::NoGroup(name.to_owned())),
        [id] => Ok(id),
        _ => Err(ApiError::Ambiguous(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::capture::Observer;
    use crate::time::Clock;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_reads_the_log_cannot_overlook_that_a_group_is_recorded() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let group = DeviceGroupId::new([9; 32]);
        let (recorder, _recording) = Recorder::begin(Clock::system(), Observer::Mediator, Some(group));
        {
            let _here = tracing::subscriber::set_default(subscriber);
            oversee(&recorder, group, Duration::from_secs(150), std::future::pending()).await;
        }
        assert_eq!(recorder.ended(), Some(End::TimeOver));
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let [begun, first, second, over] = lines[..] else { panic!("{text}") };
        let hash = group.to_string();
        assert!(lines.iter().all(|line| line.contains("WARN") && line.contains(&hash)), "{text}");
        assert!(begun.contains("records what a group says") && begun.contains("seconds=150"), "{begun}");
        assert!(
            [first, second].iter().all(|line| line.contains("still records") && line.contains("frames=0")),
            "{text}"
        );
        assert!(over.contains("not recorded any more") && over.contains("its time was over"), "{over}");
    }
}
