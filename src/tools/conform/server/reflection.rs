//! Reflecting: who gets what, under which id, when, and until when (section 4).

use super::world::{Case, Done, Finding, Line, Needs, World, case, code, ensure, envelopes, messages, names, reflect};
use crate::wire::d2m::{CloseCode, ReflectAck, Reflected, ReflectedId, ToDevice};

pub(super) const CASES: &[Case] = &[
    case!("D2M-12.7a", others_get_it, "A reflected message reaches every other connected device, byte for byte."),
    case!("D2M-12.7b", not_the_sender, "The sender does not get its own message."),
    case!("D2M-12.7c", offline_later, "A device that was away gets the message when it returns."),
    case!(
        "D2M-12.7d",
        again_until_acked,
        "What is not acknowledged comes again under the same id, with the same time, in the same order."
    ),
    case!("D2M-12.7e", acked_no_more, "What was acknowledged does not come again."),
    case!("D2M-12.7f", queue_length, "ServerInfo tells the number of messages that will be transmitted now."),
    case!("D2M-12.7g", backlog_before_dry, "The backlog comes in order and before ReflectionQueueDry."),
    case!(
        "D2M-12.8a",
        ephemeral_reaches,
        "An ephemeral message reaches connected devices, marked as such, in line with the others."
    ),
    case!("D2M-12.8b", ephemeral_no_ack, "An ephemeral message gets no reflect-ack."),
    case!(
        "D2M-12.8c",
        ephemeral_not_kept,
        "An ephemeral message is never kept, neither for the absent nor for those who did not acknowledge it."
    ),
    case!("D2M-12.9a", never_issued, "Acknowledging an id that was never issued is closed with 4012."),
    case!("D2M-12.9b", never_issued_alone, "Only who acknowledged such an id is closed."),
    case!("D2M-A5a", ephemeral_acked, "Acknowledging an ephemeral message is no mistake."),
    case!("D2M-A6a", acked_twice, "Acknowledging a message twice is no mistake."),
    case!("D2M-A6b", acked_out_of_order, "Messages may be acknowledged in any order."),
    case!(
        "D2M-A6c",
        acked_before_resent,
        "A message may be acknowledged on a later connection, before it is sent again."
    ),
    case!("D2M-A28a", short_envelope, "Envelopes may be as short as they like, also empty."),
    case!("D2M-A32a", no_flow_control, "Nothing waits for acknowledgements of reflected messages."),
    case!("D2M-A35a", same_timestamp, "The time of a reflected message is that of the sender's reflect-ack."),
    case!("D2M-A35b", times_grow, "Timestamps of a group never go back."),
    case!("D2M-4.1a", acks_in_order, "Reflect-acks come in the order of the reflects."),
    case!("D2M-4.1b", one_order, "All devices get the messages of several senders in one order."),
    case!("D2M-4.1c", alone, "A device that is alone in its group gets its reflect-acks."),
    case!("D2M-4.2a", any_reflect_id, "Reflect-ids are the client's business: any value, also the same again."),
    case!("D2M-4.2b", ids_grow, "Reflected-ids of a slot grow, across its connections."),
    case!("D2M-A23a", slow 300, queue_limit, "A slot for which too much waits is closed with 4114 and gone; the sender is acknowledged all the same."),
];

/// Enough to see an order, few enough to be quick.
const SOME: u32 = 20;

fn body(n: u32) -> Vec<u8> {
    format!("message {n}").into_bytes()
}

/// A sender and a receiver that has left.
async fn with_absent(world: &World) -> Result<Line, Finding> {
    let sender = world.joins(1).await?;
    world.joins(2).await?.leaves().await?;
    Ok(sender)
}

async fn reflects_some(sender: &mut Line, ids: impl Iterator<Item = u32>) -> Result<Vec<ReflectAck>, Finding> {
    let mut acks = Vec::new();
    for id in ids {
        acks.push(sender.reflects(id, &body(id)).await?);
    }
    Ok(acks)
}

fn same(got: &[Reflected], ids: impl Iterator<Item = u32>) -> Done {
    let (expected, got): (Vec<_>, _) = (ids.map(body).collect(), envelopes(got));
    ensure!(got.len() == expected.len(), "of {} messages came {}", expected.len(), got.len());
    ensure!(got == expected, "{} messages came in another order, or changed", got.len());
    Ok(())
}

async fn others_get_it(world: &World) -> Done {
    let mut sender = world.joins(1).await?;
    let mut others = [world.joins(2).await?, world.joins(3).await?];
    let envelope: Vec<u8> = (0..=255).collect();
    sender.reflect(7, &envelope).await?;
    for other in &mut others {
        ensure!(other.reflected().await?.envelope() == envelope, "the envelope was changed");
    }
    Ok(())
}

async fn not_the_sender(world: &World) -> Done {
    let mut sender = world.joins(1).await?;
    let mut other = world.joins(2).await?;
    sender.reflect(7, b"x").await?;
    other.reflected().await?;
    let heard = messages(sender.heard_before_answer().await?);
    ensure!(heard.is_empty(), "the sender got it");
    let (_sender, queue) = world.queue_of(1).await?;
    ensure!(queue.is_empty(), "it waited for the sender");
    Ok(())
}

async fn offline_later(world: &World) -> Done {
    let mut sender = with_absent(world).await?;
    reflects_some(&mut sender, 0..SOME).await?;
    same(&world.queue_of(2).await?.1, 0..SOME)
}

async fn again_until_acked(world: &World) -> Done {
    let mut sender = world.joins(1).await?;
    let mut receiver = world.joins(2).await?;
    reflects_some(&mut sender, 0..3).await?;
    let mut first = Vec::new();
    while first.len() < 3 {
        first.push(receiver.reflected().await?);
    }
    drop(receiver);
    for _ in 0..2 {
        let (line, again) = world.queue_of(2).await?;
        ensure!(again.len() == first.len(), "{} of {} messages came again", again.len(), first.len());
        ensure!(again == first, "they came again with other ids, times or in another order");
        line.leaves().await?;
    }
    Ok(())
}

async fn acked_no_more(world: &World) -> Done {
    let mut sender = with_absent(world).await?;
    reflects_some(&mut sender, 0..3).await?;
    let (mut receiver, queue) = world.queue_of(2).await?;
    same(&queue, 0..3)?;
    for message in &queue {
        receiver.ack(message.id()).await?;
    }
    receiver.is_alive().await?;
    receiver.leaves().await?;
    let (_, queue) = world.queue_of(2).await?;
    ensure!(queue.is_empty(), "{} of 3 came again", queue.len());
    Ok(())
}

async fn queue_length(world: &World) -> Done {
    let mut sender = with_absent(world).await?;
    sender.ephemeral(99, b"not kept").await?;
    reflects_some(&mut sender, 0..3).await?;
    for (waiting, acked) in [(3, 1), (2, 2), (0, 0)] {
        let (mut receiver, info, backlog) = world.returns(2).await?;
        let (told, queue) = (info.reflection_queue_length, messages(backlog));
        ensure!(told == waiting, "{waiting} messages wait, ServerInfo says {told}");
        for message in queue.iter().take(acked) {
            receiver.ack(message.id()).await?;
        }
        receiver.is_alive().await?;
        receiver.leaves().await?;
    }
    Ok(())
}

async fn backlog_before_dry(world: &World) -> Done {
    let mut sender = with_absent(world).await?;
    reflects_some(&mut sender, 0..SOME).await?;
    let (mut receiver, queue) = world.queue_of(2).await?;
    same(&queue, 0..SOME)?;
    let heard = receiver.heard_before_answer().await?;
    ensure!(messages(heard).is_empty(), "some came after it");
    Ok(())
}

async fn ephemeral_reaches(world: &World) -> Done {
    let mut sender = world.joins(1).await?;
    let mut receiver = world.joins(2).await?;
    sender.reflect(1, b"before").await?;
    sender.ephemeral(2, b"typing").await?;
    sender.reflect(3, b"after").await?;
    for (envelope, ephemeral) in [(&b"before"[..], false), (b"typing", true), (b"after", false)] {
        let message = receiver.reflected().await?;
        ensure!(message.envelope() == envelope, "it came out of line");
        ensure!(message.flags().ephemeral == ephemeral, "the flag is wrong");
    }
    Ok(())
}

async fn ephemeral_no_ack(world: &World) -> Done {
    let mut sender = world.joins(1).await?;
    let _receiver = world.joins(2).await?;
    sender.ephemeral(1, b"typing").await?;
    let heard = sender.heard_before_answer().await?;
    ensure!(!heard.iter().any(|it| matches!(it, ToDevice::ReflectAck(_))), "it was acknowledged");
    Ok(())
}

async fn ephemeral_not_kept(world: &World) -> Done {
    let mut sender = with_absent(world).await?;
    let mut here = world.joins(3).await?;
    sender.ephemeral(1, b"typing").await?;
    here.reflected().await?;
    here.leaves().await?;
    for device in [2, 3] {
        let (_, queue) = world.queue_of(device).await?;
        ensure!(queue.is_empty(), "it was kept for device {device}");
    }
    Ok(())
}

const NEVER_ISSUED: ReflectedId = ReflectedId(0x7eee_eeee);

async fn never_issued(world: &World) -> Done {
    let mut line = world.joins(1).await?;
    line.ack(NEVER_ISSUED).await?;
    line.ends_with(CloseCode::UnknownMessageAcked).await
}

async fn never_issued_alone(world: &World) -> Done {
    let mut bystander = world.joins(1).await?;
    let mut line = world.joins(2).await?;
    line.ack(NEVER_ISSUED).await?;
    line.raw.send_close(1000, "").await.unwrap_or_default();
    line.ended().await?;
    bystander.is_alive().await
}

async fn ephemeral_acked(world: &World) -> Done {
    let mut sender = world.joins(1).await?;
    let mut receiver = world.joins(2).await?;
    sender.ephemeral(1, b"typing").await?;
    let id = receiver.reflected().await?.id();
    receiver.ack(id).await?;
    receiver.is_alive().await
}

async fn acked_twice(world: &World) -> Done {
    let mut sender = world.joins(1).await?;
    let mut receiver = world.joins(2).await?;
    sender.reflect(1, b"x").await?;
    let id = receiver.reflected().await?.id();
    receiver.ack(id).await?;
    receiver.ack(id).await?;
    receiver.is_alive().await?;
    receiver.leaves().await?;
    let (mut receiver, queue) = world.queue_of(2).await?;
    ensure!(queue.is_empty(), "it came again all the same");
    receiver.ack(id).await?;
    receiver.is_alive().await
}

async fn acked_out_of_order(world: &World) -> Done {
    let mut sender = world.joins(1).await?;
    let mut receiver = world.joins(2).await?;
    reflects_some(&mut sender, 0..4).await?;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(receiver.reflected().await?.id());
    }
    for id in ids.iter().rev().take(3) {
        receiver.ack(*id).await?;
    }
    receiver.is_alive().await?;
    receiver.leaves().await?;
    same(&world.queue_of(2).await?.1, 0..1)
}

async fn acked_before_resent(world: &World) -> Done {
    let mut sender = world.joins(1).await?;
    let mut receiver = world.joins(2).await?;
    sender.reflect(1, b"x").await?;
    let id = receiver.reflected().await?.id();
    receiver.leaves().await?;
    // Right behind ClientHello, so before the backlog is out; it may come again on this connection, but not on the next.
    let (mut receiver, hello) = world.greeted(&world.config(2).existing()).await?;
    use crate::wire::d2m::FromDevice;
    let early = [FromDevice::ClientHello(Box::new(hello)), FromDevice::ReflectedAck(id)];
    world.soon("room to write", receiver.raw.send_all(&early)).await??;
    receiver.dry().await?;
    receiver.is_alive().await?;
    receiver.leaves().await?;
    let (_, queue) = world.queue_of(2).await?;
    ensure!(queue.is_empty(), "the acknowledgement was lost");
    Ok(())
}

async fn short_envelope(world: &World) -> Done {
    let mut sender = world.joins(1).await?;
    let mut receiver = world.joins(2).await?;
    for (id, envelope) in (1..).zip([&b""[..], b"1", b"12345678"]) {
        sender.reflects(id, envelope).await?;
        ensure!(
            receiver.reflected().await?.envelope() == envelope,
            "an envelope of {} bytes was changed",
            envelope.len()
        );
    }
    Ok(())
}

async fn no_flow_control(world: &World) -> Done {
    /// More than any sensible window.
    const MANY: u32 = 300;
    let mut sender = world.joins(1).await?;
    let mut receiver = world.joins(2).await?;
    receiver.dry().await?;
    reflects_some(&mut sender, 0..MANY).await?;
    // Nothing is acknowledged, and still everything comes, and so do answers behind it.
    let heard = messages(receiver.heard_before_answer().await?);
    same(&heard, 0..MANY)
}

async fn same_timestamp(world: &World) -> Done {
    let mut sender = with_absent(world).await?;
    let mut here = world.joins(3).await?;
    let ack = sender.reflects(1, b"x").await?;
    let shown = here.reflected().await?.timestamp_ms();
    ensure!(shown == ack.timestamp_ms, "the sender is told {}, a receiver {shown}", ack.timestamp_ms);
    let (_, queue) = world.queue_of(2).await?;
    let later = queue.first().map(Reflected::timestamp_ms);
    ensure!(later == Some(ack.timestamp_ms), "the sender is told {}, a later receiver {later:?}", ack.timestamp_ms);
    Ok(())
}

async fn times_grow(world: &World) -> Done {
    let mut sender = world.joins(1).await?;
    let acks = reflects_some(&mut sender, 0..SOME).await?;
    ensure!(acks.is_sorted_by_key(|ack| ack.timestamp_ms), "they went back");
    let now = world.target.clock.now().wall_ms;
    let off = acks.iter().map(|ack| ack.timestamp_ms.abs_diff(now)).max().unwrap_or_default();
    ensure!(off < 20 * 60 * 1_000, "they are off by {} s", off / 1_000);
    Ok(())
}

async fn acks_in_order(world: &World) -> Done {
    let mut sender = world.joins(1).await?;
    let _receiver = world.joins(2).await?;
    let all: Vec<_> = (0..SOME).map(|id| reflect(id, &body(id), false)).collect();
    world.soon("room to write", sender.raw.send_all(&all)).await??;
    let mut got = Vec::new();
    while got.len() < all.len() {
        let ack = sender.wait("a reflect-ack", |it| if let ToDevice::ReflectAck(ack) = it { Some(ack) } else { None });
        got.push(ack.await?.reflect_id.0);
    }
    ensure!(got.iter().copied().eq(0..SOME), "they came as {got:?}");
    Ok(())
}

async fn one_order(world: &World) -> Done {
    let mut senders = [world.joins(1).await?, world.joins(2).await?];
    let mut receivers = [world.joins(3).await?, world.joins(4).await?];
    for id in 0..SOME {
        for (sender, name) in senders.iter_mut().zip(["a", "b"]) {
            sender.reflect(id, format!("{name}{id}").as_bytes()).await?;
        }
    }
    let mut orders = Vec::new();
    for receiver in &mut receivers {
        let mut order = Vec::new();
        while order.len() < 2 * usize::try_from(SOME).unwrap_or_default() {
            order.push(receiver.reflected().await?.envelope().to_vec());
        }
        orders.push(order);
    }
    ensure!(orders.windows(2).all(|pair| pair.first() == pair.last()), "two devices saw two orders");
    for name in [b'a', b'b'] {
        let of_one = orders.first().into_iter().flatten().filter(|it| it.first() == Some(&name));
        let expected = (0..SOME).map(|id| [&[name], id.to_string().as_bytes()].concat());
        ensure!(of_one.cloned().eq(expected), "messages of one sender came out of their order");
    }
    Ok(())
}

async fn alone(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    one.reflects(1, b"x").await.map(drop)
}

async fn any_reflect_id(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    let _other = world.joins(2).await?;
    for id in [0, u32::MAX, 0x8000_0000, 5, 5, 0] {
        one.reflects(id, b"x").await?;
    }
    Ok(())
}

async fn ids_grow(world: &World) -> Done {
    let mut sender = world.joins(1).await?;
    let mut receiver = world.joins(2).await?;
    let mut last = None;
    for round in 0..3 {
        for ephemeral in [false, true] {
            sender.say(&reflect(round, b"x", ephemeral)).await?;
            let id = receiver.reflected().await?.id();
            ensure!(last.is_none_or(|last| id > last), "{} came after {last:?}", id.0);
            last = Some(id);
            receiver.ack(id).await?;
        }
        receiver.is_alive().await?;
        receiver.leaves().await?;
        receiver = world.returns(2).await?.0;
    }
    Ok(())
}

async fn queue_limit(world: &World) -> Done {
    /// The specification's default, and one more.
    const TOO_MANY: u32 = 100_001;
    const BATCH: u32 = 500;
    let mut sender = world.joins(1).await?;
    world.joins(2).await?.leaves().await?;
    world.until_away(&mut sender, 2).await?;
    let mut next = 0;
    while next < TOO_MANY {
        let batch: Vec<_> = (next..next + BATCH).map(|id| reflect(id, b"x", false)).collect();
        world.soon("room to write", sender.raw.send_all(&batch)).await??;
        next += BATCH;
        sender.reflect_ack(next - 1).await?;
        let devices = sender.devices().await?;
        if !devices.0.contains_key(&crate::wire::d2m::DeviceId(2)) {
            let ended = world.turned_away(&world.config(2).existing()).await?;
            return code(&ended, CloseCode::DeviceSlotStateMismatch);
        }
    }
    let heard = sender.heard_before_answer().await?;
    Err(format!("{next} messages wait for the slot; heard since: {}", names(&heard)).into())
}
