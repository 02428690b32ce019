//! The real binary, as an operator and a newcomer meet it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may panic"
)]

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread::JoinHandle;

fn heliostat(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
    command.args(args).env_remove("HELIOSTAT_CONFIG").env("HELIOSTAT_LOG", "warn");
    command
}

fn runs(args: &[&str]) -> Output {
    heliostat(args).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A server that told that it is ready. Killed when the test is over.
struct Server {
    child: Child,
    banner: String,
    rest: Option<JoinHandle<String>>,
}

impl Server {
    fn start(data: &Path, more: &[&str]) -> Self {
        let data = data.to_str().unwrap();
        let mut args = vec!["serve", "--data", data, "--admin-listen", "127.0.0.1:0"];
        if !more.contains(&"--csp-listen") {
            args.extend(["--csp-listen", "127.0.0.1:0"]);
        }
        args.extend(more);
        Self::wait(heliostat(&args))
    }

    fn wait(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut banner = String::new();
        // The last line before the closing advice; the pipe ends when the server does.
        while !banner.contains("durability") {
            match lines.next() {
                Some(line) => banner += &(line.unwrap() + "\n"),
                None => panic!("the server ended: {:?}\n{banner}", child.wait().unwrap()),
            }
        }
        // Whatever it prints later must find a reader.
        let rest = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>().join("\n"));
        Self { child, banner, rest: Some(rest) }
    }

    /// Ends the server in order, and gives what it printed behind the list of its doors.
    fn advice(&mut self) -> String {
        self.signal("TERM");
        self.rest.take().unwrap().join().unwrap()
    }

    fn address(&self, label: &str) -> SocketAddr {
        let line = self.banner.lines().find(|line| line.trim_start().starts_with(label)).unwrap();
        let is_address = |word: &str| word.trim_matches(|c: char| !c.is_ascii_alphanumeric()).parse().ok();
        line.split([' ', '/']).find_map(is_address).unwrap_or_else(|| panic!("no address in {line:?}"))
    }

    fn url(&self) -> String {
        format!("wss://localhost:{}", self.address("devices").port())
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    fn ended(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

fn simulate(server: &Server, data: &Path, more: &[&str]) -> Command {
    let mut command = heliostat(&["simulate", "--url", &server.url(), "--data", data.to_str().unwrap()]);
    command.args(more).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn a_development_box_carries_a_simulation_over_wss_and_stops_in_order() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--listen", "127.0.0.1:0"]);
    let output =
        simulate(&server, data.path(), &["--groups", "4", "--devices", "3", "--messages", "15", "--seed", "7"])
            .output()
            .unwrap();
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    assert!(
        text.lines().filter(|line| line.trim_start().starts_with("lost")).all(|line| line.ends_with(" 0")),
        "{text}"
    );
    assert!(text.contains("chat messages"), "the chat server was part of it: {text}");

    let admin = server.address("admin").to_string();
    assert!(runs(&["healthcheck", "--admin", &admin]).status.success());
    server.signal("TERM");
    assert!(server.ended().success());
    assert!(!runs(&["healthcheck", "--admin", &admin]).status.success());
}

#[test]
fn killing_the_server_in_the_middle_loses_nothing_that_was_acknowledged() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--listen", "127.0.0.1:0"]);
    let listen = server.address("devices").to_string();
    let csp = server.address("chat server").to_string();
    let args = ["--groups", "4", "--devices", "3", "--messages", "150", "--seed", "11"];
    let mut simulation = simulate(&server, data.path(), &args).spawn().unwrap();
    // The write-ahead log grows with what is acknowledged.
    let wal = data.path().join("mediator.sqlite-wal");
    let grown = |by: u64| std::fs::metadata(&wal).is_ok_and(|wal| wal.len() > by);
    let mut server = server;
    for by in [400_000, 900_000] {
        while !grown(by) {
            assert_eq!(simulation.try_wait().unwrap(), None, "the simulation was over before the server was killed");
            std::thread::yield_now();
        }
        server.signal("KILL");
        assert_eq!(server.ended().signal(), Some(9));
        server = Server::start(data.path(), &["--listen", &listen, "--csp-listen", &csp]);
    }
    let output = simulation.wait_with_output().unwrap();
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.lines().any(|line| line.starts_with("lost") && line.ends_with(" 0")), "{text}");
    assert!(!text.lines().any(|line| line.starts_with("reconnects") && line.ends_with(" 0")), "it was killed: {text}");
}

#[test]
fn a_second_server_on_the_same_data_is_refused_and_told_why() {
    let data = tempfile::tempdir().unwrap();
    let _first = Server::start(data.path(), &["--listen", "127.0.0.1:0"]);
    let second = runs(&["serve", "--data", data.path().to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    assert_eq!(second.status.code(), Some(1));
    assert!(said(&second).contains("another mediator"), "{}", said(&second));
}

#[test]
fn in_memory_too_the_data_directory_of_a_chat_server_is_one_servers_alone() {
    let data = tempfile::tempdir().unwrap();
    let mut first = Server::start(data.path(), &["--listen", "127.0.0.1:0", "--memory"]);
    assert!(!data.path().join("mediator.sqlite").exists());
    for more in [&["--memory"][..], &[]] {
        let mut args = vec!["serve", "--data", data.path().to_str().unwrap(), "--listen", "127.0.0.1:0"];
        args.extend(["--csp-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
        let second = runs(&[&args, more].concat());
        assert_eq!(second.status.code(), Some(1));
        assert!(said(&second).contains("another mediator"), "{}", said(&second));
    }
    let advice = first.advice();
    assert!(advice.contains("in memory only") && advice.contains("chat server's data"), "{advice}");
}

#[test]
fn a_server_without_a_chat_server_that_keeps_nothing_uses_no_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (file, data) = (dir.path().join("heliostat.toml"), dir.path().join("data"));
    let text = format!(
        "data_dir = {data:?}\ndurability = \"memory\"\nlisten = {{ address = \"127.0.0.1:0\", plain = true }}\n"
    );
    std::fs::write(&file, text + "admin.listen = \"127.0.0.1:0\"\n").unwrap();
    let mut server = Server::wait(heliostat(&["serve", "--config", file.to_str().unwrap()]));
    let advice = server.advice();
    assert!(advice.contains("in memory only") && !advice.contains("Kept all the same"), "{advice}");
    assert!(!data.exists());
}

/// A supervisor may ask for the end as soon as it is told that the server is ready.
#[test]
fn a_signal_right_behind_the_first_line_of_the_banner_ends_in_order() {
    for signal in ["TERM", "INT"] {
        let data = tempfile::tempdir().unwrap();
        let args = ["--listen", "127.0.0.1:0", "--csp-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
        let mut child = heliostat(&[&["serve", "--data", data.path().to_str().unwrap()], &args[..]].concat())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert!(line.contains("is ready"), "{line}");
        assert!(Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap().success());
        std::thread::spawn(move || stdout.lines().count());
        assert!(child.wait().unwrap().success(), "SIG{signal}");
    }
}

#[test]
fn identities_are_made_and_revoked_while_the_server_runs_and_secrets_are_nobody_elses() {
    let data = tempfile::tempdir().unwrap();
    let dir = data.path().to_str().unwrap();
    let _server = Server::start(data.path(), &["--listen", "127.0.0.1:0"]);
    let made = runs(&["identity", "new", "ABCD1234", "--data", dir]);
    assert!(made.status.success(), "{}", said(&made));
    for file in
        ["ABCD1234.identity", "csp-server.key", "csp.sqlite", "mediator.sqlite", "tls/dev-key.pem", "tls/dev-ca.key"]
    {
        let mode = std::fs::metadata(data.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let mut secret = String::new();
    std::fs::File::open(data.path().join("ABCD1234.identity")).unwrap().read_to_string(&mut secret).unwrap();
    let secret = secret.trim().rsplit(' ').next().unwrap();
    assert!(!said(&made).contains(secret), "a secret was printed");

    assert_eq!(runs(&["identity", "new", "ABCD1234", "--data", dir]).status.code(), Some(1), "taken");
    assert_eq!(runs(&["identity", "new", "abcd", "--data", dir]).status.code(), Some(1), "no identity");
    let key = "11".repeat(32);
    assert!(runs(&["identity", "import", "WXYZ9876", &key, "--data", dir]).status.success());
    assert!(runs(&["identity", "revoke", "WXYZ9876", "--data", dir]).status.success());
    let listed = said(&runs(&["identity", "list", "--data", dir]));
    assert!(listed.lines().any(|line| line.starts_with("ABCD1234") && line.ends_with("active")), "{listed}");
    assert!(listed.lines().any(|line| line.starts_with("WXYZ9876") && line.ends_with("revoked")), "{listed}");
}

/// What a device said and heard, and its exit status, when it is given these lines.
fn script(server: &Server, data: &Path, device: &str, lines: &str) -> (Option<i32>, String) {
    use std::io::Write as _;
    let key = data.join("script.key");
    let mut command = heliostat(&["device", &server.url(), "--device-id", device, "--data", data.to_str().unwrap()]);
    command.arg("--group-key").arg(key).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.code(), said(&output))
}

#[test]
fn a_script_tells_by_its_exit_status_whether_it_was_obeyed_and_answered() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--listen", "127.0.0.1:0"]);
    let (status, said) = script(&server, data.path(), "1", "reflect hi\nbegin x\nreflect y\ncommit\ndevices\n");
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("<- commit-transaction-ack") && said.contains("<- devices-info"), "{said}");
    for (lines, why) in [
        ("reflcet hi\ndevices\n", "-- lines that could not be obeyed: 1"),
        ("login\nsay BOB00001 hi\n", "-- lines that could not be obeyed: 2"),
        // Nobody holds the lock, so the mediator ends the connection without an answer.
        ("commit\n", "-- answers that did not come: 1"),
    ] {
        let (status, said) = script(&server, data.path(), "1", lines);
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains(why), "{said}");
    }
    let (status, said) = script(&server, data.path(), "1", "drop me\n");
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("closed with 4113"), "{said}");
    let (status, said) = script(&server, data.path(), "1", "");
    assert_eq!(status, Some(0), "it is a new device again: {said}");
}

/// What a newcomer runs into first: each says what to do, at once, and leaves nothing behind.
#[test]
fn what_cannot_work_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    // Nobody listens there, now that it is closed.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = format!("wss://localhost:{}", free.port());
    let any = "127.0.0.1:0";
    for (args, advice) in [
        (&["serve", "--data", data, "--listen", &address][..], "--listen ADDR"),
        (&["serve", "--data", data, "--listen", any, "--admin-listen", &address], "--admin-listen ADDR"),
        (
            &["serve", "--data", data, "--listen", any, "--admin-listen", any, "--csp-listen", &address],
            "--csp-listen ADDR",
        ),
    ] {
        let output = runs(args);
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains(advice) && said(&output).contains(&address), "{}", said(&output));
    }
    std::fs::remove_dir_all(data).unwrap();
    for (args, advice) in [
        (&["decode"][..], "nothing to decode"),
        (&["simulate", "--data", data, "--url", &nobody], "heliostat serve"),
        (&["identity", "list", "--data", data], "--data DIR"),
    ] {
        let output = heliostat(args).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains(advice), "{}", said(&output));
    }
    assert!(!Path::new(data).exists());
}

#[test]
fn a_configuration_with_a_mistake_names_its_line_and_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("heliostat.toml");
    std::fs::write(&file, "data_dir = \"x\"\n\n[limits]\nmax_device_slots = 0\n").unwrap();
    let output = runs(&["serve", "--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("line 4"), "{}", said(&output));
    assert!(!dir.path().join("x").exists());
}

#[test]
fn a_configuration_is_checked_shown_and_explained_without_starting_anything() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("heliostat.toml");
    let name = file.to_str().unwrap();
    std::fs::write(&file, "[limits]\nidle_timeout = \"3 min\"\n").unwrap();
    let check = runs(&["config", "check", "--config", name]);
    assert!(check.status.success(), "{}", said(&check));
    // The file may be named by the environment, too, and other variables lie over it.
    let mut show = heliostat(&["config", "show", "--data", "kept"]);
    let show = show.env("HELIOSTAT_CONFIG", name).env("HELIOSTAT__LIMITS__PING_INTERVAL", "1 min").output().unwrap();
    let shown = said(&show);
    for (key, value, origin) in [
        ("data_dir", "\"kept\"", "--data".to_owned()),
        ("idle_timeout", "\"3 min\"", format!("{name}, line 2")),
        ("ping_interval", "\"1 min\"", "HELIOSTAT__LIMITS__PING_INTERVAL".to_owned()),
        ("enabled", "false", String::new()),
    ] {
        let line = shown.lines().find_map(|line| line.strip_prefix(&format!("{key} = "))).unwrap();
        let (shown, from) = line.split_once('#').unwrap_or((line, ""));
        assert_eq!((shown.trim(), from.trim()), (value, &*origin), "{key}");
    }
    assert!(said(&runs(&["config", "doc"])).starts_with("# Configuration\n"));

    std::fs::write(&file, "datadir = \"x\"\n\n[limits]\nmax_device_slots = 0\n").unwrap();
    for command in ["check", "show"] {
        let output = runs(&["config", command, "--config", name, "--set", "listen.plain=maybe"]);
        assert_eq!(output.status.code(), Some(1));
        // As it was before it was broken into lines.
        let told = said(&output).replace('│', "").split_whitespace().collect::<Vec<_>>().join(" ");
        for part in ["3 mistakes", "line 1: unknown key", "line 4: ", "max_device_slots = 0", "--set listen.plain: "] {
            assert!(told.contains(part), "{part}: {told}");
        }
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was started");
}

#[test]
fn frames_urls_and_close_codes_are_named() {
    let output = runs(&["decode", "830000000000000007000000"]);
    assert!(said(&output).contains("reflected-ack"), "{}", said(&output));
    assert!(said(&runs(&["decode", "4115"])).contains("slot"));
    assert_eq!(runs(&["decode", "zz"]).status.code(), Some(1));
}
