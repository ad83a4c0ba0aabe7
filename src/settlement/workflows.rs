//! Sweeping: asks FlowMesh after unsettled workflows, finds their owners where no log told, and their tasks.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::attribution::{self, CLOCK_SKEW, LONGEST_SUBMISSION};
use crate::circuit::Circuit;
use crate::drive::{LEASE, News, Worker, growing, jitter};
use crate::ledger::duty::Duty;
use crate::ledger::unrecorded::Unrecorded;
use crate::ledger::{self, Attribution, DueWorkflow, Existence, Ledger, NextSweep, Work};
use crate::route::is_id;
use crate::telemetry::{Metrics, OutcomeLabels, Sparing};
use crate::upstream::flowmesh::{FlowMesh, Workflow};

/// Between two sweeps of a workflow.
const FIRST: Duration = Duration::from_secs(5);
const MOST: Duration = Duration::from_mins(5);
/// Of a workflow with thousands of tasks so many are noted in one transaction: a submission waits for the ledger meanwhile.
const TASKS_AT_ONCE: usize = 500;
/// While the ledger does not have every submission, owners are looked for again after so long.
const ROW_PAUSE: SignedDuration = SignedDuration::from_secs(1);
/// Between two looks whether it is this one's turn.
const OFF_DUTY_PAUSE: Duration = Duration::from_secs(1);
/// How long FlowMesh must have said that it does not know a workflow before it is given up.
const GONE_AFTER: SignedDuration = SignedDuration::from_hours(24);

/// Of questions that FlowMesh did not answer: while it is down it is all of them.
static NOT_ANSWERED: Sparing = Sparing::of_work();

/// The sweeping worker.
pub struct Sweeper {
    pub ledger: Arc<dyn Ledger>,
    pub flowmesh: FlowMesh,
    /// To FlowMesh, shared by all who ask after tasks and workflows.
    pub circuit: Circuit,
    /// Submissions that the ledger does not have yet.
    pub unrecorded: Unrecorded,
    /// Who finds owners by elimination is one among those who share a ledger.
    pub duty: Duty,
    pub grace: Duration,
    /// When this process began to listen to the log.
    pub started: Timestamp,
    pub news: News,
    pub metrics: Metrics,
}

impl Worker for Sweeper {
    type Item = DueWorkflow;
    const WORK: Work = Work::Workflows;

    fn allowance(&self, free: u32) -> Result<u32, Duration> {
        if self.duty.is_mine() { self.circuit.allowance(free) } else { Err(OFF_DUTY_PAUSE) }
    }

    async fn claim(&self, at: Timestamp, limit: u32) -> Result<Vec<DueWorkflow>, ledger::Error> {
        let claimed = self.ledger.claim_workflows(at, LEASE, self.circuit.pick(limit)).await?;
        self.circuit.begun(claimed.len());
        Ok(claimed)
    }

    async fn step(&self, due: DueWorkflow) -> Result<(), ledger::Error> {
        let id = due.workflow_id.as_str();
        let now = Timestamp::now();
        // The interval grows from the first sweep on; trouble grows it like quiet does.
        let wait = growing(FIRST, MOST, due.sweeps, jitter());
        let later = NextSweep::At(now.checked_add(wait).unwrap_or(Timestamp::MAX));
        let (outcome, next, existence) = if is_id(id) {
            let answer = self.flowmesh.workflow(id).await;
            self.circuit.heard(answer.as_ref().map(drop));
            match answer {
                Err(error) => {
                    let cannot = format!("cannot ask FlowMesh after workflow {id}: {error}");
                    if let Some(unsaid) = NOT_ANSWERED.say() {
                        tracing::warn!(workflow = id, %error, unsaid = unsaid.count(), "{cannot}{unsaid}");
                    } else {
                        tracing::debug!(workflow = id, %error, "{cannot}");
                    }
                    (error.kind(), later, Existence::Unsaid)
                }
                Ok(None) if due.unknown_since.is_none_or(|since| now.duration_since(since) < GONE_AFTER) => {
                    ("unknown", later, Existence::Unknown)
                }
                Ok(None) => {
                    tracing::warn!(workflow = id, "FlowMesh does not know workflow {id} any more: given up");
                    ("gone", NextSweep::Gone, Existence::Unknown)
                }
                Ok(Some(workflow)) => match self.wait_for_log(&due, &workflow, now) {
                    Some(until) => ("waiting_for_log", NextSweep::Wait(until), Existence::Known),
                    // Who is missing in the ledger may be the one.
                    None if due.needs_owner && self.may_be_missing(&workflow, now).await? => {
                        ("waiting_for_row", NextSweep::Wait(now + ROW_PAUSE), Existence::Known)
                    }
                    None if self.sweep(&due, &workflow, now).await? => {
                        ("settled", NextSweep::Settled, Existence::Known)
                    }
                    None => ("open", later, Existence::Known),
                },
            }
        } else {
            // It becomes part of a URL.
            tracing::error!(workflow = ?id, "a workflow id that is none is given up: {id:?}");
            self.circuit.not_asked();
            ("gone", NextSweep::Gone, Existence::Unknown)
        };
        self.ledger.swept(&due, next, existence, now).await?;
        self.metrics.sweeps.get_or_create(&OutcomeLabels { outcome }).inc();
        Ok(())
    }
}

impl Sweeper {
    /// A young workflow's own log entry is likely on its way, and knows better than any match. So is that of an older one
    /// just after a start: Envoy keeps entries while there is no Tollgate.
    fn wait_for_log(&self, due: &DueWorkflow, workflow: &Workflow, now: Timestamp) -> Option<Timestamp> {
        // Of a clock that runs ahead of ours no more is believed than that it is now.
        let could_be_told = workflow.submitted_at.unwrap_or(due.noted_at).min(now).max(self.started);
        let until = could_be_told.checked_add(self.grace).ok()?;
        (due.is_new && now < until).then_some(until)
    }

    /// Whether somebody's submission that may have made it is still to be recorded, here or by another replica.
    async fn may_be_missing(&self, workflow: &Workflow, now: Timestamp) -> Result<bool, ledger::Error> {
        // Without a time nobody is looked for: it is held, whoever may be missing.
        let Some(taken) = workflow.submitted_at else { return Ok(false) };
        if self.unrecorded.is_uncertain() {
            return Ok(true);
        }
        // Of a clock that runs ahead of ours no more is believed than that it is now.
        let taken = taken.min(now);
        Ok(self.ledger.recorded_until().await? < taken.checked_add(CLOCK_SKEW).unwrap_or(Timestamp::MAX))
    }

    /// Finds the owner if need be, and the tasks. Whether there is nothing left to ask.
    async fn sweep(&self, due: &DueWorkflow, workflow: &Workflow, now: Timestamp) -> Result<bool, ledger::Error> {
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
            self.ledger.attribute(id, &attribution, workflow.submitted_at, now).await?;
            if attribution == Attribution::Ignored && due.is_new {
                return Ok(true);
            }
            self.news.charges.notify_one();
        }
        let ended: HashSet<&str> = [&workflow.completed_tasks, &workflow.failed_tasks, &workflow.cancelled_tasks]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect();
        let tasks: Vec<(&str, bool)> =
            workflow.task_ids.iter().map(|task| (task.as_str(), ended.contains(task.as_str()))).collect();
        let mut unsettled = 0;
        for some in tasks.chunks(TASKS_AT_ONCE) {
            unsettled = self.ledger.note_tasks(id, some, now).await?;
        }
        if !ended.is_empty() {
            self.news.tasks.notify_one();
        }
        Ok(!tasks.is_empty() && unsettled == 0)
    }

    async fn find_owner(&self, workflow: &Workflow) -> Result<Attribution, ledger::Error> {
        let (open, missing) = match workflow.submitted_at {
            Some(at) => {
                // Twice: a request may itself last that long.
                let since = at.checked_sub(LONGEST_SUBMISSION * 2).unwrap_or(Timestamp::MIN);
                let until = at.checked_add(CLOCK_SKEW).unwrap_or(Timestamp::MAX);
                let missing = self.ledger.has_gap(since, until).await?;
                (self.ledger.open_submissions(since, until).await?, missing)
            }
            None => (Vec::new(), false),
        };
        Ok(attribution::decide(workflow.submitted_at, &open, missing, self.ledger.ours_since().await?))
    }
}
