//! The operator's side of the database: another process than any `serve`, at the same time.
//!
//! It changes no schema, and no transaction of it lasts longer than a page.

use jiff::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection as _, FromRow, Row};

use super::text::{json, stored};
use super::{Lent, Pool, Writing, glance, migrating, missing_step, open_error, operator, optional_time, work};
use crate::config;
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

/// A charge's number is a column.
pub(super) const NUMBER: &str = "number";
/// Enough for one person at a time.
const CONNECTIONS: u32 = 2;

/// The ledger of those that may be running.
#[derive(Debug)]
pub struct PostgresBooks {
    pool: Pool,
}

impl PostgresBooks {
    /// The ledger of a database that may be away now.
    #[must_use]
    pub fn lazy(database: &config::Postgres) -> Self {
        Self { pool: Pool::new(database.clone(), CONNECTIONS) }
    }

    /// Opens the ledger, which must exist and be of this version.
    ///
    /// # Errors
    /// [`Error::Open`], in one line, when it is not there, cannot be used, or is of another version.
    pub async fn open(database: &config::Postgres) -> Result<Self, Error> {
        let place = database.to_string();
        match Self::look(database).await? {
            Found::Ready => Ok(Self::lazy(database)),
            Found::Older => {
                let reason = "it is of an older version of Tollgate: start `tollgate serve` once".to_owned();
                Err(Error::Open { place, reason })
            }
            Found::Nothing => {
                Err(Error::Open { place, reason: "there is no ledger in it; `tollgate serve` makes it".to_owned() })
            }
        }
    }

    /// Whether `serve` could use what is there, which is left as it is.
    ///
    /// # Errors
    /// [`Error::Open`], in one line, when it could not.
    pub async fn look(database: &config::Postgres) -> Result<Found, Error> {
        let place = database.to_string();
        let fail = |error: sqlx::Error| match open_error(&place, &error) {
            open @ Error::Open { .. } => open,
            other => Error::Open { place: place.clone(), reason: other.to_string() },
        };
        let pool = Pool::new(database.clone(), 1);
        let mut lent = pool.get().await.map_err(fail)?;
        let there: bool =
            sqlx::query_scalar("SELECT to_regclass('ledger') IS NOT NULL").fetch_one(&mut *lent).await.map_err(fail)?;
        let missing = missing_step(&mut lent).await.map_err(fail)?;
        if missing.is_none() {
            migrating::refuse_half(&mut lent, &place).await?;
        }
        let _ = lent.ping().await;
        lent.give_back();
        pool.close().await;
        Ok(match missing {
            None => Found::Ready,
            Some(_) if there => Found::Older,
            Some(_) => Found::Nothing,
        })
    }

    async fn all<T>(&self, query: Asked<'_>) -> Result<Vec<T>, Error>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let reading = async {
            let mut lent = self.pool.get().await?;
            let rows = query.fetch(&mut lent).await?;
            lent.give_back();
            rows.iter().map(T::from_row).collect::<Result<Vec<_>, _>>()
        };
        Ok(self.pool.bounded(reading).await?)
    }

    async fn one<T>(&self, query: String, id: &str) -> Result<Option<T>, Error>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        Ok(self.all(Asked::new(query).text(id)).await?.pop())
    }

    async fn write(&self) -> Result<Writing, Error> {
        Ok(Writing::begin(self.pool.get().await?).await?)
    }
}

/// A query and what is bound to it.
pub(super) struct Asked<'a> {
    query: String,
    bound: Vec<Bound<'a>>,
}

enum Bound<'a> {
    Text(std::borrow::Cow<'a, str>),
    Number(i64),
}

impl<'a> Asked<'a> {
    pub fn new(query: String) -> Self {
        Self { query, bound: Vec::new() }
    }

    pub fn text(mut self, text: &'a str) -> Self {
        self.bound.push(Bound::Text(stored(text)));
        self
    }

    pub fn number(mut self, number: i64) -> Self {
        self.bound.push(Bound::Number(number));
        self
    }

    /// Adds a condition on what is bound next, whose place is `$`.
    fn and(&mut self, condition: &str, value: Bound<'a>) {
        self.bound.push(value);
        let place = format!("${}", self.bound.len());
        self.query = format!("{} AND {}", self.query, condition.replace('$', &place));
    }

    async fn fetch(self, lent: &mut Lent) -> Result<Vec<PgRow>, sqlx::Error> {
        let mut query = sqlx::query(AssertSqlSafe(self.query));
        for value in self.bound {
            query = match value {
                Bound::Text(text) => query.bind(text.into_owned()),
                Bound::Number(number) => query.bind(number),
            };
        }
        query.fetch_all(&mut **lent).await
    }
}

fn to_charges(rows: Vec<ChargeRecord>) -> Result<Vec<Charge>, Error> {
    rows.into_iter().map(Charge::try_from).collect()
}

#[async_trait::async_trait]
impl Books for PostgresBooks {
    async fn standing(&self) -> Result<Standing, Error> {
        let of = async |oldest: &str, of: &str| {
            let query = format!("SELECT COUNT(*) AS rows, MIN({oldest}) AS oldest FROM {of}");
            let rows: Vec<(i64, Option<i64>)> = self.all(Asked::new(query)).await?;
            let (rows, oldest) = rows.first().copied().unwrap_or_default();
            Ok::<_, Error>(Tally { rows: rows.unsigned_abs(), oldest: oldest.map(time) })
        };
        let reading = async {
            let mut lent = self.pool.get().await?;
            let query = "SELECT born_at, compared_at, NULLIF(pruned_before, 0) AS pruned_before FROM ledger";
            let row = sqlx::query(query).fetch_one(&mut *lent).await?;
            lent.give_back();
            Ok::<_, sqlx::Error>(row)
        };
        let row = self.pool.bounded(reading).await?;
        Ok(Standing {
            born_at: time(row.try_get("born_at")?),
            compared_at: optional_time(&row, "compared_at")?,
            pruned_before: optional_time(&row, "pruned_before")?,
            open_submissions: of("opened_at", "submissions WHERE state = 'open'").await?,
            open_workflows: of("noted_at", "workflows WHERE state = 'open'").await?,
            held_workflows: of("noted_at", "workflows WHERE attribution = 'held' AND state <> 'ignored'").await?,
            due_tasks: of("settle_at", "tasks WHERE state = 'open' AND settle_at IS NOT NULL").await?,
            waiting_tasks: of("NULLIF(asked_at, 0)", "tasks WHERE state = 'open' AND settle_at IS NULL").await?,
            held_tasks: of("asked_at", "tasks WHERE state = 'open' AND hold_reason IS NOT NULL").await?,
            gone_tasks: of("asked_at", "tasks WHERE outcome = 'gone'").await?,
            charges: [
                of("created_at", "charges WHERE state = 'pending'").await?,
                of("created_at", "charges WHERE state = 'held'").await?,
                of("created_at", "charges WHERE state = 'rejected'").await?,
                of("posted_at", "charges WHERE state = 'posted'").await?,
            ],
        })
    }

    async fn sum(&self, state: ChargeState) -> Result<Money, Error> {
        // PostgreSQL's own decimals are exact, and a sum of them has all of their digits.
        let query = "SELECT COALESCE(SUM(cost::numeric), 0)::text FROM charges WHERE state = $1".to_owned();
        let sums: Vec<(String,)> = self.all(Asked::new(query).text(state.as_str())).await?;
        let sum = sums.first().map(|(sum,)| sum.as_str()).unwrap_or_default();
        Money::parse(sum).ok_or_else(|| Error::Database(format!("the sum {sum:?} is no amount")))
    }

    async fn charges(&self, filter: &Filter, below: Option<i64>, limit: u32) -> Result<Vec<Charge>, Error> {
        let Filter { states, principal_id, workflow_id, since, until } = filter;
        let states: Vec<&str> = states.iter().map(|state| state.as_str()).collect();
        let mut asked = Asked::new(format!("{} WHERE number < $1", charges(NUMBER))).number(below.unwrap_or(i64::MAX));
        if !states.is_empty() {
            let condition = "charges.state IN (SELECT jsonb_array_elements_text($::text::jsonb))";
            asked.and(condition, Bound::Text(json(states)?.into()));
        }
        if let Some(principal_id) = principal_id {
            asked.and("charges.principal_id = $", Bound::Text(stored(principal_id)));
        }
        if let Some(workflow_id) = workflow_id {
            asked.and("workflow_id = $", Bound::Text(stored(workflow_id)));
        }
        if let Some(since) = since {
            asked.and("created_at >= $", Bound::Number(ms(*since)));
        }
        if let Some(until) = until {
            asked.and("created_at < $", Bound::Number(ms(*until)));
        }
        asked.query += &format!(" ORDER BY number DESC LIMIT {limit}");
        to_charges(self.all(asked).await?)
    }

    async fn glance(&self, rows: u32) -> Result<Glance, Error> {
        let [latest, held, rejected, workflows, tasks] = glance::queries();
        let asked = |query: String| Asked::new(query).number(i64::from(rows));
        Ok(Glance {
            latest: to_charges(self.all(asked(latest)).await?)?,
            held: to_charges(self.all(asked(held)).await?)?,
            rejected: to_charges(self.all(asked(rejected)).await?)?,
            held_workflows: self.all::<WorkflowRecord>(asked(workflows)).await?.into_iter().map(Into::into).collect(),
            held_tasks: self.all::<TaskRecord>(asked(tasks)).await?.into_iter().map(Into::into).collect(),
        })
    }

    async fn posted(
        &self,
        since: Timestamp,
        until: Timestamp,
        after: Option<&After>,
        limit: u32,
    ) -> Result<Vec<Charge>, Error> {
        let (from, task) = after.map_or((ms(since), ""), |(at, task)| (ms(*at), task.as_str()));
        let query = format!(
            "{} WHERE charges.state = 'posted' AND posted_at < $2 AND (posted_at, task_id) > ($1, $3)
             ORDER BY posted_at, task_id LIMIT {limit}",
            charges(NUMBER)
        );
        to_charges(self.all(Asked::new(query).number(from).number(ms(until)).text(task)).await?)
    }

    async fn held_workflows(&self, after: &str, limit: u32) -> Result<Vec<Workflow>, Error> {
        let query = format!(
            "{WORKFLOWS} WHERE attribution = 'held' AND state <> 'ignored' AND workflow_id > $1
             ORDER BY workflow_id LIMIT {limit}"
        );
        let rows: Vec<WorkflowRecord> = self.all(Asked::new(query).text(after)).await?;
        Ok(rows.into_iter().map(Workflow::from).collect())
    }

    async fn candidates(&self, at: Timestamp) -> Result<Vec<OpenSubmission>, Error> {
        let since = at.checked_sub(LONGEST_SUBMISSION * 2).unwrap_or(Timestamp::MIN);
        let until = at.checked_add(CLOCK_SKEW).unwrap_or(Timestamp::MAX);
        let reading = async {
            let mut lent = self.pool.get().await?;
            let open = work::open_between(&mut lent, since, until).await?;
            lent.give_back();
            Ok::<_, sqlx::Error>(open)
        };
        let mut open = self.pool.bounded(reading).await?;
        open.retain(|submission| was_open_at(submission, at));
        Ok(open)
    }

    async fn charge(&self, task_id: &str) -> Result<Option<Charge>, Error> {
        let row: Option<ChargeRecord> = self.one(format!("{} WHERE task_id = $1", charges(NUMBER)), task_id).await?;
        row.map(Charge::try_from).transpose()
    }

    async fn task(&self, task_id: &str) -> Result<Option<Task>, Error> {
        Ok(self.one::<TaskRecord>(format!("{TASKS} WHERE task_id = $1"), task_id).await?.map(Task::from))
    }

    async fn workflow(&self, workflow_id: &str) -> Result<Option<Workflow>, Error> {
        let row: Option<WorkflowRecord> = self.one(format!("{WORKFLOWS} WHERE workflow_id = $1"), workflow_id).await?;
        Ok(row.map(Workflow::from))
    }

    async fn submission(&self, submission_id: &str) -> Result<Option<Submission>, Error> {
        let row: Option<SubmissionRecord> =
            self.one(format!("{SUBMISSIONS} WHERE submission_id = $1"), submission_id).await?;
        Ok(row.map(Submission::from))
    }

    async fn held_tasks(&self, after: &str, limit: u32) -> Result<Vec<Task>, Error> {
        let query = format!(
            "{TASKS} WHERE state = 'open' AND hold_reason IS NOT NULL AND task_id > $1 ORDER BY task_id LIMIT {limit}"
        );
        let rows: Vec<TaskRecord> = self.all(Asked::new(query).text(after)).await?;
        Ok(rows.into_iter().map(Task::from).collect())
    }

    async fn tasks(&self, workflow_id: &str, after: &str, limit: u32) -> Result<Vec<Task>, Error> {
        let query = format!("{TASKS} WHERE workflow_id = $1 AND task_id > $2 ORDER BY task_id LIMIT {limit}");
        let rows: Vec<TaskRecord> = self.all(Asked::new(query).text(workflow_id).text(after)).await?;
        Ok(rows.into_iter().map(Task::from).collect())
    }

    async fn retry(&self, which: Retry<'_>, after: i64, at: Timestamp, limit: u32) -> Result<Vec<Retried>, Error> {
        let retrying = async {
            let mut writing = self.write().await?;
            let retried = operator::retry(writing.tx(), which, after, at, limit).await?;
            writing.commit().await?;
            Ok::<_, Error>(retried)
        };
        self.pool.bounded(retrying).await
    }

    async fn name_owner(&self, naming: Naming<'_>) -> Result<Named, Error> {
        let naming_it = async {
            let mut writing = self.write().await?;
            let named = naming::name_owner(writing.tx(), naming).await?;
            // What is refused has changed nothing.
            writing.commit().await?;
            Ok::<_, Error>(named)
        };
        self.pool.bounded(naming_it).await
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}
