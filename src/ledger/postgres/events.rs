//! What the log tells, in PostgreSQL's words. Rows are handed over as JSON.

use std::collections::BTreeSet;

use serde::Serialize;
use sqlx::postgres::{PgArguments, PgConnection};
use sqlx::{Postgres, Row};

use super::text::{Text, json, stored};
use crate::ledger::batch::Counted;
use crate::ledger::recording::{LateRow, LogTables, OverRow, Plan, SeenPrincipals};

pub type Query = sqlx::query::Query<'static, Postgres, PgArguments>;

/// A statement with rows for its first argument.
pub fn statement(sql: &'static str, rows: impl Serialize) -> Result<Query, sqlx::Error> {
    Ok(sqlx::query(sql).bind(json(rows)?))
}

/// The first column of what a statement returns.
pub async fn ids(connection: &mut PgConnection, query: Query) -> Result<Vec<String>, sqlx::Error> {
    query.fetch_all(connection).await?.iter().map(|row| row.try_get::<Text, _>(0).map(|text| text.0)).collect()
}

impl LogTables for PgConnection {
    async fn workflows_of(&mut self, tasks: &[&str]) -> Result<Vec<(String, String)>, sqlx::Error> {
        let select = statement(
            "SELECT task_id, workflow_id FROM tasks
             WHERE task_id IN (SELECT jsonb_array_elements_text($1::text::jsonb)) AND workflow_id IS NOT NULL",
            tasks,
        )?;
        let rows = select.fetch_all(self).await?;
        rows.iter().map(|row| Ok((super::text(row, "task_id")?, super::text(row, "workflow_id")?))).collect()
    }

    async fn entangled(&mut self, made: &[(&str, &str)]) -> Result<Vec<String>, sqlx::Error> {
        let select = statement(
            "SELECT value ->> 0 FROM jsonb_array_elements($1::text::jsonb) AS made(value)
             WHERE EXISTS (SELECT 1 FROM workflows WHERE submission_id = value ->> 0 AND workflow_id <> value ->> 1
                               AND attribution = 'matched')
                OR EXISTS (SELECT 1 FROM tasks WHERE workflow_id = value ->> 1 AND outcome = 'ignored')",
            made,
        )?;
        ids(self, select).await
    }

    async fn repeated(&mut self, opened: &[(&str, &str, &str)]) -> Result<Vec<String>, sqlx::Error> {
        let select = statement(
            "SELECT value ->> 0 FROM jsonb_array_elements($1::text::jsonb) AS opened(value)
             WHERE EXISTS (SELECT 1 FROM submissions WHERE principal_id = value ->> 1 AND request_id = value ->> 2
                               AND submission_id <> value ->> 0)",
            opened,
        )?;
        ids(self, select).await
    }

    async fn see_workflows(&mut self, seen: &Counted<'_>, plan: Plan) -> Result<(), sqlx::Error> {
        let upsert = statement(
            "INSERT INTO workflows (workflow_id, state, noted_at, sweep_at, heard)
             SELECT key, 'open', $2, $2, value::bigint FROM jsonb_each($1::text::jsonb)
             ON CONFLICT (workflow_id) DO UPDATE SET state = 'open', heard = workflows.heard + excluded.heard, sweeps = 0,
                 unknown_since = CASE WHEN workflows.state = 'gone' THEN NULL ELSE workflows.unknown_since END,
                 sweep_at = CASE WHEN workflows.state = 'gone' THEN $2
                                 ELSE LEAST(workflows.sweep_at, GREATEST($2, workflows.asked_at + $3)) END
             WHERE workflows.state IN ('open', 'gone')",
            seen,
        )?;
        upsert.bind(plan.at).bind(plan.interval).execute(self).await?;
        Ok(())
    }

    async fn pruned(&mut self, made: &[(&str, i64)]) -> Result<Vec<String>, sqlx::Error> {
        let select = statement(
            "SELECT value ->> 0 FROM jsonb_array_elements($1::text::jsonb) AS made(value)
             WHERE (value ->> 1)::bigint < (SELECT pruned_before FROM ledger)
                 AND NOT EXISTS (SELECT 1 FROM workflows WHERE workflow_id = value ->> 0 AND state <> 'ignored')",
            made,
        )?;
        ids(self, select).await
    }

    async fn see_principals(&mut self, seen: &SeenPrincipals<'_>) -> Result<(), sqlx::Error> {
        let upsert = statement(
            "INSERT INTO principals (principal_id, email, seen_at)
             SELECT key, value ->> 0, (value ->> 1)::bigint FROM jsonb_each($1::text::jsonb)
             ON CONFLICT (principal_id) DO UPDATE SET email = COALESCE(excluded.email, principals.email),
                 seen_at = GREATEST(principals.seen_at, excluded.seen_at)",
            seen,
        )?;
        upsert.execute(self).await?;
        Ok(())
    }

    async fn release_emailed(&mut self, principals: &[&str], at: i64) -> Result<(), sqlx::Error> {
        let release = statement(
            "UPDATE charges SET state = 'pending', hold_reason = NULL, post_at = $2
             WHERE principal_id IN (SELECT jsonb_array_elements_text($1::text::jsonb))
               AND state = 'held' AND hold_reason = 'no_email'",
            principals,
        )?;
        release.bind(at).execute(self).await?;
        Ok(())
    }

    async fn open_late(&mut self, rows: &[LateRow<'_>]) -> Result<(), sqlx::Error> {
        let meet = statement(
            "UPDATE submissions SET opened_at = (value ->> 3)::bigint,
                 request_id = CASE WHEN EXISTS (SELECT 1 FROM submissions AS other WHERE other.principal_id = value ->> 1
                                                AND other.request_id = value ->> 2)
                                   THEN submission_id ELSE value ->> 2 END
             FROM jsonb_array_elements($1::text::jsonb) AS late(value)
             WHERE submission_id = value ->> 0 AND principal_id = value ->> 1 AND request_id = submission_id",
            rows,
        )?;
        meet.execute(&mut *self).await?;
        let insert = statement(
            "INSERT INTO submissions (submission_id, principal_id, request_id, opened_at, workflow_id, state)
             SELECT id, principal,
                 CASE WHEN EXISTS (SELECT 1 FROM submissions WHERE principal_id = principal AND request_id = request
                                   AND NOT (opened_at >= repeats_since
                                            AND COALESCE(ended_at > began, state = 'open')))
                      THEN id ELSE request END,
                 at, made, CASE WHEN made IS NULL THEN 'open' ELSE 'resolved' END
             FROM (SELECT value ->> 0 AS id, value ->> 1 AS principal, value ->> 2 AS request,
                       (value ->> 3)::bigint AS at, (value ->> 4)::bigint AS repeats_since, (value ->> 5)::bigint AS began,
                       (SELECT workflow_id FROM workflows WHERE submission_id = value ->> 0 LIMIT 1) AS made
                   FROM jsonb_array_elements($1::text::jsonb) AS late(value)) AS late
             ON CONFLICT DO NOTHING",
            rows,
        )?;
        insert.execute(self).await?;
        Ok(())
    }

    async fn put_down(&mut self, rows: &[OverRow<'_>]) -> Result<(), sqlx::Error> {
        let insert = statement(
            "INSERT INTO submissions (submission_id, principal_id, request_id, opened_at, ended_at, workflow_id, state)
             SELECT id, principal, id, began, at, made, CASE WHEN made IS NULL THEN 'open' ELSE 'resolved' END
             FROM (SELECT value ->> 0 AS id, value ->> 1 AS principal, (value ->> 2)::bigint AS began,
                       (value ->> 3)::bigint AS at,
                       (SELECT workflow_id FROM workflows WHERE submission_id = value ->> 0 LIMIT 1) AS made
                   FROM jsonb_array_elements($1::text::jsonb) AS told(value)) AS over
             WHERE began >= (SELECT pruned_before FROM ledger)
             ON CONFLICT DO NOTHING",
            rows,
        )?;
        insert.execute(self).await?;
        Ok(())
    }

    async fn end_submissions(&mut self, rows: &[(&str, i64, bool)]) -> Result<(), sqlx::Error> {
        let end = statement(
            "UPDATE submissions SET ended_at = (value ->> 1)::bigint, failed = (value ->> 2)::boolean
             FROM jsonb_array_elements($1::text::jsonb) AS told(value)
             WHERE submission_id = value ->> 0 AND state = 'open'",
            rows,
        )?;
        end.execute(self).await?;
        Ok(())
    }

    async fn refuse_submissions(&mut self, rows: &[(&str, i64)]) -> Result<(), sqlx::Error> {
        let refuse = statement(
            "UPDATE submissions SET state = 'refused', ended_at = COALESCE(ended_at, (value ->> 1)::bigint)
             FROM jsonb_array_elements($1::text::jsonb) AS told(value)
             WHERE submission_id = value ->> 0 AND state = 'open'",
            rows,
        )?;
        refuse.execute(self).await?;
        Ok(())
    }

    async fn resolve_submissions(&mut self, rows: &[(&str, &str, i64)]) -> Result<(), sqlx::Error> {
        let resolve = statement(
            "UPDATE submissions SET state = 'resolved', workflow_id = value ->> 1,
                 ended_at = COALESCE(ended_at, (value ->> 2)::bigint)
             FROM jsonb_array_elements($1::text::jsonb) AS made(value)
             WHERE submission_id = value ->> 0
               AND (state <> 'resolved' OR workflow_id IS DISTINCT FROM value ->> 1)",
            rows,
        )?;
        resolve.execute(self).await?;
        Ok(())
    }

    async fn unmatch_others(&mut self, submission_id: &str, workflow_id: &str, at: i64) -> Result<(), sqlx::Error> {
        sqlx::query(
            "WITH others AS (
                 UPDATE workflows SET principal_id = NULL, submission_id = NULL, attribution = 'held',
                     hold_reason = 'the submission it was matched with made another workflow',
                     heard = heard + 1, sweep_at = $3, state = CASE WHEN state = 'settled' THEN 'open' ELSE state END
                 WHERE submission_id = $1 AND workflow_id <> $2 AND attribution = 'matched' RETURNING workflow_id)
             UPDATE charges SET principal_id = NULL, state = 'held', hold_reason = 'no_owner'
             FROM others WHERE charges.workflow_id = others.workflow_id
               AND (state = 'held' OR (state = 'pending' AND leased_until <= $3))",
        )
        .bind(stored(submission_id))
        .bind(stored(workflow_id))
        .bind(at)
        .execute(self)
        .await?;
        Ok(())
    }

    async fn own_workflows(&mut self, rows: &[(&str, &str, &str)], at: i64, sweep_at: i64) -> Result<(), sqlx::Error> {
        let upsert = statement(
            "INSERT INTO workflows (workflow_id, submission_id, principal_id, attribution, state, noted_at, sweep_at)
             SELECT value ->> 0, value ->> 1, value ->> 2, 'log', 'open', $2, $3
             FROM jsonb_array_elements($1::text::jsonb) AS made(value)
             ON CONFLICT (workflow_id) DO UPDATE
             SET principal_id = excluded.principal_id, submission_id = excluded.submission_id, attribution = 'log',
                 hold_reason = NULL, heard = workflows.heard + 1,
                 state = CASE WHEN workflows.state IN ('ignored', 'gone') THEN 'open' ELSE workflows.state END,
                 sweep_at = CASE WHEN workflows.state IN ('ignored', 'gone') THEN $3 ELSE workflows.sweep_at END
             WHERE workflows.attribution IS NULL OR workflows.attribution NOT IN ('log', 'operator')",
            rows,
        )?;
        upsert.bind(at).bind(sweep_at).execute(self).await?;
        Ok(())
    }

    async fn bring_back_ignored(&mut self, workflows: &[&str], at: i64) -> Result<(), sqlx::Error> {
        let again = statement(
            "UPDATE tasks SET state = 'open', outcome = NULL, settle_at = $2
             WHERE workflow_id IN (SELECT jsonb_array_elements_text($1::text::jsonb)) AND outcome = 'ignored'",
            workflows,
        )?;
        again.bind(at).execute(self).await?;
        Ok(())
    }

    async fn touch_tasks(&mut self, tasks: &BTreeSet<&str>, plan: Plan) -> Result<(), sqlx::Error> {
        let upsert = statement(
            "INSERT INTO tasks (task_id, state, settle_at)
             SELECT jsonb_array_elements_text($1::text::jsonb), 'open', $2
             ON CONFLICT (task_id) DO UPDATE SET settle_at = GREATEST($2, tasks.asked_at + $3)
             WHERE tasks.state = 'open' AND tasks.settle_at IS NULL",
            tasks,
        )?;
        upsert.bind(plan.at).bind(plan.interval).execute(self).await?;
        Ok(())
    }

    async fn end_tasks(&mut self, ended: &Counted<'_>, plan: Plan) -> Result<(), sqlx::Error> {
        let upsert = statement(
            "INSERT INTO tasks (task_id, state, eager, settle_at, heard)
             SELECT key, 'open', true, $2, value::bigint - 1 FROM jsonb_each($1::text::jsonb)
             ON CONFLICT (task_id) DO UPDATE SET state = 'open', outcome = NULL,
                 heard = tasks.heard + excluded.heard + 1, eager = true,
                 attempts = CASE WHEN tasks.eager THEN tasks.attempts ELSE 0 END,
                 settle_at = LEAST(COALESCE(tasks.settle_at, $2), GREATEST($2, tasks.asked_at + $3))
             WHERE tasks.state = 'open' OR tasks.outcome = 'gone'",
            ended,
        )?;
        upsert.bind(plan.at).bind(plan.interval).execute(self).await?;
        Ok(())
    }

    async fn bring_back_gone(&mut self, tasks: &[&str]) -> Result<(), sqlx::Error> {
        let again = statement(
            "UPDATE tasks SET state = 'open', outcome = NULL
             WHERE task_id IN (SELECT jsonb_array_elements_text($1::text::jsonb)) AND outcome = 'gone'",
            tasks,
        )?;
        again.execute(self).await?;
        Ok(())
    }
}
