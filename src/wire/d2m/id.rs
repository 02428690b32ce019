//! Ids as types: a device is not a group, a reflect-id is not a reflected-id.

use std::fmt;

use crate::crypto::kdf;

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
}

/// A short hash: enough to follow one group through a log, too little to address it.
impl fmt::Display for DeviceGroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hash = kdf::blake2b(b"", b"", b"heliostat-log", &self.0);
        hash.expose().iter().take(4).try_for_each(|byte| write!(f, "{byte:02x}"))
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
