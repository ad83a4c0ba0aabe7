//! Submission and principal rows.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use sqlx::sqlite::SqlitePool;
use sqlx::{Row, SqliteConnection};

use super::events::json;
use super::{ms, optional_time, time};
use crate::ledger::batch::Opened;
use crate::ledger::{NewSubmission, OpenSubmission};

/// How long a Check can be repeated: Envoy's time limit, generously. After that an equal request id is a client's doing.
const REPEATED_WITHIN: SignedDuration = SignedDuration::from_mins(1);

/// The no-op update makes RETURNING answer with the older row when this is a repeat.
const INSERT: &str =
    "INSERT INTO submissions (submission_id, principal_id, request_id, opened_at, state) VALUES (?1, ?2, ?3, ?4, 'open')
     ON CONFLICT (principal_id, request_id) DO UPDATE SET request_id = excluded.request_id
     WHERE state = 'open' AND opened_at >= ?5
     RETURNING submission_id";

/// Inserts a submission and returns the id under which it stands.
pub async fn open(tx: &mut SqliteConnection, submission: NewSubmission<'_>) -> Result<String, sqlx::Error> {
    let NewSubmission { submission_id, principal, request_id, at } = submission;
    see_principal(tx, &principal.id, principal.email.as_deref(), at).await?;
    // An id that is used up cannot stand for another submission: that one goes by its own.
    for key in [request_id, submission_id] {
        let row: Option<String> = sqlx::query_scalar(INSERT)
            .bind(submission_id)
            .bind(&principal.id)
            .bind(key)
            .bind(ms(at))
            .bind(ms(at - REPEATED_WITHIN))
            .fetch_optional(&mut *tx)
            .await?;
        if let Some(id) = row {
            return Ok(id);
        }
    }
    Err(sqlx::Error::RowNotFound)
}

/// Records that a principal was seen. An e-mail releases what was held for want of one; none leaves the known one.
pub async fn see_principal(
    tx: &mut SqliteConnection,
    principal_id: &str,
    email: Option<&str>,
    at: Timestamp,
) -> Result<(), sqlx::Error> {
    see_principals(tx, &BTreeMap::from([(principal_id, (email, ms(at)))]), at).await
}

/// Likewise of many, each with their e-mail and when they were seen.
pub async fn see_principals(
    tx: &mut SqliteConnection,
    seen: &BTreeMap<&str, (Option<&str>, i64)>,
    at: Timestamp,
) -> Result<(), sqlx::Error> {
    if seen.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO principals (principal_id, email, seen_at)
         SELECT key, value ->> 0, value ->> 1 FROM json_each(?) WHERE true
         ON CONFLICT (principal_id) DO UPDATE
         SET email = COALESCE(excluded.email, email), seen_at = MAX(seen_at, excluded.seen_at)",
    )
    .bind(json(seen)?)
    .execute(&mut *tx)
    .await?;
    let with_email: Vec<_> = seen.iter().filter(|(_, (email, _))| email.is_some()).map(|(id, _)| id).collect();
    if with_email.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "UPDATE charges SET state = 'pending', hold_reason = NULL, post_at = ?2
         WHERE principal_id IN (SELECT value FROM json_each(?1)) AND state = 'held' AND hold_reason = 'no_email'",
    )
    .bind(json(with_email)?)
    .bind(ms(at))
    .execute(tx)
    .await?;
    Ok(())
}

/// Inserts submissions whose rows could not be committed in time, unless they are there after all. Their principals are.
pub async fn open_late(tx: &mut SqliteConnection, opened: &[Opened<'_>]) -> Result<(), sqlx::Error> {
    let rows: Vec<_> = opened
        .iter()
        .map(|row| (row.submission_id, row.principal_id, row.request_id, ms(row.at), ms(row.at - REPEATED_WITHIN)))
        .collect();
    // Its log entry may have been faster.
    sqlx::query(
        "INSERT INTO submissions (submission_id, principal_id, request_id, opened_at, workflow_id, state)
         SELECT value ->> 0, value ->> 1,
             -- An id that is used up cannot stand for another submission: that one goes by its own.
             IIF(EXISTS (SELECT 1 FROM submissions WHERE principal_id = value ->> 1 AND request_id = value ->> 2
                         AND (state <> 'open' OR opened_at < value ->> 4)), value ->> 0, value ->> 2), value ->> 3,
             made, IIF(made IS NULL, 'open', 'resolved')
         FROM (SELECT value, (SELECT workflow_id FROM workflows WHERE submission_id = value ->> 0 LIMIT 1) AS made
               FROM json_each(?)) WHERE true
         ON CONFLICT DO NOTHING",
    )
    .bind(json(rows)?)
    .execute(tx)
    .await?;
    Ok(())
}

/// Ties a submission to the workflow it made.
pub async fn resolve(
    tx: &mut SqliteConnection,
    submission_id: &str,
    workflow_id: &str,
    at: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE submissions SET state = 'resolved', workflow_id = ?2, ended_at = COALESCE(ended_at, ?3)
         WHERE submission_id = ?1 AND (state <> 'resolved' OR workflow_id IS NOT ?2)",
    )
    .bind(submission_id)
    .bind(workflow_id)
    .bind(ms(at))
    .execute(tx)
    .await?;
    Ok(())
}

/// Those still open that began from `since` to `until`.
pub async fn open_between(
    pool: &SqlitePool,
    since: Timestamp,
    until: Timestamp,
) -> Result<Vec<OpenSubmission>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT submission_id, principal_id, opened_at, ended_at, failed FROM submissions
         WHERE state = 'open' AND opened_at BETWEEN ?1 AND ?2 ORDER BY opened_at",
    )
    .bind(ms(since))
    .bind(ms(until))
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(OpenSubmission {
                submission_id: row.try_get("submission_id")?,
                principal_id: row.try_get("principal_id")?,
                opened_at: time(row.try_get("opened_at")?),
                ended_at: optional_time(row, "ended_at")?,
                failed: row.try_get("failed")?,
            })
        })
        .collect()
}
