//! Devices that reflect: as fast as they are acknowledged, or by a schedule.
//!
//! By a schedule, a latency counts from when the message was due. As fast as they are acknowledged, it counts from when the
//! message was said: a closed loop has no other time, and says what a message costs when there is as much to do as there can be.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use miette::{IntoDiagnostic as _, Report, Result, miette};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::server::Usage;
use super::{CONNECTING, server_group};
use crate::client::{Device, DeviceConfig, Ended, GroupKey, Mediator};
use crate::crypto::random;
use crate::time::Clock;
use crate::tools::simulate::totals::{histogram, record};
use crate::wire::d2m::{CloseCode, DeviceId, FromDevice, ReflectFlags, ReflectId, SlotState, ToDevice};

/// How long devices may take to leave.
const LEAVE_PATIENCE: Duration = Duration::from_secs(30);

/// What the devices of a load do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// In each group.
    pub(super) devices: usize,
    /// Bytes of an envelope.
    pub(super) size: usize,
    /// Messages a device has under way before it waits.
    pub(super) window: usize,
    /// Messages per second of all devices together; as many as can be when not set.
    pub(super) rate: Option<u32>,
}

/// Devices that reflect until they are stopped.
#[derive(Debug)]
pub(super) struct Load {
    clock: Clock,
    counted: Arc<Counted>,
    stop: CancellationToken,
    devices: JoinSet<Result<(), Ended>>,
}

#[derive(Debug)]
struct Counted {
    acked: AtomicU64,
    delivered: AtomicU64,
    latencies: Mutex<Histogram<u64>>,
}

/// What was counted in one round.
#[derive(Debug)]
pub(super) struct Round {
    elapsed: Duration,
    acked: u64,
    delivered: u64,
    latencies: Histogram<u64>,
    server: Option<Duration>,
}

#[expect(clippy::cast_precision_loss, reason = "quotients to be read by people")]
impl Round {
    pub(super) fn per_second(&self) -> f64 {
        self.acked as f64 / self.elapsed.as_secs_f64()
    }

    pub(super) fn delivered_per_second(&self) -> f64 {
        self.delivered as f64 / self.elapsed.as_secs_f64()
    }

    pub(super) fn latency_ms(&self, quantile: f64) -> f64 {
        self.latencies.value_at_quantile(quantile) as f64 / 1_000.0
    }

    /// The server's time on processors for each reflect, its deliveries and their acknowledgements included.
    pub(super) fn server_us_per_reflect(&self) -> Option<f64> {
        self.server.filter(|_| self.acked > 0).map(|cpu| cpu.as_secs_f64() * 1e6 / self.acked as f64)
    }
}

impl Load {
    /// Connects the devices of each group, and lets them begin when all are there.
    pub(super) async fn start(
        mediator: &Mediator,
        clock: Clock,
        shape: Shape,
        keys: &[GroupKey],
        slots: SlotState,
    ) -> Result<Self> {
        let few = Arc::new(tokio::sync::Semaphore::new(CONNECTING));
        let mut connecting = JoinSet::new();
        for key in keys {
            for device in 0..shape.devices {
                let mut config = DeviceConfig::new(key.clone(), server_group()?, device_id(device));
                config.expected_slot_state = slots;
                let (mediator, few) = (mediator.clone(), Arc::clone(&few));
                connecting.spawn(async move {
                    let _one_of_few = few.acquire().await;
                    (config.device_id, Device::connect(&mediator, &config).await)
                });
            }
        }
        let mut connected = Vec::new();
        while let Some(device) = connecting.join_next().await {
            let (id, device) = device.into_diagnostic()?;
            connected.push((id, device.into_diagnostic()?));
        }
        let counted = Arc::new(Counted {
            acked: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            latencies: Mutex::new(histogram().into_diagnostic()?),
        });
        let stop = CancellationToken::new();
        let count = u32::try_from(connected.len()).unwrap_or(u32::MAX);
        let interval = shape.rate.map(|rate| Duration::from_secs(1).saturating_mul(count) / rate.max(1));
        let begins = clock.now().monotonic;
        let mut devices = JoinSet::new();
        for (number, (id, device)) in (0_u32..).zip(connected) {
            // Spread over the interval, not all at once.
            let schedule = interval.map(|interval| (begins + interval / count.max(1) * number, interval));
            let (counted, stop) = (Arc::clone(&counted), stop.clone());
            // Nothing stays behind on a server that is somebody's.
            let drops = (slots == SlotState::New).then_some(id);
            let reflector = Reflector { clock, shape, schedule, counted, stop, drops };
            devices.spawn(reflector.run(device));
        }
        Ok(Self { clock, counted, stop, devices })
    }

    /// Counts for so long.
    ///
    /// # Errors
    /// When a device's connection ended: fewer devices than are reported are no measurement.
    pub(super) async fn run_for(&mut self, time: Duration, usage: Option<&Usage>) -> Result<Round> {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let before = usage.map(Usage::cpu).transpose()?;
        let began = self.clock.now().monotonic;
        let (acked, delivered) = (read(&self.counted.acked), read(&self.counted.delivered));
        self.counted.latencies.lock().unwrap_or_else(PoisonError::into_inner).reset();
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            // None of them ends by itself.
            Some(ended) = self.devices.join_next() => {
                let why = ended.into_diagnostic()?.err().map_or_else(|| "it left".to_owned(), |ended| ended.to_string());
                return Err(miette!("a device of the load is gone: {why}"));
            }
        }
        let (acked, delivered) = (read(&self.counted.acked) - acked, read(&self.counted.delivered) - delivered);
        let latencies = self.counted.latencies.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let elapsed = self.clock.now().monotonic.saturating_sub(began);
        let server = before.zip(usage).map(|(before, usage)| Ok::<_, Report>(usage.cpu()?.saturating_sub(before)));
        if acked == 0 && time >= Duration::from_secs(1) {
            return Err(miette!("nothing was acknowledged for {}", humantime::format_duration(time)));
        }
        Ok(Round { elapsed, acked, delivered, latencies, server: server.transpose()? })
    }

    /// Lets all devices go.
    ///
    /// # Errors
    /// When one of them could not leave as it should, or not in time.
    pub(super) async fn stop(mut self) -> Result<()> {
        self.stop.cancel();
        let gone = async {
            while let Some(device) = self.devices.join_next().await {
                let left = device.into_diagnostic()?;
                left.map_err(|ended| miette!("a device of the load could not leave: {ended}"))?;
            }
            Ok(())
        };
        let gone = tokio::time::timeout(LEAVE_PATIENCE, gone).await;
        gone.map_err(|_| miette!("the devices of the load cannot leave: the server does not answer"))?
    }
}

/// Which device of its group, counted from zero.
pub(super) const fn device_id(device: usize) -> DeviceId {
    DeviceId(device as u64 + 1)
}

/// One device.
struct Reflector {
    clock: Clock,
    shape: Shape,
    /// When the next message is due, and how long after each the next one is.
    schedule: Option<(Duration, Duration)>,
    counted: Arc<Counted>,
    stop: CancellationToken,
    /// Itself, when it gives back its slot in the end.
    drops: Option<DeviceId>,
}

impl Reflector {
    async fn run(mut self, device: Device) -> Result<(), Ended> {
        let (sender, mut receiver) = device.split();
        // Opaque to the server, and nothing that a disk could make smaller.
        let envelope: Vec<u8> = std::iter::repeat_with(random::bytes::<64>).flatten().take(self.shape.size).collect();
        let mut under_way: VecDeque<Duration> = VecDeque::new();
        let mut number = 0_u32;
        loop {
            let now = self.clock.now().monotonic;
            while let Some(due) = self.due(now).filter(|_| under_way.len() < self.shape.window) {
                sender.reflect_as(ReflectId(number), &envelope, ReflectFlags::default()).await?;
                number = number.wrapping_add(1);
                under_way.push_back(due);
                if let Some((next, interval)) = &mut self.schedule {
                    *next += *interval;
                }
            }
            let next = self.schedule.map(|(next, _)| next).filter(|_| under_way.len() < self.shape.window);
            tokio::select! {
                payload = receiver.next() => match payload? {
                    ToDevice::ReflectAck(_) => {
                        let took = self.clock.now().monotonic.saturating_sub(under_way.pop_front().unwrap_or(now));
                        self.counted.acked.fetch_add(1, Ordering::Relaxed);
                        record(&mut self.counted.latencies.lock().unwrap_or_else(PoisonError::into_inner), took);
                    }
                    ToDevice::Reflected(message) => {
                        self.counted.delivered.fetch_add(1, Ordering::Relaxed);
                        sender.ack(message.id()).await?;
                    }
                    _ => {}
                },
                () = self.clock.sleep_until(next) => {}
                () = self.stop.cancelled() => break,
            }
        }
        match self.drops {
            Some(own) => sender.send(&FromDevice::DropDevice(own)).await?,
            None => sender.close(CloseCode::Normal.code(), "").await?,
        }
        while receiver.next().await.is_ok() {}
        Ok(())
    }

    /// From when the next message's time counts, if it may be said.
    fn due(&self, now: Duration) -> Option<Duration> {
        match self.schedule {
            Some((next, _)) => (next <= now).then_some(next),
            None => Some(now),
        }
    }
}
