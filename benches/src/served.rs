//! Tollgate as it is run for a section, with what it needs around it.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use tollgate_local::{
    cast::BRIDGE_SECRET,
    stack::{Tollgate, free_port},
};

use crate::{context::Context, cost};

/// Where the others are.
#[derive(Debug, Default, Clone)]
pub struct Around {
    /// lum.id; without one nobody answers there.
    pub lum_id: Option<String>,
    /// FlowMesh, likewise.
    pub flowmesh: Option<String>,
    /// Runmesh; without one there is no billing, unless there is a ledger: then nobody answers there.
    pub runmesh: Option<String>,
}

/// The settings of a Tollgate: the defaults as README has them, the addresses, and the ledger, if it is to bill.
pub fn settings(around: &Around, ledger: Option<&str>) -> Result<Vec<(&'static str, String)>> {
    let local = || free_port().map(|port| format!("127.0.0.1:{port}"));
    let nobody = || local().map(|address| format!("http://{address}"));
    let or_nobody = |url: &Option<String>| url.clone().map_or_else(nobody, Ok);
    let mut settings = vec![
        ("LUM_ID_BASE_URL", or_nobody(&around.lum_id)?),
        ("FLOWMESH_BASE_URL", or_nobody(&around.flowmesh)?),
        ("TOLLGATE_GRPC_LISTEN", local()?),
        ("TOLLGATE_ADMIN_LISTEN", local()?),
        ("TOLLGATE_LOG_FORMAT", "text".to_owned()),
    ];
    if let Some(ledger) = ledger {
        settings.push(("RUNMESH_BILLING_BASE_URL", or_nobody(&around.runmesh)?));
        settings.push(("FLOWMESH_BRIDGE_SECRET", BRIDGE_SECRET.to_owned()));
        settings.push(("TOLLGATE_LEDGER", ledger.to_owned()));
    }
    Ok(settings)
}

/// A ledger's setting, of a file.
#[must_use]
pub fn file(path: &Path) -> String {
    format!("sqlite:{}", path.display())
}

/// Starts Tollgate as it ships, on the core of the servers.
pub async fn tollgate(context: &Context, around: &Around, ledger: Option<&Path>) -> Result<Tollgate> {
    let ledger = ledger.map(file);
    Tollgate::start(&context.tollgate()?, &settings(around, ledger.as_deref())?, None).await
}

/// Processor time that it has used so far.
pub fn used(tollgate: &Tollgate) -> Result<Duration> {
    cost::processor_time(tollgate.process().pid())
}

/// One of its counters, all labels together.
pub async fn metric(tollgate: &Tollgate, name: &str) -> Result<f64> {
    tollgate.metric(name).await.with_context(|| format!("Tollgate does not tell {name}"))
}

/// A count as a number to calculate with.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "no count comes near 2^52")]
pub fn count(count: u64) -> f64 {
    count as f64
}
