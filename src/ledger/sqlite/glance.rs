//! The few rows that the console shows.
//!
//! Each query walks an index of its own from the newest row on and stops after so many, whatever else is in the ledger.

use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqlitePool;

use super::books::{CHARGE, WORKFLOW, charge, task, workflow};
use crate::ledger::Error;
use crate::ledger::books::Glance;

/// The tasks that were asked after lately are those that are asked after last again.
const TASKS: &str = "SELECT * FROM tasks WHERE state = 'open' AND hold_reason IS NOT NULL
    ORDER BY settle_at DESC, rowid DESC LIMIT ?";

/// The queries by name, of which each takes the number of rows.
pub(super) fn queries() -> [(&'static str, String); 5] {
    let charges = |state| {
        format!("{CHARGE} WHERE charges.state = '{state}' ORDER BY charges.created_at DESC, charges.rowid DESC LIMIT ?")
    };
    [
        ("latest", format!("{CHARGE} ORDER BY charges.rowid DESC LIMIT ?")),
        ("held", charges("held")),
        ("rejected", charges("rejected")),
        (
            "held_workflows",
            format!(
                "{WORKFLOW} WHERE attribution = 'held' AND state <> 'ignored'
                 ORDER BY noted_at DESC, workflows.rowid DESC LIMIT ?"
            ),
        ),
        ("held_tasks", TASKS.to_owned()),
    ]
}

pub async fn glance(pool: &SqlitePool, rows: u32) -> Result<Glance, Error> {
    let mut found = Vec::new();
    for (_, query) in queries() {
        found.push(sqlx::query(AssertSqlSafe(query)).bind(rows).fetch_all(pool).await?);
    }
    let mut found = found.into_iter();
    let mut next = || found.next().unwrap_or_default();
    Ok(Glance {
        latest: next().iter().map(charge).collect::<Result<_, _>>()?,
        held: next().iter().map(charge).collect::<Result<_, _>>()?,
        rejected: next().iter().map(charge).collect::<Result<_, _>>()?,
        held_workflows: next().iter().map(workflow).collect::<Result<_, _>>()?,
        held_tasks: next().iter().map(task).collect::<Result<_, _>>()?,
    })
}
