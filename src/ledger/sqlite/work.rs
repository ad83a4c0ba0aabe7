//! Workflow and task rows: what the log and the sweeps tell.

use jiff::{SignedDuration, Timestamp};
use sqlx::SqliteConnection;

use super::{charges, ms, submissions};
use crate::access_log::event::Event;
use crate::ledger::{Attribution, DueTask, Reported, Settled, Settlement, Usage};

/// A result precedes the terminal status by up to a few seconds; asking sooner than this would mostly be in vain.
const SETTLE_AFTER: SignedDuration = SignedDuration::from_millis(250);
/// However often clients see that a task has ended, FlowMesh is asked no more often than this.
const EVIDENCE_INTERVAL: SignedDuration = SignedDuration::from_secs(1);
/// A task or workflow that is merely looked at is asked after no more often than this.
const TOUCH_INTERVAL: SignedDuration = SignedDuration::from_secs(5);
/// The first sweep of a fresh workflow.
const SWEEP_AFTER: SignedDuration = SignedDuration::from_secs(5);

fn millis(duration: SignedDuration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Applies one event. Returns the charge that this has written, if it has.
pub async fn record(tx: &mut SqliteConnection, event: &Event, at: Timestamp) -> Result<Option<Reported>, sqlx::Error> {
    let recorded = match event {
        Event::Submitted { submission_id, principal_id, workflow_id, at: ended } => {
            // A replay from before what is kept: its workflow may have been billed and pruned.
            if was_pruned(tx, workflow_id, *ended).await? {
                return Ok(None);
            }
            submissions::see_principal(tx, principal_id, None, at).await?;
            submissions::resolve(tx, submission_id, workflow_id, *ended).await?;
            unmatch_others(tx, submission_id, workflow_id, at).await?;
            own_workflow(tx, workflow_id, principal_id, submission_id, at).await
        }
        Event::SubmissionRefused { submission_id } => submissions::refuse(tx, submission_id).await,
        Event::SubmissionEnded { submission_id, at: ended, failed } => {
            submissions::end(tx, submission_id, *ended, *failed).await
        }
        Event::SubmissionOpened { submission_id, principal, request_id, at: opened } => {
            submissions::open_late(tx, submission_id, principal, request_id, *opened).await
        }
        Event::PrincipalSeen { principal } => {
            submissions::see_principal(tx, &principal.id, principal.email.as_deref(), at).await
        }
        Event::TaskEnded { task_id } => task_ended(tx, task_id, at).await,
        Event::UsageReported { task_id, usage } => return usage_reported(tx, task_id, usage, at).await,
        Event::TaskTouched { task_id } => {
            sqlx::query(
                "INSERT INTO tasks (task_id, state, settle_at) VALUES (?1, 'open', ?2)
                 ON CONFLICT (task_id) DO UPDATE SET settle_at = MAX(?2, asked_at + ?3)
                 WHERE state = 'open' AND settle_at IS NULL",
            )
            .bind(task_id)
            .bind(ms(at + SETTLE_AFTER))
            .bind(millis(TOUCH_INTERVAL))
            .execute(tx)
            .await?;
            Ok(())
        }
        Event::WorkflowSeen { workflow_id } => {
            note_workflow(tx, workflow_id, Some(at), at).await?;
            sqlx::query(
                "UPDATE workflows SET heard = heard + 1, sweeps = 0, sweep_at = MIN(sweep_at, MAX(?2, asked_at + ?3))
                 WHERE workflow_id = ?1 AND state = 'open'",
            )
            .bind(workflow_id)
            .bind(ms(at))
            .bind(millis(TOUCH_INTERVAL))
            .execute(tx)
            .await?;
            Ok(())
        }
    };
    recorded.map(|()| None)
}

/// An answer itself says what its task cost.
async fn usage_reported(
    tx: &mut SqliteConnection,
    task_id: &str,
    usage: &Usage,
    at: Timestamp,
) -> Result<Option<Reported>, sqlx::Error> {
    // Without its workflow nobody knows whose it is, and FlowMesh is asked after all.
    let workflow_id: Option<Option<String>> = sqlx::query_scalar("SELECT workflow_id FROM tasks WHERE task_id = ?")
        .bind(task_id)
        .fetch_optional(&mut *tx)
        .await?;
    let Some(workflow_id) = workflow_id.flatten() else {
        return task_ended(tx, task_id, at).await.map(|()| None);
    };
    // One that was given up has a cost after all.
    sqlx::query("UPDATE tasks SET state = 'open', outcome = NULL WHERE task_id = ? AND outcome = 'gone'")
        .bind(task_id)
        .execute(&mut *tx)
        .await?;
    let settlement = Settlement::Usage(usage.clone());
    match charges::settle(tx, task_id, Some(&workflow_id), &settlement, at).await? {
        Settled::Deferred => task_ended(tx, task_id, at).await.map(|()| None),
        settled @ (Settled::Charged { .. } | Settled::Held { .. }) => {
            Ok(Some(Reported { task_id: task_id.to_owned(), workflow_id, cost: usage.cost.clone(), settled }))
        }
        _ => Ok(None),
    }
}

/// There is evidence that it ended: it is asked after until it has.
async fn task_ended(tx: &mut SqliteConnection, task_id: &str, at: Timestamp) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO tasks (task_id, state, eager, settle_at) VALUES (?1, 'open', 1, ?2)
         ON CONFLICT (task_id) DO UPDATE SET state = 'open', outcome = NULL, heard = heard + 1, eager = 1,
             attempts = IIF(eager, attempts, 0),
             settle_at = MIN(COALESCE(settle_at, ?2), MAX(?2, asked_at + ?3))
         WHERE state = 'open' OR outcome = 'gone'",
    )
    .bind(task_id)
    .bind(ms(at + SETTLE_AFTER))
    .bind(millis(EVIDENCE_INTERVAL))
    .execute(tx)
    .await?;
    Ok(())
}

/// Whether a workflow submitted `at` may have had a row that is pruned. One that has an owner, or looks for one, has not.
async fn was_pruned(tx: &mut SqliteConnection, workflow_id: &str, at: Timestamp) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT pruned_before > ?2
             AND NOT EXISTS (SELECT 1 FROM workflows WHERE workflow_id = ?1 AND state <> 'ignored') FROM ledger",
    )
    .bind(workflow_id)
    .bind(ms(at))
    .fetch_one(tx)
    .await
}

/// The log names the owner: that overrides whatever was guessed, and frees what was held.
async fn own_workflow(
    tx: &mut SqliteConnection,
    workflow_id: &str,
    principal_id: &str,
    submission_id: &str,
    at: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO workflows (workflow_id, principal_id, submission_id, attribution, state, noted_at, sweep_at)
         VALUES (?1, ?2, ?3, 'log', 'open', ?4, ?5)
         ON CONFLICT (workflow_id) DO UPDATE
         SET principal_id = ?2, submission_id = ?3, attribution = 'log', hold_reason = NULL,
             heard = heard + 1,
             state = IIF(state IN ('ignored', 'gone'), 'open', state),
             sweep_at = IIF(state IN ('ignored', 'gone'), ?5, sweep_at)
         WHERE attribution IS NULL OR attribution NOT IN ('log', 'operator')",
    )
    .bind(workflow_id)
    .bind(principal_id)
    .bind(submission_id)
    .bind(ms(at))
    .bind(ms(at + SWEEP_AFTER))
    .execute(&mut *tx)
    .await?;
    // A clock that runs behind can make a workflow look older than the ledger; its tasks are ours after all.
    sqlx::query(
        "UPDATE tasks SET state = 'open', outcome = NULL, settle_at = ?2 WHERE workflow_id = ?1 AND outcome = 'ignored'",
    )
    .bind(workflow_id)
    .bind(ms(at))
    .execute(&mut *tx)
    .await?;
    release(tx, workflow_id, at).await
}

/// One submission makes one workflow: another that was matched with it is somebody else's, and its owner is looked for again.
async fn unmatch_others(
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

/// Notes a workflow that FlowMesh has, also one that it seemed to have forgotten. Returns 1 when it was news.
pub async fn note_workflow(
    tx: &mut SqliteConnection,
    workflow_id: &str,
    sweep_at: Option<Timestamp>,
    at: Timestamp,
) -> Result<u64, sqlx::Error> {
    sqlx::query(
        "UPDATE workflows SET state = 'open', sweep_at = ?2, unknown_since = NULL WHERE workflow_id = ?1 AND state = 'gone'",
    )
    .bind(workflow_id)
    .bind(ms(at))
    .execute(&mut *tx)
    .await?;
    insert_workflow(tx, workflow_id, sweep_at, at).await
}

/// Makes the row of a workflow, unless there is one. Returns 1 when there was none.
pub async fn insert_workflow(
    tx: &mut SqliteConnection,
    workflow_id: &str,
    sweep_at: Option<Timestamp>,
    at: Timestamp,
) -> Result<u64, sqlx::Error> {
    let result = sqlx::query(
        "INSERT INTO workflows (workflow_id, state, noted_at, sweep_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
    )
    .bind(workflow_id)
    .bind(if sweep_at.is_some() { "open" } else { "ignored" })
    .bind(ms(at))
    .bind(ms(sweep_at.unwrap_or(at)))
    .execute(tx)
    .await?;
    Ok(result.rows_affected())
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
            sqlx::query("UPDATE workflows SET state = 'ignored' WHERE workflow_id = ? AND attribution IS NULL")
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
                release(tx, workflow_id, at).await?;
            }
            Ok(())
        }
    }
}

/// Gives a workflow's unposted charges to its owner.
pub async fn release(tx: &mut SqliteConnection, workflow_id: &str, at: Timestamp) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE charges SET principal_id = owner.principal_id, post_at = ?2,
             state = IIF(owner.email IS NULL, 'held', 'pending'),
             hold_reason = IIF(owner.email IS NULL, 'no_email', NULL)
         FROM (SELECT principals.principal_id, email FROM workflows JOIN principals USING (principal_id)
               WHERE workflow_id = ?1) AS owner
         WHERE charges.workflow_id = ?1 AND charges.principal_id IS NOT owner.principal_id
           AND (charges.state = 'held' OR (charges.state = 'pending' AND charges.leased_until <= ?2))",
    )
    .bind(workflow_id)
    .bind(ms(at))
    .execute(tx)
    .await?;
    Ok(())
}

/// Notes a task of a workflow; one that has ended is asked after at once.
pub async fn note_task(
    tx: &mut SqliteConnection,
    workflow_id: &str,
    task_id: &str,
    ended: bool,
    at: Timestamp,
) -> Result<(), sqlx::Error> {
    // An eager task has its own growing interval; the sweep must not reset it each time.
    sqlx::query(
        "INSERT INTO tasks (task_id, workflow_id, state, eager, settle_at) VALUES (?1, ?2, 'open', ?3, IIF(?3, ?4, NULL))
         ON CONFLICT (task_id) DO UPDATE SET workflow_id = ?2, eager = MAX(eager, ?3), state = 'open', outcome = NULL,
             settle_at = IIF(?3 AND (settle_at IS NULL OR NOT eager), ?4, settle_at)
         WHERE state = 'open' OR outcome = 'gone'",
    )
    .bind(task_id)
    .bind(workflow_id)
    .bind(ended)
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
