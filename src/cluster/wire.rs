//! What two nodes say to each other (`proto/cluster.proto`), and where one message ends.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;

use crate::group::{Farewell, Introduction, Request};
use crate::hub::{Admitted, Outgoing};
use crate::wire::d2m::{BadContainer, CONTAINER_MAX, ClientHello, DeviceGroupId, FromDevice, PayloadType, ToDevice};
use crate::wire::delimit::{BadUnit, Cut, Delimiter};

/// Of `proto/cluster.proto`.
pub(super) const VERSION: u32 = 1;
/// Length of the length before a message, in bytes.
const LENGTH: usize = size_of::<u32>();
/// Longest message, in bytes: the largest container, a group, and what protobuf adds.
const MESSAGE_MAX: usize = CONTAINER_MAX + 64;

mod pb {
    #![allow(missing_docs, clippy::all, clippy::use_self, clippy::or_fun_call, unreachable_pub, reason = "generated")]

    include!(concat!(env!("OUT_DIR"), "/cluster.rs"));
}

/// From the node that has the device.
#[derive(Debug)]
pub(super) enum ToOwner {
    Hello(Box<Admitted>),
    Request(Request),
    Written(usize),
    Released,
    Left { introduced: bool },
}

/// From the node that has the group.
#[derive(Debug)]
pub(super) enum FromOwner {
    Seated,
    Refused(Refusal),
    Says(Outgoing),
}

/// Why there is no seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Moved,
    Failed,
}

/// What another node sent is nothing that a node says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadMessage {
    #[error("it speaks version {0} of the protocol between nodes, not {VERSION}")]
    Version(u32),
    #[error("a message of {} bytes is too long", .0.len)]
    Length(#[from] BadUnit),
    #[error("not a message of this protocol")]
    Protobuf,
    #[error("a container that is none: {0}")]
    Container(#[from] BadContainer),
    #[error("a {0} has no place there")]
    Misplaced(PayloadType),
    #[error("the stream ended within a message")]
    CutShort,
    #[error("a message out of its turn")]
    OutOfTurn,
}

/// What can be said on a stream.
pub(super) trait Spoken: Sized {
    type Protobuf: prost::Message + Default;

    fn to_protobuf(&self) -> Self::Protobuf;

    fn from_protobuf(message: Self::Protobuf) -> Result<Self, BadMessage>;

    /// Puts it behind what waits to be sent.
    fn encode(&self, out: &mut BytesMut) {
        let message = self.to_protobuf();
        let len = message.encoded_len();
        out.reserve(LENGTH + len);
        out.put_u32_le(u32::try_from(len).unwrap_or(u32::MAX));
        // There is room: it was made.
        let _fits = message.encode(out);
    }

    /// Reads one that was cut off, its length included.
    fn decode(unit: &[u8]) -> Result<Self, BadMessage> {
        let message = unit.get(LENGTH..).unwrap_or_default();
        Self::from_protobuf(Self::Protobuf::decode(message).map_err(|_| BadMessage::Protobuf)?)
    }
}

/// Cuts a stream into messages.
#[derive(Debug)]
pub(super) struct Lengths;

impl Delimiter for Lengths {
    fn cut(&mut self, pending: &[u8]) -> Result<Cut, BadUnit> {
        let Some(length) = pending.first_chunk::<LENGTH>() else { return Ok(Cut::More) };
        let len = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        match len {
            len if len > MESSAGE_MAX => Err(BadUnit { len }),
            len if pending.len() - LENGTH >= len => Ok(Cut::Unit(LENGTH + len)),
            _ => Ok(Cut::More),
        }
    }
}

impl Spoken for ToOwner {
    type Protobuf = pb::ToOwner;

    fn to_protobuf(&self) -> pb::ToOwner {
        use pb::to_owner::Said;
        let said = match self {
            Self::Hello(admitted) => Said::Hello(pb::Hello {
                version: VERSION,
                group: admitted.group().as_bytes().to_vec(),
                introduction: introduction(admitted.introduction()).encode().into(),
            }),
            Self::Request(request) => Said::Request(container(request).encode().into()),
            Self::Written(cost) => Said::Written(u64::try_from(*cost).unwrap_or(u64::MAX)),
            Self::Released => Said::Released(pb::Nothing {}),
            Self::Left { introduced } => Said::Left(pb::Left { introduced: *introduced }),
        };
        pb::ToOwner { said: Some(said) }
    }

    fn from_protobuf(message: pb::ToOwner) -> Result<Self, BadMessage> {
        use pb::to_owner::Said;
        Ok(match message.said.ok_or(BadMessage::Protobuf)? {
            Said::Hello(hello) => Self::Hello(Box::new(admitted(hello)?)),
            Said::Request(container) => Self::Request(request(container)?),
            // More than was sent is the group's to notice, which counts.
            Said::Written(cost) => Self::Written(usize::try_from(cost).unwrap_or(usize::MAX)),
            Said::Released(_) => Self::Released,
            Said::Left(left) => Self::Left { introduced: left.introduced },
        })
    }
}

impl Spoken for FromOwner {
    type Protobuf = pb::FromOwner;

    fn to_protobuf(&self) -> pb::FromOwner {
        use pb::from_owner::Said;
        let said = match self {
            Self::Seated => Said::Seated(pb::Nothing {}),
            Self::Refused(Refusal::Moved) => Said::Refused(pb::Refusal::Moved.into()),
            Self::Refused(Refusal::Failed) => Said::Refused(pb::Refusal::Failed.into()),
            Self::Says(Outgoing::Payload(payload)) => Said::Payload(payload.encode().into()),
            Self::Says(Outgoing::Close(why)) => Said::Close(pb::Farewell::from(*why).into()),
            Self::Says(Outgoing::Moved) => Said::Moved(pb::Nothing {}),
        };
        pb::FromOwner { said: Some(said) }
    }

    fn from_protobuf(message: pb::FromOwner) -> Result<Self, BadMessage> {
        use pb::from_owner::Said;
        Ok(match message.said.ok_or(BadMessage::Protobuf)? {
            Said::Seated(_) => Self::Seated,
            Said::Refused(why) => Self::Refused(match pb::Refusal::try_from(why) {
                Ok(pb::Refusal::Moved) => Refusal::Moved,
                // A later version may have other reasons; none of them gives a seat.
                Ok(pb::Refusal::Failed | pb::Refusal::Unspecified) | Err(_) => Refusal::Failed,
            }),
            Said::Payload(container) => Self::Says(Outgoing::Payload(payload(container)?)),
            Said::Close(why) => {
                let why = pb::Farewell::try_from(why).map_err(|_| BadMessage::Protobuf)?;
                Self::Says(Outgoing::Close(farewell(why).ok_or(BadMessage::Protobuf)?))
            }
            Said::Moved(_) => Self::Says(Outgoing::Moved),
        })
    }
}

/// As the device introduced itself, without its proof.
fn introduction(introduction: &Introduction) -> FromDevice {
    let Introduction { device, slots_exhausted, slot_expiration, expected_slot_state, encrypted_device_info } =
        introduction;
    FromDevice::ClientHello(Box::new(ClientHello {
        response: [0; 72],
        device_id: *device,
        slots_exhausted: *slots_exhausted,
        slot_expiration: *slot_expiration,
        encrypted_device_info: encrypted_device_info.clone(),
        expected_slot_state: *expected_slot_state,
    }))
}

fn admitted(hello: pb::Hello) -> Result<Admitted, BadMessage> {
    if hello.version != VERSION {
        return Err(BadMessage::Version(hello.version));
    }
    let group = DeviceGroupId::new(hello.group.try_into().map_err(|_| BadMessage::Protobuf)?);
    match FromDevice::decode(&hello.introduction.into())? {
        FromDevice::ClientHello(hello) => {
            let ClientHello { response: _, device_id, slots_exhausted, slot_expiration, .. } = *hello;
            let ClientHello { encrypted_device_info, expected_slot_state, .. } = *hello;
            Ok(Admitted::vouched(
                group,
                Introduction {
                    device: device_id,
                    slots_exhausted,
                    slot_expiration,
                    expected_slot_state,
                    encrypted_device_info,
                },
            ))
        }
        other => Err(BadMessage::Misplaced(other.kind())),
    }
}

fn container(request: &Request) -> FromDevice {
    match request.clone() {
        Request::GetDevicesInfo => FromDevice::GetDevicesInfo,
        Request::DropDevice(device) => FromDevice::DropDevice(device),
        Request::SetSharedDeviceData(data) => FromDevice::SetSharedDeviceData(data),
        Request::BeginTransaction(begin) => FromDevice::BeginTransaction(begin),
        Request::CommitTransaction => FromDevice::CommitTransaction,
        Request::Reflect(reflect) => FromDevice::Reflect(reflect),
        Request::ReflectedAck(id) => FromDevice::ReflectedAck(id),
    }
}

fn request(container: Vec<u8>) -> Result<Request, BadMessage> {
    Ok(match FromDevice::decode(&Bytes::from(container))? {
        FromDevice::GetDevicesInfo => Request::GetDevicesInfo,
        FromDevice::DropDevice(device) => Request::DropDevice(device),
        FromDevice::SetSharedDeviceData(data) => Request::SetSharedDeviceData(data),
        FromDevice::BeginTransaction(begin) => Request::BeginTransaction(begin),
        FromDevice::CommitTransaction => Request::CommitTransaction,
        FromDevice::Reflect(reflect) => Request::Reflect(reflect),
        FromDevice::ReflectedAck(id) => Request::ReflectedAck(id),
        other @ (FromDevice::Proxy(_)
        | FromDevice::ClientHello(_)
        | FromDevice::ClientHelloOfVersion(_)
        | FromDevice::Unknown(_)) => return Err(BadMessage::Misplaced(other.kind())),
    })
}

fn payload(container: Vec<u8>) -> Result<ToDevice, BadMessage> {
    match ToDevice::decode(&Bytes::from(container))? {
        // Chat server bytes go through the node that has the device, which greeted it, too.
        other @ (ToDevice::Proxy(_) | ToDevice::ServerHello(_) | ToDevice::Unknown(_)) => {
            Err(BadMessage::Misplaced(other.kind()))
        }
        payload => Ok(payload),
    }
}

impl From<Farewell> for pb::Farewell {
    fn from(why: Farewell) -> Self {
        match why {
            Farewell::SlotStateMismatch => Self::SlotStateMismatch,
            Farewell::DeviceLimitReached => Self::DeviceLimitReached,
            Farewell::Replaced => Self::Replaced,
            Farewell::Dropped => Self::Dropped,
            Farewell::LeastRecent => Self::LeastRecent,
            Farewell::QueueLimit => Self::QueueLimit,
            Farewell::TransactionTtl => Self::TransactionTtl,
            Farewell::UnknownAck => Self::UnknownAck,
            Farewell::CommitWithoutBegin => Self::CommitWithoutBegin,
            Farewell::NestedBegin => Self::NestedBegin,
            Farewell::StagingLimit => Self::StagingLimit,
            Farewell::SlowReader => Self::SlowReader,
            Farewell::Kicked => Self::Kicked,
        }
    }
}

const fn farewell(why: pb::Farewell) -> Option<Farewell> {
    Some(match why {
        pb::Farewell::Unspecified => return None,
        pb::Farewell::SlotStateMismatch => Farewell::SlotStateMismatch,
        pb::Farewell::DeviceLimitReached => Farewell::DeviceLimitReached,
        pb::Farewell::Replaced => Farewell::Replaced,
        pb::Farewell::Dropped => Farewell::Dropped,
        pb::Farewell::LeastRecent => Farewell::LeastRecent,
        pb::Farewell::QueueLimit => Farewell::QueueLimit,
        pb::Farewell::TransactionTtl => Farewell::TransactionTtl,
        pb::Farewell::UnknownAck => Farewell::UnknownAck,
        pb::Farewell::CommitWithoutBegin => Farewell::CommitWithoutBegin,
        pb::Farewell::NestedBegin => Farewell::NestedBegin,
        pb::Farewell::StagingLimit => Farewell::StagingLimit,
        pb::Farewell::SlowReader => Farewell::SlowReader,
        pb::Farewell::Kicked => Farewell::Kicked,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::d2m::{
        BeginTransaction, DeviceId, Envelope, Reflect, ReflectFlags, ReflectId, ReflectedId, SlotExpiration, SlotState,
        SlotsExhausted,
    };
    use crate::wire::delimit::Cutter;

    /// What comes out at the other end.
    fn heard<M: Spoken>(said: &M) -> M {
        let mut bytes = BytesMut::new();
        said.encode(&mut bytes);
        assert!(bytes.len() <= LENGTH + MESSAGE_MAX, "{}", bytes.len());
        let mut cutter = Cutter::new(Lengths);
        cutter.buffer().extend_from_slice(&bytes);
        let heard = cutter.next_unit_as(M::decode).unwrap().unwrap().unwrap();
        assert!(cutter.buffer().is_empty());
        heard
    }

    #[test]
    fn every_request_arrives_as_it_was_said() {
        let largest = Envelope::copy_from(&vec![7; crate::wire::d2m::ENVELOPE_MAX]);
        let reflect = |ephemeral| {
            let (flags, envelope) = (ReflectFlags { ephemeral }, largest.clone());
            Request::Reflect(Reflect { flags, reflect_id: ReflectId(9), envelope })
        };
        let requests = [
            Request::GetDevicesInfo,
            Request::DropDevice(DeviceId(u64::MAX)),
            Request::SetSharedDeviceData(vec![1; 32_768]),
            Request::BeginTransaction(BeginTransaction { encrypted_scope: vec![2; 1_024], ttl_s: 7 }),
            Request::CommitTransaction,
            reflect(false),
            reflect(true),
            Request::ReflectedAck(ReflectedId(3)),
        ];
        for request in requests {
            let ToOwner::Request(heard) = heard(&ToOwner::Request(request.clone())) else { panic!("something else") };
            assert_eq!(heard, request);
        }
    }

    #[test]
    fn an_introduction_arrives_whole_and_without_its_proof() {
        let introduction = Introduction {
            device: DeviceId(5),
            slots_exhausted: SlotsExhausted::DropLeastRecent,
            slot_expiration: SlotExpiration::Volatile,
            expected_slot_state: SlotState::Existing,
            encrypted_device_info: vec![3; 4_096],
        };
        let group = DeviceGroupId::new([4; 32]);
        let said = ToOwner::Hello(Box::new(Admitted::vouched(group, introduction.clone())));
        let ToOwner::Hello(heard) = heard(&said) else { panic!("something else") };
        assert_eq!((heard.group(), heard.introduction()), (group, &introduction));
    }

    #[test]
    fn every_farewell_arrives_as_it_was_said() {
        let mut known = 0;
        // As many as the page has; a new one there is a new one here, since the match above has no wildcard.
        for number in 1.. {
            let Ok(why) = pb::Farewell::try_from(number) else { break };
            let why = farewell(why).unwrap();
            let FromOwner::Says(last) = heard(&FromOwner::Says(Outgoing::Close(why))) else { panic!("something else") };
            assert_eq!(last, Outgoing::Close(why));
            known += 1;
        }
        assert_eq!(known, 13);
        for refusal in [Refusal::Moved, Refusal::Failed] {
            assert!(matches!(heard(&FromOwner::Refused(refusal)), FromOwner::Refused(heard) if heard == refusal));
        }
        assert!(matches!(heard(&FromOwner::Says(Outgoing::Moved)), FromOwner::Says(Outgoing::Moved)));
    }

    proptest! {
        #[test]
        fn whatever_a_node_sends_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut cutter = Cutter::new(Lengths);
            cutter.buffer().extend_from_slice(&bytes);
            while let Ok(Some(_)) = cutter.next_unit_as(ToOwner::decode) {}
            let _read = (ToOwner::decode(&bytes), FromOwner::decode(&bytes));
        }
    }
}
