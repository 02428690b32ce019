//! What keeping costs: groups that append 1 KiB each and wait for it, together, as a busy mediator has them. Beside it what the disk can
//! do at best: a bare file that is appended to and synced in the same batches (`peers` compares the two in one run).

#![allow(clippy::unwrap_used, missing_docs, reason = "a bench may panic, and criterion's macro makes public things")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures_util::future::join_all;
use heliostat::group::record::{GroupRecord, LogEntry, Seq, Write};
use heliostat::store::{Durability, SqliteStore, Store as _};
use heliostat::wire::d2m::{DeviceGroupId, DeviceId, Envelope, ReflectFlags, Reflected, ReflectedId};

const NOW: u64 = 1_700_000_000_000;

fn append(seq: u64) -> Vec<Write> {
    let id = ReflectedId(Seq(seq).wire_id());
    let message = Reflected::new(Envelope::copy_from(&[1; 1_024]), ReflectFlags::default(), id, NOW);
    let trim = Write::Trim { through: Seq(seq.saturating_sub(4)) };
    vec![Write::Append(LogEntry { seq: Seq(seq), origin: DeviceId(1), message }), trim]
}

fn group_id(n: u64) -> DeviceGroupId {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&n.to_le_bytes());
    DeviceGroupId::new(id)
}

fn commits(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let mut bench = c.benchmark_group("store/append, one of each group at once");
    for durability in [Durability::Fsync, Durability::Memory] {
        for groups in [1, 64] {
            let dir = tempfile::tempdir().unwrap();
            let store = SqliteStore::open(dir.path(), durability, NOW).unwrap();
            let record =
                || GroupRecord { seq_reserved: Seq(0), last_timestamp_ms: NOW, encrypted_shared_device_data: vec![] };
            runtime.block_on(async {
                for n in 0..groups {
                    store.commit(group_id(n), vec![Write::Group(record())]).await.unwrap();
                }
            });
            let seq = AtomicU64::new(1);
            bench.throughput(Throughput::Elements(groups));
            bench.bench_function(BenchmarkId::new(durability.to_string(), groups), |b| {
                b.iter(|| {
                    let seq = seq.fetch_add(1, Ordering::Relaxed);
                    let all = (0..groups).map(|n| {
                        let store = Arc::clone(&store);
                        async move { store.commit(group_id(n), append(seq)).await.unwrap() }
                    });
                    runtime.block_on(join_all(all));
                });
            });
            runtime.block_on(store.close()).unwrap();
        }
    }
    bench.finish();
}

criterion_group!(benches, commits);
criterion_main!(benches);
