//! Before a device is admitted (spec 3). Sans-IO: it is handed payloads, and consumes itself when one admits the device.

use bytes::BytesMut;

use super::ending::Ending;
use crate::hub::{Admitted, Challenge};
use crate::wire::d2m::{DeviceGroupId, FromDevice, ToDevice};

/// Chat server bytes that are held until the device is admitted. Real devices need 48: their client-hello.
pub const EARLY_PROXY_MAX: usize = 8_192;

/// The mediator has introduced itself and waits for the device to do the same.
#[derive(Debug)]
pub struct AwaitClientHello {
    group: DeviceGroupId,
    challenge: Challenge,
    early_proxy: BytesMut,
}

/// What a payload changed.
#[derive(Debug)]
pub enum Progress {
    /// Still waiting.
    Waiting(AwaitClientHello),
    /// The device proved the group key. It comes with the chat server bytes it sent in the meantime.
    Admitted(Admitted, BytesMut),
}

impl AwaitClientHello {
    /// Starts a handshake; the payload is the first one of the connection, to be sent unprompted.
    #[must_use]
    pub fn start(group: DeviceGroupId, challenge: Challenge) -> (Self, ToDevice) {
        let hello = ToDevice::ServerHello(challenge.server_hello().into());
        (Self { group, challenge, early_proxy: BytesMut::new() }, hello)
    }

    /// Takes a payload. All real devices send chat server bytes first; these are held, for nothing is dialled for
    /// somebody who has not proved anything (A14).
    ///
    /// # Errors
    /// The [`Ending`] the device brought upon itself.
    pub fn handle(mut self, payload: FromDevice) -> Result<Progress, Ending> {
        match payload {
            FromDevice::Proxy(bytes) => {
                if self.early_proxy.len() + bytes.len() > EARLY_PROXY_MAX {
                    return Err(Ending::TooMuchEarlyProxy);
                }
                self.early_proxy.extend_from_slice(&bytes);
                Ok(Progress::Waiting(self))
            }
            FromDevice::ClientHello(hello) => match self.challenge.check(self.group, *hello) {
                Ok(admitted) => Ok(Progress::Admitted(admitted, self.early_proxy)),
                Err(_not_proved) => Err(Ending::NotProved),
            },
            FromDevice::ClientHelloOfVersion(version) => Err(Ending::UnsupportedVersion(version)),
            FromDevice::Unknown(unknown) => Err(Ending::UnknownPayload(unknown.kind)),
            FromDevice::GetDevicesInfo
            | FromDevice::DropDevice(_)
            | FromDevice::SetSharedDeviceData(_)
            | FromDevice::BeginTransaction(_)
            | FromDevice::CommitTransaction
            | FromDevice::Reflect(_)
            | FromDevice::ReflectedAck(_) => Err(Ending::WrongState(payload.kind())),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::crypto::{Secret, kdf};
    use crate::wire::d2m::{ClientHello, DeviceId, ReflectedId, SlotExpiration, SlotState, SlotsExhausted};

    fn started(path: &Secret<32>) -> (AwaitClientHello, ClientHello) {
        let group = DeviceGroupId::new(crate::crypto::boxes::public(path));
        let (state, hello) = AwaitClientHello::start(group, Challenge::new(Secret::new([9; 32]), [5; 32]));
        let ToDevice::ServerHello(hello) = hello else { panic!("{hello:?}") };
        let response = kdf::answer_challenge(path, &hello.esk, &hello.challenge, &[1; 24]).unwrap();
        let hello = ClientHello {
            response: response.try_into().unwrap(),
            device_id: DeviceId(1),
            slots_exhausted: SlotsExhausted::Reject,
            slot_expiration: SlotExpiration::Persistent,
            encrypted_device_info: vec![],
            expected_slot_state: SlotState::New,
        };
        (state, hello)
    }

    #[test]
    fn a_proof_admits_and_hands_over_the_early_bytes_in_order() {
        let (mut state, hello) = started(&Secret::new([3; 32]));
        for piece in [&b"ab"[..], b"c"] {
            let Progress::Waiting(next) = state.handle(FromDevice::Proxy(Bytes::copy_from_slice(piece))).unwrap()
            else {
                panic!("proxy admits nobody")
            };
            state = next;
        }
        let Progress::Admitted(_, early) = state.handle(FromDevice::ClientHello(Box::new(hello))).unwrap() else {
            panic!("not admitted")
        };
        assert_eq!(early[..], *b"abc");
    }

    #[test]
    fn a_proof_for_another_group_or_challenge_proves_nothing() {
        let (state, _) = started(&Secret::new([3; 32]));
        let (_, foreign) = started(&Secret::new([4; 32]));
        assert_eq!(state.handle(FromDevice::ClientHello(Box::new(foreign))).unwrap_err(), Ending::NotProved);
        let (state, mut hello) = started(&Secret::new([3; 32]));
        hello.response[40] ^= 1;
        assert_eq!(state.handle(FromDevice::ClientHello(Box::new(hello))).unwrap_err(), Ending::NotProved);
    }

    #[test]
    fn nothing_else_is_answered_before_the_proof() {
        let fresh = || started(&Secret::new([3; 32])).0;
        let too_much = FromDevice::Proxy(vec![0; EARLY_PROXY_MAX + 1].into());
        assert_eq!(fresh().handle(too_much).unwrap_err(), Ending::TooMuchEarlyProxy);
        assert!(fresh().handle(FromDevice::Proxy(vec![0; EARLY_PROXY_MAX].into())).is_ok());
        assert_eq!(fresh().handle(FromDevice::ClientHelloOfVersion(1)).unwrap_err(), Ending::UnsupportedVersion(1));
        for payload in [FromDevice::GetDevicesInfo, FromDevice::ReflectedAck(ReflectedId(1))] {
            let kind = payload.kind();
            assert_eq!(fresh().handle(payload).unwrap_err(), Ending::WrongState(kind));
        }
    }
}
