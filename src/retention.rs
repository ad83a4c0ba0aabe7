//! Pruning: deletes from the ledger what is over and old, so that it does not grow for ever.
//!
//! What is unposted stays however old it is. Nothing goes that FlowMesh's list has not been compared with since: what is
//! old and unknown must have been found, and had some time to find its owner among the old submissions, before they go.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::ledger::{self, Ledger, Pruned};
use crate::lifecycle::TaskError;
use crate::telemetry::{KindLabels, Metrics};

/// The pruner.
pub struct Pruner {
    pub ledger: Arc<dyn Ledger>,
    /// How long what is over is kept.
    pub retention: Duration,
    /// Between two prunings.
    pub interval: Duration,
    pub metrics: Metrics,
}

impl Pruner {
    /// Runs until the stop.
    ///
    /// # Errors
    /// Never by itself.
    pub async fn run(self, stop: CancellationToken) -> Result<(), TaskError> {
        loop {
            // As it was an interval ago.
            let compared_at = self.ledger.compared_at().await;
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(self.interval) => {}
            }
            let pruned = match compared_at {
                Ok(Some(compared_at)) => tokio::select! {
                    // Each part is a transaction of its own; the next pruning goes on.
                    () = stop.cancelled() => return Ok(()),
                    pruned = self.prune(compared_at, Timestamp::now()) => pruned,
                },
                Ok(None) => continue,
                Err(error) => Err(error),
            };
            if let Err(error) = pruned {
                self.metrics.ledger_errors.get_or_create(&KindLabels { kind: "prune" }).inc();
                tracing::error!(%error, "cannot prune the ledger: {error}");
            }
        }
    }

    async fn prune(&self, compared_at: Timestamp, now: Timestamp) -> Result<(), ledger::Error> {
        let before = now.checked_sub(self.retention).unwrap_or(Timestamp::MIN).min(compared_at);
        let Some(pruned) = self.ledger.prune(before, now).await? else {
            tracing::warn!("nothing is pruned: the owner of some workflow has been waiting to be looked for");
            return Ok(());
        };
        let Pruned { charges, tasks, workflows, submissions } = pruned;
        for (kind, rows) in
            [("charges", charges), ("tasks", tasks), ("workflows", workflows), ("submissions", submissions)]
        {
            self.metrics.pruned.get_or_create(&KindLabels { kind }).inc_by(rows);
        }
        if pruned != Pruned::default() {
            tracing::info!(
                charges,
                tasks,
                workflows,
                submissions,
                "pruned what was over before {before:.0}: {charges} charges, {tasks} tasks, {workflows} workflows, \
                 {submissions} submissions"
            );
        }
        Ok(())
    }
}
