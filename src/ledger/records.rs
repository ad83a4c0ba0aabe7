//! Rows as both databases return them, and what is asked of both in the same words.

use super::books::{Charge, ChargeState, Retried, Retry, Submission, Task, Workflow};
use super::postgres::Text;
use super::{Backlog, Error, OpenSubmission, time};

/// Charges with their owners' e-mails; `number` is what a database has in place of it.
#[must_use]
pub fn charges(number: &str) -> String {
    format!(
        "SELECT {number} AS number, task_id, workflow_id, charges.principal_id, email, supplier_id, cost, duration_sec,
             cost_per_hour, task_status, assigned_worker, started_at, finished_at, charges.state, hold_reason, attempts,
             post_at, leased_until, last_error, created_at, posted_at
         FROM charges LEFT JOIN principals ON principals.principal_id = charges.principal_id"
    )
}

/// Workflows with their owners' e-mails.
pub const WORKFLOWS: &str =
    "SELECT workflow_id, workflows.principal_id, email, submission_id, attribution, hold_reason, state,
        submitted_at, noted_at
    FROM workflows LEFT JOIN principals ON principals.principal_id = workflows.principal_id";
pub const TASKS: &str =
    "SELECT task_id, workflow_id, state, outcome, attempts, asked_at, settle_at, unknown_since, hold_reason
    FROM tasks";
pub const SUBMISSIONS: &str =
    "SELECT submission_id, principal_id, request_id, opened_at, ended_at, state FROM submissions";
/// Submissions still open that began from `$1` to `$2`.
pub const OPEN_SUBMISSIONS: &str = "SELECT submission_id, principal_id, opened_at, ended_at, failed FROM submissions
    WHERE state = 'open' AND opened_at BETWEEN $1 AND $2 ORDER BY opened_at";

/// Counts by state, and the oldest of each. Every part goes by a partial index: what is done is not looked at.
pub const BACKLOG: &str = "SELECT
    (SELECT COUNT(*) FROM submissions WHERE state = 'open') AS open_submissions,
    (SELECT COUNT(*) FROM workflows WHERE state = 'open') AS open_workflows,
    (SELECT COUNT(*) FROM workflows WHERE attribution = 'held' AND state <> 'ignored') AS held_workflows,
    (SELECT COUNT(*) FROM tasks WHERE state = 'open' AND settle_at IS NOT NULL) AS due_tasks,
    (SELECT COUNT(*) FROM tasks WHERE state = 'open' AND hold_reason IS NOT NULL) AS held_tasks,
    (SELECT COUNT(*) FROM tasks WHERE outcome = 'gone') AS gone_tasks,
    (SELECT COUNT(*) FROM charges WHERE state = 'pending') AS pending_charges,
    (SELECT COUNT(*) FROM charges WHERE state = 'held') AS held_charges,
    (SELECT COUNT(*) FROM charges WHERE state = 'rejected') AS rejected_charges,
    (SELECT MIN(created_at) FROM charges WHERE state = 'pending') AS oldest_pending,
    (SELECT MIN(created_at) FROM charges WHERE state = 'held') AS oldest_held,
    (SELECT MIN(created_at) FROM charges WHERE state = 'rejected') AS oldest_rejected,
    (SELECT MIN(settle_at) FROM tasks WHERE state = 'open' AND settle_at IS NOT NULL) AS oldest_due_task,
    (SELECT MIN(noted_at) FROM workflows WHERE state = 'open') AS oldest_open_workflow";

/// What [`BACKLOG`] returns.
#[derive(Debug, sqlx::FromRow)]
pub struct Counts {
    open_submissions: i64,
    open_workflows: i64,
    held_workflows: i64,
    due_tasks: i64,
    held_tasks: i64,
    gone_tasks: i64,
    pending_charges: i64,
    held_charges: i64,
    rejected_charges: i64,
    oldest_pending: Option<i64>,
    oldest_held: Option<i64>,
    oldest_rejected: Option<i64>,
    oldest_due_task: Option<i64>,
    oldest_open_workflow: Option<i64>,
}

impl From<Counts> for Backlog {
    fn from(counts: Counts) -> Self {
        Self {
            open_submissions: counts.open_submissions.unsigned_abs(),
            open_workflows: counts.open_workflows.unsigned_abs(),
            held_workflows: counts.held_workflows.unsigned_abs(),
            due_tasks: counts.due_tasks.unsigned_abs(),
            held_tasks: counts.held_tasks.unsigned_abs(),
            gone_tasks: counts.gone_tasks.unsigned_abs(),
            pending_charges: counts.pending_charges.unsigned_abs(),
            held_charges: counts.held_charges.unsigned_abs(),
            rejected_charges: counts.rejected_charges.unsigned_abs(),
            oldest_pending: counts.oldest_pending.map(time),
            oldest_held: counts.oldest_held.map(time),
            oldest_rejected: counts.oldest_rejected.map(time),
            oldest_due_task: counts.oldest_due_task.map(time),
            oldest_open_workflow: counts.oldest_open_workflow.map(time),
        }
    }
}

/// What [`charges`] returns.
#[derive(Debug, sqlx::FromRow)]
pub struct ChargeRecord {
    number: i64,
    task_id: Text,
    workflow_id: Option<Text>,
    principal_id: Option<Text>,
    email: Option<Text>,
    supplier_id: Option<Text>,
    cost: Text,
    duration_sec: i64,
    cost_per_hour: Text,
    task_status: Text,
    assigned_worker: Option<Text>,
    started_at: Option<Text>,
    finished_at: Option<Text>,
    state: Text,
    hold_reason: Option<Text>,
    attempts: i64,
    post_at: i64,
    leased_until: i64,
    last_error: Option<Text>,
    created_at: i64,
    posted_at: Option<i64>,
}

impl TryFrom<ChargeRecord> for Charge {
    type Error = Error;

    fn try_from(row: ChargeRecord) -> Result<Self, Error> {
        Ok(Self {
            number: row.number,
            task_id: row.task_id.0,
            workflow_id: said(row.workflow_id),
            principal_id: said(row.principal_id),
            email: said(row.email),
            supplier_id: said(row.supplier_id),
            cost: row.cost.0,
            duration_sec: row.duration_sec,
            cost_per_hour: row.cost_per_hour.0,
            task_status: row.task_status.0,
            assigned_worker: said(row.assigned_worker),
            started_at: said(row.started_at),
            finished_at: said(row.finished_at),
            state: state(&row.state.0)?,
            hold_reason: said(row.hold_reason),
            attempts: count(row.attempts),
            post_at: time(row.post_at),
            leased_until: time(row.leased_until),
            last_error: said(row.last_error),
            created_at: time(row.created_at),
            posted_at: row.posted_at.map(time),
        })
    }
}

/// A state of the schemas'.
pub fn state(name: &str) -> Result<ChargeState, Error> {
    ChargeState::parse(name).ok_or_else(|| Error::Database(format!("a charge has the unknown state {name:?}")))
}

/// What [`WORKFLOWS`] returns.
#[derive(Debug, sqlx::FromRow)]
pub struct WorkflowRecord {
    workflow_id: Text,
    principal_id: Option<Text>,
    email: Option<Text>,
    submission_id: Option<Text>,
    attribution: Option<Text>,
    hold_reason: Option<Text>,
    state: Text,
    submitted_at: Option<i64>,
    noted_at: i64,
}

impl From<WorkflowRecord> for Workflow {
    fn from(row: WorkflowRecord) -> Self {
        Self {
            workflow_id: row.workflow_id.0,
            principal_id: said(row.principal_id),
            email: said(row.email),
            submission_id: said(row.submission_id),
            attribution: said(row.attribution),
            hold_reason: said(row.hold_reason),
            state: row.state.0,
            submitted_at: row.submitted_at.map(time),
            noted_at: time(row.noted_at),
        }
    }
}

/// What [`TASKS`] returns.
#[derive(Debug, sqlx::FromRow)]
pub struct TaskRecord {
    task_id: Text,
    workflow_id: Option<Text>,
    state: Text,
    outcome: Option<Text>,
    attempts: i64,
    asked_at: i64,
    settle_at: Option<i64>,
    unknown_since: Option<i64>,
    hold_reason: Option<Text>,
}

impl From<TaskRecord> for Task {
    fn from(row: TaskRecord) -> Self {
        Self {
            task_id: row.task_id.0,
            workflow_id: said(row.workflow_id),
            state: row.state.0,
            outcome: said(row.outcome),
            attempts: count(row.attempts),
            asked_at: (row.asked_at > 0).then(|| time(row.asked_at)),
            settle_at: row.settle_at.map(time),
            unknown_since: row.unknown_since.map(time),
            hold_reason: said(row.hold_reason),
        }
    }
}

/// What [`SUBMISSIONS`] returns.
#[derive(Debug, sqlx::FromRow)]
pub struct SubmissionRecord {
    submission_id: Text,
    principal_id: Text,
    request_id: Text,
    opened_at: i64,
    ended_at: Option<i64>,
    state: Text,
}

impl From<SubmissionRecord> for Submission {
    fn from(row: SubmissionRecord) -> Self {
        Self {
            submission_id: row.submission_id.0,
            principal_id: row.principal_id.0,
            request_id: row.request_id.0,
            opened_at: time(row.opened_at),
            ended_at: row.ended_at.map(time),
            state: row.state.0,
        }
    }
}

/// What [`OPEN_SUBMISSIONS`] returns.
#[derive(Debug, sqlx::FromRow)]
pub struct OpenRecord {
    submission_id: Text,
    principal_id: Text,
    opened_at: i64,
    ended_at: Option<i64>,
    failed: bool,
}

impl From<OpenRecord> for OpenSubmission {
    fn from(row: OpenRecord) -> Self {
        Self {
            submission_id: row.submission_id.0,
            principal_id: row.principal_id.0,
            opened_at: time(row.opened_at),
            ended_at: row.ended_at.map(time),
            failed: row.failed,
        }
    }
}

fn said(text: Option<Text>) -> Option<String> {
    text.map(|text| text.0)
}

fn count(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// What [`RetriedRecord`] has, beside a charge's number.
pub const RETRIED: &str = "task_id, state, principal_id, cost";

/// Which charges to try again: a condition, of `$1` the time and `$3` a task, and that task.
#[must_use]
pub fn retried(which: Retry<'_>) -> (String, &str) {
    const REJECTED: &str = "state = 'rejected'";
    // What is due already, or being posted, needs no help.
    const LATER: &str = "state = 'pending' AND post_at > $1 AND leased_until <= $1";
    match which {
        Retry::Task(task) => (format!("task_id = $3 AND ({REJECTED} OR {LATER})"), task),
        Retry::Rejected => (format!("{REJECTED} AND $1 > 0 AND $3 = ''"), ""),
        Retry::All => (format!("({REJECTED} OR {LATER}) AND $3 = ''"), ""),
    }
}

/// A charge that is tried again, as it was.
#[derive(Debug, sqlx::FromRow)]
pub struct RetriedRecord {
    number: i64,
    task_id: Text,
    state: Text,
    principal_id: Option<Text>,
    cost: Text,
}

impl TryFrom<RetriedRecord> for Retried {
    type Error = Error;

    fn try_from(row: RetriedRecord) -> Result<Self, Error> {
        Ok(Self {
            number: row.number,
            task_id: row.task_id.0,
            from: state(&row.state.0)?,
            principal_id: said(row.principal_id),
            cost: row.cost.0,
        })
    }
}
