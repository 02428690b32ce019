//! What a line means.

use crate::chat::dm::wire::Status;

/// What can be typed.
pub const HELP: &str = "\
Lines:
  text                     says it in the current direct message
  /to WHO                  another one: somebody's name, or # and a number
  /dms                     which there are
  /dm WHO                  makes one with a friend; /group WHO WHO... one with several
  /later SECONDS text      says it later; /vanish SECONDS text so that it deletes itself; /timed LATER VANISH text both
  /schedules               what will be said; /cancel NUMBER not to say it after all
  /edit ID text, /react ID text, /unreact REACTION, /pin ID, /unpin ID
  /history [N]             the last of the current one; /older what is before; /pinned
  /typing                  lets the others know
  /call [UUID], /hangup    signals that you are in the call, and where your client is found
  /name [TEXT]             another name for the current one, or none; /leave leaves it
  /friend WHO, /accept WHO, /refuse WHO, /unfriend WHO, /block WHO, /unblock WHO
  /friends, /requests, /outgoing, /blocked, /users, /who NAME
  /verify WHO              digits to compare with what WHO sees; /verified WHO when they are the same
  /forget WHO              takes the key that is shown next for WHO's; what was made with the other one is not used any more
  /status online|away|dnd|offline, /bio TEXT, /picture TEXT
  /overwrite               shares what this device knows, also in place of what cannot be read
  /rotate                  publishes a new prekey; /withdraw none, so that nobody can invite you
  /quit                    so does the end of the input
A name with blanks stands between quotation marks.";

/// Something to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are what HELP says")]
pub enum Command {
    Say { text: String, later_s: i64, vanish_s: i64 },
    To { who: String },
    Dms,
    Create { who: Vec<String> },
    Schedules,
    Cancel { id: i64 },
    Edit { id: i64, text: String },
    React { id: i64, text: String },
    Unreact { id: i64 },
    Pin { id: i64, pinned: bool },
    History { count: usize },
    Older,
    Pinned,
    Typing,
    Call { uuid: Option<String> },
    Hangup,
    Name { name: Option<String> },
    Leave,
    Friend { who: String },
    Answer { who: String, accept: bool },
    Unfriend { who: String },
    Block { who: String, blocked: bool },
    Friends,
    Requests,
    Outgoing,
    Blocked,
    Users,
    Who { name: String },
    Verify { who: String, verified: bool },
    Forget { who: String },
    Status { status: Status },
    Bio { text: String },
    Picture { text: String },
    Overwrite,
    Rotate,
    Withdraw,
    Quit,
}

impl Command {
    /// Something to be said now and for good.
    #[must_use]
    pub fn say(text: impl Into<String>) -> Self {
        Self::Say { text: text.into(), later_s: 0, vanish_s: 0 }
    }

    /// What a line means; nothing for an empty one.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn parse(line: &str) -> Result<Option<Self>, String> {
        if line.trim().is_empty() {
            return Ok(None);
        }
        let Some(rest) = line.strip_prefix('/') else { return Ok(Some(Self::say(line))) };
        // What begins with two is one of them, and text.
        if rest.starts_with('/') {
            return Ok(Some(Self::say(rest)));
        }
        let (word, rest) = rest.split_once(' ').map_or((rest, ""), |(word, rest)| (word, rest.trim()));
        let wants = |what: &str| format!("/{word} wants {what}");
        let who = || match &words(rest)?[..] {
            [one] => Ok(one.clone()),
            _ => Err(wants("one name; one with blanks stands between quotation marks")),
        };
        // A number, and what is behind it.
        let number = |text: &str, what: &str| {
            let (number, rest) = text.split_once(' ').map_or((text, ""), |(number, rest)| (number, rest.trim()));
            let digits = number.trim_start_matches('[').trim_end_matches(']');
            digits.parse::<i64>().map(|it| (it, rest.to_owned())).map_err(|_| wants(what))
        };
        let id = || number(rest, "a number").map(|(id, _)| id);
        let with_text = |what: &str| {
            let (id, text) = number(rest, what)?;
            if text.is_empty() { Err(wants(what)) } else { Ok((id, text)) }
        };
        let optional = || Some(rest.to_owned()).filter(|it| !it.is_empty());
        Ok(Some(match word {
            "to" => Self::To { who: who()? },
            "dms" => Self::Dms,
            "dm" => Self::Create { who: vec![who()?] },
            "group" => {
                let who = words(rest)?;
                if who.len() < 2 {
                    return Err(wants("two names or more; with one it is /dm"));
                }
                Self::Create { who }
            }
            "later" => {
                with_text("seconds and a text").map(|(later_s, text)| Self::Say { text, later_s, vanish_s: 0 })?
            }
            "vanish" => {
                with_text("seconds and a text").map(|(vanish_s, text)| Self::Say { text, later_s: 0, vanish_s })?
            }
            "timed" => {
                let (later_s, rest) = with_text("two numbers of seconds and a text")?;
                let (vanish_s, text) = number(&rest, "two numbers of seconds and a text")?;
                if text.is_empty() {
                    return Err(wants("two numbers of seconds and a text"));
                }
                Self::Say { text, later_s, vanish_s }
            }
            "schedules" => Self::Schedules,
            "cancel" => Self::Cancel { id: id()? },
            "edit" => with_text("a number and a text").map(|(id, text)| Self::Edit { id, text })?,
            "react" => with_text("a number and a text").map(|(id, text)| Self::React { id, text })?,
            "unreact" => Self::Unreact { id: id()? },
            "pin" => Self::Pin { id: id()?, pinned: true },
            "unpin" => Self::Pin { id: id()?, pinned: false },
            "history" if rest.is_empty() => Self::History { count: 20 },
            "history" => Self::History { count: rest.parse().map_err(|_| wants("how many"))? },
            "older" => Self::Older,
            "pinned" => Self::Pinned,
            "typing" => Self::Typing,
            "call" => Self::Call { uuid: optional() },
            "hangup" => Self::Hangup,
            "name" => Self::Name { name: optional() },
            "leave" => Self::Leave,
            "friend" => Self::Friend { who: who()? },
            "accept" => Self::Answer { who: who()?, accept: true },
            "refuse" => Self::Answer { who: who()?, accept: false },
            "unfriend" => Self::Unfriend { who: who()? },
            "block" => Self::Block { who: who()?, blocked: true },
            "unblock" => Self::Block { who: who()?, blocked: false },
            "friends" => Self::Friends,
            "requests" => Self::Requests,
            "outgoing" => Self::Outgoing,
            "blocked" => Self::Blocked,
            "users" => Self::Users,
            "who" => Self::Who { name: who()? },
            "verify" => Self::Verify { who: who()?, verified: false },
            "verified" => Self::Verify { who: who()?, verified: true },
            "forget" => Self::Forget { who: who()? },
            "status" => {
                let status = Status::of(rest).ok_or_else(|| wants("online, away, dnd or offline"))?;
                Self::Status { status }
            }
            "bio" => Self::Bio { text: rest.to_owned() },
            "picture" => Self::Picture { text: rest.to_owned() },
            "overwrite" => Self::Overwrite,
            "rotate" => Self::Rotate,
            "withdraw" => Self::Withdraw,
            "quit" => Self::Quit,
            other => return Err(format!("there is no /{other}: `heliostat dm talk --help` has the commands")),
        }))
    }
}

/// Words; between quotation marks, blanks belong to one.
fn words(text: &str) -> Result<Vec<String>, String> {
    let (mut out, mut rest) = (Vec::new(), text.trim_start());
    while !rest.is_empty() {
        let (word, behind) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').ok_or("a quotation mark is missing")?,
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        out.push(word.to_owned());
        rest = behind.trim_start();
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_of_the_help_is_understood() {
        let commands = HELP.split(['\n', ',', ';']).filter_map(|it| it.trim().strip_prefix('/'));
        let commands: Vec<&str> = commands.map(|it| it.split(' ').next().unwrap()).collect();
        assert!(commands.len() > 35, "{commands:?}");
        for word in commands {
            let parsed = Command::parse(&format!("/{word} 7 x"));
            assert!(!matches!(parsed, Err(why) if why.contains("there is no")), "{word}");
        }
    }

    #[test]
    fn lines_are_text_unless_they_begin_with_a_slash() {
        let parse = |line: &str| Command::parse(line).unwrap();
        assert_eq!(parse("hello /there"), Some(Command::say("hello /there")));
        assert_eq!(parse("//quit"), Some(Command::say("/quit")));
        assert_eq!(parse(" /quit"), Some(Command::say(" /quit")));
        assert_eq!(parse("  "), None);
        assert_eq!(parse("/edit [7] a b "), Some(Command::Edit { id: 7, text: "a b".to_owned() }));
        let timed = Command::Say { text: "a b".to_owned(), later_s: 2, vanish_s: 3 };
        assert_eq!(parse("/timed 2 3 a b"), Some(timed));
        let group = Command::Create { who: vec!["bob b".to_owned(), "carol".to_owned()] };
        assert_eq!(parse("/group \"bob b\" carol"), Some(group));
        assert_eq!(parse("/name"), Some(Command::Name { name: None }));
        for wrong in [
            "/",
            "/what",
            "/to",
            "/to a b",
            "/to \"a",
            "/dm",
            "/group a",
            "/edit 7",
            "/edit x y",
            "/later 1",
            "/timed 1 x",
            "/status x",
            "/history x",
            "/cancel",
            "/pin x",
            "/timed 1 2",
        ] {
            assert!(Command::parse(wrong).is_err(), "{wrong}");
        }
    }
}
