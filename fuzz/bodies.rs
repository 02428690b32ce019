//! What is asked of everything that reads bytes from strangers: it answers, it never panics, and what it lets in is
//! what it says it is. Each function is one fuzz target, and a plain test over the committed corpus (`tests/fuzz_corpus.rs`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use heliostat::capture::{Entry, Event, Reader, Tail};
use heliostat::chat::chatos::state::{self as chatos_state, ConnId, Say, State};
use heliostat::chat::chatos::wire as chatos;
use heliostat::chat::csp::wire::handshake::{AwaitLogin, CLIENT_HELLO, HandshakeError, LOGIN_BOX};
use heliostat::chat::csp::wire::{Extensions, Frames, FromClient, LoginAck, ToClient};
use heliostat::chat::skynet::wire as skynet;
use heliostat::crypto::{Secret, boxes};
use heliostat::group::limits::{OUTBOX_PAYLOADS_MAX, PAGE_COST, cost};
use heliostat::group::ranges::RangeSet;
use heliostat::group::record::Seq;
use heliostat::group::{Act, ConnectionId, Group, Input, Introduction, Limits, Notice, Request, Step};
use heliostat::hub::Challenge;
use heliostat::session::handshake::{AwaitClientHello, EARLY_PROXY_MAX, Progress};
use heliostat::store::{MemoryStore, Store as _};
use heliostat::time::Now;
use heliostat::upstream::framer::{CSP_FRAME_MAX, Framer, Framing};
use heliostat::wire::csp::ServerStream;
use heliostat::wire::d2m::url::SEGMENT_MAX;
use heliostat::wire::d2m::{
    BeginTransaction, CONTAINER_HEADER, CONTAINER_MAX, ClientUrlInfo, DeviceGroupId, DeviceId, ENVELOPE_MAX, Envelope,
    FromDevice, Reflect, ReflectFlags, ReflectId, ReflectedId, SlotExpiration, SlotState, SlotsExhausted, ToDevice,
};
use heliostat::wire::delimit::{BadUnit, Cutter, Delimiter};
use heliostat::wire::haproxy::{self, Said};

/// Secrets, keys and answers of the vectors, so that the fuzzer starts from something that is let in.
mod known {
    pub(super) const DGID: &str = "2fd17ba2f9c2c31e52f0acbba8ff741ac89b3b58a8c208a25ad4a625ea138723";
    pub(super) const ESK: &str = "7a67882f76b00bc738eeee11fa255dc84f6fafcfa0a58a7f34e9f2454927568a";
    pub(super) const CHALLENGE: &str = "ac32f650fe3528143e1d45d7f584ccb92fa144e3983c691f0b55a5196fa0bb52";
    pub(super) const RESPONSE: &str = "654e2c87d7820cbeb1b5b550f43166549582b5b353e00e27";
    pub(super) const SK: &str = "bd55cd3ee24a2f6574999c70beda8c996c1ea399750268bedaa0ea278d0dc0c4";
    pub(super) const CK_PUBLIC: &str = "190ea8a28d9f38da14299510730cc3b56076ffff612c11a9067c90cfebce3962";
    pub(super) const TSK: &str = "0aafeac9c24dd21b11ffcb5ae96e48481049c559d4d49359a593c9d915762719";
    pub(super) const SCK: &str = "b51216e3d9824c58c5992fbc4e262256";

    pub(super) fn bytes<const N: usize>(digits: &str) -> [u8; N] {
        std::array::from_fn(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap())
    }
}

/// One container, read as if it came from either side: what is understood is written again, and understood as the same.
pub fn d2m_container(data: &[u8]) {
    let message = Bytes::copy_from_slice(data);
    match FromDevice::decode(&message) {
        Ok(FromDevice::Unknown(unknown)) => assert_eq!(unknown.len + 4, data.len()),
        Ok(payload) => {
            let again = payload.encode();
            assert!(again.len() <= CONTAINER_MAX && again[0] == data[0]);
            assert_eq!(FromDevice::decode(&again), Ok(payload));
        }
        Err(bad) => assert!(bad.to_string().len() < 100, "fits a close frame: {bad}"),
    }
    match ToDevice::decode(&message) {
        Ok(ToDevice::Unknown(unknown)) => assert_eq!(unknown.len + 4, data.len()),
        Ok(payload) => {
            let again = payload.encode();
            assert!(again.len() <= CONTAINER_MAX && again[0] == data[0]);
            // What an outbox is charged is never less than what it holds.
            assert!(payload.weight() + 256 >= again.len(), "{} for {}", payload.weight(), again.len());
            assert_eq!(ToDevice::decode(&again), Ok(payload));
        }
        Err(bad) => assert!(bad.to_string().len() < 100, "fits a close frame: {bad}"),
    }
}

/// A path. What names a group does so in one way.
pub fn d2m_url(data: &[u8]) {
    let path = String::from_utf8_lossy(data);
    if let Ok(info) = ClientUrlInfo::from_path(&path) {
        let segment = info.to_segment();
        assert!(segment.len() <= SEGMENT_MAX);
        assert_eq!(ClientUrlInfo::from_path(&format!("/any/prefix//{segment}/")), Ok(info));
    }
}

/// A capture, from a file that anybody may have made: it is read to its end, whatever kind of end that is, and what was read
/// is written and read again as the same.
pub fn capture(data: &[u8]) {
    let Ok(mut reader) = Reader::new(data) else { return };
    let entries = reader.rest().unwrap();
    assert_ne!(reader.tail(), Tail::Unread);
    let mut again = reader.header().encode();
    entries.iter().for_each(|entry| entry.encode(&mut again));
    let mut reread = Reader::new(&again[..]).unwrap();
    let fits = |entry: &Entry| !matches!(&entry.event, Event::Close { reason, .. } if reason.len() > 123);
    let reread = reread.rest().unwrap();
    assert_eq!(reread.len(), entries.len());
    // A reason that fits no close frame is cut when it is written.
    assert!(reread.iter().zip(&entries).all(|(new, old)| new == old || !fits(old)));
}

/// What a TCP proxy writes before anything else, read as a connection reads it: nothing is asked for that may not belong to
/// the header, and nothing that is let in is longer than allowed.
pub fn proxy_header(data: &[u8]) {
    let mut len = 0;
    loop {
        match haproxy::decode(&data[..len]) {
            Ok(haproxy::Step::Read(more)) => {
                assert!(more > 0);
                len += more;
                assert!(len <= if data.starts_with(b"PROXY ") { haproxy::V1_MAX } else { haproxy::V2_MAX });
                if len > data.len() {
                    return;
                }
            }
            Ok(haproxy::Step::Done(said)) => {
                // Of version 1, what was said can be said again.
                if let (Said::From(source), true) = (said, data.starts_with(b"PROXY ")) {
                    let family = if source.is_ipv4() { 4 } else { 6 };
                    let (ip, port) = (source.ip(), source.port());
                    let again = format!("PROXY TCP{family} {ip} {ip} {port} {port}\r\n");
                    assert_eq!(haproxy::decode(again.as_bytes()), Ok(haproxy::Step::Done(said)));
                }
                return;
            }
            Err(bad) => return assert!(bad.to_string().len() < 100, "{bad}"),
        }
    }
}

/// A connection before its device is admitted: containers, each behind its length. Only the holder of the key gets in,
/// and early bytes for the chat server come out as they went in.
pub fn await_client_hello(mut data: &[u8]) {
    let group = DeviceGroupId::new(known::bytes(known::DGID));
    let challenge = Challenge::new(Secret::new(known::bytes(known::ESK)), known::bytes(known::CHALLENGE));
    let (mut state, _) = AwaitClientHello::start(group, challenge);
    let mut early = Vec::new();
    while let Some((len, rest)) = data.split_first_chunk::<2>() {
        let (container, rest) = rest.split_at(rest.len().min(u16::from_le_bytes(*len).into()));
        data = rest;
        let Ok(payload) = FromDevice::decode(&Bytes::copy_from_slice(container)) else { return };
        let response = match &payload {
            FromDevice::Proxy(bytes) => {
                early.extend_from_slice(bytes);
                None
            }
            FromDevice::ClientHello(hello) => Some(hello.response),
            _ => None,
        };
        match state.handle(payload) {
            Ok(Progress::Waiting(next)) => {
                assert_eq!(response, None, "a hello is judged");
                assert!(early.len() <= EARLY_PROXY_MAX);
                state = next;
            }
            Ok(Progress::Admitted(admitted, held)) => {
                assert_eq!(admitted.group(), group);
                // There is one answer to this challenge that we know of.
                assert_eq!(response.unwrap()[..24], known::bytes::<24>(known::RESPONSE));
                assert_eq!(held, early);
                return;
            }
            Err(ending) => {
                assert!(ending.close_code().is_some() && ending.reason().len() <= 123);
                return;
            }
        }
    }
}

/// A client that knows the server's key and puts anything into its login: hello, login data, extensions.
pub fn csp_login(data: &[u8]) {
    if let Ok(extensions) = Extensions::decode(data)
        && extensions.client_info.as_ref().is_none_or(|info| info.len() <= 4_096)
    {
        assert_eq!(Extensions::decode(&extensions.encode()), Ok(extensions));
    }

    let Some((hello, rest)) = data.split_first_chunk::<CLIENT_HELLO>() else { return };
    let Some((login, extensions)) = rest.split_first_chunk::<{ LOGIN_BOX - boxes::TAG }>() else { return };
    let (server_key, ephemeral) = (Secret::new(known::bytes(known::SK)), Secret::new(known::bytes(known::TSK)));
    let mut client_ephemeral = [0; 32];
    client_ephemeral.copy_from_slice(&hello[..32]);
    let Ok(key) = boxes::beforenm(&ephemeral, &client_ephemeral) else { return };
    let Ok((state, _)) = AwaitLogin::answer(&server_key, hello, ephemeral, known::bytes(known::SCK)) else { return };
    let nonce = |number: u64| {
        let mut nonce = [0; 24];
        nonce[..16].copy_from_slice(&hello[32..]);
        nonce[16..].copy_from_slice(&number.to_le_bytes());
        nonce
    };
    let boxed = boxes::seal(&key, &nonce(1), login);
    let Ok(login) = state.open(boxed.as_slice().try_into().unwrap()) else { return };
    // The room reads as many bytes as were announced.
    let (announced, boxed) = (login.extensions_len(), boxes::seal(&key, &nonce(2), extensions));
    let Ok(claim) = login.claim(&boxed[..announced.min(boxed.len())]) else { return };
    match claim.verify(&server_key, &known::bytes(known::CK_PUBLIC)) {
        Ok(verified) => {
            let _session = verified.accept(LoginAck { time_ms: 1, queued: 2 });
        }
        Err(refused) => assert_eq!(refused, HandshakeError::BadVouch),
    }
}

/// What stands in a frame of the chat server's protocol, read as if it came from either side.
pub fn csp_container(data: &[u8]) {
    let container = Bytes::copy_from_slice(data);
    match FromClient::decode(&container) {
        Ok(FromClient::Unknown(_)) | Err(_) => {}
        Ok(payload) => assert_eq!(FromClient::decode(&payload.encode()), Ok(payload)),
    }
    match ToClient::decode(&container) {
        Ok(ToClient::Unknown(_)) | Err(_) => {}
        Ok(payload) => assert_eq!(ToClient::decode(&payload.encode()), Ok(payload)),
    }
}

/// A packet's id and payload, read as if it came from either side, and what may be inside of a message: what is understood
/// is written again in no more bytes, and understood as the same.
pub fn skynet_packet(data: &[u8]) {
    let Some((&id, payload)) = data.split_first() else { return };
    if let Ok(packet) = skynet::FromClient::decode(id, payload) {
        let again = packet.encode().unwrap();
        assert!(again[0] == id && again.len() <= skynet::HEADER + payload.len());
        assert_eq!(skynet::FromClient::decode(id, &again[skynet::HEADER..]), Ok(packet));
    }
    if let Ok(packet) = skynet::ToClient::decode(id, payload) {
        let again = packet.encode().unwrap();
        assert!(again[0] == id && again.len() <= skynet::HEADER + payload.len());
        assert_eq!(skynet::ToClient::decode(id, &again[skynet::HEADER..]), Ok(packet));
    }
    let (Some(kind), Some((&flags, content))) = (skynet::Kind::from_id(id), payload.split_first()) else { return };
    let flags = skynet::MessageFlags(flags);
    if let Ok((inside, file)) = skynet::Content::decode(kind, flags, content) {
        let again = inside.encode(file.as_ref()).unwrap();
        assert!(again.len() <= content.len());
        assert_eq!(skynet::Content::decode(kind, flags, &again), Ok((inside, file)));
    }
}

/// A stream, cut by TCP as the first bytes say: a count, then so many lengths of pieces, again and again. The units do
/// not depend on it, and nothing is lost or invented between them.
pub fn cutters(data: &[u8]) {
    let Some((&pieces, rest)) = data.split_first() else { return };
    let (pieces, stream) = rest.split_at(rest.len().min(pieces.into()));
    cut(|| ServerStream::new(CSP_FRAME_MAX), pieces, stream);
    cut(Frames::default, pieces, stream);
    cut(|| heliostat::wire::chatos::ServerStream::new(chatos::CLIENT_CAPS, 1), pieces, stream);
    cut(|| heliostat::wire::skynet::ServerStream::new(8), pieces, stream);
    for framing in [Framing::Csp, Framing::ChatOs, Framing::Skynet, Framing::ToxGroup, Framing::Raw] {
        let mut framer = Framer::new(framing);
        let mut proxied = Vec::new();
        for_each_piece(pieces, stream, |piece| {
            framer.push(piece);
            while let Ok(Some(payload)) = framer.next_payload() {
                assert!(payload.len() <= CONTAINER_MAX, "a unit fits a container");
                let said = ToDevice::decode(&payload);
                assert!(matches!(said, Ok(ToDevice::Proxy(_))), "no proxy payload: {payload:?}");
                proxied.extend_from_slice(payload.get(CONTAINER_HEADER..).unwrap_or_default());
            }
        });
        assert!(stream.starts_with(&proxied));
        assert!(framing != Framing::Raw || proxied == stream);
    }
}

fn cut<D: Delimiter>(delimiter: impl Fn() -> D, pieces: &[u8], stream: &[u8]) {
    let units = |pieces: &[u8]| {
        let mut cutter = Cutter::new(delimiter());
        let (mut units, mut bad): (Vec<Bytes>, Option<BadUnit>) = (Vec::new(), None);
        for_each_piece(pieces, stream, |piece| {
            cutter.buffer().extend_from_slice(piece);
            while bad.is_none() {
                match cutter.next_unit() {
                    Ok(Some(unit)) => units.push(unit),
                    Ok(None) => break,
                    Err(error) => bad = Some(error),
                }
            }
        });
        let rest = std::mem::take(cutter.buffer());
        (units, bad, rest)
    };
    let (in_pieces, at_once) = (units(pieces), units(&[]));
    let joined: BytesMut = in_pieces.0.iter().flatten().chain(&in_pieces.2).copied().collect();
    assert_eq!(joined, stream, "nothing is lost and nothing invented");
    assert_eq!(in_pieces, at_once, "TCP makes no difference");
}

fn for_each_piece(pieces: &[u8], mut stream: &[u8], mut take: impl FnMut(&[u8])) {
    for &len in pieces.iter().cycle().take(stream.len()) {
        let (piece, rest) = stream.split_at(stream.len().min(usize::from(len).max(1)));
        take(piece);
        stream = rest;
    }
    take(stream);
}

/// A set of acknowledgements as it is kept: a count of operations, those, then what was kept.
pub fn ranges(data: &[u8]) {
    let Some((&operations, rest)) = data.split_first() else { return };
    let (operations, kept) = rest.split_at(rest.len().min(9 * usize::from(operations)));
    let Some(mut set) = RangeSet::from_bytes(kept) else { return };
    assert_eq!(set.to_bytes(), kept);
    for operation in operations.chunks_exact(9) {
        let (&what, n) = operation.split_first().unwrap();
        let n = u64::from_le_bytes(n.try_into().unwrap());
        let before = set.contains(n);
        match what % 4 {
            0 => {
                assert_eq!(set.insert(n), !before);
                assert!(set.contains(n));
            }
            1 => {
                assert_eq!(set.remove(n), before);
                assert!(!set.contains(n));
            }
            2 => {
                set.remove_through(n);
                assert!(!set.contains(n) && !set.contains(0));
            }
            _ => {
                let most = usize::from(what / 4);
                let had = set.ranges();
                assert_eq!(set.truncate(most) > 0, had > most);
                assert_eq!(set.ranges(), had.min(most));
            }
        }
        assert_eq!(RangeSet::from_bytes(&set.to_bytes()).as_ref(), Some(&set), "what is kept can be read");
    }
}

/// What may happen to a group, two bytes each: which, and how. The group asserts its own invariants after every input;
/// from outside it is asked for what devices are promised.
pub fn group(data: &[u8]) {
    let mut world = World::new();
    for pair in data.chunks_exact(2) {
        world.happens(pair[0], pair[1]);
    }
    world.settles();
}

const GROUP: DeviceGroupId = DeviceGroupId::new([7; 32]);

fn limits() -> Limits {
    Limits {
        max_device_slots: 3,
        max_queue_messages: 20,
        max_queue_bytes: 200_000,
        transaction_ttl_max: Duration::from_secs(20),
        volatile_slot_ttl: Duration::from_secs(30),
        persistent_slot_ttl: Some(Duration::from_secs(600)),
        staged_messages_max: 4,
        staged_bytes_max: 100_000,
    }
}

struct World {
    now: Now,
    group: Group,
    store: MemoryStore,
    sockets: BTreeMap<ConnectionId, Socket>,
    reads: VecDeque<(ConnectionId, Seq, Seq)>,
    connections: u64,
    messages: u32,
    slots: BTreeMap<DeviceId, Slot>,
    holder: Option<ConnectionId>,
    /// What was accepted and neither acknowledged nor committed yet, and whose it will be then.
    accepted: BTreeMap<u32, Vec<SlotId>>,
    /// What was acknowledged or committed, and to whom it has to come.
    promised: BTreeSet<(SlotId, u32)>,
    arrived: BTreeSet<(SlotId, u32)>,
}

/// A device, and how many connections there had been when its slot was made: another slot is another number.
type SlotId = (DeviceId, u64);

struct Slot {
    made: u64,
    /// What arrived, and may be acknowledged.
    unacked: VecDeque<ReflectedId>,
}

struct Socket {
    device: DeviceId,
    outbox: VecDeque<ToDevice>,
    /// The id of the last message, which only grows.
    last: Option<u32>,
    /// Said under the lock, and then what was committed and is not answered yet.
    staged: Vec<u32>,
    committed: Vec<u32>,
    introduced: bool,
}

impl World {
    fn new() -> Self {
        Self {
            now: Now { monotonic: Duration::ZERO, wall_ms: 1_700_000_000_000 },
            group: Group::empty(limits()),
            store: MemoryStore::new(),
            sockets: BTreeMap::new(),
            reads: VecDeque::new(),
            connections: 0,
            messages: 0,
            slots: BTreeMap::new(),
            holder: None,
            accepted: BTreeMap::new(),
            promised: BTreeSet::new(),
            arrived: BTreeSet::new(),
        }
    }

    fn happens(&mut self, what: u8, how: u8) {
        let conn = self.sockets.keys().nth(usize::from(how) % self.sockets.len().max(1)).copied();
        let detail = how / 4;
        match (what % 16, conn) {
            (0 | 1, _) => {
                let device = DeviceId(u64::from(how % 5));
                let known = self.group.devices().any(|known| known == device);
                // Some are mistaken about their slot.
                self.join(device, known == (detail != 63), detail);
            }
            (2, Some(conn)) => {
                let introduced = self.sockets.remove(&conn).is_some_and(|socket| socket.introduced);
                self.reads.retain(|read| read.0 != conn);
                self.does(Input::Leave { conn, introduced });
            }
            (3..=6, Some(conn)) => {
                self.messages += 1;
                let number = self.messages;
                let mut envelope = vec![0; [4, 40, 4_000, ENVELOPE_MAX][usize::from(detail % 4)]];
                envelope[..4].copy_from_slice(&number.to_le_bytes());
                let flags = ReflectFlags { ephemeral: detail & 4 != 0 };
                let (reflect_id, envelope) = (ReflectId(number), Envelope::copy_from(&envelope));
                self.says(conn, Request::Reflect(Reflect { flags, reflect_id, envelope }));
                if self.holder == Some(conn)
                    && !flags.ephemeral
                    && let Some(socket) = self.sockets.get_mut(&conn)
                {
                    socket.staged.push(number);
                }
            }
            (7 | 8, Some(conn)) => {
                let device = self.sockets[&conn].device;
                let Some(Slot { unacked, .. }) = self.slots.get_mut(&device) else { return };
                let at = if detail & 1 == 0 { 0 } else { usize::from(detail) % unacked.len().max(1) };
                // Acknowledged and asked for again: twice is allowed. What was never sent is not.
                let again = unacked.get(at).copied();
                let id = if detail & 2 == 0 { unacked.remove(at) } else { again };
                let wild = (detail == 60).then_some(ReflectedId(u32::MAX));
                let Some(id) = wild.or(id) else { return };
                self.says(conn, Request::ReflectedAck(id));
            }
            (9, Some(conn)) => {
                let begin = BeginTransaction { encrypted_scope: vec![1; detail.into()], ttl_s: u32::from(detail) % 30 };
                self.says(conn, Request::BeginTransaction(begin));
            }
            (10, Some(conn)) => self.says(conn, Request::CommitTransaction),
            (11, Some(conn)) => {
                let request = match detail % 8 {
                    0..=4 => Request::GetDevicesInfo,
                    5 => Request::SetSharedDeviceData(vec![2; detail.into()]),
                    _ => Request::DropDevice(DeviceId(u64::from(detail) % 5)),
                };
                self.says(conn, request);
            }
            (12, Some(conn)) => self.flows(conn, 1 + usize::from(detail)),
            (13, _) => self.page(1 + 2_000 * usize::from(how)),
            (14, _) => self.pass(Duration::from_millis([5, 120, 1_100, 31_000][usize::from(how % 4)])),
            (15, _) if how >= 250 => self.dies(),
            (15, _) if self.group.is_deserted() => {
                let step = self.group.lay_down();
                self.carry_out(step);
                self.wakes();
            }
            _ => {}
        }
    }

    fn join(&mut self, device: DeviceId, existing: bool, detail: u8) {
        let conn = ConnectionId(self.connections);
        self.connections += 1;
        let (outbox, staged, committed) = (VecDeque::new(), Vec::new(), Vec::new());
        let socket = Socket { device, outbox, last: None, staged, committed, introduced: false };
        self.sockets.insert(conn, socket);
        let introduction = Introduction {
            device,
            slots_exhausted: if detail & 1 == 0 { SlotsExhausted::DropLeastRecent } else { SlotsExhausted::Reject },
            slot_expiration: if detail & 2 == 0 { SlotExpiration::Persistent } else { SlotExpiration::Volatile },
            expected_slot_state: if existing { SlotState::Existing } else { SlotState::New },
            encrypted_device_info: vec![3; detail.into()],
        };
        self.does(Input::Join(conn, introduction));
    }

    fn says(&mut self, conn: ConnectionId, request: Request) {
        self.does(Input::Says(conn, request));
    }

    fn does(&mut self, input: Input) {
        let reflected = match &input {
            Input::Says(conn, Request::Reflect(reflect)) if !reflect.flags.ephemeral => {
                Some((*conn, reflect.reflect_id.0))
            }
            _ => None,
        };
        let step = self.group.handle(self.now, input);
        self.look_at_slots();
        if let Some((conn, number)) = reflected
            && self.holder != Some(conn)
        {
            let others = self.others(self.sockets[&conn].device);
            self.accepted.insert(number, others);
        }
        self.carry_out(step);
    }

    fn look_at_slots(&mut self) {
        let devices: BTreeSet<_> = self.group.devices().collect();
        self.slots.retain(|device, _| devices.contains(device));
        for device in devices {
            self.slots.entry(device).or_insert(Slot { made: self.connections, unacked: VecDeque::new() });
        }
    }

    fn others(&self, than: DeviceId) -> Vec<SlotId> {
        let ids = self.slots.iter().map(|(&device, slot)| (device, slot.made));
        ids.filter(|(device, _)| *device != than).collect()
    }

    /// Keeps, then speaks, as the hub does.
    fn carry_out(&mut self, Step { writes, acts, notices }: Step) {
        if !writes.is_empty() {
            let kept = self.store.commit(GROUP, writes).now_or_never().unwrap();
            assert_eq!(kept, Ok(()), "a group asks for what can be kept");
        }
        for notice in notices {
            let seat_of = |device| self.sockets.iter().find(|(_, s)| s.device == device).map(|(conn, _)| *conn);
            match notice {
                Notice::TransactionBegan(device) => self.holder = seat_of(device),
                Notice::TransactionAborted { .. } => self.holder = None,
                Notice::TransactionCommitted { device, .. } => {
                    let others = self.others(device);
                    let conn = self.holder.take().unwrap();
                    let socket = self.sockets.get_mut(&conn).unwrap();
                    self.accepted.extend(socket.staged.iter().map(|number| (*number, others.clone())));
                    socket.committed.append(&mut socket.staged);
                }
                _ => {}
            }
        }
        for act in acts {
            match act {
                Act::Send(conn, payload) => self.sent(conn, payload),
                Act::Close(conn, _) => {
                    let socket = self.sockets.remove(&conn);
                    assert!(socket.is_some(), "a connection is closed once");
                    self.reads.retain(|read| read.0 != conn);
                    if let Some(Socket { device, outbox, .. }) = socket {
                        outbox.iter().for_each(|payload| self.arrives(device, payload));
                    }
                }
                Act::Read { conn, after, through } => self.reads.push_back((conn, after, through)),
            }
        }
        let after = self.group.handle(self.now, Input::Durable);
        assert!(after.writes.is_empty() && after.acts.is_empty());
    }

    fn sent(&mut self, conn: ConnectionId, payload: ToDevice) {
        let socket = self.sockets.get_mut(&conn);
        assert!(socket.is_some(), "{payload:?} for a connection that is over");
        let Some(socket) = socket else { return };
        let mut answered = Vec::new();
        match &payload {
            ToDevice::Reflected(reflected) => {
                assert!(socket.last < Some(reflected.id().0), "ids grow, and nothing comes twice on a connection");
                socket.last = Some(reflected.id().0);
            }
            // Of what was said under the lock, the commit decides.
            ToDevice::ReflectAck(ack) if socket.staged.contains(&ack.reflect_id.0) => {}
            ToDevice::ReflectAck(ack) if socket.committed.contains(&ack.reflect_id.0) => {}
            ToDevice::ReflectAck(ack) => answered.push(ack.reflect_id.0),
            ToDevice::CommitTransactionAck => answered.append(&mut socket.committed),
            _ => {}
        }
        socket.outbox.push_back(payload);
        assert!(socket.outbox.len() <= OUTBOX_PAYLOADS_MAX);
        for number in answered {
            let slots = self.accepted.remove(&number).into_iter().flatten();
            self.promised.extend(slots.map(|slot| (slot, number)));
        }
    }

    fn arrives(&mut self, device: DeviceId, payload: &ToDevice) {
        let (ToDevice::Reflected(reflected), Some(slot)) = (payload, self.slots.get_mut(&device)) else { return };
        let number = u32::from_le_bytes(*reflected.envelope().first_chunk().unwrap());
        slot.unacked.push_back(reflected.id());
        self.arrived.insert(((device, slot.made), number));
    }

    fn flows(&mut self, conn: ConnectionId, most: usize) {
        let Some(socket) = self.sockets.get_mut(&conn) else { return };
        let taken: Vec<_> = socket.outbox.drain(..most.min(socket.outbox.len())).collect();
        socket.introduced |= !taken.is_empty();
        let device = socket.device;
        for payload in &taken {
            self.arrives(device, payload);
        }
        if !taken.is_empty() {
            self.does(Input::Written(conn, taken.iter().map(cost).sum()));
        }
    }

    fn page(&mut self, cost_max: usize) {
        let Some((conn, after, through)) = self.reads.pop_front() else { return };
        let page = self.store.page(GROUP, after, through, cost_max.min(PAGE_COST)).now_or_never().unwrap().unwrap();
        self.does(Input::Page(conn, page));
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now.plus(time);
        while let Some(at) = self.group.next_deadline(self.now).filter(|&at| at <= until.monotonic) {
            self.now = self.now.plus(at.saturating_sub(self.now.monotonic));
            self.does(Input::Tick);
        }
        self.now = self.now.plus(until.monotonic.saturating_sub(self.now.monotonic));
    }

    fn dies(&mut self) {
        self.sockets.clear();
        self.reads.clear();
        self.holder = None;
        self.store = self.store.survivors(self.now.wall_ms);
        self.wakes();
    }

    fn wakes(&mut self) {
        let kept = self.store.load(GROUP).now_or_never().unwrap().unwrap();
        self.group =
            kept.map_or_else(|| Group::empty(limits()), |snapshot| Group::restore(self.now, snapshot, limits()));
    }

    /// Everybody comes, and takes what there is: then nothing is due any more.
    fn settles(&mut self) {
        let away: Vec<_> =
            self.group.devices().filter(|device| !self.sockets.values().any(|s| s.device == *device)).collect();
        for device in away {
            self.join(device, true, 0);
        }
        loop {
            while !self.reads.is_empty() {
                self.page(PAGE_COST);
            }
            let full = self.sockets.iter().find(|(_, socket)| !socket.outbox.is_empty());
            let Some(conn) = full.map(|(conn, _)| *conn) else { break };
            self.flows(conn, usize::MAX);
        }
        let still_there = |slot: &SlotId| self.slots.get(&slot.0).is_some_and(|now| now.made == slot.1);
        for (slot, number) in self.promised.difference(&self.arrived) {
            assert!(!still_there(slot), "message {number} never arrived at {slot:?}");
        }
    }
}

/// A ChatOs room and up to eight connections that say what the data say, at times that the data say. Whatever is decoded is
/// encoded to the same octets, whoever has left is told nothing more, nobody is called like another, and when all have left the
/// room is empty.
pub fn chatos_room(mut data: &[u8]) {
    let mut ids = 0;
    let dice = Box::new(move || {
        ids += 2;
        ids
    });
    let mut room = State::new(chatos_state::Limits { connections_max: 6, ..Default::default() }, dice);
    let mut now = Now { monotonic: Duration::from_secs(1), wall_ms: 0 };
    let (mut next, mut seats) = (0, [None; 8]);
    let mut received: [BytesMut; 8] = Default::default();
    let mut here = BTreeSet::new();
    let mut names: BTreeMap<ConnId, String> = BTreeMap::new();
    let mut pipes = BTreeSet::new();
    let mut step = |input, now, here: &mut BTreeSet<ConnId>, pipes: &mut BTreeSet<_>| {
        for say in room.handle(now, input).says {
            match say {
                Say::Send(to, octets) => {
                    assert!(here.contains(&to), "{to:?} has left");
                    let packet = chatos::ToClient::decode(&octets).unwrap();
                    assert_eq!(packet.encode(), octets);
                    if let chatos::ToClient::Welcome(name) = packet {
                        names.retain(|conn, _| here.contains(conn));
                        assert!(!names.values().any(|other| *other == name));
                        names.insert(to, name);
                    }
                }
                Say::End(conn, ..) => assert!(here.remove(&conn)),
                Say::Couple { first, second, id, .. } => {
                    assert!(here.remove(&first) && here.remove(&second) && pipes.insert(id));
                }
                Say::ClosePipe(id) => assert!(pipes.contains(&id)),
                Say::Notice(_) => {}
            }
        }
        if now.monotonic == Duration::MAX { room.is_empty() } else { true }
    };
    const ACCEPTED: [&[u8]; 2] = [chatos::NEW, chatos::ONLINE];
    let caps = heliostat::wire::chatos::Caps { name: 1_024, text: 2_048 };
    while let Some((&[seat, what], rest)) = data.split_first_chunk::<2>() {
        data = rest;
        let at = usize::from(seat % 8);
        let input = match what {
            0..16 => {
                now = now.plus(Duration::from_secs(u64::from(what) * 5));
                chatos_state::Input::Tick
            }
            16 => match pipes.pop_first() {
                Some(id) => chatos_state::Input::PipeOver(id),
                None => chatos_state::Input::Moved { id: chatos::PrivateId(1), at: now.monotonic },
            },
            17 => match seats[at].take() {
                Some((conn, _)) => chatos_state::Input::Over { conn, why: chatos_state::Ending::Gone },
                None => chatos_state::Input::Tick,
            },
            len => match &mut seats[at] {
                None => {
                    next += 1;
                    let conn = ConnId(next);
                    (seats[at], received[at]) = (Some((conn, 0)), BytesMut::new());
                    here.insert(conn);
                    chatos_state::Input::Opened { conn, ip: [127, 0, 0, 1].into() }
                }
                Some((conn, phase)) => {
                    let (octets, rest) = data.split_at(data.len().min(usize::from(len) - 17));
                    data = rest;
                    received[at].extend_from_slice(octets);
                    match chatos::take_packet(&mut received[at], caps, ACCEPTED[*phase]) {
                        Ok(Some(octets)) => match chatos::FromClient::decode(&octets, 2_048) {
                            Ok(packet) => {
                                assert_eq!(packet.encode(), octets);
                                *phase = 1;
                                let partial = !received[at].is_empty();
                                chatos_state::Input::Heard { conn: *conn, packets: vec![packet], partial }
                            }
                            Err(why) => chatos_state::Input::Malformed { conn: *conn, why },
                        },
                        Ok(None) => chatos_state::Input::Heard { conn: *conn, packets: vec![], partial: true },
                        Err(why) => chatos_state::Input::Malformed { conn: *conn, why: why.into() },
                    }
                }
            },
        };
        step(input, now, &mut here, &mut pipes);
    }
    for conn in here.clone() {
        step(chatos_state::Input::Over { conn, why: chatos_state::Ending::Broken }, now, &mut here, &mut pipes);
    }
    while let Some(id) = pipes.pop_first() {
        step(chatos_state::Input::PipeOver(id), now, &mut here, &mut pipes);
    }
    now.monotonic = Duration::MAX;
    assert!(step(chatos_state::Input::Tick, now, &mut here, &mut pipes), "somebody is left");
}

/// A hub of Tox groups, classic or signed as the first byte says, and two members of it that say what the data say: each piece is
/// a decrypted text behind its length and a byte that says whose it is and how long they waited. Whatever is understood is
/// encoded to what means the same, and whatever the hub sends is a packet.
pub fn tox_group(data: &[u8]) {
    use heliostat::chat::toxgroup::state::{Command, Endpoint, Group, Input, Mode, Own, Rules};
    use heliostat::chat::toxgroup::wire::message::{Signed, read_record, record_payload};
    use heliostat::chat::toxgroup::wire::{
        ClientId, GroupId, JoinRequest, Message, MessageId, Request, Sealed, SigPk, Token, seal,
    };
    use heliostat::crypto::sign;

    if let Ok(token) = Token::decode(data) {
        assert_eq!(token.encode(), data);
    }
    let Some((&mode, mut rest)) = data.split_first() else { return };
    let secret = |byte| Secret::new([byte; 32]);
    let pair = sign::Pair::new(&secret(9));
    let id = GroupId(pair.public());
    let signed = mode % 2 == 1;
    let mode = if signed { Mode::Signed } else { Mode::Classic { owner: None, topic_lock: mode & 2 != 0 } };
    let mut now = Now { monotonic: Duration::from_secs(1_000), wall_ms: 1_700_000_000_000 };
    let mut dice = 0;
    let dice = Box::new(move || {
        dice += 1;
        dice
    });
    let own = |byte, pair| Own::new(secret(byte), pair, 0, "x");
    let rules = Rules { hub: true, ..Rules::default() };
    let hub = own(1, signed.then(|| pair.clone()));
    let to = hub.id();
    let mut group = Group::new(id, mode, rules, hub, now, dice);
    let members: [ClientId; 2] = [2, 3].map(|byte| ClientId(boxes::public(&secret(byte))));
    if signed {
        let open = heliostat::chat::toxgroup::state::Shape { open: Some(true), ..Default::default() };
        drop(group.command(now, Command::Found(open)).unwrap());
        for (byte, member) in [2, 3].into_iter().zip(members) {
            let pair = sign::Pair::new(&secret(byte + 100));
            let mut join = JoinRequest {
                token_id: [0; 16],
                token_secret: [0; 32],
                sig_pk: SigPk(pair.public()),
                time_s: now.wall_ms / 1_000,
                name: vec![byte],
                signature: [0; 64],
            };
            join.signature = pair.sign(&join.to_sign(&id, &to, &member));
            let key = boxes::beforenm(&secret(byte), &to.0).unwrap();
            let packet = seal(&key, &to, &member, &[byte; 24], &Request::JoinRequest(join).encode());
            drop(group.handle(now, Input::Packet(Endpoint::Stream(byte.into(), [192, 0, 2, byte].into()), &packet)));
        }
    } else {
        for member in members {
            drop(group.command(now, Command::AddPeer(member, None)).unwrap());
        }
    }
    assert_eq!(group.size(), 3, "the hub and two");
    while let Some(([who, high, low], tail)) = rest.split_first_chunk::<3>() {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(tail.len());
        let (plain, tail) = tail.split_at(len);
        rest = tail;
        now = now.plus(Duration::from_millis(u64::from(*who) * 40));
        if let Ok(request) = Request::decode(plain) {
            // A list of which nothing was understood tells how it was laid out, and is not said again.
            let nothing = matches!(&request, Request::SendNodes(_, nodes) if nodes.nodes.is_empty());
            assert!(nothing || Request::decode(&request.encode()) == Ok(request.clone()), "{request:?}");
            if let Request::Broadcast(broadcast) = &request {
                if let Ok(Some(message)) = Message::decode(broadcast.id, &broadcast.payload) {
                    let (id, payload) = message.encode(MessageId::ACTION);
                    assert_eq!(Message::decode(id, &payload), Ok(Some(message)));
                }
                if let Ok(signed) = Signed::decode(&broadcast.payload) {
                    assert_eq!(signed.encode(), broadcast.payload);
                }
                if let Ok(record) = read_record(&broadcast.payload) {
                    assert_eq!(record_payload(&record), broadcast.payload);
                }
            }
        }
        let at = usize::from(who % 2);
        let key = boxes::beforenm(&secret([2, 3][at]), &to.0).unwrap();
        let packet = seal(&key, &to, &members[at], &[*who; 24], plain);
        let from = Endpoint::Stream(u64::from(who % 4), [192, 0, 2, who % 4].into());
        for step in [group.handle(now, Input::Packet(from, &packet)), group.handle(now, Input::Tick)] {
            for (_, packet) in step.sends {
                let sealed = Sealed::read(&packet).unwrap();
                assert_ne!(sealed.receiver, to);
            }
        }
        assert!(group.size() <= 513);
    }
}
