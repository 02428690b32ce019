//! Operating a server that runs, through its admin door ([`crate::server::api`]).

use std::fmt::Write as _;
use std::io::{self, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use axum::body::Body;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use zeroize::Zeroizing;

use crate::capture::{Event, Reader};
use crate::cli::admin_authority;
use crate::files;
use crate::group::view::{Connection, Delivery, DeviceView, LockView, Presence};
use crate::server::api::{
    AwakeLine, Done, Explanation, GroupDetails, GroupLine, GroupList, LogFilter, NodeLine, NodeList, Refusal,
};
use crate::server::backup::Backup;
use crate::server::explain::time;
use crate::wire::d2m::DeviceId;

/// How long an answer may take: more than the server gives a group.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// How long a backup may take: as long as it is of use.
const BACKUP_WITHIN: Duration = Duration::from_secs(86_400);
/// Longest answer, in bytes.
const ANSWER_MAX: usize = 16 * 1024 * 1024;

/// `admin`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The server's admin door: `http://HOST:PORT` or `HOST:PORT`
    #[arg(long, global = true, value_name = "URL", env = "HELIOSTAT__ADMIN__LISTEN", default_value = "127.0.0.1:9090",
          value_parser = admin_authority)]
    admin: String,
    /// A file that holds `admin.token`, where one is set
    #[arg(long, global = true, value_name = "FILE", env = "HELIOSTAT_ADMIN_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Print what the server answers, for programs
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List groups that are awake, those in trouble first
    Groups {
        /// List all groups that are kept, those that sleep included
        #[arg(long)]
        all: bool,
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
    },
    /// Show one group: its devices, what waits for them, and its lock
    Group {
        /// Its id, or its hash in today's log
        group: String,
    },
    /// Say why something does not happen: why a device does not lead, why nothing arrives, what holds the lock
    Explain {
        /// Its id, or its hash in today's log
        group: String,
        /// One of its devices
        device: Option<DeviceId>,
    },
    /// Remove a device from its group with all that waits for it, for good
    Drop {
        /// Its group's id, or hash in today's log
        group: String,
        /// Which device
        device: DeviceId,
    },
    /// End a device's connection; it may come back
    Kick {
        /// Its group's id, or hash in today's log
        group: String,
        /// Which device
        device: DeviceId,
    },
    /// Record what a group's devices and the server say, as it happens; the server has to have `admin.capture = true`
    Capture {
        /// Its id, or its hash in today's log
        group: String,
        /// A new file for it, readable by you alone
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// How long: an hour at most; Ctrl-C ends it earlier
        #[arg(long = "for", value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
        lasts: Duration,
    },
    /// Copy everything the server keeps into a new directory on its machine, while it runs
    Backup {
        /// The new directory: a data directory that a server can be started on
        dir: PathBuf,
    },
    /// List the nodes that share a database, this one included
    Nodes,
    /// Stop the server in order, as SIGTERM does
    Drain,
    /// Show what is logged, or change it until the next start
    Log {
        /// A level, or a filter such as `info,heliostat::upstream=debug`
        filter: Option<String>,
    },
}

/// Asks, and prints the answer.
///
/// # Errors
/// When the server cannot be reached, refuses, or does not know what it was asked about.
pub async fn run(args: Args) -> Result<ExitCode> {
    let door = Door::open(&args)?;
    let answer = match &args.command {
        Command::Groups { all, limit } => {
            let all = if *all { "&all" } else { "" };
            door.get(&format!("groups?limit={limit}{all}"), groups).await
        }
        Command::Group { group: name } => door.get(&format!("groups/{}", segment(name)?), group).await,
        Command::Explain { group, device } => {
            let about = device.map(|device| format!("?device={device}")).unwrap_or_default();
            let paragraphs = |it: &Explanation| it.sentences.iter().fold(String::new(), |out, one| out + one + "\n");
            door.get(&format!("groups/{}/explain{about}", segment(group)?), paragraphs).await
        }
        Command::Drop { group, device } => {
            door.post(&format!("groups/{}/devices/{device}/drop", segment(group)?), "", done).await
        }
        Command::Kick { group, device } => {
            door.post(&format!("groups/{}/devices/{device}/kick", segment(group)?), "", done).await
        }
        Command::Capture { group, out, lasts } => door.capture(segment(group)?, out, *lasts).await,
        Command::Backup { dir } => {
            // The server has a working directory of its own.
            let dir = std::path::absolute(dir).into_diagnostic()?;
            let dir = dir.to_str().ok_or_else(|| miette!("{} is not UTF-8", dir.display()))?;
            door.post("backup", dir, backup).await
        }
        Command::Nodes => door.get("nodes", nodes).await,
        Command::Drain => door.post("drain", "", done).await,
        Command::Log { filter: None } => door.get("log", filter).await,
        Command::Log { filter: Some(new) } => door.post("log", new, filter).await,
    }?;
    io::stdout().write_all(answer.as_bytes()).into_diagnostic()?;
    Ok(ExitCode::SUCCESS)
}

/// A name goes into a path as it is, so it has to be one.
fn segment(name: &str) -> Result<&str> {
    let is_one = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_one.then_some(name).ok_or_else(|| miette!("{name:?} names no group: its id, or its hash in today's log"))
}

/// The server's admin door.
struct Door<'a> {
    authority: &'a str,
    token: Option<Zeroizing<String>>,
    json: bool,
    within: Duration,
}

impl<'a> Door<'a> {
    fn open(args: &'a Args) -> Result<Self> {
        let token = match &args.token_file {
            None => None,
            Some(file) => {
                let text = std::fs::read_to_string(file).map(Zeroizing::new);
                let text = text.into_diagnostic().wrap_err_with(|| format!("cannot read {}", file.display()))?;
                Some(Zeroizing::new(text.trim().to_owned()))
            }
        };
        let within = if matches!(args.command, Command::Backup { .. }) { BACKUP_WITHIN } else { ANSWER_WITHIN };
        Ok(Self { authority: &args.admin, token, json: args.json, within })
    }

    async fn get<T: DeserializeOwned>(&self, what: &str, print: impl FnOnce(&T) -> String) -> Result<String> {
        self.ask(Method::GET, what, "", print).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        what: &str,
        body: &str,
        print: impl FnOnce(&T) -> String,
    ) -> Result<String> {
        self.ask(Method::POST, what, body, print).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        what: &str,
        body: &str,
        print: impl FnOnce(&T) -> String,
    ) -> Result<String> {
        let answer = tokio::time::timeout(self.within, self.exchange(method, what, body, text)).await;
        let (status, text) = answer
            .unwrap_or_else(|_elapsed| Err(miette!("no answer within {} s", self.within.as_secs())))
            .wrap_err_with(|| format!("cannot ask http://{}", self.authority))?;
        if !status.is_success() {
            return Err(refused(status, text));
        }
        if self.json {
            return Ok(text + "\n");
        }
        let answer = serde_json::from_str(&text).into_diagnostic();
        answer.map(|answer| print(&answer)).wrap_err("the server speaks otherwise: is it of this version?")
    }

    /// Writes what a group says into a new file, as it comes, and tells what it holds.
    async fn capture(&self, group: &str, out: &Path, lasts: Duration) -> Result<String> {
        let unwritable = || format!("{} cannot be written", out.display());
        if out.exists() {
            return Err(miette!("there is a file {} already", out.display()));
        }
        let write = async |response: Response<Incoming>| {
            if !response.status().is_success() {
                let (status, text) = text(response).await?;
                return Err(refused(status, text));
            }
            let mut file = files::private().create_new(true).open(out).into_diagnostic().wrap_err_with(unwritable)?;
            let mut body = response.into_body();
            while let Some(frame) = body.frame().await {
                // An answer that breaks off leaves what came, which can be read.
                if let Ok(bytes) = frame.into_diagnostic()?.into_data() {
                    file.write_all(&bytes).into_diagnostic().wrap_err_with(unwritable)?;
                }
            }
            Ok(())
        };
        let what = format!("groups/{group}/capture?for={}ms", lasts.as_millis());
        let answer = tokio::time::timeout(lasts + self.within, self.exchange(Method::POST, &what, "", write)).await;
        answer.unwrap_or_else(|_elapsed| Err(miette!("it does not end")))?;
        let read = std::fs::File::open(out).into_diagnostic()?;
        let mut reader = Reader::new(BufReader::new(read)).into_diagnostic()?;
        let mut frames = 0_u64;
        while let Some(entry) = reader.next_entry().into_diagnostic()? {
            frames += u64::from(matches!(entry.event, Event::Frame { .. }));
        }
        Ok(format!("{} holds {frames} frames: {}.\n", out.display(), reader.tail()))
    }

    /// Asks, and hands the answer over.
    async fn exchange<T>(
        &self,
        method: Method,
        what: &str,
        body: &str,
        read: impl AsyncFnOnce(Response<Incoming>) -> Result<T>,
    ) -> Result<T> {
        let stream = TcpStream::connect(self.authority).await.into_diagnostic()?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.into_diagnostic()?;
        let mut request =
            Request::builder().method(method).uri(format!("/api/{what}")).header(header::HOST, self.authority);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.as_str()));
        }
        let request = request.body(Body::from(body.to_owned())).into_diagnostic()?;
        let exchange = async { read(sender.send_request(request).await.into_diagnostic()?).await };
        tokio::pin!(exchange);
        tokio::select! {
            answer = &mut exchange => answer,
            ended = connection => match ended {
                // It may have said everything before, and what it said be waiting to be read.
                Ok(()) => exchange.await,
                Err(error) => Err(miette!("{error}")),
            }
        }
    }
}

/// A short answer.
async fn text(response: Response<Incoming>) -> Result<(StatusCode, String)> {
    let status = response.status();
    let body = axum::body::to_bytes(Body::new(response.into_body()), ANSWER_MAX).await.into_diagnostic()?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

fn refused(status: StatusCode, text: String) -> miette::Report {
    let refusal = serde_json::from_str(&text).map_or(text, |Refusal { error }| error);
    miette!("{} ({status})", refusal.trim())
}

// ---- for people

fn done(Done { done }: &Done) -> String {
    format!("{done}\n")
}

fn backup(Backup { path, files, bytes }: &Backup) -> String {
    format!("{} holds everything: {files} files, {}.\n", path.display(), bytesize::ByteSize(*bytes))
}

fn filter(LogFilter { filter }: &LogFilter) -> String {
    format!("{filter}\n")
}

fn groups(GroupList { groups, awake, asleep }: &GroupList) -> String {
    let row = |line: &GroupLine| {
        let [connected, leader, waiting, state] = line.awake.as_ref().map_or_else(
            || [String::new(), String::new(), String::new(), "asleep".to_owned()],
            |it| {
                let leader = it.leader.map_or_else(|| "-".to_owned(), |leader| leader.to_string());
                [it.connected.to_string(), leader, it.waiting.to_string(), state_of(it)]
            },
        );
        [line.hash.clone(), line.devices.to_string(), connected, leader, waiting, state]
    };
    let head = ["GROUP", "DEVICES", "CONNECTED", "LEADER", "WAITING", "STATE"];
    let mut out = if groups.is_empty() { String::new() } else { table(head, groups.iter().map(row)) };
    let shown = groups.len() as u64;
    let known = if groups.iter().any(|line| line.awake.is_none()) { awake + asleep } else { *awake };
    let more = if known > shown { format!(", {shown} shown") } else { String::new() };
    let _infallible = writeln!(out, "{awake} awake, {asleep} asleep{more}");
    out
}

fn nodes(NodeList { nodes }: &NodeList) -> String {
    if nodes.is_empty() {
        return "this server shares its groups with no other\n".to_owned();
    }
    let row = |NodeLine { name, address, number }: &NodeLine| [name.clone(), address.clone(), number.to_string()];
    table(["NODE", "ADDRESS", "NUMBER"], nodes.iter().map(row))
}

fn state_of(it: &AwakeLine) -> String {
    let parts = [
        it.locked.then(|| "lock held".to_owned()),
        (it.stalled > 0).then(|| format!("sockets that take nothing: {}", it.stalled)),
    ];
    let said: Vec<String> = parts.into_iter().flatten().collect();
    if said.is_empty() { "awake".to_owned() } else { said.join(", ") }
}

fn group(details: &GroupDetails) -> String {
    let GroupDetails { id, hash, device_hashes, inspection } = details;
    let view = &inspection.view;
    let mut out = format!("group    {hash}\nid       {id}\n");
    let lock = view.lock.as_ref().map_or_else(|| "free".to_owned(), lock);
    let _infallible =
        writeln!(out, "devices  {} of at most {}\nlock     {lock}\n", view.devices.len(), view.max_device_slots);
    let row = |(device, hash): (&DeviceView, &String)| {
        let (state, since) = match &device.presence {
            Presence::Away { for_ms, .. } => ("away".to_owned(), *for_ms),
            Presence::Connected(connection) => {
                let leads = if view.leader == Some(device.device) { "leads, " } else { "" };
                let proxied =
                    if inspection.proxied.contains(&connection.connection) { ", at its chat server" } else { "" };
                (format!("{leads}{}{proxied}", doing(device, connection)), connection.for_ms)
            }
        };
        [device.device.to_string(), hash.clone(), device.waiting.to_string(), time(since), state]
    };
    out + &table(["DEVICE", "IN LOG", "WAITING", "FOR", "STATE"], view.devices.iter().zip(device_hashes).map(row))
}

fn doing(device: &DeviceView, connection: &Connection) -> String {
    match connection.delivery {
        Delivery::SocketFull { for_ms } => format!("takes nothing for {}", time(for_ms)),
        Delivery::Reading => "gets its backlog".to_owned(),
        Delivery::CaughtUp if device.waiting > 0 => "has not acknowledged all".to_owned(),
        Delivery::CaughtUp => "has everything".to_owned(),
    }
}

fn lock(LockView { holder, held_ms, remaining_ms, staged, .. }: &LockView) -> String {
    let left = remaining_ms.map_or_else(|| "its time has not begun".to_owned(), |ms| format!("{} left", time(ms)));
    format!("held by {holder} for {}, {left}, {staged} staged", time(*held_ms))
}

/// Columns as wide as they have to be; numbers to the right.
fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let widths: Vec<usize> =
        (0..N).map(|at| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.len()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let number = cell.bytes().all(|byte| byte.is_ascii_digit()) && cell.len() < 12;
            let _infallible = if number { write!(line, "{cell:>width$}  ") } else { write!(line, "{cell:<width$}  ") };
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}
