//! Charge rows, in SQLite's words: settling writes them, posting moves them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use sqlx::{Row, SqliteConnection};

use super::due;
use super::events::statement;
use crate::ledger::settling::{ChargeRow, ChargeTables, Noted, Owner, SettledTask};
use crate::ledger::{DueCharge, Pick, Work, ms};

impl ChargeTables for SqliteConnection {
    async fn noted(&mut self, tasks: &[&str]) -> Result<HashMap<String, Noted>, sqlx::Error> {
        let select = statement(
            "SELECT task_id, state = 'settled', workflow_id FROM tasks
             WHERE task_id IN (SELECT value FROM json_each(?))",
            tasks,
        )?;
        let rows = select.fetch_all(self).await?;
        rows.iter()
            .map(|row| Ok((row.try_get(0)?, Noted { is_settled: row.try_get(1)?, workflow_id: row.try_get(2)? })))
            .collect()
    }

    async fn owners(&mut self, workflows: &BTreeMap<String, i64>) -> Result<HashMap<String, Owner>, sqlx::Error> {
        let note = statement(
            "INSERT INTO workflows (workflow_id, state, noted_at, sweep_at)
             SELECT key, 'open', value, value FROM json_each(?) WHERE true ON CONFLICT DO NOTHING",
            workflows,
        )?;
        note.execute(&mut *self).await?;
        let select = statement(
            "SELECT workflow_id, state, attribution IS NOT NULL AS was_looked_for, workflows.principal_id,
                 email IS NOT NULL AS has_email
             FROM json_each(?) CROSS JOIN workflows ON workflow_id = key LEFT JOIN principals USING (principal_id)",
            workflows,
        )?;
        let rows = select.fetch_all(self).await?;
        rows.iter()
            .map(|row| {
                let (email, looked_for) = (row.try_get("has_email")?, row.try_get("was_looked_for")?);
                let owner = Owner::new(row.try_get("principal_id")?, email, row.try_get("state")?, looked_for);
                Ok((row.try_get("workflow_id")?, owner))
            })
            .collect()
    }

    async fn insert_charges(&mut self, charges: &[ChargeRow<'_>]) -> Result<HashSet<String>, sqlx::Error> {
        let insert = statement(
            "INSERT INTO charges (task_id, workflow_id, principal_id, supplier_id, cost, duration_sec, cost_per_hour,
                 task_status, assigned_worker, started_at, finished_at, state, hold_reason, post_at, created_at)
             SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6,
                 value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11, value ->> 12, value ->> 13,
                 value ->> 13
             FROM json_each(?) WHERE true ORDER BY key ON CONFLICT DO NOTHING RETURNING task_id",
            charges,
        )?;
        insert.fetch_all(self).await?.iter().map(|row| row.try_get(0)).collect()
    }

    async fn settle_tasks(&mut self, tasks: &[SettledTask<'_>]) -> Result<(), sqlx::Error> {
        let upsert = statement(
            "INSERT INTO tasks (task_id, workflow_id, state, outcome, asked_at)
             SELECT value ->> 0, value ->> 1, 'settled', value ->> 2, value ->> 3 FROM json_each(?) WHERE true
             ON CONFLICT (task_id) DO UPDATE SET state = 'settled', outcome = excluded.outcome,
                 asked_at = excluded.asked_at, settle_at = NULL, hold_reason = NULL, leased_until = 0,
                 workflow_id = COALESCE(excluded.workflow_id, workflow_id)",
            tasks,
        )?;
        upsert.execute(self).await?;
        Ok(())
    }

    async fn release(&mut self, workflows: &[&str], at: i64) -> Result<(), sqlx::Error> {
        if workflows.is_empty() {
            return Ok(());
        }
        // The workflows first, and their charges by the index: CROSS JOIN keeps SQLite from beginning with all charges.
        let release = statement(
            "UPDATE charges SET principal_id = owner.principal_id, post_at = ?2,
                 state = IIF(owner.email IS NULL, 'held', 'pending'),
                 hold_reason = IIF(owner.email IS NULL, 'no_email', NULL)
             FROM (SELECT unposted.rowid AS number, principals.principal_id, email
                   FROM json_each(?1) CROSS JOIN workflows ON workflows.workflow_id = value
                   JOIN principals ON principals.principal_id = workflows.principal_id
                   CROSS JOIN charges AS unposted ON unposted.workflow_id = value
                   WHERE unposted.principal_id IS NOT principals.principal_id
                     AND (unposted.state = 'held'
                          OR (unposted.state = 'pending' AND unposted.leased_until <= ?2))) AS owner
             WHERE charges.rowid = owner.number",
            workflows,
        )?;
        release.bind(at).execute(self).await?;
        Ok(())
    }
}

/// Claims charges to post, of workflows whose owner was not corrected while an earlier post was under way.
pub async fn claim(
    tx: &mut SqliteConnection,
    at: Timestamp,
    lease: Duration,
    pick: Pick,
) -> Result<Vec<DueCharge>, sqlx::Error> {
    let rows = due::claimed(&mut *tx, (Work::Charges, pick), at, lease).await?;
    let mut claimed = Vec::with_capacity(rows.len());
    for row in &rows {
        let charge = DueCharge {
            task_id: row.try_get("task_id")?,
            workflow_id: row.try_get("workflow_id")?,
            principal_id: row.try_get("principal_id")?,
            email: row.try_get("email")?,
            cost: row.try_get("cost")?,
            duration_sec: row.try_get("duration_sec")?,
            cost_per_hour: row.try_get("cost_per_hour")?,
            task_status: row.try_get("task_status")?,
            attempts: row.try_get("attempts")?,
            leased_until: at + lease,
        };
        let owner: Option<String> = row.try_get("owner")?;
        match (&charge.workflow_id, owner) {
            // Whoever posted it last died before the word of it: the next claim is the owner's.
            (Some(workflow_id), Some(owner)) if owner != charge.principal_id => {
                sqlx::query("UPDATE charges SET leased_until = 0 WHERE task_id = ?")
                    .bind(&charge.task_id)
                    .execute(&mut *tx)
                    .await?;
                tx.release(&[workflow_id], ms(at)).await?;
            }
            // Likewise, and it has lost its owner meanwhile.
            _ if row.try_get("unowned")? => {
                sqlx::query(
                    "UPDATE charges SET leased_until = 0, state = 'held', hold_reason = 'no_owner', principal_id = NULL
                     WHERE task_id = ?",
                )
                .bind(&charge.task_id)
                .execute(&mut *tx)
                .await?;
            }
            _ => claimed.push(charge),
        }
    }
    Ok(claimed)
}
