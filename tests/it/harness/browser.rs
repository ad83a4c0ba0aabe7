//! A real headless Chromium, driven by `WebDriver` and, for what that lacks, by the protocol of its developer tools.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::process::Command;
use tollgate_local::stack::{Process, http_client, wait_for};

use super::SOON;

/// What a page is looked at with.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    pub width: u32,
    pub height: u32,
    pub dark: bool,
}

/// A browser with one page.
pub struct Browser {
    /// Ended after the session, which ends the browser.
    _driver: Process,
    http: reqwest::Client,
    address: String,
    session: String,
}

impl Browser {
    /// `None`, said on standard error, where there is no Chromium. In CI there must be one.
    pub async fn start() -> Option<Self> {
        if !["chromium", "chromedriver"].iter().all(|name| is_installed(name)) {
            let said = "there is no chromium or no chromedriver: `scripts/install-test-tools` installs both";
            assert!(std::env::var_os("CI").is_none(), "{said}");
            eprintln!("SKIPPED: {said}");
            return None;
        }
        let mut command = Command::new("chromedriver");
        command.args(["--port=0", "--log-level=SEVERE"]);
        let driver = Process::start("chromedriver", command, None).expect("chromedriver starts");
        let port = async || {
            let told = driver.lines().into_iter().find(|line| line.contains("started successfully on port"));
            told.map(|line| line.chars().filter(char::is_ascii_digit).collect::<String>())
        };
        let port = wait_for("chromedriver's port", SOON, port).await.expect("it listens");
        let mut browser = Self {
            _driver: driver,
            http: http_client().expect("a client"),
            address: format!("127.0.0.1:{port}"),
            session: String::new(),
        };
        // Where it runs as root there is no sandbox to be had.
        let flags = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"];
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": flags},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }}});
        let session = browser.call("/session", &capabilities).await;
        session["sessionId"].as_str().expect("a session").clone_into(&mut browser.session);
        Some(browser)
    }

    async fn call(&self, path: &str, body: &Value) -> Value {
        let url = format!("http://{}{path}", self.address);
        let request = self.http.post(url).timeout(Duration::from_mins(1)).json(body);
        let answer = request.send().await.expect("chromedriver answers");
        let status = answer.status();
        let body: Value = answer.json().await.expect("JSON");
        assert!(status.is_success(), "{path}: {body}");
        body["value"].clone()
    }

    async fn of_session(&self, path: &str, body: Value) -> Value {
        self.call(&format!("/session/{}{path}", self.session), &body).await
    }

    /// A command of the developer tools.
    async fn tool(&self, command: &str, parameters: Value) -> Value {
        self.of_session("/goog/cdp/execute", json!({"cmd": command, "params": parameters})).await
    }

    /// Opens a page as in such a window.
    pub async fn open(&self, url: &str, window: Window) {
        let Window { width, height, dark } = window;
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.tool("Emulation.setDeviceMetricsOverride", metrics).await;
        let scheme = if dark { "dark" } else { "light" };
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.tool("Emulation.setEmulatedMedia", features).await;
        self.of_session("/url", json!({"url": url})).await;
    }

    /// What a function body returns on the page.
    pub async fn run(&self, script: &str) -> Value {
        self.of_session("/execute/sync", json!({"script": script, "args": []})).await
    }

    /// What the browser had to say since it was last asked: errors, and what a policy forbade.
    pub async fn complaints(&self) -> Vec<String> {
        let log = self.of_session("/se/log", json!({"type": "browser"})).await;
        log.as_array().into_iter().flatten().map(Value::to_string).collect()
    }

    /// What was asked of the network since this was last asked.
    pub async fn requests(&self) -> Vec<String> {
        let log = self.of_session("/se/log", json!({"type": "performance"})).await;
        let events = log.as_array().into_iter().flatten();
        let messages = events.filter_map(|event| serde_json::from_str::<Value>(event["message"].as_str()?).ok());
        let sent = messages.filter(|event| event["message"]["method"] == "Network.requestWillBeSent");
        sent.filter_map(|event| Some(event["message"]["params"]["request"]["url"].as_str()?.to_owned())).collect()
    }

    /// Writes a picture of the whole page, for people.
    pub async fn picture(&self, name: &str) -> PathBuf {
        let size = self.tool("Page.getLayoutMetrics", json!({})).await["cssContentSize"].clone();
        let clip = json!({"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1});
        let taken = json!({"format": "png", "captureBeyondViewport": true, "clip": clip});
        let picture = self.tool("Page.captureScreenshot", taken).await;
        let picture = STANDARD.decode(picture["data"].as_str().expect("a picture")).expect("base64");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("console");
        std::fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join(format!("{name}.png"));
        std::fs::write(&path, picture).expect("written");
        path
    }
}

impl Drop for Browser {
    /// Ends the session, also when the test has failed: with it the browser ends, which is no child of the test's.
    fn drop(&mut self) {
        if self.session.is_empty() {
            return;
        }
        let Ok(mut stream) = TcpStream::connect(&self.address) else { return };
        let _ = stream.set_read_timeout(Some(SOON));
        let (session, host) = (&self.session, &self.address);
        let _ = write!(stream, "DELETE /session/{session} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        // Answered when the browser is gone.
        let _ = stream.read(&mut [0; 1024]);
    }
}

fn is_installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}
