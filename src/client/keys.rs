//! The device group key and what is sealed with it. The mediator never sees any of this.

use std::sync::Arc;

use crate::crypto::Secret;
use crate::crypto::boxes::{self, BadBox};
use crate::crypto::kdf::DeviceGroupKeys;
use crate::wire::d2m::DeviceGroupId;

/// A device group key (DGK) with everything derived from it. Cloning shares it.
#[derive(Debug, Clone)]
pub struct GroupKey(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dgk: Secret<32>,
    keys: DeviceGroupKeys,
}

impl GroupKey {
    /// Derives the keys of a group.
    #[must_use]
    pub fn new(dgk: Secret<32>) -> Self {
        let keys = DeviceGroupKeys::derive(&dgk);
        Self(Arc::new(Inner { dgk, keys }))
    }

    /// A group that did not exist before.
    #[must_use]
    pub fn generate() -> Self {
        Self::new(Secret::random())
    }

    /// The device group key itself, to be kept in a file that nobody else reads.
    #[must_use]
    pub fn dgk(&self) -> &Secret<32> {
        &self.0.dgk
    }

    /// The derived keys.
    #[must_use]
    pub fn keys(&self) -> &DeviceGroupKeys {
        &self.0.keys
    }

    /// The id under which the mediator knows the group.
    #[must_use]
    pub fn device_group_id(&self) -> DeviceGroupId {
        DeviceGroupId::new(self.0.keys.device_group_id())
    }

    /// Seals an envelope for the other devices.
    #[must_use]
    pub fn seal_envelope(&self, plain: &[u8]) -> Vec<u8> {
        boxes::seal_with_random_nonce(&self.0.keys.reflect, plain)
    }

    /// Opens an envelope of another device.
    ///
    /// # Errors
    /// [`BadBox`] when it is of another group, or changed.
    pub fn open_envelope(&self, sealed: &[u8]) -> Result<Vec<u8>, BadBox> {
        boxes::open_with_leading_nonce(&self.0.keys.reflect, sealed)
    }

    /// Seals the scope of a transaction.
    #[must_use]
    pub fn seal_scope(&self, plain: &[u8]) -> Vec<u8> {
        boxes::seal_with_random_nonce(&self.0.keys.transaction_scope, plain)
    }

    /// Opens the scope of a transaction.
    ///
    /// # Errors
    /// [`BadBox`] when it is of another group, or changed.
    pub fn open_scope(&self, sealed: &[u8]) -> Result<Vec<u8>, BadBox> {
        boxes::open_with_leading_nonce(&self.0.keys.transaction_scope, sealed)
    }

    /// Seals the description of a device.
    #[must_use]
    pub fn seal_device_info(&self, plain: &[u8]) -> Vec<u8> {
        boxes::seal_with_random_nonce(&self.0.keys.device_info, plain)
    }

    /// Opens the description of a device.
    ///
    /// # Errors
    /// [`BadBox`] when it is of another group, or changed.
    pub fn open_device_info(&self, sealed: &[u8]) -> Result<Vec<u8>, BadBox> {
        boxes::open_with_leading_nonce(&self.0.keys.device_info, sealed)
    }

    /// Seals the data every device is shown at login.
    #[must_use]
    pub fn seal_shared_device_data(&self, plain: &[u8]) -> Vec<u8> {
        boxes::seal_with_random_nonce(&self.0.keys.shared_device_data, plain)
    }

    /// Opens the data every device is shown at login.
    ///
    /// # Errors
    /// [`BadBox`] when it is of another group, or changed.
    pub fn open_shared_device_data(&self, sealed: &[u8]) -> Result<Vec<u8>, BadBox> {
        boxes::open_with_leading_nonce(&self.0.keys.shared_device_data, sealed)
    }
}
