//! `heliostat conform client`: a mediator that plays by a script and judges the client that connects.
//!
//! The client is configured to use the judge as its mediator, and left alone: it has to come back after each connection that
//! the script ends. Where it must not come back by itself, it is started again, by a command or by a person.
//!
//! What a client made of a message cannot be seen on the wire. With `--journal` the client appends the hex of every envelope it
//! has processed to a file, a line each, and the judge reads it at the moment an acknowledgement is there.
//!
//! | file | holds |
//! |---|---|
//! | `script` | the cases |
//! | `visit` | one connection of the client |

mod script;
mod visit;

use std::fmt;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};
use tokio::net::TcpListener;
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};

use self::script::{Case, Needs};
use self::visit::{Visit, reflected};
use super::finding::{Done, Finding};
use super::report::{Format, Outcome, Report, Verdict};
use super::{chosen, print};
use crate::chat::csp::wire::Identity;
use crate::client::GroupKey;
use crate::client::raw::Duplex;
use crate::crypto::Secret;
use crate::crypto::boxes::{self, Public};
use crate::net::tls::{CertFiles, Certificate, Tls};
use crate::time::Clock;
use crate::tools::keyfile;
use crate::wire::d2m::{ClientUrlInfo, Reflected, SlotState, ToDevice};

/// Play a mediator by a script and judge the client that connects
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  heliostat conform client --start 'exec ./my-client --mediator $HELIOSTAT_JUDGE'
  heliostat conform client --listen 127.0.0.1:8443 --group-key group.key --journal processed.hex --format tap

Where the script demands that the client does not connect again by itself, --start runs it again; without --start you are \
                        asked to. The command has to stay in the foreground: it is ended when the judge is done.

Exit status 0: every rule that was tried is kept. 1: one is not, or none could be tried.")]
pub struct Args {
    /// Where the client connects: ws://, or wss:// with --cert and --key
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8443")]
    listen: SocketAddr,
    /// Certificates for TLS, in PEM
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// The key of the first certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// A command line that starts the client; it finds the judge's URL in HELIOSTAT_JUDGE
    #[arg(long, value_name = "COMMAND")]
    start: Option<String>,
    /// The client's device group key: envelopes are sealed with it, else they are random bytes
    #[arg(long, value_name = "FILE")]
    group_key: Option<PathBuf>,
    /// A file to which the client appends the hex of each envelope it has processed, one line each
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// With which the client logs in to its chat server, through the judge
    #[arg(long, value_name = "IDENTITY", requires_all = ["csp_public_key", "csp_server_key"])]
    csp_identity: Option<Identity>,
    /// The public key of that identity, in hex
    #[arg(long, value_name = "HEX", value_parser = public_key, requires = "csp_identity")]
    csp_public_key: Option<Public>,
    /// The secret key of the chat server whose public half the client pins
    #[arg(long, value_name = "FILE", requires = "csp_identity")]
    csp_server_key: Option<PathBuf>,
    /// How long the client may take to come back, and to answer
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    patience: Duration,
    /// For how long a client that must not come back is watched
    #[arg(long, default_value = "15s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    quiet: Duration,
    /// For how long a client is watched that must not say something yet
    #[arg(long, default_value = "500ms", value_name = "DURATION", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// Only cases whose number is this, begins with it, or matches its `*`; may be given again
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,
    /// Name the cases and try none
    #[arg(long)]
    list: bool,
    /// How the results are printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

fn public_key(text: &str) -> Result<Public, String> {
    let mut key = [0; 32];
    hex::decode_to_slice(text, &mut key).map_err(|_| "a public key is 64 hex digits".to_owned())?;
    Ok(key)
}

/// Where a client that is started by a command finds the judge's URL.
const URL: &str = "HELIOSTAT_JUDGE";

/// How a client is started, the first time and whenever it stopped as it should.
pub enum Start {
    /// By a person, who is asked.
    ByHand,
    /// By a command line.
    Command(String),
    /// By whoever uses this as a library.
    Hook(Arc<dyn Fn() + Send + Sync>),
}

impl fmt::Debug for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByHand => f.write_str("ByHand"),
            Self::Command(line) => f.debug_tuple("Command").field(line).finish(),
            Self::Hook(_) => f.write_str("Hook"),
        }
    }
}

/// The chat server that the judge plays behind its mediator.
#[derive(Debug, Clone)]
pub struct ChatPlan {
    /// The chat server's permanent key, whose public half the client pins.
    pub server_key: Secret<32>,
    /// With which identity the client logs in.
    pub identity: Identity,
    /// The identity's public key.
    pub public_key: Public,
}

/// How a client is judged.
pub struct Plan {
    /// Where it connects.
    pub listener: TcpListener,
    /// With this, if with TLS.
    pub tls: Option<Tls>,
    /// How it is started.
    pub start: Start,
    /// Its device group key, to seal envelopes with; else they are random bytes.
    pub key: Option<GroupKey>,
    /// The file in which it keeps what it processed.
    pub journal: Option<PathBuf>,
    /// The chat server that is played.
    pub chat: Option<ChatPlan>,
    /// How long it may take to come back, and to answer.
    pub patience: Duration,
    /// For how long a client that must not come back is watched.
    pub quiet: Duration,
    /// For how long a client is watched that must not say something yet.
    pub grace: Duration,
    /// Which cases; all when empty.
    pub only: Vec<String>,
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("listener", &self.listener).field("start", &self.start).finish_non_exhaustive()
    }
}

/// The judge, between connections.
struct Judge {
    plan: Plan,
    clock: Clock,
    next_id: u32,
    /// Running clients that were started by the command.
    started: Vec<tokio::process::Child>,
    waits_for_person: bool,
}

fn cases() -> impl Iterator<Item = &'static Case> {
    [script::HANDSHAKE, script::REFLECTION, script::CHAT, script::ENDINGS, script::CLOSES].into_iter().flatten()
}

/// Plays the script and judges.
///
/// # Errors
/// When no case is chosen.
pub async fn judge(plan: Plan) -> Result<Report> {
    let clock = Clock::system();
    let before = clock.now().monotonic;
    let chosen: Vec<&Case> = cases().filter(|case| chosen(&plan.only, case.id)).collect();
    if chosen.is_empty() {
        return Err(miette!(help = "--list names them all", "no case has such a number"));
    }
    let mut judge = Judge { plan, clock, next_id: 1, started: Vec::new(), waits_for_person: false };
    tracing::info!("the client's mediator is {}", judge.url());
    judge.says_how_long(&chosen);
    judge.starts_again();
    let mut outcomes = Vec::new();
    for case in chosen {
        let begun = judge.clock.now().monotonic;
        let verdict = judge.tries(case).await;
        let took = judge.clock.now().monotonic.saturating_sub(begun);
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        outcomes.push(Outcome { id: case.id.to_owned(), rule: case.rule, verdict, took_ms });
    }
    let took = judge.clock.now().monotonic.saturating_sub(before);
    let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let subject = format!("client of {}", judge.url());
    Ok(Report { subject, outcomes, left_behind: Vec::new(), took_ms })
}

impl Judge {
    async fn tries(&mut self, case: &Case) -> Verdict {
        let obstacle = match case.needs {
            Needs::Journal if self.plan.journal.is_none() => Some("needs to see what the client processed: --journal"),
            Needs::Chat if self.plan.chat.is_none() => Some("needs the client's chat identity: --csp-identity"),
            Needs::Client | Needs::Journal | Needs::Chat => None,
        };
        if let Some(why) = obstacle {
            return Verdict::Skipped(why.to_owned());
        }
        match (case.run)(self).await {
            Ok(()) => Verdict::Passed,
            Err(Finding::Broken(what)) => Verdict::Failed(what),
            Err(Finding::Untried(why)) => Verdict::Skipped(why),
        }
    }

    /// The base URL under which the client finds the judge.
    fn url(&self) -> String {
        let scheme = if self.plan.tls.is_some() { "wss" } else { "ws" };
        self.plan.listener.local_addr().map_or_else(|_| String::new(), |at| format!("{scheme}://{at}/"))
    }

    fn says_how_long(&self, chosen: &[&Case]) {
        /// A client's delay before it connects again, and some of its work.
        const CONNECTION: Duration = Duration::from_secs(2);
        let quiet = chosen.iter().filter(|case| case.id.contains("/41")).count();
        let takes = CONNECTION * u32::try_from(chosen.len()).unwrap_or(u32::MAX)
            + self.plan.quiet * u32::try_from(quiet).unwrap_or(u32::MAX);
        tracing::info!(
            cases = chosen.len(),
            "about {} s, if the client waits a second before it connects",
            takes.as_secs()
        );
    }

    /// Starts the client: it has not been started yet, or stopped as it should.
    fn starts_again(&mut self) {
        match &self.plan.start {
            Start::Hook(start) => start(),
            Start::Command(line) => {
                // The old one has stopped; a shell that is still there is ended.
                self.started.clear();
                let mut command = tokio::process::Command::new("sh");
                match command
                    .args(["-c", line])
                    .env(URL, self.url())
                    .stdout(std::io::stderr())
                    .kill_on_drop(true)
                    .spawn()
                {
                    Ok(child) => self.started.push(child),
                    Err(error) => tracing::error!("the client cannot be started: {error}"),
                }
            }
            Start::ByHand => {
                self.waits_for_person = true;
                tracing::info!("start the client, please");
                if std::io::stderr().is_terminal() {
                    eprintln!("start the client, please");
                }
            }
        }
    }

    /// The next connection of the client.
    async fn visit(&mut self) -> Result<Visit, Finding> {
        /// How long a person may take.
        const PERSON: Duration = Duration::from_secs(600);
        let patience = if std::mem::take(&mut self.waits_for_person) { PERSON } else { self.plan.patience };
        let Ok(visit) = tokio::time::timeout(patience, self.accepts()).await else {
            // Whatever it waits for: the next case begins with a client that comes.
            self.starts_again();
            return Err(Finding::Broken(format!("the client did not connect within {patience:?}")));
        };
        visit
    }

    async fn accepts(&self) -> Result<Visit, Finding> {
        let (tcp, _) = self.plan.listener.accept().await?;
        tcp.set_nodelay(true)?;
        let stream: Box<dyn Duplex> = match &self.plan.tls {
            Some(tls) => Box::new(tls.acceptor().accept(tcp).await?),
            None => Box::new(tcp),
        };
        let mut path = String::new();
        #[expect(clippy::result_large_err, reason = "the library's signature")]
        let look = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
            request.uri().path().clone_into(&mut path);
            Ok(response)
        };
        let socket = accept_hdr_async(stream, look).await;
        let socket = socket.map_err(|error| Finding::Broken(format!("no WebSocket: {error}")))?;
        let url = ClientUrlInfo::from_path(&path).map_err(|bad| Finding::Broken(format!("its URL: {bad}")))?;
        Ok(Visit::new(socket, url, self.plan.patience, self.now_ms()))
    }

    /// Whether the client connects within a time. Whoever does is sent away.
    async fn comes_within(&self, time: Duration) -> bool {
        tokio::time::timeout(time, self.plan.listener.accept()).await.is_ok()
    }

    /// Sends everybody away for a while, and counts them.
    async fn refuses_for(&self, time: Duration) -> usize {
        let mut attempts = 0;
        let refusing = async {
            while self.plan.listener.accept().await.is_ok() {
                attempts += 1;
            }
        };
        // Until the time is over.
        let _over = tokio::time::timeout(time, refusing).await;
        attempts
    }

    /// Greets, admits and sends the backlog up to Dry.
    async fn admitted_on(&mut self, visit: &mut Visit, backlog: &[Reflected]) -> Done {
        let hello = visit.greets().await?;
        self.admit(visit, hello.expected_slot_state, backlog).await
    }

    /// The same behind a ClientHello.
    async fn admit(&mut self, visit: &mut Visit, state: SlotState, backlog: &[Reflected]) -> Done {
        self.info(visit, state, u32::try_from(backlog.len()).unwrap_or(u32::MAX)).await?;
        for message in backlog {
            visit.reflects(message).await?;
        }
        visit.say(&ToDevice::ReflectionQueueDry).await
    }

    /// The script agrees with whatever the client believes of its slot.
    async fn info(&self, visit: &mut Visit, state: SlotState, queue: u32) -> Done {
        visit.admits(state, queue).await
    }

    fn next_id(&mut self) -> u32 {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        id
    }

    fn now_ms(&self) -> u64 {
        self.clock.now().wall_ms
    }

    fn sealed(&self, plain: &[u8]) -> Vec<u8> {
        match &self.plan.key {
            Some(key) => key.seal_envelope(plain),
            None => boxes::seal_with_random_nonce(&Secret::random(), plain),
        }
    }

    /// A new message.
    fn message(&mut self, plain: &[u8]) -> Reflected {
        reflected(self.next_id(), &self.sealed(plain), false, self.now_ms())
    }

    /// How often a message is in the journal.
    fn times_processed(&self, message: &Reflected) -> Result<usize, Finding> {
        let file = self.plan.journal.as_ref().ok_or_else(|| Finding::Untried("there is no journal".to_owned()))?;
        let text = std::fs::read_to_string(file).map_err(|error| format!("the journal cannot be read: {error}"))?;
        let line = hex::encode(message.envelope());
        Ok(text.lines().filter(|other| other.trim().eq_ignore_ascii_case(&line)).count())
    }

    fn chat(&self) -> Result<ChatPlan, Finding> {
        self.plan.chat.clone().ok_or_else(|| Finding::Untried("no chat identity is known".to_owned()))
    }

    const fn grace(&self) -> Duration {
        self.plan.grace
    }

    const fn quiet(&self) -> Duration {
        self.plan.quiet
    }
}

/// Judges and prints what was found.
///
/// # Errors
/// When it cannot begin.
pub(super) async fn run(args: Args) -> Result<ExitCode> {
    if args.list {
        let listed = cases().filter(|case| chosen(&args.only, case.id));
        print(&listed.map(|case| format!("{:16}  {}\n", case.id, case.rule)).collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let listener = TcpListener::bind(args.listen).await.into_diagnostic();
    let listener = listener.wrap_err_with(|| format!("cannot listen on {}", args.listen))?;
    let files = args.cert.zip(args.key).map(|(cert, key)| CertFiles { cert, key });
    let tls = files.map(|files| Certificate::load(&files).and_then(Tls::presenting)).transpose().into_diagnostic()?;
    let chat = match (args.csp_identity, args.csp_public_key, args.csp_server_key) {
        (Some(identity), Some(public_key), Some(file)) => {
            Some(ChatPlan { server_key: keyfile::load_secret(&file)?, identity, public_key })
        }
        _ => None,
    };
    let judged = judge(Plan {
        listener,
        tls,
        start: args.start.map_or(Start::ByHand, Start::Command),
        key: args.group_key.as_deref().map(keyfile::load).transpose()?,
        journal: args.journal,
        chat,
        patience: args.patience,
        quiet: args.quiet,
        grace: args.grace,
        only: args.only,
    });
    super::conclude(&judged.boxed().await?, args.format)
}
