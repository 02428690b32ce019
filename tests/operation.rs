//! The real binary under its operator: asked to drain, to end at once, to read its configuration again, and run by systemd.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may panic"
)]

mod common;

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use common::{Answer, Family, http, plain, reflected, soon};
use heliostat::client::{Device, RawConnection, Trust};
use heliostat::wire::d2m::{CloseCode, FromDevice, ReflectFlags};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData as _};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

/// A server under test. Killed when it is dropped.
struct Running {
    child: Child,
    config: PathBuf,
    devices: SocketAddr,
    admin: SocketAddr,
    log: mpsc::UnboundedReceiver<Value>,
}

/// The configuration of a server on this data, without TLS, with more lines behind it.
fn configure(data: &Path, more: &str) -> PathBuf {
    let file = data.with_extension("toml");
    let text = format!("data_dir = {data:?}\nlisten = {{ address = '127.0.0.1:0', plain = true }}\n");
    std::fs::write(&file, text + "admin.listen = '127.0.0.1:0'\n" + more).unwrap();
    file
}

impl Running {
    fn start(data: &Path, more: &str) -> Self {
        Self::start_as(data, more, Command::new(env!("CARGO_BIN_EXE_heliostat")))
    }

    /// `command` is completed.
    fn start_as(data: &Path, more: &str, mut command: Command) -> Self {
        let config = configure(data, more);
        command.args(["serve", "--config"]).arg(&config).env_remove("HELIOSTAT_LOG");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (line, log) = mpsc::unbounded_channel();
        let errors = BufReader::new(child.stderr.take().unwrap()).lines();
        std::thread::spawn(move || {
            for text in errors.map_while(Result::ok) {
                let _test_is_over = line.send(serde_json::from_str(&text).unwrap_or(Value::String(text)));
            }
        });
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut address = |label: &str| {
            let line = said.by_ref().find(|line| line.trim_start().starts_with(label));
            let line = line.unwrap_or_else(|| panic!("the server ended: {:?}", child.wait()));
            let is_address = |word: &str| word.trim_matches(|c: char| !c.is_ascii_alphanumeric()).parse().ok();
            line.split([' ', '/']).find_map(is_address).unwrap_or_else(|| panic!("no address in {line:?}"))
        };
        let (devices, admin) = (address("devices"), address("admin"));
        std::thread::spawn(move || said.count());
        Self { child, config, devices, admin, log }
    }

    fn family(&self) -> Family {
        Family::new(plain(self.devices))
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    async fn asks(&self, admin_path: &str) -> Answer {
        http(self.admin, admin_path, false).await
    }

    /// The next line of the log with this message.
    async fn says(&mut self, message: &str) -> Value {
        loop {
            let line = soon(self.log.recv()).await.expect("the server runs");
            if line["fields"]["message"] == message {
                return line["fields"].clone();
            }
        }
    }

    /// Reads the configuration with these lines, and returns what it said until it was done.
    async fn reloads(&mut self, more: &str, done: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.config).unwrap();
        let common: Vec<&str> = text.lines().take(3).collect();
        std::fs::write(&self.config, common.join("\n") + "\n" + more).unwrap();
        self.signal("HUP");
        let mut said = Vec::new();
        loop {
            let line = soon(self.log.recv()).await.expect("the server runs")["fields"].clone();
            let last = line["message"] == done;
            said.push(line);
            if last {
                return said;
            }
        }
    }

    async fn ended(mut self) -> ExitStatus {
        soon(async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

/// A connection that will not answer a close: the server waits for it for some seconds.
async fn never_answers(family: &Family) -> RawConnection {
    family.admitted(&family.config(99)).await
}

#[tokio::test]
async fn d2m_12_21_a_drain_tells_everybody_1001_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut server = Running::start(&data, "drain = { grace = '300 ms', interval = '100 ms' }\n");
    let mut families = Vec::new();
    for _ in 0..5 {
        let family = server.family();
        let mut devices = Vec::new();
        for device in 1..=4 {
            devices.push(family.joins(device).await);
        }
        // Somebody who is away, and for whom something waits.
        family.joins(9).await.abort();
        let sender: &mut Device = &mut devices[0];
        soon(sender.reflect_and_wait(b"for those who are away", ReflectFlags::default())).await.unwrap();
        families.push((family, devices));
    }
    let slow = server.family();
    let mut slow = never_answers(&slow).await;
    assert_eq!(server.asks("/readyz").await.status, 200);

    server.signal("TERM");
    assert_eq!(server.says("draining").await["connections"], 21);
    for (_, devices) in &mut families {
        for device in devices {
            assert_eq!(soon(device.wait_ended()).await.code(), Some(1001));
        }
    }
    // One is left, so the house is still open to those who ask.
    let path = format!("/{}", server.family().config(1).url_info().to_segment());
    let answer = http(server.devices, &path, true).await;
    assert_eq!(answer.status, 503);
    assert!(answer.retry_after.is_some_and(|seconds| (1..=6).contains(&seconds)));
    assert_eq!(server.asks("/readyz").await.status, 503);
    assert_eq!(server.asks("/livez").await.status, 200);
    assert_eq!(soon(slow.wait_ended()).await.code(), Some(1001));
    assert!(server.ended().await.success());

    let server = Running::start(&data, "");
    for (family, _) in families {
        let family = Family { url: plain(server.devices), ..family };
        for device in [2, 9] {
            let mut device = soon(Device::connect(&family.url, &family.config(device).existing())).await.unwrap();
            assert_eq!(reflected(&mut device).await, b"for those who are away");
        }
    }
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once_with_a_status_of_its_own_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    // Hours, if the second signal did not count.
    let mut server = Running::start(&data, "drain = { grace = '1 h', interval = '60 s' }\n");
    let family = server.family();
    let mut devices = Vec::new();
    for device in 1..=9 {
        devices.push(family.joins(device).await);
    }
    soon(devices[8].reflect_and_wait(b"kept", ReflectFlags::default())).await.unwrap();
    server.signal("TERM");
    server.says("draining").await;
    // The first batch went; the last one came is still inside, and served.
    assert_eq!(soon(devices[0].wait_ended()).await.code(), Some(1001));
    soon(devices[8].reflect_and_wait(b"kept, too", ReflectFlags::default())).await.unwrap();
    server.signal("INT");
    assert_eq!(server.ended().await.code(), Some(3));

    let server = Running::start(&data, "");
    let family = Family { url: plain(server.devices), ..family };
    let mut device = soon(Device::connect(&family.url, &family.config(1).existing())).await.unwrap();
    assert_eq!(reflected(&mut device).await, b"kept");
    assert_eq!(reflected(&mut device).await, b"kept, too");
}

#[tokio::test]
async fn a_reload_takes_over_what_it_can_says_what_it_did_and_disturbs_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut server = Running::start(&data, "limits.max_device_slots = 2\n");
    let family = server.family();
    let (mut one, mut two) = (family.joins(1).await, family.joins(2).await);
    let three = async || {
        let refused = soon(Device::connect(&family.url, &family.config(3))).await;
        refused.map(|device| device.abort()).map_err(|error| error.to_string())
    };
    assert!(three().await.unwrap_err().contains("4111"));

    // Good, in a group that is awake; and the log says it key by key.
    let said = server.reloads("limits.max_device_slots = 3\nlog.filter = 'info'\n", "configuration reloaded").await;
    let told = |said: &[Value], message: &str, key: &str| {
        said.iter().any(|line| line["message"] == message && line["key"] == key)
    };
    assert!(told(&said, "taken over", "limits.max_device_slots"), "{said:?}");
    assert_eq!(said.last().unwrap()["taken_over"], 1);
    three().await.unwrap();

    // Bad: the line is named, and not even the good part holds.
    let failed = "the configuration was not reloaded: nothing changed";
    let said = server.reloads("limits.max_device_slots = 1\nlimits.idle_timeout = 'soon'\n", failed).await;
    let mistake = said.last().unwrap()["mistake"].as_str().unwrap();
    assert!(mistake.contains("data.toml, line 5: ") && mistake.contains("idle_timeout"), "{mistake}");
    three().await.unwrap_err();
    let returns = soon(Device::connect(&family.url, &family.config(3).existing())).await;
    returns.unwrap().abort();

    // Partly waiting.
    let more = "limits.max_device_slots = 3\nadmission.max_connections_per_address = 1\nchat.csp.enabled = true\n";
    let said = server.reloads(more, "configuration reloaded").await;
    assert!(told(&said, "taken over", "admission.max_connections_per_address"), "{said:?}");
    assert!(told(&said, "waits for a restart", "chat.csp.enabled"), "{said:?}");
    let path = format!("/{}", family.config(1).url_info().to_segment());
    assert_eq!(http(server.devices, &path, true).await.status, 429);

    // The log itself: nothing is told below the filter.
    let said = server.reloads("log.filter = 'warn'\nchat.csp.enabled = true\n", "waits for a restart").await;
    assert!(!told(&said, "taken over", "log.filter"), "{said:?}");
    assert_eq!(http(server.devices, &path, true).await.status, 101);
    server.reloads("limits = 7\n", failed).await;

    // All that time nobody was sent away.
    for device in [&mut one, &mut two] {
        soon(device.reflect_and_wait(b"still here", ReflectFlags::default())).await.unwrap();
    }
    server.signal("TERM");
    assert_eq!(soon(one.wait_ended()).await.code(), Some(1001));
    drop(two);
    assert!(server.ended().await.success());
}

/// Who signs the server's certificates, in a directory with them.
struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(dir: &Path) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        std::fs::write(dir.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir: dir.to_owned(), issuer: Issuer::new(params, key) }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Puts a new certificate where the server looks for it; says by what it is known.
    fn renews(&self) -> Trust {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.file("cert.pem"), leaf.pem()).unwrap();
        std::fs::write(self.file("key.pem"), key.serialize_pem()).unwrap();
        Trust::Pin(Sha256::digest(key.subject_public_key_info()).into())
    }

    /// Has the next server do TLS with what lies here.
    fn secures(&self, command: &mut Command) {
        command.env("HELIOSTAT__LISTEN__PLAIN", "false");
        command.env("HELIOSTAT__LISTEN__CERT", self.file("cert.pem"));
        command.env("HELIOSTAT__LISTEN__KEY", self.file("key.pem"));
    }
}

#[tokio::test]
async fn under_load_reloads_drop_nobody_and_a_restart_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let authority = Authority::new(dir.path());
    let first = authority.renews();
    let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
    authority.secures(&mut command);
    let mut server = Running::start_as(&data, "", command);
    let url = format!("wss://localhost:{}", server.devices.port());
    let mut simulation = Command::new(env!("CARGO_BIN_EXE_heliostat"));
    simulation.args(["simulate", "--url", &url, "--ca"]).arg(authority.file("ca.pem"));
    simulation.args(["--no-csp", "--groups", "6", "--devices", "3", "--messages", "100"]);
    simulation.args(["--pause", "10ms", "--data"]).arg(dir.path()).env("HELIOSTAT_LOG", "error");
    let mut simulation = simulation.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The write-ahead log grows with what is acknowledged.
    let wal = data.join("mediator.sqlite-wal");
    let mut grows_beyond = async |bytes: u64| {
        while std::fs::metadata(&wal).map_or(0, |wal| wal.len()) < bytes {
            assert_eq!(
                simulation.try_wait().unwrap(),
                None,
                "the simulation was over before the operator did anything"
            );
            tokio::task::yield_now().await;
        }
    };
    grows_beyond(200_000).await;
    let mut said = server.reloads("limits.max_queue_messages = 50_000\n", "configuration reloaded").await;
    let failed = "the configuration was not reloaded: nothing changed";
    said.extend(server.reloads("limits.max_queue_messages = 0\n", failed).await);
    assert!(said.last().unwrap().to_string().contains("line 4"), "{said:?}");
    // Who shakes hands from now on sees another certificate; who did before notices nothing.
    let second = authority.renews();
    said.extend(server.reloads("", "configuration reloaded").await);
    let family = |trust: &Trust| Family::new(heliostat::client::Mediator::new(&url, trust).unwrap());
    let visitor = family(&second).joins(1).await;
    assert_eq!(soon(visitor.close(CloseCode::Normal)).await.code(), Some(1000));
    let late = family(&first);
    assert!(late.url.open(&late.config(1).url_info()).await.is_err(), "the old certificate is not shown any more");
    grows_beyond(300_000).await;
    server.signal("TERM");
    while let Some(line) = soon(server.log.recv()).await.map(|line| line["fields"].clone()) {
        let last = line["message"] == "draining";
        said.push(line);
        if last {
            break;
        }
    }
    // The simulation itself takes a look at the server before it begins.
    let mut ended = said.iter().filter(|line| line["message"] == "connection ended");
    assert!(ended.all(|line| line["ending"] == "ClosedByDevice(Some(1000))"), "{said:?}");
    assert_eq!(said.last().unwrap()["connections"], 18);
    let mut codes = Vec::new();
    while let Some(line) = soon(server.log.recv()).await {
        if line["fields"]["message"] == "connection ended" {
            codes.push(line["fields"]["code"].clone());
        }
    }
    assert_eq!(codes, vec![Value::from(1001); 18]);
    let address = server.devices.to_string();
    assert!(server.ended().await.success());

    let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
    command.env("HELIOSTAT__LISTEN__ADDRESS", address);
    authority.secures(&mut command);
    let _server = Running::start_as(&data, "", command);
    let output = soon(tokio::task::spawn_blocking(|| simulation.wait_with_output())).await.unwrap().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    assert!(text.lines().any(|line| line.starts_with("lost") && line.ends_with(" 0")), "{text}");
}

/// What a supervisor is told, one message at a time.
async fn told(supervisor: &tokio::net::UnixDatagram) -> String {
    let mut message = [0; 256];
    let len = soon(supervisor.recv(&mut message)).await.unwrap();
    String::from_utf8(message[..len].to_vec()).unwrap()
}

#[tokio::test]
async fn a_supervisor_is_told_of_every_turn_and_that_the_server_lives() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("notify");
    let supervisor = UnixDatagram::bind(&socket).unwrap();
    supervisor.set_nonblocking(true).unwrap();
    let supervisor = tokio::net::UnixDatagram::from_std(supervisor).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
    command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "100000");
    let server = Running::start_as(&dir.path().join("data"), "", command);
    assert_eq!(told(&supervisor).await.trim(), "READY=1");
    for _ in 0..3 {
        assert_eq!(told(&supervisor).await.trim(), "WATCHDOG=1");
    }
    let other = async || loop {
        let told = told(&supervisor).await;
        if told.trim() != "WATCHDOG=1" {
            return told;
        }
    };
    server.signal("HUP");
    let reloading = other().await;
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(other().await.trim(), "READY=1");
    server.signal("TERM");
    assert_eq!(other().await.trim(), "STOPPING=1");
    assert!(server.ended().await.success());
}

#[tokio::test]
async fn sockets_that_systemd_opened_are_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // As systemd does it: the socket is descriptor 3 of the process that the variable names.
    let mut shell = Command::new("sh");
    let script = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=devices exec \"$0\" \"$@\" 3<&0 0</dev/null";
    shell.args(["-c", script, env!("CARGO_BIN_EXE_heliostat")]).stdin(OwnedFd::from(listener.try_clone().unwrap()));
    // Somebody came before there was a server.
    let family = Family::new(plain(address));
    let mut early = tokio::net::TcpStream::connect(address).await.unwrap();
    let server = Running::start_as(&dir.path().join("data"), "", shell);
    assert_eq!(server.devices, address);
    assert_ne!(server.admin, address);
    let mut device = family.joins(1).await;
    soon(device.reflect_and_wait(b"hello", ReflectFlags::default())).await.unwrap();
    soon(tokio::io::AsyncWriteExt::write_all(&mut early, b"GET / HTTP/1.1\r\n\r\n")).await.unwrap();
    let mut status = [0; 12];
    soon(tokio::io::AsyncReadExt::read_exact(&mut early, &mut status)).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 404");
    device.send(&FromDevice::GetDevicesInfo).await.unwrap();
    device.abort();

    // The socket outlives the server: who comes meanwhile waits for the next one.
    server.signal("TERM");
    assert!(server.ended().await.success());
    assert!(tokio::net::TcpStream::connect(address).await.is_ok());
}

#[test]
fn sockets_that_cannot_be_used_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = configure(&dir.path().join("data"), "");
    let starts = |socket: OwnedFd, names: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_heliostat"));
        command.args(["serve", "--config"]).arg(&config).stdin(socket);
        // Where they begin is a courtesy of the library's, which spares a shell.
        command.env("LISTEN_FDS", "1").env("LISTEN_FDS_FIRST_FD", "0").env("LISTEN_FDNAMES", names);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap().replace('│', "").split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let said = starts(datagrams.into(), "devices");
    assert!(said.contains("is no TCP listener"), "{said}");
    let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
    let said = starts(everywhere.into(), "admin");
    assert!(said.contains("the admin door has to be on a loopback address"), "{said}");
}

#[test]
fn what_the_unit_files_say_can_be_run() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let unit = std::fs::read_to_string(deploy.join("heliostat.service")).unwrap();
    let binary = "/usr/local/bin/heliostat";
    let checks = unit.lines().find_map(|line| line.strip_prefix("ExecStartPre=")).unwrap();
    let words = checks.strip_prefix(binary).unwrap().split_whitespace();
    let here = deploy.join("heliostat.toml");
    let words = words.map(|word| if word == "/etc/heliostat/heliostat.toml" { here.to_str().unwrap() } else { word });
    // A check reads the certificate, which every machine has to bring.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut check = Command::new(env!("CARGO_BIN_EXE_heliostat"));
    check.env("HELIOSTAT__LISTEN__CERT", root.join("certs/throwaway-test-only-cert.pem"));
    check.env("HELIOSTAT__LISTEN__KEY", root.join("certs/throwaway-test-only-key.pem"));
    let output = check.args(words).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let starts = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    assert_eq!(starts, checks.replace("config check", "serve"), "what was checked is what is started");
    let socket = std::fs::read_to_string(deploy.join("heliostat.socket")).unwrap();
    assert!(unit.contains("Requires=heliostat.socket\n") && socket.contains("\nFileDescriptorName=devices\n"));
}
