//! What deciding costs: a reflect in a group of connected devices with the acknowledgements of all the others, against the
//! number of devices and the length of what waits for one that is away.

#![allow(clippy::unwrap_used, missing_docs, reason = "a bench may panic, and criterion's macro makes public things")]

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use heliostat::group::limits::{DEVICE_SLOTS_MAX, cost};
use heliostat::group::{Act, ConnectionId, Group, Input, Introduction, Limits, Request};
use heliostat::time::Now;
use heliostat::wire::d2m::{
    DeviceId, Envelope, Reflect, ReflectFlags, ReflectId, SlotExpiration, SlotState, SlotsExhausted, ToDevice,
};

struct World {
    group: Group,
    now: Now,
    connected: u64,
    sent: u32,
}

impl World {
    fn of(devices: u64) -> Self {
        let limits = Limits {
            max_device_slots: DEVICE_SLOTS_MAX,
            max_queue_messages: u64::MAX,
            max_queue_bytes: u64::MAX,
            ..Limits::default()
        };
        let now = Now { monotonic: Duration::ZERO, wall_ms: 1_700_000_000_000 };
        let mut world = Self { group: Group::empty(limits), now, connected: devices, sent: 0 };
        for device in 0..devices {
            world.feed(Input::Join(
                ConnectionId(device),
                Introduction {
                    device: DeviceId(device),
                    slots_exhausted: SlotsExhausted::Reject,
                    slot_expiration: SlotExpiration::Persistent,
                    expected_slot_state: SlotState::New,
                    encrypted_device_info: vec![0; 100],
                },
            ));
        }
        world
    }

    /// The last device goes, and what follows waits for it.
    fn leave(&mut self) {
        self.connected -= 1;
        self.feed(Input::Leave { conn: ConnectionId(self.connected), introduced: true });
    }

    /// What the hub does, without a disk and without sockets.
    fn feed(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let step = self.group.handle(self.now, input);
            for act in step.acts {
                let Act::Send(conn, payload) = act else { continue };
                if let ToDevice::Reflected(message) = &payload {
                    inputs.push(Input::Says(conn, Request::ReflectedAck(message.id())));
                }
                inputs.push(Input::Written(conn, cost(&payload)));
            }
        }
        let _told = self.group.handle(self.now, Input::Durable);
    }

    fn reflect(&mut self) {
        self.sent = self.sent.wrapping_add(1);
        let reflect = Reflect {
            flags: ReflectFlags::default(),
            reflect_id: ReflectId(self.sent),
            envelope: Envelope::copy_from(&[1; 1_024]),
        };
        self.feed(Input::Says(ConnectionId(0), Request::Reflect(reflect)));
    }
}

fn deciding(c: &mut Criterion) {
    let mut group = c.benchmark_group("group/reflect and all its acknowledgements");
    for devices in [2, 3, 4, 8, 15] {
        let mut world = World::of(devices);
        group.bench_function(BenchmarkId::new("devices", devices), |b| b.iter(|| world.reflect()));
    }
    for waiting in [0_u32, 1_000, 100_000] {
        let mut world = World::of(3);
        world.leave();
        (0..waiting).for_each(|_| world.reflect());
        group.bench_function(BenchmarkId::new("3 devices, one away, waiting for it", waiting), |b| {
            b.iter(|| world.reflect());
        });
    }
    group.finish();
}

criterion_group!(benches, deciding);
criterion_main!(benches);
