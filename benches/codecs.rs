//! What reading and writing payloads costs: one reflect of 1 KiB goes through the first three of these, and its
//! acknowledgement through the last two.

#![allow(clippy::unwrap_used, missing_docs, reason = "a bench may panic, and criterion's macro makes public things")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use heliostat::upstream::framer::{Framer, Framing};
use heliostat::wire::d2m::{
    Envelope, FromDevice, Reflect, ReflectAck, ReflectFlags, ReflectId, Reflected, ReflectedId, ToDevice,
};

const ENVELOPE: usize = 1_024;

fn reflecting(c: &mut Criterion) {
    let mut group = c.benchmark_group("codecs");
    group.throughput(Throughput::Bytes(ENVELOPE as u64));
    let reflect = FromDevice::Reflect(Reflect {
        flags: ReflectFlags::default(),
        reflect_id: ReflectId(7),
        envelope: Envelope::copy_from(&[1; ENVELOPE]),
    })
    .encode();
    group.bench_function("reflect/decode", |b| b.iter(|| FromDevice::decode(black_box(&reflect)).unwrap()));
    let reflected = |envelope| Reflected::new(envelope, ReflectFlags::default(), ReflectedId(9), 1_700_000_000_000);
    group.bench_function("reflected/make", |b| {
        b.iter_batched(|| Envelope::copy_from(&[1; ENVELOPE]), reflected, BatchSize::SmallInput);
    });
    let once = ToDevice::Reflected(reflected(Envelope::copy_from(&[1; ENVELOPE])));
    group.bench_function("reflected/encode for one more device", |b| b.iter(|| black_box(&once).encode()));
    group.finish();

    let ack = ToDevice::ReflectAck(ReflectAck { reflect_id: ReflectId(7), timestamp_ms: 1_700_000_000_000 });
    c.bench_function("codecs/reflect-ack/encode", |b| b.iter(|| black_box(&ack).encode()));
    let acked = FromDevice::ReflectedAck(ReflectedId(9)).encode();
    c.bench_function("codecs/reflected-ack/decode", |b| b.iter(|| FromDevice::decode(black_box(&acked)).unwrap()));
}

/// A chat server's stream, read in pieces of 16 KiB and cut into frames of 1 KiB.
fn cutting(c: &mut Criterion) {
    const FRAMES: usize = 256;
    let frame = [&u16::try_from(ENVELOPE).unwrap().to_le_bytes()[..], &[2; ENVELOPE]].concat();
    let stream = [vec![0; 80 + 32], frame.repeat(FRAMES)].concat();
    let mut group = c.benchmark_group("codecs");
    group.throughput(Throughput::Bytes(stream.len() as u64));
    group.bench_function("chat server stream/cut", |b| {
        b.iter(|| {
            let mut framer = Framer::new(Framing::Csp);
            let mut units = 0;
            for piece in stream.chunks(16 * 1_024) {
                framer.push(piece);
                while framer.next_payload().unwrap().is_some() {
                    units += 1;
                }
            }
            assert_eq!(units, 2 + FRAMES);
        });
    });
    group.finish();
}

criterion_group!(benches, reflecting, cutting);
criterion_main!(benches);
