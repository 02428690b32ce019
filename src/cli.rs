//! The command line: what can be asked of the binary, and how it answers.
//!
//! Each subcommand is one variant and one call. Exit status: 0 when it went well, 1 when it did not, 2 when it was asked the
//! wrong way, 3 when `serve` was ended by a second signal before it had finished. Results go to standard output, logs and complaints to standard error.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use miette::{IntoDiagnostic as _, WrapErr as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::config::{self, ConfigError, Effective, Flag, Security, Sources};
use crate::net::inherited::Inherited;
use crate::net::tls::Certificate;
use crate::server::serve::Process;
use crate::time::Clock;
use crate::{logging, server, tools};

/// How long a health check may take altogether.
const HEALTHCHECK: Duration = Duration::from_secs(5);

/// Lets one chat account live on many devices.
#[derive(Debug, Parser)]
#[command(
    name = "heliostat",
    version,
    about,
    propagate_version = true,
    after_help = "Begin with `heliostat serve`; it says what to do next. HELIOSTAT_LOG=debug logs more."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be asked of the binary.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the mediator and the chat servers the configuration names; without one, a complete development box
    Serve(ServeArgs),
    /// Make, list and revoke identities of the embedded chat server
    Identity(tools::identity::Args),
    /// Be one device of a group, by hand or from a script
    Device(tools::device::Args),
    /// Talk on a ChatOs server, alone or as one of many devices
    Chatos(tools::chatos::Args),
    /// Register, confirm, and talk on a Skynet server, with everything sealed from device to device
    #[command(subcommand)]
    Skynet(tools::skynet::Tool),
    /// Register and talk on a server of end-to-end encrypted direct messages
    #[command(subcommand)]
    Dm(tools::dm::Tool),
    /// Talk in Tox groups, as a member or as a thin user of a hub
    Tox(Box<tools::tox::Args>),
    /// Let many groups of devices reflect over real sockets, and judge what reached whom
    Simulate(tools::simulate::Args),
    /// Measure how fast a running server is, and what it costs
    Bench(Box<tools::bench::Args>),
    /// Judge a mediator or a client, clause by clause
    #[command(subcommand)]
    Conform(tools::conform::Command),
    /// Make a server close a client with a close code of your choice
    Provoke(Box<tools::provoke::Args>),
    /// Name every field of a frame, a URL, a close code or a capture
    Decode(tools::decode::Args),
    /// Drive the device side of a capture against a mediator, and say where it answers otherwise
    Replay(tools::replay::Args),
    /// Turn a capture into a picture: a trace for Perfetto
    Trace(tools::trace::Args),
    /// Check, show or explain the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Prepare nodes that share a database: certificates by which they know each other
    #[command(subcommand)]
    Cluster(tools::cluster::Tool),
    /// Operate a server that runs: list, inspect and explain groups, drop and kick devices, record a group, drain, change what is logged
    Admin(tools::admin::Args),
    /// Copy what a mediator keeps from one store to another, as from SQLite to PostgreSQL
    #[command(subcommand)]
    Store(tools::store::Tool),
    /// Spread device groups over the nodes of a cluster by the path of their URLs
    #[command(subcommand)]
    Shard(tools::shard::Tool),
    /// Print the manual page, or write those of all commands
    Man(ManArgs),
    /// Print completions for a shell
    Completions {
        /// Which one
        shell: clap_complete::Shell,
    },
    /// Ask a running server whether it is alive; the answer is the exit status
    Healthcheck(HealthcheckArgs),
}

/// `serve`
#[derive(Debug, Clone, Default, Args)]
pub struct ServeArgs {
    /// Configuration file. Without one, a complete development box is started.
    #[arg(long, value_name = "FILE", env = "HELIOSTAT_CONFIG")]
    pub config: Option<PathBuf>,
    /// Any key of the configuration, as in `limits.idle_timeout=90 s`; may be given again.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_and_value)]
    pub set: Vec<(String, String)>,
    /// Where everything is kept [default: heliostat-data]
    #[arg(long, value_name = "DIR")]
    pub data: Option<String>,
    /// Where devices connect [default: 127.0.0.1:8443]
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub listen: Option<SocketAddr>,
    /// Where devices connect, on 127.0.0.1. 0 takes a port that is free, for the chat server and the operator too
    #[arg(long, value_name = "PORT", conflicts_with = "listen")]
    pub port: Option<u16>,
    /// Print the port where devices connect, in digits on a line of its own, and nothing else, to standard output
    #[arg(long)]
    pub print_port: bool,
    /// End when the process that started this one does, or closes the pipe that is our standard input
    #[arg(long)]
    pub exit_with_parent: bool,
    /// WebSocket without TLS, on a loopback address only.
    #[arg(long)]
    pub plain: bool,
    /// Run the embedded CSP chat server there [default: 127.0.0.1:5222 in a development box, else none]
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub csp_listen: Option<SocketAddr>,
    /// Run the embedded ChatOs server there [default: none]
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub chatos_listen: Option<SocketAddr>,
    /// Run the embedded Skynet server there [default: none]
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub skynet_listen: Option<SocketAddr>,
    /// Run the embedded DM server there [default: none]
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub dm_listen: Option<SocketAddr>,
    /// Run the embedded Tox group hub there, for UDP and TCP [default: none]
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub toxgroup_listen: Option<SocketAddr>,
    /// Where the operator connects: a loopback address, unless `admin.token` is set [default: 127.0.0.1:9090]
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub admin_listen: Option<SocketAddr>,
    /// Keep device groups and their messages in memory only: they are lost when the server ends.
    #[arg(long)]
    pub memory: bool,
}

/// Why the file, the environment and the flags together make no configuration.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum BadServeArgs {
    /// Something in one of them is wrong.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Config(#[from] ConfigError),
    /// Unencrypted and open to others.
    #[error("--plain serves unencrypted and is for loopback addresses, {0} is not one")]
    #[diagnostic(help("behind a proxy that does TLS, set `plain = true` in section [listen] of a configuration file"))]
    PlainInPublic(SocketAddr),
}

impl BadServeArgs {
    /// Each sentence to be said about it.
    #[must_use]
    pub fn sentences(&self) -> Vec<String> {
        match self {
            Self::Config(error) => error.sentences(),
            Self::PlainInPublic(_) => vec![self.to_string()],
        }
    }
}

impl ServeArgs {
    /// The configuration file, or the development box, with the environment and the flags laid over it.
    ///
    /// # Errors
    /// [`BadServeArgs`] says what is wrong and where.
    pub fn config(
        &self,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Effective, BadServeArgs> {
        let effective = Sources::gather(self.config.as_deref(), environment, self.flags())?.read()?;
        let listen = effective.config.listen.address;
        if self.plain && !listen.ip().is_loopback() {
            return Err(BadServeArgs::PlainInPublic(listen));
        }
        Ok(effective)
    }

    /// The keys that were set, the weakest first: a flag of its own says more than `--set`.
    fn flags(&self) -> Vec<Flag> {
        let any = self.set.iter().map(|(key, value)| (format!("--set {key}"), key.as_str(), Some(value.clone())));
        let address = |address: Option<SocketAddr>| address.map(|address| address.to_string());
        let word = |given: bool, word: &str| given.then(|| word.to_owned());
        let local = self.port.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        // Whoever asks for any port runs several at a time; what else is said is stronger.
        let any_port = local.filter(|address| address.port() == 0);
        let any_skynet = self.skynet_listen.filter(|address| address.port() == 0);
        let any_toxgroup = self.toxgroup_listen.filter(|address| address.port() == 0);
        let any_thin = any_toxgroup.map(|_| SocketAddr::from(([127, 0, 0, 1], 0)));
        let meant = [
            ("--port", "chat.csp.listen", address(any_port)),
            ("--port", "admin.listen", address(any_port)),
            ("--skynet-listen", "chat.skynet.web_listen", address(any_skynet)),
            ("--toxgroup-listen", "chat.toxgroup.web_listen", address(any_toxgroup)),
            ("--toxgroup-listen", "chat.toxgroup.thin_listen", address(any_thin)),
        ];
        let meant = meant.map(|(name, key, value)| (name.to_owned(), key, value));
        let own = [
            ("--data", "data_dir", self.data.clone()),
            ("--port", "listen.address", address(local)),
            ("--listen", "listen.address", address(self.listen)),
            ("--plain", "listen.plain", word(self.plain, "true")),
            ("--csp-listen", "chat.csp.enabled", word(self.csp_listen.is_some(), "true")),
            ("--csp-listen", "chat.csp.listen", address(self.csp_listen)),
            ("--chatos-listen", "chat.chatos.enabled", word(self.chatos_listen.is_some(), "true")),
            ("--chatos-listen", "chat.chatos.listen", address(self.chatos_listen)),
            ("--skynet-listen", "chat.skynet.enabled", word(self.skynet_listen.is_some(), "true")),
            ("--skynet-listen", "chat.skynet.listen", address(self.skynet_listen)),
            ("--dm-listen", "chat.dm.enabled", word(self.dm_listen.is_some(), "true")),
            ("--dm-listen", "chat.dm.listen", address(self.dm_listen)),
            ("--toxgroup-listen", "chat.toxgroup.enabled", word(self.toxgroup_listen.is_some(), "true")),
            ("--toxgroup-listen", "chat.toxgroup.listen", address(self.toxgroup_listen)),
            ("--admin-listen", "admin.listen", address(self.admin_listen)),
            ("--memory", "durability", word(self.memory, "memory")),
        ];
        meant
            .into_iter()
            .chain(any)
            .chain(own.map(|(name, key, value)| (name.to_owned(), key, value)))
            .filter_map(|(name, key, value)| Some(Flag { name, key: key.to_owned(), value: value? }))
            .collect()
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "an address is an IP address and a port, as in 127.0.0.1:8443 or [::]:443".to_owned())
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected a key, `=` and its value")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

/// `config`; what `serve` would make of the same flags.
#[derive(Debug, Clone, Subcommand)]
pub enum ConfigCommand {
    /// Say everything that is wrong; the exit status is 1 then
    Check(ServeArgs),
    /// Print what holds, as a file, and where each value comes from
    Show(ServeArgs),
    /// Print the reference of all keys, in Markdown
    Doc,
}

impl ConfigCommand {
    fn run(&self) -> miette::Result<()> {
        let text = match self {
            Self::Check(args) => {
                let effective = args.config(std::env::vars_os())?;
                check_files(&effective.config.listen.security())?;
                let file = effective.file.as_deref().unwrap_or("no file, so the development box");
                format!("The configuration is in order: {file}.\n")
            }
            Self::Show(args) => args.config(std::env::vars_os())?.show(),
            Self::Doc => config::reference(),
        };
        io::stdout().write_all(text.as_bytes()).into_diagnostic()
    }
}

/// Reads the files of TLS as `serve` would.
fn check_files(security: &Security) -> miette::Result<()> {
    match security {
        Security::Files(files) => {
            let certificate = Certificate::load(files).into_diagnostic()?;
            let out_of_date = certificate.identity().out_of_date(Clock::system().now().wall_ms);
            out_of_date.map_or(Ok(()), |why| Err(miette::miette!("{}: {why}", files.cert.display())))
        }
        Security::Acme(settings) => settings.check().into_diagnostic(),
        Security::Plain | Security::Development => Ok(()),
    }
}

/// `man`
#[derive(Debug, Clone, Args)]
pub struct ManArgs {
    /// Write `heliostat.1` and a page for each command into this directory instead.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// Where what is made from the command line's own description goes. It is made by the binary, so it fits the binary.
fn man(args: &ManArgs) -> io::Result<()> {
    match &args.dir {
        None => clap_mangen::Man::new(Cli::command()).render(&mut io::stdout().lock()),
        Some(dir) => {
            std::fs::create_dir_all(dir)?;
            clap_mangen::generate_to(Cli::command(), dir)
        }
    }
}

fn completions(shell: clap_complete::Shell) -> io::Result<()> {
    // Made in memory, because the generator takes a reader that stops reading for a panic.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "heliostat", &mut script);
    io::stdout().write_all(&script)
}

/// `healthcheck`
#[derive(Debug, Clone, Args)]
pub struct HealthcheckArgs {
    /// The server's admin door: `http://HOST:PORT` or `HOST:PORT`. Where its address is set by the environment, it is found there.
    #[arg(long, value_name = "URL", env = "HELIOSTAT__ADMIN__LISTEN", default_value = "127.0.0.1:9090",
          value_parser = admin_authority)]
    pub admin: String,
    /// Ask whether it takes devices, too: fails while it drains.
    #[arg(long)]
    pub ready: bool,
}

/// Host and port of the admin door, which is plain HTTP.
pub(crate) fn admin_authority(text: &str) -> Result<String, String> {
    let authority = text.strip_prefix("http://").unwrap_or(text);
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let is_one = authority.parse::<http::uri::Authority>().is_ok_and(|it| it.port_u16().is_some());
    if is_one { Ok(authority.to_owned()) } else { Err("not http://HOST:PORT".to_owned()) }
}

/// Does what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // Before there are threads: it changes the environment.
    let done = Inherited::take().into_diagnostic().and_then(|inherited| done(cli.command, inherited));
    done.unwrap_or_else(|report| {
        eprintln!("{report:?}");
        ExitCode::FAILURE
    })
}

fn done(command: Command, inherited: Inherited) -> miette::Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new().into_diagnostic().wrap_err("cannot start the runtime")?;
    let inside = runtime.enter();
    let logging = logging::start()?;
    drop(inside);
    let code = runtime.block_on(run(command, inherited));
    // While there is a runtime to send the last traces.
    logging.finish();
    code
}

async fn run(command: Command, inherited: Inherited) -> miette::Result<ExitCode> {
    match command {
        Command::Serve(args) => {
            let config = args.config(std::env::vars_os())?.config;
            let ServeArgs { print_port, exit_with_parent, .. } = args;
            let reread = move || match args.config(std::env::vars_os()) {
                Ok(effective) => Ok(effective.config),
                Err(bad) => Err(bad.sentences()),
            };
            server::serve::run(config, Process { reread: Box::new(reread), inherited, print_port, exit_with_parent })
                .await
        }
        Command::Identity(args) => tools::identity::run(args).await,
        Command::Device(args) => tools::device::run(args).await,
        Command::Chatos(args) => tools::chatos::run(args).await,
        Command::Skynet(tool) => tools::skynet::run(tool).await,
        Command::Dm(tool) => tools::dm::run(tool).await,
        Command::Tox(args) => tools::tox::run(*args).await,
        Command::Simulate(args) => tools::simulate::run(args).await,
        Command::Bench(args) => tools::bench::run(*args).await,
        Command::Conform(command) => tools::conform::run(command).await,
        Command::Provoke(args) => tools::provoke::run(*args).await,
        Command::Decode(args) => tools::decode::run(args).await,
        Command::Replay(args) => tools::replay::run(args).await,
        Command::Trace(args) => tools::trace::run(args).await,
        Command::Cluster(tool) => tools::cluster::run(tool).await,
        Command::Admin(args) => tools::admin::run(args).await,
        Command::Store(tool) => tools::store::run(tool).await,
        Command::Shard(tool) => tools::shard::run(tool).await,
        Command::Config(command) => command.run().map(|()| ExitCode::SUCCESS),
        Command::Man(args) => man(&args).into_diagnostic().map(|()| ExitCode::SUCCESS),
        Command::Completions { shell } => completions(shell).into_diagnostic().map(|()| ExitCode::SUCCESS),
        Command::Healthcheck(args) => healthcheck(&args).await.map(|()| ExitCode::SUCCESS),
    }
}

/// Asks a server how it is, and says why when it is not well.
async fn healthcheck(args: &HealthcheckArgs) -> miette::Result<()> {
    let path = if args.ready { "/readyz" } else { "/livez" };
    let asked = tokio::time::timeout(HEALTHCHECK, get(&args.admin, path)).await;
    let (status, body) = asked
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .into_diagnostic()
        .wrap_err_with(|| format!("no answer from {}", args.admin))?;
    if status.split(' ').next() == Some("200") {
        return Ok(());
    }
    Err(miette::miette!("{} answers {status} {}", args.admin, body.trim()))
}

/// Status with reason, and body.
async fn get(authority: &str, path: &str) -> io::Result<(String, String)> {
    /// More than any answer of these pages, in bytes.
    const ANSWER: u64 = 64 * 1_024;
    let mut stream = TcpStream::connect(authority).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().and_then(|line| line.strip_prefix("HTTP/1.1 "));
    status.map(|status| (status.to_owned(), body.to_owned())).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::Config;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        ServeArgs::augment_args(clap::Command::new("serve")).debug_assert();
    }

    fn serve(args: &[&str]) -> Result<ServeArgs, clap::Error> {
        use clap::FromArgMatches as _;
        let command = ServeArgs::augment_args(clap::Command::new("serve"));
        ServeArgs::from_arg_matches(&command.try_get_matches_from([&["serve"], args].concat())?)
    }

    fn configured(args: &[&str], environment: &[(&str, &str)]) -> Result<Effective, BadServeArgs> {
        let environment = environment.iter().map(|&(name, value)| (name.into(), value.into()));
        serve(args).unwrap().config(environment)
    }

    #[test]
    fn without_flags_it_is_the_development_box() {
        assert_eq!(configured(&[], &[("HOME", "/root")]).unwrap().config, Config::development());
    }

    #[test]
    fn the_environment_lies_over_the_file_and_flags_over_both() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("heliostat.toml");
        std::fs::write(&file, "data_dir = \"kept\"\n[listen]\naddress = \"0.0.0.0:443\"\n").unwrap();
        let file = file.to_str().unwrap();
        let environment = [
            ("HELIOSTAT__LISTEN__ADDRESS", "0.0.0.0:444"),
            ("HELIOSTAT__LIMITS__IDLE_TIMEOUT", "5 min"),
            ("HELIOSTAT__LIMITS__PING_INTERVAL", "1 min"),
        ];
        let own = ["--listen", "127.0.0.1:1", "--csp-listen", "127.0.0.1:2", "--plain"];
        let set = ["--set", "limits.ping_interval = 7 s", "--set", "chat.csp.listen=127.0.0.1:3"];
        let args = [&["--config", file], &own[..], &set[..]].concat();
        let config = configured(&args, &environment).unwrap().config;
        assert_eq!(config.data_dir, PathBuf::from("kept"));
        assert_eq!(config.listen.address.to_string(), "127.0.0.1:1");
        assert_eq!(config.listen.security(), config::Security::Plain);
        assert_eq!((config.chat.csp.enabled, config.chat.csp.listen.port()), (true, 2));
        let limits = config.limits;
        assert_eq!((limits.idle_timeout, limits.ping_interval), (Duration::from_secs(300), Duration::from_secs(7)));
    }

    #[test]
    fn a_port_that_is_free_is_taken_by_every_door_that_is_given_none() {
        let config = configured(&["--port", "0", "--set", "admin.listen=127.0.0.1:7"], &[]).unwrap().config;
        assert_eq!(config.listen.address, ([127, 0, 0, 1], 0).into());
        assert_eq!((config.chat.csp.listen.port(), config.admin.listen.port()), (0, 7));
        let config = configured(&["--port", "8080"], &[]).unwrap().config;
        assert_eq!((config.listen.address.port(), config.admin.listen.port()), (8080, 9090));
        assert!(serve(&["--port", "0", "--listen", "127.0.0.1:1"]).is_err(), "one of them");
    }

    #[test]
    fn every_flag_sets_a_key_that_exists() {
        let rooms = ["--csp-listen", "--chatos-listen", "--skynet-listen", "--dm-listen", "--toxgroup-listen"];
        let addresses = ["--listen", "--admin-listen"]
            .into_iter()
            .chain(rooms)
            .flat_map(|flag| [flag, "127.0.0.1:7"])
            .collect::<Vec<_>>();
        let args = [&["--data", "d", "--plain", "--memory"], &addresses[..]].concat();
        let effective = configured(&args, &[]).unwrap();
        for flag in serve(&args).unwrap().flags() {
            assert_eq!(*effective.origin(&flag.key), config::Origin::Flag(flag.name));
        }
        assert_eq!(effective.config.durability, config::Durability::Memory);
    }

    #[test]
    fn the_help_tells_the_defaults_that_are_used() {
        let config = Config::development();
        let help = ServeArgs::augment_args(clap::Command::new("serve")).render_help().to_string();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        let addresses = [config.listen.address, config.chat.csp.listen, config.admin.listen];
        let defaults = addresses.map(|address| address.to_string());
        for default in defaults.into_iter().chain([config.data_dir.display().to_string()]) {
            assert!(help.contains(&format!("[default: {default}")), "{default}: {help}");
        }
    }

    #[test]
    fn an_address_that_is_none_is_answered_with_one_that_is() {
        for wrong in ["8443", "localhost:8443", ":8443"] {
            let error = serve(&["--listen", wrong]).unwrap_err().to_string();
            assert!(error.contains("as in 127.0.0.1:8443"), "{error}");
        }
    }

    #[test]
    fn what_would_be_open_to_others_is_refused() {
        let error = configured(&["--plain", "--listen", "0.0.0.0:80"], &[]).unwrap_err();
        assert!(matches!(error, BadServeArgs::PlainInPublic(_)), "{error}");
        let error = configured(&["--admin-listen", "0.0.0.0:9090"], &[]).unwrap_err().to_string();
        assert!(error.contains("--admin-listen: ") && error.contains("has to be on a loopback address"), "{error}");
    }

    /// Answers one connection.
    async fn answering(answer: &'static str) -> HealthcheckArgs {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1_024];
            let n = stream.read(&mut request).await.unwrap();
            assert!(request[..n].starts_with(b"GET /livez HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        at(admin)
    }

    fn at(admin: SocketAddr) -> HealthcheckArgs {
        HealthcheckArgs { admin: admin.to_string(), ready: false }
    }

    #[test]
    fn the_admin_door_is_named_by_a_url_or_an_address() {
        for text in ["http://localhost:9090/", "http://localhost:9090", "localhost:9090"] {
            assert_eq!(admin_authority(text).unwrap(), "localhost:9090");
        }
        assert_eq!(admin_authority("[::1]:9090").unwrap(), "[::1]:9090");
        for text in ["https://localhost:9090", "localhost", "http://localhost:9090/livez", ""] {
            admin_authority(text).unwrap_err();
        }
    }

    #[tokio::test]
    async fn only_a_server_that_answers_200_is_healthy() {
        let healthy = answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        healthcheck(&healthy).await.unwrap();
        for (answer, expected) in [
            (
                "HTTP/1.1 503 Service Unavailable\r\n\r\nthe store's writer is gone\n",
                "503 Service Unavailable the store's writer is gone",
            ),
            ("HTTP/1.1 2000 No\r\n\r\n", "2000 No"),
            ("", "no answer"),
            ("SSH-2.0", "no answer"),
        ] {
            let error = healthcheck(&answering(answer).await).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_not_healthy() {
        let admin = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        healthcheck(&at(admin)).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_hangs_is_given_up_after_five_seconds() {
        let clock = crate::time::Clock::following(0);
        // Accepts into the backlog and never answers.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = listener.local_addr().unwrap();
        healthcheck(&at(admin)).await.unwrap_err();
        assert_eq!(clock.now().monotonic, HEALTHCHECK);
    }
}
