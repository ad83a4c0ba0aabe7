//! A PostgreSQL of the benchmarks' own, and ledgers in it.

use anyhow::{Context as _, Result};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tollgate::ledger::Ledger as _;

use tollgate_local::stack::{self, Sync};

use crate::ledgers::{PRINCIPALS, Rows};

/// A running server, which syncs what it commits as one of production does.
pub struct Postgres(stack::Postgres);

/// One database of it with a ledger.
pub struct Database {
    pub url: String,
    pub connection: PgConnection,
}

impl Postgres {
    /// Starts one.
    pub fn start() -> Result<Self> {
        let server = stack::Postgres::make(Sync::On)?;
        server.start()?;
        Ok(Self(server))
    }

    /// A fresh database with an empty ledger, and then with rows.
    pub async fn ledger(&self, name: &str, rows: Option<Rows>) -> Result<Database> {
        let mut server = PgConnection::connect(self.0.url()).await?;
        server.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await?;
        server.close().await?;
        let (base, _) = self.0.url().rsplit_once('/').context("a URL without a database")?;
        let url = format!("{base}/{name}");
        let options = tollgate::config::Options { ledger: Some(url.clone()), ..Default::default() };
        let tollgate::config::Store::Postgres(database) = tollgate::config::Config::store(&options)? else {
            anyhow::bail!("{url} is no PostgreSQL")
        };
        let ledger = tollgate::ledger::postgres::PostgresLedger::open(&database, jiff::Timestamp::now()).await?;
        ledger.close().await;
        let mut connection = PgConnection::connect(&url).await?;
        if let Some(rows) = rows {
            for statement in statements(rows, jiff::Timestamp::now().as_millisecond())? {
                connection.execute(AssertSqlSafe(statement)).await?;
            }
            connection.execute("VACUUM ANALYZE").await?;
        }
        Ok(Database { url, connection })
    }
}

impl Database {
    /// One number that a query gives.
    pub async fn number(&mut self, query: &'static str) -> Result<u64> {
        let number: i64 = sqlx::query_scalar(query).fetch_one(&mut self.connection).await?;
        Ok(number.unsigned_abs())
    }
}

/// As in the other ledgers, with ids of the same form.
fn statements(rows: Rows, now: i64) -> Result<Vec<String>> {
    let id = |prefix: &str, n: &str| format!("'{prefix}-' || lpad(({n})::text, 12, '0')");
    let (user, workflow, task) = (id("user", "n"), id("wfl", "n"), id("tsk", "n"));
    let principals = format!(
        "INSERT INTO principals SELECT {user}, 'user-' || n || '@example.com', {now} FROM generate_series(0, {PRINCIPALS} - 1) AS n"
    );
    Ok(match rows {
        Rows::Pending(charges) => vec![
            principals,
            format!(
                "INSERT INTO charges (task_id, principal_id, supplier_id, cost, duration_sec, cost_per_hour, task_status,
                     assigned_worker, started_at, finished_at, state, post_at, created_at)
                 SELECT {task}, {}, 'acme', '0.030208333333333334', 72, '1.5', 'DONE', 'wrk-acme-1',
                     '2026-11-22T08:00:02.' || n || 'Z', '2026-11-22T08:01:14.500000Z', 'pending', {now}, {now}
                 FROM generate_series(0, {charges} - 1) AS n",
                id("user", &format!("n % {PRINCIPALS}"))
            ),
        ],
        Rows::Open { workflows, due_tasks, due_workflows } => vec![
            principals,
            format!(
                "INSERT INTO workflows (workflow_id, principal_id, attribution, state, noted_at, sweep_at)
                 SELECT {workflow}, {}, 'log', 'open', {now}, CASE WHEN n < {due_workflows} THEN {now} ELSE {now} + 3600000 END
                 FROM generate_series(0, {workflows} - 1) AS n",
                id("user", &format!("n % {PRINCIPALS}"))
            ),
            format!(
                "INSERT INTO tasks (task_id, workflow_id, state)
                 SELECT {task}, {workflow}, 'open' FROM generate_series(0, {workflows} - 1) AS n"
            ),
            format!(
                "INSERT INTO tasks (task_id, workflow_id, state, eager, settle_at, heard)
                 SELECT {}, {}, 'open', true, {now}, 1 FROM generate_series(0, {due_tasks} - 1) AS n",
                id("tsk", &format!("n + 1000000 * {workflows}")),
                id("wfl", &format!("n % {workflows}"))
            ),
        ],
        Rows::Posted(_) | Rows::PostedSpread(_) => anyhow::bail!("no section wants these"),
    })
}
