//! Two devices of a new group, with the client library: one reflects, the other gets it and acknowledges.
//!
//! ```text
//! cargo run --example reflect -- wss://localhost:8443 heliostat-data/tls/dev-ca.pem
//! ```

use heliostat::client::{Device, DeviceConfig, GroupKey, Mediator, Trust};
use heliostat::wire::d2m::{DeviceId, ReflectFlags, ServerGroup, ToDevice};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let url = args.next().ok_or("usage: reflect URL [CA]")?;
    let trust = args.next().map_or(Trust::System, |ca| Trust::CaFile(ca.into()));

    let mediator = Mediator::new(&url, &trust)?;
    let key = GroupKey::generate();
    let group = ServerGroup::new("a0").ok_or("not a server group")?;
    let phone = DeviceConfig::new(key.clone(), group.clone(), DeviceId(1));
    let tablet = DeviceConfig::new(key.clone(), group, DeviceId(2));
    let mut phone = Device::connect(&mediator, &phone).await?;
    let mut tablet = Device::connect(&mediator, &tablet).await?;

    let ack = phone.reflect_and_wait(&key.seal_envelope(b"hello"), ReflectFlags::default()).await?;
    println!("the phone's message is kept since {}", ack.timestamp_ms);
    if let ToDevice::Reflected(message) = tablet.wait_for(|it| matches!(it, ToDevice::Reflected(_))).await? {
        println!("the tablet got: {}", String::from_utf8(key.open_envelope(message.envelope())?)?);
        // Only now, when it has been processed: what is acknowledged never comes again.
        tablet.ack(message.id()).await?;
    }

    // The group was made for this, and is gone with its last device.
    tablet.drop_device(DeviceId(2)).await?;
    phone.drop_device(DeviceId(1)).await?;
    Ok(())
}
