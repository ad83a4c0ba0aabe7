//! Ledgers with much in them, made quickly: Tollgate makes the file, and rows as Tollgate would have written them come by SQL.
//!
//! FlowMesh's ids are random, which leaves room in the pages of every index. To make a million of those takes a minute; with ids
//! that only grow it takes seconds, and only the file is smaller. So both can be had.

use std::{path::Path, str::FromStr as _};

use anyhow::{Context as _, Result};
use jiff::{SignedDuration, Timestamp};
use sqlx::{
    AssertSqlSafe, Connection as _, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use tollgate::ledger::Ledger as _;

use crate::context::Context;

/// Tasks of a workflow, in a ledger of posted charges.
pub const TASKS_OF_A_WORKFLOW: u64 = 4;
/// Who pays, in any of these ledgers.
pub const PRINCIPALS: u64 = 1000;
/// The number of the workflow that [`add_running`] adds, and of its first task: higher than any other.
pub const RUNNING: u64 = 900_000_000_000;
/// How old the oldest of what is posted is: less than what is kept by default.
const DAYS: i64 = 80;

/// What a ledger has in it.
#[derive(Debug, Clone, Copy)]
pub enum Rows {
    /// Charges that Runmesh has, over the last 80 days, with their tasks, workflows and submissions; ids only grow.
    Posted(u64),
    /// The same with ids that are spread like random ones.
    PostedSpread(u64),
    /// Charges that wait for Runmesh.
    Pending(u64),
    /// Workflows that are still running, which are not asked after for the next hour; so many tasks of them are due now…
    Open {
        workflows: u64,
        due_tasks: u64,
        /// …and so many of the workflows themselves.
        due_workflows: u64,
    },
}

/// Makes a ledger at `path`, which is one file in the end.
pub async fn make(path: &Path, rows: Rows) -> Result<()> {
    let born = Timestamp::now().checked_sub(SignedDuration::from_hours(24 * (DAYS + 1)))?;
    let ledger = tollgate::ledger::sqlite::SqliteLedger::open(path, born).await?;
    ledger.close().await;
    let mut file = open(path, false).await?;
    let now = Timestamp::now().as_millisecond();
    sqlx::query("PRAGMA cache_size = -1000000").execute(&mut file).await?;
    let mut transaction = file.begin().await?;
    for statement in statements(rows, now) {
        let done = sqlx::query(AssertSqlSafe(statement.clone())).execute(&mut *transaction).await;
        done.with_context(|| format!("cannot fill the ledger: {statement}"))?;
    }
    transaction.commit().await?;
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut file).await?;
    file.close().await?;
    Ok(())
}

/// Charges of the ledger with many.
#[must_use]
pub fn many(context: &Context) -> u64 {
    if context.quick { 5_000 } else { 1_000_000 }
}

/// A copy at `path` of the ledger with many posted charges, which is made once.
pub async fn copy_posted(context: &Context, path: &Path) -> Result<()> {
    let made = context.scratch().join("posted.db");
    if !made.exists() {
        make(&made, Rows::Posted(many(context))).await?;
    }
    std::fs::copy(&made, path).with_context(|| format!("cannot copy a ledger to {}", path.display()))?;
    Ok(())
}

/// Adds one workflow with so many tasks that are running; all of them have the numbers from [`RUNNING`] on.
pub async fn add_running(path: &Path, tasks: u64) -> Result<()> {
    let mut file = open(path, false).await?;
    let now = Timestamp::now().as_millisecond();
    for statement in running(tasks, now) {
        sqlx::query(AssertSqlSafe(statement)).execute(&mut file).await.context("cannot add to the ledger")?;
    }
    file.close().await?;
    Ok(())
}

fn running(tasks: u64, now: i64) -> [String; 2] {
    let (later, workflow) = (now + 3_600_000, format!("wfl-{RUNNING:012}"));
    [
        format!(
            "INSERT INTO workflows (workflow_id, principal_id, attribution, state, noted_at, sweep_at)
             VALUES ('{workflow}', 'user-000000000000', 'log', 'open', {now}, {later})"
        ),
        format!(
            "{} INSERT INTO tasks (task_id, workflow_id, state)
             SELECT printf('tsk-%012d', {RUNNING} + n), '{workflow}', 'open' FROM numbers",
            numbers(tasks)
        ),
    ]
}

/// A connection of one's own.
pub async fn open(path: &Path, read_only: bool) -> Result<SqliteConnection> {
    let options = SqliteConnectOptions::from_str("sqlite:")?.filename(path).read_only(read_only).foreign_keys(false);
    // What is made here can be made again.
    let options = if read_only {
        options
    } else {
        options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Off)
    };
    SqliteConnection::connect_with(&options).await.with_context(|| format!("cannot open {}", path.display()))
}

/// An SQL expression for the digits of an id that is no neighbour of that of the next number.
fn spread(number: &str) -> String {
    format!("printf('%012d', (({number}) * 387420489 + 31415926535) % 1000000000000)")
}

fn numbers(count: u64) -> String {
    format!(
        "WITH RECURSIVE numbers(n) AS (SELECT 0 WHERE {count} > 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < {count})"
    )
}

fn statements(rows: Rows, now: i64) -> Vec<String> {
    let principals = format!(
        "{} INSERT INTO principals (principal_id, email, seen_at)
         SELECT printf('user-%012d', n), printf('user-%012d@example.com', n), {now} FROM numbers",
        numbers(PRINCIPALS)
    );
    let mut all = vec![principals];
    match rows {
        Rows::Posted(charges) => all.extend(posted(charges, |n| format!("printf('%012d', {n})"), now)),
        Rows::PostedSpread(charges) => all.extend(posted(charges, spread, now)),
        Rows::Pending(charges) => all.extend(pending(charges, now)),
        Rows::Open { workflows, due_tasks, due_workflows } => {
            all.extend(open_rows(workflows, due_tasks, due_workflows, now));
        }
    }
    all
}

fn posted(charges: u64, digits: fn(&str) -> String, now: i64) -> Vec<String> {
    let workflows = charges.div_ceil(TASKS_OF_A_WORKFLOW);
    let first = now - DAYS * 24 * 3_600_000;
    // Evenly over the days, the last one an hour ago.
    let at = |n: &str, of: u64| format!("({first} + ({n}) * {} / {of})", DAYS * 24 * 3_600_000 - 3_600_000);
    let (workflow, task) = (digits("n"), digits("n"));
    let workflow_of_task = digits(&format!("n / {TASKS_OF_A_WORKFLOW}"));
    let (submitted, ended) = (at("n", workflows), at("n", charges));
    vec![
        format!(
            "{} INSERT INTO submissions (submission_id, principal_id, request_id, opened_at, ended_at, workflow_id, state)
             SELECT 'sub-0198c0de000070008000' || {workflow}, printf('user-%012d', n % {PRINCIPALS}),
                    'c0de0000-0000-4000-8000-' || {workflow}, {submitted}, {submitted} + 40, 'wfl-' || {workflow}, 'resolved'
             FROM numbers",
            numbers(workflows)
        ),
        format!(
            "{} INSERT INTO workflows (workflow_id, principal_id, submission_id, attribution, state, noted_at, sweep_at,
                                       sweeps, asked_at, heard)
             SELECT 'wfl-' || {workflow}, printf('user-%012d', n % {PRINCIPALS}), 'sub-0198c0de000070008000' || {workflow},
                    'log', 'settled', {submitted}, {submitted} + 75000, 4, {submitted} + 75000, 1
             FROM numbers",
            numbers(workflows)
        ),
        format!(
            "{} INSERT INTO tasks (task_id, workflow_id, state, outcome, eager, attempts, asked_at, heard)
             SELECT 'tsk-' || {task}, 'wfl-' || {workflow_of_task}, 'settled', 'charged', 1, 1, {ended} + 72500, 1
             FROM numbers",
            numbers(charges)
        ),
        format!(
            "{} INSERT INTO charges (task_id, workflow_id, principal_id, supplier_id, cost, duration_sec, cost_per_hour,
                                     task_status, assigned_worker, started_at, finished_at, state, attempts, post_at,
                                     created_at, posted_at)
             SELECT 'tsk-' || {task}, 'wfl-' || {workflow_of_task},
                    printf('user-%012d', (n / {TASKS_OF_A_WORKFLOW}) % {PRINCIPALS}), 'acme', '0.030208333333333334', 72, '1.5',
                    'DONE', 'wrk-acme-1', '2026-11-22T08:00:02.' || {task} || 'Z', '2026-11-22T08:01:14.500000Z', 'posted', 1,
                    {ended} + 72500, {ended} + 72500, {ended} + 72600
             FROM numbers",
            numbers(charges)
        ),
    ]
}

fn pending(charges: u64, now: i64) -> Vec<String> {
    let workflows = charges.div_ceil(TASKS_OF_A_WORKFLOW);
    vec![
        format!(
            "{} INSERT INTO workflows (workflow_id, principal_id, attribution, state, noted_at, sweep_at)
             SELECT printf('wfl-%012d', n), printf('user-%012d', n % {PRINCIPALS}), 'log', 'settled', {now}, {now} FROM numbers",
            numbers(workflows)
        ),
        format!(
            "{} INSERT INTO tasks (task_id, workflow_id, state, outcome, asked_at)
             SELECT 'tsk-' || {}, printf('wfl-%012d', n / {TASKS_OF_A_WORKFLOW}), 'settled', 'charged', {now} FROM numbers",
            numbers(charges),
            spread("n")
        ),
        format!(
            "{} INSERT INTO charges (task_id, workflow_id, principal_id, supplier_id, cost, duration_sec, cost_per_hour,
                                     task_status, assigned_worker, started_at, finished_at, state, post_at, created_at)
             SELECT 'tsk-' || {task}, printf('wfl-%012d', n / {TASKS_OF_A_WORKFLOW}),
                    printf('user-%012d', (n / {TASKS_OF_A_WORKFLOW}) % {PRINCIPALS}), 'acme', '0.030208333333333334', 72, '1.5',
                    'DONE', 'wrk-acme-1', '2026-11-22T08:00:02.' || {task} || 'Z', '2026-11-22T08:01:14.500000Z', 'pending',
                    {now}, {now}
             FROM numbers",
            numbers(charges),
            task = spread("n")
        ),
    ]
}

fn open_rows(workflows: u64, due_tasks: u64, due_workflows: u64, now: i64) -> Vec<String> {
    let later = now + 3_600_000;
    vec![
        format!(
            "{} INSERT INTO workflows (workflow_id, principal_id, attribution, state, noted_at, sweep_at)
             SELECT printf('wfl-%012d', n), printf('user-%012d', n % {PRINCIPALS}), 'log', 'open', {now},
                    IIF(n < {due_workflows}, {now}, {later}) FROM numbers",
            numbers(workflows)
        ),
        // One more of each workflow, which has not ended.
        format!(
            "{} INSERT INTO tasks (task_id, workflow_id, state)
             SELECT printf('tsk-%012d', n), printf('wfl-%012d', n), 'open' FROM numbers",
            numbers(workflows)
        ),
        format!(
            "{} INSERT INTO tasks (task_id, workflow_id, state, eager, settle_at, heard)
             SELECT printf('tsk-%012d', n + 1000000 * {workflows}), printf('wfl-%012d', n % {workflows}), 'open', 1, {now}, 1
             FROM numbers",
            numbers(due_tasks)
        ),
    ]
}

/// One number that a query gives.
pub async fn number(file: &mut SqliteConnection, query: &'static str) -> Result<u64> {
    let number: i64 = sqlx::query_scalar(query).fetch_one(file).await?;
    Ok(number.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn count(path: &Path, query: &'static str) -> u64 {
        number(&mut open(path, true).await.unwrap(), query).await.unwrap()
    }

    #[tokio::test]
    async fn each_ledger_has_the_rows_that_were_asked_for_and_fits_its_schema() {
        let dir = tempfile::tempdir().unwrap();
        for (name, rows) in [("posted.db", Rows::Posted(1001)), ("spread.db", Rows::PostedSpread(1001))] {
            let path = dir.path().join(name);
            make(&path, rows).await.unwrap();
            assert_eq!(count(&path, "SELECT COUNT(*) FROM charges WHERE state = 'posted'").await, 1001);
            assert_eq!(count(&path, "SELECT COUNT(*) FROM workflows WHERE state = 'settled'").await, 251);
            let stray =
                "SELECT COUNT(*) FROM charges LEFT JOIN workflows USING (workflow_id) WHERE workflows.state IS NULL";
            assert_eq!(count(&path, stray).await, 0);
            assert_eq!(count(&path, "SELECT COUNT(*) FROM pragma_foreign_key_check").await, 0);
        }

        let path = dir.path().join("pending.db");
        make(&path, Rows::Pending(10)).await.unwrap();
        assert_eq!(count(&path, "SELECT COUNT(*) FROM charges WHERE state = 'pending'").await, 10);

        let path = dir.path().join("open.db");
        make(&path, Rows::Open { workflows: 20, due_tasks: 7, due_workflows: 3 }).await.unwrap();
        assert_eq!(count(&path, "SELECT COUNT(*) FROM workflows WHERE state = 'open'").await, 20);
        assert_eq!(count(&path, "SELECT COUNT(*) FROM tasks WHERE settle_at IS NOT NULL").await, 7);
        assert_eq!(count(&path, "SELECT COUNT(*) FROM tasks").await, 27);
    }
}
