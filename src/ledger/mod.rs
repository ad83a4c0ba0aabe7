//! The durable store: principals, submissions, workflows, tasks, charges.
//!
//! One trait and two databases: [`sqlite`], embedded, for one process, and [`postgres`], for several. What is decided is in modules
//! that know neither. Invariants that both keep:
//!
//! - each method is part of one transaction, which others may share: it has happened entirely or not at all when the process
//!   dies, and when it returns it is on the disk. Only a list of workflows is noted in parts, so that nobody waits for all of
//!   it;
//! - each move is idempotent: repeating it changes nothing;
//! - a charge is keyed by its task, and an execution is charged once;
//! - a charge leaves `pending` only by Runmesh's word, and nothing unposted is ever deleted;
//! - claimed work carries a lease: who claimed it must be done before the lease ends, else somebody else takes it.

pub mod batch;
pub mod books;
#[cfg(test)]
mod contract;
mod due;
pub mod duty;
mod error;
pub mod group;
pub mod money;
pub mod moves;
mod naming;
pub mod opened;
pub mod postgres;
mod pruning;
pub mod recording;
pub mod records;
pub mod settling;
pub mod sqlite;
pub mod unrecorded;

use std::time::Duration;

use jiff::Timestamp;

use crate::access_log::event::Event;
use crate::principal::Principal;
pub use error::Error;

/// Milliseconds since the epoch, as the schemas keep times.
#[must_use]
pub fn ms(at: Timestamp) -> i64 {
    at.as_millisecond()
}

/// The time of so many milliseconds.
#[must_use]
pub fn time(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX)
}

/// A submission that Check is about to let through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSubmission<'a> {
    /// Minted by Check; what it is told back may be another, when this is a repeat.
    pub submission_id: &'a str,
    pub principal: &'a Principal,
    /// Envoy's request id.
    pub request_id: &'a str,
    pub at: Timestamp,
}

/// A task to ask FlowMesh after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueTask {
    pub task_id: String,
    /// Asked since the last evidence, this time not counted.
    pub attempts: u32,
    /// There is evidence that it ended: ask until it has.
    pub eager: bool,
    /// What had been heard of it when it was claimed.
    pub heard: i64,
    /// Since when FlowMesh says that it does not know it.
    pub unknown_since: Option<Timestamp>,
}

/// A workflow to ask FlowMesh after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueWorkflow {
    pub workflow_id: String,
    /// Asked before, this time not counted.
    pub sweeps: u32,
    /// Its owner has been looked for in vain, or not yet.
    pub needs_owner: bool,
    /// Nobody has looked for its owner yet.
    pub is_new: bool,
    /// When the ledger first heard of it.
    pub noted_at: Timestamp,
    /// What had been heard of it when it was claimed.
    pub heard: i64,
    /// Since when FlowMesh says that it does not know it.
    pub unknown_since: Option<Timestamp>,
}

/// What FlowMesh said of a task or workflow when it was asked after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existence {
    Known,
    /// Not there, or not any more.
    Unknown,
    /// It did not say.
    Unsaid,
}

impl Existence {
    /// A name for statements.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Unknown => "unknown",
            Self::Unsaid => "unsaid",
        }
    }
}

/// A submission that may have made a workflow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenSubmission {
    pub submission_id: String,
    pub principal_id: String,
    pub opened_at: Timestamp,
    /// When the log said that its request was over.
    pub ended_at: Option<Timestamp>,
    /// FlowMesh answered with an error of its own.
    pub failed: bool,
}

/// Whose a workflow is, when no log entry told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribution {
    /// It is older than the ledger: not ours.
    Ignored,
    /// All open submissions at its time are this principal's.
    Matched { submission_id: String, principal_id: String },
    /// Nobody, or more than one: the operator decides.
    Held { reason: String },
}

/// What a finished execution costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// US dollars, plain decimal notation.
    pub cost: String,
    /// Seconds, truncated toward zero.
    pub duration_sec: i64,
    /// US dollars per hour, a JSON number.
    pub cost_per_hour: String,
    /// `DONE`, `FAILED` or `CANCELLED`.
    pub task_status: String,
    pub assigned_worker: Option<String>,
    pub started_at: Option<String>,
    pub finished_at: Option<String>,
    /// Namespace of the worker.
    pub supplier_id: Option<String>,
}

/// What FlowMesh says of a task that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    Usage(Usage),
    /// It ended without running.
    Nothing,
    /// FlowMesh does not know it any more.
    Gone,
}

/// What settling a task came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    Charged {
        principal_id: String,
    },
    /// Charged, but nobody or nowhere to send it yet.
    Held {
        reason: &'static str,
    },
    /// Its execution is charged under another task.
    Merged,
    Nothing,
    /// Its workflow is older than the ledger.
    Ignored,
    Gone,
    /// It was settled before.
    Already,
    /// Whose the workflow is has not been looked for yet: ask again soon.
    Deferred,
}

/// A charge that was written because an answer itself said what its task cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reported {
    pub task_id: String,
    pub workflow_id: String,
    pub cost: String,
    pub settled: Settled,
}

/// A charge to post.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueCharge {
    pub task_id: String,
    pub workflow_id: Option<String>,
    pub principal_id: String,
    pub email: String,
    pub cost: String,
    pub duration_sec: i64,
    pub cost_per_hour: String,
    pub task_status: String,
    /// Posts tried before.
    pub attempts: u32,
    /// Until when it is the claimer's to post. By this the claim is known from a later one.
    pub leased_until: Timestamp,
}

/// What the ledger makes of Runmesh's word that it has a charge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Posted {
    /// It was theirs.
    Theirs,
    /// By now it is somebody else's, or nobody's: the one for whom it was posted has paid, and the ledger says so.
    Astray { owner: Option<String> },
}

/// Rows by state, for metrics and people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backlog {
    pub open_submissions: u64,
    pub open_workflows: u64,
    pub held_workflows: u64,
    pub due_tasks: u64,
    /// Of these, those of which FlowMesh gave an answer that cannot be charged.
    pub held_tasks: u64,
    /// Given up because FlowMesh does not know them any more.
    pub gone_tasks: u64,
    pub pending_charges: u64,
    pub held_charges: u64,
    pub rejected_charges: u64,
    /// When the oldest of each was settled; `None` without one.
    pub oldest_pending: Option<Timestamp>,
    pub oldest_held: Option<Timestamp>,
    pub oldest_rejected: Option<Timestamp>,
    /// When the most overdue task was due, or the first one will be.
    pub oldest_due_task: Option<Timestamp>,
    /// When the ledger first heard of the oldest workflow that is not settled.
    pub oldest_open_workflow: Option<Timestamp>,
}

/// How many rows were pruned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    pub charges: u64,
    pub tasks: u64,
    pub workflows: u64,
    pub submissions: u64,
}

/// Which due work to claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    /// So many at most, those that have been due longest.
    Due(u32),
    /// One, the one that was tried least often: the probe of a circuit. What always fails is always due, and would else be every
    /// probe. It looks at all that is due, so it is not for every day.
    LeastTried,
}

/// The store. Times are passed in; `lease` is how long claimed work belongs to its claimer.
#[async_trait::async_trait]
pub trait Ledger: Send + Sync + 'static {
    /// When this ledger was made.
    async fn born_at(&self) -> Result<Timestamp, Error>;

    /// From when on workflows are this ledger's to bill: those from before it was made were never its own, and of those
    /// from before what it has pruned it cannot know any more whether they are billed.
    async fn ours_since(&self) -> Result<Timestamp, Error>;

    /// Records a submission, its principal, and their e-mail; charges held for want of one are released. Returns the id
    /// under which the submission stands, which is an older one when this is a repeat: when the principal has one with this
    /// request id, let through within [`recording::REPEATED_WITHIN`], whose request was not over when this one `began`, by
    /// Envoy's clock. Envoy repeats a Check before its request is over, so that finds its submission whatever has come of it
    /// meanwhile; a client that uses a request id again after it had its answer does not, and has a submission of its own.
    async fn open_begun(&self, submission: NewSubmission<'_>, began: Timestamp) -> Result<String, Error>;

    /// Likewise, of a request that has just begun.
    async fn open_submission(&self, submission: NewSubmission<'_>) -> Result<String, Error> {
        let began = submission.at;
        self.open_begun(submission, began).await
    }

    /// Records what the log told, all of it in one transaction. Returns the charges that this has written.
    async fn record(&self, events: &[Event], at: Timestamp) -> Result<Vec<Reported>, Error>;

    /// Notes workflows that FlowMesh has, and returns how many were news: `Some(time)` to look for their owner then,
    /// `None` when they are older than the ledger.
    async fn note_workflows(&self, workflows: &[(String, Option<Timestamp>)], at: Timestamp) -> Result<u64, Error>;

    /// Ends a comparison with FlowMesh's whole list, which was read after `at`: whatever is older is known now. Workflows
    /// whose owner was looked for in vain since `revisit_since` come up for another look.
    async fn compared(&self, revisit_since: Timestamp, at: Timestamp) -> Result<(), Error>;

    /// When FlowMesh's list was last compared with this ledger.
    async fn compared_at(&self) -> Result<Option<Timestamp>, Error>;

    /// Submissions let through from `since` to `until` may have no row.
    async fn note_gap(&self, since: Timestamp, until: Timestamp) -> Result<(), Error>;

    /// Whether any gap has a part in that time.
    async fn has_gap(&self, since: Timestamp, until: Timestamp) -> Result<bool, Error>;

    /// Up to when every submission that some other process let through is in the ledger. What this one let through without a
    /// row it knows by itself.
    async fn recorded_until(&self) -> Result<Timestamp, Error>;

    /// Claims workflows that are due.
    async fn claim_workflows(&self, at: Timestamp, lease: Duration, pick: Pick) -> Result<Vec<DueWorkflow>, Error>;

    /// Submissions still open that began from `since` to `until`.
    async fn open_submissions(&self, since: Timestamp, until: Timestamp) -> Result<Vec<OpenSubmission>, Error>;

    /// Records whose a workflow is, unless that is known already, and when FlowMesh took it; its held charges are
    /// released.
    async fn attribute(
        &self,
        workflow_id: &str,
        attribution: &Attribution,
        submitted_at: Option<Timestamp>,
        at: Timestamp,
    ) -> Result<(), Error>;

    /// Records tasks of a workflow, each with whether it has ended: then it is asked after at once. Returns how many of
    /// the workflow's tasks are not settled.
    async fn note_tasks(&self, workflow_id: &str, tasks: &[(&str, bool)], at: Timestamp) -> Result<u64, Error>;

    /// Ends a sweep: to be repeated, or not when everything is settled or the workflow gone. What was heard of it since it
    /// was claimed brings it up at once.
    async fn swept(&self, due: &DueWorkflow, next: NextSweep, existence: Existence, at: Timestamp)
    -> Result<(), Error>;

    /// Claims tasks that are due.
    async fn claim_tasks(&self, at: Timestamp, lease: Duration, pick: Pick) -> Result<Vec<DueTask>, Error>;

    /// Ends a question after a task that is not over: to be asked again at `again`, or when something is heard of it, at
    /// once if that was since it was claimed.
    async fn unsettled(
        &self,
        due: &DueTask,
        again: Option<Timestamp>,
        existence: Existence,
        at: Timestamp,
    ) -> Result<(), Error>;

    /// Ends a question after a task whose answer cannot be charged, for a `reason` that the operator should know: to be
    /// asked again at `again`.
    async fn hold_task(&self, due: &DueTask, reason: &str, again: Timestamp, at: Timestamp) -> Result<(), Error>;

    /// Settles a task that is over: at most one charge, and one per execution.
    async fn settle(
        &self,
        task_id: &str,
        workflow_id: Option<&str>,
        settlement: &Settlement,
        at: Timestamp,
    ) -> Result<Settled, Error>;

    /// Principals with charges that are held for want of an e-mail.
    async fn awaiting_email(&self) -> Result<Vec<String>, Error>;

    /// Claims charges to post.
    async fn claim_charges(&self, at: Timestamp, lease: Duration, pick: Pick) -> Result<Vec<DueCharge>, Error>;

    /// Runmesh has it. That is so whoever has claimed it meanwhile.
    async fn posted(&self, charge: &DueCharge, at: Timestamp) -> Result<Posted, Error>;

    /// It did not work; to be tried again at `again`, for whoever the workflow's owner is by now. Nothing, when somebody else has
    /// claimed it meanwhile.
    async fn post_failed(&self, charge: &DueCharge, error: &str, again: Timestamp, at: Timestamp) -> Result<(), Error>;

    /// Runmesh refused it for good. Likewise.
    async fn post_rejected(&self, charge: &DueCharge, answer: &str) -> Result<(), Error>;

    /// When the next piece of work is due, leases of others included.
    async fn next_due(&self, work: Work) -> Result<Option<Timestamp>, Error>;

    /// Deletes what is over and was so before `before`, in parts, so that nobody waits for all of it: workflows whose tasks
    /// are all settled and whose charges are all posted, with these; submissions of which no workflow is left; open ones
    /// that can match no more. Nothing unposted goes. `None`, and nothing done, while the owner of some workflow is still
    /// to be looked for. From then on [`Ledger::ours_since`] is not before `before`.
    async fn prune(&self, before: Timestamp, at: Timestamp) -> Result<Option<Pruned>, Error>;

    /// Counts by state. Cheap however many rows are done: those are not counted.
    async fn backlog(&self) -> Result<Backlog, Error>;

    /// Waits until what came is committed, and ends all connections. Nothing may come after it.
    async fn close(&self);
}

/// What comes after a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextSweep {
    At(Timestamp),
    /// It waits for the word of somebody else than FlowMesh until then, and this was none of the sweeps that grow apart.
    Wait(Timestamp),
    Settled,
    Gone,
}

/// The three kinds of claimed work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    Tasks,
    Workflows,
    Charges,
}
