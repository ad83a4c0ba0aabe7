//! The few rows that the console shows.
//!
//! Each query walks an index of its own from the newest row on and stops after so many, whatever else is in the ledger.

use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{AssertSqlSafe, FromRow};

use super::books::NUMBER;
use crate::ledger::Error;
use crate::ledger::books::{Charge, Glance};
use crate::ledger::records::{ChargeRecord, TASKS, TaskRecord, WORKFLOWS, WorkflowRecord, charges};

/// The queries in the order of the fields of [`Glance`], each of which takes the number of rows.
pub(super) fn queries() -> [String; 5] {
    let of = |condition: &str, time: &str| {
        format!("{} {condition} ORDER BY {time}charges.rowid DESC LIMIT ?", charges(NUMBER))
    };
    [
        of("", ""),
        of("WHERE charges.state = 'held'", "created_at DESC, "),
        of("WHERE charges.state = 'rejected'", "created_at DESC, "),
        format!(
            "{WORKFLOWS} WHERE attribution = 'held' AND state <> 'ignored'
             ORDER BY noted_at DESC, workflows.rowid DESC LIMIT ?"
        ),
        // Those that were asked after lately are those that are asked after last again.
        format!("{TASKS} WHERE state = 'open' AND hold_reason IS NOT NULL ORDER BY settle_at DESC, rowid DESC LIMIT ?"),
    ]
}

pub async fn glance(pool: &SqlitePool, rows: u32) -> Result<Glance, Error> {
    let [latest, held, rejected, workflows, tasks] = queries();
    Ok(Glance {
        latest: newest_charges(pool, latest, rows).await?,
        held: newest_charges(pool, held, rows).await?,
        rejected: newest_charges(pool, rejected, rows).await?,
        held_workflows: newest::<WorkflowRecord>(pool, workflows, rows).await?.into_iter().map(Into::into).collect(),
        held_tasks: newest::<TaskRecord>(pool, tasks, rows).await?.into_iter().map(Into::into).collect(),
    })
}

async fn newest_charges(pool: &SqlitePool, query: String, rows: u32) -> Result<Vec<Charge>, Error> {
    newest::<ChargeRecord>(pool, query, rows).await?.into_iter().map(Charge::try_from).collect()
}

async fn newest<T>(pool: &SqlitePool, query: String, rows: u32) -> Result<Vec<T>, Error>
where
    T: for<'r> FromRow<'r, SqliteRow> + Send + Unpin,
{
    Ok(sqlx::query_as(AssertSqlSafe(query)).bind(rows).fetch_all(pool).await?)
}
