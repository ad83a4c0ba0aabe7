//! Worker → namespace: who owns the hardware a request is about.
//!
//! A directory of workers is kept from FlowMesh's list and looked up on a miss; which worker runs a task is asked and
//! remembered. Nothing here refuses a request or delays it past [`supplier_timeout`](crate::config::Limits::supplier_timeout):
//! where FlowMesh does not answer, the supplier is unknown and counted so.

use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use tokio_util::sync::CancellationToken;

use crate::config::{Limits, is_visible_ascii};
use crate::lifecycle::TaskError;
use crate::route::is_id;
use crate::telemetry::{Metrics, OutcomeLabels};
use crate::upstream::CallError;
use crate::upstream::flowmesh::{FlowMesh, Worker};

/// What a request is about, as far as its supplier is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    Worker(&'a str),
    Task(&'a str),
}

/// The directory. Cheap to clone.
#[derive(Clone)]
pub struct Suppliers {
    flowmesh: FlowMesh,
    limit: Duration,
    refresh: Duration,
    /// Worker id → namespace; `None` for a worker without one.
    workers: Cache<String, Option<Arc<str>>>,
    /// Task id → worker id; `None` for a task that waits for one.
    tasks: Cache<String, Option<Arc<str>>>,
    metrics: Metrics,
}

impl Suppliers {
    #[must_use]
    pub fn new(flowmesh: FlowMesh, limits: &Limits, metrics: Metrics) -> Self {
        let cache =
            |ttl: Duration| Cache::builder().max_capacity(limits.supplier_cache_entries).time_to_live(ttl).build();
        Self {
            flowmesh,
            limit: limits.supplier_timeout,
            refresh: limits.supplier_refresh,
            // Outlives a few failed refreshes; a namespace hardly ever changes.
            workers: cache(limits.supplier_refresh * 20),
            // An assignment can change when a task is retried, and comes soon after a submission.
            tasks: cache(Duration::from_secs(5)),
            metrics,
        }
    }

    /// The supplier of what a request is about; `None` when unknown.
    pub async fn resolve(&self, subject: Subject<'_>) -> Option<Arc<str>> {
        let found = match tokio::time::timeout(self.limit, self.find(subject)).await {
            Ok(found) => found,
            Err(_) => Err(Arc::new(CallError::Timeout)),
        };
        let outcome = match &found {
            Ok(Some(_)) => "found",
            Ok(None) => "none",
            Err(error) => error.kind(),
        };
        self.metrics.suppliers.get_or_create(&OutcomeLabels { outcome }).inc();
        found.unwrap_or_else(|error| {
            tracing::debug!(?subject, %error, "supplier unknown: {error}");
            None
        })
    }

    async fn find(&self, subject: Subject<'_>) -> Result<Option<Arc<str>>, Arc<CallError>> {
        let worker = match subject {
            Subject::Worker(id) => Some(Arc::from(id)),
            Subject::Task(id) => {
                self.tasks
                    .try_get_with(id.to_owned(), async {
                        let task = self.flowmesh.task_status(id, self.limit).await?;
                        Ok(task.and_then(|task| task.assigned_worker).filter(|id| is_id(id)).map(Arc::from))
                    })
                    .await?
            }
        };
        let Some(worker) = worker else { return Ok(None) };
        self.workers
            .try_get_with(worker.to_string(), async {
                Ok(self.flowmesh.worker(&worker, self.limit).await?.and_then(namespace))
            })
            .await
    }

    /// Keeps the directory until the stop, so that a look-up hardly ever has to wait.
    ///
    /// # Errors
    /// Never by itself.
    pub async fn keep(self, stop: CancellationToken) -> Result<(), TaskError> {
        let mut failing = false;
        loop {
            match self.flowmesh.workers().await {
                Ok(workers) => {
                    if std::mem::take(&mut failing) {
                        tracing::info!("worker directory is read again");
                    }
                    for worker in workers {
                        self.workers.insert(worker.id.clone(), namespace(worker)).await;
                    }
                }
                // Said once per outage: the loop goes on every few seconds.
                Err(error) if !std::mem::replace(&mut failing, true) => {
                    tracing::warn!(%error, "worker directory cannot be read from FlowMesh: {error}");
                }
                Err(_) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(self.refresh) => {}
            }
        }
    }
}

/// A worker's namespace, where it can be a header value.
fn namespace(worker: Worker) -> Option<Arc<str>> {
    worker.namespace.filter(|name| name.len() <= 256 && is_visible_ascii(name)).map(Arc::from)
}
