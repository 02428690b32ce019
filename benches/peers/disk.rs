//! The store alone beside a file that is appended to: both sync once for whoever waits, and answer then.

use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use heliostat::group::record::{GroupRecord, LogEntry, Seq, Write};
use heliostat::store::{Durability, SqliteStore, Store as _};
use heliostat::time::Clock;
use heliostat::wire::d2m::{DeviceGroupId, DeviceId, Envelope, ReflectFlags, Reflected, ReflectedId};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::Plan;
use super::report::{Aim, Comparison, Target};

const GROUPS: u64 = 64;
const SIZE: usize = 1_024;
const NOW: u64 = 1_700_000_000_000;
/// Entries a group keeps before they are trimmed, as when devices acknowledge a little later.
const KEPT: u64 = 8;

pub async fn compare(plan: Plan) -> Comparison {
    let conditions = format!(
        "{GROUPS} groups that each append {SIZE} bytes and wait until it is synced, then the next; the store also trims what \
         is {KEPT} entries old"
    );
    let mut comparison = Comparison::new("disk", conditions);
    let dir = tempfile::tempdir_in("target").unwrap();
    let store = SqliteStore::open(&dir.path().join("store"), Durability::Fsync, NOW).unwrap();
    for n in 0..GROUPS {
        let record = GroupRecord { seq_reserved: Seq(0), last_timestamp_ms: NOW, encrypted_shared_device_data: vec![] };
        store.commit(group_id(n), vec![Write::Group(record)]).await.unwrap();
    }
    let seqs: Arc<Vec<AtomicU64>> = Arc::new((0..GROUPS).map(|_| AtomicU64::new(0)).collect());
    let bare = Bare::open(&dir.path().join("bare"));
    for _ in 0..plan.rounds {
        let (store, seqs) = (Arc::clone(&store), Arc::clone(&seqs));
        let rate = appends(plan.lasts, move |n| {
            let (store, seqs) = (Arc::clone(&store), Arc::clone(&seqs));
            async move {
                let seq = seqs[usize::try_from(n).unwrap()].fetch_add(1, Ordering::Relaxed) + 1;
                let id = ReflectedId(Seq(seq).wire_id());
                let message = Reflected::new(Envelope::copy_from(&[1; SIZE]), ReflectFlags::default(), id, NOW);
                let mut writes = vec![Write::Append(LogEntry { seq: Seq(seq), origin: DeviceId(1), message })];
                if seq > KEPT {
                    writes.push(Write::Trim { through: Seq(seq - KEPT) });
                }
                store.commit(group_id(n), writes).await.unwrap();
            }
        })
        .await;
        comparison.note("store", "durable appends", "/s", rate);
        let bare = bare.clone();
        let rate = appends(plan.lasts, move |_| {
            let bare = bare.clone();
            async move { bare.append(vec![1; SIZE]).await }
        })
        .await;
        comparison.note("bare file", "durable appends", "/s", rate);
    }
    store.close().await.unwrap();
    comparison.aim(Target { figure: "durable appends", of: "store", to: "bare file", aim: Aim::AtLeast(0.5) });
    comparison
}

/// How many there are in a second when each group waits for its own.
async fn appends<F: Future<Output = ()> + Send>(
    lasts: Duration,
    append: impl Fn(u64) -> F + Clone + Send + 'static,
) -> f64 {
    let clock = Clock::system();
    let begins = lasts / 5;
    let done = Arc::new(AtomicU64::new(0));
    let mut groups = JoinSet::new();
    for n in 0..GROUPS {
        let (append, done) = (append.clone(), Arc::clone(&done));
        groups.spawn(async move {
            loop {
                append(n).await;
                let now = clock.now().monotonic;
                if now > begins + lasts {
                    break;
                }
                done.fetch_add(u64::from(now > begins), Ordering::Relaxed);
            }
        });
    }
    groups.join_all().await;
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let done = done.load(Ordering::Relaxed) as f64;
    done / lasts.as_secs_f64()
}

fn group_id(n: u64) -> DeviceGroupId {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&n.to_le_bytes());
    DeviceGroupId::new(id)
}

/// A file, and the thread that appends to it.
#[derive(Clone)]
struct Bare(mpsc::Sender<(Vec<u8>, oneshot::Sender<()>)>);

impl Bare {
    fn open(file: &std::path::Path) -> Self {
        let mut file = File::create(file).unwrap();
        let (queue, mut asked) = mpsc::channel::<(Vec<u8>, oneshot::Sender<()>)>(1_024);
        std::thread::spawn(move || {
            let (mut batch, mut answers) = (Vec::new(), Vec::new());
            while let Some(first) = asked.blocking_recv() {
                let mut next = Some(first);
                while let Some((bytes, answer)) = next {
                    batch.extend(bytes);
                    answers.push(answer);
                    next = asked.try_recv().ok();
                }
                file.write_all(&batch).unwrap();
                file.sync_data().unwrap();
                batch.clear();
                answers.drain(..).for_each(|answer| answer.send(()).unwrap_or(()));
            }
        });
        Self(queue)
    }

    async fn append(&self, bytes: Vec<u8>) {
        let (answer, answered) = oneshot::channel();
        self.0.send((bytes, answer)).await.unwrap();
        answered.await.unwrap();
    }
}
