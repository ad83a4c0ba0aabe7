//! The admin listener: is it alive, is it ready, how much of everything, what does it run with, and forget what lum.id
//! said. Nothing on it moves money, lets anybody in or tells a secret.

pub mod console;
mod exposition;
mod gauges;
pub mod history;
mod host;
mod purge;
mod ready;

use std::iter;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use jiff::Timestamp;
use prometheus_client::registry::Registry;
use tokio::time;
use tracing_appender::non_blocking::ErrorCounter;

use self::console::Console;
use crate::config::{AdminHosts, LogFilter, Setting};
use crate::guard::Guard;
use crate::identity::Identity;
use crate::ledger::postgres::Replica;
use crate::ledger::{Backlog, Ledger};
use crate::lifecycle::Stopping;
use crate::supplier::Suppliers;
use crate::telemetry::Metrics;
pub use gauges::Gauges;

/// How long a page waits for the ledger: less than whoever reads it waits for the page (Kubernetes here 4 s, Prometheus 10 s).
const LEDGER_LIMIT: Duration = Duration::from_secs(3);

/// What the pages show.
pub struct Admin {
    /// Where they are.
    pub address: SocketAddr,
    /// By which names people may ask for them.
    pub hosts: AdminHosts,
    pub registry: Registry,
    pub gauges: Gauges,
    pub metrics: Metrics,
    /// The effective values, secrets masked.
    pub settings: Vec<Setting>,
    /// The one of them that may change.
    pub log: LogFilter,
    pub dropped_log_lines: ErrorCounter,
    pub identity: Identity,
    /// Absent when the guard is off.
    pub guard: Option<Guard>,
    pub suppliers: Suppliers,
    /// Absent without billing.
    pub ledger: Option<Arc<dyn Ledger>>,
    /// Absent where the ledger is shared with nobody.
    pub replica: Option<Replica>,
    pub stopping: Stopping,
    pub console: Console,
}

/// The pages.
pub fn router(admin: Admin) -> Router {
    let admin = Arc::new(admin);
    Router::new()
        .route("/", get(console::console))
        .route("/config", get(config))
        .route("/cache/purge", post(purge::purge))
        .route_layer(middleware::from_fn_with_state(admin.clone(), host::known))
        // Those below are for machines, by whatever name they know this one.
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready::ready))
        .route("/metrics", get(metrics))
        .with_state(admin)
}

/// As `tollgate check-config` prints it.
async fn config(State(admin): State<Arc<Admin>>) -> Json<Vec<Setting>> {
    let mut settings = admin.settings.clone();
    for setting in settings.iter_mut().filter(|setting| setting.variable == "TOLLGATE_LOG") {
        setting.value = admin.log.get();
    }
    Json(settings)
}

async fn metrics(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    let rows = match admin.backlog().await {
        Some(Ok(backlog)) => {
            admin.gauges.rows.set(&backlog, Timestamp::now());
            Some(admin.gauges.rows.registry())
        }
        // Why it is not there is what /readyz says. All else is wanted now more than ever.
        Some(Err(_)) | None => None,
    };
    admin.gauges.set(&admin, rows.is_some());
    match exposition::write(iter::once(&admin.registry).chain(rows), &headers) {
        Ok((content_type, text)) => ([(header::CONTENT_TYPE, content_type)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

impl Admin {
    /// What waits in the ledger, or why it does not say so in time; `None` without billing.
    async fn backlog(&self) -> Option<Result<Backlog, String>> {
        let ledger = self.ledger.as_ref()?;
        Some(match time::timeout(LEDGER_LIMIT, ledger.backlog()).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("the ledger does not answer within {LEDGER_LIMIT:?}")),
        })
    }
}
