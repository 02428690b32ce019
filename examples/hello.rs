//! Ten lines that are a client: docs/clients.md.
use heliostat::client::{Device, DeviceConfig, GroupKey, Mediator, Trust};
use heliostat::wire::d2m::{DeviceId, ReflectFlags, ServerGroup};
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).ok_or("usage: hello URL")?;
    let me = DeviceConfig::new(GroupKey::generate(), ServerGroup::new("a0").ok_or("a0")?, DeviceId(1));
    let mut device = Device::connect(&Mediator::new(&url, &Trust::System)?, &me).await?;
    println!("{:?}", device.reflect_and_wait(b"hello", ReflectFlags::default()).await?);
    Ok(())
}
