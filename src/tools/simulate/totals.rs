//! What is counted while a simulation runs, for whoever watches and for the report. The judgement is the ledgers'.
//!
//! Times are counted from when something was due, not from when it was done: a device that waits for a slow server sends its
//! next message late, and that is the server's latency, too. Without a schedule (no think time) a message is due when it is
//! said.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::{CreationError, Histogram};

use super::script::Event;

/// Troubles that a screen shows.
const TROUBLES_KEPT: usize = 50;
/// In microseconds: ten minutes.
const LONGEST: u64 = 600_000_000;

/// What all groups count together.
#[derive(Debug)]
pub(super) struct Totals {
    pub(super) sent: AtomicU64,
    pub(super) acked: AtomicU64,
    pub(super) delivered: AtomicU64,
    pub(super) reconnects: AtomicU64,
    online: AtomicU64,
    resting: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    latencies: BTreeMap<Which, Histogram<u64>>,
    events: BTreeMap<Event, u64>,
    troubles: VecDeque<String>,
}

/// A latency, by what it ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Which {
    Ack,
    /// At the last of the other devices, when all of them were connected.
    LastDelivery,
    /// From sending a commit to its acknowledgement.
    Commit,
    /// From wanting to connect to having everything that waited.
    Dry,
}

impl Which {
    pub(super) const ALL: [Self; 4] = [Self::Ack, Self::LastDelivery, Self::Commit, Self::Dry];

    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Ack => "reflect to ack",
            Self::LastDelivery => "reflect to last delivery",
            Self::Commit => "commit to ack",
            Self::Dry => "connect to dry",
        }
    }

    /// In the report.
    pub(super) const fn key(self) -> &'static str {
        match self {
            Self::Ack => "reflect_to_ack_us",
            Self::LastDelivery => "reflect_to_last_delivery_us",
            Self::Commit => "commit_to_ack_us",
            Self::Dry => "connect_to_dry_us",
        }
    }
}

/// The quantiles that are reported, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub(in crate::tools) struct Quantiles {
    pub(in crate::tools) count: u64,
    pub(in crate::tools) p50: u64,
    pub(in crate::tools) p90: u64,
    pub(in crate::tools) p99: u64,
    pub(in crate::tools) p999: u64,
    pub(in crate::tools) max: u64,
}

impl Quantiles {
    pub(in crate::tools) fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            count: histogram.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max(),
        }
    }
}

/// A histogram of microseconds.
///
/// # Errors
/// Never, with these bounds.
pub(in crate::tools) fn histogram() -> Result<Histogram<u64>, CreationError> {
    Histogram::new_with_bounds(1, LONGEST, 3)
}

/// Records a latency.
pub(in crate::tools) fn record(histogram: &mut Histogram<u64>, took: Duration) {
    histogram.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1));
}

impl Totals {
    pub(super) fn new() -> Result<Self, CreationError> {
        let latencies = Which::ALL.into_iter().map(|which| Ok((which, histogram()?))).collect::<Result<_, _>>()?;
        Ok(Self {
            sent: AtomicU64::new(0),
            acked: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            online: AtomicU64::new(0),
            resting: AtomicU64::new(0),
            inner: Mutex::new(Inner { latencies, events: BTreeMap::new(), troubles: VecDeque::new() }),
        })
    }

    /// Why a device was last without a connection: what a person wants to know when nothing moves.
    pub(super) fn note(&self, trouble: String) {
        let troubles = &mut self.inner().troubles;
        if troubles.len() >= TROUBLES_KEPT {
            troubles.pop_front();
        }
        troubles.push_back(trouble);
    }

    /// Something became of a device.
    pub(super) fn happened(&self, event: Event) {
        *self.inner().events.entry(event).or_default() += 1;
    }

    pub(super) fn record(&self, which: Which, took: Duration) {
        if let Some(histogram) = self.inner().latencies.get_mut(&which) {
            record(histogram, took);
        }
    }

    /// A device is connected as long as this is held.
    pub(super) fn online(&self) -> Held<'_> {
        Held::new(&self.online)
    }

    /// A device sleeps because that is the plan, as long as this is held.
    pub(super) fn rest(&self) -> Held<'_> {
        Held::new(&self.resting)
    }

    pub(super) fn devices_online(&self) -> u64 {
        self.online.load(Ordering::Relaxed)
    }

    pub(super) fn devices_resting(&self) -> u64 {
        self.resting.load(Ordering::Relaxed)
    }

    pub(super) fn quantiles(&self) -> Vec<(Which, Quantiles)> {
        self.inner().latencies.iter().map(|(which, histogram)| (*which, Quantiles::of(histogram))).collect()
    }

    pub(super) fn events(&self) -> BTreeMap<Event, u64> {
        self.inner().events.clone()
    }

    /// The last ones, the newest last.
    pub(super) fn troubles(&self, most: usize) -> Vec<String> {
        let inner = self.inner();
        inner.troubles.iter().skip(inner.troubles.len().saturating_sub(most)).cloned().collect()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts as long as it lives.
#[derive(Debug)]
pub(super) struct Held<'a>(&'a AtomicU64);

impl<'a> Held<'a> {
    fn new(counter: &'a AtomicU64) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
