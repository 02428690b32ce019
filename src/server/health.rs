//! Whether the process lives, whether it takes devices, and what is not as it should be.
//!
//! * `/livez` fails for what only a restart cures: the store's writer is gone, or a door's accept loop ended although nobody
//!   asked it to. A supervisor may kill what fails here, so nothing else counts: a full disk is not cured by a restart, and
//!   neither is a chat server that is down.
//! * `/readyz` fails while the mediator drains or stops, and when `/livez` does: a load balancer sends new devices elsewhere.
//!   What is *degraded* stands in its answer and fails nothing: with one node there is no elsewhere, and what works still works.
//! * `/metrics` is for Prometheus ([`crate::metrics`]).
//!
//! None of them says who is connected. The first two are open to everybody who reaches the door; numbers, and why something
//! is degraded, are for those who may use the rest of it, too (`guard.rs`).

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Extension, Json, Router, extract};
use futures_util::future::BoxFuture;
use serde::Serialize;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;

use super::guard::Trusted;
use super::load::Overload;
use super::routes::Public;
use crate::hub::Hub;
use crate::metrics::{self, Bounded as _};
use crate::net::tls::Identity;
use crate::store::{Condition, Store};
use crate::time::Clock;
use crate::upstream::{Dial, Io};

/// A certificate that expires this soon is degraded: ACME renews a month before, people need some days.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 86_400);
/// Chat servers that were not reached when last tried and are remembered for it. A template stands for 256 of them, and there may be others.
const UPSTREAMS_MAX: usize = 1_024;
/// After this long without an attempt nothing is known of a chat server: clients try again sooner, unless nobody wants to go there any more.
const UPSTREAM_KNOWN_FOR: Duration = Duration::from_secs(300);
/// Chat servers that are named one by one.
const UPSTREAMS_NAMED: usize = 5;

/// By how much a watched attempt is given up earlier than it would be: a tick of the timer.
const MOMENT: Duration = Duration::from_millis(1);

/// What is known about the state of a mediator. Clones are handles of the same.
#[derive(Debug, Clone)]
pub struct Health(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Clock,
    store: Arc<dyn Store>,
    durability: &'static str,
    stop: CancellationToken,
    draining: AtomicBool,
    certificate: OnceLock<Certificate>,
    overload: OnceLock<Overloaded>,
    doors: Mutex<Vec<(&'static str, AbortHandle)>>,
    /// By address.
    upstreams: Mutex<HashMap<String, Away>>,
}

/// A chat server that did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Away {
    /// The first time.
    since: Duration,
    /// The last time.
    tried: Duration,
}

impl Away {
    fn is_known(&self, now: Duration) -> bool {
        now.saturating_sub(self.tried) < UPSTREAM_KNOWN_FOR
    }
}

/// Knows the certificate that is presented.
struct Certificate(Box<dyn Fn() -> Option<Arc<Identity>> + Send + Sync>);

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Certificate").field(&(self.0)()).finish()
    }
}

/// Knows what there is too much of.
struct Overloaded(Box<dyn Fn() -> Option<Overload> + Send + Sync>);

impl std::fmt::Debug for Overloaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Overloaded").field(&(self.0)()).finish()
    }
}

/// Why only a restart helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Dead {
    /// Nothing can be kept any more.
    #[error("the store's writer is gone")]
    Store,
    /// Nobody can come in any more.
    #[error("the accept loop of the {0} door ended")]
    Door(&'static str),
}

/// Something that is not as it should be, while the rest works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Degraded {
    /// What: `store`, `certificate`, `overload`, `upstream`.
    pub what: &'static str,
    /// What is wrong with it, for people.
    pub why: String,
}

/// The answer of `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ready {
    /// Whether new devices are welcome.
    pub ready: bool,
    /// Whether those that are here are being sent away.
    pub draining: bool,
    /// What an acknowledgement survives.
    pub durability: &'static str,
    /// What is wrong, while the rest works.
    pub degraded: Vec<Degraded>,
    /// This program's.
    pub version: &'static str,
}

impl Health {
    /// Of a mediator over this store, which stops when `stop` is cancelled.
    #[must_use]
    pub fn new(clock: Clock, store: Arc<dyn Store>, durability: &'static str, stop: CancellationToken) -> Self {
        Self(Arc::new(Inner {
            clock,
            store,
            durability,
            stop,
            draining: AtomicBool::new(false),
            certificate: OnceLock::new(),
            overload: OnceLock::new(),
            doors: Mutex::default(),
            upstreams: Mutex::default(),
        }))
    }

    /// The task behind a door, which is not to end before the mediator stops.
    pub fn watch_door(&self, name: &'static str, accepting: &JoinHandle<()>) {
        self.0.doors.lock().unwrap_or_else(PoisonError::into_inner).push((name, accepting.abort_handle()));
    }

    /// Who knows the certificate that the public door presents now; `None` while there is none, which no device gets past. Not
    /// called for a door without TLS. The first one who says so stays.
    pub fn watch_certificate(&self, presented: impl Fn() -> Option<Arc<Identity>> + Send + Sync + 'static) {
        self.0.certificate.get_or_init(|| Certificate(Box::new(presented)));
    }

    /// Who knows what there is too much of now ([`super::load`]). The first one who says so stays.
    pub fn watch_overload(&self, overload: impl Fn() -> Option<Overload> + Send + Sync + 'static) {
        self.0.overload.get_or_init(|| Overloaded(Box::new(overload)));
    }

    fn overload(&self) -> Option<Overload> {
        self.0.overload.get().and_then(|overloaded| (overloaded.0)())
    }

    /// Whether devices are being sent away. Stopping is draining, and need not be said.
    pub fn set_draining(&self, draining: bool) {
        self.0.draining.store(draining, Ordering::Relaxed);
    }

    /// Whether devices are being sent away.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Relaxed) || self.0.stop.is_cancelled()
    }

    /// `dial`, watched: an address at which nobody answered is degraded until somebody does.
    #[must_use]
    pub fn watch_upstreams(&self, dial: Arc<dyn Dial>) -> Arc<dyn Dial> {
        Arc::new(Watched { dial, health: self.clone() })
    }

    /// Chat servers are elsewhere now: what is known of the old ones does not matter any more.
    pub fn forget_upstreams(&self) {
        self.0.upstreams.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Whether the process is worth keeping.
    ///
    /// # Errors
    /// [`Dead`] says why not.
    pub fn alive(&self) -> Result<(), Dead> {
        if self.0.stop.is_cancelled() {
            // Doors and store end one after the other, and the process with them.
            return Ok(());
        }
        if !self.0.store.condition().alive {
            return Err(Dead::Store);
        }
        let doors = self.0.doors.lock().unwrap_or_else(PoisonError::into_inner);
        match doors.iter().find(|(_, accepting)| accepting.is_finished()) {
            // Asked again, since it may have been told to stop just now.
            Some((name, _)) if !self.0.stop.is_cancelled() => Err(Dead::Door(name)),
            _ => Ok(()),
        }
    }

    /// What is wrong, while the rest works.
    #[must_use]
    pub fn degraded(&self) -> Vec<Degraded> {
        let mut out = Vec::new();
        let Condition { alive, failing } = self.0.store.condition();
        if !alive || failing {
            let why = if alive { "the last write failed" } else { "its writer is gone" };
            out.push(Degraded { what: "store", why: why.to_owned() });
        }
        if !self.0.store.is_leased() {
            let why = "the database has not been heard of for too long: groups are other nodes' until it is";
            out.push(Degraded { what: "lease", why: why.to_owned() });
        }
        let now = self.0.clock.now();
        let certificate = self.0.certificate.get().map(|certificate| (certificate.0)());
        out.extend(certificate.and_then(|presented| {
            let why = wrong_with(presented.as_deref(), now.wall_ms)?;
            Some(Degraded { what: "certificate", why })
        }));
        if let Some(overload) = self.overload() {
            let too_much = match overload {
                Overload::Writer => "commits take too long",
                Overload::Memory => "too much memory is in use",
                Overload::Connections => "too many connections are open",
            };
            out.push(Degraded { what: "overload", why: format!("{too_much}: new groups have to wait") });
        }
        let upstreams = self.0.upstreams.lock().unwrap_or_else(PoisonError::into_inner);
        let mut away: Vec<_> = upstreams.iter().filter(|(_, away)| away.is_known(now.monotonic)).collect();
        away.sort_unstable();
        let others = away.len().saturating_sub(UPSTREAMS_NAMED);
        let why = away.into_iter().take(UPSTREAMS_NAMED).map(|(address, Away { since, .. })| {
            let for_s = now.monotonic.saturating_sub(*since).as_secs();
            format!("{address} has not been reached for {for_s} s")
        });
        let why = why.chain((others > 0).then(|| format!("{others} others have not been reached")));
        out.extend(why.map(|why| Degraded { what: "upstream", why }));
        out
    }

    /// What `/readyz` says.
    #[must_use]
    pub fn ready(&self) -> Ready {
        let draining = self.is_draining();
        Ready {
            ready: !draining && self.alive().is_ok() && self.0.store.is_leased(),
            draining,
            durability: self.0.durability,
            degraded: self.degraded(),
            version: env!("CARGO_PKG_VERSION"),
        }
    }

    /// The text of `/metrics`.
    #[must_use]
    pub fn metrics(&self) -> String {
        let one_if = |is: bool| f64::from(u8::from(is));
        metrics::get().draining.set(one_if(self.is_draining()));
        let missing = self.0.certificate.get().is_some_and(|certificate| (certificate.0)().is_none());
        metrics::get().certificate_missing.set(one_if(missing));
        let overload = self.overload().map(metrics::Overload::from);
        for what in metrics::Overload::all() {
            metrics::get().overload.of(what).set(one_if(overload == Some(what)));
        }
        self.0.store.measure();
        metrics::render()
    }

    fn dialled(&self, address: &str, reached: bool) {
        let now = self.0.clock.now().monotonic;
        let mut upstreams = self.0.upstreams.lock().unwrap_or_else(PoisonError::into_inner);
        if reached {
            upstreams.remove(address);
            return;
        }
        if let Some(away) = upstreams.get_mut(address).filter(|away| away.is_known(now)) {
            away.tried = now;
            return;
        }
        if upstreams.len() >= UPSTREAMS_MAX {
            upstreams.retain(|_, away| away.is_known(now));
        }
        if upstreams.len() < UPSTREAMS_MAX {
            upstreams.insert(address.to_owned(), Away { since: now, tried: now });
        }
    }
}

impl From<Overload> for metrics::Overload {
    fn from(overload: Overload) -> Self {
        match overload {
            Overload::Writer => Self::Writer,
            Overload::Memory => Self::Memory,
            Overload::Connections => Self::Connections,
        }
    }
}

/// Why clients refuse what is presented, or soon will.
fn wrong_with(presented: Option<&Identity>, now_ms: u64) -> Option<String> {
    let Some(identity) = presented else { return Some("none yet: every TLS handshake fails".to_owned()) };
    let left = Duration::from_secs(identity.not_after_s).saturating_sub(Duration::from_millis(now_ms));
    if left.is_zero() {
        Some("it has expired".to_owned())
    } else if let Some(not_yet) = identity.out_of_date(now_ms) {
        Some(format!("it is {not_yet}"))
    } else {
        (left < EXPIRES_SOON).then(|| format!("it expires in {} days", left.as_secs() / 86_400))
    }
}

/// Tells what became of each attempt.
#[derive(Debug)]
struct Watched {
    dial: Arc<dyn Dial>,
    health: Health,
}

impl Dial for Watched {
    fn dial<'a>(&'a self, address: &'a str, within: Duration) -> BoxFuture<'a, io::Result<Box<dyn Io>>> {
        Box::pin(async move {
            // Whoever gives up drops this: the caller when the time is over, a device that leaves at any time. A moment
            // earlier, only the first can be meant.
            let within = within.saturating_sub(MOMENT);
            let dialled = tokio::time::timeout(within, self.dial.dial(address, within)).await;
            let dialled = dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            self.health.dialled(address, dialled.is_ok());
            dialled
        })
    }
}

#[derive(Debug, Clone)]
struct State {
    health: Health,
    hub: Hub,
    public: Arc<Public>,
}

/// The pages of this file.
pub(super) fn router(health: Health, hub: Hub, public: Arc<Public>) -> Router {
    let state = State { health, hub, public };
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .with_state(state)
}

async fn livez(extract::State(state): extract::State<State>) -> Response {
    match state.health.alive() {
        Ok(()) => "alive\n".into_response(),
        Err(dead) => (StatusCode::SERVICE_UNAVAILABLE, format!("{dead}\n")).into_response(),
    }
}

/// What is known of the mediator beside its health.
#[derive(Debug, Serialize)]
struct ReadyAndCounts {
    #[serde(flatten)]
    ready: Ready,
    connections: usize,
    groups_awake: usize,
}

/// What everybody may know who asks whether to send devices here.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct ReadyForAnybody {
    ready: bool,
    draining: bool,
    durability: &'static str,
    degraded: Vec<Kind>,
}

/// A [`Degraded`] without its reason, which may name what is inside.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Kind {
    what: &'static str,
}

impl From<Ready> for ReadyForAnybody {
    fn from(Ready { ready, draining, durability, degraded, version: _ }: Ready) -> Self {
        let mut degraded: Vec<_> = degraded.into_iter().map(|Degraded { what, .. }| Kind { what }).collect();
        degraded.dedup();
        Self { ready, draining, durability, degraded }
    }
}

async fn readyz(extract::State(state): extract::State<State>, Extension(trusted): Extension<Trusted>) -> Response {
    let ready = state.health.ready();
    let status = if ready.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if !trusted.0 {
        return (status, Json(ReadyForAnybody::from(ready))).into_response();
    }
    let (connections, groups_awake) = (state.public.connections(), state.hub.awake());
    (status, Json(ReadyAndCounts { ready, connections, groups_awake })).into_response()
}

async fn scrape(extract::State(state): extract::State<State>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], state.health.metrics()).into_response()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::group::record::{Page, Seq, Snapshot, Write};
    use crate::store::memory::MemoryStore;
    use crate::store::{Census, StoreError};
    use crate::wire::d2m::DeviceGroupId;

    /// A store in a condition.
    #[derive(Debug)]
    struct In(Condition);

    impl Store for In {
        fn load(&self, _: DeviceGroupId) -> BoxFuture<'_, Result<Option<Snapshot>, StoreError>> {
            unimplemented!("nobody asks")
        }

        fn commit(&self, _: DeviceGroupId, _: Vec<Write>) -> BoxFuture<'_, Result<(), StoreError>> {
            unimplemented!("nobody asks")
        }

        fn page(&self, _: DeviceGroupId, _: Seq, _: Seq, _: usize) -> BoxFuture<'_, Result<Page, StoreError>> {
            unimplemented!("nobody asks")
        }

        fn due(&self, _: u64, _: Option<u64>, _: usize) -> BoxFuture<'_, Result<Vec<DeviceGroupId>, StoreError>> {
            unimplemented!("nobody asks")
        }

        fn census(&self, _: Option<DeviceGroupId>, _: usize) -> BoxFuture<'_, Result<Census, StoreError>> {
            unimplemented!("nobody asks")
        }

        fn condition(&self) -> Condition {
            self.0
        }
    }

    fn health_of(store: Arc<dyn Store>) -> (Health, CancellationToken) {
        let stop = CancellationToken::new();
        (Health::new(Clock::following(1_000_000_000_000), store, "fsync", stop.clone()), stop)
    }

    fn healthy() -> (Health, CancellationToken) {
        health_of(Arc::new(MemoryStore::new()))
    }

    #[tokio::test]
    async fn a_failing_store_is_degraded_and_a_dead_one_is_the_end() {
        let (health, _) = health_of(Arc::new(In(Condition { alive: true, failing: true })));
        assert_eq!(health.alive(), Ok(()));
        assert!(health.ready().ready, "there is no elsewhere");
        assert_eq!(health.degraded(), [Degraded { what: "store", why: "the last write failed".to_owned() }]);
        let (health, stop) = health_of(Arc::new(In(Condition { alive: false, failing: false })));
        assert_eq!(health.alive(), Err(Dead::Store));
        assert!(!health.ready().ready && !health.ready().draining);
        stop.cancel();
        assert_eq!(health.alive(), Ok(()), "while it stops, that is as it should be");
    }

    #[tokio::test]
    async fn a_door_that_nobody_keeps_open_any_more_is_the_end_unless_the_mediator_stops() {
        let (health, stop) = healthy();
        let open = tokio::spawn(std::future::pending());
        health.watch_door("admin", &open);
        assert_eq!(health.alive(), Ok(()));
        let mut ends = tokio::spawn(async {});
        health.watch_door("public", &ends);
        (&mut ends).await.unwrap();
        assert_eq!(health.alive(), Err(Dead::Door("public")));
        stop.cancel();
        assert_eq!(health.alive(), Ok(()));
        open.abort();
    }

    #[tokio::test]
    async fn draining_and_stopping_send_devices_elsewhere() {
        let (health, stop) = healthy();
        assert!(health.ready().ready);
        health.set_draining(true);
        assert!(!health.ready().ready && health.ready().draining);
        health.set_draining(false);
        assert!(health.ready().ready);
        stop.cancel();
        assert!(!health.ready().ready && health.ready().draining);
        assert_eq!(health.alive(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_certificate_is_degraded_while_there_is_none_or_none_yet_and_for_its_last_two_weeks() {
        const NOW_S: u64 = 1_000_000_000;
        let (health, _) = healthy();
        assert_eq!(health.degraded(), [], "without TLS");
        let valid_s = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        let known = Arc::clone(&valid_s);
        health.watch_certificate(move || {
            let [not_before_s, not_after_s] = [0, 1].map(|at: usize| known[at].load(Ordering::Relaxed));
            let identity = Identity { pin: String::new(), names: Vec::new(), not_before_s, not_after_s };
            (not_after_s > 0).then(|| Arc::new(identity))
        });
        assert_eq!(health.degraded()[0].why, "none yet: every TLS handshake fails");
        assert!(health.ready().ready, "an authority that looks at the door comes in by the load balancer");
        let [not_before_s, valid_s] = &*valid_s;
        not_before_s.store(NOW_S + 1, Ordering::Relaxed);
        valid_s.store(NOW_S + 15 * 86_400, Ordering::Relaxed);
        assert_eq!(health.degraded()[0].why, "it is not valid before 2001-09-09T01:46:41Z");
        not_before_s.store(NOW_S, Ordering::Relaxed);
        assert_eq!(health.degraded(), []);
        tokio::time::advance(Duration::from_secs(36 * 3_600)).await;
        assert_eq!(health.degraded()[0].why, "it expires in 13 days");
        tokio::time::advance(Duration::from_secs(14 * 86_400)).await;
        assert_eq!(health.degraded()[0].why, "it has expired");
        valid_s.store(NOW_S + 90 * 86_400, Ordering::Relaxed);
        assert_eq!(health.degraded(), []);
    }

    /// Answers at one address only, and at another never.
    #[derive(Debug)]
    struct There;

    impl Dial for There {
        fn dial<'a>(&'a self, address: &'a str, _: Duration) -> BoxFuture<'a, io::Result<Box<dyn Io>>> {
            Box::pin(async move {
                match address {
                    "there:1" => Ok(Box::new(tokio::io::duplex(1).0) as Box<dyn Io>),
                    "hole:1" => std::future::pending().await,
                    _ => Err(io::ErrorKind::ConnectionRefused.into()),
                }
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_chat_server_is_degraded_until_somebody_reaches_it() {
        let (health, _) = healthy();
        let dial = health.watch_upstreams(Arc::new(There));
        let second = Duration::from_secs(1);
        for (address, reached) in [("there:1", true), ("hole:1", false), ("refuses:1", false)] {
            assert_eq!(dial.dial(address, second).await.is_ok(), reached, "{address}");
        }
        tokio::time::advance(3 * second).await;
        let why: Vec<String> = health.degraded().into_iter().map(|it| it.why).collect();
        assert_eq!(why, ["hole:1 has not been reached for 3 s", "refuses:1 has not been reached for 3 s"]);
        health.dialled("refuses:1", true);
        assert_eq!(health.degraded().len(), 1);
        // A device that leaves while it is being connected says nothing about the chat server.
        assert!(futures_util::FutureExt::now_or_never(dial.dial("hole:1", second)).is_none());
        health.dialled("hole:1", true);
        assert!(futures_util::FutureExt::now_or_never(dial.dial("hole:1", second)).is_none());
        assert_eq!(health.degraded(), []);
    }

    #[tokio::test]
    async fn too_much_to_do_is_degraded_and_strangers_learn_kinds_only() {
        let (health, _) = healthy();
        let overload = Arc::new(Mutex::new(None));
        let known = Arc::clone(&overload);
        health.watch_overload(move || *known.lock().unwrap());
        assert_eq!(health.degraded(), []);
        let gauges = || {
            let text = health.metrics();
            text.lines().filter(|line| line.starts_with("heliostat_overload{") && line.ends_with(" 1")).count()
        };
        assert_eq!(gauges(), 0);
        *overload.lock().unwrap() = Some(Overload::Memory);
        assert_eq!(health.degraded()[0].why, "too much memory is in use: new groups have to wait");
        assert_eq!(gauges(), 1);
        health.dialled("10.1.2.3:5222", false);
        health.dialled("10.1.2.4:5222", false);
        let said = serde_json::to_value(ReadyForAnybody::from(health.ready())).unwrap();
        let expected = serde_json::json!({
            "ready": true, "draining": false, "durability": "fsync", "degraded": [{ "what": "overload" }, { "what": "upstream" }],
        });
        assert_eq!(said, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_chat_server_that_nobody_asks_for_any_more_is_forgotten() {
        let (health, _) = healthy();
        let why = || health.degraded().into_iter().map(|it| it.why).collect::<Vec<_>>();
        health.dialled("gone:1", false);
        tokio::time::advance(Duration::from_secs(299)).await;
        assert_eq!(why(), ["gone:1 has not been reached for 299 s"]);
        health.dialled("gone:1", false);
        tokio::time::advance(Duration::from_secs(299)).await;
        assert_eq!(why(), ["gone:1 has not been reached for 598 s"], "it was tried again");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(why().is_empty(), "nobody has tried for five minutes");
        health.dialled("gone:1", false);
        assert_eq!(why(), ["gone:1 has not been reached for 0 s"]);
        health.forget_upstreams();
        assert!(why().is_empty());
        for n in 0..=UPSTREAMS_MAX {
            health.dialled(&format!("{n:04}:1"), false);
        }
        assert_eq!(why()[4..], ["0004:1 has not been reached for 0 s", "1019 others have not been reached"]);
        tokio::time::advance(UPSTREAM_KNOWN_FOR).await;
        health.dialled("new:1", false);
        assert_eq!(why(), ["new:1 has not been reached for 0 s"], "those that are forgotten take no room");
    }
}
