//! A real browser, for tests of pages: needs Chromium and its driver (Debian: `apt-get install --no-install-recommends chromium
//! chromium-driver`). Where they are missing the tests say so and are skipped, unless `HELIOSTAT_BROWSER=required`, as `.ci/run`
//! sets it.
#![allow(dead_code, unreachable_pub, missing_docs, missing_debug_implementations, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "a test may panic")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use fantoccini::wd::{Capabilities, WebDriverCompatibleCommand};
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};

use crate::common::{PATIENCE, soon};

const INSTALL: &str = "the page was not tested: it needs Chromium and its driver \
                       (Debian: apt-get install --no-install-recommends chromium chromium-driver)";

/// A browser without a window, and its driver. Both end with the test.
pub struct Browser {
    pub page: Page,
    driver: Child,
}

/// What is open in it.
#[derive(Clone)]
pub struct Page(pub Client);

impl Browser {
    /// `None` when there is none and need not be one.
    pub async fn open() -> Option<Self> {
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
    pub async fn text(&self, css: &str) -> String {
        let Ok(element) = self.0.find(Locator::Css(css)).await else { return String::new() };
        // What is replaced each second may be gone between finding and asking.
        element.text().await.unwrap_or_default()
    }

    pub async fn count(&self, css: &str) -> usize {
        self.0.find_all(Locator::Css(css)).await.unwrap().len()
    }

    /// Waits until an element says this.
    pub async fn shows(&self, css: &str, expected: &str) {
        let mut last = String::new();
        let seen = tokio::time::timeout(PATIENCE, async {
            while !last.contains(expected) {
                last = self.text(css).await;
            }
        });
        if seen.await.is_err() {
            panic!("{css} says {last:?} and never {expected:?}; {:?}", self.complaints().await);
        }
    }

    /// Waits until there are so many.
    pub async fn has(&self, css: &str, expected: usize) {
        soon(async { while self.count(css).await != expected {} }).await;
    }

    pub async fn devtools(&self, command: &str, parameters: Value) {
        self.0.issue_cmd(Devtools("goog/cdp/execute", json!({ "cmd": command, "params": parameters }))).await.unwrap();
    }

    pub async fn looks(&self, width: u32, height: u32, scheme: &str) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.devtools("Emulation.setDeviceMetricsOverride", size).await;
        let scheme = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", scheme).await;
    }

    /// To `target/`, into this folder.
    pub async fn screenshot(&self, folder: &str, name: &str) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target").join(folder);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(name), self.0.screenshot().await.unwrap()).unwrap();
    }

    pub async fn evaluate(&self, script: &str) -> Value {
        self.0.execute(script, vec![]).await.unwrap()
    }

    /// What the browser has to say against the page: errors, and what the content security policy forbade.
    pub async fn complaints(&self) -> Vec<String> {
        let log = self.0.issue_cmd(Devtools("se/log", json!({ "type": "browser" }))).await.unwrap();
        let entries = log.as_array().unwrap().iter();
        entries.filter(|entry| entry["level"] == "SEVERE").map(|entry| entry["message"].to_string()).collect()
    }
}

impl Browser {
    /// Also when the story ended badly: a driver that is killed leaves its browser behind.
    pub async fn tells(self, story: impl Future<Output = ()> + Send + 'static) {
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
