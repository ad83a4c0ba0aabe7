//! The operator's side of the file: another process than `serve`, at the same time.
//!
//! It takes no lock file, makes no file and changes no schema. WAL lets it read while `serve` writes; writers wait for each
//! other, for as long as a short transaction takes.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{AssertSqlSafe, FromRow, Row, Sqlite, Transaction};

use super::{BUSY_TIMEOUT, MIGRATIONS, begin, glance, moving, operator, optional_time};
use crate::ledger::books::{
    After, Books, Charge, ChargeState, Filter, Found, Glance, Named, Naming, Retried, Retry, Standing, Submission,
    Tally, Task, Workflow,
};
use crate::ledger::money::Money;
use crate::ledger::records::{
    ChargeRecord, SUBMISSIONS, SubmissionRecord, TASKS, TaskRecord, WORKFLOWS, WorkflowRecord, charges,
};
use crate::ledger::{Error, OpenSubmission, ms, naming, time};
use crate::settlement::attribution::{CLOCK_SKEW, LONGEST_SUBMISSION, was_open_at};

/// Costs read at once to be summed.
const COSTS_AT_ONCE: i64 = 10_000;

/// SQLite numbers rows by itself.
pub(super) const NUMBER: &str = "charges.rowid";

/// The ledger of a `serve` that may be running.
#[derive(Debug)]
pub struct SqliteBooks {
    pool: SqlitePool,
}

impl SqliteBooks {
    /// Opens the ledger at `path`, which must exist and be of this version.
    ///
    /// # Errors
    /// [`Error::Open`], in one line, when it is not there, cannot be used, is no ledger, or is of another version.
    pub async fn open(path: &Path) -> Result<Self, Error> {
        Self::open_with(path, BUSY_TIMEOUT).await
    }

    /// With a given patience for other writers.
    pub(super) async fn open_with(path: &Path, patience: Duration) -> Result<Self, Error> {
        match Self::find(path, patience).await? {
            (books, None) => Ok(books),
            (books, Some(missing)) => {
                books.close().await;
                let reason = format!(
                    "it is of an older version of Tollgate (its schema lacks step {missing}): \
                     start `tollgate serve` once"
                );
                Err(Error::Open { place: path.display().to_string(), reason })
            }
        }
    }

    /// Whether `serve` could use what is at `path`, which is left as it is.
    ///
    /// # Errors
    /// [`Error::Open`], in one line, when it could not.
    pub async fn look(path: &Path) -> Result<Found, Error> {
        let fail = |reason: String| Error::Open { place: path.display().to_string(), reason };
        if matches!(std::fs::metadata(path), Err(error) if error.kind() == std::io::ErrorKind::NotFound) {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            return if folder.is_dir() {
                Ok(Found::Nothing)
            } else {
                Err(fail(format!("there is no folder {}", folder.display())))
            };
        }
        let (books, missing) = Self::find(path, BUSY_TIMEOUT).await?;
        let given_away = if missing.is_none() { moving::refuse(&books.pool, path).await } else { Ok(()) };
        books.close().await;
        given_away?;
        // SQLite is content to read only; `serve` is not.
        std::fs::OpenOptions::new().append(true).open(path).map_err(|error| fail(error.to_string()))?;
        Ok(if missing.is_some() { Found::Older } else { Found::Ready })
    }

    /// That there is a ledger at `path`, of this version or an older one.
    pub(super) async fn exists(path: &Path) -> Result<(), Error> {
        let (books, _) = Self::find(path, BUSY_TIMEOUT).await?;
        books.close().await;
        Ok(())
    }

    /// A transaction of the operator's, on a ledger that was not given away.
    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, Error> {
        let mut tx = begin(&self.pool).await?;
        moving::refuse(&mut *tx, self.pool.connect_options().get_filename()).await?;
        Ok(tx)
    }

    /// Opens a ledger of this version or an older one, of which it tells the first step of the schema that is missing.
    async fn find(path: &Path, patience: Duration) -> Result<(Self, Option<i64>), Error> {
        let fail = |reason: String| Error::Open { place: path.display().to_string(), reason };
        match std::fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(fail("there is no such file; `tollgate serve` makes it".to_owned()));
            }
            Err(error) => return Err(fail(error.to_string())),
            Ok(file) if !file.is_file() => return Err(fail("it is no file".to_owned())),
            Ok(_) => {}
        }
        let options = SqliteConnectOptions::from_str("sqlite:")
            .map_err(|error| fail(error.to_string()))?
            .filename(path)
            .create_if_missing(false)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(patience);
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await;
        // A file that cannot even be read is said so by the system, in clearer words than by SQLite. It is asked only then:
        // to close a file ends every lock that this process has on it, by POSIX, and so SQLite's own when `serve` has the
        // ledger open. Whoever is then last to close it, such as a backup, would take the WAL away from under `serve`.
        let pool = pool.map_err(|error| {
            fail(std::fs::File::open(path).map_or_else(|unreadable| unreadable.to_string(), |_| why(&error)))
        })?;
        let missing = missing_step(&pool).await.map_err(fail)?;
        Ok((Self { pool }, missing))
    }

    async fn one<T>(&self, query: String, id: &str) -> Result<Option<T>, Error>
    where
        T: for<'r> FromRow<'r, SqliteRow> + Send + Unpin,
    {
        Ok(sqlx::query_as(AssertSqlSafe(query)).bind(id).fetch_optional(&self.pool).await?)
    }
}

/// What SQLite said, without sqlx's preamble.
fn why(error: &sqlx::Error) -> String {
    error.as_database_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
}

/// The first step that the schema lacks, when it is an older version's.
async fn missing_step(pool: &SqlitePool) -> Result<Option<i64>, String> {
    let tables: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name IN ('ledger', '_sqlx_migrations')",
    )
    .fetch_one(pool)
    .await
    .map_err(|error| why(&error))?;
    if tables < 2 {
        return Err("it is no ledger".to_owned());
    }
    let there: Vec<i64> = sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success")
        .fetch_all(pool)
        .await
        .map_err(|error| why(&error))?;
    let known: Vec<i64> = MIGRATIONS.iter().map(|migration| migration.version).collect();
    if let Some(newer) = there.iter().find(|version| !known.contains(version)) {
        return Err(format!("it is of a newer version of Tollgate (its schema has step {newer})"));
    }
    Ok(known.into_iter().find(|version| !there.contains(version)))
}

#[async_trait::async_trait]
impl Books for SqliteBooks {
    async fn standing(&self) -> Result<Standing, Error> {
        let row = sqlx::query("SELECT born_at, compared_at, NULLIF(pruned_before, 0) AS pruned_before FROM ledger")
            .fetch_one(&self.pool)
            .await?;
        let tally = async |oldest: &str, of: &str| {
            let query = format!("SELECT COUNT(*) AS rows, MIN({oldest}) AS oldest FROM {of}");
            let row = sqlx::query(AssertSqlSafe(query)).fetch_one(&self.pool).await?;
            let rows = row.try_get::<i64, _>("rows")?.unsigned_abs();
            Ok::<_, Error>(Tally { rows, oldest: optional_time(&row, "oldest")? })
        };
        Ok(Standing {
            born_at: time(row.try_get("born_at")?),
            compared_at: optional_time(&row, "compared_at")?,
            pruned_before: optional_time(&row, "pruned_before")?,
            open_submissions: tally("opened_at", "submissions WHERE state = 'open'").await?,
            open_workflows: tally("noted_at", "workflows WHERE state = 'open'").await?,
            held_workflows: tally("noted_at", "workflows WHERE attribution = 'held' AND state <> 'ignored'").await?,
            due_tasks: tally("settle_at", "tasks WHERE state = 'open' AND settle_at IS NOT NULL").await?,
            waiting_tasks: tally("NULLIF(asked_at, 0)", "tasks WHERE state = 'open' AND settle_at IS NULL").await?,
            held_tasks: tally("asked_at", "tasks WHERE state = 'open' AND hold_reason IS NOT NULL").await?,
            gone_tasks: tally("asked_at", "tasks WHERE outcome = 'gone'").await?,
            charges: [
                tally("created_at", "charges WHERE state = 'pending'").await?,
                tally("created_at", "charges WHERE state = 'held'").await?,
                tally("created_at", "charges WHERE state = 'rejected'").await?,
                tally("posted_at", "charges WHERE state = 'posted'").await?,
            ],
        })
    }

    async fn sum(&self, state: ChargeState) -> Result<Money, Error> {
        let (mut sum, mut after) = (Money::default(), i64::MIN);
        loop {
            let costs: Vec<(i64, String, String)> = sqlx::query_as(
                "SELECT rowid, task_id, cost FROM charges WHERE rowid > ? AND state = ? ORDER BY rowid LIMIT ?",
            )
            .bind(after)
            .bind(state.as_str())
            .bind(COSTS_AT_ONCE)
            .fetch_all(&self.pool)
            .await?;
            let Some((last, ..)) = costs.last() else { return Ok(sum) };
            after = *last;
            for (_, task, cost) in &costs {
                sum += &Money::parse(cost)
                    .ok_or_else(|| Error::Database(format!("the cost of task {task} is no amount")))?;
            }
        }
    }

    async fn charges(&self, filter: &Filter, below: Option<i64>, limit: u32) -> Result<Vec<Charge>, Error> {
        let Filter { states, principal_id, workflow_id, since, until } = filter;
        let states: Vec<&str> = states.iter().map(|state| state.as_str()).collect();
        let mut query = format!("{} WHERE charges.rowid < ?1", charges(NUMBER));
        for (given, condition) in [
            (!states.is_empty(), "charges.state IN (SELECT value FROM json_each(?2))"),
            (principal_id.is_some(), "charges.principal_id = ?3"),
            (workflow_id.is_some(), "workflow_id = ?4"),
            (since.is_some(), "created_at >= ?5"),
            (until.is_some(), "created_at < ?6"),
        ] {
            if given {
                query = query + " AND " + condition;
            }
        }
        query += " ORDER BY charges.rowid DESC LIMIT ?7";
        let rows: Vec<ChargeRecord> = sqlx::query_as(AssertSqlSafe(query))
            .bind(below.unwrap_or(i64::MAX))
            .bind(serde_json::json!(states).to_string())
            .bind(principal_id)
            .bind(workflow_id)
            .bind(since.map(ms))
            .bind(until.map(ms))
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
        rows.into_iter().map(Charge::try_from).collect()
    }

    async fn glance(&self, rows: u32) -> Result<Glance, Error> {
        glance::glance(&self.pool, rows).await
    }

    async fn posted(
        &self,
        since: Timestamp,
        until: Timestamp,
        after: Option<&After>,
        limit: u32,
    ) -> Result<Vec<Charge>, Error> {
        let (from, task) = after.map_or((ms(since), ""), |(at, task)| (ms(*at), task.as_str()));
        let rows: Vec<ChargeRecord> = sqlx::query_as(AssertSqlSafe(format!(
            "{} WHERE charges.state = 'posted' AND posted_at < ?2 AND (posted_at, task_id) > (?1, ?3)
             ORDER BY posted_at, task_id LIMIT ?4",
            charges(NUMBER)
        )))
        .bind(from)
        .bind(ms(until))
        .bind(task)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(Charge::try_from).collect()
    }

    async fn held_workflows(&self, after: &str, limit: u32) -> Result<Vec<Workflow>, Error> {
        let rows: Vec<WorkflowRecord> = sqlx::query_as(AssertSqlSafe(format!(
            "{WORKFLOWS} WHERE attribution = 'held' AND state <> 'ignored' AND workflow_id > ?
             ORDER BY workflow_id LIMIT ?"
        )))
        .bind(after)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(Workflow::from).collect())
    }

    async fn candidates(&self, at: Timestamp) -> Result<Vec<OpenSubmission>, Error> {
        let since = at.checked_sub(LONGEST_SUBMISSION * 2).unwrap_or(Timestamp::MIN);
        let until = at.checked_add(CLOCK_SKEW).unwrap_or(Timestamp::MAX);
        let mut open = super::submissions::open_between(&self.pool, since, until).await?;
        open.retain(|submission| was_open_at(submission, at));
        Ok(open)
    }

    async fn charge(&self, task_id: &str) -> Result<Option<Charge>, Error> {
        let row: Option<ChargeRecord> = self.one(format!("{} WHERE task_id = ?", charges(NUMBER)), task_id).await?;
        row.map(Charge::try_from).transpose()
    }

    async fn task(&self, task_id: &str) -> Result<Option<Task>, Error> {
        Ok(self.one::<TaskRecord>(format!("{TASKS} WHERE task_id = ?"), task_id).await?.map(Task::from))
    }

    async fn workflow(&self, workflow_id: &str) -> Result<Option<Workflow>, Error> {
        let row: Option<WorkflowRecord> = self.one(format!("{WORKFLOWS} WHERE workflow_id = ?"), workflow_id).await?;
        Ok(row.map(Workflow::from))
    }

    async fn submission(&self, submission_id: &str) -> Result<Option<Submission>, Error> {
        let row: Option<SubmissionRecord> =
            self.one(format!("{SUBMISSIONS} WHERE submission_id = ?"), submission_id).await?;
        Ok(row.map(Submission::from))
    }

    async fn held_tasks(&self, after: &str, limit: u32) -> Result<Vec<Task>, Error> {
        let rows: Vec<TaskRecord> = sqlx::query_as(AssertSqlSafe(format!(
            "{TASKS} WHERE state = 'open' AND hold_reason IS NOT NULL AND task_id > ? ORDER BY task_id LIMIT ?"
        )))
        .bind(after)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(Task::from).collect())
    }

    async fn tasks(&self, workflow_id: &str, after: &str, limit: u32) -> Result<Vec<Task>, Error> {
        let query = format!("{TASKS} WHERE workflow_id = ? AND task_id > ? ORDER BY task_id LIMIT ?");
        let rows: Vec<TaskRecord> = sqlx::query_as(AssertSqlSafe(query))
            .bind(workflow_id)
            .bind(after)
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
        Ok(rows.into_iter().map(Task::from).collect())
    }

    async fn retry(&self, which: Retry<'_>, after: i64, at: Timestamp, limit: u32) -> Result<Vec<Retried>, Error> {
        let mut tx = self.begin().await?;
        let retried = operator::retry(&mut tx, which, after, at, limit).await?;
        tx.commit().await?;
        Ok(retried)
    }

    async fn name_owner(&self, naming: Naming<'_>) -> Result<Named, Error> {
        let mut tx = self.begin().await?;
        let named = naming::name_owner(&mut *tx, naming).await?;
        // What is refused has changed nothing.
        tx.commit().await?;
        Ok(named)
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}
