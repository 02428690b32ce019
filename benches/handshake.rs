//! What the proof of a group key costs the mediator: an ephemeral key pair, one agreement, one box. TLS is not in it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a bench may panic, and criterion's macro makes public things"
)]

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use heliostat::client::GroupKey;
use heliostat::crypto::{Secret, kdf, random};
use heliostat::hub::Challenge;
use heliostat::session::handshake::{AwaitClientHello, Progress};
use heliostat::wire::d2m::{
    ClientHello, DeviceId, FromDevice, ServerHello, SlotExpiration, SlotState, SlotsExhausted, ToDevice,
};

fn begin(key: &GroupKey) -> (AwaitClientHello, ServerHello) {
    let challenge = Challenge::new(Secret::random(), random::bytes());
    let (state, hello) = AwaitClientHello::start(key.device_group_id(), challenge);
    let ToDevice::ServerHello(hello) = hello else { panic!("{hello:?}") };
    (state, *hello)
}

fn answer(key: &GroupKey, hello: &ServerHello) -> FromDevice {
    let response = kdf::answer_challenge(&key.keys().path, &hello.esk, &hello.challenge, &[1; 24]).unwrap();
    FromDevice::ClientHello(Box::new(ClientHello {
        response: response.try_into().unwrap(),
        device_id: DeviceId(1),
        slots_exhausted: SlotsExhausted::Reject,
        slot_expiration: SlotExpiration::Persistent,
        encrypted_device_info: vec![0; 100],
        expected_slot_state: SlotState::New,
    }))
}

fn handshakes(c: &mut Criterion) {
    let key = GroupKey::generate();
    c.bench_function("handshake/ServerHello", |b| b.iter(|| begin(&key)));
    c.bench_function("handshake/check of a ClientHello", |b| {
        let answered = || {
            let (state, hello) = begin(&key);
            (state, answer(&key, &hello))
        };
        let check = |(state, hello): (AwaitClientHello, FromDevice)| match state.handle(hello).unwrap() {
            Progress::Admitted(admitted, _) => admitted,
            Progress::Waiting(_) => panic!("not admitted"),
        };
        b.iter_batched(answered, check, BatchSize::SmallInput);
    });
}

criterion_group!(benches, handshakes);
criterion_main!(benches);
