//! What the log tells, in SQLite's words.
//!
//! sqlx hands each statement to SQLite's own thread, which costs 20 to 30 µs whatever the statement does, and an event has one
//! to eight. In sets a task's event takes 5 to 17 µs of processor time in all, with nothing in the ledger and with 200 000
//! tasks, and a submission's 16 to 48. Rows are handed over as JSON and read by `json_each`.

use std::collections::BTreeSet;

use serde::Serialize;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Row, SqliteConnection};

use crate::ledger::batch::Counted;
use crate::ledger::recording::{LateRow, LogTables, OverRow, Plan, SeenPrincipals};

type Query = sqlx::query::Query<'static, sqlx::Sqlite, SqliteArguments>;

/// Rows for a statement.
pub fn json(rows: impl Serialize) -> Result<String, sqlx::Error> {
    serde_json::to_string(&rows).map_err(|error| sqlx::Error::Encode(error.into()))
}

/// A statement with rows for its first argument.
pub fn statement(sql: &'static str, rows: impl Serialize) -> Result<Query, sqlx::Error> {
    Ok(sqlx::query(sql).bind(json(rows)?))
}

/// The first column of what a statement returns.
pub async fn ids<T>(tx: &mut SqliteConnection, query: Query) -> Result<Vec<T>, sqlx::Error>
where
    T: for<'r> sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
{
    query.fetch_all(tx).await?.iter().map(|row| row.try_get(0)).collect()
}

impl LogTables for SqliteConnection {
    async fn workflows_of(&mut self, tasks: &[&str]) -> Result<Vec<(String, String)>, sqlx::Error> {
        let select = statement(
            "SELECT task_id, workflow_id FROM tasks
             WHERE task_id IN (SELECT value FROM json_each(?1)) AND workflow_id IS NOT NULL",
            tasks,
        )?;
        select.fetch_all(self).await?.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }

    async fn entangled(&mut self, made: &[(&str, &str)]) -> Result<Vec<String>, sqlx::Error> {
        let select = statement(
            "SELECT value ->> 0 FROM json_each(?1)
             WHERE EXISTS (SELECT 1 FROM workflows WHERE submission_id = value ->> 0 AND workflow_id <> value ->> 1
                               AND attribution = 'matched')
                OR EXISTS (SELECT 1 FROM tasks WHERE workflow_id = value ->> 1 AND outcome = 'ignored')",
            made,
        )?;
        ids(self, select).await
    }

    async fn repeated(&mut self, opened: &[(&str, &str, &str)]) -> Result<Vec<String>, sqlx::Error> {
        let select = statement(
            "SELECT value ->> 0 FROM json_each(?1)
             WHERE EXISTS (SELECT 1 FROM submissions WHERE principal_id = value ->> 1 AND request_id = value ->> 2
                               AND submission_id <> value ->> 0)",
            opened,
        )?;
        ids(self, select).await
    }

    async fn see_workflows(&mut self, seen: &Counted<'_>, plan: Plan) -> Result<(), sqlx::Error> {
        let upsert = statement(
            "INSERT INTO workflows (workflow_id, state, noted_at, sweep_at, heard)
             SELECT key, 'open', ?2, ?2, value FROM json_each(?1) WHERE true
             ON CONFLICT (workflow_id) DO UPDATE SET state = 'open', heard = heard + excluded.heard, sweeps = 0,
                 unknown_since = IIF(state = 'gone', NULL, unknown_since),
                 sweep_at = IIF(state = 'gone', ?2, MIN(sweep_at, MAX(?2, asked_at + ?3)))
             WHERE state IN ('open', 'gone')",
            seen,
        )?;
        upsert.bind(plan.at).bind(plan.interval).execute(self).await?;
        Ok(())
    }

    async fn pruned(&mut self, made: &[(&str, i64)]) -> Result<Vec<String>, sqlx::Error> {
        let select = statement(
            "SELECT value ->> 0 FROM json_each(?1) WHERE value ->> 1 < (SELECT pruned_before FROM ledger)
                 AND NOT EXISTS (SELECT 1 FROM workflows WHERE workflow_id = value ->> 0 AND state <> 'ignored')",
            made,
        )?;
        ids(self, select).await
    }

    async fn see_principals(&mut self, seen: &SeenPrincipals<'_>) -> Result<(), sqlx::Error> {
        let upsert = statement(
            "INSERT INTO principals (principal_id, email, seen_at)
             SELECT key, value ->> 0, value ->> 1 FROM json_each(?1) WHERE true
             ON CONFLICT (principal_id) DO UPDATE
             SET email = COALESCE(excluded.email, email), seen_at = MAX(seen_at, excluded.seen_at)",
            seen,
        )?;
        upsert.execute(self).await?;
        Ok(())
    }

    async fn release_emailed(&mut self, principals: &[&str], at: i64) -> Result<(), sqlx::Error> {
        let release = statement(
            "UPDATE charges SET state = 'pending', hold_reason = NULL, post_at = ?2
             WHERE principal_id IN (SELECT value FROM json_each(?1)) AND state = 'held' AND hold_reason = 'no_email'",
            principals,
        )?;
        release.bind(at).execute(self).await?;
        Ok(())
    }

    async fn open_late(&mut self, rows: &[LateRow<'_>]) -> Result<(), sqlx::Error> {
        let meet = statement(
            "UPDATE submissions SET opened_at = late.value ->> 3,
                 request_id = IIF(EXISTS (SELECT 1 FROM submissions AS other WHERE other.principal_id = late.value ->> 1
                                          AND other.request_id = late.value ->> 2), submission_id, late.value ->> 2)
             FROM json_each(?1) AS late
             WHERE submission_id = late.value ->> 0 AND principal_id = late.value ->> 1 AND request_id = submission_id",
            rows,
        )?;
        meet.execute(&mut *self).await?;
        let insert = statement(
            "INSERT INTO submissions (submission_id, principal_id, request_id, opened_at, workflow_id, state)
             SELECT value ->> 0, value ->> 1,
                 IIF(EXISTS (SELECT 1 FROM submissions WHERE principal_id = value ->> 1 AND request_id = value ->> 2
                             AND NOT (opened_at >= value ->> 4 AND COALESCE(ended_at > value ->> 5, state = 'open'))),
                     value ->> 0, value ->> 2), value ->> 3,
                 made, IIF(made IS NULL, 'open', 'resolved')
             FROM (SELECT value, (SELECT workflow_id FROM workflows WHERE submission_id = value ->> 0 LIMIT 1) AS made
                   FROM json_each(?1)) WHERE true
             ON CONFLICT DO NOTHING",
            rows,
        )?;
        insert.execute(self).await?;
        Ok(())
    }

    async fn put_down(&mut self, rows: &[OverRow<'_>]) -> Result<(), sqlx::Error> {
        let insert = statement(
            "INSERT INTO submissions (submission_id, principal_id, request_id, opened_at, ended_at, workflow_id, state)
             SELECT value ->> 0, value ->> 1, value ->> 0, value ->> 2, value ->> 3, made,
                 IIF(made IS NULL, 'open', 'resolved')
             FROM (SELECT value, (SELECT workflow_id FROM workflows WHERE submission_id = value ->> 0 LIMIT 1) AS made
                   FROM json_each(?1)) WHERE value ->> 2 >= (SELECT pruned_before FROM ledger)
             ON CONFLICT DO NOTHING",
            rows,
        )?;
        insert.execute(self).await?;
        Ok(())
    }

    async fn end_submissions(&mut self, rows: &[(&str, i64, bool)]) -> Result<(), sqlx::Error> {
        let end = statement(
            "UPDATE submissions SET ended_at = told.value ->> 1, failed = told.value ->> 2 FROM json_each(?1) AS told
             WHERE submission_id = told.value ->> 0 AND state = 'open'",
            rows,
        )?;
        end.execute(self).await?;
        Ok(())
    }

    async fn refuse_submissions(&mut self, rows: &[(&str, i64)]) -> Result<(), sqlx::Error> {
        let refuse = statement(
            "UPDATE submissions SET state = 'refused', ended_at = COALESCE(ended_at, told.value ->> 1)
             FROM json_each(?1) AS told WHERE submission_id = told.value ->> 0 AND state = 'open'",
            rows,
        )?;
        refuse.execute(self).await?;
        Ok(())
    }

    async fn resolve_submissions(&mut self, rows: &[(&str, &str, i64)]) -> Result<(), sqlx::Error> {
        let resolve = statement(
            "UPDATE submissions SET state = 'resolved', workflow_id = made.value ->> 1,
                 ended_at = COALESCE(ended_at, made.value ->> 2)
             FROM json_each(?1) AS made
             WHERE submission_id = made.value ->> 0 AND (state <> 'resolved' OR workflow_id IS NOT made.value ->> 1)",
            rows,
        )?;
        resolve.execute(self).await?;
        Ok(())
    }

    async fn unmatch_others(&mut self, submission_id: &str, workflow_id: &str, at: i64) -> Result<(), sqlx::Error> {
        let others: Vec<String> = sqlx::query_scalar(
            "UPDATE workflows SET principal_id = NULL, submission_id = NULL, attribution = 'held',
                 hold_reason = 'the submission it was matched with made another workflow',
                 heard = heard + 1, sweep_at = ?3, state = IIF(state = 'settled', 'open', state)
             WHERE submission_id = ?1 AND workflow_id <> ?2 AND attribution = 'matched' RETURNING workflow_id",
        )
        .bind(submission_id)
        .bind(workflow_id)
        .bind(at)
        .fetch_all(&mut *self)
        .await?;
        let hold = statement(
            "UPDATE charges SET principal_id = NULL, state = 'held', hold_reason = 'no_owner'
             WHERE workflow_id IN (SELECT value FROM json_each(?1))
               AND (state = 'held' OR (state = 'pending' AND leased_until <= ?2))",
            others,
        )?;
        hold.bind(at).execute(self).await?;
        Ok(())
    }

    async fn own_workflows(&mut self, rows: &[(&str, &str, &str)], at: i64, sweep_at: i64) -> Result<(), sqlx::Error> {
        let upsert = statement(
            "INSERT INTO workflows (workflow_id, submission_id, principal_id, attribution, state, noted_at, sweep_at)
             SELECT value ->> 0, value ->> 1, value ->> 2, 'log', 'open', ?2, ?3 FROM json_each(?1) WHERE true
             ON CONFLICT (workflow_id) DO UPDATE
             SET principal_id = excluded.principal_id, submission_id = excluded.submission_id, attribution = 'log',
                 hold_reason = NULL, heard = heard + 1,
                 state = IIF(state IN ('ignored', 'gone'), 'open', state),
                 sweep_at = IIF(state IN ('ignored', 'gone'), ?3, sweep_at)
             WHERE attribution IS NULL OR attribution NOT IN ('log', 'operator')",
            rows,
        )?;
        upsert.bind(at).bind(sweep_at).execute(self).await?;
        Ok(())
    }

    async fn bring_back_ignored(&mut self, workflows: &[&str], at: i64) -> Result<(), sqlx::Error> {
        let again = statement(
            "UPDATE tasks SET state = 'open', outcome = NULL, settle_at = ?2
             WHERE workflow_id IN (SELECT value FROM json_each(?1)) AND outcome = 'ignored'",
            workflows,
        )?;
        again.bind(at).execute(self).await?;
        Ok(())
    }

    async fn touch_tasks(&mut self, tasks: &BTreeSet<&str>, plan: Plan) -> Result<(), sqlx::Error> {
        let upsert = statement(
            "INSERT INTO tasks (task_id, state, settle_at) SELECT value, 'open', ?2 FROM json_each(?1) WHERE true
             ON CONFLICT (task_id) DO UPDATE SET settle_at = MAX(?2, asked_at + ?3)
             WHERE state = 'open' AND settle_at IS NULL",
            tasks,
        )?;
        upsert.bind(plan.at).bind(plan.interval).execute(self).await?;
        Ok(())
    }

    async fn end_tasks(&mut self, ended: &Counted<'_>, plan: Plan) -> Result<(), sqlx::Error> {
        let upsert = statement(
            "INSERT INTO tasks (task_id, state, eager, settle_at, heard)
             SELECT key, 'open', 1, ?2, value - 1 FROM json_each(?1) WHERE true
             ON CONFLICT (task_id) DO UPDATE SET state = 'open', outcome = NULL, heard = heard + excluded.heard + 1,
                 eager = 1, attempts = IIF(eager, attempts, 0),
                 settle_at = MIN(COALESCE(settle_at, ?2), MAX(?2, asked_at + ?3))
             WHERE state = 'open' OR outcome = 'gone'",
            ended,
        )?;
        upsert.bind(plan.at).bind(plan.interval).execute(self).await?;
        Ok(())
    }

    async fn bring_back_gone(&mut self, tasks: &[&str]) -> Result<(), sqlx::Error> {
        let again = statement(
            "UPDATE tasks SET state = 'open', outcome = NULL
             WHERE task_id IN (SELECT value FROM json_each(?1)) AND outcome = 'gone'",
            tasks,
        )?;
        again.execute(self).await?;
        Ok(())
    }
}
