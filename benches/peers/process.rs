//! Servers under measurement, as processes.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::net::TcpStream;

/// A server. Killed when it is dropped.
pub struct Program {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Program {
    /// A Heliostat without TLS, with these lines in its configuration.
    pub fn heliostat(dir: &Path, more: &str) -> Self {
        Self::heliostat_with(dir, &format!("listen = {{ address = '127.0.0.1:0', plain = true }}\n{more}"), "ws://")
    }

    /// A Heliostat; `scheme` is how its URL begins.
    pub fn heliostat_with(dir: &Path, config: &str, scheme: &str) -> Self {
        let (data, file) = (dir.join("data"), dir.join("heliostat.toml"));
        let text = format!("data_dir = {data:?}\nadmin.listen = '127.0.0.1:0'\n{config}");
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
        command.args(["serve", "--config"]).arg(file).env("HELIOSTAT_LOG", "error");
        Self::that_says(&mut command, scheme)
    }

    /// This program as a peer, which says its address.
    pub fn own(peer: &str, dir: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        Self::that_says(command.args(["--serve", peer, "--dir"]).arg(dir), "at://")
    }

    fn that_says(command: &mut Command, scheme: &str) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let url = said.find_map(|line| {
            line.split_whitespace()
                .find_map(|word| word.strip_prefix(scheme))
                .map(|rest| rest.trim_end_matches('/').to_owned())
        });
        let address = url.expect("it says where it listens").replace("localhost", "127.0.0.1").parse().unwrap();
        std::thread::spawn(move || said.count());
        Self { child, address }
    }

    /// A program that cannot be asked where it listens. `None` when there is no such program here.
    pub async fn that_is_told(command: &mut Command, address: SocketAddr) -> Option<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
        while TcpStream::connect(address).await.is_err() {
            assert!(child.try_wait().unwrap().is_none(), "{command:?} ended at once");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Some(Self { child, address })
    }

    /// What it has used of the processors, its threads that ended included; in steps of 10 ms.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // Behind the name, which may hold anything: state is the third field, user and system time the 14th and 15th.
        let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 1..].split_whitespace().collect();
        let ticks: u64 = [11, 12].map(|at| fields[at].parse::<u64>().unwrap()).iter().sum();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

/// An address that was free a moment ago.
pub fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
