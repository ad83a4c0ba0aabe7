//! Charge rows: settling writes them, posting moves them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use sqlx::{Row, SqliteConnection, SqlitePool};

use super::events::json;
use super::{due, ms, optional_time};
use crate::ledger::{Backlog, DueCharge, Pick, Settled, Settlement, Usage, Work};

/// A task that is over.
#[derive(Debug, Clone, Copy)]
pub struct Settling<'a> {
    pub task_id: &'a str,
    pub workflow_id: Option<&'a str>,
    pub settlement: &'a Settlement,
    pub at: Timestamp,
}

/// Settles tasks that are over: what is known of them is read, it is decided what comes of each, and that is written, in as
/// many statements for one as for a hundred.
pub async fn settle(tx: &mut SqliteConnection, items: &[Settling<'_>]) -> Result<Vec<Settled>, sqlx::Error> {
    let noted = noted(tx, items).await?;
    let workflow_of = |item: &Settling<'_>| -> Option<String> {
        let noted = noted.get(item.task_id).and_then(|task| task.workflow_id.clone());
        item.workflow_id.map(str::to_owned).or(noted)
    };
    let is_settled = |item: &Settling<'_>| noted.get(item.task_id).is_some_and(|task| task.is_settled);
    let billed = items.iter().filter(|item| matches!(item.settlement, Settlement::Usage(_)) && !is_settled(item));
    let owners = owners(tx, billed.filter_map(|item| Some((workflow_of(item)?, ms(item.at)))).collect()).await?;

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
                        charges.push(row(item, workflow_id.as_deref(), usage, owner, &came_to));
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
        let written = insert(tx, &charges).await?;
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
        sqlx::query(
            "INSERT INTO tasks (task_id, workflow_id, state, outcome, asked_at)
             SELECT value ->> 0, value ->> 1, 'settled', value ->> 2, value ->> 3 FROM json_each(?) WHERE true
             ON CONFLICT (task_id) DO UPDATE SET state = 'settled', outcome = excluded.outcome,
                 asked_at = excluded.asked_at, settle_at = NULL, hold_reason = NULL, leased_until = 0,
                 workflow_id = COALESCE(excluded.workflow_id, workflow_id)",
        )
        .bind(json(tasks)?)
        .execute(tx)
        .await?;
    }
    Ok(settled)
}

/// What is known of a task.
struct Noted {
    is_settled: bool,
    workflow_id: Option<String>,
}

async fn noted(tx: &mut SqliteConnection, items: &[Settling<'_>]) -> Result<HashMap<String, Noted>, sqlx::Error> {
    let ids: Vec<_> = items.iter().map(|item| item.task_id).collect();
    let rows = sqlx::query(
        "SELECT task_id, state = 'settled', workflow_id FROM tasks WHERE task_id IN (SELECT value FROM json_each(?))",
    )
    .bind(json(ids)?)
    .fetch_all(tx)
    .await?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, Noted { is_settled: row.try_get(1)?, workflow_id: row.try_get(2)? })))
        .collect()
}

enum Owner {
    Known { principal_id: String, has_email: bool },
    LookedForInVain,
    NotLookedFor,
    Ignored,
}

impl Owner {
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

async fn owners(
    tx: &mut SqliteConnection,
    workflows: BTreeMap<String, i64>,
) -> Result<HashMap<String, Owner>, sqlx::Error> {
    if workflows.is_empty() {
        return Ok(HashMap::new());
    }
    // The task may be known before its workflow is: then the sweep looks for the owner first.
    let workflows = json(workflows)?;
    sqlx::query(
        "INSERT INTO workflows (workflow_id, state, noted_at, sweep_at)
         SELECT key, 'open', value, value FROM json_each(?) WHERE true ON CONFLICT DO NOTHING",
    )
    .bind(&workflows)
    .execute(&mut *tx)
    .await?;
    let rows = sqlx::query(
        "SELECT workflow_id, state, attribution IS NOT NULL AS was_looked_for, workflows.principal_id, email
         FROM json_each(?) CROSS JOIN workflows ON workflow_id = key LEFT JOIN principals USING (principal_id)",
    )
    .bind(workflows)
    .fetch_all(tx)
    .await?;
    rows.iter()
        .map(|row| {
            let state: &str = row.try_get("state")?;
            let owner = match row.try_get::<Option<String>, _>("principal_id")? {
                Some(principal_id) => {
                    Owner::Known { principal_id, has_email: row.try_get::<Option<&str>, _>("email")?.is_some() }
                }
                None if state == "ignored" => Owner::Ignored,
                // Of one that FlowMesh does not know any more nothing will be found.
                None if state == "gone" || row.try_get("was_looked_for")? => Owner::LookedForInVain,
                None => Owner::NotLookedFor,
            };
            Ok((row.try_get("workflow_id")?, owner))
        })
        .collect()
}

/// A charge as [`insert`] takes it.
fn row(
    item: &Settling<'_>,
    workflow_id: Option<&str>,
    usage: &Usage,
    owner: &Owner,
    came_to: &Settled,
) -> serde_json::Value {
    let (state, hold_reason) = match came_to {
        Settled::Held { reason } => ("held", Some(*reason)),
        _ => ("pending", None),
    };
    let principal_id = if let Owner::Known { principal_id, .. } = owner { Some(principal_id) } else { None };
    serde_json::json!([
        item.task_id,
        workflow_id,
        principal_id,
        usage.supplier_id,
        usage.cost,
        usage.duration_sec,
        usage.cost_per_hour,
        usage.task_status,
        usage.assigned_worker,
        usage.started_at,
        usage.finished_at,
        state,
        hold_reason,
        ms(item.at),
    ])
}

/// Writes charges in their order, but for executions that are charged. Returns the tasks of those that were written.
async fn insert(tx: &mut SqliteConnection, charges: &[serde_json::Value]) -> Result<HashSet<String>, sqlx::Error> {
    let written: Vec<String> = sqlx::query_scalar(
        "INSERT INTO charges (task_id, workflow_id, principal_id, supplier_id, cost, duration_sec, cost_per_hour,
             task_status, assigned_worker, started_at, finished_at, state, hold_reason, post_at, created_at)
         SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7,
             value ->> 8, value ->> 9, value ->> 10, value ->> 11, value ->> 12, value ->> 13, value ->> 13
         FROM json_each(?) WHERE true ORDER BY key ON CONFLICT DO NOTHING RETURNING task_id",
    )
    .bind(json(charges)?)
    .fetch_all(tx)
    .await?;
    Ok(written.into_iter().collect())
}

/// Claims charges to post, of workflows whose owner was not corrected while an earlier post was under way.
pub async fn claim(
    tx: &mut SqliteConnection,
    at: Timestamp,
    lease: Duration,
    pick: Pick,
) -> Result<Vec<DueCharge>, sqlx::Error> {
    let rows = due::claimed(&mut *tx, (Work::Charges, pick), at, lease).await?;
    let mut claimed = Vec::with_capacity(rows.len());
    for row in &rows {
        let charge = DueCharge {
            task_id: row.try_get("task_id")?,
            workflow_id: row.try_get("workflow_id")?,
            principal_id: row.try_get("principal_id")?,
            email: row.try_get("email")?,
            cost: row.try_get("cost")?,
            duration_sec: row.try_get("duration_sec")?,
            cost_per_hour: row.try_get("cost_per_hour")?,
            task_status: row.try_get("task_status")?,
            attempts: row.try_get("attempts")?,
        };
        let owner: Option<String> = row.try_get("owner")?;
        match (&charge.workflow_id, owner) {
            // Whoever posted it last died before the word of it: the next claim is the owner's.
            (Some(workflow_id), Some(owner)) if owner != charge.principal_id => {
                sqlx::query("UPDATE charges SET leased_until = 0 WHERE task_id = ?")
                    .bind(&charge.task_id)
                    .execute(&mut *tx)
                    .await?;
                super::work::release(tx, &[workflow_id], at).await?;
            }
            // Likewise, and it has lost its owner meanwhile.
            _ if row.try_get("unowned")? => {
                sqlx::query(
                    "UPDATE charges SET leased_until = 0, state = 'held', hold_reason = 'no_owner', principal_id = NULL
                     WHERE task_id = ?",
                )
                .bind(&charge.task_id)
                .execute(&mut *tx)
                .await?;
            }
            _ => claimed.push(charge),
        }
    }
    Ok(claimed)
}

/// Runmesh has them: each with when it was told so.
pub async fn posted(tx: &mut SqliteConnection, posts: &[(&str, i64)]) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE charges SET state = 'posted', posted_at = told.value ->> 1, attempts = attempts + 1, leased_until = 0,
             last_error = NULL
         FROM json_each(?) AS told WHERE task_id = told.value ->> 0 AND state = 'pending'",
    )
    .bind(json(posts)?)
    .execute(tx)
    .await?;
    Ok(())
}

/// It did not work: each with why, and when it is to be tried again.
pub async fn failed(tx: &mut SqliteConnection, posts: &[(&str, &str, i64)], at: Timestamp) -> Result<(), sqlx::Error> {
    let workflows: Vec<Option<String>> = sqlx::query_scalar(
        "UPDATE charges SET attempts = attempts + 1, leased_until = 0, last_error = told.value ->> 1,
             post_at = told.value ->> 2
         FROM json_each(?) AS told WHERE task_id = told.value ->> 0 AND state = 'pending' RETURNING workflow_id",
    )
    .bind(json(posts)?)
    .fetch_all(&mut *tx)
    .await?;
    // Their owners may have been corrected while they were being posted.
    let workflows: BTreeSet<&str> = workflows.iter().flatten().map(String::as_str).collect();
    super::work::release(tx, &Vec::from_iter(workflows), at).await
}

/// Runmesh refused them for good: each with its answer.
pub async fn rejected(tx: &mut SqliteConnection, posts: &[(&str, &str)]) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE charges SET state = 'rejected', attempts = attempts + 1, leased_until = 0, last_error = told.value ->> 1
         FROM json_each(?) AS told WHERE task_id = told.value ->> 0 AND state = 'pending'",
    )
    .bind(json(posts)?)
    .execute(tx)
    .await?;
    Ok(())
}

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

/// What [`BACKLOG`] says.
pub async fn backlog(pool: &SqlitePool) -> Result<Backlog, sqlx::Error> {
    let row = sqlx::query(BACKLOG).fetch_one(pool).await?;
    let count = |name: &str| row.try_get::<i64, _>(name).map(i64::unsigned_abs);
    Ok(Backlog {
        open_submissions: count("open_submissions")?,
        open_workflows: count("open_workflows")?,
        held_workflows: count("held_workflows")?,
        due_tasks: count("due_tasks")?,
        held_tasks: count("held_tasks")?,
        gone_tasks: count("gone_tasks")?,
        pending_charges: count("pending_charges")?,
        held_charges: count("held_charges")?,
        rejected_charges: count("rejected_charges")?,
        oldest_pending: optional_time(&row, "oldest_pending")?,
        oldest_held: optional_time(&row, "oldest_held")?,
        oldest_rejected: optional_time(&row, "oldest_rejected")?,
        oldest_due_task: optional_time(&row, "oldest_due_task")?,
        oldest_open_workflow: optional_time(&row, "oldest_open_workflow")?,
    })
}
