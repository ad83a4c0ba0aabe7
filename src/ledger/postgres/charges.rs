//! Charge rows, in PostgreSQL's words: settling writes them, and they are claimed for posting.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::events::{ids, statement};
use super::{Store, Text, count, due, optional_text, text};
use crate::ledger::settling::{ChargeRow, ChargeTables, Noted, Owner, SettledTask};
use crate::ledger::{DueCharge, Error, Pick, Work, ms};

impl ChargeTables for PgConnection {
    async fn noted(&mut self, tasks: &[&str]) -> Result<HashMap<String, Noted>, sqlx::Error> {
        let select = statement(
            "SELECT task_id, state = 'settled' AS is_settled, workflow_id FROM tasks
             WHERE task_id IN (SELECT jsonb_array_elements_text($1::text::jsonb))",
            tasks,
        )?;
        let rows = select.fetch_all(self).await?;
        rows.iter()
            .map(|row| {
                let noted =
                    Noted { is_settled: row.try_get("is_settled")?, workflow_id: optional_text(row, "workflow_id")? };
                Ok((text(row, "task_id")?, noted))
            })
            .collect()
    }

    async fn owners(&mut self, workflows: &BTreeMap<String, i64>) -> Result<HashMap<String, Owner>, sqlx::Error> {
        let note = statement(
            "INSERT INTO workflows (workflow_id, state, noted_at, sweep_at)
             SELECT key, 'open', value::bigint, value::bigint FROM jsonb_each($1::text::jsonb) ON CONFLICT DO NOTHING",
            workflows,
        )?;
        note.execute(&mut *self).await?;
        let select = statement(
            "SELECT workflow_id, state, attribution IS NOT NULL AS was_looked_for, workflows.principal_id,
                 email IS NOT NULL AS has_email
             FROM workflows LEFT JOIN principals USING (principal_id)
             WHERE workflow_id IN (SELECT jsonb_object_keys($1::text::jsonb))",
            workflows,
        )?;
        let rows = select.fetch_all(self).await?;
        rows.iter()
            .map(|row| {
                let (email, looked_for) = (row.try_get("has_email")?, row.try_get("was_looked_for")?);
                let owner = Owner::new(optional_text(row, "principal_id")?, email, row.try_get("state")?, looked_for);
                Ok((text(row, "workflow_id")?, owner))
            })
            .collect()
    }

    async fn insert_charges(&mut self, charges: &[ChargeRow<'_>]) -> Result<HashSet<String>, sqlx::Error> {
        let insert = statement(
            "INSERT INTO charges (task_id, workflow_id, principal_id, supplier_id, cost, duration_sec, cost_per_hour,
                 task_status, assigned_worker, started_at, finished_at, state, hold_reason, post_at, created_at)
             SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, (value ->> 5)::bigint, value ->> 6,
                 value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11, value ->> 12,
                 (value ->> 13)::bigint, (value ->> 13)::bigint
             FROM jsonb_array_elements($1::text::jsonb) WITH ORDINALITY AS charge(value, n)
             ORDER BY n ON CONFLICT DO NOTHING RETURNING task_id",
            charges,
        )?;
        Ok(ids(self, insert).await?.into_iter().collect())
    }

    async fn settle_tasks(&mut self, tasks: &[SettledTask<'_>]) -> Result<(), sqlx::Error> {
        let upsert = statement(
            "INSERT INTO tasks (task_id, workflow_id, state, outcome, asked_at)
             SELECT value ->> 0, value ->> 1, 'settled', value ->> 2, (value ->> 3)::bigint
             FROM jsonb_array_elements($1::text::jsonb) AS task(value)
             ON CONFLICT (task_id) DO UPDATE SET state = 'settled', outcome = excluded.outcome,
                 asked_at = excluded.asked_at, settle_at = NULL, hold_reason = NULL, leased_until = 0,
                 workflow_id = COALESCE(excluded.workflow_id, tasks.workflow_id)",
            tasks,
        )?;
        upsert.execute(self).await?;
        Ok(())
    }

    async fn release(&mut self, workflows: &[&str], at: i64) -> Result<(), sqlx::Error> {
        if workflows.is_empty() {
            return Ok(());
        }
        let release = statement(
            "UPDATE charges SET principal_id = principals.principal_id, post_at = $2,
                 state = CASE WHEN email IS NULL THEN 'held' ELSE 'pending' END,
                 hold_reason = CASE WHEN email IS NULL THEN 'no_email' END
             FROM jsonb_array_elements_text($1::text::jsonb) AS owned(id)
             JOIN workflows ON workflows.workflow_id = owned.id
             JOIN principals ON principals.principal_id = workflows.principal_id
             WHERE charges.workflow_id = workflows.workflow_id
               AND charges.principal_id IS DISTINCT FROM principals.principal_id
               AND (charges.state = 'held' OR (charges.state = 'pending' AND charges.leased_until <= $2))",
            workflows,
        )?;
        release.bind(at).execute(self).await?;
        Ok(())
    }
}

/// Claims charges to post, of workflows whose owner was not corrected while an earlier post was under way.
pub async fn claim(store: &Store, at: Timestamp, lease: Duration, pick: Pick) -> Result<Vec<DueCharge>, Error> {
    let rows = due::claimed(store, (Work::Charges, pick), at, lease).await?;
    let (mut claimed, mut owned, mut unowned) = (Vec::with_capacity(rows.len()), Vec::new(), Vec::new());
    for row in &rows {
        let charge = DueCharge {
            task_id: text(row, "task_id")?,
            workflow_id: optional_text(row, "workflow_id")?,
            principal_id: text(row, "principal_id")?,
            email: text(row, "email")?,
            cost: text(row, "cost")?,
            duration_sec: row.try_get("duration_sec")?,
            cost_per_hour: text(row, "cost_per_hour")?,
            task_status: text(row, "task_status")?,
            attempts: count(row, "attempts")?,
            leased_until: at + lease,
        };
        match (charge.workflow_id, row.try_get::<Option<Text>, _>("owner")?) {
            // Whoever posted it last died before the word of it: the next claim is the owner's.
            (Some(workflow_id), Some(theirs)) if theirs.0 != charge.principal_id => {
                owned.push((charge.task_id, workflow_id));
            }
            // Likewise, and it has lost its owner meanwhile.
            (workflow_id, _) if row.try_get("unowned")? => unowned.push((charge.task_id, workflow_id)),
            (workflow_id, _) => claimed.push(DueCharge { workflow_id, ..charge }),
        }
    }
    if !owned.is_empty() || !unowned.is_empty() {
        correct(store, &owned, &unowned, at).await?;
    }
    Ok(claimed)
}

/// Gives claimed charges back: to the owners of their workflows, or to nobody. In a transaction after the claim, which holds no
/// lock while it waits for the writer's; so an owner may have come meanwhile, of those that had none as well.
pub(super) async fn correct(
    store: &Store,
    owned: &[(String, String)],
    unowned: &[(String, Option<String>)],
    at: Timestamp,
) -> Result<(), Error> {
    let mut writing = store.write().await?;
    let lift = statement(
        "UPDATE charges SET leased_until = 0 WHERE state = 'pending'
         AND task_id IN (SELECT jsonb_array_elements_text($1::text::jsonb))",
        owned.iter().map(|(task, _)| task).collect::<Vec<_>>(),
    )?;
    lift.execute(writing.tx()).await?;
    let hold = statement(
        "UPDATE charges SET leased_until = 0, state = 'held', hold_reason = 'no_owner', principal_id = NULL
         WHERE state = 'pending' AND task_id IN (SELECT jsonb_array_elements_text($1::text::jsonb))",
        unowned.iter().map(|(task, _)| task).collect::<Vec<_>>(),
    )?;
    hold.execute(writing.tx()).await?;
    let workflows = owned.iter().map(|(_, workflow)| workflow).chain(unowned.iter().filter_map(|(_, of)| of.as_ref()));
    let workflows: Vec<&str> = workflows.map(String::as_str).collect();
    writing.tx().release(&workflows, ms(at)).await?;
    Ok(writing.commit().await?)
}
