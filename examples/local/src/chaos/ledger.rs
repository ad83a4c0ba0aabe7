//! Tollgate's ledger, as somebody else reads it.

use std::{collections::HashMap, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use sqlx::{
    ColumnIndex, Connection as _, Database, Decode, PgConnection, Row, SqliteConnection, Type,
    sqlite::SqliteConnectOptions,
};

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

/// Where it is.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// A file.
    Sqlite(PathBuf),
    /// The URL of a database.
    Postgres(String),
}

const WORKFLOWS: &str = "SELECT workflow_id, principal_id, attribution, hold_reason, state FROM workflows";
const CHARGES: &str = "SELECT task_id, workflow_id, principal_id, state, attempts, last_error FROM charges";
const SUBMISSIONS: &str = "SELECT state, COUNT(*) FROM submissions GROUP BY state";

impl Place {
    /// As `TOLLGATE_LEDGER` has it.
    pub fn setting(&self) -> String {
        match self {
            Self::Sqlite(path) => format!("sqlite:{}", path.display()),
            Self::Postgres(url) => url.clone(),
        }
    }

    /// Reads everything.
    pub async fn read(&self) -> Result<Rows> {
        match self {
            Self::Sqlite(path) => {
                let options = SqliteConnectOptions::new().filename(path);
                let ledger = SqliteConnection::connect_with(&options).await;
                let mut ledger = ledger.context("cannot open the ledger")?;
                let sound: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut ledger).await?;
                ensure!(sound == "ok", "the ledger is damaged: {sound}");
                let workflows = sqlx::query(WORKFLOWS).fetch_all(&mut ledger).await?;
                let charges = sqlx::query(CHARGES).fetch_all(&mut ledger).await?;
                let submissions = sqlx::query(SUBMISSIONS).fetch_all(&mut ledger).await?;
                ledger.close().await?;
                Ok(rows(&workflows, &charges, &submissions)?)
            }
            Self::Postgres(url) => {
                let mut ledger = PgConnection::connect(url).await.context("cannot open the ledger")?;
                let workflows = sqlx::query(WORKFLOWS).fetch_all(&mut ledger).await?;
                let charges = sqlx::query(CHARGES).fetch_all(&mut ledger).await?;
                let submissions = sqlx::query(SUBMISSIONS).fetch_all(&mut ledger).await?;
                ledger.close().await?;
                Ok(rows(&workflows, &charges, &submissions)?)
            }
        }
    }

    /// The replicas that are said to be there.
    pub async fn replicas(&self) -> Result<Vec<String>> {
        let Self::Postgres(url) = self else { return Ok(Vec::new()) };
        let mut ledger = PgConnection::connect(url).await.context("cannot open the ledger")?;
        let names = sqlx::query_scalar("SELECT name FROM replicas ORDER BY name").fetch_all(&mut ledger).await?;
        ledger.close().await?;
        Ok(names)
    }
}

fn rows<R: Row>(workflows: &[R], charges: &[R], submissions: &[R]) -> Result<Rows, sqlx::Error>
where
    usize: ColumnIndex<R>,
    String: for<'r> Decode<'r, R::Database> + Type<R::Database>,
    Option<String>: for<'r> Decode<'r, R::Database> + Type<R::Database>,
    i64: for<'r> Decode<'r, R::Database> + Type<R::Database>,
    R::Database: Database,
{
    let workflow = |row: &R| -> Result<(String, Workflow), sqlx::Error> {
        let (principal, attribution, hold_reason) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        Ok((row.try_get(0)?, Workflow { principal, attribution, hold_reason, state: row.try_get(4)? }))
    };
    let charge = |row: &R| -> Result<(String, Charge), sqlx::Error> {
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
