//! What settling, sweeping, posting and Check bring, in PostgreSQL's words.

use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};

use super::events::{ids, statement};
use super::text::{Text, stored};
use super::{Store, optional_text, text};
use crate::ledger::group::{Commit, Failed};
use crate::ledger::moves::{self, Move, MoveTables, Moved, PostedRow, SweptRow, UnsettledRow};
use crate::ledger::recording::Repeats;
use crate::ledger::{Error, NewSubmission, ms};

/// Whoever writes moves.
#[derive(Debug, Clone)]
pub struct Writer(pub Store);

impl Commit for Writer {
    type Move = Move;
    type Moved = Moved;

    async fn commit(&self, moves: &[Move]) -> Result<Vec<Moved>, Failed> {
        let committing = async {
            let mut writing = self.0.write().await?;
            let outcomes = moves::apply(writing.tx(), moves).await?;
            writing.commit().await?;
            Ok::<_, Error>(outcomes)
        };
        self.0.pool.bounded(committing).await.map_err(Failed::from)
    }
}

impl MoveTables for PgConnection {
    async fn insert_submission(
        &mut self,
        submission: &NewSubmission<'_>,
        request_id: &str,
        repeats: Repeats,
    ) -> Result<Option<String>, sqlx::Error> {
        // The no-op update makes RETURNING answer with the older row when this is a repeat. One that is there under its own id,
        // because its end was heard of first, is met when that is tried.
        let id: Option<Text> = sqlx::query_scalar(
            "INSERT INTO submissions (submission_id, principal_id, request_id, opened_at, state)
             SELECT $1::text, $2, $3::text, $4, 'open'
             WHERE NOT EXISTS (SELECT 1 FROM submissions WHERE submission_id = $1::text AND request_id <> $3::text)
             ON CONFLICT (principal_id, request_id) DO UPDATE SET request_id = excluded.request_id
             WHERE submissions.submission_id = $1::text
                OR (submissions.opened_at >= $5 AND COALESCE(submissions.ended_at > $6, submissions.state = 'open'))
             RETURNING submission_id",
        )
        .bind(stored(submission.submission_id))
        .bind(stored(&submission.principal.id))
        .bind(stored(request_id))
        .bind(ms(submission.at))
        .bind(repeats.since)
        .bind(repeats.began)
        .fetch_optional(self)
        .await?;
        Ok(id.map(|id| id.0))
    }

    async fn unsettled(&mut self, rows: &[UnsettledRow<'_>]) -> Result<(), sqlx::Error> {
        let update = statement(
            "UPDATE tasks SET leased_until = 0, attempts = attempts + 1, asked_at = said.at,
                 settle_at = CASE WHEN heard = said.heard_then THEN said.again ELSE LEAST(settle_at, said.at) END,
                 unknown_since = CASE said.existence WHEN 'known' THEN NULL
                                                     WHEN 'unknown' THEN COALESCE(unknown_since, said.at)
                                                     ELSE unknown_since END
             FROM (SELECT value ->> 0 AS id, (value ->> 1)::bigint AS again, (value ->> 2)::bigint AS at,
                       (value ->> 3)::bigint AS heard_then, value ->> 4 AS existence
                   FROM jsonb_array_elements($1::text::jsonb) AS told(value)) AS said
             WHERE task_id = said.id AND state = 'open'",
            rows,
        )?;
        update.execute(self).await?;
        Ok(())
    }

    async fn swept(&mut self, rows: &[SweptRow<'_>]) -> Result<(), sqlx::Error> {
        let update = statement(
            "UPDATE workflows SET leased_until = 0, asked_at = said.at,
                 sweeps = CASE WHEN heard = said.heard_then AND said.state_now <> 'waiting' THEN sweeps + 1 ELSE sweeps END,
                 state = CASE WHEN heard = said.heard_then AND said.state_now <> 'waiting' THEN said.state_now ELSE 'open' END,
                 sweep_at = CASE WHEN heard = said.heard_then THEN COALESCE(said.again, sweep_at)
                                 ELSE LEAST(sweep_at, said.at) END,
                 unknown_since = CASE said.existence WHEN 'known' THEN NULL
                                                     WHEN 'unknown' THEN COALESCE(unknown_since, said.at)
                                                     ELSE unknown_since END
             FROM (SELECT value ->> 0 AS id, value ->> 1 AS state_now, (value ->> 2)::bigint AS again,
                       (value ->> 3)::bigint AS at, (value ->> 4)::bigint AS heard_then, value ->> 5 AS existence
                   FROM jsonb_array_elements($1::text::jsonb) AS told(value)) AS said
             WHERE workflow_id = said.id AND state = 'open'",
            rows,
        )?;
        update.execute(self).await?;
        Ok(())
    }

    async fn posted(&mut self, rows: &[PostedRow<'_>]) -> Result<Vec<String>, sqlx::Error> {
        let update = statement(
            "UPDATE charges SET state = 'posted', posted_at = (value ->> 1)::bigint, attempts = attempts + 1,
                 leased_until = 0, last_error = NULL
             FROM jsonb_array_elements($1::text::jsonb) AS told(value)
             WHERE task_id = value ->> 0 AND principal_id = value ->> 2 AND state = 'pending' RETURNING task_id",
            rows,
        )?;
        ids(self, update).await
    }

    async fn standing(&mut self, task_ids: &[&str]) -> Result<Vec<(String, String, Option<String>)>, sqlx::Error> {
        let select = statement(
            "SELECT task_id, state, principal_id FROM charges
             WHERE task_id IN (SELECT jsonb_array_elements_text($1::text::jsonb))",
            task_ids,
        )?;
        let read =
            |row: &PgRow| Ok((text(row, "task_id")?, row.try_get("state")?, optional_text(row, "principal_id")?));
        select.fetch_all(self).await?.iter().map(read).collect()
    }

    async fn posted_astray(&mut self, rows: &[PostedRow<'_>]) -> Result<(), sqlx::Error> {
        let update = statement(
            "UPDATE charges SET state = 'posted', posted_at = (value ->> 1)::bigint, attempts = attempts + 1,
                 leased_until = 0, principal_id = value ->> 2, hold_reason = NULL, last_error = 'posted after its lease'
             FROM jsonb_array_elements($1::text::jsonb) AS told(value)
             WHERE task_id = value ->> 0 AND state IN ('pending', 'held')",
            rows,
        )?;
        update.execute(self).await?;
        Ok(())
    }

    async fn post_failed(&mut self, rows: &[(&str, i64, &str, i64)]) -> Result<Vec<Option<String>>, sqlx::Error> {
        let update = statement(
            "UPDATE charges SET attempts = attempts + 1, leased_until = 0, last_error = value ->> 2,
                 post_at = (value ->> 3)::bigint
             FROM jsonb_array_elements($1::text::jsonb) AS told(value)
             WHERE task_id = value ->> 0 AND leased_until = (value ->> 1)::bigint AND state = 'pending'
             RETURNING workflow_id",
            rows,
        )?;
        update.fetch_all(self).await?.iter().map(|row| optional_text(row, "workflow_id")).collect()
    }

    async fn post_rejected(&mut self, rows: &[(&str, i64, &str)]) -> Result<(), sqlx::Error> {
        let update = statement(
            "UPDATE charges SET state = 'rejected', attempts = attempts + 1, leased_until = 0, last_error = value ->> 2
             FROM jsonb_array_elements($1::text::jsonb) AS told(value)
             WHERE task_id = value ->> 0 AND leased_until = (value ->> 1)::bigint AND state = 'pending'",
            rows,
        )?;
        update.execute(self).await?;
        Ok(())
    }

    async fn date_workflow(&mut self, workflow_id: &str, submitted_at: i64) -> Result<(), sqlx::Error> {
        sqlx::query("UPDATE workflows SET submitted_at = $2 WHERE workflow_id = $1 AND submitted_at IS NULL")
            .bind(stored(workflow_id))
            .bind(submitted_at)
            .execute(self)
            .await?;
        Ok(())
    }

    async fn ignore_workflow(&mut self, workflow_id: &str) -> Result<(), sqlx::Error> {
        sqlx::query(
            "UPDATE workflows SET state = 'ignored', leased_until = 0 WHERE workflow_id = $1 AND attribution IS NULL",
        )
        .bind(stored(workflow_id))
        .execute(self)
        .await?;
        Ok(())
    }

    async fn hold_workflow(&mut self, workflow_id: &str, reason: &str) -> Result<(), sqlx::Error> {
        sqlx::query(
            "UPDATE workflows SET attribution = 'held', hold_reason = $2
             WHERE workflow_id = $1 AND (attribution IS NULL OR attribution = 'held')",
        )
        .bind(stored(workflow_id))
        .bind(stored(reason))
        .execute(self)
        .await?;
        Ok(())
    }

    async fn match_workflow(
        &mut self,
        workflow_id: &str,
        principal_id: &str,
        submission_id: &str,
    ) -> Result<bool, sqlx::Error> {
        let matched = sqlx::query(
            "UPDATE workflows SET attribution = 'matched', hold_reason = NULL, principal_id = $2, submission_id = $3
             WHERE workflow_id = $1 AND (attribution IS NULL OR attribution = 'held')
               AND EXISTS (SELECT 1 FROM submissions WHERE submission_id = $3 AND state = 'open')",
        )
        .bind(stored(workflow_id))
        .bind(stored(principal_id))
        .bind(stored(submission_id))
        .execute(self)
        .await?;
        Ok(matched.rows_affected() == 1)
    }
}
