//! The real binary as a server without TLS, for tests that take it away or take its disk away.
#![allow(dead_code, unreachable_pub, missing_docs, missing_debug_implementations, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use heliostat::client::{Mediator, Trust};

/// The program under test: the one that was built with it, or another build of the same, for measuring.
pub fn program() -> String {
    std::env::var("HELIOSTAT_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_heliostat").to_owned())
}

/// `before` is a program that ends by running what stands behind it.
fn command(data: &Path, before: &[&str], more: &str) -> Command {
    let config = data.with_extension("toml");
    let text = format!("data_dir = {data:?}\nlisten = {{ address = '127.0.0.1:0', plain = true }}\n");
    std::fs::write(&config, text + "admin.listen = '127.0.0.1:0'\n" + more).unwrap();
    let program = program();
    let mut words = before.iter().copied().chain([program.as_str(), "serve"]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).arg("--config").arg(config).env("HELIOSTAT_LOG", "error").stdin(Stdio::null());
    command
}

/// A server that listens. Killed when it is dropped.
pub struct Binary {
    child: Child,
    url: String,
    admin: String,
    links: Option<String>,
}

impl Binary {
    /// Starts it on `data`, which needs a neighbour of its own for the configuration.
    pub fn start(data: &Path) -> Self {
        Self::start_under(data, &[])
    }

    /// The same, started by another program that makes its world a worse one.
    pub fn start_under(data: &Path, before: &[&str]) -> Self {
        Self::run(command(data, before, ""))
    }

    /// The same, with more lines in its configuration.
    pub fn start_with(data: &Path, more: &str) -> Self {
        Self::run(command(data, &[], more))
    }

    fn run(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut links = None;
        let mut find = |scheme: &str| {
            said.by_ref().find_map(|line| {
                links = links.take().or_else(|| Some(line.split_once("links on ")?.1.trim_end_matches(')').to_owned()));
                Some(line.split_whitespace().find(|word| word.starts_with(scheme))?.to_owned())
            })
        };
        let (Some(url), Some(admin)) = (find("ws://"), find("http://")) else {
            panic!("the server ended: {}", child.wait().unwrap())
        };
        // Whatever it prints later must find a reader.
        std::thread::spawn(move || said.count());
        Self { child, url, admin, links }
    }

    /// Starts it where it cannot, and returns what it said.
    pub fn refuses(data: &Path) -> Output {
        let output = command(data, &[], "").output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        output
    }

    /// Starts it and kills it at once, wherever it is then.
    pub fn nips(data: &Path) {
        let mut child = command(data, &[], "").stdout(Stdio::null()).spawn().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn mediator(&self) -> Mediator {
        Mediator::new(&self.url, &Trust::System).unwrap()
    }

    /// The admin door, as `http://HOST:PORT/`.
    pub fn admin(&self) -> &str {
        &self.admin
    }

    /// Where other nodes reach it, if it has others.
    pub fn links(&self) -> Option<&str> {
        self.links.as_deref()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> ExitStatus {
        self.child.kill().unwrap();
        self.child.wait().unwrap()
    }

    /// SIGTERM, and waits for the end; devices in this process can take part in it.
    pub async fn stop(&mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", "TERM", &pid]).status().unwrap().success());
        self.ended().await
    }

    /// Waits until it ended by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Binary {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}
