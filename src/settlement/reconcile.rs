//! Reconciling: compares FlowMesh's workflow list with the ledger, so that nothing depends on the log.
//!
//! At start, every [`interval`](crate::config::Config::reconcile_interval), and when a submission has stayed open for
//! longer than the [grace](crate::config::Config::reconcile_grace): then its log entry was lost, or the client left before
//! the answer. A workflow that is news is handed to the sweep, which looks for its owner.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use super::attribution::CLOCK_SKEW;
use crate::drive::{News, growing, jitter};
use crate::ledger::Ledger;
use crate::ledger::duty::Duty;
use crate::lifecycle::TaskError;
use crate::telemetry::{Metrics, OutcomeLabels};
use crate::upstream::flowmesh::FlowMesh;

/// Between tries while FlowMesh or the ledger does not answer.
const FIRST: Duration = Duration::from_secs(2);
const MOST: Duration = Duration::from_mins(1);
/// So many failures in a row, and it is another replica's turn.
const LEAVES_AFTER: u32 = 4;
/// How long a workflow without an owner is looked at again: until then its rivals' log entries have come.
const REVISIT: SignedDuration = SignedDuration::from_hours(24);

/// The reconciler.
pub struct Reconciler {
    pub ledger: Arc<dyn Ledger>,
    pub flowmesh: FlowMesh,
    pub duty: Duty,
    pub interval: Duration,
    pub grace: Duration,
    pub news: News,
    pub metrics: Metrics,
}

impl Reconciler {
    /// Runs until the stop.
    ///
    /// # Errors
    /// Never by itself.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), TaskError> {
        let mut failures: u32 = 0;
        while self.duty.wait(&stop).await {
            let started = Timestamp::now();
            let wait = match self.reconcile(started).await {
                Ok(()) => {
                    failures = 0;
                    self.interval
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot compare FlowMesh's workflows with the ledger: {error}");
                    failures += 1;
                    if failures.is_multiple_of(LEAVES_AFTER) {
                        // It may be this one alone that FlowMesh does not answer.
                        self.duty.leave();
                    }
                    growing(FIRST, MOST, failures - 1, jitter())
                }
            };
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
                // After a failure the next try is soon anyway.
                () = self.wait_for_overdue_submission(started), if failures == 0 => {}
            }
        }
        Ok(())
    }

    /// Returns when a submission of which nothing has been heard is older than the grace, and was too young for that
    /// when the last comparison `started`.
    async fn wait_for_overdue_submission(&self, started: Timestamp) {
        let mut covered = started.checked_sub(self.grace).unwrap_or(Timestamp::MIN);
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.grace.max(FIRST)) => {}
                // FlowMesh may still be at it: what it makes is found a grace later, or at the next comparison.
                () = self.news.lost_submission.notified() => {
                    tokio::time::sleep(self.grace.max(FIRST)).await;
                    return;
                }
            }
            let now_covered = Timestamp::now().checked_sub(self.grace).unwrap_or(Timestamp::MIN);
            match self.ledger.open_submissions(covered, now_covered).await {
                Ok(open) if open.is_empty() => covered = now_covered,
                Ok(open) => {
                    tracing::info!(
                        submissions = open.len(),
                        "{} submissions told no workflow: looking in FlowMesh",
                        open.len()
                    );
                    return;
                }
                Err(error) => tracing::error!(%error, "cannot look for overdue submissions: {error}"),
            }
        }
    }

    async fn reconcile(&self, now: Timestamp) -> Result<(), TaskError> {
        let ours_since = self.ledger.ours_since().await?;
        let workflows = self.flowmesh.workflows().await?;
        let listed: Vec<(String, Option<Timestamp>)> = workflows
            .into_iter()
            .map(|workflow| {
                // What may be too old only by the difference of two clocks is left to the sweep.
                let ours = workflow.submitted_at.is_none_or(|at| at >= ours_since - CLOCK_SKEW);
                (workflow.workflow_id, ours.then_some(now))
            })
            .collect();
        let (ours, older): (Vec<_>, Vec<_>) = listed.into_iter().partition(|(_, sweep_at)| sweep_at.is_some());
        let news = self.ledger.note_workflows(&ours, now).await?;
        let ignored = self.ledger.note_workflows(&older, now).await?;
        self.ledger.compared(now - REVISIT, now).await?;
        self.metrics.sweeps.get_or_create(&OutcomeLabels { outcome: "found_by_list" }).inc_by(news);
        if ignored > 0 {
            tracing::info!(
                workflows = ignored,
                "{ignored} workflows are older than the ledger, or than what it keeps, and left alone"
            );
        }
        if news > 0 {
            tracing::info!(workflows = news, "{news} workflows in FlowMesh of which the log has not told");
        }
        self.news.workflows.notify_one();
        Ok(())
    }
}
