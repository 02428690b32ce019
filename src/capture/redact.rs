//! What a capture does not keep.
//!
//! * **The proof in a ClientHello.** It fits one challenge of one connection, so whoever finds it cannot use it; but it is the
//!   one thing here made with the group's private key, and nobody who reads a capture needs it. Its bytes are zeros.
//! * **What is said to chat servers, and by them.** CSP seals it, but a chat server behind `framing = "raw"` need not, and a
//!   login may be in it. The four bytes that name the payload are kept, and the length.

use bytes::Bytes;

use super::{Frame, KEPT_MAX};
use crate::wire::d2m::PayloadType;

/// Bytes of a container before its payload.
const CONTAINER_HEADER: usize = 4;
/// The field of a ClientHello that holds the proof.
const RESPONSE: u64 = 2;
/// How a field with a length is marked, and how others are.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH: u64 = 2;
const FIXED32: u64 = 5;

/// What is kept of a message.
pub(super) fn frame(bytes: &[u8]) -> Frame {
    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let kept = match bytes.first().map(|&kind| PayloadType(kind)) {
        Some(PayloadType::PROXY) => Bytes::copy_from_slice(bytes.get(..CONTAINER_HEADER).unwrap_or(bytes)),
        Some(PayloadType::CLIENT_HELLO) => {
            let mut hello = bytes.get(..KEPT_MAX).unwrap_or(bytes).to_vec();
            if let Some(message) = hello.get_mut(CONTAINER_HEADER..) {
                blank_response(message);
            }
            hello.into()
        }
        _ => Bytes::copy_from_slice(bytes.get(..KEPT_MAX).unwrap_or(bytes)),
    };
    Frame { len, kept }
}

/// Writes zeros over every field that may be the proof, in place. From where the message cannot be read, over everything.
fn blank_response(message: &mut [u8]) {
    let mut at = 0;
    while at < message.len() {
        let Some((field, value)) = field(message, at) else {
            return message.get_mut(at..).unwrap_or_default().fill(0);
        };
        at = value.end;
        if field == RESPONSE {
            message.get_mut(value).unwrap_or_default().fill(0);
        }
    }
}

/// The number of the field that begins there, and where its value stands.
fn field(message: &[u8], at: usize) -> Option<(u64, std::ops::Range<usize>)> {
    let (key, at) = varint(message, at)?;
    let (begin, len) = match key & 7 {
        VARINT => (at, varint(message, at)?.1 - at),
        FIXED64 => (at, 8),
        FIXED32 => (at, 4),
        LENGTH => {
            let (len, begin) = varint(message, at)?;
            (begin, usize::try_from(len).ok()?)
        }
        _ => return None,
    };
    let end = begin.checked_add(len).filter(|&end| end <= message.len())?;
    Some((key >> 3, begin..end))
}

fn varint(message: &[u8], at: usize) -> Option<(u64, usize)> {
    let mut value = 0;
    for (n, &byte) in message.get(at..)?.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f).checked_shl(u32::try_from(7 * n).ok()?)?;
        if byte & 0x80 == 0 {
            return Some((value, at + n + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::d2m::{ClientHello, DeviceId, FromDevice, SlotExpiration, SlotState, SlotsExhausted};

    fn hello() -> ClientHello {
        ClientHello {
            response: [0x5a; 72],
            device_id: DeviceId(7),
            slots_exhausted: SlotsExhausted::Reject,
            slot_expiration: SlotExpiration::Persistent,
            encrypted_device_info: vec![0x33; 40],
            expected_slot_state: SlotState::Existing,
        }
    }

    #[test]
    fn of_a_hello_everything_is_kept_but_the_proof() {
        let container = FromDevice::ClientHello(Box::new(hello())).encode();
        let kept = frame(&container);
        assert_eq!((kept.len as usize, kept.withheld()), (container.len(), 0));
        let expected = ClientHello { response: [0; 72], ..hello() };
        assert_eq!(FromDevice::decode(&kept.kept), Ok(FromDevice::ClientHello(Box::new(expected))));
    }

    #[test]
    fn no_order_of_fields_and_no_broken_end_saves_a_proof() {
        let proof = |n: usize| [&[0x12, 72][..], &[0x5a; 72][..n]].concat();
        let unknown = [0xf5, 0x01, 1, 2, 3, 4, 0xf9, 0x01, 1, 2, 3, 4, 5, 6, 7, 8];
        for message in [
            [proof(72), proof(72)].concat(),
            [&unknown[..], &proof(72), &[0x08, 0]].concat(),
            proof(40),
            [&[0x0f][..], &proof(72)].concat(),
            [&[0x80; 11][..], &proof(72)].concat(),
        ] {
            let kept = frame(&[&[0x11, 0, 0, 0][..], &message].concat()).kept;
            assert!(!kept.contains(&0x5a), "{}", hex::encode(kept));
        }
    }

    #[test]
    fn of_the_chat_servers_bytes_only_their_number_is_kept() {
        let kept = frame(&[&[0, 0, 0, 0][..], b"login: password"].concat());
        assert_eq!((&kept.kept[..], kept.withheld()), (&[0; 4][..], 15));
    }

    #[test]
    fn whatever_is_too_long_for_a_container_is_kept_to_its_length() {
        let kept = frame(&[0x80; KEPT_MAX + 1]);
        assert_eq!((kept.kept.len(), kept.withheld()), (KEPT_MAX, 1));
    }
}
