//! Joining, leaving and falling asleep, all at once.

use std::sync::Arc;
use std::time::Duration;

use super::actor::{Ask, Post, Wish};
use super::{Hub, Outgoing, Seat};
use crate::crypto::{Secret, boxes, kdf};
use crate::group::limits::OUTBOX_COST;
use crate::group::{Farewell, Limits, Request};
use crate::hub::{Admitted, Challenge, JoinError};
use crate::store::Store;
use crate::store::memory::MemoryStore;
use crate::time::Clock;
use crate::wire::d2m::{
    ClientHello, DeviceGroupId, DeviceId, Envelope, Reflect, ReflectFlags, ReflectId, SlotExpiration, SlotState,
    SlotsExhausted, ToDevice,
};

struct House {
    hub: Hub,
    store: Arc<MemoryStore>,
    key: Secret<32>,
}

fn house(limits: Limits) -> House {
    let store = Arc::new(MemoryStore::new());
    let kept: Arc<dyn Store> = Arc::<MemoryStore>::clone(&store);
    House { hub: Hub::new(kept, limits, Clock::following(1_700_000_000_000)), store, key: Secret::new([7; 32]) }
}

impl House {
    /// A device with the proof that it belongs here.
    fn admitted(&self, device: u64, expected_slot_state: SlotState, slot_expiration: SlotExpiration) -> Admitted {
        let group = DeviceGroupId::new(boxes::public(&self.key));
        let challenge = Challenge::new(Secret::random(), [1; 32]);
        let hello = challenge.server_hello();
        let response = kdf::answer_challenge(&self.key, &hello.esk, &hello.challenge, &[2; 24]).unwrap();
        let hello = ClientHello {
            response: response.try_into().unwrap(),
            device_id: DeviceId(device),
            slots_exhausted: SlotsExhausted::Reject,
            slot_expiration,
            encrypted_device_info: vec![],
            expected_slot_state,
        };
        challenge.check(group, hello).unwrap()
    }

    async fn joins(&self, device: u64, expected: SlotState) -> Seat {
        let mut seat = self.hub.join(self.admitted(device, expected, SlotExpiration::Persistent)).await.unwrap();
        let first = seat.outbox.next().await.unwrap();
        assert!(matches!(first, Outgoing::Payload(ToDevice::ServerInfo(_))), "{first:?}");
        seat.place.introduced();
        seat
    }

    async fn falls_silent(&self) {
        while self.hub.awake() > 0 {
            tokio::task::yield_now().await;
        }
    }
}

fn reflect(n: u32) -> Request {
    let envelope = Envelope::copy_from(&n.to_le_bytes());
    Request::Reflect(Reflect { flags: ReflectFlags::default(), reflect_id: ReflectId(n), envelope })
}

/// Its place in the mailbox was found before the group fell asleep, and is filled after: a device waited there for ever.
#[tokio::test(start_paused = true)]
async fn what_comes_just_too_late_is_not_kept_waiting() {
    let house = house(Limits::default());
    let seat = house.joins(1, SlotState::New).await;
    let mailbox = house.hub.mailbox(DeviceGroupId::new(boxes::public(&house.key)));
    let place = mailbox.reserve().await.unwrap();
    drop(seat);
    house.falls_silent().await;
    mailbox.closed().await;
    let (answer, answered) = tokio::sync::oneshot::channel();
    place.send(Post::Ask(Box::new(Ask { wish: Wish::Look, answer })));
    let answered = tokio::time::timeout(Duration::from_secs(60), answered).await;
    assert!(answered.expect("an answer, or none for certain").is_err(), "it looks for the group again");
    drop(mailbox);
    house.hub.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_group_sleeps_when_its_last_device_left_and_wakes_for_the_next() {
    let house = house(Limits::default());
    let seat = house.joins(1, SlotState::New).await;
    assert_eq!(house.hub.awake(), 1);
    drop(seat);
    house.falls_silent().await;
    drop(house.joins(1, SlotState::Existing).await);
    house.falls_silent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coming_and_going_at_the_same_time_never_leaves_a_device_outside_or_a_ghost_inside() {
    let house = Arc::new(house(Limits::default()));
    for device in 0..4 {
        drop(house.joins(device, SlotState::New).await);
    }
    let comers = (0..4).map(|device| {
        let house = Arc::clone(&house);
        tokio::spawn(async move {
            for _ in 0..300 {
                drop(house.joins(device, SlotState::Existing).await);
            }
        })
    });
    for comer in comers.collect::<Vec<_>>() {
        comer.await.unwrap();
    }
    house.falls_silent().await;
    house.hub.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_is_given_up_half_way_leaves_no_ghost() {
    let house = house(Limits::default());
    drop(house.joins(1, SlotState::New).await);
    for patience in 0..200_u32 {
        let admitted = house.admitted(1, SlotState::Existing, SlotExpiration::Persistent);
        let join = house.hub.join(admitted);
        // Given up after a few polls, wherever it is then.
        let mut join = std::pin::pin!(join);
        for _ in 0..patience % 7 {
            if futures_util::FutureExt::now_or_never(join.as_mut()).is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    house.falls_silent().await;
}

#[tokio::test]
async fn a_device_that_takes_its_messages_gets_more_than_an_outbox_holds() {
    let house = house(Limits::default());
    let sender = house.joins(1, SlotState::New).await;
    let mut receiver = house.joins(2, SlotState::New).await;
    let many = 4 * u32::try_from(OUTBOX_COST / 256).unwrap();
    let says = async {
        for n in 0..many {
            sender.place.say(reflect(n)).await.unwrap();
        }
    };
    let hears = async {
        let mut next = 0_u32;
        while next < many {
            let Some(Outgoing::Payload(payload)) = receiver.outbox.next().await else { panic!("ended") };
            if let ToDevice::Reflected(message) = &payload {
                assert_eq!(message.envelope(), next.to_le_bytes());
                next += 1;
            }
            receiver.outbox.written(&payload).await;
        }
    };
    // The sender takes none of its acknowledgements; that is its own affair.
    futures_util::future::join(says, hears).await;
}

#[tokio::test]
async fn when_a_group_cannot_be_woken_its_device_is_told_and_the_next_try_may_work() {
    let house = house(Limits::default());
    house.store.fail_read_at(house.store.reads() + 1);
    let refused = house.hub.join(house.admitted(1, SlotState::New, SlotExpiration::Persistent)).await;
    assert!(refused.is_err());
    drop(house.joins(1, SlotState::New).await);
    house.falls_silent().await;
}

#[tokio::test(start_paused = true)]
async fn slots_of_sleeping_groups_expire_by_the_sweep() {
    let limits = Limits { volatile_slot_ttl: Duration::from_secs(600), ..Limits::default() };
    let house = house(limits);
    let admitted = house.admitted(1, SlotState::New, SlotExpiration::Volatile);
    let mut seat = house.hub.join(admitted).await.unwrap();
    let _info = seat.outbox.next().await;
    seat.place.introduced();
    drop(seat);
    house.falls_silent().await;
    tokio::time::advance(Duration::from_secs(599)).await;
    assert_eq!(house.hub.sweep_once().await, Ok(0));
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(house.hub.sweep_once().await, Ok(1));
    house.falls_silent().await;
    // The slot is gone: NEW is the truth again.
    drop(house.joins(1, SlotState::New).await);
    assert_eq!(house.hub.sweep_once().await, Ok(0));
}

#[tokio::test]
async fn an_operator_is_answered_behind_what_is_kept_and_wakes_who_sleeps() {
    let house = house(Limits::default());
    let group = DeviceGroupId::new(boxes::public(&house.key));
    assert_eq!(house.hub.inspect(group).await, Ok(None), "nobody was ever here");
    let (phone, mut tablet) = (house.joins(1, SlotState::New).await, house.joins(2, SlotState::New).await);
    let inspection = house.hub.inspect(group).await.unwrap().unwrap();
    assert_eq!((inspection.view.devices.len(), inspection.proxied.len()), (2, 0));
    assert_eq!(house.hub.pulses().iter().map(|(id, pulse)| (*id, pulse.connected)).collect::<Vec<_>>(), [(group, 2)]);

    assert_eq!(house.hub.kick(group, DeviceId(3)).await, Ok(false));
    assert_eq!(house.hub.kick(group, DeviceId(2)).await, Ok(true));
    while tablet.outbox.next().await != Some(Outgoing::Close(Farewell::Kicked)) {}
    drop((phone, tablet));
    house.falls_silent().await;
    assert_eq!(house.hub.kick(group, DeviceId(1)).await, Ok(false), "nobody is woken to be told that nobody is there");
    assert_eq!(house.hub.awake(), 0);

    assert_eq!(house.hub.drop_device(group, DeviceId(2)).await, Ok(true));
    assert_eq!(house.hub.drop_device(group, DeviceId(2)).await, Ok(false));
    house.falls_silent().await;
    assert_eq!(house.hub.census(None, 10).await.unwrap().some, [(group, 1)]);
}

#[tokio::test]
async fn an_operator_is_told_when_what_was_asked_cannot_be_kept() {
    let house = house(Limits::default());
    let group = DeviceGroupId::new(boxes::public(&house.key));
    let _phone = house.joins(1, SlotState::New).await;
    house.store.fail_at(house.store.commits() + 1);
    assert!(matches!(house.hub.drop_device(group, DeviceId(1)).await, Err(JoinError::Store(_))));
    house.falls_silent().await;
    assert_eq!(house.hub.census(None, 10).await.unwrap().some, [(group, 1)], "and it is still there");
}

#[tokio::test(start_paused = true)]
async fn changed_limits_reach_groups_that_are_awake() {
    let house = house(Limits { volatile_slot_ttl: Duration::from_secs(3_600), ..Limits::default() });
    let _awake = house.joins(1, SlotState::New).await;
    let volatile = house.admitted(2, SlotState::New, SlotExpiration::Volatile);
    drop(house.hub.join(volatile).await.unwrap());
    assert!(house.joins(3, SlotState::New).await.place.conn().0 > 0);

    house.hub.set_limits(Limits { max_device_slots: 1, ..Limits::default() });
    let mut seat = house.hub.join(house.admitted(4, SlotState::New, SlotExpiration::Persistent)).await.unwrap();
    assert_eq!(seat.outbox.next().await, Some(Outgoing::Close(crate::group::Farewell::DeviceLimitReached)));
}

#[tokio::test(start_paused = true)]
async fn a_group_is_known_when_it_is_awake_or_kept() {
    let house = house(Limits::default());
    let group = DeviceGroupId::new(boxes::public(&house.key));
    assert_eq!(house.hub.knows(group).await, Ok(false));
    let seat = house.joins(1, SlotState::New).await;
    assert_eq!(house.hub.knows(group).await, Ok(true));
    drop(seat);
    house.falls_silent().await;
    assert_eq!(house.hub.knows(group).await, Ok(true));
    assert_eq!(house.hub.knows(DeviceGroupId::new([1; 32])).await, Ok(false));
}
