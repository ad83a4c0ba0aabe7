//! The operator's side of the file: another process than `serve`, at the same time.
//!
//! It takes no lock file, makes no file and changes no schema. WAL lets it read while `serve` writes; writers wait for each
//! other, for as long as a short transaction takes.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Row};

use super::{BUSY_TIMEOUT, MIGRATIONS, glance, ms, operator, optional_time, time};
use crate::ledger::books::{
    After, Books, Charge, ChargeState, Filter, Glance, Named, Naming, Retried, Retry, Standing, Submission, Tally,
    Task, Workflow,
};
use crate::ledger::money::Money;
use crate::ledger::{Error, OpenSubmission};
use crate::settlement::attribution::{CLOCK_SKEW, LONGEST_SUBMISSION, was_open_at};

/// Costs read at once to be summed.
const COSTS_AT_ONCE: i64 = 10_000;

pub(super) const CHARGE: &str = "SELECT charges.rowid AS number, charges.*, email
    FROM charges LEFT JOIN principals USING (principal_id)";
pub(super) const WORKFLOW: &str = "SELECT workflows.*, email FROM workflows LEFT JOIN principals USING (principal_id)";

/// The ledger of a `serve` that may be running.
#[derive(Debug)]
pub struct SqliteBooks {
    pool: SqlitePool,
}

/// What is where the ledger should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A ledger of this version.
    Ready,
    /// One that `serve` brings up to date.
    Older,
    /// Nothing yet.
    Nothing,
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
                Err(Error::Open { path: path.to_owned(), reason })
            }
        }
    }

    /// Whether `serve` could use what is at `path`, which is left as it is.
    ///
    /// # Errors
    /// [`Error::Open`], in one line, when it could not.
    pub async fn look(path: &Path) -> Result<Found, Error> {
        let fail = |reason: String| Error::Open { path: path.to_owned(), reason };
        if matches!(std::fs::metadata(path), Err(error) if error.kind() == std::io::ErrorKind::NotFound) {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            return if folder.is_dir() {
                Ok(Found::Nothing)
            } else {
                Err(fail(format!("there is no folder {}", folder.display())))
            };
        }
        let (books, missing) = Self::find(path, BUSY_TIMEOUT).await?;
        books.close().await;
        // SQLite is content to read only; `serve` is not.
        std::fs::OpenOptions::new().append(true).open(path).map_err(|error| fail(error.to_string()))?;
        Ok(if missing.is_some() { Found::Older } else { Found::Ready })
    }

    /// Opens a ledger of this version or an older one, of which it tells the first step of the schema that is missing.
    async fn find(path: &Path, patience: Duration) -> Result<(Self, Option<i64>), Error> {
        let fail = |reason: String| Error::Open { path: path.to_owned(), reason };
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

    /// Waits until the file is closed.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    async fn one<T>(
        &self,
        query: String,
        id: &str,
        read: fn(&SqliteRow) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let row = sqlx::query(AssertSqlSafe(query)).bind(id).fetch_optional(&self.pool).await?;
        row.as_ref().map(read).transpose()
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
        let mut query = format!("{CHARGE} WHERE charges.rowid < ?1");
        for (given, condition) in [
            (!states.is_empty(), "charges.state IN (SELECT value FROM json_each(?2))"),
            (principal_id.is_some(), "principal_id = ?3"),
            (workflow_id.is_some(), "workflow_id = ?4"),
            (since.is_some(), "created_at >= ?5"),
            (until.is_some(), "created_at < ?6"),
        ] {
            if given {
                query = query + " AND " + condition;
            }
        }
        query += " ORDER BY charges.rowid DESC LIMIT ?7";
        let rows = sqlx::query(AssertSqlSafe(query))
            .bind(below.unwrap_or(i64::MAX))
            .bind(serde_json::json!(states).to_string())
            .bind(principal_id)
            .bind(workflow_id)
            .bind(since.map(ms))
            .bind(until.map(ms))
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(charge).collect()
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
        let rows = sqlx::query(AssertSqlSafe(format!(
            "{CHARGE} WHERE charges.state = 'posted' AND posted_at < ?2 AND (posted_at, task_id) > (?1, ?3)
             ORDER BY posted_at, task_id LIMIT ?4"
        )))
        .bind(from)
        .bind(ms(until))
        .bind(task)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(charge).collect()
    }

    async fn held_workflows(&self, after: &str, limit: u32) -> Result<Vec<Workflow>, Error> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "{WORKFLOW} WHERE attribution = 'held' AND state <> 'ignored' AND workflow_id > ?
             ORDER BY workflow_id LIMIT ?"
        )))
        .bind(after)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(workflow).collect()
    }

    async fn candidates(&self, at: Timestamp) -> Result<Vec<OpenSubmission>, Error> {
        let since = at.checked_sub(LONGEST_SUBMISSION * 2).unwrap_or(Timestamp::MIN);
        let until = at.checked_add(CLOCK_SKEW).unwrap_or(Timestamp::MAX);
        let mut open = super::submissions::open_between(&self.pool, since, until).await?;
        open.retain(|submission| was_open_at(submission, at));
        Ok(open)
    }

    async fn charge(&self, task_id: &str) -> Result<Option<Charge>, Error> {
        self.one(format!("{CHARGE} WHERE task_id = ?"), task_id, charge).await
    }

    async fn task(&self, task_id: &str) -> Result<Option<Task>, Error> {
        self.one("SELECT * FROM tasks WHERE task_id = ?".to_owned(), task_id, task).await
    }

    async fn workflow(&self, workflow_id: &str) -> Result<Option<Workflow>, Error> {
        self.one(format!("{WORKFLOW} WHERE workflow_id = ?"), workflow_id, workflow).await
    }

    async fn submission(&self, submission_id: &str) -> Result<Option<Submission>, Error> {
        self.one("SELECT * FROM submissions WHERE submission_id = ?".to_owned(), submission_id, submission).await
    }

    async fn held_tasks(&self, after: &str, limit: u32) -> Result<Vec<Task>, Error> {
        let rows = sqlx::query(
            "SELECT * FROM tasks WHERE state = 'open' AND hold_reason IS NOT NULL AND task_id > ?
             ORDER BY task_id LIMIT ?",
        )
        .bind(after)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(task).collect()
    }

    async fn tasks(&self, workflow_id: &str, after: &str, limit: u32) -> Result<Vec<Task>, Error> {
        let rows = sqlx::query("SELECT * FROM tasks WHERE workflow_id = ? AND task_id > ? ORDER BY task_id LIMIT ?")
            .bind(workflow_id)
            .bind(after)
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(task).collect()
    }

    async fn retry(&self, which: Retry<'_>, after: i64, at: Timestamp, limit: u32) -> Result<Vec<Retried>, Error> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let retried = operator::retry(&mut tx, which, after, at, limit).await?;
        tx.commit().await?;
        Ok(retried)
    }

    async fn name_owner(&self, naming: Naming<'_>) -> Result<Named, Error> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let named = operator::name_owner(&mut tx, naming).await?;
        // What is refused has changed nothing.
        tx.commit().await?;
        Ok(named)
    }
}

pub(super) fn charge(row: &SqliteRow) -> Result<Charge, Error> {
    Ok(Charge {
        number: row.try_get("number")?,
        task_id: row.try_get("task_id")?,
        workflow_id: row.try_get("workflow_id")?,
        principal_id: row.try_get("principal_id")?,
        email: row.try_get("email")?,
        supplier_id: row.try_get("supplier_id")?,
        cost: row.try_get("cost")?,
        duration_sec: row.try_get("duration_sec")?,
        cost_per_hour: row.try_get("cost_per_hour")?,
        task_status: row.try_get("task_status")?,
        assigned_worker: row.try_get("assigned_worker")?,
        started_at: row.try_get("started_at")?,
        finished_at: row.try_get("finished_at")?,
        state: state(row.try_get("state")?)?,
        hold_reason: row.try_get("hold_reason")?,
        attempts: row.try_get("attempts")?,
        post_at: time(row.try_get("post_at")?),
        leased_until: time(row.try_get("leased_until")?),
        last_error: row.try_get("last_error")?,
        created_at: time(row.try_get("created_at")?),
        posted_at: optional_time(row, "posted_at")?,
    })
}

/// A state of the schema's.
pub fn state(name: &str) -> Result<ChargeState, Error> {
    ChargeState::parse(name).ok_or_else(|| Error::Database(format!("a charge has the unknown state {name:?}")))
}

pub(super) fn workflow(row: &SqliteRow) -> Result<Workflow, Error> {
    Ok(Workflow {
        workflow_id: row.try_get("workflow_id")?,
        principal_id: row.try_get("principal_id")?,
        email: row.try_get("email")?,
        submission_id: row.try_get("submission_id")?,
        attribution: row.try_get("attribution")?,
        hold_reason: row.try_get("hold_reason")?,
        state: row.try_get("state")?,
        submitted_at: optional_time(row, "submitted_at")?,
        noted_at: time(row.try_get("noted_at")?),
    })
}

pub(super) fn task(row: &SqliteRow) -> Result<Task, Error> {
    let asked_at: i64 = row.try_get("asked_at")?;
    Ok(Task {
        task_id: row.try_get("task_id")?,
        workflow_id: row.try_get("workflow_id")?,
        state: row.try_get("state")?,
        outcome: row.try_get("outcome")?,
        attempts: row.try_get("attempts")?,
        asked_at: (asked_at > 0).then(|| time(asked_at)),
        settle_at: optional_time(row, "settle_at")?,
        unknown_since: optional_time(row, "unknown_since")?,
        hold_reason: row.try_get("hold_reason")?,
    })
}

fn submission(row: &SqliteRow) -> Result<Submission, Error> {
    Ok(Submission {
        submission_id: row.try_get("submission_id")?,
        principal_id: row.try_get("principal_id")?,
        request_id: row.try_get("request_id")?,
        opened_at: time(row.try_get("opened_at")?),
        ended_at: optional_time(row, "ended_at")?,
        state: row.try_get("state")?,
    })
}
