//! The clients in `examples/`, each against a server of its own, in the three languages; and the server that is started for a
//! test of another language.
//!
//! The clients in Python and TypeScript need packages: `.ci/run` installs them below `target`, and says with
//! `HELIOSTAT_EXAMPLES=required` that this has to work. Elsewhere they are left out with a sentence.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test may panic, and say what it left out"
)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Where `.ci/run` installs packages.
fn installed(path: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("examples").join(path)
}

/// `None`, told, when something is missing; a failure where everything has to be there.
fn usable(found: bool, what: &str) -> Option<()> {
    if found {
        return Some(());
    }
    assert!(std::env::var_os("HELIOSTAT_EXAMPLES").is_none(), "HELIOSTAT_EXAMPLES is set, and {what} is missing");
    eprintln!("not tested: {what} is missing; .ci/run installs it");
    None
}

/// A server, started as a test in another language would.
struct Server {
    child: Child,
    /// What a parent holds as long as it lives.
    stdin: Option<ChildStdin>,
    port: u16,
    data: tempfile::TempDir,
}

impl Server {
    fn start(more: &[&str]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_heliostat"))
            .args(["serve", "--port", "0", "--print-port", "--exit-with-parent", "--memory", "--data"])
            .arg(data.path())
            .args(more)
            .env_remove("HELIOSTAT_CONFIG")
            .env("HELIOSTAT_LOG", "warn")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim_end().parse().expect("the port, in digits, on the first line");
        Self { stdin: child.stdin.take(), child, port, data }
    }

    fn plain() -> (Self, String) {
        let server = Self::start(&["--plain"]);
        let url = format!("ws://127.0.0.1:{}", server.port);
        (server, url)
    }

    fn ends(&mut self) {
        // Hangs when it does not.
        let status = self.child.wait().unwrap();
        assert!(status.success(), "in order: {status}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

/// What an example has to do, whatever it is written in.
fn reflects(example: &mut Command) {
    let output = example.output().unwrap_or_else(|error| panic!("{example:?}: {error}"));
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{example:?}: {said}{complained}");
    assert!(said.contains("the phone's message is kept since 1"), "{said}");
    assert!(said.ends_with("the tablet got: hello\n"), "{said}");
}

/// With TLS and without.
fn reflects_both_ways(example: impl Fn() -> Command) {
    let (_server, url) = Server::plain();
    reflects(example().arg(&url));
    let server = Server::start(&[]);
    let ca = server.data.path().join("tls").join("dev-ca.pem");
    reflects(example().arg(format!("wss://localhost:{}", server.port)).arg(ca));
}

/// An example in Rust: as made with the tests, when all of them are, or else made now.
fn rust(name: &str) -> Command {
    let made = std::env::current_exe().unwrap().with_file_name("../examples").join(name);
    if made.exists() {
        return Command::new(made);
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--quiet", "--locked", "--example", name, "--"]).current_dir(here("."));
    cargo
}

#[test]
fn the_rust_example_reflects() {
    reflects_both_ways(|| rust("reflect"));
}

#[test]
fn ten_lines_are_a_client() {
    let (_server, url) = Server::plain();
    let output = rust("hello").arg(&url).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.starts_with("ReflectAck { reflect_id: ReflectId(1)"), "{said}");
}

#[test]
fn the_python_example_reflects() {
    let ours = installed("python/bin/python");
    let python = if ours.exists() { ours } else { PathBuf::from("python3") };
    let found = Command::new(&python).args(["-c", "import websockets, nacl"]).stderr(Stdio::null()).status();
    if usable(found.is_ok_and(|status| status.success()), "Python with websockets and pynacl").is_none() {
        return;
    }
    reflects_both_ways(|| {
        let mut command = Command::new(&python);
        command.arg(here("examples/python/reflect.py"));
        command
    });
}

#[test]
fn the_typescript_example_reflects() {
    let dir = installed("typescript");
    let compiler = dir.join("node_modules/.bin/tsc");
    if usable(compiler.exists(), "the TypeScript compiler, with ws and tweetnacl").is_none() {
        return;
    }
    // Modules are looked for beside the source.
    for file in ["reflect.ts", "tsconfig.json", "package.json"] {
        std::fs::copy(here("examples/typescript").join(file), dir.join(file)).unwrap();
    }
    let compiled = Command::new(&compiler).current_dir(&dir).output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stdout));
    reflects_both_ways(|| {
        let mut node = Command::new("node");
        node.arg(dir.join("dist/reflect.js"));
        node
    });
}

#[test]
fn what_the_examples_need_is_pinned_and_nobody_is_told_where_from() {
    let lock = std::fs::read_to_string(here("examples/typescript/package-lock.json")).unwrap();
    let requirements = std::fs::read_to_string(here("examples/python/requirements.txt")).unwrap();
    assert!(!lock.contains("resolved") && !lock.contains("://") && !requirements.contains("://"));
    assert!(requirements.lines().filter(|line| !line.starts_with('#')).all(|line| line.contains("==")));
    let package: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(here("examples/typescript/package.json")).unwrap()).unwrap();
    for kind in ["dependencies", "devDependencies"] {
        for (name, version) in package.get(kind).unwrap().as_object().unwrap() {
            let version = version.as_str().unwrap();
            assert!(version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'), "{name} {version}");
            assert!(lock.contains(&format!("\"{name}\": \"{version}\"")), "{name} {version} is in the lock");
        }
    }
}

#[test]
fn a_server_prints_its_port_alone_and_ends_with_the_pipe_of_whoever_started_it() {
    let (mut one, url) = Server::plain();
    // Several at a time: no door of one is in the way of another.
    let (two, _) = Server::plain();
    assert_ne!(one.port, two.port);
    let provoke = Command::new(env!("CARGO_BIN_EXE_heliostat")).args(["provoke", "4010", "--url", &url]).output();
    assert!(provoke.unwrap().status.success(), "it serves");
    // What is said into the pipe is for nobody; only its end counts.
    one.stdin.as_mut().unwrap().write_all(b"hello").unwrap();
    assert!(one.child.try_wait().unwrap().is_none());
    drop(one.stdin.take());
    one.ends();
    let mut rest = String::new();
    one.child.stdout.as_mut().unwrap().read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "", "nothing but the port");
}

#[test]
fn a_server_ends_with_the_process_that_started_it() {
    let data = tempfile::tempdir().unwrap();
    let pid = data.path().join("pid");
    // A parent that is killed, with no pipe to the server.
    let script = format!(
        "'{}' serve --port 0 --print-port --exit-with-parent --plain --memory --data '{}' < /dev/null & echo $! > '{}'; wait",
        env!("CARGO_BIN_EXE_heliostat"),
        data.path().display(),
        pid.display()
    );
    let mut parent = Command::new("sh")
        .args(["-c", &script])
        .env_remove("HELIOSTAT_CONFIG")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(parent.stdout.take().unwrap());
    let mut port = String::new();
    out.read_line(&mut port).unwrap();
    assert!(port.trim_end().parse::<u16>().is_ok(), "{port}");
    parent.kill().unwrap();
    parent.wait().unwrap();
    // The server holds the other end of this; the test hangs here when it does not end.
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}
