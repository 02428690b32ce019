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
            if connection.unsent == 1 { "1 message is".to_owned() } else { format!("{} messages are", connection.unsent) }
        ),
        Delivery::Reading => {
            format!("Its backlog is being read from the store: {} to be sent.", count(connection.unsent, "message"))
        }
        Delivery::CaughtUp if view.waiting == 0 => {
            "Everything that the others reflected was sent to it and acknowledged. Nothing arrives, because nothing is reflected."
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
