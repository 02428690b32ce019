//! Ids as types: a device is not a group, a reflect-id is not a reflected-id.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::log::{LogId, Who};

/// A device group: the public half of its path key, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceGroupId([u8; 32]);

impl DeviceGroupId {
    /// Length in bytes.
    pub const LEN: usize = 32;

    /// Takes the public key. Whether it is usable is the URL's affair ([`super::url`]).
    #[must_use]
    pub const fn new(public: [u8; 32]) -> Self {
        Self(public)
    }

    /// The public key.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// How the group appears in today's log.
    #[must_use]
    pub fn log_id(&self) -> LogId {
        LogId::of(Who::Group(&self.0))
    }

    /// How a device of this group appears in today's log.
    #[must_use]
    pub fn log_device(&self, device: DeviceId) -> LogId {
        LogId::of(Who::Device(&self.0, device.0))
    }
}

/// As in today's log: enough to follow one group through it, nothing to address the group by.
impl fmt::Display for DeviceGroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.log_id().fmt(f)
    }
}

impl fmt::Debug for DeviceGroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceGroupId({self})")
    }
}

/// One device of a group, chosen by the device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u64);

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The text is no device id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a device id is 1 to 16 hexadecimal digits")]
pub struct BadDeviceId;

/// As it is displayed; leading zeros may be left out.
impl FromStr for DeviceId {
    type Err = BadDeviceId;

    fn from_str(text: &str) -> Result<Self, BadDeviceId> {
        let digits = (1..=16).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        u64::from_str_radix(text, 16).ok().filter(|_| digits).map(Self).ok_or(BadDeviceId)
    }
}

impl Serialize for DeviceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DeviceId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceId({self})")
    }
}

/// Chosen by the reflecting device, echoed in its reflect-ack. Neither unique nor growing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReflectId(pub u32);

/// Given by the mediator: grows per slot, may wrap, is never that of a message still outstanding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReflectedId(pub u32);
