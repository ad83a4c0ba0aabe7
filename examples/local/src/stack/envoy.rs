//! Envoy as a child process.

use std::{
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tokio::process::Command;

use super::{Output, Process, START_LIMIT, http_client, wait_for};

/// Longer than an access-log flush interval and a normal request take.
const DRAIN: Duration = Duration::from_millis(500);
/// A SIGTERM ends Envoy within milliseconds.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A running Envoy.
#[derive(Debug)]
pub struct Envoy {
    binary: PathBuf,
    bootstrap: PathBuf,
    address_file: PathBuf,
    concurrency: u32,
    output: Option<Output>,
    process: Process,
    bound: Bound,
    http: reqwest::Client,
}

/// Where it listens, as URLs.
#[derive(Debug)]
struct Bound {
    admin: String,
    edge: String,
}

impl Envoy {
    /// Where `scripts/fetch-envoy` puts the reference version of `envoy/versions` below `root`, the
    /// folder of the whole repository; or the version named.
    ///
    /// # Errors
    /// When it is not there.
    pub fn fetched(root: &Path, version: Option<&str>) -> Result<PathBuf> {
        let list = root.join("envoy/versions");
        let listed = std::fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
        let mut versions = listed.lines().filter_map(|line| line.split('#').next()?.split_whitespace().next());
        let wanted = version.or_else(|| versions.next()).context("envoy/versions is empty")?;
        let binary = root.join(".envoy").join(wanted).join("envoy");
        if !binary.is_file() {
            bail!("Envoy {wanted} is not at {}: run `make envoy`", binary.display());
        }
        binary.canonicalize().with_context(|| format!("{} is out of reach", binary.display()))
    }

    /// Writes `bootstrap` into `dir` and runs Envoy with it, and waits until it is live and listens. Port
    /// 0 is fine for both addresses; many can run side by side, each with a `dir` of its own. `output`
    /// gets its lines.
    ///
    /// # Errors
    /// When it does not start, ends early or is not live in time; its last lines are in the message.
    pub async fn start(
        binary: &Path,
        bootstrap: &str,
        dir: &Path,
        concurrency: u32,
        output: Option<Output>,
    ) -> Result<Self> {
        let file = dir.join("envoy.yaml");
        std::fs::write(&file, bootstrap).with_context(|| format!("cannot write {}", file.display()))?;
        let address_file = dir.join("envoy-admin-address");
        let http = http_client()?;
        let command = command(binary, &file, &address_file, concurrency);
        let (process, bound) = launch(command, &address_file, output.clone(), &http).await?;
        Ok(Self { binary: binary.to_owned(), bootstrap: file, address_file, concurrency, output, process, bound, http })
    }

    /// Starts it again with the same bootstrap, after [`Self::stop`] or [`Self::kill_hard`]. Where that
    /// says port 0 the ports are new ones.
    ///
    /// # Errors
    /// As [`Self::start`]; also when it still runs.
    pub async fn restart(&mut self) -> Result<()> {
        if self.process.exited().is_none() {
            bail!("Envoy is started again while it runs");
        }
        let command = command(&self.binary, &self.bootstrap, &self.address_file, self.concurrency);
        (self.process, self.bound) = launch(command, &self.address_file, self.output.clone(), &self.http).await?;
        Ok(())
    }

    /// `http://HOST:PORT` where clients go.
    #[must_use]
    pub fn edge_url(&self) -> &str {
        &self.bound.edge
    }

    /// `http://HOST:PORT` of Envoy's own pages.
    #[must_use]
    pub fn admin_url(&self) -> &str {
        &self.bound.admin
    }

    /// One of Envoy's counters or gauges; `None` when there is no such stat or no answer.
    pub async fn stat(&self, name: &str) -> Option<u64> {
        let url = format!("{}/stats?filter=^{}$", self.bound.admin, name.replace('.', "\\."));
        let text = self.http.get(url).send().await.ok()?.text().await.ok()?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))?;
        value.trim().parse().ok()
    }

    /// Waits until Envoy takes Tollgate for healthy, both for Check and for the access log.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn wait_for_tollgate(&self, limit: Duration) -> Result<()> {
        for cluster in ["tollgate_authz", "tollgate_als"] {
            let stat = format!("cluster.{cluster}.membership_healthy");
            wait_for(format!("Envoy's cluster {cluster} to be healthy"), limit, async || {
                self.stat(&stat).await.filter(|healthy| *healthy > 0)
            })
            .await
            .map_err(|error| self.process.explain(&error))?;
        }
        Ok(())
    }

    /// The process of its last start.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// What it has printed since its last start.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.process.lines()
    }

    /// An orderly stop: takes no new connections, has a moment for requests and log entries under way,
    /// then SIGTERM.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub async fn stop(&self) -> Result<ExitStatus> {
        if self.process.exited().is_none() {
            // An Envoy that does not answer any more has nothing to drain.
            let _ = self.http.post(format!("{}/drain_listeners?graceful", self.bound.admin)).send().await;
            tokio::time::sleep(DRAIN).await;
        }
        self.process.terminate(STOP_LIMIT).await
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// When it is not gone in time.
    pub async fn kill_hard(&self) -> Result<ExitStatus> {
        self.process.kill_hard().await
    }
}

fn command(binary: &Path, bootstrap: &Path, address_file: &Path, concurrency: u32) -> Command {
    let mut command = Command::new(binary);
    command
        .arg("-c")
        .arg(bootstrap)
        .arg("--admin-address-path")
        .arg(address_file)
        .args(["--concurrency", &concurrency.to_string()])
        .args(["--disable-hot-restart", "--log-level", "warning", "--log-format", "%l %n: %v"]);
    command
}

async fn launch(
    command: Command,
    address_file: &Path,
    output: Option<Output>,
    http: &reqwest::Client,
) -> Result<(Process, Bound)> {
    // An older one would point to a port that is no longer ours.
    match std::fs::remove_file(address_file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", address_file.display()));
        }
        _ => {}
    }
    let process = Process::start("envoy", command, output)?;
    let ready = wait_for("Envoy to be live and to listen", START_LIMIT, async || {
        if let Some(status) = process.exited() {
            return Some(Err(status));
        }
        bound(address_file, http).await.map(Ok)
    });
    match ready.await.map_err(|error| process.explain(&error))? {
        Ok(bound) => Ok((process, bound)),
        Err(status) => bail!("envoy ended before it was ready, {status}; {}", process.last_lines()),
    }
}

/// Where Envoy listens, once it is live.
async fn bound(address_file: &Path, http: &reqwest::Client) -> Option<Bound> {
    let address = std::fs::read_to_string(address_file).ok()?;
    let admin = format!("http://{}", address.trim());
    let state = http.get(format!("{admin}/ready")).send().await.ok()?.text().await.ok()?;
    if state.trim() != "LIVE" {
        return None;
    }
    let listeners = http.get(format!("{admin}/listeners?format=json")).send().await.ok()?.bytes().await.ok()?;
    let listeners: Value = serde_json::from_slice(&listeners).ok()?;
    let edge = listeners["listener_statuses"].as_array()?.iter().find(|listener| listener["name"] == "edge")?;
    let address = &edge["local_address"]["socket_address"];
    let port = address["port_value"].as_u64().filter(|port| *port != 0)?;
    let host = match address["address"].as_str()? {
        "0.0.0.0" | "::" => "127.0.0.1".to_owned(),
        host if host.contains(':') => format!("[{host}]"),
        host => host.to_owned(),
    };
    Some(Bound { admin, edge: format!("http://{host}:{port}") })
}
