//! What settling, sweeping, posting and Check bring, in SQLite's words: 2350 posts a second to a Runmesh that answers in 10 ms,
//! and 11 000 settled tasks.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection, SqlitePool};

use super::begin;
use super::events::statement;
use crate::ledger::group::{Commit, Failed};
use crate::ledger::moves::{self, Move, MoveTables, Moved, PostedRow, SweptRow, UnsettledRow};
use crate::ledger::recording::Repeats;
use crate::ledger::{NewSubmission, ms};

/// The one connection that writes.
#[derive(Debug, Clone)]
pub struct Writer(pub SqlitePool);

impl Commit for Writer {
    type Move = Move;
    type Moved = Moved;

    async fn commit(&self, moves: &[Move]) -> Result<Vec<Moved>, Failed> {
        let mut tx = begin(&self.0).await?;
        let outcomes = moves::apply(&mut *tx, moves).await?;
        tx.commit().await?;
        Ok(outcomes)
    }
}

impl MoveTables for SqliteConnection {
    async fn insert_submission(
        &mut self,
        submission: &NewSubmission<'_>,
        request_id: &str,
        repeats: Repeats,
    ) -> Result<Option<String>, sqlx::Error> {
        // The no-op update makes RETURNING answer with the older row when this is a repeat, or is there because its end was
        // heard of first.
        sqlx::query_scalar(
            "INSERT INTO submissions (submission_id, principal_id, request_id, opened_at, state)
             VALUES (?1, ?2, ?3, ?4, 'open')
             ON CONFLICT (submission_id) DO UPDATE SET request_id = request_id
             ON CONFLICT (principal_id, request_id) DO UPDATE SET request_id = excluded.request_id
             WHERE opened_at >= ?5 AND COALESCE(ended_at > ?6, state = 'open')
             RETURNING submission_id",
        )
        .bind(submission.submission_id)
        .bind(&submission.principal.id)
        .bind(request_id)
        .bind(ms(submission.at))
        .bind(repeats.since)
        .bind(repeats.began)
        .fetch_optional(self)
        .await
    }

    async fn unsettled(&mut self, rows: &[UnsettledRow<'_>]) -> Result<(), sqlx::Error> {
        let update = statement(
            "UPDATE tasks SET leased_until = 0, attempts = attempts + 1, asked_at = said.value ->> 2,
                 settle_at = IIF(heard = said.value ->> 3, said.value ->> 1, MIN(settle_at, said.value ->> 2)),
                 unknown_since = CASE said.value ->> 4 WHEN 'known' THEN NULL
                                                       WHEN 'unknown' THEN COALESCE(unknown_since, said.value ->> 2)
                                                       ELSE unknown_since END
             FROM json_each(?) AS said WHERE task_id = said.value ->> 0 AND state = 'open'",
            rows,
        )?;
        update.execute(self).await?;
        Ok(())
    }

    async fn swept(&mut self, rows: &[SweptRow<'_>]) -> Result<(), sqlx::Error> {
        let update = statement(
            "UPDATE workflows SET leased_until = 0, asked_at = said.value ->> 3,
                 sweeps = IIF(heard = said.value ->> 4 AND said.value ->> 1 <> 'waiting', sweeps + 1, sweeps),
                 state = IIF(heard = said.value ->> 4 AND said.value ->> 1 <> 'waiting', said.value ->> 1, 'open'),
                 sweep_at = IIF(heard = said.value ->> 4, COALESCE(said.value ->> 2, sweep_at),
                                MIN(sweep_at, said.value ->> 3)),
                 unknown_since = CASE said.value ->> 5 WHEN 'known' THEN NULL
                                                       WHEN 'unknown' THEN COALESCE(unknown_since, said.value ->> 3)
                                                       ELSE unknown_since END
             FROM json_each(?) AS said WHERE workflow_id = said.value ->> 0 AND state = 'open'",
            rows,
        )?;
        update.execute(self).await?;
        Ok(())
    }

    async fn posted(&mut self, rows: &[PostedRow<'_>]) -> Result<Vec<String>, sqlx::Error> {
        let update = statement(
            "UPDATE charges SET state = 'posted', posted_at = told.value ->> 1, attempts = attempts + 1,
                 leased_until = 0, last_error = NULL
             FROM json_each(?) AS told
             WHERE task_id = told.value ->> 0 AND principal_id = told.value ->> 2 AND state = 'pending' RETURNING task_id",
            rows,
        )?;
        super::events::ids(self, update).await
    }

    async fn standing(&mut self, task_ids: &[&str]) -> Result<Vec<(String, String, Option<String>)>, sqlx::Error> {
        let select = statement(
            "SELECT task_id, state, principal_id FROM charges WHERE task_id IN (SELECT value FROM json_each(?))",
            task_ids,
        )?;
        let read = |row: &SqliteRow| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
        select.fetch_all(self).await?.iter().map(read).collect()
    }

    async fn posted_astray(&mut self, rows: &[PostedRow<'_>]) -> Result<(), sqlx::Error> {
        let update = statement(
            "UPDATE charges SET state = 'posted', posted_at = told.value ->> 1, attempts = attempts + 1,
                 leased_until = 0, principal_id = told.value ->> 2, hold_reason = NULL,
                 last_error = 'posted after its lease'
             FROM json_each(?) AS told WHERE task_id = told.value ->> 0 AND state IN ('pending', 'held')",
            rows,
        )?;
        update.execute(self).await?;
        Ok(())
    }

    async fn post_failed(&mut self, rows: &[(&str, i64, &str, i64)]) -> Result<Vec<Option<String>>, sqlx::Error> {
        let update = statement(
            "UPDATE charges SET attempts = attempts + 1, leased_until = 0, last_error = told.value ->> 2,
                 post_at = told.value ->> 3
             FROM json_each(?) AS told
             WHERE task_id = told.value ->> 0 AND leased_until = told.value ->> 1 AND state = 'pending'
             RETURNING workflow_id",
            rows,
        )?;
        super::events::ids(self, update).await
    }

    async fn post_rejected(&mut self, rows: &[(&str, i64, &str)]) -> Result<(), sqlx::Error> {
        let update = statement(
            "UPDATE charges SET state = 'rejected', attempts = attempts + 1, leased_until = 0,
                 last_error = told.value ->> 2
             FROM json_each(?) AS told
             WHERE task_id = told.value ->> 0 AND leased_until = told.value ->> 1 AND state = 'pending'",
            rows,
        )?;
        update.execute(self).await?;
        Ok(())
    }

    async fn date_workflow(&mut self, workflow_id: &str, submitted_at: i64) -> Result<(), sqlx::Error> {
        sqlx::query("UPDATE workflows SET submitted_at = ?2 WHERE workflow_id = ?1 AND submitted_at IS NULL")
            .bind(workflow_id)
            .bind(submitted_at)
            .execute(self)
            .await?;
        Ok(())
    }

    async fn ignore_workflow(&mut self, workflow_id: &str) -> Result<(), sqlx::Error> {
        sqlx::query(
            "UPDATE workflows SET state = 'ignored', leased_until = 0 WHERE workflow_id = ? AND attribution IS NULL",
        )
        .bind(workflow_id)
        .execute(self)
        .await?;
        Ok(())
    }

    async fn hold_workflow(&mut self, workflow_id: &str, reason: &str) -> Result<(), sqlx::Error> {
        sqlx::query(
            "UPDATE workflows SET attribution = 'held', hold_reason = ?2
             WHERE workflow_id = ?1 AND (attribution IS NULL OR attribution = 'held')",
        )
        .bind(workflow_id)
        .bind(reason)
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
            "UPDATE workflows SET attribution = 'matched', hold_reason = NULL, principal_id = ?2, submission_id = ?3
             WHERE workflow_id = ?1 AND (attribution IS NULL OR attribution = 'held')
               AND EXISTS (SELECT 1 FROM submissions WHERE submission_id = ?3 AND state = 'open')",
        )
        .bind(workflow_id)
        .bind(principal_id)
        .bind(submission_id)
        .execute(self)
        .await?;
        Ok(matched.rows_affected() == 1)
    }
}
