//! What the log tells, a batch in a number of statements that does not grow with it.
//!
//! sqlx hands each statement to SQLite's own thread, which costs 20 to 30 µs whatever the statement does, and an event has one
//! to eight. In sets a task's event takes 5 to 17 µs of processor time in all, with nothing in the ledger and with 200 000
//! tasks, and a submission's 16 to 48. Rows are handed over as JSON and read by `json_each`.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Row, SqliteConnection};

use super::charges::{self, Settling};
use super::{ms, submissions, work};
use crate::access_log::event::Event;
use crate::ledger::batch::{self, Counted, Known, Wave};
use crate::ledger::{Reported, Settled, Settlement};

/// A result precedes the terminal status by up to a few seconds; asking sooner than this would mostly be in vain.
const SETTLE_AFTER: SignedDuration = SignedDuration::from_millis(250);
/// However often clients see that a task has ended, FlowMesh is asked no more often than this.
const EVIDENCE_INTERVAL: SignedDuration = SignedDuration::from_secs(1);
/// A task or workflow that is merely looked at is asked after no more often than this.
const TOUCH_INTERVAL: SignedDuration = SignedDuration::from_secs(5);
/// The first sweep of a fresh workflow.
const SWEEP_AFTER: SignedDuration = SignedDuration::from_secs(5);

/// Rows for a statement.
pub fn json(rows: impl Serialize) -> Result<String, sqlx::Error> {
    serde_json::to_string(&rows).map_err(|error| sqlx::Error::Encode(error.into()))
}

fn millis(duration: SignedDuration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn statement(sql: &'static str, rows: impl Serialize) -> Result<Query, sqlx::Error> {
    Ok(sqlx::query(sql).bind(json(rows)?))
}

type Query = sqlx::query::Query<'static, sqlx::Sqlite, SqliteArguments>;

/// Applies a batch. Returns the charges that this has written.
pub async fn record(tx: &mut SqliteConnection, events: &[Event], at: Timestamp) -> Result<Vec<Reported>, sqlx::Error> {
    let known = look_up(tx, events).await?;
    let mut charges = Vec::new();
    for wave in batch::waves(events, &known) {
        charges.extend(apply(tx, wave, at).await?);
    }
    Ok(charges)
}

async fn look_up(tx: &mut SqliteConnection, events: &[Event]) -> Result<Known, sqlx::Error> {
    let (mut used, mut submitted, mut opened) = (Vec::new(), Vec::new(), Vec::new());
    for event in events {
        match event {
            Event::UsageReported { task_id, .. } => used.push(task_id),
            Event::Submitted { submission_id, workflow_id, .. } => submitted.push((submission_id, workflow_id)),
            Event::SubmissionOpened { submission_id, principal, request_id, .. } => {
                opened.push((submission_id, &principal.id, request_id));
            }
            _ => {}
        }
    }
    let mut known = Known::default();
    if !used.is_empty() {
        let rows = statement(
            "SELECT task_id, workflow_id FROM tasks
             WHERE task_id IN (SELECT value FROM json_each(?1)) AND workflow_id IS NOT NULL",
            used,
        )?;
        for row in rows.fetch_all(&mut *tx).await? {
            known.workflow_of.insert(row.try_get(0)?, row.try_get(1)?);
        }
    }
    let submitted = (
        submitted,
        "SELECT value ->> 0 FROM json_each(?1)
         WHERE EXISTS (SELECT 1 FROM workflows WHERE submission_id = value ->> 0 AND workflow_id <> value ->> 1
                           AND attribution = 'matched')
            OR EXISTS (SELECT 1 FROM tasks WHERE workflow_id = value ->> 1 AND outcome = 'ignored')",
    );
    let opened = (
        opened,
        "SELECT value ->> 0 FROM json_each(?1)
         WHERE EXISTS (SELECT 1 FROM submissions WHERE principal_id = value ->> 1 AND request_id = value ->> 2
                           AND submission_id <> value ->> 0)",
    );
    if !submitted.0.is_empty() {
        let rows = statement(submitted.1, submitted.0)?.fetch_all(&mut *tx).await?;
        known.alone.extend(rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>()?);
    }
    if !opened.0.is_empty() {
        let rows = statement(opened.1, opened.0)?.fetch_all(&mut *tx).await?;
        known.alone.extend(rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>()?);
    }
    Ok(known)
}

/// Applies a wave, in the order of its fields.
async fn apply(tx: &mut SqliteConnection, mut wave: Wave<'_>, at: Timestamp) -> Result<Vec<Reported>, sqlx::Error> {
    workflows_seen(tx, &wave.seen, at).await?;
    if !wave.submitted.is_empty() {
        drop_pruned(tx, &mut wave).await?;
    }
    see_principals(tx, &wave, at).await?;
    submissions_heard(tx, &wave).await?;
    submissions_made(tx, &wave, at).await?;
    workflows_seen(tx, &wave.seen_after, at).await?;
    if !wave.touched.is_empty() {
        touched(tx, &wave, at).await?;
    }
    tasks_ended(tx, &wave.ended, at).await?;
    let charges = if wave.used.is_empty() { Vec::new() } else { usage_reported(tx, &wave, at).await? };
    tasks_ended(tx, &wave.ended_after, at).await?;
    Ok(charges)
}

async fn workflows_seen(tx: &mut SqliteConnection, seen: &Counted<'_>, at: Timestamp) -> Result<(), sqlx::Error> {
    if seen.is_empty() {
        return Ok(());
    }
    let upsert = statement(
        "INSERT INTO workflows (workflow_id, state, noted_at, sweep_at, heard)
         SELECT key, 'open', ?2, ?2, value FROM json_each(?1) WHERE true
         ON CONFLICT (workflow_id) DO UPDATE SET state = 'open', heard = heard + excluded.heard, sweeps = 0,
             unknown_since = IIF(state = 'gone', NULL, unknown_since),
             sweep_at = IIF(state = 'gone', ?2, MIN(sweep_at, MAX(?2, asked_at + ?3)))
         WHERE state IN ('open', 'gone')",
        seen,
    )?;
    upsert.bind(ms(at)).bind(millis(TOUCH_INTERVAL)).execute(tx).await?;
    Ok(())
}

/// A replay from before what is kept: its workflow may have been billed and pruned. One that has an owner, or looks for one,
/// has not.
async fn drop_pruned(tx: &mut SqliteConnection, wave: &mut Wave<'_>) -> Result<(), sqlx::Error> {
    let rows: Vec<_> = wave.submitted.values().map(|made| (made.workflow_id, ms(made.at))).collect();
    let pruned = statement(
        "SELECT value ->> 0 FROM json_each(?1) WHERE value ->> 1 < (SELECT pruned_before FROM ledger)
             AND NOT EXISTS (SELECT 1 FROM workflows WHERE workflow_id = value ->> 0 AND state <> 'ignored')",
        rows,
    )?;
    for row in pruned.fetch_all(tx).await? {
        wave.submitted.remove(row.try_get::<&str, _>(0)?);
    }
    Ok(())
}

async fn see_principals(tx: &mut SqliteConnection, wave: &Wave<'_>, at: Timestamp) -> Result<(), sqlx::Error> {
    let mut seen: std::collections::BTreeMap<&str, (Option<&str>, i64)> =
        wave.principals.iter().map(|(id, seen)| (*id, (seen.email, ms(seen.at.min(at))))).collect();
    for made in wave.submitted.values() {
        let (_, last) = seen.entry(made.principal_id).or_insert((None, ms(at)));
        *last = (*last).max(ms(at));
    }
    submissions::see_principals(tx, &seen, at).await
}

/// Of submissions of which no workflow is told.
async fn submissions_heard(tx: &mut SqliteConnection, wave: &Wave<'_>) -> Result<(), sqlx::Error> {
    if !wave.opened.is_empty() {
        submissions::open_late(tx, &wave.opened).await?;
    }
    if !wave.ended_submissions.is_empty() {
        let rows: Vec<_> =
            wave.ended_submissions.iter().map(|(id, (ended, failed))| (id, ms(*ended), i64::from(*failed))).collect();
        let end = statement(
            "UPDATE submissions SET ended_at = told.value ->> 1, failed = told.value ->> 2 FROM json_each(?1) AS told
             WHERE submission_id = told.value ->> 0 AND state = 'open'",
            rows,
        )?;
        end.execute(&mut *tx).await?;
    }
    if !wave.refused.is_empty() {
        let refuse = statement(
            "UPDATE submissions SET state = 'refused'
             WHERE submission_id IN (SELECT value FROM json_each(?1)) AND state = 'open'",
            &wave.refused,
        )?;
        refuse.execute(tx).await?;
    }
    Ok(())
}

/// The log names the owner: that overrides whatever was guessed, and frees what was held.
async fn submissions_made(tx: &mut SqliteConnection, wave: &Wave<'_>, at: Timestamp) -> Result<(), sqlx::Error> {
    if wave.submitted.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> = wave
        .submitted
        .values()
        .map(|made| (made.submission_id, made.workflow_id, made.principal_id, ms(made.at)))
        .collect();
    let rows = json(rows)?;
    sqlx::query(
        "UPDATE submissions SET state = 'resolved', workflow_id = made.value ->> 1,
             ended_at = COALESCE(ended_at, made.value ->> 3)
         FROM json_each(?1) AS made
         WHERE submission_id = made.value ->> 0 AND (state <> 'resolved' OR workflow_id IS NOT made.value ->> 1)",
    )
    .bind(&rows)
    .execute(&mut *tx)
    .await?;
    if wave.is_alone {
        for made in wave.submitted.values() {
            work::unmatch_others(tx, made.submission_id, made.workflow_id, at).await?;
        }
    }
    sqlx::query(
        "INSERT INTO workflows (workflow_id, submission_id, principal_id, attribution, state, noted_at, sweep_at)
         SELECT value ->> 1, value ->> 0, value ->> 2, 'log', 'open', ?2, ?3 FROM json_each(?1) WHERE true
         ON CONFLICT (workflow_id) DO UPDATE
         SET principal_id = excluded.principal_id, submission_id = excluded.submission_id, attribution = 'log',
             hold_reason = NULL, heard = heard + 1,
             state = IIF(state IN ('ignored', 'gone'), 'open', state),
             sweep_at = IIF(state IN ('ignored', 'gone'), ?3, sweep_at)
         WHERE attribution IS NULL OR attribution NOT IN ('log', 'operator')",
    )
    .bind(&rows)
    .bind(ms(at))
    .bind(ms(at + SWEEP_AFTER))
    .execute(&mut *tx)
    .await?;
    let workflows: Vec<&str> = wave.submitted.keys().copied().collect();
    if wave.is_alone {
        // A clock that runs behind can make a workflow look older than the ledger; its tasks are ours after all.
        let again = statement(
            "UPDATE tasks SET state = 'open', outcome = NULL, settle_at = ?2
             WHERE workflow_id IN (SELECT value FROM json_each(?1)) AND outcome = 'ignored'",
            &workflows,
        )?;
        again.bind(ms(at)).execute(&mut *tx).await?;
    }
    work::release(tx, &workflows, at).await
}

/// Somebody looked: asked once, if nothing is planned and it is not settled.
async fn touched(tx: &mut SqliteConnection, wave: &Wave<'_>, at: Timestamp) -> Result<(), sqlx::Error> {
    let upsert = statement(
        "INSERT INTO tasks (task_id, state, settle_at) SELECT value, 'open', ?2 FROM json_each(?1) WHERE true
         ON CONFLICT (task_id) DO UPDATE SET settle_at = MAX(?2, asked_at + ?3)
         WHERE state = 'open' AND settle_at IS NULL",
        &wave.touched,
    )?;
    upsert.bind(ms(at + SETTLE_AFTER)).bind(millis(TOUCH_INTERVAL)).execute(tx).await?;
    Ok(())
}

/// There is evidence that they ended: they are asked after until they have.
async fn tasks_ended(tx: &mut SqliteConnection, ended: &Counted<'_>, at: Timestamp) -> Result<(), sqlx::Error> {
    if ended.is_empty() {
        return Ok(());
    }
    // The evidence that makes the row is not counted.
    let upsert = statement(
        "INSERT INTO tasks (task_id, state, eager, settle_at, heard)
         SELECT key, 'open', 1, ?2, value - 1 FROM json_each(?1) WHERE true
         ON CONFLICT (task_id) DO UPDATE SET state = 'open', outcome = NULL, heard = heard + excluded.heard + 1, eager = 1,
             attempts = IIF(eager, attempts, 0),
             settle_at = MIN(COALESCE(settle_at, ?2), MAX(?2, asked_at + ?3))
         WHERE state = 'open' OR outcome = 'gone'",
        ended,
    )?;
    upsert.bind(ms(at + SETTLE_AFTER)).bind(millis(EVIDENCE_INTERVAL)).execute(tx).await?;
    Ok(())
}

/// Answers themselves say what their tasks cost.
async fn usage_reported(
    tx: &mut SqliteConnection,
    wave: &Wave<'_>,
    at: Timestamp,
) -> Result<Vec<Reported>, sqlx::Error> {
    // One that was given up has a cost after all.
    let again = statement(
        "UPDATE tasks SET state = 'open', outcome = NULL
         WHERE task_id IN (SELECT value FROM json_each(?1)) AND outcome = 'gone'",
        wave.used.iter().map(|used| used.task_id).collect::<Vec<_>>(),
    )?;
    again.execute(&mut *tx).await?;
    let settlements: Vec<Settlement> = wave.used.iter().map(|used| Settlement::Usage(used.usage.clone())).collect();
    let settling: Vec<Settling<'_>> = wave
        .used
        .iter()
        .zip(&settlements)
        .map(|(used, settlement)| Settling {
            task_id: used.task_id,
            workflow_id: Some(used.workflow_id),
            settlement,
            at,
        })
        .collect();
    let (mut charges, mut deferred) = (Vec::new(), Counted::new());
    for (used, settled) in wave.used.iter().zip(charges::settle(tx, &settling).await?) {
        match settled {
            Settled::Deferred => {
                deferred.insert(used.task_id, 1);
            }
            Settled::Charged { .. } | Settled::Held { .. } => charges.push(Reported {
                task_id: used.task_id.to_owned(),
                workflow_id: used.workflow_id.to_owned(),
                cost: used.usage.cost.clone(),
                settled,
            }),
            _ => {}
        }
    }
    tasks_ended(tx, &deferred, at).await?;
    Ok(charges)
}
