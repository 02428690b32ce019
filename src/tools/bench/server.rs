//! The server that is measured: this executable in a process of its own, so that its time and its memory are its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::client::{Mediator, Trust};
use crate::crypto::random;
use crate::files;
use crate::group::limits::DEVICE_SLOTS_MAX;

/// How long a server may take to begin, and to end: long, because a start is what is measured.
const START_PATIENCE: Duration = Duration::from_secs(300);
const STOP_PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked, every 10 ms, whether a killed server is gone.
const KILL_LOOKS: u32 = 500;
/// What the kernel counts a process's time in, per second: the same on every Linux.
const USER_HZ: u64 = 100;

/// How devices reach the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    Plain,
    Tls,
}

/// A directory of our own, removed with everything in it when this is dropped.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new(parent: &Path) -> Result<Self> {
        let path = parent.join(format!("heliostat-bench-{:016x}", random::u64()));
        let made = files::make_private_dir(&path).into_diagnostic();
        made.wrap_err_with(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It is in a directory for temporary files: who clears that up finds it.
        std::fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}

/// A server that runs. Killed when it is dropped, and gone by then: its directory can be removed.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    pid: u32,
    door: Door,
    data: PathBuf,
    url: String,
    admin: SocketAddr,
}

impl Server {
    /// Starts one with its data in `dir`; devices' chat server is at `chat`, if they have one. Returns when it says that it
    /// is ready.
    pub(super) async fn start(dir: &Path, door: Door, chat: Option<SocketAddr>) -> Result<Self> {
        let (data, config) = (dir.join("data"), dir.join("heliostat.toml"));
        let plain = door == Door::Plain;
        let mut text = format!(
            "data_dir = {}\ndurability = \"fsync\"\nadmin.listen = \"127.0.0.1:0\"\n\
             listen = {{ address = \"127.0.0.1:0\", plain = {plain} }}\nlimits.max_device_slots = {}\n",
            toml::Value::from(data.to_string_lossy().into_owned()),
            DEVICE_SLOTS_MAX,
        );
        if let Some(chat) = chat {
            text += &format!("server_groups.default = {{ addresses = [\"{chat}\"] }}\n");
        }
        std::fs::write(&config, text).into_diagnostic()?;
        let executable = std::env::current_exe().into_diagnostic().wrap_err("where is this program?")?;
        let mut child = Command::new(executable)
            .arg("serve")
            .arg("--config")
            .arg(&config)
            // However this process ends.
            .arg("--exit-with-parent")
            .env("HELIOSTAT_LOG", "error")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .into_diagnostic()
            .wrap_err("cannot start a server")?;
        let pid = child.id().ok_or_else(|| miette!("the server ended at once"))?;
        let out = child.stdout.take().ok_or_else(|| miette!("the server says nothing"))?;
        let mut said = BufReader::new(out).lines();
        let listens = async {
            let (mut public, mut admin) = (None, None);
            while public.is_none() || admin.is_none() {
                let line = said.next_line().await.into_diagnostic()?;
                let line = line.ok_or_else(|| miette!("the server ended before it was ready"))?;
                let address = |line: &str| {
                    line.split([' ', '/', '(', ')']).filter_map(|word| word.parse::<SocketAddr>().ok()).next_back()
                };
                if line.trim_start().starts_with("devices") {
                    public = address(&line);
                } else if line.trim_start().starts_with("admin") {
                    admin = address(&line);
                }
            }
            public.zip(admin).ok_or_else(|| miette!("the server does not say where it listens"))
        };
        let patience = tokio::time::timeout(START_PATIENCE, listens).await;
        let (public, admin) = patience.map_err(|_| miette!("the server does not start"))??;
        // Whatever it prints later must find a reader.
        tokio::spawn(async move { while let Ok(Some(_)) = said.next_line().await {} });
        let scheme = if plain { "ws" } else { "wss" };
        Ok(Self { child, pid, door, data, url: format!("{scheme}://{public}"), admin })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn trust(&self) -> Result<Trust> {
        Ok(match self.door {
            Door::Plain => Trust::System,
            Door::Tls => Trust::CaPem(std::fs::read(self.data.join("tls").join("dev-ca.pem")).into_diagnostic()?),
        })
    }

    pub(super) fn mediator(&self) -> Result<Mediator> {
        Mediator::new(&self.url, &self.trust()?).into_diagnostic()
    }

    pub(super) const fn usage(&self) -> Usage {
        Usage { pid: self.pid }
    }

    /// Returns when the server says that it takes devices.
    pub(super) async fn wait_ready(&self) -> Result<()> {
        let ready = async {
            loop {
                let mut tcp = TcpStream::connect(self.admin).await.into_diagnostic()?;
                let request = format!("GET /readyz HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin);
                tcp.write_all(request.as_bytes()).await.into_diagnostic()?;
                let mut answer = Vec::new();
                tcp.take(4_096).read_to_end(&mut answer).await.into_diagnostic()?;
                if answer.starts_with(b"HTTP/1.1 200") {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(START_PATIENCE, ready).await.map_err(|_| miette!("the server does not get ready"))?
    }

    /// Stops it as an operator would.
    pub(super) async fn stop(mut self) -> Result<()> {
        let stopped = async {
            Command::new("kill").args(["-s", "TERM", &self.pid.to_string()]).status().await?;
            self.child.wait().await
        };
        match tokio::time::timeout(STOP_PATIENCE, stopped).await {
            Ok(status) if status.as_ref().is_ok_and(std::process::ExitStatus::success) => Ok(()),
            Ok(status) => Err(miette!("the server did not end well: {status:?}")),
            Err(_) => Err(miette!("the server does not end")),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that was stopped in order has no process any more.
        if self.child.start_kill().is_err() {
            return;
        }
        // A killed process is gone within moments, and what it wrote meanwhile would stay in a directory that is being removed.
        for _ in 0..KILL_LOOKS {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// What a process costs, as the kernel counts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    pid: u32,
}

impl Usage {
    pub(super) const fn of(pid: u32) -> Self {
        Self { pid }
    }

    /// Its time on processors so far, in user and kernel mode, of all its threads.
    pub(super) fn cpu(&self) -> Result<Duration> {
        let stat = self.read("stat")?;
        cpu_of(&stat).ok_or_else(|| miette!("what the kernel says of process {} cannot be understood", self.pid))
    }

    /// What it has in memory.
    pub(super) fn resident_bytes(&self) -> Result<u64> {
        let status = self.read("status")?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
        kib.map(|kib: u64| kib * 1_024)
            .ok_or_else(|| miette!("what the kernel says of process {} cannot be understood", self.pid))
    }

    fn read(&self, what: &str) -> Result<String> {
        let path = format!("/proc/{}/{what}", self.pid);
        std::fs::read_to_string(&path).into_diagnostic().wrap_err_with(|| format!("cannot read {path}"))
    }
}

/// Fields 14 and 15, counted behind the name, which may hold anything in its parentheses.
fn cpu_of(stat: &str) -> Option<Duration> {
    let (_, behind) = stat.rsplit_once(')')?;
    let mut fields = behind.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 1_000 / USER_HZ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_an_odd_name_is_understood() {
        let stat = "7 (he) lio stat) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 5 0 9 1 2 3";
        assert_eq!(cpu_of(stat), Some(Duration::from_secs(3)));
        assert_eq!(cpu_of("7 (x) S 1"), None);
    }

    #[test]
    fn what_this_process_costs_can_be_read() {
        let usage = Usage::of(std::process::id());
        assert!(usage.resident_bytes().unwrap() > 1_000_000);
        usage.cpu().unwrap();
    }
}
