//! Submission, workflow and task rows: what the sweeps read and tell.

use std::collections::BTreeMap;

use jiff::Timestamp;
use sqlx::postgres::PgConnection;

use super::events::statement;
use super::text::stored;
use crate::ledger::records::{OPEN_SUBMISSIONS, OpenRecord};
use crate::ledger::{DueTask, OpenSubmission, ms};

/// Submissions still open that began from `since` to `until`.
pub async fn open_between(
    connection: &mut PgConnection,
    since: Timestamp,
    until: Timestamp,
) -> Result<Vec<OpenSubmission>, sqlx::Error> {
    let rows: Vec<OpenRecord> =
        sqlx::query_as(OPEN_SUBMISSIONS).bind(ms(since)).bind(ms(until)).fetch_all(connection).await?;
    Ok(rows.into_iter().map(OpenSubmission::from).collect())
}

/// Notes workflows that FlowMesh has, also those that it seemed to have forgotten. Returns how many were news.
pub async fn note_workflows(
    connection: &mut PgConnection,
    workflows: &[&(String, Option<Timestamp>)],
    at: Timestamp,
) -> Result<u64, sqlx::Error> {
    // One row for each, whatever FlowMesh lists.
    let rows: BTreeMap<&str, Option<i64>> = workflows.iter().map(|(id, at)| (id.as_str(), at.map(ms))).collect();
    let again = statement(
        "UPDATE workflows SET state = 'open', sweep_at = $2, unknown_since = NULL
         WHERE workflow_id IN (SELECT jsonb_object_keys($1::text::jsonb)) AND state = 'gone'",
        &rows,
    )?;
    again.bind(ms(at)).execute(&mut *connection).await?;
    let note = statement(
        "INSERT INTO workflows (workflow_id, state, noted_at, sweep_at)
         SELECT key, CASE WHEN value IS NULL THEN 'ignored' ELSE 'open' END, $2, COALESCE(value::bigint, $2)
         FROM jsonb_each_text($1::text::jsonb) ON CONFLICT DO NOTHING",
        &rows,
    )?;
    Ok(note.bind(ms(at)).execute(connection).await?.rows_affected())
}

/// Notes tasks of a workflow; those that have ended are asked after at once. Returns how many are not settled.
pub async fn note_tasks(
    connection: &mut PgConnection,
    workflow_id: &str,
    tasks: &[(&str, bool)],
    at: Timestamp,
) -> Result<u64, sqlx::Error> {
    let mut rows: BTreeMap<&str, bool> = BTreeMap::new();
    for (task_id, ended) in tasks {
        *rows.entry(task_id).or_default() |= ended;
    }
    // An eager task has its own growing interval; the sweep must not reset it each time.
    let note = statement(
        "INSERT INTO tasks (task_id, workflow_id, state, eager, settle_at)
         SELECT key, $2, 'open', value::boolean, CASE WHEN value::boolean THEN $3::bigint END
         FROM jsonb_each($1::text::jsonb)
         ON CONFLICT (task_id) DO UPDATE SET workflow_id = $2, eager = tasks.eager OR excluded.eager, state = 'open',
             outcome = NULL,
             settle_at = CASE WHEN excluded.eager AND (tasks.settle_at IS NULL OR NOT tasks.eager) THEN $3
                              ELSE tasks.settle_at END
         WHERE tasks.state = 'open' OR tasks.outcome = 'gone'",
        rows,
    )?;
    note.bind(stored(workflow_id).into_owned()).bind(ms(at)).execute(&mut *connection).await?;
    let open: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM tasks WHERE workflow_id = $1 AND state = 'open'")
        .bind(stored(workflow_id))
        .fetch_one(connection)
        .await?;
    Ok(open.unsigned_abs())
}

/// What FlowMesh says of it cannot be charged.
pub async fn hold_task(
    connection: &mut PgConnection,
    due: &DueTask,
    reason: &str,
    again: Timestamp,
    at: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE tasks SET leased_until = 0, attempts = attempts + 1, asked_at = $3,
             settle_at = CASE WHEN heard = $5 THEN $2 ELSE LEAST(settle_at, $3) END, hold_reason = $4,
             unknown_since = NULL
         WHERE task_id = $1 AND state = 'open'",
    )
    .bind(stored(&due.task_id))
    .bind(ms(again))
    .bind(ms(at))
    .bind(stored(reason))
    .bind(due.heard)
    .execute(connection)
    .await?;
    Ok(())
}

/// Submissions let through from `since` to `until` may have no row.
pub async fn note_gap(connection: &mut PgConnection, since: Timestamp, until: Timestamp) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO gaps (since, until) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(ms(since))
        .bind(ms(until))
        .execute(connection)
        .await?;
    Ok(())
}
