//! Group commit: what waits is kept together, with one sync, and then answered.
//!
//! The thread never waits for a batch to fill. A sync takes as long as it takes; whoever asks meanwhile is in the next
//! batch. Alone, a commit costs one sync; among a thousand it costs a share of one.
//!
//! A batch stands or falls as a whole with the engine, but its jobs are strangers to each other. When it fails, each job is tried
//! again in a transaction of its own, so that one that cannot be kept fails alone; if it is the engine that fails, it will tell every one of
//! them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tokio::sync::{mpsc, oneshot};

use super::tenure::{Epoch, NodeId};
use super::{Condition, StoreError};
use crate::group::record::Write;
use crate::log::SPANS;
use crate::metrics;
use crate::time::Clock;
use crate::wire::d2m::{DeviceGroupId, ENVELOPE_MAX};

/// Jobs that may wait before whoever asks has to wait for a place: about one per awake group on a busy server.
const JOBS_QUEUED_MAX: usize = 1_024;
/// Jobs in one transaction.
const BATCH_JOBS_MAX: usize = 512;
/// Bytes in one transaction: bounds how long the last one in it waits, and how far the write-ahead log outgrows its bound.
const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;
/// What a write takes beside its opaque bytes.
const WRITE_OVERHEAD: usize = 128;

const _: () = assert!(BATCH_JOBS_MAX <= JOBS_QUEUED_MAX, "a full queue fills a batch");
const _: () = assert!(ENVELOPE_MAX * 64 <= BATCH_BYTES_MAX, "64 groups share a sync even with the longest messages");

/// One group's writes: atomic.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) group: DeviceGroupId,
    pub(super) writes: Vec<Write>,
    /// What has to be true of the group still; `None` where no other node can take it.
    pub(super) under: Option<Under>,
}

/// The tenure that a job was asked under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Under {
    pub(super) node: NodeId,
    pub(super) epoch: Epoch,
}

impl Job {
    fn bytes(&self) -> usize {
        let opaque = |write: &Write| match write {
            Write::Group(record) => record.encrypted_shared_device_data.len(),
            Write::Slot(record) => {
                record.encrypted_device_info.len() + 16 * (record.acked.ranges() + record.acked_unseen.ranges())
            }
            Write::Append(entry) => entry.message.envelope().len(),
            Write::RemoveSlot(_) | Write::Trim { .. } | Write::Forget => 0,
        };
        self.writes.iter().map(|write| WRITE_OVERHEAD + opaque(write)).sum()
    }
}

/// What keeps the jobs. Lives on the writer's thread.
pub(super) trait Engine: Send + 'static {
    /// Keeps all of `jobs` in one transaction, or nothing.
    fn commit(&mut self, jobs: &[Job]) -> Result<(), StoreError>;

    /// Whether the jobs of a batch that has just failed may be tried one by one: not when there is nobody to ask, nor when the
    /// batch may have been kept after all.
    fn may_ask_again(&self) -> bool {
        true
    }

    /// Whether it could keep something now. Asked for probes, behind the jobs they waited with.
    fn probe(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Comes after every batch, when its answers are out.
    fn between_batches(&mut self) {}

    /// Comes when nothing waits: a short piece of tidying. Says whether there is more of it.
    fn idle(&mut self) -> bool {
        false
    }

    /// The end, in order.
    fn close(self) -> Result<(), StoreError>;
}

type Answer = oneshot::Sender<Result<(), StoreError>>;

#[derive(Debug)]
enum Ask {
    Commit(Job, Answer),
    Probe(Answer),
    Close(Answer),
}

/// The way to the thread that writes.
#[derive(Debug)]
pub(super) struct Writer {
    queue: mpsc::Sender<Ask>,
    failing: Arc<AtomicBool>,
}

impl Writer {
    /// Starts the thread. It ends when it is closed or the last handle is dropped, after whatever was asked before.
    pub(super) fn spawn(engine: impl Engine) -> std::io::Result<Self> {
        let (queue, asked) = mpsc::channel(JOBS_QUEUED_MAX);
        let failing = Arc::new(AtomicBool::new(false));
        thread::Builder::new().name("store-writer".to_owned()).spawn({
            let failing = Arc::clone(&failing);
            move || run(engine, asked, &failing)
        })?;
        Ok(Self { queue, failing })
    }

    /// Keeps a job, and returns when it is kept.
    pub(super) async fn commit(&self, job: Job) -> Result<(), StoreError> {
        self.ask(|answer| Ask::Commit(job, answer)).await
    }

    /// Waits in line like a job, and is answered behind those it waited with.
    pub(super) async fn probe(&self) -> Result<(), StoreError> {
        self.ask(Ask::Probe).await
    }

    /// Keeps what was asked before, then ends the thread.
    pub(super) async fn close(&self) -> Result<(), StoreError> {
        self.ask(Ask::Close).await
    }

    /// Whether the thread can still be asked, and whether its last transaction failed.
    pub(super) fn condition(&self) -> Condition {
        Condition { alive: !self.queue.is_closed(), failing: self.failing.load(Ordering::Relaxed) }
    }

    /// A thread that panicked drops both the queue and the answers it owes: either way the store is closed.
    async fn ask(&self, ask: impl FnOnce(Answer) -> Ask) -> Result<(), StoreError> {
        let (answer, answered) = oneshot::channel();
        self.queue.send(ask(answer)).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }
}

fn run(mut engine: impl Engine, mut asked: mpsc::Receiver<Ask>, failing: &AtomicBool) {
    let clock = Clock::system();
    let (mut closers, mut probes): (Vec<Answer>, Vec<Answer>) = (Vec::new(), Vec::new());
    let (mut jobs, mut answers) = (Vec::new(), Vec::new());
    while let Some(first) = next(&mut engine, &mut asked) {
        let mut bytes = 0;
        let mut ask = Some(first);
        while let Some(current) = ask {
            match current {
                Ask::Commit(job, answer) => {
                    bytes += job.bytes();
                    jobs.push(job);
                    answers.push(answer);
                }
                Ask::Probe(answer) => probes.push(answer),
                Ask::Close(answer) => {
                    asked.close();
                    closers.push(answer);
                }
            }
            ask = (jobs.len() < BATCH_JOBS_MAX && bytes < BATCH_BYTES_MAX).then(|| asked.try_recv().ok()).flatten();
        }
        keep(&mut engine, &jobs, answers.drain(..), clock, failing);
        jobs.clear();
        if !probes.is_empty() {
            let probed = engine.probe();
            for answer in probes.drain(..) {
                answer.send(probed.clone()).unwrap_or(());
            }
        }
        engine.between_batches();
    }
    let closed = engine.close();
    for answer in closers {
        answer.send(closed.clone()).unwrap_or(());
    }
}

/// Waits for the next one, and tidies meanwhile.
fn next(engine: &mut impl Engine, asked: &mut mpsc::Receiver<Ask>) -> Option<Ask> {
    loop {
        match asked.try_recv() {
            Ok(ask) => return Some(ask),
            Err(mpsc::error::TryRecvError::Disconnected) => return None,
            Err(mpsc::error::TryRecvError::Empty) if engine.idle() => {}
            Err(mpsc::error::TryRecvError::Empty) => return asked.blocking_recv(),
        }
    }
}

fn keep(
    engine: &mut impl Engine,
    jobs: &[Job],
    answers: impl Iterator<Item = Answer>,
    clock: Clock,
    failing: &AtomicBool,
) {
    if jobs.is_empty() {
        return;
    }
    let together = commit(engine, jobs, clock, failing);
    for (job, answer) in jobs.iter().zip(answers) {
        let kept = match &together {
            Err(_) if jobs.len() > 1 && engine.may_ask_again() => {
                commit(engine, std::slice::from_ref(job), clock, failing)
            }
            kept => kept.clone(),
        };
        // Whoever does not wait any more learns from the next load.
        answer.send(kept).unwrap_or(());
    }
}

/// One transaction, measured.
fn commit(engine: &mut impl Engine, jobs: &[Job], clock: Clock, failing: &AtomicBool) -> Result<(), StoreError> {
    let metrics = metrics::get();
    let _traced = tracing::debug_span!(target: SPANS, "commit batch", commits = jobs.len()).entered();
    let began = clock.now().monotonic;
    let kept = engine.commit(jobs);
    metrics.sync_seconds.record(clock.now().monotonic.saturating_sub(began).as_secs_f64());
    match &kept {
        Ok(()) => {
            metrics.store_transactions.increment(1);
            metrics.store_commits.increment(jobs.len() as u64);
            metrics.batch.record(u32::try_from(jobs.len()).unwrap_or(u32::MAX));
        }
        Err(_) => metrics.store_failures.increment(1),
    }
    // A group's own mistake is not the disk's failure, nor is another node's success.
    let is_failing =
        !matches!(kept, Ok(()) | Err(StoreError::Refused(_) | StoreError::Exhausted(_) | StoreError::Lost));
    if failing.swap(is_failing, Ordering::Relaxed) != is_failing {
        metrics.store_failing.set(f64::from(u8::from(is_failing)));
    }
    kept
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::FutureExt as _;
    use futures_util::future::join_all;

    use super::*;
    use crate::group::record::Seq;

    /// Writes down the batches it is given; the first waits until the test lets go of the gate.
    struct Fake {
        gate: Arc<Mutex<()>>,
        batches: Arc<Mutex<Vec<usize>>>,
        fails: fn(&[Job]) -> bool,
    }

    impl Engine for Fake {
        fn commit(&mut self, jobs: &[Job]) -> Result<(), StoreError> {
            drop(self.gate.lock().unwrap());
            self.batches.lock().unwrap().push(jobs.len());
            if (self.fails)(jobs) { Err(StoreError::Failed("no".to_owned())) } else { Ok(()) }
        }

        fn close(self) -> Result<(), StoreError> {
            self.batches.lock().unwrap().push(0);
            Ok(())
        }
    }

    fn job(n: u8, writes: Vec<Write>) -> Job {
        Job { group: DeviceGroupId::new([n; 32]), writes, under: None }
    }

    fn is_bad(job: &Job) -> bool {
        job.writes == [Write::Forget]
    }

    struct World {
        writer: Writer,
        gate: Arc<Mutex<()>>,
        batches: Arc<Mutex<Vec<usize>>>,
    }

    fn world(fails: fn(&[Job]) -> bool) -> World {
        let (gate, batches) = (Arc::default(), Arc::default());
        let fake = Fake { gate: Arc::clone(&gate), batches: Arc::clone(&batches), fails };
        World { writer: Writer::spawn(fake).unwrap(), gate, batches }
    }

    /// Asks for all of them while the engine is held, so that they gather.
    async fn gathered(world: &World, jobs: Vec<Job>) -> Vec<Result<(), StoreError>> {
        let ask = |job| Box::pin(tokio::task::unconstrained(world.writer.commit(job)));
        let mut asks: Vec<_> = jobs.into_iter().map(ask).collect();
        {
            let _held = world.gate.lock().unwrap();
            for ask in &mut asks {
                assert_eq!(ask.as_mut().now_or_never(), None, "nothing is answered before it is kept");
            }
        }
        join_all(asks).await
    }

    #[tokio::test]
    async fn what_waits_is_kept_together() {
        let world = world(|_| false);
        let answers = gathered(&world, (0..100).map(|n| job(n, vec![])).collect()).await;
        assert!(answers.iter().all(Result::is_ok));
        let batches = world.batches.lock().unwrap().clone();
        assert_eq!(batches.iter().sum::<usize>(), 100);
        assert!(batches.len() <= 2, "one that was taken alone, and the rest: {batches:?}");
    }

    #[tokio::test]
    async fn a_bad_job_fails_alone() {
        let world = world(|jobs| jobs.iter().any(is_bad));
        let jobs = (0..10).map(|n| job(n, if n == 7 { vec![Write::Forget] } else { vec![] })).collect();
        let answers = gathered(&world, jobs).await;
        for (n, answer) in answers.iter().enumerate() {
            assert_eq!(answer.is_err(), n == 7, "{n}: {answer:?}");
        }
    }

    #[tokio::test]
    async fn an_engine_that_fails_is_told_to_everyone() {
        let world = world(|_| true);
        let answers = gathered(&world, (0..10).map(|n| job(n, vec![])).collect()).await;
        assert!(answers.iter().all(|answer| *answer == Err(StoreError::Failed("no".to_owned()))));
    }

    #[tokio::test]
    async fn an_engine_that_panics_closes_the_store_for_everyone() {
        let world = world(|jobs| {
            assert!(!jobs.iter().any(is_bad), "this test's own panic");
            false
        });
        let answers = gathered(&world, vec![job(1, vec![Write::Forget]), job(2, vec![])]).await;
        assert_eq!(answers, [Err(StoreError::Closed), Err(StoreError::Closed)]);
        assert_eq!(world.writer.commit(job(3, vec![])).await, Err(StoreError::Closed));
        assert_eq!(world.writer.close().await, Err(StoreError::Closed));
    }

    #[tokio::test]
    async fn close_comes_after_what_was_asked_before_it_and_refuses_the_rest() {
        let world = world(|_| false);
        assert_eq!(world.writer.commit(job(1, vec![])).await, Ok(()));
        assert_eq!(world.writer.close().await, Ok(()));
        assert_eq!(*world.batches.lock().unwrap(), [1, 0]);
        assert_eq!(world.writer.commit(job(2, vec![])).await, Err(StoreError::Closed));
    }

    #[tokio::test]
    async fn a_probe_waits_as_long_as_the_jobs_before_it() {
        let world = world(|_| false);
        let mut commit = Box::pin(tokio::task::unconstrained(world.writer.commit(job(1, vec![]))));
        let mut probe = Box::pin(tokio::task::unconstrained(world.writer.probe()));
        {
            let _held = world.gate.lock().unwrap();
            assert_eq!(commit.as_mut().now_or_never(), None);
            assert_eq!(probe.as_mut().now_or_never(), None, "the writer is busy");
        }
        assert_eq!(probe.await, Ok(()));
        assert_eq!(*world.batches.lock().unwrap(), [1], "and a probe keeps nothing");
        assert_eq!(commit.await, Ok(()));
        assert_eq!(world.writer.close().await, Ok(()));
        assert_eq!(world.writer.probe().await, Err(StoreError::Closed));
    }

    #[tokio::test]
    async fn a_batch_has_a_size() {
        let world = world(|_| false);
        let big = || vec![Write::Trim { through: Seq(1) }; BATCH_BYTES_MAX / WRITE_OVERHEAD];
        gathered(&world, (0..4).map(|n| job(n, big())).collect()).await;
        assert_eq!(*world.batches.lock().unwrap(), [1, 1, 1, 1]);
        let jobs: Vec<_> = (0..BATCH_JOBS_MAX + 10).map(|_| job(1, vec![])).collect();
        gathered(&world, jobs).await;
        assert!(world.batches.lock().unwrap().iter().all(|&batch| batch <= BATCH_JOBS_MAX));
    }
}
