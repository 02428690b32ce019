//! A PostgreSQL server of our own, from the distribution's package.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A PostgreSQL server for as long as this lives, in a directory of its own, behind a socket of its own.
pub struct Postgres {
    dir: tempfile::TempDir,
    bin: PathBuf,
    fsync: &'static str,
}

impl Postgres {
    /// `None` when there is none installed where Debian's package puts it. It survives its own crash, not the machine's, which
    /// tests need not wait for.
    pub fn start() -> Option<Self> {
        Self::start_with("off")
    }

    /// One that syncs, for measuring.
    pub fn durable() -> Option<Self> {
        Self::start_with("on")
    }

    fn start_with(fsync: &'static str) -> Option<Self> {
        let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
        let mut bins: Vec<_> = versions.map(|it| it.unwrap().path().join("bin")).collect();
        bins.retain(|bin| bin.join("initdb").exists());
        bins.sort();
        let dir = tempfile::Builder::new().prefix("heliostat-pg").tempdir().unwrap();
        let server = Self { bin: bins.pop()?, dir, fsync };
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(server.dir.path()));
        }
        let data = server.data();
        run(server.command("initdb").args(["-A", "trust", "-U", "postgres", "-N", "-D", &data]));
        server.begin();
        Some(server)
    }

    /// The URL of a database of its own.
    pub fn database(&self, name: &str) -> String {
        let dir = self.dir.path().display();
        run(self.command("createdb").args(["-h", &dir.to_string(), "-U", "postgres", name]));
        format!("postgres://postgres@localhost/{name}?host={dir}")
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join(".s.PGSQL.5432")
    }

    /// Breaks every connection, as a crash of the server does, and starts it again on what it kept.
    pub fn restart(&self) {
        let data = self.data();
        run(self.command("pg_ctl").args(["-w", "-D", &data, "-m", "immediate", "stop"]));
        self.begin();
    }

    fn begin(&self) {
        let (data, dir, fsync) = (self.data(), self.dir.path().display(), self.fsync);
        let options = format!("-c listen_addresses= -c fsync={fsync} -k {dir}");
        run(self.command("pg_ctl").args(["-w", "-D", &data, "-l", &format!("{dir}/log"), "-o", &options, "start"]));
    }

    fn data(&self) -> String {
        format!("{}/data", self.dir.path().display())
    }

    /// PostgreSQL does not run as root.
    fn command(&self, program: &str) -> Command {
        let program = self.bin.join(program);
        if !is_root() {
            return Command::new(program);
        }
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(program);
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let data = self.data();
        let _gone =
            self.command("pg_ctl").args(["-D", &data, "-m", "immediate", "stop"]).stdout(Stdio::null()).status();
    }
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|it| it.uid() == 0)
}

fn run(command: &mut Command) {
    let output = command.current_dir("/").stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
