//! `heliostat dm`: a client for end-to-end encrypted direct messages, by hand or from a script, straight to a server or as a device behind
//! a mediator.
//!
//! The library below it is [`Client`]: one device of an account that stays connected, seals and opens what is said, keeps what it knows,
//! and hands out [`Event`]s.
//!
//! | file | holds |
//! |---|---|
//! | [`client`] | the connection's life, commands |
//! | [`book`] | what a device knows, what it believes, what is shown (pure) |
//! | `seen` | what was seen, to know it when it comes again (pure) |
//! | `folder` | what is kept on disk |
//! | [`event`] | what happens, in words and in JSON |
//! | [`command`] | what a line means |
//! | [`mod@line`] | Socket.IO over a WebSocket |
//! | [`place`] | where the server is |
//! | this one | the arguments, and lines from a person or a script |

pub mod book;
pub mod client;
pub mod command;
pub mod event;
mod folder;
pub mod line;
pub mod place;
mod seen;

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use miette::{IntoDiagnostic as _, Result, miette};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

pub use book::Book;
pub use client::{Client, Failure, Options};
pub use command::Command;
pub use event::{Doubt, Event, Said};
pub use folder::BadFolder;
pub use line::{Heard, Line};
pub use place::Place;
pub use seen::Thing;

use super::keyfile::{self, Remembered};
use super::terminal::Terminal;
use super::{TrustArgs, trust_of};
use crate::chat::dm::crypto::{SecretKey, words};
use crate::client::Mediator;
use crate::config::DM_GROUP;
use crate::crypto::random;
use crate::wire::d2m::{DeviceId, ServerGroup};

/// How long what was said last may take to be taken.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// Register and talk on a server of end-to-end encrypted direct messages
#[derive(Debug, clap::Subcommand)]
pub enum Tool {
    /// Register a name, with a key that is made here
    Register(AccountArgs),
    /// Be another device of an account, by the words of its key
    Recover(RecoverArgs),
    /// Print the words of an account's key, to be written down
    Words(AccountArgs),
    /// Be one device of an account, by hand or from a script
    Talk(Box<TalkArgs>),
}

/// Which account, where, and how it is kept.
#[derive(Debug, clap::Args)]
pub struct AccountArgs {
    /// The account's name
    name: String,
    /// The server: HOST[:PORT], plain://HOST:PORT on this machine, or a mediator's wss://HOST:PORT
    server: String,
    /// What is kept of this device [default: heliostat-dm/NAME]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Where the passphrase stands that seals it, on the first line [default: the variable HELIOSTAT_DM_PASSPHRASE, else you are asked]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    trust: TrustArgs,
    /// The server's data directory: its development CA is trusted
    #[arg(long, value_name = "DIR", default_value = "heliostat-data")]
    data: PathBuf,
    /// Through a mediator: the device group key; made on first use, readable by you alone
    #[arg(long, value_name = "FILE", default_value = "group.key")]
    group_key: PathBuf,
    /// Through a mediator: names the server
    #[arg(long, value_name = "NAME", default_value = DM_GROUP)]
    server_group: String,
    /// Through a mediator: which device of the group this is, in hex [default: the one that was used first, else a random one]
    #[arg(long, value_name = "HEX")]
    device_id: Option<DeviceId>,
    /// Allow ws:// to a host that is not this machine
    #[arg(long)]
    insecure_plain: bool,
    /// Log in as servers without signed logins want it: such a server can have this account's keys. Only for one that you run
    #[arg(long)]
    login_by_product: bool,
    /// Believe no invitation that its creator did not sign: from now on, on all of the account's devices
    #[arg(long, value_name = "YES", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    signed_only: Option<bool>,
}

/// `dm recover`
#[derive(Debug, clap::Args)]
pub struct RecoverArgs {
    #[command(flatten)]
    account: AccountArgs,
    /// Where the words stand [default: you are asked]
    #[arg(long, value_name = "FILE")]
    words_file: Option<PathBuf>,
    /// Also when what the account's devices shared cannot be read: it is written over, and the keys in it are lost
    #[arg(long)]
    afresh: bool,
}

/// `dm talk`
#[derive(Debug, clap::Args)]
#[command(after_help = help())]
pub struct TalkArgs {
    #[command(flatten)]
    account: AccountArgs,
    /// Print what happens as JSON, one object in a line
    #[arg(long)]
    json: bool,
}

fn help() -> String {
    format!(
        "{}

Printed are `[ID] #NUMBER NAME: text` for what is said (`NAME ✓` when the key was compared), `-- ` for what happens and `!! ` for what does not. The next line is read when the one \
         before is done. Without a terminal, lines are read from standard input; at their end, the client waits until the server has \
         taken everything.

Examples:
  heliostat dm register alice localhost
  heliostat dm words alice localhost
  heliostat dm talk alice localhost
  printf '/to bob\\nhello\\n' | heliostat dm talk alice localhost --json

Exit status 0: the end was asked for, and everything that was asked for worked. 1: it was not so, or the server showed another key than the \
         known one for somebody.",
        command::HELP
    )
}

/// Does what was asked for.
///
/// # Errors
/// When it came to nothing, and why.
pub async fn run(tool: Tool) -> Result<ExitCode> {
    match tool {
        Tool::Register(args) => {
            let client =
                Client::register(args.place()?, args.options(), &args.dir(), &args.name, &args.passphrase(true)?)
                    .await?;
            client.close().into_diagnostic()?;
            println!("registered: `heliostat dm words` prints the key, to be written down");
        }
        Tool::Recover(args) => {
            let (account, seed) = (&args.account, args.seed()?);
            let passphrase = account.passphrase(true)?;
            let (place, identity) = (account.place()?, SecretKey::new(&seed));
            let options = Options { afresh: args.afresh, ..account.options() };
            let client = Client::recover(place, options, &account.dir(), &account.name, &passphrase, identity).await?;
            client.close().into_diagnostic()?;
            println!("recovered: this device knows what the others share");
        }
        Tool::Words(args) => {
            let passphrase = args.passphrase(false)?;
            let client = Client::open(args.place()?, args.options(), &args.dir(), &args.name, &passphrase)
                .map_err(Failure::from)?;
            println!("{}", *words::of(&client.book().identity().seed()));
        }
        Tool::Talk(args) => return talk_with(&args).await,
    }
    Ok(ExitCode::SUCCESS)
}

impl AccountArgs {
    const fn options(&self) -> Options {
        Options { by_product: self.login_by_product, signed_only: self.signed_only, afresh: false }
    }

    /// A name becomes a part of a path.
    fn dir(&self) -> PathBuf {
        let plain = |c: char| if c.is_alphanumeric() || matches!(c, '-' | '@') { c } else { '_' };
        let own = || PathBuf::from("heliostat-dm").join(self.name.chars().map(plain).collect::<String>());
        self.state.clone().unwrap_or_else(own)
    }

    fn place(&self) -> Result<Place> {
        let (server, trust) = (&self.server, trust_of(&self.trust, &self.data)?);
        if !(server.starts_with("ws://") || server.starts_with("wss://")) {
            return Place::direct(server, &trust).into_diagnostic();
        }
        let mediator = Mediator::new(server, &trust).into_diagnostic()?;
        let local = matches!(mediator.host(), "localhost" | "127.0.0.1" | "[::1]");
        if !(mediator.is_encrypted() || local || self.insecure_plain) {
            return Err(miette!(
                help = "use wss://, or say --insecure-plain",
                "{server} is neither encrypted nor on this machine"
            ));
        }
        let server_group = ServerGroup::new(&self.server_group)
            .ok_or_else(|| miette!("{} is not a server group: 1 to 32 digits and letters", self.server_group))?;
        keyfile::load_or_create(&self.group_key)?;
        let remembered = Remembered::beside(&self.group_key)?;
        let device = self.device_id.or_else(|| remembered.first(server)).unwrap_or_else(|| DeviceId(random::u64()));
        Ok(Place::through(mediator, server, &self.group_key, server_group, device))
    }

    /// Not from the arguments, which every process of the machine can read.
    fn passphrase(&self, twice: bool) -> Result<Zeroizing<String>> {
        if let Some(file) = &self.passphrase_file {
            let text = read(file)?;
            return match text.lines().next() {
                Some(line) if !line.is_empty() => Ok(Zeroizing::new(line.to_owned())),
                _ => Err(miette!("there is no passphrase in {}", file.display())),
            };
        }
        let given = std::env::var("HELIOSTAT_DM_PASSPHRASE").ok();
        let asked = given.is_none();
        let passphrase = match given {
            Some(passphrase) => Zeroizing::new(passphrase),
            None => ask("Passphrase: ", "--passphrase-file FILE")?,
        };
        if passphrase.is_empty() {
            return Err(miette!("the passphrase is empty"));
        }
        if twice && asked && ask("Again: ", "--passphrase-file FILE")? != passphrase {
            return Err(miette!("these are two different passphrases"));
        }
        Ok(passphrase)
    }
}

impl RecoverArgs {
    fn seed(&self) -> Result<crate::crypto::Secret<32>> {
        let text = match &self.words_file {
            Some(file) => read(file)?,
            None => ask("Words: ", "--words-file FILE")?,
        };
        words::read(&text).into_diagnostic()
    }
}

fn ask(what: &str, instead: &str) -> Result<Zeroizing<String>> {
    let none =
        |error: std::io::Error| miette!(help = format!("{instead} names one"), "there is no terminal to ask: {error}");
    rpassword::prompt_password(what).map(Zeroizing::new).map_err(none)
}

fn read(file: &Path) -> Result<Zeroizing<String>> {
    let text = std::fs::read_to_string(file).map(Zeroizing::new);
    text.map_err(|error| miette!("{} cannot be read: {error}", file.display()))
}

impl From<Failure> for miette::Report {
    fn from(failure: Failure) -> Self {
        // Some of it the server says.
        let said = event::harmless(&failure.to_string());
        let help = match &failure {
            Failure::Connection(_) => {
                "is a server running there? `heliostat serve --dm-listen 127.0.0.1:5000` starts one; trust its CA with --ca FILE, its key with --pin BASE64, or name its data directory with \
                 --data DIR"
            }
            Failure::Login(_) => {
                "`heliostat dm register` makes an account; a server that knows no signed logins wants --login-by-product, see \
                 docs/dm-client.md first"
            }
            Failure::OwnKey => "docs/dm-client.md says what that means",
            Failure::Shared(_) => {
                "a device of the account that still works may say /overwrite, which shares what that one knows; without one, --afresh begins anew"
            }
            Failure::Folder(_) | Failure::Lost(_) | Failure::Name(_) => return miette!("{said}"),
        };
        miette!(help = help, "{said}")
    }
}

async fn talk_with(args: &TalkArgs) -> Result<ExitCode> {
    let account = &args.account;
    let (place, passphrase) = (account.place()?, account.passphrase(false)?);
    let opened = Client::open(place, account.options(), &account.dir(), &account.name, &passphrase);
    let mut client = opened.map_err(Failure::from)?;
    let mut terminal = Terminal::open()?;
    let ended = Headless { json: args.json, failed: false }.talk(&mut client, &mut terminal).await;
    terminal.close();
    client.close().into_diagnostic()?;
    ended
}

struct Headless {
    json: bool,
    /// Something that was asked for did not work.
    failed: bool,
}

impl Headless {
    async fn talk(&mut self, client: &mut Client, terminal: &mut Terminal) -> Result<ExitCode> {
        let mut until = Until { interrupted: terminal.interrupted(), over: false, last_words: None };
        until.busy(client.attend()).await?;
        loop {
            while let Some(event) = client.take_event() {
                self.failed |= event.is_failure();
                terminal.print(&if self.json { event.json() } else { event.line() })?;
            }
            if until.over && client.is_idle() {
                return Ok(if self.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS });
            }
            // What the line before meant may depend on the connection.
            let takes_lines = !until.over && client.is_connected();
            tokio::select! {
                waited = client.wait() => {
                    waited?;
                    until.busy(client.attend()).await?;
                }
                line = terminal.line(), if takes_lines => {
                    match line?.map_or(Ok(Some(Command::Quit)), |line| Command::parse(&line)) {
                        Ok(Some(Command::Quit)) => until.end(),
                        Ok(Some(command)) => until.busy(client.obey(command)).await?,
                        Ok(None) => {}
                        Err(why) => {
                            self.failed = true;
                            let event = Event::problem(why);
                            terminal.print(&if self.json { event.json() } else { event.line() })?;
                        }
                    }
                }
                done = until.passes() => done?,
            }
        }
    }
}

/// The end of a conversation: asked for, it comes when everything was said, or when that takes too long. A server that keeps the client busy does
/// not keep it from that.
struct Until {
    interrupted: CancellationToken,
    /// No more is asked for.
    over: bool,
    last_words: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Until {
    fn end(&mut self) {
        self.over = true;
        self.last_words.get_or_insert_with(|| Box::pin(tokio::time::sleep(LAST_WORDS)));
    }

    /// Until the end is asked for, or has come.
    async fn passes(&mut self) -> Result<()> {
        match &mut self.last_words {
            Some(sleep) => {
                sleep.await;
                Err(miette!("what was said was not taken in time"))
            }
            None => {
                self.interrupted.cancelled().await;
                self.end();
                Ok(())
            }
        }
    }

    /// Waits for something, but not beyond the end.
    async fn busy(&mut self, with: impl Future<Output = Result<(), Failure>>) -> Result<()> {
        let mut with = std::pin::pin!(with);
        loop {
            tokio::select! {
                done = &mut with => return Ok(done?),
                done = self.passes() => done?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_is_kept_busy_ends_all_the_same() {
        let interrupted = CancellationToken::new();
        let mut until = Until { interrupted: interrupted.clone(), over: false, last_words: None };
        until.busy(std::future::ready(Ok(()))).await.unwrap();
        assert!(until.busy(std::future::ready(Err(Failure::OwnKey))).await.is_err());
        interrupted.cancel();
        // What still gets done in time is done.
        let soon = async {
            tokio::time::sleep(LAST_WORDS / 2).await;
            Ok(())
        };
        until.busy(soon).await.unwrap();
        assert!(until.over);
        let never = tokio::time::timeout(LAST_WORDS, until.busy(std::future::pending())).await;
        assert!(never.is_ok_and(|ended| ended.is_err_and(|why| why.to_string().contains("in time"))));
    }
}
