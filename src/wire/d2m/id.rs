//! Ids as types: a device is not a group, a reflect-id is not a reflected-id.

use std::fmt;

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
