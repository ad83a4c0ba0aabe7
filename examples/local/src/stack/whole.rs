//! The whole of it: the stand-ins with their [`cast`], Tollgate and Envoy.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{Envoy, Output, Port, Process, Tollgate, check_ports, tollgate::envoy_config};
use crate::{
    cast::{self, BRIDGE_SECRET},
    standin::{FlowMesh, LumId, Runmesh},
};

/// The longest path of a Unix socket.
const SOCKET_PATH_LIMIT: usize = 107;

/// The ports of everything; 0 is any free one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ports {
    /// Where clients go.
    pub edge: u16,
    /// Tollgate's health and metrics.
    pub tollgate_admin: u16,
    /// Envoy's own pages.
    pub envoy_admin: u16,
    /// The lum.id stand-in.
    pub lum_id: u16,
    /// The Runmesh stand-in.
    pub runmesh: u16,
    /// The FlowMesh stand-in.
    pub flowmesh: u16,
}

impl Ports {
    /// Whether all of them are free.
    ///
    /// # Errors
    /// One line that names the first that is not, and how to choose another.
    pub fn check(&self) -> Result<()> {
        let port = |number, owner, variable| Port { number, owner, variable };
        check_ports(&[
            port(self.edge, "Envoy edge", "EDGE_PORT"),
            port(self.tollgate_admin, "Tollgate admin", "TOLLGATE_ADMIN_PORT"),
            port(self.envoy_admin, "Envoy admin", "ENVOY_ADMIN_PORT"),
            port(self.lum_id, "lum.id", "LUM_ID_PORT"),
            port(self.runmesh, "Runmesh", "RUNMESH_PORT"),
            port(self.flowmesh, "FlowMesh", "FLOWMESH_PORT"),
        ])
    }
}

/// How to bring up a [`Stack`].
#[derive(Clone, Debug)]
pub struct StackOptions {
    /// The `tollgate` binary.
    pub tollgate: PathBuf,
    /// The `envoy` binary.
    pub envoy: PathBuf,
    /// Where things listen.
    pub ports: Ports,
    /// An existing folder for socket, ledger and bootstrap.
    pub dir: PathBuf,
    /// Settings of Tollgate beside the necessary ones.
    pub settings: Vec<(&'static str, String)>,
    /// Gets Tollgate's lines.
    pub tollgate_output: Option<Output>,
    /// Gets Envoy's lines.
    pub envoy_output: Option<Output>,
}

/// Everything, up and ready. Whatever still runs when it is dropped is killed.
pub struct Stack {
    /// The identity provider.
    pub lum_id: LumId,
    /// Billing.
    pub runmesh: Runmesh,
    /// The upstream.
    pub flowmesh: FlowMesh,
    /// Tollgate.
    pub tollgate: Tollgate,
    /// The edge.
    pub envoy: Envoy,
    socket: PathBuf,
}

impl Stack {
    /// Starts everything and waits until requests can pass. The guard is on, and Tollgate's gRPC on a
    /// Unix socket.
    ///
    /// # Errors
    /// When a port is taken, or something does not start or is not ready in time.
    pub async fn start(options: StackOptions) -> Result<Self> {
        let StackOptions { tollgate, envoy, ports, dir, settings: more, tollgate_output, envoy_output } = options;
        ports.check()?;
        let local = |port: u16| format!("127.0.0.1:{port}");
        let lum_id = cast::lum_id(&local(ports.lum_id)).await.context("cannot start the lum.id stand-in")?;
        let runmesh = cast::runmesh(&local(ports.runmesh), BRIDGE_SECRET).await;
        let runmesh = runmesh.context("cannot start the Runmesh stand-in")?;
        let flowmesh = cast::flowmesh(&local(ports.flowmesh)).await.context("cannot start the FlowMesh stand-in")?;

        let socket = socket(&dir)?;
        let grpc = format!("unix:{}", socket.display());
        let mut settings = vec![
            ("LUM_ID_BASE_URL", lum_id.url()),
            ("RUNMESH_BILLING_BASE_URL", runmesh.billing_url()),
            ("FLOWMESH_BRIDGE_SECRET", BRIDGE_SECRET.to_owned()),
            ("LUMID_BALANCE_GUARD", "on".to_owned()),
            ("FLOWMESH_BASE_URL", flowmesh.url()),
            ("TOLLGATE_GRPC_LISTEN", grpc.clone()),
            ("TOLLGATE_ADMIN_LISTEN", local(ports.tollgate_admin)),
            ("TOLLGATE_LEDGER", format!("sqlite:{}", dir.join("ledger.db").display())),
        ];
        settings.extend(more);
        let upstream = flowmesh.url().trim_start_matches("http://").to_owned();
        let bootstrap =
            envoy_config(&tollgate, &local(ports.edge), &local(ports.envoy_admin), &upstream, &[&grpc]).await?;
        let tollgate = Tollgate::start(&tollgate, &settings, tollgate_output).await?;
        let envoy = Envoy::start(&envoy, &bootstrap, &dir, 2, envoy_output).await?;
        envoy.wait_for_tollgate(Duration::from_secs(15)).await?;
        Ok(Self { lum_id, runmesh, flowmesh, tollgate, envoy, socket })
    }

    /// Waits until Tollgate or Envoy ends by itself, and says which.
    pub async fn first_to_end(&self) -> &Process {
        let (tollgate, envoy) = (self.tollgate.process(), self.envoy.process());
        tokio::select! {
            _ = tollgate.wait() => tollgate,
            _ = envoy.wait() => envoy,
        }
    }

    /// Stops everything in order: Envoy drains, Tollgate commits what it has and posts what is due, and
    /// the stand-ins go last.
    ///
    /// # Errors
    /// The first process that did not end well; all are gone by then.
    pub async fn stop(&self) -> Result<()> {
        let envoy = self.envoy.stop().await;
        let before = self.tollgate.process().exited();
        let tollgate = self.tollgate.terminate().await;
        self.lum_id.stop().await;
        self.runmesh.stop().await;
        self.flowmesh.stop().await;
        // One that was killed could not do it.
        let _ = std::fs::remove_file(&self.socket);
        envoy?;
        let status = tollgate?;
        if before.is_none() && !status.success() {
            bail!("tollgate did not stop well, {status}; {}", self.tollgate.process().last_lines());
        }
        Ok(())
    }

    /// Kills both processes.
    pub async fn kill_hard(&self) {
        // What cannot be killed now is killed when it is dropped.
        let _ = tokio::join!(self.envoy.kill_hard(), self.tollgate.kill_hard());
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Where Tollgate's gRPC socket goes.
fn socket(dir: &Path) -> Result<PathBuf> {
    let dir = dir.canonicalize().with_context(|| format!("there is no folder {}", dir.display()))?;
    let socket = dir.join("grpc.sock");
    if socket.as_os_str().len() > SOCKET_PATH_LIMIT {
        bail!("{} is too long for a Unix socket: choose a shorter folder", socket.display());
    }
    Ok(socket)
}
