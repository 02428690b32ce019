//! The pipe to the chat server, which is played here (section 9 and what belongs to it).

use super::world::{Case, Done, Finding, Line, Needs, Visitor, World, case, ensure, reflect};
use crate::client::DeviceConfig;
use crate::wire::d2m::{CloseCode, FromDevice, PAYLOAD_MAX, ToDevice};

pub(super) const CASES: &[Case] = &[
    case!("D2M-12.2a", Stage, early_bytes_first, "What is proxied before ClientHello reaches the chat server first."),
    case!("D2M-A14a", early_too_much, "More than 8 KiB proxied before ClientHello are closed with 4010."),
    case!("D2M-A14b", Stage, nobody_dialled, "No chat server is dialled for somebody who proved nothing."),
    case!("D2M-A15a", Stage, held_back, "What the chat server says comes after ServerInfo."),
    case!("D2M-12.17a", Stage, largest_container, "A container of 65536 bytes is accepted."),
    case!("D2M-12.19a", Stage, one_segment, "Hello, ack and frames in one TCP segment become one proxy payload each."),
    case!("D2M-12.19b", Stage, byte_by_byte, "The same byte by byte."),
    case!(
        "D2M-12.19c",
        Stage,
        upstream_ends,
        "When the chat server ends, its last whole frame comes before 4000, an incomplete one not at all."
    ),
    case!(
        "D2M-12.19d",
        Unreachable,
        unreachable,
        "A chat server that cannot be reached is 4001, once something is proxied and not before."
    ),
    case!("D2M-12.20c", Stage, split_login, "A login in two proxy payloads is one stream for the chat server."),
    case!("D2M-9.1a", empty_payload, "An empty proxy payload does nothing."),
    case!("D2M-9.2a", Stage, empty_frame, "A frame of length zero is a proxy payload of two bytes."),
    case!("D2M-9.2b", Stage, frame_too_long, "A frame that fits no container is 4009."),
    case!("D2M-9.3a", Stage, socket_ends, "When the WebSocket ends, so does the connection to the chat server."),
    case!(
        "D2M-9.3b",
        Stage,
        old_before_new,
        "The chat server sees a device's old connection end before its new one begins."
    ),
    case!("D2M-9.3c", Stage, own_connections, "Each device has a connection to the chat server of its own."),
    case!("D2M-A38b", Stage slow 10, backlog_shares, "A long backlog does not starve the chat server's bytes."),
];

/// What a chat server says: hello, ack, frames of 5, 2 and 3 bytes.
fn stream() -> Vec<u8> {
    [&[1; 80][..], &[2; 32], &[3, 0, 9, 9, 9], &[0, 0], &[1, 0, 7]].concat()
}
const UNITS: [usize; 5] = [80, 32, 5, 2, 3];

/// A device that talks to its chat server.
async fn connected(world: &World, config: &DeviceConfig) -> Result<(Line, Visitor), Finding> {
    let (mut line, _) = world.admitted(config).await?;
    let mut visit = world.expects_visit()?;
    line.say(&visit.proxy()).await?;
    Ok((line, visit.arrives().await?))
}

async fn early_bytes_first(world: &World) -> Done {
    let mut line = world.open(&world.config(1)).await?;
    let mut visit = world.expects_visit()?;
    line.say(&visit.proxy()).await?;
    let hello = world.answer(&mut line, &world.config(1)).await?;
    let behind = [FromDevice::ClientHello(Box::new(hello)), FromDevice::Proxy(vec![2; 3].into())];
    world.soon("room to write", line.raw.send_all(&behind)).await??;
    let got = visit.arrives().await?.hears(3).await?;
    ensure!(got == [2; 3], "{got:02x?} came behind them");
    Ok(())
}

async fn early_too_much(world: &World) -> Done {
    let mut line = world.open(&world.config(1)).await?;
    line.say(&FromDevice::Proxy(vec![1; 8_192].into())).await?;
    line.closes_for(FromDevice::Proxy(vec![1].into()).encode()).await
}

async fn nobody_dialled(world: &World) -> Done {
    /// A mediator that dials does it at once.
    const GRACE: std::time::Duration = std::time::Duration::from_millis(200);
    let mut line = world.open(&world.config(1)).await?;
    let mut visit = world.expects_visit()?;
    line.say(&visit.proxy()).await?;
    line.server_hello().await?;
    tokio::time::sleep(GRACE).await;
    ensure!(!visit.has_arrived(), "it was");
    Ok(())
}

async fn held_back(world: &World) -> Done {
    let mut line = world.open(&world.config(1)).await?;
    let mut visit = world.expects_visit()?;
    line.say(&visit.proxy()).await?;
    let hello = world.answer(&mut line, &world.config(1)).await?;
    line.say(&FromDevice::ClientHello(Box::new(hello))).await?;
    visit.arrives().await?.says(&[7; 80]).await?;
    line.server_info().await?;
    let units = line.units(1).await?;
    ensure!(units.iter().all(|unit| unit[..] == [7; 80]), "the bytes were changed");
    Ok(())
}

async fn largest_container(world: &World) -> Done {
    let (mut line, mut visitor) = connected(world, &world.config(1)).await?;
    line.say(&FromDevice::Proxy(vec![5; PAYLOAD_MAX].into())).await?;
    let got = visitor.hears(PAYLOAD_MAX).await?;
    ensure!(got.iter().all(|byte| *byte == 5), "the bytes were changed");
    Ok(())
}

async fn cut(world: &World, piece: usize) -> Done {
    let (mut line, mut visitor) = connected(world, &world.config(1)).await?;
    for bytes in stream().chunks(piece) {
        visitor.says(bytes).await?;
        if piece == 1 {
            tokio::task::yield_now().await;
        }
    }
    let units = line.units(UNITS.len()).await?;
    let lengths: Vec<usize> = units.iter().map(bytes::Bytes::len).collect();
    ensure!(lengths == UNITS, "payloads of {lengths:?} bytes came, for units of {UNITS:?}");
    ensure!(units.concat() == stream(), "the bytes were changed");
    Ok(())
}

async fn one_segment(world: &World) -> Done {
    cut(world, usize::MAX).await
}

async fn byte_by_byte(world: &World) -> Done {
    cut(world, 1).await
}

async fn upstream_ends(world: &World) -> Done {
    let (mut line, mut visitor) = connected(world, &world.config(1)).await?;
    visitor.says(&[&stream()[..], &[20, 0, 1]].concat()).await?;
    drop(visitor);
    let mut units = Vec::new();
    let ended = loop {
        match world.soon("the end of the connection", line.raw.recv()).await? {
            Ok(ToDevice::Proxy(unit)) => units.push(unit.len()),
            Ok(_) => {}
            Err(ended) => break ended,
        }
    };
    ensure!(units == UNITS, "payloads of {units:?} bytes came, for units of {UNITS:?}");
    super::world::code(&ended, CloseCode::ChatServerClosed)
}

async fn unreachable(world: &World) -> Done {
    let group = world.target.unreachable.clone();
    let server_group = group.ok_or_else(|| Finding::Untried("no unreachable server group is known".to_owned()))?;
    let (mut line, _) = world.admitted(&DeviceConfig { server_group, ..world.config(1) }).await?;
    line.dry().await?;
    line.is_alive().await?;
    line.say(&FromDevice::Proxy(vec![1; 48].into())).await?;
    line.ends_with(CloseCode::ChatServerUnreachable).await
}

async fn split_login(world: &World) -> Done {
    let (mut line, mut visitor) = connected(world, &world.config(1)).await?;
    line.say(&FromDevice::Proxy(vec![1; 144].into())).await?;
    line.say(&FromDevice::Proxy(vec![2; 87].into())).await?;
    let login = visitor.hears(231).await?;
    ensure!(login == [&[1; 144][..], &[2; 87]].concat(), "the bytes were changed");
    Ok(())
}

async fn empty_payload(world: &World) -> Done {
    let mut line = world.joins(1).await?;
    line.say(&FromDevice::Proxy(bytes::Bytes::new())).await?;
    line.is_alive().await
}

async fn empty_frame(world: &World) -> Done {
    let (mut line, mut visitor) = connected(world, &world.config(1)).await?;
    visitor.says(&[&[0; 112][..], &[0, 0]].concat()).await?;
    let lengths: Vec<usize> = line.units(3).await?.iter().map(bytes::Bytes::len).collect();
    ensure!(lengths == [80, 32, 2], "payloads of {lengths:?} bytes came");
    Ok(())
}

async fn frame_too_long(world: &World) -> Done {
    let (mut line, mut visitor) = connected(world, &world.config(1)).await?;
    visitor.says(&[&[0; 112][..], &65_531_u16.to_le_bytes()].concat()).await?;
    line.ends_with(CloseCode::ChatProxyError).await
}

async fn socket_ends(world: &World) -> Done {
    let (line, mut visitor) = connected(world, &world.config(1)).await?;
    drop(line);
    visitor.is_left().await
}

async fn old_before_new(world: &World) -> Done {
    let (_old, mut visitor) = connected(world, &world.config(1)).await?;
    let (mut new, _) = world.admitted(&world.config(1).existing()).await?;
    // Admitted means that the old one is over.
    let left = tokio::time::timeout(std::time::Duration::from_secs(1), visitor.is_left()).await;
    ensure!(left.is_ok(), "the new one is admitted, the old one goes on");
    new.is_alive().await
}

async fn own_connections(world: &World) -> Done {
    let (mut one, mut first) = connected(world, &world.config(1)).await?;
    let (mut two, mut second) = connected(world, &world.config(2)).await?;
    first.says(&[1; 80]).await?;
    second.says(&[2; 80]).await?;
    for (line, byte) in [(&mut one, 1), (&mut two, 2)] {
        let units = line.units(1).await?;
        ensure!(units.iter().all(|unit| unit[..] == [byte; 80]), "a device got another's bytes");
    }
    Ok(())
}

async fn backlog_shares(world: &World) -> Done {
    /// Together more than the buffers of sockets hold.
    const BACKLOG: u32 = 600;
    const ENVELOPE: usize = 60_000;
    const BATCH: u32 = 20;
    let mut sender = world.joins(1).await?;
    world.joins(2).await?.leaves().await?;
    for first in (0..BACKLOG).step_by(20) {
        let batch: Vec<_> = (first..first + BATCH).map(|id| reflect(id, &[7; ENVELOPE], false)).collect();
        world.soon("room to write", sender.raw.send_all(&batch)).await??;
        sender.reflect_ack(first + BATCH - 1).await?;
    }
    // Nothing of the backlog is read before the chat server has spoken.
    let (mut line, mut visitor) = connected(world, &world.config(2).existing()).await?;
    visitor.says(&[2; 80]).await?;
    let mut before = 0;
    loop {
        match line.next("the chat server's bytes").await? {
            ToDevice::Proxy(_) => return Ok(()),
            ToDevice::Reflected(_) => before += 1,
            ToDevice::ReflectionQueueDry => {
                return Err(format!("all {before} messages of the backlog came first").into());
            }
            _ => {}
        }
    }
}
