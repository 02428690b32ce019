//! `heliostat chatos`: a line client for ChatOs, by hand or from a script, straight to a server or through a mediator.
//!
//! | file | holds |
//! |---|---|
//! | `talk` | what a line means and what follows from a packet (pure) |
//! | `line` | the public connection and private ones |
//! | `devices` | one nickname on many devices: through a mediator |
//! | this one | the arguments, and the client with a connection of its own |

mod devices;
mod line;
mod talk;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_rustls::TlsConnector;

use self::line::{LINK_LINES_MAX, Link, Manners, Public, Stream};
use self::talk::{Act, LinkEvent, LinkId, Shown, Talk};
use super::terminal::Terminal;
use super::{TrustArgs, trust_of};
use crate::chat::chatos::wire::{MESSAGE_OCTETS_MAX, MESSAGE_OCTETS_REFERENCE, check_nickname};
use crate::config::CHATOS_GROUP;
use crate::wire::d2m::DeviceId;

/// How long connecting may take, and as long the login (spec 12.1).
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a server is shown that somebody is here (spec 12.4).
const KEEP_ALIVE: Duration = Duration::from_secs(120);
/// How long what was said last may take to be handled.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// Events of private connections that wait to be shown.
const EVENTS_MAX: usize = 64;

const HELP: &str = "\
Lines:
  text              to everybody
  @NAME text        to one, through the server
  /NAME             asks for a private connection; once it is open, `/NAME text` says something on it, `/NAME` closes it
  \\yes NAME, \\no NAME   when somebody asks for one
  \\quit             so does the end of the input

Printed are `NAME: text`, `NAME -> NAME: text` for private messages, `NAME => NAME: text` for private connections, `-- ` for \
                    what happens and `!! ` for what does not. Without a terminal, lines are read from standard input.

Through a mediator (ws:// or wss://) the nickname belongs to a device group: the leader is connected with the ChatOs server, the \
                    others see what it sees and speak through it, also later if they were away, and the next leader takes over.

Examples:
  heliostat chatos alice localhost:7777
  printf 'hello\\n' | heliostat chatos bob localhost:7777
  heliostat chatos carol wss://localhost:8443 --group-key carol.key --device-id 1

Exit status 0: the end was asked for, and everything said was handled before. 1: it was not so.";

/// How lines are said on private connections
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum PrivatePayload {
    /// As packets, which most clients expect
    Framed,
    /// As lines
    Raw,
}

/// For whom manners are changed
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum PeerQuirks {
    /// For nobody
    None,
    /// For the authors' own programs: short messages, packets at a distance
    Reference,
}

/// Talk on a ChatOs server, alone or as one of many devices
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// What to be called: up to 24 bytes, no spaces
    nick: String,
    /// The server, HOST:PORT, with TLS tls://HOST:PORT; or a mediator's base URL, wss://HOST:PORT
    address: String,
    /// How lines are said on private connections; how others say theirs is found out
    #[arg(long, value_enum, default_value = "framed")]
    private_payload: PrivatePayload,
    /// What the other side cannot bear
    #[arg(long, value_enum, default_value = "none")]
    peer_quirks: PeerQuirks,
    #[command(flatten)]
    trust: TrustArgs,
    /// The server's data directory: its development CA is trusted
    #[arg(long, value_name = "DIR", default_value = "heliostat-data")]
    data: PathBuf,
    /// Through a mediator: the device group key; made on first use, readable by you alone
    #[arg(long, value_name = "FILE", default_value = "group.key")]
    group_key: PathBuf,
    /// Through a mediator: names the ChatOs server
    #[arg(long, value_name = "NAME", default_value = CHATOS_GROUP)]
    server_group: String,
    /// Through a mediator: which device of the group this is, in hex [default: the one that was used first, else a random one]
    #[arg(long, value_name = "HEX")]
    device_id: Option<DeviceId>,
    /// Allow ws:// to a host that is not this machine
    #[arg(long)]
    insecure_plain: bool,
}

impl Args {
    fn manners(&self) -> Manners {
        match self.peer_quirks {
            PeerQuirks::None => Manners { gap: Duration::ZERO, join_delay: Duration::ZERO },
            PeerQuirks::Reference => Manners { gap: Duration::from_millis(20), join_delay: Duration::from_millis(500) },
        }
    }

    fn octets_max(&self) -> usize {
        match self.peer_quirks {
            PeerQuirks::None => MESSAGE_OCTETS_MAX,
            PeerQuirks::Reference => MESSAGE_OCTETS_REFERENCE,
        }
    }
}

/// Talks until either side ends it.
///
/// # Errors
/// When there is no connection, or the server does not want this client.
pub async fn run(args: Args) -> Result<ExitCode> {
    check_nickname(&args.nick).into_diagnostic()?;
    if args.address.starts_with("ws://") || args.address.starts_with("wss://") {
        return devices::run(&args).await;
    }
    let server = Server::new(&args)?;
    let stream = server.reach().await.into_diagnostic().wrap_err_with(|| format!("cannot reach {}", args.address))?;
    let (events, happened) = mpsc::channel(EVENTS_MAX);
    let mut client = Client {
        talk: Talk::new(&args.nick, args.octets_max(), true),
        public: Public::new(stream, args.manners()),
        terminal: Terminal::open()?,
        server,
        raw: args.private_payload == PrivatePayload::Raw,
        manners: args.manners(),
        links: HashMap::new(),
        running: HashSet::new(),
        quitting: false,
        held: None,
        events,
    };
    let done = client.run(happened).await;
    client.terminal.close();
    done.map(|()| ExitCode::SUCCESS)
}

/// Where the server is.
#[derive(Clone)]
struct Server {
    authority: String,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

impl Server {
    fn new(args: &Args) -> Result<Self> {
        let (authority, tls) = match args.address.strip_prefix("tls://") {
            Some(authority) => (authority, true),
            None => (args.address.as_str(), false),
        };
        let (host, _) = authority.rsplit_once(':').ok_or_else(|| {
            miette!(help = "a server is HOST:PORT or tls://HOST:PORT, a mediator wss://HOST", "{authority} has no port")
        })?;
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
        let tls = match tls {
            false => None,
            true => {
                Some((trust_of(&args.trust, &args.data)?.client_config().into_diagnostic()?, name.into_diagnostic()?))
            }
        };
        Ok(Self { authority: authority.to_owned(), tls })
    }

    async fn reach(&self) -> io::Result<Stream> {
        let connect = async {
            let tcp = TcpStream::connect(&self.authority).await?;
            tcp.set_nodelay(true)?;
            Ok::<Stream, io::Error>(match &self.tls {
                None => Box::new(tcp),
                Some((config, name)) => {
                    Box::new(TlsConnector::from(Arc::clone(config)).connect(name.clone(), tcp).await?)
                }
            })
        };
        tokio::time::timeout(PATIENCE, connect).await.map_err(|_| io::ErrorKind::TimedOut)?
    }
}

/// A client with a connection of its own.
struct Client {
    talk: Talk,
    public: Public,
    terminal: Terminal,
    server: Server,
    raw: bool,
    manners: Manners,
    /// Lines for private connections.
    links: HashMap<LinkId, mpsc::Sender<String>>,
    /// Private connections whose end was not yet heard of.
    running: HashSet<LinkId>,
    /// No private connection is opened any more.
    quitting: bool,
    /// A line whose private connection is full. No other is read meanwhile by a script; a person sees that it is so.
    held: Option<(LinkId, String)>,
    events: mpsc::Sender<(LinkId, LinkEvent)>,
}

impl Client {
    async fn run(&mut self, mut happened: mpsc::Receiver<(LinkId, LinkEvent)>) -> Result<()> {
        let login = self.talk.login();
        self.public.say(&login);
        let mut keep_alive = tokio::time::interval(KEEP_ALIVE);
        let logging_in = tokio::time::sleep(PATIENCE);
        tokio::pin!(logging_in);
        loop {
            let waits = self.held.is_some() && !self.terminal.is_interactive();
            let acts = tokio::select! {
                heard = self.public.next() => match heard.into_diagnostic().wrap_err("the connection broke")? {
                    Some(packet) => self.talk.heard(packet),
                    None => return Err(miette!("the server closed the connection")),
                },
                Some((link, event)) = happened.recv() => {
                    if matches!(event, LinkEvent::Ended(_)) {
                        self.links.remove(&link);
                        self.running.remove(&link);
                    }
                    self.talk.link(link, event)
                },
                () = has_room(&self.links, self.held.as_ref()), if self.held.is_some() => {
                    self.held.take().map(|(link, text)| Act::Write(link, text)).into_iter().collect()
                },
                line = self.terminal.line(), if !waits && self.talk.is_online() && self.public.has_room() => {
                    match line? {
                        Some(line) if line == "\\quit" => return self.quit(&mut happened).await,
                        Some(line) => self.talk.line(&line),
                        None => return self.quit(&mut happened).await,
                    }
                },
                _ = keep_alive.tick() => self.talk.keep_alive(),
                () = &mut logging_in, if !self.talk.is_online() => return Err(miette!("the server does not answer the login")),
            };
            if self.perform(acts)? {
                return Ok(());
            }
        }
    }

    /// Private connections first, then the public one, when all that was said on it has been handled (spec 11).
    async fn quit(&mut self, happened: &mut mpsc::Receiver<(LinkId, LinkEvent)>) -> Result<()> {
        if self.held.take().is_some() {
            show(
                &mut self.terminal,
                &Shown::problem("the last line for a private connection was not said: it is full"),
            )?;
        }
        // What waits for them goes out before they are closed.
        self.links.clear();
        self.quitting = true;
        let acts = self.talk.quit();
        self.perform(acts)?;
        let last_words = tokio::time::sleep(LAST_WORDS);
        tokio::pin!(last_words);
        let mut handled = false;
        while !(handled && self.running.is_empty()) {
            let acts = tokio::select! {
                heard = self.public.next(), if !handled => match heard.into_diagnostic()? {
                    Some(packet) => self.talk.heard(packet),
                    None => return Err(miette!("the server closed the connection before everything was handled")),
                },
                Some((link, event)) = happened.recv() => {
                    if matches!(event, LinkEvent::Ended(_)) {
                        self.running.remove(&link);
                    }
                    self.talk.link(link, event)
                }
                () = &mut last_words => return Err(miette!("the server did not handle everything in time")),
            };
            handled |= self.perform(acts)?;
        }
        self.public.close().await;
        Ok(())
    }

    /// Does what was decided. Whether everything is over.
    fn perform(&mut self, acts: Vec<Act>) -> Result<bool> {
        for act in acts {
            match act {
                Act::Send(packet) => self.public.say(&packet),
                Act::Show(shown) => show(&mut self.terminal, &shown)?,
                Act::Open(..) if self.quitting => {}
                Act::Open(link, id) => {
                    self.running.insert(link);
                    let (lines, taken) = mpsc::channel(LINK_LINES_MAX);
                    self.links.insert(link, lines);
                    let (server, events) = (self.server.clone(), self.events.clone());
                    let link = Link { link, id, raw: self.raw, manners: self.manners };
                    tokio::spawn(async move { link.run(server.reach().await, taken, events).await });
                }
                Act::Write(link, text) => {
                    let problem = match self.links.get(&link).map(|lines| lines.try_send(text)) {
                        Some(Ok(())) => continue,
                        Some(Err(TrySendError::Full(text))) if self.held.is_none() => {
                            self.held = Some((link, text));
                            continue;
                        }
                        Some(Err(TrySendError::Full(_))) => "that was not said: the other side does not read",
                        Some(Err(TrySendError::Closed(_))) | None => "that was not said: the connection is over",
                    };
                    show(&mut self.terminal, &Shown::problem(problem))?;
                }
                Act::Close(link) => drop(self.links.remove(&link)),
                // Of devices of a group alone.
                Act::Done(_) => {}
                Act::Quit => return Ok(true),
                Act::Fail(why) => return Err(miette!("{why}")),
            }
        }
        Ok(false)
    }
}

fn show(terminal: &mut Terminal, shown: &Shown) -> Result<()> {
    let coloured = terminal.is_interactive() && std::env::var_os("NO_COLOR").is_none();
    terminal.print(&shown.line(coloured))
}

/// Waits until the private connection of a line that is held can take it.
async fn has_room(links: &HashMap<LinkId, mpsc::Sender<String>>, held: Option<&(LinkId, String)>) {
    if let Some(lines) = held.and_then(|(link, _)| links.get(link)) {
        // One that is closed needs none.
        let _room = lines.reserve().await;
    }
}
