//! The operator's two moves, in PostgreSQL's words.

use std::collections::BTreeSet;

use jiff::Timestamp;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row};

use super::events::statement;
use super::optional_text;
use super::text::{Text, stored};
use crate::ledger::books::{Retried, Retry};
use crate::ledger::naming::NamingTables;
use crate::ledger::records::{RETRIED, RetriedRecord, retried};
use crate::ledger::settling::ChargeTables as _;
use crate::ledger::{Error, ms};

/// Puts charges up for posting now.
pub async fn retry(
    connection: &mut PgConnection,
    which: Retry<'_>,
    after: i64,
    at: Timestamp,
    limit: u32,
) -> Result<Vec<Retried>, Error> {
    let (condition, task) = retried(which);
    // Locked, so that nobody claims what is put up here.
    let select = format!(
        "SELECT number, {RETRIED} FROM charges WHERE {condition} AND number > $4 ORDER BY number LIMIT $2 FOR UPDATE"
    );
    let rows: Vec<RetriedRecord> = sqlx::query_as(AssertSqlSafe(select))
        .bind(ms(at))
        .bind(i64::from(limit))
        .bind(stored(task))
        .bind(after)
        .fetch_all(&mut *connection)
        .await?;
    let retried = rows.into_iter().map(Retried::try_from).collect::<Result<Vec<_>, _>>()?;
    let update = statement(
        "UPDATE charges SET state = 'pending', post_at = $2, leased_until = 0
         WHERE task_id IN (SELECT jsonb_array_elements_text($1::text::jsonb)) RETURNING workflow_id",
        retried.iter().map(|charge| &charge.task_id).collect::<Vec<_>>(),
    )?;
    // Its owner may have been corrected since it was rejected.
    let rows = update.bind(ms(at)).fetch_all(&mut *connection).await?;
    let workflows = rows.iter().map(|row| optional_text(row, "workflow_id")).collect::<Result<Vec<_>, _>>()?;
    let workflows: BTreeSet<&str> = workflows.iter().flatten().map(String::as_str).collect();
    connection.release(&Vec::from_iter(workflows), ms(at)).await?;
    Ok(retried)
}

impl NamingTables for PgConnection {
    async fn owned_workflow(&mut self, workflow_id: &str) -> Result<Option<(String, Option<String>)>, sqlx::Error> {
        let row: Option<(String, Option<Text>)> =
            sqlx::query_as("SELECT state, principal_id FROM workflows WHERE workflow_id = $1")
                .bind(stored(workflow_id))
                .fetch_optional(self)
                .await?;
        Ok(row.map(|(state, owner)| (state, owner.map(|owner| owner.0))))
    }

    async fn posts_of(&mut self, workflow_id: &str, at: i64) -> Result<(bool, bool), sqlx::Error> {
        // What is being claimed at this moment is waited for.
        sqlx::query("SELECT FROM charges WHERE workflow_id = $1 FOR UPDATE")
            .bind(stored(workflow_id))
            .execute(&mut *self)
            .await?;
        sqlx::query_as(
            "SELECT EXISTS (SELECT 1 FROM charges WHERE workflow_id = $1 AND state = 'posted'),
                 EXISTS (SELECT 1 FROM charges WHERE workflow_id = $1 AND state = 'pending' AND leased_until > $2)",
        )
        .bind(stored(workflow_id))
        .bind(at)
        .fetch_one(self)
        .await
    }

    async fn email_of(&mut self, principal_id: &str) -> Result<Option<Option<String>>, sqlx::Error> {
        let email: Option<Option<Text>> = sqlx::query_scalar("SELECT email FROM principals WHERE principal_id = $1")
            .bind(stored(principal_id))
            .fetch_optional(self)
            .await?;
        Ok(email.map(|email| email.map(|email| email.0)))
    }

    async fn unposted(&mut self, workflow_id: &str, principal_id: &str) -> Result<(u64, u64), sqlx::Error> {
        let row = sqlx::query(
            "SELECT COUNT(*) FILTER (WHERE state = 'pending') AS pending,
                 COUNT(*) FILTER (WHERE state = 'held') AS held
             FROM charges WHERE workflow_id = $1 AND principal_id = $2",
        )
        .bind(stored(workflow_id))
        .bind(stored(principal_id))
        .fetch_one(self)
        .await?;
        let count = |name: &str| row.try_get::<i64, _>(name).map(i64::unsigned_abs);
        Ok((count("pending")?, count("held")?))
    }

    async fn name_owner(&mut self, workflow_id: &str, principal_id: &str, at: i64) -> Result<(), sqlx::Error> {
        sqlx::query(
            "UPDATE workflows SET principal_id = $2, attribution = 'operator', hold_reason = NULL,
                 submission_id = CASE WHEN principal_id = $2 THEN submission_id END,
                 sweep_at = CASE WHEN state = 'open' THEN LEAST(sweep_at, $3) ELSE sweep_at END
             WHERE workflow_id = $1
               AND (principal_id IS DISTINCT FROM $2 OR attribution IS NULL OR attribution = 'held')",
        )
        .bind(stored(workflow_id))
        .bind(stored(principal_id))
        .bind(at)
        .execute(self)
        .await?;
        Ok(())
    }

    async fn use_submission(
        &mut self,
        workflow_id: &str,
        principal_id: &str,
        submission_id: &str,
    ) -> Result<bool, sqlx::Error> {
        let used = sqlx::query(
            "UPDATE workflows SET submission_id = $2 WHERE workflow_id = $1 AND submission_id IS NULL
                 AND EXISTS (SELECT 1 FROM submissions
                             WHERE submission_id = $2 AND principal_id = $3 AND state = 'open')",
        )
        .bind(stored(workflow_id))
        .bind(stored(submission_id))
        .bind(stored(principal_id))
        .execute(self)
        .await?;
        Ok(used.rows_affected() == 1)
    }
}
