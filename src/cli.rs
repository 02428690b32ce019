//! The command line: what can be asked of the binary, and how it answers.
//!
//! Each subcommand is one variant and one call. Exit status: 0 when it went well, 1 when it did not, 2 when it was asked the
//! wrong way. Results go to standard output, logs and complaints to standard error.

use std::io::{self, IsTerminal as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use miette::{IntoDiagnostic as _, WrapErr as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config::{self, Config, ConfigError, Durability};
use crate::{server, tools};

/// Names what is logged, as in `info,heliostat::upstream=debug`.
const LOG_FILTER: &str = "HELIOSTAT_LOG";

/// How long a health check may take altogether.
const HEALTHCHECK: Duration = Duration::from_secs(5);

/// Lets one chat account live on many devices.
#[derive(Debug, Parser)]
#[command(name = "heliostat", version, about, propagate_version = true)]
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
    /// Let many groups of devices reflect over real sockets, and judge what reached whom
    Simulate(tools::simulate::Args),
    /// Name every field of a frame, a URL or a close code
    Decode(tools::decode::Args),
    /// Ask a running server whether it is alive; the answer is the exit status.
    Healthcheck(HealthcheckArgs),
}

/// `serve`
#[derive(Debug, Clone, Default, Args)]
pub struct ServeArgs {
    /// Configuration file. Without one, a complete development box is started.
    #[arg(long, value_name = "FILE", env = "HELIOSTAT_CONFIG")]
    pub config: Option<PathBuf>,
    /// Where everything is kept.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Where devices connect.
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// WebSocket without TLS, on a loopback address only.
    #[arg(long)]
    pub plain: bool,
    /// Run the embedded CSP chat server there.
    #[arg(long, value_name = "ADDR")]
    pub csp_listen: Option<SocketAddr>,
    /// Where the operator connects: a loopback address.
    #[arg(long, value_name = "ADDR", value_parser = admin_address)]
    pub admin_listen: Option<SocketAddr>,
    /// Keep nothing: everything is lost when the server ends.
    #[arg(long)]
    pub memory: bool,
}

/// Why the flags and the file together make no configuration.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum BadServeArgs {
    /// The file alone is wrong.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Config(#[from] ConfigError),
    /// Unencrypted and open to others.
    #[error("--plain serves unencrypted and is for loopback addresses, {0} is not one")]
    #[diagnostic(help("behind a proxy that does TLS, set `plain = true` in section [listen] of a configuration file"))]
    PlainInPublic(SocketAddr),
}

impl ServeArgs {
    /// The configuration file, or the development box, with the flags laid over it.
    ///
    /// # Errors
    /// [`BadServeArgs`] says what is wrong and where.
    pub fn config(&self) -> Result<Config, BadServeArgs> {
        let mut config = self.config.as_deref().map_or_else(|| Ok(Config::development()), Config::load)?;
        if let Some(data) = &self.data {
            config.data_dir.clone_from(data);
        }
        if let Some(listen) = self.listen {
            config.listen.address = listen;
        }
        if self.plain {
            if !config.listen.address.ip().is_loopback() {
                return Err(BadServeArgs::PlainInPublic(config.listen.address));
            }
            config.listen.plain = true;
        }
        if let Some(listen) = self.csp_listen {
            config.chat.csp.enabled = true;
            config.chat.csp.listen = listen;
        }
        if let Some(listen) = self.admin_listen {
            config.admin.listen = listen;
        }
        if self.memory {
            config.durability = Durability::Memory;
        }
        Ok(config)
    }
}

fn admin_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|error| format!("{error}")).and_then(config::loopback_only)
}

/// `healthcheck`
#[derive(Debug, Clone, Args)]
pub struct HealthcheckArgs {
    /// The server's admin address.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9090")]
    pub admin: SocketAddr,
}

/// Does what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = init_log().and_then(|()| {
        let runtime = tokio::runtime::Runtime::new().into_diagnostic().wrap_err("cannot start the runtime")?;
        runtime.block_on(run(cli.command))
    });
    done.unwrap_or_else(|report| {
        eprintln!("{report:?}");
        ExitCode::FAILURE
    })
}

async fn run(command: Command) -> miette::Result<ExitCode> {
    match command {
        Command::Serve(args) => server::serve::run(args.config()?).await,
        Command::Identity(args) => tools::identity::run(args).await,
        Command::Device(args) => tools::device::run(args).await,
        Command::Simulate(args) => tools::simulate::run(args).await,
        Command::Decode(args) => tools::decode::run(args).await,
        Command::Healthcheck(args) => healthcheck(&args).await.map(|()| ExitCode::SUCCESS),
    }
}

/// People read on a terminal, everything else is read by programs.
fn init_log() -> miette::Result<()> {
    let filter = EnvFilter::builder()
        .with_env_var(LOG_FILTER)
        .with_default_directive(LevelFilter::INFO.into())
        .from_env()
        .into_diagnostic()
        .wrap_err_with(|| format!("{LOG_FILTER} cannot be understood"))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    if io::stderr().is_terminal() {
        log.init()
    } else {
        log.json().init()
    }
    Ok(())
}

/// Asks a server whether it is alive.
async fn healthcheck(args: &HealthcheckArgs) -> miette::Result<()> {
    let asked = tokio::time::timeout(HEALTHCHECK, livez(args.admin)).await;
    let status = asked
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .into_diagnostic()
        .wrap_err_with(|| format!("no answer from {}", args.admin))?;
    if status.starts_with("200") { Ok(()) } else { Err(miette::miette!("{} answers {status}", args.admin)) }
}

/// The status and reason with which `/livez` is answered.
async fn livez(admin: SocketAddr) -> io::Result<String> {
    /// More than any status line this server writes, in bytes.
    const STATUS_LINE: u64 = 256;
    let mut stream = TcpStream::connect(admin).await?;
    let request = format!("GET /livez HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(STATUS_LINE).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.lines().next().and_then(|line| line.strip_prefix("HTTP/1.1 "));
    status.map(str::to_owned).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use tokio::net::TcpListener;

    use super::*;

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

    #[test]
    fn without_flags_it_is_the_development_box() {
        assert_eq!(serve(&[]).unwrap().config().unwrap(), Config::development());
    }

    #[test]
    fn flags_lie_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("heliostat.toml");
        std::fs::write(&file, "data_dir = \"kept\"\n[listen]\naddress = \"0.0.0.0:443\"\n").unwrap();
        let file = file.to_str().unwrap();
        let config = serve(&["--config", file, "--listen", "127.0.0.1:1", "--csp-listen", "127.0.0.1:2", "--plain"])
            .unwrap()
            .config()
            .unwrap();
        assert_eq!(config.data_dir, PathBuf::from("kept"));
        assert_eq!(config.listen.address.to_string(), "127.0.0.1:1");
        assert_eq!(config.listen.security(), config::Security::Plain);
        assert_eq!((config.chat.csp.enabled, config.chat.csp.listen.port()), (true, 2));
    }

    #[test]
    fn what_would_be_open_to_others_is_refused() {
        let error = serve(&["--plain", "--listen", "0.0.0.0:80"]).unwrap().config().unwrap_err();
        assert!(matches!(error, BadServeArgs::PlainInPublic(_)), "{error}");
        let error = serve(&["--admin-listen", "0.0.0.0:9090"]).unwrap_err().to_string();
        assert!(error.contains("has to be on a loopback address"), "{error}");
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
        HealthcheckArgs { admin }
    }

    #[tokio::test]
    async fn only_a_server_that_answers_200_is_healthy() {
        let healthy = answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        healthcheck(&healthy).await.unwrap();
        for (answer, expected) in [
            ("HTTP/1.1 503 Service Unavailable\r\n\r\n", "503 Service Unavailable"),
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
        healthcheck(&HealthcheckArgs { admin }).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_hangs_is_given_up_after_five_seconds() {
        let clock = crate::time::Clock::following(0);
        // Accepts into the backlog and never answers.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = listener.local_addr().unwrap();
        healthcheck(&HealthcheckArgs { admin }).await.unwrap_err();
        assert_eq!(clock.now().monotonic, HEALTHCHECK);
    }
}
