//! Workflow and task rows: what the log and the sweeps tell.

use std::collections::BTreeMap;

use jiff::Timestamp;
use sqlx::SqliteConnection;

use super::events::json;
use super::{ms, submissions};
use crate::ledger::{Attribution, DueTask};

/// One submission makes one workflow: another that was matched with it is somebody else's, and its owner is looked for again.
pub async fn unmatch_others(
    tx: &mut SqliteConnection,
    submission_id: &str,
    workflow_id: &str,
    at: Timestamp,
) -> Result<(), sqlx::Error> {
    let others: Vec<String> = sqlx::query_scalar(
        "UPDATE workflows SET principal_id = NULL, submission_id = NULL, attribution = 'held',
             hold_reason = 'the submission it was matched with made another workflow',
             heard = heard + 1, sweep_at = ?3, state = IIF(state = 'settled', 'open', state)
         WHERE submission_id = ?1 AND workflow_id <> ?2 AND attribution = 'matched' RETURNING workflow_id",
    )
    .bind(submission_id)
    .bind(workflow_id)
    .bind(ms(at))
    .fetch_all(&mut *tx)
    .await?;
    for other in others {
        sqlx::query(
            "UPDATE charges SET principal_id = NULL, state = 'held', hold_reason = 'no_owner'
             WHERE workflow_id = ?1 AND (state = 'held' OR (state = 'pending' AND leased_until <= ?2))",
        )
        .bind(other)
        .bind(ms(at))
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

/// Notes workflows that FlowMesh has, also those that it seemed to have forgotten. Returns how many were news.
pub async fn note_workflows(
    tx: &mut SqliteConnection,
    workflows: &[&(String, Option<Timestamp>)],
    at: Timestamp,
) -> Result<u64, sqlx::Error> {
    let rows: Vec<_> = workflows.iter().map(|(id, sweep_at)| (id, sweep_at.map(ms))).collect();
    let rows = json(rows)?;
    sqlx::query(
        "UPDATE workflows SET state = 'open', sweep_at = ?2, unknown_since = NULL
         WHERE workflow_id IN (SELECT value ->> 0 FROM json_each(?1)) AND state = 'gone'",
    )
    .bind(&rows)
    .bind(ms(at))
    .execute(&mut *tx)
    .await?;
    let noted = sqlx::query(
        "INSERT INTO workflows (workflow_id, state, noted_at, sweep_at)
         SELECT value ->> 0, IIF(value ->> 1 IS NULL, 'ignored', 'open'), ?2, COALESCE(value ->> 1, ?2)
         FROM json_each(?1) WHERE true ON CONFLICT DO NOTHING",
    )
    .bind(&rows)
    .bind(ms(at))
    .execute(tx)
    .await?;
    Ok(noted.rows_affected())
}

/// Records whose a workflow is, unless that is known already.
pub async fn attribute(
    tx: &mut SqliteConnection,
    workflow_id: &str,
    attribution: &Attribution,
    submitted_at: Option<Timestamp>,
    at: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE workflows SET submitted_at = ?2 WHERE workflow_id = ?1 AND submitted_at IS NULL")
        .bind(workflow_id)
        .bind(submitted_at.map(ms))
        .execute(&mut *tx)
        .await?;
    match attribution {
        Attribution::Ignored => {
            // It is not swept any more, so nobody else lifts its lease.
            sqlx::query(
                "UPDATE workflows SET state = 'ignored', leased_until = 0
                 WHERE workflow_id = ? AND attribution IS NULL",
            )
            .bind(workflow_id)
            .execute(tx)
            .await?;
            Ok(())
        }
        Attribution::Held { reason } => {
            sqlx::query(
                "UPDATE workflows SET attribution = 'held', hold_reason = ?2
                 WHERE workflow_id = ?1 AND (attribution IS NULL OR attribution = 'held')",
            )
            .bind(workflow_id)
            .bind(reason)
            .execute(tx)
            .await?;
            Ok(())
        }
        Attribution::Matched { submission_id, principal_id } => {
            let matched = sqlx::query(
                "UPDATE workflows SET attribution = 'matched', hold_reason = NULL, principal_id = ?2, submission_id = ?3
                 WHERE workflow_id = ?1 AND (attribution IS NULL OR attribution = 'held')
                   AND EXISTS (SELECT 1 FROM submissions WHERE submission_id = ?3 AND state = 'open')",
            )
            .bind(workflow_id)
            .bind(principal_id)
            .bind(submission_id)
            .execute(&mut *tx)
            .await?;
            // Else the log was faster, or another workflow took the submission: the next sweep looks again.
            if matched.rows_affected() == 1 {
                submissions::resolve(tx, submission_id, workflow_id, at).await?;
                release(tx, &[workflow_id], at).await?;
            }
            Ok(())
        }
    }
}

/// Gives the unposted charges of workflows to their owners.
pub async fn release(tx: &mut SqliteConnection, workflows: &[&str], at: Timestamp) -> Result<(), sqlx::Error> {
    if workflows.is_empty() {
        return Ok(());
    }
    // The workflows first, and their charges by the index: CROSS JOIN keeps SQLite from beginning with all charges.
    sqlx::query(
        "UPDATE charges SET principal_id = owner.principal_id, post_at = ?2,
             state = IIF(owner.email IS NULL, 'held', 'pending'),
             hold_reason = IIF(owner.email IS NULL, 'no_email', NULL)
         FROM (SELECT unposted.rowid AS number, principals.principal_id, email
               FROM json_each(?1) CROSS JOIN workflows ON workflows.workflow_id = value
               JOIN principals ON principals.principal_id = workflows.principal_id
               CROSS JOIN charges AS unposted ON unposted.workflow_id = value
               WHERE unposted.principal_id IS NOT principals.principal_id
                 AND (unposted.state = 'held' OR (unposted.state = 'pending' AND unposted.leased_until <= ?2))) AS owner
         WHERE charges.rowid = owner.number",
    )
    .bind(json(workflows)?)
    .bind(ms(at))
    .execute(tx)
    .await?;
    Ok(())
}

/// Notes tasks of a workflow; those that have ended are asked after at once.
pub async fn note_tasks(
    tx: &mut SqliteConnection,
    workflow_id: &str,
    tasks: &[(&str, bool)],
    at: Timestamp,
) -> Result<(), sqlx::Error> {
    // One row for each, whatever FlowMesh lists.
    let mut rows: BTreeMap<&str, u8> = BTreeMap::new();
    for (task_id, ended) in tasks {
        let row = rows.entry(task_id).or_default();
        *row = (*row).max(u8::from(*ended));
    }
    // An eager task has its own growing interval; the sweep must not reset it each time.
    sqlx::query(
        "INSERT INTO tasks (task_id, workflow_id, state, eager, settle_at)
         SELECT key, ?2, 'open', value, IIF(value, ?3, NULL) FROM json_each(?1) WHERE true
         ON CONFLICT (task_id) DO UPDATE SET workflow_id = ?2, eager = MAX(eager, excluded.eager), state = 'open',
             outcome = NULL,
             settle_at = IIF(excluded.eager AND (settle_at IS NULL OR NOT eager), ?3, settle_at)
         WHERE state = 'open' OR outcome = 'gone'",
    )
    .bind(json(rows)?)
    .bind(workflow_id)
    .bind(ms(at))
    .execute(tx)
    .await?;
    Ok(())
}

/// What FlowMesh says of it cannot be charged.
pub async fn hold_task(
    tx: &mut SqliteConnection,
    due: &DueTask,
    reason: &str,
    again: Timestamp,
    at: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE tasks SET leased_until = 0, attempts = attempts + 1, asked_at = ?3,
             settle_at = IIF(heard = ?5, ?2, MIN(settle_at, ?3)), hold_reason = ?4,
             unknown_since = NULL
         WHERE task_id = ?1 AND state = 'open'",
    )
    .bind(&due.task_id)
    .bind(ms(again))
    .bind(ms(at))
    .bind(reason)
    .bind(due.heard)
    .execute(tx)
    .await?;
    Ok(())
}
