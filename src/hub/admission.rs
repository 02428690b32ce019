//! The proof of the group key (spec 3.3). An [`Admitted`] can be made here only, so that nobody can be seated who has not
//! proved, here or to another node, that the device belongs to the group.

use crate::crypto::{Secret, boxes, kdf};
use crate::group::Introduction;
use crate::wire::d2m::hello::VERSION;
use crate::wire::d2m::{ClientHello, DeviceGroupId, ServerHello};

/// What the mediator asks one connection. Never used for another.
#[derive(Debug)]
pub struct Challenge {
    esk: Secret<32>,
    challenge: [u8; 32],
}

/// The response does not prove the group key. Which part of it failed is nobody's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the challenge response proves nothing")]
pub struct NotProved;

/// A device that proved the key of its group.
#[derive(Debug, Clone)]
pub struct Admitted {
    group: DeviceGroupId,
    introduction: Introduction,
}

impl Challenge {
    /// Fresh randomness for one connection.
    #[must_use]
    pub const fn new(esk: Secret<32>, challenge: [u8; 32]) -> Self {
        Self { esk, challenge }
    }

    /// The payload that asks.
    #[must_use]
    pub fn server_hello(&self) -> ServerHello {
        ServerHello { version: VERSION, esk: boxes::public(&self.esk), challenge: self.challenge }
    }

    /// Looks at the answer. Touches nothing of the group.
    ///
    /// # Errors
    /// [`NotProved`], whatever the reason.
    pub fn check(self, group: DeviceGroupId, hello: ClientHello) -> Result<Admitted, NotProved> {
        match kdf::challenge_answered(&self.esk, group.as_bytes(), &self.challenge, &hello.response) {
            Ok(true) => Ok(Admitted {
                group,
                introduction: Introduction {
                    device: hello.device_id,
                    slots_exhausted: hello.slots_exhausted,
                    slot_expiration: hello.slot_expiration,
                    expected_slot_state: hello.expected_slot_state,
                    encrypted_device_info: hello.encrypted_device_info,
                },
            }),
            Ok(false) | Err(boxes::LowOrder) => Err(NotProved),
        }
    }
}

impl Admitted {
    /// A device that another node of this mediator admitted, which says so on a connection that only nodes can make.
    #[must_use]
    pub const fn vouched(group: DeviceGroupId, introduction: Introduction) -> Self {
        Self { group, introduction }
    }

    /// Who it says it is, and what it wishes.
    #[must_use]
    pub const fn introduction(&self) -> &Introduction {
        &self.introduction
    }

    /// Which group it belongs to.
    #[must_use]
    pub const fn group(&self) -> DeviceGroupId {
        self.group
    }

    pub(super) fn into_parts(self) -> (DeviceGroupId, Introduction) {
        (self.group, self.introduction)
    }
}
