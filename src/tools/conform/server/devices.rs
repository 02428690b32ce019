//! Devices of a group: listing, dropping, shared data (section 7).

use super::world::{Case, Done, Finding, Needs, World, case, code, ensure, messages, names, slot};
use crate::client::DeviceConfig;
use crate::wire::d2m::{
    CloseCode, ConnectionState, DeviceId, ENCRYPTED_SHARED_DEVICE_DATA_MAX, FromDevice, SlotState, ToDevice,
};

pub(super) const CASES: &[Case] = &[
    case!("D2M-12.13a", self_drop, "Who drops itself gets DropDeviceAck and is closed with 4113 then."),
    case!(
        "D2M-12.13b",
        self_drop_existing,
        "After dropping itself a device that expects its slot is closed with 4115."
    ),
    case!("D2M-12.13c", self_drop_new, "After dropping itself a device may come as new."),
    case!(
        "D2M-A16b",
        pipelined_self_drop,
        "A self-drop right behind ClientHello is acknowledged and closed with 4113."
    ),
    case!("D2M-12.14a", drop_other, "Dropping another device is acknowledged and closes it with 4113."),
    case!("D2M-12.14b", drop_unknown, "Dropping an unknown device is acknowledged."),
    case!("D2M-7a", drop_loses_queue, "With its slot a dropped device loses its queue."),
    case!("D2M-7b", last_drop, "With the last device the group's shared data is gone."),
    case!("D2M-7c", drop_leader, "When the leader is dropped, another device leads."),
    case!(
        "D2M-12.15a",
        shared_data,
        "SetSharedDeviceData is not answered and shown in the next ServerInfo of another device."
    ),
    case!("D2M-12.15b", shared_data_replaced, "SetSharedDeviceData replaces what was there."),
    case!("D2M-2.5c", shared_data_limit, "Shared data of 32768 bytes is accepted, more is closed with 4010."),
    case!(
        "D2M-12.16a",
        devices_info,
        "DevicesInfo holds the asker and devices that are away, with their device infos."
    ),
    case!("D2M-12.16b", connection_states, "DevicesInfo tells of each device connected_since or last_disconnect_at."),
];

async fn self_drop(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    one.drop_device(DeviceId(1)).await?;
    one.ends_with(CloseCode::Dropped).await
}

async fn dropped_itself(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    one.say(&FromDevice::DropDevice(DeviceId(1))).await?;
    one.ended().await.map(drop)
}

async fn self_drop_existing(world: &World) -> Done {
    dropped_itself(world).await?;
    code(&world.turned_away(&world.config(1).existing()).await?, CloseCode::DeviceSlotStateMismatch)
}

async fn self_drop_new(world: &World) -> Done {
    dropped_itself(world).await?;
    slot(&world.admitted(&world.config(1)).await?.1, SlotState::New)
}

async fn pipelined_self_drop(world: &World) -> Done {
    let (mut line, hello) = world.greeted(&world.config(1)).await?;
    let own = DeviceId(1);
    let early = [FromDevice::ClientHello(Box::new(hello)), FromDevice::DropDevice(own)];
    world.soon("room to write", line.raw.send_all(&early)).await??;
    line.server_info().await?;
    line.wait_for("DropDeviceAck", ToDevice::DropDeviceAck(own)).await?;
    line.ends_with(CloseCode::Dropped).await
}

async fn drop_other(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    let mut two = world.joins(2).await?;
    one.drop_device(DeviceId(2)).await?;
    two.ends_with(CloseCode::Dropped).await?;
    code(&world.turned_away(&world.config(2).existing()).await?, CloseCode::DeviceSlotStateMismatch)
}

async fn drop_unknown(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    one.say(&FromDevice::DropDevice(DeviceId(99))).await?;
    let heard = one.heard_before_answer().await?;
    ensure!(heard.contains(&ToDevice::DropDeviceAck(DeviceId(99))), "before the next answer came {}", names(&heard));
    Ok(())
}

async fn drop_loses_queue(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    world.joins(2).await?.leaves().await?;
    one.reflects(1, b"x").await?;
    one.drop_device(DeviceId(2)).await?;
    let (mut two, info) = world.admitted(&world.config(2)).await?;
    slot(&info, SlotState::New)?;
    let queue = messages(two.until("ReflectionQueueDry", |it| *it == ToDevice::ReflectionQueueDry).await?);
    ensure!(queue.is_empty(), "{} messages waited", queue.len());
    Ok(())
}

async fn last_drop(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    one.say(&FromDevice::SetSharedDeviceData(b"shared".to_vec())).await?;
    one.say(&FromDevice::DropDevice(DeviceId(1))).await?;
    one.ended().await?;
    let (_, info) = world.admitted(&world.config(2)).await?;
    ensure!(info.encrypted_shared_device_data.is_empty(), "it is still there");
    Ok(())
}

async fn drop_leader(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    one.leads().await?;
    let mut two = world.joins(2).await?;
    two.dry().await?;
    two.say(&FromDevice::DropDevice(DeviceId(1))).await?;
    two.leads().await
}

async fn shared_data(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    one.leads().await?;
    one.is_alive().await?;
    one.say(&FromDevice::SetSharedDeviceData(b"shared".to_vec())).await?;
    let heard = one.heard_before_answer().await?;
    ensure!(heard.is_empty(), "it was answered with {}", names(&heard));
    shows(world, 2, b"shared").await
}

async fn shows(world: &World, device: u64, expected: &[u8]) -> Done {
    let (_line, info) = world.admitted(&world.config(device)).await?;
    let shown = info.encrypted_shared_device_data;
    ensure!(shown == expected, "ServerInfo shows {} bytes, {} were set", shown.len(), expected.len());
    Ok(())
}

async fn shared_data_replaced(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    for data in [&b"the first data"[..], b"other", b""] {
        one.say(&FromDevice::SetSharedDeviceData(data.to_vec())).await?;
        one.is_alive().await?;
        shows(world, 2 + u64::try_from(data.len()).unwrap_or_default(), data).await?;
    }
    Ok(())
}

async fn shared_data_limit(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    one.say(&FromDevice::SetSharedDeviceData(vec![1; ENCRYPTED_SHARED_DEVICE_DATA_MAX])).await?;
    one.is_alive().await?;
    one.closes_for(FromDevice::SetSharedDeviceData(vec![1; ENCRYPTED_SHARED_DEVICE_DATA_MAX + 1]).encode()).await
}

async fn devices_info(world: &World) -> Done {
    let config = |device, name: &[u8]| DeviceConfig { device_info: name.to_vec(), ..world.config(device) };
    let (mut one, _) = world.admitted(&config(1, b"phone")).await?;
    world.admitted(&config(2, b"tablet")).await?.0.leaves().await?;
    let devices = one.devices().await?;
    for (device, name) in [(1, &b"phone"[..]), (2, b"tablet")] {
        let info = devices.0.get(&DeviceId(device)).ok_or_else(|| format!("device {device} is missing"))?;
        let opened = world.key.open_device_info(&info.encrypted_device_info);
        ensure!(opened.as_deref() == Ok(name), "the device info of device {device} was changed");
    }
    ensure!(devices.0.len() == 2, "it holds {} devices", devices.0.len());
    Ok(())
}

async fn connection_states(world: &World) -> Done {
    let mut one = world.joins(1).await?;
    world.joins(2).await?.leaves().await?;
    // The decoder refuses a device with neither.
    world.until_away(&mut one, 2).await?;
    let devices = one.devices().await?;
    let now = world.target.clock.now().wall_ms;
    for (device, info) in &devices.0 {
        let (connected, at) = match info.connection {
            ConnectionState::ConnectedSince(at) => (true, at),
            ConnectionState::LastDisconnectAt(at) => (false, at),
        };
        ensure!(connected == (device.0 == 1), "device {} is said to be connected: {connected}", device.0);
        ensure!(
            at.abs_diff(now) < 20 * 60 * 1_000,
            "the time of device {} is off by {} s",
            device.0,
            at.abs_diff(now) / 1_000
        );
    }
    Ok(())
}
