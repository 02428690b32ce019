//! `heliostat skynet`: a client for Skynet v5, by hand or from a script, straight to a server or as a device behind a mediator.
//!
//! The library below it is [`Client`]: one device of an account that stays connected, seals and opens what is said, keeps what it knows,
//! and hands out [`Event`]s.
//!
//! | file | holds |
//! |---|---|
//! | [`client`] | the connection's life, commands, files |
//! | `talk` | what is decided (pure) |
//! | `outbox` | what waits for the server's answer (pure) |
//! | [`book`] | what a device knows, and which key opens what (pure) |
//! | [`keys`] | pairs of keys, what two agree on, files |
//! | `folder` | what is kept on disk |
//! | [`event`] | what happens, in words and in JSON |
//! | [`command`] | what a line means |
//! | [`mod@line`] | packets over a byte stream |
//! | [`place`] | where the server is |
//! | [`web`] | confirming, and files beside the messages |
//! | this one | the arguments, and lines from a person or a script |

pub mod book;
pub mod client;
pub mod command;
pub mod event;
mod folder;
pub mod keys;
pub mod line;
mod outbox;
pub mod place;
mod talk;
pub mod web;

use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use miette::{IntoDiagnostic as _, Result, miette};
use zeroize::Zeroizing;

pub use client::{Client, Failure, Settings, register};
pub use command::Command;
pub use event::Event;
pub use folder::{BadFolder, Session};
pub use line::Line;
pub use place::Place;
pub use web::Web;

use super::keyfile::{self, Remembered};
use super::terminal::Terminal;
use super::{TrustArgs, trust_of};
use crate::chat::skynet::wire::CreateAccountStatus;
use crate::client::Mediator;
use crate::config::SKYNET_GROUP;
use crate::crypto::random;
use crate::wire::d2m::{DeviceId, ServerGroup};

/// How long what was said last may take to be answered.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// Register, confirm, and talk on a Skynet server
#[derive(Debug, clap::Subcommand)]
pub enum Tool {
    /// Register an account under a mail address
    Register(RegisterArgs),
    /// Confirm an address with what was mailed to it
    Confirm(ConfirmArgs),
    /// Be one device of an account, by hand or from a script
    Talk(Box<TalkArgs>),
}

/// Where the server is, and how it is known.
#[derive(Debug, clap::Args)]
struct ServerArgs {
    #[command(flatten)]
    trust: TrustArgs,
    /// The server's data directory: its development CA is trusted
    #[arg(long, value_name = "DIR", default_value = "heliostat-data")]
    data: PathBuf,
    /// Where the password stands, on the first line [default: the variable HELIOSTAT_SKYNET_PASSWORD, else you are asked]
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Through a mediator: the device group key; made on first use, readable by you alone
    #[arg(long, value_name = "FILE", default_value = "group.key")]
    group_key: PathBuf,
    /// Through a mediator: names the Skynet server
    #[arg(long, value_name = "NAME", default_value = SKYNET_GROUP)]
    server_group: String,
    /// Through a mediator: which device of the group this is, in hex [default: the one that was used first, else a random one]
    #[arg(long, value_name = "HEX")]
    device_id: Option<DeviceId>,
    /// Allow ws:// to a host that is not this machine
    #[arg(long)]
    insecure_plain: bool,
    /// The platform that the server is told: it serves those it knows
    #[arg(long, value_name = "NAME", default_value = "android/de.vectordata.skynet")]
    application: String,
    /// The version that it is told
    #[arg(long, value_name = "NUMBER", default_value = "60")]
    version_code: i32,
}

/// `skynet register`
#[derive(Debug, clap::Args)]
pub struct RegisterArgs {
    /// What to be called: a mail address
    name: String,
    /// The server: HOST[:PORT], plain://HOST:PORT on this machine, or a mediator's wss://HOST:PORT
    server: String,
    #[command(flatten)]
    how: ServerArgs,
}

/// `skynet confirm`
#[derive(Debug, clap::Args)]
pub struct ConfirmArgs {
    /// The link out of the mail, or the token at its end
    token: String,
    /// Where the server's pages are, for a token
    #[arg(long, value_name = "URL", default_value = "https://localhost:8444")]
    web: String,
    #[command(flatten)]
    trust: TrustArgs,
    /// The server's data directory: its development CA is trusted
    #[arg(long, value_name = "DIR", default_value = "heliostat-data")]
    data: PathBuf,
}

/// `skynet talk`
#[derive(Debug, clap::Args)]
#[command(after_help = help())]
pub struct TalkArgs {
    /// The account's address
    name: String,
    /// The server: HOST[:PORT], plain://HOST:PORT on this machine, or a mediator's wss://HOST:PORT
    server: String,
    /// What is kept of this device; made at the first login [default: heliostat-skynet/NAME]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Where files beside the messages are kept
    #[arg(long, value_name = "URL", default_value = "https://localhost:8444")]
    web: String,
    /// What is kept is of this server, though it was reached otherwise before
    #[arg(long)]
    moved: bool,
    /// Print what happens as JSON, one object in a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    how: ServerArgs,
}

fn help() -> String {
    format!(
        "{}

Printed are `[ID] NAME: text` for what others say, `-- ` for what happens and `!! ` for what does not. The next line is read when what the \
         one before asks for is there. Without a terminal, lines are read from standard input; at their end, the client waits until \
         everything it said was answered.

Examples:
  heliostat skynet register alice@example.com localhost
  heliostat skynet confirm https://localhost:8444/confirm/TOKEN
  heliostat skynet talk alice@example.com localhost
  printf '/contact bob@example.com\\nhello\\n' | heliostat skynet talk alice@example.com localhost --json

Exit status 0: the end was asked for, everything that was asked for worked, and everything said was taken. 1: it was not so.",
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
            let password = args.how.password(true)?;
            let status = register(&args.how.place(&args.server)?, &args.how.settings(), &args.name, &password).await?;
            match status {
                CreateAccountStatus::SUCCESS => println!("registered: follow the link that is mailed to {}", args.name),
                CreateAccountStatus::MAIL_RESENT => println!("the link is mailed to {} again", args.name),
                other => return Err(miette!("{} was not registered: {other}", args.name)),
            }
            Ok(ExitCode::SUCCESS)
        }
        Tool::Confirm(args) => {
            let web = Web::new(&args.web, &trust_of(&args.trust, &args.data)?).into_diagnostic()?;
            let confirmed = web.confirm(&args.token).await;
            let confirmed = confirmed.map_err(|error| miette!("{}", super::harmless(&error.to_string())))?;
            println!("{}", super::harmless(&format!("{}: {}", confirmed.header, confirmed.content)));
            Ok(ExitCode::SUCCESS)
        }
        Tool::Talk(args) => talk_with(&args).await,
    }
}

impl ServerArgs {
    fn settings(&self) -> Settings {
        Settings { application: self.application.clone(), version_code: self.version_code, web: None, moved: false }
    }

    fn place(&self, server: &str) -> Result<Place> {
        let trust = trust_of(&self.trust, &self.data)?;
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

    /// The password: not from the arguments, which every process of the machine can read.
    fn password(&self, twice: bool) -> Result<Zeroizing<String>> {
        if let Some(file) = &self.password_file {
            return client::password_of(file).map_err(|why| miette!("{why}"));
        }
        if let Ok(password) = std::env::var("HELIOSTAT_SKYNET_PASSWORD") {
            return Ok(Zeroizing::new(password));
        }
        let ask = |what: &str| rpassword::prompt_password(what).map(Zeroizing::new);
        let none = |error: std::io::Error| {
            miette!(help = "--password-file FILE names one", "there is no terminal to ask for the password: {error}")
        };
        let password = ask("Password: ").map_err(none)?;
        if twice && ask("Again: ").map_err(none)? != password {
            return Err(miette!("these are two different passwords"));
        }
        Ok(password)
    }
}

impl From<Failure> for miette::Report {
    fn from(failure: Failure) -> Self {
        let help = match &failure {
            Failure::Connection(_) => {
                "is a server running there? `heliostat serve --skynet-listen 127.0.0.1:32761` starts one; trust its CA with --ca FILE, its \
                 key with --pin BASE64, or name its data directory with --data DIR"
            }
            Failure::Server(_) => "does it know this platform (--application)?",
            Failure::Unconfirmed => {
                "`heliostat skynet confirm LINK` does that; without a mail server the link is in the server's log"
            }
            Failure::Credentials => "`heliostat skynet register` makes an account",
            Failure::Folder(_) | Failure::Outdated(_) | Failure::Refused(_) => {
                return miette!("{}", super::harmless(&failure.to_string()));
            }
        };
        // Servers choose what they call a version, and why they close.
        miette!(help = help, "{}", super::harmless(&failure.to_string()))
    }
}

async fn talk_with(args: &TalkArgs) -> Result<ExitCode> {
    let web = Web::new(&args.web, &trust_of(&args.how.trust, &args.how.data)?).into_diagnostic()?;
    let settings = Settings { web: Some(web), moved: args.moved, ..args.how.settings() };
    // A name becomes a part of a path.
    let own = || PathBuf::from("heliostat-skynet").join(args.name.to_lowercase().replace(['/', '\\'], "_"));
    let dir = args.state.clone().unwrap_or_else(own);
    let (place, password) = (args.how.place(&args.server)?, args.how.password(false)?);
    let mut client = Client::open(place, settings, &dir, &args.name, password).await?;
    let mut terminal = Terminal::open()?;
    let ended = Headless { args, failed: false }.talk(&mut client, &mut terminal).await;
    terminal.close();
    ended
}

struct Headless<'a> {
    args: &'a TalkArgs,
    /// Something that was asked for did not work.
    failed: bool,
}

impl Headless<'_> {
    async fn talk(&mut self, client: &mut Client, terminal: &mut Terminal) -> Result<ExitCode> {
        let interrupted = terminal.interrupted();
        let (mut no_more_lines, mut last_words): (bool, Option<Pin<Box<tokio::time::Sleep>>>) = (false, None);
        if terminal.is_interactive() {
            // Whoever sits there is there.
            client.obey(Command::Online)?;
        }
        loop {
            while let Some(event) = client.take_event() {
                self.show(terminal, &event)?;
            }
            if client.is_over() || (no_more_lines && client.is_idle()) {
                return Ok(if self.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS });
            }
            let takes_lines = !no_more_lines && !client.is_busy();
            tokio::select! {
                happened = client.drive() => happened?,
                line = terminal.line(), if takes_lines => {
                    let parsed = line?.map_or(Ok(Some(Command::Quit)), |line| Command::parse(&line));
                    match parsed {
                        Ok(Some(Command::Quit)) => no_more_lines = true,
                        Ok(Some(command)) => client.obey(command)?,
                        Ok(None) => {}
                        Err(why) => self.show(terminal, &Event::problem(why))?,
                    }
                }
                () = interrupted.cancelled(), if !no_more_lines => no_more_lines = true,
                () = time_of(&mut last_words) => return Err(miette!("what was said was not answered in time")),
            }
            if no_more_lines && last_words.is_none() {
                last_words = Some(Box::pin(tokio::time::sleep(LAST_WORDS)));
            }
        }
    }

    fn show(&mut self, terminal: &mut Terminal, event: &Event) -> Result<()> {
        self.failed |= event.is_failure();
        terminal.print(&if self.args.json { event.json() } else { event.line() })
    }
}

async fn time_of(sleep: &mut Option<Pin<Box<tokio::time::Sleep>>>) {
    match sleep {
        Some(sleep) => sleep.await,
        None => std::future::pending().await,
    }
}
