//! Joining, leaving and falling asleep, all at once.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::actor::{Ask, Post, Wish};
use super::neighbours::{NeighbourError, Neighbours};
use super::{FarSeat, Hub, Outgoing, Seat};
use crate::crypto::{Secret, boxes, kdf};
use crate::group::limits::OUTBOX_COST;
use crate::group::{Farewell, Limits, Request};
use crate::hub::{Admitted, Challenge, JoinError};
use crate::store::memory::MemoryStore;
use crate::store::nodes::{Node, Nodes};
use crate::store::{Owner, Store};
use crate::time::Clock;
use crate::wire::d2m::{
    BeginTransaction, ClientHello, DeviceGroupId, DeviceId, Envelope, Reflect, ReflectFlags, ReflectId, SlotExpiration,
    SlotState, SlotsExhausted, ToDevice,
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

/// A way to other nodes that leads nowhere.
#[derive(Debug)]
struct NoWay(NeighbourError);

impl Neighbours for NoWay {
    fn seat(&self, _: Owner, _: Admitted, _: FarSeat) -> BoxFuture<'_, Result<(), NeighbourError>> {
        Box::pin(std::future::ready(Err(self.0)))
    }
}

/// One of several nodes with the same store.
fn node_of(nodes: &Nodes, name: &str, way: NeighbourError) -> (House, Arc<Node>) {
    let node = nodes.node(name, "");
    let kept: Arc<dyn Store> = Arc::<Node>::clone(&node);
    let hub = Hub::new(kept, Limits::default(), Clock::following(1_700_000_000_000)).among(Arc::new(NoWay(way)));
    (House { hub, store: Arc::default(), key: Secret::new([7; 32]) }, node)
}

/// The last word, and what was said before it.
async fn said_until_the_end(seat: &mut Seat) -> (Vec<ToDevice>, Option<Outgoing>) {
    let mut said = Vec::new();
    loop {
        match seat.outbox.next().await {
            Some(Outgoing::Payload(payload)) => said.push(payload),
            last => return (said, last),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_lost_a_group_acknowledges_nothing_of_it() {
    let begin = Request::BeginTransaction(BeginTransaction { encrypted_scope: vec![], ttl_s: 60 });
    // The one is kept; the other is not, and would promise as much.
    for asks in [reflect(2), begin] {
        let nodes = Nodes::over(Arc::default());
        let (a, store) = node_of(&nodes, "a", NeighbourError::Moved);
        let (b, _) = node_of(&nodes, "b", NeighbourError::Moved);
        let mut seat = a.joins(1, SlotState::New).await;
        seat.place.say(reflect(1)).await.unwrap();
        while !matches!(seat.outbox.next().await, Some(Outgoing::Payload(ToDevice::ReflectAck(_)))) {}
        store.fence();
        // The other one has the group now, and gave the lock away.
        let mut other = b.joins(2, SlotState::New).await;
        other
            .place
            .say(Request::BeginTransaction(BeginTransaction { encrypted_scope: vec![], ttl_s: 60 }))
            .await
            .unwrap();
        while !matches!(other.outbox.next().await, Some(Outgoing::Payload(ToDevice::BeginTransactionAck))) {}
        seat.place.say(asks.clone()).await.unwrap();
        let (said, last) = said_until_the_end(&mut seat).await;
        assert_eq!(last, Some(Outgoing::Moved), "{asks:?}");
        assert!(!said.iter().any(super::seat::answers), "{asks:?}: {said:?}");
        drop(seat);
        a.falls_silent().await;
        let refused = a.hub.join_here(a.admitted(1, SlotState::Existing, SlotExpiration::Persistent)).await;
        assert!(matches!(refused, Err(JoinError::Store(crate::store::StoreError::Lost))), "{refused:?}");
        store.awake();
        let refused = a.hub.join_here(a.admitted(1, SlotState::Existing, SlotExpiration::Persistent)).await;
        assert!(matches!(&refused, Err(JoinError::Elsewhere(owner)) if owner.name == "b"), "{refused:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_that_another_node_cannot_reach_is_sent_there() {
    let nodes = Nodes::over(Arc::default());
    let (a, store) = node_of(&nodes, "a", NeighbourError::Unreachable);
    let (b, other) = node_of(&nodes, "b", NeighbourError::Unreachable);
    let group = DeviceGroupId::new(boxes::public(&b.key));
    let mut seat = a.joins(1, SlotState::New).await;
    let goes = async {
        let looks = async {
            loop {
                store.look();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let (_, last) = tokio::select! {
            ended = said_until_the_end(&mut seat) => ended,
            () = looks => unreachable!("it looks for ever"),
        };
        assert_eq!(last, Some(Outgoing::Moved));
        assert!(seat.place.cut.is_cancelled());
        // Nobody is seated there any more; and until the last one left, the group is nobody else's.
        let refused = a.hub.join_here(a.admitted(3, SlotState::New, SlotExpiration::Persistent)).await;
        assert!(matches!(refused, Err(JoinError::Moving)), "{refused:?}");
        assert_eq!(nodes.owner(group), Some(store.id()));
        drop(seat);
    };
    let (_seat, ()) = tokio::join!(b.joins(2, SlotState::New), goes);
    assert_eq!(nodes.owner(group), Some(other.id()));
}

#[tokio::test(start_paused = true)]
async fn a_device_waits_a_while_for_a_group_that_moves_and_then_it_is_told_to_come_again() {
    let nodes = Nodes::over(Arc::default());
    let (a, _) = node_of(&nodes, "a", NeighbourError::Moved);
    let (b, _) = node_of(&nodes, "b", NeighbourError::Moved);
    let clock = Clock::following(0);
    let seat = a.joins(1, SlotState::New).await;
    let refused = b.hub.join(b.admitted(2, SlotState::New, SlotExpiration::Persistent)).await;
    assert!(matches!(refused, Err(JoinError::Moving)), "{refused:?}");
    let waited = clock.now().monotonic;
    assert!(waited >= super::SEATED_WITHIN && waited < 2 * super::SEATED_WITHIN, "{waited:?}");
    let leaves = async {
        tokio::time::sleep(super::SEATED_WITHIN / 2).await;
        drop(seat);
    };
    let (_seat, ()) = tokio::join!(b.joins(2, SlotState::New), leaves);
}
