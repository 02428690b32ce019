//! `heliostat tox`: a client for Tox groups, by hand or from a script: as a member with keys of its own, or as a thin user of a hub.
//!
//! | file | holds |
//! |---|---|
//! | [`peer`] | a member on a real net |
//! | [`thin`] | a thin user's line |
//! | `line` | what a line means, and how what happens is shown |
//! | this one | the arguments, and the two clients |

mod line;
pub mod peer;
pub mod thin;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use self::line::Line;
use self::peer::{Carrier, Peer};
use self::thin::Thin;
use super::keyfile::{self, Remembered};
use super::terminal::Terminal;
use super::{TrustArgs, not_connected, trust_of};
use crate::chat::toxgroup::serve::SUBPROTOCOL;
use crate::chat::toxgroup::serve::thin::{MemberInfo, Op, Password, Said, What};
use crate::chat::toxgroup::state::{Command, Credential, Event, KICK_S, NodeFormat, Profile, Role, Rules, Why};
use crate::chat::toxgroup::wire::{ClientId, Door, Token};
use crate::client::proxy::ProxyStream;
use crate::client::raw::Duplex;
use crate::client::{Device, DeviceConfig, Mediator};
use crate::config::TOXTHIN_GROUP;
use crate::crypto::random;
use crate::files;
use crate::time::Clock;
use crate::wire::d2m::{DeviceId, ServerGroup};

/// How long connecting may take.
const PATIENCE: Duration = Duration::from_secs(10);

const HELP: &str = "\
Lines:
  text                    to everybody; /me TEXT as an action
  /nick NAME, /topic TEXT, /online, /away, /busy
  /members, /history      who is in, and what was said lately (thin users)
  /kick WHO, /ban WHO, /observe WHO, /lift WHO [REASON]   for those who may; WHO is a name, or the first digits of a key
  /mod WHO, /unmod WHO, /invite [USES]                    for the thin user who made the group
  /peer KEY [HOST:PORT], /end                             the same: let in a program of 2014; end the group for everybody
  /quit                   so does the end of the input; /leave as a thin user for good

Printed are `NAME: text`, `* NAME does`, `-- ` for what happens and `!! ` for what does not. Without a terminal, lines are read from \
                    standard input.

Examples:
  heliostat tox create lobby
  heliostat tox talk 5f67...
  heliostat tox talk 5f67... --hub wss://localhost:8443 --group-key ann.key --device-id 2
  heliostat tox join toxgroup1:AV9n... --nick bob
  printf 'hello\\n' | heliostat tox join toxgroup1:AV9n... --nick carol --by tcp

Exit status 0: the end was asked for, and everything said went out before. 1: it was not so.";

/// Talk in Tox groups
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    #[command(subcommand)]
    does: Does,
}

#[derive(Debug, clap::Subcommand)]
enum Does {
    /// Make a group on a hub, and print an invitation to it
    Create(Create),
    /// Talk as a thin user of a hub, without keys of one's own
    Talk(Talk),
    /// Join a group by an invitation, as a member with keys of one's own
    Join(Join),
}

#[derive(Debug, clap::Args)]
struct Create {
    /// How the group is called
    name: String,
    /// As groups were in 2013, without signatures
    #[arg(long)]
    classic: bool,
    /// With --classic: nobody else's topic counts
    #[arg(long, requires = "classic")]
    topic_lock: bool,
    /// Nobody needs an invitation
    #[arg(long, conflicts_with = "classic")]
    open: bool,
    /// How many may come by the invitation
    #[arg(long, default_value_t = 100)]
    uses: u32,
    #[command(flatten)]
    user: User,
}

#[derive(Debug, clap::Args)]
struct Talk {
    /// Which group: its id, or an invitation
    group: String,
    #[command(flatten)]
    user: User,
}

#[derive(Debug, clap::Args)]
struct User {
    /// Where the hub's thin users connect, HOST:PORT; or a mediator's base URL, wss://HOST:PORT
    #[arg(long, value_name = "WHERE", default_value = "localhost:33447")]
    hub: String,
    #[command(flatten)]
    through: Through,
    /// Who this is at the hub; made on first use, readable by you alone
    #[arg(long, value_name = "FILE", default_value = "tox-user.json")]
    user: PathBuf,
    /// How to be called
    #[arg(long, default_value = "somebody")]
    nick: String,
}

/// How a mediator is reached, and as which device
#[derive(Debug, clap::Args)]
struct Through {
    #[command(flatten)]
    trust: TrustArgs,
    /// The server's data directory: its development CA is trusted
    #[arg(long, value_name = "DIR", default_value = "heliostat-data")]
    data: PathBuf,
    /// Through a mediator: the device group key; made on first use, readable by you alone
    #[arg(long, value_name = "FILE", default_value = "group.key")]
    group_key: PathBuf,
    /// Through a mediator: names the hub's door for thin users
    #[arg(long, value_name = "NAME", default_value = TOXTHIN_GROUP)]
    server_group: String,
    /// Through a mediator: which device of the group this is, in hex [default: the one that was used first, else a random one]
    #[arg(long, value_name = "HEX")]
    device_id: Option<DeviceId>,
    /// Allow ws:// to a host that is not this machine
    #[arg(long)]
    insecure_plain: bool,
}

impl Through {
    /// What the mediator proxies, for as long as it is used.
    async fn reach(&self, url: &str) -> Result<ProxyStream> {
        let mediator = Mediator::new(url, &trust_of(&self.trust, &self.data)?).into_diagnostic()?;
        let local = matches!(mediator.host(), "localhost" | "127.0.0.1" | "[::1]");
        if !(mediator.is_encrypted() || local || self.insecure_plain) {
            return Err(miette!(
                help = "use wss://, or say --insecure-plain",
                "{url} is neither encrypted nor on this machine"
            ));
        }
        let server_group = ServerGroup::new(&self.server_group)
            .ok_or_else(|| miette!("{} is not a server group: 1 to 32 digits and letters", self.server_group))?;
        let (key, _) = keyfile::load_or_create(&self.group_key)?;
        let mut remembered = Remembered::beside(&self.group_key)?;
        let id = self.device_id.or_else(|| remembered.first(url)).unwrap_or_else(|| DeviceId(random::u64()));
        let config = DeviceConfig {
            expected_slot_state: remembered.expected(url, id),
            device_info: b"tox".to_vec(),
            ..DeviceConfig::new(key, server_group, id)
        };
        let connected = Device::connect(&mediator, &config).await;
        let mut device = connected.map_err(|error| not_connected(&error, &mediator))?;
        remembered.note(url, id, true)?;
        device.proxy_stream().ok_or_else(|| miette!("the mediator proxies nothing"))
    }
}

/// Which way to the hub
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum By {
    /// Datagrams
    Udp,
    /// Frames on TCP
    Tcp,
    /// Messages on a WebSocket
    Web,
}

#[derive(Debug, clap::Args)]
struct Join {
    /// The invitation: toxgroup1:...
    token: String,
    /// How to be called
    #[arg(long, default_value = "somebody")]
    nick: String,
    /// Which way [default: the first that the invitation names]
    #[arg(long, value_enum)]
    by: Option<By>,
    /// Where datagrams come from
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:0")]
    bind: SocketAddr,
    /// With members that are programs of 2014
    #[arg(long)]
    toxcore2014: bool,
    #[command(flatten)]
    trust: TrustArgs,
    /// The server's data directory: its development CA is trusted
    #[arg(long, value_name = "DIR", default_value = "heliostat-data")]
    data: PathBuf,
}

/// Talks until either side ends it.
///
/// # Errors
/// When there is no connection, or the group does not want this member.
pub async fn run(args: Args) -> Result<ExitCode> {
    match args.does {
        Does::Create(args) => create(&args).await,
        Does::Talk(args) => talk(&args).await,
        Does::Join(args) => join(&args).await,
    }
    .map(|()| ExitCode::SUCCESS)
}

/// Who a thin user is, in a file.
#[derive(Debug, Serialize, Deserialize)]
struct Identity {
    user: String,
    secret: Password,
}

impl Identity {
    fn load(path: &Path) -> Result<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) => serde_json::from_str(&text)
                .into_diagnostic()
                .wrap_err_with(|| format!("{} does not say who you are", path.display())),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let (user, secret) = (hex::encode(random::bytes::<8>()), Password(hex::encode(random::bytes::<32>())));
                let identity = Self { user, secret };
                let text = serde_json::to_string(&identity).into_diagnostic()? + "\n";
                files::write_new(path, &text, true).into_diagnostic()?;
                Ok(identity)
            }
            Err(error) => Err(error).into_diagnostic().wrap_err_with(|| format!("cannot read {}", path.display())),
        }
    }
}

impl User {
    async fn line(&self) -> Result<Thin> {
        let Identity { user, secret } = Identity::load(&self.user)?;
        let mediator = self.hub.starts_with("ws://") || self.hub.starts_with("wss://");
        let stream: Box<dyn Duplex> = if mediator {
            Box::new(self.through.reach(&self.hub).await?)
        } else {
            Box::new(tcp(&self.hub).await.wrap_err_with(|| format!("cannot reach the hub on {}", self.hub))?)
        };
        let mut thin = Thin::new(stream);
        ask(&mut thin, Op::Hello { user, secret }).await?;
        Ok(thin)
    }
}

async fn tcp(authority: &str) -> Result<TcpStream> {
    let connect = tokio::time::timeout(PATIENCE, TcpStream::connect(authority));
    let stream = connect.await.map_err(|_| miette!("nobody answers"))?.into_diagnostic()?;
    stream.set_nodelay(true).into_diagnostic()?;
    Ok(stream)
}

/// What the hub answers, if it does what is asked for.
async fn ask(thin: &mut Thin, op: Op) -> Result<What> {
    match thin.ask(op).await.into_diagnostic().wrap_err("the hub hung up")? {
        What::Error { why } => Err(miette!("{why}")),
        what => Ok(what),
    }
}

async fn create(args: &Create) -> Result<()> {
    let mut thin = args.user.line().await?;
    let Create { name, classic, topic_lock, open, uses, user } = args;
    let (classic, topic_lock, open) = (*classic, *topic_lock, *open);
    let op = Op::Create { name: name.clone(), classic, topic_lock, open, nick: user.nick.clone() };
    let What::Entered { group, .. } = ask(&mut thin, op).await? else {
        return Err(miette!("the hub says something else"));
    };
    println!("group {group}");
    let What::Invited { token, .. } = ask(&mut thin, Op::Invite { group, uses: *uses, for_s: 7 * 86_400 }).await?
    else {
        return Err(miette!("the hub says something else"));
    };
    println!("{token}");
    Ok(())
}

async fn talk(args: &Talk) -> Result<()> {
    let mut thin = args.user.line().await?;
    let entered = ask(&mut thin, Op::Join { group: args.group.clone(), nick: args.user.nick.clone() }).await?;
    let What::Entered { group, .. } = entered else { return Err(miette!("the hub says something else")) };
    let mut terminal = Terminal::open()?;
    let done = thin_lines(&mut thin, &group, &mut terminal).await;
    terminal.close();
    done
}

async fn thin_lines(thin: &mut Thin, group: &str, terminal: &mut Terminal) -> Result<()> {
    loop {
        tokio::select! {
            what = thin.next() => {
                let what = what.into_diagnostic().wrap_err("the hub hung up")?;
                if let Some(shown) = shown(group, &what) {
                    terminal.print(&shown)?;
                }
            }
            line = terminal.line() => {
                let line = match line? {
                    Some(line) => line::parse(&line),
                    None => Ok(Line::Quit),
                };
                let obeyed = match line {
                    Ok(Line::Quit) => return Ok(()),
                    Ok(line) => obey(thin, group, line, terminal).await?,
                    Err(why) => Err(why.to_owned()),
                };
                match obeyed {
                    Ok(true) => return Ok(()),
                    Ok(false) => {}
                    Err(why) => terminal.print(&format!("!! {why}"))?,
                }
            }
        }
    }
}

/// Does what a thin user's line says. Whether that was the last one; or why it is not done.
async fn obey(thin: &mut Thin, group: &str, line: Line, terminal: &mut Terminal) -> Result<Result<bool, String>> {
    let group = group.to_owned();
    let leaves = matches!(line, Line::Leave | Line::End);
    let op = match line {
        Line::Say { text, action } => Op::Say { group, text, action },
        Line::Nick(nick) => Op::Nick { group, nick },
        Line::Topic(text) => Op::Topic { group, text },
        Line::Presence(presence) => Op::Presence { group, presence },
        Line::Members => {
            let (members, topic) = everybody(thin, &group).await?;
            if !topic.is_empty() {
                terminal.print(&line::about(&topic))?;
            }
            for it in members {
                terminal.print(&line::member(&it.name, &it.member, it.role, it.presence))?;
            }
            return Ok(Ok(false));
        }
        Line::History => {
            for it in history(thin, &group).await? {
                terminal.print(&line::said(&it.name, &it.text, it.action))?;
            }
            return Ok(Ok(false));
        }
        Line::Peer { key, address } => Op::Peer { group, member: key, address },
        Line::End => Op::End { group },
        Line::Invite(uses) => Op::Invite { group, uses, for_s: 86_400 },
        Line::Leave => Op::Leave { group },
        Line::Sanction { who, verdict, kick, reason } => {
            let Some(member) = meant(thin, &group, &who).await? else { return Ok(Err(format!("who is {who}?"))) };
            Op::Sanction { group, member, verdict, for_s: kick.then_some(KICK_S), reason }
        }
        Line::Moderator { who, on } => {
            let Some(member) = meant(thin, &group, &who).await? else { return Ok(Err(format!("who is {who}?"))) };
            Op::Moderator { group, member, on }
        }
        Line::Quit | Line::Nothing => return Ok(Ok(false)),
    };
    match thin.ask(op).await.into_diagnostic().wrap_err("the hub hung up")? {
        What::Error { why } => return Ok(Err(why)),
        What::Invited { token, .. } => terminal.print(&token)?,
        _ => {}
    }
    Ok(Ok(leaves))
}

/// All members, and what they are there for: page by page.
async fn everybody(thin: &mut Thin, group: &str) -> Result<(Vec<MemberInfo>, String)> {
    let mut all: Vec<MemberInfo> = Vec::new();
    loop {
        let after = all.last().map(|it| it.member.clone());
        let What::Members { members, more, topic, .. } =
            ask(thin, Op::Members { group: group.to_owned(), after }).await?
        else {
            return Err(miette!("the hub says something else"));
        };
        let done = !more || members.is_empty();
        all.extend(members);
        if done {
            return Ok((all, topic));
        }
    }
}

/// What was said lately, the oldest first: page by page.
async fn history(thin: &mut Thin, group: &str) -> Result<Vec<Said>> {
    let mut all: Vec<Said> = Vec::new();
    loop {
        let What::History { mut said, more, .. } =
            ask(thin, Op::History { group: group.to_owned(), skip: all.len() }).await?
        else {
            return Err(miette!("the hub says something else"));
        };
        let done = !more || said.is_empty();
        said.append(&mut all);
        all = said;
        if done {
            return Ok(all);
        }
    }
}

/// The key of a member by what a person calls them.
async fn meant(thin: &mut Thin, group: &str, who: &str) -> Result<Option<String>> {
    if let Ok(key) = who.parse::<ClientId>() {
        return Ok(Some(key.to_string()));
    }
    let (members, _) = everybody(thin, group).await?;
    Ok(line::find(who, &members, |it| it.member.clone(), |it| &it.name).map(|it| it.member.clone()))
}

/// An event of this group, for people.
fn shown(group: &str, what: &What) -> Option<String> {
    let short = |member: &str| member.get(..8).unwrap_or(member).to_owned();
    let (of, line) = match what {
        What::Message { group, said } => (group, line::said(&said.name, &said.text, said.action)),
        What::Joined { group, member } => (group, format!("-- {} is in", short(member))),
        What::Left { group, member, why } => (group, format!("-- {} is gone ({why})", short(member))),
        What::Renamed { group, member, name } => {
            (group, format!("-- {} is called {}", short(member), line::clean(name)))
        }
        What::Topic { group, text } => (group, line::about(text)),
        What::Ended { group } => (group, "-- the group has ended".to_owned()),
        What::Role { group, member, role } => (group, format!("-- {} is now {role:?}", short(member)).to_lowercase()),
        What::BanAsked { group, member, target } => {
            (group, format!("-- {} asks to ban {}", short(member), short(target)))
        }
        What::Neighbours { group, count } => (group, format!("-- the hub has {count} neighbours")),
        _ => return None,
    };
    (of == group).then_some(line)
}

async fn join(args: &Join) -> Result<()> {
    let token: Token = args.token.parse().map_err(|_| {
        miette!(
            help = "the hub's `/invite` or `heliostat tox create` print one: toxgroup1:...",
            "that is no invitation"
        )
    })?;
    let (carrier, hub) = reach(args, &token).await?;
    let rules = Rules { node_format: NodeFormat::Auto, ..Rules::default() };
    let rules = if args.toxcore2014 { rules.toxcore2014() } else { rules };
    let mut peer = Peer::newcomer(token.group, &args.nick, rules, carrier, Clock::system());
    let credential = Some(Credential { id: token.id, secret: *token.secret.expose() });
    let at = peer.way(hub);
    peer.command(Command::Enter { hub: token.hub, at, credential }).into_diagnostic()?;
    loop {
        match peer.next().await {
            Some(Event::Entered) => break,
            Some(Event::NotEntered(why)) => return Err(miette!("not let in: {why}")),
            Some(_) => {}
            None => return Err(miette!("the hub hung up")),
        }
    }
    let mut terminal = Terminal::open()?;
    let done = peer_lines(&mut peer, &mut terminal).await;
    terminal.close();
    peer.leave().await;
    done
}

async fn peer_lines(peer: &mut Peer, terminal: &mut Terminal) -> Result<()> {
    let name = peer.group().records().state().map(|state| state.name.clone()).unwrap_or_default();
    let name = line::clean(&name);
    terminal.print(&format!("-- in {name} with {} members", peer.group().members().len()))?;
    let mut ends = false;
    loop {
        if ends && peer.group().waits() == 0 {
            while let Some(event) = peer.happened() {
                if let Some(shown) = told(peer, &event) {
                    terminal.print(&shown)?;
                }
            }
            return Ok(());
        }
        tokio::select! {
            event = peer.next() => {
                let event = event.ok_or_else(|| miette!("the hub hung up"))?;
                let me = peer.group().me().id();
                let out = event == Event::Role(me, Role::Banned) || event == Event::Left(me, Why::Banned);
                if let Some(shown) = told(peer, &event) {
                    terminal.print(&shown)?;
                }
                if out {
                    return Err(miette!("banned"));
                }
            }
            line = terminal.line(), if !ends => {
                let line = match line? {
                    Some(line) => line::parse(&line),
                    None => Ok(Line::Quit),
                };
                let done = match line {
                    Ok(Line::Quit | Line::Leave) => {
                        ends = true;
                        Ok(())
                    }
                    Ok(Line::Members) => {
                        for it in peer.group().members() {
                            terminal.print(&line::member(&it.name, &it.id.to_string(), it.role, it.presence))?;
                        }
                        Ok(())
                    }
                    Ok(line) => act(peer, line),
                    Err(why) => Err(why.to_owned()),
                };
                if let Err(why) = done {
                    terminal.print(&format!("!! {why}"))?;
                }
            }
        }
    }
}

/// Does what a member's line says.
fn act(peer: &mut Peer, line: Line) -> std::result::Result<(), String> {
    let by = peer.group().me().id();
    let command = match line {
        Line::Say { text, action } => Command::Say { by, text, action },
        Line::Nick(nick) => Command::Rename(by, nick),
        Line::Topic(text) => Command::SetTopic(by, text),
        Line::Presence(presence) => Command::SetPresence(by, presence),
        Line::Sanction { who, verdict, kick, reason } => {
            let members = peer.group().members();
            let found = line::find(&who, &members, |it: &Profile| it.id.to_string(), |it| &it.name);
            let target = found.ok_or_else(|| format!("who is {who}?"))?.id;
            Command::Sanction { by, target, verdict, for_s: kick.then_some(KICK_S), reason }
        }
        Line::Moderator { .. } | Line::Invite(_) | Line::Peer { .. } | Line::End => {
            return Err("the thin user who made the group can do that".into());
        }
        Line::History => return Err("a group has no history; a hub keeps one for its thin users".into()),
        Line::Members | Line::Quit | Line::Leave | Line::Nothing => return Ok(()),
    };
    peer.command(command).map_err(|why| why.to_string())
}

/// An event, for people.
fn told(peer: &Peer, event: &Event) -> Option<String> {
    let name = |id| match peer.group().name_of(id) {
        name if name.is_empty() => id.short(),
        name => name,
    };
    Some(match event {
        Event::Said { by, text, action } => line::said(&name(by), text, *action),
        Event::Joined(id) => format!("-- {} is in", id.short()),
        Event::Left(id, why) => format!("-- {} is gone ({why:?})", id.short()).to_lowercase(),
        Event::Renamed(id, name) => format!("-- {} is called {}", id.short(), line::clean(name)),
        Event::Topic(text) => line::about(text),
        Event::Role(id, role) => format!("-- {} is now {}", name(id), format!("{role:?}").to_lowercase()),
        Event::BanAsked { by, target } => format!("-- {} asks to ban {}", name(by), name(target)),
        Event::Neighbours(0) => "-- cut off".to_owned(),
        Event::Presence(..)
        | Event::State
        | Event::Neighbours(_)
        | Event::Entered
        | Event::NotEntered(_)
        | Event::Invited(_)
        | Event::Dropped(_) => return None,
    })
}

/// The way to the hub that was chosen, or the first that there is; and where datagrams go.
async fn reach(args: &Join, token: &Token) -> Result<(Carrier, SocketAddr)> {
    let fits = |door: &&Door| match (args.by, door) {
        (None, _) | (Some(By::Udp), Door::Udp(_)) => true,
        (Some(By::Tcp), Door::Url(url)) => url.starts_with("tcp://"),
        (Some(By::Web), Door::Url(url)) => url.starts_with("ws://") || url.starts_with("wss://"),
        _ => false,
    };
    let door = token.doors.iter().find(fits).ok_or_else(|| miette!("the invitation names no such way to the hub"))?;
    let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
    match door {
        Door::Udp(hub) => {
            let bind = if hub.is_ipv6() && args.bind.is_ipv4() && args.bind.ip().is_unspecified() {
                SocketAddr::from(([0_u16; 8], args.bind.port()))
            } else {
                args.bind
            };
            Ok((Carrier::udp(bind).await.into_diagnostic()?, *hub))
        }
        Door::Url(url) => {
            let carrier = by_url(args, url).await.wrap_err_with(|| format!("cannot reach the hub by {url}"))?;
            Ok((carrier, nowhere))
        }
    }
}

async fn by_url(args: &Join, url: &str) -> Result<Carrier> {
    let uri: Uri = url.parse().into_diagnostic()?;
    let (scheme, authority) = (uri.scheme_str().unwrap_or_default(), uri.authority());
    let authority = authority.ok_or_else(|| miette!("there is no address in it"))?;
    let port = match (authority.port_u16(), scheme) {
        (Some(port), _) => port,
        (None, "wss") => 443,
        (None, _) => 80,
    };
    let stream = tcp(&format!("{}:{port}", authority.host())).await?;
    let stream: Box<dyn Duplex> = match scheme {
        "tcp" => return Ok(Carrier::framed(stream)),
        "ws" => Box::new(stream),
        "wss" => {
            let config = trust_of(&args.trust, &args.data)?.client_config().into_diagnostic()?;
            let name = ServerName::try_from(authority.host().trim_matches(['[', ']']).to_owned()).into_diagnostic()?;
            let tls = TlsConnector::from(Arc::clone(&config)).connect(name, stream);
            Box::new(
                tokio::time::timeout(PATIENCE, tls).await.map_err(|_| miette!("nobody answers"))?.into_diagnostic()?,
            )
        }
        _ => return Err(miette!("{scheme} is not known here")),
    };
    let mut request = url.into_client_request().into_diagnostic()?;
    request.headers_mut().insert("Sec-WebSocket-Protocol", http::HeaderValue::from_static(SUBPROTOCOL));
    let upgrade = tokio_tungstenite::client_async(request, stream);
    let (socket, _) =
        tokio::time::timeout(PATIENCE, upgrade).await.map_err(|_| miette!("nobody answers"))?.into_diagnostic()?;
    Ok(Carrier::web(socket))
}
