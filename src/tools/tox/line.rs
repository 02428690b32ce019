//! What a line means, and how what happens is shown. The same for members with keys of their own and for thin users.
//!
//! Names, texts and topics are somebody else's: whatever is shown of them has gone through [`clean`].

use std::net::SocketAddr;

use crate::chat::toxgroup::state::Role;
use crate::chat::toxgroup::wire::message::Presence;
use crate::chat::toxgroup::wire::record::Verdict;

/// What somebody typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    Say {
        text: String,
        action: bool,
    },
    Nick(String),
    Topic(String),
    Presence(Presence),
    Members,
    History,
    Sanction {
        who: String,
        verdict: Verdict,
        kick: bool,
        reason: String,
    },
    Moderator {
        who: String,
        on: bool,
    },
    Invite(u32),
    /// To let in whose key was exchanged by other means.
    Peer {
        key: String,
        address: Option<SocketAddr>,
    },
    /// To end the group for everybody.
    End,
    Quit,
    /// For good: a thin user stays a member otherwise.
    Leave,
    Nothing,
}

/// Reads a line; says what is wrong with it.
pub(super) fn parse(line: &str) -> Result<Line, &'static str> {
    let Some(command) = line.strip_prefix('/') else {
        let text = line.strip_prefix('\\').unwrap_or(line);
        return Ok(if text.trim().is_empty() { Line::Nothing } else { Line::Say { text: text.into(), action: false } });
    };
    let (name, rest) = command.split_once(' ').unwrap_or((command, ""));
    let rest = rest.trim();
    let some = |what: &'static str| if rest.is_empty() { Err(what) } else { Ok(rest.to_owned()) };
    let sanction = |verdict, kick| {
        let (who, reason) = rest.split_once(' ').unwrap_or((rest, ""));
        if who.is_empty() {
            return Err("whom?");
        }
        Ok(Line::Sanction { who: who.into(), verdict, kick, reason: reason.trim().into() })
    };
    Ok(match name {
        "me" => Line::Say { text: some("what do you do?")?, action: true },
        "nick" => Line::Nick(some("how do you want to be called?")?),
        "topic" => Line::Topic(rest.to_owned()),
        "online" => Line::Presence(Presence::Online),
        "away" => Line::Presence(Presence::Away),
        "busy" => Line::Presence(Presence::Busy),
        "members" => Line::Members,
        "history" => Line::History,
        "kick" => sanction(Verdict::Ban, true)?,
        "ban" => sanction(Verdict::Ban, false)?,
        "observe" => sanction(Verdict::Observer, false)?,
        "lift" => sanction(Verdict::Lift, false)?,
        "mod" => Line::Moderator { who: some("whom?")?, on: true },
        "unmod" => Line::Moderator { who: some("whom?")?, on: false },
        "invite" if rest.is_empty() => Line::Invite(1),
        "invite" => Line::Invite(rest.parse().map_err(|_| "for how many?")?),
        "peer" => {
            let (key, address) = rest.split_once(' ').map_or((rest, None), |(key, at)| (key, Some(at.trim())));
            if key.is_empty() {
                return Err("whose key?");
            }
            let address = address.map(str::parse).transpose().map_err(|_| "that is no address: HOST:PORT in digits")?;
            Line::Peer { key: key.into(), address }
        }
        "end" => Line::End,
        "quit" => Line::Quit,
        "leave" => Line::Leave,
        _ => return Err("no such command; a text that begins with a slash is said with a backslash before it"),
    })
}

/// Who is meant by a name, or by the first digits of a key; nobody where it is not clear.
pub(super) fn find<'a, T>(
    who: &str,
    members: &'a [T],
    id: impl Fn(&T) -> String,
    name: impl Fn(&T) -> &str,
) -> Option<&'a T> {
    let named: Vec<_> = members.iter().filter(|it| name(it) == who).collect();
    if let [one] = named[..] {
        return Some(one);
    }
    let digits = who.rsplit('#').next().unwrap_or(who);
    let keyed: Vec<_> = members.iter().filter(|it| digits.len() >= 4 && id(it).starts_with(digits)).collect();
    match keyed[..] {
        [one] => Some(one),
        _ => None,
    }
}

/// What somebody else wrote, on one line and without orders to the terminal: lines of others are no lines of ours.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A text as it is shown.
pub(super) fn said(name: &str, text: &str, action: bool) -> String {
    let (name, text) = (clean(name), clean(text));
    if action { format!("* {name} {text}") } else { format!("{name}: {text}") }
}

/// What it is about, as it is shown.
pub(super) fn about(topic: &str) -> String {
    format!("-- about: {}", clean(topic))
}

/// A member as it is listed.
pub(super) fn member(name: &str, id: &str, role: Option<Role>, presence: Presence) -> String {
    let role = match role {
        None | Some(Role::User) => "",
        Some(Role::Founder) => ", founder",
        Some(Role::Moderator) => ", moderator",
        Some(Role::Observer) => ", observer",
        Some(Role::Banned) => ", banned",
    };
    let presence = match presence {
        Presence::Online => "",
        Presence::Away => ", away",
        Presence::Busy => ", busy",
    };
    format!("-- {} ({}{role}{presence})", clean(name), id.get(..8).unwrap_or(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_texts_or_commands() {
        assert_eq!(parse("hello"), Ok(Line::Say { text: "hello".into(), action: false }));
        assert_eq!(parse("\\/slash"), Ok(Line::Say { text: "/slash".into(), action: false }));
        assert_eq!(parse("  "), Ok(Line::Nothing));
        assert_eq!(parse("/me waves"), Ok(Line::Say { text: "waves".into(), action: true }));
        let sanction =
            Line::Sanction { who: "bob".into(), verdict: Verdict::Ban, kick: true, reason: "go away".into() };
        assert_eq!(parse("/kick bob go away"), Ok(sanction));
        assert_eq!(parse("/invite 3"), Ok(Line::Invite(3)));
        let peer = Line::Peer { key: "aa".into(), address: Some("192.0.2.1:9".parse().unwrap()) };
        assert_eq!(parse("/peer aa 192.0.2.1:9"), Ok(peer));
        for bad in ["/kick", "/me", "/nonsense", "/invite many", "/peer", "/peer aa nowhere"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nothing_of_others_orders_the_terminal_about() {
        let evil = "\u{1b}[2J\u{9b}31m\r\n\u{7}";
        for shown in [said(evil, evil, true), about(evil), member(evil, "aa", None, Presence::Online)] {
            assert!(!shown.chars().any(char::is_control), "{shown:?}");
        }
    }

    #[test]
    fn somebody_is_meant_by_a_name_or_the_first_digits_of_a_key() {
        let members = [("ann", "aaaa11"), ("bob", "aaaa22"), ("bob", "bbbb33")];
        let found = |who| find(who, &members, |it| it.1.to_owned(), |it| it.0).map(|it| it.1);
        assert_eq!(found("ann"), Some("aaaa11"));
        assert_eq!((found("bob"), found("aaaa")), (None, None), "more than one");
        assert_eq!((found("bob#bbbb"), found("aaaa2")), (Some("bbbb33"), Some("aaaa22")));
        assert_eq!(found("b"), None);
    }
}
