//! Sweeping: asks FlowMesh after unsettled workflows, finds their owners where no log told, and their tasks.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::attribution::{self, CLOCK_SKEW, LONGEST_SUBMISSION};
use crate::drive::{LEASE, News, Worker, growing, jitter};
use crate::ledger::{self, Attribution, DueWorkflow, Ledger, NextSweep, Work};
use crate::route::is_id;
use crate::telemetry::{Metrics, OutcomeLabels};
use crate::upstream::flowmesh::{FlowMesh, Workflow};

/// Between two sweeps of a workflow.
const FIRST: Duration = Duration::from_secs(5);
const MOST: Duration = Duration::from_mins(5);
/// How long FlowMesh must not have known a workflow before it is given up.
const GONE_AFTER: SignedDuration = SignedDuration::from_hours(24);

/// The sweeping worker.
pub struct Sweeper {
    pub ledger: Arc<dyn Ledger>,
    pub flowmesh: FlowMesh,
    pub grace: Duration,
    pub news: News,
    pub metrics: Metrics,
}

impl Worker for Sweeper {
    type Item = DueWorkflow;
    const WORK: Work = Work::Workflows;

    async fn claim(&self, at: Timestamp, limit: u32) -> Result<Vec<DueWorkflow>, ledger::Error> {
        self.ledger.claim_workflows(at, LEASE, limit).await
    }

    async fn step(&self, due: DueWorkflow) -> Result<(), ledger::Error> {
        let id = due.workflow_id.as_str();
        let now = Timestamp::now();
        // The interval grows from the first sweep on; trouble grows it like quiet does.
        let wait = growing(FIRST, MOST, due.sweeps, jitter());
        let later = NextSweep::At(now.checked_add(wait).unwrap_or(Timestamp::MAX));
        let (outcome, next) = if is_id(id) {
            match self.flowmesh.workflow(id).await {
                Err(error) => {
                    tracing::warn!(workflow = id, %error, "cannot ask FlowMesh after workflow {id}: {error}");
                    (error.kind(), later)
                }
                Ok(None) if now.duration_since(due.noted_at) < GONE_AFTER => ("unknown", later),
                Ok(None) => {
                    tracing::warn!(workflow = id, "FlowMesh does not know workflow {id} any more: given up");
                    ("gone", NextSweep::Gone)
                }
                Ok(Some(workflow)) => match self.wait_for_log(&due, &workflow, now) {
                    Some(until) => ("waiting_for_log", NextSweep::At(until)),
                    None => self.sweep(&due, &workflow, now).await?.map_or(("open", later), |next| ("settled", next)),
                },
            }
        } else {
            // It becomes part of a URL.
            tracing::error!(workflow = ?id, "a workflow id that is none is given up: {id:?}");
            ("gone", NextSweep::Gone)
        };
        self.ledger.swept(id, next).await?;
        self.metrics.sweeps.get_or_create(&OutcomeLabels { outcome }).inc();
        Ok(())
    }
}

impl Sweeper {
    /// A young workflow's own log entry is likely on its way, and knows better than any match.
    fn wait_for_log(&self, due: &DueWorkflow, workflow: &Workflow, now: Timestamp) -> Option<Timestamp> {
        let until = workflow.submitted_at.checked_add(self.grace).ok()?;
        // The bound against a clock that runs ahead of ours: never wait longer than the grace from now.
        let until = until.min(now.checked_add(self.grace).ok()?);
        (due.is_new && now < until).then_some(until)
    }

    /// Finds the owner if need be, and the tasks. `Some` when there is nothing left to ask.
    async fn sweep(
        &self,
        due: &DueWorkflow,
        workflow: &Workflow,
        now: Timestamp,
    ) -> Result<Option<NextSweep>, ledger::Error> {
        let id = due.workflow_id.as_str();
        if due.needs_owner {
            let attribution = self.find_owner(workflow).await?;
            match &attribution {
                Attribution::Matched { principal_id, .. } => tracing::info!(
                    workflow = id,
                    principal = principal_id,
                    "workflow {id} is {principal_id}'s, by their open submission"
                ),
                Attribution::Held { reason } if due.is_new => {
                    tracing::warn!(workflow = id, reason, "workflow {id} has no owner, its charges are held: {reason}");
                }
                Attribution::Held { .. } | Attribution::Ignored => {}
            }
            self.ledger.attribute(id, &attribution, now).await?;
            if attribution == Attribution::Ignored {
                // The row is no longer open, so what is returned here has no effect.
                return Ok(Some(NextSweep::Settled));
            }
            self.news.charges.notify_one();
        }
        let ended: Vec<String> = [&workflow.completed_tasks, &workflow.failed_tasks, &workflow.cancelled_tasks]
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        let unsettled = self.ledger.note_tasks(id, &workflow.task_ids, &ended, now).await?;
        if !ended.is_empty() {
            self.news.tasks.notify_one();
        }
        let all_ended = workflow.task_ids.iter().all(|task| ended.contains(task));
        Ok((unsettled == 0 && all_ended && !workflow.task_ids.is_empty()).then_some(NextSweep::Settled))
    }

    async fn find_owner(&self, workflow: &Workflow) -> Result<Attribution, ledger::Error> {
        let at = workflow.submitted_at;
        let since = at.checked_sub(CLOCK_SKEW + LONGEST_SUBMISSION).unwrap_or(Timestamp::MIN);
        let open = self.ledger.open_submissions(since, at.checked_add(CLOCK_SKEW).unwrap_or(Timestamp::MAX)).await?;
        Ok(attribution::decide(at, &open, self.ledger.born_at().await?))
    }
}
