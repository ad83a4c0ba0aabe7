//! Charge rows: settling writes them, posting moves them.

use jiff::Timestamp;
use sqlx::{AssertSqlSafe, Row, SqliteConnection, SqlitePool};

use super::{by, ms, optional_time};
use crate::ledger::{Backlog, DueCharge, Pick, Settled, Settlement, Usage};

/// Settles a task that is over.
pub async fn settle(
    tx: &mut SqliteConnection,
    task_id: &str,
    workflow_id: Option<&str>,
    settlement: &Settlement,
    at: Timestamp,
) -> Result<Settled, sqlx::Error> {
    let row = sqlx::query("SELECT state, workflow_id FROM tasks WHERE task_id = ?")
        .bind(task_id)
        .fetch_optional(&mut *tx)
        .await?;
    let mut noted: Option<String> = None;
    if let Some(row) = row {
        if row.try_get::<String, _>("state")? == "settled" {
            return Ok(Settled::Already);
        }
        noted = row.try_get("workflow_id")?;
    }
    let workflow_id = workflow_id.or(noted.as_deref());
    let settled = match settlement {
        Settlement::Nothing => Settled::Nothing,
        Settlement::Gone => Settled::Gone,
        Settlement::Usage(usage) => match owner(tx, workflow_id, at).await? {
            Owner::NotLookedFor => return Ok(Settled::Deferred),
            Owner::Ignored => Settled::Ignored,
            owner => charge(tx, task_id, workflow_id, usage, owner, at).await?,
        },
    };
    let outcome = match settled {
        Settled::Charged { .. } | Settled::Held { .. } => "charged",
        Settled::Merged => "merged",
        Settled::Nothing | Settled::Already | Settled::Deferred => "nothing",
        Settled::Ignored => "ignored",
        Settled::Gone => "gone",
    };
    sqlx::query(
        "INSERT INTO tasks (task_id, workflow_id, state, outcome, asked_at) VALUES (?1, ?2, 'settled', ?3, ?4)
         ON CONFLICT (task_id) DO UPDATE SET state = 'settled', outcome = ?3, asked_at = ?4, settle_at = NULL,
             hold_reason = NULL, leased_until = 0, workflow_id = COALESCE(?2, workflow_id)",
    )
    .bind(task_id)
    .bind(workflow_id)
    .bind(outcome)
    .bind(ms(at))
    .execute(tx)
    .await?;
    Ok(settled)
}

enum Owner {
    Known { principal_id: String, has_email: bool },
    LookedForInVain,
    NotLookedFor,
    Ignored,
}

async fn owner(tx: &mut SqliteConnection, workflow_id: Option<&str>, at: Timestamp) -> Result<Owner, sqlx::Error> {
    // A task of no workflow is nobody's.
    let Some(workflow_id) = workflow_id else { return Ok(Owner::LookedForInVain) };
    // The task may be known before its workflow is: then the sweep looks for the owner first.
    super::work::insert_workflow(tx, workflow_id, Some(at), at).await?;
    let row = sqlx::query(
        "SELECT state, attribution, workflows.principal_id, email
         FROM workflows LEFT JOIN principals USING (principal_id) WHERE workflow_id = ?",
    )
    .bind(workflow_id)
    .fetch_one(tx)
    .await?;
    let principal_id: Option<String> = row.try_get("principal_id")?;
    if let Some(principal_id) = principal_id {
        let email: Option<String> = row.try_get("email")?;
        return Ok(Owner::Known { principal_id, has_email: email.is_some() });
    }
    if row.try_get::<String, _>("state")? == "ignored" {
        return Ok(Owner::Ignored);
    }
    let attribution: Option<String> = row.try_get("attribution")?;
    // Of one that FlowMesh does not know any more nothing will be found.
    let is_gone = row.try_get::<String, _>("state")? == "gone";
    Ok(if attribution.is_some() || is_gone { Owner::LookedForInVain } else { Owner::NotLookedFor })
}

async fn charge(
    tx: &mut SqliteConnection,
    task_id: &str,
    workflow_id: Option<&str>,
    usage: &Usage,
    owner: Owner,
    at: Timestamp,
) -> Result<Settled, sqlx::Error> {
    let (principal_id, state, hold_reason) = match owner {
        Owner::Known { principal_id, has_email: true } => (Some(principal_id), "pending", None),
        Owner::Known { principal_id, has_email: false } => (Some(principal_id), "held", Some("no_email")),
        Owner::LookedForInVain | Owner::NotLookedFor | Owner::Ignored => (None, "held", Some("no_owner")),
    };
    let inserted = sqlx::query(
        "INSERT INTO charges (task_id, workflow_id, principal_id, supplier_id, cost, duration_sec, cost_per_hour,
             task_status, assigned_worker, started_at, finished_at, state, hold_reason, post_at, created_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?14)
         ON CONFLICT DO NOTHING",
    )
    .bind(task_id)
    .bind(workflow_id)
    .bind(&principal_id)
    .bind(&usage.supplier_id)
    .bind(&usage.cost)
    .bind(usage.duration_sec)
    .bind(&usage.cost_per_hour)
    .bind(&usage.task_status)
    .bind(&usage.assigned_worker)
    .bind(&usage.started_at)
    .bind(&usage.finished_at)
    .bind(state)
    .bind(hold_reason)
    .bind(ms(at))
    .execute(tx)
    .await?;
    Ok(match (inserted.rows_affected(), hold_reason, principal_id) {
        (0, ..) => Settled::Merged,
        (_, None, Some(principal_id)) => Settled::Charged { principal_id },
        (_, reason, _) => Settled::Held { reason: reason.unwrap_or("no_owner") },
    })
}

/// Claims charges to post, of workflows whose owner was not corrected while an earlier post was under way.
pub async fn claim(
    tx: &mut SqliteConnection,
    at: Timestamp,
    until: i64,
    pick: Pick,
) -> Result<Vec<DueCharge>, sqlx::Error> {
    let (order, limit) = by(pick, "attempts", "post_at");
    let rows = sqlx::query(AssertSqlSafe(format!(
        "UPDATE charges SET leased_until = ?2 WHERE task_id IN (
             SELECT task_id FROM charges
             WHERE state = 'pending' AND post_at <= ?1 AND leased_until <= ?1
               AND principal_id IN (SELECT principal_id FROM principals WHERE email IS NOT NULL)
             ORDER BY {order} LIMIT ?3)
         RETURNING task_id, workflow_id, principal_id, cost, duration_sec, cost_per_hour, task_status, attempts,
             (SELECT owner.principal_id FROM workflows AS owner WHERE owner.workflow_id = charges.workflow_id) AS owner,
             EXISTS (SELECT 1 FROM workflows WHERE workflows.workflow_id = charges.workflow_id
                     AND workflows.principal_id IS NULL) AS unowned,
             (SELECT email FROM principals WHERE principals.principal_id = charges.principal_id) AS email",
    )))
    .bind(ms(at))
    .bind(until)
    .bind(limit)
    .fetch_all(&mut *tx)
    .await?;
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
                super::work::release(tx, workflow_id, at).await?;
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

/// Runmesh has it.
pub async fn posted(pool: &SqlitePool, task_id: &str, at: Timestamp) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE charges SET state = 'posted', posted_at = ?2, attempts = attempts + 1, leased_until = 0, last_error = NULL
         WHERE task_id = ?1 AND state = 'pending'",
    )
    .bind(task_id)
    .bind(ms(at))
    .execute(pool)
    .await?;
    Ok(())
}

/// It did not work.
pub async fn failed(
    tx: &mut SqliteConnection,
    task_id: &str,
    error: &str,
    again: Timestamp,
    at: Timestamp,
) -> Result<(), sqlx::Error> {
    let workflow_id: Option<Option<String>> = sqlx::query_scalar(
        "UPDATE charges SET attempts = attempts + 1, leased_until = 0, last_error = ?2, post_at = ?3
         WHERE task_id = ?1 AND state = 'pending' RETURNING workflow_id",
    )
    .bind(task_id)
    .bind(error)
    .bind(ms(again))
    .fetch_optional(&mut *tx)
    .await?;
    // Its owner may have been corrected while it was being posted.
    match workflow_id.flatten() {
        Some(workflow_id) => super::work::release(tx, &workflow_id, at).await,
        None => Ok(()),
    }
}

/// Runmesh refused it for good.
pub async fn rejected(pool: &SqlitePool, task_id: &str, answer: &str) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE charges SET state = 'rejected', attempts = attempts + 1, leased_until = 0, last_error = ?2
         WHERE task_id = ?1 AND state = 'pending'",
    )
    .bind(task_id)
    .bind(answer)
    .execute(pool)
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
