//! What happens, for people in one line, for programs in one JSON object.

use serde::Serialize;

use crate::chat::dm::wire::Status;

use super::seen::Thing;

/// Why what came is not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doubt {
    /// There is no key for this direct message (yet).
    NoKey,
    /// Nobody knows the sender's key.
    UnknownSender,
    /// The sender did not sign it.
    NotSigned,
    /// It was not sealed under the key of this direct message.
    NotSealed,
    /// It is no text.
    NoText,
    /// The server showed it before, as this.
    Repeats(Thing),
    /// The server shows what stood there before it was changed.
    Older,
}

impl Doubt {
    fn words(self) -> String {
        match self {
            Self::NoKey => "there is no key for it".to_owned(),
            Self::UnknownSender => "nobody knows the sender's key".to_owned(),
            Self::NotSigned => "the sender did not sign it".to_owned(),
            Self::NotSealed => "it does not open".to_owned(),
            Self::NoText => "it is no text".to_owned(),
            Self::Repeats(Thing::Message(id)) => format!("the server shows [{id}] again"),
            Self::Repeats(Thing::Reaction { id, of }) => format!("the server shows reaction {id} to [{of}] again"),
            Self::Older => "the server shows an older version".to_owned(),
        }
    }
}

/// A reaction as people are shown it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reacted {
    /// Its number.
    pub id: i64,
    /// Who reacted.
    pub from: String,
    /// With what, unless in doubt.
    pub text: Option<String>,
    /// Why it is not shown.
    pub doubt: Option<Doubt>,
}

/// A message as people are shown it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Said {
    /// Which direct message.
    pub dm: i64,
    /// Its number.
    pub id: i64,
    /// Who said it.
    pub from: String,
    /// Whether it was this account.
    pub own: bool,
    /// Whether the sender's key was compared by fingerprint.
    pub verified: bool,
    /// What was said, unless in doubt.
    pub text: Option<String>,
    /// Why it is not shown.
    pub doubt: Option<Doubt>,
    /// When, as the server says.
    pub time: String,
    /// When it deletes itself.
    pub vanishes: Option<String>,
    /// Whether it is pinned.
    pub pinned: bool,
    /// What others make of it.
    pub reactions: Vec<Reacted>,
}

impl Said {
    fn words(&self) -> String {
        let text = match (&self.text, self.doubt) {
            (Some(text), _) => harmless(text),
            (None, doubt) => format!("(not shown: {})", doubt.map_or_else(String::new, Doubt::words)),
        };
        // Behind the name, where no name can say so by itself: what is in one that looks like this is in quotes.
        let compared = if self.verified && !self.own { " ✓" } else { "" };
        let mut line = format!("[{}] #{} {}{compared}: {text}", self.id, self.dm, name(&self.from));
        if self.pinned {
            line.push_str(" (pinned)");
        }
        if let Some(time) = &self.vanishes {
            line.push_str(&format!(" (deletes itself at {})", harmless(time)));
        }
        for Reacted { id, from, text, doubt } in &self.reactions {
            let text = text.as_deref().map_or_else(|| doubt.map_or_else(String::new, Doubt::words), harmless);
            line.push_str(&format!(" ({id}: {} {text})", name(from)));
        }
        line
    }
}

/// A direct message as people are shown it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// Which.
    pub dm: i64,
    /// What it is called.
    pub name: Option<String>,
    /// Who is in it.
    pub users: Vec<String>,
    /// Whether it was made for two.
    pub pair: bool,
    /// Whether something can be said in it: there is a key.
    pub ready: bool,
    /// Whether its creator did not sign its keys: the server could have them.
    pub unsigned: bool,
    /// Who is in its call.
    pub call: Vec<String>,
}

impl Shown {
    fn words(&self) -> String {
        let called = self.name.as_deref().map(|it| format!(" {}", quoted(it))).unwrap_or_default();
        let call = if self.call.is_empty() { String::new() } else { format!(", in call: {}", names(&self.call)) };
        let kind = if self.pair { "" } else { " group" };
        let ready = if self.ready { "" } else { ", no key yet" };
        let unsigned = if self.unsigned { ", not signed by who made it" } else { "" };
        format!("#{}{kind}{called}: {}{call}{ready}{unsigned}", self.dm, names(&self.users))
    }
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the fields are what the events are about")]
pub enum Event {
    /// Logged in, and everything that was missed has been told.
    Ready { name: String },
    /// The connection is gone; another one is made.
    Lost { why: String },
    /// Something was said.
    Said(Said),
    /// Something that was said is another now, or was pinned, or somebody reacted.
    Changed(Said),
    /// Something that was asked for.
    Shown(Said),
    /// A message deleted itself.
    Vanished { id: i64, dm: Option<i64> },
    /// Another direct message, or one with other members, another name, another call.
    Dm(Shown),
    /// What is typed goes here from now on.
    Current { dm: i64, with: Vec<String> },
    /// One's own place in a direct message is gone.
    Left { dm: i64 },
    /// There is a key: things can be said. Whether its creator signed the setup.
    Key { dm: i64, from: String, signed: bool },
    /// Somebody's key was seen for the first time and is the known one from now on.
    Pinned { name: String, fingerprint: String },
    /// The server shows another key for a name than the known one. It is not used.
    KeyChanged { name: String },
    /// An invitation that is not believed, and why.
    NotInvited { dm: i64, from: String, why: String },
    /// The fingerprint to be compared.
    Fingerprint { name: String, fingerprint: String, verified: bool },
    /// Somebody.
    Person { name: String, status: Status, biography: String, picture: String, prekey: bool },
    /// Names.
    Names { what: &'static str, names: Vec<String> },
    /// Somebody types.
    Typing { dm: i64, name: String },
    /// Somebody wants to be a friend.
    FriendRequest { name: String },
    /// What became of a request.
    FriendAnswer { name: String, accepted: bool },
    /// Somebody is no friend any more.
    Unfriended { name: String },
    /// Who is in a call, and where to find them.
    Call { dm: i64, peers: std::collections::BTreeMap<String, String> },
    /// Somebody joined a call.
    Joined { dm: i64, name: String },
    /// Somebody left a call.
    Hung { dm: i64, name: String },
    /// A message that will be sent; `text` is none if it is not one's own.
    Scheduled { dm: i64, id: i64, text: Option<String>, time: String },
    /// It will be in a minute.
    Soon { dm: i64, id: i64 },
    /// It was.
    Sent { dm: i64, id: i64 },
    /// What was asked for was done.
    Done { what: String },
    /// It was not.
    Problem { why: String },
}

impl Event {
    /// Something that does not work.
    #[must_use]
    pub fn problem(why: impl Into<String>) -> Self {
        Self::Problem { why: why.into() }
    }

    /// Whether something that was asked for did not work, or somebody may be between.
    #[must_use]
    pub const fn is_failure(&self) -> bool {
        matches!(self, Self::Problem { .. } | Self::KeyChanged { .. } | Self::NotInvited { .. })
    }

    /// As one JSON object.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// For people.
    #[must_use]
    pub fn line(&self) -> String {
        let happens = match self {
            Self::Said(said) => return said.words(),
            Self::Shown(said) => return format!("   {} {}", harmless(&said.time), said.words()),
            Self::Changed(said) => format!("changed: {}", said.words()),
            Self::Ready { name: it } => format!("{} is connected", name(it)),
            Self::Lost { why } => format!("the connection is lost: {}", harmless(why)),
            Self::Vanished { id, .. } => format!("[{id}] deleted itself"),
            Self::Dm(dm) => dm.words(),
            Self::Current { dm, with } => format!("what you type goes to #{dm}: {}", names(with)),
            Self::Left { dm } => format!("you are not in #{dm} any more"),
            Self::Key { dm, from, signed: true } => format!("there is a key for #{dm}, made by {}", name(from)),
            Self::Key { dm, from, signed: false } => format!(
                "there is a key for #{dm}, made by {}, who did not sign it: the server may have it, too",
                name(from)
            ),
            Self::Pinned { name: it, fingerprint } => {
                format!("{} is known from now on; compare: {fingerprint}", name(it))
            }
            Self::KeyChanged { name: it } => {
                return format!(
                    "!! the server shows another key for {} than the known one: it is not used. Somebody may be between",
                    name(it)
                );
            }
            Self::NotInvited { dm, from, why } => {
                return format!("!! the invitation of {} to #{dm} is not believed: {}", name(from), harmless(why));
            }
            Self::Fingerprint { name: it, fingerprint, verified } => {
                let state = if *verified { "compared" } else { "not compared yet" };
                format!("{}: {fingerprint} ({state})", name(it))
            }
            Self::Person { name: it, status, biography, picture, prekey } => {
                let prekey = if *prekey { "" } else { ", cannot be invited" };
                let about = [biography, picture].into_iter().filter(|it| !it.is_empty()).map(|it| quoted(it));
                let about: String = about.map(|it| format!(", {it}")).collect();
                format!("{} is {}{prekey}{about}", name(it), status.name())
            }
            Self::Names { what, names: of } => format!("{what}: {}", names(of)),
            Self::Typing { dm, name: it } => format!("#{dm} {} types", name(it)),
            Self::FriendRequest { name: it } => format!("{} wants to be your friend", name(it)),
            Self::FriendAnswer { name: it, accepted: true } => format!("{} is your friend now", name(it)),
            Self::FriendAnswer { name: it, accepted: false } => format!("{} does not want to be your friend", name(it)),
            Self::Unfriended { name: it } => format!("{} is not your friend any more", name(it)),
            Self::Call { dm, peers } => {
                let peers: Vec<String> =
                    peers.iter().map(|(it, at)| format!("{} at {}", name(it), harmless(at))).collect();
                format!("in the call of #{dm}: {}", peers.join(", "))
            }
            Self::Joined { dm, name: it } => format!("{} is in the call of #{dm}", name(it)),
            Self::Hung { dm, name: it } => format!("{} left the call of #{dm}", name(it)),
            Self::Scheduled { dm, id, text, time } => {
                let text = text.as_deref().map_or_else(|| "(it does not open)".to_owned(), harmless);
                format!("{id} in #{dm} at {}: {text}", harmless(time))
            }
            Self::Soon { dm, id } => format!("{id} in #{dm} is sent in a minute"),
            Self::Sent { dm, id } => format!("{id} in #{dm} was sent"),
            Self::Done { what } => what.clone(),
            Self::Problem { why } => return format!("!! {}", harmless(why)),
        };
        format!("-- {happens}")
    }
}

/// What strangers say, as one line: without what moves the cursor or turns the direction of what follows.
pub(super) fn harmless(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}');
    crate::tools::harmless(text).chars().map(|c| if turns(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// A name, between quotation marks if it could be taken for something else.
pub(super) fn name(it: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '@' | '+');
    if !it.is_empty() && it.chars().all(plain) { it.to_owned() } else { quoted(it) }
}

fn quoted(it: &str) -> String {
    format!("\"{}\"", harmless(it).replace('"', "'"))
}

fn names(of: &[String]) -> String {
    of.iter().map(|it| name(it)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_strangers_say_looks_like_something_else() {
        let said = Said {
            dm: 1,
            id: 2,
            from: "bob: hello\n[3] #1 carol".to_owned(),
            own: false,
            verified: false,
            text: Some("a\x1b[2J\u{202e}b\n-- c".to_owned()),
            doubt: None,
            time: String::new(),
            vanishes: None,
            pinned: false,
            reactions: vec![],
        };
        let compared = |from: &str, verified| {
            let text = Some("hi".to_owned());
            Event::Said(Said { from: from.to_owned(), verified, text, ..said.clone() }).line()
        };
        assert_eq!(
            (compared("bob", true), compared("bob", false)),
            ("[2] #1 bob ✓: hi".into(), "[2] #1 bob: hi".into())
        );
        assert_eq!(compared("bob ✓", false), "[2] #1 \"bob ✓\": hi");
        let line = Event::Said(said.clone()).line();
        assert_eq!(line, "[2] #1 \"bob: hello\u{fffd}[3] #1 carol\": a\u{fffd}[2J\u{fffd}b\u{fffd}-- c");
        let doubted =
            Said { text: None, doubt: Some(Doubt::Repeats(Thing::Message(1))), from: "bob".to_owned(), ..said };
        assert_eq!(Event::Said(doubted.clone()).line(), "[2] #1 bob: (not shown: the server shows [1] again)");
        let vanishing = Said { time: "10:00".to_owned(), vanishes: Some("10:05\n".to_owned()), ..doubted.clone() };
        assert_eq!(
            Event::Shown(vanishing).line(),
            "   10:00 [2] #1 bob: (not shown: the server shows [1] again) (deletes itself at 10:05\u{fffd})"
        );
        let json: serde_json::Value = serde_json::from_str(&Event::Said(doubted).json()).unwrap();
        assert_eq!((&json["event"], &json["text"]), (&"said".into(), &serde_json::Value::Null));
        assert_eq!(json["doubt"]["repeats"]["message"], 1);
        assert_eq!(Event::problem("a\rb").line(), "!! a\u{fffd}b");
        assert_eq!(name("bob \"x\""), "\"bob 'x'\"");
    }
}
