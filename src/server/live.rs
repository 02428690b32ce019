//! What the dashboard shows, once a second and once for all who look.
//!
//! The first viewer starts a task that takes a snapshot each second; it ends when the last one is gone, so a dashboard
//! that nobody looks at costs nothing. Numbers come from the very text that Prometheus reads, so that the two cannot disagree;
//! groups come from their pulses, and only the few that are shown are asked for more.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::response::sse::Event;
use futures_util::future::join_all;
use futures_util::stream::{self, Stream, StreamExt as _};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::admin::State;
use super::api;
use super::health::Ready;
use crate::group::view::{Connection, Delivery, DeviceView, Presence};
use crate::group::{GroupView, Pulse};
use crate::logging;
use crate::net::tls::{Identity, Tls};
use crate::wire::d2m::{CloseCode, DeviceGroupId, DeviceId};

/// How often a snapshot is taken.
const EVERY: Duration = Duration::from_secs(1);
/// Viewers at a time. Each holds a connection and a copy of what it was not sent yet.
const VIEWERS_MAX: usize = 16;
/// Samples kept for whoever comes later: five minutes.
const HISTORY: usize = 300;
/// What counts as lately: a minute.
const LATELY: usize = 60;
/// Groups shown.
const GROUPS: usize = 8;
/// How long one of them may take to answer. One that waits for its store is shown by its pulse alone.
const GROUP_WITHIN: Duration = Duration::from_millis(250);
/// How often the groups that are kept are counted, in snapshots.
const CENSUS_EVERY: u64 = 10;

/// The one source of snapshots.
#[derive(Debug, Clone, Default)]
pub(super) struct Live(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    snapshot: watch::Sender<Arc<str>>,
    taking: Mutex<Taking>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { snapshot: watch::Sender::new("".into()), taking: Mutex::default() }
    }
}

#[derive(Debug, Default)]
struct Taking {
    /// Whether the task runs.
    runs: bool,
    history: VecDeque<Sample>,
}

/// One point of the charts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Sample {
    at_ms: u64,
    connections: usize,
    /// Per second, as all of these.
    reflects: f64,
    reflect_bytes: f64,
    proxy_bytes: f64,
}

/// Too many are looking already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooManyViewers;

impl Live {
    /// Everything from now on, and the history first.
    pub(super) fn watch(
        &self,
        state: &State,
    ) -> Result<impl Stream<Item = Result<Event, Infallible>> + use<>, TooManyViewers> {
        let mut taking = self.0.taking.lock().unwrap_or_else(PoisonError::into_inner);
        if self.0.snapshot.receiver_count() >= VIEWERS_MAX {
            return Err(TooManyViewers);
        }
        // Under the lock, so that the task cannot end between seeing nobody and saying so.
        let mut snapshots = self.0.snapshot.subscribe();
        snapshots.mark_unchanged();
        if !taking.runs {
            taking.runs = true;
            taking.history.clear();
            tokio::spawn(Arc::clone(&self.0).take(state.clone()));
        }
        let history = serde_json::to_string(&taking.history).unwrap_or_default();
        drop(taking);
        let first = stream::once(async move { Event::default().event("history").data(history) });
        let rest = stream::unfold((snapshots, state.closing.clone()), async |(mut snapshots, closing)| {
            closing.run_until_cancelled(snapshots.changed()).await?.ok()?;
            let snapshot = Arc::clone(&snapshots.borrow_and_update());
            Some((Event::default().event("snapshot").data(&*snapshot), (snapshots, closing)))
        });
        Ok(first.chain(rest).map(Ok))
    }
}

impl Shared {
    async fn take(self: Arc<Self>, state: State) {
        let mut seconds = interval(EVERY);
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut before, mut kept, mut connects) = (None, 0, VecDeque::new());
        for tick in 0_u64.. {
            seconds.tick().await;
            {
                let mut taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
                if self.snapshot.receiver_count() == 0 || state.closing.is_cancelled() {
                    taking.runs = false;
                    return;
                }
            }
            if tick.is_multiple_of(CENSUS_EVERY) {
                // Whether the store fails is told elsewhere.
                kept = state.hub.census(None, 0).await.map_or(kept, |census| census.groups);
            }
            let now = state.clock.now();
            let numbers = Numbers::read(&state.health.metrics());
            let totals = Totals::of(now.monotonic, &numbers);
            let rates = before.map_or_else(Rates::default, |before| totals.since(&before));
            before = Some(totals);
            connects.push_back(numbers.by("heliostat_proxy_connects_total", "result"));
            if connects.len() > LATELY + 1 {
                connects.pop_front();
            }
            let sample = Sample {
                at_ms: now.wall_ms,
                connections: state.public.connections(),
                reflects: rates.reflects,
                reflect_bytes: rates.reflect_bytes,
                proxy_bytes: rates.to_chat + rates.to_device,
            };
            let groups = Groups::look(&state).await;
            let snapshot = Snapshot {
                at_ms: now.wall_ms,
                uptime_s: now.monotonic.as_secs(),
                ready: state.health.ready(),
                log: logging::current(),
                connections: sample.connections,
                groups_asleep: kept.saturating_sub(groups.awake),
                rates,
                closed: closed(&numbers),
                upstream: Upstream {
                    open: numbers.sum("heliostat_proxy_connections"),
                    lately: since(connects.front(), connects.back()),
                },
                certificate: state.tls.as_ref().and_then(Tls::identity).map(|it| CertificateLeft::of(&it, now.wall_ms)),
                groups,
            };
            let text = serde_json::to_string(&snapshot).unwrap_or_default();
            {
                let mut taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
                taking.history.push_back(sample);
                if taking.history.len() > HISTORY {
                    taking.history.pop_front();
                }
            }
            self.snapshot.send_replace(text.into());
        }
    }
}

/// Everything on the page.
#[derive(Debug, Serialize)]
struct Snapshot {
    at_ms: u64,
    uptime_s: u64,
    #[serde(flatten)]
    ready: Ready,
    log: Option<String>,
    connections: usize,
    groups_asleep: u64,
    rates: Rates,
    closed: Vec<Closed>,
    upstream: Upstream,
    certificate: Option<CertificateLeft>,
    groups: Groups,
}

/// The certificate of the public door.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct CertificateLeft {
    pin: String,
    names: Vec<String>,
    /// Negative when it is over.
    days_left: i64,
}

impl CertificateLeft {
    fn of(identity: &Identity, now_ms: u64) -> Self {
        let days_left = identity.seconds_left(now_ms).div_euclid(86_400);
        Self { pin: identity.pin.clone(), names: identity.names.clone(), days_left }
    }
}

/// Connections that ended with a code, since the start.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Closed {
    code: String,
    meaning: &'static str,
    count: u64,
}

#[derive(Debug, Serialize)]
struct Upstream {
    open: f64,
    /// Attempts of the last minute by how they ended.
    lately: BTreeMap<String, f64>,
}

/// Per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
struct Rates {
    reflects: f64,
    reflect_bytes: f64,
    to_chat: f64,
    to_device: f64,
}

/// Counters at one moment.
#[derive(Debug, Clone, Copy)]
struct Totals {
    at: Duration,
    reflects: f64,
    reflect_bytes: f64,
    to_chat: f64,
    to_device: f64,
}

impl Totals {
    fn of(at: Duration, numbers: &Numbers) -> Self {
        let proxied = numbers.by("heliostat_proxy_bytes_total", "direction");
        let way = |name| proxied.get(name).copied().unwrap_or_default();
        Self {
            at,
            reflects: numbers.sum("heliostat_reflects_total"),
            reflect_bytes: numbers.sum("heliostat_reflect_bytes_total"),
            to_chat: way("to_chat_server"),
            to_device: way("to_device"),
        }
    }

    fn since(&self, before: &Self) -> Rates {
        let seconds = self.at.saturating_sub(before.at).as_secs_f64().max(0.001);
        let rate = |now: f64, then: f64| ((now - then) / seconds).max(0.0);
        Rates {
            reflects: rate(self.reflects, before.reflects),
            reflect_bytes: rate(self.reflect_bytes, before.reflect_bytes),
            to_chat: rate(self.to_chat, before.to_chat),
            to_device: rate(self.to_device, before.to_device),
        }
    }
}

fn since(before: Option<&BTreeMap<String, f64>>, now: Option<&BTreeMap<String, f64>>) -> BTreeMap<String, f64> {
    let then = |name: &String| before.and_then(|before| before.get(name)).copied().unwrap_or_default();
    now.into_iter().flatten().map(|(name, count)| (name.clone(), count - then(name))).collect()
}

fn closed(numbers: &Numbers) -> Vec<Closed> {
    let counts = numbers.by("heliostat_closes_total", "code");
    let meaning = |code: &str| {
        let known = code.parse().ok().and_then(|code: u16| CloseCode::ALL.into_iter().find(|it| it.code() == code));
        known.map_or("the device was gone already", CloseCode::meaning)
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count that was printed as one")]
    let closed = |(code, count): (String, f64)| Closed { meaning: meaning(&code), count: count as u64, code };
    counts.into_iter().filter(|(_, count)| *count > 0.0).map(closed).collect()
}

/// The groups that are awake, and those of them that are shown.
#[derive(Debug, Default, Serialize)]
struct Groups {
    awake: u64,
    /// Messages that wait for the device with the longest queue.
    deepest: u64,
    /// Messages that wait for connected devices.
    lagging: u64,
    /// Connections whose socket takes nothing.
    stalled: u64,
    /// Transactions that run.
    locked: u64,
    shown: Vec<Shown>,
}

/// One group, under names that hold for a day.
#[derive(Debug, Serialize)]
struct Shown {
    group: String,
    /// Messages that wait for the device with the longest queue.
    deepest: u64,
    /// Connections whose socket takes nothing.
    stalled: usize,
    /// `None` when the group did not answer in time.
    devices: Option<Vec<Dot>>,
    lock: Option<Held>,
}

#[derive(Debug, Serialize)]
struct Dot {
    device: String,
    connected: bool,
    leader: bool,
    waiting: u64,
    /// In a word or two.
    state: &'static str,
}

#[derive(Debug, Serialize)]
struct Held {
    holder: String,
    held_ms: u64,
    /// `None` when its time has not begun.
    remaining_ms: Option<u64>,
    staged: usize,
}

impl Groups {
    async fn look(state: &State) -> Self {
        let mut pulses = state.hub.pulses();
        let mut groups = Self { awake: pulses.len() as u64, ..Self::default() };
        for (_, pulse) in &pulses {
            groups.deepest = groups.deepest.max(pulse.deepest);
            groups.lagging = groups.lagging.saturating_add(pulse.lagging);
            groups.stalled += pulse.stalled as u64;
            groups.locked += u64::from(pulse.locked);
        }
        // By id when nothing else tells them apart, so that the page does not flicker.
        pulses.sort_unstable_by_key(|(id, pulse)| (std::cmp::Reverse(api::trouble(pulse)), *id));
        pulses.truncate(GROUPS);
        groups.shown = join_all(pulses.into_iter().map(|(id, pulse)| Shown::look(state, id, pulse))).await;
        groups
    }
}

impl Shown {
    async fn look(state: &State, id: DeviceGroupId, pulse: Pulse) -> Self {
        let answer = match timeout(GROUP_WITHIN, state.hub.inspect(id)).await {
            Ok(Ok(Some(inspection))) => Some(inspection.view),
            Ok(Ok(None)) => Some(GroupView::default()),
            Ok(Err(_)) | Err(_) => None,
        };
        let lock = answer.as_ref().and_then(|view| view.lock.as_ref()).map(|lock| Held {
            holder: short(id, lock.holder),
            held_ms: lock.held_ms,
            remaining_ms: lock.remaining_ms,
            staged: lock.staged,
        });
        let dots = |view: &GroupView| {
            let dot = |device: &DeviceView| Dot {
                device: short(id, device.device),
                connected: matches!(device.presence, Presence::Connected(_)),
                leader: view.leader == Some(device.device),
                waiting: device.waiting,
                state: state_of(device),
            };
            view.devices.iter().map(dot).collect()
        };
        let devices = answer.as_ref().map(dots);
        Self { group: id.to_string(), deepest: pulse.deepest, stalled: pulse.stalled, devices, lock }
    }
}

/// The beginning of how a device appears in the log, for a page where it stands among fifteen.
fn short(group: DeviceGroupId, device: DeviceId) -> String {
    group.log_device(device).to_string().chars().take(6).collect()
}

const fn state_of(device: &DeviceView) -> &'static str {
    match &device.presence {
        Presence::Away { .. } => "away",
        Presence::Connected(Connection { delivery: Delivery::SocketFull { .. }, .. }) => "takes nothing",
        Presence::Connected(Connection { delivery: Delivery::Reading, .. } | Connection { dry: None, .. }) => {
            "gets its backlog"
        }
        Presence::Connected(_) if device.waiting > 0 => "has not acknowledged all",
        Presence::Connected(_) => "has everything",
    }
}

/// Numbers out of the text that Prometheus reads.
#[derive(Debug, Default)]
struct Numbers(Vec<Series>);

#[derive(Debug)]
struct Series {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Numbers {
    fn read(text: &str) -> Self {
        let line = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            // Values of labels are words of `metrics`: no commas, no escapes.
            let labels = labels.trim_end_matches('}').split(',').filter_map(|label| {
                let (name, value) = label.split_once('=')?;
                Some((name.to_owned(), value.trim_matches('"').to_owned()))
            });
            Some(Series { name: name.to_owned(), labels: labels.collect(), value: value.parse().ok()? })
        };
        Self(text.lines().filter(|line| !line.starts_with('#')).filter_map(line).collect())
    }

    /// All series of a name together.
    fn sum(&self, name: &str) -> f64 {
        self.0.iter().filter(|series| series.name == name).map(|series| series.value).sum()
    }

    /// The same, by the values of one label.
    fn by(&self, name: &str, label: &str) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for Series { labels, value, .. } in self.0.iter().filter(|series| series.name == name) {
            if let Some((_, word)) = labels.iter().find(|(known, _)| known == label) {
                *sums.entry(word.clone()).or_default() += value;
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics;

    #[test]
    fn numbers_are_read_from_what_prometheus_reads() {
        let numbers = Numbers::read(
            "# HELP a_total Of {this}.\n# TYPE a_total counter\na_total{code=\"1000\",culprit=\"device\"} 2\n\
             a_total{code=\"1000\",culprit=\"group\"} 3\na_total{code=\"none\"} 1\na_total_other 9\nb 1.5e3\n\nbroken\n",
        );
        assert_eq!(numbers.sum("a_total"), 6.0);
        assert_eq!(numbers.sum("b"), 1_500.0);
        assert_eq!(numbers.sum("nothing"), 0.0);
        let by = numbers.by("a_total", "code");
        assert_eq!(by.into_iter().collect::<Vec<_>>(), [("1000".to_owned(), 5.0), ("none".to_owned(), 1.0)]);
    }

    #[test]
    fn every_number_that_is_shown_is_measured() {
        let numbers = Numbers::read(&metrics::render());
        for name in ["heliostat_reflects_total", "heliostat_reflect_bytes_total", "heliostat_proxy_connections"] {
            assert!(numbers.0.iter().any(|series| series.name == name), "{name}");
        }
        for (name, label, value) in [
            ("heliostat_closes_total", "code", "1001"),
            ("heliostat_proxy_connects_total", "result", "connected"),
            ("heliostat_proxy_bytes_total", "direction", "to_chat_server"),
            ("heliostat_proxy_bytes_total", "direction", "to_device"),
        ] {
            assert!(numbers.by(name, label).contains_key(value), "{name} by {label}");
        }
    }

    #[test]
    fn a_rate_is_a_difference_over_the_time_that_passed() {
        let at = |s, reflects| Totals {
            at: Duration::from_secs(s),
            reflects,
            reflect_bytes: 0.0,
            to_chat: 0.0,
            to_device: 0.0,
        };
        assert_eq!(at(12, 130.0).since(&at(10, 100.0)).reflects, 15.0);
        assert_eq!(at(12, 1.0).since(&at(10, 100.0)).reflects, 0.0, "a counter never goes back");
        let map = |count| BTreeMap::from([("connected".to_owned(), count)]);
        assert_eq!(since(Some(&map(3.0)), Some(&map(8.0))), map(5.0));
    }
}
