//! Workflow and task rows: what the sweeps tell.

use std::collections::BTreeMap;

use jiff::Timestamp;
use sqlx::SqliteConnection;

use super::events::json;
use crate::ledger::{DueTask, ms};

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
