//! The dashboard in a real browser: the real binary, real devices, and what a person sees then.
//!
//! Needs Chromium and its driver (Debian: `apt-get install --no-install-recommends chromium chromium-driver`). Where they are
//! missing the tests say so and are skipped, unless `HELIOSTAT_BROWSER=required`, as `.ci/run` sets it. Screenshots go to
//! `target/dashboard/`.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test may panic"
)]

#[path = "common/binary.rs"]
mod binary;
mod common;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use fantoccini::wd::{Capabilities, WebDriverCompatibleCommand};
use fantoccini::{Client, ClientBuilder, Locator};
use heliostat::wire::d2m::ReflectFlags;
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};

use self::binary::Binary;
use self::common::{Family, soon};

const INSTALL: &str = "the dashboard was not tested: it needs Chromium and its driver \
                       (Debian: apt-get install --no-install-recommends chromium chromium-driver)";

/// A browser without a window, and its driver. Both end with the test.
struct Browser {
    page: Page,
    driver: Child,
}

/// What is open in it.
#[derive(Clone)]
struct Page(Client);

impl Browser {
    /// `None` when there is none and need not be one.
    async fn open() -> Option<Self> {
        let required = std::env::var_os("HELIOSTAT_BROWSER").is_some_and(|value| value == "required");
        let driver =
            Command::new("chromedriver").args(["--port=0"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let Ok(mut driver) = driver else {
            assert!(!required, "{INSTALL}");
            eprintln!("{INSTALL}");
            return None;
        };
        let mut said = BufReader::new(driver.stdout.take().unwrap()).lines().map_while(Result::ok);
        let port = said.by_ref().find_map(|line| {
            let port = line.split("started successfully on port ").nth(1)?;
            Some(port.trim_end_matches('.').to_owned())
        });
        std::thread::spawn(move || said.count());
        let port = port.unwrap_or_else(|| panic!("chromedriver ended: {:?}", driver.wait()));
        let mut capabilities = Capabilities::new();
        // No sandbox: CI runs as root in a container, where Chromium refuses to make one; it opens nothing but this page.
        let arguments =
            ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"];
        capabilities.insert("goog:chromeOptions".into(), json!({ "args": arguments }));
        capabilities.insert("goog:loggingPrefs".into(), json!({ "browser": "ALL" }));
        let mut builder = ClientBuilder::new(HttpConnector::new());
        let client = builder.capabilities(capabilities).connect(&format!("http://127.0.0.1:{port}")).await.unwrap();
        Some(Self { page: Page(client), driver })
    }
}

impl Page {
    async fn text(&self, css: &str) -> String {
        let Ok(element) = self.0.find(Locator::Css(css)).await else { return String::new() };
        // What is replaced each second may be gone between finding and asking.
        element.text().await.unwrap_or_default()
    }

    async fn count(&self, css: &str) -> usize {
        self.0.find_all(Locator::Css(css)).await.unwrap().len()
    }

    /// Waits until an element says this.
    async fn shows(&self, css: &str, expected: &str) {
        let mut last = String::new();
        let seen = tokio::time::timeout(common::PATIENCE, async {
            while !last.contains(expected) {
                last = self.text(css).await;
            }
        });
        if seen.await.is_err() {
            panic!("{css} says {last:?} and never {expected:?}; {:?}", self.complaints().await);
        }
    }

    /// Waits until there are so many.
    async fn has(&self, css: &str, expected: usize) {
        soon(async { while self.count(css).await != expected {} }).await;
    }

    async fn devtools(&self, command: &str, parameters: Value) {
        self.0.issue_cmd(Devtools("goog/cdp/execute", json!({ "cmd": command, "params": parameters }))).await.unwrap();
    }

    async fn looks(&self, width: u32, height: u32, scheme: &str) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.devtools("Emulation.setDeviceMetricsOverride", size).await;
        let scheme = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", scheme).await;
    }

    async fn screenshot(&self, name: &str) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/dashboard");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(name), self.0.screenshot().await.unwrap()).unwrap();
    }

    async fn evaluate(&self, script: &str) -> Value {
        self.0.execute(script, vec![]).await.unwrap()
    }

    /// With nothing but keys.
    async fn presses_to_pause_and_resume(&self) {
        self.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)").await;
        for (pressed, label) in [("true", "Resume"), ("false", "Pause")] {
            let button = self.0.find(Locator::Css("#pause")).await.unwrap();
            // By the Tab key from the top of the page: past the link that skips what comes before the numbers.
            let mut keys = 0;
            while self.evaluate("return document.activeElement.id").await != "pause" {
                let active = self.0.active_element().await.unwrap();
                active.send_keys("\u{e004}").await.unwrap();
                keys += 1;
                assert!(keys < 10, "the button is reached by the keyboard");
            }
            button.send_keys(" ").await.unwrap();
            assert_eq!(button.attr("aria-pressed").await.unwrap().as_deref(), Some(pressed));
            assert_eq!(button.text().await.unwrap(), label);
        }
    }

    /// What the browser has to say against the page: errors, and what the content security policy forbade.
    async fn complaints(&self) -> Vec<String> {
        let log = self.0.issue_cmd(Devtools("se/log", json!({ "type": "browser" }))).await.unwrap();
        let entries = log.as_array().unwrap().iter();
        entries.filter(|entry| entry["level"] == "SEVERE").map(|entry| entry["message"].to_string()).collect()
    }
}

impl Browser {
    /// Also when the story ended badly: a driver that is killed leaves its browser behind.
    async fn tells(self, story: impl Future<Output = ()> + Send + 'static) {
        let outcome = tokio::spawn(story).await;
        let _gone = self.page.0.clone().close().await;
        outcome.unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _gone = self.driver.kill();
        let _gone = self.driver.wait();
    }
}

/// A command that only Chromium knows.
#[derive(Debug)]
struct Devtools(&'static str, Value);

impl WebDriverCompatibleCommand for Devtools {
    fn endpoint(&self, base: &url::Url, session: Option<&str>) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.0))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(self.1.to_string()))
    }
}

/// The numbers of the doors, the devices of two groups, and how the page says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_sees_who_is_connected_who_leads_what_waits_and_that_it_drains() {
    let Some(browser) = Browser::open().await else { return };
    let page = browser.page.clone();
    browser.tells(story(page)).await;
}

async fn story(page: Page) {
    let data = tempfile::tempdir().unwrap();
    let mut server = Binary::start(&data.path().join("data"));
    page.looks(1200, 1000, "light").await;
    page.0.goto(server.admin()).await.unwrap();
    page.shows("#state", "Ready").await;
    page.shows("#connections", "0").await;
    page.shows("#groups-none", "No group is awake").await;
    page.shows("#certificate-state", "No TLS").await;
    page.shows("#durability", "fsync").await;
    page.shows("#version", env!("CARGO_PKG_VERSION")).await;

    // Three devices, one of them away, and a group whose leader holds the lock.
    let family = Family::new(server.mediator());
    let (mut phone, mut tablet) = (family.joins(1).await, family.joins(2).await);
    drop(family.joins(3).await);
    let other = Family::new(server.mediator());
    let (mut desk, watch) = (other.joins(1).await, other.joins(2).await);
    soon(desk.begin(b"", 90)).await.unwrap();
    soon(desk.reflect_and_wait(b"staged", ReflectFlags::default())).await.unwrap();
    for _ in 0..5 {
        soon(phone.reflect_and_wait(b"to the others", ReflectFlags::default())).await.unwrap();
    }
    page.shows("#connections", "4").await;
    page.shows("#groups-awake", "2").await;
    page.has(".group", 2).await;
    page.has(".device", 5).await;
    page.has(".device[data-leader=true]", 2).await;
    page.has(".device[data-connected=false]", 1).await;
    page.shows(".device[data-connected=false]", "away · 5 waiting").await;
    page.shows(".device[data-leader=true]", "leads, ").await;
    page.shows("#deepest", "5").await;
    page.shows(".lock", "Lock held by").await;
    page.shows(".lock", "left, 1 message staged").await;
    page.shows("#locked", "1 lock held").await;
    page.has(".lock meter", 1).await;
    page.has("#chart-connections polyline", 1).await;

    // Nobody's id is on the page.
    let everything = page.text("body").await;
    let id = hex::encode(family.key.device_group_id().as_bytes());
    assert!(!everything.contains(&id[..12]) && !everything.contains("0000000000000001"), "{everything}");

    // An operator ends a connection elsewhere; the page counts it under its code, and in words.
    let kick = ["admin", "kick", &id, "2", "--admin", server.admin()];
    assert!(Command::new(env!("CARGO_BIN_EXE_heliostat")).args(kick).status().unwrap().success());
    soon(tablet.wait_ended()).await;
    page.shows("#closed tr[data-code='1001']", "the mediator is shutting down 1").await;
    page.shows("#connections", "3").await;

    // On a phone, in the dark, by the keyboard.
    let mut grounds = Vec::new();
    for (name, width, height, scheme) in [
        ("light.png", 1200, 1250, "light"),
        ("dark.png", 1200, 1250, "dark"),
        ("phone-light.png", 390, 2600, "light"),
        ("phone-dark.png", 390, 2600, "dark"),
    ] {
        page.looks(width, height, scheme).await;
        let overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
        assert_eq!(page.evaluate(overflow).await, 0, "{name}: nothing is cut off or to be scrolled for sideways");
        grounds.push(page.evaluate("return getComputedStyle(document.body).backgroundColor").await);
        page.screenshot(name).await;
    }
    assert!(grounds[0] == grounds[2] && grounds[1] == grounds[3] && grounds[0] != grounds[1], "{grounds:?}");
    page.looks(1200, 1000, "light").await;
    page.presses_to_pause_and_resume().await;
    let nameless = "return [...document.querySelectorAll('svg[role=img], meter, button, section, ul.devices')]
        .filter(it => !(it.textContent.trim() && it.matches('button')) && !it.getAttribute('aria-label')
            && !it.getAttribute('aria-labelledby')).length";
    assert_eq!(page.evaluate(nameless).await, 0, "everything that is drawn has a name");
    assert_eq!(page.complaints().await, [""; 0]);

    // Whoever does not answer the farewell keeps the drain going for a while.
    let _silent = family.opens().await;
    let drain = ["admin", "drain", "--admin", server.admin()];
    assert!(Command::new(env!("CARGO_BIN_EXE_heliostat")).args(drain).status().unwrap().success());
    page.shows("#state", "Draining").await;
    assert!(soon(server.ended()).await.success());
    page.shows("#state", "No answer from the server").await;
    drop((phone, desk, watch));
}
