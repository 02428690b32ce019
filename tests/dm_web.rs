//! The page of the direct messages in two real browsers, and the room as clients see it that share no code with it: the npm
//! client of Socket.IO, and python-socketio.
//!
//! The packages are installed below `target` by `.ci/run`, which says with `HELIOSTAT_EXAMPLES=required` that this has to work, and
//! likewise for the browser. Elsewhere what is missing is left out with a sentence. Screenshots go to `target/dm-web/`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test may panic, and say what it left out"
)]

#[path = "common/browser.rs"]
mod browser;
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use fantoccini::Locator;
use heliostat::chat::dm;
use heliostat::chat::dm::crypto::storage::{Made, SignedOnly};
use heliostat::chat::dm::crypto::{SealKey, SecretKey, Storage};
use heliostat::crypto::Secret;
use heliostat::net::listen::Door;
use heliostat::time::Clock;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use self::browser::{Browser, Page};
use self::common::soon;

/// For a whole script of a client.
const SCRIPT_MAX: Duration = Duration::from_secs(120);
const PAGE: &str = include_str!("../src/chat/dm/web/index.html");
const STYLE: &str = include_str!("../src/chat/dm/web/app.css");

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

/// A copy of the page's sources beside its packages, of this test alone.
fn workshop() -> Option<tempfile::TempDir> {
    let packages = installed("web/node_modules");
    usable(packages.exists(), "what the page of the direct messages is made of")?;
    let dir = tempfile::tempdir().unwrap();
    for folder in [".", "src", "test"] {
        std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        for file in std::fs::read_dir(here("src/chat/dm/web").join(folder)).unwrap().map(Result::unwrap) {
            if file.file_type().unwrap().is_file() {
                std::fs::copy(file.path(), dir.path().join(folder).join(file.file_name())).unwrap();
            }
        }
    }
    std::os::unix::fs::symlink(packages, dir.path().join("node_modules")).unwrap();
    Some(dir)
}

/// The room, on a port of its own, with what it keeps in `data`.
struct Room {
    running: dm::Running,
    shutdown: CancellationToken,
}

impl Room {
    async fn open(data: &Path) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let config = dm::Config { rates: dm::Rates::NONE, ..dm::Config::new(data.to_owned()) };
        let shutdown = CancellationToken::new();
        let doors = vec![(listener, Door::default())];
        Self { running: dm::start_on(doors, config, Clock::system(), shutdown.clone()).await.unwrap(), shutdown }
    }

    fn url(&self) -> String {
        format!("http://{}", self.running.addresses()[0])
    }

    async fn close(self) {
        self.shutdown.cancel();
        soon(self.running.wait()).await;
    }
}

/// Runs the acceptance script of a client, which says when the server has to stop and to start.
async fn judges(mut script: Command) {
    let data = tempfile::tempdir().unwrap();
    let mut room = Some(Room::open(data.path()).await);
    script.arg(room.as_ref().unwrap().url()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = script.kill_on_drop(true).spawn().unwrap();
    let (mut to, from) = (running.stdin.take().unwrap(), running.stdout.take().unwrap());
    let conversation = async {
        let mut lines = BufReader::new(from).lines();
        let mut last = String::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            let answer = match line.as_str() {
                "stop" => {
                    room.take().unwrap().close().await;
                    "stopped".to_owned()
                }
                "start" => {
                    room = Some(Room::open(data.path()).await);
                    room.as_ref().unwrap().url()
                }
                _ => {
                    last = line;
                    continue;
                }
            };
            to.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
        }
        last
    };
    let last = tokio::time::timeout(SCRIPT_MAX, conversation).await.expect("the script ends");
    let output = soon(running.wait_with_output()).await.unwrap();
    assert!(output.status.success(), "{script:?}: {}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(last, "all 23 steps passed");
    room.take().unwrap().close().await;
}

/// Two clients that share no code with the server, at the same time: most of what they do is wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn independent_clients_find_what_they_expect() {
    tokio::join!(the_npm_client(), python_socketio());
}

async fn the_npm_client() {
    let Some(dir) = workshop() else { return };
    let mut node = Command::new("node");
    node.arg(here("tests/dm/acceptance.mjs")).current_dir(dir.path());
    judges(node).await;
}

async fn python_socketio() {
    let ours = installed("python/bin/python");
    let python = if ours.exists() { ours } else { PathBuf::from("python3") };
    let modules = "import aiohttp, cryptography, nacl, socketio";
    let found = Command::new(&python).args(["-c", modules]).stderr(Stdio::null()).status().await;
    if usable(found.is_ok_and(|status| status.success()), "Python with python-socketio").is_none() {
        return;
    }
    let mut script = Command::new(python);
    script.arg(here("tests/dm/acceptance.py"));
    judges(script).await;
}

/// The vectors, and the page's session against servers and members that are not honest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_computes_what_the_vectors_say_and_believes_nobody() {
    let Some(dir) = workshop() else { return };
    let data = tempfile::tempdir().unwrap();
    let room = Room::open(data.path()).await;
    // Two at a time: most of what they do is wait for the room.
    let told = async |names: &[&str]| {
        let tests = names.iter().map(|name| format!("test/{name}.test.js"));
        let mut node = Command::new("node");
        node.arg("--test").args(tests).current_dir(dir.path()).kill_on_drop(true);
        node.env("DM_VECTORS", here("tests/vectors/dm.json")).env("DM_URL", room.url());
        let output = tokio::time::timeout(SCRIPT_MAX, node.output()).await.expect("it ends").unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("# skipped 0"), "{said}");
    };
    tokio::join!(told(&["lies"]), told(&["composer", "crypto", "keeping", "session"]));
    room.close().await;
}

/// Devices of one account may be a page and a terminal: neither brings back what the other gave up, and neither loses what it does
/// not know.
#[tokio::test]
async fn what_the_page_and_the_command_share_means_the_same_to_both() {
    let Some(dir) = workshop() else { return };
    let identity = |byte| SecretKey::new(&Secret::new([byte; 32]));
    let seal_key = |byte| SealKey::new(Secret::new([byte; 32]));
    let personal = identity(9).personal();
    let mut before = Storage::default();
    before.keys.extend([1, 2, 3, 4].map(|dm| (i64::from(dm), seal_key(dm))));
    before.pairs.extend([(1, "bob".to_owned()), (2, "carol".to_owned())]);
    before.pin("bob", identity(11).public());
    before.pin("carol", identity(12).public());
    before.verified.insert("bob".to_owned());
    let mut terminal = before.clone();
    terminal.forget("bob").unwrap();
    terminal.leave(3);
    terminal.signed_only = SignedOnly { value: true, at: 5 };

    let given = json!({
        "seed": "09".repeat(32), "before": before.seal(&personal), "after": terminal.seal(&personal),
        "lost": "03".repeat(32), "carol": identity(13).public().to_hex(), "key": "05".repeat(32),
    });
    let mut node = Command::new("node");
    node.arg("test/exchange.js").current_dir(dir.path()).kill_on_drop(true);
    let mut node = node.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = node.stdin.take().unwrap();
    stdin.write_all(given.to_string().as_bytes()).await.unwrap();
    drop(stdin);
    let output = soon(node.wait_with_output()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = Storage::open(&personal, String::from_utf8(output.stdout).unwrap().trim()).unwrap();

    assert!(page.is_beyond(&terminal));
    for copy in [&page, &before, &page] {
        assert_eq!(terminal.merge(copy.clone(), None), [""; 0]);
    }
    assert!(!terminal.is_beyond(&page) && !page.is_beyond(&terminal));
    assert_eq!(terminal.pins, BTreeMap::from([("carol".to_owned(), identity(13).public())]));
    assert!(terminal.verified.is_empty());
    assert_eq!(terminal.pairs, BTreeMap::from([(5, "dan".to_owned())]));
    assert_eq!(terminal.unpaired, BTreeSet::from([1, 2]));
    assert_eq!(terminal.keys.keys().copied().collect::<Vec<_>>(), [1, 2, 5]);
    assert_eq!((terminal.number_of(&seal_key(3)), terminal.number_of(&seal_key(4))), (Some(3), Some(4)));
    assert_eq!(terminal.signed_only, SignedOnly { value: false, at: 6 });
    assert_eq!(terminal.setups[&5], Made { by: "dan".to_owned(), signed: false, taken: true });
    let plain = personal.open(&hex::decode(terminal.seal(&personal)).unwrap()).unwrap();
    let plain: Value = serde_json::from_slice(&plain).unwrap();
    assert_eq!(plain["makings"][0]["users"], json!(["alice", "eve"]), "what it knows nothing of");
    assert_eq!(plain["calendar"], json!([1]));
}

#[tokio::test]
async fn the_script_that_is_served_is_made_of_the_sources_beside_it() {
    let Some(dir) = workshop() else { return };
    let output = Command::new("node").args(["build.js", "made"]).current_dir(dir.path()).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for file in ["app.js", "licences.txt"] {
        let (made, served) = (dir.path().join("made").join(file), here("src/chat/dm/web/dist").join(file));
        assert!(
            std::fs::read(made).unwrap() == std::fs::read(served).unwrap(),
            "{file} is not of these sources: npm ci && npm run build in src/chat/dm/web, and commit what it makes"
        );
    }
}

#[test]
fn the_page_needs_nothing_that_its_policy_forbids_or_that_is_elsewhere() {
    for (tag, allowed) in [("<script", "<script src=\"assets/app.js\" defer></script>"), ("<style", "")] {
        for (at, _) in PAGE.match_indices(tag) {
            assert!(!allowed.is_empty() && PAGE[at..].starts_with(allowed), "{tag} inline");
        }
    }
    for attribute in [" style=", " onclick=", " onload=", "javascript:", "http:", "https:"] {
        assert!(!PAGE.contains(attribute), "{attribute}");
    }
    assert!(!STYLE.contains("http") && !STYLE.contains("@import") && !STYLE.contains("url("));
    for file in std::fs::read_dir(here("src/chat/dm/web/src")).unwrap() {
        let path = file.unwrap().path();
        let script = std::fs::read_to_string(&path).unwrap();
        for sink in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "\"style\""] {
            assert!(!script.contains(sink), "{}: {sink}", path.display());
        }
    }
}

#[test]
fn what_the_page_and_the_scripts_need_is_pinned_and_nobody_is_told_where_from() {
    let read = |path| std::fs::read_to_string(here(path)).unwrap();
    let (lock, requirements) = (read("src/chat/dm/web/package-lock.json"), read("tests/dm/requirements.txt"));
    assert!(!lock.contains("resolved") && !requirements.contains("://"));
    assert!(requirements.lines().filter(|line| !line.starts_with('#')).all(|line| line.contains("==")));
    let package: serde_json::Value = serde_json::from_str(&read("src/chat/dm/web/package.json")).unwrap();
    for kind in ["dependencies", "devDependencies"] {
        for (name, version) in package[kind].as_object().unwrap() {
            let version = version.as_str().unwrap();
            assert!(version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'), "{name} {version}");
            assert!(lock.contains(&format!("\"{name}\": \"{version}\"")), "{name} {version} is in the lock");
        }
    }
}

/// A person at a page.
struct Person {
    page: Page,
    name: &'static str,
}

impl Person {
    async fn presses(&self, css: &str) {
        soon(self.page.0.wait().for_element(Locator::Css(css))).await.unwrap().click().await.unwrap();
    }

    /// Presses what has this name for those who do not see it.
    async fn does(&self, label: &str) {
        self.presses(&format!("button[aria-label='{label}']")).await;
    }

    async fn types(&self, css: &str, text: &str) {
        soon(self.page.0.wait().for_element(Locator::Css(css))).await.unwrap().send_keys(text).await.unwrap();
    }

    /// All of them that are open, by the keyboard.
    async fn closes_dialogs(&self) {
        let escapes = async {
            while self.page.count("dialog").await > 0 {
                self.page.0.active_element().await.unwrap().send_keys("\u{e00c}").await.unwrap();
            }
        };
        soon(escapes).await;
    }

    /// Nothing that can be used is without a name, in the page or in the dialog that is open.
    async fn finds_names_on_everything(&self) {
        let nameless = "return [...document.querySelectorAll('button, input, select, textarea, summary, dialog, nav, section, [role=log]')]
            .filter(it => !(it.matches('button, summary') && it.textContent.trim()) && !it.labels?.length)
            .filter(it => !it.getAttribute('aria-label') && !it.getAttribute('aria-labelledby') && !it.querySelector(':scope > h3'))
            .map(it => it.outerHTML)";
        assert_eq!(self.page.evaluate(nameless).await, serde_json::json!([]), "{}", self.name);
    }

    async fn says(&self, text: &str) {
        self.types("#text", text).await;
        self.types("#text", "\u{e007}").await;
    }

    async fn registers(&self, url: &str) -> String {
        self.page.looks(1200, 800, "light").await;
        self.page.0.goto(url).await.unwrap();
        self.types("#new-name", self.name).await;
        self.types("#new-passphrase", "a horse, a battery").await;
        self.presses("#create button[type=submit]").await;
        self.page.has("#words li", 24).await;
        let words = self
            .page
            .evaluate("return [...document.querySelectorAll('#words li')].map(it => it.textContent).join(' ')");
        let words = words.await.as_str().unwrap().to_owned();
        self.presses("#words-done").await;
        self.page.shows("#state", "Connected").await;
        words
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_two_browsers_two_people_write_react_schedule_and_forget() {
    let (Some(one), Some(other)) = tokio::join!(Browser::open(), Browser::open()) else { return };
    let pages = (one.page.clone(), other.page.clone());
    one.tells(async { other.tells(story(pages)).await }).await;
}

async fn story((one, other): (Page, Page)) {
    let data = tempfile::tempdir().unwrap();
    let room = Room::open(data.path()).await;
    let url = room.url();
    let (ann, ben) = (Person { page: one, name: "ann" }, Person { page: other, name: "ben" });
    let (words, _) = tokio::join!(ann.registers(&url), ben.registers(&url));

    // Friends, by request and acceptance.
    ann.presses("#people-open").await;
    ann.types("#friend-name", "ben\u{e007}").await;
    ann.page.shows("#outgoing", "ben").await;
    ben.page.shows("#notices", "ann asks to be your friend").await;
    ben.presses("#people-open").await;
    ben.does("Accept ann").await;
    ben.page.shows("#friends", "ann").await;
    ben.page.has("#notices .notice", 0).await;
    ann.page.shows("#friends", "ben").await;
    ann.finds_names_on_everything().await;
    ann.page.screenshot("dm-web", "people.png").await;
    ann.closes_dialogs().await;
    ben.closes_dialogs().await;

    // A conversation, with nothing but the keyboard where one writes.
    ann.presses("#new-dm").await;
    ann.presses("#choose input").await;
    ann.presses("#new-form button[type=submit]").await;
    ann.page.shows("#title", "ben").await;
    ann.says("Is the mirror <b>clean</b>?").await;
    ben.page.shows("#dms", "Is the mirror <b>clean</b>?").await;
    ben.presses("#dms button").await;
    ben.page.shows("#messages", "Is the mirror <b>clean</b>?").await;
    ben.types("#text", "As clean as").await;
    ann.page.shows("#typing", "ben is typing").await;
    ben.says(" glass.").await;
    ann.page.shows("#messages", "As clean as glass.").await;

    // A reaction, an edit and a pin.
    ben.presses("#messages .message:not(.own) summary").await;
    ben.does("React with 👍").await;
    ann.page.shows("#messages .own .reactions", "👍 1").await;
    ann.presses("#messages .own summary").await;
    ann.page
        .0
        .find(Locator::XPath("//li[contains(@class, 'own')]//button[.='Edit']"))
        .await
        .unwrap()
        .click()
        .await
        .unwrap();
    ann.types("#messages form textarea", " Real").await;
    // What others do to it meanwhile takes nothing away.
    ben.presses("#messages .message:not(.own) summary").await;
    ben.does("React with ✅").await;
    ben.page.shows("#messages .reactions", "✅ 1").await;
    ben.says("go on").await;
    ann.page.shows("#messages", "go on").await;
    ann.types("#messages form textarea", "ly?").await;
    ann.presses("#messages form button[type=submit]").await;
    ben.page.shows("#messages", "clean</b>? Really?").await;
    ann.page.shows("#messages .own .reactions", "✅ 1").await;
    ann.presses("#messages .own summary").await;
    ann.page
        .0
        .find(Locator::XPath("//li[contains(@class, 'own')]//button[.='Pin']"))
        .await
        .unwrap()
        .click()
        .await
        .unwrap();
    ben.page.shows("#messages .notes", "pinned").await;

    // A message that is sent later and then deletes itself; and one that is taken back.
    ann.presses("#timing").await;
    ann.types("#later", "2").await;
    ann.types("#gone", "3").await;
    ann.says("later, and not for long").await;
    ann.page.has("#when[hidden]", 1).await;
    ann.presses("#timing").await;
    ann.types("#later", "9").await;
    ann.says("never").await;
    ann.presses("#details-open").await;
    ann.page.shows("#schedules", "later, and not for long").await;
    ann.page.shows("#pins", "Really?").await;
    ann.finds_names_on_everything().await;
    ann.page.screenshot("dm-web", "details.png").await;
    ann.does("Cancel: never").await;
    ben.page.shows("#messages", "later, and not for long").await;
    ben.page.shows("#messages", "deletes itself in").await;
    ann.page.shows("#schedules", "None.").await;
    ann.closes_dialogs().await;
    ben.page.screenshot("dm-web", "conversation.png").await;
    for page in [&ann.page, &ben.page] {
        soon(async { while page.text("#messages").await.contains("not for long") {} }).await;
    }

    // Both see the same digits.
    let mut digits = Vec::new();
    for (person, with) in [(&ann, "ben"), (&ben, "ann")] {
        person.presses("#details-open").await;
        person.does(&format!("Compare keys with {with}")).await;
        person.page.has("#fingerprint", 1).await;
        digits.push(person.page.text("#fingerprint").await);
        person.finds_names_on_everything().await;
        person.presses("#same-key").await;
        person.page.shows("#compared", "You have compared it").await;
        person.closes_dialogs().await;
    }
    assert!(digits[0] == digits[1] && digits[0].len() == 35, "{digits:?}");
    ann.page.shows("#subtitle", "keys compared").await;
    ann.presses("#profile-open").await;
    ann.page.has("#profile", 1).await;
    ann.finds_names_on_everything().await;
    ann.closes_dialogs().await;

    // On a phone, in the dark; nothing without a name.
    for (name, width, height, scheme) in [
        ("light.png", 1200, 800, "light"),
        ("dark.png", 1200, 800, "dark"),
        ("phone-light.png", 390, 800, "light"),
        ("phone-dark.png", 390, 800, "dark"),
    ] {
        ann.page.looks(width, height, scheme).await;
        let overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
        assert_eq!(ann.page.evaluate(overflow).await, 0, "{name}: nothing is to be scrolled for sideways");
        ann.page.screenshot("dm-web", name).await;
    }
    ann.page.looks(1200, 800, "light").await;
    ann.finds_names_on_everything().await;

    // Locked, and opened by the passphrase; on another device, by the words.
    ann.presses("#lock").await;
    ann.types("#unlock-passphrase", "another horse\u{e007}").await;
    ann.page.shows("#unlock .error", "not the passphrase").await;
    ann.types("#unlock-passphrase", "\u{e009}a\u{e000}a horse, a battery\u{e007}").await;
    ann.page.shows("#dms", "go on").await;
    ben.presses("#lock").await;
    ben.types("#old-name", "ann").await;
    ben.types("#old-words", &words).await;
    ben.presses("#old-keep").await;
    ben.presses("#restore button[type=submit]").await;
    ben.page.shows("#dms", "go on").await;
    for page in [&ann.page, &ben.page] {
        assert_eq!(page.complaints().await, [""; 0]);
    }
    room.close().await;
}
