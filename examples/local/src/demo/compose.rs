//! A composed stack as seen by the `docker` command: containers that are found by their labels, killed, started and
//! stopped.
//!
//! docker-compose 1.29 and Compose v2 label alike, and both leave a container that was killed or stopped by hand
//! alone, whatever its restart policy. Its addresses may be others after each start.

use std::{os::fd::OwnedFd, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};
use serde_json::Value;
use tokio::process::Command;
use tollgate_local::stack::wait_for;

/// How long any `docker` command may take; a stop has its grace period on top.
const COMMAND_LIMIT: Duration = Duration::from_mins(1);
/// From the request to stop to the kill. Tollgate asks for 20 s.
const STOP_GRACE: Duration = Duration::from_secs(30);
/// Between two looks at a container: each is a process of its own.
const LOOK: Duration = Duration::from_millis(200);
/// How long a container may take to be healthy, or gone. Health checks come every few seconds.
const LIMIT: Duration = Duration::from_secs(90);
/// How far back a container's log is searched.
const LOG_LINES: &str = "5000";

/// A container of a composed stack, whether or not it runs.
#[derive(Debug)]
pub struct Container {
    service: &'static str,
    id: String,
}

/// The first process of a container, held so that its number cannot be another's meanwhile.
pub struct FirstProcess(OwnedFd);

impl Container {
    /// The one container of a service.
    pub async fn find(project: &str, service: &'static str) -> Result<Self> {
        let found = Self::find_any(project, service).await?;
        found.with_context(|| format!("compose project {project} has no container for {service}: is it up?"))
    }

    /// The one container of a service, where there is one.
    pub async fn find_any(project: &str, service: &'static str) -> Result<Option<Self>> {
        let labels = [
            format!("label=com.docker.compose.project={project}"),
            format!("label=com.docker.compose.service={service}"),
            // Not what `docker-compose run` has left behind.
            "label=com.docker.compose.oneoff=False".to_owned(),
        ];
        let mut arguments = vec!["ps", "--all", "--no-trunc", "--format", "{{.ID}}"];
        for label in &labels {
            arguments.extend(["--filter", label]);
        }
        let found = docker(&arguments).await?;
        match found.split_whitespace().collect::<Vec<_>>().as_slice() {
            [id] => Ok(Some(Self { service, id: (*id).to_owned() })),
            [] => Ok(None),
            several => bail!("compose project {project} has {} containers for {service}, not one", several.len()),
        }
    }

    /// `http://HOST:PORT` by which this machine reaches a published port.
    pub async fn published(&self, port: u16) -> Result<String> {
        published(&self.inspect().await?, port)
            .with_context(|| format!("port {port} of {} is not published", self.service))
    }

    /// `http://ADDRESS:PORT` on the network of the stack, which a Linux host reaches too.
    pub async fn inner(&self, port: u16) -> Result<String> {
        inner(&self.inspect().await?, port).with_context(|| format!("{} is on no network", self.service))
    }

    /// Whether it runs.
    pub async fn is_running(&self) -> Result<bool> {
        Ok(self.inspect().await?["State"]["Running"] == true)
    }

    /// Whether its recent log has a line with all of these words.
    pub async fn has_said(&self, words: &[&str]) -> Result<bool> {
        let log = docker(&["logs", "--tail", LOG_LINES, &self.id]).await?;
        Ok(log.lines().any(|line| words.iter().all(|word| line.contains(word))))
    }

    /// How many times the engine has started it again by itself since somebody last did.
    pub async fn restarts(&self) -> Result<u64> {
        self.inspect().await?["RestartCount"].as_u64().context("docker does not count restarts")
    }

    /// Waits until the engine has started it again by itself once more. How many times it has by then.
    pub async fn came_back(&self, restarts: u64) -> Result<u64> {
        wait_for(format!("the engine to start {} again by itself", self.service), LIMIT, async || {
            if let Ok(seen) = self.inspect().await
                && let Some(now) = seen["RestartCount"].as_u64().filter(|now| *now > restarts)
                // A container that is about to be started again counts as running, too.
                && seen["State"]["Running"] == true
                && seen["State"]["Restarting"] == false
            {
                return Some(now);
            }
            tokio::time::sleep(LOOK).await;
            None
        })
        .await
    }

    /// SIGKILL by hand, and waits until it is gone.
    pub async fn kill_hard(&self) -> Result<()> {
        docker(&["kill", "--signal", "KILL", &self.id]).await?;
        wait_for(format!("{} to be gone", self.service), LIMIT, async || {
            if matches!(self.is_running().await, Ok(false)) {
                return Some(());
            }
            tokio::time::sleep(LOOK).await;
            None
        })
        .await
    }

    /// Starts it, if need be, and waits until it is healthy.
    pub async fn start(&self) -> Result<()> {
        docker(&["start", &self.id]).await?;
        self.healthy().await
    }

    /// Waits until its health check says that all is well; one that has none need only run.
    pub async fn healthy(&self) -> Result<()> {
        let waited = wait_for(format!("{} to be healthy", self.service), LIMIT, async || {
            if let Ok(seen) = self.inspect().await {
                let state = &seen["State"];
                if state["Running"] == true
                    && state["Health"]["Status"].as_str().is_none_or(|health| health == "healthy")
                {
                    return Some(());
                }
            }
            tokio::time::sleep(LOOK).await;
            None
        });
        match waited.await {
            Ok(()) => Ok(()),
            Err(error) => bail!("{error:#}; its last lines:\n{}", docker(&["logs", "--tail", "8", &self.id]).await?),
        }
    }

    /// SIGTERM, and SIGKILL when that takes too long. Its exit code.
    pub async fn stop(&self) -> Result<i64> {
        docker(&["stop", "-t", &STOP_GRACE.as_secs().to_string(), &self.id]).await?;
        self.inspect().await?["State"]["ExitCode"].as_i64().context("docker tells no exit code")
    }

    /// Its first process, when this process may kill it and it is certain which one it is: the number that the engine
    /// gives may be another's here. Else why not.
    pub async fn first_process(&self) -> Result<Result<FirstProcess, String>> {
        if !geteuid().is_root() {
            return Ok(Err("only root may".to_owned()));
        }
        let seen = self.inspect().await?;
        let number = seen["State"]["Pid"].as_i64().filter(|pid| *pid > 0);
        let Some(pid) = number.and_then(|pid| Pid::from_raw(pid.try_into().ok()?)) else {
            bail!("{} does not run", self.service);
        };
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
            return Ok(Err(format!("its process {} is not to be seen from here", pid.as_raw_nonzero())));
        };
        // Read with the process held: so this is about the very one that is held.
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero())).unwrap_or_default();
        if !groups.contains(&self.id) {
            return Ok(Err(format!("process {} is not the container's here", pid.as_raw_nonzero())));
        }
        Ok(Ok(FirstProcess(process)))
    }

    async fn inspect(&self) -> Result<Value> {
        let text = docker(&["inspect", "--type", "container", &self.id]).await?;
        let mut seen: Vec<Value> = serde_json::from_str(&text).context("docker inspect does not print JSON")?;
        seen.pop().with_context(|| format!("the container of {} is gone", self.service))
    }
}

impl FirstProcess {
    /// SIGKILL, behind the engine's back.
    pub fn kill(&self) -> Result<()> {
        pidfd_send_signal(&self.0, Signal::KILL).context("cannot kill the first process of a container")
    }
}

/// What a `docker` command prints, on both outputs.
async fn docker(arguments: &[&str]) -> Result<String> {
    let what = || format!("docker {}", arguments.first().copied().unwrap_or_default());
    let mut command = Command::new("docker");
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(COMMAND_LIMIT + STOP_GRACE, command.output()).await;
    let output = output.with_context(|| format!("{} does not end", what()))?.context("cannot run docker")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{} failed: {}", what(), errors.trim().lines().last().unwrap_or("it does not say why"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &errors)
}

fn published(seen: &Value, port: u16) -> Option<String> {
    let binding = &seen["NetworkSettings"]["Ports"][format!("{port}/tcp")][0];
    let host = match binding["HostIp"].as_str()? {
        "" | "0.0.0.0" | "::" => "127.0.0.1".to_owned(),
        host if host.contains(':') => format!("[{host}]"),
        host => host.to_owned(),
    };
    Some(format!("http://{host}:{}", binding["HostPort"].as_str()?))
}

fn inner(seen: &Value, port: u16) -> Option<String> {
    let networks = seen["NetworkSettings"]["Networks"].as_object()?;
    let address = networks.values().find_map(|network| network["IPAddress"].as_str().filter(|ip| !ip.is_empty()))?;
    Some(format!("http://{address}:{port}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_are_what_the_engine_says_as_this_machine_reaches_them() {
        let seen = |host: &str| {
            json!({"NetworkSettings": {
                "Ports": {"8080/tcp": [{"HostIp": host, "HostPort": "18080"}], "9901/tcp": null},
                "Networks": {"a": {"IPAddress": ""}, "b": {"IPAddress": "172.18.0.3"}},
            }})
        };
        for (host, expected) in [
            ("0.0.0.0", "http://127.0.0.1:18080"),
            ("127.0.0.1", "http://127.0.0.1:18080"),
            ("192.0.2.7", "http://192.0.2.7:18080"),
            ("::", "http://127.0.0.1:18080"),
            ("::1", "http://[::1]:18080"),
        ] {
            assert_eq!(published(&seen(host), 8080).as_deref(), Some(expected), "{host}");
        }
        assert_eq!(published(&seen("::"), 9901), None);
        assert_eq!(published(&seen("::"), 9090), None);
        assert_eq!(inner(&seen(""), 7900).as_deref(), Some("http://172.18.0.3:7900"));
        assert_eq!(inner(&json!({"NetworkSettings": {"Networks": {}}}), 7900), None);
    }
}
