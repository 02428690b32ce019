//! `heliostat device`: one device of a group, by hand or from a script. What it says and hears is printed decoded, one
//! line each: `->` said, `<-` heard, `--` about the connection; `~>` and `<~` are the chat server's, through the proxy.

mod chat;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use miette::{IntoDiagnostic as _, Result, miette};

use self::chat::{Account, Line};
use super::describe::{self, Described};
use super::keyfile::{self, Remembered};
use super::terminal::Terminal;
use super::{TrustArgs, begin_capture, finish_capture, not_connected, trust_of};
use crate::client::csp::{CspError, Event};
use crate::client::{ConnectError, Device, DeviceConfig, Ended, GroupKey, Mediator};
use crate::crypto::random;
use crate::wire::d2m::{
    BadDeviceId, BeginTransaction, CloseCode, DeviceId, Envelope, FromDevice, Reflect, ReflectFlags, ReflectId,
    ServerGroup, SlotExpiration, SlotState, SlotsExhausted, ToDevice,
};

/// How long a script's last answers are waited for.
const ANSWERS: Duration = Duration::from_secs(5);

const HELP: &str = "\
reflect TEXT          to every other device, kept for those that are away
ephemeral TEXT        to the devices that are there now
begin [SCOPE] [TTL]   ask for the lock; TTL in seconds
commit                deliver what was reflected under the lock, and give it back
devices               who is in the group
drop ID|me            remove a device, or this one, from the group
shared TEXT           replace the data every device is shown when it connects
ack on|off            acknowledge what arrives, or let it come again next time
login                 log in to the chat server with --csp-identity
say IDENTITY TEXT     send a chat message
proxy HEX             raw bytes for the chat server
wait SECONDS          do nothing, for scripts
help
quit";

/// Be one device of a group
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The first run makes a group: the key goes into the file named by --group-key, and whoever has that file \
                  is a device of the group. Start it again in a second terminal with another --device-id to have two.

Examples:
  heliostat device --device-id 1
  heliostat device --device-id 2
  printf 'reflect hello\\ndevices\\n' | heliostat device --device-id 3

Type `help` for the commands. Lines are read from standard input when that is no terminal; the end of the \
                  input is the end of the device.

Exit status 0: the connection was closed by this device, or by its own `drop me`; of a script also: every line was \
                  obeyed and every answer came. 1: it was not so."
)]
pub struct Args {
    /// The mediator's base URL
    #[arg(default_value = "wss://localhost:8443")]
    url: String,
    /// The device group key; made on first use, readable by you alone
    #[arg(long, value_name = "FILE", default_value = "group.key")]
    group_key: PathBuf,
    /// Names the chat server
    #[arg(long, value_name = "NAME", default_value = "a0")]
    server_group: String,
    /// Which device of the group this is, in hex [default: the one that was used first, else a random one]
    #[arg(long, value_name = "HEX")]
    device_id: Option<DeviceId>,
    /// What the other devices are shown about this one
    #[arg(long, value_name = "TEXT", default_value = "heliostat device")]
    name: String,
    /// Let the slot expire some minutes after this device left
    #[arg(long)]
    volatile: bool,
    /// When every slot is taken, take the one that was used the longest time ago
    #[arg(long)]
    drop_least_recent: bool,
    #[command(flatten)]
    trust: TrustArgs,
    /// An identity of the chat server, as `identity new` writes it; makes `login` and `say` possible
    #[arg(long, value_name = "FILE")]
    csp_identity: Option<PathBuf>,
    /// Record what is said into a new file, readable by you alone; see `decode`, `replay` and `trace`
    #[arg(long, value_name = "FILE")]
    capture: Option<PathBuf>,
    /// The server's data directory: its development CA is trusted, the chat server's key and directory are read
    #[arg(long, value_name = "DIR", default_value = "heliostat-data")]
    data: PathBuf,
    /// Allow ws:// to a host that is not this machine
    #[arg(long)]
    insecure_plain: bool,
}

/// Connects, obeys lines and prints payloads until either side ends it.
///
/// # Errors
/// When there is no connection, or a file cannot be read or written.
pub async fn run(args: Args) -> Result<ExitCode> {
    let mut mediator = Mediator::new(&args.url, &trust_of(&args.trust, &args.data)?).into_diagnostic()?;
    let local = matches!(mediator.host(), "localhost" | "127.0.0.1" | "[::1]");
    if !(mediator.is_encrypted() || local || args.insecure_plain) {
        return Err(miette!(
            help = "use wss://, or say --insecure-plain",
            "{} is neither encrypted nor on this machine",
            args.url
        ));
    }
    let server_group = ServerGroup::new(&args.server_group)
        .ok_or_else(|| miette!("{} is not a server group: 1 to 32 digits and letters", args.server_group))?;
    let (key, new) = keyfile::load_or_create(&args.group_key)?;
    let mut remembered = Remembered::beside(&args.group_key)?;
    let device_id = args.device_id.or_else(|| remembered.first(&args.url)).unwrap_or_else(|| DeviceId(random::u64()));
    let account = match &args.csp_identity {
        Some(file) => Some(Account::open(file, &args.data).await?),
        None => None,
    };
    let capture = args.capture.as_deref().map(|path| begin_capture(path, &mut mediator)).transpose()?;
    let mut terminal = Terminal::open()?;
    if new {
        terminal.print(&format!("-- a new group; its key is in {}", args.group_key.display()))?;
    }

    let config = DeviceConfig {
        slots_exhausted: if args.drop_least_recent { SlotsExhausted::DropLeastRecent } else { SlotsExhausted::Reject },
        slot_expiration: if args.volatile { SlotExpiration::Volatile } else { SlotExpiration::Persistent },
        expected_slot_state: remembered.expected(&args.url, device_id),
        device_info: args.name.clone().into_bytes(),
        ..DeviceConfig::new(key.clone(), server_group, device_id)
    };
    terminal.print(&format!("-- device {device_id} connects to {}", mediator.url(&config.url_info())))?;
    let device = match Device::connect(&mediator, &config).await {
        Ok(device) => device,
        Err(error) => {
            finish_capture(capture).await?;
            return Err(not_admitted(&error, &config, &mediator));
        }
    };
    remembered.note(&args.url, device_id, true)?;
    let info = ToDevice::ServerInfo(device.server_info().clone());
    let mut session = Session {
        device,
        key,
        terminal,
        account,
        line: None,
        acknowledge: true,
        unanswered: 0,
        refused: 0,
        next_reflect_id: 1,
        device_id,
        leaves: false,
        finished: false,
    };
    session.heard(&describe::of_mediator(&info, Some(&session.key)))?;
    let ended = session.run().await?;
    session.terminal.print(&format!("-- {}", tell_end(&ended)))?;
    if ended.close_code() == Some(CloseCode::Dropped) {
        remembered.note(&args.url, device_id, false)?;
    }
    let good = session.went_well(&ended)?;
    session.terminal.close();
    finish_capture(capture).await?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn not_admitted(error: &ConnectError, config: &DeviceConfig, mediator: &Mediator) -> miette::Report {
    let ConnectError::NotAdmitted(ended) = error else { return not_connected(error, mediator) };
    let mismatch = ended.close_code() == Some(CloseCode::DeviceSlotStateMismatch);
    let text = format!("not admitted: {}", tell_end(ended));
    match config.expected_slot_state {
        SlotState::Existing if mismatch => {
            miette!(
                help = "the slot is gone: forget it by removing the line of this device from the file \
                            `<group key>.devices`, or use another --device-id",
                "{text}"
            )
        }
        SlotState::New if mismatch => {
            miette!(
                help = "the mediator knows this device, the file `<group key>.devices` does not: use another \
                            --device-id",
                "{text}"
            )
        }
        SlotState::New | SlotState::Existing => miette!("{text}"),
    }
}

fn tell_end(ended: &Ended) -> String {
    let meaning = ended.close_code().map(|code| format!(": {}", code.meaning())).unwrap_or_default();
    format!("{ended}{meaning}")
}

struct Session {
    device: Device,
    key: GroupKey,
    terminal: Terminal,
    account: Option<Account>,
    line: Option<Line>,
    acknowledge: bool,
    /// Answers that a script's end waits for.
    unanswered: u32,
    /// Lines that could not be obeyed.
    refused: u32,
    next_reflect_id: u32,
    device_id: DeviceId,
    /// Whether it dropped itself.
    leaves: bool,
    /// Whether there were no more lines.
    finished: bool,
}

/// What a line asks for besides payloads.
enum Command {
    Say(FromDevice),
    Login,
    Chat(String, String),
    Acknowledge(bool),
    Wait(Duration),
    Help,
    Nothing,
    Quit,
}

impl Session {
    async fn run(&mut self) -> Result<Ended> {
        loop {
            tokio::select! {
                heard = self.device.next_event() => match heard {
                    Ok(payload) => if let Err(ended) = self.on_payload(payload).await? { return Ok(ended) },
                    Err(ended) => return Ok(ended),
                },
                event = next_of(&mut self.line) => self.on_chat(event).await?,
                line = self.terminal.line() => match line? {
                    Some(line) => match self.parse(&line) {
                        Ok(Command::Quit) => return self.finish().await,
                        Ok(command) => if let Err(ended) = self.obey(command).await? { return Ok(ended) },
                        Err(why) => self.refuse(&format!("{why}; try help"))?,
                    },
                    None => return self.finish().await,
                },
            }
        }
    }

    /// Waits for the answers that are still due, then closes.
    async fn finish(&mut self) -> Result<Ended> {
        self.finished = true;
        if let Err(ended) = self.listen(ANSWERS, |session| session.unanswered == 0).await? {
            return Ok(ended);
        }
        // Whoever dropped itself is about to be told so, which is a better end.
        if self.leaves
            && let Err(ended) = self.listen(ANSWERS, |_| false).await?
        {
            return Ok(ended);
        }
        // When it ended already, the next event tells how.
        self.device.sender().close(CloseCode::Normal.code(), "").await.unwrap_or_default();
        loop {
            match self.device.next_event().await {
                Ok(payload) => self.heard(&describe::of_mediator(&payload, Some(&self.key)))?,
                Err(ended) => return Ok(ended),
            }
        }
    }

    /// Whether it ended as it should. A person sees what was answered; whoever runs a script sees the exit status.
    fn went_well(&mut self, ended: &Ended) -> Result<bool> {
        let wanted = match ended.close_code() {
            Some(CloseCode::Normal) => self.finished,
            Some(CloseCode::Dropped) => self.leaves,
            _ => false,
        };
        if self.terminal.is_interactive() {
            return Ok(wanted);
        }
        for (count, what) in
            [(self.unanswered, "answers that did not come"), (self.refused, "lines that could not be obeyed")]
        {
            if count > 0 {
                self.terminal.print(&format!("-- {what}: {count}"))?;
            }
        }
        Ok(wanted && self.unanswered == 0 && self.refused == 0)
    }

    /// A line cannot be obeyed.
    fn refuse(&mut self, why: &str) -> Result<()> {
        self.refused += 1;
        self.terminal.print(&format!("-- {why}"))
    }

    /// Prints what comes, for so long or until that.
    async fn listen(&mut self, at_most: Duration, until: impl Fn(&Self) -> bool) -> Result<Result<(), Ended>> {
        let silence = tokio::time::sleep(at_most);
        tokio::pin!(silence);
        while !until(self) {
            tokio::select! {
                () = &mut silence => break,
                heard = self.device.next_event() => match heard {
                    Ok(payload) => if let Err(ended) = self.on_payload(payload).await? { return Ok(Err(ended)) },
                    Err(ended) => return Ok(Err(ended)),
                },
                event = next_of(&mut self.line) => self.on_chat(event).await?,
            }
        }
        Ok(Ok(()))
    }

    async fn on_payload(&mut self, payload: ToDevice) -> Result<Result<(), Ended>> {
        self.heard(&describe::of_mediator(&payload, Some(&self.key)))?;
        match payload {
            ToDevice::Reflected(reflected) if self.acknowledge => {
                return self.say(FromDevice::ReflectedAck(reflected.id())).await;
            }
            ToDevice::ReflectAck(_)
            | ToDevice::BeginTransactionAck
            | ToDevice::TransactionRejected(_)
            | ToDevice::CommitTransactionAck
            | ToDevice::DevicesInfo(_)
            | ToDevice::DropDeviceAck(_) => self.unanswered = self.unanswered.saturating_sub(1),
            ToDevice::RolePromotedToLeader => self.unblock().await?,
            ToDevice::Reflected(_)
            | ToDevice::Proxy(_)
            | ToDevice::ServerHello(_)
            | ToDevice::ServerInfo(_)
            | ToDevice::ReflectionQueueDry
            | ToDevice::TransactionEnded(_)
            | ToDevice::Unknown(_) => {}
        }
        Ok(Ok(()))
    }

    async fn on_chat(&mut self, event: Result<Event, CspError>) -> Result<()> {
        let (Some(account), Some(line)) = (&self.account, &mut self.line) else { return Ok(()) };
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                self.line = None;
                return self.terminal.print(&format!("-- chat server: {error}"));
            }
        };
        if matches!(event, Event::MessageAck(_)) {
            self.unanswered = self.unanswered.saturating_sub(1);
        }
        self.terminal.print(&format!("<~ {}", account.describe(&event).await?))?;
        // When it cannot be sent, the next event tells why.
        line.answer(&event).await.unwrap_or_default();
        Ok(())
    }

    async fn login(&mut self) -> Result<()> {
        let Some(account) = &self.account else {
            return self.refuse("there is no identity: start with --csp-identity FILE");
        };
        let Some(stream) = self.device.proxy_stream() else {
            return self.refuse("one login per connection");
        };
        match account.login(self.device_id, stream).await {
            Ok((line, told)) => {
                self.line = Some(line);
                self.terminal.print(&format!("<~ {told}"))?;
                if self.device.is_leader() { self.unblock().await } else { Ok(()) }
            }
            Err(error) => self.refuse(&format!("no login: {error}")),
        }
    }

    /// The leader lets the chat server deliver; before it is logged in there is nothing to let.
    async fn unblock(&mut self) -> Result<()> {
        let Some(line) = &mut self.line else { return Ok(()) };
        if line.unblock().await.into_diagnostic()? {
            self.terminal.print("~> unblock-incoming-messages")?;
        }
        Ok(())
    }

    async fn chat(&mut self, to: &str, text: &str) -> Result<()> {
        let (Some(account), Some(line)) = (&self.account, &mut self.line) else {
            return self.refuse("log in first");
        };
        match account.seal(to, text).await {
            Ok(message) => {
                self.terminal.print(&format!("~> message  to={to}  id={:016x}  {text:?}", message.id.0))?;
                self.unanswered += 1;
                line.send(message).await.into_diagnostic()
            }
            Err(error) => self.refuse(&error.to_string()),
        }
    }

    fn parse(&mut self, line: &str) -> Result<Command, String> {
        let line = line.trim();
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        Ok(Command::Say(match command {
            "" => return Ok(Command::Nothing),
            "help" | "?" => return Ok(Command::Help),
            "quit" | "exit" => return Ok(Command::Quit),
            "wait" => {
                let seconds: f64 = rest.parse().map_err(|_| "wait for how many seconds?".to_owned())?;
                let time = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
                return Ok(Command::Wait(time));
            }
            "ack" => {
                return match rest {
                    "on" => Ok(Command::Acknowledge(true)),
                    "off" => Ok(Command::Acknowledge(false)),
                    _ => Err("ack on, or ack off".to_owned()),
                };
            }
            "reflect" | "ephemeral" => {
                let reflect_id = ReflectId(self.next_reflect_id);
                self.next_reflect_id = self.next_reflect_id.wrapping_add(1);
                FromDevice::Reflect(Reflect {
                    flags: ReflectFlags { ephemeral: command == "ephemeral" },
                    reflect_id,
                    envelope: Envelope::copy_from(&self.key.seal_envelope(rest.as_bytes())),
                })
            }
            "begin" => {
                let (scope, ttl) = rest.split_once(char::is_whitespace).unwrap_or((rest, "0"));
                let ttl_s = ttl.trim().parse().map_err(|_| format!("{ttl} is not a number of seconds"))?;
                FromDevice::BeginTransaction(BeginTransaction {
                    encrypted_scope: self.key.seal_scope(scope.as_bytes()),
                    ttl_s,
                })
            }
            "login" => return Ok(Command::Login),
            "say" => {
                let (to, text) = rest.split_once(char::is_whitespace).ok_or("say what to whom?")?;
                return Ok(Command::Chat(to.to_owned(), text.trim().to_owned()));
            }
            "commit" => FromDevice::CommitTransaction,
            "devices" => FromDevice::GetDevicesInfo,
            "drop" if rest == "me" => FromDevice::DropDevice(self.device_id),
            "drop" => FromDevice::DropDevice(rest.parse().map_err(|bad: BadDeviceId| bad.to_string())?),
            "shared" => FromDevice::SetSharedDeviceData(self.key.seal_shared_device_data(rest.as_bytes())),
            "proxy" => {
                let digits: String = rest.split_whitespace().collect();
                FromDevice::Proxy(Bytes::from(hex::decode(digits).map_err(|error| format!("not hex: {error}"))?))
            }
            other => return Err(format!("there is no command {other}")),
        }))
    }

    async fn obey(&mut self, command: Command) -> Result<Result<(), Ended>> {
        match command {
            Command::Say(payload) => {
                let answered = match &payload {
                    FromDevice::Reflect(reflect) => !reflect.flags.ephemeral,
                    FromDevice::BeginTransaction(_)
                    | FromDevice::CommitTransaction
                    | FromDevice::GetDevicesInfo
                    | FromDevice::DropDevice(_) => true,
                    FromDevice::Proxy(_)
                    | FromDevice::ClientHello(_)
                    | FromDevice::ClientHelloOfVersion(_)
                    | FromDevice::SetSharedDeviceData(_)
                    | FromDevice::ReflectedAck(_)
                    | FromDevice::Unknown(_) => false,
                };
                self.unanswered += u32::from(answered);
                self.leaves |= payload == FromDevice::DropDevice(self.device_id);
                return self.say(payload).await;
            }
            Command::Wait(time) => return self.listen(time, |_| false).await,
            Command::Login => self.login().await?,
            Command::Chat(to, text) => self.chat(&to, &text).await?,
            Command::Acknowledge(on) => self.acknowledge = on,
            Command::Help => self.terminal.print(HELP)?,
            Command::Nothing | Command::Quit => {}
        }
        Ok(Ok(()))
    }

    async fn say(&mut self, payload: FromDevice) -> Result<Result<(), Ended>> {
        let line = describe::of_device(&payload, Some(&self.key)).line();
        self.terminal.print(&format!("-> {line}"))?;
        Ok(self.device.send(&payload).await)
    }

    fn heard(&mut self, described: &Described) -> Result<()> {
        self.terminal.print(&format!("<- {}", described.line()))
    }
}

/// What the chat server says next, where there is one.
async fn next_of(line: &mut Option<Line>) -> Result<Event, CspError> {
    match line {
        Some(line) => line.next().await,
        None => std::future::pending().await,
    }
}
