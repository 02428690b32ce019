//! What a line means.

use crate::chat::skynet::wire::MessageId;
use crate::chat::skynet::wire::content::MemberFlags;

/// What can be typed.
pub const HELP: &str = "\
Lines:
  text                     says it in the current channel
  /contact ADDRESS         finds somebody, and makes their channel the current one
  /to CHANNEL              another current channel: a name, an address, or # and a number
  /channels                which there are
  /reply ID text, /edit ID text, /delete ID
  /read [ID]               says that everything up to there was read
  /history [N]             the last of the current channel; /older asks the server for more
  /typing, /online, /away  what others see of you
  /file PATH [text]        says it with a file; /save ID PATH saves one
  /group NAME WHO...       founds a group; /profile WHO... a profile, in which you talk to those who follow
  /add WHO [history|admin|mute|silent]...   into the current group; /remove WHO; /end ends it for all
  /rename NAME             the current group for all, the current contact for you
  /nickname TEXT, /bio TEXT, /picture PATH [text], /background PATH
  /verify                  shows keys to compare; /verified when they are right
  /block WHO, /unblock WHO, /blocked       a person, or the current group by `.`
  /search TEXT, /devices
  /password FILE           changes the password to the one in a file; /unlock FILE when another device did
  /address ADDRESS         wants another name; a mail there asks for confirmation
  /delete-account ADDRESS  for good
  /quit                    so does the end of the input";

/// Something to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are what HELP says")]
pub enum Command {
    Say { text: String },
    Contact { address: String },
    To { channel: String },
    Channels,
    Reply { id: MessageId, text: String },
    Edit { id: MessageId, text: String },
    Delete { id: MessageId },
    Read { up_to: MessageId },
    History { count: usize },
    Older,
    Typing,
    Online,
    Away,
    File { path: String, text: String },
    Save { id: MessageId, path: String },
    Group { name: String, members: Vec<String> },
    Profile { members: Vec<String> },
    Add { who: String, how: Vec<String> },
    Remove { who: String },
    End,
    Rename { name: String },
    Nickname { text: String },
    Bio { text: String },
    Picture { path: String, text: String },
    Background { path: String },
    Verify { verified: bool },
    Block { who: String, blocked: bool },
    Blocked,
    Search { query: String },
    Devices,
    Password { file: String },
    Unlock { file: String },
    Address { address: String },
    DeleteAccount { address: String },
    Quit,
}

/// The rights and the past that `/add` names.
pub(super) fn flags(how: &[String]) -> Result<(MemberFlags, bool), String> {
    let (mut flags, mut history) = (MemberFlags::default(), false);
    for word in how {
        match word.as_str() {
            "history" => history = true,
            "admin" => flags = flags.and(MemberFlags::ADMINISTRATOR),
            "mute" => flags = flags.and(MemberFlags::NO_CONTENT),
            "silent" => flags = flags.and(MemberFlags::NO_METADATA),
            other => return Err(format!("{other} is none of history, admin, mute, silent")),
        }
    }
    Ok((flags, history))
}

impl Command {
    /// What a line means; nothing for an empty one.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn parse(line: &str) -> Result<Option<Self>, String> {
        if line.trim().is_empty() {
            return Ok(None);
        }
        let Some(rest) = line.strip_prefix('/') else { return Ok(Some(Self::Say { text: line.to_owned() })) };
        // What begins with two is one of them, and text.
        if rest.starts_with('/') {
            return Ok(Some(Self::Say { text: rest.to_owned() }));
        }
        let (word, rest) = rest.split_once(' ').map_or((rest, ""), |(word, rest)| (word, rest.trim()));
        let wants = |what: &str| format!("/{word} wants {what}");
        let text = |what: &str| if rest.is_empty() { Err(wants(what)) } else { Ok(rest.to_owned()) };
        let words = || rest.split_whitespace().map(str::to_owned);
        let split = |what: &str| match rest.split_once(' ') {
            Some((first, rest)) => Ok((first.to_owned(), rest.trim().to_owned())),
            None if rest.is_empty() => Err(wants(what)),
            None => Ok((rest.to_owned(), String::new())),
        };
        let id = |id: &str| {
            let digits = id.trim_start_matches('[').trim_end_matches(']');
            digits.parse().map(MessageId).map_err(|_| wants("the number of a message"))
        };
        let with_id = |what: &str| {
            let (first, rest) = split("the number of a message")?;
            if rest.is_empty() { Err(wants(what)) } else { Ok((id(&first)?, rest)) }
        };
        Ok(Some(match word {
            "contact" => Self::Contact { address: text("an address")? },
            "to" => Self::To { channel: text("a channel")? },
            "channels" => Self::Channels,
            "reply" => with_id("a number and a text").map(|(id, text)| Self::Reply { id, text })?,
            "edit" => with_id("a number and a text").map(|(id, text)| Self::Edit { id, text })?,
            "delete" => Self::Delete { id: id(rest)? },
            "read" => Self::Read { up_to: if rest.is_empty() { MessageId(i64::MAX) } else { id(rest)? } },
            "history" if rest.is_empty() => Self::History { count: 20 },
            "history" => Self::History { count: rest.parse().map_err(|_| wants("how many"))? },
            "older" => Self::Older,
            "typing" => Self::Typing,
            "online" => Self::Online,
            "away" => Self::Away,
            "file" => split("a path").map(|(path, text)| Self::File { path, text })?,
            "save" => with_id("a number and a path").map(|(id, path)| Self::Save { id, path })?,
            "group" => {
                let mut words = words();
                let name = words.next().ok_or_else(|| wants("a name and members"))?;
                Self::Group { name, members: words.collect() }
            }
            "profile" => Self::Profile { members: words().collect() },
            "add" => {
                let mut words = words();
                let who = words.next().ok_or_else(|| wants("somebody"))?;
                Self::Add { who, how: words.collect() }
            }
            "remove" => Self::Remove { who: text("somebody")? },
            "end" => Self::End,
            "rename" => Self::Rename { name: text("a name")? },
            "nickname" => Self::Nickname { text: rest.to_owned() },
            "bio" => Self::Bio { text: rest.to_owned() },
            "picture" => split("a path").map(|(path, text)| Self::Picture { path, text })?,
            "background" => Self::Background { path: text("a path")? },
            "verify" => Self::Verify { verified: false },
            "verified" => Self::Verify { verified: true },
            "block" => Self::Block { who: text("somebody")?, blocked: true },
            "unblock" => Self::Block { who: text("somebody")?, blocked: false },
            "blocked" => Self::Blocked,
            "search" => Self::Search { query: text("something to search for")? },
            "devices" => Self::Devices,
            "password" => Self::Password { file: text("a file with the new password")? },
            "unlock" => Self::Unlock { file: text("a file with the password")? },
            "address" => Self::Address { address: text("an address")? },
            "delete-account" => Self::DeleteAccount { address: text("the account's address, to be sure")? },
            "quit" => Self::Quit,
            other => return Err(format!("there is no /{other}: `heliostat skynet talk --help` has the commands")),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_of_the_help_is_understood() {
        let commands = HELP.split(['\n', ',', ';']).filter_map(|it| it.trim().strip_prefix('/'));
        let words: Vec<&str> = commands.map(|it| it.split(' ').next().unwrap()).collect();
        assert!(words.len() > 30, "{words:?}");
        for word in words {
            let parsed = Command::parse(&format!("/{word} 7 x"));
            assert!(!matches!(parsed, Err(why) if why.contains("there is no")), "{word}");
        }
    }

    #[test]
    fn lines_are_text_unless_they_begin_with_a_slash() {
        let say = |text: &str| Ok(Some(Command::Say { text: text.to_owned() }));
        assert_eq!(Command::parse("hello /there"), say("hello /there"));
        assert_eq!(Command::parse("//quit"), say("/quit"));
        assert_eq!(Command::parse(" /quit"), say(" /quit"));
        assert_eq!(Command::parse("  "), Ok(None));
        assert_eq!(
            Command::parse("/reply [7] a b "),
            Ok(Some(Command::Reply { id: MessageId(7), text: "a b".to_owned() }))
        );
        let group = Command::Group { name: "us".to_owned(), members: vec!["a@b.c".to_owned(), "bob".to_owned()] };
        assert_eq!(Command::parse("/group us a@b.c bob"), Ok(Some(group)));
        for wrong in ["/", "/what", "/contact", "/reply 7", "/reply x y", "/edit", "/save 7", "/history x", "/delete"] {
            assert!(Command::parse(wrong).is_err(), "{wrong}");
        }
        assert!(flags(&["history".to_owned(), "king".to_owned()]).is_err());
    }
}
