//! Stories on virtual time, in the words of the specification. Each ends with an empty room.

use super::super::wire::{MESSAGE_OCTETS_MAX, Text};
use super::*;

const S: Duration = Duration::from_secs(1);

/// A room, its clock, and what was said since the last look.
struct World {
    state: State,
    now: Now,
    said: Vec<Say>,
}

fn world() -> World {
    with(Limits::default())
}

fn with(limits: Limits) -> World {
    let mut next = 0;
    // Shifted away by one bit: the ids are 1, 2, 3.
    let dice = Box::new(move || {
        next += 2;
        next
    });
    let now = Now { monotonic: 1_000 * S, wall_ms: 0 };
    World { state: State::new(limits, dice), now, said: Vec::new() }
}

fn s(text: &str) -> String {
    text.to_owned()
}

fn octets(digits: &str) -> Vec<u8> {
    hex::decode(digits.replace(' ', "")).unwrap()
}

fn request(from: &str, to: &str) -> FromClient {
    FromClient::Request { from: s(from), to: s(to) }
}

fn public(from: &str, text: &str) -> FromClient {
    FromClient::Public { from: s(from), text: Text(s(text)) }
}

fn private(from: &str, to: &str, text: &str) -> FromClient {
    FromClient::Private { from: s(from), to: s(to), text: Text(s(text)) }
}

fn accept(from: &str, to: &str) -> FromClient {
    FromClient::Accept(s(from), s(to))
}

fn refuse(from: &str, to: &str) -> FromClient {
    FromClient::Refuse(s(from), s(to))
}

impl World {
    fn input(&mut self, input: Input) -> &mut Self {
        let step = self.state.handle(self.now, input);
        self.said.extend(step.says.into_iter().filter(|say| !matches!(say, Say::Notice(_))));
        self
    }

    fn opens(&mut self, conn: u64) -> &mut Self {
        self.input(Input::Opened { conn: ConnId(conn), ip: [127, 0, 0, 1].into() })
    }

    fn says(&mut self, conn: u64, packet: FromClient) -> &mut Self {
        self.input(Input::Heard { conn: ConnId(conn), packets: vec![packet], partial: false })
    }

    fn logs_in(&mut self, conn: u64, name: &str) -> &mut Self {
        self.opens(conn).says(conn, FromClient::Login(s(name)));
        self.hears(conn, &[ToClient::Welcome(s(name))]);
        self
    }

    fn leaves(&mut self, conn: u64) -> &mut Self {
        self.input(Input::Over { conn: ConnId(conn), why: Ending::Gone })
    }

    fn passes(&mut self, time: Duration) -> &mut Self {
        self.now = self.now.plus(time);
        self.input(Input::Tick)
    }

    /// Takes what was sent to a connection since it was asked last.
    fn sent(&mut self, conn: u64) -> Vec<ToClient> {
        let mut found = Vec::new();
        self.said.retain(|say| match say {
            Say::Send(to, octets) if *to == ConnId(conn) => {
                found.push(ToClient::decode(octets).unwrap());
                false
            }
            _ => true,
        });
        found
    }

    #[track_caller]
    fn hears(&mut self, conn: u64, expected: &[ToClient]) -> &mut Self {
        assert_eq!(self.sent(conn), expected);
        self
    }

    /// A connection ended with this packet.
    #[track_caller]
    fn ended(&mut self, conn: u64, farewell: Option<&str>) -> Ending {
        let at = self.said.iter().position(|say| matches!(say, Say::End(who, ..) if *who == ConnId(conn)));
        let Say::End(_, why, last) = self.said.remove(at.unwrap_or_else(|| panic!("{conn} goes on: {:?}", self.said)))
        else {
            unreachable!()
        };
        assert_eq!(last.map(|last| last.to_vec()), farewell.map(octets), "{why}");
        why
    }

    #[track_caller]
    fn nothing_else(&mut self) -> &mut Self {
        assert_eq!(self.said, []);
        self
    }

    /// alice is 1, bob is 2, carol watches as 3.
    fn three(&mut self) -> &mut Self {
        self.logs_in(1, "alice").logs_in(2, "bob").logs_in(3, "carol")
    }

    /// alice and bob have the id of a private connection.
    fn granted(&mut self, id: i64) -> &mut Self {
        self.says(1, request("alice", "bob")).says(2, accept("bob", "alice"));
        self.hears(
            2,
            &[ToClient::Request { from: s("alice"), to: s("bob") }, ToClient::Id(s("alice"), s("bob"), PrivateId(id))],
        );
        self.hears(1, &[ToClient::Accept(s("bob"), s("alice")), ToClient::Id(s("bob"), s("alice"), PrivateId(id))])
    }

    fn joins(&mut self, conn: u64, id: i64) -> &mut Self {
        self.opens(conn).says(conn, FromClient::Join(PrivateId(id)))
    }

    /// And it is open, between 11 and 12.
    fn piped(&mut self, id: i64) -> &mut Self {
        self.granted(id).joins(11, id).nothing_else().joins(12, id);
        let established = Bytes::from_static(&[0x0b]);
        let couple = Say::Couple { first: ConnId(11), second: ConnId(12), id: PrivateId(id), established };
        assert_eq!(std::mem::take(&mut self.said), [couple]);
        self
    }

    #[track_caller]
    fn pipe_closes(&mut self, id: i64) -> &mut Self {
        let at = self.said.iter().position(|say| *say == Say::ClosePipe(PrivateId(id))).expect("the pipe closes");
        self.said.remove(at);
        self
    }

    /// Everybody leaves, and nothing is left of them.
    #[track_caller]
    fn empties(&mut self) {
        let conns: Vec<_> = self.state.conns.keys().copied().collect();
        for conn in conns {
            self.leaves(conn.0);
        }
        assert!(self.state.is_empty() && self.state.pipes == 0, "{:?}", self.state);
    }
}

#[test]
fn chatos_18_2_of_two_who_want_a_nickname_one_gets_it() {
    let mut world = world();
    world.opens(1).opens(2).says(1, FromClient::Login(s("alice"))).says(2, FromClient::Login(s("alice")));
    world.hears(1, &[ToClient::Welcome(s("alice"))]);
    let why = world.ended(2, Some("02 00000005 616c696365"));
    assert_eq!(why, Ending::Refused { name: s("alice"), why: Refusal::Taken });
    world.logs_in(3, "Alice").logs_in(4, "alicé").nothing_else();
    world.leaves(1).ended(1, None);
    world.logs_in(5, "alice").empties();
}

#[test]
fn nicknames_that_are_refused_are_echoed() {
    let mut world = with(Limits { unwanted: Unwanted::new(["Rude", "=root"]), ..Limits::default() });
    for (name, last) in [
        ("", "02 00000000"),
        ("a b", "02 00000003 612062"),
        ("@bob", "02 00000004 40626f62"),
        ("abcdefghijklmnopqrstuvwxy", "02 00000019 6162636465666768696a6b6c6d6e6f70717273747576777879"),
        ("xRUDEx", "02 00000006 785255444578"),
        ("Root", "02 00000004 526f6f74"),
    ] {
        world.opens(1).says(1, FromClient::Login(s(name)));
        assert!(matches!(world.ended(1, Some(last)), Ending::Refused { .. }));
        world.nothing_else();
    }
    world.logs_in(2, "rootless").empties();
}

#[test]
fn chatos_18_3_a_broadcast_reaches_everybody_online_and_nobody_else() {
    let mut world = world();
    world.three().granted(1).joins(11, 1).opens(4);
    for (text, conn) in [("one", 1), ("two", 2), ("", 1)] {
        world.says(conn, public(if conn == 1 { "alice" } else { "bob" }, text));
    }
    let all = [("alice", "one"), ("bob", "two"), ("alice", "")]
        .map(|(from, text)| ToClient::Public { from: s(from), text: Text(s(text)) });
    world.hears(1, &all).hears(2, &all).hears(3, &all).nothing_else().empties();
}

#[test]
fn private_messages_and_those_for_nobody() {
    let mut world = world();
    world.three().says(2, private("bob", "alice", "hé"));
    world.hears(1, &[ToClient::Private { from: s("bob"), to: s("alice"), text: Text(s("hé")) }]).nothing_else();
    // N11, and the fence of 12.4.
    world.says(1, private("alice", "nobody", "hi")).says(1, private("alice", "alice", "k"));
    world.hears(
        1,
        &[ToClient::Unknown(s("alice")), ToClient::Private { from: s("alice"), to: s("alice"), text: Text(s("k")) }],
    );
    world.nothing_else().empties();
}

#[test]
fn chatos_13_every_row_of_bad_input_ends_its_own_connection_alone() {
    let malformed = |conn, why| Input::Malformed { conn: ConnId(conn), why };
    let heard = |conn, packet| Input::Heard { conn: ConnId(conn), packets: vec![packet], partial: false };
    let (alice, nobody) = (Some("02 00000005 616c696365"), Some("02 00000000"));
    // The client is 9: alice, or nobody yet.
    let cases = [
        (false, heard(9, public("eve", "hi")), nobody),
        (false, malformed(9, NoPacket::Opcode(3).into()), nobody),
        (false, malformed(9, NoPacket::Size(1_025).into()), nobody),
        (false, malformed(9, Malformed::Utf8), nobody),
        (false, heard(9, FromClient::Join(PrivateId(-1))), nobody),
        (true, malformed(9, NoPacket::Opcode(12).into()), alice),
        (true, malformed(9, NoPacket::Size(-1).into()), alice),
        (true, malformed(9, Malformed::Utf8), alice),
        (true, heard(9, FromClient::Login(s("alice"))), alice),
        (true, heard(9, FromClient::Join(PrivateId(1))), alice),
        (true, heard(9, public("bob", "x")), alice),
        (true, heard(9, private("bob", "carol", "x")), alice),
        (true, heard(9, request("bob", "carol")), alice),
        (true, heard(9, accept("bob", "carol")), alice),
        (true, heard(9, refuse("carol", "bob")), alice),
    ];
    for (online, input, farewell) in cases {
        let story = format!("{online} {input:?}");
        let mut world = world();
        world.logs_in(2, "bob").logs_in(3, "carol").opens(9);
        if online {
            world.says(9, FromClient::Login(s("alice"))).sent(9);
        }
        world.input(input);
        world.ended(9, farewell);
        assert_eq!(world.said, [], "{story}");
        // Whatever comes behind it is not heard, and the name is free.
        world.says(9, public("alice", "more")).nothing_else();
        world.logs_in(10, "alice").empties();
    }
}

#[test]
fn what_follows_a_fatal_packet_in_the_same_read_is_not_heard() {
    let mut world = world();
    world.three();
    let packets = vec![public("bob", "spoof"), public("alice", "after")];
    world.input(Input::Heard { conn: ConnId(1), packets, partial: false });
    assert_eq!(world.ended(1, Some("02 00000005 616c696365")), Ending::ForeignSender);
    world.nothing_else().empties();
}

#[test]
fn without_error_packets_there_is_only_the_end_but_a_login_is_refused_all_the_same() {
    let mut world = with(Limits { error_packets: false, ..Limits::default() });
    world.logs_in(1, "alice").says(1, public("bob", "x"));
    assert_eq!(world.ended(1, None), Ending::ForeignSender);
    world.opens(2).says(2, FromClient::Login(s("")));
    world.ended(2, Some("02 00000000"));
    world.empties();
}

#[test]
fn requests_are_forwarded_once_and_crossed_ones_not_at_all() {
    let mut world = world();
    world.three().says(1, request("alice", "bob"));
    let asked = ToClient::Request { from: s("alice"), to: s("bob") };
    world.hears(2, &[asked]);
    world.says(1, request("alice", "bob")).says(2, request("bob", "alice")).nothing_else();
    // 7.2: refused, and asked again later.
    world.says(2, refuse("bob", "alice")).hears(1, &[ToClient::Refuse(s("bob"), s("alice"))]);
    world.says(2, refuse("bob", "alice")).says(2, accept("bob", "alice")).nothing_else();
    world.granted(1);
    world.says(1, request("alice", "bob")).says(2, request("bob", "alice")).nothing_else();
    world.empties();
}

#[test]
fn chatos_18_6_an_unknown_target_and_oneself() {
    let mut world = world();
    world.three();
    for packet in
        [request("alice", "nobody"), request("alice", "alice"), accept("alice", "nobody"), refuse("nobody", "alice")]
    {
        world.says(1, packet).hears(1, &[ToClient::Unknown(s("alice"))]);
    }
    world.says(1, accept("alice", "alice")).says(1, accept("alice", "bob")).nothing_else().empties();
}

#[test]
fn an_answer_may_name_the_two_in_either_order() {
    for swapped in [false, true] {
        let names = if swapped { ("alice", "bob") } else { ("bob", "alice") };
        let mut world = world();
        world.three().says(1, request("alice", "bob")).sent(2);
        world.says(2, accept(names.0, names.1));
        world.hears(1, &[ToClient::Accept(s(names.0), s(names.1)), ToClient::Id(s("bob"), s("alice"), PrivateId(1))]);
        world.hears(2, &[ToClient::Id(s("alice"), s("bob"), PrivateId(1))]).nothing_else().empties();
    }
    // Nobody accepts what they asked for themselves.
    let mut world = world();
    world.three().says(1, request("alice", "bob")).sent(2);
    world.says(1, accept("alice", "bob")).says(1, accept("bob", "alice")).nothing_else().empties();
}

#[test]
fn chatos_18_5_both_legs_are_established_by_the_second() {
    let mut world = world();
    world.three().piped(1);
    // Complete, unknown, and of nobody.
    for id in [1, 2, 0] {
        world.joins(20, id);
        assert_eq!(world.ended(20, Some("02 00000000")), Ending::BadId);
    }
    world.input(Input::PipeOver(PrivateId(1))).nothing_else();
    // At once again (spec 8), under another id.
    world.piped(2).input(Input::PipeOver(PrivateId(2))).nothing_else().empties();
}

#[test]
fn a_leg_that_leaves_while_it_waits_frees_its_slot() {
    let mut world = world();
    world.three().granted(1).joins(11, 1).leaves(11).ended(11, None);
    world.joins(12, 1).nothing_else().joins(13, 1);
    assert!(matches!(world.said[..], [Say::Couple { first: ConnId(12), second: ConnId(13), .. }]));
    world.said.clear();
    world.input(Input::PipeOver(PrivateId(1))).empties();
}

#[test]
fn an_id_dies_when_it_is_not_joined_in_time() {
    for waits in [false, true] {
        let mut world = world();
        world.three().granted(1);
        if waits {
            world.joins(11, 1);
        }
        world.passes(60 * S - Duration::from_millis(1)).nothing_else().passes(Duration::from_millis(1));
        if waits {
            assert_eq!(world.ended(11, Some("02 00000000")), Ending::Unjoined);
        }
        world.nothing_else().joins(12, 1);
        assert_eq!(world.ended(12, Some("02 00000000")), Ending::BadId);
        world.granted(2).nothing_else().empties();
    }
}

#[test]
fn a_leg_may_have_to_come_from_the_address_of_one_of_the_two() {
    let mut world = with(Limits { join_same_ip: true, ..Limits::default() });
    world.three().granted(1);
    world.input(Input::Opened { conn: ConnId(11), ip: [10, 0, 0, 1].into() }).says(11, FromClient::Join(PrivateId(1)));
    assert_eq!(world.ended(11, Some("02 00000000")), Ending::BadId);
    world.joins(12, 1).nothing_else().empties();
}

/// What there is between alice and bob when one of them leaves.
#[test]
fn chatos_18_6_a_departure_is_told_once_to_whom_it_concerns() {
    let (alice_left, bob_left) = (ToClient::Unknown(s("alice")), ToClient::Unknown(s("bob")));
    for gone in [1, 2] {
        let (stays, notice) = if gone == 1 { (2, &alice_left) } else { (1, &bob_left) };
        for state in ["nothing", "asked", "refused", "granted", "waiting", "open", "over"] {
            let mut world = world();
            world.three();
            match state {
                "asked" => drop(world.says(1, request("alice", "bob")).sent(2)),
                "refused" => {
                    world.says(1, request("alice", "bob")).says(2, refuse("bob", "alice")).said.clear();
                }
                "granted" => drop(world.granted(1)),
                "waiting" => drop(world.granted(1).joins(11, 1)),
                "open" => drop(world.piped(1)),
                "over" => drop(world.piped(1).input(Input::PipeOver(PrivateId(1)))),
                _ => {}
            }
            world.leaves(gone).ended(gone, None);
            if matches!(state, "asked" | "granted" | "waiting" | "open") {
                world.hears(stays, std::slice::from_ref(notice));
            }
            match state {
                "waiting" => drop(world.ended(11, None)),
                "open" => drop(world.pipe_closes(1).input(Input::PipeOver(PrivateId(1)))),
                _ => {}
            }
            assert_eq!(world.said, [], "{state}");
            world.empties();
        }
    }
}

#[test]
fn chatos_18_10_every_way_to_go_frees_the_name_and_what_hung_on_it() {
    for why in [Ending::Gone, Ending::Broken, Ending::WriteStalled, Ending::QueueFull, Ending::Inactive] {
        let mut world = world();
        world.three().piped(1).input(Input::Over { conn: ConnId(2), why: why.clone() });
        world.said.retain(|say| !matches!(say, Say::End(..)));
        world.hears(1, &[ToClient::Unknown(s("bob"))]).pipe_closes(1).nothing_else();
        world.logs_in(4, "bob").says(1, request("alice", "bob"));
        world.hears(4, &[ToClient::Request { from: s("alice"), to: s("bob") }]);
        world.nothing_else().empties();
    }
}

#[test]
fn chatos_18_7_inactivity_is_strictly_more_than_300_s_since_the_last_whole_packet() {
    let mut world = world();
    world.three().says(1, request("alice", "bob")).sent(2);
    world.passes(200 * S).says(2, public("bob", "I am here")).said.clear();
    // What is sent to alice keeps nobody; neither does half a packet.
    world.passes(80 * S).input(Input::Heard { conn: ConnId(1), packets: vec![], partial: true });
    world.passes(20 * S).nothing_else().passes(Duration::from_millis(1));
    assert_eq!(world.ended(1, Some("02 00000005 616c696365")), Ending::Inactive);
    assert_eq!(world.ended(3, Some("02 00000005 6361726f6c")), Ending::Inactive);
    world.hears(2, &[ToClient::Unknown(s("alice"))]).nothing_else();
    let instant = Duration::from_millis(1);
    world.passes(200 * S - instant).nothing_else().passes(instant).ended(2, Some("02 00000003 626f62"));
    assert!(world.state.is_empty());
}

#[test]
fn chatos_18_7_what_goes_through_a_pipe_keeps_both_and_a_silent_pipe_ends() {
    let mut world = world();
    world.three().piped(1).leaves(3).ended(3, None);
    for _ in 0..5 {
        world.passes(250 * S);
        let at = world.now.monotonic;
        world.input(Input::Moved { id: PrivateId(1), at }).nothing_else();
    }
    world.passes(250 * S).says(1, public("alice", "a")).says(2, public("bob", "b")).said.clear();
    world.passes(50 * S).nothing_else().passes(Duration::from_millis(1)).pipe_closes(1).nothing_else();
    world.input(Input::PipeOver(PrivateId(1))).says(1, request("alice", "bob"));
    world.hears(2, &[ToClient::Request { from: s("alice"), to: s("bob") }]).nothing_else().empties();
}

#[test]
fn who_says_nothing_whole_goes() {
    let mut world = world();
    world.opens(1).opens(2).input(Input::Heard { conn: ConnId(2), packets: vec![], partial: true });
    world.passes(29 * S).input(Input::Heard { conn: ConnId(2), packets: vec![], partial: true });
    world.nothing_else().passes(S);
    assert_eq!(world.ended(1, Some("02 00000000")), Ending::NoLogin);
    assert!(matches!(world.ended(2, Some("02 00000000")), Ending::NoLogin | Ending::PacketStalled));
    // Begun is not finished: the time counts from the first octet, not from the last.
    world.logs_in(3, "alice");
    world.input(Input::Heard { conn: ConnId(3), packets: vec![], partial: true }).passes(20 * S);
    world.input(Input::Heard { conn: ConnId(3), packets: vec![public("alice", "a")], partial: true }).said.clear();
    world.passes(29 * S).input(Input::Heard { conn: ConnId(3), packets: vec![], partial: true });
    world.nothing_else().passes(S);
    assert_eq!(world.ended(3, Some("02 00000005 616c696365")), Ending::PacketStalled);
    assert!(world.state.is_empty());
}

#[test]
fn requests_are_bounded_on_both_sides_and_refused_on_behalf_of_the_target() {
    let limits = Limits { pending_max: 2, private_max: 1, ..Limits::default() };
    let mut world = with(limits.clone());
    world.three().logs_in(4, "dave");
    world.says(1, request("alice", "bob")).says(1, request("alice", "carol")).said.clear();
    world.says(1, request("alice", "dave"));
    world.hears(1, &[ToClient::Refuse(s("dave"), s("alice"))]).nothing_else().empties();

    let mut world = with(limits.clone());
    world.three().logs_in(4, "dave");
    world.says(1, request("alice", "dave")).says(2, request("bob", "dave")).said.clear();
    world.says(3, request("carol", "dave"));
    world.hears(3, &[ToClient::Refuse(s("dave"), s("carol"))]).nothing_else();
    // One private connection each: what was asked for before cannot become another one.
    world.says(4, accept("dave", "alice")).said.clear();
    world.says(4, accept("dave", "bob")).hears(2, &[ToClient::Refuse(s("dave"), s("bob"))]);
    world.hears(4, &[ToClient::Refuse(s("bob"), s("dave"))]);
    world.says(3, request("carol", "alice")).hears(3, &[ToClient::Refuse(s("alice"), s("carol"))]);
    world.nothing_else().empties();
}

#[test]
fn connections_are_bounded_and_legs_are_some_of_them() {
    let mut world = with(Limits { connections_max: 5, ..Limits::default() });
    world.three().piped(1).opens(20);
    assert_eq!(world.ended(20, Some("02 00000000")), Ending::Full);
    world.input(Input::PipeOver(PrivateId(1))).opens(21).nothing_else().empties();
}

#[test]
fn a_stop_ends_everything_without_an_error() {
    let mut world = world();
    world.three().piped(1).logs_in(4, "dave").opens(5);
    world.says(4, request("dave", "carol")).sent(3);
    world.says(3, accept("carol", "dave")).said.clear();
    world.joins(6, 2).input(Input::Stop).pipe_closes(1);
    for conn in [1, 2, 3, 4, 5, 6] {
        assert_eq!(world.ended(conn, None), Ending::ShuttingDown);
    }
    world.opens(7).ended(7, None);
    assert!(world.state.is_empty());
}

#[test]
fn ids_are_positive_never_zero_and_never_in_use() {
    let mut rolls = [0, 1, u64::MAX, u64::MAX, 42].into_iter();
    let mut world = world();
    world.state.dice = Box::new(move || rolls.next().unwrap());
    world.three().granted(i64::MAX);
    world.says(3, request("carol", "alice")).sent(1);
    world.says(1, accept("alice", "carol"));
    world.hears(1, &[ToClient::Id(s("carol"), s("alice"), PrivateId(21))]);
    world.said.clear();
    world.empties();
}

#[test]
fn calling_early_or_twice_does_nothing() {
    let mut world = world();
    world.three().says(1, public("alice", &"x".repeat(MESSAGE_OCTETS_MAX / 4))).said.clear();
    while let Some(at) = world.state.next_deadline() {
        world.input(Input::Tick).nothing_else();
        world.now = world.now.plus(at.saturating_sub(world.now.monotonic));
        world.input(Input::Tick).input(Input::Tick);
        world.said.clear();
    }
    assert!(world.state.is_empty(), "everybody was silent for too long");
}
