//! Who is measured: the floor, and Tollgate among its stand-ins, each on the core of the servers.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use tokio::process::Command;
use tollgate_local::{
    cast::{self, BRIDGE_SECRET},
    stack::{Process, START_LIMIT, Tollgate, wait_for},
    standin::{FlowMesh, LumId, Runmesh},
};

use crate::{
    context::Context,
    served::{self, Around},
};

/// A token as lum.id makes them; a user's with every right in FlowMesh.
pub const TOKEN: &str = "lm_pat_live_5f1c0e9a7b3d2c4e6f8091a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6";
/// Whose it is.
const SUB: &str = "0b8f6d52-4c1e-4f7a-9d35-7e2a61c8b904";
/// With which every other token begins that is somebody's.
const ANYBODY: &str = "lm_pat_live_c01d";

/// A token that no other call of the same process has had, as long as [`TOKEN`].
#[must_use]
pub fn fresh_token(number: u64) -> String {
    format!("{}{number:016x}", fresh_prefix(0))
}

/// With what 16 hexadecimal digits behind it is such a token; each number has tokens of its own, and zero those of [`fresh_token`].
#[must_use]
pub fn fresh_prefix(number: u64) -> String {
    format!("{ANYBODY}{:028x}{number:016x}", std::process::id())
}

/// The bare server.
pub struct Floor {
    pub address: SocketAddr,
    pub process: Process,
}

impl Floor {
    /// Starts it on a free port.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(context: &Context, arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(context.on_server_core(&context.program("floor")?)?);
        command.args(arguments);
        let process = Process::start("floor", command, None)?;
        let address = address(&process, "serving on ").await?;
        Ok(Self { address, process })
    }
}

/// Waits until a process says where it serves, and takes what follows `before` in that line.
///
/// # Errors
/// When it does not, with what it said instead.
pub async fn address(process: &Process, before: &str) -> Result<SocketAddr> {
    let found = wait_for(format!("{} to say where it serves", process.name()), START_LIMIT, async || {
        process.lines().iter().find_map(|line| {
            let (_, rest) = line.split_once(before)?;
            rest.split(' ').next()?.parse().ok()
        })
    });
    found.await.with_context(|| process.last_lines())
}

/// Tollgate as it ships, with billing, and what is around it.
pub struct Served {
    pub lum_id: LumId,
    pub runmesh: Runmesh,
    pub flowmesh: FlowMesh,
    pub tollgate: Tollgate,
    pub address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Served {
    /// Starts all of it.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start(context: &Context) -> Result<Self> {
        let folder = context.folder()?;
        let any = "127.0.0.1:0";
        let lum_id = cast::lum_id(any).await.context("cannot start the lum.id stand-in")?;
        lum_id.user(TOKEN, SUB, Some("alice@example.com"), &["flowmesh:*"]);
        lum_id.anybody(ANYBODY);
        let runmesh = cast::runmesh(any, BRIDGE_SECRET).await.context("cannot start the Runmesh stand-in")?;
        let flowmesh = cast::flowmesh(any).await.context("cannot start the FlowMesh stand-in")?;
        let around =
            Around { lum_id: Some(lum_id.url()), flowmesh: Some(flowmesh.url()), runmesh: Some(runmesh.billing_url()) };
        let tollgate = served::tollgate(context, &around, Some(&folder.path().join("ledger.db"))).await?;
        let address = tollgate.grpc().parse().context("Tollgate's gRPC address is no TCP address")?;
        Ok(Self { lum_id, runmesh, flowmesh, tollgate, address, _folder: folder })
    }

    /// Checks that Tollgate has let through so far.
    ///
    /// # Errors
    /// When it does not say.
    pub async fn allowed(&self) -> Result<f64> {
        served::metric(&self.tollgate, "tollgate_check_decisions_total{reason=\"allowed\"}").await
    }

    /// An orderly stop of Tollgate.
    ///
    /// # Errors
    /// When it does not stop.
    pub async fn stop(&self) -> Result<()> {
        self.tollgate.terminate().await.map(drop)
    }
}

/// For a `Tollgate` or an `Envoy` to be ready behind another.
pub const READY: Duration = Duration::from_secs(20);
