//! The ledger as the operator sees it: what there is, and the few moves that only a person may make.
//!
//! Another process than `serve` uses it, at the same time: each move is one short transaction and idempotent, reading is
//! done in pages, and nothing here needs the ledger for itself. What a move changes `serve` notices by itself, within ten
//! seconds.

use jiff::Timestamp;

use super::{Error, OpenSubmission, money::Money};

/// What is where the ledger should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A ledger of this version.
    Ready,
    /// One that `serve` brings up to date.
    Older,
    /// Nothing yet.
    Nothing,
}

/// Where a charge is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChargeState {
    Pending,
    Held,
    Rejected,
    Posted,
}

impl ChargeState {
    /// In the order in which people want to see them.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Held, Self::Rejected, Self::Posted];

    /// Its name, here and in the schema.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Held => "held",
            Self::Rejected => "rejected",
            Self::Posted => "posted",
        }
    }

    /// The state of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

/// How many, and since when.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub rows: u64,
    pub oldest: Option<Timestamp>,
}

/// Everything that is not over, and what is kept of the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// When the ledger was made.
    pub born_at: Timestamp,
    /// When FlowMesh's list was last compared with it.
    pub compared_at: Option<Timestamp>,
    /// What was over before this may have been pruned.
    pub pruned_before: Option<Timestamp>,
    /// Of which no workflow is known; since they were let through.
    pub open_submissions: Tally,
    /// Not settled; since the ledger first heard of them.
    pub open_workflows: Tally,
    /// Without an owner; likewise.
    pub held_workflows: Tally,
    /// To be asked after; since when they are due.
    pub due_tasks: Tally,
    /// Not over, and not asked after before something is heard of them.
    pub waiting_tasks: Tally,
    /// Ended with a cost that cannot be read; since they were last asked after.
    pub held_tasks: Tally,
    /// Given up because FlowMesh does not know them; since then.
    pub gone_tasks: Tally,
    /// By state, in the order of [`ChargeState::ALL`]; since they were settled, or posted.
    pub charges: [Tally; 4],
}

/// A charge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charge {
    /// Its place in the ledger: later ones have higher numbers.
    pub number: i64,
    pub task_id: String,
    pub workflow_id: Option<String>,
    pub principal_id: Option<String>,
    /// The principal's, as last seen.
    pub email: Option<String>,
    pub supplier_id: Option<String>,
    /// US dollars, plain decimal notation.
    pub cost: String,
    /// Seconds.
    pub duration_sec: i64,
    /// US dollars per hour, a JSON number.
    pub cost_per_hour: String,
    pub task_status: String,
    pub assigned_worker: Option<String>,
    /// As FlowMesh wrote it, like `finished_at`.
    pub started_at: Option<String>,
    pub finished_at: Option<String>,
    pub state: ChargeState,
    /// `no_owner` or `no_email`, when held.
    pub hold_reason: Option<String>,
    /// Posts tried.
    pub attempts: u32,
    /// When it is posted next, when pending.
    pub post_at: Timestamp,
    /// Until when somebody is posting it.
    pub leased_until: Timestamp,
    pub last_error: Option<String>,
    pub created_at: Timestamp,
    pub posted_at: Option<Timestamp>,
}

/// Which charges; everything left out is all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub states: Vec<ChargeState>,
    pub principal_id: Option<String>,
    pub workflow_id: Option<String>,
    /// Settled at this time or later…
    pub since: Option<Timestamp>,
    /// …and before this.
    pub until: Option<Timestamp>,
}

/// A workflow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workflow {
    pub workflow_id: String,
    pub principal_id: Option<String>,
    /// The principal's, as last seen.
    pub email: Option<String>,
    pub submission_id: Option<String>,
    /// `log`, `matched`, `operator` or `held`; `None`: its owner has not been looked for.
    pub attribution: Option<String>,
    pub hold_reason: Option<String>,
    /// `open`, `settled`, `ignored` or `gone`.
    pub state: String,
    /// When FlowMesh took it, where FlowMesh was asked for its owner.
    pub submitted_at: Option<Timestamp>,
    /// When the ledger first heard of it.
    pub noted_at: Timestamp,
}

/// A task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    pub task_id: String,
    pub workflow_id: Option<String>,
    /// `open` or `settled`.
    pub state: String,
    /// Of settling: `charged`, `merged`, `nothing`, `ignored` or `gone`.
    pub outcome: Option<String>,
    /// Questions to FlowMesh since the last evidence.
    pub attempts: u32,
    /// When it was last asked after.
    pub asked_at: Option<Timestamp>,
    /// When it is asked after next.
    pub settle_at: Option<Timestamp>,
    /// Since when FlowMesh says that it does not know it.
    pub unknown_since: Option<Timestamp>,
    /// Why what FlowMesh said of it cannot be charged.
    pub hold_reason: Option<String>,
}

/// A submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submission {
    pub submission_id: String,
    pub principal_id: String,
    /// Envoy's request id, which the client was told as `x-request-id`.
    pub request_id: String,
    pub opened_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    /// `open`, `resolved` or `refused`.
    pub state: String,
}

/// Which charges to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry<'a> {
    /// This one, when it is rejected, or pending and not due.
    Task(&'a str),
    /// The rejected ones.
    Rejected,
    /// Those, and the pending ones that are not due.
    All,
}

/// A charge that is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retried {
    /// Its place in the ledger.
    pub number: i64,
    pub task_id: String,
    /// Where it was.
    pub from: ChargeState,
    pub principal_id: Option<String>,
    /// US dollars, plain decimal notation.
    pub cost: String,
}

/// The operator's word on whose a workflow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Naming<'a> {
    pub workflow_id: &'a str,
    pub principal_id: &'a str,
    /// Where bills go, when the ledger does not know.
    pub email: Option<&'a str>,
    /// The principal's submission that made it, which is used up unless it is by now.
    pub submission_id: Option<&'a str>,
    pub at: Timestamp,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    Done {
        /// Charges that go out now.
        released: u64,
        /// Charges that still wait for an e-mail address of the principal's.
        held: u64,
        /// Whether the submission was used up.
        used_submission: bool,
    },
    /// The ledger knows no such workflow.
    UnknownWorkflow,
    /// It is older than the ledger, or than what it keeps.
    Ignored,
    /// Nobody of that name has submitted anything, and no e-mail address was given.
    UnknownPrincipal,
    /// An e-mail address was given, and the ledger knows another one from lum.id.
    OtherEmail,
    /// It is another principal's, and something was posted for it.
    Posted { principal_id: String },
    /// It is another principal's, and something is being posted for it now.
    BeingPosted { principal_id: String },
}

/// Where a page of posted charges begins: after this time of posting and this task.
pub type After = (Timestamp, String);

/// The few rows that the console shows, the newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Glance {
    /// Charges in whatever state.
    pub latest: Vec<Charge>,
    pub held: Vec<Charge>,
    pub rejected: Vec<Charge>,
    /// Whose owner was looked for in vain.
    pub held_workflows: Vec<Workflow>,
    /// Whose cost cannot be read.
    pub held_tasks: Vec<Task>,
}

/// What the operator's commands and the console need.
#[async_trait::async_trait]
pub trait Books: Send + Sync {
    /// Counts of everything that matters.
    async fn standing(&self) -> Result<Standing, Error>;

    /// The sum of all charges in a state. Reads all of them.
    async fn sum(&self, state: ChargeState) -> Result<Money, Error>;

    /// Up to `limit` charges that match, the newest first, with a lower number than `below`.
    async fn charges(&self, filter: &Filter, below: Option<i64>, limit: u32) -> Result<Vec<Charge>, Error>;

    /// Up to `rows` of each kind. Takes no longer the more there are.
    async fn glance(&self, rows: u32) -> Result<Glance, Error>;

    /// Up to `limit` charges posted from `since` to before `until`, in the order of posting, after `after`.
    async fn posted(
        &self,
        since: Timestamp,
        until: Timestamp,
        after: Option<&After>,
        limit: u32,
    ) -> Result<Vec<Charge>, Error>;

    /// Up to `limit` workflows whose owner was looked for in vain, in the order of their ids, after `after`.
    async fn held_workflows(&self, after: &str, limit: u32) -> Result<Vec<Workflow>, Error>;

    /// Submissions still open that may have made a workflow that FlowMesh took `at`.
    async fn candidates(&self, at: Timestamp) -> Result<Vec<OpenSubmission>, Error>;

    async fn charge(&self, task_id: &str) -> Result<Option<Charge>, Error>;

    async fn task(&self, task_id: &str) -> Result<Option<Task>, Error>;

    async fn workflow(&self, workflow_id: &str) -> Result<Option<Workflow>, Error>;

    async fn submission(&self, submission_id: &str) -> Result<Option<Submission>, Error>;

    /// Up to `limit` tasks whose cost cannot be read, in the order of their ids, after `after`.
    async fn held_tasks(&self, after: &str, limit: u32) -> Result<Vec<Task>, Error>;

    /// Up to `limit` tasks of a workflow, in the order of their ids, after `after`.
    async fn tasks(&self, workflow_id: &str, after: &str, limit: u32) -> Result<Vec<Task>, Error>;

    /// Puts up to `limit` charges up for posting now, in the order of their numbers, after `after`, and returns them. Money
    /// cannot move twice by it, because Runmesh is idempotent on the task id. What is being posted is left alone.
    async fn retry(&self, which: Retry<'_>, after: i64, at: Timestamp, limit: u32) -> Result<Vec<Retried>, Error>;

    /// Names the owner of a workflow; its unposted charges are theirs.
    async fn name_owner(&self, naming: Naming<'_>) -> Result<Named, Error>;

    /// Ends all connections.
    async fn close(&self);
}
