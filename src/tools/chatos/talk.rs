//! What a ChatOs client decides (spec 12): what a line means, and what follows from a packet. Pure: it performs nothing.
//!
//! Whether a message, a request or an answer found its receiver is known by a fence (spec 12.4): behind each of them goes a message
//! to oneself, which comes back when they were handled. An "unknown user" before that is about them. In the same way it is known that
//! a line that was typed on another device has been said.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::chat::chatos::wire::{
    FromClient, MESSAGE_OCTETS_REFERENCE, NAME_FIELD_MAX, NICKNAME_MAX, PrivateId, Text, ToClient, check_text,
};
use crate::crypto::random;
use crate::tools::harmless;

/// Names a line that was typed on some device of a group: a number that grows, and that device.
pub(super) type Typed = (u64, String);

/// Something for people to see. It also is what devices tell each other, so its names are part of that format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Shown {
    /// Said to everybody.
    Public { from: String, text: String },
    /// Said to one, through the server.
    Private { from: String, to: String, text: String },
    /// Said to one, on a private connection.
    Line { from: String, to: String, text: String },
    /// Something happened.
    Note { text: String },
    /// Something did not.
    Problem { text: String },
}

impl Shown {
    pub(super) fn note(text: impl Into<String>) -> Self {
        Self::Note { text: text.into() }
    }

    pub(super) fn problem(text: impl Into<String>) -> Self {
        Self::Problem { text: text.into() }
    }

    /// One line of it. What strangers say can neither move the cursor nor begin another line.
    pub(super) fn line(&self, coloured: bool) -> String {
        const BOLD: &str = "\x1b[1m";
        const CYAN: &str = "\x1b[36m";
        const MAGENTA: &str = "\x1b[35m";
        const GREEN: &str = "\x1b[32m";
        const DIM: &str = "\x1b[2m";
        const RED: &str = "\x1b[31m";
        let (styles, head, text) = match self {
            Self::Public { from, text } => ([BOLD, CYAN], format!("{from}:"), text),
            Self::Private { from, to, text } => ([BOLD, MAGENTA], format!("{from} -> {to}:"), text),
            Self::Line { from, to, text } => ([BOLD, GREEN], format!("{from} => {to}:"), text),
            Self::Note { text } => ([DIM, ""], "--".to_owned(), text),
            Self::Problem { text } => ([BOLD, RED], "!!".to_owned(), text),
        };
        let (head, text) = (harmless(&head), harmless(text));
        if coloured {
            let [one, two] = styles;
            format!("{one}{two}{head}\x1b[0m {text}")
        } else {
            format!("{head} {text}")
        }
    }
}

/// Names a private connection of this client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct LinkId(pub(super) u64);

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    Send(FromClient),
    Show(Shown),
    /// Open a private connection and present this.
    Open(LinkId, PrivateId),
    /// Say this on it.
    Write(LinkId, String),
    Close(LinkId),
    /// What was typed there was said and handled.
    Done(Typed),
    /// Everything was said and handled: the end.
    Quit,
    /// The server is not what it should be, or does not want us: the end.
    Fail(String),
}

/// What happened on a private connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LinkEvent {
    Opened,
    Heard(String),
    Ended(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Partner {
    Asked,
    AskedBy,
    /// We said yes.
    Accepted,
    Granted(LinkId),
    Open(LinkId),
}

/// What a fence is behind of.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Behind {
    Message(String),
    Request(String),
    Answer(String),
    Typed(Typed),
    Nothing,
    Everything,
}

/// A client that wants to be called something, or is.
#[derive(Debug)]
pub(super) struct Talk {
    me: String,
    online: bool,
    octets_max: usize,
    /// Whether private connections can be had.
    links: bool,
    partners: BTreeMap<String, Partner>,
    fences: VecDeque<Behind>,
    /// What fences say. Nobody but their sender ever sees one, so nobody can say it for us.
    token: String,
    next_link: u64,
}

impl Talk {
    pub(super) fn new(me: &str, octets_max: usize, links: bool) -> Self {
        let (partners, fences) = (BTreeMap::new(), VecDeque::new());
        let token = format!("\u{1}fence {:016x}", random::u64());
        Self { me: me.to_owned(), online: false, octets_max, links, partners, fences, token, next_link: 1 }
    }

    pub(super) const fn is_online(&self) -> bool {
        self.online
    }

    /// The first thing to be said.
    pub(super) fn login(&self) -> FromClient {
        FromClient::Login(self.me.clone())
    }

    /// Keeps the server from taking us for inactive.
    pub(super) fn keep_alive(&mut self) -> Vec<Act> {
        if self.online { vec![self.fence(Behind::Nothing)] } else { Vec::new() }
    }

    /// No more lines come. [`Act::Quit`] follows when what was said has been handled.
    pub(super) fn quit(&mut self) -> Vec<Act> {
        if self.online { vec![self.fence(Behind::Everything)] } else { vec![Act::Quit] }
    }

    fn fence(&mut self, behind: Behind) -> Act {
        self.fences.push_back(behind);
        let me = || self.me.clone();
        Act::Send(FromClient::Private { from: me(), to: me(), text: Text(self.token.clone()) })
    }

    /// A line was typed on one of many devices. [`Act::Done`] follows when it has been handled.
    pub(super) fn typed(&mut self, typed: Typed, line: &str) -> Vec<Act> {
        let mut acts = self.line(line);
        acts.push(self.fence(Behind::Typed(typed)));
        acts
    }

    /// A line was typed (spec 12.2).
    pub(super) fn line(&mut self, line: &str) -> Vec<Act> {
        let problem = |text: &str| vec![Act::Show(Shown::problem(text))];
        if line.trim().is_empty() {
            return Vec::new();
        }
        if line == "\\quit" {
            return self.quit();
        }
        if !self.online {
            return problem("not logged in");
        }
        // What stands before the message counts, too.
        if let Err(bad) = check_text(line, self.octets_max) {
            return problem(&bad.to_string());
        }
        if let Some(command) = line.strip_prefix('\\') {
            return match command.split_once(' ') {
                Some(("yes", name)) => self.answer(name.trim(), true),
                Some(("no", name)) => self.answer(name.trim(), false),
                _ => problem("there are `\\yes NAME`, `\\no NAME` and `\\quit`"),
            };
        }
        if let Some(rest) = line.strip_prefix('@') {
            return match rest.split_once(' ') {
                Some((to, text)) if !to.is_empty() && !text.is_empty() => self.whisper(to, text),
                _ => problem("a private message is `@NAME message`"),
            };
        }
        if let Some(rest) = line.strip_prefix('/') {
            let (name, text) = rest.split_once(' ').unwrap_or((rest, ""));
            return self.private_connection(name, text);
        }
        vec![Act::Send(FromClient::Public { from: self.me.clone(), text: line.into() })]
    }

    /// Whether somebody may be called that: no server reads more, and some break when they have to.
    fn is_name(&self, name: &str) -> bool {
        let max = if self.octets_max <= MESSAGE_OCTETS_REFERENCE { NICKNAME_MAX } else { NAME_FIELD_MAX };
        name.len() <= max
    }

    fn whisper(&mut self, to: &str, text: &str) -> Vec<Act> {
        if to == self.me {
            return vec![Act::Show(Shown::problem("that is you"))];
        }
        if !self.is_name(to) {
            return vec![Act::Show(Shown::problem("nobody has a name that long"))];
        }
        let (from, to) = (self.me.clone(), to.to_owned());
        let said = Shown::Private { from: from.clone(), to: to.clone(), text: text.to_owned() };
        let packet = FromClient::Private { from, to: to.clone(), text: text.into() };
        vec![Act::Send(packet), Act::Show(said), self.fence(Behind::Message(to))]
    }

    fn private_connection(&mut self, name: &str, text: &str) -> Vec<Act> {
        let show = |shown| vec![Act::Show(shown)];
        if name.is_empty() || name == self.me {
            return show(Shown::problem("a private connection is asked for with `/NAME`, and not with oneself"));
        }
        if !self.links {
            return show(Shown::problem("private connections are not possible through a mediator; `@NAME message` is"));
        }
        if !self.is_name(name) {
            return show(Shown::problem("nobody has a name that long"));
        }
        match self.partners.get(name).copied() {
            None => {
                self.partners.insert(name.to_owned(), Partner::Asked);
                let said = if text.is_empty() {
                    format!("asked {name} for a private connection")
                } else {
                    format!("asked {name} for a private connection; what stood behind the name was not sent")
                };
                let request = FromClient::Request { from: self.me.clone(), to: name.to_owned() };
                vec![Act::Send(request), Act::Show(Shown::note(said)), self.fence(Behind::Request(name.to_owned()))]
            }
            Some(Partner::Asked | Partner::Accepted | Partner::Granted(_)) => {
                show(Shown::note(format!("still waiting for {name}")))
            }
            Some(Partner::AskedBy) => {
                show(Shown::note(format!("{name} has asked you: `\\yes {name}` or `\\no {name}`")))
            }
            Some(Partner::Open(link)) if text.is_empty() => vec![Act::Close(link)],
            Some(Partner::Open(link)) => {
                let said = Shown::Line { from: self.me.clone(), to: name.to_owned(), text: text.to_owned() };
                vec![Act::Write(link, text.to_owned()), Act::Show(said)]
            }
        }
    }

    fn answer(&mut self, name: &str, yes: bool) -> Vec<Act> {
        if self.partners.get(name) != Some(&Partner::AskedBy) {
            return vec![Act::Show(Shown::problem(format!("{name} has not asked")))];
        }
        let (me, name) = (self.me.clone(), name.to_owned());
        let fence = self.fence(Behind::Answer(name.clone()));
        let answer = if yes {
            self.partners.insert(name.clone(), Partner::Accepted);
            FromClient::Accept(me, name)
        } else {
            self.partners.remove(&name);
            FromClient::Refuse(me, name)
        };
        vec![Act::Send(answer), fence]
    }

    /// The server said something (spec 12.3).
    pub(super) fn heard(&mut self, packet: ToClient) -> Vec<Act> {
        let fail = |why: &str| vec![Act::Fail(why.to_owned())];
        match packet {
            ToClient::Welcome(name) if !self.online && name == self.me => {
                self.online = true;
                vec![Act::Show(Shown::note(format!("you are {name}")))]
            }
            ToClient::Refused(_) if !self.online => fail("the server refuses that nickname"),
            _ if !self.online => fail("the server does not say what it should at a login"),
            ToClient::Refused(_) => fail("the server reports an error and ends the connection"),
            ToClient::Public { from, text: Text(text) } => vec![Act::Show(Shown::Public { from, text })],
            ToClient::Private { from, to, text } if from == self.me && to == self.me && text.0 == self.token => {
                match self.fences.pop_front() {
                    Some(Behind::Everything) => vec![Act::Quit],
                    Some(Behind::Typed(typed)) => vec![Act::Done(typed)],
                    _ => Vec::new(),
                }
            }
            ToClient::Private { from, to, text: Text(text) } => vec![Act::Show(Shown::Private { from, to, text })],
            ToClient::Unknown(name) if name == self.me => {
                let whom = match self.fences.front() {
                    Some(Behind::Message(to)) => Some(to.clone()),
                    Some(Behind::Request(to) | Behind::Answer(to)) => {
                        let to = to.clone();
                        if matches!(self.partners.get(&to), Some(Partner::Asked | Partner::Accepted)) {
                            self.partners.remove(&to);
                        }
                        Some(to)
                    }
                    _ => None,
                };
                let text =
                    whom.map_or_else(|| "somebody you named is not there".into(), |to| format!("{to} is not there"));
                vec![Act::Show(Shown::problem(text))]
            }
            ToClient::Unknown(name) => {
                let mut acts = vec![Act::Show(Shown::note(format!("{name} left")))];
                if let Some(Partner::Granted(link) | Partner::Open(link)) = self.partners.remove(&name) {
                    acts.push(Act::Close(link));
                }
                acts
            }
            ToClient::Request { from, .. } => self.asked(from),
            ToClient::Accept(a, b) => match self.other(a, b) {
                Some(name) => vec![Act::Show(Shown::note(format!("{name} accepts")))],
                None => Vec::new(),
            },
            ToClient::Refuse(a, b) => match self.other(a, b) {
                // Also after we said yes: then one of the two has too many private connections.
                Some(name) if matches!(self.partners.get(&name), Some(Partner::Asked | Partner::Accepted)) => {
                    self.partners.remove(&name);
                    vec![Act::Show(Shown::note(format!("{name} refuses")))]
                }
                _ => Vec::new(),
            },
            ToClient::Id(a, b, id) => {
                let Some(name) = self.other(a, b) else { return Vec::new() };
                // Never for a pair that we did not agree to.
                let Some(partner @ (Partner::Asked | Partner::Accepted)) = self.partners.get_mut(&name) else {
                    return Vec::new();
                };
                let link = LinkId(self.next_link);
                self.next_link += 1;
                *partner = Partner::Granted(link);
                vec![Act::Open(link, id)]
            }
            ToClient::Welcome(_) | ToClient::Established => fail("the server says what it cannot say now"),
        }
    }

    fn asked(&mut self, from: String) -> Vec<Act> {
        if !self.links {
            let text = format!("{from} wants a private connection, which a mediator does not carry: refused");
            let fence = self.fence(Behind::Answer(from.clone()));
            return vec![Act::Send(FromClient::Refuse(self.me.clone(), from)), fence, Act::Show(Shown::note(text))];
        }
        // A server lets nobody ask as long as there is something between two, so what is known here is over already.
        let over = match self.partners.get(&from) {
            Some(Partner::AskedBy) => return Vec::new(),
            Some(Partner::Granted(link) | Partner::Open(link)) => Some(Act::Close(*link)),
            Some(Partner::Asked | Partner::Accepted) | None => None,
        };
        let text = format!("{from} wants a private connection: `\\yes {from}` or `\\no {from}`");
        self.partners.insert(from, Partner::AskedBy);
        over.into_iter().chain([Act::Show(Shown::note(text))]).collect()
    }

    /// Of two names, the one that is not ours, whatever their order.
    fn other(&self, a: String, b: String) -> Option<String> {
        match (a == self.me, b == self.me) {
            (true, false) => Some(b),
            (false, true) => Some(a),
            _ => None,
        }
    }

    /// Something happened on a private connection.
    pub(super) fn link(&mut self, link: LinkId, event: LinkEvent) -> Vec<Act> {
        let of = |partner: &Partner| matches!(partner, Partner::Granted(it) | Partner::Open(it) if *it == link);
        let Some((name, partner)) = self.partners.iter_mut().find(|(_, partner)| of(partner)) else {
            return Vec::new();
        };
        let name = name.clone();
        vec![Act::Show(match event {
            LinkEvent::Opened => {
                *partner = Partner::Open(link);
                Shown::note(format!(
                    "the private connection with {name} is open: `/{name} message`, `/{name}` closes it"
                ))
            }
            LinkEvent::Heard(text) => Shown::Line { from: name, to: self.me.clone(), text },
            LinkEvent::Ended(why) => {
                self.partners.remove(&name);
                Shown::note(format!("the private connection with {name} is over: {why}"))
            }
        })]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FENCE: &str = "\u{1}fence";

    fn s(text: &str) -> String {
        text.to_owned()
    }

    fn online() -> Talk {
        let mut talk = Talk::new("alice", 2_048, true);
        assert!(std::mem::replace(&mut talk.token, s(FENCE)).starts_with(FENCE));
        assert_eq!(talk.login(), FromClient::Login(s("alice")));
        talk.heard(ToClient::Welcome(s("alice")));
        assert!(talk.is_online());
        talk
    }

    fn sent(acts: &[Act]) -> Vec<FromClient> {
        let not_a_fence =
            |packet: &FromClient| !matches!(packet, FromClient::Private { text, .. } if text.0.starts_with(FENCE));
        let packets =
            acts.iter().filter_map(|act| if let Act::Send(packet) = act { Some(packet.clone()) } else { None });
        packets.filter(not_a_fence).collect()
    }

    fn shown(acts: &[Act]) -> Vec<String> {
        let lines =
            acts.iter().filter_map(|act| if let Act::Show(shown) = act { Some(shown.line(false)) } else { None });
        lines.collect()
    }

    fn fence() -> ToClient {
        ToClient::Private { from: s("alice"), to: s("alice"), text: FENCE.into() }
    }

    #[test]
    fn every_line_of_the_table_of_commands() {
        let long = "é".repeat(513);
        let long_with_its_command = format!("@bob {}", "x".repeat(508));
        let longest = format!("@bob {}", "x".repeat(507));
        let long_name = format!("@{} x", "\u{1f600}".repeat(257));
        let long_asked = format!("/{}", "\u{1f600}".repeat(257));
        for (line, packets) in [
            ("hello", vec![FromClient::Public { from: s("alice"), text: "hello".into() }]),
            (" /not a command", vec![FromClient::Public { from: s("alice"), text: " /not a command".into() }]),
            ("", vec![]),
            ("   ", vec![]),
            ("@bob  hé ", vec![FromClient::Private { from: s("alice"), to: s("bob"), text: " hé ".into() }]),
            ("@bob", vec![]),
            ("@bob ", vec![]),
            ("@ x", vec![]),
            ("@alice x", vec![]),
            ("/bob", vec![FromClient::Request { from: s("alice"), to: s("bob") }]),
            ("/bob hello", vec![FromClient::Request { from: s("alice"), to: s("bob") }]),
            ("/alice", vec![]),
            ("/", vec![]),
            ("\\yes bob", vec![]),
            ("\\what", vec![]),
            ("a\rb", vec![]),
            (&long, vec![]),
            (&long_with_its_command, vec![]),
            (
                &longest,
                vec![FromClient::Private { from: s("alice"), to: s("bob"), text: "x".repeat(507).as_str().into() }],
            ),
            (&long_name, vec![]),
            (&long_asked, vec![]),
        ] {
            let mut talk = online();
            let acts = talk.line(line);
            assert_eq!(sent(&acts), packets, "{line:?}");
            let is_blank = line.trim().is_empty();
            assert_eq!(
                shown(&acts).iter().any(|line| line.starts_with("!!")),
                packets.is_empty() && !is_blank,
                "{line:?}"
            );
        }
        let mut talk = online();
        assert!(shown(&talk.line("/bob hello"))[0].contains("was not sent"), "D-39");
        let mut early = Talk::new("alice", 2_048, true);
        assert_eq!(sent(&early.line("hello")), []);
        assert_eq!(early.line("\\quit"), [Act::Quit]);
    }

    #[test]
    fn an_older_server_is_not_sent_more_octets_than_it_bears() {
        let mut talk = Talk::new("alice", 512, true);
        talk.heard(ToClient::Welcome(s("alice")));
        assert_eq!(sent(&talk.line(&"é".repeat(257))), []);
        assert_eq!(sent(&talk.line(&"é".repeat(256))).len(), 1);
        assert_eq!(sent(&talk.line(&format!("@{} x", "b".repeat(25)))), [], "nor longer names");
        assert_eq!(sent(&talk.line(&format!("@{} x", "b".repeat(24)))).len(), 1);
    }

    #[test]
    fn the_end_comes_when_everything_was_handled() {
        let mut talk = online();
        talk.line("@bob hi");
        assert!(matches!(talk.line("\\quit")[..], [Act::Send(_)]));
        assert_eq!(talk.heard(fence()), [], "that of the message");
        assert_eq!(talk.heard(fence()), [Act::Quit]);
    }

    #[test]
    fn who_is_not_there_is_named() {
        let mut talk = online();
        talk.line("@bob hi");
        talk.line("/carol");
        let unknown = || ToClient::Unknown(s("alice"));
        assert_eq!(shown(&talk.heard(unknown())), ["!! bob is not there"]);
        talk.heard(fence());
        assert_eq!(shown(&talk.heard(unknown())), ["!! carol is not there"]);
        talk.heard(fence());
        assert_eq!(sent(&talk.line("/carol")).len(), 1, "may be asked again");
    }

    /// An answer has a fence, too, so that what comes of it is not taken for another's.
    #[test]
    fn who_left_before_the_answer_is_named() {
        for answer in ["\\yes bob", "\\no bob"] {
            let mut talk = online();
            talk.heard(ToClient::Request { from: s("bob"), to: s("alice") });
            talk.line(answer);
            talk.line("@carol hi");
            assert_eq!(shown(&talk.heard(ToClient::Unknown(s("alice")))), ["!! bob is not there"], "{answer}");
            talk.heard(fence());
            assert_eq!(talk.heard(fence()), []);
            assert_eq!(sent(&talk.line("/bob")).len(), 1, "nothing is left of it");
        }
    }

    /// What others say is no fence, however much it looks like one.
    #[test]
    fn nobody_else_can_say_a_fence() {
        let (one, two) = (Talk::new("alice", 2_048, true), Talk::new("alice", 2_048, true));
        assert_ne!(one.token, two.token);
        let mut talk = online();
        talk.line("@bob hi");
        talk.heard(ToClient::Private { from: s("alice"), to: s("alice"), text: one.token.as_str().into() });
        assert_eq!(shown(&talk.heard(ToClient::Unknown(s("alice")))), ["!! bob is not there"]);
    }

    /// A server lets nobody ask while there is something: so it is over, and the news of that was overtaken.
    #[test]
    fn a_request_ends_what_was_there_before_it() {
        let asked = || ToClient::Request { from: s("bob"), to: s("alice") };
        let id = || ToClient::Id(s("bob"), s("alice"), PrivateId(1));
        for opened in [false, true] {
            let mut talk = online();
            talk.line("/bob");
            talk.heard(id());
            if opened {
                talk.link(LinkId(1), LinkEvent::Opened);
            }
            let acts = talk.heard(asked());
            assert_eq!((acts.first(), shown(&acts).len()), (Some(&Act::Close(LinkId(1))), 1));
            assert_eq!(talk.link(LinkId(1), LinkEvent::Ended(s("late"))), []);
            assert_eq!(sent(&talk.line("\\yes bob")).len(), 1);
        }
        let mut talk = online();
        talk.heard(asked());
        talk.line("\\yes bob");
        assert_eq!(shown(&talk.heard(asked())).len(), 1, "accepted, and no id came");
        // Who said yes learns that there is no room for it.
        talk.line("\\yes bob");
        assert_eq!(shown(&talk.heard(ToClient::Refuse(s("bob"), s("alice")))), ["-- bob refuses"]);
        assert_eq!(sent(&talk.line("/bob")).len(), 1);
    }

    /// A line of another device is done when the server has handled it, and not when it was sent.
    #[test]
    fn a_typed_line_is_done_when_its_fence_is_back() {
        let mut talk = online();
        let typed = (7, s("b2"));
        assert_eq!(sent(&talk.typed(typed.clone(), "@bob hi")).len(), 1);
        assert_eq!(talk.heard(fence()), [], "that of the message");
        assert_eq!(talk.heard(fence()), [Act::Done(typed.clone())]);
        // Also one that says nothing.
        assert_eq!(sent(&talk.typed(typed.clone(), "\\what")), []);
        assert_eq!(talk.heard(fence()), [Act::Done(typed)]);
    }

    #[test]
    fn a_private_connection_from_the_request_to_the_end() {
        let mut talk = online();
        talk.line("/bob");
        assert!(shown(&talk.line("/bob"))[0].contains("still waiting"));
        talk.heard(ToClient::Accept(s("bob"), s("alice")));
        // In the wrong order, as some servers have it.
        let acts = talk.heard(ToClient::Id(s("alice"), s("bob"), PrivateId(0)));
        assert_eq!(acts, [Act::Open(LinkId(1), PrivateId(0))]);
        assert_eq!(talk.heard(ToClient::Id(s("bob"), s("alice"), PrivateId(7))), [], "once");
        assert!(shown(&talk.line("/bob x"))[0].contains("still waiting"));
        talk.link(LinkId(1), LinkEvent::Opened);
        let acts = talk.line("/bob hello");
        assert_eq!(acts[0], Act::Write(LinkId(1), s("hello")));
        assert_eq!(shown(&acts), ["alice => bob: hello"]);
        assert_eq!(shown(&talk.link(LinkId(1), LinkEvent::Heard(s("yes?")))), ["bob => alice: yes?"]);
        assert_eq!(talk.line("/bob"), [Act::Close(LinkId(1))], "D-40");
        talk.link(LinkId(1), LinkEvent::Ended(s("closed")));
        assert_eq!(talk.link(LinkId(1), LinkEvent::Heard(s("late"))), []);
        assert_eq!(sent(&talk.line("/bob")).len(), 1, "may be asked for again");
    }

    #[test]
    fn nobody_is_connected_to_whom_this_client_did_not_agree() {
        let mut talk = online();
        let id = || ToClient::Id(s("bob"), s("alice"), PrivateId(1));
        assert_eq!(talk.heard(id()), []);
        let asked = || ToClient::Request { from: s("bob"), to: s("alice") };
        assert_eq!(shown(&talk.heard(asked())).len(), 1);
        assert_eq!(talk.heard(asked()), [], "a repeat is ignored");
        assert_eq!(talk.heard(id()), []);
        assert_eq!(sent(&talk.line("\\yes bob")), [FromClient::Accept(s("alice"), s("bob"))]);
        assert_eq!(talk.heard(id()), [Act::Open(LinkId(1), PrivateId(1))]);
        // A departure ends it.
        let acts = talk.heard(ToClient::Unknown(s("bob")));
        assert_eq!((shown(&acts), acts.last()), (vec![s("-- bob left")], Some(&Act::Close(LinkId(1)))));
    }

    #[test]
    fn refusals() {
        let mut talk = online();
        talk.heard(ToClient::Request { from: s("bob"), to: s("alice") });
        assert_eq!(sent(&talk.line("\\no bob")), [FromClient::Refuse(s("alice"), s("bob"))]);
        talk.line("/bob");
        assert_eq!(shown(&talk.heard(ToClient::Refuse(s("alice"), s("bob")))), ["-- bob refuses"]);
        assert_eq!(talk.heard(ToClient::Refuse(s("bob"), s("alice"))), []);
    }

    #[test]
    fn what_a_server_may_not_say_is_the_end() {
        for packet in [ToClient::Established, ToClient::Welcome(s("alice")), ToClient::Refused(s("alice"))] {
            assert!(matches!(online().heard(packet)[..], [Act::Fail(_)]));
        }
        for packet in [ToClient::Refused(s("alice")), ToClient::Welcome(s("eve")), ToClient::Unknown(s("bob"))] {
            assert!(matches!(Talk::new("alice", 2_048, true).heard(packet)[..], [Act::Fail(_)]));
        }
    }

    #[test]
    fn what_strangers_say_is_one_harmless_line() {
        let said = Shown::Public { from: s("e\u{1b}ve"), text: s("a\u{1b}[2Jb\u{9b}c\nd\u{7f}") };
        assert_eq!(said.line(false), "e\u{fffd}ve: a\u{fffd}[2Jb\u{fffd}c\u{fffd}d\u{fffd}");
        assert_eq!(said.line(true).matches('\u{1b}').count(), 3, "only our own");
    }

    #[test]
    fn through_a_mediator_there_are_no_private_connections() {
        let mut talk = Talk::new("alice", 2_048, false);
        talk.heard(ToClient::Welcome(s("alice")));
        assert_eq!(sent(&talk.line("/bob")), []);
        let acts = talk.heard(ToClient::Request { from: s("bob"), to: s("alice") });
        assert_eq!(sent(&acts), [FromClient::Refuse(s("alice"), s("bob"))]);
    }
}
