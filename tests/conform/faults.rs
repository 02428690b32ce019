//! Mediators that are wrong in one way: an honest one behind a relay.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use heliostat::wire::d2m::{
    ConnectionState, DeviceId, Envelope, FromDevice, ReflectAck, ReflectFlags, Reflected, ReflectedId, SlotState,
    SlotsExhausted, ToDevice, TransactionHolder,
};

use crate::relay::{Instead, Make, Said, Wrong};

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    AcksAtCommit,
    DeliversWhatWasAborted,
    ForgetsWhoJoinedInTheTransaction,
    AcksEphemeral,
    RefusesAcksOfEphemeral,
    RefusesSecondAcks,
    IgnoresAcksOfUnknown,
    HasAnotherCodeForBadProofs,
    LetsAnybodyCommit,
    LetsHoldersBeginAgain,
    ExpectsNothingOfNew,
    MakesSlotsForExisting,
    AnnouncesVersionOne,
    RefusesEarlyProxy,
    SpeaksForTheChatServerEarly,
    ForgetsWhatIsPipelined,
    PromotesBeforeDry,
    PromotesEverybody,
    IsSilentAboutUnknownDrops,
    IsSilentAboutSelfDrops,
    HoldsDropsInTransactions,
    KnowsNoTtl,
    NeverMakesRoom,
    IgnoresWhatItDoesNotKnow,
    PassesFlagsOn,
    TakesEnvelopesThatFitReflect,
    WantsSomethingInEnvelopesAndScopes,
    RedirectsDoubleSlashes,
    ReadsCapitalHex,
    TellsTheSenderAnotherTime,
    SaysEndedBeforeMessages,
    ForgetsTheBacklog,
    GivesNewIdsToOldMessages,
    KeepsEphemeral,
    ReflectsToTheSender,
    LosesAcks,
    MiscountsTheQueue,
    IsDryTwice,
    NamesTheAskerInRejections,
    TellsTheCommitter,
    ForgetsSharedData,
    HidesTheAskerFromDevicesInfo,
    ThinksEverybodyIsConnected,
    CutsUnits,
    ClosesWithoutReason,
    ReplacesSilently,
    WantsHeadersOfEight,
    WantsReservedZero,
    WaitsForAcks,
    AnswersClosesWithAnother,
    RefusesUnknownFields,
    SwapsReflectAcks,
}

/// What the connections of a group know of each other.
#[derive(Default)]
struct Group {
    slots: BTreeSet<DeviceId>,
    leader: Option<DeviceId>,
    holder: Option<DeviceId>,
    commits: u64,
    issued: BTreeMap<DeviceId, BTreeSet<u32>>,
    ephemeral: BTreeMap<DeviceId, Vec<Vec<u8>>>,
}

#[derive(Default)]
struct Connection {
    device: Option<DeviceId>,
    said_hello: bool,
    admitted: bool,
    proxied_early: bool,
    existing: bool,
    holds: bool,
    joined_in_transaction: bool,
    /// Of the group's commits, those of which this connection saw the end: others may have seen it before.
    ended: u64,
    dry: bool,
    held: Vec<Said>,
    ephemeral_ids: BTreeSet<u32>,
    acked: BTreeSet<u32>,
    unacked: usize,
    reflected_through: u32,
}

struct Faulty {
    fault: Fault,
    group: Arc<Mutex<Group>>,
    it: Connection,
}

impl Fault {
    pub fn make(self) -> Make {
        let groups: Mutex<HashMap<String, Arc<Mutex<Group>>>> = Mutex::default();
        Arc::new(move |path| {
            let segment = path.split('?').next().unwrap().rsplit('/').next().unwrap().to_owned();
            let group = Arc::clone(groups.lock().unwrap().entry(segment).or_default());
            Box::new(Faulty { fault: self, group, it: Connection::default() })
        })
    }
}

fn refuse(code: u16) -> Instead {
    // The mediator is left without a word, so that its answers do not get in the way.
    Instead::down(Said::Close(code))
}

impl Wrong for Faulty {
    fn asks(&mut self, path: &str) -> Result<String, u16> {
        match self.fault {
            Fault::RedirectsDoubleSlashes if path.contains("//") => Err(301),
            Fault::ReadsCapitalHex => Ok(path.to_lowercase()),
            _ => Ok(path.to_owned()),
        }
    }

    fn from_device(&mut self, said: Said) -> Instead {
        let group = Arc::clone(&self.group);
        let mut group = group.lock().unwrap();
        let it = &mut self.it;
        if let Said::Text(_) = said {
            return if self.fault == Fault::IgnoresWhatItDoesNotKnow { Instead::nothing() } else { Instead::up(said) };
        }
        let Some(payload) = said.from_device() else {
            if let (Fault::TakesEnvelopesThatFitReflect, Said::Binary(bytes)) = (self.fault, &said)
                && bytes.first() == Some(&0x80)
                && bytes.len() == 65_529
            {
                return Instead::nothing();
            }
            return Instead::up(said);
        };
        let early = it.said_hello && !it.admitted;
        match (&payload, self.fault) {
            (FromDevice::ClientHello(hello), fault) => {
                it.device = Some(hello.device_id);
                it.said_hello = true;
                it.existing = hello.expected_slot_state == SlotState::Existing;
                let known = group.slots.contains(&hello.device_id);
                let mut hello = hello.clone();
                match fault {
                    Fault::ExpectsNothingOfNew if known => hello.expected_slot_state = SlotState::Existing,
                    Fault::MakesSlotsForExisting if !known => hello.expected_slot_state = SlotState::New,
                    Fault::NeverMakesRoom => hello.slots_exhausted = SlotsExhausted::Reject,
                    _ => return Instead::up(said),
                }
                return Instead::up(Said::device(&FromDevice::ClientHello(hello)));
            }
            (FromDevice::Proxy(_), Fault::RefusesEarlyProxy) if !it.said_hello => return refuse(4010),
            (FromDevice::Proxy(_), _) => it.proxied_early |= !it.admitted,
            (_, Fault::ForgetsWhatIsPipelined) if early => return Instead::nothing(),
            (FromDevice::Reflect(reflect), fault) => {
                it.reflected_through = reflect.reflect_id.0;
                let ephemeral = reflect.flags.ephemeral;
                match fault {
                    Fault::AcksEphemeral if ephemeral => {
                        let ack = ReflectAck { reflect_id: reflect.reflect_id, timestamp_ms: 1 };
                        return Instead::up(said).and_down(Said::mediator(&ToDevice::ReflectAck(ack)));
                    }
                    Fault::WantsSomethingInEnvelopesAndScopes if reflect.envelope.is_empty() => return refuse(4010),
                    Fault::ReflectsToTheSender => {
                        let flags = ReflectFlags { ephemeral };
                        let own = Reflected::new(reflect.envelope.clone(), flags, ReflectedId(0x7000_0000), 1);
                        return Instead::up(said).and_down(Said::mediator(&ToDevice::Reflected(own)));
                    }
                    Fault::WantsHeadersOfEight if matches!(&said, Said::Binary(bytes) if bytes[4] != 8) => {
                        return refuse(4010);
                    }
                    _ => {}
                }
            }
            (FromDevice::ReflectedAck(id), fault) => {
                it.unacked = it.unacked.saturating_sub(1);
                let again = !it.acked.insert(id.0);
                let issued =
                    it.device.and_then(|device| group.issued.get(&device)).is_some_and(|ids| ids.contains(&id.0));
                match fault {
                    Fault::RefusesAcksOfEphemeral if it.ephemeral_ids.contains(&id.0) => return refuse(4012),
                    Fault::RefusesSecondAcks if again => return refuse(4012),
                    _ if !it.said_hello => {}
                    Fault::IgnoresAcksOfUnknown if !issued => return Instead::nothing(),
                    Fault::LosesAcks => return Instead::nothing(),
                    Fault::GivesNewIdsToOldMessages if id.0 > 0x0100_0000 && id.0 < 0x0200_0000 => {
                        let old = ReflectedId(id.0 - 0x0100_0000);
                        return Instead::up(Said::device(&FromDevice::ReflectedAck(old)));
                    }
                    Fault::WantsReservedZero if matches!(&said, Said::Binary(bytes) if bytes[4..8] != [0; 4]) => {
                        return refuse(4010);
                    }
                    _ => {}
                }
            }
            (FromDevice::BeginTransaction(begin), fault) => match fault {
                Fault::LetsHoldersBeginAgain if it.holds => {
                    return Instead::down(Said::mediator(&ToDevice::BeginTransactionAck));
                }
                Fault::KnowsNoTtl => {
                    let mut begin = begin.clone();
                    begin.ttl_s = 0;
                    return Instead::up(Said::device(&FromDevice::BeginTransaction(begin)));
                }
                Fault::WantsSomethingInEnvelopesAndScopes if begin.encrypted_scope.is_empty() => return refuse(4010),
                _ => {}
            },
            (FromDevice::CommitTransaction, Fault::LetsAnybodyCommit) if !it.holds => {
                return Instead::down(Said::mediator(&ToDevice::CommitTransactionAck));
            }
            (FromDevice::CommitTransaction, Fault::RefusesUnknownFields)
            | (FromDevice::GetDevicesInfo, Fault::RefusesUnknownFields)
                if matches!(&said, Said::Binary(bytes) if bytes.len() > 4) =>
            {
                return refuse(4010);
            }
            (FromDevice::CommitTransaction, _) if it.holds => {
                group.commits += 1;
                it.ended = group.commits;
            }
            (FromDevice::DropDevice(_), Fault::HoldsDropsInTransactions) if group.holder.is_some() => {
                return Instead::nothing();
            }
            (FromDevice::Unknown(_), Fault::IgnoresWhatItDoesNotKnow) => return Instead::nothing(),
            _ => {}
        }
        Instead::up(said)
    }

    fn to_device(&mut self, said: Said) -> Instead {
        let group = Arc::clone(&self.group);
        let mut group = group.lock().unwrap();
        let it = &mut self.it;
        if let Said::Close(code) = said {
            self.lost(&mut group);
            return Instead::down(Said::Close(match (self.fault, code) {
                (Fault::HasAnotherCodeForBadProofs, 4010) if !self.it.admitted => 4113,
                (Fault::ClosesWithoutReason, 4000) => 1011,
                (Fault::ReplacesSilently, 4112) => 1000,
                (Fault::AnswersClosesWithAnother, 1000) => 1001,
                _ => code,
            }));
        }
        let Some(payload) = said.to_device() else { return Instead::down(said) };
        let device = it.device.unwrap_or(DeviceId(0));
        match payload {
            ToDevice::ServerHello(mut hello) if self.fault == Fault::AnnouncesVersionOne => {
                hello.version = 1;
                return Instead::down(Said::mediator(&ToDevice::ServerHello(hello)));
            }
            ToDevice::ServerInfo(mut info) => {
                it.admitted = true;
                group.slots.insert(device);
                it.ended = group.commits;
                it.joined_in_transaction = group.holder.is_some() && info.slot_state == SlotState::New;
                match self.fault {
                    Fault::MiscountsTheQueue => info.reflection_queue_length += 1,
                    Fault::ForgetsSharedData => info.encrypted_shared_device_data.clear(),
                    Fault::ForgetsTheBacklog => info.reflection_queue_length = 0,
                    _ => {}
                }
                let info = Said::mediator(&ToDevice::ServerInfo(info));
                return match self.fault {
                    Fault::SpeaksForTheChatServerEarly if it.proxied_early => {
                        Instead::down(Said::mediator(&ToDevice::Proxy(vec![0; 80].into()))).and_down(info)
                    }
                    Fault::PromotesBeforeDry if group.leader.is_none() => {
                        group.leader = Some(device);
                        Instead::down(info).and_down(Said::mediator(&ToDevice::RolePromotedToLeader))
                    }
                    Fault::KeepsEphemeral => {
                        let kept = group.ephemeral.remove(&device).unwrap_or_default();
                        kept.into_iter().fold(Instead::down(info), |it, message| it.and_down(Said::Binary(message)))
                    }
                    _ => Instead::down(info),
                };
            }
            ToDevice::ReflectionQueueDry => {
                it.dry = true;
                match self.fault {
                    Fault::IsDryTwice => return Instead::down(said.clone()).and_down(said),
                    Fault::PromotesEverybody => {
                        return Instead::down(said).and_down(Said::mediator(&ToDevice::RolePromotedToLeader));
                    }
                    _ => {}
                }
            }
            ToDevice::RolePromotedToLeader => match self.fault {
                Fault::PromotesEverybody => return Instead::nothing(),
                Fault::PromotesBeforeDry if group.leader == Some(device) => return Instead::nothing(),
                _ => {}
            },
            ToDevice::DevicesInfo(mut devices) => match self.fault {
                Fault::HidesTheAskerFromDevicesInfo => {
                    devices.0.remove(&device);
                    return Instead::down(Said::mediator(&ToDevice::DevicesInfo(devices)));
                }
                Fault::ThinksEverybodyIsConnected => {
                    for info in devices.0.values_mut() {
                        info.connection = ConnectionState::ConnectedSince(1);
                    }
                    return Instead::down(Said::mediator(&ToDevice::DevicesInfo(devices)));
                }
                _ => {}
            },
            ToDevice::DropDeviceAck(id) => {
                let known = group.slots.remove(&id);
                if (self.fault == Fault::IsSilentAboutUnknownDrops && !known)
                    || (self.fault == Fault::IsSilentAboutSelfDrops && id == device)
                {
                    return Instead::nothing();
                }
            }
            ToDevice::BeginTransactionAck => {
                it.holds = true;
                group.holder = Some(device);
            }
            ToDevice::CommitTransactionAck => {
                it.holds = false;
                group.holder = None;
                let held = std::mem::take(&mut it.held);
                let mut instead = Instead { to_mediator: vec![], to_device: held }.and_down(said);
                if self.fault == Fault::TellsTheCommitter {
                    let own = TransactionHolder { device_id: device, encrypted_scope: vec![] };
                    instead = instead.and_down(Said::mediator(&ToDevice::TransactionEnded(own)));
                }
                return instead;
            }
            ToDevice::TransactionRejected(mut by) if self.fault == Fault::NamesTheAskerInRejections => {
                by.device_id = device;
                return Instead::down(Said::mediator(&ToDevice::TransactionRejected(by)));
            }
            ToDevice::TransactionEnded(_) => {
                group.holder = None;
                it.ended = group.commits;
                it.joined_in_transaction = false;
                if self.fault == Fault::SaysEndedBeforeMessages {
                    let held = std::mem::take(&mut it.held);
                    return held.into_iter().fold(Instead::down(said), Instead::and_down);
                }
            }
            ToDevice::ReflectAck(mut ack) => match self.fault {
                Fault::AcksAtCommit if it.holds => {
                    it.held.push(said);
                    return Instead::nothing();
                }
                Fault::TellsTheSenderAnotherTime => {
                    ack.timestamp_ms += 1_000;
                    return Instead::down(Said::mediator(&ToDevice::ReflectAck(ack)));
                }
                // The acks of 10 and 11 change places.
                Fault::SwapsReflectAcks if ack.reflect_id.0 == 10 && it.reflected_through >= 11 => {
                    it.held.push(said);
                    return Instead::nothing();
                }
                Fault::SwapsReflectAcks if ack.reflect_id.0 == 11 => {
                    let held = std::mem::take(&mut it.held);
                    return held.into_iter().fold(Instead::down(said), Instead::and_down);
                }
                _ => {}
            },
            ToDevice::Reflected(message) => return self.reflected(&mut group, device, said, &message),
            ToDevice::Proxy(unit) if self.fault == Fault::CutsUnits && unit.len() > 40 => {
                let (head, tail) = unit.split_at(40);
                let half = |bytes: &[u8]| Said::mediator(&ToDevice::Proxy(bytes.to_vec().into()));
                return Instead::down(half(head)).and_down(half(tail));
            }
            _ => {}
        }
        Instead::down(said)
    }

    fn device_lost(&mut self) -> Vec<Said> {
        let group = Arc::clone(&self.group);
        let mut group = group.lock().unwrap();
        let held = self.it.holds;
        self.lost(&mut group);
        if self.fault == Fault::DeliversWhatWasAborted && held {
            return vec![Said::device(&FromDevice::CommitTransaction)];
        }
        Vec::new()
    }
}

impl Faulty {
    fn lost(&mut self, group: &mut Group) {
        if group.leader == self.it.device {
            group.leader = None;
        }
        if std::mem::take(&mut self.it.holds) {
            group.holder = None;
        }
    }

    fn reflected(&mut self, group: &mut Group, device: DeviceId, said: Said, message: &Reflected) -> Instead {
        let it = &mut self.it;
        let (id, ephemeral) = (message.id().0, message.flags().ephemeral);
        group.issued.entry(device).or_default().insert(id);
        if ephemeral {
            it.ephemeral_ids.insert(id);
            group.ephemeral.entry(device).or_default().push(message.container().to_vec());
        }
        it.unacked += 1;
        match self.fault {
            Fault::ForgetsWhoJoinedInTheTransaction if it.joined_in_transaction && it.ended < group.commits => {
                Instead::nothing()
            }
            Fault::PassesFlagsOn => {
                let mut bytes = message.container().to_vec();
                bytes[5] = 7;
                bytes[7] = 0xff;
                Instead::down(Said::Binary(bytes))
            }
            Fault::SaysEndedBeforeMessages if it.ended < group.commits && it.dry && it.device != group.holder => {
                it.held.push(said);
                Instead::nothing()
            }
            Fault::ForgetsTheBacklog if !it.dry => Instead::nothing(),
            Fault::GivesNewIdsToOldMessages if !it.dry => {
                let envelope = Envelope::copy_from(message.envelope());
                let id = ReflectedId(id + 0x0100_0000);
                let again = Reflected::new(envelope, message.flags(), id, message.timestamp_ms());
                Instead::down(Said::mediator(&ToDevice::Reflected(again)))
            }
            Fault::WaitsForAcks if it.unacked > 64 => Instead::nothing(),
            _ => Instead::down(said),
        }
    }
}
