//! Tasks that are over → charges, whatever the database.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::Timestamp;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{Settled, Settlement, Usage, ms};

/// Of a worker's id or a time as they are kept, in bytes.
const LONGEST_NAME: usize = 512;

/// A task that is over.
#[derive(Debug, Clone, Copy)]
pub struct Settling<'a> {
    pub task_id: &'a str,
    pub workflow_id: Option<&'a str>,
    pub settlement: &'a Settlement,
    pub at: Timestamp,
}

/// What is known of a task.
#[derive(Debug, Clone)]
pub struct Noted {
    pub is_settled: bool,
    pub workflow_id: Option<String>,
}

/// Whose a workflow is.
#[derive(Debug, Clone)]
pub enum Owner {
    Known { principal_id: String, has_email: bool },
    LookedForInVain,
    NotLookedFor,
    Ignored,
}

impl Owner {
    /// From a workflow's row.
    #[must_use]
    pub fn new(principal_id: Option<String>, has_email: bool, state: &str, was_looked_for: bool) -> Self {
        match principal_id {
            Some(principal_id) => Self::Known { principal_id, has_email },
            None if state == "ignored" => Self::Ignored,
            // Of one that FlowMesh does not know any more nothing will be found.
            None if state == "gone" || was_looked_for => Self::LookedForInVain,
            None => Self::NotLookedFor,
        }
    }

    /// What settling a task with usage comes to, unless its execution is charged already.
    fn settled(&self) -> Settled {
        match self {
            Self::Known { principal_id, has_email: true } => Settled::Charged { principal_id: principal_id.clone() },
            Self::Known { has_email: false, .. } => Settled::Held { reason: "no_email" },
            Self::LookedForInVain => Settled::Held { reason: "no_owner" },
            Self::NotLookedFor => Settled::Deferred,
            Self::Ignored => Settled::Ignored,
        }
    }
}

/// A charge's row, its fields in the order of the columns. Serialized as a sequence.
#[derive(Debug, Clone, Serialize)]
pub struct ChargeRow<'a>(
    pub &'a str,
    pub Option<String>,
    pub Option<&'a str>,
    pub Option<&'a str>,
    pub &'a str,
    pub i64,
    pub &'a str,
    pub &'a str,
    pub Option<Cow<'a, str>>,
    pub Option<Cow<'a, str>>,
    pub Option<Cow<'a, str>>,
    pub &'static str,
    pub Option<&'static str>,
    pub i64,
);

/// A settled task: its id, its workflow, what came of it, and when (ms).
pub type SettledTask<'a> = (&'a str, Option<String>, &'static str, i64);

/// The statements by which a database settles tasks: one each, for any number of rows. Times are ms since the epoch.
pub trait ChargeTables: Send {
    /// What is known of tasks, by id.
    fn noted(&mut self, tasks: &[&str]) -> impl Future<Output = Result<HashMap<String, Noted>, sqlx::Error>> + Send;

    /// Whose workflows are. One that is not known is noted at the time given: then the sweep looks for the owner first.
    fn owners(
        &mut self,
        workflows: &BTreeMap<String, i64>,
    ) -> impl Future<Output = Result<HashMap<String, Owner>, sqlx::Error>> + Send;

    /// Writes charges in their order, but for executions that are charged. Returns the tasks of those that were written.
    fn insert_charges(
        &mut self,
        charges: &[ChargeRow<'_>],
    ) -> impl Future<Output = Result<HashSet<String>, sqlx::Error>> + Send;

    fn settle_tasks(&mut self, tasks: &[SettledTask<'_>]) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Gives the unposted charges of workflows to their owners.
    fn release(&mut self, workflows: &[&str], at: i64) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

/// Settles tasks that are over: what is known of them is read, it is decided what comes of each, and that is written, in as
/// many statements for one as for a hundred.
pub async fn settle<T: ChargeTables>(to: &mut T, items: &[Settling<'_>]) -> Result<Vec<Settled>, sqlx::Error> {
    let tasks: Vec<&str> = items.iter().map(|item| item.task_id).collect();
    let noted = to.noted(&tasks).await?;
    let workflow_of = |item: &Settling<'_>| -> Option<String> {
        let noted = noted.get(item.task_id).and_then(|task| task.workflow_id.clone());
        item.workflow_id.map(str::to_owned).or(noted)
    };
    let is_settled = |item: &Settling<'_>| noted.get(item.task_id).is_some_and(|task| task.is_settled);
    let billed = items.iter().filter(|item| matches!(item.settlement, Settlement::Usage(_)) && !is_settled(item));
    let workflows: BTreeMap<String, i64> = billed.filter_map(|item| Some((workflow_of(item)?, ms(item.at)))).collect();
    let owners = if workflows.is_empty() { HashMap::new() } else { to.owners(&workflows).await? };

    // In their order; a task that comes twice is settled the second time, or as little as the first.
    let mut settled: Vec<Settled> = Vec::with_capacity(items.len());
    let mut first: HashMap<&str, bool> = HashMap::new();
    let (mut charges, mut tasks) = (Vec::new(), Vec::new());
    for item in items {
        let workflow_id = workflow_of(item);
        let came_to = if is_settled(item) {
            Settled::Already
        } else if let Some(deferred) = first.get(item.task_id) {
            if *deferred { Settled::Deferred } else { Settled::Already }
        } else {
            match item.settlement {
                Settlement::Nothing => Settled::Nothing,
                Settlement::Gone => Settled::Gone,
                Settlement::Usage(usage) => {
                    // A task of no workflow is nobody's.
                    let owner = workflow_id.as_ref().and_then(|id| owners.get(id)).unwrap_or(&Owner::LookedForInVain);
                    let came_to = owner.settled();
                    if let Settled::Charged { .. } | Settled::Held { .. } = &came_to {
                        charges.push(row(item, workflow_id, usage, owner, &came_to));
                    }
                    came_to
                }
            }
        };
        if came_to != Settled::Already {
            first.entry(item.task_id).or_insert(came_to == Settled::Deferred);
        }
        settled.push(came_to);
    }
    if !charges.is_empty() {
        let written = to.insert_charges(&charges).await?;
        for (item, came_to) in items.iter().zip(&mut settled) {
            if matches!(came_to, Settled::Charged { .. } | Settled::Held { .. }) && !written.contains(item.task_id) {
                *came_to = Settled::Merged;
            }
        }
    }
    for (item, came_to) in items.iter().zip(&settled) {
        let outcome = match came_to {
            Settled::Already | Settled::Deferred => continue,
            Settled::Charged { .. } | Settled::Held { .. } => "charged",
            Settled::Merged => "merged",
            Settled::Nothing => "nothing",
            Settled::Ignored => "ignored",
            Settled::Gone => "gone",
        };
        tasks.push((item.task_id, workflow_of(item), outcome, ms(item.at)));
    }
    if !tasks.is_empty() {
        to.settle_tasks(&tasks).await?;
    }
    Ok(settled)
}

/// A part of an execution's name, as it is kept. By its name an execution is charged once, so it is in an index, and a row of
/// PostgreSQL's has some 2700 bytes there. What is absurdly long is therefore kept as its digest: the same of the same.
fn indexed(name: &str) -> Cow<'_, str> {
    if name.len() <= LONGEST_NAME {
        return name.into();
    }
    let digest = Sha256::digest(name.as_bytes());
    let hex = digest.iter().fold(String::from("sha256:"), |hex, byte| format!("{hex}{byte:02x}"));
    hex.into()
}

/// The row of a charge.
fn row<'a>(
    item: &Settling<'a>,
    workflow_id: Option<String>,
    usage: &'a Usage,
    owner: &'a Owner,
    came_to: &Settled,
) -> ChargeRow<'a> {
    let (state, hold_reason) = match came_to {
        Settled::Held { reason } => ("held", Some(*reason)),
        _ => ("pending", None),
    };
    let principal_id = if let Owner::Known { principal_id, .. } = owner { Some(principal_id.as_str()) } else { None };
    ChargeRow(
        item.task_id,
        workflow_id,
        principal_id,
        usage.supplier_id.as_deref(),
        &usage.cost,
        usage.duration_sec,
        &usage.cost_per_hour,
        &usage.task_status,
        usage.assigned_worker.as_deref().map(indexed),
        usage.started_at.as_deref().map(indexed),
        usage.finished_at.as_deref().map(indexed),
        state,
        hold_reason,
        ms(item.at),
    )
}
