//! Why something does not happen, in sentences: what a group's view means for one of its devices. Pure; everything said here
//! follows from the view.

use std::time::Duration;

use bytesize::ByteSize;

use crate::group::view::{Connection, Delivery, DeviceView, LockView, Presence};
use crate::hub::Inspection;
use crate::wire::d2m::DeviceId;

/// What is to be said about a group, or about one of its devices.
pub(super) fn explain(it: &Inspection, about: Option<DeviceId>) -> Vec<String> {
    match about {
        None => group(it),
        Some(device) => match it.view.devices.iter().find(|known| known.device == device) {
            None => vec![format!(
                "Device {device} has no slot in this group: it never joined, was dropped, or its slot expired. It is let in \
                 when it says that it is new."
            )],
            Some(view) => one(it, view),
        },
    }
}

fn group(it: &Inspection) -> Vec<String> {
    let view = &it.view;
    let connected = connections(it).count();
    let mut said = vec![format!("{connected} of {} are connected.", count(view.devices.len() as u64, "device"))];
    said.push(match view.leader {
        Some(leader) => format!("Device {leader} leads."),
        None if connected == 0 => "Nobody leads, because nobody is connected.".to_owned(),
        None => "Nobody leads yet, because no connected device has got its whole backlog.".to_owned(),
    });
    said.push(lock(view.lock.as_ref()));
    for device in view.devices.iter().filter(|device| device.waiting > 0) {
        let waits = if device.waiting == 1 { "waits" } else { "wait" };
        said.push(format!("{} {waits} for device {}. {}", messages(device), device.device, why_waiting(device)));
    }
    said
}

fn one(it: &Inspection, view: &DeviceView) -> Vec<String> {
    let device = view.device;
    let mut said = Vec::new();
    match &view.presence {
        Presence::Away { for_ms, expires_in_ms } => {
            let slot = match expires_in_ms {
                Some(in_ms) => format!("its slot goes in {} unless it comes back.", time(*in_ms)),
                None => "its slot is kept for it.".to_owned(),
            };
            said.push(format!("Device {device} is not connected: it left {} ago, and {slot}", time(*for_ms)));
            said.push("It cannot lead while it is not connected.".to_owned());
            said.push(match view.waiting {
                0 => "Nothing waits for it.".to_owned(),
                _ => format!("{} will be sent to it when it connects.", messages(view)),
            });
        }
        Presence::Connected(connection) => {
            said.push(format!("Device {device} has been connected for {}.", time(connection.for_ms)));
            said.push(leadership(it, view, connection));
            said.push(delivery(view, connection));
            if connection.in_line > 0 {
                said.push(format!(
                    "{} for it in line behind messages that were accepted earlier.",
                    if connection.in_line == 1 {
                        "1 answer waits".to_owned()
                    } else {
                        format!("{} answers wait", connection.in_line)
                    }
                ));
            }
            said.push(if it.proxied.contains(&connection.connection) {
                "It has a connection to its chat server. Whether it asked for its messages there (unblock) is sealed between \
                 the two; only the leader should."
                    .to_owned()
            } else {
                "It has no connection to its chat server, because it sent nothing for it since it connected.".to_owned()
            });
        }
    }
    said.push(lock(it.view.lock.as_ref()));
    if it.view.lock.as_ref().is_some_and(|lock| lock.holder != device && lock.staged > 0) {
        said.push("What is staged reaches this device with the commit, or not at all.".to_owned());
    }
    said
}

/// Why the device leads, or does not.
fn leadership(it: &Inspection, view: &DeviceView, connection: &Connection) -> String {
    match (it.view.leader, connection.dry) {
        (Some(leader), _) if leader == view.device => "It leads.".to_owned(),
        (_, None) => format!(
            "It does not lead, because it has not got its whole backlog (it is not dry): {} before that.",
            match connection.unsent {
                0 => "answers stand in line".to_owned(),
                1 => "1 message has to be sent".to_owned(),
                unsent => format!("{unsent} messages have to be sent"),
            }
        ),
        (None, Some(_)) => "Nobody leads at this moment.".to_owned(),
        (Some(leader), Some(dry)) => {
            let before = |(other, at): &(&DeviceView, &Connection)| {
                at.dry.is_some_and(|other| other < dry) && other.device != leader
            };
            let ahead = connections(it).filter(before).count() as u64;
            let then = match ahead {
                0 => "It is the next to lead.".to_owned(),
                1 => "1 device would lead before it.".to_owned(),
                _ => format!("{ahead} devices would lead before it."),
            };
            format!(
                "It does not lead, because device {leader} does, which had its whole backlog earlier. Leadership ends with \
                 that connection only. {then}"
            )
        }
    }
}

/// Why nothing is arriving, or what is.
fn delivery(view: &DeviceView, connection: &Connection) -> String {
    match connection.delivery {
        Delivery::SocketFull { for_ms } => format!(
            "Nothing more is sent to it now: what may be on its way is, and its socket has taken nothing for {}. {} not \
             sent.",
            time(for_ms),
            if connection.unsent == 1 {
                "1 message is".to_owned()
            } else {
                format!("{} messages are", connection.unsent)
            }
        ),
        Delivery::Reading => {
            format!("Its backlog is being read from the store: {} to be sent.", count(connection.unsent, "message"))
        }
        Delivery::CaughtUp if view.waiting == 0 => {
            "Everything that the others reflected was sent to it and acknowledged. There is nothing to be sent to it at this moment."
                .to_owned()
        }
        Delivery::CaughtUp => format!(
            "Everything that the others reflected was sent to it. It has not acknowledged {}; what is not acknowledged is \
             sent again when it connects the next time.",
            messages(view)
        ),
    }
}

fn why_waiting(view: &DeviceView) -> &'static str {
    match &view.presence {
        Presence::Away { .. } => "It is not connected.",
        Presence::Connected(Connection { delivery, .. }) => match delivery {
            Delivery::CaughtUp => "All was sent and is not acknowledged.",
            Delivery::SocketFull { .. } => "Its socket takes nothing.",
            Delivery::Reading => "Its backlog is being read.",
        },
    }
}

/// What holds the lock, and for how long.
fn lock(lock: Option<&LockView>) -> String {
    let Some(LockView { holder, held_ms, remaining_ms, staged, staged_bytes }) = lock else {
        return "Nobody holds the lock.".to_owned();
    };
    let held = time(*held_ms);
    let until = match remaining_ms {
        Some(left) => format!("it is disconnected in {} unless it commits", time(*left)),
        None => {
            "its time has not begun, because the grant stands in line behind messages that it has not taken".to_owned()
        }
    };
    let staged = match staged {
        0 => "Nothing is staged".to_owned(),
        _ => format!("{} ({}) staged", count(*staged as u64, "message"), bytes(*staged_bytes as u64)),
    };
    format!("Device {holder} has held the lock for {held}; {until}. {staged}.")
}

fn connections(it: &Inspection) -> impl Iterator<Item = (&DeviceView, &Connection)> {
    it.view.devices.iter().filter_map(|device| match &device.presence {
        Presence::Connected(connection) => Some((device, connection)),
        Presence::Away { .. } => None,
    })
}

fn messages(view: &DeviceView) -> String {
    format!("{} ({})", count(view.waiting, "message"), bytes(view.waiting_bytes))
}

fn count(number: u64, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}

fn bytes(number: u64) -> String {
    ByteSize::b(number).display().iec().to_string()
}

/// In the two largest units that matter.
pub(crate) fn time(ms: u64) -> String {
    let s = ms / 1_000;
    let precise = match s {
        0 => Duration::from_millis(ms),
        1..3_600 => Duration::from_secs(s),
        3_600..86_400 => Duration::from_secs(s - s % 60),
        _ => Duration::from_secs(s - s % 3_600),
    };
    humantime::format_duration(precise).to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::group::GroupView;

    const A: DeviceId = DeviceId(0xa);
    const B: DeviceId = DeviceId(0xb);
    const C: DeviceId = DeviceId(0xc);

    fn here(device: DeviceId, dry: Option<u64>) -> DeviceView {
        let connection = Connection {
            connection: device.0,
            for_ms: 300_000,
            dry,
            unsent: 0,
            unacknowledged: 0,
            in_line: 0,
            delivery: Delivery::CaughtUp,
        };
        let presence = Presence::Connected(connection);
        DeviceView { device, volatile: false, waiting: 0, waiting_bytes: 0, presence }
    }

    fn away(device: DeviceId, expires_in_ms: Option<u64>) -> DeviceView {
        DeviceView { presence: Presence::Away { for_ms: 7_200_000, expires_in_ms }, ..here(device, None) }
    }

    /// The same connection, changed.
    fn but(mut view: DeviceView, change: impl FnOnce(&mut DeviceView, &mut Connection)) -> DeviceView {
        let Presence::Connected(mut connection) = view.presence.clone() else { panic!("{view:?}") };
        change(&mut view, &mut connection);
        DeviceView { presence: Presence::Connected(connection), ..view }
    }

    fn view<const N: usize>(leader: Option<DeviceId>, devices: [DeviceView; N]) -> Inspection {
        let view = GroupView { devices: devices.into(), leader, lock: None, max_device_slots: 10 };
        Inspection { view, proxied: BTreeSet::new() }
    }

    fn held(mut it: Inspection, holder: DeviceId, remaining_ms: Option<u64>, staged: usize) -> Inspection {
        let staged_bytes = staged * 2_048;
        it.view.lock = Some(LockView { holder, held_ms: 12_000, remaining_ms, staged, staged_bytes });
        it
    }

    /// A device for which five messages wait, of which three were not sent.
    fn behind(device: DeviceId, dry: Option<u64>, delivery: Delivery) -> DeviceView {
        but(here(device, dry), |view, connection| {
            (view.waiting, view.waiting_bytes) = (5, 10_240);
            (connection.unsent, connection.unacknowledged, connection.delivery) = (3, 2, delivery);
        })
    }

    #[test]
    fn every_situation_has_its_sentence() {
        let stalled = Delivery::SocketFull { for_ms: 42_000 };
        let table: Vec<(&str, Inspection, Option<DeviceId>, &str)> = vec![
            (
                "who is no member",
                view(Some(A), [here(A, Some(0))]),
                Some(B),
                "Device 000000000000000b has no slot in this group",
            ),
            (
                "who is away",
                view(None, [away(A, None)]),
                Some(A),
                "Device 000000000000000a is not connected: it left 2h ago, and its slot is kept for it.",
            ),
            (
                "whose slot expires",
                view(None, [away(A, Some(90_000))]),
                Some(A),
                "and its slot goes in 1m 30s unless it comes back.",
            ),
            (
                "who is away does not lead",
                view(None, [away(A, None)]),
                Some(A),
                "It cannot lead while it is not connected.",
            ),
            (
                "what waits for who is away",
                view(None, [DeviceView { waiting: 1, waiting_bytes: 9, ..away(A, None) }]),
                Some(A),
                "1 message (9 B) will be sent to it when it connects.",
            ),
            ("who leads", view(Some(A), [here(A, Some(0))]), Some(A), "It leads."),
            (
                "who is not dry",
                view(None, [behind(A, None, Delivery::Reading)]),
                Some(A),
                "It does not lead, because it has not got its whole backlog (it is not dry): 3 messages have to be sent before that.",
            ),
            (
                "who is next",
                view(Some(A), [here(A, Some(0)), here(B, Some(1))]),
                Some(B),
                "because device 000000000000000a does, which had its whole backlog earlier. Leadership ends with that connection only. \
                 It is the next to lead.",
            ),
            (
                "who is third",
                view(Some(A), [here(A, Some(0)), here(B, Some(1)), here(C, Some(2))]),
                Some(C),
                "1 device would lead before it.",
            ),
            (
                "whose socket is full",
                view(Some(B), [behind(A, Some(1), stalled), here(B, Some(0))]),
                Some(A),
                "Nothing more is sent to it now: what may be on its way is, and its socket has taken nothing for 42s. \
                 3 messages are not sent.",
            ),
            (
                "whose backlog is read",
                view(None, [behind(A, None, Delivery::Reading)]),
                Some(A),
                "Its backlog is being read from the store: 3 messages to be sent.",
            ),
            (
                "who acknowledges nothing",
                view(Some(A), [behind(A, Some(0), Delivery::CaughtUp)]),
                Some(A),
                "It has not acknowledged 5 messages (10.0 KiB); what is not acknowledged is sent again when it connects the next time.",
            ),
            (
                "who has everything",
                view(Some(A), [here(A, Some(0))]),
                Some(A),
                "There is nothing to be sent to it at this moment.",
            ),
            (
                "whose answers wait",
                view(None, [but(here(A, None), |_, it| it.in_line = 2)]),
                Some(A),
                "2 answers wait for it in line behind messages that were accepted earlier.",
            ),
            (
                "who never spoke to the chat server",
                view(Some(A), [here(A, Some(0))]),
                Some(A),
                "It has no connection to its chat server, because it sent nothing for it since it connected.",
            ),
            (
                "who did",
                Inspection { proxied: [0xa].into(), ..view(Some(A), [here(A, Some(0))]) },
                Some(A),
                "It has a connection to its chat server. Whether it asked for its messages there (unblock) is sealed",
            ),
            (
                "the lock",
                held(view(Some(A), [here(A, Some(0)), here(B, Some(1))]), A, Some(48_000), 3),
                Some(B),
                "Device 000000000000000a has held the lock for 12s; it is disconnected in 48s unless it commits. \
                 3 messages (6.0 KiB) staged.",
            ),
            (
                "what is staged",
                held(view(Some(A), [here(A, Some(0)), here(B, Some(1))]), A, Some(48_000), 3),
                Some(B),
                "What is staged reaches this device with the commit, or not at all.",
            ),
            (
                "a lock that is not granted yet",
                held(view(Some(A), [here(A, Some(0))]), A, None, 0),
                None,
                "its time has not begun, because the grant stands in line behind messages that it has not taken. Nothing is staged.",
            ),
            ("no lock", view(Some(A), [here(A, Some(0))]), None, "Nobody holds the lock."),
            ("a group", view(Some(A), [here(A, Some(0)), away(B, None)]), None, "1 of 2 devices are connected."),
            ("its leader", view(Some(A), [here(A, Some(0))]), None, "Device 000000000000000a leads."),
            ("nobody there", view(None, [away(A, None)]), None, "Nobody leads, because nobody is connected."),
            ("nobody dry", view(None, [here(A, None)]), None, "because no connected device has got its whole backlog."),
            (
                "what waits",
                view(Some(B), [behind(A, Some(1), stalled), here(B, Some(0))]),
                None,
                "5 messages (10.0 KiB) wait for device 000000000000000a. Its socket takes nothing.",
            ),
        ];
        for (name, inspection, about, expected) in table {
            let said = explain(&inspection, about).join("\n");
            assert!(said.contains(expected), "{name}: {expected}\n---\n{said}");
        }
    }

    #[test]
    fn nothing_is_said_that_is_not_so() {
        let said = explain(&view(Some(A), [here(A, Some(0)), here(B, Some(1))]), Some(A)).join("\n");
        for wrong in ["does not lead", "staged", "taken nothing", "waits", "is not connected"] {
            assert!(!said.contains(wrong), "{wrong}: {said}");
        }
    }

    #[test]
    fn a_time_is_as_precise_as_it_matters() {
        for (ms, expected) in
            [(7, "7ms"), (1_999, "1s"), (125_000, "2m 5s"), (7_265_000, "2h 1m"), (90_061_000, "1day 1h"), (0, "0s")]
        {
            assert_eq!(time(ms), expected);
        }
    }
}
