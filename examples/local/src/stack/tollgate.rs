//! `tollgate serve` as a child process.

use std::{ffi::OsStr, net::SocketAddr, path::Path, process::ExitStatus, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tokio::process::Command;

use super::{Node, Output, Process, START_LIMIT, http_client, wait_for};

/// An orderly stop takes about three seconds by design; its own deadline ends it after fifteen more.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// Variables that must not leak into a child: its own settings, and proxies, as everything is local.
const FOREIGN: [&str; 8] =
    ["TOLLGATE_", "LUM_", "LUMID_", "RUNMESH_", "FLOWMESH_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];

/// A running Tollgate.
#[derive(Debug)]
pub struct Tollgate {
    /// What runs it, and its path.
    program: Vec<String>,
    settings: Vec<(String, String)>,
    output: Option<Output>,
    process: Process,
    bound: Bound,
    http: reqwest::Client,
}

/// Where it listens.
#[derive(Debug)]
struct Bound {
    grpc: String,
    admin: SocketAddr,
}

impl Tollgate {
    /// Runs `binary` with these environment variables and none of Tollgate's that this process has, and
    /// waits until it is ready. It logs JSON unless the settings say otherwise; only then can a port 0
    /// be found out. `output` gets its lines.
    ///
    /// # Errors
    /// When it does not start, ends early or is not ready in time; its last lines are in the message.
    pub async fn start(binary: &Path, settings: &[(&str, String)], output: Option<Output>) -> Result<Self> {
        Self::start_on(None, binary, settings, output).await
    }

    /// As [`Self::start`], on another machine of the network.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_on(
        node: Option<&Node>,
        binary: &Path,
        settings: &[(&str, String)],
        output: Option<Output>,
    ) -> Result<Self> {
        let mut program: Vec<String> = node.map(Node::entering).into_iter().flatten().collect();
        program.push(binary.to_str().with_context(|| format!("{} is no text", binary.display()))?.to_owned());
        let mut settings: Vec<_> = settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        if !settings.iter().any(|(name, _)| name == "TOLLGATE_LOG_FORMAT") {
            settings.push(("TOLLGATE_LOG_FORMAT".to_owned(), "json".to_owned()));
        }
        let http = http_client()?;
        let (process, bound) = launch(&program, &settings, output.clone(), &http).await?;
        Ok(Self { program, settings, output, process, bound, http })
    }

    /// Starts it again, with the same settings, after [`Self::kill_hard`] or [`Self::terminate`]. It gets
    /// the addresses that it had, also where the settings say port 0.
    ///
    /// # Errors
    /// As [`Self::start`]; also when it still runs.
    pub async fn restart(&mut self) -> Result<()> {
        if self.process.exited().is_none() {
            bail!("Tollgate is started again while it runs");
        }
        let mut settings = self.settings.clone();
        for (name, value) in &mut settings {
            match name.as_str() {
                "TOLLGATE_GRPC_LISTEN" => value.clone_from(&self.bound.grpc),
                "TOLLGATE_ADMIN_LISTEN" => *value = self.bound.admin.to_string(),
                _ => {}
            }
        }
        let (process, bound) = launch(&self.program, &settings, self.output.clone(), &self.http).await?;
        (self.process, self.bound) = (process, bound);
        Ok(())
    }

    /// Changes a setting, as of the next [`Self::restart`].
    pub fn set(&mut self, name: &str, value: &str) {
        if name == "TOLLGATE_GRPC_LISTEN" {
            value.clone_into(&mut self.bound.grpc);
        }
        self.settings.retain(|(known, _)| known != name);
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    /// The gRPC address as bound: `host:port` or `unix:/path`; fit for `envoy-config --tollgate`.
    #[must_use]
    pub fn grpc(&self) -> &str {
        &self.bound.grpc
    }

    /// `http://HOST:PORT` of health and metrics.
    #[must_use]
    pub fn admin_url(&self) -> String {
        format!("http://{}", self.bound.admin)
    }

    /// The bootstrap for an Envoy in front of `upstream` that asks this Tollgate. `listen` and `admin`
    /// may have port 0.
    ///
    /// # Errors
    /// When `tollgate envoy-config` refuses.
    pub async fn envoy_config(&self, listen: &str, admin: &str, upstream: &str) -> Result<String> {
        let binary = Path::new(self.program.last().context("Tollgate has no program")?);
        envoy_config(binary, listen, admin, upstream, &[self.grpc()]).await
    }

    /// The sum over all labels of a metric, or one series of it when `name` has its labels as `/metrics` writes them;
    /// `None` when there is no such metric or no answer.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        metric(&self.http, &self.admin_url(), name).await
    }

    /// Whether `/readyz` says so.
    pub async fn is_ready(&self) -> bool {
        ready(&self.http, self.bound.admin).await
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

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// When it is not gone in time.
    pub async fn kill_hard(&self) -> Result<ExitStatus> {
        self.process.kill_hard().await
    }

    /// An orderly stop: SIGTERM, and SIGKILL when it takes too long.
    ///
    /// # Errors
    /// When even that does not end it.
    pub async fn terminate(&self) -> Result<ExitStatus> {
        self.process.terminate(STOP_LIMIT).await
    }
}

/// [`Tollgate::metric`] of whichever Tollgate has its admin page at `admin`, an `http://HOST:PORT`.
pub async fn metric(http: &reqwest::Client, admin: &str, name: &str) -> Option<f64> {
    let answer = http.get(format!("{admin}/metrics")).send().await.ok()?;
    let text = answer.error_for_status().ok()?.text().await.ok()?;
    let mut sum = None;
    for line in text.lines() {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        if series == name || series.split('{').next() == Some(name) {
            sum = Some(sum.unwrap_or(0.0) + value.parse::<f64>().ok()?);
        }
    }
    sum
}

/// What `tollgate envoy-config` prints.
///
/// # Errors
/// When it refuses, with what it says.
pub async fn envoy_config(
    binary: &Path,
    listen: &str,
    admin: &str,
    upstream: &str,
    tollgates: &[&str],
) -> Result<String> {
    let printed = command(binary)
        .args(["envoy-config", "--listen", listen, "--admin", admin, "--upstream", upstream])
        .args(tollgates.iter().flat_map(|tollgate| ["--tollgate", tollgate]))
        .output()
        .await
        .with_context(|| format!("cannot run {} envoy-config", binary.display()))?;
    if !printed.status.success() {
        let said = String::from_utf8_lossy(&printed.stderr);
        bail!("{} envoy-config failed, {}: {}", binary.display(), printed.status, said.trim_end());
    }
    String::from_utf8(printed.stdout).context("the bootstrap is not text")
}

fn command(binary: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        let upper = name.to_string_lossy().to_ascii_uppercase();
        if FOREIGN.iter().any(|foreign| upper.starts_with(foreign)) {
            command.env_remove(name);
        }
    }
    command
}

async fn launch(
    program: &[String],
    settings: &[(String, String)],
    output: Option<Output>,
    http: &reqwest::Client,
) -> Result<(Process, Bound)> {
    let setting = |wanted: &str| settings.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
    let (first, more) = program.split_first().context("nothing to run")?;
    let mut command = command(first);
    command.args(more).arg("serve").envs(settings.iter().cloned());
    let process = Process::start("tollgate", command, output)?;
    let bound = if setting("TOLLGATE_LOG_FORMAT") == Some("json") {
        let line = wait_for("Tollgate to say that it serves", START_LIMIT, async || {
            if let Some(status) = process.exited() {
                return Some(Err(status));
            }
            process.lines().iter().find_map(|line| serving(line)).map(Ok)
        });
        match line.await.map_err(|error| process.explain(&error))? {
            Ok(bound) => bound,
            Err(status) => bail!("tollgate ended at once, {status}; {}", process.last_lines()),
        }
    } else {
        let admin = setting("TOLLGATE_ADMIN_LISTEN").unwrap_or("127.0.0.1:9090");
        Bound {
            grpc: setting("TOLLGATE_GRPC_LISTEN").unwrap_or("127.0.0.1:9001").to_owned(),
            admin: admin.parse().with_context(|| format!("TOLLGATE_ADMIN_LISTEN: {admin} is no address"))?,
        }
    };
    let url = format!("http://{}/readyz", bound.admin);
    let ready = wait_for(format!("200 of Tollgate's {url}"), START_LIMIT, async || {
        if let Some(status) = process.exited() {
            return Some(Err(status));
        }
        ready(http, bound.admin).await.then_some(Ok(()))
    });
    match ready.await.map_err(|error| process.explain(&error))? {
        Ok(()) => Ok((process, bound)),
        Err(status) => bail!("tollgate ended before it was ready, {status}; {}", process.last_lines()),
    }
}

async fn ready(http: &reqwest::Client, admin: SocketAddr) -> bool {
    let answer = http.get(format!("http://{admin}/readyz")).send().await;
    answer.is_ok_and(|answer| answer.status() == 200)
}

/// The addresses of the line that says that Tollgate serves.
fn serving(line: &str) -> Option<Bound> {
    let line: Value = serde_json::from_str(line).ok()?;
    if !line["message"].as_str()?.starts_with("serving") {
        return None;
    }
    Some(Bound { grpc: line["grpc"].as_str()?.to_owned(), admin: line["admin"].as_str()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_are_read_from_the_line_that_says_serving_and_no_other() {
        let line = r#"{"level":"INFO","message":"serving on …","grpc":"unix:/a","admin":"127.0.0.1:9"}"#;
        let bound = serving(line).unwrap();
        assert_eq!((bound.grpc.as_str(), bound.admin.port()), ("unix:/a", 9));
        for other in
            ["serving", r#"{"message":"reserving","grpc":"x","admin":"127.0.0.1:9"}"#, r#"{"message":"serving"}"#]
        {
            assert!(serving(other).is_none(), "{other}");
        }
    }
}
