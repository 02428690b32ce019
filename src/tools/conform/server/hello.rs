//! The handshake, slots, the order of the first payloads, the leader (sections 3 and 5).

use super::world::{Case, Done, Finding, Line, Needs, World, case, code, ensure, names, slot};
use crate::client::DeviceConfig;
use crate::wire::d2m::{
    BeginTransaction, ClientHello, CloseCode, DeviceId, ENCRYPTED_DEVICE_INFO_MAX, FromDevice, ReflectedId,
    SlotExpiration, SlotState, SlotsExhausted, ToDevice,
};

pub(super) const CASES: &[Case] = &[
    case!("D2M-12.1a", speaks_first, "ServerHello is the first payload and comes unprompted."),
    case!("D2M-12.1b", never_the_same, "Neither ephemeral key nor challenge is used for a second connection."),
    case!("D2M-A13a", version_zero, "The mediator announces version 0."),
    case!("D2M-12.3a", wrong_proof, "A wrong answer to the challenge is closed with 4010."),
    case!("D2M-12.3b", wrong_version, "A ClientHello of version 1 is closed with 4110."),
    case!("D2M-12.3c", existing_unknown, "Expecting a slot that does not exist is closed with 4115."),
    case!("D2M-12.3d", new_known, "Expecting no slot where there is one is closed with 4115."),
    case!(
        "D2M-12.3e",
        new_known_survivor,
        "The live connection of a device survives a login that is closed with 4115."
    ),
    case!("D2M-12.3f", proof_has_no_effect, "Who proves nothing registers nothing and ends nobody's connection."),
    case!("D2M-A12a", version_first, "The version is looked at before anything else of a ClientHello."),
    case!(
        "D2M-A10a",
        explicit_new,
        "expected_device_slot_state means NEW when it is absent and when it is an explicit zero."
    ),
    case!("D2M-A16a", pipelined, "What is sent right behind ClientHello is answered in order, after ServerInfo."),
    case!("D2M-3.1a", too_early, "A payload before ClientHello that is no proxy payload is closed with 4010."),
    case!("D2M-3.1b", second_hello, "A second ClientHello is closed with 4010."),
    case!("D2M-3.3a", unknown_enums, "Unknown enum numbers in ClientHello are closed with 4010."),
    case!(
        "D2M-3.3b",
        short_response,
        "A ClientHello whose response is not 72 bytes, or no protobuf, is closed with 4010."
    ),
    case!("D2M-2.5a", device_info_limit, "A device info of 4096 bytes is accepted, a longer one closed with 4010."),
    case!("D2M-3.5a", server_info, "ServerInfo tells the present time, within 20 minutes, and at least one slot."),
    case!("D2M-3.5b", policy_of_last_login, "Slot policy and device info are those of the last login."),
    case!(
        "D2M-12.4a",
        full_reject,
        "A new device that wants to be rejected when every slot is taken is closed with 4111."
    ),
    case!(
        "D2M-12.4b",
        full_drop,
        "With DROP_LEAST_RECENT a device is closed with 4113 and gone, and the new one is admitted."
    ),
    case!("D2M-A24a", lru_absent_first, "Least recently used is a disconnected device, even if it was connected last."),
    case!("D2M-A24b", lru_oldest, "When all are connected, the one connected longest is least recently used."),
    case!("D2M-A11a", mismatch_first, "A login that is closed with 4115 makes no room for itself."),
    case!("D2M-12.5a", duplicate, "The same device twice: the older connection is closed with 4112."),
    case!("D2M-12.5b", duplicate_state, "The same device twice: the newer connection is told that its slot exists."),
    case!("D2M-12.6a", dry_once, "ReflectionQueueDry comes exactly once, also for an empty queue."),
    case!("D2M-12.6b", leader_after_dry, "RolePromotedToLeader never comes before ReflectionQueueDry."),
    case!("D2M-12.6c", one_leader, "There is only one leader."),
    case!("D2M-12.6d", next_leader, "When the leader leaves, the next device is promoted."),
    case!("D2M-A17a", dry_longest, "The device that has been dry longest leads next."),
    case!("D2M-A17b", no_demotion, "A returning device does not take the lead back."),
    case!("D2M-A37a", slow 25, handshake_timeout, "A handshake that takes more than 20 s is closed with 4013."),
    case!("D2M-A34a", slow 690, volatile, "A volatile slot is gone 10 minutes after its device, a persistent one stays."),
    case!("D2M-A31a", slow 160, no_pongs, "A device that answers no ping and says something now and then stays connected."),
    case!("D2M-8.1a", closing_handshake, "A device that closes with 1000 is answered with 1000."),
    case!("D2M-8.3a", slow 130, idle, "A device of which nothing is heard for 120 s is closed with 4013."),
];

async fn speaks_first(world: &World) -> Done {
    world.open(&world.config(1)).await?.server_hello().await.map(drop)
}

async fn never_the_same(world: &World) -> Done {
    let mut seen = Vec::new();
    for _ in 0..3 {
        let hello = world.open(&world.config(1)).await?.server_hello().await?;
        seen.extend([hello.esk, hello.challenge]);
    }
    let all = seen.len();
    seen.sort_unstable();
    seen.dedup();
    ensure!(seen.len() == all, "the same bytes were sent to two connections");
    Ok(())
}

async fn version_zero(world: &World) -> Done {
    let hello = world.open(&world.config(1)).await?.server_hello().await?;
    ensure!(hello.version == 0, "ServerHello says version {}", hello.version);
    Ok(())
}

/// A ClientHello whose proof is wrong by a bit.
async fn liar(world: &World, config: &DeviceConfig) -> Result<Line, Finding> {
    let (mut line, mut hello) = world.greeted(config).await?;
    if let Some(byte) = hello.response.last_mut() {
        *byte ^= 1;
    }
    line.say(&FromDevice::ClientHello(Box::new(hello))).await?;
    Ok(line)
}

async fn wrong_proof(world: &World) -> Done {
    liar(world, &world.config(1)).await?.ends_with(CloseCode::ProtocolError).await?;
    // The proof of another connection.
    let (_, stale) = world.greeted(&world.config(1)).await?;
    let mut line = world.open(&world.config(1)).await?;
    line.server_hello().await?;
    line.closes_for(FromDevice::ClientHello(Box::new(stale)).encode()).await
}

async fn wrong_version(world: &World) -> Done {
    let (line, hello) = world.greeted(&world.config(1)).await?;
    let mut line = line;
    // Prost keeps the last value of a field.
    let versioned = [&FromDevice::ClientHello(Box::new(hello)).encode()[..], &[0x08, 1]].concat();
    line.say_bytes(versioned).await?;
    line.ends_with(CloseCode::UnsupportedVersion).await
}

async fn version_first(world: &World) -> Done {
    let mut line = world.open(&world.config(1)).await?;
    line.server_hello().await?;
    // Version 1, and a response that is a number in that version.
    line.say_bytes(vec![0x11, 0, 0, 0, 0x08, 0x01, 0x10, 0x05]).await?;
    line.ends_with(CloseCode::UnsupportedVersion).await
}

async fn existing_unknown(world: &World) -> Done {
    let ended = world.turned_away(&world.config(1).existing()).await?;
    code(&ended, CloseCode::DeviceSlotStateMismatch)
}

async fn new_known(world: &World) -> Done {
    let _one = world.joins(1).await?;
    code(&world.turned_away(&world.config(1)).await?, CloseCode::DeviceSlotStateMismatch)
}

async fn new_known_survivor(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    world.turned_away(&world.config(1)).await?;
    one.is_alive().await
}

async fn proof_has_no_effect(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    liar(world, &world.config(1).existing()).await?.ended().await?;
    liar(world, &world.config(2)).await?.ended().await?;
    let devices = one.devices().await?;
    ensure!(devices.0.len() == 1, "the group has {} devices", devices.0.len());
    Ok(())
}

async fn explicit_new(world: &World) -> Done {
    for (device, zero) in [(1, &[][..]), (2, &[0x38, 0x00])] {
        let (mut line, hello) = world.greeted(&world.config(device)).await?;
        line.say_bytes([&FromDevice::ClientHello(Box::new(hello)).encode()[..], zero].concat()).await?;
        slot(&line.server_info().await?, SlotState::New)?;
    }
    Ok(())
}

async fn pipelined(world: &World) -> Done {
    let (mut line, hello) = world.greeted(&world.config(1)).await?;
    let begin = BeginTransaction { encrypted_scope: b"scope".to_vec(), ttl_s: 0 };
    let begin = FromDevice::BeginTransaction(begin);
    let behind = [FromDevice::ClientHello(Box::new(hello)), begin, FromDevice::GetDevicesInfo];
    world.soon("room to write", line.raw.send_all(&behind)).await??;
    line.server_info().await?;
    let heard = line.until("DevicesInfo", |it| matches!(it, ToDevice::DevicesInfo(_))).await?;
    ensure!(heard.contains(&ToDevice::BeginTransactionAck), "before the second answer came {}", names(&heard));
    Ok(())
}

async fn too_early(world: &World) -> Done {
    for payload in [FromDevice::GetDevicesInfo, FromDevice::ReflectedAck(ReflectedId(1))] {
        let mut line = world.open(&world.config(1)).await?;
        line.server_hello().await?;
        line.closes_for(payload.encode()).await?;
    }
    Ok(())
}

async fn second_hello(world: &World) -> Done {
    let (mut line, hello) = world.greeted(&world.config(1)).await?;
    let hello = FromDevice::ClientHello(Box::new(hello));
    line.say(&hello).await?;
    line.server_info().await?;
    line.closes_for(hello.encode()).await
}

async fn refused_hello(world: &World, change: impl Fn(&ClientHello) -> Vec<u8>) -> Done {
    let (line, hello) = world.greeted(&world.config(1)).await?;
    line.closes_for(change(&hello)).await
}

async fn unknown_enums(world: &World) -> Done {
    // Fields 4, 5 and 7: their last value counts.
    for field in [0x20, 0x28, 0x38] {
        let change = |hello: &ClientHello| {
            [&FromDevice::ClientHello(Box::new(hello.clone())).encode()[..], &[field, 9]].concat()
        };
        refused_hello(world, change).await?;
    }
    Ok(())
}

async fn short_response(world: &World) -> Done {
    refused_hello(world, |hello| {
        let encoded = FromDevice::ClientHello(Box::new(hello.clone())).encode();
        // The response again, a byte short of itself.
        [&encoded[..], &[0x12, 71], hello.response.get(1..).unwrap_or_default()].concat()
    })
    .await?;
    refused_hello(world, |_| vec![0x11, 0, 0, 0, 0xff]).await
}

async fn device_info_limit(world: &World) -> Done {
    for (device, len, fits) in [(1, ENCRYPTED_DEVICE_INFO_MAX, true), (2, ENCRYPTED_DEVICE_INFO_MAX + 1, false)] {
        let (mut line, mut hello) = world.greeted(&world.config(device)).await?;
        hello.encrypted_device_info = vec![1; len];
        let hello = FromDevice::ClientHello(Box::new(hello));
        if fits {
            line.say(&hello).await?;
            line.server_info().await?;
        } else {
            line.closes_for(hello.encode()).await?;
        }
    }
    Ok(())
}

async fn server_info(world: &World) -> Done {
    /// As clients compare it.
    const TOLERANCE_MS: u64 = 20 * 60 * 1_000;
    let (_line, info) = world.admitted(&world.config(1)).await?;
    slot(&info, SlotState::New)?;
    let off_by = info.current_time_ms.abs_diff(world.target.clock.now().wall_ms);
    ensure!(off_by < TOLERANCE_MS, "the mediator's clock is off by {} s", off_by / 1_000);
    ensure!(info.max_device_slots > 0, "there are no slots");
    Ok(())
}

async fn policy_of_last_login(world: &World) -> Done {
    let first = DeviceConfig { device_info: b"first".to_vec(), ..world.config(1) };
    world.admitted(&first).await?.0.leaves().await?;
    let second =
        DeviceConfig { device_info: b"second".to_vec(), slot_expiration: SlotExpiration::Volatile, ..first.existing() };
    let (mut line, _) = world.admitted(&second).await?;
    let devices = line.devices().await?;
    let own = devices.0.get(&DeviceId(1)).ok_or_else(|| "DevicesInfo lacks the asker".to_owned())?;
    let opened = world.key.open_device_info(&own.encrypted_device_info);
    ensure!(opened.as_deref() == Ok(b"second"), "the device info is not that of the last login");
    ensure!(own.slot_expiration == SlotExpiration::Volatile, "the slot policy is not that of the last login");
    Ok(())
}

/// Takes every slot; the connections stand in the order of the logins.
async fn full(world: &World) -> Result<Vec<Line>, Finding> {
    /// A DevicesInfo holds no more of the largest.
    const SENSIBLE: u32 = 64;
    let (first, info) = world.admitted(&world.config(1)).await?;
    let max = info.max_device_slots;
    if !(2..=SENSIBLE).contains(&max) {
        return Err(Finding::Untried(format!("a group has {max} slots")));
    }
    let mut lines = vec![first];
    for device in 2..=u64::from(max) {
        // connected_since is in milliseconds: keep them apart.
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        lines.push(world.joins(device).await?);
    }
    Ok(lines)
}

fn pushy(world: &World) -> DeviceConfig {
    DeviceConfig { slots_exhausted: SlotsExhausted::DropLeastRecent, ..world.config(1_000) }
}

async fn full_reject(world: &World) -> Done {
    let _all = full(world).await?;
    code(&world.turned_away(&world.config(1_000)).await?, CloseCode::DeviceLimitReached)
}

async fn full_drop(world: &World) -> Done {
    let mut all = full(world).await?;
    let count = all.len();
    let (mut new, info) = world.admitted(&pushy(world)).await?;
    slot(&info, SlotState::New)?;
    let devices = new.devices().await?;
    ensure!(devices.0.len() == count, "the group has {} devices now, {count} slots", devices.0.len());
    let victim = (1..).zip(&mut all).find(|(device, _)| !devices.0.contains_key(&DeviceId(*device)));
    let (_, victim) = victim.ok_or_else(|| "DevicesInfo lacks the new device".to_owned())?;
    victim.ends_with(CloseCode::Dropped).await
}

/// Makes room in a group of the devices 1 to `last`.
async fn least_recent_is(world: &World, last: u64, expected: u64) -> Done {
    let (mut new, _) = world.admitted(&pushy(world)).await?;
    let devices = new.devices().await?;
    let gone: Vec<u64> = (1..=last).filter(|device| !devices.0.contains_key(&DeviceId(*device))).collect();
    ensure!(gone == [expected], "device {expected} is least recently used, dropped was {gone:?}");
    Ok(())
}

async fn lru_absent_first(world: &World) -> Done {
    let mut all = full(world).await?;
    let last = u64::try_from(all.len()).unwrap_or(u64::MAX);
    if let Some(line) = all.pop() {
        line.leaves().await?;
    }
    let asker = all.first_mut().ok_or_else(|| "no device".to_owned())?;
    world.until_away(asker, last).await?;
    least_recent_is(world, last, last).await
}

async fn lru_oldest(world: &World) -> Done {
    let mut all = full(world).await?;
    // The first comes again, so that the second has been connected longest.
    let again = world.returns(1).await?.0;
    if let Some(first) = all.first_mut() {
        *first = again;
    }
    least_recent_is(world, u64::try_from(all.len()).unwrap_or(u64::MAX), 2).await
}

async fn mismatch_first(world: &World) -> Done {
    let mut all = full(world).await?;
    code(&world.turned_away(&pushy(world).existing()).await?, CloseCode::DeviceSlotStateMismatch)?;
    let asker = all.first_mut().ok_or_else(|| "no device".to_owned())?;
    let devices = asker.devices().await?.0.len();
    ensure!(devices == all.len(), "there were {} devices, now {devices}", all.len());
    Ok(())
}

async fn duplicate(world: &World) -> Done {
    let mut old = world.joins(1).await?;
    let _new = world.admitted(&world.config(1).existing()).await?;
    old.ends_with(CloseCode::DuplicateConnection).await
}

async fn duplicate_state(world: &World) -> Done {
    let _old = world.joins(1).await?;
    let (_new, info) = world.admitted(&world.config(1).existing()).await?;
    slot(&info, SlotState::Existing)
}

async fn dry_once(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    one.dry().await?;
    one.reflects(1, b"x").await?;
    let heard = one.heard_before_answer().await?;
    ensure!(!heard.contains(&ToDevice::ReflectionQueueDry), "it came again");
    Ok(())
}

async fn leader_after_dry(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    let heard = one.until("ReflectionQueueDry", |it| *it == ToDevice::ReflectionQueueDry).await?;
    ensure!(!heard.contains(&ToDevice::RolePromotedToLeader), "first came {}", names(&heard));
    one.leads().await
}

async fn one_leader(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    one.leads().await?;
    for device in [2, 3] {
        let mut other = world.joins(device).await?;
        other.dry().await?;
        let heard = other.heard_before_answer().await?;
        ensure!(!heard.contains(&ToDevice::RolePromotedToLeader), "a second device was promoted");
    }
    let heard = one.heard_before_answer().await?;
    ensure!(!heard.contains(&ToDevice::RolePromotedToLeader), "the leader was promoted again");
    Ok(())
}

async fn next_leader(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    one.leads().await?;
    let mut two = world.joins(2).await?;
    two.dry().await?;
    one.leaves().await?;
    two.leads().await
}

async fn dry_longest(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    one.leads().await?;
    // By number the later is before the earlier.
    let mut earlier = world.joins(3).await?;
    earlier.dry().await?;
    let mut later = world.joins(2).await?;
    later.dry().await?;
    one.leaves().await?;
    earlier.leads().await?;
    let heard = later.heard_before_answer().await?;
    ensure!(!heard.contains(&ToDevice::RolePromotedToLeader), "the other was promoted, too");
    Ok(())
}

async fn no_demotion(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    one.leads().await?;
    let mut two = world.joins(2).await?;
    two.dry().await?;
    one.leaves().await?;
    two.leads().await?;
    let (mut one, ..) = world.returns(1).await?;
    let heard = one.heard_before_answer().await?;
    ensure!(!heard.contains(&ToDevice::RolePromotedToLeader), "it was promoted although another leads");
    Ok(())
}

async fn handshake_timeout(world: &World) -> Done {
    let mut line = world.open(&world.config(1)).await?;
    line.server_hello().await?;
    tokio::time::sleep(std::time::Duration::from_secs(21)).await;
    line.ends_with(CloseCode::ClientIdleTimeout).await
}

async fn volatile(world: &World) -> Done {
    let volatile = DeviceConfig { slot_expiration: SlotExpiration::Volatile, ..world.config(1) };
    world.admitted(&volatile).await?.0.leaves().await?;
    world.joins(2).await?.leaves().await?;
    // Slots of a group that sleeps are looked for now and then: a mediator may be a minute late.
    tokio::time::sleep(std::time::Duration::from_secs(680)).await;
    code(&world.turned_away(&volatile.existing()).await?, CloseCode::DeviceSlotStateMismatch)?;
    world.returns(2).await.map(drop)
}

async fn closing_handshake(world: &World) -> Done {
    let ended = world.joins(1).await?.leaves().await?;
    code(&ended, CloseCode::Normal)
}

async fn no_pongs(world: &World) -> Done {
    let mut line = world.joins(1).await?;
    // Pings are answered by whoever reads.
    for _ in 0..5 {
        tokio::time::sleep(std::time::Duration::from_secs(30)).await;
        line.say(&FromDevice::GetDevicesInfo).await?;
    }
    line.is_alive().await
}

async fn idle(world: &World) -> Done {
    let mut line = world.joins(1).await?;
    line.dry().await?;
    // Who does not read answers no ping, and a pong would be a sign of life. Not longer than needed: a closing mediator
    // waits five seconds for our close and then hangs up, after which a pong that is due spoils the reading.
    tokio::time::sleep(std::time::Duration::from_millis(121_500)).await;
    line.ends_with(CloseCode::ClientIdleTimeout).await
}
