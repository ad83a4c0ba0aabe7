//! The operator's two moves.

use std::collections::HashSet;

use jiff::Timestamp;
use sqlx::{AssertSqlSafe, Row, SqliteConnection};

use super::{books, ms, submissions, work};
use crate::ledger::Error;
use crate::ledger::books::{Named, Naming, Retried, Retry};

/// Puts charges up for posting now.
pub async fn retry(
    tx: &mut SqliteConnection,
    which: Retry<'_>,
    after: i64,
    at: Timestamp,
    limit: u32,
) -> Result<Vec<Retried>, Error> {
    const REJECTED: &str = "state = 'rejected'";
    // What is due already, or being posted, needs no help.
    const LATER: &str = "state = 'pending' AND post_at > ?1 AND leased_until <= ?1";
    let (condition, task) = match which {
        Retry::Task(task) => (format!("task_id = ?3 AND ({REJECTED} OR {LATER})"), task),
        Retry::Rejected => (REJECTED.to_owned(), ""),
        Retry::All => (format!("({REJECTED} OR {LATER})"), ""),
    };
    let select = format!(
        "SELECT rowid, task_id, state, principal_id, cost FROM charges
         WHERE {condition} AND rowid > ?4 ORDER BY rowid LIMIT ?2"
    );
    let rows =
        sqlx::query(AssertSqlSafe(select)).bind(ms(at)).bind(limit).bind(task).bind(after).fetch_all(&mut *tx).await?;
    let retried = rows
        .iter()
        .map(|row| {
            Ok(Retried {
                number: row.try_get("rowid")?,
                task_id: row.try_get("task_id")?,
                from: books::state(row.try_get("state")?)?,
                principal_id: row.try_get("principal_id")?,
                cost: row.try_get("cost")?,
            })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    let ids = serde_json::json!(retried.iter().map(|charge| &charge.task_id).collect::<Vec<_>>()).to_string();
    let workflows: HashSet<Option<String>> = sqlx::query_scalar(
        "UPDATE charges SET state = 'pending', post_at = ?1, leased_until = 0
         WHERE task_id IN (SELECT value FROM json_each(?2)) RETURNING workflow_id",
    )
    .bind(ms(at))
    .bind(ids)
    .fetch_all(&mut *tx)
    .await?
    .into_iter()
    .collect();
    // Its owner may have been corrected since it was rejected.
    let workflows: Vec<&str> = workflows.iter().flatten().map(String::as_str).collect();
    work::release(tx, &workflows, at).await?;
    Ok(retried)
}

/// Names the owner of a workflow. Everything is judged before anything is written.
pub async fn name_owner(tx: &mut SqliteConnection, naming: Naming<'_>) -> Result<Named, Error> {
    let Naming { workflow_id, principal_id, email, submission_id, at } = naming;
    let row = sqlx::query("SELECT state, principal_id FROM workflows WHERE workflow_id = ?")
        .bind(workflow_id)
        .fetch_optional(&mut *tx)
        .await?;
    let Some(row) = row else { return Ok(Named::UnknownWorkflow) };
    if row.try_get::<String, _>("state")? == "ignored" {
        return Ok(Named::Ignored);
    }
    let owner: Option<String> = row.try_get("principal_id")?;
    if let Some(owner) = owner.filter(|owner| owner != principal_id) {
        for (condition, refusal) in [
            ("state = 'posted'", Named::Posted { principal_id: owner.clone() }),
            ("state = 'pending' AND leased_until > ?2", Named::BeingPosted { principal_id: owner.clone() }),
        ] {
            let query = format!("SELECT EXISTS (SELECT 1 FROM charges WHERE workflow_id = ?1 AND {condition})");
            let is_so: bool =
                sqlx::query_scalar(AssertSqlSafe(query)).bind(workflow_id).bind(ms(at)).fetch_one(&mut *tx).await?;
            if is_so {
                return Ok(refusal);
            }
        }
    }
    let known: Option<Option<String>> = sqlx::query_scalar("SELECT email FROM principals WHERE principal_id = ?")
        .bind(principal_id)
        .fetch_optional(&mut *tx)
        .await?;
    let (pending_before, _) = unposted(tx, &naming).await?;
    match (known, email) {
        (None, None) => return Ok(Named::UnknownPrincipal),
        // lum.id knows better, and other charges go there, too.
        (Some(Some(known)), Some(given)) if known != given => return Ok(Named::OtherEmail),
        (None | Some(None), Some(_)) => submissions::see_principal(tx, principal_id, email, at).await?,
        (Some(_), _) => {}
    }
    sqlx::query(
        "UPDATE workflows SET principal_id = ?2, attribution = 'operator', hold_reason = NULL,
             submission_id = IIF(principal_id IS ?2, submission_id, NULL),
             sweep_at = IIF(state = 'open', MIN(sweep_at, ?3), sweep_at)
         WHERE workflow_id = ?1 AND (principal_id IS NOT ?2 OR attribution IS NULL OR attribution = 'held')",
    )
    .bind(workflow_id)
    .bind(principal_id)
    .bind(ms(at))
    .execute(&mut *tx)
    .await?;
    let mut used_submission = false;
    if let Some(submission_id) = submission_id {
        let used = sqlx::query(
            "UPDATE workflows SET submission_id = ?2 WHERE workflow_id = ?1 AND submission_id IS NULL
                 AND EXISTS (SELECT 1 FROM submissions
                             WHERE submission_id = ?2 AND principal_id = ?3 AND state = 'open')",
        )
        .bind(workflow_id)
        .bind(submission_id)
        .bind(principal_id)
        .execute(&mut *tx)
        .await?;
        if used.rows_affected() == 1 {
            submissions::resolve(tx, submission_id, workflow_id, at).await?;
            used_submission = true;
        }
    }
    work::release(tx, &[workflow_id], at).await?;
    let (pending, held) = unposted(tx, &naming).await?;
    Ok(Named::Done { released: pending.saturating_sub(pending_before), held, used_submission })
}

/// How many charges of the workflow are the principal's, pending and held.
async fn unposted(tx: &mut SqliteConnection, naming: &Naming<'_>) -> Result<(u64, u64), Error> {
    let row = sqlx::query(
        "SELECT COUNT(*) FILTER (WHERE state = 'pending') AS pending, COUNT(*) FILTER (WHERE state = 'held') AS held
         FROM charges WHERE workflow_id = ? AND principal_id = ?",
    )
    .bind(naming.workflow_id)
    .bind(naming.principal_id)
    .fetch_one(tx)
    .await?;
    let count = |name: &str| row.try_get::<i64, _>(name).map(i64::unsigned_abs);
    Ok((count("pending")?, count("held")?))
}
