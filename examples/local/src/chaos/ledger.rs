//! Tollgate's ledger, read when nobody has it open.

use std::{collections::HashMap, path::Path};

use anyhow::{Context as _, Result};
use sqlx::{Connection as _, Row as _, SqliteConnection, sqlite::SqliteConnectOptions};

/// What the ledger says of a workflow.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "shown as a whole when something is wrong")]
pub(super) struct Workflow {
    pub principal: Option<String>,
    pub attribution: Option<String>,
    pub hold_reason: Option<String>,
    pub state: String,
}

/// What the ledger says of a charge.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "shown as a whole when something is wrong")]
pub(super) struct Charge {
    pub workflow: Option<String>,
    pub principal: Option<String>,
    pub state: String,
    pub attempts: i64,
    pub last_error: Option<String>,
}

/// All that matters here.
pub(super) struct Rows {
    pub workflows: HashMap<String, Workflow>,
    /// By task.
    pub charges: HashMap<String, Charge>,
    /// By state.
    pub submissions: Vec<(String, i64)>,
}

/// Reads everything.
pub(super) async fn read(path: &Path) -> Result<Rows> {
    let options = SqliteConnectOptions::new().filename(path);
    let mut ledger = SqliteConnection::connect_with(&options).await.context("cannot open the ledger")?;
    let sound: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut ledger).await?;
    anyhow::ensure!(sound == "ok", "the ledger is damaged: {sound}");
    let rows = sqlx::query("SELECT workflow_id, principal_id, attribution, hold_reason, state FROM workflows");
    let workflows = rows.fetch_all(&mut ledger).await?;
    let rows = sqlx::query("SELECT task_id, workflow_id, principal_id, state, attempts, last_error FROM charges");
    let charges = rows.fetch_all(&mut ledger).await?;
    let rows = sqlx::query("SELECT state, COUNT(*) FROM submissions GROUP BY state");
    let submissions = rows.fetch_all(&mut ledger).await?;
    ledger.close().await?;
    let workflow = |row: &sqlx::sqlite::SqliteRow| -> Result<(String, Workflow), sqlx::Error> {
        let (principal, attribution, hold_reason) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        Ok((row.try_get(0)?, Workflow { principal, attribution, hold_reason, state: row.try_get(4)? }))
    };
    let charge = |row: &sqlx::sqlite::SqliteRow| -> Result<(String, Charge), sqlx::Error> {
        let (workflow, principal, state) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        let (attempts, last_error) = (row.try_get(4)?, row.try_get(5)?);
        Ok((row.try_get(0)?, Charge { workflow, principal, state, attempts, last_error }))
    };
    Ok(Rows {
        workflows: workflows.iter().map(workflow).collect::<Result<_, _>>()?,
        charges: charges.iter().map(charge).collect::<Result<_, _>>()?,
        submissions: submissions
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect::<Result<_, sqlx::Error>>()?,
    })
}
