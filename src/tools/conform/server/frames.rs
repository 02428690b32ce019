//! Containers: bytes that are ignored, bytes that are refused, and sizes (section 2).

use super::world::{Case, Done, Finding, Needs, World, case, ensure, reflect};
use crate::wire::d2m::{CONTAINER_MAX, ENVELOPE_MAX, FromDevice, ToDevice};

pub(super) const CASES: &[Case] = &[
    case!("D2M-2.1a", reserved_sent, "Reserved bytes are zero in whatever the mediator says."),
    case!("D2M-2.1b", fragmented, "A container may come in several WebSocket frames."),
    case!("D2M-2.2a", lenient_empty, "Empty payloads may carry unknown fields."),
    case!("D2M-2.3a", reflected_header, "A reflected message has header-length 16."),
    case!("D2M-2.3b", long_ack, "A reflected-ack may be longer than 8 bytes."),
    case!("D2M-12.17b", container_too_long, "A container of 65537 bytes is closed with 4010."),
    case!("D2M-12.17c", envelope_too_long, "A reflect with an envelope of 65517 bytes is closed with 4010."),
    case!("D2M-12.17d", longest_envelope, "An envelope of 65516 bytes is delivered in a container of 65536."),
    case!("D2M-2.5d", message_too_long, "A WebSocket message far beyond the limit is closed with 4010 or 1009."),
    case!("D2M-12.18a", too_short, "A message of less than 4 bytes is closed with 4010."),
    case!("D2M-12.18b", text, "A text message is closed with 4010."),
    case!("D2M-12.18c", wrong_direction, "A payload that only the mediator may send is closed with 4010."),
    case!("D2M-12.18d", unknown_type, "An unknown payload type is closed with 4010."),
    case!("D2M-12.18e", short_header, "A reflect whose header-length is 7, or beyond its end, is closed with 4010."),
    case!("D2M-12.18f", long_header, "A reflect whose header-length is 9 is delivered without the byte more."),
    case!("D2M-12.18g", truncated, "Truncated payloads are closed with 4010."),
    case!("D2M-12.18h", bystander, "Who breaks the protocol disturbs no other device."),
    case!("D2M-A26a", reserved_received, "Reserved bytes and unknown flags are ignored."),
    case!("D2M-A26b", flags_not_forwarded, "Unknown flags and reserved bytes are not passed on."),
    case!("D2M-12.20b", ios_ack, "A reflected-ack with 08 00 00 00 in its reserved bytes is understood."),
];

/// Looks at the bytes that no decoder looks at.
fn reserved(bytes: &[u8]) -> Done {
    ensure!(matches!(bytes.get(..4), Some([_, 0, 0, 0])), "a container begins with {:02x?}", bytes.get(..4));
    if let Some([0x81, _, _, _, reserved @ ..]) = bytes.get(..8) {
        ensure!(*reserved == [0; 4], "a reflect-ack begins with {reserved:02x?}");
    }
    if let Some([0x82, _, _, _, _, reserved, ..]) = bytes.get(..8) {
        ensure!(*reserved == 0, "a reflected message has {reserved:02x} in its reserved byte");
    }
    Ok(())
}

async fn reserved_sent(world: &World) -> Done {
    let mut first = world.open(&world.config(1)).await?;
    reserved(&first.next_bytes("ServerHello").await?)?;
    let (mut one, hello) = world.greeted(&world.config(1)).await?;
    one.say(&FromDevice::ClientHello(Box::new(hello))).await?;
    reserved(&one.next_bytes("ServerInfo").await?)?;
    let mut two = world.joins(2).await?;
    one.begin(b"scope", 0).await?;
    one.reflect(1, b"x").await?;
    one.say(&FromDevice::CommitTransaction).await?;
    two.reflect(2, b"y").await?;
    two.say(&FromDevice::DropDevice(crate::wire::d2m::DeviceId(99))).await?;
    for line in [&mut one, &mut two] {
        line.say(&FromDevice::GetDevicesInfo).await?;
        loop {
            let bytes = line.next_bytes("DevicesInfo").await?;
            reserved(&bytes)?;
            if bytes.first() == Some(&0x31) {
                break;
            }
        }
    }
    Ok(())
}

async fn fragmented(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    let mut two = world.joins(2).await?;
    let container = reflect(1, b"in pieces", false).encode();
    let (head, rest) = container.split_at(3);
    let (middle, tail) = rest.split_at(7);
    world.soon("room to write", one.raw.send_fragments(&[head, middle, &[], tail])).await??;
    ensure!(two.reflected().await?.envelope() == b"in pieces", "it was changed");
    Ok(())
}

async fn lenient_empty(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    one.say_bytes(vec![0x30, 0, 0, 0, 0x78, 1]).await?;
    one.wait("DevicesInfo", |it| matches!(it, ToDevice::DevicesInfo(_)).then_some(())).await?;
    one.begins(b"scope", 0).await?;
    one.say_bytes(vec![0x42, 0, 0, 0, 0x78, 1]).await?;
    one.wait_for("CommitTransactionAck", ToDevice::CommitTransactionAck).await
}

/// A reflected message as it comes over the wire.
async fn as_reflected(world: &World, container: Vec<u8>) -> Result<bytes::Bytes, Finding> {
    let mut one = world.joins(1).await?;
    let mut two = world.joins(2).await?;
    one.say_bytes(container).await?;
    loop {
        let bytes = two.next_bytes("a reflected message").await?;
        if bytes.first() == Some(&0x82) {
            return Ok(bytes);
        }
    }
}

async fn reflected_header(world: &World) -> Done {
    let bytes = as_reflected(world, reflect(1, b"x", false).encode().to_vec()).await?;
    ensure!(bytes.get(4) == Some(&16), "header-length is {:?}", bytes.get(4));
    ensure!(bytes.get(20..) == Some(b"x"), "the envelope does not follow");
    Ok(())
}

/// Reflects, acknowledges with `head`, the id and `tail`, and shows that it counts.
async fn acked_by(world: &World, head: &[u8], tail: &[u8]) -> Done {
    let mut one = world.joins(1).await?;
    let mut two = world.joins(2).await?;
    one.reflect(1, b"x").await?;
    let id = two.reflected().await?.id().0;
    two.say_bytes([head, &id.to_le_bytes(), tail].concat()).await?;
    two.is_alive().await?;
    two.leaves().await?;
    let (_, queue) = world.queue_of(2).await?;
    ensure!(queue.is_empty(), "it was not understood");
    Ok(())
}

async fn long_ack(world: &World) -> Done {
    acked_by(world, &[0x83, 0, 0, 0, 0, 0, 0, 0], &[1, 2, 3]).await
}

async fn ios_ack(world: &World) -> Done {
    acked_by(world, &[0x83, 0, 0, 0, 8, 0, 0, 0], &[]).await
}

async fn container_too_long(world: &World) -> Done {
    world.joins(1).await?.closes_for(vec![0; CONTAINER_MAX + 1]).await
}

async fn envelope_too_long(world: &World) -> Done {
    let one = world.joins(1).await?;
    let mut two = world.joins(2).await?;
    two.dry().await?;
    one.closes_for(reflect(1, &vec![6; ENVELOPE_MAX + 1], false).encode()).await
}

async fn longest_envelope(world: &World) -> Done {
    let bytes = as_reflected(world, reflect(1, &vec![6; ENVELOPE_MAX], false).encode().to_vec()).await?;
    ensure!(bytes.len() == CONTAINER_MAX, "it came in a container of {}", bytes.len());
    Ok(())
}

async fn message_too_long(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    let _cut_short = one.raw.send_binary(vec![0; 300_000]).await;
    let ended = one.ended().await?;
    ensure!(matches!(ended.code(), Some(4010 | 1009)), "the connection was {ended}");
    Ok(())
}

async fn each_is_refused(world: &World, containers: &[&[u8]]) -> Done {
    for (device, container) in (1..).zip(containers) {
        let line = world.joins(device).await?;
        if let Err(Finding::Broken(why)) = line.closes_for(container.to_vec()).await {
            return Err(format!("{container:02x?}: {why}").into());
        }
    }
    Ok(())
}

async fn too_short(world: &World) -> Done {
    each_is_refused(world, &[&[], &[0], &[0x30, 0, 0]]).await
}

async fn text(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    let _refused = one.raw.send_text("hello").await;
    one.ends_with(crate::wire::d2m::CloseCode::ProtocolError).await
}

async fn wrong_direction(world: &World) -> Done {
    each_is_refused(world, &[&[0x12, 0, 0, 0], &[0x20, 0, 0, 0], &[0x45, 0, 0, 0]]).await
}

async fn unknown_type(world: &World) -> Done {
    each_is_refused(world, &[&[0x77, 0, 0, 0], &[0xff, 0, 0, 0, 1]]).await
}

async fn short_header(world: &World) -> Done {
    let header = |length| [0x80, 0, 0, 0, length, 0, 0, 0, 1, 0, 0, 0];
    each_is_refused(world, &[&header(7), &header(0), &header(9), &header(200)]).await
}

async fn long_header(world: &World) -> Done {
    let bytes = as_reflected(world, [&[0x80, 0, 0, 0, 9, 0, 0, 0, 4, 0, 0, 0, 0xee][..], b"envelope"].concat()).await?;
    ensure!(bytes.get(20..) == Some(b"envelope"), "{} bytes of envelope came", bytes.len().saturating_sub(20));
    Ok(())
}

async fn truncated(world: &World) -> Done {
    let reflect = [0x80, 0, 0, 0, 8, 0, 0, 0];
    let ack = [0x83, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0];
    each_is_refused(world, &[&reflect, &ack, &[0x32, 0, 0, 0, 0xff], &[0x40, 0, 0, 0, 0x0a, 9, 1]]).await
}

async fn bystander(world: &World) -> Done {
    let mut bystander = world.joins(9).await?;
    for container in [&[][..], &[0x77, 0, 0, 0], &[0x80, 0, 0, 0, 8, 0, 0, 0]] {
        let mut line = world.joins(u64::try_from(container.len()).unwrap_or_default() + 10).await?;
        let _refused = line.raw.send_binary(container.to_vec()).await;
        let _over = line.raw.send_close(1000, "").await;
        line.ended().await?;
    }
    bystander.is_alive().await
}

/// Everything that means nothing is set, but the ephemeral flag.
const CROWDED: &[u8] = &[0x80, 1, 2, 3, 8, 7, 0xfe, 0xff, 4, 0, 0, 0];

async fn reserved_received(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    one.say_bytes(vec![0x30, 1, 2, 3]).await?;
    one.wait("DevicesInfo", |it| matches!(it, ToDevice::DevicesInfo(_)).then_some(())).await?;
    one.say_bytes([CROWDED, b"x"].concat()).await?;
    one.reflect_ack(4).await.map(drop)
}

async fn flags_not_forwarded(world: &World) -> Done {
    let bytes = as_reflected(world, [CROWDED, b"x"].concat()).await?;
    ensure!(bytes.get(4..8) == Some(&[16, 0, 0, 0]), "the header begins with {:02x?}", bytes.get(4..8));
    Ok(())
}
