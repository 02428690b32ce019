//! What a measurement ran on: numbers without it cannot be compared with any others.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use miette::{IntoDiagnostic as _, Result, WrapErr as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::server::Scratch;
use crate::time::Clock;

/// Syncs that are timed to know the disk.
const SYNCS: usize = 50;

/// The machine and the program.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) processor: String,
    pub(super) cores: usize,
    pub(super) memory_mib: u64,
    pub(super) kernel: String,
    pub(super) filesystem: String,
    /// The median time that 4 KiB take to be appended and synced there.
    pub(super) sync_us: u128,
    pub(super) load_before: String,
    pub(super) program: String,
    pub(super) build: &'static str,
    pub(super) at_ms: u64,
}

impl Machine {
    /// `dir` is where the servers keep their data.
    pub(super) fn describe(dir: &Path, clock: Clock) -> Result<Self> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let line = |text: &str, name: &str| {
            let value =
                text.lines().find_map(|line| Some(line.strip_prefix(name)?.split_once(':')?.1.trim().to_owned()));
            value.unwrap_or_else(|| "unknown".to_owned())
        };
        let memory = line(&read("/proc/meminfo"), "MemTotal");
        let dir = dir.canonicalize().into_diagnostic().wrap_err_with(|| format!("cannot use {}", dir.display()))?;
        Ok(Self {
            processor: line(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            memory_mib: memory.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1_024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            filesystem: filesystem_of(&dir, &read("/proc/self/mountinfo")),
            sync_us: sync_time(&dir, clock)?.as_micros(),
            load_before: load_average(),
            program: program()?,
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
            at_ms: clock.now().wall_ms,
        })
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "processor": self.processor,
            "cores": self.cores,
            "memory_mib": self.memory_mib,
            "kernel": self.kernel,
            "filesystem": self.filesystem,
            "sync_us": u64::try_from(self.sync_us).unwrap_or(u64::MAX),
            "load_average_before": self.load_before,
            "program": self.program,
            "build": self.build,
            "measured_at_unix_ms": self.at_ms,
        })
    }
}

/// Of the last 1, 5 and 15 minutes.
pub(super) fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// Version, commit if the build was told, and a fingerprint of the executable, which tells in any case.
fn program() -> Result<String> {
    let executable = std::env::current_exe().and_then(std::fs::read).into_diagnostic()?;
    let fingerprint = hex::encode(Sha256::digest(executable));
    let commit = option_env!("HELIOSTAT_COMMIT").map(|commit| format!(" commit {commit}")).unwrap_or_default();
    let short = fingerprint.get(..16).unwrap_or(&fingerprint);
    Ok(format!("heliostat {}{commit} (executable sha256 {short}...)", env!("CARGO_PKG_VERSION")))
}

/// The type of the file system that the last mount above a directory has.
fn filesystem_of(dir: &Path, mounts: &str) -> String {
    let mount = |line: &str| {
        let (before, behind) = line.split_once(" - ")?;
        let point = before.split(' ').nth(4)?.replace("\\040", " ");
        let depth = Path::new(&point).components().count();
        dir.starts_with(&point).then(|| (depth, behind.split(' ').next().unwrap_or("unknown").to_owned()))
    };
    // Of two mounts on the same point, the later one is seen.
    mounts.lines().filter_map(mount).max_by_key(|(depth, _)| *depth).map_or_else(|| "unknown".to_owned(), |it| it.1)
}

/// How long the disk takes to keep something, at the median.
fn sync_time(dir: &Path, clock: Clock) -> Result<Duration> {
    let scratch = Scratch::new(dir)?;
    let mut file = File::create(scratch.path().join("sync")).into_diagnostic()?;
    let mut times = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        let began = clock.now().monotonic;
        file.write_all(&[0x5a; 4_096]).into_diagnostic()?;
        file.sync_data().into_diagnostic()?;
        times.push(clock.now().monotonic.saturating_sub(began));
    }
    times.sort_unstable();
    Ok(times.get(SYNCS / 2).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_and_last_mount_has_the_directory() {
        let mounts = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n\
                      2 1 0:5 / /tmp rw shared:1 - tmpfs tmpfs rw\n\
                      3 1 0:6 / /my\\040disk rw - xfs /dev/b rw\n\
                      4 1 0:7 / /tmp rw - btrfs /dev/c rw\n";
        for (dir, expected) in [("/home/x", "ext4"), ("/tmp/x", "btrfs"), ("/my disk", "xfs"), ("/tmpx", "ext4")] {
            assert_eq!(filesystem_of(Path::new(dir), mounts), expected, "{dir}");
        }
        assert_eq!(filesystem_of(Path::new("/x"), ""), "unknown");
    }

    #[test]
    fn this_machine_can_be_described() {
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine::describe(dir.path(), Clock::system()).unwrap();
        assert!(machine.cores > 0 && machine.memory_mib > 0 && !machine.kernel.is_empty());
        assert_ne!(machine.filesystem, "unknown");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
    }
}
